/* test_cuda_layer.c - pooling, softmax, cross-entropy, normalisation, embedding and rotary positions on a device: the
   paths of mlk_cuda.cuh that test_layer.c's small operands do not take, each forced by its shape and asked for by its
   name, bit for bit against MLK_ISA_REFERENCE; what only the device can find wrong. */

#include "test.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define COUNT_OF(array) ((int)(sizeof(array) / sizeof(array)[0]))

static void *need(size_t bytes) {
  void *memory = malloc(bytes ? bytes : 1);
  if (!memory) {
    fprintf(stderr, "test_cuda_layer: out of memory\n");
    exit(3);
  }
  return memory;
}

static float *need_signed(mlkt_rng *rng, int64_t count, float scale) {
  float *x = (float *)need((size_t)count * sizeof *x);
  int64_t i;
  for (i = 0; i < count; i++) x[i] = scale * mlkt_signed(rng);
  return x;
}

static float *need_rogue(int64_t count) {
  float *x = (float *)need((size_t)count * sizeof *x);
  mlkt_rogue_f32(x, (size_t)count);
  return x;
}

/* The device's context; NULL where the program runs without --cuda: then there is nothing to test. */
static mlk_context *open_device(void) {
  if (mlkt_opt.cuda) return mlkt_open(MLK_ISA_BEST, 1);
  mlkt_skip("without --cuda there is no device");
  return NULL;
}

/* ---- rows: [rows, d] in several layouts -------------------------------------------------------------------------- */

typedef struct layout {
  const char *name;
  int64_t offset, pad; /* elements before the first, elements between rows */
  int step, columns;   /* along the last axis; rows lie side by side */
  int in_place;
} layout;

static const layout layouts[] = {{"dense", 0, 0, 1, 0, 0},        {"unaligned", 1, 0, 1, 0, 0},
                                 {"pitch of 4", 0, 4, 1, 0, 0},   {"odd pitch", 0, 3, 1, 0, 0},
                                 {"in place", 0, 0, 1, 0, 1},     {"every second", 1, 1, 2, 0, 0},
                                 {"side by side", 0, 5, 1, 1, 0}, {"side by side in place", 0, 0, 1, 1, 1}};

static int64_t space_of(const layout *l, int64_t rows, int64_t d) {
  return l->offset + (rows + l->pad) * (d + l->pad) * l->step;
}

static mlk_tensor rows_of(const layout *l, float *memory, int64_t rows, int64_t d) {
  mlk_tensor t = mlk_f32(memory + l->offset, rows, d);
  t.stride[0] = l->columns ? 1 : (d + l->pad) * l->step;
  t.stride[1] = l->columns ? rows + l->pad : l->step;
  return t;
}

typedef enum row_op {
  SOFTMAX,
  LOG_SOFTMAX,
  SOFTMAX_GRAD,
  LOG_SOFTMAX_GRAD,
  ENTROPY,
  LAYER,
  RMS,
  LAYER_GRAD,
  RMS_GRAD,
  ROW_OPS
} row_op;

static const char *const row_names[ROW_OPS] = {
    "softmax",    "log-softmax", "softmax's gradient",    "log-softmax's gradient", "cross-entropy",
    "layer norm", "RMS norm",    "layer norm's gradient", "RMS norm's gradient"};

enum { MATRICES = 3, VECTORS = 6 }; /* x, dy, result; gamma, beta, dgamma, dbeta of d, then two of rows */

typedef struct row_problem {
  row_op what;
  int64_t rows, d;
  const layout *l;
  float *matrix[MATRICES], *vector[VECTORS];
  int64_t *labels;
} row_problem;

static int64_t vector_size(const row_problem *p, int i) { return i < 4 ? p->d : p->rows; }

