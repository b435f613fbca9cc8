/* test_cuda_map.c - maps, reductions, optimiser steps, clipping and means on a device, where what runs depends on how
   memory lies: vectors and their tails at any address, tiles that are transposed, every way to reduce, lists that take
   several launches. Bits must be those of the reference on the CPU, in operands and in all memory around them. */

#include "test.h"

#include <math.h>
#include <stdlib.h>

/* One block of memory on the host and one on the device with the same contents; operands are views of it. */
typedef struct arena {
  mlk_context *cpu, *device;
  char *host, *there, *back;
  uint64_t bytes, used;
} arena;

static void arena_open(arena *a, uint64_t bytes) {
  memset(a, 0, sizeof *a);
  a->cpu = mlkt_open(MLK_ISA_REFERENCE, 1), a->device = mlkt_open(MLK_ISA_BEST, 1);
  a->bytes = bytes;
  a->host = (char *)malloc((size_t)bytes), a->back = (char *)malloc((size_t)bytes);
  if (!a->cpu || !a->device || !a->host || !a->back) abort();
  if (!CHECK_OK(a->device, mlk_alloc(a->device, bytes, (void **)&a->there))) abort();
}

static void arena_close(arena *a) {
  mlk_free(a->device, a->there, a->bytes);
  mlk_close(a->cpu), mlk_close(a->device);
  free(a->host), free(a->back);
}

/* Fills both with numbers that are finite as f32, f16 and bf16 alike, of magnitude below 2, and
   forgets all operands. */
static void arena_fill(arena *a, mlkt_rng *rng) {
  uint64_t i;
  for (i = 0; i + 8 <= a->bytes; i += 8) {
    const uint64_t bits = mlkt_u64(rng) & UINT64_C(0xbfbfbfbfbfbfbfbf);
    memcpy(a->host + i, &bits, 8);
  }
  a->used = 0;
  CHECK_OK(a->device, mlk_copy(a->device, a->there, a->host, a->bytes));
}

static uint64_t dtype_bytes(mlk_dtype dtype) {
  return dtype == MLK_U8 ? 1 : dtype == MLK_F32 ? 4 : dtype == MLK_I64 ? 8 : 2;
}

/* Room for elements of a type, the first of them `beyond` elements behind a multiple of 64
   bytes: an offset, as data. */
static void *arena_take(arena *a, mlk_dtype dtype, int64_t elements, int64_t beyond) {
  const uint64_t at = (a->used + 63) / 64 * 64 + (uint64_t)beyond * dtype_bytes(dtype);
  a->used = at + (uint64_t)elements * dtype_bytes(dtype);
  if (a->used > a->bytes) abort();
  return (void *)(uintptr_t)(at + 64); /* never NULL, which is absent */
}

static mlk_tensor on(const char *base, mlk_tensor t) {
  if (t.data) t.data = (void *)((uintptr_t)base + (uintptr_t)t.data - 64);
  return t;
}

/* The device's memory equals the host's. */
static int arena_agrees(arena *a) {
  uint64_t i;
  if (!CHECK_OK(a->device, mlk_copy(a->device, a->back, a->there, a->bytes)) ||
      !CHECK_OK(a->device, mlk_sync(a->device)))
    return 0;
  if (memcmp(a->host, a->back, (size_t)a->bytes) == 0) return mlkt_pass();
  for (i = 0; a->host[i] == a->back[i];) i++;
  return CHECK_MSG(0, "memory differs from byte %" PRIu64 " on", i);
}

static mlk_tensor tensor_of(mlk_dtype dtype, int rank, const int64_t *shape) {
  mlk_tensor t;
  int i;
  memset(&t, 0, sizeof t);
  t.dtype = (int32_t)dtype, t.rank = rank;
  for (i = 0; i < rank; i++) t.shape[i] = shape[i];
  return t;
}

