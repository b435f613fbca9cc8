/* test_cuda_attention.c - attention with 16-bit queries, keys and values on a device, and with f32 ones in MLK_FAST,
   against the CPU's f32 attention of the same values. Only in the programs of make test-cuda. */

#include "test.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#if defined(MLKT_CUDA_EMULATED)
#include "cuda_emulator_control.h"
#endif

/* A tensor [n0, n1, n2, n3] of 16 bits, or of f32 for MLK_FAST, in some layout, and its values dense as f32. */
typedef struct half_tensor {
  int64_t shape[4], stride[4];
  float *f;
  char *memory;
  mlk_tensor wide, half; /* f32 dense; of the type at hand as laid out */
} half_tensor;

static int64_t count_of(const int64_t *shape) { return shape[0] * shape[1] * shape[2] * shape[3]; }

/* Exact for values of at most 8 significant bits that are normal in both types, zeros, infinities and NaN. */
static uint16_t to_16(float x, mlk_dtype dtype) {
  const uint32_t bits = mlkt_bits(x), sign = bits >> 16 & 0x8000u, exponent = bits >> 23 & 0xFFu;
  if (dtype == MLK_BF16 || exponent == 0) return (uint16_t)(dtype == MLK_BF16 ? bits >> 16 : sign);
  if (exponent == 255) return (uint16_t)(sign | 0x7C00u | (bits >> 13 & 0x3FFu));
  return (uint16_t)(sign | (exponent - 112) << 10 | (bits >> 13 & 0x3FFu));
}

static float from_16(uint16_t h, mlk_dtype dtype) {
  const uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exponent = h >> 10 & 31u, mantissa = h & 0x3FFu;
  if (dtype == MLK_BF16) return mlkt_float((uint32_t)h << 16);
  if (exponent == 31) return mlkt_float(sign | 0x7F800000u | mantissa << 13);
  if (exponent == 0) return (sign ? -1.0f : 1.0f) * ldexpf((float)mantissa, -24);
  return mlkt_float(sign | (exponent + 112) << 23 | mantissa << 13);
}

/* layout: 0 dense, 1 axes 1 and 2 swapped in memory and rows padded, 2 the same from an odd element on, 3 the last axis
   strided. */
static void half_new(half_tensor *t, mlk_dtype dtype, int layout, int64_t n0, int64_t n1, int64_t n2, int64_t n3) {
  const int64_t row = layout == 0 ? n3 : (n3 + 7) / 8 * 8 + 8, step = layout == 3 ? 2 : 1;
  const size_t size = dtype == MLK_F32 ? 4 : 2;
  int i;
  t->shape[0] = n0, t->shape[1] = n1, t->shape[2] = n2, t->shape[3] = n3;
  t->stride[3] = step;
  t->stride[2] = layout == 0 ? n3 : n1 * row * step;
  t->stride[1] = layout == 0 ? n2 * n3 : row * step;
  t->stride[0] = n1 * n2 * row * step;
  t->f = (float *)calloc((size_t)count_of(t->shape) + 1, sizeof(float));
  t->memory = (char *)calloc((size_t)(n0 * n1 * n2 * row * step) + 16, size);
  memset(&t->wide, 0, sizeof t->wide);
  t->wide.data = t->f, t->wide.dtype = MLK_F32, t->wide.rank = 4;
  for (i = 0; i < 4; i++) t->wide.shape[i] = t->shape[i];
  t->half = t->wide;
  t->half.data = t->memory + (layout == 2 ? size : 0), t->half.dtype = (int32_t)dtype;
  for (i = 0; i < 4; i++) t->half.stride[i] = t->stride[i];
}

static void half_free(half_tensor *t) {
  free(t->f);
  free(t->memory);
}

static int64_t half_at(const half_tensor *t, int64_t i) { /* where element i is laid out */
  int64_t at = 0;
  int axis;
  for (axis = 3; axis >= 0; axis--) at += i % t->shape[axis] * t->stride[axis], i /= t->shape[axis];
  return at;
}

static float half_get(const half_tensor *t, int64_t i) {
  if (t->half.dtype == MLK_F32) return ((const float *)t->half.data)[half_at(t, i)];
  return from_16(((const uint16_t *)t->half.data)[half_at(t, i)], (mlk_dtype)t->half.dtype);
}

static void half_put(half_tensor *t) { /* the values to where they are laid out */
  int64_t i;
  for (i = 0; i < count_of(t->shape); i++)
    if (t->half.dtype == MLK_F32)
      ((float *)t->half.data)[half_at(t, i)] = t->f[i];
    else
      ((uint16_t *)t->half.data)[half_at(t, i)] = to_16(t->f[i], (mlk_dtype)t->half.dtype);
}

static void half_grid(half_tensor *t, mlkt_rng *rng) { /* multiples of 1/32 in [-2, 2] */
  int64_t i;
  for (i = 0; i < count_of(t->shape); i++) t->f[i] = (float)mlkt_int(rng, -64, 64) / 32.0f;
  half_put(t);
}

static void half_random(half_tensor *t, mlkt_rng *rng) { /* the same; of f32 any numbers in [-1/2, 1/2) */
  int64_t i;
  if (t->half.dtype != MLK_F32) {
    half_grid(t, rng);
    return;
  }
  for (i = 0; i < count_of(t->shape); i++) t->f[i] = mlkt_signed(rng) / 2;
  half_put(t);
}

static mlk_tensor dense_f32(float *data, int rank, const int64_t *shape) {
  mlk_tensor t;
  int i;
  memset(&t, 0, sizeof t);
  t.data = data, t.dtype = MLK_F32, t.rank = rank;
  for (i = 0; i < rank; i++) t.shape[i] = shape[i];
  return t;
}

/* A CPU's context, whatever --cuda says, and the device's, strict and fast. */
typedef struct pair {
  mlk_context *cpu, *device, *fast;
} pair;

static int pair_open(pair *p) {
  mlk_context_desc desc;
  memset(&desc, 0, sizeof desc);
  p->device = NULL, p->cpu = NULL, p->fast = NULL;
  if (!mlkt_opt.cuda) {
    mlkt_skip("needs --cuda");
    return 0;
  }
  if (!CHECK_STATUS(NULL, mlk_open(&p->cpu, &desc), MLK_OK)) return 0;
  p->device = mlkt_open(MLK_ISA_BEST, 1);
  desc = mlkt_context_desc(MLK_ISA_BEST, 1), desc.numerics = MLK_FAST;
  return p->device && CHECK_STATUS(NULL, mlk_open(&p->fast, &desc), MLK_OK);
}

static void pair_close(pair *p) {
  if (p->cpu) mlk_close(p->cpu);
  if (p->device) mlk_close(p->device);
  if (p->fast) mlk_close(p->fast);
}

/* What weights lose when they are rounded, with what values of f32 do. */
static double unit_of(mlk_dtype dtype) {
  return dtype == MLK_F16 ? 0x1p-11 : dtype == MLK_BF16 ? 0x1p-8 : 0x1p-10 + 0x1p-22;
}

/* What a product of two operands loses: those of f32 are rounded to tf32, each by 2^-11. */
static double operands_of(mlk_dtype dtype) { return dtype == MLK_F32 ? 0x1p-10 + 0x1p-22 : 0; }

/* Sums of |q k|, times scale: no q, k is larger than this makes them; bias, alibi and cap stay below 8. */
static double products_of(mlk_dtype dtype, int64_t d, double scale) {
  return (dtype == MLK_F32 ? 0.25 : 4.0) * scale * (double)d + 8.0;
}

/* What a score may be off, by docs/numerics.md. products: sums of |q k|. */
static double score_of(mlk_dtype dtype, int64_t d, double products) {
  return ((double)(d + 8) * 0x1p-23 + operands_of(dtype)) * products + 0x1p-21;
}

/* The bound of an element: gauge is the weighted mean of |v|. */
static double bound_of(mlk_dtype dtype, int64_t d, int64_t t, double products, double gauge) {
  const double score = score_of(dtype, d, products);
  return gauge * (unit_of(dtype) + 4 * score + (double)(t + 8) * 0x1p-23) +
         (dtype == MLK_F16 ? (double)t * 0x1p-25 * 2 : 0);
}

/* out of the device against the CPU's; the device's is f32, or of dtype laid out as o. */
static void compare(const char *what, mlk_dtype dtype, int64_t d, int64_t t, double products, const float *want,
                    const float *gauge, const half_tensor *o, const float *f32) {
  const int64_t count = count_of(o->shape);
  int64_t i;
  for (i = 0; i < count; i++) {
    const float got = f32 ? f32[i] : half_get(o, i);
    const double bound = bound_of(dtype, d, t, products, (double)gauge[i]) +
                         (f32 || dtype == MLK_F32 ? 0 : unit_of(dtype) * (fabs((double)want[i]) + 0x1p-14)) + 0x1p-40;
    if (isnan(want[i]) ? isnan(got) : fabs((double)got - (double)want[i]) <= bound) continue;
    CHECK_MSG(0, "%s: element %lld is %g, should be %g within %g", what, (long long)i, (double)got, (double)want[i],
              bound);
    return;
  }
  CHECK(1);
}

typedef struct problem {
  mlk_dtype dtype;
  int64_t b, g, h, s, t, d, e;
  half_tensor q, k, v, out;
  float *want, *gauge, *got, *lse, *want_lse, *absolute;
  mlk_attention_desc desc; /* scores, pages */
  const char *variant;     /* what runs it; NULL: anything */
  float *bias, *alibi, *sinks;
  uint8_t *mask;
  int64_t *offsets_q, *offsets_k, *lengths, *pages;
} problem;

static void problem_free(problem *p) {
  half_free(&p->q), half_free(&p->k), half_free(&p->v), half_free(&p->out);
  free(p->want), free(p->gauge), free(p->got), free(p->lse), free(p->want_lse), free(p->absolute);
  free(p->bias), free(p->alibi), free(p->sinks), free(p->mask);
  free(p->offsets_q), free(p->offsets_k), free(p->lengths), free(p->pages);
}