/* The call on one context; operands are p's. With plan: its plan instead. */
static mlk_status row_call(mlk_context *ctx, const row_problem *p, mlk_plan *plan) {
  const mlk_tensor x = rows_of(p->l, p->matrix[0], p->rows, p->d), dy = rows_of(p->l, p->matrix[1], p->rows, p->d);
  const mlk_tensor out = rows_of(p->l, p->matrix[2], p->rows, p->d);
  const float scale = 0.37f, accumulate = -0.5f;
  const int grad = p->what == LAYER_GRAD || p->what == RMS_GRAD;
  mlk_tensor v[VECTORS];
  int i;
  for (i = 0; i < VECTORS; i++) v[i] = mlk_f32(p->vector[i], vector_size(p, i));
  if (p->what == SOFTMAX || p->what == LOG_SOFTMAX) {
    mlk_softmax_desc d;
    memset(&d, 0, sizeof d);
    d.x = x, d.y = p->l->in_place ? x : out, d.log = p->what == LOG_SOFTMAX;
    return plan ? mlk_softmax_plan(ctx, &d, plan) : mlk_softmax(ctx, &d);
  }
  if (p->what == SOFTMAX_GRAD || p->what == LOG_SOFTMAX_GRAD) {
    mlk_softmax_grad_desc d;
    memset(&d, 0, sizeof d);
    d.y = x, d.dy = dy, d.dx = p->l->in_place ? dy : out, d.log = p->what == LOG_SOFTMAX_GRAD;
    return plan ? mlk_softmax_grad_plan(ctx, &d, plan) : mlk_softmax_grad(ctx, &d);
  }
  if (p->what == ENTROPY) {
    mlk_cross_entropy_desc d;
    memset(&d, 0, sizeof d);
    d.x = x, d.labels = mlk_i64(p->labels, p->rows), d.loss = v[4], d.dx = p->l->in_place ? x : out, d.scale = &scale;
    if (p->l->pad == 3) memset(&d.dx, 0, sizeof d.dx); /* the loss alone */
    return plan ? mlk_cross_entropy_plan(ctx, &d, plan) : mlk_cross_entropy(ctx, &d);
  }
  if (!grad) {
    mlk_norm_desc d;
    memset(&d, 0, sizeof d);
    d.kind = p->what == LAYER ? MLK_NORM_LAYER : MLK_NORM_RMS;
    d.x = x, d.y = p->l->in_place ? x : out, d.gamma = v[0], d.beta = v[1], d.mean = v[4], d.rstd = v[5];
    return plan ? mlk_norm_plan(ctx, &d, plan) : mlk_norm(ctx, &d);
  }
  {
    mlk_norm_grad_desc d;
    memset(&d, 0, sizeof d);
    d.kind = p->what == LAYER_GRAD ? MLK_NORM_LAYER : MLK_NORM_RMS;
    d.x = x, d.dy = dy, d.dx = p->l->in_place ? dy : out, d.gamma = v[0], d.dgamma = v[2], d.dbeta = v[3];
    d.mean = v[4], d.rstd = v[5], d.accumulate = &accumulate;
    return plan ? mlk_norm_grad_plan(ctx, &d, plan) : mlk_norm_grad(ctx, &d);
  }
}

static row_problem row_problem_new(mlkt_rng *rng, row_op what, int64_t rows, int64_t d, const layout *l) {
  row_problem p;
  int64_t i;
  int k;
  p.what = what, p.rows = rows, p.d = d, p.l = l;
  for (k = 0; k < MATRICES; k++)
    p.matrix[k] = k < 2 ? need_signed(rng, space_of(l, rows, d), 6.0f) : need_rogue(space_of(l, rows, d));
  for (k = 0; k < VECTORS; k++) p.vector[k] = need_signed(rng, vector_size(&p, k), 1.0f);
  p.labels = (int64_t *)need((size_t)rows * sizeof *p.labels);
  for (i = 0; i < rows; i++) p.labels[i] = mlkt_int(rng, -1, d - 1);
  return p;
}

static row_problem row_problem_copy(const row_problem *p) {
  row_problem c = *p;
  const size_t space = (size_t)space_of(p->l, p->rows, p->d) * sizeof(float);
  int k;
  for (k = 0; k < MATRICES; k++) memcpy(c.matrix[k] = (float *)need(space), p->matrix[k], space);
  for (k = 0; k < VECTORS; k++) {
    const size_t bytes = (size_t)vector_size(p, k) * sizeof(float);
    memcpy(c.vector[k] = (float *)need(bytes), p->vector[k], bytes);
  }
  c.labels = (int64_t *)need((size_t)p->rows * sizeof *c.labels);
  memcpy(c.labels, p->labels, (size_t)p->rows * sizeof *c.labels);
  return c;
}

