/* test_average.c - gradient averaging: random lists of tensors, layouts, ranges and places of the result against an
   oracle written from the manual alone, on every row; exact integers, error bounds, rounding to halves, replicas left
   out, norms, plans, refusals. */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include "crew.h"

#include <float.h>
#include <math.h>
#include <stdio.h>

#define COUNT_OF(array) ((int)(sizeof(array) / sizeof(array)[0]))

/* ---- elements ---------------------------------------------------------------------------------------------------- */

static size_t width_of(mlk_dtype dtype) { return dtype == MLK_F32 ? 4 : 2; }

static float f16_value(unsigned half) {
  const unsigned exponent = half >> 10 & 31, digits = half & 1023;
  float x = ldexpf((float)(exponent ? digits + 1024 : digits), (int)(exponent ? exponent : 1) - 25);
  if (exponent == 31) x = digits ? NAN : INFINITY;
  return half & 0x8000 ? -x : x;
}

static float half_value(uint16_t half, mlk_dtype dtype) {
  static float f16[1 << 16];
  unsigned i;
  if (dtype == MLK_BF16) return mlkt_float((uint32_t)half << 16);
  for (i = 0; i < 1 << 16 && f16[1] == 0; i++) f16[(i + 2) & 0xFFFF] = f16_value((i + 2) & 0xFFFF); /* [1] last */
  return f16[half];
}

static float decode(const void *from, mlk_dtype dtype) {
  uint16_t half;
  float x;
  if (dtype == MLK_F32) return memcpy(&x, from, sizeof x), x;
  memcpy(&half, from, sizeof half);
  return half_value(half, dtype);
}

/* The nearest number of a format with so many binary places, ties to even; lowest: its least normal exponent. */
static uint16_t half_of(double x, int places, int lowest) {
  const int bias = 1 - lowest;
  const unsigned sign = signbit(x) ? 0x8000u : 0u, infinity = (unsigned)(2 * bias + 1) << places;
  int exponent;
  if (isnan(x)) return (uint16_t)(sign | infinity | 1u << (places - 1));
  if (x == 0) return (uint16_t)sign;
  if (isinf(x) || (exponent = ilogb(x)) > bias) return (uint16_t)(sign | infinity);
  if (exponent < lowest) exponent = lowest;
  return (uint16_t)(sign | (((unsigned)(exponent + bias) << places) +
                            (unsigned)rint(ldexp(fabs(x), places - exponent)) - (1u << places)));
}

static void encode(void *to, mlk_dtype dtype, double x) {
  const float single = (float)x;
  const uint16_t half = dtype == MLK_F16 ? half_of(x, 10, -14) : half_of(x, 7, -126);
  if (dtype == MLK_F32)
    memcpy(to, &single, sizeof single);
  else
    memcpy(to, &half, sizeof half);
}

/* ---- operands: a list of tensors in one guarded buffer ----------------------------------------------------------- */

/* PERMUTED: axes in any order, without gaps; REPEATED: an input, whose first axis may have stride 0 */
typedef enum form { DENSE, PERMUTED, STRIDED, REPEATED, FORMS } form;
typedef enum values { INTEGERS, REALS, SPECIALS, VALUES } values;

typedef struct operand {
  mlkt_buffer buffer;
  mlk_dtype dtype;
  int64_t count, elements;
  mlk_tensor *tensors;
  int64_t *start;      /* of each tensor's data, in elements from the buffer's start */
  size_t *at;          /* in bytes from there: each element of the vector */
  char *before, *want; /* the buffer as it was, and as the oracle leaves it */
  size_t tensors_room, start_room, at_room, before_room, want_room;
} operand;

static int64_t elements_of(const mlk_tensor *t) {
  int64_t n = 1;
  int i;
  for (i = 0; i < t->rank; i++) n *= t->shape[i];
  return n;
}

/* Strides of a view that is dense, or has its axes in any order, with gaps and mirrored ones. [*low, *high]: what it
   reaches. */
static void strides_new(mlk_tensor *t, form how, mlkt_rng *rng, int64_t *low, int64_t *high) {
  int order[MLK_MAX_RANK], i;
  const int gaps = how == STRIDED || how == REPEATED;
  int64_t step = gaps && mlkt_int(rng, 0, 3) == 0 ? mlkt_int(rng, 2, 3) : 1;
  *low = *high = 0;
  memset(t->stride, 0, sizeof t->stride);
  for (i = 0; i < t->rank; i++) order[i] = i;
  for (i = t->rank - 1; i > 0 && how != DENSE; i--) {
    const int j = (int)mlkt_int(rng, 0, i), k = order[i];
    order[i] = order[j], order[j] = k;
  }
  for (i = t->rank - 1; i >= 0 && how != DENSE; i--) {
    const int axis = order[i];
    if (how == REPEATED && axis == 0 && t->rank > 1) continue;
    t->stride[axis] = gaps && mlkt_int(rng, 0, 3) == 0 ? -step : step;
    if (t->shape[axis] > 0) *(t->stride[axis] < 0 ? low : high) += (t->shape[axis] - 1) * t->stride[axis];
    step *= t->shape[axis] > 0 ? t->shape[axis] : 1;
    if (gaps && mlkt_int(rng, 0, 2) == 0) step += mlkt_int(rng, 1, 5);
  }
  if (how == DENSE || elements_of(t) == 0) *low = 0, *high = elements_of(t) - 1;
}

/* Appends the places of t's elements, row-major. */
static void list_elements(operand *o, const mlk_tensor *t) {
  int64_t index[MLK_MAX_RANK] = {0}, stride[MLK_MAX_RANK], n = elements_of(t), offset = 0, e, dense = 1;
  int i, explicit_strides = 0;
  for (i = 0; i < t->rank; i++) explicit_strides |= t->stride[i] != 0;
  for (i = t->rank - 1; i >= 0; i--) stride[i] = explicit_strides ? t->stride[i] : dense, dense *= t->shape[i];
  for (e = 0; e < n; e++) {
    const char *place = (const char *)t->data + offset * (int64_t)width_of(o->dtype);
    o->at[o->elements++] = (size_t)(place - (const char *)o->buffer.data);
    for (i = t->rank - 1; i >= 0; i--) {
      offset += stride[i];
      if (++index[i] < t->shape[i]) break;
      offset -= stride[i] * t->shape[i], index[i] = 0;
    }
  }
}

/* lead: elements between the buffer's start and the first tensor. Strided tensors have gaps between them. */
static void operand_layout(operand *o, const mlk_tensor *shapes, int64_t count, mlk_dtype dtype, form how, int64_t lead,
                           mlkt_flush flush, mlkt_rng *rng) {
  const size_t width = width_of(dtype);
  int64_t cursor = lead, total = 0, i;
  o->dtype = dtype, o->count = count, o->elements = 0;
  o->tensors = (mlk_tensor *)grown(o->tensors, &o->tensors_room, (size_t)count * sizeof *o->tensors);
  o->start = (int64_t *)grown(o->start, &o->start_room, (size_t)count * sizeof *o->start);
  for (i = 0; i < count; i++) {
    mlk_tensor *t = o->tensors + i;
    int64_t low, high;
    *t = shapes[i];
    t->dtype = (int32_t)dtype;
    strides_new(t, how, rng, &low, &high);
    if (i && (how == STRIDED || how == REPEATED)) cursor += mlkt_int(rng, 0, 3);
    o->start[i] = cursor - low;
    cursor += high - low + 1, total += elements_of(t);
  }
  mlkt_buffer_place(&o->buffer, (size_t)cursor * width, flush);
  o->at = (size_t *)grown(o->at, &o->at_room, (size_t)total * sizeof *o->at);
  o->before = (char *)grown(o->before, &o->before_room, o->buffer.bytes);
  o->want = (char *)grown(o->want, &o->want_room, o->buffer.bytes);
  for (i = 0; i < count; i++) {
    mlk_tensor *t = o->tensors + i;
    t->data = (char *)o->buffer.data + o->start[i] * (int64_t)width;
    list_elements(o, t);
  }
}

static double special(mlk_dtype dtype, mlkt_rng *rng) {
  static const double table[] = {0.0,
                                 -0.0,
                                 INFINITY,
                                 -INFINITY,
                                 NAN,
                                 FLT_MAX,
                                 -FLT_MAX,
                                 65504,
                                 -65504,
                                 65519.0,
                                 1e-45,
                                 -5.9604644775390625e-8,
                                 2.98023223876953125e-8,
                                 1e-40,
                                 -1e-40,
                                 FLT_MIN,
                                 3.4e38,
                                 1.0};
  const double x = table[mlkt_int(rng, 0, COUNT_OF(table) - 1)];
  if (dtype == MLK_F16 && isfinite(x) && fabs(x) > 65504) return copysign(65504, x);
  return x;
}

static void rogue(operand *o) { /* a NaN wherever one looks, in each of the three types */
  const uint16_t nan = 0x7FC1;
  size_t i;
  for (i = 0; i < o->buffer.bytes; i += 2) memcpy((char *)o->buffer.data + i, &nan, sizeof nan);
}

static void remember(operand *o) {
  if (o->buffer.bytes) memcpy(o->before, o->buffer.data, o->buffer.bytes);
}

static void operand_fill(operand *o, values kind, mlkt_rng *rng) {
  int64_t e;
  rogue(o);
  for (e = 0; e < o->elements; e++) {
    double x = kind == INTEGERS ? (double)mlkt_int(rng, -8, 8) : (double)mlkt_wide(rng, 6);
    if (kind == SPECIALS && mlkt_int(rng, 0, 5) == 0) x = special(o->dtype, rng);
    encode((char *)o->buffer.data + o->at[e], o->dtype, x);
  }
  remember(o);
}

static void operand_free(operand *o) {
  mlkt_buffer_free(&o->buffer);
  free(o->tensors), free(o->start), free(o->at), free(o->before), free(o->want);
  memset(o, 0, sizeof *o);
}

/* The buffer is what the oracle made of it, gaps included; NaNs are NaNs. */
static int operand_agrees(const operand *o, const char *name, int which) {
  const size_t width = width_of(o->dtype);
  const char *got = (const char *)o->buffer.data;
  size_t i;
  if (!CHECK_MSG(mlkt_buffer_intact(&o->buffer), "wrote beside %s[%d]", name, which)) return 0;
  if (o->buffer.bytes == 0 || memcmp(got, o->want, o->buffer.bytes) == 0) return mlkt_pass();
  for (i = 0; i < o->buffer.bytes; i += width) {
    const float x = decode(got + i, o->dtype), y = decode(o->want + i, o->dtype);
    if (memcmp(got + i, o->want + i, width) == 0 || (isnan(x) && isnan(y))) continue;
    return CHECK_MSG(0, "%s[%d], element %lu of the buffer: %.9g (%a), expected %.9g (%a)", name, which,
                     (unsigned long)(i / width), (double)x, (double)x, (double)y, (double)y);
  }
  return mlkt_pass();
}

