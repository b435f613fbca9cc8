/* test.h - the runner's vocabulary: checks, random numbers, guarded buffers, a counting allocator, parallel hooks.

   One binary, build/mlk_test, from tests/test_*.c; test_main.c holds the runner, test_mlk.c the
   implementation of mlk.h.
   A test file ends in a table { {"area/case", function}, ..., {NULL, NULL} } declared below.
   Compiles as C99 and C++11. */

#ifndef MLK_TEST_H
#define MLK_TEST_H

#include <inttypes.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "mlk.h"

#if defined(__unix__) || defined(__APPLE__)
#define MLKT_POSIX 1 /* mmap and pthreads are there */
#else
#define MLKT_POSIX 0
#endif

#if defined(__GNUC__)
#define MLKT_PRINTF(text, first) __attribute__((format(printf, text, first)))
#else
#define MLKT_PRINTF(text, first)
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---- cases and options ------------------------------------------------------------------------------------------ */

typedef struct mlkt_case {
  const char *name; /* "area/what", unique; NULL ends a table */
  void (*run)(void);
} mlkt_case;

extern const mlkt_case mlkt_context_cases[];
extern const mlkt_case mlkt_matmul_cases[];
extern const mlkt_case mlkt_conv_cases[];
extern const mlkt_case mlkt_conv_shapes_cases[];
extern const mlkt_case mlkt_knn_cases[];
extern const mlkt_case mlkt_layer_cases[];
extern const mlkt_case mlkt_math_cases[];
extern const mlkt_case mlkt_map_cases[];
extern const mlkt_case mlkt_attention_cases[];
extern const mlkt_case mlkt_attention_bits_cases[];
extern const mlkt_case mlkt_attention_calls_cases[];
extern const mlkt_case mlkt_average_cases[];
extern const mlkt_case mlkt_group_cases[];
extern const mlkt_case mlkt_cuda_cases[];           /* of the programs with mlk_cuda.cuh */
extern const mlkt_case mlkt_cuda_matmul_cases[];    /* the same */
extern const mlkt_case mlkt_cuda_attention_cases[]; /* the same */
extern const mlkt_case mlkt_cuda_conv_cases[];      /* the same */
extern const mlkt_case mlkt_cuda_layer_cases[];
extern const mlkt_case mlkt_cuda_map_cases[];
extern const mlkt_case mlkt_cuda_knn_cases[]; /* the same */

typedef struct mlkt_options {
  uint64_t seed;
  int quick;       /* --quick: smaller cases, and about one sweep point in 20, see mlkt_keep */
  int one_in;      /* --one-in N: one sweep point in N (default 1, with --quick 20) */
  int long_run;    /* --long: also what takes minutes or gigabytes */
  int threads_max; /* --threads-max N: most threads a test asks a context for (default 7) */
  mlk_isa isa;     /* --isa NAME: the only row tested; MLK_ISA_BEST: every row that is available */
  int cuda;        /* --cuda: contexts of mlkt_open but the reference's run on a CUDA device; host arrays are staged */
  int pool;        /* --pool: contexts of mlkt_open run on a pthread pool through the parallel hook, not on OpenMP */
} mlkt_options;

extern mlkt_options mlkt_opt; /* read only for tests */

/* 1 when a sweep should run its point number index: about one in mlkt_opt.one_in, chosen by the seed. */
int mlkt_keep(uint64_t index);
/* 1 when not even what --quick takes is wanted (--one-in above 20): cases that are no sweep make
   do with fewer rounds. */
int mlkt_sampled(void);
/* Does a sentence name this word, and not as a part of another? */
int mlkt_has_word(const char *sentence, const char *text);

/* ---- checks: main thread only. Each gives 1 when it holds; else prints a sentence, counts the failure, gives 0 - */