static float *floats(int64_t count) { return (float *)calloc((size_t)count + 1, sizeof(float)); }

static mlk_tensor ids(int64_t *data, int rank, int64_t n0, int64_t n1) {
  mlk_tensor t;
  memset(&t, 0, sizeof t);
  t.data = data, t.dtype = MLK_I64, t.rank = rank, t.shape[0] = n0, t.shape[1] = n1;
  return t;
}

/* Runs p on the CPU in f32, with v and with |v|, and on the device, fast if its operands are f32, and compares. */
static void problem_run(problem *p, pair *ctx, int half_out, const char *what) {
  const int64_t lse_shape[3] = {p->out.shape[0], p->h, p->out.shape[2]}, rows = lse_shape[0] * p->h * lse_shape[2];
  mlk_attention_desc desc = p->desc;
  const float scale = desc.scores.scale != 0.0f ? fabsf(desc.scores.scale) : 1.0f / sqrtf((float)p->d);
  const double products = products_of(p->dtype, p->d, (double)scale);
  mlk_context *device = p->dtype == MLK_F32 ? ctx->fast : ctx->device;
  int64_t i, bad = -1;
  mlk_plan plan;
  desc.q = p->q.wide, desc.k = p->k.wide, desc.v = p->v.wide;
  desc.out = dense_f32(p->want, 4, p->out.shape), desc.lse = dense_f32(p->want_lse, 3, lse_shape);
  CHECK_OK(ctx->cpu, mlk_attention(ctx->cpu, &desc));
  for (i = 0; i < count_of(p->v.shape); i++) p->absolute[i] = fabsf(p->v.f[i]);
  desc.v.data = p->absolute, desc.out.data = p->gauge;
  CHECK_OK(ctx->cpu, mlk_attention(ctx->cpu, &desc));
  desc.q = p->q.half, desc.k = p->k.half, desc.v = p->v.half;
  desc.out = half_out ? p->out.half : dense_f32(p->got, 4, p->out.shape);
  desc.lse = dense_f32(p->lse, 3, lse_shape);
  if (p->variant && CHECK_OK(device, mlk_attention_plan(device, &desc, &plan))) CHECK_EQ_STR(plan.variant, p->variant);
  if (!CHECK_OK(device, mlk_attention(device, &desc)) || !CHECK_OK(device, mlk_sync(device))) return;
  compare(what, p->dtype, p->d, p->t, products, p->want, p->gauge, &p->out, half_out ? NULL : p->got);
  for (i = 0; i < rows && bad < 0; i++) {
    const double bound = 4 * (score_of(p->dtype, p->d, products) + 0x1p-21) + (double)p->t * 0x1p-23;
    if (isnan(p->want_lse[i])
            ? !isnan(p->lse[i])
            : !(p->want_lse[i] == p->lse[i] || fabs((double)p->want_lse[i] - (double)p->lse[i]) <= bound))
      bad = i;
  }
  CHECK_MSG(bad < 0, "%s: lse %lld is %g, should be %g", what, (long long)bad, (double)p->lse[bad < 0 ? 0 : bad],
            (double)p->want_lse[bad < 0 ? 0 : bad]);
}

static void problem_new(problem *p, mlk_dtype dtype, int layout, int64_t b, int64_t g, int64_t group, int64_t s,
                        int64_t t, int64_t d, int64_t e, mlkt_rng *rng) {
  memset(p, 0, sizeof *p);
  p->dtype = dtype, p->b = b, p->g = g, p->h = g * group, p->s = s, p->t = t, p->d = d, p->e = e;
  half_new(&p->q, dtype, layout, b, p->h, s, d), half_new(&p->k, dtype, layout, b, g, t, d);
  half_new(&p->v, dtype, layout, b, g, t, e), half_new(&p->out, dtype, layout, b, p->h, s, e);
  half_random(&p->q, rng), half_random(&p->k, rng), half_random(&p->v, rng);
  p->want = floats(count_of(p->out.shape)), p->gauge = floats(count_of(p->out.shape));
  p->got = floats(count_of(p->out.shape)), p->absolute = floats(count_of(p->v.shape));
  p->lse = floats(b * p->h * s), p->want_lse = floats(b * p->h * s);
}

/* What changes scores, chosen by bits. */
static void problem_scores(problem *p, unsigned bits, mlkt_rng *rng) {
  mlk_attention_scores *c = &p->desc.scores;
  int64_t i, shape[4];
  c->causal = (int)(bits & 1u);
  if (bits & 2u) c->window = mlkt_int(rng, 1, p->t + 1);
  if (bits & 4u) c->offset = mlkt_int(rng, -p->t / 2, 3);
  if (bits & 8u) c->softcap = 3.0f;
  if (bits & 16u) c->scale = 0.125f;
  if (bits & 1024u) c->scale = -0.125f;
  shape[0] = p->b, shape[1] = 1, shape[2] = p->s, shape[3] = p->t;
  if (bits & 32u) {
    p->mask = (uint8_t *)calloc((size_t)count_of(shape) + 1, 1);
    for (i = 0; i < count_of(shape); i++) p->mask[i] = mlkt_int(rng, 0, 3) != 0;
    c->mask = dense_f32(NULL, 4, shape), c->mask.data = p->mask, c->mask.dtype = MLK_U8;
  }
  if (bits & 64u) {
    shape[0] = 1, shape[1] = p->h;
    p->bias = floats(count_of(shape));
    for (i = 0; i < count_of(shape); i++) p->bias[i] = mlkt_signed(rng);
    c->bias = dense_f32(p->bias, 4, shape);
  }
  p->alibi = floats(p->h), p->sinks = floats(p->h);
  for (i = 0; i < p->h; i++) p->alibi[i] = 1.0f / (float)(8 * p->t), p->sinks[i] = mlkt_signed(rng);
  if (bits & 128u) c->alibi = dense_f32(p->alibi, 1, &p->h);
  if (bits & 256u) c->sinks = dense_f32(p->sinks, 1, &p->h);
}

static const mlk_dtype dtypes[3] = {MLK_F16, MLK_BF16, MLK_F32};
static const char *const dtype_names[3] = {"f16", "bf16", "f32"};

static void run_shapes(void) {
  static const int64_t sizes_s[] = {1, 2, 17, 33, 70, 130}, sizes_t[] = {1, 5, 63, 64, 65, 200, 300, 520};
  static const int64_t sizes_d[] = {8, 64, 40, 128, 5, 72, 33, 96, 256, 200, 264};
  mlkt_rng rng = mlkt_rng_case();
  pair ctx;
  uint64_t point = 0;
  int n;
  if (pair_open(&ctx))
    for (n = 0; n < 400 && !mlkt_hopeless(); n++) {
      const int64_t s = sizes_s[mlkt_int(&rng, 0, 5)], t = sizes_t[mlkt_int(&rng, 0, 7)];
      const int64_t d = sizes_d[mlkt_int(&rng, 0, 10)], e = mlkt_int(&rng, 0, 2) ? d : sizes_d[mlkt_int(&rng, 0, 8)];
      const int64_t b = mlkt_int(&rng, 1, 2), g = mlkt_int(&rng, 1, 2), group = (int64_t)1 << mlkt_int(&rng, 0, 3);
      const unsigned bits = mlkt_int(&rng, 0, 1) ? (unsigned)mlkt_int(&rng, 0, 7) : (unsigned)mlkt_int(&rng, 0, 2047);
      const int layout = (int)mlkt_int(&rng, 0, 3), type = (int)mlkt_int(&rng, 0, 2), half = (int)mlkt_int(&rng, 0, 1);
      problem p;
      if (!mlkt_keep(point++)) continue;
      mlkt_note("%s B %d, G %d, group %d, S %d, T %d, D %d, E %d, layout %d, bits %u, %s out", dtype_names[type],
                (int)b, (int)g, (int)group, (int)s, (int)t, (int)d, (int)e, layout, bits, half ? "own-type" : "f32");
      problem_new(&p, dtypes[type], layout, b, g, group, s, t, d, e, &rng);
      problem_scores(&p, bits, &rng);
      problem_run(&p, &ctx, half, "attention");
      problem_free(&p);
    }
  pair_close(&ctx);
}

/* Sequences of several lengths, side by side, in a cache, in pages. */
static void run_lengths(void) {
  mlkt_rng rng = mlkt_rng_case();
  pair ctx;
  int kind, type;
  if (pair_open(&ctx))
    for (kind = 0; kind < 3; kind++)
      for (type = 0; type < 3; type++) {
        const int64_t d = 64, group = 2, batch = 3;
        problem p;
        int64_t i;
        mlkt_note("kind %d, %s", kind, dtype_names[type]);
        if (kind == 0) { /* offsets of both */
          problem_new(&p, dtypes[type], 1, 1, 2, group, 90, 170, d, d, &rng);
          p.offsets_q = (int64_t *)calloc(4, 8), p.offsets_k = (int64_t *)calloc(4, 8);
          p.offsets_q[1] = 1, p.offsets_q[2] = 1, p.offsets_q[3] = 90;
          p.offsets_k[1] = 70, p.offsets_k[2] = 70, p.offsets_k[3] = 170;
          p.desc.scores.q_offsets = ids(p.offsets_q, 1, 4, 0), p.desc.scores.k_offsets = ids(p.offsets_k, 1, 4, 0);
          p.desc.scores.longest_q = 89, p.desc.scores.longest_k = 100;
        } else {
          problem_new(&p, dtypes[type], 0, batch, 2, group, 5, kind == 1 ? 150 : 128, d, d, &rng);
          p.lengths = (int64_t *)calloc(3, 8);
          p.lengths[0] = 65, p.lengths[1] = 0, p.lengths[2] = kind == 1 ? 150 : 100;
          p.desc.scores.k_lengths = ids(p.lengths, 1, 3, 0);
        }
        if (kind == 2) { /* pages of 32 keys, the same memory in another order */
          half_free(&p.k), half_free(&p.v);
          half_new(&p.k, p.dtype, 0, 14, 2, 32, d), half_new(&p.v, p.dtype, 0, 14, 2, 32, d);
          half_random(&p.k, &rng), half_random(&p.v, &rng);
          free(p.absolute), p.absolute = floats(count_of(p.v.shape));
          p.pages = (int64_t *)calloc(12, 8);
          for (i = 0; i < 12; i++) p.pages[i] = (i * 5 + 3) % 14;
          p.desc.pages = ids(p.pages, 2, batch, 4);
        }
        p.desc.scores.causal = 1;
        problem_run(&p, &ctx, kind == 1, "lengths");
        problem_free(&p);
      }
  pair_close(&ctx);
}