/* ---- problems ---------------------------------------------------------------------------------------------------- */

typedef enum place {
  APART,
  TO_ONE,
  TO_ALL,
  MIXED,
  PLACES
} place; /* where the result goes; MIXED: each tensor its own */
static const char *const place_names[PLACES] = {"apart", "to one", "to all", "mixed"};

typedef struct problem {
  operand in[MLK_MAX_REPLICAS], out;
  mlk_tensor *shapes, *cut, *inputs, *outputs; /* cut: shapes of the outputs of a range */
  size_t shapes_room, cut_room, inputs_room, outputs_room, owner_room;
  int64_t count, cuts, total, low, high; /* the range, [0, total) where the descriptor says 0, 0 */
  place where;
  signed char *owner; /* of each element: the replica it is written to, or -1: out */
  float weights[MLK_MAX_REPLICAS], scale, norm;
  uint64_t used, taking; /* as the call and the oracle say */
  mlk_average_desc desc;
} problem;

static problem *problem_new(void) {
  problem *p = (problem *)calloc(1, sizeof *p);
  if (!p) exit(2);
  return p;
}

static void problem_free(problem *p) {
  int r;
  for (r = 0; r < MLK_MAX_REPLICAS; r++) operand_free(&p->in[r]);
  operand_free(&p->out);
  free(p->shapes), free(p->cut), free(p->inputs), free(p->outputs), free(p->owner);
  free(p);
}

/* count tensors of no shape yet. */
static mlk_tensor *shapes_new(mlk_tensor **shapes, size_t *room, int64_t count) {
  *shapes = (mlk_tensor *)grown(*shapes, room, (size_t)count * sizeof **shapes);
  memset(*shapes, 0, (size_t)count * sizeof **shapes);
  return *shapes;
}

static void shape_set(mlk_tensor *t, int rank, int64_t a, int64_t b) {
  t->rank = rank, t->shape[0] = a, t->shape[1] = b;
}

/* One tensor of so many elements. */
static void one_tensor(problem *p, int64_t elements) {
  p->count = 1;
  shape_set(shapes_new(&p->shapes, &p->shapes_room, 1), 1, elements, 0);
}

static void some_tensors(problem *p, int64_t count, int64_t longest, int max_rank, mlkt_rng *rng) {
  int64_t i;
  p->count = count;
  shapes_new(&p->shapes, &p->shapes_room, count);
  for (i = 0; i < count; i++) {
    mlk_tensor *t = p->shapes + i;
    int axis;
    t->rank = (int)mlkt_int(rng, 1, max_rank);
    for (axis = 0; axis < t->rank; axis++) t->shape[axis] = mlkt_int(rng, 1, t->rank > 2 ? 5 : 9);
    t->shape[mlkt_int(rng, 0, t->rank - 1)] = mlkt_int(rng, mlkt_int(rng, 0, 5) ? 1 : 0, longest);
  }
}

static mlkt_flush any_flush(mlkt_rng *rng) { return mlkt_int(rng, 0, 1) ? MLKT_HEAD : MLKT_TAIL; }

/* The outputs of a range: its elements cut into rows, matrices and empty tensors. */
static void cut_range(problem *p, mlkt_rng *rng) {
  int64_t left = p->high - p->low, i;
  p->cuts = left ? mlkt_int(rng, 1, 6) : mlkt_int(rng, 0, 2);
  shapes_new(&p->cut, &p->cut_room, p->cuts);
  for (i = 0; i < p->cuts; i++) {
    const int64_t n = i == p->cuts - 1 ? left : mlkt_int(rng, 0, left);
    const int64_t rows = mlkt_int(rng, 2, 4);
    if (n % rows == 0)
      shape_set(p->cut + i, 2, rows, n / rows);
    else
      shape_set(p->cut + i, 1, n, 0);
    left -= n;
  }
}

typedef enum looseness {
  TIGHT,
  LOOSE,
  ALIKE
} looseness; /* layouts: dense; each its own; permuted, in all the same way */

/* Memory for the operands, as the descriptor and the fields set so far ask. */
static void problem_layout(problem *p, int replicas, mlk_dtype in, mlk_dtype out, looseness loose, mlkt_rng *rng) {
  const int ranged = p->desc.from != 0 || p->desc.to != 0;
  const mlkt_rng same = *rng;
  int64_t i, e, at = 0;
  int r;
  p->inputs = (mlk_tensor *)grown(p->inputs, &p->inputs_room, (size_t)(replicas * p->count) * sizeof *p->inputs);
  for (r = 0; r < replicas; r++) {
    form how = loose == TIGHT ? DENSE : loose == ALIKE ? PERMUTED : (form)mlkt_int(rng, 0, FORMS - 1);
    const int64_t lead = mlkt_int(rng, 0, 2) ? 0 : mlkt_int(rng, 1, 17);
    mlkt_rng order = loose == ALIKE ? same : *rng;
    if (how == REPEATED && p->where != APART) how = STRIDED;
    operand_layout(&p->in[r], p->shapes, p->count, in, how, lead, any_flush(rng), &order);
    if (loose != ALIKE) *rng = order;
    for (i = 0; i < p->count; i++) p->inputs[r * p->count + i] = p->in[r].tensors[i];
  }
  p->total = p->in[0].elements;
  p->low = ranged ? p->desc.from : 0, p->high = ranged ? p->desc.to : p->total;
  if (ranged) cut_range(p, rng);
  {
    const form how = loose == TIGHT ? DENSE : loose == ALIKE ? PERMUTED : mlkt_int(rng, 0, 1) ? STRIDED : DENSE;
    const int64_t lead = mlkt_int(rng, 0, 2) ? 0 : mlkt_int(rng, 1, 17);
    mlkt_rng order = loose == ALIKE ? same : *rng;
    operand_layout(&p->out, ranged ? p->cut : p->shapes, ranged ? p->cuts : p->count, out, how, lead, any_flush(rng),
                   &order);
    if (loose != ALIKE) *rng = order;
  }
  p->outputs = (mlk_tensor *)grown(p->outputs, &p->outputs_room, (size_t)p->out.count * sizeof *p->outputs);
  p->owner = (signed char *)grown(p->owner, &p->owner_room, (size_t)p->total);
  memset(p->owner, -1, (size_t)p->total);
  for (i = 0; i < p->out.count; i++) p->outputs[i] = p->out.tensors[i];
  r = (int)mlkt_int(rng, 0, replicas - 1);
  for (i = 0; i < p->count && (p->where == TO_ONE || p->where == MIXED); i++) {
    if (p->where == MIXED) r = (int)mlkt_int(rng, -1, replicas - 1);
    if (r >= 0) p->outputs[i] = p->in[r].tensors[i];
    for (e = elements_of(p->shapes + i); e > 0; e--) p->owner[at++] = (signed char)r;
  }
  p->desc.replicas = replicas, p->desc.count = p->count, p->desc.inputs = p->inputs;
  p->desc.outputs = p->where == TO_ALL ? NULL : p->outputs;
  p->desc.output_count = p->where == TO_ALL ? 0 : p->out.count;
  p->desc.used = &p->used;
}

static void problem_fill(problem *p, values kind, mlkt_rng *rng) {
  int r;
  for (r = 0; r < (int)p->desc.replicas; r++) operand_fill(&p->in[r], kind, rng);
  rogue(&p->out);
  remember(&p->out);
}

static float weight_of(const problem *p, int r) {
  if (p->desc.absent >> r & 1) return 0;
  return p->desc.weights ? p->desc.weights[r] : 1.0f;
}

static int finite_in_range(const problem *p, int r) {
  int64_t e;
  for (e = p->low; e < p->high; e++)
    if (!isfinite(decode(p->in[r].before + p->in[r].at[e], p->in[r].dtype))) return 0;
  return 1;
}

static void put(problem *p, int64_t e, double x) {
  int r;
  if (p->where != TO_ALL && p->owner[e] < 0) encode(p->out.want + p->out.at[e - p->low], p->out.dtype, x);
  for (r = 0; r < (int)p->desc.replicas; r++)
    if (p->where == TO_ALL || p->owner[e] == r) encode(p->in[r].want + p->in[r].at[e], p->in[r].dtype, x);
}

static void want_before(operand *o) {
  if (o->buffer.bytes) memcpy(o->want, o->before, o->buffer.bytes);
}

/* The definition, from what the buffers held before. */
static void oracle(problem *p) {
  const int replicas = (int)p->desc.replicas;
  double sum = 0;
  float c;
  int64_t e;
  int r;
  p->taking = 0;
  want_before(&p->out);
  for (r = 0; r < replicas; r++) {
    want_before(&p->in[r]);
    if (!(weight_of(p, r) > 0) || (p->desc.skip_nonfinite && !finite_in_range(p, r))) continue;
    p->taking |= UINT64_C(1) << r;
    sum += (double)weight_of(p, r);
  }
  if (!p->taking) return;
  c = (float)((p->desc.scale ? (double)*p->desc.scale : 1.0) / sum);
  for (e = p->low; e < p->high; e++) {
    float t = 0;
    for (r = 0; r < replicas; r++)
      if (p->taking >> r & 1) t = fmaf(weight_of(p, r), decode(p->in[r].before + p->in[r].at[e], p->in[r].dtype), t);
    t = c * t; /* to f32; encode rounds that to a half */
    put(p, e, (double)t);
  }
}

static void restore(operand *o) {
  if (o->buffer.bytes) memcpy(o->buffer.data, o->before, o->buffer.bytes);
}

/* Nobody is left because nobody is finite: outputs that are not inputs may have been written, other memory not. What
   stands there is taken as right. */
static void forgive(problem *p) {
  const size_t width = width_of(p->out.dtype);
  uint64_t read = 0;
  int64_t e;
  int r;
  for (r = 0; r < (int)p->desc.replicas; r++) read |= weight_of(p, r) > 0 ? UINT64_C(1) << r : 0;
  if (!read || p->where == TO_ALL) return;
  for (e = p->low; e < p->high; e++)
    if (p->owner[e] >= 0 && (read >> p->owner[e] & 1))
      return; /* an input that is read is an output: looked at before */
  for (e = p->low; e < p->high; e++) {
    operand *o = p->owner[e] < 0 ? &p->out : &p->in[p->owner[e]];
    const size_t at = o->at[p->owner[e] < 0 ? e - p->low : e];
    memcpy(o->want + at, (const char *)o->buffer.data + at, width);
  }
}

