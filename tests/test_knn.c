/* test_knn.c - exact nearest neighbours and distances.

   The reference below is written from the manual of mlk.h alone and shares nothing with its implementation: distances
   in the 16-lane order, then a full sort by (distance, row number). Everything is compared bit for
   bit, ids and distances. */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* MAP_NORESERVE under -std=c99 */
#endif

#include "test.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#if MLKT_POSIX
#include <sys/mman.h>
#endif

/* ---- the reference ---------------------------------------------------------------------------------------------- */

enum { LANES = 16 };

/* The order of summation is spelled out lane by lane, so compiling the same text for a machine with fused multiply-adds
   changes its speed only; without, fmaf is a library call and the sweeps take ten times as long. */
#if defined(__GNUC__) && defined(__x86_64__)
#define REF_TWICE  1
#define REF_INLINE static inline __attribute__((always_inline))
#else
#define REF_TWICE  0
#define REF_INLINE static inline
#endif

/* lane l with l + 8, then + 4, + 2, + 1 */
REF_INLINE float ref_tree(float *lane) {
  int step, l;
  for (step = LANES / 2; step > 0; step /= 2)
    for (l = 0; l < step; l++) lane[l] = lane[l] + lane[l + step];
  return lane[0];
}

REF_INLINE float ref_ip(const float *q, const float *x, int64_t dim) {
  float lane[LANES] = {0};
  int64_t j = 0;
  int l;
  for (; j + LANES <= dim; j += LANES)
    for (l = 0; l < LANES; l++) lane[l] = fmaf(q[j + l], x[j + l], lane[l]);
  for (l = 0; l < LANES && j < dim; l++) { /* elements past the end count as zeros: a lane of -0 becomes +0 */
    const int inside = j + l < dim;
    lane[l] = fmaf(inside ? q[j + l] : 0.0f, inside ? x[j + l] : 0.0f, lane[l]);
  }
  return ref_tree(lane);
}

REF_INLINE float ref_l2sq(const float *q, const float *x, int64_t dim) {
  float lane[LANES] = {0}, t[LANES];
  int64_t j = 0;
  int l;
  for (; j + LANES <= dim; j += LANES) {
    for (l = 0; l < LANES; l++) t[l] = q[j + l] - x[j + l];
    for (l = 0; l < LANES; l++) lane[l] = fmaf(t[l], t[l], lane[l]);
  }
  for (l = 0; j + l < dim; l++) { /* zeros past the end add nothing to squares */
    t[l] = q[j + l] - x[j + l];
    lane[l] = fmaf(t[l], t[l], lane[l]);
  }
  return ref_tree(lane);
}

REF_INLINE float ref_distance(mlk_metric metric, const float *q, const float *x, int64_t dim) {
  float norm_q, norm_x;
  if (metric == MLK_L2SQ) return ref_l2sq(q, x, dim);
  if (metric == MLK_L2) return sqrtf(ref_l2sq(q, x, dim));
  if (metric == MLK_INNER_PRODUCT) return ref_ip(q, x, dim);
  norm_q = sqrtf(ref_ip(q, q, dim));
  norm_x = sqrtf(ref_ip(x, x, dim));
  if (norm_q == 0.0f || norm_x == 0.0f) return 0.0f;
  return ref_ip(q, x, dim) / norm_q / norm_x;
}

/* out[i][j] = d(q_i, x_j), all dense */
REF_INLINE void ref_distances_text(mlk_metric metric, const float *q, int64_t queries, const float *x, int64_t rows,
                                   int64_t dim, float *out) {
  int64_t i, j;
  for (i = 0; i < queries; i++)
    for (j = 0; j < rows; j++) out[i * rows + j] = ref_distance(metric, q + i * dim, x + j * dim, dim);
}

#if REF_TWICE
__attribute__((target("avx2,fma"))) static void ref_distances_fma(mlk_metric metric, const float *q, int64_t queries,
                                                                  const float *x, int64_t rows, int64_t dim,
                                                                  float *out) {
  ref_distances_text(metric, q, queries, x, rows, dim, out);
}
#endif

static void ref_distances(mlk_metric metric, const float *q, int64_t queries, const float *x, int64_t rows, int64_t dim,
                          float *out) {
#if REF_TWICE
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    ref_distances_fma(metric, q, queries, x, rows, dim, out);
    return;
  }
#endif
  ref_distances_text(metric, q, queries, x, rows, dim, out);
}

typedef struct hit {
  float rank; /* smaller is nearer, whatever the metric */
  float distance;
  int64_t row;
} hit;

static int larger_is_nearer(mlk_metric metric) { return metric == MLK_INNER_PRODUCT || metric == MLK_COSINE; }

static int by_rank_then_row(const void *a, const void *b) {
  const hit *x = (const hit *)a, *y = (const hit *)b;
  if (x->rank < y->rank) return -1;
  if (x->rank > y->rank) return 1;
  return x->row < y->row ? -1 : x->row > y->row;
}

/* The neighbours of one query, nearest first; NaN distances are nobody's neighbour. Gives how many. */
static int64_t ref_rank(mlk_metric metric, const float *distances, int64_t rows, hit *hits) {
  int64_t j, count = 0;
  for (j = 0; j < rows; j++) {
    if (isnan(distances[j])) continue;
    hits[count].distance = distances[j];
    hits[count].rank = larger_is_nearer(metric) ? -distances[j] : distances[j];
    hits[count].row = j;
    count++;
  }
  if (count > 1) qsort(hits, (size_t)count, sizeof *hits, by_rank_then_row);
  return count;
}

/* ---- data -------------------------------------------------------------------------------------------------------- */

typedef enum kind {
  UNIFORM,
  CLUSTERED,      /* many near-ties */
  INTEGERS,       /* masses of exact ties */
  DUPLICATES,     /* every row several times, queries among them */
  OFFSET_1E4,     /* a common offset, spread 1 */
  OFFSET_1E6,     /* squares cancel entirely in f32 */
  OFFSET_1E7,     /* a unit in the last place is 1 */
  ZERO_PADDED,    /* the last three quarters of the columns are zero */
  IMPROVING,      /* each row beats all before it, for every query */
  WORSENING,      /* none does */
  ALL_EQUAL,      /* one row, N times */
  NEAR_IDENTICAL, /* rows one unit in the last place apart in one column */
  DENORMALS,      /* elements, or their squares, below the normal range */
  NORM_OVERFLOW,  /* squared norms overflow, differences stay finite */
  LARGEST,        /* near FLT_MAX: nearly all overflows */
  INFINITIES,
  NANS,
  ZERO_VECTORS,
  MIXED_SCALES, /* row norms from 2^-40 to 2^40 */
  EDGE_SCALES,  /* row norms from 2^-75 to 2^75: squares overflow and underflow */
  TINY,         /* squares are a few times the least denormal */
  TINY_ROWS,    /* near-identical rows whose squared norms vanish, and usual queries */
  KINDS
} kind;

static const char *kind_name(kind k) {
  static const char *const names[KINDS] = {
      "uniform",      "clustered",     "integers",  "duplicates", "offset 1e4", "offset 1e6",
      "offset 1e7",   "zero-padded",   "improving", "worsening",  "all equal",  "near-identical",
      "denormals",    "norm overflow", "largest",   "infinities", "nans",       "zero vectors",
      "mixed scales", "edge scales",   "tiny",      "tiny rows"};
  return names[k];
}

static const char *metric_name(mlk_metric metric) {
  static const char *const names[MLK_METRIC_COUNT] = {"l2sq", "l2", "ip", "cosine"};
  return names[metric];
}

#define TINY_SPREAD (1.0f / 4096)

/* One element of the kinds that draw each element by itself. */
static float draw(mlkt_rng *rng, kind k) {
  switch (k) {
  case INTEGERS: return (float)mlkt_int(rng, -2, 2);
  case OFFSET_1E4: return 1e4f + mlkt_unit(rng);
  case OFFSET_1E6: return 1e6f + mlkt_unit(rng);
  case OFFSET_1E7: return 1e7f + (float)mlkt_int(rng, 0, 3);
  case DENORMALS: return ldexpf(mlkt_signed(rng), -(int)mlkt_int(rng, 60, 148));
  case TINY: return ldexpf(mlkt_signed(rng), -73);
  case NORM_OVERFLOW: return ldexpf((float)(8388608 + mlkt_int(rng, 0, 7)), 55); /* 2^78, 8 neighbours */
  case LARGEST: return mlkt_int(rng, 0, 7) ? FLT_MAX * (1.0f - 0.5f * mlkt_unit(rng)) : -FLT_MAX;
  default: return mlkt_signed(rng);
  }
}

/* q [queries, dim] and x [rows, dim], dense */
static void fill(mlkt_rng *rng, kind k, mlk_metric metric, float *q, int64_t queries, float *x, int64_t rows,
                 int64_t dim) {
  const int64_t qn = queries * dim, xn = rows * dim;
  int64_t i, j;
  for (i = 0; i < qn; i++) q[i] = draw(rng, k);
  for (i = 0; i < xn; i++) x[i] = draw(rng, k);
  if (dim == 0) return;
  switch (k) {
  case CLUSTERED: /* five centres: the first queries or what there is of them */
    for (i = 0; i < rows; i++)
      for (j = 0; j < dim; j++)
        x[i * dim + j] = (queries ? q[i % (queries < 5 ? queries : 5) * dim + j] : 1.0f) + TINY_SPREAD * x[i * dim + j];
    for (i = 5; i < queries; i++)
      for (j = 0; j < dim; j++) q[i * dim + j] = q[i % 5 * dim + j] + TINY_SPREAD * q[i * dim + j];
    break;
  case DUPLICATES:
    for (i = 0; i < rows; i++) memcpy(x + i * dim, x + i % (rows / 4 + 1) * dim, (size_t)dim * sizeof *x);
    for (i = 0; rows && i < queries; i++)
      memcpy(q + i * dim, x + mlkt_int(rng, 0, rows - 1) * dim, (size_t)dim * sizeof *x);
    break;
  case ZERO_PADDED:
    for (i = 0; i < qn; i++)
      if (i % dim >= (dim + 3) / 4) q[i] = 0.0f;
    for (i = 0; i < xn; i++)
      if (i % dim >= (dim + 3) / 4) x[i] = 0.0f;
    break;
  case IMPROVING:
  case WORSENING: /* along a ray: away from the queries for L2, with growing length or shrinking angle otherwise */
    for (i = 0; i < qn; i++) q[i] = (i % dim == 0 ? 1.0f : 0.5f) + TINY_SPREAD * TINY_SPREAD * q[i];
    for (i = 0; i < xn; i++) {
      const float step = (float)(k == IMPROVING ? rows - i / dim : i / dim + 1) / (float)rows,
                  first = i % dim == 0 ? 1.0f : 0.5f;
      if (metric == MLK_INNER_PRODUCT)
        x[i] = first * (2.0f - step);
      else
        x[i] = i % dim == 0 ? first + step : first;
    }
    break;
  case ALL_EQUAL:
    for (i = dim; i < xn; i++) x[i] = x[i % dim];
    break;
  case NEAR_IDENTICAL:
    for (i = dim; i < xn; i++) x[i] = x[i % dim];
    for (i = 0; i < rows; i++) {
      float *one = x + i * dim + mlkt_int(rng, 0, dim - 1);
      *one = nextafterf(*one, mlkt_int(rng, 0, 1) ? 2.0f : -2.0f);
    }
    for (i = 0; rows && i < qn; i++) q[i] = x[i % dim];
    for (i = 0; rows && i < queries; i++) {
      float *one = q + i * dim + mlkt_int(rng, 0, dim - 1);
      *one = nextafterf(*one, 2.0f);
    }
    break;
  case TINY_ROWS:
    for (i = dim; i < xn; i++) x[i] = x[i % dim];
    for (i = 0; i < xn; i++) x[i] = ldexpf(x[i] + (float)mlkt_int(rng, -2, 2) / 8388608.0f, -80);
    break;
  case LARGEST: /* some queries are rows, so that finite distances occur too */
    for (i = 0; rows && i < queries; i += 2)
      memcpy(q + i * dim, x + mlkt_int(rng, 0, rows - 1) * dim, (size_t)dim * sizeof *x);
    break;
  case INFINITIES:
    for (i = 0; i < rows; i++)
      if (mlkt_int(rng, 0, 3) == 0) x[i * dim + mlkt_int(rng, 0, dim - 1)] = mlkt_int(rng, 0, 1) ? INFINITY : -INFINITY;
    for (i = 0; i < queries; i++)
      if (mlkt_int(rng, 0, 3) == 0) q[i * dim + mlkt_int(rng, 0, dim - 1)] = mlkt_int(rng, 0, 1) ? INFINITY : -INFINITY;
    break;
  case NANS:
    for (i = 0; i < rows; i++)
      if (mlkt_int(rng, 0, 2) == 0) x[i * dim + mlkt_int(rng, 0, dim - 1)] = mlkt_int(rng, 0, 1) ? NAN : -NAN;
    for (i = 0; i < queries; i++)
      if (mlkt_int(rng, 0, 5) == 0) q[i * dim + mlkt_int(rng, 0, dim - 1)] = NAN;
    break;
  case ZERO_VECTORS:
    for (i = 0; i < rows; i++)
      if (mlkt_int(rng, 0, 1)) memset(x + i * dim, 0, (size_t)dim * sizeof *x);
    for (i = 0; i < queries; i++)
      if (mlkt_int(rng, 0, 2) == 0) memset(q + i * dim, 0, (size_t)dim * sizeof *q);
    for (i = 0; i < queries; i++)
      if (mlkt_int(rng, 0, 4) == 0) q[i * dim] = -0.0f;
    break;
  case MIXED_SCALES:
  case EDGE_SCALES:
    for (i = 0; i < rows; i++) {
      const float scale = ldexpf(1.0f, (int)mlkt_int(rng, k == EDGE_SCALES ? -75 : -40, k == EDGE_SCALES ? 75 : 40));
      for (j = 0; j < dim; j++) x[i * dim + j] *= scale;
    }
    for (i = 0; i < queries; i++) {
      const float scale = ldexpf(1.0f, (int)mlkt_int(rng, k == EDGE_SCALES ? -75 : -40, k == EDGE_SCALES ? 75 : 40));
      for (j = 0; j < dim; j++) q[i * dim + j] *= scale;
    }
    break;
  default: break;
  }
}

