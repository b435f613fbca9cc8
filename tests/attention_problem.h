/* attention_problem.h - a call of attention or of its gradient, with its operands in guarded memory and an oracle
   written from mlk.h's declarations alone: plain loops over sequences, heads, queries and keys, in double and once more
   in float, the naive form that the library's error is measured against. */

#ifndef MLK_ATTENTION_PROBLEM_H
#define MLK_ATTENTION_PROBLEM_H

#include "crew.h"

#include <float.h>
#include <math.h>
#include <stdio.h>

/* ---- operands: values in a dense array, and the same values laid out in guarded memory --------------------------- */

enum { AXES = 4 };

typedef struct operand {
  int present, rank;
  mlk_dtype dtype;
  size_t width;         /* bytes of an element */
  int64_t shape[AXES];  /* 1 beyond rank */
  int64_t stride[AXES]; /* in the buffer */
  unsigned char *dense; /* the values, row-major: what an input holds, what an output must become */
  size_t count, dense_room;
  mlkt_buffer buffer; /* span elements: not one more than the view reaches */
  size_t span;
  unsigned char *image; /* what the buffer must hold after a call */
  size_t image_room;
  unsigned char *first; /* element (0, 0, ...) */
  mlk_tensor view;
  /* of outputs, one for each element: the exact value, the sum of the absolute values of what it is a sum of, how far a
     result may be off, and the naive float form */
  double *exact, *gauge, *bound;
  float *naive;
  size_t exact_room, gauge_room, bound_room, naive_room;
} operand;

static inline float *f32_of(const operand *o) { return (float *)(void *)o->dense; }
static inline int64_t *i64_of(const operand *o) { return (int64_t *)(void *)o->dense; }

static inline size_t dtype_bytes(mlk_dtype dtype) {
  return dtype == MLK_F32 ? 4 : dtype == MLK_I64 ? 8 : dtype == MLK_U8 ? 1 : 2;
}

static inline void operand_shape(operand *o, mlk_dtype dtype, int rank, int64_t s0, int64_t s1, int64_t s2,
                                 int64_t s3) {
  int i;
  o->present = 1;
  o->rank = rank;
  o->dtype = dtype;
  o->width = dtype_bytes(dtype);
  o->shape[0] = s0, o->shape[1] = s1, o->shape[2] = s2, o->shape[3] = s3;
  o->count = 1;
  for (i = 0; i < AXES; i++) o->count *= (size_t)o->shape[i];
  o->dense = (unsigned char *)grown(o->dense, &o->dense_room, o->count * o->width);
}

static inline void operand_like(operand *o, const operand *like) {
  operand_shape(o, like->dtype, like->rank, like->shape[0], like->shape[1], like->shape[2], like->shape[3]);
}

static inline void operand_oracle(operand *o) { /* room for what the oracle tells */
  size_t i;
  o->exact = (double *)grown(o->exact, &o->exact_room, o->count * sizeof(double));
  o->gauge = (double *)grown(o->gauge, &o->gauge_room, o->count * sizeof(double));
  o->bound = (double *)grown(o->bound, &o->bound_room, o->count * sizeof(double));
  o->naive = grown_f32(o->naive, &o->naive_room, o->count);
  for (i = 0; i < o->count; i++) o->exact[i] = o->gauge[i] = o->bound[i] = 0, o->naive[i] = 0;
}

static inline void operand_free(operand *o) {
  mlkt_buffer_free(&o->buffer);
  free(o->dense);
  free(o->image);
  free(o->exact);
  free(o->gauge);
  free(o->bound);
  free(o->naive);
  memset(o, 0, sizeof *o);
}

/* NaNs in the floating dtypes, absurd in the others. */
static inline void rogue(unsigned char *at, size_t count, mlk_dtype dtype) {
  size_t i;
  if (dtype == MLK_F32)
    mlkt_rogue_f32((float *)(void *)at, count);
  else if (dtype == MLK_F16 || dtype == MLK_BF16)
    for (i = 0; i < count; i++) at[2 * i] = 0xFF, at[2 * i + 1] = 0x7F;
  else if (count)
    memset(at, (int)MLKT_ROGUE_BYTE, count * dtype_bytes(dtype));
}

static inline void move_row(unsigned char *laid, int64_t step, unsigned char *dense, int64_t count, size_t width,
                            int to_layout) {
  int64_t i;
  if (width == 4 && to_layout)
    for (i = 0; i < count; i++, laid += 4 * step, dense += 4) memcpy(laid, dense, 4);
  else if (width == 4)
    for (i = 0; i < count; i++, laid += 4 * step, dense += 4) memcpy(dense, laid, 4);
  else
    for (i = 0; i < count; i++, laid += (int64_t)width * step, dense += width)
      memcpy(to_layout ? laid : dense, to_layout ? dense : laid, width);
}

/* Copies between dense values and the layout at first; to_layout 0: the other way. */
static inline void operand_move(const operand *o, unsigned char *dense, unsigned char *first, int to_layout) {
  int64_t at[AXES] = {0, 0, 0, 0}, place = 0;
  const int last = o->rank - 1;
  size_t done = 0;
  int axis;
  while (done < o->count) {
    move_row(first + place * (int64_t)o->width, o->stride[last], dense + done * o->width, o->shape[last], o->width,
             to_layout);
    done += (size_t)o->shape[last];
    for (axis = last - 1; axis >= 0; axis--) {
      place += o->stride[axis];
      if (++at[axis] < o->shape[axis]) break;
      place -= at[axis] * o->stride[axis];
      at[axis] = 0;
    }
  }
}

typedef enum form {
  FORM_DENSE,      /* all strides zero in the view */
  FORM_SWAPPED,    /* [B, S, H, D] in memory: mlk_swapped(t, 1, 2) */
  FORM_PACKED,     /* the same with a gap behind the heads: a slice of Q, K and V side by side */
  FORM_PADDED,     /* gaps behind rows and heads */
  FORM_TRANSPOSED, /* keys or queries vary fastest */
  FORM_REVERSED,   /* all axes backwards */
  FORM_STEPPED,    /* neighbours 2 or 3 apart */
  FORM_ANY,        /* any order of axes, signs, steps, gaps */
  FORM_COUNT
} form;

static const char *const form_names[FORM_COUNT + 1] = {"dense",    "swapped", "packed", "padded",     "transposed",
                                                       "reversed", "stepped", "any",    "mixed forms"};

/* The axes of the layout, innermost first, and which run backwards. */
static inline void form_order(form f, int rank, mlkt_rng *rng, int order[AXES], int negative[AXES]) {
  int i, t;
  for (i = 0; i < AXES; i++) order[i] = rank - 1 - i, negative[i] = f == FORM_REVERSED;
  if ((f == FORM_SWAPPED || f == FORM_PACKED) && rank >= 3) order[rank - 2] = 2, order[rank - 3] = 1;
  if (f == FORM_TRANSPOSED && rank >= 2) order[0] = rank - 2, order[1] = rank - 1;
  if (f == FORM_ANY)
    for (i = rank - 1; i >= 0; i--) {
      const int other = (int)mlkt_int(rng, 0, i);
      t = order[i], order[i] = order[other], order[other] = t;
      negative[i] = mlkt_int(rng, 0, 3) == 0;
    }
}

