/* The rows of mlk_matmul. Operands are small integers, so every right result is exact in f32 whatever the order of its
   sums: D x is compared with A (B x) by == for a random integer vector x, in O(n^2), for every contender. */
#ifndef BENCH_ROWS_MATMUL_H
#define BENCH_ROWS_MATMUL_H

enum { MAX_COPIES = 48 };

/* D = act(A B + bias), alpha 1/64 where there is an epilogue. On a device A, B and D may be of 16 bits. */
typedef struct matmul_spec {
  int64_t m, n, k, batch;
  int ta, tb;  /* operand is stored transposed */
  int64_t pad; /* elements between the rows of every matrix */
  int packed, bias, strict, fast;
  mlk_activation activation;
  mlk_dtype dtype;
  problem_common common;
} matmul_spec;

/* Everything a contender's call needs; each contender has its own copy of the struct, so its own
   place in the rotation. */
typedef struct matmul_run_state {
  matmul_spec s;
  int64_t lda, ldb, ldd, a_each, b_each, d_each; /* elements from one row, and from one matrix, to the next */
  int copies, at;
  float *a[MAX_COPIES], *b[MAX_COPIES], *d, *bias, *expected;
  void *narrow_d; /* of 16 bits: D as calls write it; d is then its values */
  float alpha;
  mlk_context *ctx;
  mlk_matmul_desc desc[MAX_COPIES], pass; /* pass: bias and activation alone, in place, as a product with K = 0 */
  mlk_packed packed[MAX_COPIES];
  const peer *peer;
  float *peer_packed[MAX_COPIES];
  void *jitter;
  mkl_jit_kernel_fn *jit_kernel;
  double *x, *ax; /* the vector x and A (B x), per matrix of the batch */
} matmul_run_state;

static int matmul_has_epilogue(const matmul_spec *s) { return s->bias || s->activation != MLK_NONE; }

static int next_copy(matmul_run_state *w) {
  const int at = w->at;
  w->at = at + 1 == w->copies ? 0 : at + 1;
  return at;
}

static void matmul_call(void *arg) {
  matmul_run_state *w = (matmul_run_state *)arg;
  if (mlk_matmul(w->ctx, &w->desc[next_copy(w)]) != MLK_OK) call_failed(w->d);
}

static mlk_status matmul_plan(void *arg, mlk_plan *plan) {
  matmul_run_state *w = (matmul_run_state *)arg;
  return mlk_matmul_plan(w->ctx, &w->desc[0], plan);
}

static void matmul_two_passes_call(void *arg) {
  matmul_run_state *w = (matmul_run_state *)arg;
  if (mlk_matmul(w->ctx, &w->desc[next_copy(w)]) != MLK_OK || mlk_matmul(w->ctx, &w->pass) != MLK_OK) call_failed(w->d);
}

static void peer_gemm(const matmul_run_state *w, const float *a, const float *b, float *d) {
  const matmul_spec *s = &w->s;
  const int ta = s->ta ? 112 : 111, tb = s->tb ? 112 : 111;
  if (w->peer->dnnl_sgemm)
    w->peer->dnnl_sgemm(s->ta ? 'T' : 'N', s->tb ? 'T' : 'N', s->m, s->n, s->k, w->alpha, a, w->lda, b, w->ldb, 0, d,
                        w->ldd);
  else
    w->peer->sgemm(101, ta, tb, (int)s->m, (int)s->n, (int)s->k, w->alpha, a, (int)w->lda, b, (int)w->ldb, 0, d,
                   (int)w->ldd);
}

static void peer_gemm_call(void *arg) {
  matmul_run_state *w = (matmul_run_state *)arg;
  const int at = next_copy(w);
  peer_gemm(w, w->a[at], w->b[at], w->d);
}

static void peer_gemm_and_pass_call(void *arg) {
  matmul_run_state *w = (matmul_run_state *)arg;
  peer_gemm_call(arg);
  if (mlk_matmul(w->ctx, &w->pass) != MLK_OK) fill_nan(w->d, 1);
}

static void peer_gemv_call(void *arg) {
  matmul_run_state *w = (matmul_run_state *)arg;
  const matmul_spec *s = &w->s;
  const int at = next_copy(w);
  if (s->n == 1)
    w->peer->sgemv(101, 111, (int)s->m, (int)s->k, 1, w->a[at], (int)w->lda, w->b[at], 1, 0, w->d, 1);
  else
    w->peer->sgemv(101, 112, (int)s->k, (int)s->n, 1, w->b[at], (int)w->ldb, w->a[at], 1, 0, w->d, 1);
}

