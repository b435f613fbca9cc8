/* The table on the terminal, the summary against the aims, the JSON, and the comparison of two JSON files. */
#ifndef BENCH_REPORT_H
#define BENCH_REPORT_H

static void report_header(void) {
  int i;
  printf("\n%-48s %10s %12s %11s %6s |", "row", "time", "rate", "of ceiling", "noise");
  for (i = 0; i < PEER_COUNT; i++)
    if (peers[i].present) printf(" %8s", peers[i].name);
  printf(" | best peer\n");
}

static char *format_rate(char *out, size_t size, const result *x) {
  if (x->bound == 'm') return text(out, size, "%.1f GB/s", x->bytes / x->median * 1e-9);
  return text(out, size, "%.1f GF/s", x->flops / x->median * 1e-9);
}

/* One line per contender of MLK; the peers of the row are columns: their time over that contender's, above 1 when MLK is faster.
   A peer with several ways of doing the row counts by its best one. */
static void report_row(const row *r, const result *first, int count) {
  int i, p, line = 0;
  for (i = 0; i < count; i++) {
    const result *x = &first[i];
    char label[128], time[32], rate[32], share[32] = "";
    if (x->peer >= 0 || (x->yardstick && !x->wrong)) continue;
    if (line++ == 0)
      text(label, sizeof label, "%s", x->row);
    else
      text(label, sizeof label, "  %s", x->name);
    if (x->wrong) {
      printf("%-48s WRONG: %s\n", label, r->list[i].wrong);
      continue;
    }
    if (x->share > 0)
      text(share, sizeof share, "%5.1f %% %s", 100 * x->share,
           x->bound != 'm'  ? "fma"
           : x->near == 'c' ? "cpy"
           : x->near == 's' ? "str"
                            : "mem");
    printf("%-48s %10s %12s %11s %4.1f %%%s|", label, format_time(time, sizeof time, x->median / (double)r->operations),
           format_rate(rate, sizeof rate, x), share, 100 * x->noise, x->busy ? "~" : " ");
    for (p = 0; p < PEER_COUNT; p++) {
      double best = 0;
      int j, wrong = 0;
      if (!peers[p].present) continue;
      for (j = 0; j < count; j++) {
        if (first[j].peer != p) continue;
        wrong |= first[j].wrong;
        if (!first[j].wrong && (best == 0 || first[j].median < best)) best = first[j].median;
      }
      if (best > 0)
        printf(" %7.2fx", best / x->median);
      else
        printf(" %8s", wrong ? "WRONG" : "-");
    }
    if (x->versus_best_peer > 0)
      printf(" | %.2fx%s", x->versus_best_peer, x->versus_best_peer < 1 ? " slower" : "");
    else
      printf(" |");
    if (x->of_yardstick > 0) printf(" | %.2f of matmul", x->of_yardstick);
    putchar('\n');
  }
  for (i = 0; i < count; i++)
    if (first[i].wrong && first[i].peer >= 0)
      printf("  %s: wrong result, not timed: %s\n", first[i].name, r->list[i].wrong);
  fflush(stdout);
}

static const result *find_result(const char *row_name, const char *name) {
  int i;
  for (i = 0; i < result_count; i++)
    if (strcmp(results[i].row, row_name) == 0 && strcmp(results[i].name, name) == 0 && !results[i].wrong)
      return &results[i];
  return NULL;
}

static void report_busy(void) {
  int i, busy = 0;
  for (i = 0; i < result_count; i++) busy += results[i].busy && strcmp(results[i].name, "mlk") == 0;
  if (busy) printf("\n~ %d rows: the machine was busy with something else; their shares and ratios say little\n", busy);
}

/* The aims of the project, a class of rows each: names that begin with prefix and contain part. */
typedef struct aim {
  const char *title, *prefix, *part;
  double share, versus_peer; /* 0: no aim */
} aim;

/* The aims of attention are against torch, those of averages against torch or a chain of sums, all others against the best peer: -1. */
static int aim_peer(const aim *a) {
  if (strncmp(a->prefix, "attention/", 10) == 0) return TORCH;
  if (strncmp(a->prefix, "average/", 8) == 0) return strstr(a->title, "chain") ? CHAIN : TORCH;
  return -1;
}