/* Places the operand in guarded memory and scatters its values. */
static inline void operand_layout(operand *o, form f, mlkt_rng *rng) {
  static const int64_t of_no_account[] = {0, 1, 3, 77777, -5}; /* an axis of one element: its stride must not matter */
  int order[AXES], negative[AXES], i;
  int64_t step = 1, low = 0, high = 0;
  form_order(f, o->rank, rng, order, negative);
  if (f == FORM_STEPPED || f == FORM_ANY) step = mlkt_int(rng, f == FORM_ANY ? 1 : 2, 3);
  memset(o->stride, 0, sizeof o->stride);
  for (i = 0; i < o->rank; i++) {
    const int axis = order[i];
    const int64_t size = o->shape[axis];
    int64_t gap = 0;
    if (f == FORM_PADDED) gap = i < 2 ? mlkt_int(rng, 1, 5) : 0;
    if (f == FORM_PACKED && axis == 1) gap = step * size * mlkt_int(rng, 1, 2);
    if (f == FORM_ANY) gap = mlkt_int(rng, 0, 3);
    o->stride[axis] = negative[axis] ? -step : step;
    if (size == 0) continue;
    *(negative[axis] ? &low : &high) += (size - 1) * o->stride[axis];
    if (size > 1 || gap > 3) step = step * size + gap;
  }
  o->span = o->count ? (size_t)(high - low + 1) : 0;
  mlkt_buffer_place(&o->buffer, o->span * o->width, mlkt_u64(rng) & 1 ? MLKT_TAIL : MLKT_HEAD);
  o->first = (unsigned char *)o->buffer.data + (o->count ? -low : 0) * (int64_t)o->width;
  o->image = (unsigned char *)grown(o->image, &o->image_room, o->span * o->width);
  rogue(o->image, o->span, o->dtype);
  if (o->count) operand_move(o, o->dense, o->image - low * (int64_t)o->width, 1);
  if (o->span) memcpy(o->buffer.data, o->image, o->span * o->width);

  memset(&o->view, 0, sizeof o->view);
  o->view.data = o->first;
  o->view.dtype = (int32_t)o->dtype;
  o->view.rank = o->rank;
  for (i = 0; i < o->rank; i++) {
    o->view.shape[i] = o->shape[i];
    if (f == FORM_DENSE) continue; /* strides stay zero */
    o->view.stride[i] = o->shape[i] == 1 ? of_no_account[mlkt_u64(rng) % 5] : o->stride[i];
  }
}

/* An output's image after its dense values have changed. */
static inline void operand_image(operand *o) {
  rogue(o->image, o->span, o->dtype);
  if (o->count) operand_move(o, o->dense, o->image + (o->first - (unsigned char *)o->buffer.data), 1);
}

static inline void operand_reset(operand *o) { rogue((unsigned char *)o->buffer.data, o->span, o->dtype); }

static inline int operand_is_rogue(const operand *o) {
  return mlkt_is_rogue_f32((const float *)o->buffer.data, o->span);
}

/* ---- half precision ---------------------------------------------------------------------------------------------- */

static inline float half_to_f32(uint16_t half, mlk_dtype dtype) {
  const uint32_t sign = (uint32_t)(half & 0x8000u) << 16, low = half & 0x3FFu, exponent = half >> 10 & 31u;
  if (dtype == MLK_BF16) return mlkt_float((uint32_t)half << 16);
  if (exponent == 31) return mlkt_float(sign | 0x7F800000u | low << 13);
  if (exponent) return mlkt_float(sign | (exponent + 112) << 23 | low << 13);
  return (sign ? -1.0f : 1.0f) * (float)low * (1.0f / 16777216.0f);
}

/* Towards zero; beyond the range of f16 infinity. */
static inline uint16_t f32_to_half(float x, mlk_dtype dtype) {
  const uint32_t bits = mlkt_bits(x), sign = bits >> 16 & 0x8000u;
  const int exponent = (int)(bits >> 23 & 255u) - 127;
  if (dtype == MLK_BF16 || x != x) return (uint16_t)(x != x ? 0x7FFFu : bits >> 16);
  if (exponent > 15) return (uint16_t)(sign | 0x7C00u);
  if (exponent >= -14) return (uint16_t)(sign | (uint32_t)(exponent + 15) << 10 | (bits >> 13 & 0x3FFu));
  return (uint16_t)(exponent < -25 ? sign : sign | (0x800000u | (bits & 0x7FFFFFu)) >> (-1 - exponent));
}

/* ---- problems ---------------------------------------------------------------------------------------------------- */

typedef enum op { FORWARD, BACKWARD } op;
typedef enum key_kind { KEYS_DENSE, KEYS_LENGTHS, KEYS_OFFSETS, KEYS_PAGES, KEY_KINDS } key_kind;
static const char *const key_kind_names[KEY_KINDS] = {"dense", "k_lengths", "k_offsets", "pages"};

enum { SEQUENCES = 12, MASK_BOOL = 1, MASK_BIAS = 2 };

/* What is asked for. s and t: the most queries and keys of a sequence; with pages t is rounded up to whole ones. */
typedef struct setup {
  int64_t b, h, g, s, t, d, e;
  key_kind keys;
  int64_t page;     /* rows of one */
  int q_ragged;     /* q_offsets */
  int page_lengths; /* k_lengths with pages */
  int told;         /* longest_q and longest_k are given */
  int masks;        /* MASK_BOOL + MASK_BIAS */
  int broad;        /* bit i: axis i of mask and bias has its full size, else 1 */
  int causal, alibi, sinks;
  int64_t offset, window;
  float scale, softcap;
  mlk_dtype dtype; /* of k and v */
  int no_lse;
} setup;

typedef enum which {
  Q,
  K,
  V,
  MASK,
  BIAS,
  ALIBI,
  SINKS,
  Q_OFFSETS,
  K_OFFSETS,
  K_LENGTHS,
  PAGES,
  OUT,
  LSE,
  DOUT,
  DQ,
  DK,
  DV,
  DBIAS,
  DSINKS,
  OPERANDS
} which;
static const char *const which_names[OPERANDS] = {
    "q",     "k",   "v",   "mask", "bias", "alibi", "sinks", "q_offsets", "k_offsets", "k_lengths",
    "pages", "out", "lse", "dout", "dq",   "dk",    "dv",    "dbias",     "dsinks"};

typedef struct problem {
  op what;
  setup s;
  operand o[OPERANDS];
  int64_t queries[SEQUENCES], keys[SEQUENCES];    /* of each sequence */
  int64_t q_start[SEQUENCES], k_start[SEQUENCES]; /* its first, with offsets */
  int64_t longest_q, longest_k;                   /* as the descriptor tells: S and T of mask and bias */
  float *key, *value;                             /* k and v as floats, in the order of their dense arrays */
  size_t key_room, value_room;
  int judged;     /* the oracle knows the results */
  int want_known; /* else the first run's results are judged by the oracle and then become what is wanted */
  double *x, *cap, *weight, *slope; /* of the keys of one row: score, slope of the soft cap, p, t */
  float *x32, *cap32, *weight32, *slope32;
  unsigned char *sees;
  size_t x_room, cap_room, weight_room, slope_room, x32_room, cap32_room, weight32_room, slope32_room, sees_room;
} problem;

static inline void problem_free(problem *p) {
  int i;
  for (i = 0; i < OPERANDS; i++) operand_free(&p->o[i]);
  free(p->key), free(p->value);
  free(p->x), free(p->cap), free(p->weight), free(p->slope);
  free(p->x32), free(p->cap32), free(p->weight32), free(p->slope32), free(p->sees);
  memset(p, 0, sizeof *p);
}

