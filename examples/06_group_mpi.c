/* Replicas on several machines: mlk_group over one-sided windows of MPI. They train a small network together, then the
   averaging of a large vector is timed next to MPI_Allreduce.

   Build: mpicc -O2 -fopenmp -I. examples/06_group_mpi.c -o build/06_group_mpi -lm
   Run:   mpirun -n 4 build/06_group_mpi            (--help lists the options)

   What carries over to other programs is the first part, "transport": the five functions by which a group reaches
   memory that it cannot map. Every rank has its part of the common memory in a window, and nothing else of MPI is used:
   no collective call, no message.

   The task is made: points of a square, to be told apart by the ring they lie in. The batch of a step is cut into
   shares of fixed number, so the weights have the same bits with any number of ranks on any machines, and the program
   compares them with what they must be.

   What MPI does not give. A rank answers others while it is inside MPI only, unless the library has a thread for that:
   a rank that computes for long goes there between layers (let_others_in). And most MPI libraries end all ranks when
   one dies, or leave the others waiting inside MPI, where the deadlines of the group cannot reach them; then MPI
   decides what a loss means, not MLK_LOSS_SHRINKS.

   Exit code: 0 done, 1 the run failed, 2 an argument is wrong. */

#if !defined(_WIN32) && !defined(_POSIX_C_SOURCE)
#define _POSIX_C_SOURCE 200809L /* setenv under -std=c99 */
#endif

#define MLK_IMPLEMENTATION
#include "mlk.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <mpi.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Ends all ranks with a sentence. */
static void fail(const char *format, ...) {
  va_list arguments;
  fputs("06_group_mpi: ", stderr);
  va_start(arguments, format);
  vfprintf(stderr, format, arguments);
  va_end(arguments);
  fputc('\n', stderr);
  MPI_Abort(MPI_COMM_WORLD, 1);
}

static void need(const mlk_context *ctx, mlk_status status) {
  if (status != MLK_OK) fail("%s: %s", mlk_status_name(status), mlk_last_error(ctx));
}

/* --- transport ---------------------------------------------------------------------------------------------------- */

/* A part of the common memory for every rank, in a window that is open to all (MPI_Win_lock_all) from here to the end.
   Words are read and written by MPI's accumulate functions alone, which are atomic for each other; their kinds never
   mix on one word, as accumulate_ops = same_op_no_op of MPI demands: a word is either swapped or replaced, besides
   being read. Gradients are stored by their owner directly and copied by MPI_Get. A copy that the owner overwrites
   meanwhile may be torn; the group finds that out by itself. */
typedef struct window {
  MPI_Win win;
  int rank;
  char *part;                    /* 64-byte aligned */
  MPI_Aint shift[MLK_MAX_RANKS]; /* where the part of each rank begins in its window */
} window;

static void window_open(window *w, uint64_t bytes) {
  int ranks, *model, found;
  char *base;
  MPI_Aint shift;
  if (bytes > (uint64_t)INTPTR_MAX - 64) fail("a part of %" PRIu64 " bytes is too large for this machine", bytes);
  MPI_Comm_rank(MPI_COMM_WORLD, &w->rank);
  MPI_Comm_size(MPI_COMM_WORLD, &ranks);
  if (MPI_Win_allocate((MPI_Aint)bytes + 64, 1, MPI_INFO_NULL, MPI_COMM_WORLD, &base, &w->win) != MPI_SUCCESS)
    fail("MPI_Win_allocate of %" PRIu64 " bytes failed", bytes);
  MPI_Win_get_attr(w->win, MPI_WIN_MODEL, &model, &found);
  if (!found || *model != MPI_WIN_UNIFIED) /* else what the owner stores is not what others get */
    fail("the windows of this MPI library have separate public and private copies: unified ones are needed");
  MPI_Win_set_errhandler(w->win, MPI_ERRORS_RETURN); /* a rank that is out of reach is the group's business */
  shift = (MPI_Aint)((64 - (uintptr_t)base % 64) % 64);
  w->part = base + shift;
  MPI_Allgather(&shift, 1, MPI_AINT, w->shift, 1, MPI_AINT, MPI_COMM_WORLD);
  MPI_Win_lock_all(MPI_MODE_NOCHECK, w->win);
  memset(w->part, 0, (size_t)bytes);
  MPI_Win_sync(w->win);
  MPI_Barrier(MPI_COMM_WORLD); /* all parts are zero before anybody looks */
}

