/* test_conv.c - convolution and its gradients against an oracle written from mlk.h's declarations alone: explicit loops over every
   tap of one output element. Shapes, strides, padding, dilation, groups, layouts, rows, threads, epilogues; guard pages round
   every operand, rogue numbers in all padding; adjoints, finite differences, networks' shapes; bad arguments, aliasing, plans. */

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

/* ---- operands: values in a dense array, and the same values laid out in guarded memory ---------------------------- */

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

static void *grown(void *memory, size_t *room, size_t bytes) {
  if (*room >= bytes && memory) return memory;
  free(memory);
  memory = malloc(bytes + 64);
  if (!memory) exit(2);
  *room = bytes;
  return memory;
}

static float *grown_f32(float *memory, size_t *room, size_t count) {
  return (float *)grown(memory, room, count * sizeof(float));
}

static void operand_shape(operand *o, int rank, int64_t s0, int64_t s1, const int64_t spatial[3]) {
  int i;
  o->present = 1;
  o->rank = rank;
  o->shape[0] = s0, o->shape[1] = s1;
  for (i = 0; i < 3; i++) o->shape[2 + i] = spatial ? spatial[i] : 1;
  o->count = 1;
  for (i = 0; i < AXES; i++) o->count *= (size_t)o->shape[i];
  o->dense = grown_f32(o->dense, &o->dense_room, o->count);
}

static void operand_free(operand *o) {
  mlkt_buffer_free(&o->buffer);
  free(o->dense);
  free(o->image);
  memset(o, 0, sizeof *o);
}