/* ---- operands in every layout, between guard pages --------------------------------------------------------------- */

typedef enum layout {
  DENSE,
  PADDED,
  TRANSPOSED,
  TRANSPOSED_PADDED,
  BOTH_STRIDED, /* neither stride is 1 */
  OUTPUT_LAYOUTS,
  ROWS_BACKWARD = OUTPUT_LAYOUTS, /* negative strides: inputs only */
  COLUMNS_BACKWARD,
  BOTH_BACKWARD,
  LAYOUTS
} layout;

typedef struct operand {
  mlk_tensor tensor;
  mlkt_buffer buffer;
  float *copy;   /* of the whole buffer, to see that it stays as it is */
  float *origin; /* of element (0, 0) */
  int64_t rows, cols, row_stride, col_stride;
} operand;

static void *need(size_t bytes) {
  void *memory = malloc(bytes ? bytes : 1);
  if (!memory) {
    fprintf(stderr, "test_knn: out of memory\n");
    exit(3);
  }
  return memory;
}

static float *need_f32(int64_t count) { return (float *)need((size_t)count * sizeof(float)); }
static int64_t *need_i64(int64_t count) { return (int64_t *)need((size_t)count * sizeof(int64_t)); }

static operand operand_new(int64_t rows, int64_t cols, layout how, mlkt_flush flush) {
  static const int64_t pads[LAYOUTS] = {0, 3, 0, 5, 1, 1, 0, 0};
  const int64_t pad = pads[how];
  operand o;
  int64_t low = 0, high = -1;
  memset(&o, 0, sizeof o);
  o.rows = rows, o.cols = cols;
  o.row_stride = cols + pad, o.col_stride = 1;
  if (how == TRANSPOSED || how == TRANSPOSED_PADDED) o.row_stride = 1, o.col_stride = rows + pad;
  if (how == BOTH_STRIDED) o.row_stride = 2 * cols + pad, o.col_stride = 2;
  if (how == ROWS_BACKWARD) o.row_stride = -(cols + pad);
  if (how == COLUMNS_BACKWARD) o.col_stride = -1;
  if (how == BOTH_BACKWARD) o.row_stride = -1, o.col_stride = -rows;
  if (rows > 0 && cols > 0) {
    const int64_t r = (rows - 1) * o.row_stride, c = (cols - 1) * o.col_stride;
    low = (r < 0 ? r : 0) + (c < 0 ? c : 0);
    high = (r > 0 ? r : 0) + (c > 0 ? c : 0);
  }
  o.buffer = mlkt_buffer_new((size_t)(high - low + 1) * sizeof(float), flush);
  o.origin = mlkt_buffer_f32(&o.buffer) - low;
  o.tensor = mlk_f32(o.origin, rows, cols);
  if (how != DENSE) {
    o.tensor.stride[0] = o.row_stride;
    o.tensor.stride[1] = o.col_stride;
  }
  mlkt_rogue_f32(mlkt_buffer_f32(&o.buffer), o.buffer.bytes / sizeof(float));
  return o;
}

static float *at(const operand *o, int64_t i, int64_t j) { return o->origin + i * o->row_stride + j * o->col_stride; }

static operand operand_from(const float *dense, int64_t rows, int64_t cols, layout how, mlkt_flush flush) {
  operand o = operand_new(rows, cols, how, flush);
  int64_t i, j;
  for (i = 0; i < rows; i++)
    for (j = 0; j < cols; j++) *at(&o, i, j) = dense[i * cols + j];
  o.copy = (float *)need(o.buffer.bytes);
  memcpy(o.copy, o.buffer.data, o.buffer.bytes);
  return o;
}

static void operand_free(operand *o) {
  if (o->copy) CHECK_MSG(memcmp(o->copy, o->buffer.data, o->buffer.bytes) == 0, "an input was written to");
  CHECK_MSG(mlkt_buffer_intact(&o->buffer), "somebody wrote beside an operand");
  mlkt_buffer_free(&o->buffer);
  free(o->copy);
}

/* ---- problems: data and what the reference says about them ------------------------------------------------------- */

typedef struct problem {
  int64_t queries, rows, dim;
  mlk_metric metric;
  float *q, *x;     /* dense */
  float *distances; /* [queries, rows] */
  hit *hits;        /* [queries, rows]: the first counts[i] of row i are its neighbours, nearest first */
  int64_t *counts;  /* [queries] */
} problem;

static void problem_solve(problem *p) {
  int64_t i;
  ref_distances(p->metric, p->q, p->queries, p->x, p->rows, p->dim, p->distances);
  for (i = 0; i < p->queries; i++)
    p->counts[i] = ref_rank(p->metric, p->distances + i * p->rows, p->rows, p->hits + i * p->rows);
}

/* Memory for the data; q and x are still to be filled, then problem_solve. */
static problem problem_new(mlk_metric metric, int64_t queries, int64_t rows, int64_t dim) {
  problem p;
  p.queries = queries, p.rows = rows, p.dim = dim, p.metric = metric;
  p.q = need_f32(queries * dim);
  p.x = need_f32(rows * dim);
  p.distances = need_f32(queries * rows);
  p.hits = (hit *)need((size_t)(queries * rows) * sizeof(hit));
  p.counts = need_i64(queries);
  return p;
}

static problem problem_random(mlkt_rng *rng, kind k, mlk_metric metric, int64_t queries, int64_t rows, int64_t dim) {
  problem p = problem_new(metric, queries, rows, dim);
  fill(rng, k, metric, p.q, queries, p.x, rows, dim);
  problem_solve(&p);
  return p;
}

static void problem_free(problem *p) {
  free(p->q);
  free(p->x);
  free(p->distances);
  free(p->hits);
  free(p->counts);
}

static float filler(mlk_metric metric) { return larger_is_nearer(metric) ? -INFINITY : INFINITY; }

static int same_bits(float a, float b) { return mlkt_bits(a) == mlkt_bits(b) || (isnan(a) && isnan(b)); }

/* ids and distances (or NULL), both dense [queries, k], against the reference */
static int answers_right(const problem *p, int64_t k, int64_t first_id, const int64_t *ids, const float *distances) {
  int64_t i, r;
  for (i = 0; i < p->queries; i++)
    for (r = 0; r < k; r++) {
      const hit *h = p->hits + i * p->rows + r;
      const int there = r < p->counts[i];
      const int64_t id = there ? h->row + first_id : -1;
      const float d = there ? h->distance : filler(p->metric);
      if (ids[i * k + r] == id && (!distances || same_bits(distances[i * k + r], d))) continue;
      return CHECK_MSG(0, "query %ld, place %ld: id %ld at %.9g, expected id %ld at %.9g", (long)i, (long)r,
                       (long)ids[i * k + r], distances ? (double)distances[i * k + r] : 0.0, (long)id, (double)d);
    }
  return CHECK(1);
}

/* Dense calls for the laws: ids and distances are [queries, k]. */
static mlk_knn_desc dense_knn(mlk_metric metric, const float *q, int64_t queries, const float *x, int64_t rows,
                              int64_t dim, int64_t k, int64_t *ids, float *distances) {
  mlk_knn_desc d;
  memset(&d, 0, sizeof d);
  d.queries = mlk_f32(q, queries, dim);
  d.base = mlk_f32(x, rows, dim);
  d.k = k;
  d.metric = metric;
  d.ids = mlk_i64(ids, queries, k);
  if (distances) d.distances = mlk_f32(distances, queries, k);
  return d;
}

static mlk_distances_desc dense_distances(mlk_metric metric, const float *q, int64_t queries, const float *x,
                                          int64_t rows, int64_t dim, float *out) {
  mlk_distances_desc d;
  memset(&d, 0, sizeof d);
  d.queries = mlk_f32(q, queries, dim);
  d.base = mlk_f32(x, rows, dim);
  d.metric = metric;
  d.out = mlk_f32(out, queries, rows);
  return d;
}

/* Contexts of every row, thread count and manner of running tasks, opened on first use and kept for a case, so that
   workspaces come to each call in whatever state another problem left them. */
enum { THREADS = 7, MANNERS = 2 };

typedef struct crew {
  mlk_context *ctx[MLK_ISA_COUNT][THREADS + 1][MANNERS];
} crew;

static mlk_context *crew_get(crew *c, mlk_isa isa, int threads, int manner) {
  mlk_context_desc desc;
  mlk_context **ctx;
  if (threads > mlkt_opt.threads_max) threads = mlkt_opt.threads_max;
  if (threads > THREADS) threads = THREADS;
  ctx = &c->ctx[isa][threads][manner];
  if (*ctx) return *ctx;
  desc = mlkt_context_desc(isa, threads);
  if (manner == 1) desc.parallel = mlkt_parallel_reversed(threads);
  CHECK_OK(NULL, mlk_open(ctx, &desc));
  return *ctx;
}

static void crew_close(crew *c) {
  int i, t, m;
  for (i = 0; i < MLK_ISA_COUNT; i++)
    for (t = 0; t <= THREADS; t++)
      for (m = 0; m < MANNERS; m++) mlk_close(c->ctx[i][t][m]);
}

/* ---- the sweeps -------------------------------------------------------------------------------------------------- */

static const int64_t dims[] = {0,  1,  2,   3,   7,   8,   15,  16,  17,  31,  32,
                               33, 64, 100, 128, 255, 256, 511, 512, 513, 784, 1030};
static const int64_t row_counts[] = {0, 1, 2, 5, 31, 32, 33, 47, 48, 100, 257, 1000, 4099};
static const int64_t query_counts[] = {0, 1, 2, 3, 5, 7, 8, 9, 13, 14, 15, 16, 17, 33, 64, 130, 300};
static const int64_t k_values[] = {0,   1,   2,   5,   10,  16,   17, 33, 64,
                                   100, 193, 257, 385, 513, 1500, -1, -4}; /* -1: N, -4: N + 3 */

enum axis { AXIS_DIM, AXIS_ROWS, AXIS_QUERIES, AXIS_K, AXIS_METRIC, AXIS_KIND, AXIS_Q_LAYOUT, AXIS_X_LAYOUT, AXES };

#define COUNT_OF(array) ((int)(sizeof(array) / sizeof(array)[0]))

static int axis_size(int axis) {
  const int sizes[AXES] = {COUNT_OF(dims),
                           COUNT_OF(row_counts),
                           COUNT_OF(query_counts),
                           COUNT_OF(k_values),
                           MLK_METRIC_COUNT,
                           KINDS,
                           LAYOUTS,
                           LAYOUTS};
  return sizes[axis];
}

typedef struct point {
  int level[AXES];
} point;

static int64_t point_k(const point *p) {
  const int64_t k = k_values[p->level[AXIS_K]], rows = row_counts[p->level[AXIS_ROWS]];
  return k >= 0 ? k : rows - 1 - k;
}

/* multiply-adds of the reference, with a little for each distance and each place of the output */
static int64_t point_work(const point *p) {
  const int64_t q = query_counts[p->level[AXIS_QUERIES]], n = row_counts[p->level[AXIS_ROWS]];
  return q * n * (dims[p->level[AXIS_DIM]] + 32) + q * point_k(p) * 8;
}

/* The reference computes one element after the other, and C's fmaf may be a function: large problems are left to the
   rows with vectors. The scalar row has the smallest tiles, so it needs the largest problems least. */
static int worth_running(mlk_isa isa, int64_t work) {
  const int64_t limit = isa == MLK_ISA_REFERENCE ? 1000000 : isa == MLK_ISA_SCALAR ? 6000000 : INT64_MAX;
  return work <= limit || mlkt_opt.long_run || isa == mlkt_opt.isa;
}

/* Every pair of levels of every two axes comes up; the other axes are drawn, again until the work is bearable. */
static void sweep_pairs(mlkt_rng rng, int64_t work_limit, void (*run)(crew *, mlkt_rng *, const point *)) {
  crew c;
  uint64_t index = 0;
  int a, b, la, lb, other, tries;
  memset(&c, 0, sizeof c);
  for (a = 0; a < AXES; a++)
    for (b = a + 1; b < AXES; b++)
      for (la = 0; la < axis_size(a); la++)
        for (lb = 0; lb < axis_size(b); lb++) {
          mlkt_rng own = rng;
          point p;
          if (!mlkt_keep(index++) || mlkt_hopeless()) continue;
          own.state += index * UINT64_C(0x9E3779B97F4A7C15);
          own.state = mlkt_u64(&own);
          for (tries = 0; tries < 50; tries++) {
            for (other = 0; other < AXES; other++) p.level[other] = (int)mlkt_int(&own, 0, axis_size(other) - 1);
            p.level[a] = la, p.level[b] = lb;
            if (point_work(&p) <= work_limit) break;
          }
          run(&c, &own, &p);
        }
  crew_close(&c);
}

