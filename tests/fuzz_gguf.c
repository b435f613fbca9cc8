/* Fuzz target of the GGUF reader of the examples (example: 05_chat), of its vocabulary, and of the model where it
   accepts one. See fuzz.h; tests/fuzz_readers.sh builds and runs it. Its valid input is a small model with random
   weights, which tests/test_chat.sh talks to.

   What is looked for: reads outside the file and other undefined behaviour (by the sanitizers), and refusals without a
   sentence (here). The formats of numbers are checked against hashes of what ggml's own reader in Python (package gguf
   0.19) makes of the same bytes. */

#include "fuzz.h"
#define main example_main
#include FUZZ_EXAMPLE
#undef main

/* ---- a small valid file ------------------------------------------------------------------------------------------ */

enum { E = 32, F = 64, H = 4, G = 2, D = 4, BLOCKS = 2 };

typedef struct writer {
  uint8_t bytes[1 << 15];
  size_t length;
  uint64_t state; /* of random numbers */
} writer;

static void put_number(writer *w, uint64_t value, int bytes) {
  fuzz_require(w->length + 8 <= sizeof w->bytes, "the valid file is too long");
  fuzz_put(w->bytes + w->length, value, bytes);
  w->length += (size_t)bytes;
}

static void put_bytes(writer *w, const void *bytes, size_t count) {
  fuzz_require(w->length + count <= sizeof w->bytes, "the valid file is too long");
  memcpy(w->bytes + w->length, bytes, count);
  w->length += count;
}

static void put_text(writer *w, const char *t) {
  put_number(w, strlen(t), 8);
  put_bytes(w, t, strlen(t));
}

static void put_key(writer *w, const char *key, uint32_t type) {
  put_text(w, key);
  put_number(w, type, 4);
}

static void put_whole(writer *w, const char *key, uint32_t value) {
  put_key(w, key, GGUF_U32);
  put_number(w, value, 4);
}

static void put_real(writer *w, const char *key, float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  put_key(w, key, GGUF_F32);
  put_number(w, bits, 4);
}

static void put_string(writer *w, const char *key, const char *value) {
  put_key(w, key, GGUF_STRING);
  put_text(w, value);
}

static void put_array(writer *w, const char *key, uint32_t element, uint64_t count) {
  put_key(w, key, GGUF_ARRAY);
  put_number(w, element, 4);
  put_number(w, count, 8);
}

static const char *const merged[] = {"t h",  "h e", "\xc4\xa0 t",       "e r",
                                     "th e", "i n", "\xc4\xa0 th",      "\xc4\xa0th e",
                                     "in g", "' s", "\xc3\x83 \xc2\xa9"};
static const char *const special[] = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"};
enum { MERGES = sizeof merged / sizeof *merged, SPECIALS = 3, TOKENS = SPECIALS + 256 + MERGES };

/* The character of GPT-2's alphabet that stands for a byte, as UTF-8. */
static void letter_of_byte(int byte, char *to) {
  uint32_t point = 0;
  while (byte_of_character(point) != byte) point++;
  if (point < 128) {
    to[0] = (char)point, to[1] = 0;
  } else {
    to[0] = (char)(0xc0 | point >> 6), to[1] = (char)(0x80 | (point & 63)), to[2] = 0;
  }
}

static void put_vocabulary(writer *w) {
  char t[32];
  int i;
  put_string(w, "tokenizer.ggml.model", "gpt2");
  put_string(w, "tokenizer.ggml.pre", "smollm");
  put_array(w, "tokenizer.ggml.tokens", GGUF_STRING, TOKENS);
  for (i = 0; i < SPECIALS; i++) put_text(w, special[i]);
  for (i = 0; i < 256; i++) letter_of_byte(i, t), put_text(w, t);
  for (i = 0; i < MERGES; i++) {
    char *space = strchr(strcpy(t, merged[i]), ' ');
    memmove(space, space + 1, strlen(space));
    put_text(w, t);
  }
  put_array(w, "tokenizer.ggml.token_type", GGUF_I32, TOKENS);
  for (i = 0; i < TOKENS; i++) put_number(w, i < SPECIALS ? TOKEN_CONTROL : 1, 4);
  put_array(w, "tokenizer.ggml.merges", GGUF_STRING, MERGES);
  for (i = 0; i < MERGES; i++) put_text(w, merged[i]);
  put_whole(w, "tokenizer.ggml.unknown_token_id", 0);
  put_string(w, "tokenizer.chat_template", DEFAULT_SYSTEM);
}