/* The norm is that of the tensors written, as mlk_clip_norm measures them. */
static void check_norm(const problem *p) {
  mlk_context *ctx = crew_get(crew.isas[crew.rows - 1], 1);
  mlk_clip_norm_desc clip;
  float norm = -1;
  memset(&clip, 0, sizeof clip);
  clip.grads = p->desc.outputs ? p->desc.outputs : p->desc.inputs;
  clip.count = p->desc.outputs ? p->desc.output_count : p->desc.count;
  clip.max_norm = INFINITY;
  clip.norm = &norm;
  if (ctx && CHECK_OK(ctx, mlk_clip_norm(ctx, &clip))) CHECK_BITS_F32(*p->desc.norm, norm);
}

/* Do only elements in memory tell that no replica is left? A device then finds out after the call, which mlk_sync or,
   with operands that are staged, the call itself says. */
static int told_late(const problem *p, mlk_context *ctx) {
  mlk_info info;
  int r, reads = 0;
  if (!mlkt_opt.cuda || !CHECK_OK(ctx, mlk_get_info(ctx, &info)) || strcmp(info.backend, "cuda") != 0) return 0;
  for (r = 0; r < (int)p->desc.replicas; r++) reads |= weight_of(p, r) > 0;
  return !p->taking && reads;
}

static int average_late(problem *p, mlk_context *ctx) {
  const mlk_status status = mlk_average(ctx, &p->desc);
  return CHECK_STATUS(ctx, status == MLK_OK ? mlk_sync(ctx) : status, MLK_ERR_REPLICA) && CHECK_OK(ctx, mlk_sync(ctx));
}

/* The call on ctx, compared with the oracle in all memory it could have reached. */
static int agrees(problem *p, mlk_context *ctx) {
  const uint64_t rogue_used = UINT64_C(0xFEFEFEFEFEFEFEFE);
  int r, ok;
  for (r = 0; r < (int)p->desc.replicas; r++) restore(&p->in[r]);
  restore(&p->out);
  p->used = rogue_used, p->norm = mlkt_float(MLKT_ROGUE_F32);
  ok = told_late(p, ctx) ? average_late(p, ctx)
                         : CHECK_STATUS(ctx, mlk_average(ctx, &p->desc), p->taking ? MLK_OK : MLK_ERR_REPLICA);
  if (!p->taking && p->desc.skip_nonfinite) forgive(p);
  for (r = 0; r < (int)p->desc.replicas && ok; r++) ok = operand_agrees(&p->in[r], "inputs", r);
  ok = ok && operand_agrees(&p->out, "outputs", 0);
  if (ok && p->desc.used)
    ok = CHECK_MSG(p->used == (p->taking || told_late(p, ctx) ? p->taking : rogue_used),
                   "used is %" PRIx64 ", expected %" PRIx64, p->used, p->taking);
  if (ok && p->desc.norm && p->taking) check_norm(p);
  if (ok && p->desc.norm && !p->taking) ok = CHECK(mlkt_bits(p->norm) == MLKT_ROGUE_F32);
  return ok;
}

static void note_problem(const problem *p, uint64_t index, mlk_isa isa, int threads) {
  const mlk_average_desc *d = &p->desc;
  mlkt_note("point %" PRIu64 ": %d replicas of %d tensors, %d elements from %d to %d, dtype %d to %d, %s, stores %d, "
            "absent %" PRIx64 "%s%s%s, isa %s, threads %d",
            index, (int)d->replicas, (int)d->count, (int)p->total, (int)p->low, (int)p->high, (int)p->in[0].dtype,
            (int)p->out.dtype, place_names[p->where], (int)d->stores, d->absent, d->weights ? ", weights" : "",
            d->scale ? ", scale" : "", d->skip_nonfinite ? ", skip" : "", mlk_isa_name(isa), threads);
}

/* Every row, and the reference where it is not slow, on a number of threads that changes with index. */
static int every_row(problem *p, uint64_t index) {
  const int slow = p->total * p->desc.replicas > 20000 && index % 16;
  int r, ok = 1;
  oracle(p);
  for (r = slow ? 0 : -1; r < crew.rows && ok; r++) {
    const mlk_isa isa = r < 0 ? MLK_ISA_REFERENCE : crew.isas[r];
    const int threads = crew_threads(index + (uint64_t)(r + 1));
    mlk_context *ctx = crew_get(isa, threads);
    note_problem(p, index, isa, threads);
    ok = ctx && agrees(p, ctx);
  }
  return ok;
}

static const int replica_counts[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 17, 64};
static const int64_t edge_counts[] = {0,  1,  2,  3,  4,  5,   7,   8,   9,   15,  16,  17,  31,   32,   33,
                                      47, 63, 64, 65, 97, 127, 128, 129, 255, 257, 511, 513, 1009, 2053, 4099};
static const mlk_dtype dtypes[] = {MLK_F32, MLK_F16, MLK_BF16};

static void any_weights(problem *p, int replicas, mlkt_rng *rng) {
  const int64_t how = mlkt_int(rng, 0, 3);
  int r;
  for (r = 0; r < replicas; r++) p->weights[r] = how == 1 ? (float)mlkt_int(rng, 0, 3) : 4 * mlkt_unit(rng);
  p->weights[mlkt_int(rng, 0, replicas - 1)] += 1;
  p->desc.weights = how ? p->weights : NULL;
  if (mlkt_int(rng, 0, 3) == 0) p->desc.absent = mlkt_u64(rng) & (~UINT64_C(0) >> (64 - replicas));
  p->scale = mlkt_wide(rng, 4);
  if (mlkt_int(rng, 0, 2) == 0) p->desc.scale = &p->scale;
}

/* As mlkt_keep, but never nothing of points. */
static int keep(uint64_t index, uint64_t points) {
  return mlkt_keep(index) || index % points == mlkt_opt.seed % points;
}

/* ---- any list, layout, range, weights and place ------------------------------------------------------------------ */

static void any_list(problem *p, mlkt_rng *rng) {
  switch (mlkt_int(rng, 0, 9)) {
  case 0: some_tensors(p, mlkt_int(rng, 20, 200), 9, 1, rng); break;
  case 1: one_tensor(p, mlkt_int(rng, 3000, 20000)); break;
  case 2: some_tensors(p, mlkt_int(rng, 0, 3), 700, 2, rng); break;
  case 3:
  case 4:
  case 5: some_tensors(p, mlkt_int(rng, 1, 6), 60, MLK_MAX_RANK, rng); break;
  default: one_tensor(p, edge_counts[mlkt_int(rng, 0, COUNT_OF(edge_counts) - 1)]); break;
  }
}

static void any_range(problem *p, mlkt_rng *rng) {
  int64_t total = 0, i;
  for (i = 0; i < p->count; i++) total += elements_of(p->shapes + i);
  p->desc.from = mlkt_int(rng, 0, total);
  p->desc.to = mlkt_int(rng, p->desc.from, mlkt_int(rng, 0, 1) ? total : p->desc.from + (total - p->desc.from) / 8);
}

static void sweep_with(values kind, uint64_t points) {
  problem *p = problem_new();
  uint64_t index;
  crew_open();
  for (index = 0; index < points && !mlkt_hopeless(); index++) {
    mlkt_rng rng = point_rng(index);
    const int replicas = replica_counts[mlkt_int(&rng, 0, mlkt_int(&rng, 0, 2) ? 4 : COUNT_OF(replica_counts) - 1)];
    mlk_dtype in, out;
    if (!mlkt_keep(index)) continue;
    memset(&p->desc, 0, sizeof p->desc);
    any_list(p, &rng);
    p->where = (place)mlkt_int(&rng, 0, PLACES - 1);
    if (mlkt_int(&rng, 0, 2) == 0 && (p->where == APART || p->where == TO_ALL)) any_range(p, &rng);
    in = dtypes[mlkt_int(&rng, 0, 2)];
    out = p->where == APART ? dtypes[mlkt_int(&rng, 0, 2)] : in;
    any_weights(p, replicas, &rng);
    p->desc.stores = (mlk_stores)mlkt_int(&rng, 0, MLK_STORES_COUNT - 1);
    p->desc.skip_nonfinite = mlkt_int(&rng, 0, 2) == 0;
    problem_layout(p, replicas, in, out, (looseness)mlkt_int(&rng, TIGHT, ALIKE), &rng);
    problem_fill(p, kind, &rng);
    if (out == MLK_F32 && mlkt_int(&rng, 0, 2) == 0 && (p->where == APART || p->high - p->low == p->total))
      p->desc.norm = &p->norm;
    every_row(p, index);
  }
  crew_close();
  problem_free(p);
}

static void sweep(void) { sweep_with(REALS, 2000); }
static void specials_sweep(void) { sweep_with(SPECIALS, 1000); }

/* Integers, and weights whose sum the scale takes out again: the result is an integer, and ==. */
static void integers(void) {
  problem *p = problem_new();
  uint64_t index = 0;
  int n, k, weighted;
  crew_open();
  for (n = 0; n < COUNT_OF(replica_counts); n++)
    for (k = 0; k < COUNT_OF(edge_counts); k++)
      for (weighted = 0; weighted < 2 && !mlkt_hopeless(); weighted++, index++) {
        const int replicas = replica_counts[n];
        mlkt_rng rng = point_rng(index);
        int row, r;
        int64_t e;
        if (!mlkt_keep(index)) continue;
        memset(&p->desc, 0, sizeof p->desc);
        one_tensor(p, edge_counts[k]);
        p->where = (place)(index % 2 ? APART : TO_ALL);
        p->scale = 0;
        for (r = 0; r < replicas; r++) p->scale += p->weights[r] = weighted ? (float)mlkt_int(&rng, 1, 3) : 1.0f;
        p->desc.scale = &p->scale;
        p->desc.weights = weighted ? p->weights : NULL;
        p->desc.stores = (mlk_stores)(index % MLK_STORES_COUNT);
        problem_layout(p, replicas, MLK_F32, MLK_F32, TIGHT, &rng);
        problem_fill(p, INTEGERS, &rng);
        oracle(p);
        for (e = 0; e < p->total; e++) { /* the oracle says so too */
          int64_t sum = 0;
          float got;
          for (r = 0; r < replicas; r++)
            sum += (int64_t)decode(p->in[r].before + p->in[r].at[e], MLK_F32) * (int64_t)p->weights[r];
          got = p->where == APART ? decode(p->out.want + p->out.at[e], MLK_F32)
                                  : decode(p->in[0].want + p->in[0].at[e], MLK_F32);
          if (!CHECK_MSG(got == (float)sum, "the oracle gives %.9g, the sum is %d", (double)got, (int)sum)) break;
        }
        for (row = -1; row < crew.rows; row++) {
          const mlk_isa isa = row < 0 ? MLK_ISA_REFERENCE : crew.isas[row];
          mlk_context *ctx = crew_get(isa, crew_threads(index));
          note_problem(p, index, isa, crew_threads(index));
          if (!ctx || !agrees(p, ctx)) break;
        }
      }
  crew_close();
  problem_free(p);
}