static void note_point(const point *p, int64_t k, const char *isa, int threads, int manner) {
  mlkt_note("D %ld, N %ld, Q %ld, k %ld, %s, %s, layouts %d %d, isa %s, threads %d%s", (long)dims[p->level[AXIS_DIM]],
            (long)row_counts[p->level[AXIS_ROWS]], (long)query_counts[p->level[AXIS_QUERIES]], (long)k,
            metric_name((mlk_metric)p->level[AXIS_METRIC]), kind_name((kind)p->level[AXIS_KIND]),
            p->level[AXIS_Q_LAYOUT], p->level[AXIS_X_LAYOUT], isa, threads, manner ? " by hook" : "");
}

/* One knn call into guarded, padded outputs, compared with the reference. */
static void run_knn(mlk_context *ctx, const problem *p, mlk_tensor queries, mlk_tensor base, int64_t k, mlkt_rng *rng) {
  const mlkt_flush flush = mlkt_int(rng, 0, 1) ? MLKT_TAIL : MLKT_HEAD;
  const int with_distances = mlkt_int(rng, 0, 3) != 0;
  const int64_t ids_step = k + mlkt_int(rng, 0, 1) * 3, distances_step = k + mlkt_int(rng, 0, 1) * 5;
  const int64_t ids_size = p->queries ? (p->queries - 1) * ids_step + k : 0;
  const int64_t distances_size = p->queries ? (p->queries - 1) * distances_step + k : 0;
  const int64_t first_id = mlkt_int(rng, 0, 2) ? 0 : mlkt_int(rng, 1, INT64_C(1) << 40);
  mlkt_buffer ids = mlkt_buffer_new((size_t)ids_size * sizeof(int64_t), flush);
  mlkt_buffer distances = mlkt_buffer_new((size_t)distances_size * sizeof(float), flush);
  int64_t *got_ids = need_i64(p->queries * k);
  float *got_distances = need_f32(p->queries * k);
  mlk_knn_desc d;
  int64_t i;
  memset(&d, 0, sizeof d);
  d.queries = queries;
  d.base = base;
  d.k = k;
  d.metric = p->metric;
  d.first_id = first_id;
  d.ids = mlk_i64(mlkt_buffer_i64(&ids), p->queries, k);
  if (ids_step != k) d.ids = mlk_with_row_stride(d.ids, ids_step);
  if (with_distances) {
    d.distances = mlk_f32(mlkt_buffer_f32(&distances), p->queries, k);
    if (distances_step != k) d.distances = mlk_with_row_stride(d.distances, distances_step);
  }
  mlkt_rogue_i64(mlkt_buffer_i64(&ids), (size_t)ids_size);
  mlkt_rogue_f32(mlkt_buffer_f32(&distances), (size_t)distances_size);
  if (CHECK_OK(ctx, mlk_knn(ctx, &d))) {
    for (i = 0; i < p->queries; i++) {
      int64_t *id = mlkt_buffer_i64(&ids) + i * ids_step;
      float *distance = mlkt_buffer_f32(&distances) + i * distances_step;
      memcpy(got_ids + i * k, id, (size_t)k * sizeof *id);
      memcpy(got_distances + i * k, distance, (size_t)k * sizeof *distance);
      mlkt_rogue_i64(id, (size_t)k);
      if (with_distances) mlkt_rogue_f32(distance, (size_t)k);
    }
    answers_right(p, k, first_id, got_ids, with_distances ? got_distances : NULL);
    CHECK_MSG(mlkt_is_rogue_i64(mlkt_buffer_i64(&ids), (size_t)ids_size), "the padding of ids was written to");
    CHECK_MSG(mlkt_is_rogue_f32(mlkt_buffer_f32(&distances), (size_t)distances_size),
              "the padding of distances, or absent distances, were written to");
  }
  CHECK_MSG(mlkt_buffer_intact(&ids) && mlkt_buffer_intact(&distances), "somebody wrote beside an output");
  mlkt_buffer_free(&ids);
  mlkt_buffer_free(&distances);
  free(got_ids);
  free(got_distances);
}

static void knn_point(crew *c, mlkt_rng *rng, const point *at_point) {
  mlk_isa isas[MLK_ISA_COUNT];
  const int rows_of_kernels = mlkt_isas_and_reference(isas);
  const mlkt_flush flush = mlkt_int(rng, 0, 1) ? MLKT_TAIL : MLKT_HEAD;
  problem p = problem_random(rng, (kind)at_point->level[AXIS_KIND], (mlk_metric)at_point->level[AXIS_METRIC],
                             query_counts[at_point->level[AXIS_QUERIES]], row_counts[at_point->level[AXIS_ROWS]],
                             dims[at_point->level[AXIS_DIM]]);
  operand q = operand_from(p.q, p.queries, p.dim, (layout)at_point->level[AXIS_Q_LAYOUT], flush);
  operand x = operand_from(p.x, p.rows, p.dim, (layout)at_point->level[AXIS_X_LAYOUT], flush);
  int i;
  for (i = 0; i < rows_of_kernels && !mlkt_hopeless(); i++) {
    const int threads = (int)mlkt_int(rng, 1, THREADS), manner = (int)mlkt_int(rng, 0, MANNERS - 1);
    const int64_t k = point_k(at_point);
    mlk_context *ctx;
    if (!worth_running(isas[i], point_work(at_point))) continue;
    ctx = crew_get(c, isas[i], threads, manner);
    note_point(at_point, k, mlk_isa_name(isas[i]), threads, manner);
    if (ctx) run_knn(ctx, &p, q.tensor, x.tensor, k, rng);
  }
  operand_free(&q);
  operand_free(&x);
  problem_free(&p);
}

static int64_t sweep_limit(void) { return mlkt_opt.long_run ? INT64_MAX : mlkt_sampled() ? 3000000 : 5000000; }

static void test_knn_sweep(void) { sweep_pairs(mlkt_rng_case(), sweep_limit(), knn_point); }

/* Shapes as they are in use, larger than the sweep bears in number. */
static void test_knn_large(void) {
  static const struct {
    int64_t queries, rows, dim, k;
    kind data;
    mlk_metric metric;
  } cases[] = {
      {300, 4099, 1030, 10, CLUSTERED, MLK_L2SQ},  {300, 4099, 784, 5, OFFSET_1E4, MLK_L2},
      {130, 4099, 128, 100, INTEGERS, MLK_L2SQ},   {300, 4099, 64, 4102, UNIFORM, MLK_COSINE},
      {1, 20011, 784, 10, CLUSTERED, MLK_L2SQ},    {10, 20011, 128, 1, IMPROVING, MLK_L2SQ},
      {7, 20011, 100, 33, DUPLICATES, MLK_COSINE}, {300, 4099, 256, 10, MIXED_SCALES, MLK_INNER_PRODUCT},
      {64, 20011, 33, 1500, NANS, MLK_L2},         {1000, 2003, 17, 16, IMPROVING, MLK_INNER_PRODUCT},
      {12, 40, 70001, 3, CLUSTERED, MLK_COSINE},   {12, 50, 65536, 3, CLUSTERED, MLK_L2SQ},
      {130, 4099, 512, 10, OFFSET_1E6, MLK_L2SQ},  {130, 4099, 513, 64, NEAR_IDENTICAL, MLK_L2SQ},
  };
  crew c;
  mlkt_rng rng = mlkt_rng_case();
  mlk_isa isas[MLK_ISA_COUNT];
  const int rows_of_kernels = mlkt_isas_and_reference(isas);
  int i, r;
  memset(&c, 0, sizeof c);
  for (i = 0; i < COUNT_OF(cases) && !mlkt_hopeless(); i++) {
    problem p;
    if (mlkt_opt.quick && (i % 4 != 2 || (mlkt_sampled() && i == 2))) continue; /* sampled: two of the lesser ones */
    p = problem_random(&rng, cases[i].data, cases[i].metric, cases[i].queries, cases[i].rows, cases[i].dim);
    for (r = 0; r < rows_of_kernels; r++) {
      const int threads = 1 + (i + 3 * r) % THREADS;
      mlk_context *ctx;
      if (!worth_running(isas[r], p.queries * p.rows * p.dim) && !(isas[r] == MLK_ISA_SCALAR && i % 7 == 2)) continue;
      ctx = crew_get(&c, isas[r], threads, r % MANNERS);
      mlkt_note("case %d: Q %ld, N %ld, D %ld, k %ld, %s, %s, isa %s, threads %d", i, (long)p.queries, (long)p.rows,
                (long)p.dim, (long)cases[i].k, metric_name(p.metric), kind_name(cases[i].data), mlk_isa_name(isas[r]),
                threads);
      if (ctx) run_knn(ctx, &p, mlk_f32(p.q, p.queries, p.dim), mlk_f32(p.x, p.rows, p.dim), cases[i].k, &rng);
    }
    problem_free(&p);
  }
  crew_close(&c);
}

/* Every kind of data with enough queries and rows that a filter by inner products has pairs to drop and may drop none
   of the wrong ones. */
static void test_knn_filter(void) {
  const int64_t dims_here[] = {3, 20, 131}, queries = 48, rows = 700;
  mlk_isa isas[MLK_ISA_COUNT];
  const int rows_of_kernels = mlkt_isas(isas);
  mlkt_rng rng = mlkt_rng_case();
  crew c;
  int data, m, w, r;
  memset(&c, 0, sizeof c);
  for (data = 0; data < KINDS; data++)
    for (m = 0; m < MLK_METRIC_COUNT; m++)
      for (w = 0; w < COUNT_OF(dims_here) && !mlkt_hopeless(); w++) {
        problem p;
        if (mlkt_opt.quick && (data + m + w) % (mlkt_sampled() ? 9 : 3)) continue;
        p = problem_random(&rng, (kind)data, (mlk_metric)m, queries, rows, dims_here[w]);
        for (r = 0; r < rows_of_kernels; r++) {
          const int64_t ks[] = {1, 6, 193, 257, 385, 513}, k = ks[(data + m + 2 * w + r) % 6];
          mlk_context *ctx = crew_get(&c, isas[r], 1 + r % 2, 1);
          mlkt_note("Q %ld, N %ld, D %ld, k %ld, %s, %s, isa %s", (long)queries, (long)rows, (long)p.dim, (long)k,
                    metric_name(p.metric), kind_name((kind)data), mlk_isa_name(isas[r]));
          if (ctx) run_knn(ctx, &p, mlk_f32(p.q, queries, p.dim), mlk_f32(p.x, rows, p.dim), k, &rng);
        }
        problem_free(&p);
      }
  crew_close(&c);
}

static void distances_point(crew *c, mlkt_rng *rng, const point *at_point) {
  mlk_isa isas[MLK_ISA_COUNT];
  const int rows_of_kernels = mlkt_isas_and_reference(isas);
  const mlkt_flush flush = mlkt_int(rng, 0, 1) ? MLKT_TAIL : MLKT_HEAD;
  const layout out_layout = (layout)mlkt_int(rng, 0, OUTPUT_LAYOUTS - 1);
  problem p = problem_new((mlk_metric)at_point->level[AXIS_METRIC], query_counts[at_point->level[AXIS_QUERIES]],
                          row_counts[at_point->level[AXIS_ROWS]], dims[at_point->level[AXIS_DIM]]);
  operand q, x;
  int r;
  fill(rng, (kind)at_point->level[AXIS_KIND], p.metric, p.q, p.queries, p.x, p.rows, p.dim);
  ref_distances(p.metric, p.q, p.queries, p.x, p.rows, p.dim, p.distances);
  q = operand_from(p.q, p.queries, p.dim, (layout)at_point->level[AXIS_Q_LAYOUT], flush);
  x = operand_from(p.x, p.rows, p.dim, (layout)at_point->level[AXIS_X_LAYOUT], flush);
  for (r = 0; r < rows_of_kernels && !mlkt_hopeless(); r++) {
    const int threads = (int)mlkt_int(rng, 1, THREADS), manner = (int)mlkt_int(rng, 0, MANNERS - 1);
    mlk_context *ctx;
    operand out;
    mlk_distances_desc d;
    int64_t i, j, wrong = 0;
    if (!worth_running(isas[r], point_work(at_point))) continue;
    ctx = crew_get(c, isas[r], threads, manner);
    out = operand_new(p.queries, p.rows, out_layout, flush);
    memset(&d, 0, sizeof d);
    d.queries = q.tensor;
    d.base = x.tensor;
    d.metric = p.metric;
    d.out = out.tensor;
    note_point(at_point, out_layout, mlk_isa_name(isas[r]), threads, manner);
    if (ctx && CHECK_OK(ctx, mlk_distances(ctx, &d))) {
      for (i = 0; i < p.queries; i++)
        for (j = 0; j < p.rows; j++) {
          if (!same_bits(*at(&out, i, j), p.distances[i * p.rows + j]) && wrong++ == 0)
            CHECK_MSG(0, "d(%ld, %ld) is %.9g, expected %.9g", (long)i, (long)j, (double)*at(&out, i, j),
                      (double)p.distances[i * p.rows + j]);
          mlkt_rogue_f32(at(&out, i, j), 1);
        }
      CHECK_EQ_I64(wrong, 0);
      CHECK_MSG(mlkt_is_rogue_f32(mlkt_buffer_f32(&out.buffer), out.buffer.bytes / sizeof(float)),
                "the padding of out was written to");
    }
    operand_free(&out);
  }
  operand_free(&q);
  operand_free(&x);
  problem_free(&p);
}

