/* test_cuda_matmul.c - matrix products that only devices do: 16-bit operands, and f32 ones with MLK_FAST. Small whole
   numbers must come out exactly; of other numbers each sum must lie within the bound of
   docs/numerics.md for tensor cores. */

#include "test.h"

#include <math.h>
#include <stdlib.h>

#if defined(MLKT_CUDA_EMULATED)
#include "cuda_emulator_control.h"
#endif

enum { OPERANDS = 7, NAMES_MAX = 16 };
typedef enum role { A, B, D, C, BIAS, RESIDUAL, PREACT } role;

/* A matrix of a batch with any layout. value: row-major [batch][rows][cols], exactly what the
   device's elements hold. */
typedef struct matrix {
  int present, dtype, form;  /* form: of its layout, see lay_out; 0: any */
  int64_t batch, rows, cols; /* 1: repeated */
  double *value;
  mlk_tensor view; /* in the device's memory */
  void *memory, *image;
  uint64_t bytes;
} matrix;

typedef struct product {
  int64_t batch, m, n, k;
  int whole; /* small whole numbers */
  float alpha, beta;
  mlk_activation activation;
  matrix x[OPERANDS];
} product;

static mlk_context *cpu; /* converts */

static int width_of(int dtype) { return dtype == MLK_F32 ? 4 : 2; }

/* values[0 .. n) rounded to dtype, as elements and as what these hold. */
static void round_values(int dtype, double *values, void *elements, int64_t n) {
  float *f = (float *)malloc((size_t)n * 4 + 4);
  mlk_map_desc copy;
  int64_t i;
  for (i = 0; i < n; i++) f[i] = (float)values[i];
  memset(&copy, 0, sizeof copy);
  copy.a = mlk_f32(f, n), copy.out = mlk_f32((float *)elements, n);
  copy.out.dtype = dtype;
  CHECK_OK(cpu, mlk_map(cpu, &copy));
  copy.a = copy.out, copy.out = mlk_f32(f, n);
  CHECK_OK(cpu, mlk_map(cpu, &copy));
  for (i = 0; i < n; i++) values[i] = f[i];
  free(f);
}

static void widen(int dtype, const void *elements, double *values, int64_t n) {
  float *f = (float *)malloc((size_t)n * 4 + 4);
  mlk_map_desc copy;
  int64_t i;
  memset(&copy, 0, sizeof copy);
  copy.a = mlk_f32((float *)(uintptr_t)elements, n), copy.out = mlk_f32(f, n);
  copy.a.dtype = dtype;
  CHECK_OK(cpu, mlk_map(cpu, &copy));
  for (i = 0; i < n; i++) values[i] = f[i];
  free(f);
}

static int64_t place(const matrix *x, int64_t b, int64_t i, int64_t j) {
  const int64_t *s = x->view.stride;
  return b * s[0] + i * s[1] + j * s[2];
}

/* Strides for x: rows or columns dense or neither, with or without padding, aligned to eight elements or not; its
   memory on the device, rogue around the elements. Of the forms 1 to 6, 1 to 3 are aligned, 2 and
   5 have dense columns. */
static int lay_out(mlk_context *ctx, matrix *x, mlkt_rng *rng) {
  const int width = width_of(x->dtype), form = x->form ? x->form - 1 : (int)mlkt_int(rng, 0, 5), aligned = form < 3;
  const int64_t pad = aligned ? 8 : mlkt_int(rng, 0, 3), first = aligned ? 0 : mlkt_int(rng, 0, 3),
                inner = form == 5 ? 2 : 1;
  const int64_t n = x->batch * x->rows * x->cols;
  int64_t *s = x->view.stride, b, i, j, across, along;
  char *elements = (char *)malloc((size_t)(n * width) + 8);
  const int columns_dense = form % 3 == 1;
  across = columns_dense ? x->cols : x->rows, along = columns_dense ? x->rows : x->cols;
  along = along * inner + pad;
  if (aligned) along = (along + 7) / 8 * 8;
  memset(&x->view, 0, sizeof x->view);
  x->view.rank = 3, x->view.dtype = x->dtype;
  x->view.shape[0] = x->batch, x->view.shape[1] = x->rows, x->view.shape[2] = x->cols;
  s[0] = along * across, s[1] = columns_dense ? inner : along, s[2] = columns_dense ? along : inner;
  x->bytes = (uint64_t)((first + x->batch * s[0] + 1) * width);
  x->image = malloc((size_t)x->bytes);
  memset(x->image, 0xFF, (size_t)x->bytes); /* NaN in every type */
  if (!CHECK_OK(ctx, mlk_alloc(ctx, x->bytes, &x->memory))) return 0;
  round_values(x->dtype, x->value, elements, n);
  for (b = 0; b < x->batch; b++)
    for (i = 0; i < x->rows; i++)
      for (j = 0; j < x->cols; j++)
        memcpy((char *)x->image + (first + place(x, b, i, j)) * width,
               elements + ((b * x->rows + i) * x->cols + j) * width, (size_t)width);
  free(elements);
  x->view.data = (char *)x->memory + first * width;
  return CHECK_OK(ctx, mlk_copy(ctx, x->memory, x->image, x->bytes));
}

