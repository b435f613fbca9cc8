/* test_cuda_knn.c - nearest neighbours on a device: what the suites of test_knn.c do not reach there.

   The filter of mlk_cuda.cuh multiplies rows in f16 on tensor cores; here is data that such a filter gets wrong when
   its bound is, and data of which it keeps too much. The oracle is the CPU of mlk.h, whose answers test_knn.c holds
   against a reference of its own: the same ids and the same bits of distances. */

#include "test.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#if defined(MLKT_CUDA_EMULATED)
#include "cuda_emulator_control.h"
#endif

static void *need(size_t bytes) {
  void *memory = malloc(bytes ? bytes : 1);
  if (!memory) {
    fprintf(stderr, "test_cuda_knn: out of memory\n");
    exit(3);
  }
  return memory;
}

#define COUNT_OF(array) ((int)(sizeof(array) / sizeof(array)[0]))

static const char *metric_name(mlk_metric metric) {
  static const char *const names[MLK_METRIC_COUNT] = {"l2sq", "l2", "ip", "cosine"};
  return names[metric];
}

/* A context on the CPU and one on the device. */
typedef struct both {
  mlk_context *cpu, *device;
} both;

static int both_open(both *b) {
  mlk_context_desc desc;
  memset(&desc, 0, sizeof desc);
  b->cpu = NULL;
  if (!mlkt_opt.cuda) {
    mlkt_skip("needs --cuda");
    return 0;
  }
  if (!CHECK_OK(NULL, mlk_open(&b->cpu, &desc))) return 0;
  b->device = mlkt_open(MLK_ISA_BEST, 1);
  if (b->device) return 1;
  mlk_close(b->cpu);
  return 0;
}

static void both_close(both *b) {
  mlk_close(b->cpu);
  mlk_close(b->device);
}

static mlk_knn_desc dense_knn(mlk_metric metric, const float *q, int64_t queries, const float *x, int64_t rows,
                              int64_t dim, int64_t k, int64_t *ids, float *distances) {
  mlk_knn_desc d;
  memset(&d, 0, sizeof d);
  d.queries = mlk_f32(q, queries, dim), d.base = mlk_f32(x, rows, dim);
  d.k = k, d.metric = metric;
  d.ids = mlk_i64(ids, queries, k), d.distances = mlk_f32(distances, queries, k);
  return d;
}

/* The same question to both; what: of the data. */
static void ask(both *b, const char *what, mlk_metric metric, const float *q, int64_t queries, const float *x,
                int64_t rows, int64_t dim, int64_t k) {
  const size_t places = (size_t)(queries * k);
  int64_t *ids = (int64_t *)need(2 * places * sizeof *ids);
  float *distances = (float *)need(2 * places * sizeof *distances);
  mlk_knn_desc d = dense_knn(metric, q, queries, x, rows, dim, k, ids, distances);
  mlkt_note("%s, %s: Q %ld, N %ld, D %ld, k %ld", what, metric_name(metric), (long)queries, (long)rows, (long)dim,
            (long)k);
  mlkt_rogue_i64(ids, 2 * places);
  mlkt_rogue_f32(distances, 2 * places);
  CHECK_OK(b->cpu, mlk_knn(b->cpu, &d));
  d.ids.data = ids + places, d.distances.data = distances + places;
  CHECK_OK(b->device, mlk_knn(b->device, &d));
  CHECK_OK(b->device, mlk_sync(b->device));
  CHECK_I64_N(ids + places, ids, places);
  CHECK_BITS_F32_N(distances + places, distances, places);
  free(ids);
  free(distances);
}

/* Rows [count, dim] of one making. */
typedef void (*maker)(mlkt_rng *rng, float *q, int64_t queries, float *x, int64_t rows, int64_t dim);

static void uniform(mlkt_rng *rng, float *v, int64_t count) {
  int64_t i;
  for (i = 0; i < count; i++) v[i] = mlkt_signed(rng);
}

static void make_uniform(mlkt_rng *rng, float *q, int64_t queries, float *x, int64_t rows, int64_t dim) {
  uniform(rng, q, queries * dim);
  uniform(rng, x, rows * dim);
}

/* One point many times: every distance ties, only the row number decides. */
static void make_equal(mlkt_rng *rng, float *q, int64_t queries, float *x, int64_t rows, int64_t dim) {
  int64_t i;
  make_uniform(rng, q, queries, x, rows, dim);
  for (i = dim; i < rows * dim; i++) x[i] = x[i % dim];
}

