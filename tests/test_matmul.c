/* test_matmul.c - matmul against a naive reference written from the manual's NUMERICS alone, over shapes, strides,
   batches, rows, threads, epilogues; guard pages round every operand, rogue numbers in all padding; bad arguments,
   aliasing, plans, packing. */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include "test.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#if MLKT_POSIX
#include <sys/mman.h>
#endif

/* ---- operands: values in a dense array, and the same values laid out in guarded memory --------------------------- */

enum { AXES = 4, BATCH0 = 0, BATCH1 = 1, ROWS = 2, COLUMNS = 3 };

typedef struct operand {
  int present;
  int64_t shape[AXES];  /* batch, batch, rows, columns: 1 where it broadcasts or has no such axis */
  int64_t stride[AXES]; /* in the buffer; 0 where shape is 1 */
  float *dense;         /* the values, row-major */
  size_t count, dense_room;
  mlkt_buffer buffer; /* span floats: not one more than the view reaches */
  size_t span;
  float *image; /* what the buffer must hold after a call */
  size_t image_room;
  float *first; /* element (0, 0, 0, 0) */
  mlk_tensor view;
} operand;

static void *grown(void *memory, size_t *room, size_t bytes) {
  if (*room >= bytes && memory) return memory;
  free(memory);
  memory = malloc(bytes + 64);
  if (!memory) exit(2);
  *room = bytes;
  return memory;
}

static void operand_shape(operand *o, int64_t b0, int64_t b1, int64_t rows, int64_t columns) {
  o->present = 1;
  o->shape[BATCH0] = b0, o->shape[BATCH1] = b1, o->shape[ROWS] = rows, o->shape[COLUMNS] = columns;
  o->count = (size_t)(b0 * b1 * rows * columns);
  o->dense = (float *)grown(o->dense, &o->dense_room, o->count * sizeof(float));
}

static void operand_free(operand *o) {
  mlkt_buffer_free(&o->buffer);
  free(o->dense);
  free(o->image);
  memset(o, 0, sizeof *o);
}

/* Copies between dense values and the layout at first; to_layout 0: the other way. */
static void operand_move(const operand *o, float *dense, float *first, int to_layout) {
  int64_t i0, i1, r, c;
  for (i0 = 0; i0 < o->shape[BATCH0]; i0++)
    for (i1 = 0; i1 < o->shape[BATCH1]; i1++)
      for (r = 0; r < o->shape[ROWS]; r++) {
        float *p = first + i0 * o->stride[BATCH0] + i1 * o->stride[BATCH1] + r * o->stride[ROWS];
        for (c = 0; c < o->shape[COLUMNS]; c++, dense++)
          if (to_layout)
            p[c * o->stride[COLUMNS]] = *dense;
          else
            *dense = p[c * o->stride[COLUMNS]];
      }
}

typedef enum form {
  FORM_DENSE,             /* all strides zero in the view */
  FORM_PADDED,            /* row-major, gap behind each row */
  FORM_TRANSPOSED,        /* column-major */
  FORM_TRANSPOSED_PADDED, /* column-major, gap behind each column */
  FORM_STEPPED,           /* row-major, neighbours 2 or 3 apart */
  FORM_NEGATIVE_ROWS,     /* from here to FORM_NEGATIVE: inputs only */
  FORM_NEGATIVE_COLUMNS,
  FORM_NEGATIVE,     /* all axes, column-major, stepped and padded */
  FORM_BATCH_INSIDE, /* the batch axes vary fastest */
  FORM_ANY,          /* any order of axes, steps, gaps */
  FORM_COUNT
} form;

static const char *const form_names[FORM_COUNT] = {"dense", "padded",   "transposed",   "transposed padded", "stepped",
                                                   "-rows", "-columns", "all negative", "batch inside",      "any"};

/* Places the operand in guarded memory and scatters its values. rank_least: fewest axes the view may show; rank: D's;
   full: D's shape, to which axes of size 1 are sometimes expanded with stride 0 (NULL: never). */
static void operand_layout(operand *o, form f, mlkt_rng *rng, int output, int rank_least, int rank,
                           const int64_t *full) {
  int order[AXES] = {COLUMNS, ROWS, BATCH1, BATCH0}; /* innermost first */
  int negative[AXES] = {0, 0, 0, 0}, i, shown;
  int64_t gap[AXES] = {0, 0, 0, 0}, step = 1, low = 0, high = 0;
  if (output && f >= FORM_NEGATIVE_ROWS && f <= FORM_NEGATIVE) f = FORM_STEPPED;
  if (f == FORM_TRANSPOSED || f == FORM_TRANSPOSED_PADDED || f == FORM_NEGATIVE) order[0] = ROWS, order[1] = COLUMNS;
  if (f == FORM_PADDED || f == FORM_TRANSPOSED_PADDED || f == FORM_NEGATIVE) gap[0] = mlkt_int(rng, 1, 5);
  if (f == FORM_STEPPED || f == FORM_NEGATIVE) step = mlkt_int(rng, 2, 3);
  if (f == FORM_NEGATIVE_ROWS || f == FORM_NEGATIVE) negative[ROWS] = 1;
  if (f == FORM_NEGATIVE_COLUMNS || f == FORM_NEGATIVE) negative[COLUMNS] = 1;
  if (f == FORM_NEGATIVE) negative[BATCH0] = negative[BATCH1] = 1;
  if (f == FORM_BATCH_INSIDE) order[0] = BATCH1, order[1] = BATCH0, order[2] = COLUMNS, order[3] = ROWS;
  if (f == FORM_ANY) {
    for (i = AXES - 1; i > 0; i--) {
      const int j = (int)mlkt_int(rng, 0, i), t = order[i];
      order[i] = order[j], order[j] = t;
    }
    for (i = 0; i < AXES; i++) {
      gap[i] = mlkt_int(rng, 0, 3);
      negative[i] = !output && mlkt_int(rng, 0, 3) == 0;
    }
    step = mlkt_int(rng, 1, 3);
  }
  for (i = 0; i < AXES; i++) {
    const int axis = order[i];
    const int64_t size = o->shape[axis];
    o->stride[axis] = size == 1 ? 0 : negative[axis] ? -step : step;
    if (size == 0) continue;
    if (negative[axis])
      low -= (size - 1) * step;
    else
      high += (size - 1) * step;
    if (size > 1) step = step * size + gap[i];
  }
  o->span = o->count ? (size_t)(high - low + 1) : 0;
  mlkt_buffer_place(&o->buffer, o->span * sizeof(float), mlkt_u64(rng) & 1 ? MLKT_TAIL : MLKT_HEAD);
  o->first = mlkt_buffer_f32(&o->buffer) + (o->count ? -low : 0);
  o->image = (float *)grown(o->image, &o->image_room, o->span * sizeof(float));
  mlkt_rogue_f32(o->image, o->span);
  if (o->count) operand_move(o, o->dense, o->image - low, 1);
  if (o->span) memcpy(o->buffer.data, o->image, o->span * sizeof(float));

  shown = AXES;
  while (shown > rank || (shown > rank_least && o->shape[AXES - shown] == 1 && mlkt_u64(rng) % 2 == 0)) shown--;
  memset(&o->view, 0, sizeof o->view);
  o->view.data = o->first;
  o->view.dtype = MLK_F32;
  o->view.rank = shown;
  for (i = 0; i < shown; i++) {
    const int axis = AXES - shown + i;
    o->view.shape[i] = o->shape[axis];
    if (f == FORM_DENSE) continue; /* strides stay zero */
    o->view.stride[i] = o->stride[axis];
    if (o->shape[axis] == 1) {
      static const int64_t of_no_account[] = {0, 1, 3, 77777,
                                              -5}; /* an axis of one element: its stride must not matter */
      o->view.stride[i] = of_no_account[mlkt_u64(rng) % 5];
    }
  }
  if (full && f != FORM_DENSE &&
      o->count > 1) /* broadcast by stride 0; another axis has a stride, so not all are zero */
    for (i = 0; i < shown; i++) {
      const int axis = AXES - shown + i;
      if (o->shape[axis] == 1 && full[axis] > 1 && mlkt_u64(rng) % 2)
        o->view.shape[i] = full[axis], o->view.stride[i] = 0;
    }
}

/* ---- problems ---------------------------------------------------------------------------------------------------- */

typedef struct problem {
  int64_t batch[2], m, n, k;
  int batch_axes; /* 0..2 */
  operand a, b, c, bias, residual, d, preact;
  int c_is_d, residual_is_d; /* in place: d.dense holds what D holds before the call */
  float alpha_value, beta_value;
  const float *alpha, *beta;
  mlk_activation activation;
  int exact;          /* small integers: any summation gives the same */
  float *want;        /* D, dense */
  float *want_before; /* the argument of the activation, dense */
  size_t want_room, before_room;
  int want_known; /* else the first run's result is judged by a tolerance and then becomes want */
} problem;

static void problem_free(problem *p) {
  operand *all[7];
  int i;
  all[0] = &p->a, all[1] = &p->b, all[2] = &p->c, all[3] = &p->bias, all[4] = &p->residual, all[5] = &p->d,
  all[6] = &p->preact;
  for (i = 0; i < 7; i++) operand_free(all[i]);
  free(p->want);
  free(p->want_before);
  memset(p, 0, sizeof *p);
}

/* A plain product, batch axes as D has them; the caller adds what else he wants. */
static void problem_shape(problem *p, int64_t b0, int64_t b1, int64_t m, int64_t n, int64_t k) {
  p->batch[0] = b0, p->batch[1] = b1, p->m = m, p->n = n, p->k = k;
  p->batch_axes = b0 != 1 ? 2 : b1 != 1 ? 1 : 0;
  operand_shape(&p->a, b0, b1, m, k);
  operand_shape(&p->b, b0, b1, k, n);
  operand_shape(&p->d, b0, b1, m, n);
  p->c.present = p->bias.present = p->residual.present = p->preact.present = 0;
  p->c_is_d = p->residual_is_d = 0;
  p->alpha = p->beta = NULL;
  p->activation = MLK_NONE;
  p->exact = 0;
  p->want = (float *)grown(p->want, &p->want_room, p->d.count * sizeof(float));
  p->want_before = (float *)grown(p->want_before, &p->before_room, p->d.count * sizeof(float));
}

typedef enum values { INTEGERS, SIGNED, POSITIVE, WIDE, SPECIAL } values;

static void fill(operand *o, values kind, mlkt_rng *rng) {
  static const float special[] = {0.0f,    -0.0f,  1.0f,    -1.0f, FLT_MAX, -FLT_MAX,
                                  FLT_MIN, 1e-40f, -1e-45f, 3e20f, -3e20f,  1e-30f};
  size_t i;
  for (i = 0; i < o->count; i++) {
    float x = 0;
    switch (kind) {
    case INTEGERS: x = (float)mlkt_int(rng, -3, 3); break;
    case SIGNED: x = mlkt_signed(rng); break;
    case POSITIVE: x = mlkt_unit(rng); break;
    case WIDE: x = mlkt_wide(rng, 12); break;
    case SPECIAL:
      x = mlkt_signed(rng);
      if (mlkt_u64(rng) % 4 == 0) x = special[mlkt_u64(rng) % (sizeof special / sizeof special[0])];
      if (mlkt_u64(rng) % 64 == 0) x = mlkt_float(mlkt_u64(rng) % 2 ? 0x7F800000u : 0xFF800000u);
      if (mlkt_u64(rng) % 128 == 0) x = mlkt_float(0x7FC00000u);
      break;
    }
    o->dense[i] = x;
  }
}

static void problem_fill(problem *p, values kind, mlkt_rng *rng) {
  p->exact = kind == INTEGERS;
  fill(&p->a, kind, rng);
  fill(&p->b, kind, rng);
  fill(&p->d, kind, rng);
  if (p->c.present) fill(&p->c, kind, rng);
  if (p->bias.present) fill(&p->bias, kind, rng);
  if (p->residual.present) fill(&p->residual, kind, rng);
}

