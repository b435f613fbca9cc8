/* test_context.c - contexts, errors, memory, hooks, guests' manners, size arithmetic, tensor helpers. */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include "operators.h"
#include "test.h"

#include <errno.h>
#include <fenv.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>

#if MLKT_POSIX
#include <pthread.h>
#endif
#if defined(__x86_64__) || defined(_M_X64)
#include <xmmintrin.h>
#endif
#ifdef _OPENMP
#include <omp.h>
#endif

/* ---- names, open, close ------------------------------------------------------------------------------------------ */

static void names(void) {
  int i, j;
  CHECK_EQ_I64(mlk_version(), MLK_VERSION);
  for (i = 0; i < MLK_STATUS_COUNT; i++) {
    const char *name = mlk_status_name((mlk_status)i);
    CHECK_MSG(name && name[0], "status %d has no name", i);
    for (j = 0; name && j < i; j++)
      CHECK_MSG(strcmp(name, mlk_status_name((mlk_status)j)) != 0, "statuses %d and %d are both \"%s\"", i, j, name);
  }
  CHECK_EQ_STR(mlk_status_name(MLK_OK), "ok");
  CHECK_EQ_STR(mlk_status_name(MLK_ERR_ARGUMENT), "argument");
  CHECK(mlk_status_name(MLK_STATUS_COUNT) != NULL);
  CHECK(mlk_status_name((mlk_status)15) != NULL); /* the largest value an enum of nine can hold in C++ */
  CHECK_EQ_STR(mlk_isa_name(MLK_ISA_BEST), "best");
  CHECK_EQ_STR(mlk_isa_name(MLK_ISA_SCALAR), "scalar");
  CHECK_EQ_STR(mlk_isa_name(MLK_ISA_NEON), "neon");
  CHECK_EQ_STR(mlk_isa_name(MLK_ISA_AVX2), "avx2");
  CHECK_EQ_STR(mlk_isa_name(MLK_ISA_AVX512), "avx512");
  CHECK_EQ_STR(mlk_isa_name(MLK_ISA_REFERENCE), "reference");
  CHECK(mlk_isa_name(MLK_ISA_COUNT) != NULL);
  CHECK(mlk_isa_name((mlk_isa)7) != NULL);
#ifndef __cplusplus
  CHECK(mlk_status_name((mlk_status)-1) != NULL);
  CHECK(mlk_isa_name((mlk_isa)-1) != NULL);
  CHECK_EQ_I64(mlk_isa_available((mlk_isa)-1), 0);
#endif
  CHECK_EQ_I64(mlk_isa_available(MLK_ISA_BEST), 1);
  CHECK_EQ_I64(mlk_isa_available(MLK_ISA_SCALAR), 1);
  CHECK_EQ_I64(mlk_isa_available(MLK_ISA_REFERENCE), 1);
  CHECK_EQ_I64(mlk_isa_available(MLK_ISA_COUNT), 0);
  CHECK_EQ_I64(mlk_isa_available((mlk_isa)7), 0);
#if defined(__x86_64__) || defined(_M_X64) || defined(__i386__)
  CHECK_EQ_I64(mlk_isa_available(MLK_ISA_NEON), 0);
#elif defined(__aarch64__)
  CHECK_EQ_I64(mlk_isa_available(MLK_ISA_NEON), 1);
  CHECK_EQ_I64(mlk_isa_available(MLK_ISA_AVX2), 0);
  CHECK_EQ_I64(mlk_isa_available(MLK_ISA_AVX512), 0);
#endif
}

static void open_close(void) {
  mlk_context *ctx = NULL;
  mlk_info info;
  int i;
  mlk_close(NULL);
  CHECK_STATUS(NULL, mlk_open(NULL, NULL), MLK_ERR_ARGUMENT);
  CHECK(mlk_last_error(NULL) != NULL && mlk_last_error(NULL)[0] != 0);
  for (i = 0; i < 3; i++) {
    if (!CHECK_STATUS(NULL, mlk_open(&ctx, NULL), MLK_OK) || !CHECK(ctx != NULL)) return;
    CHECK_EQ_STR(mlk_last_error(ctx), "");
    memset(&info, 0xFE, sizeof info);
    CHECK_OK(ctx, mlk_get_info(ctx, &info));
    CHECK_EQ_STR(info.backend, "cpu");
    CHECK(info.threads >= 1 && info.threads <= 1024);
    CHECK(info.openmp == 0 || info.openmp == 1);
    CHECK_EQ_I64(info.workspace_bytes, 0);
    CHECK(info.ceilings.flops_1 == 0 && info.ceilings.flops_all == 0);
    CHECK(info.ceilings.read_1 == 0 && info.ceilings.read_all == 0);
    CHECK_STATUS(NULL, mlk_get_info(NULL, &info), MLK_ERR_ARGUMENT);
    CHECK_STATUS(ctx, mlk_get_info(ctx, NULL), MLK_ERR_ARGUMENT);
    mlk_close(ctx);
  }
  for (i = 1; i <= 1024; i = i < 8 ? i + 1 : i * 2) {
    mlk_context_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.threads = i;
    desc.parallel = mlkt_parallel_serial(1024);
    if (!CHECK_STATUS(NULL, mlk_open(&ctx, &desc), MLK_OK)) return;
    CHECK_OK(ctx, mlk_get_info(ctx, &info));
    CHECK_EQ_I64(info.threads, i);
    mlk_close(ctx);
  }
}

static void null_arguments(void) {
  mlk_context *ctx = mlkt_open(MLK_ISA_BEST, 1);
  work *w = work_new(mlkt_rng_case());
  const mlk_matmul_desc matmul = work_matmul(w);
  const mlk_conv_desc conv = work_conv(w);
  const mlk_conv_grad_input_desc grad_input = work_conv_grad_input(w);
  mlk_plan plan;
  mlk_packed packed;
  mlk_ceilings ceilings;
  int op;
  if (ctx) {
    for (op = 0; op < OP_COUNT; op++) {
      mlkt_note("%s", op_name(op));
      CHECK_STATUS(NULL, op_run(op, NULL, w), MLK_ERR_ARGUMENT);
      CHECK_STATUS(ctx, op_run(op, ctx, NULL), MLK_ERR_ARGUMENT);
      CHECK_MSG(mlkt_has_word(mlk_last_error(ctx), "desc"), "the sentence is \"%s\"", mlk_last_error(ctx));
      CHECK_STATUS(NULL, op_plan(op, NULL, w, &plan), MLK_ERR_ARGUMENT);
      CHECK_STATUS(ctx, op_plan(op, ctx, NULL, &plan), MLK_ERR_ARGUMENT);
      CHECK_STATUS(ctx, op_plan(op, ctx, w, NULL), MLK_ERR_ARGUMENT);
      CHECK_MSG(mlkt_has_word(mlk_last_error(ctx), "plan"), "the sentence is \"%s\"", mlk_last_error(ctx));
      CHECK_MSG(op_untouched(op, w), "%s wrote an output", op_name(op));
    }
    mlkt_note("%s", "");
    CHECK_STATUS(NULL, mlk_conv_pack(NULL, &conv, NULL, 0, &packed), MLK_ERR_ARGUMENT);
    CHECK_STATUS(ctx, mlk_conv_pack(ctx, NULL, NULL, 0, &packed), MLK_ERR_ARGUMENT);
    CHECK_STATUS(ctx, mlk_conv_pack(ctx, &conv, NULL, 0, NULL), MLK_ERR_ARGUMENT);
    CHECK_STATUS(NULL, mlk_conv_grad_input_pack(NULL, &grad_input, NULL, 0, &packed), MLK_ERR_ARGUMENT);
    CHECK_STATUS(ctx, mlk_conv_grad_input_pack(ctx, NULL, NULL, 0, &packed), MLK_ERR_ARGUMENT);
    CHECK_STATUS(ctx, mlk_conv_grad_input_pack(ctx, &grad_input, NULL, 0, NULL), MLK_ERR_ARGUMENT);
    CHECK_STATUS(NULL, mlk_matmul_pack(NULL, matmul.b, NULL, 0, &packed), MLK_ERR_ARGUMENT);
    CHECK_STATUS(ctx, mlk_matmul_pack(ctx, matmul.b, NULL, 0, NULL), MLK_ERR_ARGUMENT);
    CHECK_STATUS(NULL, mlk_reserve(NULL, 0, MLK_GROWS), MLK_ERR_ARGUMENT);
    CHECK_STATUS(NULL, mlk_measure(NULL, &ceilings), MLK_ERR_ARGUMENT);
    CHECK_STATUS(NULL, mlk_calibrate(NULL, NULL), MLK_ERR_ARGUMENT);
  }
  mlk_close(ctx);
  free(w);
}

/* ---- bad descriptors, the sentence, the log hook ----------------------------------------------------------------- */

typedef struct log_book {
  int lines;
  char last[1024];
} log_book;

static void log_line(void *user, const char *line) {
  log_book *book = (log_book *)user;
  book->lines++;
  snprintf(book->last, sizeof book->last, "%s", line ? line : "(null)");
}

/* mlk_open must refuse desc with status, leave NULL, free everything, and log one sentence that holds the words. */
static void refuse_open(mlk_context_desc desc, mlk_status status, const char *word, const char *value) {
  log_book book = {0, ""};
  char mark;
  mlk_context *ctx = (mlk_context *)(void *)&mark; /* must be overwritten with NULL */
  desc.log = log_line;
  desc.log_user = &book;
  mlkt_note("expecting a refusal because of %s %s", word, value ? value : "");
  CHECK_STATUS(NULL, mlk_open(&ctx, &desc), status);
  CHECK(ctx == NULL);
  CHECK_MSG(book.lines == 1, "%d lines were logged, the last: \"%s\"", book.lines, book.last);
  CHECK_MSG(mlkt_has_word(book.last, word), "the sentence does not name %s: \"%s\"", word, book.last);
  if (value) CHECK_MSG(strstr(book.last, value) != NULL, "the sentence does not tell %s: \"%s\"", value, book.last);
  mlkt_note("%s", "");
}

