/* mlk_bench: how fast mlk.h is here, as a share of what this machine can do and next to other libraries.

     cc -O2 -fopenmp -I. bench/mlk_bench.c -o build/mlk_bench -lm -ldl     or: make bench
     build/mlk_bench run --quick                                           under a minute
     build/mlk_bench run matmul 1024x512:512x768 epilogue=bias,gelu        one problem
     build/mlk_bench run --json new.json && build/mlk_bench compare old.json new.json

   Measures the ceilings first, then one row per operator and shape. Every contender's result is checked before it is
   timed, a wrong one is never timed, and a wrong one of MLK's makes the exit code 1. Needs POSIX. See
   bench/README.md for rows and rules. */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#define MLK_IMPLEMENTATION
#include "mlk.h"
#if defined(BENCH_CUDA)
#include "mlk_cuda.cuh" /* plain, as a header: the program is linked with the object of its implementation */
#endif

#include <dlfcn.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#include "util.h"

#include "options.h"

#include "problem.h"

#include "device.h"

#include "ceilings.h"

#include "peers.h"

#include "onednn.h"

#include "onednn_graph.h"

#include "torch.h"

#include "onnxruntime.h"

#include "timing.h"

#include "machine.h"

#include "table.h"

#include "aims.h"

#include "output.h"

#include "rows.h"

#include "rows_matmul.h"

#include "rows_knn.h"

#include "rows_conv.h"

#include "rows_glue.h"

#include "rows_attention.h"

#include "rows_average.h"

#include "select.h"

#include "predict.h"

#include "json_read.h"

#include "verdict.h"

#include "compare.h"

/* The names of what the context would choose: on the CPU opt.isa is never BEST afterwards, so that ceilings and rows
   agree. */
static void resolve_defaults(void) {
  mlk_context_desc desc;
  mlk_context *ctx;
  mlk_info info;
  int isa;
  if (opt.cuda) {
    opt.threads = 1;
    if (opt.command != COMMAND_LIST) device_open();
    return;
  }
  memset(&desc, 0, sizeof desc);
  desc.isa = opt.isa, desc.threads = opt.threads;
  if (mlk_open(&ctx, &desc) != MLK_OK || mlk_get_info(ctx, &info) != MLK_OK) die("mlk_open failed");
  if (opt.threads == 0) opt.threads = info.threads;
  for (isa = 1; isa < MLK_ISA_COUNT; isa++)
    if (strcmp(mlk_isa_name((mlk_isa)isa), info.isa) == 0) opt.isa = (mlk_isa)isa;
  if (opt.threads > 1 && !info.openmp) {
    fprintf(stderr, "mlk_bench: built without OpenMP: one thread\n");
    opt.threads = 1;
  }
  mlk_close(ctx);
}

/* bench/peers of the working directory, else the one beside the folder the program stands in. */
static void find_peers(void) {
  static char path[1024];
  const char *slash = strrchr(executable_name, '/');
  peers_dir = "bench/peers";
  if (opt.peers_dir) {
    peers_dir = opt.peers_dir;
  } else if (access(peers_dir, R_OK) != 0 && slash) {
    text(path, sizeof path, "%.*s/../bench/peers", (int)(slash - executable_name), executable_name);
    if (access(path, R_OK) == 0) peers_dir = path;
  }
}

static void load_peers(void) {
  if (opt.no_peers) return;
  find_peers();
  peers_load(), onednn_primitives_load(), onednn_graph_load();
}

static void print_peers(void) {
  int i;
  if (opt.cuda) puts("peer: none; bench/gpu.sh compares with cuBLAS and cuDNN");
  for (i = 0; i < PEER_COUNT && !opt.no_peers; i++) {
    if (peers[i].present)
      printf("peer: %-9s %s, kernels: %s\n", peers[i].name, peers[i].version, peers[i].core);
    else
      printf("peer: %-9s absent: %s\n", peers[i].name, peers[i].version);
  }
}

static void print_context(void) {
  char name[128], model[64], version[32];
  if (opt.cuda) {
    printf("mlk %s, %s, %s\n", mlk_version_text(version, sizeof version), compiler_name(), compiler_flags());
    printf("gpu: %s, %s; host: %s\n", bench_device.info.device, isa_name(opt.isa), cpu_name(name, sizeof name));
    return;
  }
  printf("mlk %s, %s, 1 and %d threads, %s, %s\n", mlk_version_text(version, sizeof version), mlk_isa_name(opt.isa),
         opt.threads, compiler_name(), compiler_flags());
  printf("cpu: %s, %s, %ld online, last cache %.0f MiB\n", cpu_name(name, sizeof name), cpu_model(model, sizeof model),
         sysconf(_SC_NPROCESSORS_ONLN), (double)last_cache_bytes() / 1048576);
}

