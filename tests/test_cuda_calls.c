/* test_cuda_calls.c - calls on a device, whatever the operator: memory, errors, streams, devices, plans. Only with
   --cuda; what needs another machine than this, failing calls or a look behind them, only on the emulator.

   All operators of operators.h, with the bits of one CPU thread. */

#include "operators.h"
#include "test.h"

#include <stdio.h>

#if MLKT_POSIX
#include <pthread.h>
#endif
#if defined(MLKT_CUDA_EMULATED)
#include "cuda_emulator_control.h"
#endif

enum { LAUNCH_FAILURE = 719, OUT_OF_MEMORY = 2, ILLEGAL_ADDRESS = 700 }; /* cudaError */

/* ---- what the cases share ---------------------------------------------------------------------------------------- */

/* 1 when the case can run; the emulator is as at the start, with host and device memory told apart. */
static int ready(int emulator_only) {
  if (!mlkt_opt.cuda) {
    mlkt_skip("needs --cuda");
    return 0;
  }
#if defined(MLKT_CUDA_EMULATED)
  (void)emulator_only;
  mlkt_emu_reset();
  mlkt_emu_pointers(1);
#else
  if (emulator_only) mlkt_skip("needs the emulator");
  if (emulator_only) return 0;
#endif
  return 1;
}

static void done(void) {
#if defined(MLKT_CUDA_EMULATED)
  mlkt_emu_reset();
#endif
}

/* The operators a case walks over: all, or with few points every third. */
static int wanted(int op) { return !mlkt_sampled() || op % 3 == (int)(mlkt_opt.seed % 3); }

static mlk_context_desc device_desc(mlk_host_arrays host_arrays, void *stream) {
  mlk_context_desc desc = mlkt_context_desc(MLK_ISA_BEST, 1);
  desc.host_arrays = host_arrays;
  desc.stream = stream;
  return desc;
}

static mlk_context *device_open(mlk_host_arrays host_arrays, void *stream) {
  const mlk_context_desc desc = device_desc(host_arrays, stream);
  mlk_context *ctx = NULL;
  CHECK_STATUS(NULL, mlk_open(&ctx, &desc), MLK_OK);
  return ctx;
}

/* A copy of w in device memory, outputs as before a call. */
static work *upload(mlk_context *ctx, work *w) {
  void *there = NULL;
  work_rogue(w);
  if (!CHECK_OK(ctx, mlk_alloc(ctx, sizeof *w, &there))) return NULL;
  CHECK_OK(ctx, mlk_copy(ctx, there, w, sizeof *w));
  CHECK_OK(ctx, mlk_sync(ctx));
  return (work *)there;
}

static void upload_outputs(mlk_context *ctx, work *w, work *there) {
  work_rogue(w);
  CHECK_OK(ctx, mlk_copy(ctx, &there->out, &w->out, sizeof w->out));
  CHECK_OK(ctx, mlk_sync(ctx));
}

/* Waits, and fetches the outputs into w. */
static void download(mlk_context *ctx, work *w, const work *there) {
  CHECK_OK(ctx, mlk_copy(ctx, &w->out, &there->out, sizeof w->out));
  CHECK_OK(ctx, mlk_sync(ctx));
}

static ptrdiff_t distance(const work *w, const work *there) { return (ptrdiff_t)((uintptr_t)there - (uintptr_t)w); }

static mlk_status run_there(int op, mlk_context *ctx, work *w, const work *there) {
  mlk_status status;
  work_moved = distance(w, there);
  status = op_run(op, ctx, w);
  work_moved = 0;
  return status;
}

static mlk_status plan_there(int op, mlk_context *ctx, work *w, const work *there, mlk_plan *plan) {
  mlk_status status;
  work_moved = distance(w, there);
  status = op_plan(op, ctx, w, plan);
  work_moved = 0;
  return status;
}

/* ---- memory ------------------------------------------------------------------------------------------------------ */

/* Operands in device memory, the workspace exactly as planned. */
static void device_memory(void) {
  work *expected, *w, *there;
  mlk_context *ctx;
  mlk_plan plan;
  int op;
  if (!ready(0)) return;
  expected = work_expected(mlkt_rng_case()), w = work_copy(expected);
  for (op = 0; op < OP_COUNT; op++) {
    if (!wanted(op)) continue;
    mlkt_note("%s", op_name(op));
    ctx = device_open(MLK_HOST_REFUSED, NULL);
    there = ctx ? upload(ctx, w) : NULL;
    if (there && CHECK_OK(ctx, plan_there(op, ctx, w, there, &plan))) {
      CHECK_EQ_STR(plan.backend, "cuda");
      CHECK(plan.threads >= 1);
      CHECK_MSG(plan.seconds > 0 && plan.seconds < 10, "a plan of %g s", plan.seconds);
      if (plan.workspace_bytes > 0) {
        CHECK_OK(ctx, mlk_reserve(ctx, plan.workspace_bytes - 1, MLK_FIXED));
        CHECK_STATUS(ctx, run_there(op, ctx, w, there), MLK_ERR_WORKSPACE);
        CHECK_OK(ctx, mlk_sync(ctx));
      }
      CHECK_OK(ctx, mlk_reserve(ctx, plan.workspace_bytes, MLK_FIXED));
      CHECK_OK(ctx, run_there(op, ctx, w, there));
      download(ctx, w, there);
      CHECK_MSG(op_same(op, w, expected), "other bits than the CPU's");
      upload_outputs(ctx, w, there);
      CHECK_OK(ctx, run_there(op, ctx, w, there)); /* again, in a workspace that was used */
      download(ctx, w, there);
      CHECK_MSG(op_same(op, w, expected), "other bits the second time");
    }
    if (ctx) mlk_free(ctx, there, sizeof *w);
    mlk_close(ctx);
  }
  done();
  free(expected);
  free(w);
}