/* Copies between dense values and the layout at first; to_layout 0: the other way. */
static void operand_move(const operand *o, float *dense, float *first, int to_layout) {
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
static void form_order(form f, int rank, mlkt_rng *rng, int order[AXES], int negative[AXES]) {
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
static void operand_layout(operand *o, form f, mlkt_rng *rng) {
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

/* ---- layers ---------------------------------------------------------------------------------------------------------- */

typedef enum op { CONV, GRAD_INPUT, GRAD_WEIGHTS, OPS } op;
static const char *const op_names[OPS] = {"conv", "grad_input", "grad_weights"};

/* Sizes of one convolution; entries of spatial axes that are not there are 1, padding 0. */
typedef struct layer {
  int spatial;
  int64_t n, c, k, groups;
  int64_t in[3], filter[3], stride[3], dilation[3], before[3], after[3];
} layer;

static layer layer_new(int spatial, int64_t n, int64_t c, int64_t k, int64_t groups) {
  layer l;
  int i;
  memset(&l, 0, sizeof l);
  l.spatial = spatial, l.n = n, l.c = c, l.k = k, l.groups = groups;
  for (i = 0; i < 3; i++) l.in[i] = l.filter[i] = l.stride[i] = l.dilation[i] = 1;
  return l;
}

/* All spatial axes alike: in, filter, stride, padding on both sides. */
static layer layer_cube(int spatial, int64_t n, int64_t c, int64_t k, int64_t groups, int64_t in, int64_t filter,
                        int64_t stride, int64_t pad) {
  layer l = layer_new(spatial, n, c, k, groups);
  int i;
  for (i = 0; i < spatial; i++)
    l.in[i] = in, l.filter[i] = filter, l.stride[i] = stride, l.before[i] = l.after[i] = pad;
  return l;
}

static int64_t layer_out(const layer *l, int i) {
  const int64_t room = l->in[i] + l->before[i] + l->after[i] - l->dilation[i] * (l->filter[i] - 1) - 1;
  return room < 0 ? 0 : room / l->stride[i] + 1;
}

/* Multiply-adds of the widest of the three operators: with much padding the input has few outputs, with little the reverse. */
static double layer_macs(const layer *l) {
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
static mlk_conv_geometry layer_geometry(const layer *l, mlkt_rng *rng) {
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
static layer layer_random(mlkt_rng *rng, double macs) {
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

/* ---- problems ----------------------------------------------------------------------------------------------------------- */

/* One call: which operator, its operands, what must come out. The output is y of CONV, x of GRAD_INPUT, w of GRAD_WEIGHTS;
   bias is then an output too. Its dense values are what it holds before the call. */
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

static operand *problem_out(problem *p) { return p->what == CONV ? &p->y : p->what == GRAD_INPUT ? &p->x : &p->w; }

static void problem_free(problem *p) {
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

static size_t greatest(size_t a, size_t b) { return a > b ? a : b; }

/* A plain call; the caller adds an epilogue. */
static void problem_shape(problem *p, op what, const layer *l, mlkt_rng *rng) {
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

static void shape_bias(problem *p) { operand_shape(&p->bias, 1, p->what == GRAD_INPUT ? p->l.c : p->l.k, 1, NULL); }

static void shape_like_out(problem *p, operand *o) {
  const operand *out = problem_out(p);
  operand_shape(o, out->rank, out->shape[0], out->shape[1], out->shape + 2);
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
      if (mlkt_u64(rng) % 256 == 0) x = mlkt_float(mlkt_u64(rng) % 2 ? 0x7F800000u : 0xFF800000u);
      if (mlkt_u64(rng) % 512 == 0) x = mlkt_float(0x7FC00000u);
      break;
    }
    o->dense[i] = x;
  }
}

static void problem_fill(problem *p, values kind, mlkt_rng *rng) {
  p->exact = kind == INTEGERS;
  fill(&p->x, kind, rng);
  fill(&p->w, kind, rng);
  fill(&p->y, kind, rng);
  if (p->bias.present) fill(&p->bias, kind, rng);
  if (p->residual.present) fill(&p->residual, kind, rng);
}

/* Adds a random epilogue that the oracle knows to the last bit: no activation or RELU. */
static void problem_epilogue(problem *p, mlkt_rng *rng) {
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

/* ---- the oracle: mlk.h's formulas, one element after another ----------------------------------------------------------- */

static size_t terms_conv(const problem *p, int64_t n, int64_t k, const int64_t o[3]) {
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

static size_t terms_grad_input(const problem *p, int64_t n, int64_t c, const int64_t in[3]) {
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

static size_t terms_grad_weights(const problem *p, int64_t k, int64_t c, const int64_t t[3]) {
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
static size_t terms(problem *p, size_t flat) {
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
static float chain(const problem *p, size_t count) {
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

static const operand *problem_residual(problem *p) {
  return p->residual.present ? &p->residual : p->residual_is_out ? problem_out(p) : NULL;
}

/* Element number flat of the output; *before gets the argument of the activation (no activation or RELU). */
static float oracle(problem *p, size_t flat, float *before) {
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

/* DBIAS: 16 lanes over images, then positions, and a tree. */
static float oracle_bias(const problem *p, int64_t k) {
  const size_t positions = (size_t)(p->out[0] * p->out[1] * p->out[2]), count = (size_t)p->l.n * positions;
  float lane[16];
  size_t i, half;
  for (i = 0; i < 16; i++) lane[i] = 0;
  for (i = 0; i < count; i++)
    lane[i % 16] += p->y.dense[(i / positions * (size_t)p->l.k + (size_t)k) * positions + i % positions];
  for (half = 8; half > 0; half /= 2)
    for (i = 0; i < half; i++) lane[i] += lane[i + half];
  return p->beta && *p->beta != 0 ? fmaf(*p->beta, p->bias.dense[k], lane[0]) : lane[0];
}

static void reference(problem *p) {
  const size_t count = problem_out(p)->count;
  size_t i;
  for (i = 0; i < count; i++) p->want[i] = oracle(p, i, &p->want_before[i]);
  if (p->what == GRAD_WEIGHTS && p->bias.present)
    for (i = 0; i < p->bias.count; i++) p->want_bias[i] = oracle_bias(p, (int64_t)i);
  p->want_known = p->activation == MLK_NONE || p->activation == MLK_RELU;
}

/* ---- running a problem -------------------------------------------------------------------------------------------------- */

/* Lays all operands out: one form for all or, with FORM_COUNT, one of its own for each. */
static void problem_layout(problem *p, form f, mlkt_rng *rng) {
  operand *const all[] = {&p->x, &p->w, &p->y, &p->bias, &p->residual, &p->preact};
  int i;
  for (i = 0; i < 6; i++)
    if (all[i]->present) operand_layout(all[i], f == FORM_COUNT ? (form)(mlkt_u64(rng) % FORM_COUNT) : f, rng);
}

static void output_image(operand *o, float *want) {
  mlkt_rogue_f32(o->image, o->span);
  if (o->count) operand_move(o, want, o->image + (o->first - mlkt_buffer_f32(&o->buffer)), 1);
}

/* Writes what the outputs must become into their images. */
static void problem_images(problem *p) {
  if (problem_out(p)->present) output_image(problem_out(p), p->want);
  if (p->preact.present) output_image(&p->preact, p->want_before);
  if (p->what == GRAD_WEIGHTS && p->bias.present) output_image(&p->bias, p->want_bias);
}

static mlk_conv_desc conv_desc(const problem *p, const mlk_packed *packed) {
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

static mlk_conv_grad_input_desc grad_input_desc(const problem *p, const mlk_packed *packed) {
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

static mlk_conv_grad_weights_desc grad_weights_desc(const problem *p) {
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

static mlk_status call(const problem *p, mlk_context *ctx, const mlk_packed *packed) {
  const mlk_conv_desc conv = conv_desc(p, packed);
  const mlk_conv_grad_input_desc input = grad_input_desc(p, packed);
  const mlk_conv_grad_weights_desc weights = grad_weights_desc(p);
  return p->what == CONV         ? mlk_conv(ctx, &conv)
         : p->what == GRAD_INPUT ? mlk_conv_grad_input(ctx, &input)
                                 : mlk_conv_grad_weights(ctx, &weights);
}

static mlk_status call_plan(const problem *p, mlk_context *ctx, const mlk_packed *packed, mlk_plan *plan) {
  const mlk_conv_desc conv = conv_desc(p, packed);
  const mlk_conv_grad_input_desc input = grad_input_desc(p, packed);
  const mlk_conv_grad_weights_desc weights = grad_weights_desc(p);
  return p->what == CONV         ? mlk_conv_plan(ctx, &conv, plan)
         : p->what == GRAD_INPUT ? mlk_conv_grad_input_plan(ctx, &input, plan)
                                 : mlk_conv_grad_weights_plan(ctx, &weights, plan);
}

/* x, y and their like point nowhere: packing must not look at them. */
static mlk_status call_pack(const problem *p, mlk_context *ctx, void *buffer, uint64_t bytes, mlk_packed *packed) {
  mlk_conv_desc conv = conv_desc(p, NULL);
  mlk_conv_grad_input_desc input = grad_input_desc(p, NULL);
  void *nowhere = (void *)(uintptr_t)4096;
  conv.x.data = conv.y.data = input.dx.data = input.dy.data = nowhere;
  if (p->residual_is_out) conv.residual.data = input.residual.data = nowhere;
  return p->what == CONV ? mlk_conv_pack(ctx, &conv, buffer, bytes, packed)
                         : mlk_conv_grad_input_pack(ctx, &input, buffer, bytes, packed);
}

/* 1 when the output's old values matter. */
static int reads_out(const problem *p) { return p->residual_is_out || (p->beta && *p->beta != 0); }

static void reset_output(operand *o, int reads) {
  if (!o->present) return;
  mlkt_rogue_f32(mlkt_buffer_f32(&o->buffer), o->span);
  if (reads && o->count) operand_move(o, o->dense, o->first, 1);
}

static void reset_outputs(problem *p) {
  reset_output(problem_out(p), reads_out(p));
  reset_output(&p->preact, 0);
  if (p->what == GRAD_WEIGHTS) reset_output(&p->bias, reads_out(p));
}

/* Checks an output: elements bit by bit, padding untouched, canaries. */
static int check_output(operand *o, const float *want, const char *name) {
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

/* For activations whose bits the library defines: judges the result against the formulas in double, then makes it the expectation. */
static void learn_activation(problem *p) {
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
static void learn_samples(problem *p) {
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

static int run_problem(problem *p, mlk_context *ctx, const mlk_packed *packed) {
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

/* ---- contexts of every row and thread count, with workspaces full of rogue numbers ---------------------------------- */

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

static int crew_threads(uint64_t index) { /* 1, 2, 3, 7 in turn, as far as allowed */
  static const int counts[] = {1, 2, 3, 7};
  const int count = counts[index % 4];
  return count < crew.threads ? count : crew.threads;
}

static mlkt_rng point_rng(uint64_t index) { /* each point has numbers of its own, whatever --quick leaves out */
  mlkt_rng rng = mlkt_rng_case();
  rng.state += index * UINT64_C(0xD1342543DE82EF95);
  return rng;
}

static void note_problem(const problem *p, const char *what, mlk_isa isa, int threads, const char *extra) {
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
static int pack(const problem *p, mlk_context *ctx, mlkt_buffer *buffer, mlk_packed *packed) {
  memset(packed, 0xFE, sizeof *packed);
  if (!CHECK_OK(ctx, call_pack(p, ctx, NULL, 0, packed))) return 0;
  mlkt_buffer_place(buffer, (size_t)packed->bytes, packed->bytes % 64 == 0 ? MLKT_TAIL : MLKT_HEAD);
  if (packed->bytes) memset(buffer->data, (int)MLKT_ROGUE_BYTE, (size_t)packed->bytes);
  return CHECK_OK(ctx, call_pack(p, ctx, buffer->data, packed->bytes, packed)) &
         CHECK_MSG(mlkt_buffer_intact(buffer), "packing wrote beside its buffer");
}

static int run_packed(problem *p, mlk_context *ctx, mlk_isa isa, int threads, mlkt_buffer *panels, const char *extra) {
  mlk_packed packed;
  if (p->what == GRAD_WEIGHTS || isa == MLK_ISA_REFERENCE) return 1;
  note_problem(p, "packed", isa, threads, extra);
  return pack(p, ctx, panels, &packed) && run_problem(p, ctx, &packed);
}

/* Runs a laid-out problem on every row and on the reference, the threads of each row turning with index; sometimes
   through packed weights. */
static int every_row(problem *p, uint64_t index, const char *what, const char *extra, mlkt_buffer *panels) {
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

/* ---- exact-integer sweeps: compared with == (bit patterns) ------------------------------------------------------------- */

static void sweep_layer(problem *p, op what, const layer *l, values kind, int forms, uint64_t index,
                        mlkt_buffer *panels) {
  mlkt_rng rng = point_rng(index + 500009);
  int i;
  problem_shape(p, what, l, &rng);
  if (mlkt_u64(&rng) % 2) problem_epilogue(p, &rng);
  problem_fill(p, kind, &rng);
  reference(p);
  for (i = 0; i < forms; i++) {
    const form f = (form)((index + (uint64_t)i * 5) % (FORM_COUNT + 1)); /* FORM_COUNT: each operand its own */
    problem_layout(p, f, &rng);
    problem_images(p);
    every_row(p, index + (uint64_t)i, "sweep", form_names[f], panels);
  }
}

/* Layers of every kind; the values' kind turns with the point: exact integers in every second. */
static void sweep(op what, uint64_t points, double macs) {
  problem p;
  mlkt_buffer panels = {NULL, 0, NULL, 0};
  uint64_t index;
  memset(&p, 0, sizeof p);
  crew_open();
  for (index = 0; index < points && !mlkt_hopeless(); index++) {
    mlkt_rng rng = point_rng(index);
    const layer l = layer_random(&rng, index % 16 == 0 ? macs * 8 : macs);
    const values kind = index % 2 ? INTEGERS : (values)(SIGNED + index / 2 % 4);
    if (mlkt_keep(index)) sweep_layer(&p, what, &l, kind, 2, index, &panels);
  }
  crew_close();
  mlkt_buffer_free(&panels);
  problem_free(&p);
}

static void sweep_conv(void) { sweep(CONV, 2000, 2e4); }
static void sweep_grad_input(void) { sweep(GRAD_INPUT, 2000, 2e4); }
static void sweep_grad_weights(void) { sweep(GRAD_WEIGHTS, 1500, 2e4); }

/* Every filter 1..7, stride 1..3, dilation 1..3 and some paddings on one axis, with sizes around the edges. */
static void geometries(void) {
  static const int64_t ins[] = {1, 2, 3, 7, 16, 17, 33};
  problem p;
  uint64_t index = 0;
  int64_t filter, stride, dilation, before, after;
  int i, what;
  memset(&p, 0, sizeof p);
  crew_open();
  for (filter = 1; filter <= 7; filter++)
    for (stride = 1; stride <= 3; stride++)
      for (dilation = 1; dilation <= 3; dilation++)
        for (before = 0; before <= 9; before += before < 2 ? 1 : 7)
          for (after = 0; after <= 8; after += after < 1 ? 1 : 7)
            for (i = 0; i < 7 && !mlkt_hopeless(); i++, index++) {
              mlkt_rng rng = point_rng(index);
              layer l = layer_new(1, 1 + (int64_t)(index % 2), mlkt_int(&rng, 1, 9), mlkt_int(&rng, 1, 9), 1);
              if (!mlkt_keep(index)) continue;
              if (index % 3 == 0) l.groups = l.c = mlkt_int(&rng, 1, 20), l.k = l.c * (1 + (int64_t)(index % 2));
              l.in[0] = ins[i], l.filter[0] = filter, l.stride[0] = stride, l.dilation[0] = dilation;
              l.before[0] = before, l.after[0] = after;
              what = (int)(index % OPS);
              sweep_layer(&p, (op)what, &l, INTEGERS, 1, index, NULL);
            }
  crew_close();
  problem_free(&p);
}

/* Channels around the widths of registers and tiles, 3x3 and 1x1, depthwise and dense. */
static void channel_edges(void) {
  static const int64_t channels[] = {1,  2,  3,  4,  5,  7,  8,  9,  12, 15, 16, 17,
                                     24, 31, 32, 33, 47, 48, 49, 63, 64, 65, 70};
  enum { COUNT = (int)(sizeof channels / sizeof channels[0]) };
  problem p;
  mlkt_buffer panels = {NULL, 0, NULL, 0};
  uint64_t index = 0;
  int i, j;
  memset(&p, 0, sizeof p);
  crew_open();
  for (i = 0; i < COUNT; i++)
    for (j = 0; j <= COUNT && !mlkt_hopeless(); j++, index++) { /* j = COUNT: depthwise */
      const int64_t c = channels[i], k = j < COUNT ? channels[j] : c;
      layer l = layer_cube(2, 1, c, k, j < COUNT ? 1 : c, index % 3 ? 5 : 7, index % 3 ? 3 : 1, 1, index % 3 ? 1 : 0);
      l.in[1] = 1 + (int64_t)(index * 7 % 11);
      if (!mlkt_keep(index)) continue;
      sweep_layer(&p, (op)(index / 2 % OPS), &l, index % 2 ? INTEGERS : SIGNED, 1, index, &panels);
    }
  crew_close();
  mlkt_buffer_free(&panels);
  problem_free(&p);
}

/* Inputs whose axes repeat by a stride of 0 read as if they were written out. */
static void repeated_inputs(void) {
  problem p;
  uint64_t index;
  memset(&p, 0, sizeof p);
  crew_open();
  for (index = 0; index < 240 && !mlkt_hopeless(); index++) {
    mlkt_rng rng = point_rng(index);
    const layer l = layer_random(&rng, 2e4);
    const op what = (op)(index % OPS);
    operand *o;
    int axis;
    size_t i, inner = 1, size;
    if (!mlkt_keep(index)) continue;
    problem_shape(&p, what, &l, &rng);
    o = what == CONV         ? (index % 2 ? &p.x : &p.w)
        : what == GRAD_INPUT ? (index % 2 ? &p.y : &p.w)
        : index % 2          ? &p.x
                             : &p.y;
    axis = (int)mlkt_int(&rng, 0, o->rank - 1);
    size = (size_t)o->shape[axis];
    for (i = (size_t)axis + 1; i < AXES; i++) inner *= (size_t)o->shape[i];
    if (o->count / greatest(size, 1) < 2) continue; /* another axis must have a stride, lest all are zero */
    problem_fill(&p, INTEGERS, &rng);
    for (i = 0; i < o->count; i++) o->dense[i] = o->dense[i / (inner * size) * (inner * size) + i % inner];
    reference(&p);
    problem_layout(&p, FORM_PADDED, &rng);
    problem_images(&p);
    o->view.stride[axis] = 0;
    for (i = 0; i < (size_t)o->rank; i++)
      if (o->shape[i] == 1) o->view.stride[i] = 1;
    every_row(&p, index, "repeated", axis == 0 ? "axis 0" : axis == 1 ? "axis 1" : "a spatial axis", NULL);
  }
  crew_close();
  problem_free(&p);
}

/* ---- the same bits everywhere -------------------------------------------------------------------------------------------- */

/* A problem large enough for several tasks, on every row, thread count and in several layouts; judged by samples. */
static void bits_of_layer(problem *p, op what, const layer *l, uint64_t index, mlkt_buffer *panels) {
  static const form forms[] = {FORM_DENSE, FORM_LAST, FORM_COUNT};
  mlkt_rng rng = point_rng(index);
  const int slow = layer_macs(l) > 3e6;
  int f, r, t;
  problem_shape(p, what, l, &rng);
  if (index % 2) problem_epilogue(p, &rng);
  if (what == GRAD_WEIGHTS && !p->bias.present) shape_bias(p);
  problem_fill(p, index % 4 == 3 ? WIDE : SIGNED, &rng);
  p->want_known = 0;
  for (f = 0; f < 3; f++) {
    problem_layout(p, forms[f], &rng);
    if (p->want_known) problem_images(p);
    if (f == 0 && layer_macs(l) < 1e6) { /* the reference gives the expectation, the oracle judges samples of it */
      note_problem(p, "bits", MLK_ISA_REFERENCE, 1, form_names[forms[f]]);
      if (crew_get(MLK_ISA_REFERENCE, 1)) run_problem(p, crew_get(MLK_ISA_REFERENCE, 1), NULL);
    }
    for (r = 0; r < crew.rows; r++)
      for (t = 0; t < 4; t++) {
        const int threads = crew_threads((uint64_t)t);
        mlk_context *ctx = crew_get(crew.isas[r], threads);
        if (!ctx || (t && threads == crew_threads((uint64_t)t - 1))) continue;
        if (crew.rows > 1 && (t * 3 + f + r + (int)index) % (crew.isas[r] == MLK_ISA_SCALAR ? 12 : slow ? 4 : 2))
          continue;
        note_problem(p, "bits", crew.isas[r], threads, form_names[forms[f]]);
        run_problem(p, ctx, NULL);
        if ((t + f) % 3 == 0) run_packed(p, ctx, crew.isas[r], threads, panels, form_names[forms[f]]);
      }
  }
}

static void bits_across_threads(void) {
  problem p;
  mlkt_buffer panels = {NULL, 0, NULL, 0};
  uint64_t index = 0;
  int i, what;
  memset(&p, 0, sizeof p);
  crew_open();
  for (i = 0; i < 10; i++)
    for (what = 0; what < OPS && !mlkt_hopeless(); what++, index++) {
      layer l = layer_cube(2, 2, 33, 40, 1, 15, 3, 1, 1);
      switch (i) {
      case 1: l = layer_cube(2, 3, 70, 17, 1, 14, 3, 2, 1); break;
      case 2: l = layer_cube(2, 1, 3, 49, 1, 40, 7, 2, 3); break;
      case 3: l = layer_cube(2, 2, 64, 64, 1, 12, 1, 1, 0); break;
      case 4: l = layer_cube(2, 2, 96, 96, 96, 40, 3, 1, 1); break;
      case 5: l = layer_cube(2, 1, 48, 96, 48, 33, 5, 2, 2); break;
      case 6: l = layer_cube(1, 2, 20, 24, 1, 1100, 3, 1, 4), l.dilation[0] = 4; break;
      case 7: l = layer_cube(3, 1, 9, 20, 1, 9, 3, 1, 1); break;
      case 8: l = layer_cube(2, 2, 60, 66, 6, 17, 3, 1, 1); break;
      case 9: l = layer_cube(2, 1, 66, 20, 1, 9, 3, 1, 2), l.dilation[1] = 2, l.after[0] = 0, l.stride[1] = 3; break;
      default: break;
      }
      if (mlkt_keep(index)) bits_of_layer(&p, (op)what, &l, index, &panels);
    }
  crew_close();
  mlkt_buffer_free(&panels);
  problem_free(&p);
}

/* Shapes out of well-known networks. Their spatial axes are shortened and channels cut unless --long asks for all of it. */
static void network_layers(void) {
  static const struct {
    const char *name;
    int spatial;
    int64_t c, k, groups, in, filter, stride, pad, dilation, small_in, divide; /* divide: channels in the short form */
  } table[] = {{"ResNet-50 stem", 2, 3, 64, 1, 224, 7, 2, 3, 1, 35, 1},
               {"ResNet-50 conv2 1x1", 2, 64, 256, 1, 56, 1, 1, 0, 1, 9, 1},
               {"ResNet-50 conv2 3x3", 2, 64, 64, 1, 56, 3, 1, 1, 1, 9, 1},
               {"ResNet-50 conv3 3x3 s2", 2, 128, 128, 1, 56, 3, 2, 1, 1, 9, 1},
               {"ResNet-50 conv4 shortcut", 2, 512, 1024, 1, 28, 1, 2, 0, 1, 5, 4},
               {"ResNet-50 conv5 3x3", 2, 512, 512, 1, 7, 3, 1, 1, 1, 7, 4},
               {"ResNeXt 32x4d", 2, 128, 128, 32, 56, 3, 1, 1, 1, 9, 1},
               {"MobileNet depthwise s1", 2, 256, 256, 256, 28, 3, 1, 1, 1, 28, 1},
               {"MobileNet depthwise s2", 2, 144, 144, 144, 56, 3, 2, 1, 1, 28, 1},
               {"MobileNet depthwise 5x5", 2, 240, 240, 240, 28, 5, 1, 2, 1, 14, 1},
               {"MobileNet pointwise", 2, 144, 24, 1, 56, 1, 1, 0, 1, 17, 1},
               {"U-Net up 2x2 s2", 2, 64, 128, 1, 112, 2, 2, 0, 1, 14, 1},
               {"U-Net 3x3 no padding", 2, 64, 64, 1, 140, 3, 1, 0, 1, 11, 1},
               {"WaveNet dilation 512", 1, 32, 64, 1, 16000, 2, 1, 512, 512, 1100, 1},
               {"WaveNet dilation 8", 1, 64, 64, 1, 8000, 3, 1, 8, 8, 300, 1},
               {"3-D U-Net 3x3x3", 3, 32, 64, 1, 32, 3, 1, 1, 1, 6, 1},
               {"3-D U-Net down 2x2x2", 3, 32, 32, 1, 48, 2, 2, 0, 1, 12, 1},
               {"ConvNeXt depthwise 7x7", 2, 96, 96, 96, 56, 7, 1, 3, 1, 15, 1},
               {"ViT patches 16x16", 2, 3, 768, 1, 224, 16, 16, 0, 1, 48, 4}};
  enum { LAYERS = (int)(sizeof table / sizeof table[0]) };
  problem p;
  mlkt_buffer panels = {NULL, 0, NULL, 0};
  uint64_t index = 0;
  int i, what;
  memset(&p, 0, sizeof p);
  crew_open();
  for (i = 0; i < LAYERS; i++)
    for (what = 0; what < OPS && !mlkt_hopeless(); what++, index++) {
      const int64_t divide = mlkt_opt.long_run ? 1 : table[i].divide;
      layer l = layer_cube(table[i].spatial, mlkt_opt.long_run ? 2 : 1, table[i].c, table[i].k, table[i].groups,
                           mlkt_opt.long_run ? table[i].in : table[i].small_in, table[i].filter, table[i].stride,
                           table[i].pad);
      int s;
      for (s = 0; s < l.spatial; s++) l.dilation[s] = table[i].dilation;
      if (table[i].spatial == 1 && table[i].filter == 2) l.after[0] = 0; /* causal */
      if (divide > 1) {
        l.k /= divide;
        if (l.c > divide * 16) l.c /= divide;
      }
      if (mlkt_keep(index)) bits_of_layer(&p, (op)what, &l, index, &panels);
      if (mlkt_failures()) mlkt_note("%s", table[i].name);
    }
  crew_close();
  mlkt_buffer_free(&panels);
  problem_free(&p);
}

/* An image gives the same bits alone and in any place of a batch; channels-first and channels-last likewise. */
static void batch_position(void) {
  enum { N = 3, C = 19, K = 21, H = 13, W = 12, X = N * C * H * W, Y = N * K * H * W };
  static float x[X], w[K * C * 9], y[Y], alone[Y], last[Y];
  mlkt_rng rng = mlkt_rng_case();
  int r, n, s, what;
  size_t i;
  for (i = 0; i < X; i++) x[i] = mlkt_signed(&rng);
  for (i = 0; i < K * C * 9; i++) w[i] = mlkt_signed(&rng);
  crew_open();
  for (r = 0; r <= crew.rows; r++)
    for (what = CONV; what <= GRAD_INPUT; what++)
      for (s = 1; s <= 2; s++) {
        const mlk_isa isa = r < crew.rows ? crew.isas[r] : MLK_ISA_REFERENCE;
        mlk_context *ctx = crew_get(isa, r < crew.rows && crew.threads > 1 ? 2 : 1);
        /* GRAD_INPUT: w as [C, K, 3, 3] takes C channels in and gives K */
        const int64_t oh = (H - 1) / s + 1, ow = (W - 1) / s + 1;
        const int64_t ih = what == CONV ? (int64_t)H : oh, iw = what == CONV ? (int64_t)W : ow;
        const int64_t th = what == CONV ? oh : (int64_t)H, tw = what == CONV ? ow : (int64_t)W;
        const mlk_tensor in = mlk_f32(x, N, C, ih, iw), out = mlk_f32(y, N, K, th, tw);
        const size_t image = (size_t)(K * th * tw);
        mlk_conv_geometry g;
        int form_last;
        if (!ctx) continue;
        memset(&g, 0, sizeof g);
        g.stride[0] = g.stride[1] = s;
        for (n = 0; n < 2; n++) g.pad_before[n] = g.pad_after[n] = 1;
        mlkt_note("%s, stride %d, isa %s", op_names[what], s, mlk_isa_name(isa));
        for (n = -1; n < N; n++)
          for (form_last = 0; form_last < 2; form_last++) {
            mlk_tensor from = n < 0 ? in : mlk_slice(in, 0, n, 1), to = n < 0 ? out : mlk_f32(alone, 1, K, th, tw);
            mlk_status status;
            if (form_last) to = mlk_channels_last(mlk_f32(last, to.shape[0], th, tw, K));
            if (what == CONV) {
              mlk_conv_desc desc;
              memset(&desc, 0, sizeof desc);
              desc.x = from, desc.w = mlk_f32(w, K, C, 3, 3), desc.y = to, desc.geometry = g;
              status = mlk_conv(ctx, &desc);
            } else {
              mlk_conv_grad_input_desc desc;
              memset(&desc, 0, sizeof desc);
              desc.dy = from, desc.w = mlk_f32(w, C, K, 3, 3), desc.dx = to, desc.geometry = g;
              status = mlk_conv_grad_input(ctx, &desc);
            }
            if (!CHECK_OK(ctx, status)) continue;
            if (form_last) { /* the same numbers in another order */
              const float *of = n < 0 ? y : y + (size_t)n * image;
              size_t wrong = 0;
              for (i = 0; i < (size_t)to.shape[0] * image; i++) {
                const size_t place = i / image * image + i % (size_t)(th * tw) * K + i % image / (size_t)(th * tw);
                wrong += mlkt_bits(of[i]) != mlkt_bits(last[place]);
              }
              CHECK_EQ_I64(wrong, 0);
            } else if (n >= 0)
              CHECK_BITS_F32_N(alone, y + (size_t)n * image, image);
          }
      }
  crew_close();
}

/* A 1x1 filter with stride 1 is a matrix product, to the bit: as rows of pixels (channels last) and as columns (first). */
static void pointwise_is_matmul(void) {
  static const int64_t cs[] = {1, 5, 16, 33, 70, 511, 512, 513, 1030};
  enum { COUNT = (int)(sizeof cs / sizeof cs[0]), MOST = 1030, K = 37, H = 6, W = 7, N = 2 };
  static float x[N * H * W * MOST], w[K * MOST], bias[K], y[N * H * W * K], want[N * H * W * K], dx[N * H * W * MOST],
      wdx[N * H * W * MOST], dw[K * MOST], wdw[K * MOST];
  mlkt_rng rng = mlkt_rng_case();
  int r, i, last;
  size_t j;
  for (j = 0; j < sizeof x / sizeof x[0]; j++) x[j] = mlkt_signed(&rng);
  for (j = 0; j < sizeof w / sizeof w[0]; j++) w[j] = mlkt_signed(&rng);
  for (j = 0; j < sizeof bias / sizeof bias[0]; j++) bias[j] = mlkt_signed(&rng);
  crew_open();
  for (r = 0; r < crew.rows; r++)
    for (i = 0; i < COUNT && !mlkt_hopeless(); i++)
      for (last = 0; last < 2; last++) {
        const int64_t c = cs[i], pixels = N * H * W;
        mlk_context *ctx = crew_get(crew.isas[r], crew_threads((uint64_t)i));
        mlk_matmul_desc product;
        mlk_conv_desc conv;
        mlk_conv_grad_input_desc input;
        mlk_conv_grad_weights_desc weights;
        mlk_tensor xs, ys, dxs;
        if (!ctx || !mlkt_keep((uint64_t)(r * 100 + i * 2 + last))) continue;
        mlkt_note("C %d, channels %s, isa %s", (int)c, last ? "last" : "first", mlk_isa_name(crew.isas[r]));
        memset(&product, 0, sizeof product);
        memset(&conv, 0, sizeof conv);
        xs = last ? mlk_channels_last(mlk_f32(x, N, H, W, c)) : mlk_f32(x, N, c, H, W);
        ys = last ? mlk_channels_last(mlk_f32(y, N, H, W, K)) : mlk_f32(y, N, K, H, W);
        dxs = last ? mlk_channels_last(mlk_f32(dx, N, H, W, c)) : mlk_f32(dx, N, c, H, W);
        conv.x = xs, conv.w = mlk_f32(w, K, c, 1, 1), conv.y = ys;
        conv.bias = mlk_f32(bias, K);
        conv.activation = product.activation = MLK_SILU;
        if (last) { /* [pixels, C] [C, K] */
          product.a = mlk_f32(x, pixels, c);
          product.b = mlk_transposed(mlk_f32(w, K, c));
          product.d = mlk_f32(want, pixels, K);
          product.bias = mlk_f32(bias, K);
        } else { /* [K, C] [N, C, pixels] */
          product.a = mlk_f32(w, K, c);
          product.b = mlk_f32(x, N, c, H * W);
          product.d = mlk_f32(want, N, K, H * W);
          product.bias = mlk_f32(bias, K, 1);
        }
        CHECK_OK(ctx, mlk_matmul(ctx, &product));
        mlkt_rogue_f32(y, sizeof y / sizeof y[0]);
        CHECK_OK(ctx, mlk_conv(ctx, &conv));
        CHECK_BITS_F32_N(y, want, N * H * W * K);

        memset(&input, 0, sizeof input);
        memset(&product, 0, sizeof product);
        input.dy = ys, input.w = conv.w, input.dx = dxs;
        if (last) {
          product.a = mlk_f32(y, pixels, K);
          product.b = mlk_f32(w, K, c);
          product.d = mlk_f32(wdx, pixels, c);
        } else {
          product.a = mlk_transposed(mlk_f32(w, K, c));
          product.b = mlk_f32(y, N, K, H * W);
          product.d = mlk_f32(wdx, N, c, H * W);
        }
        CHECK_OK(ctx, mlk_matmul(ctx, &product));
        mlkt_rogue_f32(dx, sizeof dx / sizeof dx[0]);
        CHECK_OK(ctx, mlk_conv_grad_input(ctx, &input));
        CHECK_BITS_F32_N(dx, wdx, N * H * W * c);

        if (last) { /* channels first, images and pixels do not lie along one axis */
          memset(&weights, 0, sizeof weights);
          memset(&product, 0, sizeof product);
          weights.x = xs, weights.dy = ys, weights.dw = mlk_f32(dw, K, c, 1, 1);
          product.a = mlk_transposed(mlk_f32(y, pixels, K));
          product.b = mlk_f32(x, pixels, c);
          product.d = mlk_f32(wdw, K, c);
          CHECK_OK(ctx, mlk_matmul(ctx, &product));
          mlkt_rogue_f32(dw, sizeof dw / sizeof dw[0]);
          CHECK_OK(ctx, mlk_conv_grad_weights(ctx, &weights));
          CHECK_BITS_F32_N(dw, wdw, K * c);
        }
      }
  crew_close();
}

/* Padding is zeros that take part: an infinite weight makes NaN where its tap lies outside, and only there. */
static void padding_takes_part(void) {
  enum { C = 6, K = 9, H = 8, W = 9 };
  const float inf = mlkt_float(0x7F800000u);
  static float x[C * H * W], w[K * C * 9], y[K * H * W], dy[K * H * W], dx[C * H * W];
  mlkt_rng rng = mlkt_rng_case();
  int r, tap, last, i, j, k;
  for (i = 0; i < C * H * W; i++) x[i] = 0.5f + mlkt_unit(&rng);
  for (i = 0; i < K * H * W; i++) dy[i] = 0.5f + mlkt_unit(&rng);
  crew_open();
  for (r = 0; r <= crew.rows; r++)
    for (tap = 0; tap < 9; tap++)
      for (last = 0; last < 2; last++) {
        const mlk_isa isa = r < crew.rows ? crew.isas[r] : MLK_ISA_REFERENCE;
        mlk_context *ctx = crew_get(isa, 1);
        mlk_conv_desc conv;
        mlk_conv_grad_input_desc input;
        size_t wrong = 0;
        if (!ctx) continue;
        mlkt_note("tap %d, channels %s, isa %s", tap, last ? "last" : "first", mlk_isa_name(isa));
        for (i = 0; i < K * C * 9; i++) w[i] = i % 9 == tap ? inf : 1.0f;
        memset(&conv, 0, sizeof conv);
        memset(&input, 0, sizeof input);
        conv.x = last ? mlk_channels_last(mlk_f32(x, 1, H, W, C)) : mlk_f32(x, 1, C, H, W);
        conv.y = last ? mlk_channels_last(mlk_f32(y, 1, H, W, K)) : mlk_f32(y, 1, K, H, W);
        input.dx = last ? mlk_channels_last(mlk_f32(dx, 1, H, W, C)) : mlk_f32(dx, 1, C, H, W);
        input.dy = last ? mlk_channels_last(mlk_f32(dy, 1, H, W, K)) : mlk_f32(dy, 1, K, H, W);
        conv.w = input.w = mlk_f32(w, K, C, 3, 3);
        for (i = 0; i < 2; i++) conv.geometry.pad_before[i] = conv.geometry.pad_after[i] = 1;
        input.geometry = conv.geometry;
        CHECK_OK(ctx, mlk_conv(ctx, &conv));
        CHECK_OK(ctx, mlk_conv_grad_input(ctx, &input));
        for (i = 0; i < H; i++)
          for (j = 0; j < W; j++) {
            const int row = i + tap / 3 - 1, column = j + tap % 3 - 1;
            const int from = i - tap / 3 + 1, across = j - tap % 3 + 1;
            const int inside = row >= 0 && row < H && column >= 0 && column < W;
            const int reached = from >= 0 && from < H && across >= 0 && across < W;
            for (k = 0; k < K; k++) {
              const float got = last ? y[(i * W + j) * K + k] : y[(k * H + i) * W + j];
              wrong += inside ? got != inf : got == got;
            }
            for (k = 0; k < C; k++) {
              const float got = last ? dx[(i * W + j) * C + k] : dx[(k * H + i) * W + j];
              wrong += reached ? got != inf : got == got;
            }
          }
        CHECK_EQ_I64(wrong, 0);
      }
  crew_close();
}

/* Tells |result - exact| against the bound of NUMERICS for long and short sums. */
static void error_bound(void) {
  problem p;
  uint64_t index;
  double worst = 0;
  memset(&p, 0, sizeof p);
  crew_open();
  for (index = 0; index < 270 && !mlkt_hopeless(); index++) {
    mlkt_rng rng = point_rng(index);
    const op what = (op)(index % OPS);
    const mlk_isa isa = crew.isas[index / 3 % (uint64_t)crew.rows];
    mlk_context *ctx = crew_get(isa, crew_threads(index));
    operand *out;
    double ratio = 0;
    size_t i, j;
    layer l = layer_random(&rng, 2e4);
    if (index % 4 == 0) /* sums of several segments */
      l = what == GRAD_WEIGHTS ? layer_cube(2, 3, 2, 3, 1, 40, 2, 1, 1) : layer_cube(2, 1, 120, 130, 1, 4, 3, 1, 1);
    if (!mlkt_keep(index)) continue;
    if (!ctx) break;
    problem_shape(&p, what, &l, &rng);
    if (what == GRAD_WEIGHTS) shape_bias(&p);
    problem_fill(&p, (values)(SIGNED + index / 9 % 3), &rng);
    problem_layout(&p, FORM_COUNT, &rng);
    reset_outputs(&p);
    note_problem(&p, "error bound", isa, 0, "");
    if (!CHECK_OK(ctx, call(&p, ctx, NULL))) continue;
    out = problem_out(&p);
    operand_move(out, p.want, out->first, 0);
    for (i = 0; i < out->count; i += index % 4 == 0 ? 8 : 1) {
      const size_t count = terms(&p, i);
      const double bound = (double)((count < MLK_SEGMENT ? count : MLK_SEGMENT) +
                                    (count + MLK_SEGMENT - 1) / MLK_SEGMENT);
      double exact = 0, magnitude = 0, q;
      for (j = 0; j < count; j++) {
        const double product = (double)p.first[j] * p.second[j];
        exact += product;
        magnitude += fabs(product);
      }
      q = fabs(p.want[i] - exact) / (bound / 16777216.0 * (1 + 1 / 1024.0) * magnitude);
      if (magnitude > 0 ? !(q <= ratio) : p.want[i] != 0) ratio = magnitude > 0 ? q : 2;
    }
    if (what == GRAD_WEIGHTS) {
      const size_t positions = (size_t)(p.out[0] * p.out[1] * p.out[2]), count = (size_t)l.n * positions;
      operand_move(&p.bias, p.want_bias, p.bias.first, 0);
      for (i = 0; i < p.bias.count; i++) {
        double exact = 0, magnitude = 0;
        for (j = 0; j < count; j++) {
          const double v = p.y.dense[(j / positions * (size_t)l.k + i) * positions + j % positions];
          exact += v;
          magnitude += fabs(v);
        }
        CHECK_MSG(fabs(p.want_bias[i] - exact) <=
                      ((double)((count + 15) / 16) + 5) / 16777216.0 * (1 + 1 / 1024.0) * magnitude,
                  "dbias[%lu] is %.9g, exact %.9g", (unsigned long)i, (double)p.want_bias[i], exact);
      }
    }
    CHECK_MSG(ratio <= 1, "the error is %g of the bound", ratio);
    if (!(ratio <= worst)) worst = ratio;
  }
  crew_close();
  problem_free(&p);
  CHECK_MSG(worst > 1e-3, "the greatest error is %g of the bound: was anything computed?", worst);
}

/* ---- adjoints and finite differences ------------------------------------------------------------------------------------- */

static int64_t dot(const float *x, const float *y, size_t count) {
  int64_t sum = 0;
  size_t i;
  for (i = 0; i < count; i++) sum += (int64_t)x[i] * (int64_t)y[i];
  return sum;
}

/* Runs what on the operands as they lie, copies its output to result, and puts the operand's own values back. */
static int run_and_restore(problem *p, op what, mlk_context *ctx, float *result) {
  operand *out;
  p->what = what;
  out = problem_out(p);
  mlkt_rogue_f32(mlkt_buffer_f32(&out->buffer), out->span);
  if (!CHECK_OK(ctx, call(p, ctx, NULL))) return 0;
  if (out->count) operand_move(out, result, out->first, 0);
  if (out->span) memcpy(out->buffer.data, out->image, out->span * sizeof(float));
  return 1;
}

/* <conv(x, w), y> = <x, convT(y, w)> = <w, dw(x, y)>, in integers: no oracle needed. */
static void adjoints(void) {
  problem p;
  uint64_t index;
  int nonzero = 0, points = 0;
  memset(&p, 0, sizeof p);
  crew_open();
  for (index = 0; index < 1500 && !mlkt_hopeless(); index++) {
    mlkt_rng rng = point_rng(index);
    const layer l = layer_random(&rng, index % 8 ? 3e4 : 1e6);
    const mlk_isa isa = crew.isas[index % (uint64_t)crew.rows];
    const int threads = crew_threads(index / 3);
    mlk_context *ctx = crew_get(isa, threads);
    float *result[OPS] = {NULL, NULL, NULL};
    size_t room[OPS] = {0, 0, 0};
    if (!ctx || !mlkt_keep(index)) continue;
    problem_shape(&p, CONV, &l, &rng);
    problem_fill(&p, INTEGERS, &rng);
    problem_layout(&p, FORM_COUNT, &rng);
    note_problem(&p, "adjoint", isa, threads, "");
    result[CONV] = grown_f32(NULL, &room[CONV], p.y.count);
    result[GRAD_INPUT] = grown_f32(NULL, &room[GRAD_INPUT], p.x.count);
    result[GRAD_WEIGHTS] = grown_f32(NULL, &room[GRAD_WEIGHTS], p.w.count);
    if (run_and_restore(&p, CONV, ctx, result[CONV]) && run_and_restore(&p, GRAD_INPUT, ctx, result[GRAD_INPUT]) &&
        run_and_restore(&p, GRAD_WEIGHTS, ctx, result[GRAD_WEIGHTS])) {
      const int64_t forward = dot(result[CONV], p.y.dense, p.y.count);
      CHECK_EQ_I64(dot(result[GRAD_INPUT], p.x.dense, p.x.count), forward);
      CHECK_EQ_I64(dot(result[GRAD_WEIGHTS], p.w.dense, p.w.count), forward);
      points++;
      nonzero += forward != 0;
    }
    free(result[CONV]);
    free(result[GRAD_INPUT]);
    free(result[GRAD_WEIGHTS]);
  }
  crew_close();
  problem_free(&p);
  CHECK_MSG(nonzero * 2 > points, "%d of %d products are not 0: was anything computed?", nonzero, points);
}

/* The exact sum of output element flat (in double), and a bound of what f32 makes of it. */
static double exact_sum(problem *p, size_t flat, double *bound) {
  const size_t count = terms(p, flat);
  const size_t plane = (size_t)(p->out[0] * p->out[1] * p->out[2]);
  double sum = p->bias.dense[flat / plane % (size_t)p->l.k], magnitude = fabs(sum);
  size_t i;
  for (i = 0; i < count; i++) {
    sum += (double)p->first[i] * p->second[i];
    magnitude += fabs((double)p->first[i] * p->second[i]);
  }
  *bound = (double)(count + 2) / 16777216.0 * magnitude;
  return sum;
}

/* Forward through the library with one value moved by step; out gets y, exact the sums in double, bounds their bounds. */
static int forward_moved(problem *p, mlk_context *ctx, operand *moved, size_t at, float step, float *out, double *exact,
                         double *bounds) {
  const float kept = moved->dense[at];
  size_t i;
  int ok;
  moved->dense[at] = kept + step; /* both multiples of 2^-10: exact */
  operand_move(moved, moved->dense, moved->first, 1);
  p->what = CONV;
  ok = CHECK_OK(ctx, call(p, ctx, NULL));
  if (ok) operand_move(&p->y, out, p->y.first, 0);
  for (i = 0; i < p->y.count; i++) exact[i] = exact_sum(p, i, &bounds[i]);
  moved->dense[at] = kept;
  operand_move(moved, moved->dense, moved->first, 1);
  return ok;
}

/* The loss is sum r_j sin(y_j). y is affine in any one value v: y_j' = a_j. So the central difference with step h is off by
   at most h^2/6 sum |r_j a_j^3| (third derivative) + sum |r_j| bound_j / h (rounding of y at both ends), and the gradient by
   its own rounding, that of dy, and dy's being taken at a rounded y. h is where the first two balance. */
static void differ(problem *p, mlk_context *ctx, operand *moved, size_t at, double gradient, const double *r,
                   double *work, double *tolerances, double *gradients) {
  const size_t count = p->y.count;
  float *plus = (float *)(void *)(work + 4 * count), *minus = plus + count;
  double *exact_plus = work, *exact_minus = work + count, *bound_plus = work + 2 * count,
         *bound_minus = work + 3 * count;
  double third = 0, rounding = 0, slope = 0, quotient = 0, tolerance, h = 1.0 / 32;
  size_t i;
  int round;
  for (round = 0; round < 2; round++) { /* the first round finds the step */
    if (!forward_moved(p, ctx, moved, at, (float)h, plus, exact_plus, bound_plus)) return;
    if (!forward_moved(p, ctx, moved, at, (float)-h, minus, exact_minus, bound_minus)) return;
    third = rounding = slope = quotient = 0;
    for (i = 0; i < count; i++) {
      const double a = (exact_plus[i] - exact_minus[i]) / (2 * h), bound = fmax(bound_plus[i], bound_minus[i]);
      if (fabs(a) < 1e-12) continue; /* v has no part in y_i: both are the same bits */
      third += fabs(r[i] * a * a * a);
      rounding += fabs(r[i]) * bound;
      slope += fabs(r[i] * a) * (bound + 1.2e-7 * (double)(p->l.n * (int64_t)count + 20));
      quotient += r[i] * (sin(plus[i]) - sin(minus[i])) / (2 * h);
    }
    if (round == 0 && third > 0)
      while (h > 1.0 / 512 && h * h * h > 3 * rounding / third) h /= 2;
  }
  tolerance = h * h / 6 * third + rounding / h + slope + 1e-12;
  CHECK_MSG(fabs(quotient - gradient) <= tolerance,
            "element %lu: the gradient is %.9g, the difference quotient %.9g +- %.2g", (unsigned long)at, gradient,
            quotient, tolerance);
  *tolerances += tolerance;
  *gradients += fabs(gradient);
}

static void finite_differences(void) {
  problem p;
  uint64_t index;
  double tolerances = 0, gradients = 0;
  memset(&p, 0, sizeof p);
  crew_open();
  for (index = 0; index < 60 && !mlkt_hopeless(); index++) {
    mlkt_rng rng = point_rng(index);
    const layer l = layer_random(&rng, 4e3);
    const mlk_isa isa = crew.isas[index % (uint64_t)crew.rows];
    mlk_context *ctx = crew_get(isa, 1);
    operand *const all[] = {&p.x, &p.w, &p.bias};
    float *gradient[3] = {NULL, NULL, NULL}, *dy;
    double *r, *work;
    size_t i, room = 0;
    int which, probe;
    if (!ctx || !mlkt_keep(index * 3)) continue;
    problem_shape(&p, CONV, &l, &rng);
    shape_bias(&p);
    if (p.y.count == 0 || p.x.count == 0 || p.w.count == 0) continue;
    problem_fill(&p, SIGNED, &rng);
    for (which = 0; which < 3; which++)
      for (i = 0; i < all[which]->count; i++) all[which]->dense[i] = floorf(all[which]->dense[i] * 1024) / 1024;
    problem_layout(&p, FORM_COUNT, &rng);
    note_problem(&p, "finite differences", isa, 1, "");
    r = (double *)malloc(p.y.count * sizeof *r + 64);
    work = (double *)malloc(p.y.count * 5 * sizeof *work + 64);
    dy = grown_f32(NULL, &room, p.y.count);
    for (which = 0; which < 3; which++) gradient[which] = grown_f32(NULL, (room = 0, &room), all[which]->count);
    if (!r || !work) exit(2);
    for (i = 0; i < p.y.count; i++) r[i] = mlkt_signed(&rng);
    if (CHECK_OK(ctx, call(&p, ctx, NULL))) { /* dy at the centre */
      mlk_conv_grad_input_desc input;
      mlk_conv_grad_weights_desc weights;
      operand_move(&p.y, dy, p.y.first, 0);
      for (i = 0; i < p.y.count; i++) dy[i] = (float)(r[i] * cos(dy[i]));
      operand_move(&p.y, dy, p.y.first, 1);
      input = grad_input_desc(&p, NULL);
      memset(&input.bias, 0, sizeof input.bias);
      input.dx = input.dx.rank == 3   ? mlk_f32(gradient[0], l.n, l.c, l.in[0])
                 : input.dx.rank == 4 ? mlk_f32(gradient[0], l.n, l.c, l.in[0], l.in[1])
                                      : mlk_f32(gradient[0], l.n, l.c, l.in[0], l.in[1], l.in[2]);
      weights = grad_weights_desc(&p);
      memset(weights.dw.stride, 0, sizeof weights.dw.stride);
      weights.dw.data = gradient[1];
      weights.dbias = mlk_f32(gradient[2], l.k);
      if (CHECK_OK(ctx, mlk_conv_grad_input(ctx, &input)) && CHECK_OK(ctx, mlk_conv_grad_weights(ctx, &weights)))
        for (which = 0; which < 3; which++)
          for (probe = 0; probe < 4; probe++) {
            const size_t at = (size_t)(mlkt_u64(&rng) % all[which]->count);
            differ(&p, ctx, all[which], at, gradient[which][at], r, work, &tolerances, &gradients);
          }
    }
    free(r);
    free(work);
    free(dy);
    for (which = 0; which < 3; which++) free(gradient[which]);
  }
  crew_close();
  problem_free(&p);
  CHECK_MSG(tolerances < 0.05 * gradients, "tolerances of %g for gradients of %g tell nothing", tolerances, gradients);
}

/* ---- epilogues ------------------------------------------------------------------------------------------------------------- */

static void epilogues(void) {
  static const float scalars[] = {0.0f, 1.0f, -2.5f};
  problem p;
  mlkt_buffer panels = {NULL, 0, NULL, 0};
  uint64_t index = 0;
  int activation, alpha, beta, bias, residual, preact;
  memset(&p, 0, sizeof p);
  crew_open();
  for (activation = 0; activation < MLK_ACTIVATION_COUNT; activation++)
    for (alpha = -1; alpha < 3; alpha++)
      for (beta = -1; beta < 3; beta++)
        for (bias = 0; bias < 2; bias++)
          for (residual = 0; residual < 3; residual++)
            for (preact = 0; preact < 2 && !mlkt_hopeless(); preact++, index++) {
              mlkt_rng rng = point_rng(index);
              const layer l = layer_random(&rng, index % 16 ? 4e3 : 4e5);
              size_t i;
              if (!mlkt_keep(index)) continue;
              problem_shape(&p, index / 2 % 2 ? CONV : GRAD_INPUT, &l, &rng);
              p.activation = (mlk_activation)activation;
              if (alpha >= 0) p.alpha_value = scalars[alpha], p.alpha = &p.alpha_value;
              if (beta >= 0) p.beta_value = scalars[beta], p.beta = &p.beta_value;
              if (bias) shape_bias(&p);
              if (residual == 1) shape_like_out(&p, &p.residual);
              p.residual_is_out = residual == 2;
              if (preact) shape_like_out(&p, &p.preact);
              problem_fill(&p, SIGNED, &rng);
              for (i = 0; i < p.w.count; i++) p.w.dense[i] *= index % 3 == 0 ? 6.0f : 1.0f; /* far into both tails */
              reference(&p);
              problem_layout(&p, FORM_COUNT, &rng);
              problem_images(&p);
              every_row(&p, index, "epilogue", "", &panels);
            }
  crew_close();
  mlkt_buffer_free(&panels);
  problem_free(&p);
}

/* alpha = 0 does not read X and W: they point nowhere. */
static void not_read(void) {
  enum { N = 2, C = 5, K = 18, SIZE = 9 };
  const float zero = 0.0f, minus_zero = -0.0f;
  float *nowhere = (float *)(uintptr_t)4096; /* reading it ends the test */
  static float out[N * K * SIZE * SIZE], bias[K], want[N * K * SIZE * SIZE];
  int r, sign, what;
  size_t i;
  for (i = 0; i < K; i++) bias[i] = (float)i - 3;
  for (i = 0; i < N * K * SIZE * SIZE; i++) want[i] = bias[i / (SIZE * SIZE) % K];
  crew_open();
  for (r = 0; r < crew.rows; r++)
    for (sign = 0; sign < 2; sign++)
      for (what = CONV; what <= GRAD_INPUT; what++) {
        mlk_context *ctx = crew_get(crew.isas[r], crew_threads(1));
        if (!ctx) continue;
        mlkt_note("%s, isa %s", op_names[what], mlk_isa_name(crew.isas[r]));
        mlkt_rogue_f32(out, N * K * SIZE * SIZE); /* quiet NaNs, and beta is absent */
        if (what == CONV) {
          mlk_conv_desc desc;
          memset(&desc, 0, sizeof desc);
          desc.x = mlk_f32(nowhere, N, C, SIZE, SIZE);
          desc.w = mlk_f32(nowhere + 100000, K, C, 3, 3);
          desc.y = mlk_f32(out, N, K, SIZE, SIZE);
          for (i = 0; i < 2; i++) desc.geometry.pad_before[i] = desc.geometry.pad_after[i] = 1;
          desc.alpha = sign ? &minus_zero : &zero;
          desc.bias = mlk_f32(bias, K);
          CHECK_OK(ctx, mlk_conv(ctx, &desc));
        } else {
          mlk_conv_grad_input_desc desc;
          memset(&desc, 0, sizeof desc);
          desc.dy = mlk_f32(nowhere, N, C, SIZE, SIZE);
          desc.w = mlk_f32(nowhere + 100000, C, K, 3, 3);
          desc.dx = mlk_f32(out, N, K, SIZE, SIZE);
          for (i = 0; i < 2; i++) desc.geometry.pad_before[i] = desc.geometry.pad_after[i] = 1;
          desc.alpha = sign ? &minus_zero : &zero;
          desc.bias = mlk_f32(bias, K);
          CHECK_OK(ctx, mlk_conv_grad_input(ctx, &desc));
        }
        CHECK_BITS_F32_N(out, want, N * K * SIZE * SIZE);
      }
  crew_close();
}

/* DW or DBIAS may be absent; the other is then the same. */
static void one_gradient_only(void) {
  problem p;
  uint64_t index;
  memset(&p, 0, sizeof p);
  crew_open();
  for (index = 0; index < 120 && !mlkt_hopeless(); index++) {
    mlkt_rng rng = point_rng(index);
    const layer l = layer_random(&rng, 2e4);
    if (!mlkt_keep(index)) continue;
    problem_shape(&p, GRAD_WEIGHTS, &l, &rng);
    if (index % 2) shape_bias(&p);
    if (index % 4 > 1) p.beta_value = -0.5f, p.beta = &p.beta_value;
    problem_fill(&p, SIGNED, &rng);
    reference(&p);
    p.w.present = index % 2 == 0;
    problem_layout(&p, FORM_COUNT, &rng);
    problem_images(&p);
    every_row(&p, index, p.w.present ? "dw only" : "dbias only", "", NULL);
  }
  crew_close();
  problem_free(&p);
}

/* ---- packing ----------------------------------------------------------------------------------------------------------------- */

static int has_word(const char *sentence, const char *text) {
  static const char word[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_";
  const size_t length = strlen(text);
  const char *p = sentence;
  while ((p = strstr(p, text)) != NULL) {
    if ((p == sentence || !strchr(word, p[-1])) && (p[length] == 0 || !strchr(word, p[length]))) return 1;
    p++;
  }
  return 0;
}

/* The call must be refused because of packed_w, and leave the output alone. The filter's size is the handle's: where it does
   not fit, so does the output's not. */
static void refuse_packed(problem *p, mlk_context *ctx, const mlk_packed *packed, int sizes_differ, const char *why) {
  operand *out = problem_out(p);
  mlk_status status;
  mlkt_note("%s, %s", op_names[p->what], why);
  mlkt_rogue_f32(mlkt_buffer_f32(&out->buffer), out->span);
  status = call(p, ctx, packed);
  CHECK_STATUS(ctx, status, sizes_differ && status == MLK_ERR_SHAPE ? MLK_ERR_SHAPE : MLK_ERR_ARGUMENT);
  CHECK_MSG(has_word(mlk_last_error(ctx), "packed_w") ||
                (sizes_differ && has_word(mlk_last_error(ctx), p->what == CONV ? "y" : "dy")),
            "the sentence does not name packed_w: \"%s\"", mlk_last_error(ctx));
  CHECK_MSG(mlkt_is_rogue_f32(mlkt_buffer_f32(&out->buffer), out->span), "a refused call wrote the output");
}

static void refuse_pack(problem *p, mlk_context *ctx, void *buffer, uint64_t bytes, const char *word,
                        const char *value) {
  mlk_packed packed, kept;
  memset(&packed, 0xFE, sizeof packed);
  memcpy(&kept, &packed, sizeof packed);
  CHECK_STATUS(ctx, call_pack(p, ctx, buffer, bytes, &packed), MLK_ERR_ARGUMENT);
  CHECK_MSG(has_word(mlk_last_error(ctx), word) && strstr(mlk_last_error(ctx), value),
            "the sentence does not tell %s and %s: \"%s\"", word, value, mlk_last_error(ctx));
  CHECK_MSG(memcmp(&packed, &kept, sizeof packed) == 0, "a refused call wrote packed");
}

static void packing_layer(problem *p, op what, const layer *l, mlk_isa isa, mlkt_buffer *buffer, uint64_t index) {
  mlkt_rng rng = point_rng(index);
  mlk_context *ctx = crew_get(isa, 1);
  mlk_packed packed, bad;
  char text[32];
  layer other;
  int i;
  if (!ctx) return;
  problem_shape(p, what, l, &rng);
  problem_fill(p, SIGNED, &rng);
  reference(p);
  problem_layout(p, FORM_COUNT, &rng);
  problem_images(p);
  note_problem(p, "packing", isa, 1, "");
  memset(&packed, 0xFE, sizeof packed);
  if (!CHECK_OK(ctx, call_pack(p, ctx, NULL, 0, &packed))) return;
  CHECK(packed.data == NULL);
  CHECK_MSG(packed.bytes >= p->w.count * 4 && packed.bytes <= (p->w.count + 4096) * 64, "%" PRIu64 " bytes",
            packed.bytes);
  mlkt_buffer_place(buffer, (size_t)packed.bytes + 64, MLKT_HEAD);
  memset(buffer->data, (int)MLKT_ROGUE_BYTE, buffer->bytes);
  snprintf(text, sizeof text, "%" PRIu64, packed.bytes);
  refuse_pack(p, ctx, buffer->data, packed.bytes - 1, "buffer_bytes", text);
  refuse_pack(p, ctx, (char *)buffer->data + 32, packed.bytes, "buffer", "64");
  CHECK_MSG(mlkt_is_rogue_i64(mlkt_buffer_i64(buffer), buffer->bytes / 8), "a refused call wrote into the buffer");
  if (!CHECK_OK(ctx, call_pack(p, ctx, buffer->data, packed.bytes, &packed))) return;
  CHECK(packed.data == buffer->data);
  CHECK(mlkt_is_rogue_i64((int64_t *)(void *)((char *)buffer->data + packed.bytes), 8));
  run_problem(p, ctx, &packed);

  bad = packed, bad.data = NULL;
  refuse_packed(p, ctx, &bad, 0, "no data");
  bad = packed, bad.data = (const char *)packed.data + 4;
  refuse_packed(p, ctx, &bad, 0, "data moved by 4 bytes");
  bad = packed, bad.bytes = packed.bytes - 1;
  refuse_packed(p, ctx, &bad, 0, "bytes missing");
  for (i = MLK_ISA_SCALAR; i < MLK_ISA_COUNT; i++)
    if (i != (int)isa && i != MLK_ISA_REFERENCE && mlk_isa_available((mlk_isa)i) && crew_get((mlk_isa)i, 1)) {
      refuse_packed(p, crew_get((mlk_isa)i, 1), &packed, 0, "packed by another row");
      CHECK_MSG(has_word(mlk_last_error(crew_get((mlk_isa)i, 1)), mlk_isa_name(isa)),
                "the sentence does not name %s: \"%s\"", mlk_isa_name(isa), mlk_last_error(crew_get((mlk_isa)i, 1)));
    }
  { /* w as well */
    mlk_conv_desc conv = conv_desc(p, NULL);
    mlk_conv_grad_input_desc input = grad_input_desc(p, NULL);
    conv.packed_w = input.packed_w = &packed;
    CHECK_STATUS(ctx, what == CONV ? mlk_conv(ctx, &conv) : mlk_conv_grad_input(ctx, &input), MLK_ERR_ARGUMENT);
    CHECK_MSG(has_word(mlk_last_error(ctx), "packed_w"), "the sentence does not name packed_w: \"%s\"",
              mlk_last_error(ctx));
  }
  if (what == CONV && l->c == l->k) { /* the other operator's panels */
    p->what = GRAD_INPUT;
    p->want = grown_f32(p->want, &p->want_room, p->x.count);
    problem_layout(p, FORM_DENSE, &rng);
    refuse_packed(p, ctx, &packed, 0, "packed for conv");
  }
  /* calls it serves: other images, sizes and layouts, of conv any geometry */
  for (i = 0; i < 6; i++) {
    int axis;
    other = *l;
    other.n = i == 5 ? 0 : mlkt_int(&rng, 1, 4);
    for (axis = 0; axis < l->spatial && i > 0; axis++) {
      other.in[axis] = mlkt_int(&rng, 1, 14);
      other.after[axis] = mlkt_int(&rng, 0, 3);
      if (what == GRAD_INPUT || i == 1) continue;
      other.before[axis] = mlkt_int(&rng, 0, 9);
      other.stride[axis] = mlkt_int(&rng, 1, 3);
      other.dilation[axis] = mlkt_int(&rng, 1, 3);
    }
    problem_shape(p, what, &other, &rng);
    fill(&p->x, SIGNED, &rng); /* the weights stay */
    fill(&p->y, SIGNED, &rng);
    reference(p);
    problem_layout(p, FORM_COUNT, &rng);
    problem_images(p);
    note_problem(p, "packed for another call", isa, 1, "");
    run_problem(p, ctx, &packed);
  }
  for (i = 0; i < 3 && what == GRAD_INPUT; i++) {
    other = *l;
    if (i == 0) other.stride[0]++;
    if (i == 1) other.dilation[0]++;
    if (i == 2 && other.stride[0] > 1) other.before[0]++;
    if (memcmp(&other, l, sizeof other) == 0) continue;
    problem_shape(p, what, &other, &rng);
    problem_layout(p, FORM_DENSE, &rng);
    refuse_packed(p, ctx, &packed, 0, i == 0 ? "stride differs" : i == 1 ? "dilation differs" : "pad_before differs");
  }
  /* and calls it was not made for */
  for (i = 0; i < 5; i++) {
    static const char *const why[] = {"C differs", "K differs", "groups differ", "a filter axis is longer",
                                      "a filter axis is shorter"};
    other = *l;
    if (i == 0) other.c += other.groups;
    if (i == 1) other.k += other.groups;
    if (i == 2) other.groups = l->groups == 1 && l->c % 2 == 0 && l->k % 2 == 0 ? 2 : 1;
    if (i == 3) other.filter[0]++, other.before[0]++;
    if (i == 4 && other.filter[0] > 1) other.filter[0]--;
    if (memcmp(&other, l, sizeof other) == 0) continue;
    if (i > 2) { /* with a stride, the handle's filter may give as many outputs: then the call is its own */
      layer with_handle = other;
      with_handle.filter[0] = l->filter[0];
      if (layer_out(&with_handle, 0) == layer_out(&other, 0)) continue;
    }
    problem_shape(p, what, &other, &rng);
    problem_layout(p, FORM_DENSE, &rng);
    refuse_packed(p, ctx, &packed, 1, why[i]);
  }
}

static void packing(void) {
  problem p;
  mlkt_buffer buffer = {NULL, 0, NULL, 0};
  int r, what, i;
  memset(&p, 0, sizeof p);
  crew_open();
  for (r = 0; r < crew.rows; r++)
    for (what = CONV; what <= GRAD_INPUT; what++)
      for (i = 0; i < 7 && !mlkt_hopeless(); i++) {
        layer l = layer_cube(2, 1, 12, 20, 1, 7, 3, 1, 1);
        if (crew.isas[r] == MLK_ISA_REFERENCE) continue;
        switch (i) {
        case 1: l = layer_cube(2, 1, 12, 20, 4, 7, 3, 1, 1); break;
        case 2: l = layer_cube(2, 1, 19, 19, 19, 8, 3, 1, 1); break;
        case 3: l = layer_cube(2, 1, 18, 18, 1, 6, 1, 1, 0); break;
        case 4: l = layer_cube(2, 1, 3, 33, 1, 12, 7, 2, 3); break;
        case 5: l = layer_cube(1, 1, 16, 16, 1, 30, 2, 1, 0), l.dilation[0] = 8; break;
        case 6: l = layer_cube(3, 1, 6, 10, 1, 5, 3, 2, 1); break;
        default: break;
        }
        packing_layer(&p, (op)what, &l, crew.isas[r], &buffer, (uint64_t)(i * OPS + what));
      }
  crew_close();
  mlkt_buffer_free(&buffer);
  problem_free(&p);
}

/* ---- bad arguments -------------------------------------------------------------------------------------------------------------- */

enum { BAD_ROOM = 4096 };
static float bad_x[BAD_ROOM], bad_w[BAD_ROOM], bad_y[BAD_ROOM], bad_bias[BAD_ROOM], bad_residual[BAD_ROOM],
    bad_preact[BAD_ROOM];

/* Runs one operator and its plan on desc, whatever its type. */
static mlk_status any_call(op what, mlk_context *ctx, const void *desc, mlk_plan *plan) {
  const mlk_conv_desc *conv = (const mlk_conv_desc *)desc;
  const mlk_conv_grad_input_desc *input = (const mlk_conv_grad_input_desc *)desc;
  const mlk_conv_grad_weights_desc *weights = (const mlk_conv_grad_weights_desc *)desc;
  if (what == CONV) return plan ? mlk_conv_plan(ctx, conv, plan) : mlk_conv(ctx, conv);
  if (what == GRAD_INPUT) return plan ? mlk_conv_grad_input_plan(ctx, input, plan) : mlk_conv_grad_input(ctx, input);
  return plan ? mlk_conv_grad_weights_plan(ctx, weights, plan) : mlk_conv_grad_weights(ctx, weights);
}

/* The operator must refuse desc with status, by a sentence that holds word and value; its outputs are bad_out and preact. */
static void expect_refusal(op what, mlk_context *ctx, const void *desc, mlk_status status, const char *word,
                           const char *value, const char *spoilt, int line) {
  const float *out = what == CONV ? bad_y : what == GRAD_INPUT ? bad_x : bad_w;
  mlk_plan plan, kept;
  mlkt_note("line %d: %s: %s", line, op_names[what], spoilt);
  memset(&plan, 0xFE, sizeof plan);
  memcpy(&kept, &plan, sizeof plan);
  CHECK_STATUS(ctx, any_call(what, ctx, desc, NULL), status);
  CHECK_MSG(has_word(mlk_last_error(ctx), word), "the sentence does not name %s: \"%s\"", word, mlk_last_error(ctx));
  if (value)
    CHECK_MSG(has_word(mlk_last_error(ctx), value), "the sentence does not tell %s: \"%s\"", value,
              mlk_last_error(ctx));
  CHECK_STATUS(ctx, any_call(what, ctx, desc, &plan), status);
  CHECK_MSG(memcmp(&plan, &kept, sizeof plan) == 0, "a refused plan was written");
  CHECK_MSG(mlkt_is_rogue_f32(out, BAD_ROOM) && mlkt_is_rogue_f32(bad_preact, BAD_ROOM),
            "a refused call wrote an output");
  CHECK_MSG(what != GRAD_WEIGHTS || mlkt_is_rogue_f32(bad_bias, BAD_ROOM), "a refused call wrote dbias");
}

#define BAD(spoil, status, word, value)                                                                                \
  do {                                                                                                                 \
    DESC desc = good;                                                                                                  \
    spoil;                                                                                                             \
    expect_refusal(WHAT, ctx, &desc, (status), (word), (value), #spoil, __LINE__);                                     \
  } while (0)

/* What all three refuse alike: X_ and Y_ are their names of the tensors of x's and y's shape. x [2, 6, 9, 7],
   w [8, 3, 3, 3], groups 2, stride 2 and 1, padding 1, y [2, 8, 5, 7]. */
#define BAD_GEOMETRIES(Y_NAME)                                                                                         \
  BAD(desc.geometry.stride[0] = -2, MLK_ERR_ARGUMENT, "stride", "-2");                                                 \
  BAD(desc.geometry.stride[1] = INT64_MIN, MLK_ERR_ARGUMENT, "stride", NULL);                                          \
  BAD(desc.geometry.stride[2] = 1, MLK_ERR_ARGUMENT, "stride", "1");                                                   \
  BAD(desc.geometry.dilation[0] = -1, MLK_ERR_ARGUMENT, "dilation", "-1");                                             \
  BAD(desc.geometry.dilation[2] = 1, MLK_ERR_ARGUMENT, "dilation", "1");                                               \
  BAD(desc.geometry.pad_before[0] = -1, MLK_ERR_ARGUMENT, "pad_before", "-1");                                         \
  BAD(desc.geometry.pad_before[2] = 3, MLK_ERR_ARGUMENT, "pad_before", "3");                                           \
  BAD(desc.geometry.pad_after[1] = -7, MLK_ERR_ARGUMENT, "pad_after", "-7");                                           \
  BAD(desc.geometry.pad_after[2] = -7, MLK_ERR_ARGUMENT, "pad_after", "-7");                                           \
  BAD(desc.geometry.groups = -2, MLK_ERR_ARGUMENT, "groups", "-2");                                                    \
  BAD(desc.geometry.groups = 4, MLK_ERR_SHAPE, "groups", "4"); /* divides K, not C */                                  \
  BAD(desc.geometry.groups = 5, MLK_ERR_SHAPE, "groups", "5");                                                         \
  BAD(desc.geometry.groups = 1000000, MLK_ERR_SHAPE, "groups", "1000000");                                             \
  BAD(desc.geometry.stride[0] = 1, MLK_ERR_SHAPE, Y_NAME, "5"); /* y no longer fits: 9 */                              \
  BAD(desc.geometry.stride[1] = 2, MLK_ERR_SHAPE, Y_NAME, "7");                                                        \
  BAD(desc.geometry.dilation[0] = 2, MLK_ERR_SHAPE, Y_NAME, "5");                                                      \
  BAD(desc.geometry.dilation[1] = 100, MLK_ERR_SHAPE, Y_NAME, "7");                                                    \
  BAD(desc.geometry.pad_before[0] = 3, MLK_ERR_SHAPE, Y_NAME, "5");                                                    \
  BAD(desc.geometry.pad_after[1] = 0, MLK_ERR_SHAPE, Y_NAME, "7");                                                     \
  BAD(desc.geometry.pad_after[0] = INT64_MAX, MLK_ERR_ARGUMENT, "pad_after", "9223372036854775807");                   \
  BAD(desc.geometry.pad_before[0] = INT64_C(1) << 31, MLK_ERR_ARGUMENT, "pad_before", "2147483648");                   \
  BAD(desc.geometry.stride[0] = INT64_C(1) << 40, MLK_ERR_ARGUMENT, "stride", "1099511627776");                        \
  BAD(desc.geometry.dilation[0] = INT64_MAX / 2, MLK_ERR_ARGUMENT, "dilation", "4611686018427387903");                 \
  BAD(desc.geometry.dilation[1] = (INT64_C(1) << 31) - 1, MLK_ERR_SHAPE, Y_NAME,                                       \
      "2147483647"); /* allowed, but too wide */                                                                       \
  BAD((desc.geometry.pad_before[0] = desc.geometry.pad_after[0] = (INT64_C(1) << 31) - 1), MLK_ERR_SHAPE, Y_NAME, "5")

/* A tensor: data, dtype, rank, negative and absurd sizes. */
#define BAD_TENSOR(FIELD, NAME)                                                                                        \
  BAD(desc.FIELD.dtype = MLK_I64, MLK_ERR_DTYPE, NAME, NULL);                                                          \
  BAD(desc.FIELD.dtype = -1, MLK_ERR_DTYPE, NAME, NULL);                                                               \
  BAD(desc.FIELD.rank = 7, MLK_ERR_SHAPE, NAME, "7");                                                                  \
  BAD(desc.FIELD.rank = 2, MLK_ERR_SHAPE, NAME, "2");                                                                  \
  BAD(desc.FIELD.rank = -1, MLK_ERR_SHAPE, NAME, NULL);                                                                \
  BAD(desc.FIELD.shape[0] = -2, MLK_ERR_SHAPE, NAME, "-2");                                                            \
  BAD((desc.FIELD.shape[0] = INT64_C(1) << 40, desc.FIELD.shape[1] = INT64_C(1) << 40), MLK_ERR_SIZE, NAME, NULL)

static mlk_conv_geometry bad_geometry(void) {
  mlk_conv_geometry g;
  memset(&g, 0, sizeof g);
  g.stride[0] = 2;
  g.pad_before[0] = g.pad_before[1] = g.pad_after[0] = g.pad_after[1] = 1;
  g.groups = 2;
  return g;
}

static void bad_memory(void) {
  size_t i;
  for (i = 0; i < BAD_ROOM; i++) bad_x[i] = bad_w[i] = bad_y[i] = bad_bias[i] = bad_residual[i] = 1.0f;
}

#define DESC mlk_conv_desc
#define WHAT CONV
static void bad_conv(void) {
  mlk_context *ctx = mlkt_open(MLK_ISA_BEST, 2);
  mlk_conv_desc good;
  if (!ctx) return;
  bad_memory();
  memset(&good, 0, sizeof good);
  good.x = mlk_f32(bad_x, 2, 6, 9, 7);
  good.w = mlk_f32(bad_w, 8, 3, 3, 3);
  good.y = mlk_f32(bad_y, 2, 8, 5, 7);
  good.bias = mlk_f32(bad_bias, 8);
  good.residual = mlk_f32(bad_residual, 2, 8, 5, 7);
  good.preact = mlk_f32(bad_preact, 2, 8, 5, 7);
  good.geometry = bad_geometry();
  CHECK_OK(ctx, mlk_conv(ctx, &good));
  mlkt_rogue_f32(bad_y, BAD_ROOM);
  mlkt_rogue_f32(bad_preact, BAD_ROOM);

  BAD(desc.x.data = NULL, MLK_ERR_ARGUMENT, "x", NULL);
  BAD(desc.w.data = NULL, MLK_ERR_ARGUMENT, "w", NULL);
  BAD(desc.y.data = NULL, MLK_ERR_ARGUMENT, "y", NULL);
  BAD(memset(&desc.x, 0, sizeof desc.x), MLK_ERR_ARGUMENT, "x", NULL);
  BAD(memset(&desc.w, 0, sizeof desc.w), MLK_ERR_ARGUMENT, "w", NULL);
  BAD(memset(&desc.y, 0, sizeof desc.y), MLK_ERR_ARGUMENT, "y", NULL);
  BAD_TENSOR(x, "x");
  BAD_TENSOR(w, "w");
  BAD_TENSOR(y, "y");
  BAD_TENSOR(residual, "residual");
  BAD_TENSOR(preact, "preact");
  BAD(desc.bias.dtype = MLK_I64, MLK_ERR_DTYPE, "bias", NULL);
  BAD(desc.bias.rank = 2, MLK_ERR_SHAPE, "bias", "2");
  BAD(desc.bias.shape[0] = 7, MLK_ERR_SHAPE, "bias", "7");
  BAD(desc.bias.shape[0] = 1, MLK_ERR_SHAPE, "bias", "1"); /* nothing broadcasts */

  BAD(desc.x = mlk_f32(bad_x, 2, 6, 9, 7, 1), MLK_ERR_SHAPE, "x", "5"); /* y's rank rules */
  BAD(desc.w.shape[2] = 0, MLK_ERR_SHAPE, "w", "0");
  BAD(desc.w.shape[0] = 10, MLK_ERR_SHAPE, "y", "8");
  BAD(desc.w.shape[1] = 6, MLK_ERR_SHAPE, "w", "6");
  BAD(desc.w.shape[1] = 1, MLK_ERR_SHAPE, "w", "1");
  BAD(desc.w.shape[2] = 5, MLK_ERR_SHAPE, "y", "5");
  BAD(desc.x.shape[1] = 8, MLK_ERR_SHAPE, "w", "3");
  BAD(desc.x.shape[2] = 12, MLK_ERR_SHAPE, "y", "5");
  BAD(desc.y.shape[0] = 1, MLK_ERR_SHAPE, "y", "1");
  BAD(desc.y.shape[1] = 7, MLK_ERR_SHAPE, "y", "7");
  BAD(desc.y.shape[2] = 4, MLK_ERR_SHAPE, "y", "4");
  BAD(desc.y.shape[3] = 8, MLK_ERR_SHAPE, "y", "8");
  BAD(desc.residual.shape[0] = 1, MLK_ERR_SHAPE, "residual", "1");
  BAD(desc.residual.shape[3] = 6, MLK_ERR_SHAPE, "residual", NULL);
  BAD(desc.preact.shape[1] = 9, MLK_ERR_SHAPE, "preact", NULL);
  BAD((desc.y = mlk_with_row_stride(desc.y, 7), desc.y.stride[3] = 0), MLK_ERR_SHAPE, "y", NULL);
  BAD(desc.y = mlk_with_row_stride(desc.y, 6), MLK_ERR_SHAPE, "y", "6");
  BAD(desc.preact = mlk_with_row_stride(desc.preact, 3), MLK_ERR_SHAPE, "preact", "3");
  BAD(desc.activation = MLK_ACTIVATION_COUNT, MLK_ERR_ARGUMENT, "activation", "7");
  BAD_GEOMETRIES("y");

  mlkt_note("%s", "the context must still work");
  CHECK_OK(ctx, mlk_conv(ctx, &good));
  CHECK(!mlkt_is_rogue_f32(bad_y, 1));
  mlk_close(ctx);
}
#undef DESC
#undef WHAT

#define DESC mlk_conv_grad_input_desc
#define WHAT GRAD_INPUT
static void bad_grad_input(void) {
  mlk_context *ctx = mlkt_open(MLK_ISA_BEST, 2);
  mlk_conv_grad_input_desc good;
  if (!ctx) return;
  bad_memory();
  memset(&good, 0, sizeof good);
  good.dy = mlk_f32(bad_y, 2, 8, 5, 7);
  good.w = mlk_f32(bad_w, 8, 3, 3, 3);
  good.dx = mlk_f32(bad_x, 2, 6, 9, 7);
  good.bias = mlk_f32(bad_bias, 6);
  good.residual = mlk_f32(bad_residual, 2, 6, 9, 7);
  good.preact = mlk_f32(bad_preact, 2, 6, 9, 7);
  good.geometry = bad_geometry();
  CHECK_OK(ctx, mlk_conv_grad_input(ctx, &good));
  mlkt_rogue_f32(bad_x, BAD_ROOM);
  mlkt_rogue_f32(bad_preact, BAD_ROOM);

  BAD(desc.dy.data = NULL, MLK_ERR_ARGUMENT, "dy", NULL);
  BAD(desc.w.data = NULL, MLK_ERR_ARGUMENT, "w", NULL);
  BAD(desc.dx.data = NULL, MLK_ERR_ARGUMENT, "dx", NULL);
  BAD_TENSOR(dy, "dy");
  BAD_TENSOR(w, "w");
  BAD_TENSOR(dx, "dx");
  BAD_TENSOR(residual, "residual");
  BAD_TENSOR(preact, "preact");
  BAD(desc.bias.shape[0] = 8, MLK_ERR_SHAPE, "bias", "8"); /* C, not K */
  BAD(desc.bias.rank = 3, MLK_ERR_SHAPE, "bias", "3");

  BAD(desc.w.shape[0] = 10, MLK_ERR_SHAPE, "dy", "8");
  BAD(desc.w.shape[1] = 6, MLK_ERR_SHAPE, "w", "6");
  BAD(desc.dy.shape[0] = 3, MLK_ERR_SHAPE, "dy", "3");
  BAD(desc.dy.shape[1] = 4, MLK_ERR_SHAPE, "dy", "4");
  BAD(desc.dy.shape[2] = 6, MLK_ERR_SHAPE, "dy", "6");
  BAD(desc.dx.shape[1] = 8, MLK_ERR_SHAPE, "w", "3");
  BAD(desc.dx.shape[2] = 11, MLK_ERR_SHAPE, "dy", "5"); /* 9 and 10 have 5 outputs: output padding 0 and 1 */
  BAD(desc.dx.shape[2] = 8, MLK_ERR_SHAPE, "dy", "5");
  BAD(desc.residual.shape[2] = 8, MLK_ERR_SHAPE, "residual", NULL);
  BAD(desc.preact.shape[3] = 8, MLK_ERR_SHAPE, "preact", NULL);
  BAD(desc.dx = mlk_with_row_stride(desc.dx, 6), MLK_ERR_SHAPE, "dx", "6");
  BAD(desc.activation = MLK_ACTIVATION_COUNT, MLK_ERR_ARGUMENT, "activation", "7");
  BAD_GEOMETRIES("dy");

  mlkt_note("%s", "the context must still work, with output padding as well");
  CHECK_OK(ctx, mlk_conv_grad_input(ctx, &good));
  CHECK(!mlkt_is_rogue_f32(bad_x, 1));
  good.dx.shape[2] = 10;
  memset(&good.residual, 0, sizeof good.residual);
  memset(&good.preact, 0, sizeof good.preact);
  CHECK_OK(ctx, mlk_conv_grad_input(ctx, &good));
  mlk_close(ctx);
}
#undef DESC
#undef WHAT

#define DESC mlk_conv_grad_weights_desc
#define WHAT GRAD_WEIGHTS
static void bad_grad_weights(void) {
  mlk_context *ctx = mlkt_open(MLK_ISA_BEST, 2);
  mlk_conv_grad_weights_desc good;
  if (!ctx) return;
  bad_memory();
  memset(&good, 0, sizeof good);
  good.x = mlk_f32(bad_x, 2, 6, 9, 7);
  good.dy = mlk_f32(bad_y, 2, 8, 5, 7);
  good.dw = mlk_f32(bad_w, 8, 3, 3, 3);
  good.dbias = mlk_f32(bad_bias, 8);
  good.geometry = bad_geometry();
  CHECK_OK(ctx, mlk_conv_grad_weights(ctx, &good));
  mlkt_rogue_f32(bad_w, BAD_ROOM);
  mlkt_rogue_f32(bad_bias, BAD_ROOM);
  mlkt_rogue_f32(bad_preact, BAD_ROOM); /* no operand: expect_refusal looks at it */

  BAD(desc.x.data = NULL, MLK_ERR_ARGUMENT, "x", NULL);
  BAD(desc.dy.data = NULL, MLK_ERR_ARGUMENT, "dy", NULL);
  BAD((desc.dw.data = NULL, desc.dbias.data = NULL), MLK_ERR_ARGUMENT, "dw", NULL);
  BAD_TENSOR(x, "x");
  BAD_TENSOR(dy, "dy");
  BAD_TENSOR(dw, "dw");
  BAD(desc.dbias.dtype = MLK_I64, MLK_ERR_DTYPE, "dbias", NULL);
  BAD(desc.dbias.shape[0] = 6, MLK_ERR_SHAPE, "dbias", "6");
  BAD(desc.dbias.rank = 2, MLK_ERR_SHAPE, "dbias", "2");

  BAD(desc.dw.shape[0] = 10, MLK_ERR_SHAPE, "dy", "8");
  BAD(desc.dw.shape[1] = 6, MLK_ERR_SHAPE, "dw", "6");
  BAD(desc.dw.shape[2] = 5, MLK_ERR_SHAPE, "dy", "5");
  BAD(desc.dw.shape[3] = 0, MLK_ERR_SHAPE, "dw", "0");
  BAD(desc.x.shape[1] = 8, MLK_ERR_SHAPE, "dw", "3");
  BAD(desc.dy.shape[0] = 3, MLK_ERR_SHAPE, "dy", "3");
  BAD(desc.dy.shape[1] = 6, MLK_ERR_SHAPE, "dy", "6");
  BAD(desc.dy.shape[3] = 8, MLK_ERR_SHAPE, "dy", "8");
  BAD(desc.dw = mlk_with_row_stride(desc.dw, 2), MLK_ERR_SHAPE, "dw", "2");
  BAD((desc.dbias = mlk_transposed(mlk_transposed(desc.dbias)), desc.dbias.rank = 2, desc.dbias.shape[1] = 3),
      MLK_ERR_SHAPE, "dbias", "2");
  BAD_GEOMETRIES("dy");

  mlkt_note("%s", "the context must still work");
  CHECK_OK(ctx, mlk_conv_grad_weights(ctx, &good));
  CHECK(!mlkt_is_rogue_f32(bad_w, 1) && !mlkt_is_rogue_f32(bad_bias, 1));
  mlk_close(ctx);
}
#undef DESC
#undef WHAT

/* ---- aliasing --------------------------------------------------------------------------------------------------------------------- */

static float alias_memory[4000];

static void refuse_alias(op what, mlk_context *ctx, const void *desc, const char *word, int line) {
  static float kept[4000];
  mlkt_note("%s, line %d", op_names[what], line);
  memcpy(kept, alias_memory, sizeof kept);
  CHECK_STATUS(ctx, any_call(what, ctx, desc, NULL), MLK_ERR_ALIAS);
  CHECK_MSG(has_word(mlk_last_error(ctx), word), "the sentence does not name %s: \"%s\"", word, mlk_last_error(ctx));
  CHECK_MSG(memcmp(kept, alias_memory, sizeof kept) == 0, "a refused call wrote memory");
}

#define REFUSE(spoil, word)                                                                                            \
  do {                                                                                                                 \
    DESC desc = good;                                                                                                  \
    spoil;                                                                                                             \
    refuse_alias(WHAT, ctx, &desc, word, __LINE__);                                                                    \
  } while (0)
#define ACCEPT(change)                                                                                                 \
  do {                                                                                                                 \
    DESC desc = good;                                                                                                  \
    change;                                                                                                            \
    mlkt_note("%s, line %d", op_names[WHAT], __LINE__);                                                                \
    CHECK_OK(ctx, any_call(WHAT, ctx, &desc, NULL));                                                                   \
  } while (0)

/* x [1, 4, 5, 5] of 100 elements, w [4, 4, 1, 1] of 16, y like x, all inside one block of memory or outside it. */
static void aliasing(void) {
  float *m = alias_memory;
  static float x[100], w[16], y[100], b[4];
  mlk_context *ctx = mlkt_open(MLK_ISA_BEST, 2);
  size_t i;
  if (!ctx) return;
  for (i = 0; i < 4000; i++) alias_memory[i] = (float)(i % 7);
  for (i = 0; i < 100; i++) x[i] = y[i] = (float)(i % 5), w[i % 16] = (float)(i % 3);
#define DESC mlk_conv_desc
#define WHAT CONV
  {
    mlk_conv_desc good;
    memset(&good, 0, sizeof good);
    good.x = mlk_f32(x, 1, 4, 5, 5);
    good.w = mlk_f32(w, 4, 4, 1, 1);
    good.y = mlk_f32(m + 1000, 1, 4, 5, 5);
    REFUSE(desc.x = desc.y, "x"); /* even where a filter of 1x1 might do without */
    REFUSE(desc.x = mlk_f32(m + 1099, 1, 4, 5, 5), "x");
    REFUSE(desc.x = mlk_f32(m + 901, 1, 4, 5, 5), "x");
    REFUSE(desc.w = mlk_f32(m + 1084, 4, 4, 1, 1), "w");
    REFUSE(desc.bias = mlk_f32(m + 997, 4), "bias");
    REFUSE(desc.residual = mlk_f32(m + 1001, 1, 4, 5, 5), "residual");
    REFUSE(desc.residual = mlk_channels_last(mlk_f32(m + 1000, 1, 5, 5, 4)), "residual"); /* y, but not its strides */
    REFUSE(desc.preact = desc.y, "preact");
    REFUSE(desc.preact = mlk_f32(m + 1050, 1, 4, 5, 5), "preact");
    REFUSE(desc.preact = desc.x, "preact");
    REFUSE((desc.residual = mlk_f32(m, 1, 4, 5, 5), desc.preact = desc.residual), "preact");
    REFUSE((desc.bias = mlk_f32(m, 4), desc.preact = mlk_f32(m, 1, 4, 5, 5)), "preact");
    ACCEPT(desc.x = mlk_f32(m + 1100, 1, 4, 5, 5)); /* right behind */
    ACCEPT(desc.x = mlk_f32(m + 900, 1, 4, 5, 5));  /* right before */
    ACCEPT(desc.residual = desc.y);
    ACCEPT(desc.residual = mlk_transposed(mlk_transposed(desc.y))); /* the same strides, spelled out */
    ACCEPT(desc.residual = desc.x);                                 /* inputs may be one */
    ACCEPT((desc.bias = mlk_f32(w, 4), desc.residual = desc.x));
    /* channels of one wider tensor: x reads 4 of 8, y writes the other 4 */
    ACCEPT((desc.x = mlk_slice(mlk_channels_last(mlk_f32(m, 1, 5, 5, 8)), 1, 0, 4),
            desc.y = mlk_slice(mlk_channels_last(mlk_f32(m, 1, 5, 5, 8)), 1, 4, 4)));
    REFUSE((desc.x = mlk_slice(mlk_channels_last(mlk_f32(m, 1, 5, 5, 8)), 1, 1, 4),
            desc.y = mlk_slice(mlk_channels_last(mlk_f32(m, 1, 5, 5, 8)), 1, 4, 4)),
           "x");
  }
#undef DESC
#undef WHAT
#define DESC mlk_conv_grad_input_desc
#define WHAT GRAD_INPUT
  {
    mlk_conv_grad_input_desc good;
    memset(&good, 0, sizeof good);
    good.dy = mlk_f32(y, 1, 4, 5, 5);
    good.w = mlk_f32(w, 4, 4, 1, 1);
    good.dx = mlk_f32(m + 1000, 1, 4, 5, 5);
    REFUSE(desc.dy = desc.dx, "dy");
    REFUSE(desc.dy = mlk_f32(m + 1099, 1, 4, 5, 5), "dy");
    REFUSE(desc.w = mlk_f32(m + 985, 4, 4, 1, 1), "w");
    REFUSE(desc.bias = mlk_f32(m + 1096, 4), "bias");
    REFUSE(desc.residual = mlk_f32(m + 999, 1, 4, 5, 5), "residual");
    REFUSE(desc.preact = desc.dx, "preact");
    REFUSE(desc.preact = desc.dy, "preact");
    ACCEPT(desc.residual = desc.dx);
    ACCEPT(desc.residual = desc.dy);
    ACCEPT(desc.dy = mlk_f32(m + 1100, 1, 4, 5, 5));
  }
#undef DESC
#undef WHAT
#define DESC mlk_conv_grad_weights_desc
#define WHAT GRAD_WEIGHTS
  {
    mlk_conv_grad_weights_desc good;
    memset(&good, 0, sizeof good);
    good.x = mlk_f32(x, 1, 4, 5, 5);
    good.dy = mlk_f32(y, 1, 4, 5, 5);
    good.dw = mlk_f32(m + 1000, 4, 4, 1, 1);
    good.dbias = mlk_f32(b, 4);
    REFUSE(desc.x = mlk_f32(m + 1015, 1, 4, 5, 5), "x");
    REFUSE(desc.dy = mlk_f32(m + 901, 1, 4, 5, 5), "dy");
    REFUSE(desc.dbias = mlk_f32(m + 1012, 4), "dbias");
    REFUSE((desc.dbias = mlk_f32(m, 4), desc.x = mlk_f32(m, 1, 4, 5, 5)), "dbias");
    REFUSE((desc.dbias = mlk_f32(m, 4), desc.dy = mlk_f32(m + 3, 1, 4, 5, 5)), "dbias");
    ACCEPT(desc.dy = desc.x);
    ACCEPT(desc.dbias = mlk_f32(m + 1016, 4));
    ACCEPT((desc.x = mlk_f32(m + 1016, 1, 4, 5, 5), desc.dy = mlk_f32(m + 900, 1, 4, 5, 5)));
  }
#undef DESC
#undef WHAT
  mlk_close(ctx);
}

/* ---- plans, memory ------------------------------------------------------------------------------------------------------------- */

/* One layer on a fresh context: exact flops and bytes, the plan's workspace and not a byte more, a workspace that is fixed and
   one byte too small, every allocation failing in turn. */
static void plan_layer(problem *p, mlk_isa isa, int threads, int fail) {
  operand *const all[] = {&p->x, &p->w, &p->y, &p->bias, &p->residual, &p->preact};
  const operand *out = problem_out(p);
  mlk_context_desc context = mlkt_context_desc(isa, threads);
  mlkt_memory memory;
  mlk_context *ctx = NULL;
  mlk_plan plan;
  mlk_info info;
  uint64_t opened, calls, elements = 0, flops, number;
  char size[32];
  int i;
  for (i = 0; i < 6; i++) elements += all[i]->present ? all[i]->count : 0;
  if (p->residual_is_out || (p->beta && *p->beta != 0))
    elements += out->count * (1 + (uint64_t)(p->residual_is_out && p->beta && *p->beta != 0));
  if (p->what == GRAD_WEIGHTS && p->bias.present && p->beta && *p->beta != 0) elements += p->bias.count;
  flops = p->w.present || p->what != GRAD_WEIGHTS
              ? 2 * p->y.count * (uint64_t)(p->l.c / p->l.groups * p->l.filter[0] * p->l.filter[1] * p->l.filter[2])
              : 0;
  if (p->what == GRAD_WEIGHTS && p->bias.present) flops += p->y.count;
  memset(&memory, 0, sizeof memory);
  context.allocator = mlkt_memory_hook(&memory);
  if (!CHECK_STATUS(NULL, mlk_open(&ctx, &context), MLK_OK)) return;
  opened = memory.live_bytes;
  calls = memory.calls;
  memset(&plan, 0xFE, sizeof plan);
  if (CHECK_OK(ctx, call_plan(p, ctx, NULL, &plan))) {
    CHECK_EQ_I64(plan.flops, flops);
    CHECK_EQ_I64(plan.bytes, 4 * elements);
    CHECK_EQ_STR(plan.backend, "cpu");
    CHECK_EQ_STR(plan.isa, mlk_isa_name(isa));
    CHECK(plan.variant && plan.variant[0]);
    CHECK(plan.threads >= 1 && plan.threads <= threads);
    CHECK(plan.seconds == 0);
    CHECK_EQ_I64(memory.calls, calls);
    run_problem(p, ctx, NULL);
    CHECK_EQ_I64(memory.live_bytes - opened, plan.workspace_bytes);
    CHECK_EQ_I64(memory.peak_bytes - opened, plan.workspace_bytes);
    calls = memory.calls;
    run_problem(p, ctx, NULL); /* with a used workspace */
    CHECK_EQ_I64(memory.calls, calls);
  }
  mlk_close(ctx);
  CHECK_MEMORY_EMPTY(&memory);
  if (!fail || plan.workspace_bytes == 0) return;

  context.growth = MLK_FIXED;
  if (CHECK_STATUS(NULL, mlk_open(&ctx, &context), MLK_OK)) {
    CHECK_OK(ctx, mlk_reserve(ctx, plan.workspace_bytes - 1, MLK_FIXED));
    CHECK_OK(ctx, mlk_get_info(ctx, &info));
    if (info.workspace_bytes < plan.workspace_bytes) {
      reset_outputs(p);
      CHECK_STATUS(ctx, call(p, ctx, NULL), MLK_ERR_WORKSPACE);
      snprintf(size, sizeof size, "%" PRIu64, plan.workspace_bytes);
      CHECK_MSG(strstr(mlk_last_error(ctx), size) != NULL, "the sentence does not tell %s: \"%s\"", size,
                mlk_last_error(ctx));
      if (!reads_out(p) && out->present)
        CHECK_MSG(mlkt_is_rogue_f32(mlkt_buffer_f32(&out->buffer), out->span), "a refused call wrote its output");
    }
    CHECK_OK(ctx, mlk_reserve(ctx, plan.workspace_bytes, MLK_FIXED));
    calls = memory.calls;
    run_problem(p, ctx, NULL);
    CHECK_EQ_I64(memory.calls, calls);
    mlk_close(ctx);
  }
  CHECK_MEMORY_EMPTY(&memory);

  context.growth = MLK_GROWS;
  for (number = 1; number < 100; number++) {
    memset(&memory, 0, sizeof memory);
    if (!CHECK_STATUS(NULL, mlk_open(&ctx, &context), MLK_OK)) break;
    memory.fail_at = memory.calls + number;
    reset_outputs(p);
    if (call(p, ctx, NULL) == MLK_OK) {
      CHECK_EQ_I64(memory.failed, 0);
    } else {
      CHECK_EQ_I64(memory.failed, 1);
      CHECK_MSG(mlk_last_error(ctx)[0] != 0, "failed without a sentence");
      if (!reads_out(p) && out->present)
        CHECK_MSG(mlkt_is_rogue_f32(mlkt_buffer_f32(&out->buffer), out->span), "a failed call wrote its output");
      run_problem(p, ctx, NULL); /* memory is back */
    }
    mlk_close(ctx);
    CHECK_MEMORY_EMPTY(&memory);
    if (!memory.failed) break;
  }
  CHECK_MSG(number > 1 && number < 100, "with a workspace, some allocation must have failed");
}

static void plans(void) {
  problem p;
  mlk_isa isas[MLK_ISA_COUNT];
  const int count = mlkt_isas(isas);
  uint64_t index;
  memset(&p, 0, sizeof p);
  for (index = 0; index < 500 && !mlkt_hopeless(); index++) {
    mlkt_rng rng = point_rng(index);
    const mlk_isa isa = index % 16 == 5 ? MLK_ISA_REFERENCE : isas[index % (uint64_t)count];
    const int threads = isa == MLK_ISA_REFERENCE ? 1 : 1 + (int)(index / 3 % (uint64_t)mlkt_opt.threads_max);
    const layer l = layer_random(&rng, index % 8 ? 3e4 : 2e6);
    if (!mlkt_keep(index)) continue;
    problem_shape(&p, (op)(index / 5 % OPS), &l, &rng);
    problem_epilogue(&p, &rng);
    if (p.alpha && *p.alpha == 0) p.alpha = NULL; /* x and w are not read then */
    problem_fill(&p, INTEGERS, &rng);
    reference(&p);
    problem_layout(&p, FORM_COUNT, &rng);
    problem_images(&p);
    note_problem(&p, "plan", isa, threads, "");
    plan_layer(&p, isa, threads, index % 3 == 0);
  }
  problem_free(&p);
}

/* Operands need not be there for a plan, and workspace does not grow with the images: there is no im2col buffer. */
static void plans_of_large_layers(void) {
  float *nowhere = (float *)(uintptr_t)4096;
  mlk_context *ctx = mlkt_open(MLK_ISA_BEST, 2);
  int n, last;
  if (!ctx) return;
  for (last = 0; last < 2; last++)
    for (n = 1; n <= 1024; n *= 32) {
      const uint64_t macs = (uint64_t)n * 64 * 64 * 9 * 56 * 56, image = (uint64_t)n * 64 * 56 * 56;
      const mlk_tensor image_view = last ? mlk_channels_last(mlk_f32(nowhere, n, 56, 56, 64))
                                         : mlk_f32(nowhere, n, 64, 56, 56);
      mlk_conv_desc conv;
      mlk_conv_grad_input_desc input;
      mlk_conv_grad_weights_desc weights;
      mlk_plan plan[OPS];
      int what;
      memset(&conv, 0, sizeof conv);
      memset(&input, 0, sizeof input);
      memset(&weights, 0, sizeof weights);
      conv.x = conv.y = input.dx = input.dy = weights.x = weights.dy = image_view;
      conv.w = input.w = weights.dw = mlk_f32(nowhere, 64, 64, 3, 3);
      conv.geometry.pad_before[0] = conv.geometry.pad_before[1] = 1;
      conv.geometry.pad_after[0] = conv.geometry.pad_after[1] = 1;
      input.geometry = weights.geometry = conv.geometry;
      memset(plan, 0, sizeof plan);
      CHECK_OK(ctx, mlk_conv_plan(ctx, &conv, &plan[CONV]));
      CHECK_OK(ctx, mlk_conv_grad_input_plan(ctx, &input, &plan[GRAD_INPUT]));
      CHECK_OK(ctx, mlk_conv_grad_weights_plan(ctx, &weights, &plan[GRAD_WEIGHTS]));
      for (what = 0; what < OPS; what++) {
        mlkt_note("%s of %d images, channels %s", op_names[what], n, last ? "last" : "first");
        CHECK_EQ_I64(plan[what].flops, 2 * macs);
        CHECK_EQ_I64(plan[what].bytes, 4 * (2 * image + 64 * 64 * 9));
        CHECK_MSG(plan[what].workspace_bytes < UINT64_C(24) << 20, "%" PRIu64 " bytes of workspace",
                  plan[what].workspace_bytes); /* the im2col matrix of one image has 7 MB, of 1024 images 7 GB */
      }
    }
  mlk_close(ctx);
}

/* Sizes whose products do not fit are refused, whatever the geometry adds to them; the plan tells the figures that do. */
static void sizes(void) {
  static const int64_t edges[] = {
      0, 1, 3, 65536, INT64_C(2147483648), INT64_C(4294967297), INT64_C(1) << 40, INT64_C(1) << 61, INT64_MAX, -1};
  enum { EDGES = (int)(sizeof edges / sizeof edges[0]) };
  float *nowhere = (float *)(uintptr_t)4096;
  mlk_context *ctx = mlkt_open(MLK_ISA_BEST, 2);
  int i, j, q, what, accepted = 0;
  if (!ctx) return;
  for (i = 0; i < EDGES; i++)
    for (j = 0; j < EDGES; j++)
      for (q = 0; q < EDGES && !mlkt_hopeless(); q++) {
        const int64_t n = edges[i], channels = edges[j], in = edges[q];
        const double elements = (double)n * (double)channels * (double)in, work = 2.0 * elements * (double)channels * 3;
        const double most = (double)(n > 1 ? n : 1) * (double)(channels > 1 ? channels : 1) * (double)(in > 1 ? in : 1);
        const int negative = n < 0 || channels < 0 || in < 0;
        mlk_conv_desc conv;
        mlk_conv_grad_input_desc input;
        mlk_conv_grad_weights_desc weights;
        memset(&conv, 0, sizeof conv);
        memset(&input, 0, sizeof input);
        memset(&weights, 0, sizeof weights);
        conv.x = conv.y = input.dx = input.dy = weights.x = weights.dy = mlk_f32(nowhere, n, channels, in);
        conv.w = input.w = weights.dw = mlk_f32(nowhere, channels, channels, 3);
        conv.geometry.pad_before[0] = conv.geometry.pad_after[0] = 1;
        input.geometry = weights.geometry = conv.geometry;
        for (what = 0; what < OPS; what++) {
          const void *desc = what == CONV         ? (const void *)&conv
                             : what == GRAD_INPUT ? (const void *)&input
                                                  : (const void *)&weights;
          mlk_plan plan;
          const mlk_status status = any_call((op)what, ctx, desc, &plan);
          mlkt_note("%s: n %" PRId64 ", channels %" PRId64 ", in %" PRId64, op_names[what], n, channels, in);
          if (negative)
            CHECK_STATUS(ctx, status, status == MLK_ERR_SIZE ? MLK_ERR_SIZE : MLK_ERR_SHAPE);
          else if (status == MLK_OK) {
            CHECK_MSG(work < 1.9e19 && elements < 2.4e18, "figures that do not fit were accepted");
            CHECK_MSG(fabs((double)plan.flops - work) <= 1e-9 * work, "flops %" PRIu64 ", expected %g", plan.flops,
                      work);
            accepted++;
          } else {
            CHECK_STATUS(ctx, status, MLK_ERR_SIZE);
            CHECK_MSG(work >= 4e18 || most >= 5e17 || channels >= INT64_C(1) << 30, "sizes that fit were refused: %s",
                      mlk_last_error(ctx));
            CHECK_STATUS(ctx, any_call((op)what, ctx, desc, NULL), MLK_ERR_SIZE); /* before memory is touched */
          }
        }
      }
  CHECK(accepted > 100);
  mlk_close(ctx);
}

/* ---- strides beyond 2^31 elements -------------------------------------------------------------------------------- */

/* Operands with one axis whose elements lie more than 2^31 elements apart, forwards or backwards, in reserved memory of which
   only a few pages are touched. */
static void far_strides(void) {
#if MLKT_POSIX && defined(MAP_NORESERVE) && UINTPTR_MAX > 0xFFFFFFFFu
  enum { SIZE = 3 };
  const int64_t far_apart = (INT64_C(1) << 31) + 7;
  const size_t bytes = (size_t)far_apart * 4 * SIZE;
  float *where[3];
  problem p;
  uint64_t index;
  int i, j, r;
  for (i = 0; i < 3; i++) {
    where[i] = (float *)mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (where[i] == (float *)MAP_FAILED) {
      while (i-- > 0) munmap(where[i], bytes);
      mlkt_skip("no %lu bytes of address space", (unsigned long)bytes);
      return;
    }
  }
  memset(&p, 0, sizeof p);
  crew_open();
  for (index = 0; index < 96 && !mlkt_hopeless(); index++) {
    mlkt_rng rng = point_rng(index);
    layer l = layer_cube(2, SIZE, SIZE, SIZE, index / 3 % 2 ? SIZE : 1, SIZE, SIZE, 1, 1);
    operand *const all[] = {&p.x, &p.w, &p.y};
    operand *out;
    if (!mlkt_keep(index)) continue;
    if (index / 6 % 4 == 3) l = layer_cube(2, SIZE, SIZE, SIZE, 1, SIZE, 1, 1, 0);
    problem_shape(&p, (op)(index % OPS), &l, &rng);
    problem_fill(&p, INTEGERS, &rng);
    reference(&p);
    for (i = 0; i < 3; i++) {
      const int axis = (int)mlkt_int(&rng, 0, 3), backwards = (int)mlkt_int(&rng, 0, 1);
      int64_t step = 1;
      memset(&all[i]->view, 0, sizeof all[i]->view);
      all[i]->view.dtype = MLK_F32;
      all[i]->view.rank = 4;
      memset(all[i]->stride, 0, sizeof all[i]->stride);
      for (j = 3; j >= 0; j--) {
        const int64_t size = all[i]->shape[j];
        all[i]->view.shape[j] = size;
        all[i]->view.stride[j] = all[i]->stride[j] = j == axis ? (backwards ? -far_apart : far_apart) : step;
        if (j != axis) step *= size;
      }
      all[i]->first = where[i] + (backwards ? (all[i]->shape[axis] - 1) * far_apart : 0);
      all[i]->view.data = all[i]->first;
      operand_move(all[i], all[i]->dense, all[i]->first, 1);
    }
    out = problem_out(&p);
    for (r = 0; r < crew.rows; r++) {
      mlk_context *ctx = crew_get(crew.isas[r], 2);
      float got[SIZE * SIZE * SIZE * SIZE];
      if (!ctx) continue;
      note_problem(&p, "far strides", crew.isas[r], 2, "");
      mlkt_rogue_f32(got, out->count);
      operand_move(out, got, out->first, 1);
      CHECK_OK(ctx, call(&p, ctx, NULL));
      operand_move(out, got, out->first, 0);
      CHECK_BITS_F32_N(got, p.want, out->count);
    }
  }
  crew_close();
  problem_free(&p);
  for (i = 0; i < 3; i++) munmap(where[i], bytes);
#else
  mlkt_skip("needs mmap with MAP_NORESERVE and 64-bit addresses");
#endif
}

const mlkt_case mlkt_conv_cases[] = {{"conv/sweep", sweep_conv},
                                     {"conv/sweep_grad_input", sweep_grad_input},
                                     {"conv/sweep_grad_weights", sweep_grad_weights},
                                     {"conv/geometries", geometries},
                                     {"conv/channel_edges", channel_edges},
                                     {"conv/repeated_inputs", repeated_inputs},
                                     {"conv/bits_across_threads", bits_across_threads},
                                     {"conv/network_layers", network_layers},
                                     {"conv/batch_position", batch_position},
                                     {"conv/pointwise_is_matmul", pointwise_is_matmul},
                                     {"conv/padding_takes_part", padding_takes_part},
                                     {"conv/error_bound", error_bound},
                                     {"conv/adjoints", adjoints},
                                     {"conv/finite_differences", finite_differences},
                                     {"conv/epilogues", epilogues},
                                     {"conv/not_read", not_read},
                                     {"conv/one_gradient_only", one_gradient_only},
                                     {"conv/packing", packing},
                                     {"conv/bad_conv", bad_conv},
                                     {"conv/bad_grad_input", bad_grad_input},
                                     {"conv/bad_grad_weights", bad_grad_weights},
                                     {"conv/aliasing", aliasing},
                                     {"conv/plans", plans},
                                     {"conv/plans_of_large_layers", plans_of_large_layers},
                                     {"conv/sizes", sizes},
                                     {"conv/far_strides", far_strides},
                                     {NULL, NULL}};