/* The barrier keeps every window open until nobody needs it any more. */
static void window_close(window *w) {
  MPI_Barrier(MPI_COMM_WORLD);
  MPI_Win_unlock_all(w->win);
  MPI_Win_free(&w->win);
}

/* MPI's work is done when it was flushed; then what it brought may be read. */
static int window_flush(window *w, int rank, int error) {
  if (error == MPI_SUCCESS) error = MPI_Win_flush(rank, w->win);
  if (error == MPI_SUCCESS) error = MPI_Win_sync(w->win);
  return error != MPI_SUCCESS;
}

static int window_get(void *user, int rank, uint64_t offset, void *to, uint64_t bytes) {
  window *w = (window *)user;
  const uint64_t most = 1 << 30; /* counts are int */
  int error = MPI_SUCCESS;
  uint64_t done;
  for (done = 0; done < bytes && error == MPI_SUCCESS; done += most) {
    const int count = (int)(bytes - done < most ? bytes - done : most);
    error = MPI_Get((char *)to + done, count, MPI_BYTE, rank, w->shift[rank] + (MPI_Aint)(offset + done), count,
                    MPI_BYTE, w->win);
  }
  return window_flush(w, rank, error);
}

static int window_read(void *user, int rank, uint64_t offset, uint64_t *words, int count) {
  window *w = (window *)user;
  const uint64_t nothing = 0;
  const MPI_Aint at = w->shift[rank] + (MPI_Aint)offset;
  return window_flush(w, rank,
                      MPI_Get_accumulate(&nothing, count, MPI_UINT64_T, words, count, MPI_UINT64_T, rank, at, count,
                                         MPI_UINT64_T, MPI_NO_OP, w->win));
}

static int window_put(void *user, uint64_t offset, uint64_t word) {
  window *w = (window *)user;
  const MPI_Aint at = w->shift[w->rank] + (MPI_Aint)offset;
  MPI_Win_sync(w->win); /* what was stored before is seen by whoever reads the word */
  return window_flush(w, w->rank,
                      MPI_Accumulate(&word, 1, MPI_UINT64_T, w->rank, at, 1, MPI_UINT64_T, MPI_REPLACE, w->win));
}

static int window_swap(void *user, int rank, uint64_t offset, uint64_t expected, uint64_t desired, uint64_t *found) {
  window *w = (window *)user;
  const MPI_Aint at = w->shift[rank] + (MPI_Aint)offset;
  return window_flush(w, rank, MPI_Compare_and_swap(&desired, &expected, found, MPI_UINT64_T, rank, at, w->win));
}

/* Before MPI_Init. Open MPI 4 crashes in MPI_Compare_and_swap of 64 bits between ranks of one host with its component
   "osc rdma" (https://github.com/open-mpi/ompi/issues/7027, 7967, 11349): its others take over, unless the caller has
   chosen. */
static void avoid_faults_of_mpi(void) {
#if defined(OMPI_MAJOR_VERSION) && OMPI_MAJOR_VERSION < 5
  setenv("OMPI_MCA_osc", "^rdma", 0);
#endif
}

static mlk_transport window_transport(window *w) {
  mlk_transport t;
  memset(&t, 0, sizeof t);
  t.part = w->part, t.user = w;
  t.get = window_get, t.read = window_read, t.put = window_put, t.swap = window_swap;
  return t;
}

/* Gives MPI a moment to serve what others ask of this rank's window. */
static void let_others_in(void) {
  int flag;
  MPI_Iprobe(MPI_ANY_SOURCE, MPI_ANY_TAG, MPI_COMM_WORLD, &flag, MPI_STATUS_IGNORE);
}

/* A group of all ranks in windows of its own. */
static mlk_group *group_open(mlk_context *ctx, mlk_group_desc *desc, window *w) {
  mlk_group_plan plan;
  mlk_group *group;
  mlk_transport transport;
  need(ctx, mlk_group_get_plan(ctx, desc, &plan));
  window_open(w, plan.part_bytes);
  transport = window_transport(w);
  desc->transport = &transport; /* copied by the call */
  need(ctx, mlk_group_open(ctx, &group, desc));
  return group;
}

