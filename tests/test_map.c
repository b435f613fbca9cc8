/* test_map.c - elementwise maps, conversions, reductions and optimiser steps.

   Every row and thread count is compared bit for bit with MLK_ISA_REFERENCE over random views: permuted, padded,
   mirrored, broadcast. The reference itself is compared with forms written here, in f64 or bit by bit,
   from the manual alone. */

#include "test.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define COUNT_OF(array) ((int)(sizeof(array) / sizeof(array)[0]))

/* ---- contexts ---------------------------------------------------------------------------------------------------- */

typedef struct team {
  mlk_context *reference;
  mlk_context *ctx[3 * MLK_ISA_COUNT];
  char name[3 * MLK_ISA_COUNT][32];
  int count;
} team;

/* Every row with one task, with some, and through a hook that runs tasks backwards. */
static team team_open(void) {
  mlk_isa isas[MLK_ISA_COUNT];
  const int rows = mlkt_isas(isas);
  team t;
  int i, how;
  memset(&t, 0, sizeof t);
  t.reference = mlkt_open(MLK_ISA_REFERENCE, 1);
  for (i = 0; i < rows; i++)
    for (how = 0; how < 3; how++) {
      mlk_context_desc d = mlkt_context_desc(isas[i], how == 0 ? 1 : how == 1 ? mlkt_opt.threads_max : 3);
      if (how == 2) d.parallel = mlkt_parallel_reversed(3);
      if (mlk_open(&t.ctx[t.count], &d) != MLK_OK) continue;
      snprintf(t.name[t.count], sizeof t.name[0], "%s, %s", mlk_isa_name(isas[i]),
               how == 0   ? "1 task"
               : how == 1 ? "threads"
                          : "reversed");
      t.count++;
    }
  CHECK(t.reference != NULL && t.count > 0);
  return t;
}

static void team_close(team *t) {
  int i;
  for (i = 0; i < t->count; i++) mlk_close(t->ctx[i]);
  mlk_close(t->reference);
}

/* ---- random views ------------------------------------------------------------------------------------------------ */

static const size_t dtype_bytes[MLK_DTYPE_COUNT] = {4, 8, 2, 2, 1};

/* A view in memory of its own, guarded at both ends. */
typedef struct view {
  mlk_tensor t;
  mlkt_buffer buffer;
  int64_t count; /* elements of the buffer, gaps included */
} view;

static int64_t elements(const mlk_tensor *t) {
  int64_t n = 1;
  int i;
  for (i = 0; i < t->rank; i++) n *= t->shape[i];
  return n;
}

/* Strides by a random order of the axes, with gaps and mirrored axes now and then. repeat: an input, whose axes may
   have stride 0. Of views without gaps, mirrors and another order there are enough: how 0. */
static view view_new(mlkt_rng *rng, mlk_dtype dtype, int rank, const int64_t *shape, int how, int repeat) {
  int order[MLK_MAX_RANK], i;
  int64_t step = 1, low = 0, high = 0;
  view v;
  memset(&v, 0, sizeof v);
  v.t.dtype = (int32_t)dtype;
  v.t.rank = rank;
  for (i = 0; i < rank; i++) order[i] = i, v.t.shape[i] = shape[i];
  if (how & 1)
    for (i = rank - 1; i > 0; i--) {
      const int j = (int)mlkt_int(rng, 0, i), k = order[i];
      order[i] = order[j], order[j] = k;
    }
  if ((how & 2) && mlkt_int(rng, 0, 2) == 0) step = mlkt_int(rng, 2, 3);
  for (i = rank - 1; i >= 0; i--) {
    const int axis = order[i];
    int64_t stride = step;
    if (repeat && mlkt_int(rng, 0, 7) == 0) {
      v.t.stride[axis] = 0;
      continue;
    }
    step *= shape[axis] > 0 ? shape[axis] : 1;
    if ((how & 2) && mlkt_int(rng, 0, 3) == 0) step += mlkt_int(rng, 1, 5);
    if ((how & 4) && mlkt_int(rng, 0, 3) == 0) stride = -stride;
    v.t.stride[axis] = stride;
    if (shape[axis] > 0) *(stride < 0 ? &low : &high) += (shape[axis] - 1) * stride;
  }
  for (i = 0; i < rank && v.t.stride[i] == 0; i++) {}
  if (i == rank) { /* all zero would mean dense: repeat nothing */
    for (i = rank - 1, step = 1; i >= 0; i--) v.t.stride[i] = step, step *= shape[i] > 0 ? shape[i] : 1;
    low = 0, high = elements(&v.t) > 0 ? elements(&v.t) - 1 : 0;
  }
  v.count = elements(&v.t) ? high - low + 1 : 0;
  v.buffer = mlkt_buffer_new((size_t)v.count * dtype_bytes[dtype], mlkt_int(rng, 0, 1) ? MLKT_HEAD : MLKT_TAIL);
  v.t.data = (char *)v.buffer.data - low * (int64_t)dtype_bytes[dtype];
  return v;
}

static void view_free(view *v) { mlkt_buffer_free(&v->buffer); }

/* The offset of element number index of shape, for strides that broadcast from the right. */
static int64_t offset_of(const mlk_tensor *t, const mlk_tensor *out, int64_t index) {
  int64_t offset = 0;
  int i;
  for (i = out->rank - 1; i >= 0; i--) {
    const int axis = i - (out->rank - t->rank);
    const int64_t at = index % out->shape[i];
    index /= out->shape[i];
    if (axis >= 0 && t->shape[axis] != 1) offset += at * t->stride[axis];
  }
  return offset;
}

static float special(mlkt_rng *rng) {
  static const float table[] = {0.0f, -0.0f, INFINITY, -INFINITY, NAN, 1e-45f, -1e-40f, FLT_MAX, -FLT_MAX, 1.0f};
  return table[mlkt_int(rng, 0, COUNT_OF(table) - 1)];
}

static void view_fill(mlkt_rng *rng, view *v, int specials) {
  int64_t i;
  for (i = 0; i < v->count; i++) {
    const float x = specials && mlkt_int(rng, 0, 15) == 0 ? special(rng) : mlkt_wide(rng, 6);
    switch (v->t.dtype) {
    case MLK_F32: mlkt_buffer_f32(&v->buffer)[i] = x; break;
    case MLK_I64: mlkt_buffer_i64(&v->buffer)[i] = (int64_t)mlkt_u64(rng) >> mlkt_int(rng, 0, 63); break;
    case MLK_U8: ((uint8_t *)v->buffer.data)[i] = (uint8_t)mlkt_u64(rng); break;
    default: ((uint16_t *)v->buffer.data)[i] = (uint16_t)mlkt_u64(rng); break;
    }
  }
}

/* A random shape: mostly small, sometimes with a long axis, now and then empty. */
static int shape_new(mlkt_rng *rng, int64_t *shape) {
  const int rank = (int)mlkt_int(rng, 1, mlkt_int(rng, 0, 3) ? 3 : MLK_MAX_RANK);
  int i;
  for (i = 0; i < rank; i++) shape[i] = mlkt_int(rng, 1, rank > 3 ? 5 : 9);
  if (mlkt_int(rng, 0, 1)) shape[mlkt_int(rng, 0, rank - 1)] = mlkt_int(rng, 10, 90);
  if (mlkt_int(rng, 0, 3) == 0) shape[mlkt_int(rng, 0, rank - 1)] = mlkt_int(rng, 30, 300);
  if (mlkt_int(rng, 0, 24) == 0) shape[mlkt_int(rng, 0, rank - 1)] = 0;
  return rank;
}

/* An input for out's shape: axes of size 1 and missing axes at the left. */
static view input_new(mlkt_rng *rng, mlk_dtype dtype, const mlk_tensor *out) {
  int64_t shape[MLK_MAX_RANK];
  int rank = out->rank, i;
  if (mlkt_int(rng, 0, 5) == 0) rank = (int)mlkt_int(rng, 0, out->rank);
  for (i = 0; i < rank; i++) {
    shape[i] = out->shape[out->rank - rank + i];
    if (mlkt_int(rng, 0, 5) == 0) shape[i] = 1;
  }
  return view_new(rng, dtype, rank, shape, (int)mlkt_int(rng, 0, 7), 1);
}

/* ---- maps against the reference ---------------------------------------------------------------------------------- */

static int has_b(mlk_map_op op) {
  return op == MLK_ADD || op == MLK_SUB || op == MLK_MUL || op == MLK_DIV || op == MLK_ACT_GRAD;
}

static void copy_bytes(void *to, const void *from, size_t bytes) {
  if (bytes) memcpy(to, from, bytes);
}