static inline setup setup_new(int64_t b, int64_t h, int64_t g, int64_t s, int64_t t, int64_t d, int64_t e) {
  setup u;
  memset(&u, 0, sizeof u);
  u.b = b, u.h = h, u.g = g, u.s = s, u.t = t, u.d = d, u.e = e;
  u.broad = 15;
  u.dtype = MLK_F32;
  return u;
}

static inline int64_t largest(int64_t a, int64_t b) { return a > b ? a : b; }

static inline int keys_ragged(const setup *s) { /* sequences have keys of their own number */
  return s->keys == KEYS_LENGTHS || s->keys == KEYS_OFFSETS || (s->keys == KEYS_PAGES && s->page_lengths);
}

/* How many queries and keys each sequence has, and where they start. */
static inline void problem_lengths(problem *p, mlkt_rng *rng) {
  setup *s = &p->s;
  int64_t q_total = 0, k_total = 0, q_most = 0, k_most = 0, b;
  if (s->keys == KEYS_PAGES) s->t = (s->t + s->page - 1) / s->page * s->page;
  for (b = 0; b < s->b; b++) {
    p->queries[b] = s->q_ragged && mlkt_u64(rng) % 3 ? mlkt_int(rng, 0, s->s) : s->s;
    p->keys[b] = keys_ragged(s) && mlkt_u64(rng) % 3 ? mlkt_int(rng, 0, s->t) : s->t;
    p->q_start[b] = q_total, p->k_start[b] = k_total;
    q_total += p->queries[b], k_total += p->keys[b];
    q_most = largest(q_most, p->queries[b]), k_most = largest(k_most, p->keys[b]);
  }
  q_total = s->q_ragged ? q_total : s->s;
  k_total = s->keys == KEYS_OFFSETS ? k_total : s->t;
  p->longest_q = s->told && q_most ? q_most : q_total;
  p->longest_k = s->told && k_most ? k_most : k_total;
}

static inline void problem_rooms(problem *p) {
  const size_t keys = (size_t)p->s.t + 1;
  p->x = (double *)grown(p->x, &p->x_room, keys * sizeof(double));
  p->cap = (double *)grown(p->cap, &p->cap_room, keys * sizeof(double));
  p->weight = (double *)grown(p->weight, &p->weight_room, keys * sizeof(double));
  p->slope = (double *)grown(p->slope, &p->slope_room, keys * sizeof(double));
  p->x32 = grown_f32(p->x32, &p->x32_room, keys);
  p->cap32 = grown_f32(p->cap32, &p->cap32_room, keys);
  p->weight32 = grown_f32(p->weight32, &p->weight32_room, keys);
  p->slope32 = grown_f32(p->slope32, &p->slope32_room, keys);
  p->sees = (unsigned char *)grown(p->sees, &p->sees_room, keys);
  p->key = grown_f32(p->key, &p->key_room, p->o[K].count);
  p->value = grown_f32(p->value, &p->value_room, p->o[V].count);
}

/* Shapes of all operands of op. */
static inline void problem_shape(problem *p, op what, const setup *wish, mlkt_rng *rng) {
  setup *s = &p->s;
  int64_t qb, qs, kb, kt, i, full[4];
  int axis, first = 0;
  p->what = what;
  p->s = *wish;
  p->want_known = 0;
  for (i = 0; i < OPERANDS; i++) p->o[i].present = 0;
  problem_lengths(p, rng);
  qb = s->q_ragged ? 1 : s->b, qs = s->s;
  if (s->q_ragged) qs = s->b ? p->q_start[s->b - 1] + p->queries[s->b - 1] : 0;
  kb = s->keys == KEYS_OFFSETS ? 1 : s->b, kt = s->t;
  if (s->keys == KEYS_OFFSETS) kt = s->b ? p->k_start[s->b - 1] + p->keys[s->b - 1] : 0;
  if (s->keys == KEYS_PAGES) kb = s->b * (s->t / s->page) + 2, kt = s->page;
  operand_shape(&p->o[Q], MLK_F32, 4, qb, s->h, qs, s->d);
  operand_shape(&p->o[K], s->dtype, 4, kb, s->g, kt, s->d);
  operand_shape(&p->o[V], s->dtype, 4, kb, s->g, kt, s->e);
  operand_shape(&p->o[OUT], MLK_F32, 4, qb, s->h, qs, s->e);
  if (!s->no_lse || what == BACKWARD) operand_shape(&p->o[LSE], MLK_F32, 3, qb, s->h, qs, 1);
  full[0] = s->b, full[1] = s->h, full[2] = p->longest_q, full[3] = p->longest_k;
  for (axis = 0; axis < 4; axis++)
    if (!(s->broad >> axis & 1)) full[axis] = 1;
  while (first < 3 && full[first] == 1 && s->broad & 16) first++; /* leading axes left out */
  for (axis = 0; axis < 4; axis++) full[axis] = axis + first < 4 ? full[axis + first] : 1;
  if (s->masks & MASK_BOOL) operand_shape(&p->o[MASK], MLK_U8, 4 - first, full[0], full[1], full[2], full[3]);
  if (s->masks & MASK_BIAS) operand_shape(&p->o[BIAS], MLK_F32, 4 - first, full[0], full[1], full[2], full[3]);
  if (s->alibi) operand_shape(&p->o[ALIBI], MLK_F32, 1, s->h, 1, 1, 1);
  if (s->sinks) operand_shape(&p->o[SINKS], MLK_F32, 1, s->h, 1, 1, 1);
  if (s->q_ragged) operand_shape(&p->o[Q_OFFSETS], MLK_I64, 1, s->b + 1, 1, 1, 1);
  if (s->keys == KEYS_OFFSETS) operand_shape(&p->o[K_OFFSETS], MLK_I64, 1, s->b + 1, 1, 1, 1);
  if (s->keys == KEYS_LENGTHS || (s->keys == KEYS_PAGES && s->page_lengths))
    operand_shape(&p->o[K_LENGTHS], MLK_I64, 1, s->b, 1, 1, 1);
  if (s->keys == KEYS_PAGES) operand_shape(&p->o[PAGES], MLK_I64, 2, s->b, s->t / s->page, 1, 1);
  if (what == BACKWARD) {
    operand_like(&p->o[DOUT], &p->o[OUT]);
    operand_like(&p->o[DQ], &p->o[Q]);
    operand_like(&p->o[DK], &p->o[K]);
    operand_like(&p->o[DV], &p->o[V]);
    if (s->masks & MASK_BIAS) operand_like(&p->o[DBIAS], &p->o[BIAS]);
    if (s->sinks) operand_like(&p->o[DSINKS], &p->o[SINKS]);
  }
  problem_rooms(p);
}

/* ---- kinds of calls ---------------------------------------------------------------------------------------------- */

enum {
  MASK_KINDS = 4,
  POSITIONS = 4,
  WINDOWS = 3,
  GROUPINGS = 3,
  LENGTH_KINDS = 6,
  SCORE_KINDS = 8,
  COMBINATIONS = MASK_KINDS * POSITIONS * WINDOWS * GROUPINGS * LENGTH_KINDS * SCORE_KINDS
};

