/* What every part of bench needs: clock, memory, random numbers, statistics, text. Included by mlk_bench.c only. */
#ifndef BENCH_UTIL_H
#define BENCH_UTIL_H

static void die(const char *format, ...) {
  va_list args;
  va_start(args, format);
  fputs("mlk_bench: ", stderr);
  vfprintf(stderr, format, args);
  fputc('\n', stderr);
  va_end(args);
  exit(2);
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static double cpu_time(void) {
  struct timespec t;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void sleep_ms(long ms) {
  struct timespec t;
  t.tv_sec = ms / 1000, t.tv_nsec = ms % 1000 * 1000000;
  nanosleep(&t, NULL);
}

/* Waits until the idle threads of every runtime in this process have stopped spinning, so that nobody's sample pays for
   somebody else's waiting: the processor time of the process stands still. */
static void wait_until_quiet(void) {
  int i;
  for (i = 0; i < 60; i++) {
    const double before = cpu_time();
    sleep_ms(2);
    if (cpu_time() - before < 0.0003) return;
  }
}

/* splitmix64: the data of a row depend on its name's seed and on nothing else. */
static uint64_t random_next(uint64_t *state) {
  uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
  z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
  z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
  return z ^ (z >> 31);
}

/* Uniform in low .. high. */
static int random_int(uint64_t *state, int low, int high) {
  return low + (int)(random_next(state) % (uint64_t)(high - low + 1));
}

/* Integers -4 .. 4: every sum of K < 2^20 products is exact in f32 in any order, so results are compared with ==. */
static void fill_small_integers(float *x, int64_t count, uint64_t seed) {
  int64_t i;
  for (i = 0; i < count; i++) x[i] = (float)random_int(&seed, -4, 4);
}

static void fill_nan(float *x, int64_t count) { memset(x, 0xff, (size_t)count * sizeof *x); }

static int compare_doubles(const void *a, const void *b) {
  const double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

/* Of values sorted ascending: the point below which the share p lies. */
static double quantile(const double *sorted, int count, double p) {
  const double at = p * (double)(count - 1);
  const int low = (int)at;
  const double part = at - low;
  return low + 1 < count ? sorted[low] * (1 - part) + sorted[low + 1] * part : sorted[count - 1];
}

static char *text(char *out, size_t size, const char *format, ...) {
  va_list args;
  va_start(args, format);
  vsnprintf(out, size, format, args);
  va_end(args);
  return out;
}

/* The first line of a small file without its newline; "" when there is none. */
static char *read_line(const char *path, char *out, size_t size) {
  FILE *f = fopen(path, "r");
  out[0] = 0;
  if (!f) return out;
  if (!fgets(out, (int)size, f)) out[0] = 0;
  fclose(f);
  out[strcspn(out, "\r\n")] = 0;
  return out;
}

/* 8.12 ms */
static char *format_time(char *out, size_t size, double seconds) {
  if (seconds < 1e-6) return text(out, size, "%.1f ns", seconds * 1e9);
  if (seconds < 1e-3) return text(out, size, "%.2f us", seconds * 1e6);
  if (seconds < 1) return text(out, size, "%.2f ms", seconds * 1e3);
  return text(out, size, "%.3f s", seconds);
}

#endif