/* x to tf32: 11 significant bits, ties away from zero. */
static float to_tf32(float x) { return mlkt_float((mlkt_bits(x) + 0x1000u) & 0xFFFFE000u); }

/* Each query's code is that of one key, far from all others: exactly that key's value comes out, of f32 as tf32. */
static void run_lookup(void) {
  static const int64_t sizes_e[] = {72, 64, 200};
  mlkt_rng rng = mlkt_rng_case();
  pair ctx;
  int n;
  if (pair_open(&ctx))
    for (n = 0; n < 9; n++) {
      const int type = n / 3;
      const int64_t s = 150, t = 700, d = 64, e = sizes_e[n % 3];
      mlk_context *device = dtypes[type] == MLK_F32 ? ctx.fast : ctx.device;
      int64_t i, j, wrong = 0, shape[4];
      mlk_plan plan;
      problem p;
      int tf32;
      problem_new(&p, dtypes[type], 0, 1, 1, 1, s, t, d, e, &rng);
      for (i = 0; type == 2 && i < t * e; i += 3) /* ties */
        p.v.f[i] = mlkt_float((mlkt_bits(p.v.f[i]) & 0xFFFFE000u) | 0x1000u);
      for (j = 0; j < t; j++)
        for (i = 0; i < d; i++) p.k.f[j * d + i] = i < 60 && (j >> i % 10 & 1) ? 1.0f : -1.0f;
      for (j = 0; j < s; j++)
        for (i = 0; i < d; i++) p.q.f[j * d + i] = p.k.f[(j * 311 + 5) % t * d + i];
      half_put(&p.q), half_put(&p.k), half_put(&p.v);
      shape[0] = 1, shape[1] = 1, shape[2] = s, shape[3] = e;
      p.desc.q = p.q.half, p.desc.k = p.k.half, p.desc.v = p.v.half, p.desc.out = dense_f32(p.got, 4, shape);
      p.desc.scores.scale = 16.0f;
      CHECK_OK(device, mlk_attention_plan(device, &p.desc, &plan)); /* not every device has tf32, or the memory */
      tf32 = strncmp(plan.variant, "tf32", 4) == 0;
      CHECK_OK(device, mlk_attention(device, &p.desc));
      CHECK_OK(device, mlk_sync(device));
      for (j = 0; j < s; j++)
        for (i = 0; i < e; i++) {
          const float v = p.v.f[(j * 311 + 5) % t * e + i];
          wrong += p.got[j * e + i] != (tf32 ? to_tf32(v) : v);
        }
      CHECK_MSG(wrong == 0, "%s, E %d: %lld elements are not those of the key", dtype_names[type], (int)e,
                (long long)wrong);
      problem_free(&p);
    }
  pair_close(&ctx);
}

/* Values that are not finite: of keys that take no part they are nothing, of others they make the row NaN. */
static void run_contagion(void) {
  mlkt_rng rng = mlkt_rng_case();
  pair ctx;
  int type;
  if (pair_open(&ctx))
    for (type = 0; type < 3; type++) {
      const int64_t s = 150, t = 150, d = 64;
      int64_t i;
      problem p;
      mlkt_note("%s", dtype_names[type]);
      problem_new(&p, dtypes[type], 0, 1, 1, 1, s, t, d, d, &rng);
      p.v.f[3 * d + 5] = INFINITY, p.v.f[100 * d + 63] = NAN;
      half_put(&p.v);
      p.desc.scores.causal = 1, p.desc.scores.window = 40;
      problem_run(&p, &ctx, 0, "window");
      if (type == 2) p.v.f[3 * d + 6] = FLT_MAX; /* infinite in tf32 */
      half_put(&p.v);
      p.mask = (uint8_t *)calloc((size_t)(s * t), 1);
      for (i = 0; i < s * t; i++) p.mask[i] = i % t != 3 && (i / t < 90 || i % t != 100);
      p.desc.scores.mask = dense_f32(NULL, 4, p.out.shape);
      p.desc.scores.mask.data = p.mask, p.desc.scores.mask.dtype = MLK_U8;
      p.desc.scores.mask.shape[2] = s, p.desc.scores.mask.shape[3] = t;
      problem_run(&p, &ctx, 0, "mask");
      problem_free(&p);
    }
  pair_close(&ctx);
}

/* Parts and their merge are the whole, within the bound. */
static void run_parts(void) {
  mlkt_rng rng = mlkt_rng_case();
  pair ctx;
  int type;
  if (pair_open(&ctx))
    for (type = 1; type < 3; type++) {
      const int64_t t = 4300, s = type == 1 ? 2 : 5, d = 64, shape[5] = {2, 1, 2, s, 64};
      mlk_context *device = dtypes[type] == MLK_F32 ? ctx.fast : ctx.device;
      mlk_attention_merge_desc merge;
      float *parts = floats(2 * 2 * s * d), *parts_lse = floats(2 * 2 * s);
      problem p;
      mlkt_note("%s", dtype_names[type]);
      problem_new(&p, dtypes[type], 0, 1, 1, 2, s, t, d, d, &rng);
      problem_run(&p, &ctx, 0, "whole");
      p.desc.q = p.q.half, p.desc.k = p.k.half, p.desc.v = p.v.half;
      p.desc.out = dense_f32(parts, 5, shape), p.desc.lse = dense_f32(parts_lse, 4, shape);
      CHECK_OK(device, mlk_attention(device, &p.desc));
      memset(&merge, 0, sizeof merge);
      merge.parts = p.desc.out, merge.parts_lse = p.desc.lse, merge.out = dense_f32(p.got, 4, p.out.shape);
      CHECK_OK(device, mlk_attention_merge(device, &merge));
      CHECK_OK(device, mlk_sync(device));
      compare("merged", dtypes[type], d, t, (type == 1 ? 4.0 : 0.25) * sqrt((double)d), p.want, p.gauge, &p.out, p.got);
      problem_free(&p);
      free(parts), free(parts_lse);
    }
  pair_close(&ctx);
}

/* What the host cannot see: reported afterwards, and the sequence takes no part. */
static void run_reports(void) {
  mlkt_rng rng = mlkt_rng_case();
  pair ctx;
  if (pair_open(&ctx)) {
    problem p;
    int64_t i, wrong = 0;
    problem_new(&p, MLK_F16, 0, 2, 1, 1, 3, 40, 8, 8, &rng);
    p.lengths = (int64_t *)calloc(2, 8);
    p.lengths[0] = 41, p.lengths[1] = 40;
    p.desc.scores.k_lengths = ids(p.lengths, 1, 2, 0);
    p.desc.q = p.q.wide, p.desc.k = p.k.wide, p.desc.v = p.v.wide, p.desc.out = dense_f32(p.got, 4, p.out.shape);
    for (i = 0; i < 48; i++) p.got[i] = 1.0f;
    CHECK_OK(ctx.device, mlk_attention(ctx.device, &p.desc));
    CHECK_STATUS(ctx.device, mlk_sync(ctx.device), MLK_ERR_ARGUMENT);
    CHECK(strstr(mlk_last_error(ctx.device), "k_lengths") != NULL);
    CHECK_OK(ctx.device, mlk_sync(ctx.device));
    for (i = 0; i < 24; i++) wrong += p.got[i] != 0.0f;
    CHECK_MSG(wrong == 0, "%lld elements of the wrong sequence are not 0", (long long)wrong);
    for (i = 24; i < 48; i++) wrong += p.got[i] == 0.0f;
    CHECK_MSG(wrong == 0, "%lld elements of the other sequence are 0", (long long)wrong);
    problem_free(&p);
  }
  pair_close(&ctx);
}

/* Which element types go together. */
static void run_types(void) {
  mlkt_rng rng = mlkt_rng_case();
  pair ctx;
  if (pair_open(&ctx)) {
    problem p;
    mlk_attention_desc desc;
    mlk_plan plan;
    problem_new(&p, MLK_F16, 0, 1, 1, 1, 70, 200, 64, 64, &rng);
    desc = p.desc, desc.q = p.q.half, desc.k = p.k.half, desc.v = p.v.half, desc.out = p.out.half;
    CHECK_OK(ctx.device, mlk_attention_plan(ctx.device, &desc, &plan));
    CHECK_MSG(plan.variant && strstr(plan.variant, "mma") != NULL, "variant %s", plan.variant); /* or wgmma */
    CHECK_EQ_I64(plan.bytes, 2 * 64 * (70 + 200 + 200 + 70));
    CHECK_STATUS(NULL, mlk_attention_plan(ctx.cpu, &desc, &plan), MLK_ERR_DTYPE);
    desc.k = p.k.wide;
    CHECK_STATUS(NULL, mlk_attention_plan(ctx.device, &desc, &plan), MLK_ERR_DTYPE);
    desc.k = p.k.half, desc.out.dtype = MLK_BF16;
    CHECK_STATUS(NULL, mlk_attention_plan(ctx.device, &desc, &plan), MLK_ERR_DTYPE);
    desc.q = p.q.wide, desc.out = p.out.half;
    CHECK_STATUS(NULL, mlk_attention_plan(ctx.device, &desc, &plan), MLK_ERR_DTYPE);
    problem_free(&p);
  }
  pair_close(&ctx);
}