/* One call per matrix, the matrices shared out over the threads, each call on one thread. */
static void peer_batch_loop_call(void *arg) {
  matmul_run_state *w = (matmul_run_state *)arg;
  const int which = (int)(w->peer - peers), threads = w->s.common.threads, at = next_copy(w);
  int64_t i;
  if (threads > 1) peer_set_threads(which, 1);
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) if (threads > 1)
#endif
  for (i = 0; i < w->s.batch; i++)
    peer_gemm(w, w->a[at] + i * w->a_each, w->b[at] + i * w->b_each, w->d + i * w->d_each);
  if (threads > 1) peer_set_threads(which, threads);
}

static void peer_batch_call(void *arg) {
  matmul_run_state *w = (matmul_run_state *)arg;
  const matmul_spec *s = &w->s;
  const int at = next_copy(w);
  w->peer->sgemm_batch(101, s->ta ? 112 : 111, s->tb ? 112 : 111, (int)s->m, (int)s->n, (int)s->k, w->alpha, w->a[at],
                       (int)w->lda, (int)w->a_each, w->b[at], (int)w->ldb, (int)w->b_each, 0, w->d, (int)w->ldd,
                       (int)w->d_each, (int)s->batch);
}

static void peer_batch_and_pass_call(void *arg) {
  matmul_run_state *w = (matmul_run_state *)arg;
  peer_batch_loop_call(arg);
  if (mlk_matmul(w->ctx, &w->pass) != MLK_OK) fill_nan(w->d, 1);
}

static void mkl_packed_call(void *arg) {
  matmul_run_state *w = (matmul_run_state *)arg;
  const matmul_spec *s = &w->s;
  const int at = next_copy(w);
  mkl_only.compute(101, 111, 151, (int)s->m, (int)s->n, (int)s->k, w->a[at], (int)w->lda, w->peer_packed[at],
                   (int)w->ldb, 0, w->d, (int)w->ldd);
}

static void mkl_jit_call(void *arg) {
  matmul_run_state *w = (matmul_run_state *)arg;
  w->jit_kernel(w->jitter, w->a[0], w->b[0], w->d);
}

static void matmul_spoil(void *arg) {
  const matmul_run_state *w = (const matmul_run_state *)arg;
  fill_nan(w->d, w->s.batch * w->d_each);
  if (w->narrow_d) memset(w->narrow_d, 0xff, (size_t)(w->s.batch * w->d_each) * 2); /* NaN in both types */
}

/* out = op(stored) x, for op(stored) of rows x columns, exact: all numbers are integers below 2^53.
   Walks memory in order. */
static void times_vector(const float *stored, int64_t ld, int transposed, int64_t rows, int64_t columns,
                         const double *x, double *out) {
  int64_t i, j;
  for (i = 0; i < rows; i++) out[i] = 0;
  if (transposed) {
    for (j = 0; j < columns; j++)
      for (i = 0; i < rows; i++) out[i] += (double)stored[j * ld + i] * x[j];
  } else {
    for (i = 0; i < rows; i++)
      for (j = 0; j < columns; j++) out[i] += (double)stored[i * ld + j] * x[j];
  }
}

/* The bound holds a relative error of a few units in the last place of the epilogue, and a rounding to 16 bits where
   D has them. A product alone must equal what is expected, which has been rounded. */
static void expected_check(const matmul_run_state *w, char *why, size_t size) {
  const double unit = dtype_unit(w->s.dtype);
  const int exact = !matmul_has_epilogue(&w->s);
  int64_t i, j;
  for (i = 0; i < w->s.batch * w->s.m; i++)
    for (j = 0; j < w->s.n; j++) {
      const int64_t at = i * w->ldd + j;
      const double e = (double)w->expected[at], error = fabs((double)w->d[at] - e);
      if (error <= (exact ? 0 : 1e-6 * (1 + fabs(e)) + unit * fabs(e))) continue;
      text(why, size, "element %lld, %lld is %.9g, but should be %.9g", (long long)i, (long long)j, (double)w->d[at],
           e);
      return;
    }
}