static void *plain_alloc(void *user, size_t bytes, size_t alignment) {
  (void)user, (void)bytes, (void)alignment;
  return NULL;
}
static void plain_free(void *user, void *memory, size_t bytes) { (void)user, (void)memory, (void)bytes; }

static void bad_descriptors(void) {
  static const int threads[] = {-1, -7, 1025, INT_MIN, INT_MAX};
  mlk_context_desc zero, desc;
  char text[32];
  size_t i;
  int isa;
  memset(&zero, 0, sizeof zero);
  for (i = 0; i < sizeof threads / sizeof threads[0]; i++) {
    desc = zero;
    desc.threads = threads[i];
    snprintf(text, sizeof text, "%d", threads[i]);
    refuse_open(desc, MLK_ERR_ARGUMENT, "threads", text);
  }
  desc = zero, desc.isa = MLK_ISA_COUNT;
  refuse_open(desc, MLK_ERR_ARGUMENT, "isa", "6");
  desc = zero, desc.isa = (mlk_isa)7;
  refuse_open(desc, MLK_ERR_ARGUMENT, "isa", "7");
  desc = zero, desc.numerics = MLK_FAST; /* legal: the first bad one is the next */
  {
    mlk_context *ctx = NULL;
    CHECK_STATUS(NULL, mlk_open(&ctx, &desc), MLK_OK);
    mlk_close(ctx);
  }
#ifndef __cplusplus /* an enum of two cannot hold these in C++ */
  desc = zero, desc.numerics = (mlk_numerics)2;
  refuse_open(desc, MLK_ERR_ARGUMENT, "numerics", "2");
  desc = zero, desc.numerics = (mlk_numerics)-1;
  refuse_open(desc, MLK_ERR_ARGUMENT, "numerics", NULL);
  desc = zero, desc.growth = (mlk_growth)2;
  refuse_open(desc, MLK_ERR_ARGUMENT, "growth", "2");
  desc = zero, desc.isa = (mlk_isa)-1;
  refuse_open(desc, MLK_ERR_ARGUMENT, "isa", NULL);
#endif
  desc = zero, desc.allocator.alloc = plain_alloc;
  refuse_open(desc, MLK_ERR_ARGUMENT, "allocator", NULL);
  desc = zero, desc.allocator.free = plain_free;
  refuse_open(desc, MLK_ERR_ARGUMENT, "allocator", NULL);
  desc = zero, desc.parallel = mlkt_parallel_serial(0);
  refuse_open(desc, MLK_ERR_ARGUMENT, "workers", "0");
  desc = zero, desc.parallel = mlkt_parallel_serial(-3);
  refuse_open(desc, MLK_ERR_ARGUMENT, "workers", "-3");
  for (isa = MLK_ISA_SCALAR; isa < MLK_ISA_COUNT; isa++) {
    if (mlk_isa_available((mlk_isa)isa)) continue;
    desc = zero, desc.isa = (mlk_isa)isa;
    refuse_open(desc, MLK_ERR_UNSUPPORTED, mlk_isa_name((mlk_isa)isa), NULL);
  }
  { /* a workspace that cannot be had */
    static const uint64_t absurd[] = {UINT64_MAX, UINT64_MAX - 63, UINT64_C(1) << 63, UINT64_C(1) << 62};
    for (i = 0; i < sizeof absurd / sizeof absurd[0]; i++) {
      mlkt_memory memory;
      mlk_context *ctx = NULL;
      mlk_status status;
      memset(&memory, 0, sizeof memory);
      desc = zero, desc.workspace_bytes = absurd[i], desc.allocator = mlkt_memory_hook(&memory);
      status = mlk_open(&ctx, &desc);
      CHECK_MSG(status == MLK_ERR_MEMORY || status == MLK_ERR_SIZE, "workspace_bytes %" PRIu64 " gives \"%s\"",
                absurd[i], mlk_status_name(status));
      CHECK(ctx == NULL);
      CHECK_MEMORY_EMPTY(&memory);
    }
  }
}

static void sentences(void) {
  log_book book = {0, ""};
  mlk_context_desc desc = mlkt_context_desc(MLK_ISA_BEST, 1);
  mlk_context *ctx = NULL;
  work *w = work_new(mlkt_rng_case());
  mlk_matmul_desc matmul = work_matmul(w);
  mlk_plan plan;
  char kept[1024];
  desc.log = log_line;
  desc.log_user = &book;
  if (CHECK_STATUS(NULL, mlk_open(&ctx, &desc), MLK_OK)) {
    CHECK_EQ_STR(mlk_last_error(ctx), "");
    CHECK_OK(ctx, mlk_matmul(ctx, &matmul));
    CHECK_EQ_STR(mlk_last_error(ctx), "");
    CHECK_EQ_I64(book.lines, 0);

    matmul.b.shape[0] = MK + 1; /* a has MK columns */
    work_rogue(w);
    CHECK_STATUS(ctx, mlk_matmul(ctx, &matmul), MLK_ERR_SHAPE);
    CHECK_EQ_I64(book.lines, 1);
    CHECK_EQ_STR(book.last, mlk_last_error(ctx));
    CHECK_MSG(mlkt_has_word(book.last, "b") && strstr(book.last, "531") && strstr(book.last, "530"),
              "the sentence does not tell b, 531 and 530: \"%s\"", book.last);
    CHECK_MSG(!strchr(book.last, '\n'), "the sentence has a line break: \"%s\"", book.last);
    CHECK(op_untouched(OP_matmul, w));
    CHECK_STATUS(ctx, mlk_matmul_plan(ctx, &matmul, &plan), MLK_ERR_SHAPE);
    CHECK_EQ_I64(book.lines, 2);

    /* "the sentence of the last failed call": a success after it does not wipe it */
    snprintf(kept, sizeof kept, "%s", mlk_last_error(ctx));
    matmul = work_matmul(w);
    CHECK_OK(ctx, mlk_matmul(ctx, &matmul));
    CHECK_EQ_STR(mlk_last_error(ctx), kept);
    CHECK_EQ_I64(book.lines, 2);

    matmul.d.data = NULL; /* another failure replaces it */
    CHECK_STATUS(ctx, mlk_matmul(ctx, &matmul), MLK_ERR_ARGUMENT);
    CHECK_NAMES(ctx, "d");
    CHECK(strcmp(mlk_last_error(ctx), kept) != 0);
    CHECK_EQ_I64(book.lines, 3);
    mlk_close(ctx);
  }
  free(w);
}

/* Cases of the CPU's rows, threads and allocator; test_cuda.c has what corresponds to them. */
static int on_a_device(void) {
  if (mlkt_opt.cuda) mlkt_skip("about the CPU");
  return mlkt_opt.cuda;
}

static void rows(void) {
  mlk_isa isas[MLK_ISA_COUNT];
  const int count = on_a_device() ? 0 : mlkt_isas(isas);
  work *expected = work_expected(mlkt_rng_case()), *w = work_copy(expected);
  int i, op;
  CHECK(count >= 1 || mlkt_opt.cuda);
  for (i = 0; i < count; i++) {
    mlk_context *ctx = mlkt_open(isas[i], 1);
    mlk_info info;
    mlk_plan plan;
    if (!ctx) continue;
    mlkt_note("isa %s", mlk_isa_name(isas[i]));
    CHECK_OK(ctx, mlk_get_info(ctx, &info));
    CHECK_EQ_STR(info.isa, mlk_isa_name(isas[i]));
    CHECK_EQ_I64(info.threads, 1);
    work_rogue(w);
    for (op = 0; op < OP_COUNT; op++) {
      memset(&plan, 0xFE, sizeof plan);
      if (CHECK_OK(ctx, op_plan(op, ctx, w, &plan))) {
        CHECK_EQ_STR(plan.isa, mlk_isa_name(isas[i]));
        CHECK_EQ_STR(plan.backend, "cpu");
        CHECK(plan.variant != NULL && plan.variant[0] != 0);
        CHECK_EQ_I64(plan.threads, 1);
        CHECK(plan.seconds == 0); /* nothing measured yet */
        CHECK(op_untouched(op, w));
      }
      CHECK_OK(ctx, op_run(op, ctx, w));
      CHECK_MSG(op_same(op, w, expected), "%s differs from the scalar row", op_name(op));
    }
    mlk_close(ctx);
  }
  if (mlkt_opt.isa == MLK_ISA_BEST && !mlkt_opt.cuda) {
    /* the default is one of them and the last available of the enum's order */
    mlk_context *ctx = NULL;
    mlk_info info;
    if (CHECK_STATUS(NULL, mlk_open(&ctx, NULL), MLK_OK)) {
      CHECK_OK(ctx, mlk_get_info(ctx, &info));
      CHECK_EQ_STR(info.isa, mlk_isa_name(isas[count - 1]));
      mlk_close(ctx);
    }
  }
  free(expected);
  free(w);
}

/* ---- workspace --------------------------------------------------------------------------------------------------- */