/* Few points, each many times, in random order; half the queries are such points. */
static void make_duplicates(mlkt_rng *rng, float *q, int64_t queries, float *x, int64_t rows, int64_t dim) {
  float *few = (float *)need((size_t)(7 * dim) * sizeof *few);
  int64_t i;
  make_uniform(rng, q, queries, x, rows, dim);
  uniform(rng, few, 7 * dim);
  for (i = 0; i < rows; i++) memcpy(x + i * dim, few + mlkt_int(rng, 0, 6) * dim, (size_t)dim * sizeof *x);
  for (i = 0; i < queries; i += 2) memcpy(q + i * dim, few + mlkt_int(rng, 0, 6) * dim, (size_t)dim * sizeof *q);
  free(few);
}

/* Small integers: masses of ties at the last place, all arithmetic exact. */
static void make_integers(mlkt_rng *rng, float *q, int64_t queries, float *x, int64_t rows, int64_t dim) {
  int64_t i;
  for (i = 0; i < queries * dim; i++) q[i] = (float)mlkt_int(rng, -1, 1);
  for (i = 0; i < rows * dim; i++) x[i] = (float)mlkt_int(rng, -1, 1);
}

/* Rows that f16 cannot tell apart, nor from the queries: everything passes a filter, buffers overflow. */
static void make_near_ties(mlkt_rng *rng, float *q, int64_t queries, float *x, int64_t rows, int64_t dim) {
  int64_t i;
  make_uniform(rng, q, queries, x, rows, dim);
  for (i = dim; i < rows * dim; i++) x[i] = x[i % dim] + 0x1p-18f * x[i];
  for (i = 0; i < queries * dim; i++) q[i] = x[i % dim] + 0x1p-18f * q[i];
}

/* Elements beyond the largest of f16 and below its smallest, rows of many lengths, squares that overflow and
   underflow. */
static void make_scales(mlkt_rng *rng, float *q, int64_t queries, float *x, int64_t rows, int64_t dim) {
  int64_t i, j;
  make_uniform(rng, q, queries, x, rows, dim);
  for (i = 0; i < rows; i++) {
    const int e = (int)mlkt_int(rng, 0, 9) ? (int)mlkt_int(rng, -30, 30) : (int)mlkt_int(rng, -80, 80);
    for (j = 0; j < dim; j++) x[i * dim + j] = ldexpf(x[i * dim + j], e);
  }
  for (i = 0; i < queries; i++) {
    const int e = (int)mlkt_int(rng, 0, 5) ? (int)mlkt_int(rng, -20, 20) : (int)mlkt_int(rng, -75, 75);
    for (j = 0; j < dim; j++) q[i * dim + j] = ldexpf(q[i * dim + j], e);
  }
}

/* Elements of one row from 1 to 2^-40: most of them below the normal range of f16 once the row has unit length. */
static void make_wide_rows(mlkt_rng *rng, float *q, int64_t queries, float *x, int64_t rows, int64_t dim) {
  int64_t i;
  make_uniform(rng, q, queries, x, rows, dim);
  for (i = 0; i < queries * dim; i++) q[i] = ldexpf(q[i], -(int)mlkt_int(rng, 0, 40));
  for (i = 0; i < rows * dim; i++) x[i] = ldexpf(x[i], -(int)mlkt_int(rng, 0, 40));
}

/* NaN, infinities and zeros among rows and queries. */
static void make_specials(mlkt_rng *rng, float *q, int64_t queries, float *x, int64_t rows, int64_t dim) {
  const float specials[] = {NAN, INFINITY, -INFINITY, -0.0f, FLT_MAX, 1e-45f};
  int64_t i;
  make_uniform(rng, q, queries, x, rows, dim);
  for (i = 0; i < rows; i++) {
    const int64_t which = mlkt_int(rng, 0, 19);
    if (which < COUNT_OF(specials)) x[i * dim + mlkt_int(rng, 0, dim - 1)] = specials[which];
    if (which == 6) memset(x + i * dim, 0, (size_t)dim * sizeof *x);
  }
  for (i = 0; i < queries; i++) {
    const int64_t which = mlkt_int(rng, 0, 19);
    if (which < COUNT_OF(specials)) q[i * dim + mlkt_int(rng, 0, dim - 1)] = specials[which];
    if (which == 6) memset(q + i * dim, 0, (size_t)dim * sizeof *q);
  }
}

