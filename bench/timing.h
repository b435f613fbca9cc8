/* One row: the contenders are checked, then timed in turns, and the result is kept for the table, the JSON and the summary. */
#ifndef BENCH_TIMING_H
#define BENCH_TIMING_H

#define MAX_CONTENDERS 14
#define MAX_SAMPLES    201
#define MAX_RESULTS    4096
#define ROW_SECONDS    20 /* no further round is begun after this long */

/* One way to do the row's operation. Contenders of MLK have peer -1. The first contender of a row is "mlk". */
typedef struct contender {
  char name[32];
  int peer;
  void (*call)(void *arg); /* one operation into the row's output */
  void *arg;
  double flops;    /* 0: the row's; of a yardstick, which does other work than the row, its own */
  char wrong[192]; /* "" when the result was right */
  int64_t iterations;
  int samples;
  double sample[MAX_SAMPLES]; /* seconds per operation */
  double median, best, noise; /* noise: the middle half of the samples, as a share of the median */
} contender;

typedef struct row {
  char name[96];
  int quick; /* part of --quick */
  int threads;
  mlk_isa isa;
  double flops, bytes; /* of one operation; bytes 0: it stays in cache, or does not matter */
  double
      footprint; /* bytes of the working set when bytes are to be held against a pass over as much memory, in cache or not */
  int reads_only;        /* that pass reads; otherwise it copies */
  int streams, in_place; /* not 0: it reads so many vectors side by side and writes one more, or all of them */
  int64_t operations;    /* operations in one call, 1 but for batches */
  /* check looks at the output of the call just made and says what is wrong with it, or leaves why empty. */
  void (*spoil)(void *arg);
  void (*check)(void *arg, const contender *who, char *why, size_t size);
  void *arg;
  contender list[MAX_CONTENDERS];
  int count;
} row;

/* What is left of a row's contender. */
typedef struct result {
  char row[96], name[32];
  int peer, threads, samples, wrong, busy;
  int64_t iterations;
  double median, best, noise, flops, bytes, share, in_row_fma, in_row_read, versus_best_peer;
  double of_yardstick; /* the row's speed over the yardstick's; 0: the row has none */
  char bound;          /* 'c' compute, 'm' memory: the nearer ceiling; ' ' unknown */
  int yardstick;       /* see contender.flops */
  int near; /* in_row_read is of a pass over the row's own footprint: 'r' reading it, 'c' copying it; 's': streams; 0: reading out of cache */
} result;

static result *results;
static int result_count, failures, rows_seen;

/* A context per thread count, instruction set and numerics, kept open for the whole run. */
static mlk_context *context(int threads, mlk_isa isa, mlk_numerics numerics) {
  static struct {
    int threads;
    mlk_isa isa;
    mlk_numerics numerics;
    mlk_context *ctx;
  } open[32];
  static int count;
  mlk_context_desc desc;
  int i;
  for (i = 0; i < count; i++)
    if (open[i].threads == threads && open[i].isa == isa && open[i].numerics == numerics) return open[i].ctx;
  if (count == 32) die("too many contexts");
  memset(&desc, 0, sizeof desc);
  desc.threads = threads, desc.isa = isa, desc.numerics = numerics;
  if (mlk_open(&open[count].ctx, &desc) != MLK_OK) die("mlk_open(%d threads, %s) failed", threads, mlk_isa_name(isa));
  open[count].threads = threads, open[count].isa = isa, open[count].numerics = numerics;
  return open[count++].ctx;
}

/* Whether the row is to be run. --list prints its name instead. */
static int row_wanted(const char *name, int quick) {
  if (!name_wanted(name) || (opt.quick && !quick)) return 0;
  rows_seen++;
  if (opt.list) puts(name);
  return !opt.list;
}

