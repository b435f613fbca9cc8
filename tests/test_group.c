/* test_group.c - replica groups of one process: threads over .memory, and one fork. Processes that die, and attacks on
   what they share, are in group_processes.c.

   The oracle is mlk_average on a context of its own, over all shares in ascending order: it knows no ranks, so whatever
   agrees with it has the same bits for 1, 2, 3, ... ranks. Checks are made by the main thread after the others ended.
   Timeouts are long where nobody is late. Where somebody must be late they are short, and a machine so busy that others
   were late as well repeats the case with twice the time. */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* MAP_ANONYMOUS, nanosleep and sched_yield under -std=c99 */
#endif

#include "test.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#if MLKT_POSIX
#include <pthread.h>
#include <sched.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#endif

enum { RANKS = 8, SHARES = MLK_MAX_SHARES, BUCKETS = 300, STEPS = 8, VIEWS = 3, TEXT = 512 };

/* ---- problems: what a group works on, all of it a function of the seed ------------------------------------------- */

typedef enum order_kind {
  ORDER_PLAIN,    /* publish everything, then average everything */
  ORDER_AT_ONCE,  /* each bucket is averaged as soon as it is published, the last bucket first */
  ORDER_OVERLAP,  /* buckets in a random order, the same in all ranks; each rank averages at moments of its own */
  ORDER_SHUFFLED, /* published in an order of each rank's own; averaged so too where a rank averages alone */
  ORDERS
} order_kind;

typedef struct problem {
  int ranks, shares, shots, steps, threads;
  int skip_nonfinite, poisoned, weighted;
  int slots;    /* gradients are written into the slots */
  int in_place; /* the means go where the gradients were */
  int views;    /* gradients and means are several tensors, one of them transposed with gaps */
  mlk_parts parts;
  order_kind order;
  mlk_dtype wire;
  mlk_loss on_loss;
  double timeout;
  int64_t bucket_count;
  const int64_t *elements;
  uint64_t seed;
} problem;

static problem problem_new(int ranks, int shares, const int64_t *elements, int64_t bucket_count) {
  problem p;
  memset(&p, 0, sizeof p);
  p.ranks = ranks;
  p.shares = shares;
  p.steps = 2;
  p.threads = 1;
  p.timeout = 20;
  p.elements = elements;
  p.bucket_count = bucket_count;
  p.seed = 1;
  return p;
}

static int share_from(const problem *p, int rank) { return rank * p->shares / p->ranks; }
static int share_to(const problem *p, int rank) { return (rank + 1) * p->shares / p->ranks; }
static uint32_t all_bits(int count) { return (uint32_t)((UINT64_C(1) << count) - 1); }

static mlkt_rng numbers(const problem *p, int64_t step, int64_t share, int64_t bucket) {
  mlkt_rng rng;
  rng.state = p->seed * UINT64_C(0xA24BAED4963EE407) + (uint64_t)step * UINT64_C(0x9FB21C651E98DF25) +
              (uint64_t)share * UINT64_C(0xD6E8FEB86659FD93) + (uint64_t)bucket * UINT64_C(0xCA5A826395121157);
  (void)mlkt_u64(&rng);
  return rng;
}

/* The bucket of a share that holds a NaN or an infinity in this step, or -1. Share 0 stays finite, so one is left. */
static int64_t poisoned_bucket(const problem *p, int64_t step, int share) {
  mlkt_rng rng = numbers(p, step, share, -7);
  int64_t bucket;
  if (!p->poisoned || share == 0 || mlkt_int(&rng, 0, 2) != 0) return -1;
  bucket = mlkt_int(&rng, 0, p->bucket_count - 1);
  while (p->elements[bucket] == 0) bucket = (bucket + 1) % p->bucket_count;
  return bucket;
}

static void gradients(const problem *p, int64_t step, int share, int64_t bucket, float *to) {
  static const uint32_t poisons[] = {0x7FC00000u, 0x7F800000u, 0xFF800000u};
  mlkt_rng rng = numbers(p, step, share, bucket);
  int64_t i;
  for (i = 0; i < p->elements[bucket]; i++) to[i] = mlkt_wide(&rng, 6);
  if (poisoned_bucket(p, step, share) == bucket)
    to[mlkt_int(&rng, 0, p->elements[bucket] - 1)] = mlkt_float(poisons[mlkt_int(&rng, 0, 2)]);
}

/* Some are 0, but the share's own number decides that one is not. */
static float weight_of(const problem *p, int64_t step, int share) {
  static const float weights[] = {1.0f, 3.0f, 0.0f, 0.375f, 1000.0f};
  mlkt_rng rng = numbers(p, step, share, -3);
  const float weight = weights[mlkt_int(&rng, 0, 4)];
  if (!p->weighted) return 1.0f;
  return share == 0 && weight <= 0.0f ? 2.0f : weight;
}

static size_t wire_bytes(mlk_dtype wire) { return wire == MLK_F32 ? 4 : 2; }

static mlk_tensor flat(void *data, mlk_dtype dtype, int64_t count) {
  mlk_tensor t = mlk_f32((const float *)data, count);
  t.dtype = (int32_t)dtype;
  return t;
}

/* to, of the wire's type = from, rounded once. */
static mlk_status to_wire(mlk_context *ctx, mlk_tensor to, float *from, int64_t count) {
  mlk_map_desc copy;
  memset(&copy, 0, sizeof copy);
  copy.op = MLK_COPY;
  copy.a = flat(from, MLK_F32, count);
  copy.out = to;
  return mlk_map(ctx, &copy);
}

/* The mean of a bucket over the shares of the mask: the oracle. */
static int mean_of(const problem *p, mlk_context *oracle, int64_t step, int64_t bucket, uint32_t mask, float *mean) {
  const int64_t n = p->elements[bucket];
  const size_t pitch = ((size_t)n * wire_bytes(p->wire) + 63) / 64 * 64 + 64;
  unsigned char *memory = (unsigned char *)malloc(pitch * (size_t)p->shares);
  float *grads = (float *)malloc((size_t)n * sizeof *grads + 1);
  mlk_tensor inputs[SHARES], output = flat(mean, MLK_F32, n);
  float weights[SHARES];
  mlk_average_desc desc;
  int s, ok = memory && grads;
  for (s = 0; ok && s < p->shares; s++) {
    inputs[s] = flat(memory + (size_t)s * pitch, p->wire, n);
    weights[s] = weight_of(p, step, s);
    gradients(p, step, s, bucket, grads);
    ok = CHECK_OK(oracle, to_wire(oracle, inputs[s], grads, n));
  }
  memset(&desc, 0, sizeof desc);
  desc.inputs = inputs;
  desc.replicas = p->shares;
  desc.count = desc.output_count = 1;
  desc.outputs = &output;
  desc.weights = weights;
  desc.absent = ~(uint64_t)mask & all_bits(p->shares);
  if (ok) ok = CHECK_OK(oracle, mlk_average(oracle, &desc));
  free(grads);
  free(memory);
  return ok;
}

/* ---- the tensors of a bucket ------------------------------------------------------------------------------------- */

static size_t view_room(int64_t n) { return (size_t)(2 * n + 16); } /* floats that views of n elements may span */

/* Either one flat tensor or, of large enough buckets, three: 3 x c transposed in rows of 4 with a gap, one element, and
   the rest. */
static int views_of(const problem *p, int64_t bucket, float *base, mlk_tensor views[VIEWS]) {
  const int64_t n = p->elements[bucket], c = n / 6;
  if (!p->views || c == 0) {
    views[0] = flat(base, MLK_F32, n);
    return 1;
  }
  views[0] = mlk_f32(base, 3, c);
  views[0].stride[0] = 1;
  views[0].stride[1] = 4;
  views[1] = flat(base + 4 * c, MLK_F32, 1);
  views[2] = flat(base + 4 * c + 1, MLK_F32, n - 3 * c - 1);
  return 3;
}

/* Moves n flat elements into the views, or out of them. */
static void move_views(const mlk_tensor *views, int count, float *flat_elements, int into) {
  int v;
  int64_t i, j;
  for (v = 0; v < count; v++) {
    const mlk_tensor *t = &views[v];
    const int64_t rows = t->rank == 2 ? t->shape[0] : 1, columns = t->shape[t->rank - 1];
    for (i = 0; i < rows; i++)
      for (j = 0; j < columns; j++) {
        float *element = (float *)t->data + (t->rank == 2 ? i * t->stride[0] + j * t->stride[1] : j);
        if (into)
          *element = *flat_elements++;
        else
          *flat_elements++ = *element;
      }
  }
}

/* ---- a rank ------------------------------------------------------------------------------------------------------ */

typedef struct member {
  const problem *p;
  int rank;
  mlk_group_desc desc;
  mlk_context *ctx;
  mlk_group *group;
  mlk_tensor views[BUCKETS * VIEWS]; /* of the means: they must stay until finish */
  int view_count[BUCKETS];
  float *store[BUCKETS]; /* where the means go */
  float *grads[SHARES][BUCKETS];
  float *means[STEPS][BUCKETS]; /* what came out, flat */
  mlk_group_report begun[STEPS], finished[STEPS];
  int steps_done;
  mlk_status status; /* the first that was not expected */
  char text[TEXT];
  double longest;            /* seconds of the longest call */
  void (*script)(void *arg); /* arg is the member */
  void *user;
  int was_late;
#if MLKT_POSIX
  pthread_t thread;
#endif
} member;

static float *floats(size_t count) {
  float *x = (float *)malloc(count * sizeof *x + 1);
  if (!x) exit(2);
  mlkt_rogue_f32(x, count);
  return x;
}

/* 1 when status is MLK_OK; else the first sentence is kept for the main thread. */
static int must(member *m, mlk_status status, const char *call) {
  if (status == MLK_OK) return 1;
  if (m->status == MLK_OK) {
    m->status = status;
    snprintf(m->text, sizeof m->text, "rank %d, %s in step %d: %s: %s", m->rank, call, m->steps_done + 1,
             mlk_status_name(status), mlk_last_error(m->ctx));
  }
  return 0;
}

static mlk_group_desc group_desc(const problem *p, int rank, const mlk_bucket *buckets, void *memory) {
  mlk_group_desc desc;
  memset(&desc, 0, sizeof desc);
  desc.rank = rank;
  desc.ranks = p->ranks;
  desc.shares = p->shares;
  desc.buckets = buckets;
  desc.bucket_count = p->bucket_count;
  desc.wire = p->wire;
  desc.on_loss = p->on_loss;
  desc.timeout = p->timeout;
  desc.skip_nonfinite = p->skip_nonfinite;
  desc.shots = p->shots;
  desc.memory = memory;
  desc.parts = p->parts;
  return desc;
}

static void name_buckets(const problem *p, mlk_bucket *buckets) {
  static const char *const names[] = {"embedding", NULL, "h.0.weight", "", "h.0.bias"};
  int64_t b;
  for (b = 0; b < p->bucket_count; b++) {
    buckets[b].name = names[b % 5];
    buckets[b].elements = p->elements[b];
  }
}

static void member_init(member *m, const problem *p, int rank, const mlk_bucket *buckets, void *memory) {
  memset(m, 0, sizeof *m);
  m->p = p;
  m->rank = rank;
  m->desc = group_desc(p, rank, buckets, memory);
}

static void member_free(member *m) {
  int64_t b;
  int s;
  mlk_group_close(m->group);
  mlk_close(m->ctx);
  for (b = 0; b < BUCKETS; b++) {
    free(m->store[b]);
    for (s = 0; s < SHARES; s++) free(m->grads[s][b]);
    for (s = 0; s < STEPS; s++) free(m->means[s][b]);
  }
}

static int open_context(member *m) {
  const mlk_context_desc desc = mlkt_context_desc(MLK_ISA_BEST, m->p->threads);
  return must(m, mlk_open(&m->ctx, &desc), "mlk_open");
}

static int open_member(member *m) {
  if (!m->ctx && !open_context(m)) return 0;
  return must(m, mlk_group_open(m->ctx, &m->group, &m->desc), "mlk_group_open");
}

