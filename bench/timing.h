/* One row: the contenders are checked, then timed in turns, and the result is kept for the table, the files and the
   summary. */
#ifndef BENCH_TIMING_H
#define BENCH_TIMING_H

#define MAX_CONTENDERS 14
#define MAX_SAMPLES    201
#define MAX_RESULTS    4096
#define NAME_CHARS     160
#define ROW_SECONDS    20 /* no further round is begun after this long */
#define NOISY_ROUNDS   4  /* a row that spreads more than --max-noise gets as many times its rounds at most */

/* One way to do the row's operation. Contenders of MLK have peer -1. The first contender of a row is "mlk". */
typedef struct contender {
  char name[32];
  int peer;
  void (*call)(void *arg);                       /* one operation into the row's output */
  mlk_status (*plan)(void *arg, mlk_plan *plan); /* of MLK's: what the library says of that call beforehand */
  void *arg;
  double flops;     /* 0: the row's; of a yardstick, which does other work than the row, its own */
  int tensor_cores; /* its products are a device's tensor cores': faster than the ceiling of multiply-adds */
  char wrong[192];  /* "" when the result was right */
  int64_t iterations;
  int samples;
  double sample[MAX_SAMPLES]; /* seconds per operation */
  double median, best, noise; /* noise: the middle half of the samples, as a share of the median */
  mlk_plan planned;           /* zeros where there is no plan */
} contender;

typedef struct row {
  char name[NAME_CHARS], problem[PROBLEM_CHARS], dtype[16];
  int threads, repeats; /* repeats: how often a model does it, of batches */
  mlk_isa isa;
  int cold;            /* operands are in no cache: those of the row rotate, or */
  int flushed;         /* the caches are emptied before each sample, which then is one call */
  double flops, bytes; /* of one operation; bytes 0: it stays in cache, or does not matter */
  double footprint; /* bytes of the working set when bytes are held against a pass over as much memory, cached or not */
  int reads_only;   /* that pass reads; otherwise it copies */
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
  char row[NAME_CHARS], name[32], problem[PROBLEM_CHARS], dtype[16], wrong[192], variant[32];
  mlk_isa isa;
  int peer, threads, repeats, samples, busy, noisy, cold;
  int64_t iterations;
  double median, best, noise, flops, bytes, share, in_row_fma, in_row_read, versus_best_peer;
  double predicted, workspace; /* seconds and bytes of the plan; 0 where there is none */
  double of_yardstick;         /* the row's speed over the yardstick's; 0: the row has none */
  double *sample;              /* seconds, in the order in which they were taken */
  char bound;                  /* 'c' compute, 'm' memory: the nearer ceiling; ' ' unknown */
  int yardstick;               /* see contender.flops */
  int near; /* in_row_read is over the row's footprint: 'r' read, 'c' copied (on a device always), 's' streams; 0: read
               out of cache */
} result;

static result *results;
static int result_count, failures;

static void row_begin(row *r, const char *name, const char *problem_text) {
  memset(r, 0, sizeof *r);
  text(r->name, sizeof r->name, "%s", name);
  text(r->problem, sizeof r->problem, "%s", problem_text);
  text(r->dtype, sizeof r->dtype, "f32");
  r->threads = 1, r->isa = opt.isa, r->operations = 1;
}

static void row_add(row *r, const char *name, int peer_index, void (*call)(void *), void *arg) {
  contender *c;
  if (peer_index >= 0 && !peers[peer_index].present) return;
  if (r->count == MAX_CONTENDERS) die("%s: too many contenders", r->name);
  c = &r->list[r->count++];
  text(c->name, sizeof c->name, "%s", name);
  c->peer = peer_index, c->call = call, c->arg = arg;
}

static void row_add_mlk(row *r, const char *name, void (*call)(void *), mlk_status (*plan)(void *, mlk_plan *),
                        void *arg) {
  row_add(r, name, -1, call, arg);
  r->list[r->count - 1].plan = plan;
}

/* Of a contender whose result is of 16 bits or by tf32. */
static void row_by_tensor_cores(row *r) { r->list[r->count - 1].tensor_cores = opt.cuda; }

/* On a device calls are queued, and the time ends when the last one is done. */
static double time_calls(const contender *c, int64_t iterations) {
  double start;
  int64_t i;
  device_wait();
  start = now();
  for (i = 0; i < iterations; i++) c->call(c->arg);
  device_wait();
  return (now() - start) / (double)iterations;
}

/* Operations per sample, so that a sample takes about a millisecond; on a device four, beside which waiting for it is
   little. */