static void row_problem_free(row_problem *p) {
  int k;
  for (k = 0; k < MATRICES; k++) free(p->matrix[k]);
  for (k = 0; k < VECTORS; k++) free(p->vector[k]);
  free(p->labels);
}

/* Everything, also what lies between the elements and what is only read. */
static void row_problems_agree(const row_problem *got, const row_problem *want) {
  int k;
  for (k = 0; k < MATRICES; k++) {
    mlkt_note("%s, %d rows of %d, %s, matrix %d", row_names[got->what], (int)got->rows, (int)got->d, got->l->name, k);
    CHECK_BITS_F32_N(got->matrix[k], want->matrix[k], space_of(got->l, got->rows, got->d));
  }
  for (k = 0; k < VECTORS; k++) {
    mlkt_note("%s, %d rows of %d, %s, vector %d", row_names[got->what], (int)got->rows, (int)got->d, got->l->name, k);
    CHECK_BITS_F32_N(got->vector[k], want->vector[k], vector_size(got, k));
  }
}

static void check_rows(mlk_context *device, mlk_context *reference, mlkt_rng *rng, row_op what, int64_t rows, int64_t d,
                       const layout *l) {
  row_problem want = row_problem_new(rng, what, rows, d, l), got = row_problem_copy(&want);
  const int dense = d == 1 || (l->columns ? rows + l->pad : l->step) == 1;
  const char *const way = !dense       ? "side_by_side"
                          : d <= 1024  ? "row_per_warp"
                          : d <= 2500  ? "row_per_block"
                          : d >= 60000 ? "row_in_chunks"
                                       : NULL;
  mlk_plan plan;
  mlkt_note("%s, %d rows of %d, %s", row_names[what], (int)rows, (int)d, l->name);
  memset(&plan, 0, sizeof plan);
  if (CHECK_OK(reference, row_call(reference, &want, NULL)) && CHECK_OK(device, row_call(device, &got, &plan)) &&
      CHECK_OK(device, row_call(device, &got, NULL)) && CHECK_OK(device, mlk_sync(device))) {
    if (way) CHECK_EQ_STR(plan.variant, way);
    row_problems_agree(&got, &want);
  }
  row_problem_free(&want);
  row_problem_free(&got);
}

static void test_rows(void) {
  static const int64_t lengths[] = {1,   2,   15,  16,  17,  31,   32,   33,   63,   64,   65,   100,  255, 256,
                                    257, 511, 768, 992, 999, 1023, 1024, 1025, 1026, 1028, 1500, 2048, 2500};
  mlk_context *device = open_device(), *reference;
  mlkt_rng rng = mlkt_rng_case();
  int what, i, k;
  if (!device) return;
  reference = mlkt_open(MLK_ISA_REFERENCE, 1);
  for (what = 0; what < ROW_OPS; what++)
    for (i = 0; i < COUNT_OF(lengths) && !mlkt_hopeless(); i++)
      for (k = 0; k < COUNT_OF(layouts); k++)
        if (mlkt_keep((uint64_t)((what * COUNT_OF(lengths) + i) * COUNT_OF(layouts) + k)))
          check_rows(device, reference, &rng, (row_op)what, mlkt_int(&rng, 1, 37), lengths[i], &layouts[k]);
  mlk_close(reference);
  mlk_close(device);
}

/* In shared memory as a whole, which device has how much does not matter, and in chunks. */
static void test_long_rows(void) {
  static const int64_t lengths[] = {4096, 4097, 6788, 6800, 13616, 13700, 20000, 60001, 65536};
  mlk_context *device = open_device(), *reference;
  mlkt_rng rng = mlkt_rng_case();
  int what, i, k;
  if (!device) return;
  reference = mlkt_open(MLK_ISA_REFERENCE, 1);
  for (what = 0; what < ROW_OPS; what++)
    for (i = 0; i < COUNT_OF(lengths) && !mlkt_hopeless(); i++)
      for (k = 0; k < 5; k++)
        if (mlkt_keep((uint64_t)((what * COUNT_OF(lengths) + i) * 5 + k)))
          check_rows(device, reference, &rng, (row_op)what, mlkt_int(&rng, 1, 3), lengths[i], &layouts[k]);
  mlk_close(reference);
  mlk_close(device);
}