static void print_ceilings(void) {
  int i;
  printf("\n%-20s %14s %14s %12s %14s %12s\n", "ceilings", "FMA GF/s", "mlk_measure", "read GB/s", "mlk_measure",
         "copy GB/s");
  for (i = 0; i < ceiling_count; i++) {
    const bench_ceiling *c = &ceilings[i].ceiling;
    char name[32], own[32];
    printf("%-20s %14s %14.1f %12.1f %14.1f %12.1f\n",
           opt.cuda ? isa_name(ceilings[i].isa)
                    : text(name, sizeof name, "%s, %d thread%s", isa_name(ceilings[i].isa), ceilings[i].threads,
                           ceilings[i].threads > 1 ? "s" : ""),
           c->fma_own > 0 ? text(own, sizeof own, "%.1f", c->fma_own * 1e-9) : "-", c->fma_mlk * 1e-9,
           c->read_own * 1e-9, c->read_mlk * 1e-9, c->copy * 1e-9);
  }
}

static int command_list(void) {
  int i;
  select_rows();
  for (i = 0; i < row_count; i++) printf("%-52s %s\n", row_list[i].name, row_list[i].problem);
  return 0;
}

static int command_peers(void) {
  load_peers();
  print_peers();
  return 0;
}

/* Of every instruction set that runs here, for one thread and for all; or of the device. */
static int command_ceilings(void) {
  const double start = now();
  int isa, many;
  outputs_try();
  print_context();
  probe_memory_make();
  if (opt.cuda) ceiling_of(opt.isa, 1);
  for (isa = MLK_ISA_REFERENCE - 1; isa > MLK_ISA_BEST && !opt.cuda; isa--)
    for (many = 0; many < (opt.threads > 1 ? 2 : 1) && mlk_isa_available((mlk_isa)isa); many++)
      ceiling_of((mlk_isa)isa, many ? opt.threads : 1);
  print_ceilings();
  outputs_write(now() - start);
  return 0;
}

/* "[12/250] matmul/large/1024/t1, about 180 s left" on stderr: over itself on a terminal, else a line each. */
static void progress(int done, double start) {
  const int terminal = isatty(2);
  const double left = done ? (now() - start) / done * (row_count - done) : 0;
  if (!terminal && !opt.progress) return;
  fprintf(stderr, "%s[%d/%d] %s", terminal ? "\r\033[K" : "", done + 1, row_count, row_list[done].name);
  if (done) fprintf(stderr, ", about %.0f s left", left);
  fputs(terminal ? "" : "\n", stderr);
}

static void run_row(const bench_row *b) {
  static row r;
  problem p;
  problem_read(&p, b->problem, b->where);
  row_begin(&r, b->name, b->problem);
  family_of(&p)->run(&p, &r);
}

static void run_rows(void) {
  const double start = now();
  int i;
  for (i = 0; i < row_count; i++) {
    progress(i, start);
    run_row(&row_list[i]);
  }
}

static int command_run(void) {
  const double start = now();
  int i;
  outputs_try();
  select_rows();
  load_peers();
  print_context();
  print_peers();
  peers_set_threads(1);
  probe_memory_make();
  for (i = 0; i < row_count; i++) {
    const problem_common c = row_common_of(&row_list[i]);
    ceiling_of(c.isa, c.threads);
  }
  print_ceilings();
  report_header();
  run_rows();
  if (opt.command == COMMAND_PLAN)
    report_predictions();
  else if (opt.batch)
    report_batch();
  else if (!opt.cuda) /* the aims are the CPU's */
    report_aims(), report_causal(), report_scaling();
  report_busy();
  report_noisy();
  outputs_write(now() - start);
  printf("\n%d rows, %d wrong, %.0f s\n", row_count, failures, now() - start);
  return failures ? 1 : 0;
}

int main(int argc, char **argv) {
  int i;
  parse_options(argc, argv);
  executable_name = argv[0];
  for (i = 0; i < argc; i++)
    text(command_line + strlen(command_line), sizeof command_line - strlen(command_line), "%s%s", i ? " " : "",
         argv[i]);
  if (opt.command == COMMAND_COMPARE) return compare_files(opt.files[0], opt.files[1]);
  setvbuf(stdout, NULL, _IOLBF, 0);
  resolve_defaults();
  results = (result *)calloc(MAX_RESULTS, sizeof *results);
  if (!results) die("no memory");
  switch (opt.command) {
  case COMMAND_LIST: return command_list();
  case COMMAND_PEERS: return command_peers();
  case COMMAND_CEILINGS: return command_ceilings();
  case COMMAND_PLAN: opt.no_peers = 1; return command_run();
  case COMMAND_RUN:
  case COMMAND_COMPARE:
  case COMMAND_COUNT: break;
  }
  return command_run();
}
