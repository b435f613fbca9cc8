/* test_map.c - elementwise maps, conversions, reductions and optimiser steps.

   Every row and thread count is compared bit for bit with MLK_ISA_REFERENCE over random views: permuted, padded, mirrored,
   broadcast. The reference itself is compared with forms written here, in f64 or bit by bit, from the manual alone. */

#include "test.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define COUNT_OF(array) ((int)(sizeof(array) / sizeof(array)[0]))

/* ---- contexts ------------------------------------------------------------------------------------------------------- */

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

/* ---- random views --------------------------------------------------------------------------------------------------- */

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

/* Strides by a random order of the axes, with gaps and mirrored axes now and then. repeat: an input, whose axes may have
   stride 0. Of views without gaps, mirrors and another order there are enough: how 0. */
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

/* ---- maps against the reference ----------------------------------------------------------------------------------------- */

static int has_b(mlk_map_op op) {
  return op == MLK_ADD || op == MLK_SUB || op == MLK_MUL || op == MLK_DIV || op == MLK_ACT_GRAD;
}

static void copy_bytes(void *to, const void *from, size_t bytes) {
  if (bytes) memcpy(to, from, bytes);
}

/* The same call on the reference and on every member of the team, from the same memory of out; gaps of out included. The
   reference's result stays in out. */
static void map_on_all(team *t, mlk_map_desc *d, view *out) {
  const size_t bytes = out->buffer.bytes;
  char *before = (char *)malloc(bytes + 1), *want = (char *)malloc(bytes + 1);
  int i;
  if (!before || !want) abort();
  copy_bytes(before, out->buffer.data, bytes);
  CHECK_OK(t->reference, mlk_map(t->reference, d));
  copy_bytes(want, out->buffer.data, bytes);
  for (i = 0; i < t->count; i++) {
    copy_bytes(out->buffer.data, before, bytes);
    if (!CHECK_OK(t->ctx[i], mlk_map(t->ctx[i], d))) break;
    if (out->t.dtype == MLK_F32) {
      if (!mlkt_check_f32_n(mlkt_buffer_f32(&out->buffer), (float *)(void *)want, bytes / 4, __FILE__, __LINE__,
                            t->name[i]))
        break;
    } else if (!CHECK_MSG(bytes == 0 || memcmp(out->buffer.data, want, bytes) == 0, "%s differs", t->name[i])) {
      break;
    }
  }
  copy_bytes(out->buffer.data, want, bytes);
  free(before);
  free(want);
}

static void test_views(void) {
  mlkt_rng rng = mlkt_rng_case();
  team t = team_open();
  int round;
  for (round = 0; round < (mlkt_opt.quick ? 300 : 4000) && !mlkt_hopeless(); round++) {
    int64_t shape[MLK_MAX_RANK];
    const int rank = shape_new(&rng, shape);
    const float alpha = mlkt_signed(&rng), beta = mlkt_signed(&rng);
    view out = view_new(&rng, MLK_F32, rank, shape, (int)mlkt_int(&rng, 0, 7), 0);
    view a = input_new(&rng, MLK_F32, &out.t), b = input_new(&rng, MLK_F32, &out.t);
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
    map_on_all(&t, &d, &out);
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
  for (round = 0; round < (mlkt_opt.quick ? 300 : 4000) && !mlkt_hopeless(); round++) {
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
    map_on_all(&t, &d, &out);
    view_free(&out);
    view_free(&a);
  }
  team_close(&t);
}

/* ---- reductions against the reference ------------------------------------------------------------------------------------- */

static void reduce_on_all(team *t, mlk_reduce_desc *d, view *out) {
  const size_t bytes = out->buffer.bytes;
  char *before = (char *)malloc(bytes + 1), *want = (char *)malloc(bytes + 1);
  int i;
  if (!before || !want) abort();
  copy_bytes(before, out->buffer.data, bytes);
  CHECK_OK(t->reference, mlk_reduce(t->reference, d));
  copy_bytes(want, out->buffer.data, bytes);
  for (i = 0; i < t->count; i++) {
    copy_bytes(out->buffer.data, before, bytes);
    if (!CHECK_OK(t->ctx[i], mlk_reduce(t->ctx[i], d))) break;
    if (out->t.dtype == MLK_F32) {
      if (!mlkt_check_f32_n(mlkt_buffer_f32(&out->buffer), (float *)(void *)want, bytes / 4, __FILE__, __LINE__,
                            t->name[i]))
        break;
    } else if (!mlkt_check_i64_n(mlkt_buffer_i64(&out->buffer), (int64_t *)(void *)want, bytes / 8, __FILE__, __LINE__,
                                 t->name[i])) {
      break;
    }
  }
  copy_bytes(out->buffer.data, want, bytes);
  free(before);
  free(want);
}

static void test_reduce_views(void) {
  mlkt_rng rng = mlkt_rng_case();
  team t = team_open();
  int round;
  for (round = 0; round < (mlkt_opt.quick ? 300 : 4000) && !mlkt_hopeless(); round++) {
    int64_t shape[MLK_MAX_RANK], kept[MLK_MAX_RANK];
    const int rank = shape_new(&rng, shape), whole = (int)mlkt_int(&rng, 0, 1);
    const float beta = mlkt_signed(&rng);
    view x = view_new(&rng, MLK_F32, rank, shape, (int)mlkt_int(&rng, 0, 7), 1), out;
    int i, kept_rank = 0;
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
    reduce_on_all(&t, &d, &out);
    view_free(&out);
    view_free(&x);
  }
  team_close(&t);
}

const mlkt_case mlkt_map_cases[] = {
    {"map/views", test_views},
    {"map/convert_views", test_convert_views},
    {"map/reduce_views", test_reduce_views},
    {NULL, NULL},
};
