/* conv_problem.h - a convolution or a gradient of one, with its operands in guarded memory and an oracle written from
   mlk.h's declarations alone: explicit loops over every term of one output element. For the test_conv*.c,
   each with its own copy. */

#ifndef MLK_CONV_PROBLEM_H
#define MLK_CONV_PROBLEM_H

#include "crew.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

/* ---- operands: values in a dense array, and the same values laid out in guarded memory --------------------------- */

enum { AXES = 5, CHANNELS = 1 }; /* images or filters, channels, three spatial axes */

typedef struct operand {
  int present, rank;
  int64_t shape[AXES];  /* 1 beyond rank */
  int64_t stride[AXES]; /* in the buffer */
  float *dense;         /* the values, row-major */
  size_t count, dense_room;
  mlkt_buffer buffer; /* span floats: not one more than the view reaches */
  size_t span;
  float *image; /* what the buffer must hold after a call */
  size_t image_room;
  float *first; /* element (0, 0, ...) */
  mlk_tensor view;
} operand;

static inline void operand_shape(operand *o, int rank, int64_t s0, int64_t s1, const int64_t spatial[3]) {
  int i;
  o->present = 1;
  o->rank = rank;
  o->shape[0] = s0, o->shape[1] = s1;
  for (i = 0; i < 3; i++) o->shape[2 + i] = spatial ? spatial[i] : 1;
  o->count = 1;
  for (i = 0; i < AXES; i++) o->count *= (size_t)o->shape[i];
  o->dense = grown_f32(o->dense, &o->dense_room, o->count);
}

static inline void operand_free(operand *o) {
  mlkt_buffer_free(&o->buffer);
  free(o->dense);
  free(o->image);
  memset(o, 0, sizeof *o);
}

/* Copies between dense values and the layout at first; to_layout 0: the other way. */
static inline void operand_move(const operand *o, float *dense, float *first, int to_layout) {
  int64_t i0, i1, i2, i3, i4;
  for (i0 = 0; i0 < o->shape[0]; i0++)
    for (i1 = 0; i1 < o->shape[1]; i1++)
      for (i2 = 0; i2 < o->shape[2]; i2++)
        for (i3 = 0; i3 < o->shape[3]; i3++) {
          float *p = first + i0 * o->stride[0] + i1 * o->stride[1] + i2 * o->stride[2] + i3 * o->stride[3];
          for (i4 = 0; i4 < o->shape[4]; i4++, dense++)
            if (to_layout)
              p[i4 * o->stride[4]] = *dense;
            else
              *dense = p[i4 * o->stride[4]];
        }
}

typedef enum form {
  FORM_DENSE,       /* channels first, all strides zero in the view */
  FORM_LAST,        /* channels last */
  FORM_PADDED,      /* channels first, gaps behind rows and planes */
  FORM_LAST_PADDED, /* channels last, a gap behind each pixel: a slice of more channels */
  FORM_TRANSPOSED,  /* channels first, the first spatial axis varies fastest */
  FORM_STEPPED,     /* channels first, neighbours 2 or 3 apart */
  FORM_LAST_STEPPED,
  FORM_NEGATIVE,      /* channels first, spatial axes backwards */
  FORM_LAST_NEGATIVE, /* channels last, all axes backwards */
  FORM_BATCH_INSIDE,  /* images vary fastest */
  FORM_ANY,           /* any order of axes, signs, steps, gaps */
  FORM_COUNT
} form;

static const char *const form_names[FORM_COUNT + 1] = {
    "channels first", "channels last", "padded",        "channels last padded", "transposed", "stepped",
    "last stepped",   "negative",      "last negative", "batch fastest",        "any",        "mixed forms"};

/* The axes of the layout, innermost first, and which run backwards. */
static inline void form_order(form f, int rank, mlkt_rng *rng, int order[AXES], int negative[AXES]) {
  const int last = f == FORM_LAST || f == FORM_LAST_PADDED || f == FORM_LAST_STEPPED || f == FORM_LAST_NEGATIVE;
  int i, j = 0;
  for (i = 0; i < AXES; i++) negative[i] = 0;
  if (f == FORM_BATCH_INSIDE) order[j++] = 0;
  if (last && rank > CHANNELS) order[j++] = CHANNELS;
  for (i = rank - 1; i >= 2; i--) order[j++] = f == FORM_TRANSPOSED ? rank + 1 - i : i;
  if (!last && rank > CHANNELS) order[j++] = CHANNELS;
  if (f != FORM_BATCH_INSIDE) order[j++] = 0;
  if (f == FORM_NEGATIVE)
    for (i = 2; i < rank; i++) negative[i] = 1;
  if (f == FORM_LAST_NEGATIVE || (f == FORM_NEGATIVE && rank == 1))
    for (i = 0; i < rank; i++) negative[i] = 1;
  if (f == FORM_ANY)
    for (i = rank - 1; i >= 0; i--) {
      const int other = (int)mlkt_int(rng, 0, i), t = order[i];
      order[i] = order[other], order[other] = t;
      negative[i] = mlkt_int(rng, 0, 3) == 0;
    }
}