/* The time of the peer that the aim is against over x's; 0 when it has none that is right. */
static double aim_versus(const aim *a, const result *x) {
  double best = 0;
  int i;
  if (aim_peer(a) < 0) return x->versus_best_peer;
  for (i = 0; i < result_count; i++)
    if (results[i].peer == aim_peer(a) && strcmp(results[i].row, x->row) == 0 && !results[i].wrong &&
        (best == 0 || results[i].median / x->median < best))
      best = results[i].median / x->median;
  return best;
}

/* Of the row's yardstick where it has one, else of its ceiling. */
static double aim_share(const result *x) { return x->of_yardstick > 0 ? x->of_yardstick : x->share; }

static int aim_has(const aim *a, const result *x) {
  return strcmp(x->name, "mlk") == 0 && !x->wrong && strncmp(x->row, a->prefix, strlen(a->prefix)) == 0 &&
         strstr(x->row + strlen(a->prefix), a->part);
}

/* The rows of a class that are below its aim. */
static void report_missed(const aim *a) {
  int i;
  for (i = 0; i < result_count; i++) {
    const result *x = &results[i];
    const double versus = aim_versus(a, x);
    if (!aim_has(a, x)) continue;
    if (a->share > 0 && aim_share(x) < a->share) printf("  %-48s %5.1f %%\n", x->row, 100 * aim_share(x));
    if (a->versus_peer > 0 && versus > 0 && versus < a->versus_peer) printf("  %-48s %5.2fx\n", x->row, versus);
  }
}