/* What f32 operands are multiplied by: strict never by tensor cores; fast where the device and the heads are such. */
static void run_fast(void) {
  static const struct {
    int64_t s, t, d;
    const char *fast, *strict;
  } calls[] = {{700, 200, 64, "tf32", "tiles"},
               {700, 200, 128, "tf32", "tiles"},
               {130, 2100, 200, "tf32_split", "split"},
               {130, 2100, 264, "split", "split"}, /* more elements than registers hold */
               {8, 2100, 64, "few", "few"}};
  mlkt_rng rng = mlkt_rng_case();
  pair ctx;
  size_t n;
#if defined(MLKT_CUDA_EMULATED)
  mlkt_emu_device(1, 80, 108);
#endif
  if (pair_open(&ctx))
    for (n = 0; n < sizeof calls / sizeof *calls; n++) {
      mlk_attention_desc desc;
      mlk_plan fast, strict;
      problem p;
      mlkt_note("S %d, T %d, D %d", (int)calls[n].s, (int)calls[n].t, (int)calls[n].d);
      problem_new(&p, MLK_F32, 0, 1, 1, 1, calls[n].s, calls[n].t, calls[n].d, calls[n].d, &rng);
      desc = p.desc, desc.q = p.q.half, desc.k = p.k.half, desc.v = p.v.half, desc.out = p.out.half;
      CHECK_OK(ctx.fast, mlk_attention_plan(ctx.fast, &desc, &fast));
      CHECK_OK(ctx.device, mlk_attention_plan(ctx.device, &desc, &strict));
#if defined(MLKT_CUDA_EMULATED) /* others may have less shared memory, or more multiprocessors */
      CHECK_MSG(strcmp(fast.variant, calls[n].fast) == 0, "fast: %s", fast.variant);
      CHECK_MSG(strcmp(strict.variant, calls[n].strict) == 0, "strict: %s", strict.variant);
#endif
      CHECK(strncmp(strict.variant, "tf32", 4) != 0 && strict.bytes == fast.bytes);
      CHECK_MSG(strncmp(fast.variant, "tf32", 4) != 0 || fast.seconds < strict.seconds, "tensor cores are no faster");
      desc.k = p.k.wide, desc.v = p.v.wide, desc.k.dtype = desc.v.dtype = MLK_F16; /* a cache: T0 */
      CHECK_OK(ctx.fast, mlk_attention_plan(ctx.fast, &desc, &strict));
      CHECK_MSG(strncmp(strict.variant, "tf32", 4) != 0, "16-bit keys: %s", strict.variant);
      problem_free(&p);
    }
  pair_close(&ctx);
#if defined(MLKT_CUDA_EMULATED)
  mlkt_emu_reset();
#endif
}

/* ---- the gradient ---- */

enum { DQ, DK, DV, RESULTS };

/* A call of the gradient on p's operands, with what the forward call made of them on the CPU. */
typedef struct slope {
  problem p;
  half_tensor dout, result[RESULTS];   /* results of p's type as they are laid out */
  float *want[RESULTS], *got[RESULTS]; /* as f32, dense */
  double *bound[RESULTS];
  int64_t batch, s, t; /* sequences, queries and keys of the longest */
} slope;

static void slope_new(slope *g, mlk_dtype dtype, int layout, int64_t b, int64_t groups, int64_t group, int64_t s,
                      int64_t t, int64_t d, int64_t e, mlkt_rng *rng) {
  int r;
  problem_new(&g->p, dtype, layout, b, groups, group, s, t, d, e, rng);
  half_new(&g->dout, dtype, layout, b, groups * group, s, e), half_random(&g->dout, rng);
  half_new(&g->result[DQ], dtype, layout, b, groups * group, s, d);
  half_new(&g->result[DK], dtype, layout, b, groups, t, d), half_new(&g->result[DV], dtype, layout, b, groups, t, e);
  for (r = 0; r < RESULTS; r++) {
    const int64_t count = count_of(g->result[r].shape);
    g->want[r] = floats(count), g->got[r] = floats(count);
    g->bound[r] = (double *)calloc((size_t)count + 1, sizeof(double));
  }
  g->batch = b, g->s = s, g->t = t;
}

static void slope_free(slope *g) {
  int r;
  problem_free(&g->p), half_free(&g->dout);
  for (r = 0; r < RESULTS; r++) half_free(&g->result[r]), free(g->want[r]), free(g->got[r]), free(g->bound[r]);
}

/* To 8 significant bits, which both types have; what f16 has no normal number for becomes 0. */
static float rounded(float x) {
  int exponent;
  const float mantissa = frexpf(x, &exponent);
  return isfinite(x) && fabsf(x) < 0x1p-14f ? 0.0f : isfinite(x) ? ldexpf(rintf(ldexpf(mantissa, 8)), exponent - 8) : x;
}

/* The forward call on the CPU: out, rounded to 16 bits if p's type has those, and lse. */
static void slope_forward(slope *g, pair *ctx) {
  const int64_t lse_shape[3] = {g->p.out.shape[0], g->p.h, g->p.out.shape[2]};
  mlk_attention_desc desc = g->p.desc;
  int64_t i;
  desc.q = g->p.q.wide, desc.k = g->p.k.wide, desc.v = g->p.v.wide;
  desc.out = g->p.out.wide, desc.lse = dense_f32(g->p.lse, 3, lse_shape);
  CHECK_OK(ctx->cpu, mlk_attention(ctx->cpu, &desc));
  for (i = 0; g->p.dtype != MLK_F32 && i < count_of(g->p.out.shape); i++) g->p.out.f[i] = rounded(g->p.out.f[i]);
  half_put(&g->p.out);
}

/* The call as dense f32, or of p's type and layout with results likewise or of dense f32. */
static mlk_attention_grad_desc slope_desc(const slope *g, int half, int half_results) {
  const int64_t lse_shape[3] = {g->p.out.shape[0], g->p.h, g->p.out.shape[2]};
  mlk_attention_grad_desc desc;
  mlk_tensor t[RESULTS];
  int r;
  memset(&desc, 0, sizeof desc);
  for (r = 0; r < RESULTS; r++)
    t[r] = half_results ? g->result[r].half : dense_f32(half ? g->got[r] : g->want[r], 4, g->result[r].shape);
  desc.q = half ? g->p.q.half : g->p.q.wide, desc.k = half ? g->p.k.half : g->p.k.wide;
  desc.v = half ? g->p.v.half : g->p.v.wide, desc.out = half ? g->p.out.half : g->p.out.wide;
  desc.dout = half ? g->dout.half : g->dout.wide, desc.lse = dense_f32(g->p.lse, 3, lse_shape);
  desc.dq = t[DQ], desc.dk = t[DK], desc.dv = t[DV], desc.scores = g->p.desc.scores;
  return desc;
}

/* The part of row at of an operand [., H, S, .] that is sequence b's, from first on. */
static int64_t row_of(const half_tensor *x, int packed, int64_t b, int64_t h, int64_t first, int64_t i) {
  return (((packed ? 0 : b) * x->shape[1] + h) * x->shape[2] + first + i) * x->shape[3];
}

/* What each result may be off, from two calls on the CPU. With a bias for each pair, dbias is ds = p (t - delta), and
   with |dout|, |v| and -|out| it is the sum of what cancels in that, p G; dv is then sum p |dout|. On the device
     p   is off by a part r = 4 x of it, where x is what a score is off (see bound_of), and by u when it meets dout
     ds  by p G (r + (E + 8) 2^-23 + 2^-19): the weight; t and delta, each a sum of E products; the soft-cap's
         derivative, 1 - tanh^2 by a tanh within 2^-21; and by u |ds| when it meets k or q
     t   of f32 by what rounding dout and v loses, which is less than G times that
   and sums of n terms by (n + 8) 2^-23 of their absolute values; f16 has no numbers below 2^-24, and both p and ds are
   off by 2^-25 more there. */
static void slope_bounds(slope *g, pair *ctx) {
  problem *p = &g->p;
  const mlk_attention_scores *c = &p->desc.scores;
  const int64_t group = p->h / p->g, shape[4] = {g->batch, p->h, g->s, g->t}, pairs = count_of(shape);
  const double scale = fabs(c->scale != 0.0f ? (double)c->scale : 1.0 / sqrt((double)p->d));
  const double unit = unit_of(p->dtype), least = p->dtype == MLK_F16 ? 0x1p-25 : 0;
  const double off = 4 * score_of(p->dtype, p->d, products_of(p->dtype, p->d, scale));
  const double each = off + (double)(p->e + 8) * 0x1p-23 + 0x1p-19 + operands_of(p->dtype);
  float *bias = floats(pairs), *ds = floats(pairs), *size = floats(pairs), *copy[4], *weights;
  mlk_attention_grad_desc desc = slope_desc(g, 0, 0);
  half_tensor *made[3] = {&p->v, &p->out, &g->dout};
  int64_t b, h, i, j, e;
  for (i = 0; p->bias && i < pairs; i++) bias[i] = p->bias[i % (p->h * g->s * g->t)];
  desc.scores.bias = dense_f32(bias, 4, shape), desc.dbias = dense_f32(ds, 4, shape);
  CHECK_OK(ctx->cpu, mlk_attention_grad(ctx->cpu, &desc));
  for (i = 0; i < 3; i++) {
    copy[i] = floats(count_of(made[i]->shape));
    for (j = 0; j < count_of(made[i]->shape); j++) copy[i][j] = (i == 1 ? -1.0f : 1.0f) * fabsf(made[i]->f[j]);
  }
  copy[3] = floats(count_of(p->q.shape) + count_of(p->k.shape)), weights = floats(count_of(p->v.shape));
  desc.v.data = copy[0], desc.out.data = copy[1], desc.dout.data = copy[2], desc.dv.data = weights;
  desc.dq.data = NULL, desc.dk.data = NULL, desc.dbias.data = size;
  CHECK_OK(ctx->cpu, mlk_attention_grad(ctx->cpu, &desc));
  for (b = 0; b < g->batch; b++) {
    const int64_t q0 = p->offsets_q ? p->offsets_q[b] : 0, s = p->offsets_q ? p->offsets_q[b + 1] - q0 : p->s;
    const int64_t k0 = p->offsets_k ? p->offsets_k[b] : 0;
    const int64_t t = p->offsets_k ? p->offsets_k[b + 1] - k0 : p->lengths ? p->lengths[b] : p->t;
    for (h = 0; h < p->h; h++)
      for (i = 0; i < s; i++)
        for (j = 0; j < t; j++) {
          const int64_t at = ((b * p->h + h) * g->s + i) * g->t + j;
          const int64_t q = row_of(&p->q, p->offsets_q != NULL, b, h, q0, i),
                        o = row_of(&p->out, p->offsets_q != NULL, b, h, q0, i);
          const int64_t k = row_of(&p->k, p->offsets_k != NULL, b, h / group, k0, j),
                        v = row_of(&p->v, p->offsets_k != NULL, b, h / group, k0, j);
          const double sum = (double)((t > s * group ? t : s * group) + 8) * 0x1p-23;
          const double error = scale * (fabs((double)ds[at]) * (unit + sum) + least + (double)size[at] * each);
          if (size[at] == 0.0f) continue;
          for (e = 0; e < p->d; e++) {
            g->bound[DQ][q + e] += error * fabs((double)p->k.f[k + e]);
            g->bound[DK][k + e] += error * fabs((double)p->q.f[q + e]);
          }
          for (e = 0; e < p->e; e++) g->bound[DV][v + e] += least * fabs((double)g->dout.f[o + e]);
        }
  }
  for (i = 0; i < count_of(p->v.shape); i++)
    g->bound[DV][i] += (double)weights[i] * (unit + off + (double)(p->s * group + 8) * 0x1p-23);
  for (i = 0; i < 4; i++) free(copy[i]);
  free(bias), free(ds), free(size), free(weights);
}