/* Nearly all rows have a NaN: lists stay short for long, and the last place may never be taken. */
static void make_mostly_nan(mlkt_rng *rng, float *q, int64_t queries, float *x, int64_t rows, int64_t dim) {
  int64_t i;
  make_uniform(rng, q, queries, x, rows, dim);
  for (i = 0; i < rows; i++)
    if (mlkt_int(rng, 0, 49)) x[i * dim + mlkt_int(rng, 0, dim - 1)] = NAN;
}

/* A vector of unit length whose elements, but for the last, lie beside the middle of two numbers of f16, so that
   rounding moves them all outwards (up) or all inwards; spread: how many units in the last place
   of f16 they scatter. */
static void unit_vector(mlkt_rng *rng, float *v, int64_t dim, int up, int spread) {
  const double size = 0.98 / sqrt((double)dim), unit = ldexp(1.0, ilogb(size) - 10);
  double left = 1.0;
  int64_t j;
  for (j = 0; j + 1 < dim; j++) {
    const double steps = floor(size / unit) + (double)mlkt_int(rng, -spread, spread);
    v[j] = (float)(unit * (steps + 0.5 + (up ? 1.0 : -1.0) / 64.0 * (double)mlkt_unit(rng)));
    left -= (double)v[j] * (double)v[j];
  }
  v[dim - 1] = (float)sqrt(left > 0 ? left : 0);
}

/* What a bound that is too small gets wrong: rows and queries all but equal. Rounding moves the elements of the nearest
   rows and of the queries inwards, so that their products come out too small, and those of the other rows outwards.
   Rows that the center may be made of are zeros, so that it is zero. */
static void make_against_rounding(mlkt_rng *rng, float *q, int64_t queries, float *x, int64_t rows, int64_t dim) {
  const int64_t zeros = rows > 64 ? rows / 64 : 1;
  int64_t i;
  for (i = 0; i < queries; i++) unit_vector(rng, q + i * dim, dim, 0, 0);
  for (i = 0; i < rows; i++)
    if (i % zeros == 0)
      memset(x + i * dim, 0, (size_t)dim * sizeof *x);
    else
      unit_vector(rng, x + i * dim, dim, i % 8 != 1, i % 8 == 1 ? 0 : 1);
}

static const struct {
  const char *name;
  maker make;
} makers[] = {{"uniform", make_uniform},       {"all equal", make_equal},
              {"duplicates", make_duplicates}, {"integers", make_integers},
              {"near ties", make_near_ties},   {"scales", make_scales},
              {"wide rows", make_wide_rows},   {"specials", make_specials},
              {"mostly NaN", make_mostly_nan}, {"against rounding", make_against_rounding}};

static void ask_made(both *b, mlkt_rng *rng, int which, mlk_metric metric, int64_t queries, int64_t rows, int64_t dim,
                     int64_t k) {
  float *q = (float *)need((size_t)(queries * dim) * sizeof *q), *x = (float *)need((size_t)(rows * dim) * sizeof *x);
  makers[which].make(rng, q, queries, x, rows, dim);
  ask(b, makers[which].name, metric, q, queries, x, rows, dim, k);
  free(q);
  free(x);
}

/* Every kind of data through the filter, with rows that are no whole number of tiles, pieces or shards. */
static void test_filter(void) {
  static const int64_t row_counts[] = {2100, 2333, 4099}, dims[] = {240, 33, 60, 5}, ks[] = {1, 10, 40, 100};
  mlkt_rng rng = mlkt_rng_case();
  uint64_t index = 0;
  int which, m, i;
  both b;
  if (!both_open(&b)) return;
  for (which = 0; which < COUNT_OF(makers); which++)
    for (m = 0; m < MLK_METRIC_COUNT; m++)
      for (i = 0; i < 4 && !mlkt_hopeless(); i++) {
        const int64_t queries = 33 + 40 * (i % 3);
        if (mlkt_opt.one_in > 1 && (index++ + (uint64_t)which) % (mlkt_sampled() ? 8 : 4)) continue;
        ask_made(&b, &rng, which, (mlk_metric)m, queries, row_counts[(which + m + i) % 3], dims[(m + i) % 4],
                 ks[(which + i) % 4]);
      }
  both_close(&b);
}