/* Host memory is refused by name, each operand alone too; outputs stay. */
static void host_refused(void) {
  work *expected, *w;
  mlk_context *ctx;
  int op;
  if (!ready(0)) return;
  expected = work_expected(mlkt_rng_case()), w = work_copy(expected);
  ctx = device_open(MLK_HOST_REFUSED, NULL);
  for (op = 0; op < OP_COUNT && ctx; op++) {
    mlkt_note("%s", op_name(op));
    CHECK_STATUS(ctx, op_run(op, ctx, w), MLK_ERR_ARGUMENT);
    CHECK_MSG(strstr(mlk_last_error(ctx), "host's memory") != NULL, "it says \"%s\"", mlk_last_error(ctx));
    CHECK(op_untouched(op, w));
  }
  mlk_close(ctx);
  done();
  free(expected);
  free(w);
}

/* Host memory is copied there and back: all operands, and those of the second half of struct work alone. */
static void host_staged(void) {
  work *expected, *w;
  mlk_context *ctx;
  int op, round;
  if (!ready(0)) return;
  expected = work_expected(mlkt_rng_case()), w = work_copy(expected);
  ctx = device_open(MLK_HOST_STAGED, NULL);
  for (op = 0; op < OP_COUNT && ctx; op++) {
    if (!wanted(op)) continue;
    mlkt_note("%s", op_name(op));
    for (round = 0; round < 2; round++) {
      work_rogue(w);
      CHECK_OK(ctx, op_run(op, ctx, w));
      CHECK_MSG(op_same(op, w, expected), "other bits than the CPU's");
    }
  }
  mlk_close(ctx);
  done();
  free(expected);
  free(w);
}

/* mlk_alloc, mlk_copy in all directions, mlk_free, shared memory. */
static void copies(void) {
  enum { COUNT = 1000 };
  float from[COUNT], to[COUNT];
  mlkt_rng rng = mlkt_rng_case();
  void *a = NULL, *b = NULL;
  mlk_context *ctx;
  mlk_context_desc desc;
  int shared, i;
  if (!ready(0)) return;
  for (shared = 0; shared < 2; shared++) {
    desc = device_desc(MLK_HOST_REFUSED, NULL);
    desc.shared_memory = shared;
    ctx = NULL;
    if (!CHECK_STATUS(NULL, mlk_open(&ctx, &desc), MLK_OK)) break;
    for (i = 0; i < COUNT; i++) from[i] = mlkt_signed(&rng), to[i] = 0;
    CHECK_OK(ctx, mlk_alloc(ctx, sizeof from, &a));
    CHECK_OK(ctx, mlk_alloc(ctx, sizeof from, &b));
    CHECK((uintptr_t)a % 256 == 0 && (uintptr_t)b % 256 == 0);
    CHECK_OK(ctx, mlk_copy(ctx, a, from, sizeof from));
    CHECK_OK(ctx, mlk_copy(ctx, b, a, sizeof from));
    CHECK_OK(ctx, mlk_copy(ctx, (char *)b + 40, (char *)a + 400, 100));
    CHECK_OK(ctx, mlk_copy(ctx, to, b, sizeof to));
    CHECK_OK(ctx, mlk_sync(ctx));
    for (i = 0; i < 25; i++) from[10 + i] = from[100 + i];
    CHECK_BITS_F32_N(to, from, COUNT);
    if (shared) CHECK_BITS_F32_N((float *)b, from, COUNT);
    CHECK_OK(ctx, mlk_copy(ctx, to, from, sizeof to));
    CHECK_OK(ctx, mlk_sync(ctx));
    CHECK_BITS_F32_N(to, from, COUNT);
    CHECK_OK(ctx, mlk_copy(ctx, to, from, 0));
    mlk_free(ctx, a, sizeof from);
    mlk_free(ctx, b, sizeof from);
    mlk_free(ctx, NULL, 0);
    CHECK(mlk_alloc(ctx, UINT64_C(1) << 60, &a) == MLK_ERR_MEMORY && a == NULL);
    CHECK_OK(ctx, mlk_sync(ctx)); /* which a failed allocation leaves usable */
    mlk_close(ctx);
  }
  done();
}

/* An id out of its range is told after the call, once, by name; the context stays usable. */
static void told_later(void) {
  mlk_embedding_desc desc;
  work *w, *there;
  mlk_context *ctx;
  int64_t bad = LV + 7;
  if (!ready(0)) return;
  w = work_new(mlkt_rng_case());
  ctx = device_open(MLK_HOST_REFUSED, NULL);
  there = ctx ? upload(ctx, w) : NULL;
  if (there) {
    desc = work_embedding(w);
    work_moved = distance(w, there);
    move_operands(w, &desc, sizeof desc);
    work_moved = 0;
    CHECK_OK(ctx, mlk_copy(ctx, &there->tokens[5], &bad, sizeof bad));
    CHECK_OK(ctx, mlk_embedding(ctx, &desc));
    CHECK_STATUS(ctx, mlk_sync(ctx), MLK_ERR_ARGUMENT);
    CHECK_MSG(strstr(mlk_last_error(ctx), "mlk_embedding: ids") != NULL && strstr(mlk_last_error(ctx), " 5 ") != NULL,
              "it says \"%s\"", mlk_last_error(ctx));
    CHECK_OK(ctx, mlk_sync(ctx));
    CHECK_OK(ctx, mlk_copy(ctx, &there->tokens[5], &w->tokens[5], sizeof bad));
    CHECK_OK(ctx, mlk_embedding(ctx, &desc));
    CHECK_OK(ctx, mlk_sync(ctx));
  }
  if (ctx) mlk_free(ctx, there, sizeof *w);
  mlk_close(ctx);
  done();
  free(w);
}