static void matmul_check(void *arg, const contender *who, char *why, size_t size) {
  const matmul_run_state *w = (const matmul_run_state *)arg;
  const matmul_spec *s = &w->s;
  double *dx;
  int64_t p, i;
  if (w->narrow_d)
    host_convert(dense_view(w->narrow_d, s->dtype, s->batch * w->d_each),
                 dense_view(w->d, MLK_F32, s->batch * w->d_each));
  if (w->expected && strcmp(who->name, "mlk product only") != 0) {
    expected_check(w, why, size);
    return;
  }
  dx = (double *)malloc((size_t)(s->m + 1) * sizeof *dx);
  if (!dx) die("no memory");
  for (p = 0; p < s->batch && !why[0]; p++) {
    times_vector(w->d + p * w->d_each, w->ldd, 0, s->m, s->n, w->x, dx);
    for (i = 0; i < s->m; i++)
      if (!(dx[i] == w->ax[p * s->m + i] * (double)w->alpha)) {
        text(why, size, "matrix %lld, row %lld: D x is %.17g, but A (B x) is %.17g", (long long)p, (long long)i, dx[i],
             w->ax[p * s->m + i] * (double)w->alpha);
        break;
      }
  }
  free(dx);
  if (who->peer < 0 && why[0] && mlk_last_error(w->ctx)[0]) text(why, size, "%s", mlk_last_error(w->ctx));
}

/* op(stored) of rows x columns; with a batch, as many of them, one after another. */
static mlk_tensor stored_view(const matmul_spec *s, void *data, mlk_dtype dtype, int64_t rows, int64_t columns,
                              int64_t ld, int transposed) {
  const int64_t r = transposed ? columns : rows, c = transposed ? rows : columns;
  float *at = (float *)there(data);
  mlk_tensor t = mlki_explicit_strides(mlk_f32(at, s->batch, r, c));
  t.stride[0] = r * ld, t.stride[1] = ld;
  if (s->batch == 1) t = mlk_with_row_stride(mlk_f32(at, r, c), ld);
  t.dtype = (int32_t)dtype;
  return transposed ? mlk_transposed(t) : t;
}

/* Operands of copy c: values of f32, and what the calls read. */
static void matmul_describe(matmul_run_state *w, int c, int64_t a_count, int64_t b_count) {
  const matmul_spec *s = &w->s;
  const int narrow = s->dtype != MLK_F32;
  void *a = narrow ? row_narrowed(w->a[c], s->dtype, a_count) : w->a[c];
  void *b = narrow ? row_narrowed(w->b[c], s->dtype, b_count) : w->b[c];
  w->desc[c].a = stored_view(s, a, s->dtype, s->m, s->k, w->lda, s->ta);
  w->desc[c].b = stored_view(s, b, s->dtype, s->k, s->n, w->ldb, s->tb);
  w->desc[c].d = stored_view(s, w->d, MLK_F32, s->m, s->n, w->ldd, 0);
}

/* The vector x and A (B x). */
static void matmul_project(matmul_run_state *w, uint64_t seed) {
  const matmul_spec *s = &w->s;
  double *bx = (double *)row_alloc((size_t)s->k * sizeof(double));
  int64_t p, i;
  w->x = (double *)row_alloc((size_t)s->n * sizeof(double));
  w->ax = (double *)row_alloc((size_t)(s->batch * s->m) * sizeof(double));
  for (i = 0; i < s->n; i++) w->x[i] = random_int(&seed, -1024, 1024);
  for (p = 0; p < s->batch; p++) {
    times_vector(w->b[0] + p * w->b_each, w->ldb, s->tb, s->k, s->n, w->x, bx);
    times_vector(w->a[0] + p * w->a_each, w->lda, s->ta, s->m, s->k, bx, w->ax + p * s->m);
  }
}

