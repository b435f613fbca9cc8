/* Chats with a small language model out of a GGUF file: SmolLM2-135M-Instruct, or another that is built like it.

   Build: cc -O2 -fopenmp -I. examples/05_chat.c -o build/05_chat -lm
   Run:   build/05_chat            (--help lists the options; `make data` fetches the model, 98 MB)

   From the file to the text:
     file      metadata and tensors, each length, count and offset checked against the size of the file
     weights   unpacked from their 4 and 8 bits to f32 and packed once for mlk_matmul; the table of embeddings stays as
               it is in the file, its rows are unpacked when they are looked up
     tokens    the vocabulary in the file: pieces of text as GPT-2 cuts them, digits one by one, merged pair by pair
     block     for S positions of E features, H heads of D on G heads of keys and values; all of it is mlk.h:
                 x [S, E] - RMS norm - product [S, (H + 2 G) D]: queries, keys, values - rotary positions
                   - keys and values to the cache [2, G, context, D] - attention [S, H D] - product + x -> x
                 x - RMS norm - product [S, F], SiLU, times another product [S, F] - product + x -> x
     choice    the last row of x - RMS norm - product [V] - the largest, or drawn from the largest

   The same text everywhere. MLK_STRICT makes every operator give the same bits on every instruction set and with any
   number of threads, and a position has the same bits whether it comes alone or among others. What is left is done here
   without libm: unpacking has one rounding a number, and the probabilities of --temperature are mlk_softmax's, added in
   order.

   Decoding a token reads each weight once, 4 bytes a piece: its speed is that of memory. Panels of mlk_matmul_pack are
   read faster than a matrix as it lies: a row of 576 times 576 x 49,152 takes 2.5 ms in panels, 3.3 in rows of 49,152,
   4.0 in rows of 576 (two cores, Zen 5).

   Exit code: 0 done, 1 the run failed (memory, a full disk), 2 an argument or the file is wrong, 130 interrupted. */

#if !defined(_WIN32) && !defined(_POSIX_C_SOURCE)
#define _POSIX_C_SOURCE 200809L /* mmap, sigaction, isatty, clock_gettime under -std=c99 */
#endif

#define MLK_IMPLEMENTATION
#include "mlk.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#if defined(_WIN32)
#include <io.h>
#else
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

enum { EXIT_RUN = 1, EXIT_INPUT = 2, EXIT_INTERRUPTED = 130 };
enum {
  MAX_PATH_BYTES = 4096,
  MAX_LINE_BYTES = 1 << 20, /* what one message may have */
  MAX_CONTEXT = 1 << 20,
  DEFAULT_CONTEXT = 2048,
  MAX_ROWS = 1024, /* positions of one pass through the model */
  MAX_TOP_K = 1000
};
static const char *const DEFAULT_FILE = "cache/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
/* In the template for conversations that SmolLM2 has in its file. */
static const char *const DEFAULT_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face";

typedef struct options {
  const char *model, *prompt, *system; /* NULL: looked for; asked for; what the model's makers say */
  int64_t most_tokens, rows, threads, seed, top_k;
  int64_t context;   /* 0: DEFAULT_CONTEXT, or what the model was made for if that is less */
  float temperature; /* 0: always the likeliest token */
  mlk_isa isa;
  int ids, quiet;
} options;

/* ---- small things ------------------------------------------------------------------------------------------------ */

/* What went wrong, for main to print. Readers only write it down: a test may feed them a million broken files. */
static char complaint[1024];

/* Returns EXIT_INPUT, so that checks read "return complain(...)". */
static int complain(const char *format, ...) {
  va_list args;
  va_start(args, format);
  vsnprintf(complaint, sizeof complaint, format, args);
  va_end(args);
  return EXIT_INPUT;
}

/* The same for what is nobody's wrong argument: memory, disks, the library. */
static int fail_run(const char *what, const char *why) {
  complain("%s: %s", what, why);
  return EXIT_RUN;
}

static double now_seconds(void) {
#if defined(_WIN32)
  return (double)clock() / CLOCKS_PER_SEC; /* counts wall time there */
#else
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
#endif
}

static int on_terminal(FILE *file) {
#if defined(_WIN32)
  return _isatty(_fileno(file));
#else
  return isatty(fileno(file));
#endif
}

/* 1234567 as 1,234,567. text has room for 32 bytes and is returned. */
static const char *grouped(int64_t value, char *text) {
  char digits[32];
  const int length = snprintf(digits, sizeof digits, "%" PRId64, value);
  char *to = text;
  int i;
  for (i = 0; i < length; i++) {
    *to++ = digits[i];
    if ((length - i) % 3 == 1 && i + 1 < length) *to++ = ',';
  }
  *to = 0;
  return text;
}

static volatile sig_atomic_t interrupted = 0;

/* The second signal ends the program at once. */
static void interrupt(int number) {
  interrupted = 1;
  signal(number, SIG_DFL);
}

/* A signal ends a read that waits for the next message, too. */
static void catch_interrupts(void) {
#if defined(_WIN32)
  signal(SIGINT, interrupt);
#else
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_handler = interrupt; /* without SA_RESTART */
  sigaction(SIGINT, &action, NULL);
  sigaction(SIGTERM, &action, NULL);
#endif
}

/* ---- the bytes of a file that nobody vouches for ----------------------------------------------------------------- */

typedef struct file_bytes {
  const uint8_t *bytes;
  int64_t length;
  int mapped;
} file_bytes;

static void file_close(file_bytes *f) {
#if !defined(_WIN32)
  if (f->mapped) munmap((void *)(uintptr_t)f->bytes, (size_t)f->length);
#endif
  if (!f->mapped) free((void *)(uintptr_t)f->bytes);
  memset(f, 0, sizeof *f);
}

/* The buffer grows with what really arrives. */
static int file_read(const char *path, file_bytes *f) {
  FILE *file = fopen(path, "rb");
  int64_t room = 0;
  uint8_t *bytes = NULL;
  int bad = 0;
  if (!file) return complain("%s cannot be opened: %s", path, strerror(errno));
  while (!bad && !feof(file)) {
    uint8_t *grown = NULL;
    room = room ? 2 * room : 1 << 20;
    if ((uint64_t)room < SIZE_MAX / 2) grown = (uint8_t *)realloc(bytes, (size_t)room);
    bad = !grown || ferror(file);
    if (grown) bytes = grown, f->length += (int64_t)fread(bytes + f->length, 1, (size_t)(room - f->length), file);
  }
  bad = bad || ferror(file);
  fclose(file);
  f->bytes = bytes;
  if (!bad) return 0;
  file_close(f);
  return complain("%s cannot be read, or there is no memory for it", path);
}

/* Mapped where there is mmap, so that only what is read is loaded; a pipe is read. A mapped file must not be cut by
   somebody else until file_close: that would end the program with SIGBUS. */
static int file_open(const char *path, file_bytes *f) {
  memset(f, 0, sizeof *f);
#if !defined(_WIN32)
  {
    struct stat about;
    const int descriptor = open(path, O_RDONLY);
    if (descriptor < 0) return complain("%s cannot be opened: %s", path, strerror(errno));
    if (fstat(descriptor, &about) == 0 && S_ISDIR(about.st_mode)) {
      close(descriptor);
      return complain("%s is a folder; it must be a GGUF file", path);
    }
    if (fstat(descriptor, &about) == 0 && S_ISREG(about.st_mode) && about.st_size > 0) {
      void *map = mmap(NULL, (size_t)about.st_size, PROT_READ, MAP_PRIVATE, descriptor, 0);
      if (map != MAP_FAILED) f->bytes = (const uint8_t *)map, f->length = (int64_t)about.st_size, f->mapped = 1;
    }
    close(descriptor);
    if (f->mapped) return 0;
  }
#endif
  return file_read(path, f);
}

static uint16_t little_16(const uint8_t *b) { return (uint16_t)(b[0] | b[1] << 8); }

static uint32_t little_32(const uint8_t *b) { return (uint32_t)little_16(b) | (uint32_t)little_16(b + 2) << 16; }

static uint64_t little_64(const uint8_t *b) { return (uint64_t)little_32(b) | (uint64_t)little_32(b + 4) << 32; }

static float float_of_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

/* Bytes that no zero ends. */
typedef struct text {
  const uint8_t *bytes;
  int64_t length;
} text;

static int text_is(text t, const char *other) {
  return t.length == (int64_t)strlen(other) && memcmp(t.bytes, other, (size_t)t.length) == 0;
}

static int text_has(text t, const char *other) {
  text here = {t.bytes, (int64_t)strlen(other)};
  for (; here.bytes - t.bytes <= t.length - here.length; here.bytes++)
    if (text_is(here, other)) return 1;
  return 0;
}

enum { SHOWN_BYTES = 64 };

/* For a complaint: the beginning of a text, whatever it holds, without what could steer a terminal. */
static const char *shown(text t, char *to) {
  int i;
  for (i = 0; i < t.length && i < SHOWN_BYTES - 1; i++)
    to[i] = (char)(t.bytes[i] >= 32 && t.bytes[i] < 127 ? t.bytes[i] : '?');
  to[i] = 0;
  return to;
}

/* A place in the file. Once more is asked for than there is, it has ended for good and gives zeros. */
typedef struct cursor {
  const uint8_t *bytes;
  int64_t at, length;
  int ended;
} cursor;

static const uint8_t *take(cursor *c, uint64_t count) {
  const uint8_t *here = c->bytes + c->at;
  if (c->ended || count > (uint64_t)(c->length - c->at)) {
    c->ended = 1;
    return NULL;
  }
  c->at += (int64_t)count;
  return here;
}

static uint32_t take_32(cursor *c) {
  const uint8_t *b = take(c, 4);
  return b ? little_32(b) : 0;
}

static uint64_t take_64(cursor *c) {
  const uint8_t *b = take(c, 8);
  return b ? little_64(b) : 0;
}

static text take_text(cursor *c) {
  const uint64_t length = take_64(c);
  text t = {NULL, 0};
  t.bytes = take(c, length);
  if (t.bytes) t.length = (int64_t)length;
  return t;
}

/* ---- numbers of few bits: blocks of them, as ggml lays them out -------------------------------------------------- */

/* IEEE binary16 to f32, exactly. */
static float half(const uint8_t *b) {
  const uint32_t bits = little_16(b), sign = (bits & 0x8000u) << 16, exponent = bits >> 10 & 31, fraction = bits & 1023;
  if (exponent == 31) return float_of_bits(sign | 0x7f800000u | fraction << 13);
  if (exponent != 0) return float_of_bits(sign | (exponent + 112) << 23 | fraction << 13);
  return (sign ? -1.0f : 1.0f) * (float)fraction * 5.9604644775390625e-8f; /* 2^-24 */
}

static void unpack_f32(const uint8_t *b, float *to) { *to = float_of_bits(little_32(b)); }
static void unpack_f16(const uint8_t *b, float *to) { *to = half(b); }
static void unpack_bf16(const uint8_t *b, float *to) { *to = float_of_bits((uint32_t)little_16(b) << 16); }

/* In all of the following a scale of 11 significant bits, times a small integer where there are two levels of scales,
   times another small integer, is exact in f32 (Q6_K: rounded once, and nothing is added). So there is at most one
   rounding a number, and it makes no difference whether a compiler fuses the product with the sum. */
static void unpack_q4_0(const uint8_t *b, float *to) {
  const float scale = half(b);
  int i;
  for (i = 0; i < 16; i++) {
    to[i] = scale * (float)((b[2 + i] & 15) - 8);
    to[i + 16] = scale * (float)((b[2 + i] >> 4) - 8);
  }
}

static void unpack_q4_1(const uint8_t *b, float *to) {
  const float scale = half(b), least = half(b + 2);
  int i;
  for (i = 0; i < 16; i++) {
    to[i] = scale * (float)(b[4 + i] & 15) + least;
    to[i + 16] = scale * (float)(b[4 + i] >> 4) + least;
  }
}

/* Number i of 32 of five bits: four in bytes, the fifth in a word before them. */
static int five_bits(const uint8_t *word, int i) {
  const int low = i < 16 ? word[4 + i] & 15 : word[4 + i - 16] >> 4;
  return low | (int)(little_32(word) >> i & 1) << 4;
}

