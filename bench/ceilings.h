/* What this machine can do at most: fused multiply-adds in registers, reading and copying memory out of cache.
   Measured here independently of mlk_measure; the two are printed side by side. */
#ifndef BENCH_CEILINGS_H
#define BENCH_CEILINGS_H

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define BENCH_X86 1
#else
#define BENCH_X86 0
#endif
#if defined(__aarch64__) && defined(__GNUC__)
#include <arm_neon.h>
#define BENCH_NEON 1
#else
#define BENCH_NEON 0
#endif

static volatile float sink_float;
static volatile uint64_t sink_u64;

#define REPEAT_12(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)

/* Latency 4, two a cycle: 8 chains are the least. 12, and not more: with 24 clang 14 spills. */
#if BENCH_X86
__attribute__((target("avx512f"))) static double fma_flops_avx512(int64_t steps) {
  const __m512 a = _mm512_set1_ps(sink_float * 0 + 0.5f), b = _mm512_set1_ps(sink_float * 0 + 0.25f);
#define DECLARE(i) __m512 c##i = _mm512_set1_ps((float)i);
#define STEP(i)    c##i = _mm512_fmadd_ps(c##i, a, b);
#define SUM(i)     sum = _mm512_add_ps(sum, c##i);
  __m512 sum = b;
  int64_t s;
  REPEAT_12(DECLARE)
  for (s = 0; s < steps; s++) { REPEAT_12(STEP) }
  REPEAT_12(SUM)
  sink_float = _mm512_cvtss_f32(sum) > 1e30f ? 1.0f : 0.0f;
  return (double)steps * 12 * 16 * 2;
#undef DECLARE
#undef STEP
#undef SUM
}

__attribute__((target("avx2,fma"))) static double fma_flops_avx2(int64_t steps) {
  const __m256 a = _mm256_set1_ps(sink_float * 0 + 0.5f), b = _mm256_set1_ps(sink_float * 0 + 0.25f);
#define DECLARE(i) __m256 c##i = _mm256_set1_ps((float)i);
#define STEP(i)    c##i = _mm256_fmadd_ps(c##i, a, b);
#define SUM(i)     sum = _mm256_add_ps(sum, c##i);
  __m256 sum = b;
  int64_t s;
  REPEAT_12(DECLARE)
  for (s = 0; s < steps; s++) { REPEAT_12(STEP) }
  REPEAT_12(SUM)
  sink_float = _mm256_cvtss_f32(sum) > 1e30f ? 1.0f : 0.0f;
  return (double)steps * 12 * 8 * 2;
#undef DECLARE
#undef STEP
#undef SUM
}

__attribute__((target("avx512f"))) static uint64_t read_avx512(const char *p, size_t bytes) {
  __m512i s0 = _mm512_setzero_si512(), s1 = s0, s2 = s0, s3 = s0;
  size_t i;
  for (i = 0; i + 256 <= bytes; i += 256) {
    s0 = _mm512_xor_si512(s0, _mm512_load_si512((const void *)(p + i)));
    s1 = _mm512_xor_si512(s1, _mm512_load_si512((const void *)(p + i + 64)));
    s2 = _mm512_xor_si512(s2, _mm512_load_si512((const void *)(p + i + 128)));
    s3 = _mm512_xor_si512(s3, _mm512_load_si512((const void *)(p + i + 192)));
  }
  s0 = _mm512_xor_si512(_mm512_xor_si512(s0, s1), _mm512_xor_si512(s2, s3));
  return (uint64_t)_mm_cvtsi128_si64(_mm512_castsi512_si128(s0));
}

__attribute__((target("avx2"))) static uint64_t read_avx2(const char *p, size_t bytes) {
  __m256i s0 = _mm256_setzero_si256(), s1 = s0, s2 = s0, s3 = s0;
  size_t i;
  for (i = 0; i + 128 <= bytes; i += 128) {
    s0 = _mm256_xor_si256(s0, _mm256_load_si256((const __m256i *)(const void *)(p + i)));
    s1 = _mm256_xor_si256(s1, _mm256_load_si256((const __m256i *)(const void *)(p + i + 32)));
    s2 = _mm256_xor_si256(s2, _mm256_load_si256((const __m256i *)(const void *)(p + i + 64)));
    s3 = _mm256_xor_si256(s3, _mm256_load_si256((const __m256i *)(const void *)(p + i + 96)));
  }
  s0 = _mm256_xor_si256(_mm256_xor_si256(s0, s1), _mm256_xor_si256(s2, s3));
  return (uint64_t)_mm_cvtsi128_si64(_mm256_castsi256_si128(s0));
}
#endif