/* Places the operand in guarded memory and scatters its values. */
static inline void operand_layout(operand *o, form f, mlkt_rng *rng) {
  static const int64_t of_no_account[] = {0, 1, 3, 77777, -5}; /* an axis of one element: its stride must not matter */
  int order[AXES], negative[AXES], i;
  int64_t step = 1, low = 0, high = 0;
  form_order(f, o->rank, rng, order, negative);
  if (f == FORM_STEPPED || f == FORM_LAST_STEPPED || f == FORM_ANY) step = mlkt_int(rng, f == FORM_ANY ? 1 : 2, 3);
  memset(o->stride, 0, sizeof o->stride);
  for (i = 0; i < o->rank; i++) {
    const int axis = order[i];
    const int64_t size = o->shape[axis];
    int64_t gap = 0;
    if (f == FORM_PADDED) gap = i < 2 ? mlkt_int(rng, 1, 5) : 0;
    if (f == FORM_LAST_PADDED || f == FORM_LAST_NEGATIVE) gap = i == 0 ? mlkt_int(rng, 1, 9) : 0;
    if (f == FORM_ANY) gap = mlkt_int(rng, 0, 3);
    o->stride[axis] = negative[axis] ? -step : step;
    if (size == 0) continue;
    *(negative[axis] ? &low : &high) += (size - 1) * o->stride[axis];
    if (size > 1) step = step * size + gap;
  }
  o->span = o->count ? (size_t)(high - low + 1) : 0;
  mlkt_buffer_place(&o->buffer, o->span * sizeof(float), mlkt_u64(rng) & 1 ? MLKT_TAIL : MLKT_HEAD);
  o->first = mlkt_buffer_f32(&o->buffer) + (o->count ? -low : 0);
  o->image = grown_f32(o->image, &o->image_room, o->span);
  mlkt_rogue_f32(o->image, o->span);
  if (o->count) operand_move(o, o->dense, o->image - low, 1);
  if (o->span) memcpy(o->buffer.data, o->image, o->span * sizeof(float));

  memset(&o->view, 0, sizeof o->view);
  o->view.data = o->first;
  o->view.dtype = MLK_F32;
  o->view.rank = o->rank;
  for (i = 0; i < o->rank; i++) {
    o->view.shape[i] = o->shape[i];
    if (f == FORM_DENSE) continue; /* strides stay zero */
    o->view.stride[i] = o->shape[i] == 1 ? of_no_account[mlkt_u64(rng) % 5] : o->stride[i];
  }
}

/* ---- layers ------------------------------------------------------------------------------------------------------ */

typedef enum op { CONV, GRAD_INPUT, GRAD_WEIGHTS, OPS } op;
static const char *const op_names[OPS] = {"conv", "grad_input", "grad_weights"};

/* Sizes of one convolution; entries of spatial axes that are not there are 1, padding 0. */
typedef struct layer {
  int spatial;
  int64_t n, c, k, groups;
  int64_t in[3], filter[3], stride[3], dilation[3], before[3], after[3];
} layer;

static inline layer layer_new(int spatial, int64_t n, int64_t c, int64_t k, int64_t groups) {
  layer l;
  int i;
  memset(&l, 0, sizeof l);
  l.spatial = spatial, l.n = n, l.c = c, l.k = k, l.groups = groups;
  for (i = 0; i < 3; i++) l.in[i] = l.filter[i] = l.stride[i] = l.dilation[i] = 1;
  return l;
}

/* All spatial axes alike: in, filter, stride, padding on both sides. */
static inline layer layer_cube(int spatial, int64_t n, int64_t c, int64_t k, int64_t groups, int64_t in, int64_t filter,
                               int64_t stride, int64_t pad) {
  layer l = layer_new(spatial, n, c, k, groups);
  int i;
  for (i = 0; i < spatial; i++)
    l.in[i] = in, l.filter[i] = filter, l.stride[i] = stride, l.before[i] = l.after[i] = pad;
  return l;
}

static inline int64_t layer_out(const layer *l, int i) {
  const int64_t room = l->in[i] + l->before[i] + l->after[i] - l->dilation[i] * (l->filter[i] - 1) - 1;
  return room < 0 ? 0 : room / l->stride[i] + 1;
}

/* Multiply-adds of the widest of the three operators: with much padding the input has few outputs,
   with little the reverse. */
static inline double layer_macs(const layer *l) {
  const double channels = (double)l->n * (double)l->k * (double)(l->c / l->groups);
  double forward = channels, backward = channels;
  int i;
  for (i = 0; i < 3; i++) {
    forward *= (double)layer_out(l, i) * (double)l->filter[i];
    backward *= (double)l->in[i] * (double)l->filter[i] / (double)l->stride[i];
  }
  return forward > backward ? forward : backward;
}

/* The descriptor's geometry. rng, when given, writes some ones as the zeros that mean them. */
static inline mlk_conv_geometry layer_geometry(const layer *l, mlkt_rng *rng) {
  mlk_conv_geometry g;
  int i;
  memset(&g, 0, sizeof g);
  for (i = 0; i < l->spatial; i++) {
    g.stride[i] = l->stride[i] == 1 && rng && mlkt_u64(rng) % 2 ? 0 : l->stride[i];
    g.dilation[i] = l->dilation[i] == 1 && rng && mlkt_u64(rng) % 2 ? 0 : l->dilation[i];
    g.pad_before[i] = l->before[i];
    g.pad_after[i] = l->after[i];
  }
  g.groups = l->groups == 1 && rng && mlkt_u64(rng) % 2 ? 0 : l->groups;
  return g;
}