static void unpack_q5_0(const uint8_t *b, float *to) {
  const float scale = half(b);
  int i;
  for (i = 0; i < 32; i++) to[i] = scale * (float)(five_bits(b + 2, i) - 16);
}

static void unpack_q5_1(const uint8_t *b, float *to) {
  const float scale = half(b), least = half(b + 2);
  int i;
  for (i = 0; i < 32; i++) to[i] = scale * (float)five_bits(b + 4, i) + least;
}

static int signed_byte(uint8_t byte) { return byte < 128 ? byte : byte - 256; }

static void unpack_q8_0(const uint8_t *b, float *to) {
  const float scale = half(b);
  int i;
  for (i = 0; i < 32; i++) to[i] = scale * (float)signed_byte(b[2 + i]);
}

/* Scale and least value, six bits each, of part 0 to 7 of a block of 256; 12 bytes hold the eight pairs. */
static void six_bit_pair(const uint8_t *b, int part, int *scale, int *least) {
  if (part < 4) {
    *scale = b[part] & 63, *least = b[part + 4] & 63;
  } else {
    *scale = (b[part + 4] & 15) | (b[part - 4] >> 6) << 4;
    *least = b[part + 4] >> 4 | (b[part] >> 6) << 4;
  }
}

/* Q4_K, and with fifth bits Q5_K: eight parts of 32; parts 2 i and 2 i + 1 share 32 bytes. */
static void unpack_k(const uint8_t *b, const uint8_t *fifth, const uint8_t *low, float *to) {
  int part, i, scale, least;
  for (part = 0; part < 8; part++) {
    float step, from;
    six_bit_pair(b + 4, part, &scale, &least);
    step = half(b) * (float)scale, from = half(b + 2) * (float)least;
    for (i = 0; i < 32; i++) {
      const int four = low[32 * (part / 2) + i] >> 4 * (part % 2) & 15;
      *to++ = step * (float)(four | (fifth ? (fifth[i] >> part & 1) << 4 : 0)) - from;
    }
  }
}

static void unpack_q4_k(const uint8_t *b, float *to) { unpack_k(b, NULL, b + 16, to); }
static void unpack_q5_k(const uint8_t *b, float *to) { unpack_k(b, b + 16, b + 48, to); }

/* Two halves of 128; in each, number i has four bits in byte i % 64 and two in byte i % 32. */
static void unpack_q6_k(const uint8_t *b, float *to) {
  const float scale = half(b + 208);
  int i;
  for (i = 0; i < 256; i++) {
    const int half_block = i / 128, j = i % 128;
    const int low = b[64 * half_block + j % 64] >> 4 * (j / 64) & 15;
    const int high = b[128 + 32 * half_block + j % 32] >> 2 * (j / 32) & 3;
    to[i] = scale * (float)signed_byte(b[192 + i / 16]) * (float)((low | high << 4) - 32);
  }
}

typedef struct number_format {
  uint32_t type; /* ggml's number for it */
  const char *name;
  int64_t numbers, bytes; /* of a block */
  void (*unpack)(const uint8_t *block, float *to);
} number_format;

static const number_format formats[] = {
    {0, "F32", 1, 4, unpack_f32},        {1, "F16", 1, 2, unpack_f16},        {30, "BF16", 1, 2, unpack_bf16},
    {2, "Q4_0", 32, 18, unpack_q4_0},    {3, "Q4_1", 32, 20, unpack_q4_1},    {6, "Q5_0", 32, 22, unpack_q5_0},
    {7, "Q5_1", 32, 24, unpack_q5_1},    {8, "Q8_0", 32, 34, unpack_q8_0},    {12, "Q4_K", 256, 144, unpack_q4_k},
    {13, "Q5_K", 256, 176, unpack_q5_k}, {14, "Q6_K", 256, 210, unpack_q6_k},
};
enum { FORMATS = sizeof formats / sizeof *formats };

static const number_format *format_of(uint32_t type) {
  int i;
  for (i = 0; i < FORMATS; i++)
    if (formats[i].type == type) return &formats[i];
  return NULL;
}

/* count numbers, whole blocks of them. */
static void unpack(const number_format *format, const uint8_t *from, int64_t count, float *to) {
  int64_t i;
  for (i = 0; i < count; i += format->numbers, from += format->bytes) format->unpack(from, to + i);
}

/* ---- GGUF: a list of named values, a list of tensors, the tensors' bytes ----------------------------------------- */

enum {
  GGUF_U8,
  GGUF_I8,
  GGUF_U16,
  GGUF_I16,
  GGUF_U32,
  GGUF_I32,
  GGUF_F32,
  GGUF_BOOL,
  GGUF_STRING,
  GGUF_ARRAY,
  GGUF_U64,
  GGUF_I64,
  GGUF_F64,
  GGUF_TYPES
};
/* Bytes of a value; strings and arrays begin with their lengths. */
static const int gguf_bytes[GGUF_TYPES] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
enum { MAX_NESTING = 4, MAX_RANK = 4, MAX_ENTRIES = 1 << 16, MAX_TENSORS = 1 << 14 };
enum { LEAST_ENTRY = 13, LEAST_TENSOR = 32 }; /* bytes of the shortest ones */

typedef struct gguf_entry {
  text key;
  uint32_t type, element; /* element: of an array, else type */
  uint64_t count;         /* elements of an array, else 1 */
  const uint8_t *at;      /* the first element */
} gguf_entry;

typedef struct gguf_tensor {
  text name;
  const number_format *format;
  int64_t rank, size[MAX_RANK]; /* size[0] varies fastest */
  const uint8_t *data;
  int used;
} gguf_tensor;

typedef struct gguf {
  const char *path;
  const uint8_t *bytes;
  int64_t length;
  gguf_entry *entry;
  gguf_tensor *tensor;
  int64_t entries, tensors;
} gguf;

static void gguf_free(gguf *g) {
  free(g->entry), free(g->tensor);
  memset(g, 0, sizeof *g);
}

/* Steps over one value that begins at the cursor; nonzero when it is of no known type, or too deep. What runs past the
   end of the file ends the cursor, and with it the loops. */
static int skip_value(cursor *c, uint32_t type, int nesting) {
  uint64_t count, i;
  uint32_t element;
  if (type >= GGUF_TYPES || nesting > MAX_NESTING) return 1;
  if (type == GGUF_STRING) {
    take(c, take_64(c));
    return 0;
  }
  if (type != GGUF_ARRAY) {
    take(c, (uint64_t)gguf_bytes[type]);
    return 0;
  }
  element = take_32(c), count = take_64(c);
  if (element >= GGUF_TYPES) return 1;
  if (gguf_bytes[element]) {
    take(c, count > (uint64_t)c->length ? UINT64_MAX : count * (uint64_t)gguf_bytes[element]);
    return 0;
  }
  for (i = 0; i < count && !c->ended; i++)
    if (skip_value(c, element, nesting + 1)) return 1;
  return 0;
}

static int read_entries(gguf *g, cursor *c) {
  char name[SHOWN_BYTES];
  int64_t i;
  for (i = 0; i < g->entries; i++) {
    gguf_entry *e = &g->entry[i];
    cursor inside;
    int bad;
    e->key = take_text(c);
    e->type = e->element = take_32(c), e->count = 1;
    inside = *c;
    if (e->type == GGUF_ARRAY) e->element = take_32(&inside), e->count = take_64(&inside);
    e->at = inside.bytes + inside.at;
    bad = skip_value(c, e->type, 0);
    if (c->ended)
      return complain("%s ends inside the value number %" PRId64 " of %" PRId64, g->path, i + 1, g->entries);
    if (bad)
      return complain("%s: the value of '%s' is of type %" PRIu32
                      ", or an array of a type, that GGUF does not have, or "
                      "nested more than %d deep",
                      g->path, shown(e->key, name), e->type, MAX_NESTING);
  }
  return 0;
}

/* The first entry of that name, or NULL. */
static const gguf_entry *find_entry(const gguf *g, const char *key) {
  int64_t i;
  for (i = 0; i < g->entries; i++)
    if (text_is(g->entry[i].key, key)) return &g->entry[i];
  return NULL;
}

/* The shape, format and place of one tensor. offset counts from where the tensors' bytes begin: not known yet. */
static int read_tensor(const gguf *g, cursor *c, gguf_tensor *t, uint64_t *offset, int64_t *bytes) {
  char name[SHOWN_BYTES];
  int64_t elements = 1, axis;
  uint32_t type;
  t->name = take_text(c);
  t->rank = take_32(c);
  if (!c->ended && (t->rank < 1 || t->rank > MAX_RANK))
    return complain("%s: tensor '%s' has %" PRId64 " axes; it must have 1 to %d", g->path, shown(t->name, name),
                    t->rank, MAX_RANK);
  for (axis = 0; axis < t->rank && !c->ended; axis++) {
    const uint64_t size = take_64(c);
    if (!c->ended && (size < 1 || size > (uint64_t)(INT64_MAX / 256 / elements)))
      return complain("%s: axis %" PRId64 " of tensor '%s' is %" PRIu64 ", which is nothing or more than 63 bits count",
                      g->path, axis, shown(t->name, name), size);
    if (!c->ended) t->size[axis] = (int64_t)size, elements *= t->size[axis];
  }
  type = take_32(c), *offset = take_64(c);
  if (c->ended) return 0;
  t->format = format_of(type);
  if (!t->format)
    return complain("%s: tensor '%s' is of ggml's type %" PRIu32
                    ", which this program does not read; it reads F32, F16, "
                    "BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K and Q6_K",
                    g->path, shown(t->name, name), type);
  if (t->size[0] % t->format->numbers)
    return complain("%s: tensor '%s' has rows of %" PRId64 ", but %s comes in blocks of %" PRId64, g->path,
                    shown(t->name, name), t->size[0], t->format->name, t->format->numbers);
  *bytes = elements / t->format->numbers * t->format->bytes; /* at most INT64_MAX / 256 * 4 */
  return 0;
}

/* offset and bytes: [tensors], scratch. */
static int read_tensors(gguf *g, cursor *c, uint64_t *offset, int64_t *bytes) {
  const gguf_entry *e = find_entry(g, "general.alignment");
  char name[SHOWN_BYTES];
  uint64_t alignment = 32, start, i;
  for (i = 0; i < (uint64_t)g->tensors; i++) {
    const int code = read_tensor(g, c, &g->tensor[i], &offset[i], &bytes[i]);
    if (code) return code;
    if (c->ended) return complain("%s ends inside its list of %" PRId64 " tensors", g->path, g->tensors);
  }
  if (e) alignment = e->type == GGUF_U32 ? little_32(e->at) : 0;
  if (alignment < 1 || alignment > 1 << 20 || (alignment & (alignment - 1)) != 0)
    return complain("%s: general.alignment must be a power of two up to 2^20, as u32", g->path);
  start = ((uint64_t)c->at + alignment - 1) / alignment * alignment;
  for (i = 0; i < (uint64_t)g->tensors; i++) {
    const text t = g->tensor[i].name;
    if (offset[i] % alignment)
      return complain("%s: tensor '%s' lies at %" PRIu64 ", which %" PRIu64 ", the alignment, does not divide", g->path,
                      shown(t, name), offset[i], alignment);
    if (start > (uint64_t)g->length || offset[i] > (uint64_t)g->length - start ||
        (uint64_t)bytes[i] > (uint64_t)g->length - start - offset[i])
      return complain("%s has %" PRId64 " bytes; tensor '%s' ends behind them. Is the file cut?", g->path, g->length,
                      shown(t, name));
    g->tensor[i].data = g->bytes + start + offset[i];
  }
  return 0;
}

/* bytes [length] must stay where they are as long as g is used. Memory is asked for in proportion to what is there, not
   to what a header promises. */