/* Widths at which rounding to f16 is worst: 0.98 / sqrt(D) is just above a power of two. */
static void test_rounding(void) {
  static const int64_t dims[] = {60, 240, 15};
  mlkt_rng rng = mlkt_rng_case();
  int which, m, i;
  both b;
  if (!both_open(&b)) return;
  for (which = 0; makers[which].make != make_against_rounding;) which++;
  for (m = 0; m < MLK_METRIC_COUNT; m++)
    for (i = 0; i < (mlkt_sampled() ? 1 : 3); i++)
      ask_made(&b, &rng, which, (mlk_metric)m, 33, 2500, dims[i], i == 1 ? 10 : 1);
  both_close(&b);
}

static mlk_plan plan_of(both *b, mlk_metric metric, int64_t queries, int64_t rows, int64_t dim, int64_t k) {
  float *some = (float *)need(64 * sizeof *some), *distances = (float *)need((size_t)(queries * k) * sizeof *distances);
  int64_t *ids = (int64_t *)need((size_t)(queries * k) * sizeof *ids);
  mlk_knn_desc d;
  mlk_plan plan;
  memset(some, 0, 64 * sizeof *some); /* which a plan does not read */
  memset(&plan, 0, sizeof plan);
  d = dense_knn(metric, some, queries, some + 32, rows, dim, k, ids, distances);
  CHECK_OK(b->device, mlk_knn_plan(b->device, &d, &plan));
  free(some);
  free(distances);
  free(ids);
  return plan;
}

/* Which way a call goes is told by its plan; the same question all ways. By which products the filter goes is the
   device's: test_groups. */
static void test_variants(void) {
  static const struct {
    int64_t queries, rows, dim;
    const char *variant;
  } ways[] = {{1, 3000, 40, "scan"},    {3, 3000, 40, "scan"},  {8, 2500, 7, "scan"}, {40, 4500, 40, "filter"},
              {130, 5000, 9, "filter"}, {40, 200, 40, "tiles"}, {64, 0, 16, "tiles"}, {17, 300, 8200, "tiles"}};
  mlkt_rng rng = mlkt_rng_case();
  int i, m;
  both b;
  if (!both_open(&b)) return;
  for (i = 0; i < COUNT_OF(ways); i++)
    for (m = 0; m < MLK_METRIC_COUNT; m++) {
      const mlk_plan plan = plan_of(&b, (mlk_metric)m, ways[i].queries, ways[i].rows, ways[i].dim, 4);
      const char *const way = strstr(plan.variant, "filter");
      CHECK_EQ_STR(way ? way : plan.variant, ways[i].variant);
      if (mlkt_sampled() && (i + m) % 4) continue;
      ask_made(&b, &rng, 0, (mlk_metric)m, ways[i].queries, ways[i].rows, ways[i].dim, 4);
    }
  both_close(&b);
}

/* The order in which mlk_cuda.cuh visits pieces of 32 rows: through all of them by steps near the golden section. */
static int64_t visited_before(int64_t row, int64_t rows) {
  const int64_t pieces = (rows + 31) / 32;
  int64_t step = (int64_t)(0.6180339887498949 * (double)pieces), at, piece;
  if (step < 1) step = 1;
  for (;; step++) {
    int64_t a = pieces, c = step;
    while (c > 0) {
      const int64_t rest = a % c;
      a = c, c = rest;
    }
    if (a == 1) break;
  }
  for (at = 0, piece = 0; piece != row / 32; at++) piece = (piece + step) % pieces;
  return at * 32 + row % 32;
}

/* In the order of visits each row beats all before it, for every query: buffers overflow in every chunk, and what they
   hold is the worst of it. The other way round nothing ever enters; but where the first eighth is far away, buffers
   overflow and the best comes first. */
static void test_order_of_visits(void) {
  static const int64_t query_counts[] = {1, 7, 12, 40};
#if defined(MLKT_CUDA_EMULATED) /* buffers are short, and a shard, which has its own order, is 2048 rows */
  const int64_t rows = 2048, dim = 20;
#else
  const int64_t rows = 20000, dim = 20;
#endif
  const int step = mlkt_opt.quick ? 3 : 1;
  static const char *const orders[] = {"improving", "worsening", "worsening after a bad start"};
  float *x, q[40 * 20];
  mlkt_rng rng = mlkt_rng_case();
  int64_t i, j;
  int run;
  both b;
  if (!both_open(&b)) return;
  x = (float *)need((size_t)(rows * dim) * sizeof *x);
  for (run = 0; run < 48; run += step) {
    const mlk_metric metric = (mlk_metric)(run % MLK_METRIC_COUNT);
    const int64_t queries = query_counts[run / 4 % 4], k = run / 2 % 3 == 0 ? 1 : run / 2 % 3 == 1 ? 4 : 30;
    for (i = 0; i < queries * dim; i++) q[i] = (i % dim == 0 ? 1.0f : 0.5f) + 0x1p-20f * mlkt_signed(&rng);
    for (i = 0; i < rows; i++) {
      const int64_t place = visited_before(i, rows);
      const int64_t turn = run < 16 ? rows - place : run >= 32 && place < rows / 8 ? rows : place + 1;
      const float away = (float)turn / (float)rows;
      for (j = 0; j < dim; j++) {
        const float first = j == 0 ? 1.0f : 0.5f;
        x[i * dim + j] = metric == MLK_INNER_PRODUCT ? first * (2.0f - away) : j == 0 ? first + away : first;
      }
    }
    ask(&b, orders[run / 16], metric, q, queries, x, rows, dim, k);
  }
  both_close(&b);
  free(x);
}

