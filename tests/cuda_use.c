/* cuda_use.c - a program with the backend of mlk_cuda.cuh, as C and C++: for tests/cuda_gates.sh. It prints a product
   from whatever device is best, and what becomes of a context that insists on a GPU. */

#include "mlk_cuda.cuh"

#include <stdio.h>
#include <string.h>

static void say(void *user, const char *line) {
  (void)user;
  printf(" %s", line);
}

static int multiply(mlk_context *ctx) {
  float a[2 * 3] = {1, 2, 3, 4, 5, 6}, b[3 * 2] = {7, 8, 9, 10, 11, 12}, d[2 * 2] = {0, 0, 0, 0};
  mlk_matmul_desc mm;
  memset(&mm, 0, sizeof mm);
  mm.a = mlk_f32(a, 2, 3), mm.b = mlk_f32(b, 3, 2), mm.d = mlk_f32(d, 2, 2);
  if (mlk_matmul(ctx, &mm) != MLK_OK || mlk_sync(ctx) != MLK_OK) return 0;
  printf(" %g %g %g %g", d[0], d[1], d[2], d[3]);
  return 1;
}

static int run_on(const char *name, mlk_device device) {
  mlk_context_desc desc;
  mlk_context *ctx = NULL;
  int ok;
  memset(&desc, 0, sizeof desc);
  desc.log = say, desc.threads = 1;
  desc.backends[0] = mlk_cuda_backend();
  desc.device = device, desc.host_arrays = MLK_HOST_STAGED;
  printf("%s:", name);
  ok = mlk_open(&ctx, &desc) == MLK_OK ? multiply(ctx) : device == MLK_DEVICE_BACKEND;
  printf("\n");
  mlk_close(ctx);
  return ok;
}

int main(void) { return run_on("best", MLK_DEVICE_BEST) && run_on("backend", MLK_DEVICE_BACKEND) ? 0 : 1; }
