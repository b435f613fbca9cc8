/* test_main.c - the runner and the helpers of test.h. */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* MAP_ANONYMOUS and clock_gettime under -std=c99 */
#endif

#include "test.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#if MLKT_POSIX
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>
#endif

/* ---- the runner's state ----------------------------------------------------------------------------------------- */

enum { FAILURES_PRINTED = 8, FAILURES_HOPELESS = 20, FILTERS_MAX = 64 };

/* Texts of one option that may be given several times. */
typedef struct texts {
  const char *text[FILTERS_MAX];
  int count;
} texts;

mlkt_options mlkt_opt = {1, 0, 0, 0, 7, MLK_ISA_BEST, 0, 0};

static struct {
  const char *program;
  const char *name; /* of the running case */
  uint64_t checks;
  int failures;
  int skipped;
  char note[512];
  char skip[256];
} run;

static const mlkt_case *const tables[] = {
    mlkt_context_cases,
    mlkt_matmul_cases,
    mlkt_conv_cases,
    mlkt_conv_shapes_cases,
    mlkt_knn_cases,
    mlkt_layer_cases,
    mlkt_math_cases,
    mlkt_map_cases,
    mlkt_attention_cases,
    mlkt_attention_bits_cases,
    mlkt_attention_calls_cases,
    mlkt_average_cases,
    mlkt_group_cases,
#if defined(MLKT_CUDA)
    mlkt_cuda_cases,
    mlkt_cuda_conv_cases,
    mlkt_cuda_matmul_cases,
    mlkt_cuda_attention_cases,
    mlkt_cuda_layer_cases,
    mlkt_cuda_map_cases,
    mlkt_cuda_knn_cases,
#endif
};

double mlkt_seconds(void) {
#if MLKT_POSIX
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
#else
  return (double)clock() / CLOCKS_PER_SEC;
#endif
}

/* What this process has used of all processors: unlike a clock's time, not moved by what else runs here. */
static double processor_seconds(void) { return (double)clock() / CLOCKS_PER_SEC; }