/* Combination number n of mask, position, window, grouping, lengths, and what is done to scores. */
static inline setup combination(int n, mlkt_rng *rng) {
  static const int64_t offsets[POSITIONS] = {0, 0, -2, 3}, windows[WINDOWS] = {0, 1, 5};
  static const int64_t heads[GROUPINGS] = {2, 4, 3}, groups[GROUPINGS] = {2, 2, 1};
  static const key_kind keys[LENGTH_KINDS] = {KEYS_DENSE, KEYS_LENGTHS, KEYS_OFFSETS,
                                              KEYS_PAGES, KEYS_PAGES,   KEYS_PAGES};
  static const int64_t pages[LENGTH_KINDS] = {0, 0, 0, 1, 3, 16};
  static const int64_t lengths[] = {0, 1, 2, 7, 17}, sizes[] = {1, 3, 8, 20};
  setup s = setup_new(mlkt_int(rng, 1, 3), 0, 0, lengths[mlkt_u64(rng) % 5], lengths[mlkt_u64(rng) % 5],
                      sizes[mlkt_u64(rng) % 4], sizes[mlkt_u64(rng) % 4]);
  const uint64_t dice = mlkt_u64(rng);
  s.masks = n % MASK_KINDS, n /= MASK_KINDS;
  s.offset = offsets[n % POSITIONS], s.causal = n % POSITIONS != 0, n /= POSITIONS;
  s.window = windows[n % WINDOWS], n /= WINDOWS;
  s.h = heads[n % GROUPINGS], s.g = groups[n % GROUPINGS], n /= GROUPINGS;
  s.keys = keys[n % LENGTH_KINDS], s.page = pages[n % LENGTH_KINDS];
  s.q_ragged = s.keys == KEYS_OFFSETS || (s.keys != KEYS_DENSE && dice % 3 == 0), n /= LENGTH_KINDS;
  s.softcap = n & 1 ? 1.5f : 0, s.alibi = n >> 1 & 1, s.sinks = n >> 2 & 1;
  s.page_lengths = dice >> 8 & 1;
  s.told = dice >> 9 & 1;
  s.broad = dice >> 10 & 1 ? 15 : (int)(dice >> 16 & 31);
  s.scale = dice >> 11 & 1 ? 0 : 0.37f;
  s.no_lse = (dice >> 24) % 4 == 0;
  if (!s.causal && (dice >> 32) % 4 == 0) s.offset = mlkt_int(rng, -4, 4); /* it moves alibi and window as well */
  if ((dice >> 40) % 4 == 0) s.dtype = dice >> 48 & 1 ? MLK_F16 : MLK_BF16;
  if ((dice >> 52) % 24 == 0) s.e = 0;
  if ((dice >> 57) % 48 == 0) s.b = 0;
  return s;
}

/* What a call costs the naive forms, in multiply-adds; a pair of query and key costs some whatever a head's size. */
static inline double macs_of(const setup *s) {
  return (double)s->b * (double)s->h * (double)s->s * (double)s->t * (double)(s->d + s->e + 20);
}

/* Features of any combination, sizes as given; made smaller until a call has about macs multiply-adds. */
static inline setup any_features(int64_t s, int64_t t, double macs, mlkt_rng *rng) {
  static const int64_t sizes[] = {1, 5, 8, 16, 24, 33, 40, 64, 80, 128}, far[] = {0, 0, 0, 1, 40, 600, 5000};
  static const int64_t pages[] = {1, 16, 64, 100};
  setup u = combination((int)mlkt_int(rng, 0, COMBINATIONS - 1), rng);
  u.s = s, u.t = t, u.d = sizes[mlkt_u64(rng) % 10], u.e = sizes[mlkt_u64(rng) % 10];
  u.b = mlkt_int(rng, 1, 2);
  u.window = far[mlkt_u64(rng) % 7];
  u.page = pages[mlkt_u64(rng) % 4];
  if (mlkt_u64(rng) % 3 == 0) u.offset = -mlkt_int(rng, 0, t);
  while (macs_of(&u) > macs && (u.b > 1 || u.h > u.g || u.g > 1 || u.d > 1 || u.e > 1)) {
    if (u.b > 1)
      u.b = 1;
    else if (u.d + u.e > 48)
      u.d = (u.d + 1) / 2, u.e = (u.e + 1) / 2;
    else if (u.g > 1)
      u.h /= u.g, u.g = 1;
    else if (u.h > 2)
      u.h--;
    else if (u.d + u.e > 2)
      u.d = (u.d + 1) / 2, u.e = (u.e + 1) / 2;
    else
      u.h = 1;
  }
  return u;
}

/* ---- where things are in the dense arrays ------------------------------------------------------------------------ */

/* Number of query i's row in q, out, lse and their gradients. */
static inline int64_t q_row(const problem *p, int64_t b, int64_t h, int64_t i) {
  const int64_t size = p->o[Q].shape[2];
  return p->s.q_ragged ? h * size + p->q_start[b] + i : (b * p->s.h + h) * size + i;
}

/* Number of key j's row in k, v and their gradients. */
static inline int64_t k_row(const problem *p, int64_t b, int64_t g, int64_t j) {
  const setup *s = &p->s;
  const int64_t size = p->o[K].shape[2];
  if (s->keys == KEYS_OFFSETS) return g * size + p->k_start[b] + j;
  if (s->keys != KEYS_PAGES) return (b * s->g + g) * size + j;
  return (i64_of(&p->o[PAGES])[b * (s->t / s->page) + j / s->page] * s->g + g) * s->page + j % s->page;
}

/* Number of the element of mask, bias or dbias. */
static inline int64_t spread(const operand *o, int64_t b, int64_t h, int64_t i, int64_t j) {
  const int64_t at[4] = {b, h, i, j};
  int64_t place = 0;
  int axis;
  for (axis = 0; axis < o->rank; axis++)
    place = place * o->shape[axis] + (o->shape[axis] == 1 ? 0 : at[axis + 4 - o->rank]);
  return place;
}

static inline int64_t position_of(const problem *p, int64_t b, int64_t i) {
  return i + (p->keys[b] - p->queries[b]) + p->s.offset;
}

static inline int64_t distance_of(int64_t a, int64_t b) { return a > b ? a - b : b - a; }

/* 1 when causal, window and mask leave the pair. */
static inline int pair_left(const problem *p, int64_t b, int64_t h, int64_t i, int64_t j) {
  const int64_t position = position_of(p, b, i);
  if (p->s.causal && j > position) return 0;
  if (p->s.window && distance_of(position, j) >= p->s.window) return 0;
  return !p->o[MASK].present || p->o[MASK].dense[spread(&p->o[MASK], b, h, i, j)] != 0;
}

static inline double scale_of(const problem *p) {
  return p->s.scale != 0 ? (double)p->s.scale : 1 / sqrt((double)p->s.d);
}

/* ---- values ------------------------------------------------------------------------------------------------------ */

typedef enum values { SIGNED, SHARP, INTEGERS, SPECIAL } values;

static inline float a_value(values kind, mlkt_rng *rng) {
  static const float special[] = {0.0f, -0.0f, 1.0f, 1e-38f, -1e-38f, 300.0f, -300.0f};
  const uint64_t dice = kind == SPECIAL ? mlkt_u64(rng) % 128 : 128;
  if (kind == INTEGERS) return (float)mlkt_int(rng, -3, 3);
  if (dice < 8) return special[dice % 7];
  if (dice == 8) return mlkt_float(mlkt_u64(rng) % 2 ? 0x7F800000u : 0xFF800000u);
  if (dice == 9) return mlkt_float(0x7FC00000u);
  return mlkt_signed(rng);
}