/* Same bits; or, of 16-bit elements that a device converted, both NaN: what a NaN carries is not promised. */
static int same_elements(const void *got, const void *want, size_t bytes, mlk_dtype from, mlk_dtype to) {
  const uint16_t *g = (const uint16_t *)got, *w = (const uint16_t *)want;
  const uint16_t infinity = to == MLK_F16 ? 0x7c00 : 0x7f80;
  size_t i;
  if (bytes == 0 || memcmp(got, want, bytes) == 0) return 1;
  if (!mlkt_opt.cuda || from == to || (to != MLK_F16 && to != MLK_BF16)) return 0;
  for (i = 0; i < bytes / 2; i++)
    if (g[i] != w[i] && ((g[i] & 0x7fff) <= infinity || (w[i] & 0x7fff) <= infinity)) return 0;
  return 1;
}

/* The same call on the reference and on every member of the team, from the same memory of out; gaps of out included.
   from: the type of the operand. The reference's result stays in out; gives what was there before, for the caller to
   free. */
static char *on_all(team *t, mlk_status (*call)(mlk_context *, const void *), const void *desc, mlk_dtype from,
                    view *out) {
  const size_t bytes = out->buffer.bytes;
  char *before = (char *)malloc(bytes + 1), *want = (char *)malloc(bytes + 1);
  int i, same = 1;
  if (!before || !want) abort();
  copy_bytes(before, out->buffer.data, bytes);
  CHECK_OK(t->reference, call(t->reference, desc));
  copy_bytes(want, out->buffer.data, bytes);
  for (i = 0; same && i < t->count; i++) {
    copy_bytes(out->buffer.data, before, bytes);
    if (!CHECK_OK(t->ctx[i], call(t->ctx[i], desc))) break;
    if (out->t.dtype == MLK_F32)
      same = mlkt_check_f32_n(mlkt_buffer_f32(&out->buffer), (float *)(void *)want, bytes / 4, __FILE__, __LINE__,
                              t->name[i]);
    else if (out->t.dtype == MLK_I64)
      same = mlkt_check_i64_n(mlkt_buffer_i64(&out->buffer), (int64_t *)(void *)want, bytes / 8, __FILE__, __LINE__,
                              t->name[i]);
    else
      same = CHECK_MSG(same_elements(out->buffer.data, want, bytes, from, (mlk_dtype)out->t.dtype), "%s differs",
                       t->name[i]);
  }
  copy_bytes(out->buffer.data, want, bytes);
  free(want);
  return before;
}

static mlk_status call_map(mlk_context *ctx, const void *desc) { return mlk_map(ctx, (const mlk_map_desc *)desc); }
static char *map_on_all(team *t, const mlk_map_desc *d, view *out) {
  return on_all(t, call_map, d, (mlk_dtype)d->a.dtype, out);
}

/* The operations that are one or two IEEE operations, written again. */
static int plain_value(const mlk_map_desc *d, float a, float b, float *y) {
  const float alpha = d->alpha ? *d->alpha : 1.0f, beta = d->beta ? *d->beta : 1.0f;
  const float scaled = beta * b;
  switch (d->op) {
  case MLK_COPY: return *y = a, 1;
  case MLK_SCALE: return *y = alpha * a, 1;
  case MLK_ADD: return *y = fmaf(alpha, a, scaled), 1;
  case MLK_SUB: return *y = a - b, 1;
  case MLK_MUL: return *y = a * b, 1;
  case MLK_DIV: return *y = a / b, 1;
  case MLK_SQRT: return *y = sqrtf(a), 1;
  case MLK_ACT:
    if (d->activation != MLK_NONE && d->activation != MLK_RELU) return 0;
    return *y = d->activation == MLK_RELU && a < 0 ? 0.0f : a, 1;
  case MLK_ACT_GRAD:
    if (d->activation != MLK_NONE && d->activation != MLK_RELU) return 0;
    return *y = d->activation == MLK_NONE || a > 0 ? b : isnan(a) ? a : 0.0f, 1;
  default: return 0;
  }
}

/* Every element of out against plain_value; before: out's memory as it was, for operands that are out. */
static void check_values(const mlk_map_desc *d, const view *out, const char *before) {
  const ptrdiff_t moved = before - (const char *)out->buffer.data;
  int64_t i;
  for (i = 0; i < elements(&d->out); i++) {
    const char *a = (const char *)d->a.data + 4 * offset_of(&d->a, &d->out, i), *b = a;
    float va, vb, want, got;
    memcpy(&got, (const char *)d->out.data + 4 * offset_of(&d->out, &d->out, i), 4);
    if (d->a.data == d->out.data) a += moved;
    memcpy(&va, a, 4);
    vb = va;
    if (has_b(d->op)) {
      b = (const char *)d->b.data + 4 * offset_of(&d->b, &d->out, i);
      if (d->b.data == d->out.data) b += moved;
      memcpy(&vb, b, 4);
    }
    if (!plain_value(d, va, vb, &want)) return;
    mlkt_note("op %d, element %d", (int)d->op, (int)i);
    if (!CHECK_BITS_F32(got, want)) return;
  }
}

static void test_views(void) {
  mlkt_rng rng = mlkt_rng_case();
  team t = team_open();
  int round;
  for (round = 0; round < (mlkt_opt.quick ? 200 : 600) && !mlkt_hopeless(); round++) {
    int64_t shape[MLK_MAX_RANK];
    const int rank = shape_new(&rng, shape);
    const float alpha = mlkt_signed(&rng), beta = mlkt_signed(&rng);
    view out = view_new(&rng, MLK_F32, rank, shape, (int)mlkt_int(&rng, 0, 7), 0);
    view a = input_new(&rng, MLK_F32, &out.t), b = input_new(&rng, MLK_F32, &out.t);
    char *before;
    mlk_map_desc d;
    memset(&d, 0, sizeof d);
    d.op = (mlk_map_op)(round % MLK_MAP_OP_COUNT);
    d.activation = (mlk_activation)(round / MLK_MAP_OP_COUNT % MLK_ACTIVATION_COUNT);
    view_fill(&rng, &out, 0);
    view_fill(&rng, &a, 1);
    view_fill(&rng, &b, 1);
    d.out = out.t;
    d.a = mlkt_int(&rng, 0, 7) ? a.t : out.t;
    if (has_b(d.op)) d.b = mlkt_int(&rng, 0, 7) ? b.t : out.t;
    if (mlkt_int(&rng, 0, 1)) d.alpha = &alpha;
    if (mlkt_int(&rng, 0, 1)) d.beta = &beta;
    mlkt_note("round %d, op %d, activation %d", round, (int)d.op, (int)d.activation);
    before = map_on_all(&t, &d, &out);
    check_values(&d, &out, before);
    free(before);
    view_free(&out);
    view_free(&a);
    view_free(&b);
  }
  team_close(&t);
}

static void test_convert_views(void) {
  mlkt_rng rng = mlkt_rng_case();
  team t = team_open();
  int round;
  for (round = 0; round < (mlkt_opt.quick ? 200 : 1500) && !mlkt_hopeless(); round++) {
    int64_t shape[MLK_MAX_RANK];
    const int rank = shape_new(&rng, shape);
    const mlk_dtype to = (mlk_dtype)(round % MLK_DTYPE_COUNT);
    const mlk_dtype from = (mlk_dtype)(round / MLK_DTYPE_COUNT % MLK_DTYPE_COUNT);
    view out = view_new(&rng, to, rank, shape, (int)mlkt_int(&rng, 0, 7), 0);
    view a = input_new(&rng, from, &out.t);
    mlk_map_desc d;
    memset(&d, 0, sizeof d);
    view_fill(&rng, &out, 0);
    view_fill(&rng, &a, 1);
    d.out = out.t;
    d.a = a.t;
    mlkt_note("round %d, from %d to %d", round, (int)from, (int)to);
    free(map_on_all(&t, &d, &out));
    view_free(&out);
    view_free(&a);
  }
  team_close(&t);
}

/* ---- reductions against the reference ---------------------------------------------------------------------------- */

static mlk_status call_reduce(mlk_context *ctx, const void *desc) {
  return mlk_reduce(ctx, (const mlk_reduce_desc *)desc);
}
static char *reduce_on_all(team *t, const mlk_reduce_desc *d, view *out) {
  return on_all(t, call_reduce, d, (mlk_dtype)d->x.dtype, out);
}