static void test_distances_sweep(void) { sweep_pairs(mlkt_rng_case(), sweep_limit() / 4, distances_point); }

/* ---- laws -------------------------------------------------------------------------------------------------------- */

/* Runs a law on every row with 1 and 3 threads; under --quick with either. */
static void each_row(void (*law)(mlk_context *ctx, mlkt_rng *rng)) {
  mlk_isa isas[MLK_ISA_COUNT];
  const int count = mlkt_isas(isas);
  int i, threads;
  for (i = 0; i < count; i++)
    for (threads = 1; threads <= 3 && threads <= mlkt_opt.threads_max; threads += 2) {
      mlk_context *ctx;
      mlkt_rng rng = mlkt_rng_case();
      if (mlkt_opt.quick && mlkt_opt.threads_max >= 3 && (threads > 1) != (i % 2 == 0) && isas[i] != MLK_ISA_REFERENCE)
        continue;
      ctx = mlkt_open(isas[i], threads);
      mlkt_note("isa %s, threads %d", mlk_isa_name(isas[i]), threads);
      if (ctx) law(ctx, &rng);
      mlk_close(ctx);
    }
}

typedef struct answer {
  int64_t queries, k;
  int64_t *ids;
  float *distances;
} answer;

static answer ask(mlk_context *ctx, mlk_metric metric, const float *q, int64_t queries, const float *x, int64_t rows,
                  int64_t dim, int64_t k, int64_t first_id) {
  answer a;
  mlk_knn_desc d;
  a.queries = queries;
  a.k = k;
  a.ids = need_i64(queries * k);
  a.distances = need_f32(queries * k);
  d = dense_knn(metric, q, queries, x, rows, dim, k, a.ids, a.distances);
  d.first_id = first_id;
  mlkt_rogue_i64(a.ids, (size_t)(queries * k));
  mlkt_rogue_f32(a.distances, (size_t)(queries * k));
  CHECK_OK(ctx, mlk_knn(ctx, &d));
  return a;
}

static void answer_free(answer *a) {
  free(a->ids);
  free(a->distances);
}

static void check_same_answers(const answer *a, const answer *b) {
  CHECK_I64_N(a->ids, b->ids, a->queries * a->k);
  CHECK_BITS_F32_N(a->distances, b->distances, a->queries * a->k);
}

/* Adding one vector of integers to all integer rows and queries, all exact in f32, changes nothing. */
static void law_translation(mlk_context *ctx, mlkt_rng *rng) {
  const int64_t shifts[] = {1, 1000, 1 << 20, (1 << 24) - 64};
  int64_t dim, i, s;
  for (dim = 2; dim < 300; dim = dim * 3 + 1) {
    const int64_t queries = 37, rows = 211, k = 9;
    float *q = need_f32(queries * dim), *x = need_f32(rows * dim), *moved_q = need_f32(queries * dim),
          *moved_x = need_f32(rows * dim), *offset = need_f32(dim);
    answer a;
    for (i = 0; i < queries * dim; i++) q[i] = (float)mlkt_int(rng, -30, 30);
    for (i = 0; i < rows * dim; i++) x[i] = (float)mlkt_int(rng, -30, 30);
    a = ask(ctx, MLK_L2SQ, q, queries, x, rows, dim, k, 0);
    for (s = 0; s < COUNT_OF(shifts); s++) {
      answer b;
      for (i = 0; i < dim; i++) offset[i] = (float)(mlkt_int(rng, 0, 1) ? shifts[s] : -shifts[s]);
      for (i = 0; i < queries * dim; i++) moved_q[i] = q[i] + offset[i % dim];
      for (i = 0; i < rows * dim; i++) moved_x[i] = x[i] + offset[i % dim];
      b = ask(ctx, MLK_L2SQ, moved_q, queries, moved_x, rows, dim, k, 0);
      check_same_answers(&b, &a);
      answer_free(&b);
    }
    answer_free(&a);
    free(q);
    free(x);
    free(moved_q);
    free(moved_x);
    free(offset);
  }
}

static void test_translation(void) { each_row(law_translation); }

/* d(q, x) = d(x, q) bit for bit, but for cosine, whose two divisions have an order. */
static void law_symmetry(mlk_context *ctx, mlkt_rng *rng) {
  const mlk_metric metrics[] = {MLK_L2SQ, MLK_L2, MLK_INNER_PRODUCT};
  int m, k;
  for (k = 0; k < KINDS; k++)
    for (m = 0; m < COUNT_OF(metrics); m++) {
      const int64_t n = 50, queries = 23, dim = mlkt_int(rng, 1, 100);
      float *q = need_f32(queries * dim), *x = need_f32(n * dim), *there = need_f32(queries * n),
            *back = need_f32(queries * n);
      mlk_distances_desc d;
      fill(rng, (kind)k, metrics[m], q, queries, x, n, dim);
      d = dense_distances(metrics[m], q, queries, x, n, dim, there);
      CHECK_OK(ctx, mlk_distances(ctx, &d));
      d = dense_distances(metrics[m], x, n, q, queries, dim, NULL);
      d.out = mlk_transposed(mlk_f32(back, queries, n));
      CHECK_OK(ctx, mlk_distances(ctx, &d));
      CHECK_BITS_F32_N(back, there, queries * n);
      free(q);
      free(x);
      free(there);
      free(back);
    }
}

static void test_symmetry(void) { each_row(law_symmetry); }

/* Rows searched among themselves: the nearest is at +0 and is the first of the equal rows. No distance is negative. */
static void law_self(mlk_context *ctx, mlkt_rng *rng) {
  const kind kinds[] = {UNIFORM,    CLUSTERED,      DUPLICATES, OFFSET_1E4,    OFFSET_1E6,
                        OFFSET_1E7, NEAR_IDENTICAL, DENORMALS,  NORM_OVERFLOW, MIXED_SCALES};
  int i;
  for (i = 0; i < COUNT_OF(kinds); i++) {
    const int64_t n = mlkt_sampled() ? 60 : 160, dim = mlkt_int(rng, 1, 200), k = 7;
    float *x = need_f32(n * dim);
    int64_t row, r, twin;
    answer a;
    fill(rng, kinds[i], MLK_L2SQ, x, 0, x, n, dim);
    a = ask(ctx, i % 2 ? MLK_L2 : MLK_L2SQ, x, n, x, n, dim, k, 0);
    for (row = 0; row < n; row++) {
      /* differences whose squares underflow are at distance 0 too */
      for (twin = 0; twin < row; twin++)
        if (ref_l2sq(x + row * dim, x + twin * dim, dim) == 0.0f) break;
      CHECK_EQ_I64(a.ids[row * k], twin);
      CHECK_BITS_F32(a.distances[row * k], 0.0f);
      for (r = 1; r < k; r++) CHECK(a.distances[row * k + r] >= a.distances[row * k + r - 1]);
    }
    answer_free(&a);
    free(x);
  }
}

static void test_self(void) { each_row(law_self); }

static void shuffle(mlkt_rng *rng, int64_t *order, int64_t count) {
  int64_t i;
  for (i = 0; i < count; i++) order[i] = i;
  for (i = count - 1; i > 0; i--) {
    const int64_t j = mlkt_int(rng, 0, i), t = order[i];
    order[i] = order[j];
    order[j] = t;
  }
}

/* Queries in another order give the same answers in that order; so do queries one by one and in batches. */
static void law_batches(mlk_context *ctx, mlkt_rng *rng) {
  const int step = mlkt_sampled() ? 5 : 1;
  int round;
  for (round = 0; round < 24; round += step) {
    const kind data = (kind)(round % KINDS);
    const mlk_metric metric = (mlk_metric)(round % MLK_METRIC_COUNT);
    const int64_t queries = mlkt_int(rng, 2, 150), rows = mlkt_int(rng, 1, 400), dim = mlkt_int(rng, 1, 130);
    const int64_t k = mlkt_int(rng, 1, 20);
    float *q = need_f32(queries * dim), *x = need_f32(rows * dim), *mixed = need_f32(queries * dim);
    int64_t *order = need_i64(queries), i, first;
    answer all, other;
    fill(rng, data, metric, q, queries, x, rows, dim);
    all = ask(ctx, metric, q, queries, x, rows, dim, k, 0);
    shuffle(rng, order, queries);
    for (i = 0; i < queries; i++) memcpy(mixed + i * dim, q + order[i] * dim, (size_t)dim * sizeof *q);
    other = ask(ctx, metric, mixed, queries, x, rows, dim, k, 0);
    for (i = 0; i < queries; i++) {
      CHECK_I64_N(other.ids + i * k, all.ids + order[i] * k, k);
      CHECK_BITS_F32_N(other.distances + i * k, all.distances + order[i] * k, k);
    }
    answer_free(&other);
    for (first = 0; first < queries;) {
      const int64_t left = queries - first, draw_size = mlkt_int(rng, 1, 17),
                    size = draw_size < left ? draw_size : left;
      other = ask(ctx, metric, q + first * dim, size, x, rows, dim, k, 0);
      CHECK_I64_N(other.ids, all.ids + first * k, size * k);
      CHECK_BITS_F32_N(other.distances, all.distances + first * k, size * k);
      answer_free(&other);
      first += size;
    }
    answer_free(&all);
    free(q);
    free(x);
    free(mixed);
    free(order);
  }
}

static void test_batches(void) { each_row(law_batches); }

/* Base rows in another order: the same distances, and the ids of rows that no other row ties with move along. */
static void law_base_order(mlk_context *ctx, mlkt_rng *rng) {
  int round;
  for (round = 0; round < 24; round++) {
    const kind data = (kind)(round % KINDS);
    const mlk_metric metric = (mlk_metric)(round % MLK_METRIC_COUNT);
    const int64_t queries = 19, rows = mlkt_int(rng, 20, 500), dim = mlkt_int(rng, 1, 130), k = 12;
    float *q = need_f32(queries * dim), *x = need_f32(rows * dim), *mixed = need_f32(rows * dim);
    int64_t *order = need_i64(rows), i, r;
    answer a, b;
    fill(rng, data, metric, q, queries, x, rows, dim);
    shuffle(rng, order, rows);
    for (i = 0; i < rows; i++) memcpy(mixed + i * dim, x + order[i] * dim, (size_t)dim * sizeof *x);
    a = ask(ctx, metric, q, queries, x, rows, dim, k, 0);
    b = ask(ctx, metric, q, queries, mixed, rows, dim, k, 0);
    for (i = 0; i < queries; i++)
      for (r = 0; r < k; r++) {
        const int64_t here = i * k + r;
        CHECK_MSG(a.distances[here] == b.distances[here], "distance %.9g became %.9g", (double)a.distances[here],
                  (double)b.distances[here]);
        if (r > 0 && a.distances[here] == a.distances[here - 1]) continue;
        if (r + 1 == k || a.distances[here] == a.distances[here + 1]) continue;
        CHECK_EQ_I64(b.ids[here] < 0 ? -1 : order[b.ids[here]], a.ids[here]);
      }
    answer_free(&a);
    answer_free(&b);
    free(q);
    free(x);
    free(mixed);
    free(order);
  }
}

static void test_base_order(void) { each_row(law_base_order); }

/* The base in shards with first_id, merged here by (distance, id): the answer of the whole. */
static void law_shards(mlk_context *ctx, mlkt_rng *rng) {
  enum { SHARDS = 4 };
  int round;
  for (round = 0; round < 24; round++) {
    const kind data = (kind)(round % KINDS);
    const mlk_metric metric = (mlk_metric)(round / 2 % MLK_METRIC_COUNT);
    const int64_t queries = 29, rows = mlkt_int(rng, 1, 600), dim = mlkt_int(rng, 1, 80), k = mlkt_int(rng, 1, 40);
    const int64_t offset = INT64_C(1) << 33;
    int64_t cut[SHARDS + 1], i, r, s;
    float *q = need_f32(queries * dim), *x = need_f32(rows * dim);
    hit *merged = (hit *)need((size_t)(SHARDS * k) * sizeof *merged);
    answer whole, part[SHARDS];
    fill(rng, data, metric, q, queries, x, rows, dim);
    whole = ask(ctx, metric, q, queries, x, rows, dim, k, offset);
    cut[0] = 0, cut[SHARDS] = rows;
    for (s = 1; s < SHARDS; s++) cut[s] = mlkt_int(rng, cut[s - 1], rows);
    for (s = 0; s < SHARDS; s++)
      part[s] = ask(ctx, metric, q, queries, x + cut[s] * dim, cut[s + 1] - cut[s], dim, k, offset + cut[s]);
    for (i = 0; i < queries; i++) {
      int64_t count = 0;
      for (s = 0; s < SHARDS; s++)
        for (r = 0; r < k && part[s].ids[i * k + r] >= 0; r++) {
          merged[count].row = part[s].ids[i * k + r];
          merged[count].distance = part[s].distances[i * k + r];
          merged[count].rank = larger_is_nearer(metric) ? -merged[count].distance : merged[count].distance;
          count++;
        }
      if (count > 1) qsort(merged, (size_t)count, sizeof *merged, by_rank_then_row);
      for (r = 0; r < k; r++) {
        CHECK_EQ_I64(whole.ids[i * k + r], r < count ? merged[r].row : -1);
        CHECK_BITS_F32(whole.distances[i * k + r], r < count ? merged[r].distance : filler(metric));
      }
    }
    for (s = 0; s < SHARDS; s++) answer_free(&part[s]);
    answer_free(&whole);
    free(merged);
    free(q);
    free(x);
  }
}