/* Adds a random epilogue that the reference knows to the last bit: no activation or RELU. */
static void problem_epilogue(problem *p, mlkt_rng *rng) {
  static const float scalars[] = {1.0f, -2.5f, 0.5f, 3.0f, 0.0f};
  const int64_t b0 = p->batch[0], b1 = p->batch[1], m = p->m, n = p->n;
  const uint64_t dice = mlkt_u64(rng);
  p->alpha_value = scalars[dice % 5];
  p->beta_value = scalars[(dice >> 8) % 5];
  p->alpha = (dice >> 16) % 2 ? &p->alpha_value : NULL;
  p->beta = (dice >> 17) % 2 ? &p->beta_value : NULL;
  p->activation = (dice >> 18) % 4 == 0 ? MLK_RELU : MLK_NONE;
  switch ((dice >> 20) % 8) { /* bias: whole, per column, per row, one number, of a batch, none */
  case 0: operand_shape(&p->bias, b0, b1, m, n); break;
  case 1: operand_shape(&p->bias, 1, 1, 1, n); break;
  case 2: operand_shape(&p->bias, 1, 1, m, 1); break;
  case 3: operand_shape(&p->bias, 1, 1, 1, 1); break;
  case 4: operand_shape(&p->bias, 1, b1, 1, n); break;
  default: break;
  }
  switch ((dice >> 24) % 8) { /* c */
  case 0: operand_shape(&p->c, b0, b1, m, n); break;
  case 1: operand_shape(&p->c, 1, b1, m, 1); break;
  case 2: operand_shape(&p->c, b0, 1, 1, n); break;
  case 3: p->c_is_d = 1; break;
  default: break;
  }
  switch ((dice >> 28) % 8) { /* residual */
  case 0: operand_shape(&p->residual, b0, b1, m, n); break;
  case 1: operand_shape(&p->residual, 1, 1, m, n); break;
  case 2: operand_shape(&p->residual, b0, b1, 1, n); break;
  case 3: p->residual_is_d = 1; break;
  default: break;
  }
  if ((dice >> 32) % 4 == 0) operand_shape(&p->preact, b0, b1, m, n);
}

static const float *element(const operand *o, int64_t i0, int64_t i1, int64_t r, int64_t c) {
  const int64_t *s = o->shape;
  return o->dense + (((s[0] == 1 ? 0 : i0) * s[1] + (s[1] == 1 ? 0 : i1)) * s[2] + (s[2] == 1 ? 0 : r)) * s[3] +
         (s[3] == 1 ? 0 : c);
}

/* The manual's formulas, one element after another; no activation but RELU: others leave want_known 0. */
static void reference(problem *p) {
  const float beta = p->beta ? *p->beta : p->c.present || p->c_is_d ? 1.0f : 0.0f;
  const operand *c = p->c.present ? &p->c : &p->d; /* beta without c: c = D */
  const operand *residual = p->residual.present ? &p->residual : p->residual_is_d ? &p->d : NULL;
  float *row = (float *)malloc(((size_t)p->n * 2 + 1) * sizeof *row), *segment = row + p->n;
  float *want = p->want, *before = p->want_before;
  int64_t i0, i1, i, j, k;
  if (!row) exit(2);
  for (i0 = 0; i0 < p->batch[0]; i0++)
    for (i1 = 0; i1 < p->batch[1]; i1++)
      for (i = 0; i < p->m; i++) {
        for (j = 0; j < p->n; j++) row[j] = 0;
        if (!p->alpha || *p->alpha != 0) {
          for (k = 0; k < p->k; k++) {
            const float a = *element(&p->a, i0, i1, i, k), *b = element(&p->b, i0, i1, k, 0);
            if (k % MLK_SEGMENT == 0) /* a segment starts from +0 */
              for (j = 0; j < p->n; j++) segment[j] = 0;
            if (p->exact)
              for (j = 0; j < p->n; j++) segment[j] += a * b[j];
            else
              for (j = 0; j < p->n; j++) segment[j] = fmaf(a, b[j], segment[j]);
            if ((k + 1) % MLK_SEGMENT == 0 || k + 1 == p->k) { /* and is added; the first is the sum so far */
              for (j = 0; j < p->n; j++) row[j] = k < MLK_SEGMENT ? segment[j] : row[j] + segment[j];
            }
          }
        }
        for (j = 0; j < p->n; j++, want++, before++) {
          float t = row[j];
          if (p->bias.present)
            t = fmaf(p->alpha ? *p->alpha : 1.0f, t, *element(&p->bias, i0, i1, i, j));
          else if (p->alpha)
            t = *p->alpha * t;
          if (beta != 0) t = fmaf(beta, *element(c, i0, i1, i, j), t);
          *before = t;
          if (p->activation == MLK_RELU) t = t < 0 ? 0.0f : t;
          *want = residual ? t + *element(residual, i0, i1, i, j) : t;
        }
      }
  free(row);
  p->want_known = p->activation == MLK_NONE || p->activation == MLK_RELU;
}

/* Lays all operands out: one form for all or, with FORM_COUNT, one of its own for each. */
static void problem_layout(problem *p, form f, mlkt_rng *rng) {
  const int rank = 2 + p->batch_axes;
  operand *inputs[5], *outputs[2];
  int i;
  inputs[0] = &p->a, inputs[1] = &p->b, inputs[2] = &p->c, inputs[3] = &p->bias, inputs[4] = &p->residual;
  outputs[0] = &p->d, outputs[1] = &p->preact;
  for (i = 0; i < 5; i++) {
    int64_t full[AXES];
    if (!inputs[i]->present) continue;
    memcpy(full, p->d.shape, sizeof full);
    if (i == 0) full[COLUMNS] = 1; /* K does not broadcast */
    if (i == 1) full[ROWS] = 1;
    operand_layout(inputs[i], f == FORM_COUNT ? (form)(mlkt_u64(rng) % FORM_COUNT) : f, rng, 0, i < 2 ? 2 : 1, rank,
                   full);
  }
  for (i = 0; i < 2; i++)
    if (outputs[i]->present)
      operand_layout(outputs[i], f == FORM_COUNT ? (form)(mlkt_u64(rng) % FORM_COUNT) : f, rng, 1, rank, rank, NULL);
}

/* Writes what the outputs must become into their images. */
static void problem_images(problem *p) {
  mlkt_rogue_f32(p->d.image, p->d.span);
  if (p->d.count) operand_move(&p->d, p->want, p->d.image + (p->d.first - mlkt_buffer_f32(&p->d.buffer)), 1);
  if (p->preact.present) {
    mlkt_rogue_f32(p->preact.image, p->preact.span);
    if (p->preact.count)
      operand_move(&p->preact, p->want_before, p->preact.image + (p->preact.first - mlkt_buffer_f32(&p->preact.buffer)),
                   1);
  }
}

static mlk_matmul_desc problem_desc(const problem *p, const mlk_packed *packed) {
  mlk_matmul_desc desc;
  memset(&desc, 0, sizeof desc);
  desc.a = p->a.view;
  if (packed)
    desc.packed_b = packed;
  else
    desc.b = p->b.view;
  desc.d = p->d.view;
  if (p->c.present) desc.c = p->c.view;
  if (p->c_is_d) desc.c = p->d.view;
  if (p->bias.present) desc.bias = p->bias.view;
  if (p->residual.present) desc.residual = p->residual.view;
  if (p->residual_is_d) desc.residual = p->d.view;
  if (p->preact.present) desc.preact = p->preact.view;
  desc.alpha = p->alpha;
  desc.beta = p->beta;
  desc.activation = p->activation;
  return desc;
}

/* 1 when D's old values matter: in place, or accumulated by beta. */
static int reads_d(const problem *p) {
  return p->c_is_d || p->residual_is_d || (p->beta && *p->beta != 0 && !p->c.present);
}

static void reset_outputs(problem *p) {
  mlkt_rogue_f32(mlkt_buffer_f32(&p->d.buffer), p->d.span);
  if (reads_d(p) && p->d.count) operand_move(&p->d, p->d.dense, p->d.first, 1);
  if (p->preact.present) mlkt_rogue_f32(mlkt_buffer_f32(&p->preact.buffer), p->preact.span);
}

/* Checks an output: elements bit by bit, padding untouched, canaries. */
static int check_output(operand *o, const float *want, const char *name) {
  size_t room = 0;
  float *got = NULL;
  int ok;
  if (o->span == 0 || memcmp(o->buffer.data, o->image, o->span * sizeof(float)) == 0)
    return CHECK_MSG(mlkt_buffer_intact(&o->buffer), "%s: somebody wrote beside it", name);
  got = (float *)grown(got, &room, o->count * sizeof(float));
  operand_move(o, got, o->first, 0);
  ok = mlkt_check_f32_n(got, want, o->count, __FILE__, __LINE__, name);
  mlkt_rogue_f32(got, o->count);
  operand_move(o, got, o->first, 1);
  ok &= CHECK_MSG(mlkt_is_rogue_f32(mlkt_buffer_f32(&o->buffer), o->span),
                  "%s: the padding between its elements was written", name);
  ok &= CHECK_MSG(mlkt_buffer_intact(&o->buffer), "%s: somebody wrote beside it", name);
  free(got);
  return ok;
}

static int check_input(operand *o, const char *name) {
  int ok;
  if (!o->present) return 1;
  ok = o->span == 0 || memcmp(o->buffer.data, o->image, o->span * sizeof(float)) == 0;
  return ok || CHECK_MSG(0, "%s, an input, was written", name);
}

static double activation_exact(mlk_activation activation, double x) {
  switch (activation) {
  case MLK_RELU: return x < 0 ? 0 : x;
  case MLK_GELU: return 0.5 * x * erfc(-x * 0.70710678118654752440);
  case MLK_GELU_TANH: { /* x/2 (1 + tanh y) = x / (1 + exp(-2 y)) */
    const double y = 0.79788456080286535588 * (x + 0.044715 * x * x * x);
    return x / (1 + exp(-2 * y));
  }
  case MLK_SILU: return x / (1 + exp(-x));
  case MLK_TANH: return tanh(x);
  case MLK_SIGMOID: return 1 / (1 + exp(-x));
  default: return x;
  }
}

/* For activations whose bits the library defines: judges the result against the formulas in double, then makes it the
   expectation. The last bits over all floats are test_math.c's matter. */
static void learn(problem *p) {
  const operand *residual = p->residual.present ? &p->residual : p->residual_is_d ? &p->d : NULL;
  int64_t i0, i1, i, j;
  size_t at = 0, wrong = 0, worst = 0;
  operand_move(&p->d, p->want, p->d.first, 0);
  for (i0 = 0; i0 < p->batch[0]; i0++)
    for (i1 = 0; i1 < p->batch[1]; i1++)
      for (i = 0; i < p->m; i++)
        for (j = 0; j < p->n; j++, at++) {
          const double x = p->want_before[at], y = activation_exact(p->activation, x);
          const double r = residual ? *element(residual, i0, i1, i, j) : 0, got = p->want[at];
          const double tolerance = 1e-6 * fabs(y) + 6e-8 * fabs(y + r) + 1e-37;
          if (x != x ? got == got : !(fabs(got - (y + r)) <= tolerance) && !(got == y + r)) {
            if (wrong++ == 0) worst = at;
          }
        }
  CHECK_MSG(wrong == 0,
            "activation %d is off at %lu of %lu elements; the first: f(%.9g) gives %.9g, the formula %.9g (without the "
            "residual)",
            (int)p->activation, (unsigned long)wrong, (unsigned long)p->d.count, (double)p->want_before[worst],
            (double)p->want[worst], activation_exact(p->activation, p->want_before[worst]));
  p->want_known = 1;
  problem_images(p);
}

static int run_problem(problem *p, mlk_context *ctx, const mlk_packed *packed) {
  const mlk_matmul_desc desc = problem_desc(p, packed);
  int ok;
  reset_outputs(p);
  ok = CHECK_OK(ctx, mlk_matmul(ctx, &desc));
  if (!ok) return 0;
  if (!p->want_known) learn(p);
  ok &= check_output(&p->d, p->want, "d");
  if (p->preact.present) ok &= check_output(&p->preact, p->want_before, "preact");
  ok &= check_input(&p->a, "a") & check_input(&p->b, "b") & check_input(&p->c, "c") & check_input(&p->bias, "bias") &
        check_input(&p->residual, "residual");
  return ok;
}

/* ---- contexts of every row and thread count, with workspaces full of rogue numbers ------------------------------- */

enum { CREW_THREADS = 7 };

static struct {
  mlk_context *ctx[MLK_ISA_COUNT][CREW_THREADS + 1];
  mlkt_memory memory[MLK_ISA_COUNT][CREW_THREADS + 1];
  mlk_isa isas[MLK_ISA_COUNT];
  int rows, threads;
} crew;

static void crew_open(void) {
  memset(&crew, 0, sizeof crew);
  crew.rows = mlkt_isas(crew.isas);
  crew.threads = mlkt_opt.threads_max < CREW_THREADS ? mlkt_opt.threads_max : CREW_THREADS;
}

static mlk_context *crew_get(mlk_isa isa, int threads) {
  mlk_context **ctx = &crew.ctx[isa][threads];
  if (!*ctx) {
    mlk_context_desc desc = mlkt_context_desc(isa, threads);
    desc.allocator = mlkt_memory_hook(&crew.memory[isa][threads]);
    if (!CHECK_STATUS(NULL, mlk_open(ctx, &desc), MLK_OK)) return NULL;
  }
  return *ctx;
}

static void crew_close(void) {
  int i, j;
  for (i = 0; i < MLK_ISA_COUNT; i++)
    for (j = 0; j <= CREW_THREADS; j++)
      if (crew.ctx[i][j]) {
        mlk_close(crew.ctx[i][j]);
        CHECK_MEMORY_EMPTY(&crew.memory[i][j]);
      }
}

