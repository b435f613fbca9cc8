/* test_mlk.c - the one implementation of mlk.h in the test binary. The object is the library: tests/test_demo.sh and
   tests/blas_testers.sh link it as well, so that one compilation serves them all. */

#define MLK_IMPLEMENTATION
#include "mlk.h"