static void fill(matrix *x, int whole, double scale, mlkt_rng *rng) {
  const int64_t n = x->batch * x->rows * x->cols;
  int64_t i;
  x->value = (double *)malloc((size_t)n * sizeof(double) + 8);
  for (i = 0; i < n; i++) x->value[i] = whole ? (double)mlkt_int(rng, -2, 2) : scale * (double)mlkt_signed(rng);
}

static double activate(mlk_activation activation, double t) {
  if (activation == MLK_RELU) return t < 0 ? 0 : t;
  if (activation == MLK_GELU) return t / 2 * (1 + erf(t / sqrt(2.0)));
  if (activation == MLK_TANH) return tanh(t);
  if (activation == MLK_SILU) return t / (1 + exp(-t));
  return t;
}

static double element(const matrix *x, int64_t b, int64_t i, int64_t j) {
  return x->value[((x->batch == 1 ? 0 : b) * x->rows + (x->rows == 1 ? 0 : i)) * x->cols + (x->cols == 1 ? 0 : j)];
}

/* Checks an output that should be want with an error of at most bound before its rounding. */
static void check_output(const product *p, const matrix *out, const double *want, const double *bound,
                         const char *name) {
  const int width = width_of(out->dtype);
  const int64_t n = p->batch * p->m * p->n, first = (char *)out->view.data - (char *)out->memory;
  const double rounding = out->dtype == MLK_F16 ? 0x1p-11 : out->dtype == MLK_BF16 ? 0x1p-8 : 0x1p-24;
  char *elements = (char *)malloc((size_t)(n * width) + 8);
  double *got = (double *)malloc((size_t)n * sizeof(double) + 8),
         *exact = (double *)malloc((size_t)n * sizeof(double) + 8);
  int64_t b, i, j, at = 0;
  for (b = 0; b < p->batch; b++)
    for (i = 0; i < p->m; i++)
      for (j = 0; j < p->n; j++, at++)
        memcpy(elements + at * width, (char *)out->image + first + place(out, b, i, j) * width, (size_t)width);
  widen(out->dtype, elements, got, n);
  memcpy(exact, want, (size_t)n * sizeof(double));
  if (p->whole) round_values(out->dtype, exact, elements, n);
  for (at = 0; at < n; at++) {
    const double allowed = p->whole ? 0 : bound[at] + rounding * (fabs(want[at]) + bound[at]) + 0x1p-24;
    if (!(fabs(got[at] - exact[at]) <= allowed)) {
      CHECK_MSG(0, "%s[%lld] is %.9g, expected %.9g with an error of at most %.3g", name, (long long)at, got[at],
                exact[at], allowed);
      break;
    }
  }
  CHECK(at == n);
  free(elements), free(got), free(exact);
}

/* Nothing but D's elements was written. */
static void check_around(const product *p, const matrix *out, const char *name) {
  const int width = width_of(out->dtype);
  const int64_t first = (char *)out->view.data - (char *)out->memory;
  char *const image = (char *)out->image;
  int64_t b, i, j, at;
  for (b = 0; b < p->batch; b++)
    for (i = 0; i < p->m; i++)
      for (j = 0; j < p->n; j++) memset(image + first + place(out, b, i, j) * width, 0xFF, (size_t)width);
  for (at = 0; at < (int64_t)out->bytes && (unsigned char)image[at] == 0xFF; at++) continue;
  CHECK_MSG(at == (int64_t)out->bytes, "%s: byte %lld beside its elements was written", name, (long long)at);
}

/* want and bound of D and preact. unit: relative error of a sum of k terms is (k + 2) 2^-23 + unit. */
static void expect(const product *p, double unit, double *want, double *bound, double *before, double *before_bound) {
  int64_t b, i, j, l, at = 0;
  for (b = 0; b < p->batch; b++)
    for (i = 0; i < p->m; i++)
      for (j = 0; j < p->n; j++, at++) {
        double sum = 0, size = 0, t, e, steepest;
        for (l = 0; l < p->k && p->alpha != 0; l++) {
          const double x = element(&p->x[A], b, i, l) * element(&p->x[B], b, l, j);
          sum += x, size += fabs(x);
        }
        t = (double)p->alpha * sum;
        e = fabs((double)p->alpha) * size * ((double)(p->k + 2) * 0x1p-23 + unit);
        if (p->x[BIAS].present) t += element(&p->x[BIAS], b, i, j);
        if (p->beta != 0) t += (double)p->beta * element(&p->x[C], b, i, j);
        e += 0x1p-22 * (fabs(t) + fabs((double)p->alpha) * size + 4);
        before[at] = t, before_bound[at] = e;
        steepest = p->activation == MLK_GELU || p->activation == MLK_SILU ? 1.13 : 1;
        t = activate(p->activation, t), e = steepest * e + 0x1p-20 * fabs(t);
        if (p->x[RESIDUAL].present) t += element(&p->x[RESIDUAL], b, i, j);
        want[at] = t, bound[at] = e + 0x1p-23 * fabs(t);
      }
}

