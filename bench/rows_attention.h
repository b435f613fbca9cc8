/* The rows of mlk_attention, its gradient and its merge. Operands are random, a result is checked on sampled rows
   against the definition in double, and everywhere for numbers that are not finite. Shapes in names: s queries, t keys,
   d size of a head; b sequences, h heads; g8x4: 8 key heads, each with 4 query heads. */
#ifndef BENCH_ROWS_ATTENTION_H
#define BENCH_ROWS_ATTENTION_H

typedef enum attention_op { ATTENTION_FORWARD, ATTENTION_DECODE, ATTENTION_BACKWARD } attention_op;
typedef enum attention_variant {
  ATTENTION_PLAIN,
  ATTENTION_SOFTCAP,
  ATTENTION_ALIBI,
  ATTENTION_BIAS,
  ATTENTION_MASK,
  ATTENTION_WINDOW,
  ATTENTION_LENGTHS
} attention_variant;

enum {
  ATTENTION_COPIES = 512, /* of K and V, at most, where they are to be out of cache */
  ATTENTION_WAYS = 7,
  ATTENTION_SAMPLED = 24,
  ATTENTION_LENGTHS_MAX = 32,
  YARDSTICK_SIZE = 1024
};

typedef struct attention_spec {
  attention_op op;
  int64_t b, h, g, s, t, d;
  int causal, positions_first; /* positions_first: memory is [B, S, H, D], as projections leave it, else [B, H, S, D] */
  attention_variant variant;
  int64_t window;
  int64_t offsets[ATTENTION_LENGTHS_MAX + 1], longest; /* of the sequences that fill S */
  int sequences;
  mlk_dtype dtype; /* of K and V, and where S > 1 of all but the log-sum-exp */
  int64_t page;    /* keys per page; 0: not paged */
  problem_common common;
} attention_spec;

/* A sampled row: of OUT or DQ at (b, h, i), of DK and DV at (b, h, i) with i a key. */
typedef struct attention_sample {
  int64_t b, h, i;
  double *expected; /* D values: OUT; or D each of DQ, DK, DV */
} attention_sample;

typedef struct attention_state attention_state;

/* One contender's way. Tensors are where its last results lie: [B, H, S, D], or [B, G, H / G, D] where query heads were
   passed as positions of their key head, which is the same for one query. */
typedef struct attention_way {
  attention_state *w;
  mlk_tensor out, dq, dk, dv;
  double tolerance; /* of the largest magnitude expected in the row */
  int turn;         /* the copy of K and V that the next call reads */
  int causal, grouped;
  torch_tensor q, mask, dout, result, lse, grad[3];
  ort_program ort;
  ort_operand *ort_k, *ort_v, *ort_present_k, *ort_present_v;
  dnn_attention dnn;
  void *k[ATTENTION_COPIES], *v[ATTENTION_COPIES]; /* handles of torch, values of onnxruntime, or oneDNN's tensors */
} attention_way;

struct attention_state {
  attention_spec s;
  mlk_context *ctx;
  mlk_tensor q, k, v, dout; /* f32 with the values that operands of another dtype have */
  mlk_tensor out;           /* as it is written; for a backward pass its values as f32 */
  mlk_tensor lse;
  mlk_tensor dq, dk, dv; /* as they are written */
  mlk_tensor q_half;     /* q in the dtype of K and V */
  mlk_tensor peer_mask;  /* f32, added to the scores: what the peers are given for masks, biases, windows, ALiBi */
  float *slopes, scale;
  int copies;
  void *k_data[ATTENTION_COPIES], *v_data[ATTENTION_COPIES];
  mlk_attention_desc desc;
  mlk_attention_grad_desc grad;
  attention_way way[ATTENTION_WAYS];
  int ways;
  attention_sample sample[ATTENTION_SAMPLED];
  int sampled;
  double *scores; /* of one row */
  void *spoiled[8];
  size_t spoiled_bytes[8];
  int spoils;
  char forward_wrong[192];
};

static attention_state attention;

/* ------------------------------------------------------------------------------------------------ elements of views */

static double half_value(uint16_t bits, mlk_dtype dtype) {
  const int sign = bits >> 15, exponent = bits >> 10 & 31, fraction = bits & 1023;
  const uint32_t wide = (uint32_t)bits << 16;
  float value;
  if (dtype == MLK_F16) {
    const double size = exponent == 31 ? (fraction ? (double)NAN : (double)INFINITY)
                        : exponent     ? ldexp(1024 + fraction, exponent - 25)
                                       : ldexp(fraction, -24);
    return sign ? -size : size;
  }
  memcpy(&value, &wide, sizeof value);
  return (double)value;
}

/* The element offset of row (b, h, i) of a view of heads heads, see attention_way. */
static int64_t attention_at(const mlk_tensor *t, int64_t heads, int64_t b, int64_t h, int64_t i) {
  const int64_t group = heads / t->shape[1];
  if (group > 1) return b * t->stride[0] + h / group * t->stride[1] + h % group * t->stride[2];
  return b * t->stride[0] + h * t->stride[1] + i * t->stride[2];
}

static double attention_element(const mlk_tensor *t, int64_t offset) {
  if (t->dtype == MLK_F32) return (double)((const float *)t->data)[offset];
  return half_value(((const uint16_t *)t->data)[offset], (mlk_dtype)t->dtype);
}

static const float *attention_floats(const mlk_tensor *t, int64_t b, int64_t h, int64_t i) {
  return (const float *)t->data + b * t->stride[0] + h * t->stride[1] + i * t->stride[2];
}

/* ------------------------------------------------------------------------------------------------ what is expected */

/* Keys [first, end) and position of query i, of its sequence where there are several. */
static void attention_keys(const attention_state *w, int64_t i, int64_t *first, int64_t *end, int64_t *position) {
  int64_t n = 0;
  *first = 0, *end = w->s.t, *position = i + w->s.t - w->s.s;
  if (w->s.variant != ATTENTION_LENGTHS) return;
  while (i >= w->s.offsets[n + 1]) n++;
  *first = w->s.offsets[n], *end = w->s.offsets[n + 1], *position = i;
}

static double attention_dot(const float *a, const float *b, int64_t count) {
  double sum = 0;
  int64_t d;
  for (d = 0; d < count; d++) sum += (double)a[d] * (double)b[d];
  return sum;
}

/* The score of query (b, h, i), at position, with key j; -infinity when the key takes no part. */
static double attention_score(const attention_state *w, int64_t b, int64_t h, int64_t i, int64_t position, int64_t j) {
  const attention_spec *s = &w->s;
  const double distance = fabs((double)(position - j));
  double x = (double)w->scale *
             attention_dot(attention_floats(&w->q, b, h, i), attention_floats(&w->k, b, h / (s->h / s->g), j), s->d);
  if (s->causal && j > position) return -INFINITY;
  if (s->variant == ATTENTION_WINDOW && distance >= (double)s->window) return -INFINITY;
  if (s->variant == ATTENTION_SOFTCAP) x = 5 * tanh(x / 5);
  if (s->variant == ATTENTION_ALIBI) x -= (double)w->slopes[h] * distance;
  if (s->variant == ATTENTION_BIAS || s->variant == ATTENTION_MASK) {
    const mlk_tensor *m = &w->peer_mask;
    x += (double)((const float *)m->data)[b * m->stride[0] + (m->shape[1] > 1 ? h : 0) * m->stride[1] + i * s->t + j];
  }
  return x;
}

/* The weights of query (b, h, i) into w->scores, from its first key on. Returns the log-sum-exp. */
static double attention_weights(const attention_state *w, int64_t b, int64_t h, int64_t i) {
  int64_t first, end, position, j;
  double largest = -INFINITY, sum = 0;
  attention_keys(w, i, &first, &end, &position);
  for (j = first; j < end; j++) {
    w->scores[j] = attention_score(w, b, h, i, position, j);
    largest = greater(largest, w->scores[j]);
  }
  for (j = first; j < end; j++) sum += w->scores[j] = exp(w->scores[j] - largest);
  for (j = first; j < end; j++) w->scores[j] /= sum;
  return largest + log(sum);
}

