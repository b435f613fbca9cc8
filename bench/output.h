/* The files of a run: JSON in the form of Google Benchmark, CSV, Markdown. */
#ifndef BENCH_OUTPUT_H
#define BENCH_OUTPUT_H

static const char *executable_name; /* as it was called */
static char command_line[1024];

/* --------------------------------------------------------------------------------------------- what a row is called */

/* "matmul" of matmul/large/1024/t1. */
static char *row_family(const char *name, char *out, size_t size) {
  return text(out, size, "%.*s", (int)strcspn(name, "/"), name);
}

/* "large" of it. */
static char *row_class(const char *name, char *out, size_t size) {
  const char *from = strchr(name, '/');
  return from ? text(out, size, "%.*s", (int)strcspn(from + 1, "/"), from + 1) : text(out, size, "%s", "");
}

static void append(char *out, size_t size, const char *format, ...) {
  const size_t used = strlen(out);
  va_list args;
  va_start(args, format);
  vsnprintf(out + used, size - used, format, args);
  va_end(args);
}

/* What to type for this row alone. */
static char *row_command(const result *x, char *out, size_t size) {
  text(out, size, "mlk_bench run '%s'", x->problem);
  if (opt.cuda) append(out, size, " --device cuda");
  if (opt.isa_given) append(out, size, " --isa %s", mlk_isa_name(opt.isa));
  if (opt.cache != CACHE_BY_ROW) append(out, size, " --cache %s", opt.cache == CACHE_COLD ? "cold" : "warm");
  if (opt.quick) append(out, size, " --quick");
  if (opt.min_time != (opt.quick ? 0.04 : 0.25)) append(out, size, " --min-time %g", opt.min_time);
  if (opt.no_peers && !opt.cuda) append(out, size, " --no-peers");
  if (opt.keep_env) append(out, size, " --keep-env");
  return out;
}

static int count_noisy_rows(void) {
  int i, rows = 0;
  for (i = 0; i < result_count; i++) {
    const int first = i == 0 || strcmp(results[i].row, results[i - 1].row) != 0;
    int j, noisy = 0;
    for (j = i; first && j < result_count && strcmp(results[j].row, results[i].row) == 0; j++)
      noisy |= results[j].noisy && !results[j].yardstick;
    rows += noisy;
  }
  return rows;
}

/* ------------------------------------------------------------------------------------------------------------ JSON */