static void report_aims(void) {
  static const aim aims[] = {
      {"matmul n >= 1024, 1 thread", "matmul/large/", "/t1", 0.92, 1.0},
      {"matmul n 256..768, 1 thread", "matmul/mid/", "/t1", 0, 1.0},
      {"matmul n 32..192", "matmul/small/", "/t1", 0, 1.2},
      {"matmul n <= 16", "matmul/tiny/", "/t1", 0, 2.0},
      {"layouts and odd strides", "matmul/layout/", "/t1", 0, 1.0},
      {"skinny, out of cache", "matmul/skinny/", "/t", 0.9, 1.1},
      {"matrix-vector, out of cache", "matmul/matvec/", "/t", 0.9, 1.1},
      {"batches of tiny ones", "matmul/batch/", "/t", 0, 1.5},
      {"AVX2 row forced, n >= 1024", "matmul/forced/avx2/", "4", 0.92, 0},
      {"conv 3x3, channels-last", "conv/3x3/", "nhwc/fwd/t1", 0.82, 1.0},
      {"conv 3x3, channels-first", "conv/3x3/", "nchw/fwd/t1", 0.78, 1.1},
      {"conv 3x3, packed", "conv/3x3/", "/packed/t1", 0, 1.0},
      {"conv 1x1", "conv/1x1/", "/fwd/t1", 0, 1.0},
      {"conv stem, 3 channels", "conv/stem/", "/fwd/t1", 0, 1.1},
      {"conv depthwise", "conv/depthwise/", "/fwd/t1", 0.8, 1.0},
      {"conv grouped", "conv/grouped/", "/fwd/t1", 0, 1.0},
      {"conv transposed", "conv/transposed/", "/grad_x/t1", 0, 1.0},
      {"conv 1-D and 3-D", "conv/other/", "/fwd/t1", 0, 1.0},
      {"conv, gradient of the input", "conv/", "/grad_x/t1", 0, 0.9},
      {"conv, gradient of the weights", "conv/", "/grad_w/t1", 0, 0.9},
      {"between operators, in cache", "glue/near/", "/t1", 0, 1.0},
      {"between operators, out of cache", "glue/far/", "/t1", 0, 1.0},
      {"attention, 512+ keys, d = 64", "attention/forward/", "d64/full/t1", 0.80, 1.3},
      {"attention, 512+ keys, d = 128", "attention/forward/", "d128/full/t1", 0.86, 1.3},
      {"attention, 512+ keys, causal", "attention/forward/", "/causal/t1", 0, 1.3},
      {"attention, 32..128 keys", "attention/short/", "/t1", 0, 1.5},
      {"attention, grouped heads", "attention/grouped/", "/t1", 0, 1.3},
      {"attention, variants", "attention/variants/", "/t1", 0, 0},
      {"attention, decode, grouped heads", "attention/decode/grouped/", "/t1", 0.85, 2.0},
      {"attention, decode, single heads", "attention/decode/single/", "/t1", 0, 0},
      {"attention, decode, pages", "attention/paged/", "/t1", 0.85, 0},
      {"attention, gradient", "attention/backward/", "/t1", 0, 1.2},
      {"average, out of cache", "average/far/", "/t", 0.9, 1.2},
      {"average, against a chain", "average/far/", "n4/f32", 0, 1.8},
      {"average in place, against a chain", "average/all/", "n4/f32", 0, 1.8},
      {"average, in cache", "average/near/", "/t1", 0, 1.2},
      {"average, 1,000 tensors", "average/lists/", "/t", 0, 1.2},
      {"k-NN, 1,000+ queries", "knn/pictures/1", "000x60000", 0, 1.3},
      {"k-NN, 10 queries", "knn/pictures/10x", "/t", 0.85, 1.3},
      {"k-NN, 1 query", "knn/pictures/1x", "/t", 0.85, 1.3},
      {"k-NN, clusters", "knn/clusters/1000x", "/t", 0, 1.3},
  };
  size_t i;
  int j, any = 0;
  for (i = 0; i < sizeof aims / sizeof *aims; i++) {
    const aim *a = &aims[i];
    double log_sum = 0, worst_peer = 0, worst_share = 0;
    int rows = 0, compared = 0, of_yardstick = 0, missed_share, missed_peer;
    for (j = 0; j < result_count; j++) {
      const result *x = &results[j];
      const double versus = aim_versus(a, x);
      if (!aim_has(a, x)) continue;
      if (rows == 0 || aim_share(x) < worst_share) worst_share = aim_share(x);
      rows++, of_yardstick = x->of_yardstick > 0;
      if (versus <= 0) continue;
      if (compared == 0 || versus < worst_peer) worst_peer = versus;
      log_sum += log(versus);
      compared++;
    }
    if (rows == 0) continue;
    if (!any++)
      printf("\n%-32s %5s   %-32s %s\n", "class", "rows", "share of ceiling (matmul): worst",
             "best peer's (or that one's) time: mean, worst");
    missed_share = a->share > 0 && worst_share < a->share;
    missed_peer = compared > 0 && a->versus_peer > 0 && worst_peer < a->versus_peer;
    printf("%-32s %5d   %5.1f %%%-7s ", a->title, rows, 100 * worst_share, of_yardstick ? " matmul" : "");
    if (a->share > 0)
      printf(" aim %.0f %%  %-7s", 100 * a->share, missed_share ? "missed" : "reached");
    else
      printf("%17s", "");
    if (compared > 0)
      printf(" %s%s%.2fx %.2fx", aim_peer(a) < 0 ? "" : peers[aim_peer(a)].name, aim_peer(a) < 0 ? "" : " ",
             exp(log_sum / compared), worst_peer);
    if (compared > 0 && a->versus_peer > 0)
      printf("  aim %.2fx  %s", a->versus_peer, missed_peer ? "missed" : "reached");
    putchar('\n');
    if (missed_share || missed_peer) report_missed(a);
  }
}

/* How much faster attention is where half of the pairs are left out. */
static void report_causal(void) {
  int i, any = 0;
  for (i = 0; i < result_count; i++) {
    const result *full = &results[i], *causal;
    const char *part = strstr(full->row, "/full/t");
    char name[96];
    if (strcmp(full->name, "mlk") != 0 || full->wrong || !part || strncmp(full->row, "attention/", 10) != 0) continue;
    causal = find_result(text(name, sizeof name, "%.*s/causal%s", (int)(part - full->row), full->row, part + 5), "mlk");
    if (!causal) continue;
    if (!any++) puts("\ncausal over full (aim 1.8x for 512 keys and more)");
    printf("  %-48s %.2fx\n", causal->row, full->median / causal->median);
  }
}