/* A device that is not here: every plan of it, no call. */
static void figures(void) {
  mlk_device_figures h200;
  mlk_context_desc desc;
  mlk_context *ctx = NULL;
  mlk_plan plan;
  void *memory = NULL;
  work *w;
  int op;
  if (!ready(0)) return;
  memset(&h200, 0, sizeof h200);
  h200.name = "H200", h200.compute_capability = 90, h200.multiprocessors = 132;
  h200.flops = 67e12, h200.tensor_flops = 990e12, h200.bandwidth = 4.8e12, h200.memory_bytes = UINT64_C(141) << 30;
  w = work_new(mlkt_rng_case());
  desc = device_desc(MLK_HOST_REFUSED, NULL);
  desc.figures = &h200;
  if (CHECK_STATUS(NULL, mlk_open(&ctx, &desc), MLK_OK)) {
    mlk_info info;
    CHECK_OK(ctx, mlk_get_info(ctx, &info));
    CHECK_EQ_STR(info.device, "H200");
    CHECK_EQ_STR(info.isa, "sm_90");
    for (op = 0; op < OP_COUNT; op++) {
      mlkt_note("%s", op_name(op));
      CHECK_OK(ctx, op_plan(op, ctx, w, &plan));
      CHECK_MSG(plan.seconds > 0 && plan.seconds < 1 && plan.threads >= 1, "%g s, %d kernels", plan.seconds,
                plan.threads);
      CHECK_STATUS(ctx, op_run(op, ctx, w), MLK_ERR_UNSUPPORTED);
      CHECK(op_untouched(op, w));
    }
    CHECK_STATUS(ctx, mlk_alloc(ctx, 100, &memory), MLK_ERR_UNSUPPORTED);
    CHECK(memory == NULL);
  }
  mlk_close(ctx);
  ctx = NULL;
  h200.tensor_flops = 0; /* unknown: 16-bit products are predicted at the rate of f32 */
  if (CHECK_STATUS(NULL, mlk_open(&ctx, &desc), MLK_OK)) {
    static const uint16_t any[1];
    static float d[1];
    mlk_matmul_desc product;
    memset(&product, 0, sizeof product);
    product.a = mlk_f16(any, 4096, 4096), product.b = mlk_f16(any, 4096, 4096), product.d = mlk_f32(d, 4096, 4096);
    CHECK_OK(ctx, mlk_matmul_plan(ctx, &product, &plan));
    CHECK_MSG(plan.seconds > 1e-3 && plan.seconds < 1e-2, "%g s", plan.seconds);
  }
  mlk_close(ctx);
  ctx = NULL;
  h200.bandwidth = 0;
  CHECK_STATUS(NULL, mlk_open(&ctx, &desc), MLK_ERR_ARGUMENT);
  h200.bandwidth = 4.8e12, h200.compute_capability = 70;
  CHECK_STATUS(NULL, mlk_open(&ctx, &desc), MLK_ERR_ARGUMENT);
  CHECK(ctx == NULL);
  done();
  free(w);
}

/* Two contexts on one device, in turns, each with operands of its own. */
static void contexts_in_turn(void) {
  work *expected, *w[2], *there[2];
  mlk_context *ctx[2];
  int op, i;
  if (!ready(0)) return;
  expected = work_expected(mlkt_rng_case());
  for (i = 0; i < 2; i++) {
    w[i] = work_copy(expected);
    ctx[i] = device_open(MLK_HOST_REFUSED, NULL);
    there[i] = ctx[i] ? upload(ctx[i], w[i]) : NULL;
  }
  for (op = 0; op < OP_COUNT && there[0] && there[1]; op++)
    for (i = 0; i < 2 && wanted(op); i++) CHECK_OK(ctx[i], run_there(op, ctx[i], w[i], there[i]));
  for (i = 0; i < 2; i++) {
    if (!there[i]) continue;
    CHECK_OK(ctx[i], mlk_copy(ctx[i], &w[i]->out, &there[i]->out, sizeof w[i]->out));
    CHECK_OK(ctx[i], mlk_sync(ctx[i]));
    for (op = 0; op < OP_COUNT; op++) {
      mlkt_note("%s, context %d", op_name(op), i);
      if (wanted(op)) CHECK_MSG(op_same(op, w[i], expected), "other bits than the CPU's");
    }
    mlk_free(ctx[i], there[i], sizeof *w[i]);
  }
  for (i = 0; i < 2; i++) {
    mlk_close(ctx[i]);
    free(w[i]);
  }
  done();
  free(expected);
}

#if MLKT_POSIX
typedef struct thread_job {
  const work *expected;
  int different, failed;
} thread_job;

static void *thread_job_main(void *user) { /* checks are the main thread's */
  thread_job *job = (thread_job *)user;
  work *w = work_copy(job->expected);
  const mlk_context_desc desc = device_desc(MLK_HOST_STAGED, NULL);
  mlk_context *ctx = NULL;
  int op;
  job->failed = mlk_open(&ctx, &desc) != MLK_OK;
  for (op = 0; op < OP_COUNT && !job->failed; op++) {
    if (!wanted(op)) continue;
    job->failed = op_run(op, ctx, w) != MLK_OK;
    job->different += !op_same(op, w, job->expected);
  }
  mlk_close(ctx);
  free(w);
  return NULL;
}