/* A layer of any kind with at most about macs multiply-adds. */
static inline layer layer_random(mlkt_rng *rng, double macs) {
  const int spatial = (int)mlkt_int(rng, 1, 3), style = (int)mlkt_int(rng, 0, 7);
  const int64_t filter_most = spatial == 3 ? 4 : 7, in_most = spatial == 1 ? 120 : spatial == 2 ? 24 : 9;
  const int64_t channels_most = mlkt_int(rng, 0, 2) ? 20 : 70;
  const int alike = mlkt_u64(rng) % 3 == 0, far_padding = mlkt_u64(rng) % 6 == 0;
  layer l = layer_new(spatial, mlkt_int(rng, 1, 3), mlkt_int(rng, 1, channels_most), mlkt_int(rng, 1, channels_most),
                      1);
  int i;
  if (style == 1) { /* depthwise, K a multiple of C */
    l.groups = l.c;
    l.k = l.c * mlkt_int(rng, 1, 3);
  } else if (style == 2) { /* groups */
    l.groups = mlkt_int(rng, 2, 6);
    l.c = l.groups * mlkt_int(rng, 1, 1 + channels_most / l.groups);
    l.k = l.groups * mlkt_int(rng, 1, 1 + channels_most / l.groups);
  } else if (style == 3) /* a first layer */
    l.c = mlkt_int(rng, 1, 4);
  for (i = 0; i < spatial; i++) {
    l.in[i] = mlkt_int(rng, 1, in_most);
    l.filter[i] = style == 4 ? 1 : mlkt_int(rng, 1, filter_most);
    if (style >= 6) l.filter[i] = 3;
    l.stride[i] = style == 4 || mlkt_u64(rng) % 2 ? 1 : mlkt_int(rng, 1, 3);
    l.dilation[i] = mlkt_u64(rng) % 2 ? 1 : mlkt_int(rng, 1, 3);
    l.before[i] = style == 4 ? 0 : mlkt_int(rng, 0, far_padding ? 2 * l.filter[i] + 3 : 2);
    l.after[i] = style == 4 ? 0 : mlkt_int(rng, 0, far_padding ? 2 * l.filter[i] + 3 : 2);
    if (alike && i > 0)
      l.filter[i] = l.filter[0], l.stride[i] = l.stride[0], l.before[i] = l.before[0], l.after[i] = l.after[0];
  }
  i = (int)mlkt_int(rng, 0, spatial - 1);
  switch (mlkt_int(rng, 0, 30)) { /* far beyond the image, or just within it */
  case 0: l.stride[i] = mlkt_int(rng, 4, 1000); break;
  case 1: l.stride[i] = mlkt_int(rng, 4, 9), l.before[i] += 9; break;
  case 2: l.dilation[i] = mlkt_int(rng, 4, 30), l.before[i] += mlkt_int(rng, 0, 60); break;
  case 3: l.before[i] = 40 + l.in[i]; break;
  default: break;
  }
  switch (mlkt_int(rng, 0, 40)) { /* nothing of something */
  case 0: l.n = 0; break;
  case 1: l.c = 0; break;
  case 2: l.k = 0; break;
  case 3: l.in[mlkt_int(rng, 0, spatial - 1)] = 0; break;
  case 4: l.c = 0, l.in[0] = 0; break;
  default: break;
  }
  if (l.c % l.groups || l.k % l.groups) l.groups = 1;
  while (layer_macs(&l) > macs) {
    i = (int)mlkt_int(rng, 0, spatial);
    if (i == spatial)
      l.n = 1;
    else if (l.in[i] > 4)
      l.in[i] -= l.in[i] / 4;
    else if (l.filter[i] > 1)
      l.filter[i]--;
    else if (l.in[i] > 1 || l.before[i] + l.after[i] > 0)
      l.before[i] = l.after[i] = 0, l.in[i] = 1;
    else if (l.k >= 2 * l.groups)
      l.k = l.k / l.groups / 2 * l.groups;
  }
  return l;
}

/* ---- problems ---------------------------------------------------------------------------------------------------- */

/* One call: which operator, its operands, what must come out. The output is y of CONV, x of GRAD_INPUT, w of
   GRAD_WEIGHTS; bias is then an output too. Its dense values are what it holds before the call. */
typedef struct problem {
  op what;
  layer l;
  int64_t out[3];
  mlk_conv_geometry geometry;
  operand x, w, y, bias, residual, preact;
  int residual_is_out;
  float alpha_value, beta_value;
  const float *alpha, *beta;
  mlk_activation activation;
  int exact;                             /* small integers: any summation gives the same */
  float *want, *want_before, *want_bias; /* dense: the output, the argument of the activation, DBIAS */
  size_t want_room, before_room, bias_room;
  float *first, *second; /* the factors of the terms of one sum */
  size_t first_room, second_room;
  int want_known; /* else the first run's result is judged by a tolerance or by samples and then becomes want */
} problem;

static inline operand *problem_out(problem *p) {
  return p->what == CONV ? &p->y : p->what == GRAD_INPUT ? &p->x : &p->w;
}