/* More rows than a segment of the sums over rows, and than blocks that take them in turn. */
static void test_many_rows(void) {
  static const int64_t sizes[][2] = {{511, 3}, {512, 130}, {513, 129}, {1600, 40}, {3000, 1}};
  mlk_context *device = open_device(), *reference;
  mlkt_rng rng = mlkt_rng_case();
  int what, i, k;
  if (!device) return;
  reference = mlkt_open(MLK_ISA_REFERENCE, 1);
  for (what = 0; what < ROW_OPS; what++)
    for (i = 0; i < COUNT_OF(sizes) && !mlkt_hopeless(); i++)
      for (k = 0; k < COUNT_OF(layouts); k++)
        if (mlkt_keep((uint64_t)((what * COUNT_OF(sizes) + i) * COUNT_OF(layouts) + k)))
          check_rows(device, reference, &rng, (row_op)what, sizes[i][0], sizes[i][1], &layouts[k]);
  mlk_close(reference);
  mlk_close(device);
}

/* Quotients that are denormal or 0, sums that are infinite, rows with NaN and of nothing but -infinity. */
static void test_hard_rows(void) {
  static const int64_t lengths[] = {40, 200, 1000, 1200, 61000};
  mlk_context *device = open_device(), *reference;
  mlkt_rng rng = mlkt_rng_case();
  int what, i, k;
  if (!device) return;
  reference = mlkt_open(MLK_ISA_REFERENCE, 1);
  for (what = SOFTMAX; what <= ENTROPY; what++)
    for (i = 0; i < COUNT_OF(lengths); i++)
      for (k = 0; k < 8; k++) {
        row_problem want = row_problem_new(&rng, (row_op)what, 3, lengths[i], &layouts[k < 7 ? 0 : 6]), got;
        float *const x = want.matrix[0];
        int64_t j;
        for (j = 0; j < 3 * lengths[i]; j++) x[j] *= k < 4 ? 18.0f : 1.0f; /* exponents down to e^-108 and below */
        if (k == 4) x[1] = NAN;
        if (k == 5) x[2 * lengths[i] - 1] = INFINITY;
        for (j = 0; k == 6 && j < lengths[i]; j++) x[j] = -INFINITY;
        got = row_problem_copy(&want);
        mlkt_note("%s of %d, %d", row_names[what], (int)lengths[i], k);
        CHECK_OK(reference, row_call(reference, &want, NULL));
        CHECK_OK(device, row_call(device, &got, NULL));
        CHECK_OK(device, mlk_sync(device));
        row_problems_agree(&got, &want);
        row_problem_free(&want);
        row_problem_free(&got);
      }
  mlk_close(reference);
  mlk_close(device);
}

/* ---- embedding --------------------------------------------------------------------------------------------------- */

/* ids by how: 0: uniform; 1: mostly one; 2: all the same; 3: few, in runs; negative ones among them. */
static void fill_ids(mlkt_rng *rng, int64_t *ids, int64_t count, int64_t v, int how) {
  const int64_t favourite = mlkt_int(rng, 0, v - 1);
  int64_t i;
  for (i = 0; i < count; i++) {
    ids[i] = how == 3 ? i / 70 % v : mlkt_int(rng, 0, v - 1);
    if (how == 2 || (how == 1 && mlkt_int(rng, 0, 9))) ids[i] = favourite;
    if (how != 2 && mlkt_int(rng, 0, 19) == 0) ids[i] = -mlkt_int(rng, 1, 1000);
  }
}