static void contexts_of_threads(void) {
  enum { THREADS = 3 };
  thread_job job[THREADS];
  pthread_t thread[THREADS];
  work *expected;
  int i;
  if (!ready(0)) return;
  expected = work_expected(mlkt_rng_case());
  for (i = 0; i < THREADS; i++) {
    job[i].expected = expected, job[i].different = job[i].failed = 0;
    CHECK(pthread_create(&thread[i], NULL, thread_job_main, &job[i]) == 0);
  }
  for (i = 0; i < THREADS; i++) {
    CHECK(pthread_join(thread[i], NULL) == 0);
    CHECK_MSG(!job[i].failed, "a call of thread %d failed", i);
    CHECK_EQ_I64(job[i].different, 0);
  }
  done();
  free(expected);
}
#else
static void contexts_of_threads(void) { mlkt_skip("no threads"); }
#endif

/* ---- behind the calls: on the emulator --------------------------------------------------------------------------- */

#if defined(MLKT_CUDA_EMULATED)

static const int timed_at_least = 30;

/* A device so slow that what is not tiny counts as too long to be timed. */
static int calibrates(void) {
  const int clock_rate = 13; /* cudaDevAttrClockRate: the rate of tensor cores is not measured */
  if (!ready(0)) return 0;
  mlkt_emu_device(1, 90, 2);
  mlkt_emu_attribute(clock_rate, 250); /* kHz: a bf16 product of 256^3 counts as short */
  mlkt_emu_interval(20.0f);
  return 1;
}

/* Once reserved, a call launches kernels and does nothing else: no allocation, no copy, no waiting. */
static void only_launches(void) {
  static const mlkt_emu_what none[] = {MLKT_EMU_ALLOCATIONS, MLKT_EMU_FREES, MLKT_EMU_SYNCHRONISATIONS,
                                       MLKT_EMU_COPIES};
  uint64_t before[sizeof none / sizeof none[0]], launches;
  work *w, *there;
  mlk_context *ctx;
  mlk_plan plan;
  size_t i;
  int op;
  if (!ready(1)) return;
  w = work_new(mlkt_rng_case());
  ctx = device_open(MLK_HOST_REFUSED, NULL);
  there = ctx ? upload(ctx, w) : NULL;
  for (op = 0; op < OP_COUNT && there; op++) {
    mlkt_note("%s", op_name(op));
    if (!CHECK_OK(ctx, plan_there(op, ctx, w, there, &plan))) continue;
    CHECK_OK(ctx, mlk_reserve(ctx, plan.workspace_bytes, MLK_FIXED));
    for (i = 0; i < sizeof none / sizeof none[0]; i++) before[i] = mlkt_emu_count(none[i]);
    launches = mlkt_emu_count(MLKT_EMU_LAUNCHES);
    CHECK_OK(ctx, run_there(op, ctx, w, there));
    for (i = 0; i < sizeof none / sizeof none[0]; i++)
      CHECK_MSG(mlkt_emu_count(none[i]) == before[i], "an allocation, free, wait or copy (%d) in the call", (int)i);
    CHECK_MSG(mlkt_emu_count(MLKT_EMU_LAUNCHES) > launches, "no kernel ran");
    CHECK_OK(ctx, mlk_reserve(ctx, 0, MLK_GROWS));
  }
  if (ctx) mlk_free(ctx, there, sizeof *w);
  mlk_close(ctx);
  CHECK_EQ_I64(mlkt_emu_count(MLKT_EMU_LIVE_BLOCKS), 0);
  done();
  free(w);
}

/* Calls captured in a graph do nothing until it runs; then it runs as often as wanted. */
static void captured(void) {
  work *expected, *w, *there;
  mlk_context *ctx;
  mlk_plan plan;
  void *stream, *graph;
  int op, round;
  if (!ready(1)) return;
  expected = work_expected(mlkt_rng_case()), w = work_copy(expected);
  stream = mlkt_emu_stream_new();
  ctx = device_open(MLK_HOST_REFUSED, stream);
  there = ctx ? upload(ctx, w) : NULL;
  for (op = 0; op < OP_COUNT && there; op++) {
    if (!wanted(op)) continue;
    mlkt_note("%s", op_name(op));
    if (!CHECK_OK(ctx, plan_there(op, ctx, w, there, &plan))) continue;
    CHECK_OK(ctx, mlk_reserve(ctx, plan.workspace_bytes, MLK_GROWS));
    CHECK_EQ_I64(mlkt_emu_capture_begin(stream), 0);
    CHECK_OK(ctx, run_there(op, ctx, w, there));
    CHECK_EQ_I64(mlkt_emu_capture_end(stream, &graph), 0);
    download(ctx, w, there);
    CHECK_MSG(op_untouched(op, w), "outputs changed while capturing");
    for (round = 0; round < 2 && graph; round++) {
      upload_outputs(ctx, w, there);
      CHECK_EQ_I64(mlkt_emu_graph_run(graph, stream), 0);
      download(ctx, w, there);
      CHECK_MSG(op_same(op, w, expected), "other bits than the CPU's");
    }
    mlkt_emu_graph_free(graph);
    upload_outputs(ctx, w, there);
  }
  if (there) { /* what must wait or allocate fails while capturing, and the context lives on */
    CHECK_EQ_I64(mlkt_emu_capture_begin(stream), 0);
    CHECK_STATUS(ctx, mlk_sync(ctx), MLK_ERR_SYSTEM);
    CHECK_MSG(strstr(mlk_last_error(ctx), "cudaErrorStreamCaptureUnsupported") != NULL, "it says \"%s\"",
              mlk_last_error(ctx));
    CHECK(mlkt_emu_capture_end(stream, &graph) != 0 && graph == NULL);
    CHECK_OK(ctx, mlk_sync(ctx));
    mlk_free(ctx, there, sizeof *w);
  }
  mlk_close(ctx);
  mlkt_emu_stream_free(stream);
  done();
  free(expected);
  free(w);
}