/* Publishes a bucket of an own share, from the slot or from tensors. */
static int publish(member *m, int64_t step, int share, int64_t b) {
  const problem *p = m->p;
  const int64_t n = p->elements[b];
  float **grads = &m->grads[share][b];
  mlk_tensor views[VIEWS];
  float *dense = floats((size_t)n);
  int count, ok;
  gradients(p, step, share, b, dense);
  if (p->slots) {
    const mlk_tensor slot = mlk_group_slot(m->group, share, b);
    ok = slot.data && slot.dtype == (int32_t)p->wire && slot.rank == 1 && slot.shape[0] == n;
    ok = must(m, ok ? MLK_OK : MLK_ERR_SHAPE, "mlk_group_slot") &&
         must(m, to_wire(m->ctx, slot, dense, n), "mlk_map") &&
         must(m, mlk_group_publish(m->group, share, b, NULL, 0), "mlk_group_publish");
  } else {
    float *place = p->in_place && share == share_from(p, m->rank) ? m->store[b] : NULL;
    if (!place) {
      if (!*grads) *grads = floats(view_room(n));
      place = *grads;
    }
    count = views_of(p, b, place, views);
    move_views(views, count, dense, 1);
    ok = must(m, mlk_group_publish(m->group, share, b, views, count), "mlk_group_publish");
    if (!(p->in_place && share == share_from(p, m->rank))) /* copied: the caller's may change at once */
      mlkt_rogue_f32(*grads, view_room(n));
  }
  free(dense);
  return ok;
}

static int average(member *m, int64_t b) {
  m->view_count[b] = views_of(m->p, b, m->store[b], &m->views[b * VIEWS]);
  return must(m, mlk_group_average(m->group, b, &m->views[b * VIEWS], m->view_count[b]), "mlk_group_average");
}

static void shuffle(mlkt_rng *rng, int64_t *order, int64_t count) {
  int64_t i;
  for (i = 0; i < count; i++) order[i] = i;
  for (i = count - 1; i > 0; i--) {
    const int64_t j = mlkt_int(rng, 0, i), was = order[i];
    order[i] = order[j];
    order[j] = was;
  }
}

static int publish_shares(member *m, int64_t step, int64_t b) {
  int s, ok = 1;
  for (s = share_from(m->p, m->rank); ok && s < share_to(m->p, m->rank); s++) ok = publish(m, step, s, b);
  return ok;
}

static int overlap(member *m, int64_t step, const int64_t *order) {
  mlkt_rng own = numbers(m->p, step, -1, m->rank);
  int64_t i, next = 0;
  int ok = 1;
  for (i = 0; ok && i < m->p->bucket_count; i++) {
    ok = publish_shares(m, step, order[i]);
    while (ok && next <= i && mlkt_int(&own, 0, 2) == 0) ok = average(m, order[next++]);
  }
  while (ok && next < m->p->bucket_count) ok = average(m, order[next++]);
  return ok;
}

static int shuffled(member *m, int64_t step, int64_t *common) {
  const problem *p = m->p;
  const int64_t shares = share_to(p, m->rank) - share_from(p, m->rank);
  mlkt_rng own = numbers(p, step, -2, m->rank);
  int64_t *order = (int64_t *)malloc((size_t)(p->bucket_count * shares + 1) * sizeof *order), i;
  int ok = order != NULL;
  if (ok) shuffle(&own, order, p->bucket_count * shares);
  for (i = 0; ok && i < p->bucket_count * shares; i++)
    ok = publish(m, step, share_from(p, m->rank) + (int)(order[i] % shares), order[i] / shares);
  if (p->shots == 1) shuffle(&own, common, p->bucket_count);
  for (i = 0; ok && i < p->bucket_count; i++) ok = average(m, common[i]);
  free(order);
  return ok;
}

static int work(member *m, int64_t step) {
  const problem *p = m->p;
  mlkt_rng common = numbers(p, step, -4, 0);
  int64_t order[BUCKETS], b;
  int ok = 1;
  shuffle(&common, order, p->bucket_count);
  switch (p->order) {
  case ORDER_AT_ONCE:
    for (b = p->bucket_count - 1; ok && b >= 0; b--) ok = publish_shares(m, step, b) && average(m, b);
    break;
  case ORDER_OVERLAP: ok = overlap(m, step, order); break;
  case ORDER_SHUFFLED: ok = shuffled(m, step, order); break;
  default:
    for (b = 0; ok && b < p->bucket_count; b++) ok = publish_shares(m, step, b);
    for (b = 0; ok && b < p->bucket_count; b++) ok = average(m, b);
  }
  return ok;
}

static int begin(member *m, mlk_group_report *report) {
  float weights[SHARES];
  int s;
  const int from = share_from(m->p, m->rank);
  const int64_t step = m->steps_done + 1;
  for (s = from; s < share_to(m->p, m->rank); s++) weights[s - from] = weight_of(m->p, step, s);
  return must(m, mlk_group_begin(m->group, m->p->weighted ? weights : NULL, report), "mlk_group_begin");
}

/* One whole step; what came out is kept when there is room. */
static int whole_step(member *m) {
  const problem *p = m->p;
  const int at = m->steps_done;
  int64_t b;
  for (b = 0; b < p->bucket_count; b++)
    if (!m->store[b]) m->store[b] = floats(view_room(p->elements[b]));
  if (!begin(m, &m->begun[at]) || !work(m, at + 1) ||
      !must(m, mlk_group_finish(m->group, &m->finished[at]), "mlk_group_finish"))
    return 0;
  for (b = 0; b < p->bucket_count; b++) {
    m->means[at][b] = floats((size_t)p->elements[b]);
    move_views(&m->views[b * VIEWS], m->view_count[b], m->means[at][b], 0);
  }
  m->steps_done++;
  return 1;
}

static void plain_script(void *arg) {
  member *m = (member *)arg;
  if (!open_member(m)) return;
  while (m->steps_done < m->p->steps && whole_step(m)) continue;
}

#if MLKT_POSIX
static void *member_main(void *user) {
  member *m = (member *)user;
  m->script(m);
  return NULL;
}
#endif

#if MLKT_POSIX
static void start_members(member *members, int count) {
  int r;
  for (r = 0; r < count; r++)
    if (pthread_create(&members[r].thread, NULL, member_main, &members[r]) != 0) exit(2);
}

static void join_members(member *members, int count) {
  int r;
  for (r = 0; r < count; r++) pthread_join(members[r].thread, NULL);
}
#endif

/* Runs all scripts at once. 0: there are no threads here; the case is skipped. */
static int run_members(member *members, int count) {
#if MLKT_POSIX
  start_members(members, count);
  join_members(members, count);
  return 1;
#else
  if (count == 1) {
    members[0].script(&members[0]);
    return 1;
  }
  mlkt_skip("no threads here");
  return 0;
#endif
}

static mlk_group_plan plan_of(const problem *p) {
  mlk_bucket buckets[BUCKETS];
  mlk_group_plan plan;
  mlk_group_desc desc;
  mlk_context *ctx = mlkt_open(MLK_ISA_BEST, p->threads);
  memset(&plan, 0, sizeof plan);
  name_buckets(p, buckets);
  desc = group_desc(p, 0, buckets, NULL);
  if (ctx) CHECK_OK(ctx, mlk_group_get_plan(ctx, &desc, &plan));
  mlk_close(ctx);
  return plan;
}

/* The common memory: exactly what the plan says, between pages that may not be touched. */
static mlkt_buffer common_memory(const problem *p) {
  const mlk_group_plan plan = plan_of(p);
  mlkt_buffer memory = mlkt_buffer_new((size_t)plan.bytes, MLKT_TAIL);
  if ((uintptr_t)memory.data % 64 != 0) mlkt_buffer_place(&memory, (size_t)plan.bytes, MLKT_HEAD);
  memset(memory.data, 0, memory.bytes);
  return memory;
}

/* ---- checks of a run in which nobody was lost -------------------------------------------------------------------- */

static void check_report(const problem *p, const member *m, int at) {
  const mlk_group_report *r = &m->finished[at], *b = &m->begun[at];
  const uint32_t all = all_bits(p->ranks);
  uint32_t shares = 0, nonfinite = 0;
  double weight = 0;
  int s;
  for (s = 0; s < p->shares; s++) {
    const float w = weight_of(p, at + 1, s);
    if (!(w > 0.0f)) continue; /* not looked at */
    if (poisoned_bucket(p, at + 1, s) >= 0 && p->skip_nonfinite) {
      nonfinite |= UINT32_C(1) << s;
    } else {
      shares |= UINT32_C(1) << s;
      weight += (double)w;
    }
  }
  CHECK_EQ_I64(b->step, at + 1);
  CHECK_EQ_I64(b->members, all);
  CHECK_EQ_I64(b->lost, 0);
  CHECK_EQ_I64(b->joined, at == 0 ? all : 0);
  CHECK_EQ_I64(r->step, at + 1);
  CHECK_EQ_I64(r->members, all);
  CHECK_EQ_I64(r->lost, 0);
  CHECK_EQ_I64(r->joined, at == 0 ? all : 0);
  CHECK_EQ_I64(r->shares, shares);
  CHECK_EQ_I64(r->nonfinite, nonfinite);
  CHECK_MSG(r->weight == weight, "report.weight is %.17g, expected %.17g", r->weight, weight);
}

static void check_means(const problem *p, mlk_context *oracle, member *members, int at) {
  int64_t b;
  int r;
  for (b = 0; b < p->bucket_count && !mlkt_hopeless(); b++) {
    const int64_t n = p->elements[b];
    float *want = floats((size_t)n);
    if (mean_of(p, oracle, at + 1, b, members[0].finished[at].shares, want))
      for (r = 0; r < p->ranks; r++) CHECK_BITS_F32_N(members[r].means[at][b], want, n);
    free(want);
  }
}

/* The gaps of the strided means were left alone. */
static void check_gaps(const problem *p, const member *m) {
  int64_t b, j;
  for (b = 0; p->views && !p->in_place && b < p->bucket_count; b++)
    for (j = 0; m->view_count[b] == VIEWS && j < p->elements[b] / 6; j++)
      CHECK(mlkt_is_rogue_f32(m->store[b] + 4 * j + 3, 1));
}

static void check_run(const problem *p, mlk_context *oracle, member *members) {
  int r, at;
  for (r = 0; r < p->ranks; r++) {
    CHECK_MSG(members[r].status == MLK_OK, "%s", members[r].text);
    if (!CHECK_EQ_I64(members[r].steps_done, p->steps)) return;
  }
  for (at = 0; at < p->steps; at++) {
    for (r = 0; r < p->ranks; r++) check_report(p, &members[r], at);
    check_means(p, oracle, members, at);
  }
  for (r = 0; r < p->ranks; r++) check_gaps(p, &members[r]);
}

static member *members_new(const problem *p, mlk_bucket *buckets, void *memory) {
  member *members = (member *)malloc((size_t)p->ranks * sizeof *members);
  int r;
  if (!members) exit(2);
  name_buckets(p, buckets);
  for (r = 0; r < p->ranks; r++) {
    member_init(&members[r], p, r, buckets, memory);
    members[r].script = plain_script;
  }
  return members;
}

static void members_free(const problem *p, member *members) {
  int r;
  for (r = 0; r < p->ranks; r++) member_free(&members[r]);
  free(members);
}

static void note_problem(const problem *p) {
  mlkt_note(
      "%d ranks, %d shares, wire %d, shots %d, %d buckets, order %d, threads %d, slots %d, in place %d, views %d, "
      "seed %lu",
      p->ranks, p->shares, (int)p->wire, p->shots, (int)p->bucket_count, (int)p->order, p->threads, p->slots,
      p->in_place, p->views, (unsigned long)p->seed);
}

static void run_and_check(const problem *p, mlk_context *oracle) {
  mlk_bucket buckets[BUCKETS];
  mlkt_buffer memory = common_memory(p);
  member *members = members_new(p, buckets, memory.data);
  note_problem(p);
  if (run_members(members, p->ranks)) check_run(p, oracle, members);
  members_free(p, members);
  mlkt_buffer_free(&memory);
}

/* ---- cases: the mean, to the bit --------------------------------------------------------------------------------- */

static const int64_t sizes_few[] = {33, 0, 1, 256, 7};
static const int64_t sizes_one[] = {1};
static const int64_t sizes_odd[] = {0, 1025, 31, 4097, 0, 63};
static int64_t sizes_many[BUCKETS];

static void choose_sizes(problem *p, int which) {
  int i;
  for (i = 0; i < BUCKETS; i++) sizes_many[i] = i % 4;
  switch (which) {
  case 0: p->elements = sizes_few, p->bucket_count = 5; break;
  case 1: p->elements = sizes_one, p->bucket_count = 1; break;
  case 2: p->elements = sizes_odd, p->bucket_count = 6; break;
  default: p->elements = sizes_many, p->bucket_count = BUCKETS;
  }
}

static const mlk_dtype wires[] = {MLK_F32, MLK_BF16, MLK_F16};