static mlkt_rng point_rng(uint64_t index) { /* each point has numbers of its own, whatever --quick leaves out */
  mlkt_rng rng = mlkt_rng_case();
  rng.state += index * UINT64_C(0xD1342543DE82EF95);
  return rng;
}

static void note_problem(const problem *p, const char *what, mlk_isa isa, int threads, const char *extra) {
  mlkt_note("%s: batch %dx%d, M %d, N %d, K %d, isa %s, threads %d, alpha %g, beta %g, activation %d, %s%s%s%s%s%s%s",
            what, (int)p->batch[0], (int)p->batch[1], (int)p->m, (int)p->n, (int)p->k, mlk_isa_name(isa), threads,
            p->alpha ? (double)*p->alpha : NAN, p->beta ? (double)*p->beta : NAN, (int)p->activation,
            p->bias.present ? "bias " : "", p->c.present ? "c " : "", p->c_is_d ? "c=d " : "",
            p->residual.present ? "residual " : "", p->residual_is_d ? "residual=d " : "",
            p->preact.present ? "preact " : "", extra);
}

/* Packs b for ctx into a guarded buffer. */
static int pack(mlk_context *ctx, mlk_tensor b, mlkt_buffer *buffer, mlk_packed *packed) {
  memset(packed, 0xFE, sizeof *packed);
  if (!CHECK_OK(ctx, mlk_matmul_pack(ctx, b, NULL, 0, packed))) return 0;
  mlkt_buffer_place(buffer, (size_t)packed->bytes, packed->bytes % 64 == 0 ? MLKT_TAIL : MLKT_HEAD);
  if (packed->bytes) memset(buffer->data, (int)MLKT_ROGUE_BYTE, (size_t)packed->bytes);
  return CHECK_OK(ctx, mlk_matmul_pack(ctx, b, buffer->data, packed->bytes, packed)) &
         CHECK_MSG(mlkt_buffer_intact(buffer), "mlk_matmul_pack wrote beside its buffer");
}

/* The scalar row may have no fused multiply-add in hardware: large products run on it only now and then. */
static int too_slow(const problem *p, mlk_isa isa, uint64_t index) {
  const double work = (double)p->batch[0] * (double)p->batch[1] * (double)p->m * (double)p->n * (double)p->k;
  return (isa == MLK_ISA_SCALAR || isa == MLK_ISA_REFERENCE) && work > 1e6 && index % 4 != 0;
}

/* Runs a laid-out problem on every row, the threads of each row turning with index; sometimes
   through packed weights. */
static int every_row(problem *p, uint64_t index, const char *what, const char *extra, mlkt_buffer *panels) {
  int i, ok = 1;
  for (i = 0; i < crew.rows; i++) {
    const int threads = 1 + (int)((index + (uint64_t)i * 3) % (uint64_t)crew.threads);
    mlk_context *ctx = crew_get(crew.isas[i], threads);
    if (!ctx) return 0;
    if (crew.rows > 1 && too_slow(p, crew.isas[i], index)) continue;
    note_problem(p, what, crew.isas[i], threads, extra);
    ok &= run_problem(p, ctx, NULL);
    if (panels && index % 5 == 0 && p->b.view.rank == 2) {
      mlk_packed packed;
      note_problem(p, "packed", crew.isas[i], threads, extra);
      if (pack(ctx, p->b.view, panels, &packed)) ok &= run_problem(p, ctx, &packed);
    }
  }
  return ok;
}

/* ---- exact-integer sweeps: compared with == (bit patterns) ------------------------------------------------------- */

/* One shape in several forms on every row; some shapes with an epilogue. */
static void sweep_shape(problem *p, int64_t b0, int64_t b1, int64_t m, int64_t n, int64_t k, values kind, int forms,
                        uint64_t index, mlkt_buffer *panels) {
  mlkt_rng rng = point_rng(index);
  int i;
  problem_shape(p, b0, b1, m, n, k);
  if (mlkt_u64(&rng) % 3 == 0) problem_epilogue(p, &rng);
  if (p->batch_axes && mlkt_u64(&rng) % 3 == 0)
    operand_shape(&p->b, 1, mlkt_u64(&rng) % 2 ? b1 : 1, k, n); /* shared weights */
  if (p->batch_axes && mlkt_u64(&rng) % 4 == 0) operand_shape(&p->a, mlkt_u64(&rng) % 2 ? b0 : 1, 1, m, k);
  problem_fill(p, kind, &rng);
  reference(p);
  for (i = 0; i < forms; i++) {
    const form f = (form)((index + (uint64_t)i * 7) % (FORM_COUNT + 1)); /* FORM_COUNT: each operand its own */
    problem_layout(p, f, &rng);
    problem_images(p);
    every_row(p, index + (uint64_t)i, "product", f < FORM_COUNT ? form_names[f] : "mixed forms", panels);
  }
}

static void sweep_tile_edges(void) {
  static const int64_t mn[] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  11, 12, 13,
                               14, 15, 16, 17, 19, 31, 32, 33, 37, 47, 48, 49};
  static const int64_t ks[] = {0, 1, 2, 3, 4, 7, 8, 9, 16, 31, 64};
  enum { MNS = (int)(sizeof mn / sizeof mn[0]), KS = (int)(sizeof ks / sizeof ks[0]) };
  problem p;
  mlkt_buffer panels = {NULL, 0, NULL, 0};
  uint64_t index = 0;
  int i, j, l;
  memset(&p, 0, sizeof p);
  crew_open();
  for (i = 0; i < MNS; i++)
    for (j = 0; j < MNS; j++)
      for (l = 0; l < KS && !mlkt_hopeless(); l++, index++)
        if (mlkt_keep(index)) sweep_shape(&p, 1, 1, mn[i], mn[j], ks[l], INTEGERS, 4, index, &panels);
  crew_close();
  mlkt_buffer_free(&panels);
  problem_free(&p);
}

static void sweep_segments(void) {
  static const int64_t mn[] = {1, 2, 5, 8, 13, 16, 33};
  static const int64_t ks[] = {255, 256, 257, 383, 384, 385, 511, 512, 513, 640, 1023, 1024, 1025, 1536, 1537};
  enum { MNS = (int)(sizeof mn / sizeof mn[0]), KS = (int)(sizeof ks / sizeof ks[0]) };
  problem p;
  mlkt_buffer panels = {NULL, 0, NULL, 0};
  uint64_t index = 0;
  int i, j, l;
  memset(&p, 0, sizeof p);
  crew_open();
  for (i = 0; i < MNS; i++)
    for (j = 0; j < MNS; j++)
      for (l = 0; l < KS && !mlkt_hopeless(); l++, index++)
        if (mlkt_keep(index))
          sweep_shape(&p, 1, 1, mn[i], mn[j], ks[l], index % 2 ? INTEGERS : SIGNED, 3, index, &panels);
  crew_close();
  mlkt_buffer_free(&panels);
  problem_free(&p);
}

/* Tall, wide, deep, primes, matrix-vector: shapes that leave the small paths, at sizes where tasks are made. */
static void sweep_odd_shapes(void) {
  static const int64_t shapes[][3] = {
      {1, 1, 5000},   {1, 1000, 300}, {1000, 1, 300},  {2, 777, 129},   {777, 2, 129},   {3, 3, 4099},
      {997, 5, 7},    {5, 997, 7},    {7, 5, 997},     {101, 103, 107}, {127, 128, 129}, {129, 127, 128},
      {64, 64, 64},   {96, 96, 96},   {128, 16, 513},  {16, 128, 513},  {192, 192, 64},  {191, 193, 65},
      {255, 256, 33}, {257, 255, 31}, {300, 40, 200},  {40, 300, 200},  {61, 67, 1031},  {150, 170, 530},
      {1, 4096, 64},  {4096, 1, 64},  {8, 2048, 65},   {2048, 8, 65},   {12, 333, 1025}, {333, 12, 1025},
      {384, 65, 130}, {65, 384, 130}, {240, 240, 240}, {6, 6, 20000},   {3, 531, 1030},  {531, 3, 1030},
      {6, 301, 1027}, {1301, 6, 515}};
  enum { SHAPES = (int)(sizeof shapes / sizeof shapes[0]) };
  problem p;
  mlkt_buffer panels = {NULL, 0, NULL, 0};
  uint64_t index = 0;
  int i, round;
  memset(&p, 0, sizeof p);
  crew_open();
  for (round = 0; round < 3; round++)
    for (i = 0; i < SHAPES && !mlkt_hopeless(); i++, index++)
      if (mlkt_keep(index))
        sweep_shape(&p, 1, 1, shapes[i][0], shapes[i][1], shapes[i][2], round == 2 ? SIGNED : INTEGERS, 4, index,
                    &panels);
  crew_close();
  mlkt_buffer_free(&panels);
  problem_free(&p);
}

/* Batches: of tiny matrices mostly, batch axes broadcast in a, b, c, bias, residual by 1, by absence, by stride 0. */
static void sweep_batches(void) {
  problem p;
  mlkt_buffer panels = {NULL, 0, NULL, 0};
  uint64_t index;
  memset(&p, 0, sizeof p);
  crew_open();
  for (index = 0; index < 2500 && !mlkt_hopeless(); index++) {
    mlkt_rng rng = point_rng(index + 1000003);
    const int64_t most = index % 10 == 0 ? 40 : 9, b0 = mlkt_int(&rng, 0, 12) == 0 ? 0 : mlkt_int(&rng, 1, 4),
                  b1 = mlkt_int(&rng, 1, 6);
    const int64_t m = mlkt_int(&rng, 1, most), n = mlkt_int(&rng, 1, most);
    const int64_t k = mlkt_int(&rng, 0, 20) == 0 ? 520 : mlkt_int(&rng, 0, 12);
    if (mlkt_keep(index)) sweep_shape(&p, b0, b1, m, n, k, index % 2 ? INTEGERS : SIGNED, 3, index, &panels);
  }
  crew_close();
  mlkt_buffer_free(&panels);
  problem_free(&p);
}

/* ---- the same bits everywhere ------------------------------------------------------------------------------------ */

/* Real numbers: every row and every thread count, all the reference's bits; and the library's own reference row. */
static void bits_across_threads(void) {
  static const int64_t shapes[][5] = {
      {1, 1, 150, 170, 530}, {1, 1, 133, 70, 1040}, {1, 1, 70, 133, 777}, {1, 1, 1, 3000, 600}, {1, 1, 3000, 1, 600},
      {1, 1, 200, 200, 200}, {1, 1, 5, 500, 2100},  {1, 1, 31, 29, 6000}, {1, 1, 97, 89, 83},   {1, 1, 512, 48, 256},
      {1, 1, 48, 512, 256},  {1, 5, 60, 64, 129},   {3, 7, 20, 24, 70},   {10, 30, 4, 4, 4},    {1, 1, 14, 32, 512},
      {1, 1, 64, 257, 1025}, {1, 1, 4, 270, 1033},  {1, 1, 270, 7, 1033}};
  enum { SHAPES = (int)(sizeof shapes / sizeof shapes[0]) };
  problem p;
  mlkt_buffer panels = {NULL, 0, NULL, 0};
  uint64_t index = 0;
  int i, r, kind, threads;
  memset(&p, 0, sizeof p);
  crew_open();
  for (kind = SIGNED; kind <= WIDE; kind++)
    for (i = 0; i < SHAPES && !mlkt_hopeless(); i++, index++) {
      mlkt_rng rng = point_rng(index);
      if (!mlkt_keep(index)) continue;
      problem_shape(&p, shapes[i][0], shapes[i][1], shapes[i][2], shapes[i][3], shapes[i][4]);
      if (index % 2) problem_epilogue(&p, &rng);
      if (shapes[i][1] == 7) operand_shape(&p.b, 1, 1, p.k, p.n);
      problem_fill(&p, (values)kind, &rng);
      reference(&p);
      problem_layout(&p, index % 3 ? (form)(index % FORM_COUNT) : FORM_DENSE, &rng);
      problem_images(&p);
      for (r = 0; r < crew.rows; r++)
        for (threads = 1; threads <= crew.threads; threads++) {
          mlk_context *ctx = crew_get(crew.isas[r], threads);
          mlk_packed packed;
          if (!ctx) continue;
          if (crew.rows > 1 && threads > 1 && too_slow(&p, crew.isas[r], index + (uint64_t)threads)) continue;
          note_problem(&p, "bits", crew.isas[r], threads, "");
          run_problem(&p, ctx, NULL);
          if (p.b.view.rank == 2 && threads % 3 == 1 && pack(ctx, p.b.view, &panels, &packed)) {
            note_problem(&p, "packed", crew.isas[r], threads, "");
            run_problem(&p, ctx, &packed);
          }
        }
      if (index % 3 == 0) {
        mlk_context *ctx = crew_get(MLK_ISA_REFERENCE, 1);
        note_problem(&p, "reference", MLK_ISA_REFERENCE, 1, "");
        if (ctx) run_problem(&p, ctx, NULL);
      }
    }
  crew_close();
  mlkt_buffer_free(&panels);
  problem_free(&p);
}

