/* Fuzz target of what examples/04_semantic_search.c reads (example: 04_semantic_search): weights (safetensors),
   settings (JSON), vocabulary, index, and text, which becomes tokens. See fuzz.h; tests/fuzz_readers.sh builds and runs
   it.

   The first byte of an input says which of them the rest is. An index is looked at twice: as it is, and with size,
   model and checksum put right, so that what lies behind them is reached. */

#include "fuzz.h"
#define main example_main
#include FUZZ_EXAMPLE
#undef main

enum { AS_TENSORS, AS_SETTINGS, AS_VOCABULARY, AS_INDEX, AS_TEXT, KINDS, WIDTH = 3 };

/* What is read is inside the file and in order; each tensor can be had as floats or is refused. */
static int try_tensors(const uint8_t *data, size_t size) {
  tensor_file f;
  int64_t i;
  const int code = parse_tensors(&f, "tensors", data, (int64_t)size);
  for (i = 0; i < f.count && !code; i++) {
    const tensor_entry *t = &f.entry[i];
    const int64_t rows = t->rank == 2 ? t->shape[0] : 0, cols = t->rank ? t->shape[t->rank - 1] : 1;
    float *to = (float *)malloc((size_t)(f.bytes + 1) * sizeof *to);
    fuzz_require(t->begin >= 0 && t->begin <= t->end && t->end <= f.bytes, "a tensor outside the file");
    fuzz_require(f.data >= data + 8 && f.data + f.bytes == data + size, "data outside the file");
    fuzz_require(i == 0 || strcmp(f.entry[i - 1].name, t->name) < 0, "names out of order");
    if (to && t->rank <= 2) read_tensor(&f, t->name, rows, cols, to);
    free(to);
  }
  free(f.entry);
  return code;
}

static int try_settings(const uint8_t *data, size_t size) {
  int64_t width = 0;
  double epsilon = 0;
  char act[32] = "";
  int cased = 0;
  field fields[4] = {{"hidden_size", FIELD_INTEGER, NULL, 0},
                     {"layer_norm_eps", FIELD_NUMBER, NULL, 0},
                     {"hidden_act", FIELD_STRING, NULL, 0},
                     {"do_lower_case", FIELD_TRUTH, NULL, 0}};
  int code;
  fields[0].to = &width, fields[1].to = &epsilon, fields[2].to = act, fields[3].to = &cased;
  code = read_object("settings", data, (int64_t)size, fields, 4);
  fuzz_require(code || (width >= 0 && width <= (int64_t)1 << 53), "an integer out of its range");
  fuzz_require(memchr(act, 0, sizeof act) != NULL, "a string without an end");
  return code;
}

/* The tables of characters, made once. */
static const characters *tables(void) {
  static characters made;
  if (!made.kind) fuzz_require(characters_open(&made) == 0, "no tables");
  return &made;
}

static void check_tokens(const vocabulary *v, const uint8_t *text, int64_t bytes) {
  wordpiece t;
  int64_t ids[32], count, i;
  t.table = *tables(), t.pieces = *v;
  for (t.most = 3; t.most <= 32; t.most += 29) {
    count = tokenize(&t, text, bytes, ids);
    fuzz_require(count >= 2 && count <= t.most && ids[0] == v->cls && ids[count - 1] == v->sep,
                 "tokens without a frame");
    for (i = 0; i < count; i++) fuzz_require(ids[i] >= 0 && ids[i] < v->count, "a token outside the vocabulary");
  }
}

static int parse_copy(vocabulary *v, const void *text, size_t size) {
  memset(v, 0, sizeof *v);
  v->text.data = (uint8_t *)malloc(size ? size : 1);
  v->text.bytes = (int64_t)size;
  fuzz_require(v->text.data != NULL, "no memory");
  memcpy(v->text.data, text, size);
  return parse_vocabulary(v, "vocabulary");
}

/* The vocabulary's own text serves as text to cut up. */
static int try_vocabulary(const uint8_t *data, size_t size) {
  vocabulary v;
  const int code = parse_copy(&v, data, size);
  if (!code) check_tokens(&v, data, (int64_t)size);
  vocabulary_close(&v);
  return code;
}

static const char some_pieces[] =
    "[PAD]\n[UNK]\n[CLS]\n[SEP]\na\nb\nab\n##b\n##ba\n!\n##\nthe\n##se\nthese\n\xe6\x9d\xb1\ne\n##\xc3\xa6\n";

static int try_text(const uint8_t *data, size_t size) {
  vocabulary v;
  const int code = parse_copy(&v, some_pieces, sizeof some_pieces - 1);
  if (!code) check_tokens(&v, data, (int64_t)size);
  vocabulary_close(&v);
  return code;
}

static model small_model(void) {
  model m;
  memset(&m, 0, sizeof m);
  m.width = WIDTH, m.fingerprint = 7;
  return m;
}

static int read_index(const uint8_t *data, size_t size) {
  const model m = small_model();
  text_index x;
  blob file;
  int64_t i;
  int code;
  memset(&x, 0, sizeof x);
  file.data = (uint8_t *)malloc(size ? size : 1), file.bytes = (int64_t)size;
  fuzz_require(file.data != NULL, "no memory");
  memcpy(file.data, data, size);
  code = parse_index(&x, &m, "index", &file);
  for (i = 0; i < x.rows && !code; i++) {
    int64_t bytes;
    const char *text = row_text(&x, i, &bytes);
    fuzz_require(bytes >= 0 && bytes <= MAX_LINE_BYTES && find_row(&x, text, bytes) == i, "a text that is not found");
  }
  for (i = 0; i < x.place_count && !code; i++)
    fuzz_require(x.places[i].row >= 0 && x.places[i].row < x.rows && x.places[i].file >= 0 &&
                     x.places[i].file < x.file_count && x.places[i].line > 0,
                 "a place that is none");
  fuzz_require(code || same_index(&x, &x), "an index that is not itself");
  index_close(&x), free(file.data);
  return code;
}