static inline void problem_free(problem *p) {
  operand *const all[] = {&p->x, &p->w, &p->y, &p->bias, &p->residual, &p->preact};
  int i;
  for (i = 0; i < 6; i++) operand_free(all[i]);
  free(p->want);
  free(p->want_before);
  free(p->want_bias);
  free(p->first);
  free(p->second);
  memset(p, 0, sizeof *p);
}

static inline size_t greatest(size_t a, size_t b) { return a > b ? a : b; }

/* A plain call; the caller adds an epilogue. */
static inline void problem_shape(problem *p, op what, const layer *l, mlkt_rng *rng) {
  const int rank = 2 + l->spatial;
  size_t taps, positions, terms;
  int i;
  p->what = what;
  p->l = *l;
  for (i = 0; i < 3; i++) p->out[i] = layer_out(l, i);
  p->geometry = layer_geometry(l, rng);
  operand_shape(&p->x, rank, l->n, l->c, l->in);
  operand_shape(&p->w, rank, l->k, l->c / l->groups, l->filter);
  operand_shape(&p->y, rank, l->n, l->k, p->out);
  p->bias.present = p->residual.present = p->preact.present = p->residual_is_out = 0;
  p->alpha = p->beta = NULL;
  p->activation = MLK_NONE;
  p->exact = 0;
  taps = (size_t)(l->filter[0] * l->filter[1] * l->filter[2]);
  positions = (size_t)(p->out[0] * p->out[1] * p->out[2]);
  terms = greatest(greatest(taps * (size_t)l->c, taps * (size_t)l->k), (size_t)l->n * positions);
  p->first = grown_f32(p->first, &p->first_room, terms);
  p->second = grown_f32(p->second, &p->second_room, terms);
  p->want = grown_f32(p->want, &p->want_room, problem_out(p)->count);
  p->want_before = grown_f32(p->want_before, &p->before_room, problem_out(p)->count);
  p->want_bias = grown_f32(p->want_bias, &p->bias_room, (size_t)l->k);
}

static inline void shape_bias(problem *p) {
  operand_shape(&p->bias, 1, p->what == GRAD_INPUT ? p->l.c : p->l.k, 1, NULL);
}

static inline void shape_like_out(problem *p, operand *o) {
  const operand *out = problem_out(p);
  operand_shape(o, out->rank, out->shape[0], out->shape[1], out->shape + 2);
}

typedef enum values { INTEGERS, SIGNED, POSITIVE, WIDE, SPECIAL } values;

static inline void fill(operand *o, values kind, mlkt_rng *rng) {
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
      if (mlkt_u64(rng) % 256 == 0) x = mlkt_float(mlkt_u64(rng) % 2 ? 0x7F800000u : 0xFF800000u);
      if (mlkt_u64(rng) % 512 == 0) x = mlkt_float(0x7FC00000u);
      break;
    }
    o->dense[i] = x;
  }
}

static inline void problem_fill(problem *p, values kind, mlkt_rng *rng) {
  p->exact = kind == INTEGERS;
  fill(&p->x, kind, rng);
  fill(&p->w, kind, rng);
  fill(&p->y, kind, rng);
  if (p->bias.present) fill(&p->bias, kind, rng);
  if (p->residual.present) fill(&p->residual, kind, rng);
}

/* Adds a random epilogue that the oracle knows to the last bit: no activation or RELU. */
static inline void problem_epilogue(problem *p, mlkt_rng *rng) {
  static const float scalars[] = {1.0f, -2.5f, 0.5f, 3.0f, 0.0f};
  const uint64_t dice = mlkt_u64(rng);
  p->beta_value = scalars[(dice >> 8) % 5];
  p->beta = (dice >> 17) % 2 ? &p->beta_value : NULL;
  if (dice >> 20 & 1) shape_bias(p);
  if (p->what == GRAD_WEIGHTS) return;
  p->alpha_value = scalars[dice % 5];
  p->alpha = (dice >> 16) % 2 ? &p->alpha_value : NULL;
  p->activation = (dice >> 18) % 4 == 0 ? MLK_RELU : MLK_NONE;
  if ((dice >> 24) % 4 == 0) shape_like_out(p, &p->residual);
  p->residual_is_out = (dice >> 24) % 4 == 1;
  if ((dice >> 32) % 4 == 0) shape_like_out(p, &p->preact);
}

/* ---- the oracle: mlk.h's formulas, one element after another ----------------------------------------------------- */

static inline size_t terms_conv(const problem *p, int64_t n, int64_t k, const int64_t o[3]) {
  const layer *l = &p->l;
  const int64_t channels = l->c / l->groups, group = k / (l->k / l->groups);
  const int64_t plane = l->in[0] * l->in[1] * l->in[2], taps = l->filter[0] * l->filter[1] * l->filter[2];
  int64_t t[3], c, tap = 0;
  size_t count = 0;
  for (t[0] = 0; t[0] < l->filter[0]; t[0]++)
    for (t[1] = 0; t[1] < l->filter[1]; t[1]++)
      for (t[2] = 0; t[2] < l->filter[2]; t[2]++, tap++) {
        int64_t at = 0;
        int inside = 1, i;
        for (i = 0; i < 3; i++) {
          const int64_t place = o[i] * l->stride[i] + t[i] * l->dilation[i] - l->before[i];
          inside &= place >= 0 && place < l->in[i];
          at = at * l->in[i] + place;
        }
        for (c = 0; c < channels; c++, count++) {
          p->first[count] = inside ? p->x.dense[(n * l->c + group * channels + c) * plane + at] : 0.0f;
          p->second[count] = p->w.dense[(k * channels + c) * taps + tap];
        }
      }
  return count;
}

