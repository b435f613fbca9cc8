/* Where a run takes place, and the memory of its rows. Rows fill and check blocks of the host's memory. On the CPU
   calls read and write these. With --device cuda each block that a call is given has a twin on the device: there() is
   what descriptors hold; operands_up copies every block in use to its twin and operands_down all of them back, so
   that outside these two a row sees the same memory in both cases. Nothing is copied while calls are timed. */
#ifndef BENCH_DEVICE_H
#define BENCH_DEVICE_H

/* Rows that are to be out of cache count on this many bytes of second-level cache: no GPU has more (B200: 126 MiB). */
#ifndef BENCH_DEVICE_CACHE
#define BENCH_DEVICE_CACHE ((size_t)128 << 20)
#endif

/* ctx: for memory, copies and waiting; NULL: the CPU. All contexts of a run queue their calls on the device's default
   stream, in one order, so that waiting for one is waiting for all. */
static struct {
  mlk_context *ctx;
  mlk_info info;
  const char *row; /* what runs, for messages */
  int call_failed; /* since operands_up */
} bench_device = {.row = ""};

/* The backend that --device asks for. */
static void device_into(mlk_context_desc *desc) {
#if defined(BENCH_CUDA)
  if (opt.cuda) desc->backends[0] = mlk_cuda_backend(), desc->device = MLK_DEVICE_BACKEND;
#else
  (void)desc;
#endif
}

/* The last sentence of a context, also of one that does not open. */
static char context_said[512];
static void context_says(void *user, const char *line) {
  (void)user;
  text(context_said, sizeof context_said, "%s", line);
}

static void device_open(void) {
  mlk_context_desc desc;
  memset(&desc, 0, sizeof desc);
  desc.log = context_says;
  device_into(&desc);
  if (mlk_open(&bench_device.ctx, &desc) != MLK_OK || mlk_get_info(bench_device.ctx, &bench_device.info) != MLK_OK)
    die("--device cuda: %s", context_said);
}

/* No program goes on after an error of the device. */
static void device_must(mlk_status status) {
  if (status != MLK_OK)
    die("%s%sthe device failed: %s", bench_device.row, bench_device.row[0] ? ": " : "",
        mlk_last_error(bench_device.ctx));
}

/* Until all calls are done. */
static void device_wait(void) {
  if (bench_device.ctx) device_must(mlk_sync(bench_device.ctx));
}

/* What kernels were compiled for: a row of the CPU's kernels, or "sm_90" and the like. */
static const char *isa_name(mlk_isa isa) { return bench_device.ctx ? bench_device.info.isa : mlk_isa_name(isa); }

/* A context of the host's in any case: for what is prepared there. */
static mlk_context *host_context(void) {
  static mlk_context *ctx;
  mlk_context_desc desc;
  memset(&desc, 0, sizeof desc);
  desc.threads = 1, desc.device = MLK_DEVICE_CPU;
  if (!ctx && mlk_open(&ctx, &desc) != MLK_OK) die("mlk_open failed");
  return ctx;
}

/* to = from, element by element, in the types they have; both in the host's memory. */
static void host_convert(mlk_tensor from, mlk_tensor to) {
  mlk_map_desc copy;
  memset(&copy, 0, sizeof copy);
  copy.a = from, copy.out = to;
  if (mlk_map(host_context(), &copy) != MLK_OK) die("%s", mlk_last_error(host_context()));
}

static const char *dtype_name(mlk_dtype dtype) { return dtype == MLK_F32 ? "f32" : dtype == MLK_F16 ? "f16" : "bf16"; }

static size_t dtype_bytes(mlk_dtype dtype) { return dtype == MLK_F32 ? 4 : 2; }

/* The greatest relative error of rounding to dtype from f32. */
static double dtype_unit(mlk_dtype dtype) { return dtype == MLK_F32 ? 0 : dtype == MLK_F16 ? 0x1p-11 : 0x1p-8; }

