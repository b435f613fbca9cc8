/* Classifies real pictures by their k nearest neighbours, checks the result against itself, and says how fast it went.

   Build: cc -O2 -fopenmp -I. examples/00_knn_pictures.c -o build/00_knn_pictures -lm
          With zlib: add -DMLK_EXAMPLE_ZLIB and -lz. Without it .gz files are read through a "gunzip -c" pipe.
   Run:   build/00_knn_pictures --help

   First the 8 x 8 digits that come with MLK (1,297 pictures to search, 500 queries), then Fashion-MNIST (60,000 and
   10,000 of 28 x 28) when its four files are found. A pixel of 0..255 is used as a float of the same value, no scaling.

   The vote: the class with most of the k neighbours; of several such classes the one that owns the nearest neighbour.
   The hash: FNV-1a, 64 bits, over each query in order and each of its k neighbours in order: the row number as 8 bytes
   and the bits of the float distance as 4 bytes, both little-endian. MLK_STRICT makes it the same on every machine,
   for every instruction set and any number of threads.

   Exit code: 0 done, 1 the run failed (memory, a full disk), 2 an argument or a data file is wrong. */

#if !defined(_WIN32) && !defined(_POSIX_C_SOURCE)
#define _POSIX_C_SOURCE 200809L /* popen, isatty, clock_gettime under -std=c99 */
#endif

#define MLK_IMPLEMENTATION
#include "mlk.h"
#if defined(MLK_EXAMPLE_CUDA)
#include "mlk_cuda.cuh" /* plain, as a header: the program is linked with the object of its implementation */
#endif

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#if defined(_WIN32)
#include <io.h>
#else
#include <unistd.h>
#endif
#ifdef MLK_EXAMPLE_ZLIB
#include <zlib.h>
#endif

enum { EXIT_RUN = 1, EXIT_INPUT = 2, CLASSES = 10, MAX_K = 1000, MAX_PATH = 4096, MAX_EDGE = 256, LINE_WIDTH = 80 };
static const int64_t MAX_PICTURES = 10000000;
static const int64_t MAX_FILE_BYTES = INT64_C(1) << 30; /* pixels or labels of one file */

typedef struct options {
  int64_t k, queries, threads;
  mlk_metric metric;
  mlk_isa isa;
  int cuda;         /* --device */
  const char *data; /* folder of the second set; NULL: look for it; "none": digits only */
  const char *json; /* "-": standard output, and the text goes to standard error */
  int quiet;
} options;

typedef struct pictures {
  int64_t count, rows, cols;
  uint8_t *pixels; /* [count, rows, cols] */
  uint8_t *labels; /* [count], each < CLASSES */
} pictures;

typedef struct picture_set {
  char name[64];
  char folder[MAX_PATH];
  const char *const *class_names; /* [CLASSES] */
  pictures base, queries;
} picture_set;

typedef struct outcome {
  int64_t queries, correct, passes, confusion[CLASSES][CLASSES]; /* [truth][vote] */
  mlk_plan plan;                                                 /* of all queries in one call */
  double seconds;                                                /* of the best pass */
  uint64_t hash;
} outcome;

static const char *const metric_names[MLK_METRIC_COUNT] = {"l2sq", "l2", "ip", "cosine"};
static const char *const digit_names[CLASSES] = {"0", "1", "2", "3", "4", "5", "6", "7", "8", "9"};
static const char *const fashion_names[CLASSES] = {"T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
                                                   "Sandal",      "Shirt",   "Sneaker",  "Bag",   "Ankle boot"};
/* Fingerprint of the four Fashion-MNIST files as published (see fingerprint): its class names are
   used for nothing else. */
static const uint64_t fashion_fingerprint = UINT64_C(0x8edd029d4d45d033);

/* One line on standard error; returns EXIT_INPUT, so that checks read "return complain(...)". */
static int complain(const char *format, ...) {
  va_list args;
  va_start(args, format);
  fputs("00_knn_pictures: ", stderr);
  vfprintf(stderr, format, args);
  fputc('\n', stderr);
  va_end(args);
  return EXIT_INPUT;
}