/* Lists longer than what is sorted at once, up to all rows and beyond; few queries and many. */
static void test_many_neighbours(void) {
  static const int64_t ks[] = {255, 256, 257, 700, 2047, 2500, 2900, 2905};
  mlkt_rng rng = mlkt_rng_case();
  int i;
  both b;
  if (!both_open(&b)) return;
  for (i = 0; i < COUNT_OF(ks); i++) {
    const int which = i % COUNT_OF(makers);
    if (mlkt_sampled() && i % 3 != 0) continue;
    ask_made(&b, &rng, which, (mlk_metric)(i % MLK_METRIC_COUNT), i % 2 ? 3 : 36, 2900, 19, ks[i]);
    ask_made(&b, &rng, 9 - which, (mlk_metric)((i + 1) % MLK_METRIC_COUNT), i % 2 ? 20 : 1, 2900, 16, ks[i]);
  }
  both_close(&b);
}

/* Numbers of rows and queries at and beside those of tiles, chunks and shards. */
static void test_boundaries(void) {
  static const int64_t row_counts[] = {1,   31,  32,  33,  127, 128,  129,  255,  256,  257,
                                       383, 384, 385, 640, 896, 2047, 2048, 2049, 2080, 4097};
  static const int64_t query_counts[] = {1, 8, 9, 32, 63, 64, 65, 128, 129};
  mlkt_rng rng = mlkt_rng_case();
  int i, j;
  both b;
  if (!both_open(&b)) return;
  for (i = 0; i < COUNT_OF(row_counts); i++)
    for (j = 0; j < COUNT_OF(query_counts); j++) {
      if (mlkt_opt.one_in > 1 && (i + 2 * j) % (mlkt_sampled() ? 17 : 7)) continue;
      ask_made(&b, &rng, 3, (mlk_metric)((i + j) % MLK_METRIC_COUNT), query_counts[j], row_counts[i], 17 + i, 3 + j);
    }
  both_close(&b);
}

/* What an H200 is predicted to do: filter by warpgroups, no faster than its products, nor in five times their time and
   that of reading (in the emulator chunks and shards are too short for that). */
static void test_groups_planned(void) {
  static const int64_t dims[] = {64, 128, 256, 768};
#if defined(MLKT_CUDA_EMULATED)
  const double most = HUGE_VAL;
#else
  const double most = 5;
#endif
  mlk_device_figures h200;
  mlk_context_desc open;
  both b;
  int i;
  if (!both_open(&b)) return;
  mlk_close(b.device);
  b.device = NULL;
  memset(&h200, 0, sizeof h200);
  h200.name = "H200", h200.compute_capability = 90, h200.multiprocessors = 132;
  h200.flops = 67e12, h200.tensor_flops = 990e12, h200.bandwidth = 4.8e12, h200.memory_bytes = UINT64_C(141) << 30;
  open = mlkt_context_desc(MLK_ISA_BEST, 1);
  open.figures = &h200;
  if (CHECK_STATUS(NULL, mlk_open(&b.device, &open), MLK_OK))
    for (i = 0; i < COUNT_OF(dims); i++) {
      const double products = 2.0 * 10000 * 1e6 * (double)dims[i] / h200.tensor_flops;
      const double reading = 4.0 * 1e6 * (double)dims[i] / h200.bandwidth;
      const mlk_plan plan = plan_of(&b, MLK_L2SQ, 10000, 1000000, dims[i], 10);
      CHECK_EQ_STR(plan.variant, "wgmma_filter");
      CHECK_MSG(plan.seconds >= products && plan.seconds < most * (products + reading), "D %ld: %g s, at best %g",
                (long)dims[i], plan.seconds, products);
    }
  both_close(&b);
}

