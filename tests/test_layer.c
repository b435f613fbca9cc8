/* test_layer.c - pooling, softmax, cross-entropy, normalisation, embedding, rotary positions.

   Every call is made on every row of kernels, with several thread counts and with operands in random layouts between
   guard pages, and compared bit for bit with MLK_ISA_REFERENCE on dense operands. The reference is no oracle by itself:
   its forward results are compared with the same formulas in double precision, its gradients with central differences
   of those. */

#include "test.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define COUNT_OF(array) ((int)(sizeof(array) / sizeof(array)[0]))

static void *need(size_t bytes) {
  void *memory = malloc(bytes ? bytes : 1);
  if (!memory) {
    fprintf(stderr, "test_layer: out of memory\n");
    exit(3);
  }
  return memory;
}

static float *need_f32(int64_t count) { return (float *)need((size_t)count * sizeof(float)); }
static double *need_f64(int64_t count) { return (double *)need((size_t)count * sizeof(double)); }

/* ---- calls: an operator, its parameters, its operands as dense arrays -------------------------------------------- */

enum { OPERANDS = 8 };

typedef enum op {
  POOL,
  POOL_GRAD,
  SOFTMAX,
  SOFTMAX_GRAD,
  ENTROPY,
  NORM,
  NORM_GRAD,
  EMBEDDING,
  EMBEDDING_GRAD,
  ROTARY,
  OPS
} op;

static const char *const op_names[OPS] = {"pool", "pool_grad", "softmax",   "softmax_grad",   "cross_entropy",
                                          "norm", "norm_grad", "embedding", "embedding_grad", "rotary"};

typedef enum role { ABSENT, INPUT, OUTPUT, UPDATED } role;

typedef struct operand {
  role what;
  mlk_dtype dtype;
  int rank;
  int64_t shape[MLK_MAX_RANK], count;
  void *dense; /* inputs and what is updated: the data */
  void *want;  /* outputs and what is updated: what the reference makes of it */
} operand;

/* Operands by op, in this order:
     POOL x y indices             POOL_GRAD dy indices dx       SOFTMAX x y        SOFTMAX_GRAD y dy dx
     ENTROPY x labels loss dx     NORM x gamma beta y mean rstd NORM_GRAD x gamma mean rstd dy dx dgamma dbeta
     EMBEDDING table ids out      EMBEDDING_GRAD ids dout dtable                   ROTARY x positions frequencies y */
typedef struct call {
  op what;
  operand o[OPERANDS];
  int alias_out, alias_in; /* an output that may be an input; -1: none */
  union {
    mlk_pool_desc pool;
    mlk_pool_grad_desc pool_grad;
    mlk_softmax_desc softmax;
    mlk_softmax_grad_desc softmax_grad;
    mlk_cross_entropy_desc entropy;
    mlk_norm_desc norm;
    mlk_norm_grad_desc norm_grad;
    mlk_embedding_desc embedding;
    mlk_embedding_grad_desc embedding_grad;
    mlk_rotary_desc rotary;
  } u;
  float scalar; /* what scale or accumulate points to */
} call;

/* Puts the operands into the descriptor, then runs it or, with plan, plans it. */
static mlk_status call_do(mlk_context *ctx, call *c, const mlk_tensor *t, mlk_plan *plan) {
  switch (c->what) {
  case POOL:
    c->u.pool.x = t[0], c->u.pool.y = t[1], c->u.pool.indices = t[2];
    return plan ? mlk_pool_plan(ctx, &c->u.pool, plan) : mlk_pool(ctx, &c->u.pool);
  case POOL_GRAD:
    c->u.pool_grad.dy = t[0], c->u.pool_grad.indices = t[1], c->u.pool_grad.dx = t[2];
    return plan ? mlk_pool_grad_plan(ctx, &c->u.pool_grad, plan) : mlk_pool_grad(ctx, &c->u.pool_grad);
  case SOFTMAX:
    c->u.softmax.x = t[0], c->u.softmax.y = t[1];
    return plan ? mlk_softmax_plan(ctx, &c->u.softmax, plan) : mlk_softmax(ctx, &c->u.softmax);
  case SOFTMAX_GRAD:
    c->u.softmax_grad.y = t[0], c->u.softmax_grad.dy = t[1], c->u.softmax_grad.dx = t[2];
    return plan ? mlk_softmax_grad_plan(ctx, &c->u.softmax_grad, plan) : mlk_softmax_grad(ctx, &c->u.softmax_grad);
  case ENTROPY:
    c->u.entropy.x = t[0], c->u.entropy.labels = t[1], c->u.entropy.loss = t[2], c->u.entropy.dx = t[3];
    return plan ? mlk_cross_entropy_plan(ctx, &c->u.entropy, plan) : mlk_cross_entropy(ctx, &c->u.entropy);
  case NORM:
    c->u.norm.x = t[0], c->u.norm.gamma = t[1], c->u.norm.beta = t[2];
    c->u.norm.y = t[3], c->u.norm.mean = t[4], c->u.norm.rstd = t[5];
    return plan ? mlk_norm_plan(ctx, &c->u.norm, plan) : mlk_norm(ctx, &c->u.norm);
  case NORM_GRAD:
    c->u.norm_grad.x = t[0], c->u.norm_grad.gamma = t[1], c->u.norm_grad.mean = t[2], c->u.norm_grad.rstd = t[3];
    c->u.norm_grad.dy = t[4], c->u.norm_grad.dx = t[5], c->u.norm_grad.dgamma = t[6], c->u.norm_grad.dbeta = t[7];
    return plan ? mlk_norm_grad_plan(ctx, &c->u.norm_grad, plan) : mlk_norm_grad(ctx, &c->u.norm_grad);
  case EMBEDDING:
    c->u.embedding.table = t[0], c->u.embedding.ids = t[1], c->u.embedding.out = t[2];
    return plan ? mlk_embedding_plan(ctx, &c->u.embedding, plan) : mlk_embedding(ctx, &c->u.embedding);
  case EMBEDDING_GRAD:
    c->u.embedding_grad.ids = t[0], c->u.embedding_grad.dout = t[1], c->u.embedding_grad.dtable = t[2];
    return plan ? mlk_embedding_grad_plan(ctx, &c->u.embedding_grad, plan)
                : mlk_embedding_grad(ctx, &c->u.embedding_grad);
  default:
    c->u.rotary.x = t[0], c->u.rotary.positions = t[1], c->u.rotary.frequencies = t[2], c->u.rotary.y = t[3];
    return plan ? mlk_rotary_plan(ctx, &c->u.rotary, plan) : mlk_rotary(ctx, &c->u.rotary);
  }
}

static call call_new(op what) {
  call c;
  memset(&c, 0, sizeof c);
  c.what = what;
  c.alias_out = c.alias_in = -1;
  return c;
}

static size_t element_bytes(const operand *o) { return o->dtype == MLK_I64 ? 8 : 4; }

/* Operand i of c, with memory; inputs are still to be filled. */
static void call_add(call *c, int i, role what, mlk_dtype dtype, int rank, const int64_t *shape) {
  operand *o = &c->o[i];
  int a;
  o->what = what, o->dtype = dtype, o->rank = rank, o->count = 1;
  for (a = 0; a < rank; a++) o->shape[a] = shape[a], o->count *= shape[a];
  o->dense = need((size_t)o->count * element_bytes(o));
  o->want = need((size_t)o->count * element_bytes(o));
}

static void call_free(call *c) {
  int i;
  for (i = 0; i < OPERANDS; i++) free(c->o[i].dense), free(c->o[i].want);
}

static float *f32_of(const call *c, int i) { return (float *)c->o[i].dense; }
static int64_t *i64_of(const call *c, int i) { return (int64_t *)c->o[i].dense; }
static const float *want_of(const call *c, int i) { return (const float *)c->o[i].want; }

static void fill_signed(mlkt_rng *rng, float *x, int64_t count, float scale) {
  int64_t i;
  for (i = 0; i < count; i++) x[i] = scale * mlkt_signed(rng);
}

/* Now and then a number that is hard to treat. */
static void fill_special(mlkt_rng *rng, float *x, int64_t count) {
  int64_t i;
  for (i = 0; i < count; i++) switch (mlkt_int(rng, 0, 30)) {
    case 0: x[i] = NAN; break;
    case 1: x[i] = -INFINITY; break;
    case 2: x[i] = INFINITY; break;
    case 3: x[i] = -0.0f; break;
    case 4: x[i] = 0.0f; break;
    case 5: x[i] = 1e38f * mlkt_signed(rng); break;
    case 6: x[i] = 1e-40f * mlkt_signed(rng); break;
    case 7:
    case 8: x[i] = (float)mlkt_int(rng, -1, 1); break;
    default: x[i] = 4.0f * mlkt_signed(rng); break;
    }
}

static mlk_tensor dense_tensor(const operand *o, void *data) {
  mlk_tensor t;
  int a;
  memset(&t, 0, sizeof t);
  if (o->what == ABSENT) return t;
  t.data = data, t.dtype = (int32_t)o->dtype, t.rank = o->rank;
  for (a = 0; a < o->rank; a++) t.shape[a] = o->shape[a];
  return t;
}

/* What the reference says, on dense operands. */
static int call_solve(call *c) {
  mlk_context *ctx = mlkt_open(MLK_ISA_REFERENCE, 1);
  mlk_tensor t[OPERANDS];
  int i, ok;
  for (i = 0; i < OPERANDS; i++) {
    operand *o = &c->o[i];
    if (o->what == UPDATED) memcpy(o->want, o->dense, (size_t)o->count * element_bytes(o));
    if (o->what == OUTPUT) memset(o->want, (int)MLKT_ROGUE_BYTE, (size_t)o->count * element_bytes(o));
    t[i] = dense_tensor(o, o->what == INPUT ? o->dense : o->want);
  }
  ok = CHECK_OK(ctx, call_do(ctx, c, t, NULL));
  mlk_close(ctx);
  return ok;
}

/* ---- views of operands in random layouts ------------------------------------------------------------------------- */

typedef struct view {
  mlk_tensor t;
  mlkt_buffer buffer;
  int64_t low; /* offset of the lowest element from data */
} view;

/* Axes in memory in the order given or in random order, padding between them, a step along the innermost, and for
   inputs backward axes. */
static view view_new(mlkt_rng *rng, const operand *o, int how) {
  int order[MLK_MAX_RANK], a, b;
  int64_t step = how && mlkt_int(rng, 0, 3) == 0 ? 2 : 1, high = 0;
  view v;
  memset(&v, 0, sizeof v);
  v.t = dense_tensor(o, NULL);
  for (a = 0; a < o->rank; a++) order[a] = a;
  for (a = o->rank - 1; how && mlkt_int(rng, 0, 1) && a > 0; a--) {
    const int other = (int)mlkt_int(rng, 0, a), t = order[a];
    order[a] = order[other], order[other] = t;
  }
  for (a = o->rank - 1; a >= 0; a--) {
    const int64_t size = o->shape[order[a]] ? o->shape[order[a]] : 1;
    const int backward = how && o->what == INPUT && mlkt_int(rng, 0, 9) == 0;
    v.t.stride[order[a]] = backward ? -step : step;
    if (backward)
      v.low -= (size - 1) * step;
    else
      high += (size - 1) * step;
    step = step * size + (how && mlkt_int(rng, 0, 3) == 0 ? mlkt_int(rng, 1, 3) : 0);
  }
  if (!how)
    for (b = 0; b < o->rank; b++) v.t.stride[b] = 0;
  v.buffer = mlkt_buffer_new((size_t)(o->count ? high - v.low + 1 : 0) * element_bytes(o),
                             mlkt_int(rng, 0, 1) ? MLKT_HEAD : MLKT_TAIL);
  memset(v.buffer.data, (int)MLKT_ROGUE_BYTE, v.buffer.bytes);
  v.t.data = (char *)v.buffer.data - v.low * (int64_t)element_bytes(o);
  return v;
}