static void reserve(void) {
  mlkt_memory memory;
  mlk_context_desc desc = mlkt_context_desc(MLK_ISA_BEST, 2);
  mlk_context *ctx = NULL;
  mlk_info info;
  uint64_t calls, before, opened;
  memset(&memory, 0, sizeof memory);
  desc.allocator = mlkt_memory_hook(&memory);
  if (!CHECK_STATUS(NULL, mlk_open(&ctx, &desc), MLK_OK)) return;
  opened = memory.live_bytes;
  CHECK_OK(ctx, mlk_reserve(ctx, 0, MLK_GROWS));
  CHECK_EQ_I64(memory.live_bytes, opened);
  CHECK_OK(ctx, mlk_reserve(ctx, 100000, MLK_GROWS));
  CHECK_OK(ctx, mlk_get_info(ctx, &info));
  CHECK_MSG(info.workspace_bytes >= 100000, "workspace_bytes is %" PRIu64, info.workspace_bytes);
  CHECK_EQ_I64(memory.live_bytes - opened, mlkt_opt.cuda ? 0 : info.workspace_bytes);
  before = info.workspace_bytes;
  calls = memory.calls;
  CHECK_OK(ctx, mlk_reserve(ctx, 1000, MLK_GROWS)); /* never shrinks, and does not allocate for less */
  CHECK_OK(ctx, mlk_reserve(ctx, 100000, MLK_FIXED));
  CHECK_OK(ctx, mlk_get_info(ctx, &info));
  CHECK_EQ_I64(info.workspace_bytes, before);
  CHECK_EQ_I64(memory.calls, calls);
  CHECK_OK(ctx, mlk_reserve(ctx, 300000, MLK_FIXED)); /* reserve itself grows a fixed workspace */
  CHECK_OK(ctx, mlk_get_info(ctx, &info));
  CHECK(info.workspace_bytes >= 300000);
  before = info.workspace_bytes;
  {
    static const uint64_t absurd[] = {UINT64_MAX, UINT64_MAX - 4095, UINT64_C(1) << 63, (UINT64_C(1) << 63) - 1,
                                      UINT64_C(1) << 62};
    size_t i;
    for (i = 0; i < sizeof absurd / sizeof absurd[0]; i++) {
      const mlk_status status = mlk_reserve(ctx, absurd[i], MLK_GROWS);
      CHECK_MSG(status == MLK_ERR_MEMORY || status == MLK_ERR_SIZE, "mlk_reserve(%" PRIu64 ") gives \"%s\"", absurd[i],
                mlk_status_name(status));
      CHECK(mlk_last_error(ctx)[0] != 0);
    }
  }
#ifndef __cplusplus
  CHECK_STATUS(ctx, mlk_reserve(ctx, 0, (mlk_growth)2), MLK_ERR_ARGUMENT);
  CHECK_NAMES(ctx, "growth");
#endif
  CHECK_OK(ctx, mlk_get_info(ctx, &info));
  CHECK_MSG(info.workspace_bytes >= before || info.workspace_bytes == 0,
            "after failed reserves the workspace is %" PRIu64 " bytes", info.workspace_bytes);
  mlk_close(ctx);
  CHECK_MEMORY_EMPTY(&memory);

  memset(&memory, 0, sizeof memory); /* reserved by mlk_open */
  desc.workspace_bytes = 54321;
  desc.growth = MLK_FIXED;
  if (!CHECK_STATUS(NULL, mlk_open(&ctx, &desc), MLK_OK)) return;
  CHECK_OK(ctx, mlk_get_info(ctx, &info));
  CHECK(info.workspace_bytes >= 54321);
  mlk_close(ctx);
  CHECK_MEMORY_EMPTY(&memory);
}

/* One operator on a fresh context: the plan allocates nothing, the run exactly the plan's bytes,
   a second run nothing. */
static void plan_against_allocator(int op, mlk_isa isa, int threads, work *w, const work *expected) {
  mlkt_memory memory;
  mlk_context_desc desc = mlkt_context_desc(isa, threads);
  mlk_context *ctx = NULL;
  mlk_plan plan;
  mlk_info info;
  uint64_t opened, calls;
  memset(&memory, 0, sizeof memory);
  desc.allocator = mlkt_memory_hook(&memory);
  if (!CHECK_STATUS(NULL, mlk_open(&ctx, &desc), MLK_OK)) return;
  opened = memory.live_bytes;
  calls = memory.calls;
  if (CHECK_OK(ctx, op_plan(op, ctx, w, &plan))) {
    CHECK_EQ_I64(memory.calls, calls);
    CHECK(plan.threads >= 1 && plan.threads <= threads);
    work_rogue(w);
    CHECK_OK(ctx, op_run(op, ctx, w));
    if (!mlkt_opt.cuda) {
      CHECK_EQ_I64(memory.live_bytes - opened, plan.workspace_bytes);
      CHECK_EQ_I64(memory.peak_bytes - opened, plan.workspace_bytes);
    }
    CHECK_OK(ctx, mlk_get_info(ctx, &info));
    CHECK_EQ_I64(info.workspace_bytes, plan.workspace_bytes);
    CHECK_MSG(op_same(op, w, expected), "%s: other bits than one scalar thread", op_name(op));
    calls = memory.calls;
    work_rogue(w);
    CHECK_OK(ctx, op_run(op, ctx, w));
    CHECK_EQ_I64(memory.calls, calls);
    CHECK_MSG(op_same(op, w, expected), "%s: other bits on the second run", op_name(op));
  }
  mlk_close(ctx);
  CHECK_MEMORY_EMPTY(&memory);
}

/* The same under a fixed workspace: refused with the size in words, fine once that size is reserved. */
static void plan_against_fixed(int op, mlk_isa isa, int threads, work *w, const work *expected) {
  mlkt_memory memory;
  mlk_context_desc desc = mlkt_context_desc(isa, threads);
  mlk_context *ctx = NULL;
  mlk_plan plan;
  mlk_info info;
  char size[32];
  uint64_t calls;
  memset(&memory, 0, sizeof memory);
  desc.allocator = mlkt_memory_hook(&memory);
  desc.growth = MLK_FIXED;
  if (!CHECK_STATUS(NULL, mlk_open(&ctx, &desc), MLK_OK)) return;
  calls = memory.calls;
  work_rogue(w);
  if (CHECK_OK(ctx, op_plan(op, ctx, w, &plan))) {
    if (plan.workspace_bytes > 0) {
      CHECK_STATUS(ctx, op_run(op, ctx, w), MLK_ERR_WORKSPACE);
      CHECK(op_untouched(op, w));
      snprintf(size, sizeof size, "%" PRIu64, plan.workspace_bytes);
      CHECK_MSG(strstr(mlk_last_error(ctx), size) != NULL, "%s does not tell %s: \"%s\"", op_name(op), size,
                mlk_last_error(ctx));
      if (!mlkt_opt.cuda) CHECK_EQ_I64(memory.calls, calls); /* the first staged list takes room on the host, once */
      CHECK_OK(ctx, mlk_reserve(ctx, plan.workspace_bytes - 1, MLK_FIXED));
      CHECK_OK(ctx, mlk_get_info(ctx, &info));
      if (info.workspace_bytes < plan.workspace_bytes) {
        CHECK_STATUS(ctx, op_run(op, ctx, w), MLK_ERR_WORKSPACE);
        CHECK(op_untouched(op, w));
      }
    }
    CHECK_OK(ctx, mlk_reserve(ctx, plan.workspace_bytes, MLK_FIXED));
    calls = memory.calls;
    CHECK_OK(ctx, op_run(op, ctx, w));
    CHECK_EQ_I64(memory.calls, calls);
    CHECK_MSG(op_same(op, w, expected), "%s: other bits in a fixed workspace", op_name(op));
    CHECK_OK(ctx, mlk_reserve(ctx, 0, MLK_GROWS)); /* and it may grow again when told so */
  }
  mlk_close(ctx);
  CHECK_MEMORY_EMPTY(&memory);
}

static void plan_is_allocation(void) {
  mlk_isa isas[MLK_ISA_COUNT];
  const int count = mlkt_isas(isas);
  work *expected = work_expected(mlkt_rng_case()), *w = work_copy(expected);
  int i, op, threads;
  for (i = 0; i < count; i++)
    for (threads = 1; threads <= mlkt_opt.threads_max; threads += 2)
      for (op = 0; op < OP_COUNT; op++) {
        mlkt_note("%s, isa %s, threads %d", op_name(op), mlk_isa_name(isas[i]), threads);
        plan_against_allocator(op, isas[i], threads, w, expected);
        plan_against_fixed(op, isas[i], threads, w, expected);
      }
  free(expected);
  free(w);
}

/* One context, all operators in turn: the workspace is the greatest of the plans so far, and then stays. */
static void workspace_is_the_greatest(void) {
  work *expected = work_expected(mlkt_rng_case()), *w = work_copy(expected);
  mlkt_memory memory;
  mlk_context_desc desc = mlkt_context_desc(MLK_ISA_BEST, 2);
  mlk_context *ctx = NULL;
  mlk_info info;
  uint64_t greatest = 0, calls;
  int round, op;
  memset(&memory, 0, sizeof memory);
  desc.allocator = mlkt_memory_hook(&memory);
  if (CHECK_STATUS(NULL, mlk_open(&ctx, &desc), MLK_OK)) {
    const uint64_t opened = memory.live_bytes;
    calls = memory.calls;
    for (round = 0; round < 2; round++) {
      for (op = OP_COUNT - 1; op >= 0; op--) {
        mlk_plan plan;
        CHECK_OK(ctx, op_plan(op, ctx, w, &plan));
        work_rogue(w);
        CHECK_OK(ctx, op_run(op, ctx, w));
        CHECK(op_same(op, w, expected));
        if (plan.workspace_bytes > greatest) greatest = plan.workspace_bytes;
        if (!mlkt_opt.cuda) CHECK_EQ_I64(memory.live_bytes - opened, greatest);
        CHECK_OK(ctx, mlk_get_info(ctx, &info));
        CHECK_EQ_I64(info.workspace_bytes, greatest);
      }
      if (round == 1) CHECK_EQ_I64(memory.calls, calls);
      calls = memory.calls;
    }
    mlk_close(ctx);
    CHECK_MEMORY_EMPTY(&memory);
  }
  free(expected);
  free(w);
}

/* ---- every allocation may fail ----------------------------------------------------------------------------------- */

/* Opens a context and runs op with allocation number n failing. Gives 1 when some allocation failed,
   0 when n was beyond. */
