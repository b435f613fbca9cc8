/* Trains a small GPT on text that you name, then writes some: forward, backward, optimiser and sampling by mlk.h.

   Build: cc -O2 -fopenmp -pthread -I. examples/03_gpt.c -o build/03_gpt -lm
   Run:   build/03_gpt FILE...      (without FILE: this repository's documents and mlk.h; --help lists the options)

   The model reads bytes, so any text in any language will do. With B sequences of S bytes, width W, H query heads and
   G key heads of size D = W / H, and the MLP's width F:
     x = table[bytes]                                                  [B S, W]
     each layer   q, k, v = rms(x) Wqkv^T                              [B, S, H + 2 G, D]
                  q and k turned by their positions (rotary)
                  x = x + attention(q, k, v) Wo^T
                  gate, up = rms(x) Wgu^T                              [B S, F] each
                  x = x + (silu(gate) up) Wdown^T
     logits = rms(x) table^T                                           [B S, 256]

   How it is built: every call of the library is an entry of a tape, made once. Planning walks the tapes and asks each
   entry for its workspace; after one reservation training allocates nothing. A step walks "forward", "learn", which
   computes the gradients, and "update".
   Writing text runs the same forward pass on one byte at a time, with a cache of keys and values; before it does, the
   logits of the two ways are compared, and they must be the same to the bit.

   The same bits everywhere. MLK_STRICT makes every operator give the same bits on every instruction set and with any
   number of threads. What is left is done here without libm and without sums that a compiler could contract: the
   generator is made of integers, weights begin as an integer times a float, the cosine of the schedule is one that
   mlk_rotary computes, and a byte is drawn from probabilities that are turned into integers. The places in the text
   that a step learns from are a function of the seed and the step, so the state of a training is weights, both moments
   of AdamW, and the number of the step: that is the checkpoint.

   Several replicas train one model with --replicas N, threads of this process, or --processes N. The batch of a step
   is cut into --shares S of equal size. A replica has a model of its own and computes the gradients of its shares one
   after another; what counts is the mean over the shares in ascending order, which mlk_group takes. So S decides the
   bits, and how many replicas there are does not, nor whether they are threads or processes: weights, checkpoints and
   text are the same, and any number of replicas continues a checkpoint. The gradients of a layer are written straight
   into the common memory and published as soon as they are there, while those of the layers before it are still being
   computed; means are taken when all is published. With the gradients travels whether to stop and whether to write a
   checkpoint, so all replicas do it after the same step. The lowest of those that live prints and writes files. When a
   replica is lost, all end, with the last checkpoint whole (--on-loss fails), or the others go on without its shares
   (shrinks). With --zero 1 a replica keeps the moments of AdamW of its ranges of the weights only (ZeRO-1).

   Exit code: 0 done, 1 the run failed (memory, a full disk, a wrong hash), 2 an argument, a text or a checkpoint is
   wrong, 130 interrupted by SIGINT or SIGTERM after a checkpoint was written. */

#if !defined(_WIN32) && !defined(_POSIX_C_SOURCE)
#define _POSIX_C_SOURCE 200809L /* fsync, isatty, clock_gettime, kill under -std=c99 */
#endif

#define MLK_IMPLEMENTATION
#include "mlk.h"
#if defined(MLK_EXAMPLE_CUDA)
#include "mlk_cuda.cuh" /* plain, as a header: the program is linked with the object of its implementation */
#endif

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
#include <pthread.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>
#endif

enum { EXIT_RUN = 1, EXIT_INPUT = 2, EXIT_INTERRUPTED = 130 };
enum { FOLLOWED = 3, LOST = 4 }; /* of a replica: another one has the results; the step failed for want of others */
enum { BYTES = 256, MAX_LAYERS = 16, MAX_PATH_BYTES = 4096, REPORTS = 10 };
static const int64_t MAX_TEXT_BYTES = 1 << 28;
static const float WEIGHT_DECAY = 0.1f, BETA2 = 0.99f, DEFAULT_RATE = 3e-3f, DEFAULT_CLIP = 1.0f;
static const double SAVE_SECONDS = 5, PLAIN_LINE_SECONDS = 5, TERMINAL_LINE_SECONDS = 0.1;

/* Whole numbers that options set. The first SETTINGS of them, the learning rate and the highest norm decide what a
   training learns: a checkpoint belongs to them. */
enum {
  OPT_STEPS,
  OPT_LAYERS,
  OPT_WIDTH,
  OPT_HEADS,
  OPT_KV_HEADS,
  OPT_CONTEXT,
  OPT_BATCH,
  OPT_SEED,
  OPT_SHARES,
  SETTINGS,
  OPT_STOP = SETTINGS,
  OPT_SAVE_EVERY,
  OPT_SAMPLE,
  OPT_THREADS,
  OPT_REPLICAS,
  OPT_PROCESSES,
  OPT_ZERO,
  INTEGERS
};

static const struct {
  const char *option;
  int64_t least, most, usual, demo; /* usual and demo: the defaults, for a text that is given and for --demo */
} integer_options[INTEGERS] = {
    {"--steps", 1, 1000000, 1500, 300},
    {"--layers", 1, MAX_LAYERS, 4, 2},
    {"--width", 8, 4096, 128, 64},
    {"--heads", 1, 64, 4, 4},
    {"--kv-heads", 1, 64, 2, 2},
    {"--context", 8, 8192, 128, 64},
    {"--batch", 1, 1024, 16, 16},
    {"--seed", 0, INT64_MAX, 2026, 2026},
    {"--shares", 1, MLK_MAX_SHARES, 1, 1}, /* with several replicas 4, or as many as they are: see complete_options */
    {"--stop", 0, 1000000, 0, 0},
    {"--save-every", 0, 1000000, 0, 0},
    {"--sample", 0, 1000000, 600, 400},
    {"--threads", 0, 1024, 0, 1}, /* a step of --demo takes some milliseconds: too little for threads */
    {"--replicas", 1, MLK_MAX_RANKS, 1, 1},
    {"--processes", 1, MLK_MAX_RANKS, 1, 1},
    {"--zero", 0, 1, 0, 0},
};

typedef struct options {
  int64_t integer[INTEGERS];
  float rate, clip, temperature, timeout; /* clip 0: no clipping; timeout in seconds, 0: the library's */
  mlk_isa isa;
  int cuda; /* --device */
  mlk_loss on_loss;
  int grouped, processes, replicas; /* the batch is cut into shares; replicas are processes, not threads; how many */
  const char *checkpoint, *prompt;  /* NULL: not given */
  const char *const *files;         /* [file_count] */
  int file_count, demo, fresh, hash_only, profile, bytes;
} options;

/* ---- small things ------------------------------------------------------------------------------------------------ */

/* One line on standard error, written at once, since replicas share it; returns EXIT_INPUT, so that checks read
   "return complain(...)". */
