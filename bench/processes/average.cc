/* Gradient averaging between processes of this host: mlk_group beside MPI_Allreduce and gloo's allreduce, in the same
   processes, in turns.

     sh bench/processes/run.sh                 builds with what there is (mpicxx, libgloo) and runs 2 and 4 processes
     average RANKS [SECONDS]                   built without MPI: starts RANKS processes itself
     mpirun -n RANKS average 0 [SECONDS]       built with -DBENCH_MPI

   Every process holds a gradient in memory of its own and wants the mean of all in another place. The peers' sums count
   as means: whoever divides the loss by the number of replicas needs no second pass. "mlk" copies its gradient into the
   group's memory, as MPI copies it into its own; "mlk slot" has had it computed there. Results are checked before
   anything is timed: gradients are small integers, so means are exact. A round is as long as its
   slowest process takes. */

#include "mlk.h"

#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <string>
#include <vector>

#ifdef BENCH_MPI
#define OMPI_SKIP_MPICXX 1 /* the C interface only */
#include <mpi.h>
#endif
#ifdef BENCH_GLOO
#include <gloo/allreduce.h>
#include <gloo/math.h>
#include <gloo/rendezvous/context.h>
#include <gloo/rendezvous/file_store.h>
#include <gloo/transport/tcp/device.h>
#endif

enum { MAX_RANKS = MLK_MAX_RANKS, MAX_ROUNDS = 401 };

/* What the processes share beside the contenders' own memory: a barrier, and everybody's time of the round. */
struct Meeting {
  std::atomic<uint32_t> arrived, round;
  std::atomic<uint32_t> failed;
  double seconds[MAX_RANKS];
};

static int rank_of_me, ranks;
static Meeting *meeting;

static void die(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  fprintf(stderr, "average, rank %d: ", rank_of_me);
  vfprintf(stderr, format, arguments);
  fputc('\n', stderr);
  if (meeting) meeting->failed = 1; /* nobody waits for this one */
#ifdef BENCH_MPI
  MPI_Abort(MPI_COMM_WORLD, 1);
#endif
  _exit(1);
}