#if BENCH_NEON
static double fma_flops_neon(int64_t steps) {
  const float32x4_t a = vdupq_n_f32(sink_float * 0 + 0.5f), b = vdupq_n_f32(sink_float * 0 + 0.25f);
#define DECLARE(i) float32x4_t c##i = vdupq_n_f32((float)i);
#define STEP(i)    c##i = vfmaq_f32(b, c##i, a);
#define SUM(i)     sum = vaddq_f32(sum, c##i);
  float32x4_t sum = b;
  int64_t s;
  REPEAT_12(DECLARE)
  for (s = 0; s < steps; s++) { REPEAT_12(STEP) }
  REPEAT_12(SUM)
  sink_float = vgetq_lane_f32(sum, 0) > 1e30f ? 1.0f : 0.0f;
  return (double)steps * 12 * 4 * 2;
#undef DECLARE
#undef STEP
#undef SUM
}
#endif

static uint64_t read_plain(const char *p, size_t bytes) {
  const uint64_t *x = (const uint64_t *)(const void *)p;
  uint64_t s0 = 0, s1 = 0, s2 = 0, s3 = 0;
  size_t i;
  for (i = 0; i + 4 <= bytes / 8; i += 4) s0 ^= x[i], s1 ^= x[i + 1], s2 ^= x[i + 2], s3 ^= x[i + 3];
  return s0 ^ s1 ^ s2 ^ s3;
}

/* Runs the loop of one instruction set; returns its flops, 0 when bench has no loop for it (the scalar row). */
static double fma_flops(mlk_isa isa, int64_t steps) {
#if BENCH_X86
  if (isa == MLK_ISA_AVX512) return fma_flops_avx512(steps);
  if (isa == MLK_ISA_AVX2) return fma_flops_avx2(steps);
#endif
#if BENCH_NEON
  if (isa == MLK_ISA_NEON) return fma_flops_neon(steps);
#endif
  (void)isa, (void)steps;
  return 0;
}

/* Set once by probe_memory_make: asking the processor takes microseconds, in a virtual machine many. */
static uint64_t (*read_once)(const char *p, size_t bytes) = read_plain;

/* Streams: n vectors are read side by side, line by line, and added; the sum goes to out past the caches (stream) or
   through them, or, with out NULL, over all n. */
#if BENCH_X86
#define STREAMS(name, target_name, vec, width, load, add, store, past)                                                 \
  __attribute__((target(target_name), always_inline)) static inline void name##_of(char *out, char *const *in, int n,  \
                                                                                   size_t bytes, int stream) {         \
    size_t i;                                                                                                          \
    int j, v;                                                                                                          \
    for (i = 0; i + 4 * (width) <= bytes; i += 4 * (width)) {                                                          \
      vec s[4];                                                                                                        \
      for (v = 0; v < 4; v++) s[v] = load((const void *)(in[0] + i + (size_t)v * (width)));                            \
      for (j = 1; j < n; j++)                                                                                          \
        for (v = 0; v < 4; v++) s[v] = add(s[v], load((const void *)(in[j] + i + (size_t)v * (width))));               \
      for (v = 0; v < 4; v++)                                                                                          \
        if (out && stream)                                                                                             \
          past((void *)(out + i + (size_t)v * (width)), s[v]);                                                         \
        else if (out)                                                                                                  \
          store((void *)(out + i + (size_t)v * (width)), s[v]);                                                        \
        else                                                                                                           \
          for (j = 0; j < n; j++) store((void *)(in[j] + i + (size_t)v * (width)), s[v]);                              \
    }                                                                                                                  \
  }                                                                                                                    \
  __attribute__((target(target_name))) static void name(char *out, char *const *in, int n, size_t bytes, int stream) { \
    if (n == 2)                                                                                                        \
      name##_of(out, in, 2, bytes, stream);                                                                            \
    else if (n == 4)                                                                                                   \
      name##_of(out, in, 4, bytes, stream);                                                                            \
    else if (n == 8)                                                                                                   \
      name##_of(out, in, 8, bytes, stream);                                                                            \
    else                                                                                                               \
      name##_of(out, in, n, bytes, stream);                                                                            \
    _mm_sfence();                                                                                                      \
  }
