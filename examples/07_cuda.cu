// 07_cuda.cu - the same calls on the CPU and on an NVIDIA GPU, bit for bit, in one file
//
//     nvcc -O3 -std=c++17 -arch=native -I.. 07_cuda.cu -o 07_cuda && ./07_cuda
//
// Both implementations are compiled here, so nothing else is linked. For each of four operators: the result on the CPU,
// the result on the GPU, whether their bits are the same, the predicted and the measured time there. Without a GPU it
// says so and shows what a plan for one would be. Exit code 0: the bits agree (or there is no GPU); 1: they do not, or
// a call failed.

#define MLK_IMPLEMENTATION
#include "mlk.h"
#define MLK_CUDA_IMPLEMENTATION
#include "mlk_cuda.cuh"

#include <chrono>
#include <cstdio>
#include <cstring>
#include <vector>

namespace {

// Integers times a power of two, the same on every machine.
std::vector<float> numbers(size_t count, uint64_t seed) {
  std::vector<float> x(count);
  for (float &value : x) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    value = float(int32_t(seed >> 40) - (1 << 23)) / float(1 << 23);
  }
  return x;
}

uint64_t fnv1a(const void *data, size_t bytes) {
  uint64_t hash = 14695981039346656037u;
  for (size_t i = 0; i < bytes; i++) hash = (hash ^ static_cast<const unsigned char *>(data)[i]) * 1099511628211u;
  return hash;
}

// A context with arrays of its own: of the device, or of the host.
class machine {
public:
  mlk_context *ctx = nullptr;
  ~machine() {
    for (const block &b : blocks) mlk_free(ctx, b.memory, b.bytes);
    mlk_close(ctx);
  }
  mlk_status open(mlk_device device) {
    mlk_context_desc desc = {};
    desc.backends[0] = mlk_cuda_backend();
    desc.device = device;
    return mlk_open(&ctx, &desc);
  }
  void *room(size_t bytes) {
    void *memory = nullptr;
    if (mlk_alloc(ctx, bytes, &memory) == MLK_OK) blocks.push_back({memory, bytes});
    return memory;
  }
  float *put(const std::vector<float> &x) {
    void *memory = room(x.size() * sizeof(float));
    if (memory && mlk_copy(ctx, memory, x.data(), x.size() * sizeof(float)) != MLK_OK) return nullptr;
    return static_cast<float *>(memory);
  }
  // Runs call twice (the first allocates the workspace and loads the kernels); seconds: of the second.
  template <class F> mlk_status timed(F call, double *seconds) {
    for (int i = 0; i < 2; i++) {
      const auto start = std::chrono::steady_clock::now();
      mlk_status status = call();
      if (status == MLK_OK) status = mlk_sync(ctx);
      if (status != MLK_OK) return status;
      *seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    }
    return MLK_OK;
  }

private:
  struct block {
    void *memory;
    size_t bytes;
  };
  std::vector<block> blocks;
};

struct outcome {
  const char *name;
  uint64_t hash;
  double predicted, measured;
  const char *variant;
};

// One operator on one machine: plan, run, hash of the bits.
template <class Desc>
mlk_status one(machine &on, const char *name, const Desc &desc, mlk_status (*run)(mlk_context *, const Desc *),
               mlk_status (*plan)(mlk_context *, const Desc *, mlk_plan *), const mlk_tensor &result, size_t bytes,
               std::vector<outcome> &outcomes) {
  std::vector<char> bits(bytes);
  outcome o = {name, 0, 0, 0, ""};
  mlk_plan p = {};
  mlk_status status = plan(on.ctx, &desc, &p);
  if (status == MLK_OK) status = on.timed([&] { return run(on.ctx, &desc); }, &o.measured);
  if (status == MLK_OK) status = mlk_copy(on.ctx, bits.data(), result.data, bytes);
  if (status == MLK_OK) status = mlk_sync(on.ctx);
  if (status != MLK_OK) {
    std::printf("%s: %s\n", name, mlk_last_error(on.ctx));
    return status;
  }
  o.hash = fnv1a(bits.data(), bytes), o.predicted = p.seconds, o.variant = p.variant;
  outcomes.push_back(o);
  return MLK_OK;
}