/* Real numbers, small shapes, all forms and epilogues, special values among them: NaN, infinities,
   subnormals, signed zeros. */
static void bits_small(void) {
  problem p;
  mlkt_buffer panels = {NULL, 0, NULL, 0};
  uint64_t index;
  memset(&p, 0, sizeof p);
  crew_open();
  for (index = 0; index < 6000 && !mlkt_hopeless(); index++) {
    mlkt_rng rng = point_rng(index);
    const int64_t m = mlkt_int(&rng, 1, index % 8 ? 18 : 50), n = mlkt_int(&rng, 1, index % 8 ? 34 : 70);
    const int64_t k = index % 16 == 0 ? mlkt_int(&rng, 500, 1100) : mlkt_int(&rng, 0, 40);
    if (mlkt_keep(index))
      sweep_shape(&p, 1, 1 + (int64_t)(index % 7 == 0), m, n, k, (values)(SIGNED + index % 4), 2, index, &panels);
  }
  crew_close();
  mlkt_buffer_free(&panels);
  problem_free(&p);
}

/* A segment's sum may be -0 (a product that underflows), and so may acc: absent terms are skipped, not added as +0. */
static void signed_zeros(void) {
  static const int64_t ks[] = {1, 2, 512, 513};
  int r, i, alpha, s;
  crew_open();
  for (r = 0; r < crew.rows; r++) {
    mlk_context *ctx = crew_get(crew.isas[r], 1);
    if (!ctx) break;
    for (i = 0; i < 4; i++)
      for (s = 1; s <= 40; s += 13) /* one column, and enough of them for every tile */
        for (alpha = 0; alpha < 2; alpha++) {
          static float a[513 * 3], b[513 * 40], d[3 * 40];
          const float minus_one = -1.0f;
          const int64_t k = ks[i];
          mlk_matmul_desc desc;
          size_t j;
          for (j = 0; j < 513 * 3; j++) a[j] = -1e-30f;
          for (j = 0; j < 513 * 40; j++)
            b[j] = j < (size_t)s ? 1e-30f : 0.0f; /* only row k = 0: then -1e-30 * 0 = -0 */
          memset(&desc, 0, sizeof desc);
          desc.a = mlk_f32(a, 3, k);
          desc.b = mlk_f32(b, k, s);
          desc.d = mlk_f32(d, 3, s);
          desc.alpha = alpha ? &minus_one : NULL;
          mlkt_note("K %d, N %d, alpha %d, isa %s", (int)k, s, alpha ? -1 : 1, mlk_isa_name(crew.isas[r]));
          CHECK_OK(ctx, mlk_matmul(ctx, &desc));
          for (j = 0; j < (size_t)(3 * s); j++) /* beyond K = 512 the sum is -0 + (chain from +0) = +0 */
            CHECK_BITS_F32(d[j], (k <= 512) == (alpha == 1) ? 0.0f : k <= 512 ? -0.0f : alpha ? -0.0f : 0.0f);
        }
  }
  crew_close();
}

/* Tells |acc - exact| against the manual's bound, for three distributions. */
static void error_bound(void) {
  static const int64_t ks[] = {1,   2,   3,    10,   16,   64,   100,  300,   511,  512,
                               513, 700, 1024, 1025, 1537, 2048, 4099, 10000, 40000};
  enum { KS = (int)(sizeof ks / sizeof ks[0]), M = 7, N = 19 };
  problem p;
  uint64_t index = 0;
  int i, kind, round;
  double worst = 0;
  memset(&p, 0, sizeof p);
  crew_open();
  for (round = 0; round < 6; round++)
    for (kind = SIGNED; kind <= WIDE; kind++)
      for (i = 0; i < KS && !mlkt_hopeless(); i++, index++) {
        mlkt_rng rng = point_rng(index);
        const int64_t k = ks[i];
        const mlk_isa isa = crew.isas[index % (uint64_t)crew.rows];
        mlk_context *ctx = crew_get(isa, 1 + (int)(index % (uint64_t)crew.threads));
        mlk_matmul_desc desc;
        int64_t r, c, l;
        double ratio = 0;
        if (!mlkt_keep(index)) continue;
        if (!ctx) break;
        problem_shape(&p, 1, 1, M, N, k);
        problem_fill(&p, (values)kind, &rng);
        if (kind == WIDE) /* cancelling too: the second half of each sum takes most of the first half back */
          for (l = k / 2; l < k - k % 2; l++) {
            for (r = 0; r < M; r++)
              p.a.dense[r * k + l] = p.a.dense[r * k + l - k / 2] * (1.0f + 1e-6f * mlkt_signed(&rng));
            for (c = 0; c < N; c++) p.b.dense[l * N + c] = -p.b.dense[(l - k / 2) * N + c];
          }
        problem_layout(&p, FORM_COUNT, &rng);
        note_problem(&p, "error bound", isa, 0,
                     kind == SIGNED     ? "signed"
                     : kind == POSITIVE ? "one-signed"
                                        : "wide and cancelling");
        desc = problem_desc(&p, NULL);
        CHECK_OK(ctx, mlk_matmul(ctx, &desc));
        operand_move(&p.d, p.want, p.d.first, 0);
        for (r = 0; r < M; r++)
          for (c = 0; c < N; c++) {
            const double terms = (double)(k < MLK_SEGMENT ? k : MLK_SEGMENT) +
                                 (double)((k + MLK_SEGMENT - 1) / MLK_SEGMENT);
            long double exact = 0, magnitude = 0, error;
            for (l = 0; l < k; l++) {
              const double product = (double)p.a.dense[r * k + l] * p.b.dense[l * N + c]; /* exact: 48 bits */
              exact += product;
              magnitude += fabs(product);
            }
            error = p.want[r * N + c] - exact;
            if (error < 0) error = -error;
            if (magnitude > 0) {
              const double q = (double)(error / (terms / 16777216.0 * (1 + 1 / 1024.0) * magnitude));
              if (!(q <= ratio)) ratio = q;
            }
          }
        CHECK_MSG(ratio <= 1, "the error is %g of the bound", ratio);
        if (!(ratio <= worst)) worst = ratio;
      }
  crew_close();
  problem_free(&p);
  CHECK_MSG(worst > 1e-4, "the greatest error is %g of the bound: was anything computed?", worst);
}

/* ---- epilogues --------------------------------------------------------------------------------------------------- */

static void epilogues(void) {
  static const float scalars[] = {0.0f, 1.0f, -2.5f};
  problem p;
  uint64_t index = 0;
  int activation, alpha, beta, bias, c, residual, preact;
  memset(&p, 0, sizeof p);
  crew_open();
  for (activation = 0; activation < MLK_ACTIVATION_COUNT; activation++)
    for (alpha = -1; alpha < 3; alpha++)
      for (beta = -1; beta < 3; beta++)
        for (bias = 0; bias < 5; bias++)
          for (c = 0; c < 3; c++)
            for (residual = 0; residual < 3; residual++)
              for (preact = 0; preact < 2 && !mlkt_hopeless(); preact++, index++) {
                mlkt_rng rng = point_rng(index);
                const int64_t m = mlkt_int(&rng, 1, 15), n = mlkt_int(&rng, 1, 35), k = mlkt_int(&rng, 0, 9);
                size_t i;
                if (!mlkt_keep(index)) continue;
                problem_shape(&p, 1, 1, m, n, k);
                p.activation = (mlk_activation)activation;
                if (alpha >= 0) p.alpha_value = scalars[alpha], p.alpha = &p.alpha_value;
                if (beta >= 0) p.beta_value = scalars[beta], p.beta = &p.beta_value;
                if (bias == 1) operand_shape(&p.bias, 1, 1, 1, n);
                if (bias == 2) operand_shape(&p.bias, 1, 1, m, 1);
                if (bias == 3) operand_shape(&p.bias, 1, 1, m, n);
                if (bias == 4) operand_shape(&p.bias, 1, 1, 1, 1);
                if (c == 1) operand_shape(&p.c, 1, 1, m, n);
                p.c_is_d = c == 2;
                if (residual == 1) operand_shape(&p.residual, 1, 1, m, n);
                p.residual_is_d = residual == 2;
                if (preact) operand_shape(&p.preact, 1, 1, m, n);
                problem_fill(&p, SIGNED, &rng);
                for (i = 0; i < p.a.count; i++) p.a.dense[i] *= index % 3 == 0 ? 20.0f : 3.0f; /* far into both tails */
                reference(&p);
                problem_layout(&p, FORM_COUNT, &rng);
                problem_images(&p);
                every_row(&p, index, "epilogue", "", NULL);
              }
  crew_close();
  problem_free(&p);
}

/* Larger products with each activation: the epilogue of full tiles and of several tasks. */
static void epilogues_large(void) {
  problem p;
  mlkt_buffer panels = {NULL, 0, NULL, 0};
  int activation, round;
  memset(&p, 0, sizeof p);
  crew_open();
  for (activation = 0; activation < MLK_ACTIVATION_COUNT; activation++)
    for (round = 0; round < 4 && !mlkt_hopeless(); round++) {
      const uint64_t index = (uint64_t)(activation * 4 + round);
      mlkt_rng rng = point_rng(index);
      if (mlkt_opt.quick && index % 9 != mlkt_opt.seed % 9) continue;
      problem_shape(&p, 1, 1, 131, 147, round % 2 ? 600 : 90);
      problem_epilogue(&p, &rng);
      p.activation = (mlk_activation)activation;
      if (!p.preact.present && round < 2) operand_shape(&p.preact, 1, 1, p.m, p.n);
      problem_fill(&p, SIGNED, &rng);
      reference(&p);
      problem_layout(&p, round == 0 ? FORM_DENSE : FORM_COUNT, &rng);
      problem_images(&p);
      every_row(&p, index * 5, "epilogue", "", &panels);
    }
  crew_close();
  mlkt_buffer_free(&panels);
  problem_free(&p);
}

/* alpha = 0 does not read A and B, beta = 0 does not read C or D: they may be NaN, or not be there at all. */
static void not_read(void) {
  const float zero = 0.0f, minus_zero = -0.0f, two = 2.0f;
  float *nowhere = (float *)(uintptr_t)4096; /* reading it ends the test */
  static float a[20 * 600], b[600 * 40], c[20 * 40], d[20 * 40], bias[40], want[20 * 40];
  mlkt_rng rng = mlkt_rng_case();
  int r, sign, kind;
  size_t i;
  crew_open();
  for (i = 0; i < 40; i++) bias[i] = mlkt_signed(&rng);
  for (i = 0; i < 20 * 40; i++) c[i] = mlkt_signed(&rng);
  for (i = 0; i < 20 * 600; i++) a[i] = mlkt_signed(&rng);
  for (i = 0; i < 600 * 40; i++) b[i] = mlkt_signed(&rng);
  for (r = 0; r < crew.rows; r++)
    for (sign = 0; sign < 2; sign++)
      for (kind = 0; kind < 4; kind++) {
        mlk_context *ctx = crew_get(crew.isas[r], 2);
        mlk_matmul_desc desc;
        if (!ctx) continue;
        mlkt_note("isa %s, kind %d", mlk_isa_name(crew.isas[r]), kind);
        memset(&desc, 0, sizeof desc);
        desc.d = mlk_f32(d, 20, 40);
        if (kind < 2) { /* alpha = 0: A and B point nowhere */
          desc.a = mlk_f32(nowhere, 20, 600);
          desc.b = mlk_f32(nowhere + 1000000, 600, 40);
          desc.bias = mlk_f32(bias, 40);
          desc.alpha = sign ? &minus_zero : &zero;
          for (i = 0; i < 20 * 40; i++) want[i] = bias[i % 40];
          if (kind == 1) {
            desc.c = mlk_f32(c, 20, 40);
            desc.beta = &two;
            for (i = 0; i < 20 * 40; i++) want[i] = fmaf(2.0f, c[i], bias[i % 40]);
          }
        } else { /* beta = 0: C points nowhere, or D holds NaNs */
          desc.a = mlk_f32(a, 20, 600);
          desc.b = mlk_f32(b, 600, 40);
          if (CHECK_OK(ctx, mlk_matmul(ctx, &desc))) memcpy(want, d, sizeof want);
          if (kind == 2) desc.c = mlk_f32(nowhere, 20, 40);
          desc.beta = sign ? &minus_zero : &zero;
        }
        mlkt_rogue_f32(d, 20 * 40); /* quiet NaNs */
        CHECK_OK(ctx, mlk_matmul(ctx, &desc));
        CHECK_BITS_F32_N(d, want, 20 * 40);
      }
  crew_close();
}