/* The state shared by all contenders of a row: operands, descriptors, the expected projection. */
static void matmul_prepare(matmul_run_state *w, const matmul_spec *spec) {
  matmul_spec *s = &w->s;
  int64_t a_count, b_count, i;
  uint64_t seed = 20;
  int c;
  memset(w, 0, sizeof *w);
  *s = *spec;
  w->alpha = 1;
  w->lda = (s->ta ? s->m : s->k) + s->pad, w->ldb = (s->tb ? s->k : s->n) + s->pad, w->ldd = s->n + s->pad;
  w->a_each = (s->ta ? s->k : s->m) * w->lda, w->b_each = (s->tb ? s->n : s->k) * w->ldb, w->d_each = s->m * w->ldd;
  a_count = s->batch * w->a_each, b_count = s->batch * w->b_each;
  w->copies = 1;
  if (s->common.cold) {
    const int64_t bytes = (a_count + b_count) * (int64_t)dtype_bytes(s->dtype),
                  enough = 4 * (int64_t)last_cache_bytes();
    w->copies = (int)((enough + bytes - 1) / bytes);
    if (w->copies < 2) w->copies = 2;
    if (w->copies > MAX_COPIES) w->copies = MAX_COPIES;
  }
  w->d = row_floats(s->batch * w->d_each);
  w->bias = row_floats(s->n);
  for (i = 0; i < s->n; i++) w->bias[i] = (float)random_int(&seed, -16, 16) / 8;
  for (c = 0; c < w->copies; c++) {
    w->a[c] = row_floats(a_count), w->b[c] = row_floats(b_count);
    if (c == 0)
      fill_small_integers(w->a[0], a_count, 1), fill_small_integers(w->b[0], b_count, 2);
    else
      memcpy(w->a[c], w->a[0], (size_t)a_count * 4), memcpy(w->b[c], w->b[0], (size_t)b_count * 4);
    matmul_describe(w, c, a_count, b_count);
  }
  matmul_project(w, seed);
  w->ctx = context(s->common.threads, s->common.isa, s->strict ? MLK_STRICT : MLK_FAST);
}

/* The definitions of mlk_activation, by libm. */
static double activation_of(mlk_activation activation, double t) {
  switch (activation) {
  case MLK_RELU: return t > 0 ? t : 0;
  case MLK_GELU: return t / 2 * erfc(t * -0.70710678118654752440);
  case MLK_GELU_TANH: return t / 2 * (1 + tanh(0.79788456080286535588 * (t + 0.044715 * t * t * t)));
  case MLK_SILU: return t / (1 + exp(-t));
  case MLK_TANH: return tanh(t);
  case MLK_SIGMOID: return 1 / (1 + exp(-t));
  case MLK_NONE:
  case MLK_ACTIVATION_COUNT: break;
  }
  return t;
}

/* D of 16 bits from here on. */
static void matmul_narrow_result(matmul_run_state *w) {
  const matmul_spec *s = &w->s;
  const int64_t count = s->batch * w->d_each;
  int c;
  w->narrow_d = row_alloc((size_t)count * 2);
  for (c = 0; c < w->copies; c++) w->desc[c].d = stored_view(s, w->narrow_d, s->dtype, s->m, s->n, w->ldd, 0);
  if (matmul_has_epilogue(s)) return;
  host_convert(dense_view(w->expected, MLK_F32, count), dense_view(w->narrow_d, s->dtype, count));
  host_convert(dense_view(w->narrow_d, s->dtype, count), dense_view(w->expected, MLK_F32, count));
}

/* Where the projection does not do, for an epilogue or rounding to 16 bits: expected is libm's epilogue on a product
   of f32 that has itself passed the projection. Alpha is a power of two, which keeps products exact. */
static void expected_prepare(matmul_run_state *w) {
  matmul_spec *s = &w->s;
  contender plain;
  int64_t i, j;
  int c;
  memset(&plain, 0, sizeof plain);
  text(plain.name, sizeof plain.name, "mlk product only");
  plain.peer = -1;
  if (matmul_has_epilogue(s)) w->alpha = 1.0f / 64;
  for (c = 0; c < w->copies; c++) w->desc[c].alpha = &w->alpha;
  w->at = 0;
  matmul_spoil(w);
  operands_up();
  matmul_call(w);
  operands_down();
  matmul_check(w, &plain, plain.wrong, sizeof plain.wrong);
  w->expected = row_floats(s->batch * w->d_each);
  memset(w->expected, 0, (size_t)(s->batch * w->d_each) * sizeof(float)); /* between padded rows */
  for (i = 0; i < s->batch * s->m; i++)
    for (j = 0; j < s->n; j++) {
      const double t = (double)w->d[i * w->ldd + j] + (s->bias ? (double)w->bias[j] : 0);
      w->expected[i * w->ldd + j] = plain.wrong[0] ? NAN : (float)activation_of(s->activation, t);
    }
  if (s->dtype != MLK_F32) {
    matmul_narrow_result(w);
    return;
  }
  w->pass.a = mlk_f32((float *)there(w->a[0]), s->m, 0), w->pass.b = mlk_f32((float *)there(w->b[0]), 0, s->n);
  w->pass.d = w->pass.c = w->desc[0].d;
  if (s->bias) w->pass.bias = mlk_f32((float *)there(w->bias), s->n);
  w->pass.activation = s->activation;
}