static int out_of_memory(int64_t bytes, const char *what) {
  complain("no memory for %" PRId64 " bytes of %s", bytes, what);
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

static int is_terminal(FILE *file) {
#if defined(_WIN32)
  return _isatty(_fileno(file));
#else
  return isatty(fileno(file));
#endif
}

static uint64_t fnv1a_start(void) { return UINT64_C(0xcbf29ce484222325); }

static uint64_t fnv1a(uint64_t hash, const uint8_t *bytes, int64_t count) {
  int64_t i;
  for (i = 0; i < count; i++) hash = (hash ^ bytes[i]) * UINT64_C(0x100000001b3);
  return hash;
}

/* The low `bytes` bytes of value, little-endian whatever this machine is. */
static uint64_t fnv1a_integer(uint64_t hash, uint64_t value, int bytes) {
  int i;
  for (i = 0; i < bytes; i++) hash = (hash ^ (uint8_t)(value >> (8 * i))) * UINT64_C(0x100000001b3);
  return hash;
}

/* ---- reading: plain files, .gz through zlib or a pipe ------------------------------------------------------------ */

typedef struct source {
  char path[MAX_PATH];
  FILE *file; /* NULL when zlib reads */
  int piped;
#ifdef MLK_EXAMPLE_ZLIB
  gzFile zip;
#endif
} source;

static int file_exists(const char *path) {
  FILE *file = fopen(path, "rb");
  if (!file) return 0;
  fclose(file);
  return 1;
}

static int join_path(char *path, const char *folder, const char *name, const char *suffix) {
  const int length = snprintf(path, MAX_PATH, "%s/%s%s", folder, name, suffix);
  if (length >= 0 && length < MAX_PATH) return 0;
  return complain("the path of %s in the folder given is %d bytes long; the limit is %d", name, length, MAX_PATH - 1);
}

#if !defined(MLK_EXAMPLE_ZLIB) && !defined(_WIN32)
/* gunzip reads the file as its standard input, so a name cannot be taken for an option. Inside single quotes the shell
   leaves everything alone; a single quote is written '\''. */
static FILE *open_pipe(const char *path) {
  char command[4 * MAX_PATH + 64];
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

static int open_zipped(source *s) {
  uint8_t magic[2] = {0, 0};
  FILE *file = fopen(s->path, "rb");
  size_t got;
  if (!file) return complain("%s cannot be opened: %s", s->path, strerror(errno));
  got = fread(magic, 1, 2, file);
  fclose(file);
  if (got != 2 || magic[0] != 0x1f || magic[1] != 0x8b)
    return complain("%s begins with the bytes %02x %02x; a gzip file begins with 1f 8b", s->path, magic[0], magic[1]);
#if defined(MLK_EXAMPLE_ZLIB)
  s->zip = gzopen(s->path, "rb");
  return s->zip ? 0 : complain("%s cannot be opened by zlib", s->path);
#elif defined(_WIN32)
  return complain("%s is packed; unpack it, or compile with -DMLK_EXAMPLE_ZLIB", s->path);
#else
  s->piped = 1;
  s->file = open_pipe(s->path);
  return s->file ? 0 : complain("no pipe from gunzip for %s: %s", s->path, strerror(errno));
#endif
}

/* folder/name as it is, else folder/name.gz */
static int source_open(source *s, const char *folder, const char *name) {
  memset(s, 0, sizeof *s);
  if (join_path(s->path, folder, name, ".gz")) return EXIT_INPUT;
  s->path[strlen(s->path) - 3] = 0;
  s->file = fopen(s->path, "rb");
  if (s->file) return 0;
  if (errno != ENOENT && errno != ENOTDIR) return complain("%s cannot be opened: %s", s->path, strerror(errno));
  if (join_path(s->path, folder, name, ".gz")) return EXIT_INPUT;
  if (!file_exists(s->path)) return complain("%s has no file %s and no %s.gz", folder, name, name);
  return open_zipped(s);
}

/* Bytes read; fewer than asked for at the end of the data or after an error, which source_close then reports. */
static int64_t source_read(source *s, uint8_t *to, int64_t bytes) {
#ifdef MLK_EXAMPLE_ZLIB
  if (!s->file) {
    int64_t done = 0;
    while (done < bytes) {
      const unsigned part = bytes - done < (1 << 20) ? (unsigned)(bytes - done) : 1u << 20;
      const int got = gzread(s->zip, to + done, part);
      if (got <= 0) break;
      done += got;
    }
    return done;
  }
#endif
  return (int64_t)fread(to, 1, (size_t)bytes, s->file);
}

/* Nonzero when the bytes read cannot be trusted: a read error, or gzip's checksum does not fit. */
static int source_close(source *s) {
  int bad;
#ifdef MLK_EXAMPLE_ZLIB
  if (!s->file) {
    int code = Z_OK;
    gzerror(s->zip, &code);
    bad = code != Z_OK && code != Z_STREAM_END;
    return gzclose_r(s->zip) != Z_OK || bad;
  }
#endif
  bad = ferror(s->file) != 0;
#if !defined(_WIN32)
  if (s->piped) return pclose(s->file) != 0 || bad;
#endif
  return fclose(s->file) != 0 || bad;
}

/* ---- idx files --------------------------------------------------------------------------------------------------- */

static uint32_t big_endian_32(const uint8_t *b) {
  return (uint32_t)b[0] << 24 | (uint32_t)b[1] << 16 | (uint32_t)b[2] << 8 | b[3];
}

/* The bytes after the header, exactly `total` of them. The buffer grows with what really arrives, so a header that
   promises a gigabyte costs nothing. */
static int read_body(source *s, int64_t header, int64_t total, uint8_t **body) {
  int64_t have = 0, room = 0;
  uint8_t extra;
  while (have < total) {
    const int64_t next = room ? (room < total / 2 ? 2 * room : total) : (total < (1 << 20) ? total : 1 << 20);
    uint8_t *grown = (uint8_t *)realloc(*body, (size_t)next);
    if (!grown) return out_of_memory(next, s->path);
    *body = grown;
    room = next;
    have += source_read(s, *body + have, room - have);
    if (have < room)
      return complain("%s ends after %" PRId64 " bytes, or is damaged there; its header promises %" PRId64, s->path,
                      header + have, header + total);
  }
  if (source_read(s, &extra, 1) != 0)
    return complain("%s goes on after the %" PRId64 " bytes that its header promises", s->path, header + total);
  return 0;
}

static int read_idx(source *s, int axes, int64_t *size, uint8_t **body) {
  uint8_t header[16];
  const int64_t bytes = 4 + 4 * axes;
  const uint32_t expected = 0x0800u | (uint32_t)axes; /* 08: unsigned bytes */
  const int64_t got = source_read(s, header, bytes);
  int64_t total = 1;
  int i;
  if (got != bytes)
    return complain("%s ends after %" PRId64 " bytes, or is damaged there; its header alone has %" PRId64, s->path, got,
                    bytes);
  if (big_endian_32(header) != expected)
    return complain("%s begins with 0x%08" PRIx32 "; %s begin with 0x%08" PRIx32, s->path, big_endian_32(header),
                    axes == 3 ? "pictures" : "labels", expected);
  for (i = 0; i < axes; i++) {
    const int64_t limit = i == 0 ? MAX_PICTURES : MAX_EDGE;
    size[i] = (int64_t)big_endian_32(header + 4 + 4 * i);
    if (size[i] < 1 || size[i] > limit)
      return complain("%s says %" PRId64 " %s; it must be 1 to %" PRId64, s->path, size[i],
                      i == 0 ? "entries" : (i == 1 ? "rows" : "columns"), limit);
    total *= size[i]; /* at most 10^7 2^16 */
  }
  if (total > MAX_FILE_BYTES)
    return complain("%s says %" PRId64 " bytes of pixels; the limit is %" PRId64, s->path, total, MAX_FILE_BYTES);
  return read_body(s, bytes, total, body);
}

static int load_idx(const char *folder, const char *name, int axes, int64_t *size, uint8_t **body) {
  source s;
  int code = source_open(&s, folder, name);
  if (code) return code;
  code = read_idx(&s, axes, size, body);
  if (source_close(&s) && code == 0)
    code = complain("%s cannot be read to its end: gzip finds it damaged, or gunzip is missing", s.path);
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

static uint64_t fingerprint(const picture_set *set) {
  uint64_t hash = fnv1a_start();
  const pictures *part[2];
  int i;
  part[0] = &set->base, part[1] = &set->queries;
  for (i = 0; i < 2; i++) {
    hash = fnv1a_integer(hash, (uint64_t)part[i]->count, 8);
    hash = fnv1a(hash, part[i]->pixels, part[i]->count * part[i]->rows * part[i]->cols);
    hash = fnv1a(hash, part[i]->labels, part[i]->count);
  }
  return hash;
}

/* folder becomes set->folder; name NULL: Fashion-MNIST when it is, else the folder's name. */
static int load_set(const char *folder, const char *name, picture_set *set) {
  int code;
  if (strlen(folder) >= sizeof set->folder - 64)
    return complain("--data is %d bytes long; the limit is %d", (int)strlen(folder), (int)sizeof set->folder - 65);
  strcpy(set->folder, folder);
  code = load_pictures(folder, "train", &set->base);
  if (!code) code = load_pictures(folder, "t10k", &set->queries);
  if (code) return code;
  if (set->base.rows != set->queries.rows || set->base.cols != set->queries.cols)
    return complain("%s: pictures of %" PRId64 " x %" PRId64 " to search, but queries of %" PRId64 " x %" PRId64,
                    folder, set->base.rows, set->base.cols, set->queries.rows, set->queries.cols);
  set->class_names = digit_names;
  if (!name && fingerprint(set) == fashion_fingerprint) name = "Fashion-MNIST", set->class_names = fashion_names;
  snprintf(set->name, sizeof set->name, "%s", name ? name : "pictures");
  return 0;
}

static void free_set(picture_set *set) {
  free(set->base.pixels), free(set->base.labels);
  free(set->queries.pixels), free(set->queries.labels);
}

/* Is there anything of a picture set in this folder? */
static int has_set(const char *folder) {
  char path[MAX_PATH];
  return snprintf(path, sizeof path, "%s/train-images-idx3-ubyte.gz", folder) < MAX_PATH &&
         (file_exists(path) || (path[strlen(path) - 3] = 0, file_exists(path)));
}

/* `below` under examples/data of the working directory, or beside or one above the folder of the program. */
static int find_folder(const char *program, const char *below, char *folder) {
  static const char *const places[] = {"", "../", "../../"};
  const char *slash = strrchr(program, '/');
  const int program_folder = slash ? (int)(slash - program) + 1 : 0;
  int i;
  if (program_folder > MAX_PATH / 2) return 0;
  for (i = 0; i < 3; i++) {
    snprintf(folder, MAX_PATH, "%sexamples/data/%s", places[i], below);
    if (has_set(folder)) return 1;
    snprintf(folder, MAX_PATH, "%.*s%sexamples/data/%s", program_folder, program, places[i], below);
    if (has_set(folder)) return 1;
  }
  return 0;
}

/* ---- options ----------------------------------------------------------------------------------------------------- */

static void print_help(void) {
  puts("Classifies pictures by their k nearest neighbours, found exactly by mlk_knn.\n"
       "First the 8 x 8 digits in examples/data, then Fashion-MNIST if it is found.\n\n"
       "usage: 00_knn_pictures [options]\n"
       "  --k N            neighbours that vote, 1 to 1000 (default 5)\n"
       "  --metric NAME    l2sq, l2, ip (inner product) or cosine (default l2)\n"
       "  --threads N      0 to 1024; 0 means all cores (default 0)\n"
       "  --isa NAME       best, scalar, neon, avx2 or avx512 (default best)\n"
       "  --device NAME    cpu or, built with CUDA=1, cuda (default cpu)\n"
       "  --data DIR       folder with {train,t10k}-{images-idx3,labels-idx1}-ubyte[.gz] for the second run;\n"
       "                   none: only the digits. Default: examples/data/cache/fashion-mnist, which\n"
       "                   `make data` fills, else /usr/share/datasets/fashion-mnist\n"
       "  --queries N      only the first N queries of each set, 1 to 10000000\n"
       "  --json FILE      also write the results as JSON; -: to standard output, the text to standard error\n"
       "  --quiet          one line for each set: accuracy and hash, no speed\n"
       "  --help           this text");
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

static int parse_metric(const char *text, mlk_metric *metric) {
  int i;
  for (i = 0; i < MLK_METRIC_COUNT; i++)
    if (!strcmp(text, metric_names[i])) {
      *metric = (mlk_metric)i;
      return 0;
    }
  return complain("--metric is '%s'; it must be l2sq, l2, ip or cosine", text);
}

static int parse_isa(const char *text, mlk_isa *isa) {
  char here[64] = "best";
  int i;
  for (i = 0; i < MLK_ISA_COUNT && strcmp(text, mlk_isa_name((mlk_isa)i)) != 0; i++) continue;
  if (i == MLK_ISA_COUNT) return complain("--isa is '%s'; it must be best, scalar, neon, avx2 or avx512", text);
  *isa = (mlk_isa)i;
  if (mlk_isa_available(*isa)) return 0;
  for (i = 1; i < MLK_ISA_COUNT; i++)
    if (mlk_isa_available((mlk_isa)i))
      strcat(strcat(here, ", "), mlk_isa_name((mlk_isa)i)); /* all the names together have 30 letters */
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

/* *done is set by --help. */
static int parse_options(int argc, char **argv, options *opt, int *done) {
  int i;
  for (i = 1; i < argc; i++) {
    const char *arg = argv[i], *equals = strchr(arg, '='), *value;
    const size_t length = equals ? (size_t)(equals - arg) : strlen(arg);
    static const char *const with_value[] = {"--k",    "--metric",  "--threads", "--isa",
                                             "--data", "--queries", "--json",    "--device"};
    enum { WITH_VALUE = sizeof with_value / sizeof *with_value };
    int which, code = 0;
    if (!strcmp(arg, "--help")) {
      print_help();
      *done = 1;
      return 0;
    }
    if (!strcmp(arg, "--quiet")) {
      opt->quiet = 1;
      continue;
    }
    for (which = 0; which < WITH_VALUE; which++)
      if (strlen(with_value[which]) == length && !strncmp(arg, with_value[which], length)) break;
    if (which == WITH_VALUE) return complain("'%s' is not an option; --help lists them", arg);
    if (!equals && i + 1 == argc) return complain("%s needs a value; --help tells which", arg);
    value = equals ? equals + 1 : argv[++i];
    switch (which) {
    case 0: code = parse_integer("--k", value, 1, MAX_K, &opt->k); break;
    case 1: code = parse_metric(value, &opt->metric); break;
    case 2: code = parse_integer("--threads", value, 0, 1024, &opt->threads); break;
    case 3: code = parse_isa(value, &opt->isa); break;
    case 4: opt->data = value; break;
    case 5: code = parse_integer("--queries", value, 1, MAX_PICTURES, &opt->queries); break;
    case 7: code = parse_device(value, &opt->cuda); break;
    default: opt->json = value; break;
    }
    if (code) return code;
  }
  return 0;
}

/* ---- the search -------------------------------------------------------------------------------------------------- */

static float *to_floats(const pictures *p, int64_t count) {
  const int64_t elements = count * p->rows * p->cols;
  float *x = (float *)malloc((size_t)elements * sizeof *x);
  int64_t i;
  if (!x) return NULL;
  for (i = 0; i < elements; i++) x[i] = (float)p->pixels[i];
  return x;
}

/* ids [k], nearest first; -1: fewer than k pictures there. The vote of the file's head comment. */
static int vote(const int64_t *ids, int64_t k, const uint8_t *labels) {
  int64_t votes[CLASSES] = {0}, j;
  int best = -1;
  for (j = 0; j < k && ids[j] >= 0; j++) votes[labels[ids[j]]]++;
  for (j = 0; j < k && ids[j] >= 0; j++) /* nearest first and a strict comparison: the nearer class wins a tie */
    if (best < 0 || votes[labels[ids[j]]] > votes[best]) best = labels[ids[j]];
  return best < 0 ? 0 : best;
}

static uint64_t hash_results(const int64_t *ids, const float *distances, int64_t count) {
  uint64_t hash = fnv1a_start();
  int64_t i;
  for (i = 0; i < count; i++) {
    uint32_t bits;
    memcpy(&bits, &distances[i], sizeof bits);
    hash = fnv1a_integer(hash, (uint64_t)ids[i], 8);
    hash = fnv1a_integer(hash, bits, 4);
  }
  return hash;
}

static void show_progress(int on, int64_t done, int64_t all, double seconds) {
  if (!on) return;
  fprintf(stderr, "\r  %" PRId64 " of %" PRId64 " queries   %.0f queries/s   %.1f s left \033[K", done, all,
          (double)done / seconds, seconds / (double)done * (double)(all - done));
  fflush(stderr);
}

static int library_failed(const mlk_context *ctx, mlk_status status) {
  complain("%s: %s", mlk_status_name(status), mlk_last_error(ctx));
  return EXIT_RUN;
}

/* The queries [first, first + count) of all. */
static mlk_knn_desc some_queries(const mlk_knn_desc *all, int64_t first, int64_t count) {
  mlk_knn_desc some = *all;
  some.queries = mlk_slice(all->queries, 0, first, count);
  some.ids = mlk_slice(all->ids, 0, first, count);
  some.distances = mlk_slice(all->distances, 0, first, count);
  return some;
}

/* Plans one call over all queries, for the numbers printed, and the batches that will run: about half a second each, so
   that a slow machine shows progress too. Reserves what the larger of them needs; from here on nothing is allocated. */
static int plan_search(mlk_context *ctx, const mlk_knn_desc *all, mlk_plan *plan, int64_t *batch) {
  const int64_t count = all->queries.shape[0];
  mlk_plan batch_plan, last_plan;
  mlk_knn_desc some;
  mlk_status status = mlk_knn_plan(ctx, all, plan);
  if (status != MLK_OK) return library_failed(ctx, status);
  *batch = plan->seconds > 0.5 ? (int64_t)(0.5 * (double)count / plan->seconds) : count;
  if (*batch < 256) *batch = 256;
  if (*batch > count) *batch = count;
  some = some_queries(all, 0, *batch);
  status = mlk_knn_plan(ctx, &some, &batch_plan);
  if (status != MLK_OK) return library_failed(ctx, status);
  some = some_queries(all, 0, (count - 1) % *batch + 1);
  status = mlk_knn_plan(ctx, &some, &last_plan);
  if (status != MLK_OK) return library_failed(ctx, status);
  if (batch_plan.workspace_bytes < last_plan.workspace_bytes) batch_plan = last_plan;
  status = mlk_reserve(ctx, batch_plan.workspace_bytes, MLK_FIXED);
  return status == MLK_OK ? 0 : library_failed(ctx, status);
}

/* All queries once. */
static int search_once(mlk_context *ctx, const mlk_knn_desc *all, int64_t batch, int progress, double *seconds) {
  const int64_t count = all->queries.shape[0];
  int64_t first;
  *seconds = 0;
  for (first = 0; first < count; first += batch) {
    const int64_t part = count - first < batch ? count - first : batch;
    const mlk_knn_desc some = some_queries(all, first, part);
    const double start = now_seconds();
    const mlk_status status = mlk_knn(ctx, &some);
    if (status != MLK_OK) return library_failed(ctx, status);
    *seconds += now_seconds() - start;
    if (first + part < count) show_progress(progress, first + part, count, *seconds);
  }
  if (progress) fputs("\r\033[K", stderr), fflush(stderr);
  return 0;
}

static int search(mlk_context *ctx, const mlk_knn_desc *knn, int timed, int progress, outcome *out) {
  double total = 0;
  int64_t batch;
  int code = plan_search(ctx, knn, &out->plan, &batch);
  /* One pass over a small set is too short to time: repeat it for a tenth of a second and keep the best. */
  while (code == 0 && (out->passes == 0 || (timed && total < 0.1 && out->passes < 1000))) {
    double seconds;
    uint64_t hash;
    code = search_once(ctx, knn, batch, progress, &seconds);
    if (code) return code;
    if (out->passes == 0 || seconds < out->seconds) out->seconds = seconds;
    hash = hash_results((const int64_t *)knn->ids.data, (const float *)knn->distances.data, out->queries * knn->k);
    if (out->passes > 0 && out->hash != hash) {
      complain("two passes over the same data gave different results: a bug in MLK or a broken machine");
      return EXIT_RUN;
    }
    out->hash = hash;
    total += seconds;
    out->passes++;
  }
  return code;
}

/* ---- what is printed --------------------------------------------------------------------------------------------- */

/* 1234567 as 1,234,567. Returns text, which has room for 32 bytes. */
static const char *grouped(double value, char *text) {
  char digits[32];
  int length, i;
  char *to = text;
  if (value > 1e15) value = 1e15;
  length = snprintf(digits, 20, "%.0f", value);
  for (i = 0; i < length; i++) {
    *to++ = digits[i];
    if ((length - i) % 3 == 1 && i + 1 < length) *to++ = ',';
  }
  *to = 0;
  return text;
}

static void print_machine(FILE *text, const mlk_info *info) {
  char line[256], model[256] = "";
  FILE *cpus = fopen("/proc/cpuinfo", "r"); /* Linux; elsewhere the model stays unnamed */
  while (cpus && !*model && fgets(line, sizeof line, cpus)) {
    const char *colon = strchr(line, ':');
    if (!strncmp(line, "model name", 10) && colon) snprintf(model, sizeof model, "%s", colon + 2);
  }
  if (cpus) fclose(cpus);
  model[strcspn(model, "\n")] = 0;
  fprintf(text, "MLK %d.%d.%d: exact k nearest neighbours of pictures, majority vote\n", MLK_VERSION_MAJOR,
          MLK_VERSION_MINOR, MLK_VERSION_PATCH);
  fprintf(text, "device     %s%s%s, instruction set %s, %d thread%s%s\n", info->backend, *model ? ": " : "", model,
          info->isa, info->threads, info->threads == 1 ? "" : "s", info->openmp ? " (OpenMP)" : "");
  fprintf(text, "measured   %.1f GFLOP/s and %.1f GB/s of reads on all threads, %.1f and %.1f on one\n",
          info->ceilings.flops_all / 1e9, info->ceilings.read_all / 1e9, info->ceilings.flops_1 / 1e9,
          info->ceilings.read_1 / 1e9);
}

static void print_numbers(FILE *text, const options *opt, const picture_set *set, const mlk_info *info,
                          const outcome *out) {
  char a[32], b[32];
  const double rate = (double)out->plan.flops / out->seconds;
  fprintf(text, "\n%s   %s pictures to search, %s queries, %" PRId64 " x %" PRId64 "   (%s)\n", set->name,
          grouped((double)set->base.count, a), grouped((double)out->queries, b), set->base.rows, set->base.cols,
          set->folder);
  fprintf(text, "plan       %s, %.3g GFLOP, %s bytes of workspace, %.3g s at the measured ceilings\n",
          out->plan.variant, (double)out->plan.flops / 1e9, grouped((double)out->plan.workspace_bytes, a),
          out->plan.seconds);
  fprintf(text, "accuracy   %.2f %%   %" PRId64 " of %" PRId64 " right, k = %" PRId64 ", metric %s\n",
          100.0 * (double)out->correct / (double)out->queries, out->correct, out->queries, opt->k,
          metric_names[opt->metric]);
  fprintf(text, "speed      %s queries/s   %.1f GFLOP/s = %.0f %% of the measured peak   (%.4g s",
          grouped((double)out->queries / out->seconds, a), rate / 1e9, 100 * rate / info->ceilings.flops_all,
          out->seconds);
  if (out->passes > 1) fprintf(text, ", best of %" PRId64 " passes", out->passes);
  fprintf(text,
          ")\nhash       %016" PRIx64 "   FNV-1a 64 of all row numbers and distances: the same on every machine\n",
          out->hash);
  if (rate > 1.1 * info->ceilings.flops_all)
    fputs("           More than the peak: other programs took this machine's time while it was measured.\n", text);
}

static void print_confusion(FILE *text, const picture_set *set, const outcome *out) {
  int truth, voted;
  fprintf(text, "\n  %-14s", "truth \\ vote");
  for (voted = 0; voted < CLASSES; voted++) fprintf(text, "%6d", voted);
  for (truth = 0; truth < CLASSES; truth++) {
    fprintf(text, "\n%3d %-12s", truth, set->class_names == digit_names ? "" : set->class_names[truth]);
    for (voted = 0; voted < CLASSES; voted++) {
      if (out->confusion[truth][voted])
        fprintf(text, "%6" PRId64, out->confusion[truth][voted]);
      else
        fputs("     .", text);
    }
  }
  fputc('\n', text);
}

/* Small pictures get two characters per pixel. Wider ones get one and two rows of pixels per line, since a character
   cell is about twice as high as wide. */
static int drawn_width(const pictures *p) { return (int)p->cols * (p->cols <= 16 ? 2 : 1); }

static void draw_line(FILE *text, const pictures *p, int64_t picture, int64_t line, int brightest) {
  static const char ink[] = " .:-=+*#%@";
  const uint8_t *pixels = p->pixels + picture * p->rows * p->cols;
  const int small = p->cols <= 16;
  int64_t x;
  for (x = 0; x < p->cols; x++) {
    const int64_t row = small ? line : 2 * line, next = small || row + 1 == p->rows ? row : row + 1;
    const int level = (pixels[row * p->cols + x] + pixels[next * p->cols + x]) * 9 / (2 * brightest);
    fputc(ink[level], text);
    if (small) fputc(ink[level], text);
  }
}

/* Some wrongly classified pictures, each beside its nearest neighbour: two rows of as many pairs as fit. */
static void draw_wrong(FILE *text, const picture_set *set, const int64_t *ids, const uint8_t *votes, const outcome *out,
                       int64_t k) {
  const pictures *queries = &set->queries, *base = &set->base;
  const int width = drawn_width(queries), pair = 2 * width + 2, across = LINE_WIDTH / (pair + 2);
  const int64_t lines = queries->cols <= 16 ? queries->rows : (queries->rows + 1) / 2;
  int64_t q = 0, i, line, shown[LINE_WIDTH];
  int brightest = 1, row, count, c;
  if (across == 0) return;
  for (i = 0; i < base->count * base->rows * base->cols; i++)
    if (base->pixels[i] > brightest) brightest = base->pixels[i];
  for (i = 0; i < out->queries * queries->rows * queries->cols; i++)
    if (queries->pixels[i] > brightest) brightest = queries->pixels[i];
  for (row = 0; row < 2; row++) {
    for (count = 0; count < across && q < out->queries; q++)
      if (votes[q] != queries->labels[q] && ids[q * k] >= 0) shown[count++] = q;
    if (count == 0) return;
    if (row == 0) fputs("\nwrongly classified (left), and the nearest picture (right):\n", text);
    for (c = 0; c < count; c++) {
      char title[128];
      const char *const *names = set->class_names;
      snprintf(title, sizeof title, "query %" PRId64 ": %s, voted %s; nearest: %s", shown[c],
               names[queries->labels[shown[c]]], names[votes[shown[c]]], names[base->labels[ids[shown[c] * k]]]);
      fprintf(text, c + 1 < count ? "  %-*s" : "  %.0d%s", c + 1 < count ? pair : 0, title);
    }
    for (line = 0; line < lines; line++) {
      fputc('\n', text);
      for (c = 0; c < count; c++) {
        fputs("  ", text);
        draw_line(text, queries, shown[c], line, brightest);
        fputs("  ", text);
        draw_line(text, base, ids[shown[c] * k], line, brightest);
      }
    }
    fputc('\n', text);
  }
}

static void json_string(FILE *json, const char *s) {
  fputc('"', json);
  for (; *s; s++) {
    if ((unsigned char)*s < 0x20)
      fprintf(json, "\\u%04x", *s);
    else
      fprintf(json, *s == '"' || *s == '\\' ? "\\%c" : "%c", *s);
  }
  fputc('"', json);
}

static void json_machine(FILE *json, const mlk_info *info) {
  fprintf(
      json,
      "{\n  \"mlk_version\": %d,\n  \"backend\": \"%s\",\n  \"isa\": \"%s\",\n  \"threads\": %d,\n  \"openmp\": %d,\n"
      "  \"ceilings\": {\"flops_1\": %.6g, \"flops_all\": %.6g, \"read_1\": %.6g, \"read_all\": %.6g},\n"
      "  \"sets\": [",
      mlk_version(), info->backend, info->isa, info->threads, info->openmp, info->ceilings.flops_1,
      info->ceilings.flops_all, info->ceilings.read_1, info->ceilings.read_all);
}

static void json_set(FILE *json, const options *opt, const picture_set *set, const mlk_info *info, const outcome *out) {
  const double rate = (double)out->plan.flops / out->seconds;
  int truth, voted;
  fputs("{\n    \"name\": ", json);
  json_string(json, set->name);
  fputs(",\n    \"folder\": ", json);
  json_string(json, set->folder);
  fprintf(json,
          ",\n    \"base\": %" PRId64 ",\n    \"queries\": %" PRId64 ",\n    \"dimensions\": %" PRId64
          ",\n    \"k\": %" PRId64 ",\n    \"metric\": \"%s\",\n    \"variant\": \"%s\",\n    \"correct\": %" PRId64
          ",\n    \"accuracy\": %.6f,\n    \"hash_fnv1a64\": \"%016" PRIx64 "\",\n    \"flops\": %" PRIu64
          ",\n    \"workspace_bytes\": %" PRIu64 ",\n    \"planned_seconds\": %.6g,\n    \"seconds\": %.6g,\n"
          "    \"passes\": %" PRId64 ",\n    \"queries_per_second\": %.6g,\n    \"flops_per_second\": %.6g,\n"
          "    \"share_of_peak\": %.4f,\n    \"confusion\": [",
          set->base.count, out->queries, set->base.rows * set->base.cols, opt->k, metric_names[opt->metric],
          out->plan.variant, out->correct, (double)out->correct / (double)out->queries, out->hash, out->plan.flops,
          out->plan.workspace_bytes, out->plan.seconds, out->seconds, out->passes, (double)out->queries / out->seconds,
          rate, rate / info->ceilings.flops_all);
  for (truth = 0; truth < CLASSES; truth++) {
    fputs(truth ? ", [" : "[", json);
    for (voted = 0; voted < CLASSES; voted++)
      fprintf(json, voted ? ", %" PRId64 : "%" PRId64, out->confusion[truth][voted]);
    fputc(']', json);
  }
  fputs("]\n  }", json);
}

/* The descriptor of a context on the device that was asked for. Arrays of the host are copied as calls need them; what
   the pictures lie in is memory that both use. */
static void choose_device(const options *opt, mlk_context_desc *desc) {
  desc->device = opt->cuda ? MLK_DEVICE_BACKEND : MLK_DEVICE_CPU;
  desc->host_arrays = MLK_HOST_STAGED;
  desc->shared_memory = 1;
#if defined(MLK_EXAMPLE_CUDA)
  if (opt->cuda) desc->backends[0] = mlk_cuda_backend();
#endif
}

/* ---- one set from pixels to print -------------------------------------------------------------------------------- */

/* On a device, values moved to memory that it and the host use; else values as they are. NULL: no memory. */
static float *move_to_device(mlk_context *ctx, const options *opt, float *values, int64_t bytes) {
  void *there = NULL;
  if (!opt->cuda || !values) return values;
  if (mlk_alloc(ctx, (uint64_t)bytes, &there) == MLK_OK) memcpy(there, values, (size_t)bytes);
  free(values);
  return (float *)there;
}

static void release(mlk_context *ctx, const options *opt, float *values, int64_t bytes) {
  if (opt->cuda)
    mlk_free(ctx, values, (uint64_t)bytes);
  else
    free(values);
}

static int run_set(mlk_context *ctx, const mlk_info *info, const options *opt, const picture_set *set, FILE *text,
                   FILE *json) {
  const int64_t dim = set->base.rows * set->base.cols, count = set->base.count, k = opt->k;
  const int64_t queries = opt->queries < set->queries.count ? opt->queries : set->queries.count;
  float *base = move_to_device(ctx, opt, to_floats(&set->base, count), count * dim * 4);
  float *asked = to_floats(&set->queries, queries);
  int64_t *ids = (int64_t *)malloc((size_t)(queries * k) * sizeof *ids), q;
  float *distances = (float *)malloc((size_t)(queries * k) * sizeof *distances);
  uint8_t *votes = (uint8_t *)malloc((size_t)queries);
  outcome out;
  int code = EXIT_RUN;
  memset(&out, 0, sizeof out);
  out.queries = queries;
  if (!base || !asked || !ids || !distances || !votes) {
    out_of_memory((count + queries) * dim * 4 + queries * (k * 12 + 1), set->name);
  } else {
    mlk_knn_desc knn;
    memset(&knn, 0, sizeof knn);
    knn.queries = mlk_f32(asked, queries, dim);
    knn.base = mlk_f32(base, count, dim);
    knn.k = k;
    knn.metric = opt->metric;
    knn.ids = mlk_i64(ids, queries, k);
    knn.distances = mlk_f32(distances, queries, k);
    code = search(ctx, &knn, !opt->quiet || json, !opt->quiet && is_terminal(stderr), &out);
  }
  if (code == 0) {
    for (q = 0; q < queries; q++) {
      votes[q] = (uint8_t)vote(ids + q * k, k, set->base.labels);
      out.confusion[set->queries.labels[q]][votes[q]]++;
      out.correct += votes[q] == set->queries.labels[q];
    }
    if (opt->quiet) {
      fprintf(text, "%s %s k=%" PRId64 " queries=%" PRId64 " correct=%" PRId64 " hash=%016" PRIx64 "\n", set->name,
              metric_names[opt->metric], k, queries, out.correct, out.hash);
    } else {
      print_numbers(text, opt, set, info, &out);
      print_confusion(text, set, &out);
      draw_wrong(text, set, ids, votes, &out, k);
    }
    if (json) json_set(json, opt, set, info, &out);
  }
  release(ctx, opt, base, count * dim * 4), free(asked), free(ids), free(distances), free(votes);
  return code;
}

/* sets [2]; *count says how many were found */
static int load_sets(const char *program, const options *opt, picture_set *sets, int *count) {
  static const char *const installed = "/usr/share/datasets/fashion-mnist";
  char folder[MAX_PATH];
  const char *second = opt->data;
  int code;
  if (!find_folder(program, "digits", folder))
    return complain("examples/data/digits is not found from here; run this in the repository's root");
  *count = 1;
  code = load_set(folder, "UCI-digits", &sets[0]);
  if (code || (second && !strcmp(second, "none"))) return code;
  if (!second && find_folder(program, "cache/fashion-mnist", folder)) second = folder;
  if (!second && has_set(installed)) second = installed;
  if (!second) return 0;
  *count = 2;
  return load_set(second, NULL, &sets[1]);
}

static int run(mlk_context *ctx, const options *opt, const picture_set *sets, int count, FILE *text, FILE *json) {
  mlk_ceilings ceilings;
  mlk_info info;
  int i, code = 0;
  mlk_status status = opt->quiet && !json ? MLK_OK : mlk_measure(ctx, &ceilings); /* takes half a second */
  if (status == MLK_OK) status = mlk_get_info(ctx, &info);
  if (status != MLK_OK) return library_failed(ctx, status);
  if (!opt->quiet) print_machine(text, &info);
  if (json) json_machine(json, &info);
  for (i = 0; i < count && code == 0; i++) {
    if (i > 0 && json) fputs(", ", json);
    code = run_set(ctx, &info, opt, &sets[i], text, json);
  }
  if (json) fputs("]\n}\n", json);
  if (code == 0 && count == 1 && !opt->data && !opt->quiet)
    fputs("\nFashion-MNIST is not here: `make data` fetches it, --data DIR names a folder that has it.\n", text);
  return code;
}

int main(int argc, char **argv) {
  options opt = {5, 0, 0, MLK_L2, MLK_ISA_BEST, 0, NULL, NULL, 0};
  mlk_context_desc desc;
  mlk_context *ctx = NULL;
  picture_set *sets = NULL;
  FILE *json = NULL, *text = stdout;
  int code, count = 0, i, done = 0;
  opt.queries = MAX_PICTURES;
  code = parse_options(argc, argv, &opt, &done);
  if (code || done) return code;

  sets = (picture_set *)calloc(2, sizeof *sets);
  if (!sets) return out_of_memory(2 * (int64_t)sizeof *sets, "picture sets");
  code = load_sets(argv[0], &opt, sets, &count);
  if (code == 0 && opt.json) {
    json = strcmp(opt.json, "-") ? fopen(opt.json, "w") : stdout;
    if (!json) code = complain("--json: %s cannot be written: %s", opt.json, strerror(errno));
    if (json == stdout) text = stderr;
  }
  if (code == 0) {
    mlk_status status;
    memset(&desc, 0, sizeof desc);
    desc.threads = (int)opt.threads;
    desc.isa = opt.isa;
    choose_device(&opt, &desc);
    status = mlk_open(&ctx, &desc);
    if (status != MLK_OK) {
      complain("mlk_open: %s", mlk_status_name(status));
      code = EXIT_RUN;
    }
  }
  if (code == 0) code = run(ctx, &opt, sets, count, text, json);
  mlk_close(ctx);
  for (i = 0; i < 2; i++) free_set(&sets[i]);
  free(sets);
  if (json && json != stdout) {
    const int bad = ferror(json);
    if ((fclose(json) != 0 || bad) && code == 0) {
      complain("%s could not be written to its end", opt.json);
      code = EXIT_RUN;
    }
  }
  if ((fflush(stdout) != 0 || ferror(stdout)) && code == 0) {
    complain("standard output could not be written to its end");
    code = EXIT_RUN;
  }
  return code;
}