/* [rows, cols] with a row stride, beyond elements off alignment. */
static mlk_tensor matrix_of(arena *a, mlk_dtype dtype, int64_t rows, int64_t cols, int64_t pitch, int64_t beyond) {
  const int64_t shape[2] = {rows, cols};
  mlk_tensor t = tensor_of(dtype, 2, shape);
  t.stride[0] = pitch, t.stride[1] = 1;
  t.data = arena_take(a, dtype, rows * pitch, beyond);
  return t;
}

static int run_map(arena *a, const mlk_map_desc *d, const char *variant) {
  mlk_map_desc host = *d, device = *d;
  mlk_plan plan;
  host.a = on(a->host, d->a), host.b = on(a->host, d->b), host.out = on(a->host, d->out);
  device.a = on(a->there, d->a), device.b = on(a->there, d->b), device.out = on(a->there, d->out);
  return CHECK_OK(a->cpu, mlk_map(a->cpu, &host)) && CHECK_OK(a->device, mlk_map_plan(a->device, &device, &plan)) &&
         (!variant || !mlkt_opt.cuda || CHECK_EQ_STR(plan.variant, variant)) &&
         CHECK_OK(a->device, mlk_map(a->device, &device)) && arena_agrees(a);
}

static int has_b(mlk_map_op op) {
  return op == MLK_ADD || op == MLK_SUB || op == MLK_MUL || op == MLK_DIV || op == MLK_ACT_GRAD;
}

/* ---- vectors, at any address ------------------------------------------------------------------------------------- */

static void test_vectors(void) {
  static const mlk_map_op ops[] = {MLK_COPY, MLK_COPY, MLK_SCALE, MLK_ADD, MLK_MUL, MLK_ACT, MLK_ACT_GRAD, MLK_ERF};
  static const mlk_activation acts[] = {MLK_RELU, MLK_SILU, MLK_NONE};
  mlkt_rng rng = mlkt_rng_case();
  arena a;
  int round;
  arena_open(&a, 1 << 18);
  for (round = 0; round < (mlkt_opt.quick ? 60 : 600) && !mlkt_hopeless(); round++) {
    const float alpha = 1.5f, beta = -0.25f;
    const int64_t cols = mlkt_int(&rng, 0, 2) ? mlkt_int(&rng, 1, 40) : mlkt_int(&rng, 900, 3000);
    const int64_t rows = mlkt_int(&rng, 0, 1) ? 1 : mlkt_int(&rng, 1, 3), step = mlkt_int(&rng, 0, 1) ? 4 : 1;
    const int64_t pitch = (cols + step - 1) / step * step + step * mlkt_int(&rng, 0, 2);
    const int64_t beyond = mlkt_int(&rng, 0, 7), apart = mlkt_int(&rng, 0, 2) == 0;
    mlk_map_desc d;
    arena_fill(&a, &rng);
    memset(&d, 0, sizeof d);
    d.op = ops[round % 8], d.activation = acts[mlkt_int(&rng, 0, 2)], d.alpha = &alpha, d.beta = &beta;
    d.out = matrix_of(&a, d.op ? MLK_F32 : (mlk_dtype)mlkt_int(&rng, 0, MLK_DTYPE_COUNT - 1), rows, cols, pitch,
                      beyond);
    d.a = matrix_of(&a, d.op ? MLK_F32 : (mlk_dtype)mlkt_int(&rng, 0, MLK_DTYPE_COUNT - 1), rows, cols, pitch,
                    apart ? mlkt_int(&rng, 0, 7) : beyond);
    if (mlkt_int(&rng, 0, 9) == 0) d.a = d.out;
    if (has_b(d.op)) {
      d.b = matrix_of(&a, MLK_F32, mlkt_int(&rng, 0, 1) ? 1 : rows, cols, pitch, apart ? mlkt_int(&rng, 0, 3) : beyond);
      if (mlkt_int(&rng, 0, 4) == 0) d.b.shape[1] = 1;
    }
    mlkt_note("round %d: op %d, %d x %d, pitch %d, dtype %d to %d, beyond %d%s", round, (int)d.op, (int)rows, (int)cols,
              (int)pitch, (int)d.a.dtype, (int)d.out.dtype, (int)beyond, apart ? ", apart" : "");
    run_map(&a, &d, NULL);
  }
  arena_close(&a);
}