static inline size_t terms_grad_input(const problem *p, int64_t n, int64_t c, const int64_t in[3]) {
  const layer *l = &p->l;
  const int64_t channels = l->c / l->groups, filters = l->k / l->groups, group = c / channels;
  const int64_t plane = p->out[0] * p->out[1] * p->out[2], taps = l->filter[0] * l->filter[1] * l->filter[2];
  int64_t t[3], k, tap = 0;
  size_t count = 0;
  for (t[0] = 0; t[0] < l->filter[0]; t[0]++)
    for (t[1] = 0; t[1] < l->filter[1]; t[1]++)
      for (t[2] = 0; t[2] < l->filter[2]; t[2]++, tap++) {
        int64_t at = 0;
        int inside = 1, whole = 1, i;
        for (i = 0; i < 3; i++) {
          const int64_t place = in[i] + l->before[i] - t[i] * l->dilation[i];
          whole &= place % l->stride[i] == 0;
          inside &= place >= 0 && place / l->stride[i] < p->out[i];
          at = at * p->out[i] + place / l->stride[i];
        }
        for (k = group * filters; whole && k < (group + 1) * filters; k++, count++) {
          p->first[count] = inside ? p->y.dense[(n * l->k + k) * plane + at] : 0.0f;
          p->second[count] = p->w.dense[(k * channels + c % channels) * taps + tap];
        }
      }
  return count;
}

static inline size_t terms_grad_weights(const problem *p, int64_t k, int64_t c, const int64_t t[3]) {
  const layer *l = &p->l;
  const int64_t channels = l->c / l->groups, channel = k / (l->k / l->groups) * channels + c;
  const int64_t plane = l->in[0] * l->in[1] * l->in[2], positions = p->out[0] * p->out[1] * p->out[2];
  int64_t n, o[3], position;
  size_t count = 0;
  for (n = 0; n < l->n; n++) {
    position = 0;
    for (o[0] = 0; o[0] < p->out[0]; o[0]++)
      for (o[1] = 0; o[1] < p->out[1]; o[1]++)
        for (o[2] = 0; o[2] < p->out[2]; o[2]++, position++, count++) {
          int64_t at = 0;
          int inside = 1, i;
          for (i = 0; i < 3; i++) {
            const int64_t place = o[i] * l->stride[i] + t[i] * l->dilation[i] - l->before[i];
            inside &= place >= 0 && place < l->in[i];
            at = at * l->in[i] + place;
          }
          p->first[count] = p->y.dense[(n * l->k + k) * positions + position];
          p->second[count] = inside ? p->x.dense[(n * l->c + channel) * plane + at] : 0.0f;
        }
  }
  return count;
}

/* Collects the terms of the sum of output element number flat (row-major), in order. Gives how many. */
static inline size_t terms(problem *p, size_t flat) {
  const operand *out = problem_out(p);
  int64_t at[AXES];
  int i;
  for (i = AXES - 1; i >= 0; i--) {
    at[i] = (int64_t)(flat % (size_t)out->shape[i]);
    flat /= (size_t)out->shape[i];
  }
  return p->what == CONV         ? terms_conv(p, at[0], at[1], at + 2)
         : p->what == GRAD_INPUT ? terms_grad_input(p, at[0], at[1], at + 2)
                                 : terms_grad_weights(p, at[0], at[1], at + 2);
}

/* NUMERICS: segments from +0 in ascending order, their sums added. */
static inline float chain(const problem *p, size_t count) {
  float sum = 0;
  size_t i, start;
  if (p->exact) {
    for (i = 0; i < count; i++) sum += p->first[i] * p->second[i];
    return sum;
  }
  for (start = 0; start < count; start += MLK_SEGMENT) {
    const size_t end = count - start < MLK_SEGMENT ? count : start + MLK_SEGMENT;
    float segment = 0;
    for (i = start; i < end; i++) segment = fmaf(p->first[i], p->second[i], segment);
    sum = start == 0 ? segment : sum + segment;
  }
  return sum;
}

static inline const operand *problem_residual(problem *p) {
  return p->residual.present ? &p->residual : p->residual_is_out ? problem_out(p) : NULL;
}

/* Element number flat of the output; *before gets the argument of the activation (no activation or RELU). */
static inline float oracle(problem *p, size_t flat, float *before) {
  const operand *out = problem_out(p), *residual = problem_residual(p);
  float t = p->alpha && *p->alpha == 0 ? 0.0f : chain(p, terms(p, flat));
  if (p->what != GRAD_WEIGHTS && p->bias.present) {
    const size_t plane = (size_t)(out->shape[2] * out->shape[3] * out->shape[4]);
    t = fmaf(p->alpha ? *p->alpha : 1.0f, t, p->bias.dense[flat / plane % (size_t)out->shape[1]]);
  } else if (p->alpha)
    t = *p->alpha * t;
  if (p->beta && *p->beta != 0) t = fmaf(*p->beta, out->dense[flat], t);
  *before = t;
  if (p->activation == MLK_RELU) t = t < 0 ? 0.0f : t;
  return residual ? t + residual->dense[flat] : t;
}