#define CHECK(condition)                   mlkt_check((condition) ? 1 : 0, __FILE__, __LINE__, "%s", #condition)
/* CHECK_MSG(condition, format, ...): the sentence tells the values. */
#define CHECK_MSG(condition, ...)          ((condition) ? mlkt_pass() : mlkt_check(0, __FILE__, __LINE__, __VA_ARGS__))
#define CHECK_EQ_I64(got, want)            mlkt_check_i64((int64_t)(got), (int64_t)(want), __FILE__, __LINE__, #got)
#define CHECK_EQ_STR(got, want)            mlkt_check_str((got), (want), __FILE__, __LINE__, #got)
/* Same bit pattern; two NaNs are the same whatever their sign and payload. */
#define CHECK_BITS_F32(got, want)          mlkt_check_f32((got), (want), __FILE__, __LINE__, #got)
#define CHECK_BITS_F32_N(got, want, count) mlkt_check_f32_n((got), (want), (size_t)(count), __FILE__, __LINE__, #got)
#define CHECK_I64_N(got, want, count)      mlkt_check_i64_n((got), (want), (size_t)(count), __FILE__, __LINE__, #got)
/* call gives the status want; on a mismatch ctx's sentence is printed too (ctx may be NULL). */
#define CHECK_STATUS(ctx, call, want)      mlkt_check_status((ctx), (call), (want), __FILE__, __LINE__, #call)
#define CHECK_OK(ctx, call)                CHECK_STATUS(ctx, call, MLK_OK)
/* The last sentence names an argument, or tells a value. */
#define CHECK_NAMES(ctx, word)                                                                                         \
  CHECK_MSG(mlkt_has_word(mlk_last_error(ctx), word), "the sentence does not name %s: \"%s\"", word,                   \
            mlk_last_error(ctx))

int mlkt_pass(void);
int mlkt_check(int ok, const char *file, int line, const char *format, ...) MLKT_PRINTF(4, 5);
int mlkt_check_i64(int64_t got, int64_t want, const char *file, int line, const char *what);
int mlkt_check_str(const char *got, const char *want, const char *file, int line, const char *what);
int mlkt_check_f32(float got, float want, const char *file, int line, const char *what);
int mlkt_check_f32_n(const float *got, const float *want, size_t count, const char *file, int line, const char *what);
int mlkt_check_i64_n(const int64_t *got, const int64_t *want, size_t count, const char *file, int line,
                     const char *what);
int mlkt_check_status(const mlk_context *ctx, mlk_status got, mlk_status want, const char *file, int line,
                      const char *what);

/* What is being tested, printed behind every failure sentence of the case until it is set again. */
void mlkt_note(const char *format, ...) MLKT_PRINTF(1, 2);

/* Ends up as "skipped" unless a check of the case fails. The case itself returns. */
void mlkt_skip(const char *format, ...) MLKT_PRINTF(1, 2);

/* 1 after so many failures in the running case that more would only be noise: sweeps stop. */
int mlkt_hopeless(void);

/* Number of failures of the running case so far. */
int mlkt_failures(void);

/* ---- random numbers: splitmix64, the same on every machine ------------------------------------------------------- */

typedef struct mlkt_rng {
  uint64_t state;
} mlkt_rng;

mlkt_rng mlkt_rng_case(void);     /* from --seed and the case's name: no other case moves it */
uint64_t mlkt_u64(mlkt_rng *rng); /* uniform */
int64_t mlkt_int(mlkt_rng *rng, int64_t low, int64_t high); /* uniform in [low, high], both included */
float mlkt_unit(mlkt_rng *rng);                             /* uniform in [0, 1), 24 bits */
float mlkt_signed(mlkt_rng *rng);                           /* uniform in [-1, 1) */
float mlkt_wide(mlkt_rng *rng, int exponents); /* signed, times 2^e with e uniform in [-exponents, exponents] */

uint32_t mlkt_bits(float x);
float mlkt_float(uint32_t bits);

/* ---- guarded buffers --------------------------------------------------------------------------------------------- */

typedef enum mlkt_flush { MLKT_HEAD, MLKT_TAIL } mlkt_flush;

/* bytes of memory with a PROT_NONE page before and behind the mapping. MLKT_HEAD: data starts at the first byte after
   the front page (page-aligned); MLKT_TAIL: data ends at the last byte before the back page (aligned only as bytes is).
   The slack on the other side carries canaries. Without mmap: canaries on both sides. */