/* Work that runs as late as a device may run it: calls in a row without waiting, and staged ones. */
static void late_streams(void) {
  work *expected, *w, *there;
  mlk_context *ctx;
  void *stream;
  int op, staged;
  if (!ready(1)) return;
  expected = work_expected(mlkt_rng_case()), w = work_copy(expected);
  mlkt_emu_late_streams(1);
  for (staged = 0; staged < 2; staged++) {
    stream = mlkt_emu_stream_new();
    ctx = device_open(staged ? MLK_HOST_STAGED : MLK_HOST_REFUSED, stream);
    there = ctx ? upload(ctx, w) : NULL;
    if (ctx) CHECK_OK(ctx, mlk_reserve(ctx, 1 << 25, MLK_GROWS));
    for (op = 0; op < OP_COUNT && there; op++) {
      if (!wanted(op)) continue;
      mlkt_note("%s, staged %d", op_name(op), staged);
      CHECK_OK(ctx, staged ? op_run(op, ctx, w) : run_there(op, ctx, w, there));
    }
    if (there && !staged) download(ctx, w, there);
    for (op = 0; op < OP_COUNT && there; op++) {
      mlkt_note("%s, staged %d", op_name(op), staged);
      if (wanted(op)) CHECK_MSG(op_same(op, w, expected), "other bits than the CPU's");
    }
    if (ctx) mlk_free(ctx, there, sizeof *w);
    mlk_close(ctx);
    mlkt_emu_stream_free(stream);
    work_rogue(w);
  }
  done();
  free(expected);
  free(w);
}

/* After a failure: the status, and a sentence that names CUDA's error. */
static void check_failure(mlk_context *ctx, mlk_status status, int error) {
  CHECK_STATUS(ctx, status, error == OUT_OF_MEMORY ? MLK_ERR_MEMORY : MLK_ERR_SYSTEM);
  CHECK_MSG(strstr(mlk_last_error(ctx), error == OUT_OF_MEMORY ? "" : "cudaErrorLaunchFailure") != NULL &&
                mlk_last_error(ctx)[0],
            "it says \"%s\"", mlk_last_error(ctx));
  CHECK_EQ_I64(mlkt_emu_last_error(), 0); /* nothing is left for the program's own checks */
}

/* A fresh context, and its first call of op with the nth call of the runtime failing; then one without. Gives 0 when
   there was no nth call. */
static int fail_call(int op, uint64_t n, int staged, int error, work *w, const work *expected) {
  mlk_context *ctx = device_open(staged ? MLK_HOST_STAGED : MLK_HOST_REFUSED, NULL);
  work *there = ctx && !staged ? upload(ctx, w) : NULL;
  uint64_t calls = mlkt_emu_count(MLKT_EMU_CALLS);
  mlk_status status;
  int failed;
  work_rogue(w);
  mlkt_emu_fail(n, error);
  status = staged ? op_run(op, ctx, w) : run_there(op, ctx, w, there);
  failed = mlkt_emu_count(MLKT_EMU_CALLS) - calls >= n;
  mlkt_emu_fail(0, 0);
  CHECK_MSG(failed || status == MLK_OK, "a call that did not fail gives \"%s\"", mlk_last_error(ctx));
  if (status != MLK_OK) check_failure(ctx, status, error);
  if (status != MLK_OK && staged &&
      !strstr(mlk_last_error(ctx), "result")) /* nothing, until all is done on the device */
    CHECK_MSG(op_untouched(op, w), "outputs changed though the call failed: %s", mlk_last_error(ctx));
  CHECK_OK(ctx, mlk_sync(ctx));
  if (status != MLK_OK) {
    work_rogue(w);
    if (!staged) upload_outputs(ctx, w, there);
    CHECK_OK(ctx, staged ? op_run(op, ctx, w) : run_there(op, ctx, w, there));
  }
  if (!staged) download(ctx, w, there);
  CHECK_MSG(op_same(op, w, expected), "other bits after a failure");
  if (there) mlk_free(ctx, there, sizeof *w);
  mlk_close(ctx);
  CHECK_EQ_I64(mlkt_emu_count(MLKT_EMU_LIVE_BLOCKS), 0);
  return failed;
}

/* 300 small tensors of 8 replicas, apart in memory: one launch a pass where arguments may be long, one for each 41 of
   them (460 words, 11 a tensor) with an older driver, and the same bits. skip: the passes that look for what is not
   finite as well, which all find something to do. */