/* Results of the device against the CPU's. A NaN must be one; exact: no rounding is allowed for. */
static void slope_compare(const slope *g, int half_results, int exact, const char *what) {
  static const char *const names[RESULTS] = {"dq", "dk", "dv"};
  const double unit = unit_of(g->p.dtype), put = half_results && g->p.dtype != MLK_F32 ? unit : 0; /* when stored */
  int r;
  for (r = 0; r < RESULTS; r++) {
    const int64_t count = count_of(g->result[r].shape);
    int64_t i, bad = -1;
    for (i = 0; i < count && bad < 0; i++) {
      const double want = (double)g->want[r][i];
      const double got = (double)(half_results ? half_get(&g->result[r], i) : g->got[r][i]);
      const double bound = g->bound[r][i] * (1 + unit) + put * (fabs(want) + 0x1p-14) + 0x1p-40;
      if (exact ? got != want : isnan(want) ? !isnan(got) : !(fabs(got - want) <= bound)) bad = i;
    }
    CHECK_MSG(bad < 0, "%s: element %lld of %s is %g, should be %g within %g", what, (long long)bad, names[r],
              (double)(half_results ? half_get(&g->result[r], bad < 0 ? 0 : bad) : g->got[r][bad < 0 ? 0 : bad]),
              (double)g->want[r][bad < 0 ? 0 : bad], exact ? 0.0 : g->bound[r][bad < 0 ? 0 : bad]);
  }
}

static void slope_device(slope *g, pair *ctx, int half_results) {
  const mlk_attention_grad_desc desc = slope_desc(g, 1, half_results);
  mlk_context *device = g->p.dtype == MLK_F32 ? ctx->fast : ctx->device;
  int r;
  for (r = 0; r < RESULTS; r++)
    memset(g->got[r], 0x55, (size_t)count_of(g->result[r].shape) * sizeof(float)); /* all are written */
  CHECK_OK(device, mlk_attention_grad(device, &desc));
  CHECK_OK(device, mlk_sync(device));
}

static void slope_run(slope *g, pair *ctx, int half_results, const char *what) {
  slope_forward(g, ctx);
  slope_bounds(g, ctx);
  slope_device(g, ctx, half_results);
  slope_compare(g, half_results, 0, what);
}

static void run_grad_shapes(void) {
  static const int64_t sizes_s[] = {1, 17, 33, 64, 70, 130, 150}, sizes_t[] = {1, 5, 63, 64, 65, 129, 200};
  static const int64_t sizes_d[] = {8, 64, 40, 128, 5, 72, 33, 96, 16, 256, 200, 264};
  mlkt_rng rng = mlkt_rng_case();
  pair ctx;
  uint64_t point = 0;
  int n;
  if (pair_open(&ctx))
    for (n = 0; n < 600 && !mlkt_hopeless(); n++) {
      const int64_t s = sizes_s[mlkt_int(&rng, 0, 6)], t = sizes_t[mlkt_int(&rng, 0, 6)];
      const int64_t d = sizes_d[mlkt_int(&rng, 0, 11)], e = mlkt_int(&rng, 0, 2) ? d : sizes_d[mlkt_int(&rng, 0, 9)];
      const int64_t b = mlkt_int(&rng, 1, 2), groups = mlkt_int(&rng, 1, 2), group = mlkt_int(&rng, 1, 4);
      const unsigned bits = mlkt_int(&rng, 0, 1) ? (unsigned)mlkt_int(&rng, 0, 7) : (unsigned)mlkt_int(&rng, 0, 2047);
      const int layout = (int)mlkt_int(&rng, 0, 3), type = (int)mlkt_int(&rng, 0, 2), half = (int)mlkt_int(&rng, 0, 1);
      slope g;
      if (!mlkt_keep(point++)) continue;
      mlkt_note("%s B %d, G %d, group %d, S %d, T %d, D %d, E %d, layout %d, bits %u, %s results", dtype_names[type],
                (int)b, (int)groups, (int)group, (int)s, (int)t, (int)d, (int)e, layout, bits,
                half ? "own-type" : "dense f32");
      slope_new(&g, dtypes[type], layout, b, groups, group, s, t, d, e, &rng);
      problem_scores(&g.p, bits, &rng);
      slope_run(&g, &ctx, half, "gradient");
      slope_free(&g);
    }
  pair_close(&ctx);
}

/* Small integers, scores of next to nothing and a log-sum-exp of 0: weights are 1, t and delta integers that bf16 has,
   so every sum is exact in f32, in any order. Scores that are more than products add nothing here but the mask. */
static void run_grad_exact(void) {
  static const int64_t sizes[] = {1, 15, 16, 31, 32, 33, 63, 64, 65, 127, 129, 200},
                       sizes_d[] = {8, 64, 128, 48, 100, 256, 132};
  mlkt_rng rng = mlkt_rng_case();
  pair ctx;
  uint64_t point = 0;
  int n, r;
  if (pair_open(&ctx))
    for (n = 0; n < 600 && !mlkt_hopeless(); n++) {
      const int64_t s = sizes[mlkt_int(&rng, 0, 11)], t = sizes[mlkt_int(&rng, 0, 11)],
                    d = sizes_d[mlkt_int(&rng, 0, 6)];
      const int64_t e = sizes_d[mlkt_int(&rng, 0, 6)], groups = mlkt_int(&rng, 1, 2), group = mlkt_int(&rng, 1, 5);
      const unsigned bits = (unsigned)mlkt_int(&rng, 0, 255) & ~(mlkt_int(&rng, 0, 1) ? 0xf8u : 0x10u);
      const int layout = (int)mlkt_int(&rng, 0, 3), type = (int)mlkt_int(&rng, 0, 2);
      mlk_attention_grad_desc desc;
      half_tensor *all[5];
      slope g;
      int64_t i;
      if (!mlkt_keep(point++)) continue;
      mlkt_note("%s G %d, group %d, S %d, T %d, D %d, E %d, layout %d, bits %u", dtype_names[type], (int)groups,
                (int)group, (int)s, (int)t, (int)d, (int)e, layout, bits);
      slope_new(&g, dtypes[type], layout, 2, groups, group, s, t, d, e, &rng);
      problem_scores(&g.p, bits, &rng);
      all[0] = &g.p.q, all[1] = &g.p.k, all[2] = &g.p.v, all[3] = &g.p.out, all[4] = &g.dout;
      for (r = 0; r < 5; r++) {
        for (i = 0; i < count_of(all[r]->shape); i++) all[r]->f[i] = (float)mlkt_int(&rng, -1, 1);
        for (i = 0; (r == 2 || r == 3) && i < count_of(all[r]->shape); i++) /* |t - delta| is at most 128 */
          if (i % e % ((e + 63) / 64)) all[r]->f[i] = 0.0f;
        half_put(all[r]);
      }
      g.p.desc.scores.scale = 0x1p-60f;
      if (bits & 8u) g.p.desc.scores.softcap = 0x1p20f;
      for (i = 0; (bits & 64u) && i < g.p.h * s * t; i++) g.p.bias[i] = 0.0f;
      for (i = 0; i < g.p.h; i++) g.p.alibi[i] = 0.0f;
      desc = slope_desc(&g, 0, 0); /* lse is 0 as it was made */
      CHECK_OK(ctx.cpu, mlk_attention_grad(ctx.cpu, &desc));
      slope_device(&g, &ctx, 0);
      slope_compare(&g, 0, 1, "integers");
      slope_free(&g);
    }
  pair_close(&ctx);
}

