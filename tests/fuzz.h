/* fuzz.h - what the fuzz targets of the examples' file readers share.

   A target, tests/fuzz_NAME.c, includes an example with its main renamed, in this order:

     #include "fuzz.h"                    (example: 04_semantic_search)     the script reads this name
     #define main example_main
     #include FUZZ_EXAMPLE
     #undef main

   and defines the two functions declared below. tests/fuzz_readers.sh builds and runs it in two ways:
     - with libFuzzer (clang -fsanitize=fuzzer -DFUZZ_LIBFUZZER), which searches;
     - with the main below, which feeds it valid inputs, all their prefixes, and mutations that depend on a seed alone.
   Inputs lie in memory of exactly their size, so that AddressSanitizer sees each byte read beyond them. What the
   example says to stderr is dropped. */

#ifndef FUZZ_H
#define FUZZ_H

#if !defined(_WIN32) && !defined(_POSIX_C_SOURCE)
#define _POSIX_C_SOURCE 200809L /* as the examples have it */
#endif

#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Reads the input as the file reader under test reads a file; returns 0. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Valid input number 0, 1, ... into to; returns its size, or 0 when there is none of that number. */
static size_t fuzz_seed(int number, uint8_t *to, size_t room);

/* A reader that accepts what it must not, or refuses what it must accept, is a bug like a crash. */
static void fuzz_require(int holds, const char *what) {
  if (holds) return;
  fprintf(stderr, "fuzz: %s\n", what);
  abort();
}

static uint8_t *fuzz_put(uint8_t *to, uint64_t value, int bytes) {
  int i;
  for (i = 0; i < bytes; i++) *to++ = (uint8_t)(value >> (8 * i));
  return to;
}

#if !defined(FUZZ_LIBFUZZER)
enum { FUZZ_ROOM = 1 << 16, FUZZ_MUTATIONS = 6 };

static char fuzz_where[96]; /* what to repeat, for the handler */

static void fuzz_died(int number) {
  fputs(fuzz_where, stderr);
  signal(number, SIG_DFL);
  raise(number);
}

/* SplitMix64 */
static uint64_t fuzz_draw(uint64_t *state) {
  uint64_t x = *state += UINT64_C(0x9e3779b97f4a7c15);
  x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
  x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
  return x ^ (x >> 31);
}

static size_t fuzz_below(uint64_t *state, size_t bound) { return bound ? (size_t)(fuzz_draw(state) % bound) : 0; }

/* Sizes and counts at which arithmetic goes wrong. */
static uint64_t fuzz_number(uint64_t *state, size_t size) {
  const uint64_t base[] = {
      0,          1,  size, size - 8, UINT64_C(1) << 31, UINT64_C(1) << 32, UINT64_C(1) << 62, UINT64_C(1) << 63,
      UINT64_MAX, 16, 255,  65536};
  const uint64_t value = base[fuzz_below(state, sizeof base / sizeof *base)];
  return value + fuzz_below(state, 5) - 2;
}

/* One change of the input; the new size. */
static size_t fuzz_mutate(uint64_t *state, uint8_t *data, size_t size) {
  static const char letters[] = "\"{}[]:,0123456789-+.eE \\u\n\t\x80\xff\x00#";
  const size_t at = fuzz_below(state, size ? size : 1), from = fuzz_below(state, size ? size : 1);
  size_t count = 1 + fuzz_below(state, 16), i;
  if (count > size - at) count = size - at;
  switch (fuzz_below(state, 9)) {
  case 0: /* a bit */
    if (size) data[at] = (uint8_t)(data[at] ^ (1u << fuzz_below(state, 8)));
    break;
  case 1: /* a byte that means something */
    if (size) data[at] = (uint8_t)letters[fuzz_below(state, sizeof letters)];
    break;
  case 2: /* random bytes */
    for (i = 0; i < count; i++) data[at + i] = (uint8_t)fuzz_draw(state);
    break;
  case 3:   /* a little-endian integer */
  case 4: { /* the same, aligned */
    const size_t width = fuzz_below(state, 2) ? 8 : 4, place = fuzz_below(state, 2) ? at : at / width * width;
    if (size >= width && place <= size - width) fuzz_put(data + place, fuzz_number(state, size), (int)width);
    break;
  }
  case 5: /* cut out */ memmove(data + at, data + at + count, size - at - count); return size - count;
  case 6: /* cut off */ return at;
  case 7: /* copy some of it elsewhere */
    if (size) memmove(data + at, data + from, count < size - from ? count : size - from);
    break;
  default: /* put some of it in between */
    if (count > size - from) count = size - from;
    if (size + count > FUZZ_ROOM) break;
    memmove(data + at + count, data + at, size - at);
    for (i = 0; i < count; i++) data[at + i] = (uint8_t)letters[fuzz_below(state, sizeof letters)];
    return size + count;
  }
  return size;
}