/* The manual's bound, against the mean in long double. */
static void error(void) {
  problem *p = problem_new();
  uint64_t index;
  crew_open();
  for (index = 0; index < 240 && !mlkt_hopeless(); index++) {
    mlkt_rng rng = point_rng(index);
    const int replicas = replica_counts[index % COUNT_OF(replica_counts)];
    mlk_context *ctx = crew_get(crew.isas[index % (uint64_t)crew.rows], 1);
    long double sum = 0, scale;
    int64_t e;
    int r;
    if (!keep(index, 240) || !ctx) continue;
    memset(&p->desc, 0, sizeof p->desc);
    one_tensor(p, 1000);
    p->where = APART;
    any_weights(p, replicas, &rng);
    p->desc.absent = 0;
    problem_layout(p, replicas, dtypes[index % 3], MLK_F32, TIGHT, &rng);
    problem_fill(p, REALS, &rng);
    if (!CHECK_OK(ctx, mlk_average(ctx, &p->desc))) break;
    for (r = 0; r < replicas; r++) sum += (long double)weight_of(p, r);
    scale = p->desc.scale ? (long double)p->scale : 1.0L;
    for (e = 0; e < p->total; e++) {
      long double exact = 0, size = 0, got, bound;
      int n = 0;
      for (r = 0; r < replicas; r++) {
        const long double x = (long double)decode(p->in[r].before + p->in[r].at[e], p->in[r].dtype);
        exact += (long double)weight_of(p, r) * x;
        size += (long double)weight_of(p, r) * fabsl(x);
        n += weight_of(p, r) > 0;
      }
      got = (long double)decode((const char *)p->out.buffer.data + p->out.at[e], MLK_F32);
      bound = (n + 3) / 16777216.0L * (1 + 1 / 1024.0L) * fabsl(scale / sum) * size;
      if (!CHECK_MSG(fabsl(got - scale * exact / sum) <= bound, "element %d: %.9Lg, exactly %.12Lg, bound %.3Lg",
                     (int)e, got, scale * exact / sum, bound))
        break;
    }
  }
  crew_close();
  problem_free(p);
}

/* ---- threads, streaming, long lists ------------------------------------------------------------------------------ */

/* Problems large enough for many tasks: the same bits on 1, 2, 3, 4 and 7 threads of each row, whatever the stores. */
static void bits_of_threads(void) {
  static const int threads[] = {1, 2, 3, 4, 7};
  problem *p = problem_new();
  uint64_t index;
  crew_open();
  for (index = 0; index < 18 && !mlkt_hopeless(); index++) {
    mlkt_rng rng = point_rng(index);
    const mlk_dtype in = dtypes[index % 3];
    int row, t, stores;
    if (!keep(index, 18)) continue;
    memset(&p->desc, 0, sizeof p->desc);
    if (index % 2)
      some_tensors(p, 40, 2500, 2, &rng);
    else
      one_tensor(p, 200003);
    p->where = (place)(index % PLACES);
    if (index % 4 == 0 && index % 3 == 0) any_range(p, &rng);
    any_weights(p, 3, &rng);
    p->desc.absent = 0, p->weights[0] += 1;
    p->desc.skip_nonfinite = index % 5 == 0;
    problem_layout(p, 3, in, p->where == APART ? dtypes[index / 3 % 3] : in,
                   index % 6 == 5   ? LOOSE
                   : index % 6 == 3 ? ALIKE
                                    : TIGHT,
                   &rng);
    problem_fill(p, REALS, &rng);
    if (p->out.dtype == MLK_F32 && p->where != TO_ALL) p->desc.norm = &p->norm;
    oracle(p);
    for (row = -1; row < crew.rows; row++)
      for (t = 0; t < COUNT_OF(threads); t++) {
        const mlk_isa isa = row < 0 ? MLK_ISA_REFERENCE : crew.isas[row];
        mlk_context *ctx;
        if (threads[t] > crew.threads || (row < 0 && t != (int)(index % 5)) || !(ctx = crew_get(isa, threads[t])))
          continue;
        for (stores = 0; stores < (row < 0 ? 1 : (int)MLK_STORES_COUNT); stores++) {
          p->desc.stores = (mlk_stores)stores;
          note_problem(p, index, isa, threads[t]);
          if (!agrees(p, ctx)) row = t = 99, stores = MLK_STORES_COUNT;
        }
      }
  }
  crew_close();
  problem_free(p);
}

/* The norm of outputs that are cut otherwise than the inputs, of long lists, by many tasks, and past lines that
   streaming starts with: sums go on where the last piece ended. */
static void norms(void) {
  problem *p = problem_new();
  uint64_t index;
  crew_open();
  for (index = 0; index < 120 && !mlkt_hopeless(); index++) {
    mlkt_rng rng = point_rng(index);
    if (!keep(index, 120)) continue;
    memset(&p->desc, 0, sizeof p->desc);
    if (index % 3 == 0)
      some_tensors(p, 200, 90, 1, &rng);
    else
      some_tensors(p, mlkt_int(&rng, 1, 30), index % 15 == 1 ? 9000 : 700, 2, &rng);
    p->where = index % 4 == 3 ? MIXED : APART;
    if (index % 4 < 2) any_range(p, &rng);
    p->desc.stores = (mlk_stores)(index / 2 % MLK_STORES_COUNT);
    p->desc.norm = &p->norm;
    problem_layout(p, 3, p->where == MIXED ? MLK_F32 : dtypes[index % 3], MLK_F32, index % 8 == 6 ? LOOSE : TIGHT,
                   &rng);
    problem_fill(p, REALS, &rng);
    every_row(p, index);
  }
  crew_close();
  problem_free(p);
}

/* Beyond any cache, where AUTO may choose to stream; a range of it as well, so that streamed lines are cut. */
static void beyond_caches(void) {
  problem *p = problem_new();
  uint64_t index;
  crew_open();
  for (index = 0; index < 3 && !mlkt_hopeless(); index++) {
    mlkt_rng rng = point_rng(index);
    int row;
    if (mlkt_opt.quick && index != mlkt_opt.seed % 3) continue;
    memset(&p->desc, 0, sizeof p->desc);
    one_tensor(p, (mlkt_opt.quick ? 300000 : 3000000) + 13);
    p->where = APART;
    if (index == 1) p->desc.from = 5, p->desc.to = p->shapes[0].shape[0] - 7;
    problem_layout(p, 2, index == 2 ? MLK_BF16 : MLK_F32, index == 2 ? MLK_BF16 : MLK_F32, TIGHT, &rng);
    problem_fill(p, REALS, &rng);
    oracle(p);
    for (row = 0; row < crew.rows; row++) {
      mlk_context *ctx = crew_get(crew.isas[row], crew_threads((uint64_t)row + 1));
      note_problem(p, index, crew.isas[row], crew_threads((uint64_t)row + 1));
      if (!ctx || !agrees(p, ctx)) break;
    }
  }
  crew_close();
  problem_free(p);
}

/* A thousand small tensors, many of them empty, in every place; and cut into ranges. */
static void long_lists(void) {
  problem *p = problem_new();
  uint64_t index;
  crew_open();
  for (index = 0; index < 24 && !mlkt_hopeless(); index++) {
    mlkt_rng rng = point_rng(index);
    int64_t i;
    if (!keep(index, 24)) continue;
    memset(&p->desc, 0, sizeof p->desc);
    some_tensors(p, 1000, 40, 1, &rng);
    for (i = 0; i < p->count; i++)
      if (mlkt_int(&rng, 0, 9) == 0) p->shapes[i].shape[0] = 0;
    p->where = (place)(index % PLACES);
    if (index % 2 == 0 && index % 3) any_range(p, &rng);
    problem_layout(p, 4, dtypes[index % 3], p->where == APART ? MLK_F32 : dtypes[index % 3],
                   index % 5 == 4 ? LOOSE : TIGHT, &rng);
    problem_fill(p, REALS, &rng);
    every_row(p, index);
  }
  crew_close();
  problem_free(p);
}

/* ---- ranges ------------------------------------------------------------------------------------------------------ */