/* Speed-up of every row that ran on 1 and on opt.threads threads; strict against fast; many tensors against one; k-NN against matmul. */
static void report_scaling(void) {
  int i, any = 0;
  const result *matmul = find_result("matmul/large/2048/t1", "mlk"), *knn = NULL;
  for (i = 0; i < result_count; i++) {
    const result *one = &results[i], *all;
    char name[96];
    size_t length = strlen(one->row);
    if (strcmp(one->name, "mlk") != 0 || one->wrong || one->threads != 1 || length < 3) continue;
    text(name, sizeof name, "%.*s/t%d", (int)(length - 3), one->row, opt.threads);
    all = find_result(name, "mlk");
    if (opt.threads < 2 || !all) continue;
    if (!any++) printf("\n%d threads over one (aim 1.9x where arithmetic decides)\n", opt.threads);
    printf("  %-48s %.2fx%s\n", one->row, one->median / all->median, all->bound == 'm' ? "  memory" : "");
  }
  for (i = 0; i < result_count; i++) {
    const result *fast = &results[i], *strict;
    if (strcmp(fast->name, "mlk fast") != 0 || fast->wrong) continue;
    strict = find_result(fast->row, "mlk");
    if (strict)
      printf("strict against fast, %s: %+.1f %% (aim: within 3 %%)\n", fast->row,
             100 * (strict->median / fast->median - 1));
  }
  for (i = 0; i < result_count; i++) {
    const result *one = &results[i], *many = find_result(one->row, "mlk");
    if (strcmp(one->name, "mlk, one tensor") == 0 && !one->wrong && many && !many->wrong)
      printf("many tensors against one, %s: %.2f of its speed (aim 0.8)\n", one->row, one->median / many->median);
  }
  for (i = 0; i < result_count && !knn; i++)
    if (strncmp(results[i].row, "knn/pictures/1000x", 18) == 0 && results[i].threads == 1 && !results[i].wrong &&
        strcmp(results[i].name, "mlk") == 0)
      knn = &results[i];
  if (knn && matmul)
    printf("k-NN, 1,000 queries, against matmul 2048, shares of the ceiling: %.1f %% / %.1f %% = %.2f (aim 0.85)\n",
           100 * knn->share, 100 * matmul->share, knn->share / matmul->share);
}

/* ------------------------------------------------------------------------------------------------------------ JSON */

static void json_string(FILE *f, const char *s) {
  fputc('"', f);
  for (; *s; s++) {
    if (*s == '"' || *s == '\\') fputc('\\', f);
    if ((unsigned char)*s < 32)
      fprintf(f, "\\u%04x", (unsigned)*s);
    else
      fputc(*s, f);
  }
  fputc('"', f);
}

static void json_pair(FILE *f, const char *key, const char *value) {
  fprintf(f, "    \"%s\": ", key);
  json_string(f, value);
  fputs(",\n", f);
}

static char *cpu_name(char *out, size_t size) {
  char line[512];
  FILE *f = fopen("/proc/cpuinfo", "r");
  text(out, size, "unknown");
  if (!f) return out;
  while (fgets(line, sizeof line, f)) {
    const char *value = strchr(line, ':');
    if (value && (strncmp(line, "model name", 10) == 0 || strncmp(line, "CPU part", 8) == 0)) {
      value += 1 + strspn(value + 1, " \t");
      text(out, size, "%.*s", (int)strcspn(value, "\n"), value);
      break;
    }
  }
  fclose(f);
  return out;
}

