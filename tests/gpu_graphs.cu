// gpu_graphs.cu - what only a driver can say of mlk_cuda.cuh: calls captured in a graph before anything of theirs has
// run, replayed with other operands; and threads that launch one kernel with different shared memory. tests/gpu.sh runs
// it.
// Exit code: 0 passed, 1 failed, 77 no device.

#include "mlk_cuda.cuh"

#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <string>
#include <thread>
#include <vector>

namespace {

void cuda(cudaError_t code, const char *what, int line) {
  if (code == cudaSuccess) return;
  std::printf("gpu_graphs.cu:%d: %s: %s\n", line, what, cudaGetErrorString(code));
  std::exit(1);
}
#define CUDA(call) cuda((call), #call, __LINE__)

mlk_tensor view(void *data, mlk_dtype type, std::initializer_list<int64_t> shape) {
  mlk_tensor t = {};
  t.data = data, t.dtype = type;
  for (const int64_t size : shape) t.shape[t.rank++] = size;
  return t;
}

// count whole numbers from -2 to 2, in bf16 or f32: sums of their products are exact.
void fill(void *memory, mlk_dtype type, size_t count, uint32_t seed) {
  std::vector<uint16_t> halves(count);
  std::vector<float> floats(count);
  for (size_t i = 0; i < count; i++) {
    seed = seed * 1664525u + 1013904223u;
    floats[i] = static_cast<float>(static_cast<int>(seed >> 16) % 5 - 2);
    uint32_t bits = 0;
    std::memcpy(&bits, &floats[i], sizeof bits);
    halves[i] = static_cast<uint16_t>(bits >> 16);
  }
  if (type == MLK_F32)
    CUDA(cudaMemcpy(memory, floats.data(), count * 4, cudaMemcpyHostToDevice));
  else
    CUDA(cudaMemcpy(memory, halves.data(), count * 2, cudaMemcpyHostToDevice));
}

struct context {
  cudaStream_t stream = nullptr;
  mlk_context *mlk = nullptr;
  context() {
    mlk_context_desc desc = {};
    CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    desc.backends[0] = mlk_cuda_backend();
    desc.device = MLK_DEVICE_BACKEND, desc.stream = stream;
    if (mlk_open(&mlk, &desc) != MLK_OK) std::printf("mlk_open refused\n"), std::exit(1);
  }
  context(const context &) = delete;
  context &operator=(const context &) = delete;
  ~context() {
    mlk_close(mlk);
    CUDA(cudaStreamDestroy(stream));
  }
};

// A call on operands at in, count elements of a type, with results at out.
struct subject {
  const char *name;
  mlk_dtype type;
  size_t count, out_bytes;
  std::function<mlk_status(mlk_context *, void *in, void *out, mlk_plan *)> call; // with plan: only planned
};

template <class Desc>
mlk_status either(mlk_context *ctx, const Desc &desc, mlk_plan *plan, mlk_status (*call)(mlk_context *, const Desc *),
                  mlk_status (*planned)(mlk_context *, const Desc *, mlk_plan *)) {
  return plan ? planned(ctx, &desc, plan) : call(ctx, &desc);
}

char *at(void *memory, int64_t bytes) { return static_cast<char *>(memory) + bytes; }

subject product(const char *name, mlk_dtype type, int64_t n) {
  const int64_t bytes = type == MLK_F32 ? 4 : 2;
  return {name, type, static_cast<size_t>(2 * n * n), static_cast<size_t>(4 * n * n),
          [=](mlk_context *ctx, void *in, void *out, mlk_plan *plan) {
            mlk_matmul_desc d = {};
            d.a = view(in, type, {n, n}), d.b = view(at(in, bytes * n * n), type, {n, n});
            d.d = view(out, MLK_F32, {n, n});
            return either(ctx, d, plan, mlk_matmul, mlk_matmul_plan);
          }};
}

subject attention(const char *name, mlk_dtype type, int64_t rows, int64_t keys, int64_t width) {
  const int64_t bytes = type == MLK_F32 ? 4 : 2, heads = 8;
  return {name, type, static_cast<size_t>(heads * (rows + 2 * keys) * width),
          static_cast<size_t>(bytes * heads * rows * width),
          [=](mlk_context *ctx, void *in, void *out, mlk_plan *plan) {
            mlk_attention_desc d = {};
            d.q = view(in, type, {1, heads, rows, width});
            d.k = view(at(in, bytes * heads * rows * width), type, {1, heads, keys, width});
            d.v = view(at(in, bytes * heads * (rows + keys) * width), type, {1, heads, keys, width});
            d.out = view(out, type, {1, heads, rows, width});
            return either(ctx, d, plan, mlk_attention, mlk_attention_plan);
          }};
}

subject convolution(const char *name, mlk_dtype type) {
  const int64_t bytes = type == MLK_F32 ? 4 : 2, n = 32, c = 64, hw = 28, images = n * hw * hw * c;
  return {name, type, static_cast<size_t>(images + c * 9 * c), static_cast<size_t>(bytes * images),
          [=](mlk_context *ctx, void *in, void *out, mlk_plan *plan) {
            mlk_conv_desc d = {};
            d.x = mlk_channels_last(view(in, type, {n, hw, hw, c}));
            d.w = mlk_channels_last(view(at(in, bytes * images), type, {c, 3, 3, c}));
            d.y = mlk_channels_last(view(out, type, {n, hw, hw, c}));
            for (int i = 0; i < 2; i++) d.geometry.pad_before[i] = d.geometry.pad_after[i] = 1;
            return either(ctx, d, plan, mlk_conv, mlk_conv_plan);
          }};
}

subject search() {
  const int64_t q = 1000, n = 50000, width = 128, k = 10;
  return {"knn", MLK_F32, static_cast<size_t>((q + n) * width), static_cast<size_t>(12 * q * k),
          [=](mlk_context *ctx, void *in, void *out, mlk_plan *plan) {
            mlk_knn_desc d = {};
            d.queries = view(in, MLK_F32, {q, width}), d.base = view(at(in, 4 * q * width), MLK_F32, {n, width});
            d.k = k, d.ids = view(out, MLK_I64, {q, k}), d.distances = view(at(out, 8 * q * k), MLK_F32, {q, k});
            return either(ctx, d, plan, mlk_knn, mlk_knn_plan);
          }};
}

subject mean() {
  const int64_t n = 100003, replicas = 3;
  return {"average", MLK_F32, static_cast<size_t>(replicas * n), static_cast<size_t>(4 * n),
          [=](mlk_context *ctx, void *in, void *out, mlk_plan *plan) {
            mlk_tensor inputs[3], output = view(out, MLK_F32, {n});
            for (int64_t i = 0; i < replicas; i++) inputs[i] = view(at(in, 4 * n * i), MLK_F32, {n});
            mlk_average_desc d = {};
            d.inputs = inputs, d.replicas = replicas, d.count = 1, d.outputs = &output, d.output_count = 1;
            return either(ctx, d, plan, mlk_average, mlk_average_plan);
          }};
}

struct memory {
  void *p = nullptr;
  explicit memory(size_t bytes) { CUDA(cudaMalloc(&p, bytes)); }
  memory(const memory &) = delete;
  memory &operator=(const memory &) = delete;
  ~memory() { CUDA(cudaFree(p)); }
};

std::vector<char> read(const void *from, size_t bytes) {
  std::vector<char> here(bytes);
  CUDA(cudaMemcpy(here.data(), from, bytes, cudaMemcpyDeviceToHost));
  return here;
}

std::string said(mlk_context *ctx, const char *doing) { return std::string(doing) + ": " + mlk_last_error(ctx); }

// "" or what is wrong.
std::string in_a_graph(const subject &s, std::string *variant) {
  context here;
  mlk_context *const ctx = here.mlk;
  const size_t bytes = s.count * (s.type == MLK_F32 ? 4 : 2);
  memory in(bytes), out(s.out_bytes), direct(s.out_bytes);
  mlk_plan plan = {};
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t ready = nullptr;
  fill(in.p, s.type, s.count, 1);
  if (s.call(ctx, in.p, out.p, &plan) != MLK_OK) return said(ctx, "plan");
  *variant = plan.variant;
  if (mlk_reserve(ctx, plan.workspace_bytes, MLK_FIXED) != MLK_OK) return said(ctx, "reserve");
  CUDA(cudaDeviceSynchronize());
  CUDA(cudaStreamBeginCapture(here.stream, cudaStreamCaptureModeGlobal));
  const mlk_status captured = s.call(ctx, in.p, out.p, nullptr);
  const std::string refused = captured == MLK_OK ? "" : said(ctx, "captured");
  if (cudaStreamEndCapture(here.stream, &graph) != cudaSuccess)
    return refused + " the capture is invalid: " + cudaGetErrorString(cudaGetLastError());
  if (!refused.empty()) return refused;
  CUDA(cudaGraphInstantiate(&ready, graph, 0));
  for (uint32_t seed = 2; seed < 5; seed++) {
    fill(in.p, s.type, s.count, seed);
    CUDA(cudaMemset(out.p, 0xff, s.out_bytes));
    CUDA(cudaMemset(direct.p, 0xff, s.out_bytes));
    CUDA(cudaDeviceSynchronize());
    CUDA(cudaGraphLaunch(ready, here.stream));
    if (mlk_sync(ctx) != MLK_OK) return said(ctx, "replayed");
    if (s.call(ctx, in.p, direct.p, nullptr) != MLK_OK || mlk_sync(ctx) != MLK_OK) return said(ctx, "called");
    if (read(out.p, s.out_bytes) != read(direct.p, s.out_bytes)) return "the graph's bits are not the call's";
  }
  CUDA(cudaGraphExecDestroy(ready));
  CUDA(cudaGraphDestroy(graph));
  return "";
}

// Heads of other widths take other shared memory from the same kernel.
std::string by_threads() {
  static const int64_t widths[] = {64, 128, 192, 256};
  std::string wrong[4];
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; t++)
    threads.emplace_back([t, &wrong] {
      const subject s = attention("few", MLK_F32, 8, 1000, widths[t]);
      context here;
      memory in(s.count * 4), out(s.out_bytes);
      std::vector<char> first;
      fill(in.p, s.type, s.count, 7);
      CUDA(cudaDeviceSynchronize());
      for (int round = 0; round < 300 && wrong[t].empty(); round++) {
        if (s.call(here.mlk, in.p, out.p, nullptr) != MLK_OK || mlk_sync(here.mlk) != MLK_OK)
          wrong[t] = said(here.mlk, "called");
        else if (round == 0)
          first = read(out.p, s.out_bytes);
        else if (round % 50 == 0 && read(out.p, s.out_bytes) != first)
          wrong[t] = "other bits than in the first round";
      }
    });
  for (std::thread &t : threads) t.join();
  for (const std::string &w : wrong)
    if (!w.empty()) return w;
  return "";
}

} // namespace

int main() {
  int count = 0, failed = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) {
    std::printf("no CUDA device\n");
    return 77;
  }
  const subject subjects[] = {product("matmul f32", MLK_F32, 500),
                              product("matmul bf16", MLK_BF16, 2048),
                              attention("attention bf16", MLK_BF16, 2048, 2048, 128),
                              attention("attention f32", MLK_F32, 300, 300, 64),
                              attention("decoding f32", MLK_F32, 1, 3000, 128),
                              convolution("conv f32", MLK_F32),
                              convolution("conv bf16", MLK_BF16),
                              search(),
                              mean()};
  for (const subject &s : subjects) {
    std::string variant;
    const std::string wrong = in_a_graph(s, &variant);
    std::printf("%-6s in a graph: %s (%s)%s%s\n", wrong.empty() ? "ok" : "FAILED", s.name, variant.c_str(),
                wrong.empty() ? "" : ": ", wrong.c_str());
    std::fflush(stdout);
    failed += !wrong.empty();
  }
  const std::string wrong = by_threads();
  std::printf("%-6s by four threads%s%s\n", wrong.empty() ? "ok" : "FAILED", wrong.empty() ? "" : ": ", wrong.c_str());
  return failed || !wrong.empty();
}