/* --- the network -------------------------------------------------------------------------------------------------- */

enum { LAYERS = 3, INPUTS = 2, WIDTH = 64, CLASSES = 3, WEIGHTS = 4547, BATCH = 384, TESTS = 4096, MOST = 4096 };
static const int width[LAYERS + 1] = {INPUTS, WIDTH, WIDTH, CLASSES};

typedef struct network {
  mlk_context *ctx;
  float weights[WEIGHTS], m[WEIGHTS], v[WEIGHTS], means[WEIGHTS]; /* a layer: [out, in], then a bias of [out] */
  int first[LAYERS + 1];                                          /* where it begins */
  float y[LAYERS + 1][MOST * WIDTH], z[LAYERS][MOST * WIDTH];     /* [rows, width]: activations, and before RELU */
  float dz[2][MOST * WIDTH];
  int64_t labels[MOST], taken[MOST];
} network;

/* Integers that look random: the same on every machine (Steele, Lea, Flood, "Fast splittable pseudorandom number
   generators", 2014). */
static uint32_t random_bits(uint64_t number) {
  uint64_t x = number * UINT64_C(0x9e3779b97f4a7c15);
  x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
  x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
  return (uint32_t)(x >> 32);
}

/* Points first, first + 1, ... of an endless sequence: two coordinates in [-1, 1), and the ring around the centre, of
   equal areas, that they lie in. */
static void load(network *n, uint64_t first, int rows) {
  int i;
  for (i = 0; i < rows; i++) {
    const uint32_t bits = random_bits(first + (uint64_t)i);
    const int64_t x = (int64_t)(bits & 0xffff) - 32768, y = (int64_t)(bits >> 16) - 32768;
    n->y[0][2 * i] = (float)x * (1.0f / 32768.0f), n->y[0][2 * i + 1] = (float)y * (1.0f / 32768.0f);
    n->labels[i] = ((x * x + y * y) * 3 >> 30) % CLASSES;
  }
}

static void network_init(network *n, mlk_context *ctx) {
  static const float reach[LAYERS] = {1.0f, 0.25f, 0.2f};
  int layer, i;
  memset(n, 0, sizeof *n);
  n->ctx = ctx;
  for (layer = 0; layer < LAYERS; layer++) {
    n->first[layer + 1] = n->first[layer] + width[layer + 1] * (width[layer] + 1);
    for (i = n->first[layer]; i < n->first[layer + 1]; i++)
      n->weights[i] = reach[layer] * ((float)(random_bits(~(uint64_t)i) >> 8) * (2.0f / 16777216.0f) - 1.0f);
  }
}

static void forward(network *n, int rows) {
  int layer;
  for (layer = 0; layer < LAYERS; layer++) {
    const int in = width[layer], out = width[layer + 1];
    const float *w = n->weights + n->first[layer];
    mlk_matmul_desc product;
    memset(&product, 0, sizeof product);
    product.a = mlk_f32(n->y[layer], rows, in);
    product.b = mlk_transposed(mlk_f32(w, out, in));
    product.bias = mlk_f32(w + out * in, out);
    product.d = mlk_f32(n->y[layer + 1], rows, out);
    if (layer + 1 < LAYERS) product.activation = MLK_RELU, product.preact = mlk_f32(n->z[layer], rows, out);
    need(n->ctx, mlk_matmul(n->ctx, &product));
  }
}

/* From dz, the gradient of what a layer gave before its activation: that of its weights and bias into grads, and of
   what the layer before gave into the other dz. */
static void backward(network *n, int layer, int rows, const float *dz, float *before, float *grads) {
  const int in = width[layer], out = width[layer + 1];
  mlk_matmul_desc product;
  mlk_reduce_desc bias;
  mlk_map_desc act;
  memset(&product, 0, sizeof product), memset(&bias, 0, sizeof bias), memset(&act, 0, sizeof act);
  product.a = mlk_transposed(mlk_f32(dz, rows, out));
  product.b = mlk_f32(n->y[layer], rows, in);
  product.d = mlk_f32(grads, out, in);
  need(n->ctx, mlk_matmul(n->ctx, &product));
  bias.op = MLK_SUM, bias.axes = 1;
  bias.x = mlk_f32(dz, rows, out), bias.out = mlk_f32(grads + out * in, out);
  need(n->ctx, mlk_reduce(n->ctx, &bias));
  if (layer == 0) return;
  product.a = mlk_f32(dz, rows, out);
  product.b = mlk_f32(n->weights + n->first[layer], out, in);
  product.d = mlk_f32(before, rows, in);
  need(n->ctx, mlk_matmul(n->ctx, &product));
  act.op = MLK_ACT_GRAD, act.activation = MLK_RELU;
  act.a = mlk_f32(n->z[layer - 1], rows, in), act.b = product.d, act.out = product.d;
  need(n->ctx, mlk_map(n->ctx, &act));
}

