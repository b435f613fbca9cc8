/* The one file that holds the implementation. Compiled as C and as C++, in every mode of tests/hygiene.sh.
   Plain includes around the define, as other headers of a project cause them, change nothing. */
#ifndef HYGIENE_HEADER
#define HYGIENE_HEADER "mlk.h"
#endif
#include HYGIENE_HEADER
#include HYGIENE_HEADER
#define MLK_IMPLEMENTATION
#include HYGIENE_HEADER
#include HYGIENE_HEADER
#undef MLK_IMPLEMENTATION
#include HYGIENE_HEADER