/* Shapes, types and values of a product; dtype of A and B. */
static void choose(product *p, int dtype, int whole, int epilogue, mlkt_rng *rng) {
  int r;
  p->whole = whole;
  p->alpha = 1, p->beta = 0, p->activation = MLK_NONE;
  if (epilogue) {
    static const float scalars[] = {1.0f, 2.0f, -0.5f, 0.0f};
    static const mlk_activation whole_ones[] = {MLK_NONE, MLK_RELU},
                                others[] = {MLK_NONE, MLK_RELU, MLK_GELU, MLK_TANH, MLK_SILU};
    p->alpha = scalars[mlkt_int(rng, 0, 20) == 0 ? 3 : mlkt_int(rng, 0, 2)];
    p->beta = scalars[mlkt_int(rng, 0, 3)];
    p->activation = whole ? whole_ones[mlkt_int(rng, 0, 1)] : others[mlkt_int(rng, 0, 4)];
  }
  for (r = 0; r < OPERANDS; r++) {
    matrix *x = &p->x[r];
    memset(x, 0, sizeof *x);
    x->present = r <= D || (r == C ? p->beta != 0 : epilogue && mlkt_int(rng, 0, 1));
    x->dtype = r <= B || mlkt_int(rng, 0, 1) ? dtype : MLK_F32;
    x->rows = r == B ? p->k : p->m, x->cols = r == A ? p->k : p->n, x->batch = p->batch;
    if (r <= B && mlkt_int(rng, 0, 2) == 0) x->batch = 1;
    if (r == BIAS || r == RESIDUAL || r == C) {
      if (mlkt_int(rng, 0, 1)) x->batch = 1;
      if (mlkt_int(rng, 0, 1) && r != RESIDUAL) x->rows = 1;
      if (mlkt_int(rng, 0, 3) == 0 && r != RESIDUAL) x->cols = 1;
    }
    if (x->present) fill(x, whole, 1, rng);
  }
}

static void note_product(const product *p, const char *variant) {
  mlkt_note("%s of %s: batch %lld, M %lld, N %lld, K %lld, alpha %g, beta %g, activation %d, %s%s%s", variant,
            p->x[A].dtype == MLK_F32   ? "f32"
            : p->x[A].dtype == MLK_F16 ? "f16"
                                       : "bf16",
            (long long)p->batch, (long long)p->m, (long long)p->n, (long long)p->k, (double)p->alpha, (double)p->beta,
            (int)p->activation, p->x[BIAS].present ? "bias " : "", p->x[RESIDUAL].present ? "residual " : "",
            p->x[PREACT].present ? "preact" : "");
}

/* Runs p and checks every output; gives the variant. */
static const char *run_product(mlk_context *ctx, product *p, mlkt_rng *rng) {
  const size_t bytes = (size_t)(p->batch * p->m * p->n) * sizeof(double) + 8;
  double *want = (double *)malloc(bytes), *bound = (double *)malloc(bytes), *before = (double *)malloc(bytes),
         *before_bound = (double *)malloc(bytes);
  mlk_matmul_desc desc;
  mlk_plan plan;
  int r, fine = 1, in_place = 0;
  memset(&desc, 0, sizeof desc), memset(&plan, 0, sizeof plan);
  for (r = 0; r < OPERANDS; r++)
    if (p->x[r].present) fine = fine && lay_out(ctx, &p->x[r], rng);
  desc.a = p->x[A].view, desc.b = p->x[B].view, desc.d = p->x[D].view, desc.c = p->x[C].view;
  desc.bias = p->x[BIAS].view, desc.residual = p->x[RESIDUAL].view, desc.preact = p->x[PREACT].view;
  desc.alpha = &p->alpha, desc.beta = &p->beta, desc.activation = p->activation;
  if (p->beta != 0 && p->x[C].batch == p->batch && p->x[C].rows == p->m && p->x[C].cols == p->n &&
      mlkt_int(rng, 0, 1)) {
    matrix free_d = p->x[D]; /* D is C */
    in_place = 1;
    p->x[D] = p->x[C], p->x[C] = free_d;
    p->x[C].value = p->x[D].value, p->x[D].value = free_d.value;
    desc.d = p->x[D].view;
    memset(&desc.c, 0, sizeof desc.c);
  }
  expect(p, p->x[A].dtype == MLK_F32 ? 0x1p-10 : 0, want, bound, before, before_bound);
  if (fine && CHECK_OK(ctx, mlk_matmul_plan(ctx, &desc, &plan))) {
    note_product(p, plan.variant);
    CHECK(plan.seconds > 0);
    CHECK_OK(ctx, mlk_reserve(ctx, plan.workspace_bytes, MLK_FIXED));
    CHECK_OK(ctx, mlk_matmul(ctx, &desc));
    CHECK_OK(ctx, mlk_copy(ctx, p->x[D].image, p->x[D].memory, p->x[D].bytes));
    if (p->x[PREACT].present) CHECK_OK(ctx, mlk_copy(ctx, p->x[PREACT].image, p->x[PREACT].memory, p->x[PREACT].bytes));
    CHECK_OK(ctx, mlk_sync(ctx));
    check_output(p, &p->x[D], want, bound, in_place ? "d, which is c," : "d");
    check_around(p, &p->x[D], "d");
    if (p->x[PREACT].present) {
      check_output(p, &p->x[PREACT], before, before_bound, "preact");
      check_around(p, &p->x[PREACT], "preact");
    }
  }
  for (r = 0; r < OPERANDS; r++) {
    if (p->x[r].memory) mlk_free(ctx, p->x[r].memory, p->x[r].bytes);
    free(p->x[r].image), free(p->x[r].value);
  }
  free(want), free(bound), free(before), free(before_bound);
  return plan.variant ? plan.variant : "";
}