/* "family 26 model 2": tells processors apart whose name is hidden by a virtual machine. */
static char *cpu_model(char *out, size_t size) {
  char line[512], family[32] = "?", model[32] = "?";
  FILE *f = fopen("/proc/cpuinfo", "r");
  while (f && fgets(line, sizeof line, f)) {
    const char *value = strchr(line, ':');
    if (!value) {
      if (line[0] == '\n') break;
      continue;
    }
    value += 1 + strspn(value + 1, " \t");
    if (strncmp(line, "cpu family", 10) == 0) text(family, sizeof family, "%.*s", (int)strcspn(value, "\n"), value);
    if (strncmp(line, "model\t", 6) == 0) text(model, sizeof model, "%.*s", (int)strcspn(value, "\n"), value);
  }
  if (f) fclose(f);
  return text(out, size, "family %s model %s", family, model);
}

static const char *compiler_name(void) {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#else
  return "unknown";
#endif
}

/* The flags as far as the compiler tells; a build may pass all of them in BENCH_FLAGS. */
static const char *compiler_flags(void) {
#ifdef BENCH_FLAGS
  return BENCH_FLAGS;
#else
  return
#if defined(__OPTIMIZE_SIZE__)
      "-Os"
#elif defined(__OPTIMIZE__)
      "optimised"
#else
      "not optimised"
#endif
#ifdef _OPENMP
      " OpenMP"
#endif
#if defined(__AVX512F__)
      " AVX-512 baseline"
#elif defined(__AVX2__)
      " AVX2 baseline"
#endif
      ;
#endif
}