static void put_string(FILE *f, const char *s) {
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

/* "key": "value", */
static void put_text(FILE *f, const char *key, const char *value) {
  fprintf(f, "\"%s\": ", key);
  put_string(f, value);
  fputs(", ", f);
}

static void put_line(FILE *f, const char *key, const char *value) {
  fputs("    ", f);
  fprintf(f, "\"%s\": ", key);
  put_string(f, value);
  fputs(",\n", f);
}

static void put_caches(FILE *f) {
  int i, any = 0;
  fputs("    \"caches\": [", f);
  for (i = 0; i < 8 && !opt.cuda; i++) { /* the host's are not what a device works in */
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

static void put_ceilings(FILE *f) {
  int i;
  fputs("    \"ceilings\": [", f);
  for (i = 0; i < ceiling_count; i++) {
    const bench_ceiling *c = &ceilings[i].ceiling;
    fprintf(f, "%s\n      {\"isa\": \"%s\", \"threads\": %d, \"flops\": %.6g, \"flops_mlk_measure\": %.6g, ",
            i ? "," : "", isa_name(ceilings[i].isa), ceilings[i].threads, c->fma_own, c->fma_mlk);
    fprintf(f, "\"read\": %.6g, \"read_mlk_measure\": %.6g, \"copy\": %.6g}", c->read_own, c->read_mlk, c->copy);
  }
  fputs("\n    ],\n", f);
}

static void put_peers(FILE *f) {
  int i;
  for (i = 0; i < PEER_COUNT; i++) {
    char key[64], value[256];
    text(key, sizeof key, "peer_%s", peers[i].name);
    if (opt.no_peers)
      text(value, sizeof value, "absent: %s", opt.cuda ? "of the CPU" : "--no-peers");
    else if (peers[i].present)
      text(value, sizeof value, "%s, kernels: %s", peers[i].version, peers[i].core);
    else
      text(value, sizeof value, "absent: %s", peers[i].version);
    put_line(f, key, value);
  }
}

static void put_context(FILE *f, double seconds) {
  char line[256];
  const time_t clock_now = time(NULL);
  strftime(line, sizeof line, "%Y-%m-%dT%H:%M:%S+00:00", gmtime(&clock_now));
  fputs("  \"context\": {\n", f);
  put_line(f, "date", line);
  if (opt.host_name) put_line(f, "host_name", opt.host_name);
  put_line(f, "executable", executable_name);
  put_line(f, "command", command_line);
  put_line(f, "machine", machine_name(line, sizeof line));
  put_line(f, "device", opt.cuda ? "cuda" : "cpu");
  put_line(f, "cpu_name", cpu_name(line, sizeof line));
  put_line(f, "cpu_model", cpu_model(line, sizeof line));
  fprintf(f, "    \"num_cpus\": %ld,\n    \"mhz_per_cpu\": %.0f,\n", sysconf(_SC_NPROCESSORS_ONLN), cpu_mhz());
  if (cpu_governor(line, sizeof line)[0]) put_line(f, "governor", line);
  put_caches(f);
  put_line(f, "compiler", compiler_name());
  put_line(f, "compiler_flags", compiler_flags());
#ifdef __OPTIMIZE__
  put_line(f, "library_build_type", "release");
#else
  put_line(f, "library_build_type", "debug");
#endif
  put_line(f, "mlk_version", mlk_version_text(line, sizeof line));
  put_line(f, "mlk_isa", isa_name(opt.isa));
#ifdef _OPENMP
  fprintf(f, "    \"openmp\": %d,\n", _OPENMP);
#else
  fputs("    \"openmp\": 0,\n", f);
#endif
  put_peers(f);
  put_ceilings(f);
  fprintf(f, "    \"threads\": %d,\n    \"min_time\": %g,\n    \"max_noise\": %g,\n", opt.threads, opt.min_time,
          opt.max_noise);
  fprintf(f, "    \"calibrated\": %s,\n", calibrates() ? "true" : "false");
  fprintf(f, "    \"noisy_rows\": %d,\n    \"wrong\": %d,\n    \"seconds\": %.1f\n  },\n", count_noisy_rows(), failures,
          seconds);
}

/* What is known of a row's contender before it is timed. */
static void put_identity(FILE *f, const result *x) {
  char part[512];
  text(part, sizeof part, "%s/%s", x->row, x->name);
  put_text(f, "name", part), put_text(f, "run_name", part), put_text(f, "run_type", "iteration");
  put_text(f, "row", x->row), put_text(f, "contender", x->name);
  fprintf(f, "\"peer\": %s, ", x->peer >= 0 ? "true" : "false");
  put_text(f, "family", row_family(x->row, part, sizeof part));
  put_text(f, "class", row_class(x->row, part, sizeof part));
  put_text(f, "problem", x->problem), put_text(f, "command", row_command(x, part, sizeof part));
  put_text(f, "device", opt.cuda ? "cuda" : "cpu"), put_text(f, "isa", isa_name(x->isa)),
      put_text(f, "dtype", x->dtype);
  put_text(f, "cache", x->cold ? "cold" : "warm");
  fprintf(f, "\"threads\": %d, ", x->threads);
}

static void put_samples(FILE *f, const result *x) {
  int i;
  fputs("\"samples\": [", f);
  for (i = 0; i < x->samples; i++) fprintf(f, "%s%.6g", i ? ", " : "", x->sample[i] * 1e9);
  fputs("]", f);
}

static void put_times(FILE *f, const result *x) {
  fprintf(f, "\"repetitions\": %d, \"iterations\": %lld, \"real_time\": %.6g, \"cpu_time\": %.6g, ", x->samples,
          (long long)x->iterations, x->median * 1e9, x->median * 1e9);
  fprintf(f, "\"time_unit\": \"ns\", \"best_time\": %.6g, \"noise\": %.4g, \"noisy\": %s, \"busy\": %s, ",
          x->best * 1e9, x->noise, x->noisy ? "true" : "false", x->busy ? "true" : "false");
  fprintf(f, "\"checked\": true, \"flops\": %.6g, \"bytes\": %.6g, ", x->flops, x->bytes);
  fprintf(f, "\"flops_per_second\": %.6g, \"bytes_per_second\": %.6g, ", x->flops / x->median, x->bytes / x->median);
  fprintf(f, "\"bound\": \"%s\", \"ceiling_fma\": %.6g, ", x->bound == 'm' ? "memory" : "compute", x->in_row_fma);
  if (x->bytes > 0) fprintf(f, "\"ceiling_%s\": %.6g, ", x->near == 'c' ? "copy" : "read", x->in_row_read);
  fprintf(f, "\"share_of_ceiling\": %.4g, ", x->share);
  if (x->versus_best_peer > 0) fprintf(f, "\"versus_best_peer\": %.4g, ", x->versus_best_peer);
  if (x->of_yardstick > 0) fprintf(f, "\"versus_matmul\": %.4g, ", x->of_yardstick);
}

static void put_result(FILE *f, const result *x) {
  fputs("\n    {", f);
  put_identity(f, x);
  if (x->wrong[0]) {
    char part[256];
    fputs("\"checked\": true, \"error_occurred\": true, \"error_message\": ", f);
    put_string(f, text(part, sizeof part, "wrong result, not timed: %s", x->wrong));
    fputs("}", f);
    return;
  }
  put_times(f, x);
  if (x->predicted > 0) {
    fprintf(f, "\"predicted_time\": %.6g, \"workspace_bytes\": %.17g, ", x->predicted * 1e9, x->workspace);
    put_text(f, "variant", x->variant);
  }
  put_samples(f, x);
  fputs("}", f);
}

static int write_json(FILE *f, double seconds) {
  int i;
  fputs("{\n", f);
  put_context(f, seconds);
  fputs("  \"benchmarks\": [", f);
  for (i = 0; i < result_count; i++) {
    if (i) fputc(',', f);
    put_result(f, &results[i]);
  }
  fputs("\n  ]\n}\n", f);
  return !ferror(f);
}

/* ---------------------------------------------------------------------------------------------------- CSV, Markdown */

/* Quoted, quotes doubled: problems and names have commas in them. */
static void csv_text(FILE *f, const char *s) {
  fputc('"', f);
  for (; *s; s++) {
    if (*s == '"') fputc('"', f);
    fputc(*s, f);
  }
  fputs("\",", f);
}

static int write_csv(FILE *f, double seconds) {
  int i;
  (void)seconds;
  fputs("row,contender,peer,problem,isa,dtype,cache,threads,wrong,noisy,busy,repetitions,iterations,real_time_ns,best_"
        "time_ns,"
        "noise,flops,bytes,bound,share_of_ceiling,versus_best_peer,predicted_time_ns,variant\n",
        f);
  for (i = 0; i < result_count; i++) {
    const result *x = &results[i];
    csv_text(f, x->row), csv_text(f, x->name);
    fprintf(f, "%d,", x->peer >= 0);
    csv_text(f, x->problem), csv_text(f, isa_name(x->isa)), csv_text(f, x->dtype);
    fprintf(f, "%s,%d,", x->cold ? "cold" : "warm", x->threads);
    csv_text(f, x->wrong);
    fprintf(f, "%d,%d,%d,%lld,%.6g,%.6g,%.4g,", x->noisy, x->busy, x->samples, (long long)x->iterations,
            x->median * 1e9, x->best * 1e9, x->noise);
    fprintf(f, "%.6g,%.6g,%s,%.4g,%.4g,%.6g,%s\n", x->flops, x->bytes, x->bound == 'm' ? "memory" : "compute", x->share,
            x->versus_best_peer, x->predicted * 1e9, x->variant);
  }
  return !ferror(f);
}

static void markdown_head(FILE *f, double seconds) {
  char line[256], date[64];
  const time_t clock_now = time(NULL);
  int i;
  strftime(date, sizeof date, "%Y-%m-%d", gmtime(&clock_now));
  fprintf(f, "# mlk_bench\n\n%s, %s, ", date, machine_name(line, sizeof line));
  if (opt.cuda)
    fprintf(f, "%s, host %s, ", isa_name(opt.isa), cpu_name(line, sizeof line));
  else
    fprintf(f, "%ld processors, last cache %.0f MiB, ", sysconf(_SC_NPROCESSORS_ONLN),
            (double)last_cache_bytes() / 1048576);
  fprintf(f, "MLK %s, ", mlk_version_text(line, sizeof line));
  fprintf(f, "%s, %s.\n\nCommand: `%s`, %.0f s.\n\n", compiler_name(), compiler_flags(), command_line, seconds);
  for (i = 0; i < PEER_COUNT && !opt.no_peers; i++)
    if (peers[i].present) fprintf(f, "- %s %s, kernels: %s\n", peers[i].name, peers[i].version, peers[i].core);
  fputs("\n| ceilings | FMA GF/s | by mlk_measure | read GB/s | by mlk_measure | copy GB/s "
        "|\n|---|---:|---:|---:|---:|---:|\n",
        f);
  for (i = 0; i < ceiling_count; i++) {
    const bench_ceiling *c = &ceilings[i].ceiling;
    fprintf(f, "| %s, %d | %.1f | %.1f | %.1f | %.1f | %.1f |\n", isa_name(ceilings[i].isa), ceilings[i].threads,
            c->fma_own * 1e-9, c->fma_mlk * 1e-9, c->read_own * 1e-9, c->read_mlk * 1e-9, c->copy * 1e-9);
  }
}

/* A table per family; peers stand as lines of their own. */
static int write_markdown(FILE *f, double seconds) {
  char family[64] = "", now_in[64], time_text[32], rate[32], share[32], versus[32], predicted[32];
  int i;
  markdown_head(f, seconds);
  for (i = 0; i < result_count; i++) {
    const result *x = &results[i];
    if (x->yardstick && !x->wrong[0]) continue;
    if (strcmp(row_family(x->row, now_in, sizeof now_in), family) != 0)
      fprintf(f,
              "\n## %s\n\n| row | by | time | rate | of ceiling | noise | predicted | best peer |\n"
              "|---|---|---:|---:|---:|---:|---:|---:|\n",
              row_family(x->row, family, sizeof family));
    if (x->wrong[0]) {
      fprintf(f, "| %s | %s | wrong: %s | | | | | |\n", x->row, x->name, x->wrong);
      continue;
    }
    fprintf(f, "| %s | %s | %s | %s | %s | %.1f %%%s | %s | %s |\n", x->row, x->name,
            format_time(time_text, sizeof time_text, x->median), format_rate(rate, sizeof rate, x),
            x->share > 0 ? text(share, sizeof share, "%.1f %%", 100 * x->share) : "", 100 * x->noise,
            x->noisy ? ", noisy" : "", x->predicted > 0 ? format_time(predicted, sizeof predicted, x->predicted) : "",
            x->peer < 0 && x->versus_best_peer > 0 ? text(versus, sizeof versus, "%.2fx", x->versus_best_peer) : "");
  }
  return !ferror(f);
}

/* ------------------------------------------------------------------------------------------------------------ files */

typedef struct output_file {
  const char *const *path;
  int (*write)(FILE *f, double seconds);
} output_file;

static const output_file output_files[] = {
    {&opt.json, write_json}, {&opt.csv, write_csv}, {&opt.markdown, write_markdown}};

/* Now, not after minutes. */
static void outputs_try(void) {
  size_t i;
  for (i = 0; i < sizeof output_files / sizeof *output_files; i++) {
    const char *path = *output_files[i].path;
    FILE *f = path ? fopen(path, "a") : NULL;
    if (path && !f) die("cannot write %s", path);
    if (f) fclose(f);
  }
}

static void outputs_write(double seconds) {
  size_t i;
  for (i = 0; i < sizeof output_files / sizeof *output_files; i++) {
    const char *path = *output_files[i].path;
    FILE *f = path ? fopen(path, "w") : NULL;
    if (path && (!f || !output_files[i].write(f, seconds) || fclose(f) != 0)) die("cannot write %s", path);
  }
}

#endif