static int fail_allocation(int op, uint64_t n, int for_ever, work *w, const work *expected) {
  mlkt_memory memory;
  mlk_context_desc desc = mlkt_context_desc(MLK_ISA_BEST, 3);
  mlk_context *ctx = NULL;
  mlk_status status;
  memset(&memory, 0, sizeof memory);
  memory.fail_at = n;
  memory.fail_for_ever = for_ever;
  desc.allocator = mlkt_memory_hook(&memory);
  desc.workspace_bytes = 100; /* so that mlk_open allocates twice */
  status = mlk_open(&ctx, &desc);
  if (status != MLK_OK) {
    CHECK_STATUS(NULL, status, MLK_ERR_MEMORY);
    CHECK(ctx == NULL);
    CHECK(memory.failed > 0);
    CHECK_MEMORY_EMPTY(&memory);
    return 1;
  }
  work_rogue(w);
  status = op_run(op, ctx, w);
  if (memory.failed) {
    CHECK_STATUS(ctx, status, MLK_ERR_MEMORY);
    CHECK_MSG(mlk_last_error(ctx)[0] != 0, "%s failed without a sentence", op_name(op));
    CHECK_MSG(op_untouched(op, w), "%s wrote outputs though it failed", op_name(op));
    if (for_ever) {
      CHECK_STATUS(ctx, op_run(op, ctx, w), MLK_ERR_MEMORY);
      CHECK(op_untouched(op, w));
    }
    memory.fail_at = 0; /* memory is back: the context must be as good as new */
    CHECK_OK(ctx, op_run(op, ctx, w));
  } else {
    CHECK_STATUS(ctx, status, MLK_OK);
  }
  CHECK_MSG(op_same(op, w, expected), "%s: other bits after a failed allocation", op_name(op));
  mlk_close(ctx);
  CHECK_MEMORY_EMPTY(&memory);
  return memory.failed > 0;
}

static void allocation_failures(void) {
  work *expected = work_expected(mlkt_rng_case()), *w = work_copy(expected);
  int op, for_ever;
  for (op = 0; op < OP_COUNT; op++)
    for (for_ever = 0; for_ever < 2; for_ever++) {
      uint64_t n = 1;
      do mlkt_note("%s, allocation %" PRIu64 " fails %s", op_name(op), n, for_ever ? "for ever" : "once");
      while (fail_allocation(op, n, for_ever, w, expected) && ++n < 1000);
      CHECK_MSG(n >= 3 && n < 1000, "%s still fails at allocation %" PRIu64, op_name(op), n);
    }
  free(expected);
  free(w);
}

static void reserve_failures(void) {
  work *expected = work_expected(mlkt_rng_case()), *w = work_copy(expected);
  mlkt_memory memory;
  mlk_context_desc desc = mlkt_context_desc(MLK_ISA_BEST, 2);
  mlk_context *ctx = NULL;
  memset(&memory, 0, sizeof memory);
  desc.allocator = mlkt_memory_hook(&memory);
  if (!on_a_device() && CHECK_STATUS(NULL, mlk_open(&ctx, &desc), MLK_OK)) {
    CHECK_OK(ctx, mlk_reserve(ctx, 4096, MLK_GROWS));
    memory.fail_at = memory.calls + 1;
    CHECK_STATUS(ctx, mlk_reserve(ctx, 123456, MLK_GROWS), MLK_ERR_MEMORY);
    CHECK_MSG(strstr(mlk_last_error(ctx), "123456") != NULL || strlen(mlk_last_error(ctx)) > 20,
              "the sentence says little: \"%s\"", mlk_last_error(ctx));
    CHECK_OK(ctx, op_run(OP_matmul, ctx, w));
    CHECK(op_same(OP_matmul, w, expected));
    CHECK_OK(ctx, mlk_reserve(ctx, 50000000, MLK_FIXED));
    mlk_close(ctx);
    CHECK_MEMORY_EMPTY(&memory);
  }
  free(expected);
  free(w);
}

static double slower(double x, double y) { return x > y ? x : y; } /* of two times */

/* mlk_measure: sane figures, plans then predict, its memory is given back, and its allocations may fail. */
static void measure(void) {
  work *w = work_new(mlkt_rng_case());
  mlkt_memory memory;
  mlk_context_desc desc = mlkt_context_desc(MLK_ISA_BEST, 2);
  mlk_context *ctx = NULL;
  mlk_ceilings ceilings;
  mlk_info info;
  mlk_plan plan;
  uint64_t n;
  int op;
  memset(&memory, 0, sizeof memory);
  desc.allocator = mlkt_memory_hook(&memory);
  if (!CHECK_STATUS(NULL, mlk_open(&ctx, &desc), MLK_OK)) {
    free(w);
    return;
  }
  for (n = 1; n < 100; n++) { /* the n-th allocation fails; ends with the first call in which none does */
    const uint64_t live = memory.live_bytes, failed = memory.failed;
    mlk_status status;
    memset(&ceilings, 0xFE, sizeof ceilings);
    memory.fail_at = memory.calls + n;
    status = mlk_measure(ctx, &ceilings);
    memory.fail_at = 0;
    CHECK_EQ_I64(memory.live_bytes, live);
    if (memory.failed == failed) {
      CHECK_STATUS(ctx, status, MLK_OK);
      break;
    }
    CHECK_STATUS(ctx, status, MLK_ERR_MEMORY);
    CHECK_OK(ctx, mlk_get_info(ctx, &info));
    CHECK(info.ceilings.flops_1 == 0 && info.ceilings.read_all == 0);
  }
  CHECK(n < 100);
  /* bounds of any machine, not of this one: whatever else runs here may make a figure as small as it likes */
  CHECK_MSG(ceilings.flops_1 > 0 && ceilings.flops_1 < 1e13, "flops_1 is %g", ceilings.flops_1);
  CHECK_MSG(ceilings.flops_all >= ceilings.flops_1 && ceilings.flops_all < 1e16, "flops_all is %g", ceilings.flops_all);
  CHECK_MSG(ceilings.read_1 > 0 && ceilings.read_1 < 1e13, "read_1 is %g", ceilings.read_1);
  CHECK_MSG(ceilings.read_all >= ceilings.read_1 && ceilings.read_all < 1e15, "read_all is %g", ceilings.read_all);
  CHECK_OK(ctx, mlk_get_info(ctx, &info));
  CHECK(memcmp(&info.ceilings, &ceilings, sizeof ceilings) == 0);
  for (op = 0; op < OP_COUNT; op++) {
    CHECK_OK(ctx, op_plan(op, ctx, w, &plan));
    { /* the ceilings of one thread and of all bracket the roofline, whatever number of tasks is planned; on a device
         each operator has an estimate of its own, of tensor cores and of kernels' starts too */
      const double least = slower((double)plan.flops / ceilings.flops_all, (double)plan.bytes / ceilings.read_all);
      const double most = slower((double)plan.flops / ceilings.flops_1, (double)plan.bytes / ceilings.read_1);
      CHECK_MSG(plan.seconds > 0 &&
                    (mlkt_opt.cuda || (plan.seconds >= least * (1 - 1e-12) && plan.seconds <= most * (1 + 1e-12))),
                "%s: predicted %g s, by the ceilings %g to %g", op_name(op), plan.seconds, least, most);
    }
  }
  mlk_close(ctx);
  CHECK_MEMORY_EMPTY(&memory);
  free(w);
}

/* mlk_calibrate: plans predict by what it found, another context may be given that, its memory is given back. */
static void calibrate(void) {
  static mlk_calibration found, unlike;
  work *w = work_new(mlkt_rng_case());
  mlkt_memory memory;
  mlk_context_desc desc = mlkt_context_desc(MLK_ISA_BEST, 2);
  mlk_context *ctx = NULL, *second = NULL;
  mlk_info info;
  mlk_plan plan, again;
  uint64_t n;
  int32_t i;
  int op;
  if (mlkt_opt.cuda) {
    mlkt_skip("cuda/calibrate asks it of a device");
    free(w);
    return;
  }
  memset(&memory, 0, sizeof memory);
  desc.allocator = mlkt_memory_hook(&memory);
  desc.growth = MLK_FIXED, desc.workspace_bytes = 1 << 20; /* what needs more is left out, not refused */
  if (!CHECK_STATUS(NULL, mlk_open(&ctx, &desc), MLK_OK)) {
    free(w);
    return;
  }
  for (n = 1; n <= 4; n++) { /* the n-th allocation fails, as long as there are so many */
    const uint64_t live = memory.live_bytes, failed = memory.failed;
    mlk_status status;
    memory.fail_at = memory.calls + n;
    memset(&unlike, 0x5a, sizeof unlike), found = unlike;
    status = mlk_calibrate(ctx, &found);
    memory.fail_at = 0;
    CHECK_EQ_I64(memory.live_bytes, live);
    if (memory.failed == failed) {
      CHECK_STATUS(ctx, status, MLK_OK);
      break;
    }
    CHECK_STATUS(ctx, status, MLK_ERR_MEMORY);
    CHECK(memcmp(&found, &unlike, sizeof found) == 0);
  }
  CHECK(n <= 4);
  CHECK_OK(ctx, mlk_get_info(ctx, &info));
  CHECK_EQ_I64(found.version, MLK_VERSION);
  CHECK(strcmp(found.backend, info.backend) == 0 && strcmp(found.isa, info.isa) == 0);
  CHECK(memcmp(&found.ceilings, &info.ceilings, sizeof info.ceilings) == 0);
  CHECK_MSG(found.count > 20 && found.count <= MLK_CALIBRATION_POINTS, "%d points", (int)found.count);
  for (i = 0; i < found.count; i++) {
    const mlk_calibration_point *p = &found.points[i];
    CHECK_MSG(p->op >= 0 && p->op < MLK_OP_COUNT && p->bytes > 0 && p->factor > -40 && p->factor < 40,
              "point %d: operator %d, bytes %g, factor %g", (int)i, (int)p->op, (double)p->bytes, (double)p->factor);
  }
  desc.calibration = &found;
  CHECK_STATUS(NULL, mlk_open(&second, &desc), MLK_OK);
  for (op = 0; op < OP_COUNT; op++) {
    CHECK_OK(ctx, op_plan(op, ctx, w, &plan));
    CHECK_OK(second, op_plan(op, second, w, &again));
    CHECK_MSG(plan.seconds > 0 && plan.seconds < 1e9, "%s: predicted %g s", op_name(op), plan.seconds);
    CHECK_MSG(plan.seconds == again.seconds, "%s: predicted %g s, by the calibration given %g s", op_name(op),
              plan.seconds, again.seconds);
  }
  mlk_close(second), mlk_close(ctx);
  CHECK_MEMORY_EMPTY(&memory);
  free(w);
}

