/* What the page is about: measurements of any number of files, sorted into series (a machine and an instruction
   set), families and rows. Reads the form of Google Benchmark that bench writes, and the shorter one of
   bench/gpu.cu; only a row's name and time are needed. */
#ifndef BENCH_PAGE_MODEL_H
#define BENCH_PAGE_MODEL_H

#include "json_read.h"

#include "verdict.h"

enum { FAMILIES = 8, MAX_SERIES = 64, MAX_CEILINGS = 256 };
static const char *const family_names[FAMILIES] = {"matmul", "knn",       "distances", "conv",
                                                   "glue",   "attention", "average",   "other"};

/* Columns of the page: what ran on one machine with one choice of instruction set, from one file or several. */
typedef struct series {
  const char *machine, *isa, *device, *date;
  char label[160];
  const json_document *document; /* the newest file, whose context is shown */
  const json_value *context;
  int files, threads; /* threads: what "all" means there */
} series;

typedef struct roof {
  int series, threads;
  const char *isa;
  double flops, read, copy; /* per second; 0: unknown */
} roof;

/* One contender of one row. Times in seconds, 0 for what a file does not say. */
typedef struct measurement {
  const char *name, *row, *contender, *message, *command, *variant, *isa, *dtype, *bound;
  char *key; /* the row's name under which machines are compared: /t2 of a machine of two threads is /tN */
  int series, family, threads, order, row_order; /* order: as they came; row_order: that of the row's first */
  int peer, main, wrong, noisy, busy, cold;
  double time, best, noise, flops, bytes, share, versus, predicted, workspace, ceiling_fma, ceiling_memory;
  double *samples; /* in nanoseconds; NULL where the file has none */
  int sample_count;
} measurement;

typedef struct report_data {
  series series[MAX_SERIES];
  roof roofs[MAX_CEILINGS];
  measurement *list;
  json_document *documents;
  int series_count, roof_count, count, capacity, files, superseded;
} report_data;

static void die(const char *format, ...) {
  va_list arguments;
  fputs("report: ", stderr);
  va_start(arguments, format);
  vfprintf(stderr, format, arguments);
  va_end(arguments);
  fputc('\n', stderr);
  exit(2);
}

static char *copy_text(const char *s, size_t length) {
  char *out = (char *)malloc(length + 1);
  if (!out) die("no memory");
  memcpy(out, s, length);
  out[length] = 0;
  return out;
}

static int family_of(const char *name) {
  const size_t length = strcspn(name, "/");
  int i;
  for (i = 0; i < FAMILIES - 1; i++)
    if (strlen(family_names[i]) == length && strncmp(name, family_names[i], length) == 0) return i;
  return FAMILIES - 1;
}

/* A quantity as a file has it: none is negative, none is so large or small that a quotient of two is no number. */
static double amount(const json_document *d, const json_value *object, const char *key, double fallback) {
  const json_value *v = json_get(d, object, key);
  const double x = json_real(d, object, key, fallback);
  if (v && v->type == JSON_NUMBER && x != 0 && !(x >= 1e-24 && x <= 1e24))
    json_refuse(d, v->at, "\"%s\" is %g; it must be 0 or in 1e-24 .. 1e24", key, x);
  return x;
}

static int thread_count(const json_document *d, const json_value *object) {
  const json_value *v = json_get(d, object, "threads");
  const double x = json_real(d, object, "threads", 1);
  if (!(x >= 1 && x <= 65536)) json_refuse(d, v->at, "\"threads\" is %g; it must be in 1 .. 65536", x);
  return (int)x;
}

/* ----------------------------------------------------------------------------------------------------------- series */

/* The series of a context, made where it is new; the newest file's context is the one that is shown. */
static int series_of(report_data *data, const json_document *d, const json_value *context, const char *machine,
                     const char *isa, const char *device, const char *date, int threads) {
  series *s;
  int i;
  for (i = 0; i < data->series_count; i++)
    if (strcmp(data->series[i].machine, machine) == 0 && strcmp(data->series[i].isa, isa) == 0) break;
  if (i == MAX_SERIES) die("more than %d pairs of machine and instruction set", (int)MAX_SERIES);
  s = &data->series[i];
  if (i == data->series_count) {
    data->series_count++;
    s->machine = machine, s->isa = isa;
    snprintf(s->label, sizeof s->label, "%s%s%s", machine, *isa ? ", " : "", isa);
  }
  if (!s->files++ || strcmp(date, s->date) >= 0)
    s->document = d, s->context = context, s->date = date, s->device = device, s->threads = threads;
  return i;
}