/* Sequences of several lengths, side by side and in a cache, whose keys behind the lengths get zeros. */
static void run_grad_lengths(void) {
  mlkt_rng rng = mlkt_rng_case();
  pair ctx;
  int kind, type;
  if (pair_open(&ctx))
    for (kind = 0; kind < 3; kind++)
      for (type = 0; type < 3; type++) {
        const int64_t d = kind == 2 ? 128 : 64;
        slope g;
        mlkt_note("kind %d, %s", kind, dtype_names[type]);
        if (kind == 0) {
          slope_new(&g, dtypes[type], 1, 1, 2, 3, 90, 170, d, d, &rng);
          g.p.offsets_q = (int64_t *)calloc(4, 8), g.p.offsets_k = (int64_t *)calloc(4, 8);
          g.p.offsets_q[1] = 1, g.p.offsets_q[2] = 1, g.p.offsets_q[3] = 90;
          g.p.offsets_k[1] = 70, g.p.offsets_k[2] = 70, g.p.offsets_k[3] = 170;
          g.p.desc.scores.q_offsets = ids(g.p.offsets_q, 1, 4, 0),
          g.p.desc.scores.k_offsets = ids(g.p.offsets_k, 1, 4, 0);
          g.batch = 3, g.s = g.p.desc.scores.longest_q = 89, g.t = g.p.desc.scores.longest_k = 100;
        } else {
          slope_new(&g, dtypes[type], 0, 3, 2, 2, 50, 150, d, 64, &rng);
          g.p.lengths = (int64_t *)calloc(3, 8);
          g.p.lengths[0] = 65, g.p.lengths[1] = 0, g.p.lengths[2] = 150;
          g.p.desc.scores.k_lengths = ids(g.p.lengths, 1, 3, 0);
        }
        g.p.desc.scores.causal = kind != 1;
        slope_run(&g, &ctx, kind == 1, "lengths");
        slope_free(&g);
      }
  pair_close(&ctx);
}

/* Values that are not finite: of pairs that take no part they are nothing, others make their rows and keys NaN. */
static void run_grad_contagion(void) {
  mlkt_rng rng = mlkt_rng_case();
  pair ctx;
  int type, kind;
  if (pair_open(&ctx))
    for (type = 0; type < 3; type++)
      for (kind = 0; kind < 4; kind++) {
        const int64_t s = 150, t = 150, d = 64, shape[4] = {1, 1, s, t};
        int64_t i;
        slope g;
        mlkt_note("%s, kind %d", dtype_names[type], kind);
        slope_new(&g, dtypes[type], 0, 1, 1, 1, s, t, d, d, &rng);
        g.p.mask = (uint8_t *)calloc((size_t)(s * t), 1);
        for (i = 0; i < s * t; i++) g.p.mask[i] = i % t != 3 && (i / t < 90 || i % t != 100);
        g.p.desc.scores.causal = 1;
        if (kind & 1) g.p.desc.scores.window = 40;
        if (kind & 2) {
          g.p.desc.scores.mask = dense_f32(NULL, 4, shape);
          g.p.desc.scores.mask.data = g.p.mask, g.p.desc.scores.mask.dtype = MLK_U8;
          g.p.k.f[3 * d + 7] = NAN; /* in nobody's sight */
        }
        g.p.v.f[3 * d + 5] = INFINITY, g.p.v.f[100 * d + 63] = NAN, g.p.q.f[70 * d + 9] = NAN;
        g.dout.f[120 * d + 1] = INFINITY;
        half_put(&g.p.q), half_put(&g.p.k), half_put(&g.p.v), half_put(&g.dout);
        slope_run(&g, &ctx, 0, "not finite");
        slope_free(&g);
      }
  pair_close(&ctx);
}

/* A code that only one key has: dv is the sum of the rows of dout that look it up, dq and dk are 0, all exactly. */
static void run_grad_lookup(void) {
  mlkt_rng rng = mlkt_rng_case();
  pair ctx;
  int type;
  if (pair_open(&ctx))
    for (type = 0; type < 3; type++) {
      const int64_t s = 300, t = 200, d = 64, e = 72;
      int64_t i, j;
      slope g;
      mlkt_note("%s", dtype_names[type]);
      slope_new(&g, dtypes[type], 0, 1, 1, 1, s, t, d, e, &rng);
      half_grid(&g.p.v, &rng), half_grid(&g.dout, &rng); /* exact sums */
      for (j = 0; j < t; j++)
        for (i = 0; i < d; i++) g.p.k.f[j * d + i] = i < 60 && (j >> i % 10 & 1) ? 1.0f : -1.0f;
      for (j = 0; j < s; j++)
        for (i = 0; i < d; i++) g.p.q.f[j * d + i] = g.p.k.f[(j * 311 + 5) % t * d + i];
      half_put(&g.p.q), half_put(&g.p.k);
      g.p.desc.scores.scale = 16.0f;
      slope_forward(&g, &ctx);
      for (j = 0; j < s; j++)
        for (i = 0; i < e; i++) g.want[DV][(j * 311 + 5) % t * e + i] += g.dout.f[j * e + i];
      slope_device(&g, &ctx, 0);
      slope_compare(&g, 0, 1, "lookup");
      slope_free(&g);
    }
  pair_close(&ctx);
}

/* Some results only, dbias and dsinks next to them, the same bits again; which types go together. */
static void run_grad_calls(void) {
  mlkt_rng rng = mlkt_rng_case();
  pair ctx;
  if (pair_open(&ctx)) {
    float *first[RESULTS], *extra[4];
    mlk_attention_grad_desc desc, some;
    mlk_plan plan;
    int64_t i, wrong, count;
    slope g;
    int r;
    slope_new(&g, MLK_F16, 0, 2, 2, 2, 100, 140, 72, 64, &rng);
    problem_scores(&g.p, 1u | 64u | 256u, &rng);
    slope_run(&g, &ctx, 0, "all");
    desc = slope_desc(&g, 1, 0);
    CHECK_OK(ctx.device, mlk_attention_grad_plan(ctx.device, &desc, &plan));
    CHECK_MSG(plan.variant && strcmp(plan.variant, "mma") == 0, "variant %s", plan.variant);
    for (r = 0; r < RESULTS; r++) {
      count = count_of(g.result[r].shape);
      first[r] = g.got[r], g.got[r] = floats(count);
      some = slope_desc(&g, 1, 0);
      if (r != DQ) some.dq.data = NULL;
      if (r != DK) some.dk.data = NULL;
      if (r != DV) some.dv.data = NULL;
      CHECK_OK(ctx.device, mlk_attention_grad(ctx.device, &some));
      CHECK_OK(ctx.device, mlk_sync(ctx.device));
      for (wrong = 0, i = 0; i < count; i++) wrong += mlkt_bits(first[r][i]) != mlkt_bits(g.got[r][i]);
      CHECK_MSG(wrong == 0, "result %d alone: %lld elements have other bits", r, (long long)wrong);
      free(first[r]);
    }
    /* dbias and dsinks are computed in f32 from what is given: the CPU's bits */
    for (i = 0; i < 4; i++) extra[i] = floats(i < 2 ? g.p.h * 100 * 140 : g.p.h);
    some = slope_desc(&g, 0, 0), some.dbias = some.scores.bias, some.dsinks = some.scores.sinks;
    some.dbias.data = extra[0], some.dsinks.data = extra[2];
    CHECK_OK(ctx.cpu, mlk_attention_grad(ctx.cpu, &some));
    desc = slope_desc(&g, 1, 0), desc.dbias = desc.scores.bias, desc.dsinks = desc.scores.sinks;
    desc.dbias.data = extra[1], desc.dsinks.data = extra[3];
    CHECK_OK(ctx.device, mlk_attention_grad(ctx.device, &desc));
    CHECK_OK(ctx.device, mlk_sync(ctx.device));
    for (wrong = 0, i = 0; i < g.p.h * 100 * 140; i++) wrong += extra[0][i] != extra[1][i];
    CHECK_MSG(wrong == 0, "dbias: %lld elements differ", (long long)wrong);
    for (wrong = 0, i = 0; i < g.p.h; i++) wrong += extra[2][i] != extra[3][i];
    CHECK_MSG(wrong == 0, "dsinks: %lld elements differ", (long long)wrong);
    for (i = 0; i < 4; i++) free(extra[i]);
    desc = slope_desc(&g, 1, 1);
    CHECK_OK(ctx.device, mlk_attention_grad_plan(ctx.device, &desc, &plan));
    CHECK_EQ_I64(plan.bytes, 2 * (2 * (count_of(g.p.q.shape) + count_of(g.p.k.shape) + count_of(g.p.v.shape)) +
                                  2 * count_of(g.dout.shape)) +
                                 4 * (2 * 4 * 100 + 4 * 100 * 140 + 4));
    desc.out = dense_f32(g.p.out.f, 4, g.p.out.shape);
    CHECK_OK(ctx.device, mlk_attention_grad(ctx.device, &desc));
    CHECK_OK(ctx.device, mlk_sync(ctx.device));
    slope_compare(&g, 1, 0, "out of f32");
    CHECK_STATUS(NULL, mlk_attention_grad_plan(ctx.cpu, &desc, &plan), MLK_ERR_DTYPE);
#define REFUSED(CHANGE, NAME)                                                                                          \
  some = desc, CHANGE;                                                                                                 \
  CHECK_STATUS(ctx.device, mlk_attention_grad_plan(ctx.device, &some, &plan), MLK_ERR_DTYPE);                          \
  CHECK(strstr(mlk_last_error(ctx.device), NAME) != NULL)
    REFUSED(some.k = g.p.k.wide, "k: dtype is f32");
    REFUSED(some.v.dtype = MLK_BF16, "v: dtype is bf16");
    REFUSED(some.dout = g.dout.wide, "dout: dtype is f32");
    REFUSED(some.out = g.p.out.half; some.out.dtype = MLK_BF16, "out: dtype is bf16");
    REFUSED(some.dq.dtype = MLK_BF16, "dq: dtype is bf16");
    REFUSED(some.dv.dtype = MLK_I64, "dv: dtype is i64");
    REFUSED(some.lse.dtype = MLK_F16, "lse: dtype is f16");
#undef REFUSED
    slope_free(&g);
  }
  pair_close(&ctx);
}

/* What f32 operands of the gradient are multiplied by. Strict: the CPU's bits; fast: the same bits again, whichever
   results are asked for, and dbias and dsinks with the CPU's. */