static char *view_at(const view *v, const operand *o, int64_t i) {
  int64_t offset = 0, step = 1;
  int a, dense = 1;
  for (a = 0; a < o->rank; a++) dense &= v->t.stride[a] == 0;
  for (a = o->rank - 1; a >= 0; a--) {
    offset += i % o->shape[a] * (dense ? step : v->t.stride[a]);
    i /= o->shape[a], step *= o->shape[a];
  }
  return (char *)v->t.data + offset * (int64_t)element_bytes(o);
}

static void view_put(const view *v, const operand *o, const void *dense) {
  int64_t i;
  for (i = 0; i < o->count; i++)
    memcpy(view_at(v, o, i), (const char *)dense + (size_t)i * element_bytes(o), element_bytes(o));
}

/* Takes the elements out; what is left must be rogue. */
static void view_take(const view *v, const operand *o, void *dense) {
  const unsigned char *bytes = (const unsigned char *)v->buffer.data;
  size_t b, foreign = 0;
  int64_t i;
  for (i = 0; i < o->count; i++) {
    memcpy((char *)dense + (size_t)i * element_bytes(o), view_at(v, o, i), element_bytes(o));
    memset(view_at(v, o, i), (int)MLKT_ROGUE_BYTE, element_bytes(o));
  }
  for (b = 0; b < v->buffer.bytes; b++) foreign += bytes[b] != MLKT_ROGUE_BYTE;
  CHECK_MSG(foreign == 0, "%d bytes of padding were written to", (int)foreign);
  CHECK_MSG(mlkt_buffer_intact(&v->buffer), "somebody wrote beside an operand");
}

/* ---- a call on one context, in some layout, against the reference ------------------------------------------------ */

static void compare_operand(const operand *o, const void *got) {
  if (o->dtype == MLK_I64)
    CHECK_I64_N((const int64_t *)got, (const int64_t *)o->want, o->count);
  else
    CHECK_BITS_F32_N((const float *)got, (const float *)o->want, o->count);
}

/* how 0: dense. alias: the output that may be an input is that input. */
static void call_compare(mlk_context *ctx, call *c, mlkt_rng *rng, int how, int alias) {
  view v[OPERANDS];
  mlk_tensor t[OPERANDS];
  int i, ok;
  memset(v, 0, sizeof v);
  memset(t, 0, sizeof t);
  for (i = 0; i < OPERANDS; i++) {
    operand o = c->o[i];
    if (o.what == ABSENT || (alias && i == c->alias_out)) continue;
    if (alias && i == c->alias_in) o.what = OUTPUT; /* no backward axes */
    v[i] = view_new(rng, &o, how);
    if (c->o[i].what != OUTPUT) view_put(&v[i], &c->o[i], c->o[i].dense);
    t[i] = v[i].t;
    if (!t[i].data) t[i].data = v[i].buffer.data;
  }
  if (alias) t[c->alias_out] = t[c->alias_in];
  ok = CHECK_OK(ctx, call_do(ctx, c, t, NULL));
  for (i = 0; i < OPERANDS; i++) {
    const operand *o = &c->o[i];
    void *got = o->what == ABSENT ? NULL : need((size_t)o->count * element_bytes(o));
    if (o->what == ABSENT || (alias && i == c->alias_out)) {
      free(got);
      continue;
    }
    view_take(&v[i], o, got);
    if (alias && i == c->alias_in)
      compare_operand(&c->o[c->alias_out], got);
    else if (o->what == INPUT)
      CHECK_MSG(memcmp(got, o->dense, (size_t)o->count * element_bytes(o)) == 0, "input %d was written to", i);
    else if (ok)
      compare_operand(o, got);
    mlkt_buffer_free(&v[i].buffer);
    free(got);
  }
}

static int on_device(mlk_isa isa) { return mlkt_opt.cuda && isa != MLK_ISA_REFERENCE; }

enum { THREADS = 7 };

typedef struct crew {
  mlk_context *ctx[MLK_ISA_COUNT][THREADS + 1][2];
} crew;

static mlk_context *crew_get(crew *c, mlk_isa isa, int threads, int reversed) {
  mlk_context **ctx;
  mlk_context_desc desc;
  if (threads > mlkt_opt.threads_max) threads = mlkt_opt.threads_max;
  if (threads > THREADS) threads = THREADS;
  ctx = &c->ctx[isa][threads][reversed];
  if (*ctx) return *ctx;
  desc = mlkt_context_desc(isa, threads);
  if (reversed) desc.parallel = mlkt_parallel_reversed(threads);
  CHECK_OK(NULL, mlk_open(ctx, &desc));
  return *ctx;
}

static void crew_close(crew *c) {
  int i, t, r;
  for (i = 0; i < MLK_ISA_COUNT; i++)
    for (t = 0; t <= THREADS; t++)
      for (r = 0; r < 2; r++) mlk_close(c->ctx[i][t][r]);
}

static int isas_and_reference(mlk_isa isas[MLK_ISA_COUNT]) {
  int count = mlkt_isas(isas);
  if (mlkt_opt.isa == MLK_ISA_BEST) isas[count++] = MLK_ISA_REFERENCE;
  return count;
}

/* Every row, dense, in two random layouts, and in place where that is allowed. */
static void call_everywhere(crew *crew_of, call *c, mlkt_rng *rng, const char *about) {
  mlk_isa isas[MLK_ISA_COUNT];
  const int count = isas_and_reference(isas);
  int i, how;
  for (i = 0; i < count; i++)
    for (how = 0; how < 4 && !mlkt_hopeless(); how++) {
      const int threads = 1 + (int)mlkt_int(rng, 0, THREADS - 1), reversed = (int)mlkt_int(rng, 0, 1);
      if (how == 3 && c->alias_out < 0) continue;
      mlkt_note("%s, isa %s, %d threads%s, %s", about, mlk_isa_name(isas[i]), threads, reversed ? " by hook" : "",
                how == 0   ? "dense"
                : how == 3 ? "in place"
                           : "strided");
      call_compare(crew_get(crew_of, isas[i], threads, reversed), c, rng, how == 3 ? (int)mlkt_int(rng, 0, 1) : how,
                   how == 3);
    }
  mlkt_note("%s", about);
}

/* ---- the same formulas in double precision ----------------------------------------------------------------------- */

/* result[i] within bound of exact[i]; both not numbers is the same. */
static void near_enough(const char *what, const float *result, const double *exact, int64_t count, double bound) {
  int64_t i;
  for (i = 0; i < count && !mlkt_hopeless(); i++) {
    const double size = fabs(exact[i]) > 1.0 ? fabs(exact[i]) : 1.0;
    if (isnan(exact[i]) ? isnan(result[i])
                        : (double)result[i] == exact[i] || fabs((double)result[i] - exact[i]) <= bound * size)
      continue;
    CHECK_MSG(0, "%s[%ld] is %.9g, but must be %.12g", what, (long)i, (double)result[i], exact[i]);
    return;
  }
  CHECK(1);
}

/* out = f(in), in double precision. */
typedef void (*forward)(const call *c, const double *in, double *out);

/* gradient[i] against central differences of sum_j weight[j] f(x)[j]. */
static void differences_agree(const call *c, forward f, const float *x, int64_t n, const float *weight, int64_t m,
                              const float *gradient, double bound) {
  double *in = need_f64(n), *out = need_f64(m), *exact = need_f64(n);
  const double h = 1e-5;
  int64_t i, j;
  int side;
  for (i = 0; i < n; i++) in[i] = x[i];
  for (i = 0; i < n; i++) {
    exact[i] = 0.0;
    for (side = -1; side <= 1; side += 2) {
      in[i] = (double)x[i] + side * h;
      f(c, in, out);
      for (j = 0; j < m; j++) exact[i] += side * out[j] * (double)weight[j] / (2 * h);
    }
    in[i] = x[i];
  }
  near_enough("gradient", gradient, exact, n, bound);
  free(in);
  free(out);
  free(exact);
}

/* ---- pooling ----------------------------------------------------------------------------------------------------- */

typedef struct pool_shape {
  mlk_pool_kind kind;
  int spatial;
  int64_t n, c, in[3], out[3], window[3];
  mlk_conv_geometry g;
} pool_shape;

static void pool_outputs(pool_shape *p) {
  int a;
  for (a = 0; a < p->spatial; a++) {
    const int64_t s = p->g.stride[a] ? p->g.stride[a] : 1, d = p->g.dilation[a] ? p->g.dilation[a] : 1;
    const int64_t room = p->in[a] + p->g.pad_before[a] + p->g.pad_after[a] - d * (p->window[a] - 1) - 1;
    p->out[a] = room < 0 ? 0 : room / s + 1;
  }
}

static pool_shape pool_random(mlkt_rng *rng, int64_t most_c, int64_t most_in) {
  pool_shape p;
  int a;
  memset(&p, 0, sizeof p);
  p.kind = (mlk_pool_kind)mlkt_int(rng, 0, MLK_POOL_KIND_COUNT - 1);
  p.spatial = (int)mlkt_int(rng, 1, 3);
  p.n = mlkt_int(rng, 0, 9) ? mlkt_int(rng, 1, 3) : 0, p.c = mlkt_int(rng, 1, most_c);
  for (a = 0; a < p.spatial; a++) {
    p.in[a] = mlkt_int(rng, mlkt_int(rng, 0, 19) ? 1 : 0, p.spatial == 3 ? most_in / 3 + 1 : most_in);
    p.window[a] = mlkt_int(rng, 1, 4);
    p.g.stride[a] = mlkt_int(rng, 0, 3), p.g.dilation[a] = mlkt_int(rng, 0, 2);
    p.g.pad_before[a] = mlkt_int(rng, 0, 3), p.g.pad_after[a] = mlkt_int(rng, 0, 3);
  }
  pool_outputs(&p);
  return p;
}

static call pool_call(const pool_shape *p) {
  call c = call_new(POOL);
  int64_t shape[5];
  int a;
  c.u.pool.kind = p->kind;
  c.u.pool.geometry = p->g;
  memcpy(c.u.pool.window, p->window, sizeof p->window);
  shape[0] = p->n, shape[1] = p->c;
  for (a = 0; a < p->spatial; a++) shape[2 + a] = p->in[a];
  call_add(&c, 0, INPUT, MLK_F32, 2 + p->spatial, shape);
  for (a = 0; a < p->spatial; a++) shape[2 + a] = p->out[a];
  call_add(&c, 1, OUTPUT, MLK_F32, 2 + p->spatial, shape);
  if (p->kind == MLK_POOL_MAX) call_add(&c, 2, OUTPUT, MLK_I64, 2 + p->spatial, shape);
  return c;
}

static call pool_grad_call(const pool_shape *p, const call *pooled) {
  call c = call_new(POOL_GRAD);
  c.u.pool_grad.kind = p->kind;
  c.u.pool_grad.geometry = p->g;
  memcpy(c.u.pool_grad.window, p->window, sizeof p->window);
  call_add(&c, 0, INPUT, MLK_F32, pooled->o[1].rank, pooled->o[1].shape);
  call_add(&c, 2, OUTPUT, MLK_F32, pooled->o[0].rank, pooled->o[0].shape);
  if (p->kind == MLK_POOL_MAX) {
    call_add(&c, 1, INPUT, MLK_I64, pooled->o[2].rank, pooled->o[2].shape);
    memcpy(c.o[1].dense, pooled->o[2].want, (size_t)pooled->o[2].count * sizeof(int64_t));
  }
  return c;
}