/* All ranges of a small list, and the parts of a larger one together: the bits of the whole. */
static void ranges(void) {
  enum { SMALL = 23 };
  problem *p = problem_new();
  uint64_t index = 0;
  int64_t from, to;
  crew_open();
  for (from = 0; from <= SMALL; from++)
    for (to = from; to <= SMALL && !mlkt_hopeless(); to++, index++) {
      mlkt_rng rng = point_rng(index);
      if (!mlkt_keep(index)) continue;
      memset(&p->desc, 0, sizeof p->desc);
      p->count = 5;
      shapes_new(&p->shapes, &p->shapes_room, p->count);
      shape_set(p->shapes, 1, 3, 0), shape_set(p->shapes + 1, 2, 0, 4), shape_set(p->shapes + 2, 2, 2, 5);
      shape_set(p->shapes + 3, 1, 1, 0), shape_set(p->shapes + 4, 2, 3, 3);
      p->desc.from = from, p->desc.to = to;
      p->where = index % 2 ? APART : TO_ALL;
      problem_layout(p, 3, dtypes[index % 3], p->where == APART ? MLK_F32 : dtypes[index % 3], (looseness)(index % 3),
                     &rng);
      problem_fill(p, REALS, &rng);
      every_row(p, index);
    }
  for (index = 1000; index < 1040 && !mlkt_hopeless(); index++) {
    mlkt_rng rng = point_rng(index);
    mlk_context *ctx = crew_get(crew.isas[index % (uint64_t)crew.rows], crew_threads(index));
    char *whole;
    if (!mlkt_keep(index) || !ctx) continue;
    memset(&p->desc, 0, sizeof p->desc);
    some_tensors(p, 7, 3000, 2, &rng);
    p->where = APART;
    any_weights(p, 3, &rng);
    p->desc.absent = 0, p->weights[1] += 1;
    problem_layout(p, 3, MLK_F32, MLK_F32, TIGHT, &rng);
    problem_fill(p, REALS, &rng);
    note_problem(p, index, crew.isas[index % (uint64_t)crew.rows], crew_threads(index));
    if (!CHECK_OK(ctx, mlk_average(ctx, &p->desc))) break;
    whole = (char *)malloc(p->out.buffer.bytes + 1);
    if (!whole) exit(2);
    memcpy(whole, p->out.buffer.data, p->out.buffer.bytes);
    restore(&p->out);
    for (from = 0; from < p->total;
         from = to) { /* the dense outputs are one vector: each part writes its piece of it */
      mlk_tensor part = mlk_f32((float *)p->outputs[0].data + from, 1);
      to = from + mlkt_int(&rng, 1, 1 + (p->total - from) / 2);
      part.shape[0] = to - from;
      p->desc.from = from, p->desc.to = to, p->desc.outputs = &part, p->desc.output_count = 1;
      if (!CHECK_OK(ctx, mlk_average(ctx, &p->desc))) break;
    }
    CHECK(memcmp(whole, p->out.buffer.data, p->out.buffer.bytes) == 0);
    free(whole);
  }
  crew_close();
  problem_free(p);
}

/* ---- edges of memory --------------------------------------------------------------------------------------------- */

/* Every length up to a few vectors, flush with a page that must not be touched in front or behind, and every start
   within a line; each way of storing. */
static void guards(void) {
  problem *p = problem_new();
  uint64_t index = 0;
  int64_t n;
  int at;
  crew_open();
  for (n = 0; n <= 80; n++)
    for (at = 0; at < 12 && !mlkt_hopeless(); at++, index++) {
      mlkt_rng rng = point_rng(index);
      const mlk_dtype in = dtypes[at % 3], out = at % 2 ? in : MLK_F32;
      int r;
      int64_t lead = at < 4 ? 0 : mlkt_int(&rng, 0, 33);
      if (!mlkt_keep(index)) continue;
      memset(&p->desc, 0, sizeof p->desc);
      one_tensor(p, n);
      p->where = at % 4 == 3 ? TO_ALL : APART;
      p->desc.stores = (mlk_stores)(index % MLK_STORES_COUNT);
      problem_layout(p, 3, in, p->where == TO_ALL ? in : out, TIGHT, &rng);
      for (r = 0; r < 3; r++) {
        operand_layout(&p->in[r], p->shapes, 1, in, DENSE, lead, at % 2 ? MLKT_HEAD : MLKT_TAIL, &rng);
        p->inputs[r] = p->in[r].tensors[0];
        if (at >= 8) lead = mlkt_int(&rng, 0, 33); /* another start for each */
      }
      operand_layout(&p->out, p->shapes, 1, p->out.dtype, DENSE, lead, at % 2 ? MLKT_HEAD : MLKT_TAIL, &rng);
      p->outputs[0] = p->out.tensors[0];
      problem_fill(p, REALS, &rng);
      every_row(p, index);
    }
  crew_close();
  problem_free(p);
}

/* Replicas that take no part are not read: their data is a page that must not be touched. */
static void absent_unread(void) {
  problem *p = problem_new();
  uint64_t index;
  crew_open();
  for (index = 0; index < 60 && !mlkt_hopeless(); index++) {
    mlkt_rng rng = point_rng(index);
    const int replicas = index % 4 ? (int)mlkt_int(&rng, 2, 9) : MLK_MAX_REPLICAS;
    mlkt_buffer nowhere = mlkt_buffer_new(1, MLKT_HEAD);
    int r;
    if (keep(index, 60)) {
      memset(&p->desc, 0, sizeof p->desc);
      one_tensor(p, edge_counts[mlkt_int(&rng, 0, COUNT_OF(edge_counts) - 1)]);
      p->where = APART;
      problem_layout(p, replicas, MLK_F32, MLK_F32, TIGHT, &rng);
      problem_fill(p, REALS, &rng);
      p->desc.weights = p->weights, p->desc.skip_nonfinite = (int)(index % 2);
      for (r = 0; r < replicas; r++) {
        const int out = r != (int)(index % (uint64_t)replicas) && mlkt_int(&rng, 0, 1);
        p->weights[r] = 1 + mlkt_unit(&rng);
        if (!out) continue;
        p->inputs[r].data = nowhere.map + nowhere.capacity; /* beyond the last usable byte */
        if (mlkt_int(&rng, 0, 1))
          p->weights[r] = 0;
        else
          p->desc.absent |= UINT64_C(1) << r;
      }
      every_row(p, index);
    }
    mlkt_buffer_free(&nowhere);
  }
  crew_close();
  problem_free(p);
}

/* ---- replicas that are not finite -------------------------------------------------------------------------------- */

static const double bad_values[] = {NAN, INFINITY, -INFINITY};

/* One bad element, in each replica and place of it: that replica is left out, where it lies in the range and takes
   part, and nothing else is. */
static void skip_nonfinite(void) {
  static const int64_t counts[] = {1, 2, 7, 8, 9, 16, 17, 33, 70, 1009, 40000};
  problem *p = problem_new();
  uint64_t index = 0;
  int k, type, r;
  crew_open();
  for (k = 0; k < COUNT_OF(counts); k++)
    for (type = 0; type < 3; type++)
      for (r = 0; r < 3; r++) {
        const int64_t n = counts[k];
        int64_t tries = n <= 70 ? n : n < 10000 ? 40 : 6, i;
        for (i = 0; i < tries && !mlkt_hopeless(); i++, index++) {
          mlkt_rng rng = point_rng(index);
          const int64_t e = n <= 70 ? i : i == 0 ? 0 : i == 1 ? n - 1 : mlkt_int(&rng, 0, n - 1);
          if (!mlkt_keep(index)) continue;
          memset(&p->desc, 0, sizeof p->desc);
          if (index % 3)
            one_tensor(p, n);
          else {
            p->count = 3;
            shapes_new(&p->shapes, &p->shapes_room, 3);
            shape_set(p->shapes, 1, n / 3, 0), shape_set(p->shapes + 1, 1, n / 2 - n / 3, 0);
            shape_set(p->shapes + 2, 1, n - n / 2, 0);
          }
          p->where = (place)(index % PLACES);
          if (p->where != TO_ONE && p->where != MIXED && index % 5 == 0) any_range(p, &rng);
          any_weights(p, 3, &rng);
          p->desc.skip_nonfinite = 1;
          problem_layout(p, 3, dtypes[type], p->where == APART ? dtypes[index % 3] : dtypes[type],
                         index % 7 == 0   ? LOOSE
                         : index % 7 == 1 ? ALIKE
                                          : TIGHT,
                         &rng);
          problem_fill(p, REALS, &rng);
          encode((char *)p->in[r].buffer.data + p->in[r].at[e], dtypes[type], bad_values[index % 3]);
          remember(&p->in[r]);
          every_row(p, index);
        }
      }
  crew_close();
  problem_free(p);
}

/* Several bad replicas, all of them; the largest finite numbers are no reason to leave anybody out; a signalling NaN is
   one; without the option everything takes part. */
static void skip_several(void) {
  problem *p = problem_new();
  uint64_t index;
  crew_open();
  for (index = 0; index < 256 && !mlkt_hopeless(); index++) {
    mlkt_rng rng = point_rng(index);
    const mlk_dtype dtype = dtypes[index % 3];
    const uint16_t largest[] = {0x7BFF, 0x7F7F}, signalling[] = {0x7C01, 0x7F81};
    const uint32_t most = 0x7F7FFFFF, loud = 0x7F800001;
    const int at = dtype == MLK_BF16;
    int r;
    if (!keep(index, 256)) continue;
    memset(&p->desc, 0, sizeof p->desc);
    one_tensor(p, mlkt_int(&rng, 1, 100));
    p->where = (place)(index / 3 % PLACES);
    p->desc.skip_nonfinite = index % 8 != 7;
    problem_layout(p, 5, dtype, dtype, index % 4 == 0 ? LOOSE : TIGHT, &rng);
    problem_fill(p, REALS, &rng);
    for (r = 0; r < 5; r++) {
      operand *o = &p->in[r];
      char *x = (char *)o->buffer.data + o->at[mlkt_int(&rng, 0, o->elements - 1)];
      const int bad = index >= 224 || mlkt_int(&rng, 0, 1);
      if (dtype == MLK_F32)
        memcpy(x, bad ? &loud : &most, 4);
      else
        memcpy(x, bad ? signalling + at : largest + at, 2);
      remember(o);
    }
    if (dtype == MLK_F32 && index % 2) p->desc.norm = &p->norm;
    every_row(p, index);
    if (index >= 224 && p->desc.skip_nonfinite) CHECK(p->taking == 0);
  }
  crew_close();
  problem_free(p);
}

/* ---- rounding ---------------------------------------------------------------------------------------------------- */