/* The same tensor in the host's memory: of image, which lies as x's memory does. */
static mlk_tensor on_host(const matrix *x, void *image) {
  mlk_tensor t = x->view;
  if (x->present) t.data = (char *)image + ((char *)x->view.data - (char *)x->memory);
  return t;
}

/* Runs p, f32 and strict, there and here: every bit of the outputs and of what lies around them. Gives the variant. */
static const char *run_strict(mlk_context *ctx, product *p, mlkt_rng *rng) {
  mlk_matmul_desc desc, here;
  mlk_plan plan;
  int r, fine = 1;
  memset(&desc, 0, sizeof desc), memset(&plan, 0, sizeof plan);
  for (r = 0; r < OPERANDS; r++)
    if (p->x[r].present) fine = fine && lay_out(ctx, &p->x[r], rng);
  desc.a = p->x[A].view, desc.b = p->x[B].view, desc.d = p->x[D].view, desc.c = p->x[C].view;
  desc.bias = p->x[BIAS].view, desc.residual = p->x[RESIDUAL].view, desc.preact = p->x[PREACT].view;
  desc.alpha = &p->alpha, desc.beta = &p->beta, desc.activation = p->activation;
  here = desc;
  here.a = on_host(&p->x[A], p->x[A].image), here.b = on_host(&p->x[B], p->x[B].image);
  here.d = on_host(&p->x[D], p->x[D].image), here.c = on_host(&p->x[C], p->x[C].image);
  here.bias = on_host(&p->x[BIAS], p->x[BIAS].image), here.residual = on_host(&p->x[RESIDUAL], p->x[RESIDUAL].image);
  here.preact = on_host(&p->x[PREACT], p->x[PREACT].image);
  if (fine && CHECK_OK(ctx, mlk_matmul_plan(ctx, &desc, &plan))) {
    note_product(p, plan.variant);
    CHECK_OK(ctx, mlk_matmul(ctx, &desc));
    CHECK_OK(cpu, mlk_matmul(cpu, &here));
    for (r = D; r < OPERANDS; r++) {
      float *got;
      if (!p->x[r].present || (r != D && r != PREACT)) continue;
      got = (float *)malloc((size_t)p->x[r].bytes);
      CHECK_OK(ctx, mlk_copy(ctx, got, p->x[r].memory, p->x[r].bytes));
      CHECK_OK(ctx, mlk_sync(ctx));
      CHECK_BITS_F32_N(got, (float *)p->x[r].image, p->x[r].bytes / 4);
      free(got);
    }
  }
  for (r = 0; r < OPERANDS; r++) {
    if (p->x[r].memory) mlk_free(ctx, p->x[r].memory, p->x[r].bytes);
    free(p->x[r].image), free(p->x[r].value);
  }
  return plan.variant ? plan.variant : "";
}

/* A context on the device. Of an emulated one: its compute capability, and how many multiprocessors, by which the
   choice of tiles can be turned. */
static mlk_context *open_device(mlk_numerics numerics, int cc, int multiprocessors) {
  mlk_context_desc desc;
  mlk_context *ctx = NULL;
#if defined(MLKT_CUDA_EMULATED)
  mlkt_emu_device(1, cc, multiprocessors);
#else
  (void)cc, (void)multiprocessors;
#endif
  desc = mlkt_context_desc(MLK_ISA_BEST, 1);
  desc.numerics = numerics;
  CHECK_STATUS(NULL, mlk_open(&ctx, &desc), MLK_OK);
  return ctx;
}

static int start(void) {
  mlk_context_desc desc;
  if (!mlkt_opt.cuda) {
    mlkt_skip("only with --cuda");
    return 0;
  }
  memset(&desc, 0, sizeof desc);
  desc.threads = 1;
  return CHECK_STATUS(NULL, mlk_open(&cpu, &desc), MLK_OK);
}