/* What a sum of IEEE operations must give, spelled out; K = 1 or 2, in a matrix wide enough for full tiles. */
static void nan_and_infinity(void) {
  const float inf = mlkt_float(0x7F800000u), nan = mlkt_float(0x7FC00000u), tiny = mlkt_float(1);
  const float table[][8] = {
      /* a0 b0 + a1 b1, alpha, bias, beta, C and the value expected */
      {inf, 0, 0, 0, 1, 0, 0, nan},
      {inf, 1, -inf, 1, 1, 0, 0, nan},
      {inf, -1, -inf, 1, 1, 0, 0, -inf},
      {inf, 1, 5, 5, 1, 0, 0, inf},
      {nan, 0, 1, 1, 1, 0, 0, nan},
      {1, nan, 0, 0, 1, 0, 0, nan},
      {FLT_MAX, 2, 0, 0, 1, 0, 0, inf},
      {FLT_MAX, -2, 0, 0, 1, 0, 0, -inf},
      {FLT_MAX, 2, FLT_MAX, -2, 1, 0, 0, inf}, /* each term is rounded into the sum: no way back */
      {FLT_MAX, 1, FLT_MAX, 1, 1, 0, 0, inf},
      {FLT_MAX, 1, -FLT_MAX, 1, 1, 0, 0, 0},
      {FLT_MAX, 1, FLT_MAX, -2, 1, 0, 0, -FLT_MAX}, /* fused: the product may leave the range of f32 */
      {tiny, 1, 0, 0, 1, 0, 0, tiny},
      {tiny, 1, tiny, 1, 1, 0, 0, mlkt_float(2)},
      {tiny, 0.25f, 0, 0, 1, 0, 0, 0},
      {FLT_MIN, 0.5f, 0, 0, 1, 0, 0, mlkt_float(0x00400000u)},
      {1e-30f, 1e-30f, 0, 0, 1, 0, 0, 0},
      {1, 1, -1, 1, 1, 0, 0, 0},
      {1, 1, 1, 1, inf, 0, 0, inf},
      {1, 1, -1, 1, inf, 0, 0, nan},
      {1, 1, 0, 0, nan, 0, 0, nan},
      {1, 1, 0, 0, 1, nan, 0, nan},
      {1, 1, 0, 0, 1, -inf, 0, -inf},
      {inf, 1, 0, 0, 1, -inf, 0, nan},
      {1, 1, 0, 0, 0, -inf, 0, -inf},
      {nan, 1, 0, 0, 0, 3, 0, 3},
      {inf, 1, inf, 1, 0, 3, 0, 3},
      {1, 1, 0, 0, 1, 0, 0, 1},
      {1, 1, 0, 0, FLT_MAX, FLT_MAX, 0, inf},
      {2, 1, 0, 0, FLT_MAX, -FLT_MAX, 0, FLT_MAX}, /* fma(alpha, acc, bias) is rounded once */
      {1, 1, 0, 0, 1, 0, nan, nan},                /* beta C with beta 1 */
      {1, 1, 0, 0, 1, 0, -inf, -inf},
      {inf, 1, 0, 0, 1, 0, -inf, nan}};
  enum { CASES = (int)(sizeof table / sizeof table[0]), MOST = 33 };
  int r, i, wide, k, activation;
  crew_open();
  for (r = 0; r < crew.rows; r++)
    for (i = 0; i < CASES; i++)
      for (wide = 0; wide < 2; wide++)
        for (k = 2; k <= 600; k += 598) { /* K = 600: the two terms in different segments, zeros between */
          static float a[MOST * 600], b[600 * MOST], d[MOST * MOST], c[1], bias[1];
          const int64_t size = wide ? MOST : 1;
          const float *t = table[i];
          mlk_context *ctx = crew_get(crew.isas[r], 1);
          mlk_matmul_desc desc;
          int64_t j, l;
          if (!ctx) continue;
          if (k == 600 && (t[0] != t[0] || t[1] != t[1] || i == 8 || i == 11))
            continue; /* the sentence differs there */
          for (j = 0; j < size; j++)
            for (l = 0; l < k; l++) {
              a[j * k + l] = l == 0 ? t[0] : l == k - 1 ? t[2] : 0;
              b[l * size + j] = l == 0 ? t[1] : l == k - 1 ? t[3] : 0;
            }
          bias[0] = t[5], c[0] = t[6];
          memset(&desc, 0, sizeof desc);
          desc.a = mlk_f32(a, size, k);
          desc.b = mlk_f32(b, k, size);
          desc.d = mlk_f32(d, size, size);
          desc.alpha = &t[4];
          if (t[5] != 0) desc.bias = mlk_f32(bias, 1);
          if (t[6] != 0) desc.c = mlk_f32(c, 1, 1);
          mlkt_note("row %d of the table, %d columns, K %d, isa %s", i, (int)size, k, mlk_isa_name(crew.isas[r]));
          CHECK_OK(ctx, mlk_matmul(ctx, &desc));
          for (j = 0; j < size * size; j++)
            if (!CHECK_MSG(d[j] == t[7] || (d[j] != d[j] && t[7] != t[7]), "d[%d] is %g, expected %g", (int)j,
                           (double)d[j], (double)t[7]))
              break;
        }
  for (r = 0; r < crew.rows; r++)
    for (activation = 0; activation < MLK_ACTIVATION_COUNT; activation++) {
      const float in[5] = {nan, inf, -inf, 0, FLT_MAX};
      const float want[MLK_ACTIVATION_COUNT][5] = {/* -inf: the limits of GELU and SILU are judged in test_math.c */
                                                   {nan, inf, -inf, 0, FLT_MAX}, {nan, inf, 0, 0, FLT_MAX},
                                                   {nan, inf, nan, 0, FLT_MAX},  {nan, inf, nan, 0, FLT_MAX},
                                                   {nan, inf, nan, 0, FLT_MAX},  {nan, 1, -1, 0, 1},
                                                   {nan, 1, 0, 0.5f, 1}};
      const float one = 1.0f;
      float d[5] = {0, 0, 0, 0, 0}; /* MemorySanitizer does not know masked stores */
      mlk_context *ctx = crew_get(crew.isas[r], 1);
      mlk_matmul_desc desc;
      int j;
      if (!ctx) continue;
      memset(&desc, 0, sizeof desc);
      desc.a = mlk_f32(in, 5, 1);
      desc.b = mlk_f32(&one, 1, 1);
      desc.d = mlk_f32(d, 5, 1);
      desc.activation = (mlk_activation)activation;
      mlkt_note("activation %d, isa %s", activation, mlk_isa_name(crew.isas[r]));
      CHECK_OK(ctx, mlk_matmul(ctx, &desc));
      for (j = 0; j < 5; j++)
        if (j != 2 || want[activation][j] == want[activation][j]) CHECK_BITS_F32(d[j], want[activation][j]);
    }
  crew_close();
}

/* ---- packing ----------------------------------------------------------------------------------------------------- */

static void packing(void) {
  static float a[11 * 70], b[70 * 50], d[11 * 50], want[11 * 50];
  mlkt_rng rng = mlkt_rng_case();
  mlkt_buffer buffer = {NULL, 0, NULL, 0};
  size_t i;
  int r, other;
  crew_open();
  for (i = 0; i < 11 * 70; i++) a[i] = mlkt_signed(&rng);
  for (i = 0; i < 70 * 50; i++) b[i] = mlkt_signed(&rng);
  for (r = 0; r < crew.rows; r++) {
    mlk_context *ctx = crew_get(crew.isas[r], 1);
    mlk_packed size, packed, bad;
    mlk_matmul_desc desc;
    char text[32];
    if (!ctx) break;
    mlkt_note("isa %s", mlk_isa_name(crew.isas[r]));
    memset(&desc, 0, sizeof desc);
    desc.a = mlk_f32(a, 11, 70);
    desc.b = mlk_f32(b, 70, 50);
    desc.d = mlk_f32(want, 11, 50);
    CHECK_OK(ctx, mlk_matmul(ctx, &desc));
    memset(&desc.b, 0, sizeof desc.b);
    desc.d = mlk_f32(d, 11, 50);

    memset(&size, 0xFE, sizeof size);
    CHECK_OK(ctx, mlk_matmul_pack(ctx, mlk_f32(b, 70, 50), NULL, 0, &size));
    CHECK_MSG(size.bytes >= 70 * 50 * 4 && size.bytes <= 70 * 128 * 4 + 4096, "%" PRIu64 " bytes for 70 x 50",
              size.bytes);
    CHECK(size.data == NULL);
    CHECK_EQ_I64(size.k, 70);
    CHECK_EQ_I64(size.n, 50);
    mlkt_buffer_place(&buffer, (size_t)size.bytes + 64, MLKT_HEAD);
    memset(buffer.data, (int)MLKT_ROGUE_BYTE, buffer.bytes);

    packed = size; /* a buffer that is short, or badly aligned: nothing is written */
    CHECK_STATUS(ctx, mlk_matmul_pack(ctx, mlk_f32(b, 70, 50), buffer.data, size.bytes - 1, &packed), MLK_ERR_ARGUMENT);
    snprintf(text, sizeof text, "%" PRIu64, size.bytes);
    CHECK_MSG(strstr(mlk_last_error(ctx), text) && strstr(mlk_last_error(ctx), "buffer"),
              "the sentence does not tell %s: \"%s\"", text, mlk_last_error(ctx));
    CHECK_STATUS(ctx, mlk_matmul_pack(ctx, mlk_f32(b, 70, 50), buffer.data, 0, &packed), MLK_ERR_ARGUMENT);
    for (i = 1; i < 64; i = i * 2 + 1) {
      CHECK_STATUS(ctx, mlk_matmul_pack(ctx, mlk_f32(b, 70, 50), (char *)buffer.data + i, size.bytes, &packed),
                   MLK_ERR_ARGUMENT);
      CHECK_MSG(strstr(mlk_last_error(ctx), "buffer") && strstr(mlk_last_error(ctx), "64"),
                "the sentence does not tell 64: \"%s\"", mlk_last_error(ctx));
    }
    CHECK(memcmp(&packed, &size, sizeof packed) == 0);
    CHECK_MSG(mlkt_is_rogue_i64(mlkt_buffer_i64(&buffer), buffer.bytes / 8),
              "a refused mlk_matmul_pack wrote into the buffer");
    /* bad b */
    CHECK_STATUS(ctx, mlk_matmul_pack(ctx, mlk_f32((float *)NULL, 70, 50), buffer.data, size.bytes, &packed),
                 MLK_ERR_ARGUMENT);
    CHECK_STATUS(ctx, mlk_matmul_pack(ctx, mlk_i64((int64_t *)(void *)b, 35, 50), buffer.data, size.bytes, &packed),
                 MLK_ERR_DTYPE);
    CHECK_STATUS(ctx, mlk_matmul_pack(ctx, mlk_f32(b, 3500), buffer.data, size.bytes, &packed), MLK_ERR_SHAPE);
    CHECK_STATUS(ctx, mlk_matmul_pack(ctx, mlk_f32(b, 2, 35, 50), buffer.data, size.bytes, &packed), MLK_ERR_SHAPE);
    CHECK(memcmp(&packed, &size, sizeof packed) == 0);

    if (!CHECK_OK(ctx, mlk_matmul_pack(ctx, mlk_f32(b, 70, 50), buffer.data, size.bytes, &packed))) continue;
    CHECK(packed.data == buffer.data);
    CHECK_EQ_I64(packed.bytes, size.bytes);
    CHECK(mlkt_is_rogue_i64((int64_t *)(void *)((char *)buffer.data + size.bytes), 8));
    desc.packed_b = &packed;
    mlkt_rogue_f32(d, 11 * 50);
    CHECK_OK(ctx, mlk_matmul(ctx, &desc));
    CHECK_BITS_F32_N(d, want, 11 * 50);

    mlkt_rogue_f32(d, 11 * 50);
    desc.b = mlk_f32(b, 70, 50); /* both */
    CHECK_STATUS(ctx, mlk_matmul(ctx, &desc), MLK_ERR_ARGUMENT);
    CHECK_MSG(strstr(mlk_last_error(ctx), "packed_b") != NULL, "the sentence does not name packed_b: \"%s\"",
              mlk_last_error(ctx));
    memset(&desc.b, 0, sizeof desc.b);
    desc.a = mlk_f32(a, 11, 69); /* K */
    CHECK_STATUS(ctx, mlk_matmul(ctx, &desc), MLK_ERR_SHAPE);
    CHECK_MSG(strstr(mlk_last_error(ctx), "69") && strstr(mlk_last_error(ctx), "70"),
              "the sentence does not tell 69 and 70: \"%s\"", mlk_last_error(ctx));
    desc.a = mlk_f32(a, 11, 70);
    desc.d = mlk_f32(d, 11, 49); /* N */
    CHECK_STATUS(ctx, mlk_matmul(ctx, &desc), MLK_ERR_SHAPE);
    CHECK_MSG(strstr(mlk_last_error(ctx), "49") && strstr(mlk_last_error(ctx), "50"),
              "the sentence does not tell 49 and 50: \"%s\"", mlk_last_error(ctx));
    desc.d = mlk_f32(d, 11, 50);
    desc.packed_b = &bad;
    bad = packed, bad.data = NULL;
    CHECK_STATUS(ctx, mlk_matmul(ctx, &desc), MLK_ERR_ARGUMENT);
    bad = packed, bad.dtype = MLK_I64;
    CHECK_STATUS(ctx, mlk_matmul(ctx, &desc), MLK_ERR_DTYPE);
    bad = packed, bad.data = (const char *)packed.data + 4;
    CHECK_STATUS(ctx, mlk_matmul(ctx, &desc), MLK_ERR_ARGUMENT);
    bad = packed, bad.bytes = 64;
    CHECK_STATUS(ctx, mlk_matmul(ctx, &desc), MLK_ERR_ARGUMENT);
    for (other = MLK_ISA_SCALAR; other < MLK_ISA_COUNT; other++) { /* another row refuses by name */
      mlk_context *stranger;
      if (other == (int)crew.isas[r] || other == MLK_ISA_REFERENCE || !mlk_isa_available((mlk_isa)other)) continue;
      if (mlkt_opt.cuda) continue; /* there B is packed for any device */
      stranger = crew_get((mlk_isa)other, 1);
      if (!stranger) continue;
      desc.packed_b = &packed;
      CHECK_STATUS(stranger, mlk_matmul(stranger, &desc), MLK_ERR_ARGUMENT);
      CHECK_MSG(strstr(mlk_last_error(stranger), mlk_isa_name(crew.isas[r])) &&
                    strstr(mlk_last_error(stranger), mlk_isa_name((mlk_isa)other)),
                "the sentence does not name both rows: \"%s\"", mlk_last_error(stranger));
    }
    CHECK_MSG(mlkt_is_rogue_f32(d, 11 * 50), "a refused call wrote d");
  }
  crew_close();
  mlkt_buffer_free(&buffer);
}