/* Both directions; step 2: the last axes are strided. */
static void check_embedding(mlk_context *device, mlk_context *reference, mlkt_rng *rng, int64_t count, int64_t v,
                            int64_t d, int how, int step) {
  int64_t *ids = (int64_t *)need((size_t)count * sizeof *ids);
  float *dout = need_signed(rng, count * d * step, 1.0f), *table[2], *out[2];
  mlk_embedding_desc e;
  mlk_embedding_grad_desc g;
  int k;
  fill_ids(rng, ids, count, v, how);
  table[0] = need_signed(rng, v * d * step, 1.0f), table[1] = (float *)need((size_t)(v * d * step) * sizeof(float));
  memcpy(table[1], table[0], (size_t)(v * d * step) * sizeof(float));
  memset(&e, 0, sizeof e);
  memset(&g, 0, sizeof g);
  mlkt_note("%d ids below %d, rows of %d, %d, step %d", (int)count, (int)v, (int)d, how, step);
  for (k = 0; k < 2; k++) {
    mlk_context *ctx = k ? device : reference;
    out[k] = need_rogue(count * d * step);
    e.table = g.dtable = mlk_f32(table[k], v, d), e.out = mlk_f32(out[k], count, d), g.dout = mlk_f32(dout, count, d);
    e.table.stride[0] = g.dtable.stride[0] = e.out.stride[0] = g.dout.stride[0] = d * step;
    e.table.stride[1] = g.dtable.stride[1] = e.out.stride[1] = g.dout.stride[1] = step;
    e.ids = g.ids = mlk_i64(ids, count);
    CHECK_OK(ctx, mlk_embedding(ctx, &e));
    CHECK_OK(ctx, mlk_embedding_grad(ctx, &g));
    CHECK_OK(ctx, mlk_sync(ctx));
  }
  CHECK_BITS_F32_N(out[1], out[0], count * d * step);
  CHECK_BITS_F32_N(table[1], table[0], v * d * step);
  free(ids);
  free(dout);
  for (k = 0; k < 2; k++) free(table[k]), free(out[k]);
}

/* One pass of the sort and several, one tile and several, lists of all lengths. */
static void test_embedding(void) {
  static const int64_t counts[] = {1, 31, 64, 65, 66, 129, 257, 4096, 4097, 9000};
  static const int64_t tables[][2] = {{1, 5}, {3, 32}, {255, 36}, {256, 33}, {300, 130}, {70000, 4}};
  mlk_context *device = open_device(), *reference;
  mlkt_rng rng = mlkt_rng_case();
  int i, k, how;
  if (!device) return;
  reference = mlkt_open(MLK_ISA_REFERENCE, 1);
  for (i = 0; i < COUNT_OF(counts); i++)
    for (k = 0; k < COUNT_OF(tables); k++)
      for (how = 0; how < 4; how++)
        if (mlkt_keep((uint64_t)((i * COUNT_OF(tables) + k) * 4 + how)))
          check_embedding(device, reference, &rng, counts[i], tables[k][0], tables[k][1], how, 1 + (i + k + how) % 2);
  mlk_close(reference);
  mlk_close(device);
}

/* ---- rotary positions -------------------------------------------------------------------------------------------- */

typedef struct turn {
  int64_t batch, s, h, d, rotated;
  int own, in_place, offset;
} turn;

