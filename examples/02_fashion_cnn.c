/* Trains a convolutional network on Fashion-MNIST: forward, backward and optimiser all by mlk.h.

   Build: cc -O2 -fopenmp -pthread -I. examples/02_fashion_cnn.c -o build/02_fashion_cnn -lm
   Run:   build/02_fashion_cnn            (--help lists the options; `make data` fetches Fashion-MNIST)

   The network, for N pictures of one channel; images lie as [N, rows, cols, channels], weights as [out, taps, in]:
     x [N, 1, 28, 28]  - conv 3x3, ReLU -> y1 [N, 32, 28, 28] - max 2x2 -> p1 [N, 32, 14, 14]
                       - conv 3x3, ReLU -> y2 [N, 64, 14, 14] - max 2x2 -> p2 [N, 64, 7, 7]
                       - dense, ReLU -> h [N, 128] - dense -> logits [N, 10] - cross-entropy
   The 8 x 8 digits that come with MLK take its place where Fashion-MNIST is not found; they get half the channels.

   How it is built: every call of the library is an entry of a tape, made once. Planning walks the tapes and asks each
   entry for its workspace; after one reservation training allocates nothing. A step walks "forward", "learn", which
   computes the gradients, and "update".

   The same bits everywhere. MLK_STRICT makes every operator give the same bits on every instruction set and with any
   number of threads. What is left is done here without libm and without sums that a compiler could contract: the
   generator is made of integers, weights begin as an integer times a float, pixels are normalised by integers, and the
   learning rate is a product. The order of the pictures and their flips are functions of the seed and the epoch alone,
   so the state of a training is weights, both moments of AdamW, and the number of the step: that is the checkpoint.

   Several replicas train one network with --replicas N, threads of this process, or --processes N. The batch of a step
   is cut into --shares S of equal size. A replica has a network of its own and computes the gradients of its shares one
   after another; what counts is the mean over the shares in ascending order, which mlk_group takes. So S decides the
   bits, and how many replicas there are does not, nor whether they are threads or processes: weights and checkpoints
   are the same, and any number of replicas continues a checkpoint. The gradients of a layer are written straight into
   the common memory and published as soon as they are there, while those of the layers before it are still being
   computed; means are taken when all is published. With the gradients travels whether to stop and whether to write a
   checkpoint, so all replicas do it after the same step. The lowest of those that live prints and writes files. When a
   replica is lost, all end, with the last checkpoint whole (--on-loss fails), or the others go on without its shares
   (shrinks).

   Exit code: 0 done, 1 the run failed (memory, a full disk, a wrong hash), 2 an argument, a data file or a checkpoint
   is wrong, 130 interrupted by SIGINT or SIGTERM after a checkpoint was written. */

#if !defined(_WIN32) && !defined(_POSIX_C_SOURCE)
#define _POSIX_C_SOURCE 200809L /* popen, fsync, isatty, clock_gettime, kill under -std=c99 */
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
#include <direct.h>
#include <io.h>
#else
#include <fcntl.h>
#include <pthread.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>
#endif

enum { EXIT_RUN = 1, EXIT_INPUT = 2, EXIT_INTERRUPTED = 130 };
enum { FOLLOWED = 3, LOST = 4 }; /* of a replica: another one has the results; the step failed for want of others */
enum {
  CLASSES = 10,
  TAPS = 9,
  MIN_EDGE = 4,
  MAX_EDGE = 64,
  MAX_BATCH = 1024,
  MAX_EPOCHS = 1000,
  MAX_PATH_BYTES = 4096
};
enum { WARM_UP_STEPS = 100, PINNED_STEPS = 200 };
static const int64_t MAX_PICTURES = 1000000;
static const uint64_t SEED = 2026;
static const float PEAK_LEARNING_RATE = 3e-3f, WEIGHT_DECAY = 0.05f, MAX_NORM = 2.0f;
static const double SAVE_SECONDS = 5, PLAIN_LINE_SECONDS = 5, TERMINAL_LINE_SECONDS = 0.1;

typedef struct options {
  int64_t epochs, steps, batch, threads, save_steps; /* 0: the default of each */
  int64_t shares, replicas, processes;               /* the same; one replica without shares is no group */
  int grouped;
  float timeout; /* seconds; 0: the library's */
  mlk_loss on_loss;
  mlk_isa isa;
  int cuda;               /* --device */
  const char *data, *out; /* NULL: looked for; build/NAME */
  int resume, fresh, short_run, hash_only, profile, bytes;
} options;

typedef struct pictures {
  int64_t count, rows, cols;
  uint8_t *pixels; /* [count, rows, cols] */
  uint8_t *labels; /* [count], each < CLASSES */
} pictures;

typedef struct picture_set {
  const char *name, *folder_name;
  const char *const *class_names; /* [CLASSES] */
  char folder[MAX_PATH_BYTES];
  pictures train, test;
  uint64_t fingerprint;
  int mean, spread; /* of the training pixels: mean, and mean distance from it; x = (pixel - mean) / spread */
  int brightest;    /* training pixel */
  int flips;        /* a mirrored picture is as good as the original */
  int shifts;       /* so is one moved by up to a pixel, up, down or sideways */
  int64_t channels1, channels2, hidden, batch, epochs, short_epochs;
  uint64_t pinned; /* hash of the weights after PINNED_STEPS, with this set's batch */
} picture_set;

static const char *const digit_names[CLASSES] = {"0", "1", "2", "3", "4", "5", "6", "7", "8", "9"};
static const char *const fashion_names[CLASSES] = {"T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
                                                   "Sandal",      "Shirt",   "Sneaker",  "Bag",   "Ankle boot"};

/* ---- small things ------------------------------------------------------------------------------------------------ */

/* One line on standard error, written at once, since replicas share it; returns EXIT_INPUT, so that checks read
   "return complain(...)". */