/* ---- bad arguments ----------------------------------------------------------------------------------------------- */

enum { BAD_M = 6, BAD_N = 10, BAD_K = 8, BAD_BATCH = 3, BAD_ROOM = 4096 };
static float bad_a[BAD_ROOM], bad_b[BAD_ROOM], bad_c[BAD_ROOM], bad_d[BAD_ROOM], bad_bias[BAD_ROOM],
    bad_residual[BAD_ROOM], bad_preact[BAD_ROOM];

static void expect_refusal(mlk_context *ctx, const mlk_matmul_desc *desc, mlk_status status, const char *word,
                           const char *value, const char *what, int line) {
  mlk_plan plan, kept;
  mlkt_note("line %d: %s", line, what);
  memset(&plan, 0xFE, sizeof plan);
  memcpy(&kept, &plan, sizeof plan);
  CHECK_STATUS(ctx, mlk_matmul(ctx, desc), status);
  CHECK_NAMES(ctx, word);
  if (value) CHECK_NAMES(ctx, value);
  CHECK_STATUS(ctx, mlk_matmul_plan(ctx, desc, &plan), status);
  CHECK_MSG(memcmp(&plan, &kept, sizeof plan) == 0, "a refused mlk_matmul_plan wrote the plan");
  CHECK_MSG(mlkt_is_rogue_f32(bad_d, BAD_ROOM) && mlkt_is_rogue_f32(bad_preact, BAD_ROOM),
            "a refused mlk_matmul wrote an output");
}