static void check_rotary(mlk_context *device, mlk_context *reference, mlkt_rng *rng, const turn *t, int interleaved) {
  const int64_t count = t->batch * t->s * t->h * t->d + t->offset;
  float *x[2], *y[2];
  int64_t *positions = (int64_t *)need((size_t)(t->batch * t->s) * sizeof *positions), i;
  mlk_rotary_desc r;
  int k;
  for (i = 0; i < t->batch * t->s; i++) positions[i] = mlkt_int(rng, 0, mlkt_int(rng, 0, 1) ? 100000 : INT64_MAX);
  x[0] = need_signed(rng, count, 1.0f), x[1] = (float *)need((size_t)count * sizeof(float));
  memcpy(x[1], x[0], (size_t)count * sizeof(float));
  memset(&r, 0, sizeof r);
  mlkt_note("[%d, %d, %d, %d], %d turned, own %d, in place %d, offset %d, interleaved %d", (int)t->batch, (int)t->s,
            (int)t->h, (int)t->d, (int)t->rotated, t->own, t->in_place, t->offset, interleaved);
  for (k = 0; k < 2; k++) {
    mlk_context *ctx = k ? device : reference;
    y[k] = need_rogue(count);
    r.x = mlk_f32(x[k] + t->offset, t->batch, t->s, t->h, t->d);
    r.y = t->in_place ? r.x : mlk_f32(y[k] + t->offset, t->batch, t->s, t->h, t->d);
    r.positions = t->own ? mlk_i64(positions, t->batch, t->s) : mlk_i64(positions, t->s);
    r.rotated = t->rotated, r.interleaved = interleaved, r.inverse = t->batch % 2 == 0;
    CHECK_OK(ctx, mlk_rotary(ctx, &r));
    CHECK_OK(ctx, mlk_sync(ctx));
  }
  CHECK_BITS_F32_N(x[1], x[0], count);
  CHECK_BITS_F32_N(y[1], y[0], count);
  for (k = 0; k < 2; k++) free(x[k]), free(y[k]);
  free(positions);
}

/* More pairs than a block's table, heads that do not fill it, a tail that is copied, by vectors and not. */
static void test_rotary(void) {
  static const turn turns[] = {
      {1, 3, 2, 1040, 1040, 0, 0, 0}, {2, 3, 2, 1040, 1032, 1, 0, 0}, {3, 2, 1, 1030, 1026, 0, 1, 0},
      {2, 1, 5, 64, 64, 1, 0, 1},     {4, 1, 33, 24, 16, 1, 0, 0},    {1, 70, 1, 8, 0, 0, 1, 0},
      {300, 2, 3, 4, 2, 0, 0, 0},     {2, 2, 300, 6, 6, 0, 0, 0},     {3, 2, 3, 12, 0, 0, 0, 4}};
  mlk_context *device = open_device(), *reference;
  mlkt_rng rng = mlkt_rng_case();
  int i;
  if (!device) return;
  reference = mlkt_open(MLK_ISA_REFERENCE, 1);
  for (i = 0; i < 2 * COUNT_OF(turns); i++) check_rotary(device, reference, &rng, &turns[i / 2], i % 2);
  mlk_close(reference);
  mlk_close(device);
}

/* ---- pooling: channels by vectors of four, and not --------------------------------------------------------------- */

/* A shape is window, stride, dilation and padding. wide: counts need 64 bits, for the first axis' dilation does. */
static void check_pool(mlk_context *device, mlk_context *reference, mlkt_rng *rng, mlk_pool_kind kind, int64_t c,
                       const int64_t shape[4], int wide) {
  enum { N = 2, H = 13, W = 11 };
  const int64_t reach = (shape[0] - 1) * shape[2] + 1, ow = (W + 2 * shape[3] - reach) / shape[1] + 1;
  const int64_t oh = wide ? H : (H + 2 * shape[3] - reach) / shape[1] + 1, big = N * H * W * c, small = N * oh * ow * c;
  float *x = need_signed(rng, big, 1.0f), *dy = need_signed(rng, small, 1.0f), *y[2], *dx[2];
  int64_t *indices[2];
  mlk_pool_desc d;
  mlk_pool_grad_desc g;
  int k;
  memset(&d, 0, sizeof d);
  memset(&g, 0, sizeof g);
  mlkt_note("kind %d, %d channels, window %d, stride %d, dilation %d, padding %d%s", (int)kind, (int)c, (int)shape[0],
            (int)shape[1], (int)shape[2], (int)shape[3], wide ? ", wide" : "");
  d.kind = g.kind = kind;
  for (k = 0; k < 2; k++) {
    const int cut = wide && k == 0;
    d.window[k] = g.window[k] = cut ? 1 : shape[0];
    d.geometry.stride[k] = cut ? 1 : shape[1], d.geometry.dilation[k] = cut ? (int64_t)1 << 40 : shape[2];
    d.geometry.pad_before[k] = d.geometry.pad_after[k] = cut ? 0 : shape[3];
  }
  g.geometry = d.geometry;
  for (k = 0; k < 2; k++) {
    mlk_context *ctx = k ? device : reference;
    y[k] = need_rogue(small), dx[k] = need_rogue(big), indices[k] = (int64_t *)need((size_t)small * 8);
    d.x = mlk_channels_last(mlk_f32(x, N, H, W, c)), d.y = mlk_channels_last(mlk_f32(y[k], N, oh, ow, c));
    g.dx = mlk_channels_last(mlk_f32(dx[k], N, H, W, c)), g.dy = mlk_channels_last(mlk_f32(dy, N, oh, ow, c));
    if (kind == MLK_POOL_MAX) d.indices = g.indices = mlk_channels_last(mlk_i64(indices[k], N, oh, ow, c));
    CHECK_OK(ctx, mlk_pool(ctx, &d));
    CHECK_OK(ctx, mlk_pool_grad(ctx, &g));
    CHECK_OK(ctx, mlk_sync(ctx));
  }
  CHECK_BITS_F32_N(y[1], y[0], small);
  CHECK_BITS_F32_N(dx[1], dx[0], big);
  if (kind == MLK_POOL_MAX) CHECK_I64_N(indices[1], indices[0], small);
  free(x);
  free(dy);
  for (k = 0; k < 2; k++) free(y[k]), free(dx[k]), free(indices[k]);
}