/* Every output against f64, a plain search, or a bound on what order of summation can do. before: out as it was. */
static void check_reduction(const mlk_reduce_desc *d, const view *out, const char *before) {
  mlk_tensor kept = d->x, gone = d->x;
  int64_t i, j, count = 1;
  int axis;
  for (axis = 0; axis < d->x.rank; axis++) {
    if (d->axes >> axis & 1)
      kept.shape[axis] = 1, count *= d->x.shape[axis];
    else
      gone.shape[axis] = 1;
  }
  for (i = 0; i < elements(&kept); i++) {
    const float *x = (const float *)d->x.data + offset_of(&kept, &kept, i);
    const mlk_tensor dense = mlki_explicit_strides(d->out);
    const int64_t at = offset_of(&dense, &dense, i);
    double sum = 0, magnitude = 0, bound;
    float most = d->op == MLK_MIN ? INFINITY : -INFINITY, old;
    int64_t best = -1;
    int nan = 0;
    for (j = 0; j < count; j++) {
      const float v = x[offset_of(&gone, &gone, j)];
      const double term = d->op == MLK_SUM_SQUARES ? (double)v * (double)v : (double)v;
      sum += term, magnitude += fabs(term);
      if (best < 0 || (!nan && (isnan(v) || v > most))) best = j;
      if (d->op == MLK_MIN ? v < most : v > most) most = v;
      nan |= isnan(v);
    }
    mlkt_note("op %d, output %d of %d terms", (int)d->op, (int)i, (int)count);
    if (d->op == MLK_ARGMAX) {
      if (!CHECK_EQ_I64(((const int64_t *)d->out.data)[at], best)) return;
    } else if (d->op >= MLK_MAX) {
      const float got = ((const float *)d->out.data)[at];
      if (!CHECK(nan ? isnan(got) : got == most)) return;
    } else if (magnitude <= (double)FLT_MAX) {
      const double got = (double)((const float *)d->out.data)[at];
      memcpy(&old, before + ((const char *)d->out.data - (const char *)out->buffer.data) + 4 * at, 4);
      if (d->op == MLK_MEAN) sum /= (double)count, magnitude /= (double)count;
      bound = ((double)count / 16 + 8) * magnitude / 16777216.0 + 1e-44;
      if (d->beta) sum += (double)*d->beta * (double)old, bound += fabs(sum) / 16777216.0;
      if (!CHECK_MSG(count == 0 && d->op == MLK_MEAN ? isnan(got) : fabs(got - sum) <= bound,
                     "%.9g, exactly %.12g, bound %.3g", got, sum, bound))
        return;
    }
  }
}

static void test_reduce_views(void) {
  mlkt_rng rng = mlkt_rng_case();
  team t = team_open();
  int round;
  for (round = 0; round < (mlkt_opt.quick ? 200 : 1500) && !mlkt_hopeless(); round++) {
    int64_t shape[MLK_MAX_RANK], kept[MLK_MAX_RANK];
    const int rank = shape_new(&rng, shape), whole = (int)mlkt_int(&rng, 0, 1);
    const float beta = mlkt_signed(&rng);
    view x = view_new(&rng, MLK_F32, rank, shape, (int)mlkt_int(&rng, 0, 7), 1), out;
    int i, kept_rank = 0;
    char *before;
    mlk_reduce_desc d;
    memset(&d, 0, sizeof d);
    d.op = (mlk_reduce_op)(round % MLK_REDUCE_OP_COUNT);
    d.axes = (unsigned)mlkt_int(&rng, 1, (1 << rank) - 1);
    for (i = 0; i < rank; i++)
      if (!(d.axes >> i & 1))
        kept[kept_rank++] = shape[i];
      else if (whole)
        kept[kept_rank++] = 1;
    if (kept_rank == 0) kept[kept_rank++] = 1;
    out = view_new(&rng, d.op == MLK_ARGMAX ? MLK_I64 : MLK_F32, kept_rank, kept, (int)mlkt_int(&rng, 0, 7), 0);
    view_fill(&rng, &x, (int)mlkt_int(&rng, 0, 1));
    view_fill(&rng, &out, 0);
    d.x = x.t, d.out = out.t;
    if (d.op <= MLK_SUM_SQUARES && mlkt_int(&rng, 0, 2) == 0) d.beta = &beta;
    mlkt_note("round %d, op %d, axes %u of %d", round, (int)d.op, d.axes, rank);
    before = reduce_on_all(&t, &d, &out);
    check_reduction(&d, &out, before);
    free(before);
    view_free(&out);
    view_free(&x);
  }
  team_close(&t);
}

/* Long sums: several segments, shared by tasks or not; in rows, in columns, and in neither. The plan's workspace is
   what a context takes that had none. */
static void test_long_sums(void) {
  static const struct {
    int rank;
    int64_t shape[3];
    unsigned axes;
    int transposed;
  } table[] = {
      {1, {100003, 0, 0}, 1, 0},  {2, {3, 70001, 0}, 2, 0}, {2, {70001, 3, 0}, 1, 0}, {2, {70001, 3, 0}, 1, 1},
      {2, {33000, 70, 0}, 1, 0},  {2, {1, 65536, 0}, 3, 0}, {3, {50, 17, 49}, 5, 0},  {3, {300, 20, 300}, 5, 0},
      {3, {40, 5, 1000}, 5, 1},   {2, {32768, 2, 0}, 1, 0}, {2, {32769, 1, 0}, 1, 0}, {3, {7, 100, 1000}, 7, 1},
      {2, {100000, 12, 0}, 2, 0}, {2, {5, 40000, 0}, 1, 0}, {3, {9000, 4, 7}, 5, 0},
  };
  mlkt_rng rng = mlkt_rng_case();
  team t = team_open();
  int k, op, i;
  for (k = 0; k < COUNT_OF(table) && !mlkt_hopeless(); k++) {
    const int rank = table[k].rank;
    view x = view_new(&rng, MLK_F32, rank, table[k].shape, 0, 0);
    int64_t kept[3];
    for (i = 0; i < rank; i++) kept[i] = table[k].axes >> i & 1 ? 1 : table[k].shape[i];
    view_fill(&rng, &x, 0);
    for (op = 0; op < MLK_REDUCE_OP_COUNT; op++) {
      view out;
      mlk_reduce_desc d;
      char *before;
      if (!mlkt_keep((uint64_t)(k * MLK_REDUCE_OP_COUNT + op) + 7)) continue;
      memset(&d, 0, sizeof d);
      d.op = (mlk_reduce_op)op;
      d.axes = table[k].axes;
      d.x = x.t;
      if (table[k].transposed) { /* the same memory, its last two axes in the other order */
        mlk_tensor shape = mlk_with_row_stride(x.t, x.t.shape[rank - 2]);
        d.x.stride[rank - 1] = shape.stride[rank - 2] ? x.t.shape[rank - 2] : 1;
        d.x.stride[rank - 2] = 1;
      }
      out = view_new(&rng, op == MLK_ARGMAX ? MLK_I64 : MLK_F32, rank, kept, 0, 0);
      d.out = out.t;
      mlkt_note("long sum %d, op %d", k, op);
      before = reduce_on_all(&t, &d, &out);
      check_reduction(&d, &out, before);
      for (i = 0; i < t.count; i++) {
        mlk_context_desc desc = mlkt_context_desc(MLK_ISA_BEST, 5);
        mlkt_memory memory;
        mlk_plan plan;
        mlk_context *ctx;
        mlk_info info;
        memset(&memory, 0, sizeof memory);
        desc.allocator = mlkt_memory_hook(&memory);
        if (i > 0 || !CHECK_EQ_I64(mlk_open(&ctx, &desc), MLK_OK)) break;
        CHECK_OK(ctx, mlk_reduce_plan(ctx, &d, &plan));
        copy_bytes(out.buffer.data, before, out.buffer.bytes);
        if (!mlkt_opt.cuda) {                /* a device's workspace is its own memory */
          memory.fail_at = memory.calls + 1; /* the workspace cannot be had: out stays as it is */
          CHECK_STATUS(ctx, mlk_reduce(ctx, &d), plan.workspace_bytes ? MLK_ERR_MEMORY : MLK_OK);
          if (plan.workspace_bytes) CHECK(memcmp(out.buffer.data, before, out.buffer.bytes) == 0);
        }
        CHECK_OK(ctx, mlk_reduce(ctx, &d));
        CHECK_OK(ctx, mlk_get_info(ctx, &info));
        CHECK_EQ_I64(info.workspace_bytes, plan.workspace_bytes);
        mlk_close(ctx);
        CHECK_MEMORY_EMPTY(&memory);
      }
      free(before);
      view_free(&out);
    }
    view_free(&x);
  }
  team_close(&t);
}