#define LOAD_512(p)     _mm512_load_si512(p)
#define STORE_512(p, x) _mm512_store_si512(p, x)
#define PAST_512(p, x)  _mm512_stream_si512((__m512i *)(p), x)
STREAMS(streams_avx512, "avx512f", __m512i, 64, LOAD_512, _mm512_add_epi32, STORE_512, PAST_512)
#define LOAD_256(p)     _mm256_load_si256((const __m256i *)(p))
#define STORE_256(p, x) _mm256_store_si256((__m256i *)(p), x)
#define PAST_256(p, x)  _mm256_stream_si256((__m256i *)(p), x)
STREAMS(streams_avx2, "avx2", __m256i, 32, LOAD_256, _mm256_add_epi32, STORE_256, PAST_256)
#endif

static void streams_plain(char *out, char *const *in, int n, size_t bytes, int stream) {
  size_t i;
  int j;
  (void)stream;
  for (i = 0; i + 8 <= bytes; i += 8) {
    uint64_t sum = 0;
    for (j = 0; j < n; j++) sum += *(const uint64_t *)(const void *)(in[j] + i);
    if (out)
      *(uint64_t *)(void *)(out + i) = sum;
    else
      for (j = 0; j < n; j++) *(uint64_t *)(void *)(in[j] + i) = sum;
  }
}

static void (*streams_once)(char *out, char *const *in, int n, size_t bytes, int stream) = streams_plain;

/* Four places of a slice at once: where one stream does not keep enough lines in flight. */
static uint64_t read_four(const char *p, size_t bytes) {
  const size_t quarter = bytes / 4 / 4096 * 4096, step = 1024;
  uint64_t s = 0;
  size_t i;
  for (i = 0; i < quarter; i += step) {
    s ^= read_once(p + i, step) ^ read_once(p + quarter + i, step);
    s ^= read_once(p + 2 * quarter + i, step) ^ read_once(p + 3 * quarter + i, step);
  }
  return s;
}

/* FLOP/s of threads threads together, over about seconds. */
static double fma_rate(mlk_isa isa, int threads, double seconds) {
  const int64_t steps = (int64_t)(seconds * 6e8) + 1; /* 12 chains, two a cycle, near 4 GHz: 6 cycles a step */
  double flops = 0, start;
  if (threads <= 1) {
    start = now();
    flops = fma_flops(isa, steps);
    return flops / (now() - start);
  }
#ifdef _OPENMP
  start = 0;
#pragma omp parallel num_threads(threads) reduction(+ : flops)
  {
#pragma omp barrier
#pragma omp master
    start = now();
    flops += fma_flops(isa, steps);
  }
  return flops / (now() - start);
#else
  return 0;
#endif
}

static double greater(double a, double b) { return a > b ? a : b; }

/* The buffer of the bandwidth probes: four times the last cache, 128 MiB to 1 GiB. */
static char *probe_memory;
static size_t probe_bytes;

/* What the system says of this machine's share; the processor's own words tell of the whole socket,
   even to a small guest. */