/* Pooling of one plane after the other; place: where the largest was, or NULL. */
static void pool_plane(const call *c, const double *x, double *y, int64_t *place) {
  const mlk_pool_desc *d = &c->u.pool;
  const int spatial = c->o[0].rank - 2;
  int64_t in[3] = {1, 1, 1}, out[3] = {1, 1, 1}, w[3] = {1, 1, 1}, s[3] = {1, 1, 1}, l[3] = {1, 1, 1}, pad[3] = {0};
  int64_t plane, o0, o1, o2, t0, t1, t2;
  int a;
  for (a = 0; a < spatial; a++) {
    in[a] = c->o[0].shape[2 + a], out[a] = c->o[1].shape[2 + a], w[a] = d->window[a],
    pad[a] = d->geometry.pad_before[a];
    if (d->geometry.stride[a]) s[a] = d->geometry.stride[a];
    if (d->geometry.dilation[a]) l[a] = d->geometry.dilation[a];
  }
  for (plane = 0; plane < c->o[0].shape[0] * c->o[0].shape[1]; plane++, x += in[0] * in[1] * in[2])
    for (o0 = 0; o0 < out[0]; o0++)
      for (o1 = 0; o1 < out[1]; o1++)
        for (o2 = 0; o2 < out[2]; o2++) {
          double best = -INFINITY, sum = 0.0;
          int64_t count = 0, where = -1;
          for (t0 = 0; t0 < w[0]; t0++)
            for (t1 = 0; t1 < w[1]; t1++)
              for (t2 = 0; t2 < w[2]; t2++) {
                const int64_t i0 = o0 * s[0] + t0 * l[0] - pad[0], i1 = o1 * s[1] + t1 * l[1] - pad[1];
                const int64_t i2 = o2 * s[2] + t2 * l[2] - pad[2], at = (i0 * in[1] + i1) * in[2] + i2;
                if (i0 < 0 || i1 < 0 || i2 < 0 || i0 >= in[0] || i1 >= in[1] || i2 >= in[2]) continue;
                if (where < 0 || (!isnan(best) && (isnan(x[at]) || x[at] > best))) best = x[at], where = at;
                sum += x[at];
                count++;
              }
          if (d->kind == MLK_POOL_AVERAGE) sum = count ? sum / (double)count : 0.0;
          if (d->kind == MLK_POOL_AVERAGE_PADDED) sum /= (double)(w[0] * w[1] * w[2]);
          *y++ = d->kind == MLK_POOL_MAX ? best : sum;
          if (place) *place++ = where;
        }
}

/* Windows over nothing have no gradient. */
static void pool_forward(const call *c, const double *x, double *y) {
  int64_t i;
  pool_plane(c, x, y, NULL);
  for (i = 0; i < c->o[1].count; i++)
    if (y[i] == -INFINITY) y[i] = 0.0;
}

static void pool_check_forward(const call *c) {
  double *x = need_f64(c->o[0].count), *y = need_f64(c->o[1].count);
  int64_t *place = (int64_t *)need((size_t)c->o[1].count * sizeof *place), i;
  for (i = 0; i < c->o[0].count; i++) x[i] = f32_of(c, 0)[i];
  pool_plane(c, x, y, place);
  near_enough("y", want_of(c, 1), y, c->o[1].count, c->u.pool.kind == MLK_POOL_MAX ? 0.0 : 64 * 6e-8);
  if (c->u.pool.kind == MLK_POOL_MAX) CHECK_I64_N((const int64_t *)c->o[2].want, place, c->o[2].count);
  free(x);
  free(y);
  free(place);
}

static void test_pool(void) {
  mlkt_rng rng = mlkt_rng_case();
  crew all;
  int i;
  memset(&all, 0, sizeof all);
  for (i = 0; i < 160 && !mlkt_hopeless(); i++) {
    const pool_shape p = pool_random(&rng, i % 5 ? 9 : 140, i % 3 ? 12 : 45);
    call c, g;
    char about[160];
    if (!mlkt_keep((uint64_t)i) || p.n * p.c * (p.in[0] + 1) * (p.in[1] + 1) * (p.in[2] + 1) > 60000) continue;
    snprintf(about, sizeof about, "kind %d, N %d, C %d, in %d %d %d, window %d %d %d", (int)p.kind, (int)p.n, (int)p.c,
             (int)p.in[0], (int)p.in[1], (int)p.in[2], (int)p.window[0], (int)p.window[1], (int)p.window[2]);
    mlkt_note("%s", about);
    c = pool_call(&p);
    if (p.kind == MLK_POOL_MAX && i % 2)
      fill_special(&rng, f32_of(&c, 0), c.o[0].count);
    else
      fill_signed(&rng, f32_of(&c, 0), c.o[0].count, 1.0f);
    if (call_solve(&c)) {
      pool_check_forward(&c);
      call_everywhere(&all, &c, &rng, about);
      g = pool_grad_call(&p, &c);
      fill_signed(&rng, f32_of(&g, 0), g.o[0].count, 1.0f);
      if (call_solve(&g)) {
        if (g.o[2].count <= 400 && !(p.kind == MLK_POOL_MAX && i % 2))
          differences_agree(&c, pool_forward, f32_of(&c, 0), c.o[0].count, f32_of(&g, 0), g.o[0].count, want_of(&g, 2),
                            2e-5);
        call_everywhere(&all, &g, &rng, about);
      }
      call_free(&g);
    }
    call_free(&c);
  }
  crew_close(&all);
}

/* Zeros of both signs and NaN: the first largest is in row-major order, the first NaN wins. */
static void test_pool_first(void) {
  static const float x[2][4] = {{-0.0f, 0.0f, 0.0f, -0.0f}, {1.0f, NAN, 7.0f, NAN}};
  static const int64_t places[2] = {0, 1};
  mlk_isa isas[MLK_ISA_COUNT];
  const int count = isas_and_reference(isas);
  int i, k;
  for (i = 0; i < count; i++)
    for (k = 0; k < 2; k++) {
      mlk_context *ctx = mlkt_open(isas[i], 1);
      mlk_pool_desc d;
      float y = 5.0f;
      int64_t place = -7;
      memset(&d, 0, sizeof d);
      d.x = mlk_f32(x[k], 1, 1, 2, 2), d.y = mlk_f32(&y, 1, 1, 1, 1), d.indices = mlk_i64(&place, 1, 1, 1, 1);
      d.window[0] = d.window[1] = 2;
      mlkt_note("isa %s", mlk_isa_name(isas[i]));
      CHECK_OK(ctx, mlk_pool(ctx, &d));
      CHECK_EQ_I64(place, places[k]);
      CHECK_BITS_F32(y, x[k][places[k]]);
      mlk_close(ctx);
    }
}

/* ---- softmax and cross-entropy ----------------------------------------------------------------------------------- */

static int64_t product(const int64_t *shape, int rank) {
  int64_t count = 1;
  int i;
  for (i = 0; i < rank; i++) count *= shape[i];
  return count;
}

/* [..., D] with some rows. */
static int random_rows(mlkt_rng *rng, int64_t *shape, int min_rank, int64_t most_rows, int64_t most_d) {
  const int rank = (int)mlkt_int(rng, min_rank, 4);
  int a;
  for (a = 0; a + 1 < rank; a++) shape[a] = mlkt_int(rng, mlkt_int(rng, 0, 19) ? 1 : 0, rank < 3 ? most_rows : 5);
  shape[rank - 1] = mlkt_int(rng, mlkt_int(rng, 0, 29) ? 1 : 0, most_d);
  return rank;
}

static void softmax_forward(const call *c, const double *x, double *y) {
  const int log_of = c->what == SOFTMAX ? c->u.softmax.log : c->u.softmax_grad.log;
  const int64_t d = c->o[0].shape[c->o[0].rank - 1], rows = d ? c->o[0].count / d : 0;
  int64_t r, j;
  for (r = 0; r < rows; r++, x += d, y += d) {
    double max = -INFINITY, sum = 0.0;
    for (j = 0; j < d; j++) max = x[j] > max ? x[j] : max;
    if (max == -INFINITY) max = 0.0;
    for (j = 0; j < d; j++) sum += exp(x[j] - max);
    if (sum == 0.0) sum = 1.0;
    for (j = 0; j < d; j++) y[j] = log_of ? x[j] - max - log(sum) : exp(x[j] - max) / sum;
  }
}

static void test_softmax(void) {
  mlkt_rng rng = mlkt_rng_case();
  crew all;
  int i;
  memset(&all, 0, sizeof all);
  for (i = 0; i < 120 && !mlkt_hopeless(); i++) {
    call c = call_new(SOFTMAX), g = call_new(SOFTMAX_GRAD);
    int64_t shape[MLK_MAX_RANK];
    const int rank = random_rows(&rng, shape, 1, 40, i % 4 ? 40 : 1100);
    double *x, *y;
    int64_t j;
    char about[80];
    if (!mlkt_keep((uint64_t)i)) continue;
    snprintf(about, sizeof about, "rows %d, D %d, log %d", (int)product(shape, rank - 1), (int)shape[rank - 1], i % 2);
    mlkt_note("%s", about);
    c.u.softmax.log = g.u.softmax_grad.log = i % 2;
    c.alias_out = 1, c.alias_in = 0, g.alias_out = 2, g.alias_in = 1;
    call_add(&c, 0, INPUT, MLK_F32, rank, shape);
    call_add(&c, 1, OUTPUT, MLK_F32, rank, shape);
    if (i % 5 == 0)
      fill_special(&rng, f32_of(&c, 0), c.o[0].count);
    else
      fill_signed(&rng, f32_of(&c, 0), c.o[0].count, i % 7 ? 3.0f : 200.0f);
    for (j = 0; j < 3; j++) call_add(&g, (int)j, j < 2 ? INPUT : OUTPUT, MLK_F32, rank, shape);
    fill_signed(&rng, f32_of(&g, 1), g.o[1].count, 1.0f);
    x = need_f64(c.o[0].count), y = need_f64(c.o[0].count);
    if (call_solve(&c)) {
      for (j = 0; j < c.o[0].count; j++) x[j] = f32_of(&c, 0)[j];
      softmax_forward(&c, x, y);
      near_enough("y", want_of(&c, 1), y, c.o[1].count, 1e-6);
      call_everywhere(&all, &c, &rng, about);
      memcpy(g.o[0].dense, c.o[1].want, (size_t)c.o[1].count * sizeof(float));
      if (call_solve(&g)) {
        if (i % 5 && c.o[0].count <= 300)
          differences_agree(&c, softmax_forward, f32_of(&c, 0), c.o[0].count, f32_of(&g, 1), g.o[1].count,
                            want_of(&g, 2), 2e-5);
        call_everywhere(&all, &g, &rng, about);
      }
    }
    free(x);
    free(y);
    call_free(&c);
    call_free(&g);
  }
  crew_close(&all);
}

/* The sum of the losses of all rows, one number a row. */
static void entropy_forward(const call *c, const double *x, double *loss) {
  const int64_t d = c->o[0].shape[c->o[0].rank - 1], rows = c->o[1].count;
  int64_t r, j;
  for (r = 0; r < rows; r++) {
    const int64_t label = i64_of(c, 1)[r];
    double max = -INFINITY, sum = 0.0;
    for (j = 0; j < d; j++) max = x[r * d + j] > max ? x[r * d + j] : max;
    for (j = 0; j < d; j++) sum += exp(x[r * d + j] - max);
    loss[r] = label < 0 ? 0.0 : log(sum) - (x[r * d + label] - max);
  }
}