static void test_shards(void) { each_row(law_shards); }

/* Columns of zeros behind all rows and queries change no bit. */
static void law_zero_padding(mlk_context *ctx, mlkt_rng *rng) {
  const int64_t pads[] = {1, 15, 16, 17, 64, 500};
  const int step = mlkt_sampled() ? 3 : 1;
  int round, p;
  for (round = 0; round < 20; round += step) {
    const kind data = (kind)(round % KINDS);
    const mlk_metric metric = (mlk_metric)(round % MLK_METRIC_COUNT);
    const int64_t queries = 33, rows = 150, dim = mlkt_int(rng, 1, 70), k = 11;
    float *q = need_f32(queries * dim), *x = need_f32(rows * dim);
    answer a;
    fill(rng, data, metric, q, queries, x, rows, dim);
    a = ask(ctx, metric, q, queries, x, rows, dim, k, 0);
    for (p = 0; p < COUNT_OF(pads); p++) {
      const int64_t wide = dim + pads[p];
      float *wide_q = (float *)calloc((size_t)(queries * wide), sizeof(float));
      float *wide_x = (float *)calloc((size_t)(rows * wide), sizeof(float));
      int64_t i;
      answer b;
      if (!wide_q || !wide_x) break;
      for (i = 0; i < queries; i++) memcpy(wide_q + i * wide, q + i * dim, (size_t)dim * sizeof *q);
      for (i = 0; i < rows; i++) memcpy(wide_x + i * wide, x + i * dim, (size_t)dim * sizeof *x);
      b = ask(ctx, metric, wide_q, queries, wide_x, rows, wide, k, 0);
      CHECK_I64_N(b.ids, a.ids, queries * k);
      /* all lanes of an inner product may be -0; a lane that a zero is added to is +0: equal, not the same bits */
      for (i = 0; i < queries * k; i++)
        CHECK(same_bits(b.distances[i], a.distances[i]) || (a.distances[i] == 0.0f && b.distances[i] == 0.0f));
      answer_free(&b);
      free(wide_q);
      free(wide_x);
    }
    answer_free(&a);
    free(q);
    free(x);
  }
}

static void test_zero_padding(void) { each_row(law_zero_padding); }

/* mlk_knn returns the bits of mlk_distances, and without distances the same ids. */
static void law_distances_agree(mlk_context *ctx, mlkt_rng *rng) {
  const int step = mlkt_sampled() ? 4 : 1;
  int k, m;
  for (k = 0; k < KINDS; k++)
    for (m = k % step; m < MLK_METRIC_COUNT; m += step) {
      const mlk_metric metric = (mlk_metric)m;
      const int64_t queries = mlkt_int(rng, 1, 70), rows = mlkt_int(rng, 1, 200), dim = mlkt_int(rng, 1, 150);
      float *q = need_f32(queries * dim), *x = need_f32(rows * dim), *out = need_f32(queries * rows);
      int64_t *ids = need_i64(queries * rows), i, valid;
      mlk_distances_desc d = dense_distances(metric, q, queries, x, rows, dim, out);
      mlk_knn_desc ids_only = dense_knn(metric, q, queries, x, rows, dim, rows, ids, NULL);
      answer a;
      fill(rng, (kind)k, metric, q, queries, x, rows, dim);
      a = ask(ctx, metric, q, queries, x, rows, dim, rows, 0);
      CHECK_OK(ctx, mlk_distances(ctx, &d));
      CHECK_OK(ctx, mlk_knn(ctx, &ids_only));
      CHECK_I64_N(ids, a.ids, queries * rows);
      for (i = 0, valid = 0; i < queries * rows; i++) {
        valid += !isnan(out[i]);
        if (a.ids[i] >= 0) {
          valid--;
          CHECK_BITS_F32(a.distances[i], out[i / rows * rows + a.ids[i]]);
        }
      }
      CHECK_EQ_I64(valid, 0); /* as many neighbours as distances that are numbers */
      answer_free(&a);
      free(q);
      free(x);
      free(out);
      free(ids);
    }
}

static void test_distances_agree(void) { each_row(law_distances_agree); }

/* The bounds of the manual against sums in double. */
static void law_error_bound(mlk_context *ctx, mlkt_rng *rng) {
  const kind kinds[] = {UNIFORM, CLUSTERED, OFFSET_1E4, OFFSET_1E6, NEAR_IDENTICAL, MIXED_SCALES};
  const int64_t widths[] = {1, 3, 16, 17, 100, 784, 1030, 5000};
  const double u = 1.0 / 16777216, slack = 1.0 + 1.0 / 1024;
  const int step = mlkt_sampled() ? 4 : 1;
  int which, w, m;
  for (which = 0; which < COUNT_OF(kinds); which++)
    for (w = 0; w < COUNT_OF(widths); w++)
      for (m = (which + w) % step; m < MLK_METRIC_COUNT; m += step) {
        const mlk_metric metric = (mlk_metric)m;
        const int64_t queries = 9, rows = 40, dim = widths[w];
        float *q = need_f32(queries * dim), *x = need_f32(rows * dim), *out = need_f32(queries * rows);
        mlk_distances_desc d = dense_distances(metric, q, queries, x, rows, dim, out);
        const double chain = (double)((dim + 15) / 16 + 5);
        int64_t i, j, e;
        fill(rng, kinds[which], metric, q, queries, x, rows, dim);
        CHECK_OK(ctx, mlk_distances(ctx, &d));
        for (i = 0; i < queries; i++)
          for (j = 0; j < rows; j++) {
            double l2sq = 0, ip = 0, terms = 0, qq = 0, xx = 0, exact, bound;
            const double got = (double)out[i * rows + j];
            for (e = 0; e < dim; e++) {
              const double a = (double)q[i * dim + e], b = (double)x[j * dim + e];
              l2sq += (a - b) * (a - b);
              ip += a * b;
              terms += fabs(a * b);
              qq += a * a;
              xx += b * b;
            }
            switch (metric) {
            case MLK_L2SQ: exact = l2sq, bound = (chain + 2) * u * slack * l2sq; break;
            case MLK_L2: /* half the relative error of its square, one rounding more */
              exact = sqrt(l2sq), bound = ((chain + 2) / 2 + 1) * u * slack * exact;
              break;
            case MLK_INNER_PRODUCT: exact = ip, bound = chain * u * slack * terms; break;
            default: /* the product; half of each squared norm; two roots and two divisions */
              exact = ip / sqrt(qq) / sqrt(xx);
              bound = slack * u * (chain * terms / sqrt(qq) / sqrt(xx) + (chain + 4) * fabs(exact));
              break;
            }
            CHECK_MSG(fabs(got - exact) <= bound * (1 + 1e-9) + 1e-12 * terms * (metric == MLK_INNER_PRODUCT),
                      "D %ld, %s, %s: %.9g, exactly %.12g, off by %.3g, bound %.3g", (long)dim, metric_name(metric),
                      kind_name(kinds[which]), got, exact, fabs(got - exact), bound);
          }
        free(q);
        free(x);
        free(out);
      }
}

static void test_error_bound(void) { each_row(law_error_bound); }

/* Strides of 0 are strides: one query asked Q times, one row seen N times, one number in all columns. */
static void law_repeated_rows(mlk_context *ctx, mlkt_rng *rng) {
  int m, which;
  for (m = 0; m < MLK_METRIC_COUNT; m++)
    for (which = 0; which < 3; which++) {
      const mlk_metric metric = (mlk_metric)m;
      const int64_t queries = 21, rows = 90, dim = 19, k = 5;
      problem p = problem_new(metric, queries, rows, dim);
      int64_t ids[21 * 5], i;
      float near[21 * 5];
      mlk_knn_desc d = dense_knn(metric, p.q, queries, p.x, rows, dim, k, ids, near);
      fill(rng, UNIFORM, metric, p.q, queries, p.x, rows, dim);
      if (which == 0) {
        for (i = dim; i < queries * dim; i++) p.q[i] = p.q[i % dim];
        d.queries.stride[0] = 0, d.queries.stride[1] = 1;
      } else if (which == 1) {
        for (i = dim; i < rows * dim; i++) p.x[i] = p.x[i % dim];
        d.base.stride[0] = 0, d.base.stride[1] = 1;
      } else {
        for (i = 0; i < rows * dim; i++) p.x[i] = p.x[i / dim * dim];
        d.base.stride[0] = dim, d.base.stride[1] = 0;
      }
      problem_solve(&p);
      if (CHECK_OK(ctx, mlk_knn(ctx, &d))) answers_right(&p, k, 0, ids, near);
      problem_free(&p);
    }
}

static void test_repeated_rows(void) { each_row(law_repeated_rows); }

/* More than 2^32 elements, the nearest row behind them. Pages never written to are all one page of zeros, so this takes
   17 GB of addresses and next to no memory. */
static void test_many_elements(void) {
#if MLKT_POSIX && defined(MAP_NORESERVE) && defined(MAP_ANONYMOUS) && UINTPTR_MAX > 0xFFFFFFFFu
  const int64_t rows = (INT64_C(1) << 28) + 1000, dim = 16, late = (INT64_C(1) << 28) + 7;
  const size_t bytes = (size_t)(rows * dim) * sizeof(float);
  const int64_t query_counts_here[] = {1, 20};
  void *memory;
  float *x, q[20 * 16];
  int i, c;
  if (!mlkt_opt.long_run) {
    mlkt_skip("takes a minute: --long");
    return;
  }
  memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    mlkt_skip("no 17 GB of addresses");
    return;
  }
  x = (float *)memory;
  for (i = 0; i < 16; i++) x[3 * dim + i] = 4.0f, x[4 * dim + i] = 3.0f, x[late * dim + i] = 4.5f;
  for (i = 0; i < COUNT_OF(q); i++) q[i] = 5.0f;
  for (c = 0; c < COUNT_OF(query_counts_here); c++) {
    mlk_context *ctx = mlkt_open(MLK_ISA_BEST, 2);
    if (ctx) {
      answer a = ask(ctx, MLK_L2SQ, q, query_counts_here[c], x, rows, dim, 2, 0);
      for (i = 0; i < query_counts_here[c]; i++) {
        CHECK_EQ_I64(a.ids[2 * i], late);
        CHECK_EQ_I64(a.ids[2 * i + 1], 3);
        CHECK(a.distances[2 * i] == 4.0f && a.distances[2 * i + 1] == 16.0f);
      }
      answer_free(&a);
    }
    mlk_close(ctx);
  }
  munmap(memory, bytes);
#else
  mlkt_skip("needs 64-bit addresses and mmap");
#endif
}

/* ---- troubles that other libraries had --------------------------------------------------------------------------- */

/* facebookresearch/faiss issue 297 (and 1266): columns of very different variance gave negative squared distances. */
static void law_negative_distances(mlk_context *ctx, mlkt_rng *rng) {
  const int64_t n = 300, dim = 64, k = 10;
  float *x = need_f32(n * dim);
  int64_t i;
  answer a;
  for (i = 0; i < n * dim; i++) x[i] = i % dim < 3 ? 3000.0f + 500.0f * mlkt_signed(rng) : 0.01f * mlkt_signed(rng);
  for (i = 0; i < n; i += 2) { /* pairs that differ in a small column only */
    memcpy(x + (i + 1) * dim, x + i * dim, (size_t)dim * sizeof *x);
    x[(i + 1) * dim + 40] += 0.001f;
  }
  a = ask(ctx, MLK_L2SQ, x, n, x, n, dim, k, 0);
  for (i = 0; i < n * k; i++) CHECK(a.distances[i] >= 0.0f);
  for (i = 0; i < n; i++) {
    CHECK_EQ_I64(a.ids[i * k], i);
    CHECK_EQ_I64(a.ids[i * k + 1], i ^ 1);
    CHECK_MSG(a.distances[i * k + 1] > 0.99e-6f && a.distances[i * k + 1] < 1.01e-6f, "the twin is at %g",
              (double)a.distances[i * k + 1]);
  }
  answer_free(&a);
  free(x);
}

static void test_faiss_297(void) { each_row(law_negative_distances); }

/* facebookresearch/faiss issue 563: the distances depended on how many queries were asked at once. */
static void law_query_count(mlk_context *ctx, mlkt_rng *rng) {
  const int64_t rows = mlkt_sampled() ? 500 : 2000, queries = mlkt_sampled() ? 300 : 1024, dim = 64, k = 4;
  const int64_t sizes[] = {1, 5, 19, 20, 21, 200};
  float *q = need_f32(queries * dim), *x = need_f32(rows * dim);
  int64_t i;
  answer all;
  for (i = 0; i < rows * dim; i++) x[i] = mlkt_unit(rng) + (i % dim == 0 ? (float)(i / dim) / 1000.0f : 0.0f);
  for (i = 0; i < queries * dim; i++) q[i] = x[i];
  all = ask(ctx, MLK_L2SQ, q, queries, x, rows, dim, k, 0);
  for (i = 0; i < COUNT_OF(sizes); i++) {
    answer some = ask(ctx, MLK_L2SQ, q, sizes[i], x, rows, dim, k, 0);
    CHECK_I64_N(some.ids, all.ids, sizes[i] * k);
    CHECK_BITS_F32_N(some.distances, all.distances, sizes[i] * k);
    answer_free(&some);
  }
  for (i = 0; i < queries; i++) CHECK(all.ids[i * k] == i && mlkt_bits(all.distances[i * k]) == 0);
  answer_free(&all);
  free(q);
  free(x);
}