static void add_roof(report_data *data, int s, const char *isa, int threads, double flops, double read, double copy) {
  roof *r;
  int i;
  for (i = 0; i < data->roof_count; i++) /* of several files the last one counts */
    if (data->roofs[i].series == s && data->roofs[i].threads == threads && strcmp(data->roofs[i].isa, isa) == 0) break;
  if (i == MAX_CEILINGS) die("more than %d ceilings", (int)MAX_CEILINGS);
  if (i == data->roof_count) data->roof_count++;
  r = &data->roofs[i];
  r->series = s, r->isa = isa, r->threads = threads, r->flops = flops, r->read = read, r->copy = copy;
}

/* The ceilings of a context under today's names and earlier ones: flop/s of a loop of its own where it
   has one. */
static void load_roofs(report_data *data, const json_document *d, const json_value *context, int s) {
  const json_value *list = json_get(d, context, "ceilings");
  int i;
  if (!list) return;
  if (list->type != JSON_ARRAY) json_refuse(d, list->at, "\"ceilings\" must be an array");
  for (i = list->first; i; i = d->values[i].next) {
    const json_value *v = &d->values[i];
    double flops = amount(d, v, "flops", amount(d, v, "fma_flops", 0));
    if (v->type != JSON_OBJECT) json_refuse(d, v->at, "a ceiling must be an object");
    if (flops <= 0) flops = amount(d, v, "flops_mlk_measure", amount(d, v, "fma_flops_mlk_measure", 0));
    add_roof(data, s, json_text(d, v, "isa", ""), thread_count(d, v), flops,
             amount(d, v, "read", amount(d, v, "read_bytes", 0)), amount(d, v, "copy", amount(d, v, "copy_bytes", 0)));
  }
}

/* ----------------------------------------------------------------------------------------------------- measurements */

static measurement *add_measurement(report_data *data) {
  if (data->count == data->capacity) {
    data->capacity = data->capacity ? 2 * data->capacity : 1024;
    data->list = (measurement *)realloc(data->list, (size_t)data->capacity * sizeof *data->list);
    if (!data->list) die("no memory for %d measurements", data->capacity);
  }
  memset(&data->list[data->count], 0, sizeof *data->list);
  data->list[data->count].order = data->count;
  return &data->list[data->count++];
}

/* A row is the same on two machines when it runs on all threads of both; all of a GPU's are /cuda. */
static char *key_of(const measurement *m, int all_threads) {
  static const char gpu[] = "/cuda";
  const size_t length = strlen(m->row), gpu_length = sizeof gpu - 1;
  char tail[24], *key = copy_text(m->row, length);
  const int tail_length = snprintf(tail, sizeof tail, "/t%d", all_threads);
  if (length > gpu_length && strcmp(key + length - gpu_length, gpu) == 0)
    memcpy(key + length - gpu_length, "/tN", 4);
  else if (all_threads > 1 && length > (size_t)tail_length && strcmp(key + length - tail_length, tail) == 0)
    key[length - (size_t)tail_length + 2] = 'N', key[length - (size_t)tail_length + 3] = 0;
  return key;
}

static double seconds_per(const json_document *d, const json_value *object) {
  static const char *const names[] = {"ns", "us", "ms", "s"};
  static const double seconds[] = {1e-9, 1e-6, 1e-3, 1};
  const json_value *v = json_get(d, object, "time_unit");
  const char *unit = json_text(d, object, "time_unit", "ns");
  int i;
  for (i = 0; i < 4; i++)
    if (strcmp(unit, names[i]) == 0) return seconds[i];
  json_refuse(d, v->at, "\"time_unit\" is \"%.20s\"; it must be ns, us, ms or s", unit);
  return 0;
}

/* A time that must be there and make sense: everything else is divided by it. */
static double positive(const json_document *d, const json_value *object, const char *key) {
  const json_value *v = json_get(d, object, key);
  const double x = amount(d, object, key, 0);
  if (!v) json_refuse(d, object->at, "this row has no \"%s\"", key);
  if (!(x > 0)) json_refuse(d, v->at, "\"%s\" must be above 0", key);
  return x;
}

static const char *name_of_row(const json_document *d, const json_value *v) {
  const char *name;
  if (v->type != JSON_OBJECT) json_refuse(d, v->at, "a row must be an object");
  name = json_text(d, v, "name", NULL);
  if (!name || !*name) json_refuse(d, v->at, "this row has no \"name\"");
  return name;
}