/* ---- transposes -------------------------------------------------------------------------------------------------- */

/* A view of three axes that lie in memory in the order given, outermost first. */
static mlk_tensor ordered(arena *a, mlk_dtype dtype, const int64_t *shape, const int *order, int64_t gap) {
  mlk_tensor t = tensor_of(dtype, 3, shape);
  int64_t step = 1;
  int i;
  for (i = 2; i >= 0; i--) t.stride[order[i]] = step, step *= shape[order[i]] + (i == 2 ? gap : 0);
  t.data = arena_take(a, dtype, step, gap);
  return t;
}

static void test_turns(void) {
  static const int orders[6][3] = {{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};
  static const int64_t shapes[][3] = {{1, 64, 64}, {2, 65, 130}, {3, 9, 200},  {1, 200, 8},
                                      {5, 33, 70}, {70, 9, 11},  {1, 129, 63}, {2, 7, 300}};
  static const mlk_map_op ops[] = {MLK_COPY, MLK_COPY, MLK_COPY, MLK_ADD, MLK_SUB, MLK_ACT};
  mlkt_rng rng = mlkt_rng_case();
  arena a;
  int round;
  arena_open(&a, 1 << 20);
  for (round = 0; round < (mlkt_opt.quick ? 40 : 400) && !mlkt_hopeless(); round++) {
    const int64_t *shape = shapes[mlkt_int(&rng, 0, 7)], gap = mlkt_int(&rng, 0, 2);
    const mlk_map_op op = ops[round % 6];
    const mlk_dtype from = op ? MLK_F32 : (mlk_dtype)mlkt_int(&rng, 0, MLK_DTYPE_COUNT - 1);
    const mlk_dtype to = op ? MLK_F32 : round % 2 ? from : (mlk_dtype)mlkt_int(&rng, 0, MLK_DTYPE_COUNT - 1);
    mlk_map_desc d;
    arena_fill(&a, &rng);
    memset(&d, 0, sizeof d);
    d.op = op, d.activation = MLK_GELU;
    d.out = ordered(&a, to, shape, orders[mlkt_int(&rng, 0, 5)], gap);
    d.a = ordered(&a, from, shape, orders[mlkt_int(&rng, 0, 5)], gap);
    if (has_b(op)) d.b = ordered(&a, MLK_F32, shape, orders[mlkt_int(&rng, 0, 5)], gap);
    mlkt_note("round %d: op %d, %d x %d x %d, gap %d, dtype %d to %d", round, (int)op, (int)shape[0], (int)shape[1],
              (int)shape[2], (int)gap, (int)from, (int)to);
    run_map(&a, &d, NULL);
  }
  arena_fill(&a, &rng);
  {
    const int64_t shape[3] = {1, 100, 70};
    mlk_map_desc d;
    memset(&d, 0, sizeof d);
    mlkt_note("which way");
    d.out = ordered(&a, MLK_F32, shape, orders[0], 0), d.a = ordered(&a, MLK_F32, shape, orders[1], 0);
    run_map(&a, &d, "tiles");
    d.a = d.out, d.out = ordered(&a, MLK_F16, shape, orders[0], 0);
    run_map(&a, &d, "vectors");
    d.a = d.out, d.out = ordered(&a, MLK_F16, shape, orders[0], 1);
    run_map(&a, &d, "elements");
  }
  arena_close(&a);
}

/* ---- reductions -------------------------------------------------------------------------------------------------- */

typedef struct reduction {
  int64_t shape[3], stride[3]; /* stride: all 0 means dense */
  unsigned axes;
  const char *how;
} reduction;

static void run_reduction(arena *a, const reduction *c, mlk_reduce_op op, const float *beta, int64_t beyond) {
  mlk_reduce_desc d, host, device;
  int64_t kept[3], span = 1, count = 1;
  mlk_plan plan;
  int i;
  memset(&d, 0, sizeof d);
  d.op = op, d.axes = c->axes, d.beta = op <= MLK_SUM_SQUARES ? beta : NULL;
  d.x = tensor_of(MLK_F32, 3, c->shape);
  for (i = 0; i < 3; i++) {
    kept[i] = c->axes >> i & 1 ? 1 : c->shape[i], count *= c->shape[i];
    d.x.stride[i] = c->stride[i], span += (c->shape[i] - 1) * c->stride[i];
  }
  d.x.data = arena_take(a, MLK_F32, span > 1 ? span : count, beyond);
  d.out = tensor_of(op == MLK_ARGMAX ? MLK_I64 : MLK_F32, 3, kept);
  d.out.data = arena_take(a, (mlk_dtype)d.out.dtype, kept[0] * kept[1] * kept[2], op == MLK_ARGMAX ? 0 : beyond);
  host = device = d;
  host.x = on(a->host, d.x), host.out = on(a->host, d.out);
  device.x = on(a->there, d.x), device.out = on(a->there, d.out);
  if (!CHECK_OK(a->cpu, mlk_reduce(a->cpu, &host)) || !CHECK_OK(a->device, mlk_reduce_plan(a->device, &device, &plan)))
    return;
  if (mlkt_opt.cuda) CHECK_EQ_STR(plan.variant, c->how);
  if (CHECK_OK(a->device, mlk_reduce(a->device, &device))) arena_agrees(a);
}

static void test_reductions(void) {
  static const reduction table[] = {
      {{1, 1, 100000}, {0, 0, 0}, 4, "staged"}, /* four segments, vectors where aligned */
      {{1, 3, 33001}, {0, 0, 0}, 4, "staged"},  /* odd rows: elements */
      {{4, 3, 9000}, {0, 0, 0}, 5, "staged"},   /* the channels of an image: two axes, vectors */
      {{4, 3, 9001}, {0, 0, 0}, 5, "staged"},   /* the same, elements */
      {{1, 2, 5000}, {0, 1, 2}, 4, "staged"},   /* a few columns */
      {{1, 200, 600}, {0, 0, 0}, 4, "staged"},  /* few rows */
      {{1, 50, 300}, {0, 0, 0}, 4, "rows"},     /* short rows */
      {{1, 2000, 100}, {0, 0, 0}, 4, "rows"},     {{1, 3000, 10}, {0, 0, 0}, 4, "each"}, /* very short ones */
      {{1, 20, 5000}, {0, 0, 0}, 2, "each"},                                             /* few rows, many columns */
      {{1, 2000, 70}, {0, 0, 0}, 2, "columns"},   {{1, 70000, 33}, {0, 0, 0}, 2, "columns"}, /* in segments */
      {{6, 50, 40}, {0, 0, 0}, 3, "columns"},                                                /* two axes that merge */
      {{6, 50, 40}, {2100, 41, 1}, 3, "columns"},                                            /* and two that do not */
      {{1, 1, 1}, {0, 0, 0}, 7, "each"},
  };
  const float beta = 0.5f;
  mlkt_rng rng = mlkt_rng_case();
  arena a;
  int op;
  size_t i;
  arena_open(&a, 10 << 20);
  for (i = 0; i < sizeof table / sizeof *table && !mlkt_hopeless(); i++)
    for (op = 0; op < MLK_REDUCE_OP_COUNT; op++) {
      const int64_t beyond = mlkt_int(&rng, 0, 2) ? 0 : mlkt_int(&rng, 1, 3);
      if (!mlkt_keep(i * MLK_REDUCE_OP_COUNT + (size_t)op) && op != (int)(i % 3)) continue;
      arena_fill(&a, &rng);
      mlkt_note("reduction %d, op %d, beyond %d", (int)i, op, (int)beyond);
      run_reduction(&a, &table[i], (mlk_reduce_op)op, mlkt_int(&rng, 0, 1) ? &beta : NULL, beyond);
    }
  arena_close(&a);
}

/* ---- optimiser steps --------------------------------------------------------------------------------------------- */

static void test_steps(void) {
  mlkt_rng rng = mlkt_rng_case();
  arena a;
  int round;
  arena_open(&a, 1 << 18);
  for (round = 0; round < (mlkt_opt.quick ? 20 : 150) && !mlkt_hopeless(); round++) {
    const int64_t n = mlkt_int(&rng, 1, mlkt_int(&rng, 0, 1) ? 20 : 5000), beyond = mlkt_int(&rng, 0, 3);
    const int apart = mlkt_int(&rng, 0, 3) == 0;
    mlk_tensor t[4];
    mlk_sgd_desc sgd;
    mlk_adamw_desc adamw;
    int k, side;
    arena_fill(&a, &rng);
    for (k = 0; k < 4; k++) {
      t[k] = tensor_of(MLK_F32, 1, &n), t[k].data = arena_take(&a, MLK_F32, n, apart ? mlkt_int(&rng, 0, 3) : beyond);
    }
    for (k = 0; k < (int)n; k++) { /* the second moment is not negative */
      char *v = a.host + ((uintptr_t)t[3].data - 64) + 4 * k + 3;
      *v = (char)(*v & 0x7f);
    }
    CHECK_OK(a.device, mlk_copy(a.device, a.there, a.host, a.bytes));
    mlkt_note("round %d: %d elements, beyond %d%s", round, (int)n, (int)beyond, apart ? ", apart" : "");
    for (side = 0; side < 2; side++) {
      mlk_context *ctx = side ? a.device : a.cpu;
      const char *base = side ? a.there : a.host;
      memset(&sgd, 0, sizeof sgd), memset(&adamw, 0, sizeof adamw);
      sgd.param = on(base, t[0]), sgd.grad = on(base, t[1]), sgd.lr = 0.1f, sgd.weight_decay = 0.01f;
      sgd.momentum = round % 3 ? 0.9f : 0.0f, sgd.nesterov = round % 2;
      if (round % 3) sgd.velocity = on(base, t[2]);
      adamw.param = sgd.param, adamw.grad = sgd.grad, adamw.m = on(base, t[2]), adamw.v = on(base, t[3]);
      adamw.lr = 0.001f, adamw.weight_decay = 0.1f, adamw.step = round + 1;
      CHECK_OK(ctx, mlk_sgd(ctx, &sgd));
      CHECK_OK(ctx, mlk_adamw(ctx, &adamw));
    }
    arena_agrees(&a);
  }
  arena_close(&a);
}

/* ---- lists ------------------------------------------------------------------------------------------------------- */

enum { LIST = 400 };

/* A tensor of a list: mostly small and dense, some empty, strided, long, or off alignment. */
static mlk_tensor list_tensor(arena *a, mlk_dtype dtype, int64_t i, int64_t beyond) {
  int64_t shape[2] = {1 + i % 7, 1 + i * 13 % 90};
  mlk_tensor t;
  if (i % 50 == 17) shape[0] = 0;
  if (i % 131 == 5) shape[0] = 35, shape[1] = 1001;
  t = tensor_of(dtype, 2, shape);
  if (i % 29 == 3) t.stride[0] = shape[1] + 3, t.stride[1] = 1;
  if (i % 29 == 11) t.stride[0] = 1, t.stride[1] = shape[0] > 0 ? shape[0] : 1;
  t.data = arena_take(a, dtype, (shape[0] ? shape[0] : 1) * (shape[1] + 3), i % 5 == 2 ? beyond : 0);
  return t;
}

static void test_clip_lists(void) {
  static const float limits[] = {0.5f, 1e30f, INFINITY};
  mlkt_rng rng = mlkt_rng_case();
  mlk_tensor grads[LIST], host[LIST], device[LIST];
  arena a;
  int round;
  int64_t i;
  arena_open(&a, 4 << 20);
  for (round = 0; round < 3; round++) {
    mlk_clip_norm_desc d;
    mlk_tensor norm;
    mlk_plan plan;
    const int64_t one = 1;
    arena_fill(&a, &rng);
    memset(&d, 0, sizeof d);
    norm = tensor_of(MLK_F32, 1, &one), norm.data = arena_take(&a, MLK_F32, 1, 1);
    for (i = 0; i < LIST; i++)
      grads[i] = list_tensor(&a, MLK_F32, i, round + 1), host[i] = on(a.host, grads[i]),
      device[i] = on(a.there, grads[i]);
    d.count = LIST, d.max_norm = limits[round];
    mlkt_note("limit %g", (double)d.max_norm);
    d.grads = host, d.norm = (float *)on(a.host, norm).data;
    CHECK_OK(a.cpu, mlk_clip_norm(a.cpu, &d));
    d.grads = device, d.norm = (float *)on(a.there, norm).data;
    CHECK_OK(a.device, mlk_clip_norm_plan(a.device, &d, &plan));
    if (mlkt_opt.cuda) CHECK_EQ_STR(plan.variant, "lists");
    CHECK_OK(a.device, mlk_clip_norm(a.device, &d));
    arena_agrees(&a);
  }
  arena_close(&a);
}

static void test_mean_lists(void) {
  static const int64_t replicas[] = {2, 5, 64, 9, 3};
  static const mlk_dtype types[] = {MLK_F32, MLK_BF16, MLK_F16};
  mlkt_rng rng = mlkt_rng_case();
  arena a;
  int round;
  arena_open(&a, 24 << 20);
  for (round = 0; round < (mlkt_opt.quick ? 5 : 30) && !mlkt_hopeless(); round++) {
    const int64_t n = replicas[round % 5], count = n == 64 ? 40 : 150;
    const mlk_dtype from = types[round % 3], to = types[round / 2 % 3];
    const int in_place = round % 4 == 3, range = round % 7 == 4;
    mlk_tensor *list = (mlk_tensor *)calloc((size_t)(3 * (n + 1) * count), sizeof *list), word;
    mlk_average_desc d;
    const int64_t two = 2;
    int64_t r, i, total = 0;
    int side;
    if (!list) abort();
    arena_fill(&a, &rng);
    word = tensor_of(MLK_I64, 1, &two), word.data = arena_take(&a, MLK_I64, 2, 0);
    for (i = 0; i < count; i++) {
      for (r = 0; r <= n; r++) {
        list[r * count + i] = list_tensor(&a, r < n ? from : to, i, round % 2 ? 3 : 1 + r % 2);
        if (i % 3 == 1 && list[r * count + i].shape[0] * list[r * count + i].shape[1] > 1000) /* short enough */
          list[r * count + i].shape[0] = 1;
      }
      total += list[i].shape[0] * list[i].shape[1];
    }
    for (side = 0; side < 2; side++) {
      mlk_context *ctx = side ? a.device : a.cpu;
      mlk_tensor *mine = list + (side + 1) * (n + 1) * count;
      for (i = 0; i < (n + 1) * count; i++) mine[i] = on(side ? a.there : a.host, list[i]);
      memset(&d, 0, sizeof d);
      d.inputs = mine, d.replicas = n, d.count = count;
      if (!in_place) d.outputs = mine + n * count, d.output_count = count;
      if (range && in_place) d.from = total / 3, d.to = total - total / 5;
      d.absent = n > 2 ? 2 : 0, d.skip_nonfinite = round % 2;
      d.used = (uint64_t *)on(side ? a.there : a.host, word).data;
      if ((in_place ? from : to) == MLK_F32) d.norm = (float *)(void *)(d.used + 1);
      mlkt_note("round %d: %d replicas, dtype %d to %d%s, side %d", round, (int)n, (int)from, (int)to,
                in_place ? ", in place" : "", side);
      CHECK_OK(ctx, mlk_average(ctx, &d));
    }
    arena_agrees(&a);
    free(list);
  }
  arena_close(&a);
}

const mlkt_case mlkt_cuda_map_cases[] = {
    {"cuda_map/vectors", test_vectors},
    {"cuda_map/turns", test_turns},
    {"cuda_map/reductions", test_reductions},
    {"cuda_map/steps", test_steps},
    {"cuda_map/clip_lists", test_clip_lists},
    {"cuda_map/mean_lists", test_mean_lists},
    {NULL, NULL},
};