static void test_cross_entropy(void) {
  mlkt_rng rng = mlkt_rng_case();
  crew all;
  int i;
  memset(&all, 0, sizeof all);
  for (i = 0; i < 120 && !mlkt_hopeless(); i++) {
    call c = call_new(ENTROPY);
    int64_t shape[MLK_MAX_RANK], j;
    const int rank = random_rows(&rng, shape, 2, 40, i % 4 ? 20 : 700);
    double *x, *loss;
    float *ones;
    char about[80];
    if (!mlkt_keep((uint64_t)i)) continue;
    snprintf(about, sizeof about, "rows %d, D %d", (int)product(shape, rank - 1), (int)shape[rank - 1]);
    mlkt_note("%s", about);
    call_add(&c, 0, INPUT, MLK_F32, rank, shape);
    call_add(&c, 1, INPUT, MLK_I64, rank - 1, shape);
    if (i % 6 != 1) call_add(&c, 2, OUTPUT, MLK_F32, rank - 1, shape);
    if (i % 6 != 2) call_add(&c, 3, OUTPUT, MLK_F32, rank, shape), c.alias_out = 3, c.alias_in = 0;
    c.scalar = i % 3 ? 0.37f : 1.0f;
    if (i % 3) c.u.entropy.scale = &c.scalar;
    for (j = 0; j < c.o[1].count; j++) i64_of(&c, 1)[j] = mlkt_int(&rng, -1, shape[rank - 1] - 1);
    if (i % 5 == 0)
      fill_special(&rng, f32_of(&c, 0), c.o[0].count);
    else
      fill_signed(&rng, f32_of(&c, 0), c.o[0].count, 4.0f);
    x = need_f64(c.o[0].count), loss = need_f64(c.o[1].count), ones = need_f32(c.o[1].count);
    if (call_solve(&c)) {
      for (j = 0; j < c.o[0].count; j++) x[j] = f32_of(&c, 0)[j];
      for (j = 0; j < c.o[1].count; j++) ones[j] = c.scalar;
      entropy_forward(&c, x, loss);
      if (i % 5 && c.o[2].what) near_enough("loss", want_of(&c, 2), loss, c.o[2].count, 1e-6);
      if (i % 5 && c.o[3].what && c.o[0].count <= 300)
        differences_agree(&c, entropy_forward, f32_of(&c, 0), c.o[0].count, ones, c.o[1].count, want_of(&c, 3), 2e-5);
      call_everywhere(&all, &c, &rng, about);
    }
    free(x);
    free(loss);
    free(ones);
    call_free(&c);
  }
  crew_close(&all);
}

/* Rows that formulas written down carelessly get wrong. */
static void test_softmax_edges(void) {
  static const float rows[5][3] = {{-INFINITY, -INFINITY, -INFINITY},
                                   {-INFINITY, NAN, -INFINITY},
                                   {INFINITY, 1.0f, 2.0f},
                                   {3e38f, -3e38f, 3e38f},
                                   {1000.0f, 1001.0f, -1e30f}};
  mlk_isa isas[MLK_ISA_COUNT];
  const int count = isas_and_reference(isas);
  int i, j;
  for (i = 0; i < count; i++) {
    mlk_context *ctx = mlkt_open(isas[i], 1);
    float y[5][3], l[5][3], loss[5];
    static const int64_t labels[5] = {1, 0, 0, 0, 0};
    mlk_softmax_desc d;
    mlk_cross_entropy_desc e;
    memset(&d, 0, sizeof d);
    memset(&e, 0, sizeof e);
    mlkt_note("isa %s", mlk_isa_name(isas[i]));
    d.x = mlk_f32(&rows[0][0], 5, 3), d.y = mlk_f32(&y[0][0], 5, 3);
    CHECK_OK(ctx, mlk_softmax(ctx, &d));
    d.y = mlk_f32(&l[0][0], 5, 3), d.log = 1;
    CHECK_OK(ctx, mlk_softmax(ctx, &d));
    e.x = d.x, e.labels = mlk_i64(labels, 5), e.loss = mlk_f32(loss, 5);
    CHECK_OK(ctx, mlk_cross_entropy(ctx, &e));
    for (j = 0; j < 3; j++) {
      CHECK_BITS_F32(y[0][j], 0.0f);
      CHECK_BITS_F32(l[0][j], -INFINITY);
      CHECK(isnan(y[1][j]) && isnan(l[1][j]) && isnan(y[2][j]) && isnan(l[2][j]));
    }
    CHECK_BITS_F32(y[3][0], 0.5f);
    CHECK_BITS_F32(y[3][1], 0.0f);
    CHECK_BITS_F32(y[3][2], 0.5f);
    CHECK(fabs((double)y[4][1] - 0.7310585786300049) < 1e-7 && y[4][2] == 0.0f);
    CHECK(loss[0] == INFINITY && isnan(loss[1]) && isnan(loss[2]));
    CHECK(fabs((double)loss[3] - 0.6931471805599453) < 1e-7);
    mlk_close(ctx);
  }
}

/* ---- normalisation ----------------------------------------------------------------------------------------------- */

/* x followed by gamma and beta, in one array, so that differences reach all three. */
static void norm_forward(const call *c, const double *in, double *y) {
  const int64_t d = c->o[0].shape[c->o[0].rank - 1], rows = d ? c->o[0].count / d : 0;
  const double *gamma = in + c->o[0].count, *beta = gamma + d;
  int64_t r, j;
  for (r = 0; r < rows; r++) {
    const double *x = in + r * d;
    double mean = 0.0, v = 0.0;
    for (j = 0; j < d; j++) mean += x[j] / (double)d;
    if (c->u.norm.kind == MLK_NORM_RMS) mean = 0.0;
    for (j = 0; j < d; j++) v += (x[j] - mean) * (x[j] - mean) / (double)d;
    for (j = 0; j < d; j++)
      y[r * d + j] = (x[j] - mean) / sqrt(v + (c->u.norm.epsilon > 0.0f ? (double)c->u.norm.epsilon : 1e-5)) *
                         gamma[j] +
                     beta[j];
  }
}

/* The gradient call that belongs to a solved norm. */
static call norm_grad_call(mlkt_rng *rng, const call *c, int wanted, int accumulate) {
  call g = call_new(NORM_GRAD);
  const operand *x = &c->o[0];
  const int64_t *d = &x->shape[x->rank - 1];
  g.u.norm_grad.kind = c->u.norm.kind;
  call_add(&g, 0, INPUT, MLK_F32, x->rank, x->shape);
  memcpy(g.o[0].dense, x->dense, (size_t)x->count * sizeof(float));
  if (c->o[1].what) {
    call_add(&g, 1, INPUT, MLK_F32, 1, d);
    memcpy(g.o[1].dense, c->o[1].dense, (size_t)*d * sizeof(float));
  }
  if (c->u.norm.kind == MLK_NORM_LAYER) {
    call_add(&g, 2, INPUT, MLK_F32, x->rank - 1, x->shape);
    memcpy(g.o[2].dense, c->o[4].want, (size_t)g.o[2].count * sizeof(float));
  }
  call_add(&g, 3, INPUT, MLK_F32, x->rank - 1, x->shape);
  memcpy(g.o[3].dense, c->o[5].want, (size_t)g.o[3].count * sizeof(float));
  call_add(&g, 4, INPUT, MLK_F32, x->rank, x->shape);
  fill_signed(rng, f32_of(&g, 4), g.o[4].count, 1.0f);
  if (wanted & 1) call_add(&g, 5, OUTPUT, MLK_F32, x->rank, x->shape), g.alias_out = 5, g.alias_in = 4;
  if (wanted & 2) call_add(&g, 6, accumulate ? UPDATED : OUTPUT, MLK_F32, 1, d);
  if (wanted & 4) call_add(&g, 7, accumulate ? UPDATED : OUTPUT, MLK_F32, 1, d);
  if (accumulate && wanted & 2) fill_signed(rng, f32_of(&g, 6), *d, 1.0f);
  if (accumulate && wanted & 4) fill_signed(rng, f32_of(&g, 7), *d, 1.0f);
  g.scalar = 0.5f;
  return g;
}

/* x, gamma and beta in one array, as norm_forward reads them; absent ones are 1 and 0. */
static float *norm_inputs(const call *c) {
  const int64_t d = c->o[0].shape[c->o[0].rank - 1], n = c->o[0].count;
  float *in = need_f32(n + 2 * d);
  int64_t j;
  memcpy(in, c->o[0].dense, (size_t)n * sizeof(float));
  for (j = 0; j < d; j++) {
    in[n + j] = c->o[1].what ? f32_of(c, 1)[j] : 1.0f;
    in[n + d + j] = c->o[2].what ? f32_of(c, 2)[j] : 0.0f;
  }
  return in;
}

static void norm_check_gradient(const call *c, const call *g, int wanted) {
  const int64_t d = c->o[0].shape[c->o[0].rank - 1], n = c->o[0].count;
  float *in = norm_inputs(c), *gradient = need_f32(n + 2 * d);
  double *inputs = need_f64(n + 2 * d);
  int64_t j;
  if (wanted == 7) {
    memcpy(gradient, g->o[5].want, (size_t)n * sizeof(float));
    for (j = 0; j < d; j++) gradient[n + j] = want_of(g, 6)[j], gradient[n + d + j] = want_of(g, 7)[j];
    differences_agree(c, norm_forward, in, n + 2 * d, f32_of(g, 4), n, gradient, 5e-5);
  }
  free(in);
  free(gradient);
  free(inputs);
}

static void norm_check_forward(const call *c) {
  const int64_t d = c->o[0].shape[c->o[0].rank - 1], n = c->o[0].count;
  float *in = norm_inputs(c);
  double *inputs = need_f64(n + 2 * d), *y = need_f64(n);
  int64_t j;
  for (j = 0; j < n + 2 * d; j++) inputs[j] = in[j];
  norm_forward(c, inputs, y);
  near_enough("y", want_of(c, 3), y, n, 3e-6);
  free(in);
  free(inputs);
  free(y);
}

static void test_norm(void) {
  mlkt_rng rng = mlkt_rng_case();
  crew all;
  int i;
  memset(&all, 0, sizeof all);
  for (i = 0; i < 120 && !mlkt_hopeless(); i++) {
    call c = call_new(NORM), g;
    int64_t shape[MLK_MAX_RANK];
    int rank = random_rows(&rng, shape, 1, 40, i % 4 ? 40 : 800);
    const int wanted = i % 3 ? 7 : (int)mlkt_int(&rng, 1, 7), accumulate = wanted != 7 && i % 2;
    char about[100];
    if (!mlkt_keep((uint64_t)i)) continue;
    if (i % 20 == 0) rank = 2, shape[0] = mlkt_int(&rng, 500, 2600), shape[1] = mlkt_int(&rng, 1, 30); /* segments */
    if (rank > 1 && shape[rank - 1] == 1 && i % 2) shape[rank - 1] = 2;
    snprintf(about, sizeof about, "kind %d, rows %d, D %d, gradients %d", i % 2, (int)product(shape, rank - 1),
             (int)shape[rank - 1], wanted);
    mlkt_note("%s", about);
    c.u.norm.kind = (mlk_norm_kind)(i % 2);
    c.u.norm.epsilon = i % 3 ? 0.0f : 0.01f;
    c.alias_out = 3, c.alias_in = 0;
    call_add(&c, 0, INPUT, MLK_F32, rank, shape);
    if (i % 4 != 1)
      call_add(&c, 1, INPUT, MLK_F32, 1, shape + rank - 1), fill_signed(&rng, f32_of(&c, 1), c.o[1].count, 2.0f);
    if (i % 4 != 2)
      call_add(&c, 2, INPUT, MLK_F32, 1, shape + rank - 1), fill_signed(&rng, f32_of(&c, 2), c.o[2].count, 2.0f);
    call_add(&c, 3, OUTPUT, MLK_F32, rank, shape);
    call_add(&c, 4, OUTPUT, MLK_F32, rank - 1, shape);
    call_add(&c, 5, OUTPUT, MLK_F32, rank - 1, shape);
    if (i % 10 == 7)
      fill_special(&rng, f32_of(&c, 0), c.o[0].count);
    else
      fill_signed(&rng, f32_of(&c, 0), c.o[0].count, 2.0f);
    if (shape[rank - 1] > 0 && call_solve(&c)) {
      if (i % 10 != 7) norm_check_forward(&c);
      call_everywhere(&all, &c, &rng, about);
      g = norm_grad_call(&rng, &c, wanted, accumulate);
      if (accumulate) g.u.norm_grad.accumulate = &g.scalar;
      if (call_solve(&g)) {
        if (i % 10 != 7 && c.o[0].count <= 250 && shape[rank - 1] > 1) norm_check_gradient(&c, &g, wanted);
        if (accumulate) g.u.norm_grad.accumulate = &g.scalar;
        call_everywhere(&all, &g, &rng, about);
      }
      call_free(&g);
    }
    call_free(&c);
  }
  crew_close(&all);
}