static matmul_run_state matmul_states[MAX_CONTENDERS + 1]; /* [0] is the one that all others start as */
static int matmul_state_count;

static matmul_run_state *another_state(int peer_index) {
  matmul_run_state *w;
  if (matmul_state_count > MAX_CONTENDERS) die("too many contenders");
  w = &matmul_states[matmul_state_count++];
  if (w != matmul_states) *w = matmul_states[0];
  w->peer = peer_index >= 0 ? &peers[peer_index] : NULL;
  w->at = 0;
  return w;
}

/* A state whose calls have the problem's epilogue in them. */
static matmul_run_state *another_fused_state(void) {
  matmul_run_state *w = another_state(-1);
  int c;
  for (c = 0; c < w->copies; c++) {
    if (w->s.bias) w->desc[c].bias = mlk_f32((float *)there(w->bias), w->s.n);
    w->desc[c].activation = w->s.activation;
  }
  return w;
}

static void matmul_pack_weights(matmul_run_state *w) {
  int c;
  operands_up();
  for (c = 0; c < w->copies; c++) {
    mlk_packed size;
    memset(&size, 0, sizeof size);
    if (mlk_matmul_pack(w->ctx, w->desc[c].b, NULL, 0, &size) == MLK_OK) {
      void *buffer = row_alloc((size_t)size.bytes);
      if (mlk_matmul_pack(w->ctx, w->desc[c].b, there(buffer), size.bytes, &w->packed[c]) == MLK_OK)
        w->desc[c].packed_b = &w->packed[c];
    }
    memset(&w->desc[c].b, 0, sizeof w->desc[c].b);
  }
  operands_down();
}

static void add_mkl_packed(row *r, const matmul_spec *s) {
  matmul_run_state *w;
  int c;
  if (!peers[MKL].present || !mkl_only.pack_size || !mkl_only.pack || !mkl_only.compute) return;
  w = another_state(MKL);
  for (c = 0; c < w->copies; c++) {
    w->peer_packed[c] = (float *)row_alloc(mkl_only.pack_size(162, (int)s->m, (int)s->n, (int)s->k));
    mkl_only.pack(101, 162, s->tb ? 112 : 111, (int)s->m, (int)s->n, (int)s->k, 1, w->b[c], (int)w->ldb,
                  w->peer_packed[c]);
  }
  row_add(r, "mkl packed", MKL, mkl_packed_call, w);
}

/* Kernels that MKL compiles for the shape; for small ones. */
static void add_jit(row *r, const matmul_spec *s) {
  matmul_run_state *w;
  if (!peers[MKL].present || !mkl_only.jit_create || !mkl_only.jit_get || s->pad || s->batch > 1 ||
      matmul_has_epilogue(s) || s->packed || s->common.cold || s->m > 192 || s->n > 192 || s->k > 192)
    return;
  w = another_state(MKL);
  if (mkl_only.jit_create(&w->jitter, 101, s->ta ? 112 : 111, s->tb ? 112 : 111, (int)s->m, (int)s->n, (int)s->k, 1,
                          (int)w->lda, (int)w->ldb, 0, (int)w->ldd) == 2)
    return; /* 2: MKL_JIT_ERROR; 1 means a kernel without just-in-time code, which is a result too */
  w->jit_kernel = mkl_only.jit_get(w->jitter);
  row_add(r, "mkl jit", MKL, mkl_jit_call, w);
}

