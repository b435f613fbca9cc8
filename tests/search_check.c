/* search_check.c - the tokens and vectors of examples/04_semantic_search.c against those of the model's own reference
   implementation in tests/search_expected.txt; and a small model with random weights, for tests that need no real one.
   tests/test_search.sh builds and runs it.

   usage: search_check MODEL EXPECTED     MODEL: the folder of the model
          search_check --small DIR        writes the small model there
   Prints what fails, how far the vectors are off, and one hash of all of them. Last line: N passed, N failed, N
   skipped. */

#define main example_main
#include SEARCH_EXAMPLE
#undef main

enum { MAX_SENTENCES = 32, MAX_TOKENS = 512 };
static const double TOLERANCE = 1e-5, UNIT = 1e-7; /* of a vector's element */

typedef struct sentence {
  char *text;
  int64_t bytes, tokens;
  int64_t token[MAX_TOKENS];
  float *expected; /* [H] */
} sentence;

typedef struct checks {
  int64_t passed, failed;
  sentence sentence[MAX_SENTENCES];
  int64_t count, width;
  uint64_t code_points, vectors; /* hashes */
} checks;

static void expect(checks *c, int holds, const char *what, const char *of) {
  if (holds)
    c->passed++;
  else
    c->failed++, printf("FAIL search_check: %s: %s\n", what, of);
}

/* One line of the file; its bytes change. Nonzero: it is not understood. */
static int take_line(checks *c, char *line) {
  sentence *s = &c->sentence[c->count - (c->count > 0)];
  char *at = strchr(line, ' ');
  int64_t i;
  if (!at) return 1;
  *at++ = 0;
  if (!strcmp(line, "text")) {
    if (c->count == MAX_SENTENCES) return 1;
    s = &c->sentence[c->count++];
    s->bytes = (int64_t)strlen(at);
    s->text = (char *)malloc((size_t)s->bytes + 1);
    if (s->text) strcpy(s->text, at);
    return !s->text;
  }
  if (!strcmp(line, "tokens")) {
    while (*at && s->tokens < MAX_TOKENS) s->token[s->tokens++] = strtoll(at, &at, 10);
    return *at != 0;
  }
  if (!strcmp(line, "code_points")) return (c->code_points = strtoull(at, &at, 16)) == 0 || *at;
  if (!strcmp(line, "vectors")) return (c->vectors = strtoull(at, &at, 16)) == 0 || *at;
  if (strcmp(line, "vector") != 0) return 1;
  s->expected = (float *)malloc((size_t)c->width * sizeof(float));
  for (i = 0; s->expected && i < c->width; i++) s->expected[i] = (float)((double)strtoll(at, &at, 10) * UNIT);
  return !s->expected || *at;
}

static int read_expected(checks *c, const char *path) {
  blob file = {NULL, 0};
  int64_t at = 0;
  int code = read_file(path, MAX_SMALL_BYTES, &file);
  while (!code && at < file.bytes) {
    char *line = (char *)file.data + at, *feed = (char *)memchr(line, '\n', (size_t)(file.bytes - at));
    if (!feed) return complain("%s does not end with a line feed", path);
    *feed = 0;
    at += feed - line + 1;
    if (*line != '#' && take_line(c, line)) code = complain("%s: not understood: %.40s", path, line);
  }
  free(file.data);
  return code;
}

static void check_tokens(checks *c, const wordpiece *t) {
  int64_t i, token[MAX_TOKENS];
  for (i = 0; i < c->count; i++) {
    const sentence *s = &c->sentence[i];
    const int64_t count = tokenize(t, (const uint8_t *)s->text, s->bytes, token);
    expect(c, count == s->tokens && !memcmp(token, s->token, (size_t)count * sizeof *token), "other tokens", s->text);
  }
}

/* Every code point between two letters, and alone. */
static void check_code_points(checks *c, const wordpiece *t) {
  uint64_t hash = FNV_START;
  uint32_t point;
  int64_t token[MAX_TOKENS], count, i, j;
  for (point = 0; point < CODE_POINTS; point++) {
    uint8_t text[8] = {'a'};
    const int bytes = put_code_point(text + 1, point);
    if (point >= 0xd800 && point < 0xe000) continue;
    text[1 + bytes] = 'b';
    for (i = 0; i < 2; i++) {
      count = tokenize(t, text + i, bytes + (i ? 0 : 2), token);
      for (j = 0; j < count; j++) {
        uint8_t le[4];
        le[0] = (uint8_t)token[j], le[1] = (uint8_t)(token[j] >> 8);
        le[2] = (uint8_t)(token[j] >> 16), le[3] = (uint8_t)(token[j] >> 24);
        hash = hash_bytes(hash, le, 4);
      }
    }
  }
  expect(c, hash == c->code_points, "other tokens", "all code points");
}