static void test_faiss_563(void) { each_row(law_query_count); }

/* facebookresearch/faiss issues 5285 and 5327: with a common offset, or with zero columns behind them, the distances
   became 0, 0, 0 and the order that of the row numbers. Also many copies of the query, so that the
   batched path is taken. */
static void check_ranking(mlk_context *ctx, const float *points, const float *query, int64_t rows, int64_t dim,
                          int64_t queries, const int64_t *ids, const float *distances) {
  float *q = need_f32(queries * dim);
  int64_t i, r;
  answer a;
  for (i = 0; i < queries; i++) memcpy(q + i * dim, query, (size_t)dim * sizeof *q);
  a = ask(ctx, MLK_L2SQ, q, queries, points, rows, dim, rows, 0);
  for (i = 0; i < queries; i++)
    for (r = 0; r < rows; r++) {
      CHECK_EQ_I64(a.ids[i * rows + r], ids[r]);
      CHECK_BITS_F32(a.distances[i * rows + r], distances[r]);
    }
  answer_free(&a);
  free(q);
}

static void law_common_offset(mlk_context *ctx, mlkt_rng *rng) {
  const float offsets[] = {0.0f, 1e4f, 1e6f, 8388608.0f};
  const int64_t ids[] = {2, 1, 0};
  const float distances[] = {0.0f, 25.0f, 98.0f * 98.0f + 99.0f * 99.0f};
  int o;
  (void)rng;
  for (o = 0; o < COUNT_OF(offsets); o++) {
    const float a = offsets[o] + 5.0f, b = offsets[o] + 6.0f;
    const float points[] = {a + 98.0f, b + 99.0f, a + 3.0f, b + 4.0f, a, b}, query[] = {a, b};
    check_ranking(ctx, points, query, 3, 2, 1, ids, distances);
    check_ranking(ctx, points, query, 3, 2, 64, ids, distances);
  }
}

static void test_faiss_5285(void) { each_row(law_common_offset); }

static void law_zero_columns(mlk_context *ctx, mlkt_rng *rng) {
  const float points[4][2] = {{10100, 10100}, {10004, 10006}, {10001, 10002}, {10000, 10000}};
  const int64_t ids[] = {3, 2, 1, 0};
  const float distances[] = {0.0f, 5.0f, 52.0f, 20000.0f};
  const int64_t widths[] = {2, 64, 1000, 64001};
  int w, i;
  (void)rng;
  for (w = 0; w < COUNT_OF(widths); w++) {
    const int64_t dim = widths[w];
    float *x = (float *)calloc((size_t)(4 * dim), sizeof(float));
    if (!CHECK(x != NULL)) return;
    for (i = 0; i < 4; i++) memcpy(x + i * dim, points[i], sizeof points[i]);
    check_ranking(ctx, x, x + 3 * dim, 4, dim, 1, ids, distances);
    check_ranking(ctx, x, x + 3 * dim, 4, dim, 40, ids, distances);
    free(x);
  }
}

static void test_faiss_5327(void) { each_row(law_zero_columns); }

/* qdrant/qdrant issues 9659 and 9788: columns of zeros that lead over a vector width changed the order of two points
   at nearly the same distance. Pairs as close as f32 tells apart, every width from 1 to 48 and one column more. */
static void law_width_boundary(mlk_context *ctx, mlkt_rng *rng) {
  int64_t dim, i, trial;
  for (dim = 1; dim <= 48; dim++)
    for (trial = 0; trial < 4; trial++) {
      float q[49] = {0}, x[2 * 49] = {0}, narrow_x[2 * 48];
      answer a, b;
      for (i = 0; i < dim; i++) {
        const float value = 4e5f * mlkt_signed(rng);
        x[i] = value;
        x[49 + i] = trial % 2 ? nextafterf(value, 1e6f) : value + 50.0f * mlkt_signed(rng);
      }
      for (i = 0; i < dim; i++) narrow_x[i] = x[i], narrow_x[dim + i] = x[49 + i];
      a = ask(ctx, MLK_L2, q, 1, narrow_x, 2, dim, 2, 0);
      b = ask(ctx, MLK_L2, q, 1, x, 2, 49, 2, 0);
      check_same_answers(&b, &a);
      answer_free(&a);
      answer_free(&b);
    }
}

static void test_width_boundary(void) { each_row(law_width_boundary); }

/* ---- plans, workspace, memory ------------------------------------------------------------------------------------ */

/* A pointer that nobody may follow. */
static void *never_read(void) { return (void *)(uintptr_t)64; }

static mlk_knn_desc huge_knn(int64_t queries, int64_t rows, int64_t dim, int64_t k) {
  mlk_knn_desc d = dense_knn(MLK_L2SQ, (float *)never_read(), queries, (float *)never_read(), rows, dim, k,
                             (int64_t *)never_read(), (float *)never_read());
  /* far apart: outputs must not overlap operands */
  d.queries.data = (void *)(uintptr_t)(UINT64_C(1) << 44);
  d.base.data = (void *)(uintptr_t)(UINT64_C(1) << 45);
  d.ids.data = (void *)(uintptr_t)(UINT64_C(1) << 46);
  d.distances.data = (void *)(uintptr_t)(UINT64_C(3) << 45);
  return d;
}

static void law_plan(mlk_context *ctx, mlkt_rng *rng) {
  const int64_t queries[] = {1, 10, 1000, 1000000}, rows[] = {10, 60000, 1000000000}, ks[] = {1, 10, 1000};
  mlk_info info;
  uint64_t before, at_once;
  int q, n, k, m;
  (void)rng;
  if (sizeof(void *) < 8) {
    mlkt_skip("these sizes need 64-bit addresses");
    return;
  }
  CHECK_OK(ctx, mlk_get_info(ctx, &info));
  before = info.workspace_bytes;
  at_once = mlkt_opt.cuda ? 4 : (uint64_t)info.threads;
  for (m = 0; m < MLK_METRIC_COUNT; m++)
    for (q = 0; q < COUNT_OF(queries); q++)
      for (n = 0; n < COUNT_OF(rows); n++)
        for (k = 0; k < COUNT_OF(ks); k++) {
          const uint64_t uq = (uint64_t)queries[q], un = (uint64_t)rows[n], uk = (uint64_t)ks[k], dim = 784;
          mlk_knn_desc d = huge_knn(queries[q], rows[n], 784, ks[k]);
          mlk_plan plan;
          d.metric = (mlk_metric)m;
          memset(&plan, 0, sizeof plan);
          if (mlkt_opt.cuda && 4 * (uq + un) * dim >= UINT64_C(1) << 40) { /* more than any device holds */
            CHECK_STATUS(ctx, mlk_knn_plan(ctx, &d, &plan), MLK_ERR_SIZE);
            continue;
          }
          if (!CHECK_OK(ctx, mlk_knn_plan(ctx, &d, &plan))) return;
          CHECK_MSG(plan.flops == 2 * uq * un * dim, "flops of %s", metric_name(d.metric));
          CHECK_MSG(plan.bytes == 4 * (uq + un) * dim + 12 * uq * uk, "bytes %.0f", (double)plan.bytes);
          CHECK_EQ_STR(plan.backend, info.backend);
          CHECK_EQ_STR(plan.isa, info.isa);
          CHECK(plan.variant != NULL && plan.variant[0] != 0);
          CHECK(plan.threads >= 1 && plan.threads <= info.threads);
          CHECK(mlkt_opt.cuda ? plan.seconds > 0 : plan.seconds == 0);
          /* 16 bytes for each place of the answer, thrice, and 64 MiB for each thread (a device is as four): far below
             Q N */
          CHECK_MSG(plan.workspace_bytes <= 48 * uq * uk + at_once * ((uint64_t)64 << 20),
                    "workspace %.0f for Q %.0f, N %.0f, k %.0f", (double)plan.workspace_bytes, (double)uq, (double)un,
                    (double)uk);
          d.distances.data = NULL;
          CHECK_OK(ctx, mlk_knn_plan(ctx, &d, &plan));
          CHECK_MSG(plan.bytes == 4 * (uq + un) * dim + 8 * uq * uk, "bytes without distances");
        }
  {
    const int64_t far_rows = mlkt_opt.cuda ? 1000000 : 3000000; /* a device's memory ends somewhere */
    const uint64_t un = (uint64_t)far_rows;
    mlk_distances_desc d = dense_distances(MLK_L2SQ, (float *)never_read(), 100000, (float *)never_read(), far_rows,
                                           784, NULL);
    mlk_plan plan;
    d.base.data = (void *)(uintptr_t)(UINT64_C(1) << 45);
    d.out = mlk_f32((float *)(uintptr_t)(UINT64_C(1) << 46), 100000, far_rows);
    if (CHECK_OK(ctx, mlk_distances_plan(ctx, &d, &plan))) {
      CHECK(plan.flops == 2 * 100000 * un * 784);
      CHECK(plan.bytes == 4 * (100000 * UINT64_C(784) + un * 784 + 100000 * un));
      CHECK(plan.workspace_bytes <= at_once * ((uint64_t)64 << 20));
    }
  }
  CHECK_OK(ctx, mlk_get_info(ctx, &info));
  CHECK_MSG(info.workspace_bytes == before, "a plan allocated");
}

static void test_plan(void) { each_row(law_plan); }

/* For a large problem, more rows of base or more queries at the same k take no more workspace
   than the contract says. */
static void law_workspace_growth(mlk_context *ctx, mlkt_rng *rng) {
  mlk_plan small, large;
  mlk_knn_desc d;
  (void)rng;
  if (sizeof(void *) < 8) {
    mlkt_skip("these sizes need 64-bit addresses");
    return;
  }
  d = huge_knn(5000, 100000, 128, 10);
  CHECK_OK(ctx, mlk_knn_plan(ctx, &d, &small));
  d = huge_knn(5000, INT64_C(100000) * 10000, 128, 10);
  CHECK_OK(ctx, mlk_knn_plan(ctx, &d, &large));
  CHECK_MSG(large.workspace_bytes == small.workspace_bytes, "workspace %.0f for N = 1e5, %.0f for N = 1e9",
            (double)small.workspace_bytes, (double)large.workspace_bytes);
  d = huge_knn(500000, INT64_C(100000) * 10000, 128, 10);
  CHECK_OK(ctx, mlk_knn_plan(ctx, &d, &large));
  CHECK_MSG(large.workspace_bytes <= small.workspace_bytes * 100, "workspace %.0f for Q = 5000, %.0f for 500000",
            (double)small.workspace_bytes, (double)large.workspace_bytes);
}

static void test_workspace_growth(void) { each_row(law_workspace_growth); }

typedef struct small_call {
  problem p;
  mlk_knn_desc knn;
  mlk_distances_desc distances;
  int64_t *ids;
  float *near, *out;
  int64_t k;
} small_call;

/* Outputs full of rogue values. */
static void small_call_clear(small_call *c) {
  mlkt_rogue_i64(c->ids, (size_t)(c->p.queries * c->k));
  mlkt_rogue_f32(c->near, (size_t)(c->p.queries * c->k));
  mlkt_rogue_f32(c->out, (size_t)(c->p.queries * c->p.rows));
}

static small_call small_call_new(mlkt_rng *rng, mlk_metric metric, int64_t queries, int64_t rows, int64_t dim,
                                 int64_t k) {
  small_call c;
  c.p = problem_random(rng, UNIFORM, metric, queries, rows, dim);
  c.k = k;
  c.ids = need_i64(queries * k);
  c.near = need_f32(queries * k);
  c.out = need_f32(queries * rows);
  small_call_clear(&c);
  c.knn = dense_knn(metric, c.p.q, queries, c.p.x, rows, dim, k, c.ids, c.near);
  c.distances = dense_distances(metric, c.p.q, queries, c.p.x, rows, dim, c.out);
  return c;
}

static int small_call_untouched(const small_call *c) {
  return mlkt_is_rogue_i64(c->ids, (size_t)(c->p.queries * c->k)) &&
         mlkt_is_rogue_f32(c->near, (size_t)(c->p.queries * c->k)) &&
         mlkt_is_rogue_f32(c->out, (size_t)(c->p.queries * c->p.rows));
}

static void small_call_free(small_call *c) {
  problem_free(&c->p);
  free(c->ids);
  free(c->near);
  free(c->out);
}

static const struct {
  int64_t queries, rows, dim, k;
} workspace_shapes[] = {{1, 100, 16, 3}, {300, 700, 96, 10}, {5, 3000, 40, 64}, {33, 50, 513, 50}, {64, 300, 8, 1500}};

/* Knn and distances by one descriptor each, chosen by a flag. */
static mlk_status small_call_run(mlk_context *ctx, const small_call *c, int is_knn) {
  return is_knn ? mlk_knn(ctx, &c->knn) : mlk_distances(ctx, &c->distances);
}

static mlk_status small_call_plan(mlk_context *ctx, const small_call *c, int is_knn, mlk_plan *plan) {
  return is_knn ? mlk_knn_plan(ctx, &c->knn, plan) : mlk_distances_plan(ctx, &c->distances, plan);
}

static void small_call_check(const small_call *c, int is_knn) {
  if (is_knn)
    answers_right(&c->p, c->k, 0, c->ids, c->near);
  else
    CHECK_BITS_F32_N(c->out, c->p.distances, c->p.queries * c->p.rows);
}

