/* Two files of one program, each with a private copy of the library: compiled twice, as hygiene_static_a and _b. */
#define MLK_STATIC
#define MLK_IMPLEMENTATION
#include "mlk.h"

#include <stdio.h>
#include <string.h>

extern int hygiene_static_b(void);

static int multiply(void) {
  const float two = 2, three = 3;
  float d = 0;
  mlk_context *ctx = NULL;
  mlk_matmul_desc mm;
  if (mlk_open(&ctx, NULL) != MLK_OK) return 0;
  memset(&mm, 0, sizeof mm);
  mm.a = mlk_f32(&two, 1, 1);
  mm.b = mlk_f32(&three, 1, 1);
  mm.d = mlk_f32(&d, 1, 1);
  if (mlk_matmul(ctx, &mm) != MLK_OK) d = 0;
  mlk_close(ctx);
  return (int)d;
}

#ifdef HYGIENE_SECOND
int hygiene_static_b(void) { return multiply(); }
#else
int main(void) {
  printf("%d %d\n", multiply(), hygiene_static_b());
  return 0;
}
#endif