/* Gradients of a share, layer by layer straight into the common memory: a bucket is announced as
   soon as it is ready. */
static void learn_share(network *n, mlk_group *group, int share, uint64_t first, int rows) {
  const float scale = 1.0f / (float)rows;
  mlk_cross_entropy_desc loss;
  int layer, turn = 0;
  load(n, first, rows);
  forward(n, rows);
  memset(&loss, 0, sizeof loss);
  loss.x = mlk_f32(n->y[LAYERS], rows, CLASSES), loss.labels = mlk_i64(n->labels, rows);
  loss.dx = mlk_f32(n->dz[0], rows, CLASSES), loss.scale = &scale;
  need(n->ctx, mlk_cross_entropy(n->ctx, &loss));
  for (layer = LAYERS - 1; layer >= 0; layer--, turn = !turn) {
    backward(n, layer, rows, n->dz[turn], n->dz[!turn], (float *)mlk_group_slot(group, share, layer).data);
    need(n->ctx, mlk_group_publish(group, share, layer, NULL, 0));
    let_others_in();
  }
}

/* A step: the gradients of the own shares, the means of all, AdamW. */
static void learn(network *n, mlk_group *group, const mlk_group_desc *desc, int step) {
  mlk_tensor means[LAYERS];
  float rows[MLK_MAX_SHARES] = {0}; /* of the own shares: their weights */
  const int from = desc->rank * desc->shares / desc->ranks, to = (desc->rank + 1) * desc->shares / desc->ranks;
  int share, layer;
  mlk_adamw_desc adamw;
  for (share = from; share < to; share++)
    rows[share - from] = (float)((share + 1) * BATCH / desc->shares - share * BATCH / desc->shares);
  need(n->ctx, mlk_group_begin(group, rows, NULL));
  for (share = from; share < to; share++)
    learn_share(n, group, share, (uint64_t)step * BATCH + (uint64_t)(share * BATCH / desc->shares),
                (int)rows[share - from]);
  for (layer = LAYERS - 1; layer >= 0; layer--) {
    means[layer] = mlk_f32(n->means + n->first[layer], n->first[layer + 1] - n->first[layer]);
    need(n->ctx, mlk_group_average(group, layer, &means[layer], 1));
  }
  need(n->ctx, mlk_group_finish(group, NULL));
  memset(&adamw, 0, sizeof adamw);
  adamw.param = mlk_f32(n->weights, WEIGHTS), adamw.grad = mlk_f32(n->means, WEIGHTS);
  adamw.m = mlk_f32(n->m, WEIGHTS), adamw.v = mlk_f32(n->v, WEIGHTS);
  adamw.step = step, adamw.lr = 0.01f;
  need(n->ctx, mlk_adamw(n->ctx, &adamw));
}

/* Of TESTS points that no step sees: how many are told right. */
static int right_ones(network *n) {
  mlk_reduce_desc best;
  int i, right = 0;
  load(n, UINT64_C(1) << 40, TESTS);
  forward(n, TESTS);
  memset(&best, 0, sizeof best);
  best.op = MLK_ARGMAX, best.axes = 2;
  best.x = mlk_f32(n->y[LAYERS], TESTS, CLASSES), best.out = mlk_i64(n->taken, TESTS);
  need(n->ctx, mlk_reduce(n->ctx, &best));
  for (i = 0; i < TESTS; i++) right += n->taken[i] == n->labels[i];
  return right;
}