static void load_samples(const json_document *d, const json_value *v, measurement *m) {
  const json_value *list = json_get(d, v, "samples");
  int i, count = 0;
  if (!list) return;
  if (list->type != JSON_ARRAY) json_refuse(d, list->at, "\"samples\" must be an array");
  for (i = list->first; i; i = d->values[i].next, count++)
    if (d->values[i].type != JSON_NUMBER || !(d->values[i].number >= 1e-24 && d->values[i].number <= 1e24))
      json_refuse(d, d->values[i].at, "a sample must be a number in 1e-24 .. 1e24");
  if (!count) return;
  m->samples = (double *)malloc((size_t)count * sizeof *m->samples);
  if (!m->samples) die("no memory");
  for (i = list->first; i; i = d->values[i].next) m->samples[m->sample_count++] = d->values[i].number;
}

/* One object of "benchmarks". Aggregates (means and the like, which Google Benchmark appends) are no measurements. */
static void load_benchmark(report_data *data, const json_document *d, const json_value *v, int s) {
  const char *name = name_of_row(d, v), *family;
  const double rate = amount(d, v, "bytes_per_second", 0);
  measurement *m;
  if (strcmp(json_text(d, v, "run_type", "iteration"), "iteration") != 0) return;
  m = add_measurement(data);
  m->name = name, m->row = json_text(d, v, "row", name), m->contender = json_text(d, v, "contender", "mlk");
  m->series = s, m->threads = thread_count(d, v);
  family = json_text(d, v, "family", m->row), m->family = family_of(family);
  m->command = json_text(d, v, "command", ""), m->variant = json_text(d, v, "variant", "");
  m->isa = json_text(d, v, "isa", data->series[s].isa), m->dtype = json_text(d, v, "dtype", "");
  m->cold = strcmp(json_text(d, v, "cache", ""), "cold") == 0;
  m->peer = json_flag(d, v, "peer", strncmp(m->contender, "mlk", 3) != 0);
  m->key = key_of(m, data->series[s].threads);
  m->wrong = json_flag(d, v, "error_occurred", 0), m->message = json_text(d, v, "error_message", "");
  if (m->wrong) return; /* and has no time */
  m->time = positive(d, v, "real_time") * seconds_per(d, v);
  m->best = amount(d, v, "best_time", 0) * seconds_per(d, v);
  m->noise = amount(d, v, "noise", 0), m->busy = json_flag(d, v, "busy", 0);
  m->noisy = json_flag(d, v, "noisy", m->noise > 0.1);
  m->flops = amount(d, v, "flops", amount(d, v, "flops_per_second", 0) * m->time);
  m->bytes = amount(d, v, "bytes", rate * m->time), m->share = amount(d, v, "share_of_ceiling", 0);
  m->versus = amount(d, v, "versus_best_peer", 0), m->workspace = amount(d, v, "workspace_bytes", -1);
  m->predicted = amount(d, v, "predicted_time", 0) * 1e-9;
  m->ceiling_fma = amount(d, v, "ceiling_fma", 0);
  m->ceiling_memory = amount(d, v, "ceiling_read", amount(d, v, "ceiling_copy", 0));
  load_samples(d, v, m);
  m->bound = json_text(d, v, "bound", m->ceiling_memory > 0 && m->flops <= 0 ? "memory" : "");
}

static void load_google(report_data *data, const json_document *d, const json_value *list) {
  static const json_value nothing = {JSON_OBJECT, 0, 0, NULL, NULL, 0, 0, 0, 0, 0};
  const json_value *context = json_get(d, d->values, "context");
  int i, s, calibrated, before = data->count;
  if (!context) context = &nothing;
  if (context->type != JSON_OBJECT) json_refuse(d, context->at, "\"context\" must be an object");
  calibrated = json_flag(d, context, "calibrated", 1);
  s = series_of(data, d, context,
                json_text(d, context, "machine", json_text(d, context, "cpu_name", "unknown machine")),
                json_text(d, context, "mlk_isa", ""), json_text(d, context, "device", "cpu"),
                json_text(d, context, "date", ""), thread_count(d, context));
  load_roofs(data, d, context, s);
  for (i = list->first; i; i = d->values[i].next) load_benchmark(data, d, &d->values[i], s);
  for (; before < data->count && !calibrated; before++) data->list[before].predicted = 0; /* bounds, no predictions */
}