/* Vectors of all sentences in one pass, and of each alone: near the expected ones, and the same bits. */
static int check_vectors(checks *c, encoder *e) {
  float *together = (float *)malloc((size_t)((c->count + 1) * c->width) * sizeof(float)), *alone = NULL;
  double worst = 0;
  int64_t done = 0, i, j;
  uint64_t hash;
  if (!together) return 1;
  alone = together + c->count * c->width;
  while (done < c->count) {
    int64_t lines = 0;
    while (done + lines < c->count &&
           add_line(e, &lines, (const uint8_t *)c->sentence[done + lines].text, c->sentence[done + lines].bytes))
      continue;
    if (run_network(e, lines, together + done * c->width)) return 1;
    done += lines;
  }
  for (i = 0; i < c->count; i++) {
    double off = 0;
    if (encode_text(e, (const uint8_t *)c->sentence[i].text, c->sentence[i].bytes, alone)) return 1;
    for (j = 0; j < c->width; j++) off = fmax(off, fabs((double)alone[j] - (double)c->sentence[i].expected[j]));
    expect(c, off <= TOLERANCE, "a vector farther than 1e-5 from the reference", c->sentence[i].text);
    expect(c, !memcmp(alone, together + i * c->width, (size_t)c->width * sizeof(float)),
           "a vector of other bits among other lines", c->sentence[i].text);
    worst = fmax(worst, off);
  }
  hash = hash_floats(FNV_START, together, c->count * c->width);
  printf("vectors    farthest from the reference %.2g   hash %016" PRIx64 "\n", worst, hash);
  expect(c, hash == c->vectors, "another hash than the pinned one", "all vectors");
  free(together);
  return 0;
}

/* ---- the small model --------------------------------------------------------------------------------------------- */

enum { H = 16, HEADS = 2, LAYERS = 2, I = 24, POSITIONS = 24, TYPES = 2 };

static const char small_vocabulary[] =
    "[PAD]\n[UNK]\n[CLS]\n[SEP]\nthe\ncat\ndog\nsat\non\na\nmat\n##s\n##t\nrun\n##ning\n"
    ".\n,\n!\n\xe6\x9d\xb1\ne\n##e\n1\n2\n";

/* A safetensors file as it grows: header and data apart. */
typedef struct tensors {
  char header[8192];
  uint8_t data[1 << 17];
  size_t header_bytes, bytes;
  uint64_t state;
} tensors;

/* A tensor [rows, cols] (or [cols]) of random numbers of 8 bits around middle, exact in every type. */
static void put_tensor(tensors *t, const char *name, int64_t rows, int64_t cols, int type, float middle) {
  const int64_t count = rows ? rows * cols : cols;
  const size_t first = t->bytes;
  char shape[64];
  int64_t i;
  for (i = 0; i < count; i++) {
    float value;
    uint32_t bits;
    t->state = t->state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    value = middle + (float)((int)(t->state >> 56) - 128) / 256.0f;
    memcpy(&bits, &value, sizeof bits);
    if (type == TYPE_F16) /* no denormals here, and 0 is written as such */
      bits = bits << 1 == 0 ? 0 : (bits >> 16 & 0x8000u) | (((bits >> 23 & 255) - 112) << 10) | (bits >> 13 & 1023);
    if (type == TYPE_BF16) bits >>= 16;
    t->data[t->bytes++] = (uint8_t)bits, t->data[t->bytes++] = (uint8_t)(bits >> 8);
    if (type == TYPE_F32) t->data[t->bytes++] = (uint8_t)(bits >> 16), t->data[t->bytes++] = (uint8_t)(bits >> 24);
  }
  snprintf(shape, sizeof shape, rows ? "%d,%d" : "%.0d%d", (int)rows, (int)cols);
  t->header_bytes += (size_t)snprintf(t->header + t->header_bytes, sizeof t->header - t->header_bytes,
                                      "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[%s],\"data_offsets\":[%lu,%lu]}",
                                      t->header_bytes ? "," : "{", name, element_types[type].name, shape,
                                      (unsigned long)first, (unsigned long)t->bytes);
}

/* A weight and its bias, the latter [cols] where there are no rows. */
static void put_pair(tensors *t, const char *before, int number, const char *name, int64_t rows, int64_t cols,
                     int type) {
  char full[TENSOR_NAME], prefix[32] = "";
  if (number >= 0) snprintf(prefix, sizeof prefix, "encoder.layer.%d.", number);
  snprintf(full, sizeof full, "%s%s%s.weight", before, prefix, name);
  put_tensor(t, full, rows, cols, type, rows ? 0.0f : 1.0f);
  snprintf(full, sizeof full, "%s%s%s.bias", before, prefix, name);
  put_tensor(t, full, 0, rows ? rows : cols, TYPE_F32, 0.0f);
}

