/* The rows of gradient averaging: N replicas' vectors into their mean. average/near stays in a second-level cache,
   average/far and average/all exceed the last one; average/all writes the mean over all replicas; average/lists has
   1,000 tensors in each replica, beside one tensor of as many elements. The ceiling is a loop that reads as many
   vectors side by side and writes as MLK does. Operands are small integers and N is a power of two, so every right mean
   is exact, in bf16 as well, and compared with ==. */
#ifndef BENCH_ROWS_AVERAGE_H
#define BENCH_ROWS_AVERAGE_H

enum { AVERAGE_REPLICAS = 8, AVERAGE_TENSORS = 1000 };

typedef struct average_spec {
  int replicas, tensors, all; /* all: the mean goes into all replicas */
  int64_t count;              /* elements of a replica */
  mlk_dtype dtype;
  problem_common common;
} average_spec;

typedef struct average_state {
  int replicas, tensors, all; /* as in the spec */
  int64_t count;
  mlk_dtype dtype;
  char *x[AVERAGE_REPLICAS], *out, *start; /* start: what the replicas hold at first, when they are written */
  mlk_context *ctx;
  mlk_tensor inputs[AVERAGE_REPLICAS * AVERAGE_TENSORS], outputs[AVERAGE_TENSORS];
  mlk_average_desc desc, one, cached, streamed; /* one: the same memory as one tensor */
  torch_tensor stacked, rows[AVERAGE_REPLICAS * AVERAGE_TENSORS], result[AVERAGE_TENSORS];
  int threads;
} average_state;

static size_t average_bytes(const average_state *w) { return (size_t)w->count * (w->dtype == MLK_F32 ? 4 : 2); }

static void average_call_with(average_state *w, const mlk_average_desc *desc) {
  if (mlk_average(w->ctx, desc) != MLK_OK) call_failed((float *)(void *)(w->all ? w->x[0] : w->out));
}
static void average_call(void *arg) { average_call_with((average_state *)arg, &((average_state *)arg)->desc); }
static void average_one_call(void *arg) { average_call_with((average_state *)arg, &((average_state *)arg)->one); }
static void average_cached_call(void *arg) { average_call_with((average_state *)arg, &((average_state *)arg)->cached); }
static void average_streamed_call(void *arg) {
  average_call_with((average_state *)arg, &((average_state *)arg)->streamed);
}

static mlk_status average_plan(void *arg, mlk_plan *plan) {
  return mlk_average_plan(((average_state *)arg)->ctx, &((average_state *)arg)->desc, plan);
}
static mlk_status average_one_plan(void *arg, mlk_plan *plan) {
  return mlk_average_plan(((average_state *)arg)->ctx, &((average_state *)arg)->one, plan);
}

/* out = (a + b) factor, through the caches, as a loop over two vectors does it. */
#if BENCH_X86
__attribute__((target("avx512f"))) static int64_t chain_add_avx512(float *out, const float *a, const float *b,
                                                                   int64_t count, float factor) {
  const __m512 f = _mm512_set1_ps(factor);
  int64_t i;
  for (i = 0; i + 32 <= count; i += 32) {
    const __m512 s = _mm512_add_ps(_mm512_loadu_ps(a + i), _mm512_loadu_ps(b + i));
    const __m512 t = _mm512_add_ps(_mm512_loadu_ps(a + i + 16), _mm512_loadu_ps(b + i + 16));
    _mm512_storeu_ps(out + i, _mm512_mul_ps(s, f));
    _mm512_storeu_ps(out + i + 16, _mm512_mul_ps(t, f));
  }
  return i;
}

__attribute__((target("avx2"))) static int64_t chain_add_avx2(float *out, const float *a, const float *b, int64_t count,
                                                              float factor) {
  const __m256 f = _mm256_set1_ps(factor);
  int64_t i;
  for (i = 0; i + 16 <= count; i += 16) {
    const __m256 s = _mm256_add_ps(_mm256_loadu_ps(a + i), _mm256_loadu_ps(b + i));
    const __m256 t = _mm256_add_ps(_mm256_loadu_ps(a + i + 8), _mm256_loadu_ps(b + i + 8));
    _mm256_storeu_ps(out + i, _mm256_mul_ps(s, f));
    _mm256_storeu_ps(out + i + 8, _mm256_mul_ps(t, f));
  }
  return i;
}
#endif