static void test_pool(void) {
  static const int64_t channels[] = {1, 4, 6, 12};
  static const int64_t shapes[][4] = {{1, 1, 1, 0}, {2, 2, 1, 0}, {3, 2, 1, 1},
                                      {3, 1, 2, 2}, {2, 3, 4, 1}, {5, 5, 2, 4}};
  mlk_context *device = open_device(), *reference;
  mlkt_rng rng = mlkt_rng_case();
  int kind, i, k;
  if (!device) return;
  reference = mlkt_open(MLK_ISA_REFERENCE, 1);
  for (kind = 0; kind < MLK_POOL_KIND_COUNT; kind++)
    for (i = 0; i < COUNT_OF(channels); i++)
      for (k = 0; k < 2 * COUNT_OF(shapes); k++)
        check_pool(device, reference, &rng, (mlk_pool_kind)kind, channels[i], shapes[k / 2], k % 2);
  mlk_close(reference);
  mlk_close(device);
}

/* ---- what only the device can find wrong: told by the next mlk_sync or call, once; that element takes no part ---- */

static void expect_told(mlk_context *ctx, const char *said) {
  CHECK_STATUS(ctx, mlk_sync(ctx), MLK_ERR_ARGUMENT);
  CHECK_MSG(strstr(mlk_last_error(ctx), said) != NULL, "\"%s\" does not say \"%s\"", mlk_last_error(ctx), said);
  CHECK_OK(ctx, mlk_sync(ctx));
}

static void test_wrong_labels(void) {
  static const int64_t lengths[] = {9, 300, 1100, 61000};
  mlk_context *device = open_device(), *reference;
  mlkt_rng rng = mlkt_rng_case();
  int i, k;
  if (!device) return;
  reference = mlkt_open(MLK_ISA_REFERENCE, 1);
  for (i = 0; i < COUNT_OF(lengths); i++)
    for (k = 0; k < 7; k += 6) {
      row_problem want = row_problem_new(&rng, ENTROPY, 3, lengths[i], &layouts[k]), got;
      want.labels[1] = -1; /* what a wrong label amounts to */
      got = row_problem_copy(&want);
      got.labels[1] = lengths[i];
      CHECK_OK(reference, row_call(reference, &want, NULL));
      CHECK_OK(device, row_call(device, &got, NULL));
      expect_told(device, "labels: in an earlier call element 1 was out of its range");
      row_problems_agree(&got, &want);
      row_problem_free(&want);
      row_problem_free(&got);
    }
  mlk_close(reference);
  mlk_close(device);
}