#define BAD(spoil, status, word, value)                                                                                \
  do {                                                                                                                 \
    mlk_matmul_desc desc = good;                                                                                       \
    spoil;                                                                                                             \
    expect_refusal(ctx, &desc, (status), (word), (value), #spoil, __LINE__);                                           \
  } while (0)

static void bad_arguments(void) {
  mlk_context *ctx = mlkt_open(MLK_ISA_BEST, 2);
  mlk_matmul_desc good;
  const float one = 1;
  mlk_packed packed;
  memset(&packed, 0, sizeof packed);
  if (!ctx) return;
  memset(&good, 0, sizeof good);
  good.a = mlk_f32(bad_a, BAD_BATCH, BAD_M, BAD_K);
  good.b = mlk_f32(bad_b, BAD_K, BAD_N);
  good.c = mlk_f32(bad_c, BAD_M, BAD_N);
  good.d = mlk_f32(bad_d, BAD_BATCH, BAD_M, BAD_N);
  good.bias = mlk_f32(bad_bias, BAD_N);
  good.residual = mlk_f32(bad_residual, BAD_BATCH, 1, 1);
  good.preact = mlk_f32(bad_preact, BAD_BATCH, BAD_M, BAD_N);
  good.alpha = good.beta = &one;
  CHECK_OK(ctx, mlk_matmul(ctx, &good));
  mlkt_rogue_f32(bad_d, BAD_ROOM);
  mlkt_rogue_f32(bad_preact, BAD_ROOM);

  /* missing */
  BAD(desc.a.data = NULL, MLK_ERR_ARGUMENT, "a", NULL);
  BAD(desc.b.data = NULL, MLK_ERR_ARGUMENT, "b", NULL);
  BAD(desc.d.data = NULL, MLK_ERR_ARGUMENT, "d", NULL);
  BAD(memset(&desc.a, 0, sizeof desc.a), MLK_ERR_ARGUMENT, "a", NULL);
  BAD(memset(&desc.b, 0, sizeof desc.b), MLK_ERR_ARGUMENT, "b", NULL);
  BAD(memset(&desc.d, 0, sizeof desc.d), MLK_ERR_ARGUMENT, "d", NULL);
  BAD(desc.packed_b = &packed, MLK_ERR_ARGUMENT, "packed_b", NULL);

  /* element type */
  BAD(desc.a.dtype = MLK_I64, MLK_ERR_DTYPE, "a", NULL);
  BAD(desc.b.dtype = MLK_I64, MLK_ERR_DTYPE, "b", NULL);
  BAD(desc.c.dtype = MLK_I64, MLK_ERR_DTYPE, "c", NULL);
  BAD(desc.d.dtype = MLK_I64, MLK_ERR_DTYPE, "d", NULL);
  BAD(desc.bias.dtype = MLK_DTYPE_COUNT, MLK_ERR_DTYPE, "bias", NULL);
  BAD(desc.residual.dtype = -1, MLK_ERR_DTYPE, "residual", NULL);
  BAD(desc.preact.dtype = 1000000, MLK_ERR_DTYPE, "preact", NULL);

  /* rank */
  BAD(desc.a.rank = 1, MLK_ERR_SHAPE, "a", "1");
  BAD(desc.b.rank = 1, MLK_ERR_SHAPE, "b", "1");
  BAD(desc.d.rank = 1, MLK_ERR_SHAPE, "d", "1");
  BAD(desc.a.rank = 7, MLK_ERR_SHAPE, "a", "7");
  BAD(desc.b.rank = 7, MLK_ERR_SHAPE, "b", "7");
  BAD(desc.c.rank = 7, MLK_ERR_SHAPE, "c", "7");
  BAD(desc.d.rank = INT32_MAX, MLK_ERR_SHAPE, "d", "2147483647");
  BAD(desc.bias.rank = 7, MLK_ERR_SHAPE, "bias", "7");
  BAD(desc.residual.rank = -1, MLK_ERR_SHAPE, "residual", NULL);
  BAD(desc.preact.rank = INT32_MIN, MLK_ERR_SHAPE, "preact", NULL);

  /* sizes that do not fit together */
  BAD(desc.a.shape[2] = BAD_K + 1, MLK_ERR_SHAPE, "b", "9"); /* K is a's: b does not fit it */
  BAD(desc.a.shape[1] = BAD_M - 1, MLK_ERR_SHAPE, "a", "5");
  BAD(desc.a.shape[1] = 1, MLK_ERR_SHAPE, "a", "1"); /* M and K do not broadcast */
  BAD(desc.a.shape[2] = 1, MLK_ERR_SHAPE, "b", "1");
  BAD(desc.a.shape[0] = BAD_BATCH + 1, MLK_ERR_SHAPE, "a", "4");
  BAD(desc.b.shape[0] = BAD_K - 1, MLK_ERR_SHAPE, "b", "7");
  BAD(desc.b.shape[0] = 1, MLK_ERR_SHAPE, "b", "1");
  BAD(desc.b.shape[1] = BAD_N + 1, MLK_ERR_SHAPE, "b", "11");
  BAD(desc.b.shape[1] = 1, MLK_ERR_SHAPE, "b", "1");
  BAD(desc.b = mlk_f32(bad_b, 2, BAD_K, BAD_N), MLK_ERR_SHAPE, "b", "2");
  BAD(desc.b = mlk_f32(bad_b, 1, 1, BAD_K, BAD_N), MLK_ERR_SHAPE, "b", NULL); /* more axes than d */
  BAD(desc.a = mlk_f32(bad_a, 1, 1, 1, BAD_M, BAD_K), MLK_ERR_SHAPE, "a", NULL);
  BAD(desc.c.shape[0] = BAD_M + 1, MLK_ERR_SHAPE, "c", "7");
  BAD(desc.c.shape[1] = 2, MLK_ERR_SHAPE, "c", "2");
  BAD(desc.bias.shape[0] = BAD_N - 1, MLK_ERR_SHAPE, "bias", "9");
  BAD(desc.bias.shape[0] = 0, MLK_ERR_SHAPE, "bias", "0");
  BAD(desc.bias = mlk_f32(bad_bias, BAD_M), MLK_ERR_SHAPE, "bias", "6"); /* per row needs [M, 1] */
  BAD(desc.residual.shape[0] = 2, MLK_ERR_SHAPE, "residual", "2");
  BAD(desc.preact.shape[0] = 1, MLK_ERR_SHAPE, "preact", NULL);
  BAD(desc.preact.shape[2] = BAD_N + 1, MLK_ERR_SHAPE, "preact", "11");
  BAD(desc.preact = mlk_f32(bad_preact, BAD_M, BAD_N), MLK_ERR_SHAPE, "preact", NULL);

  /* negative sizes */
  BAD(desc.a.shape[1] = -BAD_M, MLK_ERR_SHAPE, "a", "6");
  BAD(desc.b.shape[1] = -1, MLK_ERR_SHAPE, "b", "1");
  BAD(desc.c.shape[1] = INT64_MIN, MLK_ERR_SHAPE, "c", NULL);
  BAD(desc.d.shape[0] = -3, MLK_ERR_SHAPE, "d", "3");
  BAD(desc.bias.shape[0] = -1, MLK_ERR_SHAPE, "bias", NULL);

  /* outputs that map two elements to one place */
  BAD(desc.d = mlk_with_row_stride(desc.d, BAD_N - 1), MLK_ERR_SHAPE, "d", "9");
  BAD(desc.d = mlk_with_row_stride(desc.d, 0), MLK_ERR_SHAPE, "d", NULL);
  BAD(desc.d = mlk_with_row_stride(desc.d, 1), MLK_ERR_SHAPE, "d", NULL);
  BAD((desc.d = mlk_transposed(mlk_transposed(desc.d)), desc.d.stride[0] = 0), MLK_ERR_SHAPE, "d", NULL);
  BAD(desc.preact = mlk_with_row_stride(desc.preact, BAD_N / 2), MLK_ERR_SHAPE, "preact", NULL);

  /* enumerations */
  BAD(desc.activation = MLK_ACTIVATION_COUNT, MLK_ERR_ARGUMENT, "activation", "7");
#ifndef __cplusplus
  BAD(desc.activation = (mlk_activation)-1, MLK_ERR_ARGUMENT, "activation", NULL);
  BAD(desc.activation = (mlk_activation)1000, MLK_ERR_ARGUMENT, "activation", "1000");
#endif

  mlkt_note("%s", "the context must still work");
  CHECK_OK(ctx, mlk_matmul(ctx, &good));
  CHECK(!mlkt_is_rogue_f32(bad_d, 1));
  mlk_close(ctx);
}

static void bad_packed(void) {
  static float a[4 * 4], b[4 * 4], d[4 * 4];
  mlk_context *ctx = mlkt_open(MLK_ISA_BEST, 1);
  mlk_packed packed;
  mlk_matmul_desc desc;
  mlkt_buffer buffer = {NULL, 0, NULL, 0};
  if (!ctx) return;
  if (pack(ctx, mlk_f32(b, 4, 4), &buffer, &packed)) {
    memset(&desc, 0, sizeof desc);
    desc.a = mlk_f32(a, 4, 4);
    desc.packed_b = &packed;
    desc.d = mlk_f32((float *)buffer.data, 4, 4); /* D on top of the panels */
    CHECK_STATUS(ctx, mlk_matmul(ctx, &desc), MLK_ERR_ALIAS);
    desc.d = mlk_f32(d, 4, 4);
    CHECK_OK(ctx, mlk_matmul(ctx, &desc));
  }
  mlk_close(ctx);
  mlkt_buffer_free(&buffer);
}

/* ---- aliasing ---------------------------------------------------------------------------------------------------- */

static float alias_memory[3000];

static void refuse_alias(mlk_context *ctx, const mlk_matmul_desc *desc, const char *word, int line) {
  static float kept[3000];
  mlkt_note("line %d", line);
  memcpy(kept, alias_memory, sizeof kept);
  CHECK_STATUS(ctx, mlk_matmul(ctx, desc), MLK_ERR_ALIAS);
  CHECK_NAMES(ctx, word);
  CHECK_MSG(memcmp(kept, alias_memory, sizeof kept) == 0, "a refused call wrote memory");
}

static void aliasing(void) {
  float *x = alias_memory;
  static float a[16 * 16], b[16 * 16], want[1024 * 2];
  mlk_context *ctx = mlkt_open(MLK_ISA_BEST, 2);
  mlkt_rng rng = mlkt_rng_case();
  mlk_matmul_desc good, desc;
  int i, j, l, block;
  if (!ctx) return;
  for (i = 0; i < 256; i++) a[i] = (float)mlkt_int(&rng, -3, 3), b[i] = (float)mlkt_int(&rng, -3, 3);
  for (i = 0; i < 3000; i++) x[i] = (float)mlkt_int(&rng, -3, 3);
  memset(&good, 0, sizeof good);
  good.a = mlk_f32(a, 16, 16);
  good.b = mlk_f32(b, 16, 16);
  good.d = mlk_f32(x + 1000, 16, 16);
  CHECK_OK(ctx, mlk_matmul(ctx, &good));

#define REFUSE(spoil, word)                                                                                            \
  do {                                                                                                                 \
    desc = good;                                                                                                       \
    spoil;                                                                                                             \
    refuse_alias(ctx, &desc, word, __LINE__);                                                                          \
  } while (0)
#define ACCEPT(change)                                                                                                 \
  do {                                                                                                                 \
    desc = good;                                                                                                       \
    change;                                                                                                            \
    mlkt_note("line %d", __LINE__);                                                                                    \
    CHECK_OK(ctx, mlk_matmul(ctx, &desc));                                                                             \
  } while (0)

  REFUSE(desc.a = desc.d, "a");
  REFUSE(desc.b = desc.d, "b");
  REFUSE(desc.a = mlk_f32(x + 1255, 16, 16), "a"); /* one element */
  REFUSE(desc.a = mlk_f32(x + 745, 16, 16), "a");
  REFUSE(desc.b = mlk_f32(x + 1016, 16, 16), "b");
  REFUSE(desc.bias = mlk_f32(x + 1000, 16), "bias");
  REFUSE(desc.bias = mlk_f32(x + 1255, 16), "bias");
  REFUSE(desc.c = mlk_f32(x + 1001, 16, 16), "c"); /* D, but shifted */
  REFUSE(desc.c = mlk_transposed(desc.d), "c");    /* D, but not its strides */
  REFUSE(desc.c = mlk_f32(x + 1000, 16), "c");     /* D's first row for all rows */
  REFUSE(desc.residual = mlk_f32(x + 984, 16, 16), "residual");
  REFUSE(desc.residual = mlk_transposed(desc.d), "residual");
  REFUSE(desc.preact = desc.d, "preact");
  REFUSE(desc.preact = mlk_f32(x + 1100, 16, 16), "preact");
  REFUSE(desc.preact = mlk_f32(a, 16, 16), "preact");
  REFUSE(desc.preact = mlk_f32(b + 100, 16, 16), "preact");
  REFUSE((desc.c = mlk_f32(x, 16, 16), desc.preact = desc.c), "preact");
  REFUSE((desc.residual = mlk_f32(x, 16, 16), desc.preact = desc.residual), "preact");
  REFUSE((desc.bias = mlk_f32(x, 16), desc.preact = mlk_f32(x, 16, 16)), "preact");
  REFUSE((desc.a = mlk_f32(x, 16, 16), desc.d = mlk_with_row_stride(mlk_f32(x + 8, 16, 16), 32)),
         "a"); /* columns 8..23 and rows */

  ACCEPT(desc.a = mlk_f32(x + 1256, 16, 16)); /* right behind */
  ACCEPT(desc.a = mlk_f32(x + 744, 16, 16));  /* right before */
  ACCEPT(desc.b = desc.a);                    /* inputs may be one */
  ACCEPT(desc.c = desc.d);
  ACCEPT(desc.residual = desc.d);
  ACCEPT((desc.c = desc.d, desc.residual = desc.d));
  ACCEPT(desc.c = mlk_transposed(mlk_transposed(desc.d))); /* the same strides, spelled out */
  ACCEPT((desc.c = mlk_f32(a, 16, 16), desc.residual = mlk_f32(a, 16, 16), desc.bias = mlk_f32(a, 16)));

  /* slices of one matrix: columns 0..15 and 16..31, either way round, of a 33-column one, and the
     row-wise counterpart */
  for (block = 0; block < 8; block++) {
    const int columns = block & 1 ? 33 : 32, swap = block >> 1 & 1, transposed = block >> 2 & 1;
    mlk_tensor whole = mlk_with_row_stride(mlk_f32(x, 16, 32), columns), left, right;
    float before[16 * 16];
    if (transposed) whole = mlk_transposed(whole); /* 32 x 16, slices of rows that lie interleaved in memory */
    left = mlk_slice(whole, transposed ? 0 : 1, 0, 16);
    right = mlk_slice(whole, transposed ? 0 : 1, 16, 16);
    desc = good;
    desc.a = swap ? left : right;
    desc.d = swap ? right : left;
    for (i = 0; i < 16; i++)
      for (j = 0; j < 16; j++)
        before[i * 16 + j] = ((float *)desc.a.data)[i * desc.a.stride[0] + j * desc.a.stride[1]] = (float)mlkt_int(
            &rng, -3, 3);
    for (i = 0; i < 16; i++)
      for (j = 0; j < 16; j++) {
        want[i * 16 + j] = 0;
        for (l = 0; l < 16; l++) want[i * 16 + j] += before[i * 16 + l] * b[l * 16 + j];
      }
    mlkt_note("interleaved slices, form %d", block);
    CHECK_OK(ctx, mlk_matmul(ctx, &desc));
    for (i = 0; i < 16; i++)
      for (j = 0; j < 16; j++) {
        CHECK_BITS_F32(((float *)desc.a.data)[i * desc.a.stride[0] + j * desc.a.stride[1]], before[i * 16 + j]);
        CHECK_BITS_F32(((float *)desc.d.data)[i * desc.d.stride[0] + j * desc.d.stride[1]], want[i * 16 + j] + 0.0f);
      }
    desc.d = mlk_slice(whole, transposed ? 0 : 1, 8, 16); /* one column further in it overlaps */
    CHECK_STATUS(ctx, mlk_matmul(ctx, &desc), MLK_ERR_ALIAS);
  }
  /* D and preact interleaved; a batch interleaved with its neighbour */
  ACCEPT((desc.d = mlk_slice(mlk_f32(x, 16, 32), 1, 0, 16), desc.preact = mlk_slice(mlk_f32(x, 16, 32), 1, 16, 16)));
  ACCEPT((desc.a = mlk_slice(mlk_f32(x, 4, 2, 8, 16), 1, 0, 1), desc.d = mlk_slice(mlk_f32(x, 4, 2, 8, 16), 1, 1, 1)));
  mlk_close(ctx);
}

/* The elements of a matrix view as marks in a map of places; gives 0 when two elements share a place. */
static int mark_places(unsigned char *map, unsigned char mark, int64_t at, const int64_t shape[2],
                       const int64_t stride[2]) {
  int64_t i, j;
  int unique = 1;
  for (i = 0; i < shape[0]; i++)
    for (j = 0; j < shape[1]; j++) {
      unsigned char *place = map + at + i * stride[0] + j * stride[1];
      if (*place & mark) unique = 0;
      *place = (unsigned char)(*place | mark);
    }
  return unique;
}

/* Random small views of one buffer: a shared element is never missed, views in separate ranges are never refused, an
   output that maps two elements to one place is never accepted, one whose strides step over each other always is. */
static void overlap_by_force(void) {
  enum { ROOM = 400, MIDDLE = 150 };
  static float x[ROOM], b[8 * 8];
  static unsigned char map[ROOM];
  mlk_context *ctx = mlkt_open(MLK_ISA_BEST, 1);
  mlkt_rng rng = mlkt_rng_case();
  const int rounds = mlkt_opt.quick ? 4000 : 60000;
  int round, i, accepted = 0, aliased = 0;
  if (!ctx) return;
  for (round = 0; round < rounds && !mlkt_hopeless(); round++) {
    int64_t shape_d[2], shape_a[2], stride_d[2], stride_a[2], at_d, at_a, span = 0;
    int shared = 0, unique, orderly, small, separate;
    int64_t low[2] = {0, 0}, high[2] = {0, 0};
    mlk_matmul_desc desc;
    mlk_status status;
    for (i = 0; i < 2; i++) {
      shape_d[i] = mlkt_int(&rng, 1, 5), stride_d[i] = mlkt_int(&rng, -12, 12);
      shape_a[i] = mlkt_int(&rng, 1, 5), stride_a[i] = mlkt_int(&rng, -12, 12);
      if (mlkt_u64(&rng) % 2) stride_a[i] = stride_d[i]; /* views of one matrix are the delicate ones */
    }
    shape_a[0] = shape_d[0];
    if (stride_d[0] == 0 && stride_d[1] == 0) stride_d[1] = 1; /* all zero would mean dense */
    if (stride_a[0] == 0 && stride_a[1] == 0) stride_a[0] = 1;
    at_d = MIDDLE, at_a = MIDDLE + mlkt_int(&rng, -40, 40);
    memset(map, 0, sizeof map);
    unique = mark_places(map, 1, at_d, shape_d, stride_d);
    mark_places(map, 2, at_a, shape_a, stride_a);
    for (i = 0; i < ROOM; i++) shared |= map[i] == 3;
    for (i = 0; i < 2; i++) {
      *(stride_d[i] < 0 ? &low[0] : &high[0]) += (shape_d[i] - 1) * stride_d[i];
      *(stride_a[i] < 0 ? &low[1] : &high[1]) += (shape_a[i] - 1) * stride_a[i];
    }
    separate = at_d + high[0] < at_a + low[1] || at_a + high[1] < at_d + low[0];
    /* the rule of mlk_matmul_desc: in ascending order each stride steps over what the smaller span */
    small = llabs((long long)stride_d[0]) < llabs((long long)stride_d[1]) ? 0 : 1;
    orderly = 1;
    for (i = 0; i < 2; i++) {
      const int axis = i ? 1 - small : small;
      if (shape_d[axis] == 1) continue;
      orderly &= llabs((long long)stride_d[axis]) > span;
      span += (shape_d[axis] - 1) * llabs((long long)stride_d[axis]);
    }
    memset(&desc, 0, sizeof desc);
    desc.a = mlk_f32(x + at_a, shape_a[0], shape_a[1]);
    desc.b = mlk_f32(b, shape_a[1], shape_d[1]);
    desc.d = mlk_f32(x + at_d, shape_d[0], shape_d[1]);
    memcpy(desc.a.stride, stride_a, sizeof stride_a);
    memcpy(desc.d.stride, stride_d, sizeof stride_d);
    mlkt_note("d %dx%d strides %d %d at 0, a %dx%d strides %d %d at %d", (int)shape_d[0], (int)shape_d[1],
              (int)stride_d[0], (int)stride_d[1], (int)shape_a[0], (int)shape_a[1], (int)stride_a[0], (int)stride_a[1],
              (int)(at_a - at_d));
    status = mlk_matmul(ctx, &desc);
    if (!unique)
      CHECK_STATUS(ctx, status, MLK_ERR_SHAPE);
    else if (orderly && shared)
      CHECK_STATUS(ctx, status, MLK_ERR_ALIAS);
    else if (orderly && separate)
      CHECK_STATUS(ctx, status, MLK_OK);
    else
      CHECK(status == MLK_OK ? unique && !shared : status == MLK_ERR_SHAPE || status == MLK_ERR_ALIAS);
    accepted += status == MLK_OK;
    aliased += status == MLK_ERR_ALIAS;
  }
  CHECK_MSG(accepted > rounds / 20 && aliased > rounds / 20,
            "%d accepted, %d aliased of %d: the test has lost its balance", accepted, aliased, rounds);
  mlk_close(ctx);
}

/* All six axes: four of batch, broadcast each in its own way, against products of single matrices. */
static void six_axes(void) {
  enum { M = 5, N = 7, K = 6 };
  static float a[2 * 3 * M * K], b[2 * 4 * K * N], bias[3 * N], d[2 * 3 * 2 * 4 * M * N], want[M * N];
  mlkt_rng rng = mlkt_rng_case();
  mlk_isa isas[MLK_ISA_COUNT];
  const int count = mlkt_isas(isas);
  int r, i0, i1, i2, i3;
  size_t i;
  for (i = 0; i < sizeof a / sizeof a[0]; i++) a[i] = mlkt_signed(&rng);
  for (i = 0; i < sizeof b / sizeof b[0]; i++) b[i] = mlkt_signed(&rng);
  for (i = 0; i < sizeof bias / sizeof bias[0]; i++) bias[i] = mlkt_signed(&rng);
  for (r = 0; r < count; r++) {
    mlk_context *ctx = mlkt_open(isas[r], 3);
    mlk_matmul_desc desc, single;
    if (!ctx) continue;
    memset(&desc, 0, sizeof desc);
    desc.a = mlk_f32(a, 2, 3, 1, 1, M, K);
    desc.b = mlk_f32(b, 2, 4, K, N); /* the last two batch axes; the first two are missing */
    desc.bias = mlk_f32(bias, 1, 3, 1, 1, 1, N);
    desc.d = mlk_f32(d, 2, 3, 2, 4, M, N);
    mlkt_rogue_f32(d, sizeof d / sizeof d[0]);
    mlkt_note("isa %s", mlk_isa_name(isas[r]));
    CHECK_OK(ctx, mlk_matmul(ctx, &desc));
    for (i0 = 0; i0 < 2; i0++)
      for (i1 = 0; i1 < 3; i1++)
        for (i2 = 0; i2 < 2; i2++)
          for (i3 = 0; i3 < 4; i3++) {
            memset(&single, 0, sizeof single);
            single.a = mlk_f32(a + (i0 * 3 + i1) * M * K, M, K);
            single.b = mlk_f32(b + (i2 * 4 + i3) * K * N, K, N);
            single.bias = mlk_f32(bias + i1 * N, N);
            single.d = mlk_f32(want, M, N);
            CHECK_OK(ctx, mlk_matmul(ctx, &single));
            CHECK_BITS_F32_N(d + (((i0 * 3 + i1) * 2 + i2) * 4 + i3) * M * N, want, M * N);
          }
    mlk_close(ctx);
  }
}

/* ---- plans ------------------------------------------------------------------------------------------------------- */

/* 1 when the view has as many elements as the operand: nothing expanded by a stride of 0. */
static int shows_itself(const operand *o) {
  int64_t count = 1;
  int i;
  for (i = 0; i < o->view.rank; i++) count *= o->view.shape[i];
  return (size_t)count == o->count;
}

/* Exact flops and bytes, and a fresh context that then allocates exactly the plan's workspace. */
static void plans(void) {
  problem p;
  mlk_isa isas[MLK_ISA_COUNT];
  const int count = mlkt_isas(isas);
  uint64_t index;
  memset(&p, 0, sizeof p);
  for (index = 0; index < 400 && !mlkt_hopeless(); index++) {
    mlkt_rng rng = point_rng(index);
    const mlk_isa isa = isas[index % (uint64_t)count];
    const int threads = 1 + (int)(index / 3 % (uint64_t)mlkt_opt.threads_max), big = index % 8 == 0;
    mlk_context_desc context = mlkt_context_desc(isa, threads);
    mlkt_memory memory;
    mlk_matmul_desc desc;
    mlk_context *ctx = NULL;
    mlk_plan plan;
    uint64_t opened, calls, elements;
    int i, expanded = 0;
    if (!mlkt_keep(index)) continue;
    problem_shape(&p, 1, index % 5 == 0 ? 3 : 1, mlkt_int(&rng, 0, big ? 250 : 40), mlkt_int(&rng, 0, big ? 250 : 40),
                  mlkt_int(&rng, 0, big ? 700 : 60));
    if (index % 2) operand_shape(&p.bias, 1, 1, 1, p.n);
    if (index % 3 == 0) operand_shape(&p.residual, 1, 1, p.m, p.n);
    if (index % 7 == 0) operand_shape(&p.preact, 1, p.batch[1], p.m, p.n);
    problem_fill(&p, SIGNED, &rng);
    reference(&p);
    problem_layout(&p, (form)(index % FORM_COUNT), &rng);
    problem_images(&p);
    desc = problem_desc(&p, NULL);
    elements =
        0; /* "every operand element moved once"; views expanded by a stride of 0 are left to the library's judgement */
    for (i = 0; i < 6; i++) {
      operand *const all[6] = {&p.a, &p.b, &p.d, &p.bias, &p.residual, &p.preact};
      elements += all[i]->present ? all[i]->count : 0;
      if (all[i]->present) expanded |= !shows_itself(all[i]);
    }
    memset(&memory, 0, sizeof memory);
    context.allocator = mlkt_memory_hook(&memory);
    if (!CHECK_STATUS(NULL, mlk_open(&ctx, &context), MLK_OK)) break;
    note_problem(&p, "plan", isa, threads, form_names[index % FORM_COUNT]);
    opened = memory.live_bytes;
    calls = memory.calls;
    memset(&plan, 0xFE, sizeof plan);
    if (CHECK_OK(ctx, mlk_matmul_plan(ctx, &desc, &plan))) {
      CHECK_EQ_I64(plan.flops, 2 * p.d.count * (uint64_t)p.k);
      if (!expanded) CHECK_EQ_I64(plan.bytes, 4 * elements);
      CHECK(plan.variant && plan.variant[0]);
      if (mlkt_opt.cuda) { /* workspace is the device's; threads counts kernels */
        CHECK_EQ_STR(plan.backend, "cuda");
        CHECK(plan.threads == 0 ? p.d.count == 0 : plan.seconds > 0);
        CHECK_OK(ctx, mlk_reserve(ctx, plan.workspace_bytes, MLK_FIXED));
        run_problem(&p, ctx, NULL);
      } else {
        CHECK_EQ_STR(plan.backend, "cpu");
        CHECK_EQ_STR(plan.isa, mlk_isa_name(isa));
        CHECK(plan.threads >= 1 && plan.threads <= threads);
        CHECK_EQ_I64(memory.calls, calls);
        run_problem(&p, ctx, NULL);
        CHECK_EQ_I64(memory.live_bytes - opened, plan.workspace_bytes);
        CHECK_EQ_I64(memory.peak_bytes - opened, plan.workspace_bytes);
      }
      calls = memory.calls;
      run_problem(&p, ctx, NULL); /* with a used workspace */
      CHECK_EQ_I64(memory.calls, calls);
    }
    mlk_close(ctx);
    CHECK_MEMORY_EMPTY(&memory);
  }
  { /* operands need not be there */
    mlk_context *ctx = mlkt_open(MLK_ISA_BEST, 2);
    float *nowhere = (float *)(uintptr_t)64;
    mlk_matmul_desc desc;
    mlk_plan plan;
    memset(&desc, 0, sizeof desc);
    desc.a = mlk_f32(nowhere, 100000, 5000);
    desc.b = mlk_f32(nowhere, 5000, 30000);
    desc.d = mlk_f32(nowhere, 100000, 30000);
    mlkt_note("%s", "all operands at one address that is none");
    if (ctx && CHECK_OK(ctx, mlk_matmul_plan(ctx, &desc, &plan))) {
      CHECK_EQ_I64(plan.flops, INT64_C(30000000000000));
      CHECK_EQ_I64(plan.bytes, 4 * (INT64_C(500000000) + INT64_C(150000000) + INT64_C(3000000000)));
      CHECK_MSG(plan.workspace_bytes < UINT64_C(1) << 30, "%" PRIu64 " bytes of workspace: not bounded by the blocking",
                plan.workspace_bytes);
    }
    mlk_close(ctx);
  }
  problem_free(&p);
}

/* ---- strides beyond 2^31 elements -------------------------------------------------------------------------------- */

/* Views whose rows or columns lie more than 2^31 elements apart, in reserved memory of which only a
   few pages are touched. */
static void far_strides(void) {
#if MLKT_POSIX && defined(MAP_NORESERVE) && UINTPTR_MAX > 0xFFFFFFFFu
  enum { SIZE = 3 };
  const int64_t far_apart = (INT64_C(1) << 31) + 7;
  const size_t bytes = (size_t)far_apart * 4 * SIZE;
  float *where[3];
  int i, r, axis, c, k;
  for (i = 0; i < 3; i++) {
    where[i] = (float *)mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (where[i] == (float *)MAP_FAILED) {
      while (i-- > 0) munmap(where[i], bytes);
      mlkt_skip("no %lu bytes of address space", (unsigned long)bytes);
      return;
    }
  }
  crew_open();
  for (r = 0; r < crew.rows; r++)
    for (axis = 0; axis < 8; axis++) { /* bit i: which axis of operand i is the far one */
      mlk_context *ctx = crew_get(crew.isas[r], 2);
      mlk_tensor t[3];
      mlk_matmul_desc desc;
      if (!ctx) continue;
      for (i = 0; i < 3; i++) {
        t[i] = mlk_with_row_stride(mlk_f32(where[i], SIZE, SIZE), far_apart);
        if (axis >> i & 1) t[i] = mlk_transposed(t[i]);
        if (i < 2 && axis & 4) { /* backwards from the last element */
          t[i].data = where[i] + (SIZE - 1) * far_apart + SIZE - 1;
          t[i].stride[0] = -t[i].stride[0];
          t[i].stride[1] = -t[i].stride[1];
        }
        for (c = 0; c < SIZE * SIZE; c++)
          ((float *)t[i].data)[c / SIZE * t[i].stride[0] + c % SIZE * t[i].stride[1]] = (float)(i == 2 ? -99
                                                                                                       : c * c % 11 -
                                                                                                             4 * i);
      }
      memset(&desc, 0, sizeof desc);
      desc.a = t[0], desc.b = t[1], desc.d = t[2];
      mlkt_note("isa %s, axes %d", mlk_isa_name(crew.isas[r]), axis);
      CHECK_OK(ctx, mlk_matmul(ctx, &desc));
      for (i = 0; i < SIZE; i++)
        for (c = 0; c < SIZE; c++) {
          float want = 0;
          for (k = 0; k < SIZE; k++)
            want += ((float *)t[0].data)[i * t[0].stride[0] + k * t[0].stride[1]] *
                    ((float *)t[1].data)[k * t[1].stride[0] + c * t[1].stride[1]];
          CHECK_BITS_F32(((float *)t[2].data)[i * t[2].stride[0] + c * t[2].stride[1]], want + 0.0f);
        }
    }
  crew_close();
  for (i = 0; i < 3; i++) munmap(where[i], bytes);
#else
  mlkt_skip("needs mmap with MAP_NORESERVE and 64-bit addresses");
#endif
}

/* --long: a product of more than 2^31 elements, each checked. 8.6 GB. */
static void more_than_2_31_elements(void) {
  const int64_t m = 67108865, n = 33;
  float *a, *d, b[33];
  int64_t i, j, wrong = 0;
  mlk_context *ctx;
  mlk_matmul_desc desc;
  if (!mlkt_opt.long_run || sizeof(size_t) < 8) {
    mlkt_skip("only with --long: takes 9.2 GB");
    return;
  }
  a = (float *)malloc((size_t)m * sizeof *a);
  d = (float *)malloc((size_t)m * (size_t)n * sizeof *d);
  ctx = mlkt_open(MLK_ISA_BEST, mlkt_opt.threads_max);
  if (!a || !d || !ctx)
    mlkt_skip("no 9.2 GB of memory");
  else {
    for (i = 0; i < m; i++) a[i] = (float)(i % 1021);
    for (j = 0; j < n; j++) b[j] = (float)(j - 16);
    memset(&desc, 0, sizeof desc);
    desc.a = mlk_f32(a, m, 1);
    desc.b = mlk_f32(b, 1, n);
    desc.d = mlk_f32(d, m, n);
    CHECK_OK(ctx, mlk_matmul(ctx, &desc));
    for (i = 0; i < m; i++)
      for (j = 0; j < n; j++) wrong += d[i * n + j] != a[i] * b[j];
    CHECK_EQ_I64(wrong, 0);
  }
  mlk_close(ctx);
  free(a);
  free(d);
}

const mlkt_case mlkt_matmul_cases[] = {{"matmul/sweep_tile_edges", sweep_tile_edges},
                                       {"matmul/sweep_segments", sweep_segments},
                                       {"matmul/sweep_odd_shapes", sweep_odd_shapes},
                                       {"matmul/sweep_batches", sweep_batches},
                                       {"matmul/bits_across_threads", bits_across_threads},
                                       {"matmul/bits_small", bits_small},
                                       {"matmul/signed_zeros", signed_zeros},
                                       {"matmul/error_bound", error_bound},
                                       {"matmul/epilogues", epilogues},
                                       {"matmul/epilogues_large", epilogues_large},
                                       {"matmul/not_read", not_read},
                                       {"matmul/nan_and_infinity", nan_and_infinity},
                                       {"matmul/packing", packing},
                                       {"matmul/bad_arguments", bad_arguments},
                                       {"matmul/bad_packed", bad_packed},
                                       {"matmul/aliasing", aliasing},
                                       {"matmul/overlap_by_force", overlap_by_force},
                                       {"matmul/six_axes", six_axes},
                                       {"matmul/plans", plans},
                                       {"matmul/far_strides", far_strides},
                                       {"matmul/more_than_2_31_elements", more_than_2_31_elements},
                                       {NULL, NULL}};