/* ---- conversions against bit-level forms ------------------------------------------------------------------------- */

/* The value of a half: significand bits in an exponent field of the width given. */
static double half_value(uint16_t h, int fraction_bits) {
  const int exponent_bits = 15 - fraction_bits, bias = (1 << (exponent_bits - 1)) - 1;
  const int fraction = h & ((1 << fraction_bits) - 1), exponent = h >> fraction_bits & ((1 << exponent_bits) - 1);
  double x;
  if (exponent == (1 << exponent_bits) - 1)
    x = fraction ? NAN : HUGE_VAL;
  else if (exponent == 0)
    x = ldexp((double)fraction, 1 - bias - fraction_bits);
  else
    x = ldexp((double)(fraction + (1 << fraction_bits)), exponent - bias - fraction_bits);
  return h & 0x8000u ? -x : x;
}

/* x rounded to a format, ties to even, overflow to infinity. */
static double half_nearest(double x, int fraction_bits) {
  const int bias = (1 << (14 - fraction_bits)) - 1;
  int exponent;
  double unit, q;
  if (isnan(x) || isinf(x) || x == 0) return x;
  frexp(x, &exponent);
  exponent--;
  if (exponent < 1 - bias) exponent = 1 - bias;
  unit = ldexp(1.0, exponent - fraction_bits);
  q = floor(fabs(x) / unit);
  if (fabs(x) / unit - q > 0.5 || (fabs(x) / unit - q == 0.5 && fmod(q, 2) == 1)) q += 1;
  q *= unit;
  if (q >= ldexp(1.0, bias + 1)) q = HUGE_VAL;
  return x < 0 ? -q : q;
}

static int same_value(double a, double b) {
  return isnan(a) ? isnan(b) : a == b && (a != 0 || signbit(a) == signbit(b));
}

enum { HALVES = 65536 };

static void convert(mlk_context *ctx, mlk_tensor from, mlk_tensor to) {
  mlk_map_desc d;
  memset(&d, 0, sizeof d);
  d.a = from, d.out = to;
  CHECK_OK(ctx, mlk_map(ctx, &d));
}

static int64_t nearest_i64(double x) {
  return isnan(x) ? 0 : x >= 9223372036854775808.0 ? INT64_MAX : x <= -9223372036854775808.0 ? INT64_MIN : (int64_t)x;
}

static int nearest_u8(double x) { return x > 0 ? x < 255 ? (int)x : 255 : 0; }

/* All 2^16 halves of both kinds into every other type. */
static void test_halves(void) {
  static uint16_t all[HALVES], back[HALVES];
  static float wide[HALVES];
  static int64_t whole[HALVES];
  static uint8_t byte[HALVES];
  team t = team_open();
  int i, k, kind;
  for (i = 0; i < HALVES; i++) all[i] = (uint16_t)i;
  for (k = -1; k < t.count; k++)
    for (kind = 0; kind < 2; kind++) {
      mlk_context *ctx = k < 0 ? t.reference : t.ctx[k];
      const mlk_tensor from = kind ? mlk_bf16(all, HALVES) : mlk_f16(all, HALVES);
      const int fraction = kind ? 7 : 10;
      mlkt_note("%s, %s", k < 0 ? "reference" : t.name[k], kind ? "bf16" : "f16");
      convert(ctx, from, mlk_f32(wide, HALVES));
      convert(ctx, from, kind ? mlk_f16(back, HALVES) : mlk_bf16(back, HALVES));
      convert(ctx, from, mlk_i64(whole, HALVES));
      convert(ctx, from, mlk_u8(byte, HALVES));
      for (i = 0; i < HALVES && !mlkt_hopeless(); i++) {
        const double x = half_value(all[i], fraction);
        CHECK_MSG(same_value((double)wide[i], x), "0x%04x to f32: %g, expected %g", i, (double)wide[i], x);
        CHECK_MSG(same_value(half_value(back[i], 17 - fraction), half_nearest(x, 17 - fraction)),
                  "0x%04x to the other half: 0x%04x, expected %g", i, back[i], half_nearest(x, 17 - fraction));
        CHECK_EQ_I64(whole[i], nearest_i64(x));
        CHECK_EQ_I64(byte[i], nearest_u8(x));
      }
      convert(ctx, mlk_f32(wide, HALVES), kind ? mlk_bf16(back, HALVES) : mlk_f16(back, HALVES));
      for (i = 0; i < HALVES && !mlkt_hopeless(); i++)
        if (!isnan(half_value(all[i], fraction))) CHECK_EQ_I64(back[i], all[i]);
    }
  team_close(&t);
}

/* Floats over all exponents, and those half way between two halves and beside, into every other type. */
static void test_floats(void) {
  enum { BLOCK = 16384 };
  static float x[BLOCK];
  static uint16_t h[BLOCK];
  static int64_t whole[BLOCK];
  static uint8_t byte[BLOCK];
  mlkt_rng rng = mlkt_rng_case();
  team t = team_open();
  int i, k, kind, round;
  for (round = 0; round < (mlkt_opt.quick ? 2 : 40) && !mlkt_hopeless(); round++) {
    for (i = 0; i < BLOCK; i++) {
      const uint32_t bits = (uint32_t)mlkt_u64(&rng), near = (uint32_t)mlkt_int(&rng, -1, 1);
      switch (round % 4) {
      case 0: x[i] = mlkt_float(bits); break;
      case 1: x[i] = mlkt_float((bits & 0xFFFF8000u) + near); break;                               /* ties of bf16 */
      case 2: x[i] = mlkt_float(((bits & 0x8FFFF000u) | 0x38000000u) + near - 0x08000000u); break; /* and of f16 */
      default: x[i] = mlkt_wide(&rng, 64); break;
      }
    }
    for (k = -1; k < t.count; k += 3)
      for (kind = 0; kind < 2; kind++) {
        mlk_context *ctx = k < 0 ? t.reference : t.ctx[k];
        const int fraction = kind ? 7 : 10;
        mlkt_note("%s, round %d", k < 0 ? "reference" : t.name[k], round);
        convert(ctx, mlk_f32(x, BLOCK), kind ? mlk_bf16(h, BLOCK) : mlk_f16(h, BLOCK));
        convert(ctx, mlk_f32(x, BLOCK), mlk_i64(whole, BLOCK));
        convert(ctx, mlk_f32(x, BLOCK), mlk_u8(byte, BLOCK));
        for (i = 0; i < BLOCK && !mlkt_hopeless(); i++) {
          CHECK_MSG(same_value(half_value(h[i], fraction), half_nearest((double)x[i], fraction)),
                    "%.9g (0x%08" PRIx32 ") to %s: 0x%04x", (double)x[i], mlkt_bits(x[i]), kind ? "bf16" : "f16", h[i]);
          if (kind) continue;
          CHECK_EQ_I64(whole[i], nearest_i64((double)x[i]));
          CHECK_EQ_I64(byte[i], nearest_u8((double)x[i]));
        }
      }
  }
  team_close(&t);
}

/* |x| rounded to the bits given, ties to even, in integers. */
static double integer_nearest(int64_t x, int bits) {
  uint64_t a = x < 0 ? ~(uint64_t)x + 1 : (uint64_t)x, rest;
  int shift = 0;
  double y;
  while (a >> shift >> bits) shift++;
  rest = shift ? a & ((UINT64_C(1) << shift) - 1) : 0;
  a >>= shift;
  if (shift && (rest > UINT64_C(1) << (shift - 1) || (rest == UINT64_C(1) << (shift - 1) && (a & 1)))) a++;
  y = ldexp((double)a, shift);
  return x < 0 ? -y : y;
}