static int write_file(const char *folder, const char *name, const void *first, size_t first_bytes, const void *second,
                      size_t second_bytes) {
  char path[MAX_PATH_BYTES];
  FILE *file;
  if (join_path(path, folder, name)) return 1;
  file = fopen(path, "wb");
  if (!file) return 1;
  fwrite(first, 1, first_bytes, file), fwrite(second, 1, second_bytes, file);
  return fclose(file) != 0;
}

static int write_small(const char *folder) {
  static tensors t;
  static char start[sizeof t.header + 16];
  char config[512];
  int64_t words = 0;
  int i;
  size_t length;
  for (i = 0; small_vocabulary[i]; i++) words += small_vocabulary[i] == '\n';
  put_tensor(&t, "embeddings.word_embeddings.weight", words, H, TYPE_BF16, 0.0f);
  put_tensor(&t, "embeddings.position_embeddings.weight", POSITIONS, H, TYPE_F16, 0.0f);
  put_tensor(&t, "embeddings.token_type_embeddings.weight", TYPES, H, TYPE_F32, 0.0f);
  put_pair(&t, "embeddings.", -1, "LayerNorm", 0, H, TYPE_F32);
  for (i = 0; i < LAYERS; i++) {
    put_pair(&t, "", i, "attention.self.query", H, H, TYPE_F32);
    put_pair(&t, "", i, "attention.self.key", H, H, TYPE_F16);
    put_pair(&t, "", i, "attention.self.value", H, H, TYPE_BF16);
    put_pair(&t, "", i, "attention.output.dense", H, H, TYPE_F32);
    put_pair(&t, "", i, "attention.output.LayerNorm", 0, H, TYPE_F32);
    put_pair(&t, "", i, "intermediate.dense", I, H, TYPE_F16);
    put_pair(&t, "", i, "output.dense", H, I, TYPE_BF16);
    put_pair(&t, "", i, "output.LayerNorm", 0, H, TYPE_F16);
  }
  put_tensor(&t, "unused", 3, 5, TYPE_F32, 0.0f);
  t.header[t.header_bytes++] = '}';
  length = t.header_bytes;
  for (i = 0; i < 8; i++) start[i] = (char)(length >> (8 * i) & 255);
  memcpy(start + 8, t.header, length);
  snprintf(
      config, sizeof config,
      "{\"model_type\": \"bert\", \"hidden_act\": \"gelu\", \"hidden_size\": %d, \"num_attention_heads\": %d,\n"
      " \"num_hidden_layers\": %d, \"intermediate_size\": %d, \"vocab_size\": %d, \"max_position_embeddings\": %d,\n"
      " \"type_vocab_size\": %d, \"layer_norm_eps\": 1e-12}\n",
      H, HEADS, LAYERS, I, (int)words, POSITIONS, TYPES);
  return write_file(folder, "model.safetensors", start, 8 + length, t.data, t.bytes) ||
         write_file(folder, "vocab.txt", small_vocabulary, sizeof small_vocabulary - 1, "", 0) ||
         write_file(folder, "config.json", config, strlen(config), "", 0);
}

int main(int argc, char **argv) {
  checks *c = (checks *)calloc(1, sizeof *c);
  model *m = (model *)calloc(1, sizeof *m);
  encoder e;
  options opt;
  int64_t i;
  int code;
  if (argc == 3 && !strcmp(argv[1], "--small")) return free(c), free(m), write_small(argv[2]);
  code = argc == 3 && c && m ? 0 : complain("usage: search_check MODEL EXPECTED");
  memset(&e, 0, sizeof e), memset(&opt, 0, sizeof opt);
  if (!code) code = join_path(m->folder, argv[1], ".");
  if (!code) code = open_library(m, &opt);
  if (!code) code = load_model(m);
  if (!code) code = encoder_open(&e, m);
  if (!code) c->width = m->width;
  if (!code) code = read_expected(c, argv[2]);
  if (!code) {
    expect(c, c->count >= 8, "too few sentences in", argv[2]);
    check_tokens(c, &m->tokenizer);
    check_code_points(c, &m->tokenizer);
    code = check_vectors(c, &e);
  }
  if (code && c) c->failed++;
  if (c) printf("%" PRId64 " passed, %" PRId64 " failed, 0 skipped\n", c->passed, c->failed);
  for (i = 0; c && i < c->count; i++) free(c->sentence[i].text), free(c->sentence[i].expected);
  code = !c || c->failed;
  free(e.memory);
  if (m) model_close(m);
  free(m), free(c);
  return code;
}