/* On devices slots lie in the host's memory and in theirs by turns. */
static mlk_parts parts_of(uint64_t turn) { return mlkt_opt.cuda && turn % 2 ? MLK_PARTS_DEVICE : MLK_PARTS_HOST; }

/* Ranks x shares x wire x shots, with the rest in turn; one in three of them, all with --long. */
static void bits_sweep(void) {
  mlk_context *oracle = mlkt_open(MLK_ISA_REFERENCE, 1);
  const int shares[] = {0, 1, 4, 8, 32}; /* beyond the ranks, or as they are */
  uint64_t index = 0;
  int ranks, s, w, shots;
  for (ranks = 1; oracle && ranks <= RANKS; ranks++)
    for (s = 0; s < 5; s++)
      for (w = 0; w < 3; w++)
        for (shots = 0; shots <= 2; shots++) {
          problem p = problem_new(ranks, s < 2 ? ranks + shares[s] : shares[s], NULL, 0);
          mlkt_rng rng;
          index++;
          if (p.shares < ranks || (!mlkt_opt.long_run && (index / 3 + index) % 3) || mlkt_hopeless()) continue;
          if (!mlkt_keep(index / 3) && index != 99) continue; /* one at least */
          rng = mlkt_rng_case();
          rng.state += index;
          p.wire = wires[w];
          p.shots = shots;
          p.seed = mlkt_u64(&rng);
          choose_sizes(&p, index % 16 == 15 ? 3 : (int)(index % 3));
          p.order = (order_kind)mlkt_int(&rng, 0, ORDERS - 1);
          p.slots = (int)mlkt_int(&rng, 0, 1);
          p.in_place = (int)mlkt_int(&rng, 0, 1);
          p.views = (int)mlkt_int(&rng, 0, 1);
          p.weighted = (int)mlkt_int(&rng, 0, 1);
          p.on_loss = (mlk_loss)mlkt_int(&rng, 0, 1);
          p.parts = parts_of(mlkt_u64(&rng) >> 8);
          run_and_check(&p, oracle);
        }
  mlk_close(oracle);
}

/* One batch of four shares, told once for each number of ranks that can take it, and compared directly. */
static void same_for_any_ranks(void) {
  const int64_t sizes[] = {1000, 3, 0, 129};
  mlk_bucket buckets[BUCKETS];
  float *first[STEPS][4];
  int ranks, at;
  int64_t b;
  memset(first, 0, sizeof first);
  for (ranks = 1; ranks <= (MLKT_POSIX ? 4 : 1); ranks++) {
    problem p = problem_new(ranks, 4, sizes, 4);
    mlkt_buffer memory = common_memory(&p);
    member *members = members_new(&p, buckets, memory.data);
    note_problem(&p);
    run_members(members, ranks);
    for (at = 0; at < p.steps; at++)
      for (b = 0; b < 4; b++) {
        float *mean = members[ranks - 1].means[at][b];
        if (!CHECK_MSG(mean != NULL, "%s", members[ranks - 1].text)) continue;
        if (ranks > 1) {
          if (first[at][b]) CHECK_BITS_F32_N(mean, first[at][b], sizes[b]);
        } else {
          first[at][b] = mean;
          members[ranks - 1].means[at][b] = NULL; /* kept beyond the members */
        }
      }
    members_free(&p, members);
    mlkt_buffer_free(&memory);
  }
  for (at = 0; at < STEPS; at++)
    for (b = 0; b < 4; b++) free(first[at][b]);
}

static void orders(void) {
  mlk_context *oracle = mlkt_open(MLK_ISA_REFERENCE, 1);
  const int64_t sizes[] = {40, 5, 0, 17, 64, 1, 300, 16, 15, 2, 128, 9};
  const int rounds = mlkt_opt.quick ? 4 : 40;
  mlkt_rng rng = mlkt_rng_case();
  int i;
  for (i = 0; oracle && i < rounds && !mlkt_hopeless(); i++) {
    problem p = problem_new(2 + i % 3, 5, sizes, 12);
    p.order = i % 2 ? ORDER_OVERLAP : ORDER_SHUFFLED;
    p.shots = 1 + i / 2 % 2;
    p.steps = 4;
    p.slots = i / 4 % 2;
    p.in_place = i / 8 % 2;
    p.seed = mlkt_u64(&rng);
    p.parts = parts_of((uint64_t)i / 2);
    run_and_check(&p, oracle);
  }
  mlk_close(oracle);
}

static void weights(void) {
  mlk_context *oracle = mlkt_open(MLK_ISA_REFERENCE, 1);
  int i;
  for (i = 0; oracle && i < (mlkt_opt.quick ? 3 : 12); i++) {
    problem p = problem_new(1 + i % 4, 6, sizes_few, 5);
    p.weighted = 1;
    p.shots = i % 3;
    p.wire = wires[i % 3];
    p.steps = 5;
    p.seed = (uint64_t)i;
    p.parts = parts_of((uint64_t)i);
    run_and_check(&p, oracle);
  }
  mlk_close(oracle);
}

static void nonfinite(void) {
  mlk_context *oracle = mlkt_open(MLK_ISA_REFERENCE, 1);
  int i;
  for (i = 0; oracle && i < (mlkt_opt.quick ? 6 : 36) && !mlkt_hopeless(); i++) {
    problem p = problem_new(1 + i % 4, 7, sizes_few, 5);
    p.poisoned = 1;
    p.skip_nonfinite = i % 6 != 5; /* else NaN and infinity are gradients like others */
    p.weighted = i % 5 == 4;
    p.shots = 1 + i % 2;
    p.wire = wires[i / 2 % 3];
    p.order = (order_kind)(i % ORDERS);
    p.slots = i / 4 % 2;
    p.in_place = i / 3 % 2;
    p.steps = 6;
    p.seed = (uint64_t)i + 1000;
    p.parts = parts_of((uint64_t)i / 2);
    run_and_check(&p, oracle);
  }
  mlk_close(oracle);
}

/* Buckets large enough for several tasks: OpenMP or the pool, and a thread for each task. */
static void threads(void) {
  mlk_context *oracle = mlkt_open(MLK_ISA_BEST, 1);
  const int64_t sizes[] = {120001, 4, 50000};
  int i;
  for (i = 0; oracle && i < (mlkt_opt.quick ? 2 : 6); i++) {
    problem p = problem_new(2 + i % 2, 4, sizes, 3);
    p.steps = 1;
    p.threads = 2 + i % 2;
    if (p.threads > mlkt_opt.threads_max) p.threads = mlkt_opt.threads_max;
    p.shots = 1 + i % 2;
    p.wire = wires[i % 3];
    run_and_check(&p, oracle);
  }
  mlk_close(oracle);
}

static void open_with_hook(void *arg) {
  member *m = (member *)arg;
  mlk_context_desc desc = mlkt_context_desc(MLK_ISA_BEST, 2);
  desc.parallel = m->rank % 2 ? mlkt_parallel_reversed(2) : mlkt_parallel_threads(2);
  if (must(m, mlk_open(&m->ctx, &desc), "mlk_open")) plain_script(m);
}

static void hooks(void) {
  mlk_context *oracle = mlkt_open(MLK_ISA_BEST, 1);
  const int64_t sizes[] = {100003, 64};
  problem p = problem_new(3, 3, sizes, 2);
  mlk_bucket buckets[BUCKETS];
  mlkt_buffer memory = common_memory(&p);
  const uint64_t runs = mlkt_parallel_runs();
  member *members;
  int r;
  p.shots = 2;
  members = members_new(&p, buckets, memory.data);
  for (r = 0; r < 3; r++) members[r].script = open_with_hook;
  note_problem(&p);
  if (oracle && run_members(members, 3)) {
    check_run(&p, oracle, members);
    CHECK_MSG(mlkt_parallel_runs() > runs, "no call went through the hooks");
  }
  members_free(&p, members);
  mlkt_buffer_free(&memory);
  mlk_close(oracle);
}

/* ---- cases: plans and memory ------------------------------------------------------------------------------------- */

static int is_zero(const void *memory, size_t bytes) {
  const unsigned char *p = (const unsigned char *)memory;
  size_t i;
  for (i = 0; i < bytes; i++)
    if (p[i]) return 0;
  return 1;
}

static void open_counted(void *arg) { /* a counting allocator; the workspace may not grow beyond the plan's */
  member *m = (member *)arg;
  mlkt_memory *heap = (mlkt_memory *)m->user;
  mlk_context_desc desc = mlkt_context_desc(MLK_ISA_BEST, m->p->threads);
  mlk_group_plan plan;
  uint64_t before;
  desc.allocator = mlkt_memory_hook(heap);
  m->desc.tensors = m->p->views ? VIEWS : 0;
  if (!must(m, mlk_open(&m->ctx, &desc), "mlk_open") ||
      !must(m, mlk_group_get_plan(m->ctx, &m->desc, &plan), "mlk_group_get_plan") ||
      !must(m, mlk_reserve(m->ctx, plan.workspace_bytes, MLK_FIXED), "mlk_reserve"))
    return;
  before = heap->live_bytes;
  if (!open_member(m)) return;
  if (heap->live_bytes - before != plan.private_bytes) must(m, MLK_ERR_SIZE, "plan.private_bytes");
  before = heap->calls;
  while (m->steps_done < m->p->steps && whole_step(m)) continue;
  if (heap->calls != before) must(m, MLK_ERR_MEMORY, "an allocation outside mlk_group_open");
}

/* What the plan says is what is used: the common memory lies between guard pages in every case of this file; here the
   private bytes are counted, and the workspace is fixed. All memory comes back. */
static void plans(void) {
  mlk_context *oracle = mlkt_open(MLK_ISA_REFERENCE, 1);
  int i, r;
  for (i = 0; oracle && i < (mlkt_opt.quick ? 4 : 24); i++) {
    problem p = problem_new(1 + i % 4, 1 + i % 4 + i % 3, NULL, 0);
    mlk_bucket buckets[BUCKETS];
    mlkt_memory heaps[RANKS];
    mlkt_buffer memory;
    member *members;
    memset(heaps, 0, sizeof heaps);
    choose_sizes(&p, i % 4);
    p.wire = wires[i % 3];
    p.shots = i / 2 % 3;
    p.views = i / 3 % 2;
    p.skip_nonfinite = i % 2;
    memory = common_memory(&p);
    members = members_new(&p, buckets, memory.data);
    for (r = 0; r < p.ranks; r++) {
      members[r].script = open_counted;
      members[r].user = &heaps[r];
    }
    note_problem(&p);
    if (run_members(members, p.ranks)) check_run(&p, oracle, members);
    members_free(&p, members);
    for (r = 0; r < p.ranks; r++) CHECK_MEMORY_EMPTY(&heaps[r]);
    mlkt_buffer_free(&memory);
  }
  mlk_close(oracle);
}

static void plan_sizes(void) {
  mlk_context *ctx = mlkt_open(MLK_ISA_BEST, 1);
  mlk_bucket buckets[BUCKETS];
  int i;
  for (i = 0; ctx && i < 24; i++) {
    problem p = problem_new(1 + i % 8, 8, NULL, 0);
    mlk_group_plan plan, again;
    mlk_group_desc desc;
    uint64_t least = 0;
    int64_t b;
    choose_sizes(&p, i % 4);
    p.wire = wires[i % 3];
    name_buckets(&p, buckets);
    desc = group_desc(&p, 0, buckets, NULL);
    note_problem(&p);
    memset(&plan, 0xFE, sizeof plan);
    CHECK_OK(ctx, mlk_group_get_plan(ctx, &desc, &plan));
    for (b = 0; b < p.bucket_count; b++) least += (uint64_t)p.elements[b] * wire_bytes(p.wire);
    least *= (uint64_t)(share_to(&p, 0) - share_from(&p, 0));
    CHECK_MSG(plan.part_bytes >= least && plan.part_bytes <= 3 * least + 8192 + 320 * (uint64_t)p.bucket_count * 8,
              "a part of %lu bytes for slots of %lu", (unsigned long)plan.part_bytes, (unsigned long)least);
    CHECK_EQ_I64(plan.bytes, (uint64_t)p.ranks * plan.part_bytes);
    CHECK(plan.private_bytes > 0);
    /* it looks at ranks, shares, buckets and wire only */
    desc.rank = p.ranks - 1;
    desc.timeout = 3;
    desc.on_loss = MLK_LOSS_SHRINKS;
    desc.path = "/nowhere/at/all";
    desc.shots = 2;
    memset(&again, 0xFE, sizeof again);
    CHECK_OK(ctx, mlk_group_get_plan(ctx, &desc, &again));
    CHECK_EQ_I64(again.bytes, plan.bytes);
    CHECK_EQ_I64(again.part_bytes, plan.part_bytes);
  }
  mlk_close(ctx);
}