static void test_integers(void) {
  enum { BLOCK = 4096 };
  static int64_t x[BLOCK];
  static float f[BLOCK];
  static uint16_t h[BLOCK], b[BLOCK];
  static uint8_t byte[BLOCK];
  mlkt_rng rng = mlkt_rng_case();
  team t = team_open();
  int i, k, round;
  for (round = 0; round < (mlkt_opt.quick ? 2 : 20) && !mlkt_hopeless(); round++) {
    for (i = 0; i < BLOCK; i++) { /* ties, and ties missed by one, at every size */
      const int shift = (int)mlkt_int(&rng, 0, 62), keep = (int)mlkt_int(&rng, 1, 26);
      uint64_t a = mlkt_u64(&rng) >> 1;
      if (i % 2) a = (a >> (63 - keep)) << shift >> 1, a += (uint64_t)mlkt_int(&rng, -1, 1);
      x[i] = (int64_t)(a & INT64_MAX) >> (i % 2 ? 0 : shift);
      if (mlkt_int(&rng, 0, 1)) x[i] = -x[i];
    }
    x[0] = INT64_MIN, x[1] = INT64_MAX, x[2] = 65519, x[3] = 65520, x[4] = -65520, x[5] = 256, x[6] = -1;
    for (k = -1; k < t.count; k++) {
      mlk_context *ctx = k < 0 ? t.reference : t.ctx[k];
      mlkt_note("%s, round %d", k < 0 ? "reference" : t.name[k], round);
      convert(ctx, mlk_i64(x, BLOCK), mlk_f32(f, BLOCK));
      convert(ctx, mlk_i64(x, BLOCK), mlk_f16(h, BLOCK));
      convert(ctx, mlk_i64(x, BLOCK), mlk_bf16(b, BLOCK));
      convert(ctx, mlk_i64(x, BLOCK), mlk_u8(byte, BLOCK));
      for (i = 0; i < BLOCK && !mlkt_hopeless(); i++) {
        const double half = integer_nearest(x[i], 11);
        CHECK_MSG((double)f[i] == integer_nearest(x[i], 24), "%" PRId64 " to f32: %.9g", x[i], (double)f[i]);
        CHECK_MSG(half_value(h[i], 10) == (fabs(half) >= 65536 ? (half < 0 ? -HUGE_VAL : HUGE_VAL) : half),
                  "%" PRId64 " to f16: 0x%04x", x[i], h[i]);
        CHECK_MSG(half_value(b[i], 7) == integer_nearest(x[i], 8), "%" PRId64 " to bf16: 0x%04x", x[i], b[i]);
        CHECK_EQ_I64(byte[i], x[i] < 0 ? 0 : x[i] > 255 ? 255 : x[i]);
      }
    }
  }
  team_close(&t);
}

/* ---- gradients of activations: central differences of the activations themselves --------------------------------- */

static void test_differences(void) {
  enum { COUNT = 1201 };
  static float x[COUNT], left[COUNT], right[COUNT], one[COUNT], slope[COUNT];
  const float h = 1.0f / 128;
  team t = team_open();
  int i, k, act;
  for (k = 0; k < t.count; k += 3)
    for (act = 0; act < MLK_ACTIVATION_COUNT; act++) {
      mlk_map_desc d;
      memset(&d, 0, sizeof d);
      d.op = MLK_ACT;
      d.activation = (mlk_activation)act;
      mlkt_note("%s, activation %d", t.name[k], act);
      for (i = 0; i < COUNT; i++) one[i] = 1.0f, x[i] = 0.02f * (float)(i - COUNT / 2) + 0.0101f;
      for (i = 0; i < COUNT; i++) left[i] = x[i] - h, right[i] = x[i] + h;
      d.a = d.out = mlk_f32(left, COUNT);
      CHECK_OK(t.ctx[k], mlk_map(t.ctx[k], &d));
      d.a = d.out = mlk_f32(right, COUNT);
      CHECK_OK(t.ctx[k], mlk_map(t.ctx[k], &d));
      d.op = MLK_ACT_GRAD;
      d.a = mlk_f32(x, COUNT);
      d.b = mlk_f32(one, COUNT);
      d.out = mlk_f32(slope, COUNT);
      CHECK_OK(t.ctx[k], mlk_map(t.ctx[k], &d));
      for (i = 0; i < COUNT; i++) {
        const double difference = ((double)right[i] - (double)left[i]) / (2 * (double)h);
        if (!CHECK_MSG(fabs(difference - (double)slope[i]) < 2e-4, "at %g: %g, difference %g", (double)x[i],
                       (double)slope[i], difference))
          break;
      }
    }
  team_close(&t);
}

/* ---- optimiser steps --------------------------------------------------------------------------------------------- */

typedef struct step {
  view param, grad, m, v; /* velocity is m */
  mlk_sgd_desc sgd;
  mlk_adamw_desc adamw;
  int is_adamw;
} step;

static mlk_status step_run(mlk_context *ctx, const step *s) {
  return s->is_adamw ? mlk_adamw(ctx, &s->adamw) : mlk_sgd(ctx, &s->sgd);
}

/* One step in f64, rounded at the end: param of element at into *p, with bounds that f32 operations can reach. */
static void check_step(const step *s, const char *const before[4]) {
  const view *views[4] = {&s->param, &s->grad, &s->m, &s->v};
  const mlk_tensor *out = &s->param.t;
  int64_t i;
  int k;
  for (i = 0; i < elements(out); i++) {
    double was[4] = {0, 0, 0, 0}, p, m, v, scale;
    float is[4] = {0, 0, 0, 0}, old;
    for (k = 0; k < (s->is_adamw ? 4 : 3); k++) {
      const mlk_tensor *t = &views[k]->t;
      const ptrdiff_t at = (const char *)t->data - (const char *)views[k]->buffer.data + 4 * offset_of(t, out, i);
      memcpy(&old, before[k] + at, 4);
      memcpy(&is[k], (const char *)views[k]->buffer.data + at, 4);
      was[k] = (double)old;
    }
    if (s->is_adamw) {
      const mlk_adamw_desc *d = &s->adamw;
      const double b1 = d->beta1 == 0 ? (double)0.9f : (double)d->beta1,
                   b2 = d->beta2 == 0 ? (double)0.999f : (double)d->beta2;
      const double epsilon = d->epsilon == 0 ? 1e-8 : (double)d->epsilon, lr = (double)d->lr;
      m = b1 * was[2] + (1 - b1) * was[1];
      v = b2 * was[3] + (1 - b2) * was[1] * was[1];
      scale = lr / (1 - pow(b1, (double)d->step)) / (sqrt(v / (1 - pow(b2, (double)d->step))) + epsilon);
      p = was[0] * (1 - lr * (double)d->weight_decay) - scale * m;
      scale *= b1 * fabs(was[2]) + (1 - b1) * fabs(was[1]);
      CHECK_MSG(fabs((double)is[3] - v) <= 3e-7 * v + 1e-44, "v is %.9g, exactly %.12g", (double)is[3], v);
    } else {
      const mlk_sgd_desc *d = &s->sgd;
      const double t = was[1] + (double)d->weight_decay * was[0];
      m = s->sgd.velocity.data ? (double)d->momentum * was[2] + t : t;
      p = was[0] - (double)d->lr * (d->nesterov && s->sgd.velocity.data ? t + (double)d->momentum * m : m);
      scale = (double)d->lr * (fabs(was[1]) + fabs(was[0]) + fabs(was[2]) + fabs(m)) * 4;
    }
    if (s->is_adamw || s->sgd.velocity.data)
      CHECK_MSG(fabs((double)is[2] - m) <= 3e-7 * (fabs(was[2]) + fabs(was[1]) + fabs(was[0])) + 1e-44,
                "moment is %.9g, exactly %.12g", (double)is[2], m);
    if (!CHECK_MSG(fabs((double)is[0] - p) <= 1.3e-7 * fabs(was[0]) + 1e-6 * scale + 1e-44,
                   "param is %.9g, exactly %.12g", (double)is[0], p))
      return;
  }
}