static void long_lists(void) {
  enum { COUNT = 300, REPLICAS = 8, STRIDE = 32, FLOATS = (REPLICAS + 1) * COUNT * STRIDE };
  static const int drivers[2] = {13000, 12000};
  static const int launches[2][2] = {{1, 5}, {8, 26}}; /* begin, mean, search, settle, mean */
  static const int clips[2] = {4, 7};                  /* squares and sums of 200 tensors, the norm, scaling */
  float *here = (float *)malloc(FLOATS * sizeof(float)), *got[2];
  mlk_tensor *t = (mlk_tensor *)calloc((REPLICAS + 1) * COUNT, sizeof *t);
  mlkt_rng rng = mlkt_rng_case();
  mlk_average_desc desc;
  mlk_clip_norm_desc clip;
  mlk_plan plan[2];
  int i, n, skip;
  if (!ready(1)) return;
  memset(&desc, 0, sizeof desc), memset(&clip, 0, sizeof clip);
  clip.count = COUNT, clip.max_norm = 1.0f;
  desc.inputs = t, desc.replicas = REPLICAS, desc.count = COUNT;
  desc.outputs = t + REPLICAS * COUNT, desc.output_count = COUNT;
  got[0] = (float *)malloc(FLOATS * sizeof(float)), got[1] = (float *)malloc(FLOATS * sizeof(float));
  for (i = 0; i < FLOATS; i++) here[i] = mlkt_signed(&rng);
  for (i = 0; i < (REPLICAS + 1) * COUNT; i++) t[i].dtype = MLK_F32, t[i].rank = 1, t[i].shape[0] = 1 + i % COUNT % 24;
  for (skip = 0; skip < 2; skip++) {
    mlk_context *cpu = NULL;
    mlk_context_desc plain;
    memset(&plain, 0, sizeof plain);
    desc.skip_nonfinite = skip;
    if (skip) here[(5 * COUNT + 250) * STRIDE] = mlkt_float(0x7F800000u);
    for (n = 0; n < 2; n++) {
      mlk_context *ctx;
      void *there = NULL;
      uint64_t before;
      mlkt_emu_driver(drivers[n]);
      mlkt_note("driver %d, skip_nonfinite %d", drivers[n], skip);
      ctx = device_open(MLK_HOST_REFUSED, NULL);
      if (!ctx || !CHECK_OK(ctx, mlk_alloc(ctx, FLOATS * sizeof(float), &there))) break;
      CHECK_OK(ctx, mlk_copy(ctx, there, here, FLOATS * sizeof(float)));
      for (i = 0; i < (REPLICAS + 1) * COUNT; i++) t[i].data = (float *)there + i * STRIDE;
      CHECK_OK(ctx, mlk_average_plan(ctx, &desc, &plan[n]));
      before = mlkt_emu_count(MLKT_EMU_LAUNCHES);
      CHECK_OK(ctx, mlk_average(ctx, &desc));
      CHECK_EQ_I64(mlkt_emu_count(MLKT_EMU_LAUNCHES) - before, launches[n][skip]);
      clip.grads = desc.outputs, clip.norm = (float *)there + FLOATS - 1; /* behind the last tensor */
      before = mlkt_emu_count(MLKT_EMU_LAUNCHES);
      CHECK_OK(ctx, mlk_clip_norm(ctx, &clip));
      CHECK_EQ_I64(mlkt_emu_count(MLKT_EMU_LAUNCHES) - before, clips[n]);
      CHECK_OK(ctx, mlk_copy(ctx, got[n], there, FLOATS * sizeof(float)));
      CHECK_OK(ctx, mlk_sync(ctx));
      mlk_free(ctx, there, FLOATS * sizeof(float));
      mlk_close(ctx);
    }
    CHECK_MSG(plan[0].seconds < plan[1].seconds, "fewer launches are predicted to take as long");
    for (i = 0; i < (REPLICAS + 1) * COUNT; i++) t[i].data = here + i * STRIDE;
    clip.grads = desc.outputs, clip.norm = here + FLOATS - 1;
    if (CHECK_STATUS(NULL, mlk_open(&cpu, &plain), MLK_OK)) {
      CHECK_OK(cpu, mlk_average(cpu, &desc));
      CHECK_OK(cpu, mlk_clip_norm(cpu, &clip));
    }
    mlk_close(cpu);
    for (n = 0; n < 2; n++)
      CHECK_MSG(memcmp(got[n], here, FLOATS * sizeof(float)) == 0, "driver %d: other bits than the CPU's", drivers[n]);
  }
  done();
  free(here), free(got[0]), free(got[1]), free(t);
}

static void failing_calls(void) {
  work *expected, *w;
  int op, staged;
  if (!ready(1)) return;
  expected = work_expected(mlkt_rng_case()), w = work_copy(expected);
  for (op = 0; op < OP_COUNT && !mlkt_hopeless(); op++)
    for (staged = 0; staged < 2 && wanted(op); staged++) {
      uint64_t n = 1;
      do mlkt_note("%s, call %" PRIu64 " fails, staged %d", op_name(op), n, staged);
      while (fail_call(op, n, staged, n % 2 ? LAUNCH_FAILURE : OUT_OF_MEMORY, w, expected) && ++n < 200 &&
             !mlkt_hopeless());
      CHECK_MSG(n >= 3 && n < 200, "%d calls", (int)n);
    }
  done();
  free(expected);
  free(w);
}

