/* mlk.h - 0.1.0 - machine-learning kernels in one C header            no warranty; see the end of the file

   Do this in exactly one C or C++ file, and include the header plainly everywhere else:

       #define MLK_IMPLEMENTATION
       #include "mlk.h"

   Then:

       mlk_context *ctx;
       if (mlk_open(&ctx, NULL) != MLK_OK) return 1;           // best instruction set, all cores
       mlk_matmul_desc mm = {0};
       mm.a = mlk_f32(A, m, k);                                // row-major m x k
       mm.b = mlk_f32(B, k, n);
       mm.d = mlk_f32(D, m, n);                                // D = A B
       if (mlk_matmul(ctx, &mm) != MLK_OK) puts(mlk_last_error(ctx));
       mlk_close(ctx);

   Build: cc -O2 -fopenmp file.c -lm      (no -march flags: the instruction set is chosen when the program runs)

   OPERATORS                     CPU scalar   AVX2   AVX-512   NEON   CUDA
     mlk_matmul     f32              x          x       x        x      -
     mlk_knn        f32              x          x       x        x      -
     mlk_distances  f32              x          x       x        x      -

   CONTENTS (search for the tag)
     >>manual          concepts, numerics, threads, memory, errors, configuration, how to add things
     >>config          macros that change how the header compiles
     >>types           status, dtype, tensor, hooks, context and operator descriptors
     >>api             every public function, each with its contract
     >>implementation  (below here only with MLK_IMPLEMENTATION)
     >>platform        compilers, attributes, atomics, clock
     >>status          status names, the error sentence
     >>memory          checked sizes, allocator, workspace
     >>threads         the one parallel loop
     >>cpu             which instruction sets this machine runs
     >>tensor          views: strides, broadcasting, extents, overlap
     >>ref             naive form of every operator: its definition, fallback and oracle
     >>vec             the vector vocabulary, once per instruction set
     >>isa             how one kernel source becomes one row of functions per instruction set
     >>math            exp, tanh, erf and the activations, in the vocabulary
     >>kernels         packing, matmul strip, epilogue, distances: compiled once per instruction set
     >>dispatch        the rows, and which one a context uses
     >>plan            ceilings and predicted times
     >>matmul          validation, blocking, threads
     >>knn             the filter, its error bound, the exact re-rank
     >>public          the functions of >>api
     >>licence         MIT No Attribution, or public domain

   MLK does not: own threads, keep global state, install handlers, change rounding or flush-to-zero modes,
   write to stdout, exit or abort, load files, or differentiate for you. No approximate nearest neighbours.
*/