/* The n-th allocation of mlk_group_open fails, for each n until it succeeds. */
static void failing_memory(void) {
  problem p = problem_new(1, 3, sizes_few, 5);
  mlk_bucket buckets[BUCKETS];
  mlkt_buffer memory = common_memory(&p);
  uint64_t n;
  name_buckets(&p, buckets);
  for (n = 1; n < 40; n++) {
    mlkt_memory heap;
    mlk_context_desc desc = mlkt_context_desc(MLK_ISA_BEST, 1);
    mlk_group_desc wanted = group_desc(&p, 0, buckets, memory.data);
    mlk_context *ctx = NULL;
    mlk_group *group = (mlk_group *)&heap;
    mlk_status status;
    memset(&heap, 0, sizeof heap);
    desc.allocator = mlkt_memory_hook(&heap);
    if (!CHECK_OK(NULL, mlk_open(&ctx, &desc))) break;
    heap.fail_at = heap.calls + n;
    mlkt_note("allocation %lu fails", (unsigned long)n);
    memset(memory.data, 0, memory.bytes);
    status = mlk_group_open(ctx, &group, &wanted);
    if (heap.failed) {
      CHECK_STATUS(ctx, status, MLK_ERR_MEMORY);
      CHECK(group == NULL);
      CHECK_MSG(mlk_last_error(ctx)[0] != 0, "no sentence");
      memset(memory.data, 0, memory.bytes);
      CHECK_OK(ctx, mlk_group_open(ctx, &group, &wanted)); /* the context stays usable */
    } else {
      CHECK_OK(ctx, status);
    }
    mlk_group_close(group);
    mlk_close(ctx);
    CHECK_MEMORY_EMPTY(&heap);
    if (!heap.failed) break;
  }
  CHECK_MSG(n > 1 && n < 40, "mlk_group_open makes %lu allocations", (unsigned long)(n - 1));
  mlkt_buffer_free(&memory);
}

/* ---- cases: refusals --------------------------------------------------------------------------------------------- */

typedef struct refused {
  mlk_context *ctx;
  mlk_group_desc desc; /* a good one, to be spoilt */
  mlkt_buffer memory;
} refused;

enum { IN_PLAN = 1, IN_SEGMENT = 2, IN_OPEN = 4, EVERYWHERE = 7 };

/* The calls named by where refuse desc with status and a sentence that holds word; nothing is touched. */
static void refuse(refused *r, const mlk_group_desc *desc, mlk_status status, const char *word, int where) {
  mlk_group_plan plan, plan_before;
  mlk_group_segment segment;
  mlk_group *group = (mlk_group *)r;
  mlkt_note("expecting a refusal that names %s", word);
  memset(&plan, 0xFE, sizeof plan);
  plan_before = plan;
  if (where & IN_PLAN) {
    CHECK_STATUS(r->ctx, mlk_group_get_plan(r->ctx, desc, &plan), status);
    CHECK(memcmp(&plan, &plan_before, sizeof plan) == 0);
    CHECK_MSG(strstr(mlk_last_error(r->ctx), word) != NULL, "\"%s\"", mlk_last_error(r->ctx));
  }
  if (where & IN_SEGMENT) {
    memset(&segment, 0xFE, sizeof segment);
    CHECK_STATUS(r->ctx, mlk_group_segment_open(r->ctx, desc, &segment), status);
    CHECK_MSG(strstr(mlk_last_error(r->ctx), word) != NULL, "\"%s\"", mlk_last_error(r->ctx));
  }
  if (where & IN_OPEN) {
    CHECK_STATUS(r->ctx, mlk_group_open(r->ctx, &group, desc), status);
    CHECK(group == NULL);
    CHECK_MSG(strstr(mlk_last_error(r->ctx), word) != NULL, "\"%s\"", mlk_last_error(r->ctx));
  }
  CHECK_MSG(is_zero(r->memory.data, r->memory.bytes), "the common memory was touched");
}

#define REFUSE(field, value, status, word, where)                                                                      \
  do {                                                                                                                 \
    mlk_group_desc spoilt = r.desc;                                                                                    \
    spoilt.field = value;                                                                                              \
    refuse(&r, &spoilt, status, word, where);                                                                          \
  } while (0)

static void refusals(void) {
  problem p = problem_new(2, 3, sizes_few, 5);
  mlk_bucket buckets[BUCKETS], spoilt_buckets[BUCKETS];
  mlk_transport transport;
  refused r;
  mlk_group *group = NULL;
  mlk_group_plan plan;
  mlk_group_segment segment;
  memset(&transport, 0, sizeof transport);
  name_buckets(&p, buckets);
  r.ctx = mlkt_open(MLK_ISA_BEST, 1);
  r.memory = common_memory(&p);
  p.timeout = 0.01; /* what is accepted by mistake fails soon */
  r.desc = group_desc(&p, 0, buckets, r.memory.data);
  if (!r.ctx) return;

  REFUSE(ranks, 0, MLK_ERR_ARGUMENT, "ranks", EVERYWHERE);
  REFUSE(ranks, -1, MLK_ERR_ARGUMENT, "ranks", EVERYWHERE);
  REFUSE(ranks, MLK_MAX_RANKS + 1, MLK_ERR_ARGUMENT, "ranks", EVERYWHERE);
  REFUSE(rank, -1, MLK_ERR_ARGUMENT, "rank", IN_OPEN);
  REFUSE(rank, 2, MLK_ERR_ARGUMENT, "rank", IN_OPEN);
  REFUSE(shares, 1, MLK_ERR_ARGUMENT, "shares", EVERYWHERE);
  REFUSE(shares, -1, MLK_ERR_ARGUMENT, "shares", EVERYWHERE);
  REFUSE(shares, MLK_MAX_SHARES + 1, MLK_ERR_ARGUMENT, "shares", EVERYWHERE);
  REFUSE(buckets, NULL, MLK_ERR_ARGUMENT, "buckets", EVERYWHERE);
  REFUSE(bucket_count, 0, MLK_ERR_ARGUMENT, "bucket_count", EVERYWHERE);
  REFUSE(bucket_count, -3, MLK_ERR_ARGUMENT, "bucket_count", EVERYWHERE);
  REFUSE(wire, MLK_I64, MLK_ERR_DTYPE, "wire", EVERYWHERE);
  REFUSE(wire, MLK_U8, MLK_ERR_DTYPE, "wire", EVERYWHERE);
  REFUSE(wire, (mlk_dtype)MLK_DTYPE_COUNT, MLK_ERR_DTYPE, "wire", EVERYWHERE);
  REFUSE(on_loss, (mlk_loss)MLK_LOSS_COUNT, MLK_ERR_ARGUMENT, "on_loss", IN_OPEN);
  REFUSE(min_ranks, -1, MLK_ERR_ARGUMENT, "min_ranks", IN_OPEN);
  REFUSE(min_ranks, 3, MLK_ERR_ARGUMENT, "min_ranks", IN_OPEN);
  REFUSE(timeout, -1.0, MLK_ERR_ARGUMENT, "timeout", IN_OPEN);
  REFUSE(timeout, (double)mlkt_float(0x7FC00000u), MLK_ERR_ARGUMENT, "timeout", IN_OPEN);
  REFUSE(timeout, (double)mlkt_float(0x7F800000u), MLK_ERR_ARGUMENT, "timeout", IN_OPEN);
  REFUSE(shots, 3, MLK_ERR_ARGUMENT, "shots", IN_OPEN);
  REFUSE(shots, -1, MLK_ERR_ARGUMENT, "shots", IN_OPEN);
  REFUSE(memory, (unsigned char *)r.memory.data + 4, MLK_ERR_ARGUMENT, "memory", IN_OPEN);
  REFUSE(memory, (unsigned char *)r.memory.data + 32, MLK_ERR_ARGUMENT, "memory", IN_OPEN);
  REFUSE(path, "/nowhere", MLK_ERR_ARGUMENT, "memory", IN_OPEN); /* two kinds of memory */
  REFUSE(transport, &transport, MLK_ERR_ARGUMENT, "memory", IN_OPEN);

  memcpy(spoilt_buckets, buckets, sizeof buckets);
  spoilt_buckets[3].elements = -1;
  REFUSE(buckets, spoilt_buckets, MLK_ERR_SHAPE, "elements", EVERYWHERE);
  spoilt_buckets[3].elements = INT64_C(1) << 60;
  REFUSE(buckets, spoilt_buckets, MLK_ERR_SIZE, "elements", EVERYWHERE);
  spoilt_buckets[3].elements = INT64_MAX;
  REFUSE(buckets, spoilt_buckets, MLK_ERR_SIZE, "elements", EVERYWHERE);
  spoilt_buckets[3].elements = spoilt_buckets[2].elements = (INT64_C(1) << 60) - 1; /* each fits, but not together */
  REFUSE(buckets, spoilt_buckets, MLK_ERR_SIZE, "", EVERYWHERE);
  REFUSE(bucket_count, INT64_MAX, MLK_ERR_ARGUMENT, "bucket_count", EVERYWHERE);

  mlkt_note("null arguments");
  CHECK_STATUS(r.ctx, mlk_group_get_plan(r.ctx, NULL, &plan), MLK_ERR_ARGUMENT);
  CHECK_STATUS(r.ctx, mlk_group_get_plan(r.ctx, &r.desc, NULL), MLK_ERR_ARGUMENT);
  CHECK_STATUS(NULL, mlk_group_get_plan(NULL, &r.desc, &plan), MLK_ERR_ARGUMENT);
  CHECK_STATUS(r.ctx, mlk_group_segment_open(r.ctx, NULL, &segment), MLK_ERR_ARGUMENT);
  CHECK_STATUS(r.ctx, mlk_group_segment_open(r.ctx, &r.desc, NULL), MLK_ERR_ARGUMENT);
  CHECK_STATUS(NULL, mlk_group_segment_open(NULL, &r.desc, &segment), MLK_ERR_ARGUMENT);
  CHECK_STATUS(r.ctx, mlk_group_open(r.ctx, NULL, &r.desc), MLK_ERR_ARGUMENT);
  CHECK_STATUS(NULL, mlk_group_open(NULL, &group, &r.desc), MLK_ERR_ARGUMENT);
  CHECK(group == NULL);
  CHECK_STATUS(r.ctx, mlk_group_open(r.ctx, &group, NULL), MLK_ERR_ARGUMENT);
  CHECK(group == NULL);
  CHECK_STATUS(NULL, mlk_group_begin(NULL, NULL, NULL), MLK_ERR_ARGUMENT);
  CHECK_STATUS(NULL, mlk_group_finish(NULL, NULL), MLK_ERR_ARGUMENT);
  CHECK_STATUS(NULL, mlk_group_publish(NULL, 0, 0, NULL, 0), MLK_ERR_ARGUMENT);
  CHECK_STATUS(NULL, mlk_group_average(NULL, 0, NULL, 0), MLK_ERR_ARGUMENT);
  CHECK_STATUS(NULL, mlk_group_sync(NULL, NULL, 0), MLK_ERR_ARGUMENT);
  CHECK(mlk_group_slot(NULL, 0, 0).data == NULL);
  mlk_group_close(NULL);
  mlk_group_segment_close(NULL);
  mlkt_buffer_free(&r.memory);
  mlk_close(r.ctx);
}