/* "bias,gelu" and the like: bias, an activation, or both. */
static void matmul_read_epilogue(problem *p, matmul_spec *s) {
  static const char *const names[MLK_ACTIVATION_COUNT] = {"", "relu", "gelu", "gelu_tanh", "silu", "tanh", "sigmoid"};
  const char *value = problem_value(p, "epilogue"), *rest = value;
  int a;
  if (!value || strcmp(value, "none") == 0) return;
  if (strncmp(rest, "bias", 4) == 0 && (rest[4] == ',' || !rest[4])) s->bias = 1, rest += rest[4] ? 5 : 4;
  for (a = 1; a < MLK_ACTIVATION_COUNT && *rest && s->activation == MLK_NONE; a++)
    if (strcmp(rest, names[a]) == 0) s->activation = (mlk_activation)a;
  if (!matmul_has_epilogue(s) || (*rest && s->activation == MLK_NONE))
    problem_die(
        p,
        "epilogue=%s is none of none, bias, relu, gelu, gelu_tanh, silu, tanh, sigmoid, nor bias and one of them "
        "behind a comma",
        value);
}

static matmul_spec matmul_read(problem *p) {
  const char *shape = problem_shape(p), *colon = shape ? strchr(shape, ':') : NULL;
  char left[64] = "";
  int64_t a[2], b[2];
  matmul_spec s;
  static const mlk_dtype dtypes[] = {MLK_F32, MLK_BF16, MLK_F16};
  int layout, numerics;
  memset(&s, 0, sizeof s);
  if (!colon || (size_t)(colon - shape) >= sizeof left)
    problem_die(p, "needs a shape like 1024x512:512x768, M x K : K x N%s%s", shape ? ", not " : "", shape ? shape : "");
  else
    text(left, sizeof left, "%.*s", (int)(colon - shape), shape);
  problem_sizes(p, "", left, 2, 2, a), problem_sizes(p, "", colon ? colon + 1 : "", 2, 2, b);
  if (a[1] != b[0]) problem_die(p, "%s: K is %lld in A and %lld in B", shape, (long long)a[1], (long long)b[0]);
  s.m = a[0], s.k = a[1], s.n = b[1];
  if (s.k >= 1 << 20)
    problem_die(p, "%s: K is %lld, but sums are exact, and checked, below 2^20", shape, (long long)s.k);
  layout = problem_choice(p, "layout", "nn nt tn tt"), s.ta = layout >> 1, s.tb = layout & 1;
  s.dtype = dtypes[problem_choice(p, "dtype", "f32 bf16 f16")];
  if (s.dtype != MLK_F32 && !opt.cuda)
    problem_die(p, "dtype=%s is of --device cuda; on the CPU matrices are f32", dtype_name(s.dtype));
  s.batch = problem_integer(p, "batch", 1, 1 << 24, 1), s.pad = problem_integer(p, "pad", 0, 4096, 0);
  matmul_read_epilogue(p, &s);
  s.packed = problem_choice(p, "packed", "0 1");
  if (s.packed && s.batch > 1)
    problem_die(p, "packed=1 beside batch=%lld: packed weights have no batch", (long long)s.batch);
  numerics = problem_choice(p, "numerics", "strict fast strict,fast");
  s.strict = numerics != 1, s.fast = numerics > 0;
  if (s.dtype != MLK_F32 && s.fast)
    problem_die(p, "numerics beside dtype=%s: products of 16 bits have one kind", dtype_name(s.dtype));
  s.common = problem_read_common(p);
  problem_finish(p);
  return s;
}

static void matmul_add_mlk(row *r, const matmul_spec *s) {
  matmul_run_state *w = another_fused_state();
  const int by_tensor_cores = s->dtype != MLK_F32 || !s->strict;
  if (s->packed) matmul_pack_weights(w);
  row_add_mlk(r, "mlk", matmul_call, matmul_plan, w);
  if (by_tensor_cores) row_by_tensor_cores(r);
  if (s->packed) {
    row_add_mlk(r, "mlk unpacked", matmul_call, matmul_plan, another_fused_state());
    if (by_tensor_cores) row_by_tensor_cores(r);
  }
  if (matmul_has_epilogue(s) && s->dtype == MLK_F32) {
    row_add_mlk(r, "mlk product only", matmul_call, matmul_plan, another_state(-1));
    row_add(r, "mlk two passes", -1, matmul_two_passes_call, another_state(-1));
  }
  if (s->strict && s->fast) {
    w = another_fused_state();
    w->ctx = context(s->common.threads, s->common.isa, MLK_FAST);
    if (s->packed) matmul_pack_weights(w);
    row_add_mlk(r, "mlk fast", matmul_call, matmul_plan, w);
    row_by_tensor_cores(r);
  }
}

