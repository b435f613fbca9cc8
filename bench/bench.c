/* bench: how fast mlk.h is here, as a share of what this machine can do and next to other libraries.

     cc -O2 -fopenmp -I. bench/bench.c -o build/bench -lm -ldl        or: make bench
     build/bench --quick                                              under a minute
     build/bench --json new.json && build/bench compare old.json new.json

   Measures the ceilings first, then one row per operator and shape. Every contender's result is checked before it is timed, a wrong
   one is never timed, and a wrong one of MLK's makes the exit code 1. Needs POSIX. See bench/README.md for rows and rules. */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#define MLK_IMPLEMENTATION
#include "mlk.h"

#include <dlfcn.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#include "util.h"

#include "ceilings.h"

#include "peers.h"

#include "onednn.h"

#include "onednn_graph.h"

#include "torch.h"

#include "onnxruntime.h"

#include "timing.h"

#include "report.h"

#include "rows_matmul.h"

#include "rows_knn.h"

#include "rows_conv.h"

#include "rows_glue.h"

#include "rows_attention.h"

#include "rows_average.h"

static void usage(FILE *f) {
  fputs("bench [options]                  measure this machine, then every row\n"
        "bench compare OLD.json NEW.json  new times over old ones; exit code 1 when a row of MLK's regressed beyond "
        "the noise\n"
        "\n"
        "  --quick           fewer rows, shorter: under a minute\n"
        "  --list            names of the rows (of --quick with it), one a line\n"
        "  --filter A,B,-C   rows whose names contain A or B, and not C\n"
        "  --min-time S      seconds for each contender of a row, default 0.25 (quick 0.04)\n"
        "  --threads N       the N of the rows on several threads, default: all the machine has\n"
        "  --isa NAME        best, avx512, avx2, neon, scalar\n"
        "  --no-peers        MLK alone\n"
        "  --keep-env        obey OPENBLAS_CORETYPE and the like; otherwise peers choose their best kernels\n"
        "  --peers DIR       where fetch_peers.sh put them, default bench/peers\n"
        "  --json FILE       results in the form of Google Benchmark\n"
        "\n"
        "exit codes: 0 all right, 1 a wrong result (compare: a regression), 2 bad arguments\n",
        f);
}

static const char *option_value(int argc, char **argv, int *i) {
  if (*i + 1 >= argc) die("%s needs a value; see --help", argv[*i]);
  return argv[++*i];
}

static void parse_options(int argc, char **argv) {
  int i, isa;
  char *end;
  opt.min_time = -1;
  for (i = 1; i < argc; i++) {
    const char *a = argv[i];
    if (strcmp(a, "--quick") == 0)
      opt.quick = 1;
    else if (strcmp(a, "--list") == 0)
      opt.list = 1;
    else if (strcmp(a, "--no-peers") == 0)
      opt.no_peers = 1;
    else if (strcmp(a, "--keep-env") == 0)
      opt.keep_env = 1;
    else if (strcmp(a, "--filter") == 0)
      opt.filter = option_value(argc, argv, &i);
    else if (strcmp(a, "--peers") == 0)
      opt.peers_dir = option_value(argc, argv, &i);
    else if (strcmp(a, "--json") == 0)
      opt.json = option_value(argc, argv, &i);
    else if (strcmp(a, "--min-time") == 0) {
      const char *value = option_value(argc, argv, &i);
      opt.min_time = strtod(value, &end);
      if (*end || end == value || !(opt.min_time >= 0 && opt.min_time <= 60))
        die("--min-time: %s is not a number of seconds in 0 .. 60", value);
    } else if (strcmp(a, "--threads") == 0) {
      const char *value = option_value(argc, argv, &i);
      const long threads = strtol(value, &end, 10);
      if (*end || end == value || threads < 1 || threads > 1024)
        die("--threads: %s is not a number in 1 .. 1024", value);
      opt.threads = (int)threads;
    } else if (strcmp(a, "--isa") == 0) {
      const char *value = option_value(argc, argv, &i);
      for (isa = 0; isa < MLK_ISA_COUNT && strcmp(mlk_isa_name((mlk_isa)isa), value) != 0; isa++) {}
      if (isa == MLK_ISA_COUNT) die("--isa: no instruction set is named %s", value);
      if (!mlk_isa_available((mlk_isa)isa)) die("--isa: %s does not run here", value);
      opt.isa = (mlk_isa)isa;
    } else if (strcmp(a, "--help") == 0 || strcmp(a, "-h") == 0) {
      usage(stdout);
      exit(0);
    } else {
      die("unknown argument %s; see --help", a);
    }
  }
  if (opt.min_time < 0) opt.min_time = opt.quick ? 0.04 : 0.25;
}