static double attention_expect_out(const attention_state *w, const attention_sample *at) {
  const double lse = attention_weights(w, at->b, at->h, at->i);
  int64_t first, end, position, j, d;
  attention_keys(w, at->i, &first, &end, &position);
  memset(at->expected, 0, (size_t)w->s.d * sizeof(double));
  for (j = first; j < end; j++) {
    const float *v = attention_floats(&w->v, at->b, at->h / (w->s.h / w->s.g), j);
    for (d = 0; d < w->s.d && w->scores[j] != 0; d++) at->expected[d] += w->scores[j] * (double)v[d];
  }
  return lse;
}

/* DQ of query i and DK, DV of key i. Log-sum-exps and outputs of other queries than i are taken from MLK's forward
   pass, which has been checked on the sampled rows by then. */
static void attention_expect_grad(const attention_state *w, const attention_sample *at) {
  const int64_t size = w->s.d, b = at->b, h = at->h, i = at->i;
  const float *dout = attention_floats(&w->dout, b, h, i), *k = attention_floats(&w->k, b, h, i),
              *v = attention_floats(&w->v, b, h, i);
  double *dq = at->expected, *dk = dq + size, *dv = dk + size, delta = 0;
  int64_t j, d;
  attention_expect_out(w, at); /* into the place of dq; leaves the weights in w->scores */
  for (d = 0; d < size; d++) delta += dq[d] * (double)dout[d];
  memset(dq, 0, (size_t)(3 * size) * sizeof *dq);
  for (j = 0; j < w->s.t; j++) {
    const double t = attention_dot(dout, attention_floats(&w->v, b, h, j), size);
    const double ds = (double)w->scale * w->scores[j] * (t - delta);
    for (d = 0; d < size; d++) dq[d] += ds * (double)attention_floats(&w->k, b, h, j)[d];
  }
  for (j = 0; j < w->s.s; j++) { /* a query */
    const float *query = attention_floats(&w->q, b, h, j), *y = attention_floats(&w->dout, b, h, j);
    const double lse = (double)((const float *)w->lse.data)[(b * w->s.h + h) * w->s.s + j];
    const double p = w->s.causal && i > j ? 0 : exp((double)w->scale * attention_dot(query, k, size) - lse);
    const double ds = p * (attention_dot(y, v, size) - attention_dot(y, attention_floats(&w->out, b, h, j), size));
    for (d = 0; d < size; d++) dk[d] += (double)w->scale * ds * (double)query[d], dv[d] += p * (double)y[d];
  }
}

/* ------------------------------------------------------------------------------------------------ checking a result */

/* Compares row (b, h, i) of a result with D expected values. The bound is relative to the largest of them, or to least:
   terms of a gradient can cancel, of the first query of a causal one to zero. */
static int attention_row_right(const attention_state *w, const attention_way *c, const mlk_tensor *t, const char *what,
                               const attention_sample *at, const double *expected, double least, char *why,
                               size_t size) {
  const int64_t offset = attention_at(t, w->s.h, at->b, at->h, at->i);
  double largest = least, bound;
  int64_t d;
  for (d = 0; d < w->s.d; d++) largest = greater(largest, fabs(expected[d]));
  bound = c->tolerance * largest;
  for (d = 0; d < w->s.d; d++) {
    const double got = attention_element(t, offset + d * t->stride[3]);
    if (fabs(got - expected[d]) <= bound) continue;
    text(why, size, "%s[%lld][%lld][%lld][%lld] is %.9g, but should be %.9g (bound %.2g)", what, (long long)at->b,
         (long long)at->h, (long long)at->i, (long long)d, got, expected[d], bound);
    return 0;
  }
  return 1;
}

static void attention_all_finite(const mlk_tensor *t, const char *what, char *why, size_t size) {
  int64_t b, h, i, d;
  for (b = 0; b < t->shape[0] && !why[0]; b++)
    for (h = 0; h < t->shape[1]; h++)
      for (i = 0; i < t->shape[2]; i++)
        for (d = 0; d < t->shape[3]; d++)
          if (!isfinite(
                  attention_element(t, b * t->stride[0] + h * t->stride[1] + i * t->stride[2] + d * t->stride[3])))
            text(why, size, "%s[%lld][%lld][%lld][%lld] is not finite", what, (long long)b, (long long)h, (long long)i,
                 (long long)d);
}

static void attention_check(void *arg, const contender *who, char *why, size_t size) {
  const attention_state *w = (const attention_state *)arg;
  const attention_way *c = (const attention_way *)who->arg;
  const int backward = w->s.op == ATTENTION_BACKWARD;
  const mlk_tensor *tensors[4];
  static const char *const names[4] = {"out", "dq", "dk", "dv"};
  double least;
  int64_t d;
  int n, r;
  tensors[0] = &c->out, tensors[1] = &c->dq, tensors[2] = &c->dk, tensors[3] = &c->dv;
  if (who->peer < 0 && w->forward_wrong[0]) text(why, size, "%s", w->forward_wrong);
  for (r = backward; r < (backward ? 4 : 1) && !why[0]; r++) {
    if (!tensors[r]->data) {
      text(why, size, "no result: %s",
           who->peer < 0      ? mlk_last_error(w->ctx)
           : who->peer == ORT ? ort_error
                              : "the call failed");
      break;
    }
    least = 0;
    for (n = 0; n < w->sampled && backward; n++)
      for (d = 0; d < w->s.d; d++) least = greater(least, fabs(w->sample[n].expected[(r - 1) * w->s.d + d]) / 20);
    for (n = 0; n < w->sampled && !why[0]; n++)
      attention_row_right(w, c, tensors[r], names[r], &w->sample[n],
                          w->sample[n].expected + (backward ? (r - 1) * w->s.d : 0), least, why, size);
    if (!why[0]) attention_all_finite(tensors[r], names[r], why, size);
  }
  if (why[0] && who->peer < 0 && mlk_last_error(w->ctx)[0]) text(why, size, "%s", mlk_last_error(w->ctx));
}

static void attention_spoil(void *arg) {
  const attention_state *w = (const attention_state *)arg;
  int i;
  for (i = 0; i < w->spoils; i++) memset(w->spoiled[i], 0xff, w->spoiled_bytes[i]); /* NaN in every type */
}

/* ------------------------------------------------------------------------------------------------------------ calls */

static int attention_turn(attention_way *c) {
  const int turn = c->turn;
  c->turn = turn + 1 < c->w->copies ? turn + 1 : 0;
  return turn;
}

static void attention_call(void *arg) {
  attention_way *c = (attention_way *)arg;
  attention_state *w = c->w;
  const int turn = attention_turn(c);
  mlk_status status;
  w->desc.k.data = w->k_data[turn], w->desc.v.data = w->v_data[turn];
  status = w->s.op == ATTENTION_BACKWARD ? mlk_attention_grad(w->ctx, &w->grad) : mlk_attention(w->ctx, &w->desc);
  if (status != MLK_OK) c->out.data = c->dq.data = NULL;
}

static mlk_status attention_plan(void *arg, mlk_plan *plan) {
  const attention_state *w = ((const attention_way *)arg)->w;
  return w->s.op == ATTENTION_BACKWARD ? mlk_attention_grad_plan(w->ctx, &w->grad, plan)
                                       : mlk_attention_plan(w->ctx, &w->desc, plan);
}

static void attention_torch_call(void *arg) {
  attention_way *c = (attention_way *)arg;
  const int turn = attention_turn(c);
  int i, failed;
  torch_tensor *mask = c->mask ? &c->mask : NULL;
  if (c->w->s.op == ATTENTION_BACKWARD) {
    for (i = 0; i < 3; i++) torch_release(&c->grad[i]);
    failed = torch.backward(c->dout, c->q, c->k[0], c->v[0], c->result, c->lse, 0, c->causal, mask, NULL, &c->grad[0],
                            &c->grad[1], &c->grad[2]);
    if (failed) c->grad[0] = c->grad[1] = c->grad[2] = NULL;
    c->dq = torch_result(c->grad[0], c->dq);
    c->dk = torch_result(c->grad[1], c->dk), c->dv = torch_result(c->grad[2], c->dv);
    return;
  }
  torch_release(&c->result), torch_release(&c->lse);
  if (c->grouped)
    c->result = torch_grouped(c->q, c->k[turn], c->v[turn], c->causal);
  else if (torch.forward(c->q, c->k[turn], c->v[turn], 0, c->causal, mask, NULL, &c->result, &c->lse) != 0)
    c->result = c->lse = NULL;
  c->out = torch_result(c->result, c->out);
}