/* One replica, c = scale: the bits that must come out, from IEEE 754's rules by hand. */
static void rounding(void) {
  static const struct {
    uint32_t x, scale; /* bits of floats */
    uint16_t f16, bf16;
  } table[] = {
      {0x3F800000, 0x3F800000, 0x3C00, 0x3F80},
      {0xC0000000, 0x3F800000, 0xC000, 0xC000},
      {0x3F801000, 0x3F800000, 0x3C00, 0x3F80}, /* 1 + 2^-11: a tie of f16, to even */
      {0x3F803000, 0x3F800000, 0x3C02, 0x3F80}, /* 1 + 3 2^-11 */
      {0x3F801001, 0x3F800000, 0x3C01, 0x3F80}, /* just above the tie */
      {0x3F808000, 0x3F800000, 0x3C04, 0x3F80}, /* 1 + 2^-8: a tie of bf16 */
      {0x3F818000, 0x3F800000, 0x3C0C, 0x3F82}, /* 1 + 3 2^-8 */
      {0x3F808001, 0x3F800000, 0x3C04, 0x3F81},
      {0x3F800800, 0x3F800800, 0x3C00, 0x3F80}, /* 1 + 2^-11 + 2^-24: as a float it is the tie */
      {0x3F7FF800, 0x3F800800, 0x3C00, 0x3F80},
      {0x477FE000, 0x3F800000, 0x7BFF, 0x4780},
      {0x477FEFFF, 0x3F800000, 0x7BFF, 0x4780}, /* below 65520 */
      {0x477FF000, 0x3F800000, 0x7C00, 0x4780}, /* a tie with what would be 2^16 */
      {0xC77FF000, 0x3F800000, 0xFC00, 0xC780},
      {0x38800000, 0x3F800000, 0x0400, 0x3880}, /* the least normal of f16 */
      {0x387FE000, 0x3F800000, 0x0400, 0x3880}, /* a tie with it */
      {0x387FC000, 0x3F800000, 0x03FF, 0x3880},
      {0x33800000, 0x3F800000, 0x0001, 0x3380}, /* the least of f16 */
      {0x33000000, 0x3F800000, 0x0000, 0x3300}, /* a tie with 0 */
      {0x33000001, 0x3F800000, 0x0001, 0x3300},
      {0x33C00000, 0x3F800000, 0x0002, 0x33C0},
      {0x32800000, 0xBF800000, 0x8000, 0xB280},
      {0x00800000, 0x3F800000, 0x0000, 0x0080},
      {0x00010000, 0x3F800000, 0x0000, 0x0001}, /* the least of bf16 */
      {0x00008000, 0x3F800000, 0x0000, 0x0000},
      {0x00018000, 0x3F800000, 0x0000, 0x0002},
      {0x00000001, 0x3F800000, 0x0000, 0x0000},
      {0x7F7F0000, 0x3F800000, 0x7C00, 0x7F7F}, /* the largest of bf16 */
      {0x7F7F7FFF, 0x3F800000, 0x7C00, 0x7F7F},
      {0x7F7F8000, 0x3F800000, 0x7C00, 0x7F80},
      {0x7F7FFFFF, 0xBF800000, 0xFC00, 0xFF80},
      {0x7F7FFFFF, 0x40000000, 0x7C00, 0x7F80},
      {0x7F800000, 0x3F800000, 0x7C00, 0x7F80},
      {0xFF800000, 0x3F800000, 0xFC00, 0xFF80},
      {0x7F800000, 0x00000000, 0x7E00, 0x7FC0},
      {0x7FC00000, 0x3F800000, 0x7E00, 0x7FC0},
      {0x00000000, 0x3F800000, 0x0000, 0x0000},
      {0x80000000, 0x3F800000, 0x0000, 0x0000}, /* fma(1, -0, +0) is +0 */
      {0x80000000, 0xBF800000, 0x8000, 0x8000},
  };
  enum { LANES = 37 };
  float x[LANES];
  uint16_t got[2][LANES];
  int row, i, k, bf16;
  crew_open();
  for (row = -1; row < crew.rows; row++)
    for (i = 0; i < COUNT_OF(table); i++)
      for (bf16 = 0; bf16 < 2; bf16++) {
        const mlk_isa isa = row < 0 ? MLK_ISA_REFERENCE : crew.isas[row];
        mlk_context *ctx = crew_get(isa, 1);
        const uint16_t want = bf16 ? table[i].bf16 : table[i].f16, infinity = bf16 ? 0x7F80 : 0x7C00;
        const float scale = mlkt_float(table[i].scale);
        mlk_average_desc desc;
        mlk_tensor in = mlk_f32(x, LANES), out = mlk_f16(got[bf16], LANES);
        out.dtype = bf16 ? MLK_BF16 : MLK_F16;
        memset(&desc, 0, sizeof desc);
        desc.inputs = &in, desc.outputs = &out;
        desc.replicas = desc.count = desc.output_count = 1;
        desc.scale = &scale;
        mlkt_note("%a times %a to %s, isa %s", (double)mlkt_float(table[i].x), (double)scale, bf16 ? "bf16" : "f16",
                  mlk_isa_name(isa));
        for (k = 0; k < LANES; k++) x[k] = mlkt_float(table[i].x);
        if (!ctx || !CHECK_OK(ctx, mlk_average(ctx, &desc))) continue;
        for (k = 0; k < LANES; k++) {
          const int both_nan = (want & 0x7FFF) > infinity && (got[bf16][k] & 0x7FFF) > infinity;
          if (!CHECK_MSG(got[bf16][k] == want || both_nan, "lane %d: 0x%04x, expected 0x%04x", k, got[bf16][k], want))
            break;
        }
      }
  crew_close();
}

/* All numbers of both half types as inputs, and all ties and neighbours between them as outputs. */
static void all_halves(void) {
  enum { ALL = 1 << 16 };
  problem *p = problem_new();
  uint64_t index = 0;
  int type, e;
  crew_open();
  for (type = 1; type < 3; type++) {
    mlkt_rng rng = point_rng(index);
    memset(&p->desc, 0, sizeof p->desc);
    one_tensor(p, ALL);
    p->where = APART;
    problem_layout(p, 1, dtypes[type], MLK_F32, TIGHT, &rng);
    problem_fill(p, REALS, &rng);
    for (e = 0; e < ALL; e++) {
      const uint16_t half = (uint16_t)e;
      memcpy((char *)p->in[0].buffer.data + p->in[0].at[e], &half, sizeof half);
    }
    remember(&p->in[0]);
    every_row(p, index++);

    memset(&p->desc, 0, sizeof p->desc);
    one_tensor(p, 3 * ALL);
    problem_layout(p, 1, MLK_F32, dtypes[type], TIGHT, &rng);
    problem_fill(p, REALS, &rng);
    for (e = 0; e < 3 * ALL; e++) { /* half way to the next number, and the floats beside that */
      const uint16_t half = (uint16_t)(e / 3), next = (uint16_t)(half + 1);
      const float low = half_value(half, dtypes[type]), high = half_value(next, dtypes[type]);
      const float middle = isfinite(low) && isfinite(high) ? low + (high - low) / 2 : low * 1.0001f;
      const float x = e % 3 == 0 ? middle : nextafterf(middle, e % 3 == 1 ? INFINITY : -INFINITY);
      memcpy((char *)p->in[0].buffer.data + p->in[0].at[e], &x, sizeof x);
    }
    remember(&p->in[0]);
    every_row(p, index++);
  }
  crew_close();
  problem_free(p);
}

/* ---- plans ------------------------------------------------------------------------------------------------------- */

/* Operations, bytes and workspace are those of the call: inputs that take part once, outputs once. */
static void plans(void) {
  problem *p = problem_new();
  uint64_t index;
  crew_open();
  for (index = 0; index < 400 && !mlkt_hopeless(); index++) {
    mlkt_rng rng = point_rng(index);
    const int replicas = replica_counts[index % COUNT_OF(replica_counts)];
    const mlk_dtype in = dtypes[index % 3];
    const int threads = crew_threads(index);
    mlk_context_desc open = mlkt_context_desc(crew.isas[index % (uint64_t)crew.rows], threads);
    mlkt_memory memory;
    mlk_context *ctx = NULL;
    mlk_plan plan;
    uint64_t taking = 0, elements, written, opened, calls;
    int r;
    if (!keep(index, 400)) continue;
    memset(&p->desc, 0, sizeof p->desc);
    if (index % 7 == 0)
      one_tensor(p, 30000);
    else
      any_list(p, &rng);
    p->where = (place)(index / 3 % PLACES);
    if ((p->where == APART || p->where == TO_ALL) && index % 4 == 0) any_range(p, &rng);
    any_weights(p, replicas, &rng);
    if (replicas < 64 && p->desc.absent == (UINT64_C(1) << replicas) - 1) p->desc.absent = 0;
    p->desc.skip_nonfinite = index % 5 == 0;
    problem_layout(p, replicas, in, p->where == APART ? MLK_F32 : in, (looseness)(index % 3), &rng);
    if (p->out.dtype == MLK_F32 && p->where != TO_ALL && index % 2) p->desc.norm = &p->norm;
    problem_fill(p, REALS, &rng);
    for (r = 0; r < replicas; r++) taking += weight_of(p, r) > 0;
    if (!taking) continue;
    note_problem(p, index, open.isa, threads);
    memset(&memory, 0, sizeof memory);
    open.allocator = mlkt_memory_hook(&memory);
    if (!CHECK_STATUS(NULL, mlk_open(&ctx, &open), MLK_OK)) break;
    opened = memory.live_bytes, calls = memory.calls;
    memset(&plan, 0xFE, sizeof plan);
    if (CHECK_OK(ctx, mlk_average_plan(ctx, &p->desc, &plan))) {
      elements = (uint64_t)(p->high - p->low);
      written = p->where == TO_ALL ? (uint64_t)replicas : 1;
      CHECK_EQ_I64(plan.flops, 2 * elements * taking);
      CHECK_EQ_I64(plan.bytes, elements * (taking * width_of(in) + written * width_of(p->out.dtype)));
      CHECK(plan.variant && plan.variant[0]);
      if (!mlkt_opt.cuda) { /* whose workspace is not the allocator's */
        CHECK_EQ_STR(plan.isa, mlk_isa_name(open.isa));
        CHECK(plan.threads >= 1 && plan.threads <= threads);
        CHECK_EQ_I64(memory.calls, calls);
      }
      oracle(p);
      agrees(p, ctx);
      if (!mlkt_opt.cuda) CHECK_EQ_I64(memory.live_bytes - opened, plan.workspace_bytes);
    }
    mlk_close(ctx);
    CHECK_MEMORY_EMPTY(&memory);
  }
  crew_close();
  problem_free(p);
}

/* ---- sizes that wrap --------------------------------------------------------------------------------------------- */

static uint64_t capped(uint64_t a, uint64_t b) { return b && a > UINT64_MAX / b ? UINT64_MAX : a * b; }