/* DBIAS is a reduction: images, then positions, in segments of MLK_REDUCE_SEGMENT; each in 16 lanes and a tree. */
static inline float oracle_bias(const problem *p, int64_t k) {
  const size_t positions = (size_t)(p->out[0] * p->out[1] * p->out[2]), count = (size_t)p->l.n * positions;
  float sum = 0;
  size_t i, start, half;
  for (start = 0; start < count; start += MLK_REDUCE_SEGMENT) {
    const size_t end = count - start < MLK_REDUCE_SEGMENT ? count : start + MLK_REDUCE_SEGMENT;
    float lane[16];
    for (i = 0; i < 16; i++) lane[i] = 0;
    for (i = start; i < end; i++)
      lane[i % 16] += p->y.dense[(i / positions * (size_t)p->l.k + (size_t)k) * positions + i % positions];
    for (half = 8; half > 0; half /= 2)
      for (i = 0; i < half; i++) lane[i] += lane[i + half];
    sum = start == 0 ? lane[0] : sum + lane[0];
  }
  return p->beta && *p->beta != 0 ? fmaf(*p->beta, p->bias.dense[k], sum) : sum;
}

static inline void reference(problem *p) {
  const size_t count = problem_out(p)->count;
  size_t i;
  for (i = 0; i < count; i++) p->want[i] = oracle(p, i, &p->want_before[i]);
  if (p->what == GRAD_WEIGHTS && p->bias.present)
    for (i = 0; i < p->bias.count; i++) p->want_bias[i] = oracle_bias(p, (int64_t)i);
  p->want_known = p->activation == MLK_NONE || p->activation == MLK_RELU;
}

/* ---- running a problem ------------------------------------------------------------------------------------------- */

/* Lays all operands out: one form for all or, with FORM_COUNT, one of its own for each. */
static inline void problem_layout(problem *p, form f, mlkt_rng *rng) {
  operand *const all[] = {&p->x, &p->w, &p->y, &p->bias, &p->residual, &p->preact};
  int i;
  for (i = 0; i < 6; i++)
    if (all[i]->present) operand_layout(all[i], f == FORM_COUNT ? (form)(mlkt_u64(rng) % FORM_COUNT) : f, rng);
}

static inline void output_image(operand *o, float *want) {
  mlkt_rogue_f32(o->image, o->span);
  if (o->count) operand_move(o, want, o->image + (o->first - mlkt_buffer_f32(&o->buffer)), 1);
}

/* Writes what the outputs must become into their images. */
static inline void problem_images(problem *p) {
  if (problem_out(p)->present) output_image(problem_out(p), p->want);
  if (p->preact.present) output_image(&p->preact, p->want_before);
  if (p->what == GRAD_WEIGHTS && p->bias.present) output_image(&p->bias, p->want_bias);
}

static inline mlk_conv_desc conv_desc(const problem *p, const mlk_packed *packed) {
  mlk_conv_desc desc;
  memset(&desc, 0, sizeof desc);
  desc.x = p->x.view;
  if (!packed) desc.w = p->w.view;
  desc.packed_w = packed;
  desc.y = p->y.view;
  if (p->bias.present) desc.bias = p->bias.view;
  if (p->residual.present) desc.residual = p->residual.view;
  if (p->residual_is_out) desc.residual = p->y.view;
  if (p->preact.present) desc.preact = p->preact.view;
  desc.alpha = p->alpha;
  desc.beta = p->beta;
  desc.activation = p->activation;
  desc.geometry = p->geometry;
  return desc;
}

static inline mlk_conv_grad_input_desc grad_input_desc(const problem *p, const mlk_packed *packed) {
  mlk_conv_grad_input_desc desc;
  memset(&desc, 0, sizeof desc);
  desc.dy = p->y.view;
  if (!packed) desc.w = p->w.view;
  desc.packed_w = packed;
  desc.dx = p->x.view;
  if (p->bias.present) desc.bias = p->bias.view;
  if (p->residual.present) desc.residual = p->residual.view;
  if (p->residual_is_out) desc.residual = p->x.view;
  if (p->preact.present) desc.preact = p->preact.view;
  desc.alpha = p->alpha;
  desc.beta = p->beta;
  desc.activation = p->activation;
  desc.geometry = p->geometry;
  return desc;
}

static inline mlk_conv_grad_weights_desc grad_weights_desc(const problem *p) {
  mlk_conv_grad_weights_desc desc;
  memset(&desc, 0, sizeof desc);
  desc.x = p->x.view;
  desc.dy = p->y.view;
  if (p->w.present) desc.dw = p->w.view;
  if (p->bias.present) desc.dbias = p->bias.view;
  desc.beta = p->beta;
  desc.geometry = p->geometry;
  return desc;
}

static inline mlk_status call(const problem *p, mlk_context *ctx, const mlk_packed *packed) {
  const mlk_conv_desc conv = conv_desc(p, packed);
  const mlk_conv_grad_input_desc input = grad_input_desc(p, packed);
  const mlk_conv_grad_weights_desc weights = grad_weights_desc(p);
  return p->what == CONV         ? mlk_conv(ctx, &conv)
         : p->what == GRAD_INPUT ? mlk_conv_grad_input(ctx, &input)
                                 : mlk_conv_grad_weights(ctx, &weights);
}

