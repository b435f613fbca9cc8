/* crew.h - what the tests of the large operators share: memory that grows, one context per row and thread count,
   numbers of a sweep point. Each file has its own copy. */

#ifndef MLK_CREW_H
#define MLK_CREW_H

#include "test.h"

#include <stdlib.h>

static inline void *grown(void *memory, size_t *room, size_t bytes) {
  if (*room >= bytes && memory) return memory;
  free(memory);
  memory = malloc(bytes + 64);
  if (!memory) exit(2);
  *room = bytes;
  return memory;
}

static inline float *grown_f32(float *memory, size_t *room, size_t count) {
  return (float *)grown(memory, room, count * sizeof(float));
}

/* ---- contexts of every row and thread count, with workspaces full of rogue numbers ------------------------------- */

enum { CREW_THREADS = 7 };

static struct {
  mlk_context *ctx[MLK_ISA_COUNT][CREW_THREADS + 1];
  mlkt_memory memory[MLK_ISA_COUNT][CREW_THREADS + 1];
  mlk_isa isas[MLK_ISA_COUNT];
  int rows, threads;
} crew;

static inline void crew_open(void) {
  memset(&crew, 0, sizeof crew);
  crew.rows = mlkt_isas(crew.isas);
  crew.threads = mlkt_opt.threads_max < CREW_THREADS ? mlkt_opt.threads_max : CREW_THREADS;
}

static inline mlk_context *crew_get(mlk_isa isa, int threads) {
  mlk_context **ctx = &crew.ctx[isa][threads];
  if (!*ctx) {
    mlk_context_desc desc = mlkt_context_desc(isa, threads);
    desc.allocator = mlkt_memory_hook(&crew.memory[isa][threads]);
    if (!CHECK_STATUS(NULL, mlk_open(ctx, &desc), MLK_OK)) return NULL;
  }
  return *ctx;
}

static inline void crew_close(void) {
  int i, j;
  for (i = 0; i < MLK_ISA_COUNT; i++)
    for (j = 0; j <= CREW_THREADS; j++)
      if (crew.ctx[i][j]) {
        mlk_close(crew.ctx[i][j]);
        CHECK_MEMORY_EMPTY(&crew.memory[i][j]);
      }
}

static inline int crew_threads(uint64_t index) { /* 1, 2, 3, 7 in turn, as far as allowed */
  static const int counts[] = {1, 2, 3, 7};
  const int count = counts[index % 4];
  return count < crew.threads ? count : crew.threads;
}

static inline mlkt_rng point_rng(uint64_t index) { /* each point has numbers of its own, whatever --quick leaves out */
  mlkt_rng rng = mlkt_rng_case();
  rng.state += index * UINT64_C(0xD1342543DE82EF95);
  return rng;
}

#endif /* MLK_CREW_H */