/* Seconds that a plan of n elements predicts with calibration c. */
static double predicted(const mlk_calibration *c, int64_t n) {
  static float x[1];
  mlk_context_desc desc = mlkt_context_desc(MLK_ISA_SCALAR, 1);
  mlk_context *ctx = NULL;
  mlk_map_desc map;
  mlk_plan plan;
  memset(&map, 0, sizeof map), memset(&plan, 0, sizeof plan);
  map.a = map.out = mlk_f32(x, n); /* a scale in place */
  map.op = MLK_SCALE;
  desc.device = MLK_DEVICE_CPU;
  desc.calibration = c;
  if (!CHECK_STATUS(NULL, mlk_open(&ctx, &desc), MLK_OK)) return 0;
  CHECK_OK(ctx, mlk_map_plan(ctx, &map, &plan));
  mlk_close(ctx);
  return plan.seconds;
}

/* A calibration made up here: its factors are found again, and between two points a prediction lies between theirs. */
static void calibration_given(void) {
  static mlk_calibration c;
  mlk_context_desc desc = mlkt_context_desc(MLK_ISA_SCALAR, 1);
  const int64_t small = 1 << 10, large = 1 << 20;
  double roof, low, high, middle;
  desc.device = MLK_DEVICE_CPU;
  c.version = MLK_VERSION, c.threads = 1;
  snprintf(c.backend, sizeof c.backend, "cpu");
  snprintf(c.isa, sizeof c.isa, "scalar");
  c.ceilings.flops_1 = c.ceilings.flops_all = 1e9, c.ceilings.read_1 = c.ceilings.read_all = 1e9;
  CHECK(predicted(&c, small) == 8e-9 * (double)small); /* read once, written once */
  c.count = 3;
  c.points[0].op = c.points[1].op = MLK_OP_MAP, c.points[2].op = MLK_OP_SOFTMAX;
  c.points[0].flops = 10, c.points[0].bytes = 13, c.points[0].tasks = 1, c.points[0].factor = 1;
  c.points[1].flops = 20, c.points[1].bytes = 23, c.points[1].tasks = 1, c.points[1].factor = 3;
  c.points[2] = c.points[0], c.points[2].op = MLK_OP_SOFTMAX, c.points[2].factor = 30; /* another operator's */
  roof = 8e-9 * (double)small;
  low = predicted(&c, small) / roof;
  high = predicted(&c, large) / (roof * 1024);
  middle = predicted(&c, small * 32) / (roof * 32);
  CHECK_MSG(low >= 2 && low < 3 && high > 5.3 && high <= 8 && middle > 3.9 && middle < 4.1,
            "factors %g, %g, %g, expected about 2, 4, 8", low, middle, high);
  desc.calibration = &c;
  c.threads = 2;
  refuse_open(desc, MLK_ERR_ARGUMENT, "calibration", "threads 2");
  c.threads = 1, c.version++;
  refuse_open(desc, MLK_ERR_ARGUMENT, "calibration", "version");
  c.version--, c.count = MLK_CALIBRATION_POINTS + 1;
  refuse_open(desc, MLK_ERR_ARGUMENT, "calibration", "257 points");
  c.count = 3, c.isa[0] = 'x';
  refuse_open(desc, MLK_ERR_ARGUMENT, "calibration", "xcalar");
  c.isa[0] = 's', c.ceilings.read_all = 0;
  refuse_open(desc, MLK_ERR_ARGUMENT, "calibration", "and 0 bytes a second, but must be positive");
}

/* ---- parallel hooks ---------------------------------------------------------------------------------------------- */

typedef struct hook_book {
  int runs, most, least, nested;
} hook_book;

static void book_run(void *user, int count, void (*body)(void *arg, int index), void *arg) {
  hook_book *book = (hook_book *)user;
  int i;
  if (book->nested) book->least = -1000; /* a hook called from inside a hook */
  book->nested = 1;
  book->runs++;
  if (count > book->most) book->most = count;
  if (count < book->least) book->least = count;
  for (i = count - 1; i >= 0; i--) body(arg, i);
  book->nested = 0;
}

static void parallel_hooks(void) {
  work *expected = work_expected(mlkt_rng_case()), *w = work_copy(expected);
  int workers, kind, op;
  for (workers = mlkt_opt.quick && mlkt_opt.threads_max >= 2 ? 2 : 1; workers <= mlkt_opt.threads_max;
       workers += mlkt_opt.quick ? 3 : 1)
    for (kind = 0; kind < 4; kind++)
      for (op = 0; op < OP_COUNT; op++) {
        mlk_context_desc desc = mlkt_context_desc(MLK_ISA_BEST, 0);
        mlk_context *ctx = NULL;
        mlk_plan plan;
        mlk_info info;
        const uint64_t runs = mlkt_parallel_runs();
        desc.parallel = kind == 0   ? mlkt_parallel_serial(workers)
                        : kind == 1 ? mlkt_parallel_reversed(workers)
                        : kind == 2 ? mlkt_parallel_threads(workers)
                                    : mlkt_parallel_pool(workers);
        mlkt_note("%s, hook %d, workers %d", op_name(op), kind, workers);
        if (!CHECK_STATUS(NULL, mlk_open(&ctx, &desc), MLK_OK)) continue;
        CHECK_OK(ctx, mlk_get_info(ctx, &info));
        CHECK_EQ_I64(info.threads, workers); /* threads 0: what the hook offers */
        CHECK_EQ_I64(info.openmp, 0);
        CHECK_OK(ctx, op_plan(op, ctx, w, &plan));
        CHECK(plan.threads >= 1 && plan.threads <= workers);
        work_rogue(w);
        CHECK_OK(ctx, op_run(op, ctx, w));
        CHECK_MSG(op_same(op, w, expected), "%s: other bits than one thread", op_name(op));
        if (plan.threads > 1)
          CHECK_MSG(mlkt_parallel_runs() > runs, "%s planned %d tasks, the hook was not called", op_name(op),
                    plan.threads);
        mlk_close(ctx);
      }
  for (workers = 1; workers <= mlkt_opt.threads_max;
       workers += mlkt_opt.quick ? 3 : 1) { /* threads and workers: the lesser counts */
    int threads;
    for (threads = 0; threads <= mlkt_opt.threads_max; threads++) {
      const int most = threads == 0 || threads > workers ? workers : threads;
      hook_book book = {0, 0, INT_MAX, 0};
      mlk_context_desc desc = mlkt_context_desc(MLK_ISA_BEST, threads);
      mlk_context *ctx = NULL;
      mlk_info info;
      mlk_plan plan;
      desc.parallel.run = book_run;
      desc.parallel.user = &book;
      desc.parallel.workers = workers;
      mlkt_note("threads %d, workers %d", threads, workers);
      if (!CHECK_STATUS(NULL, mlk_open(&ctx, &desc), MLK_OK)) continue;
      CHECK_OK(ctx, mlk_get_info(ctx, &info));
      CHECK_EQ_I64(info.threads, most);
      CHECK_OK(ctx, op_plan(OP_matmul, ctx, w, &plan));
      work_rogue(w);
      CHECK_OK(ctx, op_run(OP_matmul, ctx, w));
      CHECK(op_same(OP_matmul, w, expected));
      if (book.runs)
        CHECK_MSG(book.least >= 1 && book.most <= most, "the hook was given %d to %d tasks", book.least, book.most);
      if (book.runs) CHECK_EQ_I64(book.most, plan.threads);
      if (most > 1 && !mlkt_opt.cuda)
        CHECK_MSG(book.runs > 0, "a product of %d x %d x %d stayed on one of %d threads", MM, MN, MK, most);
      mlk_close(ctx);
    }
  }
  free(expected);
  free(w);
}

static void foreign_parallel_region(void) {
#ifdef _OPENMP
  enum { TEAM = 3 };
  work *expected, *copies[TEAM];
  int bad[TEAM] = {0}, tasks[TEAM] = {0}, i;
  if (mlkt_opt.pool) {
    mlkt_skip("--pool: the OpenMP run-time is not instrumented");
    return;
  }
  expected = work_expected(mlkt_rng_case());
  for (i = 0; i < TEAM; i++) copies[i] = work_copy(expected);
#pragma omp parallel num_threads(TEAM)
  {
    const int me = omp_get_thread_num();
    mlk_context *ctx = NULL;
    mlk_plan plan;
    int op;
    if (mlk_open(&ctx, NULL) != MLK_OK)
      bad[me] |= 1;
    else {
      for (op = 0; op < OP_COUNT; op++) {
        if (op_plan(op, ctx, copies[me], &plan) != MLK_OK)
          bad[me] |= 2;
        else if (plan.threads > tasks[me])
          tasks[me] = plan.threads;
        if (op_run(op, ctx, copies[me]) != MLK_OK) bad[me] |= 4;
        if (!op_same(op, copies[me], expected)) bad[me] |= 8;
      }
      mlk_close(ctx);
    }
  }
  for (i = 0; i < TEAM; i++) {
    CHECK_MSG(bad[i] == 0, "thread %d of a foreign region: open 1, plan 2, run 4, bits 8: %d", i, bad[i]);
    CHECK_MSG(tasks[i] <= 1, "thread %d of a foreign region: %d tasks planned", i, tasks[i]);
    free(copies[i]);
  }
  free(expected);
#else
  mlkt_skip("compiled without OpenMP");
#endif
}