static void run_grad_fast(void) {
  static const struct {
    int arch;
    int64_t d, e;
    unsigned bits;
    const char *variant;
  } calls[] = {{80, 64, 64, 1, "tf32"},
               {80, 40, 128, 2, "tf32"},
               {80, 100, 72, 1u | 64u | 256u, "tf32"},
               {80, 132, 64, 1, "tiles"}, /* tiles of 256 elements: no room */
               {86, 128, 128, 0, "tf32"},
               {86, 64, 64, 0, "tf32"},
               {86, 64, 64, 64, "tiles"}, /* products have to wait in shared memory: no room */
               {75, 64, 64, 0, "tiles"}};
  mlkt_rng rng = mlkt_rng_case();
  size_t n;
  for (n = 0; n < sizeof calls / sizeof *calls; n++) {
    pair ctx;
#if defined(MLKT_CUDA_EMULATED)
    mlkt_emu_device(1, calls[n].arch, 108);
#endif
    if (pair_open(&ctx)) {
      const int both = (calls[n].bits & 320u) == 320u;
      mlk_attention_grad_desc desc, some;
      mlk_plan fast, strict;
      float *extra[2], *first[RESULTS];
      int64_t i, wrong, count;
      slope g;
      int r;
      mlkt_note("sm_%d, D %d, E %d, bits %u", calls[n].arch, (int)calls[n].d, (int)calls[n].e, calls[n].bits);
      slope_new(&g, MLK_F32, 0, 2, 1, 2, 70, 140, calls[n].d, calls[n].e, &rng);
      problem_scores(&g.p, calls[n].bits, &rng);
      slope_forward(&g, &ctx);
      slope_bounds(&g, &ctx);
      desc = slope_desc(&g, 1, 0);
      CHECK_OK(ctx.fast, mlk_attention_grad_plan(ctx.fast, &desc, &fast));
      CHECK_OK(ctx.device, mlk_attention_grad_plan(ctx.device, &desc, &strict));
      CHECK_MSG(strcmp(strict.variant, "tiles") == 0, "strict: %s", strict.variant);
      CHECK(strict.bytes == fast.bytes && strict.flops == fast.flops);
#if defined(MLKT_CUDA_EMULATED) /* others may have less shared memory */
      CHECK_MSG(strcmp(fast.variant, calls[n].variant) == 0, "fast: %s", fast.variant);
#endif
      CHECK_MSG(strcmp(fast.variant, "tf32") != 0 || fast.seconds < strict.seconds, "tensor cores are no faster");
      for (i = 0; i < 2; i++) extra[i] = floats(i ? g.p.h : g.p.h * 70 * 140);
      CHECK_OK(ctx.device, mlk_attention_grad(ctx.device, &desc));
      CHECK_OK(ctx.device, mlk_sync(ctx.device));
      for (wrong = 0, r = 0; r < RESULTS; r++)
        for (i = 0; i < count_of(g.result[r].shape); i++) wrong += mlkt_bits(g.want[r][i]) != mlkt_bits(g.got[r][i]);
      CHECK_MSG(wrong == 0, "strict: %lld elements have other bits than the CPU's", (long long)wrong);
      slope_device(&g, &ctx, 0);
      slope_compare(&g, 0, 0, "fast");
      for (r = 0; r < RESULTS; r++) {
        count = count_of(g.result[r].shape);
        first[r] = g.got[r], g.got[r] = floats(count);
        some = slope_desc(&g, 1, 0);
        if (r != DQ) some.dq.data = NULL;
        if (r != DK) some.dk.data = NULL;
        if (r != DV) some.dv.data = NULL;
        if (both) some.dbias = some.scores.bias, some.dsinks = some.scores.sinks;
        if (both) some.dbias.data = extra[0], some.dsinks.data = extra[1];
        CHECK_OK(ctx.fast, mlk_attention_grad(ctx.fast, &some));
        CHECK_OK(ctx.fast, mlk_sync(ctx.fast));
        for (wrong = 0, i = 0; i < count; i++) wrong += mlkt_bits(first[r][i]) != mlkt_bits(g.got[r][i]);
        CHECK_MSG(wrong == 0, "result %d alone: %lld elements have other bits", r, (long long)wrong);
        free(first[r]);
      }
      if (both) { /* in f32 from what is given, whatever makes the others */
        float *want[2];
        for (i = 0; i < 2; i++) want[i] = floats(i ? g.p.h : g.p.h * 70 * 140);
        some = slope_desc(&g, 0, 0), some.dbias = some.scores.bias, some.dsinks = some.scores.sinks;
        some.dbias.data = want[0], some.dsinks.data = want[1];
        CHECK_OK(ctx.cpu, mlk_attention_grad(ctx.cpu, &some));
        for (wrong = 0, i = 0; i < g.p.h * 70 * 140; i++) wrong += want[0][i] != extra[0][i];
        for (i = 0; i < g.p.h; i++) wrong += want[1][i] != extra[1][i];
        CHECK_MSG(wrong == 0, "dbias and dsinks: %lld elements differ", (long long)wrong);
        for (i = 0; i < 2; i++) free(want[i]);
      }
      for (i = 0; i < 2; i++) free(extra[i]);
      slope_free(&g);
    }
    pair_close(&ctx);
#if defined(MLKT_CUDA_EMULATED)
    mlkt_emu_reset();
#endif
  }
}

/* Planned for an H200 that is not there: warpgroups where lengths and layouts suit them, and in what time. */
static void run_groups_planned(void) {
  static const int64_t sizes[][2] = {{2048, 64}, {2048, 128}, {8192, 128}, {4096, 256}};
  mlk_device_figures h200;
  mlk_context_desc open;
  mlk_context *ctx = NULL;
  int i;
  memset(&h200, 0, sizeof h200);
  h200.name = "H200", h200.compute_capability = 90, h200.multiprocessors = 132;
  h200.flops = 67e12, h200.tensor_flops = 990e12, h200.bandwidth = 4.8e12, h200.memory_bytes = UINT64_C(141) << 30;
  open = mlkt_context_desc(MLK_ISA_BEST, 1);
  open.figures = &h200;
  if (!mlkt_opt.cuda) {
    mlkt_skip("needs --cuda");
    return;
  }
  if (CHECK_STATUS(NULL, mlk_open(&ctx, &open), MLK_OK))
    for (i = 0; i < 8; i++) {
      const int64_t s = sizes[i / 2][0], d = sizes[i / 2][1], shape[4] = {2, 32, s, d};
      float *const memory = (float *)(uintptr_t)0x100000000; /* never touched */
      mlk_attention_desc desc;
      mlk_plan plan, other;
      double least;
      memset(&desc, 0, sizeof desc);
      desc.q = dense_f32(memory, 4, shape), desc.k = dense_f32(memory + 64 * s * d, 4, shape);
      desc.v = dense_f32(memory + 128 * s * d, 4, shape), desc.out = dense_f32(memory + 192 * s * d, 4, shape);
      desc.q.dtype = desc.k.dtype = desc.v.dtype = desc.out.dtype = MLK_BF16;
      desc.k.shape[1] = desc.v.shape[1] = 8, desc.scores.causal = i & 1;
      CHECK_OK(ctx, mlk_attention_plan(ctx, &desc, &plan));
      CHECK_EQ_STR(plan.variant, "wgmma");
      least = (double)plan.flops / h200.tensor_flops;
      CHECK_MSG(plan.seconds > least && plan.seconds < 3 * least, "S %lld, D %lld: %g s, at best %g", (long long)s,
                (long long)d, plan.seconds, least);
      desc.q.data = (char *)desc.q.data + 2;
      CHECK_OK(ctx, mlk_attention_plan(ctx, &desc, &other));
      CHECK_EQ_STR(other.variant, "mma");
      CHECK(other.seconds > plan.seconds && other.workspace_bytes == plan.workspace_bytes);
      desc.q.shape[2] = desc.out.shape[2] = 16;
      CHECK_OK(ctx, mlk_attention_plan(ctx, &desc, &other));
      CHECK_MSG(strncmp(other.variant, "mma", 3) == 0, "16 queries: %s", other.variant);
    }
  mlk_close(ctx);
}

#if !defined(MLKT_CUDA_EMULATED)
/* Sizes at which a large device takes its quickest kernels. */
static void run_large(void) {
  static const int64_t sizes_d[] = {64, 128, 256, 72};
  mlkt_rng rng = mlkt_rng_case();
  pair ctx;
  int n;
  if (pair_open(&ctx))
    for (n = 0; n < 16 && !mlkt_hopeless(); n++) {
      problem p;
      if (!mlkt_keep((uint64_t)n)) continue;
      mlkt_note("D %d, %s, bits %d", (int)sizes_d[n % 4], dtype_names[n / 4 % 2], n / 4);
      problem_new(&p, dtypes[n / 4 % 2], n / 8, 1, 12, 6, 270, 333, sizes_d[n % 4], sizes_d[n % 4], &rng);
      problem_scores(&p, (unsigned)(n / 4), &rng);
      problem_run(&p, &ctx, n & 1, "large");
      problem_free(&p);
    }
  pair_close(&ctx);
}
#else
/* By warpgroups on a device of cc 90 with so many multiprocessors: every width and both types, dense rows and rows of
   heads side by side, tails of queries, keys and elements, masks that leave out tiles, rows and halves of tiles. */