static row *row_begin(row *r, const char *name, int threads, mlk_isa isa) {
  memset(r, 0, sizeof *r);
  text(r->name, sizeof r->name, "%s", name);
  r->threads = threads, r->isa = isa, r->operations = 1;
  return r;
}

static void row_add(row *r, const char *name, int peer_index, void (*call)(void *), void *arg) {
  contender *c;
  if (peer_index >= 0 && !peers[peer_index].present) return;
  if (r->count == MAX_CONTENDERS) die("%s: too many contenders", r->name);
  c = &r->list[r->count++];
  text(c->name, sizeof c->name, "%s", name);
  c->peer = peer_index, c->call = call, c->arg = arg;
}

static double time_calls(const contender *c, int64_t iterations) {
  const double start = now();
  int64_t i;
  for (i = 0; i < iterations; i++) c->call(c->arg);
  return (now() - start) / (double)iterations;
}

/* Operations per sample, so that a sample takes about a millisecond. */
static void calibrate(contender *c) {
  const double aim = opt.quick ? 0.0005 : 0.001;
  double seconds = time_calls(c, 1);
  c->iterations = 1;
  while (seconds * (double)c->iterations < aim) {
    const double wanted = aim / (seconds > 1e-9 ? seconds : 1e-9);
    c->iterations = wanted > 16 * (double)c->iterations ? 16 * c->iterations : (int64_t)wanted + 1;
    seconds = time_calls(c, c->iterations);
  }
  c->median = seconds; /* until the samples are in */
}

static void summarize(contender *c) {
  double sorted[MAX_SAMPLES];
  if (c->samples == 0) return;
  memcpy(sorted, c->sample, (size_t)c->samples * sizeof *sorted);
  qsort(sorted, (size_t)c->samples, sizeof *sorted, compare_doubles);
  c->median = quantile(sorted, c->samples, 0.5);
  c->best = sorted[0];
  c->noise = c->median > 0 ? (quantile(sorted, c->samples, 0.75) - quantile(sorted, c->samples, 0.25)) / c->median : 0;
}

/* The median of values, which come back sorted. */
static double median_of(double *values, int count) {
  qsort(values, (size_t)count, sizeof *values, compare_doubles);
  return quantile(values, count, 0.5);
}

static void report_row(const row *r, const result *first, int count);