/* ---- embedding --------------------------------------------------------------------------------------------------- */

static void test_embedding(void) {
  mlkt_rng rng = mlkt_rng_case();
  crew all;
  int i;
  memset(&all, 0, sizeof all);
  for (i = 0; i < 80 && !mlkt_hopeless(); i++) {
    call c = call_new(EMBEDDING), g = call_new(EMBEDDING_GRAD);
    int64_t table[2], shape[MLK_MAX_RANK], j, k, d;
    const int rank = (int)mlkt_int(&rng, 1, 3);
    double *sum, *size;
    int a, exact = 1;
    char about[100];
    if (!mlkt_keep((uint64_t)i)) continue;
    table[0] = mlkt_int(&rng, 1, i % 2 ? 5 : 200), table[1] = d = mlkt_int(&rng, i % 9 ? 1 : 0, i % 3 ? 40 : 600);
    for (a = 0; a < rank; a++) shape[a] = mlkt_int(&rng, a || i % 11 ? 1 : 0, rank == 1 ? 120 : 7);
    shape[rank] = d;
    snprintf(about, sizeof about, "V %d, D %d, rows %d", (int)table[0], (int)d, (int)product(shape, rank));
    mlkt_note("%s", about);
    call_add(&c, 0, INPUT, MLK_F32, 2, table);
    call_add(&c, 1, INPUT, MLK_I64, rank, shape);
    call_add(&c, 2, OUTPUT, MLK_F32, rank + 1, shape);
    call_add(&g, 0, INPUT, MLK_I64, rank, shape);
    call_add(&g, 1, INPUT, MLK_F32, rank + 1, shape);
    call_add(&g, 2, UPDATED, MLK_F32, 2, table);
    fill_signed(&rng, f32_of(&c, 0), c.o[0].count, 1.0f);
    fill_signed(&rng, f32_of(&g, 1), g.o[1].count, 1.0f);
    fill_signed(&rng, f32_of(&g, 2), g.o[2].count, 1.0f);
    for (j = 0; j < c.o[1].count; j++) i64_of(&c, 1)[j] = i64_of(&g, 0)[j] = mlkt_int(&rng, -1, table[0] - 1);
    sum = need_f64(g.o[2].count), size = need_f64(g.o[2].count);
    if (call_solve(&c) && call_solve(&g)) {
      for (j = 0; j < g.o[2].count; j++) sum[j] = f32_of(&g, 2)[j], size[j] = fabs(sum[j]);
      for (j = 0; j < c.o[1].count; j++)
        for (k = 0; k < d; k++) {
          const int64_t id = i64_of(&c, 1)[j];
          exact &= want_of(&c, 2)[j * d + k] == (id < 0 ? 0.0f : f32_of(&c, 0)[id * d + k]);
          if (id >= 0)
            sum[id * d + k] += f32_of(&g, 1)[j * d + k], size[id * d + k] += fabs((double)f32_of(&g, 1)[j * d + k]);
        }
      CHECK_MSG(exact, "a row is not the table's");
      near_enough("dtable", want_of(&g, 2), sum, g.o[2].count, 6e-8 * (double)(c.o[1].count + 1));
      call_everywhere(&all, &c, &rng, about);
      call_everywhere(&all, &g, &rng, about);
    }
    free(sum);
    free(size);
    call_free(&c);
    call_free(&g);
  }
  crew_close(&all);
}

/* ---- rotary positions -------------------------------------------------------------------------------------------- */

/* The rotation in long double: the product of a position below 2^39 and a frequency is exact in 63 bits. */
static void rotary_forward(const call *c, const double *x, double *y) {
  const mlk_rotary_desc *d = &c->u.rotary;
  const operand *o = &c->o[0];
  const int64_t *shape = o->shape + o->rank - 3;
  const int64_t r = d->rotated ? d->rotated : shape[2], pairs = r / 2;
  int64_t i, j;
  memcpy(y, x, (size_t)o->count * sizeof *y);
  for (i = 0; shape[2] && i < o->count / shape[2]; i++) {
    const int64_t row = i / shape[1], s = row % shape[0];
    const int64_t p = c->o[1].what ? i64_of(c, 1)[c->o[1].count == shape[0] && c->o[1].rank == 1 ? s : row]
                                   : d->first_position + s;
    for (j = 0; j < pairs; j++) {
      const double theta = d->theta > 0.0 ? d->theta : 10000.0;
      const float f = c->o[2].what ? f32_of(c, 2)[j] : (float)pow(theta, -(double)j / (double)pairs);
      const long double angle = (long double)p * (long double)f;
      const double co = (double)cosl(angle), si = (d->inverse ? -1.0 : 1.0) * (double)sinl(angle);
      const int64_t j0 = d->interleaved ? 2 * j : j, j1 = d->interleaved ? 2 * j + 1 : j + pairs;
      const double *in = x + i * shape[2];
      y[i * shape[2] + j0] = in[j0] * co - in[j1] * si;
      y[i * shape[2] + j1] = in[j0] * si + in[j1] * co;
    }
  }
}

static void rotary_check(const call *c) {
  double *x = need_f64(c->o[0].count), *y = need_f64(c->o[0].count);
  int64_t j;
  for (j = 0; j < c->o[0].count; j++) x[j] = f32_of(c, 0)[j];
  rotary_forward(c, x, y);
  near_enough("y", want_of(c, 3), y, c->o[3].count, 4e-7);
  free(x);
  free(y);
}

/* The gradient by differences is the inverse rotation of dy. */
static void rotary_check_gradient(const call *c, mlkt_rng *rng) {
  call g = call_new(ROTARY);
  int i;
  g.u.rotary = c->u.rotary;
  g.u.rotary.inverse = !c->u.rotary.inverse;
  for (i = 0; i < 4; i++)
    if (c->o[i].what) {
      call_add(&g, i, c->o[i].what, c->o[i].dtype, c->o[i].rank, c->o[i].shape);
      if (i) memcpy(g.o[i].dense, c->o[i].dense, (size_t)c->o[i].count * element_bytes(&c->o[i]));
    }
  fill_signed(rng, f32_of(&g, 0), g.o[0].count, 1.0f);
  if (call_solve(&g))
    differences_agree(c, rotary_forward, f32_of(c, 0), c->o[0].count, f32_of(&g, 0), g.o[0].count, want_of(&g, 3),
                      2e-5);
  call_free(&g);
}

static void test_rotary(void) {
  mlkt_rng rng = mlkt_rng_case();
  crew all;
  int i;
  memset(&all, 0, sizeof all);
  for (i = 0; i < 120 && !mlkt_hopeless(); i++) {
    call c = call_new(ROTARY);
    int64_t shape[MLK_MAX_RANK], half, j;
    const int rank = (int)mlkt_int(&rng, 3, 5);
    int a;
    char about[120];
    if (!mlkt_keep((uint64_t)i)) continue;
    for (a = 0; a < rank; a++) shape[a] = mlkt_int(&rng, mlkt_int(&rng, 0, 29) ? 1 : 0, a == rank - 3 ? 9 : 4);
    shape[rank - 1] = i % 4 ? 2 * mlkt_int(&rng, 1, 20) : mlkt_int(&rng, 2, 150);
    c.u.rotary.rotated = i % 4 ? 0 : 2 * mlkt_int(&rng, 1, shape[rank - 1] / 2);
    half = (c.u.rotary.rotated ? c.u.rotary.rotated : shape[rank - 1]) / 2;
    c.u.rotary.interleaved = i % 2, c.u.rotary.inverse = i % 3 == 0;
    c.u.rotary.theta = i % 5 ? 0.0 : 500000.0;
    c.alias_out = 3, c.alias_in = 0;
    call_add(&c, 0, INPUT, MLK_F32, rank, shape);
    call_add(&c, 3, OUTPUT, MLK_F32, rank, shape);
    fill_signed(&rng, f32_of(&c, 0), c.o[0].count, 1.0f);
    if (i % 3 == 1) call_add(&c, 1, INPUT, MLK_I64, i % 2 ? 1 : rank - 2, i % 2 ? shape + rank - 3 : shape);
    if (i % 3 == 1)
      for (j = 0; j < c.o[1].count; j++) i64_of(&c, 1)[j] = mlkt_int(&rng, 0, i % 7 ? 5000 : INT64_C(1) << 38);
    else
      c.u.rotary.first_position = i % 2 ? 0 : mlkt_int(&rng, 0, INT64_C(1) << 32);
    if (i % 8 == 3) {
      call_add(&c, 2, INPUT, MLK_F32, 1, &half);
      for (j = 0; j < half; j++) f32_of(&c, 2)[j] = mlkt_wide(&rng, 20);
    }
    snprintf(about, sizeof about, "rank %d, S %d, H %d, D %d, rotated %d, case %d", rank, (int)shape[rank - 3],
             (int)shape[rank - 2], (int)shape[rank - 1], (int)c.u.rotary.rotated, i);
    mlkt_note("%s", about);
    if (call_solve(&c)) {
      rotary_check(&c);
      if (c.o[0].count <= 200) rotary_check_gradient(&c, &rng);
      call_everywhere(&all, &c, &rng, about);
    }
    call_free(&c);
  }
  crew_close(&all);
}