/* The names of what the context would choose: opt.isa is never BEST afterwards, so that ceilings and rows agree. */
static void resolve_defaults(void) {
  mlk_context_desc desc;
  mlk_context *ctx;
  mlk_info info;
  int isa;
  memset(&desc, 0, sizeof desc);
  desc.isa = opt.isa, desc.threads = opt.threads;
  if (mlk_open(&ctx, &desc) != MLK_OK || mlk_get_info(ctx, &info) != MLK_OK) die("mlk_open failed");
  if (opt.threads == 0) opt.threads = info.threads;
  for (isa = 1; isa < MLK_ISA_COUNT; isa++)
    if (strcmp(mlk_isa_name((mlk_isa)isa), info.isa) == 0) opt.isa = (mlk_isa)isa;
  if (opt.threads > 1 && !info.openmp) {
    printf("built without OpenMP: one thread\n");
    opt.threads = 1;
  }
  mlk_close(ctx);
}

/* bench/peers of the working directory, else the one beside the folder the program stands in. */
static void find_peers(const char *executable) {
  static char path[1024];
  const char *slash = strrchr(executable, '/');
  peers_dir = "bench/peers";
  if (opt.peers_dir) {
    peers_dir = opt.peers_dir;
  } else if (access(peers_dir, R_OK) != 0 && slash) {
    text(path, sizeof path, "%.*s/../bench/peers", (int)(slash - executable), executable);
    if (access(path, R_OK) == 0) peers_dir = path;
  }
}

static void print_context(void) {
  char name[128], model[64];
  int i;
  printf("mlk %d.%d.%d, %s, 1 and %d threads, %s, %s\n", mlk_version() / 10000, mlk_version() / 100 % 100,
         mlk_version() % 100, mlk_isa_name(opt.isa), opt.threads, compiler_name(), compiler_flags());
  printf("cpu: %s, %s, %ld online, last cache %.0f MiB\n", cpu_name(name, sizeof name), cpu_model(model, sizeof model),
         sysconf(_SC_NPROCESSORS_ONLN), (double)last_cache_bytes() / 1048576);
  for (i = 0; i < PEER_COUNT && !opt.no_peers; i++) {
    if (peers[i].present)
      printf("peer: %-9s %s, kernels: %s\n", peers[i].name, peers[i].version, peers[i].core);
    else
      printf("peer: %-9s %s\n", peers[i].name, peers[i].version);
  }
}

static void print_ceilings(void) {
  int i;
  printf("\n%-20s %14s %14s %12s %14s %12s\n", "ceilings", "FMA GF/s", "mlk_measure", "read GB/s", "mlk_measure",
         "copy GB/s");
  for (i = 0; i < ceiling_count; i++) {
    const bench_ceiling *c = &ceilings[i].ceiling;
    char name[32];
    printf("%-20s %14.1f %14.1f %12.1f %14.1f %12.1f\n",
           text(name, sizeof name, "%s, %d thread%s", mlk_isa_name(ceilings[i].isa), ceilings[i].threads,
                ceilings[i].threads > 1 ? "s" : ""),
           c->fma_own * 1e-9, c->fma_mlk * 1e-9, c->read_own * 1e-9, c->read_mlk * 1e-9, c->copy * 1e-9);
  }
}

int main(int argc, char **argv) {
  static const mlk_isa forced[] = {MLK_ISA_AVX2, MLK_ISA_NEON, MLK_ISA_SCALAR};
  const double start = now();
  size_t i;
  if (argc > 1 && strcmp(argv[1], "compare") == 0) {
    if (argc != 4) die("compare needs two files: bench compare OLD.json NEW.json");
    return compare_files(argv[2], argv[3]);
  }
  parse_options(argc, argv);
  setvbuf(stdout, NULL, _IOLBF, 0);
  resolve_defaults();
  if (opt.json && !opt.list) { /* now, not after minutes */
    FILE *f = fopen(opt.json, "a");
    if (!f) die("cannot write %s", opt.json);
    fclose(f);
  }
  results = (result *)calloc(MAX_RESULTS, sizeof *results);
  if (!results) die("no memory");
  if (!opt.list) {
    find_peers(argv[0]);
    if (!opt.no_peers) peers_load(), onednn_primitives_load(), onednn_graph_load();
    print_context();
    peers_set_threads(1);
    probe_memory_make();
    ceilings_measure(opt.isa);
    for (i = 0; i < sizeof forced / sizeof *forced; i++)
      if (forced[i] != opt.isa && mlk_isa_available(forced[i])) ceilings_measure(forced[i]);
    print_ceilings();
    report_header();
  }
  rows_matmul();
  rows_knn();
  rows_conv();
  rows_glue();
  rows_attention();
  rows_average();
  if (rows_seen == 0) die("no row is named like %s; see --list", opt.filter ? opt.filter : "that");
  if (opt.list) return 0;
  report_busy();
  report_aims();
  report_causal();
  report_scaling();
  if (opt.json && !write_json(opt.json, argv[0], now() - start)) die("cannot write %s", opt.json);
  printf("\n%d rows, %d wrong, %.0f s\n", rows_seen, failures, now() - start);
  return failures ? 1 : 0;
}
