/* A two-layer perceptron on made data: x + W2 gelu(W1 x + b1) + b2 for a batch of rows, as a transformer block has it.

   Build: cc -O2 -fopenmp -I. examples/01_matmul.c -o build/01_matmul -lm

   Shows: weights packed once; bias, activation and residual fused into the product; plan, reserve, run; no allocation
   after that. Checks itself against double precision within the error bound of the manual, and against a batch of one
   row, bit for bit. */

#define MLK_IMPLEMENTATION
#include "mlk.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = 256, WIDTH = 768, HIDDEN = 3072 };

static float x[ROWS * WIDTH], hidden[ROWS * HIDDEN], y[ROWS * WIDTH], one_hidden[HIDDEN], one_y[WIDTH];
static float w1[HIDDEN * WIDTH], b1[HIDDEN], w2[WIDTH * HIDDEN], b2[WIDTH]; /* weights as [out, in], like most files */

/* Made data in [-scale, scale]: the same on every machine. */
static void fill(float *to, size_t count, float scale, uint32_t seed) {
  size_t i;
  for (i = 0; i < count; i++) {
    seed = seed * 1664525u + 1013904223u;
    to[i] = scale * ((float)(seed >> 8) * (2.0f / 16777216.0f) - 1.0f);
  }
}

/* Panels for mlk_matmul in the form this context's instruction set wants; weight is [out, in]. */
static mlk_status pack(mlk_context *ctx, const float *weight, int64_t out, int64_t in, mlk_packed *packed,
                       void **memory) {
  const mlk_tensor b = mlk_transposed(mlk_f32(weight, out, in));
  char *aligned;
  mlk_status status = mlk_matmul_pack(ctx, b, NULL, 0, packed); /* tells packed->bytes */
  if (status != MLK_OK) return status;
  *memory = malloc((size_t)packed->bytes + 63);
  if (!*memory) return MLK_ERR_MEMORY;
  aligned = (char *)*memory + (64 - (uintptr_t)*memory % 64) % 64;
  return mlk_matmul_pack(ctx, b, aligned, packed->bytes, packed);
}

/* The two products for `rows` rows of in. */
static void describe(const float *in, float *mid, float *out, int64_t rows, const mlk_packed *packed,
                     mlk_matmul_desc *layer) {
  memset(layer, 0, 2 * sizeof *layer);
  layer[0].a = mlk_f32(in, rows, WIDTH);
  layer[0].packed_b = &packed[0];
  layer[0].bias = mlk_f32(b1, HIDDEN);
  layer[0].activation = MLK_GELU;
  layer[0].d = mlk_f32(mid, rows, HIDDEN);
  layer[1].a = layer[0].d;
  layer[1].packed_b = &packed[1];
  layer[1].bias = mlk_f32(b2, WIDTH);
  layer[1].residual = layer[0].a;
  layer[1].d = mlk_f32(out, rows, WIDTH);
}

/* Element (row, col) of the second product in double precision from the hidden layer as computed, and how far from it
   the f32 result may be: the bound of the manual for the product, and a rounding for each of bias and residual. */
static int close_enough(int row, int col) {
  const double u = FLT_EPSILON / 2, segments = (HIDDEN + MLK_SEGMENT - 1) / MLK_SEGMENT;
  double exact = 0, size = 0, bound;
  int k;
  for (k = 0; k < HIDDEN; k++) {
    const double term = (double)hidden[row * HIDDEN + k] * (double)w2[col * HIDDEN + k];
    exact += term;
    size += fabs(term);
  }
  exact += (double)b2[col] + (double)x[row * WIDTH + col];
  size += fabs((double)b2[col]) + fabs((double)x[row * WIDTH + col]);
  bound = (MLK_SEGMENT + segments + 2) * u * 1.001 * size;
  return fabs((double)y[row * WIDTH + col] - exact) <= bound;
}

int main(void) {
  mlk_context *ctx;
  mlk_packed packed[2];
  mlk_matmul_desc layer[2], one[2];
  void *memory[2] = {NULL, NULL};
  mlk_status status = mlk_open(&ctx, NULL);
  int i, wrong = 0;
  if (status != MLK_OK) return 1;
  fill(x, ROWS * WIDTH, 1.0f, 1u), fill(b1, HIDDEN, 0.1f, 2u), fill(b2, WIDTH, 0.1f, 3u);
  fill(w1, HIDDEN * WIDTH, 0.06f, 4u), fill(w2, WIDTH * HIDDEN, 0.03f, 5u);
  status = pack(ctx, w1, HIDDEN, WIDTH, &packed[0], &memory[0]);
  if (status == MLK_OK) status = pack(ctx, w2, WIDTH, HIDDEN, &packed[1], &memory[1]);
  describe(x, hidden, y, ROWS, packed, layer);
  describe(x + 7 * WIDTH, one_hidden, one_y, 1, packed, one); /* row 7 alone */

  for (i = 0; i < 4 && status == MLK_OK; i++) { /* what will run, before anything runs */
    const mlk_matmul_desc *product = i < 2 ? &layer[i] : &one[i - 2];
    mlk_plan plan;
    status = mlk_matmul_plan(ctx, product, &plan);
    if (status != MLK_OK) break;
    printf("%4d x %4d x %4d: %s %s, %d threads, %.3f GFLOP, %lu bytes of workspace\n", (int)product->d.shape[0],
           (int)product->d.shape[1], (int)product->a.shape[1], plan.isa, plan.variant, plan.threads,
           (double)plan.flops * 1e-9, (unsigned long)plan.workspace_bytes);
    status = mlk_reserve(ctx, plan.workspace_bytes,
                         MLK_FIXED); /* grows to the largest; the calls below allocate nothing */
  }
  for (i = 0; i < 4 && status == MLK_OK; i++) status = mlk_matmul(ctx, i < 2 ? &layer[i] : &one[i - 2]);
  if (status != MLK_OK) fprintf(stderr, "01_matmul: %s: %s\n", mlk_status_name(status), mlk_last_error(ctx));

  for (i = 0; i < ROWS * WIDTH && status == MLK_OK; i += 97) wrong += !close_enough(i / WIDTH, i % WIDTH);
  if (status == MLK_OK && memcmp(one_y, y + 7 * WIDTH, sizeof one_y) != 0) wrong++;
  if (status == MLK_OK) puts(wrong ? "WRONG" : "correct: within the error bound, and row 7 alone gives the same bits");
  free(memory[0]), free(memory[1]);
  mlk_close(ctx);
  return status != MLK_OK || wrong;
}