static void attention_ort_call(void *arg) {
  attention_way *c = (attention_way *)arg;
  const int turn = attention_turn(c);
  c->ort_k->value = c->k[turn], c->ort_v->value = c->v[turn];
  if (c->ort_present_k) c->ort_present_k->value = c->k[turn], c->ort_present_v->value = c->v[turn];
  if (!ort_run(&c->ort)) c->out.data = NULL;
}

static void attention_onednn_call(void *arg) {
  attention_way *c = (attention_way *)arg;
  const int turn = attention_turn(c);
  c->dnn.in[1] = c->k[turn], c->dnn.in[c->dnn.ins - 1] = c->v[turn];
  if (dnn_attention_run(&c->dnn) != 0) c->out.data = NULL;
}

/* The product that attention's speed is measured against: MLK's own, square, in the same rounds. */
static struct {
  mlk_context *ctx;
  mlk_matmul_desc desc;
  float *a, *b, *d;
} yardstick;

static void yardstick_call(void *arg) {
  (void)arg;
  if (mlk_matmul(yardstick.ctx, &yardstick.desc) != MLK_OK) fill_nan(yardstick.d, 1);
}

static void yardstick_prepare(const problem_common *c) {
  const int64_t n = YARDSTICK_SIZE, count = n * n;
  if (!yardstick.a) { /* kept to the end: many rows use it */
    yardstick.a = keep_floats(3 * count);
    yardstick.b = yardstick.a + count, yardstick.d = yardstick.b + count;
    fill_small_integers(yardstick.a, 2 * count, 7);
    yardstick.desc.a = mlk_f32(yardstick.a, n, n), yardstick.desc.b = mlk_f32(yardstick.b, n, n);
    yardstick.desc.d = mlk_f32(yardstick.d, n, n);
  }
  yardstick.ctx = context(c->threads, c->isa, MLK_STRICT);
  fill_nan(yardstick.d, count);
}

/* Integers: sums are exact. */
static void yardstick_check(char *why, size_t size) {
  const int64_t n = YARDSTICK_SIZE;
  uint64_t seed = 8;
  int s;
  for (s = 0; s < 64; s++) {
    const int64_t i = random_int(&seed, 0, YARDSTICK_SIZE - 1), j = random_int(&seed, 0, YARDSTICK_SIZE - 1);
    double sum = 0;
    int64_t k;
    for (k = 0; k < n; k++) sum += (double)yardstick.a[i * n + k] * (double)yardstick.b[k * n + j];
    if ((double)yardstick.d[i * n + j] != sum)
      text(why, size, "element %lld, %lld is wrong", (long long)i, (long long)j);
  }
}

static void attention_check_all(void *arg, const contender *who, char *why, size_t size) {
  if (who->call == yardstick_call)
    yardstick_check(why, size);
  else
    attention_check(arg, who, why, size);
}

/* ------------------------------------------------------------------------------------------------------ preparation */

/* Uniform in [-2, 2): scores of unit scale have a standard deviation of 1.3 at any size of a head. */
static void fill_uniform(float *x, int64_t count, uint64_t seed) {
  int64_t i;
  for (i = 0; i < count; i++) x[i] = (float)(random_next(&seed) >> 40) / 4194304.0f - 2;
}

static mlk_tensor attention_view(const attention_spec *s, float *data, int64_t heads, int64_t positions) {
  return mlki_explicit_strides(s->positions_first ? mlk_swapped(mlk_f32(data, s->b, positions, heads, s->d), 1, 2)
                                                  : mlk_f32(data, s->b, heads, positions, s->d));
}

static mlk_tensor attention_operand(const attention_spec *s, int64_t heads, int64_t positions, uint64_t seed) {
  const int64_t count = s->b * heads * positions * s->d;
  float *data = row_floats(count);
  fill_uniform(data, count, seed);
  return attention_view(s, data, heads, positions);
}

/* Are queries and results of the dtype that K and V have? Where one query is decoded they are f32. */
static int attention_all_narrow(const attention_spec *s) { return s->dtype != MLK_F32 && s->op != ATTENTION_DECODE; }

static mlk_tensor attention_output(attention_state *w, int64_t heads, int64_t positions) {
  const mlk_dtype dtype = attention_all_narrow(&w->s) ? w->s.dtype : MLK_F32;
  const size_t bytes = (size_t)(w->s.b * heads * positions * w->s.d) * dtype_bytes(dtype);
  mlk_tensor t = attention_view(&w->s, (float *)row_alloc(bytes), heads, positions);
  t.dtype = (int32_t)dtype;
  w->spoiled[w->spoils] = t.data, w->spoiled_bytes[w->spoils++] = bytes;
  return t;
}

/* A copy of t in another dtype, with the same strides, none of which leaves gaps; t's elements become what the copy's
   are. */
static mlk_tensor attention_narrow(const mlk_tensor *t, mlk_dtype dtype) {
  mlk_tensor narrow = mlki_explicit_strides(*t);
  narrow.data = row_alloc((size_t)(t->shape[0] * t->shape[1] * t->shape[2] * t->shape[3]) * 2);
  narrow.dtype = (int32_t)dtype;
  host_convert(*t, narrow), host_convert(narrow, *t);
  return narrow;
}

/* The values of t of any dtype as f32, with the same strides. */
static mlk_tensor attention_values(const mlk_tensor *t) {
  mlk_tensor values = *t;
  values.data = row_floats(t->shape[0] * t->shape[1] * t->shape[2] * t->shape[3]);
  values.dtype = MLK_F32;
  host_convert(*t, values);
  return values;
}

/* K and V of a decode row: as many copies as exceed four times the last cache, as the layers of a model
   have, in random order. */
static void attention_make_copies(attention_state *w, mlk_tensor k, mlk_tensor v) {
  const attention_spec *s = &w->s;
  const size_t bytes = (size_t)(s->b * s->g * s->t * s->d) * (k.dtype == MLK_F32 ? 4 : 2);
  uint64_t seed = 9;
  char *all_k, *all_v;
  int i;
  w->copies = 1;
  if (s->common.cold && s->op == ATTENTION_DECODE && s->page == 0) w->copies = (int)(probe_bytes / (2 * bytes)) + 1;
  if (w->copies > ATTENTION_COPIES) w->copies = ATTENTION_COPIES;
  w->k_data[0] = k.data, w->v_data[0] = v.data;
  if (w->copies > 1)
    all_k = (char *)row_alloc((size_t)(w->copies - 1) * bytes),
    all_v = (char *)row_alloc((size_t)(w->copies - 1) * bytes);
  for (i = 1; i < w->copies; i++) {
    const int other = random_int(&seed, 0, i);
    w->k_data[i] = w->k_data[other], w->v_data[i] = w->v_data[other];
    w->k_data[other] = all_k + (size_t)(i - 1) * bytes, w->v_data[other] = all_v + (size_t)(i - 1) * bytes;
    memcpy(w->k_data[other], k.data, bytes), memcpy(w->v_data[other], v.data, bytes);
  }
  for (i = 0; i < w->copies; i++) w->k_data[i] = there(w->k_data[i]), w->v_data[i] = there(w->v_data[i]);
}

/* Scatters the keys of a dense [1, G, T, D] tensor over pages in random order. */
static mlk_tensor attention_paged(const attention_state *w, const mlk_tensor *t, const int64_t *pages) {
  const attention_spec *s = &w->s;
  float *data = row_floats(s->g * s->t * s->d);
  int64_t g, j;
  for (g = 0; g < s->g; g++)
    for (j = 0; j < s->t; j++)
      memcpy(data + ((pages[j / s->page] * s->g + g) * s->page + j % s->page) * s->d, attention_floats(t, 0, g, j),
             (size_t)s->d * sizeof(float));
  return tensor_there(mlk_f32(data, s->t / s->page, s->g, s->page, s->d));
}