static int complain(const char *format, ...) {
  char line[MAX_PATH_BYTES + 1024];
  va_list args;
  va_start(args, format);
  vsnprintf(line, sizeof line, format, args);
  va_end(args);
  fprintf(stderr, "02_fashion_cnn: %s\n", line);
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

/* ---- randomness: integers only ----------------------------------------------------------------------------------- */

/* The output function of SplitMix64 (Steele, Lea & Flood, 2014). */
static uint64_t scramble(uint64_t x) {
  x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
  x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
  return x ^ (x >> 31);
}

/* What a generator is for, so that no two of them run along the same numbers. */
enum { FOR_WEIGHTS = 1, FOR_ORDER = 2, FOR_VIEWS = 3 };

static uint64_t generator(int purpose, int64_t number) {
  return scramble(scramble(SEED + (uint64_t)purpose) + (uint64_t)number);
}

static uint64_t draw(uint64_t *state) {
  *state += UINT64_C(0x9e3779b97f4a7c15);
  return scramble(*state);
}

/* order [count] = the numbers 0 .. count - 1 in the order of this epoch (Fisher & Yates). */
static void shuffle(uint32_t *order, int64_t count, int64_t epoch) {
  uint64_t state = generator(FOR_ORDER, epoch);
  int64_t i;
  for (i = 0; i < count; i++) order[i] = (uint32_t)i;
  for (i = count - 1; i > 0; i--) {
    const int64_t j = (int64_t)(((draw(&state) >> 32) * (uint64_t)(i + 1)) >> 32); /* 0 .. i */
    const uint32_t kept = order[i];
    order[i] = order[j], order[j] = kept;
  }
}

/* How a picture is shown in an epoch, so that the network does not see the same one again and again. */
typedef struct view {
  int flip, down, right; /* mirrored or not; moved by -1, 0 or 1 pixel */
} view;

static view draw_view(int64_t epoch, uint32_t picture, int flips, int shifts) {
  const uint64_t bits = scramble(generator(FOR_VIEWS, epoch) + picture);
  view v = {0, 0, 0};
  if (flips) v.flip = (int)(bits >> 63);
  if (shifts) v.down = (int)((bits & 0xffff) % 3) - 1, v.right = (int)((bits >> 16 & 0xffff) % 3) - 1;
  return v;
}

/* ---- files that nobody vouches for: plain idx files, or .gz through gunzip --------------------------------------- */

typedef struct source {
  char path[MAX_PATH_BYTES];
  FILE *file;
  int piped;
} source;

static int file_exists(const char *path) {
  FILE *file = fopen(path, "rb");
  if (!file) return 0;
  fclose(file);
  return 1;
}

static int join_path(char *path, const char *folder, const char *name, const char *suffix) {
  const int length = snprintf(path, MAX_PATH_BYTES, "%s/%s%s", folder, name, suffix);
  if (length >= 0 && length < MAX_PATH_BYTES) return 0;
  return complain("the path of %s in the folder given is %d bytes long; the limit is %d", name, length,
                  MAX_PATH_BYTES - 1);
}

#if !defined(_WIN32)
/* gunzip reads the file as its standard input, so a name cannot be taken for an option. Inside single quotes the shell
   leaves everything alone; a single quote is written '\''. */
static FILE *open_pipe(const char *path) {
  char command[4 * MAX_PATH_BYTES + 64];
  char *to = command;
  to += sprintf(to, "gunzip -c 2>/dev/null <'");
  for (; *path; path++) {
    if (*path == '\'')
      memcpy(to, "'\\''", 4), to += 4;
    else
      *to++ = *path;
  }
  memcpy(to, "'", 2);
  return popen(command, "r");
}
#endif

/* folder/name as it is, else folder/name.gz */
static int source_open(source *s, const char *folder, const char *name) {
  memset(s, 0, sizeof *s);
  if (join_path(s->path, folder, name, "")) return EXIT_INPUT;
  s->file = fopen(s->path, "rb");
  if (s->file) return 0;
  if (errno != ENOENT && errno != ENOTDIR) return complain("%s cannot be opened: %s", s->path, strerror(errno));
  if (join_path(s->path, folder, name, ".gz")) return EXIT_INPUT;
  if (!file_exists(s->path)) return complain("%s has no file %s and no %s.gz", folder, name, name);
#if defined(_WIN32)
  return complain("%s is packed; unpack it first", s->path);
#else
  s->piped = 1;
  s->file = open_pipe(s->path);
  return s->file ? 0 : complain("no pipe from gunzip for %s: %s", s->path, strerror(errno));
#endif
}

/* Nonzero when the bytes read cannot be trusted: a read error, or gunzip found damage. */
static int source_close(source *s) {
  const int bad = ferror(s->file) != 0;
#if !defined(_WIN32)
  if (s->piped) return pclose(s->file) != 0 || bad;
#endif
  return fclose(s->file) != 0 || bad;
}

static uint32_t big_endian_32(const uint8_t *b) {
  return (uint32_t)b[0] << 24 | (uint32_t)b[1] << 16 | (uint32_t)b[2] << 8 | b[3];
}

/* The bytes after the header, exactly `total` of them. The buffer grows with what really arrives, so a header that
   promises a gigabyte costs nothing. */
static int read_body(source *s, int64_t header, int64_t total, uint8_t **body) {
  int64_t have = 0, room = 0;
  while (have < total) {
    const int64_t next = room ? (room < total / 2 ? 2 * room : total) : (total < (1 << 20) ? total : 1 << 20);
    uint8_t *grown = (uint8_t *)realloc(*body, (size_t)next);
    if (!grown) return fail_run(s->path, "no memory for its pixels");
    *body = grown;
    room = next;
    have += (int64_t)fread(*body + have, 1, (size_t)(room - have), s->file);
    if (have < room)
      return complain("%s ends after %" PRId64 " bytes, or is damaged there; its header promises %" PRId64, s->path,
                      header + have, header + total);
  }
  if (fgetc(s->file) != EOF)
    return complain("%s goes on after the %" PRId64 " bytes that its header promises", s->path, header + total);
  return 0;
}

static int read_idx(source *s, int axes, int64_t *size, uint8_t **body) {
  uint8_t header[16];
  const int64_t bytes = 4 + 4 * axes;
  const uint32_t expected = 0x0800u | (uint32_t)axes; /* 08: unsigned bytes */
  const int64_t got = (int64_t)fread(header, 1, (size_t)bytes, s->file);
  int64_t total = 1;
  int i;
  if (got != bytes)
    return complain("%s ends after %" PRId64 " bytes, or is damaged there; its header alone has %" PRId64, s->path, got,
                    bytes);
  if (big_endian_32(header) != expected)
    return complain("%s begins with 0x%08" PRIx32 "; %s begin with 0x%08" PRIx32, s->path, big_endian_32(header),
                    axes == 3 ? "pictures" : "labels", expected);
  for (i = 0; i < axes; i++) {
    const int64_t least = i == 0 ? 1 : (int64_t)MIN_EDGE, most = i == 0 ? MAX_PICTURES : (int64_t)MAX_EDGE;
    size[i] = (int64_t)big_endian_32(header + 4 + 4 * i);
    if (size[i] < least || size[i] > most)
      return complain("%s says %" PRId64 " %s; it must be %" PRId64 " to %" PRId64, s->path, size[i],
                      i == 0 ? "entries" : (i == 1 ? "rows" : "columns"), least, most);
    total *= size[i]; /* at most 10^6 2^12 */
  }
  return read_body(s, bytes, total, body);
}

static int load_idx(const char *folder, const char *name, int axes, int64_t *size, uint8_t **body) {
  source s;
  int code = source_open(&s, folder, name);
  if (code) return code;
  code = read_idx(&s, axes, size, body);
  if (source_close(&s) && code == 0)
    code = complain("%s cannot be read to its end: gunzip finds it damaged, or is missing", s.path);
  return code;
}

/* prefix: "train" or "t10k", as the files of MNIST are called */
static int load_pictures(const char *folder, const char *prefix, pictures *p) {
  char name[64];
  int64_t size[3] = {0, 0, 0}, labels = 0, i;
  int code;
  snprintf(name, sizeof name, "%s-images-idx3-ubyte", prefix);
  code = load_idx(folder, name, 3, size, &p->pixels);
  if (code) return code;
  p->count = size[0], p->rows = size[1], p->cols = size[2];
  snprintf(name, sizeof name, "%s-labels-idx1-ubyte", prefix);
  code = load_idx(folder, name, 1, &labels, &p->labels);
  if (code) return code;
  if (labels != p->count)
    return complain("%s/%s has %" PRId64 " labels for %" PRId64 " pictures", folder, name, labels, p->count);
  for (i = 0; i < labels; i++)
    if (p->labels[i] >= CLASSES)
      return complain("%s/%s: label %" PRId64 " is %d; the limit is %d", folder, name, i, p->labels[i], CLASSES - 1);
  return 0;
}

/* Is there anything of a picture set in this folder? */
static int has_set(const char *folder) {
  char path[MAX_PATH_BYTES];
  return snprintf(path, sizeof path, "%s/train-images-idx3-ubyte.gz", folder) < MAX_PATH_BYTES &&
         (file_exists(path) || (path[strlen(path) - 3] = 0, file_exists(path)));
}

/* `below` under examples/data of the working directory, or beside or one above the folder of the program. */
static int find_below(const char *program, const char *below, char *folder) {
  static const char *const places[] = {"", "../", "../../"};
  const char *slash = strrchr(program, '/');
  const int program_folder = slash ? (int)(slash - program) + 1 : 0;
  int i;
  if (program_folder > MAX_PATH_BYTES / 2) return 0;
  for (i = 0; i < 3; i++) {
    snprintf(folder, MAX_PATH_BYTES, "%sexamples/data/%s", places[i], below);
    if (has_set(folder)) return 1;
    snprintf(folder, MAX_PATH_BYTES, "%.*s%sexamples/data/%s", program_folder, program, places[i], below);
    if (has_set(folder)) return 1;
  }
  return 0;
}

/* Fashion-MNIST where `make data` or the Debian package puts it, else the digits. */
static int find_set(const char *program, const char *wanted, char *folder) {
  static const char *const installed = "/usr/share/datasets/fashion-mnist";
  if (wanted && strcmp(wanted, "digits") != 0) {
    if (strlen(wanted) >= MAX_PATH_BYTES - 64)
      return complain("--data is %d bytes long; the limit is %d", (int)strlen(wanted), MAX_PATH_BYTES - 65);
    strcpy(folder, wanted);
    return 0;
  }
  if (!wanted && find_below(program, "cache/fashion-mnist", folder)) return 0;
  if (!wanted && has_set(installed)) {
    strcpy(folder, installed);
    return 0;
  }
  if (find_below(program, "digits", folder)) return 0;
  return complain("examples/data/digits is not found from here; run this in the repository's root, or give --data DIR");
}

static uint64_t fingerprint_of(const picture_set *set) {
  uint64_t hash = FNV_START;
  const pictures *part[2];
  int i;
  part[0] = &set->train, part[1] = &set->test;
  for (i = 0; i < 2; i++) {
    hash = fnv1a(hash, part[i]->pixels, part[i]->count * part[i]->rows * part[i]->cols);
    hash = fnv1a(hash, part[i]->labels, part[i]->count);
  }
  return hash;
}

/* Mean and mean distance from it as whole numbers: every machine finds the same. */
static void measure_pixels(picture_set *set) {
  const int64_t count = set->train.count * set->train.rows * set->train.cols;
  int64_t sum = 0, distance = 0, i;
  for (i = 0; i < count; i++) {
    sum += set->train.pixels[i];
    if (set->brightest < set->train.pixels[i]) set->brightest = set->train.pixels[i];
  }
  if (!set->brightest) set->brightest = 1;
  set->mean = (int)(sum / count);
  for (i = 0; i < count; i++) distance += abs(set->train.pixels[i] - set->mean);
  set->spread = distance < count ? 1 : (int)(distance / count);
}

static void recognise(picture_set *set) {
  static const uint64_t fashion = UINT64_C(0x0c336750f16156c8), digits = UINT64_C(0x306f43f4a7e41d15);
  const int small = set->train.rows < 16 || set->train.cols < 16;
  set->fingerprint = fingerprint_of(set);
  set->name = "pictures", set->folder_name = "pictures", set->class_names = digit_names;
  set->channels1 = small ? 16 : 32, set->channels2 = small ? 32 : 64, set->hidden = small ? 64 : 128;
  set->batch = small ? 32 : 100, set->epochs = small ? 30 : 4, set->short_epochs = small ? 30 : 1;
  if (set->fingerprint == fashion) {
    set->name = "Fashion-MNIST", set->folder_name = "fashion", set->class_names = fashion_names;
    set->flips = 1;
    set->pinned = UINT64_C(0x9056d58fbb4a1952);
  }
  if (set->fingerprint == digits) {
    set->name = "UCI-digits", set->folder_name = "digits";
    set->shifts = 1;
    set->pinned = UINT64_C(0xdc792e8e6e106b72);
  }
}

static int load_set(const char *program, const char *wanted, picture_set *set) {
  int code = find_set(program, wanted, set->folder);
  if (!code) code = load_pictures(set->folder, "train", &set->train);
  if (!code) code = load_pictures(set->folder, "t10k", &set->test);
  if (code) return code;
  if (set->train.rows != set->test.rows || set->train.cols != set->test.cols)
    return complain("%s: pictures of %" PRId64 " x %" PRId64 " to learn from, but of %" PRId64 " x %" PRId64 " to test",
                    set->folder, set->train.rows, set->train.cols, set->test.rows, set->test.cols);
  measure_pixels(set);
  recognise(set);
  return 0;
}

/* ---- tapes: the library's calls as data -------------------------------------------------------------------------- */

typedef enum op_kind {
  OP_CONV,
  OP_CONV_GRAD_INPUT,
  OP_CONV_GRAD_WEIGHTS,
  OP_POOL,
  OP_POOL_GRAD,
  OP_MATMUL,
  OP_MAP,
  OP_REDUCE,
  OP_SOFTMAX,
  OP_CROSS_ENTROPY,
  OP_CLIP_NORM,
  OP_ADAMW,
  OP_PUBLISH, /* from here on calls of a group of replicas: see record_update */
  OP_AVERAGE,
  OP_FINISH
} op_kind;

typedef struct group_call {
  mlk_group *group;
  int share;
  int64_t bucket;
  mlk_tensor means;
  mlk_group_report *report; /* of OP_FINISH */
} group_call;

typedef struct operation {
  op_kind kind;
  const char *name;
  mlk_plan plan;
  double seconds; /* of all calls so far */
  int64_t calls;
  union {
    mlk_conv_desc conv;
    mlk_conv_grad_input_desc conv_grad_input;
    mlk_conv_grad_weights_desc conv_grad_weights;
    mlk_pool_desc pool;
    mlk_pool_grad_desc pool_grad;
    mlk_matmul_desc matmul;
    mlk_map_desc map;
    mlk_reduce_desc reduce;
    mlk_softmax_desc softmax;
    mlk_cross_entropy_desc cross_entropy;
    mlk_clip_norm_desc clip_norm;
    mlk_adamw_desc adamw;
    group_call group;
  } as;
} operation;

enum { TAPE_ROOM = 24 };
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
  case OP_AVERAGE: return mlk_group_average(g->group, g->bucket, &g->means, 1);
  default: return mlk_group_finish(g->group, g->report);
  }
}