static int gguf_read(gguf *g, const char *path, const uint8_t *bytes, int64_t length) {
  cursor c = {bytes, 0, length, 0};
  const uint8_t *magic = take(&c, 4);
  uint64_t *offset, tensors, entries;
  int64_t *size;
  uint32_t version;
  int code;
  g->path = path, g->bytes = bytes, g->length = length;
  if (!magic || memcmp(magic, "GGUF", 4) != 0) return complain("%s is no GGUF file: it does not begin with GGUF", path);
  version = take_32(&c), tensors = take_64(&c), entries = take_64(&c);
  if (c.ended) return complain("%s ends after %" PRId64 " bytes, within its header", path, length);
  if (version == 0x02000000 || version == 0x03000000)
    return complain("%s is a GGUF file with the highest byte first, which this program does not read", path);
  if (version != 2 && version != 3)
    return complain("%s is of GGUF's version %" PRIu32 "; this program reads 2 and 3", path, version);
  if (entries > (uint64_t)length / LEAST_ENTRY || tensors > (uint64_t)length / LEAST_TENSOR)
    return complain("%s promises %" PRIu64 " values and %" PRIu64 " tensors, which do not fit into its %" PRId64
                    " bytes",
                    path, entries, tensors, length);
  if (entries > MAX_ENTRIES || tensors > MAX_TENSORS)
    return complain("%s has %" PRIu64 " values and %" PRIu64 " tensors; the limits are %d and %d", path, entries,
                    tensors, MAX_ENTRIES, MAX_TENSORS);
  g->entries = (int64_t)entries, g->tensors = (int64_t)tensors;
  g->entry = (gguf_entry *)calloc((size_t)entries + 1, sizeof *g->entry);
  g->tensor = (gguf_tensor *)calloc((size_t)tensors + 1, sizeof *g->tensor);
  offset = (uint64_t *)calloc((size_t)tensors + 1, sizeof *offset);
  size = (int64_t *)calloc((size_t)tensors + 1, sizeof *size);
  code = g->entry && g->tensor && offset && size ? 0 : fail_run(path, "no memory for its lists");
  if (!code) code = read_entries(g, &c);
  if (!code) code = read_tensors(g, &c, offset, size);
  free(offset), free(size);
  return code;
}

/* A whole number of any width; nonzero when it is something else, or does not fit. */
static int whole_number(const gguf_entry *e, int64_t *value) {
  switch (e->type) {
  case GGUF_U8:
  case GGUF_BOOL: *value = e->at[0]; return 0;
  case GGUF_I8: *value = signed_byte(e->at[0]); return 0;
  case GGUF_U16: *value = little_16(e->at); return 0;
  case GGUF_I16: *value = (int64_t)little_16(e->at) - (e->at[1] >> 7) * 65536; return 0;
  case GGUF_U32: *value = little_32(e->at); return 0;
  case GGUF_I32: *value = (int64_t)little_32(e->at) - ((int64_t)(e->at[3] >> 7) << 32); return 0;
  case GGUF_U64:
  case GGUF_I64: *value = (int64_t)(little_64(e->at) & INT64_MAX); return e->at[7] >> 7;
  default: return 1;
  }
}

/* fallback: for where there is no such entry; REQUIRED: there must be one. */
static const int64_t REQUIRED = -1;

static int get_whole(const gguf *g, const char *key, int64_t least, int64_t most, int64_t fallback, int64_t *value) {
  const gguf_entry *e = find_entry(g, key);
  *value = fallback;
  if (!e) return fallback == REQUIRED ? complain("%s has no %s", g->path, key) : 0;
  if (whole_number(e, value) || *value < least || *value > most)
    return complain("%s: %s must be a whole number from %" PRId64 " to %" PRId64, g->path, key, least, most);
  return 0;
}

/* Positive and finite. fallback 0: there must be one. */
static int get_real(const gguf *g, const char *key, double fallback, double *value) {
  const gguf_entry *e = find_entry(g, key);
  *value = fallback;
  if (!e) return fallback > 0 ? 0 : complain("%s has no %s", g->path, key);
  if (e->type == GGUF_F32) *value = (double)float_of_bits(little_32(e->at));
  if (e->type == GGUF_F64) {
    const uint64_t bits = little_64(e->at);
    memcpy(value, &bits, sizeof *value);
  }
  if ((e->type == GGUF_F32 || e->type == GGUF_F64) && *value >= 1e-30 && *value <= 1e30) return 0;
  return complain("%s: %s must be a positive real number up to 1e30", g->path, key);
}

/* An empty text where there is no such entry, or another kind of value. */
static text get_text(const gguf *g, const char *key) {
  const gguf_entry *e = find_entry(g, key);
  text t = {NULL, 0};
  if (e && e->type == GGUF_STRING) t.bytes = e->at + 8, t.length = (int64_t)little_64(e->at);
  return t;
}

/* An array of that kind; *first stands at its first element. The file was found to hold all of it. */
static int get_array(const gguf *g, const char *key, uint32_t element, int64_t most, cursor *first, int64_t *count) {
  const gguf_entry *e = find_entry(g, key);
  if (!e || e->type != GGUF_ARRAY || e->element != element)
    return complain("%s: %s must be an array of %s", g->path, key, element == GGUF_STRING ? "strings" : "i32");
  if (e->count > (uint64_t)most)
    return complain("%s: %s has %" PRIu64 " elements; the limit is %" PRId64, g->path, key, e->count, most);
  first->bytes = g->bytes, first->at = e->at - g->bytes, first->length = g->length, first->ended = 0;
  *count = (int64_t)e->count;
  return 0;
}

/* The tensor of that name and shape [rows, columns]; rows 0: [columns]. Marks it as used. */
static int get_tensor(gguf *g, const char *name, int64_t rows, int64_t columns, gguf_tensor **found) {
  const int64_t rank = rows ? 2 : 1;
  int64_t i;
  gguf_tensor *t = NULL;
  for (i = 0; i < g->tensors && !t; i++)
    if (text_is(g->tensor[i].name, name)) t = &g->tensor[i];
  if (!t) return complain("%s has no tensor %s", g->path, name);
  if (t->rank != rank || t->size[0] != columns || (rows && t->size[1] != rows))
    return complain("%s: tensor %s is %" PRId64 " x %" PRId64 ", with %" PRId64 " axes; it must be %" PRId64
                    " x %" PRId64 ", with %" PRId64,
                    g->path, name, t->rank > 1 ? t->size[1] : 1, t->size[0], t->rank, rows ? rows : 1, columns, rank);
  t->used = 1;
  *found = t;
  return 0;
}

/* A tensor that nobody asked for changes what the model computes, so the result would be wrong. */
static int all_tensors_used(const gguf *g) {
  char name[SHOWN_BYTES];
  int64_t i;
  for (i = 0; i < g->tensors; i++)
    if (!g->tensor[i].used)
      return complain("%s has a tensor '%s', which this program does not know what to do with", g->path,
                      shown(g->tensor[i].name, name));
  return 0;
}

/* ---- characters -------------------------------------------------------------------------------------------------- */

/* The code point that begins a text of length >= 1, and its bytes; what is no UTF-8 is U+FFFD of one byte. */
static uint32_t first_character(const uint8_t *b, int64_t length, int64_t *bytes) {
  static const uint32_t least[5] = {0, 0, 0x80, 0x800, 0x10000};
  const int count = b[0] < 0x80 ? 1 : b[0] < 0xc2 ? 0 : b[0] < 0xe0 ? 2 : b[0] < 0xf0 ? 3 : b[0] < 0xf5 ? 4 : 0;
  uint32_t point = count < 2 ? b[0] : b[0] & (0x7fu >> count);
  int i;
  *bytes = 1;
  if (count == 0 || count > length) return 0xfffd;
  for (i = 1; i < count; i++) {
    if ((b[i] & 0xc0) != 0x80) return 0xfffd;
    point = point << 6 | (b[i] & 63u);
  }
  if (point < least[count] || point > 0x10ffff || (point >= 0xd800 && point < 0xe000)) return 0xfffd;
  *bytes = count;
  return point;
}

/* Letters (L) and numbers (N) of Unicode 14: ranges, each as the distance of its first code point from the last one of
   the range before, and its own length less one. Code points without a meaning count as what they lie among. */
static const uint32_t letters[] = {
    65,  25,  7,   25,   48,  0,    11,  0,   5,   0,    6,   22,   2,     30,    2,    457,   5,   11,  15, 4,   8,
    0,   2,   0,   130,  4,   2,    7,   2,   0,   7,    0,   2,    109,   2,     138,  9,     207, 7,   40, 72,  34,
    46,  42,  36,  1,    2,   98,   2,   0,   16,  1,    8,   1,    11,    2,     3,    0,     17,  0,   2,  29,  30,
    88,  12,  0,   25,   32,  10,   1,   5,   0,   6,    21,  5,    0,     10,    0,    4,     0,   24,  24, 8,   39,
    2,   5,   18,  41,   59,  53,   4,   0,   19,  0,    8,   9,    16,    15,    5,    52,    4,   0,   17, 0,   14,
    5,   15,  1,   11,   0,   9,    52,  32,  5,   20,   2,   17,   52,    4,     0,    19,    17,  24,  0,  12,  52,
    4,   0,   31,  5,    16,  0,    18,  54,  23,  0,    53,  52,   4,     0,     27,   9,     31,  0,   5,  52,  4,
    0,   32,  4,   16,   1,   18,   54,  3,   0,   17,   0,   6,    2,     9,     2,    25,    5,   6,   65, 59,  47,
    2,   1,   13,  6,    59,  47,   2,   1,   10,  9,    22,  36,   64,    44,    28,   4,     116, 42,  21, 0,   17,
    5,   5,   3,   4,    0,   4,    1,   8,   2,   5,    12,  13,   0,     18,    90,   2,     606, 38,  15, 17,  93,
    4,   619, 3,   16,   2,   25,   6,   74,  7,   32,   14,  18,   15,    17,    15,   16,    16,  51,  36, 0,   5,
    0,   68,  100, 3,    33,  2,    116, 50,  121, 55,   22,  10,   52,    83,    0,    94,    46,  18,  7,  55,  29,
    14,  1,   11,  43,   27,  35,   42,  2,   11,  35,   3,   63,   42,    3,     2,    5,     2,   1,   4,  197, 65,
    444, 2,   0,   4,    10,  4,    11,  5,   12,  6,    10,  117,  0,     14,    0,    17,    12,  102, 0,  5,   0,
    3,   9,   2,   0,    4,   4,    7,   0,   2,   0,    2,   0,    2,     3,     2,    10,    3,   3,   6,  4,   5,
    0,   53,  1,   2684, 228, 7,    3,   4,   1,   13,   111, 17,   94,    81,    0,    470,   1,   43,  4,  6,   1,
    5,   85,  7,   2,    2,   89,   2,   146, 18,  31,   49,  15,   513,   6591,  65,   22156, 68,  45,  3,  268, 4,
    15,  11,  68,  17,   30,  3,    69,  50,  8,   3,    102, 3,    118,   2,     2,    2,     3,   2,   22, 30,  51,
    15,  49,  63,  5,    4,   0,    2,   1,   12,  27,   11,  22,   26,    28,    8,    46,    29,  0,   17, 4,   2,
    9,   11,  46,  24,   2,   2,    7,   21,  22,  4,    0,   4,    49,    2,     0,    4,     1,   3,   4,  3,   0,
    2,   27,  3,   10,   8,   2,    13,  89,  2,   13,   7,   114,  30,    11259, 8453, 541,   2,   9,   2,  135, 34,
    362, 19,  119, 41,   11,  117,  140, 37,  25,  7,    25,  12,   118,   36,    250,  390,   80,  48,  31, 14,  19,
    2,   7,   7,   37,   11,  29,   3,   47,  49,  157,  19,  179,  13,    741,   11,   22,    10,  30,  66, 21,  11,
    21,  11,  25,  71,   55,  7,    1,   65,  0,   16,   37,  43,   28,    4,     28,   36,    7,   2,   27, 28,  53,
    11,  21,  11,  18,   14,  17,   111, 242, 14,  35,   349, 41,   7,     108,   11,   30,    43,  17,  47, 20,  28,
    22,  13,  52,  58,   1,   3,    0,   14,  44,  33,   24,  27,   35,    30,    0,    3,     43,  4,   0,  13,  47,
    15,  3,   22,  0,    2,   0,    36,  43,  85,  40,   8,   46,   39,    52,    4,    0,     19,  0,   13, 4,   159,
    52,  19,  3,   21,   80,  21,   1,   2,   0,   185,  46,  42,   3,     37,    47,   21,    0,   60,  42, 14,  0,
    72,  26,  38,  235,  117, 63,   32,  48,  16,  0,    2,   0,    95,    48,    17,   0,     2,   0,   29, 0,   11,
    39,  8,   0,   22,   0,   12,   45,  20,  0,   19,   382, 18,   0,     50,    29,   113,   48,  22,  0,  26,  41,
    15,  0,   328, 18,   190, 0,    80,  921, 231, 2928, 16,  1070, 4050,  9822,  18,   78,    18,  29,  19, 47,  17,
    3,   32,  796, 129,  74,  6,    0,   67,  78,  2,    0,   29,   19609, 5991,  704,  2,     24,  2,   30, 2,   24,
    2,   30,  2,   24,   2,   30,   2,   24,  2,   30,   2,   24,   2,     7,     1845, 30,    482, 44,  11, 6,   17,
    0,   322, 29,  19,   43,  1269, 228, 60,  67,  8,    0,   1205, 187,   4421,  70474};