/* >>manual

   CONTEXT     mlk_context holds what a call needs besides its operands: instruction set, thread count, allocator,
               workspace, last error. A context serves one thread at a time; any number live side by side.
               Nothing is global: two copies of the library (MLK_STATIC) in one program do not meet.

   TENSOR      mlk_tensor is a view by value: data, dtype, rank, shape, stride (in elements). All strides zero
               means dense row-major. Layouts are strides, never flags: mlk_transposed(t) swaps the last two axes.
               Strides may be negative for inputs; an axis of stride 0 or of size 1 broadcasts where a contract
               says "broadcast". A view of several elements that are all one needs a shape of ones: strides that
               are all zero mean dense.

   DESCRIPTOR  Every operator takes one struct in which zero means default, so designated initialisers read like
               keyword arguments (C99, C++20); in older C++ fill a zeroed struct. An absent tensor is one whose
               data is NULL.

   PLAN        mlk_X_plan(ctx, &desc, &plan) checks the same arguments as mlk_X and tells what would run: backend,
               instruction set, variant, threads, exact FLOPs, least bytes, workspace bytes, and, once
               mlk_measure(ctx) has measured this machine's ceilings, a predicted time. It touches no operand and
               allocates nothing. Operand data may then be any non-null pointer.

   NUMERICS    Strict mode (the default) gives the same bits for any thread count, instruction set, tile size,
               batch position and workspace. NaNs are NaNs everywhere; their sign and payload are not promised.
               - matmul: each element of A B is cut along k into segments of MLK_SEGMENT terms; each segment is one
                 chain of fused multiply-adds from +0 in ascending k; the segments' sums are added in ascending
                 order.  acc = ((s0 + s1) + s2) + ...                      S = MLK_SEGMENT, u = 2^-24:
                     |acc - exact| <= (min(K, S) + ceil(K / S)) u (1 + 2^-10) sum_k |a_k b_k|      (K < 2^13 S)
                 Epilogue, in this order, absent terms skipped:
                     t = fma(alpha, acc, bias)     t = fma(beta, C, t)     preact = t     D = act(t) + residual
               - distances: each sum over an axis of length D runs in 16 lanes: lane l is a chain of fused
                 multiply-adds over elements l, l + 16, ... ascending, and the lanes are added as a tree
                 (l with l + 8, then + 4, + 2, + 1).   (see mlk_metric)
                     |sum - exact| <= (ceil(D / 16) + 5) u (1 + 2^-10) sum |terms|       (L2: +2 for the subtraction)
               - k-NN results are *defined* by these distances: ascending by (distance, id). Fast paths only skip
                 rows that a proven error bound shows to lie outside; see >>knn.
               - activations: error in ulp of the exact result for the f32 input (tested over all floats): see
                 mlk_activation.
               MLK_FAST allows other orders where they pay. For f32 on the CPU nothing pays yet: same bits as strict.
               -ffast-math breaks these promises and is refused at compile time (MLK_ALLOW_FAST_MATH overrides).
               NaN and infinity follow IEEE arithmetic of the formulas above; with alpha = 0 A and B are not read,
               with beta = 0 C is not read. Rounding and flush-to-zero modes are left as found.

   THREADS     A call splits its work over at most ctx.threads tasks: with OpenMP where this file is compiled with
               it, through the caller's own parallel-for when a hook is given, else one after another. Inside a
               parallel region of somebody else a call runs serially. Small work stays on one thread.

   MEMORY      Operators use the context's workspace only. It grows to exactly what the plan of the call says, never
               shrinks until mlk_close, and does not grow at all after mlk_reserve(ctx, bytes, MLK_FIXED): then a call
               that needs more returns MLK_ERR_WORKSPACE and names the size. So: plan, reserve, run.

   ERRORS      Every call returns mlk_status. On failure outputs are untouched, and mlk_last_error(ctx) is a
               sentence that names the argument, its value and the limit. The context stays usable.
               Sizes are 64-bit; products that do not fit are refused before memory is touched.

   CONFIGURE   Define before including (affects: I = implementation file only, A = all files alike):
               MLK_IMPLEMENTATION     I  compile the implementation here
               MLK_STATIC             I  all functions static: the header is private to this file
               MLK_API                A  storage and visibility of public functions (default: extern)
               MLK_NO_OPENMP          I  ignore OpenMP even if the file is compiled with it
               MLK_NO_AVX2, MLK_NO_AVX512, MLK_NO_NEON  I  leave a row of kernels out (smaller object)
               MLK_FILENAME           I  the name of a renamed copy, with quotes: the file includes itself
               MLK_ALLOW_FAST_MATH    I  compile under -ffast-math, without the promises of NUMERICS

   ADD AN OPERATOR        docs/adding-an-operator.md walks through one.
   ADD AN INSTRUCTION SET docs/adding-an-isa.md.
*/

/* >>config ------------------------------------------------------------------------------------------------------- */
#ifndef MLK_H
#define MLK_H

#include <stddef.h>
#include <stdint.h>

#define MLK_VERSION_MAJOR 0
#define MLK_VERSION_MINOR 1
#define MLK_VERSION_PATCH 0
#define MLK_VERSION (MLK_VERSION_MAJOR * 10000 + MLK_VERSION_MINOR * 100 + MLK_VERSION_PATCH)

#ifdef MLK_STATIC
#  undef MLK_API
#  if defined(__GNUC__)
#    define MLK_API static __attribute__((unused))
#  else
#    define MLK_API static
#  endif
#endif
#ifndef MLK_API
#  define MLK_API extern
#endif