static int try_index(const uint8_t *data, size_t size) {
  const size_t whole = size / 8 * 8;
  uint8_t *mended;
  const int code = read_index(data, size);
  if (whole < INDEX_HEADER + 8) return code;
  mended = (uint8_t *)malloc(whole);
  fuzz_require(mended != NULL, "no memory");
  memcpy(mended, data, whole);
  memcpy(mended, INDEX_MAGIC, 8);
  fuzz_put(mended + 8 + 8 * INDEX_BYTES, whole, 8);
  fuzz_put(mended + 8 + 8 * INDEX_MODEL, small_model().fingerprint, 8);
  fuzz_put(mended + 8 + 8 * INDEX_WIDTH, WIDTH, 8);
  fuzz_put(mended + whole - 8, hash_words(FNV_START, mended, (int64_t)whole - 8), 8);
  read_index(mended, whole);
  free(mended);
  return code;
}

static int try_input(const uint8_t *data, size_t size) {
  switch (data[0] % KINDS) {
  case AS_TENSORS: return try_tensors(data + 1, size - 1);
  case AS_SETTINGS: return try_settings(data + 1, size - 1);
  case AS_VOCABULARY: return try_vocabulary(data + 1, size - 1);
  case AS_INDEX: return try_index(data + 1, size - 1);
  default: return try_text(data + 1, size - 1);
  }
}

/* ---- valid inputs ------------------------------------------------------------------------------------------------ */

static size_t tensors_seed(uint8_t *to) {
  static const char header[] =
      "{\"__metadata__\":{\"format\":\"pt\"},\"w\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]},"
      "\"h\\u00e9 \\\"h\\\"\":{\"shape\":[4],\"data_offsets\":[24,32],\"dtype\":\"F16\"}, \"b\" : { \"dtype\" : "
      "\"BF16\", "
      "\"shape\" : [ 1 , 2 ] , \"data_offsets\" : [ 32 , 36 ] },\"n\":{\"dtype\":\"I64\",\"shape\":[],"
      "\"data_offsets\":[36,44]},\"0\":{\"dtype\":\"U8\",\"shape\":[0,5],\"data_offsets\":[44,44]}}   ";
  uint8_t *at = fuzz_put(to, sizeof header - 1, 8);
  int i;
  memcpy(at, header, sizeof header - 1), at += sizeof header - 1;
  for (i = 0; i < 44; i++) *at++ = (uint8_t)(16 * i);
  return (size_t)(at - to);
}

static size_t index_seed(uint8_t *to, size_t room) {
  static const char *const texts[] = {"first", "second line", "\xe6\x9d\xb1\xe4\xba\xac"};
  model m = small_model();
  text_index x;
  char path[] = "/tmp/mlk_fuzz_XXXXXX";
  int64_t file, i;
  blob bytes = {NULL, 0};
  const int descriptor = mkstemp(path);
  options opt;
  memset(&opt, 0, sizeof opt), memset(&x, 0, sizeof x);
  file = add_file(&x, "notes.txt", 9);
  for (i = 0; i < 3; i++) add_place(&x, add_row(&x, texts[i], (int64_t)strlen(texts[i])), file, 2 * i + 1);
  add_place(&x, 1, add_file(&x, "a b", 3), 9);
  fuzz_require(descriptor >= 0 && make_vectors(&x, m.width) == 0, "no index");
  for (i = 0; i < 3 * WIDTH; i++) x.vectors[i] = (float)i, x.known[i / WIDTH] = 1;
  fuzz_require(save_index(&x, &m, path) == 0 && read_file(path, (int64_t)room, &bytes) == 0, "no index written");
  memcpy(to, bytes.data, (size_t)bytes.bytes);
  close(descriptor), remove(path), index_close(&x), free(bytes.data);
  return (size_t)bytes.bytes;
}

static size_t fuzz_seed(int number, uint8_t *to, size_t room) {
  static uint8_t index[2048]; /* made once: it goes through a file */
  static size_t made;
  static const char settings[] =
      "{\"hidden_size\": 384, \"other\": [1, -2.5e3, {\"deep\": [null, true, \"\\u20ac\\n\"]}],\n"
      " \"layer_norm_eps\": 1e-12, \"hidden_act\":\"gelu\", \"do_lower_case\" : true }\n";
  static const char text[] =
      "These \xc3\x9cmlaut abba, the\xcc\x81se \xe6\x9d\xb1\xe4\xba\xac \xed\x95\x9c!? \xf0\x9f\x9a\x80"
      "\xe2\x80\x8b \xc3\x28 \xff aBbaB\tthe\r\n";
  const char *from = number == AS_SETTINGS ? settings : number == AS_VOCABULARY ? some_pieces : text;
  if (number >= KINDS) return 0;
  to[0] = (uint8_t)number;
  if (number == AS_TENSORS) return 1 + tensors_seed(to + 1);
  if (number == AS_INDEX) {
    if (!made) made = index_seed(index, sizeof index);
    memcpy(to + 1, index, made);
    return 1 + made;
  }
  fuzz_require(strlen(from) < room, "no room");
  memcpy(to + 1, from, strlen(from));
  return 1 + strlen(from);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static int looked;
  static uint8_t seed[4096];
  int number;
  for (number = 0; !looked && number < KINDS; number++) {
    const size_t bytes = fuzz_seed(number, seed, sizeof seed);
    fuzz_require(try_input(seed, bytes) == 0, "a valid input is refused");
  }
  looked = 1;
  if (size > 0) try_input(data, size);
  return 0;
}