/* One value of every kind, and an array of arrays: what the program does not ask for it has to step over. */
static void put_others(writer *w) {
  static const uint32_t small[] = {GGUF_U8,   GGUF_I8,  GGUF_U16, GGUF_I16, GGUF_I32,
                                   GGUF_BOOL, GGUF_U64, GGUF_I64, GGUF_F64};
  char key[16];
  int i;
  for (i = 0; i < (int)(sizeof small / sizeof *small); i++) {
    snprintf(key, sizeof key, "other.%d", i);
    put_key(w, key, small[i]);
    put_number(w, 1, gguf_bytes[small[i]]);
  }
  put_array(w, "other.nested", GGUF_ARRAY, 2);
  for (i = 0; i < 2; i++) {
    put_number(w, GGUF_U16, 4), put_number(w, 3, 8);
    put_number(w, 0x000100020003, 6);
  }
}
enum { OTHERS = 10, VOCABULARY_VALUES = 7, SIZES = 14 };

static void put_sizes(writer *w) {
  put_string(w, "general.architecture", "llama");
  put_string(w, "general.name", "a small model for tests");
  put_whole(w, "general.alignment", 64);
  put_whole(w, "llama.block_count", BLOCKS);
  put_whole(w, "llama.embedding_length", E);
  put_whole(w, "llama.feed_forward_length", F);
  put_whole(w, "llama.attention.head_count", H);
  put_whole(w, "llama.attention.head_count_kv", G);
  put_whole(w, "llama.context_length", 4096);
  put_whole(w, "llama.attention.key_length", D);
  put_whole(w, "llama.attention.value_length", D);
  put_whole(w, "llama.rope.dimension_count", D);
  put_real(w, "llama.rope.freq_base", 10000.0f);
  put_real(w, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
}

typedef struct planned {
  char name[48];
  int64_t rows, columns; /* rows 0: a vector */
  uint32_t type;         /* ggml's number of a format */
} planned;

enum { PARTS = 9, TENSORS = 2 + PARTS * BLOCKS };

/* All formats whose blocks fit rows of 32: those of 256 are checked below. */
static planned plan_of(int number) {
  static const char *const parts[PARTS] = {"attn_norm",   "ffn_norm", "attn_q", "attn_k",  "attn_v",
                                           "attn_output", "ffn_gate", "ffn_up", "ffn_down"};
  static const int64_t rows[PARTS] = {0, 0, H * D, G * D, G * D, E, F, F, E};
  static const uint32_t types[BLOCKS][PARTS] = {{0, 0, 3, 2, 6, 30, 7, 8, 3}, {0, 0, 1, 30, 0, 1, 2, 6, 7}};
  planned p = {"token_embd.weight", TOKENS, E, 3};
  if (number == 1) strcpy(p.name, "output_norm.weight"), p.rows = 0, p.type = 0;
  if (number >= 2) {
    const int block = (number - 2) / PARTS, part = (number - 2) % PARTS;
    snprintf(p.name, sizeof p.name, "blk.%d.%s.weight", block, parts[part]);
    p.rows = rows[part], p.type = types[block][part];
    p.columns = part == 5 ? H * D : part == 8 ? F : E;
  }
  return p;
}

/* Random bytes, but scales in them of the size that weights have, and vectors of numbers from 1 to 2. */
static void random_block(const number_format *f, uint64_t *state, int vector, uint8_t *to) {
  int64_t i;
  for (i = 0; i < f->bytes; i++) to[i] = (uint8_t)(draw(state) >> 56);
  if (f->type == 0 && vector) to[2] = (uint8_t)(to[2] | 0x80), to[3] = 0x3f;
  if (f->type == 0 && !vector) to[3] = (uint8_t)(0x3d | (to[3] & 0x80)); /* 0.03 to 0.12 */
  if (f->type == 1) to[1] = (uint8_t)(0x28 | (to[1] & 0x87));            /* 0.03 to 0.12 */
  if (f->type == 30) to[1] = (uint8_t)(0x3d | (to[1] & 0x80));
  if (f->numbers == 32) to[1] = f->type == 8 ? 0x10 : 0x24;                       /* 0.0005, 0.016 */
  if (f->type == 3 || f->type == 7) to[3] = (uint8_t)(0xac + (f->type == 7) * 4); /* -0.06, -0.13 */
  if (f->type == 12 || f->type == 13) to[1] = 0x10, to[3] = 0x18;
  if (f->type == 14) to[209] = 0x08;
}

static void put_tensors(writer *w) {
  uint64_t offset = 0;
  int64_t i, at;
  int number;
  for (number = 0; number < TENSORS; number++) {
    const planned p = plan_of(number);
    const number_format *f = format_of(p.type);
    const int64_t elements = (p.rows ? p.rows : 1) * p.columns;
    put_text(w, p.name);
    put_number(w, p.rows ? 2 : 1, 4);
    put_number(w, (uint64_t)p.columns, 8);
    if (p.rows) put_number(w, (uint64_t)p.rows, 8);
    put_number(w, p.type, 4), put_number(w, offset, 8);
    offset += (uint64_t)(elements / f->numbers * f->bytes + 63) / 64 * 64;
  }
  while (w->length % 64) put_number(w, 0, 1);
  for (number = 0; number < TENSORS; number++) {
    const planned p = plan_of(number);
    const number_format *f = format_of(p.type);
    const int64_t blocks = (p.rows ? p.rows : 1) * p.columns / f->numbers;
    uint8_t b[256];
    for (i = 0; i < blocks; i++) random_block(f, &w->state, !p.rows, b), put_bytes(w, b, (size_t)f->bytes);
    for (at = blocks * f->bytes; at % 64; at++) put_number(w, 0, 1);
  }
}

static void write_model(writer *w) {
  memset(w, 0, sizeof *w);
  put_bytes(w, "GGUF", 4);
  put_number(w, 3, 4), put_number(w, TENSORS, 8), put_number(w, OTHERS + VOCABULARY_VALUES + SIZES, 8);
  put_others(w), put_sizes(w), put_vocabulary(w), put_tensors(w);
}

/* ---- what is known ----------------------------------------------------------------------------------------------- */

/* FNV-1a 64 over the bits of 64 blocks of random bytes, unpacked. */
static uint64_t hash_of_format(const number_format *f) {
  uint64_t hash = UINT64_C(0xcbf29ce484222325), state = f->type;
  uint8_t block[256], bits[4];
  float number[256];
  int64_t i, j;
  for (i = 0; i < 64; i++) {
    random_block(f, &state, 0, block);
    unpack(f, block, f->numbers, number);
    for (j = 0; j < f->numbers; j++) {
      const text t = {bits, 4};
      uint32_t value;
      memcpy(&value, &number[j], sizeof value);
      fuzz_put(bits, value, 4);
      hash = fnv1a(hash, t);
    }
  }
  return hash;
}

static const writer *valid_file(void) {
  static writer w;
  if (!w.length) write_model(&w);
  return &w;
}

static void check_formats(void) {
  static const uint64_t known[FORMATS] = {
      UINT64_C(0xa1a6f43a1f7c8b06), UINT64_C(0x02ea1b4f26b344cd), UINT64_C(0x24aab02b4bf936af),
      UINT64_C(0x494bd9d16dd1bb48), UINT64_C(0xfdfce413dd2827a7), UINT64_C(0xa1c2ee2f7a6c4715),
      UINT64_C(0x1dbd396c28019706), UINT64_C(0x7b2de1c94d344f03), UINT64_C(0x39ad5a0233f8e2b3),
      UINT64_C(0xb2e430d9ae77c7da), UINT64_C(0x4c942abcd00a788e)};
  int i;
  for (i = 0; i < FORMATS; i++) {
    fuzz_require(formats[i].bytes <= 256 && formats[i].numbers <= 256, "a block does not fit its buffer");
    fuzz_require(hash_of_format(&formats[i]) == known[i], formats[i].name);
  }
}

static size_t fuzz_seed(int number, uint8_t *to, size_t room) {
  const writer *w = valid_file();
  if (number > 0 || w->length > room) return 0;
  memcpy(to, w->bytes, w->length);
  return w->length;
}

/* ---- one file ---------------------------------------------------------------------------------------------------- */

/* A file that is accepted has to serve: a question is cut into tokens and fed, and both ways of choosing go on from
   there. Numbers in the file may make all logits NaN. */
static int serve(model *m) {
  static const uint8_t question[] = "the Other\n  thing's 12 \xc3\xa9\xf0\x9f\x98\x80\xff";
  const text t = {question, (int64_t)sizeof question - 1};
  token_list list = {NULL, 0, 0};
  chooser c = {1.0f, 5, 1};
  printer p = {fuzz_silence(), {0, 0, 0, 0}, 0};
  int64_t id = 0;
  int code = encode(&m->v, t, &list);
  if (!code) code = feed(m, list.id, list.count < m->context - 1 ? list.count : m->context - 1);
  if (!code && list.count) code = choose(m, &c, &id);
  if (!code) print_token(&p, &m->v, id), print_held(&p, 1);
  if (!code) code = feed(m, &id, 1);
  if (!code) code = choose_largest(m, &id);
  free(list.id);
  return code;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static int checked;
  const writer *valid = valid_file();
  model m;
  options opt;
  int code;
  if (!checked) check_formats(), checked = 1;
  memset(&opt, 0, sizeof opt);
  memset(&m, 0, sizeof m);
  opt.threads = 1, opt.context = 40, opt.rows = 5;
  complaint[0] = 0;
  code = open_model(&m, &opt, "FILE", data, (int64_t)size);
  if (!code) code = serve(&m);
  model_free(&m);
  fuzz_require(!code || complaint[0], "refused without a reason");
  if (size == valid->length && memcmp(data, valid->bytes, size) == 0) fuzz_require(!code, complaint);
  return 0;
}