static inline void draw(mlkt_rng *rng, float *x, size_t count) {
  size_t i;
  for (i = 0; i < count; i++) x[i] = mlkt_signed(rng);
}

static inline void fill_f32(operand *o, values kind, float scale, mlkt_rng *rng) {
  size_t i;
  for (i = 0; o->present && i < o->count; i++) f32_of(o)[i] = a_value(kind, rng) * scale;
}

static inline void set_key_value(operand *o, float *plain, size_t i, float x) {
  const uint16_t half = f32_to_half(x, o->dtype);
  if (o->dtype == MLK_F32)
    f32_of(o)[i] = x;
  else
    memcpy(o->dense + 2 * i, &half, 2);
  plain[i] = o->dtype == MLK_F32 ? x : half_to_f32(half, o->dtype);
}

static inline void fill_keys(operand *o, float *plain, values kind, mlkt_rng *rng) {
  size_t i;
  for (i = 0; i < o->count; i++) set_key_value(o, plain, i, a_value(kind, rng));
}

/* Which pages a sequence has: each its own, in any order, but that sometimes sequences share their first. */
static inline void fill_pages(problem *p, mlkt_rng *rng) {
  const int64_t each = p->s.t / p->s.page, count = p->s.b * each, all = p->o[K].shape[0];
  int64_t *page = i64_of(&p->o[PAGES]), i, b;
  static const int64_t absurd[] = {-1, INT64_MAX, INT64_MIN, 1000000};
  const int64_t shift = mlkt_int(rng, 0, all - 1);
  for (i = 0; i < count; i++) page[i] = (i + shift) % all;
  for (i = count - 1; i > 0; i--) {
    const int64_t other = mlkt_int(rng, 0, i), t = page[i];
    page[i] = page[other], page[other] = t;
  }
  for (b = 1; b < p->s.b && each; b++)
    if (mlkt_u64(rng) % 4 == 0) page[b * each] = page[0];
  for (b = 0; b < p->s.b; b++)
    for (i = (p->keys[b] + p->s.page - 1) / p->s.page; i < each; i++)
      page[b * each + i] = absurd[mlkt_u64(rng) % 4]; /* behind the sequence's length */
}

static inline void fill_indices(problem *p, mlkt_rng *rng) {
  const int64_t n = p->s.b;
  int64_t b;
  for (b = 0; b <= n; b++) {
    if (p->o[Q_OFFSETS].present) i64_of(&p->o[Q_OFFSETS])[b] = b < n ? p->q_start[b] : p->o[Q].shape[2];
    if (p->o[K_OFFSETS].present) i64_of(&p->o[K_OFFSETS])[b] = b < n ? p->k_start[b] : p->o[K].shape[2];
    if (p->o[K_LENGTHS].present && b < n) i64_of(&p->o[K_LENGTHS])[b] = p->keys[b];
  }
  if (p->o[PAGES].present) fill_pages(p, rng);
}

static inline void fill_masks(problem *p, values kind, mlkt_rng *rng) {
  operand *mask = &p->o[MASK], *bias = &p->o[BIAS];
  size_t i, along = mask->present ? (size_t)largest(mask->shape[mask->rank - 1], 1) : 1;
  uint64_t most = 0;
  for (i = 0; mask->present && i < mask->count; i++) {
    if (i % along == 0) most = mlkt_u64(rng) % 8; /* of eight keys how many are left */
    mask->dense[i] = mlkt_u64(rng) % 8 < most ? (unsigned char)(1 + mlkt_u64(rng) % 255) : 0;
  }
  fill_f32(bias, kind == SPECIAL ? SPECIAL : SIGNED, 2.0f, rng);
  along = bias->present ? (size_t)largest(bias->shape[bias->rank - 1], 1) : 1;
  for (i = 0; bias->present && i < bias->count; i++) {
    if (i % along == 0) most = mlkt_u64(rng) % 8;
    if (mlkt_u64(rng) % 8 >= most + 2) f32_of(bias)[i] = -INFINITY;
    if (kind == SPECIAL && mlkt_u64(rng) % 32 == 0) f32_of(bias)[i] = mlkt_u64(rng) % 2 ? 1e38f : -3e38f;
  }
}

/* What nobody may look at holds NaN: keys that no query sees, the rest of a cache, pages of nobody, queries without a
   key. */
static inline void fill_poison(problem *p, mlkt_rng *rng) {
  const setup *s = &p->s;
  const size_t rows = p->o[K].count / (size_t)s->d;
  unsigned char *used = (unsigned char *)calloc(rows + 1, 1);
  int64_t b, h, i, j, d;
  size_t r;
  if (!used) exit(2);
  for (b = 0; b < s->b; b++)
    for (h = 0; h < s->h; h++)
      for (i = 0; i < p->queries[b]; i++) {
        int any = 0;
        for (j = 0; j < p->keys[b]; j++) {
          const int left = pair_left(p, b, h, i, j),
                    none = p->o[BIAS].present && f32_of(&p->o[BIAS])[spread(&p->o[BIAS], b, h, i, j)] == -INFINITY;
          if (left) used[k_row(p, b, h / (s->h / s->g), j)] |= (unsigned char)(none ? 1 : 2);
          any |= left && !none;
        }
        if (!any && mlkt_u64(rng) % 2) {
          const int64_t row = q_row(p, b, h, i);
          for (d = 0; d < s->d && !p->o[BIAS].present; d++) f32_of(&p->o[Q])[row * s->d + d] = NAN;
          for (d = 0; d < s->e && p->o[DOUT].present && !s->sinks; d++) f32_of(&p->o[DOUT])[row * s->e + d] = NAN;
        }
      }
  for (r = 0; r < rows; r++) { /* NaN - inf takes part: k only where not even the bias is asked */
    for (d = 0; d < s->d && used[r] == 0; d++) set_key_value(&p->o[K], p->key, r * (size_t)s->d + (size_t)d, NAN);
    for (d = 0; d < s->e && used[r] < 2; d++) set_key_value(&p->o[V], p->value, r * (size_t)s->e + (size_t)d, NAN);
  }
  free(used);
}

static inline void problem_fill(problem *p, values kind, mlkt_rng *rng) {
  size_t i;
  p->judged = kind != SPECIAL || p->what == FORWARD;
  fill_indices(p, rng);
  fill_f32(&p->o[Q], kind, kind == SHARP ? 10.0f : 1.0f, rng);
  fill_keys(&p->o[K], p->key, kind, rng);
  fill_keys(&p->o[V], p->value, kind, rng);
  fill_f32(&p->o[DOUT], kind, 1.0f, rng);
  for (i = 0; p->o[ALIBI].present && i < p->o[ALIBI].count; i++)
    f32_of(&p->o[ALIBI])[i] = 1.0f / (float)(1 << (1 + i % 8));
  for (i = 0; p->o[SINKS].present && i < p->o[SINKS].count; i++)
    f32_of(&p->o[SINKS])[i] = kind == SPECIAL && mlkt_u64(rng) % 8 == 0 ? -INFINITY : 2 * mlkt_signed(rng);
  fill_masks(p, kind, rng);
  fill_poison(p, rng);
}

/* ---- the oracle -------------------------------------------------------------------------------------------------- */

#define UNIT (1.0 / 16777216.0) /* rounding of one operation */