static const uint32_t numbers[] = {
    48,    9,   121,   1,   6,   0,  3,   2,   1442, 9,  135,   9,  199,  9,  413,  9,  119,  9,  5,     5,  109,  9,
    119,   9,   119,   9,   3,   5,  111, 12,  116,  9,  9,     6,  104,  9,  105,  6,  8,    18, 110,   9,  97,   9,
    119,   9,   71,    19,  269, 9,  71,  9,   720,  19, 882,   2,  240,  25, 23,   9,  301,  9,  129,   10, 166,  25,
    183,   9,   87,    9,   135, 9,  7,   9,   1047, 0,  4,     5,  7,    9,  199,  50, 3,    4,  727,   59, 79,   21,
    631,   29,  1386,  0,   778, 0,  26,  8,   15,   2,  344,   3,  139,  9,  31,   7,  2,    14, 33,    9,  40,   14,
    29537, 9,   189,   9,   321, 5,  155, 9,   39,   9,  199,   9,  23,   9,  87,   9,  407,  9,  21271, 9,  494,  44,
    13,    56,  18,    1,   342, 26, 37,  3,   30,   0,  9,     0,  135,  4,  203,  9,  943,  7,  26,    6,  40,   8,
    76,    4,   23,    5,   161, 1,  3,   63,  65,   8,  53,    1,  31,   2,  76,   4,  105,  7,  25,    7,  42,   6,
    331,   5,   49,    334, 159, 9,  43,  3,   113,  6,  135,   29, 129,  9,  61,   9,  145,  9,  8,     19, 252,  9,
    343,   9,   119,   9,   375, 9,  103, 9,   103,  11, 421,   18, 94,   9,  759,  28, 228,  9,  71,    9,  535,  20,
    1068,  110, 17906, 9,   87,  9,  135, 17,  799,  22, 25674, 19, 109,  24, 1110, 49, 2369, 9,  423,   9,  1486, 8,
    129,   9,   792,   58,  2,   2,  2,   124, 2,    14, 963,   12, 2788, 9};

static int in_ranges(const uint32_t *ranges, size_t count, uint32_t point) {
  uint32_t last = 0;
  size_t i;
  for (i = 0; i < count; i += 2) {
    const uint32_t first = last + ranges[i];
    last = first + ranges[i + 1];
    if (point <= last) return point >= first;
  }
  return 0;
}

typedef enum character_kind { LETTER, NUMBER, SPACE, OTHER } character_kind;

static character_kind kind_of(uint32_t point) {
  if ((point >= 9 && point <= 13) || point == ' ' || point == 0x85 || point == 0xa0 || point == 0x1680 ||
      (point >= 0x2000 && point <= 0x200a) || point == 0x2028 || point == 0x2029 || point == 0x202f ||
      point == 0x205f || point == 0x3000)
    return SPACE;
  if (in_ranges(letters, sizeof letters / sizeof *letters, point)) return LETTER;
  return in_ranges(numbers, sizeof numbers / sizeof *numbers, point) ? NUMBER : OTHER;
}

/* Bytes of the run of one kind at the beginning of a text, and of its last character. */
static int64_t run_of(character_kind wanted, text t, int64_t *last) {
  int64_t at = 0, bytes = 0;
  *last = 0;
  while (at < t.length && kind_of(first_character(t.bytes + at, t.length - at, &bytes)) == wanted) at += *last = bytes;
  return at;
}

/* Tokens never reach across pieces. Bytes of the piece at the beginning of a text (length >= 1), by GPT-2's expression
       's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
   between numbers, which stand alone, character by character ("smollm" in llama.cpp). */
