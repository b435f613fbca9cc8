// gpu.cu - how fast mlk_cuda.cuh is on this GPU: as a share of what the device can do, and next to cuBLAS, cuDNN and a
// device copy in the same process. bench/gpu.sh builds and runs it; bench/README.md, "GPU", says what is measured and
// how.

#include "gpu_checks.cuh"
#include "gpu_peers.cuh"
#include "gpu_util.cuh"

#include <memory>

namespace {

[[maybe_unused]] constexpr double peer_slack = 16; // other methods, Winograd's say, lose more than a plain sum

// A contender that is one call of MLK.
template <class Desc>
contender mlk_call(const std::string &name, mlk_context *ctx, std::vector<Desc> descs,
                   mlk_status (*call)(mlk_context *, const Desc *), std::function<std::string()> check) {
  contender c;
  c.name = name, c.check = std::move(check);
  auto refused = std::make_shared<std::string>();
  c.call = [=](int set) {
    const mlk_status status = call(ctx, &descs[static_cast<size_t>(set)]);
    if (status != MLK_OK && refused->empty())
      *refused = mlk_said(ctx, status), std::fprintf(stderr, "%s\n", refused->c_str());
    return status == MLK_OK;
  };
  return c;
}

template <class Desc>
std::string variant_of(mlk_context *ctx, const Desc &desc,
                       mlk_status (*plan)(mlk_context *, const Desc *, mlk_plan *)) {
  mlk_plan p = {};
  return plan(ctx, &desc, &p) == MLK_OK && p.variant ? p.variant : "mlk";
}

mlk_tensor view(void *p, type t, std::initializer_list<int64_t> shape) {
  mlk_tensor v = {};
  v.data = p, v.dtype = mlk_type(t);
  for (const int64_t size : shape) v.shape[v.rank++] = size;
  return v;
}

// ---- products ------------------------------------------------------------------------------------------------------

struct product {
  const char *group;
  type t;
  sums how;
  int64_t m, n, k;
  bool a_transposed, b_transposed, memory;
};

std::string name_of(const product &p) {
  return text("matmul/%s/%s/%lldx%lldx%lld/%c%c", p.group,
              p.t == type::f32 && p.how == sums::tf32 ? "tf32" : name_of(p.t), static_cast<long long>(p.m),
              static_cast<long long>(p.n), static_cast<long long>(p.k), p.a_transposed ? 'T' : 'N',
              p.b_transposed ? 'T' : 'N');
}

void product_row(const machine &m, const product &p, arena &memory, row &r) {
  const double unit_bytes = static_cast<double>(bytes_of(p.t));
  r.flops = 2.0 * static_cast<double>(p.m) * static_cast<double>(p.n) * static_cast<double>(p.k);
  r.bytes = unit_bytes * static_cast<double>(p.m * p.k + p.k * p.n + p.m * p.n), r.memory = p.memory;
  r.sets = sets_for(m, r.bytes);
  std::vector<mlk_matmul_desc> descs;
  for (int i = 0; i < r.sets; i++) {
    mlk_matmul_desc d = {};
    d.a = p.a_transposed ? mlk_transposed(view(memory.uniform(p.k * p.m, p.t), p.t, {p.k, p.m}))
                         : view(memory.uniform(p.m * p.k, p.t), p.t, {p.m, p.k});
    d.b = p.b_transposed ? mlk_transposed(view(memory.uniform(p.n * p.k, p.t), p.t, {p.n, p.k}))
                         : view(memory.uniform(p.k * p.n, p.t), p.t, {p.k, p.n});
    d.d = view(memory.output(p.m * p.n, p.t), p.t, {p.m, p.n});
    descs.push_back(d);
  }
  const auto checked = [=, &m](const void *out, double slack) {
    const mlk_tensor a = mlki_explicit_strides(descs[0].a), b = mlki_explicit_strides(descs[0].b);
    const matrices what = {a.data,
                           b.data,
                           out,
                           p.t,
                           p.t,
                           p.m,
                           p.n,
                           p.k,
                           a.stride[0],
                           a.stride[1],
                           b.stride[0],
                           b.stride[1],
                           p.t == type::f32 && p.how == sums::tf32 ? 0x1p-9 : 0.0,
                           slack};
    return verdict_of(m, out, p.m * p.n, p.t,
                      [&](verdict *v) { check_product<<<check_samples, check_threads, 0, m.stream>>>(what, v); });
  };
  mlk_context *const ctx = p.how == sums::tf32 ? m.fast : m.strict;
  r.contenders.push_back(mlk_call(variant_of(ctx, descs[0], mlk_matmul_plan), ctx, descs, mlk_matmul,
                                  [=] { return checked(descs[0].d.data, 1.0); }));
#if defined(BENCH_CUBLAS)
  void *const theirs = memory.output(p.m * p.n, p.t);
  auto blas = std::make_shared<blas_product>(m, p.t, p.how, p.m, p.n, p.k, p.a_transposed, p.b_transposed);
  contender c;
  c.name = "cublas";
  c.call = [=](int set) {
    const mlk_matmul_desc &d = descs[static_cast<size_t>(set)];
    return blas->run(d.a.data, d.b.data, set == 0 ? theirs : d.d.data);
  };
  c.check = [=] { return checked(theirs, peer_slack); };
  r.contenders.push_back(c);
#endif
}

std::vector<product> products() {
  std::vector<product> all;
  for (const int64_t n : {1024, 2048, 4096, 8192})
    all.push_back({"large", type::f32, sums::strict, n, n, n, false, false, false});
  for (const int64_t n : {1024, 2048, 4096, 8192})
    all.push_back({"large", type::f32, sums::tf32, n, n, n, false, true, false});
  for (const type t : {type::bf16, type::f16})
    for (const int64_t n : {1024, 2048, 4096, 8192})
      for (int layout = 0; layout < 4; layout++)
        if (layout == 1 || (n >= 4096 && t == type::bf16))
          all.push_back({"large", t, sums::strict, n, n, n, (layout & 2) != 0, (layout & 1) != 0, false});
  all.push_back({"odd", type::f32, sums::strict, 4095, 4097, 4093, false, false, false});
  all.push_back({"odd", type::bf16, sums::strict, 4095, 4097, 4093, false, true, false});
  all.push_back({"tall", type::f32, sums::strict, 65536, 256, 256, false, false, false});
  all.push_back({"deep", type::bf16, sums::strict, 512, 512, 65536, false, true, false});
  for (const type t : {type::f32, type::bf16})
    for (const int64_t n : {1, 4, 16}) all.push_back({"skinny", t, sums::strict, n, 8192, 8192, false, true, true});
  return all;
}

// ---- convolutions --------------------------------------------------------------------------------------------------

struct convolution {
  const char *name;
  conv_op op;
  type t;
  image_shape shape;
};

std::string name_of(const convolution &c) {
  return text("conv/%s/%s/%s", c.name, name_of(c.t),
              c.op == conv_op::forward      ? "fwd"
              : c.op == conv_op::grad_input ? "grad_x"
                                            : "grad_w");
}

// Axes N, C, H, W over memory N, H, W, C; the filter's likewise.
mlk_tensor last(void *p, type t, int64_t n, int64_t h, int64_t w, int64_t c) {
  return mlk_channels_last(view(p, t, {n, h, w, c}));
}

struct conv_set {
  void *x, *w, *y;
};

contender mlk_conv_call(const machine &m, const convolution &c, const std::vector<conv_set> &sets,
                        std::function<std::string()> check) {
  const image_shape &g = c.shape;
  mlk_conv_geometry geometry = {};
  geometry.stride[0] = geometry.stride[1] = g.stride;
  for (int i = 0; i < 2; i++) geometry.pad_before[i] = geometry.pad_after[i] = g.pad;
  std::vector<mlk_conv_desc> forward;
  std::vector<mlk_conv_grad_input_desc> input;
  std::vector<mlk_conv_grad_weights_desc> weights;
  for (const conv_set &s : sets) {
    const mlk_tensor x = last(s.x, c.t, g.n, g.h, g.w, g.c), w = last(s.w, c.t, g.k, g.r, g.s, g.c),
                     y = last(s.y, c.t, g.n, g.oh(), g.ow(), g.k);
    mlk_conv_desc f = {};
    f.x = x, f.w = w, f.y = y, f.geometry = geometry;
    mlk_conv_grad_input_desc i = {};
    i.dy = y, i.w = w, i.dx = x, i.geometry = geometry;
    mlk_conv_grad_weights_desc d = {};
    d.x = x, d.dy = y, d.dw = w, d.geometry = geometry;
    forward.push_back(f), input.push_back(i), weights.push_back(d);
  }
  if (c.op == conv_op::forward)
    return mlk_call(variant_of(m.strict, forward[0], mlk_conv_plan), m.strict, forward, mlk_conv, check);
  if (c.op == conv_op::grad_input)
    return mlk_call(variant_of(m.strict, input[0], mlk_conv_grad_input_plan), m.strict, input, mlk_conv_grad_input,
                    check);
  return mlk_call(variant_of(m.strict, weights[0], mlk_conv_grad_weights_plan), m.strict, weights,
                  mlk_conv_grad_weights, check);
}

void conv_row(const machine &m, const convolution &c, arena &memory, row &r) {
  const image_shape &g = c.shape;
  const int64_t in = g.n * g.h * g.w * g.c, taps = g.k * g.r * g.s * g.c, out = g.n * g.oh() * g.ow() * g.k;
  r.flops = 2.0 * static_cast<double>(out) * static_cast<double>(g.r * g.s * g.c);
  r.bytes = static_cast<double>(bytes_of(c.t)) * static_cast<double>(in + taps + out);
  r.sets = sets_for(m, r.bytes);
  std::vector<conv_set> sets;
  const auto operand = [&](int64_t count, bool result) {
    return result ? memory.output(count, c.t) : memory.uniform(count, c.t);
  };
  const auto set = [&] {
    return conv_set{operand(in, c.op == conv_op::grad_input), operand(taps, c.op == conv_op::grad_weights),
                    operand(out, c.op == conv_op::forward)};
  };
  for (int i = 0; i < r.sets; i++) sets.push_back(set());
  const auto checked = [=, &m](const conv_set &s, double slack) {
    const images what = {s.x, s.w, s.y, g, g.oh(), g.ow(), c.t, c.op, slack};
    const void *result = c.op == conv_op::forward ? s.y : c.op == conv_op::grad_input ? s.x : s.w;
    const int64_t count = c.op == conv_op::forward ? out : c.op == conv_op::grad_input ? in : taps;
    return verdict_of(m, result, count, c.t,
                      [&](verdict *v) { check_conv<<<check_samples, check_threads, 0, m.stream>>>(what, v); });
  };
  r.contenders.push_back(mlk_conv_call(m, c, sets, [=] { return checked(sets[0], 1.0); }));
#if defined(BENCH_CUDNN)
  conv_set theirs = sets[0]; // the same operands, another result
  (c.op == conv_op::forward      ? theirs.y
   : c.op == conv_op::grad_input ? theirs.x
                                 : theirs.w) = operand(c.op == conv_op::forward      ? out
                                                       : c.op == conv_op::grad_input ? in
                                                                                     : taps,
                                                       true);
  auto dnn = std::make_shared<dnn_conv>(m, c.op, c.t, g);
  contender peer;
  peer.name = "cudnn";
  peer.call = [=](int i) {
    const conv_set &s = i == 0 ? theirs : sets[static_cast<size_t>(i)];
    return dnn->run(s.x, s.w, s.y);
  };
  peer.check = [=] { return checked(theirs, peer_slack); };
  r.contenders.push_back(peer);
#endif
}

std::vector<convolution> convolutions() {
  const struct {
    const char *name;
    image_shape shape;
  } shapes[] = {{"resnet/stem_7x7s2", {32, 3, 224, 224, 64, 7, 7, 2, 3}},
                {"resnet/3x3_64_56", {32, 64, 56, 56, 64, 3, 3, 1, 1}},
                {"resnet/3x3_128_28", {32, 128, 28, 28, 128, 3, 3, 1, 1}},
                {"resnet/3x3s2_128_56", {32, 128, 56, 56, 128, 3, 3, 2, 1}},
                {"resnet/3x3_256_14", {32, 256, 14, 14, 256, 3, 3, 1, 1}},
                {"resnet/3x3_512_7", {32, 512, 7, 7, 512, 3, 3, 1, 1}},
                {"resnet/1x1_64_256_56", {32, 64, 56, 56, 256, 1, 1, 1, 0}},
                {"resnet/1x1_1024_256_14", {32, 1024, 14, 14, 256, 1, 1, 1, 0}},
                {"resnet/1x1s2_256_512_56", {32, 256, 56, 56, 512, 1, 1, 2, 0}}};
  std::vector<convolution> all;
  for (const auto &s : shapes)
    for (const type t : {type::f32, type::bf16}) all.push_back({s.name, conv_op::forward, t, s.shape});
  for (const conv_op op : {conv_op::grad_input, conv_op::grad_weights})
    for (const int i : {1, 3, 4, 7})
      for (const type t : {type::f32, type::bf16}) all.push_back({shapes[i].name, op, t, shapes[i].shape});
  return all;
}

// ---- attention -----------------------------------------------------------------------------------------------------

struct attention {
  const char *kind; // forward, backward, decode
  type t;
  int64_t b, h, g, s, kv, d;
  int causal;
  sums how;
};

std::string name_of(const attention &a) {
  return text("attention/%s/%s/b%lld_h%lld%s_s%lld_d%lld%s", a.kind, a.how == sums::tf32 ? "tf32" : name_of(a.t),
              static_cast<long long>(a.b), static_cast<long long>(a.h),
              a.g == a.h ? "" : text("g%lld", static_cast<long long>(a.g)).c_str(), static_cast<long long>(a.kv),
              static_cast<long long>(a.d), a.causal ? "/causal" : "");
}

struct attention_set {
  mlk_attention_desc forward;
  mlk_attention_grad_desc backward;
};

attention_set attention_operands(const attention &a, arena &memory) {
  attention_set s = {};
  const int64_t queries = a.b * a.h * a.s * a.d, keys = a.b * a.g * a.kv * a.d;
  mlk_attention_desc &f = s.forward;
  f.q = view(memory.uniform(queries, a.t), a.t, {a.b, a.h, a.s, a.d});
  f.k = view(memory.uniform(keys, a.t), a.t, {a.b, a.g, a.kv, a.d});
  f.v = view(memory.uniform(keys, a.t), a.t, {a.b, a.g, a.kv, a.d});
  f.out = view(memory.output(queries, a.t), a.t, {a.b, a.h, a.s, a.d});
  f.lse = view(memory.output(a.b * a.h * a.s, type::f32), type::f32, {a.b, a.h, a.s});
  f.scores.causal = a.causal;
  if (std::strcmp(a.kind, "backward") != 0) return s;
  mlk_attention_grad_desc &g = s.backward;
  g.q = f.q, g.k = f.k, g.v = f.v, g.out = f.out, g.lse = f.lse, g.scores = f.scores;
  g.dout = f.out, g.dq = f.q, g.dk = f.k, g.dv = f.v;
  g.dout.data = memory.uniform(queries, a.t), g.dq.data = memory.output(queries, a.t);
  g.dk.data = memory.output(keys, a.t), g.dv.data = memory.output(keys, a.t);
  return s;
}

heads heads_of(const attention &a, const attention_set &s) {
  const double rounding = a.how == sums::tf32 ? 0x1p-6 : a.t == type::f32 ? 1e-4 : a.t == type::f16 ? 0x1p-9 : 0x1p-6;
  return {s.forward.q.data,
          s.forward.k.data,
          s.forward.v.data,
          s.forward.out.data,
          s.backward.dout.data,
          s.backward.dq.data,
          s.backward.dk.data,
          s.backward.dv.data,
          static_cast<const float *>(s.forward.lse.data),
          a.t,
          a.b,
          a.h,
          a.g,
          a.s,
          a.kv,
          a.d,
          a.causal,
          1 / std::sqrt(static_cast<double>(a.d)),
          rounding};
}

std::string attention_right(const machine &m, const attention &a, const attention_set &s) {
  double *scores = nullptr;
  const heads p = heads_of(a, s);
  CUDA(cudaMalloc(&scores, sizeof(double) * static_cast<size_t>(check_samples * a.kv)));
  const std::string wrong = verdict_of(m, p.out, a.b * a.h * a.s * a.d, a.t, [&](verdict *v) {
    check_attention<<<check_samples, check_threads, 0, m.stream>>>(p, scores, v);
  });
  CUDA(cudaFree(scores));
  return wrong;
}

std::string attention_grad_right(const machine &m, const attention &a, const attention_set &s) {
  const heads p = heads_of(a, s);
  std::string wrong = verdict_of(m, p.dq, a.b * a.h * a.s * a.d, a.t,
                                 [&](verdict *v) { check_dq<<<check_samples, check_threads, 0, m.stream>>>(p, v); });
  if (!wrong.empty()) return "dq: " + wrong;
  for (const int of_v : {0, 1}) {
    wrong = verdict_of(m, of_v ? p.dv : p.dk, a.b * a.g * a.kv * a.d, a.t,
                       [&](verdict *v) { check_dkv<<<check_samples / 8, check_threads, 0, m.stream>>>(p, of_v, v); });
    if (!wrong.empty()) return (of_v ? "dv: " : "dk: ") + wrong;
  }
  return "";
}

void attention_row(const machine &m, const attention &a, arena &memory, row &r) {
  const bool backward = std::strcmp(a.kind, "backward") == 0;
  const double pairs = static_cast<double>(a.b * a.h) * static_cast<double>(a.s) * static_cast<double>(a.kv) *
                       (a.causal && a.s == a.kv ? 0.5 : 1);
  r.flops = (backward ? 10 : 4) * pairs * static_cast<double>(a.d);
  r.bytes = static_cast<double>(bytes_of(a.t)) * 2.0 *
            static_cast<double>(a.b * a.h * a.s * a.d + a.b * a.g * a.kv * a.d);
  r.memory = std::strcmp(a.kind, "decode") == 0;
  r.sets = std::min(sets_for(m, r.bytes), 16);
  std::vector<attention_set> sets;
  for (int i = 0; i < r.sets; i++) sets.push_back(attention_operands(a, memory));
  mlk_context *const ctx = a.how == sums::tf32 ? m.fast : m.strict;
  std::vector<mlk_attention_desc> forward;
  std::vector<mlk_attention_grad_desc> grads;
  for (const attention_set &s : sets) forward.push_back(s.forward), grads.push_back(s.backward);
  if (!backward) {
    r.contenders.push_back(mlk_call(variant_of(ctx, forward[0], mlk_attention_plan), ctx, forward, mlk_attention,
                                    [=, &m] { return attention_right(m, a, sets[0]); }));
    return;
  }
  CUDA(cudaDeviceSynchronize()); // operands are filled on another stream
  bool made = true;              // the forward results that the gradient starts from
  for (const mlk_attention_desc &f : forward) made = made && mlk_attention(ctx, &f) == MLK_OK;
  const std::string wrong = made ? attention_right(m, a, sets[0]) : mlk_said(ctx, MLK_ERR_ARGUMENT);
  contender c = mlk_call(variant_of(ctx, grads[0], mlk_attention_grad_plan), ctx, grads, mlk_attention_grad,
                         [=, &m] { return attention_grad_right(m, a, sets[0]); });
  if (!wrong.empty()) c.refused = "forward: " + wrong;
  r.contenders.push_back(c);
}

std::vector<attention> attentions() {
  std::vector<attention> all;
  for (const char *kind : {"forward", "backward"})
    for (const type t : {type::bf16, type::f16, type::f32})
      for (const int64_t d : {64, 128})
        for (const int64_t s : {1024, 4096, 16384})
          for (const int causal : {0, 1}) {
            if (t != type::bf16 && (s != 4096 || d != 128)) continue;
            const int64_t b = (t == type::f32 ? 4096 : 16384) / s, h = 2048 / d;
            if (b > 0) all.push_back({kind, t, b, h, h, s, s, d, causal, sums::strict});
            if (b > 0 && t == type::f32) all.push_back({kind, t, b, h, h, s, s, d, causal, sums::tf32});
          }
  for (const type t : {type::bf16, type::f32})
    for (const int64_t g : {32, 8})
      for (const int64_t b : {1, 16}) all.push_back({"decode", t, b, 32, g, 1, 8192, 128, 0, sums::strict});
  return all;
}

// ---- k-NN ----------------------------------------------------------------------------------------------------------

struct search {
  int64_t q, n, d, k;
};

std::string name_of(const search &s) {
  return text("knn/l2/q%lld_n%lld_d%lld_k%lld", static_cast<long long>(s.q), static_cast<long long>(s.n),
              static_cast<long long>(s.d), static_cast<long long>(s.k));
}

// The peer: the product of all queries with all rows by cuBLAS, timed on as many queries as a GiB of products allows,
// and one reading of the products at the copy's rate, which no selection can do without.
#if defined(BENCH_CUBLAS)
contender product_and_selection(const machine &m, const search &s, sums how, const void *queries, const void *base,
                                arena &memory) {
  const int64_t part = std::min(s.q, std::max<int64_t>(1, (int64_t{1} << 28) / s.n));
  auto blas = std::make_shared<blas_product>(m, type::f32, how, part, s.n, s.d, false, true);
  void *const products = memory.bytes(sizeof(float) * static_cast<size_t>(part * s.n));
  contender c;
  c.name = how == sums::tf32 ? "tf32 product + reading it" : "product + reading it";
  c.call = [=](int) { return blas->run(queries, base, products); };
  c.factor = static_cast<double>(s.q) / static_cast<double>(part);
  c.extra = 4.0 * static_cast<double>(s.q) * static_cast<double>(s.n) / m.copy;
  return c;
}
#endif

void search_row(const machine &m, const search &s, arena &memory, row &r) {
  r.flops = 2.0 * static_cast<double>(s.q) * static_cast<double>(s.n) * static_cast<double>(s.d);
  r.bytes = 4.0 * static_cast<double>((s.q + s.n) * s.d) + 12.0 * static_cast<double>(s.q * s.k);
  r.memory = s.q == 1;
  mlk_knn_desc d = {};
  auto *queries = static_cast<float *>(memory.uniform(s.q * s.d, type::f32));
  auto *base = static_cast<float *>(memory.uniform(s.n * s.d, type::f32));
  auto *ids = static_cast<int64_t *>(memory.bytes(sizeof(int64_t) * static_cast<size_t>(s.q * s.k)));
  auto *distances = static_cast<float *>(memory.output(s.q * s.k, type::f32));
  CUDA(cudaMemset(ids, 0xff, sizeof(int64_t) * static_cast<size_t>(s.q * s.k)));
  d.queries = mlk_f32(queries, s.q, s.d), d.base = mlk_f32(base, s.n, s.d), d.k = s.k;
  d.ids = mlk_i64(ids, s.q, s.k), d.distances = mlk_f32(distances, s.q, s.k);
  const std::vector<mlk_knn_desc> descs = {d};
  r.contenders.push_back(mlk_call(variant_of(m.strict, d, mlk_knn_plan), m.strict, descs, mlk_knn, [=, &m] {
    return verdict_of(m, distances, s.q * s.k, type::f32, [&](verdict *v) {
      check_neighbours<<<static_cast<unsigned>(std::min<int64_t>(s.q, 64)), check_threads, 0, m.stream>>>(
          queries, base, ids, distances, s.q, s.n, s.d, s.k, v);
    });
  }));
#if defined(BENCH_CUBLAS)
  for (const sums how : {sums::strict, sums::tf32})
    r.contenders.push_back(product_and_selection(m, s, how, queries, base, memory));
#endif
}

std::vector<search> searches() {
  return {{10000, 60000, 784, 10},  {1000, 60000, 784, 10}, {16384, 100000, 128, 4},  {16384, 100000, 128, 16},
          {16384, 100000, 128, 32}, {8192, 200000, 256, 4}, {1000, 1000000, 64, 100}, {1, 1000000, 128, 10}};
}

// ---- means ---------------------------------------------------------------------------------------------------------

struct mean {
  type t;
  int replicas;
  std::vector<int64_t> sizes; // of the tensors
  const char *name;
};

std::string name_of(const mean &a) { return text("average/%s/%s/n%d", a.name, name_of(a.t), a.replicas); }

void mean_row(const machine &m, const mean &a, arena &memory, row &r) {
  int64_t total = 0;
  for (const int64_t size : a.sizes) total += size;
  r.flops = 0, r.memory = true;
  r.bytes = static_cast<double>(bytes_of(a.t)) * static_cast<double>(total) * (a.replicas + 1);
  r.sets = std::min(sets_for(m, r.bytes), 16);
  struct set {
    replicas in;
    void *out;
    std::vector<mlk_tensor> inputs, outputs;
  };
  auto sets = std::make_shared<std::vector<set>>();
  for (int i = 0; i < r.sets; i++) {
    set s = {};
    s.in.count = a.replicas, s.out = memory.output(total, a.t);
    for (int n = 0; n <= a.replicas; n++) {
      if (n < a.replicas) s.in.x[n] = memory.integers(total, a.t);
      char *at = static_cast<char *>(n < a.replicas ? const_cast<void *>(s.in.x[n]) : s.out);
      for (const int64_t size : a.sizes) {
        (n < a.replicas ? s.inputs : s.outputs).push_back(view(at, a.t, {size}));
        at += static_cast<size_t>(size) * bytes_of(a.t);
      }
    }
    sets->push_back(s);
  }
  std::vector<mlk_average_desc> descs;
  for (const set &s : *sets) {
    mlk_average_desc d = {};
    d.inputs = s.inputs.data(), d.replicas = a.replicas, d.count = static_cast<int64_t>(a.sizes.size());
    d.outputs = s.outputs.data(), d.output_count = d.count;
    descs.push_back(d);
  }
  r.contenders.push_back(
      mlk_call(variant_of(m.strict, descs[0], mlk_average_plan), m.strict, descs, mlk_average, [=, &m] {
        const set &s = sets->front();
        return verdict_of(m, s.out, total, a.t,
                          [&](verdict *v) { check_mean<<<2048, 256, 0, m.stream>>>(s.in, s.out, total, a.t, v); });
      }));
  const size_t half = static_cast<size_t>(r.bytes / 2) / 256 * 256; // as many bytes moved
  auto *from = static_cast<char *>(memory.bytes(half)), *to = static_cast<char *>(memory.bytes(half));
  CUDA(cudaMemset(from, 1, half));
  contender copy;
  copy.name = "copy";
  copy.call = [=, &m](int) {
    return cudaMemcpyAsync(to, from, half, cudaMemcpyDeviceToDevice, m.stream) == cudaSuccess;
  };
  r.contenders.push_back(copy);
}

std::vector<mean> means() {
  std::vector<mean> all;
  for (const type t : {type::f32, type::bf16})
    for (const int n : {2, 4, 8}) all.push_back({t, n, {static_cast<int64_t>((256u << 20) / bytes_of(t))}, "256mb"});
  std::vector<int64_t> sizes; // of a network's layers: 64 to 262,144 elements, a few of them odd
  for (uint64_t i = 0; i < 300; i++) sizes.push_back((int64_t{64} << mix(i) % 13) + (i % 10 == 0 ? 1 : 0));
  all.push_back({type::f32, 4, sizes, "300_tensors"});
  all.push_back({type::bf16, 4, sizes, "300_tensors"});
  return all;
}

// ---- the program ---------------------------------------------------------------------------------------------------

struct program {
  machine m;
  options opt;
  std::vector<result> results;
  int wrong = 0;