/* One row: what its keys come to. */
typedef struct row_sums {
  double most, sum, lse, error; /* error: how far a score may be off */
  float most32, sum32, lse32;
  int64_t keys; /* how many take part */
  int bad;      /* a score is NaN or +infinity, or a value that takes part is not finite */
} row_sums;

/* The score of key j in double and float; gives a bound of a float score's error. */
static inline double score(problem *p, int64_t b, int64_t h, int64_t i, int64_t j) {
  const setup *s = &p->s;
  const float *q = f32_of(&p->o[Q]) + q_row(p, b, h, i) * s->d;
  const float *k = p->key + k_row(p, b, h / (s->h / s->g), j) * s->d;
  const double scale = scale_of(p);
  const float scale32 = (float)scale;
  double x = 0, gauge = 0, extra = 0, cap = 1;
  float x32 = 0, cap32 = 1;
  int64_t d;
  for (d = 0; d < s->d; d++) {
    x += (double)q[d] * (double)k[d];
    gauge += fabs((double)q[d] * (double)k[d]);
    x32 += q[d] * k[d];
  }
  x *= scale, gauge *= scale, x32 *= scale32;
  if (s->softcap != 0) {
    const double tan_h = tanh(x / (double)s->softcap);
    const float tan_h32 = tanhf(x32 / s->softcap);
    x = (double)s->softcap * tan_h, cap = 1 - tan_h * tan_h;
    x32 = s->softcap * tan_h32, cap32 = 1 - tan_h32 * tan_h32;
    extra += (double)s->softcap;
    if (!(gauge < INFINITY)) gauge = 0; /* the cap is reached */
  }
  if (s->alibi) {
    const int64_t distance = distance_of(position_of(p, b, i), j);
    const float slope = f32_of(&p->o[ALIBI])[h];
    x -= (double)slope * (double)distance, x32 -= slope * (float)distance;
    extra += (double)slope * (double)distance;
  }
  if (p->o[BIAS].present) {
    const float bias = f32_of(&p->o[BIAS])[spread(&p->o[BIAS], b, h, i, j)];
    x += (double)bias, x32 += bias;
    extra += fabs((double)bias);
  }
  p->x[j] = x, p->x32[j] = x32;
  p->cap[j] = cap, p->cap32[j] = cap32;
  return UNIT * ((double)(s->d + 8) * gauge + 4 * extra + fabs(x));
}

/* Scores, weights and sums of one row. */
static inline row_sums row_of(problem *p, int64_t b, int64_t h, int64_t i) {
  const setup *s = &p->s;
  const int64_t g = h / (s->h / s->g);
  row_sums r = {-INFINITY, 0, -INFINITY, 0, -INFINITY, 0, -INFINITY, 0, 0};
  int64_t j, e;
  for (j = 0; j < p->keys[b]; j++) {
    double error;
    p->sees[j] = (unsigned char)pair_left(p, b, h, i, j);
    if (!p->sees[j]) continue;
    error = score(p, b, h, i, j);
    if (p->x[j] == -INFINITY) p->sees[j] = 0;
    if (!p->sees[j]) continue;
    r.keys++;
    r.error = error > r.error ? error : r.error;
    if (!(p->x[j] < INFINITY)) r.bad = 1;
    for (e = 0; e < s->e; e++)
      if (!isfinite(p->value[k_row(p, b, g, j) * s->e + e])) r.bad = 1;
    if (p->x[j] > r.most) r.most = p->x[j];
    if (p->x32[j] > r.most32) r.most32 = p->x32[j];
  }
  if (s->sinks && r.most < (double)f32_of(&p->o[SINKS])[h]) r.most = (double)f32_of(&p->o[SINKS])[h];
  if (s->sinks && r.most32 < f32_of(&p->o[SINKS])[h]) r.most32 = f32_of(&p->o[SINKS])[h];
  if (r.most == -INFINITY) return r;
  for (j = 0; j < p->keys[b]; j++) {
    if (!p->sees[j]) continue;
    r.sum += p->weight[j] = exp(p->x[j] - r.most);
    r.sum32 += p->weight32[j] = expf(p->x32[j] - r.most32);
  }
  if (s->sinks) {
    r.sum += exp((double)f32_of(&p->o[SINKS])[h] - r.most);
    r.sum32 += expf(f32_of(&p->o[SINKS])[h] - r.most32);
  }
  r.lse = r.most + log(r.sum);
  r.lse32 = r.most32 + logf(r.sum32);
  r.error *= 4; /* of a score and of the largest, above and below the line */
  return r;
}

/* Terms of the manual's bound of the sums over the keys of a row, in rounding units. */
static inline double row_units(const problem *p, int64_t b) {
  const double keys = (double)p->keys[b];
  return (keys < MLK_ATTENTION_BLOCK ? keys : MLK_ATTENTION_BLOCK) + 3 * ceil(keys / MLK_ATTENTION_BLOCK) + 24;
}

/* Out and lse of one row. */
static inline void oracle_forward(problem *p, int64_t b, int64_t h, int64_t i, const row_sums *r) {
  const setup *s = &p->s;
  const int64_t row = q_row(p, b, h, i), g = h / (s->h / s->g);
  operand *out = &p->o[OUT], *lse = &p->o[LSE];
  int64_t j, e;
  if (lse->present) {
    lse->exact[row] = r->bad ? NAN : r->lse;
    lse->naive[row] = r->lse32;
    lse->gauge[row] = fabs(r->lse) + fabs(r->most) + 1;
    lse->bound[row] = r->error + row_units(p, b) * UNIT * lse->gauge[row];
    if (r->lse == -INFINITY) lse->gauge[row] = 0, lse->bound[row] = 0;
  }
  for (e = 0; e < s->e; e++) {
    const int64_t at = row * s->e + e;
    double sum = 0, gauge = 0;
    float sum32 = 0;
    for (j = 0; j < p->keys[b]; j++)
      if (p->sees[j]) {
        const float v = p->value[k_row(p, b, g, j) * s->e + e];
        sum += p->weight[j] * (double)v;
        gauge += p->weight[j] * fabs((double)v);
        sum32 += p->weight32[j] * v;
      }
    out->exact[at] = r->bad ? NAN : r->keys ? sum / r->sum : 0;
    out->naive[at] = r->keys ? sum32 / r->sum32 : 0;
    out->gauge[at] = r->keys ? gauge / r->sum : 0;
    out->bound[at] = out->gauge[at] * (r->error + row_units(p, b) * UNIT);
  }
}

/* Adds a term to an element of a gradient; error is relative to size. */
static inline void add_term(operand *o, int64_t at, double term, float term32, double size, double error) {
  o->exact[at] += term;
  o->naive[at] += term32;
  o->gauge[at] += size;
  o->bound[at] += size * error;
}