/* Every call of mlk_open, mlk_alloc, mlk_copy, mlk_sync, mlk_reserve and mlk_close fails once. */
static void failing_open(void) {
  uint64_t n, calls;
  int failed = 1;
  if (!ready(1)) return;
  for (n = 1; failed && n < 100; n++) {
    const mlk_context_desc desc = device_desc(MLK_HOST_REFUSED, NULL);
    mlk_context *ctx = NULL;
    mlk_status status;
    void *memory = NULL;
    float x = 1;
    mlkt_note("call %" PRIu64 " fails", n);
    calls = mlkt_emu_count(MLKT_EMU_CALLS);
    mlkt_emu_fail(n, LAUNCH_FAILURE);
    status = mlk_open(&ctx, &desc);
    CHECK((status == MLK_OK) == (ctx != NULL));
    if (ctx) {
      status = mlk_alloc(ctx, 100, &memory);
      CHECK((status == MLK_OK) == (memory != NULL));
      if (memory && (status = mlk_copy(ctx, memory, &x, sizeof x)) != MLK_OK)
        check_failure(ctx, status, LAUNCH_FAILURE);
      if ((status = mlk_sync(ctx)) != MLK_OK) check_failure(ctx, status, LAUNCH_FAILURE);
      if ((status = mlk_reserve(ctx, 5000, MLK_GROWS)) != MLK_OK) check_failure(ctx, status, LAUNCH_FAILURE);
      mlk_free(ctx, memory, 100);
    }
    mlk_close(ctx);
    failed = mlkt_emu_count(MLKT_EMU_CALLS) - calls >= n;
    mlkt_emu_fail(0, 0);
    CHECK_EQ_I64(mlkt_emu_last_error(), 0);
    CHECK_EQ_I64(mlkt_emu_count(MLKT_EMU_LIVE_BLOCKS), 0);
  }
  CHECK_MSG(n > 10 && n < 100, "%d calls", (int)n);
  done();
}

/* After a kernel's fault every call says so, and closing is safe. */
static void sticky(void) {
  work *w, *there;
  mlk_context *ctx;
  void *memory = NULL;
  float x = 0;
  int op;
  if (!ready(1)) return;
  w = work_new(mlkt_rng_case());
  ctx = device_open(MLK_HOST_REFUSED, NULL);
  there = ctx ? upload(ctx, w) : NULL;
  if (there) CHECK_OK(ctx, mlk_reserve(ctx, 1 << 25, MLK_GROWS));
  mlkt_emu_stick(ILLEGAL_ADDRESS);
  for (op = 0; op < OP_COUNT && there; op++) {
    mlkt_note("%s", op_name(op));
    CHECK_STATUS(ctx, run_there(op, ctx, w, there), MLK_ERR_SYSTEM);
    CHECK_MSG(strstr(mlk_last_error(ctx), "cudaErrorIllegalAddress") != NULL, "it says \"%s\"", mlk_last_error(ctx));
  }
  if (there) {
    CHECK_STATUS(ctx, mlk_sync(ctx), MLK_ERR_SYSTEM);
    CHECK_STATUS(ctx, mlk_copy(ctx, there, &x, sizeof x), MLK_ERR_SYSTEM);
    CHECK_STATUS(ctx, mlk_alloc(ctx, 64, &memory), MLK_ERR_SYSTEM);
    mlk_free(ctx, there, sizeof *w);
  }
  mlk_close(ctx);
  mlkt_emu_stick(0);
  CHECK_EQ_I64(mlkt_emu_count(MLKT_EMU_LIVE_BLOCKS), 0);
  done();
  free(w);
}

/* The third of three devices: its memory, its name, and the caller's own device as it was. */
static void devices(void) {
  mlk_context_desc desc;
  mlk_context *ctx = NULL;
  void *memory = NULL;
  work *expected, *w, *there;
  mlk_info info;
  int op;
  if (!ready(1)) return;
  expected = work_expected(mlkt_rng_case()), w = work_copy(expected);
  mlkt_emu_device(3, 86, 28);
  mlkt_emu_current(1);
  desc = device_desc(MLK_HOST_REFUSED, NULL);
  desc.device_index = 3;
  CHECK_STATUS(NULL, mlk_open(&ctx, &desc), MLK_ERR_ARGUMENT);
  desc.device_index = -1;
  CHECK_STATUS(NULL, mlk_open(&ctx, &desc), MLK_ERR_ARGUMENT);
  CHECK(ctx == NULL);
  desc.device_index = 2;
  if (CHECK_STATUS(NULL, mlk_open(&ctx, &desc), MLK_OK)) {
    CHECK_OK(ctx, mlk_get_info(ctx, &info));
    CHECK_EQ_STR(info.backend, "cuda");
    CHECK_EQ_STR(info.isa, "sm_86");
    CHECK_EQ_STR(info.device, "emulated sm_86");
    CHECK_OK(ctx, mlk_alloc(ctx, 100, &memory));
    CHECK_EQ_I64(mlkt_emu_device_of(memory), 2);
    mlk_free(ctx, memory, 100);
    there = upload(ctx, w);
    for (op = 0; op < OP_COUNT && there; op++) {
      if (!wanted(op)) continue;
      mlkt_note("%s", op_name(op));
      CHECK_OK(ctx, run_there(op, ctx, w, there));
      CHECK_EQ_I64(mlkt_emu_current(-1), 1);
    }
    if (there) download(ctx, w, there);
    for (op = 0; op < OP_COUNT && there; op++)
      if (wanted(op)) CHECK_MSG(op_same(op, w, expected), "%s: other bits than the CPU's", op_name(op));
    mlk_free(ctx, there, sizeof *w);
  }
  mlk_close(ctx);
  CHECK_EQ_I64(mlkt_emu_current(-1), 1);
  done();
  free(expected);
  free(w);
}

/* No device, or too old a one: the CPU where that will do, else a refusal. */
static void no_device(void) {
  mlk_context_desc desc;
  mlk_context *ctx = NULL;
  mlk_info info;
  int old;
  if (!ready(1)) return;
  for (old = 0; old < 2; old++) {
    mlkt_emu_device(old, 70, 80);
    desc = device_desc(MLK_HOST_REFUSED, NULL);
    desc.device = MLK_DEVICE_BACKEND;
    CHECK_STATUS(NULL, mlk_open(&ctx, &desc), MLK_ERR_UNSUPPORTED);
    CHECK(ctx == NULL);
  }
  mlkt_emu_device(0, 80, 1);
  desc.device = MLK_DEVICE_BEST;
  if (CHECK_STATUS(NULL, mlk_open(&ctx, &desc), MLK_OK)) {
    CHECK_OK(ctx, mlk_get_info(ctx, &info));
    CHECK_EQ_STR(info.backend, "cpu");
  }
  mlk_close(ctx);
  done();
}