static void matmul_add_peer(row *r, const matmul_spec *s, int p) {
  const int epilogue = matmul_has_epilogue(s);
  char other[32];
  if (!peers[p].sgemm && !peers[p].dnnl_sgemm) return;
  if (s->batch > 1) {
    row_add(r, text(other, sizeof other, "%s loop", peers[p].name), p,
            epilogue ? peer_batch_and_pass_call : peer_batch_loop_call, another_state(p));
    if (peers[p].sgemm_batch && !epilogue) row_add(r, peers[p].name, p, peer_batch_call, another_state(p));
    return;
  }
  row_add(r, peers[p].name, p, epilogue ? peer_gemm_and_pass_call : peer_gemm_call, another_state(p));
  if (peers[p].sgemv && !epilogue && !s->ta && !s->tb && (s->m == 1 || s->n == 1))
    row_add(r, text(other, sizeof other, "%s gemv", peers[p].name), p, peer_gemv_call, another_state(p));
}

static void matmul_run(problem *problem_text, row *r) {
  const matmul_spec s = matmul_read(problem_text);
  int p;
  if (!r) return;
  row_common(r, &s.common, s.common.cold ? ROW_ROTATES : ROW_WARM);
  text(r->dtype, sizeof r->dtype, "%s", dtype_name(s.dtype));
  r->flops = 2.0 * (double)s.m * (double)s.n * (double)s.k * (double)s.batch;
  if (s.common.cold)
    r->bytes = (double)dtype_bytes(s.dtype) *
               ((double)s.m * (double)s.k + (double)s.k * (double)s.n + (double)s.m * (double)s.n) * (double)s.batch;
  r->operations = s.batch;
  matmul_state_count = 0;
  matmul_prepare(another_state(-1), &s);
  if (matmul_has_epilogue(&s) || s.dtype != MLK_F32) expected_prepare(&matmul_states[0]);
  r->spoil = matmul_spoil, r->check = matmul_check, r->arg = &matmul_states[0];
  matmul_add_mlk(r, &s);
  if (!s.common.forced && !s.fast) {
    if (s.packed && !matmul_has_epilogue(&s)) add_mkl_packed(r, &s);
    for (p = 0; p < PEER_COUNT; p++) matmul_add_peer(r, &s, p);
    add_jit(r, &s);
  }
  row_run(r);
  for (p = 0; p < matmul_state_count; p++)
    if (matmul_states[p].jitter && mkl_only.jit_destroy) mkl_only.jit_destroy(matmul_states[p].jitter);
}

static void declare_square(const char *class_name, int n, const char *words, int quick) {
  char name[64], problem_text[128];
  text(name, sizeof name, "matmul/%s/%d", class_name, n);
  declare(name, quick, text(problem_text, sizeof problem_text, "matmul %dx%d:%dx%d%s", n, n, n, n, words));
}

static void declare_layouts(int n, int quick) {
  static const char *const layouts[] = {"NN", "NT", "TN", "TT"}, *const words[] = {"nn", "nt", "tn", "tt"};
  char name[64], word[32];
  int t;
  for (t = 0; t < 4; t++)
    declare(text(name, sizeof name, "matmul/layout/%d/%s", n, layouts[t]), quick | ONE_THREAD,
            PROBLEM("matmul %dx%d:%dx%d%s", n, n, n, n, t ? text(word, sizeof word, " layout=%s", words[t]) : ""));
}

static void declare_skinny(void) {
  static const int skinny[] = {1, 2, 4, 8, 16};
  char name[64];
  int i;
  for (i = 0; i < 5; i++) {
    const int m = skinny[i], quick = i == 0 || i == 3 ? QUICK : 0;
    declare(text(name, sizeof name, "matmul/skinny/%dx4096x4096/NN", m), quick,
            PROBLEM("matmul %dx4096:4096x4096 cache=cold", m));
    declare(text(name, sizeof name, "matmul/skinny/%dx4096x4096/NT", m), quick,
            PROBLEM("matmul %dx4096:4096x4096 layout=nt cache=cold", m));
  }
  declare("matmul/skinny/4096x8x4096/NN", 0, "matmul 4096x4096:4096x8 cache=cold");
  declare("matmul/matvec/Ax", QUICK, "matmul 4096x4096:4096x1 cache=cold");
  declare("matmul/matvec/xA", QUICK, "matmul 1x4096:4096x4096 cache=cold");
}