  bool wanted(const std::string &name) const {
    if (opt.filters.empty()) return true;
    return std::any_of(opt.filters.begin(), opt.filters.end(),
                       [&](const std::string &f) { return name.find(f) != std::string::npos; });
  }

  template <class Case, class Make> void rows(const std::vector<Case> &cases, Make make) {
    for (const Case &one : cases) {
      row r;
      r.name = name_of(one);
      if (!wanted(r.name)) continue;
      if (opt.list) {
        std::printf("%s\n", r.name.c_str());
        continue;
      }
      arena memory;
      make(m, one, memory, r);
      CUDA(cudaDeviceSynchronize());
      check_row(m, r);
      time_row(m, opt, r);
      results.push_back(judge(m, r));
      results.back().variant = r.contenders.front().name;
      if (!results.back().refused.empty()) wrong++;
      print_result(results.back());
      write(); // after each: a fault, or who stops the program, takes no row that is done
      CUDA(cudaStreamSynchronize(m.stream));
      r.contenders.clear(); // what they own, before the memory
    }
  }

  bool start(int device) {
    mlk_context_desc desc = {};
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess || count <= device) {
      std::fprintf(stderr, "bench/gpu: no CUDA device %d here\n", device);
      return false;
    }
    CUDA(cudaSetDevice(device));
    CUDA(cudaGetDeviceProperties(&m.properties, device));
    CUDA(cudaStreamCreateWithFlags(&m.stream, cudaStreamNonBlocking));
    desc.backends[0] = mlk_cuda_backend();
    desc.device = MLK_DEVICE_BACKEND, desc.device_index = device, desc.stream = m.stream;
    desc.log = [](void *, const char *line) { std::fprintf(stderr, "mlk: %s\n", line); };
    if (mlk_open(&m.strict, &desc) != MLK_OK) return false;
    desc.numerics = MLK_FAST;
    return mlk_open(&m.fast, &desc) == MLK_OK && ceilings();
  }