#if MLKT_POSIX
typedef struct thread_job {
  pthread_t thread;
  work *w;
  const work *expected;
  mlk_context_desc desc;
  int bad, started;
} thread_job;

static void *thread_job_main(void *user) {
  thread_job *job = (thread_job *)user;
  mlk_context *ctx = NULL;
  int round, op;
  for (round = 0; round < (mlkt_sampled() ? 1 : 3); round++) {
    if (mlk_open(&ctx, &job->desc) != MLK_OK) {
      job->bad |= 1;
      return NULL;
    }
    for (op = 0; op < OP_COUNT; op++) {
      mlk_matmul_desc wrong;
      work_rogue(job->w);
      if (op_run(op, ctx, job->w) != MLK_OK) job->bad |= 2;
      if (!op_same(op, job->w, job->expected)) job->bad |= 4;
      wrong = work_matmul(job->w); /* sentences do not mix either */
      wrong.a.shape[1] = 1000 + job->desc.threads;
      if (mlk_matmul(ctx, &wrong) != MLK_ERR_SHAPE || !strstr(mlk_last_error(ctx), "100")) job->bad |= 8;
    }
    mlk_close(ctx);
  }
  return NULL;
}
#endif

static void several_contexts(void) {
#if MLKT_POSIX
  enum { JOBS = 5 };
  thread_job jobs[JOBS];
  work *expected = work_expected(mlkt_rng_case());
  mlk_isa isas[MLK_ISA_COUNT];
  const int count = mlkt_isas(isas), used = mlkt_sampled() ? 3 : JOBS;
  int i;
  for (i = 0; i < used; i++) {
    memset(&jobs[i], 0, sizeof jobs[i]);
    jobs[i].w = work_copy(expected);
    jobs[i].expected = expected;
    jobs[i].desc = mlkt_context_desc(isas[i % count], 1 + i % 3);
  }
  for (i = 0; i < used; i++) jobs[i].started = pthread_create(&jobs[i].thread, NULL, thread_job_main, &jobs[i]) == 0;
  for (i = 0; i < used; i++) {
    if (jobs[i].started) pthread_join(jobs[i].thread, NULL);
    CHECK_MSG(jobs[i].started && jobs[i].bad == 0, "thread %d: open 1, run 2, bits 4, sentence 8: %d", i, jobs[i].bad);
    free(jobs[i].w);
  }
  free(expected);
#else
  mlkt_skip("no pthreads");
#endif
}

/* ---- a good guest ------------------------------------------------------------------------------------------------ */

#if defined(__x86_64__) || defined(_M_X64)
static uint32_t float_modes(void) { return (uint32_t)_mm_getcsr() & ~0x3Fu; } /* without the sticky flags */
static void flush_to_zero(int on) { _mm_setcsr(on ? _mm_getcsr() | 0x8040u : _mm_getcsr() & ~0x8040u); }
#elif defined(__aarch64__)
static uint32_t float_modes(void) {
  uint64_t fpcr;
  __asm__ __volatile__("mrs %0, fpcr" : "=r"(fpcr));
  return (uint32_t)fpcr;
}
static void flush_to_zero(int on) {
  uint64_t fpcr;
  __asm__ __volatile__("mrs %0, fpcr" : "=r"(fpcr));
  fpcr = on ? fpcr | (UINT64_C(1) << 24) : fpcr & ~(UINT64_C(1) << 24);
  __asm__ __volatile__("msr fpcr, %0" : : "r"(fpcr));
}
#else
static uint32_t float_modes(void) { return 0; }
static void flush_to_zero(int on) { (void)on; }
#endif

/* errno, rounding and flush modes as they were before a call; else what differs. */
static const char *manners(int rounding, uint32_t modes) {
  const char *wrong = errno != 4711              ? "errno"
                      : fegetround() != rounding ? "the rounding mode"
                      : float_modes() != modes   ? "a float mode"
                                                 : NULL;
  errno = 4711;
  return wrong;
}

static void good_guest(void) {
  static const int roundings[] = {FE_TONEAREST, FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO};
  work *w = work_new(mlkt_rng_case());
  mlk_isa isas[MLK_ISA_COUNT];
  const int count = mlkt_isas(isas);
  const int saved_rounding = fegetround();
  int i, r, flush, op;
  for (i = 0; i < count; i++)
    for (r = 0; r < 4; r++)
      for (flush = 0; flush < 2; flush++) {
        mlk_context_desc desc = mlkt_context_desc(isas[i], 2);
        mlk_matmul_desc wrong = work_matmul(w);
        mlk_context *ctx = NULL;
        mlk_plan plan;
        const char *after[OP_COUNT + 4] = {NULL}; /* checked when the modes are normal again */
        uint32_t modes;
        int used = 0, k;
        wrong.activation = MLK_ACTIVATION_COUNT;
        if (!mlkt_keep((uint64_t)(i * 8 + r * 2 + flush)) && r + flush > 0) continue;
        mlkt_note("isa %s, rounding mode %d, flush %d", mlk_isa_name(isas[i]), r, flush);
        if (fesetround(roundings[r]) != 0) continue;
        flush_to_zero(flush);
        modes = float_modes();
        errno = 4711;
        if (mlk_open(&ctx, &desc) == MLK_OK) {
          after[used++] = manners(roundings[r], modes);
          for (op = 0; op < OP_COUNT; op++) {
            (void)op_plan(op, ctx, w, &plan);
            (void)op_run(op, ctx, w);
            after[used++] = manners(roundings[r], modes);
          }
          (void)mlk_matmul(ctx, &wrong);
          after[used++] = manners(roundings[r], modes);
          (void)mlk_reserve(ctx, 9000000, MLK_GROWS);
          after[used++] = manners(roundings[r], modes);
          mlk_close(ctx);
          after[used++] = manners(roundings[r], modes);
        }
        flush_to_zero(0);
        fesetround(saved_rounding);
        CHECK_EQ_I64(used, OP_COUNT + 4);
        for (k = 0; k < used; k++)
          CHECK_MSG(after[k] == NULL, "call %d of open, the operators, refusal, reserve, close changed %s", k,
                    after[k]);
      }
  free(w);
}

/* ---- size arithmetic --------------------------------------------------------------------------------------------- */

/* x y, or UINT64_MAX when that does not fit below 2^64 - 1: a clean oracle that saturates. */
static uint64_t times(uint64_t x, uint64_t y) { return y != 0 && x > (UINT64_MAX - 1) / y ? UINT64_MAX : x * y; }
static uint64_t plus(uint64_t x, uint64_t y) { return x > UINT64_MAX - 1 - y || y == UINT64_MAX ? UINT64_MAX : x + y; }
static uint64_t greater(uint64_t x, uint64_t y) { return x > y ? x : y; }

/* Sizes at which 32-bit and 64-bit products go wrong, products that wrap to something small, and
   sizes that are none. */
static const int64_t edges[] = {0,
                                1,
                                3,
                                65536,
                                65537,
                                INT64_C(2147483647),
                                INT64_C(2147483648),
                                INT64_C(2147483649),
                                INT64_C(4294967295),
                                INT64_C(4294967296),
                                INT64_C(4294967297),
                                INT64_C(6442450944),
                                INT64_C(1) << 40,
                                INT64_C(1) << 48,
                                (INT64_C(1) << 61) - 1,
                                INT64_C(1) << 61,
                                INT64_C(1) << 62,
                                (INT64_C(1) << 62) + 1,
                                INT64_MAX - 1,
                                INT64_MAX,
                                -1,
                                INT64_MIN + 1}; /* INT64_MIN ends the argument list of mlk_f32 */
enum { EDGES = (int)(sizeof edges / sizeof edges[0]), SMALL_LIMIT = 62, SMALL_LIMIT_CUDA = 36 };

static float *fake(void) { return (float *)(uintptr_t)4096; }

/* A plan for sizes that are not there: SIZE when the exact figures do not fit, the exact figures
   when they clearly do. */
static void judge_plan(const char *op, mlk_status status, const mlk_plan *plan, int negative, uint64_t flops,
                       uint64_t bytes, uint64_t largest, const char *sentence) {
  const uint64_t top = greater(greater(flops, bytes), largest);
  CHECK_MSG(status != MLK_OK || !negative, "%s: a negative size was accepted", op);
  if (negative) {
    CHECK_MSG(status == MLK_ERR_SHAPE || status == MLK_ERR_ARGUMENT || status == MLK_ERR_SIZE,
              "%s: a negative size gives \"%s\"", op, mlk_status_name(status));
  } else if (status == MLK_OK) {
    CHECK_MSG(flops < UINT64_MAX && bytes < UINT64_MAX, "%s: figures that do not fit were accepted", op);
    CHECK_MSG(plan->flops == flops, "%s: flops %" PRIu64 ", expected %" PRIu64, op, plan->flops, flops);
    CHECK_MSG(plan->bytes == bytes, "%s: bytes %" PRIu64 ", expected %" PRIu64, op, plan->bytes, bytes);
  } else {
    CHECK_MSG(status == MLK_ERR_SIZE, "%s: \"%s\" instead of \"%s\": %s", op, mlk_status_name(status),
              mlk_status_name(MLK_ERR_SIZE), sentence);
    CHECK_MSG(top >= UINT64_C(1) << (mlkt_opt.cuda ? SMALL_LIMIT_CUDA : SMALL_LIMIT),
              "%s: sizes that fit were refused: %s", op, sentence);
    CHECK_MSG(sentence[0] != 0, "%s: no sentence", op);
  }
}

/* A call gives its plan's status. On a device what no device can hold is refused after the look for overlap. */
static void refused_as(const mlk_context *ctx, mlk_status status, mlk_status plan) {
  if (mlkt_opt.cuda && plan == MLK_ERR_SIZE && status == MLK_ERR_ALIAS) return;
  CHECK_STATUS(ctx, status, plan);
}