static void attention_make_pages(attention_state *w) {
  const int64_t count = w->s.t / w->s.page;
  int64_t *pages = (int64_t *)row_alloc((size_t)count * sizeof *pages), i;
  uint64_t seed = 10;
  for (i = 0; i < count; i++) pages[i] = i;
  for (i = count - 1; i > 0; i--) {
    const int64_t other = random_int(&seed, 0, (int)i), page = pages[i];
    pages[i] = pages[other], pages[other] = page;
  }
  w->desc.k = attention_paged(w, &w->k, pages), w->desc.v = attention_paged(w, &w->v, pages);
  w->desc.pages = mlk_i64((int64_t *)there(pages), 1, count);
  w->k_data[0] = w->desc.k.data, w->v_data[0] = w->desc.v.data;
}

/* What is added to the scores of the peers, and of MLK where it is a bias. Not broadcast over sequences: oneDNN 3.6
   would read past the one that is there. */
static void attention_make_mask(attention_state *w) {
  const attention_spec *s = &w->s;
  const int64_t heads = s->variant == ATTENTION_ALIBI || s->variant == ATTENTION_BIAS ? s->h : 1;
  uint64_t seed = 11;
  uint8_t *bytes = NULL;
  float *m;
  int64_t h, i, j, at = 0;
  if (s->variant == ATTENTION_PLAIN && !s->causal) return;
  if (s->variant == ATTENTION_SOFTCAP || s->variant == ATTENTION_LENGTHS) return;
  m = row_floats(s->b * heads * s->s * s->t);
  w->peer_mask = mlki_explicit_strides(mlk_f32(m, s->b, heads, s->s, s->t));
  if (s->variant == ATTENTION_MASK) bytes = (uint8_t *)row_alloc((size_t)(s->b * s->s * s->t));
  for (h = 0; h < s->b * heads; h++)
    for (i = 0; i < s->s; i++)
      for (j = 0; j < s->t; j++, at++) {
        const int64_t distance = i + s->t - s->s - j;
        m[at] = 0;
        if (s->variant == ATTENTION_BIAS) m[at] = (float)random_int(&seed, -64, 64) / 32;
        if (s->variant == ATTENTION_ALIBI) m[at] = -w->slopes[h % heads] * (float)fabs((double)distance);
        if (bytes) bytes[at] = random_int(&seed, 0, 4) > 0 || j == 0; /* one in five is out */
        if ((bytes && !bytes[at]) || (s->causal && distance < 0) ||
            (s->variant == ATTENTION_WINDOW && fabs((double)distance) >= (double)s->window))
          m[at] = -INFINITY;
      }
  if (s->variant == ATTENTION_BIAS) w->desc.scores.bias = tensor_there(w->peer_mask);
  if (bytes) w->desc.scores.mask = mlk_u8((uint8_t *)there(bytes), s->b, 1, s->s, s->t);
}

static void attention_make_scores(attention_state *w) {
  const attention_spec *s = &w->s;
  mlk_attention_scores *scores = &w->desc.scores;
  int64_t h;
  scores->causal = s->causal;
  if (s->variant == ATTENTION_SOFTCAP) scores->softcap = 5;
  if (s->variant == ATTENTION_WINDOW) scores->window = s->window;
  if (s->variant == ATTENTION_ALIBI) {
    w->slopes = row_floats(s->h);
    for (h = 0; h < s->h; h++) w->slopes[h] = (float)pow(2, -8 * (double)(h + 1) / (double)s->h);
    scores->alibi = mlk_f32((float *)there(w->slopes), s->h);
  }
  if (s->variant == ATTENTION_LENGTHS) {
    int64_t *offsets = (int64_t *)row_alloc(sizeof s->offsets);
    memcpy(offsets, s->offsets, sizeof s->offsets);
    scores->q_offsets = scores->k_offsets = mlk_i64((int64_t *)there(offsets), s->sequences + 1);
    scores->longest_q = scores->longest_k = s->longest;
  }
  attention_make_mask(w);
}

/* Pairs of a query and a key that take part, of one head. */
static double attention_pairs(const attention_state *w) {
  int64_t i, first, end, position;
  double pairs = 0;
  for (i = 0; i < w->s.s; i++) {
    attention_keys(w, i, &first, &end, &position);
    if (w->s.variant == ATTENTION_WINDOW && position - w->s.window >= first) first = position - w->s.window + 1;
    if (w->s.variant == ATTENTION_WINDOW && position + w->s.window < end) end = position + w->s.window;
    if (w->s.causal && position + 1 < end) end = position + 1;
    pairs += (double)(end - first);
  }
  return pairs;
}

static void attention_sample_rows(attention_state *w) {
  const attention_spec *s = &w->s;
  uint64_t seed = 12;
  int n;
  w->sampled = s->op == ATTENTION_DECODE ? 8 : ATTENTION_SAMPLED;
  w->scores = (double *)row_alloc((size_t)s->t * sizeof(double));
  for (n = 0; n < w->sampled; n++) { /* the first and last of the first head and of the last, then any */
    attention_sample *at = &w->sample[n];
    at->b = n < 2 ? 0 : n < 4 ? s->b - 1 : random_int(&seed, 0, (int)s->b - 1);
    at->h = n < 2 ? 0 : n < 4 ? s->h - 1 : random_int(&seed, 0, (int)s->h - 1);
    at->i = n < 4 ? (n & 1 ? s->s - 1 : 0) : random_int(&seed, 0, (int)s->s - 1);
    at->expected = (double *)row_alloc((size_t)(3 * s->d) * sizeof(double));
  }
}

/* Of the largest magnitude expected in a row. With 16 bits the weights (of gradients also the scores' gradients) are
   rounded before they meet a second matrix, and so is the result: that was 1.5 units at most where it was looked at; 4
   are allowed. */
static double attention_tolerance(const attention_spec *s, int backward) {
  if (attention_all_narrow(s)) return 4 * dtype_unit(s->dtype);
  return backward ? 1e-3 : 1e-4;
}

/* The forward pass before a backward one: MLK's results, checked on the sampled rows, are what the
   gradients are expected from. */
static void attention_forward_first(attention_state *w) {
  attention_way way;
  int n;
  memset(&way, 0, sizeof way);
  way.w = w, way.out = w->out, way.tolerance = attention_tolerance(&w->s, 0);
  operands_up();
  if (mlk_attention(w->ctx, &w->desc) != MLK_OK)
    text(w->forward_wrong, sizeof w->forward_wrong, "%s", mlk_last_error(w->ctx));
  operands_down();
  for (n = 0; n < w->sampled && !w->forward_wrong[0]; n++) {
    const attention_sample *at = &w->sample[n];
    const double lse = attention_expect_out(w, at);
    const double got = (double)((const float *)w->lse.data)[(at->b * w->s.h + at->h) * w->s.s + at->i];
    attention_row_right(w, &way, &w->out, "out", at, at->expected, 0, w->forward_wrong, sizeof w->forward_wrong);
    if (!(fabs(got - lse) <= 1e-4 * greater(1, fabs(lse))))
      text(w->forward_wrong, sizeof w->forward_wrong, "lse[%lld][%lld][%lld] is %.9g, but should be %.9g",
           (long long)at->b, (long long)at->h, (long long)at->i, got, lse);
  }
}

static void attention_prepare_grad(attention_state *w) {
  const attention_spec *s = &w->s;
  mlk_attention_grad_desc *g = &w->grad;
  w->dout = attention_operand(s, s->h, s->s, 4);
  g->dout = tensor_there(s->dtype == MLK_F32 ? w->dout : attention_narrow(&w->dout, s->dtype));
  w->lse = mlk_f32(row_floats(s->b * s->h * s->s), s->b, s->h, s->s), w->desc.lse = tensor_there(w->lse);
  attention_forward_first(w);
  if (s->dtype != MLK_F32) w->out = attention_values(&w->out);
  w->spoils = 0; /* what is to be overwritten now are the gradients */
  g->q = w->desc.q, g->k = w->desc.k, g->v = w->desc.v, g->out = w->desc.out, g->lse = w->desc.lse;
  g->scores = w->desc.scores;
  w->dq = attention_output(w, s->h, s->s), g->dq = tensor_there(w->dq);
  w->dk = attention_output(w, s->g, s->t), g->dk = tensor_there(w->dk);
  w->dv = attention_output(w, s->g, s->t), g->dv = tensor_there(w->dv);
}