/* cos and sin of position * frequency, correctly rounded, at places where reductions fail; 1 0 turned gives them. */
static void test_rotary_far(void) {
  static const struct {
    int64_t position;
    float frequency;
    double cosine, sine;
  } far[] = {{INT64_C(2147483648), 1.0f, 0.23781619457280337, -0.97131017579293921},
             {INT64_C(9007199254740993), 1.0f, 0.4287904318447045, -0.90340398801335375},
             {INT64_C(9223372036854775807), 1.0f, 0.84778800734801874, 0.53033526622022376},
             {INT64_C(9223372036854775807), 0.1f, 0.56996804744152763, 0.82166685761060887},
             {3, 3.0e38f, 0.99853557206281096, -0.054099088025538304},
             {1, 1e-40f, 1.0, 9.9999461011147596e-41},
             {0, 5.0f, 1.0, 0.0}};
  mlk_isa isas[MLK_ISA_COUNT];
  const int count = isas_and_reference(isas);
  int i, k;
  for (i = 0; i < count; i++)
    for (k = 0; k < COUNT_OF(far); k++) {
      mlk_context *ctx = mlkt_open(isas[i], 1);
      float x[2] = {1.0f, 0.0f}, y[2];
      mlk_rotary_desc d;
      memset(&d, 0, sizeof d);
      d.x = mlk_f32(x, 1, 1, 2), d.y = mlk_f32(y, 1, 1, 2);
      d.positions = mlk_i64(&far[k].position, 1), d.frequencies = mlk_f32(&far[k].frequency, 1);
      mlkt_note("isa %s, position %" PRId64 ", frequency %g", mlk_isa_name(isas[i]), far[k].position,
                (double)far[k].frequency);
      CHECK_OK(ctx, mlk_rotary(ctx, &d));
      CHECK_BITS_F32(y[0], (float)far[k].cosine);
      CHECK_BITS_F32(y[1], (float)far[k].sine);
      mlk_close(ctx);
    }
}

/* ---- one call of each operator, for what all of them promise ----------------------------------------------------- */

static void fill_ids(mlkt_rng *rng, const call *c, int i, int64_t limit) {
  int64_t j;
  for (j = 0; j < c->o[i].count; j++) i64_of(c, i)[j] = mlkt_int(rng, -1, limit - 1);
}

enum { ROWS = 260 };

/* Solved; large enough for several tasks. */
static call sample(op what, mlkt_rng *rng) {
  static const int64_t shape[3] = {6, ROWS, 72}, table[2] = {50, 72}, ids[2] = {6, ROWS};
  static const int64_t heads[4] = {3, 40, 6, 64}, positions[2] = {3, 40};
  const int64_t d = 72;
  call c = call_new(what);
  pool_shape p;
  int i;
  memset(&p, 0, sizeof p);
  p.spatial = 2, p.n = 2, p.c = 70, p.in[0] = p.in[1] = 31, p.window[0] = p.window[1] = 3;
  p.g.stride[0] = p.g.stride[1] = 2, p.g.pad_before[0] = p.g.pad_before[1] = 1;
  p.kind = what == POOL_GRAD ? MLK_POOL_AVERAGE : MLK_POOL_MAX;
  pool_outputs(&p);
  switch (what) {
  case POOL: c = pool_call(&p); break;
  case POOL_GRAD: {
    call pooled = pool_call(&p);
    c = pool_grad_call(&p, &pooled);
    call_free(&pooled);
    break;
  }
  case SOFTMAX:
  case SOFTMAX_GRAD:
    for (i = 0; i < (what == SOFTMAX ? 2 : 3); i++)
      call_add(&c, i, i < (what == SOFTMAX ? 1 : 2) ? INPUT : OUTPUT, MLK_F32, 3, shape);
    break;
  case ENTROPY:
    call_add(&c, 0, INPUT, MLK_F32, 3, shape);
    call_add(&c, 1, INPUT, MLK_I64, 2, shape);
    call_add(&c, 2, OUTPUT, MLK_F32, 2, shape);
    call_add(&c, 3, OUTPUT, MLK_F32, 3, shape);
    fill_ids(rng, &c, 1, d);
    break;
  case NORM:
    call_add(&c, 0, INPUT, MLK_F32, 3, shape);
    for (i = 1; i < 3; i++) call_add(&c, i, INPUT, MLK_F32, 1, &d);
    call_add(&c, 3, OUTPUT, MLK_F32, 3, shape);
    for (i = 4; i < 6; i++) call_add(&c, i, OUTPUT, MLK_F32, 2, shape);
    break;
  case NORM_GRAD:
    call_add(&c, 0, INPUT, MLK_F32, 3, shape);
    call_add(&c, 1, INPUT, MLK_F32, 1, &d);
    for (i = 2; i < 4; i++) call_add(&c, i, INPUT, MLK_F32, 2, shape);
    call_add(&c, 4, INPUT, MLK_F32, 3, shape);
    call_add(&c, 5, OUTPUT, MLK_F32, 3, shape);
    for (i = 6; i < 8; i++) call_add(&c, i, OUTPUT, MLK_F32, 1, &d);
    break;
  case EMBEDDING:
    call_add(&c, 0, INPUT, MLK_F32, 2, table);
    call_add(&c, 1, INPUT, MLK_I64, 2, ids);
    call_add(&c, 2, OUTPUT, MLK_F32, 3, shape);
    fill_ids(rng, &c, 1, table[0]);
    break;
  case EMBEDDING_GRAD:
    call_add(&c, 0, INPUT, MLK_I64, 2, ids);
    call_add(&c, 1, INPUT, MLK_F32, 3, shape);
    call_add(&c, 2, UPDATED, MLK_F32, 2, table);
    fill_ids(rng, &c, 0, table[0]);
    break;
  default:
    call_add(&c, 0, INPUT, MLK_F32, 4, heads);
    call_add(&c, 1, INPUT, MLK_I64, 2, positions);
    call_add(&c, 3, OUTPUT, MLK_F32, 4, heads);
    fill_ids(rng, &c, 1, 1000);
    for (i = 0; i < c.o[1].count; i++) i64_of(&c, 1)[i]++;
    break;
  }
  for (i = 0; i < OPERANDS; i++)
    if ((c.o[i].what == INPUT || c.o[i].what == UPDATED) && c.o[i].dtype == MLK_F32)
      fill_signed(rng, f32_of(&c, i), c.o[i].count, 1.0f);
  call_solve(&c);
  return c;
}

/* Operands of a call in memory that is neither dense nor guarded: the last axis of f32 inputs of
   rank > 1 is strided. */
typedef struct table_of_operands {
  mlk_tensor t[OPERANDS];
  char *memory[OPERANDS];
  size_t bytes[OPERANDS];
} table_of_operands;

static table_of_operands lay_out(const call *c, int strided) {
  table_of_operands l;
  int i, a;
  memset(&l, 0, sizeof l);
  for (i = 0; i < OPERANDS; i++) {
    const operand *o = &c->o[i];
    const int twice = strided && o->dtype == MLK_F32 && o->rank > 1 ? 2 : 1;
    int64_t step = twice, j;
    if (o->what == ABSENT) continue;
    l.bytes[i] = (size_t)(o->count * twice) * element_bytes(o);
    l.memory[i] = (char *)need(l.bytes[i]);
    l.t[i] = dense_tensor(o, l.memory[i]);
    for (a = o->rank - 1; a >= 0; a--) l.t[i].stride[a] = step, step *= o->shape[a];
    memset(l.memory[i], (int)MLKT_ROGUE_BYTE, l.bytes[i]);
    for (j = 0; o->what != OUTPUT && j < o->count; j++)
      memcpy(l.memory[i] + (size_t)(j * twice) * element_bytes(o),
             (const char *)o->dense + (size_t)j * element_bytes(o), element_bytes(o));
  }
  return l;
}

static int outputs_untouched(const call *c, const table_of_operands *l) {
  int i, same = 1;
  for (i = 0; i < OPERANDS; i++) {
    const int64_t twice = c->o[i].count ? (int64_t)(l->bytes[i] / element_bytes(&c->o[i])) / c->o[i].count : 1;
    int64_t j;
    size_t b;
    for (b = 0; c->o[i].what == OUTPUT && b < l->bytes[i]; b++)
      same &= (unsigned char)l->memory[i][b] == MLKT_ROGUE_BYTE;
    for (j = 0; c->o[i].what == UPDATED && j < c->o[i].count; j++)
      same &= memcmp(l->memory[i] + j * twice * 4, (const char *)c->o[i].dense + j * 4, 4) == 0;
  }
  return same;
}

static int outputs_right(const call *c, const table_of_operands *l) {
  int i, same = 1;
  for (i = 0; i < OPERANDS; i++) {
    const operand *o = &c->o[i];
    const int64_t twice = o->count ? (int64_t)(l->bytes[i] / element_bytes(o)) / o->count : 1;
    int64_t j;
    for (j = 0; (o->what == OUTPUT || o->what == UPDATED) && j < o->count; j++)
      same &= memcmp(l->memory[i] + (size_t)(j * twice) * element_bytes(o),
                     (const char *)o->want + (size_t)j * element_bytes(o), element_bytes(o)) == 0;
  }
  return same;
}

static void lay_free(table_of_operands *l) {
  int i;
  for (i = 0; i < OPERANDS; i++) free(l->memory[i]);
}

/* A fresh context grows by exactly what the plan says; one fixed at that suffices; a byte less is refused. A device's
   workspace is not the allocator's, and its plans count kernels. */
static void check_workspace(call *c, mlk_isa isa, int threads, int strided) {
  const int device = on_device(isa);
  mlkt_memory memory;
  mlk_context_desc desc = mlkt_context_desc(isa, threads);
  mlk_context *ctx = NULL;
  mlk_plan plan;
  uint64_t before;
  int round;
  memset(&memory, 0, sizeof memory);
  memset(&plan, 0, sizeof plan);
  desc.allocator = mlkt_memory_hook(&memory);
  for (round = 0; round < 3; round++) {
    table_of_operands l = lay_out(c, strided);
    desc.growth = round ? MLK_FIXED : MLK_GROWS;
    desc.workspace_bytes = round ? plan.workspace_bytes - (round == 2) : 0;
    if (round == 2 && plan.workspace_bytes == 0) {
      lay_free(&l);
      break;
    }
    if (!CHECK_OK(NULL, mlk_open(&ctx, &desc))) return;
    before = memory.live_bytes;
    if (round == 0) {
      CHECK_OK(ctx, call_do(ctx, c, l.t, &plan));
      if (!device) CHECK_EQ_I64(memory.live_bytes, before);
      CHECK(plan.bytes > 0 && plan.threads >= 1 && plan.variant && plan.variant[0]);
      CHECK(device ? plan.seconds > 0 : plan.threads <= threads);
      CHECK_MSG(outputs_untouched(c, &l), "the plan wrote to an output");
    }
    if (round < 2) {
      CHECK_OK(ctx, call_do(ctx, c, l.t, NULL));
      CHECK_MSG(outputs_right(c, &l), "the results differ");
      if (!device) CHECK_EQ_I64(memory.live_bytes - before, round ? 0 : plan.workspace_bytes);
    } else {
      char size[32];
      CHECK_STATUS(ctx, call_do(ctx, c, l.t, NULL), MLK_ERR_WORKSPACE);
      CHECK_MSG(outputs_untouched(c, &l), "outputs were written before the workspace was there");
      snprintf(size, sizeof size, "%" PRIu64, plan.workspace_bytes);
      CHECK_MSG(strstr(mlk_last_error(ctx), size) != NULL, "\"%s\" does not name %s", mlk_last_error(ctx), size);
    }
    mlk_close(ctx);
    CHECK_MEMORY_EMPTY(&memory);
    lay_free(&l);
  }
}

static void test_workspace(void) {
  mlk_isa isas[MLK_ISA_COUNT];
  const int count = isas_and_reference(isas);
  mlkt_rng rng = mlkt_rng_case();
  int what, i, threads, strided;
  for (what = 0; what < OPS; what++) {
    call c = sample((op)what, &rng);
    for (i = 0; i < count; i++)
      for (threads = 1; threads <= 3 && threads <= mlkt_opt.threads_max; threads += 2)
        for (strided = 0; strided < 2; strided++) {
          if (mlkt_opt.quick && (what + i + threads / 2 + strided) % 2) continue;
          mlkt_note("%s, isa %s, %d threads%s", op_names[what], mlk_isa_name(isas[i]), threads,
                    strided ? ", strided" : "");
          check_workspace(&c, isas[i], threads, strided);
        }
    call_free(&c);
  }
}