#if defined(__cplusplus)
extern "C" {
#endif

/* >>types -------------------------------------------------------------------------------------------------------- */

#define MLK_MAX_RANK 6  /* axes of a tensor */
#define MLK_SEGMENT 512 /* terms of one chain of fused multiply-adds along k; part of the numeric contract */

typedef enum mlk_status {
  MLK_OK = 0,
  MLK_ERR_ARGUMENT,    /* a required argument is missing, or a value is out of its range */
  MLK_ERR_SHAPE,       /* shapes or strides do not fit together */
  MLK_ERR_DTYPE,       /* this operator does not take this element type */
  MLK_ERR_ALIAS,       /* an output overlaps an operand it must not overlap */
  MLK_ERR_SIZE,        /* a size or a product of sizes does not fit in 63 bits */
  MLK_ERR_MEMORY,      /* the allocator returned NULL */
  MLK_ERR_WORKSPACE,   /* the workspace is fixed and too small */
  MLK_ERR_UNSUPPORTED, /* this build or this machine cannot do that */
  MLK_STATUS_COUNT
} mlk_status;

typedef enum mlk_dtype { MLK_F32 = 0, MLK_I64, MLK_DTYPE_COUNT } mlk_dtype;

/* A view of memory the caller owns. Element (i0, i1, ...) is data[i0*stride[0] + i1*stride[1] + ...], strides counted in elements.
   All strides zero: dense row-major. rank <= MLK_MAX_RANK. The units are those of DLPack's DLTensor, so shape and
   strides copy over as they are. data == NULL: absent. */
typedef struct mlk_tensor {
  void *data;
  int32_t dtype; /* mlk_dtype */
  int32_t rank;
  int64_t shape[MLK_MAX_RANK];
  int64_t stride[MLK_MAX_RANK];
} mlk_tensor;

typedef enum mlk_isa { MLK_ISA_BEST = 0, MLK_ISA_SCALAR, MLK_ISA_NEON, MLK_ISA_AVX2, MLK_ISA_AVX512, MLK_ISA_COUNT } mlk_isa;
typedef enum mlk_numerics { MLK_STRICT = 0, MLK_FAST } mlk_numerics;
typedef enum mlk_growth { MLK_GROWS = 0, MLK_FIXED } mlk_growth;

/* The caller's allocator. alloc returns bytes > 0 aligned to alignment (a power of two, at most 4096), or NULL.
   free gets what alloc returned and the same bytes. Both or neither must be set. */
typedef struct mlk_allocator {
  void *(*alloc)(void *user, size_t bytes, size_t alignment);
  void (*free)(void *user, void *memory, size_t bytes);
  void *user;
} mlk_allocator;

/* The caller's parallel-for: call body(arg, i) once for each i in [0, count), on any threads, in any order, and return
   when all are done. count <= workers, so each i may have a thread of its own. body never throws and never blocks. */
typedef struct mlk_parallel {
  void (*run)(void *user, int count, void (*body)(void *arg, int index), void *arg);
  void *user;
  int workers; /* >= 1: how many tasks a call may make */
} mlk_parallel;

typedef struct mlk_context_desc {
  int threads;           /* most tasks per call; 0: what OpenMP or the hook offers, else 1. At most 1024 */
  mlk_isa isa;           /* 0: the best this machine runs */
  mlk_numerics numerics; /* 0: MLK_STRICT */
  mlk_allocator allocator;
  mlk_parallel parallel;
  void (*log)(void *user, const char *line); /* called with each error sentence; NULL: nobody */
  void *log_user;
  uint64_t workspace_bytes; /* reserved by mlk_open */
  mlk_growth growth;        /* MLK_FIXED: the workspace never grows beyond workspace_bytes */
} mlk_context_desc;

typedef struct mlk_context mlk_context;

/* What one thread, and all threads of a context, can do at most on this machine: see mlk_measure. */
typedef struct mlk_ceilings {
  double flops_1, flops_all; /* f32 fused multiply-adds in registers, two flops each, per second */
  double read_1, read_all;   /* bytes per second, reading memory out of cache */
} mlk_ceilings;

typedef struct mlk_info {
  const char *backend; /* "cpu" */
  const char *isa;     /* "scalar", "neon", "avx2", "avx512" */
  int threads;         /* most tasks per call */
  int openmp;          /* 1 when OpenMP runs the tasks */
  uint64_t workspace_bytes;
  mlk_ceilings ceilings; /* zeros before mlk_measure */
} mlk_info;

typedef struct mlk_plan {
  uint64_t flops;           /* floating-point operations of the definition; a multiply-add counts two */
  uint64_t bytes;           /* every operand element moved once: the least traffic with memory */
  uint64_t workspace_bytes; /* the workspace the call uses; mlk_reserve takes it as it is */
  const char *backend, *isa, *variant;
  int threads;    /* tasks the call will make */
  double seconds; /* the roofline of ceilings, flops and bytes; 0 before mlk_measure */
} mlk_plan;

/* y = act(x). Greatest error over all floats x, in units in the last place of the exact f32 result: see docs/numerics.md.
   NaN gives NaN. */
typedef enum mlk_activation {
  MLK_NONE = 0,
  MLK_RELU,      /* x < 0 ? 0 : x */
  MLK_GELU,      /* x/2 (1 + erf(x / sqrt 2)) */
  MLK_GELU_TANH, /* x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) */
  MLK_SILU,      /* x / (1 + exp(-x)) */
  MLK_TANH,
  MLK_SIGMOID, /* 1 / (1 + exp(-x)) */
  MLK_ACTIVATION_COUNT
} mlk_activation;

/* Weights packed once for mlk_matmul. A small record by value; the panels live in the caller's buffer. */
typedef struct mlk_packed {
  const void *data; /* 64-byte aligned; NULL: absent */
  uint64_t bytes;
  int64_t k, n;  /* shape of the matrix that was packed */
  int32_t dtype; /* mlk_dtype */
  int32_t isa;   /* mlk_isa of the context that packed: panels have that row's width */
  int32_t panel; /* columns per panel */
} mlk_packed;

/* D = act(alpha A B + beta C + bias) + residual, for each matrix of a batch.
   The last two axes are the matrix, axes before them the batch: D's batch shape rules, the other tensors' batch axes
   equal it, are 1, or are missing. D may be transposed or strided in any way that does not map two elements to one place. */
typedef struct mlk_matmul_desc {
  mlk_tensor a;              /* [..., M, K] f32 */
  mlk_tensor b;              /* [..., K, N] f32; absent when packed_b is given */
  const mlk_packed *packed_b; /* B as mlk_matmul_pack made it (no batch axes) */
  mlk_tensor d;              /* [..., M, N] f32, output, required */
  mlk_tensor c;              /* broadcast to D's shape; may be D itself. With beta and no c: c = D (accumulate) */
  mlk_tensor bias;           /* broadcast to D's shape: [N] per column, [M, 1] per row */
  mlk_tensor residual;       /* broadcast to D's shape; may be D itself */
  mlk_tensor preact;         /* D's shape, output, optional: the argument of act, for a backward pass */
  const float *alpha;        /* NULL: 1 */
  const float *beta;         /* NULL: 1 when c is given, else 0 */
  mlk_activation activation;
} mlk_matmul_desc;

/* Distances d(q, x), all sums in the 16-lane order of NUMERICS, every operation rounded to f32.
   L2SQ and L2: smaller is nearer. INNER_PRODUCT and COSINE: larger is nearer. */
typedef enum mlk_metric {
  MLK_L2SQ = 0,      /* sum of fma(t, t, .) with t = q_j - x_j */
  MLK_L2,            /* sqrt of MLK_L2SQ, correctly rounded */
  MLK_INNER_PRODUCT, /* sum of fma(q_j, x_j, .) */
  MLK_COSINE,        /* (ip(q, x) / sqrt(ip(q, q))) / sqrt(ip(x, x)); 0 when either norm is 0 */
  MLK_METRIC_COUNT
} mlk_metric;

/* The k nearest rows of base for each query.
   Row i of ids holds row numbers of base, nearest first, equal distances by ascending row number.
   Rows whose distance is NaN are nobody's neighbour. Where fewer than k rows qualify, the rest of ids is -1 and the
   rest of distances is +infinity (L2SQ, L2) or -infinity (INNER_PRODUCT, COSINE). */
typedef struct mlk_knn_desc {
  mlk_tensor queries;   /* [Q, D] f32, any strides */
  mlk_tensor base;      /* [N, D] f32, any strides */
  int64_t k;            /* >= 0 */
  mlk_metric metric;
  mlk_tensor ids;       /* [Q, k] i64, output, required; last axis dense */
  mlk_tensor distances; /* [Q, k] f32, output, optional; last axis dense */
  int64_t first_id;     /* added to every row number: the shard's place in a larger base */
} mlk_knn_desc;

/* All distances: out[i][j] = d(queries[i], base[j]). */
typedef struct mlk_distances_desc {
  mlk_tensor queries; /* [Q, D] f32, any strides */
  mlk_tensor base;    /* [N, D] f32, any strides */
  mlk_metric metric;
  mlk_tensor out;     /* [Q, N] f32, output, any strides without overlap */
} mlk_distances_desc;

/* >>api ---------------------------------------------------------------------------------------------------------- */

/* MLK_VERSION of the compiled implementation. */
MLK_API int mlk_version(void);

/* "ok", "argument", ...; never NULL. */
MLK_API const char *mlk_status_name(mlk_status status);

/* "best", "scalar", "neon", "avx2", "avx512"; never NULL. */
MLK_API const char *mlk_isa_name(mlk_isa isa);

/* 1 when this build has kernels for isa and this machine and operating system run them. */
MLK_API int mlk_isa_available(mlk_isa isa);

/* Makes a context. desc NULL: all defaults. On failure *ctx is NULL: MLK_ERR_ARGUMENT (ctx NULL, half an allocator, threads
   outside 0..1024, a bad enum), MLK_ERR_UNSUPPORTED (isa not available here), MLK_ERR_MEMORY; the sentence goes to desc->log. */
MLK_API mlk_status mlk_open(mlk_context **ctx, const mlk_context_desc *desc);

/* Frees everything the context allocated. NULL is allowed. */
MLK_API void mlk_close(mlk_context *ctx);

/* The sentence of the last failed call on ctx; "" when none failed. Valid until the next call on ctx. NULL ctx: a fixed sentence. */
MLK_API const char *mlk_last_error(const mlk_context *ctx);

/* What the context runs on. NULL arguments: MLK_ERR_ARGUMENT. */
MLK_API mlk_status mlk_get_info(const mlk_context *ctx, mlk_info *info);

/* Grows the workspace to at least bytes now (never shrinks it) and sets whether later calls may grow it. */
MLK_API mlk_status mlk_reserve(mlk_context *ctx, uint64_t bytes, mlk_growth growth);

/* Measures the ceilings that plans and benchmarks refer to: a register-only FMA loop and a read of 64 MiB per thread, each the
   best of a few runs, on one and on all threads. Takes about half a second, allocates and frees 64 MiB per thread. */
MLK_API mlk_status mlk_measure(mlk_context *ctx, mlk_ceilings *ceilings);

/* Matrix product with epilogue: see mlk_matmul_desc.
   Shapes: M, N, K >= 0; with K = 0 the product is zero. FLOPs are 2 M N K per matrix.
   Aliasing: D may be C or residual or both (same data and strides); D and preact must not overlap anything else.
   Errors: ARGUMENT, SHAPE, DTYPE, ALIAS, SIZE, MEMORY, WORKSPACE; outputs untouched. */
MLK_API mlk_status mlk_matmul(mlk_context *ctx, const mlk_matmul_desc *desc);
MLK_API mlk_status mlk_matmul_plan(mlk_context *ctx, const mlk_matmul_desc *desc, mlk_plan *plan);

/* Weights used many times, packed once. Call with buffer NULL to learn packed->bytes; then give a buffer of that many bytes,
   64-byte aligned, which must outlive every use. b is [K, N] f32 with any strides (a [N, K] weight: mlk_transposed).
   The result fits contexts of the same instruction set; another one refuses it by name (MLK_ERR_ARGUMENT). Same bits as unpacked. */
MLK_API mlk_status mlk_matmul_pack(mlk_context *ctx, mlk_tensor b, void *buffer, uint64_t buffer_bytes, mlk_packed *packed);

/* Exact nearest neighbours: see mlk_knn_desc and mlk_metric. FLOPs are 2 Q N D (of the definition by inner products).
   Workspace is bounded by the blocking and grows with k Q, never with Q N.
   Aliasing: ids and distances overlap nothing. Errors: as mlk_matmul. */
MLK_API mlk_status mlk_knn(mlk_context *ctx, const mlk_knn_desc *desc);
MLK_API mlk_status mlk_knn_plan(mlk_context *ctx, const mlk_knn_desc *desc, mlk_plan *plan);

/* All distances: see mlk_distances_desc. The same bits as mlk_knn returns. Aliasing: out overlaps nothing. */
MLK_API mlk_status mlk_distances(mlk_context *ctx, const mlk_distances_desc *desc);
MLK_API mlk_status mlk_distances_plan(mlk_context *ctx, const mlk_distances_desc *desc, mlk_plan *plan);

/* Views. mlk_f32(data, 3, 4) is a dense row-major 3 x 4 matrix of float; up to MLK_MAX_RANK sizes of any integer type. */
#define mlk_f32(data, ...) MLKI_VIEW(mlki_view_f32, data, __VA_ARGS__, MLKI_END, MLKI_END, MLKI_END, MLKI_END, MLKI_END, MLKI_END)
#define mlk_i64(data, ...) MLKI_VIEW(mlki_view_i64, data, __VA_ARGS__, MLKI_END, MLKI_END, MLKI_END, MLKI_END, MLKI_END, MLKI_END)

/* The same view with the last two axes swapped. Rank < 2: unchanged. */
static inline mlk_tensor mlk_transposed(mlk_tensor t);

/* A row-major matrix view whose rows start stride elements apart: replaces the strides of the last two axes by (stride, 1);
   axes before them keep their dense strides in units of those rows. */
static inline mlk_tensor mlk_with_row_stride(mlk_tensor t, int64_t stride);

/* Elements [first, first + count) of an axis. Not checked here: operators check shapes, nobody can check data. */
static inline mlk_tensor mlk_slice(mlk_tensor t, int axis, int64_t first, int64_t count);

#define MLKI_END INT64_MIN
#define MLKI_VIEW(make, data, s0, s1, s2, s3, s4, s5, ...) \
  make(data, (int64_t)(s0), (int64_t)(s1), (int64_t)(s2), (int64_t)(s3), (int64_t)(s4), (int64_t)(s5))

static inline mlk_tensor mlki_view(const void *data, mlk_dtype dtype, const int64_t *size) {
  mlk_tensor t = {NULL, 0, 0, {0}, {0}};
  t.data = (void *)(uintptr_t)data;
  t.dtype = (int32_t)dtype;
  while (t.rank < MLK_MAX_RANK && size[t.rank] != MLKI_END) {
    t.shape[t.rank] = size[t.rank];
    t.rank++;
  }
  return t;
}

static inline mlk_tensor mlki_view_f32(const float *data, int64_t s0, int64_t s1, int64_t s2, int64_t s3, int64_t s4, int64_t s5) {
  const int64_t size[MLK_MAX_RANK] = {s0, s1, s2, s3, s4, s5};
  return mlki_view(data, MLK_F32, size);
}

static inline mlk_tensor mlki_view_i64(const int64_t *data, int64_t s0, int64_t s1, int64_t s2, int64_t s3, int64_t s4, int64_t s5) {
  const int64_t size[MLK_MAX_RANK] = {s0, s1, s2, s3, s4, s5};
  return mlki_view(data, MLK_I64, size);
}

/* Writes out the strides of a dense tensor, so that they can be changed. Sizes whose products overflow are refused later,
   by the operator; unsigned arithmetic keeps the overflow defined until then. */
static inline mlk_tensor mlki_explicit_strides(mlk_tensor t) {
  uint64_t step = 1;
  int i;
  for (i = 0; i < t.rank && i < MLK_MAX_RANK; i++)
    if (t.stride[i] != 0) return t;
  for (i = t.rank - 1; i >= 0 && i < MLK_MAX_RANK; i--) {
    t.stride[i] = (int64_t)step;
    step *= (uint64_t)t.shape[i];
  }
  return t;
}

static inline mlk_tensor mlk_transposed(mlk_tensor t) {
  int64_t s;
  if (t.rank < 2 || t.rank > MLK_MAX_RANK) return t;
  t = mlki_explicit_strides(t);
  s = t.shape[t.rank - 1], t.shape[t.rank - 1] = t.shape[t.rank - 2], t.shape[t.rank - 2] = s;
  s = t.stride[t.rank - 1], t.stride[t.rank - 1] = t.stride[t.rank - 2], t.stride[t.rank - 2] = s;
  return t;
}

static inline mlk_tensor mlk_with_row_stride(mlk_tensor t, int64_t stride) {
  uint64_t step = (uint64_t)stride;
  int i;
  if (t.rank < 2 || t.rank > MLK_MAX_RANK) return t;
  t.stride[t.rank - 1] = 1;
  for (i = t.rank - 2; i >= 0; i--) {
    t.stride[i] = (int64_t)step;
    step *= (uint64_t)t.shape[i];
  }
  return t;
}

static inline mlk_tensor mlk_slice(mlk_tensor t, int axis, int64_t first, int64_t count) {
  static const size_t bytes[MLK_DTYPE_COUNT] = {4, 8};
  if (axis < 0 || axis >= t.rank || t.rank > MLK_MAX_RANK || t.dtype < 0 || t.dtype >= MLK_DTYPE_COUNT) return t;
  t = mlki_explicit_strides(t);
  t.data = (char *)t.data + first * t.stride[axis] * (int64_t)bytes[t.dtype];
  t.shape[axis] = count;
  return t;
}

#if defined(__cplusplus)
}
#endif
#endif /* MLK_H */