static int complain(const char *format, ...) {
  char line[MAX_PATH_BYTES + 1024];
  va_list args;
  va_start(args, format);
  vsnprintf(line, sizeof line, format, args);
  va_end(args);
  fprintf(stderr, "03_gpt: %s\n", line);
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

static int on_terminal(void) {
#if defined(_WIN32)
  return _isatty(_fileno(stdout));
#else
  return isatty(fileno(stdout));
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

static const uint64_t FNV_START = UINT64_C(0xcbf29ce484222325);

/* FNV-1a, 64 bits */
static uint64_t fnv1a(uint64_t hash, const uint8_t *bytes, int64_t count) {
  int64_t i;
  for (i = 0; i < count; i++) hash = (hash ^ bytes[i]) * UINT64_C(0x100000001b3);
  return hash;
}

static double bits_of(double nats) { return nats / 0.69314718055994530942; }

/* ---- randomness: integers only ----------------------------------------------------------------------------------- */

/* The output function of SplitMix64 (Steele, Lea & Flood, 2014). */
static uint64_t scramble(uint64_t x) {
  x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
  x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
  return x ^ (x >> 31);
}

/* What a generator is for, so that no two of them run along the same numbers. */
enum { FOR_WEIGHTS = 1, FOR_PLACES = 2, FOR_SAMPLE = 3 };

static uint64_t generator(int64_t seed, int purpose, int64_t number) {
  return scramble(scramble(scramble((uint64_t)seed) + (uint64_t)purpose) + (uint64_t)number);
}

static uint64_t draw(uint64_t *state) {
  *state += UINT64_C(0x9e3779b97f4a7c15);
  return scramble(*state);
}

/* ---- the text ---------------------------------------------------------------------------------------------------- */

typedef struct corpus {
  const char *name;
  uint8_t *learn, *held; /* the last tenth of each file is held out: no weight ever sees it */
  int64_t learn_bytes, held_bytes;
  int files;
  uint64_t fingerprint;
} corpus;

static int extend(uint8_t **to, int64_t *count, const uint8_t *bytes, int64_t more) {
  uint8_t *grown = (uint8_t *)realloc(*to, (size_t)(*count + more + 1));
  if (!grown) return fail_run("the text", "no memory for it");
  memcpy(grown + *count, bytes, (size_t)more);
  *to = grown;
  *count += more;
  return 0;
}

static int add_text(corpus *t, const uint8_t *bytes, int64_t count) {
  const int64_t held = count / 10;
  int code = extend(&t->learn, &t->learn_bytes, bytes, count - held);
  if (!code) code = extend(&t->held, &t->held_bytes, bytes + count - held, held);
  t->files++;
  return code;
}

/* All of a file. The buffer grows with what really arrives, so pipes will do as well. */
static int read_file(const char *path, FILE *file, int64_t most, uint8_t **bytes, int64_t *count) {
  int64_t room = 0;
  size_t got;
  do {
    if (*count == room) {
      uint8_t *grown = (uint8_t *)realloc(*bytes, (size_t)(room = room ? 2 * room : 65536));
      if (!grown) return fail_run(path, "no memory for its text");
      *bytes = grown;
    }
    got = fread(*bytes + *count, 1, (size_t)(room - *count), file);
    *count += (int64_t)got;
    if (*count > most)
      return complain("%s: with it there are more than the %" PRId64 " bytes of text that this program takes", path,
                      MAX_TEXT_BYTES);
  } while (got > 0);
  return ferror(file) ? complain("%s cannot be read: %s", path, strerror(errno)) : 0;
}

static int add_file(corpus *t, const char *path) {
  FILE *file = fopen(path, "rb");
  uint8_t *bytes = NULL;
  int64_t count = 0;
  int code;
  if (!file) return complain("%s cannot be opened: %s", path, strerror(errno));
  code = read_file(path, file, MAX_TEXT_BYTES - t->learn_bytes - t->held_bytes, &bytes, &count);
  fclose(file);
  if (!code) code = add_text(t, bytes, count);
  free(bytes);
  return code;
}

static const char *const documents[] = {"README.md",
                                        "docs/design.md",
                                        "docs/numerics.md",
                                        "docs/adding-an-operator.md",
                                        "docs/adding-an-isa.md",
                                        "examples/README.md",
                                        "bench/README.md",
                                        "tests/README.md",
                                        "mlk.h"};
enum { DOCUMENTS = sizeof documents / sizeof *documents };

/* Are the documents below the working directory, or beside or one above the folder of the program? */
static int find_documents(const char *program, char *root) {
  static const char *const places[] = {"", "../", "../../"};
  const char *slash = strrchr(program, '/');
  const int program_folder = slash ? (int)(slash - program) + 1 : 0;
  char path[MAX_PATH_BYTES];
  int i;
  if (program_folder > MAX_PATH_BYTES / 2) return 0;
  for (i = 0; i < 6; i++) {
    FILE *file;
    snprintf(root, MAX_PATH_BYTES / 2 + 64, "%.*s%s", i % 2 ? program_folder : 0, program, places[i / 2]);
    snprintf(path, sizeof path, "%sdocs/numerics.md", root); /* mlk.h alone may be a copy in some project */
    file = fopen(path, "rb");
    if (file) return fclose(file), 1;
  }
  return 0;
}

static int load_documents(const char *program, corpus *t) {
  char root[MAX_PATH_BYTES / 2 + 64], path[MAX_PATH_BYTES];
  int code = 0, i;
  if (!find_documents(program, root))
    return complain("the documents of the repository are not found from here; run this in its root, name a FILE, or "
                    "give --demo");
  for (i = 0; i < DOCUMENTS && !code; i++) {
    snprintf(path, sizeof path, "%s%s", root, documents[i]);
    code = add_file(t, path);
  }
  t->name = "documents and header of the repository";
  return code;
}

/* Two rhymes that grow by a line each time, in the public domain for centuries: a text that every build of this program
   has, so that the hash of what it learns can be pinned. */
static uint8_t *put_words(uint8_t *to, const char *words) {
  const size_t length = strlen(words);
  memcpy(to, words, length);
  return to + length;
}

static int64_t write_house(uint8_t *to) {
  static const struct {
    const char *thing, *did;
  } line[] = {
      {"house that Jack built", ""},
      {"malt", "lay in"},
      {"rat", "ate"},
      {"cat", "killed"},
      {"dog", "worried"},
      {"cow with the crumpled horn", "tossed"},
      {"maiden all forlorn", "milked"},
      {"man all tattered and torn", "kissed"},
      {"priest all shaven and shorn", "married"},
      {"cock that crowed in the morn", "waked"},
      {"farmer sowing his corn", "kept"},
      {"horse and the hound and the horn", "belonged to"},
  };
  uint8_t *const start = to;
  int i, j;
  for (i = 0; i < 12; i++) {
    to = put_words(put_words(to, "This is the "), line[i].thing);
    for (j = i; j > 0; j--) {
      to = put_words(put_words(to, "\nThat "), line[j].did);
      to = put_words(put_words(to, " the "), line[j - 1].thing);
    }
    to = put_words(to, ".\n\n");
  }
  return to - start;
}

static int64_t write_days(uint8_t *to) {
  static const struct {
    const char *day, *gift;
  } line[] = {
      {"first", "partridge in a pear tree"}, {"second", "Two turtle doves"},
      {"third", "Three French hens"},        {"fourth", "Four colly birds"},
      {"fifth", "Five gold rings"},          {"sixth", "Six geese a-laying"},
      {"seventh", "Seven swans a-swimming"}, {"eighth", "Eight maids a-milking"},
      {"ninth", "Nine ladies dancing"},      {"tenth", "Ten lords a-leaping"},
      {"eleventh", "Eleven pipers piping"},  {"twelfth", "Twelve drummers drumming"},
  };
  uint8_t *const start = to;
  int i, j;
  for (i = 0; i < 12; i++) {
    to = put_words(put_words(to, "On the "), line[i].day);
    to = put_words(to, " day of Christmas my true love sent to me\n");
    for (j = i; j > 0; j--) to = put_words(put_words(to, line[j].gift), ",\n");
    to = put_words(put_words(put_words(to, i ? "And a " : "A "), line[0].gift), ".\n\n");
  }
  return to - start;
}

static int load_rhymes(corpus *t) {
  static uint8_t room[8192]; /* the longer rhyme has 2,500 bytes */
  int code = add_text(t, room, write_house(room));
  if (!code) code = add_text(t, room, write_days(room));
  t->name = "two rhymes";
  return code;
}

static int load_text(const char *program, const options *opt, corpus *t) {
  int code = 0, i;
  t->name = "text";
  if (opt->demo)
    code = load_rhymes(t);
  else if (!opt->file_count)
    code = load_documents(program, t);
  for (i = 0; i < opt->file_count && !code; i++) code = add_file(t, opt->files[i]);
  if (code) return code;
  if (t->learn_bytes <= opt->integer[OPT_CONTEXT] || t->held_bytes < 2)
    return complain("the text has %" PRId64 " bytes to learn from and %" PRId64 " held out; it must have more than "
                    "--context, %" PRId64 ", and 2",
                    t->learn_bytes, t->held_bytes, opt->integer[OPT_CONTEXT]);
  t->fingerprint = fnv1a(fnv1a(FNV_START, t->learn, t->learn_bytes), t->held, t->held_bytes);
  return 0;
}

/* ---- tapes: the library's calls as data -------------------------------------------------------------------------- */

typedef enum op_kind {
  OP_MATMUL,
  OP_ATTENTION,
  OP_ATTENTION_GRAD,
  OP_NORM,
  OP_NORM_GRAD,
  OP_ROTARY,
  OP_EMBEDDING,
  OP_EMBEDDING_GRAD,
  OP_MAP,
  OP_REDUCE,
  OP_SOFTMAX,
  OP_CROSS_ENTROPY,
  OP_CLIP_NORM,
  OP_ADAMW,
  OP_PUBLISH, /* from here on calls of a group of replicas: see record_update */
  OP_AVERAGE,
  OP_REDUCE_RANGE,
  OP_FINISH,
  OP_GATHER
} op_kind;

typedef struct group_call {
  mlk_group *group;
  int share;
  int64_t bucket;
  mlk_tensor mine, whole;   /* a range of the bucket, all of it */
  mlk_group_report *report; /* of OP_FINISH */
} group_call;

typedef struct operation {
  op_kind kind;
  const char *name;
  mlk_plan plan;
  double seconds; /* of all calls so far */
  int64_t calls;
  union {
    mlk_matmul_desc matmul;
    mlk_attention_desc attention;
    mlk_attention_grad_desc attention_grad;
    mlk_norm_desc norm;
    mlk_norm_grad_desc norm_grad;
    mlk_rotary_desc rotary;
    mlk_embedding_desc embedding;
    mlk_embedding_grad_desc embedding_grad;
    mlk_map_desc map;
    mlk_reduce_desc reduce;
    mlk_softmax_desc softmax;
    mlk_cross_entropy_desc cross_entropy;
    mlk_clip_norm_desc clip_norm;
    mlk_adamw_desc adamw;
    group_call group;
  } as;
} operation;

/* Entries of a layer and besides: see record_layer, record_layer_grads and record_learning. */
enum { LAYER_ENTRIES = 19, OTHER_ENTRIES = 16, TAPE_ROOM = LAYER_ENTRIES * MAX_LAYERS + OTHER_ENTRIES };

typedef struct tape {
  int count;
  operation op[TAPE_ROOM];
} tape;

static operation *append(tape *t, op_kind kind, const char *name) {
  operation *op = &t->op[t->count++];
  memset(op, 0, sizeof *op);
  op->kind = kind;
  op->name = name;
  return op;
}

static mlk_status call_group(op_kind kind, const group_call *g) {
  switch (kind) {
  case OP_PUBLISH: return mlk_group_publish(g->group, g->share, g->bucket, NULL, 0); /* it stands in its slot */
  case OP_AVERAGE: return mlk_group_average(g->group, g->bucket, &g->whole, 1);
  case OP_REDUCE_RANGE: return mlk_group_reduce(g->group, g->bucket, &g->mine, 1);
  case OP_GATHER: return mlk_group_gather(g->group, g->bucket, &g->mine, 1, &g->whole, 1);
  default: return mlk_group_finish(g->group, g->report);
  }
}

/* Plans the call when plan is given, else makes it. */
static mlk_status call(mlk_context *ctx, const operation *op, mlk_plan *plan) {
#define CALL(of) return plan ? mlk_##of##_plan(ctx, &op->as.of, plan) : mlk_##of(ctx, &op->as.of)
  switch (op->kind) {
  case OP_MATMUL: CALL(matmul);
  case OP_ATTENTION: CALL(attention);
  case OP_ATTENTION_GRAD: CALL(attention_grad);
  case OP_NORM: CALL(norm);
  case OP_NORM_GRAD: CALL(norm_grad);
  case OP_ROTARY: CALL(rotary);
  case OP_EMBEDDING: CALL(embedding);
  case OP_EMBEDDING_GRAD: CALL(embedding_grad);
  case OP_MAP: CALL(map);
  case OP_REDUCE: CALL(reduce);
  case OP_SOFTMAX: CALL(softmax);
  case OP_CROSS_ENTROPY: CALL(cross_entropy);
  case OP_CLIP_NORM: CALL(clip_norm);
  case OP_ADAMW: CALL(adamw);
  default: break;
  }
#undef CALL
  if (!plan) return call_group(op->kind, &op->as.group);
  memset(plan, 0, sizeof *plan);
  return MLK_OK;
}

/* LOST is for the caller to tell: see tell_loss. */
static int library_failed(const mlk_context *ctx, const char *name, mlk_status status) {
  if (status == MLK_ERR_REPLICA) return LOST;
  complain("%s: %s: %s", name, mlk_status_name(status), mlk_last_error(ctx));
  return EXIT_RUN;
}

static int plan_tape(mlk_context *ctx, tape *t, uint64_t *workspace) {
  int i;
  for (i = 0; i < t->count; i++) {
    const mlk_status status = call(ctx, &t->op[i], &t->op[i].plan);
    if (status != MLK_OK) return library_failed(ctx, t->op[i].name, status);
    if (*workspace < t->op[i].plan.workspace_bytes) *workspace = t->op[i].plan.workspace_bytes;
  }
  return 0;
}

static int run_tape(mlk_context *ctx, tape *t) {
  double before = now_seconds(), after;
  mlk_status status;
  int i;
  for (i = 0; i < t->count; i++, before = after) {
    status = call(ctx, &t->op[i], NULL);
    if (status != MLK_OK) return library_failed(ctx, t->op[i].name, status);
    after = now_seconds();
    t->op[i].seconds += after - before, t->op[i].calls++;
  }
  status = mlk_sync(ctx); /* a device's calls are only queued; what follows reads their results */
  return status == MLK_OK ? 0 : library_failed(ctx, "the device", status);
}

static uint64_t flops_of(const tape *t) {
  uint64_t flops = 0;
  int i;
  for (i = 0; i < t->count; i++) flops += t->op[i].plan.flops;
  return flops;
}

static void append_matmul_of(tape *t, const char *name, mlk_tensor a, mlk_tensor b, mlk_tensor d, mlk_tensor residual) {
  mlk_matmul_desc *mm = &append(t, OP_MATMUL, name)->as.matmul;
  mm->a = a, mm->b = b, mm->d = d, mm->residual = residual;
}

static mlk_tensor absent(void) {
  mlk_tensor t;
  memset(&t, 0, sizeof t);
  return t;
}

/* d = a b */
static void append_matmul(tape *t, const char *name, mlk_tensor a, mlk_tensor b, mlk_tensor d) {
  append_matmul_of(t, name, a, b, d, absent());
}

/* out = op(a, b) */
static mlk_map_desc *append_map(tape *t, const char *name, mlk_map_op op, mlk_tensor a, mlk_tensor b, mlk_tensor out) {
  mlk_map_desc *d = &append(t, OP_MAP, name)->as.map;
  d->op = op, d->a = a, d->b = b, d->out = out;
  return d;
}

/* ---- the model --------------------------------------------------------------------------------------------------- */

enum { W_QKV, W_OUT, W_GATE_UP, W_DOWN, LAYER_MATRICES }; /* of a layer, each [outputs, inputs] */

/* What a forward pass over `batch` sequences of `length` bytes computes, and its gradients need. rows = batch length */
typedef struct stream {
  int64_t batch, length, rows;
  int64_t *ids; /* [batch, length] */
  struct {
    float *x;               /* [rows, W] what goes in. Of the entry after the last layer: what comes out of all */
    float *normed, *rstd;   /* [rows, W], [rows] */
    float *qkv;             /* [rows, H + 2 G, D]; the rest is not there in the entry after the last layer */
    float *attended, *lse;  /* [rows, W], [batch, H, length] */
    float *middle;          /* [rows, W] x + attention */
    float *normed2, *rstd2; /* [rows, W], [rows] */
    float *gate_up;         /* [rows, 2 F]: gate before SiLU, up */
    float *gate, *product;  /* [rows, F] silu(gate), silu(gate) up */
    float *keys, *values;   /* [context, G, D] of the bytes so far; only of a stream that is a single byte, else NULL */
  } layer[MAX_LAYERS + 1];
  float *logits;    /* [rows, 256] */
  int64_t position; /* of the single byte, */
  int64_t known;    /* and how many keys it sees: position + 1 */
} stream;

/* The gradients of a share, in as many buckets as are published one by one: the matrices of layer l; behind the layers
   the table and the vectors of the norms; last no gradients, but what the replicas have to agree on. Each a flat array:
   a slot of the group, or, when there is no group, what learning reads. */
enum { MAX_BUCKETS = MAX_LAYERS + 2 };
enum { LOSS, STOP, SAVE, FIGURES }; /* the mean loss of the share's bytes; above 0: stop, write a checkpoint */

typedef struct share {
  float *slot[MAX_BUCKETS];
  tape learn; /* the gradients of this share */
} share;

typedef struct model {
  int64_t layers, width, heads, kv_heads, head, hidden, context; /* L, W, H, G, D, F; bytes that attention looks back */
  int64_t outputs[LAYER_MATRICES], inputs[LAYER_MATRICES], first[LAYER_MATRICES + 1]; /* first: within a layer */
  int64_t table, norms, count;    /* where the table and the vectors of the norms begin; weights in all */
  float *weights, *grads, *m, *v; /* [count] each: L layers, table [256, W], norms [2 L + 1, W]; m and v: see zero */
  stream train, write;
  int64_t *labels;                                  /* [rows] the byte that follows; -1: does not count */
  float *loss;                                      /* [rows] */
  float *dx, *dnormed, *dqkv, *dgate_up, *dproduct; /* gradients, each layer's in turn */
  float *probability;                               /* [256] */
  float figures[FIGURES];                           /* means over all shares */
  float sum_loss, norm, clip, per_row, coldness;    /* per_row = 1 / rows, coldness = 1 / temperature */
  mlk_tensor all_grads;
  int shares, first_share, own_shares; /* of a batch; of this replica */
  share *share;                        /* [own_shares] */
  mlk_group *group;                    /* NULL: one replica has all of the batch */
  mlk_group_report report;             /* of the last step of the group: who is in it */
  int zero;                            /* m and v are those of the own ranges only, one after another */
  struct {
    int64_t first, end;
  } own[MAX_BUCKETS]; /* the weights of the own range of each bucket */
  void *memory, *moments;
  void *shared; /* in place of memory, with --device cuda */
  uint64_t shared_bytes;
  tape forward, update, judge, next, choose;
} model;

/* Matrix `part` of a layer whose matrices begin at `of_layer` */
static mlk_tensor matrix_at(const model *m, const float *of_layer, int part) {
  return mlk_f32(of_layer + m->first[part], m->outputs[part], m->inputs[part]);
}

static mlk_tensor matrix(const model *m, const float *all, int64_t layer, int part) {
  return matrix_at(m, all + layer * m->first[LAYER_MATRICES], part);
}

static mlk_tensor table_of(const model *m, const float *all) { return mlk_f32(all + m->table, BYTES, m->width); }

/* number 2 l and 2 l + 1: of layer l; 2 L: the last */
static mlk_tensor norm_of(const model *m, const float *all, int64_t number) {
  return mlk_f32(all + m->norms + number * m->width, m->width);
}

/* Heads [first, first + count) of qkv, as [batch, length, count, D] */
static mlk_tensor heads_of(const model *m, const stream *s, const float *qkv, int64_t first, int64_t count) {
  return mlk_slice(mlk_f32(qkv, s->batch, s->length, m->heads + 2 * m->kv_heads, m->head), 2, first, count);
}

/* The same as attention wants it, [batch, count, length, D] */
static mlk_tensor attention_heads(const model *m, const stream *s, const float *qkv, int64_t first, int64_t count) {
  return mlk_swapped(heads_of(m, s, qkv, first, count), 1, 2);
}

static void append_norm(tape *t, mlk_tensor x, mlk_tensor gamma, mlk_tensor y, mlk_tensor rstd) {
  mlk_norm_desc *d = &append(t, OP_NORM, "norm")->as.norm;
  d->kind = MLK_NORM_RMS;
  d->x = x, d->gamma = gamma, d->y = y, d->rstd = rstd;
}

static void append_rotary(tape *t, const char *name, mlk_tensor x, mlk_tensor y, int64_t first_position, int inverse) {
  mlk_rotary_desc *d = &append(t, OP_ROTARY, name)->as.rotary;
  d->x = x, d->y = y, d->first_position = first_position, d->inverse = inverse;
}

/* A single byte: its key and value go into the cache, and it sees those that are there. */
static void record_cached_keys(model *m, stream *s, int64_t l, tape *t, mlk_attention_desc *d) {
  const int64_t heads = m->heads, kv_heads = m->kv_heads;
  const mlk_tensor keys = mlk_f32(s->layer[l].keys, 1, m->context, kv_heads, m->head);
  const mlk_tensor values = mlk_f32(s->layer[l].values, 1, m->context, kv_heads, m->head);
  const float *qkv = s->layer[l].qkv;
  append_rotary(t, "rotary", heads_of(m, s, qkv, 0, heads), heads_of(m, s, qkv, 0, heads), s->position, 0);
  append_rotary(t, "rotary", heads_of(m, s, qkv, heads, kv_heads), mlk_slice(keys, 1, s->position, 1), s->position, 0);
  append_map(t, "cache", MLK_COPY, heads_of(m, s, qkv, heads + kv_heads, kv_heads), absent(),
             mlk_slice(values, 1, s->position, 1));
  d->k = mlk_swapped(keys, 1, 2), d->v = mlk_swapped(values, 1, 2);
  d->scores.k_lengths = mlk_i64(&s->known, 1);
}

static void record_attention(model *m, stream *s, int64_t l, tape *t) {
  const int64_t heads = m->heads, kv_heads = m->kv_heads;
  const float *qkv = s->layer[l].qkv;
  mlk_attention_desc d;
  memset(&d, 0, sizeof d);
  d.q = attention_heads(m, s, qkv, 0, heads);
  d.k = attention_heads(m, s, qkv, heads, kv_heads);
  d.v = attention_heads(m, s, qkv, heads + kv_heads, kv_heads);
  d.out = mlk_swapped(mlk_f32(s->layer[l].attended, s->batch, s->length, heads, m->head), 1, 2);
  d.lse = mlk_f32(s->layer[l].lse, s->batch, heads, s->length);
  d.scores.causal = 1;
  if (s->layer[l].keys) {
    record_cached_keys(m, s, l, t, &d);
  } else { /* heads of queries and keys lie side by side, and both are turned */
    const mlk_tensor turned = heads_of(m, s, qkv, 0, heads + kv_heads);
    append_rotary(t, "rotary", turned, turned, 0, 0);
  }
  append(t, OP_ATTENTION, "attention")->as.attention = d;
}

static void record_layer(model *m, stream *s, int64_t l, tape *t) {
  const int64_t rows = s->rows, width = m->width, hidden = m->hidden;
  const float *w = m->weights;
  const mlk_tensor x = mlk_f32(s->layer[l].x, rows, width), middle = mlk_f32(s->layer[l].middle, rows, width);
  const mlk_tensor normed = mlk_f32(s->layer[l].normed, rows, width), after = mlk_f32(s->layer[l + 1].x, rows, width);
  const mlk_tensor normed2 = mlk_f32(s->layer[l].normed2, rows, width), gate_up = matrix(m, w, l, W_GATE_UP);
  const mlk_tensor pair = mlk_f32(s->layer[l].gate_up, rows, 2 * hidden),
                   gate = mlk_f32(s->layer[l].gate, rows, hidden);
  const mlk_tensor product = mlk_f32(s->layer[l].product, rows, hidden), up = mlk_slice(pair, 1, hidden, hidden);
  mlk_matmul_desc *mm;
  append_norm(t, x, norm_of(m, w, 2 * l), normed, mlk_f32(s->layer[l].rstd, rows));
  append_matmul(t, "q, k, v", normed, mlk_transposed(matrix(m, w, l, W_QKV)),
                mlk_f32(s->layer[l].qkv, rows, m->outputs[W_QKV]));
  record_attention(m, s, l, t);
  append_matmul_of(t, "attention's output", mlk_f32(s->layer[l].attended, rows, width),
                   mlk_transposed(matrix(m, w, l, W_OUT)), middle, x);
  append_norm(t, middle, norm_of(m, w, 2 * l + 1), normed2, mlk_f32(s->layer[l].rstd2, rows));
  mm = &append(t, OP_MATMUL, "gate and up")->as.matmul;
  mm->a = normed2, mm->b = mlk_transposed(mlk_slice(gate_up, 0, 0, hidden)), mm->d = gate;
  mm->activation = MLK_SILU, mm->preact = mlk_slice(pair, 1, 0, hidden);
  append_matmul(t, "gate and up", normed2, mlk_transposed(mlk_slice(gate_up, 0, hidden, hidden)), up);
  append_map(t, "silu(gate) up", MLK_MUL, gate, up, product);
  append_matmul_of(t, "down", product, mlk_transposed(matrix(m, w, l, W_DOWN)), after, middle);
}

static void record_forward(model *m, stream *s, tape *t) {
  const int64_t rows = s->rows, width = m->width, end = m->layers;
  const mlk_tensor normed = mlk_f32(s->layer[end].normed, rows, width);
  mlk_embedding_desc *d;
  int64_t l;
  t->count = 0;
  d = &append(t, OP_EMBEDDING, "table")->as.embedding;
  d->table = table_of(m, m->weights), d->ids = mlk_i64(s->ids, rows), d->out = mlk_f32(s->layer[0].x, rows, width);
  for (l = 0; l < end; l++) record_layer(m, s, l, t);
  append_norm(t, mlk_f32(s->layer[end].x, rows, width), norm_of(m, m->weights, 2 * end), normed,
              mlk_f32(s->layer[end].rstd, rows));
  append_matmul(t, "logits", normed, mlk_transposed(table_of(m, m->weights)), mlk_f32(s->logits, rows, BYTES));
}

/* Gradients of y = x w^T with w [outputs, inputs]. */
static void append_dense_grads(tape *t, const char *of_weights, const char *of_input, mlk_tensor x, mlk_tensor w,
                               mlk_tensor dy, mlk_tensor dw, mlk_tensor dx) {
  append_matmul(t, of_weights, mlk_transposed(dy), x, dw);
  append_matmul(t, of_input, dy, w, dx);
}

/* What a share's gradients are written to: those of the table, and of the vector of norm `number` behind it. */
static mlk_tensor table_grad(const model *m, const share *s) { return mlk_f32(s->slot[m->layers], BYTES, m->width); }

static mlk_tensor norm_grad(const model *m, const share *s, int64_t number) {
  return mlk_f32(s->slot[m->layers] + (m->norms - m->table) + number * m->width, m->width);
}

/* dx of the norm before a branch, and what comes past the branch: m->dx = m->dx + that, or just that */
static void append_norm_grad(model *m, share *s, const float *x, const float *rstd, int64_t number, int past) {
  tape *t = &s->learn;
  const int64_t rows = m->train.rows;
  const mlk_tensor dnormed = mlk_f32(m->dnormed, rows, m->width), dx = mlk_f32(m->dx, rows, m->width);
  mlk_norm_grad_desc *d = &append(t, OP_NORM_GRAD, "norm, gradient")->as.norm_grad;
  d->kind = MLK_NORM_RMS;
  d->x = mlk_f32(x, rows, m->width), d->rstd = mlk_f32(rstd, rows), d->gamma = norm_of(m, m->weights, number);
  d->dy = dnormed, d->dx = past ? dnormed : dx, d->dgamma = norm_grad(m, s, number);
  if (past) append_map(t, "residual, gradient", MLK_ADD, dx, dnormed, dx);
}

static void record_mlp_grads(model *m, share *s, int64_t l) {
  const int64_t rows = m->train.rows, width = m->width, hidden = m->hidden;
  const float *w = m->weights, *g = s->slot[l];
  tape *t = &s->learn;
  const mlk_tensor pair = mlk_f32(m->train.layer[l].gate_up, rows, 2 * hidden);
  const mlk_tensor dpair = mlk_f32(m->dgate_up, rows, 2 * hidden), dproduct = mlk_f32(m->dproduct, rows, hidden);
  append_dense_grads(t, "down, weights' gradient", "down, input's gradient",
                     mlk_f32(m->train.layer[l].product, rows, hidden), matrix(m, w, l, W_DOWN),
                     mlk_f32(m->dx, rows, width), matrix_at(m, g, W_DOWN), dproduct);
  append_map(t, "silu(gate) up, gradient", MLK_MUL, dproduct, mlk_f32(m->train.layer[l].gate, rows, hidden),
             mlk_slice(dpair, 1, hidden, hidden));
  append_map(t, "silu(gate) up, gradient", MLK_MUL, dproduct, mlk_slice(pair, 1, hidden, hidden), dproduct);
  append_map(t, "silu(gate) up, gradient", MLK_ACT_GRAD, mlk_slice(pair, 1, 0, hidden), dproduct,
             mlk_slice(dpair, 1, 0, hidden))
      ->activation = MLK_SILU;
  append_dense_grads(t, "gate and up, weights' gradient", "gate and up, input's gradient",
                     mlk_f32(m->train.layer[l].normed2, rows, width), matrix(m, w, l, W_GATE_UP), dpair,
                     matrix_at(m, g, W_GATE_UP), mlk_f32(m->dnormed, rows, width));
  append_norm_grad(m, s, m->train.layer[l].middle, m->train.layer[l].rstd2, 2 * l + 1, 1);
}

static void record_attention_grads(model *m, share *sh, int64_t l) {
  const stream *s = &m->train;
  const int64_t rows = s->rows, width = m->width, heads = m->heads, kv_heads = m->kv_heads;
  const float *w = m->weights, *g = sh->slot[l], *qkv = s->layer[l].qkv;
  const mlk_tensor turned = heads_of(m, s, m->dqkv, 0, heads + kv_heads);
  const mlk_tensor dnormed = mlk_f32(m->dnormed, rows, width);
  tape *t = &sh->learn;
  mlk_attention_grad_desc *d;
  append_dense_grads(t, "attention's output, weights' gradient", "attention's output, input's gradient",
                     mlk_f32(s->layer[l].attended, rows, width), matrix(m, w, l, W_OUT), mlk_f32(m->dx, rows, width),
                     matrix_at(m, g, W_OUT), dnormed);
  d = &append(t, OP_ATTENTION_GRAD, "attention, gradient")->as.attention_grad;
  d->q = attention_heads(m, s, qkv, 0, heads), d->dq = attention_heads(m, s, m->dqkv, 0, heads);
  d->k = attention_heads(m, s, qkv, heads, kv_heads), d->dk = attention_heads(m, s, m->dqkv, heads, kv_heads);
  d->v = attention_heads(m, s, qkv, heads + kv_heads, kv_heads);
  d->dv = attention_heads(m, s, m->dqkv, heads + kv_heads, kv_heads);
  d->out = mlk_swapped(mlk_f32(s->layer[l].attended, s->batch, s->length, heads, m->head), 1, 2);
  d->dout = mlk_swapped(mlk_f32(m->dnormed, s->batch, s->length, heads, m->head), 1, 2);
  d->lse = mlk_f32(s->layer[l].lse, s->batch, heads, s->length);
  d->scores.causal = 1;
  append_rotary(t, "rotary, gradient", turned, turned, 0, 1);
  append_dense_grads(t, "q, k, v, weights' gradient", "q, k, v, input's gradient",
                     mlk_f32(s->layer[l].normed, rows, width), matrix(m, w, l, W_QKV),
                     mlk_f32(m->dqkv, rows, m->outputs[W_QKV]), matrix_at(m, g, W_QKV), dnormed);
  append_norm_grad(m, sh, s->layer[l].x, s->layer[l].rstd, 2 * l, 1);
}

static void append_reduce(tape *t, const char *name, mlk_reduce_op op, mlk_tensor x, mlk_tensor out) {
  mlk_reduce_desc *d = &append(t, OP_REDUCE, name)->as.reduce;
  d->op = op, d->x = x, d->out = out, d->axes = 1;
}

/* With the gradient, the logits become it. */
static void append_cross_entropy(model *m, tape *t, int with_gradient) {
  mlk_cross_entropy_desc *d = &append(t, OP_CROSS_ENTROPY, "cross-entropy")->as.cross_entropy;
  d->x = mlk_f32(m->train.logits, m->train.rows, BYTES), d->labels = mlk_i64(m->labels, m->train.rows);
  d->loss = mlk_f32(m->loss, m->train.rows);
  if (with_gradient) d->dx = d->x;
  d->scale = &m->per_row;
}

/* In a group: a bucket of this share is there for the others. */
static void append_publish(const model *m, share *s, int64_t bucket) {
  group_call *g;
  if (!m->group) return;
  g = &append(&s->learn, OP_PUBLISH, "publish")->as.group;
  g->group = m->group, g->share = m->first_share + (int)(s - m->share), g->bucket = bucket;
}

static void record_learning(model *m, share *s) {
  const int64_t rows = m->train.rows, width = m->width, end = m->layers;
  tape *t = &s->learn;
  mlk_embedding_grad_desc *d;
  int64_t l;
  append_cross_entropy(m, t, 1);
  append_reduce(t, "mean loss", MLK_MEAN, mlk_f32(m->loss, rows), mlk_f32(s->slot[end + 1] + LOSS, 1));
  append_publish(m, s, end + 1);
  append_dense_grads(t, "logits, table's gradient", "logits, input's gradient",
                     mlk_f32(m->train.layer[end].normed, rows, width), table_of(m, m->weights),
                     mlk_f32(m->train.logits, rows, BYTES), table_grad(m, s), mlk_f32(m->dnormed, rows, width));
  append_norm_grad(m, s, m->train.layer[end].x, m->train.layer[end].rstd, 2 * end, 0);
  for (l = end - 1; l >= 0; l--) {
    record_mlp_grads(m, s, l), record_attention_grads(m, s, l);
    append_publish(m, s, l);
  }
  d = &append(t, OP_EMBEDDING_GRAD, "table, gradient")->as.embedding_grad; /* one table for both ends: adds */
  d->ids = mlk_i64(m->train.ids, rows), d->dout = mlk_f32(m->dx, rows, width), d->dtable = table_grad(m, s);
  append_publish(m, s, end);
}

/* Where a bucket begins among the weights, and how many it has. */
static int64_t bucket_first(const model *m, int64_t bucket) {
  return bucket < m->layers ? bucket * m->first[LAYER_MATRICES] : m->table;
}

static int64_t bucket_elements(const model *m, int64_t bucket) {
  if (bucket > m->layers) return FIGURES;
  return bucket < m->layers ? m->first[LAYER_MATRICES] : m->count - m->table;
}

static group_call *append_group(model *m, op_kind kind, const char *name, int64_t bucket) {
  group_call *g = &append(&m->update, kind, name)->as.group;
  g->group = m->group, g->bucket = bucket, g->report = &m->report;
  return g;
}

/* The means of all buckets, in the order in which they are published. With zero and without clipping nobody needs more
   than the means of the own ranges; for the norm of the gradient all are needed. */
static void record_means(model *m) {
  int64_t l;
  append_group(m, OP_AVERAGE, "average", m->layers + 1)->whole = mlk_f32(m->figures, FIGURES);
  for (l = m->layers; l >= 0; l--) {
    const int64_t bucket = l ? l - 1 : m->layers, first = bucket_first(m, bucket);
    const int only_range = m->zero && !(m->clip > 0);
    group_call *g = append_group(m, only_range ? OP_REDUCE_RANGE : OP_AVERAGE, "average", bucket);
    g->mine = mlk_f32(m->grads + m->own[bucket].first, m->own[bucket].end - m->own[bucket].first);
    g->whole = mlk_f32(m->grads + first, bucket_elements(m, bucket));
  }
  append_group(m, OP_FINISH, "finish the step", 0);
}

/* Weights [first, end), whose moments begin at `moments` of m and v. Their number of the step and their learning rate
   are set before each step. */
static void append_adamw(model *m, int64_t first, int64_t end, int64_t moments) {
  const int64_t count = end - first;
  mlk_adamw_desc *d;
  if (count <= 0) return;
  d = &append(&m->update, OP_ADAMW, "AdamW")->as.adamw;
  d->param = mlk_f32(m->weights + first, count), d->grad = mlk_f32(m->grads + first, count);
  d->m = mlk_f32(m->m + moments, count), d->v = mlk_f32(m->v + moments, count);
  d->step = 1, d->weight_decay = first < m->norms ? WEIGHT_DECAY : 0, d->beta2 = BETA2; /* vectors do not decay */
}

/* ZeRO-1: AdamW for the own range of each bucket; then the others' weights come from where they were made. */
static void record_zero(model *m) {
  int64_t bucket, moments = 0;
  for (bucket = 0; bucket <= m->layers; bucket++) {
    const int64_t first = m->own[bucket].first, end = m->own[bucket].end;
    const int64_t norms = m->norms < first ? first : (m->norms < end ? m->norms : end);
    append_adamw(m, first, norms, moments), append_adamw(m, norms, end, moments + norms - first);
    moments += end - first;
  }
  for (bucket = 0; bucket <= m->layers; bucket++) {
    group_call *g = append_group(m, OP_GATHER, "gather", bucket);
    g->mine = mlk_f32(m->weights + m->own[bucket].first, m->own[bucket].end - m->own[bucket].first);
    g->whole = mlk_f32(m->weights + bucket_first(m, bucket), bucket_elements(m, bucket));
  }
}

static void record_update(model *m) {
  mlk_clip_norm_desc *clip;
  if (m->group) record_means(m);
  m->all_grads = mlk_f32(m->grads, m->count);
  if (m->clip > 0) {
    clip = &append(&m->update, OP_CLIP_NORM, "clip the gradient")->as.clip_norm;
    clip->grads = &m->all_grads, clip->count = 1, clip->max_norm = m->clip, clip->norm = &m->norm;
  }
  if (m->zero)
    record_zero(m);
  else
    append_adamw(m, 0, m->norms, 0), append_adamw(m, m->norms, m->count, m->norms);
}

static void record_judging(model *m) {
  append_cross_entropy(m, &m->judge, 0);
  append_reduce(&m->judge, "sum of losses", MLK_SUM, mlk_f32(m->loss, m->train.rows), mlk_f32(&m->sum_loss, 1));
}

/* The probabilities of the next byte, hot or cold. */
static void record_choosing(model *m) {
  const mlk_tensor logits = mlk_f32(m->write.logits, 1, BYTES), probability = mlk_f32(m->probability, 1, BYTES);
  mlk_softmax_desc *d;
  append_map(&m->choose, "temperature", MLK_SCALE, logits, absent(), probability)->alpha = &m->coldness;
  d = &append(&m->choose, OP_SOFTMAX, "softmax")->as.softmax;
  d->x = d->y = probability;
}

/* What memory is for: see print_bytes. */
enum { PARAMETERS, GRADIENTS, OPTIMISER, ACTIVATIONS, BACKWARD, BATCH, WRITING, KINDS };

/* A region of memory cut into arrays that begin at multiples of 64 bytes. base NULL: only counts. */
typedef struct region {
  char *base;
  uint64_t used, of[KINDS];
  int kind; /* of what is cut next */
} region;

static void *cut(region *r, int64_t elements, size_t size) {
  const uint64_t bytes = ((uint64_t)elements * size + 63) / 64 * 64;
  char *here = r->base ? r->base + r->used : NULL;
  r->used += bytes, r->of[r->kind] += bytes;
  return here;
}

static float *cut_floats(region *r, int64_t elements) { return (float *)cut(r, elements, sizeof(float)); }
static int64_t *cut_integers(region *r, int64_t elements) { return (int64_t *)cut(r, elements, sizeof(int64_t)); }

static void lay_out_stream(const model *m, stream *s, region *r, int with_cache) {
  const int64_t rows = s->rows, wide = rows * m->width, cache = m->context * m->kv_heads * m->head;
  int64_t l;
  r->kind = with_cache ? WRITING : BATCH;
  s->ids = cut_integers(r, rows);
  r->kind = with_cache ? WRITING : ACTIVATIONS;
  for (l = 0; l <= m->layers; l++) {
    s->layer[l].x = cut_floats(r, wide), s->layer[l].normed = cut_floats(r, wide);
    s->layer[l].rstd = cut_floats(r, rows);
    if (l == m->layers) break;
    s->layer[l].qkv = cut_floats(r, rows * m->outputs[W_QKV]);
    s->layer[l].attended = cut_floats(r, wide), s->layer[l].lse = cut_floats(r, rows * m->heads);
    s->layer[l].middle = cut_floats(r, wide), s->layer[l].normed2 = cut_floats(r, wide);
    s->layer[l].rstd2 = cut_floats(r, rows);
    s->layer[l].gate_up = cut_floats(r, rows * 2 * m->hidden);
    s->layer[l].gate = cut_floats(r, rows * m->hidden), s->layer[l].product = cut_floats(r, rows * m->hidden);
    if (with_cache) s->layer[l].keys = cut_floats(r, cache), s->layer[l].values = cut_floats(r, cache);
  }
  s->logits = cut_floats(r, rows * BYTES);
}

static void lay_out(model *m, region *r) {
  const int64_t rows = m->train.rows;
  r->kind = PARAMETERS, m->weights = cut_floats(r, m->count);
  r->kind = GRADIENTS, m->grads = cut_floats(r, m->count);
  r->kind = OPTIMISER;
  if (!m->zero) m->m = cut_floats(r, m->count), m->v = cut_floats(r, m->count);
  lay_out_stream(m, &m->train, r, 0), lay_out_stream(m, &m->write, r, 1);
  r->kind = BATCH, m->labels = cut_integers(r, rows), m->loss = cut_floats(r, rows);
  r->kind = BACKWARD;
  m->dx = cut_floats(r, rows * m->width), m->dnormed = cut_floats(r, rows * m->width);
  m->dqkv = cut_floats(r, rows * m->outputs[W_QKV]);
  m->dgate_up = cut_floats(r, rows * 2 * m->hidden), m->dproduct = cut_floats(r, rows * m->hidden);
  r->kind = WRITING, m->probability = cut_floats(r, BYTES);
}

/* Uniform, of variance scale / inputs: an integer of 24 bits times a float, so one rounding decides each weight. */
static void first_weights(float *weights, int64_t count, int64_t inputs, float scale, uint64_t state) {
  const float unit = sqrtf(3.0f * scale / (float)inputs) * (1.0f / 8388608.0f);
  int64_t i;
  for (i = 0; i < count; i++) weights[i] = (float)((int32_t)(draw(&state) >> 40) - 8388608) * unit;
}

/* What goes back into x is the smaller the more layers add to it (Radford et al., 2019). */
static void initialise(model *m, int64_t seed) {
  const float many = 1.0f / (float)(2 * m->layers);
  int64_t l, i;
  for (l = 0; l < m->layers; l++)
    for (i = 0; i < LAYER_MATRICES; i++)
      first_weights(m->weights + l * m->first[LAYER_MATRICES] + m->first[i], m->outputs[i] * m->inputs[i], m->inputs[i],
                    i == W_OUT || i == W_DOWN ? many : 1.0f, generator(seed, FOR_WEIGHTS, l * LAYER_MATRICES + i));
  first_weights(m->weights + m->table, BYTES * m->width, m->width, 0.25f, generator(seed, FOR_WEIGHTS, -1));
  for (i = m->norms; i < m->count; i++) m->weights[i] = 1;
}

static void measure_model(model *m, const int64_t *integer) {
  int i;
  m->layers = integer[OPT_LAYERS], m->width = integer[OPT_WIDTH], m->heads = integer[OPT_HEADS],
  m->kv_heads = integer[OPT_KV_HEADS];
  m->context = integer[OPT_CONTEXT], m->head = m->width / m->heads;
  m->hidden = (8 * m->width / 3 + 31) / 32 * 32; /* three matrices of this width cost as much as two of 4 W */
  m->inputs[W_QKV] = m->inputs[W_OUT] = m->inputs[W_GATE_UP] = m->outputs[W_OUT] = m->outputs[W_DOWN] = m->width;
  m->outputs[W_QKV] = (m->heads + 2 * m->kv_heads) * m->head;
  m->outputs[W_GATE_UP] = 2 * m->hidden, m->inputs[W_DOWN] = m->hidden;
  for (i = 0; i < LAYER_MATRICES; i++) m->first[i + 1] = m->first[i] + m->outputs[i] * m->inputs[i];
  m->table = m->layers * m->first[LAYER_MATRICES];
  m->norms = m->table + BYTES * m->width;
  m->count = m->norms + (2 * m->layers + 1) * m->width;
  m->shares = m->own_shares = (int)integer[OPT_SHARES], m->zero = (int)integer[OPT_ZERO];
  m->train.batch = integer[OPT_BATCH] / m->shares, m->train.length = m->context;
  m->train.rows = m->train.batch * m->train.length;
  m->write.batch = m->write.length = m->write.rows = m->write.known = 1;
  m->per_row = 1.0f / (float)m->train.rows;
}

static int model_open(model *m, const int64_t *integer) {
  region r;
  memset(&r, 0, sizeof r);
  measure_model(m, integer);
  lay_out(m, &r);
  m->memory = r.used < SIZE_MAX - 64 ? calloc((size_t)r.used + 64, 1) : NULL;
  if (!m->memory) {
    complain("the model: no memory for its %" PRIu64 " bytes; a smaller --batch, --context or --width needs less",
             r.used);
    return EXIT_RUN;
  }
  r.base = (char *)m->memory + (64 - (uintptr_t)m->memory % 64) % 64;
  r.used = 0;
  lay_out(m, &r);
  initialise(m, integer[OPT_SEED]);
  return 0;
}

/* A slot is the group's, or what learning reads. */
static float *slot_of(model *m, int number, int64_t bucket) {
  if (m->group) return (float *)mlk_group_slot(m->group, m->first_share + number, bucket).data;
  return bucket > m->layers ? m->figures : m->grads + bucket_first(m, bucket);
}

/* The tapes, once it is known which replica this is. */
static int record(model *m) {
  int number;
  int64_t bucket;
  m->share = (share *)calloc((size_t)m->own_shares, sizeof *m->share);
  if (!m->share) return fail_run("the model", "no memory for its tapes");
  record_forward(m, &m->train, &m->forward);
  for (number = 0; number < m->own_shares; number++) {
    for (bucket = 0; bucket < m->layers + 2; bucket++) m->share[number].slot[bucket] = slot_of(m, number, bucket);
    record_learning(m, &m->share[number]);
  }
  record_update(m), record_judging(m);
  record_forward(m, &m->write, &m->next), record_choosing(m);
  return 0;
}

/* FNV-1a over the bits of all weights in their order, little-endian whatever this machine is. */
static uint64_t hash_weights(const model *m) {
  uint64_t hash = FNV_START;
  int64_t i;
  for (i = 0; i < m->count; i++) {
    uint32_t bits;
    uint8_t bytes[4];
    memcpy(&bits, &m->weights[i], sizeof bits);
    bytes[0] = (uint8_t)bits, bytes[1] = (uint8_t)(bits >> 8);
    bytes[2] = (uint8_t)(bits >> 16), bytes[3] = (uint8_t)(bits >> 24);
    hash = fnv1a(hash, bytes, 4);
  }
  return hash;
}

/* ---- training ---------------------------------------------------------------------------------------------------- */

typedef struct training {
  const corpus *text;
  const options *opt;
  mlk_context *ctx;
  model net;
  int64_t total, stop, step, first_step; /* steps of the schedule; of this run; done; and when this program started */
  float *rate, *loss; /* [total] each step's learning rate, and mean loss; of steps before first_step 0 */
  float last_loss;    /* of the last step, whichever program made it */
  double held_loss;   /* nats per byte of the text held out, after held_step steps */
  int64_t held_step;  /* -1: not measured */
  uint64_t sample_hash;
  int64_t learned; /* bytes, by all replicas together, in the steps of this program */
  int stopped;     /* all replicas end after this step */
  uint8_t *packed; /* the checkpoint to continue from; NULL: none */
  int rank;        /* of this replica; 0 when there is one */
  long parent;     /* the process that made this one, when replicas are processes; else 0 */
  uint32_t lost;   /* bit r: replica r was lost */
  double started, saved, spoken, learning_seconds;
} training;

/* Does this replica print and write files? The lowest of those that took part in the last step. */
static int leads(const training *t) {
  return !t->net.group || !(t->net.report.members & ((UINT32_C(1) << t->rank) - 1));
}

static volatile sig_atomic_t interrupted = 0;

/* The second signal ends the program at once: checkpoints stand that. */
static void interrupt(int number) {
  interrupted = 1;
  signal(number, SIG_DFL);
}

/* The learning rate rises over the first twentieth of the steps and falls along half a cosine: (1 + cos) / 2 of an
   angle from 0 to pi. The cosines are the library's, the same on every machine: mlk_rotary turns (1, 0). */
static int make_schedule(training *t, float peak) {
  const int64_t rise = t->total / 20 + 1, fall = t->total - rise;
  const float angle = 3.14159265f / (float)(fall > 0 ? fall : 1);
  float *turned = (float *)calloc((size_t)fall * 2 + 2, sizeof(float));
  mlk_rotary_desc d;
  mlk_status status;
  int64_t i;
  if (!turned) return fail_run("the schedule", "no memory for it");
  for (i = 0; i < fall; i++) turned[2 * i] = 1;
  memset(&d, 0, sizeof d);
  d.x = d.y = mlk_f32(turned, fall, 1, 2), d.frequencies = mlk_f32(&angle, 1);
  status = mlk_rotary(t->ctx, &d);
  for (i = 0; i < rise && i < t->total; i++) t->rate[i] = peak * ((float)(i + 1) / (float)rise);
  for (i = 0; i < fall; i++) t->rate[rise + i] = (1.0f + turned[2 * i]) * (0.5f * peak);
  free(turned);
  return status == MLK_OK ? 0 : library_failed(t->ctx, "the schedule", status);
}

/* Sequence `row` of the training stream: the bytes of text from `first` on, each followed by the next. What would need
   a byte at `end` or after it does not count. */
static void fill_row(model *m, int64_t row, const uint8_t *bytes, int64_t first, int64_t end) {
  int64_t *ids = m->train.ids + row * m->context, *labels = m->labels + row * m->context, i;
  for (i = 0; i < m->context; i++) {
    const int inside = first + i + 1 < end;
    ids[i] = inside ? bytes[first + i] : 0;
    labels[i] = inside ? bytes[first + i + 1] : -1;
  }
}

/* ---- a step of a group of replicas ------------------------------------------------------------------------------- */

static int count_bits(uint32_t bits) {
  int count = 0;
  for (; bits; bits &= bits - 1) count++;
  return count;
}

/* Of the last step; without a group all of it is one share. */
static int shares_learned(const model *m) { return m->group ? count_bits(m->report.shares) : 1; }

/* A step that failed since a replica was lost, or this one left out. */
static int tell_loss(const training *t) {
  complain("replica %d ends in step %" PRId64 " of the training: %s%s", t->rank, t->step + 1, mlk_last_error(t->ctx),
           t->opt->checkpoint ? "; the last checkpoint is whole" : "");
  return EXIT_RUN;
}

/* ZeRO-1: the own range of each bucket, and room for its moments. */
static int open_moments(training *t) {
  model *m = &t->net;
  int64_t bucket, from, to, count = 0;
  mlk_status status = MLK_OK;
  for (bucket = 0; bucket <= m->layers && status == MLK_OK; bucket++) {
    status = mlk_group_range(m->group, bucket, &from, &to);
    m->own[bucket].first = bucket_first(m, bucket) + from, m->own[bucket].end = bucket_first(m, bucket) + to;
    count += to - from;
  }
  if (status != MLK_OK) return library_failed(t->ctx, "the own ranges", status);
  m->moments = calloc((size_t)count * 2 + 1, sizeof(float));
  if (!m->moments) return fail_run("the model", "no memory for its moments");
  m->m = (float *)m->moments, m->v = m->m + count;
  return 0;
}

/* Waits until all replicas have come. */
static int join_group(training *t, const mlk_group_desc *desc, uint64_t *workspace) {
  model *m = &t->net;
  mlk_group_plan plan;
  mlk_status status = mlk_group_get_plan(t->ctx, desc, &plan);
  if (status == MLK_OK) status = mlk_group_open(t->ctx, &m->group, desc);
  if (status == MLK_ERR_REPLICA) return tell_loss(t);
  if (status != MLK_OK) return library_failed(t->ctx, "joining the group", status);
  *workspace = plan.workspace_bytes;
  m->first_share = desc->rank * desc->shares / desc->ranks;
  m->own_shares = (desc->rank + 1) * desc->shares / desc->ranks - m->first_share;
  m->report.members = (UINT32_C(1) << desc->ranks) - 1; /* until the first step tells */
  return m->zero ? open_moments(t) : 0;
}

/* The lowest replica that is left tells who is not. */
static void say_losses(training *t) {
  const mlk_group_report *r = &t->net.report;
  const uint32_t lost = r->lost & ~t->lost;
  int rank;
  t->lost = (t->lost | r->lost) & ~r->members;
  for (rank = 0; rank < t->opt->replicas && leads(t); rank++)
    if (lost >> rank & 1)
      complain("replica %d was lost in step %" PRId64 "; %d of %d go on without its shares", rank, t->step + 1,
               count_bits(r->members), t->opt->replicas);
}

/* Waits for the others. One who comes late, when the group was already on its way, gets its state from another. */
static int begin_step(training *t) {
  model *m = &t->net;
  mlk_tensor state[6];
  mlk_status status = mlk_group_begin(m->group, NULL, &m->report);
  if (status == MLK_OK) say_losses(t);
  if (status == MLK_OK && m->report.joined && !m->zero) {
    state[0] = mlk_f32(m->weights, m->count), state[1] = mlk_f32(m->m, m->count), state[2] = mlk_f32(m->v, m->count);
    state[3] = mlk_f32(t->loss, t->total), state[4] = mlk_f32(&t->last_loss, 1), state[5] = mlk_i64(&t->step, 1);
    status = mlk_group_sync(m->group, state, 6);
  }
  return status == MLK_OK ? 0 : library_failed(t->ctx, "beginning a step", status);
}

/* ZeRO-1: all moments of one kind from the replicas that have them. It takes a step of the group in which nothing is
   averaged: what the last one published is published again. */
static int gather_moments(training *t, const float *own, float *whole) {
  model *m = &t->net;
  mlk_status status = mlk_group_begin(m->group, NULL, &m->report);
  int64_t bucket;
  int i;
  for (i = 0; i < m->own_shares; i++)
    for (bucket = 0; bucket < m->layers + 2 && status == MLK_OK; bucket++)
      status = mlk_group_publish(m->group, m->first_share + i, bucket, NULL, 0);
  if (status == MLK_OK) status = mlk_group_finish(m->group, &m->report);
  for (bucket = 0; bucket <= m->layers && status == MLK_OK; bucket++) {
    const int64_t count = m->own[bucket].end - m->own[bucket].first;
    const mlk_tensor mine = mlk_f32(own, count);
    const mlk_tensor all = mlk_f32(whole + bucket_first(m, bucket), bucket_elements(m, bucket));
    status = mlk_group_gather(m->group, bucket, &mine, 1, &all, 1);
    own += count;
  }
  return status == MLK_OK ? 0 : library_failed(t->ctx, "gathering moments", status);
}

/* A replica does not outlive the process that made it: who would wait for it? */
static int is_orphan(const training *t) {
#if defined(_WIN32)
  (void)t;
  return 0;
#else
  return t->parent && (long)getppid() != t->parent;
#endif
}

/* The one who writes it decides, and tells the others with its gradients. */
static int is_time_to_save(const training *t) {
  const int64_t every = t->opt->integer[OPT_SAVE_EVERY];
  if (!t->opt->checkpoint || !leads(t)) return 0;
  return every ? (t->step + 1) % every == 0 : now_seconds() - t->saved > SAVE_SECONDS;
}

/* ---- learning and judging ---------------------------------------------------------------------------------------- */

/* The sequences of a share: those of the whole step are drawn, whoever learns from them. */
static void fill_share(training *t, int number) {
  model *m = &t->net;
  const int64_t places = t->text->learn_bytes - m->context; /* where a sequence and the byte after it fit */
  const int64_t first = number * m->train.batch;
  uint64_t state = generator(t->opt->integer[OPT_SEED], FOR_PLACES, t->step);
  int64_t row;
  for (row = 0; row < first; row++) draw(&state);
  for (row = 0; row < m->train.batch; row++)
    fill_row(m, row, t->text->learn, (int64_t)(draw(&state) % (uint64_t)places), t->text->learn_bytes);
}

static int learn_share(training *t, int number, int save) {
  model *m = &t->net;
  share *s = &m->share[number];
  int code;
  fill_share(t, m->first_share + number);
  s->slot[m->layers + 1][STOP] = interrupted ? 1 : 0;
  s->slot[m->layers + 1][SAVE] = save ? 1 : 0;
  code = run_tape(t->ctx, &m->forward);
  return code ? code : run_tape(t->ctx, &s->learn);
}

static int update(training *t) {
  model *m = &t->net;
  int i;
  for (i = 0; i < m->update.count; i++) {
    operation *op = &m->update.op[i];
    if (op->kind == OP_ADAMW) op->as.adamw.step = t->step + 1, op->as.adamw.lr = t->rate[t->step];
  }
  return run_tape(t->ctx, &m->update);
}

static int learn_step(training *t) {
  model *m = &t->net;
  int code = m->group ? begin_step(t) : 0, i;
  const int save = is_time_to_save(t);
  if (is_orphan(t)) interrupted = 1;
  for (i = 0; i < m->own_shares && !code; i++) code = learn_share(t, i, save);
  if (!code) code = update(t);
  if (code) return code;
  if (m->group) say_losses(t);
  if (!(m->norm < INFINITY) || !(m->figures[LOSS] < INFINITY))
    return leads(t)
               ? fail_run("training", "the loss or its gradient is no longer a finite number; a smaller --lr may help")
               : EXIT_RUN;
  t->last_loss = t->loss[t->step++] = m->figures[LOSS];
  t->learned += shares_learned(m) * m->train.rows;
  t->stopped = m->figures[STOP] > 0;
  return 0;
}

/* The mean loss over the text held out, cut into sequences one after another. Every byte but the first counts once. */
static int judge(training *t) {
  model *m = &t->net;
  const int64_t end = t->text->held_bytes;
  double sum = 0;
  int64_t first, row;
  for (first = 0; first + 1 < end; first += m->train.rows) {
    int code;
    for (row = 0; row < m->train.batch; row++) fill_row(m, row, t->text->held, first + row * m->context, end);
    code = run_tape(t->ctx, &m->forward);
    if (!code) code = run_tape(t->ctx, &m->judge);
    if (code) return code;
    sum += (double)m->sum_loss;
  }
  t->held_loss = sum / (double)(end - 1), t->held_step = t->step;
  return 0;
}

/* ---- checkpoint -----------------------------------------------------------------------------------------------------

   Little-endian. Magic, then integers of 8 bytes: bytes of the whole file, fingerprint of the text, the settings in
   their order, bits of the learning rate and of the highest norm, number of weights, step. Then floats of 4 bytes:
   weights, m, v, the loss of the last step. Last FNV-1a of all that, 8 bytes.
   Written to another name, synced, renamed, and the folder synced: whenever the program or the machine stops, the file
   holds the old state or the new one. */

static const char CHECKPOINT_MAGIC[9] = "MLKGPT02";
enum {
  AT_BYTES,
  AT_FINGERPRINT,
  AT_SETTINGS,
  AT_RATE = AT_SETTINGS + SETTINGS,
  AT_CLIP,
  AT_WEIGHTS,
  AT_STEP,
  CHECKPOINT_INTEGERS,
  CHECKPOINT_HEADER = 8 + 8 * CHECKPOINT_INTEGERS
};

static uint8_t *put_integer(uint8_t *to, uint64_t value, int bytes) {
  int i;
  for (i = 0; i < bytes; i++) *to++ = (uint8_t)(value >> (8 * i));
  return to;
}

static uint64_t get_integer(const uint8_t *from, int bytes) {
  uint64_t value = 0;
  int i;
  for (i = 0; i < bytes; i++) value |= (uint64_t)from[i] << (8 * i);
  return value;
}

static uint8_t *put_floats(uint8_t *to, const float *from, int64_t count) {
  int64_t i;
  for (i = 0; i < count; i++) {
    uint32_t bits;
    memcpy(&bits, &from[i], sizeof bits);
    to = put_integer(to, bits, 4);
  }
  return to;
}

static const uint8_t *get_floats(const uint8_t *from, float *to, int64_t count) {
  int64_t i;
  for (i = 0; i < count; i++, from += 4) {
    const uint32_t bits = (uint32_t)get_integer(from, 4);
    memcpy(&to[i], &bits, sizeof bits);
  }
  return from;
}

static int64_t checkpoint_bytes(const training *t) { return CHECKPOINT_HEADER + 4 * (3 * t->net.count + 1) + 8; }

static uint64_t float_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

/* moment1 and moment2: m and v of all weights */
static uint8_t *pack_checkpoint(const training *t, const float *moment1, const float *moment2, int64_t bytes) {
  uint8_t *file = (uint8_t *)malloc((size_t)bytes), *to = file;
  int i;
  if (!file) return NULL;
  memcpy(to, CHECKPOINT_MAGIC, 8), to += 8;
  to = put_integer(to, (uint64_t)bytes, 8);
  to = put_integer(to, t->text->fingerprint, 8);
  for (i = 0; i < SETTINGS; i++) to = put_integer(to, (uint64_t)t->opt->integer[i], 8);
  to = put_integer(to, float_bits(t->opt->rate), 8);
  to = put_integer(to, float_bits(t->opt->clip), 8);
  to = put_integer(to, (uint64_t)t->net.count, 8);
  to = put_integer(to, (uint64_t)t->step, 8);
  to = put_floats(to, t->net.weights, t->net.count);
  to = put_floats(to, moment1, t->net.count);
  to = put_floats(to, moment2, t->net.count);
  to = put_floats(to, &t->last_loss, 1);
  put_integer(to, fnv1a(FNV_START, file, bytes - 8), 8);
  return file;
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
  const char *slash = strrchr(to, '/');
  char folder[MAX_PATH_BYTES];
  int descriptor, bad;
  snprintf(folder, sizeof folder, "%.*s", slash ? (int)(slash - to) + 1 : 1, slash ? to : ".");
  if (rename(from, to) != 0) return 1;
  descriptor = open(folder, O_RDONLY);
  if (descriptor < 0) return 1;
  bad = fsync(descriptor) != 0 && errno != EINVAL; /* EINVAL: this file system does not sync folders */
  return close(descriptor) != 0 || bad;
#endif
}

static int write_checkpoint(training *t, const float *moment1, const float *moment2) {
  const int64_t bytes = checkpoint_bytes(t);
  const char *path = t->opt->checkpoint;
  char temporary[MAX_PATH_BYTES];
  uint8_t *packed;
  FILE *file;
  int bad;
  snprintf(temporary, sizeof temporary, "%s.new", path); /* fits: see parse_value */
  packed = pack_checkpoint(t, moment1, moment2, bytes);
  if (!packed) return fail_run(path, "no memory to write it");
  file = fopen(temporary, "wb");
  bad = !file || fwrite(packed, 1, (size_t)bytes, file) != (size_t)bytes || sync_file(file);
  bad = bad ? errno : 0;
  if (file && fclose(file) != 0 && !bad) bad = errno;
  free(packed);
  if (!bad && replace_file(temporary, path)) bad = errno;
  if (bad) {
    complain("%s cannot be written: %s; the checkpoint before it stays as it was", temporary, strerror(bad));
    return EXIT_RUN;
  }
  t->saved = now_seconds();
  return 0;
}

/* All replicas call it after the same step: with --zero the moments come together for it. */
static int save_checkpoint(training *t) {
  model *m = &t->net;
  float *whole = NULL;
  int code = 0;
  if (!t->opt->checkpoint) return 0;
  if (m->zero) {
    whole = (float *)malloc((size_t)m->count * 2 * sizeof *whole);
    code = whole ? gather_moments(t, m->m, whole) : fail_run("a checkpoint", "no memory for all moments");
    if (!code) code = gather_moments(t, m->v, whole + m->count);
  }
  if (!code && leads(t)) code = write_checkpoint(t, m->zero ? whole : m->m, m->zero ? whole + m->count : m->v);
  free(whole);
  return code;
}

/* Was it made for this text with these settings? value: the integers of a file whose checksum is right. */
static int check_settings(const training *t, const char *path, const uint64_t *value) {
  int i;
  if (value[AT_FINGERPRINT] != t->text->fingerprint)
    return complain("%s belongs to another text; --fresh begins anew", path);
  for (i = 0; i < SETTINGS; i++)
    if (value[AT_SETTINGS + i] != (uint64_t)t->opt->integer[i])
      return complain("%s was made with %s %" PRId64 ", this is %s %" PRId64 "; --fresh begins anew", path,
                      integer_options[i].option, (int64_t)value[AT_SETTINGS + i], integer_options[i].option,
                      t->opt->integer[i]);
  if (value[AT_RATE] != float_bits(t->opt->rate))
    return complain("%s was made with another --lr than %g; --fresh begins anew", path, (double)t->opt->rate);
  if (value[AT_CLIP] != float_bits(t->opt->clip))
    return complain("%s was made with another --clip than %g; --fresh begins anew", path, (double)t->opt->clip);
  return 0;
}

/* Everything that can be wrong with the bytes of a file named path. */
static int check_checkpoint(const training *t, const char *path, const uint8_t *file, int64_t bytes) {
  uint64_t value[CHECKPOINT_INTEGERS];
  int i, code;
  if (bytes < CHECKPOINT_HEADER + 8 || memcmp(file, CHECKPOINT_MAGIC, 8) != 0)
    return complain("%s is no checkpoint of this program: it does not begin with %s; --fresh begins anew", path,
                    CHECKPOINT_MAGIC);
  for (i = 0; i < CHECKPOINT_INTEGERS; i++) value[i] = get_integer(file + 8 + 8 * i, 8);
  if (bytes <= checkpoint_bytes(t) && value[AT_BYTES] != (uint64_t)bytes)
    return complain("%s is damaged: it has %" PRId64 " bytes and says %" PRIu64 "; --fresh begins anew", path, bytes,
                    value[AT_BYTES]);
  if (bytes <= checkpoint_bytes(t) && get_integer(file + bytes - 8, 8) != fnv1a(FNV_START, file, bytes - 8))
    return complain("%s is damaged: its checksum does not fit its %" PRId64 " bytes; --fresh begins anew", path, bytes);
  code = check_settings(t, path, value);
  if (code) return code;
  if (bytes != checkpoint_bytes(t) || value[AT_WEIGHTS] != (uint64_t)t->net.count ||
      value[AT_STEP] > (uint64_t)t->total)
    return complain("%s has %" PRIu64 " weights, step %" PRIu64 " and %" PRId64
                    " bytes, which do not go together; --fresh begins anew",
                    path, value[AT_WEIGHTS], value[AT_STEP], bytes);
  return 0;
}

/* Continues where the bytes of a file that passed check_checkpoint stand. Of moments that are split over the replicas
   each takes its own. */
static void take_checkpoint(training *t, const uint8_t *file) {
  model *m = &t->net;
  const uint8_t *from = file + CHECKPOINT_HEADER, *moment1, *moment2;
  int64_t bucket, at = 0;
  t->step = t->first_step = (int64_t)get_integer(file + 8 + 8 * AT_STEP, 8);
  moment1 = get_floats(from, m->weights, m->count);
  moment2 = moment1 + 4 * m->count;
  get_floats(moment2 + 4 * m->count, &t->last_loss, 1);
  if (!m->zero) get_floats(moment1, m->m, m->count), get_floats(moment2, m->v, m->count);
  for (bucket = 0; m->zero && bucket <= m->layers; bucket++) {
    const int64_t first = m->own[bucket].first, count = m->own[bucket].end - first;
    get_floats(moment1 + 4 * first, m->m + at, count), get_floats(moment2 + 4 * first, m->v + at, count);
    at += count;
  }
}

/* The checkpoint, if there is one, and if nothing is wrong with it. */
static int read_checkpoint(training *t) {
  const int64_t most = checkpoint_bytes(t) + 1;
  const char *path = t->opt->checkpoint;
  int64_t bytes = 0;
  FILE *file;
  if (!path || t->opt->fresh) return 0;
  file = fopen(path, "rb");
  if (!file && errno == ENOENT) return 0;
  if (!file) return complain("%s cannot be opened: %s", path, strerror(errno));
  t->packed = (uint8_t *)malloc((size_t)most);
  if (t->packed) bytes = (int64_t)fread(t->packed, 1, (size_t)most, file);
  fclose(file);
  if (!t->packed) return fail_run(path, "no memory to read it");
  return check_checkpoint(t, path, t->packed, bytes);
}

/* ---- the line of progress, and the loop -------------------------------------------------------------------------- */

/* The line so far: loss is the mean over the last twentieth of the steps, as far as this program made them. */
static void say_progress(training *t, const char *start) {
  const int64_t here = t->step - t->first_step, window = t->total / 20 + 1, mean = here < window ? here : window;
  const double now = now_seconds(), left = (now - t->started) / (double)here * (double)(t->stop - t->step);
  double loss = 0;
  char rate[32];
  int64_t i;
  for (i = t->step - mean; i < t->step; i++) loss += (double)t->loss[i] / (double)mean;
  printf("%sstep %" PRId64 "/%" PRId64 "  %s tokens/s  %.3f bits per byte  ", start, t->step, t->stop,
         grouped((int64_t)((double)t->learned / t->learning_seconds), rate), bits_of(loss));
  printf(left < 99.5 ? "%.0f s left" : "%.1f min left", left < 99.5 ? left : left / 60);
  t->spoken = now;
}

/* On a terminal one line that is written over and over, else a line now and then. */
static void progress(training *t) {
  const int terminal = on_terminal();
  const double pause = terminal ? TERMINAL_LINE_SECONDS : PLAIN_LINE_SECONDS;
  if (t->opt->hash_only || !leads(t) || now_seconds() - t->spoken < pause) return;
  say_progress(t, terminal ? "\r" : "");
  fputs(terminal ? "\033[K" : "\n", stdout);
  fflush(stdout);
}

/* A line that stays, with the loss on the text held out: at ten steps of the schedule. Every replica measures it: it
   could only wait meanwhile. */
static int report(training *t) {
  int code;
  if (t->opt->hash_only || t->step * REPORTS / t->total == (t->step - 1) * REPORTS / t->total) return 0;
  code = judge(t);
  if (code || !leads(t)) return code;
  say_progress(t, on_terminal() ? "\r" : "");
  printf("   held out: %.3f%s\n", bits_of(t->held_loss), on_terminal() ? "\033[K" : "");
  fflush(stdout);
  return 0;
}

static int train(training *t) {
  int code = 0;
  t->started = t->saved = t->spoken = now_seconds();
  while (code == 0 && t->step < t->stop && !t->stopped) {
    const double before = now_seconds();
    code = learn_step(t);
    t->learning_seconds += now_seconds() - before;
    if (!code) code = report(t);
    if (!code && t->net.figures[SAVE] > 0 && t->step < t->stop && !t->stopped) code = save_checkpoint(t);
    if (!code) progress(t);
  }
  if (!t->opt->hash_only && leads(t) && on_terminal()) fputs("\r\033[K", stdout);
  if (code == 0 && t->step > t->first_step) code = save_checkpoint(t);
  return code == LOST ? tell_loss(t) : code;
}

/* ---- writing text ------------------------------------------------------------------------------------------------ */

/* Logits of what follows this byte at this position, given the cache of the positions before it. The entries that name
   the position are made anew; no plan depends on it. */
static int next_logits(training *t, uint8_t byte, int64_t position) {
  stream *s = &t->net.write;
  s->ids[0] = byte;
  s->position = position, s->known = position + 1;
  record_forward(&t->net, s, &t->net.next);
  return run_tape(t->ctx, &t->net.next);
}

/* One byte at a time with the cache must give the bits of all bytes at once. */
static int check_cache(training *t) {
  model *m = &t->net;
  int64_t row, i;
  int code;
  for (row = 0; row < m->train.batch; row++)
    fill_row(m, row, t->text->learn, row * (t->text->learn_bytes - m->context - 1) / m->train.batch,
             t->text->learn_bytes);
  code = run_tape(t->ctx, &m->forward);
  for (i = 0; i < m->context && !code; i++) {
    code = next_logits(t, (uint8_t)m->train.ids[i], i);
    if (code || memcmp(m->write.logits, m->train.logits + i * BYTES, BYTES * sizeof(float)) == 0) continue;
    complain("byte %" PRId64 ": the logits with the cache are not those of the whole sequence, to the bit", i);
    return EXIT_RUN;
  }
  return code;
}

/* A byte drawn with the probabilities that the logits give it, or the likeliest. */
static int pick_byte(training *t, uint64_t *state, uint8_t *byte) {
  model *m = &t->net;
  uint64_t weight[BYTES], sum = 0, place;
  int i, best = 0;
  int code;
  for (i = 1; i < BYTES; i++)
    if (m->write.logits[i] > m->write.logits[best]) best = i;
  *byte = (uint8_t)best;
  if (!(t->opt->temperature > 0)) return 0;
  code = run_tape(t->ctx, &m->choose);
  if (code) return code;
  for (i = 0; i < BYTES; i++) { /* probabilities in units of 2^-40: exact but for the last, which is cut */
    weight[i] = m->probability[i] > 0 ? (uint64_t)(m->probability[i] * 1099511627776.0f) : 0;
    sum += weight[i];
  }
  if (sum == 0) return fail_run("writing", "the logits are no numbers");
  place = draw(state) % sum;
  for (i = 0; place >= weight[i]; i++) place -= weight[i];
  *byte = (uint8_t)i;
  return 0;
}

/* Control characters could do things to a terminal. */
static void put_byte(uint8_t byte) {
  fputc(byte >= 32 ? (byte == 127 ? '.' : byte) : (byte == '\n' ? '\n' : '.'), stdout);
}

/* Continues the prompt. When the cache is full, it begins anew with the second half of what was in it. */
static int write_bytes(training *t, uint8_t *bytes, int64_t prompt, int64_t total) {
  const int64_t context = t->net.context;
  uint64_t state = generator(t->opt->integer[OPT_SEED], FOR_SAMPLE, 0);
  int64_t i, position = 0;
  for (i = 0; i < total && !interrupted; i++) {
    int code = i < prompt ? 0 : pick_byte(t, &state, &bytes[i]);
    if (!code && position == context)
      for (position = 0; position < context / 2 && !code; position++)
        code = next_logits(t, bytes[i - context / 2 + position], position);
    if (!code) code = next_logits(t, bytes[i], position++);
    if (code) return code;
    if (!t->opt->hash_only) put_byte(bytes[i]), fflush(stdout);
  }
  t->sample_hash = fnv1a(FNV_START, bytes, i);
  return 0;
}

static int write_sample(training *t) {
  const char *prompt = t->opt->prompt && *t->opt->prompt ? t->opt->prompt : (t->opt->demo ? "This is the " : "\n");
  const int64_t given = (int64_t)strlen(prompt), total = given + t->opt->integer[OPT_SAMPLE];
  uint8_t *bytes;
  double before;
  char rate[32];
  int code = check_cache(t);
  if (code || t->opt->integer[OPT_SAMPLE] == 0) return code;
  bytes = (uint8_t *)malloc((size_t)total);
  if (!bytes) return fail_run("the sample", "no memory for it");
  memcpy(bytes, prompt, (size_t)given);
  before = now_seconds();
  if (!t->opt->hash_only) puts("");
  code = write_bytes(t, bytes, given, total);
  if (!code && !t->opt->hash_only)
    printf("\n\nwritten    %s bytes/s with a cache of keys and values, whose logits are those of whole sequences to "
           "the bit\n",
           grouped((int64_t)((double)total / (now_seconds() - before)), rate));
  free(bytes);
  return code;
}

/* ---- what is printed --------------------------------------------------------------------------------------------- */

/* Of steps in which so many shares were learned, the updates that all replicas make counted once. */
static double flops_of_steps(const model *m, int64_t steps, int64_t shares) {
  return (double)(flops_of(&m->forward) + flops_of(&m->share->learn)) * (double)shares +
         (double)flops_of(&m->update) * (double)steps;
}

static int64_t own_weights(const model *m) {
  int64_t count = 0, bucket;
  for (bucket = 0; bucket <= m->layers; bucket++) count += m->own[bucket].end - m->own[bucket].first;
  return count;
}

static void print_group(const training *t) {
  const model *m = &t->net;
  const int replicas = t->opt->replicas;
  char a[32], b[32];
  printf("replicas   %d %s, %d share%s of %" PRId64 " x %" PRId64 " bytes, gradients in %" PRId64 " buckets\n",
         replicas,
         t->opt->processes ? (replicas == 1 ? "process" : "processes") : (replicas == 1 ? "thread" : "threads"),
         m->shares, m->shares == 1 ? "" : "s", m->train.batch, m->context, m->layers + 1);
  if (m->zero)
    printf("optimiser  %s bytes of moments in each replica, %s in all (ZeRO-1)\n", grouped(own_weights(m) * 8, a),
           grouped(m->count * 8, b));
}

static void print_head(const training *t, const mlk_info *info) {
  const model *m = &t->net;
  char a[32], b[32];
  printf("text       %s: %d file%s, %s bytes to learn from, %s held out\n", t->text->name, t->text->files,
         t->text->files == 1 ? "" : "s", grouped(t->text->learn_bytes, a), grouped(t->text->held_bytes, b));
  printf("model      %" PRId64 " layers of width %" PRId64 ", %" PRId64 " query and %" PRId64 " key heads of %" PRId64
         ", context %" PRId64 ": %s weights\n",
         m->layers, m->width, m->heads, m->kv_heads, m->head, m->context, grouped(m->count, a));
  printf("step       %" PRId64 " x %" PRId64 " bytes forward and back: %.3g GFLOP, %s bytes of workspace reserved\n",
         m->train.batch * m->shares, m->context, flops_of_steps(m, 1, m->shares) / 1e9,
         grouped((int64_t)info->workspace_bytes, b));
  printf("device     %s, instruction set %s, %d thread%s%s, %.1f GFLOP/s measured peak\n", info->backend, info->isa,
         info->threads, info->threads == 1 ? "" : "s", info->openmp ? " (OpenMP)" : "", info->ceilings.flops_all / 1e9);
  if (m->group) print_group(t);
  if (t->step) printf("checkpoint continues after step %" PRId64 "\n", t->step);
  fflush(stdout);
}

/* The entries of the three training tapes, those of one name together: time of one share and an update. ("forward"
   runs for the text held out too, so times are means of the calls.) */
static void print_profile(const training *t, const mlk_info *info) {
  const tape *part[3];
  double all = 0;
  int i, j, k;
  part[0] = &t->net.forward, part[1] = &t->net.share->learn, part[2] = &t->net.update;
  for (i = 0; i < 3; i++)
    for (j = 0; j < part[i]->count; j++) all += part[i]->op[j].seconds / (double)part[i]->op[j].calls;
  printf("\n%-38s calls       ms   share  GFLOP/s  of peak    GB/s\n", "call");
  for (i = 0; i < 3; i++)
    for (j = 0; j < part[i]->count; j++) {
      const char *name = part[i]->op[j].name;
      double seconds = 0, flops = 0, bytes = 0;
      int calls = 0;
      for (k = 0; k < j && strcmp(part[i]->op[k].name, name) != 0; k++) continue;
      if (k < j) continue;
      for (; k < part[i]->count; k++) {
        const operation *op = &part[i]->op[k];
        if (strcmp(op->name, name) != 0) continue;
        seconds += op->seconds / (double)op->calls, calls++;
        flops += (double)op->plan.flops, bytes += (double)op->plan.bytes;
      }
      printf("%-38s %5d %8.3f  %4.1f %%  %7.1f  %5.1f %%  %6.1f\n", name, calls, seconds * 1e3, 100 * seconds / all,
             flops / seconds / 1e9, 100 * flops / seconds / info->ceilings.flops_all, bytes / seconds / 1e9);
    }
}

/* The hash that this source file promises of `--demo` as it is. */
static const uint64_t DEMO_HASH = UINT64_C(0x996bf8a12a29e0fa);

static int is_pinned(const training *t) {
  int i;
  for (i = 0; i < SETTINGS; i++)
    if (t->opt->integer[i] != integer_options[i].demo) return 0;
  return t->opt->demo && t->opt->rate == DEFAULT_RATE && t->opt->clip == DEFAULT_CLIP && t->step == t->total;
}

static void print_speed(const training *t, const mlk_info *info) {
  const double flops = flops_of_steps(&t->net, t->step - t->first_step, t->learned / t->net.train.rows);
  const double peak = info->ceilings.flops_all * (double)t->opt->replicas;
  char text[32];
  printf("speed      %s tokens/s   %.1f GFLOP/s = %.0f %% of the measured peak   (%.1f s of training)\n",
         grouped((int64_t)((double)t->learned / t->learning_seconds), text), flops / t->learning_seconds / 1e9,
         100 * flops / t->learning_seconds / peak, t->learning_seconds);
}

static void print_line(const training *t, uint64_t hash) {
  const model *m = &t->net;
  char shares[32] = "", clip[32] = "";
  if (m->shares > 1) snprintf(shares, sizeof shares, " shares=%d", m->shares);
  if (m->clip < DEFAULT_CLIP || m->clip > DEFAULT_CLIP) snprintf(clip, sizeof clip, " clip=%g", (double)m->clip);
  printf("%s gpt layers=%" PRId64 " width=%" PRId64 " heads=%" PRId64 "/%" PRId64 " context=%" PRId64 " batch=%" PRId64
         "%s%s step=%" PRId64 "/%" PRId64 " loss=%.6f held_out=%.6f hash=%016" PRIx64 " sample=%016" PRIx64 "\n",
         t->opt->demo ? "rhymes" : "text", m->layers, m->width, m->heads, m->kv_heads, m->context,
         t->opt->integer[OPT_BATCH], shares, clip, t->step, t->total, (double)t->last_loss, t->held_loss, hash,
         t->sample_hash);
}

static int print_result(const training *t, const mlk_info *info) {
  const uint64_t hash = hash_weights(&t->net);
  if (is_pinned(t) && hash != DEMO_HASH) {
    complain("the hash of the weights is %016" PRIx64 "; of --demo it must be %016" PRIx64, hash, DEMO_HASH);
    return EXIT_RUN;
  }
  if (t->opt->hash_only) {
    print_line(t, hash);
    return 0;
  }
  printf("loss       %.3f bits per byte of the text held out, after %" PRId64 " steps\n", bits_of(t->held_loss),
         t->step);
  if (t->step > t->first_step) print_speed(t, info);
  printf("hash       %016" PRIx64 "   FNV-1a 64 of the weights%s%s\n", hash,
         t->lost ? "" : ": the same on every machine", is_pinned(t) ? "; it is the pinned one" : "");
  if (t->opt->profile && t->step > t->first_step) print_profile(t, info);
  return 0;
}

/* ---- options ----------------------------------------------------------------------------------------------------- */

static void print_help(void) {
  int i;
  puts("Trains a small GPT on text with mlk.h, then writes some.\n\n"
       "usage: 03_gpt [options] [FILE...]\n"
       "  FILE...            text to learn from, in any language; the last tenth of each is held out to test.\n"
       "                     Default: documents and mlk.h of this repository\n"
       "  --demo             learn two rhymes that the program has in it, in a few seconds\n"
       "  --steps N          of the training: the learning rate rises, then falls to zero\n"
       "  --layers N, --width N, --heads N, --kv-heads N\n"
       "                     the model\n"
       "  --context N        bytes that it looks back\n"
       "  --batch N          sequences of that length in a step\n"
       "  --lr X             the highest learning rate, 0 to 1 (default 0.003)\n"
       "  --seed N           of first weights, places in the text, and what is written\n"
       "  --stop N           stop after N steps of the schedule that --steps sets; 0: at its end\n"
       "  --checkpoint FILE  continue from it if it is there; write it every five seconds and at the end\n"
       "  --save-every N     write it after every N steps instead; 0: every five seconds\n"
       "  --fresh            begin anew even if there is a checkpoint\n"
       "  --sample N         bytes to write at the end\n"
       "  --prompt TEXT      what they continue (default: a new line)\n"
       "  --temperature X    0: always the likeliest byte; 1: as likely as learned; at most 100 (default 0.7)\n"
       "  --threads N        of each replica; 0: all cores, shared out\n"
       "  --isa NAME         best, scalar, neon, avx2, avx512 or reference (default best)\n"
       "  --device NAME      cpu or, built with CUDA=1, cuda (default cpu)\n"
       "  --hash             train and print one line, with hashes of the weights and of what is written\n"
       "  --profile          also a table of the library's calls and their times\n"
       "  --bytes            make one step, print by kind how many bytes are allocated for it, and end\n"
       "  --clip X           the gradient's norm is cut to X, 0 to 1e6; 0: it is left as it is (default 1)\n"
       "\n"
       "  --replicas N       N threads of this process train one model together, each with its own copy of it;\n"
       "  --processes N      or N processes\n"
       "  --shares S         into which the batch is cut; it must divide --batch. Bits depend on S, but not on N\n"
       "                     (default, with replicas or processes, 4, or N if that is more)\n"
       "  --on-loss WHAT     fails: when a replica is lost, all end; shrinks: the others go on (default fails)\n"
       "  --timeout X        seconds after which a replica that lets the others wait is lost (default 30)\n"
       "  --zero 1           each replica keeps the optimiser's state of its part of the weights only\n"
       "\n"
       "  --help             this text\n\n"
       "                default   --demo   at least   at most");
  for (i = 0; i < INTEGERS; i++)
    printf("  %-12s %8" PRId64 " %8" PRId64 " %10" PRId64 "   %" PRId64 "\n", integer_options[i].option,
           integer_options[i].usual, integer_options[i].demo, integer_options[i].least, integer_options[i].most);
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

static int parse_real(const char *option, const char *text, double most, float *value) {
  char *end = NULL;
  const double parsed = strtod(text, &end);
  if (end == text || *end || !(parsed >= 0 && parsed <= most))
    return complain("%s is '%s'; it must be a number from 0 to %g", option, text, most);
  *value = (float)parsed;
  return 0;
}

static int parse_isa(const char *text, mlk_isa *isa) {
  char here[96] = "best";
  int i;
  for (i = 0; i < MLK_ISA_COUNT && strcmp(text, mlk_isa_name((mlk_isa)i)) != 0; i++) continue;
  if (i == MLK_ISA_COUNT)
    return complain("--isa is '%s'; it must be best, scalar, neon, avx2, avx512 or reference", text);
  *isa = (mlk_isa)i;
  if (mlk_isa_available(*isa)) return 0;
  for (i = 1; i < MLK_ISA_COUNT; i++)
    if (mlk_isa_available((mlk_isa)i))
      strcat(strcat(here, ", "), mlk_isa_name((mlk_isa)i)); /* all the names together have 50 letters */
  return complain("--isa is '%s', which this build or machine does not run; it runs %s", text, here);
}

static int parse_device(const char *text, int *cuda) {
  if (strcmp(text, "cpu") != 0 && strcmp(text, "cuda") != 0)
    return complain("--device is '%s'; it must be cpu or cuda", text);
  *cuda = strcmp(text, "cuda") == 0;
#if !defined(MLK_EXAMPLE_CUDA)
  if (*cuda) return complain("--device cuda: this program was built without CUDA; make CUDA=1 builds it with");
#endif
  return 0;
}

static int parse_flag(const char *arg, options *opt) {
  if (!strcmp(arg, "--demo")) return opt->demo = 1;
  if (!strcmp(arg, "--fresh")) return opt->fresh = 1;
  if (!strcmp(arg, "--hash")) return opt->hash_only = 1;
  if (!strcmp(arg, "--profile")) return opt->profile = 1;
  if (!strcmp(arg, "--bytes")) return opt->hash_only = opt->bytes = 1;
  return 0;
}

static int parse_value(int which, const char *value, options *opt) {
  switch (which) {
  case 0: return parse_real("--lr", value, 1, &opt->rate);
  case 1: return parse_real("--temperature", value, 100, &opt->temperature);
  case 2: return parse_isa(value, &opt->isa);
  case 3: opt->prompt = value; return 0;
  case 4: return parse_real("--clip", value, 1e6, &opt->clip);
  case 5: return parse_real("--timeout", value, 86400, &opt->timeout);
  case 6:
    if (strcmp(value, "fails") != 0 && strcmp(value, "shrinks") != 0)
      return complain("--on-loss is '%s'; it must be fails or shrinks", value);
    opt->on_loss = strcmp(value, "fails") == 0 ? MLK_LOSS_FAILS : MLK_LOSS_SHRINKS;
    return 0;
  case 7: return parse_device(value, &opt->cuda);
  default:
    if (strlen(value) >= MAX_PATH_BYTES - 64 || !*value)
      return complain("--checkpoint is %d bytes long; it must have 1 to %d", (int)strlen(value), MAX_PATH_BYTES - 65);
    opt->checkpoint = value;
    return 0;
  }
}

/* An option with a value: option or option=value. *i is moved past what is used. Returns 0, or an exit code. */
static int parse_option(int argc, char **argv, int *i, options *opt) {
  static const char *const with_value[] = {"--lr",      "--temperature", "--isa",    "--prompt",    "--clip",
                                           "--timeout", "--on-loss",     "--device", "--checkpoint"};
  enum { WITH_VALUE = sizeof with_value / sizeof *with_value };
  const char *arg = argv[*i], *equals = strchr(arg, '='), *value;
  const size_t length = equals ? (size_t)(equals - arg) : strlen(arg);
  int which;
  for (which = 0; which < WITH_VALUE + INTEGERS; which++) {
    const char *option = which < WITH_VALUE ? with_value[which] : integer_options[which - WITH_VALUE].option;
    if (strlen(option) != length || strncmp(arg, option, length) != 0) continue;
    if (!equals && *i + 1 == argc) return complain("%s needs a value; --help tells which", arg);
    value = equals ? equals + 1 : argv[++*i];
    if (which < WITH_VALUE) return parse_value(which, value, opt);
    which -= WITH_VALUE;
    return parse_integer(option, value, integer_options[which].least, integer_options[which].most,
                         &opt->integer[which]);
  }
  return complain("'%s' is not an option; --help lists them", arg);
}

/* One replica without shares is no group. */
static int complete_replicas(options *opt) {
  int64_t *integer = opt->integer;
  if (integer[OPT_REPLICAS] > 0 && integer[OPT_PROCESSES] > 0)
    return complain("--replicas and --processes exclude each other");
  opt->processes = integer[OPT_PROCESSES] > 0;
  opt->grouped = opt->processes || integer[OPT_REPLICAS] > 0 || integer[OPT_SHARES] > 0 || integer[OPT_ZERO] > 0;
  opt->replicas = (int)integer[opt->processes ? OPT_PROCESSES : OPT_REPLICAS];
  if (opt->replicas < 1) opt->replicas = 1;
  if (opt->grouped && integer[OPT_SHARES] < 0) integer[OPT_SHARES] = opt->replicas > 4 ? opt->replicas : 4;
  if (opt->grouped && integer[OPT_SHARES] < opt->replicas)
    return complain("--shares is %" PRId64 "; there are %d replicas, and each needs one", integer[OPT_SHARES],
                    opt->replicas);
  if (integer[OPT_ZERO] > 0 && opt->on_loss == MLK_LOSS_SHRINKS)
    return complain("--zero 1 needs --on-loss fails: with a replica its part of the optimiser's state is lost");
  return 0;
}

/* What is not given gets its default; then, does it go together? */
static int complete_options(options *opt) {
  int64_t *integer = opt->integer;
  int code = complete_replicas(opt), i;
  if (code) return code;
  for (i = 0; i < INTEGERS; i++)
    if (integer[i] < 0) integer[i] = opt->demo ? integer_options[i].demo : integer_options[i].usual;
  if (opt->bytes && opt->checkpoint) return complain("--bytes and --checkpoint exclude each other");
  if (opt->demo && opt->file_count) return complain("--demo and '%s' exclude each other", opt->files[0]);
  if (integer[OPT_WIDTH] % integer[OPT_HEADS] != 0 || integer[OPT_WIDTH] / integer[OPT_HEADS] % 2 != 0)
    return complain("--width is %" PRId64 " and --heads %" PRId64 "; a head must have a whole, even share of the width",
                    integer[OPT_WIDTH], integer[OPT_HEADS]);
  if (integer[OPT_HEADS] % integer[OPT_KV_HEADS] != 0)
    return complain("--heads is %" PRId64 " and --kv-heads %" PRId64 "; the latter must divide the former",
                    integer[OPT_HEADS], integer[OPT_KV_HEADS]);
  if (integer[OPT_BATCH] % integer[OPT_SHARES] != 0)
    return complain("--batch is %" PRId64 " and --shares %" PRId64 "; the latter must divide the former",
                    integer[OPT_BATCH], integer[OPT_SHARES]);
  return 0;
}

/* *done is set by --help. files has room for argc entries. */
static int parse_options(int argc, char **argv, options *opt, const char **files, int *done) {
  int only_files = 0, i;
  opt->files = files, opt->rate = DEFAULT_RATE, opt->clip = DEFAULT_CLIP, opt->temperature = 0.7f;
  for (i = 0; i < INTEGERS; i++) opt->integer[i] = -1;
  for (i = 1; i < argc; i++) {
    int code;
    if (only_files || argv[i][0] != '-') {
      files[opt->file_count++] = argv[i];
    } else if (!strcmp(argv[i], "--")) {
      only_files = 1;
    } else if (!strcmp(argv[i], "--help")) {
      print_help();
      *done = 1;
      return 0;
    } else if (!parse_flag(argv[i], opt)) {
      code = parse_option(argc, argv, &i, opt);
      if (code) return code;
    }
  }
  return complete_options(opt);
}

/* ---- from options to results ------------------------------------------------------------------------------------- */

static int plan_all(training *t, uint64_t *workspace) {
  model *m = &t->net;
  tape *tapes[5];
  int code = 0, i;
  tapes[0] = &m->forward, tapes[1] = &m->update, tapes[2] = &m->judge, tapes[3] = &m->next, tapes[4] = &m->choose;
  for (i = 0; i < 5 && !code; i++) code = plan_tape(t->ctx, tapes[i], workspace);
  for (i = 0; i < m->own_shares && !code; i++) code = plan_tape(t->ctx, &m->share[i].learn, workspace);
  return code;
}

/* The descriptor of a context on the device that was asked for. Arrays of the host are copied as calls need them; what
   training works on is memory that both use. */
static void choose_device(const options *opt, mlk_context_desc *desc) {
  desc->device = opt->cuda ? MLK_DEVICE_BACKEND : MLK_DEVICE_CPU;
  desc->host_arrays = MLK_HOST_STAGED;
  desc->shared_memory = 1;
#if defined(MLK_EXAMPLE_CUDA)
  if (opt->cuda) desc->backends[0] = mlk_cuda_backend();
#endif
}

/* On a device all that training works on moves to memory that both use. */
static int move_to_device(training *t) {
  model *m = &t->net;
  region r;
  void *there = NULL;
  mlk_status status;
  memset(&r, 0, sizeof r);
  lay_out(m, &r);
  status = mlk_alloc(t->ctx, r.used, &there);
  if (status != MLK_OK) return library_failed(t->ctx, "memory of the device", status);
  memcpy(there, (char *)m->memory + (64 - (uintptr_t)m->memory % 64) % 64, (size_t)r.used);
  free(m->memory);
  m->memory = NULL, m->shared = there, m->shared_bytes = r.used;
  r.base = (char *)there, r.used = 0;
  lay_out(m, &r);
  return 0;
}

/* group: of this replica; NULL: none */
static int open_library(training *t, const mlk_group_desc *group, int threads, mlk_info *info) {
  uint64_t workspace = 0;
  mlk_context_desc desc;
  mlk_ceilings ceilings;
  mlk_status status;
  int code;
  memset(&desc, 0, sizeof desc);
  desc.threads = threads;
  desc.isa = t->opt->isa;
  choose_device(t->opt, &desc);
  status = mlk_open(&t->ctx, &desc);
  if (status != MLK_OK) return fail_run("mlk_open", mlk_status_name(status));
  if (t->opt->cuda && (code = move_to_device(t)) != 0) return code;
  code = make_schedule(t, t->opt->rate);
  if (!code && group) code = join_group(t, group, &workspace);
  if (!code) code = record(&t->net);
  if (!code) code = plan_all(t, &workspace);
  if (code) return code;
  status = mlk_reserve(t->ctx, workspace, MLK_FIXED); /* from here on the library allocates nothing */
  if (status == MLK_OK && !t->opt->hash_only) status = mlk_measure(t->ctx, &ceilings); /* takes half a second */
  if (status == MLK_OK) status = mlk_get_info(t->ctx, info);
  return status == MLK_OK ? 0 : library_failed(t->ctx, "preparing", status);
}

static int prepare(training *t) {
  const int64_t *integer = t->opt->integer;
  int code;
  t->total = integer[OPT_STEPS];
  t->stop = integer[OPT_STOP] && integer[OPT_STOP] < t->total ? integer[OPT_STOP] : t->total;
  if (t->opt->bytes) t->stop = 1; /* one step, so that no replica leaves before the others have seen it come */
  t->held_step = -1;
  t->rate = (float *)calloc((size_t)t->total, sizeof(float));
  t->loss = (float *)calloc((size_t)t->total, sizeof(float));
  if (!t->rate || !t->loss) return fail_run("training", "no memory for its tables");
  t->net.coldness = t->opt->temperature > 0 ? 1.0f / t->opt->temperature : 1.0f;
  t->net.clip = t->opt->clip;
  code = model_open(&t->net, integer);
  return code ? code : read_checkpoint(t);
}

/* What this replica allocated, but for text, tables of steps and the program's own records; then what all replicas have
   in common. The cuts of lay_out lie in one block, which begins up to 63 bytes before the first: alignment. Private
   bytes of the group are those of its plan, which is what mlk_group_open allocates. */
static int print_bytes(training *t, const mlk_group_desc *group, const mlk_info *info) {
  static const char *const names[KINDS] = {"parameters", "gradients", "optimiser", "activations",
                                           "backward",   "batch",     "writing"};
  model *m = &t->net;
  const uint64_t before = m->memory ? 64 : 0; /* a device's memory begins where it should */
  mlk_group_plan plan;
  mlk_status status = MLK_OK;
  region r;
  uint64_t total;
  int i;
  memset(&plan, 0, sizeof plan), memset(&r, 0, sizeof r);
  if (group) status = mlk_group_get_plan(t->ctx, group, &plan);
  if (status != MLK_OK) return library_failed(t->ctx, "the plan of the group", status);
  r.base = (char *)m->weights; /* where the first cut begins, so that the arrays stay where they are */
  lay_out(m, &r);
  if (m->zero) r.of[OPTIMISER] += (uint64_t)(2 * own_weights(m) + 1) * sizeof(float);
  total = r.used + before + info->workspace_bytes + plan.private_bytes + (m->zero ? r.of[OPTIMISER] : 0);
  for (i = 0; i < KINDS; i++) printf("bytes %s %" PRIu64 "\n", names[i], r.of[i]);
  printf("bytes alignment %" PRIu64 "\nbytes workspace %" PRIu64 "\nbytes group %" PRIu64 "\n", before,
         info->workspace_bytes, plan.private_bytes);
  printf("bytes total %" PRIu64 "\nbytes common %" PRIu64 "\n", total, plan.bytes);
  return 0;
}

static int run(training *t, const mlk_group_desc *group, int threads) {
  mlk_info info;
  int code = open_library(t, group, threads, &info);
  if (code) return code;
  if (t->packed) take_checkpoint(t, t->packed);
  if (!t->opt->hash_only && t->rank == 0) print_head(t, &info);
  code = train(t);
  if (code) return code;
  if (!leads(t)) return FOLLOWED;
  if (t->opt->bytes) return print_bytes(t, group, &info);
  if (t->stopped && t->step < t->stop) {
    printf("interrupted after step %" PRId64 "%s\n", t->step,
           t->opt->checkpoint ? "; a checkpoint is written, and the same command (without --fresh) continues" : "");
    return EXIT_INTERRUPTED;
  }
  if (t->held_step != t->step) code = judge(t);
  if (!code) code = write_sample(t);
  return code ? code : print_result(t, &info);
}

static training *training_open(const options *opt, const corpus *text, int rank) {
  training *t = (training *)calloc(1, sizeof *t);
  if (t) t->opt = opt, t->text = text, t->rank = rank;
  return t;
}

static void training_close(training *t) {
  if (!t) return;
  mlk_group_close(t->net.group);
  if (t->ctx) mlk_free(t->ctx, t->net.shared, t->net.shared_bytes);
  mlk_close(t->ctx);
  free(t->net.memory), free(t->net.moments), free(t->net.share), free(t->packed), free(t->rate), free(t->loss);
  free(t);
}

/* ---- replicas: threads, or processes --------------------------------------------------------------------------------

   All have the same options and the same text, and each a model of its own. Nobody leads but by being the lowest of
   those that are left. */

typedef struct crew {
  const options *opt;
  mlk_bucket buckets[MAX_BUCKETS];
  mlk_group_desc desc; /* of all, but for the rank */
  mlk_group_segment segment;
  void *memory;
  int threads;                       /* of each replica */
  training *training[MLK_MAX_RANKS]; /* of processes one, which each of them inherits */
  int code[MLK_MAX_RANKS];           /* how each ended: its exit code; below 0: by a signal */
} crew;

static int run_replica(crew *c, training *t) {
  mlk_group_desc desc = c->desc;
  int code;
  desc.rank = t->rank;
  code = run(t, &desc, c->threads);
  mlk_group_close(t->net.group); /* at once: the others need not wait for one who failed */
  t->net.group = NULL;
  return code;
}

/* What comes of how the replicas ended. */
static int crew_result(const crew *c) {
  int done = 0, interrupts = 0, failed = 0, rank;
  for (rank = 0; rank < c->opt->replicas; rank++) {
    done += c->code[rank] == 0, interrupts += c->code[rank] == EXIT_INTERRUPTED;
    failed += c->code[rank] != 0 && c->code[rank] != FOLLOWED && c->code[rank] != EXIT_INTERRUPTED;
  }
  if (failed && c->opt->on_loss == MLK_LOSS_FAILS) return EXIT_RUN;
  return done ? 0 : (interrupts ? EXIT_INTERRUPTED : EXIT_RUN);
}

#if defined(_WIN32)
static int run_crew(crew *c) {
  if (c->opt->processes || c->opt->replicas > 1)
    return complain("--%s: this system has no POSIX %s", c->opt->processes ? "processes" : "replicas",
                    c->opt->processes ? "fork" : "threads");
  c->code[0] = run_replica(c, c->training[0]);
  return crew_result(c);
}
#else
static pid_t child[MLK_MAX_RANKS]; /* 0: not there, or no longer */

/* Of the parent: the children end after the same step, with a checkpoint. (An interrupt from the terminal reaches them
   too, which is why they ignore those.) The second signal ends the parent at once, and the children without it. */
static void pass_on(int number) {
  int rank;
  for (rank = 0; rank < MLK_MAX_RANKS; rank++)
    if (child[rank] > 0) kill(child[rank], SIGTERM);
  signal(number, SIG_DFL);
}

static void wait_for_children(crew *c) {
  int status, rank;
  pid_t ended;
  while ((ended = wait(&status)) > 0 || errno == EINTR) {
    for (rank = 0; rank < c->opt->replicas && child[rank] != ended; rank++) continue;
    if (ended <= 0 || rank == c->opt->replicas) continue;
    child[rank] = 0;
    c->code[rank] = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
    if (c->code[rank] < 0)
      complain("replica %d, process %ld, was ended by signal %d", rank, (long)ended, -c->code[rank]);
  }
}

/* Returns in the parent when all children have ended, and in each child when it has. No thread was started so far: what
   OpenMP has does not survive a fork. */
static int run_processes(crew *c) {
  const long parent = (long)getpid();
  int rank;
  fflush(stdout);
  for (rank = 0; rank < c->opt->replicas; rank++) {
    child[rank] = fork();
    if (child[rank] == 0) {
      signal(SIGINT, SIG_IGN), signal(SIGTERM, interrupt);
      memset(child, 0, sizeof child);
      c->training[0]->rank = rank, c->training[0]->parent = parent;
      return run_replica(c, c->training[0]);
    }
    c->code[rank] = EXIT_RUN;
    if (child[rank] > 0) continue;
    complain("replica %d cannot be started: %s", rank, strerror(errno));
    while (rank-- > 0) kill(child[rank], SIGKILL);
    break;
  }
  signal(SIGINT, pass_on), signal(SIGTERM, pass_on);
  wait_for_children(c);
  return crew_result(c);
}

typedef struct hand {
  crew *in;
  int rank, started;
  pthread_t thread;
} hand;

static void *run_hand(void *argument) {
  hand *h = (hand *)argument;
  h->in->code[h->rank] = run_replica(h->in, h->in->training[h->rank]);
  return NULL;
}

/* This thread is the first replica. */
static int run_threads(crew *c) {
  hand hands[MLK_MAX_RANKS];
  int rank, error;
  signal(SIGINT, interrupt), signal(SIGTERM, interrupt);
  for (rank = 0; rank < c->opt->replicas; rank++) {
    hands[rank].in = c, hands[rank].rank = rank;
    error = rank ? pthread_create(&hands[rank].thread, NULL, run_hand, &hands[rank]) : 0;
    hands[rank].started = rank && !error;
    if (!error) continue;
    complain("replica %d cannot be started: %s", rank, strerror(error));
    c->code[rank] = EXIT_RUN;
  }
  run_hand(&hands[0]);
  for (rank = 1; rank < c->opt->replicas; rank++)
    if (hands[rank].started) pthread_join(hands[rank].thread, NULL);
  return crew_result(c);
}

static int run_crew(crew *c) { return c->opt->processes ? run_processes(c) : run_threads(c); }
#endif

/* The common memory: of threads, plain memory; of processes, a segment without a name, which children inherit. */
static int open_memory(crew *c, mlk_context *ctx) {
  mlk_group_plan plan;
  mlk_status status = mlk_group_get_plan(ctx, &c->desc, &plan);
  if (status == MLK_OK && c->opt->processes) {
    status = mlk_group_segment_open(ctx, &c->desc, &c->segment);
    c->desc.fd = c->segment.fd;
  }
  if (status != MLK_OK) return library_failed(ctx, "the replicas' common memory", status);
  if (c->opt->processes) return 0;
  c->memory = calloc((size_t)plan.bytes + 64, 1);
  if (!c->memory) return fail_run("the replicas' common memory", "there is not so much");
  c->desc.memory = (char *)c->memory + (64 - (uintptr_t)c->memory % 64) % 64;
  return 0;
}

static int open_crew(crew *c, const model *m) {
  static const char *const names[2] = {"table and norms", "figures"};
  mlk_context_desc context;
  mlk_context *ctx;
  mlk_info info;
  int64_t bucket;
  int code;
  for (bucket = 0; bucket < m->layers + 2; bucket++) {
    c->buckets[bucket].name = bucket < m->layers ? "a layer's matrices" : names[bucket - m->layers];
    c->buckets[bucket].elements = bucket_elements(m, bucket);
  }
  c->desc.ranks = c->opt->replicas, c->desc.shares = m->shares;
  c->desc.buckets = c->buckets, c->desc.bucket_count = m->layers + 2;
  c->desc.on_loss = c->opt->on_loss, c->desc.timeout = (double)c->opt->timeout;
  memset(&context, 0, sizeof context);
  context.threads = (int)c->opt->integer[OPT_THREADS];
  if (mlk_open(&ctx, &context) != MLK_OK) return fail_run("mlk_open", "no memory");
  code = open_memory(c, ctx);
  mlk_get_info(ctx, &info);
  mlk_close(ctx);
  c->threads = info.threads; /* those of the machine are shared out */
  if (!context.threads) c->threads = info.threads > c->opt->replicas ? info.threads / c->opt->replicas : 1;
  return code;
}

static int learn_in_group(const options *opt, const corpus *text) {
  crew *c = (crew *)calloc(1, sizeof *c);
  int code = 0, rank;
  if (!c) return fail_run("the replicas", "no memory for their records");
  c->opt = opt;
  for (rank = 0; rank < (opt->processes ? 1 : opt->replicas) && !code; rank++) {
    c->training[rank] = training_open(opt, text, rank);
    code = c->training[rank] ? prepare(c->training[rank]) : fail_run("the replicas", "no memory for their records");
  }
  if (!code) code = open_crew(c, &c->training[0]->net);
  if (!code) code = run_crew(c);
  for (rank = 0; rank < opt->replicas; rank++) training_close(c->training[rank]);
  if (c->desc.fd > 0) mlk_group_segment_close(&c->segment);
  free(c->memory), free(c);
  return code;
}

static int learn_alone(const options *opt, const corpus *text) {
  training *t = training_open(opt, text, 0);
  int code = t ? prepare(t) : fail_run("the program", "no memory for its own records");
  signal(SIGINT, interrupt), signal(SIGTERM, interrupt);
  if (!code) code = run(t, NULL, (int)opt->integer[OPT_THREADS]);
  training_close(t);
  return code;
}

int main(int argc, char **argv) {
  options opt;
  corpus *words = (corpus *)calloc(1, sizeof *words);
  const char **files = (const char **)calloc((size_t)argc + 1, sizeof *files);
  int code = 0, done = 0;
  memset(&opt, 0, sizeof opt);
  if (!words || !files) code = fail_run("the program", "no memory for its own records");
  if (!code) code = parse_options(argc, argv, &opt, files, &done);
  if (!code && !done) {
    code = load_text(argv[0], &opt, words);
    if (!code) code = opt.grouped ? learn_in_group(&opt, words) : learn_alone(&opt, words);
  }
  if ((fflush(stdout) != 0 || ferror(stdout)) && code == 0)
    code = fail_run("standard output", "could not be written to its end");
  if (words) free(words->learn), free(words->held);
  free(words), free(files);
  return code;
}