#if defined(MLKT_CUDA_EMULATED)
/* The same on a device of compute capability 9.0 with so many multiprocessors. Undone by mlkt_emu_reset. */
static int both_open_hopper(both *b, int multiprocessors) {
  mlkt_emu_device(1, 90, multiprocessors);
  return both_open(b);
}

/* The filter by warpgroups: widths with queries held in shared memory (up to 256 terms) and not, whose last stage is
   whole or half; numbers of queries that leave a consumer without; blocks that go through several tiles of queries, or
   part of one; shards; lists short and long; in order and in random orders. */
static void test_groups(void) {
  static const struct {
    int64_t queries, rows, dim, k;
    int multiprocessors;
  } points[] = {{9, 700, 1, 1, 3},        {33, 2100, 5, 10, 132}, {100, 900, 33, 40, 1}, {128, 1000, 64, 3, 2},
                {129, 800, 65, 7, 1},     {300, 600, 129, 20, 2}, {257, 700, 100, 5, 1}, {130, 700, 200, 130, 1},
                {40, 1000, 256, 1, 2},    {260, 600, 257, 4, 1},  {70, 900, 300, 9, 3},  {140, 700, 768, 10, 1},
                {60, 2500, 40, 255, 132}, {520, 700, 20, 2, 1},   {17, 4200, 90, 17, 2}, {390, 500, 140, 12, 2}};
  mlkt_rng rng = mlkt_rng_case();
  uint64_t index;
  for (index = 0; index < 4 * (uint64_t)COUNT_OF(points) && !mlkt_hopeless(); index++) {
    const int at = (int)(index / 4), which = (int)((index * 7 + index / 4) % (uint64_t)COUNT_OF(makers));
    const mlk_metric metric = (mlk_metric)(index % 4);
    both b;
    rng.state += index * UINT64_C(0x9E3779B97F4A7C15);
    if (mlkt_opt.one_in > 1 && (index + index / 4) % (mlkt_sampled() ? 16 : 4)) continue;
    mlkt_emu_seed(index % 3 ? 0 : index + 1);
    if (!both_open_hopper(&b, points[at].multiprocessors)) return;
    mlkt_note("point %d", at);
    CHECK_EQ_STR(plan_of(&b, metric, points[at].queries, points[at].rows, points[at].dim, points[at].k).variant,
                 "wgmma_filter");
    ask_made(&b, &rng, which, metric, points[at].queries, points[at].rows, points[at].dim, points[at].k);
    both_close(&b);
    mlkt_emu_reset();
  }
}

/* Without code for warpgroups, or a driver that describes tensors to the copy engine: by warps, in no other room. */
static void test_groups_refused(void) {
  uint64_t workspace = 0;
  int i, m;
  mlkt_rng rng = mlkt_rng_case();
  for (i = 0; i < 3; i++)
    for (m = 0; m < MLK_METRIC_COUNT; m++) {
      both b;
      mlk_plan plan;
      if (m != 3 && (m != i || mlkt_sampled())) continue;
      mlkt_emu_hopper(i != 1, i != 2);
      if (!both_open_hopper(&b, 2)) return;
      plan = plan_of(&b, (mlk_metric)m, 130, 900, 90, 5);
      CHECK_EQ_STR(plan.variant, i == 0 ? "wgmma_filter" : "mma_filter");
      if (m == 3 && i == 0) workspace = plan.workspace_bytes;
      if (m == 3) CHECK_EQ_I64(plan.workspace_bytes, workspace);
      ask_made(&b, &rng, i, (mlk_metric)m, 130, 900, 90, 5);
      both_close(&b);
      mlkt_emu_reset();
    }
}
#endif

const mlkt_case mlkt_cuda_knn_cases[] = {
    {"cuda_knn/filter", test_filter},
    {"cuda_knn/rounding", test_rounding},
    {"cuda_knn/variants", test_variants},
    {"cuda_knn/order_of_visits", test_order_of_visits},
    {"cuda_knn/many_neighbours", test_many_neighbours},
    {"cuda_knn/boundaries", test_boundaries},
    {"cuda_knn/groups_planned", test_groups_planned},
#if defined(MLKT_CUDA_EMULATED)
    {"cuda_knn/groups", test_groups},
    {"cuda_knn/groups_refused", test_groups_refused},
#endif
    {NULL, NULL},
};