/* A plan is exact, or it is refused since something does not fit; no product wraps round. */
static void sizes(void) {
  static const int64_t edges[] = {-1,
                                  0,
                                  1,
                                  3,
                                  INT64_C(1) << 31,
                                  INT64_C(1) << 40,
                                  (INT64_C(1) << 50) + 1,
                                  INT64_C(1) << 54,
                                  INT64_C(1) << 57,
                                  (INT64_C(1) << 60) - 1,
                                  INT64_C(1) << 60,
                                  INT64_C(1) << 62,
                                  INT64_MAX};
  static const int replicas[] = {1, 2, 16, 64};
  static mlk_tensor in[MLK_MAX_REPLICAS * 3], out[3];
  static float fake;
  mlk_context *ctx = mlkt_open(MLK_ISA_BEST, 2);
  int i, j, n, count, k;
  if (!ctx) return;
  for (i = 0; i < COUNT_OF(edges); i++)
    for (j = 0; j < COUNT_OF(edges); j++)
      for (n = 0; n < COUNT_OF(replicas); n++)
        for (count = 1; count <= 3 && !mlkt_hopeless(); count += 2) {
          const uint64_t each = edges[i] < 0 || edges[j] < 0 ? 0 : capped((uint64_t)edges[i], (uint64_t)edges[j]);
          const uint64_t all = capped(each, (uint64_t)count), flops = capped(capped(all, 2), (uint64_t)replicas[n]);
          const uint64_t bytes = capped(capped(all, 4), (uint64_t)replicas[n] + 1);
          mlk_average_desc desc;
          mlk_plan plan;
          mlk_status status;
          memset(&desc, 0, sizeof desc);
          for (k = 0; k < replicas[n] * count; k++) in[k] = mlk_f32(&fake, edges[i], edges[j]);
          for (k = 0; k < count; k++) out[k] = in[0];
          desc.inputs = in, desc.outputs = out, desc.replicas = replicas[n];
          desc.count = desc.output_count = count;
          mlkt_note("%d replicas of %d tensors %" PRId64 " x %" PRId64, replicas[n], count, edges[i], edges[j]);
          status = mlk_average_plan(ctx, &desc, &plan);
          if (edges[i] < 0 || edges[j] < 0)
            CHECK(status == MLK_ERR_SHAPE || status == MLK_ERR_SIZE);
          else if (status == MLK_OK) {
            CHECK_MSG(flops <= INT64_MAX && bytes <= INT64_MAX, "accepted, though %s", "the products do not fit");
            CHECK_EQ_I64(plan.flops, flops);
            CHECK_EQ_I64(plan.bytes, bytes);
          } else {
            CHECK_STATUS(ctx, status, MLK_ERR_SIZE);
            if (mlkt_opt.cuda && bytes >= UINT64_C(1) << 40) continue; /* a device refuses what none could hold */
            CHECK_MSG(edges[i] >= INT64_C(1) << 60 || edges[j] >= INT64_C(1) << 60 ||
                          all > INT64_MAX / 8 / MLK_MAX_REPLICAS,
                      "refused, though it fits: %s", mlk_last_error(ctx));
            CHECK_STATUS(ctx, mlk_average(ctx, &desc), MLK_ERR_SIZE); /* before memory is touched */
          }
        }
  mlk_close(ctx);
}

/* ---- refusals ---------------------------------------------------------------------------------------------------- */

enum { SIDE = 6, CELLS = SIDE * SIDE, LIST = 2, FEW = 3 };

/* Three replicas of a SIDE x SIDE matrix and a row of CELLS, and outputs apart. */
typedef struct scene {
  float in[FEW][LIST][CELLS], out[LIST][CELLS], weights[FEW], scale, norm;
  uint64_t used;
  mlk_tensor inputs[FEW * LIST], outputs[LIST];
  mlk_average_desc desc;
} scene;

static void scene_set(scene *s) {
  int r, i, e;
  memset(s, 0, sizeof *s);
  for (r = 0; r < FEW; r++)
    for (i = 0; i < LIST; i++) {
      for (e = 0; e < CELLS; e++) s->in[r][i][e] = (float)(r + i + e);
      s->inputs[r * LIST + i] = i ? mlk_f32(s->in[r][i], CELLS) : mlk_f32(s->in[r][i], SIDE, SIDE);
    }
  for (i = 0; i < LIST; i++) s->outputs[i] = i ? mlk_f32(s->out[i], CELLS) : mlk_f32(s->out[i], SIDE, SIDE);
  mlkt_rogue_f32(s->out[0], LIST * CELLS);
  for (r = 0; r < FEW; r++) s->weights[r] = 1;
  s->scale = 1, s->norm = mlkt_float(MLKT_ROGUE_F32), s->used = UINT64_C(0xFEFEFEFEFEFEFEFE);
  s->desc.inputs = s->inputs, s->desc.outputs = s->outputs;
  s->desc.replicas = FEW, s->desc.count = s->desc.output_count = LIST;
  s->desc.weights = s->weights, s->desc.scale = &s->scale, s->desc.norm = &s->norm, s->desc.used = &s->used;
}

/* The call gives status and a sentence that begins with name and has text in it, and no byte of the scene changes;
   so does the plan, but that it does not look for overlap. */
static void refused(mlk_context *ctx, scene *s, mlk_status status, const char *name, const char *text) {
  static scene before;
  mlk_plan plan;
  memcpy(&before, s, sizeof before);
  mlkt_note("expecting \"%s\" and \"%s\"", name, text);
  if (CHECK_STATUS(ctx, mlk_average(ctx, &s->desc), status)) {
    const char *sentence = mlk_last_error(ctx);
    CHECK_MSG(strncmp(sentence, name, strlen(name)) == 0 && strstr(sentence + strlen(name), text) != NULL,
              "\"%s\" does not name %s and tell \"%s\"", sentence, name, text);
  }
  CHECK_MSG(memcmp(&before, s, sizeof before) == 0, "something was written by a call that %s", "failed");
  CHECK_STATUS(ctx, mlk_average_plan(ctx, &s->desc, &plan), status == MLK_ERR_ALIAS ? MLK_OK : status);
  scene_set(s);
}

static void refusals_of_inputs(mlk_context *ctx, scene *s) {
  static const int64_t counts[] = {0, -1, MLK_MAX_REPLICAS + 1, INT64_MAX, INT64_MIN};
  int i;
  for (i = 0; i < COUNT_OF(counts); i++) {
    s->desc.replicas = counts[i];
    refused(ctx, s, MLK_ERR_ARGUMENT, "replicas", "is ");
  }
  s->desc.inputs = NULL;
  refused(ctx, s, MLK_ERR_ARGUMENT, "inputs", "is NULL");
  s->desc.count = -1;
  refused(ctx, s, MLK_ERR_ARGUMENT, "count", "is -1");
  s->inputs[3].data = NULL;
  refused(ctx, s, MLK_ERR_ARGUMENT, "inputs[3]", "data is NULL");
  s->inputs[0].dtype = MLK_I64;
  refused(ctx, s, MLK_ERR_DTYPE, "inputs[0]", "dtype is i64");
  s->inputs[0].dtype = MLK_U8;
  refused(ctx, s, MLK_ERR_DTYPE, "inputs[0]", "dtype is u8");
  s->inputs[0].dtype = 77;
  refused(ctx, s, MLK_ERR_DTYPE, "inputs[0]", "dtype is");
  s->inputs[0].dtype = -1;
  refused(ctx, s, MLK_ERR_DTYPE, "inputs[0]", "dtype is");
  s->inputs[5].dtype = MLK_BF16;
  refused(ctx, s, MLK_ERR_DTYPE, "inputs[5]", "dtype is bf16");
  s->inputs[0].rank = 0;
  refused(ctx, s, MLK_ERR_SHAPE, "inputs[0]", "rank is 0");
  s->inputs[1].rank = 7;
  refused(ctx, s, MLK_ERR_SHAPE, "inputs[1]", "rank is 7");
  s->inputs[1].rank = -1;
  refused(ctx, s, MLK_ERR_SHAPE, "inputs[1]", "rank is -1");
  s->inputs[0].shape[1] = -SIDE;
  refused(ctx, s, MLK_ERR_SHAPE, "inputs[0]", "size of axis 1 is -6");
  s->inputs[2].shape[0] = SIDE - 1;
  refused(ctx, s, MLK_ERR_SHAPE, "inputs[2]", "");
  s->inputs[4] = mlk_f32(s->in[2][0], CELLS); /* as many elements, another shape */
  refused(ctx, s, MLK_ERR_SHAPE, "inputs[4]", "");
  s->inputs[0] = mlk_transposed(mlk_transposed(s->inputs[0]));
  s->inputs[0].stride[0] = INT64_MAX;
  refused(ctx, s, MLK_ERR_SIZE, "inputs[0]", "");
}

static void refusals_of_outputs(mlk_context *ctx, scene *s) {
  s->desc.output_count = -1;
  refused(ctx, s, MLK_ERR_ARGUMENT, "output_count", "is -1");
  s->desc.output_count = 1;
  refused(ctx, s, MLK_ERR_SHAPE, "output_count", "is 1");
  s->desc.output_count = 3;
  refused(ctx, s, MLK_ERR_SHAPE, "output_count", "is 3");
  s->outputs[1].data = NULL;
  refused(ctx, s, MLK_ERR_ARGUMENT, "outputs[1]", "data is NULL");
  s->outputs[0].dtype = MLK_U8;
  refused(ctx, s, MLK_ERR_DTYPE, "outputs[0]", "dtype is u8");
  s->outputs[0].dtype = -9;
  refused(ctx, s, MLK_ERR_DTYPE, "outputs[0]", "dtype is");
  s->outputs[1].dtype = MLK_F16;
  refused(ctx, s, MLK_ERR_DTYPE, "outputs[1]", "dtype is f16");
  s->outputs[0].dtype = s->outputs[1].dtype = MLK_F16;
  refused(ctx, s, MLK_ERR_DTYPE, "norm", "");
  s->outputs[1].shape[0] = CELLS - 1;
  refused(ctx, s, MLK_ERR_SHAPE, "outputs[1]", "");
  s->outputs[0] = mlk_f32(s->out[0], CELLS);
  refused(ctx, s, MLK_ERR_SHAPE, "outputs[0]", "");
  s->outputs[0] = mlk_transposed(mlk_transposed(s->outputs[0]));
  s->outputs[0].stride[0] = 0;
  refused(ctx, s, MLK_ERR_SHAPE, "outputs[0]", "an output");
  s->outputs[0].rank = 0;
  refused(ctx, s, MLK_ERR_SHAPE, "outputs[0]", "rank is 0");
  s->desc.outputs = NULL, s->desc.output_count = 0;
  s->inputs[0] = mlk_transposed(mlk_transposed(s->inputs[0]));
  s->inputs[0].stride[1] = 0;
  refused(ctx, s, MLK_ERR_SHAPE, "inputs[0]", "an output");
}

