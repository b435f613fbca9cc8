/* blas_shim.c - sgemm_ (Fortran) and cblas_sgemm on top of mlk_matmul, for the netlib testers and for a program that
   has a BLAS call to replace. A shared library to be preloaded: every other routine stays with the BLAS below.

     cc -O2 -fPIC -shared -I. tests/blas_shim.c -o build/libmlk_blas.so -lm
     LD_PRELOAD=build/libmlk_blas.so program

   MLK_SHIM_ISA, MLK_SHIM_THREADS: what the context is opened with. MLK_SHIM_REPORT: a file that gets the number of
   products. One context, no lock: for programs that call BLAS from one thread. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#ifndef MLK_SHIM_LINKED /* else the implementation comes as an object */
#define MLK_STATIC
#define MLK_IMPLEMENTATION
#endif
#include "mlk.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Of the BLAS below, or of the tester, which replaces them to see which argument was found bad. */
extern void xerbla_(const char *name, const int *argument, size_t name_length);
extern void cblas_xerbla(int argument, const char *name, const char *form, ...);
/* The reference library computes a row-major product as the transposed column-major one, reports the position of a bad
   argument in that, and sets this flag for cblas_xerbla to translate it back. Other libraries have no such flag. */
extern int RowMajorStrg __attribute__((weak));

extern void sgemm_(const char *transa, const char *transb, const int *m, const int *n, const int *k, const float *alpha,
                   const float *a, const int *lda, const float *b, const int *ldb, const float *beta, float *c,
                   const int *ldc);
extern void cblas_sgemm(int layout, int transa, int transb, int m, int n, int k, float alpha, const float *a, int lda,
                        const float *b, int ldb, float beta, float *c, int ldc);

enum { ROW_MAJOR = 101, COLUMN_MAJOR = 102, NO_TRANSPOSE = 111, TRANSPOSE = 112, CONJUGATE_TRANSPOSE = 113 };

static mlk_context *context;
static unsigned long products;

static void die(const char *what, const char *why) {
  fprintf(stderr, "blas_shim: %s: %s\n", what, why);
  exit(70);
}

static mlk_context *shim_context(void) {
  const char *isa = getenv("MLK_SHIM_ISA"), *threads = getenv("MLK_SHIM_THREADS");
  mlk_context_desc desc;
  mlk_status status;
  if (context) return context;
  memset(&desc, 0, sizeof desc);
  if (threads) desc.threads = atoi(threads);
  while (isa && desc.isa < MLK_ISA_COUNT && strcmp(isa, mlk_isa_name(desc.isa)) != 0)
    desc.isa = (mlk_isa)(desc.isa + 1);
  status = mlk_open(&context, &desc);
  if (status != MLK_OK) die("mlk_open", mlk_status_name(status));
  return context;
}

__attribute__((destructor)) static void shim_report(void) {
  const char *name = getenv("MLK_SHIM_REPORT");
  FILE *file = name && products ? fopen(name, "w") : NULL;
  if (file) {
    mlk_info info;
    const char *isa = mlk_get_info(context, &info) == MLK_OK ? info.isa : "?";
    fprintf(file, "%lu products on %s\n", products, isa);
    fclose(file);
  }
  mlk_close(context);
  context = NULL;
}

/* Element (i, j) of op(X) is x[i * row + j * column]. */
static mlk_tensor view(const float *x, int rows, int columns, int64_t row, int64_t column) {
  mlk_tensor t = mlk_f32(x, rows, columns);
  t.stride[0] = row;
  t.stride[1] = column;
  return t;
}

/* C = alpha op(A) op(B) + beta C, arguments already checked. by_column: elements of a column (else of a
   row) are neighbours. */
static void gemm(int by_column, int ta, int tb, int m, int n, int k, float alpha, const float *a, int lda,
                 const float *b, int ldb, float beta, float *c, int ldc) {
  mlk_matmul_desc desc;
  if (m == 0 || n == 0) return;
  memset(&desc, 0, sizeof desc);
  desc.a = by_column != ta ? view(a, m, k, 1, lda) : view(a, m, k, lda, 1);
  desc.b = by_column != tb ? view(b, k, n, 1, ldb) : view(b, k, n, ldb, 1);
  desc.d = by_column ? view(c, m, n, 1, ldc) : view(c, m, n, ldc, 1);
  desc.alpha = &alpha;
  desc.beta = &beta;
  products++;
  if (mlk_matmul(shim_context(), &desc) != MLK_OK) die("mlk_matmul", mlk_last_error(context));
}

static int at_least_1(int x) { return x > 1 ? x : 1; }

/* -1: no such letter; 0: as it is; 1: transposed. */
static int transposes(char letter) {
  switch (letter) {
  case 'N':
  case 'n': return 0;
  case 'T':
  case 't':
  case 'C':
  case 'c': return 1;
  default: return -1;
  }
}

void sgemm_(const char *transa, const char *transb, const int *m, const int *n, const int *k, const float *alpha,
            const float *a, const int *lda, const float *b, const int *ldb, const float *beta, float *c,
            const int *ldc) {
  const int ta = transposes(*transa), tb = transposes(*transb);
  int bad = 0; /* position of the first argument that is wrong, as the reference implementation counts */
  if (ta < 0)
    bad = 1;
  else if (tb < 0)
    bad = 2;
  else if (*m < 0)
    bad = 3;
  else if (*n < 0)
    bad = 4;
  else if (*k < 0)
    bad = 5;
  else if (*lda < at_least_1(ta ? *k : *m))
    bad = 8;
  else if (*ldb < at_least_1(tb ? *n : *k))
    bad = 10;
  else if (*ldc < at_least_1(*m))
    bad = 13;
  if (bad) {
    xerbla_("SGEMM ", &bad, 6);
    return;
  }
  gemm(1, ta, tb, *m, *n, *k, *alpha, a, *lda, b, *ldb, *beta, c, *ldc);
}

static int transposes_enum(int value) {
  if (value == NO_TRANSPOSE) return 0;
  return value == TRANSPOSE || value == CONJUGATE_TRANSPOSE ? 1 : -1;
}

/* Where argument number position stands when M and N, and A and B, change places. */
static int transposed_position(int position) {
  switch (position) {
  case 4: return 5;
  case 5: return 4;
  case 9: return 11;
  case 11: return 9;
  default: return position;
  }
}

void cblas_sgemm(int layout, int transa, int transb, int m, int n, int k, float alpha, const float *a, int lda,
                 const float *b, int ldb, float beta, float *c, int ldc) {
  const int ta = transposes_enum(transa), tb = transposes_enum(transb), by_column = layout == COLUMN_MAJOR;
  int bad = 0;
  if (!by_column && layout != ROW_MAJOR)
    bad = 1;
  else if (ta < 0)
    bad = 2;
  else if (tb < 0)
    bad = 3;
  else if (m < 0)
    bad = 4;
  else if (n < 0)
    bad = 5;
  else if (k < 0)
    bad = 6;
  else if (lda < at_least_1(by_column != ta ? m : k))
    bad = 9;
  else if (ldb < at_least_1(by_column != tb ? k : n))
    bad = 11;
  else if (ldc < at_least_1(by_column ? m : n))
    bad = 14;
  if (bad) {
    const int translated = !by_column && bad > 3 && &RowMajorStrg;
    if (translated) RowMajorStrg = 1;
    cblas_xerbla(translated ? transposed_position(bad) : bad, "cblas_sgemm", "argument %d\n", bad);
    if (translated) RowMajorStrg = 0;
    return;
  }
  gemm(by_column, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}