static uint64_t mix(uint64_t x) { /* the finaliser of splitmix64 */
  x = (x ^ (x >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
  x = (x ^ (x >> 27)) * UINT64_C(0x94D049BB133111EB);
  return x ^ (x >> 31);
}

int mlkt_keep(uint64_t index) {
  return mlkt_opt.one_in <= 1 || mix(mix(index + 1) + mlkt_opt.seed) % (uint64_t)mlkt_opt.one_in == 0;
}

int mlkt_sampled(void) { return mlkt_opt.one_in > 20; }

int mlkt_has_word(const char *sentence, const char *text) {
  static const char word[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_";
  const size_t length = strlen(text);
  const char *p = sentence;
  while ((p = strstr(p, text)) != NULL) {
    if ((p == sentence || !strchr(word, p[-1])) && (p[length] == 0 || !strchr(word, p[length]))) return 1;
    p++;
  }
  return 0;
}

/* ---- checks ----------------------------------------------------------------------------------------------------- */

int mlkt_pass(void) {
  run.checks++;
  return 1;
}

int mlkt_check(int ok, const char *file, int line, const char *format, ...) {
  va_list arguments;
  run.checks++;
  if (ok) return 1;
  run.failures++;
  if (run.failures > FAILURES_PRINTED) return 0;
  printf("  %s:%d: in %s: ", file, line, run.name);
  va_start(arguments, format);
  vprintf(format, arguments);
  va_end(arguments);
  if (run.note[0]) printf("  [%s]", run.note);
  printf("\n");
  if (run.failures == FAILURES_PRINTED) printf("  further failures of this case are only counted\n");
  fflush(stdout);
  return 0;
}

int mlkt_check_i64(int64_t got, int64_t want, const char *file, int line, const char *what) {
  if (got == want) return mlkt_pass();
  return mlkt_check(0, file, line, "%s is %" PRId64 ", expected %" PRId64, what, got, want);
}

int mlkt_check_str(const char *got, const char *want, const char *file, int line, const char *what) {
  if (got && want && strcmp(got, want) == 0) return mlkt_pass();
  return mlkt_check(0, file, line, "%s is \"%s\", expected \"%s\"", what, got ? got : "(null)", want ? want : "(null)");
}

uint32_t mlkt_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

float mlkt_float(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

static int is_nan_bits(uint32_t bits) { return (bits & 0x7FFFFFFFu) > 0x7F800000u; }

static int same_f32(float a, float b) {
  const uint32_t x = mlkt_bits(a), y = mlkt_bits(b);
  return x == y || (is_nan_bits(x) && is_nan_bits(y));
}

int mlkt_check_f32(float got, float want, const char *file, int line, const char *what) {
  if (same_f32(got, want)) return mlkt_pass();
  return mlkt_check(0, file, line, "%s is %.9g (0x%08" PRIx32 "), expected %.9g (0x%08" PRIx32 ")", what, (double)got,
                    mlkt_bits(got), (double)want, mlkt_bits(want));
}

int mlkt_check_f32_n(const float *got, const float *want, size_t count, const char *file, int line, const char *what) {
  size_t i, first = count, differ = 0;
  if (count == 0 || memcmp(got, want, count * sizeof *got) == 0) return mlkt_pass();
  for (i = 0; i < count; i++)
    if (!same_f32(got[i], want[i])) {
      if (differ++ == 0) first = i;
    }
  if (differ == 0) return mlkt_pass();
  return mlkt_check(0, file, line,
                    "%s: %lu of %lu elements differ; the first is [%lu]: %.9g (0x%08" PRIx32
                    "), expected %.9g (0x%08" PRIx32 ")",
                    what, (unsigned long)differ, (unsigned long)count, (unsigned long)first, (double)got[first],
                    mlkt_bits(got[first]), (double)want[first], mlkt_bits(want[first]));
}

int mlkt_check_i64_n(const int64_t *got, const int64_t *want, size_t count, const char *file, int line,
                     const char *what) {
  size_t i, first = count, differ = 0;
  for (i = 0; i < count; i++)
    if (got[i] != want[i]) {
      if (differ++ == 0) first = i;
    }
  if (differ == 0) return mlkt_pass();
  return mlkt_check(0, file, line, "%s: %lu of %lu elements differ; the first is [%lu]: %" PRId64 ", expected %" PRId64,
                    what, (unsigned long)differ, (unsigned long)count, (unsigned long)first, got[first], want[first]);
}

int mlkt_check_status(const mlk_context *ctx, mlk_status got, mlk_status want, const char *file, int line,
                      const char *what) {
  if (got == want) return mlkt_pass();
  return mlkt_check(0, file, line, "%s gives \"%s\", expected \"%s\"; last error: \"%s\"", what, mlk_status_name(got),
                    mlk_status_name(want), ctx && got != MLK_OK ? mlk_last_error(ctx) : "");
}

void mlkt_note(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(run.note, sizeof run.note, format, arguments);
  va_end(arguments);
}

void mlkt_skip(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(run.skip, sizeof run.skip, format, arguments);
  va_end(arguments);
  run.skipped = 1;
}

int mlkt_hopeless(void) { return run.failures >= FAILURES_HOPELESS; }
int mlkt_failures(void) { return run.failures; }

/* ---- random numbers --------------------------------------------------------------------------------------------- */

mlkt_rng mlkt_rng_case(void) {
  mlkt_rng rng;
  const char *c;
  rng.state = mix(mlkt_opt.seed + UINT64_C(0x9E3779B97F4A7C15));
  for (c = run.name; c && *c; c++) rng.state = mix(rng.state + (uint64_t)(unsigned char)*c);
  return rng;
}

uint64_t mlkt_u64(mlkt_rng *rng) {
  rng->state += UINT64_C(0x9E3779B97F4A7C15);
  return mix(rng->state);
}

int64_t mlkt_int(mlkt_rng *rng, int64_t low, int64_t high) {
  const uint64_t span = (uint64_t)high - (uint64_t)low + 1;
  return (int64_t)((uint64_t)low + (span ? mlkt_u64(rng) % span : mlkt_u64(rng)));
}

float mlkt_unit(mlkt_rng *rng) { return (float)(mlkt_u64(rng) >> 40) * (1.0f / 16777216.0f); }
float mlkt_signed(mlkt_rng *rng) { return 2.0f * mlkt_unit(rng) - 1.0f; }

float mlkt_wide(mlkt_rng *rng, int exponents) {
  int e = (int)mlkt_int(rng, -exponents, exponents);
  float x = mlkt_signed(rng);
  for (; e > 0; e--) x *= 2.0f;
  for (; e < 0; e++) x *= 0.5f;
  return x;
}

/* ---- guarded buffers --------------------------------------------------------------------------------------------- */

enum { CANARY = 0xA5, CANARY_BYTES = 64 };

static void out_of_memory(void) {
  fprintf(stderr, "mlk_test: out of memory for the test itself\n");
  exit(2);
}

static size_t page_bytes(void) {
#if MLKT_POSIX
  static size_t page = 0;
  if (page == 0) page = (size_t)sysconf(_SC_PAGESIZE);
  return page;
#else
  return 64;
#endif
}

/* capacity usable bytes, a multiple of the page, between two pages that may not be touched. */
static unsigned char *map_guarded(size_t capacity) {
  const size_t page = page_bytes();
#if MLKT_POSIX
  void *whole = mmap(NULL, capacity + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (whole == MAP_FAILED) out_of_memory();
  if (getenv(
          "MLKT_OPEN_PAGES")) { /* qemu 7.2 reads all lanes of an AVX2 masked load: reading beyond is let pass there */
    if (mprotect(whole, capacity + 2 * page, PROT_READ | PROT_WRITE) != 0) out_of_memory();
  } else if (mprotect((unsigned char *)whole + page, capacity, PROT_READ | PROT_WRITE) != 0) {
    out_of_memory();
  }
  return (unsigned char *)whole + page;
#else
  unsigned char *whole = (unsigned char *)malloc(capacity + 2 * page);
  if (!whole) out_of_memory();
  memset(whole, CANARY, capacity + 2 * page);
  return whole + page;
#endif
}

static void unmap_guarded(unsigned char *map, size_t capacity) {
  const size_t page = page_bytes();
#if MLKT_POSIX
  munmap(map - page, capacity + 2 * page);
#else
  (void)capacity;
  free(map - page);
#endif
}

/* The canaries beside data: [*front, data) and [data end, *back). */
static void canary_range(const mlkt_buffer *buffer, unsigned char **front, unsigned char **back) {
  unsigned char *first = buffer->map, *last = buffer->map + buffer->capacity;
  unsigned char *data = (unsigned char *)buffer->data, *end = data + buffer->bytes;
#if !MLKT_POSIX
  first -= CANARY_BYTES;
  last += CANARY_BYTES;
#endif
  *front = data - first > CANARY_BYTES ? data - CANARY_BYTES : first;
  *back = last - end > CANARY_BYTES ? end + CANARY_BYTES : last;
}

void mlkt_buffer_place(mlkt_buffer *buffer, size_t bytes, mlkt_flush flush) {
  const size_t page = page_bytes();
  unsigned char *front, *back;
  if (!buffer->map || buffer->capacity < bytes) {
    if (buffer->map) unmap_guarded(buffer->map, buffer->capacity);
    buffer->capacity = (bytes + page - 1) / page * page;
    if (buffer->capacity == 0) buffer->capacity = page;
    buffer->map = map_guarded(buffer->capacity);
  }
  buffer->bytes = bytes;
  buffer->data = flush == MLKT_HEAD ? buffer->map : buffer->map + (buffer->capacity - bytes);
  canary_range(buffer, &front, &back);
  memset(front, CANARY, (size_t)((unsigned char *)buffer->data - front));
  memset((unsigned char *)buffer->data + bytes, CANARY, (size_t)(back - (unsigned char *)buffer->data) - bytes);
}

mlkt_buffer mlkt_buffer_new(size_t bytes, mlkt_flush flush) {
  mlkt_buffer buffer = {NULL, 0, NULL, 0};
  mlkt_buffer_place(&buffer, bytes, flush);
  return buffer;
}

int mlkt_buffer_intact(const mlkt_buffer *buffer) {
  unsigned char *front, *back, *p;
  canary_range(buffer, &front, &back);
  for (p = front; p < (unsigned char *)buffer->data; p++)
    if (*p != CANARY) return 0;
  for (p = (unsigned char *)buffer->data + buffer->bytes; p < back; p++)
    if (*p != CANARY) return 0;
  return 1;
}

void mlkt_buffer_free(mlkt_buffer *buffer) {
  if (!buffer->map) return;
  CHECK_MSG(mlkt_buffer_intact(buffer), "somebody wrote beside a buffer of %lu bytes", (unsigned long)buffer->bytes);
  unmap_guarded(buffer->map, buffer->capacity);
  memset(buffer, 0, sizeof *buffer);
}

float *mlkt_buffer_f32(const mlkt_buffer *buffer) { return (float *)buffer->data; }
int64_t *mlkt_buffer_i64(const mlkt_buffer *buffer) { return (int64_t *)buffer->data; }

void mlkt_rogue_f32(float *x, size_t count) {
  const uint32_t rogue = MLKT_ROGUE_F32;
  size_t i;
  for (i = 0; i < count; i++) memcpy(x + i, &rogue, sizeof rogue);
}

void mlkt_rogue_i64(int64_t *x, size_t count) {
  if (count) memset(x, (int)MLKT_ROGUE_BYTE, count * sizeof *x);
}

int mlkt_is_rogue_f32(const float *x, size_t count) {
  size_t i;
  for (i = 0; i < count; i++) {
    uint32_t bits;
    memcpy(&bits, x + i, sizeof bits);
    if (bits != MLKT_ROGUE_F32) return 0;
  }
  return 1;
}

int mlkt_is_rogue_i64(const int64_t *x, size_t count) {
  const unsigned char *p = (const unsigned char *)x;
  size_t i;
  for (i = 0; i < count * sizeof *x; i++)
    if (p[i] != MLKT_ROGUE_BYTE) return 0;
  return 1;
}

/* ---- the counting, failing allocator ----------------------------------------------------------------------------- */

/* In front of each block; the block starts at an odd multiple of its alignment, so nobody gets
   better than he asked for. */
typedef struct block_head {
  void *whole;
  uint64_t bytes;
  mlkt_memory *owner; /* also the mark that the block is live */
} block_head;

static void memory_wrong(mlkt_memory *memory, const char *what) {
  if (memory->wrongs++ == 0) memory->first_wrong = what;
}

static void *memory_alloc(void *user, size_t bytes, size_t alignment) {
  mlkt_memory *memory = (mlkt_memory *)user;
  unsigned char *whole, *data;
  block_head head;
  memory->calls++;
  if (bytes == 0) memory_wrong(memory, "an allocation of zero bytes");
  if (alignment == 0 || (alignment & (alignment - 1)) != 0 || alignment > 4096) {
    memory_wrong(memory, "an alignment that is no power of two up to 4096");
    alignment = 64;
  }
  if (memory->fail_at &&
      (memory->calls == memory->fail_at || (memory->fail_for_ever && memory->calls > memory->fail_at))) {
    memory->failed++;
    return NULL;
  }
  if (bytes > SIZE_MAX / 4) return NULL; /* sanitizers stop the program at absurd sizes instead of giving NULL */
  whole = (unsigned char *)malloc(bytes + 3 * alignment + sizeof head + CANARY_BYTES);
  if (!whole) return NULL;
  data = whole + sizeof head;
  data += (alignment - (uintptr_t)data % alignment) % alignment;
  if ((uintptr_t)data / alignment % 2 == 0) data += alignment;
  head.whole = whole;
  head.bytes = bytes;
  head.owner = memory;
  memcpy(data - sizeof head, &head, sizeof head);
  memset(data, (int)MLKT_ROGUE_BYTE, bytes);
  memset(data + bytes, CANARY, CANARY_BYTES);
  memory->live_blocks++;
  memory->live_bytes += bytes;
  if (memory->live_bytes > memory->peak_bytes) memory->peak_bytes = memory->live_bytes;
  return data;
}

static void memory_free(void *user, void *data, size_t bytes) {
  mlkt_memory *memory = (mlkt_memory *)user;
  unsigned char *p = (unsigned char *)data;
  block_head head;
  size_t i;
  if (!data) {
    memory_wrong(memory, "a free of NULL");
    return;
  }
  memcpy(&head, p - sizeof head, sizeof head);
  if (head.owner != memory) { /* do not touch memory that is not ours: the count of live blocks will tell as well */
    memory_wrong(memory, "a free of a foreign or already freed block");
    return;
  }
  if (head.bytes != bytes) memory_wrong(memory, "a free with other bytes than the allocation");
  for (i = 0; i < CANARY_BYTES; i++)
    if (p[head.bytes + i] != CANARY) break;
  if (i < CANARY_BYTES) memory_wrong(memory, "a write beyond the end of a block");
  memory->live_blocks--;
  memory->live_bytes -= head.bytes;
  memset(p - sizeof head, 0, sizeof head);
  memset(p, 0xDD, (size_t)head.bytes);
  free(head.whole);
}

mlk_allocator mlkt_memory_hook(mlkt_memory *memory) {
  mlk_allocator hook;
  hook.alloc = memory_alloc;
  hook.free = memory_free;
  hook.user = memory;
  return hook;
}

int mlkt_check_memory_empty(const mlkt_memory *memory, const char *file, int line) {
  int ok = mlkt_check(memory->live_blocks == 0 && memory->live_bytes == 0, file, line,
                      "%" PRIu64 " blocks of %" PRIu64 " bytes were not freed", memory->live_blocks,
                      memory->live_bytes);
  return mlkt_check(memory->wrongs == 0, file, line, "%" PRIu64 " misuses of the allocator, the first: %s",
                    memory->wrongs, memory->first_wrong ? memory->first_wrong : "none") &&
         ok;
}

/* ---- parallel hooks ---------------------------------------------------------------------------------------------- */

typedef void (*task_body)(void *arg, int index);

enum { POOL_MAX = 16 };

#if MLKT_POSIX
static pthread_mutex_t runs_lock = PTHREAD_MUTEX_INITIALIZER;
#endif
static uint64_t runs_count;

static void count_run(void) {
#if MLKT_POSIX
  pthread_mutex_lock(&runs_lock);
#endif
  runs_count++;
#if MLKT_POSIX
  pthread_mutex_unlock(&runs_lock);
#endif
}

uint64_t mlkt_parallel_runs(void) {
  uint64_t count;
#if MLKT_POSIX
  pthread_mutex_lock(&runs_lock);
#endif
  count = runs_count;
#if MLKT_POSIX
  pthread_mutex_unlock(&runs_lock);
#endif
  return count;
}

static void run_serial(void *user, int count, task_body body, void *arg) {
  int i;
  (void)user;
  count_run();
  for (i = 0; i < count; i++) body(arg, i);
}

static void run_reversed(void *user, int count, task_body body, void *arg) {
  int i;
  (void)user;
  count_run();
  for (i = count - 1; i >= 0; i--) body(arg, i);
}

#if MLKT_POSIX
typedef struct thread_task {
  task_body body;
  void *arg;
  int index;
  pthread_t thread;
  int started;
} thread_task;

static void *thread_main(void *user) {
  thread_task *task = (thread_task *)user;
  task->body(task->arg, task->index);
  return NULL;
}

static void run_threads(void *user, int count, task_body body, void *arg) {
  thread_task *tasks = (thread_task *)calloc((size_t)count + 1, sizeof *tasks);
  int i;
  (void)user;
  count_run();
  if (!tasks) out_of_memory();
  for (i = 0; i < count; i++) {
    tasks[i].body = body;
    tasks[i].arg = arg;
    tasks[i].index = i;
    tasks[i].started = pthread_create(&tasks[i].thread, NULL, thread_main, &tasks[i]) == 0;
    if (!tasks[i].started) body(arg, i);
  }
  for (i = 0; i < count; i++)
    if (tasks[i].started) pthread_join(tasks[i].thread, NULL);
  free(tasks);
}

/* A fixed crew that takes indices from a counter under one lock: as plain as can be, so that TSan sees every edge. */
static struct {
  pthread_mutex_t lock, turn;
  pthread_cond_t work, done;
  pthread_t threads[POOL_MAX];
  int size;
  task_body body;
  void *arg;
  int count, next, left;
  int stop;
} pool;

static void *pool_main(void *user) {
  (void)user;
  pthread_mutex_lock(&pool.lock);
  for (;;) {
    while (!pool.stop && pool.next >= pool.count) pthread_cond_wait(&pool.work, &pool.lock);
    if (pool.stop) break;
    {
      const int index = pool.next++;
      pthread_mutex_unlock(&pool.lock);
      pool.body(pool.arg, index);
      pthread_mutex_lock(&pool.lock);
      if (--pool.left == 0) pthread_cond_signal(&pool.done);
    }
  }
  pthread_mutex_unlock(&pool.lock);
  return NULL;
}

static pthread_once_t pool_once = PTHREAD_ONCE_INIT;

static void pool_start(void) {
  pthread_mutex_init(&pool.lock, NULL);
  pthread_mutex_init(&pool.turn, NULL);
  pthread_cond_init(&pool.work, NULL);
  pthread_cond_init(&pool.done, NULL);
  for (pool.size = 0; pool.size < 4; pool.size++)
    if (pthread_create(&pool.threads[pool.size], NULL, pool_main, NULL) != 0) break;
  if (pool.size == 0) out_of_memory();
}

static void pool_stop(void) {
  int i;
  if (pool.size == 0) return;
  pthread_mutex_lock(&pool.lock);
  pool.stop = 1;
  pthread_cond_broadcast(&pool.work);
  pthread_mutex_unlock(&pool.lock);
  for (i = 0; i < pool.size; i++) pthread_join(pool.threads[i], NULL);
  pool.size = 0;
}

static void run_pool(void *user, int count, task_body body, void *arg) {
  (void)user;
  count_run();
  pthread_once(&pool_once, pool_start);
  pthread_mutex_lock(&pool.turn);
  pthread_mutex_lock(&pool.lock);
  pool.body = body;
  pool.arg = arg;
  pool.count = count;
  pool.next = 0;
  pool.left = count;
  pthread_cond_broadcast(&pool.work);
  while (pool.left > 0) pthread_cond_wait(&pool.done, &pool.lock);
  pool.count = pool.next = 0;
  pthread_mutex_unlock(&pool.lock);
  pthread_mutex_unlock(&pool.turn);
}
#else
#define run_threads run_serial
#define run_pool    run_serial
static void pool_stop(void) {}
#endif

static mlk_parallel parallel_hook(void (*hook)(void *, int, task_body, void *), int workers) {
  mlk_parallel parallel;
  parallel.run = hook;
  parallel.user = NULL;
  parallel.workers = workers;
  return parallel;
}

mlk_parallel mlkt_parallel_serial(int workers) { return parallel_hook(run_serial, workers); }
mlk_parallel mlkt_parallel_reversed(int workers) { return parallel_hook(run_reversed, workers); }
mlk_parallel mlkt_parallel_threads(int workers) { return parallel_hook(run_threads, workers); }
mlk_parallel mlkt_parallel_pool(int workers) { return parallel_hook(run_pool, workers); }

/* ---- rows and contexts ------------------------------------------------------------------------------------------- */

#if defined(MLKT_CUDA)
const mlk_backend *mlk_cuda_backend(void); /* a program that has it links the object of mlk_cuda.cuh */
#endif

int mlkt_isas(mlk_isa isas[MLK_ISA_COUNT]) {
  int count = 0, i;
  if (mlkt_opt.cuda) { /* rows are the CPU's */
    isas[0] = MLK_ISA_SCALAR;
    return 1;
  }
  for (i = MLK_ISA_SCALAR; i < MLK_ISA_COUNT; i++) {
    const mlk_isa isa = (mlk_isa)i;
    if (!mlk_isa_available(isa)) continue;
    if (mlkt_opt.isa == MLK_ISA_BEST ? isa != MLK_ISA_REFERENCE : isa == mlkt_opt.isa) isas[count++] = isa;
  }
  return count;
}

int mlkt_isas_and_reference(mlk_isa isas[MLK_ISA_COUNT]) {
  int count = mlkt_isas(isas);
  if (mlkt_opt.isa == MLK_ISA_BEST) isas[count++] = MLK_ISA_REFERENCE;
  return count;
}

mlk_context_desc mlkt_context_desc(mlk_isa isa, int threads) {
  mlk_context_desc desc;
  memset(&desc, 0, sizeof desc);
  desc.isa = isa == MLK_ISA_BEST ? mlkt_opt.isa : isa;
  desc.threads = threads;
  if (mlkt_opt.pool) desc.parallel = mlkt_parallel_pool(threads > 0 ? threads : 4);
#if defined(MLKT_CUDA)
  if (mlkt_opt.cuda && isa != MLK_ISA_REFERENCE) {
    desc.backends[0] = mlk_cuda_backend();
    desc.device = MLK_DEVICE_BACKEND, desc.host_arrays = MLK_HOST_STAGED;
  }
#endif
  return desc;
}

mlk_context *mlkt_open(mlk_isa isa, int threads) {
  const mlk_context_desc desc = mlkt_context_desc(isa, threads);
  mlk_context *ctx = NULL;
  const mlk_status status = mlk_open(&ctx, &desc);
  CHECK_MSG(status == MLK_OK && ctx, "mlk_open(isa %s, threads %d) gives \"%s\"", mlk_isa_name(desc.isa), threads,
            mlk_status_name(status));
  return status == MLK_OK ? ctx : NULL;
}

/* ---- the command line -------------------------------------------------------------------------------------------- */

static void print_help(void) {
  printf("usage: %s [options]\n"
         "  --list             print the names of the cases and stop\n"
         "  --filter TEXT      run the cases whose name contains TEXT; may be given several times\n"
         "  --without TEXT     leave out the cases whose name contains TEXT; may be given several times\n"
         "  --seed N           of all random numbers (default 1)\n"
         "  --quick            smaller cases, and about one sweep point in 20\n"
         "  --one-in N         about one sweep point in N\n"
         "  --every-case       more of them in cases that have none of these\n"
         "  --long             also what takes minutes or gigabytes\n"
         "  --threads-max N    most threads a context is asked for, 1..64 (default 7)\n"
         "  --isa NAME         test this instruction set only: scalar, neon, avx2, avx512, reference\n"
         "  --cuda             on a CUDA device, or its emulator, against the reference on the CPU\n"
         "  --pool             run tasks on a pthread pool through the parallel hook instead of OpenMP\n"
         "  --help             this text\n"
         "exit code: 0 all passed, 1 some failed, 2 bad command line\n",
         run.program);
}

static int one_of(const texts *list, const char *name) { /* 1 when name contains one of them */
  int i;
  for (i = 0; i < list->count; i++)
    if (strstr(name, list->text[i])) return 1;
  return 0;
}

static int usage_error(const char *what, const char *value) {
  fprintf(stderr, "mlk_test: %s%s%s; try --help\n", what, value ? ": " : "", value ? value : "");
  return 2;
}

static int parse_u64(const char *text, uint64_t *value) {
  char *end;
  if (!text || *text < '0' || *text > '9') return 0;
  *value = strtoull(text, &end, 0);
  return *end == 0;
}

static void print_repro(const char *name) {
  printf("  repro: %s --filter %s --seed %" PRIu64 "%s%s%s", run.program, name, mlkt_opt.seed,
         mlkt_opt.quick ? " --quick" : "", mlkt_opt.long_run ? " --long" : "", mlkt_opt.pool ? " --pool" : "");
  if (mlkt_opt.cuda) printf(" --cuda");
  if (mlkt_opt.one_in != (mlkt_opt.quick ? 20 : 1)) printf(" --one-in %d", mlkt_opt.one_in);
  if (mlkt_opt.isa != MLK_ISA_BEST) printf(" --isa %s", mlk_isa_name(mlkt_opt.isa));
  if (mlkt_opt.threads_max != 7) printf(" --threads-max %d", mlkt_opt.threads_max);
  printf("\n");
}

int main(int argc, char **argv) {
  texts filters = {{NULL}, 0}, without = {{NULL}, 0};
  int list = 0, every_case = 0, passed = 0, failed = 0, skipped = 0, i;
  const mlkt_case *c;
  mlk_isa isas[MLK_ISA_COUNT];
  const double start = mlkt_seconds();
  uint64_t value;
  size_t t;
  run.program = argv[0];
  for (i = 1; i < argc; i++) {
    const char *option = argv[i], *next = i + 1 < argc ? argv[i + 1] : NULL;
    if (strcmp(option, "--list") == 0) list = 1;
#if defined(MLKT_CUDA)
    else if (strcmp(option, "--cuda") == 0)
      mlkt_opt.cuda = 1;
#endif
    else if (strcmp(option, "--quick") == 0)
      mlkt_opt.quick = 1;
    else if (strcmp(option, "--long") == 0)
      mlkt_opt.long_run = 1;
    else if (strcmp(option, "--pool") == 0)
      mlkt_opt.pool = 1;
    else if (strcmp(option, "--help") == 0)
      return print_help(), 0;
    else if (strcmp(option, "--filter") == 0 || strcmp(option, "--without") == 0) {
      texts *kept = strcmp(option, "--filter") == 0 ? &filters : &without;
      if (!next) return usage_error("needs a text", option);
      if (kept->count == FILTERS_MAX) return usage_error("given too often", option);
      kept->text[kept->count++] = next;
      i++;
    } else if (strcmp(option, "--seed") == 0) {
      if (!parse_u64(next, &mlkt_opt.seed)) return usage_error("--seed needs a number, not", next ? next : "nothing");
      i++;
    } else if (strcmp(option, "--threads-max") == 0) {
      if (!parse_u64(next, &value) || value < 1 || value > 64)
        return usage_error("--threads-max needs a number from 1 to 64, not", next ? next : "nothing");
      mlkt_opt.threads_max = (int)value;
      i++;
    } else if (strcmp(option, "--one-in") == 0) {
      if (!parse_u64(next, &value) || value < 1 || value > 1000000)
        return usage_error("--one-in needs a number from 1 to 1000000, not", next ? next : "nothing");
      mlkt_opt.one_in = (int)value;
      i++;
    } else if (strcmp(option, "--every-case") == 0) {
      every_case = 1;
    } else if (strcmp(option, "--isa") == 0) {
      int isa = MLK_ISA_SCALAR;
      while (isa < MLK_ISA_COUNT && (!next || strcmp(next, mlk_isa_name((mlk_isa)isa)) != 0)) isa++;
      if (isa == MLK_ISA_COUNT)
        return usage_error("--isa needs scalar, neon, avx2, avx512 or reference, not", next ? next : "nothing");
      if (!mlk_isa_available((mlk_isa)isa)) return usage_error("this build or machine does not run", next);
      mlkt_opt.isa = (mlk_isa)isa;
      i++;
    } else
      return usage_error("unknown option", option);
  }
  if (mlkt_opt.one_in == 0) mlkt_opt.one_in = mlkt_opt.quick ? 20 : 1;
  if (!list) {
    const int rows = mlkt_isas(isas);
    printf("mlk_test: seed %" PRIu64 "%s, instruction sets", mlkt_opt.seed, mlkt_opt.quick ? ", quick" : "");
    for (i = 0; i < rows; i++) printf(" %s", mlk_isa_name(isas[i]));
    printf("\n");
    fflush(stdout);
  }
  for (t = 0; t < sizeof tables / sizeof tables[0]; t++) {
    for (c = tables[t]; c->name; c++) {
      const int one_in = mlkt_opt.one_in;
      double before;
      if ((filters.count > 0 && !one_of(&filters, c->name)) || one_of(&without, c->name)) continue;
      if (list) {
        printf("%s\n", c->name);
        continue;
      }
      run.name = c->name;
      run.checks = 0;
      run.failures = run.skipped = 0;
      run.note[0] = run.skip[0] = 0;
      before = processor_seconds();
      c->run();
      for (; every_case && run.checks == 0 && !run.skipped && mlkt_opt.one_in > 1; c->run())
        mlkt_opt.one_in = mlkt_opt.one_in > 4 ? mlkt_opt.one_in / 4 : 1;
      if (run.checks == 0 && !run.skipped) mlkt_skip("not one check was made: is --quick too quick?");
      if (run.failures) {
        failed++;
        printf("FAIL %-40s %9" PRIu64 " checks, %d failed, %.2f s\n", c->name, run.checks, run.failures,
               processor_seconds() - before);
        print_repro(c->name);
      } else if (run.skipped) {
        skipped++;
        printf("skip %-40s %s\n", c->name, run.skip);
      } else {
        passed++;
        printf("ok   %-40s %9" PRIu64 " checks, %.2f s\n", c->name, run.checks, processor_seconds() - before);
      }
      mlkt_opt.one_in = one_in;
      fflush(stdout);
    }
  }
  pool_stop();
  if (list) return 0;
  if (passed + failed + skipped == 0) return usage_error("no case matches the filters", NULL);
  printf("%d passed, %d failed, %d skipped in %.1f s\n", passed, failed, skipped, mlkt_seconds() - start);
  return failed ? 1 : 0;
}