static void finish(void) {
  mlk_close(cpu);
  cpu = NULL;
#if defined(MLKT_CUDA_EMULATED)
  mlkt_emu_reset();
#endif
}

/* Points of a sweep over types, shapes and layouts; with an emulator every method must have been met. */
static void sweep(mlk_numerics numerics, int points, int64_t largest, int64_t deepest, int epilogues,
                  const char *const *methods) {
  static const int dtypes[] = {MLK_F16, MLK_BF16, MLK_F32}, counts[] = {1, 3, 108, 2}, ccs[] = {80, 90, 80, 75};
  const char *met[NAMES_MAX];
  int names = 0, i, j;
  uint64_t index;
  if (!start()) return;
  for (index = 0; index < (uint64_t)points && !mlkt_hopeless(); index++) {
    mlkt_rng rng = mlkt_rng_case();
    mlk_context *ctx;
    product p;
    const char *variant;
    rng.state += index * UINT64_C(0x9E3779B97F4A7C15);
    if (!mlkt_keep(index)) continue;
    ctx = open_device(numerics, ccs[index / 3 % 4], counts[index / 3 % 4]);
    if (!ctx) break;
    p.batch = mlkt_int(&rng, 0, 3) ? 1 : mlkt_int(&rng, 2, 3);
    p.m = mlkt_int(&rng, 0, 2) ? mlkt_int(&rng, 1, largest) : mlkt_int(&rng, 1, 20);
    p.n = mlkt_int(&rng, 0, 2) ? mlkt_int(&rng, 1, largest) : mlkt_int(&rng, 1, 20);
    p.k = mlkt_int(&rng, 1, deepest);
    if (index % 10 == 0 && deepest < 300) p.m += 130, p.n += 200;                      /* the largest tiles */
    if (index % 7 == 3) *(mlkt_int(&rng, 0, 1) ? &p.m : &p.n) = mlkt_int(&rng, 9, 16); /* the thinnest */
    if (numerics == MLK_STRICT) {
      choose(&p, MLK_F32, 0, epilogues, &rng);
      variant = run_strict(ctx, &p, &rng);
    } else {
      choose(&p, dtypes[index % 3], mlkt_int(&rng, 0, 1) != 0, epilogues, &rng);
      variant = run_product(ctx, &p, &rng);
    }
    for (i = 0; i < names && strcmp(met[i], variant) != 0; i++) continue;
    if (i == names && names < NAMES_MAX) met[names++] = variant;
    mlk_close(ctx);
  }
#if defined(MLKT_CUDA_EMULATED)
  for (j = 0; methods[j] && mlkt_opt.one_in <= 1; j++) {
    for (i = 0; i < names && strcmp(met[i], methods[j]) != 0; i++) continue;
    CHECK_MSG(i < names, "no point of the sweep was run as %s", methods[j]);
  }
#else
  (void)j, (void)methods, (void)met;
#endif
  finish();
}

static void shapes(void) {
  static const char *const methods[] = {"mma", "tf32", "rows", "simt", "mma_rows", "tf32_rows", NULL};
  sweep(MLK_FAST, 240, 150, 130, 0, methods);
}

static void epilogues(void) {
  static const char *const methods[] = {"mma", "tf32", "rows", "simt", NULL};
  sweep(MLK_FAST, 240, 90, 70, 1, methods);
}

static void deep(void) {
  static const char *const methods[] = {"mma_split_k",      "tf32_split_k",      "rows_split_k",
                                        "mma_rows_split_k", "tf32_rows_split_k", NULL};
  sweep(MLK_FAST, 90, 140, 1500, 1, methods);
}

static void strict(void) {
  static const char *const methods[] = {"simt", "rows", "simt_rows", NULL};
  sweep(MLK_STRICT, 180, 300, 100, 1, methods);
}

static void strict_deep(void) {
  static const char *const methods[] = {"simt", "simt_split_k", "rows", "rows_split_k", "simt_rows_split_k", NULL};
  sweep(MLK_STRICT, 90, 150, 1700, 1, methods);
}

/* The same bits whatever order blocks and threads run in, and from call to call. */
static void repeated(void) {
  static const int dtypes[] = {MLK_F16, MLK_BF16, MLK_F32};
  static uint16_t ab[2][96 * 700 * 2];
  static float d[2][96 * 80];
  int type, round, i;
  if (!start()) return;
  for (type = 0; type < 3; type++) {
    mlk_context *ctx = open_device(MLK_FAST, 80, 108);
    mlkt_rng rng = mlkt_rng_case();
    mlk_matmul_desc desc;
    if (!ctx) break;
    memset(&desc, 0, sizeof desc);
    for (i = 0; i < 2; i++) {
      int64_t j;
      double *values = (double *)malloc(96 * 700 * sizeof(double));
      for (j = 0; j < 96 * 700; j++) values[j] = (double)mlkt_signed(&rng);
      round_values(dtypes[type], values, ab[i], 96 * 700);
      free(values);
    }
    desc.a = mlk_f32((float *)(void *)ab[0], 96, 700), desc.b = mlk_f32((float *)(void *)ab[1], 700, 80);
    desc.a.dtype = desc.b.dtype = dtypes[type];
    for (round = 0; round < 3; round++) {
#if defined(MLKT_CUDA_EMULATED)
      mlkt_emu_seed((uint64_t)round);
#endif
      desc.d = mlk_f32(d[round > 0], 96, 80);
      CHECK_OK(ctx, mlk_matmul(ctx, &desc));
      CHECK_OK(ctx, mlk_sync(ctx));
      if (round) CHECK_BITS_F32_N(d[1], d[0], 96 * 80);
    }
    mlk_close(ctx);
  }
  finish();
}