/* FNV-1a, 64 bits, over the bits of the values, little-endian. */
static uint64_t hash_of(const float *values, int64_t count) {
  uint64_t hash = UINT64_C(0xcbf29ce484222325);
  int64_t i;
  int k;
  for (i = 0; i < count; i++) {
    uint32_t bits;
    memcpy(&bits, &values[i], 4);
    for (k = 0; k < 32; k += 8) hash = (hash ^ (bits >> k & 255)) * UINT64_C(0x100000001b3);
  }
  return hash;
}

/* Have all ranks the same bits? */
static int same_everywhere(uint64_t hash, int ranks) {
  uint64_t all[MLK_MAX_RANKS];
  int i, same = 1;
  MPI_Allgather(&hash, 1, MPI_UINT64_T, all, 1, MPI_UINT64_T, MPI_COMM_WORLD);
  for (i = 0; i < ranks; i++) same &= all[i] == hash;
  return same;
}

/* --- options ------------------------------------------------------------------------------------------------------ */

typedef struct options {
  int steps, shares, threads, rounds, hash_only;
  int64_t elements;
  double timeout;
} options;

enum { STEPS = 1000, SHARES = 12 };
static const uint64_t pinned = UINT64_C(0xe2a8c3d209f3add3); /* hash of the weights after STEPS with SHARES */

static const char usage[] =
    "usage: mpirun -n RANKS 06_group_mpi [OPTION VALUE]...\n"
    "  --steps N      of the training, 0 to 100000                                         (1000)\n"
    "  --shares N     that the batch of 384 points is cut into, RANKS to 32: they decide the\n"
    "                 bits of the weights, the number of ranks does not                     (12)\n"
    "  --elements N   floats of the vector whose averaging is timed, 0 to 2^30; 0: not timed (4194304)\n"
    "  --rounds N     of the timing, 1 to 10000                                             (20)\n"
    "  --timeout S    seconds that a rank waits for another, 0.01 to 3600                   (30)\n"
    "  --threads N    of each rank, 0 to 1024; 0: all cores                                 (1)\n"
    "  --hash         one line with the hash of the weights, no timing\n";

/* A whole number of the range, or not: 0. */
static int whole(const char *text, int64_t least, int64_t most, int64_t *value) {
  char *end;
  errno = 0;
  *value = strtoll(text, &end, 10);
  return !errno && end != text && !*end && *value >= least && *value <= most;
}

/* Rank 0 says what is wrong, all end alike. */
static int refuse(int rank, const char *option, const char *value, const char *wanted) {
  if (rank == 0) fprintf(stderr, "06_group_mpi: %s: is %s, but must be %s; try --help\n", option, value, wanted);
  return 2;
}

/* -1: go on, else the exit code. */
static int read_options(int argc, char **argv, int rank, int ranks, options *o) {
  int i;
  memset(o, 0, sizeof *o);
  o->steps = STEPS, o->shares = SHARES, o->threads = 1, o->rounds = 20, o->elements = 4194304, o->timeout = 30;
  for (i = 1; i < argc; i++) {
    const char *name = argv[i], *value = i + 1 < argc ? argv[i + 1] : "missing";
    int64_t n = 0;
    if (!strcmp(name, "--help")) return rank == 0 ? fputs(usage, stdout), 0 : 0;
    if (!strcmp(name, "--hash")) {
      o->hash_only = 1;
      continue;
    }
    i++;
    if (!strcmp(name, "--steps")) {
      if (!whole(value, 0, 100000, &n)) return refuse(rank, name, value, "0 to 100000");
      o->steps = (int)n;
    } else if (!strcmp(name, "--shares")) {
      if (!whole(value, 1, MLK_MAX_SHARES, &n)) return refuse(rank, name, value, "1 to 32");
      o->shares = (int)n;
    } else if (!strcmp(name, "--threads")) {
      if (!whole(value, 0, 1024, &n)) return refuse(rank, name, value, "0 to 1024");
      o->threads = (int)n;
    } else if (!strcmp(name, "--rounds")) {
      if (!whole(value, 1, 10000, &n)) return refuse(rank, name, value, "1 to 10000");
      o->rounds = (int)n;
    } else if (!strcmp(name, "--elements")) {
      if (!whole(value, 0, INT64_C(1) << 30, &n)) return refuse(rank, name, value, "0 to 2^30");
      o->elements = n;
    } else if (!strcmp(name, "--timeout")) {
      char *end;
      o->timeout = strtod(value, &end);
      if (end == value || *end || !(o->timeout >= 0.01 && o->timeout <= 3600))
        return refuse(rank, name, value, "0.01 to 3600");
    } else {
      if (rank == 0) fprintf(stderr, "06_group_mpi: unknown option %s; try --help\n", name);
      return 2;
    }
  }
  if (ranks > MLK_MAX_RANKS || ranks > o->shares) {
    if (rank == 0)
      fprintf(stderr, "06_group_mpi: %d ranks, but there must be at most %d, and no more than shares (%d)\n", ranks,
              MLK_MAX_RANKS, o->shares);
    return 2;
  }
  return -1;
}

