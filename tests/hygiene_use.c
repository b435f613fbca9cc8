/* A user of mlk.h in one file or in two (HYGIENE_ONE_FILE brings the implementation along): multiplies, searches, and
   prints the instruction sets that were compiled in. tests/hygiene.sh compares the line with that of a plain build, so
   an include that loses a row of kernels on its way is found. */
#ifndef HYGIENE_HEADER
#define HYGIENE_HEADER "mlk.h"
#endif
#ifdef HYGIENE_ONE_FILE
#define MLK_IMPLEMENTATION
#endif
#include HYGIENE_HEADER

#include <stdio.h>
#include <string.h>

int main(void) {
  static const float a[2 * 3] = {1, 2, 3, 4, 5, 6}, b[3 * 2] = {1, 0, 0, 1, 1, 1}, want[2 * 2] = {4, 5, 10, 11};
  int isa;
  if (mlk_version() != MLK_VERSION) return 1;
  printf("mlk %d:", mlk_version());
  for (isa = MLK_ISA_SCALAR; isa < MLK_ISA_COUNT; isa++) {
    float d[2 * 2] = {0, 0, 0, 0}, distance[2] = {0, 0};
    int64_t id[2] = {-1, -1};
    mlk_context *ctx = NULL;
    mlk_context_desc desc;
    mlk_matmul_desc mm;
    mlk_knn_desc knn;
    int i;
    if (!mlk_isa_available((mlk_isa)isa)) continue;
    memset(&desc, 0, sizeof desc);
    memset(&mm, 0, sizeof mm);
    memset(&knn, 0, sizeof knn);
    desc.isa = (mlk_isa)isa;
    if (mlk_open(&ctx, &desc) != MLK_OK) return 2;
    mm.a = mlk_f32(a, 2, 3);
    mm.b = mlk_f32(b, 3, 2);
    mm.d = mlk_f32(d, 2, 2);
    if (mlk_matmul(ctx, &mm) != MLK_OK) return 3;
    for (i = 0; i < 4; i++)
      if (d[i] > want[i] || d[i] < want[i]) return 4;
    knn.queries = mlk_f32(a, 2, 3);
    knn.base = mlk_transposed(mlk_f32(b, 3, 2));
    knn.k = 1;
    knn.ids = mlk_i64(id, 2, 1);
    knn.distances = mlk_f32(distance, 2, 1);
    if (mlk_knn(ctx, &knn) != MLK_OK) return 5;
    if (id[0] != 1 || id[1] != 1 || distance[0] < 6 || distance[0] > 6) return 6; /* (1,2,3) - (0,1,1): 1 + 1 + 4 */
    mm.b = mlk_f32(b, 2, 2);
    if (mlk_matmul(ctx, &mm) != MLK_ERR_SHAPE || mlk_last_error(ctx)[0] == 0) return 7;
    mlk_close(ctx);
    printf(" %s", mlk_isa_name((mlk_isa)isa));
  }
  printf("\n");
  return 0;
}