static product group_product(int64_t batch, int64_t m, int64_t n, int64_t k) {
  product p;
  memset(&p, 0, sizeof p);
  p.batch = batch, p.m = m, p.n = n, p.k = k;
  return p;
}

/* What an H200 is predicted to do: by warpgroups where memory is aligned, at a pace that is neither beyond the device's
   nor half of it. */
static void groups_planned(void) {
  static const int64_t sizes[] = {2048, 4096, 8192, 16384};
  mlk_device_figures h200;
  mlk_context_desc open;
  mlk_context *ctx = NULL;
  int i;
  if (!start()) return;
  memset(&h200, 0, sizeof h200);
  h200.name = "H200", h200.compute_capability = 90, h200.multiprocessors = 132;
  h200.flops = 67e12, h200.tensor_flops = 990e12, h200.bandwidth = 4.8e12, h200.memory_bytes = UINT64_C(141) << 30;
  open = mlkt_context_desc(MLK_ISA_BEST, 1);
  open.figures = &h200;
  if (CHECK_STATUS(NULL, mlk_open(&ctx, &open), MLK_OK))
    for (i = 0; i < 4; i++) {
      const int64_t n = sizes[i];
      const double least = 2.0 * (double)n * (double)n * (double)n / h200.tensor_flops;
      float *const memory = (float *)(uintptr_t)0x100000000; /* never touched */
      mlk_matmul_desc desc;
      mlk_plan plan, other;
      memset(&desc, 0, sizeof desc);
      desc.a = mlk_f32(memory, n, n), desc.b = mlk_f32(memory + n * n, n, n),
      desc.d = mlk_f32(memory + 2 * n * n, n, n);
      desc.a.dtype = desc.b.dtype = MLK_BF16;
      CHECK_OK(ctx, mlk_matmul_plan(ctx, &desc, &plan));
      CHECK_EQ_STR(plan.variant, "wgmma");
      CHECK_MSG(plan.seconds > least && plan.seconds < 2 * least, "n %lld: %g s, at best %g", (long long)n,
                plan.seconds, least);
      desc.a.data = (char *)desc.a.data + 2;
      CHECK_OK(ctx, mlk_matmul_plan(ctx, &desc, &other));
      CHECK_EQ_STR(other.variant, "mma");
      CHECK(other.seconds > plan.seconds && other.workspace_bytes == plan.workspace_bytes);
    }
  mlk_close(ctx);
  finish();
}

#if !defined(MLKT_CUDA_EMULATED)
/* Sizes at which a large device takes its quickest kernels, in every layout and both types. */
static void large(void) {
  int index;
  if (!start()) return;
  for (index = 0; index < 16 && !mlkt_hopeless(); index++) {
    mlkt_rng rng = mlkt_rng_case();
    product p = group_product(index < 8 ? 1 : 3, index < 8 ? 1403 : 701, index < 8 ? 1290 : 517, index < 8 ? 200 : 333);
    mlk_context *ctx;
    if (!mlkt_keep((uint64_t)index)) continue;
    rng.state += (uint64_t)index * UINT64_C(0x9E3779B97F4A7C15);
    choose(&p, index & 1 ? MLK_BF16 : MLK_F16, index & 1, !(index & 1), &rng);
    p.x[A].form = index & 2 ? 2 : 1, p.x[B].form = index & 4 ? 2 : 1, p.x[D].form = 1;
    ctx = open_device(MLK_STRICT, 0, 0);
    if (!ctx) break;
    (void)run_product(ctx, &p, &rng);
    mlk_close(ctx);
  }
  finish();
}
#else
/* A product by warpgroups, or not, on a device of cc 90 with so many multiprocessors; checks what it was run as. */
static void group_point(product *p, int multiprocessors, const char *variant, mlkt_rng *rng) {
  mlk_context *ctx = open_device(MLK_STRICT, 90, multiprocessors);
  if (!ctx) return;
  CHECK_EQ_STR(run_product(ctx, p, rng), variant);
  mlk_close(ctx);
}