mlk_status all(machine &on, std::vector<outcome> &outcomes) {
  const int64_t n = 512, queries = 100, base = 10000, width = 128, heads = 4, length = 512, head = 64;
  const size_t scores = size_t(heads * length * head);
  mlk_matmul_desc mm = {};
  mm.a = mlk_f32(on.put(numbers(size_t(n * n), 1)), n, n);
  mm.b = mlk_f32(on.put(numbers(size_t(n * n), 2)), n, n);
  mm.d = mlk_f32(static_cast<float *>(on.room(size_t(n * n) * 4)), n, n);
  mm.activation = MLK_GELU;
  mlk_knn_desc knn = {};
  knn.queries = mlk_f32(on.put(numbers(size_t(queries * width), 3)), queries, width);
  knn.base = mlk_f32(on.put(numbers(size_t(base * width), 4)), base, width);
  knn.k = 10;
  knn.ids = mlk_i64(static_cast<int64_t *>(on.room(size_t(queries * knn.k) * 8)), queries, knn.k);
  mlk_attention_desc at = {};
  at.q = mlk_f32(on.put(numbers(scores, 5)), 1, heads, length, head);
  at.k = mlk_f32(on.put(numbers(scores, 6)), 1, heads, length, head);
  at.v = mlk_f32(on.put(numbers(scores, 7)), 1, heads, length, head);
  at.out = mlk_f32(static_cast<float *>(on.room(scores * 4)), 1, heads, length, head);
  at.scores.causal = 1;
  mlk_softmax_desc sm = {};
  sm.x = mm.d, sm.y = mlk_f32(static_cast<float *>(on.room(size_t(n * n) * 4)), n, n);
  for (const void *p : {mm.a.data, mm.b.data, mm.d.data, knn.queries.data, knn.base.data, knn.ids.data, at.q.data,
                        at.k.data, at.v.data, at.out.data, sm.y.data})
    if (!p) return std::printf("memory: %s\n", mlk_last_error(on.ctx)), MLK_ERR_MEMORY;
  mlk_status status = one(on, "matmul 512^3, gelu", mm, mlk_matmul, mlk_matmul_plan, mm.d, size_t(n * n) * 4, outcomes);
  if (status == MLK_OK)
    status = one(on, "softmax of it", sm, mlk_softmax, mlk_softmax_plan, sm.y, size_t(n * n) * 4, outcomes);
  if (status == MLK_OK)
    status = one(on, "k-NN 100 in 10,000 x 128", knn, mlk_knn, mlk_knn_plan, knn.ids, size_t(queries * knn.k) * 8,
                 outcomes);
  if (status == MLK_OK)
    status = one(on, "causal attention 4 x 512 x 64", at, mlk_attention, mlk_attention_plan, at.out, scores * 4,
                 outcomes);
  return status;
}

// What the GPU would take, by the figures of its data sheet.
void plan_without() {
  mlk_device_figures h100 = {};
  h100.name = "H100 SXM", h100.compute_capability = 90, h100.multiprocessors = 132;
  h100.flops = 67e12, h100.tensor_flops = 600e12, h100.bandwidth = 3.35e12, h100.memory_bytes = 80000000000u;
  mlk_context_desc desc = {};
  desc.backends[0] = mlk_cuda_backend(), desc.figures = &h100;
  mlk_context *ctx = nullptr;
  mlk_plan plan = {};
  mlk_matmul_desc mm = {};
  float anywhere;
  mm.a = mlk_f32(&anywhere, 8192, 8192), mm.b = mm.a, mm.d = mm.a;
  if (mlk_open(&ctx, &desc) == MLK_OK && mlk_matmul_plan(ctx, &mm, &plan) == MLK_OK)
    std::printf("no GPU here; an %s would take %.1f ms for a matmul of 8192^3 (%s, %.0f MB of workspace)\n", h100.name,
                plan.seconds * 1e3, plan.variant, double(plan.workspace_bytes) / 1e6);
  mlk_close(ctx);
}

} // namespace

int main() {
  machine cpu, gpu;
  std::vector<outcome> here, there;
  if (cpu.open(MLK_DEVICE_CPU) != MLK_OK || all(cpu, here) != MLK_OK) return 1;
  for (const outcome &o : here)
    std::printf("cpu   %-31s %016llx %9.3f ms  %s\n", o.name, (unsigned long long)o.hash, o.measured * 1e3, o.variant);
  if (mlk_cuda_backend()->devices() == 0) return plan_without(), 0;
  if (gpu.open(MLK_DEVICE_BACKEND) != MLK_OK || all(gpu, there) != MLK_OK) return 1;
  mlk_info info;
  if (mlk_get_info(gpu.ctx, &info) == MLK_OK) std::printf("%s, %s\n", info.device, info.isa);
  bool same = true;
  for (size_t i = 0; i < there.size(); i++) {
    const outcome &o = there[i];
    std::printf("gpu   %-31s %016llx %9.3f ms  %s (predicted %.3f ms)%s\n", o.name, (unsigned long long)o.hash,
                o.measured * 1e3, o.variant, o.predicted * 1e3, o.hash == here[i].hash ? "" : "  NOT THE CPU'S BITS");
    same &= o.hash == here[i].hash;
  }
  return same ? 0 : 1;
}