typedef struct mlkt_buffer {
  void *data;
  size_t bytes;
  unsigned char *map; /* first usable byte */
  size_t capacity;    /* usable bytes */
} mlkt_buffer;

mlkt_buffer mlkt_buffer_new(size_t bytes, mlkt_flush flush);
/* Same memory where it is large enough, placed again; contents are lost. */
void mlkt_buffer_place(mlkt_buffer *buffer, size_t bytes, mlkt_flush flush);
/* 1 when nobody wrote beside data. */
int mlkt_buffer_intact(const mlkt_buffer *buffer);
void mlkt_buffer_free(mlkt_buffer *buffer);
float *mlkt_buffer_f32(const mlkt_buffer *buffer);
int64_t *mlkt_buffer_i64(const mlkt_buffer *buffer);

/* Rogue bytes for padding and untouched outputs: quiet NaNs as f32, negative and absurd as i64. */
#define MLKT_ROGUE_BYTE 0xFEu
#define MLKT_ROGUE_F32  0x7FC0DEADu /* what mlkt_rogue_f32 writes: a quiet NaN with a payload of its own */
void mlkt_rogue_f32(float *x, size_t count);
void mlkt_rogue_i64(int64_t *x, size_t count);
int mlkt_is_rogue_f32(const float *x, size_t count); /* 1 when each is still the bit pattern of mlkt_rogue_f32 */
int mlkt_is_rogue_i64(const int64_t *x, size_t count);

/* ---- the counting, failing allocator ----------------------------------------------------------------------------- */

/* Zero it, set fail_at when wanted, hand out mlkt_memory_hook(&m). Not for several threads at once. Memory is handed
   out filled with rogue bytes, at the alignment asked for and no better, with canaries behind it. */
typedef struct mlkt_memory {
  uint64_t calls;      /* allocations asked for */
  uint64_t live_bytes; /* now */
  uint64_t peak_bytes; /* the most so far */
  uint64_t live_blocks;
  uint64_t fail_at;  /* this call (the first is 1) gives NULL; 0: none */
  int fail_for_ever; /* and every one after it */
  uint64_t failed;   /* calls answered with NULL */
  uint64_t wrongs;   /* bad alignment asked for, zero bytes, foreign or twice-freed pointers, other bytes, overruns */
  const char *first_wrong; /* in words, or NULL */
} mlkt_memory;

mlk_allocator mlkt_memory_hook(mlkt_memory *memory);
/* Checks that nothing is left and nothing went wrong. */
#define CHECK_MEMORY_EMPTY(memory) mlkt_check_memory_empty((memory), __FILE__, __LINE__)
int mlkt_check_memory_empty(const mlkt_memory *memory, const char *file, int line);

/* ---- rows, contexts, parallel hooks ------------------------------------------------------------------------------ */

/* The instruction sets to test: those available (MLK_ISA_REFERENCE is none), or the one of --isa. Gives how many. */
int mlkt_isas(mlk_isa isas[MLK_ISA_COUNT]);
/* The same and, unless --isa names one, MLK_ISA_REFERENCE behind them. */
int mlkt_isas_and_reference(mlk_isa isas[MLK_ISA_COUNT]);

/* A context for tests: isa and threads as given, parallel hook as --pool says. NULL after a failed check. */
mlk_context *mlkt_open(mlk_isa isa, int threads);
/* The descriptor mlkt_open would use, to be changed and opened with mlk_open. */
mlk_context_desc mlkt_context_desc(mlk_isa isa, int threads);

/* Parallel-for hooks of different manners, each offering workers tasks. */
mlk_parallel mlkt_parallel_serial(int workers);   /* one after another */
mlk_parallel mlkt_parallel_reversed(int workers); /* one after another, the last first */
mlk_parallel mlkt_parallel_threads(int workers);  /* a fresh thread for each index (serial without pthreads) */
mlk_parallel mlkt_parallel_pool(int workers);     /* the pool of --pool; calls from several threads take turns */
uint64_t mlkt_parallel_runs(void);                /* calls of any of these hooks so far, by all threads */

double mlkt_seconds(void); /* a monotonic clock */

#ifdef __cplusplus
}
#endif
#endif /* MLK_TEST_H */