/* Every layout, both types and both tiles of warpgroups, with tails of M, N and K, whole and in parts. */
static void groups(void) {
  static const int64_t batch[] = {1, 1, 1, 3, 1}, m[] = {200, 128, 333, 140, 129}, n[] = {520, 256, 129, 250, 300},
                       k[] = {200, 64, 72, 40, 1500};
  static const char *const variants[] = {"wgmma", "wgmma", "wgmma", "wgmma", "wgmma_split_k"};
  static const int counts[] = {1, 1, 2, 5, 40};
  uint64_t index;
  if (!start()) return;
  for (index = 0; index < 5 * 4 * 2 * 2 && !mlkt_hopeless(); index++) {
    const int shape = (int)(index / 16);
    mlkt_rng rng = mlkt_rng_case();
    product p = group_product(batch[shape], m[shape], n[shape], k[shape]);
    rng.state += index * UINT64_C(0x9E3779B97F4A7C15);
    if (!mlkt_keep(index)) continue;
    choose(&p, index & 1 ? MLK_BF16 : MLK_F16, index / 8 % 2 == 0, index / 8 % 2 != 0, &rng);
    if (p.alpha == 0) p.alpha = 1;
    p.x[A].form = index & 2 ? 2 : 1, p.x[B].form = index & 4 ? 2 : 1, p.x[D].form = 1;
    group_point(&p, counts[shape], variants[shape], &rng);
  }
  finish();
}

/* Sums alone, as 16 bits: in eights, with tails of rows and columns. */
static void groups_eights(void) {
  static const int64_t m[] = {200, 129, 300}, n[] = {264, 72, 136};
  int index;
  if (!start()) return;
  for (index = 0; index < 6; index++) {
    mlkt_rng rng = mlkt_rng_case();
    product p = group_product(2, m[index / 2], n[index / 2], 72);
    choose(&p, index & 1 ? MLK_BF16 : MLK_F16, 1, 0, &rng);
    p.x[D].dtype = p.x[A].dtype, p.x[A].form = p.x[B].form = p.x[D].form = 1;
    group_point(&p, 2, "wgmma", &rng);
  }
  finish();
}

/* What warpgroups cannot read goes to warps: memory that is not aligned; any, with a driver or code without them. */
static void groups_refused(void) {
  int index;
  if (!start()) return;
  for (index = 0; index < 5; index++) {
    mlkt_rng rng = mlkt_rng_case();
    product p = group_product(1, 150, 260, 90);
    mlkt_emu_hopper(index != 2, index != 3);
    choose(&p, MLK_F16, 1, 0, &rng);
    p.x[A].form = index == 0 ? 4 : 1, p.x[B].form = index == 1 ? 6 : 1, p.x[D].form = 1;
    group_point(&p, 1, index < 4 ? "mma" : "wgmma", &rng);
  }
  finish();
}

/* Batches of two axes, of which the operands repeat one or the other, read in place. */
static void groups_batches(void) {
  enum { OUTER = 2, INNER = 3, M = 130, N = 136, K = 72, NUMBERS = OUTER * INNER * (M * K + K * N) };
  static uint16_t numbers[NUMBERS];
  static float d[OUTER * INNER * M * N];
  static const int64_t strides_a[][2] = {{M * K, 0}, {0, M * K}, {K, OUTER * K}},
                       strides_b[][2] = {{0, K * N}, {K * N, 0}, {INNER * K * N, K * N}};
  double *values;
  mlk_context *ctx;
  int which;
  int64_t i, j, l, o, q;
  mlkt_rng rng = mlkt_rng_case();
  if (!start()) return;
  values = (double *)malloc(NUMBERS * sizeof(double));
  for (i = 0; i < NUMBERS; i++) values[i] = (double)mlkt_int(&rng, -2, 2);
  round_values(MLK_BF16, values, numbers, NUMBERS);
  ctx = open_device(MLK_STRICT, 90, 2);
  for (which = 0; ctx && which < 3; which++) {
    const int64_t first_b = OUTER * INNER * M * K, row = which == 2 ? OUTER * INNER * K : K;
    mlk_matmul_desc desc;
    mlk_plan plan;
    double worst = 0;
    memset(&desc, 0, sizeof desc);
    desc.a = mlk_f32((float *)(void *)numbers, OUTER, INNER, M, K);
    desc.b = mlk_f32((float *)(void *)(numbers + first_b), OUTER, INNER, K, N);
    desc.a.dtype = desc.b.dtype = MLK_BF16, desc.d = mlk_f32(d, OUTER, INNER, M, N);
    desc.a.stride[0] = strides_a[which][0], desc.a.stride[1] = strides_a[which][1];
    desc.a.stride[2] = row, desc.a.stride[3] = 1;
    desc.b.stride[0] = strides_b[which][0], desc.b.stride[1] = strides_b[which][1];
    desc.b.stride[2] = N, desc.b.stride[3] = 1;
    mlkt_note("strides number %d", which);
    CHECK_OK(ctx, mlk_matmul_plan(ctx, &desc, &plan));
    CHECK_EQ_STR(plan.variant, "wgmma");
    CHECK_OK(ctx, mlk_matmul(ctx, &desc));
    CHECK_OK(ctx, mlk_sync(ctx));
    for (o = 0; o < OUTER; o++)
      for (q = 0; q < INNER; q++)
        for (i = 0; i < M; i++)
          for (j = 0; j < N; j++) {
            const double *a = values + o * desc.a.stride[0] + q * desc.a.stride[1] + i * row,
                         *b = values + first_b + o * desc.b.stride[0] + q * desc.b.stride[1] + j;
            double sum = 0;
            for (l = 0; l < K; l++) sum += a[l] * b[l * N];
            sum = fabs(sum - (double)d[((o * INNER + q) * M + i) * N + j]);
            if (!(sum <= worst)) worst = sum;
          }
    CHECK_MSG(worst == 0, "a sum of whole numbers is wrong by %g", worst);
  }
  free(values);
  mlk_close(ctx);
  finish();
}

