/* What ran, and on what: for the head of the output and the context of the JSON. */
#ifndef BENCH_MACHINE_H
#define BENCH_MACHINE_H

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

/* What a report groups by: the name, with the model where a virtual machine hides which one it is. */
static char *machine_name(char *out, size_t size) {
  char name[128], model[64];
  if (bench_device.ctx) return text(out, size, "%s", bench_device.info.device);
  cpu_name(name, sizeof name), cpu_model(model, sizeof model);
  return strpbrk(name, "0123456789") ? text(out, size, "%s", name) : text(out, size, "%s, %s", name, model);
}

/* As the system says now; 0 where it does not. */
static double cpu_mhz(void) {
  char line[512];
  double mhz = 0;
  FILE *f = fopen("/proc/cpuinfo", "r");
  while (f && mhz == 0 && fgets(line, sizeof line, f)) {
    const char *value = strchr(line, ':');
    if (value && strncmp(line, "cpu MHz", 7) == 0) mhz = strtod(value + 1, NULL);
  }
  if (f) fclose(f);
  return mhz;
}

/* "performance", "powersave" and so on; "" where the system does not say. */
static char *cpu_governor(char *out, size_t size) {
  return read_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", out, size);
}

static char *mlk_version_text(char *out, size_t size) {
  return text(out, size, "%d.%d.%d", mlk_version() / 10000, mlk_version() / 100 % 100, mlk_version() % 100);
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

#endif