static void test_steps(void) {
  mlkt_rng rng = mlkt_rng_case();
  team t = team_open();
  int round, k, i;
  for (round = 0; round < (mlkt_opt.quick ? 100 : 800) && !mlkt_hopeless(); round++) {
    int64_t shape[MLK_MAX_RANK];
    const int rank = shape_new(&rng, shape), how = round % 3 ? (int)mlkt_int(&rng, 0, 7) : 0;
    view *views[4];
    char *before[4], *want[4];
    step s;
    memset(&s, 0, sizeof s);
    s.is_adamw = round % 2;
    s.param = view_new(&rng, MLK_F32, rank, shape, how, 0);
    s.grad = view_new(&rng, MLK_F32, rank, shape, how, 1);
    s.m = view_new(&rng, MLK_F32, rank, shape, mlkt_int(&rng, 0, 1) ? how : 0, 0);
    s.v = view_new(&rng, MLK_F32, rank, shape, how, 0);
    views[0] = &s.param, views[1] = &s.grad, views[2] = &s.m, views[3] = &s.v;
    for (k = 0; k < 4; k++) view_fill(&rng, views[k], 0);
    for (i = 0; i < s.v.count; i++) mlkt_buffer_f32(&s.v.buffer)[i] = fabsf(mlkt_buffer_f32(&s.v.buffer)[i]);
    s.sgd.param = s.adamw.param = s.param.t;
    s.sgd.grad = s.adamw.grad = s.grad.t;
    s.adamw.m = s.m.t, s.adamw.v = s.v.t;
    s.adamw.step = mlkt_int(&rng, 1, 5) == 5 ? 1000000 : mlkt_int(&rng, 1, 200);
    s.sgd.lr = s.adamw.lr = mlkt_unit(&rng);
    s.sgd.weight_decay = s.adamw.weight_decay = mlkt_int(&rng, 0, 1) ? mlkt_unit(&rng) : 0.0f;
    s.adamw.beta1 = mlkt_int(&rng, 0, 1) ? mlkt_unit(&rng) : 0.0f;
    s.adamw.epsilon = mlkt_int(&rng, 0, 1) ? 1e-3f : 0.0f;
    s.sgd.momentum = mlkt_int(&rng, 0, 2) ? mlkt_unit(&rng) : 0.0f;
    s.sgd.nesterov = (int)mlkt_int(&rng, 0, 1);
    if (s.sgd.momentum > 0 || mlkt_int(&rng, 0, 1)) s.sgd.velocity = s.m.t;
    for (k = 0; k < 4; k++) {
      before[k] = (char *)malloc(views[k]->buffer.bytes + 1), want[k] = (char *)malloc(views[k]->buffer.bytes + 1);
      if (!before[k] || !want[k]) abort();
      copy_bytes(before[k], views[k]->buffer.data, views[k]->buffer.bytes);
    }
    mlkt_note("round %d, %s", round, s.is_adamw ? "adamw" : "sgd");
    CHECK_OK(t.reference, step_run(t.reference, &s));
    check_step(&s, (const char *const *)before);
    for (k = 0; k < 4; k++) copy_bytes(want[k], views[k]->buffer.data, views[k]->buffer.bytes);
    for (i = 0; i < t.count && !mlkt_hopeless(); i++) {
      for (k = 0; k < 4; k++) copy_bytes(views[k]->buffer.data, before[k], views[k]->buffer.bytes);
      CHECK_OK(t.ctx[i], step_run(t.ctx[i], &s));
      for (k = 0; k < 4; k++)
        mlkt_check_f32_n(mlkt_buffer_f32(&views[k]->buffer), (float *)(void *)want[k], views[k]->buffer.bytes / 4,
                         __FILE__, __LINE__, t.name[i]);
    }
    for (k = 0; k < 4; k++) free(before[k]), free(want[k]), view_free(views[k]);
  }
  team_close(&t);
}

/* Many steps of AdamW downhill on sum of (p - target)^2 / 2: f32 stays beside f64, and arrives. */
static void test_adamw_path(void) {
  enum { COUNT = 257, STEPS = 300 };
  static float p[COUNT], g[COUNT], m[COUNT], v[COUNT];
  static double dp[COUNT], dm[COUNT], dv[COUNT];
  mlk_context *ctx = mlkt_open(MLK_ISA_BEST, 1);
  mlk_adamw_desc d;
  double worst = 0, far = 0;
  int i;
  if (!ctx) return;
  memset(&d, 0, sizeof d);
  memset(p, 0, sizeof p), memset(m, 0, sizeof m), memset(v, 0, sizeof v);
  memset(dp, 0, sizeof dp), memset(dm, 0, sizeof dm), memset(dv, 0, sizeof dv);
  d.param = mlk_f32(p, COUNT), d.grad = mlk_f32(g, COUNT), d.m = mlk_f32(m, COUNT), d.v = mlk_f32(v, COUNT);
  d.lr = 0.05f;
  for (d.step = 1; d.step <= STEPS; d.step++) {
    for (i = 0; i < COUNT; i++) {
      const double target = 0.01 * (i - COUNT / 2), grad = dp[i] - target;
      g[i] = p[i] - (float)target;
      dm[i] = (double)0.9f * dm[i] + (1 - (double)0.9f) * grad;
      dv[i] = (double)0.999f * dv[i] + (1 - (double)0.999f) * grad * grad;
      dp[i] -= (double)0.05f * dm[i] / (1 - pow((double)0.9f, (double)d.step)) /
               (sqrt(dv[i] / (1 - pow((double)0.999f, (double)d.step))) + 1e-8);
    }
    CHECK_OK(ctx, mlk_adamw(ctx, &d));
  }
  for (i = 0; i < COUNT; i++) {
    worst = fmax(worst, fabs((double)p[i] - dp[i]));
    far = fmax(far, fabs((double)p[i] - 0.01 * (i - COUNT / 2)));
  }
  CHECK_MSG(worst < 1e-4, "f32 and f64 part by %g", worst);
  CHECK_MSG(far < 0.05, "%g from the minimum", far);
  mlk_close(ctx);
}

static void test_clip_norm(void) {
  enum { TENSORS = 3 };
  static const int64_t shapes[TENSORS][2] = {{3, 5}, {1, 70000}, {64, 33}};
  mlkt_rng rng = mlkt_rng_case();
  team t = team_open();
  int k, i, round;
  for (round = 0; round < 6; round++) {
    view grads[TENSORS];
    mlk_tensor list[TENSORS];
    char *before[TENSORS], *want[TENSORS];
    mlk_clip_norm_desc d;
    double sum = 0;
    float norm = -1, first_norm = -1;
    int64_t j;
    for (i = 0; i < TENSORS; i++) {
      grads[i] = view_new(&rng, MLK_F32, 2, shapes[i], round % 3 ? 7 : 0, 0);
      list[i] = grads[i].t;
      view_fill(&rng, &grads[i], 0);
      if (round == 5) *(float *)list[i].data = i == 1 ? INFINITY : 1.0f;
      for (j = 0; j < elements(&list[i]); j++) {
        const double x = (double)((float *)list[i].data)[offset_of(&list[i], &list[i], j)];
        sum += x * x;
      }
      before[i] = (char *)malloc(grads[i].buffer.bytes), want[i] = (char *)malloc(grads[i].buffer.bytes);
      if (!before[i] || !want[i]) abort();
      memcpy(before[i], grads[i].buffer.data, grads[i].buffer.bytes);
    }
    memset(&d, 0, sizeof d);
    d.grads = list, d.count = TENSORS, d.norm = &norm;
    d.max_norm = round == 1 ? 1e9f : round == 2 ? INFINITY : 0.5f;
    for (k = -1; k < t.count; k++) {
      mlk_context *ctx = k < 0 ? t.reference : t.ctx[k];
      mlk_plan plan;
      mlk_info info;
      mlkt_note("%s, round %d", k < 0 ? "reference" : t.name[k], round);
      for (i = 0; i < TENSORS; i++) memcpy(grads[i].buffer.data, before[i], grads[i].buffer.bytes);
      CHECK_OK(ctx, mlk_clip_norm_plan(ctx, &d, &plan));
      CHECK_OK(ctx, mlk_clip_norm(ctx, &d));
      CHECK_OK(ctx, mlk_get_info(ctx, &info));
      if (mlkt_opt.cuda) /* depends on strides, and those of an earlier round may have taken more */
        CHECK(info.workspace_bytes >= plan.workspace_bytes);
      else
        CHECK_EQ_I64(info.workspace_bytes, plan.workspace_bytes);
      if (k < 0) first_norm = norm;
      CHECK_BITS_F32(norm, first_norm);
      CHECK_MSG(round == 5 ? isinf(norm) : fabs((double)norm - sqrt(sum)) <= 1e-6 * sqrt(sum),
                "norm %.9g, exactly %.12g", (double)norm, sqrt(sum));
      for (i = 0; i < TENSORS; i++) {
        const float factor = norm > d.max_norm && !isinf(norm) ? d.max_norm / norm : 1.0f;
        if (k < 0) memcpy(want[i], grads[i].buffer.data, grads[i].buffer.bytes);
        CHECK_BITS_F32_N(mlkt_buffer_f32(&grads[i].buffer), (float *)(void *)want[i], grads[i].buffer.bytes / 4);
        for (j = 0; j < elements(&list[i]) && k < 0; j++) {
          const ptrdiff_t at = (char *)list[i].data - (char *)grads[i].buffer.data +
                               4 * offset_of(&list[i], &list[i], j);
          float old, now;
          memcpy(&old, before[i] + at, 4);
          memcpy(&now, (char *)grads[i].buffer.data + at, 4);
          if (!CHECK_BITS_F32(now, factor == 1.0f ? old : factor * old)) break;
        }
      }
    }
    for (i = 0; i < TENSORS; i++) free(before[i]), free(want[i]), view_free(&grads[i]);
  }
  team_close(&t);
}

/* ---- refusals ---------------------------------------------------------------------------------------------------- */

/* The call is refused with the status, the sentence contains text, and out keeps its rogue bytes; so does the plan, but
   that it looks for no overlap. */