static void attention_prepare(attention_state *w, const attention_spec *s) {
  mlk_tensor k, v;
  int n;
  memset(w, 0, sizeof *w);
  w->s = *s, w->scale = 1 / sqrtf((float)s->d), w->ctx = context(s->common.threads, s->common.isa, MLK_STRICT);
  w->q = attention_operand(s, s->h, s->s, 1), w->k = attention_operand(s, s->g, s->t, 2);
  w->v = attention_operand(s, s->g, s->t, 3), w->out = attention_output(w, s->h, s->s);
  k = w->k, v = w->v, w->q_half = w->q;
  if (s->dtype != MLK_F32) {
    k = attention_narrow(&w->k, s->dtype), v = attention_narrow(&w->v, s->dtype);
    w->q_half = attention_narrow(&w->q, s->dtype);
  }
  w->desc.q = tensor_there(attention_all_narrow(s) ? w->q_half : w->q), w->desc.out = tensor_there(w->out);
  w->desc.k = tensor_there(k), w->desc.v = tensor_there(v);
  attention_make_scores(w);
  attention_make_copies(w, k, v);
  if (s->page) attention_make_pages(w);
  attention_sample_rows(w);
  if (s->op == ATTENTION_BACKWARD) attention_prepare_grad(w);
  for (n = 0; n < w->sampled; n++)
    if (s->op == ATTENTION_BACKWARD)
      attention_expect_grad(w, &w->sample[n]);
    else
      attention_expect_out(w, &w->sample[n]);
}

static attention_way *attention_way_make(attention_state *w) {
  attention_way *c = &w->way[w->ways++];
  if (w->ways > ATTENTION_WAYS) die("too many ways of attention");
  c->w = w, c->out = w->out, c->dq = w->dq, c->dk = w->dk, c->dv = w->dv;
  c->causal = w->s.causal && w->s.s == w->s.t && w->s.variant == ATTENTION_PLAIN;
  c->tolerance = attention_tolerance(&w->s, w->s.op == ATTENTION_BACKWARD);
  return c;
}

/* ---------------------------------------------------------------------------------------------------- ways of peers */

/* Query heads as positions of their key head: the same attention where there is one query, and K and V are
   read once for the group. */
static mlk_tensor attention_as_rows(const attention_state *w, void *data, int32_t dtype) {
  const attention_spec *s = &w->s;
  mlk_tensor t = mlki_explicit_strides(mlk_f32(data, s->b, s->g, s->h / s->g, s->d));
  t.dtype = dtype;
  return t;
}

static void attention_torch_make(attention_state *w, row *r, int as_rows) {
  attention_way *c = attention_way_make(w);
  mlk_tensor q = as_rows ? attention_as_rows(w, w->q_half.data, w->q_half.dtype) : w->q_half;
  mlk_tensor k = w->desc.k, v = w->desc.v;
  int i;
  if (w->s.dtype != MLK_F32) c->tolerance = w->s.dtype == MLK_F16 ? 5e-3 : 4e-2; /* its result has that dtype too */
  c->out = q, c->q = torch_view(q);
  c->grouped = !as_rows && w->s.h != w->s.g;
  for (i = 0; i < w->copies; i++) {
    k.data = w->k_data[i], v.data = w->v_data[i];
    c->k[i] = torch_view(k), c->v[i] = torch_view(v);
  }
  if (!c->causal && w->peer_mask.data) c->mask = torch_view(w->peer_mask);
  if (w->s.op == ATTENTION_BACKWARD) {
    c->dout = torch_view(w->dout);
    if (torch.forward(c->q, c->k[0], c->v[0], 0, c->causal, NULL, NULL, &c->result, &c->lse) != 0) return;
  }
  row_add(r, as_rows ? "torch rows" : c->grouped ? "torch gqa" : "torch", TORCH, attention_torch_call, c);
}

/* A result [B, H, S, D] in the dtype of K and V, and the bound that goes with it. */
static void attention_half_result(attention_way *c) {
  const attention_spec *s = &c->w->s;
  const size_t bytes = (size_t)(s->b * s->h * s->s * s->d) * 2;
  if (s->dtype == MLK_F32) return;
  c->out = mlki_explicit_strides(mlk_f16(row_alloc(bytes), s->b, s->h, s->s, s->d));
  memset(c->out.data, 0xff, bytes); /* NaN */
  c->out.dtype = (int32_t)s->dtype;
  c->tolerance = s->dtype == MLK_F16 ? 5e-3 : 4e-2;
}

/* What onnxruntime gets as [B, S, H, D], and where it puts its own result. */
static mlk_tensor attention_positions_first(attention_state *w, const mlk_tensor *t, int copies) {
  mlk_map_desc copy;
  const int64_t count = t->shape[0] * t->shape[1] * t->shape[2] * t->shape[3];
  memset(&copy, 0, sizeof copy);
  copy.a = *t;
  copy.out = mlk_swapped(mlk_f32(row_floats(count), t->shape[0], t->shape[2], t->shape[1], t->shape[3]), 1, 2);
  if (copies && mlk_map(w->ctx, &copy) != MLK_OK) die("%s", mlk_last_error(w->ctx));
  if (!copies) w->spoiled[w->spoils] = copy.out.data, w->spoiled_bytes[w->spoils++] = (size_t)count * sizeof(float);
  return copy.out;
}

/* com.microsoft.MultiHeadAttention: as many key heads as query heads, operands [B, S, H D]. */
static void attention_ort_mha_make(attention_state *w, row *r) {
  const attention_spec *s = &w->s;
  attention_way *c = attention_way_make(w);
  const mlk_tensor q = attention_positions_first(w, &w->q, 1), k = attention_positions_first(w, &w->k, 1);
  const mlk_tensor v = attention_positions_first(w, &w->v, 1);
  ort_program *p = &c->ort;
  ort_operand *o;
  c->out = attention_positions_first(w, &w->out, 0);
  o = ort_add(p, 0, "q", ORT_FLOAT, s->b, s->s, s->h * s->d, 0), o->value = ort_value(p, o, q.data);
  c->ort_k = ort_add(p, 0, "k", ORT_FLOAT, s->b, s->t, s->h * s->d, 0), c->k[0] = ort_value(p, c->ort_k, k.data);
  c->ort_v = ort_add(p, 0, "v", ORT_FLOAT, s->b, s->t, s->h * s->d, 0), c->v[0] = ort_value(p, c->ort_v, v.data);
  if (!c->causal && w->peer_mask.data) {
    ort_add(p, 0, "", ORT_FLOAT, 0, 0, 0, 0), ort_add(p, 0, "", ORT_INT32, 0, 0, 0, 0);
    o = ort_add(p, 0, "mask", ORT_FLOAT, s->b, w->peer_mask.shape[1], s->s, s->t);
    o->value = ort_value(p, o, w->peer_mask.data);
  }
  o = ort_add(p, 1, "out", ORT_FLOAT, s->b, s->s, s->h * s->d, 0), o->value = ort_value(p, o, c->out.data);
  ort_attribute(p, "num_heads", 0, (double)s->h);
  if (c->causal) ort_attribute(p, "unidirectional", 0, 1);
  ort_make(p, "com.microsoft", "MultiHeadAttention", s->common.threads);
  row_add(r, "onnxruntime mha", ORT, attention_ort_call, c);
}