static int64_t piece_length(text t) {
  static const char *const endings[] = {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"};
  const int64_t space = t.bytes[0] == ' ' && t.length > 1;
  int64_t bytes, run, last;
  text rest = {t.bytes + space, t.length - space};
  character_kind next;
  size_t i;
  for (i = 0; i < sizeof endings / sizeof *endings; i++) {
    const int64_t length = (int64_t)strlen(endings[i]);
    if (length <= t.length && memcmp(t.bytes, endings[i], (size_t)length) == 0) return length;
  }
  next = kind_of(first_character(rest.bytes, rest.length, &bytes));
  if (next == NUMBER && !space) return bytes;
  if (next == LETTER || next == OTHER) return space + run_of(next, rest, &last);
  /* White space. Before a word its last character is left to the word, or to a piece of its own. */
  run = run_of(SPACE, t, &last);
  if (run == t.length || run == last) return run;
  rest.bytes = t.bytes + run, rest.length = t.length - run;
  return kind_of(first_character(rest.bytes, rest.length, &bytes)) == NUMBER ? run : run - last;
}

/* ---- the vocabulary: byte pairs merged by rank ------------------------------------------------------------------- */

enum { MAX_VOCABULARY = 1 << 22, TOKEN_UNKNOWN = 2, TOKEN_CONTROL = 3 };

typedef struct merge {
  int32_t left, right, rank, token; /* token < 0: an empty slot */
} merge;

typedef struct vocabulary {
  int64_t count;
  uint8_t *bytes;       /* of all tokens, one after another */
  int64_t *first;       /* [count + 1] */
  uint8_t *control;     /* [count]: stands for no text */
  int32_t of_byte[256]; /* the token of one byte; unknown, or -1, where there is none */
  merge *merges;        /* [mask + 1], open addressing */
  uint64_t mask;
  int32_t begin, end, stop; /* <|im_start|>, <|im_end|>, <|endoftext|>, the last -1 where there is none */
} vocabulary;

static void vocabulary_free(vocabulary *v) {
  free(v->bytes), free(v->first), free(v->control), free(v->merges);
  memset(v, 0, sizeof *v);
}

static uint64_t fnv1a(uint64_t hash, text t) {
  int64_t i;
  for (i = 0; i < t.length; i++) hash = (hash ^ t.bytes[i]) * UINT64_C(0x100000001b3);
  return hash;
}

/* Tokens by name, as the file writes them. */
typedef struct name_index {
  text *name;    /* [count] */
  int32_t *slot; /* [mask + 1], open addressing; -1: empty */
  uint64_t mask;
} name_index;

/* The place of the name that is first followed by second. */
static uint64_t name_slot(const name_index *index, text first, text second) {
  uint64_t at = fnv1a(fnv1a(UINT64_C(0xcbf29ce484222325), first), second) & index->mask;
  while (index->slot[at] >= 0) {
    const text t = index->name[index->slot[at]];
    if (t.length == first.length + second.length &&
        (first.length == 0 || memcmp(t.bytes, first.bytes, (size_t)first.length) == 0) &&
        (second.length == 0 || memcmp(t.bytes + first.length, second.bytes, (size_t)second.length) == 0))
      break;
    at = (at + 1) & index->mask;
  }
  return at;
}

static int32_t token_named(const name_index *index, const char *name) {
  text t = {(const uint8_t *)name, (int64_t)strlen(name)}, nothing = {NULL, 0};
  return index->slot[name_slot(index, t, nothing)];
}

/* GPT-2 writes each byte as a character that can be printed: the printable ones of Latin-1 as they are, the others in
   their order as U+0100 and following. -1: none of them. */
static int byte_of_character(uint32_t point) {
  if ((point >= 33 && point <= 126) || (point >= 161 && point <= 172) || (point >= 174 && point <= 255))
    return (int)point;
  if (point < 256 || point >= 256 + 68) return -1;
  point -= 256;
  return point < 33 ? (int)point : point < 67 ? (int)point + 94 : 173;
}

/* The smallest power of two that leaves half of a table empty. */
static uint64_t slots_for(int64_t count) {
  uint64_t slots = 16;
  while (slots < 2 * (uint64_t)count) slots *= 2;
  return slots;
}

/* Names and bytes of all tokens. */
static int read_tokens(const gguf *g, vocabulary *v, name_index *index) {
  const text nothing = {NULL, 0};
  cursor c, types;
  int64_t i, j, bytes, room = 0, type_count = 0;
  int code = get_array(g, "tokenizer.ggml.tokens", GGUF_STRING, MAX_VOCABULARY, &c, &v->count);
  if (!code) code = get_array(g, "tokenizer.ggml.token_type", GGUF_I32, MAX_VOCABULARY, &types, &type_count);
  if (code) return code;
  if (type_count != v->count)
    return complain("%s has %" PRId64 " tokens, but types of %" PRId64, g->path, v->count, type_count);
  index->mask = slots_for(v->count) - 1;
  index->name = (text *)calloc((size_t)v->count + 1, sizeof *index->name);
  index->slot = (int32_t *)malloc((size_t)(index->mask + 1) * sizeof *index->slot);
  v->first = (int64_t *)calloc((size_t)v->count + 1, sizeof *v->first);
  v->control = (uint8_t *)calloc((size_t)v->count + 1, 1);
  if (!index->name || !index->slot || !v->first || !v->control)
    return fail_run(g->path, "no memory for its vocabulary");
  memset(index->slot, 0xff, (size_t)(index->mask + 1) * sizeof *index->slot);
  for (i = 0; i < v->count; i++) room += (index->name[i] = take_text(&c)).length;
  v->bytes = (uint8_t *)malloc((size_t)room + 1);
  if (!v->bytes) return fail_run(g->path, "no memory for its vocabulary");
  for (i = 0; i < v->count; i++) {
    const text t = index->name[i];
    const uint64_t slot = name_slot(index, t, nothing);
    const uint32_t type = take_32(&types);
    uint8_t *to = v->bytes + v->first[i];
    if (index->slot[slot] < 0) index->slot[slot] = (int32_t)i;
    v->control[i] = type == TOKEN_CONTROL || type == TOKEN_UNKNOWN;
    for (j = 0; j < t.length && !v->control[i]; j += bytes) {
      const int byte = byte_of_character(first_character(t.bytes + j, t.length - j, &bytes));
      if (byte < 0)
        return complain("%s: token %" PRId64 " has a character that stands for no byte in GPT-2's alphabet", g->path,
                        i);
      *to++ = (uint8_t)byte;
    }
    v->first[i + 1] = to - v->bytes;
  }
  return 0;
}

static uint64_t pair_slot(const vocabulary *v, int32_t left, int32_t right) {
  const uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
  uint64_t at = pair * UINT64_C(0x9e3779b97f4a7c15) >> 24 & v->mask;
  while (v->merges[at].token >= 0 && (v->merges[at].left != left || v->merges[at].right != right))
    at = (at + 1) & v->mask;
  return at;
}

/* "left right" by rank, each a name and both together a name. */
static int read_merges(const gguf *g, vocabulary *v, const name_index *index) {
  const text nothing = {NULL, 0};
  int64_t count, rank;
  uint64_t i;
  cursor c;
  const int code = get_array(g, "tokenizer.ggml.merges", GGUF_STRING, MAX_VOCABULARY, &c, &count);
  if (code) return code;
  v->mask = slots_for(count) - 1;
  v->merges = (merge *)malloc((size_t)(v->mask + 1) * sizeof *v->merges);
  if (!v->merges) return fail_run(g->path, "no memory for its vocabulary");
  for (i = 0; i <= v->mask; i++) v->merges[i].token = -1;
  for (rank = 0; rank < count; rank++) {
    const text t = take_text(&c);
    const uint8_t *space = t.length ? (const uint8_t *)memchr(t.bytes, ' ', (size_t)t.length) : NULL;
    text left = {t.bytes, space ? space - t.bytes : 0}, right = {space ? space + 1 : NULL, 0};
    merge m;
    uint64_t slot;
    right.length = space ? t.length - left.length - 1 : 0;
    m.left = index->slot[name_slot(index, left, nothing)], m.right = index->slot[name_slot(index, right, nothing)];
    m.token = index->slot[name_slot(index, left, right)], m.rank = (int32_t)rank;
    if (!left.length || !right.length || m.left < 0 || m.right < 0 || m.token < 0)
      return complain("%s: merge %" PRId64 " is not of two tokens into a third", g->path, rank);
    slot = pair_slot(v, m.left, m.right);
    if (v->merges[slot].token < 0) v->merges[slot] = m;
  }
  return 0;
}

static int read_special_tokens(const gguf *g, vocabulary *v, const name_index *index) {
  int64_t unknown, i;
  const int code = get_whole(g, "tokenizer.ggml.unknown_token_id", 0, v->count - 1, INT64_MAX, &unknown);
  if (code) return code;
  for (i = 0; i < 256; i++) v->of_byte[i] = unknown == INT64_MAX ? -1 : (int32_t)unknown;
  for (i = v->count; i-- > 0;)
    if (v->first[i + 1] - v->first[i] == 1) v->of_byte[v->bytes[v->first[i]]] = (int32_t)i;
  v->begin = token_named(index, "<|im_start|>"), v->end = token_named(index, "<|im_end|>");
  v->stop = token_named(index, "<|endoftext|>");
  if (v->begin >= 0 && v->end >= 0) return 0;
  return complain("%s has no tokens <|im_start|> and <|im_end|>: it is no model to chat with, or marks turns otherwise",
                  g->path);
}

static int read_vocabulary(const gguf *g, vocabulary *v) {
  char name[SHOWN_BYTES];
  name_index index;
  int code;
  memset(&index, 0, sizeof index);
  if (!text_is(get_text(g, "tokenizer.ggml.model"), "gpt2") || !text_is(get_text(g, "tokenizer.ggml.pre"), "smollm"))
    return complain("%s: its tokens are cut as '%s' says; this program knows 'smollm', of the kind 'gpt2'", g->path,
                    shown(get_text(g, "tokenizer.ggml.pre"), name));
  code = read_tokens(g, v, &index);
  if (!code) code = read_merges(g, v, &index);
  if (!code) code = read_special_tokens(g, v, &index);
  free(index.name), free(index.slot);
  return code;
}

/* ---- text to tokens ---------------------------------------------------------------------------------------------- */

typedef struct token_list {
  int64_t *id;
  int64_t count, room;
} token_list;

static int add_token(token_list *list, int64_t id) {
  if (list->count == list->room) {
    const int64_t room = list->room ? 2 * list->room : 256;
    int64_t *grown = (int64_t *)realloc(list->id, (size_t)room * sizeof *grown);
    if (!grown) return fail_run("the conversation", "no memory for its tokens");
    list->id = grown, list->room = room;
  }
  list->id[list->count++] = id;
  return 0;
}

/* A piece as a list of tokens, in which neighbours merge; -1: merged away, or none. */
typedef struct symbol {
  int32_t token, before, after;
} symbol;

/* A pair that may be merged, unless one of the two is something else by then. */
typedef struct candidate {
  int32_t rank, at, left, right, token;
} candidate;

typedef struct merger {
  const vocabulary *v;
  symbol *symbols; /* [bytes of the longest piece] */
  candidate *heap; /* [3 times that]: the lowest rank first, then the first in the text */
  int32_t count;
} merger;

static int goes_before(const candidate *a, const candidate *b) {
  return a->rank != b->rank ? a->rank < b->rank : a->at < b->at;
}

static void push_pair(merger *m, int32_t at) {
  const int32_t next = at < 0 ? -1 : m->symbols[at].after;
  const merge *found;
  candidate c;
  int32_t i;
  if (next < 0) return;
  found = &m->v->merges[pair_slot(m->v, m->symbols[at].token, m->symbols[next].token)];
  if (found->token < 0) return;
  c.rank = found->rank, c.at = at, c.left = found->left, c.right = found->right, c.token = found->token;
  for (i = m->count++; i > 0 && goes_before(&c, &m->heap[(i - 1) / 2]); i = (i - 1) / 2)
    m->heap[i] = m->heap[(i - 1) / 2];
  m->heap[i] = c;
}

static candidate pop_pair(merger *m) {
  const candidate top = m->heap[0], last = m->heap[--m->count];
  int32_t i = 0, child;
  while ((child = 2 * i + 1) < m->count) {
    if (child + 1 < m->count && goes_before(&m->heap[child + 1], &m->heap[child])) child++;
    if (!goes_before(&m->heap[child], &last)) break;
    m->heap[i] = m->heap[child], i = child;
  }
  m->heap[i] = last;
  return top;
}

/* Appends the tokens of one piece. Each merge takes one symbol away and offers at most two new pairs. */
static int merge_piece(merger *m, text t, token_list *to) {
  int32_t i;
  int code = 0;
  for (i = 0; i < t.length; i++) {
    m->symbols[i].token = m->v->of_byte[t.bytes[i]];
    m->symbols[i].before = i - 1, m->symbols[i].after = i + 1 < t.length ? i + 1 : -1;
  }
  m->count = 0;
  for (i = 0; i + 1 < t.length; i++) push_pair(m, i);
  while (m->count > 0) {
    const candidate c = pop_pair(m);
    symbol *left = &m->symbols[c.at], *right;
    if (left->token != c.left || left->after < 0) continue;
    right = &m->symbols[left->after];
    if (right->token != c.right) continue;
    left->token = c.token, right->token = -1;
    left->after = right->after;
    if (left->after >= 0) m->symbols[left->after].before = c.at;
    push_pair(m, left->before), push_pair(m, c.at);
  }
  for (i = 0; i >= 0 && t.length && !code; i = m->symbols[i].after)
    if (m->symbols[i].token >= 0) code = add_token(to, m->symbols[i].token);
  return code;
}

/* Appends the tokens of a text, of at most 2^27 bytes. Whatever stands in it is text: nobody can write a token that
   separates turns. */
static int encode(const vocabulary *v, text t, token_list *to) {
  int64_t at = 0, length, longest = 1;
  merger m;
  int code = 0;
  text rest;
  for (at = 0; at < t.length; at += length) {
    rest.bytes = t.bytes + at, rest.length = t.length - at;
    length = piece_length(rest);
    if (length > longest) longest = length;
  }
  m.v = v, m.count = 0;
  m.symbols = (symbol *)malloc((size_t)longest * sizeof *m.symbols);
  m.heap = (candidate *)malloc(3 * (size_t)longest * sizeof *m.heap);
  if (!m.symbols || !m.heap) code = fail_run("a message", "no memory for its tokens");
  for (at = 0; at < t.length && !code; at += length) {
    rest.bytes = t.bytes + at, rest.length = t.length - at;
    rest.length = length = piece_length(rest);
    code = merge_piece(&m, rest, to);
  }
  free(m.symbols), free(m.heap);
  return code;
}

/* ---- the model --------------------------------------------------------------------------------------------------- */

enum { MAX_BLOCKS = 1024, MAX_FEATURES = 1 << 16, MAX_HIDDEN = 1 << 20, MAX_HEADS = 1024, MAX_HEAD = 1024 };

/* A matrix [in, out], which GGUF stores as [out, in]: in panels, or, for MLK_ISA_REFERENCE, which reads none, as it
   lies. */
typedef struct weights {
  int64_t in, out;
  mlk_packed packed;
  const float *rows;
} weights;

typedef struct block_weights {
  const float *attention_gamma, *hidden_gamma; /* [E] */
  weights heads, merged, gate, up, down;       /* heads: queries, keys and values side by side */
  float *cache;                                /* [2, G, context, D]: keys, values */
} block_weights;

typedef struct model {
  mlk_context *ctx;
  char name[SHOWN_BYTES];
  const char *system; /* what it is told to be unless somebody says otherwise */
  int64_t blocks, features, hidden, heads, groups, head, rotated, trained_context; /* E, F, H, G, D */
  double epsilon, theta;
  block_weights *block;
  const float *output_gamma;
  weights output;
  const number_format *embedding_format;
  uint8_t *embedding; /* [V, E] as in the file */
  vocabulary v;

  int64_t context, rows;                                   /* positions of the cache; of one pass */
  float *x, *normed, *qkv, *attended, *gate, *up, *logits; /* [rows, .], logits [1, V] */
  int64_t known;                                           /* positions in the cache */

  int reference, planning; /* planning: calls are not made, only asked for their workspace */
  uint64_t workspace;
  mlk_plan plan;
  struct piece *pieces; /* of memory, all freed at the end */
  int64_t weight_bytes, cache_bytes;
  double prefill_seconds, decode_seconds;
  int64_t prefill_tokens, decode_tokens;
} model;

/* ---- its memory -------------------------------------------------------------------------------------------------- */

typedef struct piece {
  struct piece *next;
} piece;

enum { ALIGNMENT = 64 };

/* NULL, and a complaint, when there is none. */
static void *take_memory(model *m, int64_t bytes) {
  piece *p = bytes < INT64_MAX / 2 && (uint64_t)bytes < SIZE_MAX / 2
                 ? (piece *)malloc((size_t)bytes + sizeof *p + ALIGNMENT)
                 : NULL;
  uintptr_t at = (uintptr_t)(p + 1);
  char size[32];
  if (!p) {
    complain("there is no memory for %s bytes of weights or cache; --context decides about the latter",
             grouped(bytes, size));
    return NULL;
  }
  p->next = m->pieces, m->pieces = p;
  at = (at + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
  return (char *)p + (at - (uintptr_t)p);
}

static float *take_floats(model *m, int64_t count) { return (float *)take_memory(m, count * (int64_t)sizeof(float)); }

static void model_free(model *m) {
  while (m->pieces) {
    piece *next = m->pieces->next;
    free(m->pieces);
    m->pieces = next;
  }
  vocabulary_free(&m->v);
  free(m->block);
  mlk_close(m->ctx);
  memset(m, 0, sizeof *m);
}

/* ---- from the file ----------------------------------------------------------------------------------------------- */

static int check_scaling(const gguf *g) {
  const text kind = get_text(g, "llama.rope.scaling.type");
  char name[SHOWN_BYTES];
  if (!kind.length || text_is(kind, "none")) return 0;
  return complain("%s: its positions are scaled ('%s'), which this program does not do", g->path, shown(kind, name));
}

static int read_sizes(const gguf *g, model *m) {
  const text kind = get_text(g, "general.architecture");
  char name[SHOWN_BYTES];
  int64_t value_head, tokens = m->v.count;
  int code;
  if (!text_is(kind, "llama"))
    return complain("%s holds a model of the kind '%s'; this program runs 'llama'", g->path, shown(kind, name));
  shown(get_text(g, "general.name"), m->name);
  m->system = text_has(get_text(g, "tokenizer.chat_template"), DEFAULT_SYSTEM) ? DEFAULT_SYSTEM : "";
  code = get_whole(g, "llama.block_count", 1, MAX_BLOCKS, REQUIRED, &m->blocks);
  if (!code) code = get_whole(g, "llama.embedding_length", 1, MAX_FEATURES, REQUIRED, &m->features);
  if (!code) code = get_whole(g, "llama.feed_forward_length", 1, MAX_HIDDEN, REQUIRED, &m->hidden);
  if (!code) code = get_whole(g, "llama.attention.head_count", 1, MAX_HEADS, REQUIRED, &m->heads);
  if (!code) code = get_whole(g, "llama.attention.head_count_kv", 1, MAX_HEADS, m->heads, &m->groups);
  if (!code) code = get_whole(g, "llama.attention.key_length", 1, MAX_HEAD, m->features / m->heads, &m->head);
  if (!code) code = get_whole(g, "llama.attention.value_length", 1, MAX_HEAD, m->head, &value_head);
  if (!code) code = get_whole(g, "llama.rope.dimension_count", 2, MAX_HEAD, m->head, &m->rotated);
  if (!code) code = get_whole(g, "llama.context_length", 1, MAX_CONTEXT, REQUIRED, &m->trained_context);
  if (!code) code = get_whole(g, "llama.vocab_size", 1, MAX_VOCABULARY, m->v.count, &tokens);
  if (!code) code = get_real(g, "llama.attention.layer_norm_rms_epsilon", 0, &m->epsilon);
  if (!code) code = get_real(g, "llama.rope.freq_base", 10000, &m->theta);
  if (!code) code = check_scaling(g);
  if (code) return code;
  if (m->heads % m->groups || m->head < 2 || m->head > MAX_HEAD || value_head != m->head || m->rotated % 2 ||
      m->rotated > m->head)
    return complain("%s: %" PRId64 " heads on %" PRId64 " of keys, %" PRId64 " numbers a key, %" PRId64
                    " a value, %" PRId64 " rotated, do not go together",
                    g->path, m->heads, m->groups, m->head, value_head, m->rotated);
  if (tokens != m->v.count)
    return complain("%s: llama.vocab_size is %" PRId64 ", but there are %" PRId64 " tokens", g->path, tokens,
                    m->v.count);
  return 0;
}

static int read_vector(gguf *g, model *m, const char *name, const float **to) {
  gguf_tensor *t;
  float *floats;
  int code = get_tensor(g, name, 0, m->features, &t);
  if (code) return code;
  floats = take_floats(m, m->features);
  if (!floats) return EXIT_RUN;
  unpack(t->format, t->data, m->features, floats);
  m->weight_bytes += 4 * m->features;
  *to = floats;
  return 0;
}

/* whole [out, in] into panels. */
static int pack(model *m, const float *whole, weights *w) {
  const mlk_tensor b = mlk_transposed(mlk_f32(whole, w->out, w->in));
  void *panels = NULL;
  mlk_status status = mlk_matmul_pack(m->ctx, b, NULL, 0, &w->packed);
  if (status == MLK_OK) {
    panels = take_memory(m, (int64_t)w->packed.bytes);
    if (!panels) return EXIT_RUN;
    status = mlk_matmul_pack(m->ctx, b, panels, w->packed.bytes, &w->packed);
  }
  m->weight_bytes += (int64_t)w->packed.bytes;
  return status == MLK_OK ? 0 : fail_run("mlk_matmul_pack", mlk_last_error(m->ctx));
}

/* Unpacks the tensors called names, which have the same columns, one below the other, and packs the whole. */
static int read_weights(gguf *g, model *m, int count, char (*name)[SHOWN_BYTES], const int64_t *rows, int64_t columns,
                        weights *w) {
  gguf_tensor *t[3];
  int64_t at = 0, floats;
  float *whole;
  int i, code = 0;
  w->in = columns, w->out = 0;
  for (i = 0; i < count && !code; i++) code = get_tensor(g, name[i], rows[i], columns, &t[i]), w->out += rows[i];
  if (code) return code;
  floats = w->out * columns; /* of tensors that are in the file: 2^63 is far */
  whole = NULL;
  if (m->reference)
    whole = take_floats(m, floats);
  else if ((uint64_t)floats < SIZE_MAX / 8)
    whole = (float *)malloc((size_t)floats * sizeof(float));
  if (!whole) return fail_run(g->path, "no memory for its weights");
  for (i = 0; i < count; at += rows[i++] * columns) unpack(t[i]->format, t[i]->data, rows[i] * columns, whole + at);
  if (m->reference) {
    w->rows = whole, m->weight_bytes += 4 * floats;
    return 0;
  }
  code = pack(m, whole, w);
  free(whole);
  return code;
}

static int read_matrix(gguf *g, model *m, const char *format, int64_t number, int64_t rows, int64_t columns,
                       weights *w) {
  char name[1][SHOWN_BYTES];
  snprintf(name[0], sizeof name[0], format, (int)number);
  return read_weights(g, m, 1, name, &rows, columns, w);
}

static int read_block(gguf *g, model *m, int64_t number) {
  const int64_t e = m->features, q = m->heads * m->head, kv = m->groups * m->head;
  block_weights *b = &m->block[number];
  const int64_t rows[3] = {q, kv, kv};
  char name[3][SHOWN_BYTES];
  int code;
  snprintf(name[0], sizeof name[0], "blk.%d.attn_norm.weight", (int)number);
  snprintf(name[1], sizeof name[1], "blk.%d.ffn_norm.weight", (int)number);
  code = read_vector(g, m, name[0], &b->attention_gamma);
  if (!code) code = read_vector(g, m, name[1], &b->hidden_gamma);
  snprintf(name[0], sizeof name[0], "blk.%d.attn_q.weight", (int)number);
  snprintf(name[1], sizeof name[1], "blk.%d.attn_k.weight", (int)number);
  snprintf(name[2], sizeof name[2], "blk.%d.attn_v.weight", (int)number);
  if (!code) code = read_weights(g, m, 3, name, rows, e, &b->heads);
  if (!code) code = read_matrix(g, m, "blk.%d.attn_output.weight", number, e, q, &b->merged);
  if (!code) code = read_matrix(g, m, "blk.%d.ffn_gate.weight", number, m->hidden, e, &b->gate);
  if (!code) code = read_matrix(g, m, "blk.%d.ffn_up.weight", number, m->hidden, e, &b->up);
  if (!code) code = read_matrix(g, m, "blk.%d.ffn_down.weight", number, e, m->hidden, &b->down);
  return code;
}

/* The table of embeddings, which is the last matrix too where the file has no other. */
static int read_embedding(gguf *g, model *m) {
  gguf_tensor *t;
  char name[1][SHOWN_BYTES] = {"token_embd.weight"};
  int64_t bytes, i;
  int code = get_tensor(g, name[0], m->v.count, m->features, &t);
  if (code) return code;
  bytes = m->v.count * m->features / t->format->numbers * t->format->bytes;
  m->embedding_format = t->format;
  m->embedding = (uint8_t *)take_memory(m, bytes);
  if (!m->embedding) return EXIT_RUN;
  memcpy(m->embedding, t->data, (size_t)bytes);
  m->weight_bytes += bytes;
  for (i = 0; i < g->tensors; i++)
    if (text_is(g->tensor[i].name, "output.weight")) strcpy(name[0], "output.weight");
  return read_weights(g, m, 1, name, &m->v.count, m->features, &m->output);
}

/* Nothing of the file is needed afterwards. */
static int read_model(gguf *g, model *m) {
  int64_t i;
  int code = read_vocabulary(g, &m->v);
  if (!code) code = read_sizes(g, m);
  if (!code) code = read_embedding(g, m); /* the largest matrix first, while there is nothing else */
  if (code) return code;
  m->block = (block_weights *)calloc((size_t)m->blocks, sizeof *m->block);
  if (!m->block) return fail_run(g->path, "no memory for its blocks");
  for (i = 0; i < m->blocks && !code; i++) code = read_block(g, m, i);
  if (!code) code = read_vector(g, m, "output_norm.weight", &m->output_gamma);
  return code ? code : all_tensors_used(g);
}

/* ---- positions through the model: every call of mlk.h stands here ------------------------------------------------ */

static int settle(model *m, mlk_status status, const char *what) {
  if (status != MLK_OK) return fail_run(what, mlk_last_error(m->ctx));
  if (m->planning && m->workspace < m->plan.workspace_bytes) m->workspace = m->plan.workspace_bytes;
  return 0;
}

/* Makes a call, or asks for its plan: one walk through the model serves both. */
#define CALL(m, operation, desc)                                                                                       \
  settle(m, (m)->planning ? operation##_plan((m)->ctx, desc, &(m)->plan) : operation((m)->ctx, desc), #operation)

/* d = act(a w) + residual */
static int product(model *m, mlk_tensor a, const weights *w, mlk_activation act, const mlk_tensor *residual,
                   mlk_tensor d) {
  mlk_matmul_desc p;
  memset(&p, 0, sizeof p);
  p.a = a, p.d = d, p.activation = act;
  if (w->rows)
    p.b = mlk_transposed(mlk_f32(w->rows, w->out, w->in));
  else
    p.packed_b = &w->packed;
  if (residual) p.residual = *residual;
  return CALL(m, mlk_matmul, &p);
}

static int normalise(model *m, mlk_tensor x, const float *gamma, mlk_tensor y) {
  mlk_norm_desc n;
  memset(&n, 0, sizeof n);
  n.kind = MLK_NORM_RMS, n.epsilon = (float)m->epsilon;
  n.x = x, n.gamma = mlk_f32(gamma, m->features), n.y = y;
  return CALL(m, mlk_norm, &n);
}

/* Of what heads make for `rows` positions [rows, H + 2 G, D]: count heads from first on. */
static mlk_tensor some_heads(const model *m, int64_t rows, int64_t first, int64_t count) {
  return mlk_slice(mlk_f32(m->qkv, rows, m->heads + 2 * m->groups, m->head), 1, first, count);
}

/* Queries and keys of `rows` positions from m->known on are turned; keys and values go to the cache. GGUF files of this
   kind have the pairs that turn together next to each other. */
static int place_in_cache(model *m, const block_weights *b, int64_t rows) {
  const mlk_tensor cache = mlk_f32(b->cache, 2 * m->groups, m->context, m->head);
  mlk_rotary_desc r;
  mlk_map_desc copy;
  int code;
  memset(&r, 0, sizeof r);
  r.x = r.y = some_heads(m, rows, 0, m->heads + m->groups);
  r.rotated = m->rotated, r.first_position = m->known, r.theta = m->theta, r.interleaved = 1;
  code = CALL(m, mlk_rotary, &r);
  if (code) return code;
  memset(&copy, 0, sizeof copy);
  copy.op = MLK_COPY;
  copy.a = mlk_swapped(some_heads(m, rows, m->heads, 2 * m->groups), 0, 1);
  copy.out = mlk_slice(cache, 1, m->known, rows);
  return CALL(m, mlk_map, &copy);
}

/* [n, rows, D] as [1, n, rows, D] */
static mlk_tensor as_batch(mlk_tensor t) {
  int i;
  t = mlk_slice(t, 0, 0, t.shape[0]); /* spells the strides out */
  for (i = t.rank++; i > 0; i--) t.shape[i] = t.shape[i - 1], t.stride[i] = t.stride[i - 1];
  t.shape[0] = 1, t.stride[0] = 0;
  return t;
}

/* attended [rows, H D]: each position with all before it. The cache has room for m->context keys, and known + rows of
   them are there. */
static int attend(model *m, const block_weights *b, int64_t rows) {
  const int64_t size = m->groups * m->context * m->head;
  int64_t keys = m->known + rows;
  mlk_attention_desc a;
  memset(&a, 0, sizeof a);
  a.q = as_batch(mlk_swapped(some_heads(m, rows, 0, m->heads), 0, 1));
  a.k = mlk_f32(b->cache, 1, m->groups, m->context, m->head);
  a.v = mlk_f32(b->cache + size, 1, m->groups, m->context, m->head);
  a.out = as_batch(mlk_swapped(mlk_f32(m->attended, rows, m->heads, m->head), 0, 1));
  a.scores.causal = 1;
  a.scores.k_lengths = mlk_i64(&keys, 1);
  return CALL(m, mlk_attention, &a);
}

static int run_block(model *m, const block_weights *b, int64_t rows) {
  const int64_t e = m->features, q = m->heads * m->head;
  const mlk_tensor x = mlk_f32(m->x, rows, e), normed = mlk_f32(m->normed, rows, e);
  const mlk_tensor gate = mlk_f32(m->gate, rows, m->hidden), up = mlk_f32(m->up, rows, m->hidden);
  mlk_map_desc times;
  int code = normalise(m, x, b->attention_gamma, normed);
  if (!code) code = product(m, normed, &b->heads, MLK_NONE, NULL, mlk_f32(m->qkv, rows, q + 2 * m->groups * m->head));
  if (!code) code = place_in_cache(m, b, rows);
  if (!code) code = attend(m, b, rows);
  if (!code) code = product(m, mlk_f32(m->attended, rows, q), &b->merged, MLK_NONE, &x, x);
  if (!code) code = normalise(m, x, b->hidden_gamma, normed);
  if (!code) code = product(m, normed, &b->gate, MLK_SILU, NULL, gate);
  if (!code) code = product(m, normed, &b->up, MLK_NONE, NULL, up);
  memset(&times, 0, sizeof times);
  times.op = MLK_MUL, times.a = times.out = gate, times.b = up;
  if (!code) code = CALL(m, mlk_map, &times);
  if (!code) code = product(m, gate, &b->down, MLK_NONE, &x, x);
  return code;
}

/* logits [1, V] of the position in row `row` */
static int run_output(model *m, int64_t row) {
  const mlk_tensor normed = mlk_f32(m->normed, 1, m->features);
  const int code = normalise(m, mlk_f32(m->x + row * m->features, 1, m->features), m->output_gamma, normed);
  return code ? code : product(m, normed, &m->output, MLK_NONE, NULL, mlk_f32(m->logits, 1, m->v.count));
}

/* Buffers, cache, and the workspace of any number of positions up to m->rows: after this nothing is allocated. All
   blocks are alike, so one is planned. */
static int prepare(model *m, int64_t context, int64_t rows) {
  const int64_t kv = m->groups * m->head, all = (m->heads + 2 * m->groups) * m->head;
  int64_t i;
  int code = 0;
  if (rows > context) rows = context;
  m->context = context, m->rows = rows;
  m->x = take_floats(m, rows * m->features), m->normed = take_floats(m, rows * m->features);
  m->qkv = take_floats(m, rows * all), m->attended = take_floats(m, rows * m->heads * m->head);
  m->gate = take_floats(m, rows * m->hidden), m->up = take_floats(m, rows * m->hidden);
  m->logits = take_floats(m, m->v.count);
  if (!m->x || !m->normed || !m->qkv || !m->attended || !m->gate || !m->up || !m->logits) return EXIT_RUN;
  for (i = 0; i < m->blocks; i++) {
    m->block[i].cache = take_floats(m, 2 * kv * context); /* touched, and so taken from the machine, as it fills */
    if (!m->block[i].cache) return EXIT_RUN;
    m->cache_bytes += 8 * kv * context;
  }
  m->planning = 1;
  for (i = 1; i <= rows && !code; i++) code = run_block(m, &m->block[0], i);
  if (!code) code = run_output(m, 0);
  m->planning = 0;
  if (!code && mlk_reserve(m->ctx, m->workspace, MLK_FIXED) != MLK_OK)
    code = fail_run("mlk_reserve", mlk_last_error(m->ctx));
  return code;
}

/* Appends tokens to what the model knows, m->rows at a time, and leaves the logits after the last one. */
static int feed(model *m, const int64_t *id, int64_t count) {
  const int64_t row_bytes = m->features / m->embedding_format->numbers * m->embedding_format->bytes;
  int64_t at, rows, i;
  int code = 0;
  for (at = 0; at < count && !code && !interrupted; at += rows) {
    rows = count - at < m->rows ? count - at : m->rows;
    for (i = 0; i < rows; i++)
      unpack(m->embedding_format, m->embedding + id[at + i] * row_bytes, m->features, m->x + i * m->features);
    for (i = 0; i < m->blocks && !code; i++) code = run_block(m, &m->block[i], rows);
    if (!code && at + rows == count) code = run_output(m, rows - 1);
    m->known += rows;
  }
  return code;
}

/* ---- the next token ---------------------------------------------------------------------------------------------- */

typedef struct chooser {
  float temperature;
  int64_t top_k;
  uint64_t state;
} chooser;

/* SplitMix64 (Steele, Lea & Flood, 2014). */
static uint64_t draw(uint64_t *state) {
  uint64_t x = *state += UINT64_C(0x9e3779b97f4a7c15);
  x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
  x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
  return x ^ (x >> 31);
}

/* The first largest. */
static int choose_largest(model *m, int64_t *id) {
  mlk_reduce_desc r;
  memset(&r, 0, sizeof r);
  r.op = MLK_ARGMAX, r.axes = 1;
  r.x = mlk_f32(m->logits, m->v.count), r.out = mlk_i64(id, 1);
  return CALL(m, mlk_reduce, &r);
}

/* The largest logits, `room` of them at most, descending, equal ones by ascending id; NaN is none of them. */
static int64_t largest_logits(const model *m, int64_t room, int64_t *id, float *logit) {
  int64_t count = 0, i, j;
  for (i = 0; i < m->v.count; i++) {
    const float value = m->logits[i];
    if (!(value == value) || (count == room && !(value > logit[count - 1]))) continue;
    if (count < room) count++;
    for (j = count - 1; j > 0 && value > logit[j - 1]; j--) logit[j] = logit[j - 1], id[j] = id[j - 1];
    logit[j] = value, id[j] = i;
  }
  return count;
}

/* One of the top_k likeliest, each as often as the softmax of logits / temperature says. Sums of floats in double and
   comparisons: the same choice on every machine. */
static int choose(model *m, chooser *c, int64_t *id) {
  int64_t candidate_id[MAX_TOP_K], count, i;
  float p[MAX_TOP_K];
  double sum = 0, mark;
  mlk_softmax_desc s;
  int code;
  if (!(c->temperature > 0)) return choose_largest(m, id);
  count = largest_logits(m, c->top_k, candidate_id, p);
  if (count == 0) return choose_largest(m, id);
  for (i = 0; i < count; i++) p[i] /= c->temperature;
  memset(&s, 0, sizeof s);
  s.x = s.y = mlk_f32(p, count);
  code = CALL(m, mlk_softmax, &s);
  if (code) return code;
  for (i = 0; i < count; i++) sum += (double)p[i];
  mark = (double)(draw(&c->state) >> 11) / 9007199254740992.0 * sum; /* 2^53 */
  sum = 0;
  for (i = 0; i + 1 < count && !((sum += (double)p[i]) > mark); i++) continue;
  *id = candidate_id[i];
  return 0;
}

/* ---- tokens to text, as they come -------------------------------------------------------------------------------- */

/* Bytes that may be the beginning of a character are held back until it is whole. */
typedef struct printer {
  FILE *to;
  uint8_t held[4];
  int64_t count;
} printer;

/* What steers a terminal is not text. */
static int printable(uint32_t point) {
  return point == '\n' || point == '\t' || (point >= 32 && point < 127) || point >= 160;
}

/* Prints whole characters; the rest is held back, unless flush says that nothing more comes. */
static void print_held(printer *p, int flush) {
  while (p->count > 0) {
    int64_t bytes, needed = p->held[0] < 0xc2 ? 1 : p->held[0] < 0xe0 ? 2 : p->held[0] < 0xf0 ? 3 : 4;
    const uint32_t point = first_character(p->held, p->count, &bytes);
    int64_t i;
    if (point == 0xfffd && p->count < needed && !flush) {
      for (i = 1; i < p->count && (p->held[i] & 0xc0) == 0x80; i++) continue;
      if (i == p->count && p->held[0] < 0xf5) return;
    }
    if (printable(point) && point != 0xfffd)
      fwrite(p->held, 1, (size_t)bytes, p->to);
    else
      fputs("\xef\xbf\xbd", p->to); /* U+FFFD */
    p->count -= bytes;
    memmove(p->held, p->held + bytes, (size_t)p->count);
  }
}

static void print_token(printer *p, const vocabulary *v, int64_t id) {
  int64_t i;
  for (i = v->first[id]; i < v->first[id + 1]; i++) {
    p->held[p->count++] = v->bytes[i]; /* room: fewer than four are ever held back */
    print_held(p, 0);
  }
  fflush(p->to);
}

/* ---- the conversation: turns between <|im_start|> and <|im_end|> ------------------------------------------------- */

typedef struct conversation {
  model *m;
  const options *opt;
  chooser chance;
  token_list next; /* said, but not yet fed */
  int64_t turns;
} conversation;

/* <|im_start|>role, a new line, and what was said. The role and the words are one text to the cutter. */
static int add_turn(conversation *c, const char *role, const char *words) {
  const int64_t head = (int64_t)strlen(role) + 1, length = (int64_t)strlen(words);
  uint8_t *bytes;
  text t = {NULL, head + length};
  int code;
  if (length > MAX_LINE_BYTES)
    return complain("a message has %" PRId64 " bytes; the limit is %d", length, MAX_LINE_BYTES);
  bytes = (uint8_t *)malloc((size_t)t.length + 1);
  if (!bytes) return fail_run("a message", "no memory for its text");
  memcpy(bytes, role, (size_t)head - 1), bytes[head - 1] = '\n';
  memcpy(bytes + head, words, (size_t)length);
  t.bytes = bytes;
  code = add_token(&c->next, c->m->v.begin);
  if (!code) code = encode(&c->m->v, t, &c->next);
  free(bytes);
  return code;
}

static int end_turn(conversation *c) {
  const text line = {(const uint8_t *)"\n", 1};
  const int code = add_token(&c->next, c->m->v.end);
  return code ? code : encode(&c->m->v, line, &c->next);
}

static int begin_conversation(conversation *c) {
  const char *system = c->opt->system ? c->opt->system : c->m->system;
  int code;
  c->m->known = 0, c->next.count = 0, c->turns = 0;
  if (!*system) return 0;
  code = add_turn(c, "system", system);
  return code ? code : end_turn(c);
}

static int add_question(conversation *c, const char *words) {
  int code = add_turn(c, "user", words);
  if (!code) code = end_turn(c);
  return code ? code : add_turn(c, "assistant", "");
}

/* The question after all that was said before it; where that is too much, after nothing but the system's words. */
static int ask(conversation *c, const char *words) {
  int code = add_question(c, words);
  if (!code && c->m->known + c->next.count > c->m->context && c->turns > 0) {
    fprintf(stderr, "(the context of %" PRId64 " positions is full: a new conversation begins)\n", c->m->context);
    code = begin_conversation(c);
    if (!code) code = add_question(c, words);
  }
  if (code || c->m->known + c->next.count <= c->m->context) return code;
  return complain("the message makes %" PRId64 " tokens; the context has %" PRId64 " (--context)", c->next.count,
                  c->m->context);
}

static void print_ids(const char *what, const int64_t *id, int64_t count) {
  int64_t i;
  printf("%s", what);
  for (i = 0; i < count; i++) printf(" %" PRId64, id[i]);
  putchar('\n');
}

static void print_statistics(const model *m, int64_t prompt, double prefill, int64_t decoded, double decode) {
  char a[32], b[32], c[32];
  mlk_info info;
  memset(&info, 0, sizeof info);
  mlk_get_info(m->ctx, &info);
  fprintf(stderr, "prefill %" PRId64 " tokens, %.0f tokens/s   ", prompt, (double)prompt / prefill);
  if (decoded) fprintf(stderr, "decode %" PRId64 " tokens, %.1f tokens/s   ", decoded, (double)decoded / decode);
  fprintf(stderr, "memory: weights %s, cache %s, workspace %s bytes\n", grouped(m->weight_bytes, a),
          grouped(m->cache_bytes, b), grouped((int64_t)info.workspace_bytes, c));
}

/* Feeds what was said, then token after token until the model ends its turn, the limit is reached, the context is full,
   or somebody interrupts. The end of the turn is said in any case. */
static int answer(conversation *c) {
  model *m = c->m;
  const double started = now_seconds();
  const int64_t prompt = c->next.count;
  double first = 0;
  int64_t id = 0, made = 0, decoded = 0;
  printer p = {stdout, {0, 0, 0, 0}, 0};
  int code, full = 0;
  if (c->opt->ids) print_ids("prompt", c->next.id, c->next.count);
  code = feed(m, c->next.id, c->next.count);
  first = now_seconds();
  c->next.count = 0, c->turns++;
  if (c->opt->ids) printf("answer");
  while (!code && !interrupted && !full && made < c->opt->most_tokens) {
    code = choose(m, &c->chance, &id);
    if (code || id == m->v.end || id == m->v.stop) break;
    made++;
    if (c->opt->ids)
      printf(" %" PRId64, id), fflush(stdout);
    else
      print_token(&p, &m->v, id);
    if (ferror(stdout)) return fail_run("standard output", "cannot be written");
    full = m->known == m->context;
    if (full || made == c->opt->most_tokens)
      code = add_token(&c->next, id);
    else
      code = feed(m, &id, 1), decoded++;
  }
  print_held(&p, 1);
  putchar('\n');
  fflush(stdout);
  if (full) fprintf(stderr, "(the context of %" PRId64 " positions is full: --context)\n", m->context);
  if (!code && !c->opt->quiet) print_statistics(m, prompt, first - started, decoded, now_seconds() - first);
  return code ? code : end_turn(c);
}

/* ---- what is said: an option, or lines from standard input ------------------------------------------------------- */

/* A line without its end in *line [*room], which grows. What goes beyond the limit of a message is refused later. */
static int read_line(char **line, size_t *room, int *ended) {
  size_t count = 0;
  int c = EOF;
  while (count <= MAX_LINE_BYTES && !interrupted && (c = getchar()) != EOF && c != '\n') {
    if (count + 2 > *room) {
      char *grown = (char *)realloc(*line, *room = *room ? 2 * *room : 256);
      if (!grown) return fail_run("standard input", "no memory for a line");
      *line = grown;
    }
    if (c != 0) (*line)[count++] = (char)c;
  }
  *ended = c == EOF && count == 0;
  if (*line) (*line)[count] = 0;
  return 0;
}

static int talk(conversation *c) {
  const int shows_mark = on_terminal(stdin) && on_terminal(stdout);
  char *line = NULL;
  size_t room = 0;
  int code = 0, ended = 0;
  if (shows_mark) fputs("An empty line is nothing said, /new begins anew, Ctrl-D or Ctrl-C ends.\n", stderr);
  while (!code && !interrupted) {
    if (shows_mark) fputs("\n> ", stdout), fflush(stdout);
    code = read_line(&line, &room, &ended);
    if (code || ended || interrupted) break;
    if (!line || !*line) continue;
    if (!strcmp(line, "/new"))
      code = begin_conversation(c);
    else if ((code = ask(c, line)) == 0)
      code = answer(c);
  }
  if (shows_mark && !code) putchar('\n');
  free(line);
  return code;
}

/* ---- options ----------------------------------------------------------------------------------------------------- */

static void print_help(void) {
  puts(
      "Chats with a small language model out of a GGUF file, with mlk.h.\n\n"
      "usage: 05_chat [options]       without --prompt, each line of standard input is a message\n"
      "  --model FILE      a GGUF file of a 'llama' model with the turns of ChatML. Default: SmolLM2-135M-Instruct in\n"
      "                    examples/data/cache/smollm2, where `make data` puts it\n"
      "  --prompt TEXT     answer this and end\n"
      "  --system TEXT     what the model is told to be; empty: nothing. Default: SmolLM2's own words, others nothing\n"
      "  --max-tokens N    tokens of an answer, 1 to 1048576 (default 512)\n"
      "  --temperature T   0: always the likeliest token (default); else up to 10: one of the likeliest by chance\n"
      "  --top-k N         how many those are, 1 to 1000 (default 40)\n"
      "  --seed N          of chance, 0 or more (default 1)\n"
      "  --context N       positions the model remembers, 16 to what it was made for (default up to 2048)\n"
      "  --batch N         positions of one pass through the model, 1 to 1024 (default 256); no bit depends on it\n"
      "  --threads N       0 to 1024; 0 means all cores (default 0)\n"
      "  --isa NAME        best, scalar, neon, avx2, avx512 or reference (default best)\n"
      "  --ids             print the numbers of tokens, of the prompt too, instead of text\n"
      "  --quiet           nothing but the answer; speed and memory stand on standard error otherwise\n"
      "  --help            this text");
}

static int parse_integer(const char *option, const char *value, int64_t least, int64_t most, int64_t *to) {
  char *end = NULL;
  long long parsed;
  errno = 0;
  parsed = strtoll(value, &end, 10);
  if (end == value || *end || errno || parsed < least || parsed > most)
    return complain("%s is '%.64s'; it must be a whole number from %" PRId64 " to %" PRId64, option, value, least,
                    most);
  *to = parsed;
  return 0;
}

static int parse_temperature(const char *value, float *to) {
  char *end = NULL;
  const float parsed = strtof(value, &end);
  if (end == value || *end || !(parsed >= 0) || parsed > 10 || (parsed > 0 && parsed < 0.01f))
    return complain("--temperature is '%.64s'; it must be 0, or a number from 0.01 to 10", value);
  *to = parsed;
  return 0;
}

static int parse_isa(const char *value, mlk_isa *isa) {
  char here[96] = "best";
  int i;
  for (i = 0; i < MLK_ISA_COUNT && strcmp(value, mlk_isa_name((mlk_isa)i)) != 0; i++) continue;
  if (i == MLK_ISA_COUNT)
    return complain("--isa is '%.64s'; it must be best, scalar, neon, avx2, avx512 or reference", value);
  *isa = (mlk_isa)i;
  if (mlk_isa_available(*isa)) return 0;
  for (i = 1; i < MLK_ISA_COUNT; i++)
    if (mlk_isa_available((mlk_isa)i))
      strcat(strcat(here, ", "), mlk_isa_name((mlk_isa)i)); /* all the names together have 50 letters */
  return complain("--isa is '%s', which this build or machine does not run; it runs %s", value, here);
}

static int parse_value(int which, const char *value, options *opt) {
  switch (which) {
  case 0: opt->model = value; return 0;
  case 1: opt->prompt = value; return 0;
  case 2: opt->system = value; return 0;
  case 3: return parse_integer("--max-tokens", value, 1, MAX_CONTEXT, &opt->most_tokens);
  case 4: return parse_temperature(value, &opt->temperature);
  case 5: return parse_integer("--top-k", value, 1, MAX_TOP_K, &opt->top_k);
  case 6: return parse_integer("--seed", value, 0, INT64_MAX, &opt->seed);
  case 7: return parse_integer("--context", value, 16, MAX_CONTEXT, &opt->context);
  case 8: return parse_integer("--batch", value, 1, MAX_ROWS, &opt->rows);
  case 9: return parse_integer("--threads", value, 0, 1024, &opt->threads);
  default: return parse_isa(value, &opt->isa);
  }
}

/* *done is set by --help. */
static int parse_options(int argc, char **argv, options *opt, int *done) {
  static const char *const with_value[] = {"--model",       "--prompt",  "--system", "--max-tokens",
                                           "--temperature", "--top-k",   "--seed",   "--context",
                                           "--batch",       "--threads", "--isa"};
  enum { WITH_VALUE = sizeof with_value / sizeof *with_value };
  int i;
  for (i = 1; i < argc; i++) {
    const char *arg = argv[i], *equals = strchr(arg, '=');
    const size_t length = equals ? (size_t)(equals - arg) : strlen(arg);
    int which, code;
    if (!strcmp(arg, "--help")) {
      print_help();
      *done = 1;
      return 0;
    }
    if (!strcmp(arg, "--ids") || !strcmp(arg, "--quiet")) {
      *(arg[2] == 'i' ? &opt->ids : &opt->quiet) = 1;
      continue;
    }
    for (which = 0; which < WITH_VALUE; which++)
      if (strlen(with_value[which]) == length && !strncmp(arg, with_value[which], length)) break;
    if (which == WITH_VALUE) return complain("'%.64s' is not an option; --help lists them", arg);
    if (!equals && i + 1 == argc) return complain("%s needs a value; --help tells which", arg);
    code = parse_value(which, equals ? equals + 1 : argv[++i], opt);
    if (code) return code;
  }
  return 0;
}

/* ---- from options to answers ------------------------------------------------------------------------------------- */

/* examples/data/DEFAULT_FILE of the working directory, or beside or one above the folder of the program. */
static int find_model(const char *program, char *path) {
  static const char *const places[] = {"", "../", "../../"};
  const char *slash = strrchr(program, '/');
  const int folder = slash ? (int)(slash - program) + 1 : 0;
  int i, here;
  for (i = 0; i < 3 && folder < MAX_PATH_BYTES / 2; i++)
    for (here = 0; here < 2; here++) {
      FILE *file;
      snprintf(path, MAX_PATH_BYTES, "%.*s%sexamples/data/%s", here ? folder : 0, program, places[i], DEFAULT_FILE);
      file = fopen(path, "rb");
      if (file) {
        fclose(file);
        return 0;
      }
    }
  return complain("the model is not found: `make data` fetches it to examples/data/%s; or give --model FILE",
                  DEFAULT_FILE);
}

static int open_library(model *m, const options *opt) {
  mlk_context_desc d;
  memset(&d, 0, sizeof d);
  d.threads = (int)opt->threads, d.isa = opt->isa;
  m->reference = opt->isa == MLK_ISA_REFERENCE;
  return mlk_open(&m->ctx, &d) == MLK_OK ? 0 : fail_run("mlk_open", "no context");
}

/* A model that can be fed, from the bytes of a file, which are not needed any more. */
static int open_model(model *m, const options *opt, const char *path, const uint8_t *bytes, int64_t length) {
  int64_t context = opt->context;
  gguf g;
  int code = open_library(m, opt);
  memset(&g, 0, sizeof g);
  if (!code) code = gguf_read(&g, path, bytes, length);
  if (!code) code = read_model(&g, m);
  gguf_free(&g);
  if (!code && opt->context > m->trained_context)
    code = complain("--context is %" PRId64 "; the model was made for %" PRId64 " positions", opt->context,
                    m->trained_context);
  if (code) return code;
  if (!context) context = m->trained_context < DEFAULT_CONTEXT ? m->trained_context : (int64_t)DEFAULT_CONTEXT;
  return prepare(m, context, opt->rows);
}

static void print_model(const model *m, const char *path, double seconds) {
  mlk_info info;
  char a[32];
  if (mlk_get_info(m->ctx, &info) != MLK_OK) return;
  fprintf(stderr,
          "model   %s: %" PRId64 " blocks of %" PRId64 " and %" PRId64 " features, %" PRId64 " heads on %" PRId64
          ", %s tokens   (%s, read in %.1f s)\n"
          "device  %s, instruction set %s, %d thread%s%s\n",
          m->name, m->blocks, m->features, m->hidden, m->heads, m->groups, grouped(m->v.count, a), path, seconds,
          info.backend, info.isa, info.threads, info.threads == 1 ? "" : "s", info.openmp ? " (OpenMP)" : "");
}

static int run(const char *program, const options *opt, model *m) {
  const double started = now_seconds();
  char found[MAX_PATH_BYTES];
  const char *path = opt->model ? opt->model : found;
  conversation c;
  file_bytes file;
  int code = opt->model ? 0 : find_model(program, found);
  if (!code) code = file_open(path, &file);
  if (code) return code;
  code = open_model(m, opt, path, file.bytes, file.length);
  file_close(&file);
  if (code) return code;
  if (!opt->quiet) print_model(m, path, now_seconds() - started);
  memset(&c, 0, sizeof c);
  c.m = m, c.opt = opt;
  c.chance.temperature = opt->temperature, c.chance.top_k = opt->top_k, c.chance.state = (uint64_t)opt->seed;
  catch_interrupts();
  code = begin_conversation(&c);
  if (!code && opt->prompt) {
    code = ask(&c, opt->prompt);
    if (!code) code = answer(&c);
  } else if (!code) {
    code = talk(&c);
  }
  free(c.next.id);
  return code ? code : interrupted ? EXIT_INTERRUPTED : 0;
}

int main(int argc, char **argv) {
  options opt;
  model *m = (model *)calloc(1, sizeof *m);
  int code = m ? 0 : fail_run("the program", "no memory for its own records"), done = 0;
  memset(&opt, 0, sizeof opt);
  opt.most_tokens = 512, opt.rows = 256, opt.seed = 1, opt.top_k = 40;
  if (!code) code = parse_options(argc, argv, &opt, &done);
  if (!code && !done) code = run(argv[0], &opt, m);
  if ((fflush(stdout) != 0 || ferror(stdout)) && code == 0)
    code = fail_run("standard output", "could not be written to its end");
  if (code == EXIT_RUN || code == EXIT_INPUT) fprintf(stderr, "05_chat: %s\n", complaint);
  if (m) model_free(m);
  free(m);
  return code;
}