/* --- training and timing ------------------------------------------------------------------------------------------ */

/* What group and timing have in common. */
static mlk_group_desc describe(const options *o, int rank, int ranks, int shares, const mlk_bucket *buckets,
                               int64_t count) {
  mlk_group_desc desc;
  memset(&desc, 0, sizeof desc);
  desc.rank = rank, desc.ranks = ranks, desc.shares = shares;
  desc.buckets = buckets, desc.bucket_count = count;
  desc.timeout = o->timeout;
  return desc;
}

static int train(mlk_context *ctx, const options *o, int rank, int ranks) {
  static network n;
  mlk_bucket buckets[LAYERS];
  mlk_group_desc desc;
  mlk_group *group;
  window w;
  uint64_t hash;
  int step, layer, same, as_pinned;
  network_init(&n, ctx);
  memset(buckets, 0, sizeof buckets);
  for (layer = 0; layer < LAYERS; layer++) buckets[layer].elements = n.first[layer + 1] - n.first[layer];
  desc = describe(o, rank, ranks, o->shares, buckets, LAYERS);
  group = group_open(ctx, &desc, &w);
  for (step = 1; step <= o->steps; step++) {
    learn(&n, group, &desc, step);
    if (rank == 0 && !o->hash_only && step % 100 == 0)
      printf("step %d/%d  %.2f %% of the points right\n", step, o->steps, 100.0 * right_ones(&n) / TESTS),
          fflush(stdout);
  }
  mlk_group_close(group);
  window_close(&w);
  hash = hash_of(n.weights, WEIGHTS);
  same = same_everywhere(hash, ranks);
  as_pinned = o->steps != STEPS || o->shares != SHARES || hash == pinned;
  if (rank == 0 && o->hash_only)
    printf("%016" PRIx64 "\n", hash);
  else if (rank == 0)
    printf("hash       %016" PRIx64 "   FNV-1a 64 of the weights: the same with any number of ranks%s\n", hash,
           o->steps == STEPS && o->shares == SHARES && as_pinned ? "; it is the pinned one" : "");
  if (rank == 0 && !same) fputs("06_group_mpi: the ranks do not have the same weights\n", stderr);
  if (rank == 0 && !as_pinned) fprintf(stderr, "06_group_mpi: the weights must have the hash %016" PRIx64 "\n", pinned);
  return same && as_pinned;
}

/* What a rank has to average: in [-1/2, 1/2). */
static float element(int rank, int64_t i) {
  return (float)(random_bits((uint64_t)i * MLK_MAX_RANKS + (uint64_t)rank) >> 8) * (1.0f / 16777216.0f) - 0.5f;
}

/* Elements further from the exact mean than the manual of mlk_average allows. */
static int64_t wrong_ones(const float *means, int64_t count, int ranks) {
  int64_t i, wrong = 0;
  int r;
  for (i = 0; i < count; i++) {
    double sum = 0, size = 0;
    for (r = 0; r < ranks; r++) sum += (double)element(r, i), size += fabs((double)element(r, i));
    wrong += !(fabs((double)means[i] - sum / ranks) <= (ranks + 3) * ldexp(1.001, -24) * size / ranks);
  }
  return wrong;
}