static void test_wrong_ids(void) {
  enum { V = 5, D = 8, COUNT = 6 };
  const int64_t ids[COUNT] = {4, 1, V, 1, -7, INT64_MAX};
  float table[V * D], out[COUNT * D], dout[COUNT * D];
  mlk_context *device = open_device();
  mlk_embedding_desc e;
  mlk_embedding_grad_desc g;
  int i, j;
  if (!device) return;
  memset(&e, 0, sizeof e);
  memset(&g, 0, sizeof g);
  for (i = 0; i < V * D; i++) table[i] = (float)i;
  for (i = 0; i < COUNT * D; i++) dout[i] = (float)(1 << i / D);
  e.table = g.dtable = mlk_f32(table, V, D), e.out = mlk_f32(out, COUNT, D), g.dout = mlk_f32(dout, COUNT, D);
  e.ids = g.ids = mlk_i64((int64_t *)(uintptr_t)ids, COUNT);
  CHECK_OK(device, mlk_embedding(device, &e));
  CHECK_STATUS(device, mlk_embedding(device, &e), MLK_ERR_ARGUMENT); /* says so instead of running */
  CHECK_OK(device, mlk_sync(device));
  for (i = 0; i < COUNT * D; i++)
    CHECK_BITS_F32(out[i], i / D == 0 || i / D == 1 || i / D == 3 ? (float)(ids[i / D] * D + i % D) : 0.0f);
  CHECK_OK(device, mlk_embedding_grad(device, &g));
  expect_told(device, "ids: in an earlier call element ");
  for (i = 0; i < V; i++)
    for (j = 0; j < D; j++) CHECK_BITS_F32(table[i * D + j], (float)(i * D + j + (i == 1 ? 2 + 8 : i == 4 ? 1 : 0)));
  mlk_close(device);
}

static void test_wrong_places(void) {
  enum { S = 3, D = 4 };
  float x[S * D], y[2][S * D], dy[4] = {1.0f, 2.0f, 4.0f, 8.0f}, dx[16];
  int64_t positions[S] = {2, -9, 5}, indices[4] = {0, 16, INT64_MAX, 15};
  mlk_context *device = open_device(), *reference;
  mlk_rotary_desc r;
  mlk_pool_grad_desc g;
  int i;
  if (!device) return;
  reference = mlkt_open(MLK_ISA_REFERENCE, 1);
  memset(&r, 0, sizeof r);
  memset(&g, 0, sizeof g);
  for (i = 0; i < S * D; i++) x[i] = (float)(i + 1);
  r.x = mlk_f32(x, S, 1, D), r.y = mlk_f32(y[1], S, 1, D), r.positions = mlk_i64(positions, S);
  CHECK_OK(device, mlk_rotary(device, &r));
  expect_told(device, "positions: in an earlier call element 1 was out of its range");
  positions[1] = 0;
  r.y = mlk_f32(y[0], S, 1, D);
  CHECK_OK(reference, mlk_rotary(reference, &r));
  CHECK_BITS_F32_N(y[1], y[0], S * D);
  g.dy = mlk_f32(dy, 1, 1, 2, 2), g.indices = mlk_i64(indices, 1, 1, 2, 2), g.dx = mlk_f32(dx, 1, 1, 4, 4);
  g.window[0] = g.window[1] = g.geometry.stride[0] = g.geometry.stride[1] = 2;
  CHECK_OK(device, mlk_pool_grad(device, &g));
  expect_told(device, "indices: in an earlier call element ");
  for (i = 0; i < 16; i++) CHECK_BITS_F32(dx[i], i == 0 ? 1.0f : i == 15 ? 8.0f : 0.0f);
  mlk_close(reference);
  mlk_close(device);
}

const mlkt_case mlkt_cuda_layer_cases[] = {{"cuda_layer/rows", test_rows},
                                           {"cuda_layer/long_rows", test_long_rows},
                                           {"cuda_layer/many_rows", test_many_rows},
                                           {"cuda_layer/hard_rows", test_hard_rows},
                                           {"cuda_layer/embedding", test_embedding},
                                           {"cuda_layer/rotary", test_rotary},
                                           {"cuda_layer/pool", test_pool},
                                           {"cuda_layer/wrong_labels", test_wrong_labels},
                                           {"cuda_layer/wrong_ids", test_wrong_ids},
                                           {"cuda_layer/wrong_places", test_wrong_places},
                                           {NULL, NULL}};
