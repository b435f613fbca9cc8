/* The rows of mlk_matmul. Operands are small integers, so every right result is exact in f32 whatever the order of its sums:
   D x is compared with A (B x) by == for a random integer vector x, in O(n^2), for every contender. */
#ifndef BENCH_ROWS_MATMUL_H
#define BENCH_ROWS_MATMUL_H

enum { MAX_COPIES = 48 };

typedef struct matmul_spec {
  const char *name; /* without "matmul/" and "/tN" */
  int64_t m, n, k, batch;
  int ta, tb;                             /* operand is stored transposed */
  int64_t pad;                            /* elements between the rows of every matrix */
  int threads;                            /* 0: 1 */
  int cold;                               /* operands rotate through copies that no cache holds */
  int quick;                              /* part of --quick; 2: on one thread only */
  mlk_isa isa;                            /* 0: the one of the run; else forced, without peers */
  int sgemv, packed, epilogue, fast, jit; /* extra contenders, see matmul_run */
} matmul_spec;

/* Everything a contender's call needs; each contender has its own copy of the struct, so its own place in the rotation. */
typedef struct matmul_run_state {
  matmul_spec s;
  int64_t lda, ldb, ldd, d_count;
  int copies, at;
  float *a[MAX_COPIES], *b[MAX_COPIES], *d, *bias, *expected;
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

static int next_copy(matmul_run_state *w) {
  const int at = w->at;
  w->at = at + 1 == w->copies ? 0 : at + 1;
  return at;
}

static void matmul_call(void *arg) {
  matmul_run_state *w = (matmul_run_state *)arg;
  if (mlk_matmul(w->ctx, &w->desc[next_copy(w)]) != MLK_OK) fill_nan(w->d, 1);
}

static void matmul_two_passes_call(void *arg) {
  matmul_run_state *w = (matmul_run_state *)arg;
  if (mlk_matmul(w->ctx, &w->desc[next_copy(w)]) != MLK_OK || mlk_matmul(w->ctx, &w->pass) != MLK_OK) fill_nan(w->d, 1);
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
  const matmul_run_state *w = (const matmul_run_state *)arg;
  const matmul_spec *s = &w->s;
  const int which = (int)(w->peer - peers);
  int64_t i;
  if (s->threads > 1) peer_set_threads(which, 1);
#ifdef _OPENMP
#pragma omp parallel for num_threads(s->threads) if (s->threads > 1)
#endif
  for (i = 0; i < s->batch; i++)
    peer_gemm(w, w->a[0] + i * s->m * s->k, w->b[0] + i * s->k * s->n, w->d + i * s->m * s->n);
  if (s->threads > 1) peer_set_threads(which, s->threads);
}

static void peer_batch_call(void *arg) {
  const matmul_run_state *w = (const matmul_run_state *)arg;
  const matmul_spec *s = &w->s;
  w->peer->sgemm_batch(101, 111, 111, (int)s->m, (int)s->n, (int)s->k, 1, w->a[0], (int)w->lda, (int)(s->m * s->k),
                       w->b[0], (int)w->ldb, (int)(s->k * s->n), 0, w->d, (int)w->ldd, (int)(s->m * s->n),
                       (int)s->batch);
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
  fill_nan(w->d, w->d_count);
}

/* out = op(stored) x, for op(stored) of rows x columns, exact: all numbers are integers below 2^53. Walks memory in order. */
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

/* The bound holds a relative error of a few units in the last place of the epilogue. */
static void epilogue_check(const matmul_run_state *w, char *why, size_t size) {
  int64_t i;
  for (i = 0; i < w->d_count; i++) {
    const double e = (double)w->expected[i], error = fabs((double)w->d[i] - e);
    if (!(error <= 1e-6 * (1 + fabs(e)))) {
      text(why, size, "element %lld is %.9g, but should be %.9g", (long long)i, (double)w->d[i], e);
      return;
    }
  }
}

static void matmul_check(void *arg, const contender *who, char *why, size_t size) {
  const matmul_run_state *w = (const matmul_run_state *)arg;
  const matmul_spec *s = &w->s;
  double *dx;
  int64_t p, i;
  if (s->epilogue && strcmp(who->name, "mlk product only") != 0) {
    epilogue_check(w, why, size);
    return;
  }
  dx = (double *)malloc((size_t)(s->m + 1) * sizeof *dx);
  if (!dx) die("no memory");
  for (p = 0; p < s->batch && !why[0]; p++) {
    times_vector(w->d + p * s->m * w->ldd, w->ldd, 0, s->m, s->n, w->x, dx);
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

static mlk_tensor stored_view(float *data, int64_t rows, int64_t columns, int64_t ld, int transposed) {
  const mlk_tensor t = mlk_with_row_stride(transposed ? mlk_f32(data, columns, rows) : mlk_f32(data, rows, columns),
                                           ld);
  return transposed ? mlk_transposed(t) : t;
}

/* The state shared by all contenders of a row: operands, descriptors, the expected projection. */
static void matmul_prepare(matmul_run_state *w, const matmul_spec *spec) {
  matmul_spec *s = &w->s;
  int64_t a_count, b_count, p, i;
  double *bx;
  uint64_t seed = 20;
  int c;
  memset(w, 0, sizeof *w);
  *s = *spec;
  w->alpha = 1;
  w->lda = (s->ta ? s->m : s->k) + s->pad, w->ldb = (s->tb ? s->k : s->n) + s->pad, w->ldd = s->n + s->pad;
  a_count = s->batch * (s->ta ? s->k : s->m) * w->lda, b_count = s->batch * (s->tb ? s->n : s->k) * w->ldb;
  w->d_count = s->batch * s->m * w->ldd;
  w->copies = 1;
  if (s->cold) {
    const int64_t bytes = (a_count + b_count) * 4, enough = 4 * (int64_t)last_cache_bytes();
    w->copies = (int)((enough + bytes - 1) / bytes);
    if (w->copies < 2) w->copies = 2;
    if (w->copies > MAX_COPIES) w->copies = MAX_COPIES;
  }
  w->d = row_floats(w->d_count);
  w->bias = row_floats(s->n);
  for (i = 0; i < s->n; i++) w->bias[i] = (float)random_int(&seed, -16, 16) / 8;
  for (c = 0; c < w->copies; c++) {
    w->a[c] = row_floats(a_count), w->b[c] = row_floats(b_count);
    if (c == 0)
      fill_small_integers(w->a[0], a_count, 1), fill_small_integers(w->b[0], b_count, 2);
    else
      memcpy(w->a[c], w->a[0], (size_t)a_count * 4), memcpy(w->b[c], w->b[0], (size_t)b_count * 4);
    if (s->batch > 1) {
      w->desc[c].a = mlk_f32(w->a[c], s->batch, s->m, s->k);
      w->desc[c].b = mlk_f32(w->b[c], s->batch, s->k, s->n);
      w->desc[c].d = mlk_f32(w->d, s->batch, s->m, s->n);
    } else {
      w->desc[c].a = stored_view(w->a[c], s->m, s->k, w->lda, s->ta);
      w->desc[c].b = stored_view(w->b[c], s->k, s->n, w->ldb, s->tb);
      w->desc[c].d = stored_view(w->d, s->m, s->n, w->ldd, 0);
    }
  }
  w->x = (double *)row_alloc((size_t)s->n * sizeof(double));
  w->ax = (double *)row_alloc((size_t)(s->batch * s->m) * sizeof(double));
  bx = (double *)row_alloc((size_t)s->k * sizeof(double));
  for (i = 0; i < s->n; i++) w->x[i] = random_int(&seed, -1024, 1024);
  for (p = 0; p < s->batch; p++) {
    times_vector(w->b[0] + p * s->k * s->n, w->ldb, s->tb, s->k, s->n, w->x, bx);
    times_vector(w->a[0] + p * s->m * s->k, w->lda, s->ta, s->m, s->k, bx, w->ax + p * s->m);
  }
  w->ctx = context(s->threads, s->isa, MLK_STRICT);
}

/* A power of two keeps the products exact. Expected: libm's erf on a product that has itself passed the projection. */
static void epilogue_prepare(matmul_run_state *w) {
  matmul_spec *s = &w->s;
  contender plain;
  int64_t i, j;
  int c;
  memset(&plain, 0, sizeof plain);
  text(plain.name, sizeof plain.name, "mlk product only");
  plain.peer = -1;
  w->alpha = 1.0f / 64;
  for (c = 0; c < w->copies; c++) w->desc[c].alpha = &w->alpha;
  w->at = 0;
  matmul_spoil(w);
  matmul_call(w);
  matmul_check(w, &plain, plain.wrong, sizeof plain.wrong);
  w->expected = row_floats(w->d_count);
  for (i = 0; i < s->m; i++)
    for (j = 0; j < s->n; j++) {
      const double t = (double)w->d[i * w->ldd + j] + (double)w->bias[j];
      w->expected[i * w->ldd + j] = plain.wrong[0] ? NAN : (float)(t / 2 * (1 + erf(t * 0.70710678118654752440)));
    }
  w->pass.a = mlk_f32(w->a[0], s->m, 0), w->pass.b = mlk_f32(w->b[0], 0, s->n);
  w->pass.d = w->pass.c = w->desc[0].d;
  w->pass.bias = mlk_f32(w->bias, s->n);
  w->pass.activation = MLK_GELU;
}

static matmul_run_state matmul_states[MAX_CONTENDERS]; /* [0] is the one that all others start as */
static int matmul_state_count;

static matmul_run_state *another_state(int peer_index) {
  matmul_run_state *w;
  if (matmul_state_count == MAX_CONTENDERS) die("too many contenders");
  w = &matmul_states[matmul_state_count++];
  if (w != matmul_states) *w = matmul_states[0];
  w->peer = peer_index >= 0 ? &peers[peer_index] : NULL;
  w->at = 0;
  return w;
}

static void add_packed(row *r, const matmul_spec *s) {
  matmul_run_state *w = another_state(-1);
  int c;
  for (c = 0; c < w->copies; c++) {
    mlk_packed size;
    memset(&size, 0, sizeof size);
    if (mlk_matmul_pack(w->ctx, w->desc[c].b, NULL, 0, &size) == MLK_OK) {
      void *buffer = row_alloc((size_t)size.bytes);
      if (mlk_matmul_pack(w->ctx, w->desc[c].b, buffer, size.bytes, &w->packed[c]) == MLK_OK)
        w->desc[c].packed_b = &w->packed[c];
    }
    memset(&w->desc[c].b, 0, sizeof w->desc[c].b);
  }
  row_add(r, "mlk", -1, matmul_call, w);
  row_add(r, "mlk unpacked", -1, matmul_call, another_state(-1));
  if (peers[MKL].present && mkl_only.pack_size && mkl_only.pack && mkl_only.compute) {
    w = another_state(MKL);
    for (c = 0; c < w->copies; c++) {
      w->peer_packed[c] = (float *)row_alloc(mkl_only.pack_size(162, (int)s->m, (int)s->n, (int)s->k));
      mkl_only.pack(101, 162, 111, (int)s->m, (int)s->n, (int)s->k, 1, w->b[c], (int)w->ldb, w->peer_packed[c]);
    }
    row_add(r, "mkl packed", MKL, mkl_packed_call, w);
  }
}

static void add_jit(row *r, const matmul_spec *s) {
  matmul_run_state *w;
  if (!peers[MKL].present || !mkl_only.jit_create || !mkl_only.jit_get || s->pad) return;
  w = another_state(MKL);
  if (mkl_only.jit_create(&w->jitter, 101, s->ta ? 112 : 111, s->tb ? 112 : 111, (int)s->m, (int)s->n, (int)s->k, 1,
                          (int)w->lda, (int)w->ldb, 0, (int)w->ldd) == 2)
    return; /* 2: MKL_JIT_ERROR; 1 means a kernel without just-in-time code, which is a result too */
  w->jit_kernel = mkl_only.jit_get(w->jitter);
  row_add(r, "mkl jit", MKL, mkl_jit_call, w);
}

static void matmul_run(matmul_spec s) {
  char name[96];
  row r;
  matmul_run_state *w;
  const int forced = s.isa != MLK_ISA_BEST;
  int p;
  if (s.threads == 0) s.threads = 1;
  if (s.batch == 0) s.batch = 1;
  if (!forced) s.isa = opt.isa;
  if (forced && !mlk_isa_available(s.isa)) return;
  text(name, sizeof name, "matmul/%s/t%d", s.name, s.threads);
  if (!row_wanted(name, s.quick == 1 || (s.quick == 2 && s.threads == 1))) return;
  row_begin(&r, name, s.threads, s.isa);
  r.flops = 2.0 * (double)s.m * (double)s.n * (double)s.k * (double)s.batch;
  if (s.cold)
    r.bytes = 4 * ((double)s.m * (double)s.k + (double)s.k * (double)s.n + (double)s.m * (double)s.n) * (double)s.batch;
  r.operations = s.batch;
  matmul_state_count = 0;
  matmul_prepare(&matmul_states[0], &s);
  if (s.epilogue) epilogue_prepare(&matmul_states[0]);
  w = another_state(-1);
  r.spoil = matmul_spoil, r.check = matmul_check, r.arg = w;

  if (s.packed) {
    add_packed(&r, &s);
  } else if (s.epilogue) {
    matmul_run_state *fused = another_state(-1);
    for (p = 0; p < fused->copies; p++)
      fused->desc[p].bias = mlk_f32(fused->bias, s.n), fused->desc[p].activation = MLK_GELU;
    row_add(&r, "mlk", -1, matmul_call, fused);
    row_add(&r, "mlk product only", -1, matmul_call, another_state(-1));
    row_add(&r, "mlk two passes", -1, matmul_two_passes_call, another_state(-1));
  } else {
    row_add(&r, "mlk", -1, matmul_call, another_state(-1));
  }
  if (s.fast) {
    matmul_run_state *fast = another_state(-1);
    fast->ctx = context(s.threads, s.isa, MLK_FAST);
    row_add(&r, "mlk fast", -1, matmul_call, fast);
  }
  for (p = 0; p < PEER_COUNT && !forced && !s.fast; p++) {
    if (!peers[p].sgemm && !peers[p].dnnl_sgemm) continue;
    if (s.batch > 1) {
      char loop[32];
      row_add(&r, text(loop, sizeof loop, "%s loop", peers[p].name), p, peer_batch_loop_call, another_state(p));
      if (peers[p].sgemm_batch) row_add(&r, peers[p].name, p, peer_batch_call, another_state(p));
    } else if (s.epilogue) {
      row_add(&r, peers[p].name, p, peer_gemm_and_pass_call, another_state(p));
    } else {
      row_add(&r, peers[p].name, p, peer_gemm_call, another_state(p));
      if (s.sgemv && peers[p].sgemv) {
        char gemv[32];
        row_add(&r, text(gemv, sizeof gemv, "%s gemv", peers[p].name), p, peer_gemv_call, another_state(p));
      }
    }
  }
  if (s.jit && !forced) add_jit(&r, &s);
  row_run(&r);
  for (p = 0; p < matmul_state_count; p++)
    if (matmul_states[p].jitter && mkl_only.jit_destroy) mkl_only.jit_destroy(matmul_states[p].jitter);
}

/* The row on one thread, and on all of them where the machine has more. */
static void matmul_run_1_and_n(matmul_spec s) {
  s.threads = 1;
  matmul_run(s);
  s.threads = opt.threads;
  if (opt.threads > 1) matmul_run(s);
}

static void rows_matmul(void) {
  static const int large[] = {1024, 2048, 3000, 4096}, mid[] = {256, 384, 512, 768},
                   small[] = {32, 48, 64, 96, 128, 192}, tiny[] = {4, 8, 16}, layout[] = {1024, 200},
                   skinny[] = {1, 2, 4, 8, 16}, strict[] = {128, 256, 512, 1024};
  static const struct { int n, batch; } batches[] = {{8, 10000}, {16, 4000}, {32, 1000}};
  static const struct {
    mlk_isa isa;
    int n;
  } forced[] = {{MLK_ISA_AVX2, 64},  {MLK_ISA_AVX2, 256},  {MLK_ISA_AVX2, 1024},  {MLK_ISA_AVX2, 2048},
                {MLK_ISA_NEON, 256}, {MLK_ISA_NEON, 1024}, {MLK_ISA_SCALAR, 256}, {MLK_ISA_SCALAR, 512}};
  char name[96];
  size_t i;
  int t;
#define COUNT(array) (sizeof(array) / sizeof *(array))
#define NAMED(...)   text(name, sizeof name, __VA_ARGS__)
  for (i = 0; i < COUNT(large); i++)
    matmul_run_1_and_n((matmul_spec){NAMED("large/%d", large[i]), .m = large[i], .n = large[i], .k = large[i],
                                     .quick = i == 0   ? 1
                                              : i == 1 ? 2
                                                       : 0});
  for (i = 0; i < COUNT(mid); i++)
    matmul_run_1_and_n(
        (matmul_spec){NAMED("mid/%d", mid[i]), .m = mid[i], .n = mid[i], .k = mid[i], .quick = i % 2 == 0});
  for (i = 0; i < COUNT(small); i++)
    matmul_run((matmul_spec){NAMED("small/%d", small[i]), .m = small[i], .n = small[i], .k = small[i], .jit = 1,
                             .quick = i % 2 == 0});
  for (i = 0; i < COUNT(tiny); i++)
    matmul_run(
        (matmul_spec){NAMED("tiny/%d", tiny[i]), .m = tiny[i], .n = tiny[i], .k = tiny[i], .jit = 1, .quick = 1});
  for (i = 0; i < COUNT(layout); i++)
    for (t = 0; t < 4; t++)
      matmul_run((matmul_spec){NAMED("layout/%d/%c%c", layout[i], t & 2 ? 'T' : 'N', t & 1 ? 'T' : 'N'), .m = layout[i],
                               .n = layout[i], .k = layout[i], .ta = t >> 1, .tb = t & 1, .quick = i == 1});
  for (i = 0; i < COUNT(layout); i++)
    matmul_run((matmul_spec){NAMED("layout/%d/odd_strides", layout[i]), .m = layout[i], .n = layout[i], .k = layout[i],
                             .pad = 3});
  matmul_run((matmul_spec){NAMED("layout/511x1023x769"), .m = 511, .n = 1023, .k = 769});
  for (i = 0; i < COUNT(skinny); i++)
    for (t = 0; t < 2; t++)
      matmul_run_1_and_n((matmul_spec){NAMED("skinny/%dx4096x4096/%s", skinny[i], t ? "NT" : "NN"), .m = skinny[i],
                                       .n = 4096, .k = 4096, .tb = t, .cold = 1, .quick = i == 0 || i == 3});
  matmul_run_1_and_n((matmul_spec){NAMED("skinny/4096x8x4096/NN"), .m = 4096, .n = 8, .k = 4096, .cold = 1});
  matmul_run_1_and_n(
      (matmul_spec){NAMED("matvec/Ax"), .m = 4096, .n = 1, .k = 4096, .cold = 1, .sgemv = 1, .quick = 1});
  matmul_run_1_and_n(
      (matmul_spec){NAMED("matvec/xA"), .m = 1, .n = 4096, .k = 4096, .cold = 1, .sgemv = 1, .quick = 1});
  for (i = 0; i < COUNT(batches); i++)
    matmul_run_1_and_n((matmul_spec){NAMED("batch/%dx%d^3", batches[i].batch, batches[i].n), .m = batches[i].n,
                                     .n = batches[i].n, .k = batches[i].n, .batch = batches[i].batch, .quick = 1});
  matmul_run((matmul_spec){NAMED("epilogue/bias_gelu/512x3072x768"), .m = 512, .n = 3072, .k = 768, .epilogue = 1});
  matmul_run(
      (matmul_spec){NAMED("epilogue/bias_gelu/128x512x128"), .m = 128, .n = 512, .k = 128, .epilogue = 1, .quick = 1});
  matmul_run((matmul_spec){NAMED("packed/16x1024x1024"), .m = 16, .n = 1024, .k = 1024, .packed = 1, .quick = 1});
  matmul_run_1_and_n(
      (matmul_spec){NAMED("packed/16x4096x4096"), .m = 16, .n = 4096, .k = 4096, .packed = 1, .cold = 1});
  for (i = 0; i < COUNT(forced); i++)
    matmul_run((matmul_spec){NAMED("forced/%s/%d", mlk_isa_name(forced[i].isa), forced[i].n), .m = forced[i].n,
                             .n = forced[i].n, .k = forced[i].n, .isa = forced[i].isa,
                             .quick = forced[i].n <= 1024 && i != 0});
  for (i = 0; i < COUNT(strict); i++)
    matmul_run((matmul_spec){NAMED("strict_fast/%d", strict[i]), .m = strict[i], .n = strict[i], .k = strict[i],
                             .fast = 1, .quick = i == 1});
#undef NAMED
#undef COUNT
}

#endif