/* The same bits on every kind of device, from one multiprocessor to many. */
static void kinds_of_devices(void) {
  static const struct {
    int cc, multiprocessors;
  } kind[] = {{75, 1}, {75, 40}, {80, 108}, {86, 3}, {89, 128}, {90, 132}, {120, 170}};
  work *expected, *w;
  size_t i;
  int op;
  if (!ready(1)) return;
  expected = work_expected(mlkt_rng_case()), w = work_copy(expected);
  for (i = 0; i < sizeof kind / sizeof kind[0]; i++) {
    mlk_context *ctx;
    mlkt_emu_device(1, kind[i].cc, kind[i].multiprocessors);
    mlkt_emu_pointers(0);
    ctx = device_open(MLK_HOST_REFUSED, NULL);
    for (op = 0; op < OP_COUNT && ctx; op++) {
      if (!wanted(op)) continue;
      mlkt_note("%s on sm_%d x %d", op_name(op), kind[i].cc, kind[i].multiprocessors);
      work_rogue(w);
      CHECK_OK(ctx, op_run(op, ctx, w));
      CHECK_MSG(op_same(op, w, expected), "other bits than the CPU's");
    }
    mlk_close(ctx);
  }
  done();
  free(expected);
  free(w);
}

/* Every order of blocks and threads gives the same. */
static void orders(void) {
  work *expected, *w;
  uint64_t seed;
  int op;
  if (!ready(1)) return;
  expected = work_expected(mlkt_rng_case()), w = work_copy(expected);
  mlkt_emu_pointers(0);
  for (seed = 1; seed <= (mlkt_opt.quick ? 2 : 6); seed++) {
    mlk_context *ctx = device_open(MLK_HOST_REFUSED, NULL);
    mlkt_emu_seed(seed + 100 * mlkt_opt.seed);
    for (op = 0; op < OP_COUNT && ctx; op++) {
      if (!wanted(op)) continue;
      mlkt_note("%s, MLK_EMU_SEED=%" PRIu64, op_name(op), seed + 100 * mlkt_opt.seed);
      work_rogue(w);
      CHECK_OK(ctx, op_run(op, ctx, w));
      CHECK_MSG(op_same(op, w, expected), "other bits than the CPU's");
    }
    mlk_close(ctx);
  }
  done();
  free(expected);
  free(w);
}

#else

static const int timed_at_least = 150;
static int calibrates(void) { return ready(0); }

static void only_launches(void) { (void)ready(1); }
static void captured(void) { (void)ready(1); }
static void late_streams(void) { (void)ready(1); }
static void long_lists(void) { (void)ready(1); }
static void failing_calls(void) { (void)ready(1); }
static void failing_open(void) { (void)ready(1); }
static void sticky(void) { (void)ready(1); }
static void devices(void) { (void)ready(1); }
static void no_device(void) { (void)ready(1); }
static void kinds_of_devices(void) { (void)ready(1); }
static void orders(void) { (void)ready(1); }

#endif

/* Plans predict by what was timed on the device, in this context and in another that is given it. */
static void calibrate(void) {
  static mlk_calibration found;
  mlk_context *ctx, *second = NULL;
  mlk_context_desc desc = device_desc(MLK_HOST_REFUSED, NULL);
  mlk_plan plan, again;
  mlk_info info;
  work *w;
  int32_t i;
  int op;
  if (!calibrates()) return;
  w = work_new(mlkt_rng_case());
  ctx = device_open(MLK_HOST_REFUSED, NULL);
  if (ctx && CHECK_OK(ctx, mlk_calibrate(ctx, &found))) {
    CHECK_OK(ctx, mlk_get_info(ctx, &info));
    CHECK_MSG(found.count >= timed_at_least && found.count <= MLK_CALIBRATION_POINTS, "%d points", (int)found.count);
    CHECK_MSG(strcmp(found.backend, "cuda") == 0 && strcmp(found.isa, info.isa) == 0, "of %s, %s", found.backend,
              found.isa);
    CHECK(memcmp(&found.ceilings, &info.ceilings, sizeof info.ceilings) == 0);
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
  }
  mlk_close(second), mlk_close(ctx);
  free(w);
  done();
}

const mlkt_case mlkt_cuda_cases[] = {{"cuda/device_memory", device_memory},
                                     {"cuda/host_refused", host_refused},
                                     {"cuda/host_staged", host_staged},
                                     {"cuda/copies", copies},
                                     {"cuda/told_later", told_later},
                                     {"cuda/figures", figures},
                                     {"cuda/contexts_in_turn", contexts_in_turn},
                                     {"cuda/contexts_of_threads", contexts_of_threads},
                                     {"cuda/calibrate", calibrate},
                                     {"cuda/only_launches", only_launches},
                                     {"cuda/captured", captured},
                                     {"cuda/late_streams", late_streams},
                                     {"cuda/long_lists", long_lists},
                                     {"cuda/failing_calls", failing_calls},
                                     {"cuda/failing_open", failing_open},
                                     {"cuda/sticky", sticky},
                                     {"cuda/devices", devices},
                                     {"cuda/no_device", no_device},
                                     {"cuda/kinds_of_devices", kinds_of_devices},
                                     {"cuda/orders", orders},
                                     {NULL, NULL}};