static void run_groups(void) {
  static const struct {
    int64_t b, g, group, s, t, d, e;
    unsigned bits; /* of problem_scores */
    int multiprocessors;
    const char *variant;
  } point[] = {{1, 1, 1, 128, 128, 64, 64, 0, 1, "wgmma"},
               {1, 1, 1, 100, 400, 128, 128, 0, 1, "wgmma"},
               {2, 1, 3, 200, 300, 128, 128, 1, 1, "wgmma"},
               {1, 2, 2, 250, 200, 64, 64, 1 | 4, 3, "wgmma"},
               {1, 1, 1, 300, 520, 128, 120, 1 | 2, 3, "wgmma"},
               {1, 1, 2, 200, 333, 72, 128, 2 | 4 | 16, 1, "wgmma"},
               {1, 1, 1, 190, 70, 256, 256, 1, 1, "wgmma"},
               {1, 1, 1, 128, 200, 200, 136, 1 | 256, 1, "wgmma"},
               {1, 1, 1, 500, 128, 128, 128, 1, 1, "wgmma"},
               {1, 1, 1, 128, 1000, 64, 64, 0, 4, "wgmma_split"},
               {1, 1, 2, 120, 600, 128, 128, 1 | 256, 8, "wgmma_split"}};
  mlkt_rng rng = mlkt_rng_case();
  uint64_t n;
  for (n = 0; n < sizeof point / sizeof *point * 4 && !mlkt_hopeless(); n++) {
    const int at = (int)(n / 4), type = (int)(n & 1), layout = (int)(n / 2 & 1);
    pair ctx;
    problem p;
    if (!mlkt_keep(n)) continue;
    mlkt_emu_device(1, 90, point[at].multiprocessors);
    if (!pair_open(&ctx)) return;
    mlkt_note("point %d, %s, layout %d", at, dtype_names[type], layout);
    problem_new(&p, dtypes[type], layout, point[at].b, point[at].g, point[at].group, point[at].s, point[at].t,
                point[at].d, point[at].e, &rng);
    problem_scores(&p, point[at].bits, &rng);
    p.variant = point[at].variant;
    problem_run(&p, &ctx, layout, "warpgroups");
    problem_free(&p);
    pair_close(&ctx);
  }
  mlkt_emu_reset();
}

/* What warpgroups do not take goes to warps: odd addresses, strided rows, scores that are more than products, few rows;
   and where there is no code for sm_90a, or no tensor maps. */
static void run_groups_refused(void) {
  static const struct {
    int layout;
    unsigned bits;
    int64_t s;
    int specific, entry_points;
    const char *variant;
  } point[] = {{0, 0, 128, 1, 1, "wgmma"}, {2, 0, 128, 1, 1, "mma"},    {3, 0, 128, 1, 1, "mma"},
               {0, 8, 128, 1, 1, "mma"},   {0, 32, 128, 1, 1, "mma"},   {0, 64, 128, 1, 1, "mma"},
               {0, 128, 128, 1, 1, "mma"}, {0, 1024, 128, 1, 1, "mma"}, {0, 0, 20, 1, 1, "mma"},
               {0, 0, 128, 0, 1, "mma"},   {0, 0, 128, 1, 0, "mma"}};
  mlkt_rng rng = mlkt_rng_case();
  size_t n;
  for (n = 0; n < sizeof point / sizeof *point; n++) {
    pair ctx;
    problem p;
    mlkt_note("point %d", (int)n);
    mlkt_emu_device(1, 90, 1);
    mlkt_emu_hopper(point[n].specific, point[n].entry_points);
    if (!pair_open(&ctx)) break;
    problem_new(&p, MLK_F16, point[n].layout, 1, 1, 1, point[n].s, 128, 128, 128, &rng);
    problem_scores(&p, point[n].bits, &rng);
    p.variant = point[n].variant;
    problem_run(&p, &ctx, 0, "refused");
    problem_free(&p);
    pair_close(&ctx);
  }
  mlkt_emu_reset();
}

/* Values that are not finite, in tiles that all rows see and in others, both warpgroups' halves, and behind lengths. */
static void run_groups_contagion(void) {
  mlkt_rng rng = mlkt_rng_case();
  pair ctx;
  int n;
  mlkt_emu_device(1, 90, 1);
  if (pair_open(&ctx))
    for (n = 0; n < 12; n++) {
      const int64_t s = 150, t = 400, d = n % 3 == 0 ? 64 : n % 3 == 1 ? 128 : 256;
      problem p;
      mlkt_note("number %d", n);
      problem_new(&p, dtypes[n & 1], 0, 2, 1, 1, s, t, d, d, &rng);
      p.v.f[3 * d + 5] = INFINITY, p.v.f[270 * d + d - 1] = NAN, p.v.f[(t + 331) * d] = -INFINITY;
      if (n < 3) p.v.f[(t + 130) * d + 1] = NAN, p.q.f[20 * d] = NAN, p.k.f[350 * d + 1] = INFINITY;
      half_put(&p.v), half_put(&p.q), half_put(&p.k);
      p.desc.scores.causal = n < 9, p.desc.scores.window = n < 6 ? 140 : 0;
      if (n >= 6) {
        p.lengths = (int64_t *)calloc(2, 8);
        p.lengths[0] = 260, p.lengths[1] = 331;
        p.desc.scores.k_lengths = ids(p.lengths, 1, 2, 0);
      }
      p.variant = "wgmma";
      problem_run(&p, &ctx, 0, "not finite");
      problem_free(&p);
    }
  pair_close(&ctx);
  mlkt_emu_reset();
}

/* Sequences side by side, codes that are looked up exactly, and parts, by warpgroups where they are quicker. */
static void run_groups_others(void) {
  mlkt_emu_device(1, 90, 1);
  run_lengths();
  run_lookup();
  run_parts();
  mlkt_emu_reset();
}

/* A captured call waits for nothing and allocates nothing; a plan's workspace is enough also where the call's memory is
   not aligned as the plan's was. */
static void run_groups_captured(void) {
  enum { S = 128, T = 600, D = 64 };
  static uint16_t q[S * D + 8], k[T * D], v[T * D];
  static float out[S * D];
  const int64_t sizes[4] = {1, 1, S, D};
  mlk_attention_desc desc;
  mlk_context_desc open;
  mlk_context *ctx = NULL;
  mlk_plan plan, other;
  void *stream, *graph = NULL;
  uint64_t waits;
  int64_t i;
  if (!mlkt_opt.cuda) return;
  mlkt_emu_device(1, 90, 3);
  stream = mlkt_emu_stream_new();
  open = mlkt_context_desc(MLK_ISA_BEST, 1);
  open.stream = stream;
  for (i = 0; i < S * D + 8; i++) q[i] = 0x3C00;            /* 1 */
  for (i = 0; i < T * D; i++) k[i] = 0x3800, v[i] = 0x4000; /* 1/2, 2 */
  memset(&desc, 0, sizeof desc);
  desc.q = dense_f32((float *)(void *)q, 4, sizes), desc.k = dense_f32((float *)(void *)k, 4, sizes);
  desc.out = dense_f32(out, 4, sizes), desc.k.shape[2] = T, desc.v = desc.k, desc.v.data = v;
  desc.q.dtype = desc.k.dtype = desc.v.dtype = MLK_F16;
  if (CHECK_STATUS(NULL, mlk_open(&ctx, &open), MLK_OK) && CHECK_OK(ctx, mlk_attention_plan(ctx, &desc, &plan))) {
    CHECK_EQ_STR(plan.variant, "wgmma_split");
    CHECK_OK(ctx, mlk_reserve(ctx, plan.workspace_bytes, MLK_FIXED));
    waits = mlkt_emu_count(MLKT_EMU_SYNCHRONISATIONS) + mlkt_emu_count(MLKT_EMU_ALLOCATIONS);
    CHECK(mlkt_emu_capture_begin(stream) == 0);
    CHECK_OK(ctx, mlk_attention(ctx, &desc));
    CHECK(mlkt_emu_capture_end(stream, &graph) == 0);
    CHECK(mlkt_emu_count(MLKT_EMU_SYNCHRONISATIONS) + mlkt_emu_count(MLKT_EMU_ALLOCATIONS) == waits);
    CHECK(out[0] == 0);
    CHECK(mlkt_emu_graph_run(graph, stream) == 0);
    CHECK_OK(ctx, mlk_sync(ctx));
    for (i = 0; i < S * D && fabsf(out[i] - 2.0f) < 0x1p-9f; i++) continue;
    CHECK_MSG(i == S * D, "out[%lld] is %g", (long long)i, (double)out[i < S * D ? i : 0]);
    desc.q.data = q + 1;
    CHECK_OK(ctx, mlk_attention_plan(ctx, &desc, &other));
    CHECK_EQ_STR(other.variant, "mma_split");
    CHECK(other.workspace_bytes == plan.workspace_bytes);
    CHECK_OK(ctx, mlk_attention(ctx, &desc));
    mlkt_emu_graph_free(graph);
  }
  mlk_close(ctx);
  mlkt_emu_stream_free(stream);
  mlkt_emu_reset();
}
#endif

const mlkt_case mlkt_cuda_attention_cases[] = {{"cuda_attention/shapes", run_shapes},
                                               {"cuda_attention/lengths", run_lengths},
                                               {"cuda_attention/lookup", run_lookup},
                                               {"cuda_attention/contagion", run_contagion},
                                               {"cuda_attention/parts", run_parts},
                                               {"cuda_attention/reports", run_reports},
                                               {"cuda_attention/types", run_types},
                                               {"cuda_attention/fast", run_fast},
                                               {"cuda_attention/gradient/shapes", run_grad_shapes},
                                               {"cuda_attention/gradient/exact", run_grad_exact},
                                               {"cuda_attention/gradient/lengths", run_grad_lengths},
                                               {"cuda_attention/gradient/contagion", run_grad_contagion},
                                               {"cuda_attention/gradient/lookup", run_grad_lookup},
                                               {"cuda_attention/gradient/calls", run_grad_calls},
                                               {"cuda_attention/gradient/fast", run_grad_fast},
                                               {"cuda_attention/groups_planned", run_groups_planned},
#if !defined(MLKT_CUDA_EMULATED)
                                               {"cuda_attention/large", run_large},
#else
                                               {"cuda_attention/groups", run_groups},
                                               {"cuda_attention/groups_refused", run_groups_refused},
                                               {"cuda_attention/groups_contagion", run_groups_contagion},
                                               {"cuda_attention/groups_others", run_groups_others},
                                               {"cuda_attention/groups_captured", run_groups_captured},
#endif
                                               {NULL, NULL}};