/* A row of bench/gpu.cu: MLK's time and the best peer's in one object, seconds 0 where MLK was not timed. */
static void load_gpu_row(report_data *data, const json_document *d, const json_value *v, int s) {
  const char *name = name_of_row(d, v), *refused = json_text(d, v, "refused", ""), *peer = json_text(d, v, "peer", "");
  const double peer_seconds = amount(d, v, "peer_seconds", 0);
  int part;
  for (part = 0; part < (*peer && peer_seconds > 0 ? 2 : 1); part++) {
    measurement *m = add_measurement(data);
    m->name = m->row = name, m->contender = part ? peer : "mlk", m->peer = part, m->series = s, m->threads = 1;
    m->family = family_of(name), m->isa = m->dtype = "", m->key = copy_text(name, strlen(name));
    m->variant = part ? "" : json_text(d, v, "variant", ""), m->message = part ? "" : refused;
    m->command = "", m->bound = json_text(d, v, "bound", ""), m->workspace = -1;
    m->wrong = !part && *refused;
    if (m->wrong) continue;
    m->time = part ? peer_seconds : positive(d, v, "seconds");
    m->flops = amount(d, v, "flops", 0), m->bytes = amount(d, v, "bytes", 0);
    if (part) continue;
    m->noise = amount(d, v, "noise", 0), m->noisy = m->noise > 0.1;
    m->share = amount(d, v, "share_of_ceiling", 0), m->predicted = amount(d, v, "predicted_seconds", 0);
    m->versus = peer_seconds > 0 ? peer_seconds / m->time : 0;
  }
}

static void load_gpu(report_data *data, const json_document *d, const json_value *list) {
  const json_value *top = d->values;
  const char *about = json_text(d, top, "about", "");
  const int s = series_of(data, d, top, json_text(d, top, "device", "unknown GPU"), "", "cuda", about, 1);
  int i;
  add_roof(data, s, "f32", 1, amount(d, top, "f32_flops_per_second", 0), amount(d, top, "copy_bytes_per_second", 0),
           amount(d, top, "copy_bytes_per_second", 0));
  for (i = list->first; i; i = d->values[i].next) load_gpu_row(data, d, &d->values[i], s);
}

/* Takes what a file says; the document is the data's from here on. */
static void load_document(report_data *data, json_document *d) {
  const json_value *benchmarks = json_get(d, d->values, "benchmarks"), *rows = json_get(d, d->values, "rows");
  const json_value *list = benchmarks ? benchmarks : rows;
  d->next = data->documents, data->documents = d;
  if (!list) json_refuse(d, 0, "neither \"benchmarks\" (bench --json) nor \"rows\" (bench/gpu.sh): no result of bench");
  if (list->type != JSON_ARRAY) json_refuse(d, list->at, "\"%s\" must be an array", list->key);
  if (benchmarks)
    load_google(data, d, list);
  else
    load_gpu(data, d, list);
  data->files++;
}

static void free_data(report_data *data) {
  int i;
  if (!data) return;
  while (data->documents) {
    json_document *d = data->documents;
    data->documents = d->next;
    json_close(d);
  }
  for (i = 0; i < data->count; i++) free(data->list[i].key), free(data->list[i].samples);
  free(data->list), free(data);
}

/* --------------------------------------------------------------------------------------------- order and duplicates */

static int compare_text(const char *a, const char *b) { return strcmp(a ? a : "", b ? b : ""); }

/* Rows by key, of each the series in order, of each its contenders as they came. */
static int by_row(const void *a, const void *b) {
  const measurement *x = (const measurement *)a, *y = (const measurement *)b;
  int c = compare_text(x->key, y->key);
  if (!c) c = x->cold - y->cold;
  if (!c) c = x->series - y->series;
  if (!c) c = x->order - y->order;
  return c;
}

/* As the rows came, so that families stay together and large comes before small. */
static int by_order(const void *a, const void *b) {
  const measurement *x = (const measurement *)a, *y = (const measurement *)b;
  int c = x->row_order - y->row_order;
  if (!c) c = x->series - y->series;
  if (!c) c = x->order - y->order;
  return c;
}

static int same_row(const measurement *x, const measurement *y) {
  return x->cold == y->cold && strcmp(x->key, y->key) == 0;
}