static void refuse_map(mlk_context *ctx, const mlk_map_desc *d, const float *out, mlk_status status, const char *text) {
  mlk_plan plan;
  if (CHECK_STATUS(ctx, mlk_map(ctx, d), status))
    CHECK_MSG(strstr(mlk_last_error(ctx), text) != NULL, "\"%s\" without \"%s\"", mlk_last_error(ctx), text);
  CHECK(mlkt_is_rogue_f32(out, 64));
  CHECK_STATUS(ctx, mlk_map_plan(ctx, d, &plan), status == MLK_ERR_ALIAS ? MLK_OK : status);
}

static void test_map_refusals(void) {
  float out[64], a[64], b[64];
  int64_t whole[8];
  mlk_context *ctx = mlkt_open(MLK_ISA_BEST, 2);
  mlk_map_desc good, d;
  mlk_plan plan;
  if (!ctx) return;
  memset(a, 0, sizeof a), memset(b, 0, sizeof b);
  mlkt_rogue_f32(out, 64);
  memset(&good, 0, sizeof good);
  good.op = MLK_ADD;
  good.a = mlk_f32(a, 4, 8), good.b = mlk_f32(b, 8), good.out = mlk_f32(out, 4, 8);
  CHECK_EQ_I64(mlk_map(NULL, &good), MLK_ERR_ARGUMENT);
  CHECK_STATUS(ctx, mlk_map(ctx, NULL), MLK_ERR_ARGUMENT);
  CHECK_STATUS(ctx, mlk_map_plan(ctx, &good, NULL), MLK_ERR_ARGUMENT);
  d = good, d.op = MLK_MAP_OP_COUNT;
  refuse_map(ctx, &d, out, MLK_ERR_ARGUMENT, "op: is 12");
  d = good, d.activation = MLK_ACTIVATION_COUNT;
  refuse_map(ctx, &d, out, MLK_ERR_ARGUMENT, "activation: is 7");
  d = good, d.out.data = NULL;
  refuse_map(ctx, &d, out, MLK_ERR_ARGUMENT, "out: data is NULL");
  d = good, d.a.data = NULL;
  refuse_map(ctx, &d, out, MLK_ERR_ARGUMENT, "a: data is NULL");
  d = good, memset(&d.b, 0, sizeof d.b);
  refuse_map(ctx, &d, out, MLK_ERR_ARGUMENT, "b: ");
  d = good, d.op = MLK_SQRT;
  refuse_map(ctx, &d, out, MLK_ERR_ARGUMENT, "b: is given");
  d = good, d.a = mlk_i64(whole, 8);
  refuse_map(ctx, &d, out, MLK_ERR_DTYPE, "a: dtype is i64");
  d = good, d.b = mlk_i64(whole, 8);
  refuse_map(ctx, &d, out, MLK_ERR_DTYPE, "b: dtype is i64");
  d = good, d.out.dtype = MLK_U8;
  refuse_map(ctx, &d, out, MLK_ERR_DTYPE, "out: dtype is u8");
  d = good, d.out.dtype = 77;
  refuse_map(ctx, &d, out, MLK_ERR_DTYPE, "out: dtype is");
  d = good, d.a = mlk_f32(a, 4, 7);
  refuse_map(ctx, &d, out, MLK_ERR_SHAPE, "a: size of axis 1 is 7");
  d = good, d.a = mlk_f32(a, 2, 4, 8);
  refuse_map(ctx, &d, out, MLK_ERR_SHAPE, "a: rank is 3");
  d = good, d.out = mlki_explicit_strides(d.out), d.out.stride[0] = 0;
  refuse_map(ctx, &d, out, MLK_ERR_SHAPE, "out: an output");
  d = good, d.out.shape[0] = -1;
  refuse_map(ctx, &d, out, MLK_ERR_SHAPE, "out: size of axis 0");
  d = good, d.out.shape[0] = INT64_MAX / 4;
  refuse_map(ctx, &d, out, MLK_ERR_SIZE, "out: ");
  d = good, d.out.rank = 0;
  refuse_map(ctx, &d, out, MLK_ERR_SHAPE, "out: rank is 0");
  d = good, d.a = mlk_f32(out + 1, 4, 8);
  refuse_map(ctx, &d, out, MLK_ERR_ALIAS, "out: overlaps a");
  d = good, d.b = mlk_f32(out, 8);
  refuse_map(ctx, &d, out, MLK_ERR_ALIAS, "out: overlaps b");
  d = good, d.op = MLK_COPY, memset(&d.b, 0, sizeof d.b), d.a = mlk_bf16((uint16_t *)(void *)out, 4, 8);
  refuse_map(ctx, &d, out, MLK_ERR_ALIAS, "out: overlaps a");
  d = good, d.a = mlk_transposed(mlk_f32(out, 8, 8)), d.out = mlk_f32(out, 8, 8), d.b = mlk_f32(b, 8);
  refuse_map(ctx, &d, out, MLK_ERR_ALIAS, "out: overlaps a");
  /* columns of one matrix do not overlap */
  d = good, d.a = mlk_slice(mlk_f32(out, 8, 8), 1, 0, 3), d.out = mlk_slice(mlk_f32(out, 8, 8), 1, 4, 3);
  d.b = mlk_f32(b, 3);
  CHECK_OK(ctx, mlk_map(ctx, &d));
  CHECK_OK(ctx, mlk_map_plan(ctx, &good, &plan));
  CHECK_EQ_I64(plan.flops, 32);
  CHECK_EQ_I64(plan.bytes, 4 * (32 + 8 + 32));
  CHECK_EQ_I64(plan.workspace_bytes, 0);
  mlk_close(ctx);
}

static void test_reduce_refusals(void) {
  float out[8], x[64];
  const float beta = 1.0f;
  mlk_context *ctx = mlkt_open(MLK_ISA_BEST, 2);
  mlk_reduce_desc good, d;
  mlk_plan plan;
  int i;
  const struct {
    mlk_status status;
    const char *text;
  } want[] = {
      {MLK_ERR_ARGUMENT, "op: is 6"},
      {MLK_ERR_ARGUMENT, "axes: is 0x0"},
      {MLK_ERR_ARGUMENT, "axes: is 0x4"},
      {MLK_ERR_ARGUMENT, "beta: is given"},
      {MLK_ERR_SHAPE, "out: size of axis 0 is 7"},
      {MLK_ERR_SHAPE, "out: rank is 3"},
      {MLK_ERR_SHAPE, "out: size of axis 0 is 8"},
      {MLK_ERR_DTYPE, "out: dtype is f32"},
      {MLK_ERR_ALIAS, "out: overlaps x"},
      {MLK_ERR_ARGUMENT, "x: data is NULL"},
      {MLK_ERR_SHAPE, "out: an output"},
  };
  if (!ctx) return;
  memset(x, 0, sizeof x);
  memset(&good, 0, sizeof good);
  good.x = mlk_f32(x, 4, 8), good.out = mlk_f32(out, 8), good.axes = 1;
  CHECK_EQ_I64(mlk_reduce(NULL, &good), MLK_ERR_ARGUMENT);
  CHECK_STATUS(ctx, mlk_reduce(ctx, NULL), MLK_ERR_ARGUMENT);
  CHECK_STATUS(ctx, mlk_reduce_plan(ctx, &good, NULL), MLK_ERR_ARGUMENT);
  for (i = 0; i < COUNT_OF(want); i++) {
    d = good;
    mlkt_rogue_f32(out, 8);
    if (i == 0) d.op = MLK_REDUCE_OP_COUNT;
    if (i == 1) d.axes = 0;
    if (i == 2) d.axes = 4;
    if (i == 3) d.beta = &beta, d.op = MLK_MAX;
    if (i == 4) d.out = mlk_f32(out, 7);
    if (i == 5) d.out = mlk_f32(out, 1, 1, 8);
    if (i == 6) d.axes = 3;
    if (i == 7) d.op = MLK_ARGMAX;
    if (i == 8) d.out = mlk_f32(x + 8, 8);
    if (i == 9) d.x.data = NULL;
    if (i == 10) d.out.shape[0] = 8, d.out.rank = 2, d.out.shape[1] = 8, d.out.shape[0] = 1, d.out.stride[0] = 1;
    mlkt_note("refusal %d", i);
    if (CHECK_STATUS(ctx, mlk_reduce(ctx, &d), want[i].status))
      CHECK_MSG(strstr(mlk_last_error(ctx), want[i].text) != NULL, "\"%s\" without \"%s\"", mlk_last_error(ctx),
                want[i].text);
    CHECK(mlkt_is_rogue_f32(out, 8));
    CHECK_STATUS(ctx, mlk_reduce_plan(ctx, &d, &plan), want[i].status == MLK_ERR_ALIAS ? MLK_OK : want[i].status);
  }
  CHECK_OK(ctx, mlk_reduce_plan(ctx, &good, &plan));
  CHECK_EQ_I64(plan.flops, 32);
  CHECK_EQ_I64(plan.bytes, 4 * (32 + 8));
  mlk_close(ctx);
}

