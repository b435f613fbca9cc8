/* group_processes.c - replica groups of processes that die, stop and come back, and attacks on what they share. A
   program of its own, for Linux; links with the implementation of mlk.h as an object.

   usage: group_processes [--quick] [--list] [--filter TEXT] [--seed N] [--jobs N]
   Ends with "N passed, N failed, N skipped"; exit code 1 when something failed, 77 where there is no Linux.

   A scene is a process: the judge. It makes the common memory, forks the ranks, hears from each through one pipe what
   every call gave, continues those who were stopped, starts replacements, and judges. A rank that is to be hit hits
   itself, between two calls or by a timer within one. Whatever the moment was, all who had a step count must have been
   told the same and hold the same mean, which is mlk_average over the shares they were told of; nobody waits much
   beyond the timeout; the group shrinks or fails as set; who comes back is brought up to date.
   Time decides nothing: where a rank must be found late, a machine so busy that others were late too repeats the scene
   with twice the timeout. Scenes mostly wait, so many run at once. */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <stdio.h>

#if !defined(__linux__)
int main(void) {
  printf("skipped: groups of processes are tested on Linux only\n");
  return 77;
}
#else

#include "mlk.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { RANKS = 4, BUCKETS = 3, PARAMS = 8, ATTEMPTS = 1500, TEXT = 200, HIT_STEP = 2, SCENES = 1024 };

/* ---- scenes ------------------------------------------------------------------------------------------------------ */

typedef enum phase { ATTACH, PUBLISH, WAIT, COPY, PUBLISHED, DETACH, ANYWHERE, PHASES } phase;
typedef enum blow { KILLED, STOPPED, EXITS, BLOWS } blow;
typedef enum medium { BY_FD, BY_SEGMENT_PATH, BY_FILE, MEDIA } medium;

static const char *const phase_names[] = {"attach", "publish", "wait", "copy", "published", "detach", "anywhere"};
static const char *const blow_names[] = {"killed", "stopped", "exits"};
static const char *const medium_names[] = {"fd", "segment_path", "file"};

typedef struct scene {
  phase phase;
  blow blow;
  medium medium;
  mlk_loss on_loss;
  int ranks, shares, victim, shots, variant, min_ranks;
  mlk_dtype wire;
  uint64_t seed;
  int64_t elements[BUCKETS];
} scene;

/* Shared by the judge and the ranks beside the library: where to stop, known when all are back. */
typedef struct board {
  int64_t end; /* last step; 0: not known yet */
} board;

typedef enum record_kind { OPENED, STEPPED, ENDED } record_kind;

/* What a rank tells the judge: less than PIPE_BUF, so that records of several ranks do not mix. */
typedef struct record {
  int32_t kind, rank, incarnation, status;
  mlk_group_report begun, report;
  uint64_t means, params; /* hashes */
  double seconds;         /* of the longest call */
  char text[TEXT];
} record;

typedef struct rank_state {
  const scene *s;
  const mlk_group_desc *given;
  board *shared;
  int rank, incarnation, pipe_fd;
  double timeout;
  mlk_context *ctx;
  mlk_group *group;
  int was_hit, failed;
  int64_t last;   /* step that counted last */
  double longest; /* seconds of the longest call since the last record */
  float *grads[MLK_MAX_SHARES][BUCKETS], *means[BUCKETS];
  float params[PARAMS];
} rank_state;