static void json_caches(FILE *f) {
  int i, any = 0;
  fputs("    \"caches\": [", f);
  for (i = 0; i < 8; i++) {
    char path[128], level[16], type[32], size[32];
    read_line(text(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/level", i), level, sizeof level);
    read_line(text(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/type", i), type, sizeof type);
    read_line(text(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/size", i), size, sizeof size);
    if (!level[0] || !size[0]) break;
    fprintf(f, "%s\n      {\"type\": \"%s\", \"level\": %d, \"size\": %ld}", any++ ? "," : "", type, atoi(level),
            strtol(size, NULL, 10) * 1024);
  }
  fputs("\n    ],\n", f);
}

static void json_ceilings(FILE *f) {
  int i;
  fputs("    \"ceilings\": [", f);
  for (i = 0; i < ceiling_count; i++) {
    const bench_ceiling *c = &ceilings[i].ceiling;
    fprintf(f, "%s\n      {\"isa\": \"%s\", \"threads\": %d, \"fma_flops\": %.6g, \"fma_flops_mlk_measure\": %.6g, ",
            i ? "," : "", mlk_isa_name(ceilings[i].isa), ceilings[i].threads, c->fma_own, c->fma_mlk);
    fprintf(f, "\"read_bytes\": %.6g, \"read_bytes_mlk_measure\": %.6g, \"copy_bytes\": %.6g}", c->read_own,
            c->read_mlk, c->copy);
  }
  fputs("\n    ],\n", f);
}

static int write_json(const char *path, const char *executable, double seconds) {
  char line[256], date[64];
  const time_t clock_now = time(NULL);
  FILE *f = fopen(path, "w");
  int i;
  if (!f) return 0;
  strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%S+00:00", gmtime(&clock_now));
  fputs("{\n  \"context\": {\n", f);
  json_pair(f, "date", date);
  json_pair(f, "executable", executable);
  json_pair(f, "cpu_name", cpu_name(line, sizeof line));
  json_pair(f, "cpu_model", cpu_model(line, sizeof line));
  fprintf(f, "    \"num_cpus\": %ld,\n", sysconf(_SC_NPROCESSORS_ONLN));
  json_caches(f);
  json_pair(f, "compiler", compiler_name());
  json_pair(f, "compiler_flags", compiler_flags());
#ifdef __OPTIMIZE__
  json_pair(f, "library_build_type", "release");
#else
  json_pair(f, "library_build_type", "debug");
#endif
  json_pair(f, "mlk_version",
            text(line, sizeof line, "%d.%d.%d", mlk_version() / 10000, mlk_version() / 100 % 100, mlk_version() % 100));
  json_pair(f, "mlk_isa", mlk_isa_name(opt.isa));
  for (i = 0; i < PEER_COUNT; i++) {
    char key[64], value[256];
    text(key, sizeof key, "peer_%s", peers[i].name);
    if (peers[i].present)
      text(value, sizeof value, "%s, kernels: %s", peers[i].version, peers[i].core);
    else
      text(value, sizeof value, "absent: %s", peers[i].version);
    json_pair(f, key, value);
  }
  json_ceilings(f);
  fprintf(f, "    \"threads\": %d,\n    \"min_time\": %g,\n    \"seconds\": %.1f\n  },\n  \"benchmarks\": [",
          opt.threads, opt.min_time, seconds);
  for (i = 0; i < result_count; i++) {
    const result *x = &results[i];
    fprintf(f, "%s\n    {\"name\": \"%s/%s\", \"run_name\": \"%s/%s\", \"run_type\": \"iteration\", ", i ? "," : "",
            x->row, x->name, x->row, x->name);
    fprintf(f, "\"row\": \"%s\", \"contender\": \"%s\", \"threads\": %d, ", x->row, x->name, x->threads);
    if (x->wrong) {
      fputs("\"error_occurred\": true, \"error_message\": \"wrong result, not timed\"}", f);
      continue;
    }
    fprintf(
        f,
        "\"repetitions\": %d, \"iterations\": %lld, \"real_time\": %.6g, \"cpu_time\": %.6g, \"time_unit\": \"ns\", ",
        x->samples, (long long)x->iterations, x->median * 1e9, x->median * 1e9);
    fprintf(f,
            "\"best_time\": %.6g, \"noise\": %.4g, \"busy\": %s, \"checked\": true, \"flops\": %.6g, "
            "\"flops_per_second\": %.6g, ",
            x->best * 1e9, x->noise, x->busy ? "true" : "false", x->flops, x->flops / x->median);
    if (x->bytes > 0)
      fprintf(f, "\"bytes_per_second\": %.6g, \"ceiling_%s\": %.6g, ", x->bytes / x->median,
              x->near == 'c' ? "copy" : "read", x->in_row_read);
    if (x->versus_best_peer > 0) fprintf(f, "\"versus_best_peer\": %.4g, ", x->versus_best_peer);
    if (x->of_yardstick > 0) fprintf(f, "\"versus_matmul\": %.4g, ", x->of_yardstick);
    fprintf(f, "\"ceiling_fma\": %.6g, \"share_of_ceiling\": %.4g}", x->in_row_fma, x->share);
  }
  fputs("\n  ]\n}\n", f);
  return fclose(f) == 0;
}

/* --------------------------------------------------------------------------------------------------------- compare */

typedef struct saved_result {
  char name[160], contender[32];
  double time, noise, share;
} saved_result;

/* The value of "key" inside the object text [from, to): a number, or a string copied to out. 0 when it is not there. */
static int json_find(const char *from, const char *to, const char *key, double *number, char *out, size_t size) {
  char quoted[64];
  const char *p;
  size_t i = 0;
  text(quoted, sizeof quoted, "\"%s\"", key);
  for (p = from; (p = strstr(p, quoted)) != NULL && p < to; p++) {
    const char *value = p + strlen(quoted);
    value += strspn(value, " \t\r\n");
    if (*value++ != ':') continue;
    value += strspn(value, " \t\r\n");
    if (number) {
      char *end;
      *number = strtod(value, &end);
      return end != value;
    }
    if (*value++ != '"') return 0;
    while (value < to && *value != '"' && i + 1 < size) out[i++] = *value++;
    out[i] = 0;
    return 1;
  }
  return 0;
}

/* Reads the benchmarks of a file in Google Benchmark's form: flat objects, one after another. */
static int load_results(const char *path, saved_result **list) {
  FILE *f = fopen(path, "rb");
  char *content, *p;
  long length;
  int count = 0, capacity = 0;
  if (!f) die("cannot open %s", path);
  if (fseek(f, 0, SEEK_END) != 0) die("cannot read %s", path);
  length = ftell(f);
  if (length < 0 || fseek(f, 0, SEEK_SET) != 0) die("cannot read %s", path);
  content = (char *)malloc((size_t)length + 1);
  if (!content || fread(content, 1, (size_t)length, f) != (size_t)length) die("cannot read %s", path);
  fclose(f);
  content[length] = 0;
  p = strstr(content, "\"benchmarks\"");
  if (!p) die("%s has no \"benchmarks\"", path);
  *list = NULL;
  while ((p = strchr(p, '{')) != NULL) {
    char *end = strchr(p, '}'), unit[8] = "ns";
    saved_result x;
    if (!end) break;
    memset(&x, 0, sizeof x);
    if (json_find(p, end, "name", NULL, x.name, sizeof x.name) && json_find(p, end, "real_time", &x.time, NULL, 0)) {
      json_find(p, end, "contender", NULL, x.contender, sizeof x.contender);
      json_find(p, end, "noise", &x.noise, NULL, 0);
      json_find(p, end, "share_of_ceiling", &x.share, NULL, 0);
      json_find(p, end, "time_unit", NULL, unit, sizeof unit);
      x.time *= strcmp(unit, "us") == 0 ? 1e3 : strcmp(unit, "ms") == 0 ? 1e6 : strcmp(unit, "s") == 0 ? 1e9 : 1;
      if (count == capacity) {
        capacity = capacity ? 2 * capacity : 256;
        *list = (saved_result *)realloc(*list, (size_t)capacity * sizeof **list);
        if (!*list) die("no memory");
      }
      (*list)[count++] = x;
    }
    p = end;
  }
  free(content);
  return count;
}

/* Prints new over old for every row in both files. A contender of MLK regressed when its time grew by more than the noise of both
   runs and by at least 5 %, and its share of the ceiling measured beside it fell as much: a slower machine is no regression.
   Exit code 1 when one did, 0 when none, 2 when the files share no row. */
static int compare_files(const char *old_path, const char *new_path) {
  saved_result *before, *after;
  const int old_count = load_results(old_path, &before), new_count = load_results(new_path, &after);
  double peer_log = 0, own_log = 0;
  int i, j, common = 0, regressed = 0, improved = 0, peer_rows = 0, own_rows = 0, missing = 0;
  printf("%-64s %12s %12s %8s %8s\n", "row", "old", "new", "new/old", "noise");
  for (i = 0; i < old_count; i++) {
    const saved_result *o = &before[i], *n = NULL;
    const int own = strncmp(o->contender, "mlk", 3) == 0 || !o->contender[0];
    char old_time[32], new_time[32];
    const char *verdict = "";
    double ratio, band;
    for (j = 0; j < new_count && !n; j++)
      if (strcmp(o->name, after[j].name) == 0) n = &after[j];
    if (!n) {
      missing++;
      continue;
    }
    common++;
    ratio = o->time > 0 ? n->time / o->time : 1;
    band = o->noise + n->noise;
    if (band < 0.05) band = 0.05;
    if (own)
      own_log += log(ratio), own_rows++;
    else
      peer_log += log(ratio), peer_rows++;
    if (own && ratio > 1 + band && (o->share <= 0 || n->share <= 0 || o->share / n->share > 1 + band))
      verdict = "REGRESSED", regressed++;
    else if (own && ratio > 1 + band)
      verdict = "slower, as the machine was";
    else if (own && ratio < 1 / (1 + band))
      verdict = "improved", improved++;
    printf("%-64s %12s %12s %7.3fx %6.1f %%  %s\n", o->name, format_time(old_time, sizeof old_time, o->time * 1e-9),
           format_time(new_time, sizeof new_time, n->time * 1e-9), ratio, 100 * (o->noise + n->noise), verdict);
  }
  printf("\n%d rows in both, %d only in the old file: %d regressed, %d improved", common, missing, regressed, improved);
  if (own_rows) printf("; mlk %.3fx on average", exp(own_log / own_rows));
  if (peer_rows) printf("; peers %.3fx (the machine's own drift)", exp(peer_log / peer_rows));
  putchar('\n');
  free(before), free(after);
  return common == 0 ? 2 : regressed ? 1 : 0;
}

#endif