/* The standard's Attention, opset 23: operands [B, H, S, D], heads may be grouped. */
static void attention_ort_standard_make(attention_state *w, row *r) {
  const attention_spec *s = &w->s;
  const int dtype = s->dtype == MLK_F32 ? ORT_FLOAT : ORT_FLOAT16;
  attention_way *c = attention_way_make(w);
  ort_program *p = &c->ort;
  ort_operand *o;
  int i;
  o = ort_add(p, 0, "q", dtype, s->b, s->h, s->s, s->d), o->value = ort_value(p, o, w->q_half.data);
  c->ort_k = ort_add(p, 0, "k", dtype, s->b, s->g, s->t, s->d);
  c->ort_v = ort_add(p, 0, "v", dtype, s->b, s->g, s->t, s->d);
  for (i = 0; i < w->copies; i++)
    c->k[i] = ort_value(p, c->ort_k, w->k_data[i]), c->v[i] = ort_value(p, c->ort_v, w->v_data[i]);
  if (!c->causal && w->peer_mask.data) {
    o = ort_add(p, 0, "mask", ORT_FLOAT, s->b, w->peer_mask.shape[1], s->s, s->t);
    o->value = ort_value(p, o, w->peer_mask.data);
  }
  attention_half_result(c);
  o = ort_add(p, 1, "out", dtype, s->b, s->h, s->s, s->d), o->value = ort_value(p, o, c->out.data);
  if (c->causal) ort_attribute(p, "is_causal", 0, 1);
  if (s->variant == ATTENTION_SOFTCAP) ort_attribute(p, "softcap", 1, 5);
  ort_make(p, "", "Attention", s->common.threads);
  row_add(r, "onnxruntime std", ORT, attention_ort_call, c);
}

/* com.microsoft.GroupQueryAttention, made for decoding: K and V are caches, to which the call appends the newest key,
   here the last one of the row with the values that it has already. */
static void attention_ort_gqa_make(attention_state *w, row *r) {
  const attention_spec *s = &w->s;
  attention_way *c = attention_way_make(w);
  ort_program *p = &c->ort;
  const int dtype = s->dtype == MLK_F32 ? ORT_FLOAT : ORT_FLOAT16;
  const size_t key = (size_t)s->d * (s->dtype == MLK_F32 ? 4 : 2), head = (size_t)s->t * key;
  char *newest_k = (char *)row_alloc((size_t)s->g * key), *newest_v = (char *)row_alloc((size_t)s->g * key);
  int32_t *last = (int32_t *)row_alloc(2 * sizeof *last);
  ort_operand *o;
  size_t g;
  int i;
  attention_half_result(c);
  for (g = 0; g < (size_t)s->g; g++) {
    memcpy(newest_k + g * key, (const char *)w->k_data[0] + (g + 1) * head - key, key);
    memcpy(newest_v + g * key, (const char *)w->v_data[0] + (g + 1) * head - key, key);
  }
  last[0] = (int32_t)s->t - 1, last[1] = (int32_t)s->t;
  o = ort_add(p, 0, "q", dtype, 1, 1, s->h * s->d, 0), o->value = ort_value(p, o, w->q_half.data);
  o = ort_add(p, 0, "new_k", dtype, 1, 1, s->g * s->d, 0), o->value = ort_value(p, o, newest_k);
  o = ort_add(p, 0, "new_v", dtype, 1, 1, s->g * s->d, 0), o->value = ort_value(p, o, newest_v);
  c->ort_k = ort_add(p, 0, "k", dtype, 1, s->g, s->t, s->d), c->ort_v = ort_add(p, 0, "v", dtype, 1, s->g, s->t, s->d);
  o = ort_add(p, 0, "last", ORT_INT32, 1, 0, 0, 0), o->value = ort_value(p, o, last);
  o = ort_add(p, 0, "total", ORT_INT32, 1, 0, 0, 0), o->value = ort_value(p, o, last + 1);
  o = ort_add(p, 1, "out", dtype, 1, 1, s->h * s->d, 0), o->value = ort_value(p, o, c->out.data);
  c->ort_present_k = ort_add(p, 1, "present_k", dtype, 1, s->g, s->t, s->d);
  c->ort_present_v = ort_add(p, 1, "present_v", dtype, 1, s->g, s->t, s->d);
  for (i = 0; i < w->copies; i++)
    c->k[i] = ort_value(p, c->ort_k, w->k_data[i]), c->v[i] = ort_value(p, c->ort_v, w->v_data[i]);
  ort_attribute(p, "num_heads", 0, (double)s->h), ort_attribute(p, "kv_num_heads", 0, (double)s->g);
  ort_make(p, "com.microsoft", "GroupQueryAttention", s->common.threads);
  row_add(r, "onnxruntime gqa", ORT, attention_ort_call, c);
}

static void attention_onednn_make(attention_state *w, row *r) {
  attention_way *c = attention_way_make(w);
  const int as_rows = w->s.h != w->s.g;
  const mlk_tensor q = as_rows ? attention_as_rows(w, w->q_half.data, w->q_half.dtype) : w->q_half;
  mlk_tensor scale = mlk_f32(&w->scale, 1, 1, 1, 1);
  int i;
  attention_half_result(c);
  if (as_rows) c->out = attention_as_rows(w, c->out.data, c->out.dtype);
  if (w->s.dtype != MLK_F32) scale = attention_narrow(&scale, w->s.dtype);
  dnn_attention_make(&c->dnn, &q, &w->desc.k, &w->desc.v, &scale, &w->peer_mask, &c->out);
  for (i = 0; i < w->copies && !c->dnn.failed; i++) {
    c->k[i] = dnn_graph_tensor(&c->dnn, &c->dnn.logical[1], w->k_data[i]);
    c->v[i] = dnn_graph_tensor(&c->dnn, &c->dnn.logical[c->dnn.ins - 1], w->v_data[i]);
  }
  row_add(r, "onednn", ONEDNN, attention_onednn_call, c);
}

/* Every way of every peer to do the row. */
static void attention_peers(attention_state *w, row *r) {
  const attention_spec *s = &w->s;
  const int simple = s->variant != ATTENTION_SOFTCAP && s->variant != ATTENTION_LENGTHS && s->page == 0;
  const int grouped = s->h != s->g, one = s->op == ATTENTION_DECODE;
  peers_set_threads(s->common.threads); /* oneDNN compiles for a number of threads */
  if (peers[TORCH].present && simple) {
    attention_torch_make(w, r, 0);
    if (grouped && one) attention_torch_make(w, r, 1);
  }
  if (s->op == ATTENTION_BACKWARD) return;
  if (peers[ORT].present && s->variant != ATTENTION_LENGTHS && s->page == 0 && s->dtype != MLK_BF16) {
    if (!grouped && !one && s->variant != ATTENTION_SOFTCAP) attention_ort_mha_make(w, r);
    if (!s->positions_first) attention_ort_standard_make(w, r);
    if (one && !s->positions_first) attention_ort_gqa_make(w, r);
  }
  /* A mask of one head's scores each is read by oneDNN 3.6 as if all heads shared the first. */
  if (dnng.present && simple && (!grouped || one) && s->dtype != MLK_F16 &&
      (!w->peer_mask.data || w->peer_mask.shape[1] == 1))
    attention_onednn_make(w, r);
}

static void attention_release(attention_way *c) {
  int i;
  for (i = 0; i < c->w->copies; i++) {
    if (c->q) torch_release(&c->k[i]), torch_release(&c->v[i]);
    if (c->ort_k) ort.release_value(c->k[i]), ort.release_value(c->v[i]);
    if (c->dnn.graph && c->k[i]) dnng.tensor_destroy(c->k[i]), dnng.tensor_destroy(c->v[i]);
  }
  torch_release(&c->q), torch_release(&c->mask), torch_release(&c->dout), torch_release(&c->result);
  torch_release(&c->lse);
  for (i = 0; i < 3; i++) torch_release(&c->grad[i]);
  if (c->ort_k) {
    c->ort_k->value = c->ort_v->value = NULL;
    if (c->ort_present_k) c->ort_present_k->value = c->ort_present_v->value = NULL;
    ort_release(&c->ort);
  }
  if (c->dnn.graph) {
    c->dnn.in[1] = c->dnn.in[c->dnn.ins - 1] = NULL;
    dnn_attention_release(&c->dnn);
  }
}

/* "100,500,150": lengths of the sequences that fill the S queries and keys of one. */
static void attention_read_lengths(problem *p, attention_spec *s, const char *value) {
  const char *at = value;
  for (;;) {
    char *end;
    const long long length = strtoll(at, &end, 10);
    if (end == at || (*end && *end != ',') || length < 1 || s->sequences == ATTENTION_LENGTHS_MAX)
      problem_die(p, "lengths=%s is not made of up to %d lengths with commas between them", value,
                  ATTENTION_LENGTHS_MAX);
    s->sequences++;
    s->offsets[s->sequences] = s->offsets[s->sequences - 1] + length;
    if (length > s->longest) s->longest = length;
    if (!*end) break;
    at = end + 1;
  }
  if (s->offsets[s->sequences] != s->s || s->s != s->t || s->b != 1)
    problem_die(p, "lengths=%s adds up to %lld, but must fill the queries and keys of one batch, %lld and %lld", value,
                (long long)s->offsets[s->sequences], (long long)s->s, (long long)s->t);
}