static inline mlk_status call_plan(const problem *p, mlk_context *ctx, const mlk_packed *packed, mlk_plan *plan) {
  const mlk_conv_desc conv = conv_desc(p, packed);
  const mlk_conv_grad_input_desc input = grad_input_desc(p, packed);
  const mlk_conv_grad_weights_desc weights = grad_weights_desc(p);
  return p->what == CONV         ? mlk_conv_plan(ctx, &conv, plan)
         : p->what == GRAD_INPUT ? mlk_conv_grad_input_plan(ctx, &input, plan)
                                 : mlk_conv_grad_weights_plan(ctx, &weights, plan);
}

/* x, y and their like point nowhere: packing must not look at them. */
static inline mlk_status call_pack(const problem *p, mlk_context *ctx, void *buffer, uint64_t bytes,
                                   mlk_packed *packed) {
  mlk_conv_desc conv = conv_desc(p, NULL);
  mlk_conv_grad_input_desc input = grad_input_desc(p, NULL);
  void *nowhere = (void *)(uintptr_t)4096;
  conv.x.data = conv.y.data = input.dx.data = input.dy.data = nowhere;
  if (p->residual_is_out) conv.residual.data = input.residual.data = nowhere;
  return p->what == CONV ? mlk_conv_pack(ctx, &conv, buffer, bytes, packed)
                         : mlk_conv_grad_input_pack(ctx, &input, buffer, bytes, packed);
}

/* 1 when the output's old values matter. */
static inline int reads_out(const problem *p) { return p->residual_is_out || (p->beta && *p->beta != 0); }

static inline void reset_output(operand *o, int reads) {
  if (!o->present) return;
  mlkt_rogue_f32(mlkt_buffer_f32(&o->buffer), o->span);
  if (reads && o->count) operand_move(o, o->dense, o->first, 1);
}

static inline void reset_outputs(problem *p) {
  reset_output(problem_out(p), reads_out(p));
  reset_output(&p->preact, 0);
  if (p->what == GRAD_WEIGHTS) reset_output(&p->bias, reads_out(p));
}