static void sizes_matmul(void) {
  mlk_context *ctx = mlkt_open(MLK_ISA_BEST, 2);
  mlk_plan plan;
  int i, j, l;
  if (!ctx) return;
  for (i = 0; i < EDGES; i++)
    for (j = 0; j < EDGES; j++)
      for (l = 0; l < EDGES; l++) {
        const int64_t m = edges[i], n = edges[j], k = edges[l];
        const uint64_t um = (uint64_t)m, un = (uint64_t)n, uk = (uint64_t)k;
        const uint64_t elements = plus(plus(times(um, uk), times(uk, un)), times(um, un));
        mlk_matmul_desc desc;
        mlk_status status;
        memset(&desc, 0, sizeof desc);
        desc.a = mlk_f32(fake(), m, k);
        desc.b = mlk_f32(fake(), k, n);
        desc.d = mlk_f32(fake(), m, n);
        mlkt_note("m %" PRId64 ", n %" PRId64 ", k %" PRId64, m, n, k);
        status = mlk_matmul_plan(ctx, &desc, &plan);
        judge_plan("mlk_matmul_plan", status, &plan, m < 0 || n < 0 || k < 0, times(2, times(times(um, un), uk)),
                   times(4, elements), times(4, times(times(greater(um, 1), greater(un, 1)), greater(uk, 1))),
                   status == MLK_OK ? "" : mlk_last_error(ctx));
        if (status != MLK_OK) refused_as(ctx, mlk_matmul(ctx, &desc), status); /* before memory is touched */
        if (mlkt_hopeless()) break;
      }
  mlk_close(ctx);
}

static void sizes_knn(void) {
  mlk_context *ctx = mlkt_open(MLK_ISA_BEST, 2);
  mlk_plan plan;
  int i, j, l, form;
  if (!ctx) return;
  for (i = 0; i < EDGES; i++)
    for (j = 0; j < EDGES; j++)
      for (l = 0; l < EDGES; l++)
        for (form = 0; form < 2; form++) {
          const int64_t q = edges[i], n = edges[j], d = edges[l];
          const uint64_t uq = (uint64_t)q, un = (uint64_t)n, ud = (uint64_t)d;
          const uint64_t inputs = times(4, plus(times(uq, ud), times(un, ud)));
          const uint64_t spread = times(times(greater(uq, 1), greater(un, 1)), greater(ud, 1));
          const uint64_t flops = times(2, times(times(uq, un), ud));
          mlk_status status;
          mlkt_note("queries %" PRId64 ", rows %" PRId64 ", length %" PRId64, q, n, d);
          if (form == 0) {
            mlk_knn_desc desc;
            memset(&desc, 0, sizeof desc);
            desc.queries = mlk_f32(fake(), q, d);
            desc.base = mlk_f32(fake(), n, d);
            desc.k = 10;
            desc.ids = mlk_i64((int64_t *)(void *)fake(), q, 10);
            desc.distances = mlk_f32(fake(), q, 10);
            status = mlk_knn_plan(ctx, &desc, &plan);
            judge_plan("mlk_knn_plan", status, &plan, q < 0 || n < 0 || d < 0, flops, plus(inputs, times(120, uq)),
                       greater(times(spread, 4), times(times(uq, 10), 4096)), /* workspace grows with k Q */
                       status == MLK_OK ? "" : mlk_last_error(ctx));
            if (status != MLK_OK) refused_as(ctx, mlk_knn(ctx, &desc), status);
          } else {
            mlk_distances_desc desc;
            memset(&desc, 0, sizeof desc);
            desc.queries = mlk_f32(fake(), q, d);
            desc.base = mlk_f32(fake(), n, d);
            desc.out = mlk_f32(fake(), q, n);
            status = mlk_distances_plan(ctx, &desc, &plan);
            judge_plan("mlk_distances_plan", status, &plan, q < 0 || n < 0 || d < 0, flops,
                       plus(inputs, times(4, times(uq, un))), times(spread, 4),
                       status == MLK_OK ? "" : mlk_last_error(ctx));
            if (status != MLK_OK) refused_as(ctx, mlk_distances(ctx, &desc), status);
          }
          if (mlkt_hopeless()) {
            mlk_close(ctx);
            return;
          }
        }
  mlk_close(ctx);
}

/* Strides, batches, k, first_id and packing at the limits: never accepted where the last element has no address. */
static void sizes_odd(void) {
  static const int64_t strides[] = {INT64_C(1) << 31, INT64_C(1) << 40, INT64_C(1) << 60,   INT64_C(1) << 62,
                                    INT64_MAX,        INT64_MIN,        -(INT64_C(1) << 62)};
  mlk_context *ctx = mlkt_open(MLK_ISA_BEST, 2);
  mlk_plan plan;
  mlk_packed packed;
  size_t i;
  int axis, which;
  /* 2^52 * 1024 flops = 2^62, 2^52 * 512 bytes = 2^61; no device holds 2^40 bytes */
  const size_t batches = mlkt_opt.cuda ? 30 : 52, refused = mlkt_opt.cuda ? 31 : 54;
  if (!ctx) return;
  for (i = 0; i < sizeof strides / sizeof strides[0]; i++)
    for (axis = 0; axis < 2; axis++)
      for (which = 0; which < 2; which++) {
        mlk_matmul_desc desc;
        mlk_tensor *t;
        mlk_status status;
        memset(&desc, 0, sizeof desc);
        desc.a = mlk_transposed(mlk_transposed(mlk_f32(fake(), 5, 5))); /* explicit strides */
        desc.b = mlk_transposed(mlk_transposed(mlk_f32(fake(), 5, 5)));
        desc.d = mlk_f32(fake(), 5, 5);
        t = which ? &desc.a : &desc.b;
        t->stride[axis] = strides[i];
        mlkt_note("%s.stride[%d] %" PRId64, which ? "a" : "b", axis, strides[i]);
        status = mlk_matmul_plan(ctx, &desc, &plan);
        /* four steps of 2^60 floats are 2^64 bytes */
        if (strides[i] >= INT64_C(1) << 60 || strides[i] < 0) {
          CHECK_STATUS(ctx, status, MLK_ERR_SIZE);
          CHECK_MSG(mlkt_has_word(mlk_last_error(ctx), which ? "a" : "b"),
                    "the sentence does not name the tensor: \"%s\"", mlk_last_error(ctx));
        } else
          CHECK_STATUS(ctx, status, MLK_OK);
      }
  for (i = 1; i <= 62; i++) { /* batches whose product goes through every power of two: 2^i matrices of 8 x 8 */
    mlk_matmul_desc desc;
    mlk_status status;
    const int64_t half = INT64_C(1) << (i / 2), rest = INT64_C(1) << (i - i / 2);
    memset(&desc, 0, sizeof desc);
    desc.a = mlk_f32(fake(), half, rest, 8, 8);
    desc.b = mlk_f32(fake(), 8, 8);
    desc.d = mlk_f32(fake(), half, rest, 8, 8);
    mlkt_note("2^%d matrices", (int)i);
    status = mlk_matmul_plan(ctx, &desc, &plan);
    if (i <= batches) {
      if (CHECK_STATUS(ctx, status, MLK_OK)) {
        CHECK_EQ_I64(plan.flops, UINT64_C(1024) << i);
        CHECK_EQ_I64(plan.bytes, (UINT64_C(512) << i) + 256);
      }
    } else if (i >= refused)
      CHECK_STATUS(ctx, status, MLK_ERR_SIZE);
  }
  for (i = 0; i < EDGES; i++) {
    mlk_status status;
    memset(&packed, 0, sizeof packed);
    mlkt_note("pack of %" PRId64 " x 3", edges[i]);
    status = mlk_matmul_pack(ctx, mlk_f32(fake(), edges[i], 3), NULL, 0, &packed);
    if (edges[i] < 0)
      CHECK(status == MLK_ERR_SHAPE || status == MLK_ERR_ARGUMENT || status == MLK_ERR_SIZE);
    else if (edges[i] <= INT64_C(1) << 48) {
      if (CHECK_STATUS(ctx, status, MLK_OK))
        CHECK_MSG(packed.bytes >= 12 * (uint64_t)edges[i], "only %" PRIu64 " bytes for %" PRId64 " x 3", packed.bytes,
                  edges[i]);
    } else if (edges[i] >= INT64_C(1) << 62)
      CHECK_STATUS(ctx, status, MLK_ERR_SIZE);
    status = mlk_matmul_pack(ctx, mlk_f32(fake(), 3, edges[i]), NULL, 0, &packed);
    mlkt_note("pack of 3 x %" PRId64, edges[i]);
    if (edges[i] < 0)
      CHECK(status == MLK_ERR_SHAPE || status == MLK_ERR_ARGUMENT || status == MLK_ERR_SIZE);
    else if (edges[i] <= INT64_C(1) << 48) {
      if (CHECK_STATUS(ctx, status, MLK_OK))
        CHECK_MSG(packed.bytes >= 12 * (uint64_t)edges[i], "only %" PRIu64 " bytes for 3 x %" PRId64, packed.bytes,
                  edges[i]);
    } else if (edges[i] >= INT64_C(1) << 62)
      CHECK_STATUS(ctx, status, MLK_ERR_SIZE);
  }
  for (i = 0; i < EDGES; i++) { /* k */
    mlk_knn_desc desc;
    mlk_status status;
    memset(&desc, 0, sizeof desc);
    desc.queries = mlk_f32(fake(), 2, 8);
    desc.base = mlk_f32(fake(), 9, 8);
    desc.k = edges[i];
    desc.ids = mlk_i64((int64_t *)(void *)fake(), 2, edges[i]);
    mlkt_note("k %" PRId64, edges[i]);
    status = mlk_knn_plan(ctx, &desc, &plan);
    if (edges[i] < 0)
      CHECK(status == MLK_ERR_ARGUMENT || status == MLK_ERR_SHAPE || status == MLK_ERR_SIZE);
    else if (edges[i] <= INT64_C(1) << (mlkt_opt.cuda ? 32 : 40)) {
      if (CHECK_STATUS(ctx, status, MLK_OK)) CHECK_EQ_I64(plan.flops, 2 * 2 * 9 * 8);
    } else if (edges[i] >= INT64_C(1) << 61)
      CHECK_STATUS(ctx, status, MLK_ERR_SIZE);
  }
  { /* each operand fits, but not the bytes of all */
    mlk_matmul_desc desc;
    const int64_t m = (INT64_C(1) << 30) - 1, n = INT64_C(1) << 30;
    memset(&desc, 0, sizeof desc);
    desc.a = mlk_f32(fake(), m, 0);
    desc.b = mlk_f32(fake(), 0, n);
    desc.d = desc.c = desc.bias = desc.residual = desc.preact = mlk_f32(fake(), m, n);
    mlkt_note("%s", "five operands of 2^60 elements");
    CHECK_STATUS(ctx, mlk_matmul_plan(ctx, &desc, &plan), MLK_ERR_SIZE);
  }
  { /* row numbers that would leave 63 bits */
    mlk_knn_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.queries = mlk_f32(fake(), 2, 8);
    desc.base = mlk_f32(fake(), 9, 8);
    desc.k = 1;
    desc.ids = mlk_i64((int64_t *)(void *)fake(), 2, 1);
    mlkt_note("%s", "first_id");
    desc.first_id = INT64_MAX - 8;
    CHECK_OK(ctx, mlk_knn_plan(ctx, &desc, &plan));
    desc.first_id = INT64_MAX - 7;
    CHECK_STATUS(ctx, mlk_knn_plan(ctx, &desc, &plan), MLK_ERR_SIZE);
    CHECK_NAMES(ctx, "first_id");
    desc.first_id = INT64_MAX;
    CHECK_STATUS(ctx, mlk_knn_plan(ctx, &desc, &plan), MLK_ERR_SIZE);
  }
  mlk_close(ctx);
}