static void calibrate(contender *c, int once) {
  const double aim = (opt.quick ? 0.0005 : 0.001) * (opt.cuda ? 4 : 1);
  double seconds = time_calls(c, 1);
  c->iterations = 1;
  while (!once && seconds * (double)c->iterations < aim) {
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

/* The ceilings as they were during a row: one probe of each after every round. */
typedef struct row_probes {
  double fma[MAX_SAMPLES], read[MAX_SAMPLES];
  int rounds;
} row_probes;

/* No result, no time. Returns the seconds of a round. */
static double row_check_all(row *r) {
  double seconds = 0;
  int i;
  for (i = 0; i < r->count; i++) {
    contender *c = &r->list[i];
    if (c->plan && c->plan(c->arg, &c->planned) != MLK_OK) memset(&c->planned, 0, sizeof c->planned);
    r->spoil(r->arg);
    operands_up();
    c->call(c->arg);
    operands_down();
#ifdef BENCH_BREAK_RESULTS /* the name of a row: tests/test_bench.sh wants to see that a wrong result is found */
    if (i == 0 && strcmp(r->name, BENCH_BREAK_RESULTS) == 0) r->spoil(r->arg);
#endif
    r->check(r->arg, c, c->wrong, sizeof c->wrong);
    if (c->wrong[0] && c->peer < 0) failures++;
    if (c->wrong[0]) continue;
    wait_until_quiet();
    calibrate(c, r->flushed);
    seconds += c->median * (double)c->iterations * (r->threads > 1 ? 2 : 1);
    if (r->flushed) seconds += cache_flush(r->threads);
  }
  return seconds;
}

static void row_sample(row *r, contender *c) {
  if (r->flushed) cache_flush(r->threads);
  if (r->threads > 1) wait_until_quiet();
  /* Wakes this contender's threads and brings its code and data back; calls of a tenth of a second carry that
     themselves. */
  if (!r->flushed && c->median < 0.1) c->call(c->arg);
  c->sample[c->samples++] = time_calls(c, c->iterations);
}

/* The ceilings as they are right now: on a shared machine they move, and shares are taken of what was to be had. */
static void row_probe(const row *r, row_probes *p, int with_fma) {
  const int j = p->rounds;
  p->rounds = j + 1;
  if (bench_device.ctx) {
    if (r->bytes > 0) p->read[j] = device_copy_rate(r->footprint > 0 ? r->footprint : (double)probe_bytes);
    return;
  }
  if (r->threads > 1) wait_until_quiet(), fma_rate(r->isa, r->threads, 0.0002);
  if (with_fma) p->fma[j] = fma_rate(r->isa, r->threads, 0.0005);
  if (r->footprint > 0)
    p->read[j] = r->streams ? streams_rate(r->threads, r->streams, r->in_place, (size_t)r->footprint)
                            : near_rate(r->threads, (size_t)r->footprint, !r->reads_only);
  else if (r->bytes > 0)
    p->read[j] = greater(read_rate(r->threads, 0.125, 0), read_rate(r->threads, 0.125, 1));
}

/* The widest spread among the contenders that are not yardsticks. */
static double row_noise(row *r) {
  double noise = 0;
  int i;
  for (i = 0; i < r->count; i++) {
    summarize(&r->list[i]);
    if (!r->list[i].wrong[0] && r->list[i].flops <= 0) noise = greater(noise, r->list[i].noise);
  }
  return noise;
}

/* A device that has waited for the checks on the host runs at lower clocks: it works for a tenth of a second, or twice
   --min-time where that is less, before it is timed. */
static void row_warm_device(row *r) {
  const double start = now(), seconds = 2 * opt.min_time < 0.1 ? 2 * opt.min_time : 0.1;
  int i = 0;
  while (bench_device.ctx && i < r->count && now() - start < seconds)
    if (r->list[i].wrong[0])
      i++;
    else
      time_calls(&r->list[i], r->list[i].iterations);
}

/* Rounds of a sample of each contender, as many as fit --min-time; again as many, up to a limit, while they spread too
   much. */
static void row_time(row *r, double round_seconds, row_probes *p) {
  const bench_ceiling *ceiling = ceiling_of(r->isa, r->threads);
  const int with_fma = ceiling && ceiling->fma_own > 0, most = opt.quick ? 15 : 51;
  const double start = now();
  int rounds = round_seconds > 0 ? (int)(opt.min_time * r->count / round_seconds) : 0, limit, i;
  rounds = rounds < 3 ? 3 : rounds > most ? most : rounds;
  limit = NOISY_ROUNDS * rounds < MAX_SAMPLES ? NOISY_ROUNDS * rounds : MAX_SAMPLES;
  row_warm_device(r);
  while (p->rounds < rounds) {
    for (i = 0; i < r->count; i++) { /* each round begins with another contender */
      contender *c = &r->list[(i + p->rounds) % r->count];
      if (!c->wrong[0]) row_sample(r, c);
    }
    row_probe(r, p, with_fma);
    if (now() - start > ROW_SECONDS) break; /* a slow machine, or one that others use */
    if (p->rounds == rounds && rounds < limit && row_noise(r) > opt.max_noise)
      rounds = 2 * rounds < limit ? 2 * rounds : limit;
  }
}

/* The ceilings of a row, and the least seconds that the nearer one allows. */
typedef struct row_roof {
  double fma, read, seconds;
  int busy;
} row_roof;

/* The best of the row's probes is the ceiling; a median far below says that others took the machine away meanwhile. */
static row_roof row_roof_of(const row *r, row_probes *p) {
  const bench_ceiling *ceiling = ceiling_of(r->isa, r->threads);
  row_roof roof;
  memset(&roof, 0, sizeof roof);
  if (ceiling && ceiling->fma_own > 0) {
    const double usual = median_of(p->fma, p->rounds), best = p->fma[p->rounds - 1];
    roof.busy = usual < 0.8 * best || best < 0.7 * ceiling->fma_own;
    roof.fma = best < 0.7 * ceiling->fma_own ? ceiling->fma_own : best;
  } else {
    roof.fma = ceiling ? ceiling->fma_mlk : 0;
  }
  if (r->bytes > 0) {
    median_of(p->read, p->rounds);
    roof.read = p->read[p->rounds - 1];
    if (ceiling && r->footprint <= 0 && roof.read < 0.7 * ceiling->read_own)
      roof.read = ceiling->read_own, roof.busy = 1;
  }
  return roof;
}

/* The least seconds of a contender, and by which ceiling. */
static row_roof row_roof_for(const row *r, const contender *c, const row_roof *all) {
  row_roof roof = *all;
  if (c->tensor_cores) roof.fma = 0;
  if (roof.fma > 0 && r->footprint <= 0) roof.seconds = r->flops / roof.fma;
  if (roof.read > 0 && r->bytes / roof.read > roof.seconds) roof.seconds = r->bytes / roof.read;
  return roof;
}

/* Seconds of the fastest peer that is right; 0 without one. */
static double row_best_peer(const row *r) {
  double best = 0;
  int i;
  for (i = 0; i < r->count; i++)
    if (r->list[i].peer >= 0 && !r->list[i].wrong[0] && (best == 0 || r->list[i].median < best))
      best = r->list[i].median;
  return best;
}

static double row_yardstick(const row *r) {
  double rate = 0;
  int i;
  for (i = 0; i < r->count; i++)
    if (r->list[i].flops > 0 && !r->list[i].wrong[0]) rate = r->list[i].flops / r->list[i].median;
  return rate;
}

static void row_keep(const row *r, const contender *c, const row_roof *all) {
  const row_roof of_it = row_roof_for(r, c, all), *roof = &of_it;
  const double best_peer = row_best_peer(r), yardstick_rate = row_yardstick(r);
  result *out;
  if (result_count == MAX_RESULTS) die("more than %d results", MAX_RESULTS);
  out = &results[result_count++];
  memset(out, 0, sizeof *out);
  memcpy(out->row, r->name, sizeof out->row), memcpy(out->name, c->name, sizeof out->name);
  memcpy(out->problem, r->problem, sizeof out->problem), memcpy(out->dtype, r->dtype, sizeof out->dtype);
  memcpy(out->wrong, c->wrong, sizeof out->wrong);
  out->peer = c->peer, out->threads = r->threads, out->repeats = r->repeats, out->isa = r->isa, out->busy = roof->busy,
  out->cold = r->cold;
  out->flops = r->flops, out->bytes = r->bytes, out->in_row_fma = roof->fma, out->in_row_read = roof->read;
  out->yardstick = c->flops > 0;
  out->near = bench_device.ctx    ? (r->bytes > 0 ? 'c' : 0)
              : r->footprint <= 0 ? 0
              : r->streams        ? 's'
              : r->reads_only     ? 'r'
                                  : 'c';
  out->bound = roof->seconds <= 0 ? ' ' : roof->read > 0 && r->bytes / roof->read >= roof->seconds ? 'm' : 'c';
  out->predicted = c->planned.seconds, out->workspace = (double)c->planned.workspace_bytes;
  text(out->variant, sizeof out->variant, "%s", c->planned.variant ? c->planned.variant : "");
  if (out->wrong[0]) return;
  out->sample = (double *)malloc((size_t)c->samples * sizeof(double));
  if (!out->sample) die("no memory");
  memcpy(out->sample, c->sample, (size_t)c->samples * sizeof(double));
  out->samples = c->samples, out->iterations = c->iterations;
  out->median = c->median, out->best = c->best, out->noise = c->noise, out->noisy = c->noise > opt.max_noise;
  out->share = roof->seconds / c->median;
  if (c->flops > 0) out->flops = c->flops, out->share = roof->fma > 0 ? c->flops / roof->fma / c->median : 0;
  if (c->flops <= 0 && yardstick_rate > 0) out->of_yardstick = r->flops / c->median / yardstick_rate;
  out->versus_best_peer = best_peer > 0 ? best_peer / c->median : 0;
}

static void report_row(const row *r, const result *first, int count);

static void row_run(row *r) {
  static row_probes probes;
  const int first_result = result_count;
  row_roof roof;
  int i;
  bench_device.row = r->name;
  peers_set_threads(r->threads);
  wait_until_quiet();
  probes.rounds = 0;
  row_time(r, row_check_all(r), &probes);
  roof = row_roof_of(r, &probes);
  for (i = 0; i < r->count; i++) summarize(&r->list[i]);
  for (i = 0; i < r->count; i++) row_keep(r, &r->list[i], &roof);
  report_row(r, results + first_result, r->count);
  row_free_all();
}

#endif