/* Calls in the wrong order, and tensors that do not fit, on a group of one: refused at once, and the step goes on. */
static void misuse(void) {
  const int64_t sizes[] = {8, 0, 20};
  problem p = problem_new(1, 2, sizes, 3);
  mlk_context *oracle = mlkt_open(MLK_ISA_REFERENCE, 1), *ctx = mlkt_open(MLK_ISA_BEST, 1);
  mlk_bucket buckets[BUCKETS];
  mlkt_buffer memory = common_memory(&p);
  mlk_group_desc desc;
  mlk_group *group = NULL;
  mlk_group_report report;
  float x[64], mean[64], want[64];
  float bad_weights[2] = {1.0f, -1.0f};
  mlk_tensor t[2], m;
  int64_t b, from = -5, to = -5;
  int s;
  name_buckets(&p, buckets);
  desc = group_desc(&p, 0, buckets, memory.data);
  if (!ctx || !oracle || !CHECK_OK(ctx, mlk_group_open(ctx, &group, &desc))) return;
  mlkt_rogue_f32(x, 64);
  mlkt_rogue_f32(mean, 64);

  mlkt_note("before begin");
  t[0] = mlk_f32(x, 8);
  m = mlk_f32(mean, 8);
  CHECK_STATUS(ctx, mlk_group_publish(group, 0, 0, t, 1), MLK_ERR_ARGUMENT);
  CHECK_STATUS(ctx, mlk_group_average(group, 0, &m, 1), MLK_ERR_ARGUMENT);
  CHECK_STATUS(ctx, mlk_group_finish(group, NULL), MLK_ERR_ARGUMENT);
  CHECK_STATUS(ctx, mlk_group_begin(group, bad_weights, NULL), MLK_ERR_ARGUMENT);
  bad_weights[1] = mlkt_float(0x7FC00000u);
  CHECK_STATUS(ctx, mlk_group_begin(group, bad_weights, NULL), MLK_ERR_ARGUMENT);
  bad_weights[1] = mlkt_float(0x7F800000u);
  CHECK_STATUS(ctx, mlk_group_begin(group, bad_weights, NULL), MLK_ERR_ARGUMENT);

  mlkt_note("within a step");
  CHECK_OK(ctx, mlk_group_begin(group, NULL, &report));
  CHECK_EQ_I64(report.step, 1);
  CHECK_STATUS(ctx, mlk_group_begin(group, NULL, NULL), MLK_ERR_ARGUMENT);
  CHECK_STATUS(ctx, mlk_group_finish(group, NULL), MLK_ERR_ARGUMENT);      /* not everything is published */
  CHECK_STATUS(ctx, mlk_group_average(group, 0, &m, 1), MLK_ERR_ARGUMENT); /* nobody would ever publish it */
  CHECK_STATUS(ctx, mlk_group_publish(group, 2, 0, t, 1), MLK_ERR_ARGUMENT);
  CHECK_STATUS(ctx, mlk_group_publish(group, -1, 0, t, 1), MLK_ERR_ARGUMENT);
  CHECK_STATUS(ctx, mlk_group_publish(group, 0, 3, t, 1), MLK_ERR_ARGUMENT);
  CHECK_STATUS(ctx, mlk_group_publish(group, 0, -1, t, 1), MLK_ERR_ARGUMENT);
  t[0] = mlk_f32(x, 7);
  CHECK_STATUS(ctx, mlk_group_publish(group, 0, 0, t, 1), MLK_ERR_SHAPE);
  t[0] = mlk_f32(x, 9);
  CHECK_STATUS(ctx, mlk_group_publish(group, 0, 0, t, 1), MLK_ERR_SHAPE);
  t[0] = mlk_f32(x, 4);
  t[1] = mlk_f32(x + 4, 3);
  CHECK_STATUS(ctx, mlk_group_publish(group, 0, 0, t, 2), MLK_ERR_SHAPE);
  t[0] = mlk_f32(x, 8);
  t[0].dtype = MLK_I64;
  CHECK_STATUS(ctx, mlk_group_publish(group, 0, 0, t, 1), MLK_ERR_DTYPE);
  t[0].dtype = MLK_F32;
  CHECK_STATUS(ctx, mlk_group_publish(group, 0, 0, NULL, 1), MLK_ERR_ARGUMENT);
  CHECK_STATUS(ctx, mlk_group_publish(group, 0, 0, t, -1), MLK_ERR_ARGUMENT);
  CHECK(mlk_group_slot(group, 2, 0).data == NULL);
  CHECK(mlk_group_slot(group, -1, 0).data == NULL);
  CHECK(mlk_group_slot(group, 0, 3).data == NULL);
  CHECK(mlk_group_slot(group, 0, -1).data == NULL);

  for (s = 0; s < 2; s++)
    for (b = 0; b < 3; b++) {
      gradients(&p, 1, s, b, x);
      t[0] = mlk_f32(x, sizes[b]);
      CHECK_OK(ctx, mlk_group_publish(group, s, b, t, 1));
      CHECK_STATUS(ctx, mlk_group_publish(group, s, b, t, 1), MLK_ERR_ARGUMENT); /* once a step */
    }
  m = mlk_f32(mean, 9);
  CHECK_STATUS(ctx, mlk_group_average(group, 0, &m, 1), MLK_ERR_SHAPE);
  m = mlk_f32(mean, 8);
  m.dtype = MLK_BF16;
  CHECK_STATUS(ctx, mlk_group_average(group, 0, &m, 1), MLK_ERR_DTYPE);
  m.dtype = MLK_F32;
  CHECK_STATUS(ctx, mlk_group_average(group, 3, &m, 1), MLK_ERR_ARGUMENT);
  CHECK_STATUS(ctx, mlk_group_average(group, 0, NULL, 1), MLK_ERR_ARGUMENT);
  m.stride[0] = 0;
  m.shape[0] = 8;
  CHECK(mlkt_is_rogue_f32(mean, 64));
  CHECK_OK(ctx, mlk_group_average(group, 0, &m, 1));
  CHECK_OK(ctx, mlk_group_finish(group, &report));
  if (mean_of(&p, oracle, 1, 0, 3, want)) CHECK_BITS_F32_N(mean, want, 8);
  CHECK_STATUS(ctx, mlk_group_finish(group, NULL), MLK_ERR_ARGUMENT);

  mlkt_note("ranges");
  CHECK_OK(ctx, mlk_group_range(group, 2, &from, &to));
  CHECK_EQ_I64(from, 0);
  CHECK_EQ_I64(to, 20);
  CHECK_STATUS(ctx, mlk_group_range(group, 3, &from, &to), MLK_ERR_ARGUMENT);
  CHECK_STATUS(ctx, mlk_group_range(group, 0, NULL, &to), MLK_ERR_ARGUMENT);
  CHECK_STATUS(ctx, mlk_group_range(group, 0, &from, NULL), MLK_ERR_ARGUMENT);

  mlkt_note("a step without averages, and a close within a step");
  CHECK_OK(ctx, mlk_group_begin(group, NULL, &report));
  CHECK_EQ_I64(report.step, 2);
  for (s = 0; s < 2; s++)
    for (b = 0; b < 3; b++) CHECK_OK(ctx, mlk_group_publish(group, s, b, NULL, 0));
  CHECK_OK(ctx, mlk_group_finish(group, NULL));
  CHECK_OK(ctx, mlk_group_begin(group, NULL, NULL));
  mlk_group_close(group);
  CHECK_MSG(mlkt_is_rogue_f32(mean + 8, 56), "an average wrote beyond its tensor");
  mlkt_buffer_free(&memory);
  mlk_close(ctx);
  mlk_close(oracle);
}

/* ---- cases: somebody is late, leaves, comes back ----------------------------------------------------------------- */

#if MLKT_POSIX

/* A counter that threads wait on. */
typedef struct gate {
  pthread_mutex_t lock;
  pthread_cond_t changed;
  int value;
} gate;

static void gate_init(gate *g) {
  pthread_mutex_init(&g->lock, NULL);
  pthread_cond_init(&g->changed, NULL);
  g->value = 0;
}

static void gate_free(gate *g) {
  pthread_cond_destroy(&g->changed);
  pthread_mutex_destroy(&g->lock);
}

static void gate_add(gate *g) {
  pthread_mutex_lock(&g->lock);
  g->value++;
  pthread_cond_broadcast(&g->changed);
  pthread_mutex_unlock(&g->lock);
}

static void gate_wait(gate *g, int value) {
  pthread_mutex_lock(&g->lock);
  while (g->value < value) pthread_cond_wait(&g->changed, &g->lock);
  pthread_mutex_unlock(&g->lock);
}

typedef enum late_where {
  LATE_BEFORE_BEGIN,
  LATE_AFTER_BEGIN,
  LATE_HALF_PUBLISHED,
  LATE_PUBLISHED, /* the step counts with it; the next one does not */
  LATE_FINISHED,
  LATE_COUNT
} late_where;

enum { LATE_STEP = 2, LATE_RANK = 2, LATE_RANKS = 3, ATTEMPTS = 24, PARAMS = 5 };

typedef struct attempt { /* a step as one rank saw it */
  mlk_status status;     /* of mlk_group_begin where that failed, else of mlk_group_finish */
  mlk_group_report begun, report;
  float *means[2];
} attempt;

/* Three ranks, of which the last is late in step 2, or leaves: it waits until the others have ended the step that it
   misses, goes on, learns that it was left out, and opens the group again. */
typedef struct late_run {
  problem p;
  late_where where;
  int closes;
  gate missed; /* the others add 1 each when they have ended the step that the late one misses */
  gate back;   /* the late one adds 1 when it has opened the group again */
  attempt attempts[LATE_RANKS][ATTEMPTS];
  int attempted[LATE_RANKS];
  float params[LATE_RANKS][PARAMS]; /* moved by every step, brought up to date by mlk_group_sync */
  int synced[LATE_RANKS];
  double longest[LATE_RANKS]; /* seconds of the longest call */
  mlk_status learned;         /* what the late one heard first */
} late_run;

static const int64_t late_sizes[] = {48, PARAMS};

static int64_t missed_step(const late_run *run) { return run->where >= LATE_PUBLISHED ? LATE_STEP + 1 : LATE_STEP; }

static void be_late(member *m, late_run *run, late_where here, int64_t step) {
  if (m->rank != LATE_RANK || here != run->where || step != LATE_STEP || m->was_late) return;
  m->was_late = 1;
  if (run->closes) {
    mlk_group_close(m->group);
    m->group = NULL;
  }
  gate_wait(&run->missed, 2);
}

static mlk_status clocked(member *m, late_run *run, double since, mlk_status status) {
  const double took = mlkt_seconds() - since;
  if (took > run->longest[m->rank]) run->longest[m->rank] = took;
  return status;
}

static mlk_status late_publish(member *m, late_run *run, int64_t step, int64_t b) {
  float grads[64];
  mlk_status status = m->group ? MLK_OK : MLK_ERR_REPLICA;
  int s;
  for (s = share_from(&run->p, m->rank); status == MLK_OK && s < share_to(&run->p, m->rank); s++) {
    const mlk_tensor t = mlk_f32(grads, late_sizes[b]);
    const double at = mlkt_seconds();
    gradients(&run->p, step, s, b, grads);
    status = clocked(m, run, at, mlk_group_publish(m->group, s, b, &t, 1));
  }
  return status;
}

static mlk_status late_averages(member *m, late_run *run, attempt *a) {
  mlk_tensor means[2];
  mlk_status status = m->group ? MLK_OK : MLK_ERR_REPLICA;
  double at;
  int64_t b;
  for (b = 0; status == MLK_OK && b < 2; b++) {
    a->means[b] = floats((size_t)late_sizes[b]);
    means[b] = mlk_f32(a->means[b], late_sizes[b]);
    at = mlkt_seconds();
    status = clocked(m, run, at, mlk_group_average(m->group, b, &means[b], 1));
  }
  at = mlkt_seconds();
  return status != MLK_OK ? status : clocked(m, run, at, mlk_group_finish(m->group, &a->report));
}

/* One step, up to the call that says it is over. */
static mlk_status late_attempt(member *m, late_run *run, attempt *a) {
  mlk_tensor t = mlk_f32(run->params[m->rank], PARAMS);
  double at = mlkt_seconds();
  mlk_status status = clocked(m, run, at, mlk_group_begin(m->group, NULL, &a->begun));
  if (status != MLK_OK) return status;
  at = mlkt_seconds();
  if (a->begun.joined) status = clocked(m, run, at, mlk_group_sync(m->group, &t, 1));
  if (status != MLK_OK) return status;
  if (a->begun.joined >> m->rank & 1 && a->begun.step > 1) run->synced[m->rank]++;
  be_late(m, run, LATE_AFTER_BEGIN, a->begun.step);
  status = late_publish(m, run, a->begun.step, 0);
  if (status != MLK_OK) return status;
  be_late(m, run, LATE_HALF_PUBLISHED, a->begun.step);
  status = late_publish(m, run, a->begun.step, 1);
  if (status != MLK_OK) return status;
  be_late(m, run, LATE_PUBLISHED, a->begun.step);
  return late_averages(m, run, a);
}

static int come_back(member *m, late_run *run) {
  const double at = mlkt_seconds();
  mlk_group_close(m->group);
  m->group = NULL;
  if (!must(m, clocked(m, run, at, mlk_group_open(m->ctx, &m->group, &m->desc)), "mlk_group_open again")) return 0;
  gate_add(&run->back);
  return 1;
}