/* A contender that was measured twice in a series counts as it was measured last: files are given in their order. */
static void drop_superseded(report_data *data) {
  int i, j, kept = 0;
  for (i = 0; i < data->count; i++) {
    const measurement *x = &data->list[i];
    for (j = i + 1; j < data->count && same_row(x, &data->list[j]) && x->series == data->list[j].series; j++)
      if (strcmp(x->contender, data->list[j].contender) == 0) break;
    if (j < data->count && same_row(x, &data->list[j]) && x->series == data->list[j].series) {
      data->superseded++;
      free(data->list[i].key), free(data->list[i].samples);
    } else {
      data->list[kept++] = data->list[i];
    }
  }
  data->count = kept;
}

/* Of each row in each series: which contender stands for MLK, and how it does against the best peer where the file
   does not say. */
static void judge_rows(report_data *data) {
  int i, j, end;
  for (i = 0; i < data->count; i = end) {
    measurement *mine = NULL;
    double best = 0;
    for (end = i; end < data->count && same_row(&data->list[i], &data->list[end]) &&
                  data->list[i].series == data->list[end].series;
         end++) {}
    for (j = i; j < end; j++) {
      measurement *m = &data->list[j];
      if (!m->peer && (!mine || strcmp(m->contender, "mlk") == 0)) mine = m;
      if (m->peer && !m->wrong && (best <= 0 || m->time < best)) best = m->time;
    }
    if (!mine) continue;
    mine->main = 1;
    if (!mine->wrong && mine->versus <= 0 && best > 0) mine->versus = best / mine->time;
  }
}

/* Arithmetic is probed again beside every row, since clocks move: a roof is as high as the best probe. */
static void raise_roofs(report_data *data) {
  int i, j;
  for (i = 0; i < data->roof_count; i++)
    for (j = 0; j < data->count; j++) {
      roof *r = &data->roofs[i];
      const measurement *m = &data->list[j];
      if (m->series == r->series && m->threads == r->threads && m->ceiling_fma > r->flops &&
          strcmp(m->isa, r->isa) == 0)
        r->flops = m->ceiling_fma;
    }
}

static void sort_data(report_data *data) {
  int i, j, end;
  if (data->count) qsort(data->list, (size_t)data->count, sizeof *data->list, by_row);
  drop_superseded(data);
  judge_rows(data);
  raise_roofs(data);
  for (i = 0; i < data->count; i = end) {
    int least = data->list[i].order;
    for (end = i; end < data->count && same_row(&data->list[i], &data->list[end]); end++)
      if (data->list[end].order < least) least = data->list[end].order;
    for (j = i; j < end; j++) data->list[j].row_order = least;
  }
  if (data->count) qsort(data->list, (size_t)data->count, sizeof *data->list, by_order);
}

/* ------------------------------------------------------------------------------------------------------- statistics */

static int by_value(const void *a, const void *b) {
  const double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

/* Quantile q of n sorted values, between neighbours by their distance. */
static double quantile(const double *sorted, int n, double q) {
  const double place = q * (n - 1);
  const int below = (int)place;
  if (n == 0) return 0;
  return below + 1 < n ? sorted[below] + (place - below) * (sorted[below + 1] - sorted[below]) : sorted[n - 1];
}

typedef enum quantity { SHARE, VERSUS, PREDICTION } quantity;

/* What a measurement contributes to a statistic; 0 when it has no such thing. */
static int value_of(const measurement *m, quantity q, double *out) {
  if (!m->main || m->wrong) return 0;
  *out = q == SHARE ? m->share : q == VERSUS ? m->versus : m->predicted / m->time - 1;
  return q == PREDICTION ? m->predicted > 0 : *out > 0;
}

/* Sorted values of a family (any: -1) in a series (any: -1); the caller frees them. */
static double *values_of(const report_data *data, int s, int family, quantity q, int *count) {
  double *values = (double *)malloc((size_t)(data->count + 1) * sizeof *values);
  int i;
  if (!values) die("no memory");
  for (i = *count = 0; i < data->count; i++) {
    const measurement *m = &data->list[i];
    if ((s < 0 || m->series == s) && (family < 0 || m->family == family)) *count += value_of(m, q, &values[*count]);
  }
  qsort(values, (size_t)*count, sizeof *values, by_value);
  return values;
}

static int count_where(const report_data *data, int s, int family, int (*is)(const measurement *)) {
  int i, count = 0;
  for (i = 0; i < data->count; i++)
    count += (s < 0 || data->list[i].series == s) && (family < 0 || data->list[i].family == family) &&
             is(&data->list[i]);
  return count;
}

static int is_wrong(const measurement *m) { return m->wrong; }
static int is_main(const measurement *m) { return m->main; }
static int is_unsteady(const measurement *m) { return m->main && !m->wrong && (m->noisy || m->busy); }

#endif
