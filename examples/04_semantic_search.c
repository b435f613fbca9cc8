/* Semantic search: finds the lines of your files that mean what you ask, whatever words they use.

   Build: cc -O2 -fopenmp -I. examples/04_semantic_search.c -o build/04_semantic_search -lm
   Run:   make data       (once: fetches the model, 91 MB)
          build/04_semantic_search "how do I stop the program" README.md notes.txt       (--help lists the options)

   The model is all-MiniLM-L6-v2, a sentence encoder: six layers of BERT that turn a sentence into 384 numbers, such
   that sentences of like meaning get vectors of a small angle. For S tokens, in f32, H = 384, 12 heads of 32, I = 1536:
     x [S, H] = word[token] + (position[0 .. S) + type[0]), normalised
     6 times:   q, k, v [S, H] = x Wqkv + b        a = attention(q, k, v), every token sees every other
                x = norm(a Wo + b + x)             x = norm(gelu(x Wup + b) Wdown + b + x)
     mean of x over the tokens, divided by its length.
   Lines of any length share one call of each operator without padding: their tokens lie one after the other, and
   mlk_attention is told where each line begins. The nearest lines are found by mlk_knn, exactly.

   The same bits everywhere: every operator used is strict, so a line's vector does not depend on the instruction set,
   the number of threads, or the lines that are encoded together with it. --self-test prints a hash.

   Nothing in a file is believed. The readers of safetensors, JSON, vocabulary and index check every length and offset
   before using it; tests/fuzz_safetensors.c feeds them with damaged files.

   Exit code: 0 done, 1 the run failed (memory, a full disk, a wrong hash), 2 an argument or a file is wrong, 130
   interrupted by SIGINT or SIGTERM; with --index what was encoded by then is kept. */

#if !defined(_WIN32) && !defined(_POSIX_C_SOURCE)
#define _POSIX_C_SOURCE 200809L /* fsync, isatty, clock_gettime under -std=c99 */
#endif

#define MLK_IMPLEMENTATION
#include "mlk.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#if defined(_WIN32)
#include <windows.h>
#include <io.h>
#else
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

enum { EXIT_RUN = 1, EXIT_INPUT = 2, EXIT_INTERRUPTED = 130 };
enum {
  MAX_PATH_BYTES = 4096,
  MAX_LINE_BYTES = 16384, /* what lies behind them is not read: 254 tokens seldom take a tenth of it */
  MAX_LAYERS = 64,
  MAX_BATCH_LINES = 512,
  BATCH_TOKENS = 1024, /* tokens of one pass through the network, or those of one line if it has more */
  MAX_K = 10000
};
static const int64_t MAX_MODEL_BYTES = (int64_t)1 << 32, MAX_SMALL_BYTES = (int64_t)1 << 26;
static const int64_t MAX_TEXT_BYTES = (int64_t)1 << 30, MAX_INDEX_BYTES = (int64_t)1 << 38;
static const double SAVE_SECONDS = 30, PLAIN_LINE_SECONDS = 5, TERMINAL_LINE_SECONDS = 0.1;

typedef struct options {
  int64_t k, threads;
  mlk_isa isa;
  const char *model, *index, *query;
  char **files;
  int file_count;
  int fresh, quiet, self_test;
} options;

/* ---- small things ------------------------------------------------------------------------------------------------ */