/* The first step with all of them after one without; the failing group's late one may never hear of a failure. */
static int all_are_back(const member *m, const late_run *run, const attempt *a, int told) {
  if (run->p.on_loss == MLK_LOSS_SHRINKS) return a->report.step > 1 && a->report.joined != 0;
  return (m->rank == LATE_RANK ? m->was_late : told) && a->report.step >= missed_step(run);
}

static void late_steps(member *m, late_run *run) {
  const int late = m->rank == LATE_RANK;
  int64_t last = 0, end = INT64_MAX; /* the last step that counted; where to stop: two steps after all are back */
  int told = 0, waited = 0, failed = 0, i;
  for (i = 0; i < ATTEMPTS && last < end; i++) {
    attempt *a = &run->attempts[m->rank][i];
    run->attempted[m->rank] = i + 1;
    be_late(m, run, LATE_BEFORE_BEGIN, last + 1);
    a->status = m->group ? late_attempt(m, run, a) : MLK_ERR_REPLICA;
    if (a->status == MLK_OK) {
      int k;
      for (k = 0; k < PARAMS; k++)
        run->params[m->rank][k] = run->params[m->rank][k] * 0.5f + a->means[1][k] + (float)a->report.members;
      last = a->report.step;
      if (end == INT64_MAX && all_are_back(m, run, a, told)) end = last + 2;
      be_late(m, run, LATE_FINISHED, last);
    } else if (late && !failed) {
      failed = 1;
      run->learned = a->status;
      if (!come_back(m, run)) return;
    } else {
      failed = 1;
    }
    if (late) continue;
    if (!told && (failed || last >= missed_step(run))) {
      told = 1;
      gate_add(&run->missed);
    } else if (told && !waited && run->p.on_loss == MLK_LOSS_SHRINKS) { /* one more step without it, then it is back */
      waited = 1;
      gate_wait(&run->back, 1);
    }
  }
}

static void late_script(void *arg) {
  member *m = (member *)arg;
  late_run *run = (late_run *)m->user;
  if (open_member(m)) late_steps(m, run);
  gate_add(&run->missed); /* nobody waits for one who has given up */
  gate_add(&run->missed);
  gate_add(&run->back);
}

static int same_report(const mlk_group_report *a, const mlk_group_report *b) {
  return a->step == b->step && a->members == b->members && a->lost == b->lost && a->joined == b->joined &&
         a->shares == b->shares && a->nonfinite == b->nonfinite &&
         memcmp(&a->weight, &b->weight, sizeof a->weight) == 0;
}

/* Whatever happened: all who had a step count agree on who was in it, and their means are those of the report. */
static void check_agreement(late_run *run, mlk_context *oracle) {
  float want[64];
  int r, i, q, j;
  int64_t b;
  for (r = 0; r < LATE_RANKS; r++)
    for (i = 0; i < run->attempted[r]; i++) {
      const attempt *a = &run->attempts[r][i];
      if (a->status != MLK_OK) continue;
      CHECK_MSG(a->report.members >> r & 1, "rank %d was told that a step counts that it is not in", r);
      for (q = 0; q < LATE_RANKS; q++)
        for (j = 0; j < run->attempted[q]; j++) {
          const mlk_group_report *other = &run->attempts[q][j].report;
          if (run->attempts[q][j].status == MLK_OK && other->step == a->report.step)
            CHECK_MSG(same_report(other, &a->report), "ranks %d and %d were told different things", r, q);
        }
      for (b = 0; b < 2; b++)
        if (mean_of(&run->p, oracle, a->report.step, b, a->report.shares, want))
          CHECK_BITS_F32_N(a->means[b], want, late_sizes[b]);
    }
}

/* 1 when only the late one was lost, and only where it had to be. */
static int only_the_late_one(const late_run *run) {
  int r, i;
  for (r = 0; r < LATE_RANK; r++)
    for (i = 0; i < run->attempted[r]; i++) {
      const attempt *a = &run->attempts[r][i];
      if (run->p.on_loss == MLK_LOSS_SHRINKS && (a->status != MLK_OK || (a->report.members & 3u) != 3u)) return 0;
      if (a->status == MLK_OK && a->report.step < missed_step(run) && a->report.members != 7u) return 0;
      if (a->status != MLK_OK && i + 1 < missed_step(run)) return 0;
    }
  return run->attempted[LATE_RANK] <= ATTEMPTS - 4;
}

static void check_late(const late_run *run) {
  int r, i, missed = 0, returned = 0;
  if (run->learned != MLK_OK || run->p.on_loss == MLK_LOSS_SHRINKS) CHECK_EQ_I64(run->learned, MLK_ERR_REPLICA);
  for (i = 0; i < run->attempted[0]; i++) {
    const attempt *a = &run->attempts[0][i];
    if (a->status != MLK_OK) {
      missed++;
    } else if (a->report.members == 3u) {
      CHECK_EQ_I64(a->report.lost, a->report.step == missed_step(run) ? 4 : 0);
      missed++;
    } else {
      CHECK_EQ_I64(a->report.members, 7);
      if (missed) {
        if (!returned && run->p.on_loss == MLK_LOSS_SHRINKS) CHECK_EQ_I64(a->report.joined, 4);
        returned++;
      }
    }
  }
  CHECK_MSG(missed >= 1, "no step went without the late one");
  CHECK_MSG(returned == 3, "%d steps with all ranks after the return, expected 3", returned);
  if (run->p.on_loss == MLK_LOSS_SHRINKS) CHECK_EQ_I64(run->synced[LATE_RANK], 1);
  for (r = 1; r < LATE_RANKS; r++) CHECK_BITS_F32_N(run->params[r], run->params[0], PARAMS);
}

typedef struct late_scene { /* a run, and what it runs on */
  late_run *run;
  mlk_bucket buckets[2];
  mlkt_buffer memory;
  member *members;
} late_scene;

static void late_start(late_scene *scene, late_where where, mlk_loss on_loss, int closes, double timeout) {
  late_run *run = (late_run *)calloc(1, sizeof *run);
  int r;
  if (!run) exit(2);
  scene->run = run;
  run->p = problem_new(LATE_RANKS, 4, late_sizes, 2);
  run->p.on_loss = on_loss;
  run->p.shots = 1 + ((int)where + closes) % 2;
  run->p.timeout = timeout;
  run->where = where;
  run->closes = closes;
  gate_init(&run->missed);
  gate_init(&run->back);
  scene->memory = common_memory(&run->p);
  scene->members = members_new(&run->p, scene->buckets, scene->memory.data);
  for (r = 0; r < LATE_RANKS; r++) {
    scene->members[r].script = late_script;
    scene->members[r].user = run;
  }
  start_members(scene->members, LATE_RANKS);
}

/* 1: more than the late one was lost, which says nothing but that this machine was busy. */
static int late_end(late_scene *scene, mlk_context *oracle) {
  late_run *run = scene->run;
  int r, i, again;
  join_members(scene->members, LATE_RANKS);
  mlkt_note("%s at %d, loss setting %d, shots %d, timeout %.2f", run->closes ? "leaves" : "late", (int)run->where,
            (int)run->p.on_loss, run->p.shots, run->p.timeout);
  check_agreement(run, oracle);
  again = !only_the_late_one(run);
  for (r = 0; !again && r < LATE_RANKS; r++) {
    CHECK_MSG(scene->members[r].status == MLK_OK, "%s", scene->members[r].text);
    CHECK_MSG(run->longest[r] < 8 * run->p.timeout + 5, "a call took %.2f s", run->longest[r]);
  }
  if (!again) check_late(run);
  for (r = 0; r < LATE_RANKS; r++)
    for (i = 0; i < ATTEMPTS; i++) {
      free(run->attempts[r][i].means[0]);
      free(run->attempts[r][i].means[1]);
    }
  members_free(&run->p, scene->members);
  mlkt_buffer_free(&scene->memory);
  gate_free(&run->missed);
  gate_free(&run->back);
  free(run);
  return again;
}

/* They mostly wait: all at once, and those again, alone, for which the machine was too busy. */
static void late_cases(mlk_loss on_loss) {
  mlk_context *oracle = mlkt_open(MLK_ISA_REFERENCE, 1);
  late_scene *scenes = (late_scene *)calloc(2 * LATE_COUNT, sizeof *scenes);
  int at, again;
  double timeout;
  if (!scenes) exit(2);
  for (at = 0; oracle && at < 2 * LATE_COUNT; at++)
    if (!mlkt_opt.quick || (at + (int)mlkt_opt.seed) % 3 == 0)
      late_start(&scenes[at], (late_where)(at / 2), on_loss, at % 2, 0.2);
  for (at = 0; at < 2 * LATE_COUNT; at++) {
    if (!scenes[at].run) continue;
    again = late_end(&scenes[at], oracle);
    for (timeout = 0.4; again && timeout < 7; timeout *= 2) {
      late_start(&scenes[at], (late_where)(at / 2), on_loss, at % 2, timeout);
      again = late_end(&scenes[at], oracle);
    }
    CHECK_MSG(!again, "more than the late rank was lost, whatever the timeout");
  }
  free(scenes);
  mlk_close(oracle);
}

static void late_shrinks(void) { late_cases(MLK_LOSS_SHRINKS); }
static void late_fails(void) { late_cases(MLK_LOSS_FAILS); }

/* All others are missing: nobody waits much longer than the timeout, and what a rank alone may do is as set. */
static void alone(void) {
  static const struct {
    mlk_loss on_loss;
    int min_ranks;
    mlk_status status;
  } cases[] = {{MLK_LOSS_FAILS, 0, MLK_ERR_REPLICA},
               {MLK_LOSS_SHRINKS, 0, MLK_OK},
               {MLK_LOSS_SHRINKS, 1, MLK_OK},
               {MLK_LOSS_SHRINKS, 2, MLK_ERR_REPLICA},
               {MLK_LOSS_SHRINKS, 3, MLK_ERR_REPLICA}};
  mlk_context *oracle = mlkt_open(MLK_ISA_REFERENCE, 1);
  int i;
  for (i = 0; oracle && i < 5; i++) {
    problem p = problem_new(3, 5, late_sizes, 2);
    mlk_bucket buckets[BUCKETS];
    mlkt_buffer memory = common_memory(&p);
    member *m = (member *)malloc(sizeof *m);
    const double before = mlkt_seconds();
    double took;
    mlk_status status;
    if (!m) exit(2);
    p.on_loss = cases[i].on_loss;
    p.timeout = 0.06;
    name_buckets(&p, buckets);
    member_init(m, &p, i % 3, buckets, memory.data);
    m->desc.min_ranks = cases[i].min_ranks;
    mlkt_note("on_loss %d, min_ranks %d", (int)cases[i].on_loss, cases[i].min_ranks);
    if (open_context(m)) {
      status = mlk_group_open(m->ctx, &m->group, &m->desc);
      took = mlkt_seconds() - before;
      CHECK_STATUS(m->ctx, status, cases[i].status);
      CHECK((m->group != NULL) == (status == MLK_OK));
      CHECK_MSG(took >= 0.9 * p.timeout && took < 5, "mlk_group_open took %.3f s", took);
      if (status == MLK_OK && CHECK_MSG(whole_step(m), "%s", m->text)) {
        float want[64];
        const uint32_t shares = all_bits(share_to(&p, m->rank)) & ~all_bits(share_from(&p, m->rank));
        CHECK_EQ_I64(m->finished[0].members, 1 << m->rank);
        CHECK_EQ_I64(m->finished[0].shares, shares);
        if (mean_of(&p, oracle, 1, 0, shares, want)) CHECK_BITS_F32_N(m->means[0][0], want, late_sizes[0]);
      }
    }
    member_free(m);
    free(m);
    mlkt_buffer_free(&memory);
  }
  mlk_close(oracle);
}

/* The last rank to come closes the group as soon as mlk_group_open gives it, while the others are asleep in theirs: all
   had come, so they go on. Then they do without it, or with another in its place, or their first step fails. */
typedef enum leave_kind { LEAVE_SHRINKS, LEAVE_REPLACED, LEAVE_FAILS, LEAVE_KINDS } leave_kind;

typedef struct leave_run {
  problem p;
  leave_kind kind;
  int leaver;
  gate opened; /* the others add 1 each when mlk_group_open has returned */
  gate left;
  int again; /* somebody was too late to open the group at all */
} leave_run;