/* Seconds of the slowest rank, from when all are ready. */
static double slowest(double since) {
  double seconds = MPI_Wtime() - since;
  MPI_Allreduce(MPI_IN_PLACE, &seconds, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
  return seconds;
}

static double begin_together(void) {
  MPI_Barrier(MPI_COMM_WORLD);
  return MPI_Wtime();
}

/* The gradients stand in the slot already, as they would after a backward pass. */
static double average_by_group(mlk_context *ctx, mlk_group *group, int rank, float *means, int64_t count) {
  const mlk_tensor out = mlk_f32(means, count);
  const double since = begin_together();
  need(ctx, mlk_group_begin(group, NULL, NULL));
  need(ctx, mlk_group_publish(group, rank, 0, NULL, 0));
  need(ctx, mlk_group_average(group, 0, &out, 1));
  need(ctx, mlk_group_finish(group, NULL));
  return slowest(since);
}

static double average_by_allreduce(const float *own, float *means, int64_t count, int ranks) {
  const float scale = 1.0f / (float)ranks;
  const double since = begin_together();
  int64_t i;
  MPI_Allreduce(own, means, (int)count, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
  for (i = 0; i < count; i++) means[i] *= scale;
  return slowest(since);
}

/* Rounds of one and the other in turn, the best of each. */
static int compare(mlk_context *ctx, const options *o, int rank, int ranks) {
  const int64_t count = o->elements;
  mlk_bucket bucket;
  mlk_group_desc desc;
  mlk_group *group;
  window w;
  float *own, *means = (float *)malloc((size_t)count * sizeof *means);
  double by_group = HUGE_VAL, by_allreduce = HUGE_VAL, seconds;
  int64_t i, wrong[2];
  int round, same;
  if (!means) fail("no memory for %" PRId64 " floats", count);
  memset(&bucket, 0, sizeof bucket);
  bucket.elements = count;
  desc = describe(o, rank, ranks, 0, &bucket, 1);
  group = group_open(ctx, &desc, &w);
  own = (float *)mlk_group_slot(group, rank, 0).data;
  for (i = 0; i < count; i++) own[i] = element(rank, i);
  for (round = 0; round < o->rounds; round++)
    if ((seconds = average_by_group(ctx, group, rank, means, count)) < by_group) by_group = seconds;
  wrong[0] = wrong_ones(means, count, ranks);
  same = same_everywhere(hash_of(means, count), ranks);
  for (round = 0; round < o->rounds; round++)
    if ((seconds = average_by_allreduce(own, means, count, ranks)) < by_allreduce) by_allreduce = seconds;
  wrong[1] = wrong_ones(means, count, ranks);
  MPI_Allreduce(MPI_IN_PLACE, wrong, 2, MPI_INT64_T, MPI_SUM, MPI_COMM_WORLD);
  if (rank == 0) {
    printf("averaging  %" PRId64
           " floats of %d rank%s: mlk_group %.3f ms, MPI_Allreduce and scaling %.3f ms: %.2f times as"
           " fast (best of %d)\n",
           count, ranks, ranks == 1 ? "" : "s", by_group * 1e3, by_allreduce * 1e3, by_allreduce / by_group, o->rounds);
    printf("           means out of the error bound: %" PRId64 " and %" PRId64 "; mlk_group gave %s\n", wrong[0],
           wrong[1], same ? "all ranks the same bits" : "the ranks different bits");
  }
  mlk_group_close(group);
  window_close(&w);
  free(means);
  return same && !wrong[0] && !wrong[1];
}

int main(int argc, char **argv) {
  mlk_context *ctx;
  mlk_context_desc context;
  options o;
  char library[MPI_MAX_LIBRARY_VERSION_STRING];
  int rank, ranks, length, code, right;
  avoid_faults_of_mpi();
  MPI_Init(&argc, &argv);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &ranks);
  if ((code = read_options(argc, argv, rank, ranks, &o)) >= 0) return MPI_Finalize(), code;
  memset(&context, 0, sizeof context);
  context.threads = o.threads;
  if (mlk_open(&ctx, &context) != MLK_OK) fail("the library does not open");
  MPI_Get_library_version(library, &length);
  library[strcspn(library, ",\n")] = 0;
  if (rank == 0 && !o.hash_only)
    printf("group      %d rank%s, %s; %d shares of a batch of %d points\n"
           "network    %d-%d-%d-%d, %d weights\n",
           ranks, ranks == 1 ? "" : "s", library, o.shares, BATCH, INPUTS, WIDTH, WIDTH, CLASSES, WEIGHTS);
  right = train(ctx, &o, rank, ranks);
  if (right && !o.hash_only && o.elements > 0) right = compare(ctx, &o, rank, ranks);
  mlk_close(ctx);
  MPI_Finalize();
  return !right;
}