/* What one row adds to the gradients. */
static inline void oracle_backward(problem *p, int64_t b, int64_t h, int64_t i, const row_sums *r) {
  const setup *s = &p->s;
  const int64_t row = q_row(p, b, h, i), g = h / (s->h / s->g);
  const float *dout = f32_of(&p->o[DOUT]) + row * s->e, *q = f32_of(&p->o[Q]) + row * s->d;
  const operand *out = &p->o[OUT];
  const double scale = scale_of(p);
  const float scale32 = (float)scale;
  double delta = 0, delta_gauge = 0, error;
  float delta32 = 0;
  int64_t j, d, e;
  if (r->most == -INFINITY) return;
  for (e = 0; e < s->e; e++) {
    delta += (double)dout[e] * out->exact[row * s->e + e];
    delta_gauge += fabs((double)dout[e]) * (out->gauge[row * s->e + e] + fabs(out->exact[row * s->e + e]));
    delta32 += dout[e] * out->naive[row * s->e + e];
  }
  error = r->error + UNIT * (2 * (fabs(r->lse) + fabs(r->most)) + row_units(p, b) + (double)s->e + 10);
  if (s->softcap != 0) error += r->error / (double)s->softcap;
  if (s->sinks) {
    const float sink = f32_of(&p->o[SINKS])[h];
    const double weight = exp((double)sink - r->lse);
    add_term(&p->o[DSINKS], h, -weight * delta, -expf(sink - r->lse32) * delta32, weight * delta_gauge, error);
  }
  for (j = 0; j < p->keys[b]; j++) {
    const int64_t key_row = k_row(p, b, g, j);
    const float *k = p->key + key_row * s->d, *v = p->value + key_row * s->e;
    double t = 0, t_gauge = 0, weight, ds, size;
    float t32 = 0, weight32, ds32;
    if (!p->sees[j]) continue;
    for (e = 0; e < s->e; e++) {
      t += (double)dout[e] * (double)v[e];
      t_gauge += fabs((double)dout[e] * (double)v[e]);
      t32 += dout[e] * v[e];
    }
    weight = exp(p->x[j] - r->lse), weight32 = expf(p->x32[j] - r->lse32);
    ds = weight * (t - delta), ds32 = weight32 * (t32 - delta32);
    size = weight * (t_gauge + delta_gauge);
    if (p->o[DBIAS].present) add_term(&p->o[DBIAS], spread(&p->o[DBIAS], b, h, i, j), ds, ds32, size, error);
    ds *= p->cap[j], ds32 *= p->cap32[j];
    for (d = 0; d < s->d; d++) {
      add_term(&p->o[DQ], row * s->d + d, scale * ds * (double)k[d], scale32 * ds32 * k[d],
               scale * size * fabs((double)k[d]), error);
      add_term(&p->o[DK], key_row * s->d + d, scale * ds * (double)q[d], ds32 * (scale32 * q[d]),
               scale * size * fabs((double)q[d]), error);
    }
    for (e = 0; e < s->e; e++)
      add_term(&p->o[DV], key_row * s->e + e, weight * (double)dout[e], weight32 * dout[e],
               weight * fabs((double)dout[e]), error);
  }
}

static inline int is_output(const problem *p, int i) {
  return p->o[i].present && (p->what == FORWARD ? i == OUT || i == LSE : i >= DQ);
}

/* Exact values, gauges, bounds and the naive form of all outputs (of a gradient also of out and lse). */
static inline void oracle(problem *p) {
  int64_t b, h, i;
  size_t n;
  int w;
  for (w = OUT; w < OPERANDS; w++)
    if (p->o[w].present && w != DOUT) operand_oracle(&p->o[w]);
  for (b = 0; b < p->s.b; b++)
    for (h = 0; h < p->s.h; h++)
      for (i = 0; i < p->queries[b]; i++) {
        const row_sums r = row_of(p, b, h, i);
        oracle_forward(p, b, h, i, &r);
        if (p->what == BACKWARD) oracle_backward(p, b, h, i, &r);
      }
  for (w = DQ; w <= DSINKS; w++) { /* the sums over keys or queries themselves */
    const double count = w == DQ                     ? (double)p->s.t
                         : w == DBIAS || w == DSINKS ? (double)(p->s.b * p->s.h * p->s.s)
                                                     : (double)(p->s.s * p->s.h / largest(p->s.g, 1));
    for (n = 0; p->o[w].present && n < p->o[w].count; n++) p->o[w].bound[n] += p->o[w].gauge[n] * UNIT * (count + 4);
  }
}

/* ---- judging ----------------------------------------------------------------------------------------------------- */

/* Errors over the points of a case as shares of their bounds, the library's and the naive form's: a measure that a few
   rows of large scores do not rule. */
typedef struct tally {
  double most, naive_most, squares, naive_squares, count;
} tally;
static tally tallies[OPERANDS];

static inline void tallies_clear(void) { memset(tallies, 0, sizeof tallies); }

/* An output, as dense values, against the oracle. */
static inline int judge(operand *o, int w) {
  const float *got = f32_of(o);
  size_t i, wrong = 0, first = 0;
  tally *t = &tallies[w];
  for (i = 0; i < o->count; i++) {
    const double exact = o->exact[i];
    const int is_nan = got[i] != got[i];
    double error, naive;
    int ok;
    if (exact != exact || is_nan)
      ok = exact != exact && is_nan;
    else if (!(fabs(exact) < INFINITY))
      ok = (double)got[i] == exact;
    else {
      error = fabs((double)got[i] - exact), naive = fabs((double)o->naive[i] - exact);
      ok = error <= o->bound[i] + 1e-36;
      if (ok && o->bound[i] > 1e-30) {
        error /= o->bound[i], naive /= o->bound[i];
        t->most = error > t->most ? error : t->most;
        t->naive_most = naive > t->naive_most ? naive : t->naive_most;
        t->squares += error * error, t->naive_squares += naive * naive, t->count++;
      }
    }
    if (!ok && wrong++ == 0) first = i;
  }
  return CHECK_MSG(wrong == 0, "%s: %lu of %lu elements are off; the first is [%lu]: %.9g, exactly %.9g +- %.2g",
                   which_names[w], (unsigned long)wrong, (unsigned long)o->count, (unsigned long)first,
                   (double)got[first], o->exact[first], o->bound[first]);
}

/* Over all points judged: no more than twice the naive form's error. */
static inline void judge_tallies(void) {
  int w;
  for (w = 0; w < OPERANDS; w++) {
    const tally *t = &tallies[w];
    if (t->count < 2000) continue; /* the luck of some rows */
    mlkt_note("%s, %g elements", which_names[w], t->count);
    CHECK_MSG(t->most <= 2 * t->naive_most + 0.01, "largest error %.3g of the bound, the naive form's %.3g", t->most,
              t->naive_most);
    CHECK_MSG(t->squares <= 4 * t->naive_squares + 1e-6 * t->count,
              "root mean square error %.3g of the bound, the naive form's %.3g", sqrt(t->squares / t->count),
              sqrt(t->naive_squares / t->count));
  }
}

/* ---- running a problem ------------------------------------------------------------------------------------------- */

/* Lays all operands out: one form for all or, with FORM_COUNT, one of its own for each. */
static inline void problem_layout(problem *p, form f, mlkt_rng *rng) {
  int i;
  for (i = 0; i < OPERANDS; i++)
    if (p->o[i].present) operand_layout(&p->o[i], f == FORM_COUNT ? (form)(mlkt_u64(rng) % FORM_COUNT) : f, rng);
}

static inline mlk_tensor view_of(const problem *p, int i) {
  mlk_tensor none;
  memset(&none, 0, sizeof none);
  return p->o[i].present ? p->o[i].view : none;
}