static double now() {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void meet() {
  const uint32_t round = meeting->round;
  if (meeting->arrived.fetch_add(1) + 1 == (uint32_t)ranks) {
    meeting->arrived = 0;
    meeting->round = round + 1;
    return;
  }
  while (meeting->round == round) {
    if (meeting->failed) _exit(1);
    sched_yield();
  }
}

/* One size of gradient, and what the contenders need for it. */
struct Task {
  int64_t count;
  std::vector<float> gradient, mean;
  mlk_context *ctx;
  mlk_group *group;
#ifdef BENCH_GLOO
  std::shared_ptr<gloo::rendezvous::Context> gloo;
#endif
};

static void mlk_step(Task &t, int copies) {
  const mlk_tensor gradient = mlk_f32(t.gradient.data(), t.count), mean = mlk_f32(t.mean.data(), t.count);
  if (mlk_group_begin(t.group, NULL, NULL) != MLK_OK ||
      mlk_group_publish(t.group, rank_of_me, 0, copies ? &gradient : NULL, copies) != MLK_OK ||
      mlk_group_average(t.group, 0, &mean, 1) != MLK_OK || mlk_group_finish(t.group, NULL) != MLK_OK)
    die("%s", mlk_last_error(t.ctx));
}

static void run_mlk(Task &t) { mlk_step(t, 1); }
static void run_mlk_slot(Task &t) { mlk_step(t, 0); }

#ifdef BENCH_MPI
static void run_mpi(Task &t) {
  MPI_Allreduce(t.gradient.data(), t.mean.data(), (int)t.count, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
}
#endif

#ifdef BENCH_GLOO
static void run_gloo(Task &t) {
  gloo::AllreduceOptions options(t.gloo);
  options.setInput(t.gradient.data(), (size_t)t.count);
  options.setOutput(t.mean.data(), (size_t)t.count);
  options.setReduceFunction(static_cast<void (*)(void *, const void *, const void *, size_t)>(&gloo::sum<float>));
  gloo::allreduce(options);
}

static std::shared_ptr<gloo::rendezvous::Context> gloo_connect(const std::string &folder) {
  gloo::transport::tcp::attr where;
  where.iface = "lo";
  std::shared_ptr<gloo::transport::Device> device = gloo::transport::tcp::CreateDevice(where);
  gloo::rendezvous::FileStore store(folder);
  std::shared_ptr<gloo::rendezvous::Context> context(new gloo::rendezvous::Context(rank_of_me, ranks));
  context->connectFullMesh(store, device);
  return context;
}
#endif

struct Contender {
  const char *name;
  void (*run)(Task &t);
  double factor; /* what its result is over the mean */
  std::vector<double> seconds;
};

static std::vector<Contender> contenders() {
  std::vector<Contender> list;
  const Contender mlk = {"mlk", run_mlk, 1, {}}, slot = {"mlk slot", run_mlk_slot, 1, {}};
  list.push_back(mlk), list.push_back(slot);
#ifdef BENCH_MPI
  const Contender mpi = {"MPI_Allreduce", run_mpi, (double)ranks, {}};
  list.push_back(mpi);
#endif
#ifdef BENCH_GLOO
  const Contender gloo = {"gloo", run_gloo, (double)ranks, {}};
  list.push_back(gloo);
#endif
  return list;
}

static float gradient_of(int rank, int64_t i) { return (float)((i * 7 + rank * 13 + i / 1000) % 17 - 8); }

static void check(Task &t, const Contender &c) {
  std::fill(t.mean.begin(), t.mean.end(), 1e30f);
  c.run(t);
  for (int64_t i = 0; i < t.count; i++) {
    double sum = 0;
    for (int r = 0; r < ranks; r++) sum += (double)gradient_of(r, i);
    if ((double)t.mean[(size_t)i] * ranks != sum * c.factor)
      die("%s: element %lld is %g, but should be %g", c.name, (long long)i, (double)t.mean[(size_t)i],
          sum * c.factor / ranks);
  }
}

static void task_open(Task &t, int64_t count, const std::string &folder) {
  mlk_bucket bucket = {"gradient", count};
  mlk_context_desc context;
  mlk_group_desc desc;
  const std::string path = folder + "/group" + std::to_string((long long)count);
  t.count = count;
  t.gradient.resize((size_t)count), t.mean.resize((size_t)count);
  for (int64_t i = 0; i < count; i++) t.gradient[(size_t)i] = gradient_of(rank_of_me, i);
  memset(&context, 0, sizeof context), memset(&desc, 0, sizeof desc);
  context.threads = 1;
  if (mlk_open(&t.ctx, &context) != MLK_OK) die("mlk_open failed");
  desc.rank = rank_of_me, desc.ranks = ranks, desc.buckets = &bucket, desc.bucket_count = 1;
  desc.path = path.c_str();
  if (mlk_group_open(t.ctx, &t.group, &desc) != MLK_OK) die("%s", mlk_last_error(t.ctx));
  if (mlk_group_begin(t.group, NULL, NULL) != MLK_OK) die("%s", mlk_last_error(t.ctx));
  memcpy(mlk_group_slot(t.group, rank_of_me, 0).data, t.gradient.data(), (size_t)count * sizeof(float));
  const mlk_tensor mean = mlk_f32(t.mean.data(), count);
  if (mlk_group_publish(t.group, rank_of_me, 0, NULL, 0) != MLK_OK ||
      mlk_group_average(t.group, 0, &mean, 1) != MLK_OK || mlk_group_finish(t.group, NULL) != MLK_OK)
    die("%s", mlk_last_error(t.ctx));
}

static double round_of(Task &t, const Contender &c) {
  meet();
  const double start = now();
  c.run(t);
  meeting->seconds[rank_of_me] = now() - start;
  meet();
  return *std::max_element(meeting->seconds, meeting->seconds + ranks);
}

static void measure(Task &t, double seconds) {
  std::vector<Contender> list = contenders();
  double own = 0;
  for (size_t i = 0; i < list.size(); i++) check(t, list[i]);
  meet();
  size_t rounds = 0;
  for (double spent = 0; (spent < seconds * (double)list.size() || rounds < 5) && rounds < MAX_ROUNDS; rounds++)
    for (size_t i = 0; i < list.size(); i++) { /* each round begins with another contender */
      Contender &c = list[(i + rounds) % list.size()];
      const double took = round_of(t, c); /* the same number in every process, and so the same number of rounds */
      c.seconds.push_back(took);
      spent += took;
    }
  for (size_t i = 0; i < list.size() && rank_of_me == 0; i++) {
    std::vector<double> &s = list[i].seconds;
    std::sort(s.begin(), s.end());
    const double median = s[s.size() / 2];
    if (i == 0) own = median;
    printf("%5d %10.2f  %-14s %10.3f ms %10.3f ms %8.2fx   %d\n", ranks, (double)t.count * 4 / 1048576, list[i].name,
           median * 1e3, s[0] * 1e3, median / own, (int)rounds);
  }
  if (rank_of_me == 0) fflush(stdout);
}

static void work(const std::string &folder, double seconds) {
  static const int64_t counts[] = {(int64_t)1 << 14, (int64_t)1 << 18, (int64_t)1 << 22, (int64_t)1 << 24};
#ifdef BENCH_GLOO
  const std::shared_ptr<gloo::rendezvous::Context> gloo = gloo_connect(folder);
#endif
  if (rank_of_me == 0)
    printf("%5s %10s  %-14s %13s %13s %9s   %s\n", "ranks", "MiB", "contender", "median", "best", "over mlk", "rounds");
  for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
    Task t;
    task_open(t, counts[i], folder);
#ifdef BENCH_GLOO
    t.gloo = gloo;
#endif
    measure(t, seconds);
    meet(); /* nobody leaves before all are done */
    mlk_group_close(t.group);
    mlk_close(t.ctx);
  }
}

/* The page in which the processes meet: a file in the folder, so that processes that were started by others find it. */
static void meeting_open(const std::string &folder) {
  FILE *f = fopen((folder + "/meeting").c_str(), "r+");
  if (!f) die("cannot open %s/meeting", folder.c_str());
  void *page = mmap(NULL, sizeof(Meeting), PROT_READ | PROT_WRITE, MAP_SHARED, fileno(f), 0);
  if (page == MAP_FAILED) die("mmap failed");
  fclose(f);
  meeting = static_cast<Meeting *>(page);
}

static std::string folder_make() {
  char name[] = "/dev/shm/mlk-bench-XXXXXX";
  if (!mkdtemp(name)) die("cannot make a folder in /dev/shm");
  FILE *f = fopen((std::string(name) + "/meeting").c_str(), "w");
  if (!f || ftruncate(fileno(f), sizeof(Meeting)) != 0 || fclose(f) != 0) die("cannot write in %s", name);
  return name;
}

static void folder_remove(const std::string &folder) {
  const std::string command = "rm -rf '" + folder + "'";
  if (system(command.c_str()) != 0) fprintf(stderr, "average: %s is left behind\n", folder.c_str());
}

int main(int argc, char **argv) {
  const double seconds = argc > 2 ? atof(argv[2]) : 1;
  int status = 0;
#ifdef BENCH_MPI
  char name[64] = "";
  MPI_Init(&argc, &argv);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank_of_me);
  MPI_Comm_size(MPI_COMM_WORLD, &ranks);
  if (rank_of_me == 0) snprintf(name, sizeof name, "%s", folder_make().c_str());
  MPI_Bcast(name, sizeof name, MPI_CHAR, 0, MPI_COMM_WORLD);
  meeting_open(name);
  work(name, seconds);
  MPI_Barrier(MPI_COMM_WORLD);
  if (rank_of_me == 0) folder_remove(name);
  MPI_Finalize();
#else
  ranks = argc > 1 ? atoi(argv[1]) : 2;
  if (ranks < 1 || ranks > MAX_RANKS) die("%d processes: 1 to %d are possible", ranks, (int)MAX_RANKS);
  const std::string folder = folder_make();
  meeting_open(folder);
  for (rank_of_me = 0; rank_of_me < ranks; rank_of_me++)
    if (fork() == 0) {
      work(folder, seconds);
      exit(0);
    }
  for (int i = 0; i < ranks; i++) {
    int ended;
    wait(&ended);
    status |= !WIFEXITED(ended) || WEXITSTATUS(ended);
  }
  folder_remove(folder);
#endif
  return status;
}