/* From memory of exactly this size. */
static void fuzz_feed(const uint8_t *data, size_t size) {
  uint8_t *exact = (uint8_t *)malloc(size ? size : 1);
  if (!exact) exit(2);
  memcpy(exact, data, size);
  LLVMFuzzerTestOneInput(exact, size);
  free(exact);
}

/* Input number round of the seed: a valid one, changed in one to FUZZ_MUTATIONS places. */
static void fuzz_round(uint8_t *data, uint64_t seed, uint64_t round, int seeds) {
  uint64_t state = seed * UINT64_C(0x100000001) + round;
  size_t size = fuzz_seed((int)fuzz_below(&state, (size_t)seeds), data, FUZZ_ROOM), changes;
  for (changes = 1 + fuzz_below(&state, FUZZ_MUTATIONS); changes > 0; changes--) size = fuzz_mutate(&state, data, size);
  fuzz_feed(data, size);
}

/* usage: fuzz_NAME ROUNDS SEED    all valid inputs, their prefixes, then mutations
          fuzz_NAME --only ROUND SEED     one mutation
          fuzz_NAME --seeds DIR    the valid inputs as files, for libFuzzer */
int main(int argc, char **argv) {
  uint8_t *data = (uint8_t *)malloc(FUZZ_ROOM);
  const int only = argc == 4 && !strcmp(argv[1], "--only"), write = argc == 3 && !strcmp(argv[1], "--seeds");
  const uint64_t rounds = only ? strtoull(argv[2], NULL, 10) : (argc > 1 ? strtoull(argv[1], NULL, 10) : 1000);
  const uint64_t seed = only || argc == 3 ? strtoull(argv[argc - 1], NULL, 10) : 1;
  uint64_t round;
  size_t size, length;
  int seeds;
  if (!data) return 2;
  signal(SIGABRT, fuzz_died), signal(SIGSEGV, fuzz_died);
  for (seeds = 0; !only && (size = fuzz_seed(seeds, data, FUZZ_ROOM)) > 0; seeds++) {
    if (write) {
      char path[4096];
      FILE *file;
      snprintf(path, sizeof path, "%s/seed_%d", argv[2], seeds);
      file = fopen(path, "wb");
      if (!file || fwrite(data, 1, size, file) != size || fclose(file) != 0) return 2;
      continue;
    }
    for (length = 0; length <= size; length++) {
      snprintf(fuzz_where, sizeof fuzz_where, "fuzz: the first %lu bytes of valid input %d\n", (unsigned long)length,
               seeds);
      fuzz_feed(data, length);
    }
  }
  while (only && fuzz_seed(seeds, data, FUZZ_ROOM) > 0) seeds++;
  for (round = only ? rounds : 0; !write && (only ? round == rounds : round < rounds); round++) {
    snprintf(fuzz_where, sizeof fuzz_where, "fuzz: repeat with --only %llu %llu\n", (unsigned long long)round,
             (unsigned long long)seed);
    fuzz_round(data, seed, round, seeds);
  }
  if (!write) printf("%d valid inputs, their prefixes and %llu mutations\n", seeds, (unsigned long long)rounds);
  free(data);
  return 0;
}
#endif

/* What the example writes to stderr goes here. */
static FILE *fuzz_silence(void) {
  static FILE *nowhere;
  if (!nowhere) nowhere = fopen("/dev/null", "w");
  return nowhere ? nowhere : stdout;
}
#undef stderr
#define stderr fuzz_silence()

#endif /* FUZZ_H */