static void test_step_refusals(void) {
  float p[16], g[16], m[16], v[16], norm = 5;
  mlk_context *ctx = mlkt_open(MLK_ISA_BEST, 2);
  mlk_tensor list[2];
  mlk_sgd_desc sgd;
  mlk_adamw_desc adamw;
  mlk_clip_norm_desc clip;
  mlk_plan plan;
  int i;
  static const char *const sgd_text[] = {
      "lr: is -1",  "momentum: is nan",         "weight_decay: is inf", "param: data", "grad: size of axis 0",
      "velocity: ", "velocity: overlaps param", "grad: overlaps param"};
  static const char *const adamw_text[] = {"step: is 0", "beta1: is 1", "beta2: is -0.5", "epsilon: is -1",
                                           "v: overlaps m"};
  static const char *const clip_text[] = {"count: is -1", "grads: is NULL", "max_norm: is 0",
                                          "grads[1]: overlaps grads[0]", "grads[1]: dtype"};
  if (!ctx) return;
  mlkt_rogue_f32(p, 16), mlkt_rogue_f32(g, 16), mlkt_rogue_f32(m, 16), mlkt_rogue_f32(v, 16);
  CHECK_EQ_I64(mlk_sgd(NULL, NULL), MLK_ERR_ARGUMENT);
  CHECK_EQ_I64(mlk_adamw(NULL, NULL), MLK_ERR_ARGUMENT);
  CHECK_EQ_I64(mlk_clip_norm(NULL, NULL), MLK_ERR_ARGUMENT);
  CHECK_STATUS(ctx, mlk_sgd(ctx, NULL), MLK_ERR_ARGUMENT);
  CHECK_STATUS(ctx, mlk_adamw(ctx, NULL), MLK_ERR_ARGUMENT);
  CHECK_STATUS(ctx, mlk_clip_norm(ctx, NULL), MLK_ERR_ARGUMENT);
  for (i = 0; i < COUNT_OF(sgd_text); i++) {
    memset(&sgd, 0, sizeof sgd);
    sgd.param = mlk_f32(p, 16), sgd.grad = mlk_f32(g, 16), sgd.velocity = mlk_f32(m, 16);
    sgd.lr = 1, sgd.momentum = 0.5f;
    if (i == 0) sgd.lr = -1;
    if (i == 1) sgd.momentum = NAN;
    if (i == 2) sgd.weight_decay = INFINITY;
    if (i == 3) sgd.param.data = NULL;
    if (i == 4) sgd.grad = mlk_f32(g, 15);
    if (i == 5) memset(&sgd.velocity, 0, sizeof sgd.velocity);
    if (i == 6) sgd.velocity = sgd.param;
    if (i == 7) sgd.grad = sgd.param;
    mlkt_note("sgd %d", i);
    CHECK(mlk_sgd(ctx, &sgd) != MLK_OK);
    CHECK_MSG(strstr(mlk_last_error(ctx), sgd_text[i]) != NULL, "\"%s\" without \"%s\"", mlk_last_error(ctx),
              sgd_text[i]);
    CHECK((mlk_sgd_plan(ctx, &sgd, &plan) == MLK_OK) == (i >= 6));
  }
  for (i = 0; i < COUNT_OF(adamw_text); i++) {
    memset(&adamw, 0, sizeof adamw);
    adamw.param = mlk_f32(p, 16), adamw.grad = mlk_f32(g, 16), adamw.m = mlk_f32(m, 16), adamw.v = mlk_f32(v, 16);
    adamw.step = i > 0;
    if (i == 1) adamw.beta1 = 1;
    if (i == 2) adamw.beta2 = -0.5f;
    if (i == 3) adamw.epsilon = -1;
    if (i == 4) adamw.v = adamw.m;
    mlkt_note("adamw %d", i);
    CHECK(mlk_adamw(ctx, &adamw) != MLK_OK);
    CHECK_MSG(strstr(mlk_last_error(ctx), adamw_text[i]) != NULL, "\"%s\" without \"%s\"", mlk_last_error(ctx),
              adamw_text[i]);
    CHECK((mlk_adamw_plan(ctx, &adamw, &plan) == MLK_OK) == (i >= 4));
  }
  for (i = 0; i < COUNT_OF(clip_text); i++) {
    memset(&clip, 0, sizeof clip);
    list[0] = mlk_f32(p, 16), list[1] = mlk_f32(g, 16);
    clip.grads = list, clip.count = 2, clip.max_norm = 1, clip.norm = &norm;
    if (i == 0) clip.count = -1;
    if (i == 1) clip.grads = NULL;
    if (i == 2) clip.max_norm = 0;
    if (i == 3) list[1] = mlk_f32(p + 15, 1);
    if (i == 4) list[1].dtype = MLK_BF16;
    mlkt_note("clip %d", i);
    CHECK(mlk_clip_norm(ctx, &clip) != MLK_OK);
    CHECK_MSG(strstr(mlk_last_error(ctx), clip_text[i]) != NULL, "\"%s\" without \"%s\"", mlk_last_error(ctx),
              clip_text[i]);
    CHECK((mlk_clip_norm_plan(ctx, &clip, &plan) == MLK_OK) == (i == 3));
  }
  CHECK(norm == 5.0f);
  CHECK(mlkt_is_rogue_f32(p, 16) && mlkt_is_rogue_f32(g, 16) && mlkt_is_rogue_f32(m, 16) && mlkt_is_rogue_f32(v, 16));
  mlk_close(ctx);
}

/* Operators without a workspace never ask the allocator for anything. */
static void test_no_allocations(void) {
  enum { COUNT = 300000 };
  float *x = (float *)calloc(4 * COUNT, sizeof *x);
  mlk_context_desc desc = mlkt_context_desc(MLK_ISA_BEST, mlkt_opt.threads_max);
  mlkt_memory memory;
  mlk_context *ctx;
  mlk_map_desc map;
  mlk_adamw_desc adamw;
  mlk_sgd_desc sgd;
  memset(&memory, 0, sizeof memory), memset(&map, 0, sizeof map);
  memset(&adamw, 0, sizeof adamw), memset(&sgd, 0, sizeof sgd);
  desc.allocator = mlkt_memory_hook(&memory);
  if (!x || !CHECK_EQ_I64(mlk_open(&ctx, &desc), MLK_OK)) return;
  if (!mlkt_opt.cuda) memory.fail_at = memory.calls + 1, memory.fail_for_ever = 1; /* staging takes lists from it */
  map.a = mlk_transposed(mlk_f32(x, 300, 1000)), map.out = mlk_f32(x + COUNT, 1000, 300);
  CHECK_OK(ctx, mlk_map(ctx, &map));
  adamw.param = mlk_f32(x, COUNT), adamw.grad = mlk_f32(x + COUNT, COUNT), adamw.m = mlk_f32(x + 2 * COUNT, COUNT);
  adamw.v = mlk_f32(x + 3 * COUNT, COUNT), adamw.step = 1;
  CHECK_OK(ctx, mlk_adamw(ctx, &adamw));
  sgd.param = adamw.param, sgd.grad = adamw.grad;
  CHECK_OK(ctx, mlk_sgd(ctx, &sgd));
  CHECK_EQ_I64(memory.failed, 0);
  mlk_close(ctx);
  CHECK_MEMORY_EMPTY(&memory);
  free(x);
}

const mlkt_case mlkt_map_cases[] = {
    {"map/views", test_views},
    {"map/convert_views", test_convert_views},
    {"map/reduce_views", test_reduce_views},
    {"map/long_sums", test_long_sums},
    {"map/halves", test_halves},
    {"map/floats", test_floats},
    {"map/integers", test_integers},
    {"map/differences", test_differences},
    {"map/steps", test_steps},
    {"map/adamw_path", test_adamw_path},
    {"map/clip_norm", test_clip_norm},
    {"map/map_refusals", test_map_refusals},
    {"map/reduce_refusals", test_reduce_refusals},
    {"map/step_refusals", test_step_refusals},
    {"map/no_allocations", test_no_allocations},
    {NULL, NULL},
};