/* ---- tensor helpers ---------------------------------------------------------------------------------------------- */

static void check_view(mlk_tensor t, const void *data, int rank, const int64_t *shape, const int64_t *stride,
                       int line) {
  int i;
  mlkt_note("view of line %d", line);
  CHECK_MSG(t.data == data, "data is off by %ld bytes", (long)((const char *)t.data - (const char *)data));
  CHECK_EQ_I64(t.rank, rank);
  for (i = 0; i < rank; i++) {
    CHECK_EQ_I64(t.shape[i], shape[i]);
    CHECK_EQ_I64(t.stride[i], stride[i]);
  }
}

#define VIEW2(t, data, r, c, sr, sc)                                                                                   \
  do {                                                                                                                 \
    const int64_t shape_[2] = {(r), (c)}, stride_[2] = {(sr), (sc)};                                                   \
    check_view((t), (data), 2, shape_, stride_, __LINE__);                                                             \
  } while (0)

static void tensor_helpers(void) {
  static float x[1000];
  static int64_t y[100];
  mlk_tensor t = mlk_f32(x, 3, 4), u;
  int i;
  VIEW2(t, x, 3, 4, 0, 0);
  CHECK_EQ_I64(t.dtype, MLK_F32);
  VIEW2(mlk_transposed(t), x, 4, 3, 1, 4);
  VIEW2(mlk_transposed(mlk_transposed(t)), x, 3, 4, 4, 1);
  VIEW2(mlk_with_row_stride(t, 9), x, 3, 4, 9, 1);
  VIEW2(mlk_transposed(mlk_with_row_stride(t, 9)), x, 4, 3, 1, 9);
  VIEW2(mlk_with_row_stride(t, -9), x, 3, 4, -9, 1);
  VIEW2(mlk_slice(t, 0, 1, 2), x + 4, 2, 4, 4, 1);
  VIEW2(mlk_slice(t, 1, 1, 2), x + 1, 3, 2, 4, 1);
  VIEW2(mlk_slice(t, 1, 4, 0), x + 4, 3, 0, 4, 1);
  VIEW2(mlk_slice(mlk_slice(t, 0, 1, 2), 1, 2, 2), x + 6, 2, 2, 4, 1);
  VIEW2(mlk_slice(mlk_transposed(t), 0, 3, 1), x + 3, 1, 3, 1, 4);
  VIEW2(mlk_slice(t, 2, 0, 1), x, 3, 4, 0, 0); /* no such axis: unchanged */
  VIEW2(mlk_slice(t, -1, 0, 1), x, 3, 4, 0, 0);
  u = mlk_with_row_stride(t, -5);
  u.data = x + 100;
  VIEW2(mlk_slice(u, 0, 2, 1), x + 90, 1, 4, -5, 1);
  u = mlk_i64(y, 5, 6);
  CHECK_EQ_I64(u.dtype, MLK_I64);
  VIEW2(mlk_slice(u, 0, 2, 3), y + 12, 3, 6, 6, 1);
  u = mlk_f32(x, 7);
  CHECK_EQ_I64(u.rank, 1);
  u = mlk_transposed(u); /* rank < 2: unchanged */
  CHECK(u.rank == 1 && u.shape[0] == 7 && u.stride[0] == 0);
  u = mlk_with_row_stride(u, 3);
  CHECK(u.rank == 1 && u.shape[0] == 7 && u.stride[0] == 0);
  {
    const int64_t shape[4] = {2, 3, 5, 4}, stride[4] = {60, 20, 1, 5};
    check_view(mlk_transposed(mlk_f32(x, 2, 3, 4, 5)), x, 4, shape, stride, __LINE__);
  }
  {
    const int64_t shape[4] = {2, 3, 4, 5}, stride[4] = {84, 28, 7, 1};
    check_view(mlk_with_row_stride(mlk_f32(x, 2, 3, 4, 5), 7), x, 4, shape, stride, __LINE__);
  }
  {
    const int64_t shape[3] = {1, 3, 4}, stride[3] = {12, 4, 1};
    check_view(mlk_slice(mlk_f32(x, 6, 3, 4), 0, 5, 1), x + 60, 3, shape, stride, __LINE__);
  }
  { /* [B, S, H, D] in memory, as attention wants it */
    const int64_t shape[4] = {2, 4, 3, 5}, stride[4] = {60, 5, 20, 1};
    check_view(mlk_swapped(mlk_f32(x, 2, 3, 4, 5), 1, 2), x, 4, shape, stride, __LINE__);
    check_view(mlk_swapped(mlk_f32(x, 2, 3, 4, 5), 2, 1), x, 4, shape, stride, __LINE__);
  }
  {
    const int64_t shape[4] = {5, 3, 4, 2}, stride[4] = {1, 20, 5, 60};
    check_view(mlk_swapped(mlk_f32(x, 2, 3, 4, 5), 0, 3), x, 4, shape, stride, __LINE__);
  }
  {
    const int64_t shape[4] = {2, 3, 4, 5}, written[4] = {60, 20, 5, 1};
    check_view(mlk_swapped(mlk_swapped(mlk_f32(x, 2, 3, 4, 5), 1, 2), 2, 1), x, 4, shape, written, __LINE__);
  }
  VIEW2(mlk_swapped(t, 0, 1), x, 4, 3, 1, 4);
  VIEW2(mlk_swapped(mlk_with_row_stride(t, -9), 1, 0), x, 4, 3, 1, -9);
  VIEW2(mlk_swapped(t, 0, 2), x, 3, 4, 0, 0); /* no such axis: unchanged */
  VIEW2(mlk_swapped(t, 2, 0), x, 3, 4, 0, 0);
  VIEW2(mlk_swapped(t, -1, 1), x, 3, 4, 0, 0);
  VIEW2(mlk_swapped(t, 1, -1), x, 3, 4, 0, 0);
  u = mlk_swapped(mlk_f32(NULL, 3, 4), 0, 1);
  CHECK(u.data == NULL);
  u = mlk_f32(x, 1, 2, 3, 4, 5, 6); /* the most axes */
  CHECK_EQ_I64(u.rank, 6);
  for (i = 0; i < 6; i++) CHECK(u.shape[i] == i + 1 && u.stride[i] == 0);
  u = mlk_transposed(u);
  CHECK(u.stride[0] == 720 && u.stride[1] == 360 && u.stride[2] == 120 && u.stride[3] == 30 && u.stride[4] == 1 &&
        u.stride[5] == 6);
  u = mlk_f32(NULL, 3, 4);
  CHECK(u.data == NULL);
  { /* sizes of any integer type */
    const unsigned char a = 3;
    const size_t b = 4;
    const int64_t c = 5;
    u = mlk_f32(x, a, b, c);
    CHECK(u.rank == 3 && u.shape[0] == 3 && u.shape[1] == 4 && u.shape[2] == 5);
  }
}

const mlkt_case mlkt_context_cases[] = {{"context/names", names},
                                        {"context/open_close", open_close},
                                        {"context/null_arguments", null_arguments},
                                        {"context/bad_descriptors", bad_descriptors},
                                        {"context/sentences", sentences},
                                        {"context/rows", rows},
                                        {"context/reserve", reserve},
                                        {"context/plan_is_allocation", plan_is_allocation},
                                        {"context/workspace_is_the_greatest", workspace_is_the_greatest},
                                        {"context/allocation_failures", allocation_failures},
                                        {"context/reserve_failures", reserve_failures},
                                        {"context/measure", measure},
                                        {"context/calibrate", calibrate},
                                        {"context/calibration_given", calibration_given},
                                        {"context/parallel_hooks", parallel_hooks},
                                        {"context/foreign_parallel_region", foreign_parallel_region},
                                        {"context/several_contexts", several_contexts},
                                        {"context/good_guest", good_guest},
                                        {"context/sizes_matmul", sizes_matmul},
                                        {"context/sizes_knn", sizes_knn},
                                        {"context/sizes_odd", sizes_odd},
                                        {"context/tensor_helpers", tensor_helpers},
                                        {NULL, NULL}};