/* Plans the call when plan is given, else makes it. */
static mlk_status call(mlk_context *ctx, const operation *op, mlk_plan *plan) {
  switch (op->kind) {
  case OP_CONV: return plan ? mlk_conv_plan(ctx, &op->as.conv, plan) : mlk_conv(ctx, &op->as.conv);
  case OP_CONV_GRAD_INPUT:
    return plan ? mlk_conv_grad_input_plan(ctx, &op->as.conv_grad_input, plan)
                : mlk_conv_grad_input(ctx, &op->as.conv_grad_input);
  case OP_CONV_GRAD_WEIGHTS:
    return plan ? mlk_conv_grad_weights_plan(ctx, &op->as.conv_grad_weights, plan)
                : mlk_conv_grad_weights(ctx, &op->as.conv_grad_weights);
  case OP_POOL: return plan ? mlk_pool_plan(ctx, &op->as.pool, plan) : mlk_pool(ctx, &op->as.pool);
  case OP_POOL_GRAD:
    return plan ? mlk_pool_grad_plan(ctx, &op->as.pool_grad, plan) : mlk_pool_grad(ctx, &op->as.pool_grad);
  case OP_MATMUL: return plan ? mlk_matmul_plan(ctx, &op->as.matmul, plan) : mlk_matmul(ctx, &op->as.matmul);
  case OP_MAP: return plan ? mlk_map_plan(ctx, &op->as.map, plan) : mlk_map(ctx, &op->as.map);
  case OP_REDUCE: return plan ? mlk_reduce_plan(ctx, &op->as.reduce, plan) : mlk_reduce(ctx, &op->as.reduce);
  case OP_SOFTMAX: return plan ? mlk_softmax_plan(ctx, &op->as.softmax, plan) : mlk_softmax(ctx, &op->as.softmax);
  case OP_CROSS_ENTROPY:
    return plan ? mlk_cross_entropy_plan(ctx, &op->as.cross_entropy, plan)
                : mlk_cross_entropy(ctx, &op->as.cross_entropy);
  case OP_CLIP_NORM:
    return plan ? mlk_clip_norm_plan(ctx, &op->as.clip_norm, plan) : mlk_clip_norm(ctx, &op->as.clip_norm);
  case OP_ADAMW: return plan ? mlk_adamw_plan(ctx, &op->as.adamw, plan) : mlk_adamw(ctx, &op->as.adamw);
  default: break;
  }
  if (!plan) return call_group(op->kind, &op->as.group);
  memset(plan, 0, sizeof *plan);
  plan->variant = "";
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

/* ---- the network ------------------------------------------------------------------------------------------------- */

enum { CONV1_W, CONV1_B, CONV2_W, CONV2_B, DENSE1_W, DENSE1_B, DENSE2_W, DENSE2_B, PARTS };

/* The gradients of a share are published in buckets: weights and bias of each layer, and what the replicas have to
   agree on. Each is a flat array: a slot of the group, or, when there is no group, what learning reads. */
enum { CONV1, CONV2, DENSE1, DENSE2, AGREED, BUCKETS, LAYERS = AGREED };
enum {
  LOSS,
  STOP,
  SAVE,
  FIGURES
}; /* of AGREED: mean loss of the share's pictures; above 0: stop, write a checkpoint */

typedef struct share {
  float *slot[BUCKETS];
  tape learn; /* the gradients of this share */
} share;

typedef struct network {
  int64_t batch; /* pictures of a share */
  int64_t rows, cols, channels1, channels2, hidden;
  int64_t rows1, cols1, rows2, cols2, flat; /* after the first and the second pooling; flat = rows2 cols2 channels2 */
  int64_t first[PARTS + 1];                 /* where each part of the weights begins; [PARTS]: how many there are */
  float *weights, *grads, *m, *v;           /* [first[PARTS]] each */
  float *x, *y1, *p1, *y2, *p2, *h, *logits, *probability, *loss;
  float *dy1, *dp1, *dy2, *dp2, *dh, *dlogits;
  int64_t *labels, *predicted, *place1, *place2;
  float figures[FIGURES], norm, per_picture; /* means over all shares; per_picture = 1 / batch */
  mlk_tensor all_grads;
  float *layer[LAYERS];                /* where the weights of each begin */
  int shares, first_share, own_shares; /* of a step; of this replica */
  share *share;                        /* [own_shares] */
  mlk_group *group;                    /* NULL: one replica has all of the batch */
  mlk_group_report report;             /* of the last step of the group: who is in it */
  void *memory;
  void *shared; /* in its place, with --device cuda */
  uint64_t shared_bytes;
  tape forward, update, judge;
} network;

/* [batch, channels, rows, cols], channels lying next to each other */
static mlk_tensor image(const float *data, int64_t batch, int64_t channels, int64_t rows, int64_t cols) {
  return mlk_channels_last(mlk_f32(data, batch, rows, cols, channels));
}

static mlk_tensor places(const int64_t *data, int64_t batch, int64_t channels, int64_t rows, int64_t cols) {
  return mlk_channels_last(mlk_i64(data, batch, rows, cols, channels));
}

static mlk_conv_geometry padded_3x3(void) {
  mlk_conv_geometry g;
  memset(&g, 0, sizeof g);
  g.pad_before[0] = g.pad_before[1] = g.pad_after[0] = g.pad_after[1] = 1;
  return g;
}

static mlk_conv_geometry steps_of_2(void) {
  mlk_conv_geometry g;
  memset(&g, 0, sizeof g);
  g.stride[0] = g.stride[1] = 2;
  return g;
}

/* y = relu(conv(x, w) + bias) */
static void append_conv(tape *t, const char *name, mlk_tensor x, mlk_tensor w, mlk_tensor bias, mlk_tensor y) {
  mlk_conv_desc *d = &append(t, OP_CONV, name)->as.conv;
  d->x = x, d->w = w, d->bias = bias, d->y = y;
  d->activation = MLK_RELU;
  d->geometry = padded_3x3();
}

static void append_conv_grad_weights(tape *t, const char *name, mlk_tensor x, mlk_tensor dy, mlk_tensor dw,
                                     mlk_tensor dbias) {
  mlk_conv_grad_weights_desc *d = &append(t, OP_CONV_GRAD_WEIGHTS, name)->as.conv_grad_weights;
  d->x = x, d->dy = dy, d->dw = dw, d->dbias = dbias;
  d->geometry = padded_3x3();
}

static void append_conv_grad_input(tape *t, const char *name, mlk_tensor dy, mlk_tensor w, mlk_tensor dx) {
  mlk_conv_grad_input_desc *d = &append(t, OP_CONV_GRAD_INPUT, name)->as.conv_grad_input;
  d->dy = dy, d->w = w, d->dx = dx;
  d->geometry = padded_3x3();
}

static void append_pool(tape *t, const char *name, mlk_tensor x, mlk_tensor y, mlk_tensor indices) {
  mlk_pool_desc *d = &append(t, OP_POOL, name)->as.pool;
  d->kind = MLK_POOL_MAX;
  d->x = x, d->y = y, d->indices = indices;
  d->window[0] = d->window[1] = 2;
  d->geometry = steps_of_2();
}

static void append_pool_grad(tape *t, const char *name, mlk_tensor dy, mlk_tensor indices, mlk_tensor dx) {
  mlk_pool_grad_desc *d = &append(t, OP_POOL_GRAD, name)->as.pool_grad;
  d->kind = MLK_POOL_MAX;
  d->dy = dy, d->indices = indices, d->dx = dx;
  d->window[0] = d->window[1] = 2;
  d->geometry = steps_of_2();
}

/* d = a b; returned for a bias and an activation */
static mlk_matmul_desc *append_matmul(tape *t, const char *name, mlk_tensor a, mlk_tensor b, mlk_tensor d) {
  mlk_matmul_desc *mm = &append(t, OP_MATMUL, name)->as.matmul;
  mm->a = a, mm->b = b, mm->d = d;
  return mm;
}

static void append_reduce(tape *t, const char *name, mlk_reduce_op op, mlk_tensor x, int axis, mlk_tensor out) {
  mlk_reduce_desc *d = &append(t, OP_REDUCE, name)->as.reduce;
  d->op = op, d->x = x, d->out = out, d->axes = 1u << axis;
}

/* dy = dy relu'(y), in place. ReLU's output serves for its argument: both are above 0 at the same places. */
static void append_relu_grad(tape *t, const char *name, mlk_tensor y, mlk_tensor dy) {
  mlk_map_desc *d = &append(t, OP_MAP, name)->as.map;
  d->op = MLK_ACT_GRAD, d->activation = MLK_RELU;
  d->a = y, d->b = dy, d->out = dy;
}

/* Gradients of y = x w^T + bias with w [out, in]; dx absent: not wanted. */
static void append_dense_grads(tape *t, const char *const *names, mlk_tensor x, mlk_tensor w, mlk_tensor dy,
                               mlk_tensor dw, mlk_tensor dbias, mlk_tensor dx) {
  append_matmul(t, names[0], mlk_transposed(dy), x, dw);
  append_reduce(t, names[1], MLK_SUM, dy, 0, dbias);
  append_matmul(t, names[2], dy, w, dx);
}

/* The weights of layers that begin at layer[], or their gradients */
static float *part_of(const network *n, float *const *layer, int part) {
  return layer[part / 2] + (n->first[part] - n->first[part - part % 2]);
}

static mlk_tensor conv_weights(const network *n, float *const *layer, int part) {
  const int64_t out = part == CONV1_W ? n->channels1 : n->channels2, in = part == CONV1_W ? 1 : n->channels1;
  return image(part_of(n, layer, part), out, in, 3, 3);
}

static mlk_tensor dense_weights(const network *n, float *const *layer, int part) {
  const int64_t out = part == DENSE1_W ? n->hidden : (int64_t)CLASSES, in = part == DENSE1_W ? n->flat : n->hidden;
  return mlk_f32(part_of(n, layer, part), out, in);
}

static mlk_tensor bias_of(const network *n, float *const *layer, int part) {
  return mlk_f32(part_of(n, layer, part), n->first[part + 1] - n->first[part]);
}

static void record_forward(network *n) {
  const int64_t batch = n->batch, c1 = n->channels1, c2 = n->channels2;
  float *const *w = n->layer;
  const mlk_tensor y1 = image(n->y1, batch, c1, n->rows, n->cols), p1 = image(n->p1, batch, c1, n->rows1, n->cols1);
  const mlk_tensor y2 = image(n->y2, batch, c2, n->rows1, n->cols1), p2 = image(n->p2, batch, c2, n->rows2, n->cols2);
  const mlk_tensor h = mlk_f32(n->h, batch, n->hidden);
  tape *t = &n->forward;
  mlk_matmul_desc *dense;
  append_conv(t, "conv 1", image(n->x, batch, 1, n->rows, n->cols), conv_weights(n, w, CONV1_W), bias_of(n, w, CONV1_B),
              y1);
  append_pool(t, "pool 1", y1, p1, places(n->place1, batch, c1, n->rows1, n->cols1));
  append_conv(t, "conv 2", p1, conv_weights(n, w, CONV2_W), bias_of(n, w, CONV2_B), y2);
  append_pool(t, "pool 2", y2, p2, places(n->place2, batch, c2, n->rows2, n->cols2));
  dense = append_matmul(t, "dense 1", mlk_f32(n->p2, batch, n->flat), mlk_transposed(dense_weights(n, w, DENSE1_W)), h);
  dense->bias = bias_of(n, w, DENSE1_B);
  dense->activation = MLK_RELU;
  dense = append_matmul(t, "dense 2", h, mlk_transposed(dense_weights(n, w, DENSE2_W)),
                        mlk_f32(n->logits, batch, CLASSES));
  dense->bias = bias_of(n, w, DENSE2_B);
}

static void append_cross_entropy(network *n, tape *t, int with_gradient) {
  mlk_cross_entropy_desc *d = &append(t, OP_CROSS_ENTROPY, "cross-entropy")->as.cross_entropy;
  d->x = mlk_f32(n->logits, n->batch, CLASSES);
  d->labels = mlk_i64(n->labels, n->batch);
  d->loss = mlk_f32(n->loss, n->batch);
  if (with_gradient) d->dx = mlk_f32(n->dlogits, n->batch, CLASSES);
  d->scale = &n->per_picture;
}

/* In a group: the gradients of a layer of this share are there for the others. */
static void append_publish(const network *n, share *s, int bucket) {
  group_call *g;
  if (!n->group) return;
  g = &append(&s->learn, OP_PUBLISH, "publish")->as.group;
  g->group = n->group, g->share = n->first_share + (int)(s - n->share), g->bucket = bucket;
}

static void record_backward(network *n, share *s) {
  static const char *const dense1[3] = {"dense 1, weights' gradient", "dense 1, bias' gradient",
                                        "dense 1, input's gradient"};
  static const char *const dense2[3] = {"dense 2, weights' gradient", "dense 2, bias' gradient",
                                        "dense 2, input's gradient"};
  const int64_t batch = n->batch, c1 = n->channels1, c2 = n->channels2;
  float *const *w = n->layer, *const *g = s->slot;
  const mlk_tensor p1 = image(n->p1, batch, c1, n->rows1, n->cols1);
  const mlk_tensor dp1 = image(n->dp1, batch, c1, n->rows1, n->cols1);
  const mlk_tensor dp2 = image(n->dp2, batch, c2, n->rows2, n->cols2);
  const mlk_tensor dy1 = image(n->dy1, batch, c1, n->rows, n->cols);
  const mlk_tensor dy2 = image(n->dy2, batch, c2, n->rows1, n->cols1);
  const mlk_tensor h = mlk_f32(n->h, batch, n->hidden), dh = mlk_f32(n->dh, batch, n->hidden);
  tape *t = &s->learn;
  append_dense_grads(t, dense2, h, dense_weights(n, w, DENSE2_W), mlk_f32(n->dlogits, batch, CLASSES),
                     dense_weights(n, g, DENSE2_W), bias_of(n, g, DENSE2_B), dh);
  append_publish(n, s, DENSE2);
  append_relu_grad(t, "dense 1, ReLU's gradient", h, dh);
  append_dense_grads(t, dense1, mlk_f32(n->p2, batch, n->flat), dense_weights(n, w, DENSE1_W), dh,
                     dense_weights(n, g, DENSE1_W), bias_of(n, g, DENSE1_B), mlk_f32(n->dp2, batch, n->flat));
  append_publish(n, s, DENSE1);
  /* ReLU and a maximum change places freely: its gradient is taken after pooling, where there is a quarter to do. */
  append_relu_grad(t, "conv 2, ReLU's gradient", mlk_f32(n->p2, batch, n->flat), mlk_f32(n->dp2, batch, n->flat));
  append_pool_grad(t, "pool 2, gradient", dp2, places(n->place2, batch, c2, n->rows2, n->cols2), dy2);
  append_conv_grad_weights(t, "conv 2, weights' gradient", p1, dy2, conv_weights(n, g, CONV2_W),
                           bias_of(n, g, CONV2_B));
  append_publish(n, s, CONV2);
  append_conv_grad_input(t, "conv 2, input's gradient", dy2, conv_weights(n, w, CONV2_W), dp1);
  append_relu_grad(t, "conv 1, ReLU's gradient", mlk_f32(n->p1, batch, n->rows1 * n->cols1 * c1),
                   mlk_f32(n->dp1, batch, n->rows1 * n->cols1 * c1));
  append_pool_grad(t, "pool 1, gradient", dp1, places(n->place1, batch, c1, n->rows1, n->cols1), dy1);
  append_conv_grad_weights(t, "conv 1, weights' gradient", image(n->x, batch, 1, n->rows, n->cols), dy1,
                           conv_weights(n, g, CONV1_W), bias_of(n, g, CONV1_B));
  append_publish(n, s, CONV1);
}

static void record_learning(network *n, share *s) {
  append_cross_entropy(n, &s->learn, 1);
  append_reduce(&s->learn, "mean loss", MLK_MEAN, mlk_f32(n->loss, n->batch), 0, mlk_f32(s->slot[AGREED] + LOSS, 1));
  append_publish(n, s, AGREED);
  record_backward(n, s);
}

static int64_t bucket_elements(const network *n, int bucket) {
  return bucket == AGREED ? (int64_t)FIGURES : n->first[2 * bucket + 2] - n->first[2 * bucket];
}

/* The means of all buckets, in the order in which they are published. */
static void record_means(network *n) {
  static const int order[BUCKETS] = {AGREED, DENSE2, DENSE1, CONV2, CONV1};
  int i;
  for (i = 0; i < BUCKETS; i++) {
    const int bucket = order[i];
    group_call *g = &append(&n->update, OP_AVERAGE, "average")->as.group;
    g->group = n->group, g->bucket = bucket;
    g->means = mlk_f32(bucket == AGREED ? n->figures : n->grads + n->first[2 * bucket], bucket_elements(n, bucket));
  }
  append(&n->update, OP_FINISH, "finish the step")->as.group.group = n->group;
  n->update.op[n->update.count - 1].as.group.report = &n->report;
}

static void record_update(network *n) {
  const int64_t count = n->first[PARTS];
  mlk_clip_norm_desc *clip;
  mlk_adamw_desc *adamw;
  if (n->group) record_means(n);
  n->all_grads = mlk_f32(n->grads, count);
  clip = &append(&n->update, OP_CLIP_NORM, "clip the gradient")->as.clip_norm;
  clip->grads = &n->all_grads, clip->count = 1, clip->max_norm = MAX_NORM, clip->norm = &n->norm;
  adamw = &append(&n->update, OP_ADAMW, "AdamW")->as.adamw; /* the last entry: see learn_batch */
  adamw->param = mlk_f32(n->weights, count), adamw->grad = n->all_grads;
  adamw->m = mlk_f32(n->m, count), adamw->v = mlk_f32(n->v, count);
  adamw->step = 1, adamw->weight_decay = WEIGHT_DECAY;
}

static void record_judging(network *n) {
  mlk_softmax_desc *softmax;
  append_cross_entropy(n, &n->judge, 0);
  append_reduce(&n->judge, "arg max", MLK_ARGMAX, mlk_f32(n->logits, n->batch, CLASSES), 1,
                mlk_i64(n->predicted, n->batch));
  softmax = &append(&n->judge, OP_SOFTMAX, "softmax")->as.softmax;
  softmax->x = mlk_f32(n->logits, n->batch, CLASSES), softmax->y = mlk_f32(n->probability, n->batch, CLASSES);
}

/* What memory is for: see print_bytes. */
enum { PARAMETERS, GRADIENTS, OPTIMISER, ACTIVATIONS, BACKWARD, BATCH, WRITING, KINDS };

/* A region of memory cut into arrays that begin at multiples of 64 bytes. base NULL: only counts. */
typedef struct region {
  char *base;
  size_t used, of[KINDS];
  int kind; /* of what is cut next */
} region;

static void *cut(region *r, int64_t elements, size_t size) {
  const size_t bytes = ((size_t)elements * size + 63) / 64 * 64;
  char *here = r->base ? r->base + r->used : NULL;
  r->used += bytes, r->of[r->kind] += bytes;
  return here;
}

static float *cut_floats(region *r, int kind, int64_t elements) {
  r->kind = kind;
  return (float *)cut(r, elements, sizeof(float));
}

static int64_t *cut_integers(region *r, int kind, int64_t elements) {
  r->kind = kind;
  return (int64_t *)cut(r, elements, sizeof(int64_t));
}

static void lay_out(network *n, region *r) {
  const int64_t batch = n->batch, count = n->first[PARTS];
  const int64_t image1 = batch * n->rows * n->cols * n->channels1, pooled1 = batch * n->rows1 * n->cols1 * n->channels1;
  const int64_t image2 = batch * n->rows1 * n->cols1 * n->channels2, pooled2 = batch * n->flat;
  n->weights = cut_floats(r, PARAMETERS, count), n->grads = cut_floats(r, GRADIENTS, count);
  n->m = cut_floats(r, OPTIMISER, count), n->v = cut_floats(r, OPTIMISER, count);
  n->x = cut_floats(r, BATCH, batch * n->rows * n->cols);
  n->y1 = cut_floats(r, ACTIVATIONS, image1), n->dy1 = cut_floats(r, BACKWARD, image1);
  n->p1 = cut_floats(r, ACTIVATIONS, pooled1), n->dp1 = cut_floats(r, BACKWARD, pooled1);
  n->place1 = cut_integers(r, ACTIVATIONS, pooled1);
  n->y2 = cut_floats(r, ACTIVATIONS, image2), n->dy2 = cut_floats(r, BACKWARD, image2);
  n->p2 = cut_floats(r, ACTIVATIONS, pooled2), n->dp2 = cut_floats(r, BACKWARD, pooled2);
  n->place2 = cut_integers(r, ACTIVATIONS, pooled2);
  n->h = cut_floats(r, ACTIVATIONS, batch * n->hidden), n->dh = cut_floats(r, BACKWARD, batch * n->hidden);
  n->logits = cut_floats(r, ACTIVATIONS, batch * CLASSES), n->dlogits = cut_floats(r, BACKWARD, batch * CLASSES);
  n->probability = cut_floats(r, WRITING, batch * CLASSES);
  n->loss = cut_floats(r, BATCH, batch);
  n->labels = cut_integers(r, BATCH, batch), n->predicted = cut_integers(r, WRITING, batch);
}

/* He's initialisation, uniform: an integer of 24 bits times a float, so one rounding decides each weight. */
static void first_weights(network *n, int part, int64_t inputs) {
  const float unit = sqrtf(6.0f / (float)inputs) * (1.0f / 8388608.0f);
  uint64_t state = generator(FOR_WEIGHTS, part);
  int64_t i;
  for (i = n->first[part]; i < n->first[part + 1]; i++)
    n->weights[i] = (float)((int32_t)(draw(&state) >> 40) - 8388608) * unit;
}

static void point_to_layers(network *n) {
  int layer;
  for (layer = 0; layer < LAYERS; layer++) n->layer[layer] = n->weights + n->first[2 * layer];
}

static int network_open(network *n, const picture_set *set, int64_t batch, int shares) {
  region r;
  int64_t size[PARTS];
  int part;
  memset(&r, 0, sizeof r);
  n->batch = batch / shares, n->shares = n->own_shares = shares, n->rows = set->train.rows, n->cols = set->train.cols;
  n->channels1 = set->channels1, n->channels2 = set->channels2, n->hidden = set->hidden;
  n->rows1 = n->rows / 2, n->cols1 = n->cols / 2, n->rows2 = n->rows1 / 2, n->cols2 = n->cols1 / 2;
  n->flat = n->rows2 * n->cols2 * n->channels2;
  n->per_picture = 1.0f / (float)n->batch;
  size[CONV1_W] = n->channels1 * TAPS, size[CONV1_B] = n->channels1;
  size[CONV2_W] = n->channels2 * TAPS * n->channels1, size[CONV2_B] = n->channels2;
  size[DENSE1_W] = n->hidden * n->flat, size[DENSE1_B] = n->hidden;
  size[DENSE2_W] = CLASSES * n->hidden, size[DENSE2_B] = CLASSES;
  for (part = 0; part < PARTS; part++) n->first[part + 1] = n->first[part] + size[part];
  lay_out(n, &r);
  n->memory = calloc(r.used + 64, 1);
  if (!n->memory) return fail_run("the network", "no memory for it; a smaller --batch needs less");
  r.base = (char *)n->memory + (64 - (uintptr_t)n->memory % 64) % 64;
  r.used = 0;
  lay_out(n, &r);
  first_weights(n, CONV1_W, TAPS), first_weights(n, CONV2_W, TAPS * n->channels1);
  first_weights(n, DENSE1_W, n->flat);
  first_weights(n, DENSE2_W, 16 * n->hidden); /* a quarter: the first guesses are near one tenth for each class */
  point_to_layers(n);
  return 0;
}

/* A slot is the group's, or what learning reads. */
static float *slot_of(network *n, int number, int bucket) {
  if (n->group) return (float *)mlk_group_slot(n->group, n->first_share + number, bucket).data;
  return bucket == AGREED ? n->figures : n->grads + n->first[2 * bucket];
}

/* The tapes, once it is known which replica this is. */
static int record(network *n) {
  int number, bucket;
  n->share = (share *)calloc((size_t)n->own_shares, sizeof *n->share);
  if (!n->share) return fail_run("the network", "no memory for its tapes");
  record_forward(n);
  for (number = 0; number < n->own_shares; number++) {
    for (bucket = 0; bucket < BUCKETS; bucket++) n->share[number].slot[bucket] = slot_of(n, number, bucket);
    record_learning(n, &n->share[number]);
  }
  record_update(n), record_judging(n);
  return 0;
}

/* FNV-1a over the bits of all weights in their order, little-endian whatever this machine is. */
static uint64_t hash_weights(const network *n) {
  uint64_t hash = FNV_START;
  int64_t i;
  for (i = 0; i < n->first[PARTS]; i++) {
    uint32_t bits;
    uint8_t bytes[4];
    memcpy(&bits, &n->weights[i], sizeof bits);
    bytes[0] = (uint8_t)bits, bytes[1] = (uint8_t)(bits >> 8);
    bytes[2] = (uint8_t)(bits >> 16), bytes[3] = (uint8_t)(bits >> 24);
    hash = fnv1a(hash, bytes, 4);
  }
  return hash;
}

/* ---- training ---------------------------------------------------------------------------------------------------- */

typedef struct training {
  const picture_set *set;
  const options *opt;
  mlk_context *ctx;
  network net;
  char out[MAX_PATH_BYTES]; /* folder of checkpoint, curve and mistakes; "": nothing is written */
  int64_t batch;            /* pictures of a step */
  int64_t epochs, per_epoch, total, stop;
  int64_t step, first_step; /* steps done; and when this program started */
  int64_t ordered_epoch;    /* whose order this is; -1: none */
  uint32_t *order;          /* [training pictures] */
  float *loss;              /* [total] mean of each step's batch */
  float *test_loss;         /* [epochs] */
  float *test_accuracy;     /* [epochs]; below 0: not measured */
  int64_t judged_step;      /* of what follows; -1: nothing yet */
  uint8_t *predicted;       /* [test pictures] */
  float *picture_loss, *confidence;
  double started, saved, spoken, learning_seconds;
  int pinned_checked;
  int64_t learned; /* pictures, by all replicas together, in the steps of this program */
  int stopped;     /* all replicas end after this step */
  int rank;        /* of this replica; 0 when there is one */
  long parent;     /* the process that made this one, when replicas are processes; else 0 */
  uint32_t lost;   /* bit r: replica r was lost */
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

/* ---- a step of a group of replicas ------------------------------------------------------------------------------- */

static int count_bits(uint32_t bits) {
  int count = 0;
  for (; bits; bits &= bits - 1) count++;
  return count;
}

/* Of the last step; without a group all of it is one share. */
static int shares_learned(const network *n) { return n->group ? count_bits(n->report.shares) : 1; }

/* A step that failed since a replica was lost, or this one left out. */
static int tell_loss(const training *t) {
  complain("replica %d ends in step %" PRId64 " of the training: %s%s", t->rank, t->step + 1, mlk_last_error(t->ctx),
           *t->out ? "; the last checkpoint is whole" : "");
  return EXIT_RUN;
}

/* Waits until all replicas have come. */
static int join_group(training *t, const mlk_group_desc *desc, uint64_t *workspace) {
  network *n = &t->net;
  mlk_group_plan plan;
  mlk_status status = mlk_group_get_plan(t->ctx, desc, &plan);
  if (status == MLK_OK) status = mlk_group_open(t->ctx, &n->group, desc);
  if (status == MLK_ERR_REPLICA) return tell_loss(t);
  if (status != MLK_OK) return library_failed(t->ctx, "joining the group", status);
  *workspace = plan.workspace_bytes;
  n->first_share = desc->rank * desc->shares / desc->ranks;
  n->own_shares = (desc->rank + 1) * desc->shares / desc->ranks - n->first_share;
  n->report.members = (UINT32_C(1) << desc->ranks) - 1; /* until the first step tells */
  return 0;
}

/* The lowest replica that is left tells who is not. */
static void say_losses(training *t) {
  const mlk_group_report *r = &t->net.report;
  const uint32_t lost = r->lost & ~t->lost;
  int rank;
  t->lost = (t->lost | r->lost) & ~r->members;
  for (rank = 0; rank < (int)t->opt->replicas && leads(t); rank++)
    if (lost >> rank & 1)
      complain("replica %d was lost in step %" PRId64 "; %d of %d go on without its shares", rank, t->step + 1,
               count_bits(r->members), (int)t->opt->replicas);
}

/* Waits for the others. One who comes late, when the group was already on its way, gets its state from another. */
static int begin_step(training *t) {
  network *n = &t->net;
  mlk_tensor state[7];
  mlk_status status = mlk_group_begin(n->group, NULL, &n->report);
  if (status == MLK_OK) say_losses(t);
  if (status == MLK_OK && n->report.joined) {
    state[0] = mlk_f32(n->weights, n->first[PARTS]), state[1] = mlk_f32(n->m, n->first[PARTS]);
    state[2] = mlk_f32(n->v, n->first[PARTS]), state[3] = mlk_i64(&t->step, 1), state[4] = mlk_f32(t->loss, t->total);
    state[5] = mlk_f32(t->test_loss, t->epochs), state[6] = mlk_f32(t->test_accuracy, t->epochs);
    status = mlk_group_sync(n->group, state, 7);
  }
  return status == MLK_OK ? 0 : library_failed(t->ctx, "beginning a step", status);
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
  const int64_t every = t->opt->save_steps;
  if (!*t->out || !leads(t)) return 0;
  return every ? (t->step + 1) % every == 0 : now_seconds() - t->saved > SAVE_SECONDS;
}

/* ---- learning and judging ---------------------------------------------------------------------------------------- */

/* Row `row` of the batch: a picture, normalised; what a shift uncovers is black. */
static void fill_row(network *n, const picture_set *set, const pictures *from, int64_t row, int64_t picture, view v) {
  const float unit = 1.0f / (float)set->spread;
  const uint8_t *pixels = from->pixels + picture * n->rows * n->cols;
  float *to = n->x + row * n->rows * n->cols;
  int64_t i, j;
  n->labels[row] = from->labels[picture];
  for (i = 0; i < n->rows; i++)
    for (j = 0; j < n->cols; j++) {
      const int64_t y = i - v.down, x = (v.flip ? n->cols - 1 - j : j) - v.right;
      const int inside = y >= 0 && y < n->rows && x >= 0 && x < n->cols;
      *to++ = (float)((inside ? pixels[y * n->cols + x] : 0) - set->mean) * unit;
    }
}

/* Rises over WARM_UP_STEPS, stays, and falls over the last two thirds along r^2 (3 - 2 r), much like half a cosine.
   Products of floats, and 3 - 2 r, where 2 r is exact: nothing that a compiler may contract changes a bit. */
static float learning_rate(int64_t step, int64_t total) {
  const int64_t falling = total - total / 3, left = total - step;
  const float r = left < falling ? (float)left / (float)falling : 1.0f;
  const float rise = step + 1 < WARM_UP_STEPS ? (float)(step + 1) / (float)WARM_UP_STEPS : 1.0f;
  return PEAK_LEARNING_RATE * rise * (r * r * (3.0f - 2.0f * r));
}

/* The pictures of a share of this step */
static void fill_share(training *t, int number) {
  network *n = &t->net;
  const int64_t epoch = t->step / t->per_epoch, first = t->step % t->per_epoch * t->batch + number * n->batch;
  int64_t i;
  if (t->ordered_epoch != epoch) shuffle(t->order, t->set->train.count, epoch), t->ordered_epoch = epoch;
  for (i = 0; i < n->batch; i++) {
    const uint32_t picture = t->order[first + i];
    fill_row(n, t->set, &t->set->train, i, picture, draw_view(epoch, picture, t->set->flips, t->set->shifts));
  }
}

static int learn_share(training *t, int number, int save) {
  network *n = &t->net;
  share *s = &n->share[number];
  int code;
  fill_share(t, n->first_share + number);
  s->slot[AGREED][STOP] = interrupted ? 1 : 0;
  s->slot[AGREED][SAVE] = save ? 1 : 0;
  code = run_tape(t->ctx, &n->forward);
  return code ? code : run_tape(t->ctx, &s->learn);
}

static int learn_batch(training *t) {
  network *n = &t->net;
  mlk_adamw_desc *adamw = &n->update.op[n->update.count - 1].as.adamw;
  int code = n->group ? begin_step(t) : 0, i;
  const int save = is_time_to_save(t);
  if (is_orphan(t)) interrupted = 1;
  for (i = 0; i < n->own_shares && !code; i++) code = learn_share(t, i, save);
  adamw->step = t->step + 1;
  adamw->lr = learning_rate(t->step, t->total);
  if (!code) code = run_tape(t->ctx, &n->update);
  if (code) return code;
  if (n->group) say_losses(t);
  if (!(n->norm < INFINITY) || !(n->figures[LOSS] < INFINITY))
    return leads(t) ? fail_run("training", "the loss or its gradient is no longer a finite number") : EXIT_RUN;
  t->loss[t->step++] = n->figures[LOSS];
  t->learned += shares_learned(n) * n->batch;
  t->stopped = n->figures[STOP] > 0;
  return 0;
}

/* All test pictures forward; predictions, losses and confidences stay in t. */
static int judge(training *t, double *mean_loss, int64_t *correct) {
  static const view as_it_is = {0, 0, 0};
  const pictures *test = &t->set->test;
  network *n = &t->net;
  int64_t first, i;
  *mean_loss = 0, *correct = 0;
  for (first = 0; first < test->count; first += n->batch) {
    const int64_t count = test->count - first < n->batch ? test->count - first : n->batch;
    int code;
    for (i = 0; i < count; i++) fill_row(n, t->set, test, i, first + i, as_it_is);
    for (i = count; i < n->batch; i++) n->labels[i] = -1; /* rows that do not count */
    code = run_tape(t->ctx, &n->forward);
    if (!code) code = run_tape(t->ctx, &n->judge);
    if (code) return code;
    for (i = 0; i < count; i++) {
      const int64_t predicted = n->predicted[i];
      t->predicted[first + i] = (uint8_t)predicted;
      t->picture_loss[first + i] = n->loss[i];
      t->confidence[first + i] = n->probability[i * CLASSES + predicted];
      *mean_loss += (double)n->loss[i] / (double)test->count;
      *correct += predicted == n->labels[i];
    }
  }
  t->judged_step = t->step;
  return 0;
}

/* ---- checkpoint -----------------------------------------------------------------------------------------------------

   Little-endian. Magic, then seven integers of 8 bytes: bytes of the whole file, fingerprint of the data, batch,
   epochs, shares, number of weights, step. Then floats of 4 bytes: weights, m, v, the loss of each step so far, test
   loss and accuracy of each epoch so far. Last FNV-1a of all that, 8 bytes.
   Written to another name, synced, renamed, and the folder synced: whenever the program or the machine stops, the file
   holds the old state or the new one. */

static const char CHECKPOINT_MAGIC[9] = "MLKCNN02";
enum { CHECKPOINT_INTEGERS = 7, CHECKPOINT_HEADER = 8 + 8 * CHECKPOINT_INTEGERS };

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

static int64_t checkpoint_bytes(const training *t, int64_t step) {
  return CHECKPOINT_HEADER + 4 * (3 * t->net.first[PARTS] + step + 2 * (step / t->per_epoch)) + 8;
}

static uint8_t *pack_checkpoint(const training *t, int64_t bytes) {
  const int64_t weights = t->net.first[PARTS], epochs = t->step / t->per_epoch;
  uint8_t *file = (uint8_t *)malloc((size_t)bytes), *to = file;
  if (!file) return NULL;
  memcpy(to, CHECKPOINT_MAGIC, 8), to += 8;
  to = put_integer(to, (uint64_t)bytes, 8);
  to = put_integer(to, t->set->fingerprint, 8);
  to = put_integer(to, (uint64_t)t->batch, 8);
  to = put_integer(to, (uint64_t)t->epochs, 8);
  to = put_integer(to, (uint64_t)t->net.shares, 8);
  to = put_integer(to, (uint64_t)weights, 8);
  to = put_integer(to, (uint64_t)t->step, 8);
  to = put_floats(to, t->net.weights, weights);
  to = put_floats(to, t->net.m, weights);
  to = put_floats(to, t->net.v, weights);
  to = put_floats(to, t->loss, t->step);
  to = put_floats(to, t->test_loss, epochs);
  to = put_floats(to, t->test_accuracy, epochs);
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
static int replace_file(const char *from, const char *to, const char *folder) {
#if defined(_WIN32)
  (void)folder;
  if (MoveFileExA(from, to, MOVEFILE_REPLACE_EXISTING | MOVEFILE_WRITE_THROUGH)) return 0;
  errno = EIO;
  return 1;
#else
  int descriptor, bad;
  if (rename(from, to) != 0) return 1;
  descriptor = open(folder, O_RDONLY);
  if (descriptor < 0) return 1;
  bad = fsync(descriptor) != 0 && errno != EINVAL; /* EINVAL: this file system does not sync folders */
  return close(descriptor) != 0 || bad;
#endif
}

static int save_checkpoint(training *t) {
  const int64_t bytes = checkpoint_bytes(t, t->step);
  char path[MAX_PATH_BYTES], temporary[MAX_PATH_BYTES];
  uint8_t *packed;
  FILE *file;
  int bad;
  if (!*t->out) return 0;
  if (join_path(path, t->out, "checkpoint", "") || join_path(temporary, t->out, "checkpoint", ".new"))
    return EXIT_INPUT;
  packed = pack_checkpoint(t, bytes);
  if (!packed) return fail_run(path, "no memory to write it");
  file = fopen(temporary, "wb");
  bad = !file || fwrite(packed, 1, (size_t)bytes, file) != (size_t)bytes || sync_file(file);
  bad = bad ? errno : 0;
  if (file && fclose(file) != 0 && !bad) bad = errno;
  free(packed);
  if (!bad && replace_file(temporary, path, t->out)) bad = errno;
  if (bad) {
    complain("%s cannot be written: %s; the checkpoint before it stays as it was", temporary, strerror(bad));
    return EXIT_RUN;
  }
  t->saved = now_seconds();
  return 0;
}

/* Everything that can be wrong with the bytes of a file named path. */
static int check_checkpoint(const training *t, const char *path, const uint8_t *file, int64_t bytes) {
  const uint8_t *integers = file + 8;
  int64_t value[CHECKPOINT_INTEGERS];
  int i;
  if (bytes < CHECKPOINT_HEADER + 8 || memcmp(file, CHECKPOINT_MAGIC, 8) != 0)
    return complain("%s is no checkpoint of this program: it does not begin with %s; --fresh begins anew", path,
                    CHECKPOINT_MAGIC);
  for (i = 0; i < CHECKPOINT_INTEGERS; i++) value[i] = (int64_t)get_integer(integers + 8 * i, 8);
  if (value[0] != bytes)
    return complain("%s is damaged: it has %" PRId64 " bytes and says %" PRId64 "; --fresh begins anew", path, bytes,
                    value[0]);
  if (get_integer(file + bytes - 8, 8) != fnv1a(FNV_START, file, bytes - 8))
    return complain("%s is damaged: its checksum does not fit its %" PRId64 " bytes; --fresh begins anew", path, bytes);
  if ((uint64_t)value[1] != t->set->fingerprint)
    return complain("%s belongs to other pictures than those in %s; --fresh begins anew", path, t->set->folder);
  if (value[2] != t->batch || value[3] != t->epochs)
    return complain("%s was made with --batch %" PRId64 " --epochs %" PRId64 ", this is --batch %" PRId64
                    " --epochs %" PRId64 "; --fresh begins anew",
                    path, value[2], value[3], t->batch, t->epochs);
  if (value[4] != t->net.shares)
    return complain("%s was made with --shares %" PRId64 ", this is --shares %d; --fresh begins anew", path, value[4],
                    t->net.shares);
  if (value[5] != t->net.first[PARTS] || value[6] < 0 || value[6] > t->total || bytes != checkpoint_bytes(t, value[6]))
    return complain("%s has %" PRId64 " weights, step %" PRId64 " and %" PRId64
                    " bytes, which do not go together; --fresh begins anew",
                    path, value[5], value[6], bytes);
  return 0;
}

/* The file's bytes, at most `most` and one more. NULL: memory. */
static uint8_t *read_bytes(FILE *file, int64_t most, int64_t *bytes) {
  uint8_t *all = (uint8_t *)malloc((size_t)most + 1);
  if (all) *bytes = (int64_t)fread(all, 1, (size_t)most + 1, file);
  return all;
}

/* Continues where the checkpoint stands, if there is one. */
static int load_checkpoint(training *t) {
  const int64_t weights = t->net.first[PARTS];
  char path[MAX_PATH_BYTES];
  int64_t bytes = 0;
  const uint8_t *from;
  uint8_t *packed;
  FILE *file;
  int code;
  if (!*t->out || t->opt->fresh) return 0;
  if (join_path(path, t->out, "checkpoint", "")) return EXIT_INPUT;
  file = fopen(path, "rb");
  if (!file && errno == ENOENT) return t->opt->resume ? complain("--resume: there is no %s", path) : 0;
  if (!file) return complain("%s cannot be opened: %s", path, strerror(errno));
  packed = read_bytes(file, checkpoint_bytes(t, t->total), &bytes);
  fclose(file);
  if (!packed) return fail_run(path, "no memory to read it");
  code = check_checkpoint(t, path, packed, bytes);
  if (!code) {
    t->step = t->first_step = (int64_t)get_integer(packed + CHECKPOINT_HEADER - 8, 8);
    from = get_floats(packed + CHECKPOINT_HEADER, t->net.weights, weights);
    from = get_floats(from, t->net.m, weights);
    from = get_floats(from, t->net.v, weights);
    from = get_floats(from, t->loss, t->step);
    from = get_floats(from, t->test_loss, t->step / t->per_epoch);
    get_floats(from, t->test_accuracy, t->step / t->per_epoch);
  }
  free(packed);
  return code;
}

/* ---- the line of progress, and the loop -------------------------------------------------------------------------- */

/* The line so far: loss is the mean over the last tenth of an epoch. */
static void say_progress(training *t, const char *start) {
  const int64_t here = t->step - t->first_step, tenth = t->per_epoch / 10 + 1,
                window = t->step < tenth ? t->step : tenth;
  const double now = now_seconds(), left = (now - t->started) / (double)here * (double)(t->stop - t->step);
  double loss = 0;
  char rate[32];
  int64_t i;
  for (i = t->step - window; i < t->step; i++) loss += (double)t->loss[i] / (double)window;
  printf("%sepoch %" PRId64 "/%" PRId64 "  step %" PRId64 "/%" PRId64 "  %s images/s  loss %.4f  ", start,
         (t->step - 1) / t->per_epoch + 1, t->epochs, t->step, t->stop,
         grouped((int64_t)((double)t->learned / t->learning_seconds), rate), loss);
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

/* Loss and accuracy on the test pictures, which no weight ever sees. Every replica measures them: it could only wait
   meanwhile. */
static int end_epoch(training *t) {
  const int64_t epoch = t->step / t->per_epoch - 1;
  int64_t correct = 0;
  double loss = 0;
  int code;
  t->test_loss[epoch] = 0, t->test_accuracy[epoch] = -1;
  if (t->opt->hash_only) return 0;
  code = judge(t, &loss, &correct);
  if (code) return code;
  t->test_loss[epoch] = (float)loss;
  t->test_accuracy[epoch] = (float)correct / (float)t->set->test.count;
  if (!leads(t)) return 0;
  say_progress(t, on_terminal() ? "\r" : "");
  printf("   test: loss %.4f, %.2f %%%s\n", loss, 100.0 * (double)t->test_accuracy[epoch],
         on_terminal() ? "\033[K" : "");
  fflush(stdout);
  return 0;
}

/* The hash that this source file promises, when this run passes by it with the batch and schedule it was made with. */
static int check_pinned(training *t) {
  uint64_t hash;
  if (t->step != PINNED_STEPS || !t->set->pinned || t->batch != t->set->batch || t->net.shares > 1 ||
      t->total / 3 < PINNED_STEPS)
    return 0;
  hash = hash_weights(&t->net);
  t->pinned_checked = 1;
  if (hash == t->set->pinned) return 0;
  complain("after %d steps the hash of the weights is %016" PRIx64 "; it must be %016" PRIx64, PINNED_STEPS, hash,
           t->set->pinned);
  return EXIT_RUN;
}

static int train(training *t) {
  int code = 0;
  t->started = t->saved = t->spoken = now_seconds();
  while (code == 0 && t->step < t->stop && !t->stopped) {
    const double before = now_seconds();
    code = learn_batch(t);
    t->learning_seconds += now_seconds() - before;
    if (!code) code = check_pinned(t);
    if (!code && t->step % t->per_epoch == 0) code = end_epoch(t);
    if (code) break;
    if (t->net.figures[SAVE] > 0 && t->step < t->stop && !t->stopped && leads(t)) code = save_checkpoint(t);
    progress(t);
  }
  if (!t->opt->hash_only && leads(t) && on_terminal()) fputs("\r\033[K", stdout);
  if (code == 0 && t->step > t->first_step && leads(t)) code = save_checkpoint(t);
  return code == LOST ? tell_loss(t) : code;
}

/* ---- the curve: in the terminal, as CSV, as SVG ------------------------------------------------------------------ */

enum { PLOT_COLUMNS = 64, PLOT_LINES = 14, SVG_POINTS = 400 };

/* The mean loss of the steps that fall on point `at` of `points`. */
static double mean_loss_at(const training *t, int64_t at, int64_t points) {
  const int64_t first = at * t->step / points, end = (at + 1) * t->step / points;
  double sum = 0;
  int64_t i;
  if (end <= first) return (double)t->loss[first];
  for (i = first; i < end; i++) sum += (double)t->loss[i];
  return sum / (double)(end - first);
}

/* Bounds of the logarithmic axis: all means of points and all test losses, and a little air. */
static void loss_bounds(const training *t, int64_t points, double *low, double *high) {
  int64_t i;
  *low = 1e9, *high = 1e-9;
  for (i = 0; i < points + t->step / t->per_epoch; i++) {
    const double loss = i < points ? mean_loss_at(t, i, points) : (double)t->test_loss[i - points];
    if (i >= points && t->test_accuracy[i - points] < 0) continue;
    if (loss < *low) *low = loss;
    if (loss > *high) *high = loss;
  }
  *low = fmax(*low, 1e-6) / 1.1, *high = fmax(*high, 2e-6) * 1.1;
}

/* 0 at low, 1 at high */
static double height_of(double loss, double low, double high) {
  return (log(fmax(loss, low)) - log(low)) / (log(high) - log(low));
}

static void draw_curve(const training *t) {
  char cell[PLOT_LINES][PLOT_COLUMNS + 1];
  double low, high;
  int line, column;
  int64_t epoch;
  char steps[32];
  loss_bounds(t, PLOT_COLUMNS, &low, &high);
  for (line = 0; line < PLOT_LINES; line++) memset(cell[line], ' ', PLOT_COLUMNS), cell[line][PLOT_COLUMNS] = 0;
  for (column = 0; column < PLOT_COLUMNS; column++) {
    line = (int)((1 - height_of(mean_loss_at(t, column, PLOT_COLUMNS), low, high)) * (PLOT_LINES - 1) + 0.5);
    cell[line][column] = '*';
  }
  for (epoch = 0; epoch < t->step / t->per_epoch; epoch++) {
    if (t->test_accuracy[epoch] < 0) continue;
    line = (int)((1 - height_of((double)t->test_loss[epoch], low, high)) * (PLOT_LINES - 1) + 0.5);
    cell[line][((epoch + 1) * t->per_epoch * PLOT_COLUMNS - 1) / t->step] = 'o';
  }
  puts("\nloss, on a logarithmic axis: * training, o test");
  for (line = 0; line < PLOT_LINES; line++) {
    for (column = PLOT_COLUMNS; column > 0 && cell[line][column - 1] == ' '; column--) cell[line][column - 1] = 0;
    printf("%7.3f |%s\n", exp(log(high) - (log(high) - log(low)) * line / (PLOT_LINES - 1)), cell[line]);
  }
  printf("        +");
  for (column = 0; column < PLOT_COLUMNS; column++) fputc('-', stdout);
  printf("\n         0%*s steps\n", PLOT_COLUMNS - 7, grouped(t->step, steps));
}

static int finish_file(FILE *file, const char *path) {
  const int bad = ferror(file);
  if (fclose(file) == 0 && !bad) return 0;
  return fail_run(path, "could not be written to its end");
}

static FILE *create_file(const training *t, const char *name, const char *suffix, char *path) {
  FILE *file = join_path(path, t->out, name, suffix) ? NULL : fopen(path, "wb");
  if (!file) fail_run(path, strerror(errno));
  return file;
}

static int write_csv(const training *t) {
  char path[MAX_PATH_BYTES];
  FILE *file = create_file(t, "loss", ".csv", path);
  int64_t step;
  if (!file) return EXIT_RUN;
  fputs("step,epoch,learning_rate,loss,test_loss,test_accuracy\n", file);
  for (step = 1; step <= t->step; step++) {
    const int64_t epoch = (step - 1) / t->per_epoch;
    fprintf(file, "%" PRId64 ",%" PRId64 ",%.6g,%.6g,", step, epoch + 1, (double)learning_rate(step - 1, t->total),
            (double)t->loss[step - 1]);
    if (step % t->per_epoch == 0 && t->test_accuracy[epoch] >= 0)
      fprintf(file, "%.6g,%.4f\n", (double)t->test_loss[epoch], (double)t->test_accuracy[epoch]);
    else
      fputs(",\n", file);
  }
  return finish_file(file, path);
}

enum { SVG_WIDTH = 760, SVG_HEIGHT = 420, SVG_LEFT = 64, SVG_RIGHT = 20, SVG_TOP = 48, SVG_BOTTOM = 52 };

static double svg_x(const training *t, double step) {
  return (double)SVG_LEFT + step / (double)t->step * (double)(SVG_WIDTH - SVG_LEFT - SVG_RIGHT);
}

static double svg_y(double loss, double low, double high) {
  return (double)SVG_TOP + (1 - height_of(loss, low, high)) * (double)(SVG_HEIGHT - SVG_TOP - SVG_BOTTOM);
}

static void svg_axes(FILE *file, const training *t, double low, double high) {
  static const double lines[] = {0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5};
  const int bottom = SVG_HEIGHT - SVG_BOTTOM;
  int64_t epoch;
  size_t i;
  for (i = 0; i < sizeof lines / sizeof *lines; i++) {
    const double y = svg_y(lines[i], low, high);
    if (lines[i] < low || lines[i] > high) continue;
    fprintf(file, "<path d=\"M%d %.1fH%d\" stroke=\"#ddd\"/><text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%g</text>\n",
            SVG_LEFT, y, SVG_WIDTH - SVG_RIGHT, SVG_LEFT - 8, y + 4, lines[i]);
  }
  for (epoch = 0; epoch <= t->step / t->per_epoch; epoch++) {
    const double x = svg_x(t, (double)(epoch * t->per_epoch));
    fprintf(file, "<path d=\"M%.1f %dv6\" stroke=\"#333\"/>", x, bottom);
    if (t->epochs <= 10 || epoch % 5 == 0)
      fprintf(file, "<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%" PRId64 "</text>\n", x, bottom + 20, epoch);
  }
  fprintf(file, "<path d=\"M%d %dH%d\" stroke=\"#333\"/><text x=\"%d\" y=\"%d\" text-anchor=\"middle\">epoch</text>\n",
          SVG_LEFT, bottom, SVG_WIDTH - SVG_RIGHT, (SVG_LEFT + SVG_WIDTH - SVG_RIGHT) / 2, SVG_HEIGHT - 12);
}

static int write_svg(const training *t) {
  const int64_t points = t->step < SVG_POINTS ? t->step : (int64_t)SVG_POINTS;
  char path[MAX_PATH_BYTES];
  double low, high;
  FILE *file = create_file(t, "loss", ".svg", path);
  int64_t i;
  if (!file) return EXIT_RUN;
  loss_bounds(t, points, &low, &high);
  fprintf(file,
          "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" font-family=\"sans-serif\""
          " font-size=\"13\" fill=\"#333\">\n<rect width=\"100%%\" height=\"100%%\" fill=\"#fff\"/>\n"
          "<text x=\"%d\" y=\"26\" font-size=\"16\">%s: loss of the training batches (line) and of the test pictures"
          " (dots)</text>\n",
          SVG_WIDTH, SVG_HEIGHT, SVG_LEFT, t->set->name);
  svg_axes(file, t, low, high);
  fputs("<polyline fill=\"none\" stroke=\"#0b6fa4\" stroke-width=\"1.5\" points=\"", file);
  for (i = 0; i < points; i++)
    fprintf(file, "%.1f,%.1f ", svg_x(t, ((double)i + 0.5) * (double)t->step / (double)points),
            svg_y(mean_loss_at(t, i, points), low, high));
  fputs("\"/>\n", file);
  for (i = 0; i < t->step / t->per_epoch; i++)
    if (t->test_accuracy[i] >= 0)
      fprintf(file,
              "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"4\" fill=\"#c2410c\"><title>epoch %" PRId64
              ": loss %.4f, accuracy %.2f %%</title></circle>\n",
              svg_x(t, (double)((i + 1) * t->per_epoch)), svg_y((double)t->test_loss[i], low, high), i + 1,
              (double)t->test_loss[i], 100.0 * (double)t->test_accuracy[i]);
  fputs("</svg>\n", file);
  return finish_file(file, path);
}

/* ---- the worst mistakes, as a picture and a legend --------------------------------------------------------------- */

enum { GRID_COLUMNS = 10, GRID_ROWS = 6, TILE = 64, CAPTION = 18, FONT_SCALE = 2 };

typedef struct canvas {
  int64_t width, height;
  uint8_t *rgb; /* [height, width, 3] */
} canvas;

static void paint(canvas *c, int64_t x, int64_t y, int64_t size, uint32_t color) {
  int64_t i, j;
  for (i = y; i < y + size && i < c->height; i++)
    for (j = x; j < x + size && j < c->width; j++) {
      uint8_t *rgb = c->rgb + (i * c->width + j) * 3;
      rgb[0] = (uint8_t)(color >> 16), rgb[1] = (uint8_t)(color >> 8), rgb[2] = (uint8_t)color;
    }
}

/* Digits of 3 x 5 pixels, 10 is an arrow; each row of three bits, the top row in the highest ones. */
static void paint_glyph(canvas *c, int64_t x, int64_t y, int glyph, uint32_t color) {
  static const uint16_t font[11] = {075557, 026227, 071747, 071717, 055711, 074717,
                                    074757, 071122, 075757, 075717, 042124};
  int bit;
  for (bit = 0; bit < 15; bit++)
    if (font[glyph] >> (14 - bit) & 1) paint(c, x + bit % 3 * FONT_SCALE, y + bit / 3 * FONT_SCALE, FONT_SCALE, color);
}

/* One mistake: the picture as large as fits, under it its class (green), an arrow, and what it was taken for (red). */
static void paint_mistake(canvas *c, const training *t, int64_t picture, int64_t left, int64_t top) {
  const pictures *test = &t->set->test;
  const int64_t longer = test->rows > test->cols ? test->rows : test->cols;
  const int64_t scale = (TILE - 4) / longer, below = top + TILE;
  const uint8_t *pixels = test->pixels + picture * test->rows * test->cols;
  int64_t i, j;
  for (i = 0; i < test->rows; i++)
    for (j = 0; j < test->cols; j++) {
      const int level = pixels[i * test->cols + j] * 255 / t->set->brightest;
      const uint32_t grey = (uint32_t)(level > 255 ? 255 : level);
      paint(c, left + (TILE - test->cols * scale) / 2 + j * scale, top + (TILE - test->rows * scale) / 2 + i * scale,
            scale, grey << 16 | grey << 8 | grey);
    }
  paint_glyph(c, left + 18, below + 2, test->labels[picture], 0x58d68d);
  paint_glyph(c, left + 29, below + 2, 10, 0xaaaaaa);
  paint_glyph(c, left + 40, below + 2, t->predicted[picture], 0xff6b6b);
}

/* The wrongly classified pictures of the largest losses, worst first; returns how many. */
static int64_t find_worst(const training *t, int64_t *worst, int64_t room) {
  int64_t count = 0, picture, i;
  for (picture = 0; picture < t->set->test.count; picture++) {
    if (t->predicted[picture] == t->set->test.labels[picture]) continue;
    if (count == room && !(t->picture_loss[picture] > t->picture_loss[worst[count - 1]])) continue;
    if (count < room) count++;
    for (i = count - 1; i > 0 && t->picture_loss[picture] > t->picture_loss[worst[i - 1]]; i--) worst[i] = worst[i - 1];
    worst[i] = picture;
  }
  return count;
}

static int write_legend(const training *t, const int64_t *worst, int64_t count) {
  const picture_set *set = t->set;
  char path[MAX_PATH_BYTES];
  FILE *file = create_file(t, "mistakes", ".txt", path);
  int64_t i;
  if (!file) return EXIT_RUN;
  fputs(
      "The worst mistakes, as they lie in mistakes.ppm\nrow column  picture  truth         taken for     confidence\n",
      file);
  for (i = 0; i < count; i++)
    fprintf(file, "%3d %6d  %7" PRId64 "  %-12s  %-12s  %.4f\n", (int)(i / GRID_COLUMNS + 1),
            (int)(i % GRID_COLUMNS + 1), worst[i], set->class_names[set->test.labels[worst[i]]],
            set->class_names[t->predicted[worst[i]]], (double)t->confidence[worst[i]]);
  return finish_file(file, path);
}

static int write_mistakes(const training *t) {
  int64_t worst[GRID_COLUMNS * GRID_ROWS], i;
  const int64_t count = find_worst(t, worst, GRID_COLUMNS * GRID_ROWS);
  char path[MAX_PATH_BYTES];
  canvas c = {GRID_COLUMNS * TILE, 0, NULL};
  FILE *file;
  int code = write_legend(t, worst, count);
  if (code) return code;
  c.height = count ? (count + GRID_COLUMNS - 1) / GRID_COLUMNS * (TILE + CAPTION) : 1;
  c.rgb = (uint8_t *)calloc((size_t)(c.width * c.height), 3);
  if (!c.rgb) return fail_run("mistakes.ppm", "no memory for it");
  for (i = 0; i < count; i++)
    paint_mistake(&c, t, worst[i], i % GRID_COLUMNS * TILE, i / GRID_COLUMNS * (TILE + CAPTION));
  file = create_file(t, "mistakes", ".ppm", path);
  if (file) {
    fprintf(file, "P6\n%" PRId64 " %" PRId64 "\n255\n", c.width, c.height);
    fwrite(c.rgb, 3, (size_t)(c.width * c.height), file);
  }
  code = file ? finish_file(file, path) : EXIT_RUN;
  free(c.rgb);
  return code;
}

/* ---- what is printed --------------------------------------------------------------------------------------------- */

/* Of steps in which so many shares were learned, the updates that all replicas make counted once. */
static double flops_of_steps(const network *n, int64_t steps, int64_t shares) {
  return (double)(flops_of(&n->forward) + flops_of(&n->share->learn)) * (double)shares +
         (double)flops_of(&n->update) * (double)steps;
}

static void print_group(const training *t) {
  const int replicas = (int)t->opt->replicas;
  printf("replicas   %d %s, %d share%s of %" PRId64 " pictures, gradients in %d buckets\n", replicas,
         t->opt->processes ? (replicas == 1 ? "process" : "processes") : (replicas == 1 ? "thread" : "threads"),
         t->net.shares, t->net.shares == 1 ? "" : "s", t->net.batch, LAYERS);
}

static void print_head(const training *t, const mlk_info *info) {
  const picture_set *set = t->set;
  const network *n = &t->net;
  char a[32], b[32];
  printf("%s   %s pictures to learn from, %s to test, %" PRId64 " x %" PRId64 "   (%s)\n", set->name,
         grouped(set->train.count, a), grouped(set->test.count, b), n->rows, n->cols, set->folder);
  printf("network    conv 3x3 %" PRId64 ", pool, conv 3x3 %" PRId64 ", pool, dense %" PRId64 ", dense %d: %s weights\n",
         n->channels1, n->channels2, n->hidden, CLASSES, grouped(n->first[PARTS], a));
  printf("step       %" PRId64 " pictures forward and back: %.3g GFLOP, %s bytes of workspace reserved\n", t->batch,
         flops_of_steps(n, 1, n->shares) / 1e9, grouped((int64_t)info->workspace_bytes, b));
  printf("device     %s, instruction set %s, %d thread%s%s, %.1f GFLOP/s measured peak\n", info->backend, info->isa,
         info->threads, info->threads == 1 ? "" : "s", info->openmp ? " (OpenMP)" : "", info->ceilings.flops_all / 1e9);
  if (!t->opt->data && strcmp(set->name, "Fashion-MNIST") != 0)
    puts("           Fashion-MNIST is not here: `make data` fetches it, --data DIR names a folder that has it.");
  if (n->group) print_group(t);
  if (t->step) printf("checkpoint continues after step %" PRId64 " of %s/checkpoint\n", t->step, t->out);
  fflush(stdout);
}

static void print_confusion(const training *t) {
  const picture_set *set = t->set;
  int64_t confusion[CLASSES][CLASSES], of_class[CLASSES], i;
  int truth, taken;
  memset(confusion, 0, sizeof confusion);
  memset(of_class, 0, sizeof of_class);
  for (i = 0; i < set->test.count; i++)
    confusion[set->test.labels[i]][t->predicted[i]]++, of_class[set->test.labels[i]]++;
  printf("\n  %-14s", "truth \\ taken");
  for (taken = 0; taken < CLASSES; taken++) printf("%5d", taken);
  printf("   right");
  for (truth = 0; truth < CLASSES; truth++) {
    printf("\n%3d %-12s", truth, set->class_names == digit_names ? "" : set->class_names[truth]);
    for (taken = 0; taken < CLASSES; taken++) {
      if (confusion[truth][taken])
        printf("%5" PRId64, confusion[truth][taken]);
      else
        printf("    .");
    }
    if (of_class[truth]) printf("  %5.1f %%", 100.0 * (double)confusion[truth][truth] / (double)of_class[truth]);
  }
  fputc('\n', stdout);
}

static double seconds_a_call(const operation *op) { return op->calls ? op->seconds / (double)op->calls : 0; }

/* The calls of a training step in their order, those of one share, each with its mean time ("forward" runs for the test
   pictures too). */
static void print_profile(const training *t, const mlk_info *info) {
  const tape *part[3];
  double all = 0;
  int i, j;
  part[0] = &t->net.forward, part[1] = &t->net.share->learn, part[2] = &t->net.update;
  for (i = 0; i < 3; i++)
    for (j = 0; j < part[i]->count; j++) all += seconds_a_call(&part[i]->op[j]);
  printf("\n%-28s %-12s       ms   share  GFLOP/s  of peak    GB/s\n", "call", "variant");
  for (i = 0; i < 3; i++)
    for (j = 0; j < part[i]->count; j++) {
      const operation *op = &part[i]->op[j];
      const double each = seconds_a_call(op), flops = (double)op->plan.flops / each;
      printf("%-28s %-12s %8.3f  %4.1f %%  %7.1f  %5.1f %%  %6.1f\n", op->name, op->plan.variant, each * 1e3,
             100 * each / all, flops / 1e9, 100 * flops / info->ceilings.flops_all,
             (double)op->plan.bytes / each / 1e9);
    }
}

static void print_line(const training *t) {
  char shares[32] = "";
  if (t->net.shares > 1) snprintf(shares, sizeof shares, " shares=%d", t->net.shares);
  printf("%s cnn batch=%" PRId64 "%s epochs=%" PRId64 " steps=%" PRId64 " loss=%.6f hash=%016" PRIx64 "\n",
         t->set->name, t->batch, shares, t->epochs, t->step, t->step ? (double)t->loss[t->step - 1] : 0.0,
         hash_weights(&t->net));
}

static void print_result(const training *t, const mlk_info *info) {
  const int64_t steps = t->step - t->first_step;
  int64_t correct = 0, i;
  char a[32], b[32];
  for (i = 0; i < t->set->test.count; i++) correct += t->predicted[i] == t->set->test.labels[i];
  printf("\naccuracy   %.2f %%   %s of %s test pictures right, after %" PRId64 " steps\n",
         100.0 * (double)correct / (double)t->set->test.count, grouped(correct, a), grouped(t->set->test.count, b),
         t->step);
  if (steps > 0) {
    const double flops = flops_of_steps(&t->net, steps, t->learned / t->net.batch);
    const double peak = info->ceilings.flops_all * (double)t->opt->replicas;
    printf("speed      %s images/s   %.1f GFLOP/s = %.0f %% of the measured peak   (%.1f s of training)\n",
           grouped((int64_t)((double)t->learned / t->learning_seconds), a), flops / t->learning_seconds / 1e9,
           100 * flops / t->learning_seconds / peak, t->learning_seconds);
  }
  printf("hash       %016" PRIx64 "   FNV-1a 64 of the weights%s%s\n", hash_weights(&t->net),
         t->lost ? "" : ": the same on every machine",
         t->pinned_checked ? "; after 200 steps it was the pinned one" : "");
}

static int write_results(training *t) {
  int code = 0;
  if (t->step > 0) draw_curve(t);
  if (!*t->out) return 0;
  if (t->step > 0) code = write_csv(t);
  if (!code && t->step > 0) code = write_svg(t);
  if (!code) code = write_mistakes(t);
  if (!code) printf("\nwritten    %s/ loss.csv, loss.svg, mistakes.ppm, mistakes.txt, checkpoint\n", t->out);
  return code;
}

/* ---- options ----------------------------------------------------------------------------------------------------- */

static void print_help(void) {
  puts("Trains a convolutional network on Fashion-MNIST with mlk.h, or on the 8 x 8 digits in examples/data.\n\n"
       "usage: 02_fashion_cnn [options]\n"
       "  --epochs N      passes over the training pictures, 1 to 1000 (default 4; digits 30)\n"
       "  --short         less than a minute on two cores: --epochs 1, but all epochs of the digits\n"
       "  --steps N       stop after so many steps of the schedule that --epochs sets; 0: at its end (default 0)\n"
       "  --batch N       pictures of a step, 1 to 1024 (default 100; digits 32)\n"
       "  --threads N     0 to 1024, of each replica; 0: all cores, shared out (default 0)\n"
       "  --isa NAME      best, scalar, neon, avx2, avx512 or reference (default best)\n"
       "  --device NAME   cpu or, built with CUDA=1, cuda (default cpu)\n"
       "  --data DIR      folder with {train,t10k}-{images-idx3,labels-idx1}-ubyte[.gz]; digits: those of MLK.\n"
       "                  Default: examples/data/cache/fashion-mnist, which `make data` fills, else\n"
       "                  /usr/share/datasets/fashion-mnist, else the digits\n"
       "  --out DIR       where checkpoint, curve and mistakes go (default build/fashion_cnn or build/digits_cnn)\n"
       "  --resume        continue from the checkpoint in --out; it is an error if there is none\n"
       "  --fresh         begin anew even if there is one. Default: continue if there is one\n"
       "  --save-every N  write a checkpoint after every N steps; 0: every five seconds (default 0)\n"
       "  --hash-only     train and print one line with the hash of the weights; no files unless --out is given\n"
       "  --profile       also a table of the library's calls and their times\n"
       "  --bytes         make one step, print by kind how many bytes are allocated for it, and end\n"
       "\n"
       "  --replicas N    N threads of this process train one network together, each with its own copy of it;\n"
       "  --processes N   or N processes; 1 to 16\n"
       "  --shares S      into which the batch is cut; it must divide --batch. Bits depend on S, but not on N\n"
       "                  (default, with replicas or processes, 4, or N if that is more)\n"
       "  --on-loss WHAT  fails: when a replica is lost, all end; shrinks: the others go on (default fails)\n"
       "  --timeout X     seconds after which a replica that lets the others wait is lost (default 30)\n"
       "\n"
       "  --help          this text");
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
  if (!strcmp(arg, "--resume")) return opt->resume = 1;
  if (!strcmp(arg, "--fresh")) return opt->fresh = 1;
  if (!strcmp(arg, "--short")) return opt->short_run = 1;
  if (!strcmp(arg, "--hash-only")) return opt->hash_only = 1;
  if (!strcmp(arg, "--profile")) return opt->profile = 1;
  if (!strcmp(arg, "--bytes")) return opt->hash_only = opt->bytes = 1;
  return 0;
}

static int parse_value(int which, const char *value, options *opt) {
  switch (which) {
  case 0: return parse_integer("--epochs", value, 1, MAX_EPOCHS, &opt->epochs);
  case 1: return parse_integer("--steps", value, 0, INT32_MAX, &opt->steps);
  case 2: return parse_integer("--batch", value, 1, MAX_BATCH, &opt->batch);
  case 3: return parse_integer("--threads", value, 0, 1024, &opt->threads);
  case 4: return parse_isa(value, &opt->isa);
  case 5: opt->data = value; return 0;
  case 6:
    if (strlen(value) >= MAX_PATH_BYTES - 64 || !*value)
      return complain("--out is %d bytes long; it must have 1 to %d", (int)strlen(value), MAX_PATH_BYTES - 65);
    opt->out = value;
    return 0;
  case 7: return parse_integer("--save-every", value, 0, INT32_MAX, &opt->save_steps);
  case 8: return parse_integer("--shares", value, 1, MLK_MAX_SHARES, &opt->shares);
  case 9: return parse_integer("--replicas", value, 1, MLK_MAX_RANKS, &opt->replicas);
  case 10: return parse_integer("--processes", value, 1, MLK_MAX_RANKS, &opt->processes);
  case 11: return parse_real("--timeout", value, 86400, &opt->timeout);
  case 13: return parse_device(value, &opt->cuda);
  default:
    if (strcmp(value, "fails") != 0 && strcmp(value, "shrinks") != 0)
      return complain("--on-loss is '%s'; it must be fails or shrinks", value);
    opt->on_loss = strcmp(value, "fails") == 0 ? MLK_LOSS_FAILS : MLK_LOSS_SHRINKS;
    return 0;
  }
}

/* From what is given to what it means. */
static int complete_replicas(options *opt) {
  if (opt->replicas && opt->processes) return complain("--replicas and --processes exclude each other");
  opt->grouped = opt->replicas || opt->processes || opt->shares;
  if (opt->processes) opt->replicas = opt->processes;
  if (!opt->replicas) opt->replicas = 1;
  if (!opt->shares) opt->shares = !opt->grouped ? 1 : (opt->replicas > 4 ? opt->replicas : 4);
  if (opt->shares < opt->replicas)
    return complain("--shares is %" PRId64 "; there are %" PRId64 " replicas, and each needs one", opt->shares,
                    opt->replicas);
  return 0;
}

/* *done is set by --help. */
static int parse_options(int argc, char **argv, options *opt, int *done) {
  static const char *const with_value[] = {"--epochs",    "--steps",   "--batch",      "--threads", "--isa",
                                           "--data",      "--out",     "--save-every", "--shares",  "--replicas",
                                           "--processes", "--timeout", "--on-loss",    "--device"};
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
    if (parse_flag(arg, opt)) continue;
    for (which = 0; which < WITH_VALUE; which++)
      if (strlen(with_value[which]) == length && !strncmp(arg, with_value[which], length)) break;
    if (which == WITH_VALUE) return complain("'%s' is not an option; --help lists them", arg);
    if (!equals && i + 1 == argc) return complain("%s needs a value; --help tells which", arg);
    code = parse_value(which, equals ? equals + 1 : argv[++i], opt);
    if (code) return code;
  }
  if (opt->resume && opt->fresh) return complain("--resume and --fresh exclude each other");
  if (opt->bytes && opt->out) return complain("--bytes and --out exclude each other");
  if (opt->short_run && opt->epochs) return complain("--short and --epochs exclude each other");
  if (opt->hash_only && opt->resume && !opt->out) return complain("--hash-only --resume needs --out");
  return complete_replicas(opt);
}

/* ---- from options to results ------------------------------------------------------------------------------------- */

/* The folder and those above it, as far as they are missing. */
static int make_folders(const char *folder) {
  char path[MAX_PATH_BYTES];
  size_t i;
  strcpy(path, folder);
  for (i = 1; path[i - 1]; i++) {
    const char kept = path[i];
    if (kept && kept != '/') continue;
    path[i] = 0;
#if defined(_WIN32)
    if (_mkdir(path) != 0 && errno != EEXIST) break;
#else
    if (mkdir(path, 0777) != 0 && errno != EEXIST) break;
#endif
    path[i] = kept;
  }
  if (!path[i - 1] && i > strlen(folder)) return 0;
  return complain("--out: %s cannot be made: %s", path, strerror(errno));
}

static int prepare(training *t) {
  const options *opt = t->opt;
  const picture_set *set = t->set;
  const int64_t batch = opt->batch ? opt->batch : set->batch, tests = set->test.count;
  int code;
  t->epochs = opt->epochs ? opt->epochs : (opt->short_run ? set->short_epochs : set->epochs);
  t->per_epoch = set->train.count / batch; /* what is left of an epoch is left out */
  if (t->per_epoch == 0)
    return complain("--batch is %" PRId64 "; there are %" PRId64 " training pictures", batch, set->train.count);
  if (batch % opt->shares != 0)
    return complain("--batch is %" PRId64 " and --shares %" PRId64 "; the latter must divide the former", batch,
                    opt->shares);
  t->batch = batch;
  t->total = t->per_epoch * t->epochs;
  t->stop = opt->steps && opt->steps < t->total ? opt->steps : t->total;
  if (opt->bytes) t->stop = 1; /* one step, so that no replica leaves before the others have seen it come */
  t->ordered_epoch = t->judged_step = -1;
  if (opt->out)
    strcpy(t->out, opt->out);
  else if (!opt->hash_only)
    snprintf(t->out, sizeof t->out, "build/%s_cnn", set->folder_name);
  t->order = (uint32_t *)calloc((size_t)set->train.count, sizeof *t->order);
  t->loss = (float *)calloc((size_t)t->total, sizeof *t->loss);
  t->test_loss = (float *)calloc((size_t)t->epochs, sizeof *t->test_loss);
  t->test_accuracy = (float *)calloc((size_t)t->epochs, sizeof *t->test_accuracy);
  t->predicted = (uint8_t *)calloc((size_t)tests, 1);
  t->picture_loss = (float *)calloc((size_t)tests, sizeof(float));
  t->confidence = (float *)calloc((size_t)tests, sizeof(float));
  if (!t->order || !t->loss || !t->test_loss || !t->test_accuracy || !t->predicted || !t->picture_loss ||
      !t->confidence)
    return fail_run("training", "no memory for its tables");
  code = network_open(&t->net, set, batch, (int)opt->shares);
  if (!code && *t->out) code = make_folders(t->out);
  return code ? code : load_checkpoint(t);
}

static int plan_all(training *t, uint64_t *workspace) {
  network *n = &t->net;
  int code = plan_tape(t->ctx, &n->forward, workspace), i;
  for (i = 0; i < n->own_shares && !code; i++) code = plan_tape(t->ctx, &n->share[i].learn, workspace);
  if (!code) code = plan_tape(t->ctx, &n->update, workspace);
  return code ? code : plan_tape(t->ctx, &n->judge, workspace);
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
  network *n = &t->net;
  region r;
  void *there = NULL;
  mlk_status status;
  memset(&r, 0, sizeof r);
  lay_out(n, &r);
  status = mlk_alloc(t->ctx, r.used, &there);
  if (status != MLK_OK) return library_failed(t->ctx, "memory of the device", status);
  memcpy(there, (char *)n->memory + (64 - (uintptr_t)n->memory % 64) % 64, (size_t)r.used);
  free(n->memory);
  n->memory = NULL, n->shared = there, n->shared_bytes = r.used;
  r.base = (char *)there, r.used = 0;
  lay_out(n, &r);
  point_to_layers(n);
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
  code = group ? join_group(t, group, &workspace) : 0;
  if (!code) code = record(&t->net);
  if (!code) code = plan_all(t, &workspace);
  if (code) return code;
  status = mlk_reserve(t->ctx, workspace, MLK_FIXED); /* from here on the library allocates nothing */
  if (status == MLK_OK && !t->opt->hash_only) status = mlk_measure(t->ctx, &ceilings); /* takes half a second */
  if (status == MLK_OK) status = mlk_get_info(t->ctx, info);
  return status == MLK_OK ? 0 : library_failed(t->ctx, "preparing", status);
}

/* What this replica allocated, but for pictures, tables of steps and the program's own records; then what all replicas
   have in common. The cuts of lay_out lie in one block, which begins up to 63 bytes before the first: alignment.
   Private bytes of the group are those of its plan, which is what mlk_group_open allocates. */
static int print_bytes(training *t, const mlk_group_desc *group, const mlk_info *info) {
  static const char *const names[KINDS] = {"parameters", "gradients", "optimiser", "activations",
                                           "backward",   "batch",     "writing"};
  network *n = &t->net;
  const uint64_t before = n->memory ? 64 : 0; /* a device's memory begins where it should */
  mlk_group_plan plan;
  mlk_status status = MLK_OK;
  region r;
  int i;
  memset(&plan, 0, sizeof plan), memset(&r, 0, sizeof r);
  if (group) status = mlk_group_get_plan(t->ctx, group, &plan);
  if (status != MLK_OK) return library_failed(t->ctx, "the plan of the group", status);
  r.base = (char *)n->weights; /* where the first cut begins, so that the arrays stay where they are */
  lay_out(n, &r);
  for (i = 0; i < KINDS; i++) printf("bytes %s %" PRIu64 "\n", names[i], (uint64_t)r.of[i]);
  printf("bytes alignment %" PRIu64 "\nbytes workspace %" PRIu64 "\nbytes group %" PRIu64 "\n", before,
         info->workspace_bytes, plan.private_bytes);
  printf("bytes total %" PRIu64 "\nbytes common %" PRIu64 "\n",
         (uint64_t)r.used + before + info->workspace_bytes + plan.private_bytes, plan.bytes);
  return 0;
}

static int run(training *t, const mlk_group_desc *group, int threads) {
  mlk_info info;
  int64_t correct;
  double loss;
  int code = open_library(t, group, threads, &info);
  if (code) return code;
  if (!t->opt->hash_only && t->rank == 0) print_head(t, &info);
  code = train(t);
  if (code) return code;
  if (!leads(t)) return FOLLOWED;
  if (t->opt->bytes) return print_bytes(t, group, &info);
  if (t->stopped && t->step < t->stop) {
    printf("interrupted after step %" PRId64 "%s\n", t->step,
           *t->out ? "; a checkpoint is written, and the same command (without --fresh) continues" : "");
    return EXIT_INTERRUPTED;
  }
  if (t->opt->hash_only) {
    print_line(t);
    return 0;
  }
  if (t->judged_step != t->step) code = judge(t, &loss, &correct);
  if (code) return code;
  print_confusion(t);
  code = write_results(t);
  print_result(t, &info);
  if (t->opt->profile && t->step > t->first_step) print_profile(t, &info);
  return code;
}

static training *training_open(const options *opt, const picture_set *set, int rank) {
  training *t = (training *)calloc(1, sizeof *t);
  if (t) t->opt = opt, t->set = set, t->rank = rank;
  return t;
}

static void training_close(training *t) {
  if (!t) return;
  mlk_group_close(t->net.group);
  if (t->ctx) mlk_free(t->ctx, t->net.shared, t->net.shared_bytes);
  mlk_close(t->ctx);
  free(t->net.memory), free(t->net.share), free(t->order), free(t->loss), free(t->test_loss), free(t->test_accuracy);
  free(t->predicted), free(t->picture_loss), free(t->confidence);
  free(t);
}

/* ---- replicas: threads, or processes --------------------------------------------------------------------------------

   All have the same options and the same pictures, and each a network of its own. Nobody leads but by being the lowest
   of those that are left. */

typedef struct crew {
  const options *opt;
  mlk_bucket buckets[BUCKETS];
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
  for (rank = 0; rank < (int)c->opt->replicas; rank++) {
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
    for (rank = 0; rank < (int)c->opt->replicas && child[rank] != ended; rank++) continue;
    if (ended <= 0 || rank == (int)c->opt->replicas) continue;
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
  for (rank = 0; rank < (int)c->opt->replicas; rank++) {
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
  for (rank = 0; rank < (int)c->opt->replicas; rank++) {
    hands[rank].in = c, hands[rank].rank = rank;
    error = rank ? pthread_create(&hands[rank].thread, NULL, run_hand, &hands[rank]) : 0;
    hands[rank].started = rank && !error;
    if (!error) continue;
    complain("replica %d cannot be started: %s", rank, strerror(error));
    c->code[rank] = EXIT_RUN;
  }
  run_hand(&hands[0]);
  for (rank = 1; rank < (int)c->opt->replicas; rank++)
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

static int open_crew(crew *c, const network *n) {
  static const char *const names[BUCKETS] = {"conv 1", "conv 2", "dense 1", "dense 2", "what is agreed on"};
  mlk_context_desc context;
  mlk_context *ctx;
  mlk_info info;
  int bucket, code;
  for (bucket = 0; bucket < BUCKETS; bucket++)
    c->buckets[bucket].name = names[bucket], c->buckets[bucket].elements = bucket_elements(n, bucket);
  c->desc.ranks = (int)c->opt->replicas, c->desc.shares = n->shares;
  c->desc.buckets = c->buckets, c->desc.bucket_count = BUCKETS;
  c->desc.on_loss = c->opt->on_loss, c->desc.timeout = (double)c->opt->timeout;
  memset(&context, 0, sizeof context);
  context.threads = (int)c->opt->threads;
  if (mlk_open(&ctx, &context) != MLK_OK) return fail_run("mlk_open", "no memory");
  code = open_memory(c, ctx);
  mlk_get_info(ctx, &info);
  mlk_close(ctx);
  c->threads = info.threads; /* those of the machine are shared out */
  if (!context.threads) c->threads = info.threads > c->desc.ranks ? info.threads / c->desc.ranks : 1;
  return code;
}

static int learn_in_group(const options *opt, const picture_set *set) {
  crew *c = (crew *)calloc(1, sizeof *c);
  int code = 0, rank;
  if (!c) return fail_run("the replicas", "no memory for their records");
  c->opt = opt;
  for (rank = 0; rank < (opt->processes ? 1 : (int)opt->replicas) && !code; rank++) {
    c->training[rank] = training_open(opt, set, rank);
    code = c->training[rank] ? prepare(c->training[rank]) : fail_run("the replicas", "no memory for their records");
  }
  if (!code) code = open_crew(c, &c->training[0]->net);
  if (!code) code = run_crew(c);
  for (rank = 0; rank < (int)opt->replicas; rank++) training_close(c->training[rank]);
  if (c->desc.fd > 0) mlk_group_segment_close(&c->segment);
  free(c->memory), free(c);
  return code;
}

static int learn_alone(const options *opt, const picture_set *set) {
  training *t = training_open(opt, set, 0);
  int code = t ? prepare(t) : fail_run("the program", "no memory for its own records");
  signal(SIGINT, interrupt), signal(SIGTERM, interrupt);
  if (!code) code = run(t, NULL, (int)opt->threads);
  training_close(t);
  return code;
}

int main(int argc, char **argv) {
  options opt;
  picture_set *set = (picture_set *)calloc(1, sizeof *set);
  int code = 0, done = 0;
  memset(&opt, 0, sizeof opt);
  if (!set) code = fail_run("the program", "no memory for its own records");
  if (!code) code = parse_options(argc, argv, &opt, &done);
  if (!code && !done) {
    code = load_set(argv[0], opt.data, set);
    if (!code) code = opt.grouped ? learn_in_group(&opt, set) : learn_alone(&opt, set);
  }
  if ((fflush(stdout) != 0 || ferror(stdout)) && code == 0)
    code = fail_run("standard output", "could not be written to its end");
  if (set) free(set->train.pixels), free(set->train.labels), free(set->test.pixels), free(set->test.labels);
  free(set);
  return code;
}