/* A captured call waits for nothing and allocates nothing; a plan's workspace is enough also where the call's memory is
   not aligned as the plan's was. */
static void groups_captured(void) {
  enum { M = 140, N = 264, K = 96 };
  static uint16_t a[M * K + 8], b[K * N];
  static float d[M * N];
  mlk_context_desc open;
  mlk_context *ctx = NULL;
  mlk_matmul_desc desc;
  mlk_plan plan, other;
  void *stream, *graph = NULL;
  uint64_t waits;
  int64_t i;
  if (!start()) return;
  mlkt_emu_device(1, 90, 1);
  stream = mlkt_emu_stream_new();
  open = mlkt_context_desc(MLK_ISA_BEST, 1);
  open.stream = stream;
  for (i = 0; i < M * K; i++) a[i] = 0x3C00; /* 1 */
  for (i = 0; i < K * N; i++) b[i] = 0x4000; /* 2 */
  memset(&desc, 0, sizeof desc);
  desc.a = mlk_f32((float *)(void *)a, M, K), desc.b = mlk_f32((float *)(void *)b, K, N), desc.d = mlk_f32(d, M, N);
  desc.a.dtype = desc.b.dtype = MLK_F16;
  if (CHECK_STATUS(NULL, mlk_open(&ctx, &open), MLK_OK) && CHECK_OK(ctx, mlk_matmul_plan(ctx, &desc, &plan))) {
    CHECK_EQ_STR(plan.variant, "wgmma");
    CHECK_OK(ctx, mlk_reserve(ctx, plan.workspace_bytes, MLK_FIXED));
    waits = mlkt_emu_count(MLKT_EMU_SYNCHRONISATIONS) + mlkt_emu_count(MLKT_EMU_ALLOCATIONS);
    CHECK(mlkt_emu_capture_begin(stream) == 0);
    CHECK_OK(ctx, mlk_matmul(ctx, &desc));
    CHECK(mlkt_emu_capture_end(stream, &graph) == 0);
    CHECK(mlkt_emu_count(MLKT_EMU_SYNCHRONISATIONS) + mlkt_emu_count(MLKT_EMU_ALLOCATIONS) == waits);
    CHECK(d[0] == 0);
    CHECK(mlkt_emu_graph_run(graph, stream) == 0);
    CHECK_OK(ctx, mlk_sync(ctx));
    for (i = 0; i < M * N && d[i] == 2 * K; i++) continue;
    CHECK_MSG(i == M * N, "d[%lld] is %g", (long long)i, (double)d[i < M * N ? i : 0]);
    desc.a.data = a + 1;
    a[M * K] = 0x3C00;
    CHECK_OK(ctx, mlk_matmul_plan(ctx, &desc, &other));
    CHECK_EQ_STR(other.variant, "mma");
    CHECK(other.workspace_bytes == plan.workspace_bytes);
    CHECK_OK(ctx, mlk_matmul(ctx, &desc));
    mlkt_emu_graph_free(graph);
  }
  mlk_close(ctx);
  mlkt_emu_stream_free(stream);
  finish();
}
#endif

const mlkt_case mlkt_cuda_matmul_cases[] = {{"cuda_matmul/shapes", shapes},
                                            {"cuda_matmul/epilogues", epilogues},
                                            {"cuda_matmul/deep", deep},
                                            {"cuda_matmul/strict", strict},
                                            {"cuda_matmul/strict_deep", strict_deep},
                                            {"cuda_matmul/repeated", repeated},
                                            {"cuda_matmul/groups_planned", groups_planned},
#if !defined(MLKT_CUDA_EMULATED)
                                            {"cuda_matmul/large", large},
#else
                                            {"cuda_matmul/groups", groups},
                                            {"cuda_matmul/groups_eights", groups_eights},
                                            {"cuda_matmul/groups_refused", groups_refused},
                                            {"cuda_matmul/groups_batches", groups_batches},
                                            {"cuda_matmul/groups_captured", groups_captured},
#endif
                                            {NULL, NULL}};