static void leave_script(void *arg) {
  const struct timespec until_others_sleep = {0, 20000000};
  member *m = (member *)arg;
  leave_run *run = (leave_run *)m->user;
  int opened;
  if (m->rank == run->leaver) nanosleep(&until_others_sleep, NULL);
  opened = open_member(m);
  if (m->rank != run->leaver) {
    gate_add(&run->opened);
    gate_wait(&run->left, 1);
    if (opened) (void)whole_step(m);
    return;
  }
  mlk_group_close(m->group);
  m->group = NULL;
  gate_add(&run->left);
  gate_wait(&run->opened, LATE_RANKS - 1);
  if (opened && run->kind == LEAVE_REPLACED && open_member(m)) (void)whole_step(m);
}

static void check_left(const leave_run *run, mlk_context *oracle, const member *members) {
  const uint32_t all = all_bits(LATE_RANKS), others = all & ~(UINT32_C(1) << run->leaver);
  const uint32_t in = run->kind == LEAVE_FAILS ? 0 : run->kind == LEAVE_REPLACED ? all : others;
  char sentence[64];
  int r;
  snprintf(sentence, sizeof sentence, "rank %d has left the group", run->leaver);
  for (r = 0; r < LATE_RANKS; r++) {
    const member *m = &members[r];
    float want[64];
    CHECK_EQ_I64(m->steps_done, in >> r & 1);
    if (run->kind == LEAVE_FAILS && r != run->leaver)
      CHECK_MSG(strstr(m->text, sentence) != NULL, "rank %d: %s", r, m->text);
    if (run->kind != LEAVE_FAILS) CHECK_MSG(m->status == MLK_OK, "%s", m->text);
    if (!m->steps_done) continue;
    CHECK_EQ_I64(m->finished[0].members, in);
    if (mean_of(&run->p, oracle, 1, 0, m->finished[0].shares, want))
      CHECK_BITS_F32_N(m->means[0][0], want, late_sizes[0]);
  }
}

static void leave_and_check(leave_run *run, mlk_context *oracle, double timeout) {
  mlk_bucket buckets[2];
  mlkt_buffer memory;
  member *members;
  int r, opened = 0;
  run->p = problem_new(LATE_RANKS, 4, late_sizes, 2);
  run->p.on_loss = run->kind == LEAVE_SHRINKS ? MLK_LOSS_SHRINKS : MLK_LOSS_FAILS;
  run->p.timeout = timeout;
  memory = common_memory(&run->p);
  members = members_new(&run->p, buckets, memory.data);
  gate_init(&run->opened);
  gate_init(&run->left);
  for (r = 0; r < LATE_RANKS; r++) {
    members[r].desc.min_ranks = 2; /* one who waits to the end has an error to show for it */
    members[r].script = leave_script;
    members[r].user = run;
  }
  mlkt_note("rank %d leaves, kind %d, timeout %.2f", run->leaver, (int)run->kind, timeout);
  run_members(members, LATE_RANKS);
  for (r = 0; r < LATE_RANKS; r++) opened += r == run->leaver || members[r].group;
  if (opened < LATE_RANKS && run->kind == LEAVE_FAILS && timeout < 7)
    run->again = 1; /* a busy machine */
  else
    check_left(run, oracle, members);
  gate_free(&run->opened);
  gate_free(&run->left);
  members_free(&run->p, members);
  mlkt_buffer_free(&memory);
}

static void leaves_at_once(void) {
  mlk_context *oracle = mlkt_open(MLK_ISA_REFERENCE, 1);
  int turn;
  for (turn = 0; oracle && turn < LATE_RANKS * LEAVE_KINDS; turn++) {
    leave_run run;
    double timeout;
    memset(&run, 0, sizeof run);
    run.kind = (leave_kind)(turn % LEAVE_KINDS), run.leaver = turn / LEAVE_KINDS;
    timeout = run.kind == LEAVE_FAILS ? 0.3 : 20; /* they wait that long for another in its place */
    do run.again = 0, leave_and_check(&run, oracle, timeout), timeout *= 2;
    while (run.again);
  }
  mlk_close(oracle);
}

/* Who is missed is named, and what became of it: it has never come, or has waited in vain and gone. */
static void missed(void) {
  problem p = problem_new(2, 3, late_sizes, 2);
  mlk_context *ctx = mlkt_open(MLK_ISA_BEST, 1);
  mlk_bucket buckets[2];
  mlkt_buffer memory = common_memory(&p);
  mlk_group *group = NULL;
  mlk_group_desc desc;
  p.timeout = 0.03;
  name_buckets(&p, buckets);
  desc = group_desc(&p, 0, buckets, memory.data);
  if (!ctx) return;
  CHECK_STATUS(ctx, mlk_group_open(ctx, &group, &desc), MLK_ERR_REPLICA);
  CHECK_MSG(strstr(mlk_last_error(ctx), "rank 1 has not come") != NULL, "%s", mlk_last_error(ctx));
  desc.rank = 1;
  CHECK_STATUS(ctx, mlk_group_open(ctx, &group, &desc), MLK_ERR_REPLICA);
  CHECK_MSG(strstr(mlk_last_error(ctx), "rank 0 has left the group") != NULL, "%s", mlk_last_error(ctx));
  mlkt_buffer_free(&memory);
  mlk_close(ctx);
}

/* Rank 1 describes another group than rank 0: it is refused, whichever comes first, and rank 0 only misses it. */
static void spoil(mlk_group_desc *desc, mlk_bucket *buckets, int way) {
  const mlk_bucket first = buckets[0];
  switch (way) {
  case 0: desc->ranks = 3, desc->shares = 4; break;
  case 1: desc->shares = 5; break;
  case 2: desc->wire = MLK_BF16; break;
  case 3: desc->bucket_count--; break;
  case 4: buckets[0].elements++; break;
  case 5: buckets[0] = buckets[2], buckets[2] = first; break; /* another order */
  case 6: buckets[0].name = "embeddinG"; break;
  case 7: buckets[1].name = "one where rank 0 has none"; break;
  case 8: desc->on_loss = desc->on_loss == MLK_LOSS_FAILS ? MLK_LOSS_SHRINKS : MLK_LOSS_FAILS; break;
  case 9: desc->skip_nonfinite = 1; break;
  case 10: desc->shots = 1; break;
  default: desc->min_ranks = 2;
  }
}

static void other_layouts(void) {
  const int64_t sizes[] = {24, 7, 65};
  int way, second;
  for (way = 0; way < 12; way++)
    for (second = 0; second < 2; second++) { /* who comes second */
      problem p = problem_new(2, 4, sizes, 3), roomy = problem_new(3, 5, late_sizes, 2);
      mlk_bucket buckets[BUCKETS], others[BUCKETS];
      mlkt_buffer memory = common_memory(&p);
      const size_t bytes = memory.bytes + (size_t)plan_of(&roomy).bytes + 65536;
      mlk_group_desc desc[2];
      mlk_group *groups[2] = {NULL, NULL};
      mlk_context *ctx[2];
      mlk_status status;
      int r;
      mlkt_buffer_place(&memory, bytes / 64 * 64, MLKT_HEAD); /* for whatever layout the second one believes in */
      memset(memory.data, 0, memory.bytes);
      p.on_loss = way == 11 || second ? MLK_LOSS_SHRINKS : MLK_LOSS_FAILS;
      p.timeout = 0.02;
      p.shots = 2;
      name_buckets(&p, buckets);
      name_buckets(&p, others);
      for (r = 0; r < 2; r++) {
        desc[r] = group_desc(&p, r, r ? others : buckets, memory.data);
        ctx[r] = mlkt_open(MLK_ISA_BEST, 1);
      }
      spoil(&desc[1], others, way);
      mlkt_note("layout %d, rank %d second", way, second);
      if (!ctx[0] || !ctx[1]) return;
      status = mlk_group_open(ctx[1 - second], &groups[1 - second], &desc[1 - second]);
      CHECK_MSG(status == MLK_OK || status == MLK_ERR_REPLICA, "the first gives %s", mlk_status_name(status));
      status = mlk_group_open(ctx[second], &groups[second], &desc[second]);
      if (groups[1 - second]) { /* somebody is there */
        CHECK_STATUS(ctx[second], status, MLK_ERR_ARGUMENT);
        CHECK_MSG(mlk_last_error(ctx[second])[0] != 0, "no sentence");
        CHECK(groups[second] == NULL);
      } else {
        CHECK_MSG(status != MLK_OK || desc[second].on_loss == MLK_LOSS_SHRINKS, "a group of one that needs all");
      }
      for (r = 0; r < 2; r++) {
        mlk_group_close(groups[r]);
        mlk_close(ctx[r]);
      }
      mlkt_buffer_free(&memory);
    }
}

/* ---- cases: ZeRO-1 ----------------------------------------------------------------------------------------------- */

enum { ZERO_BUCKETS = 7, ZERO_STEPS = 4, ZERO_MOST = 1000 };

static const int64_t zero_sizes[ZERO_BUCKETS] = {0, 1, 15, 16, 17, 100, ZERO_MOST};

typedef struct zero_state {
  float param[ZERO_BUCKETS][ZERO_MOST], m[ZERO_BUCKETS][ZERO_MOST], v[ZERO_BUCKETS][ZERO_MOST]; /* m, v: the range */
  float grad[ZERO_BUCKETS][ZERO_MOST];
  int64_t from[ZERO_BUCKETS], to[ZERO_BUCKETS];
} zero_state;

static void zero_init(zero_state *z) {
  int64_t b, i;
  memset(z, 0, sizeof *z);
  for (b = 0; b < ZERO_BUCKETS; b++)
    for (i = 0; i < zero_sizes[b]; i++) z->param[b][i] = (float)(i % 37) * 0.125f - (float)b;
}

static mlk_status adamw(mlk_context *ctx, zero_state *z, int64_t b, int64_t from, int64_t to, int64_t step) {
  mlk_adamw_desc desc;
  memset(&desc, 0, sizeof desc);
  if (to == from) return MLK_OK;
  desc.param = mlk_f32(z->param[b] + from, to - from);
  desc.grad = mlk_f32(z->grad[b], to - from);
  desc.m = mlk_f32(z->m[b], to - from);
  desc.v = mlk_f32(z->v[b], to - from);
  desc.step = step;
  desc.lr = 0.01f;
  desc.weight_decay = 0.1f;
  return mlk_adamw(ctx, &desc);
}

static int zero_step(member *m, zero_state *z, int64_t step) {
  int64_t b;
  int ok = must(m, mlk_group_begin(m->group, NULL, NULL), "mlk_group_begin");
  for (b = ZERO_BUCKETS - 1; ok && b >= 0; b--) {
    ok = publish_shares(m, step, b);
    if (ok) {
      m->views[b] = mlk_f32(z->grad[b], z->to[b] - z->from[b]);
      ok = must(m, mlk_group_reduce(m->group, b, &m->views[b], 1), "mlk_group_reduce");
    }
  }
  ok = ok && must(m, mlk_group_finish(m->group, NULL), "mlk_group_finish");
  for (b = 0; ok && b < ZERO_BUCKETS; b++) {
    const mlk_tensor mine = mlk_f32(z->param[b] + z->from[b], z->to[b] - z->from[b]);
    const mlk_tensor whole = mlk_f32(z->param[b], zero_sizes[b]);
    ok = must(m, adamw(m->ctx, z, b, z->from[b], z->to[b], step), "mlk_adamw") &&
         must(m, mlk_group_gather(m->group, b, &mine, 1, &whole, 1), "mlk_group_gather");
  }
  return ok;
}

static void zero_script(void *arg) {
  member *m = (member *)arg;
  zero_state *z = (zero_state *)m->user;
  int64_t b, step;
  zero_init(z);
  if (!open_member(m)) return;
  for (b = 0; b < ZERO_BUCKETS; b++)
    if (!must(m, mlk_group_range(m->group, b, &z->from[b], &z->to[b]), "mlk_group_range")) return;
  for (step = 1; step <= ZERO_STEPS && zero_step(m, z, step); step++) m->steps_done++;
}

/* The whole optimiser in one place, on the same means. */
static int zero_oracle(const problem *p, mlk_context *ctx, zero_state *z) {
  int64_t b, step;
  int ok = 1;
  zero_init(z);
  for (step = 1; ok && step <= ZERO_STEPS; step++)
    for (b = 0; ok && b < ZERO_BUCKETS; b++)
      ok = mean_of(p, ctx, step, b, all_bits(p->shares), z->grad[b]) &&
           CHECK_OK(ctx, adamw(ctx, z, b, 0, zero_sizes[b], step));
  return ok;
}