  bool ceilings() {
    mlk_ceilings found = {};
    arena memory;
    const size_t half = std::min<size_t>(size_t{1} << 30, m.properties.totalGlobalMem / 8);
    void *from = memory.bytes(half), *to = memory.bytes(half);
    CUDA(cudaMemset(from, 1, half));
    CUDA(cudaDeviceSynchronize());
    stopwatch watch(m.stream);
    for (int i = 0; i < 20; i++) {
      const double seconds = watch.of(
          4, [&] { return cudaMemcpyAsync(to, from, half, cudaMemcpyDeviceToDevice, m.stream) == cudaSuccess; });
      if (seconds > 0) m.copy = std::max(m.copy, 2.0 * static_cast<double>(half) / seconds);
    }
    if (mlk_measure(m.strict, &found) != MLK_OK) return false;
    m.flops = found.flops_all;
    std::printf("%s, sm_%d%d, %d multiprocessors, L2 %.0f MiB; copy %.0f GB/s, f32 %.1f TFLOP/s\n%s\n",
                m.properties.name, m.properties.major, m.properties.minor, m.properties.multiProcessorCount,
                m.properties.l2CacheSize / 1048576.0, m.copy * 1e-9, m.flops * 1e-12, opt.about.c_str());
    return m.copy > 0;
  }