/* A fresh context grows by exactly what the plan says; a fixed one of that size suffices; one byte less is refused. */
static void check_workspace(small_call *c, int is_knn, mlk_isa isa, int threads) {
  mlkt_memory memory;
  mlk_context_desc desc = mlkt_context_desc(isa, threads);
  mlk_context *ctx = NULL;
  mlk_plan plan;
  mlk_info info;
  uint64_t before;
  char size[32];
  memset(&memory, 0, sizeof memory);
  desc.allocator = mlkt_memory_hook(&memory);
  if (!CHECK_OK(NULL, mlk_open(&ctx, &desc))) return;
  before = memory.live_bytes;
  memset(&plan, 0, sizeof plan);
  CHECK_OK(ctx, small_call_plan(ctx, c, is_knn, &plan));
  CHECK_EQ_I64(memory.peak_bytes, before);
  small_call_clear(c);
  CHECK_OK(ctx, small_call_run(ctx, c, is_knn));
  small_call_check(c, is_knn);
  CHECK_OK(ctx, mlk_get_info(ctx, &info));
  CHECK_EQ_I64(info.workspace_bytes, plan.workspace_bytes);
  if (!mlkt_opt.cuda) { /* there the workspace is the device's */
    CHECK_EQ_I64(memory.live_bytes - before, plan.workspace_bytes);
    CHECK_EQ_I64(memory.peak_bytes - before, plan.workspace_bytes);
  }
  mlk_close(ctx);
  CHECK_MEMORY_EMPTY(&memory);

  desc.growth = MLK_FIXED;
  desc.workspace_bytes = plan.workspace_bytes;
  if (!CHECK_OK(NULL, mlk_open(&ctx, &desc))) return;
  small_call_clear(c);
  CHECK_OK(ctx, small_call_run(ctx, c, is_knn));
  small_call_check(c, is_knn);
  mlk_close(ctx);
  CHECK_MEMORY_EMPTY(&memory);
  if (plan.workspace_bytes == 0) return;

  desc.workspace_bytes = plan.workspace_bytes - 1;
  if (!CHECK_OK(NULL, mlk_open(&ctx, &desc))) return;
  small_call_clear(c);
  CHECK_STATUS(ctx, small_call_run(ctx, c, is_knn), MLK_ERR_WORKSPACE);
  CHECK_MSG(small_call_untouched(c), "outputs were written before the workspace was there");
  snprintf(size, sizeof size, "%" PRIu64, plan.workspace_bytes);
  CHECK_MSG(strstr(mlk_last_error(ctx), size) != NULL, "\"%s\" does not name %s", mlk_last_error(ctx), size);
  mlk_close(ctx);
  CHECK_MEMORY_EMPTY(&memory);
}

static void test_workspace_exact(void) {
  mlk_isa isas[MLK_ISA_COUNT];
  const int count = mlkt_isas_and_reference(isas);
  mlkt_rng rng = mlkt_rng_case();
  int i, s, m, threads, is_knn;
  for (s = 0; s < COUNT_OF(workspace_shapes); s++)
    for (m = 0; m < MLK_METRIC_COUNT; m++) {
      small_call c;
      if (mlkt_opt.quick && m != s % MLK_METRIC_COUNT) continue;
      c = small_call_new(&rng, (mlk_metric)m, workspace_shapes[s].queries, workspace_shapes[s].rows,
                         workspace_shapes[s].dim, workspace_shapes[s].k);
      for (i = 0; i < count; i++)
        for (is_knn = 0; is_knn < 2; is_knn++)
          for (threads = 1; threads <= 3 && threads <= mlkt_opt.threads_max; threads += 2) {
            if (!worth_running(isas[i], c.p.queries * c.p.rows * c.p.dim)) continue;
            if (mlkt_sampled() && mlkt_opt.threads_max >= 3 && (threads > 1) == ((s + i + is_knn) % 2)) continue;
            mlkt_note("%s, isa %s, shape %d, %s, threads %d", is_knn ? "knn" : "distances", mlk_isa_name(isas[i]), s,
                      metric_name((mlk_metric)m), threads);
            check_workspace(&c, is_knn, isas[i], threads);
          }
      small_call_free(&c);
    }
}

/* The n-th allocation of open, knn, distances, close fails, once or for ever. Gives whether there were that many. */
static int check_failing_memory(small_call *c, mlk_isa isa, uint64_t fail_at, int for_ever) {
  mlkt_memory memory;
  mlk_context_desc desc = mlkt_context_desc(isa, mlkt_opt.threads_max < 2 ? 1 : 2);
  mlk_context *ctx = NULL;
  mlk_status status;
  memset(&memory, 0, sizeof memory);
  memory.fail_at = fail_at;
  memory.fail_for_ever = for_ever;
  desc.allocator = mlkt_memory_hook(&memory);
  small_call_clear(c);
  status = mlk_open(&ctx, &desc);
  if (status == MLK_OK) {
    status = mlk_knn(ctx, &c->knn);
    CHECK_MSG(status == MLK_OK || small_call_untouched(c), "outputs were written before the memory was there");
  }
  small_call_clear(c);
  if (status == MLK_OK) {
    status = mlk_distances(ctx, &c->distances);
    CHECK_MSG(status == MLK_OK || small_call_untouched(c), "out was written before the memory was there");
  }
  CHECK_MSG((memory.failed > 0) == (status != MLK_OK), "%d allocations failed and the status is %s", (int)memory.failed,
            mlk_status_name(status));
  if (status != MLK_OK) {
    CHECK_EQ_I64(status, MLK_ERR_MEMORY);
    if (ctx) {
      CHECK(mlk_last_error(ctx)[0] != 0);
      memory.fail_at = 0; /* the context stays usable */
      CHECK_OK(ctx, mlk_knn(ctx, &c->knn));
      small_call_check(c, 1);
    }
  }
  mlk_close(ctx);
  CHECK_MEMORY_EMPTY(&memory);
  return memory.failed > 0;
}

static void test_failing_memory(void) {
  mlk_isa isas[MLK_ISA_COUNT];
  const int count = mlkt_isas_and_reference(isas);
  mlkt_rng rng = mlkt_rng_case();
  int i, s, for_ever;
  for (s = 0; s < COUNT_OF(workspace_shapes); s++) {
    small_call c;
    if (mlkt_sampled() && s % 2) continue;
    c = small_call_new(&rng, (mlk_metric)(s % MLK_METRIC_COUNT), workspace_shapes[s].queries, workspace_shapes[s].rows,
                       workspace_shapes[s].dim, workspace_shapes[s].k);
    for (i = 0; i < count; i++)
      for (for_ever = 0; for_ever < 2 && worth_running(isas[i], c.p.queries * c.p.rows * c.p.dim); for_ever++) {
        uint64_t fail_at = 0;
        do {
          fail_at++;
          mlkt_note("isa %s, shape %d, allocation %d fails%s", mlk_isa_name(isas[i]), s, (int)fail_at,
                    for_ever ? " for ever" : "");
        } while (check_failing_memory(&c, isas[i], fail_at, for_ever) && fail_at < 100);
        CHECK_MSG(fail_at > 1 && fail_at < 100, "%d allocations", (int)fail_at - 1);
      }
    small_call_free(&c);
  }
}

/* ---- bad arguments ----------------------------------------------------------------------------------------------- */

/* One query row set, one base, outputs with room; change makes one thing wrong. */
typedef struct bad_knn {
  const char *what;
  void (*change)(mlk_knn_desc *d);
  mlk_status want;
  const char *word; /* in the sentence */
} bad_knn;

static void no_queries(mlk_knn_desc *d) { d->queries.data = NULL; }
static void no_base(mlk_knn_desc *d) { d->base.data = NULL; }
static void no_ids(mlk_knn_desc *d) { d->ids.data = NULL; }
static void negative_k(mlk_knn_desc *d) { d->k = -1; }
static void lowest_k(mlk_knn_desc *d) { d->k = INT64_MIN; }
static void metric_below(mlk_knn_desc *d) {
  const int value = -1;
  memcpy(&d->metric, &value, sizeof d->metric);
}
static void metric_above(mlk_knn_desc *d) { d->metric = MLK_METRIC_COUNT; }
static void queries_i64(mlk_knn_desc *d) { d->queries.dtype = MLK_I64; }
static void base_i64(mlk_knn_desc *d) { d->base.dtype = MLK_I64; }
static void base_unknown(mlk_knn_desc *d) { d->base.dtype = MLK_DTYPE_COUNT; }
static void queries_unknown(mlk_knn_desc *d) { d->queries.dtype = -1; }
static void ids_f32(mlk_knn_desc *d) { d->ids.dtype = MLK_F32; }
static void distances_i64(mlk_knn_desc *d) { d->distances.dtype = MLK_I64; }
static void queries_rank_1(mlk_knn_desc *d) { d->queries.rank = 1; }
static void queries_rank_3(mlk_knn_desc *d) { d->queries.rank = 3, d->queries.shape[2] = 1; }
static void base_rank_0(mlk_knn_desc *d) { d->base.rank = 0; }
static void base_rank_7(mlk_knn_desc *d) { d->base.rank = MLK_MAX_RANK + 1; }
static void base_rank_negative(mlk_knn_desc *d) { d->base.rank = -1; }
static void ids_rank_1(mlk_knn_desc *d) { d->ids.rank = 1; }
static void distances_rank_3(mlk_knn_desc *d) { d->distances.rank = 3, d->distances.shape[2] = 1; }
static void base_dim_less(mlk_knn_desc *d) { d->base.shape[1]--; }
static void queries_dim_less(mlk_knn_desc *d) { d->queries.shape[1]--; }
static void base_rows_negative(mlk_knn_desc *d) { d->base.shape[0] = -1; }
static void queries_rows_negative(mlk_knn_desc *d) { d->queries.shape[0] = -5; }
static void both_dims_negative(mlk_knn_desc *d) { d->queries.shape[1] = d->base.shape[1] = -3; }
static void ids_rows_less(mlk_knn_desc *d) { d->ids.shape[0]--; }
static void ids_k_less(mlk_knn_desc *d) { d->ids.shape[1]--; }
static void k_less(mlk_knn_desc *d) { d->k--; }
static void distances_rows_less(mlk_knn_desc *d) { d->distances.shape[0]--; }
static void distances_k_less(mlk_knn_desc *d) { d->distances.shape[1]--; }
static void ids_last_axis_2(mlk_knn_desc *d) { d->ids.stride[0] = 16, d->ids.stride[1] = 2; }
static void distances_last_axis_2(mlk_knn_desc *d) { d->distances.stride[0] = 16, d->distances.stride[1] = 2; }
static void ids_transposed(mlk_knn_desc *d) { d->ids.stride[0] = 1, d->ids.stride[1] = d->ids.shape[0]; }
static void huge_rows(mlk_knn_desc *d) { d->base.shape[0] = INT64_MAX; }
static void huge_dim(mlk_knn_desc *d) { d->base.shape[1] = d->queries.shape[1] = INT64_MAX / 2; }
static void huge_k(mlk_knn_desc *d) { d->k = d->ids.shape[1] = d->distances.shape[1] = INT64_MAX / 4; }
static void huge_stride(mlk_knn_desc *d) { d->base.stride[0] = INT64_MAX / 2, d->base.stride[1] = 1; }
static void rows_times_stride(mlk_knn_desc *d) {
  d->base.shape[0] = INT64_C(1) << 32;
  d->base.stride[0] = INT64_C(1) << 31, d->base.stride[1] = 1;
}
static void backward_stride(mlk_knn_desc *d) { d->base.stride[0] = INT64_MIN, d->base.stride[1] = 1; }
/* 2 x 5 x 2^58 x 12 operations, on a base whose rows are all the same few bytes */
static void operations_overflow(mlk_knn_desc *d) {
  d->base.shape[0] = INT64_C(1) << 58;
  d->base.stride[0] = 0, d->base.stride[1] = 1;
}
static void ids_on_queries(mlk_knn_desc *d) { d->ids.data = d->queries.data; }
static void ids_on_base(mlk_knn_desc *d) { d->ids.data = d->base.data; }
static void distances_on_queries(mlk_knn_desc *d) { d->distances.data = d->queries.data; }
static void distances_on_base(mlk_knn_desc *d) { d->distances.data = d->base.data; }
static void distances_on_ids(mlk_knn_desc *d) { d->distances.data = d->ids.data; }
static void last_id_overflows(mlk_knn_desc *d) { d->first_id = INT64_MAX; }