static void declare_forced(mlk_isa isa, int n, int quick) {
  char class_name[32], words[32];
  if (opt.cuda || !mlk_isa_available(isa)) return;
  declare_square(text(class_name, sizeof class_name, "forced/%s", mlk_isa_name(isa)), n,
                 text(words, sizeof words, " isa=%s", mlk_isa_name(isa)), quick | ONE_THREAD);
}

/* Products of 16 bits, as large as fill a device. */
static void declare_narrow(const char *dtype) {
  static const int sizes[] = {512, 1024, 2048, 4096, 8192};
  char class_name[32], words[32];
  int i;
  for (i = 0; i < 5; i++)
    declare_square(text(class_name, sizeof class_name, "%s", dtype), sizes[i],
                   text(words, sizeof words, " dtype=%s", dtype), i == 3 ? QUICK : 0);
  declare(text(class_name, sizeof class_name, "matmul/%s/16x8192x8192", dtype), QUICK,
          PROBLEM("matmul 16x8192:8192x8192 dtype=%s cache=cold", dtype));
}

static void declare_matmul(void) {
  static const int large[] = {1024, 2048, 3000, 4096}, mid[] = {256, 384, 512, 768},
                   small[] = {32, 48, 64, 96, 128, 192}, tiny[] = {4, 8, 16}, strict[] = {128, 256, 512, 1024};
  static const struct { int n, batch; } batches[] = {{8, 10000}, {16, 4000}, {32, 1000}};
  char name[64];
  int i;
  for (i = 0; i < 4; i++) declare_square("large", large[i], "", i == 0 ? QUICK : i == 1 ? QUICK_ONE_THREAD : 0);
  for (i = 0; i < 4; i++) declare_square("mid", mid[i], "", i % 2 ? 0 : QUICK);
  for (i = 0; i < 6; i++) declare_square("small", small[i], "", ONE_THREAD | (i % 2 ? 0 : QUICK));
  for (i = 0; i < 3; i++) declare_square("tiny", tiny[i], "", ONE_THREAD | QUICK);
  declare_layouts(1024, 0);
  declare_layouts(200, QUICK);
  declare("matmul/layout/1024/odd_strides", ONE_THREAD, "matmul 1024x1024:1024x1024 pad=3");
  declare("matmul/layout/200/odd_strides", ONE_THREAD, "matmul 200x200:200x200 pad=3");
  declare("matmul/layout/511x1023x769", ONE_THREAD, "matmul 511x769:769x1023");
  declare_skinny();
  for (i = 0; i < 3; i++)
    declare(text(name, sizeof name, "matmul/batch/%dx%d^3", batches[i].batch, batches[i].n), QUICK,
            PROBLEM("matmul %dx%d:%dx%d batch=%d", batches[i].n, batches[i].n, batches[i].n, batches[i].n,
                    batches[i].batch));
  declare("matmul/epilogue/bias_gelu/512x3072x768", ONE_THREAD, "matmul 512x768:768x3072 epilogue=bias,gelu");
  declare("matmul/epilogue/bias_gelu/128x512x128", ONE_THREAD | QUICK, "matmul 128x128:128x512 epilogue=bias,gelu");
  declare("matmul/packed/16x1024x1024", ONE_THREAD | QUICK, "matmul 16x1024:1024x1024 packed=1");
  declare("matmul/packed/16x4096x4096", 0, "matmul 16x4096:4096x4096 packed=1 cache=cold");
  declare_forced(MLK_ISA_AVX2, 64, 0), declare_forced(MLK_ISA_AVX2, 256, QUICK);
  declare_forced(MLK_ISA_AVX2, 1024, QUICK), declare_forced(MLK_ISA_AVX2, 2048, 0);
  declare_forced(MLK_ISA_NEON, 256, QUICK), declare_forced(MLK_ISA_NEON, 1024, QUICK);
  declare_forced(MLK_ISA_SCALAR, 256, QUICK), declare_forced(MLK_ISA_SCALAR, 512, QUICK);
  for (i = 0; i < 4; i++)
    declare_square("strict_fast", strict[i], " numerics=strict,fast", ONE_THREAD | (i == 1 ? QUICK : 0));
  if (opt.cuda) declare_narrow("bf16"), declare_narrow("f16");
}

#endif