/* Every allocation of a strided call fails once; nothing is written, nothing leaks, and the context goes on. */
static void test_failing_memory(void) {
  mlk_isa isas[MLK_ISA_COUNT];
  const int count = isas_and_reference(isas);
  mlkt_rng rng = mlkt_rng_case();
  int what, i;
  for (what = 0; what < OPS; what++) {
    call c = sample((op)what, &rng);
    for (i = 0; i < count; i++) {
      mlkt_memory memory;
      mlk_context_desc desc = mlkt_context_desc(isas[i], mlkt_opt.threads_max < 2 ? 1 : 2);
      mlk_context *ctx = NULL;
      table_of_operands l = lay_out(&c, 1);
      mlk_status status;
      memset(&memory, 0, sizeof memory);
      desc.allocator = mlkt_memory_hook(&memory);
      mlkt_note("%s, isa %s", op_names[what], mlk_isa_name(isas[i]));
      if (!CHECK_OK(NULL, mlk_open(&ctx, &desc))) continue;
      memory.fail_at = memory.calls + 1;
      status = call_do(ctx, &c, l.t, NULL);
      CHECK_EQ_I64(status, memory.failed ? MLK_ERR_MEMORY : MLK_OK);
      if (memory.failed) {
        CHECK_MSG(outputs_untouched(&c, &l), "outputs were written before the memory was there");
        memory.fail_at = 0;
        CHECK_OK(ctx, call_do(ctx, &c, l.t, NULL));
      }
      CHECK_MSG(outputs_right(&c, &l), "the results differ");
      mlk_close(ctx);
      CHECK_MEMORY_EMPTY(&memory);
      lay_free(&l);
    }
    call_free(&c);
  }
}

/* A row alone gives the bits it has in a batch. */
static void test_rows_alone(void) {
  static const op by_rows[] = {SOFTMAX, SOFTMAX_GRAD, ENTROPY, NORM, EMBEDDING};
  mlk_isa isas[MLK_ISA_COUNT];
  const int count = isas_and_reference(isas);
  mlkt_rng rng = mlkt_rng_case();
  int k, i, a;
  for (k = 0; k < COUNT_OF(by_rows); k++) {
    call c = sample(by_rows[k], &rng);
    for (i = 0; i < count; i++) {
      mlk_context *ctx = mlkt_open(isas[i], 2);
      table_of_operands l = lay_out(&c, 0);
      mlk_tensor t[OPERANDS];
      mlkt_note("%s, isa %s", op_names[by_rows[k]], mlk_isa_name(isas[i]));
      memcpy(t, l.t, sizeof t);
      for (a = 0; a < OPERANDS; a++)
        if (t[a].rank > 1 && t[a].shape[0] == 6) t[a] = mlk_slice(mlk_slice(t[a], 0, 3, 1), 1, 41, 1);
      CHECK_OK(ctx, call_do(ctx, &c, t, NULL));
      for (a = 0; a < OPERANDS; a++) {
        const operand *o = &c.o[a];
        const int64_t width = o->rank == 3 ? o->shape[2] : 1, at = (3 * ROWS + 41) * width;
        if (o->what == OUTPUT)
          CHECK_MSG(memcmp(l.memory[a] + at * 4, (const char *)o->want + at * 4, (size_t)width * 4) == 0,
                    "output %d of the row alone differs", a);
      }
      mlk_close(ctx);
      lay_free(&l);
    }
    call_free(&c);
  }
}

/* ---- bad arguments ----------------------------------------------------------------------------------------------- */

typedef struct bad_call {
  op what;
  const char *about;
  void (*change)(call *c, mlk_tensor *t);
  mlk_status want;
  const char *word; /* in the sentence */
} bad_call;

static void no_first(call *c, mlk_tensor *t) { (void)c, t[0].data = NULL; }
static void no_second(call *c, mlk_tensor *t) { (void)c, t[1].data = NULL; }
static void no_third(call *c, mlk_tensor *t) { (void)c, t[2].data = NULL; }
static void no_fourth(call *c, mlk_tensor *t) { (void)c, t[3].data = NULL; }
static void first_i64(call *c, mlk_tensor *t) { (void)c, t[0].dtype = MLK_I64; }
static void second_f32(call *c, mlk_tensor *t) { (void)c, t[1].dtype = MLK_F32; }
static void first_negative(call *c, mlk_tensor *t) { (void)c, t[0].shape[1] = -1; }
static void first_huge(call *c, mlk_tensor *t) { (void)c, t[0].shape[0] = t[0].shape[1] = INT64_MAX / 2; }
static void first_rank_7(call *c, mlk_tensor *t) { (void)c, t[0].rank = MLK_MAX_RANK + 1; }
static void first_rank_0(call *c, mlk_tensor *t) { (void)c, t[0].rank = 0; }
static void second_less(call *c, mlk_tensor *t) { (void)c, t[1].shape[1]--; }
static void third_less(call *c, mlk_tensor *t) { (void)c, t[2].shape[1]--; }
static void fourth_less(call *c, mlk_tensor *t) { (void)c, t[3].shape[1]--; }
static void second_on_first(call *c, mlk_tensor *t) { (void)c, t[1].data = (char *)t[0].data + 4; }
static void third_on_first(call *c, mlk_tensor *t) { (void)c, t[2].data = t[0].data; }
static void third_on_second(call *c, mlk_tensor *t) { (void)c, t[2].data = (char *)t[1].data + 4; }
static void fourth_on_first(call *c, mlk_tensor *t) { (void)c, t[3].data = (char *)t[0].data + 4; }
static void fourth_overlaps(call *c, mlk_tensor *t) {
  int i;
  (void)c;
  for (i = 0; i < t[3].rank; i++) t[3].stride[i] = 1;
}
static void pool_kind(call *c, mlk_tensor *t) { (void)t, c->u.pool.kind = MLK_POOL_KIND_COUNT; }
static void pool_groups(call *c, mlk_tensor *t) { (void)t, c->u.pool.geometry.groups = 2; }
static void pool_window_0(call *c, mlk_tensor *t) { (void)t, c->u.pool.window[1] = 0; }
static void pool_window_third(call *c, mlk_tensor *t) { (void)t, c->u.pool.window[2] = 1; }
static void pool_stride(call *c, mlk_tensor *t) { (void)t, c->u.pool.geometry.stride[0] = -1; }
static void pool_pad(call *c, mlk_tensor *t) { (void)t, c->u.pool.geometry.pad_after[1] = -1; }
static void pool_pad_huge(call *c, mlk_tensor *t) { (void)t, c->u.pool.geometry.pad_after[1] = INT64_MAX; }
static void pool_window_more(call *c, mlk_tensor *t) { (void)t, c->u.pool.window[0] = 20; }
static void pool_average_indices(call *c, mlk_tensor *t) { (void)t, c->u.pool.kind = MLK_POOL_AVERAGE; }
static void pool_grad_no_indices(call *c, mlk_tensor *t) { (void)t, c->u.pool_grad.kind = MLK_POOL_MAX; }
static void bad_label(call *c, mlk_tensor *t) { (void)c, ((int64_t *)t[1].data)[301] = 72; }
static void bad_id(call *c, mlk_tensor *t) { (void)c, ((int64_t *)t[1].data)[5] = 50; }
static void bad_id_grad(call *c, mlk_tensor *t) { (void)c, ((int64_t *)t[0].data)[6 * ROWS - 1] = INT64_MAX; }
static void bad_position(call *c, mlk_tensor *t) { (void)c, ((int64_t *)t[1].data)[7] = -2; }
static void both_positions(call *c, mlk_tensor *t) { (void)t, c->u.rotary.first_position = 3; }
static void first_position(call *c, mlk_tensor *t) { c->u.rotary.first_position = -3, t[1].data = NULL; }
static void last_position(call *c, mlk_tensor *t) { c->u.rotary.first_position = INT64_MAX - 2, t[1].data = NULL; }
static void rotated_odd(call *c, mlk_tensor *t) { (void)t, c->u.rotary.rotated = 7; }
static void rotated_more(call *c, mlk_tensor *t) { (void)t, c->u.rotary.rotated = 66; }
static void theta_negative(call *c, mlk_tensor *t) { (void)t, c->u.rotary.theta = -1.0; }
static void theta_nan(call *c, mlk_tensor *t) { (void)t, c->u.rotary.theta = NAN; }
static void norm_kind(call *c, mlk_tensor *t) { (void)t, c->u.norm.kind = MLK_NORM_KIND_COUNT; }
static void epsilon_negative(call *c, mlk_tensor *t) { (void)t, c->u.norm.epsilon = -1.0f; }
static void epsilon_nan(call *c, mlk_tensor *t) { (void)t, c->u.norm.epsilon = NAN; }
static void no_outputs(call *c, mlk_tensor *t) {
  int i;
  for (i = 0; i < OPERANDS; i++)
    if (c->o[i].what == OUTPUT) t[i].data = NULL;
}
static void gamma_longer(call *c, mlk_tensor *t) { (void)c, t[1].shape[0]++; }
static void dgamma_on_dbeta(call *c, mlk_tensor *t) { (void)c, t[6].data = t[7].data; }