static void chain_add(float *out, const float *a, const float *b, int64_t count, float factor) {
  int64_t i = 0;
#if BENCH_X86
  if (opt.isa == MLK_ISA_AVX512) i = chain_add_avx512(out, a, b, count, factor);
  if (opt.isa == MLK_ISA_AVX2) i = chain_add_avx2(out, a, b, count, factor);
#endif
  for (; i < count; i++) out[i] = (a[i] + b[i]) * factor;
}

/* Sums of two vectors, N - 1 times, the factor in the last of them; into all: then copies, as gloo's AllreduceLocal
   does. Each thread has its part of every vector. */
static void average_chain_part(const average_state *w, int64_t from, int64_t count) {
  float *sum = (float *)(void *)(w->all ? w->x[0] : w->out) + from;
  int r;
  for (r = 1; r < w->replicas; r++)
    chain_add(sum, r == 1 ? (const float *)(const void *)w->x[0] + from : sum,
              (const float *)(const void *)w->x[r] + from, count,
              r == w->replicas - 1 ? 1.0f / (float)w->replicas : 1.0f);
  for (r = 1; r < w->replicas && w->all; r++)
    memcpy((float *)(void *)w->x[r] + from, sum, (size_t)count * sizeof(float));
}

static void average_chain_call(void *arg) {
  const average_state *w = (const average_state *)arg;
  const int64_t each = w->count / w->tensors, part = (each / w->threads + 63) / 64 * 64;
  int t;
  for (t = 0; t < w->tensors; t++) {
#ifdef _OPENMP
#pragma omp parallel num_threads(w->threads) if (w->threads > 1)
    {
      const int64_t from = part * omp_get_thread_num();
#else
    {
      const int64_t from = 0;
#endif
      const int64_t count = from + part < each ? part : each - from;
      if (count > 0) average_chain_part(w, each * t + from, count);
    }
  }
}

/* torch's mean of the replicas as rows of one tensor, which they happen to be: no copy to stack them. */
static void average_torch_mean_call(void *arg) {
  average_state *w = (average_state *)arg;
  static const int64_t first = 0;
  const torch_axes axes = {&first, 1, 1};
  const torch_type none = {0, 0};
  torch.mean(w->stacked, axes, 0, none, w->result[0]);
}

/* torch's sums in place, then the factor; per tensor, as a loop over parameters has it. */
static void average_torch_chain_call(void *arg) {
  average_state *w = (average_state *)arg;
  const torch_number once = {0, {0, 0, 0}, 1, 0}, factor = {0, {0, 0, 0}, 1.0 / w->replicas, 0};
  int t, r;
  for (t = 0; t < w->tensors; t++) {
    torch_tensor sum = w->result[t];
    for (r = 1; r < w->replicas; r++) torch.add(r == 1 ? w->rows[t] : sum, w->rows[r * w->tensors + t], &once, sum);
    torch.scale(sum, &factor);
  }
}

static void average_spoil(void *arg) {
  const average_state *w = (const average_state *)arg;
  int r;
  memset(w->out, 0xff, average_bytes(w));
  for (r = 0; r < w->replicas && w->all; r++)
    memcpy(w->x[r], w->start + (size_t)r * average_bytes(w), average_bytes(w));
}

static double average_element(const char *x, mlk_dtype dtype, int64_t i) {
  uint32_t bits;
  uint16_t half;
  float value;
  if (dtype == MLK_F32) return (double)((const float *)(const void *)x)[i];
  memcpy(&half, x + 2 * i, sizeof half);
  bits = (uint32_t)half << 16;
  memcpy(&value, &bits, sizeof value);
  return (double)value;
}

static void average_check(void *arg, const contender *who, char *why, size_t size) {
  const average_state *w = (const average_state *)arg;
  const size_t bytes = average_bytes(w);
  int64_t i;
  int r;
  for (i = 0; i < w->count && !why[0]; i++) {
    double sum = 0;
    for (r = 0; r < w->replicas; r++)
      sum += average_element(w->all ? w->start + (size_t)r * bytes : w->x[r], w->dtype, i);
    for (r = 0; r < (w->all ? w->replicas : 1); r++) {
      const double got = average_element(w->all ? w->x[r] : w->out, w->dtype, i);
      if (got != sum / w->replicas)
        text(why, size, "element %lld is %.9g, but should be %.9g", (long long)i, got, sum / w->replicas);
    }
  }
  if (who->peer < 0 && why[0] && mlk_last_error(w->ctx)[0]) text(why, size, "%s", mlk_last_error(w->ctx));
}

static mlk_tensor average_view(const average_state *w, char *at, int64_t count) {
  return dense_view(there(at), w->dtype, count);
}

static void average_fill(average_state *w) {
  const size_t width = average_bytes(w) / (size_t)w->count;
  uint64_t seed = 60;
  int64_t i;
  int r;
  for (r = 0; r < w->replicas; r++)
    for (i = 0; i < w->count; i++) {
      const float x = (float)random_int(&seed, -4, 4);
      uint32_t bits;
      memcpy(&bits, &x, sizeof bits);
      bits >>= width == 2 ? 16 : 0; /* small integers: nothing is lost */
      memcpy(w->x[r] + (size_t)i * width, &bits, width);
    }
}

static void average_prepare(average_state *w, const average_spec *s) {
  const int replicas = s->replicas, tensors = s->tensors, all = s->all;
  const int64_t each = s->count / tensors;
  size_t bytes;
  int r, t;
  char *memory;
  memset(w, 0, sizeof *w);
  w->replicas = replicas, w->tensors = tensors, w->all = all, w->count = s->count, w->dtype = s->dtype;
  w->threads = s->common.threads, w->ctx = context(s->common.threads, s->common.isa, MLK_STRICT);
  bytes = average_bytes(w);
  memory = (char *)row_alloc(bytes * (size_t)replicas);
  w->out = (char *)row_alloc(bytes);
  for (r = 0; r < replicas; r++) w->x[r] = memory + (size_t)r * bytes;
  average_fill(w);
  if (all) w->start = (char *)memcpy(row_alloc(bytes * (size_t)replicas), memory, bytes * (size_t)replicas);
  for (t = 0; t < tensors; t++) {
    const size_t at = bytes / (size_t)tensors * (size_t)t;
    for (r = 0; r < replicas; r++) w->inputs[r * tensors + t] = average_view(w, w->x[r] + at, each);
    w->outputs[t] = average_view(w, w->out + at, each);
  }
  w->desc.inputs = w->inputs, w->desc.replicas = replicas, w->desc.count = tensors;
  w->desc.outputs = all ? NULL : w->outputs, w->desc.output_count = all ? 0 : tensors;
  w->cached = w->streamed = w->desc;
  w->cached.stores = MLK_STORES_CACHED, w->streamed.stores = MLK_STORES_STREAMED;
}

static void average_torch_make(average_state *w, row *r) {
  const int64_t each = w->count / w->tensors;
  int i;
  if (!peers[TORCH].present || w->all) return;
  for (i = 0; i < w->tensors; i++)
    if (!(w->result[i] = torch_view(w->outputs[i]))) return;
  for (i = 0; i < w->tensors * w->replicas; i++)
    if (!(w->rows[i] = torch_view(w->inputs[i]))) return;
  row_add(r, "torch add_", TORCH, average_torch_chain_call, w);
  if (w->tensors > 1) return;
  w->stacked = torch_view(w->dtype == MLK_F32 ? mlk_f32((float *)(void *)w->x[0], w->replicas, each)
                                              : mlk_bf16((uint16_t *)(void *)w->x[0], w->replicas, each));
  if (w->stacked) row_add(r, "torch mean", TORCH, average_torch_mean_call, w);
}

static average_spec average_read(problem *p) {
  static const mlk_dtype dtypes[] = {MLK_F32, MLK_BF16};
  average_spec s;
  memset(&s, 0, sizeof s);
  s.replicas = (int)problem_integer_needed(p, "n", 1, AVERAGE_REPLICAS);
  if (s.replicas & (s.replicas - 1)) problem_die(p, "n=%d is no power of two: means would not be exact", s.replicas);
  s.count = problem_integer_needed(p, "elements", 1, (int64_t)1 << 34);
  s.tensors = (int)problem_integer(p, "lists", 1, AVERAGE_TENSORS, 1);
  if (s.count % s.tensors) problem_die(p, "lists=%d does not divide elements=%lld", s.tensors, (long long)s.count);
  s.dtype = dtypes[problem_choice(p, "dtype", "f32 bf16")];
  s.all = problem_choice(p, "into", "one all");
  s.common = problem_read_common(p);
  problem_finish(p);
  return s;
}

/* Many tensors beside one of as many elements; else both ways of storing. */
static void average_add_others(average_state *w, row *r) {
  static mlk_tensor one_in[AVERAGE_REPLICAS], one_out;
  int i;
  if (w->tensors > 1) {
    for (i = 0; i < w->replicas; i++) one_in[i] = average_view(w, w->x[i], w->count);
    one_out = average_view(w, w->out, w->count);
    w->one = w->desc, w->one.inputs = one_in, w->one.count = 1;
    if (!w->all) w->one.outputs = &one_out, w->one.output_count = 1;
    row_add_mlk(r, "mlk, one tensor", average_one_call, average_one_plan, w);
  } else if (!w->all && !opt.cuda) { /* a device has one way of storing */
    row_add(r, "mlk, cached stores", -1, average_cached_call, w);
    row_add(r, "mlk, streamed stores", -1, average_streamed_call, w);
  }
}

static void average_run(problem *problem_text, row *r) {
  static average_state w;
  const average_spec s = average_read(problem_text);
  int i;
  if (!r) return;
  average_prepare(&w, &s);
  row_common(r, &s.common, s.common.cold ? ROW_FLUSHED : ROW_WARM);
  text(r->dtype, sizeof r->dtype, "%s", s.dtype == MLK_F32 ? "f32" : "bf16");
  r->bytes = (double)average_bytes(&w) * (s.all ? 2 * s.replicas : s.replicas + 1);
  if (!s.common.cold) { /* cold: against reading what no cache holds */
    r->footprint = (double)average_bytes(&w) * (s.all ? s.replicas : s.replicas + 1);
    r->streams = s.replicas, r->in_place = s.all;
  }
  r->flops = 2.0 * (double)s.count * s.replicas;
  r->spoil = average_spoil, r->check = average_check, r->arg = &w;
  row_add_mlk(r, "mlk", average_call, average_plan, &w);
  average_add_others(&w, r);
  if (s.dtype == MLK_F32 && !s.common.forced) row_add(r, "chain", CHAIN, average_chain_call, &w);
  if (!s.common.forced) average_torch_make(&w, r);
  row_run(r);
  for (i = 0; i < s.tensors * s.replicas; i++) torch_release(&w.rows[i]);
  for (i = 0; i < s.tensors; i++) torch_release(&w.result[i]);
  torch_release(&w.stacked);
}

/* All vectors together: half a MiB, or 240 MiB and more than six last caches. */
static void declare_average(void) {
  static const int replicas[] = {2, 4, 8}, lists[] = {100, 1000, 10000};
  const int64_t far_bytes = (int64_t)greater(240.0 * 1048576, 6.0 * (double)last_cache_bytes());
  char name[64];
  int n, far, bf16;
  for (far = 0; far < 2; far++)
    for (bf16 = 0; bf16 < 2; bf16++)
      for (n = 0; n < 3; n++) {
        const int64_t bytes = far ? far_bytes : (int64_t)512 << 10;
        const int64_t count = bytes / (replicas[n] + 1) / (bf16 ? 2 : 4) / 64 * 64;
        declare(text(name, sizeof name, "average/%s/n%d/%s", far ? "far" : "near", replicas[n], bf16 ? "bf16" : "f32"),
                replicas[n] == 4 ? QUICK_ONE_THREAD : 0,
                PROBLEM("average n=%d elements=%lld dtype=%s", replicas[n], (long long)count, bf16 ? "bf16" : "f32"));
      }
  for (n = 0; n < 3; n++)
    declare(text(name, sizeof name, "average/all/n%d/f32", replicas[n]), 0,
            PROBLEM("average n=%d elements=%lld into=all", replicas[n],
                    (long long)(far_bytes / replicas[n] / 4 / 64 * 64)));
  for (n = 0; n < 3; n++)
    declare(text(name, sizeof name, "average/lists/n4/%dx%d", AVERAGE_TENSORS, lists[n]), n == 1 ? QUICK_ONE_THREAD : 0,
            PROBLEM("average n=4 elements=%d lists=%d", lists[n] * AVERAGE_TENSORS, AVERAGE_TENSORS));
}

#endif