static void row_run(row *r) {
  static double probe_fma[MAX_SAMPLES], probe_read[MAX_SAMPLES];
  const bench_ceiling *ceiling = ceiling_find(r->isa, r->threads);
  const int probes_fma = ceiling && ceiling->fma_own > 0;
  double round_seconds = 0, fma, read = 0, roof = 0, best_peer = 0, yardstick_rate = 0;
  const double start = now();
  int rounds, i, j, busy = 0, first_result = result_count;
  peers_set_threads(r->threads);
  wait_until_quiet();
  for (i = 0; i < r->count; i++) { /* no result, no time */
    contender *c = &r->list[i];
    r->spoil(r->arg);
    c->call(c->arg);
    r->check(r->arg, c, c->wrong, sizeof c->wrong);
    if (c->wrong[0] && c->peer < 0) failures++;
    if (c->wrong[0]) continue;
    wait_until_quiet();
    calibrate(c);
    round_seconds += c->median * (double)c->iterations * (r->threads > 1 ? 2 : 1);
  }
  rounds = round_seconds > 0 ? (int)(opt.min_time * r->count / round_seconds) : 0;
  if (rounds < 3) rounds = 3;
  if (rounds > (opt.quick ? 15 : 51)) rounds = opt.quick ? 15 : 51;
  for (j = 0; j < rounds; j++) {
    for (i = 0; i < r->count; i++) { /* each round begins with another contender */
      contender *c = &r->list[(i + j) % r->count];
      if (c->wrong[0]) continue;
      if (r->threads > 1) wait_until_quiet();
      /* Wakes this contender's threads and brings its code and data back; calls of a tenth of a second carry that themselves. */
      if (c->median < 0.1) c->call(c->arg);
      c->sample[c->samples++] = time_calls(c, c->iterations);
    }
    /* The ceilings as they are right now: on a shared machine they move, and shares are taken of what was to be had. */
    if (r->threads > 1) wait_until_quiet(), fma_rate(r->isa, r->threads, 0.0002);
    if (probes_fma) probe_fma[j] = fma_rate(r->isa, r->threads, 0.0005);
    if (r->footprint > 0)
      probe_read[j] = r->streams ? streams_rate(r->threads, r->streams, r->in_place, (size_t)r->footprint)
                                 : near_rate(r->threads, (size_t)r->footprint, !r->reads_only);
    else if (r->bytes > 0)
      probe_read[j] = greater(read_rate(r->threads, 0.125, 0), read_rate(r->threads, 0.125, 1));
    if (now() - start > ROW_SECONDS) rounds = j + 1; /* a slow machine, or one that others use */
  }
  /* The best of the row's probes is the ceiling; a median far below says that others took the machine away meanwhile. */
  if (probes_fma) {
    busy = median_of(probe_fma, rounds) < 0.8 * probe_fma[rounds - 1] || probe_fma[rounds - 1] < 0.7 * ceiling->fma_own;
    fma = probe_fma[rounds - 1] < 0.7 * ceiling->fma_own ? ceiling->fma_own : probe_fma[rounds - 1];
  } else {
    fma = ceiling ? ceiling->fma_mlk : 0;
  }
  if (r->bytes > 0) {
    median_of(probe_read, rounds);
    read = probe_read[rounds - 1];
    if (ceiling && r->footprint <= 0 && read < 0.7 * ceiling->read_own) read = ceiling->read_own, busy = 1;
  }
  if (fma > 0 && r->footprint <= 0) roof = r->flops / fma;
  if (read > 0 && r->bytes / read > roof) roof = r->bytes / read;
  for (i = 0; i < r->count; i++) summarize(&r->list[i]);
  for (i = 0; i < r->count; i++)
    if (r->list[i].peer >= 0 && !r->list[i].wrong[0] && (best_peer == 0 || r->list[i].median < best_peer))
      best_peer = r->list[i].median;
  for (i = 0; i < r->count; i++)
    if (r->list[i].flops > 0 && !r->list[i].wrong[0]) yardstick_rate = r->list[i].flops / r->list[i].median;
  for (i = 0; i < r->count; i++) {
    const contender *c = &r->list[i];
    result *out;
    if (result_count == MAX_RESULTS) die("more than %d results", MAX_RESULTS);
    out = &results[result_count++];
    memset(out, 0, sizeof *out);
    memcpy(out->row, r->name, sizeof out->row);
    memcpy(out->name, c->name, sizeof out->name);
    out->peer = c->peer, out->threads = r->threads, out->wrong = c->wrong[0] != 0, out->busy = busy;
    out->flops = r->flops, out->bytes = r->bytes, out->in_row_fma = fma, out->in_row_read = read;
    out->yardstick = c->flops > 0;
    out->near = r->footprint <= 0 ? 0 : r->streams ? 's' : r->reads_only ? 'r' : 'c';
    out->bound = roof <= 0 ? ' ' : read > 0 && r->bytes / read >= roof ? 'm' : 'c';
    if (out->wrong) continue;
    out->samples = c->samples, out->iterations = c->iterations;
    out->median = c->median, out->best = c->best, out->noise = c->noise;
    out->share = roof / c->median;
    if (c->flops > 0) out->flops = c->flops, out->share = fma > 0 ? c->flops / fma / c->median : 0;
    if (c->flops <= 0 && yardstick_rate > 0) out->of_yardstick = r->flops / c->median / yardstick_rate;
    out->versus_best_peer = best_peer > 0 ? best_peer / c->median : 0;
  }
  report_row(r, results + first_result, r->count);
  row_free_all();
}

#endif