/* One line on standard error; returns EXIT_INPUT, so that checks read "return complain(...)". */
static int complain(const char *format, ...) {
  va_list args;
  va_start(args, format);
  fputs("04_semantic_search: ", stderr);
  vfprintf(stderr, format, args);
  fputc('\n', stderr);
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

static int on_terminal(FILE *stream) {
#if defined(_WIN32)
  return _isatty(_fileno(stream));
#else
  return isatty(fileno(stream));
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

static const uint64_t FNV_START = UINT64_C(0xcbf29ce484222325), FNV_PRIME = UINT64_C(0x100000001b3);

/* FNV-1a, 64 bits */
static uint64_t hash_bytes(uint64_t hash, const uint8_t *bytes, int64_t count) {
  int64_t i;
  for (i = 0; i < count; i++) hash = (hash ^ bytes[i]) * FNV_PRIME;
  return hash;
}

static uint64_t get_integer(const uint8_t *from, int bytes) {
  uint64_t value = 0;
  int i;
  for (i = 0; i < bytes; i++) value |= (uint64_t)from[i] << (8 * i);
  return value;
}

/* FNV-1a over little-endian words of 8 bytes: for much data. count is a multiple of 8. */
static uint64_t hash_words(uint64_t hash, const uint8_t *bytes, int64_t count) {
  int64_t i;
  for (i = 0; i < count; i += 8) hash = (hash ^ get_integer(bytes + i, 8)) * FNV_PRIME;
  return hash;
}

static uint64_t hash_floats(uint64_t hash, const float *values, int64_t count) {
  int64_t i;
  for (i = 0; i < count; i++) {
    uint32_t bits;
    memcpy(&bits, &values[i], sizeof bits);
    hash = (hash ^ bits) * FNV_PRIME;
  }
  return hash;
}

/* The array with room for at least need elements of size bytes: as it was, or moved and at least doubled. NULL: no
   memory, and the old one stays. */
static void *grown(void *array, int64_t *room, int64_t need, size_t size) {
  const int64_t next = need > 2 * *room ? need : 2 * *room;
  void *moved;
  if (array && need <= *room) return array;
  if (next > INT64_MAX / 2 / (int64_t)size) return NULL;
  moved = realloc(array, (size_t)next * size);
  if (moved) *room = next;
  return moved;
}

typedef struct blob {
  uint8_t *data;
  int64_t bytes;
} blob;

/* The whole file, at most `most` bytes. The buffer grows with what really arrives. */
static int read_file(const char *path, int64_t most, blob *b) {
  FILE *file = fopen(path, "rb");
  int64_t room = 0;
  int code = 0;
  if (!file) return complain("%s cannot be opened: %s", path, strerror(errno));
  for (;;) {
    uint8_t *data = (uint8_t *)grown(b->data, &room, b->bytes < 65536 ? 65536 : b->bytes + 1, 1);
    size_t got;
    if (!data) {
      code = fail_run(path, "no memory to read it");
      break;
    }
    b->data = data;
    errno = 0;
    got = fread(b->data + b->bytes, 1, (size_t)(room - b->bytes), file);
    b->bytes += (int64_t)got;
    if (got == 0 && ferror(file)) code = complain("%s cannot be read: %s", path, strerror(errno));
    if (b->bytes > most) code = complain("%s has more than %" PRId64 " bytes, which is the limit", path, most);
    if (got == 0 || code) break;
  }
  fclose(file);
  return code;
}

static int join_path(char *path, const char *folder, const char *name) {
  const int length = snprintf(path, MAX_PATH_BYTES, "%s/%s", folder, name);
  if (length >= 0 && length < MAX_PATH_BYTES) return 0;
  return complain("the path of %s in the folder given is %d bytes long; the limit is %d", name, length,
                  MAX_PATH_BYTES - 1);
}

/* Also of a file that is there and cannot be opened: who reads it says so. */
static int file_exists(const char *path) {
  FILE *file = fopen(path, "rb");
  if (!file) return errno != ENOENT && errno != ENOTDIR;
  fclose(file);
  return 1;
}

/* ---- JSON, as strictly as RFC 8259 has it ------------------------------------------------------------------------ */

enum { JSON_DEPTH = 16, JSON_NAME = 256 };

typedef struct json {
  const uint8_t *at, *end;
} json;

/* The next byte that is no blank, or -1 at the end. */
static int json_next(json *j) {
  while (j->at < j->end && (*j->at == ' ' || *j->at == '\t' || *j->at == '\n' || *j->at == '\r')) j->at++;
  return j->at < j->end ? *j->at : -1;
}

static int json_take(json *j, int byte) {
  if (json_next(j) != byte) return 0;
  j->at++;
  return 1;
}

/* Four hexadecimal digits, or -1. */
static int json_hex(json *j) {
  int value = 0, i;
  if (j->end - j->at < 4) return -1;
  for (i = 0; i < 4; i++) {
    const int c = *j->at++, digit = c >= '0' && c <= '9'                 ? c - '0'
                                    : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10
                                                                         : -1;
    if (digit < 0) return -1;
    value = 16 * value + digit;
  }
  return value;
}

/* What an escape stands for as bytes in to; their number, or 0 if it is none. Halves of pairs stay halves. */
static int json_escape(json *j, char *to) {
  static const char names[] = "\"\\/bfnrt", values[] = "\"\\/\b\f\n\r\t";
  const char *name;
  int c;
  if (j->at == j->end) return 0;
  c = *j->at++;
  name = strchr(names, c);
  if (c && name) return *to = values[name - names], 1;
  c = c == 'u' ? json_hex(j) : -1;
  if (c <= 0) return 0; /* a zero would end the name */
  if (c < 0x80) return *to = (char)c, 1;
  if (c < 0x800) return to[0] = (char)(0xc0 | c >> 6), to[1] = (char)(0x80 | (c & 63)), 2;
  to[0] = (char)(0xe0 | c >> 12), to[1] = (char)(0x80 | (c >> 6 & 63)), to[2] = (char)(0x80 | (c & 63));
  return 3;
}

/* A string of less than room bytes into to, ended by a zero; to NULL: of any length, dropped. Nonzero: none there. */
static int json_string(json *j, char *to, int64_t room) {
  int64_t used = 0;
  if (!json_take(j, '"')) return 1;
  while (j->at < j->end && *j->at != '"') {
    char piece[4];
    int count = 1, i;
    piece[0] = (char)*j->at++;
    if ((uint8_t)piece[0] < 0x20) return 1;
    if (piece[0] == '\\') count = json_escape(j, piece);
    if (count == 0 || (to && used + count >= room)) return 1;
    for (i = 0; to && i < count; i++) to[used++] = piece[i];
  }
  if (to) to[used] = 0;
  return !json_take(j, '"');
}

static int json_digits(json *j) {
  const uint8_t *from = j->at;
  while (j->at < j->end && *j->at >= '0' && *j->at <= '9') j->at++;
  return j->at == from;
}

/* Any number as a double. */
static int json_number(json *j, double *value) {
  char text[64];
  const uint8_t *from;
  json_next(j);
  from = j->at;
  if (j->at < j->end && *j->at == '-') j->at++;
  if (j->at < j->end && *j->at == '0')
    j->at++;
  else if (json_digits(j))
    return 1;
  if (j->at < j->end && *j->at == '.') {
    j->at++;
    if (json_digits(j)) return 1;
  }
  if (j->at < j->end && (*j->at | 32) == 'e') {
    j->at++;
    if (j->at < j->end && (*j->at == '+' || *j->at == '-')) j->at++;
    if (json_digits(j)) return 1;
  }
  if (j->at - from >= (int)sizeof text) return 1;
  memcpy(text, from, (size_t)(j->at - from));
  text[j->at - from] = 0;
  *value = strtod(text, NULL);
  return 0;
}

/* A whole number, 0 to 2^53, written as one. */
static int json_integer(json *j, int64_t *value) {
  const uint8_t *from;
  json_next(j);
  from = j->at;
  *value = 0;
  while (j->at < j->end && *j->at >= '0' && *j->at <= '9' && j->at - from < 16) *value = 10 * *value + (*j->at++ - '0');
  if (j->at == from || (*from == '0' && j->at - from > 1) || *value > (int64_t)1 << 53) return 1;
  return j->at < j->end && (*j->at == '.' || (*j->at | 32) == 'e' || (*j->at >= '0' && *j->at <= '9'));
}

static int json_word(json *j, const char *word) {
  const size_t length = strlen(word);
  json_next(j);
  if ((size_t)(j->end - j->at) < length || memcmp(j->at, word, length) != 0) return 1;
  j->at += length;
  return 0;
}

/* Any value, not deeper than depth. */
static int json_skip(json *j, int depth) {
  const int first = json_next(j);
  double number;
  if (first == '"') return json_string(j, NULL, 0);
  if (first == 't') return json_word(j, "true");
  if (first == 'f') return json_word(j, "false");
  if (first == 'n') return json_word(j, "null");
  if (first != '{' && first != '[') return json_number(j, &number);
  if (depth == 0) return 1;
  j->at++;
  if (json_take(j, first == '{' ? '}' : ']')) return 0;
  do {
    if (first == '{' && (json_string(j, NULL, 0) || !json_take(j, ':'))) return 1;
    if (json_skip(j, depth - 1)) return 1;
  } while (json_take(j, ','));
  return !json_take(j, first == '{' ? '}' : ']');
}

/* Values of a JSON object that somebody wants; the others are skipped. */
typedef enum field_kind { FIELD_INTEGER, FIELD_NUMBER, FIELD_TRUTH, FIELD_STRING } field_kind;
typedef struct field {
  const char *name;
  field_kind kind;
  void *to;  /* int64_t, double, int, char [32] */
  int found; /* set here */
} field;

static int json_field(json *j, field *f) {
  if (f->found++) return 1; /* twice */
  switch (f->kind) {
  case FIELD_INTEGER: return json_integer(j, (int64_t *)f->to);
  case FIELD_NUMBER: return json_number(j, (double *)f->to);
  case FIELD_STRING: return json_string(j, (char *)f->to, 32);
  default: *(int *)f->to = json_next(j) == 't'; return json_word(j, json_next(j) == 't' ? "true" : "false");
  }
}

/* The whole text is one object; fills the fields that it has. */
static int read_object(const char *path, const uint8_t *text, int64_t bytes, field *fields, int count) {
  char name[JSON_NAME];
  json j;
  int i, bad = 0;
  j.at = text, j.end = text + bytes;
  bad = !json_take(&j, '{');
  if (!bad && !json_take(&j, '}')) {
    do {
      bad = json_string(&j, name, JSON_NAME) || !json_take(&j, ':');
      for (i = 0; !bad && i < count && strcmp(name, fields[i].name) != 0; i++) continue;
      if (!bad) bad = i < count ? json_field(&j, &fields[i]) : json_skip(&j, JSON_DEPTH);
    } while (!bad && json_take(&j, ','));
    bad = bad || !json_take(&j, '}');
  }
  if (!bad && json_next(&j) < 0) return 0;
  return complain("%s is damaged: what stands at byte %" PRId64 " is not expected there", path, (int64_t)(j.at - text));
}

/* ---- safetensors: 8 bytes that tell the length of a JSON header, the header, the data -------------------------- */

enum { TENSOR_NAME = 128, TENSOR_AXES = 8, MAX_TENSORS = 4096 };

typedef struct tensor_entry {
  char name[TENSOR_NAME];
  int type; /* of element_types */
  int rank;
  int64_t shape[TENSOR_AXES];
  int64_t begin, end; /* in the data, which begins behind the header */
} tensor_entry;

typedef struct tensor_file {
  const char *path;
  const uint8_t *data;
  int64_t bytes; /* of data */
  tensor_entry *entry;
  int64_t count, room;
} tensor_file;

typedef struct element_type {
  const char *name;
  int bytes;
} element_type;
enum { TYPE_F32, TYPE_F16, TYPE_BF16 };
static const element_type element_types[] = {{"F32", 4}, {"F16", 2}, {"BF16", 2}, {"F64", 8},     {"I64", 8},
                                             {"U64", 8}, {"I32", 4}, {"U32", 4},  {"I16", 2},     {"U16", 2},
                                             {"I8", 1},  {"U8", 1},  {"BOOL", 1}, {"F8_E4M3", 1}, {"F8_E5M2", 1}};
enum { ELEMENT_TYPES = sizeof element_types / sizeof *element_types };

/* "shape":[...] or "data_offsets":[begin,end] */
static int parse_integers(json *j, int64_t *values, int most, int *count) {
  *count = 0;
  if (!json_take(j, '[')) return 1;
  if (json_take(j, ']')) return 0;
  do {
    if (*count == most || json_integer(j, &values[(*count)++])) return 1;
  } while (json_take(j, ','));
  return !json_take(j, ']');
}

/* {"dtype":..., "shape":..., "data_offsets":...}, each once, in any order */
static int parse_entry(json *j, tensor_entry *t) {
  char key[32], type[32];
  int64_t offsets[2] = {0, 0};
  int seen = 0, count = 0;
  if (!json_take(j, '{')) return 1;
  do {
    int which;
    if (json_string(j, key, sizeof key) || !json_take(j, ':')) return 1;
    which = !strcmp(key, "dtype") ? 1 : !strcmp(key, "shape") ? 2 : !strcmp(key, "data_offsets") ? 4 : 0;
    if (which == 0 || (seen & which)) return 1;
    seen |= which;
    if (which == 1) {
      if (json_string(j, type, sizeof type)) return 1;
      for (t->type = 0; t->type < ELEMENT_TYPES && strcmp(type, element_types[t->type].name) != 0; t->type++) continue;
      if (t->type == ELEMENT_TYPES) return 1;
    } else if (which == 2) {
      if (parse_integers(j, t->shape, TENSOR_AXES, &t->rank)) return 1;
    } else if (parse_integers(j, offsets, 2, &count) || count != 2)
      return 1;
  } while (json_take(j, ','));
  t->begin = offsets[0], t->end = offsets[1];
  return seen != 7 || !json_take(j, '}');
}

/* Do offsets, shape and type agree with each other and with the file? */
static int check_entry(const tensor_file *f, const tensor_entry *t) {
  int64_t bytes = element_types[t->type].bytes;
  int i;
  if (t->begin > t->end || t->end > f->bytes)
    return complain("%s: %s lies at bytes %" PRId64 " to %" PRId64 " of the data, which has %" PRId64, f->path, t->name,
                    t->begin, t->end, f->bytes);
  for (i = 0; i < t->rank; i++) {
    if (t->shape[i] > 0 && bytes > f->bytes / t->shape[i])
      return complain("%s: %s has more elements than the file has room for", f->path, t->name);
    bytes *= t->shape[i];
  }
  if (t->end - t->begin == bytes) return 0;
  return complain("%s: %s has %" PRId64 " bytes; its shape asks for %" PRId64, f->path, t->name, t->end - t->begin,
                  bytes);
}

static int by_place(const void *a, const void *b) {
  const tensor_entry *x = (const tensor_entry *)a, *y = (const tensor_entry *)b;
  if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
  return x->end < y->end ? -1 : x->end > y->end;
}

static int by_name(const void *a, const void *b) {
  return strcmp(((const tensor_entry *)a)->name, ((const tensor_entry *)b)->name);
}

/* The tensors cover the data without gaps, as the format demands, and have different names; they end sorted by name. */
static int check_cover(tensor_file *f) {
  int64_t at = 0, i;
  if (f->count) qsort(f->entry, (size_t)f->count, sizeof *f->entry, by_place);
  for (i = 0; i < f->count && f->entry[i].begin == at; i++) at = f->entry[i].end;
  if (i < f->count || at != f->bytes)
    return complain("%s: no tensor, or more than one, holds byte %" PRId64 " of the data", f->path, at);
  if (f->count) qsort(f->entry, (size_t)f->count, sizeof *f->entry, by_name);
  for (i = 1; i < f->count; i++)
    if (!strcmp(f->entry[i - 1].name, f->entry[i].name))
      return complain("%s: two tensors are called %s", f->path, f->entry[i].name);
  return 0;
}

static int parse_header(tensor_file *f, const uint8_t *header, int64_t bytes) {
  json j;
  int bad;
  j.at = header, j.end = header + bytes;
  bad = !json_take(&j, '{');
  if (!bad && !json_take(&j, '}')) {
    do {
      tensor_entry t, *entry;
      memset(&t, 0, sizeof t);
      bad = json_string(&j, t.name, TENSOR_NAME) || !json_take(&j, ':');
      if (!bad && !strcmp(t.name, "__metadata__")) {
        bad = json_skip(&j, 1);
        continue;
      }
      bad = bad || parse_entry(&j, &t);
      if (bad) break;
      if (check_entry(f, &t)) return EXIT_INPUT;
      if (f->count == MAX_TENSORS) return complain("%s: more than %d tensors", f->path, MAX_TENSORS);
      entry = (tensor_entry *)grown(f->entry, &f->room, f->count + 1, sizeof t);
      if (!entry) return fail_run(f->path, "no memory");
      f->entry = entry;
      f->entry[f->count++] = t;
    } while (!bad && json_take(&j, ','));
    bad = bad || !json_take(&j, '}');
  }
  if (bad || json_next(&j) >= 0)
    return complain("%s: the header is damaged at byte %" PRId64, f->path, 8 + (int64_t)(j.at - header));
  return check_cover(f);
}

/* Fills f from the bytes of a file, to which it points afterwards. Free f->entry in any case. */
static int parse_tensors(tensor_file *f, const char *path, const uint8_t *file, int64_t bytes) {
  uint64_t header;
  memset(f, 0, sizeof *f);
  f->path = path;
  if (bytes < 8) return complain("%s has %" PRId64 " bytes, which is no safetensors file", path, bytes);
  header = get_integer(file, 8);
  if (header > (uint64_t)(bytes - 8))
    return complain("%s has %" PRId64 " bytes, but says that its header has %" PRIu64, path, bytes, header);
  f->data = file + 8 + header;
  f->bytes = bytes - 8 - (int64_t)header;
  return parse_header(f, file + 8, (int64_t)header);
}

/* IEEE binary16, exactly */
static float half_to_float(uint32_t half) {
  const uint32_t sign = (half & 0x8000u) << 16, exponent = half >> 10 & 31, mantissa = half & 1023;
  uint32_t bits = sign | (exponent + 112) << 23 | mantissa << 13;
  float value;
  if (exponent == 31) bits = sign | 0x7f800000u | mantissa << 13;
  memcpy(&value, &bits, sizeof value);
  if (exponent == 0) value = (sign ? -1.0f : 1.0f) * (float)mantissa * (1.0f / 16777216.0f);
  return value;
}

static float element(const uint8_t *from, int type) {
  uint32_t bits = (uint32_t)get_integer(from, type == TYPE_F32 ? 4 : 2);
  float value;
  if (type == TYPE_F16) return half_to_float(bits);
  if (type == TYPE_BF16) bits <<= 16;
  memcpy(&value, &bits, sizeof value);
  return value;
}

/* The tensor called name, of shape [rows, cols], or [cols] where rows is 0, as floats into to. */
static int read_tensor(const tensor_file *f, const char *name, int64_t rows, int64_t cols, float *to) {
  const int64_t count = rows ? rows * cols : cols;
  tensor_entry wanted;
  const tensor_entry *t;
  int64_t i, step;
  memset(&wanted, 0, sizeof wanted);
  snprintf(wanted.name, sizeof wanted.name, "%s", name);
  t = f->count ? (const tensor_entry *)bsearch(&wanted, f->entry, (size_t)f->count, sizeof wanted, by_name) : NULL;
  if (!t) return complain("%s has no tensor %s: this is no BERT, or one of other names", f->path, name);
  if (t->type > TYPE_BF16)
    return complain("%s: %s is of type %s; it must be F32, F16 or BF16", f->path, name, element_types[t->type].name);
  if (rows ? t->rank != 2 || t->shape[0] != rows || t->shape[1] != cols : t->rank != 1 || t->shape[0] != cols)
    return complain("%s: %s has not the shape that the configuration asks for, %" PRId64 " x %" PRId64, f->path, name,
                    rows ? rows : 1, cols);
  step = element_types[t->type].bytes;
  for (i = 0; i < count; i++) {
    to[i] = element(f->data + t->begin + i * step, t->type);
    if (!(fabsf(to[i]) <= 3.4e38f)) return complain("%s: element %" PRId64 " of %s is not a number", f->path, i, name);
  }
  return 0;
}

/* ---- characters: what BERT's tokenizer makes of them --------------------------------------------------------------

   Cleaning, lower case, accents stripped (by canonical decomposition), as an "uncased" BERT wants it. The tables were
   made by giving every code point to Hugging Face's tokenizers 0.15.2; tests/search_check.c does that again with a hash
   of what came out. */

/* Groups: the first character replaces those after it. Only what ends in a character of the vocabulary is here: a word
   with any other character is unknown, replaced or not. Characters that Unicode's normal form C would change are
   escaped, so that no editor changes them, and so are some that few tools know. */
static const char variants[] =
    ";\u037e <≮ =≠ >≯ `\u1fef aÀÁÂÃÄÅàáâãäåĀāĂăĄąǍǎǞǟǠǡǺǻȀȁȂȃȦȧḀḁẠạẢảẤấẦầẨẩẪẫẬậẮắẰằẲẳẴẵẶặ\u212b bḂḃḄḅḆḇ "
    "cÇçĆćĈĉĊċČčḈḉ dĎďḊḋḌḍḎḏḐḑḒḓ eÈÉÊËèéêëĒēĔĕĖėĘęĚěȄȅȆȇȨȩḔḕḖḗḘḙḚḛḜḝẸẹẺẻẼẽẾếỀềỂểỄễỆệ fḞḟ gĜĝĞğĠġĢģǦǧǴǵḠḡ "
    "hĤĥȞȟḢḣḤḥḦḧḨḩḪḫẖ iÌÍÎÏìíîïĨĩĪīĬĭĮįİǏǐȈȉȊȋḬḭḮḯỈỉỊị jĴĵǰ kĶķǨǩḰḱḲḳḴḵ\u212a lĹĺĻļĽľḶḷḸḹḺḻḼḽ mḾḿṀṁṂṃ "
    "nÑñŃńŅņŇňǸǹṄṅṆṇṈṉṊṋ oÒÓÔÕÖòóôõöŌōŎŏŐőƠơǑǒǪǫǬǭȌȍȎȏȪȫȬȭȮȯȰȱṌṍṎṏṐṑṒṓỌọỎỏỐốỒồỔổỖỗỘộỚớỜờỞởỠỡỢợ pṔṕṖṗ "
    "rŔŕŖŗŘřȐȑȒȓṘṙṚṛṜṝṞṟ sŚśŜŝŞşŠšȘșṠṡṢṣṤṥṦṧṨṩ tŢţŤťȚțṪṫṬṭṮṯṰṱẗ "
    "uÙÚÛÜùúûüŨũŪūŬŭŮůŰűŲųƯưǓǔǕǖǗǘǙǚǛǜȔȕȖȗṲṳṴṵṶṷṸṹṺṻỤụỦủỨứỪừỬửỮữỰự vṼṽṾṿ wŴŵẀẁẂẃẄẅẆẇẈẉẘ xẊẋẌẍ "
    "yÝýÿŶŷŸȲȳẎẏẙỲỳỴỵỶỷỸỹ zŹźŻżŽžẐẑẒẓẔẕ ¨΅῁῭\u1fee ´\u1ffd ·\u0387 ßẞ æÆǢǣǼǽ ðÐ øØǾǿ þÞ đĐ ħĦ łŁ ŋŊ œŒ ƒƑ "
    "ɐ\u2c6f ɑ\u2c6d ɒ\u2c70 ɔƆ əƏ ɛƐ ɡ\ua7ac ɣƔ ɨƗ ɪ\ua7ae ɫ\u2c62 ɬ\ua7ad ɯƜ ɲƝ ʀƦ ʂ\ua7c5 ʃƩ ʉɄ ʊƱ ʋƲ ʌɅ "
    "ʒƷǮǯ αΆΑάἀἁἂἃἄἅἆἇἈἉἊἋἌἍἎἏὰ\u1f71ᾀᾁᾂᾃᾄᾅᾆᾇᾈᾉᾊᾋᾌᾍᾎᾏᾰᾱᾲᾳᾴᾶᾷᾸᾹᾺ\u1fbbᾼ βΒ γΓ δΔ "
    "εΈΕέἐἑἒἓἔἕἘἙἚἛἜἝὲ\u1f73Ὲ\u1fc9 ζΖ ηΉΗήἠἡἢἣἤἥἦἧἨἩἪἫἬἭἮἯὴ\u1f75ᾐᾑᾒᾓᾔᾕᾖᾗᾘᾙᾚᾛᾜᾝᾞᾟῂῃῄῆῇῊ\u1fcbῌ θΘϴ "
    "ιΊΐΙΪίϊἰἱἲἳἴἵἶἷἸἹἺἻἼἽἾἿὶ\u1f77\u1fbeῐῑῒ\u1fd3ῖῗῘῙῚ\u1fdb κΚ λΛ μΜ νΝ ξΞ οΌΟόὀὁὂὃὄὅὈὉὊὋὌὍὸ\u1f79Ὸ\u1ff9 "
    "πΠ ρΡῤῥῬ σΣ τΤ υΎΥΫΰϋύὐὑὒὓὔὕὖὗὙὛὝὟὺ\u1f7bῠῡῢ\u1fe3ῦῧῨῩῪ\u1feb φΦ χΧ ψΨ "
    "ωΏΩώὠὡὢὣὤὥὦὧὨὩὪὫὬὭὮὯὼ\u1f7dᾠᾡᾢᾣᾤᾥᾦᾧᾨᾩᾪᾫᾬᾭᾮᾯῲῳῴῶῷῺ\u1ffbῼ\u2126 аАӐӑӒӓ бБ вВ гЃГѓ дД еЀЁЕѐёӖӗ жЖӁӂӜӝ зЗӞӟ "
    "иЍИЙйѝӢӣӤӥ кЌКќ лЛ мМ нН оОӦӧ пП рР сС тТ уЎУўӮӯӰӱӲӳ фФ хХ цЦ чЧӴӵ шШ щЩ ъЪ ыЫӸӹ ьЬ эЭӬӭ юЮ яЯ ђЂ єЄ "
    "іІЇї јЈ љЉ њЊ ћЋ ӏӀ աԱ բԲ գԳ դԴ եԵ թԹ իԻ լԼ կԿ հՀ մՄ յՅ նՆ ոՈ պՊ սՍ վՎ տՏ րՐ ւՒ քՔ "
    "\u05d0\ufb2e\ufb2f\ufb30 \u05d1\ufb31\ufb4c \u05d2\ufb32 \u05d3\ufb33 \u05d4\ufb34 \u05d5\ufb35\ufb4b "
    "\u05d6\ufb36 \u05d8\ufb38 \u05d9\ufb1d\ufb39 \u05da\ufb3a \u05db\ufb3b\ufb4d \u05dc\ufb3c \u05de\ufb3e "
    "\u05e0\ufb40 \u05e1\ufb41 \u05e3\ufb43 \u05e4\ufb44\ufb4e \u05e6\ufb46 \u05e7\ufb47 \u05e8\ufb48 "
    "\u05e9\ufb2a\ufb2b\ufb2c\ufb2d\ufb49 \u05ea\ufb4a \u0627\u0622\u0623\u0625 \u0648\u0624 \u064a\u0626 "
    "\u06c1\u06c2 \u06d2\u06d3 क\u0958 ख\u0959 ग\u095a ज\u095b ड\u095c नऩ य\u095f रऱ ড\u09dc য\u09df ག\u0f43 "
    "ད\u0f52 བ\u0f57 ა\u1c90 ბ\u1c91 გ\u1c92 დ\u1c93 ე\u1c94 ვ\u1c95 თ\u1c97 ი\u1c98 კ\u1c99 ლ\u1c9a მ\u1c9b "
    "ნ\u1c9c ო\u1c9d რ\u1ca0 ს\u1ca1 ტ\u1ca2 უ\u1ca3 ←↚ →↛ ↔↮ ⇒⇏ ∈∉ ≈≉ ≡≢ ≤≰ ≥≱ ⊂⊄ ⊆⊈ 〈\u2329 〉\u232a うゔ "
    "かが きぎ くぐ けげ こご さざ しじ すず せぜ そぞ ただ ちぢ つづ てで とど はばぱ ひびぴ ふぶぷ へべぺ "
    "ほぼぽ ウヴ カガ キギ クグ ケゲ コゴ サザ シジ スズ セゼ タダ チヂ ツヅ テデ トド ハバパ ヒビピ フブプ "
    "ヘベペ ホボポ ワヷ 不\uf967 劉\uf9c7 力\uf98a 北\uf963\U0002f82b 博\U0002f82e 城\U0002f852 奈\uf90c "
    "女\uf981 年\uf98e 志\U0002f89e 成\U0002f8b2 書\U0002f8cc 李\uf9e1 林\uf9f4 海\ufa45\U0002f901 "
    "漢\ufa47\ufa9a 王\U0002f929 省\uf96d 真\U0002f946\U0002f947 社\ufa4c 神\ufa19 福\ufa1b\U0002f956 "
    "立\uf9f7 良\uf97c 艹\ufa5d\ufa5e 花\U0002f993 華\ufab4 葉\uf96e 行\ufa08 見\ufa0a 車\uf902 辶\ufa66 "
    "郎\uf92c 都\ufa26 里\uf9e9 金\uf90a 鈴\uf9b1 龍\uf9c4";

/* Runs of code points, alternating: so many that are not, so many that are. */
static const uint32_t dropped[] = {
    0,   9,  2,    2,  1,    18, 95,     33, 13,  1,  594,  112, 275,   5,     265, 45,   1,    1,  1,     2,
    1,   2,  1,    1,  56,   6,  10,     11, 1,   1,  46,   21,  16,    1,     101, 8,    1,    6,  2,     2,
    1,   4,  33,   1,  1,    1,  30,     27, 91,  11, 58,   9,   34,    4,     1,   9,    1,    3,  1,     5,
    43,  3,  135,  32, 55,   1,  1,      1,  4,   8,  4,    1,   3,     7,     10,  2,    29,   1,  58,    1,
    4,   4,  8,    1,  20,   2,  29,     2,  57,  1,  4,    2,   4,     2,     2,   3,    3,    1,  30,    2,
    3,   1,  11,   2,  57,   1,  4,      5,  1,   2,  4,    1,   20,    2,     29,  1,    58,   1,  2,     1,
    1,   4,  8,    1,  8,    1,  11,     2,  30,  1,  61,   1,   12,    1,     50,  1,    61,   3,  5,     3,
    1,   4,  7,    2,  11,   2,  29,     1,  58,  1,  2,    1,   6,     1,     5,   2,    20,   2,  29,    1,
    63,  4,  8,    1,  20,   2,  102,    1,  7,   3,  1,    1,   90,    1,     2,   7,    12,   8,  98,    1,
    2,   6,  1,    2,  11,   6,  74,     2,  27,  1,  1,    1,   1,     1,     55,  14,   1,    5,  1,     2,
    5,   11, 1,    36, 9,    1,  102,    4,  1,   6,  1,    2,   2,     2,     25,  2,    4,    3,  16,    4,
    13,  1,  2,    2,  6,    1,  15,     1,  703, 3,  946,  3,   29,    3,     29,  2,    30,   2,  64,    2,
    1,   7,  8,    1,  2,    11, 9,      1,  45,  4,  154,  1,   118,   3,     4,   2,    9,    1,  6,     3,
    219, 2,  2,    1,  58,   1,  1,      7,  1,   1,  1,    1,   2,     8,     6,   10,   2,    1,  48,    14,
    66,  4,  48,   1,  1,    5,  1,      1,  5,   1,  40,   9,   12,    2,     32,  4,    2,    2,  1,     3,
    56,  1,  1,    2,  3,    1,  1,      3,  58,  8,  2,    2,   152,   3,     1,   13,   1,    7,  4,     1,
    6,   1,  3,    2,  198,  54, 6,      4,  523, 5,  26,   5,   49,    5,     1,   10,   96,   13, 4,     1,
    3,   12, 3070, 3,  141,  1,  96,     32, 554, 4,  107,  2,   30164, 1,     4,   10,   32,   2,  80,    2,
    272, 1,  3,    1,  4,    1,  25,     2,  157, 1,  27,   18,  52,    8,     25,  11,   46,   3,  48,    1,
    2,   4,  2,    1,  40,   1,  67,     6,  2,   2,  2,    2,   12,    1,     8,   1,    47,   1,  51,    1,
    1,   3,  2,    2,  5,    2,  1,      1,  42,  2,  8,    1,   238,   1,     2,   1,    4,    1,  13330, 6400,
    542, 1,  737,  16, 16,   16, 207,    1,  249, 3,  1,    1,   511,   1,     226, 1,    149,  5,  1670,  3,
    1,   2,  5,    4,  40,   3,  4,      1,  165, 2,  1306, 1,   54,    15,    56,  3,    49,   4,  2,     2,
    2,   1,  66,   3,  36,   5,  1,      8,  62,  1,  12,   2,   52,    9,     11,  3,    98,   3,  2,     1,
    1,   2,  167,  1,  3,    8,  21,     2,  58,  1,  3,    1,   37,    7,     3,   5,    318,  6,  1,     1,
    4,   2,  1,    2,  238,  4,  6,      2,  1,   2,  27,   2,   85,    8,     2,   1,    1,    2,  106,   1,
    1,   1,  2,    6,  1,    1,  101,    3,  2,   4,  1,    5,   21444, 5,     59,  7,    1112, 4,  19722, 2,
    1,   4,  5315, 3,  9,    16, 2,      7,  30,  4,  148,  3,   1979,  55,    4,   50,   8,    1,  14,    1,
    22,  5,  1,    15, 3616, 7,  792362, 1,  30,  96, 128,  240, 65040, 65534, 2,   65534};
static const uint32_t punctuation[] = {
    33,    15, 10,    7,  26,   6,  26,  4,  34,  1,  5,    1,  3,   1,  10,    2, 3,    1, 3,     1, 702, 1,  8,   1,
    466,   6,  41,    2,  51,   1,  1,   1,  2,   1,  2,    1,  44,  2,  20,    2, 1,    2, 13,    1, 2,   2,  74,  4,
    102,   1,  43,    14, 233,  3,  54,  15, 31,  1,  261,  2,  10,  1,  383,   1, 771,  1, 90,    1, 10,  2,  168, 15,
    1,     1,  37,    4,  71,   1,  74,  5,  4,   2,  111,  6,  171, 1,  612,   9, 151,  1, 620,   2, 44,  2,  78,  3,
    71,    2,  157,   3,  1,    3,  37,  11, 313, 2,  216,  2,  128, 7,  1,     6, 172,  7, 155,   4, 59,  5,  62,  2,
    64,    8,  11,    1,  795,  1,  32,  24, 8,   20, 1,    13, 1,   12, 30,    2, 14,   2, 465,   1, 13,  2,  152, 4,
    29,    2,  1085,  14, 79,   2,  31,  10, 403, 22, 63,   4,  32,  2,  763,   4, 1,    2, 112,   1, 143, 47, 1,   19,
    446,   3,  4,     10, 2,    12, 16,  1,  12,  1,  98,   1,  90,  1,  29698, 2, 269,  3, 99,    1, 10,  1,  115, 6,
    380,   4,  86,    2,  40,   3,  1,   1,  49,  2,  47,   1,  97,  13, 16,    2, 124,  4, 126,   2, 16,  2,  249, 1,
    20818, 2,  208,   10, 22,   35, 1,   14, 1,   1,  4,    1,  1,   2,  149,   3, 1,    6, 1,     4, 10,  2,  3,   2,
    26,    3,  1,     1,  27,   1,  1,   1,  1,   7,  410,  3,  668, 1,  48,    1, 414,  1, 743,   1, 199, 1,  31,  1,
    272,   9,  38,    1,  112,  7,  66,  7,  89,  4,  1194, 7,  109, 2,  1,     4, 126,  4, 48,    2, 79,  5,  3,   1,
    13,    1,  1,     3,  88,   6,  107, 1,  540, 1,  250,  23, 105, 3,  248,   3, 3377, 5, 17913, 2, 133, 1,  65,  5,
    8,     1,  20826, 1,  7655, 5};
static const uint32_t ideographs[] = {13312, 6592, 64,   20992, 22784, 512,   66816,
                                      42720, 32,   4384, 256,   5520,  10576, 544};
static const uint32_t blanks[] = {9, 2, 2, 1, 18, 1, 127, 1, 5599, 1, 2431, 11, 29, 2, 5, 1, 47, 1, 4000, 1};
enum { KIND_WORD, KIND_DROPPED, KIND_BLANK, KIND_ALONE }; /* alone: punctuation and ideographs are words of their own */
enum { CODE_POINTS = 0x110000 };

typedef struct variant {
  uint32_t from, to;
} variant;

typedef struct characters {
  uint8_t *kind;     /* [CODE_POINTS] */
  variant *variants; /* sorted by from */
  int64_t count;
} characters;

/* The code point at *at, which moves behind it. Bytes that are not UTF-8 give U+FFFD, one for each. */
static uint32_t next_code_point(const uint8_t **at, const uint8_t *end) {
  const uint8_t *p = *at;
  const uint32_t first = *p;
  const int more = first < 0xc2 ? 0 : first < 0xe0 ? 1 : first < 0xf0 ? 2 : first < 0xf5 ? 3 : 0;
  static const uint32_t mask[4] = {0x7f, 0x1f, 0x0f, 0x07}, least[4] = {0, 0x80, 0x800, 0x10000};
  uint32_t c = first & mask[more];
  int i;
  *at = p + 1;
  if (first < 0x80) return first;
  if (more == 0 || end - p <= more) return 0xfffd;
  for (i = 1; i <= more; i++) {
    if ((p[i] & 0xc0) != 0x80) return 0xfffd;
    c = c << 6 | (p[i] & 0x3f);
  }
  if (c < least[more] || c >= CODE_POINTS || (c >= 0xd800 && c < 0xe000)) return 0xfffd;
  *at = p + 1 + more;
  return c;
}

/* c as UTF-8; the number of bytes, at most 4. */
static int put_code_point(uint8_t *to, uint32_t c) {
  if (c < 0x80) return to[0] = (uint8_t)c, 1;
  if (c < 0x800) return to[0] = (uint8_t)(0xc0 | c >> 6), to[1] = (uint8_t)(0x80 | (c & 63)), 2;
  if (c < 0x10000) {
    to[0] = (uint8_t)(0xe0 | c >> 12), to[1] = (uint8_t)(0x80 | (c >> 6 & 63)), to[2] = (uint8_t)(0x80 | (c & 63));
    return 3;
  }
  to[0] = (uint8_t)(0xf0 | c >> 18), to[1] = (uint8_t)(0x80 | (c >> 12 & 63));
  to[2] = (uint8_t)(0x80 | (c >> 6 & 63)), to[3] = (uint8_t)(0x80 | (c & 63));
  return 4;
}

static void mark_runs(uint8_t *kind, const uint32_t *runs, size_t count, int value) {
  uint32_t at = 0;
  size_t i;
  for (i = 0; i + 1 < count; i += 2) {
    memset(kind + at + runs[i], value, runs[i + 1]);
    at += runs[i] + runs[i + 1];
  }
}

static int by_from(const void *a, const void *b) {
  const uint32_t x = ((const variant *)a)->from, y = ((const variant *)b)->from;
  return x < y ? -1 : x > y;
}

static int characters_open(characters *c) {
  const uint8_t *at = (const uint8_t *)variants, *end = at + sizeof variants - 1;
  uint32_t to = 0;
  c->kind = (uint8_t *)calloc(CODE_POINTS, 1);
  c->variants = (variant *)calloc(sizeof variants, sizeof *c->variants); /* more than enough */
  if (!c->kind || !c->variants) return fail_run("the tokenizer", "no memory for its tables");
  mark_runs(c->kind, dropped, sizeof dropped / sizeof *dropped, KIND_DROPPED);
  mark_runs(c->kind, punctuation, sizeof punctuation / sizeof *punctuation, KIND_ALONE);
  mark_runs(c->kind, ideographs, sizeof ideographs / sizeof *ideographs, KIND_ALONE);
  mark_runs(c->kind, blanks, sizeof blanks / sizeof *blanks, KIND_BLANK);
  while (at < end) {
    const uint32_t from = next_code_point(&at, end);
    if (from == ' ')
      to = 0;
    else if (to == 0)
      to = from;
    else
      c->variants[c->count].from = from, c->variants[c->count++].to = to;
  }
  qsort(c->variants, (size_t)c->count, sizeof *c->variants, by_from);
  return 0;
}

/* What c becomes: one to three code points in to. */
static int replace_character(const characters *table, uint32_t c, uint32_t *to) {
  to[0] = c;
  if (c < 0x80) {
    if (c >= 'A' && c <= 'Z') to[0] = c + ('a' - 'A');
    return 1;
  }
  if (c >= 0xac00 && c < 0xd7a4) { /* a syllable of Hangul: Unicode's formula for its letters */
    const uint32_t syllable = c - 0xac00, last = syllable % 28;
    to[0] = 0x1100 + syllable / 588, to[1] = 0x1161 + syllable % 588 / 28, to[2] = 0x11a7 + last;
    return last ? 3 : 2;
  }
  if (c == 0x9cb) return to[0] = 0x9c7, to[1] = 0x9be, 2; /* the Bengali and the Tamil vowel o */
  if (c == 0xbcb) return to[0] = 0xbc7, to[1] = 0xbbe, 2;
  {
    variant key = {0, 0};
    const variant *found;
    key.from = c;
    found = (const variant *)bsearch(&key, table->variants, (size_t)table->count, sizeof key, by_from);
    if (found) to[0] = found->to;
  }
  return 1;
}

/* ---- vocabulary: one piece of a word a line; those that continue a word begin with ## -------------------------- */

enum { MAX_WORD = 100, MAX_PIECES = 1 << 20, MAX_PIECE_BYTES = 256 };

typedef struct vocabulary {
  blob text;
  int64_t *first; /* [count + 1] where the line of each piece begins */
  int64_t count;
  int32_t *slot; /* [mask + 1] number of a piece + 1, or 0 */
  uint64_t mask;
  int64_t cls, sep, unknown;
} vocabulary;

/* The piece with this hash (FNV-1a of prefix and bytes), or -1; prefix is "" or "##". */
static int64_t find_piece(const vocabulary *v, uint64_t hash, const char *prefix, const uint8_t *bytes, int64_t count) {
  const int64_t before = (int64_t)strlen(prefix);
  uint64_t at;
  for (at = (hash ^ hash >> 32) & v->mask; v->slot[at]; at = (at + 1) & v->mask) {
    const int64_t piece = v->slot[at] - 1, first = v->first[piece], length = v->first[piece + 1] - 1 - first;
    if (length == before + count && !memcmp(v->text.data + first, prefix, (size_t)before) &&
        !memcmp(v->text.data + first + before, bytes, (size_t)count))
      return piece;
  }
  return -1;
}

static int64_t find_name(const vocabulary *v, const char *name) {
  const int64_t length = (int64_t)strlen(name);
  return find_piece(v, hash_bytes(FNV_START, (const uint8_t *)name, length), "", (const uint8_t *)name, length);
}

static int add_piece(vocabulary *v, const char *path, int64_t piece) {
  const uint8_t *bytes = v->text.data + v->first[piece];
  const int64_t length = v->first[piece + 1] - 1 - v->first[piece];
  const uint64_t hash = hash_bytes(FNV_START, bytes, length);
  uint64_t at = (hash ^ hash >> 32) & v->mask;
  if (length < 1 || length > MAX_PIECE_BYTES)
    return complain("%s: line %" PRId64 " has %" PRId64 " bytes; it must have 1 to %d", path, piece + 1, length,
                    MAX_PIECE_BYTES);
  if (find_piece(v, hash, "", bytes, length) >= 0)
    return complain("%s: line %" PRId64 " repeats an earlier one", path, piece + 1);
  while (v->slot[at]) at = (at + 1) & v->mask;
  v->slot[at] = (int32_t)(piece + 1);
  return 0;
}

/* From v->text, which belongs to the vocabulary. */
static int parse_vocabulary(vocabulary *v, const char *path) {
  const uint8_t *text = v->text.data;
  int64_t lines = 0, i, piece;
  for (i = 0; i < v->text.bytes; i++) lines += text[i] == '\n';
  if (lines < 3 || lines > MAX_PIECES)
    return complain("%s has %" PRId64 " lines; a vocabulary has 3 to %d", path, lines, MAX_PIECES);
  if (text[v->text.bytes - 1] != '\n') return complain("%s does not end with a line feed: it is cut", path);
  for (v->mask = 8; v->mask < 2 * (uint64_t)lines; v->mask *= 2) continue;
  v->first = (int64_t *)calloc((size_t)lines + 1, sizeof *v->first);
  v->slot = (int32_t *)calloc((size_t)v->mask, sizeof *v->slot);
  v->mask--;
  if (!v->first || !v->slot) return fail_run(path, "no memory for its table");
  for (i = 0; i < v->text.bytes; i++)
    if (text[i] == '\n') v->first[++v->count] = i + 1;
  for (piece = 0; piece < v->count; piece++)
    if (add_piece(v, path, piece)) return EXIT_INPUT;
  v->cls = find_name(v, "[CLS]"), v->sep = find_name(v, "[SEP]"), v->unknown = find_name(v, "[UNK]");
  if (v->cls >= 0 && v->sep >= 0 && v->unknown >= 0) return 0;
  return complain("%s has no line [CLS], [SEP] or [UNK]: this is no vocabulary of BERT", path);
}

static void vocabulary_close(vocabulary *v) { free(v->text.data), free(v->first), free(v->slot); }

/* ---- tokens ------------------------------------------------------------------------------------------------------ */

typedef struct wordpiece {
  characters table;
  vocabulary pieces;
  int64_t most; /* tokens of a line, [CLS] and [SEP] among them */
} wordpiece;

/* A word as it grows. Beyond MAX_WORD characters only their number counts: such a word is unknown. */
typedef struct word {
  int64_t length;              /* characters */
  int16_t first[MAX_WORD + 1]; /* where each begins in bytes */
  uint8_t bytes[4 * MAX_WORD];
} word;

static void push_character(word *w, uint32_t c) {
  if (w->length < MAX_WORD)
    w->first[w->length + 1] = (int16_t)(w->first[w->length] + put_code_point(w->bytes + w->first[w->length], c));
  w->length++;
}

/* The longest piece that begins at character `from`; *to moves to where it ends. -1: none. */
static int64_t longest_piece(const vocabulary *v, const word *w, int64_t from, int64_t *to) {
  const char *prefix = from ? "##" : "";
  uint64_t hash[MAX_WORD + 1]; /* of the piece up to each character */
  int64_t end;
  hash[from] = hash_bytes(FNV_START, (const uint8_t *)prefix, (int64_t)strlen(prefix));
  for (end = from; end < w->length; end++)
    hash[end + 1] = hash_bytes(hash[end], w->bytes + w->first[end], w->first[end + 1] - w->first[end]);
  for (end = w->length; end > from; end--) {
    const int64_t piece = find_piece(v, hash[end], prefix, w->bytes + w->first[from], w->first[end] - w->first[from]);
    if (piece < 0) continue;
    *to = end;
    return piece;
  }
  return -1;
}

/* WordPiece (Wu et al., 2016): longest match first; a word that does not come out even is unknown as a whole. Empties
   the word and returns the new count, at most limit. */
static int64_t end_word(const vocabulary *v, word *w, int64_t *ids, int64_t count, int64_t limit) {
  int64_t piece[MAX_WORD], pieces = 0, at = 0, i;
  if (w->length == 0) return count;
  while (w->length <= MAX_WORD && at < w->length) {
    const int64_t next = longest_piece(v, w, at, &at);
    if (next < 0) break;
    piece[pieces++] = next;
  }
  if (at < w->length) pieces = 1, piece[0] = v->unknown;
  for (i = 0; i < pieces && count < limit; i++) ids[count++] = piece[i];
  w->length = 0;
  return count;
}

/* The tokens of a line, [CLS] ... [SEP], into ids [t->most]; their number. Names of special tokens in the text are
   text. */
static int64_t tokenize(const wordpiece *t, const uint8_t *text, int64_t bytes, int64_t *ids) {
  const uint8_t *at = text, *end = text + bytes;
  const vocabulary *v = &t->pieces;
  const int64_t limit = t->most - 1;
  int64_t count = 0;
  word w;
  w.length = 0, w.first[0] = 0;
  ids[count++] = v->cls;
  while (at < end && count < limit) {
    uint32_t to[3];
    const uint32_t c = next_code_point(&at, end);
    const int kind = t->table.kind[c];
    int parts, i;
    if (kind == KIND_DROPPED) continue;
    if (kind != KIND_WORD) count = end_word(v, &w, ids, count, limit);
    if (kind == KIND_BLANK) continue;
    parts = replace_character(&t->table, c, to);
    for (i = 0; i < parts; i++) push_character(&w, to[i]);
    if (kind == KIND_ALONE) count = end_word(v, &w, ids, count, limit);
  }
  count = end_word(v, &w, ids, count, limit);
  ids[count++] = v->sep;
  return count;
}

/* ---- the model --------------------------------------------------------------------------------------------------- */

enum { MATRIX_QKV, MATRIX_OUT, MATRIX_UP, MATRIX_DOWN, MATRICES }; /* of a layer */
enum { NORM_ATTENTION, NORM_OUTPUT, NORMS };

typedef struct encoder_layer {
  mlk_packed matrix[MATRICES];
  float *bias[MATRICES], *gamma[NORMS], *beta[NORMS];
} encoder_layer;

typedef struct model {
  char folder[MAX_PATH_BYTES];
  int64_t width, heads, layers, inner, words, positions, types; /* H, heads, layers, I, rows of the three tables */
  double epsilon;
  wordpiece tokenizer;
  float *word, *position; /* [words, H], [positions, H]; position has the only type's row in it */
  float *gamma, *beta;    /* of the sum of the two */
  encoder_layer layer[MAX_LAYERS];
  void *memory, *panels; /* what the pointers above point into; the packed matrices */
  uint64_t fingerprint;  /* of weights, vocabulary and configuration */
  mlk_context *ctx;
} model;

static int library_failed(const mlk_context *ctx, const char *name, mlk_status status) {
  complain("%s: %s: %s", name, mlk_status_name(status), mlk_last_error(ctx));
  return EXIT_RUN;
}

static int in_range(const char *path, const char *name, int64_t value, int64_t least, int64_t most) {
  if (value >= least && value <= most) return 0;
  return complain("%s: %s is %" PRId64 "; it must be %" PRId64 " to %" PRId64, path, name, value, least, most);
}

/* One of the small JSON files of a model's folder. optional: its absence leaves everything as it is. */
static int read_settings(const model *m, const char *name, int optional, field *fields, int count) {
  char path[MAX_PATH_BYTES];
  blob text = {NULL, 0};
  int code = join_path(path, m->folder, name);
  if (!code && optional && !file_exists(path)) return 0;
  if (!code) code = read_file(path, MAX_SMALL_BYTES, &text);
  if (!code) code = read_object(path, text.data, text.bytes, fields, count);
  free(text.data);
  return code;
}

/* What config.json says must be complete and known. */
static int check_config(model *m, const char *path, const field *fields, int count, const char *act, const char *kind) {
  int i;
  for (i = 0; i < count; i++)
    if (!fields[i].found) return complain("%s does not tell %s", path, fields[i].name);
  if (in_range(path, "hidden_size", m->width, 1, 4096) || in_range(path, "num_attention_heads", m->heads, 1, 256) ||
      in_range(path, "num_hidden_layers", m->layers, 1, MAX_LAYERS) ||
      in_range(path, "intermediate_size", m->inner, 1, 16384) ||
      in_range(path, "vocab_size", m->words, 3, MAX_PIECES) ||
      in_range(path, "max_position_embeddings", m->positions, 3, 8192) ||
      in_range(path, "type_vocab_size", m->types, 1, 16))
    return EXIT_INPUT;
  if (m->width % m->heads)
    return complain("%s: %" PRId64 " heads do not divide hidden_size %" PRId64, path, m->heads, m->width);
  if (strcmp(act, "gelu") != 0) return complain("%s: hidden_act is '%s'; only gelu is known", path, act);
  if (strcmp(kind, "bert") != 0) return complain("%s: model_type is '%s'; only bert is known", path, kind);
  if (!(m->epsilon > 0 && m->epsilon < 1))
    return complain("%s: layer_norm_eps is %g; it must be 0 to 1", path, m->epsilon);
  return 0;
}

static int load_settings(model *m) {
  char act[32] = "", kind[32] = "";
  int uncased = 1, mean = 1;
  field config[10] = {
      {"hidden_size", FIELD_INTEGER, NULL, 0},       {"num_attention_heads", FIELD_INTEGER, NULL, 0},
      {"num_hidden_layers", FIELD_INTEGER, NULL, 0}, {"intermediate_size", FIELD_INTEGER, NULL, 0},
      {"vocab_size", FIELD_INTEGER, NULL, 0},        {"max_position_embeddings", FIELD_INTEGER, NULL, 0},
      {"type_vocab_size", FIELD_INTEGER, NULL, 0},   {"layer_norm_eps", FIELD_NUMBER, NULL, 0},
      {"hidden_act", FIELD_STRING, NULL, 0},         {"model_type", FIELD_STRING, NULL, 0}};
  field sentence[1] = {{"max_seq_length", FIELD_INTEGER, NULL, 0}};
  field casing[1] = {{"do_lower_case", FIELD_TRUTH, NULL, 0}};
  field pooling[1] = {{"pooling_mode_mean_tokens", FIELD_TRUTH, NULL, 0}};
  int code;
  config[0].to = &m->width, config[1].to = &m->heads, config[2].to = &m->layers, config[3].to = &m->inner;
  config[4].to = &m->words, config[5].to = &m->positions, config[6].to = &m->types, config[7].to = &m->epsilon;
  config[8].to = act, config[9].to = kind;
  sentence[0].to = &m->tokenizer.most, casing[0].to = &uncased, pooling[0].to = &mean;
  code = read_settings(m, "config.json", 0, config, 10);
  if (!code) code = check_config(m, "config.json", config, 10, act, kind);
  if (!code) m->tokenizer.most = m->positions;
  if (!code) code = read_settings(m, "sentence_bert_config.json", 1, sentence, 1);
  if (!code) code = in_range("sentence_bert_config.json", "max_seq_length", m->tokenizer.most, 3, m->positions);
  if (!code) code = read_settings(m, "tokenizer_config.json", 1, casing, 1);
  if (!code && !uncased)
    code = complain("tokenizer_config.json: do_lower_case is false; only uncased models are known");
  if (!code) code = read_settings(m, "1_Pooling/config.json", 1, pooling, 1);
  if (!code && !mean) code = complain("1_Pooling/config.json: only the mean over tokens is known");
  return code;
}

/* A region of memory cut into arrays that begin at multiples of 64 bytes. base NULL: only counts. */
typedef struct region {
  char *base;
  size_t used;
} region;

static void *cut(region *r, int64_t elements, size_t size) {
  char *here = r->base ? r->base + r->used : NULL;
  r->used += ((size_t)elements * size + 63) / 64 * 64;
  return here;
}

static float *cut_floats(region *r, int64_t elements) { return (float *)cut(r, elements, sizeof(float)); }

static int64_t matrix_rows(const model *m, int matrix) {
  return matrix == MATRIX_QKV ? 3 * m->width : matrix == MATRIX_UP ? m->inner : m->width;
}
static int64_t matrix_cols(const model *m, int matrix) { return matrix == MATRIX_DOWN ? m->inner : m->width; }

static void lay_out_model(model *m, region *r) {
  int64_t i;
  int j;
  m->word = cut_floats(r, m->words * m->width), m->position = cut_floats(r, m->positions * m->width);
  m->gamma = cut_floats(r, m->width), m->beta = cut_floats(r, m->width);
  for (i = 0; i < m->layers; i++) {
    for (j = 0; j < MATRICES; j++) m->layer[i].bias[j] = cut_floats(r, matrix_rows(m, j));
    for (j = 0; j < NORMS; j++)
      m->layer[i].gamma[j] = cut_floats(r, m->width), m->layer[i].beta[j] = cut_floats(r, m->width);
  }
}

/* A weight [rows, cols] and its bias; the fingerprint takes both. */
static int read_dense(model *m, const tensor_file *f, const char *name, int64_t rows, int64_t cols, float *weight,
                      float *bias) {
  char full[TENSOR_NAME];
  int code;
  snprintf(full, sizeof full, "%s.weight", name);
  code = read_tensor(f, full, rows, cols, weight);
  snprintf(full, sizeof full, "%s.bias", name);
  if (!code) code = read_tensor(f, full, 0, rows ? rows : cols, bias);
  if (code) return code;
  m->fingerprint = hash_floats(m->fingerprint, weight, rows ? rows * cols : cols);
  m->fingerprint = hash_floats(m->fingerprint, bias, rows ? rows : cols);
  return 0;
}

static int read_norm(model *m, const tensor_file *f, const char *name, float *gamma, float *beta) {
  return read_dense(m, f, name, 0, m->width, gamma, beta);
}

/* Packs scratch [rows, cols], as x W^T reads it; at where, or only its size where that is NULL. */
static int pack_matrix(model *m, int64_t layer_number, int matrix, const float *scratch, void *where, uint64_t room) {
  const int64_t rows = matrix_rows(m, matrix), cols = matrix_cols(m, matrix);
  const mlk_status status = mlk_matmul_pack(m->ctx, mlk_transposed(mlk_f32(scratch, rows, cols)), where, room,
                                            &m->layer[layer_number].matrix[matrix]);
  return status == MLK_OK ? 0 : library_failed(m->ctx, "mlk_matmul_pack", status);
}

/* The matrices of one layer, one after another through scratch; queries, keys and values become one. */
static int read_layer(model *m, const tensor_file *f, int64_t number, float *scratch, char **panels) {
  static const char *const names[MATRICES][3] = {{"attention.self.query", "attention.self.key", "attention.self.value"},
                                                 {"attention.output.dense", NULL, NULL},
                                                 {"intermediate.dense", NULL, NULL},
                                                 {"output.dense", NULL, NULL}};
  encoder_layer *l = &m->layer[number];
  char name[TENSOR_NAME];
  int matrix, part, code = 0;
  for (matrix = 0; matrix < MATRICES && !code; matrix++) {
    const int64_t cols = matrix_cols(m, matrix), rows = matrix == MATRIX_QKV ? m->width : matrix_rows(m, matrix);
    for (part = 0; part < 3 && names[matrix][part] && !code; part++) {
      snprintf(name, sizeof name, "encoder.layer.%d.%s", (int)number, names[matrix][part]);
      code = read_dense(m, f, name, rows, cols, scratch + part * rows * cols, l->bias[matrix] + part * rows);
    }
    if (!code) code = pack_matrix(m, number, matrix, scratch, NULL, 0);
    if (!code) code = pack_matrix(m, number, matrix, scratch, *panels, l->matrix[matrix].bytes);
    *panels += (l->matrix[matrix].bytes + 63) / 64 * 64;
  }
  snprintf(name, sizeof name, "encoder.layer.%d.attention.output.LayerNorm", (int)number);
  if (!code) code = read_norm(m, f, name, l->gamma[NORM_ATTENTION], l->beta[NORM_ATTENTION]);
  snprintf(name, sizeof name, "encoder.layer.%d.output.LayerNorm", (int)number);
  if (!code) code = read_norm(m, f, name, l->gamma[NORM_OUTPUT], l->beta[NORM_OUTPUT]);
  return code;
}

/* position += type[0]: there is one type of token only. scratch: [types, H] */
static int read_embeddings(model *m, const tensor_file *f, float *scratch) {
  int64_t i;
  int code = read_tensor(f, "embeddings.word_embeddings.weight", m->words, m->width, m->word);
  if (!code) code = read_tensor(f, "embeddings.position_embeddings.weight", m->positions, m->width, m->position);
  if (!code) code = read_tensor(f, "embeddings.token_type_embeddings.weight", m->types, m->width, scratch);
  if (!code) code = read_norm(m, f, "embeddings.LayerNorm", m->gamma, m->beta);
  if (code) return code;
  for (i = 0; i < m->positions * m->width; i++) m->position[i] += scratch[i % m->width];
  m->fingerprint = hash_floats(m->fingerprint, m->word, m->words * m->width);
  m->fingerprint = hash_floats(m->fingerprint, m->position, m->positions * m->width);
  return 0;
}

static int read_weights(model *m, const tensor_file *f) {
  const int64_t most = (m->inner > 3 * m->width ? m->inner : 3 * m->width) * m->width;
  float *scratch = (float *)malloc((size_t)(most + m->types * m->width) * sizeof *scratch);
  region r = {NULL, 0};
  uint64_t bytes = 64;
  char *panels;
  int64_t i;
  int code = scratch ? 0 : fail_run(f->path, "no memory for a matrix");
  lay_out_model(m, &r);
  m->memory = calloc(r.used + 64, 1);
  for (i = 0; i < MATRICES && !code; i++) {
    code = pack_matrix(m, 0, (int)i, scratch, NULL, 0);
    bytes += (m->layer[0].matrix[i].bytes + 63) / 64 * 64 * (uint64_t)m->layers;
  }
  if (!code) m->panels = malloc((size_t)bytes);
  if (!code && (!m->memory || !m->panels)) code = fail_run(f->path, "no memory for the weights");
  if (!code) {
    r.base = (char *)m->memory + (64 - (uintptr_t)m->memory % 64) % 64;
    r.used = 0;
    lay_out_model(m, &r);
    panels = (char *)m->panels + (64 - (uintptr_t)m->panels % 64) % 64;
    code = read_embeddings(m, f, scratch);
    for (i = 0; i < m->layers && !code; i++) code = read_layer(m, f, i, scratch, &panels);
  }
  free(scratch);
  return code;
}

static int load_vocabulary(model *m) {
  vocabulary *v = &m->tokenizer.pieces;
  char path[MAX_PATH_BYTES];
  int code = join_path(path, m->folder, "vocab.txt");
  if (!code) code = read_file(path, MAX_SMALL_BYTES, &v->text);
  if (!code) code = parse_vocabulary(v, path);
  if (!code && v->count != m->words)
    code = complain("%s has %" PRId64 " lines; the configuration says %" PRId64, path, v->count, m->words);
  if (!code) code = characters_open(&m->tokenizer.table);
  return code;
}

/* Everything in m->folder; m->ctx is open. */
static int load_model(model *m) {
  char path[MAX_PATH_BYTES];
  blob file = {NULL, 0};
  tensor_file f;
  int code = load_settings(m);
  memset(&f, 0, sizeof f);
  if (!code) code = load_vocabulary(m);
  if (!code) code = join_path(path, m->folder, "model.safetensors");
  if (!code) code = read_file(path, MAX_MODEL_BYTES, &file);
  if (!code) code = parse_tensors(&f, path, file.data, file.bytes);
  if (!code) {
    const float epsilon = (float)m->epsilon;
    m->fingerprint = hash_bytes(FNV_START, m->tokenizer.pieces.text.data, m->tokenizer.pieces.text.bytes);
    m->fingerprint = hash_floats(m->fingerprint, &epsilon, 1);
    m->fingerprint = (m->fingerprint ^ (uint64_t)m->heads) * FNV_PRIME;
    m->fingerprint = (m->fingerprint ^ (uint64_t)m->tokenizer.most) * FNV_PRIME;
    code = read_weights(m, &f);
  }
  free(f.entry), free(file.data);
  return code;
}

static void model_close(model *m) {
  free(m->memory), free(m->panels), free(m->tokenizer.table.kind), free(m->tokenizer.table.variants);
  vocabulary_close(&m->tokenizer.pieces);
  mlk_close(m->ctx);
}

/* ---- the network: lines in, vectors out -------------------------------------------------------------------------- */

typedef struct encoder {
  model *m;
  int64_t room;                       /* tokens of one pass */
  float *x, *y, *qkv, *mixed, *inner; /* [room, H], [room, H], [room, 3 H], [room, H], [room, I] */
  int64_t *ids, *positions, *offsets; /* [room], [room], [MAX_BATCH_LINES + 1] */
  float *length;                      /* [MAX_BATCH_LINES] */
  void *memory;
  int64_t lines, tokens; /* so far */
  double seconds, flops;
} encoder;

static void lay_out_encoder(encoder *e, region *r) {
  const model *m = e->m;
  e->x = cut_floats(r, e->room * m->width), e->y = cut_floats(r, e->room * m->width);
  e->qkv = cut_floats(r, e->room * 3 * m->width), e->mixed = cut_floats(r, e->room * m->width);
  e->inner = cut_floats(r, e->room * m->inner), e->length = cut_floats(r, MAX_BATCH_LINES);
  e->ids = (int64_t *)cut(r, e->room, sizeof(int64_t)), e->positions = (int64_t *)cut(r, e->room, sizeof(int64_t));
  e->offsets = (int64_t *)cut(r, MAX_BATCH_LINES + 1, sizeof(int64_t));
}

static int encoder_open(encoder *e, model *m) {
  region r = {NULL, 0};
  e->m = m;
  e->room = m->tokenizer.most > BATCH_TOKENS ? m->tokenizer.most : (int64_t)BATCH_TOKENS;
  lay_out_encoder(e, &r);
  e->memory = malloc(r.used + 64);
  if (!e->memory) return fail_run("the network", "no memory for it");
  r.base = (char *)e->memory + (64 - (uintptr_t)e->memory % 64) % 64;
  r.used = 0;
  lay_out_encoder(e, &r);
  return 0;
}

/* out = act(in W^T + bias) + residual, in [tokens, cols], out [tokens, rows] */
static mlk_status dense(const encoder *e, const encoder_layer *l, int matrix, int64_t tokens, const float *in,
                        float *out, mlk_activation activation, const float *residual) {
  const int64_t rows = matrix_rows(e->m, matrix);
  mlk_matmul_desc d;
  memset(&d, 0, sizeof d);
  d.a = mlk_f32(in, tokens, matrix_cols(e->m, matrix)), d.packed_b = &l->matrix[matrix];
  d.d = mlk_f32(out, tokens, rows), d.bias = mlk_f32(l->bias[matrix], rows);
  if (residual) d.residual = mlk_f32(residual, tokens, rows);
  d.activation = activation;
  return mlk_matmul(e->m->ctx, &d);
}

static mlk_status norm(const encoder *e, int64_t tokens, const float *in, const float *gamma, const float *beta,
                       float *out) {
  mlk_norm_desc d;
  memset(&d, 0, sizeof d);
  d.kind = MLK_NORM_LAYER;
  d.x = mlk_f32(in, tokens, e->m->width), d.y = mlk_f32(out, tokens, e->m->width);
  d.gamma = mlk_f32(gamma, e->m->width), d.beta = mlk_f32(beta, e->m->width);
  d.epsilon = (float)e->m->epsilon;
  return mlk_norm(e->m->ctx, &d);
}

/* One of the three thirds of qkv [tokens, 3 H] as [1, heads, tokens, H / heads] */
static mlk_tensor third(const encoder *e, int64_t tokens, int which) {
  const int64_t heads = e->m->heads;
  const mlk_tensor all = mlk_f32(e->qkv, 1, tokens, 3 * heads, e->m->width / heads);
  return mlk_swapped(mlk_slice(all, 2, which * heads, heads), 1, 2);
}

/* Every token sees those of its own line: the lines lie one after the other, as offsets tells. */
static mlk_status attend(const encoder *e, int64_t lines, int64_t tokens, int64_t longest) {
  mlk_attention_desc d;
  memset(&d, 0, sizeof d);
  d.q = third(e, tokens, 0), d.k = third(e, tokens, 1), d.v = third(e, tokens, 2);
  d.out = mlk_swapped(mlk_f32(e->mixed, 1, tokens, e->m->heads, e->m->width / e->m->heads), 1, 2);
  d.scores.q_offsets = d.scores.k_offsets = mlk_i64(e->offsets, lines + 1);
  d.scores.longest_q = d.scores.longest_k = longest;
  return mlk_attention(e->m->ctx, &d);
}

static mlk_status run_layer(const encoder *e, const encoder_layer *l, int64_t lines, int64_t tokens, int64_t longest) {
  mlk_status s = dense(e, l, MATRIX_QKV, tokens, e->x, e->qkv, MLK_NONE, NULL);
  if (s == MLK_OK) s = attend(e, lines, tokens, longest);
  if (s == MLK_OK) s = dense(e, l, MATRIX_OUT, tokens, e->mixed, e->y, MLK_NONE, e->x);
  if (s == MLK_OK) s = norm(e, tokens, e->y, l->gamma[NORM_ATTENTION], l->beta[NORM_ATTENTION], e->x);
  if (s == MLK_OK) s = dense(e, l, MATRIX_UP, tokens, e->x, e->inner, MLK_GELU, NULL);
  if (s == MLK_OK) s = dense(e, l, MATRIX_DOWN, tokens, e->inner, e->y, MLK_NONE, e->x);
  if (s == MLK_OK) s = norm(e, tokens, e->y, l->gamma[NORM_OUTPUT], l->beta[NORM_OUTPUT], e->x);
  return s;
}

static mlk_status look_up(const encoder *e, const float *table, int64_t rows, const int64_t *ids, int64_t tokens,
                          float *out) {
  mlk_embedding_desc d;
  memset(&d, 0, sizeof d);
  d.table = mlk_f32(table, rows, e->m->width), d.ids = mlk_i64(ids, tokens), d.out = mlk_f32(out, tokens, e->m->width);
  return mlk_embedding(e->m->ctx, &d);
}

static mlk_status embed(const encoder *e, int64_t tokens) {
  mlk_map_desc d;
  mlk_status s = look_up(e, e->m->word, e->m->words, e->ids, tokens, e->x);
  if (s == MLK_OK) s = look_up(e, e->m->position, e->m->positions, e->positions, tokens, e->y);
  memset(&d, 0, sizeof d);
  d.op = MLK_ADD;
  d.a = mlk_f32(e->x, tokens, e->m->width), d.b = mlk_f32(e->y, tokens, e->m->width);
  d.out = d.a;
  if (s == MLK_OK) s = mlk_map(e->m->ctx, &d);
  if (s == MLK_OK) s = norm(e, tokens, e->x, e->m->gamma, e->m->beta, e->x);
  return s;
}

/* out [lines, H]: the mean of each line's tokens, divided by its length. */
static mlk_status pool(const encoder *e, int64_t lines, float *out) {
  const int64_t width = e->m->width;
  mlk_reduce_desc mean, square;
  mlk_map_desc root, quotient;
  mlk_status s = MLK_OK;
  int64_t i;
  memset(&mean, 0, sizeof mean), memset(&square, 0, sizeof square);
  memset(&root, 0, sizeof root), memset(&quotient, 0, sizeof quotient);
  mean.op = MLK_MEAN, mean.axes = 1;
  for (i = 0; i < lines && s == MLK_OK; i++) {
    mean.x = mlk_f32(e->x + e->offsets[i] * width, e->offsets[i + 1] - e->offsets[i], width);
    mean.out = mlk_f32(out + i * width, width);
    s = mlk_reduce(e->m->ctx, &mean);
  }
  square.op = MLK_SUM_SQUARES, square.axes = 2, square.x = mlk_f32(out, lines, width),
  square.out = mlk_f32(e->length, lines, 1);
  if (s == MLK_OK) s = mlk_reduce(e->m->ctx, &square);
  root.op = MLK_SQRT, root.a = root.out = square.out;
  if (s == MLK_OK) s = mlk_map(e->m->ctx, &root);
  quotient.op = MLK_DIV, quotient.a = quotient.out = square.x, quotient.b = square.out;
  if (s == MLK_OK) s = mlk_map(e->m->ctx, &quotient);
  return s;
}

/* Lines whose tokens stand in e->ids, line i at offsets[i] to offsets[i + 1]; out [lines, H]. */
static int run_network(encoder *e, int64_t lines, float *out) {
  const model *m = e->m;
  const double started = now_seconds();
  const int64_t tokens = e->offsets[lines];
  int64_t longest = 0, i;
  mlk_status s;
  for (i = 0; i < lines; i++) {
    const int64_t length = e->offsets[i + 1] - e->offsets[i];
    if (longest < length) longest = length;
    e->flops += 4.0 * (double)length * (double)length * (double)(m->width * m->layers);
  }
  s = embed(e, tokens);
  for (i = 0; i < m->layers && s == MLK_OK; i++) s = run_layer(e, &m->layer[i], lines, tokens, longest);
  if (s == MLK_OK) s = pool(e, lines, out);
  if (s != MLK_OK) return library_failed(m->ctx, "the network", s);
  e->lines += lines, e->tokens += tokens;
  e->flops += 2.0 * (double)tokens * (double)(m->width * (4 * m->width + 2 * m->inner) * m->layers);
  e->seconds += now_seconds() - started;
  return 0;
}

/* Appends a line to the pass; returns 0 when there is no room for it and the pass must run first. */
static int add_line(encoder *e, int64_t *lines, const uint8_t *text, int64_t bytes) {
  const int64_t most = e->m->tokenizer.most;
  int64_t i, first = *lines ? e->offsets[*lines] : 0, count;
  if (*lines == MAX_BATCH_LINES || first + most > e->room) return 0;
  count = tokenize(&e->m->tokenizer, text, bytes, e->ids + first);
  for (i = 0; i < count; i++) e->positions[first + i] = i;
  e->offsets[*lines] = first, e->offsets[++*lines] = first + count;
  return 1;
}

/* The vector [H] of one text. */
static int encode_text(encoder *e, const uint8_t *text, int64_t bytes, float *out) {
  int64_t lines = 0;
  add_line(e, &lines, text, bytes);
  return run_network(e, lines, out);
}

/* ---- the index: distinct texts with their vectors, and the places where each stands ---------------------------- */

typedef struct place {
  int64_t row, file, line; /* line from 1 */
} place;

typedef struct text_index {
  int64_t rows, row_room, text_room, place_count, place_room, file_count, file_room, slot_room;
  int64_t *text_end; /* [rows] in text; row i begins where i - 1 ends */
  char *text;
  uint32_t *slot; /* [slot_room], a power of two: row + 1, or 0 */
  place *places;
  char **files;
  float *vectors; /* [rows, H], allocated when all rows are known */
  uint8_t *known; /* [rows] which vectors are there */
} text_index;

enum { MAX_ROWS = 1 << 30 };

static void index_close(text_index *x) {
  int64_t i;
  for (i = 0; i < x->file_count; i++) free(x->files[i]);
  free(x->files), free(x->text_end), free(x->text), free(x->slot), free(x->places), free(x->vectors), free(x->known);
  memset(x, 0, sizeof *x);
}

static const char *row_text(const text_index *x, int64_t row, int64_t *bytes) {
  const int64_t first = row ? x->text_end[row - 1] : 0;
  *bytes = x->text_end[row] - first;
  return x->text + first;
}

/* Where the text stands in the table, or the free slot where it belongs. */
static uint32_t *find_slot(const text_index *x, const char *text, int64_t bytes) {
  const uint64_t mask = (uint64_t)x->slot_room - 1, hash = hash_bytes(FNV_START, (const uint8_t *)text, bytes);
  uint64_t at = (hash ^ hash >> 32) & mask;
  for (; x->slot[at]; at = (at + 1) & mask) {
    int64_t length;
    const char *here = row_text(x, (int64_t)x->slot[at] - 1, &length);
    if (length == bytes && !memcmp(here, text, (size_t)bytes)) break;
  }
  return &x->slot[at];
}

static int64_t find_row(const text_index *x, const char *text, int64_t bytes) {
  return x->slot_room ? (int64_t)*find_slot(x, text, bytes) - 1 : -1;
}

/* Twice the slots, half of them free at least. */
static int grow_slots(text_index *x) {
  const int64_t room = x->slot_room ? 2 * x->slot_room : 1024;
  uint32_t *slot = (uint32_t *)calloc((size_t)room, sizeof *slot);
  int64_t row;
  if (!slot) return 1;
  free(x->slot);
  x->slot = slot, x->slot_room = room;
  for (row = 0; row < x->rows; row++) {
    int64_t bytes;
    const char *text = row_text(x, row, &bytes);
    *find_slot(x, text, bytes) = (uint32_t)(row + 1);
  }
  return 0;
}

/* The row of a text, a new one if it has none yet. -1: no memory. */
static int64_t add_row(text_index *x, const char *text, int64_t bytes) {
  int64_t *ends;
  char *all;
  uint32_t *slot;
  const int64_t used = x->rows ? x->text_end[x->rows - 1] : 0;
  if (x->rows >= x->slot_room / 2 && (x->rows >= MAX_ROWS || grow_slots(x))) return -1;
  slot = find_slot(x, text, bytes);
  if (*slot) return (int64_t)*slot - 1;
  ends = (int64_t *)grown(x->text_end, &x->row_room, x->rows + 1, sizeof *ends);
  if (!ends) return -1;
  x->text_end = ends;
  all = (char *)grown(x->text, &x->text_room, used + bytes + 1, 1);
  if (!all) return -1;
  x->text = all;
  memcpy(all + used, text, (size_t)bytes);
  ends[x->rows] = used + bytes;
  *slot = (uint32_t)(x->rows + 1);
  return x->rows++;
}

static int add_place(text_index *x, int64_t row, int64_t file, int64_t line) {
  place *places = (place *)grown(x->places, &x->place_room, x->place_count + 1, sizeof *places);
  if (!places) return 1;
  x->places = places;
  places[x->place_count].row = row, places[x->place_count].file = file, places[x->place_count++].line = line;
  return 0;
}

/* The number of a file in the index, added if it is new. -1: no memory. */
static int64_t add_file(text_index *x, const char *path, int64_t bytes) {
  char **files = (char **)grown(x->files, &x->file_room, x->file_count + 1, sizeof *files);
  char *copy = (char *)malloc((size_t)bytes + 1);
  if (files) x->files = files;
  if (!files || !copy) {
    free(copy);
    return -1;
  }
  memcpy(copy, path, (size_t)bytes);
  copy[bytes] = 0;
  files[x->file_count] = copy;
  return x->file_count++;
}

static int64_t find_file(const text_index *x, const char *path) {
  int64_t i;
  for (i = 0; i < x->file_count && strcmp(x->files[i], path) != 0; i++) continue;
  return i < x->file_count ? i : -1;
}

static int make_vectors(text_index *x, int64_t width) {
  const int64_t rows = x->rows ? x->rows : 1;
  x->vectors = rows < INT64_MAX / 8 / width ? (float *)malloc((size_t)(rows * width) * sizeof(float)) : NULL;
  x->known = (uint8_t *)calloc((size_t)rows, 1);
  return x->vectors && x->known ? 0 : fail_run("the index", "no memory for its vectors");
}

/* ---- the index as a file --------------------------------------------------------------------------------------------

   Little-endian. Magic, then eight integers of 8 bytes: bytes of the whole file, fingerprint of the model, H, files,
   rows, places, bytes of all paths, bytes of all texts. Then integers of 8 bytes: the end of each path, the end of each
   text; for each place row, file, line. Then the paths, the texts, zeros up to a multiple of 8, the vectors as floats
   of 4 bytes, zeros up to a multiple of 8. Last FNV-1a, by words of 8 bytes, of all that. Written to another name,
   synced, renamed, and the folder synced: whenever the program or the machine stops, the file holds the old index or
   the new one. */

static const char INDEX_MAGIC[9] = "MLKIDX01";
enum {
  INDEX_BYTES,
  INDEX_MODEL,
  INDEX_WIDTH,
  INDEX_FILES,
  INDEX_ROWS,
  INDEX_PLACES,
  INDEX_PATHS,
  INDEX_TEXTS,
  INDEX_INTEGERS
};
enum { INDEX_HEADER = 8 + 8 * INDEX_INTEGERS, WRITER_BUFFER = 1 << 16 };

typedef struct writer {
  FILE *file;
  int bad;
  size_t used;
  int64_t bytes;
  uint64_t hash;
  uint8_t buffer[WRITER_BUFFER];
} writer;

static void flush_writer(writer *w) {
  w->hash = hash_words(w->hash, w->buffer, (int64_t)w->used);
  if (!w->bad && fwrite(w->buffer, 1, w->used, w->file) != w->used) w->bad = errno ? errno : EIO;
  w->used = 0;
}

static void put_bytes(writer *w, const void *from, int64_t count) {
  const uint8_t *bytes = (const uint8_t *)from;
  w->bytes += count;
  while (count > 0) {
    const int64_t room = WRITER_BUFFER - (int64_t)w->used, some = count < room ? count : room;
    memcpy(w->buffer + w->used, bytes, (size_t)some);
    w->used += (size_t)some, bytes += some, count -= some;
    if (w->used == WRITER_BUFFER) flush_writer(w);
  }
}

static void put_integer(writer *w, uint64_t value) {
  uint8_t bytes[8];
  int i;
  for (i = 0; i < 8; i++) bytes[i] = (uint8_t)(value >> (8 * i));
  put_bytes(w, bytes, 8);
}

static void put_floats(writer *w, const float *values, int64_t count) {
  int64_t i;
  for (i = 0; i < count; i++) {
    uint32_t bits;
    uint8_t bytes[4];
    memcpy(&bits, &values[i], sizeof bits);
    bytes[0] = (uint8_t)bits, bytes[1] = (uint8_t)(bits >> 8);
    bytes[2] = (uint8_t)(bits >> 16), bytes[3] = (uint8_t)(bits >> 24);
    put_bytes(w, bytes, 4);
  }
}

static void pad_to_8(writer *w) {
  static const uint8_t zeros[8] = {0};
  put_bytes(w, zeros, (8 - w->bytes % 8) % 8);
}

static int64_t rounded_to_8(int64_t bytes) { return (bytes + 7) / 8 * 8; }

/* Bytes of the file with these integers; -1 if they are absurd. Each is checked to be below 2^40, so sums fit. */
static int64_t index_bytes(const int64_t *n) {
  int i;
  for (i = INDEX_WIDTH; i < INDEX_INTEGERS; i++)
    if (n[i] < 0 || n[i] >= (int64_t)1 << 40) return -1;
  if (n[INDEX_WIDTH] < 1 || n[INDEX_WIDTH] > 4096 || n[INDEX_ROWS] > MAX_ROWS) return -1;
  return INDEX_HEADER + 8 * (n[INDEX_FILES] + n[INDEX_ROWS] + 3 * n[INDEX_PLACES]) +
         rounded_to_8(n[INDEX_PATHS] + n[INDEX_TEXTS]) + rounded_to_8(4 * n[INDEX_ROWS] * n[INDEX_WIDTH]) + 8;
}

/* What of x a file holds: the rows whose vectors are known, renumbered by number [rows] (-1: left out), and their
   places. */
static void count_known(const text_index *x, const model *m, int64_t *number, int64_t *n) {
  int64_t i, bytes;
  memset(n, 0, INDEX_INTEGERS * sizeof *n);
  n[INDEX_MODEL] = (int64_t)m->fingerprint, n[INDEX_WIDTH] = m->width, n[INDEX_FILES] = x->file_count;
  for (i = 0; i < x->file_count; i++) n[INDEX_PATHS] += (int64_t)strlen(x->files[i]);
  for (i = 0; i < x->rows; i++) {
    number[i] = x->known[i] ? n[INDEX_ROWS]++ : -1;
    row_text(x, i, &bytes);
    if (x->known[i]) n[INDEX_TEXTS] += bytes;
  }
  for (i = 0; i < x->place_count; i++) n[INDEX_PLACES] += x->known[x->places[i].row];
  n[INDEX_BYTES] = index_bytes(n);
}

static void write_index(writer *w, const text_index *x, const model *m, const int64_t *number, const int64_t *n) {
  int64_t i, bytes, end;
  put_bytes(w, INDEX_MAGIC, 8);
  for (i = 0; i < INDEX_INTEGERS; i++) put_integer(w, (uint64_t)n[i]);
  for (i = 0, end = 0; i < x->file_count; i++) put_integer(w, (uint64_t)(end += (int64_t)strlen(x->files[i])));
  for (i = 0, end = 0; i < x->rows; i++) {
    row_text(x, i, &bytes);
    if (number[i] >= 0) put_integer(w, (uint64_t)(end += bytes));
  }
  for (i = 0; i < x->place_count; i++) {
    const place *p = &x->places[i];
    if (number[p->row] < 0) continue;
    put_integer(w, (uint64_t)number[p->row]), put_integer(w, (uint64_t)p->file), put_integer(w, (uint64_t)p->line);
  }
  for (i = 0; i < x->file_count; i++) put_bytes(w, x->files[i], (int64_t)strlen(x->files[i]));
  for (i = 0; i < x->rows; i++) {
    const char *text = row_text(x, i, &bytes);
    if (number[i] >= 0) put_bytes(w, text, bytes);
  }
  pad_to_8(w);
  for (i = 0; i < x->rows; i++)
    if (number[i] >= 0) put_floats(w, x->vectors + i * m->width, m->width);
  pad_to_8(w);
  flush_writer(w);
  put_integer(w, w->hash);
  flush_writer(w);
}

/* The bytes are on the disk, not only in the system's memory. */
static int sync_file(FILE *file) {
#if defined(_WIN32)
  return fflush(file) != 0 || _commit(_fileno(file)) != 0;
#else
  return fflush(file) != 0 || fsync(fileno(file)) != 0;
#endif
}

/* to becomes from, at once; the new name is on the disk too. */
static int replace_file(const char *from, const char *to) {
#if defined(_WIN32)
  if (MoveFileExA(from, to, MOVEFILE_REPLACE_EXISTING | MOVEFILE_WRITE_THROUGH)) return 0;
  errno = EIO;
  return 1;
#else
  char folder[MAX_PATH_BYTES] = ".";
  const char *slash = strrchr(to, '/');
  int descriptor, bad;
  if (rename(from, to) != 0) return 1;
  if (slash) snprintf(folder, sizeof folder, "%.*s", (int)(slash - to) + 1, to);
  descriptor = open(folder, O_RDONLY);
  if (descriptor < 0) return 1;
  bad = fsync(descriptor) != 0 && errno != EINVAL; /* EINVAL: this file system does not sync folders */
  return close(descriptor) != 0 || bad;
#endif
}

static int save_index(const text_index *x, const model *m, const char *path) {
  char temporary[MAX_PATH_BYTES + 8];
  int64_t n[INDEX_INTEGERS];
  int64_t *number = (int64_t *)malloc((size_t)(x->rows + 1) * sizeof *number);
  writer *w = (writer *)calloc(1, sizeof *w);
  int code = number && w ? 0 : fail_run(path, "no memory to write it");
  snprintf(temporary, sizeof temporary, "%s.new", path);
  if (!code) {
    w->hash = FNV_START;
    w->file = fopen(temporary, "wb");
    w->bad = w->file ? 0 : errno;
    count_known(x, m, number, n);
    if (w->file) write_index(w, x, m, number, n);
    if (w->file && !w->bad && sync_file(w->file)) w->bad = errno;
    if (w->file && fclose(w->file) != 0 && !w->bad) w->bad = errno;
    if (!w->bad && replace_file(temporary, path)) w->bad = errno;
    if (w->bad) {
      remove(temporary);
      complain("%s cannot be written: %s; what was there before stays as it was", temporary, strerror(w->bad));
      code = EXIT_RUN;
    }
  }
  free(number), free(w);
  return code;
}

/* Everything that can be wrong with the frame of a file: magic, size, checksum, model. n gets the integers. */
static int check_index(const char *path, const blob *file, const model *m, int64_t *n) {
  int i;
  if (file->bytes < INDEX_HEADER + 8 || memcmp(file->data, INDEX_MAGIC, 8) != 0)
    return complain("%s is no index of this program: it does not begin with %s; --fresh begins anew", path,
                    INDEX_MAGIC);
  for (i = 0; i < INDEX_INTEGERS; i++) n[i] = (int64_t)get_integer(file->data + 8 + 8 * i, 8);
  if (n[INDEX_BYTES] != file->bytes || file->bytes % 8)
    return complain("%s is damaged: it has %" PRId64 " bytes and says %" PRId64 "; --fresh begins anew", path,
                    file->bytes, n[INDEX_BYTES]);
  if (get_integer(file->data + file->bytes - 8, 8) != hash_words(FNV_START, file->data, file->bytes - 8))
    return complain("%s is damaged: its checksum does not fit its %" PRId64 " bytes; --fresh begins anew", path,
                    file->bytes);
  if ((uint64_t)n[INDEX_MODEL] != m->fingerprint || n[INDEX_WIDTH] != m->width)
    return complain("%s was made with another model than that in %s; --fresh begins anew", path, m->folder);
  if (index_bytes(n) == file->bytes) return 0;
  return complain("%s is damaged: its counts do not fit its %" PRId64 " bytes; --fresh begins anew", path, file->bytes);
}

/* Ends [count] ascend and stop at the size of what they cut. Nonzero: they do not. */
static int bad_ends(const uint8_t *ends, int64_t count, int64_t size) {
  int64_t i, before = 0;
  for (i = 0; i < count; i++) {
    const uint64_t end = get_integer(ends + 8 * i, 8);
    if (end < (uint64_t)before || end > (uint64_t)size) return 1;
    before = (int64_t)end;
  }
  return before != size;
}

/* Rows and files of the file into x; nonzero where one is there twice, or memory is short. */
static int unpack_rows(text_index *x, const int64_t *n, const uint8_t *ends, const char *paths, const char *texts) {
  int64_t i, from, end;
  for (i = 0, from = 0; i < n[INDEX_FILES]; i++, from = end) {
    end = (int64_t)get_integer(ends + 8 * i, 8);
    if (memchr(paths + from, 0, (size_t)(end - from)) || add_file(x, paths + from, end - from) != i) return 1;
  }
  ends += 8 * n[INDEX_FILES];
  for (i = 0, from = 0; i < n[INDEX_ROWS]; i++, from = end) {
    end = (int64_t)get_integer(ends + 8 * i, 8);
    if (end - from > MAX_LINE_BYTES || add_row(x, texts + from, end - from) != i) return 1;
  }
  return 0;
}

static int unpack_places(text_index *x, const int64_t *n, const uint8_t *from) {
  int64_t i;
  for (i = 0; i < n[INDEX_PLACES]; i++, from += 24) {
    const uint64_t row = get_integer(from, 8), file = get_integer(from + 8, 8), line = get_integer(from + 16, 8);
    if (row >= (uint64_t)x->rows || file >= (uint64_t)x->file_count || line < 1 || line > INT64_MAX) return 1;
    if (add_place(x, (int64_t)row, (int64_t)file, (int64_t)line)) return 1;
  }
  return 0;
}

/* x, which is empty, from the bytes of a file. On failure x may hold a part of it. */
static int parse_index(text_index *x, const model *m, const char *path, const blob *file) {
  int64_t n[INDEX_INTEGERS], i;
  const uint8_t *ends, *places, *texts, *vectors;
  int code = check_index(path, file, m, n);
  if (code) return code;
  ends = file->data + INDEX_HEADER;
  places = ends + 8 * (n[INDEX_FILES] + n[INDEX_ROWS]);
  texts = places + 24 * n[INDEX_PLACES];
  vectors = texts + rounded_to_8(n[INDEX_PATHS] + n[INDEX_TEXTS]);
  if (bad_ends(ends, n[INDEX_FILES], n[INDEX_PATHS]) ||
      bad_ends(ends + 8 * n[INDEX_FILES], n[INDEX_ROWS], n[INDEX_TEXTS]) ||
      unpack_rows(x, n, ends, (const char *)texts, (const char *)texts + n[INDEX_PATHS]) || unpack_places(x, n, places))
    return complain("%s is damaged: a path, a text or a place in it cannot be; --fresh begins anew", path);
  code = make_vectors(x, m->width);
  if (code) return code;
  for (i = 0; i < x->rows * m->width; i++) x->vectors[i] = element(vectors + 4 * i, TYPE_F32);
  memset(x->known, 1, (size_t)x->rows);
  return 0;
}

/* The index of --index, if the file is there. */
static int load_index(text_index *x, const model *m, const options *opt) {
  blob file = {NULL, 0};
  int code;
  if (!opt->index || opt->fresh || !file_exists(opt->index)) return 0;
  code = read_file(opt->index, MAX_INDEX_BYTES, &file);
  if (!code) code = parse_index(x, m, opt->index, &file);
  free(file.data);
  return code;
}

/* ---- from files to rows ---------------------------------------------------------------------------------------- */

static int is_blank(int c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

/* Without blanks at both ends, and at most MAX_LINE_BYTES long, cut between characters. */
static const char *trim(const char *text, int64_t *bytes) {
  while (*bytes > 0 && is_blank((uint8_t)*text)) text++, --*bytes;
  if (*bytes > MAX_LINE_BYTES) {
    *bytes = MAX_LINE_BYTES;
    while (*bytes > MAX_LINE_BYTES - 3 && ((uint8_t)text[*bytes] & 0xc0) == 0x80) --*bytes;
  }
  while (*bytes > 0 && is_blank((uint8_t)text[*bytes - 1])) --*bytes;
  return text;
}

/* Rules, braces and other lines without a letter or a digit mean nothing. */
static int has_words(const char *text, int64_t bytes) {
  int64_t i;
  for (i = 0; i < bytes; i++) {
    const int c = (uint8_t)text[i], letter = c | 32;
    if (c >= 0x80 || (c >= '0' && c <= '9') || (letter >= 'a' && letter <= 'z')) return 1;
  }
  return 0;
}

static int add_lines(text_index *x, const char *path, const blob *file) {
  const int64_t number = add_file(x, path, (int64_t)strlen(path));
  int64_t at = 0, line = 1;
  if (number < 0) return fail_run(path, "no memory for its lines");
  for (; at < file->bytes; line++) {
    const char *text = (const char *)file->data + at;
    const char *feed = (const char *)memchr(text, '\n', (size_t)(file->bytes - at));
    int64_t bytes = feed ? feed - text : file->bytes - at, row;
    at += bytes + 1;
    text = trim(text, &bytes);
    if (!has_words(text, bytes)) continue;
    row = add_row(x, text, bytes);
    if (row < 0 || add_place(x, row, number, line)) return fail_run(path, "no memory for its lines");
  }
  return 0;
}

/* A file that can no longer be read keeps the lines that an earlier index has of it. */
static int keep_lines(text_index *x, const text_index *old, int64_t old_file) {
  const char *path = old->files[old_file];
  const int64_t number = add_file(x, path, (int64_t)strlen(path));
  int64_t i;
  for (i = 0; i < old->place_count && number >= 0; i++) {
    const place *p = &old->places[i];
    int64_t bytes, row;
    const char *text;
    if (p->file != old_file) continue;
    text = row_text(old, p->row, &bytes);
    row = add_row(x, text, bytes);
    if (row < 0 || add_place(x, row, number, p->line)) return fail_run(path, "no memory for its lines");
  }
  return number < 0 ? fail_run(path, "no memory for its lines") : 0;
}

/* A file that cannot be read, or that is no text, is named and left out. */
static int scan_file(text_index *x, const text_index *old, const char *path) {
  const int64_t before = find_file(old, path);
  blob file = {NULL, 0};
  int code;
  if (find_file(x, path) >= 0) return 0; /* given twice */
  code = read_file(path, MAX_TEXT_BYTES, &file);
  if (code == EXIT_INPUT) {
    code = 0;
    if (before >= 0) {
      complain("%s: the lines that the index has of it stay", path);
      code = keep_lines(x, old, before);
    }
  } else if (!code && file.bytes && memchr(file.data, 0, file.bytes < 8192 ? (size_t)file.bytes : 8192))
    complain("%s holds zero bytes and is taken for no text: left out", path);
  else if (!code)
    code = add_lines(x, path, &file);
  free(file.data);
  return code;
}

/* x becomes the lines of the files given, or of those of the old index where none are given. Vectors of texts that the
   old one has are taken over. */
static int scan_files(text_index *x, const text_index *old, const options *opt, int64_t width) {
  const int64_t count = opt->file_count ? opt->file_count : old->file_count;
  int64_t i;
  int code = 0;
  for (i = 0; i < count && !code; i++) code = scan_file(x, old, opt->file_count ? opt->files[i] : old->files[i]);
  if (!code && x->rows == 0) code = complain("there is not one line of text in the files given");
  if (!code) code = make_vectors(x, width);
  for (i = 0; i < x->rows && !code; i++) {
    int64_t bytes;
    const char *text = row_text(x, i, &bytes);
    const int64_t row = find_row(old, text, bytes);
    if (row < 0) continue;
    memcpy(x->vectors + i * width, old->vectors + row * width, (size_t)width * sizeof(float));
    x->known[i] = 1;
  }
  return code;
}

static int same_index(const text_index *a, const text_index *b) {
  int64_t i;
  if (a->rows != b->rows || a->place_count != b->place_count || a->file_count != b->file_count) return 0;
  for (i = 0; i < a->file_count; i++)
    if (strcmp(a->files[i], b->files[i]) != 0) return 0;
  for (i = 0; i < a->place_count; i++)
    if (a->places[i].row != b->places[i].row || a->places[i].file != b->places[i].file ||
        a->places[i].line != b->places[i].line)
      return 0;
  for (i = 0; i < a->rows; i++)
    if (a->text_end[i] != b->text_end[i]) return 0;
  return a->rows == 0 || !memcmp(a->text, b->text, (size_t)a->text_end[a->rows - 1]);
}

static volatile sig_atomic_t interrupted = 0;

/* The second signal ends the program at once: the index on the disk stands that. */
static void interrupt(int number) {
  interrupted = 1;
  signal(number, SIG_DFL);
}

typedef struct progress {
  int64_t done, all;
  double started, spoken, saved;
} progress;

/* On a terminal one line that is written over and over, else a line now and then. */
static void say_progress(progress *p, const options *opt) {
  const int terminal = on_terminal(stderr);
  const double now = now_seconds(), left = (now - p->started) / (double)p->done * (double)(p->all - p->done);
  char a[32], b[32], c[32];
  if (opt->quiet || now - p->spoken < (terminal ? TERMINAL_LINE_SECONDS : PLAIN_LINE_SECONDS)) return;
  p->spoken = now;
  fprintf(stderr, "%sencoding   %s of %s lines   %s lines/s   ", terminal ? "\r" : "", grouped(p->done, a),
          grouped(p->all, b), grouped((int64_t)((double)p->done / (now - p->started)), c));
  fprintf(stderr, left < 99.5 ? "%.0f s left%s" : "%.1f min left%s", left < 99.5 ? left : left / 60,
          terminal ? "\033[K" : "\n");
}

/* Encodes all rows whose vectors are not known, in passes; saves now and then. */
static int encode_rows(encoder *e, text_index *x, const options *opt) {
  const int64_t width = e->m->width;
  int64_t batch[MAX_BATCH_LINES], row = 0, i;
  float *out = (float *)malloc((size_t)(MAX_BATCH_LINES * width) * sizeof *out);
  progress p = {0, 0, 0, 0, 0};
  int code = out ? 0 : fail_run("the network", "no memory for a pass");
  for (i = 0; i < x->rows; i++) p.all += !x->known[i];
  p.started = p.saved = p.spoken = now_seconds();
  while (!code && p.done < p.all && !interrupted) {
    int64_t lines = 0, bytes;
    for (; row < x->rows; row++) {
      const char *text = row_text(x, row, &bytes);
      if (x->known[row]) continue;
      if (!add_line(e, &lines, (const uint8_t *)text, bytes)) break;
      batch[lines - 1] = row;
    }
    code = run_network(e, lines, out);
    for (i = 0; i < lines && !code; i++) {
      memcpy(x->vectors + batch[i] * width, out + i * width, (size_t)width * sizeof *out);
      x->known[batch[i]] = 1;
    }
    p.done += lines;
    if (!code) say_progress(&p, opt);
    if (!code && opt->index && now_seconds() - p.saved > SAVE_SECONDS) {
      code = save_index(x, e->m, opt->index);
      p.saved = now_seconds();
    }
  }
  if (p.all > 0 && !opt->quiet && on_terminal(stderr)) fputs("\r\033[K", stderr);
  free(out);
  return code;
}

/* ---- search ------------------------------------------------------------------------------------------------------ */

typedef struct searcher {
  encoder *e;
  const text_index *x;
  int64_t k;
  int64_t *first_place, *next_place; /* [rows], [places]: the places of a row as a list; -1 ends it */
  int64_t *ids;
  float *scores, *query;                 /* [k], [k], [H] */
  double encode_seconds, search_seconds; /* of the last query */
} searcher;

static int searcher_open(searcher *s, encoder *e, const text_index *x, int64_t k) {
  int64_t i;
  s->e = e, s->x = x, s->k = k < x->rows ? k : x->rows;
  s->first_place = (int64_t *)malloc((size_t)(x->rows + 1) * sizeof(int64_t));
  s->next_place = (int64_t *)malloc((size_t)(x->place_count + 1) * sizeof(int64_t));
  s->ids = (int64_t *)malloc((size_t)s->k * sizeof(int64_t)), s->scores = (float *)malloc((size_t)s->k * sizeof(float));
  s->query = (float *)malloc((size_t)e->m->width * sizeof(float));
  if (!s->first_place || !s->next_place || !s->ids || !s->scores || !s->query)
    return fail_run("the search", "no memory for its tables");
  for (i = 0; i < x->rows; i++) s->first_place[i] = -1;
  for (i = x->place_count - 1; i >= 0; i--) {
    s->next_place[i] = s->first_place[x->places[i].row];
    s->first_place[x->places[i].row] = i;
  }
  return 0;
}

static void searcher_close(searcher *s) {
  free(s->first_place), free(s->next_place), free(s->ids), free(s->scores), free(s->query);
}

/* Control characters of a file must not reach a terminal. */
static void print_text(const char *text, int64_t bytes) {
  const uint8_t *at = (const uint8_t *)text, *end = at + bytes;
  while (at < end) {
    uint8_t out[4];
    uint32_t c = next_code_point(&at, end);
    if (c < 0x20 || (c >= 0x7f && c < 0xa0)) c = ' ';
    fwrite(out, 1, (size_t)put_code_point(out, c), stdout);
  }
}

static void print_hit(const searcher *s, int64_t row, float score) {
  const text_index *x = s->x;
  int64_t at = s->first_place[row], more = 0, bytes;
  const char *text = row_text(x, row, &bytes);
  if (at >= 0) {
    const char *path = x->files[x->places[at].file];
    print_text(path, (int64_t)strlen(path));
    printf(":%" PRId64 ": %.4f ", x->places[at].line, (double)score);
    for (at = s->next_place[at]; at >= 0; at = s->next_place[at]) more++;
  }
  print_text(text, bytes);
  if (more) printf("   (and %" PRId64 " more)", more);
  fputc('\n', stdout);
}

/* The k lines nearest to a query, best first. Vectors have length 1: inner products are cosines. */
static int answer(searcher *s, const char *query, int64_t bytes) {
  const int64_t width = s->e->m->width;
  const double started = now_seconds();
  int64_t i;
  mlk_knn_desc d;
  mlk_status status;
  int code;
  query = trim(query, &bytes);
  if (bytes == 0) return 0;
  code = encode_text(s->e, (const uint8_t *)query, bytes, s->query);
  if (code) return code;
  s->encode_seconds = now_seconds() - started;
  memset(&d, 0, sizeof d);
  d.queries = mlk_f32(s->query, 1, width), d.base = mlk_f32(s->x->vectors, s->x->rows, width);
  d.k = s->k, d.metric = MLK_INNER_PRODUCT;
  d.ids = mlk_i64(s->ids, 1, s->k), d.distances = mlk_f32(s->scores, 1, s->k);
  status = mlk_knn(s->e->m->ctx, &d);
  if (status != MLK_OK) return library_failed(s->e->m->ctx, "mlk_knn", status);
  s->search_seconds = now_seconds() - started - s->encode_seconds;
  for (i = 0; i < s->k; i++)
    if (s->ids[i] >= 0) print_hit(s, s->ids[i], s->scores[i]);
  return 0;
}

/* One query a line from standard input until it ends. */
static int answer_all(searcher *s, const options *opt) {
  const int talks = on_terminal(stdin) && on_terminal(stdout);
  char *line = (char *)malloc(MAX_LINE_BYTES + 2);
  int code = line ? 0 : fail_run("standard input", "no memory for a line");
  while (!code) {
    if (talks) fputs("query> ", stdout), fflush(stdout);
    if (!fgets(line, MAX_LINE_BYTES + 2, stdin)) break;
    code = answer(s, line, (int64_t)strlen(line));
    if (!code && talks && !opt->quiet)
      printf("(%.1f ms to encode the query, %.1f ms to search %" PRId64 " lines)\n", s->encode_seconds * 1e3,
             s->search_seconds * 1e3, s->x->rows);
    if (talks) continue;
    fputc('\n', stdout);
    fflush(stdout);
  }
  if (talks) fputc('\n', stdout);
  free(line);
  return code;
}

/* ---- self-test --------------------------------------------------------------------------------------------------- */

/* The hash of these lines' vectors against the one that this source promises for its model. */
static int self_test(encoder *e) {
  static const char *const lines[] = {"The cat sits on the mat.", "Eine Katze schläft auf dem Sofa — schön!",
                                      "x = (a[i] + b[i]) * 0.5; // C99", "東京 and Ελλάδα, naïve café",
                                      "unbelievably-long-hyphenated-wordish thing, repeated: thing, thing, thing"};
  static const uint64_t pinned_model = UINT64_C(0xb0bc84b057349d14), pinned = UINT64_C(0x0c59702361ac7ac2);
  enum { LINES = sizeof lines / sizeof *lines };
  const int64_t width = e->m->width;
  float *together = (float *)malloc((size_t)((LINES + 1) * width) * sizeof *together);
  int64_t count = 0, i;
  uint64_t hash;
  int code = together ? 0 : fail_run("the self-test", "no memory");
  for (i = 0; i < LINES && !code; i++) add_line(e, &count, (const uint8_t *)lines[i], (int64_t)strlen(lines[i]));
  if (!code) code = run_network(e, count, together);
  if (!code) code = encode_text(e, (const uint8_t *)*lines, (int64_t)strlen(*lines), together + LINES * width);
  if (!code && memcmp(together, together + LINES * width, (size_t)width * sizeof *together) != 0)
    code = fail_run("self-test", "a line encoded alone and among others has different vectors");
  if (!code) {
    hash = hash_floats(FNV_START, together, LINES * width);
    printf("self-test  model %016" PRIx64 "  vectors %016" PRIx64 "  %s\n", e->m->fingerprint, hash,
           e->m->fingerprint != pinned_model ? "(not the model that this program has a hash for)"
           : hash == pinned                  ? "as pinned"
                                             : "");
    if (e->m->fingerprint == pinned_model && hash != pinned)
      code = fail_run("self-test", "the hash of the vectors is not the pinned one");
  }
  free(together);
  return code;
}

/* ---- options ----------------------------------------------------------------------------------------------------- */

static void print_help(void) {
  puts(
      "Finds the lines of files that mean what a query asks, with a sentence encoder run by mlk.h.\n\n"
      "usage: 04_semantic_search [options] QUERY FILE...\n"
      "       04_semantic_search [options] --index INDEX [QUERY [FILE...]]\n"
      "  QUERY           what to look for; '-', or none with --index: queries from standard input, one a line; '': "
      "only\n"
      "                  make the index\n"
      "  FILE            text whose lines are searched; the default are the files of the index\n"
      "  --index INDEX   keep the vectors in this file: the next time only lines that it does not have are encoded\n"
      "  --fresh         make the index anew\n"
      "  --k N           lines to print, 1 to 10000 (default 10)\n"
      "  --model DIR     folder with model.safetensors, vocab.txt and config.json of an uncased BERT sentence encoder\n"
      "                  (default examples/data/cache/minilm, which `make data` fills)\n"
      "  --threads N     0 to 1024; 0 means all cores (default 0)\n"
      "  --isa NAME      best, scalar, neon, avx2 or avx512 (default best)\n"
      "  --quiet         nothing but results and errors\n"
      "  --self-test     encode a few lines and compare the hash of their vectors with the pinned one\n"
      "  --help          this text\n\n"
      "Prints PATH:LINE: SCORE TEXT, the nearest first; SCORE is the cosine, 1 for the same direction.");
}

static int parse_integer(const char *option, const char *text, int64_t least, int64_t most, int64_t *value) {
  char *end = NULL;
  long long parsed;
  errno = 0;
  parsed = strtoll(text, &end, 10);
  if (end == text || *end || errno || parsed < least || parsed > most)
    return complain("%s is '%s'; it must be a whole number from %" PRId64 " to %" PRId64, option, text, least, most);
  *value = parsed;
  return 0;
}

/* The reference is not among them: it reads no packed weights, and would take minutes. */
static int parse_isa(const char *text, mlk_isa *isa) {
  char here[96] = "best";
  int i;
  for (i = 0; i < MLK_ISA_REFERENCE && strcmp(text, mlk_isa_name((mlk_isa)i)) != 0; i++) continue;
  if (i == MLK_ISA_REFERENCE) return complain("--isa is '%s'; it must be best, scalar, neon, avx2 or avx512", text);
  *isa = (mlk_isa)i;
  if (mlk_isa_available(*isa)) return 0;
  for (i = 1; i < MLK_ISA_REFERENCE; i++)
    if (mlk_isa_available((mlk_isa)i))
      strcat(strcat(here, ", "), mlk_isa_name((mlk_isa)i)); /* all the names together have 50 letters */
  return complain("--isa is '%s', which this build or machine does not run; it runs %s", text, here);
}

static int parse_folder(const char *option, const char *value, const char **to) {
  if (!*value || strlen(value) >= MAX_PATH_BYTES - 64)
    return complain("%s is %d bytes long; it must have 1 to %d", option, (int)strlen(value), MAX_PATH_BYTES - 65);
  *to = value;
  return 0;
}

static int parse_value(int which, const char *value, options *opt) {
  switch (which) {
  case 0: return parse_folder("--index", value, &opt->index);
  case 1: return parse_integer("--k", value, 1, MAX_K, &opt->k);
  case 2: return parse_folder("--model", value, &opt->model);
  case 3: return parse_integer("--threads", value, 0, 1024, &opt->threads);
  default: return parse_isa(value, &opt->isa);
  }
}

static int parse_flag(const char *arg, options *opt) {
  if (!strcmp(arg, "--fresh")) return opt->fresh = 1;
  if (!strcmp(arg, "--quiet")) return opt->quiet = 1;
  if (!strcmp(arg, "--self-test")) return opt->self_test = 1;
  return 0;
}

/* The option argv[*i] and its value; *i moves to the last one used. */
static int parse_option(int argc, char **argv, int *i, options *opt) {
  static const char *const with_value[] = {"--index", "--k", "--model", "--threads", "--isa"};
  enum { WITH_VALUE = sizeof with_value / sizeof *with_value };
  const char *arg = argv[*i], *equals = strchr(arg, '=');
  const size_t length = equals ? (size_t)(equals - arg) : strlen(arg);
  int which;
  if (parse_flag(arg, opt)) return 0;
  for (which = 0; which < WITH_VALUE; which++)
    if (strlen(with_value[which]) == length && !strncmp(arg, with_value[which], length)) break;
  if (which == WITH_VALUE) return complain("'%s' is not an option; --help lists them", arg);
  if (!equals && *i + 1 == argc) return complain("%s needs a value; --help tells which", arg);
  return parse_value(which, equals ? equals + 1 : argv[++*i], opt);
}

/* Options come before the query; "--" ends them. *done is set by --help. */
static int parse_options(int argc, char **argv, options *opt, int *done) {
  int i, code;
  opt->k = 10;
  for (i = 1; i < argc && argv[i][0] == '-' && argv[i][1]; i++) {
    if (!strcmp(argv[i], "--help")) {
      print_help();
      *done = 1;
      return 0;
    }
    if (!strcmp(argv[i], "--")) {
      i++;
      break;
    }
    code = parse_option(argc, argv, &i, opt);
    if (code) return code;
  }
  opt->query = i < argc ? argv[i++] : NULL;
  opt->files = argv + i, opt->file_count = argc - i;
  if (opt->self_test) return opt->query ? complain("--self-test takes no query and no files") : 0;
  if (!opt->query && !opt->index) return complain("there is no query; --help tells the usage");
  if (opt->fresh && !opt->file_count) return complain("--fresh needs the files to index");
  return opt->file_count || opt->index ? 0 : complain("there are no files to search; --help tells the usage");
}

/* ---- from options to results ------------------------------------------------------------------------------------- */

static int has_model(const char *folder) {
  char path[MAX_PATH_BYTES];
  return snprintf(path, sizeof path, "%s/model.safetensors", folder) < MAX_PATH_BYTES && file_exists(path);
}

/* Where `make data` puts the model, from the working directory, or beside or above the folder of the program. */
static int find_model(const char *program, const options *opt, char *folder) {
  static const char *const places[] = {"", "../", "../../"};
  const char *slash = strrchr(program, '/');
  const int program_folder = slash ? (int)(slash - program) + 1 : 0;
  int i;
  if (opt->model) {
    strcpy(folder, opt->model);
    return 0;
  }
  for (i = 0; i < 3 && program_folder < MAX_PATH_BYTES / 2; i++) {
    snprintf(folder, MAX_PATH_BYTES, "%sexamples/data/cache/minilm", places[i]);
    if (has_model(folder)) return 0;
    snprintf(folder, MAX_PATH_BYTES, "%.*s%sexamples/data/cache/minilm", program_folder, program, places[i]);
    if (has_model(folder)) return 0;
  }
  return complain(
      "the model is not in examples/data/cache/minilm: `make data` fetches it (91 MB), or give --model DIR");
}

static int open_library(model *m, const options *opt) {
  mlk_context_desc desc;
  mlk_status status;
  memset(&desc, 0, sizeof desc);
  desc.threads = (int)opt->threads;
  desc.isa = opt->isa;
  status = mlk_open(&m->ctx, &desc);
  return status == MLK_OK ? 0 : fail_run("mlk_open", mlk_status_name(status));
}

static void print_model(const model *m, double seconds) {
  mlk_info info;
  mlk_get_info(m->ctx, &info);
  fprintf(stderr,
          "model      %s: %" PRId64 " layers of %" PRId64 ", %" PRId64 " heads, lines up to %" PRId64
          " tokens   (%.2f s)\n",
          m->folder, m->layers, m->width, m->heads, m->tokenizer.most, seconds);
  fprintf(stderr, "device     %s, instruction set %s, %d thread%s%s\n", info.backend, info.isa, info.threads,
          info.threads == 1 ? "" : "s", info.openmp ? " (OpenMP)" : "");
}

static void print_index(const text_index *x, const encoder *e) {
  char a[32], b[32], c[32];
  fprintf(stderr, "index      %s lines of %s file%s, %s different\n", grouped(x->place_count, a),
          grouped(x->file_count, b), x->file_count == 1 ? "" : "s", grouped(x->rows, c));
  if (e->lines == 0) return;
  fprintf(stderr, "encoded    %s line%s in %.1f s: %s lines/s, ", grouped(e->lines, a), e->lines == 1 ? "" : "s",
          e->seconds, grouped((int64_t)((double)e->lines / e->seconds), b));
  fprintf(stderr, "%s tokens/s, %.1f GFLOP/s\n", grouped((int64_t)((double)e->tokens / e->seconds), a),
          e->flops / e->seconds / 1e9);
}

/* The index as the files are now, encoded and, with --index, on the disk. */
static int make_index(encoder *e, text_index *x, const options *opt) {
  text_index old;
  int code;
  memset(&old, 0, sizeof old);
  code = load_index(&old, e->m, opt);
  if (!code && !opt->file_count && old.file_count == 0)
    code = complain("%s is not there, and no files are given to make it of", opt->index);
  if (!code) code = scan_files(x, &old, opt, e->m->width);
  signal(SIGINT, interrupt), signal(SIGTERM, interrupt);
  if (!code) code = encode_rows(e, x, opt);
  if (!code && opt->index && (e->lines > 0 || !same_index(x, &old))) code = save_index(x, e->m, opt->index);
  signal(SIGINT, SIG_DFL), signal(SIGTERM, SIG_DFL);
  index_close(&old);
  return code;
}

static int run(encoder *e, text_index *x, const options *opt) {
  searcher s;
  int code = make_index(e, x, opt);
  if (code) return code;
  if (interrupted) {
    complain(opt->index ? "interrupted; what is encoded is in the index, and the same command continues"
                        : "interrupted");
    return EXIT_INTERRUPTED;
  }
  if (!opt->quiet) print_index(x, e);
  memset(&s, 0, sizeof s);
  code = searcher_open(&s, e, x, opt->k);
  if (!code && opt->query && strcmp(opt->query, "-") != 0)
    code = answer(&s, opt->query, (int64_t)strlen(opt->query));
  else if (!code)
    code = answer_all(&s, opt);
  searcher_close(&s);
  return code;
}

int main(int argc, char **argv) {
  const double started = now_seconds();
  model *m = (model *)calloc(1, sizeof *m);
  encoder e;
  text_index x;
  options opt;
  int code, done = 0;
  memset(&opt, 0, sizeof opt), memset(&x, 0, sizeof x), memset(&e, 0, sizeof e);
  if (!m) return fail_run("the program", "no memory for its own records");
  code = parse_options(argc, argv, &opt, &done);
  if (!code && !done) {
    code = find_model(argv[0], &opt, m->folder);
    if (!code) code = open_library(m, &opt);
    if (!code) code = load_model(m);
    if (!code) code = encoder_open(&e, m);
    if (!code && !opt.quiet) print_model(m, now_seconds() - started);
    if (!code) code = opt.self_test ? self_test(&e) : run(&e, &x, &opt);
  }
  if ((fflush(stdout) != 0 || ferror(stdout)) && code == 0)
    code = fail_run("standard output", "could not be written to its end");
  index_close(&x);
  free(e.memory);
  model_close(m);
  free(m);
  return code;
}