static const bad_call bad_calls[] = {
    {POOL, "no x", no_first, MLK_ERR_ARGUMENT, "x: "},
    {POOL, "no y", no_second, MLK_ERR_ARGUMENT, "y: "},
    {POOL, "x i64", first_i64, MLK_ERR_DTYPE, "x: "},
    {POOL, "x huge", first_huge, MLK_ERR_SIZE, "x: "},
    {POOL, "x negative", first_negative, MLK_ERR_SHAPE, "axis 1"},
    {POOL, "x rank 7", first_rank_7, MLK_ERR_SHAPE, "rank is 7"},
    {POOL, "y smaller", second_less, MLK_ERR_SHAPE, "must be 70"},
    {POOL, "indices smaller", third_less, MLK_ERR_SHAPE, "indices: "},
    {POOL, "y on x", second_on_first, MLK_ERR_ALIAS, "y: overlaps x"},
    {POOL, "indices on x", third_on_first, MLK_ERR_ALIAS, "indices: overlaps x"},
    {POOL, "kind", pool_kind, MLK_ERR_ARGUMENT, "kind: is 3"},
    {POOL, "groups", pool_groups, MLK_ERR_ARGUMENT, "geometry.groups: is 2"},
    {POOL, "window 0", pool_window_0, MLK_ERR_ARGUMENT, "window[1]: is 0"},
    {POOL, "a third axis", pool_window_third, MLK_ERR_ARGUMENT, "2 spatial axes"},
    {POOL, "stride", pool_stride, MLK_ERR_ARGUMENT, "stride -1"},
    {POOL, "pad", pool_pad, MLK_ERR_ARGUMENT, "and -1"},
    {POOL, "huge pad", pool_pad_huge, MLK_ERR_SIZE, "axis 1"},
    {POOL, "larger window", pool_window_more, MLK_ERR_SHAPE, "must be 7"},
    {POOL, "average with indices", pool_average_indices, MLK_ERR_ARGUMENT, "indices: "},
    {POOL_GRAD, "no dy", no_first, MLK_ERR_ARGUMENT, "dy: "},
    {POOL_GRAD, "no dx", no_third, MLK_ERR_ARGUMENT, "dx: "},
    {POOL_GRAD, "no indices", pool_grad_no_indices, MLK_ERR_ARGUMENT, "indices: "},
    {POOL_GRAD, "dx on dy", third_on_first, MLK_ERR_ALIAS, "dx: overlaps dy"},
    {POOL_GRAD, "dx smaller", third_less, MLK_ERR_SHAPE, "must be 69"},
    {SOFTMAX, "no x", no_first, MLK_ERR_ARGUMENT, "x: "},
    {SOFTMAX, "rank 0", first_rank_0, MLK_ERR_SHAPE, "rank is 0"},
    {SOFTMAX, "no y", no_second, MLK_ERR_ARGUMENT, "y: "},
    {SOFTMAX, "y smaller", second_less, MLK_ERR_SHAPE, "y: size of axis 1"},
    {SOFTMAX, "y beside x", second_on_first, MLK_ERR_ALIAS, "y: overlaps x"},
    {SOFTMAX_GRAD, "dy smaller", second_less, MLK_ERR_SHAPE, "dy: "},
    {SOFTMAX_GRAD, "dx smaller", third_less, MLK_ERR_SHAPE, "dx: "},
    {SOFTMAX_GRAD, "dx on y", third_on_first, MLK_ERR_ALIAS, "dx: overlaps y"},
    {SOFTMAX_GRAD, "dx beside dy", third_on_second, MLK_ERR_ALIAS, "dx: overlaps dy"},
    {ENTROPY, "no labels", no_second, MLK_ERR_ARGUMENT, "labels: "},
    {ENTROPY, "labels f32", second_f32, MLK_ERR_DTYPE, "labels: dtype is f32"},
    {ENTROPY, "fewer labels", second_less, MLK_ERR_SHAPE, "labels: "},
    {ENTROPY, "label", bad_label, MLK_ERR_ARGUMENT, "element 301 is 72"},
    {ENTROPY, "nothing wanted", no_outputs, MLK_ERR_ARGUMENT, "at least one"},
    {ENTROPY, "dx beside x", fourth_on_first, MLK_ERR_ALIAS, "dx: overlaps x"},
    {ENTROPY, "dx smaller", fourth_less, MLK_ERR_SHAPE, "dx: "},
    {ENTROPY, "dx overlaps", fourth_overlaps, MLK_ERR_SHAPE, "dx: an output"},
    {NORM, "kind", norm_kind, MLK_ERR_ARGUMENT, "kind: is 2"},
    {NORM, "epsilon", epsilon_negative, MLK_ERR_ARGUMENT, "epsilon: is -1"},
    {NORM, "epsilon nan", epsilon_nan, MLK_ERR_ARGUMENT, "epsilon: "},
    {NORM, "gamma longer", gamma_longer, MLK_ERR_SHAPE, "gamma: "},
    {NORM, "no y", no_fourth, MLK_ERR_ARGUMENT, "y: "},
    {NORM, "y beside x", fourth_on_first, MLK_ERR_ALIAS, "y: overlaps x"},
    {NORM_GRAD, "nothing wanted", no_outputs, MLK_ERR_ARGUMENT, "at least one"},
    {NORM_GRAD, "no mean", no_third, MLK_ERR_ARGUMENT, "mean: "},
    {NORM_GRAD, "no rstd", no_fourth, MLK_ERR_ARGUMENT, "rstd: "},
    {NORM_GRAD, "dgamma on dbeta", dgamma_on_dbeta, MLK_ERR_ALIAS, "overlaps"},
    {EMBEDDING, "id", bad_id, MLK_ERR_ARGUMENT, "element 5 is 50"},
    {EMBEDDING, "no table", no_first, MLK_ERR_ARGUMENT, "table: "},
    {EMBEDDING, "out on table", third_on_first, MLK_ERR_ALIAS, "out: overlaps table"},
    {EMBEDDING, "out smaller", third_less, MLK_ERR_SHAPE, "out: "},
    {EMBEDDING_GRAD, "id", bad_id_grad, MLK_ERR_ARGUMENT, "element 1559 is"},
    {EMBEDDING_GRAD, "dout smaller", second_less, MLK_ERR_SHAPE, "dout: "},
    {EMBEDDING_GRAD, "no dtable", no_third, MLK_ERR_ARGUMENT, "dtable: "},
    {ROTARY, "position", bad_position, MLK_ERR_ARGUMENT, "element 7 is -2"},
    {ROTARY, "two origins", both_positions, MLK_ERR_ARGUMENT, "first_position: is 3"},
    {ROTARY, "negative", first_position, MLK_ERR_ARGUMENT, "first_position: is -3"},
    {ROTARY, "beyond 63 bits", last_position, MLK_ERR_ARGUMENT, "first_position: "},
    {ROTARY, "odd", rotated_odd, MLK_ERR_ARGUMENT, "rotated: is 7"},
    {ROTARY, "more than D", rotated_more, MLK_ERR_ARGUMENT, "rotated: is 66"},
    {ROTARY, "theta", theta_negative, MLK_ERR_ARGUMENT, "theta: is -1"},
    {ROTARY, "theta nan", theta_nan, MLK_ERR_ARGUMENT, "theta: "},
    {ROTARY, "y smaller", fourth_less, MLK_ERR_SHAPE, "y: "},
    {ROTARY, "y beside x", fourth_on_first, MLK_ERR_ALIAS, "y: overlaps x"}};

/* What only the device can see is told later, by its element. */
static void check_told_later(mlk_context *ctx, const char *word) {
  char element[32];
  CHECK_STATUS(ctx, mlk_sync(ctx), MLK_ERR_ARGUMENT);
  snprintf(element, sizeof element, "element %d was out of its range", atoi(word + strlen("element ")));
  CHECK_MSG(strstr(mlk_last_error(ctx), element) != NULL, "\"%s\" does not say \"%s\"", mlk_last_error(ctx), element);
  CHECK_OK(ctx, mlk_sync(ctx));
}

static void test_bad_arguments(void) {
  mlk_isa isas[MLK_ISA_COUNT];
  const int count = isas_and_reference(isas);
  mlkt_rng rng = mlkt_rng_case();
  int what, i, k;
  for (what = 0; what < OPS; what++) {
    const call c = sample((op)what, &rng);
    for (i = 0; i < count; i++) {
      mlk_context *ctx = mlkt_open(isas[i], 2);
      for (k = 0; k < COUNT_OF(bad_calls); k++) {
        table_of_operands l;
        call wrong = c;
        if (bad_calls[k].what != (op)what) continue;
        l = lay_out(&c, 0);
        bad_calls[k].change(&wrong, l.t);
        mlkt_note("%s, isa %s: %s", op_names[what], mlk_isa_name(isas[i]), bad_calls[k].about);
        if (on_device(isas[i]) && strncmp(bad_calls[k].word, "element ", 8) == 0) {
          CHECK_OK(ctx, call_do(ctx, &wrong, l.t, NULL));
          check_told_later(ctx, bad_calls[k].word);
          lay_free(&l);
          continue;
        }
        CHECK_STATUS(ctx, call_do(ctx, &wrong, l.t, NULL), bad_calls[k].want);
        CHECK_MSG(strstr(mlk_last_error(ctx), bad_calls[k].word) != NULL, "\"%s\" does not say \"%s\"",
                  mlk_last_error(ctx), bad_calls[k].word);
        CHECK_MSG(outputs_untouched(&wrong, &l), "an output was written");
        lay_free(&l);
      }
      mlk_close(ctx);
    }
    mlkt_note("%s", op_names[what]);
    {
      call copy = c;
      call_free(&copy);
    }
  }
}

/* An index beyond the plane: the one fault that only the gradient of a maximum can have. */
static void test_bad_index(void) {
  mlk_context *ctx = mlkt_open(MLK_ISA_BEST, 2);
  float dy[4] = {1.0f, 2.0f, 3.0f, 4.0f}, dx[16];
  int64_t indices[4] = {0, 2, -1, 16};
  mlk_pool_grad_desc d;
  memset(&d, 0, sizeof d);
  mlkt_rogue_f32(dx, 16);
  d.dy = mlk_f32(dy, 1, 1, 2, 2), d.indices = mlk_i64(indices, 1, 1, 2, 2), d.dx = mlk_f32(dx, 1, 1, 4, 4);
  d.window[0] = d.window[1] = 2, d.geometry.stride[0] = d.geometry.stride[1] = 2;
  if (on_device(MLK_ISA_BEST)) {
    CHECK_OK(ctx, mlk_pool_grad(ctx, &d));
    check_told_later(ctx, "element 3 is 16");
  } else {
    CHECK_STATUS(ctx, mlk_pool_grad(ctx, &d), MLK_ERR_ARGUMENT);
    CHECK_EQ_STR(mlk_last_error(ctx), "indices: element 3 is 16, but must be below 16");
    CHECK(mlkt_is_rogue_f32(dx, 16));
  }
  indices[3] = 15;
  CHECK_OK(ctx, mlk_pool_grad(ctx, &d));
  CHECK(dx[0] == 1.0f && dx[1] == 0.0f && dx[2] == 2.0f && dx[15] == 4.0f && dx[8] == 0.0f);
  mlk_close(ctx);
}

static void test_null_arguments(void) {
  mlk_context *ctx = mlkt_open(MLK_ISA_BEST, 1);
  mlk_plan plan;
  mlk_softmax_desc d;
  float x = 1.0f, y = 0.0f;
  memset(&d, 0, sizeof d);
  d.x = mlk_f32(&x, 1), d.y = mlk_f32(&y, 1);
  CHECK_EQ_I64(mlk_pool(ctx, NULL), MLK_ERR_ARGUMENT);
  CHECK_EQ_I64(mlk_pool_grad(ctx, NULL), MLK_ERR_ARGUMENT);
  CHECK_EQ_I64(mlk_softmax(ctx, NULL), MLK_ERR_ARGUMENT);
  CHECK_EQ_I64(mlk_softmax_grad(ctx, NULL), MLK_ERR_ARGUMENT);
  CHECK_EQ_I64(mlk_cross_entropy(ctx, NULL), MLK_ERR_ARGUMENT);
  CHECK_EQ_I64(mlk_norm(ctx, NULL), MLK_ERR_ARGUMENT);
  CHECK_EQ_I64(mlk_norm_grad(ctx, NULL), MLK_ERR_ARGUMENT);
  CHECK_EQ_I64(mlk_embedding(ctx, NULL), MLK_ERR_ARGUMENT);
  CHECK_EQ_I64(mlk_embedding_grad(ctx, NULL), MLK_ERR_ARGUMENT);
  CHECK_EQ_I64(mlk_rotary_plan(ctx, NULL, &plan), MLK_ERR_ARGUMENT);
  CHECK_EQ_I64(mlk_softmax_plan(ctx, &d, NULL), MLK_ERR_ARGUMENT);
  CHECK_EQ_I64(mlk_softmax(NULL, &d), MLK_ERR_ARGUMENT);
  CHECK_OK(ctx, mlk_softmax(ctx, &d));
  CHECK_BITS_F32(y, 1.0f);
  mlk_close(ctx);
}

const mlkt_case mlkt_layer_cases[] = {{"layer/pool", test_pool},
                                      {"layer/pool_first", test_pool_first},
                                      {"layer/softmax", test_softmax},
                                      {"layer/cross_entropy", test_cross_entropy},
                                      {"layer/softmax_edges", test_softmax_edges},
                                      {"layer/norm", test_norm},
                                      {"layer/embedding", test_embedding},
                                      {"layer/rotary", test_rotary},
                                      {"layer/rotary_far", test_rotary_far},
                                      {"layer/workspace", test_workspace},
                                      {"layer/failing_memory", test_failing_memory},
                                      {"layer/rows_alone", test_rows_alone},
                                      {"layer/bad_arguments", test_bad_arguments},
                                      {"layer/bad_index", test_bad_index},
                                      {"layer/null_arguments", test_null_arguments},
                                      {NULL, NULL}};