static const bad_knn bad_knns[] = {
    {"no queries", no_queries, MLK_ERR_ARGUMENT, "queries"},
    {"no base", no_base, MLK_ERR_ARGUMENT, "base"},
    {"no ids", no_ids, MLK_ERR_ARGUMENT, "ids"},
    {"k -1", negative_k, MLK_ERR_ARGUMENT, "k"},
    {"k INT64_MIN", lowest_k, MLK_ERR_ARGUMENT, "k"},
    {"metric -1", metric_below, MLK_ERR_ARGUMENT, "metric"},
    {"metric past the last", metric_above, MLK_ERR_ARGUMENT, "metric"},
    {"queries i64", queries_i64, MLK_ERR_DTYPE, "queries"},
    {"base i64", base_i64, MLK_ERR_DTYPE, "base"},
    {"base of no known dtype", base_unknown, MLK_ERR_DTYPE, "base"},
    {"queries of dtype -1", queries_unknown, MLK_ERR_DTYPE, "queries"},
    {"ids f32", ids_f32, MLK_ERR_DTYPE, "ids"},
    {"distances i64", distances_i64, MLK_ERR_DTYPE, "distances"},
    {"queries of rank 1", queries_rank_1, MLK_ERR_SHAPE, "queries"},
    {"queries of rank 3", queries_rank_3, MLK_ERR_SHAPE, "queries"},
    {"base of rank 0", base_rank_0, MLK_ERR_SHAPE, "base"},
    {"base of rank 7", base_rank_7, MLK_ERR_SHAPE, "base"},
    {"base of rank -1", base_rank_negative, MLK_ERR_SHAPE, "base"},
    {"ids of rank 1", ids_rank_1, MLK_ERR_SHAPE, "ids"},
    {"distances of rank 3", distances_rank_3, MLK_ERR_SHAPE, "distances"},
    {"base of another dimension", base_dim_less, MLK_ERR_SHAPE, "base"},
    {"queries of another dimension", queries_dim_less, MLK_ERR_SHAPE, "queries"},
    {"base with -1 rows", base_rows_negative, MLK_ERR_SHAPE, "base"},
    {"queries with -5 rows", queries_rows_negative, MLK_ERR_SHAPE, "queries"},
    {"dimension -3", both_dims_negative, MLK_ERR_SHAPE, ""},
    {"ids a row short", ids_rows_less, MLK_ERR_SHAPE, "ids"},
    {"ids a column short", ids_k_less, MLK_ERR_SHAPE, "ids"},
    {"k less than the columns of ids", k_less, MLK_ERR_SHAPE, "ids"},
    {"distances a row short", distances_rows_less, MLK_ERR_SHAPE, "distances"},
    {"distances a column short", distances_k_less, MLK_ERR_SHAPE, "distances"},
    {"ids with stride 2", ids_last_axis_2, MLK_ERR_SHAPE, "ids"},
    {"distances with stride 2", distances_last_axis_2, MLK_ERR_SHAPE, "distances"},
    {"ids transposed", ids_transposed, MLK_ERR_SHAPE, "ids"},
    {"2^63 rows", huge_rows, MLK_ERR_SIZE, "base"},
    {"2^62 columns", huge_dim, MLK_ERR_SIZE, ""},
    {"k of 2^61", huge_k, MLK_ERR_SIZE, ""},
    {"rows 2^62 apart", huge_stride, MLK_ERR_SIZE, "base"},
    {"2^32 rows 2^31 apart", rows_times_stride, MLK_ERR_SIZE, "base"},
    {"rows -2^63 apart", backward_stride, MLK_ERR_SIZE, "base"},
    {"2^65 operations", operations_overflow, MLK_ERR_SIZE, "base"},
    {"ids on queries", ids_on_queries, MLK_ERR_ALIAS, "ids"},
    {"ids on base", ids_on_base, MLK_ERR_ALIAS, "ids"},
    {"distances on queries", distances_on_queries, MLK_ERR_ALIAS, "distances"},
    {"distances on base", distances_on_base, MLK_ERR_ALIAS, "distances"},
    {"distances on ids", distances_on_ids, MLK_ERR_ALIAS, "distances"},
    {"the last id past 2^63", last_id_overflows, MLK_ERR_SIZE, "first_id"},
};

static void test_bad_arguments(void) {
  mlk_context *ctx = mlkt_open(MLK_ISA_BEST, 1);
  mlkt_rng rng = mlkt_rng_case();
  small_call c = small_call_new(&rng, MLK_L2SQ, 5, 30, 12, 4);
  mlk_plan plan;
  int i, planning;
  if (!ctx) return;
  for (i = 0; i < COUNT_OF(bad_knns); i++) /* a plan looks at no pointers, so it sees no overlap */
    for (planning = 0; planning < (bad_knns[i].want == MLK_ERR_ALIAS ? 1 : 2); planning++) {
      mlk_knn_desc d = c.knn;
      mlk_plan untouched;
      bad_knns[i].change(&d);
      mlkt_note("%s%s", bad_knns[i].what, planning ? ", plan" : "");
      memset(&plan, 0x5A, sizeof plan);
      untouched = plan;
      CHECK_STATUS(ctx, planning ? mlk_knn_plan(ctx, &d, &plan) : mlk_knn(ctx, &d), bad_knns[i].want);
      CHECK_MSG(strstr(mlk_last_error(ctx), bad_knns[i].word) != NULL, "\"%s\" does not name %s", mlk_last_error(ctx),
                bad_knns[i].word);
      CHECK_MSG(strlen(mlk_last_error(ctx)) > 10, "\"%s\" is no sentence", mlk_last_error(ctx));
      CHECK_MSG(small_call_untouched(&c), "outputs were written to");
      CHECK_MSG(memcmp(&plan, &untouched, sizeof plan) == 0, "the plan was written to");
    }
  {
    mlk_knn_desc d = c.knn;
    mlkt_note("a plan with every operand at one address");
    d.queries.data = d.base.data = d.ids.data = d.distances.data = never_read();
    CHECK_OK(ctx, mlk_knn_plan(ctx, &d, &plan));
  }
  mlkt_note("missing descriptors");
  CHECK_STATUS(ctx, mlk_knn(ctx, NULL), MLK_ERR_ARGUMENT);
  CHECK_STATUS(ctx, mlk_knn_plan(ctx, NULL, &plan), MLK_ERR_ARGUMENT);
  CHECK_STATUS(ctx, mlk_knn_plan(ctx, &c.knn, NULL), MLK_ERR_ARGUMENT);
  CHECK_STATUS(NULL, mlk_knn(NULL, &c.knn), MLK_ERR_ARGUMENT);
  CHECK_STATUS(NULL, mlk_knn_plan(NULL, &c.knn, &plan), MLK_ERR_ARGUMENT);
  CHECK(small_call_untouched(&c));
  CHECK_OK(ctx, mlk_knn(ctx, &c.knn));
  answers_right(&c.p, c.k, 0, c.ids, c.near);
  mlk_close(ctx);
  small_call_free(&c);
}

typedef struct bad_distances {
  const char *what;
  void (*change)(mlk_distances_desc *d);
  mlk_status want;
  const char *word;
} bad_distances;

static void d_no_queries(mlk_distances_desc *d) { d->queries.data = NULL; }
static void d_no_base(mlk_distances_desc *d) { d->base.data = NULL; }
static void d_no_out(mlk_distances_desc *d) { d->out.data = NULL; }
static void d_metric_above(mlk_distances_desc *d) { d->metric = MLK_METRIC_COUNT; }
static void d_queries_i64(mlk_distances_desc *d) { d->queries.dtype = MLK_I64; }
static void d_base_i64(mlk_distances_desc *d) { d->base.dtype = MLK_I64; }
static void d_out_i64(mlk_distances_desc *d) { d->out.dtype = MLK_I64; }
static void d_queries_rank_1(mlk_distances_desc *d) { d->queries.rank = 1; }
static void d_base_rank_3(mlk_distances_desc *d) { d->base.rank = 3, d->base.shape[2] = 1; }
static void d_out_rank_1(mlk_distances_desc *d) { d->out.rank = 1; }
static void d_base_dim_less(mlk_distances_desc *d) { d->base.shape[1]--; }
static void d_base_rows_negative(mlk_distances_desc *d) { d->base.shape[0] = -1; }
static void d_out_rows_less(mlk_distances_desc *d) { d->out.shape[0]--; }
static void d_out_columns_less(mlk_distances_desc *d) { d->out.shape[1]--; }
static void d_out_row_stride_0(mlk_distances_desc *d) { d->out.stride[0] = 0, d->out.stride[1] = 1; }
static void d_out_column_stride_0(mlk_distances_desc *d) { d->out.stride[0] = 1, d->out.stride[1] = 0; }
static void d_out_rows_overlap(mlk_distances_desc *d) { d->out.stride[0] = d->out.shape[1] - 1, d->out.stride[1] = 1; }
static void d_huge_rows(mlk_distances_desc *d) { d->base.shape[0] = INT64_MAX; }
static void d_huge_dim(mlk_distances_desc *d) { d->base.shape[1] = d->queries.shape[1] = INT64_MAX / 2; }
static void d_out_on_queries(mlk_distances_desc *d) { d->out.data = d->queries.data; }
static void d_out_on_base(mlk_distances_desc *d) { d->out.data = d->base.data; }

static const bad_distances bad_distance_calls[] = {
    {"no queries", d_no_queries, MLK_ERR_ARGUMENT, "queries"},
    {"no base", d_no_base, MLK_ERR_ARGUMENT, "base"},
    {"no out", d_no_out, MLK_ERR_ARGUMENT, "out"},
    {"metric past the last", d_metric_above, MLK_ERR_ARGUMENT, "metric"},
    {"queries i64", d_queries_i64, MLK_ERR_DTYPE, "queries"},
    {"base i64", d_base_i64, MLK_ERR_DTYPE, "base"},
    {"out i64", d_out_i64, MLK_ERR_DTYPE, "out"},
    {"queries of rank 1", d_queries_rank_1, MLK_ERR_SHAPE, "queries"},
    {"base of rank 3", d_base_rank_3, MLK_ERR_SHAPE, "base"},
    {"out of rank 1", d_out_rank_1, MLK_ERR_SHAPE, "out"},
    {"base of another dimension", d_base_dim_less, MLK_ERR_SHAPE, "base"},
    {"base with -1 rows", d_base_rows_negative, MLK_ERR_SHAPE, "base"},
    {"out a row short", d_out_rows_less, MLK_ERR_SHAPE, "out"},
    {"out a column short", d_out_columns_less, MLK_ERR_SHAPE, "out"},
    {"out with all rows in one place", d_out_row_stride_0, MLK_ERR_SHAPE, "out"},
    {"out with all columns in one place", d_out_column_stride_0, MLK_ERR_SHAPE, "out"},
    {"out with rows that share elements", d_out_rows_overlap, MLK_ERR_SHAPE, "out"},
    {"2^63 rows", d_huge_rows, MLK_ERR_SIZE, "base"},
    {"2^62 columns", d_huge_dim, MLK_ERR_SIZE, ""},
    {"out on queries", d_out_on_queries, MLK_ERR_ALIAS, "out"},
    {"out on base", d_out_on_base, MLK_ERR_ALIAS, "out"},
};

static void test_distances_bad_arguments(void) {
  mlk_context *ctx = mlkt_open(MLK_ISA_BEST, 1);
  mlkt_rng rng = mlkt_rng_case();
  small_call c = small_call_new(&rng, MLK_L2SQ, 5, 30, 12, 4);
  mlk_plan plan;
  int i, planning;
  if (!ctx) return;
  for (i = 0; i < COUNT_OF(bad_distance_calls); i++)
    for (planning = 0; planning < (bad_distance_calls[i].want == MLK_ERR_ALIAS ? 1 : 2); planning++) {
      mlk_distances_desc d = c.distances;
      bad_distance_calls[i].change(&d);
      mlkt_note("%s%s", bad_distance_calls[i].what, planning ? ", plan" : "");
      CHECK_STATUS(ctx, planning ? mlk_distances_plan(ctx, &d, &plan) : mlk_distances(ctx, &d),
                   bad_distance_calls[i].want);
      CHECK_MSG(strstr(mlk_last_error(ctx), bad_distance_calls[i].word) != NULL, "\"%s\" does not name %s",
                mlk_last_error(ctx), bad_distance_calls[i].word);
      CHECK_MSG(small_call_untouched(&c), "outputs were written to");
    }
  mlkt_note("missing descriptors");
  CHECK_STATUS(ctx, mlk_distances(ctx, NULL), MLK_ERR_ARGUMENT);
  CHECK_STATUS(ctx, mlk_distances_plan(ctx, NULL, &plan), MLK_ERR_ARGUMENT);
  CHECK_STATUS(ctx, mlk_distances_plan(ctx, &c.distances, NULL), MLK_ERR_ARGUMENT);
  CHECK_STATUS(NULL, mlk_distances(NULL, &c.distances), MLK_ERR_ARGUMENT);
  CHECK(small_call_untouched(&c));
  CHECK_OK(ctx, mlk_distances(ctx, &c.distances));
  CHECK_BITS_F32_N(c.out, c.p.distances, c.p.queries * c.p.rows);
  mlk_close(ctx);
  small_call_free(&c);
}

const mlkt_case mlkt_knn_cases[] = {
    {"knn/sweep", test_knn_sweep},
    {"knn/filter", test_knn_filter},
    {"knn/large", test_knn_large},
    {"knn/translation", test_translation},
    {"knn/self", test_self},
    {"knn/batches", test_batches},
    {"knn/base_order", test_base_order},
    {"knn/shards", test_shards},
    {"knn/zero_padding", test_zero_padding},
    {"knn/repeated_rows", test_repeated_rows},
    {"knn/many_elements", test_many_elements},
    {"knn/width_boundary", test_width_boundary},
    {"knn/faiss_297_negative_distances", test_faiss_297},
    {"knn/faiss_563_query_count", test_faiss_563},
    {"knn/faiss_5285_common_offset", test_faiss_5285},
    {"knn/faiss_5327_zero_columns", test_faiss_5327},
    {"knn/plan", test_plan},
    {"knn/workspace_growth", test_workspace_growth},
    {"knn/workspace_exact", test_workspace_exact},
    {"knn/failing_memory", test_failing_memory},
    {"knn/bad_arguments", test_bad_arguments},
    {"distances/sweep", test_distances_sweep},
    {"distances/symmetry", test_symmetry},
    {"distances/agree_with_knn", test_distances_agree},
    {"distances/error_bound", test_error_bound},
    {"distances/bad_arguments", test_distances_bad_arguments},
    {NULL, NULL},
};