/* What changes the scores: one of them at a time. */
static void attention_read_variant(problem *p, attention_spec *s) {
  const char *lengths = problem_value(p, "lengths");
  int chosen = 0;
  s->window = problem_integer(p, "window", 1, 1 << 30, 0);
  s->variant = (attention_variant)problem_choice(p, "scores", "plain softcap alibi bias mask");
  chosen = (s->variant != ATTENTION_PLAIN) + (s->window > 0) + (lengths != NULL);
  if (chosen > 1) problem_die(p, "one of scores, window and lengths at a time");
  if (s->window) s->variant = ATTENTION_WINDOW;
  if (lengths) s->variant = ATTENTION_LENGTHS, attention_read_lengths(p, s, lengths);
}

/* attention q=BxHxSxD kv=BxGxTxD: S = 1 forward is decoding. */
static attention_spec attention_read(problem *p) {
  static const mlk_dtype dtypes[] = {MLK_F32, MLK_F16, MLK_BF16};
  int64_t q[4] = {1, 1, 1, 1}, kv[4] = {1, 1, 1, 1};
  attention_spec s;
  int backward;
  memset(&s, 0, sizeof s);
  problem_sizes_needed(p, "q", "BxHxSxD", 4, q), problem_sizes_needed(p, "kv", "BxGxTxD", 4, kv);
  if (q[0] != kv[0] || q[3] != kv[3] || q[1] % kv[1])
    problem_die(p, "q=%lldx%lldx%lldx%lld kv=%lldx%lldx%lldx%lld: B and D must be equal, and H a multiple of G",
                (long long)q[0], (long long)q[1], (long long)q[2], (long long)q[3], (long long)kv[0], (long long)kv[1],
                (long long)kv[2], (long long)kv[3]);
  s.b = q[0], s.h = q[1], s.s = q[2], s.d = q[3], s.g = kv[1], s.t = kv[2];
  backward = problem_choice(p, "op", "fwd bwd");
  s.op = backward ? ATTENTION_BACKWARD : s.s == 1 ? ATTENTION_DECODE : ATTENTION_FORWARD;
  s.causal = problem_choice(p, "mask", "none causal");
  s.positions_first = problem_choice(p, "layout", "bhsd bshd");
  attention_read_variant(p, &s);
  s.dtype = dtypes[problem_choice(p, "dtype", "f32 f16 bf16")];
  s.page = problem_integer(p, "page", 1, 65536, 0);
  if (s.page && (s.op != ATTENTION_DECODE || s.b != 1 || s.t % s.page || s.dtype != MLK_F32))
    problem_die(p, "page=%lld is of one sequence, one query, f32, and a whole number of pages; T is %lld",
                (long long)s.page, (long long)s.t);
  if (backward && (s.variant != ATTENTION_PLAIN || s.h != s.g || s.s != s.t || s.positions_first))
    problem_die(p, "op=bwd is checked for plain scores, as many key heads as query heads and keys as queries, bhsd");
  if (attention_all_narrow(&s) && !opt.cuda)
    problem_die(p, "dtype=%s is of cached keys and values on the CPU: S must be 1, not %lld; --device cuda takes more",
                dtype_name(s.dtype), (long long)s.s);
  s.common = problem_read_common(p);
  problem_finish(p);
  return s;
}

/* Cold operands: copies of K and V where they are a cache that one query reads, else the caches are emptied. */
static row_cache attention_cache(const attention_spec *s) {
  if (!s->common.cold) return ROW_WARM;
  return s->op == ATTENTION_DECODE && !s->page ? ROW_ROTATES : ROW_FLUSHED;
}

static void attention_run(problem *problem_text, row *r) {
  attention_state *w = &attention;
  const attention_spec s = attention_read(problem_text);
  const int one = s.op == ATTENTION_DECODE;
  const double per_pair = s.op == ATTENTION_BACKWARD ? 10 : 4; /* products of D terms: 5 and 2 */
  int i;
  if (!r) return;
  attention_prepare(w, &s);
  row_common(r, &s.common, attention_cache(&s));
  text(r->dtype, sizeof r->dtype, "%s", dtype_name(s.dtype));
  r->flops = per_pair * (double)(s.d * s.b * s.h) * attention_pairs(w);
  if (one || s.common.cold)
    r->bytes = 2.0 * (double)(s.b * s.g * s.t * s.d) * (double)dtype_bytes(s.dtype) +
               2.0 * (double)(s.b * s.h * s.s * s.d) * (attention_all_narrow(&s) ? 2 : 4);
  r->spoil = attention_spoil, r->check = attention_check_all, r->arg = w;
  row_add_mlk(r, "mlk", attention_call, attention_plan, attention_way_make(w));
  if (attention_all_narrow(&s)) row_by_tensor_cores(r);
  if (!s.common.forced) attention_peers(w, r);
  if (!one && !opt.cuda) { /* a product of that size does not fill a device */
    yardstick_prepare(&s.common);
    row_add(r, "mlk matmul 1024", -1, yardstick_call, NULL);
    r->list[r->count - 1].flops = 2.0 * YARDSTICK_SIZE * YARDSTICK_SIZE * YARDSTICK_SIZE;
  }
  row_run(r);
  for (i = 0; i < w->ways; i++) attention_release(&w->way[i]);
}

/* ------------------------------------------------------------------------------------------------------------ merge */

static struct {
  mlk_context *ctx;
  mlk_attention_merge_desc desc;
  int64_t parts, rows, size;
  float *values, *lse, *out;
} merge;

static void merge_call(void *arg) {
  (void)arg;
  if (mlk_attention_merge(merge.ctx, &merge.desc) != MLK_OK) call_failed(merge.out);
}

static mlk_status merge_plan(void *arg, mlk_plan *plan) {
  (void)arg;
  return mlk_attention_merge_plan(merge.ctx, &merge.desc, plan);
}

static void merge_spoil(void *arg) {
  (void)arg;
  fill_nan(merge.out, merge.rows * merge.size);
}

static void merge_check(void *arg, const contender *who, char *why, size_t size) {
  const float *parts = merge.values, *lse = merge.lse, *out = merge.out;
  int64_t i, p, d;
  (void)arg, (void)who;
  for (i = 0; i < merge.rows && !why[0]; i += 97)
    for (d = 0; d < merge.size; d++) {
      double sum = 0, weights = 0;
      for (p = 0; p < merge.parts; p++) {
        const double weight = exp((double)lse[p * merge.rows + i]);
        weights += weight, sum += weight * (double)parts[(p * merge.rows + i) * merge.size + d];
      }
      if (!(fabs((double)out[i * merge.size + d] - sum / weights) <= 1e-5))
        text(why, size, "row %lld, element %lld is %.9g, but should be %.9g", (long long)i, (long long)d,
             (double)out[i * merge.size + d], sum / weights);
    }
  if (why[0] && mlk_last_error(merge.ctx)[0]) text(why, size, "%s", mlk_last_error(merge.ctx));
}

/* merge parts=P q=BxHxSxD: partial results over as many parts of the keys into one. */
static void merge_run(problem *problem_text, row *r) {
  problem *t = problem_text;
  const int64_t p = problem_integer(t, "parts", 1, 64, 8);
  problem_common common;
  int64_t q[4] = {1, 1, 1, 1}, lines;
  float *parts, *lse, *out;
  problem_sizes_needed(t, "q", "BxHxSxD", 4, q);
  common = problem_read_common(t);
  problem_finish(t);
  if (!r) return;
  lines = q[0] * q[1] * q[2];
  parts = row_floats(p * lines * q[3]), lse = row_floats(p * lines), out = row_floats(lines * q[3]);
  fill_uniform(parts, p * lines * q[3], 1), fill_uniform(lse, p * lines, 2);
  merge.ctx = context(common.threads, common.isa, MLK_STRICT), merge.parts = p, merge.rows = lines, merge.size = q[3];
  merge.values = parts, merge.lse = lse, merge.out = out;
  merge.desc.parts = tensor_there(mlk_f32(parts, p, q[0], q[1], q[2], q[3]));
  merge.desc.parts_lse = tensor_there(mlk_f32(lse, p, q[0], q[1], q[2]));
  merge.desc.out = tensor_there(mlk_f32(out, q[0], q[1], q[2], q[3]));
  row_common(r, &common, common.cold ? ROW_FLUSHED : ROW_WARM);
  r->flops = 2.0 * (double)(p * lines * q[3]), r->bytes = 4.0 * (double)(p * lines * (q[3] + 1) + lines * q[3]);
  r->spoil = merge_spoil, r->check = merge_check;
  row_add_mlk(r, "mlk", merge_call, merge_plan, NULL);
  row_run(r);
}