/* Checks an output: elements bit by bit, padding untouched, canaries. */
static inline int check_output(operand *o, const float *want, const char *name) {
  size_t room = 0;
  float *got = NULL;
  int ok;
  if (o->span == 0 || memcmp(o->buffer.data, o->image, o->span * sizeof(float)) == 0)
    return CHECK_MSG(mlkt_buffer_intact(&o->buffer), "%s: somebody wrote beside it", name);
  got = grown_f32(got, &room, o->count);
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

static inline int check_input(operand *o, const char *name) {
  int ok;
  if (!o->present) return 1;
  ok = o->span == 0 || memcmp(o->buffer.data, o->image, o->span * sizeof(float)) == 0;
  return ok || CHECK_MSG(0, "%s, an input, was written", name);
}

static inline double activation_exact(mlk_activation activation, double x) {
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

/* For activations whose bits the library defines: judges the result against the formulas in double, then
   makes it the expectation. */
static inline void learn_activation(problem *p) {
  operand *out = problem_out(p);
  const operand *residual = problem_residual(p);
  size_t i, wrong = 0, worst = 0;
  operand_move(out, p->want, out->first, 0);
  for (i = 0; i < out->count; i++) {
    const double x = p->want_before[i], y = activation_exact(p->activation, x);
    const double r = residual ? residual->dense[i] : 0, got = p->want[i];
    const double tolerance = 1e-6 * fabs(y) + 6e-8 * fabs(y + r) + 1e-37;
    if (!(fabs(got - (y + r)) <= tolerance) && wrong++ == 0) worst = i;
  }
  CHECK_MSG(wrong == 0, "activation %d is off at %lu of %lu elements; the first: f(%.9g) gives %.9g",
            (int)p->activation, (unsigned long)wrong, (unsigned long)out->count, (double)p->want_before[worst],
            (double)p->want[worst]);
}

/* For large problems: judges elements here and there by the oracle, then makes the result the expectation. */
static inline void learn_samples(problem *p) {
  operand *out = problem_out(p);
  const size_t each = out->count ? greatest(1, terms(p, 0)) : 1;
  const size_t samples = out->count < 64 ? out->count : 64 + 2000000 / each;
  mlkt_rng rng = mlkt_rng_case();
  size_t i;
  operand_move(out, p->want, out->first, 0);
  if (p->preact.present) operand_move(&p->preact, p->want_before, p->preact.first, 0);
  for (i = 0; i < samples && i < 3000; i++) {
    const size_t at = i == 0 ? 0 : i == 1 ? out->count - 1 : (size_t)(mlkt_u64(&rng) % out->count);
    float before;
    const float want = oracle(p, at, &before);
    if (!CHECK_MSG(mlkt_bits(p->want[at]) == mlkt_bits(want) &&
                       (!p->preact.present || mlkt_bits(p->want_before[at]) == mlkt_bits(before)),
                   "element %lu is %.9g, the oracle says %.9g", (unsigned long)at, (double)p->want[at], (double)want))
      break;
  }
  for (i = 0; p->what == GRAD_WEIGHTS && p->bias.present && i < p->bias.count; i++)
    p->want_bias[i] = oracle_bias(p, (int64_t)i);
}

static inline int run_problem(problem *p, mlk_context *ctx, const mlk_packed *packed) {
  int ok;
  reset_outputs(p);
  ok = CHECK_OK(ctx, call(p, ctx, packed));
  if (!ok) return 0;
  if (!p->want_known) {
    if (p->activation == MLK_NONE || p->activation == MLK_RELU)
      learn_samples(p);
    else
      learn_activation(p);
    p->want_known = 1;
    problem_images(p);
  }
  if (problem_out(p)->present) ok &= check_output(problem_out(p), p->want, "the output");
  if (p->preact.present) ok &= check_output(&p->preact, p->want_before, "preact");
  if (p->what == GRAD_WEIGHTS && p->bias.present)
    ok &= check_output(&p->bias, p->want_bias, "dbias");
  else
    ok &= check_input(&p->bias, "bias");
  if (p->what != CONV) ok &= check_input(&p->y, "dy");
  if (p->what != GRAD_INPUT) ok &= check_input(&p->x, "x");
  if (p->what != GRAD_WEIGHTS) ok &= check_input(&p->w, "w");
  return ok & check_input(&p->residual, "residual");
}

static inline void note_problem(const problem *p, const char *what, mlk_isa isa, int threads, const char *extra) {
  const layer *l = &p->l;
  mlkt_note(
      "%s: %s %d-D, N %d, C %d, K %d, groups %d, in %dx%dx%d, filter %dx%dx%d, stride %d,%d,%d, dilation %d,%d,%d, "
      "padding %d+%d,%d+%d,%d+%d, out %dx%dx%d, isa %s, threads %d, alpha %g, beta %g, activation %d, %s%s%s%s%s",
      what, op_names[p->what], l->spatial, (int)l->n, (int)l->c, (int)l->k, (int)l->groups, (int)l->in[0],
      (int)l->in[1], (int)l->in[2], (int)l->filter[0], (int)l->filter[1], (int)l->filter[2], (int)l->stride[0],
      (int)l->stride[1], (int)l->stride[2], (int)l->dilation[0], (int)l->dilation[1], (int)l->dilation[2],
      (int)l->before[0], (int)l->after[0], (int)l->before[1], (int)l->after[1], (int)l->before[2], (int)l->after[2],
      (int)p->out[0], (int)p->out[1], (int)p->out[2], mlk_isa_name(isa), threads, p->alpha ? (double)*p->alpha : NAN,
      p->beta ? (double)*p->beta : NAN, (int)p->activation, p->bias.present ? "bias " : "",
      p->residual.present ? "residual " : "", p->residual_is_out ? "residual=out " : "",
      p->preact.present ? "preact " : "", extra);
}

/* Packs the weights for ctx into a guarded buffer. */
static inline int pack(const problem *p, mlk_context *ctx, mlkt_buffer *buffer, mlk_packed *packed) {
  memset(packed, 0xFE, sizeof *packed);
  if (!CHECK_OK(ctx, call_pack(p, ctx, NULL, 0, packed))) return 0;
  mlkt_buffer_place(buffer, (size_t)packed->bytes, packed->bytes % 64 == 0 ? MLKT_TAIL : MLKT_HEAD);
  if (packed->bytes) memset(buffer->data, (int)MLKT_ROGUE_BYTE, (size_t)packed->bytes);
  return CHECK_OK(ctx, call_pack(p, ctx, buffer->data, packed->bytes, packed)) &
         CHECK_MSG(mlkt_buffer_intact(buffer), "packing wrote beside its buffer");
}

static inline int run_packed(problem *p, mlk_context *ctx, mlk_isa isa, int threads, mlkt_buffer *panels,
                             const char *extra) {
  mlk_packed packed;
  if (p->what == GRAD_WEIGHTS || isa == MLK_ISA_REFERENCE) return 1;
  note_problem(p, "packed", isa, threads, extra);
  return pack(p, ctx, panels, &packed) && run_problem(p, ctx, &packed);
}

/* Runs a laid-out problem on every row and on the reference, the threads of each row turning with index; sometimes
   through packed weights. */
static inline int every_row(problem *p, uint64_t index, const char *what, const char *extra, mlkt_buffer *panels) {
  const double macs = layer_macs(&p->l);
  int i, ok = 1;
  for (i = 0; i <= crew.rows; i++) { /* the last one is the reference */
    const mlk_isa isa = i < crew.rows ? crew.isas[i] : MLK_ISA_REFERENCE;
    const int threads = i < crew.rows ? crew_threads(index + (uint64_t)i) : 1;
    mlk_context *ctx = crew_get(isa, threads);
    if (!ctx) return 0;
    if ((isa == MLK_ISA_SCALAR || isa == MLK_ISA_REFERENCE) && macs > 1e5 && index % 6 != 0 && crew.rows > 1) continue;
    note_problem(p, what, isa, threads, extra);
    ok &= run_problem(p, ctx, NULL);
    if (panels && (index + (uint64_t)i) % 3 == 0) ok &= run_packed(p, ctx, isa, threads, panels, extra);
  }
  return ok;
}

#endif /* MLK_CONV_PROBLEM_H */