/* count dense elements of f32, f16 or bf16 at data. */
static mlk_tensor dense_view(void *data, mlk_dtype dtype, int64_t count) {
  mlk_tensor t = mlk_f32((float *)data, count);
  t.dtype = (int32_t)dtype;
  return t;
}

/* ----------------------------------------------------------------------------------------------------------- blocks */

/* 64-byte aligned, as malloc and the kernel place it (no huge pages asked for). Those of a row are freed together;
   kept: it outlives the row, and is free_kept's. used: the row has asked where it lies there. */
typedef struct block {
  char *host, *twin;
  size_t bytes;
  int kept, used;
} block;

enum { MAX_BLOCKS = 320 };
static block blocks[MAX_BLOCKS];
static int block_count;

static void *block_new(size_t bytes, int kept) {
  void *p = NULL;
  block *b = &blocks[block_count];
  bytes = bytes ? (bytes + 63) / 64 * 64 : 64;
  if (block_count == MAX_BLOCKS || posix_memalign(&p, 64, bytes) != 0)
    die("no memory: %.0f MiB asked for", (double)bytes / 1048576);
  memset(b, 0, sizeof *b);
  b->host = (char *)p, b->bytes = bytes, b->kept = kept;
  block_count++;
  return p;
}

static void block_free(block *b) {
  if (b->twin) mlk_free(bench_device.ctx, b->twin, b->bytes);
  free(b->host);
  *b = blocks[--block_count];
}

static void *row_alloc(size_t bytes) { return block_new(bytes, 0); }
static float *row_floats(int64_t count) { return (float *)row_alloc((size_t)count * sizeof(float)); }
static float *keep_floats(int64_t count) { return (float *)block_new((size_t)count * sizeof(float), 1); }

static void row_free_all(void) {
  int i;
  for (i = block_count; i-- > 0;) {
    blocks[i].used = 0;
    if (!blocks[i].kept) block_free(&blocks[i]);
  }
}

static block *block_of(const void *p) {
  const uintptr_t at = (uintptr_t)p;
  int i;
  for (i = 0; i < block_count; i++)
    if (at - (uintptr_t)blocks[i].host < blocks[i].bytes) return &blocks[i];
  die("%s: an operand lies in no block", bench_device.row);
  return NULL;
}

/* NULL is allowed. */
static void free_kept(void *p) {
  if (p) block_free(block_of(p));
}

/* Where a call finds what the host has at p, which lies in a block. */
static void *there(const void *p) {
  block *b;
  if (!bench_device.ctx || !p) return (void *)(uintptr_t)p;
  b = block_of(p);
  if (!b->twin) {
    void *twin;
    device_must(mlk_alloc(bench_device.ctx, b->bytes, &twin));
    b->twin = (char *)twin;
  }
  b->used = 1;
  return b->twin + ((const char *)p - b->host);
}

static mlk_tensor tensor_there(mlk_tensor t) {
  t.data = there(t.data);
  return t;
}

static void operands_up(void) {
  int i;
  bench_device.call_failed = 0;
  for (i = 0; i < block_count; i++)
    if (blocks[i].used) device_must(mlk_copy(bench_device.ctx, blocks[i].twin, blocks[i].host, blocks[i].bytes));
  device_wait();
}

/* After a call that failed the host's memory stays as it is: call_failed has marked the result there. */
static void operands_down(void) {
  int i;
  device_wait();
  for (i = 0; i < block_count && !bench_device.call_failed; i++)
    if (blocks[i].used) device_must(mlk_copy(bench_device.ctx, blocks[i].host, blocks[i].twin, blocks[i].bytes));
  device_wait();
}

/* A call did not do what result is of, which now begins with NaN. */
static void call_failed(float *result) {
  bench_device.call_failed = 1;
  fill_nan(result, 1);
}

/* The dense f32 values of a block as another dtype, in a block of their own. */
static void *row_narrowed(float *values, mlk_dtype dtype, int64_t count) {
  void *narrow = row_alloc((size_t)count * dtype_bytes(dtype));
  host_convert(dense_view(values, MLK_F32, count), dense_view(narrow, dtype, count));
  return narrow;
}

#endif