static size_t last_cache_bytes(void) {
  static size_t bytes;
  char path[128], size[32];
  int i;
  if (opt.cuda) return BENCH_DEVICE_CACHE;
  for (i = 0; i < 8 && bytes == 0; i++) {
    read_line(text(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/size", 7 - i), size, sizeof size);
    bytes = (size_t)strtol(size, NULL, 10) * 1024;
  }
#ifdef _SC_LEVEL3_CACHE_SIZE
  if (bytes == 0 && sysconf(_SC_LEVEL3_CACHE_SIZE) > 0) bytes = (size_t)sysconf(_SC_LEVEL3_CACHE_SIZE);
#endif
  if (bytes == 0) bytes = (size_t)32 << 20;
  return bytes;
}

static void probe_memory_make(void) {
  void *p = NULL;
  size_t i;
#if BENCH_X86
  if (mlk_isa_available(MLK_ISA_AVX512))
    read_once = read_avx512, streams_once = streams_avx512;
  else if (mlk_isa_available(MLK_ISA_AVX2))
    read_once = read_avx2, streams_once = streams_avx2;
#endif
  probe_bytes = 4 * last_cache_bytes();
  if (probe_bytes < (size_t)128 << 20) probe_bytes = (size_t)128 << 20;
  if (probe_bytes > (size_t)1 << 30) probe_bytes = (size_t)1 << 30;
  if (bench_device.ctx) {
    probe_bytes = 4 * BENCH_DEVICE_CACHE;
    device_must(mlk_alloc(bench_device.ctx, probe_bytes, &p));
    probe_memory = (char *)p; /* never looked at: copied only */
    return;
  }
  if (posix_memalign(&p, 4096, probe_bytes) != 0) die("no memory for the bandwidth probe");
  probe_memory = (char *)p;
  for (i = 0; i < probe_bytes; i += 8) memcpy(probe_memory + i, &i, 8);
}

/* Bytes per second of one pass over share of the buffer (1: all of it), cut over threads;
   four_streams per thread or one. */
static double read_rate(int threads, double share, int four_streams) {
  static size_t from; /* the next pass begins where the last one ended: nothing of it is in a cache */
  size_t bytes = (size_t)((double)probe_bytes * share) / (size_t)(threads * 65536) * (size_t)(threads * 65536), slice;
  uint64_t sum = 0;
  double start;
  if (from + bytes > probe_bytes) from = 0;
  slice = bytes / (size_t)threads;
  start = now();
#ifdef _OPENMP
#pragma omp parallel num_threads(threads) reduction(^ : sum) if (threads > 1)
  {
    const char *p = probe_memory + from + (size_t)omp_get_thread_num() * slice;
    sum ^= four_streams ? read_four(p, slice) : read_once(p, slice);
  }
#else
  sum = four_streams ? read_four(probe_memory + from, slice) : read_once(probe_memory + from, slice);
#endif
  start = now() - start;
  sink_u64 = sum;
  from += bytes;
  return (double)bytes / start;
}

/* Bytes read plus bytes written per second by copies within the device's memory, queued one after another like the
   calls of a sample: the one half of footprint bytes (at most the buffer's) to the other, again and again. */
static double device_copy_rate(double footprint) {
  const size_t all = footprint < (double)probe_bytes ? (size_t)footprint : probe_bytes;
  const size_t half = all < 512 ? 256 : all / 2 / 256 * 256;
  const int wanted = (int)(probe_bytes / (2 * half)), times = wanted > 200 ? 200 : wanted;
  double best = 0;
  int attempt, t;
  for (attempt = 0; attempt < 3; attempt++) { /* the first one brings the working set in */
    double start;
    device_wait();
    start = now();
    for (t = 0; t < times; t++)
      device_must(mlk_copy(bench_device.ctx, probe_memory + probe_bytes / 2, probe_memory, half));
    device_wait();
    best = greater(best, 2 * (double)half * times / (now() - start));
  }
  return best;
}

/* Empties the caches of threads threads: each reads its part of a buffer four times as large as the last one (of a
   device: a copy goes over as much). Returns the seconds it took. */
static double cache_flush(int threads) {
  const double start = now();
  if (bench_device.ctx)
    device_copy_rate((double)probe_bytes);
  else
    read_rate(threads, 1, 0);
  return now() - start;
}

/* Bytes read plus bytes written per second, copying one half of the buffer to the other with memcpy. */
static double copy_rate(int threads) {
  const size_t half = probe_bytes / 2, slice = half / (size_t)threads / 4096 * 4096;
  double start = now();
#ifdef _OPENMP
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const size_t at = (size_t)omp_get_thread_num() * slice;
    memcpy(probe_memory + half + at, probe_memory + at, slice);
  }
#else
  memcpy(probe_memory + half, probe_memory, slice);
#endif
  return 2 * (double)slice * threads / (now() - start);
}

/* Bytes per second over a working set of footprint bytes again and again, so that it stays in the cache that holds it:
   read, or with copies its one half copied to the other, reads and writes counted. The better of memcpy at once (which
   may go past the caches) and by pieces. A working set beyond the buffer is as far out of cache as one of its size. */
static double near_rate(int threads, size_t footprint, int copies) {
  const size_t piece = 1024, all = footprint < probe_bytes ? footprint : probe_bytes;
  const size_t slice = all / (copies ? 2 : 1) / (size_t)threads / piece * piece + piece * (all < 4 * piece);
  const size_t half = slice * (size_t)threads;
  const int times = (int)(((size_t)4 << 20) / (all + 1)) + 1;
  double best = 0;
  int attempt;
  for (attempt = 0; attempt < 3; attempt++) { /* the first one brings the working set in */
    const double start = now();
    uint64_t sum = 0;
#ifdef _OPENMP
#pragma omp parallel num_threads(threads) reduction(^ : sum) if (threads > 1)
    {
      const size_t at = (size_t)omp_get_thread_num() * slice;
#else
    {
      const size_t at = 0;
#endif
      size_t i;
      int t;
      for (t = 0; t < times; t++) {
        if (!copies)
          sum ^= read_once(probe_memory + at, slice);
        else if (attempt == 1)
          memcpy(probe_memory + half + at, probe_memory + at, slice);
        else
          for (i = 0; i < slice; i += piece) memcpy(probe_memory + half + at + i, probe_memory + at + i, piece);
      }
    }
    sink_u64 = sum;
    best = greater(best, (double)half * (copies ? 2 : 1) * times / (now() - start));
  }
  return best;
}

enum { MAX_STREAMS = 11 }; /* their gaps stay within a page */

/* Bytes read plus bytes written per second: n vectors into one more, or in place into each of them, footprint bytes
   together (beyond the buffer as near_rate). The best of stores past the caches and through them, of vectors that begin
   at the same place of a page and at different ones. */
static double streams_rate(int threads, int n, int in_place, size_t footprint) {
  const size_t all = footprint < probe_bytes ? footprint : probe_bytes, unit = all < (size_t)1 << 20 ? 256 : 4096;
  const size_t slice = all / (size_t)(n + !in_place) / (size_t)threads / unit * unit - unit; /* leaves room for gaps */
  const int times = (int)(((size_t)4 << 20) / (all + 1)) + 1;
  double best = 0;
  int attempt;
  for (attempt = 0; attempt < 5; attempt++) { /* the first one brings the working set in */
    const size_t step = slice * (size_t)threads + (attempt > 2 ? unit / 12 / 64 * 64 : 0);
    const double start = now();
#ifdef _OPENMP
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
      const size_t at = (size_t)omp_get_thread_num() * slice;
#else
    {
      const size_t at = 0;
#endif
      char *in[MAX_STREAMS];
      int t, j;
      for (j = 0; j < n; j++) in[j] = probe_memory + (size_t)j * step + at;
      for (t = 0; t < times; t++)
        streams_once(in_place ? NULL : probe_memory + (size_t)n * step + at, in, n, slice, attempt % 2);
    }
    best = greater(best, (double)slice * threads * (n + (in_place ? n : 1)) * times / (now() - start));
  }
  return best;
}

/* The ceilings of one instruction set and thread count. own: measured here; mlk: by mlk_measure. Rows measure again.
   A device has no loop of multiply-adds here, and what a copy moves stands for reading, too. */
typedef struct bench_ceiling {
  double fma_own, fma_mlk, read_own, read_mlk, copy;
} bench_ceiling;

#define MAX_CEILINGS 32
static struct {
  mlk_isa isa;
  int threads;
  bench_ceiling ceiling;
} ceilings[MAX_CEILINGS];
static int ceiling_count;

/* A context per thread count, instruction set and numerics, kept open for the whole run, and measured, so that its
   plans predict: by calls that were timed where the command has the seconds for that, else by the ceilings. */
typedef struct bench_context {
  int threads;
  mlk_isa isa;
  mlk_numerics numerics;
  mlk_context *ctx;
  mlk_calibration found; /* its ceilings always */
} bench_context;

static int calibrates(void) { return opt.command == COMMAND_PLAN || (opt.command == COMMAND_RUN && !opt.quick); }

static void context_measure(bench_context *c) {
  mlk_status status;
  wait_until_quiet();
  status = calibrates() ? mlk_calibrate(c->ctx, &c->found) : mlk_measure(c->ctx, &c->found.ceilings);
  if (status != MLK_OK) die("measuring %s, %d threads: %s", isa_name(c->isa), c->threads, mlk_last_error(c->ctx));
}

static const bench_context *context_of(int threads, mlk_isa isa, mlk_numerics numerics) {
  static bench_context open[32];
  static int count;
  bench_context *c;
  mlk_context_desc desc;
  int i;
  for (i = 0; i < count; i++)
    if (open[i].threads == threads && open[i].isa == isa && open[i].numerics == numerics) return &open[i];
  memset(&desc, 0, sizeof desc);
  desc.threads = threads, desc.isa = isa, desc.numerics = numerics;
  desc.log = context_says;
  device_into(&desc);
  if (numerics != MLK_STRICT && calibrates()) desc.calibration = &context_of(threads, isa, MLK_STRICT)->found;
  if (count == 32) die("too many contexts");
  c = &open[count++];
  if (mlk_open(&c->ctx, &desc) != MLK_OK) die("mlk_open(%d threads, %s): %s", threads, isa_name(isa), context_said);
  c->threads = threads, c->isa = isa, c->numerics = numerics;
  if (desc.calibration)
    c->found = *desc.calibration;
  else
    context_measure(c);
  return c;
}

static mlk_context *context(int threads, mlk_isa isa, mlk_numerics numerics) {
  return context_of(threads, isa, numerics)->ctx;
}

/* Memory does not depend on the instruction set: measured once per number of threads. */
static void memory_measure(bench_ceiling *c, int threads) {
  int i;
  for (i = 0; i < ceiling_count; i++)
    if (ceilings[i].threads == threads) {
      c->read_own = ceilings[i].ceiling.read_own, c->copy = ceilings[i].ceiling.copy;
      return;
    }
  if (bench_device.ctx) {
    c->read_own = c->copy = device_copy_rate((double)probe_bytes);
    return;
  }
  for (i = 0; i < 4; i++) {
    c->read_own = greater(c->read_own, read_rate(threads, 1, 0));
    c->read_own = greater(c->read_own, read_rate(threads, 1, 1));
    c->copy = greater(c->copy, copy_rate(threads));
  }
}

/* The ceilings of an instruction set and thread count, measured when they are first asked for. */
static const bench_ceiling *ceiling_of(mlk_isa isa, int threads) {
  const mlk_ceilings *m;
  bench_ceiling c;
  int i;
  for (i = 0; i < ceiling_count; i++)
    if (ceilings[i].isa == isa && ceilings[i].threads == threads) return &ceilings[i].ceiling;
  if (ceiling_count == MAX_CEILINGS) die("more than %d instruction sets and numbers of threads", MAX_CEILINGS);
  memset(&c, 0, sizeof c);
  m = &context_of(threads, isa, MLK_STRICT)->found.ceilings;
  wait_until_quiet();
  for (i = 0; i < 8 && !bench_device.ctx; i++) c.fma_own = greater(c.fma_own, fma_rate(isa, threads, 0.005));
  memory_measure(&c, threads);
  c.fma_mlk = threads > 1 ? m->flops_all : m->flops_1, c.read_mlk = threads > 1 ? m->read_all : m->read_1;
  ceilings[ceiling_count].isa = isa, ceilings[ceiling_count].threads = threads;
  ceilings[ceiling_count].ceiling = c;
  return &ceilings[ceiling_count++].ceiling;
}

#endif