  bool write() const {
    return opt.out.empty() ||
           (write_markdown(opt.out + ".md", m, opt, results) && write_json(opt.out + ".json", m, opt, results));
  }

  void all() {
    rows(products(), product_row);
    rows(convolutions(), conv_row);
    rows(attentions(), attention_row);
    rows(searches(), search_row);
    rows(means(), mean_row);
  }
};

int usage(int code) {
  std::fprintf(code ? stderr : stdout,
               "usage: gpu [--list] [--filter TEXT]... [--quick] [--min-time SECONDS] [--device N] [--out PREFIX] "
               "[--about TEXT]\n"
               "  --filter TEXT       rows whose name contains TEXT; may be given several times\n"
               "  --quick             fewer rounds\n"
               "  --min-time SECONDS  of each contender of a row (default 0.3)\n"
               "  --out PREFIX        writes PREFIX.md and PREFIX.json\n"
               "  --about TEXT        about the machine, for both\n"
               "exit code: 0; 1 a result was wrong or refused; 2 bad arguments or no device; 3 an error of CUDA\n");
  return code;
}

} // namespace

int main(int argc, char **argv) {
  program p;
  int device = 0;
  for (int i = 1; i < argc; i++) {
    const std::string option = argv[i];
    if (option == "--help") return usage(0);
    if (option == "--list")
      p.opt.list = true;
    else if (option == "--quick")
      p.opt.quick = true, p.opt.min_time = 0.05;
    else if (i + 1 == argc)
      return usage(2);
    else if (option == "--filter")
      p.opt.filters.push_back(argv[++i]);
    else if (option == "--min-time")
      p.opt.min_time = std::max(0.0, std::atof(argv[++i]));
    else if (option == "--device")
      device = std::atoi(argv[++i]);
    else if (option == "--out")
      p.opt.out = argv[++i];
    else if (option == "--about")
      p.opt.about = argv[++i];
    else
      return usage(2);
  }
  if (!p.opt.list && !p.start(device)) return 2;
  p.all();
  if (p.opt.list) return 0;
  mlk_close(p.m.fast), mlk_close(p.m.strict);
  if (!p.write()) {
    std::fprintf(stderr, "bench/gpu: %s cannot be written\n", p.opt.out.c_str());
    return 2;
  }
  std::printf("%zu rows, %d wrong or refused\n", p.results.size(), p.wrong);
  return p.wrong ? 1 : 0;
}