static inline mlk_attention_scores scores_of(const problem *p) {
  const setup *s = &p->s;
  mlk_attention_scores scores;
  memset(&scores, 0, sizeof scores);
  scores.scale = s->scale;
  scores.softcap = s->softcap;
  scores.causal = s->causal;
  scores.offset = s->offset;
  scores.window = s->window;
  scores.mask = view_of(p, MASK);
  scores.bias = view_of(p, BIAS);
  scores.alibi = view_of(p, ALIBI);
  scores.sinks = view_of(p, SINKS);
  scores.q_offsets = view_of(p, Q_OFFSETS);
  scores.k_offsets = view_of(p, K_OFFSETS);
  scores.k_lengths = view_of(p, K_LENGTHS);
  if (s->told && s->q_ragged) scores.longest_q = p->longest_q;
  if (s->told && keys_ragged(s)) scores.longest_k = p->longest_k;
  return scores;
}

static inline mlk_attention_desc forward_desc(const problem *p) {
  mlk_attention_desc desc;
  memset(&desc, 0, sizeof desc);
  desc.q = view_of(p, Q);
  desc.k = view_of(p, K);
  desc.v = view_of(p, V);
  desc.out = view_of(p, OUT);
  desc.lse = view_of(p, LSE);
  desc.scores = scores_of(p);
  desc.pages = view_of(p, PAGES);
  return desc;
}

static inline mlk_attention_grad_desc backward_desc(const problem *p) {
  mlk_attention_grad_desc desc;
  memset(&desc, 0, sizeof desc);
  desc.q = view_of(p, Q);
  desc.k = view_of(p, K);
  desc.v = view_of(p, V);
  desc.out = view_of(p, OUT);
  desc.lse = view_of(p, LSE);
  desc.dout = view_of(p, DOUT);
  desc.dq = view_of(p, DQ);
  desc.dk = view_of(p, DK);
  desc.dv = view_of(p, DV);
  desc.dbias = view_of(p, DBIAS);
  desc.dsinks = view_of(p, DSINKS);
  desc.scores = scores_of(p);
  return desc;
}

/* The call or, with plan, its plan. */
static inline mlk_status call(const problem *p, mlk_context *ctx, mlk_plan *plan) {
  if (p->what == FORWARD) {
    const mlk_attention_desc desc = forward_desc(p);
    return plan ? mlk_attention_plan(ctx, &desc, plan) : mlk_attention(ctx, &desc);
  } else {
    const mlk_attention_grad_desc desc = backward_desc(p);
    return plan ? mlk_attention_grad_plan(ctx, &desc, plan) : mlk_attention_grad(ctx, &desc);
  }
}

static inline void reset_outputs(problem *p) {
  int i;
  for (i = 0; i < OPERANDS; i++)
    if (is_output(p, i)) operand_reset(&p->o[i]);
}

static inline int outputs_untouched(const problem *p) {
  int i, ok = 1;
  for (i = 0; i < OPERANDS; i++)
    if (is_output(p, i)) ok &= operand_is_rogue(&p->o[i]);
  return ok;
}

/* Checks an output: elements bit by bit, padding untouched, canaries. */
static inline int check_output(operand *o, const char *name) {
  float *got;
  int ok;
  if (o->span == 0 || memcmp(o->buffer.data, o->image, o->span * o->width) == 0)
    return CHECK_MSG(mlkt_buffer_intact(&o->buffer), "%s: somebody wrote beside it", name);
  got = (float *)malloc(o->count * sizeof *got + 1);
  if (!got) exit(2);
  operand_move(o, (unsigned char *)got, o->first, 0);
  ok = mlkt_check_f32_n(got, f32_of(o), o->count, __FILE__, __LINE__, name);
  mlkt_rogue_f32(got, o->count);
  operand_move(o, (unsigned char *)got, o->first, 1);
  ok &= CHECK_MSG(operand_is_rogue(o), "%s: the padding between its elements was written", name);
  ok &= CHECK_MSG(mlkt_buffer_intact(&o->buffer), "%s: somebody wrote beside it", name);
  free(got);
  return ok;
}

static inline int check_input(const operand *o, const char *name) {
  return o->span == 0 || memcmp(o->buffer.data, o->image, o->span * o->width) == 0 ||
         CHECK_MSG(0, "%s, an input, was written", name);
}

/* The first run's results: judged, then what is wanted. */
static inline int learn(problem *p) {
  int i, ok = 1;
  for (i = 0; i < OPERANDS; i++) {
    operand *o = &p->o[i];
    if (!is_output(p, i)) continue;
    operand_move(o, o->dense, o->first, 0);
    if (p->judged) ok &= judge(o, i);
    operand_image(o);
  }
  p->want_known = 1;
  return ok;
}

static inline int run_problem(problem *p, mlk_context *ctx) {
  int i, ok = 1;
  reset_outputs(p);
  if (!CHECK_OK(ctx, call(p, ctx, NULL))) return 0;
  if (!p->want_known) ok &= learn(p);
  for (i = 0; i < OPERANDS; i++)
    if (p->o[i].present)
      ok &= is_output(p, i) ? check_output(&p->o[i], which_names[i]) : check_input(&p->o[i], which_names[i]);
  return ok;
}

static inline void note_problem(const problem *p, const char *what, mlk_isa isa, int threads, const char *extra) {
  const setup *s = &p->s;
  mlkt_note(
      "%s: %s B %d, H %d, G %d, S %d%s, T %d, D %d, E %d, keys %s %s, page %d, masks %d axes %d, causal %d, offset %d, "
      "window %d, scale %g, softcap %g%s%s%s, dtype %d, isa %s, threads %d, %s",
      what, p->what == FORWARD ? "forward" : "backward", (int)s->b, (int)s->h, (int)s->g, (int)s->s,
      s->q_ragged ? " ragged" : "", (int)s->t, (int)s->d, (int)s->e, key_kind_names[s->keys],
      s->page_lengths ? "with lengths" : "", (int)s->page, s->masks, s->broad, s->causal, (int)s->offset,
      (int)s->window, (double)s->scale, (double)s->softcap, s->alibi ? ", alibi" : "", s->sinks ? ", sinks" : "",
      s->told ? ", told" : "", (int)s->dtype, mlk_isa_name(isa), threads, extra);
}

/* For a gradient: out and lse as the forward call makes them, into their dense arrays. */
static inline int forward_first(problem *p) {
  mlk_context *ctx = crew_get(MLK_ISA_REFERENCE, 1);
  mlkt_rng rng = point_rng(0);
  int ok;
  if (!ctx || p->what == FORWARD) return ctx != NULL;
  problem_layout(p, FORM_DENSE, &rng);
  p->what = FORWARD;
  ok = CHECK_OK(ctx, call(p, ctx, NULL));
  p->what = BACKWARD;
  operand_move(&p->o[OUT], p->o[OUT].dense, p->o[OUT].first, 0);
  operand_move(&p->o[LSE], p->o[LSE].dense, p->o[LSE].first, 0);
  return ok;
}

/* Runs a laid-out problem on the reference, whose results are judged, then on every row, the threads of each row
   turning with index. */
static inline int every_row(problem *p, uint64_t index, const char *what, const char *extra) {
  int i, ok = 1;
  for (i = -1; i < crew.rows; i++) {
    const mlk_isa isa = i < 0 ? MLK_ISA_REFERENCE : crew.isas[i];
    const int threads = i < 0 ? 1 : crew_threads(index + (uint64_t)i);
    mlk_context *ctx = crew_get(isa, threads);
    if (!ctx) return 0;
    note_problem(p, what, isa, threads, extra);
    ok &= run_problem(p, ctx);
  }
  return ok;
}

#endif /* MLK_ATTENTION_PROBLEM_H */