/* ------------------------------------------------------------------------------------------------------------- rows */

/* CLASS/sS_dD/MASK for both masks. */
static void declare_attention_square(const char *class_name, int b, int h, int s, int d, const char *words, int flags) {
  char name[64];
  int causal;
  for (causal = 0; causal < 2; causal++)
    declare(text(name, sizeof name, "attention/%s/s%d_d%d/%s", class_name, s, d, causal ? "causal" : "full"), flags,
            PROBLEM("attention q=%dx%dx%dx%d kv=%dx%dx%dx%d%s%s", b, h, s, d, b, h, s, d, causal ? " mask=causal" : "",
                    words));
}

/* A call of each takes about 20 to 90 ms at 200 GF/s; half of that when causal. */
static void declare_attention_forward(void) {
  static const struct { int s, b, h; } shapes[] = {{512, 4, 16}, {1024, 1, 16}, {2048, 1, 8}, {4096, 1, 2}};
  size_t i;
  int d;
  for (i = 0; i < sizeof shapes / sizeof *shapes; i++)
    for (d = 64; d <= 128; d += 64)
      declare_attention_square("forward", shapes[i].b, shapes[i].h, shapes[i].s, d, "",
                               (i % 2 ? 0 : ONE_THREAD) | (i == 1 && d == 64 ? QUICK_ONE_THREAD : 0));
}

static void declare_attention_backward(void) {
  static const int heads[] = {16, 4, 2}; /* of 512, 1024, 2048 */
  int i, d;
  for (i = 0; i < 3; i++)
    for (d = 64; d <= 128; d += 64)
      declare_attention_square("backward", 1, heads[i], 512 << i, d, " op=bwd",
                               (i == 1 ? 0 : ONE_THREAD) | (i == 1 && d == 64 ? QUICK_ONE_THREAD : 0));
}

/* Of 16 bits, as large as fill a device. */
static void declare_attention_narrow(void) {
  declare_attention_square("bf16", 4, 32, 2048, 128, " dtype=bf16", QUICK);
  declare_attention_square("bf16", 16, 32, 1024, 64, " dtype=bf16", 0);
  declare_attention_square("f16", 4, 32, 2048, 128, " dtype=f16", 0);
  declare_attention_square("bf16_backward", 2, 16, 2048, 128, " dtype=bf16 op=bwd", QUICK);
  declare_attention_square("bf16_backward", 4, 16, 1024, 64, " dtype=bf16 op=bwd", 0);
}

static void declare_attention_decode(void) {
  static const struct {
    int t, g, d;
    const char *dtype;
  } caches[] = {{512, 1, 128, "f32"},   {512, 8, 128, "f32"},   {4096, 1, 128, "f32"}, {4096, 8, 128, "f32"},
                {32768, 1, 128, "f32"}, {32768, 8, 128, "f32"}, {4096, 1, 64, "f32"},  {4096, 8, 64, "f32"},
                {4096, 8, 128, "f16"},  {4096, 8, 128, "bf16"}};
  static const int groups[] = {1, 4, 8};
  char name[64];
  size_t i, j;
  for (i = 0; i < sizeof caches / sizeof *caches; i++)
    for (j = 0; j < sizeof groups / sizeof *groups; j++) {
      const int t = caches[i].t, g = caches[i].g, d = caches[i].d, n = groups[j];
      const int many = n == 4 && d == 128 && t > 512, quick = many && t == 4096 && g == 8;
      declare(text(name, sizeof name, "attention/decode/%s/t%d_g%dx%d_d%d/%s", n > 1 ? "grouped" : "single", t, g, n, d,
                   caches[i].dtype),
              (many ? 0 : ONE_THREAD) | (quick ? QUICK_ONE_THREAD : 0),
              PROBLEM("attention q=1x%dx1x%d kv=1x%dx%dx%d dtype=%s cache=cold", g * n, d, g, t, d, caches[i].dtype));
    }
  declare("attention/paged/t32768_g8x4_d128/page16", 0, "attention q=1x32x1x128 kv=1x8x32768x128 page=16");
  declare("attention/paged/t32768_g8x4_d128/page128", 0, "attention q=1x32x1x128 kv=1x8x32768x128 page=128");
}

static void declare_attention(void) {
  static const struct {
    const char *name, *problem;
    int flags;
  } others[] = {
      {"short/bert_b32_h12_s32_d64/full", "q=32x12x32x64 kv=32x12x32x64 layout=bshd", ONE_THREAD},
      {"short/bert_b32_h12_s64_d64/full", "q=32x12x64x64 kv=32x12x64x64 layout=bshd", ONE_THREAD},
      {"short/bert_b32_h12_s128_d64/full", "q=32x12x128x64 kv=32x12x128x64 layout=bshd", QUICK_ONE_THREAD},
      {"short/b32_h16_s128_d64/full", "q=32x16x128x64 kv=32x16x128x64", ONE_THREAD},
      {"short/b32_h16_s128_d64/causal", "q=32x16x128x64 kv=32x16x128x64 mask=causal", 0},
      {"short/b32_h16_s128_d128/full", "q=32x16x128x128 kv=32x16x128x128", ONE_THREAD},
      {"short/b32_h16_s128_d128/causal", "q=32x16x128x128 kv=32x16x128x128 mask=causal", ONE_THREAD},
      {"grouped/g8x4_s1024_d64/full", "q=1x32x1024x64 kv=1x8x1024x64", 0},
      {"grouped/g8x4_s1024_d64/causal", "q=1x32x1024x64 kv=1x8x1024x64 mask=causal", ONE_THREAD},
      {"grouped/g8x4_s1024_d128/causal", "q=1x32x1024x128 kv=1x8x1024x128 mask=causal", ONE_THREAD},
      {"variants/bshd_s1024_d64/full", "q=1x16x1024x64 kv=1x16x1024x64 layout=bshd", ONE_THREAD},
      {"variants/softcap_s1024_d64/full", "q=1x8x1024x64 kv=1x8x1024x64 scores=softcap", ONE_THREAD},
      {"variants/alibi_s1024_d64/full", "q=1x8x1024x64 kv=1x8x1024x64 scores=alibi", ONE_THREAD},
      {"variants/bias_s1024_d64/full", "q=1x8x1024x64 kv=1x8x1024x64 scores=bias", ONE_THREAD},
      {"variants/mask_s1024_d64/full", "q=1x8x1024x64 kv=1x8x1024x64 scores=mask", ONE_THREAD},
      {"variants/window256_s4096_d64/causal", "q=1x8x4096x64 kv=1x8x4096x64 mask=causal window=256", ONE_THREAD},
      {"variants/lengths_s2048_d64/causal",
       "q=1x16x2048x64 kv=1x16x2048x64 mask=causal lengths=100,500,150,250,408,1,639", ONE_THREAD},
      {"variants/chunk512_t4096_d64/causal", "q=1x8x512x64 kv=1x8x4096x64 mask=causal", ONE_THREAD},
  };
  char name[64];
  size_t i;
  declare_attention_forward();
  for (i = 0; i < sizeof others / sizeof *others; i++)
    declare(text(name, sizeof name, "attention/%s", others[i].name), others[i].flags,
            PROBLEM("attention %s", others[i].problem));
  declare_attention_decode();
  declare_attention_backward();
  if (opt.cuda) declare_attention_narrow();
  declare("attention/merge/p8_h16_s4096_d64", 0, "merge parts=8 q=1x16x4096x64");
}

#endif