static void refusals_of_numbers(mlk_context *ctx, scene *s) {
  static const float bad[] = {-1.0f, -1e-45f, NAN, INFINITY, -INFINITY};
  int i;
  for (i = 0; i < COUNT_OF(bad); i++) {
    s->weights[i % FEW] = bad[i];
    refused(ctx, s, MLK_ERR_ARGUMENT, i % FEW == 0 ? "weights[0]" : i % FEW == 1 ? "weights[1]" : "weights[2]", "is ");
    if (i < 2) continue;
    s->scale = bad[i];
    refused(ctx, s, MLK_ERR_ARGUMENT, "scale", "is ");
  }
  s->desc.stores = MLK_STORES_COUNT;
  refused(ctx, s, MLK_ERR_ARGUMENT, "stores", "is 3");
  s->desc.from = -1, s->desc.to = 5;
  refused(ctx, s, MLK_ERR_ARGUMENT, "from", "is -1");
  s->desc.from = 5, s->desc.to = 4;
  refused(ctx, s, MLK_ERR_ARGUMENT, "from", "is 5, but must be 0 to 4");
  s->desc.from = 5, s->desc.to = 0;
  refused(ctx, s, MLK_ERR_ARGUMENT, "from", "is 5");
  s->desc.to = 2 * CELLS + 1;
  refused(ctx, s, MLK_ERR_SHAPE, "to", "is 73");
  s->desc.from = 1, s->desc.to = 2 * CELLS; /* the outputs have one element more */
  refused(ctx, s, MLK_ERR_SHAPE, "outputs", "");
  s->desc.from = INT64_MIN, s->desc.to = INT64_MAX;
  refused(ctx, s, MLK_ERR_ARGUMENT, "from", "is ");
  s->desc.absent = 7;
  refused(ctx, s, MLK_ERR_REPLICA, "replica", "");
  s->desc.absent = 8;
  refused(ctx, s, MLK_ERR_ARGUMENT, "absent", "is 0x8");
  s->desc.absent = ~UINT64_C(0);
  refused(ctx, s, MLK_ERR_ARGUMENT, "absent", "is 0xffffffffffffffff");
  for (i = 0; i < FEW; i++) s->weights[i] = i % 2 ? -0.0f : 0.0f;
  refused(ctx, s, MLK_ERR_REPLICA, "replica", "");
  s->desc.absent = 3, s->weights[2] = 0;
  refused(ctx, s, MLK_ERR_REPLICA, "replica", "");
}

static void refusals(void) {
  static scene s;
  mlk_isa isas[MLK_ISA_COUNT];
  const int rows = mlkt_isas_and_reference(isas);
  int i;
  for (i = 0; i < rows; i++) {
    mlk_context *ctx = mlkt_open(isas[i], 2);
    if (!ctx) continue;
    scene_set(&s);
    refusals_of_inputs(ctx, &s);
    refusals_of_outputs(ctx, &s);
    refusals_of_numbers(ctx, &s);
    mlkt_note("%s", "nothing wrong");
    CHECK_OK(ctx, mlk_average(ctx, &s.desc));
    CHECK(s.out[1][CELLS - 1] == CELLS + 1 && s.used == 7 && s.norm > 0);
    mlk_close(ctx);
  }
}

/* ---- overlap ----------------------------------------------------------------------------------------------------- */

static void accepted(mlk_context *ctx, scene *s, const char *what) {
  mlkt_note("%s", what);
  CHECK_OK(ctx, mlk_average(ctx, &s->desc));
  scene_set(s);
}

static void overlap(void) {
  static scene s;
  mlk_context *ctx = mlkt_open(MLK_ISA_BEST, 2);
  if (!ctx) return;
  scene_set(&s);
  s.outputs[1] = mlk_f32(s.in[1][1] + 1, CELLS); /* reaches into what is nobody's now */
  s.inputs[4] = mlk_f32(s.in[2][1], SIDE, SIDE);
  refused(ctx, &s, MLK_ERR_ALIAS, "outputs[1]", "overlaps inputs[3]");
  s.outputs[0] = mlk_f32(s.in[1][1], SIDE, SIDE); /* another tensor of the list */
  refused(ctx, &s, MLK_ERR_ALIAS, "outputs[0]", "overlaps inputs[3]");
  s.outputs[0] = mlk_transposed(s.inputs[2]); /* the same place, other strides */
  refused(ctx, &s, MLK_ERR_ALIAS, "outputs[0]", "overlaps inputs[2]");
  s.outputs[1] = mlk_f32(s.out[0], CELLS);
  refused(ctx, &s, MLK_ERR_ALIAS, "outputs[", "overlaps outputs[");
  s.outputs[0].data = s.in[0][0], s.outputs[0].dtype = s.outputs[1].dtype = MLK_BF16; /* the same place, another type */
  s.desc.norm = NULL;
  refused(ctx, &s, MLK_ERR_ALIAS, "outputs[0]", "overlaps inputs[0]");
  s.desc.outputs = NULL, s.desc.output_count = 0;
  s.inputs[2] = s.inputs[0]; /* both would be written */
  refused(ctx, &s, MLK_ERR_ALIAS, "inputs[", "overlaps inputs[");
  s.outputs[0] = s.inputs[0]; /* written, and shifted in another replica */
  s.inputs[2].data = s.in[0][0] + SIDE;
  refused(ctx, &s, MLK_ERR_ALIAS, "outputs[0]", "overlaps inputs[2]");
  s.desc.from = 1, s.desc.to = 7;
  s.outputs[0] = mlk_f32(s.in[0][0] + 3, SIDE), s.desc.output_count = 1;
  refused(ctx, &s, MLK_ERR_ALIAS, "outputs[0]", "overlaps inputs[0]");

  s.outputs[0] = s.inputs[2], s.outputs[1] = s.inputs[1];
  accepted(ctx, &s, "each output is an input of another replica");
  s.outputs[0] = mlk_transposed(mlk_transposed(s.inputs[4])); /* explicit strides are the same strides */
  accepted(ctx, &s, "explicit strides");
  s.desc.absent = 2, s.outputs[0] = s.inputs[2], s.outputs[1] = s.inputs[3];
  accepted(ctx, &s, "into a replica that is absent");
  s.inputs[2] = s.inputs[4] = s.inputs[0];
  accepted(ctx, &s, "inputs that are only read may overlap");
  { /* columns of one matrix */
    mlk_tensor columns[FEW], out;
    int r;
    for (r = 0; r < FEW; r++) columns[r] = mlk_slice(s.inputs[0], 1, r, 1);
    out = mlk_slice(s.inputs[0], 1, 4, 1);
    s.desc.inputs = columns, s.desc.outputs = &out, s.desc.count = s.desc.output_count = 1;
    mlkt_note("%s", "columns");
    CHECK_OK(ctx, mlk_average(ctx, &s.desc));
    CHECK(s.in[0][0][4] == 1 && s.in[0][0][5] == 5 && s.in[0][0][10] == 7);
  }
  mlk_close(ctx);
}

enum { NEIGHBOURS = 300, SMALL = 7 };

/* Numbers 0 .. count - 1 in any order. */
static void shuffle(int *order, int count, mlkt_rng *rng) {
  int i;
  for (i = 0; i < count; i++) {
    const int j = (int)mlkt_int(rng, 0, i);
    order[i] = order[j], order[j] = i;
  }
}

/* Long lists: tensors that touch are apart, and one that reaches into its neighbour is found, wherever the two stand in
   the lists; columns of one matrix are apart, and one that comes twice is found. */
static void overlap_lists(void) {
  static float memory[3 * NEIGHBOURS * SMALL], before[3 * NEIGHBOURS * SMALL];
  static mlk_tensor list[3 * NEIGHBOURS]; /* two replicas, and outputs behind them */
  static int at[3 * NEIGHBOURS];
  mlk_context *ctx = mlkt_open(MLK_ISA_BEST, 2);
  uint64_t round;
  if (!ctx) return;
  for (round = 0; round < 200 && !mlkt_hopeless(); round++) {
    mlkt_rng rng = point_rng(round);
    const int to_all = round % 3 == 0, columns = round % 3 == 1, used = to_all ? 2 * NEIGHBOURS : 3 * NEIGHBOURS;
    const int moved = to_all ? (int)mlkt_int(&rng, 0, used - 1) : (int)mlkt_int(&rng, 2 * NEIGHBOURS, used - 1);
    const int64_t by = mlkt_int(&rng, 1, SMALL - 1);
    mlk_average_desc desc;
    int i;
    if (!keep(round, 200)) continue;
    memset(&desc, 0, sizeof desc);
    shuffle(at, used, &rng);
    for (i = 0; i < 3 * NEIGHBOURS * SMALL; i++) memory[i] = (float)i;
    for (i = 0; i < used; i++) {
      list[i] = mlk_f32(memory + at[i] * (columns ? 1 : SMALL), SMALL);
      if (columns) list[i].stride[0] = used;
    }
    desc.inputs = list, desc.replicas = 2, desc.count = NEIGHBOURS;
    if (!to_all) desc.outputs = list + 2 * NEIGHBOURS, desc.output_count = NEIGHBOURS;
    mlkt_note("round %d, %s, %s", (int)round, to_all ? "to all" : "apart", columns ? "columns" : "rows");
    CHECK_OK(ctx, mlk_average(ctx, &desc));
    if (columns)
      list[moved].data = memory + at[(moved + mlkt_int(&rng, 1, used - 1)) % used];
    else
      list[moved].data = memory + at[moved] * SMALL + (at[moved] == used - 1 ? -by : by);
    memcpy(before, memory, sizeof before);
    CHECK_STATUS(ctx, mlk_average(ctx, &desc), MLK_ERR_ALIAS);
    CHECK(memcmp(before, memory, sizeof before) == 0);
  }
  mlk_close(ctx);
}

const mlkt_case mlkt_average_cases[] = {{"average/sweep", sweep},
                                        {"average/specials_sweep", specials_sweep},
                                        {"average/integers", integers},
                                        {"average/error", error},
                                        {"average/bits_of_threads", bits_of_threads},
                                        {"average/norms", norms},
                                        {"average/beyond_caches", beyond_caches},
                                        {"average/long_lists", long_lists},
                                        {"average/ranges", ranges},
                                        {"average/guards", guards},
                                        {"average/absent_unread", absent_unread},
                                        {"average/skip_nonfinite", skip_nonfinite},
                                        {"average/skip_several", skip_several},
                                        {"average/rounding", rounding},
                                        {"average/all_halves", all_halves},
                                        {"average/plans", plans},
                                        {"average/sizes", sizes},
                                        {"average/refusals", refusals},
                                        {"average/overlap", overlap},
                                        {"average/overlap_lists", overlap_lists},
                                        {NULL, NULL}};