static uint64_t mix(uint64_t x) { /* the finaliser of splitmix64 */
  x = (x ^ (x >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
  x = (x ^ (x >> 27)) * UINT64_C(0x94D049BB133111EB);
  return x ^ (x >> 31);
}

static uint64_t draw(uint64_t *state) {
  *state += UINT64_C(0x9E3779B97F4A7C15);
  return mix(*state);
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void nap(long microseconds) {
  struct timespec t;
  t.tv_sec = microseconds / 1000000;
  t.tv_nsec = microseconds % 1000000 * 1000;
  while (nanosleep(&t, &t) != 0 && errno == EINTR) continue;
}

static void *must_have(void *memory) {
  if (!memory) {
    fprintf(stderr, "group_processes: out of memory for the test itself\n");
    exit(2);
  }
  return memory;
}

static int share_from(const scene *s, int rank) { return rank * s->shares / s->ranks; }
static int share_to(const scene *s, int rank) { return (rank + 1) * s->shares / s->ranks; }

/* Does a step fail when the victim is lost? */
static int fails(const scene *s) { return s->on_loss == MLK_LOSS_FAILS || s->min_ranks == s->ranks; }

/* Does the victim, or a process in its place, come back? A file's name is gone once all have come. */
static int returns(const scene *s) { return s->medium != BY_FILE; }

/* Gradients of a share: any function of these numbers does. */
static void gradients(const scene *s, int64_t step, int share, int bucket, float *to) {
  const uint64_t base = mix(s->seed + (uint64_t)step * 1000003 + (uint64_t)share * 10007 + (uint64_t)bucket * 101);
  uint32_t x = (uint32_t)base | 1u;
  int64_t i;
  for (i = 0; i < s->elements[bucket]; i++) {
    x = x * 1664525u + 1013904223u;
    to[i] = (float)(int32_t)x * (1.0f / 2147483648.0f) + 0.25f * (float)share;
  }
}

static float weight_of(int share) { return (float)(1 + share % 3); }

static uint64_t hash_floats(uint64_t hash, const float *x, int64_t count) {
  int64_t i;
  for (i = 0; i < count; i++) {
    uint32_t bits;
    memcpy(&bits, x + i, sizeof bits);
    hash = (hash ^ bits) * UINT64_C(0x100000001B3);
  }
  return mix(hash);
}

/* Parameters move by what a step decided: ranks that heard different things differ from then on. */
static void move_params(float *params, const float *mean, const mlk_group_report *report) {
  int i;
  for (i = 0; i < PARAMS; i++) params[i] = 0.5f * params[i] + mean[i] + (float)report->members + (float)report->weight;
}

/* ---- a rank ------------------------------------------------------------------------------------------------------ */

static blow alarm_blow; /* what the timer does */

static void strike(blow with) {
  switch (with) {
  case KILLED: kill(getpid(), SIGKILL); break;
  case STOPPED: kill(getpid(), SIGSTOP); break;
  default: _exit(0);
  }
}

static void on_alarm(int signal_number) {
  (void)signal_number;
  strike(alarm_blow);
}

static int is_victim(const rank_state *r) { return r->incarnation == 0 && r->rank == r->s->victim && !r->was_hit; }

static void hit(rank_state *r) {
  r->was_hit = 1;
  strike(r->s->blow);
}

static void hit_within(rank_state *r, long most_microseconds) { /* some time from now on, wherever that is */
  uint64_t state = r->s->seed * 77 + (uint64_t)r->rank;
  struct itimerval timer;
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_handler = on_alarm;
  sigaction(SIGALRM, &action, NULL);
  alarm_blow = r->s->blow;
  memset(&timer, 0, sizeof timer);
  timer.it_value.tv_usec = 1 + (long)(draw(&state) % (uint64_t)most_microseconds);
  r->was_hit = 1;
  setitimer(ITIMER_REAL, &timer, NULL);
}

static void here(rank_state *r, phase at, int variant, int64_t step) {
  if (is_victim(r) && r->s->phase == at && r->s->variant == variant && (at == ATTACH || step == HIT_STEP)) hit(r);
}

static void tell(rank_state *r, record_kind kind, mlk_status status, const mlk_group_report *begun,
                 const mlk_group_report *report) {
  record out;
  memset(&out, 0, sizeof out);
  out.kind = (int32_t)kind;
  out.rank = r->rank;
  out.incarnation = r->incarnation;
  out.status = (int32_t)status;
  if (begun) out.begun = *begun;
  if (report) out.report = *report;
  out.means = UINT64_C(0xCBF29CE484222325);
  if (kind == STEPPED && status == MLK_OK) {
    int b;
    for (b = 0; b < BUCKETS; b++) out.means = hash_floats(out.means, r->means[b], r->s->elements[b]);
    out.params = hash_floats(1, r->params, PARAMS);
  }
  out.seconds = r->longest;
  r->longest = 0;
  snprintf(out.text, sizeof out.text, "%s", status == MLK_OK ? "" : mlk_last_error(r->ctx));
  while (write(r->pipe_fd, &out, sizeof out) < 0 && errno == EINTR) continue;
}

/* Time spent stopped is not the call's. */
static void clocked(rank_state *r, double since) {
  const double took = now() - since;
  if (took > r->longest && !r->was_hit) r->longest = took;
}

/* status = call, on the clock */
#define CLOCKED(r, status, call)                                                                                       \
  do {                                                                                                                 \
    const double at_ = now();                                                                                          \
    status = call;                                                                                                     \
    clocked(r, at_);                                                                                                   \
  } while (0)

static mlk_status open_rank(rank_state *r) {
  mlk_group_desc desc = *r->given;
  mlk_status status;
  desc.rank = r->rank;
  desc.timeout = r->timeout;
  CLOCKED(r, status, mlk_group_open(r->ctx, &r->group, &desc));
  tell(r, OPENED, status, NULL, NULL);
  return status;
}

static mlk_status publish_bucket(rank_state *r, int64_t step, int b) {
  mlk_status status = MLK_OK;
  int share;
  for (share = share_from(r->s, r->rank); status == MLK_OK && share < share_to(r->s, r->rank); share++) {
    const mlk_tensor t = mlk_f32(r->grads[share][b], r->s->elements[b]);
    gradients(r->s, step, share, b, r->grads[share][b]);
    CLOCKED(r, status, mlk_group_publish(r->group, share, b, &t, 1));
  }
  return status;
}

static mlk_status average_all(rank_state *r, int64_t step, mlk_group_report *report) {
  mlk_tensor means[BUCKETS];
  mlk_status status = MLK_OK;
  int b;
  for (b = 0; status == MLK_OK && b < BUCKETS; b++) {
    means[b] = mlk_f32(r->means[b], r->s->elements[b]);
    CLOCKED(r, status, mlk_group_average(r->group, b, &means[b], 1));
    if (b == 0) here(r, PUBLISHED, 1, step);
  }
  here(r, PUBLISHED, 2, step);
  if (status == MLK_OK) CLOCKED(r, status, mlk_group_finish(r->group, report));
  return status;
}

/* One step, up to the call that says it is over. */
static mlk_status attempt_step(rank_state *r, mlk_group_report *begun, mlk_group_report *report) {
  const scene *s = r->s;
  const mlk_tensor t = mlk_f32(r->params, PARAMS);
  const int from = share_from(s, r->rank);
  float weights[MLK_MAX_SHARES];
  mlk_status status;
  int b, i;
  for (i = from; i < share_to(s, r->rank); i++) weights[i - from] = weight_of(i);
  if (is_victim(r) && s->phase == COPY && r->last + 1 == HIT_STEP) hit_within(r, 4000);
  CLOCKED(r, status, mlk_group_begin(r->group, weights, begun));
  if (status == MLK_OK && begun->joined) CLOCKED(r, status, mlk_group_sync(r->group, &t, 1));
  here(r, PUBLISH, 0, begun->step);
  if (s->phase == WAIT && begun->step == HIT_STEP && r->incarnation == 0 && r->rank != s->victim)
    nap(25000); /* it waits for us */
  for (b = 0; status == MLK_OK && b < BUCKETS; b++) {
    status = publish_bucket(r, begun->step, b);
    if (b < 2) here(r, PUBLISH, 1 + b, begun->step);
  }
  if (status != MLK_OK) return status;
  here(r, PUBLISHED, 0, begun->step);
  if (is_victim(r) && s->phase == WAIT && begun->step == HIT_STEP) hit_within(r, 20000);
  return average_all(r, begun->step, report);
}

/* The victim after it was stopped and failed: back as a new member. 0: it stays away. */
static int come_back(rank_state *r) {
  mlk_group_close(r->group);
  r->group = NULL;
  return returns(r->s) && open_rank(r) == MLK_OK;
}

/* Survivors and the replacement know when all are back, and put it on the board before they begin another step. */
static void mark_end(rank_state *r, const mlk_group_report *report) {
  const scene *s = r->s;
  const uint32_t all = (1u << s->ranks) - 1;
  int64_t end = 0;
  if ((r->rank == s->victim && !r->incarnation) || __atomic_load_n(&r->shared->end, __ATOMIC_ACQUIRE)) return;
  if (r->incarnation) {
    end = report->step + 2;
  } else if (fails(s)) {
    if (r->failed || s->phase == ATTACH || (report->step > 1 && report->joined)) end = report->step + 2;
  } else if (returns(s)) {
    if (report->members == all && report->step > 1 && report->joined >> s->victim & 1) end = report->step + 2;
  } else if (!(report->members >> s->victim & 1)) {
    end = report->step + 3;
  }
  if (end) __atomic_store_n(&r->shared->end, end, __ATOMIC_RELEASE);
}

static int goes_on(const rank_state *r) {
  const int64_t end = __atomic_load_n(&r->shared->end, __ATOMIC_ACQUIRE);
  return end == 0 || r->last < end;
}

static void steps(rank_state *r) {
  int i, came_back = 0;
  for (i = 0; i < ATTEMPTS && goes_on(r); i++) {
    mlk_group_report begun, report;
    mlk_status status;
    memset(&begun, 0, sizeof begun);
    memset(&report, 0, sizeof report);
    status = attempt_step(r, &begun, &report);
    if (status == MLK_OK) {
      move_params(r->params, r->means[1], &report);
      r->last = report.step;
      mark_end(r, &report);
      tell(r, STEPPED, status, &begun, &report);
      here(r, DETACH, 0, report.step);
      if (r->rank != r->s->victim && i > 8) nap(1000);                        /* somebody is to come back: no hurry */
      if (is_victim(r) && r->s->phase == DETACH && report.step == HIT_STEP) { /* it leaves, and is hit then */
        if (r->s->variant == 1) hit_within(r, 30);
        mlk_group_close(r->group);
        r->group = NULL;
        if (r->s->variant == 2) hit(r);
        nap(2000);
        if (!come_back(r)) return;
      }
    } else {
      tell(r, STEPPED, status, &begun, &report);
      r->failed = 1;
      if (r->rank == r->s->victim && r->incarnation == 0) { /* it was hit, and woke */
        if (came_back++ > 3 || !come_back(r)) return;
      } else if (!fails(r->s) || !returns(r->s) || i > 400) {
        return;
      }
      nap(3000); /* with too few members a step may fail at once, again and again */
    }
  }
}

/* Never returns. */
static void be_rank(const scene *s, const mlk_group_desc *desc, board *shared, int rank, int incarnation, int pipe_fd,
                    double timeout) {
  rank_state r;
  mlk_context_desc context;
  int b, i;
  prctl(PR_SET_PDEATHSIG, SIGKILL); /* nothing survives the judge */
  memset(&r, 0, sizeof r);
  memset(&context, 0, sizeof context);
  context.threads = 1;
  r.s = s;
  r.given = desc;
  r.shared = shared;
  r.rank = rank;
  r.incarnation = incarnation;
  r.pipe_fd = pipe_fd;
  r.timeout = timeout;
  for (b = 0; b < BUCKETS; b++) {
    r.means[b] = (float *)must_have(malloc((size_t)s->elements[b] * sizeof(float) + 1));
    for (i = share_from(s, rank); i < share_to(s, rank); i++)
      r.grads[i][b] = (float *)must_have(malloc((size_t)s->elements[b] * sizeof(float) + 1));
  }
  if (mlk_open(&r.ctx, &context) != MLK_OK) _exit(4);
  here(&r, ATTACH, 0, 0);
  if (is_victim(&r) && s->phase == ATTACH && s->variant == 1) hit_within(&r, 400);
  if (open_rank(&r) == MLK_OK) {
    here(&r, ATTACH, 2, 0);
    if (is_victim(&r) && s->phase == ANYWHERE) hit_within(&r, 8000);
    steps(&r);
  }
  tell(&r, ENDED, MLK_OK, NULL, NULL);
  mlk_group_close(r.group);
  mlk_close(r.ctx);
  _exit(0);
}

/* ---- the judge --------------------------------------------------------------------------------------------------- */

typedef struct judge {
  const scene *s;
  double timeout;
  mlk_context *ctx;
  record *records;
  int count, room;
  board *shared;
  pid_t pids[RANKS + 1]; /* the last is the replacement */
  int over[RANKS + 1], how[RANKS + 1];
  int processes, stopped, woken, complaints;
  int given_up; /* who was to come back did not, and the others went on without it until they were ended */
} judge;

static int complain(judge *j, const char *format, ...) __attribute__((format(printf, 2, 3)));
static int complain(judge *j, const char *format, ...) {
  va_list arguments;
  if (j->complaints++ >= 6) return 0;
  printf("  timeout %.2f: ", j->timeout);
  va_start(arguments, format);
  vprintf(format, arguments);
  va_end(arguments);
  printf("\n");
  return 0;
}

static int is_survivor(const judge *j, const record *r) { return r->rank != j->s->victim; }
static int counts(const record *r) { return r->kind == STEPPED && r->status == MLK_OK; }

/* Has every survivor ended a step without the victim, or given up? */
static int missed_by_all(const judge *j) {
  uint32_t missed = 0;
  int i;
  for (i = 0; i < j->count; i++) {
    const record *r = &j->records[i];
    if (r->kind == ENDED || (r->kind == STEPPED && (r->status != MLK_OK || !(r->report.members >> j->s->victim & 1))))
      missed |= UINT32_C(1) << r->rank;
  }
  return (missed | UINT32_C(1) << j->s->victim) == (UINT32_C(1) << j->s->ranks) - 1;
}

static void hear(judge *j, int fd) {
  for (;;) {
    if (j->count == j->room) {
      j->room = 2 * j->room + 64;
      j->records = (record *)must_have(realloc(j->records, (size_t)j->room * sizeof *j->records));
    }
    if (read(fd, &j->records[j->count], sizeof(record)) != (ssize_t)sizeof(record)) return;
    j->count++;
  }
}

static void look_after(judge *j) { /* who has ended, who has stopped */
  pid_t pid;
  int how, i;
  while ((pid = waitpid(-1, &how, WNOHANG | WUNTRACED)) > 0)
    for (i = 0; i < j->processes; i++) {
      if (j->pids[i] != pid) continue;
      if (WIFSTOPPED(how)) {
        j->stopped = 1;
      } else {
        j->over[i] = 1;
        j->how[i] = how;
      }
    }
}

static int all_over(const judge *j) {
  int i;
  for (i = 0; i < j->processes; i++)
    if (!j->over[i]) return 0;
  return 1;
}

static void start(judge *j, const mlk_group_desc *desc, int rank, int incarnation, const int ends[2]) {
  pid_t pid;
  fflush(stdout);
  pid = fork();
  if (pid == 0) {
    close(ends[0]);
    be_rank(j->s, desc, j->shared, rank, incarnation, ends[1], j->timeout);
  }
  if (pid < 0) exit(2);
  j->pids[j->processes++] = pid;
}

static void complain_of_the_living(judge *j) {
  int i, k;
  complain(j, "still not over: stopped %d, continued %d, %d records", j->stopped, j->woken, j->count);
  for (i = 0; i < j->processes; i++) {
    const int rank = i < j->s->ranks ? i : j->s->victim;
    for (k = j->count - 1; k > 0 && (j->records[k].rank != rank || j->records[k].incarnation != (i >= j->s->ranks));
         k--)
      continue;
    if (!j->over[i] && k >= 0)
      complain(j, "process %d, rank %d lives; its last word: kind %d, step %d, members %x, %s", i, rank,
               j->records[k].kind, (int)j->records[k].report.step, j->records[k].report.members,
               mlk_status_name((mlk_status)j->records[k].status));
  }
}

static void run_ranks(judge *j, const mlk_group_desc *desc) {
  const scene *s = j->s;
  const double limit = now() + (j->timeout < 5 ? 20 + 20 * j->timeout : 2 * j->timeout);
  const int replaces = s->blow != STOPPED && returns(s);
  struct pollfd heard;
  int ends[2], i;
  if (pipe(ends) != 0 || fcntl(ends[0], F_SETFL, O_NONBLOCK) != 0) exit(2);
  for (i = 0; i < s->ranks; i++) start(j, desc, i, 0, ends);
  heard.fd = ends[0];
  heard.events = POLLIN;
  while (!all_over(j)) {
    poll(&heard, 1, 5);
    hear(j, ends[0]);
    look_after(j);
    if (j->stopped && !j->woken && missed_by_all(j)) {
      j->woken = 1;
      kill(j->pids[s->victim], SIGCONT);
    }
    if (replaces && j->over[s->victim] && j->processes == s->ranks && (fails(s) || missed_by_all(j)))
      start(j, desc, s->victim, 1, ends);
    if (now() > limit) {
      j->given_up = j->timeout < 5 && j->over[j->processes - 1] && j->over[s->victim];
      if (!j->given_up) complain_of_the_living(j);
      for (i = 0; i < j->processes; i++)
        if (!j->over[i]) kill(j->pids[i], SIGKILL);
      while (waitpid(-1, NULL, 0) > 0) continue;
      break;
    }
  }
  hear(j, ends[0]);
  close(ends[0]);
  close(ends[1]);
}

/* ---- what it asks ------------------------------------------------------------------------------------------------ */

static int same_report(const mlk_group_report *a, const mlk_group_report *b) {
  return a->step == b->step && a->members == b->members && a->lost == b->lost && a->joined == b->joined &&
         a->shares == b->shares && a->nonfinite == b->nonfinite &&
         memcmp(&a->weight, &b->weight, sizeof a->weight) == 0;
}

static size_t wire_bytes(mlk_dtype wire) { return wire == MLK_F32 ? 4 : 2; }

static mlk_tensor flat(void *data, mlk_dtype dtype, int64_t count) {
  mlk_tensor t = mlk_f32((const float *)data, count);
  t.dtype = (int32_t)dtype;
  return t;
}

/* The hash of a step's means over the shares that were reported. */
static uint64_t hash_of_means(judge *j, const mlk_group_report *report) {
  const scene *s = j->s;
  uint64_t hash = UINT64_C(0xCBF29CE484222325);
  int b, share;
  for (b = 0; b < BUCKETS; b++) {
    const int64_t n = s->elements[b];
    const size_t pitch = ((size_t)n * wire_bytes(s->wire) + 63) / 64 * 64;
    unsigned char *memory = (unsigned char *)must_have(malloc(pitch * (size_t)s->shares + 64));
    float *grads = (float *)must_have(malloc((size_t)n * sizeof(float) + 1)), weights[MLK_MAX_SHARES];
    float *mean = (float *)must_have(malloc((size_t)n * sizeof(float) + 1));
    mlk_tensor inputs[MLK_MAX_SHARES], output = flat(mean, MLK_F32, n);
    mlk_average_desc average;
    mlk_map_desc copy;
    memset(&copy, 0, sizeof copy);
    copy.op = MLK_COPY;
    for (share = 0; share < s->shares; share++) {
      gradients(s, report->step, share, b, grads);
      weights[share] = weight_of(share);
      inputs[share] = flat(memory + (size_t)share * pitch, s->wire, n);
      copy.a = flat(grads, MLK_F32, n);
      copy.out = inputs[share];
      if (mlk_map(j->ctx, &copy) != MLK_OK) complain(j, "%s", mlk_last_error(j->ctx));
    }
    memset(&average, 0, sizeof average);
    average.inputs = inputs;
    average.replicas = s->shares;
    average.count = average.output_count = 1;
    average.outputs = &output;
    average.weights = weights;
    average.absent = ~(uint64_t)report->shares & ((UINT64_C(1) << s->shares) - 1);
    if (mlk_average(j->ctx, &average) != MLK_OK) complain(j, "%s", mlk_last_error(j->ctx));
    hash = hash_floats(hash, mean, n);
    free(mean);
    free(grads);
    free(memory);
  }
  return hash;
}

static uint32_t shares_of(const scene *s, uint32_t members) {
  uint32_t shares = 0;
  int r, share;
  for (r = 0; r < s->ranks; r++)
    for (share = share_from(s, r); share < share_to(s, r); share++)
      if (members >> r & 1) shares |= UINT32_C(1) << share;
  return shares;
}

/* All who had a step count heard the same, and hold the mean of it. */
static void judge_agreement(judge *j) {
  int i, k;
  for (i = 0; i < j->count; i++) {
    const record *r = &j->records[i];
    int first = 1;
    if (!counts(r)) continue;
    for (k = 0; k < i && first; k++) {
      const record *other = &j->records[k];
      if (!counts(other) || other->report.step != r->report.step) continue;
      first = 0; /* whoever came first was compared with the definition */
      if (!same_report(&other->report, &r->report) || other->means != r->means || other->params != r->params)
        complain(j, "step %d: ranks %d and %d disagree: members %x and %x, shares %x and %x, means %d, parameters %d",
                 (int)r->report.step, other->rank, r->rank, other->report.members, r->report.members,
                 other->report.shares, r->report.shares, other->means == r->means, other->params == r->params);
    }
    if (!(r->report.members >> r->rank & 1)) complain(j, "rank %d: a step counts that it is not in", r->rank);
    if (!first) continue;
    if (r->report.shares != shares_of(j->s, r->report.members) || r->report.nonfinite)
      complain(j, "step %d: members %x, but shares %x", (int)r->report.step, r->report.members, r->report.shares);
    if (r->means != hash_of_means(j, &r->report))
      complain(j, "step %d: rank %d's means are not those of shares %x", (int)r->report.step, r->rank,
               r->report.shares);
  }
}

/* Nobody waited long, nobody died but the one who had to, and nothing was refused for another reason. */
static void judge_manners(judge *j) {
  const double most = j->timeout < 5 ? 6 * j->timeout + 10 : j->timeout / 2; /* a death is noticed at once */
  int i;
  for (i = 0; i < j->count; i++) {
    const record *r = &j->records[i];
    if (r->seconds > most) complain(j, "rank %d: a call took %.2f s", r->rank, r->seconds);
    if (r->status != MLK_OK && r->status != MLK_ERR_REPLICA)
      complain(j, "rank %d: %s: %s", r->rank, mlk_status_name((mlk_status)r->status), r->text);
    if (r->status != MLK_OK && !r->text[0]) complain(j, "rank %d: a refusal without a sentence", r->rank);
  }
  for (i = 0; i < j->processes; i++) {
    const int killed = i == j->s->victim && j->s->blow == KILLED;
    if (!j->over[i]) continue; /* ended by the judge */
    if (killed ? !WIFSIGNALED(j->how[i]) || WTERMSIG(j->how[i]) != SIGKILL
               : !WIFEXITED(j->how[i]) || WEXITSTATUS(j->how[i]) != 0)
      complain(j, "process %d ended with %x", i, (unsigned)j->how[i]);
  }
}

/* Was there no group? One that needs all of them fails at once without one; and who is stopped while it makes sure of
   the segment keeps the others out until their timeouts are over. */
static int none_could_attach(const judge *j) {
  const scene *s = j->s;
  int i, refused_at_once = 0;
  if (s->phase != ATTACH || s->blow != STOPPED || (!fails(s) && s->variant != 1)) return 0;
  for (i = 0; i < j->count; i++)
    refused_at_once += is_survivor(j, &j->records[i]) && j->records[i].kind == OPENED && j->records[i].status != MLK_OK;
  return refused_at_once == s->ranks - 1;
}

static const record *last_of(const judge *j, int rank) {
  int i;
  for (i = j->count - 1; i >= 0; i--)
    if (j->records[i].rank == rank && j->records[i].kind == STEPPED) return &j->records[i];
  return NULL;
}

/* Could others than the victim have been too late? Then the scene says nothing about the settings. */
static int others_were_late(const judge *j) {
  const uint32_t survivors = ((UINT32_C(1) << j->s->ranks) - 1) & ~(UINT32_C(1) << j->s->victim);
  int i, given_up = 0;
  if (j->timeout >= 5 || none_could_attach(j)) return 0;
  if (j->given_up) return 1;
  for (i = 0; i < j->count; i++) {
    const record *r = &j->records[i];
    if (counts(r) && (r->report.members & survivors) != survivors) return 1;
    if (r->kind == STEPPED && r->status != MLK_OK && is_survivor(j, r) && !fails(j->s)) return 1;
    given_up += r->kind == OPENED && r->status != MLK_OK;
  }
  for (i = 0; i < j->s->ranks && returns(j->s); i++) { /* whom one timeout was too short to come back */
    const record *r = last_of(j, i);
    if (!r || !counts(r) || r->report.step != j->shared->end) return 1;
  }
  return given_up != 0;
}

/* Went it on, or failed, as it is set? */
static void judge_outcome(judge *j) {
  const scene *s = j->s;
  const uint32_t all = (UINT32_C(1) << s->ranks) - 1, victim = UINT32_C(1) << s->victim;
  int i, k, m, without = 0, learned = 0, newcomer = -1; /* it had not begun when it was stopped */
  for (i = 0; i < j->count; i++) {
    const record *r = &j->records[i];
    if (!is_survivor(j, r) && r->kind == STEPPED && newcomer < 0) newcomer = counts(r) && r->report.step > 1;
    learned += !is_survivor(j, r) && r->kind == STEPPED && r->status != MLK_OK;
    if (!counts(r)) continue;
    for (k = 0; k < s->ranks; k++) { /* a step that counts for one counts for all survivors */
      int has = k == s->victim;
      for (m = 0; m < j->count && !has; m++)
        has = j->records[m].rank == k && counts(&j->records[m]) && j->records[m].report.step == r->report.step;
      if (!has) complain(j, "step %d counts for rank %d and not for rank %d", (int)r->report.step, r->rank, k);
    }
    if (r->report.members & victim) continue;
    without++;
    if (fails(s)) complain(j, "step %d counts without rank %d", (int)r->report.step, s->victim);
    if (r->report.members != (all & ~victim))
      complain(j, "step %d: members %x", (int)r->report.step, r->report.members);
  }
  if (!fails(s) && !without) complain(j, "no step went without rank %d", s->victim);
  if (!fails(s) && s->blow == STOPPED && s->phase != ATTACH && !(s->phase == DETACH && s->variant > 0) && !learned &&
      newcomer != 1)
    complain(j, "rank %d never learned that it was left out", s->victim);
  for (k = 0; k < s->ranks; k++) {
    const record *r = last_of(j, k);
    if (k == s->victim && !returns(s)) continue;
    if (fails(s) && !returns(s)) {
      if (r && r->status == MLK_OK) complain(j, "rank %d: no step failed", k);
    } else if (!r || !counts(r) || r->report.step != j->shared->end) {
      complain(j, "rank %d did not come to the end, step %d: %s", k, (int)j->shared->end, r ? r->text : "not one step");
    } else if (returns(s) && r->report.members != all) {
      complain(j, "at the end the members are %x", r->report.members);
    }
  }
}

/* Loss is reported once, when it happens; so is the return. */
static void judge_reports(judge *j) {
  const uint32_t victim = UINT32_C(1) << j->s->victim;
  const mlk_group_report *before = NULL;
  int i, rank = j->s->victim == 0 ? 1 : 0;
  for (i = 0; i < j->count; i++) {
    const record *r = &j->records[i];
    const mlk_group_report *a = &r->report;
    uint32_t lost = 0, joined = 0;
    if (r->rank != rank || !counts(r)) continue;
    if (before && !fails(j->s)) {
      if (before->members & ~a->members & victim) lost = victim;
      if (~before->members & a->members & victim) joined = victim;
      if (!((before->members | a->members) & victim)) lost = a->lost & victim; /* it may have come and gone at once */
      if (a->lost != lost || (a->joined & ~victim) || (joined && !a->joined))
        complain(j, "step %d: lost %x, joined %x, expected %x, %x", (int)a->step, a->lost, a->joined, lost, joined);
      if (a->step != before->step + 1) complain(j, "step %d follows step %d", (int)a->step, (int)before->step);
    }
    before = a;
  }
}

/* ---- a scene ----------------------------------------------------------------------------------------------------- */

static const char *shared_folder(void) { return access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp"; }

static mlk_group_desc describe(const scene *s, mlk_bucket *buckets) {
  static const char *const names[BUCKETS] = {"weights", "bias", NULL};
  mlk_group_desc desc;
  int b;
  memset(&desc, 0, sizeof desc);
  for (b = 0; b < BUCKETS; b++) {
    buckets[b].name = names[b];
    buckets[b].elements = s->elements[b];
  }
  desc.ranks = s->ranks;
  desc.shares = s->shares;
  desc.buckets = buckets;
  desc.bucket_count = BUCKETS;
  desc.wire = s->wire;
  desc.on_loss = s->on_loss;
  desc.min_ranks = s->min_ranks;
  desc.shots = s->shots;
  return desc;
}

static mlk_context *context_of_one(void) {
  mlk_context_desc desc;
  mlk_context *ctx = NULL;
  memset(&desc, 0, sizeof desc);
  desc.threads = 1;
  if (mlk_open(&ctx, &desc) != MLK_OK) exit(2);
  return ctx;
}

/* 1: others than the victim were too late. */
static int play_once(const scene *s, double timeout, int last, int *complaints) {
  mlk_bucket buckets[BUCKETS];
  mlk_group_desc desc = describe(s, buckets);
  mlk_group_segment segment;
  char path[128];
  judge j;
  int late;
  memset(&j, 0, sizeof j);
  j.s = s;
  j.timeout = timeout;
  j.ctx = context_of_one();
  j.shared = (board *)mmap(NULL, sizeof *j.shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (j.shared == MAP_FAILED) exit(2);
  if (s->medium == BY_FILE) {
    snprintf(path, sizeof path, "%s/mlk_test_%d", shared_folder(), (int)getpid());
    desc.path = path;
  } else if (mlk_group_segment_open(j.ctx, &desc, &segment) != MLK_OK) {
    complain(&j, "mlk_group_segment_open: %s", mlk_last_error(j.ctx));
    *complaints += j.complaints;
    return 0;
  } else if (s->medium == BY_FD) {
    desc.fd = segment.fd;
  } else {
    desc.path = segment.path;
  }
  run_ranks(&j, &desc);
  judge_agreement(&j);
  judge_manners(&j);
  late = others_were_late(&j);
  if (!late && !none_could_attach(&j)) {
    judge_outcome(&j);
    judge_reports(&j);
  } else if (late && last) {
    complain(&j, "others than rank %d were late, or it did not come back, whatever the timeout", s->victim);
  }
  if (s->medium == BY_FILE) {
    if (s->phase != ATTACH && access(path, F_OK) == 0) complain(&j, "%s is left behind", path);
    unlink(path);
  } else {
    mlk_group_segment_close(&segment);
  }
  *complaints += j.complaints;
  munmap(j.shared, sizeof *j.shared);
  free(j.records);
  mlk_close(j.ctx);
  return late;
}

/* Where nobody has to be found late a loss is noticed at once, and the timeout is too long to play a part. */
static int play(const scene *s) {
  const int lateness = s->blow == STOPPED || s->phase == ATTACH || (fails(s) && !returns(s));
  double timeout;
  int complaints = 0;
  if (!lateness) {
    (void)play_once(s, 30, 1, &complaints);
  } else {
    for (timeout = 0.35; timeout < 5 && play_once(s, timeout, timeout > 2.5, &complaints) && !complaints; timeout *= 2)
      continue;
  }
  return complaints ? 1 : 0;
}

/* ---- attacks on what is shared, and other bad luck --------------------------------------------------------------- */

enum { SKIP = 77 };

typedef struct attack {
  mlk_context *ctx;
  mlk_bucket buckets[BUCKETS];
  mlk_group_desc desc; /* of rank 0 of two; shrinks, so that a rank alone is a group after the timeout */
  mlk_group_plan plan;
  char path[128];
  int failures;
} attack;

#define EXPECT(a, condition, ...)                                                                                      \
  do {                                                                                                                 \
    if (!(condition)) {                                                                                                \
      (a)->failures++;                                                                                                 \
      printf("  line %d: %s: ", __LINE__, #condition);                                                                 \
      printf(__VA_ARGS__);                                                                                             \
      printf("\n");                                                                                                    \
    }                                                                                                                  \
  } while (0)

static void attack_init(attack *a) {
  static const scene plain = {ATTACH, KILLED, BY_FD, MLK_LOSS_SHRINKS, 2, 3, 0, 1, 0, 0, MLK_F32, 7, {3000, 64, 1}};
  memset(a, 0, sizeof *a);
  a->ctx = context_of_one();
  a->desc = describe(&plain, a->buckets);
  a->desc.timeout = 0.1;
  if (mlk_group_get_plan(a->ctx, &a->desc, &a->plan) != MLK_OK) exit(2);
  snprintf(a->path, sizeof a->path, "%s/mlk_test_%d", shared_folder(), (int)getpid());
  unlink(a->path);
}

static int open_descriptors(void) {
  DIR *folder = opendir("/proc/self/fd");
  int count = 0;
  while (folder && readdir(folder)) count++;
  if (folder) closedir(folder);
  return count;
}

/* The group is refused with a sentence, soon, and nothing stays open. */
static void refused(attack *a, const mlk_group_desc *desc, const char *what) {
  const int before = open_descriptors();
  const double at = now();
  mlk_group *group = (mlk_group *)a;
  const mlk_status status = mlk_group_open(a->ctx, &group, desc);
  EXPECT(a, status == MLK_ERR_SYSTEM || status == MLK_ERR_ARGUMENT || status == MLK_ERR_REPLICA, "%s gives %s: %s",
         what, mlk_status_name(status), mlk_last_error(a->ctx));
  EXPECT(a, group == NULL, "%s", what);
  EXPECT(a, mlk_last_error(a->ctx)[0], "%s: no sentence", what);
  EXPECT(a, now() - at < 5, "%s: took %.1f s", what, now() - at);
  EXPECT(a, open_descriptors() == before, "%s: %d descriptors instead of %d", what, open_descriptors(), before);
  if (status == MLK_OK) mlk_group_close(group);
}

static void refused_at(attack *a, const char *path, const char *what) {
  mlk_group_desc desc = a->desc;
  desc.path = path;
  refused(a, &desc, what);
}

static void write_file(attack *a, const char *path, uint64_t bytes, int fill, mode_t mode) {
  const int fd = open(path, O_CREAT | O_EXCL | O_RDWR, 0600);
  unsigned char block[4096];
  uint64_t done, state = 99;
  size_t i;
  EXPECT(a, fd >= 0, "%s", path);
  for (done = 0; done < bytes; done += sizeof block) {
    for (i = 0; i < sizeof block; i++) block[i] = (unsigned char)(fill < 0 ? draw(&state) : (uint64_t)fill);
    if (write(fd, block, bytes - done < sizeof block ? (size_t)(bytes - done) : sizeof block) < 0) exit(2);
  }
  if (fchmod(fd, mode) != 0) exit(2);
  close(fd);
}

static uint64_t hash_file(const char *path) {
  const int fd = open(path, O_RDONLY | O_NOFOLLOW);
  uint64_t hash = 1;
  unsigned char block[4096];
  ssize_t got, i;
  if (fd < 0) return 0;
  while ((got = read(fd, block, sizeof block)) > 0)
    for (i = 0; i < got; i++) hash = (hash ^ block[i]) * UINT64_C(0x100000001B3);
  close(fd);
  return hash;
}

static int foreign_contents(attack *a) { /* a name made before by somebody, of the right size */
  uint64_t hash;
  write_file(a, a->path, a->plan.bytes, -1, 0600);
  hash = hash_file(a->path);
  refused_at(a, a->path, "random bytes");
  EXPECT(a, hash_file(a->path) == hash, "somebody else's file was changed");
  unlink(a->path);
  write_file(a, a->path, a->plan.bytes, 0xFF, 0600);
  refused_at(a, a->path, "ones");
  return unlink(a->path);
}

static int symbolic_link(attack *a) {
  char target[160];
  snprintf(target, sizeof target, "%s_target", a->path);
  if (symlink(target, a->path) != 0) exit(2);
  refused_at(a, a->path, "a link to nothing");
  EXPECT(a, access(target, F_OK) != 0, "the link was followed: its target was made");
  write_file(a, target, a->plan.bytes, 0, 0600);
  refused_at(a, a->path, "a link to a good file");
  unlink(target);
  return unlink(a->path);
}

static int other_owner(attack *a) {
  if (geteuid() != 0) {
    printf("skipped: giving a file to another user needs root\n");
    return SKIP;
  }
  write_file(a, a->path, a->plan.bytes, 0, 0600);
  if (chown(a->path, 65534, 65534) != 0) exit(2);
  refused_at(a, a->path, "a file of another user");
  if (chown(a->path, 0, 0) != 0 || seteuid(65534) != 0) exit(2);
  refused_at(a, a->path, "root's file, opened by another user");
  if (seteuid(0) != 0) exit(2);
  return unlink(a->path);
}

static int open_to_others(attack *a) {
  static const mode_t modes[] = {0666, 0660, 0640, 0604, 0622, 0601};
  size_t i;
  for (i = 0; i < sizeof modes / sizeof *modes; i++) {
    write_file(a, a->path, a->plan.bytes, 0, modes[i]);
    refused_at(a, a->path, "a file that others may open");
    unlink(a->path);
  }
  return 0;
}

static int wrong_lengths(attack *a) {
  const uint64_t bytes = a->plan.bytes, lengths[] = {1, 8, bytes / 2, bytes - 1, bytes + 1, bytes + 4096, 2 * bytes};
  size_t i;
  for (i = 0; i < sizeof lengths / sizeof *lengths; i++) {
    write_file(a, a->path, lengths[i], 0, 0600);
    refused_at(a, a->path, "a file of another length");
    unlink(a->path);
  }
  return 0;
}

static int not_a_file(attack *a) {
  if (mkdir(a->path, 0700) != 0) exit(2);
  refused_at(a, a->path, "a folder");
  rmdir(a->path);
  if (mkfifo(a->path, 0600) != 0) exit(2);
  refused_at(a, a->path, "a pipe with a name");
  unlink(a->path);
  refused_at(a, "/dev/null", "/dev/null");
  refused_at(a, "/dev/zero", "/dev/zero");
  return 0;
}

static int odd_paths(attack *a) {
  char path[9000];
  refused_at(a, "", "an empty path");
  refused_at(a, "/nowhere/at/all", "a folder that is not there");
  refused_at(a, "/proc/self/fd/1048000", "a descriptor that is not there");
  memset(path, 'x', sizeof path - 1);
  path[0] = '/';
  path[sizeof path - 1] = 0;
  refused_at(a, path, "a path beyond all limits");
  return 0;
}

static int odd_descriptors(attack *a) {
  mlk_group_desc desc = a->desc;
  int ends[2];
  if (pipe(ends) != 0) exit(2);
  desc.fd = ends[0];
  refused(a, &desc, "a pipe");
  close(ends[0]);
  refused(a, &desc, "a descriptor that was closed");
  close(ends[1]);
  desc.fd = -1;
  refused(a, &desc, "-1");
  desc.fd = open("/dev/null", O_RDWR);
  refused(a, &desc, "/dev/null");
  close(desc.fd);
  write_file(a, a->path, a->plan.bytes, -1, 0600);
  desc.fd = open(a->path, O_RDWR);
  refused(a, &desc, "a file of foreign contents");
  close(desc.fd);
  unlink(a->path);
  return 0;
}

/* Rank 0 is there; rank 1 believes in another group. */
static int other_groups(attack *a) {
  int way;
  for (way = 0; way < 12; way++) {
    mlk_group_desc desc = a->desc;
    mlk_bucket buckets[BUCKETS], first = a->buckets[0];
    mlk_group_segment segment;
    mlk_group *group = NULL;
    char what[40];
    memcpy(buckets, a->buckets, sizeof buckets);
    desc.buckets = buckets;
    desc.rank = 1;
    switch (way) {
    case 0: desc.ranks = 3; break;
    case 1: desc.shares = 4; break;
    case 2: desc.wire = MLK_F16; break;
    case 3: desc.bucket_count--; break;
    case 4: buckets[0].elements--; break;
    case 5: buckets[0] = buckets[1], buckets[1] = first; break;
    case 6: buckets[0].name = "other"; break;
    case 7: buckets[0].name = NULL; break;
    case 8: desc.on_loss = MLK_LOSS_FAILS; break;
    case 9: desc.skip_nonfinite = 1; break;
    case 10: desc.shots = 2; break;
    default: desc.min_ranks = 2;
    }
    if (mlk_group_segment_open(a->ctx, &a->desc, &segment) != MLK_OK) exit(2);
    a->desc.fd = desc.fd = segment.fd;
    EXPECT(a, mlk_group_open(a->ctx, &group, &a->desc) == MLK_OK, "rank 0 alone: %s", mlk_last_error(a->ctx));
    snprintf(what, sizeof what, "another group, way %d", way);
    refused(a, &desc, what);
    desc = a->desc; /* the group itself is none the worse */
    desc.rank = 1;
    {
      mlk_group *second = NULL;
      EXPECT(a, mlk_group_open(a->ctx, &second, &desc) == MLK_OK, "rank 1: %s", mlk_last_error(a->ctx));
      mlk_group_close(second);
    }
    mlk_group_close(group);
    mlk_group_segment_close(&segment);
    a->desc.fd = 0;
  }
  return 0;
}

/* A segment that another version, or nobody, has written into: any of rank 0's first words is different. */
static int spoilt_words(attack *a) {
  mlk_group_segment segment;
  mlk_group_desc desc = a->desc;
  mlk_group *group = NULL;
  uint64_t *words;
  int i, refusals = 0;
  if (mlk_group_segment_open(a->ctx, &a->desc, &segment) != MLK_OK) exit(2);
  words = (uint64_t *)mmap(NULL, segment.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, segment.fd, 0);
  if (words == MAP_FAILED) exit(2);
  a->desc.fd = desc.fd = segment.fd;
  desc.rank = 1;
  EXPECT(a, mlk_group_open(a->ctx, &group, &a->desc) == MLK_OK, "rank 0 alone: %s", mlk_last_error(a->ctx));
  for (i = 0; i < 8; i++) {
    const uint64_t was = words[i];
    mlk_group *second = NULL;
    if (was == 0) continue;
    words[i] = was + 1;
    if (mlk_group_open(a->ctx, &second, &desc) != MLK_OK) refusals++;
    words[i] = was;
    mlk_group_close(second);
  }
  EXPECT(a, refusals >= 4, "only %d of the layout's words are compared", refusals);
  mlk_group_close(group);
  munmap(words, segment.bytes);
  mlk_group_segment_close(&segment);
  return 0;
}

/* A file system with less room than the group needs, where the file can be made: an error, not a signal later. */
static int full_file_system(attack *a) {
  char folder[160], path[200];
  mlk_group_desc desc = a->desc;
  struct stat seen;
  snprintf(folder, sizeof folder, "/tmp/mlk_test_%d_full", (int)getpid());
  snprintf(path, sizeof path, "%s/group", folder);
  if (mkdir(folder, 0700) != 0) exit(2);
  if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
      mount("tmpfs", folder, "tmpfs", 0, "size=16k") != 0) {
    printf("skipped: mounting a small file system: %s\n", strerror(errno));
    rmdir(folder);
    return SKIP;
  }
  desc.path = path;
  {
    mlk_group *group = NULL;
    const mlk_status status = mlk_group_open(a->ctx, &group, &desc);
    EXPECT(a, a->plan.bytes > 16384, "the group is too small for this test");
    EXPECT(a, status == MLK_ERR_MEMORY || status == MLK_ERR_SYSTEM, "%s: %s", mlk_status_name(status),
           mlk_last_error(a->ctx));
    EXPECT(a, group == NULL && stat(path, &seen) != 0, "a file is left behind");
    mlk_group_close(group);
  }
  umount(folder);
  rmdir(folder);
  return 0;
}

static int limits(attack *a) { /* of sizes and of descriptors */
  struct rlimit was, low;
  mlk_group_segment segment;
  mlk_group_desc desc = a->desc;
  mlk_status status;
  const int before = open_descriptors();
  signal(SIGXFSZ, SIG_IGN);
  getrlimit(RLIMIT_FSIZE, &was);
  low = was;
  low.rlim_cur = 4096;
  setrlimit(RLIMIT_FSIZE, &low);
  status = mlk_group_segment_open(a->ctx, &a->desc, &segment);
  EXPECT(a, status == MLK_ERR_MEMORY || status == MLK_ERR_SYSTEM, "%s", mlk_status_name(status));
  desc.path = a->path;
  {
    mlk_group *group = NULL;
    status = mlk_group_open(a->ctx, &group, &desc);
    EXPECT(a, status == MLK_ERR_MEMORY || status == MLK_ERR_SYSTEM, "%s", mlk_status_name(status));
    EXPECT(a, group == NULL && access(a->path, F_OK) != 0, "a file is left behind");
  }
  setrlimit(RLIMIT_FSIZE, &was);
  EXPECT(a, open_descriptors() == before, "descriptors are left open");
  if (mlk_group_segment_open(a->ctx, &a->desc, &segment) != MLK_OK) exit(2);
  getrlimit(RLIMIT_NOFILE, &was);
  low = was;
  low.rlim_cur = (rlim_t)segment.fd + 1;
  setrlimit(RLIMIT_NOFILE, &low);
  {
    mlk_group_segment second;
    mlk_group *group = NULL;
    status = mlk_group_segment_open(a->ctx, &a->desc, &second);
    EXPECT(a, status == MLK_ERR_SYSTEM, "%s", mlk_status_name(status));
    status = mlk_group_open(a->ctx, &group, &desc);
    EXPECT(a, status == MLK_ERR_SYSTEM, "%s", mlk_status_name(status));
    desc.path = NULL;
    desc.fd = segment.fd;
    status = mlk_group_open(a->ctx, &group, &desc);
    EXPECT(a, status == MLK_ERR_SYSTEM, "%s", mlk_status_name(status));
    EXPECT(a, strlen(mlk_last_error(a->ctx)) > 10, "no sentence");
  }
  setrlimit(RLIMIT_NOFILE, &was);
  EXPECT(a, access(a->path, F_OK) != 0, "a file is left behind");
  mlk_group_segment_close(&segment);
  return 0;
}

/* A child that opens a rank and says so, and then waits to be killed. */
static pid_t hold(attack *a, const mlk_group_desc *given, int rank, int *said) {
  int ends[2];
  pid_t pid;
  if (pipe(ends) != 0) exit(2);
  fflush(stdout);
  pid = fork();
  if (pid == 0) {
    mlk_group_desc desc = *given;
    mlk_group *group = NULL;
    mlk_context *ctx = context_of_one();
    char status;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    desc.rank = rank;
    status = (char)mlk_group_open(ctx, &group, &desc);
    if (write(ends[1], &status, 1) != 1) _exit(3);
    for (;;) pause();
  }
  (void)a;
  close(ends[1]);
  *said = ends[0];
  return pid;
}

static int heard(int *said) { /* the status of the child's open; -1: it died before */
  char status = -1;
  if (read(*said, &status, 1) != 1) status = -1;
  close(*said);
  return status;
}

static void end_child(pid_t pid) {
  kill(pid, SIGKILL);
  waitpid(pid, NULL, 0);
}

static int rank_is_taken(attack *a) {
  mlk_group_segment segment;
  mlk_group_desc desc = a->desc;
  mlk_group *group = NULL;
  pid_t child;
  int said;
  if (mlk_group_segment_open(a->ctx, &a->desc, &segment) != MLK_OK) exit(2);
  desc.fd = segment.fd;
  child = hold(a, &desc, 0, &said);
  EXPECT(a, heard(&said) == MLK_OK, "rank 0 alone");
  refused(a, &desc, "a rank that somebody has");
  end_child(child);
  EXPECT(a, mlk_group_open(a->ctx, &group, &desc) == MLK_OK, "the rank of a dead process: %s", mlk_last_error(a->ctx));
  mlk_group_close(group);
  mlk_group_segment_close(&segment);
  return 0;
}

/* All have come, and one closes the group, or is killed, before two others, stopped in mlk_group_open, have looked:
   they go on when they wake. That a rank is attached shows in the first word of its part. */
static int leaves_at_once(attack *a) {
  static const scene three = {PHASES, KILLED, BY_FD, MLK_LOSS_SHRINKS, 3, 3, 0, 1, 0, 2, MLK_F32, 7, {300, 64, 1}};
  int turn, r;
  for (turn = 0; turn < 4; turn++) { /* bit 0: killed, bit 1: MLK_LOSS_FAILS */
    mlk_bucket buckets[BUCKETS];
    mlk_group_desc desc = describe(&three, buckets);
    mlk_group_segment segment;
    mlk_group_plan plan;
    mlk_group *group = NULL;
    const uint64_t *words;
    pid_t children[3];
    int said[3];
    double at;
    desc.on_loss = turn & 2 ? MLK_LOSS_FAILS : MLK_LOSS_SHRINKS;
    desc.timeout = 20;
    desc.rank = 2;
    if (mlk_group_get_plan(a->ctx, &desc, &plan) != MLK_OK) exit(2);
    if (mlk_group_segment_open(a->ctx, &desc, &segment) != MLK_OK) exit(2);
    words = (const uint64_t *)mmap(NULL, segment.bytes, PROT_READ, MAP_SHARED, segment.fd, 0);
    if (words == MAP_FAILED) exit(2);
    desc.fd = segment.fd;
    for (r = 0; r < 2; r++) {
      children[r] = hold(a, &desc, r, &said[r]);
      while (__atomic_load_n(&words[(uint64_t)r * plan.part_bytes / 8], __ATOMIC_ACQUIRE) == 0) nap(200);
      kill(children[r], SIGSTOP);
    }
    if (turn & 1) {
      children[2] = hold(a, &desc, 2, &said[2]);
      EXPECT(a, heard(&said[2]) == MLK_OK, "turn %d: the last to come", turn);
      end_child(children[2]);
    } else {
      EXPECT(a, mlk_group_open(a->ctx, &group, &desc) == MLK_OK, "turn %d: %s", turn, mlk_last_error(a->ctx));
      mlk_group_close(group);
    }
    at = now();
    for (r = 0; r < 2; r++) kill(children[r], SIGCONT);
    for (r = 0; r < 2; r++) EXPECT(a, heard(&said[r]) == MLK_OK, "turn %d, rank %d", turn, r);
    EXPECT(a, now() - at < 10, "turn %d: it took %.1f s", turn, now() - at);
    for (r = 0; r < 2; r++) end_child(children[r]);
    munmap((void *)(uintptr_t)words, segment.bytes);
    mlk_group_segment_close(&segment);
  }
  return 0;
}

static int count_names(const char *prefix) {
  DIR *folder = opendir(shared_folder());
  const struct dirent *entry;
  int count = 0;
  while (folder && (entry = readdir(folder)) != NULL) count += strncmp(entry->d_name, prefix, strlen(prefix)) == 0;
  if (folder) closedir(folder);
  return count;
}

/* All are killed at once: after all have come the name is gone already, and a segment never had one. */
static int nothing_is_left(attack *a) {
  mlk_group_desc desc = a->desc;
  pid_t children[2];
  int said[2], i;
  desc.path = a->path;
  desc.timeout = 20;
  for (i = 0; i < 2; i++) children[i] = hold(a, &desc, i, &said[i]);
  for (i = 0; i < 2; i++) EXPECT(a, heard(&said[i]) == MLK_OK, "rank %d", i);
  EXPECT(a, access(a->path, F_OK) != 0, "the name is still there");
  for (i = 0; i < 2; i++) end_child(children[i]);
  EXPECT(a, count_names(strrchr(a->path, '/') + 1) == 0, "something is left in %s", shared_folder());
  return 0;
}

/* Killed while others were still to come, a file is left; the next group of the same kind takes it over or refuses. */
static int left_by_the_dead(attack *a) {
  mlk_group_desc desc = a->desc;
  pid_t children[2];
  int said[2], i, status[2], tries;
  desc.path = a->path;
  desc.timeout = 20;
  children[0] = hold(a, &desc, 0, &said[0]);
  for (tries = 0; tries < 1000 && access(a->path, F_OK) != 0; tries++) nap(1000);
  nap(20000);
  end_child(children[0]);
  close(said[0]);
  desc.timeout = 2;
  for (i = 0; i < 2; i++) children[i] = hold(a, &desc, i, &said[i]);
  for (i = 0; i < 2; i++) status[i] = heard(&said[i]);
  EXPECT(a, (status[0] == MLK_OK) == (status[1] == MLK_OK), "statuses %d and %d", status[0], status[1]);
  for (i = 0; i < 2; i++) end_child(children[i]);
  unlink(a->path);
  return 0;
}

/* What is made is for its owner only, whatever the umask; a segment cannot be cut off below those who use it. */
static int made_for_the_owner(attack *a) {
  static const mode_t masks[] = {0, 022, 0777};
  mlk_group_segment segment;
  mlk_group_desc desc = a->desc;
  struct stat seen;
  size_t i;
  desc.path = a->path;
  desc.timeout = 20;
  for (i = 0; i < 3; i++) {
    pid_t child;
    int said, tries, found = 0;
    umask(masks[i]);
    child = hold(a, &desc, 0, &said);
    for (tries = 0; tries < 5000 && !found; tries++) {
      nap(1000);
      found = stat(a->path, &seen) == 0 && (seen.st_mode & 0777) == 0600 && (uint64_t)seen.st_size == a->plan.bytes;
    }
    EXPECT(a, found, "umask %o", (unsigned)masks[i]);
    EXPECT(a, !found || seen.st_uid == geteuid(), "umask %o", (unsigned)masks[i]);
    end_child(child);
    close(said);
    unlink(a->path);
    if (mlk_group_segment_open(a->ctx, &a->desc, &segment) != MLK_OK) exit(2);
    EXPECT(a, fstat(segment.fd, &seen) == 0 && (seen.st_mode & 077) == 0, "a segment of mode %o",
           (unsigned)seen.st_mode);
    EXPECT(a, (uint64_t)seen.st_size == segment.bytes && segment.bytes == a->plan.bytes, "its size");
    EXPECT(a, seen.st_nlink == 0, "it has a name");
    EXPECT(a, ftruncate(segment.fd, 0) != 0, "it could be cut off");
    EXPECT(a, ftruncate(segment.fd, (off_t)(2 * segment.bytes)) != 0, "it could be made longer");
    mlk_group_segment_close(&segment);
  }
  umask(022);
  return 0;
}

/* Ranks that are stopped for moments, much shorter than the timeout, at any time: nobody is lost. */
static int short_stops(attack *a) {
  enum { N = 3, STEPS_EACH = 40 };
  static const scene calm = {PHASES, KILLED, BY_FD, MLK_LOSS_SHRINKS, N, 4, 0, 2, 0, 0, MLK_BF16, 5, {20000, 64, 0}};
  mlk_bucket buckets[BUCKETS];
  mlk_group_desc desc = describe(&calm, buckets);
  mlk_group_segment segment;
  judge j;
  uint64_t state = 4711;
  int ends[2], i;
  memset(&j, 0, sizeof j);
  j.s = &calm;
  j.timeout = 30;
  j.ctx = a->ctx;
  j.shared = (board *)mmap(NULL, sizeof *j.shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (j.shared == MAP_FAILED || pipe(ends) != 0 || fcntl(ends[0], F_SETFL, O_NONBLOCK) != 0) exit(2);
  j.shared->end = STEPS_EACH;
  if (mlk_group_segment_open(a->ctx, &desc, &segment) != MLK_OK) exit(2);
  desc.fd = segment.fd;
  for (i = 0; i < N; i++) start(&j, &desc, i, 0, ends);
  while (!all_over(&j)) {
    const pid_t pid = j.pids[draw(&state) % N];
    kill(pid, SIGSTOP);
    nap((long)(draw(&state) % 4000));
    kill(pid, SIGCONT);
    nap((long)(draw(&state) % 3000));
    hear(&j, ends[0]);
    look_after(&j);
  }
  hear(&j, ends[0]);
  judge_agreement(&j);
  for (i = 0; i < N; i++) {
    const record *r = last_of(&j, i);
    EXPECT(a, r && counts(r) && r->report.step == STEPS_EACH && r->report.members == 7, "rank %d: %s", i,
           r ? r->text : "not one step");
  }
  mlk_group_segment_close(&segment);
  return j.complaints ? 1 : 0;
}

static const struct {
  const char *name;
  int (*run)(attack *a);
} attacks[] = {{"foreign_contents", foreign_contents},
               {"symbolic_link", symbolic_link},
               {"other_owner", other_owner},
               {"open_to_others", open_to_others},
               {"wrong_lengths", wrong_lengths},
               {"not_a_file", not_a_file},
               {"odd_paths", odd_paths},
               {"odd_descriptors", odd_descriptors},
               {"other_groups", other_groups},
               {"spoilt_words", spoilt_words},
               {"full_file_system", full_file_system},
               {"limits", limits},
               {"rank_is_taken", rank_is_taken},
               {"leaves_at_once", leaves_at_once},
               {"nothing_is_left", nothing_is_left},
               {"left_by_the_dead", left_by_the_dead},
               {"made_for_the_owner", made_for_the_owner},
               {"short_stops", short_stops}};

static int run_attack(int index) {
  attack a;
  int status;
  attack_init(&a);
  status = attacks[index].run(&a);
  unlink(a.path);
  mlk_close(a.ctx);
  return status == SKIP && !a.failures ? SKIP : status != 0 || a.failures != 0;
}

/* ---- the program ------------------------------------------------------------------------------------------------- */

typedef struct test {
  char name[80];
  int attack; /* -1: a scene */
  scene s;
  pid_t pid;
  double from; /* when it was started */
  int output;  /* what it printed: a file without a name */
} test;

static test tests[SCENES];
static int test_count;

static void add_scene(phase at, int ranks, int victim, blow with, mlk_loss on_loss, uint64_t seed) {
  static const int variants[PHASES] = {3, 3, 1, 1, 3, 3, 1};
  static const mlk_dtype wires[] = {MLK_F32, MLK_BF16, MLK_F16};
  uint64_t state = seed * 1000003 + (uint64_t)test_count;
  test *t = &tests[test_count];
  scene *s = &t->s;
  if (test_count == SCENES) return;
  test_count++;
  memset(t, 0, sizeof *t);
  t->attack = -1;
  s->phase = at;
  s->blow = with;
  s->on_loss = on_loss;
  s->ranks = ranks;
  s->victim = victim;
  s->seed = draw(&state);
  s->medium = at == ATTACH ? (medium)(draw(&state) % 2) : (medium)(draw(&state) % MEDIA);
  s->shares = ranks + (int)(draw(&state) % 3);
  s->shots = (int)(draw(&state) % 3);
  s->variant = (int)(draw(&state) % (uint64_t)variants[at]);
  s->wire = wires[draw(&state) % 3];
  s->min_ranks = on_loss == MLK_LOSS_SHRINKS && draw(&state) % 5 == 0 ? ranks : 0;
  s->elements[0] = at == COPY ? 60000 : at == ANYWHERE ? 20000 : 300;
  s->elements[1] = PARAMS + 40;
  s->elements[2] = (int64_t)(draw(&state) % 3);
  snprintf(t->name, sizeof t->name, "lost/%s%d/%s/ranks%d/rank%d/%s/%s", phase_names[at], s->variant, blow_names[with],
           ranks, victim,
           s->min_ranks                ? "min"
           : on_loss == MLK_LOSS_FAILS ? "fails"
                                       : "shrinks",
           medium_names[s->medium]);
}

static void list_tests(uint64_t seed, int quick) {
  int at, ranks, victim, with, setting, i, index = 0;
  for (i = 0; i < (int)(sizeof attacks / sizeof *attacks); i++) {
    test *t = &tests[test_count++];
    memset(t, 0, sizeof *t);
    t->attack = i;
    snprintf(t->name, sizeof t->name, "shared/%s", attacks[i].name);
  }
  for (at = ATTACH; at <= DETACH; at++)
    for (ranks = 2; ranks <= RANKS; ranks++)
      for (victim = 0; victim < ranks; victim++)
        for (with = 0; with < BLOWS; with++)
          for (setting = 0; setting < 2; setting++)
            if (!quick || index++ % 6 == (int)(seed % 6))
              add_scene((phase)at, ranks, victim, (blow)with, (mlk_loss)setting, seed);
  for (i = 0; i < (quick ? 8 : 72); i++)
    add_scene(ANYWHERE, 2 + i % 3, i / 3 % (2 + i % 3), (blow)(i % BLOWS), (mlk_loss)(i / 2 % 2), seed + 1);
}

static int output_file(void) {
  char name[] = "/tmp/mlk_test_XXXXXX";
  const int fd = mkstemp(name);
  if (fd < 0) exit(2);
  unlink(name);
  return fd;
}

static void launch(test *t) {
  t->output = output_file();
  t->from = now();
  fflush(stdout);
  t->pid = fork();
  if (t->pid < 0) exit(2);
  if (t->pid == 0) {
    int status;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    dup2(t->output, 1);
    dup2(t->output, 2);
    status = t->attack < 0 ? play(&t->s) : run_attack(t->attack);
    fflush(stdout);
    _exit(status);
  }
}

static void print_output(const test *t, int of_skipped) {
  char text[4096];
  ssize_t got;
  lseek(t->output, 0, SEEK_SET);
  while ((got = read(t->output, text, sizeof text - 1)) > 0) {
    text[got] = 0;
    if (of_skipped) {
      char *line = strstr(text, "skipped: ");
      printf("%.*s\n", line ? (int)strcspn(line + 9, "\n") : 0, line ? line + 9 : "");
      return;
    }
    printf("%s", text);
  }
}

static int usage(void) {
  fprintf(stderr, "usage: group_processes [--quick] [--list] [--filter TEXT] [--seed N] [--jobs N]\n");
  return 2;
}

int main(int argc, char **argv) {
  const char *filter = "";
  int quick = 0, list = 0, jobs = 24, running = 0, next = 0, passed = 0, failed = 0, skipped = 0, i;
  uint64_t seed = 1;
  const double from = now();
  for (i = 1; i < argc; i++) {
    if (!strcmp(argv[i], "--quick"))
      quick = 1;
    else if (!strcmp(argv[i], "--list"))
      list = 1;
    else if (!strcmp(argv[i], "--filter") && i + 1 < argc)
      filter = argv[++i];
    else if (!strcmp(argv[i], "--seed") && i + 1 < argc)
      seed = strtoull(argv[++i], NULL, 0);
    else if (!strcmp(argv[i], "--jobs") && i + 1 < argc)
      jobs = atoi(argv[++i]);
    else
      return usage();
  }
  if (jobs < 1) return usage();
  list_tests(seed, quick);
  while (next < test_count || running > 0) {
    int how;
    pid_t pid;
    for (; next < test_count && running < jobs; next++) {
      if (!strstr(tests[next].name, filter)) continue;
      if (list) {
        printf("%s\n", tests[next].name);
        continue;
      }
      launch(&tests[next]);
      running++;
    }
    if (running == 0) break;
    pid = waitpid(-1, &how, 0);
    for (i = 0; i < next; i++) {
      test *t = &tests[i];
      if (t->pid != pid) continue;
      t->pid = 0;
      running--;
      if (now() - t->from > 10) printf("%s took %.1f s\n", t->name, now() - t->from);
      if (WIFEXITED(how) && WEXITSTATUS(how) == 0) {
        passed++;
      } else if (WIFEXITED(how) && WEXITSTATUS(how) == SKIP) {
        skipped++;
        printf("skip %s: ", t->name);
        print_output(t, 1);
      } else {
        failed++;
        printf("FAIL %s (seed %d)%s\n", t->name, (int)seed, WIFSIGNALED(how) ? ": it was killed" : "");
        print_output(t, 0);
      }
      close(t->output);
      fflush(stdout);
    }
  }
  if (list) return 0;
  printf("%d passed, %d failed, %d skipped in %.1f s\n", passed, failed, skipped, now() - from);
  return failed != 0;
}
#endif /* __linux__ */