static void check_ranges(const zero_state *z, int ranks) {
  int64_t b;
  int r;
  for (b = 0; b < ZERO_BUCKETS; b++) {
    CHECK_EQ_I64(z[0].from[b], 0);
    CHECK_EQ_I64(z[ranks - 1].to[b], zero_sizes[b]);
    for (r = 0; r < ranks; r++) {
      CHECK(z[r].from[b] <= z[r].to[b]);
      CHECK(z[r].from[b] % 16 == 0 || z[r].from[b] == zero_sizes[b]);
      if (r > 0) CHECK_EQ_I64(z[r].from[b], z[r - 1].to[b]);
    }
  }
}

static void zero(void) {
  mlk_context *oracle = mlkt_open(MLK_ISA_BEST, 1);
  zero_state *states = (zero_state *)malloc(5 * sizeof *states), *whole = states + 4;
  int ranks, w, r;
  int64_t b;
  if (!states) exit(2);
  for (ranks = 1; oracle && ranks <= 4; ranks++)
    for (w = 0; w < 3; w++) {
      problem p = problem_new(ranks, 4, zero_sizes, ZERO_BUCKETS);
      mlk_bucket buckets[BUCKETS];
      mlkt_buffer memory;
      member *members;
      p.wire = wires[w];
      p.shots = (ranks + w) % 3;
      p.seed = (uint64_t)w;
      p.parts = parts_of((uint64_t)w);
      memory = common_memory(&p);
      members = members_new(&p, buckets, memory.data);
      note_problem(&p);
      for (r = 0; r < ranks; r++) {
        members[r].script = zero_script;
        members[r].user = &states[r];
      }
      if (run_members(members, ranks) && zero_oracle(&p, oracle, whole)) {
        check_ranges(states, ranks);
        for (r = 0; r < ranks; r++) {
          CHECK_MSG(members[r].status == MLK_OK, "%s", members[r].text);
          for (b = 0; b < ZERO_BUCKETS; b++) CHECK_BITS_F32_N(states[r].param[b], whole->param[b], zero_sizes[b]);
        }
      }
      members_free(&p, members);
      mlkt_buffer_free(&memory);
    }
  free(states);
  mlk_close(oracle);
}

/* A lost replica's state is lost with it: sharding needs the other setting. */
static void zero_needs_fails(void) {
  problem p = problem_new(1, 1, zero_sizes + 5, 1);
  mlk_bucket buckets[BUCKETS];
  mlkt_buffer memory = common_memory(&p);
  member *m = (member *)malloc(sizeof *m);
  float x[100], g[100];
  mlk_tensor t = mlk_f32(x, 100), to = mlk_f32(g, 100);
  if (!m) exit(2);
  p.on_loss = MLK_LOSS_SHRINKS;
  name_buckets(&p, buckets);
  member_init(m, &p, 0, buckets, memory.data);
  memset(x, 0, sizeof x);
  if (CHECK_MSG(open_member(m), "%s", m->text)) {
    CHECK_OK(m->ctx, mlk_group_begin(m->group, NULL, NULL));
    CHECK_OK(m->ctx, mlk_group_publish(m->group, 0, 0, &t, 1));
    CHECK_STATUS(m->ctx, mlk_group_reduce(m->group, 0, &to, 1), MLK_ERR_ARGUMENT);
    CHECK_OK(m->ctx, mlk_group_finish(m->group, NULL));
    CHECK_STATUS(m->ctx, mlk_group_gather(m->group, 0, &t, 1, &to, 1), MLK_ERR_ARGUMENT);
  }
  member_free(m);
  free(m);
  mlkt_buffer_free(&memory);
}

/* ---- cases: many steps ------------------------------------------------------------------------------------------- */

enum { DELAY_RANKS = 3, DELAY_SHARES = 4, DELAY_BUCKETS = 3 };

static const int64_t delay_sizes[DELAY_BUCKETS] = {3, 0, 5};

static void delay(mlkt_rng *rng) {
  const int64_t kind = mlkt_int(rng, 0, 199);
  if (kind < 30) sched_yield();
  if (kind == 199) {
    struct timespec t;
    t.tv_sec = 0;
    t.tv_nsec = (long)mlkt_int(rng, 0, 300000);
    nanosleep(&t, NULL);
  }
}

/* Small whole numbers: their mean over four shares is exact, whoever adds them. */
static float delay_gradient(int64_t step, int share, int64_t b, int64_t i) {
  return (float)((step * 7 + share * 13 + b * 29 + i * 5) % 1000);
}

static int delayed_step(member *m, int64_t step, mlkt_rng *rng) {
  float grads[DELAY_BUCKETS][8], want;
  mlk_tensor means[DELAY_BUCKETS], t;
  int64_t b, i;
  int s, ok;
  delay(rng);
  ok = must(m, mlk_group_begin(m->group, NULL, NULL), "mlk_group_begin");
  for (b = 0; ok && b < DELAY_BUCKETS; b++)
    for (s = share_from(m->p, m->rank); ok && s < share_to(m->p, m->rank); s++) {
      for (i = 0; i < delay_sizes[b]; i++) grads[b][i] = delay_gradient(step, s, b, i);
      delay(rng);
      t = mlk_f32(grads[b], delay_sizes[b]);
      ok = must(m, mlk_group_publish(m->group, s, b, &t, 1), "mlk_group_publish");
    }
  for (b = 0; ok && b < DELAY_BUCKETS; b++) {
    delay(rng);
    means[b] = mlk_f32(grads[b], delay_sizes[b]);
    ok = must(m, mlk_group_average(m->group, b, &means[b], 1), "mlk_group_average");
  }
  delay(rng);
  ok = ok && must(m, mlk_group_finish(m->group, NULL), "mlk_group_finish");
  for (b = 0; ok && b < DELAY_BUCKETS; b++)
    for (i = 0; ok && i < delay_sizes[b]; i++) {
      for (want = 0, s = 0; s < DELAY_SHARES; s++) want += delay_gradient(step, s, b, i);
      ok = must(m, mlkt_bits(grads[b][i]) == mlkt_bits(want * 0.25f) ? MLK_OK : MLK_ERR_SHAPE, "the mean");
    }
  return ok;
}

static void delayed_script(void *arg) {
  member *m = (member *)arg;
  mlkt_rng rng;
  if (!open_member(m)) return;
  rng.state = m->p->seed + (uint64_t)m->rank * UINT64_C(0x9E3779B97F4A7C15);
  while (m->steps_done < m->p->steps && delayed_step(m, m->steps_done + 1, &rng)) m->steps_done++;
}

static void delays(void) {
  int shots, r;
  for (shots = 1; shots <= 2; shots++) {
    problem p = problem_new(DELAY_RANKS, DELAY_SHARES, delay_sizes, DELAY_BUCKETS);
    mlk_bucket buckets[BUCKETS];
    mlkt_buffer memory = common_memory(&p);
    mlkt_rng rng = mlkt_rng_case();
    member *members;
    p.steps = mlkt_opt.quick ? 200 : 5000;
    p.shots = shots;
    p.on_loss = shots == 1 ? MLK_LOSS_FAILS : MLK_LOSS_SHRINKS;
    p.seed = mlkt_u64(&rng);
    members = members_new(&p, buckets, memory.data);
    note_problem(&p);
    for (r = 0; r < DELAY_RANKS; r++) members[r].script = delayed_script;
    run_members(members, DELAY_RANKS);
    for (r = 0; r < DELAY_RANKS; r++) {
      CHECK_MSG(members[r].status == MLK_OK, "%s", members[r].text);
      CHECK_EQ_I64(members[r].steps_done, p.steps);
    }
    members_free(&p, members);
    mlkt_buffer_free(&memory);
  }
}

/* ---- cases: fork ------------------------------------------------------------------------------------------------- */

/* What the child sends through the pipe. */
typedef struct letter {
  mlk_status status;
  char text[TEXT];
  mlk_group_report report;
  float mean[40];
} letter;

static void child_rank(member *m, int pipe_fd) { /* gives its result through the pipe, without any exit handler */
  letter result;
  memset(&result, 0, sizeof result);
  plain_script(m);
  result.status = m->steps_done == m->p->steps ? m->status : MLK_ERR_REPLICA;
  snprintf(result.text, sizeof result.text, "%s", m->text);
  if (result.status == MLK_OK) {
    result.report = m->finished[m->p->steps - 1];
    memcpy(result.mean, m->means[m->p->steps - 1][0], (size_t)m->p->elements[0] * sizeof(float));
  }
  mlk_group_close(m->group);
  mlk_close(m->ctx);
  _exit(write(pipe_fd, &result, sizeof result) == (ssize_t)sizeof result ? 0 : 3);
}

/* A process that has computed on threads forks; parent and child are ranks of a group over a segment. The child has one
   thread: GNU's OpenMP cannot run a team in a child of a process that ran one. */
static void fork_after_compute(void) {
  const int64_t sizes[] = {40, 3};
  problem p = problem_new(2, 3, sizes, 2);
  mlk_context *oracle = mlkt_open(MLK_ISA_REFERENCE, 1), *before = mlkt_open(MLK_ISA_BEST, 2);
  mlk_bucket buckets[BUCKETS];
  mlk_group_segment segment;
  mlk_group_desc desc;
  mlk_status status;
  member *members;
  float *big = floats(200000), want[64];
  letter result;
  ssize_t got;
  pid_t child;
  int ends[2], ended = 0;
  if (!oracle || !before) return;
  memset(big, 0, 200000 * sizeof *big);
  CHECK_OK(before, to_wire(before, flat(big, MLK_F32, 200000), big, 200000));
  name_buckets(&p, buckets);
  desc = group_desc(&p, 0, buckets, NULL);
  status = mlk_group_segment_open(before, &desc, &segment);
  if (status == MLK_ERR_UNSUPPORTED) mlkt_skip("no segments here: %s", mlk_last_error(before));
  if (status == MLK_ERR_UNSUPPORTED || !CHECK_OK(before, status) || pipe(ends) != 0) goto end;
  p.timeout = 60;
  members = members_new(&p, buckets, NULL);
  members[0].desc.fd = members[1].desc.fd = segment.fd;
  fflush(stdout);
  child = fork();
  if (child == 0) child_rank(&members[1], ends[1]);
  close(ends[1]);
  members[0].script(&members[0]);
  memset(&result, 0, sizeof result);
  result.status = MLK_ERR_SYSTEM;
  got = read(ends[0], &result, sizeof result);
  close(ends[0]);
  CHECK(waitpid(child, &ended, 0) == child && WIFEXITED(ended) && WEXITSTATUS(ended) == 0);
  CHECK_EQ_I64(got, sizeof result);
  CHECK_MSG(members[0].status == MLK_OK, "%s", members[0].text);
  CHECK_MSG(result.status == MLK_OK, "the child: %s", result.text);
  if (members[0].steps_done == p.steps && mean_of(&p, oracle, p.steps, 0, 7, want)) {
    CHECK_BITS_F32_N(members[0].means[p.steps - 1][0], want, 40);
    CHECK_BITS_F32_N(result.mean, want, 40);
    CHECK(same_report(&result.report, &members[0].finished[p.steps - 1]));
  }
  members_free(&p, members);
  mlk_group_segment_close(&segment);
end:
  free(big);
  mlk_close(before);
  mlk_close(oracle);
}

#else
static void no_threads(void) { mlkt_skip("no threads here"); }
#define late_shrinks       no_threads
#define late_fails         no_threads
#define alone              no_threads
#define leaves_at_once     no_threads
#define missed             no_threads
#define other_layouts      no_threads
#define zero               no_threads
#define zero_needs_fails   no_threads
#define delays             no_threads
#define fork_after_compute no_threads
#endif

const mlkt_case mlkt_group_cases[] = {{"group/bits", bits_sweep},
                                      {"group/any_ranks", same_for_any_ranks},
                                      {"group/orders", orders},
                                      {"group/weights", weights},
                                      {"group/nonfinite", nonfinite},
                                      {"group/threads", threads},
                                      {"group/hooks", hooks},
                                      {"group/plan", plan_sizes},
                                      {"group/plan_is_used", plans},
                                      {"group/failing_memory", failing_memory},
                                      {"group/refusals", refusals},
                                      {"group/misuse", misuse},
                                      {"group/late_shrinks", late_shrinks},
                                      {"group/late_fails", late_fails},
                                      {"group/alone", alone},
                                      {"group/leaves_at_once", leaves_at_once},
                                      {"group/missed", missed},
                                      {"group/other_layouts", other_layouts},
                                      {"group/zero", zero},
                                      {"group/zero_needs_fails", zero_needs_fails},
                                      {"group/delays", delays},
                                      {"group/fork", fork_after_compute},
                                      {NULL, NULL}};
