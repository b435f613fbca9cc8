/* mlk.h - 0.1.0 - machine-learning kernels in one C header            no warranty; see the end of the file

   Do this in exactly one C or C++ file, and include the header plainly everywhere else:

       #define MLK_IMPLEMENTATION
       #include "mlk.h"

   Then:

       mlk_context *ctx;
       if (mlk_open(&ctx, NULL) != MLK_OK) return 1;           // best instruction set, all cores
       mlk_matmul_desc mm = {0};                               // C++: = {}
       mm.a = mlk_f32(A, m, k);                                // row-major m x k
       mm.b = mlk_f32(B, k, n);
       mm.d = mlk_f32(D, m, n);                                // D = A B
       if (mlk_matmul(ctx, &mm) != MLK_OK) puts(mlk_last_error(ctx));
       mlk_close(ctx);

   Build: cc -O2 -fopenmp file.c -lm      (no -march flags: the instruction set is chosen when the program runs)

   OPERATORS                     CPU scalar   AVX2   AVX-512   NEON   CUDA
     mlk_matmul     f32              x          x       x        x      x
     mlk_conv mlk_conv_grad_input mlk_conv_grad_weights
                    f32              x          x       x        x      x    (1-D to 3-D; also transposed)
     mlk_attention mlk_attention_grad mlk_attention_merge
                    f32              x          x       x        x      x    (K and V also f16, bf16)
     mlk_average    f32              x          x       x        x      x    (also f16, bf16; mlk_group: replicas)
     mlk_knn        f32              x          x       x        x      x
     mlk_distances  f32              x          x       x        x      x
     mlk_pool mlk_softmax mlk_cross_entropy mlk_norm mlk_embedding mlk_rotary and gradients,
                    f32              x          x       x        x      x
     mlk_map mlk_reduce mlk_clip_norm mlk_sgd mlk_adamw
                    f32              x          x       x        x      x    (mlk_map converts f16, bf16, u8, i64)

   CONTENTS (search for the tag)
     >>manual          concepts, numerics, threads, memory, errors, configuration, how to add things
     >>config          macros that change how the header compiles
     >>types           status, dtype, tensor, hooks, context and operator descriptors
     >>backends        the table an accelerator provides
     >>api             every public function, each with its contract
     >>implementation  (below here only with MLK_IMPLEMENTATION)
     >>platform        compilers, attributes, atomics, clock
     >>status          status names, the error sentence
     >>memory          checked sizes, allocator, workspace
     >>threads         the one parallel loop
     >>cpu             which instruction sets this machine runs
     >>tensor          views: strides, broadcasting, extents, overlap
     >>vec             the vector vocabulary, once per instruction set
     >>isa             how one kernel source becomes one row of functions per instruction set
     >>math            exp, tanh, erf and the activations, in the vocabulary
     >>kernels         packing, matmul strip, epilogue, distances: compiled once per instruction set
     >>conv_kernels    packing of images, sums of planes and lanes: the same
     >>map_kernels     dense rows of maps, conversions, reductions, optimiser steps: the same
     >>layer_kernels   pooling windows, rows of softmax and normalisation, rotary pairs: the same
     >>average_kernels means of several rows: the same
     >>attention_kernels
                       rows of scores and partial results; then the row
     >>dispatch        the rows, and which one a context uses
     >>ref             naive form of every operator: its definition, and the oracle of the tests
     >>plan            ceilings and predicted times
     >>backend         calls on an accelerator
     >>matmul          validation, blocking, threads
     >>conv            correlations and their phases; what they mean
     >>conv_matrix     as matrix products: packing of weights and image, columns, rows, rows read in place
     >>conv_bands      few channels: planes and lanes
     >>conv_items      which variant, which blocks, how many tasks
     >>conv_calls      checks of the calls; 1 x 1 filters as matmul
     >>conv_weights    the weight gradient
     >>knn             the filter, its error bound, the exact re-rank
     >>distances       all pairs; the smallest complete operator, a model for new ones
     >>map             the walk over several views, maps, conversions
     >>reduce          sums, means, largest and smallest over axes
     >>optimizers      clipping, SGD, AdamW
     >>layer           what the layers below share: jobs, rows of any view, checked ids, logarithm in f64
     >>pool            pooling and its gradient
     >>softmax         softmax, cross-entropy, gradients
     >>norm            layer and RMS normalisation, gradients
     >>embedding       rows by number, gradient
     >>rotary          rotary positions
     >>attention       what a query sees, checks, definitions
     >>attention_strips
                       a few queries against a block of keys; folding
     >>attention_forward
                       tiles and tasks of the call
     >>attention_grad_tiles
                       packed operands; weights and products of one tile
     >>attention_grad  tasks of the gradient
     >>attention_merge parts into one
     >>average         the mean of replicas' tensors: checks, tables, overlap
     >>average_run     its definition, pieces and tasks
     >>group           replica groups: parts, words, waits
     >>group_memory    segments that processes share, attaching
     >>group_steps     who is in a step; means of buckets
     >>group_calls     the calls of a step, public ones included
     >>group_state     ZeRO-1, bringing replicas up to date
     >>calibrate       calls that are timed, for predictions
     >>public          the public functions of the others
     >>licence         MIT No Attribution, or public domain

   MLK does not: own threads, keep global state, install handlers, change rounding or flush-to-zero modes, change errno
   where a call succeeds, write to stdout, exit or abort, load files, or differentiate for you. No approximate nearest
   neighbours.
*/

/* >>manual

   CONTEXT     mlk_context holds what a call needs besides its operands: instruction set, thread count, allocator,
               workspace, last error. A context serves one thread at a time; any number live side by side.
               Nothing is global: two copies of the library (MLK_STATIC) in one program do not meet.

   TENSOR      mlk_tensor is a view by value: data, dtype, rank, shape, stride (in elements). All strides zero
               means dense row-major. Layouts are strides, never flags: mlk_transposed(t) swaps the last two axes.
               Strides may be negative. An output's strides, sorted by size, each step over all that the
               smaller ones span. An axis of stride 0 or of size 1 broadcasts where a contract
               says "broadcast". Set all strides or none: a zero among non-zero ones repeats that axis, but strides
               that are all zero mean dense. So one value for all elements is a tensor whose sizes are all 1.

   DESCRIPTOR  Every operator takes one struct in which zero means default, so designated initialisers read like
               keyword arguments (C99, C++20); in older C++ fill a zeroed struct. An absent tensor is one whose
               data is NULL, whatever its shape says.

   PLAN        mlk_X_plan(ctx, &desc, &plan) checks the same arguments as mlk_X and tells what would run: backend,
               instruction set, variant, threads, exact FLOPs, least bytes, workspace bytes, and a predicted
               time: once mlk_measure(ctx) has measured this machine's ceilings a bound, after mlk_calibrate(ctx) what
               calls like this one take. It touches no operand, allocates nothing and does not look for overlap, so
               operand data may be any non-null pointer; only whether D is the same view as C or residual counts.

   NUMERICS    Strict mode (the default) gives the same bits for any thread count, instruction set, tile size,
               batch position and workspace. NaNs are NaNs everywhere; their sign and payload are not promised.
               - matmul: each element of A B is cut along k into segments of MLK_SEGMENT terms; each segment is one
                 chain of fused multiply-adds from +0 in ascending k; the segments' sums are added in ascending
                 order.  acc = ((s0 + s1) + s2) + ...                      S = MLK_SEGMENT, u = 2^-24:
                     |acc - exact| <= (min(K, S) + ceil(K / S)) u (1 + 2^-10) sum_k |a_k b_k|      (K < 2^13 S)
                 Epilogue, in this order, absent terms skipped:
                     t = fma(alpha, acc, bias)     t = fma(beta, C, t)     preact = t     D = act(t) + residual
               - convolution: the same sums and epilogue. k runs over taps (row-major), then channels; for the weight
                 gradient over images, then output positions. Padding is zeros that take part. The layout does not
                 matter.
               - distances: each sum over an axis of length D runs in 16 lanes: lane l is a chain of fused
                 multiply-adds from +0 over elements l, l + 16, ... ascending, elements past the end counting as
                 zeros up to a multiple of 16, and the lanes are added as a tree (l with l + 8, then + 4, + 2, + 1).
                     |sum - exact| <= (ceil(D / 16) + 5) u (1 + 2^-10) sum |terms|       (L2: +2 for the subtraction)
               - k-NN results are *defined* by these distances: nearest first (ascending for L2SQ and L2, descending for
                 INNER_PRODUCT and COSINE), equal distances by ascending id. Fast paths only skip
                 rows that a proven error bound shows to lie outside; see >>knn.
               - reductions: segments of MLK_REDUCE_SEGMENT terms, each in 16 lanes as a distance: see mlk_reduce_op.
               - attention: scores are products as above; keys are cut into blocks and segments whose partial softmaxes
                 are folded in ascending order: see mlk_attention_desc.
               - activations: error in ulp of the exact result for the f32 input (tested over all floats): see
                 mlk_activation.
               - pooling, softmax, cross-entropy, normalisation, embedding, rotary positions: the arithmetic stands at
                 each descriptor; sums along an axis run in 16 lanes as above, sums over rows in segments.
               MLK_FAST allows other orders where they pay. For f32 on the CPU nothing pays yet: same bits as strict.
               -ffast-math and its parts break these promises and are refused at compile time where the compiler lets
               us see them (clang hides some); MLK_ALLOW_FAST_MATH overrides.
               NaN and infinity follow IEEE arithmetic of the formulas above; with alpha = 0 A and B (of a convolution
               X or DY, and W) are not read, with beta = 0 C is not read (but they are still checked). The bits hold
               in the default mode, round to nearest and denormals on, of every thread that takes part; MLK leaves
               modes as found.

   REPLICAS    mlk_average is the mean of several replicas' gradients; mlk_group lets threads, processes or hosts
               publish theirs and read the others', with deadlines: see mlk_group_desc.

   THREADS     A call splits its work over at most ctx.threads tasks: with OpenMP where this file is compiled with
               it (on cores shared with other programs set OMP_WAIT_POLICY=passive: idle threads spin otherwise),
               through the caller's own parallel-for when a hook is given, else one after another. Inside a
               parallel region of somebody else a call runs serially. Small work stays on one thread. A task needs
               less than 64 KiB of stack (512 KiB if the implementation is compiled without optimisation).

   MEMORY      Operators use the context's workspace only. It grows to exactly what the plan of the call says, never
               shrinks until mlk_close, and does not grow at all after mlk_reserve(ctx, bytes, MLK_FIXED): then a call
               that needs more returns MLK_ERR_WORKSPACE and names the size. So: plan, reserve, run.

   DEVICES     A context runs on the CPU, or on a device of a backend in its descriptor (mlk_cuda_backend() of
               mlk_cuda.cuh). The calls are the same. Operands then lie in the device's memory (mlk_alloc, mlk_copy),
               calls are queued and mlk_sync waits for them; f32 keeps its bits, and products, convolutions and
               attention also take f16 and bf16. Without the device a plan for it can be had by its figures:
               mlk_device_figures.

   ERRORS      Every call returns mlk_status. On failure outputs are untouched, and mlk_last_error(ctx) is a
               sentence that names the argument, its value and the limit. The context stays usable.
               Sizes are 64-bit, an axis below 2^60; products that do not fit are refused before memory is touched.

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

/* >>config --------------------------------------------------------------------------------------------------------- */
#ifndef MLK_H
#define MLK_H

/* Under -std=c99 the C library hides what replica groups take of the system, unless this comes first. */
#if defined(MLK_IMPLEMENTATION) && defined(__linux__) && !defined(_DEFAULT_SOURCE) && !defined(_GNU_SOURCE) &&         \
    !defined(_FEATURES_H)
#define _DEFAULT_SOURCE
#endif

#include <stddef.h>
#include <stdint.h>

#define MLK_VERSION_MAJOR 0
#define MLK_VERSION_MINOR 1
#define MLK_VERSION_PATCH 0
#define MLK_VERSION       (MLK_VERSION_MAJOR * 10000 + MLK_VERSION_MINOR * 100 + MLK_VERSION_PATCH)

#ifdef MLK_STATIC
#undef MLK_API
#if defined(__GNUC__)
#define MLK_API static __attribute__((unused))
#else
#define MLK_API static
#endif
#endif
#ifndef MLK_API
#define MLK_API extern
#endif

#if defined(__cplusplus)
extern "C" {
#endif

/* >>types ---------------------------------------------------------------------------------------------------------- */

#define MLK_MAX_RANK 6   /* axes of a tensor */
#define MLK_SEGMENT  512 /* terms of one chain of fused multiply-adds along k; part of the numeric contract */

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
  MLK_ERR_REPLICA,     /* a replica is dead, late or left out, or none is left whose gradients are finite */
  MLK_ERR_SYSTEM,      /* the operating system or the transport refused; the sentence says what */
  MLK_STATUS_COUNT
} mlk_status;

typedef enum mlk_dtype {
  MLK_F32 = 0,
  MLK_I64,
  MLK_F16,  /* IEEE binary16; storage only: mlk_map with MLK_COPY converts */
  MLK_BF16, /* the upper half of an f32; storage only */
  MLK_U8,
  MLK_DTYPE_COUNT
} mlk_dtype;

/* A view of memory the caller owns. Element (i0, i1, ...) is data[i0*stride[0] + i1*stride[1] + ...], strides
   counted in elements. All strides zero: dense row-major. rank <= MLK_MAX_RANK. The units are those of DLPack's
   DLTensor, so shape and strides copy over as they are. data == NULL: absent. */
typedef struct mlk_tensor {
  void *data;
  int32_t dtype; /* mlk_dtype */
  int32_t rank;
  int64_t shape[MLK_MAX_RANK];
  int64_t stride[MLK_MAX_RANK];
} mlk_tensor;

/* MLK_ISA_REFERENCE runs every operator as its naive definition: slow, one thread, the same bits. */
typedef enum mlk_isa {
  MLK_ISA_BEST = 0,
  MLK_ISA_SCALAR,
  MLK_ISA_NEON,
  MLK_ISA_AVX2,
  MLK_ISA_AVX512,
  MLK_ISA_REFERENCE,
  MLK_ISA_COUNT
} mlk_isa;
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

/* An accelerator's operators, as one const table: mlk_cuda_backend() of mlk_cuda.cuh. See >>backends. */
typedef struct mlk_backend mlk_backend;

#define MLK_MAX_BACKENDS 4

/* Where the calls of a context run. BEST: on a device of the first backend that has one, else on the CPU. */
typedef enum mlk_device { MLK_DEVICE_BEST = 0, MLK_DEVICE_CPU, MLK_DEVICE_BACKEND, MLK_DEVICE_COUNT } mlk_device;

/* What becomes of operands in the host's memory on a device: MLK_ERR_ARGUMENT, which names them; or they are copied to
   the workspace before the call and back after it, for which the call waits. */
typedef enum mlk_host_arrays { MLK_HOST_REFUSED = 0, MLK_HOST_STAGED, MLK_HOST_ARRAYS_COUNT } mlk_host_arrays;

/* A device by its figures, for plans of calls on one that need not be here. */
typedef struct mlk_device_figures {
  const char *name;
  int compute_capability; /* CUDA: 90 for 9.0 */
  int multiprocessors;
  double flops, tensor_flops; /* per second: f32 multiply-adds counted twice; 16-bit operands, f32 sums (0: as f32) */
  double bandwidth;           /* bytes per second of its memory, reads and writes counted alike */
  uint64_t memory_bytes;
} mlk_device_figures;

typedef struct mlk_context_desc {
  int threads;           /* most tasks per call; 0: what OpenMP or the hook offers, else 1. At most 1024 */
  mlk_isa isa;           /* 0: the best this machine runs */
  mlk_numerics numerics; /* 0: MLK_STRICT */
  mlk_allocator allocator;
  mlk_parallel parallel;
  void (*log)(void *user, const char *line); /* called with each error sentence; NULL: nobody */
  void *log_user;
  uint64_t workspace_bytes;                      /* reserved by mlk_open */
  mlk_growth growth;                             /* MLK_FIXED: the workspace never grows beyond workspace_bytes */
  const mlk_backend *backends[MLK_MAX_BACKENDS]; /* e.g. { mlk_cuda_backend() }; NULL entries are passed over */
  mlk_device device;
  int device_index;            /* which of a backend's devices, from 0 */
  void *stream;                /* the device's, for CUDA a cudaStream_t: calls are queued there; NULL: its default */
  mlk_host_arrays host_arrays; /* on a device */
  int shared_memory; /* 1: what mlk_alloc gives can be used by the host too, between mlk_sync and the next call (CUDA:
                        managed memory) */
  const mlk_device_figures *figures; /* with a backend: a context that plans for this device, and refuses to run */
  const struct mlk_calibration *calibration; /* of an earlier mlk_calibrate, copied; NULL: none */
} mlk_context_desc;

typedef struct mlk_context mlk_context;

/* What one thread, and all threads of a context, can do at most on this machine: see mlk_measure. */
typedef struct mlk_ceilings {
  double flops_1, flops_all; /* f32 fused multiply-adds in registers, two flops each, per second */
  double read_1, read_all;   /* bytes per second, reading memory out of cache */
} mlk_ceilings;

#define MLK_CALIBRATION_POINTS 256

/* A call that mlk_calibrate has timed. The logarithms are to base 2. */
typedef struct mlk_calibration_point {
  int32_t op;                /* mlk_op */
  uint32_t variant;          /* of plan.variant and what kind of call it was, a hash */
  float flops, bytes, tasks; /* log of each plus 1, as the plan told them */
  float factor;              /* log of the measured time over the ceilings', which for k-NN count packing too */
} mlk_calibration_point;

/* What mlk_calibrate found: plain data without pointers, which a program may keep in a file and give to later contexts
   of the same machine and library version. */
typedef struct mlk_calibration {
  int32_t version;  /* MLK_VERSION of who made it */
  int32_t threads;  /* of the context that made it */
  char backend[16]; /* "cpu", "cuda" */
  char isa[16];     /* as in mlk_info */
  mlk_ceilings ceilings;
  int32_t count, reserved;
  mlk_calibration_point points[MLK_CALIBRATION_POINTS];
} mlk_calibration;

typedef struct mlk_info {
  const char *backend; /* "cpu", "cuda" */
  const char *isa;     /* as mlk_isa_name; of a device its own, such as "sm_90" */
  const char *device;  /* the device's name; "" of the CPU */
  int threads;         /* most tasks per call */
  int openmp;          /* 1 when OpenMP runs the tasks */
  uint64_t workspace_bytes;
  mlk_ceilings ceilings; /* zeros before mlk_measure */
} mlk_info;

typedef struct mlk_plan {
  uint64_t flops;           /* floating-point operations of the definition; a multiply-add counts two */
  uint64_t bytes;           /* every operand element moved once (C and D are two operands): the least traffic */
  uint64_t workspace_bytes; /* the workspace the call uses; mlk_reserve takes it as it is */
  const char *backend, *isa, *variant;
  int threads; /* tasks the call will make; on a device 1 */
  /* Predicted. 0 before mlk_measure, then the roofline of ceilings, flops and bytes (of a device: of its figures),
     which no call can beat out of cache; after mlk_calibrate what calls like this one took. */
  double seconds;
} mlk_plan;

/* y = act(x), with the greatest error over all floats x in units in the last place of the exact result. NaN gives
   NaN. */
typedef enum mlk_activation {
  MLK_NONE = 0,
  MLK_RELU,      /* x < 0 ? 0 : x */
  MLK_GELU,      /* x/2 (1 + erf(x / sqrt 2)); 6.50 ulp, 3.64 for x > 0 */
  MLK_GELU_TANH, /* x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))); 2.57 ulp */
  MLK_SILU,      /* x / (1 + exp(-x)); 2.42 ulp */
  MLK_TANH,      /* 1.37 ulp */
  MLK_SIGMOID,   /* 1 / (1 + exp(-x)); 1.65 ulp */
  MLK_ACTIVATION_COUNT
} mlk_activation;

/* Weights packed once for mlk_matmul or mlk_conv. A record by value; the panels live in the caller's buffer. Fill it by
   mlk_matmul_pack, mlk_conv_pack or mlk_conv_grad_input_pack only. */
typedef struct mlk_packed {
  const void *data; /* 64-byte aligned; NULL: absent */
  uint64_t bytes;
  int64_t k, n;  /* shape of the matrix that was packed */
  int32_t dtype; /* mlk_dtype */
  int32_t isa;   /* mlk_isa of the context that packed: panels have that row's width */
  int32_t panel; /* columns per panel */
  /* of convolution weights; see mlk_conv_pack */
  int32_t form, variant, rank;
  int64_t shape[MLK_MAX_RANK], groups, stride[3], dilation[3], pad[3];
} mlk_packed;

/* D = act(alpha A B + beta C + bias) + residual, for each matrix of a batch.
   The last two axes are the matrix, axes before them the batch: D's batch shape rules, the other tensors' batch axes
   equal it, are 1, or are missing. On a device A and B may both be f16 or bf16; c, d, bias, residual and preact are
   then f32 or like A. D may be transposed
   or strided as long as each stride, taken in ascending order, steps over all that the smaller ones span. */
typedef struct mlk_matmul_desc {
  mlk_tensor a;               /* [..., M, K] f32 */
  mlk_tensor b;               /* [..., K, N] f32; absent when packed_b is given */
  const mlk_packed *packed_b; /* B as mlk_matmul_pack made it (no batch axes) */
  mlk_tensor d;               /* [..., M, N] f32, output, required */
  mlk_tensor c;               /* broadcast to D's shape; may be D itself. With beta and no c: c = D (accumulate) */
  mlk_tensor bias;            /* broadcast to D's shape: [N] per column, [M, 1] per row */
  mlk_tensor residual;        /* broadcast to D's shape; may be D itself */
  mlk_tensor preact;          /* D's shape, output, optional: the argument of act, for a backward pass */
  const float *alpha;         /* NULL: 1 */
  const float *beta;          /* NULL: 1 when c is given, else 0 */
  mlk_activation activation;
} mlk_matmul_desc;

/* Where the filter of a convolution goes, for 1, 2 or 3 spatial axes: entry i is for axis 2 + i of X. Entries of axes
   that are not there must be 0. */
typedef struct mlk_conv_geometry {
  int64_t stride[3];     /* steps of the filter; 0: 1. For convolutions this and the next three are below 2^31 */
  int64_t dilation[3];   /* distance of its taps; 0: 1 */
  int64_t pad_before[3]; /* zeros before the first element of an axis */
  int64_t pad_after[3];  /* and after the last */
  int64_t groups;        /* divides C and K; 0: 1. Group g reads channels [g C/G, (g + 1) C/G) and makes [g K/G, ...) */
} mlk_conv_geometry;

/* Y = act(alpha conv(X, W) + beta Y + bias) + residual. Axes are always in the order below; the layout is a matter of
   strides (mlk_channels_last). With in, out, filter the sizes of a spatial axis,
     out = floor((in + pad_before + pad_after - dilation (filter - 1) - 1) / stride) + 1,     0 where that is below 0
     conv(X, W)[n][k][o] = sum over taps t and channels c of X[n][c][o stride + t dilation - pad_before] W[k][c][t]
   The sum runs over taps (row-major), then channels, in the order and segments of a matrix product: see NUMERICS.
   Padding is zeros that take part like other elements. On a device X and W may both be f16 or bf16; the others are then
   f32 or like X; of the gradients the same holds. */
typedef struct mlk_conv_desc {
  mlk_tensor x;               /* [N, C, in...] f32, rank 3, 4 or 5, any strides */
  mlk_tensor w;               /* [K, C/groups, filter...] f32, filter >= 1, any strides; absent with packed_w */
  const mlk_packed *packed_w; /* W as mlk_conv_pack made it */
  mlk_tensor y;               /* [N, K, out...] f32, output, required, any strides without overlap */
  mlk_tensor bias;            /* [K], rank 1; absent: none */
  mlk_tensor residual;        /* Y's shape; may be Y itself; absent: none */
  mlk_tensor preact;          /* Y's shape, output, optional: the argument of act, for a backward pass */
  const float *alpha;         /* NULL: 1; 0: X and W are not read */
  const float *beta;          /* NULL: 0, then Y is not read */
  mlk_activation activation;
  mlk_conv_geometry geometry;
} mlk_conv_desc;

/* The gradient of the input, which is also the transposed convolution: the adjoint of conv in X.
     DX = act(alpha convT(DY, W) + beta DX + bias) + residual
     convT(DY, W)[n][c][i] = sum over taps t with o stride + t dilation - pad_before = i, then over channels k of the
                             group, of DY[n][k][o] W[k][c][t]
   Taps for which o is no integer are left out; those for which it is, but outside DY, count as zeros.
   As a transposed convolution DY is what goes in, with K channels, and W is [in channels, out channels / groups,
   filter...]. Along each axis DX may have any size whose out is that of DY,
     in = (out - 1) stride + dilation (filter - 1) + 1 - pad_before - pad_after + surplus,     0 <= surplus < stride
   where surplus is what other libraries call output padding. */
typedef struct mlk_conv_grad_input_desc {
  mlk_tensor dy;              /* [N, K, out...] f32, any strides */
  mlk_tensor w;               /* [K, C/groups, filter...] f32, any strides; absent when packed_w is given */
  const mlk_packed *packed_w; /* W as mlk_conv_grad_input_pack made it */
  mlk_tensor dx;              /* [N, C, in...] f32, output, required, any strides without overlap */
  mlk_tensor bias;            /* [C], rank 1; absent: none */
  mlk_tensor residual;        /* DX's shape; may be DX itself; absent: none */
  mlk_tensor preact;          /* DX's shape, output, optional: the argument of act */
  const float *alpha;         /* NULL: 1; 0: DY and W are not read */
  const float *beta;          /* NULL: 0, then DX is not read */
  mlk_activation activation;
  mlk_conv_geometry geometry; /* of the convolution whose gradient this is */
} mlk_conv_grad_input_desc;

/* The gradient of the weights and of the bias.
     DW[k][c][t] = beta DW[k][c][t] + sum over n, o of DY[n][k][o] X[n][c][o stride + t dilation - pad_before]
     DBIAS[k]    = beta DBIAS[k] + sum over n, o of DY[n][k][o]
   DW's sum runs over images, then output positions (row-major), in the order and segments of a matrix product. DBIAS is
   mlk_reduce's sum of DY over all axes but the channels. */
typedef struct mlk_conv_grad_weights_desc {
  mlk_tensor x;      /* [N, C, in...] f32, any strides; not looked at without dw */
  mlk_tensor dy;     /* [N, K, out...] f32, any strides */
  mlk_tensor dw;     /* [K, C/groups, filter...] f32, output, any strides without overlap; absent: not wanted */
  mlk_tensor dbias;  /* [K] f32, output; absent: not wanted */
  const float *beta; /* NULL: 0, then DW and DBIAS are not read */
  mlk_conv_geometry geometry;
} mlk_conv_grad_weights_desc;

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
  mlk_tensor queries; /* [Q, D] f32, any strides */
  mlk_tensor base;    /* [N, D] f32, any strides */
  int64_t k;          /* >= 0 */
  mlk_metric metric;
  mlk_tensor ids;       /* [Q, k] i64, output, required; last axis dense */
  mlk_tensor distances; /* [Q, k] f32, output, optional; last axis dense */
  int64_t first_id;     /* >= 0, added to every row number: the shard's place in a larger base */
} mlk_knn_desc;

/* All distances: out[i][j] = d(queries[i], base[j]). */
typedef struct mlk_distances_desc {
  mlk_tensor queries; /* [Q, D] f32, any strides */
  mlk_tensor base;    /* [N, D] f32, any strides */
  mlk_metric metric;
  mlk_tensor out; /* [Q, N] f32, output, any strides without overlap */
} mlk_distances_desc;

/* Elementwise maps. Bounds in ulp of the exact result over all floats. */
typedef enum mlk_map_op {
  MLK_COPY = 0, /* a; with another dtype of out, a conversion: see mlk_map_desc */
  MLK_SCALE,    /* alpha a */
  MLK_ADD,      /* fma(alpha, a, beta b); with both 1: a + b */
  MLK_SUB,      /* a - b */
  MLK_MUL,      /* a b */
  MLK_DIV,      /* a / b */
  MLK_ACT,      /* act(a) */
  MLK_ACT_GRAD, /* b act'(a), one product: a is what went into act, b the gradient of what came out. RELU: 0 at 0. The
                   bounds of act' are in docs/numerics.md */
  MLK_EXP,      /* 0.90 ulp */
  MLK_LOG,      /* 0.88 ulp */
  MLK_ERF,      /* 1.10 ulp */
  MLK_SQRT,
  MLK_MAP_OP_COUNT
} mlk_map_op;

/* out = op(a, b), element by element. All f32, but that MLK_COPY converts between any two dtypes: exactly where
   possible; to a floating type rounded once, to nearest even; to an integer type towards zero, values beyond its range
   to its nearest, NaN to 0. Between views of one dtype MLK_COPY moves bits. */
typedef struct mlk_map_desc {
  mlk_map_op op;
  mlk_tensor a;              /* broadcast to out's shape; may be out itself */
  mlk_tensor b;              /* the same, where op has a b */
  mlk_tensor out;            /* output, required, rank 1 to 6, any strides without overlap */
  mlk_activation activation; /* of MLK_ACT and MLK_ACT_GRAD; other ops do not look at it */
  const float *alpha, *beta; /* of MLK_SCALE and MLK_ADD; NULL: 1. Other ops do not look at them */
} mlk_map_desc;

#define MLK_REDUCE_SEGMENT 32768 /* terms of one 16-lane sum of a reduction; part of the numeric contract */

/* Reductions over the elements of the reduced axes in row-major order. That sequence is cut into segments of
   MLK_REDUCE_SEGMENT; each segment is summed in 16 lanes (see NUMERICS: distances), the segments' sums are added in
   ascending order. One segment for most uses; more of them let threads share one long sum.
     |sum - exact| <= (min(count, S) / 16 + 6 + count / S) u (1 + 2^-10) sum |terms|
   with S = MLK_REDUCE_SEGMENT, for count < 2^13 S.
   MAX and MIN run in the same lanes, m = x < m ? m : x for MAX: that tells +0 from -0, and nothing else shows it. */
typedef enum mlk_reduce_op {
  MLK_SUM = 0,
  MLK_MEAN,        /* sum / count, rounded once more; NaN over nothing */
  MLK_SUM_SQUARES, /* sum of fma(x, x, .) */
  MLK_MAX,         /* NaN where any is NaN; -infinity over nothing */
  MLK_MIN,         /* NaN where any is NaN; +infinity over nothing */
  MLK_ARGMAX,      /* i64: row-major number of the first largest, NaN counting as largest; -1 over nothing */
  MLK_REDUCE_OP_COUNT
} mlk_reduce_op;

typedef struct mlk_reduce_desc {
  mlk_reduce_op op;
  mlk_tensor x;   /* f32, rank 1 to 6, any strides */
  mlk_tensor out; /* f32 (ARGMAX: i64): x's shape with reduced axes of size 1, or without them (all axes reduced: rank
                        1, one element). Output, required; overlaps not x */
  unsigned axes;  /* bit i set: axis i of x is reduced; at least one */
  const float *beta; /* of SUM, MEAN and SUM_SQUARES; NULL: 0, else out = fma(beta, out, result) */
} mlk_reduce_desc;

/* Pooling over windows of the spatial axes; geometry and sizes as for mlk_conv with window in place of filter (a stride
   of 0 means 1, not the window), groups 0 or 1. A window that lies in the padding altogether gives -infinity and index
   -1, or 0 for an average. */
typedef enum mlk_pool_kind {
  MLK_POOL_MAX = 0,        /* padding never wins; NaN wins; the first largest in row-major order */
  MLK_POOL_AVERAGE,        /* sum in row-major order from +0, divided by the number of elements inside x */
  MLK_POOL_AVERAGE_PADDED, /* divided by the size of the window */
  MLK_POOL_KIND_COUNT
} mlk_pool_kind;

typedef struct mlk_pool_desc {
  mlk_pool_kind kind;
  mlk_tensor x;       /* [N, C, in...] f32, rank 3 to 5, any strides */
  mlk_tensor y;       /* [N, C, out...] f32, output, required */
  mlk_tensor indices; /* [N, C, out...] i64, output, optional, only of MLK_POOL_MAX: place of the largest in [in...],
                         row-major */
  int64_t window[3];  /* size per spatial axis; 0 for axes that are not there */
  mlk_conv_geometry geometry;
} mlk_pool_desc;

/* DX = gradient of mlk_pool: each element is a sum from +0, over the windows that reach it (MLK_POOL_MAX: those whose
   index names it) in ascending order, of DY or, for an average, of DY divided as the average was. */
typedef struct mlk_pool_grad_desc {
  mlk_pool_kind kind;
  mlk_tensor dy;      /* [N, C, out...] f32 */
  mlk_tensor indices; /* [N, C, out...] i64, required for MLK_POOL_MAX: what mlk_pool wrote. Negative: no gradient;
                         beyond [in...]: an error */
  mlk_tensor dx;      /* [N, C, in...] f32, output, required */
  int64_t window[3];
  mlk_conv_geometry geometry;
} mlk_pool_grad_desc;

/* Softmax along the last axis: y = exp(x - max) / sum, the sum in 16 lanes; with log set, y = (x - max) - log(sum). A
   row whose largest is -infinity gives zeros (log: -infinity); a NaN or +infinity anywhere makes a row NaN.
   The gradient: dx = y (dy - sum), sum = 16 lanes of fma(y, dy, .); with log, dx = fma(-exp(y), sum, dy), sum that of
   dy. */
typedef struct mlk_softmax_desc {
  mlk_tensor x; /* [..., D] f32 */
  mlk_tensor y; /* x's shape, output, required; may be x itself */
  int log;
} mlk_softmax_desc;
typedef struct mlk_softmax_grad_desc {
  mlk_tensor y;  /* [..., D] f32: what mlk_softmax wrote */
  mlk_tensor dy; /* y's shape */
  mlk_tensor dx; /* y's shape, output, required; may be dy itself */
  int log;
} mlk_softmax_grad_desc;

/* Cross-entropy of logits with one label a row, and its gradient, in one pass: with p the softmax of a row as above,
     loss = log(sum) - (x[label] - max)      dx[j] = scale p[j], for the label scale (p[j] - 1)
   A negative label: the row does not count, loss and gradient are 0. A label >= D is an error. A row of nothing but
   -infinity has p = 0 and loss +infinity. At least one of loss and dx is required. */
typedef struct mlk_cross_entropy_desc {
  mlk_tensor x;       /* [..., D] f32 logits, rank 2 to 6 */
  mlk_tensor labels;  /* [...] i64 */
  mlk_tensor loss;    /* [...] f32, output, optional */
  mlk_tensor dx;      /* x's shape, output, optional; may be x itself */
  const float *scale; /* NULL: 1. For the mean over R rows: 1 / R */
} mlk_cross_entropy_desc;

/* Normalisation along the last axis, of length D. A single row with mean or rstd is [1, D].
     MLK_NORM_LAYER  mean = sum x / D; v = sum (x - mean)^2 / D; y = (x - mean) rstd gamma + beta
     MLK_NORM_RMS    mean = 0;         v = sum x^2 / D;          y = x rstd gamma + beta
   with rstd = 1 / sqrt(v + epsilon), each operation rounded; sums in 16 lanes, that of squares by fma;
   y = fma((x - mean) rstd, gamma, beta). */
typedef enum mlk_norm_kind { MLK_NORM_LAYER = 0, MLK_NORM_RMS, MLK_NORM_KIND_COUNT } mlk_norm_kind;
typedef struct mlk_norm_desc {
  mlk_norm_kind kind;
  mlk_tensor x;           /* [..., D] f32 */
  mlk_tensor gamma, beta; /* [D] f32; absent: 1 and 0 */
  mlk_tensor y;           /* x's shape, output, required; may be x itself */
  mlk_tensor mean, rstd;  /* [...] f32, outputs for the gradient, optional */
  float epsilon;          /* 0: 1e-5; must be positive */
} mlk_norm_desc;

/* The gradients of mlk_norm, with h = (x - mean) rstd, g = dy gamma:
     dx = rstd fma(-h, b, g - a)      a = sum g / D (MLK_NORM_RMS: 0), b = sum of fma(g, h, .) / D, in 16 lanes
     dgamma = sum of fma(dy, h, .)    dbeta = sum of dy
   The latter two run over rows in ascending order, in segments of MLK_SEGMENT rows as the terms of a matrix product. */
typedef struct mlk_norm_grad_desc {
  mlk_norm_kind kind;
  mlk_tensor x;             /* [..., D] f32: what went in */
  mlk_tensor gamma;         /* [D] f32; absent: 1 */
  mlk_tensor mean, rstd;    /* [...] f32: what mlk_norm wrote; mean is not read by MLK_NORM_RMS */
  mlk_tensor dy;            /* x's shape */
  mlk_tensor dx;            /* x's shape, output; may be dy itself; absent: not wanted */
  mlk_tensor dgamma, dbeta; /* [D] f32, outputs; absent: not wanted */
  const float *accumulate;  /* NULL: 0, then they are not read; dgamma, dbeta = fma(accumulate, old, new) */
} mlk_norm_grad_desc;

/* out[i] = table[ids[i]]; the gradient adds: dtable[ids[i]] += dout[i] in ascending i (zero it first, or accumulate).
   A negative id: a row of zeros, no gradient. An id >= V is an error. */
typedef struct mlk_embedding_desc {
  mlk_tensor table; /* [V, D] f32 */
  mlk_tensor ids;   /* [...] i64 */
  mlk_tensor out;   /* [..., D] f32, output, required */
} mlk_embedding_desc;
typedef struct mlk_embedding_grad_desc {
  mlk_tensor ids;    /* [...] i64 */
  mlk_tensor dout;   /* [..., D] f32 */
  mlk_tensor dtable; /* [V, D] f32, added to, required */
} mlk_embedding_grad_desc;

/* Rotary positions (Su et al., "RoFormer", 2021): each pair of elements of a head is turned by position * frequency.
   Pairs: (j, j + R/2), or with interleaved (2j, 2j + 1), of the first R elements; the others are copied. The angle is
   reduced exactly, whatever the position; c and s, its cosine and sine, are correctly rounded but for rare cases.
     y0 = fma(-x1, s, x0 c)      y1 = fma(x0, s, x1 c)
   inverse turns back: the gradient is the same call on DY with inverse set. */
typedef struct mlk_rotary_desc {
  mlk_tensor x;           /* [..., S, H, D] f32, rank 3 to 6 */
  mlk_tensor y;           /* x's shape, output, required; may be x itself */
  mlk_tensor positions;   /* [S], or x's shape without H and D, i64, >= 0; absent: first_position, +1, ... along S */
  mlk_tensor frequencies; /* [R/2] f32 radians per position; absent: theta^(-2j/R) */
  int64_t rotated;        /* R, even, <= D; 0: D */
  int64_t first_position; /* >= 0; 0 where positions are given */
  double theta;           /* 0: 10000; else 1e-30 to 1e30 */
  int interleaved, inverse;
} mlk_rotary_desc;

/* Attention: for each query the softmax of its scores against the keys, times the values. Axes are always
     q [B, H, S, D]     k [B, G, T, D]     v [B, G, T, E]     out [B, H, S, E]
   with B sequences, H query heads, G key heads (G divides H; query head h reads key head h / (H / G)), S queries, T
   keys, D and E the sizes of a head; other orders of B, S and H are a matter of strides: mlk_swapped.
   Query i of a sequence stands at position p = i + (T - S) + offset among its keys, S and T being its own: with offset
   0 the last query stands at the last key. Which keys it sees, and their scores, in this order:
     x = q . k                                the terms (scale q_d) k_d, in the order and segments of a matrix product
     x = softcap tanh(x / softcap)            with softcap
     x = fma(-slope[h], |p - j|, x)           with alibi (Press et al., 2022)
     x = x + bias
   A key j takes part unless its score is -infinity, or causal and j > p, or window and |p - j| >= window, or the mask
   is 0 there. Its value takes no part then either, whatever it holds. A key that takes part and whose value has an
   element that is not finite counts as one with a NaN score: the row is NaN. A query with no key gives zeros.

   Numerics. Keys are cut into blocks of MLK_ATTENTION_BLOCK. In a block m = max x, p = exp(x - m), l = the 16-lane sum
   of p, o = the chain over keys of fma(p, v, .) from +0. Blocks are folded in ascending order into (M, L, O), the first
   as it is, empty ones left out:
     M' = max(M, m)   a = exp(M - M')   c = exp(m - M')   L = fma(L, a, l c)   O = fma(O, a, o c)
   After MLK_ATTENTION_SEGMENT keys the state is a part, (M + log L, O / L), and the next key starts from nothing.
   Parts are folded in ascending order by the same formulas with m = their log-sum-exp, l = 1, o = their output, a sink
   at last with m = sink, l = 1, o = 0; out = O / L and lse = M + log L, or 0 and -infinity of nothing; no -0.
   So no bit depends on the rest of the batch, on threads, on pages, or on where calls or devices split the keys, if it
   is between segments and each call hands on its parts. The error bound is in docs/numerics.md. */
#define MLK_ATTENTION_BLOCK   512  /* keys of one softmax from scratch; part of the numeric contract */
#define MLK_ATTENTION_SEGMENT 4096 /* keys of one part; part of the numeric contract */

typedef struct mlk_attention_scores {
  float scale;      /* 0: 1 / sqrt(D) */
  float softcap;    /* 0: none */
  int causal;       /* keys after the query's position take no part */
  int64_t offset;   /* of the queries' positions; 0: they are the last ones. Of a call over some of a sequence's keys:
                       how many keys come after those */
  int64_t window;   /* keys nearer than window take part, the query's position being at distance 0; 0: all */
  mlk_tensor mask;  /* u8, broadcast to [B, H, S, T]: 0 excludes */
  mlk_tensor bias;  /* f32, broadcast to [B, H, S, T] */
  mlk_tensor alibi; /* [H] f32: slopes; S + T + |offset| at most 2^24 */
  mlk_tensor sinks; /* [H] f32: a score more in each row's sum, without a value */
  /* Sequences of several lengths. Offsets: sequence b is elements [offsets[b], offsets[b + 1]) of axis 2, axis 0 of
     the tensor is 1, and the last offset is the size of axis 2; of q, out, lse (q_offsets) and of k, v (k_offsets).
     Lengths: k and v [B, G, T, .] are a cache in which only the first k_lengths[b] keys are there. mask and bias have S
     and T of the longest: longest_q and longest_k. */
  mlk_tensor q_offsets, k_offsets; /* [B + 1] i64, from 0, ascending */
  mlk_tensor k_lengths;            /* [B] i64, 0 to T; not together with k_offsets */
  int64_t longest_q, longest_k;    /* no sequence has more; 0: the size of axis 2. Plans and workspace count on them */
} mlk_attention_scores;

typedef struct mlk_attention_desc {
  mlk_tensor q;    /* [B, H, S, D] f32; on a device also f16 or bf16, then k and v are of that type too */
  mlk_tensor k, v; /* [B, G, T, D] and [B, G, T, E], f32, f16 or bf16, both alike */
  mlk_tensor out;  /* [B, H, S, E] f32 or, with q of 16 bits, q's type, output, required; or [P, B, H, S, E] f32: the
                      parts, not folded, for mlk_attention_merge: P = T / SEGMENT, rounded up, at least 1 (longest_k
                      for T where given) */
  mlk_tensor lse;  /* [B, H, S] f32, output, optional: log-sum-exp of the scores. Of parts [P, B, H, S], required */
  mlk_attention_scores scores;
  mlk_tensor pages; /* [B, N] i64: k and v are pages [pages, G, page, .], key j of sequence b is row j % page of page
                       pages[b][j / page]; T = N page. Entries behind k_lengths are not looked at */
} mlk_attention_desc;

/* The gradients, from what the forward call read and wrote. With p_ij = exp(x_ij - lse_i), delta_i = sum over e of dout
   out (16 lanes), and t_ij = dout_i . v_j:
     ds = p (t - delta), times 1 - tanh(x / softcap)^2 for what lies before the cap
     dq_i = scale sum_j ds_ij k_j     dk_j = sum_i ds_ij (scale q_i)     dv_j = sum_i p_ij dout_i     dbias = ds
     dsinks[h] = - sum over b, i of exp(sinks[h] - lse) delta, in f64, rounded once
   Sums over keys run in ascending order in segments of MLK_ATTENTION_BLOCK, as terms of a matrix product; sums over
   queries by ascending query, then query head of the group, in segments of MLK_SEGMENT. dbias sums over the axes that
   bias repeats, one addition after another, by sequence, key head, block of keys, query, head of the group, key. A row
   of dout with an element that is not finite makes the gradients of all keys that take part in it NaN.
   With q of 16 bits p and ds are rounded to q's type before they meet dout, k and q, and sums are f32 in another order:
   docs/numerics.md, "CUDA". dbias and dsinks are computed as with f32. */
typedef struct mlk_attention_grad_desc {
  mlk_tensor q, k, v;    /* as they went in, f32; on a device also all three f16, or all three bf16 */
  mlk_tensor out;        /* as it came out, not parts: f32 or q's type */
  mlk_tensor lse;        /* as it came out, f32 */
  mlk_tensor dout;       /* [B, H, S, E], q's type */
  mlk_tensor dq, dk, dv; /* the shapes of q, k, v, each f32 or q's type, outputs; absent: not wanted */
  mlk_tensor dbias;      /* bias's shape, f32, output; absent: not wanted */
  mlk_tensor dsinks;     /* [H] f32, output; absent: not wanted */
  mlk_attention_scores scores;
} mlk_attention_grad_desc;

/* Parts into one, as at the end of mlk_attention. Parts over any disjoint keys will do; where they are mlk_attention's,
   in ascending order, the result is that of one call, to the bit. */
typedef struct mlk_attention_merge_desc {
  mlk_tensor parts;     /* [P, B, H, S, E] f32 */
  mlk_tensor parts_lse; /* [P, B, H, S] f32; -infinity: a part of nothing, whose row of parts takes no part */
  mlk_tensor sinks;     /* [H] f32, optional */
  mlk_tensor out;       /* [B, H, S, E] f32, output, required */
  mlk_tensor lse;       /* [B, H, S] f32, output, optional */
} mlk_attention_merge_desc;

/* Scales all gradients by max_norm / norm where norm, the square root of the sum of all squares (MLK_SUM_SQUARES of
   each tensor over all its axes, then a chain of additions over tensors), is above max_norm. *norm, when given, gets
   norm. A norm that is not finite: nothing is scaled, and MLK_OK: look at *norm. */
typedef struct mlk_clip_norm_desc {
  const mlk_tensor *grads; /* f32, scaled in place; no two may overlap */
  int64_t count;
  float max_norm; /* > 0; infinity only measures */
  float *norm;
} mlk_clip_norm_desc;

/* Stochastic gradient descent with momentum, each line one fused multiply-add:
     t = fma(weight_decay, p, grad)         v = fma(momentum, v, t)       without velocity: v is t
     s = nesterov ? fma(momentum, v, t) : v                               p = fma(-lr, s, p) */
typedef struct mlk_sgd_desc {
  mlk_tensor param, grad;           /* one shape, f32; param is updated */
  mlk_tensor velocity;              /* the same shape, updated; required when momentum is not 0 */
  float lr, momentum, weight_decay; /* finite, >= 0 */
  int nesterov;
} mlk_sgd_desc;

/* AdamW (Loshchilov & Hutter, "Decoupled weight decay regularization", 2019):
     m = beta1 m + (1 - beta1) g; v = beta2 v + (1 - beta2) g^2;
     p = p (1 - lr weight_decay) - lr (m / (1 - beta1^step)) / (sqrt(v / (1 - beta2^step)) + epsilon)
   To the bit: b1 = 1 - beta1, b2 = 1 - beta2, d = 1 - lr weight_decay, r = lr / (1 - beta1^step) and q = 1 / (1 -
   beta2^step) in f64 (powers by squaring, lowest bit of step first), each rounded to f32; then in f32
     m = fma(beta1, m, b1 g)     v = fma(beta2, v, b2 (g g))     p = fma(d, p, (-r m) / (sqrt(q v) + epsilon)) */
typedef struct mlk_adamw_desc {
  mlk_tensor param, grad, m, v; /* one shape, f32; param, m and v are updated */
  int64_t step;                 /* 1, 2, ... */
  float lr, weight_decay;       /* finite, >= 0 */
  float beta1, beta2, epsilon;  /* 0: 0.9, 0.999, 1e-8; else 0 < beta < 1, epsilon > 0 and finite */
} mlk_adamw_desc;

/* How mlk_average writes outputs of which none is an input: through the caches, or past them by non-temporal stores,
   which save reading the lines first but leave the result in memory. AUTO: past them from 4 MiB of output on.
   Instruction sets without such stores (scalar, NEON) write through the caches always. */
typedef enum mlk_stores { MLK_STORES_AUTO = 0, MLK_STORES_CACHED, MLK_STORES_STREAMED, MLK_STORES_COUNT } mlk_stores;

#define MLK_MAX_REPLICAS 64

/* The weighted mean of N replicas' tensors in one pass. A replica's tensors, one after another, each in row-major
   order, make one vector x_r; the outputs likewise. For each element, over the replicas that take part, ascending:
     t = +0; t = fma(weight_r, x_r, t); ...      out = c t in f32, then rounded to the output's type
   where c = scale / (sum of their weights), in f64, ascending, rounded to f32.     u = 2^-24, n of them:
     |out - exact| <= (n + 3) u (1 + 2^-10) |c| sum |weight_r x_r|      for f32 out
   Replicas that are absent, or have weight 0, take no part: their tensors are not looked at, unless they are written.
   No replica left: MLK_ERR_REPLICA. */
typedef struct mlk_average_desc {
  const mlk_tensor *inputs;  /* [replicas][count]: tensor i of replica r is inputs[r * count + i]. f32, f16 or bf16, all
                                of one dtype, rank 1 to 6; tensor i has one shape in all replicas; any strides. Fast
                                where they are dense, or alike and without gaps (channels last, say; not with a norm) */
  int64_t replicas, count;   /* 1 .. MLK_MAX_REPLICAS; >= 0 */
  const mlk_tensor *outputs; /* [output_count] f32, f16 or bf16, one dtype. Of the whole vector: as many, of the same
                                shapes, and each may be one of the inputs it is made of (same data and strides). Of a
                                range: of any shapes with to - from elements. NULL: all inputs get the result, present
                                or not (a range: that range of them) */
  int64_t output_count;
  int64_t from, to;     /* a range: only elements [from, to) of the vector; 0, 0: all of it */
  const float *weights; /* [replicas], finite, >= 0: samples or tokens of each replica, say; NULL: all 1 */
  uint64_t absent;      /* bit r: replica r takes no part; bits from replicas on must be 0 */
  const float *scale;   /* finite; NULL: 1 */
  int skip_nonfinite;   /* 1: replicas with NaN or infinity in the range take no part. One more pass over the
                           inputs where an output is an input, or where something is not finite; if then no replica is
                           left, outputs that are no inputs hold nothing of use */
  uint64_t *used;       /* optional: bit r: replica r took part */
  float *norm;          /* optional: the norm of the outputs as mlk_clip_norm has it, taken in the same pass; f32
                           outputs only. Without outputs that of one replica's tensors, of a range that of their parts
                           in it */
  mlk_stores stores;
} mlk_average_desc;

/* Where slots and averaged ranges of a group lie. HOST: in the common memory; tensors of a device are copied there and
   back. DEVICE: each rank's in the memory of its context's device, which the others read themselves: ranks of one
   process by peer access, others by handles of the driver (CUDA IPC); the common memory holds words
   only. All ranks alike. */
typedef enum mlk_parts { MLK_PARTS_HOST = 0, MLK_PARTS_DEVICE, MLK_PARTS_COUNT } mlk_parts;

/* A group of replicas that train one model: threads of a process, processes of a host, or whatever a transport reaches.
   The batch of a step is cut into shares; every replica computes the gradients of its shares, publishes them bucket by
   bucket into its own part of a common memory, and reads the others' parts by plain loads. There is no server, no
   collective call and no thread of the library, and nobody writes into another's part.

   The mean of a bucket is mlk_average over all shares in ascending order. So for a given number of shares the bits
   do not depend on how many replicas there are, which comes first, how many threads each has, or what kind of memory
   connects them. Replica r of N has shares [floor(r S / N), floor((r + 1) S / N)) of S.

   A step:   mlk_group_begin       waits until the others have read the last step; says who is in
             mlk_group_publish     a bucket's gradients are ready         for each own share and bucket, any order
             mlk_group_average     the mean of a bucket, when needed      for each bucket, as early as one likes
             mlk_group_finish      decides: the step counts, with whom    then the means are final
   Who takes part in a step is decided once, for all buckets, by all survivors alike: a replica counts if it
   published everything. What was averaged before with somebody who then was lost is averaged again by finish.

   Every wait ends after timeout seconds at the latest. A replica is lost when its process is gone (noticed at once on
   Linux, with fd or path) or when it lets the others wait too long. Then, by setting:
     MLK_LOSS_FAILS     the step fails for all with MLK_ERR_REPLICA; later steps need all ranks again: mlk_group_begin
                        waits for a replacement to be opened with the lost rank
     MLK_LOSS_SHRINKS   the mean is over the others; with fewer than min_ranks the step fails
   A replica that was left out learns it from its next call: MLK_ERR_REPLICA. It, or a new process in its place, comes
   back by mlk_group_open with the same rank, from the next step on: see mlk_group_sync. A child that a process forked
   after mlk_group_open, and that runs no other program, keeps the rank of a dead parent: then deadlines decide. */
typedef enum mlk_loss { MLK_LOSS_FAILS = 0, MLK_LOSS_SHRINKS, MLK_LOSS_COUNT } mlk_loss;

#define MLK_MAX_RANKS  16 /* replicas of a group */
#define MLK_MAX_SHARES 32 /* of a batch */

typedef struct mlk_bucket {
  const char *name; /* optional; the same in all replicas, like the order of the buckets */
  int64_t elements; /* f32 gradients, flat */
} mlk_bucket;

/* How a group reaches memory that it cannot map: MPI windows, say. Every rank has a part of part_bytes bytes, zero at
   first. Offsets are in bytes from its start. All functions return 0, or another value when the peer is not reachable.
   Words are 64 bits, 8-byte aligned, and atomic. What was stored in the own part before a put is seen by whoever reads
   that word's new value; a word is read, and data after it, in that order. A read or get that fails is tried again, or
   its peer lost; if put or swap fails, or the decisions in rank 0's part cannot be read, this replica is left out
   (MLK_ERR_SYSTEM). */
typedef struct mlk_transport {
  void *part; /* the own part, 64-byte aligned: plain loads and stores reach it */
  int (*get)(void *user, int rank, uint64_t offset, void *to, uint64_t bytes);    /* copies from a part */
  int (*read)(void *user, int rank, uint64_t offset, uint64_t *words, int count); /* reads words */
  int (*put)(void *user, uint64_t offset, uint64_t word);                         /* writes a word of the own part */
  int (*swap)(void *user, int rank, uint64_t offset, uint64_t expected, uint64_t desired, uint64_t *found);
  /* compare and swap; *found: what stood there */
  int (*alive)(void *user, int rank); /* optional: 0: rank is known to be dead, else 1 */
  void *user;
} mlk_transport;

typedef struct mlk_group_desc {
  int rank, ranks;           /* this replica; of how many, 1 .. MLK_MAX_RANKS */
  int shares;                /* of a batch, ranks .. MLK_MAX_SHARES; 0: ranks */
  const mlk_bucket *buckets; /* read by the call only */
  int64_t bucket_count;      /* >= 1 */
  int64_t tensors;           /* most tensors of a list that a call gets, for the plan's workspace; 0: 1 */
  mlk_dtype wire;            /* of published gradients: f32 (0), f16 or bf16; sums are f32 always */
  mlk_loss on_loss;
  int min_ranks;      /* SHRINKS: fewer than this: the step fails; 0: 1 */
  double timeout;     /* seconds; 0: 30 */
  int skip_nonfinite; /* 1: a share with NaN or infinity takes no part in its step */
  int shots;          /* 1: everybody averages all; 2: each a range, and reads the others'; 0: by size */
  /* the common memory, one of: */
  void *memory;     /* of the plan's bytes, 64-byte aligned, zero at first: threads of one process */
  int fd;           /* a segment of mlk_group_segment_open; the call makes a descriptor of its own */
  const char *path; /* a file to be made or found, mode 0600, in /dev/shm, say; its name is removed once all have come
                       (SHRINKS: or mlk_group_open has not waited any longer), so who comes later finds no group there.
                       Or the path of a segment */
  const mlk_transport *transport;
  mlk_parts parts;
} mlk_group_desc;

/* What a group takes. */
typedef struct mlk_group_plan {
  uint64_t bytes;      /* of the common memory */
  uint64_t part_bytes; /* of one rank's part of it: slots and averaged ranges */
  uint64_t
      private_bytes; /* allocated by mlk_group_open of each rank; on a device with what its context takes of the host */
  uint64_t workspace_bytes; /* of the context, at most, for lists of desc.tensors */
  uint64_t device_bytes;    /* allocated by mlk_group_open on the context's device, if it has one */
} mlk_group_plan;

/* An anonymous segment: it has no name, so nothing is left behind whatever happens to the processes. Forked children
   inherit fd (exec closes it); others of the same user open path while this process lives. Close fd when all have
   come. */
typedef struct mlk_group_segment {
  int fd;
  uint64_t bytes;
  char path[48]; /* "/proc/PID/fd/FD" */
} mlk_group_segment;

typedef struct mlk_group_report {
  int64_t step;       /* 1, 2, ...; those that fail are counted too */
  uint32_t members;   /* bit r: rank r is in the step; after finish: it is part of the mean */
  uint32_t lost;      /* members of the step before, or of this one, who are not in */
  uint32_t joined;    /* members who were not in the step before, or joined it in vain, since it failed */
  uint32_t shares;    /* after finish: bit s: share s is part of the mean */
  uint32_t nonfinite; /* after finish: shares left out by skip_nonfinite */
  double weight;      /* after finish: sum of the weights of the mean */
} mlk_group_report;

typedef struct mlk_group mlk_group;

/* >>backends -------------------------------------------------------------------------------------------------------
   What an accelerator provides. mlk.h checks every call as it does for the CPU, values in memory excepted, and hands
   the descriptor over as it came; absent strides (all zero) still mean dense. */

#define MLK_ERROR_BYTES  256 /* of a sentence, its zero included */
#define MLK_HANDLE_BYTES 128 /* of memory that is shared */

typedef enum mlk_op {
  MLK_OP_MATMUL = 0,
  MLK_OP_CONV,
  MLK_OP_CONV_GRAD_INPUT,
  MLK_OP_CONV_GRAD_WEIGHTS,
  MLK_OP_ATTENTION,
  MLK_OP_ATTENTION_GRAD,
  MLK_OP_ATTENTION_MERGE,
  MLK_OP_KNN,
  MLK_OP_DISTANCES,
  MLK_OP_AVERAGE,
  MLK_OP_MAP,
  MLK_OP_REDUCE,
  MLK_OP_CLIP_NORM,
  MLK_OP_SGD,
  MLK_OP_ADAMW,
  MLK_OP_POOL,
  MLK_OP_POOL_GRAD,
  MLK_OP_SOFTMAX,
  MLK_OP_SOFTMAX_GRAD,
  MLK_OP_CROSS_ENTROPY,
  MLK_OP_NORM,
  MLK_OP_NORM_GRAD,
  MLK_OP_EMBEDDING,
  MLK_OP_EMBEDDING_GRAD,
  MLK_OP_ROTARY,
  MLK_OP_COUNT
} mlk_op;

/* One call, or the plan of one: with the same descriptor both ask for the same workspace. */
typedef struct mlk_backend_call {
  mlk_op op;
  const void *desc; /* the operator's descriptor */
  mlk_numerics numerics;
  uint64_t flops, bytes; /* as in mlk_plan */
  int run;               /* 0: only plan */
  void *workspace;       /* device memory, 256-byte aligned, as many bytes as the plan said; only with run */
  /* what the plan says */
  uint64_t workspace_bytes;
  const char *variant;
  int launches;   /* kernels */
  double seconds; /* predicted */
} mlk_backend_call;

/* Functions of a device state that open made. All give a status, and on failure a sentence in error. */
struct mlk_backend {
  int version; /* MLK_VERSION of the header it was compiled with */
  const char *name;
  int (*devices)(void); /* how many; 0 also without a driver */
  mlk_status (*open)(void **device, const mlk_context_desc *desc, char *error);
  void (*close)(void *device);
  mlk_status (*info)(void *device, mlk_info *info, char *error);
  /* known: NULL, or what an earlier context measured of such a device, to be taken instead */
  mlk_status (*measure)(void *device, const mlk_ceilings *known, mlk_ceilings *ceilings, char *error);
  mlk_status (*alloc)(void *device, uint64_t bytes, int shared, void **memory, char *error); /* device memory */
  void (*free)(void *device, void *memory);
  mlk_status (*copy)(void *device, void *to, const void *from, uint64_t bytes, char *error);
  mlk_status (*sync)(void *device, char *error);
  /* memory of alloc for another context to read, of this process or another: a handle of MLK_HANDLE_BYTES; and back */
  mlk_status (*share)(void *device, void *memory, void *handle, char *error);
  mlk_status (*attach)(void *device, const void *handle, void **memory, char *error);
  void (*detach)(void *device, const void *handle, void *memory);
  mlk_status (*call)(void *device, mlk_backend_call *call, char *error);
};

/* >>api ------------------------------------------------------------------------------------------------------------ */

/* MLK_VERSION of the compiled implementation. */
MLK_API int mlk_version(void);

/* "ok", "argument", ...; never NULL. */
MLK_API const char *mlk_status_name(mlk_status status);

/* "best", "scalar", "neon", "avx2", "avx512", "reference"; never NULL. */
MLK_API const char *mlk_isa_name(mlk_isa isa);

/* 1 when this build has kernels for isa and this machine and operating system run them. */
MLK_API int mlk_isa_available(mlk_isa isa);

/* Makes a context. desc NULL: all defaults. On failure *ctx is NULL: MLK_ERR_ARGUMENT (ctx NULL, half an allocator,
   threads outside 0..1024, a bad enum), MLK_ERR_UNSUPPORTED (isa not available here), MLK_ERR_MEMORY; the sentence
   goes to desc->log. */
MLK_API mlk_status mlk_open(mlk_context **ctx, const mlk_context_desc *desc);

/* Frees everything the context allocated. NULL is allowed. */
MLK_API void mlk_close(mlk_context *ctx);

/* The sentence of the last failed call on ctx; "" when none failed. Valid until the next call on ctx. NULL ctx: a
   fixed sentence. */
MLK_API const char *mlk_last_error(const mlk_context *ctx);

/* What the context runs on. NULL arguments: MLK_ERR_ARGUMENT. */
MLK_API mlk_status mlk_get_info(const mlk_context *ctx, mlk_info *info);

/* Grows the workspace to at least bytes now (never shrinks it) and sets whether later calls may grow it. */
MLK_API mlk_status mlk_reserve(mlk_context *ctx, uint64_t bytes, mlk_growth growth);

/* Memory where the context runs: of the device, else of the context's allocator. alloc: *memory is aligned to 64 bytes
   (a device's to 256). free: bytes as for alloc; NULL memory is allowed. copy: between any two of the device's and the
   host's memory, in the order of the calls; on a device it returns before the copy is done, if the host's memory is
   page-locked, and the host's memory must stay until mlk_sync. sync: waits for all calls of the context; an error that
   only the device could see, such as an id out of its range, is told here or by a later call.
   Errors: ARGUMENT, MEMORY, SYSTEM. */
MLK_API mlk_status mlk_alloc(mlk_context *ctx, uint64_t bytes, void **memory);
MLK_API void mlk_free(mlk_context *ctx, void *memory, uint64_t bytes);
MLK_API mlk_status mlk_copy(mlk_context *ctx, void *to, const void *from, uint64_t bytes);
MLK_API mlk_status mlk_sync(mlk_context *ctx);

/* Measures the ceilings that plans and benchmarks refer to: a register-only FMA loop and a read of 256 MiB (at least
   64 MiB a thread), each the best of a few runs, on one and on all threads. Takes about half a second; allocates and
   frees what it reads. */
MLK_API mlk_status mlk_measure(mlk_context *ctx, mlk_ceilings *ceilings);

/* Times about two hundred calls of all operators, small and large, in and out of cache, after mlk_measure; from then
   on plans of this context predict from those most like them: see mlk_plan. Operands are taken to be as warm as
   repeated calls find them. Takes a few seconds on an idle machine, which it should be; allocates and frees 256 MiB of
   the context's memory, and lets the workspace grow. Calls whose workspace a fixed one cannot hold, and calls that
   would take long there, are left out; a device gets larger ones too, and bf16. calibration: what mlk_context_desc
   takes; NULL: not wanted.
   Errors: ARGUMENT (a context that only plans), MEMORY, SYSTEM; then the context predicts as before. */
MLK_API mlk_status mlk_calibrate(mlk_context *ctx, mlk_calibration *calibration);

/* Matrix product with epilogue: see mlk_matmul_desc.
   Shapes: M, N, K >= 0; with K = 0 the product is zero. FLOPs are 2 M N K per matrix.
   Aliasing: D may be C or residual or both (same data and strides); D and preact must not overlap anything else.
   Errors: ARGUMENT, SHAPE, DTYPE, ALIAS, SIZE, MEMORY, WORKSPACE; outputs untouched. */
MLK_API mlk_status mlk_matmul(mlk_context *ctx, const mlk_matmul_desc *desc);
MLK_API mlk_status mlk_matmul_plan(mlk_context *ctx, const mlk_matmul_desc *desc, mlk_plan *plan);

/* Weights used many times, packed once. Call with buffer NULL to learn packed->bytes; then give a buffer of that
   many bytes, 64-byte aligned, which must outlive every use. b is [K, N] f32 with any strides (a [N, K] weight:
   mlk_transposed). The result fits contexts of the same instruction set; another one refuses it by name
   (MLK_ERR_ARGUMENT). Same bits as unpacked. */
MLK_API mlk_status mlk_matmul_pack(mlk_context *ctx, mlk_tensor b, void *buffer, uint64_t buffer_bytes,
                                   mlk_packed *packed);

/* Convolution, its two gradients, and transposed convolution: see mlk_conv_desc, mlk_conv_grad_input_desc,
   mlk_conv_grad_weights_desc. FLOPs are 2 N K out (C/groups) taps for each of the three, zeros included (and N K out
   for DBIAS). No im2col buffer: the workspace holds W once in panels (not with packed_w) and, for each task, tiles
   and zero-padded copies of some rows of X.
   Aliasing: Y (DX) may be residual (same data and strides); outputs otherwise overlap nothing.
   Errors: as mlk_matmul, and UNSUPPORTED for packed_w on a context of MLK_ISA_REFERENCE; outputs untouched. */
MLK_API mlk_status mlk_conv(mlk_context *ctx, const mlk_conv_desc *desc);
MLK_API mlk_status mlk_conv_plan(mlk_context *ctx, const mlk_conv_desc *desc, mlk_plan *plan);
MLK_API mlk_status mlk_conv_grad_input(mlk_context *ctx, const mlk_conv_grad_input_desc *desc);
MLK_API mlk_status mlk_conv_grad_input_plan(mlk_context *ctx, const mlk_conv_grad_input_desc *desc, mlk_plan *plan);
MLK_API mlk_status mlk_conv_grad_weights(mlk_context *ctx, const mlk_conv_grad_weights_desc *desc);
MLK_API mlk_status mlk_conv_grad_weights_plan(mlk_context *ctx, const mlk_conv_grad_weights_desc *desc, mlk_plan *plan);

/* Weights used many times, packed once. Buffer as for mlk_matmul_pack. desc is a call as it will be made; data of x and
   y may be any non-null pointer. The handle serves all calls with the same filter and groups on contexts of the same
   instruction set, of mlk_conv_grad_input also the same stride, dilation and pad_before; it is fastest for sizes and
   layouts like desc's. Others are refused by name (MLK_ERR_ARGUMENT, MLK_ERR_SHAPE). Same bits as unpacked. Contexts
   of MLK_ISA_REFERENCE neither pack nor read handles (MLK_ERR_UNSUPPORTED). */
MLK_API mlk_status mlk_conv_pack(mlk_context *ctx, const mlk_conv_desc *desc, void *buffer, uint64_t buffer_bytes,
                                 mlk_packed *packed);
MLK_API mlk_status mlk_conv_grad_input_pack(mlk_context *ctx, const mlk_conv_grad_input_desc *desc, void *buffer,
                                            uint64_t buffer_bytes, mlk_packed *packed);

/* Attention, its gradient, the merge of parts: see mlk_attention_desc, mlk_attention_grad_desc,
   mlk_attention_merge_desc. Any strides; fast where the last axis is dense. FLOPs are 2 (D + E) for each pair of query
   and key that causal and window leave, all sequences at their longest; of the gradient 2 (3 D + 2 E).
   No matrix of scores: the workspace holds packed copies of the operands of some key heads, at most 64 MiB (of the
   gradient 256 MiB) or one key head, O(S + T), and for each task blocks of scores (of the gradient also dq of a key
   head).
   Shapes: D >= 1; B, S, T, E >= 0. Aliasing: outputs overlap nothing. Errors: as mlk_matmul; an offset, a length or a
   page out of its range is MLK_ERR_ARGUMENT, found by the call and not by the plan; outputs untouched. */
MLK_API mlk_status mlk_attention(mlk_context *ctx, const mlk_attention_desc *desc);
MLK_API mlk_status mlk_attention_plan(mlk_context *ctx, const mlk_attention_desc *desc, mlk_plan *plan);
MLK_API mlk_status mlk_attention_grad(mlk_context *ctx, const mlk_attention_grad_desc *desc);
MLK_API mlk_status mlk_attention_grad_plan(mlk_context *ctx, const mlk_attention_grad_desc *desc, mlk_plan *plan);
MLK_API mlk_status mlk_attention_merge(mlk_context *ctx, const mlk_attention_merge_desc *desc);
MLK_API mlk_status mlk_attention_merge_plan(mlk_context *ctx, const mlk_attention_merge_desc *desc, mlk_plan *plan);

/* Exact nearest neighbours: see mlk_knn_desc and mlk_metric. FLOPs are 2 Q N D (of the definition by inner products).
   Workspace is bounded by the blocking and grows with k Q, never with Q N.
   Aliasing: ids and distances overlap nothing. Errors: as mlk_matmul. */
MLK_API mlk_status mlk_knn(mlk_context *ctx, const mlk_knn_desc *desc);
MLK_API mlk_status mlk_knn_plan(mlk_context *ctx, const mlk_knn_desc *desc, mlk_plan *plan);

/* All distances: see mlk_distances_desc. The same bits as mlk_knn returns. Aliasing: out overlaps nothing. */
MLK_API mlk_status mlk_distances(mlk_context *ctx, const mlk_distances_desc *desc);
MLK_API mlk_status mlk_distances_plan(mlk_context *ctx, const mlk_distances_desc *desc, mlk_plan *plan);

/* What a network needs between the large operators. Each call is strict (same bits for any instruction set, thread
   count, layout), checks its arguments as the others do, and takes any strides; fast where the last axis is dense.
   Aliasing: an output may be an operand only where its descriptor says so, and then with the same data and strides;
   else outputs overlap nothing. Each has a plan. Errors: as mlk_matmul; outputs untouched. A label, id, index or
   position out of its range is MLK_ERR_ARGUMENT, found by the call and not by the plan, which touches no operand. */
MLK_API mlk_status mlk_map(mlk_context *ctx, const mlk_map_desc *desc);
MLK_API mlk_status mlk_map_plan(mlk_context *ctx, const mlk_map_desc *desc, mlk_plan *plan);
MLK_API mlk_status mlk_reduce(mlk_context *ctx, const mlk_reduce_desc *desc);
MLK_API mlk_status mlk_reduce_plan(mlk_context *ctx, const mlk_reduce_desc *desc, mlk_plan *plan);
MLK_API mlk_status mlk_pool(mlk_context *ctx, const mlk_pool_desc *desc);
MLK_API mlk_status mlk_pool_plan(mlk_context *ctx, const mlk_pool_desc *desc, mlk_plan *plan);
MLK_API mlk_status mlk_pool_grad(mlk_context *ctx, const mlk_pool_grad_desc *desc);
MLK_API mlk_status mlk_pool_grad_plan(mlk_context *ctx, const mlk_pool_grad_desc *desc, mlk_plan *plan);
MLK_API mlk_status mlk_softmax(mlk_context *ctx, const mlk_softmax_desc *desc);
MLK_API mlk_status mlk_softmax_plan(mlk_context *ctx, const mlk_softmax_desc *desc, mlk_plan *plan);
MLK_API mlk_status mlk_softmax_grad(mlk_context *ctx, const mlk_softmax_grad_desc *desc);
MLK_API mlk_status mlk_softmax_grad_plan(mlk_context *ctx, const mlk_softmax_grad_desc *desc, mlk_plan *plan);
MLK_API mlk_status mlk_cross_entropy(mlk_context *ctx, const mlk_cross_entropy_desc *desc);
MLK_API mlk_status mlk_cross_entropy_plan(mlk_context *ctx, const mlk_cross_entropy_desc *desc, mlk_plan *plan);
MLK_API mlk_status mlk_norm(mlk_context *ctx, const mlk_norm_desc *desc);
MLK_API mlk_status mlk_norm_plan(mlk_context *ctx, const mlk_norm_desc *desc, mlk_plan *plan);
MLK_API mlk_status mlk_norm_grad(mlk_context *ctx, const mlk_norm_grad_desc *desc);
MLK_API mlk_status mlk_norm_grad_plan(mlk_context *ctx, const mlk_norm_grad_desc *desc, mlk_plan *plan);
MLK_API mlk_status mlk_embedding(mlk_context *ctx, const mlk_embedding_desc *desc);
MLK_API mlk_status mlk_embedding_plan(mlk_context *ctx, const mlk_embedding_desc *desc, mlk_plan *plan);
MLK_API mlk_status mlk_embedding_grad(mlk_context *ctx, const mlk_embedding_grad_desc *desc);
MLK_API mlk_status mlk_embedding_grad_plan(mlk_context *ctx, const mlk_embedding_grad_desc *desc, mlk_plan *plan);
MLK_API mlk_status mlk_rotary(mlk_context *ctx, const mlk_rotary_desc *desc);
MLK_API mlk_status mlk_rotary_plan(mlk_context *ctx, const mlk_rotary_desc *desc, mlk_plan *plan);
MLK_API mlk_status mlk_clip_norm(mlk_context *ctx, const mlk_clip_norm_desc *desc);
MLK_API mlk_status mlk_clip_norm_plan(mlk_context *ctx, const mlk_clip_norm_desc *desc, mlk_plan *plan);
MLK_API mlk_status mlk_sgd(mlk_context *ctx, const mlk_sgd_desc *desc);
MLK_API mlk_status mlk_sgd_plan(mlk_context *ctx, const mlk_sgd_desc *desc, mlk_plan *plan);
MLK_API mlk_status mlk_adamw(mlk_context *ctx, const mlk_adamw_desc *desc);
MLK_API mlk_status mlk_adamw_plan(mlk_context *ctx, const mlk_adamw_desc *desc, mlk_plan *plan);

/* Gradient averaging: see mlk_average_desc. FLOPs are 2 per element and replica. Memory-bound: reads each input and
   writes each output once. Aliasing: an output may be one of the inputs it is made of; else outputs overlap nothing;
   inputs may overlap each other when they are not written. Errors: as mlk_matmul, and REPLICA; outputs untouched, but
   see skip_nonfinite. */
MLK_API mlk_status mlk_average(mlk_context *ctx, const mlk_average_desc *desc);
MLK_API mlk_status mlk_average_plan(mlk_context *ctx, const mlk_average_desc *desc, mlk_plan *plan);

/* Groups of replicas: see mlk_group_desc. A group belongs to ctx, which must outlive it, and like it serves one thread
   at a time; errors are sentences of ctx. Memory is allocated by mlk_group_open only, but for the
   context's workspace, which publishing and averaging use as mlk_average does.
   mlk_group_get_plan: sizes; looks at ranks, shares, buckets, wire, tensors and transport only.
   mlk_group_segment_open: makes an anonymous segment of the plan's bytes, all of it reserved: a host that is short
   of memory refuses here (MLK_ERR_MEMORY), not by a signal later. Close with mlk_group_segment_close.
   mlk_group_open: attaches, and waits until all ranks are there (SHRINKS: or timeout is over and min_ranks are; a group
   that is already on its way: not at all). Once all were there it succeeds for all: one that leaves at once is a loss
   like another, which the first step reports. A segment of another user, open to others, too short, or of a group with
   another layout (ranks, shares, buckets and their order, wire, settings) is refused, as is a rank that somebody
   alive has. On failure *group is NULL. Errors: ARGUMENT, SIZE, MEMORY, SYSTEM, REPLICA, UNSUPPORTED (fd and path where
   there is no mmap).
   mlk_group_close: leaves. Between steps this is a loss like another; NULL is allowed. */
MLK_API mlk_status mlk_group_get_plan(mlk_context *ctx, const mlk_group_desc *desc, mlk_group_plan *plan);
MLK_API mlk_status mlk_group_segment_open(mlk_context *ctx, const mlk_group_desc *desc, mlk_group_segment *segment);
MLK_API void mlk_group_segment_close(mlk_group_segment *segment);
MLK_API mlk_status mlk_group_open(mlk_context *ctx, mlk_group **group, const mlk_group_desc *desc);
MLK_API void mlk_group_close(mlk_group *group);

/* Begins the next step: afterwards the own slots may be written. weights: of the own shares (samples, tokens), finite,
   >= 0; NULL: 1 each. report may be NULL. Errors: REPLICA (left out, or too few), ARGUMENT (a step is under way). */
MLK_API mlk_status mlk_group_begin(mlk_group *group, const float *weights, mlk_group_report *report);

/* The slot of an own share: [elements] of the wire's type in the own part, zero-copy: gradients written here are
   published without being copied. Not the own share, or no such bucket: data is NULL. Valid until mlk_group_close, to
   be written between begin and publish only. */
MLK_API mlk_tensor mlk_group_slot(const mlk_group *group, int share, int64_t bucket);

/* Publishes a bucket of an own share: once a step. grads: f32 tensors, any strides, together the bucket's elements,
   converted into the slot; NULL and 0: they stand in the slot already. */
MLK_API mlk_status mlk_group_publish(mlk_group *group, int share, int64_t bucket, const mlk_tensor *grads,
                                     int64_t count);

/* The mean of a bucket, of which the own shares are published, into f32 tensors that have together its elements (the
   gradients published from may be the same, slots may not); waits until all members have published it. Final after
   mlk_group_finish; until then the tensors, and the array of them, must stay, since finish may average again. */
MLK_API mlk_status mlk_group_average(mlk_group *group, int64_t bucket, const mlk_tensor *means, int64_t count);

/* Ends the step, for which everything must have been published: waits until the step is decided. MLK_OK: all means are
   final, and the same in all replicas of report.members. MLK_ERR_REPLICA, from this or an earlier call of the step: it
   is over, and does not count for anybody, or this replica was left out (the sentence says which); means hold nothing
   of use. Then begin comes next, but for a replica that was left out: close, and open anew. */
MLK_API mlk_status mlk_group_finish(mlk_group *group, mlk_group_report *report);

/* ZeRO-1 (Rajbhandari et al., "ZeRO: memory optimizations toward training trillion parameter models", 2020): each
   replica keeps the optimiser's state of a range of every bucket only. Needs MLK_LOSS_FAILS, since a lost replica's
   state is lost with it.
   mlk_group_range: the own range [*from, *to) of a bucket, a multiple of 16 elements but for the last.
   mlk_group_reduce: as mlk_group_average, for the own range only; f32 tensors of together to - from elements.
   mlk_group_gather: after finish, before the next begin: publishes the own range of updated parameters (mine, f32,
   together to - from elements) and reads the others' into whole (together the bucket's elements; the own range of
   whole is written too, and may be mine); -0 arrives as +0. Once a step, in all replicas in the same order of buckets.
   MLK_ERR_REPLICA: parameters of somebody are missing; this replica is left out. */
MLK_API mlk_status mlk_group_range(const mlk_group *group, int64_t bucket, int64_t *from, int64_t *to);
MLK_API mlk_status mlk_group_reduce(mlk_group *group, int64_t bucket, const mlk_tensor *means, int64_t count);
MLK_API mlk_status mlk_group_gather(mlk_group *group, int64_t bucket, const mlk_tensor *mine, int64_t mine_count,
                                    const mlk_tensor *whole, int64_t count);

/* Brings replicas that joined up to date. Call it after mlk_group_begin, before the first publish, when report.joined
   is not 0, with the same tensors in all replicas (parameters, moments, counters: any dtype, dense): the lowest rank
   that was a member before gives, those who joined receive; the others return at once. Until a step of the group has
   counted there is nothing to give: returns at once. A receiver for whom nobody is left gets MLK_ERR_REPLICA; who
   fails here must leave. */
MLK_API mlk_status mlk_group_sync(mlk_group *group, const mlk_tensor *tensors, int64_t count);

/* Views. mlk_f32(data, 3, 4) is a dense row-major 3 x 4 matrix of float; up to
   MLK_MAX_RANK sizes of any integer type. const is dropped: outputs must be memory you may write.
   data: f32 const float *, i64 const int64_t *, f16 and bf16 const uint16_t *, u8 const uint8_t *. */
#define mlk_f32(data, ...)                                                                                             \
  MLKI_VIEW(mlki_view_f32, data, __VA_ARGS__, MLKI_END, MLKI_END, MLKI_END, MLKI_END, MLKI_END, MLKI_END, MLKI_END)
#define mlk_i64(data, ...)                                                                                             \
  MLKI_VIEW(mlki_view_i64, data, __VA_ARGS__, MLKI_END, MLKI_END, MLKI_END, MLKI_END, MLKI_END, MLKI_END, MLKI_END)
#define mlk_f16(data, ...)                                                                                             \
  MLKI_VIEW(mlki_view_f16, data, __VA_ARGS__, MLKI_END, MLKI_END, MLKI_END, MLKI_END, MLKI_END, MLKI_END, MLKI_END)
#define mlk_bf16(data, ...)                                                                                            \
  MLKI_VIEW(mlki_view_bf16, data, __VA_ARGS__, MLKI_END, MLKI_END, MLKI_END, MLKI_END, MLKI_END, MLKI_END, MLKI_END)
#define mlk_u8(data, ...)                                                                                              \
  MLKI_VIEW(mlki_view_u8, data, __VA_ARGS__, MLKI_END, MLKI_END, MLKI_END, MLKI_END, MLKI_END, MLKI_END, MLKI_END)

/* The same view with the last two axes swapped. Rank < 2: unchanged. */
static inline mlk_tensor mlk_transposed(mlk_tensor t);

/* The same view with axes i and j swapped; axes outside 0 .. rank - 1: unchanged. [B, S, H, D] as attention wants it:
   mlk_swapped(t, 1, 2). */
static inline mlk_tensor mlk_swapped(mlk_tensor t, int i, int j);

/* A view [N, C, spatial...] of data that lies as [N, spatial..., C]: moves the last axis to place 1. */
static inline mlk_tensor mlk_channels_last(mlk_tensor t);

/* A row-major matrix view whose rows start stride elements apart: replaces the strides of the last two axes by
   (stride, 1); axes before them keep their dense strides in units of those rows. Call it before
   mlk_transposed, which it would undo. */
static inline mlk_tensor mlk_with_row_stride(mlk_tensor t, int64_t stride);

/* Elements [first, first + count) of an axis; an axis outside 0 .. rank - 1 returns t unchanged. The range is not
   checked here: operators check shapes, nobody can check data. */
static inline mlk_tensor mlk_slice(mlk_tensor t, int axis, int64_t first, int64_t count);

#define MLKI_END INT64_MIN
#define MLKI_VIEW(make, data, s0, s1, s2, s3, s4, s5, s6, ...)                                                         \
  make(data, (int64_t)(s0), (int64_t)(s1), (int64_t)(s2), (int64_t)(s3), (int64_t)(s4), (int64_t)(s5), (int64_t)(s6))

static inline mlk_tensor mlki_view(const void *data, mlk_dtype dtype, const int64_t *size) {
  mlk_tensor t = {NULL, 0, 0, {0}, {0}};
  t.data = (void *)(uintptr_t)data;
  t.dtype = (int32_t)dtype;
  while (t.rank < MLK_MAX_RANK && size[t.rank] != MLKI_END) {
    t.shape[t.rank] = size[t.rank];
    t.rank++;
  }
  t.rank += size[MLK_MAX_RANK] != MLKI_END && t.rank == MLK_MAX_RANK; /* one size too many: a rank that is refused */
  return t;
}

static inline mlk_tensor mlki_view_f32(const float *data, int64_t s0, int64_t s1, int64_t s2, int64_t s3, int64_t s4,
                                       int64_t s5, int64_t s6) {
  const int64_t size[MLK_MAX_RANK + 1] = {s0, s1, s2, s3, s4, s5, s6};
  return mlki_view(data, MLK_F32, size);
}

static inline mlk_tensor mlki_view_i64(const int64_t *data, int64_t s0, int64_t s1, int64_t s2, int64_t s3, int64_t s4,
                                       int64_t s5, int64_t s6) {
  const int64_t size[MLK_MAX_RANK + 1] = {s0, s1, s2, s3, s4, s5, s6};
  return mlki_view(data, MLK_I64, size);
}

static inline mlk_tensor mlki_view_f16(const uint16_t *data, int64_t s0, int64_t s1, int64_t s2, int64_t s3, int64_t s4,
                                       int64_t s5, int64_t s6) {
  const int64_t size[MLK_MAX_RANK + 1] = {s0, s1, s2, s3, s4, s5, s6};
  return mlki_view(data, MLK_F16, size);
}

static inline mlk_tensor mlki_view_bf16(const uint16_t *data, int64_t s0, int64_t s1, int64_t s2, int64_t s3,
                                        int64_t s4, int64_t s5, int64_t s6) {
  const int64_t size[MLK_MAX_RANK + 1] = {s0, s1, s2, s3, s4, s5, s6};
  return mlki_view(data, MLK_BF16, size);
}

static inline mlk_tensor mlki_view_u8(const uint8_t *data, int64_t s0, int64_t s1, int64_t s2, int64_t s3, int64_t s4,
                                      int64_t s5, int64_t s6) {
  const int64_t size[MLK_MAX_RANK + 1] = {s0, s1, s2, s3, s4, s5, s6};
  return mlki_view(data, MLK_U8, size);
}

/* Writes out the strides of a dense tensor, so that they can be changed. Sizes whose products overflow are refused
   later, by the operator; unsigned arithmetic keeps the overflow defined until then. */
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

static inline mlk_tensor mlk_swapped(mlk_tensor t, int i, int j) {
  int64_t s;
  if (t.rank > MLK_MAX_RANK || i < 0 || j < 0 || i >= t.rank || j >= t.rank) return t;
  t = mlki_explicit_strides(t);
  s = t.shape[i], t.shape[i] = t.shape[j], t.shape[j] = s;
  s = t.stride[i], t.stride[i] = t.stride[j], t.stride[j] = s;
  return t;
}

static inline mlk_tensor mlk_transposed(mlk_tensor t) { return mlk_swapped(t, t.rank - 1, t.rank - 2); }

static inline mlk_tensor mlk_channels_last(mlk_tensor t) {
  int64_t size, stride;
  int i;
  if (t.rank < 2 || t.rank > MLK_MAX_RANK) return t;
  t = mlki_explicit_strides(t);
  size = t.shape[t.rank - 1], stride = t.stride[t.rank - 1];
  for (i = t.rank - 1; i > 1; i--) t.shape[i] = t.shape[i - 1], t.stride[i] = t.stride[i - 1];
  t.shape[1] = size, t.stride[1] = stride;
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

/* Bytes of one element; dtype must be one of mlk_dtype. */
static inline int64_t mlki_dtype_bytes(int32_t dtype) {
  static const int64_t bytes[MLK_DTYPE_COUNT] = {4, 8, 2, 2, 1};
  return bytes[dtype];
}

static inline mlk_tensor mlk_slice(mlk_tensor t, int axis, int64_t first, int64_t count) {
  if (axis < 0 || axis >= t.rank || t.rank > MLK_MAX_RANK || t.dtype < 0 || t.dtype >= MLK_DTYPE_COUNT) return t;
  t = mlki_explicit_strides(t);
  t.data = (char *)t.data + first * t.stride[axis] * mlki_dtype_bytes(t.dtype);
  t.shape[axis] = count;
  return t;
}

#if defined(__cplusplus)
}
#endif
#endif /* MLK_H */

/* >>implementation ------------------------------------------------------------------------------------------------- */
#if defined(MLKI_DEVICE_PASS) || (defined(MLK_IMPLEMENTATION) && (!defined(MLKI_IMPLEMENTED) || defined(MLKI_PASS)))
#if !defined(MLKI_PASS) /* first time through; the passes of >>isa come back to >>math .. >>attention_kernels only */
#define MLKI_IMPLEMENTED

/* >>platform -----------------------------------------------------------------------------------------------------
   The only place, with >>cpu, >>vec and >>isa, for compiler and processor macros. */

#if (defined(__FAST_MATH__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__ > 0) ||                          \
     defined(__ASSOCIATIVE_MATH__) || defined(__RECIPROCAL_MATH__)) &&                                                 \
    !defined(MLK_ALLOW_FAST_MATH)
#error "mlk.h: -ffast-math (or -Ofast) voids the numeric contract: compile without it, or define MLK_ALLOW_FAST_MATH"
#endif
#if defined(__FLT_EVAL_METHOD__) && __FLT_EVAL_METHOD__ == 2
#error "mlk.h: x87 arithmetic rounds twice; compile with -msse2 -mfpmath=sse"
#endif

#include <errno.h>
#include <float.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* MLKI_SEGMENTS: memory that processes share, with locks that end with them. */
#if defined(__linux__)
#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__linux__) && defined(MAP_ANONYMOUS) && defined(SYS_memfd_create)
#define MLKI_SEGMENTS 1
#else
#define MLKI_SEGMENTS 0
#define MLKI_NO_SEGMENTS                                                                                               \
  "this build has no segments: they take Linux, and -std=gnu99, _DEFAULT_SOURCE, or mlk.h before any other header"
#endif

#if defined(_OPENMP) && !defined(MLK_NO_OPENMP)
#define MLKI_OPENMP 1
#include <omp.h>
#else
#define MLKI_OPENMP 0
#endif

/* MLKI_X86, MLKI_NEON: may the instruction sets beyond the scalar row be compiled here? nvcc's host pass is left
   with the scalar row: several pairs of gcc and CUDA cannot parse immintrin.h. */
#if (defined(__x86_64__) || defined(_M_X64)) && !defined(__CUDACC__)
#define MLKI_X86 1
#else
#define MLKI_X86 0
#endif
#if (defined(__aarch64__) || defined(_M_ARM64)) && !defined(__CUDACC__) && !defined(MLK_NO_NEON)
#define MLKI_NEON 1
#else
#define MLKI_NEON 0
#endif
#if MLKI_X86 && !defined(MLK_NO_AVX2)
#define MLKI_AVX2 1
#else
#define MLKI_AVX2 0
#endif
#if MLKI_X86 && !defined(MLK_NO_AVX512) && !(defined(_MSC_VER) && !defined(__clang__))
#define MLKI_AVX512 1
#else
#define MLKI_AVX512 0
#endif

#if defined(__GNUC__)
#define MLKI_INLINE       static inline __attribute__((always_inline))
#define MLKI_TARGET(isas) __attribute__((target(isas)))
#define MLKI_PRINTF(f, a) __attribute__((format(printf, f, a)))
#define MLKI_LIKELY(x)    __builtin_expect(!!(x), 1)
#define MLKI_PREFETCH(p)  __builtin_prefetch((p), 0, 3)
#define MLKI_PREFETCHW(p) __builtin_prefetch((p), 1, 3)
#define MLKI_PREFETCH2(p)                                                                                              \
  __builtin_prefetch((p), 0, 2) /* into level 2: rows that share a set of level 1 would evict each other */
#else
#define MLKI_INLINE static inline
#define MLKI_TARGET(isas)
#define MLKI_PRINTF(f, a)
#define MLKI_LIKELY(x)    (x)
#define MLKI_PREFETCH(p)  ((void)(p))
#define MLKI_PREFETCHW(p) ((void)(p))
#define MLKI_PREFETCH2(p) ((void)(p))
#endif

/* Unroll the following loop completely (its count is a constant after inlining): keeps accumulator arrays in
   registers at -O2. */
#if defined(__CUDACC__)
#define MLKI_UNROLL
#elif defined(__clang__)
#define MLKI_UNROLL _Pragma("clang loop unroll(full)")
#elif defined(__GNUC__)
#define MLKI_UNROLL _Pragma("GCC unroll 32")
#else
#define MLKI_UNROLL
#endif

/* Hides how v was made from the optimiser, so that GCC cannot contract a product into a later addition, as it does
   by default and whatever the pragmas say, intrinsics included. Costs no instruction. */
#if defined(__GNUC__) && !defined(__clang__) && MLKI_X86
#define MLKI_OPAQUE(v) __asm__("" : "+v"(v))
#elif defined(__GNUC__) && !defined(__clang__) && defined(__aarch64__)
#define MLKI_OPAQUE(v) __asm__("" : "+w"(v))
#elif defined(__GNUC__)
#define MLKI_OPAQUE(v) __asm__("" : "+m"(v))
#else
#define MLKI_OPAQUE(v) ((void)(v))
#endif

/* Takes the next value of a counter that several threads share. */
#if defined(_MSC_VER) && !defined(__clang__)
#include <intrin.h>
MLKI_INLINE int64_t mlki_take(int64_t *counter) { return _InterlockedExchangeAdd64((volatile __int64 *)counter, 1); }
#else
MLKI_INLINE int64_t mlki_take(int64_t *counter) { return __atomic_fetch_add(counter, 1, __ATOMIC_RELAXED); }
#endif

MLKI_INLINE int64_t mlki_min(int64_t a, int64_t b) { return a < b ? a : b; }
MLKI_INLINE int64_t mlki_max(int64_t a, int64_t b) { return a > b ? a : b; }
MLKI_INLINE int64_t mlki_ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
MLKI_INLINE int64_t mlki_round_up(int64_t a, int64_t step) { return mlki_ceil_div(a, step) * step; }

/* Seconds of a monotonic clock where there is one. */
static double mlki_seconds(void) {
#if defined(CLOCK_MONOTONIC)
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
#else
  return (double)clock() / (double)CLOCKS_PER_SEC;
#endif
}

/* Words that several threads or processes share, 8-byte aligned. */
#if defined(_MSC_VER) && !defined(__clang__)
static uint64_t mlki_load_word(const void *at) { return (uint64_t)_InterlockedOr64((volatile __int64 *)at, 0); }
static void mlki_store_word(void *at, uint64_t word) { _InterlockedExchange64((volatile __int64 *)at, (__int64)word); }
static int mlki_swap_word(void *at, uint64_t expected, uint64_t desired) {
  return _InterlockedCompareExchange64((volatile __int64 *)at, (__int64)desired, (__int64)expected) ==
         (__int64)expected;
}
static void mlki_fence(void) {
  volatile __int64 word = 0;
  _InterlockedExchange64(&word, 1); /* fences whatever the processor */
}
#else
static uint64_t mlki_load_word(const void *at) { return __atomic_load_n((const uint64_t *)at, __ATOMIC_ACQUIRE); }
static void mlki_store_word(void *at, uint64_t word) { __atomic_store_n((uint64_t *)at, word, __ATOMIC_RELEASE); }
static int mlki_swap_word(void *at, uint64_t expected, uint64_t desired) {
  return __atomic_compare_exchange_n((uint64_t *)at, &expected, desired, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}
#if defined(__SANITIZE_THREAD__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wtsan" /* it does not model fences; words alone order what tests look at */
#endif
static void mlki_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
#endif

/* Seconds of a clock that runs while this process waits, for deadlines. */
static double mlki_wall(void) {
#if defined(CLOCK_MONOTONIC)
  return mlki_seconds();
#else
  return (double)time(NULL);
#endif
}

/* Lets somebody else run: another thread now, or, when that was not enough, whoever wants for 50 microseconds. */
static void mlki_give_way(int sleep) {
#if defined(CLOCK_MONOTONIC)
  const int error = errno;
  struct timespec t;
  t.tv_sec = 0, t.tv_nsec = sleep ? 50000 : 0;
#if defined(__linux__)
  if (!sleep) /* a nap of no time takes longer than 50 microseconds there */
    (void)sched_yield();
  else
#endif
    nanosleep(&t, NULL);
  errno = error; /* a signal ends the nap early */
#else
  (void)sleep;
#endif
}

/* >>status --------------------------------------------------------------------------------------------------------- */

typedef struct mlki_kernels mlki_kernels; /* one row of functions: >>isa */

struct mlk_context {
  const mlki_kernels *row;
  int reference; /* MLK_ISA_REFERENCE */
  int threads;
  int64_t l2_bytes; /* of one core's level-2 cache */
  mlk_numerics numerics;
  mlk_allocator allocator;
  mlk_parallel parallel; /* run == NULL: OpenMP or serial */
  void (*log)(void *user, const char *line);
  void *log_user;
  void *workspace; /* 64-byte aligned */
  uint64_t workspace_bytes;
  mlk_growth growth;
  mlk_calibration calibration; /* its ceilings are those of mlk_measure */
  const mlk_backend *backend;  /* NULL: the CPU */
  void *device;                /* its state */
  int shared_memory;           /* of mlk_alloc */
  void *device_workspace;      /* of the plans of calls there; what they need of the host stays in workspace */
  uint64_t device_workspace_bytes;
  char error[MLK_ERROR_BYTES];
};

static const char *const mlki_status_names[MLK_STATUS_COUNT] = {
    "ok", "argument", "shape", "dtype", "alias", "size", "memory", "workspace", "unsupported", "replica", "system"};

/* Writes the sentence, tells the log, returns status. */
MLKI_PRINTF(3, 4) static mlk_status mlki_fail(mlk_context *ctx, mlk_status status, const char *format, ...) {
  va_list args;
  va_start(args, format);
  vsnprintf(ctx->error, sizeof ctx->error, format, args);
  va_end(args);
  if (ctx->log) ctx->log(ctx->log_user, ctx->error);
  return status;
}

/* >>memory --------------------------------------------------------------------------------------------------------- */

#define MLKI_ALIGN 64

/* a * b and a + b in 63 bits: 0 when they fit, for a, b >= 0. */
MLKI_INLINE int mlki_mul_overflows(int64_t a, int64_t b, int64_t *product) {
#if defined(__GNUC__)
  return __builtin_mul_overflow(a, b, product);
#else
  if (a != 0 && b > INT64_MAX / a) return 1;
  *product = a * b;
  return 0;
#endif
}

MLKI_INLINE int mlki_add_overflows(int64_t a, int64_t b, int64_t *sum) {
  if (b > INT64_MAX - a) return 1;
  *sum = a + b;
  return 0;
}

/* The default allocator: malloc, with room to align and to remember what malloc said. */
static void *mlki_default_alloc(void *user, size_t bytes, size_t alignment) {
  char *raw;
  uintptr_t at;
  (void)user;
  if (bytes > SIZE_MAX - alignment - sizeof(void *)) return NULL;
  raw = (char *)malloc(bytes + alignment + sizeof(void *));
  if (!raw) return NULL;
  at = ((uintptr_t)raw + sizeof(void *) + alignment - 1) & ~(uintptr_t)(alignment - 1);
  memcpy((void *)(at - sizeof(void *)), &raw, sizeof raw);
  return (void *)at;
}

static void mlki_default_free(void *user, void *memory, size_t bytes) {
  char *raw;
  (void)user, (void)bytes;
  memcpy(&raw, (char *)memory - sizeof(void *), sizeof raw);
  free(raw);
}

static void *mlki_alloc(mlk_context *ctx, uint64_t bytes) {
  if (bytes > SIZE_MAX) return NULL;
  return ctx->allocator.alloc(ctx->allocator.user, (size_t)bytes, MLKI_ALIGN);
}

static void mlki_free(mlk_context *ctx, void *memory, uint64_t bytes) {
  if (memory) ctx->allocator.free(ctx->allocator.user, memory, (size_t)bytes);
}

/* Makes the workspace at least bytes long. The old one is freed first: nothing in it outlives a call. */
static mlk_status mlki_workspace(mlk_context *ctx, uint64_t bytes) {
  if (MLKI_LIKELY(bytes <= ctx->workspace_bytes)) return MLK_OK;
  if (ctx->growth == MLK_FIXED && !ctx->backend)
    return mlki_fail(ctx, MLK_ERR_WORKSPACE,
                     "workspace: this call needs %llu bytes, but it is fixed at %llu; see mlk_reserve",
                     (unsigned long long)bytes, (unsigned long long)ctx->workspace_bytes);
  mlki_free(ctx, ctx->workspace, ctx->workspace_bytes);
  ctx->workspace_bytes = 0;
  ctx->workspace = mlki_alloc(ctx, bytes);
  if (!ctx->workspace)
    return mlki_fail(ctx, MLK_ERR_MEMORY, "workspace: the allocator could not give %llu bytes",
                     (unsigned long long)bytes);
  ctx->workspace_bytes = bytes;
  return MLK_OK;
}

/* Hands out consecutive parts of the workspace. With base NULL it only adds up: plans and runs share the code that
   asks. */
typedef struct mlki_carver {
  char *base;
  uint64_t used;
} mlki_carver;

static void *mlki_carve(mlki_carver *carver, int64_t count, int64_t element_bytes) {
  const uint64_t at = carver->used;
  carver->used += ((uint64_t)count * (uint64_t)element_bytes + MLKI_ALIGN - 1) / MLKI_ALIGN * MLKI_ALIGN;
  return carver->base ? carver->base + at : NULL;
}

/* Where tasks put their parts of the workspace: never NULL, so that even no bytes of it have an address. */
static void *mlki_workspace_base(mlk_context *ctx) { return ctx->workspace ? ctx->workspace : ctx; }

/* >>threads -------------------------------------------------------------------------------------------------------- */

#define MLKI_TASK_WORK (1 << 18) /* multiply-adds that pay for one more thread */

/* Tasks a call may make here and now: one inside somebody else's parallel region. */
static int mlki_task_limit(const mlk_context *ctx) {
#if MLKI_OPENMP
  if (!ctx->parallel.run && omp_in_parallel()) return 1;
#endif
  return ctx->threads;
}

/* body(arg, 0 .. count - 1), each index once, on up to count threads; returns when all are done. */
static void mlki_parallel_for(const mlk_context *ctx, int count, void (*body)(void *arg, int index), void *arg) {
  int i;
  if (count > 1 && ctx->parallel.run) {
    ctx->parallel.run(ctx->parallel.user, count, body, arg);
    return;
  }
#if MLKI_OPENMP
  if (count > 1 && !omp_in_parallel()) {
    const int kept = errno; /* where GCC's run-time waits through the C library (AArch64), EAGAIN may stay behind */
#pragma omp parallel for schedule(static, 1) num_threads(count)
    for (i = 0; i < count; i++) body(arg, i);
    errno = kept;
    return;
  }
#endif
  for (i = 0; i < count; i++) body(arg, i);
}

/* >>cpu ------------------------------------------------------------------------------------------------------------ */

#if MLKI_X86
#if !(defined(_MSC_VER) && !defined(__clang__))
#include <cpuid.h>
#endif

static void mlki_cpuid(unsigned leaf, unsigned sub, unsigned out[4]) {
#if defined(_MSC_VER) && !defined(__clang__)
  int r[4];
  __cpuidex(r, (int)leaf, (int)sub);
  memcpy(out, r, sizeof r);
#else
  out[0] = out[1] = out[2] = out[3] = 0;
  __cpuid_count(leaf, sub, out[0], out[1], out[2], out[3]);
#endif
}

/* Register states that the operating system saves: bit 1 SSE, 2 AVX, 5-7 AVX-512. */
static uint64_t mlki_xgetbv(void) {
#if defined(_MSC_VER) && !defined(__clang__)
  return _xgetbv(0);
#else
  unsigned low, high;
  __asm__ volatile(".byte 0x0f, 0x01, 0xd0"
                   : "=a"(low), "=d"(high)
                   : "c"(0)); /* xgetbv, spelled for assemblers without it */
  return ((uint64_t)high << 32) | low;
#endif
}

/* Bit i set: mlk_isa i runs here (Intel SDM vol. 1, 14.3 and 15.2: both the processor and the operating system must
   agree). */
static unsigned mlki_isa_mask(void) {
  unsigned r[4], leaves, mask = 1u << MLK_ISA_SCALAR;
  mlki_cpuid(0, 0, r);
  leaves = r[0];
  mlki_cpuid(1, 0, r);
  if (leaves >= 7 && (r[2] >> 27 & 1) && (r[2] >> 28 & 1) && (r[2] >> 12 & 1) &&
      (r[2] >> 29 & 1)) { /* OSXSAVE AVX FMA F16C */
    const uint64_t saved = mlki_xgetbv();
    mlki_cpuid(7, 0, r);
    if ((saved & 0x6) == 0x6 && (r[1] >> 5 & 1)) {
      mask |= 1u << MLK_ISA_AVX2;
      if ((saved & 0xe6) == 0xe6 && (r[1] >> 16 & 1) && (r[1] >> 17 & 1) && (r[1] >> 30 & 1) &&
          (r[1] >> 31 & 1)) /* F DQ BW VL */
        mask |= 1u << MLK_ISA_AVX512;
    }
  }
  return mask;
}

/* Bytes of the level-2 cache of this core: leaf 4 (Intel) or 0x8000001D (AMD), which share their format. */
static int64_t mlki_l2_bytes(void) {
  unsigned r[4], leaf, i, last;
  mlki_cpuid(0x80000000u, 0, r);
  last = r[0];
  mlki_cpuid(0, 0, r);
  leaf = r[2] == 0x444d4163u /* "cAMD" of AuthenticAMD */ && last >= 0x8000001du ? 0x8000001du : 4;
  if (leaf == 4 && r[0] < 4) return 0;
  for (i = 0; i < 8; i++) {
    mlki_cpuid(leaf, i, r);
    if ((r[0] & 31) == 0) break;
    if ((r[0] >> 5 & 7) == 2)
      return (int64_t)((r[1] >> 22) + 1) * ((r[1] >> 12 & 1023) + 1) * ((r[1] & 4095) + 1) * ((int64_t)r[2] + 1);
  }
  return 0;
}
#else
static unsigned mlki_isa_mask(void) { return 1u << MLK_ISA_SCALAR | (unsigned)MLKI_NEON << MLK_ISA_NEON; }
static int64_t mlki_l2_bytes(void) { return 0; }
#endif

/* >>tensor --------------------------------------------------------------------------------------------------------- */

/* The elements a view reaches, relative to data: offsets low .. high, both included; count 0: none. stored: without
   the axes of stride 0, which repeat the same elements. */
typedef struct mlki_extent {
  int64_t low, high, count, stored;
} mlki_extent;

static const char *const mlki_dtype_names[MLK_DTYPE_COUNT] = {"f32", "i64", "f16", "bf16", "u8"};

/* Checks a tensor argument and makes its strides explicit. An empty tensor may have data NULL. */
static mlk_status mlki_check_tensor(mlk_context *ctx, const char *name, mlk_tensor *t, mlk_dtype dtype, int min_rank,
                                    int max_rank, mlki_extent *extent) {
  int64_t count = 1, low = 0, high = 0, bytes;
  int i, dense = 1;
  if (t->rank < min_rank || t->rank > max_rank) {
    const char *missing = t->data ? "" : " (data is NULL: is the argument missing?)";
    const mlk_status status = t->data ? MLK_ERR_SHAPE : MLK_ERR_ARGUMENT;
    return min_rank == max_rank
               ? mlki_fail(ctx, status, "%s: rank is %d, but must be %d%s", name, (int)t->rank, min_rank, missing)
               : mlki_fail(ctx, status, "%s: rank is %d, but must be %d to %d%s", name, (int)t->rank, min_rank,
                           max_rank, missing);
  }
  if (t->dtype != (int32_t)dtype)
    return mlki_fail(ctx, MLK_ERR_DTYPE, "%s: dtype is %s (%d), but must be %s", name,
                     t->dtype >= 0 && t->dtype < MLK_DTYPE_COUNT ? mlki_dtype_names[t->dtype] : "unknown",
                     (int)t->dtype, mlki_dtype_names[dtype]);
  for (i = t->rank - 1; i >= 0; i--) {
    if (t->shape[i] < 0)
      return mlki_fail(ctx, MLK_ERR_SHAPE, "%s: size of axis %d is %lld, but must be at least 0", name, i,
                       (long long)t->shape[i]);
    if (t->shape[i] != 0 && mlki_mul_overflows(count, t->shape[i], &count))
      return mlki_fail(ctx, MLK_ERR_SIZE, "%s: the number of elements from axis %d on does not fit in 63 bits", name,
                       i);
    dense &= t->stride[i] == 0;
  }
  for (i = 0; i < t->rank; i++) {
    if (t->shape[i] == 0) count = 0;
    if (t->shape[i] > INT64_MAX / 8)
      return mlki_fail(ctx, MLK_ERR_SIZE, "%s: size of axis %d is %lld, but must be below 2^60", name, i,
                       (long long)t->shape[i]);
  }
  if (dense) *t = mlki_explicit_strides(*t);
  for (i = 0; i < t->rank && count; i++) {
    int64_t reach;
    const int64_t steps = t->shape[i] - 1, stride = t->stride[i];
    if (stride == INT64_MIN || mlki_mul_overflows(steps, stride < 0 ? -stride : stride, &reach) ||
        (stride < 0 ? mlki_add_overflows(-low, reach, &low) : mlki_add_overflows(high, reach, &high)))
      return mlki_fail(ctx, MLK_ERR_SIZE, "%s: stride %lld of axis %d reaches beyond 63 bits", name, (long long)stride,
                       i);
    if (stride < 0) low = -low;
  }
  if (mlki_mul_overflows(high, 8, &bytes) || mlki_mul_overflows(-low, 8, &bytes) ||
      mlki_add_overflows(high, -low, &bytes) || mlki_mul_overflows(bytes, 8, &bytes) ||
      mlki_mul_overflows(count, 8, &bytes))
    return mlki_fail(ctx, MLK_ERR_SIZE, "%s: the bytes it spans do not fit in 63 bits", name);
  if (!t->data && count)
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "%s: data is NULL, but the argument is required", name);
  if (!t->data) t->data = ctx; /* empty: never read, but pointer arithmetic on NULL is undefined */
  extent->low = low, extent->high = high, extent->count = extent->stored = count;
  for (i = 0; i < t->rank && count; i++)
    if (t->stride[i] == 0) extent->stored /= t->shape[i];
  return MLK_OK;
}

/* A tensor of f32 or, on a device, f16 or bf16. */
static mlk_status mlki_check_real(mlk_context *ctx, const char *name, mlk_tensor *t, int min_rank, int max_rank,
                                  mlki_extent *extent) {
  const int half = ctx->backend && (t->dtype == MLK_F16 || t->dtype == MLK_BF16);
  return mlki_check_tensor(ctx, name, t, half ? (mlk_dtype)t->dtype : MLK_F32, min_rank, max_rank, extent);
}

/* t must be of f32 or of like's dtype. */
static mlk_status mlki_check_alike(mlk_context *ctx, const char *name, const mlk_tensor *t, const char *like_name,
                                   const mlk_tensor *like) {
  if (!t->data || t->dtype == MLK_F32 || t->dtype == like->dtype) return MLK_OK;
  return mlki_fail(ctx, MLK_ERR_DTYPE, "%s: dtype is %s, but must be f32 or that of %s, %s", name,
                   mlki_dtype_names[t->dtype], like_name, mlki_dtype_names[like->dtype]);
}

/* An output must not map two elements to one place. Sorted by size, each stride must step over what the smaller ones
   span. */
static mlk_status mlki_check_output(mlk_context *ctx, const char *name, const mlk_tensor *t,
                                    const mlki_extent *extent) {
  int64_t span = 0, last = 0; /* axes with |stride| <= last are done; they span span elements beyond the first */
  int left = 0, i;
  if (!extent->count) return MLK_OK;
  for (i = 0; i < t->rank; i++) left += t->shape[i] > 1;
  while (left) {
    int64_t next = INT64_MAX, size = 0;
    for (i = 0; i < t->rank; i++) {
      const int64_t s = t->stride[i] < 0 ? -t->stride[i] : t->stride[i];
      if (t->shape[i] > 1 && s <= last)
        if (s == 0) return mlki_fail(ctx, MLK_ERR_SHAPE, "%s: an output, but the stride of axis %d is 0", name, i);
      if (t->shape[i] > 1 && s > last && s < next) next = s, size = t->shape[i];
    }
    if (next == INT64_MAX || next <= span)
      return mlki_fail(ctx, MLK_ERR_SHAPE,
                       "%s: an output, but its strides map several elements to one place (stride %lld)", name,
                       (long long)(next == INT64_MAX ? last : next));
    span += (size - 1) * next;
    last = next;
    left--;
  }
  return MLK_OK;
}

static int mlki_same_view(const mlk_tensor *a, const mlk_tensor *b) {
  int i;
  if (a->data != b->data || a->rank != b->rank) return 0;
  for (i = 0; i < a->rank; i++)
    if (a->shape[i] != b->shape[i] || (a->shape[i] > 1 && a->stride[i] != b->stride[i])) return 0;
  return 1;
}

/* Do two views share an element? May say yes for exotic views that do not. Column slices of one matrix
   are told apart: for a step R that divides or is larger than nothing else, each view occupies an interval of
   residues modulo R. */
static int mlki_overlap(const mlk_tensor *a, const mlki_extent *ea, const mlk_tensor *b, const mlki_extent *eb) {
  const int64_t size = mlki_dtype_bytes(a->dtype), size_b = mlki_dtype_bytes(b->dtype);
  const intptr_t a0 = (intptr_t)a->data + (intptr_t)(ea->low * size),
                 a1 = (intptr_t)a->data + (intptr_t)((ea->high + 1) * size);
  const intptr_t b0 = (intptr_t)b->data + (intptr_t)(eb->low * size_b),
                 b1 = (intptr_t)b->data + (intptr_t)((eb->high + 1) * size_b);
  int r, i;
  if (!ea->count || !eb->count || a1 <= b0 || b1 <= a0) return 0;
  if (size != size_b || (b0 - a0) % size != 0) return 1;
  for (r = 0; r < a->rank; r++) {
    const int64_t step = a->stride[r] < 0 ? -a->stride[r] : a->stride[r];
    int64_t span_a = 1, span_b = 1, apart;
    if (step < 2) continue;
    for (i = 0; i < a->rank; i++)
      if (a->stride[i] % step) span_a += (a->shape[i] - 1) * (a->stride[i] < 0 ? -a->stride[i] : a->stride[i]);
    for (i = 0; i < b->rank; i++)
      if (b->stride[i] % step) span_b += (b->shape[i] - 1) * (b->stride[i] < 0 ? -b->stride[i] : b->stride[i]);
    apart = (int64_t)(b0 - a0) / size % step;
    if (apart < 0) apart += step;
    if (span_a <= apart && apart + span_b <= step) return 0;
  }
  return 1;
}

/* An output must not share an element with another operand. Plans (run 0) do not look. */
static mlk_status mlki_check_apart(mlk_context *ctx, int run, const char *name, const mlk_tensor *out,
                                   const mlki_extent *extent, const char *other_name, const mlk_tensor *other,
                                   const mlki_extent *other_extent) {
  if (!run || !mlki_overlap(out, extent, other, other_extent)) return MLK_OK;
  return mlki_fail(ctx, MLK_ERR_ALIAS, "%s: overlaps %s", name, other_name);
}

/* A matrix as the loops see it: element (i, j) at p[i * rs + j * cs]; batch strides in D's batch axes; a stride of 0
   broadcasts. */
typedef struct mlki_mat {
  float *p;
  int64_t rs, cs;
  int64_t batch[MLK_MAX_RANK - 2];
} mlki_mat;

/* The strides of t in the axes of an output of shape[0 .. rank), by the broadcasting rule: axes align at the right,
   sizes are equal, or 1, or missing; a broadcast axis has stride 0. */
static mlk_status mlki_broadcast_strides(mlk_context *ctx, const char *name, const mlk_tensor *t, const char *out_name,
                                         const int64_t *shape, int rank, int64_t stride[MLK_MAX_RANK]) {
  int i;
  if (t->rank > rank)
    return mlki_fail(ctx, MLK_ERR_SHAPE, "%s: rank is %d, but %s has %d axes", name, (int)t->rank, out_name, rank);
  for (i = 0; i < rank; i++) stride[i] = 0;
  for (i = 0; i < t->rank; i++) {
    const int at = rank - t->rank + i;
    if (t->shape[i] != shape[at] && t->shape[i] != 1)
      return mlki_fail(ctx, MLK_ERR_SHAPE, "%s: size of axis %d is %lld, but must be %lld or 1", name, i,
                       (long long)t->shape[i], (long long)shape[at]);
    /* an axis of one element: any stride will do; 1 suits the loops */
    stride[at] = shape[at] == 1 ? 1 : t->shape[i] == 1 ? 0 : t->stride[i];
  }
  return MLK_OK;
}

/* The same as a matrix of a batch, rank >= 2; the output is d. */
static mlk_status mlki_broadcast(mlk_context *ctx, const char *name, const mlk_tensor *t, const int64_t *shape,
                                 int rank, mlki_mat *out) {
  int64_t stride[MLK_MAX_RANK];
  int i;
  const mlk_status status = mlki_broadcast_strides(ctx, name, t, "d", shape, rank, stride);
  if (status) return status;
  out->p = (float *)t->data;
  out->rs = stride[rank - 2], out->cs = stride[rank - 1];
  for (i = 0; i < rank - 2; i++) out->batch[i] = stride[i];
  return MLK_OK;
}

/* >>vec ----------------------------------------------------------------------------------------------------------
   The vocabulary: every kernel is written in these functions and nothing else, once. One block per instruction set,
   all in this order.

     mlki_vec, mlki_mask    LANES floats; LANES truth values
     zero set1(x)           all lanes 0; all lanes x
     load(p) store(p, v)    LANES floats, any alignment
     load_n store_n         the first n lanes, 0 <= n <= LANES; memory beyond is not touched, other lanes load as 0
     add sub mul div sqrt   IEEE, rounded to nearest even; mul is never contracted into a later addition
     fma(a, b, c)           a * b + c rounded once        fnma(a, b, c)   c - a * b rounded once
     min(a, b) max(a, b)    a < b ? a : b; a > b ? a : b   (so b where unordered)
     abs copysign(m, s)     bit operations
     lt(a, b) gt(a, b)      false where unordered          eq(a, b)       the same
     select(m, a, b)        m ? a : b                      bits(m)         bit l = lane l
     skip(a, b)             even lanes of a, then odd lanes of b
     swap(a)                lanes 2i and 2i + 1 change places
     round(a)               nearest even integer, |a| < 2^22
     scale2(a, n)           a * 2^floor(n/2) * 2^(n - floor(n/2)), n integral, -252 <= n <= 252: only the last
                            product rounds; NaN for NaN
     expo(a) mant(a)        a positive and normal: a = 2^expo mant, sqrt(1/2) <= mant < sqrt(2); anything for other a
     load_f16(p) load_bf16(p) load_u8(p)      LANES elements of that type, widened exactly
     store_f16(p, v) store_bf16(p, v)         rounded to nearest even; NaN stays NaN
     store_u8(p, v)         towards zero, values beyond 0 .. 255 to the nearer end, NaN to 0
     even(a, b)             lanes 0, 2, 4, ... of a, then of b
     transpose(r)           r[0 .. LANES): the square block r[i] lane j becomes r[j] lane i
     sum16(r)               16 lanes in 16 / LANES vectors added as the tree of NUMERICS
     stream(p, v) fence()   with MLKI_STREAMS: the bits of v to p, past the caches; p is aligned to them, and whole
                            lines of 64 bytes are written in one go; fence before another thread may read them.
                            Else plain
*/

/* fma for the scalar row. Without a hardware fma, libm's is a slow emulation or, on some systems, wrong: this one
   computes the exact product in double, adds with the rounding error known (Knuth's TwoSum), and rounds to odd,
   after which the rounding to float is the only one (Boldo & Melquiond, "Emulation of FMA and correctly rounded
   sums: proved algorithms using rounding to odd", 2008). */
static inline float mlki_fma1(float a, float b, float c) {
#if defined(FP_FAST_FMAF) || defined(__FMA__) || defined(__aarch64__)
  return fmaf(a, b, c);
#else
  const double p = (double)a * (double)b, s = p + (double)c; /* p is exact: 48 bits */
  const double t = s - p, e = (p - (s - t)) + ((double)c - t);
  uint64_t bits;
  double odd = s;
  if (e > 0 || e < 0) { /* inexact, and finite */
    memcpy(&bits, &s, 8);
    if (!(bits & 1)) bits += (e > 0) == (s > 0) ? 1u : ~(uint64_t)0;
    memcpy(&odd, &bits, 8);
  }
  return (float)odd;
#endif
}

MLKI_INLINE float mlki_float_of(uint32_t bits) {
  float f;
  memcpy(&f, &bits, 4);
  return f;
}

MLKI_INLINE uint32_t mlki_bits_of(float f) {
  uint32_t bits;
  memcpy(&bits, &f, 4);
  return bits;
}

/* f16 and bf16, as processors convert them: denormals kept, NaNs keep sign and upper payload and become quiet (but
   widening bf16 moves bits only). */
static inline float mlki_f16_to_f32(uint16_t h) {
  const uint32_t sign = (uint32_t)(h & 0x8000u) << 16, a = h & 0x7fffu;
  if (a < 0x0400u) return mlki_float_of(sign | mlki_bits_of((float)a * (1.0f / 16777216.0f))); /* units of 2^-24 */
  if (a < 0x7c00u) return mlki_float_of(sign | ((a << 13) + 0x38000000u));
  return mlki_float_of(sign | 0x7f800000u | (a & 0x3ffu) << 13 | (a > 0x7c00u ? 0x400000u : 0u));
}

static inline uint16_t mlki_f32_to_f16(float f) {
  const uint32_t sign = mlki_bits_of(f) >> 16 & 0x8000u;
  uint32_t a = mlki_bits_of(f) & 0x7fffffffu;
  if (a > 0x7f800000u) return (uint16_t)(sign | 0x7e00u | (a >> 13 & 0x3ffu));
  if (a >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u); /* from 65520 on nearer to infinity */
  if (a < 0x38800000u)                                     /* below 2^-14: 1/2 has an ulp of 2^-24 */
    return (uint16_t)(sign | (mlki_bits_of(mlki_float_of(a) + 0.5f) - 0x3f000000u));
  a += 0xfffu + (a >> 13 & 1u);
  return (uint16_t)(sign | (a - 0x38000000u) >> 13);
}

static inline float mlki_bf16_to_f32(uint16_t h) { return mlki_float_of((uint32_t)h << 16); }

static inline uint16_t mlki_f32_to_bf16(float f) {
  const uint32_t a = mlki_bits_of(f);
  if ((a & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(a >> 16 | 0x40u);
  return (uint16_t)((a + 0x7fffu + (a >> 16 & 1u)) >> 16);
}

static inline uint8_t mlki_f32_to_u8(float f) { return (uint8_t)(f > 0.0f ? f < 255.0f ? (int)f : 255 : 0); }

/* clang-format off: one operation a line */

/* scalar: four lanes in a struct, so that tails and lane trees run here as elsewhere */
typedef struct {
  float f[4];
} mlki_vec_scalar;
typedef struct {
  int b[4];
} mlki_mask_scalar;
#define MLKI_LANES_scalar 4
#define MLKI_EACH4(i)     for (i = 0; i < 4; i++)

MLKI_INLINE mlki_vec_scalar mlki_v_set1_scalar(float x) {
  mlki_vec_scalar r = {{x, x, x, x}};
  return r;
}
MLKI_INLINE mlki_vec_scalar mlki_v_zero_scalar(void) { return mlki_v_set1_scalar(0.0f); }
MLKI_INLINE mlki_vec_scalar mlki_v_load_scalar(const float *p) {
  mlki_vec_scalar r = {{p[0], p[1], p[2], p[3]}};
  return r;
}
MLKI_INLINE void mlki_v_store_scalar(float *p, mlki_vec_scalar v) {
  int i;
  MLKI_EACH4(i) p[i] = v.f[i];
}
MLKI_INLINE mlki_vec_scalar mlki_v_load_n_scalar(const float *p, int64_t n) {
  mlki_vec_scalar r;
  int i;
  MLKI_EACH4(i) r.f[i] = i < n ? p[i] : 0.0f;
  return r;
}
MLKI_INLINE void mlki_v_store_n_scalar(float *p, mlki_vec_scalar v, int64_t n) {
  int i;
  MLKI_EACH4(i) if (i < n) p[i] = v.f[i];
}
MLKI_INLINE mlki_vec_scalar mlki_v_add_scalar(mlki_vec_scalar a, mlki_vec_scalar b) {
  int i;
  MLKI_EACH4(i) a.f[i] += b.f[i];
  return a;
}
MLKI_INLINE mlki_vec_scalar mlki_v_sub_scalar(mlki_vec_scalar a, mlki_vec_scalar b) {
  int i;
  MLKI_EACH4(i) a.f[i] -= b.f[i];
  return a;
}
MLKI_INLINE mlki_vec_scalar mlki_v_mul_scalar(mlki_vec_scalar a, mlki_vec_scalar b) {
  int i;
  MLKI_EACH4(i) {
    float p = a.f[i] * b.f[i];
    MLKI_OPAQUE(p);
    a.f[i] = p;
  }
  return a;
}
MLKI_INLINE mlki_vec_scalar mlki_v_div_scalar(mlki_vec_scalar a, mlki_vec_scalar b) {
  int i;
  MLKI_EACH4(i) a.f[i] /= b.f[i];
  return a;
}
MLKI_INLINE mlki_vec_scalar mlki_v_sqrt_scalar(mlki_vec_scalar a) {
  int i;
  MLKI_EACH4(i) a.f[i] = sqrtf(a.f[i]);
  return a;
}
MLKI_INLINE mlki_vec_scalar mlki_v_fma_scalar(mlki_vec_scalar a, mlki_vec_scalar b, mlki_vec_scalar c) {
  int i;
  MLKI_EACH4(i) c.f[i] = mlki_fma1(a.f[i], b.f[i], c.f[i]);
  return c;
}
MLKI_INLINE mlki_vec_scalar mlki_v_fnma_scalar(mlki_vec_scalar a, mlki_vec_scalar b, mlki_vec_scalar c) {
  int i;
  MLKI_EACH4(i) c.f[i] = mlki_fma1(-a.f[i], b.f[i], c.f[i]);
  return c;
}
MLKI_INLINE mlki_vec_scalar mlki_v_min_scalar(mlki_vec_scalar a, mlki_vec_scalar b) {
  int i;
  MLKI_EACH4(i) a.f[i] = a.f[i] < b.f[i] ? a.f[i] : b.f[i];
  return a;
}
MLKI_INLINE mlki_vec_scalar mlki_v_max_scalar(mlki_vec_scalar a, mlki_vec_scalar b) {
  int i;
  MLKI_EACH4(i) a.f[i] = a.f[i] > b.f[i] ? a.f[i] : b.f[i];
  return a;
}
MLKI_INLINE mlki_vec_scalar mlki_v_abs_scalar(mlki_vec_scalar a) {
  int i;
  MLKI_EACH4(i) a.f[i] = fabsf(a.f[i]);
  return a;
}
MLKI_INLINE mlki_vec_scalar mlki_v_copysign_scalar(mlki_vec_scalar m, mlki_vec_scalar s) {
  int i;
  MLKI_EACH4(i) m.f[i] = copysignf(m.f[i], s.f[i]);
  return m;
}
MLKI_INLINE mlki_mask_scalar mlki_v_lt_scalar(mlki_vec_scalar a, mlki_vec_scalar b) {
  mlki_mask_scalar m;
  int i;
  MLKI_EACH4(i) m.b[i] = a.f[i] < b.f[i];
  return m;
}
MLKI_INLINE mlki_mask_scalar mlki_v_gt_scalar(mlki_vec_scalar a, mlki_vec_scalar b) { return mlki_v_lt_scalar(b, a); }
MLKI_INLINE mlki_mask_scalar mlki_v_eq_scalar(mlki_vec_scalar a, mlki_vec_scalar b) {
  mlki_mask_scalar m;
  int i;
  MLKI_EACH4(i) m.b[i] = a.f[i] == b.f[i];
  return m;
}
MLKI_INLINE mlki_vec_scalar mlki_v_select_scalar(mlki_mask_scalar m, mlki_vec_scalar a, mlki_vec_scalar b) {
  int i;
  MLKI_EACH4(i) b.f[i] = m.b[i] ? a.f[i] : b.f[i];
  return b;
}
MLKI_INLINE unsigned mlki_v_bits_scalar(mlki_mask_scalar m) {
  return (unsigned)(m.b[0] | m.b[1] << 1 | m.b[2] << 2 | m.b[3] << 3);
}
MLKI_INLINE mlki_vec_scalar mlki_v_round_scalar(mlki_vec_scalar a) {
  const float big = 12582912.0f; /* 1.5 * 2^23: the sum drops the fraction, to nearest even */
  int i;
  MLKI_EACH4(i) {
    float t = a.f[i] + big;
    MLKI_OPAQUE(t);
    a.f[i] = t - big;
  }
  return a;
}
MLKI_INLINE mlki_vec_scalar mlki_v_scale2_scalar(mlki_vec_scalar a, mlki_vec_scalar n) {
  int i;
  MLKI_EACH4(i) { /* n from the low bits of n + 1.5 * 2^23: (int)NaN would be undefined; half = floor(n / 2) */
    const uint32_t e = mlki_bits_of(n.f[i] + 12582912.0f) - 0x4b400000u, half = ((e + 256u) >> 1) - 128u;
    float p = a.f[i] * mlki_float_of((half + 127u) << 23);
    MLKI_OPAQUE(p);
    p *= mlki_float_of((e - half + 127u) << 23);
    MLKI_OPAQUE(p);
    a.f[i] = p;
  }
  return a;
}
#define MLKI_SQRT_HALF 0x3f3504f3u /* the bits of sqrt(1/2) */
MLKI_INLINE mlki_vec_scalar mlki_v_expo_scalar(mlki_vec_scalar a) {
  int i; /* the floor of a negative quotient, by an offset of 2^31 / 2^23 = 256 */
  MLKI_EACH4(i) a.f[i] = (float)(int)((mlki_bits_of(a.f[i]) - MLKI_SQRT_HALF + 0x80000000u) >> 23) - 256.0f;
  return a;
}
MLKI_INLINE mlki_vec_scalar mlki_v_mant_scalar(mlki_vec_scalar a) {
  int i;
  MLKI_EACH4(i) a.f[i] = mlki_float_of(((mlki_bits_of(a.f[i]) - MLKI_SQRT_HALF) & 0x7fffffu) + MLKI_SQRT_HALF);
  return a;
}
MLKI_INLINE mlki_vec_scalar mlki_v_load_f16_scalar(const uint16_t *p) {
  mlki_vec_scalar r;
  int i;
  MLKI_EACH4(i) r.f[i] = mlki_f16_to_f32(p[i]);
  return r;
}
MLKI_INLINE mlki_vec_scalar mlki_v_load_bf16_scalar(const uint16_t *p) {
  mlki_vec_scalar r;
  int i;
  MLKI_EACH4(i) r.f[i] = mlki_bf16_to_f32(p[i]);
  return r;
}
MLKI_INLINE mlki_vec_scalar mlki_v_load_u8_scalar(const uint8_t *p) {
  mlki_vec_scalar r;
  int i;
  MLKI_EACH4(i) r.f[i] = (float)p[i];
  return r;
}
MLKI_INLINE void mlki_v_store_f16_scalar(uint16_t *p, mlki_vec_scalar v) {
  int i;
  MLKI_EACH4(i) p[i] = mlki_f32_to_f16(v.f[i]);
}
MLKI_INLINE void mlki_v_store_bf16_scalar(uint16_t *p, mlki_vec_scalar v) {
  int i;
  MLKI_EACH4(i) p[i] = mlki_f32_to_bf16(v.f[i]);
}
MLKI_INLINE void mlki_v_store_u8_scalar(uint8_t *p, mlki_vec_scalar v) {
  int i;
  MLKI_EACH4(i) p[i] = mlki_f32_to_u8(v.f[i]);
}
MLKI_INLINE mlki_vec_scalar mlki_v_even_scalar(mlki_vec_scalar a, mlki_vec_scalar b) {
  mlki_vec_scalar r = {{a.f[0], a.f[2], b.f[0], b.f[2]}};
  return r;
}
MLKI_INLINE void mlki_v_transpose_scalar(mlki_vec_scalar *r) {
  int i, j;
  MLKI_EACH4(i) for (j = 0; j < i; j++) {
    const float t = r[i].f[j];
    r[i].f[j] = r[j].f[i];
    r[j].f[i] = t;
  }
}
MLKI_INLINE mlki_vec_scalar mlki_v_skip_scalar(mlki_vec_scalar a, mlki_vec_scalar b) {
  mlki_vec_scalar r = {{a.f[0], a.f[2], b.f[1], b.f[3]}};
  return r;
}
MLKI_INLINE mlki_vec_scalar mlki_v_swap_scalar(mlki_vec_scalar a) {
  mlki_vec_scalar r = {{a.f[1], a.f[0], a.f[3], a.f[2]}};
  return r;
}
MLKI_INLINE float mlki_v_sum16_scalar(const mlki_vec_scalar *r) {
  const mlki_vec_scalar s = mlki_v_add_scalar(mlki_v_add_scalar(r[0], r[2]), mlki_v_add_scalar(r[1], r[3]));
  const float s0 = s.f[0] + s.f[2], s1 = s.f[1] + s.f[3];
  return s0 + s1;
}

MLKI_INLINE void mlki_v_stream_scalar(void *p, mlki_vec_scalar v) { memcpy(p, &v, sizeof v); }
MLKI_INLINE void mlki_v_fence_scalar(void) {}

#if MLKI_X86
#include <immintrin.h>
#endif

#if MLKI_AVX2
#define MLKI_TARGET_avx2 MLKI_TARGET("avx2,fma,f16c")
#define MLKI_V_avx2      MLKI_TARGET_avx2 MLKI_INLINE
#define MLKI_LANES_avx2  8
typedef __m256 mlki_vec_avx2;
typedef __m256 mlki_mask_avx2;

static const int32_t mlki_first_lanes_avx2[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};
MLKI_V_avx2 __m256i mlki_v_first_avx2(int64_t n) {
  return _mm256_loadu_si256((const __m256i *)(const void *)(mlki_first_lanes_avx2 + 8 - n));
}
MLKI_V_avx2 __m256 mlki_v_set1_avx2(float x) { return _mm256_set1_ps(x); }
MLKI_V_avx2 __m256 mlki_v_zero_avx2(void) { return _mm256_setzero_ps(); }
MLKI_V_avx2 __m256 mlki_v_load_avx2(const float *p) { return _mm256_loadu_ps(p); }
MLKI_V_avx2 void mlki_v_store_avx2(float *p, __m256 v) { _mm256_storeu_ps(p, v); }
MLKI_V_avx2 __m256 mlki_v_load_n_avx2(const float *p, int64_t n) { return _mm256_maskload_ps(p, mlki_v_first_avx2(n)); }
MLKI_V_avx2 void mlki_v_store_n_avx2(float *p, __m256 v, int64_t n) { _mm256_maskstore_ps(p, mlki_v_first_avx2(n), v); }
MLKI_V_avx2 __m256 mlki_v_add_avx2(__m256 a, __m256 b) { return _mm256_add_ps(a, b); }
MLKI_V_avx2 __m256 mlki_v_sub_avx2(__m256 a, __m256 b) { return _mm256_sub_ps(a, b); }
MLKI_V_avx2 __m256 mlki_v_mul_avx2(__m256 a, __m256 b) {
  __m256 r = _mm256_mul_ps(a, b);
  MLKI_OPAQUE(r);
  return r;
}
MLKI_V_avx2 __m256 mlki_v_div_avx2(__m256 a, __m256 b) { return _mm256_div_ps(a, b); }
MLKI_V_avx2 __m256 mlki_v_sqrt_avx2(__m256 a) { return _mm256_sqrt_ps(a); }
MLKI_V_avx2 __m256 mlki_v_fma_avx2(__m256 a, __m256 b, __m256 c) { return _mm256_fmadd_ps(a, b, c); }
MLKI_V_avx2 __m256 mlki_v_fnma_avx2(__m256 a, __m256 b, __m256 c) { return _mm256_fnmadd_ps(a, b, c); }
MLKI_V_avx2 __m256 mlki_v_min_avx2(__m256 a, __m256 b) { return _mm256_min_ps(a, b); }
MLKI_V_avx2 __m256 mlki_v_max_avx2(__m256 a, __m256 b) { return _mm256_max_ps(a, b); }
MLKI_V_avx2 __m256 mlki_v_abs_avx2(__m256 a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
MLKI_V_avx2 __m256 mlki_v_copysign_avx2(__m256 m, __m256 s) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return _mm256_or_ps(_mm256_andnot_ps(sign, m), _mm256_and_ps(sign, s));
}
MLKI_V_avx2 __m256 mlki_v_lt_avx2(__m256 a, __m256 b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
MLKI_V_avx2 __m256 mlki_v_gt_avx2(__m256 a, __m256 b) { return _mm256_cmp_ps(a, b, _CMP_GT_OQ); }
MLKI_V_avx2 __m256 mlki_v_eq_avx2(__m256 a, __m256 b) { return _mm256_cmp_ps(a, b, _CMP_EQ_OQ); }
MLKI_V_avx2 __m256 mlki_v_select_avx2(__m256 m, __m256 a, __m256 b) { return _mm256_blendv_ps(b, a, m); }
MLKI_V_avx2 unsigned mlki_v_bits_avx2(__m256 m) { return (unsigned)_mm256_movemask_ps(m); }
MLKI_V_avx2 __m256 mlki_v_round_avx2(__m256 a) {
  return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
MLKI_V_avx2 __m256 mlki_v_pow2_avx2(__m256i n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
}
MLKI_V_avx2 __m256 mlki_v_scale2_avx2(__m256 a, __m256 n) {
  const __m256i e = _mm256_cvttps_epi32(n), half = _mm256_srai_epi32(e, 1);
  return mlki_v_mul_avx2(mlki_v_mul_avx2(a, mlki_v_pow2_avx2(half)), mlki_v_pow2_avx2(_mm256_sub_epi32(e, half)));
}
MLKI_V_avx2 __m256i mlki_v_above_avx2(__m256 a) { /* bits(a) - bits(sqrt(1/2)) */
  return _mm256_sub_epi32(_mm256_castps_si256(a), _mm256_set1_epi32((int)MLKI_SQRT_HALF));
}
MLKI_V_avx2 __m256 mlki_v_expo_avx2(__m256 a) {
  return _mm256_cvtepi32_ps(_mm256_srai_epi32(mlki_v_above_avx2(a), 23));
}
MLKI_V_avx2 __m256 mlki_v_mant_avx2(__m256 a) {
  const __m256i m = _mm256_and_si256(mlki_v_above_avx2(a), _mm256_set1_epi32(0x7fffff));
  return _mm256_castsi256_ps(_mm256_add_epi32(m, _mm256_set1_epi32((int)MLKI_SQRT_HALF)));
}
MLKI_V_avx2 __m256 mlki_v_load_f16_avx2(const uint16_t *p) {
  return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)p));
}
MLKI_V_avx2 __m256 mlki_v_load_bf16_avx2(const uint16_t *p) {
  const __m128i h = _mm_loadu_si128((const __m128i *)(const void *)p);
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}
MLKI_V_avx2 __m256 mlki_v_load_u8_avx2(const uint8_t *p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p)));
}
MLKI_V_avx2 void mlki_v_store_f16_avx2(uint16_t *p, __m256 v) {
  _mm_storeu_si128((__m128i *)(void *)p, _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
MLKI_V_avx2 __m128i mlki_v_narrow_avx2(__m256i v) { /* eight values of 0 .. 65535 to 16 bits each */
  return _mm_packus_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
}
MLKI_V_avx2 void mlki_v_store_bf16_avx2(uint16_t *p, __m256 v) {
  const __m256i a = _mm256_castps_si256(v), high = _mm256_srli_epi32(a, 16);
  const __m256i half = _mm256_add_epi32(_mm256_set1_epi32(0x7fff), _mm256_and_si256(high, _mm256_set1_epi32(1)));
  const __m256i number = _mm256_srli_epi32(_mm256_add_epi32(a, half), 16);
  const __m256i quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  _mm_storeu_si128((__m128i *)(void *)p, mlki_v_narrow_avx2(_mm256_blendv_epi8(number, quiet, nan)));
}
MLKI_V_avx2 void mlki_v_store_u8_avx2(uint8_t *p, __m256 v) {
  const __m256 in = _mm256_min_ps(_mm256_max_ps(v, _mm256_setzero_ps()), _mm256_set1_ps(255.0f));
  const __m128i h = mlki_v_narrow_avx2(_mm256_cvttps_epi32(in));
  _mm_storel_epi64((__m128i *)(void *)p, _mm_packus_epi16(h, h));
}
MLKI_V_avx2 __m256 mlki_v_even_avx2(__m256 a, __m256 b) { /* a0 a2 b0 b2 a4 a6 b4 b6, then halves in order */
  const __m256 t = _mm256_shuffle_ps(a, b, 0x88);
  return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(t), 0xd8));
}
MLKI_V_avx2 void mlki_v_transpose_avx2(__m256 *r) {
  __m256 t[8], u[8];
  int i;
  MLKI_UNROLL for (i = 0; i < 4; i++) t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]),
                                            t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
  MLKI_UNROLL for (i = 0; i < 8; i += 4) {
    u[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44), u[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
    u[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44), u[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
  }
  MLKI_UNROLL for (i = 0; i < 4; i++) {
    r[i] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x20);
    r[i + 4] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x31);
  }
}
MLKI_V_avx2 __m256 mlki_v_skip_avx2(__m256 a, __m256 b) { /* halves first, then the middle quarters change places */
  const __m256d r = _mm256_castps_pd(_mm256_shuffle_ps(a, b, 0xd8));
  return _mm256_castpd_ps(_mm256_permute4x64_pd(r, 0xd8));
}
MLKI_V_avx2 __m256 mlki_v_swap_avx2(__m256 a) { return _mm256_permute_ps(a, 0xb1); }
MLKI_V_avx2 float mlki_v_sum4_avx2(__m128 s) { /* lanes l and l + 2, then the two left */
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
}
MLKI_V_avx2 float mlki_v_sum16_avx2(const __m256 *r) {
  const __m256 s = _mm256_add_ps(r[0], r[1]);
  return mlki_v_sum4_avx2(_mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1)));
}
MLKI_V_avx2 void mlki_v_stream_avx2(void *p, __m256 v) { _mm256_stream_ps((float *)p, v); }
MLKI_V_avx2 void mlki_v_fence_avx2(void) { _mm_sfence(); }
#endif

#if MLKI_AVX512
#define MLKI_TARGET_avx512 MLKI_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#define MLKI_V_avx512      MLKI_TARGET_avx512 MLKI_INLINE
#define MLKI_LANES_avx512  16
typedef __m512 mlki_vec_avx512;
typedef __mmask16 mlki_mask_avx512;

/* The next functions call intrinsics that gcc implements with a deliberately undefined operand; g++ then warns of it
   (gcc bug 105593). */
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
MLKI_V_avx512 __mmask16 mlki_v_first_avx512(int64_t n) { return (__mmask16)((1u << n) - 1u); }
MLKI_V_avx512 __m512 mlki_v_set1_avx512(float x) { return _mm512_set1_ps(x); }
MLKI_V_avx512 __m512 mlki_v_zero_avx512(void) { return _mm512_setzero_ps(); }
MLKI_V_avx512 __m512 mlki_v_load_avx512(const float *p) { return _mm512_loadu_ps(p); }
MLKI_V_avx512 void mlki_v_store_avx512(float *p, __m512 v) { _mm512_storeu_ps(p, v); }
MLKI_V_avx512 __m512 mlki_v_load_n_avx512(const float *p, int64_t n) {
  return _mm512_maskz_loadu_ps(mlki_v_first_avx512(n), p);
}
MLKI_V_avx512 void mlki_v_store_n_avx512(float *p, __m512 v, int64_t n) {
  _mm512_mask_storeu_ps(p, mlki_v_first_avx512(n), v);
}
MLKI_V_avx512 __m512 mlki_v_add_avx512(__m512 a, __m512 b) { return _mm512_add_ps(a, b); }
MLKI_V_avx512 __m512 mlki_v_sub_avx512(__m512 a, __m512 b) { return _mm512_sub_ps(a, b); }
MLKI_V_avx512 __m512 mlki_v_mul_avx512(__m512 a, __m512 b) {
  __m512 r = _mm512_mul_ps(a, b);
  MLKI_OPAQUE(r);
  return r;
}
MLKI_V_avx512 __m512 mlki_v_div_avx512(__m512 a, __m512 b) { return _mm512_div_ps(a, b); }
MLKI_V_avx512 __m512 mlki_v_sqrt_avx512(__m512 a) { return _mm512_sqrt_ps(a); }
MLKI_V_avx512 __m512 mlki_v_fma_avx512(__m512 a, __m512 b, __m512 c) { return _mm512_fmadd_ps(a, b, c); }
MLKI_V_avx512 __m512 mlki_v_fnma_avx512(__m512 a, __m512 b, __m512 c) { return _mm512_fnmadd_ps(a, b, c); }
MLKI_V_avx512 __m512 mlki_v_min_avx512(__m512 a, __m512 b) { return _mm512_min_ps(a, b); }
MLKI_V_avx512 __m512 mlki_v_max_avx512(__m512 a, __m512 b) { return _mm512_max_ps(a, b); }
MLKI_V_avx512 __m512 mlki_v_abs_avx512(__m512 a) { return _mm512_abs_ps(a); }
MLKI_V_avx512 __m512 mlki_v_copysign_avx512(__m512 m, __m512 s) {
  const __m512 sign = _mm512_set1_ps(-0.0f);
  return _mm512_or_ps(_mm512_andnot_ps(sign, m), _mm512_and_ps(sign, s));
}
MLKI_V_avx512 __mmask16 mlki_v_lt_avx512(__m512 a, __m512 b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
MLKI_V_avx512 __mmask16 mlki_v_gt_avx512(__m512 a, __m512 b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
MLKI_V_avx512 __mmask16 mlki_v_eq_avx512(__m512 a, __m512 b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
MLKI_V_avx512 __m512 mlki_v_select_avx512(__mmask16 m, __m512 a, __m512 b) { return _mm512_mask_blend_ps(m, b, a); }
MLKI_V_avx512 unsigned mlki_v_bits_avx512(__mmask16 m) { return (unsigned)m; }
MLKI_V_avx512 __m512
mlki_v_round_avx512(__m512 a) { /* as the scalar row: gcc's roundscale macro warns of a conversion at -O0 */
  const __m512 big = _mm512_set1_ps(12582912.0f);
  return _mm512_sub_ps(_mm512_add_ps(a, big), big);
}
MLKI_V_avx512 __m512 mlki_v_pow2_avx512(__m512i n) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(n, _mm512_set1_epi32(127)), 23));
}
MLKI_V_avx512 __m512 mlki_v_scale2_avx512(__m512 a, __m512 n) {
  const __m512i e = _mm512_cvttps_epi32(n), half = _mm512_srai_epi32(e, 1);
  return mlki_v_mul_avx512(mlki_v_mul_avx512(a, mlki_v_pow2_avx512(half)),
                           mlki_v_pow2_avx512(_mm512_sub_epi32(e, half)));
}
MLKI_V_avx512 __m512i mlki_v_above_avx512(__m512 a) { /* bits(a) - bits(sqrt(1/2)) */
  return _mm512_sub_epi32(_mm512_castps_si512(a), _mm512_set1_epi32((int)MLKI_SQRT_HALF));
}
MLKI_V_avx512 __m512 mlki_v_expo_avx512(__m512 a) {
  return _mm512_cvtepi32_ps(_mm512_srai_epi32(mlki_v_above_avx512(a), 23));
}
MLKI_V_avx512 __m512 mlki_v_mant_avx512(__m512 a) {
  const __m512i m = _mm512_and_si512(mlki_v_above_avx512(a), _mm512_set1_epi32(0x7fffff));
  return _mm512_castsi512_ps(_mm512_add_epi32(m, _mm512_set1_epi32((int)MLKI_SQRT_HALF)));
}
MLKI_V_avx512 __m512 mlki_v_load_f16_avx512(const uint16_t *p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p));
}
MLKI_V_avx512 __m512 mlki_v_load_bf16_avx512(const uint16_t *p) {
  const __m256i h = _mm256_loadu_si256((const __m256i *)(const void *)p);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}
MLKI_V_avx512 __m512 mlki_v_load_u8_avx512(const uint8_t *p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)p)));
}
MLKI_V_avx512 void mlki_v_store_f16_avx512(uint16_t *p, __m512 v) {
  _mm256_storeu_si256((__m256i *)(void *)p, _mm512_maskz_cvtps_ph((__mmask16)0xffff, v, _MM_FROUND_TO_NEAREST_INT));
}
MLKI_V_avx512 void mlki_v_store_bf16_avx512(uint16_t *p, __m512 v) {
  const __m512i a = _mm512_castps_si512(v), high = _mm512_srli_epi32(a, 16);
  const __m512i half = _mm512_add_epi32(_mm512_set1_epi32(0x7fff), _mm512_and_si512(high, _mm512_set1_epi32(1)));
  const __m512i number = _mm512_srli_epi32(_mm512_add_epi32(a, half), 16);
  const __m512i quiet = _mm512_or_si512(high, _mm512_set1_epi32(0x40));
  const __m512i r = _mm512_mask_blend_epi32(mlki_v_eq_avx512(v, v), quiet, number);
  _mm256_storeu_si256((__m256i *)(void *)p, _mm512_cvtepi32_epi16(r));
}
MLKI_V_avx512 void mlki_v_store_u8_avx512(uint8_t *p, __m512 v) {
  const __m512 in = _mm512_min_ps(_mm512_max_ps(v, _mm512_setzero_ps()), _mm512_set1_ps(255.0f));
  _mm_storeu_si128((__m128i *)(void *)p, _mm512_cvtepi32_epi8(_mm512_cvttps_epi32(in)));
}
MLKI_V_avx512 __m512 mlki_v_even_avx512(__m512 a, __m512 b) {
  const __m512i which = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  return _mm512_permutex2var_ps(a, which, b);
}
MLKI_V_avx512 void mlki_v_transpose_avx512(__m512 *r) {
  __m512 t[16], u[16];
  int i;
  MLKI_UNROLL for (i = 0; i < 16; i += 2) t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]),
                                          t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
  MLKI_UNROLL for (i = 0; i < 16; i += 4) { /* u[i + c]: column c of each quarter, rows i .. i + 3 */
    u[i] = _mm512_shuffle_ps(t[i], t[i + 2], 0x44), u[i + 1] = _mm512_shuffle_ps(t[i], t[i + 2], 0xee);
    u[i + 2] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0x44), u[i + 3] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0xee);
  }
  MLKI_UNROLL for (i = 0; i < 4; i++) { /* quarters of rows 0-3 with 4-7, and 8-11 with 12-15 */
    t[i] = _mm512_shuffle_f32x4(u[i], u[i + 4], 0x88), t[i + 4] = _mm512_shuffle_f32x4(u[i], u[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_f32x4(u[i + 8], u[i + 12], 0x88),
          t[i + 12] = _mm512_shuffle_f32x4(u[i + 8], u[i + 12], 0xdd);
  }
  MLKI_UNROLL for (i = 0; i < 4; i++) {
    r[i] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88), r[i + 8] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd);
    r[i + 4] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0x88),
          r[i + 12] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0xdd);
  }
}
MLKI_V_avx512 __m512 mlki_v_skip_avx512(__m512 a, __m512 b) {
  const __m512i at = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 17, 19, 21, 23, 25, 27, 29, 31);
  return _mm512_permutex2var_ps(a, at, b);
}
MLKI_V_avx512 __m512 mlki_v_swap_avx512(__m512 a) { return _mm512_permute_ps(a, 0xb1); }
MLKI_V_avx512 float mlki_v_sum16_avx512(const __m512 *r) {
  const __m256 s8 = _mm256_add_ps(_mm512_castps512_ps256(r[0]), _mm512_extractf32x8_ps(r[0], 1));
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
}
MLKI_V_avx512 void mlki_v_stream_avx512(void *p, __m512 v) { _mm512_stream_ps((float *)p, v); }
MLKI_V_avx512 void mlki_v_fence_avx512(void) { _mm_sfence(); }
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
#endif

#if MLKI_NEON
#include <arm_neon.h>
#define MLKI_TARGET_neon
#define MLKI_V_neon     MLKI_INLINE
#define MLKI_LANES_neon 4
typedef float32x4_t mlki_vec_neon;
typedef uint32x4_t mlki_mask_neon;

MLKI_V_neon float32x4_t mlki_v_set1_neon(float x) { return vdupq_n_f32(x); }
MLKI_V_neon float32x4_t mlki_v_zero_neon(void) { return vdupq_n_f32(0.0f); }
MLKI_V_neon float32x4_t mlki_v_load_neon(const float *p) { return vld1q_f32(p); }
MLKI_V_neon void mlki_v_store_neon(float *p, float32x4_t v) { vst1q_f32(p, v); }
MLKI_V_neon float32x4_t mlki_v_load_n_neon(const float *p, int64_t n) {
  float32x4_t r = vdupq_n_f32(0.0f);
  if (n > 0) r = vld1q_lane_f32(p, r, 0);
  if (n > 1) r = vld1q_lane_f32(p + 1, r, 1);
  if (n > 2) r = vld1q_lane_f32(p + 2, r, 2);
  if (n > 3) r = vld1q_lane_f32(p + 3, r, 3);
  return r;
}
MLKI_V_neon void mlki_v_store_n_neon(float *p, float32x4_t v, int64_t n) {
  if (n > 0) vst1q_lane_f32(p, v, 0);
  if (n > 1) vst1q_lane_f32(p + 1, v, 1);
  if (n > 2) vst1q_lane_f32(p + 2, v, 2);
  if (n > 3) vst1q_lane_f32(p + 3, v, 3);
}
MLKI_V_neon float32x4_t mlki_v_add_neon(float32x4_t a, float32x4_t b) { return vaddq_f32(a, b); }
MLKI_V_neon float32x4_t mlki_v_sub_neon(float32x4_t a, float32x4_t b) { return vsubq_f32(a, b); }
MLKI_V_neon float32x4_t mlki_v_mul_neon(float32x4_t a, float32x4_t b) {
  float32x4_t r = vmulq_f32(a, b);
  MLKI_OPAQUE(r);
  return r;
}
MLKI_V_neon float32x4_t mlki_v_div_neon(float32x4_t a, float32x4_t b) { return vdivq_f32(a, b); }
MLKI_V_neon float32x4_t mlki_v_sqrt_neon(float32x4_t a) { return vsqrtq_f32(a); }
MLKI_V_neon float32x4_t mlki_v_fma_neon(float32x4_t a, float32x4_t b, float32x4_t c) { return vfmaq_f32(c, a, b); }
MLKI_V_neon float32x4_t mlki_v_fnma_neon(float32x4_t a, float32x4_t b, float32x4_t c) { return vfmsq_f32(c, a, b); }
MLKI_V_neon uint32x4_t mlki_v_lt_neon(float32x4_t a, float32x4_t b) { return vcltq_f32(a, b); }
MLKI_V_neon uint32x4_t mlki_v_gt_neon(float32x4_t a, float32x4_t b) { return vcgtq_f32(a, b); }
MLKI_V_neon uint32x4_t mlki_v_eq_neon(float32x4_t a, float32x4_t b) { return vceqq_f32(a, b); }
MLKI_V_neon float32x4_t mlki_v_select_neon(uint32x4_t m, float32x4_t a, float32x4_t b) { return vbslq_f32(m, a, b); }
MLKI_V_neon float32x4_t mlki_v_min_neon(float32x4_t a, float32x4_t b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
MLKI_V_neon float32x4_t mlki_v_max_neon(float32x4_t a, float32x4_t b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
MLKI_V_neon float32x4_t mlki_v_abs_neon(float32x4_t a) { return vabsq_f32(a); }
MLKI_V_neon float32x4_t mlki_v_copysign_neon(float32x4_t m, float32x4_t s) {
  return vbslq_f32(vdupq_n_u32(0x80000000u), s, m);
}
MLKI_V_neon unsigned mlki_v_bits_neon(uint32x4_t m) {
  static const uint32_t weight[4] = {1, 2, 4, 8};
  return vaddvq_u32(vandq_u32(m, vld1q_u32(weight)));
}
MLKI_V_neon float32x4_t mlki_v_round_neon(float32x4_t a) { return vrndnq_f32(a); }
MLKI_V_neon float32x4_t mlki_v_pow2_neon(int32x4_t n) {
  return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n, vdupq_n_s32(127)), 23));
}
MLKI_V_neon float32x4_t mlki_v_scale2_neon(float32x4_t a, float32x4_t n) {
  const int32x4_t e = vcvtq_s32_f32(n), half = vshrq_n_s32(e, 1);
  return mlki_v_mul_neon(mlki_v_mul_neon(a, mlki_v_pow2_neon(half)), mlki_v_pow2_neon(vsubq_s32(e, half)));
}
MLKI_V_neon uint32x4_t mlki_v_above_neon(float32x4_t a) { /* bits(a) - bits(sqrt(1/2)) */
  return vsubq_u32(vreinterpretq_u32_f32(a), vdupq_n_u32(MLKI_SQRT_HALF));
}
MLKI_V_neon float32x4_t mlki_v_expo_neon(float32x4_t a) {
  return vcvtq_f32_s32(vshrq_n_s32(vreinterpretq_s32_u32(mlki_v_above_neon(a)), 23));
}
MLKI_V_neon float32x4_t mlki_v_mant_neon(float32x4_t a) {
  const uint32x4_t m = vandq_u32(mlki_v_above_neon(a), vdupq_n_u32(0x7fffffu));
  return vreinterpretq_f32_u32(vaddq_u32(m, vdupq_n_u32(MLKI_SQRT_HALF)));
}
MLKI_V_neon float32x4_t mlki_v_load_f16_neon(const uint16_t *p) {
  return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
}
MLKI_V_neon float32x4_t mlki_v_load_bf16_neon(const uint16_t *p) {
  return vreinterpretq_f32_u32(vshlq_n_u32(vmovl_u16(vld1_u16(p)), 16));
}
MLKI_V_neon float32x4_t mlki_v_load_u8_neon(const uint8_t *p) {
  uint32_t four;
  memcpy(&four, p, 4);
  return vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(four)))));
}
MLKI_V_neon void mlki_v_store_f16_neon(uint16_t *p, float32x4_t v) {
  vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(v)));
}
MLKI_V_neon void mlki_v_store_bf16_neon(uint16_t *p, float32x4_t v) {
  const uint32x4_t a = vreinterpretq_u32_f32(v), high = vshrq_n_u32(a, 16);
  const uint32x4_t half = vaddq_u32(vdupq_n_u32(0x7fffu), vandq_u32(high, vdupq_n_u32(1)));
  const uint32x4_t number = vshrq_n_u32(vaddq_u32(a, half), 16), quiet = vorrq_u32(high, vdupq_n_u32(0x40));
  vst1_u16(p, vmovn_u32(vbslq_u32(vceqq_f32(v, v), number, quiet)));
}
MLKI_V_neon void mlki_v_store_u8_neon(uint8_t *p, float32x4_t v) { /* the conversion saturates, NaN gives 0 */
  const uint16x4_t h = vqmovn_u32(vcvtq_u32_f32(v));
  const uint32_t four = vget_lane_u32(vreinterpret_u32_u8(vqmovn_u16(vcombine_u16(h, h))), 0);
  memcpy(p, &four, 4);
}
MLKI_V_neon float32x4_t mlki_v_even_neon(float32x4_t a, float32x4_t b) { return vuzp1q_f32(a, b); }
MLKI_V_neon void mlki_v_transpose_neon(float32x4_t *r) {
  const float32x4x2_t a = vtrnq_f32(r[0], r[1]), b = vtrnq_f32(r[2], r[3]);
  r[0] = vcombine_f32(vget_low_f32(a.val[0]), vget_low_f32(b.val[0]));
  r[1] = vcombine_f32(vget_low_f32(a.val[1]), vget_low_f32(b.val[1]));
  r[2] = vcombine_f32(vget_high_f32(a.val[0]), vget_high_f32(b.val[0]));
  r[3] = vcombine_f32(vget_high_f32(a.val[1]), vget_high_f32(b.val[1]));
}
MLKI_V_neon float32x4_t mlki_v_skip_neon(float32x4_t a, float32x4_t b) {
  return vcombine_f32(vget_low_f32(vuzp1q_f32(a, a)), vget_low_f32(vuzp2q_f32(b, b)));
}
MLKI_V_neon float32x4_t mlki_v_swap_neon(float32x4_t a) { return vrev64q_f32(a); }
MLKI_V_neon float mlki_v_sum16_neon(const float32x4_t *r) {
  const float32x4_t s = vaddq_f32(vaddq_f32(r[0], r[2]), vaddq_f32(r[1], r[3]));
  const float32x2_t t = vadd_f32(vget_low_f32(s), vget_high_f32(s));
  return vget_lane_f32(t, 0) + vget_lane_f32(t, 1);
}
MLKI_V_neon void mlki_v_stream_neon(void *p, float32x4_t v) { memcpy(p, &v, sizeof v); }
MLKI_V_neon void mlki_v_fence_neon(void) {}
#endif

/* clang-format on */

/* >>isa ----------------------------------------------------------------------------------------------------------
   One kernel source, one row of functions per instruction set. The sections from >>math to >>attention_kernels are
   written in the vocabulary's bare names (mlki_v_fma, mlki_vec) and define functions as MLKI_FN(name). Both append
   MLKI_SUFFIX when they are used, so that a pass over those sections is a change of this one macro: below, the header
   includes itself once for each instruction set beyond the scalar one, and the scalar pass follows by falling through,
   so that an editor shows live code.
   A header cannot include itself by __FILE__: that is relative to the working directory, quoted includes to the
   including file. Hence the literal name. */

#ifndef MLK_FILENAME
#define MLK_FILENAME "mlk.h"
#endif
#if defined(__has_include)
#if !__has_include(MLK_FILENAME)
#error "mlk.h was renamed: define MLK_FILENAME to its present name, with quotes, before the implementation"
#endif
#endif

#define MLKI_V_scalar      MLKI_INLINE
#define MLKI_TARGET_scalar /* the baseline of the compilation */

/* The register tile of the matmul strip, MR rows x NV vectors. The accumulators, NV vectors of B and one broadcast
   of A must fit the 16 (avx2) or 32 registers; at least 8 chains hide the latency of two multiply-add units. The
   tile of distances, PQ queries x PX rows, takes 16 / LANES accumulators a pair. */
#define MLKI_ISA_scalar MLK_ISA_SCALAR
#define MLKI_ISA_neon   MLK_ISA_NEON
#define MLKI_ISA_avx2   MLK_ISA_AVX2
#define MLKI_ISA_avx512 MLK_ISA_AVX512
#define MLKI_MR_scalar  4
#define MLKI_NV_scalar  2
#define MLKI_PQ_scalar  1
#define MLKI_PX_scalar  1
#define MLKI_MR_neon    8
#define MLKI_NV_neon    3
#define MLKI_PQ_neon    2
#define MLKI_PX_neon    2
#define MLKI_MR_avx2    6
#define MLKI_NV_avx2    2
#define MLKI_PQ_avx2    2
#define MLKI_PX_avx2    2
#define MLKI_MR_avx512  14
#define MLKI_NV_avx512  2
#define MLKI_PQ_avx512  5
#define MLKI_PX_avx512  4

/* Vectors of sums that the tile of planes keeps; with one vector of the image and the weights
   they fit the registers. */
#define MLKI_SUMS_scalar 8
#define MLKI_SUMS_neon   24
#define MLKI_SUMS_avx2   12
#define MLKI_SUMS_avx512 24

/* Rows of sums next to a square block of vectors that is turned. */
#define MLKI_TURN_MOST_scalar 8
#define MLKI_TURN_MOST_neon   8
#define MLKI_TURN_MOST_avx2   4
#define MLKI_TURN_MOST_avx512 8

/* Accumulators of a reduction along columns: 16 where registers allow. */
#define MLKI_TURN_scalar 8
#define MLKI_TURN_neon   16
#define MLKI_TURN_avx2   8
#define MLKI_TURN_avx512 16

/* Are there stores past the caches? */
#define MLKI_STREAMS_scalar 0
#define MLKI_STREAMS_neon   0
#define MLKI_STREAMS_avx2   1
#define MLKI_STREAMS_avx512 1

/* Vectors of means that are made together: whole lines of 64 bytes also of 16-bit outputs where there are streaming
   stores, and a multiple of the 16 lanes of a sum. */
#define MLKI_MEANS_scalar 4
#define MLKI_MEANS_neon   8
#define MLKI_MEANS_avx2   8
#define MLKI_MEANS_avx512 4

#define MLKI_LANES_MAX      16
#define MLKI_CONV_PANEL_MAX 32 /* most pixels of a panel: MR or NR */

#endif /* !MLKI_PASS */

#if !defined(MLKI_FN) /* here also for the device pass of mlk_cuda.cuh, which takes >>math alone */
#define MLKI_PASTE(a, b)  a##b
#define MLKI_APPEND(a, b) MLKI_PASTE(a, b)
#define MLKI_FN(name)     MLKI_APPEND(name, MLKI_SUFFIX)

#define MLKI_KERNEL     static MLKI_FN(MLKI_TARGET)
#define MLKI_INLINE_ISA MLKI_FN(MLKI_V)
#define MLKI_LANES      MLKI_FN(MLKI_LANES)
#define MLKI_MR         MLKI_FN(MLKI_MR)
#define MLKI_NV         MLKI_FN(MLKI_NV)
#define MLKI_NR         (MLKI_NV * MLKI_LANES)
#define MLKI_PQ         MLKI_FN(MLKI_PQ)
#define MLKI_PX         MLKI_FN(MLKI_PX)
#define MLKI_TURN       MLKI_FN(MLKI_TURN)
#define MLKI_TURN_MOST  MLKI_FN(MLKI_TURN_MOST)
#define MLKI_SUMS       MLKI_FN(MLKI_SUMS)
#define MLKI_MEANS      MLKI_FN(MLKI_MEANS)
#define MLKI_STREAMS    MLKI_FN(MLKI_STREAMS)
#define MLKI_V16        (16 / MLKI_LANES) /* vectors that hold the 16 lanes of a sum */

#define mlki_vec          MLKI_FN(mlki_vec)
#define mlki_mask         MLKI_FN(mlki_mask)
#define mlki_v_zero       MLKI_FN(mlki_v_zero)
#define mlki_v_set1       MLKI_FN(mlki_v_set1)
#define mlki_v_load       MLKI_FN(mlki_v_load)
#define mlki_v_store      MLKI_FN(mlki_v_store)
#define mlki_v_load_n     MLKI_FN(mlki_v_load_n)
#define mlki_v_store_n    MLKI_FN(mlki_v_store_n)
#define mlki_v_add        MLKI_FN(mlki_v_add)
#define mlki_v_sub        MLKI_FN(mlki_v_sub)
#define mlki_v_mul        MLKI_FN(mlki_v_mul)
#define mlki_v_div        MLKI_FN(mlki_v_div)
#define mlki_v_sqrt       MLKI_FN(mlki_v_sqrt)
#define mlki_v_fma        MLKI_FN(mlki_v_fma)
#define mlki_v_fnma       MLKI_FN(mlki_v_fnma)
#define mlki_v_min        MLKI_FN(mlki_v_min)
#define mlki_v_max        MLKI_FN(mlki_v_max)
#define mlki_v_abs        MLKI_FN(mlki_v_abs)
#define mlki_v_copysign   MLKI_FN(mlki_v_copysign)
#define mlki_v_lt         MLKI_FN(mlki_v_lt)
#define mlki_v_gt         MLKI_FN(mlki_v_gt)
#define mlki_v_eq         MLKI_FN(mlki_v_eq)
#define mlki_v_select     MLKI_FN(mlki_v_select)
#define mlki_v_bits       MLKI_FN(mlki_v_bits)
#define mlki_v_round      MLKI_FN(mlki_v_round)
#define mlki_v_scale2     MLKI_FN(mlki_v_scale2)
#define mlki_v_expo       MLKI_FN(mlki_v_expo)
#define mlki_v_mant       MLKI_FN(mlki_v_mant)
#define mlki_v_load_f16   MLKI_FN(mlki_v_load_f16)
#define mlki_v_load_bf16  MLKI_FN(mlki_v_load_bf16)
#define mlki_v_load_u8    MLKI_FN(mlki_v_load_u8)
#define mlki_v_store_f16  MLKI_FN(mlki_v_store_f16)
#define mlki_v_store_bf16 MLKI_FN(mlki_v_store_bf16)
#define mlki_v_store_u8   MLKI_FN(mlki_v_store_u8)
#define mlki_v_even       MLKI_FN(mlki_v_even)
#define mlki_v_transpose  MLKI_FN(mlki_v_transpose)
#define mlki_v_sum16      MLKI_FN(mlki_v_sum16)
#define mlki_v_skip       MLKI_FN(mlki_v_skip)
#define mlki_v_swap       MLKI_FN(mlki_v_swap)
#define mlki_v_stream     MLKI_FN(mlki_v_stream)
#define mlki_v_fence      MLKI_FN(mlki_v_fence)
#endif /* !MLKI_FN */

#if !defined(MLKI_PASS)

#define MLKI_SWEEP       8   /* rows of B that a sweep reads side by side */
#define MLKI_SWEEP_AHEAD 256 /* floats that are asked for ahead in each: 8 KiB in all */
#define MLKI_SWEEP_ROWS  8   /* rows of C it has in registers at most */

/* How a strip's sums meet what is in C: a chain from zero that replaces C; the chain that C holds, continued; a
   chain from zero that is added to C (the next segment). */
typedef enum mlki_chain { MLKI_START, MLKI_CONTINUE, MLKI_ADD } mlki_chain;

/* rows (<= MR) rows of C against any number of columns. A: element (i, p) at a[i * a_rs + p * a_cs]; packed panels
   have a_rs = 1. B: element (p, j) at b[(j / NR) * b_panel + p * b_rs + j % NR]; unpacked b_panel = NR, packed b_rs
   = NR, b_panel = k NR. C: row i at c + i * c_rs, columns dense. */
typedef struct mlki_strip {
  const float *a, *b;
  float *c;
  int64_t a_rs, a_cs, b_rs, b_panel, c_rs;
  int64_t rows, cols, k;
  mlki_chain chain;
} mlki_strip;

/* See mlk_matmul_desc; p == NULL: absent. Pointers are those of the current matrix of the batch. */
typedef struct mlki_epilogue {
  float alpha, beta;
  mlk_activation activation;
  mlki_mat c, bias, residual, preact, d;
} mlki_epilogue;

/* rows (<= MR) written channels at vectors x LANES places: row i at c + i * c_rs is the chain over terms p < k of
   w[p * rows + i] times x[at[p] + place]. */
typedef struct mlki_planes {
  const float *w, *x;
  const int32_t *at;
  float *c;
  int64_t rows, k, c_rs, vectors;
  mlki_chain chain; /* MLKI_START or MLKI_ADD */
} mlki_planes;

typedef enum mlki_pair { MLKI_PAIR_L2, MLKI_PAIR_IP } mlki_pair; /* what a 16-lane sum runs over */

/* One panel of rows (<= MR) queries, packed [d][rows], against panels of NR base rows, packed [panel][d][NR].
   acc = init[column] + sum over d of q x. A pair with acc > limit[row] is out; all others are appended to hits as
   column << 4 | row. */
typedef struct mlki_filter {
  const float *q, *x, *init, *limit;
  int64_t rows, panels, d;
  uint32_t *hits;
} mlki_filter;

/* Rows of n elements: out[j] = op(a[j da], b[j db]), da and db 0 or LANES per vector of out: an operand that is one
   value is given as 16 copies of it with a step of 0. See mlk_map_op. */
typedef struct mlki_map_row {
  mlk_map_op op;
  mlk_activation activation;
  float alpha, beta;
  const float *a, *b;
  int a_steps, b_steps; /* 1: dense, 0: one value */
  float *out;
  int64_t n;
} mlki_map_row;

/* The constants of mlk_sgd and mlk_adamw, as their descriptors name them. */
typedef struct mlki_optimizer {
  float lr, momentum, weight_decay; /* SGD; lr is -lr */
  int nesterov;
  float beta1, beta2, b1, b2, d, r, q, epsilon; /* AdamW; r is -r */
} mlki_optimizer;

/* The 16 lanes of a sum between two rows: see mlki_reduce_row and mlki_reduce_columns in >>map_kernels. */
#define MLKI_REDUCE_ROWS 4 /* sums that run side by side */

/* Outputs 0 .. n of pooling along a vector axis; all windows have the same taps inside x. Output i is at y + i y_step;
   its tap (a, b, c) at x + i x_step + a tap_step[0] + b tap_step[1] + c tap_step[2], whose place in [in...] is place +
   i place_step + a tap_place[0] + ..., less than 2^24 beyond that of tap 0. indices: NULL, or where places go. */
typedef struct mlki_pool_run {
  int largest; /* else the sum, divided by divisor */
  float divisor;
  const float *x;
  float *y;
  int64_t *indices;
  int64_t n, x_step, y_step, index_step, place, place_step;
  int64_t taps[3], tap_step[3], tap_place[3];
} mlki_pool_run;

/* What turns the products of one query with consecutive keys into scores. */
typedef struct mlki_scores {
  float softcap; /* 0: none */
  int alibi;
  float slope, ahead; /* alibi: minus the slope; the query's position less the first key's */
  const float *bias;  /* of the first key; NULL: none */
  const uint8_t *mask;
  int64_t bias_step, mask_step;
} mlki_scores;

#define MLKI_TURN_ROWS 4 /* queries that keys are turned for in registers: with more it pays to pack them */

/* Products of up to TURN_MOST queries, element (r, p) at q[r * q_rs + p * q_cs], and n keys that lie as dense rows,
   pitch apart. */
typedef struct mlki_turn {
  const float *q, *keys;
  int64_t q_rs, q_cs, rows, pitch, n, depth;
  int64_t ahead;       /* floats from a key's element to one that is asked for; 0: none is */
  int64_t last, after; /* the same from element last of a key on: after */
  float *c;            /* [rows][n] */
  int64_t c_pitch;
  int add; /* c is added to: a further segment of depth */
} mlki_turn;

#define MLKI_AVERAGE_ROWS 16 /* rows that are read side by side: with more of them reading becomes slower */

/* n <= MLKI_AVERAGE_ROWS rows of count elements into one: t = before or +0, t = fma(weight[r], x[r], t) for each row,
   ascending. With after that goes there; else factor t, rounded to the type to, goes to all outputs, of which each may
   be a row. */
typedef struct mlki_average_row {
  mlk_dtype from, to; /* MLK_F32, MLK_F16 or MLK_BF16 */
  int n, outs;
  const char *x[MLKI_AVERAGE_ROWS];
  float weight[MLKI_AVERAGE_ROWS], factor;
  const float *before; /* NULL: +0 */
  float *after;        /* NULL: outputs */
  char *out[MLK_MAX_REPLICAS];
  int stream;    /* past the caches, where the row has MLKI_STREAMS: one output, aligned to its elements */
  float *lanes;  /* NULL, or 16 lanes of a sum of squares of the means, as for reduce_rows */
  int64_t phase; /* of the first element among them */
  int64_t count;
} mlki_average_row;

struct mlki_kernels {
  mlk_isa isa;
  int lanes, mr, nr, turn_most, streams;
  /* to[p * pitch + i] = from[i * ws + p * ks] for i < width, 0 for width <= i < pitch. Writes up to 15 floats past
     the end. */
  void (*pack)(float *to, int64_t width, int64_t pitch, int64_t k, const float *from, int64_t ws, int64_t ks);
  void (*pack_panels)(float *to, int64_t cols, int64_t k, const float *from, int64_t ws, int64_t ks);
  void (*strip)(const mlki_strip *s);
  void (*sweep)(const mlki_strip *s,
                int64_t height); /* a strip of MLKI_SWEEP terms and whole panels of columns, START or CONTINUE */
  /* rows x cols sums at acc, placed at (i0, j0) of the matrices of e */
  void (*epilogue)(const mlki_epilogue *e, const float *acc, int64_t acc_rs, int64_t i0, int64_t j0, int64_t rows,
                   int64_t cols);
  /* c += t, n floats */
  void (*add)(float *c, const float *t, int64_t n);
  /* out[i * out_rs + j] = 16-lane sum of kind over q[i * q_rs ..] and x[j * x_rs ..]; ahead: see mlki_rows_ahead */
  void (*pairs)(mlki_pair kind, int64_t nq, int64_t nx, int64_t d, const float *q, int64_t q_rs, const float *x,
                int64_t x_rs, int64_t ahead, float *out, int64_t out_rs);
  /* see mlki_knn_panel in >>kernels */
  void (*knn_panel)(mlk_metric metric, float *panel, int64_t d, const float *center, float coefficient, float *init);
  int64_t (*filter)(const mlki_filter *f); /* how many hits */
  int64_t (*below)(const float *key, int64_t n, float limit,
                   uint32_t *index);                      /* indices with !(key > limit); how many */
  void (*spin)(int64_t rounds, float *out);               /* 10 fused multiply-adds of LANES a round */
  void (*read)(const float *from, int64_t n, float *out); /* reads n floats, n a multiple of 128 */
  /* to[p * pitch + i] = from[i * ws + p * ks] for i < width, p < k; nothing else is written */
  void (*place)(float *to, int64_t width, int64_t pitch, int64_t k, const float *from, int64_t ws, int64_t ks);
  void (*planes)(const mlki_planes *s);
  /* to[p * pitch + l] = from[lane[l] + p * ks] for l < lanes, 0 for lanes <= l < LANES; p < k */
  void (*spread)(float *to, int64_t pitch, int64_t k, const float *from, const int64_t *lane, int64_t lanes,
                 int64_t ks);
  /* pixels sums of lanes channels each: to[i * to_step + l] = chain over p < k of w[p * LANES + l] times
     x[at[p] + i * step + l]; chain: MLKI_START or MLKI_ADD */
  void (*lanes_sums)(float *to, int64_t to_step, int64_t lanes, int64_t pixels, const float *w, const float *x,
                     const int32_t *at, int64_t k, int64_t step, mlki_chain chain);
  /* Continues n chains of LANES floats each: chain j by dy[i * LANES ..] x[at[j] + i * step ..] for i < count. */
  void (*lanes_chains)(float *chain, int64_t n, const float *dy, const float *x, const int32_t *at, int64_t count,
                       int64_t step);
  void (*map)(const mlki_map_row *m);
  void (*widen)(mlk_dtype from, const void *p, float *to, int64_t n);  /* f16, bf16 or u8 to f32 */
  void (*narrow)(mlk_dtype to, const float *from, void *p, int64_t n); /* f32 to f16, bf16 or u8 */
  /* lane (phase + j) % 16 of row i goes on with x[i * x_rs + j], j < n; lanes of row i at lanes + 16 i; rows <=
     MLKI_REDUCE_ROWS */
  void (*reduce_rows)(mlk_reduce_op op, float *lanes, int64_t rows, const float *x, int64_t x_rs, int64_t n,
                      int64_t phase);
  /* lane (phase + i) % 16 of column j goes on with x[i * x_rs + j], i < n; lane l of column j at
     lanes[l * width + j] */
  void (*reduce_columns)(mlk_reduce_op op, float *lanes, int64_t width, const float *x, int64_t x_rs, int64_t n,
                         int64_t phase);
  /* sums[i] = the 16 lanes at lanes + 16 i to one; sums[j] = those at lanes[l * width + j]. Destroy the lanes. */
  void (*reduce_tree_rows)(mlk_reduce_op op, float *lanes, int64_t rows, float *sums);
  void (*reduce_tree_columns)(mlk_reduce_op op, float *lanes, int64_t width, float *sums);
  /* the first i < n with x[i] == value, or both NaN; n: there is none */
  int64_t (*find)(const float *x, int64_t n, float value);
  /* first[j] = the first i < n + base with x[i - base][j] == value[j] or both NaN, where first[j] < 0; gives how many
     columns of width still have none */
  int64_t (*find_columns)(const float *x, int64_t x_rs, int64_t n, int64_t width, const float *value, int64_t base,
                          int64_t *first);
  void (*sgd)(const mlki_optimizer *o, float *p, const float *g, float *v, int64_t n); /* v NULL: no velocity */
  void (*adamw)(const mlki_optimizer *o, float *p, const float *g, float *m, float *v, int64_t n);
  /* see >>layer_kernels */
  void (*pool)(const mlki_pool_run *r);
  float (*row_max)(const float *x, int64_t n);
  float (*row_exp)(float *e, const float *x, int64_t n, float max);
  void (*row_quotient)(float *y, const float *e, int64_t n, float divisor, float scale);
  void (*row_log_softmax)(float *y, const float *x, int64_t n, float max, float log_sum);
  float (*row_sum)(const float *x, int64_t n);
  void (*row_softmax_grad)(float *dx, const float *y, const float *dy, int64_t n, float sum, int log);
  float (*row_moment)(const float *x, int64_t n, float mean);
  void (*row_normal)(float *y, const float *x, const float *gamma, const float *beta, int64_t n, float mean,
                     float rstd);
  void (*row_normal_sums)(const float *x, const float *dy, const float *gamma, int64_t n, float mean, float rstd,
                          float sums[2]);
  void (*row_normal_grad)(float *dx, const float *x, const float *dy, const float *gamma, int64_t n, float mean,
                          float rstd, float a, float b);
  void (*normal_columns)(float *dgamma, float *dbeta, const float **x, const float **dy, const float *mean,
                         const float *rstd, int64_t rows, int64_t n);
  void (*rotate)(float *y, const float *x, const float *c, const float *s, int64_t pairs, int interleaved);
  /* see >>attention_kernels */
  void (*score_row)(const mlki_scores *c, float *x, int64_t n);
  void (*score_grad_row)(const mlki_scores *c, float *x, float *t, int64_t n, float lse, float delta, int after);
  void (*fold_row)(float *o, const float *part, int64_t n, float a, float c);
  void (*unfold_row)(float *y, const float *o, int64_t n, float l);
  int (*finite_row)(const float *x, int64_t n);
  void (*turn)(const mlki_turn *t);
  int (*average)(const mlki_average_row *a); /* 0: some mean is not finite; 1 with after */
  void (*fence)(void);                       /* after streams */
};

#if MLKI_AVX512
#define MLKI_PASS
#define MLKI_SUFFIX _avx512
#include MLK_FILENAME
#undef MLKI_SUFFIX
#undef MLKI_PASS
#endif
#if MLKI_AVX2
#define MLKI_PASS
#define MLKI_SUFFIX _avx2
#include MLK_FILENAME
#undef MLKI_SUFFIX
#undef MLKI_PASS
#endif
#if MLKI_NEON
#define MLKI_PASS
#define MLKI_SUFFIX _neon
#include MLK_FILENAME
#undef MLKI_SUFFIX
#undef MLKI_PASS
#endif
#define MLKI_SUFFIX _scalar
#endif /* !MLKI_PASS */

/* >>math ---------------------------------------------------------------------------------------------------------
   Elementary functions in the vocabulary alone: each lane sees the same rounded operations at every vector width.
   Nothing branches on data; lanes that take the other side of a select compute values that are dropped.
   Methods: argument reduction after Cody & Waite, "Software Manual for the Elementary Functions", 1980; error-free
   products and sums by fma after Muller, "Elementary Functions", 3rd ed., 2016; coefficients by Remez exchange with
   stepwise rounding to f32 (tests/fit_math.py). The bounds are the greatest |result - exact| in ulp of the exact result
   over all floats. */

/* Splits x = n ln 2 + r, n integral, |r| <= ln(2)/2 + small, for |x| < 200.
   n ln2hi has 24 + 8 bits but x - n ln2hi is a multiple of 2^-25 below 2^-1, so the first fma is
   exact; only the second rounds.  n is NaN where x is. */
MLKI_INLINE_ISA mlki_vec MLKI_FN(mlki_exp_reduce)(mlki_vec x, mlki_vec *n) {
  *n = mlki_v_round(mlki_v_mul(x, mlki_v_set1(1.44269502e+00f)));
  x = mlki_v_fnma(*n, mlki_v_set1(6.93147182e-01f), x);
  return mlki_v_fnma(*n, mlki_v_set1(-1.90465421e-09f), x);
}

/* The same for x + lo, |lo| << 1: lo joins the small part of n ln 2 before the one rounding. */
MLKI_INLINE_ISA mlki_vec MLKI_FN(mlki_exp_reduce2)(mlki_vec x, mlki_vec lo, mlki_vec *n) {
  *n = mlki_v_round(mlki_v_mul(x, mlki_v_set1(1.44269502e+00f)));
  x = mlki_v_fnma(*n, mlki_v_set1(6.93147182e-01f), x);
  return mlki_v_add(x, mlki_v_fnma(*n, mlki_v_set1(-1.90465421e-09f), lo));
}

/* e^r = 1 + r + r^2 q(r) for |r| <= 0.3467; q: minimax, relative error 2^-28.2. */
MLKI_INLINE_ISA mlki_vec MLKI_FN(mlki_exp_poly)(mlki_vec r) {
  mlki_vec q = mlki_v_set1(1.38385862e-03f);
  q = mlki_v_fma(q, r, mlki_v_set1(8.36918317e-03f));
  q = mlki_v_fma(q, r, mlki_v_set1(4.16681021e-02f));
  q = mlki_v_fma(q, r, mlki_v_set1(1.66665167e-01f));
  q = mlki_v_fma(q, r, mlki_v_set1(4.99999940e-01f));
  q = mlki_v_fma(q, r, mlki_v_set1(1.0f));
  return mlki_v_fma(q, r, mlki_v_set1(1.0f));
}

/* e^x for -200 < x < 128 or NaN; no clamp. */
MLKI_INLINE_ISA mlki_vec MLKI_FN(mlki_exp_bounded)(mlki_vec x) {
  mlki_vec n;
  mlki_vec r = MLKI_FN(mlki_exp_reduce)(x, &n);
  return mlki_v_scale2(MLKI_FN(mlki_exp_poly)(r), n);
}

/* e^x, 0.892 ulp. inf above 88.7228317, denormal below -87.3365402, 0 below -103.972076; the two bounds lie outside
   that range and let a NaN through. */
MLKI_INLINE_ISA mlki_vec MLKI_FN(mlki_exp)(mlki_vec x) {
  x = mlki_v_min(mlki_v_set1(89.0f), x);
  x = mlki_v_max(mlki_v_set1(-104.0f), x);
  return MLKI_FN(mlki_exp_bounded)(x);
}

/* tanh a = a + a s p(s), s = a^2, for 0 <= a < 0.625; p: minimax, relative error 2^-27.7. */
MLKI_INLINE_ISA mlki_vec MLKI_FN(mlki_tanh_small)(mlki_vec a) {
  mlki_vec s = mlki_v_mul(a, a);
  mlki_vec p = mlki_v_set1(-5.69229620e-03f);
  p = mlki_v_fma(p, s, mlki_v_set1(2.06281673e-02f));
  p = mlki_v_fma(p, s, mlki_v_set1(-5.37365153e-02f));
  p = mlki_v_fma(p, s, mlki_v_set1(1.33314058e-01f));
  p = mlki_v_fma(p, s, mlki_v_set1(-3.33332807e-01f));
  return mlki_v_fma(mlki_v_mul(p, s), a, a);
}

/* tanh x, 1.363 ulp.  Polynomial below 0.625, 1 - 2 / (e^(2|x|) + 1) above, +-1 above 9.0109129.
   Odd exactly: works on |x| and copies the sign, so -0 stays -0. */
MLKI_INLINE_ISA mlki_vec MLKI_FN(mlki_tanh)(mlki_vec x) {
  mlki_vec one = mlki_v_set1(1.0f);
  mlki_vec a = mlki_v_min(mlki_v_set1(10.0f), mlki_v_abs(x));
  mlki_vec e = MLKI_FN(mlki_exp_bounded)(mlki_v_add(a, a));
  mlki_vec t = mlki_v_sub(one, mlki_v_div(mlki_v_set1(2.0f), mlki_v_add(e, one)));
  mlki_mask small = mlki_v_lt(a, mlki_v_set1(0.625f));
  return mlki_v_copysign(mlki_v_select(small, MLKI_FN(mlki_tanh_small)(a), t), x);
}

/* y / (1 + z) for 0 <= z <= 1, y the size of 1: the residual y - q (1 + z) = (y - q) - q z, which
   sees 1 + z unrounded, corrects the quotient q to about half an ulp (its own factor 1 / (1 + z)
   may be left out). */
MLKI_INLINE_ISA mlki_vec MLKI_FN(mlki_div_1p)(mlki_vec y, mlki_vec z) {
  mlki_vec q = mlki_v_div(y, mlki_v_add(mlki_v_set1(1.0f), z));
  return mlki_v_add(q, mlki_v_fnma(q, z, mlki_v_sub(y, q)));
}

/* 1 / (1 + e^-x), 1.647 ulp.  With z = e^-|x|: 1 / (1 + z) for x > 0, else z / (1 + z), which
   goes through the denormals to 0 with e^x. */
MLKI_INLINE_ISA mlki_vec MLKI_FN(mlki_sigmoid)(mlki_vec x) {
  mlki_vec m = mlki_v_max(mlki_v_set1(-104.0f), mlki_v_copysign(x, mlki_v_set1(-1.0f)));
  mlki_vec z = MLKI_FN(mlki_exp_bounded)(m);
  mlki_mask pos = mlki_v_gt(x, mlki_v_set1(0.0f));
  return MLKI_FN(mlki_div_1p)(mlki_v_select(pos, mlki_v_set1(1.0f), z), z);
}

/* x sigmoid(t), where t has the sign of x and |t| = hi + lo, 0 <= hi < 200, |lo| << 1; a = |x|
   bounded so that the product underflows at the bound.  For x <= 0 the factor 2^n of e^-|t| is
   applied last: the one rounding into the denormals is the final one, and -inf gives -0. */
MLKI_INLINE_ISA mlki_vec MLKI_FN(mlki_x_sigmoid)(mlki_vec x, mlki_vec a, mlki_vec hi, mlki_vec lo) {
  mlki_vec zero = mlki_v_set1(0.0f), n, r, p, y;
  mlki_mask pos = mlki_v_gt(x, zero);
  r = MLKI_FN(mlki_exp_reduce2)(mlki_v_sub(zero, hi), mlki_v_sub(zero, lo), &n);
  p = MLKI_FN(mlki_exp_poly)(r);
  y = mlki_v_select(pos, mlki_v_set1(1.0f), p);
  y = MLKI_FN(mlki_div_1p)(y, mlki_v_scale2(p, n));
  y = mlki_v_mul(y, mlki_v_select(pos, x, mlki_v_copysign(a, x)));
  return mlki_v_scale2(y, mlki_v_select(pos, zero, n));
}

/* x sigmoid(x), 2.417 ulp. */
MLKI_INLINE_ISA mlki_vec MLKI_FN(mlki_silu)(mlki_vec x) {
  mlki_vec a = mlki_v_min(mlki_v_set1(110.0f), mlki_v_abs(x));
  return MLKI_FN(mlki_x_sigmoid)(x, a, a, mlki_v_set1(0.0f));
}

/* |2u| of gelu_tanh, u = sqrt(2/pi) (x + 0.044715 x^3), for a = |x| <= 11.
   e^-2|u| multiplies an error of 2u by as much as 110, so 2u is formed as a (k1 + k3 a^2) in two
   parts hi + lo: s, w and hi are rounded and lo collects what each rounding dropped.  k1hi is a
   multiple of 2^-20, which makes k1hi - w exact. */
MLKI_INLINE_ISA mlki_vec MLKI_FN(mlki_gelu_tanh_argument)(mlki_vec a, mlki_vec *lo) {
  mlki_vec k1 = mlki_v_set1(1.59576893e+00f), k3 = mlki_v_set1(7.13548139e-02f);
  mlki_vec s = mlki_v_mul(a, a), w = mlki_v_fma(k3, s, k1), hi = mlki_v_mul(a, w), dw, dhi;
  dw = mlki_v_fma(k3, s, mlki_v_sub(k1, w));
  dw = mlki_v_fnma(k3, mlki_v_fnma(a, a, s), dw);
  dw = mlki_v_add(dw, mlki_v_fma(mlki_v_set1(2.39883247e-09f), s, mlki_v_set1(1.93077895e-07f)));
  dhi = mlki_v_fnma(a, w, hi);
  *lo = mlki_v_sub(mlki_v_mul(a, dw), dhi);
  return hi;
}

/* x/2 (1 + tanh u) = x sigmoid(2u), 2.567 ulp. */
MLKI_INLINE_ISA mlki_vec MLKI_FN(mlki_gelu_tanh)(mlki_vec x) {
  mlki_vec a = mlki_v_min(mlki_v_set1(11.0f), mlki_v_abs(x)), lo, hi = MLKI_FN(mlki_gelu_tanh_argument)(a, &lo);
  return MLKI_FN(mlki_x_sigmoid)(x, a, hi, lo);
}

/* Mills' ratio of the normal distribution without its constant: y e^(a^2/2) Phi(-a) for
   0 <= a <= 14.5, by a rational minimax P4/R5, relative error 2^-26.3 (after W. J. Cody, Rational
   Chebyshev Approximations for the Error Function, 1969).  All coefficients are positive, so
   neither sum cancels. */
MLKI_INLINE_ISA mlki_vec MLKI_FN(mlki_mills)(mlki_vec y, mlki_vec a) {
  mlki_vec p = mlki_v_set1(7.78488209e-03f), q = mlki_v_set1(1.95135735e-02f);
  p = mlki_v_fma(p, a, mlki_v_set1(7.70757571e-02f));
  p = mlki_v_fma(p, a, mlki_v_set1(3.48212659e-01f));
  p = mlki_v_fma(p, a, mlki_v_set1(8.34123850e-01f));
  p = mlki_v_fma(p, a, mlki_v_set1(9.53125000e-01f));
  q = mlki_v_fma(q, a, mlki_v_set1(1.93212777e-01f));
  q = mlki_v_fma(q, a, mlki_v_set1(8.92063320e-01f));
  q = mlki_v_fma(q, a, mlki_v_set1(2.28791904e+00f));
  q = mlki_v_fma(q, a, mlki_v_set1(3.18921566e+00f));
  q = mlki_v_fma(q, a, mlki_v_set1(1.90625000e+00f));
  return mlki_v_div(mlki_v_mul(y, p), q);
}

/* x/2 (1 + erf(x / sqrt 2)) = x Phi(x), 6.497 ulp down to and through the denormals.
   v = x Phi(-|x|) = x M(|x|) e^(-x^2/2) without cancellation; the result is v for x <= 0 and x - v
   for x > 0, where v <= x/2.  The rounding error of x^2 goes into the reduced argument, and the
   factor 2^n is applied last. */
MLKI_INLINE_ISA mlki_vec MLKI_FN(mlki_gelu_erf)(mlki_vec x) {
  mlki_vec a = mlki_v_min(mlki_v_set1(14.5f), mlki_v_abs(x)), half = mlki_v_set1(0.5f), n;
  mlki_vec s = mlki_v_mul(a, a), ds = mlki_v_fnma(a, a, s);
  mlki_vec r = MLKI_FN(mlki_exp_reduce2)(mlki_v_mul(mlki_v_set1(-0.5f), s), mlki_v_mul(half, ds), &n);
  mlki_vec p = MLKI_FN(mlki_exp_poly)(r);
  mlki_vec v = mlki_v_mul(mlki_v_copysign(a, x), MLKI_FN(mlki_mills)(p, a));
  v = mlki_v_scale2(v, n);
  return mlki_v_select(mlki_v_gt(x, mlki_v_set1(0.0f)), mlki_v_sub(x, v), v);
}

/* erf a = a + a p(s), s = a^2, for 0 <= a < 0.875; p: minimax, relative error 2^-26.0. */
MLKI_INLINE_ISA mlki_vec MLKI_FN(mlki_erf_small)(mlki_vec a) {
  mlki_vec s = mlki_v_mul(a, a);
  mlki_vec p = mlki_v_set1(-6.02041197e-04f);
  p = mlki_v_fma(p, s, mlki_v_set1(4.99892002e-03f));
  p = mlki_v_fma(p, s, mlki_v_set1(-2.67704837e-02f));
  p = mlki_v_fma(p, s, mlki_v_set1(1.12819217e-01f));
  p = mlki_v_fma(p, s, mlki_v_set1(-3.76125038e-01f));
  p = mlki_v_fma(p, s, mlki_v_set1(1.28379151e-01f));
  return mlki_v_fma(p, a, a);
}

/* erf a = 1 - e^p(a) for 0.875 <= a <= 4, p ~ log erfc: minimax of the relative error it leaves in
   erf, 2^-29.0.  erfc(0.875) = 0.216 damps the error of the exponential. */
MLKI_INLINE_ISA mlki_vec MLKI_FN(mlki_erf_large)(mlki_vec a) {
  mlki_vec p = mlki_v_set1(2.00988230e-04f);
  p = mlki_v_fma(p, a, mlki_v_set1(-3.09222634e-03f));
  p = mlki_v_fma(p, a, mlki_v_set1(2.24200040e-02f));
  p = mlki_v_fma(p, a, mlki_v_set1(-1.04327157e-01f));
  p = mlki_v_fma(p, a, mlki_v_set1(-6.36737525e-01f));
  p = mlki_v_fma(p, a, mlki_v_set1(-1.12793601e+00f));
  p = mlki_v_fma(p, a, mlki_v_set1(-1.33592534e-04f));
  return mlki_v_sub(mlki_v_set1(1.0f), MLKI_FN(mlki_exp_bounded)(p));
}

/* erf x, 1.092 ulp.  +-1 above 3.91992545; odd exactly. */
MLKI_INLINE_ISA mlki_vec MLKI_FN(mlki_erf)(mlki_vec x) {
  mlki_vec a = mlki_v_min(mlki_v_set1(4.0f), mlki_v_abs(x));
  mlki_mask small = mlki_v_lt(a, mlki_v_set1(0.875f));
  mlki_vec e = mlki_v_select(small, MLKI_FN(mlki_erf_small)(a), MLKI_FN(mlki_erf_large)(a));
  return mlki_v_copysign(e, x);
}

/* log(1 + f) - f = f^2 (-1/2 + f p(f)) for sqrt(1/2) <= 1 + f < sqrt(2); p: minimax, relative
   error of the logarithm 2^-27.3. */
MLKI_INLINE_ISA mlki_vec MLKI_FN(mlki_log_poly)(mlki_vec f) {
  mlki_vec p = mlki_v_set1(-7.64130205e-02f);
  p = mlki_v_fma(p, f, mlki_v_set1(1.27658695e-01f));
  p = mlki_v_fma(p, f, mlki_v_set1(-1.31595746e-01f));
  p = mlki_v_fma(p, f, mlki_v_set1(1.42010599e-01f));
  p = mlki_v_fma(p, f, mlki_v_set1(-1.66233420e-01f));
  p = mlki_v_fma(p, f, mlki_v_set1(2.00012594e-01f));
  p = mlki_v_fma(p, f, mlki_v_set1(-2.50008225e-01f));
  p = mlki_v_fma(p, f, mlki_v_set1(3.33333313e-01f));
  return mlki_v_fma(p, f, mlki_v_set1(-0.5f));
}

/* log x, 0.876 ulp.  x = 2^k m, m in [sqrt(1/2), sqrt(2)), denormals scaled by 2^23 first;
   log x = k ln2hi + (f + (f^2 g(f) + k ln2lo)), f = m - 1 exact.  log 0 = -inf (either sign),
   log of less is NaN, inf and NaN come back. */
MLKI_INLINE_ISA mlki_vec MLKI_FN(mlki_log)(mlki_vec x) {
  mlki_vec zero = mlki_v_set1(0.0f), y, k, f, t, bad;
  mlki_mask tiny = mlki_v_lt(x, mlki_v_set1(1.17549435e-38f));
  y = mlki_v_select(tiny, mlki_v_mul(x, mlki_v_set1(8388608.0f)), x);
  k = mlki_v_add(mlki_v_expo(y), mlki_v_select(tiny, mlki_v_set1(-23.0f), zero));
  f = mlki_v_sub(mlki_v_mant(y), mlki_v_set1(1.0f));
  t = mlki_v_mul(k, mlki_v_set1(-1.90465421e-09f));
  t = mlki_v_fma(mlki_v_mul(f, f), MLKI_FN(mlki_log_poly)(f), t);
  y = mlki_v_fma(k, mlki_v_set1(6.93147182e-01f), mlki_v_add(f, t));
  bad = mlki_v_select(mlki_v_lt(x, zero), mlki_v_set1(NAN), mlki_v_set1(-INFINITY));
  y = mlki_v_select(mlki_v_gt(x, zero), y, bad);
  return mlki_v_select(mlki_v_lt(x, mlki_v_set1(INFINITY)), y, x);
}

/* The derivative of x sigmoid(t), where t has the sign of x and |t| = hi + lo as in mlki_x_sigmoid, and w = |x| dt/dx:
   with z = e^-|t|, (1 + z (1 + w)) / (1 + z)^2 for x > 0 and z (1 + z - w) / (1 + z)^2 below; the
   factor 2^n of z last. */
MLKI_INLINE_ISA mlki_vec MLKI_FN(mlki_x_sigmoid_slope)(mlki_vec x, mlki_vec hi, mlki_vec lo, mlki_vec w) {
  mlki_vec zero = mlki_v_set1(0.0f), one = mlki_v_set1(1.0f), n, r, p, z, above, below, s;
  mlki_mask pos = mlki_v_gt(x, zero);
  r = MLKI_FN(mlki_exp_reduce2)(mlki_v_sub(zero, hi), mlki_v_sub(zero, lo), &n);
  p = MLKI_FN(mlki_exp_poly)(r);
  z = mlki_v_scale2(p, n);
  s = mlki_v_add(one, z);
  above = mlki_v_fma(z, mlki_v_add(one, w), one);
  below = mlki_v_mul(p, mlki_v_add(mlki_v_sub(one, w), z));
  s = mlki_v_div(mlki_v_select(pos, above, below), mlki_v_mul(s, s));
  return mlki_v_scale2(s, mlki_v_select(pos, zero, n));
}

/* factor z / (1 + z)^2 with z = e^-a, a >= 0, the factor 2^n of z last: sigmoid' and, with a = 2 |x| and 4, tanh'. */
MLKI_INLINE_ISA mlki_vec MLKI_FN(mlki_bell)(mlki_vec a, mlki_vec factor) {
  mlki_vec one = mlki_v_set1(1.0f), n, r, p, s;
  r = MLKI_FN(mlki_exp_reduce)(mlki_v_sub(mlki_v_zero(), mlki_v_min(mlki_v_set1(110.0f), a)), &n);
  p = MLKI_FN(mlki_exp_poly)(r);
  s = mlki_v_add(one, mlki_v_scale2(p, n));
  return mlki_v_scale2(mlki_v_div(mlki_v_mul(factor, p), mlki_v_mul(s, s)), n);
}

/* gelu_tanh': t = x (k1 + k3 x^2) in two parts as in mlki_gelu_tanh, |x| dt/dx = |x| (k1 + 3 k3 x^2). */
MLKI_INLINE_ISA mlki_vec MLKI_FN(mlki_gelu_tanh_slope)(mlki_vec x) {
  mlki_vec a = mlki_v_min(mlki_v_set1(11.0f), mlki_v_abs(x)), lo, hi, w;
  hi = MLKI_FN(mlki_gelu_tanh_argument)(a, &lo);
  w = mlki_v_mul(a, mlki_v_fma(mlki_v_set1(2.14064449e-01f), mlki_v_mul(a, a), mlki_v_set1(1.59576912e+00f)));
  return MLKI_FN(mlki_x_sigmoid_slope)(x, hi, lo, w);
}

/* gelu' = Phi(x) + x phi(x). For x <= 0 it is e^(-x^2/2) (M(|x|) - |x| / sqrt(2 pi)) with the ratio M of mlki_mills;
   for x > 0 one minus that of -x. */
MLKI_INLINE_ISA mlki_vec MLKI_FN(mlki_gelu_slope)(mlki_vec x) {
  mlki_vec a = mlki_v_min(mlki_v_set1(15.0f), mlki_v_abs(x)), half = mlki_v_set1(0.5f), one = mlki_v_set1(1.0f), n;
  mlki_vec s = mlki_v_mul(a, a), ds = mlki_v_fnma(a, a, s);
  mlki_vec r = MLKI_FN(mlki_exp_reduce2)(mlki_v_mul(mlki_v_set1(-0.5f), s), mlki_v_mul(half, ds), &n);
  mlki_vec m = mlki_v_fnma(a, mlki_v_set1(3.98942292e-01f), MLKI_FN(mlki_mills)(one, a));
  m = mlki_v_scale2(mlki_v_mul(MLKI_FN(mlki_exp_poly)(r), m), n);
  return mlki_v_select(mlki_v_gt(x, mlki_v_zero()), mlki_v_sub(one, m), m);
}

/* act(x) of mlk_activation. */
MLKI_KERNEL mlki_vec MLKI_FN(mlki_activate_called)(mlk_activation activation, mlki_vec x) {
  switch (activation) {
  case MLK_GELU: return MLKI_FN(mlki_gelu_erf)(x);
  case MLK_GELU_TANH: return MLKI_FN(mlki_gelu_tanh)(x);
  case MLK_SILU: return MLKI_FN(mlki_silu)(x);
  case MLK_TANH: return MLKI_FN(mlki_tanh)(x);
  case MLK_SIGMOID: return MLKI_FN(mlki_sigmoid)(x);
  default: return x;
  }
}

MLKI_INLINE_ISA mlki_vec MLKI_FN(mlki_activate)(mlk_activation activation, mlki_vec x) {
  if (activation == MLK_NONE) return x;
  if (activation == MLK_RELU) return mlki_v_select(mlki_v_lt(x, mlki_v_zero()), mlki_v_zero(), x);
  return MLKI_FN(mlki_activate_called)(activation, x);
}

/* dy where x > 0, 0 elsewhere, NaN for NaN. */
MLKI_INLINE_ISA mlki_vec MLKI_FN(mlki_relu_grad)(mlki_vec x, mlki_vec dy) {
  const mlki_vec rest = mlki_v_select(mlki_v_lt(x, mlki_v_set1(1.0f)), mlki_v_zero(), x);
  return mlki_v_select(mlki_v_gt(x, mlki_v_zero()), dy, rest);
}

/* dy act'(x) of mlk_activation. */
MLKI_KERNEL mlki_vec MLKI_FN(mlki_activate_grad)(mlk_activation activation, mlki_vec x, mlki_vec dy) {
  mlki_vec zero = mlki_v_zero(), one = mlki_v_set1(1.0f), a = mlki_v_abs(x);
  switch (activation) {
  case MLK_RELU: return MLKI_FN(mlki_relu_grad)(x, dy);
  case MLK_GELU: return mlki_v_mul(dy, MLKI_FN(mlki_gelu_slope)(x));
  case MLK_GELU_TANH: return mlki_v_mul(dy, MLKI_FN(mlki_gelu_tanh_slope)(x));
  case MLK_SILU:
    a = mlki_v_min(mlki_v_set1(110.0f), a);
    return mlki_v_mul(dy, MLKI_FN(mlki_x_sigmoid_slope)(x, a, zero, a));
  case MLK_TANH: return mlki_v_mul(dy, MLKI_FN(mlki_bell)(mlki_v_add(a, a), mlki_v_set1(4.0f)));
  case MLK_SIGMOID: return mlki_v_mul(dy, MLKI_FN(mlki_bell)(a, one));
  default: return dy;
  }
}

#if !defined(MLKI_DEVICE_PASS)
/* >>kernels ------------------------------------------------------------------------------------------------------
   Compiled once per instruction set, with all sections up to >>attention_kernels, which ends with the row: everything
   there speaks the vocabulary. */

/* Any view as L lanes: element j of n at p[j * stride]; missing lanes are 0. */
MLKI_INLINE_ISA mlki_vec MLKI_FN(mlki_load_any)(const float *p, int64_t stride, int64_t n) {
  float lane[MLKI_LANES_MAX] = {0};
  int64_t j;
  if (stride == 1) return n == MLKI_LANES ? mlki_v_load(p) : mlki_v_load_n(p, n);
  if (stride == 0) return mlki_v_set1(*p);
  for (j = 0; j < n; j++) lane[j] = p[j * stride];
  return mlki_v_load(lane);
}

MLKI_INLINE_ISA void MLKI_FN(mlki_store_any)(float *p, int64_t stride, int64_t n, mlki_vec v) {
  float lane[MLKI_LANES_MAX];
  int64_t j;
  if (stride == 1 && n == MLKI_LANES) {
    mlki_v_store(p, v);
  } else if (stride == 1) {
    mlki_v_store_n(p, v, n);
  } else {
    mlki_v_store(lane, v);
    for (j = 0; j < n; j++) p[j * stride] = lane[j];
  }
}

/* Packs where the width is dense in memory: row p of the panel is a run of from. A store may run up to LANES - 1
   floats into the next row, which is written after it. */
MLKI_KERNEL void MLKI_FN(mlki_pack_runs)(float *to, int64_t width, int64_t pitch, int64_t k, const float *from,
                                         int64_t ks) {
  int64_t p, i;
  for (p = 0; p < k; p++, from += ks, to += pitch) {
    for (i = 0; i < width; i += 16) MLKI_PREFETCH(from + i + 16 * ks);
    for (i = 0; i + MLKI_LANES <= width; i += MLKI_LANES) mlki_v_store(to + i, mlki_v_load(from + i));
    if (i < pitch) mlki_v_store(to + i, i < width ? mlki_v_load_n(from + i, width - i) : mlki_v_zero());
    for (i += MLKI_LANES; i < pitch; i += MLKI_LANES) mlki_v_store(to + i, mlki_v_zero());
  }
}

#define MLKI_FAR 128 /* floats ahead in a row that is read once */

/* Packs where k is dense in memory: square blocks of LANES rows are transposed in registers. */
MLKI_KERNEL void MLKI_FN(mlki_pack_transposed)(float *to, int64_t width, int64_t pitch, int64_t k, const float *from,
                                               int64_t ws) {
  const int64_t ahead = k > MLKI_FAR ? MLKI_FAR : MLKI_LANES * ws; /* short rows: the rows that come next */
  int64_t p, i;
  int v;
  for (i = 0; i < pitch; i += MLKI_LANES) {
    for (p = 0; p < k; p += MLKI_LANES) {
      const int64_t terms = mlki_min(k - p, MLKI_LANES);
      const int64_t rows = mlki_min(width - i, MLKI_LANES), room = pitch - i;
      const float *at = from + i * ws + p;
      float *row = to + p * pitch + i;
      mlki_vec r[MLKI_LANES];
      MLKI_UNROLL for (v = 0; v < MLKI_LANES; v++) MLKI_PREFETCH2(at + v * ws + ahead);
      if (rows == MLKI_LANES && terms == MLKI_LANES) {
        MLKI_UNROLL for (v = 0; v < MLKI_LANES; v++) r[v] = mlki_v_load(at + v * ws);
      } else {
        MLKI_UNROLL for (v = 0; v < MLKI_LANES; v++) r[v] = v < rows ? mlki_v_load_n(at + v * ws, terms)
                                                                     : mlki_v_zero();
      }
      mlki_v_transpose(r);
      if (terms == MLKI_LANES &&
          (room >= MLKI_LANES || i == 0)) { /* i == 0: the spill is overwritten by the next row */
        MLKI_UNROLL for (v = 0; v < MLKI_LANES; v++) mlki_v_store(row + v * pitch, r[v]);
      } else {
        MLKI_UNROLL for (v = 0; v < MLKI_LANES; v++) if (v < terms)
            mlki_v_store_n(row + v * pitch, r[v], mlki_min(room, MLKI_LANES));
      }
    }
  }
}

MLKI_KERNEL void MLKI_FN(mlki_pack)(float *to, int64_t width, int64_t pitch, int64_t k, const float *from, int64_t ws,
                                    int64_t ks) {
  int64_t p, i;
  if (ws == 1) {
    MLKI_FN(mlki_pack_runs)(to, width, pitch, k, from, ks);
  } else if (ks == 1) {
    MLKI_FN(mlki_pack_transposed)(to, width, pitch, k, from, ws);
  } else {
    for (p = 0; p < k; p++)
      for (i = 0; i < pitch; i++) to[p * pitch + i] = i < width ? from[i * ws + p * ks] : 0.0f;
  }
}

/* The register tile: rows x vecs vectors of C, the last of last lanes. rows, vecs and whole are constants where it
   is inlined. */
MLKI_INLINE_ISA void MLKI_FN(mlki_tile)(const int rows, const int vecs, const int whole, int64_t last, const float *a,
                                        int64_t a_rs, int64_t a_cs, const float *b, int64_t b_rs, float *c,
                                        int64_t c_rs, int64_t k, mlki_chain chain) {
  mlki_vec acc[MLKI_MR][MLKI_NV], bv[MLKI_NV];
  int64_t p;
  int i, v;
  if (k >= 64) { /* C comes from far away: ask for it before the sum */
    MLKI_UNROLL for (i = 0; i < rows; i++) {
      MLKI_PREFETCHW(c + i * c_rs);
      MLKI_PREFETCHW(c + i * c_rs + MLKI_NR - 1);
    }
  }
  MLKI_UNROLL for (i = 0; i < rows; i++) { MLKI_UNROLL for (v = 0; v < vecs; v++) acc[i][v] = mlki_v_zero(); }
  if (chain == MLKI_CONTINUE) {
    MLKI_UNROLL for (i = 0; i < rows; i++) {
      MLKI_UNROLL for (v = 0; v < vecs; v++) {
        const float *at = c + i * c_rs + v * MLKI_LANES;
        acc[i][v] = whole || v + 1 < vecs ? mlki_v_load(at) : mlki_v_load_n(at, last);
      }
    }
  }
  for (p = 0; p < k; p++) {
    MLKI_UNROLL for (v = 0; v < vecs; v++) bv[v] = whole || v + 1 < vecs ? mlki_v_load(b + v * MLKI_LANES)
                                                                         : mlki_v_load_n(b + v * MLKI_LANES, last);
    MLKI_UNROLL for (i = 0; i < rows; i++) {
      const mlki_vec av = mlki_v_set1(a[i * a_rs]);
      MLKI_UNROLL for (v = 0; v < vecs; v++) acc[i][v] = mlki_v_fma(av, bv[v], acc[i][v]);
    }
    a += a_cs;
    b += b_rs;
  }
  MLKI_UNROLL for (i = 0; i < rows; i++) {
    MLKI_UNROLL for (v = 0; v < vecs; v++) {
      float *at = c + i * c_rs + v * MLKI_LANES;
      if (whole || v + 1 < vecs)
        mlki_v_store(at, chain == MLKI_ADD ? mlki_v_add(mlki_v_load(at), acc[i][v]) : acc[i][v]);
      else
        mlki_v_store_n(at, chain == MLKI_ADD ? mlki_v_add(mlki_v_load_n(at, last), acc[i][v]) : acc[i][v], last);
    }
  }
}

/* One strip of a constant number of rows. */
MLKI_INLINE_ISA void MLKI_FN(mlki_strip_rows)(const int rows, const mlki_strip *s) {
  const int64_t a_rs = s->a_rs, a_cs = s->a_cs;
  const float *b = s->b;
  float *c = s->c;
  int64_t left = s->cols;
  for (; left >= MLKI_NR; left -= MLKI_NR, b += s->b_panel, c += MLKI_NR) {
    MLKI_FN(mlki_tile)(rows, MLKI_NV, 1, 0, s->a, a_rs, a_cs, b, s->b_rs, c, s->c_rs, s->k, s->chain);
  }
  if (left > 2 * MLKI_LANES) { /* only where NV > 2 */
    left -= 2 * MLKI_LANES;
    MLKI_FN(mlki_tile)(rows, MLKI_NV, 0, left, s->a, a_rs, a_cs, b, s->b_rs, c, s->c_rs, s->k, s->chain);
  } else if (left > MLKI_LANES) {
    MLKI_FN(mlki_tile)(rows, 2, 0, left - MLKI_LANES, s->a, a_rs, a_cs, b, s->b_rs, c, s->c_rs, s->k, s->chain);
  } else if (left > 0) {
    MLKI_FN(mlki_tile)(rows, 1, 0, left, s->a, a_rs, a_cs, b, s->b_rs, c, s->c_rs, s->k, s->chain);
  }
}

#define MLKI_STRIP_CASE(r)                                                                                             \
  case r:                                                                                                              \
    if (r <= MLKI_MR) MLKI_FN(mlki_strip_rows)(r > MLKI_MR ? 1 : r, s);                                                \
    break

MLKI_KERNEL void MLKI_FN(mlki_strip_any)(const mlki_strip *s) {
  switch (s->rows) {
    MLKI_STRIP_CASE(1);
    MLKI_STRIP_CASE(2);
    MLKI_STRIP_CASE(3);
    MLKI_STRIP_CASE(4);
    MLKI_STRIP_CASE(5);
    MLKI_STRIP_CASE(6);
    MLKI_STRIP_CASE(7);
    MLKI_STRIP_CASE(8);
    MLKI_STRIP_CASE(9);
    MLKI_STRIP_CASE(10);
    MLKI_STRIP_CASE(11);
    MLKI_STRIP_CASE(12);
    MLKI_STRIP_CASE(13);
    MLKI_STRIP_CASE(14);
  default: break;
  }
}

/* MLKI_SWEEP terms for rows (a constant) of C at once, as often as rows divides s->rows: C is the chain so far, or
   starts it. For B that is not packed and comes from memory: its rows are read side by side, once for all rows of C. */
MLKI_INLINE_ISA void MLKI_FN(mlki_sweep_rows)(const int rows, const mlki_strip *s) {
  const int64_t a_rs = s->a_rs, a_cs = s->a_cs, b_rs = s->b_rs, c_rs = s->c_rs;
  int64_t j, r;
  int i, v, p;
  for (j = 0; j + MLKI_NR <= s->cols; j += MLKI_NR) {
    const int64_t past = j + MLKI_SWEEP_AHEAD - s->cols; /* the row's end: as far from the start of those read next */
    const int64_t ahead = past < 0 ? MLKI_SWEEP_AHEAD : MLKI_SWEEP * b_rs + mlki_min(past, j) - j;
    for (r = 0; r < s->rows; r += rows) {
      const float *a = s->a + r * a_rs;
      float *c = s->c + r * c_rs + j;
      mlki_vec acc[MLKI_MR][MLKI_NV];
      MLKI_UNROLL for (i = 0; i < rows; i++) {
        MLKI_UNROLL for (v = 0; v < MLKI_NV; v++)
            acc[i][v] = s->chain == MLKI_START ? mlki_v_zero() : mlki_v_load(c + i * c_rs + v * MLKI_LANES);
      }
      MLKI_UNROLL for (p = 0; p < MLKI_SWEEP; p++) {
        const float *b = s->b + p * b_rs + j;
        mlki_vec bv[MLKI_NV];
        MLKI_UNROLL for (v = 0; v < MLKI_NV; v++) {
          bv[v] = mlki_v_load(b + v * MLKI_LANES);
          if (r == 0) MLKI_PREFETCH(b + v * MLKI_LANES + ahead);
        }
        MLKI_UNROLL for (i = 0; i < rows; i++) {
          const mlki_vec av = mlki_v_set1(a[i * a_rs + p * a_cs]);
          MLKI_UNROLL for (v = 0; v < MLKI_NV; v++) acc[i][v] = mlki_v_fma(av, bv[v], acc[i][v]);
        }
      }
      MLKI_UNROLL for (i = 0; i < rows; i++) {
        MLKI_UNROLL for (v = 0; v < MLKI_NV; v++) mlki_v_store(c + i * c_rs + v * MLKI_LANES, acc[i][v]);
      }
    }
  }
}

#define MLKI_SWEEP_CASE(r)                                                                                             \
  case r:                                                                                                              \
    if (r <= MLKI_MR) MLKI_FN(mlki_sweep_rows)(r > MLKI_MR ? 1 : r, s);                                                \
    break

/* Needs k == MLKI_SWEEP, cols a multiple of NR and rows one of height; else the strip does the same. */
MLKI_KERNEL void MLKI_FN(mlki_sweep_any)(const mlki_strip *s, int64_t height) {
  switch (height) {
    MLKI_SWEEP_CASE(1);
    MLKI_SWEEP_CASE(2);
    MLKI_SWEEP_CASE(3);
    MLKI_SWEEP_CASE(4);
    MLKI_SWEEP_CASE(5);
    MLKI_SWEEP_CASE(6);
    MLKI_SWEEP_CASE(7);
    MLKI_SWEEP_CASE(8);
  default: break;
  }
}

/* The end of a matrix product, in the order of NUMERICS. */
MLKI_KERNEL void MLKI_FN(mlki_epilogue_tile)(const mlki_epilogue *e, const float *acc, int64_t acc_rs, int64_t i0,
                                             int64_t j0, int64_t rows, int64_t cols) {
  const mlki_vec alpha = mlki_v_set1(e->alpha), beta = mlki_v_set1(e->beta);
  int64_t i, j;
  for (i = i0; i < i0 + rows; i++, acc += acc_rs) {
    for (j = j0; j < j0 + cols; j += MLKI_LANES) {
      const int64_t n = mlki_min(j0 + cols - j, MLKI_LANES);
      mlki_vec t = MLKI_FN(mlki_load_any)(acc + (j - j0), 1, n);
      if (e->bias.p)
        t = mlki_v_fma(alpha, t, MLKI_FN(mlki_load_any)(e->bias.p + i * e->bias.rs + j * e->bias.cs, e->bias.cs, n));
      else
        t = mlki_v_mul(alpha, t);
      if (e->c.p) t = mlki_v_fma(beta, MLKI_FN(mlki_load_any)(e->c.p + i * e->c.rs + j * e->c.cs, e->c.cs, n), t);
      if (e->preact.p) MLKI_FN(mlki_store_any)(e->preact.p + i * e->preact.rs + j * e->preact.cs, e->preact.cs, n, t);
      t = MLKI_FN(mlki_activate)(e->activation, t);
      if (e->residual.p)
        t = mlki_v_add(
            t, MLKI_FN(mlki_load_any)(e->residual.p + i * e->residual.rs + j * e->residual.cs, e->residual.cs, n));
      MLKI_FN(mlki_store_any)(e->d.p + i * e->d.rs + j * e->d.cs, e->d.cs, n, t);
    }
  }
}

MLKI_KERNEL void MLKI_FN(mlki_add)(float *c, const float *t, int64_t n) {
  int64_t j;
  for (j = 0; j + MLKI_LANES <= n; j += MLKI_LANES)
    mlki_v_store(c + j, mlki_v_add(mlki_v_load(c + j), mlki_v_load(t + j)));
  if (j < n) mlki_v_store_n(c + j, mlki_v_add(mlki_v_load_n(c + j, n - j), mlki_v_load_n(t + j, n - j)), n - j);
}

/* 16-lane sums of nq x nx pairs at once; nq, nx and kind are constants where it is inlined.
   Rows so far ahead are asked for meanwhile: that of row j by pass part of parts, if j falls to it. */
MLKI_INLINE_ISA void MLKI_FN(mlki_pair_tile)(const int nq, const int nx, const mlki_pair kind, int64_t d,
                                             const float *q, int64_t q_rs, const float *x, int64_t x_rs, int64_t ahead,
                                             float *out, int64_t out_rs, int64_t part, int64_t parts) {
  const float *next[MLKI_PX];
  mlki_vec acc[MLKI_PQ][MLKI_PX][MLKI_V16];
  int64_t k;
  int i, j, v;
  MLKI_UNROLL for (j = 0; j < nx; j++) next[j] = x + (j * parts / nx == part ? j + ahead : j) * x_rs;
  MLKI_UNROLL for (i = 0; i < nq; i++) {
    MLKI_UNROLL for (j = 0; j < nx; j++) { MLKI_UNROLL for (v = 0; v < MLKI_V16; v++) acc[i][j][v] = mlki_v_zero(); }
  }
  for (k = 0; k < d; k += 16) {
    const int whole = d - k >= 16;
    MLKI_UNROLL for (v = 0; v < MLKI_V16; v++) {
      const int64_t at = k + v * MLKI_LANES, n = mlki_max(mlki_min(d - at, MLKI_LANES), 0);
      mlki_vec qv[MLKI_PQ], xv;
      MLKI_UNROLL for (i = 0; i < nq; i++) qv[i] = whole ? mlki_v_load(q + i * q_rs + at)
                                                         : mlki_v_load_n(q + i * q_rs + at, n);
      MLKI_UNROLL for (j = 0; j < nx; j++) {
        xv = whole ? mlki_v_load(x + j * x_rs + at) : mlki_v_load_n(x + j * x_rs + at, n);
        MLKI_PREFETCH(next[j] + at);
        MLKI_UNROLL for (i = 0; i < nq; i++) {
          if (kind == MLKI_PAIR_L2) {
            const mlki_vec t = mlki_v_sub(qv[i], xv);
            acc[i][j][v] = mlki_v_fma(t, t, acc[i][j][v]);
          } else {
            acc[i][j][v] = mlki_v_fma(qv[i], xv, acc[i][j][v]);
          }
        }
      }
    }
  }
  MLKI_UNROLL for (i = 0; i < nq; i++) {
    MLKI_UNROLL for (j = 0; j < nx; j++) out[i * out_rs + j] = mlki_v_sum16(acc[i][j]);
  }
}

#define MLKI_PAIR_CASE(r)                                                                                              \
  case r:                                                                                                              \
    if (r <= MLKI_PQ)                                                                                                  \
      MLKI_FN(mlki_pair_tile)(r > MLKI_PQ ? 1 : r, nx, kind, d, q, q_rs, x, x_rs, ahead, out, out_rs, part, parts);    \
    break

/* All queries against PX (or one) base rows, so that a base row is read from memory once. */
MLKI_INLINE_ISA void MLKI_FN(mlki_pair_columns)(const int nx, const mlki_pair kind, int64_t nq, int64_t d,
                                                const float *q, int64_t q_rs, const float *x, int64_t x_rs,
                                                int64_t ahead, float *out, int64_t out_rs) {
  const int64_t parts = mlki_ceil_div(nq, MLKI_PQ), height = mlki_ceil_div(nq, parts);
  int64_t i, part;
  for (i = 0, part = 0; i < nq; i += height, part++, q += height * q_rs, out += height * out_rs) {
    switch (mlki_min(height, nq - i)) {
      MLKI_PAIR_CASE(1);
      MLKI_PAIR_CASE(2);
      MLKI_PAIR_CASE(3);
      MLKI_PAIR_CASE(4);
      MLKI_PAIR_CASE(5);
    default: break;
    }
  }
}

/* Side by side, PX rows share what is loaded of the queries; from memory one stream of rows comes quicker than PX. */
MLKI_INLINE_ISA void MLKI_FN(mlki_pairs_of)(const mlki_pair kind, int64_t nq, int64_t nx, int64_t d, const float *q,
                                            int64_t q_rs, const float *x, int64_t x_rs, int64_t ahead, float *out,
                                            int64_t out_rs) {
  int64_t j = 0;
  if (!ahead || nq > MLKI_PQ)
    for (; j + MLKI_PX <= nx; j += MLKI_PX)
      MLKI_FN(mlki_pair_columns)(MLKI_PX, kind, nq, d, q, q_rs, x + j * x_rs, x_rs, MLKI_PX, out + j, out_rs);
  for (; j < nx; j++) MLKI_FN(mlki_pair_columns)(1, kind, nq, d, q, q_rs, x + j * x_rs, x_rs, ahead, out + j, out_rs);
}

MLKI_KERNEL void MLKI_FN(mlki_pairs)(mlki_pair kind, int64_t nq, int64_t nx, int64_t d, const float *q, int64_t q_rs,
                                     const float *x, int64_t x_rs, int64_t ahead, float *out, int64_t out_rs) {
  if (kind == MLKI_PAIR_L2)
    MLKI_FN(mlki_pairs_of)(MLKI_PAIR_L2, nq, nx, d, q, q_rs, x, x_rs, ahead, out, out_rs);
  else
    MLKI_FN(mlki_pairs_of)(MLKI_PAIR_IP, nq, nx, d, q, q_rs, x, x_rs, ahead, out, out_rs);
}

/* Norms beyond these bounds could overflow or underflow in the filter: such rows are never filtered out. */
#define MLKI_NORM2_MAX 1e37f
#define MLKI_NORM2_MIN 1e-30f

/* Turns one packed panel of NR base rows, [d][NR], into what the filter multiplies, and makes the NR values its sums
   start from; see >>knn for the bounds behind coefficient.
     L2       x - center   init = coefficient |x - center|^2
     IP       x            init = -coefficient |x|
     COSINE   x / |x|      init = 0
   init = -infinity where the norm is out of bounds or NaN: no sum that starts there exceeds a limit. */
MLKI_KERNEL void MLKI_FN(mlki_knn_panel)(mlk_metric metric, float *panel, int64_t d, const float *center,
                                         float coefficient, float *init) {
  const mlki_vec never = mlki_v_set1(-INFINITY), largest = mlki_v_set1(MLKI_NORM2_MAX),
                 factor = mlki_v_set1(coefficient);
  mlki_vec norm2[MLKI_NV];
  int64_t k;
  int v;
  for (v = 0; v < MLKI_NV; v++) norm2[v] = mlki_v_zero();
  for (k = 0; k < d; k++) {
    float *row = panel + k * MLKI_NR;
    MLKI_UNROLL for (v = 0; v < MLKI_NV; v++) {
      mlki_vec x = mlki_v_load(row + v * MLKI_LANES);
      if (center) {
        x = mlki_v_sub(x, mlki_v_set1(center[k]));
        mlki_v_store(row + v * MLKI_LANES, x);
      }
      norm2[v] = mlki_v_fma(x, x, norm2[v]);
    }
  }
  for (v = 0; v < MLKI_NV; v++) {
    mlki_vec start = mlki_v_zero();
    if (metric == MLK_INNER_PRODUCT)
      start = mlki_v_sub(start, mlki_v_mul(factor, mlki_v_sqrt(norm2[v])));
    else if (metric != MLK_COSINE)
      start = mlki_v_mul(factor, norm2[v]);
    else
      start = mlki_v_select(mlki_v_gt(norm2[v], mlki_v_set1(MLKI_NORM2_MIN)), start, never);
    mlki_v_store(init + v * MLKI_LANES, mlki_v_select(mlki_v_lt(norm2[v], largest), start, never));
  }
  if (metric == MLK_COSINE) {
    for (v = 0; v < MLKI_NV; v++) norm2[v] = mlki_v_div(mlki_v_set1(1.0f), mlki_v_sqrt(norm2[v]));
    for (k = 0; k < d * MLKI_NV; k++)
      mlki_v_store(panel + k * MLKI_LANES, mlki_v_mul(mlki_v_load(panel + k * MLKI_LANES), norm2[k % MLKI_NV]));
  }
}

/* One panel of a constant number of queries: a matmul tile that starts from init and is compared instead of stored. */
MLKI_INLINE_ISA int64_t MLKI_FN(mlki_filter_rows)(const int rows, const mlki_filter *f) {
  const unsigned all = (unsigned)((1ull << MLKI_LANES) - 1);
  const float *x = f->x;
  int64_t panel, k, hits = 0;
  int i, v;
  for (panel = 0; panel < f->panels; panel++, x += f->d * MLKI_NR) {
    mlki_vec acc[MLKI_MR][MLKI_NV], xv[MLKI_NV];
    const float *q = f->q, *at = x;
    unsigned in[MLKI_MR][MLKI_NV], any = 0;
    MLKI_UNROLL for (i = 0; i < rows; i++) {
      MLKI_UNROLL for (v = 0; v < MLKI_NV; v++) acc[i][v] = mlki_v_load(f->init + panel * MLKI_NR + v * MLKI_LANES);
    }
    for (k = 0; k < f->d; k++, q += rows, at += MLKI_NR) {
      MLKI_UNROLL for (v = 0; v < MLKI_NV; v++) xv[v] = mlki_v_load(at + v * MLKI_LANES);
      MLKI_UNROLL for (i = 0; i < rows; i++) {
        const mlki_vec qv = mlki_v_set1(q[i]);
        MLKI_UNROLL for (v = 0; v < MLKI_NV; v++) acc[i][v] = mlki_v_fma(qv, xv[v], acc[i][v]);
      }
    }
    MLKI_UNROLL for (i = 0; i < rows; i++) {
      const mlki_vec limit = mlki_v_set1(f->limit[i]);
      MLKI_UNROLL for (v = 0; v < MLKI_NV; v++) any |= in[i][v] = all & ~mlki_v_bits(mlki_v_gt(acc[i][v], limit));
    }
    if (!any) continue;
    for (i = 0; i < rows; i++)
      for (v = 0; v < MLKI_NV; v++) {
        unsigned left = in[i][v], lane = 0;
        for (; left; left >>= 1, lane++)
          if (left & 1) f->hits[hits++] = (uint32_t)(panel * MLKI_NR + v * MLKI_LANES + lane) << 4 | (uint32_t)i;
      }
  }
  return hits;
}

#define MLKI_FILTER_CASE(r)                                                                                            \
  case r: return r > MLKI_MR ? 0 : MLKI_FN(mlki_filter_rows)(r > MLKI_MR ? 1 : r, f)

MLKI_KERNEL int64_t MLKI_FN(mlki_filter_any)(const mlki_filter *f) {
  switch (f->rows) {
    MLKI_FILTER_CASE(1);
    MLKI_FILTER_CASE(2);
    MLKI_FILTER_CASE(3);
    MLKI_FILTER_CASE(4);
    MLKI_FILTER_CASE(5);
    MLKI_FILTER_CASE(6);
    MLKI_FILTER_CASE(7);
    MLKI_FILTER_CASE(8);
    MLKI_FILTER_CASE(9);
    MLKI_FILTER_CASE(10);
    MLKI_FILTER_CASE(11);
    MLKI_FILTER_CASE(12);
    MLKI_FILTER_CASE(13);
    MLKI_FILTER_CASE(14);
  default: return 0;
  }
}

MLKI_KERNEL int64_t MLKI_FN(mlki_below)(const float *key, int64_t n, float limit, uint32_t *index) {
  const mlki_vec bound = mlki_v_set1(limit);
  int64_t j, found = 0;
  for (j = 0; j < n; j += MLKI_LANES) {
    const int64_t lanes = mlki_min(n - j, MLKI_LANES);
    const mlki_vec v = lanes == MLKI_LANES ? mlki_v_load(key + j) : mlki_v_load_n(key + j, lanes);
    unsigned left = ~mlki_v_bits(mlki_v_gt(v, bound)) & (unsigned)((1ull << lanes) - 1), lane = 0;
    for (; left; left >>= 1, lane++)
      if (left & 1) index[found++] = (uint32_t)(j + lane);
  }
  return found;
}

MLKI_KERNEL void MLKI_FN(mlki_spin)(int64_t rounds, float *out) {
  mlki_vec acc[10], x = mlki_v_set1(0.75f), y = mlki_v_set1(out[0]);
  int64_t r;
  int i;
  for (i = 0; i < 10; i++) acc[i] = mlki_v_set1(out[i % 4]);
  for (r = 0; r < rounds; r++) { MLKI_UNROLL for (i = 0; i < 10; i++) acc[i] = mlki_v_fma(acc[i], x, y); }
  for (i = 1; i < 10; i++) acc[0] = mlki_v_add(acc[0], acc[i]);
  mlki_v_store(out, acc[0]);
}

MLKI_KERNEL void MLKI_FN(mlki_read)(const float *from, int64_t n, float *out) {
  mlki_vec acc[8];
  int64_t j;
  int i;
  for (i = 0; i < 8; i++) acc[i] = mlki_v_zero();
  for (j = 0; j < n; j += 8 * MLKI_LANES) {
    MLKI_UNROLL for (i = 0; i < 8; i++) acc[i] = mlki_v_add(acc[i], mlki_v_load(from + j + i * MLKI_LANES));
  }
  for (i = 1; i < 8; i++) acc[0] = mlki_v_add(acc[0], acc[i]);
  mlki_v_store(out, acc[0]);
}

/* Packs terms x cols of B into panels of NR columns. Rows of B that are dense in memory are read along their whole
   length. */
MLKI_KERNEL void MLKI_FN(mlki_pack_panels)(float *to, int64_t cols, int64_t k, const float *from, int64_t ws,
                                           int64_t ks) {
  const int64_t whole = cols / MLKI_NR * MLKI_NR;
  int64_t p, j;
  int v;
  if (ws != 1) {
    for (j = 0; j < cols; j += MLKI_NR)
      MLKI_FN(mlki_pack)(to + j * k, mlki_min(cols - j, MLKI_NR), MLKI_NR, k, from + j * ws, ws, ks);
    return;
  }
  for (p = 0; p < k; p++) {
    const float *row = from + p * ks;
    float *at = to + p * MLKI_NR;
    for (j = 0; j < whole; j += MLKI_NR, at += k * MLKI_NR) {
      MLKI_UNROLL for (v = 0; v < MLKI_NV; v++) {
        MLKI_PREFETCH(row + j + v * MLKI_LANES + 4 * ks);
        mlki_v_store(at + v * MLKI_LANES, mlki_v_load(row + j + v * MLKI_LANES));
      }
    }
  }
  if (whole < cols) MLKI_FN(mlki_pack)(to + whole * k, cols - whole, MLKI_NR, k, from + whole, 1, ks);
}

/* >>conv_kernels -------------------------------------------------------------------------------------------------
   Copies of images and weights to where a variant of >>conv wants them, and the sums of planes and lanes. Compiled once
   per instruction set. */

typedef char MLKI_FN(mlki_panels_fit)[MLKI_MR <= MLKI_CONV_PANEL_MAX && MLKI_NR <= MLKI_CONV_PANEL_MAX ? 1 : -1];

/* k rows of width floats: to[p * pitch + i] = from[i * ws + p * ks]. Writes nothing else. */
MLKI_KERNEL void MLKI_FN(mlki_place_runs)(float *to, int64_t width, int64_t pitch, int64_t k, const float *from,
                                          int64_t ks) {
  int64_t p, i;
  if (width <= MLKI_LANES) {
    for (p = 0; p < k; p++) mlki_v_store_n(to + p * pitch, mlki_v_load_n(from + p * ks, width), width);
    return;
  }
  for (p = 0; p < k; p++, from += ks, to += pitch) { /* the last vector overlaps the one before it */
    for (i = 0; i + MLKI_LANES < width; i += MLKI_LANES) mlki_v_store(to + i, mlki_v_load(from + i));
    mlki_v_store(to + width - MLKI_LANES, mlki_v_load(from + width - MLKI_LANES));
  }
}

/* The same where k is dense: square blocks of LANES rows are transposed in registers. */
MLKI_KERNEL void MLKI_FN(mlki_place_transposed)(float *to, int64_t width, int64_t pitch, int64_t k, const float *from,
                                                int64_t ws) {
  int64_t p, i;
  int v;
  for (i = 0; i < width; i += MLKI_LANES) {
    const int64_t rows = mlki_min(width - i, MLKI_LANES);
    for (p = 0; p < k; p += MLKI_LANES) {
      const int64_t terms = mlki_min(k - p, MLKI_LANES);
      const float *at = from + i * ws + p;
      float *row = to + p * pitch + i;
      mlki_vec r[MLKI_LANES];
      if (rows == MLKI_LANES && terms == MLKI_LANES) {
        MLKI_UNROLL for (v = 0; v < MLKI_LANES; v++) r[v] = mlki_v_load(at + v * ws);
        mlki_v_transpose(r);
        MLKI_UNROLL for (v = 0; v < MLKI_LANES; v++) mlki_v_store(row + v * pitch, r[v]);
      } else {
        MLKI_UNROLL for (v = 0; v < MLKI_LANES; v++) r[v] = v < rows ? mlki_v_load_n(at + v * ws, terms)
                                                                     : mlki_v_zero();
        mlki_v_transpose(r);
        MLKI_UNROLL for (v = 0; v < MLKI_LANES; v++) if (v < terms) mlki_v_store_n(row + v * pitch, r[v], rows);
      }
    }
  }
}

/* The same where every second float is wanted. Reads no further than the last of them. */
MLKI_KERNEL void MLKI_FN(mlki_place_even)(float *to, int64_t width, int64_t pitch, int64_t k, const float *from,
                                          int64_t ks) {
  int64_t p, i;
  for (p = 0; p < k; p++, from += ks, to += pitch) {
    for (i = 0; i + MLKI_LANES < width; i += MLKI_LANES)
      mlki_v_store(to + i, mlki_v_even(mlki_v_load(from + 2 * i), mlki_v_load(from + 2 * i + MLKI_LANES)));
    if (i < width) {
      const int64_t reach = 2 * (width - i) - 1, high = reach - MLKI_LANES;
      mlki_v_store_n(to + i,
                     mlki_v_even(mlki_v_load_n(from + 2 * i, mlki_min(reach, MLKI_LANES)),
                                 high > 0 ? mlki_v_load_n(from + 2 * i + MLKI_LANES, high) : mlki_v_zero()),
                     width - i);
    }
  }
}

MLKI_KERNEL void MLKI_FN(mlki_place)(float *to, int64_t width, int64_t pitch, int64_t k, const float *from, int64_t ws,
                                     int64_t ks) {
  int64_t p, i;
  if (ws == 1) {
    MLKI_FN(mlki_place_runs)(to, width, pitch, k, from, ks);
  } else if (ks == 1) {
    MLKI_FN(mlki_place_transposed)(to, width, pitch, k, from, ws);
  } else if (ws == 2) {
    MLKI_FN(mlki_place_even)(to, width, pitch, k, from, ks);
  } else {
    for (p = 0; p < k; p++)
      for (i = 0; i < width; i++) to[p * pitch + i] = from[i * ws + p * ks];
  }
}

/* rows x vecs vectors of the sums of planes, from place j on; rows and vecs are constants where it is inlined. */
MLKI_INLINE_ISA void MLKI_FN(mlki_planes_tile)(const int rows, const int vecs, const mlki_planes *s, int64_t j) {
  const float *w = s->w, *x = s->x + j;
  const int64_t k = s->k, c_rs = s->c_rs;
  mlki_vec acc[MLKI_MR][8];
  float *c = s->c + j;
  int64_t p;
  int i, v;
  MLKI_UNROLL for (i = 0; i < rows; i++) { MLKI_UNROLL for (v = 0; v < vecs; v++) acc[i][v] = mlki_v_zero(); }
  for (p = 0; p < k; p++, w += rows) {
    const float *at = x + s->at[p];
    if (rows <= vecs) {
      mlki_vec wv[MLKI_MR];
      MLKI_UNROLL for (i = 0; i < rows; i++) wv[i] = mlki_v_set1(w[i]);
      MLKI_UNROLL for (v = 0; v < vecs; v++) {
        const mlki_vec xv = mlki_v_load(at + v * MLKI_LANES);
        MLKI_UNROLL for (i = 0; i < rows; i++) acc[i][v] = mlki_v_fma(wv[i], xv, acc[i][v]);
      }
    } else {
      mlki_vec xv[8];
      MLKI_UNROLL for (v = 0; v < vecs; v++) xv[v] = mlki_v_load(at + v * MLKI_LANES);
      MLKI_UNROLL for (i = 0; i < rows; i++) {
        const mlki_vec wv = mlki_v_set1(w[i]);
        MLKI_UNROLL for (v = 0; v < vecs; v++) acc[i][v] = mlki_v_fma(wv, xv[v], acc[i][v]);
      }
    }
  }
  MLKI_UNROLL for (i = 0; i < rows; i++) {
    MLKI_UNROLL for (v = 0; v < vecs; v++) {
      float *to = c + i * c_rs + v * MLKI_LANES;
      mlki_v_store(to, s->chain == MLKI_ADD ? mlki_v_add(mlki_v_load(to), acc[i][v]) : acc[i][v]);
    }
  }
}

/* A constant number of rows: tiles of the most vectors whose sums fit, then of 4, 2 and 1. */
MLKI_INLINE_ISA void MLKI_FN(mlki_planes_rows)(const int rows, const mlki_planes *s) {
  const int most = MLKI_SUMS / rows > 8 ? 8 : MLKI_SUMS / rows < 2 ? 2 : MLKI_SUMS / rows;
  int64_t left = s->vectors, j = 0;
  for (; left >= most; left -= most, j += most * MLKI_LANES) MLKI_FN(mlki_planes_tile)(rows, most, s, j);
  if (most > 4 && left >= 4) {
    MLKI_FN(mlki_planes_tile)(rows, 4, s, j);
    left -= 4, j += 4 * MLKI_LANES;
  }
  if (most > 2 && left >= 2) {
    MLKI_FN(mlki_planes_tile)(rows, 2, s, j);
    left -= 2, j += 2 * MLKI_LANES;
  }
  if (left) MLKI_FN(mlki_planes_tile)(rows, 1, s, j);
}

#define MLKI_PLANES_CASE(r)                                                                                            \
  case r:                                                                                                              \
    if (r <= MLKI_MR) MLKI_FN(mlki_planes_rows)(r > MLKI_MR ? 1 : r, s);                                               \
    break

MLKI_KERNEL void MLKI_FN(mlki_planes_any)(const mlki_planes *s) {
  switch (s->rows) {
    MLKI_PLANES_CASE(1);
    MLKI_PLANES_CASE(2);
    MLKI_PLANES_CASE(3);
    MLKI_PLANES_CASE(4);
    MLKI_PLANES_CASE(5);
    MLKI_PLANES_CASE(6);
    MLKI_PLANES_CASE(7);
    MLKI_PLANES_CASE(8);
    MLKI_PLANES_CASE(9);
    MLKI_PLANES_CASE(10);
    MLKI_PLANES_CASE(11);
    MLKI_PLANES_CASE(12);
    MLKI_PLANES_CASE(13);
    MLKI_PLANES_CASE(14);
  default: break;
  }
}

MLKI_KERNEL void MLKI_FN(mlki_spread)(float *to, int64_t pitch, int64_t k, const float *from, const int64_t *lane,
                                      int64_t lanes, int64_t ks) {
  int64_t p;
  int v;
  if (ks == 1) { /* square blocks are transposed in registers */
    for (p = 0; p < k; p += MLKI_LANES) {
      const int64_t n = mlki_min(k - p, MLKI_LANES);
      mlki_vec r[MLKI_LANES];
      MLKI_UNROLL for (v = 0; v < MLKI_LANES; v++) {
        const float *at = from + (v < lanes ? lane[v] : 0) + p;
        r[v] = v >= lanes ? mlki_v_zero() : n == MLKI_LANES ? mlki_v_load(at) : mlki_v_load_n(at, n);
      }
      mlki_v_transpose(r);
      MLKI_UNROLL for (v = 0; v < MLKI_LANES; v++) if (v < n) mlki_v_store(to + (p + v) * pitch, r[v]);
    }
    return;
  }
  for (v = 1; v < lanes && lane[v] == lane[0] + v;) v++;
  if (v >= lanes) { /* one after the other */
    for (p = 0; p < k; p++) mlki_v_store(to + p * pitch, mlki_v_load_n(from + lane[0] + p * ks, lanes));
    return;
  }
  for (p = 0; p < k; p++, from += ks, to += pitch) {
    for (v = 0; v < MLKI_LANES; v++) to[v] = v < lanes ? from[lane[v]] : 0.0f;
  }
}

/* pixels sums, a constant where it is inlined. */
MLKI_INLINE_ISA void MLKI_FN(mlki_lanes_pixels)(const int pixels, float *to, int64_t to_step, int64_t lanes,
                                                const float *w, const float *x, const int32_t *at, int64_t k,
                                                int64_t step, mlki_chain chain) {
  mlki_vec acc[8];
  int64_t p;
  int i;
  MLKI_UNROLL for (i = 0; i < pixels; i++) acc[i] = mlki_v_zero();
  for (p = 0; p < k; p++, w += MLKI_LANES) {
    const mlki_vec wv = mlki_v_load(w);
    const float *from = x + at[p];
    MLKI_UNROLL for (i = 0; i < pixels; i++) acc[i] = mlki_v_fma(wv, mlki_v_load(from + i * step), acc[i]);
  }
  MLKI_UNROLL for (i = 0; i < pixels; i++) {
    float *c = to + i * to_step;
    if (lanes == MLKI_LANES)
      mlki_v_store(c, chain == MLKI_ADD ? mlki_v_add(mlki_v_load(c), acc[i]) : acc[i]);
    else
      mlki_v_store_n(c, chain == MLKI_ADD ? mlki_v_add(mlki_v_load_n(c, lanes), acc[i]) : acc[i], lanes);
  }
}

MLKI_KERNEL void MLKI_FN(mlki_lanes_sums)(float *to, int64_t to_step, int64_t lanes, int64_t pixels, const float *w,
                                          const float *x, const int32_t *at, int64_t k, int64_t step,
                                          mlki_chain chain) {
  for (; pixels >= 8; pixels -= 8, to += 8 * to_step, x += 8 * step)
    MLKI_FN(mlki_lanes_pixels)(8, to, to_step, lanes, w, x, at, k, step, chain);
  if (pixels >= 4) {
    MLKI_FN(mlki_lanes_pixels)(4, to, to_step, lanes, w, x, at, k, step, chain);
    pixels -= 4, to += 4 * to_step, x += 4 * step;
  }
  if (pixels >= 2) {
    MLKI_FN(mlki_lanes_pixels)(2, to, to_step, lanes, w, x, at, k, step, chain);
    pixels -= 2, to += 2 * to_step, x += 2 * step;
  }
  if (pixels) MLKI_FN(mlki_lanes_pixels)(1, to, to_step, lanes, w, x, at, k, step, chain);
}

#define MLKI_CHAINS 9 /* that go on side by side: a filter of 3 x 3; at least 8 hide the latency */

/* n chains, a constant where it is inlined. */
MLKI_INLINE_ISA void MLKI_FN(mlki_lanes_tile)(const int n, float *chain, const float *dy, const float *x,
                                              const int32_t *at, int64_t count, int64_t step) {
  mlki_vec acc[MLKI_CHAINS];
  const float *from[MLKI_CHAINS];
  int64_t i;
  int j;
  MLKI_UNROLL for (j = 0; j < n; j++) acc[j] = mlki_v_load(chain + j * MLKI_LANES), from[j] = x + at[j];
  for (i = 0; i < count; i++) {
    const mlki_vec d = mlki_v_load(dy + i * MLKI_LANES);
    MLKI_UNROLL for (j = 0; j < n; j++) acc[j] = mlki_v_fma(d, mlki_v_load(from[j] + i * step), acc[j]);
  }
  MLKI_UNROLL for (j = 0; j < n; j++) mlki_v_store(chain + j * MLKI_LANES, acc[j]);
}

#define MLKI_LANES_CASE(r)                                                                                             \
  case r: MLKI_FN(mlki_lanes_tile)(r, chain, dy, x, at, count, step); break

MLKI_KERNEL void MLKI_FN(mlki_lanes_chains)(float *chain, int64_t n, const float *dy, const float *x, const int32_t *at,
                                            int64_t count, int64_t step) {
  const int64_t height = mlki_ceil_div(n, mlki_ceil_div(n, MLKI_CHAINS));
  for (; n > 0; n -= height, chain += height * MLKI_LANES, at += height) {
    switch (mlki_min(n, height)) {
      MLKI_LANES_CASE(1);
      MLKI_LANES_CASE(2);
      MLKI_LANES_CASE(3);
      MLKI_LANES_CASE(4);
      MLKI_LANES_CASE(5);
      MLKI_LANES_CASE(6);
      MLKI_LANES_CASE(7);
      MLKI_LANES_CASE(8);
      MLKI_LANES_CASE(9);
    default: break;
    }
  }
}

/* >>map_kernels --------------------------------------------------------------------------------------------------
   Dense rows of elementwise maps, conversions, reductions and optimiser steps. Whatever is not dense is gathered into
   blocks before it comes here (>>map). */

/* The operations with long bodies, as a function: there is one of each per instruction set. */
MLKI_KERNEL mlki_vec MLKI_FN(mlki_map_called)(mlk_map_op op, mlk_activation activation, mlki_vec a, mlki_vec b) {
  switch (op) {
  case MLK_ACT: return MLKI_FN(mlki_activate)(activation, a);
  case MLK_ACT_GRAD: return MLKI_FN(mlki_activate_grad)(activation, a, b);
  case MLK_EXP: return MLKI_FN(mlki_exp)(a);
  case MLK_LOG: return MLKI_FN(mlki_log)(a);
  case MLK_ERF: return MLKI_FN(mlki_erf)(a);
  default: return a;
  }
}

/* One operation of mlk_map_op; op, and activation where it is RELU, are constants where it is inlined in a loop. */
MLKI_INLINE_ISA mlki_vec MLKI_FN(mlki_map_value)(const mlk_map_op op, const mlk_activation activation, mlki_vec alpha,
                                                 mlki_vec beta, mlki_vec a, mlki_vec b) {
  if (activation == MLK_RELU && op == MLK_ACT) return MLKI_FN(mlki_activate)(MLK_RELU, a);
  if (activation == MLK_RELU && op == MLK_ACT_GRAD) return MLKI_FN(mlki_relu_grad)(a, b);
  switch (op) {
  case MLK_COPY: return a;
  case MLK_SCALE: return mlki_v_mul(alpha, a);
  case MLK_ADD: return mlki_v_fma(alpha, a, mlki_v_mul(beta, b));
  case MLK_SUB: return mlki_v_sub(a, b);
  case MLK_MUL: return mlki_v_mul(a, b);
  case MLK_DIV: return mlki_v_div(a, b);
  case MLK_SQRT: return mlki_v_sqrt(a);
  default: return MLKI_FN(mlki_map_called)(op, activation, a, b);
  }
}

MLKI_INLINE_ISA void MLKI_FN(mlki_map_loop)(const mlk_map_op op, const mlk_activation activation,
                                            const mlki_map_row *m) {
  const mlki_vec alpha = mlki_v_set1(m->alpha), beta = mlki_v_set1(m->beta);
  const int64_t a_step = m->a_steps * MLKI_LANES, b_step = m->b_steps * MLKI_LANES, last = m->n % MLKI_LANES;
  const float *a = m->a, *b = m->b;
  float *out = m->out, *const end = out + (m->n - last);
  for (; out < end; out += MLKI_LANES, a += a_step, b += b_step)
    mlki_v_store(out, MLKI_FN(mlki_map_value)(op, activation, alpha, beta, mlki_v_load(a), mlki_v_load(b)));
  if (last)
    mlki_v_store_n(out,
                   MLKI_FN(mlki_map_value)(op, activation, alpha, beta, mlki_v_load_n(a, last), mlki_v_load_n(b, last)),
                   last);
}

#define MLKI_MAP_CASE(op)                                                                                              \
  case op: MLKI_FN(mlki_map_loop)(op, MLK_NONE, m); break

MLKI_KERNEL void MLKI_FN(mlki_map)(const mlki_map_row *m) {
  switch (m->op) {
    MLKI_MAP_CASE(MLK_COPY);
    MLKI_MAP_CASE(MLK_SCALE);
    MLKI_MAP_CASE(MLK_ADD);
    MLKI_MAP_CASE(MLK_SUB);
    MLKI_MAP_CASE(MLK_MUL);
    MLKI_MAP_CASE(MLK_DIV);
    MLKI_MAP_CASE(MLK_SQRT);
  default:
    if (m->activation == MLK_RELU && m->op == MLK_ACT)
      MLKI_FN(mlki_map_loop)(MLK_ACT, MLK_RELU, m);
    else if (m->activation == MLK_RELU && m->op == MLK_ACT_GRAD)
      MLKI_FN(mlki_map_loop)(MLK_ACT_GRAD, MLK_RELU, m);
    else
      MLKI_FN(mlki_map_loop)(m->op, m->activation, m);
    break;
  }
}

/* LANES elements of a narrow type at p. */
MLKI_INLINE_ISA mlki_vec MLKI_FN(mlki_widen_vec)(const mlk_dtype from, const char *p) {
  if (from == MLK_F16) return mlki_v_load_f16((const uint16_t *)(const void *)p);
  if (from == MLK_BF16) return mlki_v_load_bf16((const uint16_t *)(const void *)p);
  return mlki_v_load_u8((const uint8_t *)p);
}

MLKI_INLINE_ISA void MLKI_FN(mlki_narrow_vec)(const mlk_dtype to, char *p, mlki_vec v) {
  if (to == MLK_F16)
    mlki_v_store_f16((uint16_t *)(void *)p, v);
  else if (to == MLK_BF16)
    mlki_v_store_bf16((uint16_t *)(void *)p, v);
  else
    mlki_v_store_u8((uint8_t *)p, v);
}

MLKI_INLINE_ISA void MLKI_FN(mlki_widen_loop)(const mlk_dtype from, const char *p, float *to, int64_t n) {
  const int64_t bytes = from == MLK_U8 ? 1 : 2;
  uint16_t rest[MLKI_LANES_MAX] = {0};
  int64_t j;
  for (j = 0; j + MLKI_LANES <= n; j += MLKI_LANES) mlki_v_store(to + j, MLKI_FN(mlki_widen_vec)(from, p + j * bytes));
  if (j < n) {
    memcpy(rest, p + j * bytes, (size_t)((n - j) * bytes));
    mlki_v_store_n(to + j, MLKI_FN(mlki_widen_vec)(from, (const char *)rest), n - j);
  }
}

MLKI_INLINE_ISA void MLKI_FN(mlki_narrow_loop)(const mlk_dtype to, const float *from, char *p, int64_t n) {
  const int64_t bytes = to == MLK_U8 ? 1 : 2;
  uint16_t rest[MLKI_LANES_MAX];
  int64_t j;
  for (j = 0; j + MLKI_LANES <= n; j += MLKI_LANES) MLKI_FN(mlki_narrow_vec)(to, p + j * bytes, mlki_v_load(from + j));
  if (j < n) {
    MLKI_FN(mlki_narrow_vec)(to, (char *)rest, mlki_v_load_n(from + j, n - j));
    memcpy(p + j * bytes, rest, (size_t)((n - j) * bytes));
  }
}

MLKI_KERNEL void MLKI_FN(mlki_widen)(mlk_dtype from, const void *p, float *to, int64_t n) {
  if (from == MLK_F16)
    MLKI_FN(mlki_widen_loop)(MLK_F16, (const char *)p, to, n);
  else if (from == MLK_BF16)
    MLKI_FN(mlki_widen_loop)(MLK_BF16, (const char *)p, to, n);
  else
    MLKI_FN(mlki_widen_loop)(MLK_U8, (const char *)p, to, n);
}

MLKI_KERNEL void MLKI_FN(mlki_narrow)(mlk_dtype to, const float *from, void *p, int64_t n) {
  if (to == MLK_F16)
    MLKI_FN(mlki_narrow_loop)(MLK_F16, from, (char *)p, n);
  else if (to == MLK_BF16)
    MLKI_FN(mlki_narrow_loop)(MLK_BF16, from, (char *)p, n);
  else
    MLKI_FN(mlki_narrow_loop)(MLK_U8, from, (char *)p, n);
}

/* One step of a lane. MAX and MIN keep a NaN that they have, and take one that comes. */
MLKI_INLINE_ISA mlki_vec MLKI_FN(mlki_reduce_step)(const mlk_reduce_op op, mlki_vec acc, mlki_vec x) {
  switch (op) {
  case MLK_SUM_SQUARES: return mlki_v_fma(x, x, acc);
  case MLK_MAX: x = mlki_v_select(mlki_v_lt(x, acc), acc, x); return mlki_v_select(mlki_v_eq(acc, acc), x, acc);
  case MLK_MIN: x = mlki_v_select(mlki_v_gt(x, acc), acc, x); return mlki_v_select(mlki_v_eq(acc, acc), x, acc);
  default: return mlki_v_add(acc, x);
  }
}

/* rows (a constant) sums side by side. The 16 lanes turn with the phase, so that vectors start where x does: frame[j]
   is lane (phase + j) % 16. Missing elements of the last vectors add zeros, which no sum that began at +0 shows; MAX
   and MIN leave their lanes alone. */
MLKI_INLINE_ISA void MLKI_FN(mlki_reduce_rows_of)(const mlk_reduce_op op, const int rows, float *lanes, const float *x,
                                                  int64_t x_rs, int64_t n, int64_t phase) {
  mlki_vec acc[MLKI_REDUCE_ROWS][MLKI_V16];
  float frame[32];
  int64_t j;
  int i, v;
  MLKI_UNROLL for (i = 0; i < rows; i++) {
    memcpy(frame, lanes + 16 * i, 64);
    memcpy(frame + 16, lanes + 16 * i, 64);
    MLKI_UNROLL for (v = 0; v < MLKI_V16; v++) acc[i][v] = mlki_v_load(frame + phase + v * MLKI_LANES);
  }
  for (j = 0; j + 16 <= n; j += 16) {
    MLKI_UNROLL for (i = 0; i < rows; i++) {
      MLKI_UNROLL for (v = 0; v < MLKI_V16; v++)
          acc[i][v] = MLKI_FN(mlki_reduce_step)(op, acc[i][v], mlki_v_load(x + i * x_rs + j + v * MLKI_LANES));
    }
  }
  if (j < n) {
    MLKI_UNROLL for (i = 0; i < rows; i++) {
      MLKI_UNROLL for (v = 0; v < MLKI_V16; v++) {
        const int64_t left = mlki_max(mlki_min(n - j - v * MLKI_LANES, MLKI_LANES), 0);
        mlki_vec t = mlki_v_load_n(x + i * x_rs + j + v * MLKI_LANES, left);
        t = MLKI_FN(mlki_reduce_step)(op, acc[i][v], t);
        mlki_v_store(frame, acc[i][v]);
        mlki_v_store_n(frame, t, left);
        acc[i][v] = mlki_v_load(frame);
      }
    }
  }
  MLKI_UNROLL for (i = 0; i < rows; i++) {
    MLKI_UNROLL for (v = 0; v < MLKI_V16; v++) mlki_v_store(frame + v * MLKI_LANES, acc[i][v]);
    memcpy(lanes + 16 * i + phase, frame, (size_t)(16 - phase) * 4);
    memcpy(lanes + 16 * i, frame + 16 - phase, (size_t)phase * 4);
  }
}

MLKI_INLINE_ISA void MLKI_FN(mlki_reduce_rows_op)(const mlk_reduce_op op, float *lanes, int64_t rows, const float *x,
                                                  int64_t x_rs, int64_t n, int64_t phase) {
  if (rows == MLKI_REDUCE_ROWS)
    MLKI_FN(mlki_reduce_rows_of)(op, MLKI_REDUCE_ROWS, lanes, x, x_rs, n, phase);
  else
    for (; rows > 0; rows--, lanes += 16, x += x_rs) MLKI_FN(mlki_reduce_rows_of)(op, 1, lanes, x, 0, n, phase);
}

MLKI_KERNEL void MLKI_FN(mlki_reduce_rows)(mlk_reduce_op op, float *lanes, int64_t rows, const float *x, int64_t x_rs,
                                           int64_t n, int64_t phase) {
  switch (op) {
  case MLK_SUM_SQUARES: MLKI_FN(mlki_reduce_rows_op)(MLK_SUM_SQUARES, lanes, rows, x, x_rs, n, phase); break;
  case MLK_MAX: MLKI_FN(mlki_reduce_rows_op)(MLK_MAX, lanes, rows, x, x_rs, n, phase); break;
  case MLK_MIN: MLKI_FN(mlki_reduce_rows_op)(MLK_MIN, lanes, rows, x, x_rs, n, phase); break;
  default: MLKI_FN(mlki_reduce_rows_op)(MLK_SUM, lanes, rows, x, x_rs, n, phase); break;
  }
}

/* LANES columns, or the last ones. Whole turns of 16 rows run in registers, A accumulators at a time; what is before
   and behind them in memory. */
MLKI_INLINE_ISA void MLKI_FN(mlki_reduce_strip)(const mlk_reduce_op op, float *lanes, int64_t width, int64_t cols,
                                                const float *x, int64_t x_rs, int64_t n, int64_t phase) {
  const int whole = cols == MLKI_LANES;
  mlki_vec acc[MLKI_TURN];
  int64_t i = 0, r, l;
  int a;
  for (; i < n; i++) {
    float *at = lanes + (phase + i) % 16 * width;
    if ((phase + i) % 16 == 0 && n - i >= 16) {
      const int64_t turns = (n - i) / 16;
      for (l = 0; l < 16; l += MLKI_TURN) {
        const float *row = x + (i + l) * x_rs;
        MLKI_UNROLL for (a = 0; a < MLKI_TURN; a++) acc[a] = whole ? mlki_v_load(lanes + (l + a) * width)
                                                                   : mlki_v_load_n(lanes + (l + a) * width, cols);
        for (r = 0; r < turns; r++, row += 16 * x_rs) {
          MLKI_UNROLL for (a = 0; a < MLKI_TURN; a++) acc[a] = MLKI_FN(mlki_reduce_step)(
              op, acc[a], whole ? mlki_v_load(row + a * x_rs) : mlki_v_load_n(row + a * x_rs, cols));
        }
        MLKI_UNROLL for (a = 0; a < MLKI_TURN; a++) {
          if (whole)
            mlki_v_store(lanes + (l + a) * width, acc[a]);
          else
            mlki_v_store_n(lanes + (l + a) * width, acc[a], cols);
        }
      }
      i += 16 * turns - 1;
    } else {
      const mlki_vec t = whole ? mlki_v_load(x + i * x_rs) : mlki_v_load_n(x + i * x_rs, cols);
      const mlki_vec old = whole ? mlki_v_load(at) : mlki_v_load_n(at, cols);
      if (whole)
        mlki_v_store(at, MLKI_FN(mlki_reduce_step)(op, old, t));
      else
        mlki_v_store_n(at, MLKI_FN(mlki_reduce_step)(op, old, t), cols);
    }
  }
}

MLKI_INLINE_ISA void MLKI_FN(mlki_reduce_columns_op)(const mlk_reduce_op op, float *lanes, int64_t width,
                                                     const float *x, int64_t x_rs, int64_t n, int64_t phase) {
  int64_t j = 0;
  for (; j + MLKI_LANES <= width; j += MLKI_LANES)
    MLKI_FN(mlki_reduce_strip)(op, lanes + j, width, MLKI_LANES, x + j, x_rs, n, phase);
  if (j < width) MLKI_FN(mlki_reduce_strip)(op, lanes + j, width, width - j, x + j, x_rs, n, phase);
}

MLKI_KERNEL void MLKI_FN(mlki_reduce_columns)(mlk_reduce_op op, float *lanes, int64_t width, const float *x,
                                              int64_t x_rs, int64_t n, int64_t phase) {
  switch (op) {
  case MLK_SUM_SQUARES: MLKI_FN(mlki_reduce_columns_op)(MLK_SUM_SQUARES, lanes, width, x, x_rs, n, phase); break;
  case MLK_MAX: MLKI_FN(mlki_reduce_columns_op)(MLK_MAX, lanes, width, x, x_rs, n, phase); break;
  case MLK_MIN: MLKI_FN(mlki_reduce_columns_op)(MLK_MIN, lanes, width, x, x_rs, n, phase); break;
  default: MLKI_FN(mlki_reduce_columns_op)(MLK_SUM, lanes, width, x, x_rs, n, phase); break;
  }
}

/* The tree of NUMERICS for columns; op is a constant, SUM for all sums. */
MLKI_INLINE_ISA void MLKI_FN(mlki_reduce_tree_strips)(const mlk_reduce_op op, float *lanes, int64_t width,
                                                      float *sums) {
  mlki_vec t[16];
  int64_t j;
  int half, l;
  for (j = 0; j < width; j += MLKI_LANES) {
    const int64_t n = mlki_min(width - j, MLKI_LANES);
    MLKI_UNROLL for (l = 0; l < 16; l++) t[l] = MLKI_FN(mlki_load_any)(lanes + l * width + j, 1, n);
    MLKI_UNROLL for (half = 8; half >= 1; half /= 2) {
      MLKI_UNROLL for (l = 0; l < half; l++) t[l] = MLKI_FN(mlki_reduce_step)(op, t[l], t[l + half]);
    }
    MLKI_FN(mlki_store_any)(sums + j, 1, n, t[0]);
  }
}

MLKI_KERNEL void MLKI_FN(mlki_reduce_tree_columns)(mlk_reduce_op op, float *lanes, int64_t width, float *sums) {
  if (op == MLK_MAX)
    MLKI_FN(mlki_reduce_tree_strips)(MLK_MAX, lanes, width, sums);
  else if (op == MLK_MIN)
    MLKI_FN(mlki_reduce_tree_strips)(MLK_MIN, lanes, width, sums);
  else
    MLKI_FN(mlki_reduce_tree_strips)(MLK_SUM, lanes, width, sums);
}

MLKI_KERNEL void MLKI_FN(mlki_reduce_tree_rows)(mlk_reduce_op op, float *lanes, int64_t rows, float *sums) {
  mlki_vec t[MLKI_V16];
  int64_t i, l;
  int half, v;
  for (i = 0; i < rows; i++, lanes += 16) {
    if (op != MLK_MAX && op != MLK_MIN) {
      for (v = 0; v < MLKI_V16; v++) t[v] = mlki_v_load(lanes + v * MLKI_LANES);
      sums[i] = mlki_v_sum16(t);
      continue;
    }
    for (half = 8; half >= 1; half /= 2)
      for (l = 0; l < half; l += MLKI_LANES) {
        const int64_t n = mlki_min(half - l, MLKI_LANES);
        const mlki_vec a = mlki_v_load_n(lanes + l, n), b = mlki_v_load_n(lanes + half + l, n);
        mlki_v_store_n(
            lanes + l,
            op == MLK_MAX ? MLKI_FN(mlki_reduce_step)(MLK_MAX, a, b) : MLKI_FN(mlki_reduce_step)(MLK_MIN, a, b), n);
      }
    sums[i] = lanes[0];
  }
}

/* Lanes of x that are value, or NaN where that is NaN. */
MLKI_INLINE_ISA unsigned MLKI_FN(mlki_is_value)(mlki_vec x, mlki_vec value) {
  return mlki_v_bits(mlki_v_eq(x, value)) | (~mlki_v_bits(mlki_v_eq(x, x)) & ~mlki_v_bits(mlki_v_eq(value, value)));
}

MLKI_KERNEL int64_t MLKI_FN(mlki_find)(const float *x, int64_t n, float value) {
  const mlki_vec wanted = mlki_v_set1(value);
  int64_t i;
  for (i = 0; i < n; i += MLKI_LANES) {
    const int64_t lanes = mlki_min(n - i, MLKI_LANES);
    const mlki_vec t = MLKI_FN(mlki_load_any)(x + i, 1, lanes);
    unsigned hits = MLKI_FN(mlki_is_value)(t, wanted) & (unsigned)((1ull << lanes) - 1);
    if (!hits) continue;
    for (; !(hits & 1); hits >>= 1) i++;
    return i;
  }
  return n;
}

MLKI_KERNEL int64_t MLKI_FN(mlki_find_columns)(const float *x, int64_t x_rs, int64_t n, int64_t width,
                                               const float *value, int64_t base, int64_t *first) {
  int64_t left = 0, i, j;
  int l;
  for (j = 0; j < width; j += MLKI_LANES) {
    const int64_t lanes = mlki_min(width - j, MLKI_LANES);
    const mlki_vec wanted = MLKI_FN(mlki_load_any)(value + j, 1, lanes);
    unsigned open = 0, hits;
    for (l = 0; l < lanes; l++) open |= (unsigned)(first[j + l] < 0) << l;
    for (i = 0; i < n && open; i++) {
      hits = MLKI_FN(mlki_is_value)(MLKI_FN(mlki_load_any)(x + i * x_rs + j, 1, lanes), wanted) & open;
      open ^= hits;
      for (l = 0; hits; l++, hits >>= 1)
        if (hits & 1) first[j + l] = base + i;
    }
    for (; open; open &= open - 1) left++;
  }
  return left;
}

/* One vector of mlk_sgd. */
MLKI_INLINE_ISA mlki_vec MLKI_FN(mlki_sgd_value)(const mlki_optimizer *o, mlki_vec p, mlki_vec g, mlki_vec *v) {
  const mlki_vec momentum = mlki_v_set1(o->momentum);
  const mlki_vec t = mlki_v_fma(mlki_v_set1(o->weight_decay), p, g);
  *v = mlki_v_fma(momentum, *v, t);
  return mlki_v_fma(mlki_v_set1(o->lr), o->nesterov ? mlki_v_fma(momentum, *v, t) : *v, p);
}

MLKI_KERNEL void MLKI_FN(mlki_sgd)(const mlki_optimizer *o, float *p, const float *g, float *v, int64_t n) {
  const mlki_vec decay = mlki_v_set1(o->weight_decay), lr = mlki_v_set1(o->lr);
  int64_t j, left;
  for (j = 0; j < n; j += MLKI_LANES) {
    const int whole = n - j >= MLKI_LANES;
    mlki_vec pv, gv, vv;
    left = n - j;
    pv = whole ? mlki_v_load(p + j) : mlki_v_load_n(p + j, left);
    gv = whole ? mlki_v_load(g + j) : mlki_v_load_n(g + j, left);
    if (!v) {
      pv = mlki_v_fma(lr, mlki_v_fma(decay, pv, gv), pv);
    } else {
      vv = whole ? mlki_v_load(v + j) : mlki_v_load_n(v + j, left);
      pv = MLKI_FN(mlki_sgd_value)(o, pv, gv, &vv);
      if (whole)
        mlki_v_store(v + j, vv);
      else
        mlki_v_store_n(v + j, vv, left);
    }
    if (whole)
      mlki_v_store(p + j, pv);
    else
      mlki_v_store_n(p + j, pv, left);
  }
}

/* One vector of mlk_adamw. */
MLKI_INLINE_ISA mlki_vec MLKI_FN(mlki_adamw_value)(const mlki_optimizer *o, mlki_vec p, mlki_vec g, mlki_vec *m,
                                                   mlki_vec *v) {
  mlki_vec root;
  *m = mlki_v_fma(mlki_v_set1(o->beta1), *m, mlki_v_mul(mlki_v_set1(o->b1), g));
  *v = mlki_v_fma(mlki_v_set1(o->beta2), *v, mlki_v_mul(mlki_v_set1(o->b2), mlki_v_mul(g, g)));
  root = mlki_v_add(mlki_v_sqrt(mlki_v_mul(mlki_v_set1(o->q), *v)), mlki_v_set1(o->epsilon));
  return mlki_v_fma(mlki_v_set1(o->d), p, mlki_v_div(mlki_v_mul(mlki_v_set1(o->r), *m), root));
}

MLKI_KERNEL void MLKI_FN(mlki_adamw)(const mlki_optimizer *o, float *p, const float *g, float *m, float *v, int64_t n) {
  int64_t j;
  for (j = 0; j + MLKI_LANES <= n; j += MLKI_LANES) {
    mlki_vec mv = mlki_v_load(m + j), vv = mlki_v_load(v + j);
    mlki_v_store(p + j, MLKI_FN(mlki_adamw_value)(o, mlki_v_load(p + j), mlki_v_load(g + j), &mv, &vv));
    mlki_v_store(m + j, mv);
    mlki_v_store(v + j, vv);
  }
  if (j < n) {
    mlki_vec mv = mlki_v_load_n(m + j, n - j), vv = mlki_v_load_n(v + j, n - j);
    mlki_vec pv = mlki_v_load_n(p + j, n - j), gv = mlki_v_load_n(g + j, n - j);
    mlki_v_store_n(p + j, MLKI_FN(mlki_adamw_value)(o, pv, gv, &mv, &vv), n - j);
    mlki_v_store_n(m + j, mv, n - j);
    mlki_v_store_n(v + j, vv, n - j);
  }
}

/* >>layer_kernels ------------------------------------------------------------------------------------------------
   Windows of pooling, rows of softmax: compiled once per instruction set. A row is n dense floats. */

/* n of LANES elements, step apart; others are anything. A step of 2 reads dense vectors, up to the last element wanted
   and not beyond it. */
MLKI_INLINE_ISA mlki_vec MLKI_FN(mlki_load_step)(const float *p, int64_t step, int64_t n) {
  const int64_t reach = 2 * n - 1; /* elements from the first to the last wanted */
  if (step != 2) return MLKI_FN(mlki_load_any)(p, step, n);
  if (n == MLKI_LANES) return mlki_v_skip(mlki_v_load(p), mlki_v_load(p + MLKI_LANES - 1));
  return mlki_v_skip(mlki_v_load_n(p, mlki_min(reach, MLKI_LANES)),
                     reach < MLKI_LANES ? mlki_v_zero() : mlki_v_load_n(p + MLKI_LANES - 1, reach - MLKI_LANES + 1));
}

/* Outputs [i, i + (vecs - 1) LANES + last) of a run. Comparisons are strict and taps come in row-major order, so the
   first largest stays; a NaN is taken, and stays because nothing is larger. */
MLKI_INLINE_ISA void MLKI_FN(mlki_pool_vectors)(const mlki_pool_run *r, const int vecs, const int largest,
                                                const int places, int64_t step, int64_t i, int64_t last) {
  mlki_vec acc[4], place[4];
  int64_t a, b, c, j;
  int v;
  MLKI_UNROLL for (v = 0; v < vecs; v++) {
    acc[v] = largest ? mlki_v_set1(-INFINITY) : mlki_v_zero();
    place[v] = mlki_v_zero();
  }
  for (a = 0; a < r->taps[0]; a++)
    for (b = 0; b < r->taps[1]; b++)
      for (c = 0; c < r->taps[2]; c++) {
        const float *x = r->x + a * r->tap_step[0] + b * r->tap_step[1] + c * r->tap_step[2] + i * step;
        const mlki_vec at = mlki_v_set1(
            places ? (float)(a * r->tap_place[0] + b * r->tap_place[1] + c * r->tap_place[2]) : 0.0f);
        MLKI_UNROLL for (v = 0; v < vecs; v++) {
          const mlki_vec e = MLKI_FN(mlki_load_step)(x + v * MLKI_LANES * step, step, v + 1 < vecs ? MLKI_LANES : last);
          if (largest) {
            const mlki_mask number = mlki_v_eq(e, e);
            if (places) {
              const mlki_vec first_nan = mlki_v_select(mlki_v_eq(acc[v], acc[v]), at, place[v]);
              place[v] = mlki_v_select(mlki_v_gt(e, acc[v]), at, place[v]);
              place[v] = mlki_v_select(number, place[v], first_nan);
            }
            acc[v] = mlki_v_select(number, mlki_v_max(e, acc[v]), e);
          } else {
            acc[v] = mlki_v_add(acc[v], e);
          }
        }
      }
  MLKI_UNROLL for (v = 0; v < vecs; v++) {
    const int64_t at = i + v * MLKI_LANES, n = v + 1 < vecs ? MLKI_LANES : last;
    float lane[MLKI_LANES_MAX];
    if (!largest) acc[v] = mlki_v_div(acc[v], mlki_v_set1(r->divisor));
    MLKI_FN(mlki_store_any)(r->y + at * r->y_step, r->y_step, n, acc[v]);
    if (places) {
      int64_t *index = r->indices + at * r->index_step, from = r->place + at * r->place_step;
      mlki_v_store(lane, place[v]);
      for (j = 0; j < n; j++, index += r->index_step, from += r->place_step) *index = from + (int64_t)lane[j];
    }
  }
}

/* largest, places and a step of 1 or 2 are constants where this is inlined. */
MLKI_INLINE_ISA void MLKI_FN(mlki_pool_any)(const mlki_pool_run *r, const int largest, const int places, int64_t step) {
  int64_t i = 0;
  for (; i + 4 * MLKI_LANES <= r->n; i += 4 * MLKI_LANES)
    MLKI_FN(mlki_pool_vectors)(r, 4, largest, places, step, i, MLKI_LANES);
  for (; i < r->n; i += MLKI_LANES)
    MLKI_FN(mlki_pool_vectors)(r, 1, largest, places, step, i, mlki_min(r->n - i, MLKI_LANES));
}

MLKI_KERNEL void MLKI_FN(mlki_pool_dense)(const mlki_pool_run *r) {
  if (!r->largest)
    MLKI_FN(mlki_pool_any)(r, 0, 0, 1);
  else if (!r->indices)
    MLKI_FN(mlki_pool_any)(r, 1, 0, 1);
  else
    MLKI_FN(mlki_pool_any)(r, 1, 1, 1);
}

MLKI_KERNEL void MLKI_FN(mlki_pool_second)(const mlki_pool_run *r) {
  if (!r->largest)
    MLKI_FN(mlki_pool_any)(r, 0, 0, 2);
  else if (!r->indices)
    MLKI_FN(mlki_pool_any)(r, 1, 0, 2);
  else
    MLKI_FN(mlki_pool_any)(r, 1, 1, 2);
}

MLKI_KERNEL void MLKI_FN(mlki_pool_strided)(const mlki_pool_run *r) {
  if (!r->largest)
    MLKI_FN(mlki_pool_any)(r, 0, 0, r->x_step);
  else if (!r->indices)
    MLKI_FN(mlki_pool_any)(r, 1, 0, r->x_step);
  else
    MLKI_FN(mlki_pool_any)(r, 1, 1, r->x_step);
}

MLKI_KERNEL void MLKI_FN(mlki_pool)(const mlki_pool_run *r) {
  if (r->x_step == 1)
    MLKI_FN(mlki_pool_dense)(r);
  else if (r->x_step == 2)
    MLKI_FN(mlki_pool_second)(r);
  else
    MLKI_FN(mlki_pool_strided)(r);
}

/* Elements [i, i + LANES) of a row of n, zeros behind its end. */
MLKI_INLINE_ISA mlki_vec MLKI_FN(mlki_row_load)(const float *x, int64_t i, int64_t n) {
  if (MLKI_LIKELY(i + MLKI_LANES <= n)) return mlki_v_load(x + i);
  return i < n ? mlki_v_load_n(x + i, n - i) : mlki_v_zero();
}

MLKI_INLINE_ISA void MLKI_FN(mlki_row_store)(float *y, int64_t i, int64_t n, mlki_vec v) {
  if (MLKI_LIKELY(i + MLKI_LANES <= n))
    mlki_v_store(y + i, v);
  else if (i < n)
    mlki_v_store_n(y + i, v, n - i);
}

/* v with zeros in the lanes of elements behind the end of a row of n; lane 0 is element i. */
MLKI_INLINE_ISA mlki_vec MLKI_FN(mlki_row_keep)(mlki_vec v, int64_t i, int64_t n) {
  float lane[MLKI_LANES_MAX];
  if (MLKI_LIKELY(i + MLKI_LANES <= n)) return v;
  mlki_v_store(lane, v);
  return mlki_v_load_n(lane, mlki_max(n - i, 0));
}

/* The largest element that is no NaN, -infinity where there is none; a zero is +0, so that the order of elements does
   not show. */
MLKI_KERNEL float MLKI_FN(mlki_row_max)(const float *x, int64_t n) {
  static const float ones[MLKI_LANES_MAX] = {1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f,
                                             1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f};
  mlki_vec acc[4];
  float lane[MLKI_LANES_MAX], largest = -INFINITY;
  int64_t i = 0;
  int v;
  MLKI_UNROLL for (v = 0; v < 4; v++) acc[v] = mlki_v_set1(-INFINITY);
  for (; i + 4 * MLKI_LANES <= n; i += 4 * MLKI_LANES)
    MLKI_UNROLL for (v = 0; v < 4; v++) acc[v] = mlki_v_max(mlki_v_load(x + i + v * MLKI_LANES), acc[v]);
  for (; i + MLKI_LANES <= n; i += MLKI_LANES) acc[0] = mlki_v_max(mlki_v_load(x + i), acc[0]);
  if (i < n) {
    const mlki_mask there = mlki_v_gt(mlki_v_load_n(ones, n - i), mlki_v_zero());
    acc[1] = mlki_v_max(mlki_v_select(there, mlki_v_load_n(x + i, n - i), acc[1]), acc[1]);
  }
  acc[0] = mlki_v_max(mlki_v_max(acc[0], acc[1]), mlki_v_max(acc[2], acc[3]));
  mlki_v_store(lane, acc[0]);
  for (v = 4; v < MLKI_LANES; v += 4) /* four chains of comparisons */
    for (i = 0; i < 4; i++) lane[i] = lane[v + i] > lane[i] ? lane[v + i] : lane[i];
  for (v = 0; v < 4; v++) largest = lane[v] > largest ? lane[v] : largest;
  return largest + 0.0f;
}

/* exp of t <= 0 or NaN. What is 0 anyway, as a masked score is, is not computed: underflow is
   slow on many processors. */
MLKI_INLINE_ISA mlki_vec MLKI_FN(mlki_exp_row)(mlki_vec t) {
  const mlki_mask none = mlki_v_lt(t, mlki_v_set1(-104.0f));
  return mlki_v_select(none, mlki_v_zero(), MLKI_FN(mlki_exp_bounded)(mlki_v_select(none, mlki_v_zero(), t)));
}

/* e = exp(x - max) where e is not NULL, which may be x. Returns the 16-lane sum. */
MLKI_KERNEL float MLKI_FN(mlki_row_exp)(float *e, const float *x, int64_t n, float max) {
  const mlki_vec top = mlki_v_set1(max);
  const int64_t whole = e ? n / 16 * 16 : 0;
  mlki_vec sum[MLKI_V16];
  int64_t i;
  int v;
  MLKI_UNROLL for (v = 0; v < MLKI_V16; v++) sum[v] = mlki_v_zero();
  for (i = 0; i < whole; i += 16) MLKI_UNROLL for (v = 0; v < MLKI_V16; v++) {
      const mlki_vec y = MLKI_FN(mlki_exp_row)(mlki_v_sub(mlki_v_load(x + i + v * MLKI_LANES), top));
      mlki_v_store(e + i + v * MLKI_LANES, y);
      sum[v] = mlki_v_add(sum[v], y);
    }
  for (; i < n; i += 16) MLKI_UNROLL for (v = 0; v < MLKI_V16; v++) {
      const int64_t at = i + v * MLKI_LANES;
      const mlki_vec y = MLKI_FN(mlki_exp_row)(mlki_v_sub(MLKI_FN(mlki_row_load)(x, at, n), top));
      if (e) MLKI_FN(mlki_row_store)(e, at, n, y);
      sum[v] = mlki_v_add(sum[v], MLKI_FN(mlki_row_keep)(y, at, n));
    }
  return mlki_v_sum16(sum);
}

/* y = scale (e / divisor); y may be e. */
MLKI_KERNEL void MLKI_FN(mlki_row_quotient)(float *y, const float *e, int64_t n, float divisor, float scale) {
  const mlki_vec d = mlki_v_set1(divisor), s = mlki_v_set1(scale);
  int64_t i;
  for (i = 0; i < n; i += MLKI_LANES)
    MLKI_FN(mlki_row_store)(y, i, n, mlki_v_mul(s, mlki_v_div(MLKI_FN(mlki_row_load)(e, i, n), d)));
}

/* y = (x - max) - log_sum; y may be x. */
MLKI_KERNEL void MLKI_FN(mlki_row_log_softmax)(float *y, const float *x, int64_t n, float max, float log_sum) {
  const mlki_vec m = mlki_v_set1(max), l = mlki_v_set1(log_sum);
  int64_t i;
  for (i = 0; i < n; i += MLKI_LANES)
    MLKI_FN(mlki_row_store)(y, i, n, mlki_v_sub(mlki_v_sub(MLKI_FN(mlki_row_load)(x, i, n), m), l));
}

/* The 16-lane sum. */
MLKI_KERNEL float MLKI_FN(mlki_row_sum)(const float *x, int64_t n) {
  mlki_vec sum[MLKI_V16];
  int64_t i;
  int v;
  MLKI_UNROLL for (v = 0; v < MLKI_V16; v++) sum[v] = mlki_v_zero();
  for (i = 0; i < n; i += 16)
    MLKI_UNROLL for (v = 0; v < MLKI_V16; v++)
        sum[v] = mlki_v_add(sum[v], MLKI_FN(mlki_row_load)(x, i + v * MLKI_LANES, n));
  return mlki_v_sum16(sum);
}

/* dx = y (dy - sum), or with log dx = dy - exp(y) sum in one rounding; dx may be dy. */
MLKI_KERNEL void MLKI_FN(mlki_row_softmax_grad)(float *dx, const float *y, const float *dy, int64_t n, float sum,
                                                int log) {
  const mlki_vec s = mlki_v_set1(sum);
  int64_t i;
  for (i = 0; i < n; i += MLKI_LANES) {
    const mlki_vec yv = MLKI_FN(mlki_row_load)(y, i, n), g = MLKI_FN(mlki_row_load)(dy, i, n);
    const mlki_vec d = log ? mlki_v_fnma(MLKI_FN(mlki_exp)(yv), s, g) : mlki_v_mul(yv, mlki_v_sub(g, s));
    MLKI_FN(mlki_row_store)(dx, i, n, d);
  }
}

/* The 16-lane sum of (x - mean)^2. */
MLKI_KERNEL float MLKI_FN(mlki_row_moment)(const float *x, int64_t n, float mean) {
  const mlki_vec m = mlki_v_set1(mean);
  mlki_vec sum[MLKI_V16];
  int64_t i;
  int v;
  MLKI_UNROLL for (v = 0; v < MLKI_V16; v++) sum[v] = mlki_v_zero();
  for (i = 0; i < n; i += 16) MLKI_UNROLL for (v = 0; v < MLKI_V16; v++) {
      const int64_t at = i + v * MLKI_LANES;
      const mlki_vec t = MLKI_FN(mlki_row_keep)(mlki_v_sub(MLKI_FN(mlki_row_load)(x, at, n), m), at, n);
      sum[v] = mlki_v_fma(t, t, sum[v]);
    }
  return mlki_v_sum16(sum);
}

/* y = fma((x - mean) rstd, gamma, beta); y may be x. */
MLKI_KERNEL void MLKI_FN(mlki_row_normal)(float *y, const float *x, const float *gamma, const float *beta, int64_t n,
                                          float mean, float rstd) {
  const mlki_vec m = mlki_v_set1(mean), r = mlki_v_set1(rstd);
  int64_t i;
  for (i = 0; i < n; i += MLKI_LANES) {
    const mlki_vec h = mlki_v_mul(mlki_v_sub(MLKI_FN(mlki_row_load)(x, i, n), m), r);
    MLKI_FN(mlki_row_store)
    (y, i, n, mlki_v_fma(h, MLKI_FN(mlki_row_load)(gamma, i, n), MLKI_FN(mlki_row_load)(beta, i, n)));
  }
}

/* With h = (x - mean) rstd and g = dy gamma: sums[0] = sum of g, sums[1] = sum of fma(g, h, .), in 16 lanes. */
MLKI_KERNEL void MLKI_FN(mlki_row_normal_sums)(const float *x, const float *dy, const float *gamma, int64_t n,
                                               float mean, float rstd, float sums[2]) {
  const mlki_vec m = mlki_v_set1(mean), r = mlki_v_set1(rstd);
  mlki_vec a[MLKI_V16], b[MLKI_V16];
  int64_t i;
  int v;
  MLKI_UNROLL for (v = 0; v < MLKI_V16; v++) a[v] = b[v] = mlki_v_zero();
  for (i = 0; i < n; i += 16) MLKI_UNROLL for (v = 0; v < MLKI_V16; v++) {
      const int64_t at = i + v * MLKI_LANES;
      const mlki_vec t = mlki_v_mul(mlki_v_sub(MLKI_FN(mlki_row_load)(x, at, n), m), r);
      const mlki_vec h = MLKI_FN(mlki_row_keep)(t, at, n); /* where mean is infinite, t is a NaN behind the end */
      const mlki_vec g = mlki_v_mul(MLKI_FN(mlki_row_load)(dy, at, n), MLKI_FN(mlki_row_load)(gamma, at, n));
      a[v] = mlki_v_add(a[v], g);
      b[v] = mlki_v_fma(g, h, b[v]);
    }
  sums[0] = mlki_v_sum16(a), sums[1] = mlki_v_sum16(b);
}

/* dx = rstd fma(-h, b, g - a); dx may be dy. */
MLKI_KERNEL void MLKI_FN(mlki_row_normal_grad)(float *dx, const float *x, const float *dy, const float *gamma,
                                               int64_t n, float mean, float rstd, float a, float b) {
  const mlki_vec m = mlki_v_set1(mean), r = mlki_v_set1(rstd), av = mlki_v_set1(a), bv = mlki_v_set1(b);
  int64_t i;
  for (i = 0; i < n; i += MLKI_LANES) {
    const mlki_vec h = mlki_v_mul(mlki_v_sub(MLKI_FN(mlki_row_load)(x, i, n), m), r);
    const mlki_vec g = mlki_v_mul(MLKI_FN(mlki_row_load)(dy, i, n), MLKI_FN(mlki_row_load)(gamma, i, n));
    MLKI_FN(mlki_row_store)(dx, i, n, mlki_v_mul(r, mlki_v_fnma(h, bv, mlki_v_sub(g, av))));
  }
}

/* Chains over rows, one for each of n columns: dgamma = fma(dy, h, dgamma), dbeta += dy. */
MLKI_KERNEL void MLKI_FN(mlki_normal_columns)(float *dgamma, float *dbeta, const float **x, const float **dy,
                                              const float *mean, const float *rstd, int64_t rows, int64_t n) {
  int64_t i, r;
  for (i = 0; i < n; i += MLKI_LANES) {
    mlki_vec g = MLKI_FN(mlki_row_load)(dgamma, i, n), b = MLKI_FN(mlki_row_load)(dbeta, i, n);
    for (r = 0; r < rows; r++) {
      const mlki_vec d = MLKI_FN(mlki_row_load)(dy[r], i, n);
      const mlki_vec t = mlki_v_sub(MLKI_FN(mlki_row_load)(x[r], i, n), mlki_v_set1(mean[r]));
      g = mlki_v_fma(d, mlki_v_mul(t, mlki_v_set1(rstd[r])), g);
      b = mlki_v_add(b, d);
    }
    MLKI_FN(mlki_row_store)(dgamma, i, n, g);
    MLKI_FN(mlki_row_store)(dbeta, i, n, b);
  }
}

/* Turns pairs. Halves: (x[j], x[j + pairs]) by c[j], s[j]. Interleaved: (x[2j], x[2j + 1]), where c and s have an entry
   for each element, c twice, -s and s. y may be x. */
MLKI_KERNEL void MLKI_FN(mlki_rotate)(float *y, const float *x, const float *c, const float *s, int64_t pairs,
                                      int interleaved) {
  int64_t i;
  if (interleaved) {
    for (i = 0; i < 2 * pairs; i += MLKI_LANES) {
      const mlki_vec v = MLKI_FN(mlki_row_load)(x, i, 2 * pairs);
      const mlki_vec t = mlki_v_mul(v, MLKI_FN(mlki_row_load)(c, i, 2 * pairs));
      MLKI_FN(mlki_row_store)
      (y, i, 2 * pairs, mlki_v_fma(mlki_v_swap(v), MLKI_FN(mlki_row_load)(s, i, 2 * pairs), t));
    }
    return;
  }
  for (i = 0; i < pairs; i += MLKI_LANES) {
    const mlki_vec x0 = MLKI_FN(mlki_row_load)(x, i, pairs), x1 = MLKI_FN(mlki_row_load)(x + pairs, i, pairs);
    const mlki_vec cv = MLKI_FN(mlki_row_load)(c, i, pairs), sv = MLKI_FN(mlki_row_load)(s, i, pairs);
    MLKI_FN(mlki_row_store)(y, i, pairs, mlki_v_fnma(x1, sv, mlki_v_mul(x0, cv)));
    MLKI_FN(mlki_row_store)(y + pairs, i, pairs, mlki_v_fma(x0, sv, mlki_v_mul(x1, cv)));
  }
}

/* >>average_kernels ----------------------------------------------------------------------------------------------
   Means of several rows in one pass: compiled once per instruction set. The loop over rows is the inner one, so that
   all are read side by side; several vectors of sums are under way. */

MLKI_INLINE_ISA mlki_vec MLKI_FN(mlki_average_load)(const mlk_dtype from, const char *p) {
  return from == MLK_F32 ? mlki_v_load((const float *)(const void *)p) : MLKI_FN(mlki_widen_vec)(from, p);
}

/* n of LANES elements; others are 0. */
MLKI_INLINE_ISA mlki_vec MLKI_FN(mlki_average_load_n)(const mlk_dtype from, const char *p, int64_t n) {
  uint16_t rest[MLKI_LANES_MAX] = {0};
  if (from == MLK_F32) return mlki_v_load_n((const float *)(const void *)p, n);
  memcpy(rest, p, (size_t)n * 2);
  return MLKI_FN(mlki_widen_vec)(from, (const char *)rest);
}

/* Adds row number r to a block of sums. */
MLKI_INLINE_ISA void MLKI_FN(mlki_average_row_add)(const mlk_dtype from, const mlki_average_row *a, int r, int64_t at,
                                                   mlki_vec *t) {
  const int64_t bytes = from == MLK_F32 ? 4 : 2;
  const char *x = a->x[r] + at * bytes;
  const mlki_vec w = mlki_v_set1(a->weight[r]);
  int v;
  MLKI_UNROLL for (v = 0; v < MLKI_MEANS; v++)
      t[v] = mlki_v_fma(w, MLKI_FN(mlki_average_load)(from, x + v * MLKI_LANES * bytes), t[v]);
}

/* Adds rows (a constant: 1, 2, 4 or 8) rows from number r on: each by instructions of its own, which is how processors
   tell streams apart that they fetch ahead. No loop: clang does not unroll one around the other when it leaves the
   rest to the linker. */
MLKI_INLINE_ISA void MLKI_FN(mlki_average_add)(const mlk_dtype from, const int rows, const mlki_average_row *a, int r,
                                               int64_t at, mlki_vec *t) {
  MLKI_FN(mlki_average_row_add)(from, a, r, at, t);
  if (rows >= 2) MLKI_FN(mlki_average_row_add)(from, a, r + 1, at, t);
  if (rows >= 4) {
    MLKI_FN(mlki_average_row_add)(from, a, r + 2, at, t);
    MLKI_FN(mlki_average_row_add)(from, a, r + 3, at, t);
  }
  if (rows >= 8) {
    MLKI_FN(mlki_average_row_add)(from, a, r + 4, at, t);
    MLKI_FN(mlki_average_row_add)(from, a, r + 5, at, t);
    MLKI_FN(mlki_average_row_add)(from, a, r + 6, at, t);
    MLKI_FN(mlki_average_row_add)(from, a, r + 7, at, t);
  }
}

/* A block of sums from element at on. */
MLKI_INLINE_ISA void MLKI_FN(mlki_average_sums)(const mlk_dtype from, const mlki_average_row *a, int64_t at,
                                                mlki_vec *t) {
  int r, v;
  MLKI_UNROLL for (v = 0; v < MLKI_MEANS; v++) t[v] = mlki_v_zero();
  if (a->before) MLKI_UNROLL for (v = 0; v < MLKI_MEANS; v++) t[v] = mlki_v_load(a->before + at + v * MLKI_LANES);
  for (r = 0; r + 8 <= a->n; r += 8) MLKI_FN(mlki_average_add)(from, 8, a, r, at, t);
  if (a->n & 4) MLKI_FN(mlki_average_add)(from, 4, a, r, at, t), r += 4;
  if (a->n & 2) MLKI_FN(mlki_average_add)(from, 2, a, r, at, t), r += 2;
  if (a->n & 1) MLKI_FN(mlki_average_add)(from, 1, a, r, at, t);
}

/* A block of means to all outputs. 16-bit ones become lines in the cache first. */
MLKI_INLINE_ISA void MLKI_FN(mlki_average_store)(const mlki_average_row *a, int64_t at, const mlki_vec *t) {
  const int stream = MLKI_STREAMS && a->stream;
  uint16_t line[MLKI_MEANS * MLKI_LANES];
  mlki_vec packed[MLKI_MEANS / 2];
  int k, v;
  if (a->to == MLK_F32) {
    for (k = 0; k < a->outs; k++) {
      float *out = (float *)(void *)a->out[k] + at;
      if (stream)
        MLKI_UNROLL for (v = 0; v < MLKI_MEANS; v++) mlki_v_stream(out + v * MLKI_LANES, t[v]);
      else
        MLKI_UNROLL for (v = 0; v < MLKI_MEANS; v++) mlki_v_store(out + v * MLKI_LANES, t[v]);
    }
    return;
  }
  if (a->to == MLK_F16)
    MLKI_UNROLL for (v = 0; v < MLKI_MEANS; v++) mlki_v_store_f16(line + v * MLKI_LANES, t[v]);
  else
    MLKI_UNROLL for (v = 0; v < MLKI_MEANS; v++) mlki_v_store_bf16(line + v * MLKI_LANES, t[v]);
  memcpy(packed, line, sizeof line);
  for (k = 0; k < a->outs; k++) {
    char *out = a->out[k] + 2 * at;
    if (stream)
      MLKI_UNROLL for (v = 0; v < MLKI_MEANS / 2; v++) mlki_v_stream(out + 4 * v * MLKI_LANES, packed[v]);
    else
      memcpy(out, packed, sizeof packed);
  }
}

/* Elements [at, end), fewer than a block of the main loop. finite: 0 in all lanes, or NaN. */
MLKI_INLINE_ISA mlki_vec MLKI_FN(mlki_average_rest)(const mlk_dtype from, const mlki_average_row *a, int64_t at,
                                                    int64_t end, mlki_vec finite) {
  const int64_t bytes = from == MLK_F32 ? 4 : 2, first = at;
  const int64_t size = a->to == MLK_F32 ? 4 : 2;
  float mean[MLKI_MEANS * MLKI_LANES];
  uint16_t narrow[MLKI_MEANS * MLKI_LANES];
  int r;
  for (; at < end; at += MLKI_LANES) {
    const int64_t n = mlki_min(end - at, MLKI_LANES);
    mlki_vec t = a->before ? mlki_v_load_n(a->before + at, n) : mlki_v_zero();
    for (r = 0; r < a->n; r++)
      t = mlki_v_fma(mlki_v_set1(a->weight[r]), MLKI_FN(mlki_average_load_n)(from, a->x[r] + at * bytes, n), t);
    if (!a->after) {
      t = mlki_v_mul(mlki_v_set1(a->factor), t);
      finite = mlki_v_fma(mlki_v_zero(), t, finite);
    }
    mlki_v_store(mean + (at - first), t);
  }
  at = first;
  if (a->after) {
    memcpy(a->after + at, mean, (size_t)(end - at) * 4);
    return finite;
  }
  if (a->lanes) MLKI_FN(mlki_reduce_rows)(MLK_SUM_SQUARES, a->lanes, 1, mean, 0, end - at, (a->phase + at) % 16);
  if (size == 2) MLKI_FN(mlki_narrow)(a->to, mean, narrow, end - at);
  for (r = 0; r < a->outs; r++)
    memcpy(a->out[r] + at * size, size == 4 ? (const void *)mean : (const void *)narrow, (size_t)((end - at) * size));
  return finite;
}

/* The 16 lanes from memory, turned so that the first vector starts with lane phase; and back. */
MLKI_INLINE_ISA void MLKI_FN(mlki_lanes_in)(const float *lanes, int64_t phase, mlki_vec *acc) {
  float frame[32];
  int v;
  memcpy(frame, lanes, 64);
  memcpy(frame + 16, lanes, 64);
  MLKI_UNROLL for (v = 0; v < MLKI_V16; v++) acc[v] = mlki_v_load(frame + phase + v * MLKI_LANES);
}
MLKI_INLINE_ISA void MLKI_FN(mlki_lanes_out)(float *lanes, int64_t phase, const mlki_vec *acc) {
  float frame[16];
  int v;
  MLKI_UNROLL for (v = 0; v < MLKI_V16; v++) mlki_v_store(frame + v * MLKI_LANES, acc[v]);
  memcpy(lanes + phase, frame, (size_t)(16 - phase) * 4);
  memcpy(lanes, frame + 16 - phase, (size_t)phase * 4);
}

MLKI_INLINE_ISA int MLKI_FN(mlki_average_from)(const mlk_dtype from, const mlki_average_row *a) {
  const int64_t block = MLKI_MEANS * MLKI_LANES, size = a->to == MLK_F32 ? 4 : 2;
  const mlki_vec factor = mlki_v_set1(a->factor), zero = mlki_v_zero();
  mlki_vec t[MLKI_MEANS], squares[MLKI_V16], finite = zero;
  int64_t at = 0, phase;
  int v;
  if (MLKI_STREAMS && a->stream) { /* up to the first line */
    at = mlki_min((int64_t)(((uintptr_t)0 - (uintptr_t)a->out[0]) % 64) / size, a->count);
    finite = MLKI_FN(mlki_average_rest)(from, a, 0, at, finite);
  }
  phase = (a->phase + at) % 16;
  MLKI_UNROLL for (v = 0; v < MLKI_V16; v++) squares[v] = zero;
  if (a->lanes) MLKI_FN(mlki_lanes_in)(a->lanes, phase, squares);
  for (; at + block <= a->count; at += block) {
    MLKI_FN(mlki_average_sums)(from, a, at, t);
    if (a->after) {
      MLKI_UNROLL for (v = 0; v < MLKI_MEANS; v++) mlki_v_store(a->after + at + v * MLKI_LANES, t[v]);
      continue;
    }
    MLKI_UNROLL for (v = 0; v < MLKI_MEANS; v++) {
      t[v] = mlki_v_mul(factor, t[v]);
      finite = mlki_v_fma(zero, t[v], finite);
    }
    if (a->lanes)
      MLKI_UNROLL for (v = 0; v < MLKI_MEANS; v++)
          squares[v % MLKI_V16] = mlki_v_fma(t[v], t[v], squares[v % MLKI_V16]);
    MLKI_FN(mlki_average_store)(a, at, t);
  }
  if (a->lanes) MLKI_FN(mlki_lanes_out)(a->lanes, phase, squares);
  if (at < a->count) finite = MLKI_FN(mlki_average_rest)(from, a, at, a->count, finite);
  return !(~mlki_v_bits(mlki_v_eq(finite, finite)) & ((1u << MLKI_LANES) - 1u));
}

MLKI_KERNEL int MLKI_FN(mlki_average)(const mlki_average_row *a) {
  if (a->from == MLK_F16) return MLKI_FN(mlki_average_from)(MLK_F16, a);
  if (a->from == MLK_BF16) return MLKI_FN(mlki_average_from)(MLK_BF16, a);
  return MLKI_FN(mlki_average_from)(MLK_F32, a);
}

MLKI_KERNEL void MLKI_FN(mlki_fence)(void) { mlki_v_fence(); }

/* >>attention_kernels --------------------------------------------------------------------------------------------
   Rows of scores and of partial results of attention: compiled once per instruction set; then the row. */

/* The distances of keys i .. i + LANES - 1 of a row from the query. */
MLKI_INLINE_ISA mlki_vec MLKI_FN(mlki_score_away)(const mlki_scores *c, int64_t i) {
  static const float count[MLKI_LANES_MAX] = {0.0f, 1.0f, 2.0f,  3.0f,  4.0f,  5.0f,  6.0f,  7.0f,
                                              8.0f, 9.0f, 10.0f, 11.0f, 12.0f, 13.0f, 14.0f, 15.0f};
  return mlki_v_abs(mlki_v_sub(mlki_v_set1(c->ahead - (float)i), mlki_v_load(count)));
}

/* n <= LANES elements of the mask, step apart; 0 behind them. */
MLKI_INLINE_ISA mlki_vec MLKI_FN(mlki_score_mask)(const uint8_t *mask, int64_t step, int64_t n) {
  uint8_t lane[MLKI_LANES_MAX] = {0};
  int64_t j;
  if (step == 1 && n == MLKI_LANES) return mlki_v_load_u8(mask);
  for (j = 0; j < n; j++) lane[j] = mask[j * step];
  return mlki_v_load_u8(lane);
}

/* From products to scores; see mlk_attention_desc. */
MLKI_KERNEL void MLKI_FN(mlki_score_row)(const mlki_scores *c, float *x, int64_t n) {
  const mlki_vec cap = mlki_v_set1(c->softcap), slope = mlki_v_set1(c->slope);
  int64_t i;
  for (i = 0; i < n; i += MLKI_LANES) {
    const int64_t lanes = mlki_min(n - i, MLKI_LANES);
    mlki_vec v = MLKI_FN(mlki_row_load)(x, i, n);
    if (c->softcap > 0.0f) v = mlki_v_mul(cap, MLKI_FN(mlki_activate_called)(MLK_TANH, mlki_v_div(v, cap)));
    if (c->alibi) v = mlki_v_fma(slope, MLKI_FN(mlki_score_away)(c, i), v);
    if (c->bias) v = mlki_v_add(v, MLKI_FN(mlki_load_any)(c->bias + i * c->bias_step, c->bias_step, lanes));
    if (c->mask) {
      const mlki_vec there = MLKI_FN(mlki_score_mask)(c->mask + i * c->mask_step, c->mask_step, lanes);
      v = mlki_v_select(mlki_v_gt(there, mlki_v_zero()), v, mlki_v_set1(-INFINITY));
    }
    MLKI_FN(mlki_row_store)(x, i, n, v);
  }
}

/* From products x of q and k, and t of dout and v, to weights x and gradients of the scores t, with after set those
   behind the cap, else those before it. Both 0 where the score is -infinity. */
MLKI_KERNEL void MLKI_FN(mlki_score_grad_row)(const mlki_scores *c, float *x, float *t, int64_t n, float lse,
                                              float delta, int after) {
  const mlki_vec cap = mlki_v_set1(c->softcap), slope = mlki_v_set1(c->slope), none = mlki_v_set1(-INFINITY);
  const mlki_vec lsev = mlki_v_set1(lse), deltav = mlki_v_set1(delta), zero = mlki_v_zero();
  int64_t i;
  for (i = 0; i < n; i += MLKI_LANES) {
    const int64_t lanes = mlki_min(n - i, MLKI_LANES);
    mlki_vec v = MLKI_FN(mlki_row_load)(x, i, n), ds, tanh = zero, p;
    mlki_mask out;
    if (c->softcap > 0.0f) {
      tanh = MLKI_FN(mlki_activate_called)(MLK_TANH, mlki_v_div(v, cap));
      v = mlki_v_mul(cap, tanh);
    }
    if (c->alibi) v = mlki_v_fma(slope, MLKI_FN(mlki_score_away)(c, i), v);
    if (c->bias) v = mlki_v_add(v, MLKI_FN(mlki_load_any)(c->bias + i * c->bias_step, c->bias_step, lanes));
    if (c->mask) {
      const mlki_vec there = MLKI_FN(mlki_score_mask)(c->mask + i * c->mask_step, c->mask_step, lanes);
      v = mlki_v_select(mlki_v_gt(there, zero), v, none);
    }
    out = mlki_v_eq(v, none);
    p = MLKI_FN(mlki_exp)(
        mlki_v_select(out, zero, mlki_v_sub(v, lsev))); /* no underflow where the result is not used */
    p = mlki_v_select(out, zero, p);
    ds = mlki_v_mul(p, mlki_v_sub(MLKI_FN(mlki_row_load)(t, i, n), deltav));
    if (c->softcap > 0.0f && !after) ds = mlki_v_mul(ds, mlki_v_fnma(tanh, tanh, mlki_v_set1(1.0f)));
    MLKI_FN(mlki_row_store)(x, i, n, p);
    MLKI_FN(mlki_row_store)(t, i, n, mlki_v_select(out, zero, ds));
  }
}

/* o = fma(o, a, part c) */
MLKI_KERNEL void MLKI_FN(mlki_fold_row)(float *o, const float *part, int64_t n, float a, float c) {
  const mlki_vec av = mlki_v_set1(a), cv = mlki_v_set1(c);
  int64_t i;
  for (i = 0; i < n; i += MLKI_LANES) {
    const mlki_vec t = mlki_v_mul(MLKI_FN(mlki_row_load)(part, i, n), cv);
    MLKI_FN(mlki_row_store)(o, i, n, mlki_v_fma(MLKI_FN(mlki_row_load)(o, i, n), av, t));
  }
}

/* y = o / l + 0: no -0, which would show whether terms of nothing took part. y may be o. */
MLKI_KERNEL void MLKI_FN(mlki_unfold_row)(float *y, const float *o, int64_t n, float l) {
  const mlki_vec lv = mlki_v_set1(l);
  int64_t i;
  for (i = 0; i < n; i += MLKI_LANES) MLKI_FN(mlki_row_store)
  (y, i, n, mlki_v_add(mlki_v_div(MLKI_FN(mlki_row_load)(o, i, n), lv), mlki_v_zero()));
}

/* The chains of rows queries, packed as [depth][MR] or not, and a square block of keys after another: a block is turned
   in registers, so that lanes are keys, and multiplied at once. What is asked for comes into level 1: turning alone
   keeps up with memory. */
MLKI_INLINE_ISA void MLKI_FN(mlki_turn_rows)(const mlki_turn *t, const int rows, const int packed) {
  const int64_t q_rs = packed ? 1 : t->q_rs, q_cs = packed ? MLKI_MR : t->q_cs;
  int64_t j, p;
  int v, r;
  for (j = 0; j < t->n; j += MLKI_LANES) {
    const int64_t keys = mlki_min(t->n - j, MLKI_LANES);
    mlki_vec acc[MLKI_TURN_MOST];
    MLKI_UNROLL for (r = 0; r < rows; r++) acc[r] = mlki_v_zero();
    for (p = 0; p < t->depth; p += MLKI_LANES) {
      const int64_t terms = mlki_min(t->depth - p, MLKI_LANES);
      const float *at = t->keys + j * t->pitch + p, *q = t->q + p * q_cs;
      const int64_t ahead = p < t->last ? t->ahead : t->after;
      mlki_vec x[MLKI_LANES];
      if (t->ahead) MLKI_UNROLL for (v = 0; v < MLKI_LANES; v++) MLKI_PREFETCH(at + v * t->pitch + ahead);
      if (keys == MLKI_LANES && terms == MLKI_LANES) {
        MLKI_UNROLL for (v = 0; v < MLKI_LANES; v++) x[v] = mlki_v_load(at + v * t->pitch);
        mlki_v_transpose(x);
        MLKI_UNROLL for (v = 0; v < MLKI_LANES; v++, q += q_cs) MLKI_UNROLL for (r = 0; r < rows; r++)
            acc[r] = mlki_v_fma(mlki_v_set1(q[r * q_rs]), x[v], acc[r]);
      } else {
        MLKI_UNROLL for (v = 0; v < MLKI_LANES; v++) x[v] = v < keys ? mlki_v_load_n(at + v * t->pitch, terms)
                                                                     : mlki_v_zero();
        mlki_v_transpose(x);
        MLKI_UNROLL for (v = 0; v < MLKI_LANES; v++, q += q_cs) if (v < terms) MLKI_UNROLL for (r = 0; r < rows; r++)
            acc[r] = mlki_v_fma(mlki_v_set1(q[r * q_rs]), x[v], acc[r]);
      }
    }
    MLKI_UNROLL for (r = 0; r < rows; r++) {
      float *c = t->c + r * t->c_pitch + j;
      if (keys == MLKI_LANES)
        mlki_v_store(c, t->add ? mlki_v_add(mlki_v_load(c), acc[r]) : acc[r]);
      else
        mlki_v_store_n(c, t->add ? mlki_v_add(mlki_v_load_n(c, keys), acc[r]) : acc[r], keys);
    }
  }
}

#define MLKI_TURN_CASE(r, packed)                                                                                      \
  case r:                                                                                                              \
    if (r <= MLKI_TURN_MOST) MLKI_FN(mlki_turn_rows)(t, r > MLKI_TURN_MOST ? 1 : r, packed);                           \
    break

MLKI_KERNEL void MLKI_FN(mlki_turn_any)(const mlki_turn *t) {
  if (t->q_rs == 1 && t->q_cs == MLKI_MR && t->rows <= MLKI_TURN_ROWS) {
    switch (t->rows) {
      MLKI_TURN_CASE(1, 1);
      MLKI_TURN_CASE(2, 1);
      MLKI_TURN_CASE(3, 1);
      MLKI_TURN_CASE(4, 1);
    default: break;
    }
    return;
  }
  switch (t->rows) {
    MLKI_TURN_CASE(1, 0);
    MLKI_TURN_CASE(2, 0);
    MLKI_TURN_CASE(3, 0);
    MLKI_TURN_CASE(4, 0);
    MLKI_TURN_CASE(5, 0);
    MLKI_TURN_CASE(6, 0);
    MLKI_TURN_CASE(7, 0);
    MLKI_TURN_CASE(8, 0);
  default: break;
  }
}

/* Whether all elements are finite. */
MLKI_KERNEL int MLKI_FN(mlki_finite_row)(const float *x, int64_t n) {
  mlki_vec acc[MLKI_V16]; /* of 0, or NaN */
  int64_t i;
  int v;
  MLKI_UNROLL for (v = 0; v < MLKI_V16; v++) acc[v] = mlki_v_zero();
  for (i = 0; i < n; i += 16) MLKI_UNROLL for (v = 0; v < MLKI_V16; v++) {
      const mlki_vec x0 = MLKI_FN(mlki_row_load)(x, i + v * MLKI_LANES, n);
      acc[v] = mlki_v_add(acc[v], mlki_v_sub(x0, x0));
    }
  return mlki_v_sum16(acc) == 0.0f;
}

static const mlki_kernels MLKI_FN(mlki_row) = {
    MLKI_FN(MLKI_ISA),
    MLKI_LANES,
    MLKI_MR,
    MLKI_NR,
    MLKI_TURN_MOST,
    MLKI_STREAMS,
    MLKI_FN(mlki_pack),
    MLKI_FN(mlki_pack_panels),
    MLKI_FN(mlki_strip_any),
    MLKI_FN(mlki_sweep_any),
    MLKI_FN(mlki_epilogue_tile),
    MLKI_FN(mlki_add),
    MLKI_FN(mlki_pairs),
    MLKI_FN(mlki_knn_panel),
    MLKI_FN(mlki_filter_any),
    MLKI_FN(mlki_below),
    MLKI_FN(mlki_spin),
    MLKI_FN(mlki_read),
    MLKI_FN(mlki_place),
    MLKI_FN(mlki_planes_any),
    MLKI_FN(mlki_spread),
    MLKI_FN(mlki_lanes_sums),
    MLKI_FN(mlki_lanes_chains),
    MLKI_FN(mlki_map),
    MLKI_FN(mlki_widen),
    MLKI_FN(mlki_narrow),
    MLKI_FN(mlki_reduce_rows),
    MLKI_FN(mlki_reduce_columns),
    MLKI_FN(mlki_reduce_tree_rows),
    MLKI_FN(mlki_reduce_tree_columns),
    MLKI_FN(mlki_find),
    MLKI_FN(mlki_find_columns),
    MLKI_FN(mlki_sgd),
    MLKI_FN(mlki_adamw),
    MLKI_FN(mlki_pool),
    MLKI_FN(mlki_row_max),
    MLKI_FN(mlki_row_exp),
    MLKI_FN(mlki_row_quotient),
    MLKI_FN(mlki_row_log_softmax),
    MLKI_FN(mlki_row_sum),
    MLKI_FN(mlki_row_softmax_grad),
    MLKI_FN(mlki_row_moment),
    MLKI_FN(mlki_row_normal),
    MLKI_FN(mlki_row_normal_sums),
    MLKI_FN(mlki_row_normal_grad),
    MLKI_FN(mlki_normal_columns),
    MLKI_FN(mlki_rotate),
    MLKI_FN(mlki_score_row),
    MLKI_FN(mlki_score_grad_row),
    MLKI_FN(mlki_fold_row),
    MLKI_FN(mlki_unfold_row),
    MLKI_FN(mlki_finite_row),
    MLKI_FN(mlki_turn_any),
    MLKI_FN(mlki_average),
    MLKI_FN(mlki_fence),
};

#if !defined(MLKI_PASS) /* the rest once, after the scalar pass */

/* >>dispatch ------------------------------------------------------------------------------------------------------- */

static const char *const mlki_isa_names[MLK_ISA_COUNT] = {"best", "scalar", "neon", "avx2", "avx512", "reference"};

/* The row of isa if it was compiled and this machine runs it, else NULL. mask: mlki_isa_mask(). */
static const mlki_kernels *mlki_find_row(mlk_isa isa, unsigned mask) {
  static const mlki_kernels *const rows[] = {
#if MLKI_AVX512
    &mlki_row_avx512,
#endif
#if MLKI_AVX2
    &mlki_row_avx2,
#endif
#if MLKI_NEON
    &mlki_row_neon,
#endif
    &mlki_row_scalar, /* best first */
  };
  size_t i;
  for (i = 0; i < sizeof rows / sizeof rows[0]; i++)
    if ((mask >> rows[i]->isa & 1) && (isa == MLK_ISA_BEST || isa == rows[i]->isa)) return rows[i];
  return isa == MLK_ISA_REFERENCE ? &mlki_row_scalar : NULL;
}

/* >>ref ----------------------------------------------------------------------------------------------------------
   What the operators mean, one element at a time. MLK_ISA_REFERENCE runs these. */

/* One element of A B: chains of MLK_SEGMENT fused multiply-adds, their sums added in order. */
static float mlki_ref_dot_chain(int64_t k, const float *a, int64_t a_stride, const float *b, int64_t b_stride) {
  float total = 0.0f;
  int64_t s, p;
  for (s = 0; s < k; s += MLK_SEGMENT) {
    float chain = 0.0f;
    for (p = s; p < mlki_min(k, s + MLK_SEGMENT); p++) chain = mlki_fma1(a[p * a_stride], b[p * b_stride], chain);
    total = s == 0 ? chain : total + chain;
  }
  return total;
}

/* The epilogue up to the argument of act; bias, c NULL: absent. */
static float mlki_ref_preact(float alpha, float acc, const float *bias, float beta, const float *c) {
  float t = alpha * acc;
  MLKI_OPAQUE(t);
  if (bias) t = mlki_fma1(alpha, acc, *bias);
  return c ? mlki_fma1(beta, *c, t) : t;
}

static float mlki_ref_activate(mlk_activation activation, float x) {
  float lane[MLKI_LANES_scalar];
  mlki_v_store_scalar(lane, mlki_activate_scalar(activation, mlki_v_set1_scalar(x)));
  return lane[0];
}

/* The sum of 16 lanes: lane l takes elements l, l + 16, ... */
static float mlki_ref_sum16(mlki_pair kind, int64_t d, const float *q, int64_t q_stride, const float *x,
                            int64_t x_stride) {
  float lane[16] = {0};
  int64_t j;
  int l, half;
  for (j = 0; j < mlki_round_up(d, 16); j++) {
    const float a = j < d ? q[j * q_stride] : 0.0f, b = j < d ? x[j * x_stride] : 0.0f, t = a - b;
    lane[j % 16] = kind == MLKI_PAIR_L2 ? mlki_fma1(t, t, lane[j % 16]) : mlki_fma1(a, b, lane[j % 16]);
  }
  for (half = 8; half >= 1; half /= 2)
    for (l = 0; l < half; l++) lane[l] += lane[l + half];
  return lane[0];
}

/* From the 16-lane sum (squared distance or inner product) and the two norms to the distance of the metric. */
static float mlki_metric_distance(mlk_metric metric, float sum, float norm_q, float norm_x) {
  if (metric == MLK_L2) return sqrtf(sum);
  if (metric != MLK_COSINE) return sum;
  return norm_q == 0.0f || norm_x == 0.0f ? 0.0f : (sum / norm_q) / norm_x;
}

static mlki_pair mlki_metric_pair(mlk_metric metric) {
  return metric == MLK_L2SQ || metric == MLK_L2 ? MLKI_PAIR_L2 : MLKI_PAIR_IP;
}

static float mlki_ref_distance(mlk_metric metric, int64_t d, const float *q, int64_t q_stride, const float *x,
                               int64_t x_stride) {
  float norm_q = 1.0f, norm_x = 1.0f;
  if (metric == MLK_COSINE) {
    norm_q = sqrtf(mlki_ref_sum16(MLKI_PAIR_IP, d, q, q_stride, q, q_stride));
    norm_x = sqrtf(mlki_ref_sum16(MLKI_PAIR_IP, d, x, x_stride, x, x_stride));
  }
  return mlki_metric_distance(metric, mlki_ref_sum16(mlki_metric_pair(metric), d, q, q_stride, x, x_stride), norm_q,
                              norm_x);
}

/* One element of mlk_map, f32. */
static float mlki_ref_map_value(mlk_map_op op, mlk_activation activation, float alpha, float beta, float a, float b) {
  float lane[MLKI_LANES_scalar];
  mlki_v_store_scalar(lane, mlki_map_value_scalar(op, activation, mlki_v_set1_scalar(alpha), mlki_v_set1_scalar(beta),
                                                  mlki_v_set1_scalar(a), mlki_v_set1_scalar(b)));
  return lane[0];
}

/* The offset of element number index, in row-major order of shape. */
static int64_t mlki_ref_offset(int rank, const int64_t *shape, const int64_t *stride, int64_t index) {
  int64_t offset = 0;
  int i;
  for (i = rank - 1; i >= 0; i--) offset += index % shape[i] * stride[i], index /= shape[i];
  return offset;
}

/* i64 to f32 rounded to odd: any later rounding to fewer than 23 bits then is the only one. */
static float mlki_i64_to_odd(int64_t x) {
  const uint64_t a = x < 0 ? ~(uint64_t)x + 1 : (uint64_t)x;
  uint64_t top = a, sticky;
  float f;
  int shift = 0;
  while (top >> 24) top >>= 1, shift++;
  sticky = a & (((uint64_t)1 << shift) - 1);
  if (sticky) top |= 1;
  f = (float)top;
  while (shift-- > 0) f *= 2.0f;
  return x < 0 ? -f : f;
}

static int64_t mlki_f32_to_i64(float f) {
  if (f >= 9223372036854775808.0f) return INT64_MAX;
  if (f < -9223372036854775808.0f) return INT64_MIN;
  return f != f ? 0 : (int64_t)f;
}

static uint8_t mlki_i64_to_u8(int64_t x) { return (uint8_t)mlki_max(mlki_min(x, 255), 0); }

/* An element of any type as the f32 that holds it, or, of i64, rounded to odd for a narrower type than f32. */
static float mlki_ref_load(mlk_dtype type, const void *p, int64_t at, mlk_dtype to) {
  switch (type) {
  case MLK_F16: return mlki_f16_to_f32(((const uint16_t *)p)[at]);
  case MLK_BF16: return mlki_bf16_to_f32(((const uint16_t *)p)[at]);
  case MLK_U8: return (float)((const uint8_t *)p)[at];
  case MLK_I64: return to == MLK_F32 ? (float)((const int64_t *)p)[at] : mlki_i64_to_odd(((const int64_t *)p)[at]);
  default: return ((const float *)p)[at];
  }
}

static void mlki_ref_convert(mlk_dtype from, const void *p, int64_t at, mlk_dtype to, void *q, int64_t put) {
  const int64_t bytes = mlki_dtype_bytes((int32_t)from);
  const float f = mlki_ref_load(from, p, at, to);
  if (from == to)
    memcpy((char *)q + put * bytes, (const char *)p + at * bytes, (size_t)bytes);
  else if (to == MLK_F16)
    ((uint16_t *)q)[put] = mlki_f32_to_f16(f);
  else if (to == MLK_BF16)
    ((uint16_t *)q)[put] = mlki_f32_to_bf16(f);
  else if (to == MLK_I64)
    ((int64_t *)q)[put] = mlki_f32_to_i64(f);
  else if (to == MLK_U8)
    ((uint8_t *)q)[put] = from == MLK_I64 ? mlki_i64_to_u8(((const int64_t *)p)[at]) : mlki_f32_to_u8(f);
  else
    ((float *)q)[put] = f;
}

/* The inputs have out's axes. b NULL: op has none. */
static void mlki_ref_map(mlk_map_op op, mlk_activation activation, float alpha, float beta, const mlk_tensor *out,
                         const mlk_tensor *a, const mlk_tensor *b) {
  int64_t count = 1, i;
  int axis;
  for (axis = 0; axis < out->rank; axis++) count *= out->shape[axis];
  for (i = 0; i < count; i++) {
    const int64_t at = mlki_ref_offset(out->rank, out->shape, a->stride, i);
    const int64_t put = mlki_ref_offset(out->rank, out->shape, out->stride, i);
    if (op == MLK_COPY)
      mlki_ref_convert((mlk_dtype)a->dtype, a->data, at, (mlk_dtype)out->dtype, out->data, put);
    else
      ((float *)out->data)[put] = mlki_ref_map_value(
          op, activation, alpha, beta, ((const float *)a->data)[at],
          b ? ((const float *)b->data)[mlki_ref_offset(out->rank, out->shape, b->stride, i)] : 0.0f);
  }
}

/* mlk_reduce of the n elements at the given offsets of x, in that order: a segment at a time in 16 lanes. ARGMAX: its
   number in *argmax. */
static float mlki_ref_reduce_start(mlk_reduce_op op) {
  return op == MLK_MAX ? -INFINITY : op == MLK_MIN ? INFINITY : 0.0f;
}

static float mlki_ref_reduce_step(mlk_reduce_op op, float m, float x) {
  if (op == MLK_MAX) return m != m || x < m ? m : x;
  if (op == MLK_MIN) return m != m || x > m ? m : x;
  return op == MLK_SUM_SQUARES ? mlki_fma1(x, x, m) : m + x;
}

static float mlki_ref_reduce_join(mlk_reduce_op op, float m, float x) {
  return mlki_ref_reduce_step(op == MLK_SUM_SQUARES ? MLK_SUM : op, m, x);
}

static float mlki_ref_reduce_value(mlk_reduce_op op, const float *x, int rank, const int64_t *shape,
                                   const int64_t *stride, int64_t n) {
  float total = mlki_ref_reduce_start(op), lane[16];
  int64_t s, i;
  int l, half;
  for (s = 0; s < n; s += MLK_REDUCE_SEGMENT) {
    for (l = 0; l < 16; l++) lane[l] = mlki_ref_reduce_start(op);
    for (i = s; i < mlki_min(n, s + MLK_REDUCE_SEGMENT); i++)
      lane[i % 16] = mlki_ref_reduce_step(op, lane[i % 16], x[mlki_ref_offset(rank, shape, stride, i)]);
    for (half = 8; half >= 1; half /= 2)
      for (l = 0; l < half; l++) lane[l] = mlki_ref_reduce_join(op, lane[l], lane[l + half]);
    total = s == 0 ? lane[0] : mlki_ref_reduce_join(op, total, lane[0]);
  }
  return total;
}

static int64_t mlki_ref_argmax(const float *x, int rank, const int64_t *shape, const int64_t *stride, int64_t n) {
  int64_t best = -1, i;
  float most = 0.0f;
  for (i = 0; i < n; i++) {
    const float v = x[mlki_ref_offset(rank, shape, stride, i)];
    if (best < 0 || v > most || (v != v && most == most)) best = i, most = v;
  }
  return best;
}

/* One element of mlk_sgd; v NULL: no velocity. */
static void mlki_ref_sgd(const mlki_optimizer *o, float *p, float g, float *v) {
  const float t = mlki_fma1(o->weight_decay, *p, g);
  if (v) *v = mlki_fma1(o->momentum, *v, t);
  *p = mlki_fma1(o->lr, !v ? t : o->nesterov ? mlki_fma1(o->momentum, *v, t) : *v, *p);
}

/* One element of mlk_adamw. */
static void mlki_ref_adamw(const mlki_optimizer *o, float *p, float g, float *m, float *v) {
  float square = g * g, root;
  MLKI_OPAQUE(square);
  *m = mlki_fma1(o->beta1, *m, o->b1 * g);
  *v = mlki_fma1(o->beta2, *v, o->b2 * square);
  root = o->q * *v;
  MLKI_OPAQUE(root);
  *p = mlki_fma1(o->d, *p, (o->r * *m) / (sqrtf(root) + o->epsilon));
}

/* >>plan ----------------------------------------------------------------------------------------------------------- */

#ifndef MLKI_PROBE_BYTES /* tests of slow builds make do with less */
#define MLKI_PROBE_BYTES                                                                                               \
  (256ll << 20) /* read by all threads together, but at least a quarter of it by each: beyond the last-level cache */
#endif

typedef struct mlki_probe {
  const mlki_kernels *row;
  const char *memory;
  int64_t bytes;  /* read by each thread */
  int64_t rounds; /* > 0: multiply-adds; 0: read memory */
} mlki_probe;

static void mlki_probe_body(void *arg, int index) {
  const mlki_probe *probe = (const mlki_probe *)arg;
  float out[MLKI_LANES_MAX] = {0.25f, 0.5f, 0.75f, 1.0f};
  volatile float sink;
  if (probe->rounds)
    probe->row->spin(probe->rounds, out);
  else
    probe->row->read((const float *)(const void *)(probe->memory + index * probe->bytes), probe->bytes / 4, out);
  sink = out[0];
  (void)sink;
}

/* The best of a few runs of one probe on threads threads, in seconds. */
static double mlki_probe_best(const mlk_context *ctx, mlki_probe *probe, int threads, int runs) {
  double best = 1e30;
  int r;
  for (r = 0; r < runs; r++) {
    const double start = mlki_seconds();
    double t;
    mlki_parallel_for(ctx, threads, mlki_probe_body, probe);
    t = mlki_seconds() - start;
    if (t < best && t > 0) best = t;
  }
  return best;
}

static mlk_status mlki_measure(mlk_context *ctx) {
  const int threads = mlki_task_limit(ctx);
  const int64_t share = mlki_max(MLKI_PROBE_BYTES / threads, MLKI_PROBE_BYTES / 4) / 4096 * 4096;
  const uint64_t bytes = (uint64_t)mlki_max(share * threads, MLKI_PROBE_BYTES);
  const double flops = 2.0 * 10.0 * ctx->row->lanes;
  mlk_ceilings *c = &ctx->calibration.ceilings;
  char *memory = (char *)mlki_alloc(ctx, bytes);
  mlki_probe spin, read;
  if (!memory)
    return mlki_fail(ctx, MLK_ERR_MEMORY, "measure: the allocator could not give %llu bytes",
                     (unsigned long long)bytes);
  memset(memory, 0, (size_t)bytes);
  spin.row = read.row = ctx->row;
  spin.memory = read.memory = memory;
  spin.rounds = 1000, read.rounds = 0;
  spin.bytes = 0;
  while (mlki_probe_best(ctx, &spin, 1, 1) < 4e-3) spin.rounds *= 2;
  c->flops_1 = flops * (double)spin.rounds / mlki_probe_best(ctx, &spin, 1, 5);
  c->flops_all = flops * (double)spin.rounds * threads / mlki_probe_best(ctx, &spin, threads, 5);
  read.bytes = MLKI_PROBE_BYTES;
  c->read_1 = (double)read.bytes / mlki_probe_best(ctx, &read, 1, 5);
  read.bytes = share;
  c->read_all = (double)share * threads / mlki_probe_best(ctx, &read, threads, 5);
  if (c->flops_all < c->flops_1) c->flops_all = c->flops_1; /* the other cores were busy */
  if (c->read_all < c->read_1) c->read_all = c->read_1;
  mlki_free(ctx, memory, bytes);
  return MLK_OK;
}

/* A context's number of points while they are made: plans give what the factors are relative to. */
#define MLKI_CALIBRATING (-1)

static uint32_t mlki_variant_hash(const char *variant) { /* FNV-1a, 32 bits */
  uint32_t h = 2166136261u;
  for (; *variant; variant++) h = (h ^ (unsigned char)*variant) * 16777619u;
  return h;
}

/* What else than sizes makes calls of an operator unlike each other. */
static unsigned mlki_call_kind(mlk_op op, const void *desc) {
  switch (op) {
  case MLK_OP_MATMUL: return ((const mlk_matmul_desc *)desc)->packed_b != NULL;
  case MLK_OP_CONV: return ((const mlk_conv_desc *)desc)->packed_w != NULL;
  case MLK_OP_CONV_GRAD_INPUT: return ((const mlk_conv_grad_input_desc *)desc)->packed_w != NULL;
  case MLK_OP_POOL: return ((const mlk_pool_desc *)desc)->indices.data != NULL;
  case MLK_OP_CROSS_ENTROPY: return ((const mlk_cross_entropy_desc *)desc)->dx.data != NULL;
  case MLK_OP_KNN: {
    const int64_t k = ((const mlk_knn_desc *)desc)->k;
    return k <= 2 ? 0 : k <= 32 ? 1 : 2;
  }
  case MLK_OP_AVERAGE: {
    const mlk_average_desc *average = (const mlk_average_desc *)desc;
    const int stored = average->count > 0 ? (int)average->inputs[0].dtype : (int)MLK_F32;
    return 4 * (unsigned)(average->count > 16) + 2 * (unsigned)(stored != (int)MLK_F32) + (average->outputs != NULL);
  }
  case MLK_OP_MAP: {
    const mlk_map_desc *map = (const mlk_map_desc *)desc;
    switch (map->op) {
    case MLK_COPY: return map->a.dtype != map->out.dtype;
    case MLK_DIV:
    case MLK_SQRT: return 3;
    case MLK_ACT:
    case MLK_ACT_GRAD: return map->activation <= MLK_RELU ? 2 : 4;
    case MLK_EXP:
    case MLK_LOG:
    case MLK_ERF: return 4;
    default: return 2;
    }
  }
  default: return 0;
  }
}

static mlk_calibration_point mlki_calibration_point(mlk_op op, const void *desc, const mlk_plan *plan) {
  mlk_calibration_point p;
  p.op = (int32_t)op;
  p.variant = mlki_variant_hash(plan->variant) + mlki_call_kind(op, desc);
  p.flops = (float)log2((double)plan->flops + 1.0), p.bytes = (float)log2((double)plan->bytes + 1.0);
  p.tasks = (float)log2((double)plan->threads + 1.0);
  p.factor = 0.0f;
  return p;
}

/* The roofline times a mean of the factors by which calls of the same operator missed it, weighted by how alike they
   are (inverse distance weights: Shepard 1968). Work and traffic count by their logarithms: one for a factor of two. */
static double mlki_predict(const mlk_context *ctx, mlk_op op, const void *desc, const mlk_plan *plan, double roofline) {
  const double other_variant = 36.0, tasks = 16.0, nearest = 0.05;
  const mlk_calibration *c = &ctx->calibration;
  const mlk_calibration_point here = mlki_calibration_point(op, desc, plan);
  double sum = 0.0, weights = 0.0;
  int i;
  for (i = 0; i < c->count; i++) {
    const mlk_calibration_point *p = &c->points[i];
    const double flops = (double)(p->flops - here.flops), bytes = (double)(p->bytes - here.bytes);
    const double spread = (double)(p->tasks - here.tasks);
    const double far = flops * flops + bytes * bytes + tasks * spread * spread +
                       (p->variant != here.variant ? other_variant : 0.0) + nearest;
    if (p->op != here.op) continue;
    sum += (double)p->factor / (far * far), weights += 1.0 / (far * far);
  }
  return weights > 0.0 ? roofline * exp2(sum / weights) : roofline;
}

/* The time that the ceilings allow, 0 where they are not known. Between one and all threads they are taken to grow in
   proportion. */
static double mlki_roofline(const mlk_context *ctx, double flops, double bytes, int threads) {
  const mlk_ceilings *c = &ctx->calibration.ceilings;
  const double share = ctx->threads > 1 ? (double)(threads - 1) / (double)(ctx->threads - 1) : 0.0;
  double compute, memory;
  if (c->flops_1 <= 0) return 0.0;
  compute = flops / (c->flops_1 + share * (c->flops_all - c->flops_1));
  memory = bytes / (c->read_1 + share * (c->read_all - c->read_1));
  return compute > memory ? compute : memory;
}

/* Fills what all plans share. */
static void mlki_fill_plan(const mlk_context *ctx, mlk_plan *plan, mlk_op op, const void *desc, uint64_t flops,
                           uint64_t bytes, uint64_t workspace, int threads, const char *variant) {
  plan->flops = flops, plan->bytes = bytes, plan->workspace_bytes = workspace;
  plan->backend = "cpu";
  plan->isa = mlki_isa_names[ctx->reference ? MLK_ISA_REFERENCE : ctx->row->isa];
  plan->variant = variant;
  plan->threads = threads;
  plan->seconds = mlki_predict(ctx, op, desc, plan, mlki_roofline(ctx, (double)flops, (double)bytes, threads));
}

/* >>backend --------------------------------------------------------------------------------------------------------
   Calls that were checked here and run on a device. */

#define MLKI_ISA_DEVICE (-1) /* mlk_packed.isa of weights on a device */

/* Tells the log what the backend said. */
static mlk_status mlki_backend_said(mlk_context *ctx, mlk_status status) {
  if (status != MLK_OK && ctx->log) ctx->log(ctx->log_user, ctx->error);
  return status;
}

/* Makes the device's part of the workspace at least bytes long. */
static mlk_status mlki_backend_workspace(mlk_context *ctx, uint64_t bytes) {
  mlk_status status;
  if (bytes <= ctx->device_workspace_bytes) return MLK_OK;
  if (ctx->growth == MLK_FIXED)
    return mlki_fail(ctx, MLK_ERR_WORKSPACE,
                     "workspace: this call needs %llu bytes, but it is fixed at %llu; see mlk_reserve",
                     (unsigned long long)bytes, (unsigned long long)ctx->device_workspace_bytes);
  if (ctx->device_workspace) ctx->backend->free(ctx->device, ctx->device_workspace);
  ctx->device_workspace = NULL, ctx->device_workspace_bytes = 0;
  status = ctx->backend->alloc(ctx->device, bytes, 0, &ctx->device_workspace, ctx->error);
  if (status == MLK_OK) ctx->device_workspace_bytes = bytes;
  return mlki_backend_said(ctx, status);
}

static mlk_backend_call mlki_backend_ask(const mlk_context *ctx, mlk_op op, const void *desc, uint64_t flops,
                                         uint64_t bytes) {
  mlk_backend_call call;
  memset(&call, 0, sizeof call);
  call.op = op, call.desc = desc, call.numerics = ctx->numerics;
  call.flops = flops, call.bytes = bytes;
  return call;
}

/* Plans, makes room and runs. */
static mlk_status mlki_backend_run(mlk_context *ctx, mlk_op op, const void *desc, uint64_t flops, uint64_t bytes) {
  mlk_backend_call call = mlki_backend_ask(ctx, op, desc, flops, bytes);
  mlk_status status = ctx->backend->call(ctx->device, &call, ctx->error);
  if (status) return mlki_backend_said(ctx, status);
  if ((status = mlki_backend_workspace(ctx, call.workspace_bytes)) != MLK_OK) return status;
  call.run = 1, call.workspace = ctx->device_workspace;
  return mlki_backend_said(ctx, ctx->backend->call(ctx->device, &call, ctx->error));
}

static mlk_status mlki_backend_plan(mlk_context *ctx, mlk_op op, const void *desc, uint64_t flops, uint64_t bytes,
                                    mlk_plan *plan) {
  mlk_backend_call call = mlki_backend_ask(ctx, op, desc, flops, bytes);
  mlk_info info;
  mlk_status status;
  memset(&info, 0, sizeof info);
  if ((status = ctx->backend->call(ctx->device, &call, ctx->error)) != MLK_OK ||
      (status = ctx->backend->info(ctx->device, &info, ctx->error)) != MLK_OK)
    return mlki_backend_said(ctx, status);
  plan->flops = flops, plan->bytes = bytes, plan->workspace_bytes = call.workspace_bytes;
  plan->backend = ctx->backend->name, plan->isa = info.isa, plan->variant = call.variant;
  plan->threads = 1;
  plan->seconds = mlki_predict(ctx, op, desc, plan, call.seconds);
  return MLK_OK;
}

/* Weights that were "packed" for a device: a dense copy there, in the element type they had. */
static mlk_status mlki_backend_pack(mlk_context *ctx, const mlk_tensor *w, void *buffer, uint64_t buffer_bytes,
                                    mlk_packed *packed) {
  mlk_packed made;
  mlk_map_desc copy;
  mlk_status status = MLK_OK;
  int64_t count = 1;
  int i;
  memset(&made, 0, sizeof made);
  for (i = 0; i < w->rank; i++) made.shape[i] = w->shape[i], count *= w->shape[i];
  made.data = buffer, made.rank = w->rank, made.dtype = w->dtype, made.isa = MLKI_ISA_DEVICE;
  made.k = w->rank == 2 ? w->shape[0] : 0, made.n = w->rank == 2 ? w->shape[1] : 0;
  made.bytes = (uint64_t)(count * mlki_dtype_bytes(w->dtype));
  if (buffer && made.bytes > buffer_bytes)
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "buffer_bytes: is %llu, but must be at least %llu",
                     (unsigned long long)buffer_bytes, (unsigned long long)made.bytes);
  if ((uintptr_t)buffer % MLKI_ALIGN)
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "buffer: must be aligned to %d bytes", MLKI_ALIGN);
  memset(&copy, 0, sizeof copy);
  copy.a = copy.out = *w;
  copy.out.data = buffer;
  memset(copy.out.stride, 0, sizeof copy.out.stride);
  if (buffer) status = mlk_map(ctx, &copy);
  if (status == MLK_OK) *packed = made;
  return status;
}

/* The dense copy as a tensor. */
static mlk_status mlki_backend_packed(mlk_context *ctx, const char *name, const mlk_packed *packed, mlk_tensor *w) {
  int64_t count = 1;
  int i;
  if (!packed->data) return mlki_fail(ctx, MLK_ERR_ARGUMENT, "%s: data is NULL; pack into a buffer first", name);
  if (packed->isa != MLKI_ISA_DEVICE)
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "%s: packed for the CPU, but this context runs on %s; pack it again", name,
                     ctx->backend->name);
  if (packed->dtype != MLK_F32 && packed->dtype != MLK_F16 && packed->dtype != MLK_BF16)
    return mlki_fail(ctx, MLK_ERR_DTYPE, "%s: dtype is %d, but must be f32, f16 or bf16", name, (int)packed->dtype);
  if ((uintptr_t)packed->data % MLKI_ALIGN)
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "%s: data is not aligned to %d bytes; was the buffer moved?", name,
                     MLKI_ALIGN);
  memset(w, 0, sizeof *w);
  w->data = (void *)(uintptr_t)packed->data;
  w->dtype = packed->dtype, w->rank = packed->rank;
  for (i = 0; i < w->rank && i < MLK_MAX_RANK; i++) w->shape[i] = packed->shape[i], count *= packed->shape[i];
  if ((uint64_t)(count * mlki_dtype_bytes(packed->dtype)) > packed->bytes)
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "%s: holds %llu bytes, too few for %lld elements", name,
                     (unsigned long long)packed->bytes, (long long)count);
  return MLK_OK;
}

/* >>matmul -------------------------------------------------------------------------------------------------------
   One call is prepared (checked, transposed if that lengthens the vectors, blocked) and then either described or run.

   direct    small products: neither operand is packed, unless B's rows are not dense in memory
   blocked   B is packed in blocks of one segment x NC columns that stay in the level-2 cache; rows of A, MR at a time,
             pass through the level-1 cache: used where they are, or copied where they would conflict there or where A
             is too large to stay in level 3. Loops as in Goto & van de Geijn, "Anatomy of high-performance matrix
             multiplication", 2008, with the roles of A and B exchanged: here the panel that stays in level 1 is A's.
   skinny    few rows: B is read once, at the speed of memory; it is not packed, or by panels that stay in level 1, or,
             where its columns are dense and rows are few, turned in registers
   Each task computes rectangles of D on its own, packing for itself: no barrier, and no bit depends on who computes
   what. */

#define MLKI_MC           1344 /* rows of A copied at a time, at most 2.7 MiB; a multiple of every MR */
#define MLKI_SCRATCH_M    336  /* sums that cannot stay in D, which is also read: rows of their scratch */
#define MLKI_SCRATCH_N    1024 /* and columns */
#define MLKI_SKINNY_PANEL 128  /* terms of a panel of B that is packed just in time */
#define MLKI_SKINNY_RUN                                                                                                \
  512 /* floats read from one row of B before the next: the rows asked for ahead must survive until then */
#define MLKI_SKINNY_FLOATS 4096 /* sums in flight: a third of level 1 */
#define MLKI_TURNED_AHEAD  256  /* floats that are asked for ahead in each column of B that is turned */
#define MLKI_TINY          96   /* largest size of a product that skips planning */

/* What a mlk_packed holds. */
typedef enum mlki_form { MLKI_FORM_MATMUL, MLKI_FORM_CONV, MLKI_FORM_CONV_TRANSPOSED } mlki_form;

/* What becomes of A: used where it is; a block of it copied as rows that do not conflict; packed as panels of MR
   rows. */
typedef enum mlki_a_form { MLKI_A_IS, MLKI_A_ROWS, MLKI_A_PANELS } mlki_a_form;
#define MLKI_A_PITCH(kc) ((kc) + 16) /* of copied rows: never a multiple of 4 KiB */

typedef enum mlki_matmul_variant {
  MLKI_EMPTY,
  MLKI_REFERENCE,
  MLKI_DIRECT,
  MLKI_BLOCKED,
  MLKI_SKINNY
} mlki_matmul_variant;
static const char *const mlki_matmul_variant_names[] = {"empty", "reference", "direct", "blocked", "skinny"};

typedef struct mlki_matmul {
  const mlki_kernels *row;
  int64_t m, n, k;
  int64_t batches;
  int batch_rank;
  int64_t batch_shape[MLK_MAX_RANK - 2];
  mlki_mat a, b;
  mlki_epilogue e;
  int plain;           /* the sums are the result: no epilogue */
  int in_place;        /* the sums may live in D until the epilogue */
  const float *panels; /* B as mlk_matmul_pack left it, else NULL */
  mlki_matmul_variant variant;
  mlki_a_form a_form;
  int pack_b;
  int turns;              /* skinny: B by blocks that are turned in registers */
  int64_t nc;             /* columns per block of B */
  int64_t tile_m, tile_n; /* a task's rectangle */
  int64_t tiles_m, tiles_n, items;
  int64_t scratch_m, scratch_n;                 /* sums outside D */
  int64_t floats_a, floats_b, floats_c, floats; /* workspace of one task */
  int tasks;
  float *workspace;
  int64_t next; /* the queue of items */
  uint64_t flops, bytes;
} mlki_matmul;

static void mlki_swap_axes(mlki_mat *x) {
  const int64_t t = x->rs;
  x->rs = x->cs, x->cs = t;
}

/* Computes D^T = B^T A^T instead. Vectors run along rows of D, so this is done when D's columns are dense in memory,
   or D is narrow. */
static void mlki_matmul_transpose(mlki_matmul *mm) {
  const mlki_mat a = mm->a;
  const int64_t m = mm->m;
  mm->a = mm->b, mm->b = a;
  mm->m = mm->n, mm->n = m;
  mlki_swap_axes(&mm->a), mlki_swap_axes(&mm->b);
  mlki_swap_axes(&mm->e.c), mlki_swap_axes(&mm->e.bias), mlki_swap_axes(&mm->e.residual);
  mlki_swap_axes(&mm->e.preact), mlki_swap_axes(&mm->e.d);
}

/* One column, or a few next to a large A that comes from memory: the rows of A are turned in registers then. */
static int mlki_matmul_narrow(const mlk_context *ctx, const mlki_matmul *mm) {
  return (mm->n == 1 && mm->m > 1) || (mm->n <= ctx->row->turn_most && mm->a.cs == 1 && mm->m >= 8 * mm->n &&
                                       mm->k >= ctx->row->lanes && mm->m * mm->k > ctx->l2_bytes / 8);
}

/* Rows whose distance is a multiple of 4 KiB fall into the same few cache sets. */
static int mlki_conflicting_stride(int64_t stride, int64_t rows) {
  return rows > 4 && stride != 0 && stride % 1024 == 0;
}

/* Columns of B per block: one segment of them fills half of level 2. */
static int64_t mlki_matmul_block_columns(const mlk_context *ctx) {
  const int64_t half = ctx->l2_bytes / 2 / (MLK_SEGMENT * 4);
  return mlki_max(half / ctx->row->nr, 2) * ctx->row->nr;
}

/* Chooses variant, blocks and tasks. Nothing here changes a bit of the result. */
static void mlki_matmul_block(const mlk_context *ctx, mlki_matmul *mm) {
  const int mr = mm->row->mr, nr = mm->row->nr;
  const int64_t kc = mlki_min(mm->k, MLK_SEGMENT), segments = mlki_max(mlki_ceil_div(mm->k, MLK_SEGMENT), 1);
  const double work = (double)mm->m * (double)mm->n * (double)mm->k;
  const int small = work <= 192.0 * 192 * 192;
  int64_t tasks = mlki_task_limit(ctx), split_m = 1, split_n = 1, t;

  if (mm->m == 0 || mm->n == 0 || mm->batches == 0)
    mm->variant = MLKI_EMPTY;
  else if (ctx->reference)
    mm->variant = MLKI_REFERENCE;
  else if (mm->m <= 2 * mr && (mm->m == 1 || mm->k * mm->n > ctx->l2_bytes / 8 || (mm->b.cs != 1 && !mm->panels)))
    mm->variant = MLKI_SKINNY;
  else
    mm->variant = small ? MLKI_DIRECT : MLKI_BLOCKED;

  mm->pack_b = !mm->panels && (mm->b.cs != 1 || (mm->variant == MLKI_BLOCKED && mm->m > mr) ||
                               mlki_conflicting_stride(mm->b.rs, mm->k));
  mm->a_form = MLKI_A_IS;
  if (mm->variant == MLKI_BLOCKED && mm->n > 2 * nr && mm->a.cs != 1)
    mm->a_form = MLKI_A_PANELS;
  else if (mm->n > 2 * nr &&
           (mlki_conflicting_stride(mm->a.rs, mm->m) || (mm->variant == MLKI_BLOCKED && mm->m > MLKI_MC)))
    mm->a_form = mm->a.cs == 1 ? MLKI_A_ROWS : MLKI_A_PANELS;
  if (mm->variant == MLKI_SKINNY) mm->pack_b = mm->b.cs != 1 && !mm->panels, mm->a_form = MLKI_A_IS;
  mm->turns = mm->variant == MLKI_SKINNY && mm->pack_b && mm->b.rs == 1 && mm->m <= mm->row->turn_most;
  if (mm->turns) mm->pack_b = 0;
  mm->nc = mlki_min(mlki_matmul_block_columns(ctx), mlki_round_up(mm->n, nr));

  /* tasks: as many as the work pays for; rectangles that read least, tm * n + tn * m, cut at tile borders */
  tasks = (int64_t)mlki_min(tasks, (int64_t)(work * (double)mm->batches / MLKI_TASK_WORK));
  tasks = mm->variant <= MLKI_REFERENCE ? 1 : mlki_max(tasks, 1);
  if (mm->batches < tasks && mm->variant == MLKI_SKINNY) {
    split_n = mlki_min(tasks, mlki_ceil_div(mm->n, nr));
  } else if (mm->batches < tasks) {
    const int64_t want = mlki_ceil_div(tasks, mlki_max(mm->batches, 1));
    double best = 1e300;
    for (t = 1; t <= want; t++) {
      const int64_t u = want / t;
      const double cost = (double)t * (double)mm->n + (double)u * (double)mm->m + (t * u < want ? 1e30 : 0.0);
      if (t <= mlki_ceil_div(mm->m, mr) && u <= mlki_ceil_div(mm->n, nr) && cost < best)
        best = cost, split_m = t, split_n = u;
    }
  }
  mm->tile_m = split_m == 1 ? mm->m : mlki_round_up(mlki_ceil_div(mm->m, split_m), mr);
  mm->tile_n = split_n == 1 ? mm->n : mlki_round_up(mlki_ceil_div(mm->n, split_n), nr);
  if (mm->variant == MLKI_EMPTY) mm->tile_m = mm->tile_n = 1;
  mm->tiles_m = mlki_ceil_div(mm->m, mm->tile_m), mm->tiles_n = mlki_ceil_div(mm->n, mm->tile_n);
  mm->items = mm->batches * mm->tiles_m * mm->tiles_n;
  mm->tasks = (int)mlki_max(mlki_min(tasks, mm->items), 1);

  /* workspace of a task */
  mm->floats_a = mm->floats_b = mm->floats_c = 0;
  mm->scratch_m = mm->tile_m, mm->scratch_n = mm->tile_n;
  if (mm->variant == MLKI_SKINNY) {
    if (mlki_conflicting_stride(mm->e.d.rs, mm->m)) mm->in_place = 0;
    mm->scratch_n = mlki_min(
        mm->pack_b || mm->panels ? nr : mlki_round_up(mlki_min(MLKI_SKINNY_FLOATS / mm->m, MLKI_SKINNY_RUN), nr),
        mlki_round_up(mm->tile_n, nr));
    if (mm->turns) mm->scratch_n = mm->row->lanes;
    if (!mm->pack_b && !mm->turns && !mm->panels && mlki_conflicting_stride(mm->a.rs, mm->m))
      mm->a_form = MLKI_A_PANELS;
    mm->floats_a = mm->a_form == MLKI_A_PANELS ? mm->m * kc + MLKI_LANES_MAX : 0;
    mm->floats_b = mm->pack_b ? mlki_min(kc, MLKI_SKINNY_PANEL) * nr + MLKI_LANES_MAX : 0;
    mm->floats_c = mm->m * mm->scratch_n * ((segments > 1 && !mm->turns) + !mm->in_place);
  } else if (mm->variant != MLKI_EMPTY && mm->variant != MLKI_REFERENCE) {
    if (!mm->in_place) {
      mm->scratch_m = mlki_min(mm->tile_m, segments == 1 ? mr : MLKI_SCRATCH_M);
      mm->scratch_n = mlki_min(mm->tile_n, segments == 1 ? mm->nc : MLKI_SCRATCH_N);
    }
    mm->floats_a = mm->a_form == MLKI_A_IS
                       ? 0
                       : mlki_min(mm->tile_m, segments == 1 || mm->in_place ? MLKI_MC : MLKI_SCRATCH_M) *
                                 MLKI_A_PITCH(kc) +
                             MLKI_LANES_MAX;
    mm->floats_b = mm->pack_b ? mlki_min(mm->nc, mlki_round_up(mm->tile_n, nr)) * kc + MLKI_LANES_MAX : 0;
    mm->floats_c = mm->in_place ? 0 : mm->scratch_m * mm->scratch_n;
  }
  mm->floats_a = mlki_round_up(mm->floats_a, MLKI_LANES_MAX);
  mm->floats_b = mlki_round_up(mm->floats_b, MLKI_LANES_MAX);
  mm->floats_c = mlki_round_up(mm->floats_c, MLKI_LANES_MAX);
  mm->floats = mm->floats_a + mm->floats_b + mm->floats_c;
}

/* Where one task is: the matrices of one item of the batch, and its part of the workspace. */
typedef struct mlki_matmul_job {
  const mlki_matmul *mm;
  mlki_mat a, b;
  mlki_epilogue e;
  float *block_a, *pack_b, *scratch;
} mlki_matmul_job;

static void mlki_matmul_move(mlki_mat *x, const mlki_matmul *mm, const int64_t *at) {
  int i;
  for (i = 0; i < mm->batch_rank && x->p; i++) x->p += at[i] * x->batch[i];
}

/* Points the job at one matrix of the batch. */
static void mlki_matmul_select(mlki_matmul_job *job, int64_t index) {
  const mlki_matmul *mm = job->mm;
  int64_t at[MLK_MAX_RANK - 2];
  int i;
  job->a = mm->a, job->b = mm->b, job->e = mm->e;
  if (mm->batches == 1) return;
  for (i = mm->batch_rank - 1; i >= 0; i--) at[i] = index % mm->batch_shape[i], index /= mm->batch_shape[i];
  mlki_matmul_move(&job->a, mm, at), mlki_matmul_move(&job->b, mm, at), mlki_matmul_move(&job->e.d, mm, at);
  if (mm->plain) return;
  mlki_matmul_move(&job->e.c, mm, at), mlki_matmul_move(&job->e.bias, mm, at);
  mlki_matmul_move(&job->e.residual, mm, at), mlki_matmul_move(&job->e.preact, mm, at);
}

/* Packs terms [s, s + kc) of columns [j, j + cols) of B into panels of NR columns. */
static void mlki_matmul_pack_columns(const mlki_kernels *row, float *to, const mlki_mat *b, int64_t s, int64_t kc,
                                     int64_t j, int64_t cols) {
  row->pack_panels(to, cols, kc, b->p + s * b->rs + j * b->cs, b->cs, b->rs);
}

/* Panels of A have equal heights as far as that goes: 16 rows are 8 + 8 and not 14 + 2. */
static int64_t mlki_panel_rows(int64_t rows, int64_t mr) { return mlki_ceil_div(rows, mlki_ceil_div(rows, mr)); }

/* Rows [i0, i0 + rows), terms [s, s + kc) of A in the form the strips want. */
static void mlki_matmul_bring_a(const mlki_matmul_job *job, int64_t i0, int64_t rows, int64_t s, int64_t kc) {
  const mlki_matmul *mm = job->mm;
  const int64_t height = mlki_panel_rows(rows, mm->row->mr);
  const float *a = job->a.p + i0 * job->a.rs + s * job->a.cs;
  int64_t i;
  if (mm->a_form == MLKI_A_ROWS)
    for (i = 0; i < rows; i++) memcpy(job->block_a + i * MLKI_A_PITCH(kc), a + i * job->a.rs, (size_t)kc * 4);
  else if (mm->a_form == MLKI_A_PANELS)
    for (i = 0; i < rows; i += height) {
      const int64_t h = mlki_min(height, rows - i);
      mm->row->pack(job->block_a + i * kc, h, h, kc, a + i * job->a.rs, job->a.rs, job->a.cs);
    }
}

/* Rows [i0, i0 + rows) x columns [j0, j0 + cols) of one segment: C (+)= A B, and after the last segment the epilogue.
   c, c_rs: where the sums of row i0, column j0 live; with c_rolls, every strip reuses c. */
static void mlki_matmul_strips(const mlki_matmul_job *job, int64_t i0, int64_t rows, int64_t j0, int64_t cols,
                               int64_t s, int64_t kc, float *c, int64_t c_rs, int c_rolls, int last) {
  const mlki_matmul *mm = job->mm;
  const int64_t height = mlki_panel_rows(rows, mm->row->mr);
  mlki_strip strip;
  int64_t i;
  if (mm->pack_b)
    strip.b = job->pack_b, strip.b_rs = mm->row->nr, strip.b_panel = kc * mm->row->nr;
  else if (mm->panels)
    strip.b = mm->panels + j0 * mm->k + s * mm->row->nr, strip.b_rs = mm->row->nr, strip.b_panel = mm->k * mm->row->nr;
  else
    strip.b = job->b.p + s * job->b.rs + j0, strip.b_rs = job->b.rs, strip.b_panel = mm->row->nr;
  strip.c_rs = c_rs, strip.cols = cols, strip.k = kc;
  strip.chain = s == 0 ? MLKI_START : MLKI_ADD;
  for (i = 0; i < rows; i += height) {
    strip.rows = mlki_min(height, rows - i);
    if (mm->a_form == MLKI_A_PANELS)
      strip.a = job->block_a + i * kc, strip.a_rs = 1, strip.a_cs = strip.rows;
    else if (mm->a_form == MLKI_A_ROWS)
      strip.a = job->block_a + i * MLKI_A_PITCH(kc), strip.a_rs = MLKI_A_PITCH(kc), strip.a_cs = 1;
    else
      strip.a = job->a.p + (i0 + i) * job->a.rs + s * job->a.cs, strip.a_rs = job->a.rs, strip.a_cs = job->a.cs;
    strip.c = c_rolls ? c : c + i * c_rs;
    mm->row->strip(&strip);
    if (last && !(mm->plain && mm->in_place)) mm->row->epilogue(&job->e, strip.c, c_rs, i0 + i, j0, strip.rows, cols);
  }
}

/* D[i0 .. i1, j0 .. j1) by blocks; also the direct variant, which packs neither operand. */
static void mlki_matmul_blocked(const mlki_matmul_job *job, int64_t i0, int64_t i1, int64_t j0, int64_t j1) {
  const mlki_matmul *mm = job->mm;
  const int rolls = !mm->in_place && mm->k <= MLK_SEGMENT;
  const int64_t step_m = mm->in_place && mm->a_form == MLKI_A_IS ? i1 - i0
                         : mm->in_place || rolls                 ? MLKI_MC
                                                                 : mm->scratch_m,
                step_n = mm->in_place || rolls ? j1 - j0 : mm->scratch_n;
  int64_t i, jb, j, s;
  for (i = i0; i < i1; i += step_m) {
    const int64_t rows = mlki_min(step_m, i1 - i);
    for (jb = j0; jb < j1; jb += step_n) {
      const int64_t end = mlki_min(jb + step_n, j1);
      for (s = 0; s == 0 || s < mm->k; s += MLK_SEGMENT) {
        const int64_t kc = mlki_min(mm->k - s, MLK_SEGMENT);
        const int last = s + kc >= mm->k;
        mlki_matmul_bring_a(job, i, rows, s, kc);
        for (j = jb; j < end; j += mm->nc) {
          const int64_t cols = mlki_min(mm->nc, end - j);
          float *c = mm->in_place ? job->e.d.p + i * job->e.d.rs + j : rolls ? job->scratch : job->scratch + (j - jb);
          const int64_t c_rs = mm->in_place ? job->e.d.rs : mm->scratch_n;
          if (mm->pack_b) mlki_matmul_pack_columns(mm->row, job->pack_b, &job->b, s, kc, j, cols);
          mlki_matmul_strips(job, i, rows, j, cols, s, kc, c, c_rs, rolls, last);
        }
      }
    }
  }
}

/* A step of a skinny product: a strip of all rows. Whole panels of columns are swept where B is read as it is. */
static void mlki_matmul_sweep(const mlki_matmul *mm, const mlki_strip *all) {
  const int64_t height = mlki_panel_rows(all->rows, mlki_min(mm->row->mr, MLKI_SWEEP_ROWS));
  const int64_t even = all->rows / height * height;
  const int swept = !mm->pack_b && !mm->panels && all->k == MLKI_SWEEP;
  const int64_t cols = swept ? all->cols / mm->row->nr * mm->row->nr : 0;
  mlki_strip part = *all;
  int64_t i;
  if (cols) {
    part.cols = cols, part.rows = even;
    mm->row->sweep(&part, height);
    if (even < all->rows) {
      part.a += even * part.a_rs, part.c += even * part.c_rs, part.rows = all->rows - even;
      mm->row->sweep(&part, part.rows);
    }
  }
  part = *all;
  part.b += cols, part.cols -= cols;
  for (i = 0; i < all->rows && part.cols; i += height) {
    part.a = all->a + i * all->a_rs, part.c = all->c + cols + i * all->c_rs,
    part.rows = mlki_min(height, all->rows - i);
    mm->row->strip(&part);
  }
}

/* Columns [j, j + cols) of a skinny product whose B has dense columns: a few of them at a time, along all of K. */
static void mlki_matmul_turned_columns(const mlki_matmul_job *job, int64_t j, int64_t cols) {
  const mlki_matmul *mm = job->mm;
  const int64_t lanes = mm->row->lanes;
  int64_t at, s;
  mlki_turn t;
  t.q_rs = job->a.rs, t.q_cs = job->a.cs, t.rows = mm->m, t.pitch = job->b.cs, t.ahead = MLKI_TURNED_AHEAD;
  t.after = t.ahead + lanes * t.pitch - mm->k; /* beyond the columns in use the next ones begin */
  for (at = j; at < j + cols; at += lanes) {
    t.n = mlki_min(lanes, j + cols - at);
    t.c = mm->in_place ? job->e.d.p + at : job->scratch, t.c_pitch = mm->in_place ? job->e.d.rs : lanes;
    for (s = 0; s == 0 || s < mm->k; s += MLK_SEGMENT) {
      t.q = job->a.p + s * job->a.cs, t.keys = job->b.p + at * job->b.cs + s;
      t.depth = mlki_min(mm->k - s, MLK_SEGMENT), t.add = s > 0, t.last = mm->k - s - t.ahead;
      mm->row->turn(&t);
    }
    if (!(mm->plain && mm->in_place)) mm->row->epilogue(&job->e, t.c, t.c_pitch, 0, at, mm->m, t.n);
  }
}

/* All rows (at most 2 MR) x columns [j, j + cols): B is passed over once, a few rows or one narrow panel at a time,
   while the sums of the current segment wait in level 1 or 2. total: sums of finished segments; chain: the running
   segment when it is not the first. */
static void mlki_matmul_skinny_columns(const mlki_matmul_job *job, int64_t j, int64_t cols) {
  const mlki_matmul *mm = job->mm;
  const int64_t step = mm->pack_b ? MLKI_SKINNY_PANEL : mm->panels ? MLK_SEGMENT : MLKI_SWEEP;
  float *total = mm->in_place ? job->e.d.p + j : job->scratch;
  const int64_t total_rs = mm->in_place ? job->e.d.rs : mm->scratch_n;
  float *chain = mm->in_place ? job->scratch : job->scratch + mm->m * mm->scratch_n;
  int64_t s, p, i;
  for (s = 0; s == 0 || s < mm->k; s += MLK_SEGMENT) {
    const int64_t end = mlki_min(mm->k, s + MLK_SEGMENT);
    if (mm->a_form == MLKI_A_PANELS)
      mm->row->pack(job->block_a, mm->m, mm->m, end - s, job->a.p + s * job->a.cs, job->a.rs, job->a.cs);
    for (p = s; p == s || p < end; p += step) {
      mlki_strip strip;
      strip.k = mlki_min(step, end - p), strip.cols = cols;
      strip.a_rs = job->a.rs, strip.a_cs = job->a.cs, strip.a = job->a.p + p * job->a.cs;
      if (mm->a_form == MLKI_A_PANELS) strip.a_rs = 1, strip.a_cs = mm->m, strip.a = job->block_a + (p - s) * mm->m;
      strip.c_rs = s ? mm->scratch_n : total_rs;
      strip.chain = p == s ? MLKI_START : MLKI_CONTINUE;
      if (mm->pack_b) {
        mlki_matmul_pack_columns(mm->row, job->pack_b, &job->b, p, strip.k, j, cols);
        strip.b = job->pack_b, strip.b_rs = mm->row->nr, strip.b_panel = 0;
      } else if (mm->panels) {
        strip.b = mm->panels + j * mm->k + p * mm->row->nr, strip.b_rs = mm->row->nr, strip.b_panel = 0;
      } else {
        strip.b = job->b.p + p * job->b.rs + j, strip.b_rs = job->b.rs, strip.b_panel = mm->row->nr;
      }
      strip.rows = mm->m;
      strip.c = s ? chain : total;
      mlki_matmul_sweep(mm, &strip);
    }
    for (i = 0; i < mm->m && s; i++) mm->row->add(total + i * total_rs, chain + i * mm->scratch_n, cols);
  }
  if (!(mm->plain && mm->in_place)) mm->row->epilogue(&job->e, total, total_rs, 0, j, mm->m, cols);
}

static void mlki_matmul_reference(const mlki_matmul_job *job) {
  const mlki_matmul *mm = job->mm;
  const mlki_epilogue *e = &job->e;
  int64_t i, j;
  for (i = 0; i < mm->m; i++)
    for (j = 0; j < mm->n; j++) {
      float t = mlki_ref_dot_chain(mm->k, job->a.p + i * job->a.rs, job->a.cs, job->b.p + j * job->b.cs, job->b.rs);
      if (!mm->plain) {
        t = mlki_ref_preact(e->alpha, t, e->bias.p ? e->bias.p + i * e->bias.rs + j * e->bias.cs : NULL, e->beta,
                            e->c.p ? e->c.p + i * e->c.rs + j * e->c.cs : NULL);
        if (e->preact.p) e->preact.p[i * e->preact.rs + j * e->preact.cs] = t;
        t = mlki_ref_activate(e->activation, t);
        if (e->residual.p) t += e->residual.p[i * e->residual.rs + j * e->residual.cs];
      }
      e->d.p[i * e->d.rs + j * e->d.cs] = t;
    }
}

static void mlki_matmul_rectangle(const mlki_matmul_job *job, int64_t tile_i, int64_t tile_j) {
  const mlki_matmul *mm = job->mm;
  const int64_t i0 = tile_i * mm->tile_m, j0 = tile_j * mm->tile_n, i1 = mlki_min(i0 + mm->tile_m, mm->m),
                j1 = mlki_min(j0 + mm->tile_n, mm->n);
  int64_t j;
  switch (mm->variant) {
  case MLKI_SKINNY:
    if (mm->turns) {
      mlki_matmul_turned_columns(job, j0, j1 - j0);
      break;
    }
    for (j = j0; j < j1; j += mm->scratch_n) mlki_matmul_skinny_columns(job, j, mlki_min(mm->scratch_n, j1 - j));
    break;
  case MLKI_REFERENCE: mlki_matmul_reference(job); break;
  case MLKI_DIRECT:
  case MLKI_BLOCKED: mlki_matmul_blocked(job, i0, i1, j0, j1); break;
  case MLKI_EMPTY: break;
  }
}

/* Items [first, end) of a batch of small products that need no packing and no epilogue: only pointers change. */
static void mlki_matmul_small_items(mlki_matmul_job *job, int64_t first, int64_t end) {
  const mlki_matmul *mm = job->mm;
  const int64_t height = mlki_panel_rows(mm->m, mm->row->mr);
  mlki_strip strip;
  int64_t at, i;
  strip.a_rs = mm->a.rs, strip.a_cs = mm->a.cs, strip.b_rs = mm->b.rs, strip.b_panel = mm->row->nr;
  strip.c_rs = mm->e.d.rs, strip.cols = mm->n, strip.k = mm->k, strip.chain = MLKI_START;
  for (at = first; at < end; at++) {
    const float *a = mm->a.p + at * mm->a.batch[0];
    float *c = mm->e.d.p + at * mm->e.d.batch[0];
    strip.b = mm->b.p + at * mm->b.batch[0];
    if (mm->batch_rank != 1) mlki_matmul_select(job, at), a = job->a.p, strip.b = job->b.p, c = job->e.d.p;
    for (i = 0; i < mm->m; i += height) {
      strip.rows = mlki_min(height, mm->m - i);
      strip.a = a + i * mm->a.rs, strip.c = c + i * mm->e.d.rs;
      mm->row->strip(&strip);
    }
  }
}

/* One task: takes items from the queue until it is empty. Items of a batch are taken in runs, so that tiny ones do
   not queue. */
static void mlki_matmul_task(void *arg, int index) {
  mlki_matmul *mm = (mlki_matmul *)arg;
  const int64_t tiles = mm->tiles_m * mm->tiles_n;
  const int64_t run = mm->tasks == 1 ? mm->items : mlki_max(mm->batches / (mm->tasks * 8), 1);
  const int small = mm->variant == MLKI_DIRECT && mm->plain && mm->in_place && !mm->pack_b && !mm->panels &&
                    mm->a_form == MLKI_A_IS && tiles == 1 && mm->k <= MLK_SEGMENT;
  float *workspace = mm->workspace + index * mm->floats;
  mlki_matmul_job job;
  int64_t at;
  job.mm = mm;
  job.block_a = workspace, job.pack_b = workspace + mm->floats_a, job.scratch = workspace + mm->floats_a + mm->floats_b;
  for (;;) {
    const int64_t first = (mm->tasks == 1 ? mm->next++ : mlki_take(&mm->next)) * run,
                  end = mlki_min(first + run, mm->items);
    if (first >= mm->items) break;
    if (small) mlki_matmul_small_items(&job, first, end);
    for (at = first; at < end && !small; at++) {
      if (at == first || tiles == 1 || at % tiles == 0) mlki_matmul_select(&job, at / tiles);
      mlki_matmul_rectangle(&job, at % tiles / mm->tiles_n, at % tiles % mm->tiles_n);
    }
  }
}

/* One operand of the product: checked, and its batch axes aligned with D's. */
static mlk_status mlki_matmul_operand(mlk_context *ctx, const char *name, const mlk_tensor *t, const mlk_tensor *d,
                                      int64_t rows, int64_t cols, mlki_mat *out) {
  int64_t shape[MLK_MAX_RANK];
  int i;
  if (t->rank > d->rank)
    return mlki_fail(ctx, MLK_ERR_SHAPE, "%s: rank is %d, but d has %d axes", name, (int)t->rank, (int)d->rank);
  if (t->shape[t->rank - 2] != rows || t->shape[t->rank - 1] != cols)
    return mlki_fail(
        ctx, MLK_ERR_SHAPE, "%s: matrix is %lld x %lld, but must be %lld x %lld (a is M x K, b K x N, d M x N)%s", name,
        (long long)t->shape[t->rank - 2], (long long)t->shape[t->rank - 1], (long long)rows, (long long)cols,
        t->shape[t->rank - 2] == cols && t->shape[t->rank - 1] == rows ? "; mlk_transposed would fit" : "");
  for (i = 0; i < d->rank - 2; i++) shape[i] = d->shape[i];
  shape[d->rank - 2] = rows, shape[d->rank - 1] = cols;
  return mlki_broadcast(ctx, name, t, shape, d->rank, out);
}

typedef struct mlki_matmul_args {
  mlk_tensor a, b, c, d, bias, residual, preact;
  mlki_extent ea, eb, ec, ed, ebias, eresidual, epreact;
} mlki_matmul_args;

/* D and preact may overlap nothing, but that D may be C and residual. */
static mlk_status mlki_matmul_check_alias(mlk_context *ctx, const mlki_matmul_args *t, const mlki_matmul *mm) {
  const struct {
    const char *name;
    const mlk_tensor *tensor;
    const mlki_extent *extent;
    int same_allowed, present;
  } in[] = {{"a", &t->a, &t->ea, 0, 1},
            {mm->panels ? "packed_b" : "b", &t->b, &t->eb, 0, 1},
            {"c", &t->c, &t->ec, 1, mm->e.c.p != NULL},
            {"bias", &t->bias, &t->ebias, 0, mm->e.bias.p != NULL},
            {"residual", &t->residual, &t->eresidual, 1, mm->e.residual.p != NULL}};
  size_t i;
  for (i = 0; i < sizeof in / sizeof in[0]; i++) {
    if (!in[i].present) continue;
    if (!(in[i].same_allowed && mlki_same_view(&t->d, in[i].tensor)) &&
        mlki_overlap(&t->d, &t->ed, in[i].tensor, in[i].extent))
      return mlki_fail(ctx, MLK_ERR_ALIAS, "d: overlaps %s%s", in[i].name,
                       in[i].same_allowed ? ", which is allowed only as the same view" : "");
    if (mm->e.preact.p && mlki_overlap(&t->preact, &t->epreact, in[i].tensor, in[i].extent))
      return mlki_fail(ctx, MLK_ERR_ALIAS, "preact: overlaps %s", in[i].name);
  }
  if (mm->e.preact.p && mlki_overlap(&t->preact, &t->epreact, &t->d, &t->ed))
    return mlki_fail(ctx, MLK_ERR_ALIAS, "preact: overlaps d");
  return MLK_OK;
}

static mlk_status mlki_matmul_check_packed(mlk_context *ctx, const mlk_packed *p, int64_t k, int64_t n) {
  const int64_t nr = ctx->row->nr;
  int64_t bytes;
  if (ctx->reference)
    return mlki_fail(ctx, MLK_ERR_UNSUPPORTED, "packed_b: the reference does not read packed panels; give b");
  if (!p->data) return mlki_fail(ctx, MLK_ERR_ARGUMENT, "packed_b: data is NULL; fill it with mlk_matmul_pack");
  if ((uintptr_t)p->data % MLKI_ALIGN)
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "packed_b: data is not aligned to %d bytes; was the buffer moved?",
                     MLKI_ALIGN);
  if (p->form != MLKI_FORM_MATMUL)
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "packed_b: was packed for a convolution; use mlk_matmul_pack");
  if (p->dtype != MLK_F32)
    return mlki_fail(ctx, MLK_ERR_DTYPE, "packed_b: dtype is %d, but must be f32 (%d)", (int)p->dtype, MLK_F32);
  if (p->isa != (int32_t)ctx->row->isa || p->panel != (int32_t)nr)
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "packed_b: packed for %s, but this context runs %s; pack it again",
                     p->isa > 0 && p->isa < MLK_ISA_COUNT ? mlki_isa_names[p->isa] : "unknown",
                     mlki_isa_names[ctx->row->isa]);
  if (p->k != k || p->n != n)
    return mlki_fail(ctx, MLK_ERR_SHAPE, "packed_b: matrix is %lld x %lld, but must be %lld x %lld", (long long)p->k,
                     (long long)p->n, (long long)k, (long long)n);
  if (mlki_mul_overflows(mlki_ceil_div(n, nr) * nr, k, &bytes) || mlki_mul_overflows(bytes, 4, &bytes) ||
      (uint64_t)bytes > p->bytes)
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "packed_b: holds %llu bytes, too few for %lld x %lld",
                     (unsigned long long)p->bytes, (long long)k, (long long)n);
  return MLK_OK;
}

/* An optional operand of the epilogue. */
static mlk_status mlki_matmul_extra(mlk_context *ctx, const char *name, mlk_tensor *t, mlki_extent *extent,
                                    const mlk_tensor *d, mlki_mat *out) {
  mlk_status status;
  out->p = NULL, out->rs = out->cs = 0;
  if (!t->data) return MLK_OK;
  status = mlki_check_real(ctx, name, t, 1, MLK_MAX_RANK, extent);
  return status ? status : mlki_broadcast(ctx, name, t, d->shape, d->rank, out);
}

/* On a device A and B may be of 16 bits, and what goes with D like them: how they go together, and fewer bytes. */
static mlk_status mlki_matmul_dtypes(mlk_context *ctx, const mlki_matmul_args *t, mlki_matmul *mm) {
  const mlk_tensor *all[] = {&t->d, &t->c, &t->bias, &t->residual, &t->preact};
  const mlki_extent *extent[] = {&t->ed, &t->ec, &t->ebias, &t->eresidual, &t->epreact};
  const char *const names[] = {"d", "c", "bias", "residual", "preact"};
  mlk_status status;
  int i;
  for (i = 0; i < 5; i++) {
    if ((status = mlki_check_alike(ctx, names[i], all[i], "a", &t->a)) != MLK_OK) return status;
    if (all[i]->data && all[i]->dtype != MLK_F32 && (i != 1 || mm->e.c.p))
      mm->bytes -= 2u * (uint64_t)extent[i]->stored;
  }
  if (t->a.dtype != MLK_F32 && mm->e.alpha != 0.0f) mm->bytes -= 2u * (uint64_t)(t->ea.stored + t->eb.stored);
  return MLK_OK;
}

/* run: 0 for a plan, which does not look for overlap. */
static mlk_status mlki_matmul_prepare(mlk_context *ctx, const mlk_matmul_desc *desc, int run, mlki_matmul *mm) {
  mlki_matmul_args t;
  mlk_status status;
  int64_t count, flops;
  int i;
  if (!desc) return mlki_fail(ctx, MLK_ERR_ARGUMENT, "desc: is NULL");
  t.a = desc->a, t.b = desc->b, t.c = desc->c, t.d = desc->d, t.bias = desc->bias, t.residual = desc->residual,
  t.preact = desc->preact;
  if ((int)desc->activation < 0 || desc->activation >= MLK_ACTIVATION_COUNT)
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "activation: is %d, but must be 0 to %d", (int)desc->activation,
                     MLK_ACTIVATION_COUNT - 1);
  if ((status = mlki_check_real(ctx, "d", &t.d, 2, MLK_MAX_RANK, &t.ed)) != MLK_OK) return status;
  if ((status = mlki_check_output(ctx, "d", &t.d, &t.ed)) != MLK_OK) return status;
  if ((status = mlki_check_real(ctx, "a", &t.a, 2, MLK_MAX_RANK, &t.ea)) != MLK_OK) return status;
  mm->row = ctx->row;
  mm->m = t.d.shape[t.d.rank - 2], mm->n = t.d.shape[t.d.rank - 1], mm->k = t.a.shape[t.a.rank - 1];
  mm->batch_rank = t.d.rank - 2;
  mm->batches = 1;
  for (i = 0; i < mm->batch_rank; i++) mm->batch_shape[i] = t.d.shape[i], mm->batches *= t.d.shape[i];
  if ((status = mlki_matmul_operand(ctx, "a", &t.a, &t.d, mm->m, mm->k, &mm->a)) != MLK_OK) return status;
  mm->panels = NULL;
  if (desc->packed_b) {
    if (t.b.data) return mlki_fail(ctx, MLK_ERR_ARGUMENT, "b: given together with packed_b; give one of them");
    if ((status = mlki_matmul_check_packed(ctx, desc->packed_b, mm->k, mm->n)) != MLK_OK) return status;
    mm->panels = (const float *)desc->packed_b->data;
    memset(&mm->b, 0, sizeof mm->b);
    mm->b.p = (float *)(uintptr_t)desc->packed_b->data; /* not read as a matrix, not even when alpha is 0 */
    t.b = mlk_f32((const float *)desc->packed_b->data, desc->packed_b->bytes / 4);
    t.eb.low = 0, t.eb.high = (int64_t)(desc->packed_b->bytes / 4) - 1, t.eb.count = mm->k * mm->n,
    t.eb.stored = t.eb.count;
    t.b.stride[0] = 1;
  } else {
    if ((status = mlki_check_tensor(ctx, "b", &t.b, (mlk_dtype)t.a.dtype, 2, MLK_MAX_RANK, &t.eb)) != MLK_OK)
      return status;
    if ((status = mlki_matmul_operand(ctx, "b", &t.b, &t.d, mm->k, mm->n, &mm->b)) != MLK_OK) return status;
  }
  if ((status = mlki_broadcast(ctx, "d", &t.d, t.d.shape, t.d.rank, &mm->e.d)) != MLK_OK) return status;
  if ((status = mlki_matmul_extra(ctx, "c", &t.c, &t.ec, &t.d, &mm->e.c)) != MLK_OK) return status;
  if ((status = mlki_matmul_extra(ctx, "bias", &t.bias, &t.ebias, &t.d, &mm->e.bias)) != MLK_OK) return status;
  if ((status = mlki_matmul_extra(ctx, "residual", &t.residual, &t.eresidual, &t.d, &mm->e.residual)) != MLK_OK)
    return status;
  if ((status = mlki_matmul_extra(ctx, "preact", &t.preact, &t.epreact, &t.d, &mm->e.preact)) != MLK_OK) return status;
  if (mm->e.preact.p) {
    for (i = 0; i < t.d.rank; i++)
      if (t.preact.rank != t.d.rank || t.preact.shape[i] != t.d.shape[i])
        return mlki_fail(ctx, MLK_ERR_SHAPE, "preact: its shape must be d's, but differs at axis %d", i);
    if ((status = mlki_check_output(ctx, "preact", &t.preact, &t.epreact)) != MLK_OK) return status;
  }

  mm->e.alpha = desc->alpha ? *desc->alpha : 1.0f;
  mm->e.beta = desc->beta ? *desc->beta : mm->e.c.p ? 1.0f : 0.0f;
  mm->e.activation = desc->activation;
  if (mm->e.beta == 0.0f)
    mm->e.c.p = NULL;
  else if (!mm->e.c.p)
    mm->e.c = mm->e.d, t.c = t.d, t.ec = t.ed;

  if (mlki_mul_overflows(t.ed.count, mm->k, &flops) || mlki_mul_overflows(flops, 2, &flops))
    return mlki_fail(ctx, MLK_ERR_SIZE,
                     "d: the number of operations, 2 x %lld elements x K = %lld, does not fit in 63 bits",
                     (long long)t.ed.count, (long long)mm->k);
  mm->flops = (uint64_t)flops;
  count = t.ed.count + (mm->e.alpha == 0.0f ? 0 : t.ea.stored + t.eb.stored) + (mm->e.c.p ? t.ec.stored : 0) +
          (mm->e.bias.p ? t.ebias.stored : 0) + (mm->e.residual.p ? t.eresidual.stored : 0) +
          (mm->e.preact.p ? t.epreact.count : 0);
  if (count > INT64_MAX / 4) return mlki_fail(ctx, MLK_ERR_SIZE, "d: the bytes of all operands do not fit in 63 bits");
  mm->bytes = 4u * (uint64_t)count;
  if (ctx->backend && (status = mlki_matmul_dtypes(ctx, &t, mm)) != MLK_OK) return status;
  if (run && (status = mlki_matmul_check_alias(ctx, &t, mm)) != MLK_OK) return status;
  if (mm->e.alpha == 0.0f) mm->k = 0, mm->panels = NULL; /* A and B are not read */

  mm->plain = mm->e.alpha == 1.0f && !mm->e.c.p && !mm->e.bias.p && !mm->e.residual.p && !mm->e.preact.p &&
              !desc->activation;
  if (!mm->panels && ((mm->e.d.cs != 1 && mm->e.d.rs == 1) || mlki_matmul_narrow(ctx, mm))) mlki_matmul_transpose(mm);
  mm->in_place = mm->e.d.cs == 1 && !(mm->e.c.p && mlki_same_view(&t.d, &t.c)) &&
                 !(mm->e.residual.p && mlki_same_view(&t.d, &t.residual));
  mlki_matmul_block(ctx, mm);
  return MLK_OK;
}

/* Elements from row to row. */
MLKI_INLINE int64_t mlki_tiny_stride(const mlk_tensor *t) { return t->stride[1] == 1 ? t->stride[0] : t->shape[1]; }

/* Is t a matrix of f32 with dense rows apart from each other, small enough for mlki_matmul_tiny? */
MLKI_INLINE int mlki_tiny_matrix(const mlk_tensor *t) {
  return t->rank == 2 && t->dtype == MLK_F32 && t->data && t->shape[0] > 0 && t->shape[1] > 0 &&
         t->shape[0] <= MLKI_TINY && t->shape[1] <= MLKI_TINY &&
         ((t->stride[0] == 0 && t->stride[1] == 0) ||
          (t->stride[1] == 1 && t->stride[0] >= t->shape[1] && t->stride[0] <= 2 * MLKI_TINY));
}

/* Do two of them overlap, or could they, row between row? */
MLKI_INLINE int mlki_tiny_overlap(const mlk_tensor *x, const mlk_tensor *y) {
  const uintptr_t x0 = (uintptr_t)x->data, y0 = (uintptr_t)y->data;
  return x0 < y0 + 4 * (uintptr_t)(y->shape[0] * mlki_tiny_stride(y)) &&
         y0 < x0 + 4 * (uintptr_t)(x->shape[0] * mlki_tiny_stride(x));
}

/* A product of small matrices without an epilogue, where checking and planning would cost more than the
   arithmetic: done here, with the same bits as the direct variant, if every condition holds at sight; else left to
   the general path, errors included. */
static int mlki_matmul_tiny(const mlk_context *ctx, const mlk_matmul_desc *desc) {
  mlki_strip strip;
  int64_t m, n, i, height;
  if (!desc || ctx->reference || ctx->backend || desc->packed_b || (desc->alpha && *desc->alpha != 1.0f) ||
      (desc->beta && *desc->beta != 0.0f) || desc->activation != MLK_NONE || desc->c.data || desc->bias.data ||
      desc->residual.data || desc->preact.data || !mlki_tiny_matrix(&desc->a) || !mlki_tiny_matrix(&desc->b) ||
      !mlki_tiny_matrix(&desc->d))
    return 0;
  m = desc->d.shape[0], n = desc->d.shape[1];
  if (desc->a.shape[0] != m || desc->b.shape[1] != n || desc->a.shape[1] != desc->b.shape[0] ||
      mlki_tiny_overlap(&desc->d, &desc->a) || mlki_tiny_overlap(&desc->d, &desc->b))
    return 0;
  strip.k = desc->a.shape[1], strip.cols = n, strip.chain = MLKI_START;
  strip.a_rs = mlki_tiny_stride(&desc->a), strip.a_cs = 1;
  strip.b = (const float *)desc->b.data, strip.b_rs = mlki_tiny_stride(&desc->b), strip.b_panel = ctx->row->nr;
  strip.c_rs = mlki_tiny_stride(&desc->d);
  height = m <= ctx->row->mr ? m : mlki_panel_rows(m, ctx->row->mr);
  for (i = 0; i < m; i += height) {
    strip.rows = mlki_min(height, m - i);
    strip.a = (const float *)desc->a.data + i * strip.a_rs, strip.c = (float *)desc->d.data + i * strip.c_rs;
    ctx->row->strip(&strip);
  }
  return 1;
}

/* check: look for overlap. */
static mlk_status mlki_matmul_run(mlk_context *ctx, const mlk_matmul_desc *desc, int check) {
  mlki_matmul mm;
  mlk_status status;
  if ((status = mlki_matmul_prepare(ctx, desc, check, &mm)) != MLK_OK) return status;
  if (ctx->backend) return mlki_backend_run(ctx, MLK_OP_MATMUL, desc, mm.flops, mm.bytes);
  if ((status = mlki_workspace(ctx, 4 * (uint64_t)(mm.floats * mm.tasks))) != MLK_OK) return status;
  mm.workspace = (float *)mlki_workspace_base(ctx);
  mm.next = 0;
  mlki_parallel_for(ctx, mm.tasks, mlki_matmul_task, &mm);
  return MLK_OK;
}

/* >>conv ---------------------------------------------------------------------------------------------------------
   Convolution and its input gradient are one thing here, a correlation: every output element is a sum over taps and
   input channels, read at places that move linearly with the output's place and the tap's number. The input gradient
   with strides s is a set of such correlations, its phases: each writes every s-th element, through the taps that
   reach it; see mlki_conv_phase_at. The weight gradient is a matrix product over all output positions.

   columns    weights in panels of MR written channels, the image in panels of NR pixels: where the width is dense
   rows       the image in panels of MR pixels, weights in panels of NR written channels: where channels are dense, and
              for small images
   planes     weights as for columns, the image as it is, copied into a zero-padded buffer whose columns (and rows) are
             split by their place modulo the step, so that vectors of outputs read it at any tap: few channels
   lanes      a vector is LANES written channels, of several groups if they are small: see mlki_lane_window; depthwise
             with dense channels, weight gradients of small groups
   The last two read weights packed for columns: a handle says rows or columns, each call chooses among what reads it.
   Panels of the image are packed from the image itself, a tile at a time: no im2col buffer (implicit matrix product;
   Chetlur et al., "cuDNN: efficient primitives for deep learning", 2014). Sums live in a scratch tile until they are
   complete; the epilogue writes the output once. */

#define MLKI_CONV_PIXELS   512  /* most pixels of an item */
#define MLKI_CONV_CHANNELS 1024 /* most written channels of an item */
#define MLKI_CONV_FILTERS  4096 /* weights transposed at a time: 16 KiB of the stack */
#define MLKI_CONV_PANELS   8    /* panels of weights that stay in level 2 with one segment of their terms: 512 KiB */

typedef struct mlki_image { /* a tensor [N, C, spatial...]: its strides, always three spatial ones; p NULL: absent */
  float *p;
  int64_t n, c, s[3];
} mlki_image;

typedef enum mlki_conv_variant {
  MLKI_CONV_EMPTY,
  MLKI_CONV_REFERENCE,
  MLKI_CONV_ROWS,
  MLKI_CONV_COLUMNS,
  MLKI_CONV_PLANES,
  MLKI_CONV_LANES
} mlki_conv_variant;
static const char *const mlki_conv_variant_names[] = {"empty", "reference", "rows", "columns", "planes", "lanes"};

/* x is what is read, y what is written: X and Y, or DY and DX when transposed. Axes that are not there have size 1. */
typedef struct mlki_conv {
  const mlki_kernels *row;
  int transposed;
  int64_t images, groups, cin, cout; /* channels of one group, read and written */
  int64_t in[3], out[3], taps[3];    /* sizes of x, y and the filter */
  int64_t stride[3], dilation[3], pad[3];
  mlki_image x, y, residual, preact;
  const float *w; /* element (group, written channel, read channel, tap) */
  int64_t w_group, w_out, w_in, w_tap[3];
  const float *bias;
  int64_t bias_c;
  float alpha, beta;
  mlk_activation activation;
  mlki_conv_variant variant;
  int64_t phases[3];                    /* per axis: how many write something */
  int64_t width;                        /* channels of a panel of weights */
  int64_t panel_floats;                 /* of all panels of one group */
  const float *panels;                  /* weights packed by the caller, or in the workspace */
  int pack;                             /* in the workspace */
  int direct;                           /* rows, not packed but read in place or from padded windows */
  int64_t block_rows;                   /* then an item is whole rows of outputs */
  int64_t block_pixels, block_channels; /* an item */
  int64_t pixel_blocks, channel_blocks; /* of the largest phase; smaller phases leave items empty */
  int64_t items, next;
  int tasks;
  int64_t floats_image, floats; /* workspace of a task */
  float *workspace;             /* of the tasks */
  uint64_t flops, bytes;
  int pixel_major;                   /* finished sums are [pixel][channel], else [channel][pixel] */
  int plain;                         /* planes: sums go to y as they are, in runs */
  int64_t band_rows, band_cols;      /* planes: outputs of a band along the last two axes; several rows are whole */
  int64_t units;                     /* groups, or by lanes LANES written channels each */
  int64_t batch, run;                /* groups that share a buffer; units of an item, a multiple of batch */
  int64_t floats_terms, floats_sums; /* of a task's workspace, before and after the buffer; the rest is for finish */
} mlki_conv;

/* One correlation: along each axis output o < out reads x at o step + t dilation + origin for taps t < taps, and is
   element first + o skip of y. Its tap t is tap tap_first + t tap_skip of the filter. */
typedef struct mlki_conv_phase {
  int64_t out[3], taps[3], step[3], dilation[3], origin[3], first[3], skip[3], tap_first[3], tap_skip[3];
  int64_t pixels, terms; /* outputs of all images; length of one sum */
  int64_t taps_before;   /* taps of the phases before this one, in the order of the panels */
} mlki_conv_phase;

static int64_t mlki_gcd(int64_t a, int64_t b) {
  while (b) {
    const int64_t t = a % b;
    a = b, b = t;
  }
  return a;
}

/* a mod b, in [0, b). */
static int64_t mlki_modulo(int64_t a, int64_t b) { return (a % b + b) % b; }

/* Phase first of one axis of an input gradient: elements first, first + s, ... From the filter's definition
   i = o s + t d - pad: with g = gcd(s, d), taps t0, t0 + s/g, ... reach them, where t0 d = first + pad (mod s), and
   o = j + (first + pad - t0 d)/s - u d/g for element first + j s and the u-th of these taps. Returns the number of
   taps. */
static int64_t mlki_conv_phase_axis(const mlki_conv *cv, int a, int64_t first, mlki_conv_phase *ph) {
  const int64_t s = cv->stride[a], d = cv->dilation[a], every = s / mlki_gcd(s, d);
  int64_t t = 0;
  while (t < mlki_min(every, cv->taps[a]) && (first + cv->pad[a] - t * d) % s != 0) t++;
  if (t == mlki_min(every, cv->taps[a])) t = cv->taps[a];
  ph->taps[a] = mlki_ceil_div(cv->taps[a] - t, every);
  ph->out[a] = first < cv->out[a] ? mlki_ceil_div(cv->out[a] - first, s) : 0;
  ph->step[a] = 1, ph->dilation[a] = -(d / mlki_gcd(s, d));
  ph->origin[a] = ph->taps[a] ? (first + cv->pad[a] - t * d) / s : 0;
  ph->first[a] = first, ph->skip[a] = s;
  ph->tap_first[a] = t, ph->tap_skip[a] = every;
  return ph->taps[a];
}

/* The phase of elements first[], each below its stride. */
static void mlki_conv_phase_of(const mlki_conv *cv, const int64_t *first, mlki_conv_phase *ph) {
  int64_t before[3] = {0, 0, 0}, t;
  int a;
  for (a = 0; a < 3; a++) {
    if (cv->transposed) {
      mlki_conv_phase_axis(cv, a, first[a], ph);
      for (t = 0; t < cv->taps[a]; t++)
        before[a] += mlki_modulo(t * cv->dilation[a] - cv->pad[a], cv->stride[a]) < first[a];
    } else {
      ph->out[a] = cv->out[a], ph->taps[a] = cv->taps[a];
      ph->step[a] = cv->stride[a], ph->dilation[a] = cv->dilation[a], ph->origin[a] = -cv->pad[a];
      ph->first[a] = 0, ph->skip[a] = 1, ph->tap_first[a] = 0, ph->tap_skip[a] = 1;
    }
  }
  ph->pixels = cv->images * ph->out[0] * ph->out[1] * ph->out[2];
  ph->terms = ph->taps[0] * ph->taps[1] * ph->taps[2] * cv->cin;
  ph->taps_before = before[0] * cv->taps[1] * cv->taps[2] +
                    ph->taps[0] * (before[1] * cv->taps[2] + ph->taps[1] * before[2]);
}

static void mlki_conv_phase_at(const mlki_conv *cv, int64_t index, mlki_conv_phase *ph) {
  const int64_t first[3] = {index / (cv->phases[1] * cv->phases[2]), index / cv->phases[2] % cv->phases[1],
                            index % cv->phases[2]};
  mlki_conv_phase_of(cv, first, ph);
}

/* Where element (channel, o) of image n of a phase lies in a written tensor. */
static float *mlki_image_at(const mlki_image *y, const mlki_conv_phase *ph, int64_t n, int64_t c, const int64_t *o) {
  int64_t at = n * y->n + c * y->c;
  int a;
  for (a = 0; a < 3; a++) at += (ph->first[a] + o[a] * ph->skip[a]) * y->s[a];
  return y->p + at;
}

/* Number p of a row-major index over images and outputs of a phase. */
static void mlki_conv_pixel(const mlki_conv_phase *ph, int64_t p, int64_t *n, int64_t o[3]) {
  o[2] = p % ph->out[2], p /= ph->out[2];
  o[1] = p % ph->out[1], p /= ph->out[1];
  o[0] = p % ph->out[0], *n = p / ph->out[0];
}

/* One sum, as it is defined. */
static float mlki_ref_correlation(const mlki_conv *cv, const mlki_conv_phase *ph, int64_t n, int64_t g, int64_t k,
                                  const int64_t *o) {
  const float *w = cv->w + g * cv->w_group + k * cv->w_out;
  float total = 0.0f, chain = 0.0f;
  int64_t term = 0, t[3], c;
  for (t[0] = 0; t[0] < ph->taps[0]; t[0]++)
    for (t[1] = 0; t[1] < ph->taps[1]; t[1]++)
      for (t[2] = 0; t[2] < ph->taps[2]; t[2]++) {
        int64_t x_at = n * cv->x.n, w_at = 0;
        int a, inside = 1;
        for (a = 0; a < 3; a++) {
          const int64_t i = o[a] * ph->step[a] + t[a] * ph->dilation[a] + ph->origin[a];
          inside &= i >= 0 && i < cv->in[a];
          x_at += i * cv->x.s[a], w_at += (ph->tap_first[a] + t[a] * ph->tap_skip[a]) * cv->w_tap[a];
        }
        for (c = 0; c < cv->cin; c++, term++) {
          const float x = inside ? cv->x.p[x_at + (g * cv->cin + c) * cv->x.c] : 0.0f;
          if (term > 0 && term % MLK_SEGMENT == 0) total = term == MLK_SEGMENT ? chain : total + chain, chain = 0.0f;
          chain = mlki_fma1(w[w_at + c * cv->w_in], x, chain);
        }
      }
  return term > MLK_SEGMENT ? total + chain : chain;
}

static void mlki_conv_reference(const mlki_conv *cv) {
  const int64_t phases = cv->phases[0] * cv->phases[1] * cv->phases[2];
  int64_t phase, p, n, o[3], g, k;
  for (phase = 0; phase < phases; phase++) {
    mlki_conv_phase ph;
    mlki_conv_phase_at(cv, phase, &ph);
    for (p = 0; p < ph.pixels; p++)
      for (mlki_conv_pixel(&ph, p, &n, o), g = 0; g < cv->groups; g++)
        for (k = 0; k < cv->cout; k++) {
          const int64_t c = g * cv->cout + k;
          float t = mlki_ref_correlation(cv, &ph, n, g, k, o), *y = mlki_image_at(&cv->y, &ph, n, c, o);
          t = mlki_ref_preact(cv->alpha, t, cv->bias ? cv->bias + c * cv->bias_c : NULL, cv->beta,
                              cv->beta != 0.0f ? y : NULL);
          if (cv->preact.p) *mlki_image_at(&cv->preact, &ph, n, c, o) = t;
          t = mlki_ref_activate(cv->activation, t);
          if (cv->residual.p) t += *mlki_image_at(&cv->residual, &ph, n, c, o);
          *y = t;
        }
  }
}

/* >>conv_matrix ---------------------------------------------------------------------------------------------------- */

/* Sums of n columns apart: an odd number of cache lines, so that rows do not fall into the same sets of level 1. Grows
   with n: what the largest item needs is enough for all. */
static int64_t mlki_conv_pitch(int64_t n) { return mlki_round_up(n, MLKI_LANES_MAX) | MLKI_LANES_MAX; }

/* Are the taps of a filter with these strides dense and row-major? */
static int mlki_conv_taps_dense(const mlki_conv *cv, const int64_t *stride) {
  return (cv->taps[2] == 1 || stride[2] == 1) && (cv->taps[1] == 1 || stride[1] == cv->taps[2]) &&
         (cv->taps[0] == 1 || stride[0] == cv->taps[1] * cv->taps[2]);
}

/* Where tap t of a phase lies among the weights of a channel pair. */
static int64_t mlki_conv_tap_at(const mlki_conv *cv, const mlki_conv_phase *ph, const int64_t *t) {
  int64_t at = 0;
  int a;
  for (a = 0; a < 3; a++) at += (ph->tap_first[a] + t[a] * ph->tap_skip[a]) * cv->w_tap[a];
  return at;
}

/* Packs read channels [c, c + count) of a panel where channels and taps are dense in memory, as [channel][tap]: these
   are transposed to block first, whose rows then go to their places. */
static void mlki_conv_pack_filters(const mlki_conv *cv, const mlki_conv_phase *ph, const float *w, int64_t c,
                                   int64_t count, int64_t width, int64_t pitch, float *to) {
  const int64_t taps = cv->taps[0] * cv->taps[1] * cv->taps[2];
  float block[MLKI_CONV_FILTERS];
  int64_t t[3];
  cv->row->place(block, width, width, count * taps, w + c * taps, cv->w_out, 1);
  for (t[0] = 0; t[0] < ph->taps[0]; t[0]++)
    for (t[1] = 0; t[1] < ph->taps[1]; t[1]++)
      for (t[2] = 0; t[2] < ph->taps[2]; t[2]++, to += cv->cin * pitch)
        cv->row->place(to + c * pitch, width, pitch, count, block + mlki_conv_tap_at(cv, ph, t) * width, 1,
                       taps * width);
}

/* Packs the weights of one panel: written channels [k, k + width) of group g, all terms of a phase, to[term][pitch];
   channels that are missing in the last panel are 0. */
static void mlki_conv_pack_weights(const mlki_conv *cv, const mlki_conv_phase *ph, int64_t g, int64_t k, float *to) {
  const int64_t width = mlki_min(cv->width, cv->cout - k), taps = cv->taps[0] * cv->taps[1] * cv->taps[2];
  const int64_t pitch = cv->variant == MLKI_CONV_ROWS ? cv->width : width;
  const float *w = cv->w + g * cv->w_group + k * cv->w_out;
  int64_t t[3], c;
  if (width < pitch) memset(to, 0, (size_t)(ph->terms * pitch) * 4);
  if (taps > 1 && mlki_conv_taps_dense(cv, cv->w_tap) && cv->w_in == taps && taps * width <= MLKI_CONV_FILTERS) {
    const int64_t step = MLKI_CONV_FILTERS / (taps * width);
    for (c = 0; c < cv->cin; c += step)
      mlki_conv_pack_filters(cv, ph, w, c, mlki_min(step, cv->cin - c), width, pitch, to);
    return;
  }
  for (t[0] = 0; t[0] < ph->taps[0]; t[0]++)
    for (t[1] = 0; t[1] < ph->taps[1]; t[1]++)
      for (t[2] = 0; t[2] < ph->taps[2]; t[2]++, to += cv->cin * pitch)
        cv->row->place(to, width, pitch, cv->cin, w + mlki_conv_tap_at(cv, ph, t), cv->w_out, cv->w_in);
}

/* Where the panels of a phase begin within those of a group. */
static int64_t mlki_conv_panels_at(const mlki_conv *cv, const mlki_conv_phase *ph) {
  return ph->taps_before * cv->cin * (cv->variant == MLKI_CONV_ROWS ? mlki_round_up(cv->cout, cv->width) : cv->cout);
}

typedef struct mlki_conv_packing {
  const mlki_conv *cv;
  float *to;
  int tasks;
} mlki_conv_packing;

/* Task index packs every tasks-th panel. */
static void mlki_conv_pack_task(void *arg, int index) {
  const mlki_conv_packing *packing = (const mlki_conv_packing *)arg;
  const mlki_conv *cv = packing->cv;
  int64_t first[3], t[3], leaders[3], g, k, count = 0;
  int a;
  for (a = 0; a < 3; a++) /* the first taps of phases: all phases that have any, whatever the sizes of y */
    leaders[a] = cv->transposed ? mlki_min(cv->stride[a] / mlki_gcd(cv->stride[a], cv->dilation[a]), cv->taps[a]) : 1;
  for (t[0] = 0; t[0] < leaders[0]; t[0]++)
    for (t[1] = 0; t[1] < leaders[1]; t[1]++)
      for (t[2] = 0; t[2] < leaders[2]; t[2]++) {
        mlki_conv_phase ph;
        for (a = 0; a < 3; a++) first[a] = mlki_modulo(t[a] * cv->dilation[a] - cv->pad[a], cv->stride[a]);
        mlki_conv_phase_of(cv, first, &ph);
        for (g = 0; g < cv->groups; g++)
          for (k = 0; k < cv->cout; k += cv->width)
            if (count++ % packing->tasks == index)
              mlki_conv_pack_weights(cv, &ph, g, k,
                                     packing->to + g * cv->panel_floats + mlki_conv_panels_at(cv, &ph) + k * ph.terms);
      }
}

/* Outputs next to each other on the last axis that share a panel: count of them from output o of image n, which are
   columns column, ... of the panel. */
typedef struct mlki_conv_piece {
  int64_t column, count, n, o[3];
  const float *from;  /* the first that has an input, for one tap and the first channel */
  int64_t begin, end; /* those that have one */
} mlki_conv_piece;

/* Cuts pixels [p, p + width) into pieces; how many. */
static int mlki_conv_pieces(const mlki_conv_phase *ph, int64_t p, int64_t width, mlki_conv_piece *piece) {
  int64_t column = 0;
  int count = 0;
  for (; column < width; column += piece[count++].count) {
    mlki_conv_piece *at = &piece[count];
    mlki_conv_pixel(ph, p + column, &at->n, at->o);
    at->column = column;
    at->count = mlki_min(width - column, ph->out[2] - at->o[2]);
  }
  return count;
}

/* Packs pixels [p, p + width) x terms [s, s + kc) of the image of group g: to[term][pitch]. Padding is zeros. */
static void mlki_conv_pack_panel(const mlki_conv *cv, const mlki_conv_phase *ph, int64_t g, int64_t p, int64_t width,
                                 int64_t pitch, int64_t s, int64_t kc, float *to) {
  mlki_conv_piece piece[MLKI_CONV_PANEL_MAX];
  const int pieces = mlki_conv_pieces(ph, p, width, piece);
  const float *x = cv->x.p + g * cv->cin * cv->x.c;
  int64_t tap, c, next;
  for (tap = s / cv->cin; tap * cv->cin < s + kc; tap++) {
    const int64_t t0 = tap / (ph->taps[1] * ph->taps[2]), t1 = tap / ph->taps[2] % ph->taps[1], t2 = tap % ph->taps[2];
    const int64_t d0 = t0 * ph->dilation[0] + ph->origin[0], d1 = t1 * ph->dilation[1] + ph->origin[1],
                  d2 = t2 * ph->dilation[2] + ph->origin[2];
    /* outputs of a row whose input is inside: begin <= o2 < end */
    const int64_t begin = d2 >= 0 ? 0 : mlki_ceil_div(-d2, ph->step[2]),
                  end = d2 >= cv->in[2] ? 0 : mlki_ceil_div(cv->in[2] - d2, ph->step[2]);
    int64_t covered = 0;
    int i;
    c = mlki_max(s - tap * cv->cin, 0), next = mlki_min(s + kc - tap * cv->cin, cv->cin);
    for (i = 0; i < pieces; i++) {
      mlki_conv_piece *at = &piece[i];
      const int64_t i0 = at->o[0] * ph->step[0] + d0, i1 = at->o[1] * ph->step[1] + d1;
      at->begin = mlki_max(at->o[2], begin), at->end = mlki_min(at->o[2] + at->count, end);
      if (i0 < 0 || i0 >= cv->in[0] || i1 < 0 || i1 >= cv->in[1] || at->end < at->begin) at->end = at->begin;
      at->from = x + at->n * cv->x.n + i0 * cv->x.s[0] + i1 * cv->x.s[1] + (at->begin * ph->step[2] + d2) * cv->x.s[2] +
                 c * cv->x.c;
      covered += at->end - at->begin;
    }
    if (covered < width) memset(to, 0, (size_t)((next - c) * pitch) * 4);
    for (i = 0; i < pieces; i++)
      if (piece[i].end > piece[i].begin)
        cv->row->place(to + piece[i].column + piece[i].begin - piece[i].o[2], piece[i].end - piece[i].begin, pitch,
                       next - c, piece[i].from, ph->step[2] * cv->x.s[2], cv->x.c);
    to += (next - c) * pitch;
  }
}

/* How many outputs from the start of a row on are one run of equal stride in every written tensor: *stride is y's,
   strides of the others follow with mlki_conv_run_stride. */
static int64_t mlki_conv_run(const mlki_conv *cv, const mlki_conv_phase *ph) {
  const mlki_image *const tensor[3] = {&cv->y, &cv->residual, &cv->preact};
  int64_t run = ph->out[2];
  int a, i, merges = 1;
  for (a = 1; a >= -1 && merges; a--) {
    const int64_t size = a >= 0 ? ph->out[a] : cv->images;
    if (size == 1) continue;
    if (run == 1) break; /* nothing to merge with: rows of one output are runs of their own */
    for (i = 0; i < 3; i++) {
      const int64_t step = ph->skip[2] * tensor[i]->s[2], next = a >= 0 ? ph->skip[a] * tensor[i]->s[a] : tensor[i]->n;
      merges &= !tensor[i]->p || next == step * run;
    }
    if (merges) run *= size;
  }
  return run;
}

/* The epilogue's view of a written tensor: a run of outputs from o of image n, channels from c of the tensor. */
static mlki_mat mlki_conv_mat(const mlki_conv *cv, const mlki_conv_phase *ph, const mlki_image *y, int64_t n, int64_t c,
                              const int64_t *o) {
  mlki_mat mat;
  mat.p = NULL, mat.rs = mat.cs = 0;
  if (!y->p) return mat;
  mat.p = mlki_image_at(y, ph, n, c, o);
  mat.rs = y->c, mat.cs = ph->skip[2] * y->s[2];
  if (cv->pixel_major) mlki_swap_axes(&mat);
  return mat;
}

/* Writes finished sums: pixels [p, p + np) x channels [k, k + nk) of group g. */
static void mlki_conv_finish(const mlki_conv *cv, const mlki_conv_phase *ph, int64_t g, int64_t p, int64_t np,
                             int64_t k, int64_t nk, const float *scratch, int64_t pitch) {
  const int rows = cv->pixel_major;
  const int64_t run = mlki_conv_run(cv, ph), c = g * cv->cout + k;
  int64_t at = p, n, o[3];
  while (at < p + np) {
    const int64_t count = mlki_min(run - at % run, p + np - at);
    mlki_epilogue e;
    mlki_conv_pixel(ph, at, &n, o);
    e.alpha = cv->alpha, e.beta = cv->beta, e.activation = cv->activation;
    e.d = mlki_conv_mat(cv, ph, &cv->y, n, c, o);
    e.residual = mlki_conv_mat(cv, ph, &cv->residual, n, c, o);
    e.preact = mlki_conv_mat(cv, ph, &cv->preact, n, c, o);
    e.c = e.d;
    if (cv->beta == 0.0f) e.c.p = NULL;
    e.bias.p = cv->bias ? (float *)(uintptr_t)cv->bias + c * cv->bias_c : NULL;
    e.bias.rs = rows ? 0 : cv->bias_c, e.bias.cs = rows ? cv->bias_c : 0;
    if (rows)
      cv->row->epilogue(&e, scratch + (at - p) * pitch, pitch, 0, 0, count, nk);
    else
      cv->row->epilogue(&e, scratch + (at - p), pitch, 0, 0, nk, count);
    at += count;
  }
}

/* One item by columns: the scratch is [channel][pixel]. */
static void mlki_conv_columns(const mlki_conv *cv, const mlki_conv_phase *ph, int64_t g, int64_t p, int64_t np,
                              int64_t k, int64_t nk, float *image, float *scratch) {
  const int64_t nr = cv->row->nr, pitch = mlki_conv_pitch(np);
  const float *panels = cv->panels + g * cv->panel_floats + mlki_conv_panels_at(cv, ph);
  mlki_strip strip;
  int64_t s, j, i;
  for (s = 0; s == 0 || s < ph->terms; s += MLK_SEGMENT) {
    const int64_t kc = mlki_min(ph->terms - s, MLK_SEGMENT);
    for (j = 0; j < np && kc > 0; j += nr)
      mlki_conv_pack_panel(cv, ph, g, p + j, mlki_min(nr, np - j), nr, s, kc, image + j * kc);
    strip.b = image, strip.b_rs = nr, strip.b_panel = kc * nr;
    strip.c_rs = pitch, strip.cols = np, strip.k = kc;
    strip.chain = s == 0 ? MLKI_START : MLKI_ADD;
    for (i = k; i < k + nk; i += cv->width) {
      strip.rows = mlki_min(cv->width, cv->cout - i);
      strip.a = panels + i * ph->terms + s * strip.rows, strip.a_rs = 1, strip.a_cs = strip.rows;
      strip.c = scratch + (i - k) * pitch;
      cv->row->strip(&strip);
    }
  }
  mlki_conv_finish(cv, ph, g, p, np, k, nk, scratch, pitch);
}

/* One item by rows: the scratch is [pixel][channel]. */
static void mlki_conv_rows(const mlki_conv *cv, const mlki_conv_phase *ph, int64_t g, int64_t p, int64_t np, int64_t k,
                           int64_t nk, float *image, float *scratch) {
  const int64_t height = mlki_panel_rows(np, cv->row->mr), pitch = mlki_conv_pitch(nk);
  const float *panels = cv->panels + g * cv->panel_floats + mlki_conv_panels_at(cv, ph);
  mlki_strip strip;
  int64_t s, i, j;
  for (s = 0; s == 0 || s < ph->terms; s += MLK_SEGMENT) {
    const int64_t kc = mlki_min(ph->terms - s, MLK_SEGMENT);
    for (i = 0; i < np && kc > 0; i += height)
      mlki_conv_pack_panel(cv, ph, g, p + i, mlki_min(height, np - i), mlki_min(height, np - i), s, kc, image + i * kc);
    strip.b_rs = cv->width, strip.b_panel = ph->terms * cv->width;
    strip.c_rs = pitch, strip.k = kc;
    strip.chain = s == 0 ? MLKI_START : MLKI_ADD;
    for (j = k; j < k + nk; j += MLKI_CONV_PANELS * cv->width) {
      strip.cols = mlki_min(MLKI_CONV_PANELS * cv->width, k + nk - j);
      strip.b = panels + j * ph->terms + s * cv->width;
      for (i = 0; i < np; i += height) {
        strip.rows = mlki_min(height, np - i);
        strip.a = image + i * kc, strip.a_rs = 1, strip.a_cs = strip.rows;
        strip.c = scratch + i * pitch + (j - k);
        cv->row->strip(&strip);
      }
    }
  }
  mlki_conv_finish(cv, ph, g, p, np, k, nk, scratch, pitch);
}

/* Output rows that lie below each other in one image, and their input: element (row, plane, column, channel) of the
   window at p[row * rs + plane * ps + column * cs + channel], planes numbered by tap. First in x itself, if its
   channels are dense and the rows touch no padding; else copied, padded, to the workspace. */
typedef struct mlki_conv_band {
  const float *p;
  int64_t rs, ps, cs;
  int64_t n, o0, o1, rows; /* outputs [o1, o1 + rows) of image n, plane o0 */
} mlki_conv_band;

/* The inputs that outputs [o, o + count) of an axis read: [low, high]. */
static void mlki_conv_reach(const mlki_conv_phase *ph, int a, int64_t o, int64_t count, int64_t *low, int64_t *high) {
  const int64_t span = mlki_max(ph->taps[a] - 1, 0) * ph->dilation[a];
  *low = o * ph->step[a] + ph->origin[a] + mlki_min(span, 0);
  *high = (o + count - 1) * ph->step[a] + ph->origin[a] + mlki_max(span, 0);
}

/* Distance of columns in a copied window: rows of a tile should not fall into the same sets of level 1. */
static int64_t mlki_conv_column(const mlki_conv *cv, const mlki_conv_phase *ph) {
  return cv->cin * ph->step[2] % 512 ? cv->cin : cv->cin + MLKI_LANES_MAX;
}

/* Floats of the copied windows of a block of rows output rows, at most. */
static int64_t mlki_conv_window(const mlki_conv *cv, const mlki_conv_phase *ph, int64_t rows) {
  const int64_t bands = ph->out[1] ? (rows - 1) / ph->out[1] + 2 : 0;
  int64_t low, high, columns;
  mlki_conv_reach(ph, 2, 0, ph->out[2], &low, &high), columns = high - low + 1;
  mlki_conv_reach(ph, 1, 0, 1, &low, &high);
  return (rows * ph->step[1] + mlki_min(bands, rows) * (high - low + 1)) * ph->taps[0] * columns *
         mlki_conv_column(cv, ph);
}

/* Finds or copies the window of a band; returns the floats used of to. */
static int64_t mlki_conv_fill_band(const mlki_conv *cv, const mlki_conv_phase *ph, int64_t g, float *to,
                                   mlki_conv_band *band) {
  const float *x = cv->x.p + band->n * cv->x.n + g * cv->cin * cv->x.c;
  int64_t low0, high0, low1, high1, low2, high2, first, last, row, plane;
  mlki_conv_reach(ph, 0, band->o0, 1, &low0, &high0);
  mlki_conv_reach(ph, 1, band->o1, band->rows, &low1, &high1);
  mlki_conv_reach(ph, 2, 0, ph->out[2], &low2, &high2);
  if (cv->x.c == 1 && low0 >= 0 && high0 < cv->in[0] && low1 >= 0 && high1 < cv->in[1] && low2 >= 0 &&
      high2 < cv->in[2]) {
    band->rs = cv->x.s[1], band->ps = ph->dilation[0] * cv->x.s[0], band->cs = cv->x.s[2];
    band->p = x + (band->o0 * ph->step[0] + ph->origin[0]) * cv->x.s[0] + low1 * cv->x.s[1] + low2 * cv->x.s[2];
    return 0;
  }
  band->cs = mlki_conv_column(cv, ph), band->ps = (high2 - low2 + 1) * band->cs, band->rs = ph->taps[0] * band->ps;
  band->p = to;
  first = mlki_max(low2, 0), last = mlki_min(high2, cv->in[2] - 1);
  for (row = low1; row <= high1; row++)
    for (plane = 0; plane < ph->taps[0]; plane++, to += band->ps) {
      const int64_t i0 = band->o0 * ph->step[0] + plane * ph->dilation[0] + ph->origin[0];
      if (i0 < 0 || i0 >= cv->in[0] || row < 0 || row >= cv->in[1] || last < first) {
        memset(to, 0, (size_t)band->ps * 4);
        continue;
      }
      memset(to, 0, (size_t)((first - low2) * band->cs) * 4);
      cv->row->place(to + (first - low2) * band->cs, cv->cin, band->cs, last - first + 1,
                     x + i0 * cv->x.s[0] + row * cv->x.s[1] + first * cv->x.s[2], cv->x.c, cv->x.s[2]);
      memset(to + (last + 1 - low2) * band->cs, 0, (size_t)((high2 - last) * band->cs) * 4);
    }
  return (high1 - low1 + 1) * band->rs;
}

/* Terms that lie one after the other in a window. */
typedef struct mlki_run {
  int64_t offset, count; /* from the place of the tile's first output */
} mlki_run;

/* The runs of terms [s, s + kc) in a band; how many, at least one. */
static int64_t mlki_conv_runs(const mlki_conv *cv, const mlki_conv_phase *ph, const mlki_conv_band *band, int64_t s,
                              int64_t kc, mlki_run *run) {
  int64_t runs = 0, low1, low2, high, next;
  run[0].offset = run[0].count = 0;
  mlki_conv_reach(ph, 1, 0, 1, &low1, &high), mlki_conv_reach(ph, 2, 0, 1, &low2, &high);
  for (; kc > 0; s += next, kc -= next) {
    const int64_t tap = s / cv->cin, c = s % cv->cin;
    const int64_t t0 = tap / (ph->taps[1] * ph->taps[2]), t1 = tap / ph->taps[2] % ph->taps[1], t2 = tap % ph->taps[2];
    const int64_t offset = t0 * band->ps + (t1 * ph->dilation[1] + ph->origin[1] - low1) * band->rs +
                           (t2 * ph->dilation[2] + ph->origin[2] - low2) * band->cs + c;
    next = mlki_min(kc, cv->cin - c);
    if (runs && run[runs - 1].offset + run[runs - 1].count == offset)
      run[runs - 1].count += next;
    else
      run[runs].offset = offset, run[runs++].count = next;
  }
  return mlki_max(runs, 1);
}

/* One tile of a direct item: strip.rows outputs next to each other, a whole segment: run by run. Later segments' chains
   are built apart, in chain, and then added. */
static void mlki_conv_direct_tile(const mlki_conv *cv, mlki_strip *strip, const float *at, const float *b,
                                  const mlki_run *run, int64_t runs, int first, float *chain) {
  float *sums = strip->c;
  int64_t r, i;
  if (!first && runs > 1) strip->c = chain;
  strip->b = b;
  strip->chain = first || runs > 1 ? MLKI_START : MLKI_ADD;
  for (r = 0; r < runs; r++) {
    strip->a = at + run[r].offset, strip->k = run[r].count;
    cv->row->strip(strip);
    strip->b += run[r].count * cv->width;
    strip->chain = MLKI_CONTINUE;
  }
  if (!first && runs > 1)
    for (i = 0; i < strip->rows; i++) cv->row->add(sums + i * strip->c_rs, chain + i * strip->c_rs, strip->cols);
}

/* One item by rows, read in place or from padded windows: whole output rows, pixels [p, p + np). */
static void mlki_conv_direct(const mlki_conv *cv, const mlki_conv_phase *ph, int64_t g, int64_t p, int64_t np,
                             int64_t k, int64_t nk, float *image, float *scratch) {
  const int64_t height = mlki_panel_rows(ph->out[2], cv->row->mr), pitch = mlki_conv_pitch(nk);
  const float *panels = cv->panels + g * cv->panel_floats + mlki_conv_panels_at(cv, ph);
  const int64_t end = p + np;
  mlki_run run[MLK_SEGMENT];
  mlki_strip strip;
  int64_t s, j, at, i, n, o[3];
  while (p < end) {
    float *chain = scratch + cv->block_pixels * pitch;
    mlki_conv_band band;
    mlki_conv_pixel(ph, p, &n, o);
    band.n = n, band.o0 = o[0], band.o1 = o[1], band.rows = mlki_min(ph->out[1] - o[1], (end - p) / ph->out[2]);
    mlki_conv_fill_band(cv, ph, g, image, &band);
    strip.b_rs = cv->width, strip.b_panel = ph->terms * cv->width, strip.c_rs = pitch;
    strip.a_rs = ph->step[2] * band.cs, strip.a_cs = 1;
    for (s = 0; s == 0 || s < ph->terms; s += MLK_SEGMENT) {
      const int64_t kc = mlki_min(ph->terms - s, MLK_SEGMENT), runs = mlki_conv_runs(cv, ph, &band, s, kc, run);
      for (j = k; j < k + nk; j += MLKI_CONV_PANELS * cv->width) {
        strip.cols = mlki_min(MLKI_CONV_PANELS * cv->width, k + nk - j);
        for (at = 0; at < band.rows * ph->out[2]; at += ph->out[2])
          for (i = 0; i < ph->out[2]; i += height) {
            strip.rows = mlki_min(height, ph->out[2] - i);
            strip.c = scratch + (at + i) * pitch + (j - k);
            mlki_conv_direct_tile(cv, &strip, band.p + at / ph->out[2] * ph->step[1] * band.rs + i * strip.a_rs,
                                  panels + j * ph->terms + s * cv->width, run, runs, s == 0, chain);
          }
      }
    }
    mlki_conv_finish(cv, ph, g, p, band.rows * ph->out[2], k, nk, scratch, pitch);
    p += band.rows * ph->out[2];
  }
}

/* >>conv_bands ----------------------------------------------------------------------------------------------------- */

/* One axis of the buffer of planes. Taps whose inputs lie a multiple of the step apart share a track: place i of track
   t holds input first + i step, and tap u reads outputs o from place o + shift on. Where taps lie so far apart that
   this would hold more than it shares, each has a track of its own. */
typedef struct mlki_plane_axis {
  int64_t tracks, turn, spread, places;
} mlki_plane_axis;

/* block: outputs of a whole band, which decide; outputs: of this one. */
static mlki_plane_axis mlki_plane_axis_of(const mlki_conv_phase *ph, int a, int64_t block, int64_t outputs) {
  const int64_t d = ph->dilation[a] < 0 ? -ph->dilation[a] : ph->dilation[a], gcd = mlki_gcd(ph->step[a], d);
  const int64_t taps = mlki_max(ph->taps[a], 1);
  mlki_plane_axis axis;
  axis.tracks = mlki_min(ph->step[a] / gcd, taps), axis.turn = ph->dilation[a] / gcd;
  axis.spread = (mlki_ceil_div(taps, axis.tracks) - 1) * (d / gcd);
  if (axis.spread > block) axis.tracks = taps, axis.turn = 0, axis.spread = 0;
  axis.places = outputs + axis.spread;
  return axis;
}

/* Where tap u begins along its track. */
static int64_t mlki_plane_shift(const mlki_plane_axis *axis, int64_t u) {
  return u / axis->tracks * axis->turn + (axis->turn < 0 ? axis->spread : 0);
}

/* The input at place 0 of a track of a band whose first output is o; its places [*begin, *end) lie inside the image. */
static int64_t mlki_plane_first(const mlki_conv *cv, const mlki_conv_phase *ph, int a, const mlki_plane_axis *axis,
                                int64_t o, int64_t track, int64_t *begin, int64_t *end) {
  const int64_t step = ph->step[a];
  const int64_t first = (o - (axis->turn < 0 ? axis->spread : 0)) * step + track * ph->dilation[a] + ph->origin[a];
  *begin = first >= 0 ? 0 : mlki_min(mlki_ceil_div(-first, step), axis->places);
  *end = first >= cv->in[a] ? *begin : mlki_min(mlki_ceil_div(cv->in[a] - first, step), axis->places);
  *end = mlki_max(*begin, *end);
  return first;
}

/* Outputs o[1] .. + rows, o[2] .. + cols of one image and one o[0]. Sums run over flat = rows x pitch places of the
   buffer, [channel][axis 0][track 1][track 2][place 1][place 2 = pitch]: those beyond cols in a row are dropped. */
typedef struct mlki_plane_band {
  mlki_plane_axis axis[3];
  int64_t n, o[3], rows, cols;
  int64_t pitch, plane, channel, flat; /* floats: a row, a pair of tracks, a channel; places of all outputs */
} mlki_plane_band;

static void mlki_plane_band_of(const mlki_conv *cv, const mlki_conv_phase *ph, int64_t rows, int64_t cols,
                               mlki_plane_band *b) {
  b->rows = rows, b->cols = cols;
  b->axis[0] = mlki_plane_axis_of(ph, 0, 1, 1);
  b->axis[1] = mlki_plane_axis_of(ph, 1, cv->band_rows, rows);
  b->axis[2] = mlki_plane_axis_of(ph, 2, cv->band_cols, cols);
  b->pitch = b->axis[2].places;
  b->plane = b->axis[1].places * b->pitch;
  b->channel = b->axis[0].tracks * b->axis[0].places * b->axis[1].tracks * b->axis[2].tracks * b->plane;
  b->channel = mlki_round_up(b->channel, MLKI_LANES_MAX) | MLKI_LANES_MAX; /* not all in the same sets of level 1 */
  b->flat = (rows - 1) * b->pitch + cols;
}

/* Copies what lies inside the image: channels from c on of the image. The rest of the buffer stays as it is. */
static void mlki_conv_fill_planes(const mlki_conv *cv, const mlki_conv_phase *ph, const mlki_plane_band *b, int64_t c,
                                  int64_t channels, float *to) {
  const int64_t rs = ph->step[1] * cv->x.s[1], cs = ph->step[2] * cv->x.s[2];
  int64_t begin[3], end[3], first[3], t0, t1, t2, i, r;
  for (t0 = 0; t0 < b->axis[0].tracks; t0++)
    for (t1 = 0; t1 < b->axis[1].tracks; t1++)
      for (t2 = 0; t2 < b->axis[2].tracks; t2++) {
        first[0] = mlki_plane_first(cv, ph, 0, &b->axis[0], b->o[0], t0, &begin[0], &end[0]);
        first[1] = mlki_plane_first(cv, ph, 1, &b->axis[1], b->o[1], t1, &begin[1], &end[1]);
        first[2] = mlki_plane_first(cv, ph, 2, &b->axis[2], b->o[2], t2, &begin[2], &end[2]);
        for (i = begin[0]; i < end[0] && begin[1] < end[1] && begin[2] < end[2]; i++) {
          const float *from = cv->x.p + b->n * cv->x.n + c * cv->x.c + (first[0] + i * ph->step[0]) * cv->x.s[0] +
                              (first[1] + begin[1] * ph->step[1]) * cv->x.s[1] +
                              (first[2] + begin[2] * ph->step[2]) * cv->x.s[2];
          float *at = to +
                      (((t0 * b->axis[0].places + i) * b->axis[1].tracks + t1) * b->axis[2].tracks + t2) * b->plane +
                      begin[1] * b->pitch + begin[2];
          if (cv->x.c == 1 && cs != 1 && channels > 1) {
            for (r = 0; r < end[1] - begin[1]; r++)
              cv->row->place(at + r * b->pitch, end[2] - begin[2], b->channel, channels, from + r * rs, cs, 1);
          } else {
            for (r = 0; r < channels; r++)
              cv->row->place(at + r * b->channel, end[2] - begin[2], b->pitch, end[1] - begin[1], from + r * cv->x.c,
                             cs, rs);
          }
        }
      }
}

/* Where the terms (tap, channel) read the buffer. */
static void mlki_planes_terms(const mlki_conv *cv, const mlki_conv_phase *ph, const mlki_plane_band *b, int32_t *at) {
  const mlki_plane_axis *axis = b->axis;
  int64_t t[3], c;
  for (t[0] = 0; t[0] < ph->taps[0]; t[0]++)
    for (t[1] = 0; t[1] < ph->taps[1]; t[1]++)
      for (t[2] = 0; t[2] < ph->taps[2]; t[2]++) {
        const int64_t place = t[0] % axis[0].tracks * axis[0].places + mlki_plane_shift(&axis[0], t[0]);
        int64_t from = (place * axis[1].tracks + t[1] % axis[1].tracks) * axis[2].tracks + t[2] % axis[2].tracks;
        from = from * b->plane + mlki_plane_shift(&axis[1], t[1]) * b->pitch + mlki_plane_shift(&axis[2], t[2]);
        for (c = 0; c < cv->cin; c++) *at++ = (int32_t)(from + c * b->channel);
      }
}

/* Writes the sums of channels [c, c + nc) of y. to: room for all of them. */
static void mlki_conv_finish_planes(const mlki_conv *cv, const mlki_conv_phase *ph, const mlki_plane_band *b, int64_t c,
                                    int64_t nc, const float *sums, int64_t pitch, float *to) {
  const int64_t step = ph->skip[2] * cv->y.s[2], np = b->rows * b->cols;
  const int direct = cv->plain;
  int64_t i;
  if (cv->pixel_major) {
    for (i = 0; i < b->rows; i++) {
      const int64_t o[3] = {b->o[0], b->o[1] + i, b->o[2]};
      cv->row->place(direct ? mlki_image_at(&cv->y, ph, b->n, c, o) : to + i * b->cols * nc, nc, direct ? step : nc,
                     b->cols, sums + i * b->pitch, pitch, 1);
    }
  } else {
    for (i = 0; i < nc; i++)
      cv->row->place(direct ? mlki_image_at(&cv->y, ph, b->n, c + i, b->o) : to + i * np, b->cols,
                     direct ? ph->skip[1] * cv->y.s[1] : b->cols, b->rows, sums + i * pitch, 1, b->pitch);
  }
  if (!direct)
    mlki_conv_finish(cv, ph, 0, ((b->n * ph->out[0] + b->o[0]) * ph->out[1] + b->o[1]) * ph->out[2] + b->o[2], np, c,
                     nc, to, cv->pixel_major ? nc : np);
}

/* One item by planes: groups [g, end) of a band. */
static void mlki_conv_planes(const mlki_conv *cv, const mlki_conv_phase *ph, const mlki_plane_band *b, int64_t g,
                             int64_t end, float *workspace) {
  int32_t *at = (int32_t *)(void *)workspace;
  float *image = workspace + cv->floats_terms, *sums = image + cv->floats_image, *to = sums + cv->floats_sums;
  const int64_t pitch = mlki_conv_pitch(b->flat);
  int64_t k, s, i, j;
  mlki_planes planes;
  planes.c_rs = pitch, planes.vectors = mlki_ceil_div(b->flat, cv->row->lanes);
  mlki_planes_terms(cv, ph, b, at);
  memset(image, 0, (size_t)cv->floats_image * 4);
  for (; g < end; g += cv->batch) {
    const int64_t batch = mlki_min(cv->batch, end - g);
    if (ph->terms) mlki_conv_fill_planes(cv, ph, b, g * cv->cin, batch * cv->cin, image);
    for (k = 0; k < cv->cout; k += cv->block_channels) {
      const int64_t nk = mlki_min(cv->block_channels, cv->cout - k);
      for (s = 0; s == 0 || s < ph->terms; s += MLK_SEGMENT) {
        planes.k = mlki_min(ph->terms - s, MLK_SEGMENT);
        planes.chain = s == 0 ? MLKI_START : MLKI_ADD;
        planes.at = at + s;
        for (j = 0; j < batch; j++) {
          const float *panels = cv->panels + (g + j) * cv->panel_floats + mlki_conv_panels_at(cv, ph);
          planes.x = image + j * cv->cin * b->channel;
          for (i = k; i < k + nk; i += cv->width) {
            planes.rows = mlki_min(cv->width, cv->cout - i);
            planes.w = panels + i * ph->terms + s * planes.rows;
            planes.c = sums + (j * cv->cout + i - k) * pitch;
            cv->row->planes(&planes);
          }
        }
      }
      mlki_conv_finish_planes(cv, ph, b, g * cv->cout + k, batch > 1 ? batch * cv->cout : nk, sums, pitch, to);
    }
  }
}

/* Outputs o[1] .. + rows, o[2] .. + cols of one image and one o[0], for LANES written channels from channel first on.
   Their input as these channels see it, padded, is the window [tap of axis 0][row][column][c][LANES]: a channel that
   several lanes read is there several times. */
typedef struct mlki_lane_window {
  int64_t n, o[3], rows, cols;
  int64_t low[3], wide[3];      /* the first input along each axis, and how many; of axis 0: of tap 0, and taps */
  int64_t first, lanes;         /* written channels of the tensor, all groups counted */
  int64_t lane[MLKI_LANES_MAX]; /* where the first channel that a lane reads lies in x */
} mlki_lane_window;

static void mlki_lane_window_of(const mlki_conv_phase *ph, int64_t rows, int64_t cols, mlki_lane_window *w) {
  const int64_t count[3] = {1, rows, cols};
  int a;
  for (a = 0; a < 3; a++) {
    int64_t high;
    mlki_conv_reach(ph, a, w->o[a], count[a], &w->low[a], &high);
    w->wide[a] = high - w->low[a] + 1;
  }
  w->low[0] = w->o[0] * ph->step[0] + ph->origin[0], w->wide[0] = ph->taps[0];
  w->rows = rows, w->cols = cols;
}

/* Where channels are dense and lanes share them, a row of n columns is first turned to [channel][column]: the pitch, or
   0 where not. */
static int64_t mlki_lane_turned(const mlki_conv *cv, int64_t n) {
  return cv->x.c == 1 && cv->x.s[2] != 1 && cv->cin * cv->cout > 1 ? mlki_round_up(n, MLKI_LANES_MAX) | MLKI_LANES_MAX
                                                                   : 0;
}

static void mlki_conv_fill_window(const mlki_conv *cv, const mlki_conv_phase *ph, const mlki_lane_window *w,
                                  float *to) {
  const int64_t lanes = cv->row->lanes, pitch = cv->cin * lanes, line = w->wide[2] * pitch;
  const int64_t begin = mlki_min(mlki_max(-w->low[2], 0), w->wide[2]),
                end = mlki_max(mlki_min(cv->in[2] - w->low[2], w->wide[2]), begin);
  const int64_t turned_pitch = mlki_lane_turned(cv, w->wide[2]), group = w->first / cv->cout;
  float *turned = to + w->wide[0] * w->wide[1] * line;
  int64_t t, r, c, lane[MLKI_LANES_MAX];
  for (c = 0; c < w->lanes; c++) lane[c] = ((w->first + c) / cv->cout - group) * cv->cin * turned_pitch;
  for (t = 0; t < w->wide[0]; t++)
    for (r = 0; r < w->wide[1]; r++, to += line) {
      const int64_t i0 = w->low[0] + t * ph->dilation[0], i1 = w->low[1] + r;
      const float *from = cv->x.p + w->n * cv->x.n + i0 * cv->x.s[0] + i1 * cv->x.s[1] +
                          (w->low[2] + begin) * cv->x.s[2];
      if (i0 < 0 || i0 >= cv->in[0] || i1 < 0 || i1 >= cv->in[1] || begin == end) {
        memset(to, 0, (size_t)line * 4);
        continue;
      }
      memset(to, 0, (size_t)(begin * pitch) * 4);
      memset(to + end * pitch, 0, (size_t)((w->wide[2] - end) * pitch) * 4);
      if (turned_pitch)
        cv->row->place(turned, end - begin, turned_pitch, ((w->first + w->lanes - 1) / cv->cout - group + 1) * cv->cin,
                       from + group * cv->cin, cv->x.s[2], 1);
      for (c = 0; c < cv->cin; c++)
        if (turned_pitch)
          cv->row->spread(to + begin * pitch + c * lanes, pitch, end - begin, turned + c * turned_pitch, lane, w->lanes,
                          1);
        else
          cv->row->spread(to + begin * pitch + c * lanes, pitch, end - begin, from + c * cv->x.c, w->lane, w->lanes,
                          cv->x.s[2]);
    }
}

/* Where the terms (tap, channel) read a window, from the place of an output. */
static void mlki_lane_terms(const mlki_conv *cv, const mlki_conv_phase *ph, const mlki_lane_window *w, int32_t *at) {
  const int64_t lanes = cv->row->lanes;
  int64_t t[3], c, low1, low2, high;
  mlki_conv_reach(ph, 1, 0, 1, &low1, &high), mlki_conv_reach(ph, 2, 0, 1, &low2, &high);
  for (t[0] = 0; t[0] < ph->taps[0]; t[0]++)
    for (t[1] = 0; t[1] < ph->taps[1]; t[1]++)
      for (t[2] = 0; t[2] < ph->taps[2]; t[2]++) {
        const int64_t row = t[0] * w->wide[1] + t[1] * ph->dilation[1] + ph->origin[1] - low1;
        const int64_t column = row * w->wide[2] + t[2] * ph->dilation[2] + ph->origin[2] - low2;
        for (c = 0; c < cv->cin; c++) *at++ = (int32_t)((column * cv->cin + c) * lanes);
      }
}

static void mlki_lane_channels(const mlki_conv *cv, int64_t first, mlki_lane_window *w) {
  int64_t l;
  w->first = first, w->lanes = mlki_min(cv->row->lanes, cv->groups * cv->cout - first);
  for (l = 0; l < w->lanes; l++) w->lane[l] = (first + l) / cv->cout * cv->cin * cv->x.c;
}

/* One item by lanes: LANES written channels at a time, from first to end, of a band. Sums are
   [pixel][LANES], or in y. */
static void mlki_conv_lanes(const mlki_conv *cv, const mlki_conv_phase *ph, mlki_lane_window *w, int64_t first,
                            int64_t end, float *workspace) {
  const int64_t lanes = cv->row->lanes, step = ph->step[2] * cv->cin * lanes;
  const int64_t to_step = cv->plain ? ph->skip[2] * cv->y.s[2] : lanes;
  int32_t *at = (int32_t *)(void *)workspace;
  float *weights = workspace + cv->floats_terms, *x = weights + cv->floats_sums, *sums = x + cv->floats_image;
  const float *panels = cv->panels + mlki_conv_panels_at(cv, ph);
  const int64_t p = ((w->n * ph->out[0] + w->o[0]) * ph->out[1] + w->o[1]) * ph->out[2] + w->o[2];
  mlki_lane_terms(cv, ph, w, at);
  for (; first < end; first += lanes) {
    int64_t lane[MLKI_LANES_MAX], r, s, l;
    mlki_lane_channels(cv, first, w);
    for (l = 0; l < w->lanes; l++) lane[l] = (first + l) / cv->cout * cv->panel_floats + (first + l) % cv->cout;
    if (ph->terms) {
      cv->row->spread(weights, lanes, ph->terms, panels, lane, w->lanes, cv->cout);
      mlki_conv_fill_window(cv, ph, w, x);
    }
    for (r = 0; r < w->rows; r++) {
      const int64_t o[3] = {w->o[0], w->o[1] + r, w->o[2]};
      float *to = cv->plain ? mlki_image_at(&cv->y, ph, w->n, first, o) : sums + r * w->cols * lanes;
      for (s = 0; s == 0 || s < ph->terms; s += MLK_SEGMENT)
        cv->row->lanes_sums(to, to_step, w->lanes, w->cols, weights + s * lanes,
                            x + r * ph->step[1] * w->wide[2] * cv->cin * lanes, at + s,
                            mlki_min(ph->terms - s, MLK_SEGMENT), step, s == 0 ? MLKI_START : MLKI_ADD);
    }
    if (!cv->plain) mlki_conv_finish(cv, ph, 0, p, w->rows * w->cols, first, w->lanes, sums, lanes);
  }
}

/* Phases are neighbours: each writes only every other element of the same lines. */
static void mlki_conv_band_task(void *arg, int index) {
  mlki_conv *cv = (mlki_conv *)arg;
  const int64_t phases = cv->phases[0] * cv->phases[1] * cv->phases[2], runs = mlki_ceil_div(cv->units, cv->run);
  const int64_t o0 = mlki_ceil_div(cv->out[0], cv->transposed ? cv->stride[0] : 1);
  for (;;) {
    int64_t item = cv->tasks == 1 ? cv->next++ : mlki_take(&cv->next), g, end, rows, cols;
    mlki_conv_phase ph;
    mlki_plane_band b;
    if (item >= cv->items) break;
    mlki_conv_phase_at(cv, item % phases, &ph), item /= phases;
    b.o[2] = item % cv->channel_blocks * cv->band_cols, item /= cv->channel_blocks;
    b.o[1] = item % cv->pixel_blocks * cv->band_rows, item /= cv->pixel_blocks;
    g = item % runs * cv->run, item /= runs;
    b.o[0] = item % o0, b.n = item / o0;
    if (b.o[0] >= ph.out[0] || b.o[1] >= ph.out[1] || b.o[2] >= ph.out[2]) continue;
    rows = mlki_min(cv->band_rows, ph.out[1] - b.o[1]), cols = mlki_min(cv->band_cols, ph.out[2] - b.o[2]);
    end = mlki_min(g + cv->run, cv->units);
    if (cv->variant == MLKI_CONV_LANES) {
      mlki_lane_window w;
      w.n = b.n, w.o[0] = b.o[0], w.o[1] = b.o[1], w.o[2] = b.o[2];
      mlki_lane_window_of(&ph, rows, cols, &w);
      mlki_conv_lanes(cv, &ph, &w, g * cv->row->lanes, mlki_min(end * cv->row->lanes, cv->groups * cv->cout),
                      cv->workspace + index * cv->floats);
    } else {
      mlki_plane_band_of(cv, &ph, rows, cols, &b);
      mlki_conv_planes(cv, &ph, &b, g, end, cv->workspace + index * cv->floats);
    }
  }
}

static void mlki_conv_task(void *arg, int index) {
  mlki_conv *cv = (mlki_conv *)arg;
  float *image = cv->workspace + index * cv->floats, *scratch = image + cv->floats_image;
  for (;;) {
    int64_t item = cv->tasks == 1 ? cv->next++ : mlki_take(&cv->next), p, k, g;
    mlki_conv_phase ph;
    if (item >= cv->items) break;
    k = item % cv->channel_blocks * cv->block_channels, item /= cv->channel_blocks;
    p = item % cv->pixel_blocks * cv->block_pixels, item /= cv->pixel_blocks;
    g = item % cv->groups;
    mlki_conv_phase_at(cv, item / cv->groups, &ph);
    if (cv->direct) {
      const int64_t rows = ph.pixels ? ph.pixels / ph.out[2] : 0, row = p / cv->block_pixels * cv->block_rows;
      if (row < rows)
        mlki_conv_direct(cv, &ph, g, row * ph.out[2], mlki_min(cv->block_rows, rows - row) * ph.out[2], k,
                         mlki_min(cv->block_channels, cv->cout - k), image, scratch);
      continue;
    }
    if (p >= ph.pixels) continue;
    (cv->variant == MLKI_CONV_ROWS ? mlki_conv_rows
                                   : mlki_conv_columns)(cv, &ph, g, p, mlki_min(cv->block_pixels, ph.pixels - p), k,
                                                        mlki_min(cv->block_channels, cv->cout - k), image, scratch);
  }
}

/* >>conv_items ----------------------------------------------------------------------------------------------------- */

/* Cost of a variant in multiply-adds that the machine could have done meanwhile, by rules of thumb: padding of vectors,
   too few chains to hide the latency, copies and scattered stores. Decides between rows and columns only. */
static double mlki_conv_cost(const mlki_conv *cv, int rows) {
  const double lanes = cv->row->lanes, vecs = cv->row->nr / cv->row->lanes, per_cycle = 2 * lanes;
  const int64_t pixels = cv->images * cv->out[0] * cv->out[1] * cv->out[2] /
                             (cv->phases[0] * cv->phases[1] * cv->phases[2]) +
                         1;
  const int64_t along = rows ? cv->cout : pixels, across = rows ? pixels : cv->cout;
  const double terms = (double)(cv->taps[0] * cv->taps[1] * cv->taps[2] * cv->cin) /
                       (double)(cv->phases[0] * cv->phases[1] * cv->phases[2]);
  const double chains = (double)mlki_min(across, cv->row->mr) *
                        (double)mlki_min(mlki_ceil_div(along, cv->row->lanes), (int64_t)vecs);
  const double tiles = (double)mlki_round_up(along, cv->row->lanes) * (double)across * (chains < 8 ? 8 / chains : 1);
  const int64_t step = cv->transposed ? 1 : cv->stride[2];
  const double copy = cv->x.s[2] * step == 1 ? 0.15 : cv->x.c == 1 ? 0.4 : 1.5; /* cycles to pack one element */
  const int dense = rows ? cv->y.c == 1 : cv->y.s[2] == 1 && !(cv->transposed && cv->stride[2] > 1);
  return terms * tiles + terms * (double)pixels * copy * per_cycle +
         (dense ? 0.2 : 2.0) * per_cycle * (double)along * (double)across;
}

/* The same for planes, given their bands. What the other variants pay for a call to place a piece of a tap is part of
   the comparison. */
static double mlki_conv_planes_cost(const mlki_conv *cv, const mlki_conv_phase *ph) {
  const double per_cycle = 2 * cv->row->lanes;
  const double terms = (double)(cv->taps[0] * cv->taps[1] * cv->taps[2] * cv->cin) /
                       (double)(cv->phases[0] * cv->phases[1] * cv->phases[2]);
  double bands = (double)cv->images;
  const int64_t last[3] = {1, cv->band_rows, cv->band_cols};
  mlki_plane_band b;
  double vectors, chains, sums, copy;
  int a;
  mlki_plane_band_of(cv, ph, cv->band_rows, cv->band_cols, &b);
  for (a = 0; a < 3; a++)
    bands *= (double)mlki_ceil_div(mlki_ceil_div(cv->out[a], cv->transposed ? cv->stride[a] : 1), last[a]);
  vectors = (double)mlki_ceil_div(b.flat, cv->row->lanes);
  chains = (double)cv->width * (vectors < 8 ? vectors : 8);
  sums = terms * vectors * cv->row->lanes * (double)cv->cout * (cv->width == 1 ? 2 : 1) * (chains < 8 ? 8 / chains : 1);
  copy = ph->step[2] * cv->x.s[2] == 1 ? 0.1 : cv->x.c == 1 && cv->batch > 1 ? 0.4 : 1.5;
  return bands * (sums + per_cycle * (copy * (double)(cv->cin * b.channel) +
                                      (cv->plain         ? 0.1
                                       : cv->pixel_major ? 0.5
                                                         : 0.3) *
                                          (double)(cv->cout * b.flat) +
                                      100));
}

#define MLKI_CONV_BAND    2048       /* most outputs of a band along an axis */
#define MLKI_CONV_TERMS   (1 << 14)  /* most taps x channels for planes: the buffer may hold a row for each */
#define MLKI_CONV_LEVEL_1 (24 << 10) /* bytes of level 1 for a band where every vector read is used but once or twice */

/* Floats of a task's workspace for bands of rows x cols; ph: a phase with the most taps. */
static int64_t mlki_conv_planes_floats(mlki_conv *cv, const mlki_conv_phase *ph, int64_t rows, int64_t cols) {
  const int64_t channels = cv->batch > 1 ? cv->batch * cv->cout : cv->block_channels;
  mlki_plane_band b;
  cv->band_rows = rows, cv->band_cols = cols;
  mlki_plane_band_of(cv, ph, rows, cols, &b);
  b.flat += rows * (cols - b.axis[2].spread); /* a phase with fewer taps may share a track where this one does not */
  cv->floats_terms = mlki_round_up(ph->terms, MLKI_LANES_MAX);
  cv->floats_image = cv->batch * cv->cin * b.channel + 2 * MLKI_LANES_MAX;
  cv->floats_sums = channels * mlki_conv_pitch(b.flat);
  cv->floats = cv->floats_terms + cv->floats_image + cv->floats_sums +
               (cv->plain ? 0 : mlki_round_up(channels * rows * cols, MLKI_LANES_MAX));
  return cv->floats;
}

/* The largest bands of out[] outputs whose buffers stay small; 0 where there are none. ph: a
   phase with the most taps. */
static int mlki_conv_planes_bands(const mlk_context *ctx, mlki_conv *cv, const mlki_conv_phase *ph,
                                  const int64_t *out) {
  const int64_t step = (cv->transposed ? cv->stride[2] : 1) * cv->y.s[2], widest = mlki_max(cv->cin, cv->cout);
  const int64_t budget = cv->width > 2 ? ctx->l2_bytes / 16 : MLKI_CONV_LEVEL_1 / 4;
  int64_t rows = mlki_min(out[1], MLKI_CONV_BAND), cols = mlki_min(out[2], MLKI_CONV_BAND);
  cv->pixel_major = cv->y.c == 1 && step != 1 && cv->groups * cv->cout > 1;
  cv->plain = cv->alpha == 1.0f && cv->beta == 0.0f && !cv->bias && !cv->residual.p && !cv->preact.p &&
              cv->activation == MLK_NONE && (cv->pixel_major || step == 1);
  cv->batch = 1;
  if (cv->x.c == 1 || cv->y.c == 1) cv->batch = mlki_max(mlki_min(MLKI_LANES_MAX / widest, cv->groups), 1);
  cv->block_channels = cv->batch > 1     ? cv->cout
                       : cv->pixel_major ? mlki_min(cv->cout, mlki_max(64 / cv->width, 1) * cv->width)
                                         : cv->width;
  if (cols < out[2]) rows = 1;
  while (rows > 1 && mlki_conv_planes_floats(cv, ph, rows, cols) > budget) rows = (rows + 1) / 2;
  rows = mlki_ceil_div(out[1], mlki_ceil_div(out[1], rows));
  while (cols > 2 * cv->row->nr && mlki_conv_planes_floats(cv, ph, rows, cols) > budget) cols = (cols + 1) / 2;
  if (cols < out[2]) rows = 1;
  return mlki_conv_planes_floats(cv, ph, rows, cols) <= ctx->l2_bytes / 8;
}

#define MLKI_LANES_COUT  8         /* most written channels of a group: more fill the tile of a matrix product */
#define MLKI_LANES_COLS  256       /* most outputs of a row at once */
#define MLKI_LANES_TERMS (1 << 12) /* most taps x channels */

/* The most rows whose window takes little of level 2, and their window; its floats, 0 where it would be large. */
static int64_t mlki_lane_rows(const mlk_context *ctx, const mlki_conv *cv, const mlki_conv_phase *ph,
                              const int64_t *out, int64_t *rows, int64_t *cols) {
  const double depth = (double)(cv->taps[0] * cv->cin * cv->row->lanes);
  mlki_lane_window w;
  memset(&w, 0, sizeof w);
  *cols = mlki_max(mlki_min(out[2], MLKI_LANES_COLS), 1);
  *rows = *cols < out[2] ? 1 : mlki_max(mlki_min(out[1], MLKI_LANES_COLS), 1);
  for (;; *rows = (*rows + 1) / 2) {
    mlki_lane_window_of(ph, *rows, *cols, &w);
    if (*rows == 1 || (double)w.wide[1] * (double)w.wide[2] * depth < (double)ctx->l2_bytes / 64) break;
  }
  if ((double)w.wide[1] * (double)w.wide[2] * depth > (double)ctx->l2_bytes / 16) return 0;
  return mlki_round_up(w.wide[1] * w.wide[2] * cv->taps[0] * cv->cin * cv->row->lanes +
                           (cv->row->lanes / cv->cout + 2) * cv->cin * mlki_lane_turned(cv, w.wide[2]),
                       MLKI_LANES_MAX);
}

/* Bands of lanes, for one read channel per group and dense channels. */
static int mlki_conv_lanes_bands(const mlk_context *ctx, mlki_conv *cv, const mlki_conv_phase *ph, const int64_t *out) {
  const int64_t terms = cv->taps[0] * cv->taps[1] * cv->taps[2] * cv->cin, lanes = cv->row->lanes;
  int64_t rows, cols;
  if (cv->cin != 1 || cv->cout > MLKI_LANES_COUT || cv->width != cv->cout || cv->groups * cv->cout < lanes / 2 ||
      cv->x.c != 1 || cv->y.c != 1 || terms > MLKI_LANES_TERMS)
    return 0;
  cv->floats_image = mlki_lane_rows(ctx, cv, ph, out, &rows, &cols);
  if (!cv->floats_image) return 0;
  cv->band_rows = rows, cv->band_cols = cols, cv->batch = 1;
  cv->pixel_major = 1;
  cv->plain = cv->alpha == 1.0f && cv->beta == 0.0f && !cv->bias && !cv->residual.p && !cv->preact.p &&
              cv->activation == MLK_NONE;
  cv->floats_terms = mlki_round_up(terms, MLKI_LANES_MAX),
  cv->floats_sums = mlki_round_up(terms * lanes, MLKI_LANES_MAX);
  cv->floats = cv->floats_terms + cv->floats_sums + cv->floats_image +
               (cv->plain ? 0 : mlki_round_up(rows * cols * lanes, MLKI_LANES_MAX));
  return 1;
}

/* 1 where W lies in memory as its panels would: one channel from one, a dense filter, one phase. */
static int mlki_conv_is_packed(const mlki_conv *cv) {
  int64_t size = 1;
  int a;
  if (cv->cin != 1 || cv->cout != 1) return 0;
  for (a = 2; a >= 0; size *= cv->taps[a--])
    if ((cv->taps[a] > 1 && cv->w_tap[a] != size) || (cv->transposed && cv->stride[a] > 1)) return 0;
  return cv->w_group == size;
}

/* Decides for lanes where they can be, or for planes if they cost less than the variant so far; chooses their items. */
static int mlki_conv_block_bands(const mlk_context *ctx, mlki_conv *cv, int64_t tasks) {
  const int64_t taps = cv->taps[0] * cv->taps[1] * cv->taps[2], want = tasks == 1 ? 1 : 4 * tasks;
  int64_t out[3], leader[3], bands, per_unit;
  mlki_conv trial = *cv;
  mlki_conv_phase ph;
  int a, lanes;
  if (taps * cv->cin > MLKI_CONV_TERMS || cv->cin == 0 || (taps == 1 && cv->groups == 1) ||
      (cv->panels && cv->variant != MLKI_CONV_COLUMNS))
    return 0;
  for (a = 0; a < 3; a++) {
    out[a] = cv->transposed ? mlki_ceil_div(cv->out[a], cv->stride[a]) : cv->out[a];
    leader[a] = mlki_modulo(-cv->pad[a], cv->stride[a]);
  }
  mlki_conv_phase_of(cv, leader, &ph);
  trial.variant = MLKI_CONV_PLANES;
  trial.width = mlki_panel_rows(cv->cout, cv->row->mr), trial.panel_floats = taps * cv->cin * cv->cout;
  lanes = mlki_conv_lanes_bands(ctx, &trial, &ph, out);
  if (!lanes && !mlki_conv_planes_bands(ctx, &trial, &ph, out)) return 0;
  if (!lanes && mlki_conv_planes_cost(&trial, &ph) > mlki_conv_cost(cv, cv->variant == MLKI_CONV_ROWS)) return 0;
  if (lanes) trial.variant = MLKI_CONV_LANES;
  *cv = trial;
  if (!cv->panels && mlki_conv_is_packed(cv)) cv->panels = cv->w, cv->pack = 0;
  cv->units = lanes ? mlki_ceil_div(cv->groups * cv->cout, cv->row->lanes) : cv->groups;
  per_unit = cv->band_rows * cv->band_cols * cv->stride[2] * (lanes ? cv->row->lanes : cv->cout);
  cv->pixel_blocks = mlki_ceil_div(out[1], cv->band_rows), cv->channel_blocks = mlki_ceil_div(out[2], cv->band_cols);
  bands = cv->images * out[0] * cv->pixel_blocks * cv->channel_blocks;
  cv->run = mlki_round_up(mlki_ceil_div(cv->units, mlki_ceil_div(want, bands)), cv->batch);
  if (cv->transposed) /* what one item writes is still in level 2 for the next phase */
    cv->run = mlki_min(cv->run, mlki_round_up(mlki_ceil_div(ctx->l2_bytes / 16, per_unit), cv->batch));
  cv->items = cv->phases[0] * cv->phases[1] * cv->phases[2] * mlki_ceil_div(cv->units, cv->run) * bands;
  cv->tasks = (int)mlki_min(tasks, cv->items);
  return 1;
}

/* Floats of the window of one row, for filters that reach any distance: a double does not overflow. */
static double mlki_conv_window_size(const mlki_conv *cv, const mlki_conv_phase *ph) {
  int64_t low1, high1, low2, high2;
  mlki_conv_reach(ph, 1, 0, 1, &low1, &high1), mlki_conv_reach(ph, 2, 0, ph->out[2], &low2, &high2);
  return (double)(high1 - low1 + 1 + ph->step[1]) * (double)(high2 - low2 + 1) * (double)ph->taps[0] *
         (double)mlki_conv_column(cv, ph);
}

/* Items of a direct convolution; 0 where packing is better: rows too short to fill a tile, too many phases, or taps so
   far apart that most of a window is never read. */
static int mlki_conv_block_direct(const mlk_context *ctx, mlki_conv *cv, int64_t tasks) {
  const int64_t phases = cv->phases[0] * cv->phases[1] * cv->phases[2], half = ctx->l2_bytes / 8;
  int64_t i, rows = 0, out2 = 0, per_row = 0, fixed = 0;
  if (phases > 64 || cv->cin == 0) return 0;
  for (i = 0; i < phases; i++) {
    mlki_conv_phase ph;
    mlki_conv_phase_at(cv, i, &ph);
    if (ph.pixels == 0) continue;
    if (ph.out[2] < 4) return 0;
    if (mlki_conv_window_size(cv, &ph) > (double)half) return 0;
    out2 = mlki_max(out2, ph.out[2]), rows = mlki_max(rows, ph.pixels / ph.out[2]);
    fixed = mlki_max(fixed, mlki_conv_window(cv, &ph, 1));
    per_row = mlki_max(per_row, mlki_conv_window(cv, &ph, 2) - mlki_conv_window(cv, &ph, 1));
  }
  per_row += out2 * mlki_conv_pitch(cv->block_channels);
  cv->block_rows = mlki_max((half - fixed) / per_row, 1);
  if (tasks > 1)
    cv->block_rows = mlki_max(mlki_min(cv->block_rows, mlki_ceil_div(rows * phases * cv->groups, 4 * tasks)), 1);
  cv->block_rows = mlki_min(cv->block_rows, rows);
  cv->block_pixels = cv->block_rows * out2, cv->pixel_blocks = mlki_ceil_div(rows, cv->block_rows);
  cv->floats_image = 0;
  for (i = 0; i < phases; i++) {
    mlki_conv_phase ph;
    mlki_conv_phase_at(cv, i, &ph);
    if (ph.pixels) cv->floats_image = mlki_max(cv->floats_image, mlki_conv_window(cv, &ph, cv->block_rows));
  }
  cv->floats_image = mlki_round_up(cv->floats_image, MLKI_LANES_MAX);
  return 1;
}

/* Items of panels: those of the image and the sums take half of level 2 together; items enough for an even end. */
static void mlki_conv_block_pixels(const mlk_context *ctx, mlki_conv *cv, int64_t pixels, int64_t kc, int64_t tasks) {
  const int64_t phases = cv->phases[0] * cv->phases[1] * cv->phases[2], nr = ctx->row->nr;
  const int64_t want = tasks == 1 ? 1 : 4 * tasks;
  cv->block_pixels = ctx->l2_bytes / 8 / (kc + cv->block_channels + 1);
  cv->block_pixels = mlki_max(mlki_min(cv->block_pixels, MLKI_CONV_PIXELS), 2 * nr);
  if (phases * cv->groups * mlki_ceil_div(pixels, cv->block_pixels) < want)
    cv->block_pixels = mlki_max(mlki_min(cv->block_pixels, mlki_ceil_div(pixels * phases * cv->groups, want)), 2 * nr);
  cv->block_pixels = mlki_round_up(mlki_min(cv->block_pixels, pixels),
                                   cv->variant == MLKI_CONV_ROWS ? ctx->row->mr : nr);
  cv->pixel_blocks = mlki_ceil_div(pixels, cv->block_pixels);
  cv->floats_image = mlki_round_up(cv->block_pixels * kc, MLKI_LANES_MAX);
}

/* Chooses the variant, unless the caller's panels did, and with it the form of the panels. */
static void mlki_conv_form(mlki_conv *cv) {
  const int64_t terms = cv->taps[0] * cv->taps[1] * cv->taps[2] * cv->cin;
  if (!cv->panels) cv->variant = mlki_conv_cost(cv, 1) < mlki_conv_cost(cv, 0) ? MLKI_CONV_ROWS : MLKI_CONV_COLUMNS;
  cv->width = cv->variant == MLKI_CONV_ROWS ? cv->row->nr : mlki_panel_rows(mlki_max(cv->cout, 1), cv->row->mr);
  cv->panel_floats = terms * (cv->variant == MLKI_CONV_ROWS ? mlki_round_up(cv->cout, cv->row->nr) : cv->cout);
}

/* Chooses items and tasks. Nothing here changes a bit of the result. */
static void mlki_conv_block(const mlk_context *ctx, mlki_conv *cv) {
  const int64_t mr = ctx->row->mr;
  const int64_t taps = cv->taps[0] * cv->taps[1] * cv->taps[2], phases = cv->phases[0] * cv->phases[1] * cv->phases[2];
  const int64_t kc = mlki_min(taps * cv->cin, MLK_SEGMENT);
  const double work = (double)cv->flops / 2;
  int64_t pixels = cv->images, tasks;
  int a;
  for (a = 0; a < 3; a++) pixels *= cv->transposed ? mlki_ceil_div(cv->out[a], cv->stride[a]) : cv->out[a];
  cv->tasks = 1;
  if (pixels == 0 || cv->cout == 0)
    cv->variant = MLKI_CONV_EMPTY;
  else if (ctx->reference)
    cv->variant = MLKI_CONV_REFERENCE;
  if (cv->variant == MLKI_CONV_EMPTY || cv->variant == MLKI_CONV_REFERENCE) return;
  cv->pack = !cv->panels;
  cv->pixel_major = cv->variant == MLKI_CONV_ROWS;
  tasks = mlki_max(mlki_min(mlki_task_limit(ctx), (int64_t)(work / MLKI_TASK_WORK)), 1);

  if (mlki_conv_block_bands(ctx, cv, tasks)) return;

  cv->block_channels = mlki_min(cv->cout, MLKI_CONV_CHANNELS / cv->width * cv->width);
  cv->direct = cv->variant == MLKI_CONV_ROWS && mlki_conv_block_direct(ctx, cv, tasks);
  if (!cv->direct) mlki_conv_block_pixels(ctx, cv, pixels, kc, tasks);
  if (cv->pixel_blocks * phases * cv->groups < tasks) {
    const int64_t parts = mlki_ceil_div(tasks, cv->pixel_blocks * phases * cv->groups);
    cv->block_channels = mlki_min(cv->block_channels, mlki_round_up(mlki_ceil_div(cv->cout, parts), cv->width));
  }
  cv->channel_blocks = mlki_ceil_div(cv->cout, cv->block_channels);
  cv->items = phases * cv->groups * cv->pixel_blocks * cv->channel_blocks;
  cv->tasks = (int)mlki_min(tasks, cv->items);
  cv->floats = cv->floats_image;
  if (cv->variant == MLKI_CONV_ROWS)
    cv->floats += (cv->block_pixels + (cv->direct ? mr : 0)) * mlki_conv_pitch(cv->block_channels);
  else
    cv->floats += cv->block_channels * mlki_conv_pitch(cv->block_pixels);
}

/* >>conv_calls ----------------------------------------------------------------------------------------------------- */

/* What the calls give, under names that suit both directions. */
typedef struct mlki_conv_args {
  const char *x_name, *y_name;
  mlk_tensor x, w, y, bias, residual, preact;
  mlki_extent ex, ew, ey, ebias, eresidual, epreact;
  const mlk_packed *packed;
  const float *alpha, *beta;
  mlk_activation activation;
  const mlk_conv_geometry *geometry;
  int transposed;
} mlki_conv_args;

#define MLKI_CONV_MOST INT32_MAX /* of strides, dilations and paddings: sums of a few of their products fit 63 bits */

static mlk_status mlki_conv_check_geometry(mlk_context *ctx, const mlk_conv_geometry *g, int spatial, mlki_conv *cv) {
  static const char *const names[4] = {"stride", "dilation", "pad_before", "pad_after"};
  const int64_t *const field[4] = {g->stride, g->dilation, g->pad_before, g->pad_after};
  int f, i;
  for (f = 0; f < 4; f++)
    for (i = 0; i < 3; i++) {
      if (i >= spatial && field[f][i] != 0)
        return mlki_fail(ctx, MLK_ERR_ARGUMENT, "geometry.%s[%d]: is %lld, but the tensors have only %d spatial axes",
                         names[f], i, (long long)field[f][i], spatial);
      if (field[f][i] < 0 || field[f][i] > MLKI_CONV_MOST)
        return mlki_fail(ctx, MLK_ERR_ARGUMENT, "geometry.%s[%d]: is %lld, but must be 0 to 2^31 - 1", names[f], i,
                         (long long)field[f][i]);
    }
  if (g->groups < 0)
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "geometry.groups: is %lld, but must be at least 0 (0: 1)",
                     (long long)g->groups);
  cv->groups = g->groups ? g->groups : 1;
  for (i = 0; i < 3; i++) {
    const int from = i - (3 - spatial);
    cv->stride[i] = from >= 0 && g->stride[from] ? g->stride[from] : 1;
    cv->dilation[i] = from >= 0 && g->dilation[from] ? g->dilation[from] : 1;
    cv->pad[i] = from >= 0 ? g->pad_before[from] : 0;
  }
  return MLK_OK;
}

static mlki_image mlki_conv_image(const mlk_tensor *t) {
  mlki_image y;
  int i;
  y.p = (float *)t->data, y.n = t->stride[0], y.c = t->stride[1];
  for (i = 0; i < 3; i++) y.s[i] = i < 5 - t->rank ? 0 : t->stride[t->rank - 3 + i];
  return y;
}

/* big, small: X's and Y's sizes, of whichever of the two is read or written. Checks that they fit the filter. */
static mlk_status mlki_conv_check_sizes(mlk_context *ctx, const mlki_conv_args *t, const char *w_name,
                                        const int64_t *filter, mlki_conv *cv) {
  const mlk_tensor *big = t->transposed ? &t->y : &t->x, *small = t->transposed ? &t->x : &t->y;
  const char *small_name = t->transposed ? t->x_name : t->y_name, *big_name = t->transposed ? t->y_name : t->x_name;
  const int spatial = t->x.rank - 2;
  int i;
  if (small->shape[0] != big->shape[0])
    return mlki_fail(ctx, MLK_ERR_SHAPE, "%s: holds %lld images, but %s %lld", t->y_name, (long long)t->y.shape[0],
                     t->x_name, (long long)t->x.shape[0]);
  if (big->shape[1] % cv->groups || small->shape[1] % cv->groups)
    return mlki_fail(ctx, MLK_ERR_SHAPE,
                     "geometry.groups: is %lld, but must divide the channels, %lld of %s and %lld of %s",
                     (long long)cv->groups, (long long)big->shape[1], big_name, (long long)small->shape[1], small_name);
  if (filter[0] != small->shape[1] || filter[1] != big->shape[1] / cv->groups)
    return mlki_fail(
        ctx, MLK_ERR_SHAPE,
        "%s: is for %lld channels from %lld, but must be for %lld (channels of %s) from %lld (channels of %s / groups)",
        w_name, (long long)filter[0], (long long)filter[1], (long long)small->shape[1], small_name,
        (long long)(big->shape[1] / cv->groups), big_name);
  for (i = 0; i < spatial; i++) {
    const int a = 3 - spatial + i;
    const int64_t in = big->shape[2 + i], taps = filter[2 + i], room = in + cv->pad[a] + t->geometry->pad_after[i];
    int64_t reach, out;
    if (taps < 1)
      return mlki_fail(ctx, MLK_ERR_SHAPE, "%s: size of filter axis %d is %lld, but must be at least 1", w_name, i,
                       (long long)taps);
    if (in > INT64_MAX / 8 || mlki_mul_overflows(taps - 1, cv->dilation[a], &reach) || reach > INT64_MAX / 8)
      return mlki_fail(ctx, MLK_ERR_SIZE, "%s: filter axis %d reaches beyond 60 bits", w_name, i);
    out = room > reach ? (room - reach - 1) / cv->stride[a] + 1 : 0;
    if (small->shape[2 + i] != out)
      return mlki_fail(ctx, MLK_ERR_SHAPE,
                       "%s: size of axis %d is %lld, but %lld of %s, padding %lld + %lld, filter %lld, stride %lld and "
                       "dilation %lld give %lld",
                       small_name, 2 + i, (long long)small->shape[2 + i], (long long)in, big_name,
                       (long long)cv->pad[a], (long long)t->geometry->pad_after[i], (long long)taps,
                       (long long)cv->stride[a], (long long)cv->dilation[a], (long long)out);
    cv->taps[a] = taps;
    cv->in[a] = t->x.shape[2 + i], cv->out[a] = t->y.shape[2 + i];
  }
  return MLK_OK;
}

static mlk_status mlki_conv_check_packed(mlk_context *ctx, const mlki_conv_args *t, mlki_conv *cv, int64_t *filter) {
  const mlk_packed *p = t->packed;
  int i;
  if (ctx->reference)
    return mlki_fail(ctx, MLK_ERR_UNSUPPORTED, "packed_w: the reference does not read packed panels; give w");
  if (t->w.data) return mlki_fail(ctx, MLK_ERR_ARGUMENT, "w: given together with packed_w; give one of them");
  if (!p->data)
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "packed_w: data is NULL; fill it with %s",
                     t->transposed ? "mlk_conv_grad_input_pack" : "mlk_conv_pack");
  if ((uintptr_t)p->data % MLKI_ALIGN)
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "packed_w: data is not aligned to %d bytes; was the buffer moved?",
                     MLKI_ALIGN);
  if (p->form != (t->transposed ? MLKI_FORM_CONV_TRANSPOSED : MLKI_FORM_CONV))
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "packed_w: was not packed for this operator; use %s",
                     t->transposed ? "mlk_conv_grad_input_pack" : "mlk_conv_pack");
  if (p->isa != (int32_t)ctx->row->isa)
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "packed_w: packed for %s, but this context runs %s; pack it again",
                     p->isa > 0 && p->isa < MLK_ISA_COUNT ? mlki_isa_names[p->isa] : "unknown",
                     mlki_isa_names[ctx->row->isa]);
  if (p->rank != t->x.rank)
    return mlki_fail(ctx, MLK_ERR_SHAPE, "packed_w: packed with %d axes, but %s has %d", (int)p->rank, t->x_name,
                     (int)t->x.rank);
  if (p->groups != cv->groups)
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "packed_w: packed for %lld groups, but geometry.groups is %lld",
                     (long long)p->groups, (long long)cv->groups);
  for (i = 0; i < 3 && t->transposed; i++)
    if (p->stride[i] != cv->stride[i] || p->dilation[i] != cv->dilation[i] || p->pad[i] != cv->pad[i] % cv->stride[i])
      return mlki_fail(ctx, MLK_ERR_ARGUMENT,
                       "packed_w: packed for another stride, dilation or pad_before; pack it again");
  for (i = 0; i < p->rank; i++) filter[i] = p->shape[i];
  cv->panels = (const float *)p->data;
  cv->width = p->panel;
  cv->variant = (mlki_conv_variant)p->variant;
  return MLK_OK;
}

/* An operand of the epilogue with y's shape. */
static mlk_status mlki_conv_extra(mlk_context *ctx, const char *name, const char *y_name, mlk_tensor *t,
                                  mlki_extent *extent, const mlk_tensor *y, mlki_image *image) {
  mlk_status status;
  int i;
  image->p = NULL;
  if (!t->data) return MLK_OK;
  if ((status = mlki_check_real(ctx, name, t, y->rank, y->rank, extent)) != MLK_OK) return status;
  for (i = 0; i < y->rank; i++)
    if (t->shape[i] != y->shape[i])
      return mlki_fail(ctx, MLK_ERR_SHAPE, "%s: size of axis %d is %lld, but must be %s's, %lld", name, i,
                       (long long)t->shape[i], y_name, (long long)y->shape[i]);
  *image = mlki_conv_image(t);
  return MLK_OK;
}

static mlk_status mlki_conv_check_alias(mlk_context *ctx, const mlki_conv_args *t, const mlki_conv *cv) {
  const struct {
    const char *name;
    const mlk_tensor *tensor;
    const mlki_extent *extent;
    int same_allowed, present;
  } in[] = {{t->x_name, &t->x, &t->ex, 0, 1},
            {t->packed ? "packed_w" : "w", &t->w, &t->ew, 0, 1},
            {"bias", &t->bias, &t->ebias, 0, cv->bias != NULL},
            {"residual", &t->residual, &t->eresidual, 1, cv->residual.p != NULL}};
  size_t i;
  for (i = 0; i < sizeof in / sizeof in[0]; i++) {
    if (!in[i].present) continue;
    if (!(in[i].same_allowed && mlki_same_view(&t->y, in[i].tensor)) &&
        mlki_overlap(&t->y, &t->ey, in[i].tensor, in[i].extent))
      return mlki_fail(ctx, MLK_ERR_ALIAS, "%s: overlaps %s%s", t->y_name, in[i].name,
                       in[i].same_allowed ? ", which is allowed only as the same view" : "");
    if (cv->preact.p && mlki_overlap(&t->preact, &t->epreact, in[i].tensor, in[i].extent))
      return mlki_fail(ctx, MLK_ERR_ALIAS, "preact: overlaps %s", in[i].name);
  }
  if (cv->preact.p && mlki_overlap(&t->preact, &t->epreact, &t->y, &t->ey))
    return mlki_fail(ctx, MLK_ERR_ALIAS, "preact: overlaps %s", t->y_name);
  return MLK_OK;
}

/* 2 x the products of all sums, and for each operand its elements, both in 63 bits. */
static mlk_status mlki_conv_cost_of(mlk_context *ctx, const char *y_name, int64_t outputs, const int64_t *filter,
                                    int spatial, int64_t elements, uint64_t *flops, uint64_t *bytes) {
  int64_t products = outputs, terms = 8;
  int i;
  for (i = 1; i < 2 + spatial; i++) {
    if (mlki_mul_overflows(products, filter[i], &products)) products = INT64_MAX;
    if (mlki_mul_overflows(terms, filter[i], &terms)) terms = INT64_MAX;
  }
  if (products > INT64_MAX / 2 || elements > INT64_MAX / 8 || terms > INT64_MAX / 4096 || /* padded panels of them */
      mlki_mul_overflows(mlki_max(terms, 1), filter[0] + 4096, &terms))
    return mlki_fail(ctx, MLK_ERR_SIZE, "%s: the number of operations does not fit in 63 bits", y_name);
  *flops = 2 * (uint64_t)products, *bytes = 4 * (uint64_t)elements;
  return MLK_OK;
}

/* On a device X and W may be of 16 bits, and what goes with Y like them: how they go together, and fewer bytes. */
static mlk_status mlki_conv_dtypes(mlk_context *ctx, const mlki_conv_args *t, mlki_conv *cv) {
  const mlk_tensor *all[] = {&t->y, &t->bias, &t->residual, &t->preact};
  const mlki_extent *extent[] = {&t->ey, &t->ebias, &t->eresidual, &t->epreact};
  const char *const names[] = {t->y_name, "bias", "residual", "preact"};
  mlk_status status;
  int i;
  for (i = 0; i < 4; i++) {
    if ((status = mlki_check_alike(ctx, names[i], all[i], t->x_name, &t->x)) != MLK_OK) return status;
    if (all[i]->data && all[i]->dtype != MLK_F32)
      cv->bytes -= 2u * (uint64_t)(extent[i]->stored * (i == 0 && cv->beta != 0.0f ? 2 : 1));
  }
  if (t->x.dtype != MLK_F32) cv->bytes -= 2u * (uint64_t)(t->ex.stored + t->ew.stored);
  return MLK_OK;
}

/* run: 0 for a plan, which does not look for overlap. */
static mlk_status mlki_conv_prepare(mlk_context *ctx, mlki_conv_args *t, int run, mlki_conv *cv) {
  int64_t filter[MLK_MAX_RANK] = {0};
  mlk_status status;
  int i, spatial;
  memset(cv, 0, sizeof *cv);
  cv->row = ctx->row, cv->transposed = t->transposed;
  if ((int)t->activation < 0 || t->activation >= MLK_ACTIVATION_COUNT)
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "activation: is %d, but must be 0 to %d", (int)t->activation,
                     MLK_ACTIVATION_COUNT - 1);
  if ((status = mlki_check_real(ctx, t->y_name, &t->y, 3, 5, &t->ey)) != MLK_OK) return status;
  if ((status = mlki_check_output(ctx, t->y_name, &t->y, &t->ey)) != MLK_OK) return status;
  if ((status = mlki_check_real(ctx, t->x_name, &t->x, t->y.rank, t->y.rank, &t->ex)) != MLK_OK) return status;
  spatial = t->y.rank - 2;
  if ((status = mlki_conv_check_geometry(ctx, t->geometry, spatial, cv)) != MLK_OK) return status;
  if (t->packed) {
    if ((status = mlki_conv_check_packed(ctx, t, cv, filter)) != MLK_OK) return status;
  } else {
    if ((status = mlki_check_tensor(ctx, "w", &t->w, (mlk_dtype)t->x.dtype, t->y.rank, t->y.rank, &t->ew)) != MLK_OK)
      return status;
    for (i = 0; i < t->w.rank; i++) filter[i] = t->w.shape[i];
  }
  for (i = 0; i < 3; i++) cv->in[i] = cv->out[i] = cv->taps[i] = 1;
  if ((status = mlki_conv_check_sizes(ctx, t, t->packed ? "packed_w" : "w", filter, cv)) != MLK_OK) return status;
  cv->images = t->y.shape[0];
  cv->cin = t->x.shape[1] / cv->groups, cv->cout = t->y.shape[1] / cv->groups;
  cv->x = mlki_conv_image(&t->x), cv->y = mlki_conv_image(&t->y);
  if (t->packed) {
    if (t->packed->bytes / 4 > (uint64_t)INT64_MAX / 8)
      return mlki_fail(ctx, MLK_ERR_ARGUMENT, "packed_w: holds %llu bytes, more than there can be",
                       (unsigned long long)t->packed->bytes);
    t->w = mlk_f32((const float *)t->packed->data, t->packed->bytes / 4);
    t->w.stride[0] = 1;
    t->ew.low = 0, t->ew.high = t->w.shape[0] - 1, t->ew.count = t->ew.stored = t->w.shape[0];
  } else {
    const mlki_image w = mlki_conv_image(&t->w);
    cv->w = w.p;
    cv->w_out = t->transposed ? w.c : w.n, cv->w_in = t->transposed ? w.n : w.c;
    cv->w_group = w.n * (filter[0] / cv->groups);
    for (i = 0; i < 3; i++) cv->w_tap[i] = w.s[i];
  }
  if (t->bias.data) {
    if ((status = mlki_check_real(ctx, "bias", &t->bias, 1, 1, &t->ebias)) != MLK_OK) return status;
    if (t->bias.shape[0] != t->y.shape[1])
      return mlki_fail(ctx, MLK_ERR_SHAPE, "bias: size is %lld, but must be the channels of %s, %lld",
                       (long long)t->bias.shape[0], t->y_name, (long long)t->y.shape[1]);
    cv->bias = (const float *)t->bias.data, cv->bias_c = t->bias.stride[0];
  }
  if ((status = mlki_conv_extra(ctx, "residual", t->y_name, &t->residual, &t->eresidual, &t->y, &cv->residual)) !=
      MLK_OK)
    return status;
  if ((status = mlki_conv_extra(ctx, "preact", t->y_name, &t->preact, &t->epreact, &t->y, &cv->preact)) != MLK_OK)
    return status;
  if (cv->preact.p && (status = mlki_check_output(ctx, "preact", &t->preact, &t->epreact)) != MLK_OK) return status;
  cv->alpha = t->alpha ? *t->alpha : 1.0f, cv->beta = t->beta ? *t->beta : 0.0f, cv->activation = t->activation;
  for (i = 0; i < 3; i++) cv->phases[i] = t->transposed ? mlki_max(mlki_min(cv->stride[i], cv->out[i]), 1) : 1;
  status = mlki_conv_cost_of(ctx, t->y_name, t->transposed ? t->ex.count : t->ey.count, filter, spatial,
                             t->ex.stored + t->ew.stored + t->ey.count * (cv->beta == 0.0f ? 1 : 2) +
                                 (cv->bias ? t->ebias.stored : 0) + (cv->residual.p ? t->eresidual.stored : 0) +
                                 (cv->preact.p ? t->epreact.count : 0),
                             &cv->flops, &cv->bytes);
  if (status) return status;
  if (ctx->backend && (status = mlki_conv_dtypes(ctx, t, cv)) != MLK_OK) return status;
  if (run && (status = mlki_conv_check_alias(ctx, t, cv)) != MLK_OK) return status;
  mlki_conv_form(cv);
  if (t->packed && t->packed->bytes / 4 < (uint64_t)(cv->groups * cv->panel_floats))
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "packed_w: holds %llu bytes, too few for its shape",
                     (unsigned long long)t->packed->bytes);
  if (cv->alpha == 0.0f) cv->cin = 0, cv->panel_floats = 0; /* X and W are not read */
  mlki_conv_block(ctx, cv);
  return MLK_OK;
}

/* The strides of the pixels of an image as one axis: 0 where they are not one. */
static int mlki_conv_merges(const mlki_image *y, const int64_t *size, int64_t *stride) {
  int64_t run = 1;
  int a;
  *stride = 1;
  for (a = 2; a >= 0 && y->p; a--) {
    if (size[a] == 1) continue;
    if (run == 1)
      *stride = y->s[a];
    else if (y->s[a] != *stride * run)
      return 0;
    run *= size[a];
  }
  return 1;
}

/* [images, groups, rows, cols] with these strides; the first axis may be of size 1. */
static mlk_tensor mlki_conv_matrix(const float *p, const int64_t *shape, int64_t sn, int64_t sg, int64_t rs,
                                   int64_t cs) {
  mlk_tensor t = mlk_f32(p, shape[0], shape[1], shape[2], shape[3]);
  t.stride[0] = sn, t.stride[1] = sg, t.stride[2] = rs, t.stride[3] = cs;
  return t;
}

/* A 1 x 1 filter that touches every pixel once is a matrix product, Y = W X for each image and group: describes it in
   mm and returns 1, where the strides allow. The same sums in the same order: no bit depends on the way. */
static int mlki_conv_as_matmul(const mlk_context *ctx, const mlki_conv *cv, const mlki_conv_args *t, mlk_packed *packed,
                               mlk_matmul_desc *mm) {
  const mlki_image *const image[4] = {&cv->x, &cv->y, &cv->residual, &cv->preact};
  int64_t step[4], shape[4], pixels = cv->out[0] * cv->out[1] * cv->out[2], images = cv->images;
  int a, i, merges = 1;
  memset(mm, 0, sizeof *mm);
  if (ctx->reference || cv->variant == MLKI_CONV_EMPTY ||
      (t->packed && (cv->variant != MLKI_CONV_ROWS || cv->groups > 1)))
    return 0;
  for (a = 0; a < 3; a++)
    if (cv->taps[a] != 1 || cv->stride[a] != 1 || cv->in[a] != cv->out[a]) return 0; /* and so there is no padding */
  for (i = 0; i < 4; i++) {
    if (!mlki_conv_merges(image[i], cv->out, &step[i])) return 0;
    merges &= !image[i]->p || pixels == 1 || image[i]->n == step[i] * pixels;
  }
  if (merges && pixels > 1) pixels *= images, images = 1;
  shape[0] = images, shape[1] = cv->groups;
  shape[2] = cv->cout, shape[3] = pixels;
  mm->d = mlki_conv_matrix(cv->y.p, shape, cv->y.n, cv->cout * cv->y.c, cv->y.c, step[1]);
  if (cv->residual.p)
    mm->residual = mlki_conv_matrix(cv->residual.p, shape, cv->residual.n, cv->cout * cv->residual.c, cv->residual.c,
                                    step[2]);
  if (cv->preact.p)
    mm->preact = mlki_conv_matrix(cv->preact.p, shape, cv->preact.n, cv->cout * cv->preact.c, cv->preact.c, step[3]);
  shape[2] = cv->cin;
  mm->b = mlki_conv_matrix(cv->x.p, shape, cv->x.n, cv->cin * cv->x.c, cv->x.c, step[0]);
  shape[0] = 1, shape[2] = cv->cout, shape[3] = 1;
  if (cv->bias) mm->bias = mlki_conv_matrix(cv->bias, shape, 1, cv->cout * cv->bias_c, cv->bias_c, 1);
  shape[3] = cv->cin;
  if (!t->packed) mm->a = mlki_conv_matrix(cv->w, shape, 1, cv->w_group, cv->w_out, cv->w_in);
  if (t->packed) { /* panels are those of a right factor: Y^T = X^T W^T */
    *packed = *t->packed;
    packed->form = MLKI_FORM_MATMUL, packed->k = cv->cin, packed->n = cv->cout;
    mm->packed_b = packed;
    mm->a = mlk_transposed(mm->b), mm->d = mlk_transposed(mm->d),
    mm->bias = cv->bias ? mlk_transposed(mm->bias) : mm->bias;
    if (cv->residual.p) mm->residual = mlk_transposed(mm->residual);
    if (cv->preact.p) mm->preact = mlk_transposed(mm->preact);
    memset(&mm->b, 0, sizeof mm->b);
  }
  mm->alpha = t->alpha, mm->beta = t->beta, mm->activation = t->activation;
  return 1;
}

/* >>conv_weights --------------------------------------------------------------------------------------------------- */

/* The weight gradient: DW[k][(tap, c)] = sum over pixels p = (image, output) of DY[k][p] X[p + tap][c], a matrix
   product whose long axis is p. Panels of both factors are packed a segment of pixels at a time; the sums of an item,
   some rows k times some columns (tap, c), stay in its scratch. cv describes the convolution; its y is DY. */
typedef struct mlki_conv_weights {
  mlki_conv cv;
  mlki_conv_phase ph; /* the only one */
  mlki_image dw;      /* n: written channel, c: read channel of the group */
  float beta;
  mlk_tensor dy, dbias;                      /* as tensors, for the reduction */
  int64_t cols;                              /* taps x cin */
  int64_t block_rows, block_taps, block_cin; /* an item */
  int64_t row_blocks, tap_blocks, cin_blocks;
  int64_t floats_dy, floats_x;  /* of a task's workspace; the rest is scratch */
  int64_t band_rows, band_cols; /* lanes: outputs of a band along the last two axes; several rows are whole */
} mlki_conv_weights;

static void mlki_conv_weights_reference(const mlki_conv_weights *gw) {
  const mlki_conv *cv = &gw->cv;
  int64_t g, k, c, t[3], p, n, o[3];
  for (g = 0; g < cv->groups; g++)
    for (k = 0; k < cv->cout; k++)
      for (c = 0; c < cv->cin; c++)
        for (t[0] = 0; t[0] < cv->taps[0]; t[0]++)
          for (t[1] = 0; t[1] < cv->taps[1]; t[1]++)
            for (t[2] = 0; t[2] < cv->taps[2]; t[2]++) {
              float *dw = gw->dw.p + (g * cv->cout + k) * gw->dw.n + c * gw->dw.c, total = 0.0f, chain = 0.0f;
              int a;
              for (p = 0; p < gw->ph.pixels; p++) {
                int64_t at;
                int inside = 1;
                mlki_conv_pixel(&gw->ph, p, &n, o);
                at = n * cv->x.n + (g * cv->cin + c) * cv->x.c;
                for (a = 0; a < 3; a++) {
                  const int64_t i = o[a] * cv->stride[a] + t[a] * cv->dilation[a] - cv->pad[a];
                  inside &= i >= 0 && i < cv->in[a];
                  at += i * cv->x.s[a];
                }
                if (p > 0 && p % MLK_SEGMENT == 0) total = p == MLK_SEGMENT ? chain : total + chain, chain = 0.0f;
                chain = mlki_fma1(*mlki_image_at(&cv->y, &gw->ph, n, g * cv->cout + k, o), inside ? cv->x.p[at] : 0.0f,
                                  chain);
              }
              total = gw->ph.pixels > MLK_SEGMENT ? total + chain : chain;
              for (a = 0; a < 3; a++) dw += t[a] * gw->dw.s[a];
              *dw = gw->beta != 0.0f ? mlki_fma1(gw->beta, *dw, total) : total;
            }
}

/* Rows [k, k + width) of DY of group g at pixels [p, p + kc): to[pixel][width]. */
static void mlki_conv_pack_dy(const mlki_conv_weights *gw, int64_t g, int64_t k, int64_t width, int64_t p, int64_t kc,
                              float *to) {
  const mlki_conv *cv = &gw->cv;
  int64_t step, run = cv->out[2], at, n, o[3];
  if (mlki_conv_merges(&cv->y, cv->out, &step))
    run = cv->out[0] * cv->out[1] * cv->out[2];
  else
    step = cv->y.s[2];
  for (at = p; at < p + kc;) {
    const int64_t count = mlki_min(run - at % run, p + kc - at);
    mlki_conv_pixel(&gw->ph, at, &n, o);
    cv->row->place(to + (at - p) * width, width, width, count, mlki_image_at(&cv->y, &gw->ph, n, g * cv->cout + k, o),
                   cv->y.c, step);
    at += count;
  }
}

/* Columns of one panel next to each other in memory: (tap, c) and what follows it on the last axis of the filter. */
typedef struct mlki_conv_columns_run {
  int64_t count, step; /* floats from one to the next */
  int64_t d0, d1, d2;  /* input of output 0, per axis */
  int64_t reach;       /* taps it runs over, less 1, times the dilation */
  int64_t c;
} mlki_conv_columns_run;

/* The columns of an item: taps [tap, tap + taps) x channels [c, c + channels) of the group, in that order. */
typedef struct mlki_conv_cols {
  int64_t tap, taps, c, channels;
} mlki_conv_cols;

/* The run from column col of an item on, of at most most columns. It runs over several taps where these lie one after
   another in x, and is then whole only for outputs that have all of them inside; with one_tap set it never does. */
static void mlki_conv_columns_at(const mlki_conv *cv, const mlki_conv_cols *cols, int64_t col, int64_t most,
                                 int one_tap, mlki_conv_columns_run *run) {
  const int64_t tap = cols->tap + col / cols->channels, at = col % cols->channels;
  const int64_t t2 = tap % cv->taps[2], t1 = tap / cv->taps[2] % cv->taps[1], t0 = tap / cv->taps[2] / cv->taps[1],
                next = cv->dilation[2] * cv->x.s[2];
  run->c = cols->c + at;
  run->d0 = t0 * cv->dilation[0] - cv->pad[0], run->d1 = t1 * cv->dilation[1] - cv->pad[1],
  run->d2 = t2 * cv->dilation[2] - cv->pad[2];
  run->step = cv->cin == 1 ? next : cv->x.c;
  run->count = mlki_min(most, cols->channels - at), run->reach = 0;
  if (one_tap || cols->channels < cv->cin || (cv->cin > 1 && next != cv->cin * cv->x.c)) return;
  run->count = mlki_min(most, (cv->taps[2] - t2) * cv->cin - at);
  run->reach = (at + run->count - 1) / cv->cin * cv->dilation[2];
}

/* Zeros for the padding: rows x width of to[row][NR]. */
static void mlki_conv_clear(float *to, int64_t rows, int64_t width, int64_t nr) {
  int64_t i;
  for (i = 0; i < rows; i++) memset(to + i * nr, 0, (size_t)width * 4);
}

/* Columns [j, j + width) of an item's as DW's sums see them in the image of group g, for outputs o[2] .. o[2] + count
   of one row of image n: to[output][NR]. */
static void mlki_conv_pack_columns(const mlki_conv *cv, const mlki_conv_cols *cols, int64_t g, int64_t j, int64_t width,
                                   int64_t n, const int64_t *o, int64_t count, int one_tap, float *to) {
  const int64_t nr = cv->row->nr, stride = cv->stride[2], last = o[2] + count;
  mlki_conv_columns_run run;
  int64_t col;
  for (col = j; col < j + width; col += run.count, to += run.count) {
    int64_t i0, i1, begin, end; /* outputs begin <= o2 < end have all taps of the run inside */
    mlki_conv_columns_at(cv, cols, col, j + width - col, one_tap, &run);
    i0 = o[0] * cv->stride[0] + run.d0, i1 = o[1] * cv->stride[1] + run.d1;
    if (i0 < 0 || i0 >= cv->in[0] || i1 < 0 || i1 >= cv->in[1]) {
      mlki_conv_clear(to, count, run.count, nr);
      continue;
    }
    begin = run.d2 >= 0 ? 0 : mlki_ceil_div(-run.d2, stride);
    end = run.d2 + run.reach >= cv->in[2] ? 0 : mlki_ceil_div(cv->in[2] - run.d2 - run.reach, stride);
    begin = mlki_min(mlki_max(begin, o[2]), last), end = mlki_max(mlki_min(end, last), begin);
    if (begin < end)
      cv->row->place(to + (begin - o[2]) * nr, run.count, nr, end - begin,
                     cv->x.p + n * cv->x.n + (g * cv->cin + run.c) * cv->x.c + i0 * cv->x.s[0] + i1 * cv->x.s[1] +
                         (begin * stride + run.d2) * cv->x.s[2],
                     run.step, stride * cv->x.s[2]);
    if (run.reach) { /* at the borders some taps of the run are inside: tap by tap */
      const int64_t low[3] = {o[0], o[1], o[2]}, high[3] = {o[0], o[1], end};
      mlki_conv_pack_columns(cv, cols, g, col, run.count, n, low, begin - o[2], 1, to);
      mlki_conv_pack_columns(cv, cols, g, col, run.count, n, high, last - end, 1, to + (end - o[2]) * nr);
    } else {
      mlki_conv_clear(to, begin - o[2], run.count, nr);
      mlki_conv_clear(to + (end - o[2]) * nr, last - end, run.count, nr);
    }
  }
}

/* The same for pixels [p, p + kc). */
static void mlki_conv_pack_terms(const mlki_conv_weights *gw, const mlki_conv_cols *cols, int64_t g, int64_t j,
                                 int64_t width, int64_t p, int64_t kc, float *to) {
  const mlki_conv *cv = &gw->cv;
  int64_t at, count, n, o[3];
  for (at = p; at < p + kc; at += count, to += count * cv->row->nr) {
    count = mlki_min(cv->out[2] - at % cv->out[2], p + kc - at);
    mlki_conv_pixel(&gw->ph, at, &n, o);
    mlki_conv_pack_columns(cv, cols, g, j, width, n, o, count, 0, to);
  }
}

/* Where tap number tap lies in a filter of DW. */
static int64_t mlki_conv_weights_tap(const mlki_conv_weights *gw, int64_t tap) {
  const int64_t *taps = gw->cv.taps;
  return tap / (taps[1] * taps[2]) * gw->dw.s[0] + tap / taps[2] % taps[1] * gw->dw.s[1] + tap % taps[2] * gw->dw.s[2];
}

/* Writes an item's sums, [k][tap][c], to DW. Where the taps of DW are dense they are transposed to [c][tap]. */
static void mlki_conv_weights_finish(const mlki_conv_weights *gw, const mlki_conv_cols *cols, int64_t g, int64_t k,
                                     int64_t nk, const float *scratch, int64_t pitch) {
  const mlki_conv *cv = &gw->cv;
  float *dw = gw->dw.p + (g * cv->cout + k) * gw->dw.n + cols->c * gw->dw.c;
  const int dense = cols->taps > 1 && gw->beta == 0.0f && mlki_conv_taps_dense(cv, gw->dw.s);
  mlki_epilogue e;
  int64_t i;
  for (i = 0; i < nk && dense; i++)
    cv->row->place(dw + i * gw->dw.n + cols->tap, cols->taps, gw->dw.c, cols->channels, scratch + i * pitch,
                   cols->channels, 1);
  if (dense) return;
  memset(&e, 0, sizeof e);
  e.alpha = 1.0f, e.beta = gw->beta, e.activation = MLK_NONE;
  e.d.rs = gw->dw.n, e.d.cs = gw->dw.c;
  for (i = 0; i < cols->taps; i++) {
    e.d.p = dw + mlki_conv_weights_tap(gw, cols->tap + i);
    if (gw->beta != 0.0f) e.c = e.d;
    cv->row->epilogue(&e, scratch + i * cols->channels, pitch, 0, 0, nk, cols->channels);
  }
}

/* One item: rows [k, k + nk) x some columns of group g. */
static void mlki_conv_weights_item(const mlki_conv_weights *gw, const mlki_conv_cols *cols, int64_t g, int64_t k,
                                   int64_t nk, float *dy, float *x, float *scratch) {
  const mlki_conv *cv = &gw->cv;
  const int64_t nr = cv->row->nr, height = mlki_panel_rows(nk, cv->row->mr), nj = cols->taps * cols->channels,
                pitch = mlki_conv_pitch(nj);
  mlki_strip strip;
  int64_t s, i;
  memset(&strip, 0, sizeof strip);
  for (s = 0; s == 0 || s < gw->ph.pixels; s += MLK_SEGMENT) {
    const int64_t kc = mlki_min(gw->ph.pixels - s, MLK_SEGMENT);
    for (i = 0; i < nk; i += height) mlki_conv_pack_dy(gw, g, k + i, mlki_min(height, nk - i), s, kc, dy + i * kc);
    for (i = 0; i < nj; i += nr) mlki_conv_pack_terms(gw, cols, g, i, mlki_min(nr, nj - i), s, kc, x + i * kc);
    strip.b = x, strip.b_rs = nr, strip.b_panel = kc * nr;
    strip.c_rs = pitch, strip.cols = nj, strip.k = kc;
    strip.chain = s == 0 ? MLKI_START : MLKI_ADD;
    for (i = 0; i < nk; i += height) {
      strip.rows = mlki_min(height, nk - i);
      strip.a = dy + i * kc, strip.a_rs = 1, strip.a_cs = strip.rows;
      strip.c = scratch + i * pitch;
      cv->row->strip(&strip);
    }
  }
  mlki_conv_weights_finish(gw, cols, g, k, nk, scratch, pitch);
}

/* Adds the outputs of a window to the chains of DW, which end every MLK_SEGMENT outputs of the whole sum: p is the
   number of the first. */
static void mlki_conv_weights_window(const mlki_conv_weights *gw, const mlki_lane_window *w, int64_t p,
                                     const int32_t *at, const float *x, const float *dy, float *chain, float *total) {
  const mlki_conv *cv = &gw->cv;
  const int64_t lanes = cv->row->lanes, step = cv->stride[2] * cv->cin * lanes;
  int64_t r, i, count;
  for (r = 0; r < w->rows; r++)
    for (i = 0; i < w->cols; i += count, p += count, dy += count * lanes) {
      count = mlki_min(w->cols - i, MLK_SEGMENT - p % MLK_SEGMENT);
      cv->row->lanes_chains(chain, gw->cols, dy, x + r * cv->stride[1] * w->wide[2] * cv->cin * lanes + i * step, at,
                            count, step);
      if ((p + count) % MLK_SEGMENT && p + count < gw->ph.pixels) continue;
      if (p < MLK_SEGMENT)
        memcpy(total, chain, (size_t)(gw->cols * lanes) * 4);
      else
        cv->row->add(total, chain, gw->cols * lanes);
      memset(chain, 0, (size_t)(gw->cols * lanes) * 4);
    }
}

/* Writes the sums of one item by lanes. */
static void mlki_conv_weights_store(const mlki_conv_weights *gw, const mlki_lane_window *w, const float *total) {
  const mlki_conv *cv = &gw->cv;
  int64_t j, l;
  for (j = 0; j < gw->cols; j++, total += cv->row->lanes) {
    float *dw = gw->dw.p + w->first * gw->dw.n + j % cv->cin * gw->dw.c + mlki_conv_weights_tap(gw, j / cv->cin);
    for (l = 0; l < w->lanes; l++, dw += gw->dw.n)
      *dw = gw->beta != 0.0f ? mlki_fma1(gw->beta, *dw, total[l]) : total[l];
  }
}

/* One item by lanes: DW of LANES written channels from first on, in one pass over all outputs. */
static void mlki_conv_weights_lanes(const mlki_conv_weights *gw, int64_t first, float *workspace) {
  const mlki_conv *cv = &gw->cv;
  const mlki_conv_phase *ph = &gw->ph;
  const int64_t lanes = cv->row->lanes, sums = mlki_round_up(gw->cols * lanes, MLKI_LANES_MAX);
  float *chain = workspace, *total = chain + sums, *dy = total + sums, *x = dy + gw->floats_dy;
  int32_t *at = (int32_t *)(void *)(x + gw->floats_x);
  int64_t lane[MLKI_LANES_MAX], p = 0, r;
  mlki_lane_window w;
  mlki_lane_channels(cv, first, &w);
  for (r = 0; r < w.lanes; r++) lane[r] = r * cv->y.c;
  memset(chain, 0, (size_t)(2 * sums) * 4);
  while (p < ph->pixels) {
    mlki_conv_pixel(ph, p, &w.n, w.o);
    mlki_lane_window_of(ph, mlki_min(gw->band_rows, ph->out[1] - w.o[1]), mlki_min(gw->band_cols, ph->out[2] - w.o[2]),
                        &w);
    mlki_lane_terms(cv, ph, &w, at);
    mlki_conv_fill_window(cv, ph, &w, x);
    for (r = 0; r < w.rows; r++) {
      const int64_t o[3] = {w.o[0], w.o[1] + r, w.o[2]};
      cv->row->spread(dy + r * w.cols * lanes, lanes, w.cols, mlki_image_at(&cv->y, ph, w.n, first, o), lane, w.lanes,
                      cv->y.s[2]);
    }
    mlki_conv_weights_window(gw, &w, p, at, x, dy, chain, total);
    p += w.rows * w.cols;
  }
  mlki_conv_weights_store(gw, &w, total);
}

static void mlki_conv_weights_lanes_task(void *arg, int index) {
  mlki_conv_weights *gw = (mlki_conv_weights *)arg;
  mlki_conv *cv = &gw->cv;
  for (;;) {
    const int64_t item = cv->tasks == 1 ? cv->next++ : mlki_take(&cv->next);
    if (item >= cv->items) break;
    mlki_conv_weights_lanes(gw, item * cv->row->lanes, cv->workspace + index * cv->floats);
  }
}

/* Chooses bands and items of lanes; 0 where the matrix product is better, or a window would be large. */
static int mlki_conv_weights_block_lanes(const mlk_context *ctx, mlki_conv_weights *gw, int64_t tasks) {
  mlki_conv *cv = &gw->cv;
  const int64_t lanes = ctx->row->lanes;
  if (cv->groups == 1 || cv->cout > MLKI_LANES_COUT || gw->cols > MLKI_LANES_TERMS) return 0;
  gw->floats_x = mlki_lane_rows(ctx, cv, &gw->ph, cv->out, &gw->band_rows, &gw->band_cols);
  if (!gw->floats_x) return 0;
  gw->floats_dy = mlki_round_up(gw->band_rows * gw->band_cols * lanes, MLKI_LANES_MAX);
  cv->floats = 2 * mlki_round_up(gw->cols * lanes, MLKI_LANES_MAX) + gw->floats_dy + gw->floats_x +
               mlki_round_up(gw->cols, MLKI_LANES_MAX);
  cv->items = mlki_ceil_div(cv->groups * cv->cout, lanes);
  cv->tasks = (int)mlki_min(tasks, cv->items);
  cv->variant = MLKI_CONV_LANES;
  return 1;
}

static void mlki_conv_weights_task(void *arg, int index) {
  mlki_conv_weights *gw = (mlki_conv_weights *)arg;
  mlki_conv *cv = &gw->cv;
  float *dy = cv->workspace + index * cv->floats, *x = dy + gw->floats_dy, *scratch = x + gw->floats_x;
  for (;;) {
    int64_t item = cv->tasks == 1 ? cv->next++ : mlki_take(&cv->next), k;
    mlki_conv_cols cols;
    if (item >= cv->items) break;
    cols.tap = item % gw->tap_blocks * gw->block_taps, item /= gw->tap_blocks;
    cols.c = item % gw->cin_blocks * gw->block_cin, item /= gw->cin_blocks;
    cols.taps = mlki_min(gw->block_taps, cv->taps[0] * cv->taps[1] * cv->taps[2] - cols.tap);
    cols.channels = mlki_min(gw->block_cin, cv->cin - cols.c);
    k = item % gw->row_blocks * gw->block_rows, item /= gw->row_blocks;
    mlki_conv_weights_item(gw, &cols, item, k, mlki_min(gw->block_rows, cv->cout - k), dy, x, scratch);
  }
}

/* Columns of an item, about most of them: all taps of some channels if that goes, so that DW is written in runs. */
static void mlki_conv_weights_block_cols(mlki_conv_weights *gw, int64_t most) {
  const mlki_conv *cv = &gw->cv;
  const int64_t nr = cv->row->nr, taps = cv->taps[0] * cv->taps[1] * cv->taps[2];
  gw->block_cin = mlki_max(most / taps / nr, 1) * nr;
  gw->cin_blocks = mlki_ceil_div(cv->cin, gw->block_cin);
  gw->block_cin = mlki_min(mlki_round_up(mlki_ceil_div(cv->cin, gw->cin_blocks), nr), cv->cin);
  gw->cin_blocks = mlki_ceil_div(cv->cin, gw->block_cin);
  gw->block_taps = mlki_min(mlki_max(2 * most / gw->block_cin, 1), taps);
  gw->tap_blocks = mlki_ceil_div(taps, gw->block_taps);
}

/* Chooses items and tasks. */
static void mlki_conv_weights_block(const mlk_context *ctx, mlki_conv_weights *gw) {
  mlki_conv *cv = &gw->cv;
  const int64_t nr = ctx->row->nr, kc = mlki_min(gw->ph.pixels, MLK_SEGMENT);
  const int64_t tasks = mlki_max(mlki_min(mlki_task_limit(ctx), (int64_t)((double)cv->flops / 2 / MLKI_TASK_WORK)), 1);
  const int64_t want = tasks == 1 ? 1 : 3 * tasks;
  int64_t most, blocks;
  cv->tasks = 1, cv->items = 0;
  cv->variant = cv->cout == 0 || gw->cols == 0 || !gw->dw.p ? MLKI_CONV_EMPTY
                : ctx->reference                            ? MLKI_CONV_REFERENCE
                                                            : MLKI_CONV_COLUMNS;
  if (cv->variant <= MLKI_CONV_REFERENCE) return;
  if (mlki_conv_weights_block_lanes(ctx, gw, tasks)) return;
  gw->block_rows = mlki_min(cv->cout, MLKI_CONV_CHANNELS / 2);
  most = mlki_max(ctx->l2_bytes / 8 / (kc + gw->block_rows + 1), nr);
  mlki_conv_weights_block_cols(gw, most);
  if (cv->groups * gw->cin_blocks * gw->tap_blocks * mlki_ceil_div(cv->cout, gw->block_rows) < want)
    mlki_conv_weights_block_cols(gw, mlki_min(most, mlki_ceil_div(gw->cols * cv->groups, want)));
  blocks = cv->groups * gw->cin_blocks * gw->tap_blocks;
  if (blocks < tasks)
    gw->block_rows = mlki_min(gw->block_rows,
                              mlki_round_up(mlki_ceil_div(cv->cout, mlki_ceil_div(tasks, blocks)), ctx->row->mr));
  gw->row_blocks = mlki_ceil_div(cv->cout, gw->block_rows);
  cv->items = blocks * gw->row_blocks;
  cv->tasks = (int)mlki_min(tasks, cv->items);
  gw->floats_dy = mlki_round_up(gw->block_rows * kc, MLKI_LANES_MAX);
  gw->floats_x = mlki_round_up(mlki_round_up(gw->block_taps * gw->block_cin, nr) * kc, MLKI_LANES_MAX);
  cv->floats = gw->floats_dy + gw->floats_x + gw->block_rows * mlki_conv_pitch(gw->block_taps * gw->block_cin);
}

/* The operand X and the output DW, when DW is wanted; else nothing but DY is read. */
static mlk_status mlki_conv_weights_operands(mlk_context *ctx, mlki_conv_args *t, mlk_tensor *dw, int run,
                                             mlki_conv_weights *gw) {
  mlki_conv *cv = &gw->cv;
  int64_t filter[MLK_MAX_RANK] = {0};
  mlk_status status;
  int i;
  if ((status = mlki_check_tensor(ctx, "x", &t->x, (mlk_dtype)t->y.dtype, t->y.rank, t->y.rank, &t->ex)) != MLK_OK)
    return status;
  if ((status = mlki_check_real(ctx, "dw", dw, t->y.rank, t->y.rank, &t->ew)) != MLK_OK) return status;
  if ((status = mlki_check_alike(ctx, "dw", dw, "dy", &t->y)) != MLK_OK) return status;
  if ((status = mlki_check_output(ctx, "dw", dw, &t->ew)) != MLK_OK) return status;
  for (i = 0; i < dw->rank; i++) filter[i] = dw->shape[i];
  if ((status = mlki_conv_check_sizes(ctx, t, "dw", filter, cv)) != MLK_OK) return status;
  cv->cin = t->x.shape[1] / cv->groups;
  cv->x = mlki_conv_image(&t->x), gw->dw = mlki_conv_image(dw);
  gw->cols = cv->taps[0] * cv->taps[1] * cv->taps[2] * cv->cin;
  status = mlki_conv_cost_of(ctx, "dy", t->ey.count, filter, dw->rank - 2,
                             t->ex.stored + t->ew.count * (gw->beta == 0.0f ? 1 : 2), &cv->flops, &cv->bytes);
  if (status) return status;
  if ((status = mlki_check_apart(ctx, run, "dw", dw, &t->ew, "x", &t->x, &t->ex)) != MLK_OK) return status;
  return mlki_check_apart(ctx, run, "dw", dw, &t->ew, "dy", &t->y, &t->ey);
}

static mlk_status mlki_conv_weights_prepare(mlk_context *ctx, const mlk_conv_grad_weights_desc *desc, int run,
                                            mlki_conv_weights *gw) {
  mlki_conv_args t;
  mlki_conv *cv = &gw->cv;
  mlki_extent extent;
  mlk_tensor dw;
  mlk_status status;
  int i, spatial;
  if (!desc) return mlki_fail(ctx, MLK_ERR_ARGUMENT, "desc: is NULL");
  memset(gw, 0, sizeof *gw), memset(&t, 0, sizeof t);
  t.x_name = "x", t.y_name = "dy", t.x = desc->x, t.y = desc->dy, t.geometry = &desc->geometry;
  dw = desc->dw, gw->dbias = desc->dbias;
  gw->beta = desc->beta ? *desc->beta : 0.0f;
  cv->row = ctx->row;
  if (!dw.data && !gw->dbias.data)
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "dw: is absent, and so is dbias; give one of them");
  if ((status = mlki_check_real(ctx, "dy", &t.y, 3, 5, &t.ey)) != MLK_OK) return status;
  spatial = t.y.rank - 2;
  if ((status = mlki_conv_check_geometry(ctx, t.geometry, spatial, cv)) != MLK_OK) return status;
  for (i = 0; i < 3; i++) cv->in[i] = cv->out[i] = cv->taps[i] = cv->phases[i] = 1;
  for (i = 0; i < spatial; i++) cv->out[3 - spatial + i] = t.y.shape[2 + i];
  cv->images = t.y.shape[0], cv->cout = t.y.shape[1] / cv->groups;
  cv->y = mlki_conv_image(&t.y), gw->dy = t.y;
  if (dw.data && (status = mlki_conv_weights_operands(ctx, &t, &dw, run, gw)) != MLK_OK) return status;
  cv->bytes += 4 * (uint64_t)t.ey.stored;
  if (gw->dbias.data) {
    if ((status = mlki_check_tensor(ctx, "dbias", &gw->dbias, MLK_F32, 1, 1, &extent)) != MLK_OK) return status;
    if ((status = mlki_check_output(ctx, "dbias", &gw->dbias, &extent)) != MLK_OK) return status;
    if (gw->dbias.shape[0] != t.y.shape[1])
      return mlki_fail(ctx, MLK_ERR_SHAPE, "dbias: size is %lld, but must be the channels of dy, %lld",
                       (long long)gw->dbias.shape[0], (long long)t.y.shape[1]);
    if ((status = mlki_check_apart(ctx, run, "dbias", &gw->dbias, &extent, "dy", &t.y, &t.ey)) != MLK_OK) return status;
    if (dw.data && (status = mlki_check_apart(ctx, run, "dbias", &gw->dbias, &extent, "x", &t.x, &t.ex)) != MLK_OK)
      return status;
    if (dw.data && (status = mlki_check_apart(ctx, run, "dw", &dw, &t.ew, "dbias", &gw->dbias, &extent)) != MLK_OK)
      return status;
    cv->flops += (uint64_t)t.ey.count;
    cv->bytes += 4 * (uint64_t)extent.count * (gw->beta == 0.0f ? 1 : 2);
  }
  mlki_conv_phase_at(cv, 0, &gw->ph);
  mlki_conv_weights_block(ctx, gw);
  return MLK_OK;
}

/* >>knn ----------------------------------------------------------------------------------------------------------
   The answer is defined by the 16-lane distances. Two ways lead to it.

   scan      few queries: every distance is computed as defined while the base is read once
   filter    many queries: a matrix product in registers gives every pair a lower bound on its distance; pairs above the
             query's k-th best distance so far are dropped before anything is stored, the others get their defined
             distance and enter a heap

   The bounds. u = 2^-24, g_n = n u / (1 - n u). d <= MLKI_FILTER_D, so that g_d < 2^-7 and products of two errors are
   covered by the factor 1.02 below. Errors of sums count the operations in order (Higham, "Accuracy and stability of
   numerical algorithms", 2002, 3.1). fl() is the value computed.

   L2. q' = fl(q - c), x' = fl(x - c) for a center c of the base: a common offset cancels before it can hurt.
   With N = |x'|^2, M = |q'|^2:
     | |q' - x'|^2 - |q - x|^2 |               <= 4 u (1 + u) (N + M)      each coordinate is off by u of itself
     | fl(N) - N |                             <= g_d N
     | fl(init - 2 q'x') - (init - 2 q'x') |   <= g_d (|init| + 2 sum |q'x'|) <= g_d (2 N + M)
   so with 2g := 3 (d + 8) u 1.02 and init = (1 - 2g) fl(N):   acc + (1 - 2g) M <= |q - x|^2.
   The defined value s obeys s >= |q - x|^2 (1 - g_r), r = d / 16 + 8. A pair may be dropped when acc > limit with
     limit = key (1 + 2 g_r) - (1 - 2g) M, key the k-th best s so far.
   IP. q" = -q 2^e with |q"| in [1, 2). The sum is off by at most g_d (|init| + |q"| |x|), the defined value by
   g_r |q"| |x|; with init = -G fl(|x|), G = 2 (d + d / 16 + 24) u 1.02:   acc <= -2^e times the defined value.
     limit = key 2^e
   COSINE. q" = -q / |q|, x" = x / |x|, both rounded: all errors are relative to 1, their sum is below
   E = (3 d + 64) u 1.02.
     limit = key + E
   All: limits are rounded up, and grow by what underflow can take away, (4 d + 64) 2^-126 of the products and, for IP,
   G 2^-60 sqrt(d) of norms. Norms near overflow or NaN switch the filter off for their row (init = -inf) or their query
   (limit = inf). */

#define MLKI_FILTER_D        65536 /* longer vectors are scanned: the bound would not filter */
#define MLKI_FILTER_PANELS   8     /* base panels between two looks at the hits */
#define MLKI_KNN_QUERIES     1024  /* queries in flight per task */
#define MLKI_KNN_SCAN_ROWS   256   /* base rows per step of a scan */
#define MLKI_KNN_SCAN_MAX    12    /* queries up to which reading the base dominates, and that stay in level 1 */
#define MLKI_KNN_CENTER_ROWS 64    /* base rows whose mean is the center */
#define MLKI_U               5.9604644775390625e-8

typedef struct mlki_neighbour {
  float key; /* distance, or minus the similarity: smaller is nearer */
  int64_t id;
} mlki_neighbour;

typedef enum mlki_knn_variant { MLKI_KNN_EMPTY, MLKI_KNN_REFERENCE, MLKI_KNN_SCAN, MLKI_KNN_FILTER } mlki_knn_variant;
static const char *const mlki_knn_variant_names[] = {"empty", "reference", "scan", "filter"};

typedef struct mlki_knn {
  const mlki_kernels *row;
  mlk_metric metric;
  int64_t nq, n, d, k, kept; /* kept = min(k, n): entries of a heap */
  int64_t first_id;
  mlki_mat q, x;
  int64_t *ids;
  float *distances; /* NULL: not wanted */
  int64_t ids_rs, distances_rs;
  mlki_knn_variant variant;
  int split_base; /* tasks share the queries and split the base; else they split the queries */
  int tasks;
  int64_t task_queries, task_rows;   /* what one task is given */
  int64_t block_queries;             /* queries in flight */
  int64_t block_rows;                /* base rows packed at a time */
  float start_coefficient;           /* of mlki_knn_panel */
  double bound, relative, underflow; /* the constants of the bounds: see mlki_knn_limit */
  mlki_carver carver;
  uint64_t task_bytes;
  char *workspace;
  uint64_t flops, bytes;
} mlki_knn;

/* One task's workspace; the order is that of mlki_knn_carve. */
typedef struct mlki_knn_job {
  const mlki_knn *knn;
  mlki_neighbour *heap; /* block_queries x kept */
  int64_t *heap_size;
  float *norm_q;    /* |q| as defined, for COSINE */
  double *filter_m; /* of the filter: |q'|^2, or 2^e; < 0: this query is not filtered */
  float *query;     /* block_queries x d, dense; NULL where the queries are dense themselves */
  float *gathered;  /* dense copies of base rows; NULL where rows are dense */
  float *keys;      /* scan: distances of one query block x rows */
  uint32_t *hits;
  float *packed_q, *packed_x, *init, *limit, *center;
} mlki_knn_job;

static void mlki_knn_carve(const mlki_knn *knn, mlki_carver *c, mlki_knn_job *job) {
  const int64_t scan = knn->variant == MLKI_KNN_SCAN;
  const int64_t dense_rows = scan ? MLKI_KNN_SCAN_ROWS : 1;
  memset(job, 0, sizeof *job);
  job->knn = knn;
  job->heap = (mlki_neighbour *)mlki_carve(c, knn->block_queries * knn->kept, sizeof(mlki_neighbour));
  job->heap_size = (int64_t *)mlki_carve(c, knn->block_queries, 8);
  job->norm_q = (float *)mlki_carve(c, knn->block_queries, 4);
  if (knn->q.cs != 1) job->query = (float *)mlki_carve(c, knn->block_queries * knn->d, 4);
  if (knn->x.cs != 1) job->gathered = (float *)mlki_carve(c, dense_rows * knn->d, 4);
  if (scan) {
    job->keys = (float *)mlki_carve(c, knn->block_queries * MLKI_KNN_SCAN_ROWS, 4);
    job->hits = (uint32_t *)mlki_carve(c, MLKI_KNN_SCAN_ROWS, 4);
  } else {
    job->filter_m = (double *)mlki_carve(c, knn->block_queries, 8);
    job->packed_q = (float *)mlki_carve(c, knn->block_queries * knn->d + MLKI_LANES_MAX, 4);
    job->packed_x = (float *)mlki_carve(c, knn->block_rows * knn->d, 4);
    job->init = (float *)mlki_carve(c, knn->block_rows, 4);
    job->limit = (float *)mlki_carve(c, knn->block_queries, 4);
    job->center = (float *)mlki_carve(c, knn->d, 4);
    job->hits = (uint32_t *)mlki_carve(c, (int64_t)knn->row->mr * knn->row->nr * MLKI_FILTER_PANELS, 4);
  }
}

/* (key, id) order; keys are never NaN. */
MLKI_INLINE int mlki_nearer(mlki_neighbour a, mlki_neighbour b) {
  return a.key < b.key || (a.key == b.key && a.id < b.id);
}

/* heap[0] is the farthest of size entries; restores that after heap[at] became nearer. */
static void mlki_heap_sink(mlki_neighbour *heap, int64_t size, int64_t at) {
  const mlki_neighbour moved = heap[at];
  for (;;) {
    int64_t child = 2 * at + 1;
    if (child >= size) break;
    if (child + 1 < size && mlki_nearer(heap[child], heap[child + 1])) child++;
    if (!mlki_nearer(moved, heap[child])) break;
    heap[at] = heap[child];
    at = child;
  }
  heap[at] = moved;
}

/* Offers one row to a heap of at most kept entries; 1 when it entered. NaN never does. */
static int mlki_heap_offer(mlki_neighbour *heap, int64_t *size, int64_t kept, float key, int64_t id) {
  mlki_neighbour entry;
  int64_t at;
  entry.key = key, entry.id = id;
  if (key != key || kept == 0) return 0;
  if (*size == kept) {
    if (!mlki_nearer(entry, heap[0])) return 0;
    heap[0] = entry;
    mlki_heap_sink(heap, kept, 0);
    return 1;
  }
  for (at = (*size)++; at > 0 && mlki_nearer(heap[(at - 1) / 2], entry); at = (at - 1) / 2)
    heap[at] = heap[(at - 1) / 2];
  heap[at] = entry;
  return 1;
}

/* Sorts a heap and writes one row of the result. */
static void mlki_knn_emit(const mlki_knn *knn, int64_t query, mlki_neighbour *heap, int64_t size) {
  const int similarity = mlki_metric_pair(knn->metric) == MLKI_PAIR_IP;
  int64_t *ids = knn->ids + query * knn->ids_rs;
  float *distances = knn->distances ? knn->distances + query * knn->distances_rs : NULL;
  int64_t i;
  for (i = size - 1; i > 0; i--) {
    const mlki_neighbour far_away = heap[0];
    heap[0] = heap[i];
    heap[i] = far_away;
    mlki_heap_sink(heap, i, 0);
  }
  for (i = 0; i < knn->k; i++) {
    ids[i] = i < size ? heap[i].id + knn->first_id : -1;
    if (distances)
      distances[i] = i < size ? (similarity ? -heap[i].key : heap[i].key) : (similarity ? -INFINITY : INFINITY);
  }
}

/* count rows of d elements as dense rows: the rows themselves, or copied to space. */
static const float *mlki_dense_rows(const mlki_mat *x, int64_t first, int64_t count, int64_t d, float *space,
                                    int64_t *stride) {
  int64_t i, j;
  *stride = x->cs == 1 ? x->rs : d;
  if (x->cs == 1) return x->p + first * x->rs;
  for (i = 0; i < count; i++)
    for (j = 0; j < d; j++) space[i * d + j] = x->p[(first + i) * x->rs + j * x->cs];
  return space;
}

#define MLKI_FAR_BYTES  (32ll << 20) /* rows that are taken to lie in memory, not in a cache */
#define MLKI_ROWS_AHEAD 8192         /* bytes that are asked for ahead then */

/* How many rows ahead of one in use the caches are asked for; 0: all rows are near. */
static int64_t mlki_rows_ahead(const mlki_mat *x, int64_t rows, int64_t d) {
  if (x->cs != 1 || rows * d * 4 < MLKI_FAR_BYTES) return 0;
  return mlki_ceil_div(MLKI_ROWS_AHEAD, 4 * d);
}

static float mlki_norm(const mlki_kernels *row, const float *x, int64_t d) {
  float sum;
  row->pairs(MLKI_PAIR_IP, 1, 1, d, x, 0, x, 0, 0, &sum, 0);
  return sqrtf(sum);
}

/* The queries of a block, dense, with their norms where the metric needs them. */
static const float *mlki_knn_queries(mlki_knn_job *job, int64_t first, int64_t count, int64_t *stride) {
  const mlki_knn *knn = job->knn;
  const float *q = mlki_dense_rows(&knn->q, first, count, knn->d, job->query, stride);
  int64_t i;
  for (i = 0; i < count; i++) {
    job->heap_size[i] = 0;
    if (knn->metric == MLK_COSINE) job->norm_q[i] = mlki_norm(knn->row, q + i * *stride, knn->d);
  }
  return q;
}

/* Queries [q0, q0 + count) against base rows [x0, x1): every distance as defined. */
static void mlki_knn_scan(mlki_knn_job *job, int64_t q0, int64_t count, int64_t x0, int64_t x1) {
  const mlki_knn *knn = job->knn;
  const mlki_pair pair = mlki_metric_pair(knn->metric);
  const int similarity = pair == MLKI_PAIR_IP;
  int64_t q_rs, x_rs, at, i, j;
  const float *q = mlki_knn_queries(job, q0, count, &q_rs);
  const int64_t ahead = mlki_rows_ahead(&knn->x, knn->n, knn->d);
  for (at = x0; at < x1; at += MLKI_KNN_SCAN_ROWS) {
    const int64_t rows = mlki_min(x1 - at, MLKI_KNN_SCAN_ROWS);
    const float *x = mlki_dense_rows(&knn->x, at, rows, knn->d, job->gathered, &x_rs);
    float norm_x[MLKI_KNN_SCAN_ROWS];
    knn->row->pairs(pair, count, rows, knn->d, q, q_rs, x, x_rs, ahead, job->keys, MLKI_KNN_SCAN_ROWS);
    for (j = 0; j < rows && knn->metric == MLK_COSINE; j++) norm_x[j] = mlki_norm(knn->row, x + j * x_rs, knn->d);
    for (i = 0; i < count; i++) {
      float *keys = job->keys + i * MLKI_KNN_SCAN_ROWS;
      mlki_neighbour *heap = job->heap + i * knn->kept;
      const float limit = job->heap_size[i] == knn->kept && knn->kept ? heap[0].key : INFINITY;
      int64_t found;
      if (knn->metric == MLK_L2 || knn->metric == MLK_COSINE)
        for (j = 0; j < rows; j++)
          keys[j] = mlki_metric_distance(knn->metric, keys[j], job->norm_q[i],
                                         knn->metric == MLK_COSINE ? norm_x[j] : 1.0f);
      if (similarity)
        for (j = 0; j < rows; j++) keys[j] = -keys[j];
      found = knn->row->below(keys, rows, limit, job->hits);
      for (j = 0; j < found; j++)
        mlki_heap_offer(heap, &job->heap_size[i], knn->kept, keys[job->hits[j]], at + job->hits[j]);
    }
  }
}

/* The mean of some rows, rounded; 0 where that is not finite. Any center is right, a central one filters best. */
static void mlki_knn_center(const mlki_knn *knn, float *center) {
  const int64_t rows = mlki_min(knn->n, MLKI_KNN_CENTER_ROWS);
  int64_t i, j;
  for (j = 0; j < knn->d; j++) center[j] = 0.0f;
  for (i = 0; i < rows; i++) {
    const float *x = knn->x.p + (knn->n / rows * i) * knn->x.rs;
    for (j = 0; j < knn->d; j++) center[j] += x[j * knn->x.cs] / (float)rows;
  }
  for (j = 0; j < knn->d; j++)
    if (!(fabsf(center[j]) <= FLT_MAX)) center[j] = 0.0f;
}

/* Packs the queries of a block as the filter multiplies them, and notes what their limits need. */
static void mlki_knn_pack_queries(mlki_knn_job *job, const float *q, int64_t q_rs, int64_t count) {
  const mlki_knn *knn = job->knn;
  const int64_t height = mlki_panel_rows(count, knn->row->mr);
  const int centered = mlki_metric_pair(knn->metric) == MLKI_PAIR_L2;
  int64_t i, j;
  for (i = 0; i < count; i++) {
    const int64_t panel = i / height * height;
    float *to = job->packed_q + panel * knn->d + i % height;
    const int64_t pitch = mlki_min(height, count - panel);
    const float *from = q + i * q_rs;
    double norm2 = 0.0, scale = -2.0;
    int exponent = 0;
    for (j = 0; j < knn->d; j++) {
      const float t = centered ? from[j] - job->center[j] : from[j];
      norm2 += (double)t * (double)t;
    }
    job->filter_m[i] = norm2 < (double)MLKI_NORM2_MAX ? norm2 : -1.0;
    if (!centered) {
      if (!(norm2 > (double)MLKI_NORM2_MIN)) job->filter_m[i] = -1.0;
      if (job->filter_m[i] > 0) {
        frexp(sqrt(norm2), &exponent);
        scale = knn->metric == MLK_COSINE ? -1.0 / sqrt(norm2) : -ldexp(1.0, 1 - exponent);
        job->filter_m[i] = -scale;
      }
    }
    for (j = 0; j < knn->d; j++) {
      const float t = centered ? from[j] - job->center[j] : from[j];
      to[j * pitch] = (float)(scale * (double)t);
    }
  }
}

/* The limit of query i of the block: above it a pair cannot enter the heap. See the bounds at the head of the
   section. */
static float mlki_knn_limit(const mlki_knn_job *job, int64_t i) {
  const mlki_knn *knn = job->knn;
  double key, limit;
  float rounded;
  if (job->heap_size[i] < knn->kept || job->filter_m[i] < 0) return INFINITY;
  key = (double)job->heap[i * knn->kept].key;
  if (knn->metric == MLK_COSINE)
    limit = key + knn->bound;
  else if (knn->metric == MLK_INNER_PRODUCT)
    limit = key * job->filter_m[i];
  else
    limit = (knn->metric == MLK_L2 ? key * key * (1.0 + 4 * MLKI_U) : key) * (1.0 + knn->relative) -
            (1.0 - knn->bound) * job->filter_m[i];
  limit += knn->underflow + fabs(limit) * 1e-12; /* and the rounding of this very expression */
  if (!(limit < 1e38)) return INFINITY;
  rounded = (float)limit;
  return (double)rounded < limit ? nextafterf(rounded, INFINITY) : rounded;
}

/* The defined key of one pair. */
static float mlki_knn_key(const mlki_knn_job *job, const float *q, int64_t i, int64_t id) {
  const mlki_knn *knn = job->knn;
  const mlki_pair pair = mlki_metric_pair(knn->metric);
  int64_t stride;
  const float *x = mlki_dense_rows(&knn->x, id, 1, knn->d, job->gathered, &stride);
  float sum;
  knn->row->pairs(pair, 1, 1, knn->d, q, 0, x, 0, 0, &sum, 0);
  sum = mlki_metric_distance(knn->metric, sum, job->norm_q[i],
                             knn->metric == MLK_COSINE ? mlki_norm(knn->row, x, knn->d) : 1.0f);
  return pair == MLKI_PAIR_IP ? -sum : sum;
}

/* One panel of queries against packed base rows [at, at + rows), behind seen others: filter, then re-rank what is left.
   Limits stand still for a step. The first, a panel of the base, is re-ranked whole; later ones are no longer
   than what came before them, so that of each query k or so of their rows pass, not all. */
static void mlki_knn_filter_panel(mlki_knn_job *job, const float *q, int64_t q_rs, int64_t panel, int64_t count,
                                  int64_t at, int64_t rows, int64_t seen) {
  const mlki_knn *knn = job->knn;
  const int64_t nr = knn->row->nr;
  int64_t from, step, h;
  for (from = 0; from < rows; from += step) {
    mlki_filter f;
    unsigned nearer = 0; /* a bit for each query of the panel: its heap has changed */
    int64_t hits;
    step = nr * mlki_max(1, mlki_min((seen + from) / nr, MLKI_FILTER_PANELS));
    f.q = job->packed_q + panel * knn->d, f.x = job->packed_x + from * knn->d;
    f.init = job->init + from, f.limit = job->limit + panel;
    f.rows = count, f.d = knn->d;
    f.panels = mlki_ceil_div(mlki_min(rows - from, step), nr);
    f.hits = job->hits;
    hits = knn->row->filter(&f);
    for (h = 0; h < hits; h++) {
      const int64_t row = job->hits[h] & 15, i = panel + row, id = at + from + (job->hits[h] >> 4);
      if (id >= at + rows) continue; /* padding of the last panel */
      if (mlki_heap_offer(job->heap + i * knn->kept, &job->heap_size[i], knn->kept,
                          mlki_knn_key(job, q + i * q_rs, i, id), id))
        nearer |= 1u << row;
    }
    for (h = 0; nearer; h++, nearer >>= 1)
      if (nearer & 1u) job->limit[panel + h] = mlki_knn_limit(job, panel + h);
  }
}

/* Queries [q0, q0 + count) against base rows [x0, x1) through the filter. */
static void mlki_knn_filter(mlki_knn_job *job, int64_t q0, int64_t count, int64_t x0, int64_t x1) {
  const mlki_knn *knn = job->knn;
  const int64_t nr = knn->row->nr, height = mlki_panel_rows(count, knn->row->mr);
  const int centered = mlki_metric_pair(knn->metric) == MLKI_PAIR_L2;
  int64_t q_rs, at, i;
  const float *q = mlki_knn_queries(job, q0, count, &q_rs);
  mlki_knn_pack_queries(job, q, q_rs, count);
  for (i = 0; i < count; i++) job->limit[i] = INFINITY;
  for (at = x0; at < x1; at += knn->block_rows) {
    const int64_t rows = mlki_min(knn->block_rows, x1 - at);
    for (i = 0; i < rows; i += nr) {
      float *panel = job->packed_x + i * knn->d;
      knn->row->pack(panel, mlki_min(rows - i, nr), nr, knn->d, knn->x.p + (at + i) * knn->x.rs, knn->x.rs, knn->x.cs);
      knn->row->knn_panel(knn->metric, panel, knn->d, centered ? job->center : NULL, knn->start_coefficient,
                          job->init + i);
    }
    for (i = 0; i < count; i += height)
      mlki_knn_filter_panel(job, q, q_rs, i, mlki_min(height, count - i), at, rows, at - x0);
  }
}

static void mlki_knn_reference(const mlki_knn *knn, mlki_neighbour *heap) {
  const int similarity = mlki_metric_pair(knn->metric) == MLKI_PAIR_IP;
  int64_t i, j;
  for (i = 0; i < knn->nq; i++) {
    int64_t size = 0;
    for (j = 0; j < knn->n; j++) {
      const float d = mlki_ref_distance(knn->metric, knn->d, knn->q.p + i * knn->q.rs, knn->q.cs,
                                        knn->x.p + j * knn->x.rs, knn->x.cs);
      mlki_heap_offer(heap, &size, knn->kept, similarity ? -d : d, j);
    }
    mlki_knn_emit(knn, i, heap, size);
  }
}

static void mlki_knn_task(void *arg, int index) {
  const mlki_knn *knn = (const mlki_knn *)arg;
  const int64_t q_begin = knn->split_base ? 0 : index * knn->task_queries,
                q_end = mlki_min(q_begin + knn->task_queries, knn->nq);
  const int64_t x0 = knn->split_base ? index * knn->task_rows : 0, x1 = mlki_min(x0 + knn->task_rows, knn->n);
  mlki_carver carver = {NULL, 0};
  mlki_knn_job job;
  int64_t q, i;
  carver.base = knn->workspace + (uint64_t)index * knn->task_bytes;
  mlki_knn_carve(knn, &carver, &job);
  if (knn->variant == MLKI_KNN_REFERENCE) {
    mlki_knn_reference(knn, job.heap);
    return;
  }
  if (knn->variant == MLKI_KNN_FILTER && mlki_metric_pair(knn->metric) == MLKI_PAIR_L2)
    mlki_knn_center(knn, job.center);
  for (q = q_begin; q < q_end; q += knn->block_queries) {
    const int64_t count = mlki_min(knn->block_queries, q_end - q);
    if (knn->variant == MLKI_KNN_SCAN)
      mlki_knn_scan(&job, q, count, x0, x1);
    else
      mlki_knn_filter(&job, q, count, x0, x1);
    for (i = 0; i < count && !knn->split_base; i++)
      mlki_knn_emit(knn, q + i, job.heap + i * knn->kept, job.heap_size[i]);
  }
}

/* After tasks that split the base: all heaps of a query into the first, which is then the result. All queries are in
   flight. */
static void mlki_knn_merge(const mlki_knn *knn) {
  mlki_knn_job first, other;
  int64_t i, e;
  int task;
  mlki_carver carver = {NULL, 0};
  carver.base = knn->workspace;
  mlki_knn_carve(knn, &carver, &first);
  for (task = 1; task < knn->tasks; task++) {
    carver.base = knn->workspace + (uint64_t)task * knn->task_bytes, carver.used = 0;
    mlki_knn_carve(knn, &carver, &other);
    for (i = 0; i < knn->nq; i++)
      for (e = 0; e < other.heap_size[i]; e++) {
        const mlki_neighbour *entry = &other.heap[i * knn->kept + e];
        mlki_heap_offer(first.heap + i * knn->kept, &first.heap_size[i], knn->kept, entry->key, entry->id);
      }
  }
  for (i = 0; i < knn->nq; i++) mlki_knn_emit(knn, i, first.heap + i * knn->kept, first.heap_size[i]);
}

/* Chooses variant, blocks, tasks and workspace. Nothing here changes the result. */
static mlk_status mlki_knn_block(mlk_context *ctx, mlki_knn *knn) {
  const int64_t nr = ctx->row->nr, mr = ctx->row->mr;
  const double work = (double)knn->nq * (double)knn->n * (double)mlki_max(knn->d, 1);
  int64_t limit = mlki_task_limit(ctx), entries, bytes;
  mlki_knn_job job;
  mlki_carver carver = {NULL, 0};

  if (knn->nq == 0 || knn->k == 0)
    knn->variant = MLKI_KNN_EMPTY;
  else if (ctx->reference)
    knn->variant = MLKI_KNN_REFERENCE;
  else
    knn->variant = knn->nq <= MLKI_KNN_SCAN_MAX || knn->d > MLKI_FILTER_D || knn->d == 0 || knn->n == 0
                       ? MLKI_KNN_SCAN
                       : MLKI_KNN_FILTER;

  /* queries in flight: heaps of at most 32 MiB where k allows, all queries where tasks split the base */
  knn->block_queries = knn->variant == MLKI_KNN_SCAN ? 2 * MLKI_KNN_SCAN_MAX : MLKI_KNN_QUERIES;
  knn->block_queries = mlki_min(knn->block_queries, mlki_max((int64_t)(2 << 20) / mlki_max(knn->kept, 1), mr));
  if (limit > (int64_t)(work / MLKI_TASK_WORK)) limit = mlki_max((int64_t)(work / MLKI_TASK_WORK), 1);
  knn->split_base = limit > 1 && knn->nq <= knn->block_queries && knn->nq < 16 * mr * limit && knn->n >= 4 * nr * limit;
  if (!knn->split_base && limit > knn->nq) limit = mlki_max(knn->nq, 1);
  if (knn->variant <= MLKI_KNN_REFERENCE) limit = 1, knn->split_base = 0;
  knn->task_queries = knn->split_base ? knn->nq : mlki_ceil_div(knn->nq, limit);
  knn->task_rows = knn->split_base ? mlki_round_up(mlki_ceil_div(knn->n, limit), nr) : knn->n;
  knn->tasks = (int)(knn->split_base ? mlki_ceil_div(knn->n, knn->task_rows)
                                     : mlki_max(mlki_ceil_div(knn->nq, mlki_max(knn->task_queries, 1)), 1));
  knn->block_queries = mlki_min(knn->block_queries, mlki_max(knn->task_queries, 1));
  if (knn->variant == MLKI_KNN_REFERENCE) knn->block_queries = 1;
  /* base rows packed at a time: half of level 2 */
  knn->block_rows = mlki_max(mlki_min(ctx->l2_bytes / 8 / mlki_max(knn->d, 1), 4096) / nr, 1) * nr;
  knn->block_rows = mlki_min(knn->block_rows, mlki_round_up(mlki_max(knn->n, 1), nr));

  if (mlki_mul_overflows(knn->block_queries, knn->kept, &entries) ||
      mlki_mul_overflows(entries, (int64_t)sizeof(mlki_neighbour), &bytes) ||
      mlki_mul_overflows(bytes, 2 * knn->tasks, &bytes))
    return mlki_fail(ctx, MLK_ERR_SIZE, "k: %lld neighbours of %lld queries do not fit in 63 bits of workspace",
                     (long long)knn->k, (long long)knn->block_queries);
  if (knn->variant == MLKI_KNN_EMPTY) {
    knn->task_bytes = 0;
    return MLK_OK;
  }
  if (knn->variant == MLKI_KNN_REFERENCE)
    mlki_carve(&carver, knn->kept, sizeof(mlki_neighbour));
  else
    mlki_knn_carve(knn, &carver, &job);
  knn->task_bytes = carver.used;
  return MLK_OK;
}

/* What a search through the filter takes besides its 2 Q N D, in flops of the same time: packing the base, once for
   each block of queries; and re-ranking what the filter leaves. Of rows in random order the i-th is among the nearest k
   with probability k / i, so behind the first f, all of which are re-ranked, k log(rows / f) of a task's rows are. The
   cycles are those of a Zen 5, of 4 flops a lane; elsewhere a calibration scales them. */
static double mlki_knn_aside(const mlki_knn *knn) {
  const double pack = 0.5, rerank = 15.0, rerank_element = 0.3, rerank_level = 42.0; /* cycles */
  const int64_t blocks = (knn->split_base ? 1 : knn->tasks) * mlki_ceil_div(knn->task_queries, knn->block_queries);
  const double rows = (double)knn->task_rows,
               first = (double)mlki_max(mlki_min(knn->kept, knn->task_rows), knn->row->nr);
  const double ranked = first < rows ? first + (double)knn->kept * log(rows / first) : rows;
  const double each = rerank + rerank_element * (double)knn->d + rerank_level * log2((double)knn->kept + 1.0);
  return 4.0 * knn->row->lanes *
         (pack * (double)blocks * (double)knn->n * (double)knn->d +
          (double)knn->nq * (double)(knn->split_base ? knn->tasks : 1) * ranked * each);
}

static void mlki_knn_constants(mlki_knn *knn) {
  const double d = (double)knn->d, r = d / 16 + 8;
  knn->relative = 2.0 * r * MLKI_U / (1.0 - r * MLKI_U);
  knn->underflow = (4 * d + 64) * (double)FLT_MIN;
  if (knn->metric == MLK_COSINE) {
    knn->bound = (3 * d + 64) * MLKI_U * 1.02;
    knn->start_coefficient = 0.0f;
  } else if (knn->metric == MLK_INNER_PRODUCT) {
    knn->bound = 2 * (d + d / 16 + 24) * MLKI_U * 1.02;
    knn->start_coefficient = (float)(knn->bound * 1.000001);
    knn->underflow += knn->bound * ldexp(sqrt(d), -60);
  } else {
    knn->bound = 3 * (d + 8) * MLKI_U * 1.02;
    knn->start_coefficient = (float)((1.0 - knn->bound) * 0.9999999);
  }
}

/* queries and base: [Q, D] and [N, D] f32. */
static mlk_status mlki_check_vectors(mlk_context *ctx, mlk_tensor *queries, mlk_tensor *base, mlki_extent *eq,
                                     mlki_extent *ex, mlki_mat *q, mlki_mat *x) {
  mlk_status status;
  if ((status = mlki_check_tensor(ctx, "queries", queries, MLK_F32, 2, 2, eq)) != MLK_OK) return status;
  if ((status = mlki_check_tensor(ctx, "base", base, MLK_F32, 2, 2, ex)) != MLK_OK) return status;
  if (queries->shape[1] != base->shape[1])
    return mlki_fail(ctx, MLK_ERR_SHAPE, "base: rows have %lld elements, but those of queries have %lld",
                     (long long)base->shape[1], (long long)queries->shape[1]);
  if ((status = mlki_broadcast(ctx, "queries", queries, queries->shape, 2, q)) != MLK_OK) return status;
  return mlki_broadcast(ctx, "base", base, base->shape, 2, x);
}

/* One output of k-NN: [Q, k], last axis dense, overlapping nothing else. */
static mlk_status mlki_knn_output(mlk_context *ctx, const char *name, mlk_tensor *t, mlk_dtype dtype, int64_t nq,
                                  int64_t k, mlki_extent *extent) {
  mlk_status status = mlki_check_tensor(ctx, name, t, dtype, 2, 2, extent);
  if (status) return status;
  if (t->shape[0] != nq || t->shape[1] != k)
    return mlki_fail(ctx, MLK_ERR_SHAPE, "%s: matrix is %lld x %lld, but must be Q x k = %lld x %lld", name,
                     (long long)t->shape[0], (long long)t->shape[1], (long long)nq, (long long)k);
  if (k > 1 && t->stride[1] != 1)
    return mlki_fail(ctx, MLK_ERR_SHAPE, "%s: stride of the last axis is %lld, but must be 1", name,
                     (long long)t->stride[1]);
  return mlki_check_output(ctx, name, t, extent);
}

/* 2 Q N D and the bytes of all operands. */
static mlk_status mlki_knn_cost(mlk_context *ctx, int64_t nq, int64_t n, int64_t d, int64_t *flops) {
  if (mlki_mul_overflows(nq, n, flops) || mlki_mul_overflows(*flops, d, flops) || mlki_mul_overflows(*flops, 2, flops))
    return mlki_fail(ctx, MLK_ERR_SIZE,
                     "base: the number of operations, 2 x %lld x %lld x %lld, does not fit in 63 bits", (long long)nq,
                     (long long)n, (long long)d);
  return MLK_OK;
}

static mlk_status mlki_check_metric(mlk_context *ctx, mlk_metric metric) {
  if ((int)metric >= 0 && metric < MLK_METRIC_COUNT) return MLK_OK;
  return mlki_fail(ctx, MLK_ERR_ARGUMENT, "metric: is %d, but must be 0 to %d", (int)metric, MLK_METRIC_COUNT - 1);
}

static mlk_status mlki_knn_prepare(mlk_context *ctx, const mlk_knn_desc *desc, int run, mlki_knn *knn) {
  mlk_tensor queries, base, ids, distances;
  mlki_extent eq, ex, ei, ed;
  mlk_status status;
  int64_t flops, last;
  if (!desc) return mlki_fail(ctx, MLK_ERR_ARGUMENT, "desc: is NULL");
  queries = desc->queries, base = desc->base, ids = desc->ids, distances = desc->distances;
  memset(knn, 0, sizeof *knn);
  if ((status = mlki_check_metric(ctx, desc->metric)) != MLK_OK) return status;
  if (desc->k < 0) return mlki_fail(ctx, MLK_ERR_ARGUMENT, "k: is %lld, but must be at least 0", (long long)desc->k);
  if ((status = mlki_check_vectors(ctx, &queries, &base, &eq, &ex, &knn->q, &knn->x)) != MLK_OK) return status;
  knn->row = ctx->row, knn->metric = desc->metric;
  knn->nq = queries.shape[0], knn->n = base.shape[0], knn->d = base.shape[1];
  knn->k = desc->k, knn->kept = mlki_min(desc->k, knn->n), knn->first_id = desc->first_id;
  if ((status = mlki_knn_cost(ctx, knn->nq, knn->n, knn->d, &flops)) != MLK_OK) return status;
  if (desc->first_id < 0)
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "first_id: is %lld, but must be at least 0", (long long)desc->first_id);
  if (mlki_add_overflows(desc->first_id, mlki_max(knn->n - 1, 0), &last))
    return mlki_fail(ctx, MLK_ERR_SIZE, "first_id: is %lld, so the last row number does not fit in 63 bits",
                     (long long)desc->first_id);
  if ((status = mlki_knn_output(ctx, "ids", &ids, MLK_I64, knn->nq, knn->k, &ei)) != MLK_OK) return status;
  if ((status = mlki_check_apart(ctx, run, "ids", &ids, &ei, "queries", &queries, &eq)) != MLK_OK) return status;
  if ((status = mlki_check_apart(ctx, run, "ids", &ids, &ei, "base", &base, &ex)) != MLK_OK) return status;
  knn->ids = (int64_t *)ids.data, knn->ids_rs = ids.stride[0];
  ed.count = 0;
  if (distances.data) {
    if ((status = mlki_knn_output(ctx, "distances", &distances, MLK_F32, knn->nq, knn->k, &ed)) != MLK_OK)
      return status;
    if ((status = mlki_check_apart(ctx, run, "distances", &distances, &ed, "queries", &queries, &eq)) != MLK_OK)
      return status;
    if ((status = mlki_check_apart(ctx, run, "distances", &distances, &ed, "base", &base, &ex)) != MLK_OK)
      return status;
    if ((status = mlki_check_apart(ctx, run, "distances", &distances, &ed, "ids", &ids, &ei)) != MLK_OK) return status;
    knn->distances = (float *)distances.data, knn->distances_rs = distances.stride[0];
  }
  knn->flops = (uint64_t)flops;
  knn->bytes = 4 * (uint64_t)(eq.stored + ex.stored + ed.count) + 8 * (uint64_t)ei.count;
  mlki_knn_constants(knn);
  return mlki_knn_block(ctx, knn);
}

/* >>distances ----------------------------------------------------------------------------------------------------
   The base is cut into steps of rows that tasks take in turn; a step meets all queries while it is in
   cache. */
#define MLKI_DISTANCE_ROWS    64
#define MLKI_DISTANCE_QUERIES 32

typedef struct mlki_distances {
  const mlki_kernels *row;
  mlk_metric metric;
  int64_t nq, n, d;
  mlki_mat q, x, out;
  int reference, tasks;
  int64_t steps, next;
  uint64_t task_bytes;
  char *workspace;
  uint64_t flops, bytes;
} mlki_distances;

static void mlki_distances_carve(const mlki_distances *dist, mlki_carver *c, float **query, float **gathered) {
  *query = dist->q.cs == 1 ? NULL : (float *)mlki_carve(c, MLKI_DISTANCE_QUERIES * dist->d, 4);
  *gathered = dist->x.cs == 1 ? NULL : (float *)mlki_carve(c, MLKI_DISTANCE_ROWS * dist->d, 4);
}

/* Base rows [x0, x0 + rows) against all queries. */
static void mlki_distances_step(const mlki_distances *dist, int64_t x0, int64_t rows, float *query, float *gathered) {
  float sums[MLKI_DISTANCE_QUERIES * MLKI_DISTANCE_ROWS], norm_x[MLKI_DISTANCE_ROWS];
  int64_t q0, i, j, q_rs, x_rs;
  const float *x = mlki_dense_rows(&dist->x, x0, rows, dist->d, gathered, &x_rs);
  const int64_t ahead = mlki_rows_ahead(&dist->x, dist->n, dist->d);
  for (j = 0; j < rows; j++)
    norm_x[j] = dist->metric == MLK_COSINE ? mlki_norm(dist->row, x + j * x_rs, dist->d) : 1.0f;
  for (q0 = 0; q0 < dist->nq; q0 += MLKI_DISTANCE_QUERIES) {
    const int64_t count = mlki_min(dist->nq - q0, MLKI_DISTANCE_QUERIES);
    const float *q = mlki_dense_rows(&dist->q, q0, count, dist->d, query, &q_rs);
    dist->row->pairs(mlki_metric_pair(dist->metric), count, rows, dist->d, q, q_rs, x, x_rs, ahead, sums,
                     MLKI_DISTANCE_ROWS);
    for (i = 0; i < count; i++) {
      const float norm_q = dist->metric == MLK_COSINE ? mlki_norm(dist->row, q + i * q_rs, dist->d) : 1.0f;
      float *out = dist->out.p + (q0 + i) * dist->out.rs + x0 * dist->out.cs;
      for (j = 0; j < rows; j++)
        out[j * dist->out.cs] = mlki_metric_distance(dist->metric, sums[i * MLKI_DISTANCE_ROWS + j], norm_q, norm_x[j]);
    }
  }
}

static void mlki_distances_task(void *arg, int index) {
  mlki_distances *dist = (mlki_distances *)arg;
  mlki_carver carver = {NULL, 0};
  float *query, *gathered;
  int64_t step, i, j;
  carver.base = dist->workspace + (uint64_t)index * dist->task_bytes;
  mlki_distances_carve(dist, &carver, &query, &gathered);
  if (dist->reference) {
    for (i = 0; i < dist->nq; i++)
      for (j = 0; j < dist->n; j++)
        dist->out.p[i * dist->out.rs + j * dist->out.cs] = mlki_ref_distance(
            dist->metric, dist->d, dist->q.p + i * dist->q.rs, dist->q.cs, dist->x.p + j * dist->x.rs, dist->x.cs);
    return;
  }
  while ((step = mlki_take(&dist->next)) < dist->steps)
    mlki_distances_step(dist, step * MLKI_DISTANCE_ROWS,
                        mlki_min(dist->n - step * MLKI_DISTANCE_ROWS, MLKI_DISTANCE_ROWS), query, gathered);
}

static mlk_status mlki_distances_prepare(mlk_context *ctx, const mlk_distances_desc *desc, int run,
                                         mlki_distances *dist) {
  mlk_tensor queries, base, out;
  mlki_extent eq, ex, eo;
  mlki_carver carver = {NULL, 0};
  float *query, *gathered;
  mlk_status status;
  int64_t flops;
  double work;
  if (!desc) return mlki_fail(ctx, MLK_ERR_ARGUMENT, "desc: is NULL");
  queries = desc->queries, base = desc->base, out = desc->out;
  memset(dist, 0, sizeof *dist);
  if ((status = mlki_check_metric(ctx, desc->metric)) != MLK_OK) return status;
  if ((status = mlki_check_vectors(ctx, &queries, &base, &eq, &ex, &dist->q, &dist->x)) != MLK_OK) return status;
  dist->row = ctx->row, dist->metric = desc->metric, dist->reference = ctx->reference;
  dist->nq = queries.shape[0], dist->n = base.shape[0], dist->d = base.shape[1];
  if ((status = mlki_knn_cost(ctx, dist->nq, dist->n, dist->d, &flops)) != MLK_OK) return status;
  if ((status = mlki_check_tensor(ctx, "out", &out, MLK_F32, 2, 2, &eo)) != MLK_OK) return status;
  if (out.shape[0] != dist->nq || out.shape[1] != dist->n)
    return mlki_fail(ctx, MLK_ERR_SHAPE, "out: matrix is %lld x %lld, but must be Q x N = %lld x %lld",
                     (long long)out.shape[0], (long long)out.shape[1], (long long)dist->nq, (long long)dist->n);
  if ((status = mlki_check_output(ctx, "out", &out, &eo)) != MLK_OK) return status;
  if ((status = mlki_check_apart(ctx, run, "out", &out, &eo, "queries", &queries, &eq)) != MLK_OK) return status;
  if ((status = mlki_check_apart(ctx, run, "out", &out, &eo, "base", &base, &ex)) != MLK_OK) return status;
  if ((status = mlki_broadcast(ctx, "out", &out, out.shape, 2, &dist->out)) != MLK_OK) return status;
  dist->flops = (uint64_t)flops;
  dist->bytes = 4 * (uint64_t)(eq.stored + ex.stored + eo.count);
  dist->steps = dist->nq ? mlki_ceil_div(dist->n, MLKI_DISTANCE_ROWS) : 0;
  work = (double)dist->nq * (double)dist->n * (double)dist->d;
  dist->tasks = (int)mlki_max(mlki_min(mlki_min(mlki_task_limit(ctx), (int64_t)(work / MLKI_TASK_WORK)), dist->steps),
                              1);
  if (dist->reference) dist->tasks = 1;
  if (!dist->reference && eo.count) mlki_distances_carve(dist, &carver, &query, &gathered);
  dist->task_bytes = carver.used;
  return MLK_OK;
}

/* >>map ----------------------------------------------------------------------------------------------------------
   Elementwise operators walk over several views at once. Axes are sorted by the output's strides, merged where every
   operand allows it, and cut into tiles of two axes; kernels get dense rows. An operand whose rows are not dense is
   gathered, a tile at a time, into a block on the stack: by square transposes where its dense axis is another one. */
#define MLKI_OPERANDS  4     /* views of one walk, the sorting output first */
#define MLKI_TILE      1024  /* elements of a tile that is gathered */
#define MLKI_TILE_SIDE 32    /* its sides where something is transposed */
#define MLKI_TURN_SIDE 64    /* sides of a tile that is transposed from view to view */
#define MLKI_RUN       16384 /* elements of a tile that is not */
#define MLKI_SHORT_ROW 32    /* rows below this are handed over several at a time */
#define MLKI_MAP_WORK  8     /* one element of a cheap map, in multiply-adds of MLKI_TASK_WORK: it waits for memory */

typedef struct mlki_walk {
  int rank, operands;                          /* axis 0 is the innermost */
  int64_t size[MLK_MAX_RANK];                  /* >= 1 */
  int64_t stride[MLKI_OPERANDS][MLK_MAX_RANK]; /* in elements */
  int64_t bytes[MLKI_OPERANDS];                /* of an element */
  int whole[MLKI_OPERANDS];                    /* rows must be dense: one value for all of a row will not do */
  char *p[MLKI_OPERANDS];
  int64_t tile[2], tiles[MLK_MAX_RANK], count; /* elements of a tile, tiles along each axis, all tiles */
  int flat;                                    /* tiles go to the kernel as one row */
  int turned;                                  /* a transposed copy: the tile goes from operand 1 to operand 0 */
} mlki_walk;

/* Adds a view; stride: in the axes of the output, outermost first. */
static void mlki_walk_add(mlki_walk *w, const mlk_tensor *t, const int64_t *stride, int rank, int whole) {
  const int k = w->operands++;
  int i;
  w->p[k] = (char *)t->data;
  w->bytes[k] = mlki_dtype_bytes(t->dtype);
  w->whole[k] = whole;
  for (i = 0; i < rank; i++) w->stride[k][rank - 1 - i] = stride[i];
}

/* Moves axis from to place to, the others keep their order. */
static void mlki_walk_move(mlki_walk *w, int from, int to) {
  const int step = from < to ? 1 : -1;
  int i, k;
  for (i = from; i != to; i += step) {
    int64_t t = w->size[i];
    w->size[i] = w->size[i + step], w->size[i + step] = t;
    for (k = 0; k < w->operands; k++)
      t = w->stride[k][i], w->stride[k][i] = w->stride[k][i + step], w->stride[k][i + step] = t;
  }
}

/* Axes of one element go, strides of the first operand become positive and ascending, neighbours merge. */
static void mlki_walk_merge(mlki_walk *w) {
  int i, j, k;
  for (i = w->rank - 1; i >= 0; i--)
    if (w->size[i] == 1) mlki_walk_move(w, i, --w->rank);
  for (i = 0; i < w->rank; i++) {
    for (k = w->operands - 1; k >= 0 && w->stride[0][i] < 0; k--) { /* operand 0, which decides, last */
      w->p[k] += (w->size[i] - 1) * w->stride[k][i] * w->bytes[k];
      w->stride[k][i] = -w->stride[k][i];
    }
    for (j = i; j > 0 && w->stride[0][j] < w->stride[0][j - 1]; j--) mlki_walk_move(w, j, j - 1);
  }
  for (i = 0; i + 1 < w->rank;) {
    for (k = 0; k < w->operands; k++)
      if (w->stride[k][i + 1] != w->size[i] * w->stride[k][i]) break;
    if (k < w->operands) {
      i++;
    } else {
      w->size[i] *= w->size[i + 1];
      mlki_walk_move(w, i + 1, --w->rank);
    }
  }
  for (; w->rank < 2; w->rank++) {
    w->size[w->rank] = 1;
    for (k = 0; k < w->operands; k++) w->stride[k][w->rank] = w->rank == 0;
  }
}

/* Are rows along axis 0 what kernels take: dense, or one value where that will do? */
static int mlki_walk_dense(const mlki_walk *w, int k) {
  return w->stride[k][0] == 1 || w->size[0] == 1 || (w->stride[k][0] == 0 && !w->whole[k]);
}

/* copies: of two f32 views, to be moved as they are. */
static void mlki_walk_tiles(mlki_walk *w, int copies) {
  int i, k, dense = 1, transposed = 0;
  for (k = 0; k < w->operands; k++) {
    if (mlki_walk_dense(w, k)) continue;
    dense = 0;
    for (i = 1; i < w->rank && !transposed; i++)
      if (w->stride[k][i] == 1) mlki_walk_move(w, i, 1), transposed = 1;
  }
  w->tile[1] = transposed ? mlki_min(w->size[1], MLKI_TILE_SIDE) : 1;
  w->flat = w->size[0] < MLKI_SHORT_ROW && w->size[1] > 1;
  w->tile[0] = mlki_min(w->size[0], (dense && !w->flat ? MLKI_RUN : MLKI_TILE) / w->tile[1]);
  if (!transposed || w->flat)
    w->tile[1] = mlki_min(w->size[1], (dense && !w->flat ? MLKI_RUN : MLKI_TILE) / w->tile[0]);
  w->turned = copies && transposed && w->stride[0][0] == 1 && w->stride[1][1] == 1;
  if (w->turned) {
    w->flat = 0;
    for (i = 0; i < 2; i++) w->tile[i] = mlki_min(w->size[i], MLKI_TURN_SIDE);
  }
  for (i = 0, w->count = 1; i < w->rank; i++) {
    w->tiles[i] = i < 2 ? mlki_ceil_div(w->size[i], w->tile[i]) : w->size[i];
    w->count *= w->tiles[i];
  }
}

/* Hands tiles [first, last) to body: pointers to their first elements, columns along axis 0, rows along axis 1. */
static void mlki_walk_run(const mlki_walk *w, int64_t first, int64_t last,
                          void (*body)(const void *job, char *const *p, int64_t cols, int64_t rows), const void *job) {
  int64_t at[MLK_MAX_RANK], left = first;
  char *p[MLKI_OPERANDS];
  int i, k;
  for (i = 0; i < w->rank; i++) at[i] = left % w->tiles[i], left /= w->tiles[i];
  for (; first < last; first++) {
    for (k = 0; k < w->operands; k++) {
      p[k] = w->p[k];
      for (i = 0; i < w->rank; i++) p[k] += at[i] * (i < 2 ? w->tile[i] : 1) * w->stride[k][i] * w->bytes[k];
    }
    body(job, p, mlki_min(w->tile[0], w->size[0] - at[0] * w->tile[0]),
         mlki_min(w->tile[1], w->size[1] - at[1] * w->tile[1]));
    for (i = 0; i < w->rank && ++at[i] == w->tiles[i]; i++) at[i] = 0;
  }
}

/* How many tasks share elements of that much work each. */
static int mlki_walk_tasks(const mlk_context *ctx, const mlki_walk *w, double work) {
  if (ctx->reference) return 1;
  return (int)mlki_max(mlki_min(mlki_min(mlki_task_limit(ctx), (int64_t)(work / MLKI_TASK_WORK)), w->count), 1);
}

/* to[r][c] = from[r * s1 + c * s0], elements of 1, 2, 4 or 8 bytes; scatter is the inverse. */
#define MLKI_MOVE_ELEMENTS(type, to_at, from_at)                                                                       \
  for (r = 0; r < rows; r++)                                                                                           \
    for (c = 0; c < cols; c++) ((type *)to)[to_at] = ((const type *)from)[from_at]

static void mlki_gather(const mlki_kernels *row, void *to, const void *from, int64_t bytes, int64_t s0, int64_t s1,
                        int64_t cols, int64_t rows) {
  int64_t r, c;
  if (bytes == 4 && (s0 == 1 || s1 == 1)) {
    row->pack((float *)to, cols, cols, rows, (const float *)from, s0, s1);
    return;
  }
  switch (bytes) {
  case 1: MLKI_MOVE_ELEMENTS(uint8_t, r * cols + c, r * s1 + c * s0); break;
  case 2: MLKI_MOVE_ELEMENTS(uint16_t, r * cols + c, r * s1 + c * s0); break;
  case 4: MLKI_MOVE_ELEMENTS(float, r *cols + c, r * s1 + c * s0); break;
  default: MLKI_MOVE_ELEMENTS(int64_t, r * cols + c, r * s1 + c * s0); break;
  }
}

static void mlki_scatter(void *to, const void *from, int64_t bytes, int64_t s0, int64_t s1, int64_t cols,
                         int64_t rows) {
  int64_t r, c;
  switch (bytes) {
  case 1: MLKI_MOVE_ELEMENTS(uint8_t, r * s1 + c * s0, r * cols + c); break;
  case 2: MLKI_MOVE_ELEMENTS(uint16_t, r * s1 + c * s0, r * cols + c); break;
  case 4: MLKI_MOVE_ELEMENTS(float, r *s1 + c * s0, r * cols + c); break;
  default: MLKI_MOVE_ELEMENTS(int64_t, r * s1 + c * s0, r * cols + c); break;
  }
}

/* One operand of a tile, ready for a kernel: rows of it at p + r * pitch (bytes), dense or, with steps 0, one value. */
typedef struct mlki_rows {
  char *p;
  int64_t pitch;
  int steps;
} mlki_rows;

/* Does operand k of this tile need the block? */
static int mlki_walk_gathers(const mlki_walk *w, int k, int64_t cols, int64_t rows) {
  if (w->flat && rows > 1)
    return !(w->stride[k][0] == 1 && w->stride[k][1] == cols) &&
           !(w->stride[k][0] == 0 && w->stride[k][1] == 0 && !w->whole[k]);
  return !mlki_walk_dense(w, k);
}

/* block: at least MLKI_TILE + 16 elements of operand k. read: with what is there. */
static mlki_rows mlki_walk_rows(const mlki_kernels *row, const mlki_walk *w, int k, char *p, int64_t cols, int64_t rows,
                                void *block, int read) {
  mlki_rows view;
  if (mlki_walk_gathers(w, k, cols, rows)) {
    if (read) mlki_gather(row, block, p, w->bytes[k], w->stride[k][0], w->stride[k][1], cols, rows);
    view.p = (char *)block;
    view.pitch = cols * w->bytes[k];
    view.steps = 1;
  } else {
    view.p = p;
    view.pitch = w->stride[k][1] * w->bytes[k];
    view.steps = w->stride[k][0] != 0 || (cols == 1 && !(w->flat && rows > 1));
  }
  return view;
}

/* Puts an output that was computed in the block where it belongs. */
static void mlki_walk_put(const mlki_walk *w, int k, char *p, int64_t cols, int64_t rows, const mlki_rows *view) {
  if (view->p != p) mlki_scatter(p, view->p, w->bytes[k], w->stride[k][0], w->stride[k][1], cols, rows);
}

typedef struct mlki_mapping {
  const mlki_kernels *row;
  mlki_walk walk; /* out, a, b */
  mlk_map_op op;
  mlk_activation activation;
  float alpha, beta;
  mlk_dtype from, to; /* of a and out */
  int tasks, reference, convert;
  uint64_t flops, bytes;
  mlk_tensor a, b, out; /* of the reference: strides in out's axes */
} mlki_mapping;

static void mlki_fill16(float *to, float x) {
  int i;
  for (i = 0; i < 16; i++) to[i] = x;
}

static void mlki_map_tile(const void *arg, char *const *p, int64_t cols, int64_t rows) {
  const mlki_mapping *m = (const mlki_mapping *)arg;
  const mlki_walk *w = &m->walk;
  const int has_b = w->operands > 2;
  float block[3][MLKI_TILE + 16], value[2][16];
  mlki_rows out = mlki_walk_rows(m->row, w, 0, p[0], cols, rows, block[0], 0), a, b;
  mlki_map_row row;
  int64_t r, n = rows;
  a = mlki_walk_rows(m->row, w, 1, p[1], cols, rows, block[1], 1);
  b = has_b ? mlki_walk_rows(m->row, w, 2, p[2], cols, rows, block[2], 1) : a;
  row.op = m->op, row.activation = m->activation, row.alpha = m->alpha, row.beta = m->beta;
  row.a_steps = a.steps, row.b_steps = b.steps;
  row.n = cols;
  if (w->flat) row.n = cols * rows, n = 1;
  for (r = 0; r < n; r++) {
    row.out = (float *)(void *)(out.p + r * out.pitch);
    row.a = (const float *)(const void *)(a.p + r * a.pitch);
    row.b = (const float *)(const void *)(b.p + r * b.pitch);
    if (!a.steps) mlki_fill16(value[0], *row.a), row.a = value[0];
    if (!b.steps) mlki_fill16(value[1], *row.b), row.b = value[1];
    m->row->map(&row);
  }
  mlki_walk_put(w, 0, p[0], cols, rows, &out);
}

/* n <= MLKI_TILE elements from one type to another, both dense. Everything but i64 passes through
   f32, which holds it. */
static void mlki_convert(const mlki_kernels *row, mlk_dtype from, const void *p, mlk_dtype to, void *q, int64_t n) {
  float buffer[MLKI_TILE];
  const int64_t *wide = (const int64_t *)p;
  const float *f = (const float *)p;
  int64_t j;
  if (from == to) {
    memcpy(q, p, (size_t)(n * mlki_dtype_bytes((int32_t)from)));
  } else if (from == MLK_I64 && to == MLK_U8) {
    for (j = 0; j < n; j++) ((uint8_t *)q)[j] = mlki_i64_to_u8(wide[j]);
  } else if (from == MLK_I64 && to == MLK_F32) {
    for (j = 0; j < n; j++) ((float *)q)[j] = (float)wide[j];
  } else if (from == MLK_I64) {
    for (j = 0; j < n; j++) buffer[j] = mlki_i64_to_odd(wide[j]);
    row->narrow(to, buffer, q, n);
  } else if (to == MLK_F32) {
    row->widen(from, p, (float *)q, n);
  } else {
    if (from != MLK_F32) row->widen(from, p, buffer, n), f = buffer;
    if (to == MLK_I64)
      for (j = 0; j < n; j++) ((int64_t *)q)[j] = mlki_f32_to_i64(f[j]);
    else
      row->narrow(to, f, q, n);
  }
}

static void mlki_convert_tile(const void *arg, char *const *p, int64_t cols, int64_t rows) {
  const mlki_mapping *m = (const mlki_mapping *)arg;
  const mlki_walk *w = &m->walk;
  int64_t block[2][MLKI_TILE + 16], value[16], r, j, n = rows, length = cols;
  mlki_rows out = mlki_walk_rows(m->row, w, 0, p[0], cols, rows, block[0], 0);
  mlki_rows a = mlki_walk_rows(m->row, w, 1, p[1], cols, rows, block[1], 1);
  if (w->flat) length = cols * rows, n = 1;
  for (r = 0; r < n; r++) {
    char *to = out.p + r * out.pitch;
    const char *from = a.p + r * a.pitch;
    if (a.steps) {
      for (j = 0; j < length; j += MLKI_TILE)
        mlki_convert(m->row, m->from, from + j * w->bytes[1], m->to, to + j * w->bytes[0],
                     mlki_min(length - j, MLKI_TILE));
    } else { /* one value, many times */
      mlki_convert(m->row, m->from, from, m->to, value, 1);
      for (j = 0; j < length; j++) memcpy(to + j * w->bytes[0], value, (size_t)w->bytes[0]);
    }
  }
  mlki_walk_put(w, 0, p[0], cols, rows, &out);
}

static void mlki_turn_tile(const void *arg, char *const *p, int64_t cols, int64_t rows) {
  const mlki_mapping *m = (const mlki_mapping *)arg;
  m->row->place((float *)(void *)p[0], cols, m->walk.stride[0][1], rows, (const float *)(const void *)p[1],
                m->walk.stride[1][0], 1);
}

static void mlki_map_task(void *arg, int index) {
  const mlki_mapping *m = (const mlki_mapping *)arg;
  const int64_t n = m->walk.count;
  if (m->reference)
    mlki_ref_map(m->op, m->activation, m->alpha, m->beta, &m->out, &m->a, m->walk.operands > 2 ? &m->b : NULL);
  else
    mlki_walk_run(&m->walk, n / m->tasks * index + mlki_min(index, n % m->tasks),
                  n / m->tasks * (index + 1) + mlki_min(index + 1, n % m->tasks),
                  m->convert       ? mlki_convert_tile
                  : m->walk.turned ? mlki_turn_tile
                                   : mlki_map_tile,
                  m);
}

static int mlki_map_has_b(mlk_map_op op) {
  return op == MLK_ADD || op == MLK_SUB || op == MLK_MUL || op == MLK_DIV || op == MLK_ACT_GRAD;
}

/* As mlki_check_tensor, for f32 or, where any is set, every element type. */
static mlk_status mlki_map_tensor(mlk_context *ctx, const char *name, mlk_tensor *t, int any, int min_rank,
                                  mlki_extent *extent) {
  if (any && (t->dtype < 0 || t->dtype >= MLK_DTYPE_COUNT))
    return mlki_fail(ctx, MLK_ERR_DTYPE, "%s: dtype is %d, but must be 0 to %d", name, (int)t->dtype,
                     MLK_DTYPE_COUNT - 1);
  return mlki_check_tensor(ctx, name, t, any ? (mlk_dtype)t->dtype : MLK_F32, min_rank, MLK_MAX_RANK, extent);
}

/* An input that may be the output itself, or lie apart from it. It gets the output's axes. */
static mlk_status mlki_map_input(mlk_context *ctx, int run, const char *name, mlk_tensor *t, int any,
                                 const mlk_tensor *out, const mlki_extent *eo, uint64_t *bytes) {
  int64_t stride[MLK_MAX_RANK];
  mlki_extent extent;
  mlk_status status = mlki_map_tensor(ctx, name, t, any, 0, &extent);
  int i;
  if (status) return status;
  *bytes += (uint64_t)(extent.stored * mlki_dtype_bytes(t->dtype));
  if ((status = mlki_broadcast_strides(ctx, name, t, "out", out->shape, out->rank, stride)) != MLK_OK) return status;
  if (!(t->dtype == out->dtype && mlki_same_view(t, out)))
    if ((status = mlki_check_apart(ctx, run, "out", out, eo, name, t, &extent)) != MLK_OK) return status;
  t->rank = out->rank;
  for (i = 0; i < t->rank; i++) t->shape[i] = out->shape[i], t->stride[i] = stride[i];
  return MLK_OK;
}

static mlk_status mlki_map_check(mlk_context *ctx, const mlk_map_desc *desc) {
  if (!desc) return mlki_fail(ctx, MLK_ERR_ARGUMENT, "desc: is NULL");
  if ((int)desc->op < 0 || desc->op >= MLK_MAP_OP_COUNT)
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "op: is %d, but must be 0 to %d", (int)desc->op, MLK_MAP_OP_COUNT - 1);
  if ((int)desc->activation < 0 || desc->activation >= MLK_ACTIVATION_COUNT)
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "activation: is %d, but must be 0 to %d", (int)desc->activation,
                     MLK_ACTIVATION_COUNT - 1);
  if (!mlki_map_has_b(desc->op) && desc->b.data)
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "b: is given, but op %d has no b", (int)desc->op);
  return MLK_OK;
}

static mlk_status mlki_map_prepare(mlk_context *ctx, const mlk_map_desc *desc, int run, mlki_mapping *m) {
  mlki_extent eo;
  mlk_status status;
  int i;
  memset(m, 0, sizeof *m);
  if ((status = mlki_map_check(ctx, desc)) != MLK_OK) return status;
  m->row = ctx->row, m->reference = ctx->reference;
  m->op = desc->op, m->activation = desc->activation;
  m->alpha = desc->alpha ? *desc->alpha : 1.0f, m->beta = desc->beta ? *desc->beta : 1.0f;
  m->a = desc->a, m->b = desc->b, m->out = desc->out;
  if ((status = mlki_map_tensor(ctx, "out", &m->out, m->op == MLK_COPY, 1, &eo)) != MLK_OK) return status;
  if ((status = mlki_check_output(ctx, "out", &m->out, &eo)) != MLK_OK) return status;
  if ((status = mlki_map_input(ctx, run, "a", &m->a, m->op == MLK_COPY, &m->out, &eo, &m->bytes)) != MLK_OK)
    return status;
  if (mlki_map_has_b(m->op))
    if ((status = mlki_map_input(ctx, run, "b", &m->b, 0, &m->out, &eo, &m->bytes)) != MLK_OK) return status;
  m->from = (mlk_dtype)m->a.dtype, m->to = (mlk_dtype)m->out.dtype;
  m->convert = m->from != MLK_F32 || m->to != MLK_F32;
  m->bytes += (uint64_t)(eo.count * mlki_dtype_bytes(m->out.dtype));
  m->flops = m->op == MLK_COPY ? 0 : (uint64_t)eo.count;
  m->tasks = 1;
  m->walk.rank = m->out.rank;
  for (i = 0; i < m->out.rank; i++) m->walk.size[m->out.rank - 1 - i] = m->out.shape[i];
  mlki_walk_add(&m->walk, &m->out, m->out.stride, m->out.rank, 1);
  mlki_walk_add(&m->walk, &m->a, m->a.stride, m->out.rank, 0);
  if (mlki_map_has_b(m->op)) mlki_walk_add(&m->walk, &m->b, m->b.stride, m->out.rank, 0);
  if (!eo.count) return MLK_OK; /* a walk of no tiles */
  mlki_walk_merge(&m->walk);
  mlki_walk_tiles(&m->walk, m->op == MLK_COPY && !m->convert);
  m->tasks = mlki_walk_tasks(ctx, &m->walk, (double)eo.count * (m->op > MLK_DIV ? 2 : 1) * MLKI_MAP_WORK);
  return MLK_OK;
}

static void mlki_map_execute(mlk_context *ctx, mlki_mapping *m) {
  if (m->reference || m->walk.count) mlki_parallel_for(ctx, m->tasks, mlki_map_task, m);
}

/* Reductions. The reduced axes keep their order, that of the elements' numbers; the kept axes are free. Whatever lies
   dense decides how: rows (16 lanes along the last reduced axis), or columns (one output a lane, the 16 lanes of
   NUMERICS as 16 accumulators). Where neither is, and where rows are so short that their ends would cost more than
   they, tiles are gathered: into columns, or with few outputs into rows. */
#define MLKI_REDUCE_WIDTH 128 /* columns that run together */
#define MLKI_REDUCE_DEPTH 128 /* rows of them between two visits of the lanes in memory; a multiple of 16 */
#define MLKI_REDUCE_SHORT 128 /* sums of fewer terms are turned into columns */

/* >>reduce --------------------------------------------------------------------------------------------------------- */

typedef enum mlki_reduce_variant {
  MLKI_REDUCE_ROWWISE,
  MLKI_REDUCE_COLUMNWISE,
  MLKI_REDUCE_TURNED, /* gathered into columns */
  MLKI_REDUCE_GATHERED,
  MLKI_REDUCE_REFERENCE
} mlki_reduce_variant;
static const char *const mlki_reduce_variant_names[] = {"rows", "columns", "turned", "gathered", "reference"};

typedef struct mlki_reduction {
  const mlki_kernels *row;
  mlk_reduce_op op;
  mlki_reduce_variant variant;
  const float *x;
  float *sums;         /* out, but ARGMAX */
  int64_t *ids;        /* out of ARGMAX */
  float beta;          /* 0: out is not read */
  int kept_rank, rank; /* kept and reduced axes, innermost first */
  int64_t kept_size[MLK_MAX_RANK], kept_x[MLK_MAX_RANK], kept_out[MLK_MAX_RANK];
  int64_t size[MLK_MAX_RANK], stride[MLK_MAX_RANK];
  int64_t kept, count;     /* outputs, elements of each */
  int64_t width, units;    /* outputs along kept axis 0 that one unit makes */
  int64_t segments, parts; /* of each sum; units are multiplied by parts when tasks share sums */
  float *partial;          /* parts > 1: [kept][segments] */
  int tasks;
  int64_t next;
  uint64_t flops, bytes, workspace_bytes;
} mlki_reduction;

static mlk_reduce_op mlki_reduce_join_op(mlk_reduce_op op) {
  return op == MLK_SUM_SQUARES || op == MLK_MEAN ? MLK_SUM : op == MLK_ARGMAX ? MLK_MAX : op;
}

/* Elements from element number from on that follow each other by one stride: how many of limit, the first at *run. */
static int64_t mlki_reduce_next(const mlki_reduction *r, int64_t from, int64_t limit, const float **run) {
  const int64_t at = from % r->size[0];
  int64_t left = from / r->size[0];
  int i;
  *run += at * r->stride[0];
  for (i = 1; i < r->rank; i++) *run += left % r->size[i] * r->stride[i], left /= r->size[i];
  return mlki_min(r->size[0] - at, limit);
}

/* Elements [from, to) of the sums of width outputs, x at the first one: their 16 lanes, then their tree. */
static void mlki_reduce_segment(const mlki_reduction *r, const float *x, int64_t width, int64_t from, int64_t to,
                                float *sums) {
  float lanes[16 * MLKI_REDUCE_WIDTH], block[MLKI_TILE + 16];
  const mlk_reduce_op op = r->op == MLK_ARGMAX ? MLK_MAX : r->op;
  const float start = mlki_ref_reduce_start(op);
  const int columns = r->variant == MLKI_REDUCE_COLUMNWISE || r->variant == MLKI_REDUCE_TURNED;
  int64_t j, n;
  if (start == 0.0f)
    memset(lanes, 0, (size_t)(16 * width) * sizeof *lanes);
  else
    for (j = 0; j < 16 * width; j++) lanes[j] = start;
  for (; from < to; from += n) {
    const float *run = x;
    n = mlki_reduce_next(r, from, to - from, &run);
    switch (r->variant) {
    case MLKI_REDUCE_COLUMNWISE:
      n = mlki_min(n, MLKI_REDUCE_DEPTH - from % 16);
      r->row->reduce_columns(op, lanes, width, run, r->stride[0], n, from % 16);
      break;
    case MLKI_REDUCE_TURNED:
      n = mlki_min(n, MLKI_TILE / width);
      mlki_gather(r->row, block, run, 4, r->kept_x[0], r->stride[0], width, n);
      r->row->reduce_columns(op, lanes, width, block, width, n, from % 16);
      break;
    case MLKI_REDUCE_ROWWISE: r->row->reduce_rows(op, lanes, width, run, r->kept_x[0], n, from % 16); break;
    default:
      n = mlki_min(n, MLKI_TILE);
      mlki_gather(r->row, block, run, 4, r->stride[0], 0, n, 1);
      r->row->reduce_rows(op, lanes, 1, block, 0, n, from % 16);
      break;
    }
  }
  if (columns)
    r->row->reduce_tree_columns(op, lanes, width, sums);
  else
    r->row->reduce_tree_rows(op, lanes, width, sums);
}

static void mlki_reduce_finish(const mlki_reduction *r, float *out, float total) {
  if (r->op == MLK_MEAN) total = total / (float)r->count;
  *out = r->beta != 0.0f ? mlki_fma1(r->beta, *out, total) : total;
}

/* Where the largest element of each of width outputs is: the first that equals most. */
static void mlki_reduce_argmax(const mlki_reduction *r, const float *x, int64_t width, const float *most,
                               int64_t *out) {
  int64_t first[MLKI_REDUCE_WIDTH], from, n, i, j, left = width;
  for (j = 0; j < width; j++) first[j] = -1;
  for (from = 0; left; from += n) { /* ends: each of them is somewhere */
    const float *run = x;
    n = mlki_reduce_next(r, from, r->count - from, &run);
    if (r->variant == MLKI_REDUCE_COLUMNWISE) {
      n = mlki_min(n, MLKI_REDUCE_DEPTH);
      left = r->row->find_columns(run, r->stride[0], n, width, most, from, first);
      continue;
    }
    for (j = 0; j < width; j++) {
      const float *row = run + j * r->kept_x[0];
      if (first[j] >= 0) continue;
      if (r->stride[0] == 1) {
        i = r->row->find(row, n, most[j]);
      } else {
        for (i = 0; i < n && !(row[i * r->stride[0]] == most[j]); i++)
          if (row[i * r->stride[0]] != row[i * r->stride[0]] && most[j] != most[j]) break;
      }
      if (i < n) first[j] = from + i, left--;
    }
  }
  for (j = 0; j < width; j++) out[j * r->kept_out[0]] = first[j];
}

/* Where unit number unit starts in x and out; gives how many outputs it makes. */
static int64_t mlki_reduce_place(const mlki_reduction *r, int64_t unit, int64_t *x, int64_t *out, int64_t *number) {
  const int64_t strips = mlki_ceil_div(r->kept_size[0], r->width), first = unit % strips * r->width;
  int64_t left = unit / strips;
  int i;
  *number = left * r->kept_size[0] + first;
  *x = first * r->kept_x[0], *out = first * r->kept_out[0];
  for (i = 1; i < r->kept_rank; i++) {
    *x += left % r->kept_size[i] * r->kept_x[i], *out += left % r->kept_size[i] * r->kept_out[i];
    left /= r->kept_size[i];
  }
  return mlki_min(r->width, r->kept_size[0] - first);
}

static void mlki_reduce_unit(const mlki_reduction *r, int64_t unit) {
  float total[MLKI_REDUCE_WIDTH], sums[MLKI_REDUCE_WIDTH];
  const mlk_reduce_op join = mlki_reduce_join_op(r->op);
  int64_t x, out, number, j, s, width = mlki_reduce_place(r, unit % r->units, &x, &out, &number);
  if (r->parts > 1) { /* one segment only: its sums are joined later */
    s = unit / r->units;
    mlki_reduce_segment(r, r->x + x, width, s * MLK_REDUCE_SEGMENT, mlki_min((s + 1) * MLK_REDUCE_SEGMENT, r->count),
                        sums);
    for (j = 0; j < width; j++) r->partial[(number + j) * r->segments + s] = sums[j];
    return;
  }
  mlki_reduce_segment(r, r->x + x, width, 0, mlki_min(MLK_REDUCE_SEGMENT, r->count), total);
  for (s = 1; s < r->segments; s++) {
    mlki_reduce_segment(r, r->x + x, width, s * MLK_REDUCE_SEGMENT, mlki_min((s + 1) * MLK_REDUCE_SEGMENT, r->count),
                        sums);
    for (j = 0; j < width; j++) total[j] = mlki_ref_reduce_step(join, total[j], sums[j]);
  }
  if (r->op == MLK_ARGMAX)
    mlki_reduce_argmax(r, r->x + x, width, total, r->ids + out);
  else
    for (j = 0; j < width; j++) mlki_reduce_finish(r, r->sums + out + j * r->kept_out[0], total[j]);
}

static void mlki_reduce_join(const mlki_reduction *r) {
  const mlk_reduce_op join = mlki_reduce_join_op(r->op);
  int64_t unit, x, out, number, j, s;
  for (unit = 0; unit < r->units; unit++) {
    const int64_t width = mlki_reduce_place(r, unit, &x, &out, &number);
    for (j = 0; j < width; j++) {
      const float *part = r->partial + (number + j) * r->segments;
      float total = part[0];
      for (s = 1; s < r->segments; s++) total = mlki_ref_reduce_step(join, total, part[s]);
      mlki_reduce_finish(r, r->sums + out + j * r->kept_out[0], total);
    }
  }
}

static void mlki_reduce_task(void *arg, int index) {
  mlki_reduction *r = (mlki_reduction *)arg;
  int64_t unit, x, out, number, size[MLK_MAX_RANK], stride[MLK_MAX_RANK];
  int i;
  (void)index;
  if (r->variant != MLKI_REDUCE_REFERENCE) {
    while ((unit = mlki_take(&r->next)) < r->units * r->parts) mlki_reduce_unit(r, unit);
    return;
  }
  for (i = 0; i < r->rank; i++) size[r->rank - 1 - i] = r->size[i], stride[r->rank - 1 - i] = r->stride[i];
  for (unit = 0; unit < r->units; unit++) {
    mlki_reduce_place(r, unit, &x, &out, &number);
    if (r->op == MLK_ARGMAX)
      r->ids[out] = mlki_ref_argmax(r->x + x, r->rank, size, stride, r->count);
    else
      mlki_reduce_finish(r, r->sums + out, mlki_ref_reduce_value(r->op, r->x + x, r->rank, size, stride, r->count));
  }
}

/* Fits out to the kept axes of x, and lists kept and reduced axes. */
static mlk_status mlki_reduce_axes(mlk_context *ctx, const mlk_tensor *x, const mlk_tensor *out, unsigned axes,
                                   mlki_reduction *r) {
  const int whole = out->rank == x->rank; /* reduced axes are there, of size 1 */
  int i, at = out->rank - 1, reduced = 0;
  for (i = 0; i < x->rank; i++) reduced += (int)(axes >> i & 1);
  if (!whole && out->rank != mlki_max(x->rank - reduced, 1))
    return mlki_fail(ctx, MLK_ERR_SHAPE, "out: rank is %d, but must be %d, or %d with the reduced axes left out",
                     (int)out->rank, (int)x->rank, (int)mlki_max(x->rank - reduced, 1));
  if (!whole && x->rank == reduced && out->shape[0] != 1)
    return mlki_fail(ctx, MLK_ERR_SHAPE, "out: size of axis 0 is %lld, but must be 1: every axis is reduced",
                     (long long)out->shape[0]);
  r->count = r->kept = 1;
  for (i = x->rank - 1; i >= 0; i--) {
    const int gone = (int)(axes >> i & 1);
    if (gone) {
      r->size[r->rank] = x->shape[i], r->stride[r->rank] = x->stride[i];
      r->rank++;
      r->count *= x->shape[i];
    }
    if (whole || !gone) {
      const int64_t want = gone ? 1 : x->shape[i];
      if (out->shape[at] != want)
        return mlki_fail(ctx, MLK_ERR_SHAPE, "out: size of axis %d is %lld, but must be %lld", at,
                         (long long)out->shape[at], (long long)want);
      if (!gone) {
        r->kept_size[r->kept_rank] = want;
        r->kept_x[r->kept_rank] = x->stride[i], r->kept_out[r->kept_rank] = out->stride[at];
        r->kept_rank++;
        r->kept *= want;
      }
      at--;
    }
  }
  return MLK_OK;
}

static void mlki_swap(int64_t *a, int64_t *b) {
  const int64_t t = *a;
  *a = *b;
  *b = t;
}

static mlki_reduce_variant mlki_reduce_choose(const mlki_reduction *r) {
  const int wide = r->kept_size[0] >= 16, dense = r->stride[0] == 1 || r->size[0] == 1;
  const int brief = r->size[0] < 16 || r->count < MLKI_REDUCE_SHORT; /* rows end too often */
  if (r->kept_x[0] == 1 && r->kept_size[0] > 1 && (!dense || (wide && brief))) return MLKI_REDUCE_COLUMNWISE;
  if (wide && (dense ? brief : r->kept_x[0] < r->stride[0])) return MLKI_REDUCE_TURNED;
  return dense ? MLKI_REDUCE_ROWWISE : MLKI_REDUCE_GATHERED;
}

/* Merges what merges, and chooses the variant. Only for count > 0 and kept > 0. */
static void mlki_reduce_arrange(mlki_reduction *r) {
  int i, j, k;
  for (i = 0, k = 0; i < r->rank; i++) { /* reduced axes keep their order */
    if (r->size[i] == 1) continue;
    if (k > 0 && r->stride[i] == r->size[k - 1] * r->stride[k - 1])
      r->size[k - 1] *= r->size[i];
    else
      r->size[k] = r->size[i], r->stride[k++] = r->stride[i];
  }
  if (k == 0) r->size[0] = 1, r->stride[0] = 1, k = 1;
  r->rank = k;
  for (i = 0, k = 0; i < r->kept_rank; i++) { /* kept ones by their strides in x */
    if (r->kept_size[i] == 1) continue;
    r->kept_size[k] = r->kept_size[i], r->kept_x[k] = r->kept_x[i], r->kept_out[k] = r->kept_out[i];
    if (r->kept_x[k] < 0) {
      r->x += (r->kept_size[k] - 1) * r->kept_x[k];
      if (r->op == MLK_ARGMAX)
        r->ids += (r->kept_size[k] - 1) * r->kept_out[k];
      else
        r->sums += (r->kept_size[k] - 1) * r->kept_out[k];
      r->kept_x[k] = -r->kept_x[k], r->kept_out[k] = -r->kept_out[k];
    }
    for (j = k; j > 0 && r->kept_x[j] < r->kept_x[j - 1]; j--) {
      mlki_swap(&r->kept_x[j], &r->kept_x[j - 1]);
      mlki_swap(&r->kept_out[j], &r->kept_out[j - 1]);
      mlki_swap(&r->kept_size[j], &r->kept_size[j - 1]);
    }
    k++;
  }
  if (k == 0) r->kept_size[0] = 1, r->kept_x[0] = 1, r->kept_out[0] = 1, k = 1;
  for (i = 0, j = 1; j < k; j++) { /* neighbours of both views merge */
    if (r->kept_x[j] == r->kept_size[i] * r->kept_x[i] && r->kept_out[j] == r->kept_size[i] * r->kept_out[i]) {
      r->kept_size[i] *= r->kept_size[j];
    } else {
      i++;
      r->kept_size[i] = r->kept_size[j], r->kept_x[i] = r->kept_x[j], r->kept_out[i] = r->kept_out[j];
    }
  }
  r->kept_rank = i + 1;
  r->variant = mlki_reduce_choose(r);
  r->width = mlki_min(r->kept_size[0], r->variant == MLKI_REDUCE_ROWWISE    ? MLKI_REDUCE_ROWS
                                       : r->variant == MLKI_REDUCE_GATHERED ? 1
                                       : r->variant == MLKI_REDUCE_TURNED   ? MLKI_REDUCE_WIDTH / 2
                                                                            : MLKI_REDUCE_WIDTH);
}

/* share: may tasks share one sum? That takes a workspace. */
static mlk_status mlki_reduce_prepare(mlk_context *ctx, const mlk_reduce_desc *desc, int run, int share,
                                      mlki_reduction *r) {
  mlk_tensor x, out;
  mlki_extent ex, eo;
  mlk_status status;
  double work;
  int argmax;
  memset(r, 0, sizeof *r);
  if (!desc) return mlki_fail(ctx, MLK_ERR_ARGUMENT, "desc: is NULL");
  if ((int)desc->op < 0 || desc->op >= MLK_REDUCE_OP_COUNT)
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "op: is %d, but must be 0 to %d", (int)desc->op, MLK_REDUCE_OP_COUNT - 1);
  x = desc->x, out = desc->out, argmax = desc->op == MLK_ARGMAX;
  if ((status = mlki_check_tensor(ctx, "x", &x, MLK_F32, 1, MLK_MAX_RANK, &ex)) != MLK_OK) return status;
  if ((status = mlki_check_tensor(ctx, "out", &out, argmax ? MLK_I64 : MLK_F32, 1, MLK_MAX_RANK, &eo)) != MLK_OK)
    return status;
  if (desc->axes == 0 || desc->axes >> x.rank)
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "axes: is 0x%x, but must have one of the bits 0 to %d set and no other",
                     desc->axes, (int)x.rank - 1);
  if (desc->beta && (argmax || desc->op == MLK_MAX || desc->op == MLK_MIN))
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "beta: is given, but MAX, MIN and ARGMAX take none");
  if ((status = mlki_reduce_axes(ctx, &x, &out, desc->axes, r)) != MLK_OK) return status;
  if ((status = mlki_check_output(ctx, "out", &out, &eo)) != MLK_OK) return status;
  if ((status = mlki_check_apart(ctx, run, "out", &out, &eo, "x", &x, &ex)) != MLK_OK) return status;
  r->row = ctx->row, r->op = desc->op, r->beta = desc->beta ? *desc->beta : 0.0f;
  r->x = (const float *)x.data;
  r->sums = (float *)out.data, r->ids = (int64_t *)out.data;
  r->flops = (uint64_t)ex.count * (r->op == MLK_SUM_SQUARES ? 2 : 1);
  r->bytes = 4 * (uint64_t)ex.stored + (uint64_t)(eo.count * (argmax ? 8 : 4) * (r->beta != 0.0f ? 2 : 1));
  r->parts = 1, r->tasks = 1, r->width = 1;
  r->segments = mlki_ceil_div(r->count, MLK_REDUCE_SEGMENT);
  if (!r->kept) return MLK_OK; /* no units */
  if (r->count) mlki_reduce_arrange(r);
  if (!r->count || ctx->reference) { /* one output at a time; over nothing there is nothing to arrange */
    mlki_reduction plain = *r;
    memset(r, 0, sizeof *r);
    (void)mlki_reduce_axes(ctx, &x, &out, desc->axes, r);
    r->row = plain.row, r->op = plain.op, r->beta = plain.beta, r->flops = plain.flops, r->bytes = plain.bytes;
    r->x = (const float *)x.data, r->sums = (float *)out.data, r->ids = (int64_t *)out.data;
    r->parts = 1, r->tasks = 1, r->width = 1, r->segments = plain.segments, r->variant = MLKI_REDUCE_REFERENCE;
    if (!r->kept_rank) r->kept_size[0] = 1, r->kept_rank = 1;
  }
  work = (double)ex.count * MLKI_MAP_WORK / MLKI_TASK_WORK;
  if (r->variant == MLKI_REDUCE_COLUMNWISE && work >= 2) /* narrower strips, so that there is one for each task */
    r->width = mlki_min(r->width, mlki_round_up(mlki_ceil_div(r->kept, mlki_task_limit(ctx)), 16));
  r->units = r->kept / r->kept_size[0] * mlki_ceil_div(r->kept_size[0], r->width);
  if (r->variant == MLKI_REDUCE_REFERENCE) return MLK_OK;
  if (share && !argmax && r->segments > 1 && r->units < 4 * (int64_t)mlki_task_limit(ctx) && work >= 2) {
    r->parts = r->segments;
    r->workspace_bytes = 4 * (uint64_t)(r->kept * r->segments);
  }
  r->tasks = (int)mlki_max(mlki_min(mlki_min(mlki_task_limit(ctx), (int64_t)work), r->units * r->parts), 1);
  return MLK_OK;
}

static mlk_status mlki_reduce_execute(mlk_context *ctx, mlki_reduction *r) {
  const mlk_status status = mlki_workspace(ctx, r->workspace_bytes);
  if (status) return status;
  r->partial = (float *)mlki_workspace_base(ctx);
  r->next = 0;
  mlki_parallel_for(ctx, r->tasks, mlki_reduce_task, r);
  if (r->parts > 1) mlki_reduce_join(r);
  return MLK_OK;
}

/* >>optimizers ----------------------------------------------------------------------------------------------------- */

/* Clipping by the global norm. Every tensor is summed by itself and the sums are added in order. */
static mlk_status mlki_clip_sum(mlk_context *ctx, const mlk_tensor *grad, float *sum, mlki_reduction *r) {
  mlk_reduce_desc desc;
  memset(&desc, 0, sizeof desc);
  desc.op = MLK_SUM_SQUARES;
  desc.x = *grad;
  desc.out = mlki_view_f32(sum, 1, MLKI_END, MLKI_END, MLKI_END, MLKI_END, MLKI_END, MLKI_END);
  desc.axes = (1u << grad->rank) - 1u;
  return mlki_reduce_prepare(ctx, &desc, 1, 1, r);
}

static mlk_status mlki_clip_scale(mlk_context *ctx, const mlk_tensor *grad, const float *factor, mlki_mapping *m) {
  mlk_map_desc desc;
  memset(&desc, 0, sizeof desc);
  desc.op = MLK_SCALE;
  desc.a = desc.out = *grad;
  desc.alpha = factor;
  return mlki_map_prepare(ctx, &desc, 0, m);
}

static mlk_status mlki_clip_check(mlk_context *ctx, const mlk_clip_norm_desc *desc, int run) {
  int64_t i, j;
  char name[32], other_name[32];
  if (!desc) return mlki_fail(ctx, MLK_ERR_ARGUMENT, "desc: is NULL");
  if (desc->count < 0)
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "count: is %lld, but must be at least 0", (long long)desc->count);
  if (desc->count && !desc->grads)
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "grads: is NULL, but the argument is required");
  if (!(desc->max_norm > 0.0f))
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "max_norm: is %g, but must be above 0", (double)desc->max_norm);
  for (i = 0; i < desc->count; i++) {
    mlk_tensor t = desc->grads[i], other;
    mlki_extent extent, other_extent;
    mlk_status status;
    snprintf(name, sizeof name, "grads[%lld]", (long long)i);
    if ((status = mlki_check_tensor(ctx, name, &t, MLK_F32, 1, MLK_MAX_RANK, &extent)) != MLK_OK) return status;
    if ((status = mlki_check_output(ctx, name, &t, &extent)) != MLK_OK) return status;
    for (j = 0; j < i && run; j++) { /* a square of a number that is small */
      other = desc->grads[j];
      snprintf(other_name, sizeof other_name, "grads[%lld]", (long long)j);
      if ((status = mlki_check_tensor(ctx, other_name, &other, MLK_F32, 1, MLK_MAX_RANK, &other_extent)) != MLK_OK)
        return status;
      if ((status = mlki_check_apart(ctx, run, name, &t, &extent, other_name, &other, &other_extent)) != MLK_OK)
        return status;
    }
  }
  return MLK_OK;
}

typedef struct mlki_clip_plan {
  uint64_t flops, bytes, workspace_bytes;
  int tasks;
} mlki_clip_plan;

static mlk_status mlki_clip_prepare(mlk_context *ctx, const mlk_clip_norm_desc *desc, int run, mlki_clip_plan *clip) {
  mlk_status status = mlki_clip_check(ctx, desc, run);
  mlki_reduction r;
  mlki_mapping m;
  float sum;
  int64_t i;
  memset(clip, 0, sizeof *clip);
  clip->tasks = 1;
  if (status) return status;
  for (i = 0; i < desc->count && !status; i++) {
    if ((status = mlki_clip_sum(ctx, desc->grads + i, &sum, &r)) != MLK_OK) break;
    if ((status = mlki_clip_scale(ctx, desc->grads + i, NULL, &m)) != MLK_OK) break;
    clip->flops += r.flops + m.flops, clip->bytes += r.bytes - 4 + m.bytes;
    if (r.workspace_bytes > clip->workspace_bytes) clip->workspace_bytes = r.workspace_bytes;
    clip->tasks = (int)mlki_max(clip->tasks, r.tasks);
  }
  return status;
}

static mlk_status mlki_clip_run(mlk_context *ctx, const mlk_clip_norm_desc *desc) {
  float total = 0.0f, sum, norm, factor;
  mlki_reduction r;
  mlki_mapping m;
  mlk_status status;
  int64_t i;
  for (i = 0; i < desc->count; i++) {
    if ((status = mlki_clip_sum(ctx, desc->grads + i, &sum, &r)) != MLK_OK) return status;
    if ((status = mlki_reduce_execute(ctx, &r)) != MLK_OK) return status;
    total = i == 0 ? sum : total + sum;
  }
  norm = sqrtf(total);
  if (desc->norm) *desc->norm = norm;
  if (!(norm > desc->max_norm) || norm > FLT_MAX) return MLK_OK;
  factor = desc->max_norm / norm;
  for (i = 0; i < desc->count; i++) {
    if ((status = mlki_clip_scale(ctx, desc->grads + i, &factor, &m)) != MLK_OK) return status;
    mlki_map_execute(ctx, &m);
  }
  return MLK_OK;
}

/* Optimiser steps: the walk with param first, then grad and the moments. */
typedef struct mlki_step {
  const mlki_kernels *row;
  mlki_walk walk; /* param, grad, velocity; or param, grad, m, v */
  mlk_tensor tensors[MLKI_OPERANDS];
  mlki_optimizer constants;
  int adamw, tasks, reference;
  uint64_t flops, bytes;
} mlki_step;

static void mlki_step_tile(const void *arg, char *const *p, int64_t cols, int64_t rows) {
  const mlki_step *s = (const mlki_step *)arg;
  const mlki_walk *w = &s->walk;
  float block[MLKI_OPERANDS][MLKI_TILE + 16], *at[MLKI_OPERANDS] = {NULL, NULL, NULL, NULL};
  mlki_rows view[MLKI_OPERANDS];
  int64_t r, n = w->flat ? 1 : rows, length = w->flat ? cols * rows : cols;
  int k;
  for (k = 0; k < w->operands; k++) view[k] = mlki_walk_rows(s->row, w, k, p[k], cols, rows, block[k], 1);
  for (r = 0; r < n; r++) {
    for (k = 0; k < w->operands; k++) at[k] = (float *)(void *)(view[k].p + r * view[k].pitch);
    if (s->adamw)
      s->row->adamw(&s->constants, at[0], at[1], at[2], at[3], length);
    else
      s->row->sgd(&s->constants, at[0], at[1], at[2], length);
  }
  for (k = 0; k < w->operands; k++)
    if (k != 1) mlki_walk_put(w, k, p[k], cols, rows, &view[k]);
}

static void mlki_step_task(void *arg, int index) {
  const mlki_step *s = (const mlki_step *)arg;
  const int64_t n = s->walk.count;
  mlki_walk_run(&s->walk, n / s->tasks * index + mlki_min(index, n % s->tasks),
                n / s->tasks * (index + 1) + mlki_min(index + 1, n % s->tasks), mlki_step_tile, s);
}

static void mlki_step_reference(const mlki_step *s) {
  const mlk_tensor *t = s->tensors;
  int64_t count = 1, i;
  int axis, k;
  for (axis = 0; axis < t->rank; axis++) count *= t->shape[axis];
  for (i = 0; i < count; i++) {
    float *at[MLKI_OPERANDS] = {NULL, NULL, NULL, NULL};
    for (k = 0; k < s->walk.operands; k++)
      at[k] = (float *)t[k].data + mlki_ref_offset(t->rank, t->shape, t[k].stride, i);
    if (s->adamw)
      mlki_ref_adamw(&s->constants, at[0], *at[1], at[2], at[3]);
    else
      mlki_ref_sgd(&s->constants, at[0], *at[1], at[2]);
  }
}

static void mlki_step_execute(mlk_context *ctx, mlki_step *s) {
  if (s->reference)
    mlki_step_reference(s);
  else if (s->walk.count)
    mlki_parallel_for(ctx, s->tasks, mlki_step_task, s);
}

/* tensors[0 .. count): param, grad and the moments, of one shape; all but grad are written. */
static mlk_status mlki_step_prepare(mlk_context *ctx, int run, const char *const *names, mlk_tensor *tensors, int count,
                                    mlki_step *s) {
  mlki_extent extent[MLKI_OPERANDS];
  mlk_status status;
  int i, k;
  s->row = ctx->row, s->tasks = 1, s->reference = ctx->reference;
  for (k = 0; k < count; k++) {
    mlk_tensor *t = &tensors[k];
    if ((status = mlki_check_tensor(ctx, names[k], t, MLK_F32, 1, MLK_MAX_RANK, &extent[k])) != MLK_OK) return status;
    if (t->rank != tensors[0].rank)
      return mlki_fail(ctx, MLK_ERR_SHAPE, "%s: rank is %d, but param has %d axes", names[k], (int)t->rank,
                       (int)tensors[0].rank);
    for (i = 0; i < t->rank; i++)
      if (t->shape[i] != tensors[0].shape[i])
        return mlki_fail(ctx, MLK_ERR_SHAPE, "%s: size of axis %d is %lld, but must be %lld as in param", names[k], i,
                         (long long)t->shape[i], (long long)tensors[0].shape[i]);
    if (k != 1 && (status = mlki_check_output(ctx, names[k], t, &extent[k])) != MLK_OK) return status;
    for (i = 0; i < k; i++)
      if ((status = mlki_check_apart(ctx, run, names[k], t, &extent[k], names[i], &tensors[i], &extent[i])) != MLK_OK)
        return status;
    s->bytes += 4 * (uint64_t)(k == 1 ? extent[k].stored : 2 * extent[k].count);
  }
  s->walk.rank = tensors[0].rank;
  for (i = 0; i < s->walk.rank; i++) s->walk.size[s->walk.rank - 1 - i] = tensors[0].shape[i];
  for (k = 0; k < count; k++) mlki_walk_add(&s->walk, &tensors[k], tensors[k].stride, tensors[k].rank, 1);
  s->flops = (uint64_t)extent[0].count;
  if (!extent[0].count) return MLK_OK;
  mlki_walk_merge(&s->walk);
  mlki_walk_tiles(&s->walk, 0);
  s->tasks = mlki_walk_tasks(ctx, &s->walk, (double)extent[0].count * 2 * MLKI_MAP_WORK);
  return MLK_OK;
}

static int mlki_finite_from_0(float x) { return x >= 0.0f && x <= FLT_MAX; }

static mlk_status mlki_sgd_prepare(mlk_context *ctx, const mlk_sgd_desc *desc, int run, mlki_step *s) {
  static const char *const names[3] = {"param", "grad", "velocity"};
  mlk_tensor *tensors = s->tensors;
  mlk_status status;
  memset(s, 0, sizeof *s);
  if (!desc) return mlki_fail(ctx, MLK_ERR_ARGUMENT, "desc: is NULL");
  if (!mlki_finite_from_0(desc->lr))
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "lr: is %g, but must be finite and at least 0", (double)desc->lr);
  if (!mlki_finite_from_0(desc->momentum))
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "momentum: is %g, but must be finite and at least 0",
                     (double)desc->momentum);
  if (!mlki_finite_from_0(desc->weight_decay))
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "weight_decay: is %g, but must be finite and at least 0",
                     (double)desc->weight_decay);
  tensors[0] = desc->param, tensors[1] = desc->grad, tensors[2] = desc->velocity;
  status = mlki_step_prepare(ctx, run, names, tensors, desc->momentum != 0.0f || desc->velocity.data ? 3 : 2, s);
  s->flops *= s->walk.operands == 2 ? 4 : desc->nesterov ? 8 : 6;
  s->constants.lr = -desc->lr, s->constants.momentum = desc->momentum;
  s->constants.weight_decay = desc->weight_decay, s->constants.nesterov = desc->nesterov;
  return status;
}

/* x^n by squaring, lowest bit first. */
static double mlki_power(double x, int64_t n) {
  double y = 1.0;
  for (; n > 0; n >>= 1) {
    if (n & 1) y *= x;
    x *= x;
  }
  MLKI_OPAQUE(y);
  return y;
}

static void mlki_adamw_constants(const mlk_adamw_desc *desc, mlki_optimizer *o) {
  double decay = (double)desc->lr * (double)desc->weight_decay, mean, square;
  MLKI_OPAQUE(decay);
  o->beta1 = desc->beta1 == 0.0f ? 0.9f : desc->beta1;
  o->beta2 = desc->beta2 == 0.0f ? 0.999f : desc->beta2;
  o->epsilon = desc->epsilon == 0.0f ? 1e-8f : desc->epsilon;
  mean = 1.0 - mlki_power((double)o->beta1, desc->step);
  square = 1.0 - mlki_power((double)o->beta2, desc->step);
  o->b1 = (float)(1.0 - (double)o->beta1);
  o->b2 = (float)(1.0 - (double)o->beta2);
  o->d = (float)(1.0 - decay);
  o->r = (float)-((double)desc->lr / mean);
  o->q = (float)(1.0 / square);
}

static mlk_status mlki_adamw_prepare(mlk_context *ctx, const mlk_adamw_desc *desc, int run, mlki_step *s) {
  static const char *const names[4] = {"param", "grad", "m", "v"};
  mlk_tensor *tensors = s->tensors;
  mlk_status status;
  memset(s, 0, sizeof *s);
  if (!desc) return mlki_fail(ctx, MLK_ERR_ARGUMENT, "desc: is NULL");
  if (desc->step < 1)
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "step: is %lld, but must be at least 1", (long long)desc->step);
  if (!mlki_finite_from_0(desc->lr))
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "lr: is %g, but must be finite and at least 0", (double)desc->lr);
  if (!mlki_finite_from_0(desc->weight_decay))
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "weight_decay: is %g, but must be finite and at least 0",
                     (double)desc->weight_decay);
  if (!(desc->beta1 >= 0.0f && desc->beta1 < 1.0f))
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "beta1: is %g, but must be 0 to below 1", (double)desc->beta1);
  if (!(desc->beta2 >= 0.0f && desc->beta2 < 1.0f))
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "beta2: is %g, but must be 0 to below 1", (double)desc->beta2);
  if (!mlki_finite_from_0(desc->epsilon))
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "epsilon: is %g, but must be finite and at least 0", (double)desc->epsilon);
  tensors[0] = desc->param, tensors[1] = desc->grad, tensors[2] = desc->m, tensors[3] = desc->v;
  status = mlki_step_prepare(ctx, run, names, tensors, 4, s);
  s->adamw = 1;
  s->flops *= 14;
  mlki_adamw_constants(desc, &s->constants);
  return status;
}

/* >>layer --------------------------------------------------------------------------------------------------------
   Pooling, softmax, cross-entropy, normalisation, embedding, rotary positions: each operator is a struct that begins
   with a mlki_job, a function that prepares it (all checks; nothing is touched), bodies for the tasks, and the naive
   definition that MLK_ISA_REFERENCE runs. */

#define MLKI_JOB_PHASES 3

/* What prepared calls have in common. Tasks take units in bundles until none is left; with a second phase, all start
   again when the first is done, and so on. start and finish, if not NULL, run before and after, on the calling thread.
   The workspace is shared_bytes for all tasks, then task_bytes for each. */
typedef struct mlki_job {
  void (*start)(void *op);
  void (*phase[MLKI_JOB_PHASES])(void *op, int index); /* NULL: no more */
  void (*finish)(void *op);
  int64_t units[MLKI_JOB_PHASES], bundle[MLKI_JOB_PHASES];
  int64_t rounds, round; /* the phases run rounds times (0: once); round counts */
  int tasks;
  int64_t next;
  const mlki_kernels *row;
  uint64_t flops, bytes, shared_bytes, task_bytes;
  const char *variant;
  char *workspace;
} mlki_job;

/* work: of one unit, in multiply-adds. The reference is one task. */
static void mlki_job_phase(const mlk_context *ctx, mlki_job *job, int phase, void (*body)(void *op, int index),
                           int64_t units, double work) {
  const double worth = (double)units * work / MLKI_TASK_WORK;
  int64_t tasks = mlki_min(mlki_task_limit(ctx), units);
  if (worth < (double)tasks) tasks = (int64_t)worth;
  if (ctx->reference || tasks < 1) tasks = 1;
  job->phase[phase] = body;
  job->units[phase] = units;
  job->bundle[phase] = tasks == 1 ? mlki_max(units, 1) : mlki_max(units / (8 * tasks), 1);
  job->tasks = (int)mlki_max(job->tasks, tasks);
}

/* The next units [*first, *end) of a phase; 0: none is left. */
static int mlki_job_take(mlki_job *job, int phase, int64_t *first, int64_t *end) {
  const int64_t bundles = mlki_ceil_div(job->units[phase], job->bundle[phase]), turn = mlki_take(&job->next);
  if (turn >= bundles) return 0;
  *first = turn * job->bundle[phase];
  *end = mlki_min(*first + job->bundle[phase], job->units[phase]);
  return 1;
}

/* op: the struct that begins with job. */
static mlk_status mlki_job_run(mlk_context *ctx, mlki_job *job, void *op, mlk_op name, const void *desc) {
  int phase;
  mlk_status status;
  if (ctx->backend) return mlki_backend_run(ctx, name, desc, job->flops, job->bytes);
  status = mlki_workspace(ctx, job->shared_bytes + job->task_bytes * (uint64_t)job->tasks);
  if (status) return status;
  job->workspace = (char *)mlki_workspace_base(ctx);
  if (job->start) job->start(op);
  for (job->round = 0; mlki_max(job->rounds, 1) > job->round; job->round++) /* nvcc takes "round <" for a template */
    for (phase = 0; phase < MLKI_JOB_PHASES && job->phase[phase]; phase++) {
      job->next = 0;
      if (job->units[phase] > 0) mlki_parallel_for(ctx, job->tasks, job->phase[phase], op);
    }
  if (job->finish) job->finish(op);
  return MLK_OK;
}

/* status: what preparing the call gave. */
static mlk_status mlki_job_plan(mlk_context *ctx, const mlki_job *job, mlk_op op, const void *desc, mlk_status status,
                                mlk_plan *plan) {
  if (status) return status;
  if (!plan) return mlki_fail(ctx, MLK_ERR_ARGUMENT, "plan: is NULL");
  if (ctx->backend) return mlki_backend_plan(ctx, op, desc, job->flops, job->bytes, plan);
  mlki_fill_plan(ctx, plan, op, desc, job->flops, job->bytes,
                 job->shared_bytes + job->task_bytes * (uint64_t)job->tasks, job->tasks,
                 ctx->reference ? "reference" : job->variant);
  return MLK_OK;
}

/* t must have the first rank sizes of shape, which is that of like. */
static mlk_status mlki_check_sizes(mlk_context *ctx, const char *name, const mlk_tensor *t, const char *like,
                                   const int64_t *shape, int rank) {
  int i;
  if (t->rank != rank)
    return mlki_fail(ctx, MLK_ERR_SHAPE, "%s: rank is %d, but must be %d to go with %s", name, (int)t->rank, rank,
                     like);
  for (i = 0; i < rank; i++)
    if (t->shape[i] != shape[i])
      return mlki_fail(ctx, MLK_ERR_SHAPE, "%s: size of axis %d is %lld, but must be %lld to go with %s", name, i,
                       (long long)t->shape[i], (long long)shape[i], like);
  return MLK_OK;
}

/* A tensor argument of known shape; with output set also its strides. An optional one that is absent is left as it
   is, with an extent of nothing. */
static mlk_status mlki_check_shaped(mlk_context *ctx, const char *name, mlk_tensor *t, mlk_dtype dtype, int optional,
                                    int output, const char *like, const int64_t *shape, int rank, mlki_extent *extent) {
  mlk_status status;
  memset(extent, 0, sizeof *extent);
  if (optional && !t->data) return MLK_OK;
  if ((status = mlki_check_tensor(ctx, name, t, dtype, t->data ? 0 : rank, MLK_MAX_RANK, extent)) != MLK_OK)
    return status;
  if ((status = mlki_check_sizes(ctx, name, t, like, shape, rank)) != MLK_OK) return status;
  return output ? mlki_check_output(ctx, name, t, extent) : MLK_OK;
}

/* Bytes of count floats in the workspace. */
static uint64_t mlki_bytes(int64_t count) { return ((uint64_t)count * 4 + MLKI_ALIGN - 1) / MLKI_ALIGN * MLKI_ALIGN; }

/* --- rows: a view as a list of vectors along its last axis --- */

#define MLKI_ROW_BLOCK  16        /* rows that are made dense together */
#define MLKI_ROW_FLOATS (1 << 14) /* but no more floats than this, unless one row has */

/* Rows of a view [..., D]: axes before the last, merged where their strides allow it. */
typedef struct mlki_lines {
  char *p;
  int64_t bytes; /* of an element */
  int64_t step;  /* elements apart along the last axis */
  int axes;
  int64_t size[MLK_MAX_RANK], stride[MLK_MAX_RANK];
} mlki_lines;

/* t with explicit strides; its first axes axes count rows. */
static mlki_lines mlki_lines_of(const mlk_tensor *t, int axes) {
  mlki_lines v;
  int i;
  memset(&v, 0, sizeof v);
  if (!t->data) return v;
  v.p = (char *)t->data;
  v.bytes = t->dtype == MLK_I64 ? 8 : 4;
  v.step = axes < t->rank && t->shape[axes] > 1 ? t->stride[axes] : 1;
  for (i = 0; i < axes; i++) {
    if (t->shape[i] == 1) continue;
    if (v.axes && v.stride[v.axes - 1] == t->shape[i] * t->stride[i]) {
      v.size[v.axes - 1] *= t->shape[i];
      v.stride[v.axes - 1] = t->stride[i];
    } else {
      v.size[v.axes] = t->shape[i], v.stride[v.axes] = t->stride[i];
      v.axes++;
    }
  }
  return v;
}

static char *mlki_line_at(const mlki_lines *v, int64_t row) {
  int64_t offset = 0;
  int i;
  for (i = v->axes - 1; i > 0; i--) {
    offset += row % v->size[i] * v->stride[i];
    row /= v->size[i];
  }
  if (v->axes) offset += row * v->stride[0];
  return v->p + offset * v->bytes;
}

static float *mlki_line_f32(const mlki_lines *v, int64_t row) { return (float *)(void *)mlki_line_at(v, row); }
static int64_t *mlki_line_i64(const mlki_lines *v, int64_t row) { return (int64_t *)(void *)mlki_line_at(v, row); }

/* Rows made dense at once where the last axis is not. */
static int64_t mlki_line_block(int64_t d) {
  return mlki_max(mlki_min(MLKI_ROW_FLOATS / mlki_max(d, 1), MLKI_ROW_BLOCK), 1);
}

/* Dense rows of a block lie so far apart: not by a power of two, which would make them share a set of the cache. */
static int64_t mlki_line_pitch(int64_t d) { return mlki_round_up(d, 16) + 16; }

/* Bytes of space that rows of d elements need to be dense; none if they are. */
static uint64_t mlki_line_space(const mlki_lines *v, int64_t d) {
  return v->p && v->step != 1 ? mlki_bytes(mlki_line_block(d) * mlki_line_pitch(d)) : 0;
}

/* at[i]: row first + i in memory. Returns whether rows are neighbours there, which are moved by blocks. */
static int mlki_lines_at(const mlki_lines *v, int64_t first, int64_t rows, float **at) {
  int neighbours = v->step > 1;
  int64_t i;
  for (i = 0; i < rows; i++) {
    at[i] = mlki_line_f32(v, first + i);
    neighbours &= at[i] == at[0] + i;
  }
  return neighbours;
}

/* at[i]: dense row first + i, in place or, where the last axis is strided, in space. read: with what v holds. All rows
   of a block go together, so that neighbours in memory are met together. */
static void mlki_lines_in(const mlki_kernels *row, const mlki_lines *v, int64_t first, int64_t rows, int64_t d,
                          int read, float *space, float **at) {
  const int64_t pitch = mlki_line_pitch(d);
  float *from[MLKI_ROW_BLOCK];
  const int neighbours = mlki_lines_at(v, first, rows, from);
  int64_t i, j;
  for (i = 0; i < rows; i++) at[i] = v->step == 1 ? from[i] : space + i * pitch;
  if (v->step == 1 || !read) return;
  if (neighbours) {
    row->place(space, d, pitch, rows, from[0], v->step, 1);
    return;
  }
  for (j = 0; j < d; j++)
    for (i = 0; i < rows; i++) space[i * pitch + j] = from[i][j * v->step];
}

/* And back from space. */
static void mlki_lines_out(const mlki_kernels *row, const mlki_lines *v, int64_t first, int64_t rows, int64_t d,
                           const float *space) {
  const int64_t pitch = mlki_line_pitch(d);
  float *to[MLKI_ROW_BLOCK];
  const int neighbours = mlki_lines_at(v, first, rows, to);
  int64_t i, j;
  if (v->step == 1) return;
  if (neighbours) {
    row->place(to[0], rows, v->step, d, space, pitch, 1);
    return;
  }
  for (j = 0; j < d; j++)
    for (i = 0; i < rows; i++) to[i][j * v->step] = space[i * pitch + j];
}

/* --- ids, labels, places and positions must lie in a range --- */

#define MLKI_IDS_UNIT 4096

typedef struct mlki_ids {
  mlki_job job;
  mlki_lines v; /* one element a row */
  int64_t count, low, last, wrong;
} mlki_ids;

/* Whether an element in [first, end) is outside; *at: which is the first. */
static int mlki_ids_wrong(const mlki_ids *ids, int64_t first, int64_t end, int64_t *at) {
  const int64_t last = ids->v.axes - 1;
  const int64_t size = last < 0 ? 1 : ids->v.size[last], step = last < 0 ? 0 : ids->v.stride[last];
  while (first < end) {
    const int64_t run = mlki_min(end - first, size - first % size);
    const int64_t *id = mlki_line_i64(&ids->v, first);
    int64_t j;
    for (j = 0; j < run; j++)
      if (id[j * step] < ids->low || id[j * step] > ids->last) {
        *at = first + j;
        return 1;
      }
    first += run;
  }
  return 0;
}

static void mlki_ids_task(void *op, int index) {
  mlki_ids *ids = (mlki_ids *)op;
  int64_t unit, end, at;
  (void)index;
  while (mlki_job_take(&ids->job, 0, &unit, &end))
    if (mlki_ids_wrong(ids, unit * MLKI_IDS_UNIT, mlki_min(end * MLKI_IDS_UNIT, ids->count), &at))
      mlki_take(&ids->wrong);
}

/* Every element of t must be in [low, last]. */
static mlk_status mlki_check_ids(mlk_context *ctx, const char *name, const mlk_tensor *t, int64_t count, int64_t low,
                                 int64_t last) {
  mlki_ids ids;
  int64_t at = 0;
  memset(&ids, 0, sizeof ids);
  ids.v = mlki_lines_of(t, t->rank);
  ids.count = count, ids.low = low, ids.last = last;
  mlki_job_phase(ctx, &ids.job, 0, mlki_ids_task, mlki_ceil_div(count, MLKI_IDS_UNIT), MLKI_IDS_UNIT);
  if (count) mlki_parallel_for(ctx, ids.job.tasks, mlki_ids_task, &ids);
  if (!ids.wrong) return MLK_OK;
  mlki_ids_wrong(&ids, 0, count, &at);
  if (*mlki_line_i64(&ids.v, at) < low)
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "%s: element %lld is %lld, but must be at least %lld", name, (long long)at,
                     (long long)*mlki_line_i64(&ids.v, at), (long long)low);
  return mlki_fail(ctx, MLK_ERR_ARGUMENT, "%s: element %lld is %lld, but must be below %lld", name, (long long)at,
                   (long long)*mlki_line_i64(&ids.v, at), (long long)last + 1);
}

/* --- double precision ---
   For what is too delicate for f32 and not worth vectors. Products are hidden from the compiler, which would contract
   them into sums on some machines. */

static double mlki_mul64(double a, double b) {
  double p = a * b;
  MLKI_OPAQUE(p);
  return p;
}

/* log x for normal x > 0, within 2 units of the 52nd place: x = 2^k m with m in [sqrt(1/2), sqrt(2)], and
   log m = 2 artanh(s), s = (m - 1) / (m + 1), s^2 < 0.0295, by its series up to s^23. */
static double mlki_log64(double x) {
  uint64_t bits;
  int k, i;
  double m, s, q, p;
  memcpy(&bits, &x, 8);
  k = (int)(bits >> 52) - 1023;
  bits = (bits & 0xfffffffffffffull) | 0x3ff0000000000000ull;
  memcpy(&m, &bits, 8);
  if (m > 1.4142135623730951) m *= 0.5, k++;
  s = (m - 1.0) / (m + 1.0);
  q = mlki_mul64(s, s);
  p = 1.0 / 23.0;
  for (i = 21; i >= 3; i -= 2) p = mlki_mul64(p, q) + 1.0 / (double)i;
  p = mlki_mul64(mlki_mul64(2.0 * s, q), p) + 2.0 * s;
  p += mlki_mul64(k, 1.9082149292705877e-10); /* ln 2 in two parts; the product with the first, of 33 bits, is exact */
  return mlki_mul64(k, 0.693147180369123816490) + p;
}

/* log of a row's sum of exponentials: 1 or more (the largest element gives exp(0) = 1, and callers turn the 0 of a row
   of nothing but -infinity into 1), infinite or NaN. */
static float mlki_log_sum(float sum) { return sum >= 1.0f && sum <= FLT_MAX ? (float)mlki_log64((double)sum) : sum; }

/* >>pool ----------------------------------------------------------------------------------------------------------- */

/* One spatial axis. */
typedef struct mlki_window {
  int64_t in, out, size, stride, dilation, pad;
} mlki_window;

typedef struct mlki_pool {
  mlki_job job;
  mlk_pool_kind kind;
  int channels; /* vectors run along channels; else along the last axis */
  int naive;    /* the definition, one output at a time */
  int64_t n, c, area, parts;
  mlki_window axis[3]; /* missing ones, of size 1, come first */
  float *x, *y;        /* or the gradients of them */
  int64_t *indices;
  int64_t xs[5], ys[5], is[5]; /* strides of n, c and the three axes */
} mlki_pool;

#define MLKI_POOL_PART  16          /* outputs of a row that are one unit, where vectors run along channels */
#define MLKI_POOL_BLOCK 64          /* channels that are one unit of the gradient */
#define MLKI_POOL_PLACE (1ll << 24) /* places are counted in floats below this */

/* How many taps of the window of output o lie inside, and which is the first. */
static int64_t mlki_window_taps(const mlki_window *w, int64_t o, int64_t *first) {
  const int64_t base = o * w->stride - w->pad, room = w->in - 1 - base;
  const int one = w->dilation == 1; /* spares most calls the divisions */
  const int64_t low = base < 0 ? (one ? -base : mlki_ceil_div(-base, w->dilation)) : 0;
  const int64_t high = room >= 0 ? mlki_min((one ? room : room / w->dilation) + 1, w->size) : 0;
  *first = low;
  return mlki_max(high - low, 0);
}

/* The window of one output: taps and first tap of each axis, place of that tap in [in...], how many taps. */
static int64_t mlki_pool_window(const mlki_pool *p, const int64_t o[3], int64_t taps[3], int64_t first[3],
                                int64_t *place) {
  int64_t count = 1;
  int a;
  *place = 0;
  for (a = 0; a < 3; a++) {
    const mlki_window *w = &p->axis[a];
    taps[a] = mlki_window_taps(w, o[a], &first[a]);
    first[a] = o[a] * w->stride - w->pad + first[a] * w->dilation; /* from tap to element */
    *place = *place * w->in + first[a];
    count *= taps[a];
  }
  return count;
}

static float mlki_pool_divisor(const mlki_pool *p, int64_t count) {
  return p->kind == MLK_POOL_AVERAGE_PADDED ? (float)p->area : (float)count;
}

/* One output by the definition. */
static void mlki_ref_pool(const mlki_pool *p, int64_t n, int64_t c, const int64_t o[3]) {
  int64_t taps[3], first[3], place, best = -1, i[3];
  const int64_t count = mlki_pool_window(p, o, taps, first, &place);
  const int64_t at = n * p->ys[0] + c * p->ys[1] + o[0] * p->ys[2] + o[1] * p->ys[3] + o[2] * p->ys[4];
  float value = p->kind == MLK_POOL_MAX ? -INFINITY : 0.0f;
  for (i[0] = 0; i[0] < taps[0]; i[0]++)
    for (i[1] = 0; i[1] < taps[1]; i[1]++)
      for (i[2] = 0; i[2] < taps[2]; i[2]++) {
        int64_t offset = n * p->xs[0] + c * p->xs[1], here = 0;
        float e;
        int a;
        for (a = 0; a < 3; a++) {
          const int64_t element = first[a] + i[a] * p->axis[a].dilation;
          offset += element * p->xs[2 + a];
          here = here * p->axis[a].in + element;
        }
        e = p->x[offset];
        if (p->kind != MLK_POOL_MAX)
          value += e;
        else if (best < 0 || e > value || (e != e && value == value))
          value = e, best = here;
      }
  if (p->kind != MLK_POOL_MAX) value = count ? value / mlki_pool_divisor(p, count) : 0.0f;
  p->y[at] = value;
  if (p->indices) p->indices[n * p->is[0] + c * p->is[1] + o[0] * p->is[2] + o[1] * p->is[3] + o[2] * p->is[4]] = best;
}

/* count outputs from (n, c, o) on: channels where vectors run along them, else places along the last axis, whose
   windows are all inside there or which is one. Of the former, pixels along the last axis, inside or one. */
static void mlki_pool_outputs(const mlki_pool *p, int64_t n, int64_t c, const int64_t o[3], int64_t count,
                              int64_t pixels) {
  int64_t first[3], i;
  mlki_pool_run r;
  int a;
  const int64_t window = mlki_pool_window(p, o, r.taps, first, &r.place);
  r.n = count;
  r.largest = p->kind == MLK_POOL_MAX;
  r.x = p->x + n * p->xs[0] + c * p->xs[1];
  r.y = p->y + n * p->ys[0] + c * p->ys[1] + o[0] * p->ys[2] + o[1] * p->ys[3] + o[2] * p->ys[4];
  r.x_step = p->channels ? p->xs[1] : p->axis[2].stride * p->xs[4];
  r.y_step = p->channels ? p->ys[1] : p->ys[4];
  r.index_step = p->channels ? p->is[1] : p->is[4];
  r.place_step = p->channels ? 0 : p->axis[2].stride;
  r.divisor = mlki_pool_divisor(p, window);
  r.indices = NULL;
  if (p->indices)
    r.indices = p->indices + n * p->is[0] + c * p->is[1] + o[0] * p->is[2] + o[1] * p->is[3] + o[2] * p->is[4];
  for (a = 0; a < 3 && window; a++) {
    r.x += first[a] * p->xs[2 + a];
    r.tap_step[a] = p->axis[a].dilation * p->xs[2 + a];
    r.tap_place[a] = p->axis[a].dilation * (a < 2 ? p->axis[2].in : 1) * (a < 1 ? p->axis[1].in : 1);
  }
  for (;;) {
    if (window) p->job.row->pool(&r);
    for (i = 0; i < count && !window; i++) {
      r.y[i * r.y_step] = r.largest ? -INFINITY : 0.0f;
      if (r.indices) r.indices[i * r.index_step] = -1;
    }
    if (--pixels == 0) return;
    r.x += p->axis[2].stride * p->xs[4], r.y += p->ys[4], r.place += p->axis[2].stride;
    if (r.indices) r.indices += p->is[4];
  }
}

/* Outputs [from, to) of the row (n, c, o[0], o[1]). Where vectors run along the row, those whose windows the padding
   cuts are made one by one. */
static void mlki_pool_row(const mlki_pool *p, int64_t n, int64_t c, int64_t o[3], int64_t from, int64_t to) {
  const mlki_window *w = &p->axis[2];
  const int64_t reach = (w->size - 1) * w->dilation;
  int64_t inside = mlki_min(mlki_ceil_div(w->pad, w->stride), to), end, i;
  inside = p->naive ? to : mlki_max(inside, from), end = inside;
  if (inside < to && w->in - 1 - reach + w->pad >= 0)
    end = mlki_min(mlki_max((w->in - 1 - reach + w->pad) / w->stride + 1, inside), to);
  for (o[2] = from; o[2] < to; o[2]++) {
    if (o[2] == inside && inside < end) {
      mlki_pool_outputs(p, n, c, o, p->channels ? p->c : end - inside, p->channels ? end - inside : 1);
      o[2] = end - 1;
    } else if (p->naive) {
      for (i = 0; i < (p->channels ? p->c : 1); i++) mlki_ref_pool(p, n, c + i, o);
    } else {
      mlki_pool_outputs(p, n, c, o, p->channels ? p->c : 1, 1);
    }
  }
}

/* A unit is a row of outputs of one channel, or a part of one of all channels. */
static void mlki_pool_task(void *op, int index) {
  mlki_pool *p = (mlki_pool *)op;
  int64_t unit, end;
  (void)index;
  while (mlki_job_take(&p->job, 0, &unit, &end))
    for (; unit < end; unit++) {
      const int64_t part = unit % p->parts, row = unit / p->parts;
      const int64_t planes = p->channels ? 1 : p->c, plane = row / p->axis[1].out / p->axis[0].out;
      int64_t o[3], from = 0, to = p->axis[2].out;
      o[0] = row / p->axis[1].out % p->axis[0].out, o[1] = row % p->axis[1].out, o[2] = 0;
      if (p->parts > 1) from = part * MLKI_POOL_PART, to = mlki_min(from + MLKI_POOL_PART, to);
      mlki_pool_row(p, plane / planes, plane % planes, o, from, to);
    }
}

static mlk_status mlki_pool_axis(mlk_context *ctx, int i, int present, int64_t window, const mlk_conv_geometry *g,
                                 mlki_window *w) {
  int64_t span, room;
  if (!present) {
    if (window || g->stride[i] || g->dilation[i] || g->pad_before[i] || g->pad_after[i])
      return mlki_fail(ctx, MLK_ERR_ARGUMENT, "window, geometry: entry %d is set, but x has only %d spatial axes", i,
                       i);
    return MLK_OK;
  }
  if (window < 1)
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "window[%d]: is %lld, but must be at least 1", i, (long long)window);
  if (g->stride[i] < 0 || g->dilation[i] < 0 || g->pad_before[i] < 0 || g->pad_after[i] < 0)
    return mlki_fail(ctx, MLK_ERR_ARGUMENT,
                     "geometry: axis %d has stride %lld, dilation %lld, pad %lld and %lld, but none may be negative", i,
                     (long long)g->stride[i], (long long)g->dilation[i], (long long)g->pad_before[i],
                     (long long)g->pad_after[i]);
  w->size = window, w->pad = g->pad_before[i];
  w->stride = g->stride[i] ? g->stride[i] : 1, w->dilation = g->dilation[i] ? g->dilation[i] : 1;
  if (mlki_mul_overflows(window - 1, w->dilation, &span) || mlki_add_overflows(w->in, g->pad_before[i], &room) ||
      mlki_add_overflows(room, g->pad_after[i], &room) || mlki_add_overflows(room, w->stride, &span))
    return mlki_fail(ctx, MLK_ERR_SIZE, "geometry: the sizes of axis %d do not fit in 63 bits", i);
  span = (window - 1) * w->dilation + 1;
  w->out = room < span ? 0 : (room - span) / w->stride + 1;
  return MLK_OK;
}

/* What pooling and its gradient share: small, [N, C, out...], is the result of pooling big, [N, C, in...]. */
static mlk_status mlki_pool_shape(mlk_context *ctx, mlki_pool *p, mlk_pool_kind kind, const int64_t *window,
                                  const mlk_conv_geometry *g, const mlk_tensor *big, const char *small_name,
                                  const mlk_tensor *small) {
  const int spatial = big->rank - 2;
  int64_t shape[MLK_MAX_RANK];
  mlk_status status;
  int i;
  p->kind = kind;
  if ((int)kind < 0 || kind >= MLK_POOL_KIND_COUNT)
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "kind: is %d, but must be 0 to %d", (int)kind, MLK_POOL_KIND_COUNT - 1);
  if (g->groups != 0 && g->groups != 1)
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "geometry.groups: is %lld, but must be 0 or 1", (long long)g->groups);
  p->n = shape[0] = big->shape[0], p->c = shape[1] = big->shape[1], p->area = 1;
  for (i = 0; i < 3; i++) {
    mlki_window *w = &p->axis[i < spatial ? 3 - spatial + i : 2 - i];
    w->in = i < spatial ? big->shape[2 + i] : 1;
    w->out = w->size = w->stride = w->dilation = 1;
    if ((status = mlki_pool_axis(ctx, i, i < spatial, window[i], g, w)) != MLK_OK) return status;
    if (mlki_mul_overflows(p->area, w->size, &p->area))
      return mlki_fail(ctx, MLK_ERR_SIZE, "window: its elements do not fit in 63 bits");
    if (i < spatial) shape[2 + i] = w->out;
  }
  return mlki_check_sizes(ctx, small_name, small, "x, window and geometry", shape, big->rank);
}

/* Strides of n, c and three axes. */
static void mlki_pool_strides(const mlk_tensor *t, int64_t stride[5]) {
  const int missing = 5 - t->rank;
  int i;
  for (i = 0; i < 5; i++) stride[i] = i < 2 ? t->stride[i] : i < 2 + missing ? 0 : t->stride[i - missing];
}

/* Elements between the places of a window's first and last tap, at most. */
static double mlki_pool_span(const mlki_pool *p) {
  double span = 0.0;
  int a;
  for (a = 0; a < 3; a++)
    span = span * (double)p->axis[a].in + (double)(p->axis[a].size - 1) * (double)p->axis[a].dilation;
  return span;
}

/* Do vectors run along channels? Where those are dense, and where rows of outputs are short; else along rows. */
static int mlki_pool_along_channels(const mlki_pool *p) {
  if (p->c > 1 && p->xs[1] == 1) return 1;
  return p->xs[4] == 1 ? p->axis[2].out < 4 && p->c > 4 : p->c > p->axis[2].out;
}

static mlk_status mlki_pool_prepare(mlk_context *ctx, const mlk_pool_desc *desc, int run, mlki_pool *p) {
  mlk_tensor x, y, indices;
  mlki_extent ex, ey, ei;
  mlk_status status;
  int64_t rows, flops;
  if (!desc) return mlki_fail(ctx, MLK_ERR_ARGUMENT, "desc: is NULL");
  memset(p, 0, sizeof *p);
  x = desc->x, y = desc->y, indices = desc->indices;
  if ((status = mlki_check_tensor(ctx, "x", &x, MLK_F32, 3, 5, &ex)) != MLK_OK) return status;
  if ((status = mlki_check_tensor(ctx, "y", &y, MLK_F32, 3, 5, &ey)) != MLK_OK) return status;
  if ((status = mlki_pool_shape(ctx, p, desc->kind, desc->window, &desc->geometry, &x, "y", &y)) != MLK_OK)
    return status;
  if (indices.data && desc->kind != MLK_POOL_MAX)
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "indices: only MLK_POOL_MAX has them, but kind is %d", (int)desc->kind);
  if ((status = mlki_check_shaped(ctx, "indices", &indices, MLK_I64, 1, 1, "y", y.shape, y.rank, &ei)) != MLK_OK)
    return status;
  if ((status = mlki_check_output(ctx, "y", &y, &ey)) != MLK_OK) return status;
  if (mlki_mul_overflows(ey.count, p->area, &flops))
    return mlki_fail(ctx, MLK_ERR_SIZE, "window: the number of operations does not fit in 63 bits");
  if ((status = mlki_check_apart(ctx, run, "y", &y, &ey, "x", &x, &ex)) != MLK_OK) return status;
  if ((status = mlki_check_apart(ctx, run, "indices", &indices, &ei, "x", &x, &ex)) != MLK_OK) return status;
  if ((status = mlki_check_apart(ctx, run, "indices", &indices, &ei, "y", &y, &ey)) != MLK_OK) return status;
  p->x = (float *)x.data, p->y = (float *)y.data, p->indices = (int64_t *)indices.data;
  mlki_pool_strides(&x, p->xs);
  mlki_pool_strides(&y, p->ys);
  if (p->indices) mlki_pool_strides(&indices, p->is);
  p->channels = mlki_pool_along_channels(p);
  p->naive = ctx->reference || (p->indices && mlki_pool_span(p) >= (double)MLKI_POOL_PLACE);
  p->parts = p->channels ? mlki_max(mlki_ceil_div(p->axis[2].out, MLKI_POOL_PART), 1) : 1;
  rows = ey.count ? p->n * (p->channels ? 1 : p->c) * p->axis[0].out * p->axis[1].out * p->parts : 0;
  p->job.row = ctx->row;
  p->job.variant = p->channels ? "channels" : "rows";
  p->job.flops = (uint64_t)flops;
  p->job.bytes = 4 * (uint64_t)(ex.stored + ey.count) + 8 * (uint64_t)ei.count;
  mlki_job_phase(ctx, &p->job, 0, mlki_pool_task, rows, rows ? (double)flops / (double)rows : 0.0);
  return MLK_OK;
}

/* --- gradient of pooling: windows in ascending order add to the elements they cover --- */

/* Do places lie at even distances in the plane of x, xs[4] apart? */
static int mlki_pool_even(const mlki_pool *p) {
  return p->xs[3] == p->axis[2].in * p->xs[4] && p->xs[2] == p->axis[1].in * p->xs[3];
}

/* Where the element of a place lies in the plane of x. */
static int64_t mlki_pool_offset(const mlki_pool *p, int64_t place) {
  const mlki_window *w = p->axis;
  return place / (w[1].in * w[2].in) * p->xs[2] + place / w[2].in % w[1].in * p->xs[3] + place % w[2].in * p->xs[4];
}

/* Channels [c, c + count) of the gradient of x start from zero. */
static void mlki_pool_clear(const mlki_pool *p, int64_t n, int64_t c, int64_t count) {
  float *x = p->x + n * p->xs[0] + c * p->xs[1];
  int64_t i0, i1, i2, j;
  for (i0 = 0; i0 < p->axis[0].in; i0++)
    for (i1 = 0; i1 < p->axis[1].in; i1++) {
      float *row = x + i0 * p->xs[2] + i1 * p->xs[3];
      if ((count == 1 && p->xs[4] == 1) || (p->xs[1] == 1 && p->xs[4] == count)) {
        memset(row, 0, (size_t)(p->axis[2].in * count) * sizeof *row);
        continue;
      }
      for (i2 = 0; i2 < p->axis[2].in; i2++, row += p->xs[4])
        if (p->xs[1] == 1)
          memset(row, 0, (size_t)count * sizeof *row);
        else
          for (j = 0; j < count; j++) row[j * p->xs[1]] = 0.0f;
    }
}

/* The row (n, c .. c + count, o[0], o[1]) of outputs: each adds to the element that was its largest. */
static void mlki_pool_grad_max(const mlki_pool *p, int64_t n, int64_t c, int64_t count, const int64_t o[3]) {
  const float *dy = p->y + n * p->ys[0] + c * p->ys[1] + o[0] * p->ys[2] + o[1] * p->ys[3];
  const int64_t *indices = p->indices + n * p->is[0] + c * p->is[1] + o[0] * p->is[2] + o[1] * p->is[3];
  float *x = p->x + n * p->xs[0] + c * p->xs[1];
  const int64_t out = p->axis[2].out, is = p->is[4], ys = p->ys[4], xs = p->xs[4];
  const int even = mlki_pool_even(p), dense = even && p->is[1] == 1 && p->ys[1] == 1 && p->xs[1] == 1;
  int64_t i, j;
  for (i = 0; i < out; i++, indices += is, dy += ys) {
    if (dense) { /* channels of one output side by side: nothing but the place differs */
      for (j = 0; j < count; j++)
        if (indices[j] >= 0) x[indices[j] * xs + j] += dy[j];
      continue;
    }
    for (j = 0; j < count; j++) {
      const int64_t place = indices[j * p->is[1]];
      const int64_t offset = even ? place * xs : mlki_pool_offset(p, place);
      if (place >= 0) x[offset + j * p->xs[1]] += dy[j * p->ys[1]];
    }
  }
}

/* The same for averages where channels are dense: each output's share goes to all its window. */
static void mlki_pool_grad_channels(const mlki_pool *p, int64_t n, int64_t c, int64_t count, int64_t o[3]) {
  float share[MLKI_POOL_BLOCK];
  int64_t taps[3], first[3], place, t[3], j;
  for (o[2] = 0; o[2] < p->axis[2].out; o[2]++) {
    const float *dy = p->y + n * p->ys[0] + c * p->ys[1] + o[0] * p->ys[2] + o[1] * p->ys[3] + o[2] * p->ys[4];
    const int64_t window = mlki_pool_window(p, o, taps, first, &place);
    const float divisor = mlki_pool_divisor(p, window);
    float *x = p->x + n * p->xs[0] + c * p->xs[1];
    if (!window) continue;
    for (j = 0; j < count; j++) share[j] = dy[j] / divisor;
    for (t[0] = 0; t[0] < taps[0]; t[0]++)
      for (t[1] = 0; t[1] < taps[1]; t[1]++)
        for (t[2] = 0; t[2] < taps[2]; t[2]++)
          p->job.row->add(x + (first[0] + t[0] * p->axis[0].dilation) * p->xs[2] +
                              (first[1] + t[1] * p->axis[1].dilation) * p->xs[3] +
                              (first[2] + t[2] * p->axis[2].dilation) * p->xs[4],
                          share, count);
  }
}

/* Adds share, one for each output of a row, to the elements that tap t of their windows meets. */
static void mlki_pool_grad_tap(const mlki_pool *p, float *x, const float *share, int64_t t) {
  const mlki_window *w = &p->axis[2];
  const int64_t shift = t * w->dilation - w->pad, step = w->stride * p->xs[4];
  const int64_t from = shift < 0 ? mlki_ceil_div(-shift, w->stride) : 0;
  const int64_t to = shift < w->in ? mlki_min((w->in - 1 - shift) / w->stride + 1, w->out) : 0;
  int64_t o;
  if (from >= to) return;
  x += shift * p->xs[4];
  if (step == 1)
    p->job.row->add(x + from, share + from, to - from);
  else
    for (o = from; o < to; o++) x[o * step] += share[o];
}

/* And where they are not: taps of the last axis run backward, so that each element meets windows in ascending order. */
static void mlki_pool_grad_row(const mlki_pool *p, int64_t n, int64_t c, const int64_t o[3], float *share) {
  const float *dy = p->y + n * p->ys[0] + c * p->ys[1] + o[0] * p->ys[2] + o[1] * p->ys[3];
  const int64_t start[3] = {o[0], o[1], 0};
  float *x = p->x + n * p->xs[0] + c * p->xs[1];
  int64_t taps[3], first[3], place, t[3], i, tap;
  mlki_pool_window(p, start, taps, first, &place);
  for (i = 0; i < p->axis[2].out; i++) {
    const int64_t window = taps[0] * taps[1] * mlki_window_taps(&p->axis[2], i, &tap);
    share[i] = dy[i * p->ys[4]] / mlki_pool_divisor(p, mlki_max(window, 1));
  }
  for (t[0] = 0; t[0] < taps[0]; t[0]++)
    for (t[1] = 0; t[1] < taps[1]; t[1]++)
      for (t[2] = p->axis[2].size - 1; t[2] >= 0; t[2]--)
        mlki_pool_grad_tap(p,
                           x + (first[0] + t[0] * p->axis[0].dilation) * p->xs[2] +
                               (first[1] + t[1] * p->axis[1].dilation) * p->xs[3],
                           share, t[2]);
}

/* Whether the window of output o reaches element i, and how many taps it has inside. */
static int mlki_ref_reaches(const mlki_window *w, int64_t o, int64_t i, int64_t *taps) {
  const int64_t from_first = i + w->pad - o * w->stride;
  int64_t first;
  *taps = mlki_window_taps(w, o, &first);
  return from_first >= 0 && from_first % w->dilation == 0 && from_first / w->dilation < w->size;
}

/* One element of the gradient of an average by the definition. */
static float mlki_ref_pool_grad(const mlki_pool *p, int64_t n, int64_t c, const int64_t i[3]) {
  int64_t o[3], taps[3];
  float sum = 0.0f;
  for (o[0] = 0; o[0] < p->axis[0].out; o[0]++) {
    if (!mlki_ref_reaches(&p->axis[0], o[0], i[0], &taps[0])) continue;
    for (o[1] = 0; o[1] < p->axis[1].out; o[1]++) {
      if (!mlki_ref_reaches(&p->axis[1], o[1], i[1], &taps[1])) continue;
      for (o[2] = 0; o[2] < p->axis[2].out; o[2]++)
        if (mlki_ref_reaches(&p->axis[2], o[2], i[2], &taps[2]))
          sum += p->y[n * p->ys[0] + c * p->ys[1] + o[0] * p->ys[2] + o[1] * p->ys[3] + o[2] * p->ys[4]] /
                 mlki_pool_divisor(p, taps[0] * taps[1] * taps[2]);
    }
  }
  return sum;
}

/* A unit is a plane, or a block of channels of one image where they are dense. */
static void mlki_pool_grad_task(void *op, int index) {
  mlki_pool *p = (mlki_pool *)op;
  float *share = (float *)(void *)(p->job.workspace + (uint64_t)index * p->job.task_bytes);
  int64_t unit, end, i[3];
  while (mlki_job_take(&p->job, 0, &unit, &end))
    for (; unit < end; unit++) {
      const int64_t n = unit / p->parts, c = unit % p->parts * (p->channels ? MLKI_POOL_BLOCK : 1);
      const int64_t count = p->channels ? mlki_min(p->c - c, MLKI_POOL_BLOCK) : 1;
      if (p->naive && p->kind != MLK_POOL_MAX) {
        for (i[0] = 0; i[0] < p->axis[0].in; i[0]++)
          for (i[1] = 0; i[1] < p->axis[1].in; i[1]++)
            for (i[2] = 0; i[2] < p->axis[2].in; i[2]++)
              p->x[n * p->xs[0] + c * p->xs[1] + i[0] * p->xs[2] + i[1] * p->xs[3] + i[2] * p->xs[4]] =
                  mlki_ref_pool_grad(p, n, c, i);
        continue;
      }
      mlki_pool_clear(p, n, c, count);
      for (i[0] = 0; i[0] < p->axis[0].out; i[0]++)
        for (i[1] = 0; i[1] < p->axis[1].out; i[1]++) {
          if (p->kind == MLK_POOL_MAX)
            mlki_pool_grad_max(p, n, c, count, i);
          else if (p->channels)
            mlki_pool_grad_channels(p, n, c, count, i);
          else if (p->axis[2].out)
            mlki_pool_grad_row(p, n, c, i, share);
        }
    }
}

static mlk_status mlki_pool_grad_prepare(mlk_context *ctx, const mlk_pool_grad_desc *desc, int run, mlki_pool *p) {
  mlk_tensor dx, dy, indices;
  mlki_extent ex, ey, ei;
  mlk_status status;
  int64_t units, flops, places = 1;
  int i;
  if (!desc) return mlki_fail(ctx, MLK_ERR_ARGUMENT, "desc: is NULL");
  memset(p, 0, sizeof *p);
  dx = desc->dx, dy = desc->dy, indices = desc->indices;
  if ((status = mlki_check_tensor(ctx, "dx", &dx, MLK_F32, 3, 5, &ex)) != MLK_OK) return status;
  if ((status = mlki_check_tensor(ctx, "dy", &dy, MLK_F32, 3, 5, &ey)) != MLK_OK) return status;
  if ((status = mlki_pool_shape(ctx, p, desc->kind, desc->window, &desc->geometry, &dx, "dy", &dy)) != MLK_OK)
    return status;
  if (indices.data && desc->kind != MLK_POOL_MAX)
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "indices: only MLK_POOL_MAX has them, but kind is %d", (int)desc->kind);
  if ((status = mlki_check_shaped(ctx, "indices", &indices, MLK_I64, desc->kind != MLK_POOL_MAX, 0, "dy", dy.shape,
                                  dy.rank, &ei)) != MLK_OK)
    return status;
  if ((status = mlki_check_output(ctx, "dx", &dx, &ex)) != MLK_OK) return status;
  if (mlki_mul_overflows(ey.count, p->area, &flops))
    return mlki_fail(ctx, MLK_ERR_SIZE, "window: the number of operations does not fit in 63 bits");
  if ((status = mlki_check_apart(ctx, run, "dx", &dx, &ex, "dy", &dy, &ey)) != MLK_OK) return status;
  if ((status = mlki_check_apart(ctx, run, "dx", &dx, &ex, "indices", &indices, &ei)) != MLK_OK) return status;
  p->x = (float *)dx.data, p->y = (float *)dy.data, p->indices = (int64_t *)indices.data;
  mlki_pool_strides(&dx, p->xs);
  mlki_pool_strides(&dy, p->ys);
  if (p->kind == MLK_POOL_MAX) {
    mlki_pool_strides(&indices, p->is);
    for (i = 0; i < 3; i++) places *= p->axis[i].in;
    status = run && !ctx->backend ? mlki_check_ids(ctx, "indices", &indices, ei.count, INT64_MIN, places - 1) : MLK_OK;
    if (status) return status;
    flops = ey.count;
  }
  p->naive = ctx->reference;
  p->channels = !p->naive && p->c > 1 && p->xs[1] == 1 && p->ys[1] == 1;
  p->parts = p->channels ? mlki_ceil_div(p->c, MLKI_POOL_BLOCK) : p->c;
  units = ex.count ? p->n * p->parts : 0;
  p->job.row = ctx->row;
  p->job.variant = p->channels ? "channels" : "rows";
  p->job.flops = (uint64_t)flops;
  p->job.bytes = 4 * (uint64_t)(ex.count + ey.stored) + 8 * (uint64_t)ei.stored;
  if (p->kind != MLK_POOL_MAX && !p->channels && !p->naive) p->job.task_bytes = mlki_bytes(p->axis[2].out);
  mlki_job_phase(ctx, &p->job, 0, mlki_pool_grad_task, units,
                 units ? (double)(4 * flops + ex.count) / (double)units : 0.0);
  return MLK_OK;
}

/* >>softmax -------------------------------------------------------------------------------------------------------- */

typedef struct mlki_softmax {
  mlki_job job;
  int log, reference, entropy; /* entropy: cross-entropy; x: logits or, for the gradient, y */
  int64_t rows, d;
  mlki_lines x, dy, out, labels, loss;
  float scale;
} mlki_softmax;

/* The definition: x - max, its exponentials' sum in 16 lanes, 1 for a row of nothing but -infinity. */
static float mlki_ref_exp(float x) {
  float lane[MLKI_LANES_scalar];
  mlki_v_store_scalar(lane, mlki_exp_scalar(mlki_v_set1_scalar(x)));
  return lane[0];
}

static float mlki_ref_tree(float *lane) {
  int l, half;
  for (half = 8; half >= 1; half /= 2)
    for (l = 0; l < half; l++) lane[l] += lane[l + half];
  return lane[0];
}

static float mlki_ref_softmax_sum(const float *x, int64_t step, int64_t d, float *max) {
  float lane[16] = {0}, largest = -INFINITY, sum;
  int64_t j;
  for (j = 0; j < d; j++)
    if (x[j * step] > largest) largest = x[j * step];
  *max = largest == -INFINITY ? 0.0f : largest + 0.0f;
  for (j = 0; j < d; j++) lane[j % 16] += mlki_ref_exp(x[j * step] - *max);
  sum = mlki_ref_tree(lane);
  return sum == 0.0f ? 1.0f : sum;
}

/* Row r of softmax or log-softmax. */
static void mlki_ref_softmax(const mlki_softmax *s, int64_t r) {
  const float *x = mlki_line_f32(&s->x, r);
  float *y = mlki_line_f32(&s->out, r), max;
  const float sum = mlki_ref_softmax_sum(x, s->x.step, s->d, &max), log_sum = mlki_log_sum(sum);
  int64_t j;
  for (j = 0; j < s->d; j++) {
    const float t = x[j * s->x.step] - max;
    y[j * s->out.step] = s->log ? t - log_sum : mlki_ref_exp(t) / sum;
  }
}

/* Row r of cross-entropy. */
static void mlki_ref_cross_entropy(const mlki_softmax *s, int64_t r) {
  const int64_t label = *mlki_line_i64(&s->labels, r);
  const float *x = mlki_line_f32(&s->x, r);
  float *dx = s->out.p ? mlki_line_f32(&s->out, r) : NULL;
  float max, sum = 1.0f, loss = 0.0f;
  int64_t j;
  if (label >= 0) {
    sum = mlki_ref_softmax_sum(x, s->x.step, s->d, &max);
    loss = mlki_log_sum(sum) - (x[label * s->x.step] - max);
  }
  for (j = 0; dx && j < s->d; j++) {
    const float p = label < 0 ? 0.0f : mlki_ref_exp(x[j * s->x.step] - max) / sum;
    dx[j * s->out.step] = label < 0 ? 0.0f : s->scale * (j == label ? p - 1.0f : p);
  }
  if (s->loss.p) *mlki_line_f32(&s->loss, r) = loss;
}

/* The sum of exp(x - max), as above; e as row_exp. */
static float mlki_softmax_sum(const mlki_kernels *row, float *e, const float *x, int64_t d, float *max) {
  float sum;
  *max = row->row_max(x, d);
  if (*max == -INFINITY) *max = 0.0f;
  sum = row->row_exp(e, x, d, *max);
  return sum == 0.0f ? 1.0f : sum;
}

static void mlki_softmax_row(const mlki_softmax *s, float *y, const float *x) {
  const mlki_kernels *row = s->job.row;
  float max;
  const float sum = mlki_softmax_sum(row, s->log ? NULL : y, x, s->d, &max);
  if (s->log)
    row->row_log_softmax(y, x, s->d, max, mlki_log_sum(sum));
  else
    row->row_quotient(y, y, s->d, sum, 1.0f);
}

/* The loss of a row; its gradient to dx, unless that is NULL. */
static float mlki_cross_entropy_row(const mlki_softmax *s, float *dx, const float *x, int64_t label) {
  float max, sum, at;
  if (label < 0) {
    if (dx) memset(dx, 0, (size_t)s->d * sizeof *dx);
    return 0.0f;
  }
  at = x[label]; /* before dx, which may be x, is written */
  sum = mlki_softmax_sum(s->job.row, dx, x, s->d, &max);
  if (dx) {
    const float e = dx[label];
    s->job.row->row_quotient(dx, dx, s->d, sum, s->scale);
    dx[label] = s->scale * (e / sum - 1.0f);
  }
  return mlki_log_sum(sum) - (at - max);
}

/* Rows [first, first + rows) of softmax or cross-entropy. */
static void mlki_softmax_block(const mlki_softmax *s, int64_t first, int64_t rows, float *space_x, float *space_out) {
  float *x[MLKI_ROW_BLOCK], *out[MLKI_ROW_BLOCK];
  int64_t i;
  mlki_lines_in(s->job.row, &s->x, first, rows, s->d, 1, space_x, x);
  if (s->out.p) mlki_lines_in(s->job.row, &s->out, first, rows, s->d, 0, space_out, out);
  for (i = 0; i < rows; i++) {
    float *y = s->out.p ? out[i] : NULL;
    if (s->entropy) {
      const float loss = mlki_cross_entropy_row(s, y, x[i], *mlki_line_i64(&s->labels, first + i));
      if (s->loss.p) *mlki_line_f32(&s->loss, first + i) = loss;
    } else {
      mlki_softmax_row(s, y, x[i]);
    }
  }
  if (s->out.p) mlki_lines_out(s->job.row, &s->out, first, rows, s->d, space_out);
}

static void mlki_softmax_task(void *op, int index) {
  mlki_softmax *s = (mlki_softmax *)op;
  char *space_x = s->job.workspace + (uint64_t)index * s->job.task_bytes;
  char *space_out = space_x + mlki_line_space(&s->x, s->d);
  const int64_t block = mlki_line_block(s->d);
  int64_t unit, end;
  while (mlki_job_take(&s->job, 0, &unit, &end))
    for (; unit < end; unit += block) {
      const int64_t rows = mlki_min(end - unit, block);
      int64_t i;
      if (!s->reference)
        mlki_softmax_block(s, unit, rows, (float *)(void *)space_x, (float *)(void *)space_out);
      else
        for (i = unit; i < unit + rows; i++)
          if (s->entropy)
            mlki_ref_cross_entropy(s, i);
          else
            mlki_ref_softmax(s, i);
    }
}

/* The rest of preparing softmax and cross-entropy: rows of d elements. */
static mlk_status mlki_softmax_job(mlk_context *ctx, mlki_softmax *s, int64_t rows, int64_t d, uint64_t bytes) {
  s->rows = rows, s->d = d, s->reference = ctx->reference;
  s->job.row = ctx->row;
  s->job.variant = "rows";
  s->job.flops = 4 * (uint64_t)(rows * d);
  s->job.bytes = bytes;
  if (!ctx->reference) s->job.task_bytes = mlki_line_space(&s->x, d) + mlki_line_space(&s->out, d);
  mlki_job_phase(ctx, &s->job, 0, mlki_softmax_task, rows, 8.0 * (double)d + 32.0);
  return MLK_OK;
}

/* Checks of softmax: x and y of one shape, y may be x. */
static mlk_status mlki_softmax_prepare(mlk_context *ctx, const mlk_softmax_desc *desc, int run, mlki_softmax *s) {
  mlk_tensor x, y;
  mlki_extent ex, ey;
  mlk_status status;
  int64_t d;
  if (!desc) return mlki_fail(ctx, MLK_ERR_ARGUMENT, "desc: is NULL");
  memset(s, 0, sizeof *s);
  x = desc->x, y = desc->y;
  if ((status = mlki_check_tensor(ctx, "x", &x, MLK_F32, 1, MLK_MAX_RANK, &ex)) != MLK_OK) return status;
  if ((status = mlki_check_shaped(ctx, "y", &y, MLK_F32, 0, 1, "x", x.shape, x.rank, &ey)) != MLK_OK) return status;
  if (!mlki_same_view(&y, &x) && (status = mlki_check_apart(ctx, run, "y", &y, &ey, "x", &x, &ex)) != MLK_OK)
    return status;
  s->log = desc->log != 0;
  s->x = mlki_lines_of(&x, x.rank - 1), s->out = mlki_lines_of(&y, y.rank - 1);
  d = x.shape[x.rank - 1];
  return mlki_softmax_job(ctx, s, d ? ex.count / d : 0, d, 4 * (uint64_t)(ex.stored + ey.count));
}

static mlk_status mlki_cross_entropy_prepare(mlk_context *ctx, const mlk_cross_entropy_desc *desc, int run,
                                             mlki_softmax *s) {
  mlk_tensor x, labels, loss, dx;
  mlki_extent ex, elabels, eloss, edx;
  mlk_status status;
  int axes;
  if (!desc) return mlki_fail(ctx, MLK_ERR_ARGUMENT, "desc: is NULL");
  memset(s, 0, sizeof *s);
  x = desc->x, labels = desc->labels, loss = desc->loss, dx = desc->dx;
  if ((status = mlki_check_tensor(ctx, "x", &x, MLK_F32, 2, MLK_MAX_RANK, &ex)) != MLK_OK) return status;
  axes = x.rank - 1;
  if ((status = mlki_check_shaped(ctx, "labels", &labels, MLK_I64, 0, 0, "x", x.shape, axes, &elabels)) != MLK_OK ||
      (status = mlki_check_shaped(ctx, "loss", &loss, MLK_F32, 1, 1, "x", x.shape, axes, &eloss)) != MLK_OK ||
      (status = mlki_check_shaped(ctx, "dx", &dx, MLK_F32, 1, 1, "x", x.shape, x.rank, &edx)) != MLK_OK)
    return status;
  if (!loss.data && !dx.data)
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "loss, dx: data is NULL, but at least one of them is required");
  if ((status = mlki_check_apart(ctx, run, "loss", &loss, &eloss, "x", &x, &ex)) != MLK_OK ||
      (status = mlki_check_apart(ctx, run, "loss", &loss, &eloss, "labels", &labels, &elabels)) != MLK_OK ||
      (status = mlki_check_apart(ctx, run, "loss", &loss, &eloss, "dx", &dx, &edx)) != MLK_OK ||
      (status = mlki_check_apart(ctx, run, "dx", &dx, &edx, "labels", &labels, &elabels)) != MLK_OK)
    return status;
  if (!mlki_same_view(&dx, &x) && (status = mlki_check_apart(ctx, run, "dx", &dx, &edx, "x", &x, &ex)) != MLK_OK)
    return status;
  status = run && !ctx->backend ? mlki_check_ids(ctx, "labels", &labels, elabels.count, INT64_MIN, x.shape[axes] - 1)
                                : MLK_OK;
  if (status) return status;
  s->entropy = 1;
  s->scale = desc->scale ? *desc->scale : 1.0f;
  s->x = mlki_lines_of(&x, axes), s->out = mlki_lines_of(&dx, axes);
  s->labels = mlki_lines_of(&labels, axes), s->loss = mlki_lines_of(&loss, axes);
  return mlki_softmax_job(ctx, s, elabels.count, x.shape[axes],
                          4 * (uint64_t)(ex.stored + eloss.count + edx.count) + 8 * (uint64_t)elabels.stored);
}

/* --- gradient of softmax --- */

typedef struct mlki_softmax_grad {
  mlki_job job;
  int log, reference;
  int64_t d;
  mlki_lines y, dy, dx;
} mlki_softmax_grad;

/* Row r by the definition. */
static void mlki_ref_softmax_grad(const mlki_softmax_grad *s, int64_t r) {
  const float *y = mlki_line_f32(&s->y, r), *dy = mlki_line_f32(&s->dy, r);
  float *dx = mlki_line_f32(&s->dx, r), lane[16] = {0}, sum;
  int64_t j;
  for (j = 0; j < mlki_round_up(s->d, 16); j++) {
    const float a = j < s->d ? y[j * s->y.step] : 0.0f, b = j < s->d ? dy[j * s->dy.step] : 0.0f;
    lane[j % 16] = s->log ? lane[j % 16] + b : mlki_fma1(a, b, lane[j % 16]);
  }
  sum = mlki_ref_tree(lane);
  for (j = 0; j < s->d; j++) {
    const float a = y[j * s->y.step], b = dy[j * s->dy.step];
    dx[j * s->dx.step] = s->log ? mlki_fma1(-mlki_ref_exp(a), sum, b) : a * (b - sum);
  }
}

static void mlki_softmax_grad_block(const mlki_softmax_grad *s, int64_t first, int64_t rows, char *space) {
  const mlki_kernels *row = s->job.row;
  const uint64_t after_y = mlki_line_space(&s->y, s->d), after_dy = after_y + mlki_line_space(&s->dy, s->d);
  float *y[MLKI_ROW_BLOCK], *dy[MLKI_ROW_BLOCK], *dx[MLKI_ROW_BLOCK], sum;
  int64_t i;
  mlki_lines_in(s->job.row, &s->y, first, rows, s->d, 1, (float *)(void *)space, y);
  mlki_lines_in(s->job.row, &s->dy, first, rows, s->d, 1, (float *)(void *)(space + after_y), dy);
  mlki_lines_in(s->job.row, &s->dx, first, rows, s->d, 0, (float *)(void *)(space + after_dy), dx);
  for (i = 0; i < rows; i++) {
    if (s->log)
      sum = row->row_sum(dy[i], s->d);
    else
      row->pairs(MLKI_PAIR_IP, 1, 1, s->d, y[i], 0, dy[i], 0, 0, &sum, 0);
    row->row_softmax_grad(dx[i], y[i], dy[i], s->d, sum, s->log);
  }
  mlki_lines_out(s->job.row, &s->dx, first, rows, s->d, (float *)(void *)(space + after_dy));
}

static void mlki_softmax_grad_task(void *op, int index) {
  mlki_softmax_grad *s = (mlki_softmax_grad *)op;
  char *space = s->job.workspace + (uint64_t)index * s->job.task_bytes;
  const int64_t block = mlki_line_block(s->d);
  int64_t unit, end;
  while (mlki_job_take(&s->job, 0, &unit, &end))
    for (; unit < end; unit += s->reference ? 1 : block) {
      if (s->reference)
        mlki_ref_softmax_grad(s, unit);
      else
        mlki_softmax_grad_block(s, unit, mlki_min(end - unit, block), space);
    }
}

static mlk_status mlki_softmax_grad_prepare(mlk_context *ctx, const mlk_softmax_grad_desc *desc, int run,
                                            mlki_softmax_grad *s) {
  mlk_tensor y, dy, dx;
  mlki_extent ey, edy, edx;
  mlk_status status;
  int axes;
  if (!desc) return mlki_fail(ctx, MLK_ERR_ARGUMENT, "desc: is NULL");
  memset(s, 0, sizeof *s);
  y = desc->y, dy = desc->dy, dx = desc->dx;
  if ((status = mlki_check_tensor(ctx, "y", &y, MLK_F32, 1, MLK_MAX_RANK, &ey)) != MLK_OK ||
      (status = mlki_check_shaped(ctx, "dy", &dy, MLK_F32, 0, 0, "y", y.shape, y.rank, &edy)) != MLK_OK ||
      (status = mlki_check_shaped(ctx, "dx", &dx, MLK_F32, 0, 1, "y", y.shape, y.rank, &edx)) != MLK_OK ||
      (status = mlki_check_apart(ctx, run, "dx", &dx, &edx, "y", &y, &ey)) != MLK_OK)
    return status;
  if (!mlki_same_view(&dx, &dy) && (status = mlki_check_apart(ctx, run, "dx", &dx, &edx, "dy", &dy, &edy)) != MLK_OK)
    return status;
  axes = y.rank - 1;
  s->log = desc->log != 0, s->reference = ctx->reference, s->d = y.shape[axes];
  s->y = mlki_lines_of(&y, axes), s->dy = mlki_lines_of(&dy, axes), s->dx = mlki_lines_of(&dx, axes);
  s->job.row = ctx->row;
  s->job.variant = "rows";
  s->job.flops = 4 * (uint64_t)ey.count;
  s->job.bytes = 4 * (uint64_t)(ey.stored + edy.stored + edx.count);
  if (!ctx->reference)
    s->job.task_bytes = mlki_line_space(&s->y, s->d) + mlki_line_space(&s->dy, s->d) + mlki_line_space(&s->dx, s->d);
  mlki_job_phase(ctx, &s->job, 0, mlki_softmax_grad_task, s->d ? ey.count / s->d : 0,
                 (s->log ? 16.0 : 8.0) * (double)s->d + 32.0);
  return MLK_OK;
}

/* >>norm ----------------------------------------------------------------------------------------------------------- */

typedef struct mlki_normal {
  mlki_job job;
  mlk_norm_kind kind;
  int reference;
  int64_t rows, d;
  mlki_lines x, y, dy, dx, mean, rstd;
  mlk_tensor gamma, beta, dgamma, dbeta; /* [D]; data NULL: absent */
  float epsilon, accumulate;
  int64_t segments, part, parts; /* of the sums over rows: a unit is a segment x part columns */
  int fused;                     /* dx and the sums in one pass, segment by segment */
} mlki_normal;

/* Element j of a [D] tensor that may be absent. */
static float mlki_or(const mlk_tensor *t, int64_t j, float absent) {
  return t->data ? ((const float *)t->data)[j * t->stride[0]] : absent;
}

static int64_t mlki_padded(int64_t d) { return mlki_round_up(d, MLKI_ALIGN / 4); }

/* gamma and beta dense at the head of the workspace. Where they are absent, 1 and -0, which change nothing. */
static void mlki_normal_start(void *op) {
  mlki_normal *nm = (mlki_normal *)op;
  float *gamma = (float *)(void *)nm->job.workspace, *beta = gamma + mlki_padded(nm->d);
  int64_t j;
  if (nm->reference || !nm->job.shared_bytes) return;
  for (j = 0; j < nm->d; j++) gamma[j] = mlki_or(&nm->gamma, j, 1.0f), beta[j] = mlki_or(&nm->beta, j, -0.0f);
}

/* Row r of mlk_norm by the definition. */
static void mlki_ref_norm(const mlki_normal *nm, int64_t r) {
  const float *x = mlki_line_f32(&nm->x, r);
  float *y = mlki_line_f32(&nm->y, r), lane[16] = {0}, square[16] = {0}, mean = 0.0f, rstd;
  int64_t j;
  if (nm->kind == MLK_NORM_LAYER) {
    for (j = 0; j < nm->d; j++) lane[j % 16] += x[j * nm->x.step];
    mean = mlki_ref_tree(lane) / (float)nm->d;
  }
  for (j = 0; j < nm->d; j++) {
    const float t = x[j * nm->x.step] - mean;
    square[j % 16] = mlki_fma1(t, t, square[j % 16]);
  }
  rstd = 1.0f / sqrtf(mlki_ref_tree(square) / (float)nm->d + nm->epsilon);
  for (j = 0; j < nm->d; j++)
    y[j * nm->y.step] = mlki_fma1((x[j * nm->x.step] - mean) * rstd, mlki_or(&nm->gamma, j, 1.0f),
                                  mlki_or(&nm->beta, j, -0.0f));
  if (nm->mean.p) *mlki_line_f32(&nm->mean, r) = mean;
  if (nm->rstd.p) *mlki_line_f32(&nm->rstd, r) = rstd;
}

static void mlki_norm_block(const mlki_normal *nm, int64_t first, int64_t rows, char *space) {
  const mlki_kernels *row = nm->job.row;
  const float *gamma = (const float *)(const void *)nm->job.workspace, *beta = gamma + mlki_padded(nm->d);
  const uint64_t after_x = mlki_line_space(&nm->x, nm->d);
  float *x[MLKI_ROW_BLOCK], *y[MLKI_ROW_BLOCK];
  int64_t i;
  mlki_lines_in(nm->job.row, &nm->x, first, rows, nm->d, 1, (float *)(void *)space, x);
  mlki_lines_in(nm->job.row, &nm->y, first, rows, nm->d, 0, (float *)(void *)(space + after_x), y);
  for (i = 0; i < rows; i++) {
    const float mean = nm->kind == MLK_NORM_LAYER ? row->row_sum(x[i], nm->d) / (float)nm->d : 0.0f;
    const float rstd = 1.0f / sqrtf(row->row_moment(x[i], nm->d, mean) / (float)nm->d + nm->epsilon);
    row->row_normal(y[i], x[i], gamma, beta, nm->d, mean, rstd);
    if (nm->mean.p) *mlki_line_f32(&nm->mean, first + i) = mean;
    if (nm->rstd.p) *mlki_line_f32(&nm->rstd, first + i) = rstd;
  }
  mlki_lines_out(nm->job.row, &nm->y, first, rows, nm->d, (float *)(void *)(space + after_x));
}

static void mlki_norm_task(void *op, int index) {
  mlki_normal *nm = (mlki_normal *)op;
  char *space = nm->job.workspace + nm->job.shared_bytes + (uint64_t)index * nm->job.task_bytes;
  const int64_t block = mlki_line_block(nm->d);
  int64_t unit, end;
  while (mlki_job_take(&nm->job, 0, &unit, &end))
    for (; unit < end; unit += nm->reference ? 1 : block) {
      if (nm->reference)
        mlki_ref_norm(nm, unit);
      else
        mlki_norm_block(nm, unit, mlki_min(end - unit, block), space);
    }
}

static mlk_status mlki_check_norm_kind(mlk_context *ctx, mlk_norm_kind kind) {
  if ((int)kind >= 0 && kind < MLK_NORM_KIND_COUNT) return MLK_OK;
  return mlki_fail(ctx, MLK_ERR_ARGUMENT, "kind: is %d, but must be 0 to %d", (int)kind, MLK_NORM_KIND_COUNT - 1);
}

/* The outputs of a call: none may share an element with another operand, but the first of them with the operand that
   it may be. */
typedef struct mlki_operand {
  const char *name;
  const mlk_tensor *t;
  const mlki_extent *extent;
} mlki_operand;

static mlk_status mlki_check_all_apart(mlk_context *ctx, int run, const mlki_operand *outputs, int count_out,
                                       const mlki_operand *inputs, int count_in, const mlk_tensor *may_be) {
  mlk_status status;
  int i, j;
  for (i = 0; i < count_out; i++) {
    for (j = 0; j < count_in; j++)
      if (!(i == 0 && inputs[j].t == may_be && mlki_same_view(outputs[0].t, may_be)) &&
          (status = mlki_check_apart(ctx, run, outputs[i].name, outputs[i].t, outputs[i].extent, inputs[j].name,
                                     inputs[j].t, inputs[j].extent)) != MLK_OK)
        return status;
    for (j = 0; j < i; j++)
      if ((status = mlki_check_apart(ctx, run, outputs[i].name, outputs[i].t, outputs[i].extent, outputs[j].name,
                                     outputs[j].t, outputs[j].extent)) != MLK_OK)
        return status;
  }
  return MLK_OK;
}

static mlk_status mlki_norm_prepare(mlk_context *ctx, const mlk_norm_desc *desc, int run, mlki_normal *nm) {
  mlk_tensor x, y, mean, rstd;
  mlki_extent ex, ey, emean, erstd, egamma, ebeta;
  mlk_status status;
  int axes;
  if (!desc) return mlki_fail(ctx, MLK_ERR_ARGUMENT, "desc: is NULL");
  memset(nm, 0, sizeof *nm);
  x = desc->x, y = desc->y, mean = desc->mean, rstd = desc->rstd;
  nm->kind = desc->kind, nm->gamma = desc->gamma, nm->beta = desc->beta;
  nm->epsilon = desc->epsilon == 0.0f ? 1e-5f : desc->epsilon;
  if ((status = mlki_check_norm_kind(ctx, desc->kind)) != MLK_OK) return status;
  if (!(nm->epsilon > 0.0f && nm->epsilon <= FLT_MAX))
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "epsilon: is %g, but must be positive and finite, or 0 for 1e-5",
                     (double)desc->epsilon);
  if ((status = mlki_check_tensor(ctx, "x", &x, MLK_F32, 1, MLK_MAX_RANK, &ex)) != MLK_OK) return status;
  axes = x.rank - 1, nm->d = x.shape[axes];
  if ((status = mlki_check_shaped(ctx, "gamma", &nm->gamma, MLK_F32, 1, 0, "x", &nm->d, 1, &egamma)) != MLK_OK ||
      (status = mlki_check_shaped(ctx, "beta", &nm->beta, MLK_F32, 1, 0, "x", &nm->d, 1, &ebeta)) != MLK_OK ||
      (status = mlki_check_shaped(ctx, "y", &y, MLK_F32, 0, 1, "x", x.shape, x.rank, &ey)) != MLK_OK ||
      (status = mlki_check_shaped(ctx, "mean", &mean, MLK_F32, 1, 1, "x", x.shape, axes, &emean)) != MLK_OK ||
      (status = mlki_check_shaped(ctx, "rstd", &rstd, MLK_F32, 1, 1, "x", x.shape, axes, &erstd)) != MLK_OK)
    return status;
  {
    const mlki_operand outputs[] = {{"y", &y, &ey}, {"mean", &mean, &emean}, {"rstd", &rstd, &erstd}};
    const mlki_operand inputs[] = {{"x", &x, &ex}, {"gamma", &nm->gamma, &egamma}, {"beta", &nm->beta, &ebeta}};
    if ((status = mlki_check_all_apart(ctx, run, outputs, 3, inputs, 3, &x)) != MLK_OK) return status;
  }
  nm->reference = ctx->reference;
  nm->rows = nm->d ? ex.count / nm->d : 0;
  nm->x = mlki_lines_of(&x, axes), nm->y = mlki_lines_of(&y, axes);
  nm->mean = mlki_lines_of(&mean, axes), nm->rstd = mlki_lines_of(&rstd, axes);
  nm->job.row = ctx->row;
  nm->job.variant = "rows";
  nm->job.start = mlki_normal_start;
  nm->job.flops = 8 * (uint64_t)ex.count;
  nm->job.bytes = 4 * (uint64_t)(ex.stored + egamma.stored + ebeta.stored + ey.count + emean.count + erstd.count);
  if (!ctx->reference && ex.count) {
    nm->job.shared_bytes = 8 * (uint64_t)mlki_padded(nm->d);
    nm->job.task_bytes = mlki_line_space(&nm->x, nm->d) + mlki_line_space(&nm->y, nm->d);
  }
  mlki_job_phase(ctx, &nm->job, 0, mlki_norm_task, nm->rows, 6.0 * (double)nm->d + 32.0);
  return MLK_OK;
}

/* --- gradients of normalisation --- */

#define MLKI_NORMAL_PART 256 /* columns of a unit where the sums over rows have a pass of their own */

/* Where a segment's sums lie: dgamma's, then dbeta's. */
static float *mlki_normal_sums(const mlki_normal *nm, int64_t segment) {
  return (float *)(void *)nm->job.workspace + 2 * mlki_padded(nm->d) * (segment + 1);
}

/* Row r of dx by the definition. */
static void mlki_ref_norm_dx(const mlki_normal *nm, int64_t r) {
  const float *x = mlki_line_f32(&nm->x, r), *dy = mlki_line_f32(&nm->dy, r);
  const float mean = nm->kind == MLK_NORM_LAYER ? *mlki_line_f32(&nm->mean, r) : 0.0f;
  const float rstd = *mlki_line_f32(&nm->rstd, r);
  float *dx = mlki_line_f32(&nm->dx, r), la[16] = {0}, lb[16] = {0}, a, b;
  int64_t j;
  for (j = 0; j < mlki_round_up(nm->d, 16); j++) {
    const int inside = j < nm->d;
    const float h = inside ? (x[j * nm->x.step] - mean) * rstd : 0.0f;
    float g = inside ? dy[j * nm->dy.step] * mlki_or(&nm->gamma, j, 1.0f) : 0.0f;
    MLKI_OPAQUE(g);
    la[j % 16] += g;
    lb[j % 16] = mlki_fma1(g, h, lb[j % 16]);
  }
  a = nm->kind == MLK_NORM_LAYER ? mlki_ref_tree(la) / (float)nm->d : 0.0f;
  b = mlki_ref_tree(lb) / (float)nm->d;
  for (j = 0; j < nm->d; j++) {
    float g = dy[j * nm->dy.step] * mlki_or(&nm->gamma, j, 1.0f);
    MLKI_OPAQUE(g);
    dx[j * nm->dx.step] = rstd * mlki_fma1(-((x[j * nm->x.step] - mean) * rstd), b, g - a);
  }
}

/* Column j of dgamma and dbeta by the definition. */
static void mlki_ref_norm_column(const mlki_normal *nm, int64_t j, float sums[2]) {
  int64_t s, r;
  sums[0] = sums[1] = 0.0f;
  for (s = 0; s < nm->rows; s += MLK_SEGMENT) {
    float g = 0.0f, b = 0.0f;
    for (r = s; r < mlki_min(nm->rows, s + MLK_SEGMENT); r++) {
      const float mean = nm->kind == MLK_NORM_LAYER ? *mlki_line_f32(&nm->mean, r) : 0.0f;
      const float h = (mlki_line_f32(&nm->x, r)[j * nm->x.step] - mean) * *mlki_line_f32(&nm->rstd, r);
      const float d = mlki_line_f32(&nm->dy, r)[j * nm->dy.step];
      g = mlki_fma1(d, h, g);
      b += d;
    }
    sums[0] = s == 0 ? g : sums[0] + g;
    sums[1] = s == 0 ? b : sums[1] + b;
  }
}

static void mlki_normal_put(const mlki_normal *nm, const mlk_tensor *t, int64_t j, float sum) {
  float *at = t->data ? (float *)t->data + j * t->stride[0] : NULL;
  if (at) *at = nm->accumulate == 0.0f ? sum : mlki_fma1(nm->accumulate, *at, sum);
}

/* The segments' sums are added in order and go to dgamma and dbeta. */
static void mlki_normal_finish(void *op) {
  mlki_normal *nm = (mlki_normal *)op;
  float *total = mlki_normal_sums(nm, 0), sums[2];
  int64_t s, j;
  if (!nm->dgamma.data && !nm->dbeta.data) return;
  if (!nm->reference)
    for (s = 1; s < nm->segments; s++) nm->job.row->add(total, mlki_normal_sums(nm, s), 2 * mlki_padded(nm->d));
  for (j = 0; j < nm->d; j++) {
    sums[0] = sums[1] = 0.0f;
    if (nm->reference)
      mlki_ref_norm_column(nm, j, sums);
    else if (nm->segments)
      sums[0] = total[j], sums[1] = total[mlki_padded(nm->d) + j];
    mlki_normal_put(nm, &nm->dgamma, j, sums[0]);
    mlki_normal_put(nm, &nm->dbeta, j, sums[1]);
  }
}

/* Rows [first, first + rows): columns [from, to) into sums unless that is NULL, then dx where with_dx is set; dx may
   be dy. */
static void mlki_norm_grad_block(const mlki_normal *nm, int64_t first, int64_t rows, float *sums, int64_t from,
                                 int64_t to, int with_dx, char *space) {
  const mlki_kernels *row = nm->job.row;
  const float *gamma = (const float *)(const void *)nm->job.workspace;
  const uint64_t after_x = mlki_line_space(&nm->x, nm->d), after_dy = after_x + mlki_line_space(&nm->dy, nm->d);
  float *x[MLKI_ROW_BLOCK], *dy[MLKI_ROW_BLOCK], *dx[MLKI_ROW_BLOCK], mean[MLKI_ROW_BLOCK], rstd[MLKI_ROW_BLOCK];
  const float *x_from[MLKI_ROW_BLOCK], *dy_from[MLKI_ROW_BLOCK];
  float ab[2];
  int64_t i;
  mlki_lines_in(nm->job.row, &nm->x, first, rows, nm->d, 1, (float *)(void *)space, x);
  mlki_lines_in(nm->job.row, &nm->dy, first, rows, nm->d, 1, (float *)(void *)(space + after_x), dy);
  for (i = 0; i < rows; i++) {
    mean[i] = nm->kind == MLK_NORM_LAYER ? *mlki_line_f32(&nm->mean, first + i) : 0.0f;
    rstd[i] = *mlki_line_f32(&nm->rstd, first + i);
    x_from[i] = x[i] + from, dy_from[i] = dy[i] + from;
  }
  if (sums)
    row->normal_columns(sums + from, sums + mlki_padded(nm->d) + from, x_from, dy_from, mean, rstd, rows, to - from);
  if (!with_dx) return;
  mlki_lines_in(nm->job.row, &nm->dx, first, rows, nm->d, 0, (float *)(void *)(space + after_dy), dx);
  for (i = 0; i < rows; i++) {
    row->row_normal_sums(x[i], dy[i], gamma, nm->d, mean[i], rstd[i], ab);
    ab[0] = nm->kind == MLK_NORM_LAYER ? ab[0] / (float)nm->d : 0.0f;
    row->row_normal_grad(dx[i], x[i], dy[i], gamma, nm->d, mean[i], rstd[i], ab[0], ab[1] / (float)nm->d);
  }
  mlki_lines_out(nm->job.row, &nm->dx, first, rows, nm->d, (float *)(void *)(space + after_dy));
}

/* A unit is a segment of rows x a part of the columns: the sums and, where they are fused, dx. */
static void mlki_norm_grad_sums_task(void *op, int index) {
  mlki_normal *nm = (mlki_normal *)op;
  char *space = nm->job.workspace + nm->job.shared_bytes + (uint64_t)index * nm->job.task_bytes;
  const int64_t block = mlki_line_block(nm->d);
  int64_t unit, end;
  while (mlki_job_take(&nm->job, 0, &unit, &end))
    for (; unit < end; unit++) {
      const int64_t segment = unit / nm->parts, from = unit % nm->parts * nm->part;
      const int64_t to = mlki_min(from + nm->part, nm->d), last = mlki_min((segment + 1) * MLK_SEGMENT, nm->rows);
      float *sums = mlki_normal_sums(nm, segment);
      int64_t r;
      memset(sums + from, 0, (size_t)(to - from) * sizeof *sums);
      memset(sums + mlki_padded(nm->d) + from, 0, (size_t)(to - from) * sizeof *sums);
      for (r = segment * MLK_SEGMENT; r < last; r += block)
        mlki_norm_grad_block(nm, r, mlki_min(block, last - r), sums, from, to, nm->fused, space);
    }
}

/* dx alone, after the sums, since it may be dy. */
static void mlki_norm_grad_dx_task(void *op, int index) {
  mlki_normal *nm = (mlki_normal *)op;
  char *space = nm->job.workspace + nm->job.shared_bytes + (uint64_t)index * nm->job.task_bytes;
  const int64_t block = mlki_line_block(nm->d);
  int64_t unit, end;
  while (mlki_job_take(&nm->job, nm->segments ? 1 : 0, &unit, &end))
    for (; unit < end; unit += block) mlki_norm_grad_block(nm, unit, mlki_min(end - unit, block), NULL, 0, 0, 1, space);
}

/* The reference: the sums first, since dx may be dy. */
static void mlki_norm_grad_ref_task(void *op, int index) {
  mlki_normal *nm = (mlki_normal *)op;
  int64_t unit, end;
  (void)index;
  while (mlki_job_take(&nm->job, 0, &unit, &end))
    for (; unit < end; unit++) mlki_ref_norm_dx(nm, unit);
}

/* Blocks, phases and workspace of a call whose shapes are known. */
static void mlki_norm_grad_split(mlk_context *ctx, mlki_normal *nm) {
  const int sums = nm->dgamma.data || nm->dbeta.data, with_dx = nm->dx.p != NULL;
  const double work = (double)nm->d * 8.0;
  nm->job.tasks = 1;
  if (ctx->reference) {
    nm->job.start = sums ? mlki_normal_finish : NULL;
    if (with_dx) mlki_job_phase(ctx, &nm->job, 0, mlki_norm_grad_ref_task, nm->rows, work);
    return;
  }
  nm->job.start = mlki_normal_start;
  nm->job.finish = mlki_normal_finish;
  nm->segments = sums && nm->d ? mlki_ceil_div(nm->rows, MLK_SEGMENT) : 0;
  nm->fused = with_dx && (nm->segments >= 2 * mlki_task_limit(ctx) || mlki_task_limit(ctx) == 1);
  nm->part = nm->fused ? nm->d : MLKI_NORMAL_PART;
  if (nm->x.step != 1 || nm->dy.step != 1) nm->part = nm->d; /* a row is made dense once */
  nm->parts = nm->d ? mlki_ceil_div(nm->d, nm->part) : 0;
  nm->job.shared_bytes = 8 * (uint64_t)(mlki_padded(nm->d) * (nm->segments + 1));
  nm->job.task_bytes = mlki_line_space(&nm->x, nm->d) + mlki_line_space(&nm->dy, nm->d);
  if (with_dx) nm->job.task_bytes += mlki_line_space(&nm->dx, nm->d);
  if (nm->segments)
    mlki_job_phase(ctx, &nm->job, 0, mlki_norm_grad_sums_task, nm->segments * nm->parts,
                   MLK_SEGMENT * (nm->fused ? work : (double)nm->part * 4.0));
  if (with_dx && !(nm->segments && nm->fused))
    mlki_job_phase(ctx, &nm->job, nm->segments ? 1 : 0, mlki_norm_grad_dx_task, nm->d ? nm->rows : 0, work);
}

static mlk_status mlki_norm_grad_prepare(mlk_context *ctx, const mlk_norm_grad_desc *desc, int run, mlki_normal *nm) {
  mlk_tensor x, dy, dx, mean, rstd;
  mlki_extent ex, edy, edx, emean, erstd, egamma, edgamma, edbeta;
  mlk_status status;
  int axes, layer;
  if (!desc) return mlki_fail(ctx, MLK_ERR_ARGUMENT, "desc: is NULL");
  memset(nm, 0, sizeof *nm);
  x = desc->x, dy = desc->dy, dx = desc->dx, mean = desc->mean, rstd = desc->rstd;
  nm->kind = desc->kind, nm->gamma = desc->gamma, nm->dgamma = desc->dgamma, nm->dbeta = desc->dbeta;
  layer = desc->kind == MLK_NORM_LAYER;
  if ((status = mlki_check_norm_kind(ctx, desc->kind)) != MLK_OK ||
      (status = mlki_check_tensor(ctx, "x", &x, MLK_F32, 1, MLK_MAX_RANK, &ex)) != MLK_OK)
    return status;
  axes = x.rank - 1, nm->d = x.shape[axes];
  if ((status = mlki_check_shaped(ctx, "gamma", &nm->gamma, MLK_F32, 1, 0, "x", &nm->d, 1, &egamma)) != MLK_OK ||
      (status = mlki_check_shaped(ctx, "mean", &mean, MLK_F32, !layer, 0, "x", x.shape, axes, &emean)) != MLK_OK ||
      (status = mlki_check_shaped(ctx, "rstd", &rstd, MLK_F32, 0, 0, "x", x.shape, axes, &erstd)) != MLK_OK ||
      (status = mlki_check_shaped(ctx, "dy", &dy, MLK_F32, 0, 0, "x", x.shape, x.rank, &edy)) != MLK_OK ||
      (status = mlki_check_shaped(ctx, "dx", &dx, MLK_F32, 1, 1, "x", x.shape, x.rank, &edx)) != MLK_OK ||
      (status = mlki_check_shaped(ctx, "dgamma", &nm->dgamma, MLK_F32, 1, 1, "x", &nm->d, 1, &edgamma)) != MLK_OK ||
      (status = mlki_check_shaped(ctx, "dbeta", &nm->dbeta, MLK_F32, 1, 1, "x", &nm->d, 1, &edbeta)) != MLK_OK)
    return status;
  if (!dx.data && !nm->dgamma.data && !nm->dbeta.data)
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "dx, dgamma, dbeta: data is NULL, but at least one of them is required");
  {
    const mlki_operand outputs[] = {
        {"dx", &dx, &edx}, {"dgamma", &nm->dgamma, &edgamma}, {"dbeta", &nm->dbeta, &edbeta}};
    const mlki_operand inputs[] = {{"dy", &dy, &edy},
                                   {"x", &x, &ex},
                                   {"gamma", &nm->gamma, &egamma},
                                   {"mean", &mean, &emean},
                                   {"rstd", &rstd, &erstd}};
    if ((status = mlki_check_all_apart(ctx, run, outputs, 3, inputs, 5, &dy)) != MLK_OK) return status;
  }
  nm->reference = ctx->reference;
  nm->accumulate = desc->accumulate ? *desc->accumulate : 0.0f;
  nm->rows = nm->d ? ex.count / nm->d : 0;
  nm->x = mlki_lines_of(&x, axes), nm->dy = mlki_lines_of(&dy, axes), nm->dx = mlki_lines_of(&dx, axes);
  nm->mean = mlki_lines_of(&mean, axes), nm->rstd = mlki_lines_of(&rstd, axes);
  nm->job.row = ctx->row;
  mlki_norm_grad_split(ctx, nm);
  nm->job.variant = nm->fused ? "fused" : "rows";
  nm->job.flops = 12 * (uint64_t)ex.count;
  nm->job.bytes = 4 * (uint64_t)(ex.stored + edy.stored + erstd.stored + (layer ? emean.stored : 0) + egamma.stored +
                                 edx.count + edgamma.count + edbeta.count);
  return MLK_OK;
}

/* >>embedding ------------------------------------------------------------------------------------------------------ */

typedef struct mlki_embedding {
  mlki_job job;
  int by_columns; /* of the gradient: tasks share the columns; else the ids, by their remainder */
  int64_t rows, d, table_stride, parts;
  mlki_lines table, ids, out; /* out: or the gradient of it; table: only base and step */
} mlki_embedding;

static int64_t mlki_embedding_id(const mlki_embedding *e, int64_t row) { return *mlki_line_i64(&e->ids, row); }

/* out = table[ids]: also the definition. */
static void mlki_embedding_task(void *op, int index) {
  mlki_embedding *e = (mlki_embedding *)op;
  int64_t unit, end, j;
  (void)index;
  while (mlki_job_take(&e->job, 0, &unit, &end))
    for (; unit < end; unit++) {
      const int64_t id = mlki_embedding_id(e, unit);
      float *out = mlki_line_f32(&e->out, unit);
      const float *from = (const float *)(const void *)e->table.p + (id < 0 ? 0 : id * e->table_stride);
      if (e->out.step == 1 && (e->table.step == 1 || id < 0)) {
        if (id < 0)
          memset(out, 0, (size_t)e->d * sizeof *out);
        else
          memcpy(out, from, (size_t)e->d * sizeof *out);
        continue;
      }
      for (j = 0; j < e->d; j++) out[j * e->out.step] = id < 0 ? 0.0f : from[j * e->table.step];
    }
}

/* Columns [from, to) of one row of the gradient. */
static void mlki_embedding_add(const mlki_embedding *e, int64_t id, int64_t row, int64_t from, int64_t to) {
  float *sum = (float *)(void *)e->table.p + id * e->table_stride;
  const float *dout = mlki_line_f32(&e->out, row);
  int64_t j;
  if (e->table.step == 1 && e->out.step == 1)
    e->job.row->add(sum + from, dout + from, to - from);
  else
    for (j = from; j < to; j++) sum[j * e->table.step] += dout[j * e->out.step];
}

/* dtable[ids] += dout in ascending order: whoever owns an element adds all rows to it, so no order depends on how the
   work is split. With one part this is the definition. */
static void mlki_embedding_grad_task(void *op, int index) {
  mlki_embedding *e = (mlki_embedding *)op;
  int64_t unit, end, r;
  (void)index;
  while (mlki_job_take(&e->job, 0, &unit, &end))
    for (; unit < end; unit++) {
      const int64_t width = mlki_round_up(mlki_ceil_div(e->d, e->parts), 16);
      const int64_t from = e->by_columns ? mlki_min(unit * width, e->d) : 0;
      const int64_t to = e->by_columns ? mlki_min(from + width, e->d) : e->d;
      for (r = 0; r < e->rows; r++) {
        const int64_t id = mlki_embedding_id(e, r);
        if (id >= 0 && (e->by_columns || id % e->parts == unit)) mlki_embedding_add(e, id, r, from, to);
      }
    }
}

/* What both directions share: a table [V, D], ids [...], rows [..., D]. */
static mlk_status mlki_embedding_shape(mlk_context *ctx, mlki_embedding *e, int run, const char *table_name,
                                       mlk_tensor *table, int table_written, mlk_tensor *ids, const char *rows_name,
                                       mlk_tensor *rows) {
  int64_t shape[MLK_MAX_RANK];
  mlki_extent et, ei, er;
  mlk_status status;
  mlki_operand all[3];
  int i;
  if ((status = mlki_check_tensor(ctx, table_name, table, MLK_F32, 2, 2, &et)) != MLK_OK ||
      (status = mlki_check_tensor(ctx, "ids", ids, MLK_I64, 0, MLK_MAX_RANK - 1, &ei)) != MLK_OK)
    return status;
  for (i = 0; i < ids->rank; i++) shape[i] = ids->shape[i];
  shape[ids->rank] = e->d = table->shape[1];
  if ((status = mlki_check_shaped(ctx, rows_name, rows, MLK_F32, 0, !table_written, "ids and the table", shape,
                                  ids->rank + 1, &er)) != MLK_OK)
    return status;
  if (table_written && (status = mlki_check_output(ctx, table_name, table, &et)) != MLK_OK) return status;
  all[0].name = table_written ? table_name : rows_name, all[0].t = table_written ? table : rows;
  all[1].name = table_written ? rows_name : table_name, all[1].t = table_written ? rows : table;
  all[0].extent = table_written ? &et : &er, all[1].extent = table_written ? &er : &et;
  all[2].name = "ids", all[2].t = ids, all[2].extent = &ei;
  if ((status = mlki_check_all_apart(ctx, run, all, 1, all + 1, 2, NULL)) != MLK_OK) return status;
  status = run && !ctx->backend ? mlki_check_ids(ctx, "ids", ids, ei.count, INT64_MIN, table->shape[0] - 1) : MLK_OK;
  if (status) return status;
  e->rows = ei.count;
  e->table = mlki_lines_of(table, 1), e->ids = mlki_lines_of(ids, ids->rank), e->out = mlki_lines_of(rows, ids->rank);
  e->table_stride = table->stride[0];
  e->job.row = ctx->row;
  e->job.bytes = 8 * (uint64_t)ei.stored + 4 * (uint64_t)(er.stored + (table_written ? 2 * er.count : er.count));
  return MLK_OK;
}

static mlk_status mlki_embedding_prepare(mlk_context *ctx, const mlk_embedding_desc *desc, int run, mlki_embedding *e) {
  mlk_tensor table, ids, out;
  mlk_status status;
  if (!desc) return mlki_fail(ctx, MLK_ERR_ARGUMENT, "desc: is NULL");
  memset(e, 0, sizeof *e);
  table = desc->table, ids = desc->ids, out = desc->out;
  if ((status = mlki_embedding_shape(ctx, e, run, "table", &table, 0, &ids, "out", &out)) != MLK_OK) return status;
  e->job.variant = "copy";
  mlki_job_phase(ctx, &e->job, 0, mlki_embedding_task, e->d ? e->rows : 0, 2.0 * (double)e->d + 16.0);
  return MLK_OK;
}

static mlk_status mlki_embedding_grad_prepare(mlk_context *ctx, const mlk_embedding_grad_desc *desc, int run,
                                              mlki_embedding *e) {
  mlk_tensor dtable, ids, dout;
  mlk_status status;
  int64_t most;
  if (!desc) return mlki_fail(ctx, MLK_ERR_ARGUMENT, "desc: is NULL");
  memset(e, 0, sizeof *e);
  dtable = desc->dtable, ids = desc->ids, dout = desc->dout;
  if ((status = mlki_embedding_shape(ctx, e, run, "dtable", &dtable, 1, &ids, "dout", &dout)) != MLK_OK) return status;
  e->job.flops = (uint64_t)(e->rows * e->d);
  most = mlki_task_limit(ctx);
  mlki_job_phase(ctx, &e->job, 0, mlki_embedding_grad_task, e->d ? most : 0,
                 (double)e->rows * (2.0 * (double)e->d + 8.0) / (double)most);
  e->parts = e->job.tasks;
  e->by_columns = e->d >= 64 * e->parts;
  e->job.units[0] = e->d ? e->parts : 0, e->job.bundle[0] = 1;
  e->job.variant = e->by_columns ? "columns" : "ids";
  return MLK_OK;
}

/* >>rotary ---------------------------------------------------------------------------------------------------------
   A position times a frequency is reduced to a fraction of a turn in fixed point: the frequency in turns, modulo 1, has
   128 bits, and its product with a position below 2^63 is off by less than 2^-65 turns. What is left, an eighth of a
   turn or less, goes through Taylor series in double precision. */

/* 1 / (2 pi) in words of 32 bits after the point. */
static const uint32_t mlki_turn_words[9] = {0x28be60dbu, 0x9391054au, 0x7f09d5f4u, 0x7d4d3770u, 0x36d8a566u,
                                            0x4f10e410u, 0x7f9458eau, 0xf7aef158u, 0x6dc91b8eu};

/* One frequency: |radians| / (2 pi) modulo 1, in words of 32 bits after the point. */
typedef struct mlki_frequency {
  double radians; /* per position */
  uint32_t turns[4];
} mlki_frequency;

static mlki_frequency mlki_frequency_of(float radians) {
  const uint32_t bits = mlki_bits_of(radians), field = bits >> 23 & 255;
  const uint64_t mantissa = (bits & 0x7fffff) | (field ? 0x800000u : 0);
  const int shift = (int)(field ? field : 1) - 150; /* |radians| = mantissa 2^shift */
  uint32_t product[10];                             /* mantissa / (2 pi): one word before the point, nine after it */
  uint64_t carry = 0;
  mlki_frequency f;
  int i;
  for (i = 8; i >= 0; i--) {
    carry += mantissa * mlki_turn_words[i];
    product[i + 1] = (uint32_t)(carry & 0xffffffffu);
    carry >>= 32;
  }
  product[0] = (uint32_t)carry;
  f.radians = (double)radians;
  for (i = 0; i < 4; i++) {
    const int first = 32 * (i + 1) + shift + 320; /* place of the first bit, the word before the point at 320 */
    const int word = first / 32 - 10, bit = first % 32;
    const uint64_t high = word >= 0 && word < 10 ? product[word] : 0;
    const uint64_t low = word >= -1 && word < 9 ? product[word + 1] : 0;
    f.turns[i] = (uint32_t)((high << 32 | low) >> (32 - bit) & 0xffffffffu);
  }
  return f;
}

/* sin and cos of |a| <= 0.786 by their series up to a^17 and a^18: error below 2^-60, then roundings. */
static void mlki_sincos64(double a, double *sine, double *cosine) {
  static const double s[8] = {-1.0 / 6,
                              1.0 / 120,
                              -1.0 / 5040,
                              1.0 / 362880,
                              -1.0 / 39916800,
                              1.0 / 6227020800.0,
                              -1.0 / 1307674368000.0,
                              1.0 / 355687428096000.0};
  static const double c[9] = {-1.0 / 2,
                              1.0 / 24,
                              -1.0 / 720,
                              1.0 / 40320,
                              -1.0 / 3628800,
                              1.0 / 479001600,
                              -1.0 / 87178291200.0,
                              1.0 / 20922789888000.0,
                              -1.0 / 6402373705728000.0};
  const double q = mlki_mul64(a, a);
  double ps = s[7], pc = c[8];
  int i;
  for (i = 6; i >= 0; i--) ps = mlki_mul64(ps, q) + s[i];
  for (i = 7; i >= 0; i--) pc = mlki_mul64(pc, q) + c[i];
  *sine = mlki_mul64(mlki_mul64(a, q), ps) + a;
  *cosine = mlki_mul64(q, pc) + 1.0;
}

/* Cosine and sine of position * frequency, position >= 0. */
static void mlki_rotation(const mlki_frequency *f, int64_t position, float *cosine, float *sine) {
  const uint64_t low = (uint64_t)position & 0xffffffffu, high = (uint64_t)position >> 32;
  const double size = f->radians < 0 ? -f->radians : f->radians;
  double angle = mlki_mul64((double)position, size), s, c;
  unsigned quarter = 0;
  if (!(size <= (double)FLT_MAX)) { /* an infinite frequency, or NaN */
    *cosine = *sine = NAN;
    return;
  }
  if (angle > 0.5) {
    uint32_t turns[4]; /* position * f->turns modulo 1 */
    uint64_t carry = 0, left, rest;
    int i;
    for (i = 3; i >= 0; i--) {
      const uint64_t a = low * f->turns[i], b = i < 3 ? high * f->turns[i + 1] : 0;
      carry += (a & 0xffffffffu) + (b & 0xffffffffu);
      turns[i] = (uint32_t)(carry & 0xffffffffu);
      carry = (carry >> 32) + (a >> 32) + (b >> 32);
    }
    left = (uint64_t)turns[0] << 32 | turns[1];
    quarter = (unsigned)((left + ((uint64_t)1 << 61)) >> 62) & 3;
    rest = left - ((uint64_t)quarter << 62); /* modulo 2^64, between -2^61 and 2^61 */
    angle = rest >> 63 ? -(double)(0 - rest) : (double)rest;
    angle = mlki_mul64(angle + mlki_mul64(turns[2], 1.0 / 4294967296.0),
                       6.283185307179586476925 / 18446744073709551616.0);
  }
  mlki_sincos64(angle, &s, &c);
  if (quarter & 1) angle = s, s = c, c = -angle;
  if (quarter & 2) s = -s, c = -c;
  if (f->radians < 0) s = -s;
  *cosine = (float)c, *sine = (float)s;
}

/* e^x, |x| < 100, by x = n ln 2 + r and the series of e^r. */
static double mlki_exp64(double x) {
  const double half = x < 0 ? -0.5 : 0.5;
  const int n = (int)(mlki_mul64(x, 1.4426950408889634074) + half);
  const double r = x - mlki_mul64(n, 0.693147180369123816490) - mlki_mul64(n, 1.9082149292705877e-10);
  double p = 1.0, scale;
  uint64_t bits = (uint64_t)(n + 1023) << 52;
  int i;
  for (i = 14; i >= 1; i--) p = mlki_mul64(p, r / (double)i) + 1.0;
  memcpy(&scale, &bits, 8);
  return p * scale;
}

typedef struct mlki_rotary {
  mlki_job job;
  int reference, interleaved, inverse, own; /* own: each row of a batch has its own positions */
  int64_t batch, s, h, d, pairs, parts, first;
  double theta;
  mlki_lines x, y, positions; /* x, y: the batch */
  int64_t xs[3], ys[3];       /* strides of S, H and D */
  const float *frequencies;   /* or NULL */
  int64_t frequencies_stride;
} mlki_rotary;

/* The frequencies, at the head of the workspace. */
static void mlki_rotary_start(void *op) {
  mlki_rotary *ro = (mlki_rotary *)op;
  mlki_frequency *f = (mlki_frequency *)(void *)ro->job.workspace;
  const double log_theta = mlki_log64(ro->theta);
  int64_t j;
  if (!ro->job.shared_bytes) return;
  for (j = 0; j < ro->pairs; j++)
    f[j] = mlki_frequency_of(ro->frequencies
                                 ? ro->frequencies[j * ro->frequencies_stride]
                                 : (float)mlki_exp64(mlki_mul64(-(double)j / (double)ro->pairs, log_theta)));
}

/* cosine and sine of all pairs for one position, as the kernel wants them. */
static void mlki_rotary_table(const mlki_rotary *ro, int64_t position, float *cosine, float *sine) {
  const mlki_frequency *f = (const mlki_frequency *)(const void *)ro->job.workspace;
  int64_t j;
  for (j = 0; j < ro->pairs; j++) {
    float c, s;
    mlki_rotation(f + j, position, &c, &s);
    if (ro->inverse) s = -s;
    if (ro->interleaved) {
      cosine[2 * j] = cosine[2 * j + 1] = c;
      sine[2 * j] = -s, sine[2 * j + 1] = s;
    } else {
      cosine[j] = c, sine[j] = s;
    }
  }
}

/* One head by the definition. */
static void mlki_ref_rotate(const mlki_rotary *ro, float *y, const float *x, const float *cosine, const float *sine) {
  const int64_t apart = ro->interleaved ? 1 : ro->pairs, step = ro->interleaved ? 2 : 1, r = 2 * ro->pairs;
  int64_t j;
  for (j = 0; j < ro->pairs; j++) {
    const int64_t j0 = j * step, j1 = j0 + apart;
    const float c = cosine[j0], s = ro->interleaved ? sine[j1] : sine[j];
    const float x0 = x[j0 * ro->xs[2]], x1 = x[j1 * ro->xs[2]];
    float p0 = x0 * c, p1 = x1 * c;
    MLKI_OPAQUE(p0);
    MLKI_OPAQUE(p1);
    y[j0 * ro->ys[2]] = mlki_fma1(-x1, s, p0);
    y[j1 * ro->ys[2]] = mlki_fma1(x0, s, p1);
  }
  for (j = r; j < ro->d; j++) y[j * ro->ys[2]] = x[j * ro->xs[2]];
}

/* One head: rotated, and what lies beyond the rotated elements copied. */
static void mlki_rotary_head(const mlki_rotary *ro, float *y, const float *x, const float *cosine, const float *sine,
                             float *space) {
  const int64_t r = 2 * ro->pairs;
  const int dense = ro->xs[2] == 1 && ro->ys[2] == 1;
  int64_t j;
  if (ro->reference) {
    mlki_ref_rotate(ro, y, x, cosine, sine);
    return;
  }
  if (dense) {
    ro->job.row->rotate(y, x, cosine, sine, ro->pairs, ro->interleaved);
    if (y != x) memcpy(y + r, x + r, (size_t)(ro->d - r) * sizeof *y);
    return;
  }
  for (j = 0; j < ro->d; j++) space[j] = x[j * ro->xs[2]];
  ro->job.row->rotate(space, space, cosine, sine, ro->pairs, ro->interleaved);
  for (j = 0; j < ro->d; j++) y[j * ro->ys[2]] = space[j];
}

/* A unit is a position of the sequence and, where rows of the batch share positions, a part of them; else one row. */
static void mlki_rotary_task(void *op, int index) {
  mlki_rotary *ro = (mlki_rotary *)op;
  float *cosine = (float *)(void *)(ro->job.workspace + ro->job.shared_bytes + (uint64_t)index * ro->job.task_bytes);
  float *sine = cosine + mlki_padded(2 * ro->pairs), *space = sine + mlki_padded(2 * ro->pairs);
  int64_t unit, end, b, h;
  while (mlki_job_take(&ro->job, 0, &unit, &end))
    for (; unit < end; unit++) {
      const int64_t part = unit % ro->parts, s = unit / ro->parts;
      const int64_t from = ro->batch * part / ro->parts, to = ro->batch * (part + 1) / ro->parts;
      const int64_t at = ro->own ? from * ro->s + s : s;
      mlki_rotary_table(ro, ro->positions.p ? *mlki_line_i64(&ro->positions, at) : ro->first + s, cosine, sine);
      for (b = from; b < to; b++) {
        const float *x = mlki_line_f32(&ro->x, b) + s * ro->xs[0];
        float *y = mlki_line_f32(&ro->y, b) + s * ro->ys[0];
        for (h = 0; h < ro->h; h++) mlki_rotary_head(ro, y + h * ro->ys[1], x + h * ro->xs[1], cosine, sine, space);
      }
    }
}

/* Positions: absent, [S], or the shape of x without its last two axes. */
static mlk_status mlki_rotary_positions(mlk_context *ctx, const mlk_rotary_desc *desc, int run, const mlk_tensor *x,
                                        mlk_tensor *positions, mlki_extent *extent, mlki_rotary *ro) {
  const int64_t s = x->shape[x->rank - 3];
  int64_t last;
  mlk_status status;
  memset(extent, 0, sizeof *extent);
  ro->first = desc->first_position;
  if (!positions->data) {
    if (ro->first < 0 || mlki_add_overflows(ro->first, s, &last))
      return mlki_fail(ctx, MLK_ERR_ARGUMENT, "first_position: is %lld, but must be at least 0 and leave room for %lld",
                       (long long)ro->first, (long long)s);
    return MLK_OK;
  }
  if (ro->first)
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "first_position: is %lld, but must be 0 where positions are given",
                     (long long)ro->first);
  ro->own = positions->rank != 1 && x->rank != 3;
  if ((status = mlki_check_shaped(ctx, "positions", positions, MLK_I64, 0, 0, "x", ro->own ? x->shape : &s,
                                  ro->own ? x->rank - 2 : 1, extent)) != MLK_OK)
    return status;
  ro->positions = mlki_lines_of(positions, positions->rank);
  return run && !ctx->backend ? mlki_check_ids(ctx, "positions", positions, extent->count, 0, INT64_MAX) : MLK_OK;
}

static mlk_status mlki_rotary_values(mlk_context *ctx, const mlk_rotary_desc *desc, mlki_rotary *ro) {
  const int64_t rotated = desc->rotated ? desc->rotated : ro->d;
  ro->theta = desc->theta == 0.0 ? 10000.0 : desc->theta;
  if (rotated < 0 || rotated > ro->d || rotated % 2)
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "rotated: is %lld, but must be even and at most D = %lld",
                     (long long)rotated, (long long)ro->d);
  if (!(ro->theta >= 1e-30 && ro->theta <= 1e30))
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "theta: is %g, but must be 1e-30 to 1e30, or 0 for 10000", desc->theta);
  ro->pairs = rotated / 2;
  ro->interleaved = desc->interleaved != 0, ro->inverse = desc->inverse != 0;
  return MLK_OK;
}

static mlk_status mlki_rotary_prepare(mlk_context *ctx, const mlk_rotary_desc *desc, int run, mlki_rotary *ro) {
  mlk_tensor x, y, positions, frequencies;
  mlki_extent ex, ey, ep, ef;
  mlk_status status;
  int64_t units;
  int i, axes;
  if (!desc) return mlki_fail(ctx, MLK_ERR_ARGUMENT, "desc: is NULL");
  memset(ro, 0, sizeof *ro);
  x = desc->x, y = desc->y, positions = desc->positions, frequencies = desc->frequencies;
  if ((status = mlki_check_tensor(ctx, "x", &x, MLK_F32, 3, MLK_MAX_RANK, &ex)) != MLK_OK ||
      (status = mlki_check_shaped(ctx, "y", &y, MLK_F32, 0, 1, "x", x.shape, x.rank, &ey)) != MLK_OK)
    return status;
  axes = x.rank - 3, ro->s = x.shape[axes], ro->h = x.shape[axes + 1], ro->d = x.shape[axes + 2];
  if ((status = mlki_rotary_values(ctx, desc, ro)) != MLK_OK ||
      (status = mlki_check_shaped(ctx, "frequencies", &frequencies, MLK_F32, 1, 0, "rotated", &ro->pairs, 1, &ef)) !=
          MLK_OK ||
      (status = mlki_rotary_positions(ctx, desc, run, &x, &positions, &ep, ro)) != MLK_OK)
    return status;
  {
    const mlki_operand output = {"y", &y, &ey};
    const mlki_operand inputs[] = {{"x", &x, &ex}, {"positions", &positions, &ep}, {"frequencies", &frequencies, &ef}};
    if ((status = mlki_check_all_apart(ctx, run, &output, 1, inputs, 3, &x)) != MLK_OK) return status;
  }
  ro->reference = ctx->reference;
  ro->frequencies = (const float *)frequencies.data, ro->frequencies_stride = frequencies.stride[0];
  ro->x = mlki_lines_of(&x, axes), ro->y = mlki_lines_of(&y, axes);
  for (i = 0; i < 3; i++) {
    ro->xs[i] = x.shape[axes + i] == 1 ? 1 : x.stride[axes + i];
    ro->ys[i] = x.shape[axes + i] == 1 ? 1 : y.stride[axes + i];
  }
  for (ro->batch = 1, i = 0; i < axes; i++) ro->batch *= x.shape[i];
  ro->parts = ro->own ? ro->batch : ro->s < 64 ? mlki_min(ro->batch, 8) : 1;
  units = ex.count ? ro->s * ro->parts : 0;
  ro->job.row = ctx->row;
  ro->job.variant = ro->interleaved ? "interleaved" : "halves";
  ro->job.start = mlki_rotary_start;
  ro->job.flops = 3 * (uint64_t)ex.count;
  ro->job.bytes = 4 * (uint64_t)(ex.stored + ey.count + ef.stored) + 8 * (uint64_t)ep.stored;
  if (ex.count) {
    ro->job.shared_bytes = ((uint64_t)ro->pairs * sizeof(mlki_frequency) + MLKI_ALIGN - 1) / MLKI_ALIGN * MLKI_ALIGN;
    ro->job.task_bytes = 8 * (uint64_t)mlki_padded(2 * ro->pairs);
    if (!ro->reference && (ro->xs[2] != 1 || ro->ys[2] != 1)) ro->job.task_bytes += mlki_bytes(ro->d);
  }
  mlki_job_phase(ctx, &ro->job, 0, mlki_rotary_task, units,
                 units ? 200.0 * (double)ro->pairs + 4.0 * (double)ex.count / (double)units : 0.0);
  return MLK_OK;
}

/* >>attention ------------------------------------------------------------------------------------------------------
   What attention, its gradient and the merge of parts share: sequences, which keys a query sees, the checks, and the
   naive definitions. */

typedef struct mlki_attention {
  mlki_job job;
  int reference, causal, packed_q, packed_k; /* packed: with offsets */
  int64_t batch, heads, groups, group;       /* group: query heads per key head */
  int64_t s, t, d, e, parts;                 /* s, t: of the longest; parts: 0, or how many are written */
  float scale, softcap;
  int64_t offset, window;
  mlk_dtype dtype; /* of k and v */
  const float *q;
  const char *k, *v;
  int64_t qs[4], ks[4], vs[4];
  float *out, *lse;
  int64_t os[5], ls[4]; /* part, then as the shapes */
  const uint8_t *mask;
  const float *bias, *alibi, *sinks;
  int64_t ms[MLK_MAX_RANK], bs[MLK_MAX_RANK], alibi_step, sinks_step;
  const int64_t *q_offsets, *k_offsets, *k_lengths, *pages;
  int64_t q_offsets_step, k_offsets_step, k_lengths_step, pages_s[2], page;
  int plain, shared, v_in_place; /* scores are products; K and V are packed ahead; V is read where it lies */
  int streams;                   /* few rows: K and V come from memory and are used once */
  int sweeps;                    /* then V by sweeps, which ask for it themselves */
  int turns;                     /* so few rows that K is not packed, but turned in registers */
  int64_t tile, tiles, blocks;   /* rows of a tile; tiles of a head; blocks of keys */
  int64_t block_floats;          /* of what a block leaves in the shared space */
  int64_t round_heads;           /* heads packed at once */
  /* of the gradient */
  const float *dout;
  int64_t dos[4], dqs[4], dks[4], dvs[4], dsinks_step;
  int64_t axis, dbs[4], dbias_size[4]; /* axis: of k, behind the lengths too; dbs: 0 along axes that bias repeats */
  float *dq, *dk, *dv, *dbias, *dsinks;
  int halves; /* dq apart from dk and dv */
  int64_t segments;
  uint64_t segment_bytes, key_bytes, head_bytes; /* of packed operands */
} mlki_attention;

/* One sequence: s queries from q0 of row qb of q's first axis, t keys likewise. */
typedef struct mlki_sequence {
  int64_t b, qb, q0, s, kb, k0, t;
} mlki_sequence;

static mlki_sequence mlki_sequence_of(const mlki_attention *a, int64_t b) {
  mlki_sequence q;
  q.b = b;
  q.qb = a->packed_q ? 0 : b, q.q0 = 0, q.s = a->s;
  q.kb = a->packed_k ? 0 : b, q.k0 = 0, q.t = a->t;
  if (a->packed_q) {
    q.q0 = a->q_offsets[b * a->q_offsets_step];
    q.s = a->q_offsets[(b + 1) * a->q_offsets_step] - q.q0;
  }
  if (a->packed_k) {
    q.k0 = a->k_offsets[b * a->k_offsets_step];
    q.t = a->k_offsets[(b + 1) * a->k_offsets_step] - q.k0;
  }
  if (a->k_lengths) q.t = a->k_lengths[b * a->k_lengths_step];
  return q;
}

/* Where key j of key head g lies in k or v, in elements; *run: how many keys from there on are stride[2] apart. */
static int64_t mlki_key_at(const mlki_attention *a, const mlki_sequence *q, const int64_t *stride, int64_t g, int64_t j,
                           int64_t *run) {
  if (a->pages) {
    const int64_t page = a->pages[q->b * a->pages_s[0] + j / a->page * a->pages_s[1]];
    *run = mlki_min(a->page - j % a->page, q->t - j);
    return page * stride[0] + g * stride[1] + j % a->page * stride[2];
  }
  *run = q->t - j;
  return q->kb * stride[0] + g * stride[1] + (q->k0 + j) * stride[2];
}

/* The keys [*low, *high) that causal and window leave to query i. */
static void mlki_keys_seen(const mlki_attention *a, const mlki_sequence *q, int64_t i, int64_t *low, int64_t *high) {
  const int64_t p = i + (q->t - q->s) + a->offset;
  *low = a->window ? mlki_min(mlki_max(p - a->window + 1, 0), q->t) : 0;
  *high = a->causal ? p + 1 : a->window ? p + a->window : q->t;
  *high = mlki_max(mlki_min(*high, q->t), *low);
}

static float mlki_ref_widen(mlk_dtype dtype, const char *p, int64_t at) {
  if (dtype == MLK_F16) return mlki_f16_to_f32(((const uint16_t *)(const void *)p)[at]);
  if (dtype == MLK_BF16) return mlki_bf16_to_f32(((const uint16_t *)(const void *)p)[at]);
  return ((const float *)(const void *)p)[at];
}

static int mlki_finite(float x) { return x - x == 0.0f; }

/* The score of key j, which is among the keys seen, and in *before what it was before the cap. */
static float mlki_ref_score(const mlki_attention *a, const mlki_sequence *q, int64_t h, int64_t i, int64_t j,
                            float *before) {
  const float *query = a->q + q->qb * a->qs[0] + h * a->qs[1] + (q->q0 + i) * a->qs[2];
  const int64_t p = i + (q->t - q->s) + a->offset, away = p < j ? j - p : p - j;
  int64_t run, k, first, d;
  float x = 0.0f;
  k = mlki_key_at(a, q, a->ks, h / a->group, j, &run);
  for (first = 0; first < a->d; first += MLK_SEGMENT) {
    float chain = 0.0f;
    for (d = first; d < mlki_min(a->d, first + MLK_SEGMENT); d++) {
      float t = a->scale * query[d * a->qs[3]];
      MLKI_OPAQUE(t);
      chain = mlki_fma1(t, mlki_ref_widen(a->dtype, a->k, k + d * a->ks[3]), chain);
    }
    x = first ? x + chain : chain;
  }
  *before = x;
  if (a->softcap > 0.0f) x = a->softcap * mlki_ref_activate(MLK_TANH, x / a->softcap);
  MLKI_OPAQUE(x);
  if (a->alibi) x = mlki_fma1(-a->alibi[h * a->alibi_step], (float)away, x);
  if (a->bias) x += a->bias[q->b * a->bs[0] + h * a->bs[1] + i * a->bs[2] + j * a->bs[3]];
  if (a->mask && !a->mask[q->b * a->ms[0] + h * a->ms[1] + i * a->ms[2] + j * a->ms[3]]) return -INFINITY;
  return x;
}

/* State (m[0], m[1], o) takes in (top, l, part) of e elements, part NULL: zeros. See mlk_attention_desc. */
static void mlki_ref_fold(float *m, float *o, float top, float l, const float *part, int64_t step, int64_t e) {
  float best, a, c, t;
  int64_t j;
  if (l == 0.0f) return;
  if (m[1] == 0.0f) {
    m[0] = top, m[1] = l;
    for (j = 0; j < e; j++) o[j] = part ? part[j * step] : 0.0f;
    return;
  }
  best = top > m[0] ? top : m[0];
  a = mlki_ref_exp(m[0] - best), c = mlki_ref_exp(top - best);
  t = l * c;
  MLKI_OPAQUE(t);
  m[0] = best, m[1] = mlki_fma1(m[1], a, t);
  for (j = 0; j < e; j++) {
    t = part ? part[j * step] * c : 0.0f;
    MLKI_OPAQUE(t);
    o[j] = mlki_fma1(o[j], a, t);
  }
}

static float mlki_ref_log(float x) {
  float lane[MLKI_LANES_scalar];
  mlki_v_store_scalar(lane, mlki_log_scalar(mlki_v_set1_scalar(x)));
  return lane[0];
}

/* The row that a state (m, o) stands for: to out, steps apart, which may be o; returns its log-sum-exp. */
static float mlki_ref_unfold(const float *m, const float *o, float *out, int64_t step, int64_t e) {
  int64_t j;
  for (j = 0; j < e; j++) out[j * step] = m[1] == 0.0f ? 0.0f : o[j] / m[1] + 0.0f;
  return m[1] == 0.0f ? -INFINITY : m[0] + mlki_ref_log(m[1]);
}

/* Keys [first, end) of one block from scratch: m, l to ml, the row to o. */
static void mlki_ref_attention_block(const mlki_attention *a, const mlki_sequence *q, int64_t h, int64_t i,
                                     int64_t first, int64_t end, float *ml, float *o) {
  float x[MLK_ATTENTION_BLOCK], lane[16] = {0}, before;
  int64_t low, high, j, e, run;
  mlki_keys_seen(a, q, i, &low, &high);
  ml[0] = -INFINITY;
  for (j = first; j < end; j++) {
    const int64_t v = mlki_key_at(a, q, a->vs, h / a->group, j, &run);
    float t = -INFINITY;
    if (j >= low && j < high) t = mlki_ref_score(a, q, h, i, j, &before);
    for (e = 0; e < a->e && t != -INFINITY; e++)
      if (!mlki_finite(mlki_ref_widen(a->dtype, a->v, v + e * a->vs[3]))) t = NAN;
    x[j - first] = t;
    if (t > ml[0]) ml[0] = t;
  }
  ml[0] = ml[0] == -INFINITY ? 0.0f : ml[0] + 0.0f;
  for (e = 0; e < a->e; e++) o[e] = 0.0f;
  for (j = first; j < end; j++) {
    const int64_t v = mlki_key_at(a, q, a->vs, h / a->group, j, &run);
    const float p = mlki_ref_exp(x[j - first] - ml[0]);
    if (x[j - first] == -INFINITY) continue;
    lane[(j - first) % 16] += p;
    for (e = 0; e < a->e; e++) {
      const float value = mlki_ref_widen(a->dtype, a->v, v + e * a->vs[3]);
      o[e] = mlki_fma1(p, mlki_finite(value) ? value : 0.0f, o[e]);
    }
  }
  ml[1] = mlki_ref_tree(lane);
}

/* Query i of head h. space: 3 E floats. */
static void mlki_ref_attention(const mlki_attention *a, const mlki_sequence *q, int64_t h, int64_t i, float *space) {
  const int64_t at_out = q->qb * a->os[1] + h * a->os[2] + (q->q0 + i) * a->os[3];
  const int64_t at_lse = q->qb * a->ls[1] + h * a->ls[2] + (q->q0 + i) * a->ls[3];
  float *whole = space, *part = space + a->e, *block = part + a->e;
  float whole_m[2] = {0.0f, 0.0f}, lse;
  int64_t first, j, n;
  for (n = 0, first = 0; n < mlki_max(a->parts, 1) || first < q->t; n++, first += MLK_ATTENTION_SEGMENT) {
    float part_m[2] = {0.0f, 0.0f}, ml[2];
    for (j = first; j < mlki_min(first + MLK_ATTENTION_SEGMENT, q->t); j += MLK_ATTENTION_BLOCK) {
      mlki_ref_attention_block(a, q, h, i, j, mlki_min(j + MLK_ATTENTION_BLOCK, q->t), ml, block);
      mlki_ref_fold(part_m, part, ml[0], ml[1], block, 1, a->e);
    }
    if (a->parts) {
      lse = mlki_ref_unfold(part_m, part, a->out + n * a->os[0] + at_out, a->os[4], a->e);
      a->lse[n * a->ls[0] + at_lse] = lse;
    } else {
      lse = mlki_ref_unfold(part_m, part, part, 1, a->e);
      mlki_ref_fold(whole_m, whole, lse, part_m[1] == 0.0f ? 0.0f : 1.0f, part, 1, a->e);
    }
  }
  if (a->parts) return;
  if (a->sinks) mlki_ref_fold(whole_m, whole, a->sinks[h * a->sinks_step], 1.0f, NULL, 1, a->e);
  lse = mlki_ref_unfold(whole_m, whole, a->out + at_out, a->os[4], a->e);
  if (a->lse) a->lse[at_lse] = lse;
}

/* --- the gradient's definition --- */

/* p and ds of query i and key j before and after the cap; 0 where the key takes no part. */
static int mlki_ref_attention_pair(const mlki_attention *a, const mlki_sequence *q, int64_t h, int64_t i, int64_t j,
                                   float *p, float *ds, float *ds_before) {
  const int64_t row = q->q0 + i;
  const float *dout = a->dout + q->qb * a->dos[0] + h * a->dos[1] + row * a->dos[2];
  const float *out = a->out + q->qb * a->os[1] + h * a->os[2] + row * a->os[3];
  const float lse = a->lse[q->qb * a->ls[1] + h * a->ls[2] + row * a->ls[3]];
  int64_t low, high, e, run, v;
  float x, before, t, cap, delta;
  mlki_keys_seen(a, q, i, &low, &high);
  if (j < low || j >= high) return 0;
  x = mlki_ref_score(a, q, h, i, j, &before);
  if (x == -INFINITY) return 0;
  v = mlki_key_at(a, q, a->vs, h / a->group, j, &run);
  t = mlki_ref_dot_chain(a->e, dout, a->dos[3], (const float *)(const void *)a->v + v, a->vs[3]);
  delta = mlki_ref_sum16(MLKI_PAIR_IP, a->e, dout, a->dos[3], out, a->os[4]);
  *p = mlki_ref_exp(x - lse);
  for (e = 0; e < a->e; e++)
    if (!mlki_finite(dout[e * a->dos[3]])) *p = NAN;
  *ds = *ds_before = *p * (t - delta);
  MLKI_OPAQUE(*ds);
  if (a->softcap > 0.0f) {
    cap = mlki_ref_activate(MLK_TANH, before / a->softcap);
    *ds_before = *ds * mlki_fma1(-cap, cap, 1.0f);
  }
  return 1;
}

/* chain += f scale x for the elements of which scale x is finite. */
static void mlki_ref_extend(float *chain, float f, const float *x, int64_t step, float scale, int64_t n) {
  int64_t j;
  for (j = 0; j < n; j++) {
    float t = scale * x[j * step];
    MLKI_OPAQUE(t);
    chain[j] = mlki_fma1(f, mlki_finite(t) ? t : 0.0f, chain[j]);
  }
}

/* total += chain, which starts anew. */
static void mlki_ref_close(float *total, float *chain, int64_t n) {
  int64_t j;
  for (j = 0; j < n; j++) total[j] += chain[j], chain[j] = 0.0f;
}

static void mlki_ref_attention_dq(const mlki_attention *a, const mlki_sequence *q, int64_t h, int64_t i, float *total) {
  float *chain = total + a->d, *dq = a->dq + q->qb * a->dqs[0] + h * a->dqs[1] + (q->q0 + i) * a->dqs[2];
  float p, ds, before;
  int64_t j, run;
  memset(total, 0, 2 * (size_t)a->d * sizeof *total);
  for (j = 0; j < q->t; j++) {
    if (mlki_ref_attention_pair(a, q, h, i, j, &p, &ds, &before))
      mlki_ref_extend(chain, before,
                      (const float *)(const void *)a->k + mlki_key_at(a, q, a->ks, h / a->group, j, &run), a->ks[3],
                      1.0f, a->d);
    if ((j + 1) % MLK_ATTENTION_BLOCK == 0 || j + 1 == q->t) mlki_ref_close(total, chain, a->d);
  }
  for (j = 0; j < a->d; j++) dq[j * a->dqs[3]] = a->scale * total[j];
}

static void mlki_ref_attention_dk_dv(const mlki_attention *a, const mlki_sequence *q, int64_t g, int64_t j,
                                     float *total) {
  const int64_t rows = q->s * a->group;
  float *chain = total + a->d + a->e, p, ds, before;
  int64_t r, e;
  memset(total, 0, 2 * (size_t)(a->d + a->e) * sizeof *total);
  for (r = 0; r < rows; r++) {
    const int64_t h = g * a->group + r % a->group, i = r / a->group, row = q->q0 + i;
    if (mlki_ref_attention_pair(a, q, h, i, j, &p, &ds, &before)) {
      mlki_ref_extend(chain, before, a->q + q->qb * a->qs[0] + h * a->qs[1] + row * a->qs[2], a->qs[3], a->scale, a->d);
      mlki_ref_extend(chain + a->d, p, a->dout + q->qb * a->dos[0] + h * a->dos[1] + row * a->dos[2], a->dos[3], 1.0f,
                      a->e);
    }
    if ((r + 1) % MLK_SEGMENT == 0 || r + 1 == rows) mlki_ref_close(total, chain, a->d + a->e);
  }
  for (e = 0; a->dk && e < a->d; e++)
    a->dk[q->kb * a->dks[0] + g * a->dks[1] + (q->k0 + j) * a->dks[2] + e * a->dks[3]] = total[e];
  for (e = 0; a->dv && e < a->e; e++)
    a->dv[q->kb * a->dvs[0] + g * a->dvs[1] + (q->k0 + j) * a->dvs[2] + e * a->dvs[3]] = total[a->d + e];
}

static void mlki_ref_attention_dbias(const mlki_attention *a, const mlki_sequence *q) {
  int64_t g, n, r, j;
  float p, ds, before;
  for (g = 0; g < a->groups; g++)
    for (n = 0; n < q->t; n += MLK_ATTENTION_BLOCK)
      for (r = 0; r < q->s * a->group; r++) {
        const int64_t h = g * a->group + r % a->group, i = r / a->group;
        for (j = n; j < mlki_min(n + MLK_ATTENTION_BLOCK, q->t); j++)
          if (mlki_ref_attention_pair(a, q, h, i, j, &p, &ds, &before))
            a->dbias[q->b * a->dbs[0] + h * a->dbs[1] + i * a->dbs[2] + j * a->dbs[3]] += ds;
      }
}

/* --- checks --- */

enum {
  MLKI_AT_Q,
  MLKI_AT_K,
  MLKI_AT_V,
  MLKI_AT_MASK,
  MLKI_AT_BIAS,
  MLKI_AT_ALIBI,
  MLKI_AT_SINKS,
  MLKI_AT_Q_OFFSETS,
  MLKI_AT_K_OFFSETS,
  MLKI_AT_K_LENGTHS,
  MLKI_AT_PAGES,
  MLKI_AT_OUT,
  MLKI_AT_LSE,
  MLKI_AT_DOUT,
  MLKI_AT_COUNT
};

/* The operands of a call: those of the forward call and, of the gradient, dout. */
typedef struct mlki_attention_operands {
  mlk_tensor t[MLKI_AT_COUNT];
  mlki_extent extent[MLKI_AT_COUNT];
} mlki_attention_operands;

static const char *const mlki_attention_names[MLKI_AT_COUNT] = {"q",     "k",     "v",         "mask",      "bias",
                                                                "alibi", "sinks", "q_offsets", "k_offsets", "k_lengths",
                                                                "pages", "out",   "lse",       "dout"};

/* Operand at, of shape; optional ones may be absent. */
static mlk_status mlki_attention_operand(mlk_context *ctx, mlki_attention_operands *o, int at, mlk_dtype dtype,
                                         int optional, const char *like, const int64_t *shape, int rank) {
  return mlki_check_shaped(ctx, mlki_attention_names[at], &o->t[at], dtype, optional, 0, like, shape, rank,
                           &o->extent[at]);
}

/* The type that t must have, which may have q's or f32. */
static mlk_dtype mlki_attention_type(const mlki_attention_operands *o, const mlk_tensor *t) {
  return t->dtype == o->t[MLKI_AT_Q].dtype ? (mlk_dtype)t->dtype : MLK_F32;
}

/* The number of sequences from the offsets of tensor at, 0 without them. */
static mlk_status mlki_attention_offsets(mlk_context *ctx, mlki_attention_operands *o, int at, int of, int64_t *batch) {
  mlk_tensor *t = &o->t[at];
  mlk_status status;
  if (!t->data) return MLK_OK;
  if ((status = mlki_check_tensor(ctx, mlki_attention_names[at], t, MLK_I64, 1, 1, &o->extent[at])) != MLK_OK)
    return status;
  if (t->shape[0] < 1)
    return mlki_fail(ctx, MLK_ERR_SHAPE, "%s: has no element, but must have one more than there are sequences",
                     mlki_attention_names[at]);
  if (o->t[of].shape[0] != 1)
    return mlki_fail(ctx, MLK_ERR_SHAPE, "%s: size of axis 0 is %lld, but must be 1 with %s", mlki_attention_names[of],
                     (long long)o->t[of].shape[0], mlki_attention_names[at]);
  *batch = t->shape[0] - 1;
  return MLK_OK;
}

/* The longest sequence along axis 2 of tensor of. */
static mlk_status mlki_attention_longest(mlk_context *ctx, const char *name, int64_t given, int allowed, int64_t size,
                                         int64_t *longest) {
  *longest = size;
  if (!given) return MLK_OK;
  if (!allowed)
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "%s: is %lld, but must be 0 where all sequences have one length", name,
                     (long long)given);
  if (given < 0 || given > size)
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "%s: is %lld, but must be 0 to %lld", name, (long long)given,
                     (long long)size);
  *longest = given;
  return MLK_OK;
}

/* Shapes of q, k, v and of what tells the sequences apart: sizes into a. */
static mlk_status mlki_attention_shapes(mlk_context *ctx, const mlk_attention_scores *scores,
                                        mlki_attention_operands *o, mlki_attention *a) {
  mlk_tensor *q = &o->t[MLKI_AT_Q], *k = &o->t[MLKI_AT_K], *pages = &o->t[MLKI_AT_PAGES];
  const int paged = pages->data != NULL;
  int64_t batch_k = 0, axis, like[4];
  mlk_status status;
  if ((status = mlki_check_real(ctx, "q", q, 4, 4, &o->extent[MLKI_AT_Q])) != MLK_OK) return status;
  if (q->dtype != MLK_F32) a->dtype = (mlk_dtype)q->dtype;
  if ((status = mlki_check_tensor(ctx, "k", k, a->dtype, 4, 4, &o->extent[MLKI_AT_K])) != MLK_OK) return status;
  a->batch = q->shape[0], a->heads = q->shape[1], a->d = q->shape[3], a->groups = k->shape[1];
  if (a->d < 1) return mlki_fail(ctx, MLK_ERR_SHAPE, "q: size of axis 3 is 0, but must be at least 1");
  if (a->heads && (a->groups < 1 || a->heads % a->groups))
    return mlki_fail(ctx, MLK_ERR_SHAPE, "k: size of axis 1 is %lld, but must divide that of q, %lld",
                     (long long)a->groups, (long long)a->heads);
  a->group = a->groups ? a->heads / a->groups : 0;
  like[0] = k->shape[0], like[1] = k->shape[1], like[2] = k->shape[2], like[3] = o->t[MLKI_AT_V].shape[3];
  if ((status = mlki_attention_operand(ctx, o, MLKI_AT_V, a->dtype, 0, "k", like, 4)) != MLK_OK) return status;
  a->e = like[3];
  like[3] = a->d;
  if ((status = mlki_check_sizes(ctx, "k", k, "q", like, 4)) != MLK_OK) return status;
  if (o->t[MLKI_AT_K_OFFSETS].data && (o->t[MLKI_AT_K_LENGTHS].data || paged))
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "k_offsets: given together with %s", paged ? "pages" : "k_lengths");
  if ((status = mlki_attention_offsets(ctx, o, MLKI_AT_Q_OFFSETS, MLKI_AT_Q, &a->batch)) != MLK_OK) return status;
  batch_k = paged ? a->batch : k->shape[0];
  if ((status = mlki_attention_offsets(ctx, o, MLKI_AT_K_OFFSETS, MLKI_AT_K, &batch_k)) != MLK_OK) return status;
  if (batch_k != a->batch)
    return mlki_fail(ctx, MLK_ERR_SHAPE, "%s: has %lld sequences, but q has %lld",
                     o->t[MLKI_AT_K_OFFSETS].data ? "k_offsets" : "k", (long long)batch_k, (long long)a->batch);
  if ((status = mlki_attention_operand(ctx, o, MLKI_AT_K_LENGTHS, MLK_I64, 1, "q", &a->batch, 1)) != MLK_OK)
    return status;
  axis = k->shape[2];
  if (paged) {
    if ((status = mlki_check_tensor(ctx, "pages", pages, MLK_I64, 2, 2, &o->extent[MLKI_AT_PAGES])) != MLK_OK)
      return status;
    if (pages->shape[0] != a->batch)
      return mlki_fail(ctx, MLK_ERR_SHAPE, "pages: size of axis 0 is %lld, but q has %lld sequences",
                       (long long)pages->shape[0], (long long)a->batch);
    a->page = axis;
    if (mlki_mul_overflows(axis, pages->shape[1], &axis) || axis > INT64_MAX / 8)
      return mlki_fail(ctx, MLK_ERR_SIZE, "pages: %lld pages of %lld keys are 2^60 or more", (long long)pages->shape[1],
                       (long long)a->page);
  }
  a->packed_q = o->t[MLKI_AT_Q_OFFSETS].data != NULL, a->packed_k = o->t[MLKI_AT_K_OFFSETS].data != NULL;
  if ((status = mlki_attention_longest(ctx, "longest_q", scores->longest_q, a->packed_q, q->shape[2], &a->s)) != MLK_OK)
    return status;
  return mlki_attention_longest(ctx, "longest_k", scores->longest_k,
                                a->packed_k || o->t[MLKI_AT_K_LENGTHS].data != NULL, axis, &a->t);
}

/* The numbers that make scores. */
static mlk_status mlki_attention_numbers(mlk_context *ctx, const mlk_attention_scores *scores, mlki_attention *a) {
  const int64_t most = (int64_t)1 << 60, exact = (int64_t)1 << 24;
  if (!mlki_finite(scores->scale))
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "scale: is %g, but must be finite", (double)scores->scale);
  if (!(scores->softcap >= 0.0f && mlki_finite(scores->softcap)))
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "softcap: is %g, but must be finite and at least 0",
                     (double)scores->softcap);
  if (scores->window < 0 || scores->window > most)
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "window: is %lld, but must be 0 to 2^60", (long long)scores->window);
  if (scores->offset < -most || scores->offset > most)
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "offset: is %lld, but must be -2^60 to 2^60", (long long)scores->offset);
  if (scores->alibi.data && (a->s > exact || a->t > exact || scores->offset > exact || scores->offset < -exact ||
                             a->s + a->t + (scores->offset < 0 ? -scores->offset : scores->offset) > exact))
    return mlki_fail(ctx, MLK_ERR_SIZE, "alibi: distances up to %lld + %lld + |%lld|, but at most 2^24 is exact",
                     (long long)a->s, (long long)a->t, (long long)scores->offset);
  a->scale = scores->scale != 0.0f ? scores->scale : 1.0f / sqrtf((float)a->d);
  a->softcap = scores->softcap;
  a->causal = scores->causal != 0;
  a->offset = scores->offset, a->window = scores->window;
  return MLK_OK;
}

/* Values of offsets from, which lie in [0, last], ascend from 0 to last, none longer than longest. */
static mlk_status mlki_attention_check_offsets(mlk_context *ctx, const char *name, const mlk_tensor *t, int64_t last,
                                               int64_t longest) {
  const int64_t *v = (const int64_t *)t->data;
  int64_t i;
  for (i = 0; i < t->shape[0]; i++) {
    const int64_t at = v[i * t->stride[0]], before = i ? v[(i - 1) * t->stride[0]] : 0;
    if (i == 0 ? at != 0 : at < before)
      return mlki_fail(ctx, MLK_ERR_ARGUMENT, "%s: element %lld is %lld, but must be %s%lld", name, (long long)i,
                       (long long)at, i ? "at least " : "", (long long)before);
    if (at - before > longest)
      return mlki_fail(ctx, MLK_ERR_ARGUMENT, "%s: sequence %lld is %lld long, but the longest may be %lld", name,
                       (long long)i - 1, (long long)(at - before), (long long)longest);
    if (i + 1 == t->shape[0] && at != last)
      return mlki_fail(ctx, MLK_ERR_ARGUMENT, "%s: the last element is %lld, but must be %lld, the size of axis 2",
                       name, (long long)at, (long long)last);
  }
  return MLK_OK;
}

/* What only a call looks at: offsets, lengths, pages. */
static mlk_status mlki_attention_check_values(mlk_context *ctx, const mlki_attention_operands *o,
                                              const mlki_attention *a) {
  mlk_status status;
  int64_t b, n;
  if (a->packed_q && (status = mlki_attention_check_offsets(ctx, "q_offsets", &o->t[MLKI_AT_Q_OFFSETS],
                                                            o->t[MLKI_AT_Q].shape[2], a->s)) != MLK_OK)
    return status;
  if (a->packed_k && (status = mlki_attention_check_offsets(ctx, "k_offsets", &o->t[MLKI_AT_K_OFFSETS],
                                                            o->t[MLKI_AT_K].shape[2], a->t)) != MLK_OK)
    return status;
  if (a->k_lengths &&
      (status = mlki_check_ids(ctx, "k_lengths", &o->t[MLKI_AT_K_LENGTHS], a->batch, 0, a->t)) != MLK_OK)
    return status;
  for (b = 0; a->pages && b < a->batch; b++) {
    const int64_t t = mlki_sequence_of(a, b).t, pages = o->t[MLKI_AT_K].shape[0];
    for (n = 0; n * a->page < t; n++) {
      const int64_t page = a->pages[b * a->pages_s[0] + n * a->pages_s[1]];
      if (page < 0 || page >= pages)
        return mlki_fail(ctx, MLK_ERR_ARGUMENT, "pages: element (%lld, %lld) is %lld, but must be 0 to %lld",
                         (long long)b, (long long)n, (long long)page, (long long)pages - 1);
    }
  }
  return MLK_OK;
}

/* All operands but out, lse and dout: what the forward call and the gradient have in common. */
static mlk_status mlki_attention_inputs(mlk_context *ctx, const mlk_attention_scores *scores,
                                        mlki_attention_operands *o, mlki_attention *a) {
  mlk_tensor *t = o->t;
  int64_t whole[4];
  mlk_status status;
  a->reference = ctx->reference;
  a->job.row = ctx->row;
  t[MLKI_AT_MASK] = scores->mask, t[MLKI_AT_BIAS] = scores->bias;
  t[MLKI_AT_ALIBI] = scores->alibi, t[MLKI_AT_SINKS] = scores->sinks;
  t[MLKI_AT_Q_OFFSETS] = scores->q_offsets, t[MLKI_AT_K_OFFSETS] = scores->k_offsets;
  t[MLKI_AT_K_LENGTHS] = scores->k_lengths;
  if ((status = mlki_attention_shapes(ctx, scores, o, a)) != MLK_OK ||
      (status = mlki_attention_numbers(ctx, scores, a)) != MLK_OK ||
      (status = mlki_attention_operand(ctx, o, MLKI_AT_ALIBI, MLK_F32, 1, "q", &a->heads, 1)) != MLK_OK ||
      (status = mlki_attention_operand(ctx, o, MLKI_AT_SINKS, MLK_F32, 1, "q", &a->heads, 1)) != MLK_OK)
    return status;
  whole[0] = a->batch, whole[1] = a->heads, whole[2] = a->s, whole[3] = a->t;
  if (t[MLKI_AT_MASK].data &&
      ((status = mlki_check_tensor(ctx, "mask", &t[MLKI_AT_MASK], MLK_U8, 0, 4, &o->extent[MLKI_AT_MASK])) != MLK_OK ||
       (status = mlki_broadcast_strides(ctx, "mask", &t[MLKI_AT_MASK], "scores", whole, 4, a->ms)) != MLK_OK))
    return status;
  if (t[MLKI_AT_BIAS].data &&
      ((status = mlki_check_tensor(ctx, "bias", &t[MLKI_AT_BIAS], MLK_F32, 0, 4, &o->extent[MLKI_AT_BIAS])) != MLK_OK ||
       (status = mlki_broadcast_strides(ctx, "bias", &t[MLKI_AT_BIAS], "scores", whole, 4, a->bs)) != MLK_OK))
    return status;
  memcpy(a->qs, t[MLKI_AT_Q].stride, sizeof a->qs);
  memcpy(a->ks, t[MLKI_AT_K].stride, sizeof a->ks);
  memcpy(a->vs, t[MLKI_AT_V].stride, sizeof a->vs);
  a->q = (const float *)t[MLKI_AT_Q].data;
  a->k = (const char *)t[MLKI_AT_K].data, a->v = (const char *)t[MLKI_AT_V].data;
  a->mask = (const uint8_t *)t[MLKI_AT_MASK].data, a->bias = (const float *)t[MLKI_AT_BIAS].data;
  a->alibi = (const float *)t[MLKI_AT_ALIBI].data, a->alibi_step = t[MLKI_AT_ALIBI].stride[0];
  a->sinks = (const float *)t[MLKI_AT_SINKS].data, a->sinks_step = t[MLKI_AT_SINKS].stride[0];
  a->q_offsets = (const int64_t *)t[MLKI_AT_Q_OFFSETS].data, a->q_offsets_step = t[MLKI_AT_Q_OFFSETS].stride[0];
  a->k_offsets = (const int64_t *)t[MLKI_AT_K_OFFSETS].data, a->k_offsets_step = t[MLKI_AT_K_OFFSETS].stride[0];
  a->k_lengths = (const int64_t *)t[MLKI_AT_K_LENGTHS].data, a->k_lengths_step = t[MLKI_AT_K_LENGTHS].stride[0];
  a->pages = (const int64_t *)t[MLKI_AT_PAGES].data;
  a->pages_s[0] = t[MLKI_AT_PAGES].stride[0], a->pages_s[1] = t[MLKI_AT_PAGES].stride[1];
  return MLK_OK;
}

/* No output shares an element with an operand, nor with another output. */
static mlk_status mlki_attention_apart(mlk_context *ctx, int run, const mlki_attention_operands *o,
                                       const mlki_operand *outputs, int count, int inputs) {
  mlki_operand in[MLKI_AT_COUNT];
  int i, n = 0;
  for (i = 0; i < inputs; i++)
    if (o->t[i].data) in[n].name = mlki_attention_names[i], in[n].t = &o->t[i], in[n].extent = &o->extent[i], n++;
  return mlki_check_all_apart(ctx, run, outputs, count, in, n, NULL);
}

/* Sum over i in [0, s) of i + shift, each cut to [0, t]. */
static uint64_t mlki_sum_cut(int64_t s, int64_t shift, int64_t t) {
  const int64_t from = mlki_min(mlki_max(-shift, 0), s), to = mlki_min(mlki_max(t - shift, from), s);
  /* rows from .. to - 1 rise from from + shift, the rest have t */
  const uint64_t n = (uint64_t)(to - from), lowest = (uint64_t)(from + shift);
  return n * lowest + (n ? n * (n - 1) / 2 : 0) + (uint64_t)(s - to) * (uint64_t)t;
}

/* FLOPs: per_pair for each pair of query and key that causal and window leave, all sequences at their longest. */
static mlk_status mlki_attention_flops(mlk_context *ctx, int64_t per_pair, mlki_attention *a) {
  const int64_t shift = a->t - a->s + a->offset;
  const int64_t above = a->causal ? 1 : a->window;
  const uint64_t high = above ? mlki_sum_cut(a->s, shift + above, a->t) : (uint64_t)a->s * (uint64_t)a->t;
  const uint64_t low = a->window ? mlki_sum_cut(a->s, shift - a->window + 1, a->t) : 0;
  int64_t flops;
  if (mlki_mul_overflows(a->s, a->t, &flops) || mlki_mul_overflows(flops, a->batch, &flops) ||
      mlki_mul_overflows(flops, a->heads, &flops) || mlki_mul_overflows(flops, per_pair, &flops))
    return mlki_fail(ctx, MLK_ERR_SIZE,
                     "q, k: the FLOPs of %lld queries, %lld keys, %lld heads, %lld sequences do not fit in 63 bits",
                     (long long)a->s, (long long)a->t, (long long)a->heads, (long long)a->batch);
  /* 63 bits at 2^16 bytes for each element of each query and key: more than any variant takes */
  if (((double)a->s * (double)a->group + (double)a->t + 4096.0) * ((double)a->d + (double)a->e + 64.0) > 1.0e14)
    return mlki_fail(ctx, MLK_ERR_SIZE,
                     "q, k, v: the workspace of %lld queries, %lld keys, %lld and %lld elements a head does not fit in "
                     "63 bits",
                     (long long)a->s, (long long)a->t, (long long)a->d, (long long)a->e);
  a->job.flops = (uint64_t)per_pair * (uint64_t)(a->batch * a->heads) * (high - low);
  return MLK_OK;
}

/* >>attention_strips -----------------------------------------------------------------------------------------------
   Queries of all heads that share a key head are rows of one tile, row r being query r / group of head r % group, so
   that K and V are read once for all of them. A block of keys meets a tile strip by strip (MR rows): the matmul strip
   makes a strip of scores, at most MR x BLOCK, which stays in level 1; its rows become weights; the strip again makes
   weights times V. Variants, by who packs K:
     heads   a task packs a block of K for its tile, which has all rows of the head
     tiles   K and V of some heads are packed first, by all threads; then tasks take tiles
     split   few rows and many keys: a task takes one block; then the blocks of a row are folded */

static void mlki_ref_attention_task(void *op, int index) {
  mlki_attention *a = (mlki_attention *)op;
  int64_t b, h, i;
  (void)index;
  for (b = 0; b < a->batch; b++) {
    const mlki_sequence q = mlki_sequence_of(a, b);
    for (h = 0; h < a->heads; h++)
      for (i = 0; i < q.s; i++) mlki_ref_attention(a, &q, h, i, (float *)(void *)a->job.workspace);
  }
}

/* A matrix as the strip wants its B. */
typedef struct mlki_panels {
  const float *p;
  int64_t rs, panel;
} mlki_panels;

/* What one task works with: parts of its workspace. */
typedef struct mlki_attention_space {
  float *q;                                                  /* strips of queries, scaled: [strip][D][MR] */
  float *scores;                                             /* [MR][score pitch] */
  float *block;                                              /* [MR][row pitch] */
  float *part, *whole, *part_m, *part_l, *whole_m, *whole_l; /* states of the rows of a tile */
  float *k, *v;                                              /* panels of one block */
  float *stage;                                              /* some keys, dense */
  float *clean;                                              /* V of a block without what is not finite */
  float *top, *sum, *scale;                                  /* of a strip's rows */
} mlki_attention_space;

#define MLKI_ATTENTION_ROWS   112       /* of a tile, if its head has more than twice as many */
#define MLKI_ATTENTION_SWEPT  64        /* elements of a value from which sweeps ask far enough ahead */
#define MLKI_TURN_AHEAD       1024      /* floats of K that are asked for ahead, at least */
#define MLKI_ATTENTION_SHARED (1 << 24) /* floats of K and V that are packed ahead, unless one head has more */

/* Dense rows of n floats lie so far apart. */
static int64_t mlki_attention_pitch(int64_t n) { return mlki_round_up(mlki_max(n, 1), 16); }

#define MLKI_SCORE_PITCH (MLK_ATTENTION_BLOCK + 16) /* rows of scores: not a power of two apart */

/* Keys that are staged at once, and whose multiples start panels and lanes of sums alike. */
static int64_t mlki_attention_step(const mlki_kernels *row) { return row->nr % 16 == 0 ? row->nr : 48; }

/* Floats of a block of K or V with n elements a key, in panels or as dense rows. */
static int64_t mlki_attention_block_floats(const mlki_kernels *row, int64_t n) {
  return mlki_round_up(mlki_max(mlki_round_up(MLK_ATTENTION_BLOCK, row->nr) * n,
                                MLK_ATTENTION_BLOCK * mlki_round_up(mlki_attention_pitch(n), row->nr)) +
                           16,
                       16);
}

static void mlki_attention_carve(const mlki_attention *a, mlki_carver *carver, mlki_attention_space *s) {
  const mlki_kernels *row = a->job.row;
  const int64_t mr = row->mr, rows = mlki_round_up(a->tile, mr), pitch = mlki_attention_pitch(a->e);
  s->q = (float *)mlki_carve(carver, rows * a->d + 16, 4);
  s->scores = (float *)mlki_carve(carver, mr * mlki_max(MLKI_SCORE_PITCH, mlki_attention_pitch(a->d)), 4);
  s->block = (float *)mlki_carve(carver, mr * pitch, 4);
  s->part = (float *)mlki_carve(carver, rows * pitch, 4);
  s->whole = (float *)mlki_carve(carver, a->t > MLK_ATTENTION_SEGMENT || a->sinks ? rows * pitch : 0, 4);
  s->part_m = (float *)mlki_carve(carver, rows, 4);
  s->part_l = (float *)mlki_carve(carver, rows, 4);
  s->whole_m = (float *)mlki_carve(carver, rows, 4);
  s->whole_l = (float *)mlki_carve(carver, rows, 4);
  s->k = (float *)mlki_carve(carver, a->shared || a->turns ? 0 : mlki_attention_block_floats(row, a->d), 4);
  s->v = (float *)mlki_carve(carver, a->shared || a->v_in_place ? 0 : mlki_attention_block_floats(row, a->e), 4);
  s->stage = (float *)mlki_carve(carver, mlki_attention_step(row) * mlki_attention_pitch(mlki_max(a->d, a->e)) + 16, 4);
  s->clean = (float *)mlki_carve(carver, MLK_ATTENTION_BLOCK * pitch, 4);
  s->top = (float *)mlki_carve(carver, MLKI_CONV_PANEL_MAX, 4);
  s->sum = (float *)mlki_carve(carver, MLKI_CONV_PANEL_MAX, 4);
  s->scale = (float *)mlki_carve(carver, 2 * MLKI_CONV_PANEL_MAX, 4);
}

/* --- keys and values --- */

/* Keys [j, j + n) of k or v, n at most a step, as dense f32 rows: in place where they are, else in stage. */
static const float *mlki_attention_rows(const mlki_attention *a, const mlki_sequence *q, const char *base,
                                        const int64_t *stride, int64_t g, int64_t j, int64_t n, int64_t width,
                                        float *stage, int64_t *pitch) {
  const int64_t bytes = a->dtype == MLK_F32 ? 4 : 2;
  int64_t i, run, e, at = mlki_key_at(a, q, stride, g, j, &run);
  if (a->dtype == MLK_F32 && run >= n && (stride[3] == 1 || width == 1)) {
    *pitch = stride[2];
    return (const float *)(const void *)base + at;
  }
  *pitch = mlki_attention_pitch(width);
  if (a->dtype != MLK_F32 && run >= n && stride[3] == 1 && stride[2] == width && *pitch == width) {
    a->job.row->widen(a->dtype, base + at * bytes, stage, n * width);
    return stage;
  }
  for (i = 0; i < n; i++, at += stride[2]) {
    float *to = stage + i * *pitch;
    if (i == run) {
      int64_t more;
      at = mlki_key_at(a, q, stride, g, j + i, &more);
      run = i + more;
    }
    if (stride[3] != 1)
      for (e = 0; e < width; e++) to[e] = mlki_ref_widen(a->dtype, base, at + e * stride[3]);
    else if (a->dtype == MLK_F32)
      memcpy(to, base + at * 4, (size_t)width * 4);
    else
      a->job.row->widen(a->dtype, base + at * bytes, to, width);
  }
  return stage;
}

/* Asks for keys [j, j + n) of k or v, which are read soon, as far as they lie stride[2] apart. */
static void mlki_attention_ask(const mlki_attention *a, const mlki_sequence *q, const char *base, const int64_t *stride,
                               int64_t g, int64_t j, int64_t n, int64_t width) {
  const int64_t bytes = a->dtype == MLK_F32 ? 4 : 2;
  int64_t run, at, i, e;
  if (j >= q->t) return;
  at = mlki_key_at(a, q, stride, g, j, &run);
  for (i = 0; i < mlki_min(n, run); i++, at += stride[2])
    for (e = 0; e < width; e += 64 / bytes) MLKI_PREFETCH2(base + (at + e) * bytes);
}

/* Keys [from, to) of K as B of the scores: panels [panel][D][NR], from a multiple of the step. */
static void mlki_attention_pack_k(const mlki_attention *a, const mlki_sequence *q, int64_t g, int64_t from, int64_t to,
                                  float *panels, float *stage) {
  const mlki_kernels *row = a->job.row;
  const int64_t step = mlki_attention_step(row);
  int64_t j, pitch;
  for (j = from; j < to; j += step) {
    const int64_t n = mlki_min(step, to - j);
    const float *rows = mlki_attention_rows(a, q, a->k, a->ks, g, j, n, a->d, stage, &pitch);
    if (a->streams && a->dtype != MLK_F32) mlki_attention_ask(a, q, a->k, a->ks, g, j + 2 * step, step, a->d);
    if (a->streams && !a->sweeps) mlki_attention_ask(a, q, a->v, a->vs, g, j, n, a->e);
    row->pack_panels(panels + (j - from) * a->d, n, a->d, rows, pitch, 1);
  }
}

/* The same keys without packing: their products with rows queries of one strip, to rows of scores. */
static void mlki_attention_turn(const mlki_attention *a, const mlki_sequence *q, int64_t g, int64_t from, int64_t to,
                                const float *queries, int64_t rows, float *scores, float *stage) {
  const mlki_kernels *row = a->job.row;
  const int64_t step = mlki_attention_step(row);
  mlki_turn t;
  int64_t j, k;
  t.rows = rows, t.q_rs = 1, t.q_cs = row->mr, t.c_pitch = MLKI_SCORE_PITCH;
  t.last = INT64_MAX, t.after = 0;
  for (j = from; j < to; j += step) {
    const float *keys;
    t.n = mlki_min(step, to - j);
    keys = mlki_attention_rows(a, q, a->k, a->ks, g, j, t.n, a->d, stage, &t.pitch);
    t.ahead = keys == stage ? 0 : mlki_round_up(mlki_max(MLKI_TURN_AHEAD / a->d, 16), 16) * t.pitch;
    if (a->dtype != MLK_F32) mlki_attention_ask(a, q, a->k, a->ks, g, j + 2 * step, step, a->d);
    if (!a->sweeps) mlki_attention_ask(a, q, a->v, a->vs, g, j, t.n, a->e);
    t.c = scores + (j - from);
    for (k = 0; k < a->d; k += MLK_SEGMENT) {
      t.q = queries + k * row->mr, t.keys = keys + k;
      t.depth = mlki_min(a->d - k, MLK_SEGMENT), t.add = k > 0;
      row->turn(&t);
    }
  }
}

/* Keys [from, to) of V as B of the outputs, [panel][key][NR]; 16-bit ones of one task as dense f32 rows. */
static mlki_panels mlki_attention_pack_v(const mlki_attention *a, const mlki_sequence *q, int64_t g, int64_t from,
                                         int64_t to, float *panels, float *stage) {
  const mlki_kernels *row = a->job.row;
  const int64_t step = mlki_attention_step(row), nr = row->nr;
  const int dense = a->dtype != MLK_F32 && !a->shared;
  mlki_panels v;
  int64_t j, e, pitch = mlki_attention_pitch(a->e);
  v.p = panels, v.rs = dense ? pitch : nr, v.panel = dense ? nr : (to - from) * nr;
  for (j = from; j < to; j += step) {
    const int64_t n = mlki_min(step, to - j);
    float *space = dense ? panels + (j - from) * pitch : stage;
    const float *rows = mlki_attention_rows(a, q, a->v, a->vs, g, j, n, a->e, space, &pitch);
    for (e = 0; e < a->e && !dense; e += nr)
      row->pack(panels + e / nr * v.panel + (j - from) * nr, mlki_min(nr, a->e - e), nr, n, rows + e, 1, pitch);
  }
  return v;
}

/* V from key from on, read where it lies, which is never in pages. */
static mlki_panels mlki_attention_v_in_place(const mlki_attention *a, const mlki_sequence *q, int64_t g, int64_t from) {
  mlki_panels v;
  int64_t run;
  v.p = (const float *)(const void *)a->v + mlki_key_at(a, q, a->vs, g, from, &run);
  v.rs = a->vs[2], v.panel = a->job.row->nr;
  return v;
}

/* --- a strip of queries and a block of keys --- */

/* Keys of one block, those that some row of a tile sees: [from, to), from a multiple of the step behind the block's
   first. */
typedef struct mlki_attention_keys {
  int64_t g, from, to;
  const float *k; /* panels from key from on */
  mlki_panels v;
} mlki_attention_keys;

static const mlki_scores *mlki_attention_scores_of(const mlki_attention *a, const mlki_sequence *q, int64_t h,
                                                   int64_t i, int64_t j, mlki_scores *c) {
  c->softcap = a->softcap;
  c->alibi = a->alibi != NULL;
  c->slope = c->alibi ? -a->alibi[h * a->alibi_step] : 0.0f;
  c->ahead = (float)(i + (q->t - q->s) + a->offset - j);
  c->bias = a->bias ? a->bias + q->b * a->bs[0] + h * a->bs[1] + i * a->bs[2] + j * a->bs[3] : NULL;
  c->mask = a->mask ? a->mask + q->b * a->ms[0] + h * a->ms[1] + i * a->ms[2] + j * a->ms[3] : NULL;
  c->bias_step = a->bs[3], c->mask_step = a->ms[3];
  return c;
}

/* Row r's products with keys [from, to) to scores, -infinity for keys it does not see and for up to 15 behind them, so
   that the row has no tail. */
static void mlki_attention_score(const mlki_attention *a, const mlki_sequence *q, int64_t g, int64_t r, int64_t from,
                                 int64_t to, float *x) {
  const int64_t i = r / a->group, h = g * a->group + r % a->group;
  int64_t low, high, j;
  mlki_scores c;
  if (!a->plain) a->job.row->score_row(mlki_attention_scores_of(a, q, h, i, from, &c), x, to - from);
  mlki_keys_seen(a, q, i, &low, &high);
  for (j = from; j < mlki_min(low, to); j++) x[j - from] = -INFINITY;
  for (j = mlki_max(high, from); j < mlki_round_up(to - from, 16) + from; j++) x[j - from] = -INFINITY;
}

/* Scores NaN where a key takes part whose value is not finite, and a copy of V without such elements. */
static void mlki_attention_poison(const mlki_attention *a, const mlki_sequence *q, const mlki_attention_keys *keys,
                                  int64_t rows, float *scores, float *clean) {
  const int64_t pitch = mlki_attention_pitch(a->e);
  int64_t j, e, i, run;
  for (j = keys->from; j < keys->to; j++) {
    const int64_t at = mlki_key_at(a, q, a->vs, keys->g, j, &run);
    int whole = 1;
    for (e = 0; e < a->e; e++) {
      const float v = mlki_ref_widen(a->dtype, a->v, at + e * a->vs[3]);
      clean[(j - keys->from) * pitch + e] = mlki_finite(v) ? v : 0.0f;
      whole &= mlki_finite(v);
    }
    for (i = 0; i < rows && !whole; i++)
      if (scores[i * MLKI_SCORE_PITCH + j - keys->from] != -INFINITY)
        scores[i * MLKI_SCORE_PITCH + j - keys->from] = NAN;
  }
}

/* Products of a strip of rows with cols keys, whole panels of them, packed as [depth][MR] and [panel][depth][NR], to
   rows of scores. */
static void mlki_attention_products(const mlki_kernels *row, int64_t rows, const float *a, const float *b,
                                    int64_t depth, int64_t cols, float *c) {
  mlki_strip strip;
  int64_t k;
  strip.a_rs = 1, strip.a_cs = row->mr;
  strip.b_rs = row->nr, strip.b_panel = row->nr * depth;
  strip.c = c, strip.c_rs = MLKI_SCORE_PITCH;
  strip.rows = rows, strip.cols = cols;
  for (k = 0; k < mlki_max(depth, 1); k += MLK_SEGMENT) {
    strip.a = a + k * row->mr, strip.b = b + k * row->nr;
    strip.k = mlki_min(depth - k, MLK_SEGMENT);
    strip.chain = k ? MLKI_ADD : MLKI_START;
    row->strip(&strip);
  }
}

/* Weights times values. Where few rows read V from memory, some keys at a time side by side, so that a row of V is read
   as a whole and once. */
static void mlki_attention_weigh(const mlki_attention *a, const mlki_strip *all) {
  const mlki_kernels *row = a->job.row;
  mlki_strip part = *all;
  if (!a->sweeps || all->b_panel != row->nr) {
    row->strip(all);
    return;
  }
  for (part.k = MLKI_SWEEP; part.a - all->a + MLKI_SWEEP <= all->k; part.chain = MLKI_CONTINUE) {
    row->sweep(&part, all->rows);
    part.a += MLKI_SWEEP, part.b += MLKI_SWEEP * all->b_rs;
  }
  part.k = all->k - (part.a - all->a);
  if (part.k) row->strip(&part);
}

/* A strip of a block from scratch: rows [first, first + rows) of a tile whose queries are at queries, against the keys
   that the strip sees; largest scores and sums to s->top and s->sum, weighted values to o. */
static void mlki_attention_strip(const mlki_attention *a, const mlki_sequence *q, const mlki_attention_keys *keys,
                                 const float *queries, int64_t first, int64_t rows, mlki_attention_space *s, float *o,
                                 int careful) {
  const mlki_kernels *row = a->job.row;
  const int64_t n = keys->to - keys->from, padded = mlki_round_up(n, 16), pitch = mlki_attention_pitch(a->e);
  mlki_strip strip;
  int64_t i;
  if (a->turns)
    mlki_attention_turn(a, q, keys->g, keys->from, keys->to, queries, rows, s->scores, s->stage);
  else
    mlki_attention_products(row, rows, queries, keys->k, a->d, mlki_round_up(n, row->nr), s->scores);
  for (i = 0; i < rows; i++)
    mlki_attention_score(a, q, keys->g, first + i, keys->from, keys->to, s->scores + i * MLKI_SCORE_PITCH);
  if (careful) mlki_attention_poison(a, q, keys, rows, s->scores, s->clean);
  for (i = 0; i < rows; i++) { /* all largest first: one row's sum need not wait for another's */
    const float top = row->row_max(s->scores + i * MLKI_SCORE_PITCH, padded);
    s->top[i] = top == -INFINITY ? 0.0f : top;
  }
  for (i = 0; i < rows; i++) {
    float *x = s->scores + i * MLKI_SCORE_PITCH;
    s->sum[i] = row->row_exp(x, x, padded, s->top[i]);
  }
  strip.a = s->scores, strip.a_rs = MLKI_SCORE_PITCH, strip.a_cs = 1;
  strip.b = careful ? s->clean : keys->v.p;
  strip.b_rs = careful ? pitch : keys->v.rs, strip.b_panel = careful ? row->nr : keys->v.panel;
  strip.c = o, strip.c_rs = pitch;
  strip.rows = rows, strip.cols = a->e, strip.k = n, strip.chain = MLKI_START;
  mlki_attention_weigh(a, &strip);
}

/* The same, again with care where something is not finite: a value that takes no part may have come in as 0 times
   infinity. */
static void mlki_attention_strip_checked(const mlki_attention *a, const mlki_sequence *q,
                                         const mlki_attention_keys *keys, const float *queries, int64_t first,
                                         int64_t rows, mlki_attention_space *s, float *o) {
  const int64_t pitch = mlki_attention_pitch(a->e);
  int64_t i;
  mlki_attention_strip(a, q, keys, queries, first, rows, s, o, 0);
  if (a->e == pitch && a->job.row->finite_row(o, rows * pitch)) return;
  for (i = 0; i < rows; i++)
    if (!a->job.row->finite_row(o + i * pitch, a->e)) {
      mlki_attention_strip(a, q, keys, queries, first, rows, s, o, 1);
      return;
    }
}

/* --- folding --- */

/* x[i] = op(x[i]), n of them. */
static void mlki_attention_map(const mlki_kernels *row, mlk_map_op op, float alpha, float *x, int64_t n) {
  mlki_map_row m;
  memset(&m, 0, sizeof m);
  m.op = op, m.alpha = alpha, m.a = m.b = m.out = x, m.a_steps = m.b_steps = 1, m.n = n;
  row->map(&m);
}

/* What fold_row scales by when states (m, l, .) of rows rows take in parts with largest scores top: what is there by
   scale[i], what comes by scale[rows + i]. */
static void mlki_attention_fold_scales(const mlki_kernels *row, int64_t rows, const float *m, const float *l,
                                       const float *top, float *scale) {
  int64_t i;
  for (i = 0; i < rows; i++) {
    const float best = l[i] == 0.0f || top[i] > m[i] ? top[i] : m[i];
    scale[i] = m[i] - best, scale[rows + i] = top[i] - best;
  }
  mlki_attention_map(row, MLK_EXP, 1.0f, scale, 2 * rows);
}

/* State (m, l, o) of one row takes in (top, sum, part), sum 0: nothing. */
static void mlki_attention_fold_row(const mlki_kernels *row, float *m, float *l, float *o, float top, float sum,
                                    const float *part, int64_t e, float a, float c) {
  float t = sum * c;
  if (sum == 0.0f) return;
  if (*l == 0.0f) {
    *m = top, *l = sum;
    memcpy(o, part, (size_t)e * sizeof *o);
    return;
  }
  MLKI_OPAQUE(t);
  *m = top > *m ? top : *m;
  *l = mlki_fma1(*l, a, t);
  row->fold_row(o, part, e, a, c);
}

/* States (m, l, o) of rows rows take in (top, sum, part), sum 0: nothing. scale: space of 2 rows floats. part may be o
   itself where all states are empty. */
static void mlki_attention_fold(const mlki_kernels *row, int64_t rows, float *m, float *l, float *o, const float *top,
                                const float *sum, const float *part, int64_t pitch, int64_t e, float *scale) {
  int64_t i;
  if (part == o) {
    memcpy(m, top, (size_t)rows * sizeof *m);
    memcpy(l, sum, (size_t)rows * sizeof *l);
    return;
  }
  mlki_attention_fold_scales(row, rows, m, l, top, scale);
  for (i = 0; i < rows; i++)
    mlki_attention_fold_row(row, &m[i], &l[i], o + i * pitch, top[i], sum[i], part + i * pitch, e, scale[i],
                            scale[rows + i]);
}

/* m[i] = m + log l, -infinity of nothing. */
static void mlki_attention_lse(const mlki_kernels *row, int64_t rows, float *m, const float *l) {
  float logs[64];
  int64_t first, i;
  for (first = 0; first < rows; first += 64) {
    const int64_t n = mlki_min(rows - first, 64);
    for (i = 0; i < n; i++) logs[i] = l[first + i];
    mlki_attention_map(row, MLK_LOG, 1.0f, logs, n);
    for (i = 0; i < n; i++) m[first + i] = l[first + i] == 0.0f ? -INFINITY : m[first + i] + logs[i];
  }
}

/* y = o / l, zeros of nothing. */
static void mlki_attention_unfold(const mlki_kernels *row, float l, const float *o, int64_t e, float *y, int64_t step) {
  float block[64];
  int64_t j, i;
  if (l == 0.0f) {
    for (j = 0; j < e; j++) y[j * step] = 0.0f;
  } else if (step == 1) {
    row->unfold_row(y, o, e, l);
  } else {
    for (j = 0; j < e; j += 64) {
      const int64_t n = mlki_min(e - j, 64);
      row->unfold_row(block, o + j, n, l);
      for (i = 0; i < n; i++) y[(j + i) * step] = block[i];
    }
  }
}

/* Rows [r0, r0 + rows) of key head g, whose states (m, l, o) are final, to out and lse; part: which, of parts. m is
   destroyed. */
static void mlki_attention_write(const mlki_attention *a, const mlki_sequence *q, int64_t g, int64_t r0, int64_t rows,
                                 int64_t part, float *m, const float *l, const float *o) {
  const int64_t pitch = mlki_attention_pitch(a->e);
  int64_t i;
  if (a->lse) mlki_attention_lse(a->job.row, rows, m, l);
  for (i = 0; i < rows; i++) {
    const int64_t h = g * a->group + (r0 + i) % a->group, at = q->q0 + (r0 + i) / a->group;
    mlki_attention_unfold(a->job.row, l[i], o + i * pitch, a->e,
                          a->out + part * a->os[0] + q->qb * a->os[1] + h * a->os[2] + at * a->os[3], a->os[4]);
    if (a->lse) a->lse[part * a->ls[0] + q->qb * a->ls[1] + h * a->ls[2] + at * a->ls[3]] = m[i];
  }
}

/* Segment n of rows [r0, r0 + rows) is done: its state becomes a part. */
static void mlki_attention_end_segment(const mlki_attention *a, const mlki_sequence *q, int64_t g, int64_t r0,
                                       int64_t rows, int64_t n, mlki_attention_space *s) {
  const mlki_kernels *row = a->job.row;
  const int64_t pitch = mlki_attention_pitch(a->e);
  const int last = (n + 1) * MLK_ATTENTION_SEGMENT >= q->t;
  int64_t i;
  if (a->parts || (n == 0 && last && !a->sinks)) {
    mlki_attention_write(a, q, g, r0, rows, n, s->part_m, s->part_l, s->part);
  } else {
    mlki_attention_lse(row, rows, s->part_m, s->part_l);
    for (i = 0; i < rows; i++) {
      if (s->part_l[i] == 0.0f) continue;
      row->unfold_row(s->part + i * pitch, s->part + i * pitch, a->e, s->part_l[i]);
      s->part_l[i] = 1.0f;
    }
    for (i = 0; i < rows; i += MLKI_CONV_PANEL_MAX)
      mlki_attention_fold(row, mlki_min(rows - i, MLKI_CONV_PANEL_MAX), s->whole_m + i, s->whole_l + i,
                          s->whole + i * pitch, s->part_m + i, s->part_l + i, s->part + i * pitch, pitch, a->e,
                          s->scale);
  }
  for (i = 0; i < rows; i++) s->part_l[i] = 0.0f;
}

/* All segments of rows [r0, r0 + rows) are done. */
static void mlki_attention_end(const mlki_attention *a, const mlki_sequence *q, int64_t g, int64_t r0, int64_t rows,
                               mlki_attention_space *s) {
  const int64_t pitch = mlki_attention_pitch(a->e), segments = mlki_ceil_div(q->t, MLK_ATTENTION_SEGMENT);
  int64_t i, n;
  if (a->parts || (segments < 2 && !a->sinks)) { /* written, but for parts of nothing */
    for (n = segments; n < mlki_max(a->parts, 1); n++)
      mlki_attention_write(a, q, g, r0, rows, n, s->part_m, s->part_l, s->part);
    return;
  }
  for (i = 0; i < rows && a->sinks; i++) {
    const float sink = a->sinks[(g * a->group + (r0 + i) % a->group) * a->sinks_step], one = 1.0f;
    memset(s->block, 0, (size_t)a->e * sizeof *s->block);
    mlki_attention_fold(a->job.row, 1, s->whole_m + i, s->whole_l + i, s->whole + i * pitch, &sink, &one, s->block,
                        pitch, a->e, s->scale);
  }
  mlki_attention_write(a, q, g, r0, rows, 0, s->whole_m, s->whole_l, s->whole);
}

/* >>attention_forward ---------------------------------------------------------------------------------------------- */

/* Queries of rows [r0, r0 + rows) of key head g, scaled, as strips of A. stage: MR rows. */
static void mlki_attention_pack_q(const mlki_attention *a, const mlki_sequence *q, int64_t g, int64_t r0, int64_t rows,
                                  float *to, float *stage) {
  const mlki_kernels *row = a->job.row;
  const int64_t mr = row->mr, pitch = mlki_attention_pitch(a->d);
  const float *base = a->q + q->qb * a->qs[0] + g * a->group * a->qs[1] + q->q0 * a->qs[2];
  int64_t first, i, d;
  for (first = 0; first < rows; first += mr, to += mr * a->d) {
    const int64_t n = mlki_min(mr, rows - first), r = r0 + first;
    if (a->group == 1 && (a->qs[3] == 1 || a->d == 1)) {
      row->pack(to, n, mr, a->d, base + r * a->qs[2], a->qs[2], 1);
    } else {
      for (i = 0; i < n; i++) {
        const float *from = base + (r + i) % a->group * a->qs[1] + (r + i) / a->group * a->qs[2];
        if (a->qs[3] == 1)
          memcpy(stage + i * pitch, from, (size_t)a->d * sizeof *from);
        else
          for (d = 0; d < a->d; d++) stage[i * pitch + d] = from[d * a->qs[3]];
      }
      row->pack(to, n, mr, a->d, stage, pitch, 1);
    }
    mlki_attention_map(row, MLK_SCALE, a->scale, to, mr * a->d);
  }
}

/* States of nothing. */
static void mlki_attention_start(mlki_attention_space *s, int64_t rows) {
  int64_t i;
  for (i = 0; i < rows; i++) s->part_m[i] = s->part_l[i] = s->whole_m[i] = s->whole_l[i] = 0.0f;
}

/* Keys of block n that rows [r0, r0 + rows) see. */
static int mlki_attention_block_keys(const mlki_attention *a, const mlki_sequence *q, int64_t r0, int64_t rows,
                                     int64_t n, int64_t *from, int64_t *to) {
  const int64_t first = n * MLK_ATTENTION_BLOCK, end = mlki_min(first + MLK_ATTENTION_BLOCK, q->t);
  const int64_t step = mlki_attention_step(a->job.row);
  int64_t low, high, none;
  mlki_keys_seen(a, q, r0 / a->group, &low, &none);
  mlki_keys_seen(a, q, (r0 + rows - 1) / a->group, &none, &high);
  *from = first + mlki_max(low - first, 0) / step * step;
  *to = mlki_min(high, end);
  return *from < *to;
}

/* Block n of keys against the rows [r0, r0 + rows) of a tile: into their states. */
static void mlki_attention_tile_block(const mlki_attention *a, const mlki_sequence *q, int64_t r0, int64_t rows,
                                      int64_t n, const mlki_attention_keys *keys, mlki_attention_space *s) {
  const mlki_kernels *row = a->job.row;
  const int64_t mr = row->mr, pitch = mlki_attention_pitch(a->e);
  int64_t first, i;
  for (first = 0; first < rows; first += mr) {
    const int64_t count = mlki_min(mr, rows - first);
    mlki_attention_keys seen = *keys;
    int fresh = 1;
    if (!mlki_attention_block_keys(a, q, r0 + first, count, n, &seen.from, &seen.to)) continue;
    if (!a->turns) seen.k += (seen.from - keys->from) * a->d;
    seen.v.p += (seen.from - keys->from) * keys->v.rs;
    for (i = 0; i < count; i++) fresh &= s->part_l[first + i] == 0.0f;
    {
      float *o = fresh ? s->part + first * pitch : s->block;
      mlki_attention_strip_checked(a, q, &seen, s->q + first * a->d, r0 + first, count, s, o);
      mlki_attention_fold(row, count, s->part_m + first, s->part_l + first, s->part + first * pitch, s->top, s->sum, o,
                          pitch, a->e, s->scale);
    }
  }
}

/* K and V of keys [keys->from, keys->to), packed by this task or read in place. */
static void mlki_attention_load(const mlki_attention *a, const mlki_sequence *q, mlki_attention_keys *keys,
                                mlki_attention_space *s) {
  if (!a->turns) mlki_attention_pack_k(a, q, keys->g, keys->from, keys->to, s->k, s->stage);
  keys->k = s->k;
  keys->v = a->v_in_place ? mlki_attention_v_in_place(a, q, keys->g, keys->from)
                          : mlki_attention_pack_v(a, q, keys->g, keys->from, keys->to, s->v, s->stage);
}

/* Block n of a head whose K and V lie packed at panels. */
static void mlki_attention_shared(const mlki_attention *a, const mlki_sequence *q, const float *panels, int64_t n,
                                  mlki_attention_keys *keys) {
  const mlki_kernels *row = a->job.row;
  keys->from = n * MLK_ATTENTION_BLOCK, keys->to = mlki_min(keys->from + MLK_ATTENTION_BLOCK, q->t);
  keys->k = panels + n * a->block_floats;
  keys->v.p = keys->k + mlki_attention_block_floats(row, a->d);
  keys->v.rs = row->nr, keys->v.panel = (keys->to - keys->from) * row->nr;
}

/* Rows [r0, r0 + rows) of key head g against all their keys. panels: packed K and V, or NULL. */
static void mlki_attention_tile(const mlki_attention *a, const mlki_sequence *q, int64_t g, int64_t r0, int64_t rows,
                                const float *panels, mlki_attention_space *s) {
  const int64_t blocks = mlki_ceil_div(q->t, MLK_ATTENTION_BLOCK);
  const int64_t per_segment = MLK_ATTENTION_SEGMENT / MLK_ATTENTION_BLOCK;
  mlki_attention_keys keys;
  int64_t n;
  int seen = 0;
  mlki_attention_start(s, rows);
  mlki_attention_pack_q(a, q, g, r0, rows, s->q, s->scores);
  keys.g = g;
  for (n = 0; n < blocks; n++) {
    if (mlki_attention_block_keys(a, q, r0, rows, n, &keys.from, &keys.to)) {
      if (panels)
        mlki_attention_shared(a, q, panels, n, &keys);
      else
        mlki_attention_load(a, q, &keys, s);
      mlki_attention_tile_block(a, q, r0, rows, n, &keys, s);
      seen = 1;
    }
    if ((n + 1) % per_segment && n + 1 < blocks) continue;
    if (seen || a->parts || blocks <= per_segment) /* else a part of nothing: folding it would change nothing */
      mlki_attention_end_segment(a, q, g, r0, rows, n / per_segment, s);
    seen = 0;
  }
  mlki_attention_end(a, q, g, r0, rows, s);
}

static mlki_attention_space mlki_attention_space_of(const mlki_attention *a, int index) {
  mlki_attention_space s;
  mlki_carver carver;
  carver.base = a->job.workspace + a->job.shared_bytes + (uint64_t)index * a->job.task_bytes, carver.used = 0;
  mlki_attention_carve(a, &carver, &s);
  return s;
}

/* heads: a unit is a head of a sequence. */
static void mlki_attention_heads_task(void *op, int index) {
  mlki_attention *a = (mlki_attention *)op;
  mlki_attention_space s = mlki_attention_space_of(a, index);
  int64_t unit, end;
  while (mlki_job_take(&a->job, 0, &unit, &end))
    for (; unit < end; unit++) {
      const mlki_sequence q = mlki_sequence_of(a, unit / a->groups);
      if (q.s) mlki_attention_tile(a, &q, unit % a->groups, 0, q.s * a->group, NULL, &s);
    }
}

/* Whether some query sees keys of block n. */
static int mlki_attention_block_seen(const mlki_attention *a, const mlki_sequence *q, int64_t n) {
  int64_t from, to;
  return q->s > 0 && mlki_attention_block_keys(a, q, 0, q->s * a->group, n, &from, &to);
}

/* tiles, first: a unit is a block of keys of one of the round's heads. */
static void mlki_attention_pack_task(void *op, int index) {
  mlki_attention *a = (mlki_attention *)op;
  mlki_attention_space s = mlki_attention_space_of(a, index);
  int64_t unit, end;
  while (mlki_job_take(&a->job, 0, &unit, &end))
    for (; unit < end; unit++) {
      const int64_t slot = unit / a->blocks, n = unit % a->blocks, head = a->job.round * a->round_heads + slot;
      float *to = (float *)(void *)a->job.workspace + unit * a->block_floats;
      mlki_sequence q;
      if (head >= a->batch * a->groups) continue;
      q = mlki_sequence_of(a, head / a->groups);
      if (mlki_attention_block_seen(a, &q, n)) {
        const int64_t from = n * MLK_ATTENTION_BLOCK, last = mlki_min(from + MLK_ATTENTION_BLOCK, q.t);
        mlki_attention_pack_k(a, &q, head % a->groups, from, last, to, s.stage);
        mlki_attention_pack_v(a, &q, head % a->groups, from, last, to + mlki_attention_block_floats(a->job.row, a->d),
                              s.stage);
      }
    }
}

/* tiles, then: a unit is a tile of one of them, the last ones, which see most keys, first. */
static void mlki_attention_tiles_task(void *op, int index) {
  mlki_attention *a = (mlki_attention *)op;
  mlki_attention_space s = mlki_attention_space_of(a, index);
  int64_t unit, end;
  while (mlki_job_take(&a->job, 1, &unit, &end))
    for (; unit < end; unit++) {
      const int64_t slot = unit % a->round_heads, head = a->job.round * a->round_heads + slot;
      const int64_t r0 = (a->tiles - 1 - unit / a->round_heads) * a->tile;
      mlki_sequence q;
      if (head >= a->batch * a->groups) continue;
      q = mlki_sequence_of(a, head / a->groups);
      if (r0 < q.s * a->group)
        mlki_attention_tile(a, &q, head % a->groups, r0, mlki_min(a->tile, q.s * a->group - r0),
                            (const float *)(const void *)a->job.workspace + slot * a->blocks * a->block_floats, &s);
    }
}

/* split, first: a unit is a block of keys of a head, from scratch: its states [top][sum][o] to the shared space. */
static void mlki_attention_blocks_task(void *op, int index) {
  mlki_attention *a = (mlki_attention *)op;
  mlki_attention_space s = mlki_attention_space_of(a, index);
  const int64_t pitch = mlki_attention_pitch(a->e), width = mlki_round_up(a->tile, 16);
  int64_t unit, end;
  while (mlki_job_take(&a->job, 0, &unit, &end))
    for (; unit < end; unit++) {
      const int64_t head = unit / a->blocks, n = unit % a->blocks;
      const mlki_sequence q = mlki_sequence_of(a, head / a->groups);
      const int64_t rows = q.s * a->group;
      float *to = (float *)(void *)a->job.workspace + unit * a->block_floats;
      mlki_attention_keys keys;
      keys.g = head % a->groups;
      if (!rows || n * MLK_ATTENTION_BLOCK >= q.t) continue;
      mlki_attention_start(&s, rows);
      if (mlki_attention_block_keys(a, &q, 0, rows, n, &keys.from, &keys.to)) {
        mlki_attention_pack_q(a, &q, keys.g, 0, rows, s.q, s.scores);
        mlki_attention_load(a, &q, &keys, &s);
        mlki_attention_tile_block(a, &q, 0, rows, n, &keys, &s);
      }
      memcpy(to, s.part_m, (size_t)rows * sizeof *to);
      memcpy(to + width, s.part_l, (size_t)rows * sizeof *to);
      memcpy(to + 2 * width, s.part, (size_t)(rows * pitch) * sizeof *to);
    }
}

/* split, then: a unit is a head, whose blocks are folded in ascending order. */
static void mlki_attention_fold_task(void *op, int index) {
  mlki_attention *a = (mlki_attention *)op;
  mlki_attention_space s = mlki_attention_space_of(a, index);
  const int64_t pitch = mlki_attention_pitch(a->e), width = mlki_round_up(a->tile, 16);
  const int64_t per_segment = MLK_ATTENTION_SEGMENT / MLK_ATTENTION_BLOCK;
  int64_t unit, end, n, i;
  while (mlki_job_take(&a->job, 1, &unit, &end))
    for (; unit < end; unit++) {
      const mlki_sequence q = mlki_sequence_of(a, unit / a->groups);
      const int64_t rows = q.s * a->group, blocks = mlki_ceil_div(q.t, MLK_ATTENTION_BLOCK);
      if (!rows) continue;
      mlki_attention_start(&s, rows);
      for (n = 0; n < blocks; n++) {
        const float *from = (const float *)(const void *)a->job.workspace + (unit * a->blocks + n) * a->block_floats;
        for (i = 0; i < rows; i += MLKI_CONV_PANEL_MAX)
          mlki_attention_fold(a->job.row, mlki_min(rows - i, MLKI_CONV_PANEL_MAX), s.part_m + i, s.part_l + i,
                              s.part + i * pitch, from + i, from + width + i, from + 2 * width + i * pitch, pitch, a->e,
                              s.scale);
        if ((n + 1) % per_segment == 0 || n + 1 == blocks)
          mlki_attention_end_segment(a, &q, unit % a->groups, 0, rows, n / per_segment, &s);
      }
      mlki_attention_end(a, &q, unit % a->groups, 0, rows, &s);
    }
}

/* --- the call --- */

/* Which variant, which tiles. */
static void mlki_attention_variant(const mlk_context *ctx, mlki_attention *a) {
  const mlki_kernels *row = ctx->row;
  const int64_t mr = row->mr, rows = a->s * a->group, heads = rows ? a->batch * a->groups : 0;
  const int64_t limit = mlki_task_limit(ctx);
  const int64_t most = MLKI_ATTENTION_ROWS / mr * mr;
  const int64_t packed = mlki_attention_block_floats(row, a->d) + mlki_attention_block_floats(row, a->e);
  const double work = (double)rows * (double)a->t * (double)(a->d + a->e);
  int64_t fit; /* heads whose packed K and V may lie there at once */
  int split, crowded;
  a->plain = a->softcap == 0.0f && !a->alibi && !a->bias && !a->mask;
  a->blocks = mlki_ceil_div(a->t, MLK_ATTENTION_BLOCK);
  a->tile = mlki_min(rows, 2 * most);
  a->block_floats = 2 * mlki_round_up(a->tile, 16) + mlki_round_up(a->tile, mr) * mlki_attention_pitch(a->e);
  fit = mlki_min(heads, mlki_max(MLKI_ATTENTION_SHARED / mlki_max(a->blocks * packed, 1), 1));
  split = heads < 2 * limit && limit > 1 && a->blocks > 1;
  crowded = split &&
            heads * a->block_floats > mlki_max(MLKI_ATTENTION_SHARED / a->blocks, packed); /* too many states */
  if (heads && (rows > 2 * most || (heads < limit && rows > 2 * mr && rows * 2 > limit * mr) ||
                (crowded && rows > mr && 2 * heads < limit))) {
    a->tile = mlki_min(rows, most);
    if (fit * mlki_ceil_div(rows, most) < 4 * limit)
      a->tile = mlki_min(mlki_round_up(mlki_ceil_div(fit * rows, 4 * limit), mr), most);
    a->shared = 1;
    a->tiles = mlki_ceil_div(rows, a->tile);
    a->block_floats = packed;
    a->round_heads = limit == 1 ? 1 : mlki_min(mlki_ceil_div(32 * limit, a->tiles), fit);
    a->job.variant = "tiles";
    a->job.rounds = mlki_ceil_div(heads, a->round_heads);
    a->job.shared_bytes = mlki_bytes(a->round_heads * a->blocks * a->block_floats);
    mlki_job_phase(ctx, &a->job, 0, mlki_attention_pack_task, a->round_heads * a->blocks, work);
    mlki_job_phase(ctx, &a->job, 1, mlki_attention_tiles_task, a->round_heads * a->tiles, work / (double)a->tiles);
    return;
  }
  a->streams = rows <= 2 * mr;
  a->turns = rows <= MLKI_TURN_ROWS;
  a->sweeps = a->dtype == MLK_F32 && rows <= mlki_min(mr, MLKI_SWEEP_ROWS) && a->e % row->nr == 0 &&
              a->e >= MLKI_ATTENTION_SWEPT;
  a->v_in_place = a->dtype == MLK_F32 && (a->vs[3] == 1 || a->e == 1) && !a->pages &&
                  (a->streams || (a->vs[2] >= 0 && a->vs[2] <= 2 * a->e));
  if (split && !crowded) {
    a->job.variant = "split";
    a->job.shared_bytes = mlki_bytes(heads * a->blocks * a->block_floats);
    mlki_job_phase(ctx, &a->job, 0, mlki_attention_blocks_task, heads * a->blocks, work / (double)a->blocks);
    mlki_job_phase(ctx, &a->job, 1, mlki_attention_fold_task, heads, (double)(rows * a->blocks * a->e));
    return;
  }
  a->job.variant = "heads";
  mlki_job_phase(ctx, &a->job, 0, mlki_attention_heads_task, heads, work);
}

/* out and lse of the forward call. */
static mlk_status mlki_attention_outputs(mlk_context *ctx, const mlk_attention_desc *desc, mlki_attention_operands *o,
                                         mlki_attention *a) {
  mlk_tensor *out = &o->t[MLKI_AT_OUT], *lse = &o->t[MLKI_AT_LSE];
  const int64_t *q = o->t[MLKI_AT_Q].shape;
  int64_t like[5];
  mlk_dtype type;
  mlk_status status;
  int with, i;
  *out = desc->out, *lse = desc->lse;
  with = out->rank == 5;
  like[0] = mlki_max(mlki_ceil_div(a->t, MLK_ATTENTION_SEGMENT), 1);
  like[1] = q[0], like[2] = q[1], like[3] = q[2], like[4] = a->e;
  a->parts = with ? like[0] : 0;
  type = with ? MLK_F32 : mlki_attention_type(o, out);
  if ((status = mlki_check_shaped(ctx, "out", out, type, 0, 1, "q and v", like + !with, 4 + with,
                                  &o->extent[MLKI_AT_OUT])) != MLK_OK ||
      (status = mlki_check_shaped(ctx, "lse", lse, MLK_F32, !with, 1, "q", like + !with, 3 + with,
                                  &o->extent[MLKI_AT_LSE])) != MLK_OK)
    return status;
  if (with && a->sinks)
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "sinks: given together with parts in out; give them to the merge");
  for (i = 0; i < 5 - !with; i++) a->os[i + !with] = out->stride[i];
  for (i = 0; lse->data && i < 4 - !with; i++) a->ls[i + !with] = lse->stride[i];
  a->out = (float *)out->data, a->lse = (float *)lse->data;
  return MLK_OK;
}

static mlk_status mlki_attention_prepare(mlk_context *ctx, const mlk_attention_desc *desc, int run, mlki_attention *a) {
  mlki_attention_operands o;
  mlki_operand outputs[2];
  mlk_status status;
  int i;
  if (!desc) return mlki_fail(ctx, MLK_ERR_ARGUMENT, "desc: is NULL");
  memset(a, 0, sizeof *a);
  memset(&o, 0, sizeof o);
  o.t[MLKI_AT_Q] = desc->q, o.t[MLKI_AT_K] = desc->k, o.t[MLKI_AT_V] = desc->v, o.t[MLKI_AT_PAGES] = desc->pages;
  a->dtype = desc->k.dtype == MLK_F16 || desc->k.dtype == MLK_BF16 ? (mlk_dtype)desc->k.dtype : MLK_F32;
  if ((status = mlki_attention_inputs(ctx, &desc->scores, &o, a)) != MLK_OK ||
      (status = mlki_attention_outputs(ctx, desc, &o, a)) != MLK_OK)
    return status;
  for (i = 0; i < 2; i++) {
    outputs[i].name = mlki_attention_names[MLKI_AT_OUT + i];
    outputs[i].t = &o.t[MLKI_AT_OUT + i], outputs[i].extent = &o.extent[MLKI_AT_OUT + i];
  }
  if ((status = mlki_attention_apart(ctx, run, &o, outputs, 2, MLKI_AT_OUT)) != MLK_OK) return status;
  if (run && !ctx->backend && (status = mlki_attention_check_values(ctx, &o, a)) != MLK_OK) return status;
  if ((status = mlki_attention_flops(ctx, 2 * (a->d + a->e), a)) != MLK_OK) return status;
  for (i = 0; i < MLKI_AT_COUNT; i++)
    a->job.bytes += (uint64_t)(o.extent[i].stored * (o.t[i].data ? mlki_dtype_bytes(o.t[i].dtype) : 0));
  if (ctx->reference) {
    a->job.task_bytes = mlki_bytes(3 * a->e);
    mlki_job_phase(ctx, &a->job, 0, mlki_ref_attention_task, 1, 1.0);
  } else {
    mlki_carver carver = {NULL, 0};
    mlki_attention_space space;
    mlki_attention_variant(ctx, a);
    mlki_attention_carve(a, &carver, &space);
    a->job.task_bytes = carver.used;
  }
  return MLK_OK;
}

/* >>attention_grad_tiles -------------------------------------------------------------------------------------------
   Weights are made again from lse, tile by tile: a tile is at most ROWS rows, which are queries as in the forward call,
   of one segment of MLK_SEGMENT rows, against one block of keys. Five products a tile: scores, dout V^T, and
     dq += ds K     dk += ds^T q     dv += p^T dout
   whose sums run in the order of the contract if blocks, for one row, and segments, for one key, come in ascending
   order.
   All operands are packed first (phase 0), for some heads at a time. Then (phase 1)
     heads   a task does a head: for each block all tiles, dq of all rows at hand
     halves  few heads: blocks and tiles are tasks of their own, for dk and dv, and for dq; scores are made twice
   dbias is a pass of its own (bias): a task owns the elements it sums up, whatever repeats them. */

#define MLKI_GRAD_SHARED ((uint64_t)1 << 28) /* bytes of operands that are packed ahead, unless one head has more */

/* dsinks: one sum a head, in double precision. */
static void mlki_attention_dsinks(const mlki_attention *a) {
  const mlki_kernels *row = a->job.row;
  const int dense = !a->reference && a->dos[3] == 1 && a->os[4] == 1;
  int64_t b, h, i, e;
  for (h = 0; h < a->heads; h++) {
    double sum = 0.0;
    for (b = 0; b < a->batch; b++) {
      const mlki_sequence q = mlki_sequence_of(a, b);
      for (i = 0; i < q.s; i++) {
        const float *dout = a->dout + q.qb * a->dos[0] + h * a->dos[1] + (q.q0 + i) * a->dos[2];
        const float *out = a->out + q.qb * a->os[1] + h * a->os[2] + (q.q0 + i) * a->os[3];
        const float lse = a->lse[q.qb * a->ls[1] + h * a->ls[2] + (q.q0 + i) * a->ls[3]];
        float delta;
        int whole = 1;
        if (dense) {
          row->pairs(MLKI_PAIR_IP, 1, 1, a->e, dout, 0, out, 0, 0, &delta, 0);
          whole = row->finite_row(dout, a->e);
        } else {
          delta = mlki_ref_sum16(MLKI_PAIR_IP, a->e, dout, a->dos[3], out, a->os[4]);
          for (e = 0; e < a->e; e++) whole &= mlki_finite(dout[e * a->dos[3]]);
        }
        sum -= mlki_mul64((double)(whole ? mlki_ref_exp(a->sinks[h * a->sinks_step] - lse) : NAN), (double)delta);
      }
    }
    a->dsinks[h * a->dsinks_step] = (float)sum;
  }
}

/* Zeros for a view [n0, n1, n2, n3]. */
static void mlki_clear4(float *p, const int64_t *size, const int64_t *stride) {
  int64_t i, j, k, l;
  for (i = 0; i < size[0]; i++)
    for (j = 0; j < size[1]; j++)
      for (k = 0; k < size[2]; k++) {
        float *at = p + i * stride[0] + j * stride[1] + k * stride[2];
        for (l = 0; l < size[3]; l++) at[l * stride[3]] = 0.0f;
      }
}

/* What is summed up by addition starts from zero, and what has no terms stays there. */
static void mlki_attention_grad_start(void *op) {
  mlki_attention *a = (mlki_attention *)op;
  int64_t size[4];
  if (a->dbias) mlki_clear4(a->dbias, a->dbias_size, a->dbs);
  if (a->group) return;
  size[0] = a->packed_k ? 1 : a->batch, size[1] = a->groups, size[2] = a->axis, size[3] = a->d;
  if (a->dk) mlki_clear4(a->dk, size, a->dks);
  size[3] = a->e;
  if (a->dv) mlki_clear4(a->dv, size, a->dvs);
}

/* dk and dv of keys behind a sequence's length are zero; dsinks. */
static void mlki_attention_grad_finish(void *op) {
  mlki_attention *a = (mlki_attention *)op;
  int64_t b;
  for (b = 0; a->k_lengths && b < a->batch; b++) {
    const int64_t t = mlki_sequence_of(a, b).t;
    int64_t size[4];
    size[0] = 1, size[1] = a->groups, size[2] = a->axis - t, size[3] = a->d;
    if (a->dk) mlki_clear4(a->dk + b * a->dks[0] + t * a->dks[2], size, a->dks);
    size[3] = a->e;
    if (a->dv) mlki_clear4(a->dv + b * a->dvs[0] + t * a->dvs[2], size, a->dvs);
  }
  if (a->dsinks) mlki_attention_dsinks(a);
}

static void mlki_ref_attention_grad_task(void *op, int index) {
  mlki_attention *a = (mlki_attention *)op;
  float *space = (float *)(void *)a->job.workspace;
  int64_t b, h, i;
  (void)index;
  for (b = 0; b < a->batch; b++) {
    const mlki_sequence q = mlki_sequence_of(a, b);
    for (h = 0; a->dq && h < a->heads; h++)
      for (i = 0; i < q.s; i++) mlki_ref_attention_dq(a, &q, h, i, space);
    for (h = 0; (a->dk || a->dv) && h < a->groups; h++)
      for (i = 0; i < q.t; i++) mlki_ref_attention_dk_dv(a, &q, h, i, space);
    if (a->dbias) mlki_ref_attention_dbias(a, &q);
  }
}

/* --- packed operands --- */

/* A segment of rows: q (scaled) and dout as A, [strip][D or E][MR], and as B, dense rows a pitch apart. */
typedef struct mlki_grad_rows {
  float *qa, *oa, *qb, *ob, *lse, *delta;
} mlki_grad_rows;

/* A block of keys: K and V as B of products, [panel][D or E][NR], and K as dense rows a pitch apart. */
typedef struct mlki_grad_keys {
  float *kt, *vt, *kb;
} mlki_grad_keys;

static void mlki_grad_carve_rows(const mlki_attention *a, mlki_carver *carver, mlki_grad_rows *f) {
  const int64_t rows = mlki_round_up(MLK_SEGMENT, a->job.row->mr);
  f->qa = (float *)mlki_carve(carver, rows * a->d + 16, 4);
  f->oa = (float *)mlki_carve(carver, rows * a->e + 16, 4);
  f->qb = (float *)mlki_carve(carver, rows * mlki_attention_pitch(a->d), 4);
  f->ob = (float *)mlki_carve(carver, rows * mlki_attention_pitch(a->e), 4);
  f->lse = (float *)mlki_carve(carver, rows, 4);
  f->delta = (float *)mlki_carve(carver, rows, 4);
}

static void mlki_grad_carve_keys(const mlki_attention *a, mlki_carver *carver, mlki_grad_keys *f) {
  f->kt = (float *)mlki_carve(carver, mlki_attention_block_floats(a->job.row, a->d), 4);
  f->vt = (float *)mlki_carve(carver, mlki_attention_block_floats(a->job.row, a->e), 4);
  f->kb = (float *)mlki_carve(carver, MLK_ATTENTION_BLOCK * mlki_attention_pitch(a->d), 4);
}

/* Row (h, i) of a view [B, H, S, width], q's sequences, dense: elements behind width up to the pitch are not set. */
static void mlki_grad_copy_row(const float *base, const int64_t *stride, const mlki_sequence *q, int64_t h, int64_t i,
                               int64_t width, float *to) {
  const float *from = base + q->qb * stride[0] + h * stride[1] + (q->q0 + i) * stride[2];
  int64_t j;
  if (stride[3] == 1)
    memcpy(to, from, (size_t)width * sizeof *to);
  else
    for (j = 0; j < width; j++) to[j] = from[j * stride[3]];
}

/* Elements that are not finite become 0; whether there were any. */
static int mlki_grad_clean(const mlki_kernels *row, float *x, int64_t n) {
  int64_t j;
  if (row->finite_row(x, n)) return 0;
  for (j = 0; j < n; j++)
    if (!mlki_finite(x[j])) x[j] = 0.0f;
  return 1;
}

/* Rows [r0, r0 + rows) of key head g, rows <= MLK_SEGMENT. The strips keep what is not finite, which then shows in the
   scores; the dense rows do not, since they also meet weights of 0 of keys that take no part. */
static void mlki_grad_pack_rows(const mlki_attention *a, const mlki_sequence *q, int64_t g, int64_t r0, int64_t rows,
                                const mlki_grad_rows *f) {
  const mlki_kernels *row = a->job.row;
  const int64_t mr = row->mr, dp = mlki_attention_pitch(a->d), ep = mlki_attention_pitch(a->e);
  int64_t i;
  for (i = 0; i < rows; i++) {
    const int64_t h = g * a->group + (r0 + i) % a->group, at = (r0 + i) / a->group;
    float *out = f->oa; /* what is packed here comes later */
    mlki_grad_copy_row(a->q, a->qs, q, h, at, a->d, f->qb + i * dp);
    mlki_grad_copy_row(a->dout, a->dos, q, h, at, a->e, f->ob + i * ep);
    mlki_grad_copy_row(a->out, a->os + 1, q, h, at, a->e, out);
    f->delta[i] = 0.0f;
    row->pairs(MLKI_PAIR_IP, 1, 1, a->e, f->ob + i * ep, 0, out, 0, 0, f->delta + i, 0);
    f->lse[i] = a->lse[q->qb * a->ls[1] + h * a->ls[2] + (q->q0 + at) * a->ls[3]];
    mlki_attention_map(row, MLK_SCALE, a->scale, f->qb + i * dp, a->d);
  }
  for (i = 0; i < rows; i += mr) {
    row->pack(f->qa + i * a->d, mlki_min(mr, rows - i), mr, a->d, f->qb + i * dp, dp, 1);
    row->pack(f->oa + i * a->e, mlki_min(mr, rows - i), mr, a->e, f->ob + i * ep, ep, 1);
  }
  if (a->d != dp || !row->finite_row(f->qb, rows * dp))
    for (i = 0; i < rows; i++) mlki_grad_clean(row, f->qb + i * dp, a->d);
  if (a->e != ep || !row->finite_row(f->ob, rows * ep))
    for (i = 0; i < rows; i++)
      if (mlki_grad_clean(row, f->ob + i * ep, a->e)) f->lse[i] = NAN;
}

/* Block n of key head g; stage as for mlki_attention_rows. */
static void mlki_grad_pack_keys(const mlki_attention *a, const mlki_sequence *q, int64_t g, int64_t n,
                                const mlki_grad_keys *f, float *stage) {
  const int64_t first = n * MLK_ATTENTION_BLOCK, end = mlki_min(first + MLK_ATTENTION_BLOCK, q->t);
  const int64_t step = mlki_attention_step(a->job.row), dp = mlki_attention_pitch(a->d);
  int64_t j, i, pitch;
  mlki_attention_pack_k(a, q, g, first, end, f->kt, stage);
  for (j = first; j < end; j += step) {
    const int64_t keys = mlki_min(step, end - j);
    const float *from = mlki_attention_rows(a, q, a->v, a->vs, g, j, keys, a->e, stage, &pitch);
    a->job.row->pack_panels(f->vt + (j - first) * a->e, keys, a->e, from, pitch, 1);
    from = mlki_attention_rows(a, q, a->k, a->ks, g, j, keys, a->d, stage, &pitch);
    for (i = 0; i < keys; i++) memcpy(f->kb + (j - first + i) * dp, from + i * pitch, (size_t)a->d * sizeof *from);
  }
  if (a->d != dp || !a->job.row->finite_row(f->kb, (end - first) * dp))
    for (j = first; j < end; j++) mlki_grad_clean(a->job.row, f->kb + (j - first) * dp, a->d);
}

/* --- a tile: rows of one segment against one block --- */

#define MLKI_GRAD_STRIPS 64 /* at most, of a tile */

/* p and ds of the tile: key j of row i at i * MLKI_SCORE_PITCH + j, j counted from the block's first. Strip s of rows
   sees keys [from[s], to[s]); p and ds are there for [low, high) of all rows, zeros where a row does not see. */
typedef struct mlki_grad_tile {
  float *p, *ds;
  int64_t strips, low, high, from[MLKI_GRAD_STRIPS], to[MLKI_GRAD_STRIPS];
} mlki_grad_tile;

static void mlki_grad_ranges(const mlki_attention *a, const mlki_sequence *q, int64_t r0, int64_t rows, int64_t n,
                             mlki_grad_tile *t) {
  const int64_t mr = a->job.row->mr, first = n * MLK_ATTENTION_BLOCK;
  int64_t s;
  t->strips = mlki_ceil_div(rows, mr);
  t->low = MLK_ATTENTION_BLOCK, t->high = 0;
  for (s = 0; s < t->strips; s++) {
    int64_t from, to;
    if (mlki_attention_block_keys(a, q, r0 + s * mr, mlki_min(mr, rows - s * mr), n, &from, &to)) {
      t->from[s] = from - first, t->to[s] = to - first;
      t->low = mlki_min(t->low, t->from[s]), t->high = mlki_max(t->high, t->to[s]);
    } else {
      t->from[s] = t->to[s] = 0;
    }
  }
}

/* Row r, row i of the tile: products to p and ds, those of keys [from, to) being there. */
static void mlki_grad_row(const mlki_attention *a, const mlki_sequence *q, int64_t g, int64_t r, int64_t n, int64_t i,
                          float lse, float delta, int after, const mlki_grad_tile *t) {
  const int64_t first = n * MLK_ATTENTION_BLOCK, s = i / a->job.row->mr, query = r / a->group;
  float *p = t->p + i * MLKI_SCORE_PITCH, *ds = t->ds + i * MLKI_SCORE_PITCH;
  int64_t low, high, j;
  mlki_scores c;
  mlki_keys_seen(a, q, query, &low, &high);
  low = mlki_max(low - first, t->from[s]), high = mlki_max(mlki_min(high - first, t->to[s]), low);
  if (low < high)
    a->job.row->score_grad_row(mlki_attention_scores_of(a, q, g * a->group + r % a->group, query, first + low, &c),
                               p + low, ds + low, high - low, lse, delta, after);
  for (j = t->low; j < mlki_min(low, t->high); j++) p[j] = ds[j] = 0.0f;
  for (j = mlki_max(high, t->low); j < t->high; j++) p[j] = ds[j] = 0.0f;
}

/* p and ds of rows [r0 + first, r0 + first + rows), f: those of segment r0. Returns whether any key is seen. */
static int mlki_grad_make(const mlki_attention *a, const mlki_sequence *q, int64_t g, int64_t r0, int64_t first,
                          int64_t rows, int64_t n, const mlki_grad_rows *f, const mlki_grad_keys *keys, int after,
                          mlki_grad_tile *t) {
  const mlki_kernels *row = a->job.row;
  const int64_t mr = row->mr;
  int64_t s, i;
  if (!mlki_attention_block_keys(a, q, r0 + first, rows, n, &t->low, &t->high)) return 0;
  mlki_grad_ranges(a, q, r0 + first, rows, n, t);
  if (t->low >= t->high) return 0;
  for (s = 0; s < t->strips; s++) {
    const int64_t at = first + s * mr, count = mlki_min(mr, rows - s * mr), from = t->from[s], to = t->to[s];
    float *p = t->p + s * mr * MLKI_SCORE_PITCH + from, *ds = t->ds + s * mr * MLKI_SCORE_PITCH + from;
    if (from < to) {
      const int64_t cols = mlki_round_up(to - from, row->nr);
      mlki_attention_products(row, count, f->qa + at * a->d, keys->kt + from * a->d, a->d, cols, p);
      mlki_attention_products(row, count, f->oa + at * a->e, keys->vt + from * a->e, a->e, cols, ds);
    }
    for (i = 0; i < count; i++)
      mlki_grad_row(a, q, g, r0 + at + i, n, s * mr + i, f->lse[at + i], f->delta[at + i], after, t);
  }
  return 1;
}

/* dq += ds K for the rows of a tile: one chain a block. */
static void mlki_grad_dq(const mlki_attention *a, const mlki_grad_tile *t, int64_t rows, const mlki_grad_keys *keys,
                         float *dq) {
  const mlki_kernels *row = a->job.row;
  const int64_t dp = mlki_attention_pitch(a->d);
  mlki_strip strip;
  int64_t s;
  strip.a_rs = MLKI_SCORE_PITCH, strip.a_cs = 1;
  strip.b_rs = dp, strip.b_panel = row->nr, strip.c_rs = dp;
  strip.cols = a->d, strip.chain = MLKI_ADD;
  for (s = 0; s < t->strips; s++) {
    strip.rows = mlki_min(row->mr, rows - s * row->mr);
    strip.a = t->ds + s * row->mr * MLKI_SCORE_PITCH + t->from[s];
    strip.b = keys->kb + t->from[s] * dp;
    strip.c = dq + s * row->mr * dp;
    strip.k = t->to[s] - t->from[s];
    if (strip.k > 0) row->strip(&strip);
  }
}

/* chain += w^T x, w being p or ds of a tile, x rows of the segment a pitch apart, for the keys the tile sees: the
   chains go on. */
static void mlki_grad_dk(const mlki_attention *a, const mlki_grad_tile *t, int64_t rows, const float *w, const float *x,
                         int64_t width, float *chain) {
  const mlki_kernels *row = a->job.row;
  const int64_t pitch = mlki_attention_pitch(width), mr = row->mr;
  mlki_strip strip;
  int64_t j, first, last;
  strip.a_rs = 1, strip.a_cs = MLKI_SCORE_PITCH;
  strip.b_rs = pitch, strip.b_panel = row->nr, strip.c_rs = pitch;
  strip.cols = width, strip.chain = MLKI_CONTINUE;
  for (j = t->low; j < t->high; j += mr) {
    strip.rows = mlki_min(mr, t->high - j);
    for (first = 0; first < t->strips && (t->to[first] <= j || t->from[first] >= j + strip.rows); first++) continue;
    for (last = t->strips; last > first && (t->to[last - 1] <= j || t->from[last - 1] >= j + strip.rows); last--)
      continue;
    if (first == last) continue;
    strip.a = w + first * mr * MLKI_SCORE_PITCH + j;
    strip.b = x + first * mr * pitch;
    strip.c = chain + j * pitch;
    strip.k = mlki_min(last * mr, rows) - first * mr;
    row->strip(&strip);
  }
}

/* >>attention_grad ------------------------------------------------------------------------------------------------- */

/* What one task works with. */
typedef struct mlki_grad_space {
  mlki_grad_tile tile;
  float *dq;                                    /* of all rows of a head, or of one tile */
  float *chain_k, *chain_v, *total_k, *total_v; /* of a block */
  float *stage;
  mlki_grad_rows rows; /* of dbias's pass */
  mlki_grad_keys keys;
} mlki_grad_space;

static void mlki_grad_carve(const mlki_attention *a, mlki_carver *carver, mlki_grad_space *s) {
  const int64_t dp = mlki_attention_pitch(a->d), ep = mlki_attention_pitch(a->e), keys = MLK_ATTENTION_BLOCK;
  const int64_t segments = mlki_ceil_div(a->s * a->group, MLK_SEGMENT);
  s->tile.p = (float *)mlki_carve(carver, a->tile * MLKI_SCORE_PITCH, 4);
  s->tile.ds = (float *)mlki_carve(carver, a->tile * MLKI_SCORE_PITCH, 4);
  s->dq = (float *)mlki_carve(carver, a->dq ? (a->halves ? a->tile : segments * MLK_SEGMENT) * dp : 0, 4);
  s->chain_k = (float *)mlki_carve(carver, a->dk ? keys * dp : 0, 4);
  s->total_k = (float *)mlki_carve(carver, a->dk ? keys * dp : 0, 4);
  s->chain_v = (float *)mlki_carve(carver, a->dv ? keys * ep : 0, 4);
  s->total_v = (float *)mlki_carve(carver, a->dv ? keys * ep : 0, 4);
  s->stage = (float *)mlki_carve(carver,
                                 mlki_attention_step(a->job.row) * mlki_attention_pitch(mlki_max(a->d, a->e)) + 16, 4);
  if (a->dbias) {
    mlki_grad_carve_rows(a, carver, &s->rows);
    mlki_grad_carve_keys(a, carver, &s->keys);
  }
}

static mlki_grad_space mlki_grad_space_of(const mlki_attention *a, int index) {
  mlki_grad_space s;
  mlki_carver carver;
  carver.base = a->job.workspace + a->job.shared_bytes + (uint64_t)index * a->job.task_bytes, carver.used = 0;
  memset(&s, 0, sizeof s);
  mlki_grad_carve(a, &carver, &s);
  return s;
}

/* The packed segment (kind 0) or block (kind 1) n of a head of the round. */
static void mlki_grad_packed(const mlki_attention *a, int64_t slot, int kind, int64_t n, mlki_grad_rows *rows,
                             mlki_grad_keys *keys) {
  mlki_carver carver;
  carver.base = a->job.workspace + (uint64_t)slot * a->head_bytes +
                (kind ? (uint64_t)a->segments * a->segment_bytes + (uint64_t)n * a->key_bytes
                      : (uint64_t)n * a->segment_bytes);
  carver.used = 0;
  if (kind)
    mlki_grad_carve_keys(a, &carver, keys);
  else
    mlki_grad_carve_rows(a, &carver, rows);
}

/* Phase 0: a unit is a segment of rows or a block of keys of a head. */
static void mlki_grad_pack_task(void *op, int index) {
  mlki_attention *a = (mlki_attention *)op;
  const int64_t per_head = a->segments + a->blocks;
  mlki_grad_space s = mlki_grad_space_of(a, index);
  int64_t unit, end;
  while (mlki_job_take(&a->job, 0, &unit, &end))
    for (; unit < end; unit++) {
      const int64_t slot = unit / per_head, at = unit % per_head, head = a->job.round * a->round_heads + slot;
      mlki_grad_rows rows;
      mlki_grad_keys keys;
      mlki_sequence q;
      if (head >= a->batch * a->groups) continue;
      q = mlki_sequence_of(a, head / a->groups);
      if (at < a->segments) {
        const int64_t left = q.s * a->group - at * MLK_SEGMENT;
        mlki_grad_packed(a, slot, 0, at, &rows, &keys);
        if (left > 0)
          mlki_grad_pack_rows(a, &q, head % a->groups, at * MLK_SEGMENT, mlki_min(left, MLK_SEGMENT), &rows);
      } else if (mlki_attention_block_seen(a, &q, at - a->segments)) {
        mlki_grad_packed(a, slot, 1, at - a->segments, &rows, &keys);
        mlki_grad_pack_keys(a, &q, head % a->groups, at - a->segments, &keys, s.stage);
      }
    }
}

/* A row of width floats to a view. */
static void mlki_grad_put(float *to, int64_t step, const float *from, int64_t width) {
  int64_t j;
  if (step == 1)
    memcpy(to, from, (size_t)width * sizeof *to);
  else
    for (j = 0; j < width; j++) to[j * step] = from[j];
}

static void mlki_grad_put_dq(const mlki_attention *a, const mlki_sequence *q, int64_t g, int64_t r0, int64_t rows,
                             float *dq) {
  const int64_t dp = mlki_attention_pitch(a->d);
  int64_t i;
  for (i = 0; i < rows; i++, dq += dp) {
    const int64_t h = g * a->group + (r0 + i) % a->group, at = q->q0 + (r0 + i) / a->group;
    mlki_attention_map(a->job.row, MLK_SCALE, a->scale, dq, a->d);
    mlki_grad_put(a->dq + q->qb * a->dqs[0] + h * a->dqs[1] + at * a->dqs[2], a->dqs[3], dq, a->d);
  }
}

/* Block n of key head g: dk and dv, and dq of all rows unless that is the other half's. */
static void mlki_grad_block(const mlki_attention *a, const mlki_sequence *q, int64_t slot, int64_t g, int64_t n,
                            mlki_grad_space *s) {
  const int64_t dp = mlki_attention_pitch(a->d), ep = mlki_attention_pitch(a->e), all = q->s * a->group;
  const int64_t first_key = n * MLK_ATTENTION_BLOCK, count = mlki_min(q->t - first_key, MLK_ATTENTION_BLOCK);
  const size_t bytes_k = (size_t)(count * dp) * sizeof(float), bytes_v = (size_t)(count * ep) * sizeof(float);
  mlki_grad_keys keys;
  mlki_grad_rows f;
  int64_t r0, first, j, low, high;
  mlki_grad_packed(a, slot, 1, n, NULL, &keys);
  if (a->dk) memset(s->total_k, 0, bytes_k);
  if (a->dv) memset(s->total_v, 0, bytes_v);
  for (r0 = 0; r0 < all; r0 += MLK_SEGMENT) {
    const int64_t rows = mlki_min(all - r0, MLK_SEGMENT);
    if (!mlki_attention_block_keys(a, q, r0, rows, n, &low, &high)) continue;
    mlki_grad_packed(a, slot, 0, r0 / MLK_SEGMENT, &f, NULL);
    if (a->dk) memset(s->chain_k, 0, bytes_k);
    if (a->dv) memset(s->chain_v, 0, bytes_v);
    for (first = 0; first < rows; first += a->tile) {
      const int64_t part = mlki_min(rows - first, a->tile);
      if (!mlki_grad_make(a, q, g, r0, first, part, n, &f, &keys, 0, &s->tile)) continue;
      if (a->dq && !a->halves) mlki_grad_dq(a, &s->tile, part, &keys, s->dq + (r0 + first) * dp);
      if (a->dk) mlki_grad_dk(a, &s->tile, part, s->tile.ds, f.qb + first * dp, a->d, s->chain_k);
      if (a->dv) mlki_grad_dk(a, &s->tile, part, s->tile.p, f.ob + first * ep, a->e, s->chain_v);
    }
    if (a->dk) a->job.row->add(s->total_k, s->chain_k, count * dp);
    if (a->dv) a->job.row->add(s->total_v, s->chain_v, count * ep);
  }
  for (j = 0; j < count; j++) {
    const int64_t at = q->k0 + first_key + j;
    if (a->dk)
      mlki_grad_put(a->dk + q->kb * a->dks[0] + g * a->dks[1] + at * a->dks[2], a->dks[3], s->total_k + j * dp, a->d);
    if (a->dv)
      mlki_grad_put(a->dv + q->kb * a->dvs[0] + g * a->dvs[1] + at * a->dvs[2], a->dvs[3], s->total_v + j * ep, a->e);
  }
}

/* heads: a unit is a head of the round. */
static void mlki_grad_heads_task(void *op, int index) {
  mlki_attention *a = (mlki_attention *)op;
  mlki_grad_space s = mlki_grad_space_of(a, index);
  int64_t unit, end, n;
  while (mlki_job_take(&a->job, 1, &unit, &end))
    for (; unit < end; unit++) {
      const int64_t head = a->job.round * a->round_heads + unit, g = head % a->groups;
      mlki_sequence q;
      if (head >= a->batch * a->groups) continue;
      q = mlki_sequence_of(a, head / a->groups);
      if (a->dq) memset(s.dq, 0, (size_t)(q.s * a->group * mlki_attention_pitch(a->d)) * sizeof *s.dq);
      for (n = 0; n * MLK_ATTENTION_BLOCK < q.t; n++) mlki_grad_block(a, &q, unit, g, n, &s);
      if (a->dq) mlki_grad_put_dq(a, &q, g, 0, q.s * a->group, s.dq);
    }
}

/* Tile number tile of a head: dq. */
static void mlki_grad_tile_dq(const mlki_attention *a, const mlki_sequence *q, int64_t slot, int64_t g, int64_t tile,
                              mlki_grad_space *s) {
  const int64_t per_segment = mlki_ceil_div(MLK_SEGMENT, a->tile), r0 = tile / per_segment * MLK_SEGMENT;
  const int64_t first = tile % per_segment * a->tile, all = q->s * a->group;
  const int64_t rows = mlki_min(mlki_min(all - r0, MLK_SEGMENT) - first, a->tile);
  mlki_grad_rows f;
  mlki_grad_keys keys;
  int64_t n;
  if (rows <= 0) return;
  mlki_grad_packed(a, slot, 0, r0 / MLK_SEGMENT, &f, NULL);
  memset(s->dq, 0, (size_t)(rows * mlki_attention_pitch(a->d)) * sizeof *s->dq);
  for (n = 0; n * MLK_ATTENTION_BLOCK < q->t; n++) {
    mlki_grad_packed(a, slot, 1, n, NULL, &keys);
    if (mlki_grad_make(a, q, g, r0, first, rows, n, &f, &keys, 0, &s->tile))
      mlki_grad_dq(a, &s->tile, rows, &keys, s->dq);
  }
  mlki_grad_put_dq(a, q, g, r0 + first, rows, s->dq);
}

/* halves: a unit is a block of keys or a tile of rows of a head of the round. */
static void mlki_grad_halves_task(void *op, int index) {
  mlki_attention *a = (mlki_attention *)op;
  const int64_t blocks = a->dk || a->dv ? a->blocks : 0, per_head = blocks + (a->dq ? a->tiles : 0);
  mlki_grad_space s = mlki_grad_space_of(a, index);
  int64_t unit, end;
  while (mlki_job_take(&a->job, 1, &unit, &end))
    for (; unit < end; unit++) {
      const int64_t slot = unit % a->round_heads, at = unit / a->round_heads;
      const int64_t head = a->job.round * a->round_heads + slot;
      mlki_sequence q;
      if (head >= a->batch * a->groups || at >= per_head) continue;
      q = mlki_sequence_of(a, head / a->groups);
      if (at >= blocks)
        mlki_grad_tile_dq(a, &q, slot, head % a->groups, at - blocks, &s);
      else if (at * MLK_ATTENTION_BLOCK < q.t)
        mlki_grad_block(a, &q, slot, head % a->groups, at, &s);
    }
}

/* --- dbias --- */

/* ds of a tile, before the cap is undone, added to dbias row by row. */
static void mlki_grad_add_bias(const mlki_attention *a, const mlki_sequence *q, int64_t g, int64_t r, int64_t rows,
                               int64_t n, const mlki_grad_tile *t) {
  int64_t i, j;
  for (i = 0; i < rows; i++) {
    const int64_t h = g * a->group + (r + i) % a->group, keys = t->high - t->low;
    float *to = a->dbias + q->b * a->dbs[0] + h * a->dbs[1] + (r + i) / a->group * a->dbs[2] +
                (n * MLK_ATTENTION_BLOCK + t->low) * a->dbs[3];
    const float *ds = t->ds + i * MLKI_SCORE_PITCH + t->low;
    if (a->dbs[3] == 1)
      a->job.row->add(to, ds, keys);
    else
      for (j = 0; j < keys; j++) to[j * a->dbs[3]] += ds[j];
  }
}

/* All tiles of segments [first, end) of a head against block n. */
static void mlki_grad_bias_block(const mlki_attention *a, const mlki_sequence *q, int64_t g, int64_t n, int64_t first,
                                 int64_t end, mlki_grad_space *s) {
  int64_t segment, at, low, high;
  int packed = 0;
  for (segment = first; segment < end; segment++) {
    const int64_t r0 = segment * MLK_SEGMENT, rows = mlki_min(q->s * a->group - r0, MLK_SEGMENT);
    if (rows <= 0) break;
    if (!mlki_attention_block_keys(a, q, r0, rows, n, &low, &high)) continue;
    if (!packed) mlki_grad_pack_keys(a, q, g, n, &s->keys, s->stage);
    packed = 1;
    mlki_grad_pack_rows(a, q, g, r0, rows, &s->rows);
    for (at = 0; at < rows; at += a->tile) {
      const int64_t part = mlki_min(rows - at, a->tile);
      if (mlki_grad_make(a, q, g, r0, at, part, n, &s->rows, &s->keys, 1, &s->tile))
        mlki_grad_add_bias(a, q, g, r0 + at, part, n, &s->tile);
    }
  }
}

/* Whether each segment of rows is a unit: no query's heads lie in two of them, or each head has its own elements. */
static int mlki_grad_bias_by_rows(const mlki_attention *a) {
  return a->dbs[2] != 0 && (a->dbs[1] != 0 || MLK_SEGMENT % a->group == 0);
}

/* A unit is what adds to elements of dbias that no other unit adds to: along an axis that bias has, one sequence, key
   head, segment or block; along one that it repeats, all of them, in ascending order. */
static void mlki_grad_bias_task(void *op, int index) {
  mlki_attention *a = (mlki_attention *)op;
  mlki_grad_space s = mlki_grad_space_of(a, index);
  const int own_b = a->dbs[0] != 0, own_h = a->dbs[1] != 0, own_j = a->dbs[3] != 0;
  const int own_i = mlki_grad_bias_by_rows(a);
  int64_t unit, end;
  if (a->job.round + 1 < a->job.rounds) return; /* once, at the end */
  while (mlki_job_take(&a->job, 2, &unit, &end))
    for (; unit < end; unit++) {
      int64_t u = unit, b, g, n, to_b, to_g, to_n, to_i, first_b, first_g, first_i, first_n;
      first_b = own_b ? u % a->batch : 0, to_b = own_b ? first_b + 1 : a->batch, u /= own_b ? a->batch : 1;
      first_g = own_h ? u % a->groups : 0, to_g = own_h ? first_g + 1 : a->groups, u /= own_h ? a->groups : 1;
      first_i = own_i ? u % a->segments : 0, to_i = own_i ? first_i + 1 : a->segments, u /= own_i ? a->segments : 1;
      first_n = own_j ? u : 0, to_n = own_j ? u + 1 : a->blocks;
      for (b = first_b; b < to_b; b++) {
        const mlki_sequence q = mlki_sequence_of(a, b);
        for (g = first_g; g < to_g; g++)
          for (n = first_n; n < to_n && n * MLK_ATTENTION_BLOCK < q.t; n++)
            mlki_grad_bias_block(a, &q, g, n, first_i, to_i, &s);
      }
    }
}

/* Which variant, which tiles; bytes of the workspace. */
static void mlki_grad_variant(const mlk_context *ctx, mlki_attention *a) {
  const int64_t mr = ctx->row->mr, rows = a->s * a->group, heads = a->group ? a->batch * a->groups : 0;
  int64_t fit;
  const int64_t limit = mlki_task_limit(ctx), wanted = a->dq || a->dk || a->dv;
  const double work = (double)rows * (double)a->t * (double)(3 * a->d + 2 * a->e);
  mlki_carver carver = {NULL, 0};
  mlki_grad_rows f;
  mlki_grad_keys keys;
  mlki_grad_space space;
  a->plain = a->softcap == 0.0f && !a->alibi && !a->bias && !a->mask;
  a->blocks = mlki_ceil_div(a->t, MLK_ATTENTION_BLOCK), a->segments = mlki_ceil_div(rows, MLK_SEGMENT);
  a->tile = mlki_min(MLKI_ATTENTION_ROWS, ctx->l2_bytes / 2 / (2 * MLKI_SCORE_PITCH * 4));
  a->tile = mlki_max(mlki_min(a->tile, rows) / mr, 1) * mr;
  a->tiles = a->segments * mlki_ceil_div(MLK_SEGMENT, a->tile);
  mlki_grad_carve_rows(a, &carver, &f);
  a->segment_bytes = carver.used, carver.used = 0;
  mlki_grad_carve_keys(a, &carver, &keys);
  a->key_bytes = carver.used, carver.used = 0;
  a->head_bytes = (uint64_t)a->segments * a->segment_bytes + (uint64_t)a->blocks * a->key_bytes;
  fit = (int64_t)(MLKI_GRAD_SHARED / (a->head_bytes + 1));
  a->halves = limit > 1 && (heads < 2 * limit || fit < limit);
  a->round_heads = a->halves ? mlki_ceil_div(4 * limit, mlki_max(a->blocks + a->tiles, 1)) : limit > 1 ? fit / 4 : 1;
  if (!a->halves) a->round_heads = mlki_max(a->round_heads, limit);
  a->round_heads = mlki_min(mlki_min(a->round_heads, mlki_max(fit, 1)), heads);
  a->job.variant = a->halves ? "halves" : "heads";
  a->job.rounds = mlki_ceil_div(heads, mlki_max(a->round_heads, 1));
  a->job.shared_bytes = wanted ? (uint64_t)a->round_heads * a->head_bytes : 0;
  mlki_job_phase(ctx, &a->job, 0, mlki_grad_pack_task, wanted ? a->round_heads * (a->segments + a->blocks) : 0, work);
  if (a->halves)
    mlki_job_phase(ctx, &a->job, 1, mlki_grad_halves_task, wanted ? a->round_heads * (a->blocks + a->tiles) : 0,
                   work / (double)mlki_max(a->blocks + a->tiles, 1));
  else
    mlki_job_phase(ctx, &a->job, 1, mlki_grad_heads_task, wanted ? a->round_heads : 0, work);
  if (a->dbias) {
    const int own_i = mlki_grad_bias_by_rows(a);
    const int64_t units = (a->dbs[0] ? a->batch : 1) * (a->dbs[1] ? a->groups : 1) * (own_i ? a->segments : 1) *
                          (a->dbs[3] ? a->blocks : 1);
    mlki_job_phase(ctx, &a->job, 2, mlki_grad_bias_task, units, work * (double)heads / (double)mlki_max(units, 1));
  }
  mlki_grad_carve(a, &carver, &space);
  a->job.task_bytes = carver.used;
}

enum { MLKI_GRAD_Q, MLKI_GRAD_K, MLKI_GRAD_V, MLKI_GRAD_BIAS, MLKI_GRAD_SINKS, MLKI_GRAD_COUNT };

static const char *const mlki_grad_names[MLKI_GRAD_COUNT] = {"dq", "dk", "dv", "dbias", "dsinks"};

/* dq, dk, dv, dbias, dsinks: tensors and extents. */
static mlk_status mlki_attention_grad_outputs(mlk_context *ctx, const mlki_attention_operands *o, mlk_tensor *t,
                                              mlki_extent *extent, mlki_attention *a) {
  static const int of[MLKI_GRAD_COUNT] = {MLKI_AT_Q, MLKI_AT_K, MLKI_AT_V, MLKI_AT_BIAS, MLKI_AT_SINKS};
  mlk_dtype type;
  mlk_status status;
  int i, wanted = 0;
  for (i = 0; i < MLKI_GRAD_COUNT; i++) {
    const mlk_tensor *like = &o->t[of[i]];
    if (!t[i].data) continue;
    if (!like->data)
      return mlki_fail(ctx, MLK_ERR_ARGUMENT, "%s: given without %s", mlki_grad_names[i], mlki_attention_names[of[i]]);
    type = i <= MLKI_GRAD_V ? mlki_attention_type(o, &t[i]) : MLK_F32;
    if ((status = mlki_check_shaped(ctx, mlki_grad_names[i], &t[i], type, 1, 1, mlki_attention_names[of[i]],
                                    like->shape, like->rank, &extent[i])) != MLK_OK)
      return status;
    wanted = 1;
  }
  if (!wanted)
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "dq, dk, dv, dbias, dsinks: data is NULL, but at least one is required");
  memcpy(a->dqs, t[MLKI_GRAD_Q].stride, sizeof a->dqs);
  memcpy(a->dks, t[MLKI_GRAD_K].stride, sizeof a->dks);
  memcpy(a->dvs, t[MLKI_GRAD_V].stride, sizeof a->dvs);
  a->dq = (float *)t[MLKI_GRAD_Q].data, a->dk = (float *)t[MLKI_GRAD_K].data, a->dv = (float *)t[MLKI_GRAD_V].data;
  a->dbias = (float *)t[MLKI_GRAD_BIAS].data;
  a->dsinks = (float *)t[MLKI_GRAD_SINKS].data, a->dsinks_step = t[MLKI_GRAD_SINKS].stride[0];
  for (i = 0; a->dbias && i < 4; i++) { /* aligned at the right, repeated along axes it lacks */
    const int at = i - (4 - t[MLKI_GRAD_BIAS].rank);
    const int64_t size = at < 0 ? 1 : t[MLKI_GRAD_BIAS].shape[at];
    a->dbias_size[i] = size;
    a->dbs[i] = size == 1 ? 0 : t[MLKI_GRAD_BIAS].stride[at];
  }
  return MLK_OK;
}

static mlk_status mlki_attention_grad_prepare(mlk_context *ctx, const mlk_attention_grad_desc *desc, int run,
                                              mlki_attention *a) {
  mlki_attention_operands o;
  mlk_tensor t[MLKI_GRAD_COUNT];
  mlki_extent extent[MLKI_GRAD_COUNT];
  mlki_operand outputs[MLKI_GRAD_COUNT];
  int64_t like[4];
  mlk_dtype type;
  mlk_status status;
  int i, n = 0;
  if (!desc) return mlki_fail(ctx, MLK_ERR_ARGUMENT, "desc: is NULL");
  memset(a, 0, sizeof *a);
  memset(&o, 0, sizeof o);
  memset(extent, 0, sizeof extent);
  o.t[MLKI_AT_Q] = desc->q, o.t[MLKI_AT_K] = desc->k, o.t[MLKI_AT_V] = desc->v;
  o.t[MLKI_AT_OUT] = desc->out, o.t[MLKI_AT_LSE] = desc->lse, o.t[MLKI_AT_DOUT] = desc->dout;
  t[MLKI_GRAD_Q] = desc->dq, t[MLKI_GRAD_K] = desc->dk, t[MLKI_GRAD_V] = desc->dv;
  t[MLKI_GRAD_BIAS] = desc->dbias, t[MLKI_GRAD_SINKS] = desc->dsinks;
  a->dtype = MLK_F32;
  if ((status = mlki_attention_inputs(ctx, &desc->scores, &o, a)) != MLK_OK) return status;
  for (i = 0; i < 3; i++) like[i] = desc->q.shape[i];
  like[3] = a->e;
  type = mlki_attention_type(&o, &desc->out);
  if ((status = mlki_attention_operand(ctx, &o, MLKI_AT_OUT, type, 0, "q and v", like, 4)) != MLK_OK ||
      (status = mlki_attention_operand(ctx, &o, MLKI_AT_LSE, MLK_F32, 0, "q", like, 3)) != MLK_OK ||
      (status = mlki_attention_operand(ctx, &o, MLKI_AT_DOUT, a->dtype, 0, "q and v", like, 4)) != MLK_OK ||
      (status = mlki_attention_grad_outputs(ctx, &o, t, extent, a)) != MLK_OK)
    return status;
  for (i = 0; i < MLKI_GRAD_COUNT; i++)
    if (t[i].data) outputs[n].name = mlki_grad_names[i], outputs[n].t = &t[i], outputs[n].extent = &extent[i], n++;
  if ((status = mlki_attention_apart(ctx, run, &o, outputs, n, MLKI_AT_COUNT)) != MLK_OK) return status;
  if (run && !ctx->backend && (status = mlki_attention_check_values(ctx, &o, a)) != MLK_OK) return status;
  a->out = (float *)o.t[MLKI_AT_OUT].data, a->lse = (float *)o.t[MLKI_AT_LSE].data;
  a->dout = (const float *)o.t[MLKI_AT_DOUT].data;
  memcpy(a->os + 1, o.t[MLKI_AT_OUT].stride, 4 * sizeof *a->os);
  memcpy(a->ls + 1, o.t[MLKI_AT_LSE].stride, 3 * sizeof *a->ls);
  memcpy(a->dos, o.t[MLKI_AT_DOUT].stride, sizeof a->dos);
  a->axis = desc->k.shape[2];
  if ((status = mlki_attention_flops(ctx, 2 * (3 * a->d + 2 * a->e), a)) != MLK_OK) return status;
  for (i = 0; i < MLKI_AT_COUNT; i++)
    a->job.bytes += (uint64_t)(o.extent[i].stored * (o.t[i].data ? mlki_dtype_bytes(o.t[i].dtype) : 0));
  for (i = 0; i < MLKI_GRAD_COUNT; i++)
    a->job.bytes += (uint64_t)(t[i].data ? mlki_dtype_bytes(t[i].dtype) * extent[i].count : 0);
  a->job.start = mlki_attention_grad_start, a->job.finish = mlki_attention_grad_finish;
  if (ctx->reference) {
    a->job.task_bytes = mlki_bytes(2 * (a->d + a->e));
    mlki_job_phase(ctx, &a->job, 0, mlki_ref_attention_grad_task, 1, 1.0);
  } else {
    mlki_grad_variant(ctx, a);
  }
  return MLK_OK;
}

/* >>attention_merge ------------------------------------------------------------------------------------------------ */

typedef struct mlki_attention_merge {
  mlki_job job;
  int64_t p, h, s, e;
  mlki_lines parts, parts_lse, out, lse; /* rows of one part after those of the one before */
  int64_t rows;
  const float *sinks;
  int64_t sinks_step;
} mlki_attention_merge;

/* Row r of out. */
static void mlki_ref_attention_merge(const mlki_attention_merge *g, int64_t r, float *state) {
  float m[2] = {0.0f, 0.0f}, lse;
  int64_t p;
  for (p = 0; p < g->p; p++) {
    lse = *mlki_line_f32(&g->parts_lse, p * g->rows + r);
    mlki_ref_fold(m, state, lse, lse == -INFINITY ? 0.0f : 1.0f, mlki_line_f32(&g->parts, p * g->rows + r),
                  g->parts.step, g->e);
  }
  if (g->sinks) mlki_ref_fold(m, state, g->sinks[r / g->s % g->h * g->sinks_step], 1.0f, NULL, 1, g->e);
  lse = mlki_ref_unfold(m, state, mlki_line_f32(&g->out, r), g->out.step, g->e);
  if (g->lse.p) *mlki_line_f32(&g->lse, r) = lse;
}

static void mlki_ref_attention_merge_task(void *op, int index) {
  mlki_attention_merge *g = (mlki_attention_merge *)op;
  int64_t r;
  (void)index;
  for (r = 0; r < g->rows; r++) mlki_ref_attention_merge(g, r, (float *)(void *)g->job.workspace);
}

/* Rows [first, first + rows) of out, rows <= MLKI_ROW_BLOCK. state: their states, a pitch apart; stage: for parts whose
   last axis is strided. */
static void mlki_attention_merge_rows(const mlki_attention_merge *g, int64_t first, int64_t rows, float *state,
                                      float *stage) {
  const mlki_kernels *row = g->job.row;
  const int64_t pitch = mlki_attention_pitch(g->e);
  float m[MLKI_ROW_BLOCK] = {0.0f}, l[MLKI_ROW_BLOCK] = {0.0f}, top[MLKI_ROW_BLOCK], scale[2 * MLKI_ROW_BLOCK];
  float *part[MLKI_ROW_BLOCK];
  int64_t p, i;
  for (p = 0; p < g->p; p++) {
    mlki_lines_in(row, &g->parts, p * g->rows + first, rows, g->e, 1, stage, part);
    for (i = 0; i < rows; i++) top[i] = *mlki_line_f32(&g->parts_lse, p * g->rows + first + i);
    mlki_attention_fold_scales(row, rows, m, l, top, scale);
    for (i = 0; i < rows; i++)
      mlki_attention_fold_row(row, &m[i], &l[i], state + i * pitch, top[i], top[i] == -INFINITY ? 0.0f : 1.0f, part[i],
                              g->e, scale[i], scale[rows + i]);
  }
  if (g->sinks) {
    memset(stage, 0, (size_t)g->e * sizeof *stage);
    for (i = 0; i < rows; i++) top[i] = g->sinks[(first + i) / g->s % g->h * g->sinks_step];
    mlki_attention_fold_scales(row, rows, m, l, top, scale);
    for (i = 0; i < rows; i++)
      mlki_attention_fold_row(row, &m[i], &l[i], state + i * pitch, top[i], 1.0f, stage, g->e, scale[i],
                              scale[rows + i]);
  }
  for (i = 0; i < rows; i++)
    mlki_attention_unfold(row, l[i], state + i * pitch, g->e, mlki_line_f32(&g->out, first + i), g->out.step);
  if (!g->lse.p) return;
  mlki_attention_lse(row, rows, m, l);
  for (i = 0; i < rows; i++) *mlki_line_f32(&g->lse, first + i) = m[i];
}

/* A unit is some rows. */
static void mlki_attention_merge_task(void *op, int index) {
  mlki_attention_merge *g = (mlki_attention_merge *)op;
  const int64_t block = mlki_line_block(g->e);
  float *state = (float *)(void *)(g->job.workspace + (uint64_t)index * g->job.task_bytes);
  float *stage = state + block * mlki_attention_pitch(g->e);
  int64_t unit, end;
  while (mlki_job_take(&g->job, 0, &unit, &end))
    for (; unit < end; unit++)
      mlki_attention_merge_rows(g, unit * block, mlki_min(block, g->rows - unit * block), state, stage);
}

static mlk_status mlki_attention_merge_prepare(mlk_context *ctx, const mlk_attention_merge_desc *desc, int run,
                                               mlki_attention_merge *g) {
  mlk_tensor parts, parts_lse, sinks, out, lse;
  mlki_extent ep, epl, es, eo, el;
  mlk_status status;
  if (!desc) return mlki_fail(ctx, MLK_ERR_ARGUMENT, "desc: is NULL");
  memset(g, 0, sizeof *g);
  parts = desc->parts, parts_lse = desc->parts_lse, sinks = desc->sinks, out = desc->out, lse = desc->lse;
  if ((status = mlki_check_tensor(ctx, "parts", &parts, MLK_F32, 5, 5, &ep)) != MLK_OK ||
      (status = mlki_check_shaped(ctx, "parts_lse", &parts_lse, MLK_F32, 0, 0, "parts", parts.shape, 4, &epl)) !=
          MLK_OK ||
      (status = mlki_check_shaped(ctx, "sinks", &sinks, MLK_F32, 1, 0, "parts", parts.shape + 2, 1, &es)) != MLK_OK ||
      (status = mlki_check_shaped(ctx, "out", &out, MLK_F32, 0, 1, "parts", parts.shape + 1, 4, &eo)) != MLK_OK ||
      (status = mlki_check_shaped(ctx, "lse", &lse, MLK_F32, 1, 1, "parts", parts.shape + 1, 3, &el)) != MLK_OK)
    return status;
  {
    const mlki_operand outputs[] = {{"out", &out, &eo}, {"lse", &lse, &el}};
    const mlki_operand inputs[] = {{"parts", &parts, &ep}, {"parts_lse", &parts_lse, &epl}, {"sinks", &sinks, &es}};
    if ((status = mlki_check_all_apart(ctx, run, outputs, 2, inputs, 3, NULL)) != MLK_OK) return status;
  }
  g->p = parts.shape[0], g->h = parts.shape[2], g->s = parts.shape[3], g->e = parts.shape[4];
  g->rows = parts.shape[1] * g->h * g->s;
  g->parts = mlki_lines_of(&parts, 4), g->parts_lse = mlki_lines_of(&parts_lse, 4);
  g->out = mlki_lines_of(&out, 3), g->lse = mlki_lines_of(&lse, 3);
  g->sinks = (const float *)sinks.data, g->sinks_step = sinks.stride[0];
  g->job.row = ctx->row;
  g->job.variant = "rows";
  g->job.flops = 4 * (uint64_t)ep.count;
  g->job.bytes = 4 * (uint64_t)(ep.stored + epl.stored + es.stored + eo.count + el.count);
  if (ctx->reference) {
    g->job.task_bytes = mlki_bytes(g->e);
    mlki_job_phase(ctx, &g->job, 0, mlki_ref_attention_merge_task, 1, 1.0);
  } else {
    const int64_t block = mlki_line_block(g->e);
    g->job.task_bytes = mlki_bytes(block * (mlki_attention_pitch(g->e) + mlki_line_pitch(g->e)));
    mlki_job_phase(ctx, &g->job, 0, mlki_attention_merge_task, mlki_ceil_div(g->rows, block),
                   (double)block * (double)g->p * (4.0 * (double)g->e + 32.0));
  }
  return MLK_OK;
}

/* >>average ------------------------------------------------------------------------------------------------------
   The mean of several replicas' tensors. Tensors of one replica, one after another, are one long vector. Everything is
   checked first, and what tasks need of the descriptors is put into tables in the workspace, so that a thousand small
   tensors cost little more than a large one. */

#define MLKI_AVERAGE_BLOCK  1024      /* elements of which sums stay in the level-1 cache */
#define MLKI_AVERAGE_GATHER 512       /* elements of each replica that are gathered */
#define MLKI_STREAM_BYTES   (1 << 22) /* of output: with its inputs it would not stay in the caches */

/* Bytes that a view covers, and which one it is: number r * count + i of the inputs, or i of the outputs. */
typedef struct mlki_span {
  uintptr_t low, high; /* high: behind the last byte */
  uintptr_t reach;     /* the largest high up to here, once sorted */
  int64_t index;
} mlki_span;

typedef struct mlki_average {
  const mlki_kernels *row;
  const mlk_average_desc *desc;
  mlk_dtype type, out_type;
  int64_t count, outs; /* tensors of a replica, outputs; in place outs = count */
  int64_t from, to;    /* of the vector */
  int whole, in_place; /* not a range; the results go to all inputs */
  int aliased;         /* an output is an input that is read */
  uint64_t live;       /* bit r: replica r takes part */
  int64_t *start;      /* [count + 1]: where input tensors begin in the vector */
  int64_t *out_start;  /* [outs + 1]: where outputs do; in place the parts of the inputs that are in the range */
  int64_t *segment;    /* [outs + 1], for the norm: the number of each output's first segment; else NULL */
  float *partial;      /* sum of squares of each segment */
  char **input;        /* [count][replicas] data, of those that are read or written */
  char **output;       /* [outs] data, not in place */
  char *strided;       /* [count]: some input is not dense */
  char *out_strided;   /* [outs], not in place */
  mlki_span *spans;    /* of what is written, twice: room to sort */
  int64_t written;     /* how many */
  int tasks, stream;
  int64_t odd;                   /* tasks that met a mean which is not finite */
  int64_t bad[MLK_MAX_REPLICAS]; /* tasks that met an element of the replica which is not finite */
  uint64_t flops, bytes, workspace_bytes;
} mlki_average;

static int mlki_average_reads(const mlki_average *g, int64_t r) { return (int)(g->live >> r & 1); }

/* The first replica that takes part: its shapes are everybody's. */
static int64_t mlki_average_first(const mlki_average *g) {
  int64_t r = 0;
  while (!mlki_average_reads(g, r)) r++;
  return r;
}

/* Are the tensors of replica r looked at? */
static int mlki_average_looks(const mlki_average *g, int64_t r) { return g->in_place || mlki_average_reads(g, r); }

static float mlki_average_weight(const mlki_average *g, int64_t r) {
  return g->desc->weights ? g->desc->weights[r] : 1.0f;
}

/* scale / (sum of the weights that take part) */
static float mlki_average_factor(const mlki_average *g) {
  double sum = 0.0;
  int64_t r;
  for (r = 0; r < g->desc->replicas; r++)
    if (mlki_average_reads(g, r)) sum += (double)mlki_average_weight(g, r);
  return (float)((g->desc->scale ? (double)*g->desc->scale : 1.0) / sum);
}

/* --- checks --- */

/* Whatever is no tensor; leaves in g->live who takes part. */
static mlk_status mlki_average_check(mlk_context *ctx, const mlk_average_desc *desc, mlki_average *g) {
  const float largest = FLT_MAX;
  int64_t r;
  if (!desc) return mlki_fail(ctx, MLK_ERR_ARGUMENT, "desc: is NULL");
  if (desc->replicas < 1 || desc->replicas > MLK_MAX_REPLICAS)
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "replicas: is %lld, but must be 1 to %d", (long long)desc->replicas,
                     MLK_MAX_REPLICAS);
  if (desc->count < 0)
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "count: is %lld, but must be at least 0", (long long)desc->count);
  if (desc->count > INT64_MAX / 8 / (int64_t)sizeof(mlk_tensor) / MLK_MAX_REPLICAS)
    return mlki_fail(ctx, MLK_ERR_SIZE, "count: is %lld, and so many tensors do not fit in memory",
                     (long long)desc->count);
  if (desc->count && !desc->inputs)
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "inputs: is NULL, but the argument is required");
  if (desc->output_count < 0 || desc->output_count > INT64_MAX / 8 / (int64_t)sizeof(mlk_tensor))
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "output_count: is %lld, but must be at least 0 and fit in memory",
                     (long long)desc->output_count);
  if (desc->output_count && !desc->outputs)
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "output_count: is %lld, but outputs is NULL",
                     (long long)desc->output_count);
  if (desc->from < 0 || desc->to < desc->from)
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "from: is %lld, but must be 0 to %lld, which is to", (long long)desc->from,
                     (long long)desc->to);
  for (r = 0; r < desc->replicas && desc->weights; r++)
    if (!(desc->weights[r] >= 0.0f && desc->weights[r] <= largest))
      return mlki_fail(ctx, MLK_ERR_ARGUMENT, "weights[%d]: is %g, but must be finite and at least 0", (int)r,
                       (double)desc->weights[r]);
  if (desc->replicas < 64 && desc->absent >> desc->replicas)
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "absent: is 0x%llx, but only bits 0 to %d may be set",
                     (unsigned long long)desc->absent, (int)desc->replicas - 1);
  if (desc->scale && !(*desc->scale >= -largest && *desc->scale <= largest))
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "scale: is %g, but must be finite", (double)*desc->scale);
  if ((int)desc->stores < 0 || desc->stores >= MLK_STORES_COUNT)
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "stores: is %d, but must be 0 to %d", (int)desc->stores,
                     MLK_STORES_COUNT - 1);
  for (r = 0; r < desc->replicas; r++)
    if (!(desc->absent >> r & 1) && (!desc->weights || desc->weights[r] > 0.0f)) g->live |= (uint64_t)1 << r;
  if (!g->live)
    return mlki_fail(ctx, MLK_ERR_REPLICA, "replicas: none of %d takes part: all are absent or have weight 0",
                     (int)desc->replicas);
  return MLK_OK;
}

/* The number of elements of a view that is dense in row-major order and has some; else 0. For what a thousand tensors
   would make slow. */
static int64_t mlki_average_dense(const mlk_tensor *t) {
  int64_t count = 1, given = 0, other = 0;
  int i;
  if (t->rank < 1 || t->rank > MLK_MAX_RANK || !t->data) return 0;
  for (i = t->rank - 1; i >= 0; i--) {
    const int64_t size = t->shape[i];
    given |= t->stride[i];
    if (size != 1) other |= t->stride[i] ^ count;
    if (size < 1 || mlki_mul_overflows(count, size, &count) || count > INT64_MAX / 64) return 0;
  }
  return given && other ? 0 : count;
}

/* The name of input i of replica r, or with r < 0 of output i. */
static const char *mlki_average_name(const mlki_average *g, int64_t r, int64_t i, char name[80]) {
  if (r < 0)
    snprintf(name, 80, "outputs[%lld]", (long long)i);
  else
    snprintf(name, 80, "inputs[%lld] (tensor %lld of replica %lld)", (long long)(r * g->count + i), (long long)i,
             (long long)r);
  return name;
}

/* Checks a tensor: its element type, which *type says, or with *type < 0 will say; that it has like's shape, if not
   NULL; its strides if it is written. *dense: as mlki_average_dense. */
static mlk_status mlki_average_tensor(mlk_context *ctx, const mlki_average *g, int64_t r, int64_t i, int32_t *type,
                                      const mlk_tensor *like, int64_t *elements, int *dense) {
  const mlk_tensor *given = r < 0 ? g->desc->outputs + i : g->desc->inputs + r * g->count + i;
  const int written = r < 0 || g->in_place;
  char name[80], like_name[80];
  mlk_tensor t;
  mlki_extent extent;
  mlk_status status;
  int axis, same = 1;
  if (*type < 0 && (given->dtype == MLK_F32 || given->dtype == MLK_F16 || given->dtype == MLK_BF16))
    *type = given->dtype;
  *elements = mlki_average_dense(given);
  *dense = *elements > 0;
  if (!*dense || given->dtype != *type) {
    t = *given;
    mlki_average_name(g, r, i, name);
    if (*type < 0)
      return mlki_fail(ctx, MLK_ERR_DTYPE, "%s: dtype is %s (%d), but must be f32, f16 or bf16", name,
                       t.dtype >= 0 && t.dtype < MLK_DTYPE_COUNT ? mlki_dtype_names[t.dtype] : "unknown", (int)t.dtype);
    if ((status = mlki_check_tensor(ctx, name, &t, (mlk_dtype)*type, 1, MLK_MAX_RANK, &extent)) != MLK_OK ||
        (written && (status = mlki_check_output(ctx, name, &t, &extent)) != MLK_OK))
      return status;
    *elements = extent.count;
  }
  if (!like) return MLK_OK;
  for (axis = 0, same = given->rank == like->rank; axis < like->rank && same; axis++)
    same = given->shape[axis] == like->shape[axis];
  if (same) return MLK_OK;
  return mlki_check_sizes(ctx, mlki_average_name(g, r, i, name), given,
                          mlki_average_name(g, mlki_average_first(g), i, like_name), like->shape, like->rank);
}

/* A place of the vector, or the end of the range that is nearest. */
static int64_t mlki_average_clamp(const mlki_average *g, int64_t at) {
  return g->whole ? at : mlki_max(mlki_min(at, g->to), g->from);
}

/* Output i is elements [first, end) of the vector. */
static void mlki_average_note_output(mlki_average *g, int64_t i, int64_t first, int64_t end, int64_t *segments) {
  if (g->out_start) g->out_start[i] = first, g->out_start[i + 1] = end;
  if (g->segment) g->segment[i] = *segments;
  *segments += mlki_ceil_div(end - first, MLK_REDUCE_SEGMENT);
}

/* The first replica's tensors: they make the vector. */
static mlk_status mlki_average_vector(mlk_context *ctx, mlki_average *g, int64_t *segments) {
  const int64_t first = mlki_average_first(g);
  int64_t total = 0, end = 0, bytes, elements, i;
  int32_t type = -1;
  int dense;
  mlk_status status;
  if (g->start) g->start[0] = 0;
  for (i = 0; i < g->count; i++, total = end) {
    if ((status = mlki_average_tensor(ctx, g, first, i, &type, NULL, &elements, &dense)) != MLK_OK) return status;
    if (mlki_add_overflows(total, elements, &end) || mlki_mul_overflows(end, 8 * MLK_MAX_REPLICAS, &bytes))
      return mlki_fail(ctx, MLK_ERR_SIZE,
                       "inputs: the bytes of tensors 0 to %lld of all replicas do not fit in 63 bits", (long long)i);
    if (g->start) g->start[i + 1] = end;
    if (g->in_place) mlki_average_note_output(g, i, mlki_average_clamp(g, total), mlki_average_clamp(g, end), segments);
  }
  g->type = type < 0 ? MLK_F32 : (mlk_dtype)type;
  if (g->desc->to > total)
    return mlki_fail(ctx, MLK_ERR_SHAPE, "to: is %lld, but the tensors of a replica have %lld elements",
                     (long long)g->desc->to, (long long)total);
  if (g->whole) g->to = total;
  return MLK_OK;
}

static mlk_status mlki_average_outputs(mlk_context *ctx, mlki_average *g, int64_t *segments) {
  int64_t at = g->from, elements, i;
  const mlk_tensor *model = NULL;
  int32_t type = -1;
  int dense;
  mlk_status status;
  if (g->whole && g->outs != g->count)
    return mlki_fail(ctx, MLK_ERR_SHAPE, "output_count: is %lld, but without a range must be %lld as count",
                     (long long)g->outs, (long long)g->count);
  for (i = 0; i < g->outs; i++, at += elements) {
    if (g->whole) model = g->desc->inputs + mlki_average_first(g) * g->count + i;
    if ((status = mlki_average_tensor(ctx, g, -1, i, &type, model, &elements, &dense)) != MLK_OK) return status;
    if (elements > g->to - at)
      return mlki_fail(ctx, MLK_ERR_SHAPE, "outputs: tensors 0 to %lld have more than %lld elements, to - from",
                       (long long)i, (long long)(g->to - g->from));
    mlki_average_note_output(g, i, at, at + elements, segments);
    if (g->output) g->output[i] = (char *)g->desc->outputs[i].data, g->out_strided[i] = (char)!dense;
  }
  if (at != g->to)
    return mlki_fail(ctx, MLK_ERR_SHAPE, "outputs: have %lld elements, but must have %lld, to - from",
                     (long long)(at - g->from), (long long)(g->to - g->from));
  g->out_type = type < 0 ? MLK_F32 : (mlk_dtype)type;
  return MLK_OK;
}

/* The vector and the outputs; fills their tables, once there are some. */
static mlk_status mlki_average_lists(mlk_context *ctx, mlki_average *g, int64_t *segments) {
  mlk_status status;
  *segments = 0;
  if (g->out_start) g->out_start[0] = g->from;
  if ((status = mlki_average_vector(ctx, g, segments)) != MLK_OK) return status;
  g->out_type = g->type;
  if (!g->in_place && (status = mlki_average_outputs(ctx, g, segments)) != MLK_OK) return status;
  if (g->segment) g->segment[g->outs] = *segments;
  if (g->desc->norm && g->out_type != MLK_F32)
    return mlki_fail(ctx, MLK_ERR_DTYPE, "norm: is given, but what is written is %s and must be f32",
                     mlki_dtype_names[g->out_type]);
  return MLK_OK;
}

/* All tensors that are looked at; fills the table of inputs. */
static mlk_status mlki_average_inputs(mlk_context *ctx, mlki_average *g) {
  const int64_t replicas = g->desc->replicas;
  int64_t elements, r, i;
  int32_t type = (int32_t)g->type;
  int dense;
  mlk_status status;
  if (g->strided) memset(g->strided, 0, (size_t)g->count);
  for (r = 0; r < replicas; r++) {
    if (!mlki_average_looks(g, r)) continue;
    for (i = 0; i < g->count; i++) {
      const mlk_tensor *model = g->desc->inputs + mlki_average_first(g) * g->count + i;
      if ((status = mlki_average_tensor(ctx, g, r, i, &type, model, &elements, &dense)) != MLK_OK) return status;
      if (g->whole && !g->in_place) g->aliased |= g->desc->inputs[r * g->count + i].data == g->desc->outputs[i].data;
      if (!g->input) continue;
      g->input[i * replicas + r] = (char *)g->desc->inputs[r * g->count + i].data;
      if (!dense) g->strided[i] = 1;
    }
  }
  return MLK_OK;
}

/* Do the elements of a view lie in memory without gaps, from the first one on, whatever the order of the axes? */
static int mlki_average_gapless(const mlk_tensor *t) {
  int64_t step = 1;
  int left = 0, axis, i;
  for (i = 0; i < t->rank; i++) left += t->shape[i] > 1;
  for (; left > 0; left--) {
    for (axis = 0; axis < t->rank && !(t->shape[axis] > 1 && t->stride[axis] == step);) axis++;
    if (axis == t->rank) return 0;
    step *= t->shape[axis];
  }
  return 1;
}

/* Where all views of tensor i have the same strides without gaps, the order of its elements does not matter. */
static int mlki_average_alike(const mlki_average *g, int64_t i) {
  const mlk_tensor *given = g->desc->inputs + mlki_average_first(g) * g->count + i;
  const mlk_tensor model = mlki_explicit_strides(*given);
  int64_t r;
  int axis;
  if (g->start[i] < g->from || g->start[i + 1] > g->to || !mlki_average_gapless(&model)) return 0;
  for (r = g->in_place ? 0 : -1; r < g->desc->replicas; r++) {
    mlk_tensor t;
    if (r >= 0 && !mlki_average_looks(g, r)) continue;
    t = mlki_explicit_strides(r < 0 ? g->desc->outputs[i] : g->desc->inputs[r * g->count + i]);
    for (axis = 0; axis < t.rank; axis++)
      if (t.shape[axis] > 1 && t.stride[axis] != model.stride[axis]) return 0;
  }
  return 1;
}

/* Tensors that may be read as if they were dense; not for the norm, whose sums know the order, nor for outputs that are
   cut otherwise. */
static void mlki_average_layouts(mlki_average *g) {
  int64_t i;
  if (g->segment || !(g->whole || g->in_place)) return;
  for (i = 0; i < g->count; i++)
    if ((g->strided[i] || (!g->in_place && g->out_strided[i])) && mlki_average_alike(g, i)) {
      g->strided[i] = 0;
      if (!g->in_place) g->out_strided[i] = 0;
    }
}

/* --- overlap ---
   What is written is sorted by where it lies in memory; then each tensor is compared with those it meets there. */

/* The span of input i of replica r, or with r < 0 of output i, and its view. Of a tensor without elements: 0. */
static int mlki_average_span(mlk_context *ctx, const mlki_average *g, int64_t r, int64_t i, mlki_span *span,
                             mlk_tensor *t, mlki_extent *extent) {
  int64_t bytes;
  *t = r < 0 ? g->desc->outputs[i] : g->desc->inputs[r * g->count + i];
  if (mlki_check_tensor(ctx, "", t, (mlk_dtype)t->dtype, 1, MLK_MAX_RANK, extent) != MLK_OK || !extent->count) return 0;
  bytes = mlki_dtype_bytes(t->dtype);
  span->low = (uintptr_t)t->data + (uintptr_t)(extent->low * bytes);
  span->high = (uintptr_t)t->data + (uintptr_t)((extent->high + 1) * bytes);
  span->index = r < 0 ? i : r * g->count + i;
  return 1;
}

/* The same without the view: quick for dense ones. */
static int mlki_average_bounds(mlk_context *ctx, const mlki_average *g, int64_t r, int64_t i, mlki_span *span) {
  const int64_t *start = r < 0 ? g->out_start + i : g->start + i;
  mlk_tensor t;
  mlki_extent extent;
  if (r < 0 ? g->out_strided[i] : g->strided[i]) return mlki_average_span(ctx, g, r, i, span, &t, &extent);
  span->low = (uintptr_t)(r < 0 ? g->output[i] : g->input[i * g->desc->replicas + r]);
  span->high = span->low +
               (uintptr_t)((start[1] - start[0]) * mlki_dtype_bytes((int32_t)(r < 0 ? g->out_type : g->type)));
  span->index = r < 0 ? i : r * g->count + i;
  return start[1] > start[0];
}

/* Sorts by low: runs that are in order already are merged, two and two. Gives which of the two arrays has the result.
   Tensors mostly lie in memory in the order of their numbers, replica by replica. */
static mlki_span *mlki_sort_spans(mlki_span *a, mlki_span *spare, int64_t n) {
  int64_t runs = 2;
  while (runs > 1) {
    int64_t at = 0, middle, end, i, j;
    mlki_span *sorted = spare;
    for (runs = 0; at < n; runs++) {
      for (middle = at + 1; middle < n && a[middle - 1].low <= a[middle].low;) middle++;
      if (at == 0 && middle == n) return a;
      for (end = mlki_min(middle + 1, n); end < n && a[end - 1].low <= a[end].low;) end++;
      for (i = at, j = middle; at < end; at++)
        sorted[at] = j == end || (i < middle && a[i].low <= a[j].low) ? a[i++] : a[j++];
    }
    spare = a, a = sorted;
  }
  return a;
}

/* May tensor i of replica r, or with r < 0 output i, lie where it does, when out is written? */
static mlk_status mlki_average_pair(mlk_context *ctx, mlki_average *g, int64_t out, int64_t r, int64_t i) {
  const int64_t out_r = g->in_place ? out / g->count : -1, out_i = g->in_place ? out % g->count : out;
  char name[80], other_name[80];
  mlk_tensor t, other;
  mlki_extent extent, other_extent;
  mlki_span span;
  if (!mlki_average_span(ctx, g, out_r, out_i, &span, &t, &extent) ||
      !mlki_average_span(ctx, g, r, i, &span, &other, &other_extent))
    return MLK_OK;
  if (!g->in_place && g->whole && r >= 0 && i == out_i && t.dtype == other.dtype && mlki_same_view(&t, &other))
    return MLK_OK;
  if (!mlki_overlap(&t, &extent, &other, &other_extent)) return MLK_OK;
  return mlki_fail(ctx, MLK_ERR_ALIAS, "%s: overlaps %s", mlki_average_name(g, out_r, out_i, name),
                   mlki_average_name(g, r, i, other_name));
}

/* What is written must lie apart; leaves it sorted. */
static mlk_status mlki_average_written_apart(mlk_context *ctx, mlki_average *g) {
  mlki_span *s = g->spans;
  const int64_t sides = g->in_place ? g->desc->replicas : 1;
  int64_t n = 0, r, i, k;
  for (r = 0; r < sides; r++)
    for (i = 0; i < g->outs; i++) n += mlki_average_bounds(ctx, g, g->in_place ? r : -1, i, s + n);
  g->spans = s = mlki_sort_spans(s, s + sides * g->outs, n);
  g->written = n;
  for (i = 0; i < n; i++) {
    s[i].reach = i && s[i - 1].reach > s[i].high ? s[i - 1].reach : s[i].high;
    for (k = i + 1; k < n && s[k].low < s[i].high; k++) {
      const int64_t other = s[k].index;
      const mlk_status status = mlki_average_pair(ctx, g, s[i].index, g->in_place ? other / g->count : -1,
                                                  g->in_place ? other % g->count : other);
      if (status) return status;
    }
  }
  return MLK_OK;
}

/* The first written span that reaches beyond low. near: a guess, mostly right. */
static int64_t mlki_average_find(const mlki_average *g, uintptr_t low, int64_t near) {
  const mlki_span *s = g->spans;
  int64_t first = 0, end = g->written, turn;
  for (turn = 0; turn < 2 && near <= end; turn++, near++)
    if ((near == 0 || s[near - 1].reach <= low) && (near == end || s[near].reach > low)) return near;
  while (first < end) {
    const int64_t middle = first + (end - first) / 2;
    if (s[middle].reach > low)
      end = middle;
    else
      first = middle + 1;
  }
  return first;
}

/* What is read must lie apart from what is written, but where it is the same. */
static mlk_status mlki_average_read_apart(mlk_context *ctx, mlki_average *g) {
  int64_t near = 0, r, i, k;
  mlki_span span;
  for (r = 0; r < g->desc->replicas; r++) {
    if (!mlki_average_reads(g, r)) continue;
    for (i = 0; i < g->count; i++) {
      if (!mlki_average_bounds(ctx, g, r, i, &span)) continue;
      near = mlki_average_find(g, span.low, near);
      for (k = near; k < g->written && g->spans[k].low < span.high; k++) {
        const mlk_status status = g->spans[k].high > span.low ? mlki_average_pair(ctx, g, g->spans[k].index, r, i)
                                                              : MLK_OK;
        if (status) return status;
      }
    }
  }
  return MLK_OK;
}

/* --- the call --- */

/* The tables, or with base NULL what they take. */
static uint64_t mlki_average_tables(mlki_average *g, void *base, int64_t segments) {
  const int64_t replicas = g->desc->replicas, written = g->in_place ? replicas * g->outs : g->outs;
  mlki_carver carver;
  carver.base = (char *)base, carver.used = 0;
  g->start = (int64_t *)mlki_carve(&carver, g->count + 1, 8);
  g->out_start = (int64_t *)mlki_carve(&carver, g->outs + 1, 8);
  if (g->desc->norm) {
    g->segment = (int64_t *)mlki_carve(&carver, g->outs + 1, 8);
    g->partial = (float *)mlki_carve(&carver, segments, 4);
  }
  g->input = (char **)mlki_carve(&carver, g->count * replicas, (int64_t)sizeof(char *));
  g->strided = (char *)mlki_carve(&carver, g->count, 1);
  if (!g->in_place) {
    g->output = (char **)mlki_carve(&carver, g->outs, (int64_t)sizeof(char *));
    g->out_strided = (char *)mlki_carve(&carver, g->outs, 1);
  }
  g->spans = (mlki_span *)mlki_carve(&carver, 2 * written, (int64_t)sizeof(mlki_span));
  return carver.used;
}

/* The same for replicas of count tensors and outputs apart from them, without a norm. */
static uint64_t mlki_average_table_bytes(int64_t replicas, int64_t count, int64_t outputs) {
  mlki_average g;
  mlk_average_desc desc;
  memset(&g, 0, sizeof g);
  memset(&desc, 0, sizeof desc);
  desc.replicas = replicas, g.desc = &desc, g.count = count, g.outs = outputs;
  return mlki_average_tables(&g, NULL, 0);
}

/* What the plan tells, and how the call will go. */
static void mlki_average_choose(const mlk_context *ctx, mlki_average *g, int64_t segments) {
  const int64_t n = g->to - g->from, in = mlki_dtype_bytes((int32_t)g->type);
  const int64_t out = mlki_dtype_bytes((int32_t)g->out_type);
  const int64_t parts = g->desc->norm ? segments : mlki_ceil_div(n, MLKI_AVERAGE_BLOCK);
  int64_t lives = 0, r;
  for (r = 0; r < g->desc->replicas; r++) lives += mlki_average_reads(g, r);
  g->flops = 2 * (uint64_t)(n * lives);
  g->bytes = (uint64_t)(n * lives * in) + (uint64_t)(n * out * (g->in_place ? g->desc->replicas : 1));
  if (!g->in_place && !g->aliased && ctx->row->streams && !ctx->reference)
    g->stream = g->desc->stores == MLK_STORES_AUTO ? n * out >= MLKI_STREAM_BYTES
                                                   : g->desc->stores == MLK_STORES_STREAMED;
  g->tasks = 1; /* a cheap map is two or three streams of 4 bytes */
  if (!ctx->reference)
    g->tasks = (int)mlki_max(mlki_min(mlki_min(mlki_task_limit(ctx), parts),
                                      (int64_t)((double)g->bytes * MLKI_MAP_WORK / 12 / MLKI_TASK_WORK)),
                             1);
}

/* Checks everything, and with run set fills the tables. */
static mlk_status mlki_average_prepare(mlk_context *ctx, const mlk_average_desc *desc, int run, mlki_average *g) {
  int64_t segments = 0;
  mlk_status status;
  memset(g, 0, sizeof *g);
  g->desc = desc, g->row = ctx->row;
  if ((status = mlki_average_check(ctx, desc, g)) != MLK_OK) return status;
  g->count = desc->count, g->in_place = !desc->outputs;
  g->outs = g->in_place ? g->count : desc->output_count;
  g->whole = desc->to == 0, g->from = desc->from, g->to = desc->to;
  if ((status = mlki_average_lists(ctx, g, &segments)) != MLK_OK) return status;
  g->workspace_bytes = mlki_average_tables(g, NULL, segments);
  if (run) {
    if ((status = mlki_workspace(ctx, g->workspace_bytes)) != MLK_OK) return status;
    (void)mlki_average_tables(g, mlki_workspace_base(ctx), segments);
    if ((status = mlki_average_lists(ctx, g, &segments)) != MLK_OK) return status;
  }
  if ((status = mlki_average_inputs(ctx, g)) != MLK_OK) return status;
  mlki_average_choose(ctx, g, segments);
  if (!run) return MLK_OK;
  mlki_average_layouts(g);
  if ((status = mlki_average_written_apart(ctx, g)) != MLK_OK) return status;
  return g->in_place ? MLK_OK : mlki_average_read_apart(ctx, g);
}

/* >>average_run --------------------------------------------------------------------------------------------------
   The definition; then the tasks of a checked call. A task owns a stretch of the vector and goes through it piece by
   piece: as far as one tensor of the inputs and one of the outputs reach. */

/* Element number index of a view in row-major order. */
static int64_t mlki_ref_element(const mlk_tensor *t, int64_t index) {
  const mlk_tensor view = mlki_explicit_strides(*t);
  return mlki_ref_offset(view.rank, view.shape, view.stride, index);
}

/* Element number index of tensor i. */
static float mlki_ref_average_mean(const mlki_average *g, int64_t i, int64_t index, float factor) {
  float t = 0.0f;
  int64_t r;
  for (r = 0; r < g->desc->replicas; r++) {
    const mlk_tensor *x = g->desc->inputs + r * g->count + i;
    if (mlki_average_reads(g, r))
      t = mlki_fma1(mlki_average_weight(g, r), mlki_ref_load(g->type, x->data, mlki_ref_element(x, index), MLK_F32), t);
  }
  return factor * t;
}

/* Elements [first, end) of the vector, all of one output: its sum of squares. */
static float mlki_ref_average_output(const mlki_average *g, int64_t out, int64_t first, int64_t end, float factor) {
  float lane[16] = {0}, sum = 0.0f, mean;
  int64_t i = 0, r, at;
  int l, half;
  for (at = first; at < end; at++) {
    while (g->start[i + 1] <= at) i++;
    mean = mlki_ref_average_mean(g, i, at - g->start[i], factor);
    for (r = 0; r < (g->in_place ? g->desc->replicas : 1); r++) {
      const mlk_tensor *y = g->in_place ? g->desc->inputs + r * g->count + i : g->desc->outputs + out;
      const int64_t index = g->in_place ? at - g->start[i] : at - first;
      mlki_ref_convert(MLK_F32, &mean, 0, g->out_type, y->data, mlki_ref_element(y, index));
    }
    lane[(at - first) % 16] = mlki_fma1(mean, mean, lane[(at - first) % 16]);
    if ((at - first) % MLK_REDUCE_SEGMENT == MLK_REDUCE_SEGMENT - 1 || at + 1 == end) {
      for (half = 8; half >= 1; half /= 2)
        for (l = 0; l < half; l++) lane[l] += lane[l + half];
      sum = at - first < MLK_REDUCE_SEGMENT ? lane[0] : sum + lane[0];
      memset(lane, 0, sizeof lane);
    }
  }
  return sum;
}

/* Gives the sum of the outputs' sums of squares. */
static float mlki_ref_average(const mlki_average *g) {
  const float factor = mlki_average_factor(g);
  float total = 0.0f;
  int64_t j;
  for (j = 0; j < g->outs; j++) {
    const float sum = mlki_ref_average_output(g, j, g->out_start[j], g->out_start[j + 1], factor);
    total = j == 0 ? sum : total + sum;
  }
  return total;
}

/* Replicas that take part and have an element in the range that is not finite. */
static uint64_t mlki_ref_average_nonfinite(const mlki_average *g) {
  uint64_t found = 0;
  int64_t r, i = 0, at;
  for (at = g->from; at < g->to; at++) {
    while (g->start[i + 1] <= at) i++;
    for (r = 0; r < g->desc->replicas; r++) {
      const mlk_tensor *x = g->desc->inputs + r * g->count + i;
      if (mlki_average_reads(g, r) &&
          !(fabsf(mlki_ref_load(g->type, x->data, mlki_ref_element(x, at - g->start[i]), MLK_F32)) <= FLT_MAX))
        found |= (uint64_t)1 << r;
    }
  }
  return found;
}

/* --- pieces --- */

/* A piece of the vector that is in one input tensor and one output. */
typedef struct mlki_average_piece {
  int64_t at, n; /* in the vector */
  int64_t in, out;
  int64_t last; /* the last tensor of the inputs that is in it */
} mlki_average_piece;

/* What a task has while it works. */
typedef struct mlki_average_task {
  mlki_average *g;
  mlki_average_row row;
  int lives;
  int64_t replica[MLK_MAX_REPLICAS]; /* that take part */
  int finite;
  float lanes[16];
} mlki_average_task;

/* The last entry of a table of count + 1 ascending places that is not behind at, and not the end. */
static int64_t mlki_average_seek(const int64_t *start, int64_t count, int64_t at) {
  int64_t first = 0, end = count;
  while (end - first > 1) {
    const int64_t middle = first + (end - first) / 2;
    if (start[middle] <= at)
      first = middle;
    else
      end = middle;
  }
  return first;
}

/* The piece that begins at p->at, up to end. */
static void mlki_average_extend(const mlki_average *g, mlki_average_piece *p, int64_t end) {
  while (g->start[p->in + 1] <= p->at) p->in++;
  while (g->out_start[p->out + 1] <= p->at) p->out++;
  p->n = mlki_min(mlki_min(g->start[p->in + 1], g->out_start[p->out + 1]), end) - p->at;
  p->last = p->in;
}

/* Does tensor i + 1 follow tensor i in memory, in all that is read and written? Both are dense. */
static int mlki_average_follows(const mlki_average *g, int64_t i) {
  const int64_t n = g->start[i + 1] - g->start[i], replicas = g->desc->replicas;
  const int64_t bytes = n * mlki_dtype_bytes((int32_t)g->type), size = n * mlki_dtype_bytes((int32_t)g->out_type);
  char *const *x = g->input + i * replicas;
  int64_t r;
  if (g->strided[i] || g->strided[i + 1]) return 0;
  if (!g->in_place && (g->out_strided[i] || g->out_strided[i + 1] || g->output[i + 1] != g->output[i] + size)) return 0;
  for (r = 0; r < replicas; r++)
    if (mlki_average_looks(g, r) && x[replicas + r] != x[r] + bytes) return 0;
  return 1;
}

/* Tensors cut from one buffer are one piece, unless each has a sum of its own. */
static void mlki_average_join(const mlki_average *g, mlki_average_piece *p, int64_t end) {
  if (g->segment || !(g->whole || g->in_place)) return;
  while (p->at + p->n < end && mlki_average_follows(g, p->last)) {
    p->last++;
    p->n = mlki_min(g->start[p->last + 1], end) - p->at;
  }
}

/* Where the part of task index begins: for the norm with a segment. */
static int64_t mlki_average_cut(const mlki_average *g, int64_t index) {
  const int64_t n = g->to - g->from, step = mlki_round_up(mlki_ceil_div(n, g->tasks), MLKI_AVERAGE_BLOCK);
  const int64_t at = g->from + mlki_min(step * index, n);
  int64_t out, first;
  if (!g->segment || at == g->to) return at;
  out = mlki_average_seek(g->out_start, g->outs, at);
  first = g->out_start[out];
  return mlki_min(first + mlki_round_up(at - first, MLK_REDUCE_SEGMENT), g->out_start[out + 1]);
}

/* A view with as few axes as its row-major order allows. */
static mlk_tensor mlki_average_merged(const mlk_tensor *t) {
  mlk_tensor v = mlki_explicit_strides(*t);
  int i, k = 0;
  for (i = 0; i < v.rank; i++) {
    if (v.shape[i] == 1) continue;
    if (k && v.stride[k - 1] == v.shape[i] * v.stride[i])
      k--, v.shape[k] *= v.shape[i];
    else
      v.shape[k] = v.shape[i];
    v.stride[k++] = v.stride[i];
  }
  if (!k) v.shape[0] = v.stride[0] = 1, k = 1;
  v.rank = k;
  return v;
}

/* n elements from number at on of a view, one run of equal steps after another: to or, with put, from a dense block. */
static void mlki_average_move(const mlk_tensor *t, int64_t at, int64_t n, char *block, int put) {
  const int64_t bytes = mlki_dtype_bytes(t->dtype);
  const mlk_tensor v = mlki_average_merged(t);
  const int64_t size = v.shape[v.rank - 1], step = v.stride[v.rank - 1] * bytes;
  int64_t run, j;
  for (; n > 0; n -= run, at += run, block += run * bytes) {
    char *p = (char *)v.data + mlki_ref_offset(v.rank, v.shape, v.stride, at) * bytes;
    run = mlki_min(size - at % size, n);
    if (step == bytes)
      memcpy(put ? p : block, put ? block : p, (size_t)(run * bytes));
    else if (bytes == 4)
      for (j = 0; j < run; j++) memcpy(put ? p + j * step : block + 4 * j, put ? block + 4 * j : p + j * step, 4);
    else
      for (j = 0; j < run; j++) memcpy(put ? p + j * step : block + 2 * j, put ? block + 2 * j : p + j * step, 2);
  }
}

/* How many elements of a view follow number at densely, itself included. */
static int64_t mlki_average_run_length(const mlk_tensor *t, int64_t at) {
  const mlk_tensor v = mlki_average_merged(t);
  const int64_t size = v.shape[v.rank - 1];
  return v.stride[v.rank - 1] == 1 ? size - at % size : 1;
}

/* Elements of input tensor i of replica r from number at on, n of them: where they are, or gathered into block. */
static const char *mlki_average_read(const mlki_average *g, int64_t r, int64_t i, int64_t at, int64_t n, char *block) {
  const mlk_tensor *t = g->desc->inputs + r * g->count + i;
  const int64_t bytes = mlki_dtype_bytes((int32_t)g->type);
  if (!g->strided[i]) return g->input[i * g->desc->replicas + r] + at * bytes;
  if (mlki_average_run_length(t, at) >= n) {
    const mlk_tensor v = mlki_explicit_strides(*t);
    return (const char *)v.data + mlki_ref_offset(v.rank, v.shape, v.stride, at) * bytes;
  }
  mlki_average_move(t, at, n, block, 0);
  return block;
}

/* The means of a block, n elements from at on of input tensor i. Its row knows where they go. Rows beyond the first
   MLKI_AVERAGE_ROWS are read in further turns, the sums staying in the level-1 cache between. */
static void mlki_average_block(mlki_average_task *task, int64_t i, int64_t at, int64_t n) {
  float block[MLKI_AVERAGE_ROWS][MLKI_AVERAGE_GATHER], sums[MLKI_AVERAGE_BLOCK];
  mlki_average *g = task->g;
  mlki_average_row *row = &task->row;
  int first, k;
  row->count = n;
  for (first = 0; first < task->lives; first += MLKI_AVERAGE_ROWS) {
    row->n = (int)mlki_min(task->lives - first, MLKI_AVERAGE_ROWS);
    for (k = 0; k < row->n; k++) {
      row->x[k] = mlki_average_read(g, task->replica[first + k], i, at, n, (char *)block[k]);
      row->weight[k] = mlki_average_weight(g, task->replica[first + k]);
    }
    row->before = first ? sums : NULL;
    row->after = first + row->n < task->lives ? sums : NULL;
    task->finite &= g->row->average(row);
  }
}

/* Sets where n means go: from at on of input tensors or output out, all dense. */
static void mlki_average_aim(mlki_average_task *task, int64_t i, int64_t out, int64_t at) {
  const mlki_average *g = task->g;
  const int64_t size = mlki_dtype_bytes((int32_t)g->out_type);
  mlki_average_row *row = &task->row;
  int k;
  for (k = 0; k < row->outs; k++)
    row->out[k] = (g->in_place ? g->input[i * g->desc->replicas + k] : g->output[out]) + at * size;
  row->stream = g->stream && (uintptr_t)row->out[0] % (uintptr_t)size == 0;
}

/* A piece whose views are dense, of at most MLKI_AVERAGE_ROWS replicas: one row from beginning to end. */
static void mlki_average_dense_piece(mlki_average_task *task, const mlki_average_piece *p, int64_t at, int64_t out_at) {
  const mlki_average *g = task->g;
  char *const *x = g->input + p->in * g->desc->replicas;
  const int64_t bytes = at * mlki_dtype_bytes((int32_t)g->type);
  mlki_average_row *row = &task->row;
  int k;
  for (k = 0; k < task->lives; k++) row->x[k] = x[task->replica[k]] + bytes;
  mlki_average_aim(task, p->in, p->out, out_at);
  row->count = p->n;
  task->finite &= g->row->average(row);
}

/* Any other piece, by blocks. */
static void mlki_average_block_piece(mlki_average_task *task, const mlki_average_piece *p, int64_t at, int64_t out_at) {
  float means[MLKI_AVERAGE_BLOCK];
  const mlki_average *g = task->g;
  mlki_average_row *row = &task->row;
  const int64_t size = mlki_dtype_bytes((int32_t)g->out_type);
  const int scattered = g->in_place ? g->strided[p->in] : g->out_strided[p->out], outs = row->outs;
  const int64_t most = g->strided[p->in] ? MLKI_AVERAGE_GATHER : MLKI_AVERAGE_BLOCK;
  int64_t n, done;
  int r;
  for (done = 0; done < p->n; done += n) {
    n = mlki_min(p->n - done, most);
    if (g->strided[p->in]) { /* long rows are read where they are: blocks end with them */
      const int64_t run = mlki_average_run_length(g->desc->inputs + task->replica[0] * g->count + p->in, at + done);
      if (run >= MLKI_AVERAGE_GATHER / 4) n = mlki_min(n, run);
    }
    if (scattered) {
      row->out[0] = (char *)means, row->outs = 1, row->stream = 0;
    } else {
      mlki_average_aim(task, p->in, p->out, out_at + done);
      if (row->stream && n == most) /* blocks end with lines */
        n -= (int64_t)((uintptr_t)row->out[0] % MLKI_ALIGN) / size;
    }
    mlki_average_block(task, p->in, at + done, n);
    row->phase = (row->phase + n) % 16;
    for (r = 0; scattered && r < outs; r++)
      mlki_average_move(g->in_place ? g->desc->inputs + r * g->count + p->in : g->desc->outputs + p->out, out_at + done,
                        n, (char *)means, 1);
  }
  row->outs = outs;
}

#define MLKI_AVERAGE_AHEAD 4    /* lines of the next tensor that are fetched early, */
#define MLKI_AVERAGE_LONG  1024 /* if the present one has so many elements */

/* Between two tensors the processor would wait for memory: the next one's beginnings are fetched early. */
static void mlki_average_ahead(const mlki_average_task *task, const mlki_average_piece *p) {
  const mlki_average *g = task->g;
  char *const *x = g->input + (p->last + 1) * g->desc->replicas;
  int k, line;
  if (p->n < MLKI_AVERAGE_LONG || p->last + 1 >= g->count) return;
  for (k = 0; k < task->lives; k++)
    for (line = 0; line < MLKI_AVERAGE_AHEAD; line++) MLKI_PREFETCH(x[task->replica[k]] + 64 * line);
}

static void mlki_average_piece_run(mlki_average_task *task, const mlki_average_piece *p) {
  const mlki_average *g = task->g;
  const int64_t at = p->at - g->start[p->in], out_at = g->in_place ? at : p->at - g->out_start[p->out];
  mlki_average_row *row = &task->row;
  row->phase = (p->at - g->out_start[p->out]) % 16;
  row->lanes = g->segment ? task->lanes : NULL;
  if (task->lives > MLKI_AVERAGE_ROWS || g->strided[p->in] || (!g->in_place && g->out_strided[p->out])) {
    mlki_average_block_piece(task, p, at, out_at);
  } else {
    mlki_average_ahead(task, p);
    mlki_average_dense_piece(task, p, at, out_at);
  }
}

/* The part of the vector that is a task's own. With a norm pieces end with segments. */
static void mlki_average_part(void *arg, int index) {
  mlki_average_task task;
  mlki_average_piece p;
  mlki_average *g = (mlki_average *)arg;
  const int64_t end = mlki_average_cut(g, index + 1);
  int64_t r, in_out;
  memset(&task, 0, sizeof task);
  task.g = g, task.finite = 1;
  for (r = 0; r < g->desc->replicas; r++)
    if (mlki_average_reads(g, r)) {
      if (task.lives < MLKI_AVERAGE_ROWS) task.row.weight[task.lives] = mlki_average_weight(g, r);
      task.replica[task.lives++] = r;
    }
  task.row.n = (int)mlki_min(task.lives, MLKI_AVERAGE_ROWS);
  task.row.from = g->type, task.row.to = g->out_type, task.row.factor = mlki_average_factor(g);
  task.row.outs = g->in_place ? (int)g->desc->replicas : 1;
  p.at = mlki_average_cut(g, index);
  p.in = mlki_average_seek(g->start, g->count, p.at), p.out = mlki_average_seek(g->out_start, g->outs, p.at);
  for (; p.at < end; p.at += p.n) {
    mlki_average_extend(g, &p, end);
    mlki_average_join(g, &p, end);
    in_out = p.at - g->out_start[p.out];
    if (g->segment) {
      p.n = mlki_min(p.n, MLK_REDUCE_SEGMENT - in_out % MLK_REDUCE_SEGMENT);
      if (in_out % MLK_REDUCE_SEGMENT == 0) memset(task.lanes, 0, sizeof task.lanes);
    }
    mlki_average_piece_run(&task, &p);
    if (g->segment && ((in_out + p.n) % MLK_REDUCE_SEGMENT == 0 || p.at + p.n == g->out_start[p.out + 1]))
      g->row->reduce_tree_rows(MLK_SUM, task.lanes, 1, g->partial + g->segment[p.out] + in_out / MLK_REDUCE_SEGMENT);
  }
  if (g->stream) g->row->fence();
  if (!task.finite) mlki_take(&g->odd);
}

/* Adds up what the tasks summed, output after output. */
static float mlki_average_squares(const mlki_average *g) {
  float total = 0.0f, sum;
  int64_t j, s;
  for (j = 0; j < g->outs; j++) {
    sum = g->segment[j] < g->segment[j + 1] ? g->partial[g->segment[j]] : 0.0f;
    for (s = g->segment[j] + 1; s < g->segment[j + 1]; s++) sum += g->partial[s];
    total = j == 0 ? sum : total + sum;
  }
  return total;
}

/* Whether n dense elements of a type are all finite. */
static int mlki_average_finite(const mlki_kernels *row, mlk_dtype type, const char *x, int64_t n) {
  float wide[MLKI_AVERAGE_BLOCK];
  int64_t j;
  if (type == MLK_F32) return row->finite_row((const float *)(const void *)x, n);
  for (j = 0; j < n; j += MLKI_AVERAGE_BLOCK) {
    const int64_t some = mlki_min(n - j, MLKI_AVERAGE_BLOCK);
    row->widen(type, x + 2 * j, wide, some);
    if (!row->finite_row(wide, some)) return 0;
  }
  return 1;
}

/* Looks for replicas that are not finite in a task's part: each as far as to the first place. */
static void mlki_average_scan(void *arg, int index) {
  float block[MLKI_AVERAGE_BLOCK];
  mlki_average_piece p;
  mlki_average *g = (mlki_average *)arg;
  const int64_t first = mlki_average_cut(g, index), end = mlki_average_cut(g, index + 1);
  int64_t r;
  for (r = 0; r < g->desc->replicas; r++) {
    int finite = mlki_average_reads(g, r);
    if (!finite) continue;
    p.in = mlki_average_seek(g->start, g->count, first);
    for (p.at = first; p.at < end && finite; p.at += p.n) {
      while (g->start[p.in + 1] <= p.at) p.in++;
      p.n = mlki_min(mlki_min(g->start[p.in + 1], end) - p.at, 16 * MLKI_AVERAGE_BLOCK);
      if (g->strided[p.in]) p.n = mlki_min(p.n, MLKI_AVERAGE_BLOCK);
      finite = mlki_average_finite(g->row, g->type,
                                   mlki_average_read(g, r, p.in, p.at - g->start[p.in], p.n, (char *)block), p.n);
    }
    if (!finite) mlki_take(&g->bad[r]);
  }
}

/* Leaves out the replicas that are not finite; gives whether there were some. */
static int mlki_average_skip(mlk_context *ctx, mlki_average *g) {
  const uint64_t before = g->live;
  int64_t r;
  if (ctx->reference) {
    g->live &= ~mlki_ref_average_nonfinite(g);
  } else {
    memset(g->bad, 0, sizeof g->bad);
    mlki_parallel_for(ctx, g->tasks, mlki_average_scan, g);
    for (r = 0; r < g->desc->replicas; r++)
      if (g->bad[r]) g->live &= ~((uint64_t)1 << r);
  }
  return g->live != before;
}

/* A mean of finite elements is finite, but for overflow, and one of others is not: so elements are looked at only when
   some mean is not finite, unless the inputs would be gone by then. */
static mlk_status mlki_average_execute(mlk_context *ctx, mlki_average *g) {
  const int empty = g->from == g->to, before = g->in_place || g->aliased || ctx->reference;
  float squares = 0.0f;
  int again = 1;
  if (g->desc->skip_nonfinite && before && !empty) (void)mlki_average_skip(ctx, g);
  while (again && g->live && !empty) {
    g->odd = 0;
    if (ctx->reference)
      squares = mlki_ref_average(g);
    else
      mlki_parallel_for(ctx, g->tasks, mlki_average_part, g);
    again = g->odd && g->desc->skip_nonfinite && !before && mlki_average_skip(ctx, g);
  }
  if (!g->live)
    return mlki_fail(ctx, MLK_ERR_REPLICA, "replicas: none of %d is left: those that take part are not finite",
                     (int)g->desc->replicas);
  if (g->segment && !ctx->reference && !empty) squares = mlki_average_squares(g);
  if (g->desc->norm) *g->desc->norm = sqrtf(squares);
  if (g->desc->used) *g->desc->used = g->live;
  return MLK_OK;
}

/* Checks and runs a call: mlk_average, also for groups. */
static mlk_status mlki_average_run(mlk_context *ctx, const mlk_average_desc *desc) {
  mlki_average g;
  const mlk_status status = mlki_average_prepare(ctx, desc, 1, &g);
  return status ? status : mlki_average_execute(ctx, &g);
}

/* >>group ----------------------------------------------------------------------------------------------------------
   Replica groups: what a rank's part of the common memory holds, and how words are read and waited for.

   With MLK_PARTS_DEVICE slots and ranges lie in the memory of the owner's device, and the words in its part; who posts
   a word waits for his device first.
   A part is written by its owner only; the one exception is the ring of decisions in rank 0's part, which is written by
   compare-and-swap only. A part:  words | slots (own share x bucket) | averaged ranges (by bucket).
   Decisions: ring[step % 8] says who is in a step. It is made by the first who begins it; while it is open ranks may
   only be taken out; when it is committed it stays. A slot is overwritten only when every rank whose result will
   count has done its reading, or has been taken out of the next step before. One that was taken out looks at the ring
   after its last read and so learns that it may have read torn data. Every wait has a deadline, and ends before it when
   whom it waits for is gone, was replaced, or has gone on. tests/group.pml is a model of this, checked with spin. */

#define MLKI_RING         8          /* decisions that are kept */
#define MLKI_RANGE_UNIT   16         /* elements: ranges of a bucket begin at 64-byte lines */
#define MLKI_TWO_SHOT     (32 << 10) /* bytes of a bucket from which on ranges pay for one more wait */
#define MLKI_MAX_TIMEOUT  1e6        /* seconds */
#define MLKI_DEVICE_WORDS 4096       /* bytes of a device's workspace: what an average keeps there beside the means */
#define MLKI_DEVICE_UNIT  (2 << 20)  /* bytes of a device's memory: smaller allocations may share one handle */

/* Words of a part, in units of 8 bytes; lines of 64 bytes that are written at different times are kept apart. */
enum {
  MLKI_WORD_SIGNATURE, /* 0: nobody is attached; else MLKI_SIGNATURE */
  MLKI_WORD_VERSION,
  MLKI_WORD_SIZES,    /* ranks, shares, buckets */
  MLKI_WORD_SETTINGS, /* wire, on_loss, min_ranks, skip_nonfinite, shots */
  MLKI_WORD_ELEMENTS,
  MLKI_WORD_HASH,         /* of the buckets' sizes and names, in order */
  MLKI_WORD_WANT = 8,     /* what MLKI_WANT_... says */
  MLKI_WORD_COMPLETE,     /* the last step for which all was published */
  MLKI_WORD_DONE,         /* the last step after which this rank reads no part any more */
  MLKI_WORD_RANGED,       /* step << 16 | the members among whom this rank shares ranges in that step */
  MLKI_WORD_STATE,        /* mlk_group_sync: bytes of all tensors, */
  MLKI_WORD_GIVEN,        /* pieces given, */
  MLKI_WORD_TAKEN,        /* and taken: step << 32 | pieces */
  MLKI_WORD_OPENED,       /* 1: mlk_group_open has succeeded here; stays when this rank leaves */
  MLKI_WORD_RING = 16,    /* of rank 0 */
  MLKI_WORD_HANDLE = 24,  /* of the part on a device: MLK_HANDLE_BYTES */
  MLKI_WORD_WEIGHTS = 40, /* per own share; after them published[own share][bucket], averaged[bucket][2] */
};
/* What a rank wants. Who was refused tells those who wait for it at the first open. */
enum {
  MLKI_WANT_NOTHING, /* it is in, or has never come */
  MLKI_WANT_IN,      /* from the next step on */
  MLKI_WANT_REFUSED  /* its layout differs */
};
#define MLKI_SIGNATURE 0x31676b6c6dULL /* "mlkg1", little-endian */

/* A decision: committed | failed | trained | step | ranks that joined | ranks that are in. */
#define MLKI_COMMITTED ((uint64_t)1 << 63)
#define MLKI_FAILED    ((uint64_t)1 << 62)
#define MLKI_TRAINED   ((uint64_t)1 << 61) /* a step before this one has counted */
#define MLKI_STEP_MAX  (((int64_t)1 << 29) - 1)
MLKI_INLINE int64_t mlki_decision_step(uint64_t d) { return (int64_t)(d >> 32 & (uint64_t)MLKI_STEP_MAX); }
MLKI_INLINE uint32_t mlki_decision_members(uint64_t d) { return (uint32_t)(d & 0xffff); }
MLKI_INLINE uint32_t mlki_decision_came(uint64_t d) { return (uint32_t)(d >> 16 & 0xffff); } /* in still or not */
MLKI_INLINE uint32_t mlki_decision_joined(uint64_t d) { return mlki_decision_came(d) & mlki_decision_members(d); }
MLKI_INLINE uint64_t mlki_decision(int64_t step, uint32_t joined, uint32_t members) {
  return (uint64_t)step << 32 | (uint64_t)joined << 16 | members;
}

MLKI_INLINE int mlki_bits(uint32_t mask) {
  int n = 0;
  for (; mask; mask &= mask - 1) n++;
  return n;
}

typedef enum mlki_bucket_use { MLKI_BUCKET_IDLE, MLKI_BUCKET_AVERAGED, MLKI_BUCKET_REDUCED } mlki_bucket_use;

/* A bucket, and what this rank did with it in this step. */
typedef struct mlki_bucket {
  int64_t elements;
  uint64_t slot, range; /* bytes from where the slots of a share, and the ranges, begin */
  int published;        /* own shares */
  mlki_bucket_use use;
  const mlk_tensor *means;
  int64_t count;
  uint32_t members, shares;             /* with whom it was averaged, */
  uint32_t range_members, range_shares; /* and with whom the own range of it */
  int gathered;                         /* 1: the own range of the parameters is there; 2: all have been read */
} mlki_bucket;

/* The part of another rank on its device, as this one reaches it. */
typedef struct mlki_group_peer {
  char *data; /* NULL: not attached */
  uint64_t handle[MLK_HANDLE_BYTES / 8];
} mlki_group_peer;

typedef enum mlki_group_state { MLKI_GROUP_IDLE, MLKI_GROUP_STEP, MLKI_GROUP_LEFT_OUT } mlki_group_state;

struct mlk_group {
  mlk_context *ctx;
  int rank, ranks, shares, first, own, most; /* own shares: [first, first + own); most of any rank */
  int64_t buckets;
  mlki_bucket *bucket;
  mlk_dtype wire;
  mlk_loss on_loss;
  int min_ranks, skip_nonfinite, shots;
  double timeout;
  uint64_t words, slots, share_bytes, ranges, part_bytes; /* bytes; words, slots, ranges: where they begin and end */
  char *base, *part;                                      /* base NULL: by transport */
  mlk_transport transport;
  char *stage; /* by transport: what was got */
  uint64_t stage_bytes, private_bytes;
  int fd; /* -1: the caller's memory, or a transport */
  mlki_group_state state;
  int64_t step;        /* 0: not taken in yet */
  int64_t since;       /* the newest step when this rank came */
  int64_t unpublished; /* buckets of own shares, in this step */
  uint32_t final;      /* members of the last step, if it counted */
  uint32_t slow;       /* ranks whose ranges did not come in time in this step */
  int cut_off;         /* a transport has failed to reach the decisions, or the own part */
  uint32_t ranged;     /* members among whom ranges are shared in this step: those of the first average; 0: none yet */
  int attached;        /* this rank's part says who it is */
  mlk_parts parts;
  char *data;          /* MLK_PARTS_DEVICE: the own slots and ranges; else on a device: room for a bucket */
  uint64_t data_bytes; /* of it */
  char *room;          /* on a device, parts in the host's memory: room in it for a bucket of f32 */
  uint64_t room_bytes;
  mlki_group_peer peer[MLK_MAX_RANKS]; /* others' parts on their devices */
};

static int mlki_group_first(int rank, int ranks, int shares) { return (int)((int64_t)rank * shares / ranks); }
static int mlki_group_owner(int share, int ranks, int shares) {
  return (int)(((int64_t)(share + 1) * ranks - 1) / shares);
}

/* The range of the k-th of n ranks. */
static int64_t mlki_group_cut(int64_t elements, int k, int n) {
  const int64_t units = mlki_ceil_div(elements, MLKI_RANGE_UNIT);
  return mlki_min(elements, (units / n * k + units % n * k / n) * MLKI_RANGE_UNIT);
}

static uint64_t mlki_group_word_published(const mlk_group *g, int own_share, int64_t bucket) {
  return 8 * ((uint64_t)MLKI_WORD_WEIGHTS + (uint64_t)g->most + (uint64_t)own_share * (uint64_t)g->buckets +
              (uint64_t)bucket);
}

static uint64_t mlki_group_word_averaged(const mlk_group *g, int64_t bucket) {
  return 8 * ((uint64_t)MLKI_WORD_WEIGHTS + (uint64_t)g->most * (1 + (uint64_t)g->buckets) + 2 * (uint64_t)bucket);
}

/* Checks the layout and fills in the sizes; bucket may be NULL, then only sizes. Sums stay below 2^60. */
static mlk_status mlki_group_layout(mlk_context *ctx, const mlk_group_desc *desc, mlk_group *g, mlki_bucket *bucket) {
  int64_t i, largest = 0, total = 0;
  uint64_t slot = 0, range = 0;
  const int64_t limit = (int64_t)1 << 50;
  if (desc->ranks < 1 || desc->ranks > MLK_MAX_RANKS)
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "ranks: is %d, but must be 1 to %d", desc->ranks, MLK_MAX_RANKS);
  if (desc->shares != 0 && (desc->shares < desc->ranks || desc->shares > MLK_MAX_SHARES))
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "shares: is %d, but must be 0 or %d (ranks) to %d", desc->shares,
                     desc->ranks, MLK_MAX_SHARES);
  if (desc->wire != MLK_F32 && desc->wire != MLK_F16 && desc->wire != MLK_BF16)
    return mlki_fail(ctx, MLK_ERR_DTYPE, "wire: is %d, but must be f32, f16 or bf16", (int)desc->wire);
  if ((int)desc->parts < 0 || desc->parts >= MLK_PARTS_COUNT)
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "parts: is %d, but must be 0 to %d", (int)desc->parts, MLK_PARTS_COUNT - 1);
  if (desc->parts == MLK_PARTS_DEVICE && (!ctx->backend || desc->transport))
    return mlki_fail(ctx, MLK_ERR_UNSUPPORTED, "parts: MLK_PARTS_DEVICE %s",
                     desc->transport ? "goes without transport" : "takes a context on a device");
  if (desc->bucket_count < 1 || desc->bucket_count > 1 << 20)
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "bucket_count: is %lld, but must be 1 to %d", (long long)desc->bucket_count,
                     1 << 20);
  if (!desc->buckets) return mlki_fail(ctx, MLK_ERR_ARGUMENT, "buckets: is NULL, but the argument is required");
  g->ranks = desc->ranks, g->shares = desc->shares ? desc->shares : desc->ranks, g->wire = desc->wire;
  g->most = (g->shares + g->ranks - 1) / g->ranks;
  g->buckets = desc->bucket_count;
  for (i = 0; i < g->buckets; i++) {
    const int64_t elements = desc->buckets[i].elements,
                  units = mlki_ceil_div(mlki_min(elements, limit), MLKI_RANGE_UNIT);
    if (elements < 0)
      return mlki_fail(ctx, MLK_ERR_SHAPE, "buckets[%lld].elements: is %lld, but must be at least 0", (long long)i,
                       (long long)elements);
    if (elements > limit || (total += elements) > limit)
      return mlki_fail(ctx, MLK_ERR_SIZE, "buckets: up to number %lld they have more than 2^50 elements", (long long)i);
    if (bucket) bucket[i].elements = elements, bucket[i].slot = slot, bucket[i].range = range;
    slot += (uint64_t)mlki_round_up(elements * mlki_dtype_bytes((int32_t)g->wire), 64);
    range += (uint64_t)mlki_ceil_div(units, g->ranks > 1 ? 2 : 1) * MLKI_RANGE_UNIT * 4;
    largest = mlki_max(largest, elements);
  }
  g->words = mlki_group_word_averaged(g, g->buckets);
  g->slots = (g->words + 63) / 64 * 64;
  g->share_bytes = slot;
  g->ranges = g->slots + (uint64_t)g->most * slot;
  g->parts = desc->parts;
  g->part_bytes = ((g->parts == MLK_PARTS_DEVICE ? g->slots : g->ranges + range) + 4095) / 4096 * 4096;
  g->stage_bytes = desc->transport ? (uint64_t)mlki_round_up(largest * 4, 64) * (uint64_t)g->shares : 0;
  if (ctx->backend && g->parts == MLK_PARTS_DEVICE) /* blocks of this size are allocations of their own in the driver */
    g->data_bytes = (g->ranges + range - g->slots + MLKI_DEVICE_UNIT) / MLKI_DEVICE_UNIT * MLKI_DEVICE_UNIT;
  else if (ctx->backend)
    g->data_bytes = g->room_bytes = (uint64_t)mlki_round_up(largest * 4, 64) + 64;
  g->private_bytes = (sizeof *g + 63) / 64 * 64 + ((uint64_t)g->buckets * sizeof(mlki_bucket) + 63) / 64 * 64 +
                     g->room_bytes + g->stage_bytes;
  return MLK_OK;
}

/* FNV-1a over the buckets' sizes and names. */
static uint64_t mlki_group_hash(const mlk_group_desc *desc) {
  uint64_t hash = 14695981039346656037ULL;
  int64_t i;
  int k;
  for (i = 0; i < desc->bucket_count; i++) {
    const char *name = desc->buckets[i].name ? desc->buckets[i].name : "";
    for (k = 0; k < 64; k += 8) hash = (hash ^ ((uint64_t)desc->buckets[i].elements >> k & 255)) * 1099511628211ULL;
    do hash = (hash ^ (unsigned char)*name) * 1099511628211ULL;
    while (*name++);
  }
  return hash;
}

/* count words of a part; 0: reached. A peer that a transport does not reach reads as 0, as if nothing were there. */
static int mlki_group_read_words(mlk_group *g, int rank, uint64_t offset, uint64_t *words, int count) {
  const char *part = g->base ? g->base + (uint64_t)rank * g->part_bytes : NULL;
  int i;
  for (i = 0; i < count; i++) words[i] = part ? mlki_load_word(part + offset + 8 * i) : 0;
  if (part || !g->transport.read(g->transport.user, rank, offset, words, count)) return 0;
  for (i = 0; i < count; i++) words[i] = 0;
  return 1;
}

static uint64_t mlki_group_read(mlk_group *g, int rank, uint64_t offset) {
  uint64_t word;
  (void)mlki_group_read_words(g, rank, offset, &word, 1);
  return word;
}

static void mlki_group_put(mlk_group *g, uint64_t offset, uint64_t word) {
  if (g->base)
    mlki_store_word(g->part + offset, word);
  else if (g->transport.put(g->transport.user, offset, word))
    g->cut_off = 1;
}

MLKI_INLINE uint64_t mlki_group_word(mlk_group *g, int rank, int word) {
  return mlki_group_read(g, rank, 8 * (uint64_t)word);
}

static uint64_t mlki_group_decided(mlk_group *g, int64_t step) {
  uint64_t d;
  g->cut_off |= mlki_group_read_words(g, 0, 8 * (uint64_t)(MLKI_WORD_RING + (int)(step % MLKI_RING)), &d, 1);
  return d;
}

/* Replaces a decision; 1 when it was the expected one. */
static int mlki_group_decide(mlk_group *g, int64_t step, uint64_t expected, uint64_t desired) {
  const uint64_t offset = 8 * (uint64_t)(MLKI_WORD_RING + (int)(step % MLKI_RING));
  uint64_t found = expected;
  if (g->base) return mlki_swap_word(g->base + offset, expected, desired);
  if (g->transport.swap(g->transport.user, 0, offset, expected, desired, &found)) return g->cut_off = 1, 0;
  return found == expected;
}

/* The newest decision; 0: no step was begun yet. */
static uint64_t mlki_group_newest(mlk_group *g) {
  uint64_t ring[MLKI_RING], newest = 0;
  int i;
  g->cut_off |= mlki_group_read_words(g, 0, 8 * MLKI_WORD_RING, ring, MLKI_RING);
  for (i = 0; i < MLKI_RING; i++)
    if (mlki_decision_step(ring[i]) > mlki_decision_step(newest)) newest = ring[i];
  return newest;
}

/* A wait: spins, then yields, then sleeps. The clock is looked at before the condition that the caller checks, so one
   who was stopped himself looks again before he blames others. */
typedef struct mlki_wait {
  double until;
  uint32_t rounds; /* may wrap round */
  int late;
} mlki_wait;

static mlki_wait mlki_wait_for(double seconds) {
  mlki_wait w;
  w.until = mlki_wall() + seconds, w.rounds = 0, w.late = 0;
  return w;
}

static void mlki_wait_pause(mlki_wait *w) {
  if (w->rounds >= 64) mlki_give_way(w->rounds >= 512);
  w->rounds++;
  if (w->rounds >= 64 || w->rounds % 16 == 0) w->late = mlki_wall() > w->until;
}

/* Takes ranks out of an open step. When that leaves too few, or the setting says so, the step fails for all. */
static void mlki_group_drop(mlk_group *g, int64_t step, uint32_t lost) {
  for (;;) {
    const uint64_t d = mlki_group_decided(g, step);
    const uint32_t left = mlki_decision_members(d) & ~lost;
    uint64_t next = (d & MLKI_TRAINED) | mlki_decision(step, mlki_decision_came(d), left);
    if (mlki_decision_step(d) != step || d & MLKI_COMMITTED || !(mlki_decision_members(d) & lost)) return;
    if (g->on_loss == MLK_LOSS_FAILS || mlki_bits(left) < g->min_ranks) next |= MLKI_COMMITTED | MLKI_FAILED;
    if (mlki_group_decide(g, step, d, next) || g->cut_off) return;
  }
}

/* >>group_memory ---------------------------------------------------------------------------------------------------
   Segments of memory that processes share, and attaching to them. Linux: memfd or a file, reserved before it is mapped,
   so that a host short of memory refuses and nobody gets SIGBUS; an open-file-description lock on the byte of each
   rank, which the kernel drops when its process dies, whatever killed it. */

#if MLKI_SEGMENTS
#define MLKI_LOCK_MAKER 255 /* the byte whose lock lets one process make the segment */
#define MLKI_OFD_GETLK  36  /* F_OFD_GETLK and F_OFD_SETLK of Linux 3.15, which <fcntl.h> hides without _GNU_SOURCE */
#define MLKI_OFD_SETLK  37

/* Takes, or with type F_UNLCK asks for, the lock of bytes [at, at + count); 1: got it, or somebody else has one. */
static int mlki_segment_lock(int fd, int command, short type, int64_t at, int64_t count) {
  struct flock lock;
  int result;
  memset(&lock, 0, sizeof lock);
  lock.l_type = type, lock.l_whence = SEEK_SET, lock.l_start = (off_t)at, lock.l_len = (off_t)count;
  do result = fcntl(fd, command, &lock);
  while (result < 0 && errno == EINTR);
  return command == MLKI_OFD_GETLK ? result == 0 && lock.l_type != F_UNLCK : result == 0;
}

static int mlki_segment_locked(int fd, int rank) { return mlki_segment_lock(fd, MLKI_OFD_GETLK, F_WRLCK, rank, 1); }

/* The number behind key in a small file of the kernel, or fallback. */
static uint64_t mlki_kernel_number(const char *path, const char *key, uint64_t fallback) {
  char text[4096];
  const char *at;
  const int error = errno, fd = open(path, O_RDONLY | O_CLOEXEC);
  const ssize_t n = fd < 0 ? 0 : read(fd, text, sizeof text - 1);
  if (fd >= 0) close(fd);
  errno = error; /* not every machine has the file */
  text[n > 0 ? n : 0] = 0;
  at = strstr(text, key);
  if (!at) return fallback;
  for (at += strlen(key); *at == ' ';) at++;
  return *at >= '0' && *at <= '9' ? (uint64_t)strtoull(at, NULL, 10) : fallback;
}

/* Bytes that can be reserved at most without driving the kernel to kill somebody for them: an anonymous segment knows
   no limit of its own. UINT64_MAX: not known. */
static uint64_t mlki_memory_left(void) {
  const uint64_t limit = mlki_kernel_number("/sys/fs/cgroup/memory.max", "", UINT64_MAX);
  const uint64_t kib = mlki_kernel_number("/proc/meminfo", "MemAvailable:", UINT64_MAX / 4096);
  const uint64_t host = (kib + mlki_kernel_number("/proc/meminfo", "SwapFree:", 0)) * 1024;
  return host < limit ? host : limit;
}

/* tmpfs undoes a reservation that a signal interrupts: in pieces that are done between two signals of a timer. */
static int mlki_segment_reserve_pieces(int fd, uint64_t bytes) {
  const uint64_t piece = 4 << 20;
  uint64_t at;
  int error = 0;
  for (at = 0; at < bytes && !error; at += piece) {
    const uint64_t length = bytes - at < piece ? bytes - at : piece;
    do error = posix_fallocate(fd, (off_t)at, (off_t)length);
    while (error == EINTR);
  }
  return error;
}

/* Makes the file bytes long, all of it reserved and zero. */
static mlk_status mlki_segment_reserve(mlk_context *ctx, int fd, const char *name, uint64_t bytes) {
  const uint64_t left = mlki_memory_left();
  struct rlimit limit;
  int error;
  if (left < bytes)
    return mlki_fail(ctx, MLK_ERR_MEMORY, "%s: needs %llu bytes, but this machine has %llu left", name,
                     (unsigned long long)bytes, (unsigned long long)left);
  if (getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY && limit.rlim_cur < bytes)
    return mlki_fail(ctx, MLK_ERR_MEMORY, "%s: needs %llu bytes, but this process may make files of %llu only", name,
                     (unsigned long long)bytes, (unsigned long long)limit.rlim_cur);
  if (ftruncate(fd, 0) != 0) return mlki_fail(ctx, MLK_ERR_SYSTEM, "%s: ftruncate: %s", name, strerror(errno));
  error = mlki_segment_reserve_pieces(fd, bytes);
  if (error) {
    if (ftruncate(fd, 0) != 0) errno = 0; /* what is reserved goes with the file */
    return mlki_fail(ctx, error == ENOSPC || error == ENOMEM || error == EFBIG ? MLK_ERR_MEMORY : MLK_ERR_SYSTEM,
                     "%s: %llu bytes of shared memory cannot be reserved: %s", name, (unsigned long long)bytes,
                     strerror(error));
  }
  return MLK_OK;
}

static mlk_status mlki_segment_make(mlk_context *ctx, uint64_t bytes, mlk_group_segment *segment) {
  mlk_status status;
  int fd = (int)syscall(SYS_memfd_create, "mlk_group", 3u /* MFD_CLOEXEC | MFD_ALLOW_SEALING */);
  if (fd == 0) { /* standard input is closed; in a descriptor 0 means: none */
    fd = fcntl(0, F_DUPFD_CLOEXEC, 3);
    close(0);
  }
  if (fd < 0) return mlki_fail(ctx, MLK_ERR_SYSTEM, "segment: memfd_create: %s", strerror(errno));
  status = fchmod(fd, 0600) == 0 ? mlki_segment_reserve(ctx, fd, "segment", bytes)
                                 : mlki_fail(ctx, MLK_ERR_SYSTEM, "segment: fchmod: %s", strerror(errno));
  /* F_ADD_SEALS, of seal, shrink, grow: no peer can cut the memory off under another */
  if (status == MLK_OK && fcntl(fd, 1033, 7) != 0)
    status = mlki_fail(ctx, MLK_ERR_SYSTEM, "segment: sealing: %s", strerror(errno));
  if (status) {
    close(fd);
    return status;
  }
  segment->fd = fd, segment->bytes = bytes;
  snprintf(segment->path, sizeof segment->path, "/proc/%ld/fd/%d", (long)getpid(), fd);
  return MLK_OK;
}

/* Refuses what is not ours: another user's, open to others, no plain file. */
static mlk_status mlki_segment_check(mlk_context *ctx, int fd, const char *name, struct stat *s) {
  if (fstat(fd, s) != 0) return mlki_fail(ctx, MLK_ERR_SYSTEM, "%s: fstat: %s", name, strerror(errno));
  if (!S_ISREG(s->st_mode)) return mlki_fail(ctx, MLK_ERR_SYSTEM, "%s: is no file", name);
  if (s->st_uid != geteuid())
    return mlki_fail(ctx, MLK_ERR_SYSTEM, "%s: belongs to user %ld, not to %ld", name, (long)s->st_uid,
                     (long)geteuid());
  if (s->st_mode & 077)
    return mlki_fail(ctx, MLK_ERR_SYSTEM, "%s: its mode is %03o, but others must have no access (0600)", name,
                     (unsigned)(s->st_mode & 0777));
  return MLK_OK;
}

/* Is the memory a file with a name of its own? Names in /proc are links to somebody's descriptor. */
static int mlki_segment_named(const char *path) { return path && strncmp(path, "/proc/", 6) != 0; }

/* Takes the name away; but only that of this file. */
static void mlki_segment_unlink(mlk_group *g, const char *path) {
  struct stat by_name, own;
  if (!mlki_segment_named(path)) return;
  if (lstat(path, &by_name) == 0 && fstat(g->fd, &own) == 0 && by_name.st_ino == own.st_ino &&
      by_name.st_dev == own.st_dev)
    unlink(path);
}

/* Opens what a call names, under a description of its own: locks belong to it, and end with it. *made: by this call. */
static mlk_status mlki_segment_find(mlk_group *g, const mlk_group_desc *desc, int *made) {
  const int flags = O_RDWR | O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
  char own[32];
  *made = 0;
  if (mlki_segment_named(desc->path)) {
    g->fd = open(desc->path, flags | O_NOFOLLOW | O_CREAT | O_EXCL, 0600);
    *made = g->fd >= 0;
    if (g->fd < 0 && errno == EEXIST) g->fd = open(desc->path, flags | O_NOFOLLOW);
    if (*made && fchmod(g->fd, 0600) != 0) /* the umask may have taken the owner's rights */
      return mlki_fail(g->ctx, MLK_ERR_SYSTEM, "path: fchmod: %s", strerror(errno));
  } else {
    snprintf(own, sizeof own, "/proc/self/fd/%d", desc->fd);
    g->fd = open(desc->path ? desc->path : own, flags);
  }
  if (g->fd >= 0) return MLK_OK;
  return desc->path ? mlki_fail(g->ctx, MLK_ERR_SYSTEM, "path: %s: %s", desc->path, strerror(errno))
                    : mlki_fail(g->ctx, MLK_ERR_SYSTEM, "fd: %d cannot be opened anew: %s", desc->fd, strerror(errno));
}

/* One process at a time looks at the segment and makes it what it must be: waits for that right. */
static mlk_status mlki_segment_turn(mlk_group *g, const char *name) {
  mlki_wait wait = mlki_wait_for(g->timeout);
  while (!mlki_segment_lock(g->fd, MLKI_OFD_SETLK, F_WRLCK, MLKI_LOCK_MAKER, 1)) {
    if (errno != EAGAIN && errno != EACCES)
      return mlki_fail(g->ctx, MLK_ERR_SYSTEM, "%s: locking: %s", name, strerror(errno));
    if (wait.late)
      return mlki_fail(g->ctx, MLK_ERR_REPLICA, "%s: another process is making it, for %g s now", name, g->timeout);
    mlki_wait_pause(&wait);
  }
  return MLK_OK;
}

/* Nobody is attached: clears what a run has left behind that is over. Slots may stay as they are. */
static mlk_status mlki_segment_clear(mlk_group *g, const char *name) {
  int rank;
  for (rank = 0; rank < g->ranks; rank++) {
    const uint64_t signature = mlki_load_word(g->base + (uint64_t)rank * g->part_bytes);
    if (signature != 0 && signature != MLKI_SIGNATURE)
      return mlki_fail(g->ctx, MLK_ERR_SYSTEM, "%s: is there already, but is no memory of a group", name);
  }
  for (rank = 0; rank < g->ranks; rank++) memset(g->base + (uint64_t)rank * g->part_bytes, 0, (size_t)g->slots);
  return MLK_OK;
}

/* Checks the segment, reserves it if it is new, maps it and takes the rank's lock. */
static mlk_status mlki_segment_map(mlk_group *g, const char *name, int by_name, uint64_t bytes) {
  struct stat s;
  mlk_status status = mlki_segment_check(g->ctx, g->fd, name, &s);
  if (status == MLK_OK && by_name && s.st_size == 0) {
    if ((status = mlki_segment_reserve(g->ctx, g->fd, name, bytes)) != MLK_OK) return status;
  } else if (status == MLK_OK && (uint64_t)s.st_size != bytes) {
    return mlki_fail(g->ctx, MLK_ERR_SYSTEM,
                     "%s: is %lld bytes long, but this group takes %llu: cut off, or of another layout", name,
                     (long long)s.st_size, (unsigned long long)bytes);
  }
  if (status) return status;
  g->base = (char *)mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE, MAP_SHARED, g->fd, 0);
  if (g->base == (char *)MAP_FAILED) {
    g->base = NULL;
    return mlki_fail(g->ctx, MLK_ERR_MEMORY, "%s: %llu bytes cannot be mapped: %s", name, (unsigned long long)bytes,
                     strerror(errno));
  }
  if (!mlki_segment_lock(g->fd, MLKI_OFD_GETLK, F_WRLCK, 0, MLK_MAX_RANKS) &&
      (status = mlki_segment_clear(g, name)) != MLK_OK)
    return status;
  if (mlki_segment_lock(g->fd, MLKI_OFD_SETLK, F_WRLCK, g->rank, 1)) return MLK_OK;
  return errno == EAGAIN || errno == EACCES
             ? mlki_fail(g->ctx, MLK_ERR_REPLICA, "rank: %d is taken by a process that is alive", g->rank)
             : mlki_fail(g->ctx, MLK_ERR_SYSTEM, "%s: locking: %s", name, strerror(errno));
}

static mlk_status mlki_segment_attach(mlk_group *g, const mlk_group_desc *desc, uint64_t bytes) {
  const char *name = desc->path ? "path" : "fd";
  int made;
  mlk_status status = mlki_segment_find(g, desc, &made);
  if (status == MLK_OK && (status = mlki_segment_turn(g, name)) == MLK_OK) {
    status = mlki_segment_map(g, name, mlki_segment_named(desc->path), bytes);
    if (status && made) mlki_segment_unlink(g, desc->path);
    mlki_segment_lock(g->fd, MLKI_OFD_SETLK, F_UNLCK, MLKI_LOCK_MAKER, 1);
  }
  return status;
}

static void mlki_segment_detach(mlk_group *g) {
  if (g->base) munmap(g->base, (size_t)(g->part_bytes * (uint64_t)g->ranks));
  close(g->fd);
}

#else
static int mlki_segment_locked(int fd, int rank) { return (void)fd, (void)rank, 1; }
static mlk_status mlki_segment_make(mlk_context *ctx, uint64_t bytes, mlk_group_segment *segment) {
  (void)bytes, (void)segment;
  return mlki_fail(ctx, MLK_ERR_UNSUPPORTED, "segment: " MLKI_NO_SEGMENTS);
}
static mlk_status mlki_segment_attach(mlk_group *g, const mlk_group_desc *desc, uint64_t bytes) {
  (void)bytes;
  return mlki_fail(g->ctx, MLK_ERR_UNSUPPORTED, "%s: " MLKI_NO_SEGMENTS, desc->path ? "path" : "fd");
}
static void mlki_segment_detach(mlk_group *g) { (void)g; }
static void mlki_segment_unlink(mlk_group *g, const char *path) { (void)g, (void)path; }
#endif

/* Is the rank there? Without locks only its own word is known, and deadlines have to tell. */
static int mlki_group_alive(mlk_group *g, int rank) {
  if (rank == g->rank) return 1;
  if (mlki_group_word(g, rank, MLKI_WORD_SIGNATURE) != MLKI_SIGNATURE) return 0;
  if (g->fd >= 0) return mlki_segment_locked(g->fd, rank);
  return g->base || !g->transport.alive || g->transport.alive(g->transport.user, rank);
}

/* What a part says of its group, in the order of the words from MLKI_WORD_VERSION. */
typedef struct mlki_group_facts {
  uint64_t word[5];
} mlki_group_facts;

static const char *const mlki_fact_names[5] = {"version of mlk.h", "ranks, shares or number of buckets",
                                               "wire, on_loss, min_ranks, parts, skip_nonfinite or shots",
                                               "elements of all buckets", "sizes, names or order of the buckets"};

static mlki_group_facts mlki_group_facts_of(const mlk_group *g, const mlk_group_desc *desc) {
  mlki_group_facts f;
  int64_t i;
  f.word[0] = MLK_VERSION;
  f.word[1] = (uint64_t)g->ranks << 48 | (uint64_t)g->shares << 32 | (uint64_t)g->buckets;
  f.word[2] = (uint64_t)g->wire << 32 | (uint64_t)g->on_loss << 24 | (uint64_t)g->min_ranks << 8 |
              (uint64_t)g->parts << 6 | (uint64_t)(g->skip_nonfinite != 0) << 4 | (uint64_t)g->shots;
  for (f.word[3] = 0, i = 0; i < g->buckets; i++) f.word[3] += (uint64_t)g->bucket[i].elements;
  f.word[4] = mlki_group_hash(desc);
  return f;
}

/* Is the group on its way, so that nobody waits in mlk_group_open any more? Whoever had all ranks before it leaves word
   of it: it may close the group, or die, before the others have looked. */
static int mlki_group_under_way(mlk_group *g) {
  int rank;
  for (rank = 0; rank < g->ranks; rank++)
    if (mlki_group_word(g, rank, MLKI_WORD_OPENED)) return 1;
  return mlki_group_newest(g) != 0;
}

/* What became of a rank that others miss. */
static const char *mlki_group_fate(mlk_group *g, int rank) {
  uint64_t word[2]; /* the signature, and a fact that stays when a rank leaves */
  if (mlki_group_alive(g, rank)) return "is late";
  if (mlki_group_read_words(g, rank, 8 * MLKI_WORD_SIGNATURE, word, 2) || word[0] == MLKI_SIGNATURE) return "is dead";
  return word[1] ? "has left the group" : "has not come";
}

/* Compares every part with ours whose rank is there, or was refused while the group waits for all to come; *there: the
   ranks that are attached. */
static mlk_status mlki_group_compare(mlk_group *g, const mlki_group_facts *f, uint32_t *there) {
  const int begun = mlki_group_under_way(g);
  mlki_group_facts theirs;
  int rank, i;
  *there = 1u << g->rank;
  for (rank = 0; rank < g->ranks; rank++) {
    const int alive = mlki_group_alive(g, rank);
    if (rank == g->rank || (!alive && (begun || mlki_group_word(g, rank, MLKI_WORD_WANT) != MLKI_WANT_REFUSED)))
      continue;
    if (mlki_group_read_words(g, rank, 8 * MLKI_WORD_VERSION, theirs.word, 5)) continue;
    for (i = 0; i < 5; i++)
      if (theirs.word[i] != f->word[i]) {
        mlki_group_put(g, 8 * MLKI_WORD_WANT, MLKI_WANT_REFUSED); /* so that who waits for this rank hears of it */
        return mlki_fail(g->ctx, MLK_ERR_ARGUMENT, "rank %d has another layout than rank %d: they differ in %s", rank,
                         g->rank, mlki_fact_names[i]);
      }
    if (alive) *there |= 1u << rank;
  }
  return MLK_OK;
}

static mlk_status mlki_group_out_of_reach(mlk_group *g) {
  return mlki_fail(g->ctx, MLK_ERR_SYSTEM, "transport: the own part, or rank 0 with the decisions, is out of reach");
}

/* Writes what this rank is into its part, the signature last; then waits for the others, unless they have begun. What a
   predecessor has published stays: survivors may still read it. */
static mlk_status mlki_group_join(mlk_group *g, const mlk_group_desc *desc) {
  const mlki_group_facts f = mlki_group_facts_of(g, desc);
  const uint32_t all = (uint32_t)((1u << g->ranks) - 1u);
  mlki_wait wait = mlki_wait_for(g->timeout);
  uint32_t there;
  uint64_t newest;
  mlk_status status;
  int i;
  if (g->fd < 0 && mlki_group_word(g, g->rank, MLKI_WORD_SIGNATURE) == MLKI_SIGNATURE)
    return mlki_fail(g->ctx, MLK_ERR_REPLICA, "rank: %d is taken", g->rank);
  g->attached = 1;
  mlki_group_put(g, 8 * MLKI_WORD_SIGNATURE, 0);
  for (i = 0; i < 5; i++) mlki_group_put(g, 8 * (uint64_t)(MLKI_WORD_VERSION + i), f.word[i]);
  mlki_group_put(g, 8 * MLKI_WORD_WANT, MLKI_WANT_NOTHING);
  if (g->cut_off) return mlki_group_out_of_reach(g);
  if (g->parts == MLK_PARTS_DEVICE) {
    uint64_t handle[MLK_HANDLE_BYTES / 8];
    memset(handle, 0, sizeof handle);
    status = mlki_backend_said(g->ctx, g->ctx->backend->share(g->ctx->device, g->data, handle, g->ctx->error));
    if (status) return status;
    for (i = 0; i < MLK_HANDLE_BYTES / 8; i++) mlki_group_put(g, 8 * (uint64_t)(MLKI_WORD_HANDLE + i), handle[i]);
  }
  if ((status = mlki_group_compare(g, &f, &there)) != MLK_OK) return status;
  /* a predecessor of this rank may be in the step that is under way: it will not end it */
  while ((newest = mlki_group_newest(g)) != 0 && mlki_decision_members(newest) >> g->rank & 1 &&
         !(newest & MLKI_COMMITTED) && !g->cut_off)
    mlki_group_drop(g, mlki_decision_step(newest), 1u << g->rank);
  g->since = mlki_decision_step(newest);
  g->cut_off = 0; /* rank 0 need not be there yet */
  mlki_group_put(g, 8 * MLKI_WORD_WANT, MLKI_WANT_IN);
  mlki_group_put(g, 8 * MLKI_WORD_SIGNATURE, MLKI_SIGNATURE);
  if (g->cut_off) return mlki_group_out_of_reach(g);
  for (;; mlki_wait_pause(&wait)) {
    g->cut_off = 0;
    if ((status = mlki_group_compare(g, &f, &there)) != MLK_OK) return status;
    if (there == all || mlki_group_under_way(g)) break;
    if (!wait.late) continue;
    if (g->on_loss == MLK_LOSS_SHRINKS && mlki_bits(there) >= g->min_ranks) break;
    for (i = 0; there >> i & 1; i++) continue;
    return mlki_fail(g->ctx, MLK_ERR_REPLICA, "rank %d %s: not all %d ranks were there within %g s", i,
                     mlki_group_fate(g, i), g->ranks, g->timeout);
  }
  mlki_group_put(g, 8 * MLKI_WORD_OPENED, 1);
  return MLK_OK;
}

/* >>group_steps ----------------------------------------------------------------------------------------------------
   Who is in a step, and the mean of a bucket over them. */

/* Leaves: what this rank has is no longer what the others have. They need not wait for it. */
static void mlki_group_leave(mlk_group *g) {
  if (g->attached) mlki_group_put(g, 8 * MLKI_WORD_SIGNATURE, 0);
  g->attached = 0;
  g->state = MLKI_GROUP_LEFT_OUT;
}

static mlk_status mlki_group_left_out(mlk_group *g) {
  mlki_group_leave(g);
  if (g->cut_off) return mlki_group_out_of_reach(g);
  return mlki_fail(g->ctx, MLK_ERR_REPLICA, "rank %d was left out of step %lld: it was late, or another took its place",
                   g->rank, (long long)g->step);
}

/* Who was in the last step, or came to this one, and is not in: the same for everybody who reads the same decision. */
static uint32_t mlki_group_missing(mlk_group *g, uint64_t d) {
  const uint64_t before = g->step > 1 ? mlki_group_decided(g, g->step - 1) : 0;
  return (mlki_decision_members(before) | mlki_decision_came(d)) & ~mlki_decision_members(d);
}

/* Ends a step that does not count. */
static mlk_status mlki_group_failed(mlk_group *g, uint64_t d) {
  const uint32_t missing = mlki_group_missing(g, d);
  const uint32_t away = missing ? missing : (uint32_t)((1u << g->ranks) - 1u) & ~mlki_decision_members(d);
  int rank = 0;
  mlki_group_put(g, 8 * MLKI_WORD_DONE, (uint64_t)g->step);
  g->state = MLKI_GROUP_IDLE;
  if (!away) return mlki_fail(g->ctx, MLK_ERR_REPLICA, "step %lld failed", (long long)g->step);
  while (!(away >> rank & 1)) rank++;
  return mlki_fail(g->ctx, MLK_ERR_REPLICA, "step %lld failed: rank %d %s; ranks in it: mask 0x%x", (long long)g->step,
                   rank, mlki_group_fate(g, rank), (unsigned)mlki_decision_members(d));
}

/* The decision on this step as it stands: MLK_OK while this rank is in it and it has not failed. */
static mlk_status mlki_group_standing(mlk_group *g, uint64_t *d) {
  *d = mlki_group_decided(g, g->step);
  if (g->cut_off || mlki_decision_step(*d) != g->step || !(mlki_decision_members(*d) >> g->rank & 1))
    return mlki_group_left_out(g);
  return *d & MLKI_FAILED ? mlki_group_failed(g, *d) : MLK_OK;
}

static uint32_t mlki_group_shares_of(const mlk_group *g, uint32_t ranks) {
  uint32_t mask = 0;
  int s;
  for (s = 0; s < g->shares; s++)
    if (ranks >> mlki_group_owner(s, g->ranks, g->shares) & 1) mask |= 1u << s;
  return mask;
}

/* The published word of any share: step << 2 | 1 finite, 2 not finite. */
static uint64_t mlki_group_published(mlk_group *g, int share, int64_t bucket) {
  const int owner = mlki_group_owner(share, g->ranks, g->shares);
  return mlki_group_read(g, owner,
                         mlki_group_word_published(g, share - mlki_group_first(owner, g->ranks, g->shares), bucket));
}

/* Weights have a bit that says that there is one: a word that a transport does not reach is no weight of 0. */
#define MLKI_WEIGHED ((uint64_t)1 << 32)

/* The weight of any share; below 0: out of reach. */
static float mlki_group_weight(mlk_group *g, int share) {
  const int owner = mlki_group_owner(share, g->ranks, g->shares);
  const int own_share = share - mlki_group_first(owner, g->ranks, g->shares);
  const uint64_t word = mlki_group_read(g, owner, 8 * (uint64_t)(MLKI_WORD_WEIGHTS + own_share));
  const uint32_t bits = (uint32_t)(word & 0xffffffffu);
  float weight;
  memcpy(&weight, &bits, sizeof weight);
  return word & MLKI_WEIGHED ? weight : -1.0f;
}

/* Those of shares that have a weight above 0; *sum of their weights, ascending; below 0: some are out of reach. */
static uint32_t mlki_group_weighted(mlk_group *g, uint32_t shares, double *sum) {
  uint32_t weighted = 0;
  int s;
  *sum = 0;
  for (s = 0; s < g->shares; s++) {
    const float weight = shares >> s & 1 ? mlki_group_weight(g, s) : 0.0f;
    if (weight > 0.0f) weighted |= 1u << s, *sum += (double)weight;
    if (weight < 0.0f) return *sum = -1.0, 0;
  }
  return weighted;
}

/* Of members, those that have not yet published a bucket (of -1: everything). *finite: shares of the others that
   are finite and have a weight. */
static uint32_t mlki_group_unpublished(mlk_group *g, uint32_t members, int64_t bucket, uint32_t *finite) {
  uint32_t waits = 0;
  double sum;
  int64_t b;
  int s, rank;
  *finite = mlki_group_shares_of(g, members);
  if (bucket < 0) {
    for (rank = 0; rank < g->ranks; rank++)
      if (members >> rank & 1 && mlki_group_word(g, rank, MLKI_WORD_COMPLETE) != (uint64_t)g->step) waits |= 1u << rank;
    if (waits) return waits;
  }
  for (s = 0; s < g->shares && (bucket >= 0 || g->skip_nonfinite); s++)
    if (*finite >> s & 1)
      for (b = bucket < 0 ? 0 : bucket; b < (bucket < 0 ? g->buckets : bucket + 1); b++) {
        const uint64_t word = mlki_group_published(g, s, b);
        if (word >> 2 != (uint64_t)g->step) waits |= 1u << mlki_group_owner(s, g->ranks, g->shares);
        if (word == ((uint64_t)g->step << 2 | 2)) *finite &= ~(1u << s);
      }
  if (waits) return waits;
  *finite = mlki_group_weighted(g, *finite, &sum);
  return sum < 0 ? members : 0;
}

/* Of ranks, those that are gone, or late when the wait is over. */
static uint32_t mlki_group_lost(mlk_group *g, uint32_t ranks, const mlki_wait *wait) {
  uint32_t lost = 0;
  int rank;
  if (wait->late) return ranks & ~(1u << g->rank);
  if (wait->rounds % 16 != 15) return 0; /* asking the kernel each time would cost more than waiting */
  for (rank = 0; rank < g->ranks; rank++)
    if (ranks >> rank & 1 && !mlki_group_alive(g, rank)) lost |= 1u << rank;
  return lost;
}

/* The own slots and ranges: what is at offset of the part. */
static char *mlki_group_own(const mlk_group *g, uint64_t offset) {
  return g->parts == MLK_PARTS_DEVICE ? g->data + (offset - g->slots) : g->part + offset;
}

/* The same of another rank's part on its device; NULL: out of reach. A rank that was replaced has another handle. */
static char *mlki_group_peer_data(mlk_group *g, int rank, uint64_t offset) {
  mlki_group_peer *peer = &g->peer[rank];
  const mlk_backend *backend = g->ctx->backend;
  uint64_t handle[MLK_HANDLE_BYTES / 8];
  void *memory = NULL;
  (void)mlki_group_read_words(g, rank, 8 * MLKI_WORD_HANDLE, handle, MLK_HANDLE_BYTES / 8);
  if (peer->data && memcmp(handle, peer->handle, sizeof handle) != 0) {
    backend->detach(g->ctx->device, peer->handle, peer->data);
    peer->data = NULL;
  }
  if (!peer->data && backend->attach(g->ctx->device, handle, &memory, g->ctx->error) == MLK_OK) {
    memcpy(peer->handle, handle, sizeof handle);
    peer->data = (char *)memory;
  }
  return peer->data ? peer->data + (offset - g->slots) : NULL;
}

/* bytes at offset of a rank's part: there, or got into the stage at *used. NULL: out of reach. */
static char *mlki_group_data(mlk_group *g, int rank, uint64_t offset, uint64_t bytes, uint64_t *used) {
  char *at;
  if (g->parts == MLK_PARTS_DEVICE)
    return rank == g->rank ? mlki_group_own(g, offset) : mlki_group_peer_data(g, rank, offset);
  if (g->base) return g->base + (uint64_t)rank * g->part_bytes + offset;
  if (rank == g->rank) return g->part + offset;
  at = g->stage + *used;
  *used += (bytes + 63) / 64 * 64;
  return bytes && g->transport.get(g->transport.user, rank, offset, at, bytes) ? NULL : at;
}

static mlk_tensor mlki_group_view(void *data, mlk_dtype dtype, int64_t elements) {
  mlk_tensor t;
  memset(&t, 0, sizeof t);
  t.data = data, t.dtype = (int32_t)dtype, t.rank = 1, t.shape[0] = elements;
  return t;
}

static uint64_t mlki_group_slot_at(const mlk_group *g, int own_share, int64_t bucket) {
  return g->slots + (uint64_t)own_share * g->share_bytes + g->bucket[bucket].slot;
}

/* Waits for the device, before others are told that something stands there or was read. */
static mlk_status mlki_group_wait(mlk_group *g) {
  return g->ctx->backend ? mlki_backend_said(g->ctx, g->ctx->backend->sync(g->ctx->device, g->ctx->error)) : MLK_OK;
}

/* An average of which inputs or outputs are slots and ranges, of the others the caller's tensors. On a device with
   parts in the host's memory the two meet halfway, in g->data there and g->room here. */
static mlk_status mlki_group_run(mlk_group *g, const mlk_average_desc *desc, int from_parts, int to_parts) {
  mlk_context *ctx = g->ctx;
  mlk_average_desc first = *desc, second;
  mlk_tensor half;
  mlk_status status;
  if (!ctx->backend || (g->parts == MLK_PARTS_HOST && from_parts && to_parts)) return mlki_average_run(ctx, desc);
  if (g->parts == MLK_PARTS_DEVICE) {
    status = mlk_average(ctx, desc);
  } else if (from_parts) {
    half = mlki_group_view(g->room, MLK_F32, desc->to);
    first.outputs = &half, first.output_count = 1;
    if ((status = mlki_average_run(ctx, &first)) != MLK_OK) return status;
    status = mlk_copy(ctx, g->data, g->room, 4 * (uint64_t)desc->to);
    half.data = g->data;
    memset(&second, 0, sizeof second);
    second.inputs = &half, second.replicas = second.count = 1, second.to = desc->to;
    second.outputs = desc->outputs, second.output_count = desc->output_count;
    if (status == MLK_OK) status = mlk_average(ctx, &second);
  } else {
    half = mlki_group_view(g->data, (mlk_dtype)desc->outputs[0].dtype, desc->to);
    first.outputs = &half;
    if ((status = mlk_average(ctx, &first)) != MLK_OK) return status;
    status = mlk_copy(ctx, desc->outputs[0].data, g->data, (uint64_t)(desc->to * mlki_dtype_bytes(half.dtype)));
  }
  return status ? status : mlki_group_wait(g);
}

/* Elements [from, to) of the mean of a bucket over shares, into tensors that have as many together; to_parts: into the
   own range. */
static mlk_status mlki_group_mean(mlk_group *g, int64_t bucket, uint32_t shares, int64_t from, int64_t to,
                                  const mlk_tensor *means, int64_t count, int to_parts) {
  mlk_tensor slot[MLK_MAX_SHARES];
  float weight[MLK_MAX_SHARES];
  mlk_average_desc desc;
  const int64_t size = mlki_dtype_bytes((int32_t)g->wire);
  uint64_t used = 0;
  int s, n = 0;
  if (from == to) return MLK_OK;
  for (s = 0; s < g->shares; s++) {
    const int owner = mlki_group_owner(s, g->ranks, g->shares), own = s - mlki_group_first(owner, g->ranks, g->shares);
    char *data;
    if (!(shares >> s & 1)) continue;
    weight[n] = mlki_group_weight(g, s);
    data = mlki_group_data(g, owner, mlki_group_slot_at(g, own, bucket) + (uint64_t)(from * size),
                           (uint64_t)((to - from) * size), &used);
    if (!data || weight[n] < 0.0f)
      return mlki_fail(g->ctx, MLK_ERR_SYSTEM, "transport: rank %d is out of reach", owner);
    slot[n++] = mlki_group_view(data, g->wire, to - from);
  }
  memset(&desc, 0, sizeof desc);
  desc.inputs = slot, desc.replicas = n, desc.count = 1, desc.weights = weight;
  desc.outputs = means, desc.output_count = count, desc.to = to - from;
  return mlki_group_run(g, &desc, 1, to_parts);
}

/* tensors, one after another, into others that have as many elements together; converts f32 and the wire's type. */
static mlk_status mlki_group_copy(mlk_group *g, const mlk_tensor *in, int64_t count, const mlk_tensor *out,
                                  int64_t out_count, int64_t elements, int from_parts) {
  mlk_average_desc desc;
  if (!elements) return MLK_OK;
  memset(&desc, 0, sizeof desc);
  desc.inputs = in, desc.replicas = 1, desc.count = count, desc.outputs = out, desc.output_count = out_count;
  desc.to = elements;
  return mlki_group_run(g, &desc, from_parts, !from_parts);
}

/* The two words that say what stands in the averaged range of a bucket: parameters, or the mean over members and
   shares. */
static void mlki_group_range_words(const mlk_group *g, int parameters, uint32_t members, uint32_t shares,
                                   uint64_t word[2]) {
  word[0] = (uint64_t)g->step << 32 | (uint64_t)(parameters != 0) << 16 | members;
  word[1] = (uint64_t)g->step << 32 | shares;
}

/* The own range of a bucket: before and after it is written. */
static void mlki_group_range_open(mlk_group *g, int64_t bucket) {
  mlki_group_put(g, mlki_group_word_averaged(g, bucket) + 8, 0);
}
static void mlki_group_range_close(mlk_group *g, int64_t bucket, const uint64_t word[2]) {
  mlki_group_put(g, mlki_group_word_averaged(g, bucket), word[0]);
  mlki_group_put(g, mlki_group_word_averaged(g, bucket) + 8, word[1]);
}

static int mlki_rank_place(uint32_t members, int rank) { return mlki_bits(members & ((1u << rank) - 1u)); }

/* Do ranges pay, and are they still shared among these members? One shot moves shares + 1 times the bucket; two move
   1 / n of that, and twice the bucket more, and wait once more. */
static int mlki_group_two_shots(const mlk_group *g, int64_t bucket, uint32_t members, uint32_t shares) {
  const int n = mlki_bits(members), moved = mlki_bits(shares) + 1;
  if (n < 2 || g->shots == 1 || (g->ranged && g->ranged != members)) return 0;
  return g->shots == 2 || (g->bucket[bucket].elements * 4 >= MLKI_TWO_SHOT && moved * (n - 1) > 2 * n);
}

/* The own range of a bucket, for the others to read. */
static mlk_status mlki_group_range_now(mlk_group *g, int64_t bucket, uint32_t members, uint32_t shares) {
  mlki_bucket *b = &g->bucket[bucket];
  const int n = mlki_bits(members), k = mlki_rank_place(members, g->rank);
  const int64_t from = mlki_group_cut(b->elements, k, n), to = mlki_group_cut(b->elements, k + 1, n);
  const mlk_tensor range = mlki_group_view(mlki_group_own(g, g->ranges + b->range), MLK_F32, to - from);
  uint64_t word[2];
  mlk_status status;
  if (b->range_members == members && b->range_shares == shares) return MLK_OK;
  b->range_members = members, b->range_shares = shares;
  mlki_group_range_words(g, 0, members, shares, word);
  mlki_group_range_open(g, bucket);
  if ((status = mlki_group_mean(g, bucket, shares, from, to, &range, 1, 1)) == MLK_OK)
    mlki_group_range_close(g, bucket, word);
  else
    b->range_members = 0;
  return status;
}

/* From the first average of a step on ranges are shared among those who are members then. */
static void mlki_group_announce_ranges(mlk_group *g, uint32_t members) {
  if (g->ranged) return;
  g->ranged = members;
  mlki_group_put(g, 8 * MLKI_WORD_RANGED, (uint64_t)g->step << 16 | members);
}

/* Has one of members averaged a bucket in this step, so that it may wait for ranges? */
static int mlki_group_ranges_announced(mlk_group *g, uint32_t members) {
  int rank;
  for (rank = 0; rank < g->ranks; rank++)
    if (members >> rank & 1 && (int64_t)(mlki_group_word(g, rank, MLKI_WORD_RANGED) >> 16) == g->step) return 1;
  return 0;
}

/* While this rank waits, others may wait for its ranges of other buckets: averages those that all have published. */
static mlk_status mlki_group_help(mlk_group *g, uint32_t members) {
  const uint32_t all = mlki_group_shares_of(g, members);
  mlk_status status = MLK_OK;
  int64_t i;
  if (!mlki_group_ranges_announced(g, members)) return MLK_OK;
  for (i = 0; i < g->buckets && !status; i++) {
    const mlki_bucket *b = &g->bucket[i];
    uint32_t shares;
    if (b->published != g->own || b->use == MLKI_BUCKET_REDUCED || b->range_members ||
        !mlki_group_two_shots(g, i, members, all) || mlki_group_unpublished(g, members, i, &shares) || !shares ||
        !mlki_group_two_shots(g, i, members, shares))
      continue;
    mlki_group_announce_ranges(g, members);
    status = mlki_group_range_now(g, i, members, shares);
  }
  return status;
}

/* Has the group gone on without this rank? Then what it read may be torn: asked after the last read of a step. */
static int mlki_group_outrun(mlk_group *g) {
  uint64_t next;
  mlki_fence(); /* what was read was read before the next decision is looked at */
  next = mlki_group_decided(g, g->step + 1);
  return mlki_decision_step(next) > g->step + 1 ||
         (mlki_decision_step(next) == g->step + 1 && !(mlki_decision_members(next) >> g->rank & 1));
}

/* One turn of a wait for what others publish in the step that d decides: takes out who is lost, or helps. Once the step
   is committed everybody has published everything: what is not there was overwritten by a later step, or is out of
   reach. */
static mlk_status mlki_group_expel(mlk_group *g, uint64_t d, uint32_t waits, const mlki_wait *wait) {
  const uint32_t lost = mlki_group_lost(g, waits, wait);
  if (d & MLKI_COMMITTED ? wait->late || mlki_group_outrun(g) : wait->late && !lost) return mlki_group_left_out(g);
  if (!lost && wait->rounds % 64 == 32) return mlki_group_help(g, mlki_decision_members(d));
  if (lost) mlki_group_drop(g, g->step, lost);
  return MLK_OK;
}

/* Waits until all members have published a bucket; takes out who does not. */
static mlk_status mlki_group_await(mlk_group *g, int64_t bucket, uint32_t *members, uint32_t *finite) {
  mlki_wait wait = mlki_wait_for(g->timeout);
  for (;; mlki_wait_pause(&wait)) {
    uint64_t d;
    uint32_t waits;
    mlk_status status = mlki_group_standing(g, &d);
    if (status) return status;
    *members = mlki_decision_members(d);
    if (!(waits = mlki_group_unpublished(g, *members, bucket, finite))) return MLK_OK;
    if ((status = mlki_group_expel(g, d, waits, &wait)) != MLK_OK) return status;
  }
}

/* Of ranks, those whose ranges will not come: they share ranges among others than members in this step, since somebody
   was lost in between, or have finished it without averaging this bucket. */
static uint32_t mlki_group_apart(mlk_group *g, uint32_t ranks, uint32_t members) {
  uint32_t apart = 0;
  int rank;
  for (rank = 0; rank < g->ranks; rank++)
    if (ranks >> rank & 1) {
      const uint64_t word = mlki_group_word(g, rank, MLKI_WORD_RANGED);
      if (((int64_t)(word >> 16) == g->step && (uint32_t)(word & 0xffff) != members) ||
          (g->state == MLKI_GROUP_STEP && (int64_t)mlki_group_word(g, rank, MLKI_WORD_DONE) >= g->step))
        apart |= 1u << rank;
    }
  return apart;
}

/* Of ranks, those in whose place another has come since this step, or wants to: what they left undone stays undone. */
static uint32_t mlki_group_replaced(mlk_group *g, uint32_t ranks) {
  const uint64_t next = mlki_group_decided(g, g->step + 1);
  uint32_t replaced = 0;
  int rank;
  if (mlki_decision_step(next) == g->step + 1) replaced = ~mlki_decision_members(next) | mlki_decision_came(next);
  for (rank = 0; rank < g->ranks; rank++)
    if (ranks >> rank & 1 && mlki_group_word(g, rank, MLKI_WORD_WANT) == MLKI_WANT_IN) replaced |= 1u << rank;
  return ranks & replaced;
}

/* Reads the ranges of all members into whole. *lost: a member is gone or late and its range is not there: nothing was
   written. */
static mlk_status mlki_group_collect(mlk_group *g, int64_t bucket, uint32_t members, const uint64_t word[2],
                                     const mlk_tensor *whole, int64_t count, uint32_t *lost) {
  mlk_tensor range[MLK_MAX_RANKS];
  const int64_t elements = g->bucket[bucket].elements;
  const int n = mlki_bits(members), averages = g->state == MLKI_GROUP_STEP;
  /* means can be had without ranges: long before the others lose patience with this rank */
  mlki_wait wait = mlki_wait_for(averages ? g->timeout / 2 : g->timeout);
  uint64_t used = 0;
  mlk_status status;
  int rank, k = 0;
  for (;; mlki_wait_pause(&wait)) {
    uint32_t waits = 0;
    for (rank = 0; rank < g->ranks; rank++)
      if (members >> rank & 1 && rank != g->rank &&
          (mlki_group_read(g, rank, mlki_group_word_averaged(g, bucket) + 8) != word[1] ||
           mlki_group_read(g, rank, mlki_group_word_averaged(g, bucket)) != word[0]))
        waits |= 1u << rank;
    if (!waits) break;
    if ((*lost = waits & (g->slow | mlki_group_apart(g, waits, members))) != 0) return MLK_OK;
    if ((*lost = mlki_group_lost(g, waits, &wait) | mlki_group_replaced(g, waits)) != 0)
      return g->slow |= *lost, MLK_OK;
    if (mlki_decision_members(mlki_group_decided(g, g->step)) != members || mlki_group_outrun(g))
      return *lost = members, MLK_OK;
    if (averages && wait.rounds % 64 == 32 && (status = mlki_group_help(g, members)) != MLK_OK) return status;
  }
  for (rank = 0; rank < g->ranks; rank++) {
    int64_t length;
    char *data;
    if (!(members >> rank & 1)) continue;
    length = mlki_group_cut(elements, k + 1, n) - mlki_group_cut(elements, k, n);
    data = mlki_group_data(g, rank, g->ranges + g->bucket[bucket].range, (uint64_t)length * 4, &used);
    if (!data) return *lost = 1u << rank, MLK_OK;
    range[k++] = mlki_group_view(data, MLK_F32, length);
  }
  return mlki_group_copy(g, range, n, whole, count, elements, 1);
}

/* The mean of a bucket over members and shares, as they are now. */
static mlk_status mlki_group_average_now(mlk_group *g, int64_t bucket, uint32_t members, uint32_t shares, int again) {
  mlki_bucket *b = &g->bucket[bucket];
  const int n = mlki_bits(members), k = mlki_rank_place(members, g->rank);
  uint64_t word[2];
  uint32_t lost = 0;
  mlk_status status;
  b->members = members, b->shares = shares;
  if (!shares) return MLK_OK; /* nothing finite: finish will say so */
  if (b->use == MLKI_BUCKET_REDUCED)
    return mlki_group_mean(g, bucket, shares, mlki_group_cut(b->elements, k, n), mlki_group_cut(b->elements, k + 1, n),
                           b->means, b->count, 0);
  mlki_group_announce_ranges(g, members);
  if (!again && mlki_group_two_shots(g, bucket, members, shares)) {
    if ((status = mlki_group_range_now(g, bucket, members, shares)) != MLK_OK) return status;
    mlki_group_range_words(g, 0, members, shares, word);
    if ((status = mlki_group_collect(g, bucket, members, word, b->means, b->count, &lost)) != MLK_OK) return status;
    if (!lost) return MLK_OK;
  }
  return mlki_group_mean(g, bucket, shares, 0, b->elements, b->means, b->count, 0);
}

/* Averages again what was averaged with others than those the step was decided with. */
static mlk_status mlki_group_settle(mlk_group *g, uint32_t members, uint32_t shares) {
  int64_t i;
  mlk_status status = MLK_OK;
  for (i = 0; i < g->buckets && !status; i++) {
    const mlki_bucket *b = &g->bucket[i];
    if (b->use != MLKI_BUCKET_IDLE && (b->members != members || b->shares != shares))
      status = mlki_group_average_now(g, i, members, shares, 1);
  }
  return status;
}

/* >>group_calls ----------------------------------------------------------------------------------------------------
   The calls of a step, public ones included. */

/* What the averages and copies of a group take of the workspace, for lists of n tensors. */
static uint64_t mlki_group_workspace(const mlk_group *g, int64_t n) {
  const uint64_t publish = mlki_average_table_bytes(1, n, 1), mean = mlki_average_table_bytes(g->shares, 1, n),
                 collect = mlki_average_table_bytes(1, g->ranks, n);
  const uint64_t most = publish > mean ? publish : mean;
  return most > collect ? most : collect;
}

MLK_API mlk_status mlk_group_get_plan(mlk_context *ctx, const mlk_group_desc *desc, mlk_group_plan *plan) {
  mlk_group g;
  mlk_status status;
  if (!ctx) return MLK_ERR_ARGUMENT;
  if (!desc || !plan) return mlki_fail(ctx, MLK_ERR_ARGUMENT, "%s: is NULL", desc ? "plan" : "desc");
  memset(&g, 0, sizeof g);
  if ((status = mlki_group_layout(ctx, desc, &g, NULL)) != MLK_OK) return status;
  if (desc->tensors < 0 || desc->tensors > 1 << 24)
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "tensors: is %lld, but must be 0 to %d", (long long)desc->tensors, 1 << 24);
  plan->bytes = g.part_bytes * (uint64_t)g.ranks, plan->part_bytes = g.part_bytes,
  plan->private_bytes = g.private_bytes, plan->device_bytes = g.data_bytes;
  plan->workspace_bytes = mlki_group_workspace(&g, desc->tensors ? desc->tensors : 1);
  if (ctx->backend) { /* the tables are the host's; of the device's workspace averages take a few words */
    plan->private_bytes += plan->workspace_bytes;
    plan->workspace_bytes = MLKI_DEVICE_WORDS;
  }
  return MLK_OK;
}

/* Can the common memory be addressed? */
static mlk_status mlki_group_fits(mlk_context *ctx, uint64_t bytes) {
  if (bytes <= SIZE_MAX / 2) return MLK_OK;
  return mlki_fail(ctx, MLK_ERR_SIZE, "buckets: the common memory does not fit in %d bits", (int)(8 * sizeof(size_t)));
}

MLK_API mlk_status mlk_group_segment_open(mlk_context *ctx, const mlk_group_desc *desc, mlk_group_segment *segment) {
  mlk_group_plan plan;
  mlk_status status;
  if (!ctx) return MLK_ERR_ARGUMENT;
  if (!segment) return mlki_fail(ctx, MLK_ERR_ARGUMENT, "segment: is NULL");
  memset(segment, 0, sizeof *segment);
  segment->fd = -1;
  if ((status = mlk_group_get_plan(ctx, desc, &plan)) != MLK_OK) return status;
  if ((status = mlki_group_fits(ctx, plan.bytes)) != MLK_OK) return status;
  return mlki_segment_make(ctx, plan.bytes, segment);
}

MLK_API void mlk_group_segment_close(mlk_group_segment *segment) {
  if (!segment || segment->bytes == 0) return;
#if MLKI_SEGMENTS
  close(segment->fd);
#endif
  segment->fd = -1, segment->bytes = 0;
}

static mlk_status mlki_group_check(mlk_context *ctx, const mlk_group_desc *desc, mlk_group *g) {
  const int sources = (desc->memory != NULL) + (desc->fd != 0) + (desc->path != NULL) + (desc->transport != NULL);
  const mlk_transport *t = desc->transport;
  const mlk_status status = mlki_group_layout(ctx, desc, g, NULL);
  if (status) return status;
  if (desc->rank < 0 || desc->rank >= desc->ranks)
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "rank: is %d, but must be 0 to %d (ranks - 1)", desc->rank,
                     desc->ranks - 1);
  if ((int)desc->on_loss < 0 || desc->on_loss >= MLK_LOSS_COUNT)
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "on_loss: is %d, but must be 0 to %d", (int)desc->on_loss,
                     MLK_LOSS_COUNT - 1);
  if (desc->min_ranks < 0 || desc->min_ranks > desc->ranks)
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "min_ranks: is %d, but must be 0 to %d (ranks)", desc->min_ranks,
                     desc->ranks);
  if (!(desc->timeout >= 0 && desc->timeout <= MLKI_MAX_TIMEOUT))
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "timeout: is %g, but must be 0 to %g", desc->timeout, MLKI_MAX_TIMEOUT);
  if (desc->shots < 0 || desc->shots > 2)
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "shots: is %d, but must be 0, 1 or 2", desc->shots);
  if (sources != 1)
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "memory, fd, path, transport: %d of them are given, but it must be one",
                     sources);
  if (desc->fd < 0) return mlki_fail(ctx, MLK_ERR_ARGUMENT, "fd: is %d, but must be an open segment", desc->fd);
  if (t && (!t->part || !t->get || !t->read || !t->put || !t->swap))
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "transport: part, get, read, put and swap are required");
  if (((uintptr_t)desc->memory | (uintptr_t)(t ? t->part : NULL)) % 64)
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "%s: must be 64-byte aligned", t ? "transport.part" : "memory");
  return mlki_group_fits(ctx, g->part_bytes * (uint64_t)g->ranks);
}

MLK_API mlk_status mlk_group_open(mlk_context *ctx, mlk_group **group, const mlk_group_desc *desc) {
  const int kept = errno;
  mlk_group local, *g;
  mlk_status status;
  char *memory;
  if (!ctx) return MLK_ERR_ARGUMENT;
  if (!group || !desc) return mlki_fail(ctx, MLK_ERR_ARGUMENT, "%s: is NULL", group ? "desc" : "group");
  *group = NULL;
  memset(&local, 0, sizeof local);
  if ((status = mlki_group_check(ctx, desc, &local)) != MLK_OK) return status;
  memory = (char *)mlki_alloc(ctx, local.private_bytes);
  if (!memory)
    return mlki_fail(ctx, MLK_ERR_MEMORY, "group: the allocator could not give %llu bytes",
                     (unsigned long long)local.private_bytes);
  memset(memory, 0, (size_t)(local.private_bytes - local.stage_bytes - local.room_bytes));
  g = (mlk_group *)(void *)memory;
  *g = local;
  g->ctx = ctx, g->rank = desc->rank, g->fd = -1;
  g->bucket = (mlki_bucket *)(void *)(memory + (sizeof *g + 63) / 64 * 64);
  g->stage = memory + (local.private_bytes - local.stage_bytes), g->room = g->stage - local.room_bytes;
  (void)mlki_group_layout(ctx, desc, g, g->bucket);
  g->first = mlki_group_first(g->rank, g->ranks, g->shares);
  g->own = mlki_group_first(g->rank + 1, g->ranks, g->shares) - g->first;
  g->on_loss = desc->on_loss, g->min_ranks = desc->min_ranks ? desc->min_ranks : 1;
  g->skip_nonfinite = desc->skip_nonfinite, g->shots = desc->shots;
  g->timeout = desc->timeout > 0 ? desc->timeout : 30.0;
  if (desc->transport) g->transport = *desc->transport;
  if (desc->memory) g->base = (char *)desc->memory;
  if (g->data_bytes) {
    void *there = NULL;
    status = mlki_backend_said(ctx, ctx->backend->alloc(ctx->device, g->data_bytes, 0, &there, ctx->error));
    g->data = (char *)there;
    if (status == MLK_OK) /* the host's part of the workspace, which mlk_reserve does not speak of there */
      status = mlki_workspace(ctx, mlki_group_workspace(g, desc->tensors ? desc->tensors : 1));
  }
  if (status == MLK_OK && (desc->fd || desc->path))
    status = mlki_segment_attach(g, desc, g->part_bytes * (uint64_t)g->ranks);
  if (status == MLK_OK) {
    g->part = g->base ? g->base + (uint64_t)g->rank * g->part_bytes : (char *)g->transport.part;
    status = mlki_group_join(g, desc);
  }
  if (status) {
    mlk_group_close(g);
    return status;
  }
  if (desc->path) mlki_segment_unlink(g, desc->path);
  errno = kept; /* names that exist or are gone and locks that are taken are no failures */
  *group = g;
  return MLK_OK;
}

MLK_API void mlk_group_close(mlk_group *g) {
  int rank;
  if (!g) return;
  mlki_group_leave(g);
  for (rank = 0; rank < g->ranks; rank++)
    if (g->peer[rank].data) g->ctx->backend->detach(g->ctx->device, g->peer[rank].handle, g->peer[rank].data);
  if (g->data) g->ctx->backend->free(g->ctx->device, g->data);
  if (g->fd >= 0) mlki_segment_detach(g);
  mlki_free(g->ctx, g, g->private_bytes);
}

/* The next step of a rank that is in: made, when nobody has, of those who were in the last one and are alive, and of
   those who want to be. FAILS waits until that is everybody. */
static mlk_status mlki_group_next(mlk_group *g, int64_t step) {
  const uint32_t all = (uint32_t)((1u << g->ranks) - 1u);
  mlki_wait wait = mlki_wait_for(g->timeout);
  for (;; mlki_wait_pause(&wait)) {
    const uint64_t old = mlki_group_decided(g, step);
    const uint64_t before = step > 1 ? mlki_group_decided(g, step - 1) : 0;
    /* who joined a step that failed has not been brought up to date for sure: he joins again */
    const uint32_t fresh = before & MLKI_FAILED ? mlki_decision_joined(before) : 0;
    uint32_t joined = 0, members = 0;
    uint64_t next;
    int rank;
    if (g->cut_off) return mlki_group_left_out(g);
    if (mlki_decision_step(old) >= step) return MLK_OK;
    for (rank = 0; rank < g->ranks; rank++) {
      if (!mlki_group_alive(g, rank)) continue;
      if (mlki_group_word(g, rank, MLKI_WORD_WANT) == MLKI_WANT_IN || (fresh >> rank & 1))
        joined |= 1u << rank;
      else if (mlki_decision_members(before) >> rank & 1)
        members |= 1u << rank;
    }
    members |= joined;
    next = mlki_decision(step, joined, members) | (before & MLKI_TRAINED);
    if (step > 1 && !(before & MLKI_FAILED)) next |= MLKI_TRAINED;
    if (g->on_loss == MLK_LOSS_FAILS ? members != all : mlki_bits(members) < g->min_ranks) {
      if (!wait.late) continue;
      next |= MLKI_COMMITTED | MLKI_FAILED;
    }
    (void)mlki_group_decide(g, step, old, next);
  }
}

/* The first step of a rank that wants to be in: one that it joined, even if that has failed since. Who is in begins
   steps; where nobody is, anybody does. */
static mlk_status mlki_group_enter(mlk_group *g) {
  mlki_wait wait = mlki_wait_for(g->timeout);
  wait.rounds = 64; /* look at the clock each time: a turn may take all of a timeout */
  for (;; mlki_wait_pause(&wait)) {
    const uint64_t d = mlki_group_newest(g);
    const int64_t step = mlki_decision_step(d);
    const uint32_t joined = mlki_decision_joined(d), members = mlki_decision_members(d);
    if (g->cut_off) return mlki_group_left_out(g);
    if (joined >> g->rank & 1 && (!(d & MLKI_COMMITTED) || (d & MLKI_FAILED && step > g->since))) {
      g->step = step;
      mlki_group_put(g, 8 * MLKI_WORD_WANT, MLKI_WANT_NOTHING);
      return MLK_OK;
    }
    if (!(d & MLKI_COMMITTED) && members >> g->rank & 1)
      mlki_group_drop(g, step, 1u << g->rank); /* that was this rank's predecessor */
    if (wait.late)
      return mlki_fail(g->ctx, MLK_ERR_REPLICA, "rank %d was not taken in within %g s: nobody begins a step", g->rank,
                       g->timeout);
    if (!d || (d & MLKI_FAILED && !(members & ~joined))) {
      const mlk_status status = mlki_group_next(g, step + 1);
      if (status) return status;
    }
  }
}

/* Own slots and weights may be written when nobody who is in this step still reads those of the last one. */
static mlk_status mlki_group_clear(mlk_group *g, uint64_t *d) {
  mlki_wait wait = mlki_wait_for(g->timeout);
  for (;; mlki_wait_pause(&wait)) {
    uint32_t waits, reads = 0, lost;
    int rank;
    const mlk_status status = mlki_group_standing(g, d);
    if (status) return status;
    waits = mlki_decision_members(*d) & ~mlki_decision_joined(*d) & ~(1u << g->rank);
    for (rank = 0; rank < g->ranks; rank++)
      if (waits >> rank & 1 && (int64_t)mlki_group_word(g, rank, MLKI_WORD_DONE) < g->step - 1) reads |= 1u << rank;
    if (!reads) return mlki_fence(), MLK_OK; /* what is written from now on is written after that was seen */
    if ((lost = mlki_group_lost(g, reads, &wait)) != 0) mlki_group_drop(g, g->step, lost);
  }
}

static void mlki_group_tell(mlk_group *g, uint64_t d, mlk_group_report *report) {
  memset(report, 0, sizeof *report);
  report->step = g->step, report->members = mlki_decision_members(d), report->joined = mlki_decision_joined(d);
  report->lost = mlki_group_missing(g, d);
}

/* Is the group in the state that a call needs? */
static mlk_status mlki_group_in(mlk_group *g, mlki_group_state state) {
  if (g->state == MLKI_GROUP_LEFT_OUT)
    return mlki_fail(g->ctx, MLK_ERR_REPLICA, "rank %d was left out of step %lld: close the group, and open it anew",
                     g->rank, (long long)g->step);
  if (g->state != state && state == MLKI_GROUP_STEP)
    return mlki_fail(g->ctx, MLK_ERR_ARGUMENT, "no step is under way: mlk_group_begin comes first");
  if (g->state != state)
    return mlki_fail(g->ctx, MLK_ERR_ARGUMENT, "step %lld is under way: mlk_group_finish comes first",
                     (long long)g->step);
  return MLK_OK;
}

MLK_API mlk_status mlk_group_begin(mlk_group *g, const float *weights, mlk_group_report *report) {
  mlk_status status;
  uint64_t d;
  int64_t i;
  if (!g) return MLK_ERR_ARGUMENT;
  if ((status = mlki_group_in(g, MLKI_GROUP_IDLE)) != MLK_OK) return status;
  for (i = 0; weights && i < g->own; i++)
    if (!(weights[i] >= 0.0f && weights[i] <= FLT_MAX))
      return mlki_fail(g->ctx, MLK_ERR_ARGUMENT, "weights[%lld]: is %g, but must be finite and at least 0",
                       (long long)i, (double)weights[i]);
  if (g->step == MLKI_STEP_MAX)
    return mlki_fail(g->ctx, MLK_ERR_SIZE, "step: a group makes %lld at most", (long long)MLKI_STEP_MAX);
  if (g->step) {
    if ((status = mlki_group_next(g, g->step + 1)) != MLK_OK) return status;
    g->step++;
  } else if ((status = mlki_group_enter(g)) != MLK_OK) {
    return status;
  }
  g->slow = 0, g->ranged = 0;
  if ((status = mlki_group_clear(g, &d)) != MLK_OK) return status;
  for (i = 0; i < g->own; i++) {
    const float weight = weights ? weights[i] : 1.0f;
    uint32_t bits;
    memcpy(&bits, &weight, sizeof bits);
    mlki_group_put(g, 8 * (uint64_t)(MLKI_WORD_WEIGHTS + i), MLKI_WEIGHED | bits);
  }
  for (i = 0; i < g->buckets; i++) {
    mlki_bucket *b = &g->bucket[i];
    b->published = 0, b->use = MLKI_BUCKET_IDLE, b->range_members = 0, b->gathered = 0;
  }
  g->unpublished = g->own * g->buckets;
  g->state = MLKI_GROUP_STEP;
  if (report) mlki_group_tell(g, d, report);
  return MLK_OK;
}

MLK_API mlk_tensor mlk_group_slot(const mlk_group *g, int share, int64_t bucket) {
  mlk_tensor none;
  memset(&none, 0, sizeof none);
  if (!g || share < g->first || share >= g->first + g->own || bucket < 0 || bucket >= g->buckets) return none;
  return mlki_group_view(mlki_group_own(g, mlki_group_slot_at(g, share - g->first, bucket)), g->wire,
                         g->bucket[bucket].elements);
}

static mlk_status mlki_group_bucket(const mlk_group *g, int64_t bucket) {
  if (bucket < 0 || bucket >= g->buckets)
    return mlki_fail(g->ctx, MLK_ERR_ARGUMENT, "bucket: is %lld, but must be 0 to %lld", (long long)bucket,
                     (long long)g->buckets - 1);
  return MLK_OK;
}

/* A tensor that a call writes, or that is passed through slots, must not lie in the common memory. */
static mlk_status mlki_group_apart_from_parts(mlk_group *g, const char *name, const mlk_tensor *t,
                                              const mlki_extent *extent) {
  const int device = g->parts == MLK_PARTS_DEVICE;
  const uintptr_t parts = (uintptr_t)(device ? g->data : g->base ? g->base : g->part), data = (uintptr_t)t->data;
  const uint64_t bytes = device ? g->data_bytes : g->part_bytes * (uint64_t)(g->base ? g->ranks : 1);
  const int64_t size = mlki_dtype_bytes(t->dtype);
  if (!extent->count || data + (uintptr_t)(extent->low * size) >= parts + (uintptr_t)bytes ||
      data + (uintptr_t)((extent->high + 1) * size) <= parts)
    return MLK_OK;
  return mlki_fail(g->ctx, MLK_ERR_ALIAS, "%s: lies in the common memory, which others read", name);
}

/* f32 tensors with elements together; written: by the call. */
static mlk_status mlki_group_list(mlk_group *g, const char *name, const mlk_tensor *tensors, int64_t count,
                                  int64_t elements, int written) {
  int64_t i, total = 0;
  if (count < 0 || (count && !tensors))
    return mlki_fail(g->ctx, MLK_ERR_ARGUMENT, "%s: %s", name,
                     count < 0 ? "their count is below 0" : "is NULL, but the argument is required");
  for (i = 0; i < count; i++) {
    char one[48];
    mlki_extent extent;
    mlk_tensor t = tensors[i];
    mlk_status status;
    snprintf(one, sizeof one, "%s[%lld]", name, (long long)i);
    if ((status = mlki_check_tensor(g->ctx, one, &t, MLK_F32, 1, MLK_MAX_RANK, &extent)) != MLK_OK ||
        (written && (status = mlki_group_apart_from_parts(g, one, &t, &extent)) != MLK_OK))
      return status;
    if (mlki_add_overflows(total, extent.count, &total)) total = INT64_MAX;
  }
  if (total != elements)
    return mlki_fail(g->ctx, MLK_ERR_SHAPE, "%s: have %lld elements together, but it must be %lld", name,
                     (long long)total, (long long)elements);
  return MLK_OK;
}

/* Whether a slot that is full holds NaN or infinity, if that matters. On a device an average of the slot alone tells,
   whose word of who took part lies behind the slots and ranges. */
static mlk_status mlki_group_finite(mlk_group *g, const mlk_tensor *slot, int *nonfinite) {
  mlk_context *ctx = g->ctx;
  mlk_average_desc desc;
  uint64_t used = 0;
  mlk_status status;
  *nonfinite = 0;
  if (g->parts == MLK_PARTS_HOST) {
    if (g->skip_nonfinite)
      *nonfinite = !mlki_average_finite(ctx->row, g->wire, (const char *)slot->data, slot->shape[0]);
    return MLK_OK;
  }
  if (g->skip_nonfinite && slot->shape[0]) {
    memset(&desc, 0, sizeof desc);
    desc.inputs = slot, desc.replicas = desc.count = 1, desc.skip_nonfinite = 1;
    desc.used = (uint64_t *)(void *)(g->data + (g->data_bytes - sizeof used));
    if ((status = mlk_average(ctx, &desc)) != MLK_OK) return status;
    status = ctx->backend->copy(ctx->device, &used, desc.used, sizeof used, ctx->error);
    if (status) return mlki_backend_said(ctx, status);
  }
  status = ctx->backend->sync(ctx->device, ctx->error); /* also for what the caller's own kernels write into the slot */
  *nonfinite = g->skip_nonfinite && slot->shape[0] && !used;
  return status == MLK_ERR_REPLICA && *nonfinite ? MLK_OK : mlki_backend_said(ctx, status);
}

MLK_API mlk_status mlk_group_publish(mlk_group *g, int share, int64_t bucket, const mlk_tensor *grads, int64_t count) {
  const int own = g ? share - g->first : 0;
  mlk_tensor slot;
  mlk_status status;
  uint64_t d;
  int nonfinite;
  if (!g) return MLK_ERR_ARGUMENT;
  if ((status = mlki_group_in(g, MLKI_GROUP_STEP)) != MLK_OK || (status = mlki_group_bucket(g, bucket)) != MLK_OK)
    return status;
  if (own < 0 || own >= g->own)
    return mlki_fail(g->ctx, MLK_ERR_ARGUMENT, "share: is %d, but rank %d has %d to %d", share, g->rank, g->first,
                     g->first + g->own - 1);
  if (mlki_group_published(g, share, bucket) >> 2 == (uint64_t)g->step)
    return mlki_fail(g->ctx, MLK_ERR_ARGUMENT, "bucket %lld of share %d was published in this step already",
                     (long long)bucket, share);
  slot = mlk_group_slot(g, share, bucket);
  if (grads || count) {
    if ((status = mlki_group_list(g, "grads", grads, count, slot.shape[0], 0)) != MLK_OK) return status;
    if ((status = mlki_group_copy(g, grads, count, &slot, 1, slot.shape[0], 0)) != MLK_OK) return status;
  }
  if ((status = mlki_group_standing(g, &d)) != MLK_OK) return status;
  if ((status = mlki_group_finite(g, &slot, &nonfinite)) != MLK_OK) return status;
  mlki_group_put(g, mlki_group_word_published(g, own, bucket), (uint64_t)g->step << 2 | (nonfinite ? 2 : 1));
  g->bucket[bucket].published++;
  if (--g->unpublished == 0) mlki_group_put(g, 8 * MLKI_WORD_COMPLETE, (uint64_t)g->step);
  return MLK_OK;
}

/* May this bucket be averaged: is a step under way, and has this rank published it itself? */
static mlk_status mlki_group_ready(mlk_group *g, int64_t bucket) {
  mlk_status status = mlki_group_in(g, MLKI_GROUP_STEP);
  if (status || (status = mlki_group_bucket(g, bucket)) != MLK_OK) return status;
  if (g->bucket[bucket].published != g->own)
    return mlki_fail(g->ctx, MLK_ERR_ARGUMENT,
                     "bucket: %lld is published for %d of the %d own shares: publish it first", (long long)bucket,
                     g->bucket[bucket].published, g->own);
  return MLK_OK;
}

/* Averages a bucket as things stand, for all or for the own range; finish may come back to it. */
static mlk_status mlki_group_use(mlk_group *g, mlki_bucket_use use, int64_t bucket, const mlk_tensor *means,
                                 int64_t count) {
  mlki_bucket *b = &g->bucket[bucket];
  uint32_t members, shares;
  mlk_status status = mlki_group_await(g, bucket, &members, &shares);
  if (status) return status;
  b->use = use, b->means = means, b->count = count;
  if ((status = mlki_group_average_now(g, bucket, members, shares, 0)) != MLK_OK) b->use = MLKI_BUCKET_IDLE;
  return status;
}

MLK_API mlk_status mlk_group_average(mlk_group *g, int64_t bucket, const mlk_tensor *means, int64_t count) {
  mlk_status status;
  if (!g) return MLK_ERR_ARGUMENT;
  if ((status = mlki_group_ready(g, bucket)) != MLK_OK) return status;
  if ((status = mlki_group_list(g, "means", means, count, g->bucket[bucket].elements, 1)) != MLK_OK) return status;
  return mlki_group_use(g, MLKI_BUCKET_AVERAGED, bucket, means, count);
}

/* Waits until the step is decided, or decides it. */
static mlk_status mlki_group_commit(mlk_group *g, uint64_t *d, uint32_t *shares) {
  mlki_wait wait = mlki_wait_for(g->timeout);
  for (;; mlki_wait_pause(&wait)) {
    uint32_t waits;
    mlk_status status = mlki_group_standing(g, d);
    if (status) return status;
    waits = mlki_group_unpublished(g, mlki_decision_members(*d), -1, shares);
    if (!waits && *d & MLKI_COMMITTED) return MLK_OK;
    if (!waits)
      (void)mlki_group_decide(g, g->step, *d, *d | MLKI_COMMITTED);
    else if ((status = mlki_group_expel(g, *d, waits, &wait)) != MLK_OK)
      return status;
  }
}

MLK_API mlk_status mlk_group_finish(mlk_group *g, mlk_group_report *report) {
  mlk_group_report told;
  double all; /* weights */
  uint32_t shares, members;
  uint64_t d;
  mlk_status status;
  if (!g) return MLK_ERR_ARGUMENT;
  if ((status = mlki_group_in(g, MLKI_GROUP_STEP)) != MLK_OK) return status;
  if (g->unpublished)
    return mlki_fail(g->ctx, MLK_ERR_ARGUMENT, "step %lld: %lld buckets of own shares are not published yet",
                     (long long)g->step, (long long)g->unpublished);
  if ((status = mlki_group_commit(g, &d, &shares)) != MLK_OK) return status;
  members = mlki_decision_members(d);
  mlki_group_tell(g, d, &told); /* the others' weights stand until this rank is done */
  told.nonfinite = mlki_group_weighted(g, mlki_group_shares_of(g, members), &all) & ~shares;
  told.shares = mlki_group_weighted(g, shares, &told.weight);
  if (all < 0 || told.weight < 0)
    status = mlki_fail(g->ctx, MLK_ERR_SYSTEM, "transport: weights of step %lld are out of reach", (long long)g->step);
  else if (shares)
    status = mlki_group_settle(g, members, shares);
  else
    status = mlki_fail(g->ctx, MLK_ERR_REPLICA, "step %lld: no share has finite gradients and a weight above 0",
                       (long long)g->step);
  g->state = MLKI_GROUP_IDLE;
  g->final = status == MLK_OK ? members : 0;
  mlki_group_put(g, 8 * MLKI_WORD_DONE, (uint64_t)g->step);
  if (mlki_group_outrun(g)) return mlki_group_left_out(g);
  if (status && shares) mlki_group_leave(g); /* the step counts for the others */
  if (status == MLK_OK && report) *report = told;
  return status;
}

/* >>group_state ----------------------------------------------------------------------------------------------------
   What a step leaves behind: ZeRO-1's ranges of parameters, and bringing replicas up to date. */

static mlk_status mlki_group_sharded(mlk_group *g) {
  if (g->on_loss != MLK_LOSS_FAILS)
    return mlki_fail(g->ctx, MLK_ERR_ARGUMENT,
                     "on_loss: is MLK_LOSS_SHRINKS, but a lost rank's range cannot be replaced: MLK_LOSS_FAILS");
  return MLK_OK;
}

MLK_API mlk_status mlk_group_range(const mlk_group *g, int64_t bucket, int64_t *from, int64_t *to) {
  mlk_status status;
  if (!g) return MLK_ERR_ARGUMENT;
  if ((status = mlki_group_bucket(g, bucket)) != MLK_OK) return status;
  if (!from || !to) return mlki_fail(g->ctx, MLK_ERR_ARGUMENT, "%s: is NULL", from ? "to" : "from");
  *from = mlki_group_cut(g->bucket[bucket].elements, g->rank, g->ranks);
  *to = mlki_group_cut(g->bucket[bucket].elements, g->rank + 1, g->ranks);
  return MLK_OK;
}

MLK_API mlk_status mlk_group_reduce(mlk_group *g, int64_t bucket, const mlk_tensor *means, int64_t count) {
  int64_t from, to;
  mlk_status status;
  if (!g) return MLK_ERR_ARGUMENT;
  if ((status = mlki_group_sharded(g)) != MLK_OK || (status = mlki_group_ready(g, bucket)) != MLK_OK) return status;
  (void)mlk_group_range(g, bucket, &from, &to);
  if ((status = mlki_group_list(g, "means", means, count, to - from, 1)) != MLK_OK) return status;
  return mlki_group_use(g, MLKI_BUCKET_REDUCED, bucket, means, count);
}

/* Waits until all members have read the means of the step that stand in the ranges; those who are lost instead. */
static uint32_t mlki_group_undone(mlk_group *g) {
  mlki_wait wait = mlki_wait_for(g->timeout);
  for (;; mlki_wait_pause(&wait)) {
    uint32_t waits = 0, lost;
    int rank;
    for (rank = 0; rank < g->ranks; rank++)
      if (g->final >> rank & 1 && rank != g->rank && (int64_t)mlki_group_word(g, rank, MLKI_WORD_DONE) < g->step)
        waits |= 1u << rank;
    if (!waits) return 0;
    if ((lost = mlki_group_lost(g, waits, &wait) | mlki_group_replaced(g, waits)) != 0) return lost;
  }
}

static mlk_status mlki_group_no_parameters(mlk_group *g, uint32_t lost) {
  int rank = 0;
  mlki_group_leave(g); /* others may have them */
  while (!(lost >> rank & 1)) rank++;
  return mlki_fail(g->ctx, MLK_ERR_REPLICA, "gather of step %lld: rank %d is %s", (long long)g->step, rank,
                   mlki_group_alive(g, rank) ? "late" : "dead");
}

/* The own range of parameters, for the others to read: once a step, even if the call is made again after an error. */
static mlk_status mlki_group_give_range(mlk_group *g, int64_t bucket, const mlk_tensor *mine, int64_t count,
                                        int64_t elements) {
  mlki_bucket *b = &g->bucket[bucket];
  const mlk_tensor range = mlki_group_view(mlki_group_own(g, g->ranges + b->range), MLK_F32, elements);
  uint64_t word[2];
  uint32_t lost;
  mlk_status status;
  if (b->gathered) return MLK_OK;
  if (b->range_members && (lost = mlki_group_undone(g)) != 0) return mlki_group_no_parameters(g, lost);
  mlki_group_range_words(g, 1, g->final, 0, word);
  mlki_group_range_open(g, bucket);
  if ((status = mlki_group_copy(g, mine, count, &range, 1, elements, 0)) != MLK_OK) return status;
  mlki_group_range_close(g, bucket, word);
  b->gathered = 1;
  return MLK_OK;
}

MLK_API mlk_status mlk_group_gather(mlk_group *g, int64_t bucket, const mlk_tensor *mine, int64_t mine_count,
                                    const mlk_tensor *whole, int64_t count) {
  int64_t from, to;
  uint32_t lost = 0;
  uint64_t word[2];
  mlk_status status;
  if (!g) return MLK_ERR_ARGUMENT;
  if ((status = mlki_group_sharded(g)) != MLK_OK || (status = mlki_group_in(g, MLKI_GROUP_IDLE)) != MLK_OK)
    return status;
  if (!g->final)
    return mlki_fail(g->ctx, MLK_ERR_ARGUMENT, "gather: comes after a step that mlk_group_finish ended well");
  if ((status = mlki_group_bucket(g, bucket)) != MLK_OK) return status;
  (void)mlk_group_range(g, bucket, &from, &to);
  if ((status = mlki_group_list(g, "mine", mine, mine_count, to - from, 0)) != MLK_OK ||
      (status = mlki_group_list(g, "whole", whole, count, g->bucket[bucket].elements, 1)) != MLK_OK)
    return status;
  if (g->bucket[bucket].gathered == 2)
    return mlki_fail(g->ctx, MLK_ERR_ARGUMENT, "bucket: %lld was gathered after step %lld already", (long long)bucket,
                     (long long)g->step);
  if ((status = mlki_group_give_range(g, bucket, mine, mine_count, to - from)) != MLK_OK) return status;
  mlki_group_range_words(g, 1, g->final, 0, word);
  if ((status = mlki_group_collect(g, bucket, g->final, word, whole, count, &lost)) != MLK_OK) return status;
  if (mlki_group_outrun(g)) return mlki_group_left_out(g);
  if (lost) return mlki_group_no_parameters(g, lost);
  g->bucket[bucket].gathered = 2;
  return MLK_OK;
}

/* The bytes of the tensors, one after another, to or from a piece. */
static mlk_status mlki_group_piece(mlk_group *g, const mlk_tensor *tensors, int64_t count, uint64_t at, char *piece,
                                   uint64_t bytes, int give) {
  uint64_t begin = 0;
  int64_t i, k;
  for (i = 0; i < count; i++) {
    uint64_t size = (uint64_t)mlki_dtype_bytes(tensors[i].dtype), from, to;
    for (k = 0; k < tensors[i].rank; k++) size *= (uint64_t)tensors[i].shape[k];
    from = begin > at ? begin : at, to = begin + size < at + bytes ? begin + size : at + bytes;
    if (from < to) {
      char *tensor = (char *)tensors[i].data + (from - begin), *here = piece + (from - at);
      const mlk_status status = mlk_copy(g->ctx, give ? here : tensor, give ? tensor : here, to - from);
      if (status) return status;
    }
    begin += size;
  }
  return mlki_group_wait(g);
}

/* Bytes of all tensors, which must be dense. */
static mlk_status mlki_group_state_bytes(mlk_group *g, const mlk_tensor *tensors, int64_t count, uint64_t *bytes) {
  int64_t i;
  int k;
  *bytes = 0;
  if (count < 0 || (count && !tensors))
    return mlki_fail(g->ctx, MLK_ERR_ARGUMENT, "tensors: %s",
                     count < 0 ? "their count is below 0" : "is NULL, but the argument is required");
  for (i = 0; i < count; i++) {
    char name[48];
    mlk_tensor t = tensors[i], dense = tensors[i];
    mlki_extent extent;
    mlk_status status;
    snprintf(name, sizeof name, "tensors[%lld]", (long long)i);
    if (t.dtype < 0 || t.dtype >= MLK_DTYPE_COUNT)
      return mlki_fail(g->ctx, MLK_ERR_DTYPE, "%s: dtype is %d", name, (int)t.dtype);
    if ((status = mlki_check_tensor(g->ctx, name, &t, (mlk_dtype)t.dtype, 1, MLK_MAX_RANK, &extent)) != MLK_OK)
      return status;
    memset(dense.stride, 0, sizeof dense.stride);
    dense = mlki_explicit_strides(dense);
    for (k = 0; k < t.rank && extent.count; k++)
      if (t.shape[k] > 1 && t.stride[k] != dense.stride[k])
        return mlki_fail(g->ctx, MLK_ERR_SHAPE, "%s: stride of axis %d is %lld, but the tensor must be dense", name, k,
                         (long long)t.stride[k]);
    if ((status = mlki_group_apart_from_parts(g, name, &t, &extent)) != MLK_OK) return status;
    *bytes += (uint64_t)extent.count * (uint64_t)mlki_dtype_bytes(t.dtype);
  }
  return MLK_OK;
}

/* What mlk_group_sync passes piece after piece through the giver's slots, which nobody else uses before the first
   publish. */
typedef struct mlki_group_passage {
  const mlk_tensor *tensors;
  int64_t count;
  int giver;
  uint64_t bytes, piece;
} mlki_group_passage;

/* This rank cannot be brought up to date: the others go on without it. */
static void mlki_group_give_up(mlk_group *g) {
  mlki_group_drop(g, g->step, 1u << g->rank);
  mlki_group_leave(g);
}

/* The bytes from at on, until all who joined have taken them; tag: step and number of the piece. */
static mlk_status mlki_group_give(mlk_group *g, const mlki_group_passage *p, uint64_t at, uint64_t length,
                                  uint64_t tag) {
  mlki_wait wait = mlki_wait_for(g->timeout);
  mlk_status status;
  mlki_group_put(g, 8 * MLKI_WORD_STATE, p->bytes);
  status = mlki_group_piece(g, p->tensors, p->count, at, mlki_group_own(g, g->slots), length, 1);
  if (status) {
    mlki_group_give_up(g);
    return status;
  }
  mlki_group_put(g, 8 * MLKI_WORD_GIVEN, tag);
  for (;; mlki_wait_pause(&wait)) {
    uint64_t d;
    uint32_t waits = 0, lost;
    int rank;
    if ((status = mlki_group_standing(g, &d)) != MLK_OK) return status;
    for (rank = 0; rank < g->ranks; rank++)
      if (mlki_decision_joined(d) >> rank & 1 && mlki_group_word(g, rank, MLKI_WORD_TAKEN) != tag) waits |= 1u << rank;
    if (!waits) return MLK_OK;
    if ((lost = mlki_group_lost(g, waits, &wait)) != 0) mlki_group_drop(g, g->step, lost);
  }
}

static mlk_status mlki_group_take(mlk_group *g, const mlki_group_passage *p, uint64_t at, uint64_t length,
                                  uint64_t tag) {
  mlki_wait wait = mlki_wait_for(g->timeout);
  uint64_t d, given, used = 0;
  char *data;
  mlk_status status;
  for (; mlki_group_word(g, p->giver, MLKI_WORD_GIVEN) != tag; mlki_wait_pause(&wait)) {
    if ((status = mlki_group_standing(g, &d)) != MLK_OK) return status;
    if (mlki_decision_members(d) >> p->giver & 1 && !mlki_group_lost(g, 1u << p->giver, &wait)) continue;
    mlki_group_give_up(g);
    return mlki_fail(g->ctx, MLK_ERR_REPLICA, "sync: rank %d, which gives, is %s", p->giver,
                     mlki_group_alive(g, p->giver) ? "late" : "dead");
  }
  if ((given = mlki_group_word(g, p->giver, MLKI_WORD_STATE)) != p->bytes) {
    mlki_group_give_up(g);
    return mlki_fail(g->ctx, MLK_ERR_ARGUMENT, "tensors: have %llu bytes, but those of rank %d have %llu",
                     (unsigned long long)p->bytes, p->giver, (unsigned long long)given);
  }
  if (!(data = mlki_group_data(g, p->giver, g->slots, length, &used))) {
    mlki_group_give_up(g);
    return mlki_fail(g->ctx, MLK_ERR_SYSTEM, "transport: rank %d is out of reach", p->giver);
  }
  if ((status = mlki_group_piece(g, p->tensors, p->count, at, data, length, 0)) != MLK_OK) {
    mlki_group_give_up(g);
    return status;
  }
  mlki_fence(); /* who was too slow has been taken out before the giver wrote there again */
  if ((status = mlki_group_standing(g, &d)) != MLK_OK) return status;
  mlki_group_put(g, 8 * MLKI_WORD_TAKEN, tag);
  return MLK_OK;
}

static mlk_status mlki_group_pass(mlk_group *g, const mlki_group_passage *p) {
  uint64_t at = 0, tag = (uint64_t)g->step << 32;
  mlk_status status = MLK_OK;
  for (; at < p->bytes && !status; at += p->piece) {
    const uint64_t length = p->bytes - at < p->piece ? p->bytes - at : p->piece;
    tag++;
    status = p->giver == g->rank ? mlki_group_give(g, p, at, length, tag) : mlki_group_take(g, p, at, length, tag);
  }
  return status;
}

MLK_API mlk_status mlk_group_sync(mlk_group *g, const mlk_tensor *tensors, int64_t count) {
  mlki_group_passage p;
  uint64_t d;
  uint32_t old;
  mlk_status status;
  if (!g) return MLK_ERR_ARGUMENT;
  if ((status = mlki_group_in(g, MLKI_GROUP_STEP)) != MLK_OK) return status;
  if (g->unpublished != g->own * g->buckets)
    return mlki_fail(g->ctx, MLK_ERR_ARGUMENT, "sync: comes before the first mlk_group_publish of a step");
  memset(&p, 0, sizeof p);
  if ((status = mlki_group_state_bytes(g, tensors, count, &p.bytes)) != MLK_OK) return status;
  if ((status = mlki_group_standing(g, &d)) != MLK_OK) return status;
  old = mlki_decision_members(d) & ~mlki_decision_joined(d);
  if (!mlki_decision_joined(d) || !p.bytes || (!old && !(d & MLKI_TRAINED))) return MLK_OK;
  if (!old) {
    mlki_group_give_up(g);
    return mlki_fail(g->ctx, MLK_ERR_REPLICA, "sync: nobody is left in step %lld who could bring rank %d up to date",
                     (long long)g->step, g->rank);
  }
  while (!(old >> p.giver & 1)) p.giver++;
  if (p.giver != g->rank && !(mlki_decision_joined(d) >> g->rank & 1)) return MLK_OK;
  p.tensors = tensors, p.count = count, p.piece = g->ranges - g->slots;
  if (!g->base && g->stage_bytes < p.piece) p.piece = g->stage_bytes;
  if (!p.piece)
    return mlki_fail(g->ctx, MLK_ERR_ARGUMENT,
                     "sync: the buckets have no elements, so there is no memory to pass pieces through");
  return mlki_group_pass(g, &p);
}

/* >>calibrate ------------------------------------------------------------------------------------------------------
   A table of calls, each described by a few sizes, is built in one block of memory, timed, and kept as a point: what
   mlki_predict goes by. The calls are those of networks and searches at sizes from microseconds to some hundredths of a
   second. Operands that together exceed MLKI_CALIBRATE_NEAR, and those of decoding, lie elsewhere in the block at every
   call, so out of cache. */

#define MLKI_CALIBRATE_PATTERN 262147 /* floats of the operands' values; prime, so that rows differ */
#define MLKI_CALIBRATE_IDS     4096   /* labels, ids */
#define MLKI_CALIBRATE_NEAR    (16ll << 20)
#define MLKI_CALIBRATE_LONG    0.04 /* seconds by the ceilings: longer calls are left out */
#define MLKI_CALIBRATE_LATE    0.25 /* seconds: the first call of one that takes longer is all there is */
#define MLKI_CALIBRATE_SAMPLES 5
#define MLKI_CALIBRATE_SAMPLE  1e-3 /* seconds */

#define MLKI_TRIAL_BF16 16 /* a flag of the first three below: operands in bf16, on devices alone */

/* What the sizes and flags of a trial mean, by operator; square images and filters. Matrices of 4096 and the like are
   for devices: elsewhere they take too long.
   MATMUL              m n k batch          1: B is transposed, 2: A is, 8: B is packed
   CONV, its gradients n c size k filter    1: stride 2, 2: channels last, 4: depthwise, 8: W is packed
   ATTENTION, its grad b h s t d            1: causal, 2: four query heads share a key head
   ATTENTION_MERGE     parts b h s e
   KNN, DISTANCES      queries rows d k     1: inner products
   AVERAGE             replicas elements tensors    1: bf16, 2: into other tensors instead of all
   MAP                 elements             the mlk_map_op (MLK_ACT and MLK_ACT_GRAD: GELU)
   REDUCE              rows columns         1: over rows
   CLIP_NORM, SGD, ADAMW  elements
   POOL, POOL_GRAD     n c size             1: channels last, 2: with indices; windows of 3, steps of 2; the gradient
                                            is of averages
   rows of layers      rows columns         NORM: 1: RMS
   EMBEDDING, its grad ids vocabulary columns
   ROTARY              positions heads columns */
typedef struct mlki_trial {
  mlk_op op;
  int flags;
  int64_t a, b, c, d, e;
} mlki_trial;

static const mlki_trial mlki_trials[] = {
    {MLK_OP_MATMUL, 0, 4, 4, 4, 0, 0},
    {MLK_OP_MATMUL, 0, 16, 16, 16, 0, 0},
    {MLK_OP_MATMUL, 0, 32, 32, 32, 0, 0},
    {MLK_OP_MATMUL, 0, 64, 64, 64, 0, 0},
    {MLK_OP_MATMUL, 0, 128, 128, 128, 0, 0},
    {MLK_OP_MATMUL, 1, 200, 200, 200, 0, 0},
    {MLK_OP_MATMUL, 0, 384, 384, 384, 0, 0},
    {MLK_OP_MATMUL, 1, 512, 768, 768, 0, 0},
    {MLK_OP_MATMUL, 2, 768, 768, 512, 0, 0},
    {MLK_OP_MATMUL, 0, 1024, 1024, 1024, 0, 0},
    {MLK_OP_MATMUL, 0, 1536, 1024, 2048, 0, 0},
    {MLK_OP_MATMUL, 0, 1, 4096, 4096, 0, 0},
    {MLK_OP_MATMUL, 1, 1, 4096, 4096, 0, 0},
    {MLK_OP_MATMUL, 0, 4, 4096, 4096, 0, 0},
    {MLK_OP_MATMUL, 1, 4, 4096, 4096, 0, 0},
    {MLK_OP_MATMUL, 0, 16, 4096, 4096, 0, 0},
    {MLK_OP_MATMUL, 1, 16, 4096, 4096, 0, 0},
    {MLK_OP_MATMUL, 0, 4096, 1, 4096, 0, 0},
    {MLK_OP_MATMUL, 0, 1, 768, 768, 0, 0},
    {MLK_OP_MATMUL, 1, 16, 1024, 1024, 0, 0},
    {MLK_OP_MATMUL, 0, 64, 3072, 768, 0, 0},
    {MLK_OP_MATMUL, 0, 65536, 16, 64, 0, 0},
    {MLK_OP_MATMUL, 8, 16, 1024, 1024, 0, 0},
    {MLK_OP_MATMUL, 8, 128, 768, 768, 0, 0},
    {MLK_OP_MATMUL, 0, 8, 8, 8, 2048, 0},
    {MLK_OP_MATMUL, 0, 16, 16, 16, 1024, 0},
    {MLK_OP_MATMUL, 0, 32, 32, 32, 512, 0},
    {MLK_OP_MATMUL, 0, 128, 128, 128, 64, 0},
    {MLK_OP_MATMUL, 1, 2048, 2048, 2048, 0, 0},
    {MLK_OP_MATMUL, 0, 4096, 4096, 4096, 0, 0},
    {MLK_OP_MATMUL, 16, 256, 256, 256, 0, 0},
    {MLK_OP_MATMUL, 17, 1024, 1024, 1024, 0, 0},
    {MLK_OP_MATMUL, 17, 2048, 2048, 2048, 0, 0},
    {MLK_OP_MATMUL, 16, 4096, 4096, 4096, 0, 0},
    {MLK_OP_MATMUL, 17, 4096, 4096, 4096, 0, 0},
    {MLK_OP_MATMUL, 18, 4096, 4096, 4096, 0, 0},
    {MLK_OP_MATMUL, 17, 8192, 4096, 8192, 0, 0},
    {MLK_OP_MATMUL, 17, 1, 8192, 8192, 0, 0},
    {MLK_OP_MATMUL, 17, 16, 8192, 8192, 0, 0},
    {MLK_OP_MATMUL, 17, 64, 4096, 4096, 0, 0},
    {MLK_OP_MATMUL, 16, 128, 128, 128, 64, 0},
    {MLK_OP_CONV, 0, 1, 64, 56, 64, 3},
    {MLK_OP_CONV, 2, 1, 64, 56, 64, 3},
    {MLK_OP_CONV, 0, 1, 256, 14, 256, 3},
    {MLK_OP_CONV, 2, 1, 256, 14, 256, 3},
    {MLK_OP_CONV, 2, 4, 128, 28, 128, 3},
    {MLK_OP_CONV, 0, 1, 512, 7, 512, 3},
    {MLK_OP_CONV, 2, 1, 512, 7, 512, 3},
    {MLK_OP_CONV, 1, 1, 128, 56, 128, 3},
    {MLK_OP_CONV, 0, 1, 64, 56, 256, 1},
    {MLK_OP_CONV, 2, 1, 64, 56, 256, 1},
    {MLK_OP_CONV, 0, 1, 1024, 14, 256, 1},
    {MLK_OP_CONV, 2, 1, 1024, 14, 256, 1},
    {MLK_OP_CONV, 1, 1, 3, 224, 64, 7},
    {MLK_OP_CONV, 3, 1, 3, 224, 64, 7},
    {MLK_OP_CONV, 4, 1, 144, 56, 144, 3},
    {MLK_OP_CONV, 6, 1, 144, 56, 144, 3},
    {MLK_OP_CONV, 4, 1, 512, 14, 512, 3},
    {MLK_OP_CONV, 6, 1, 512, 14, 512, 3},
    {MLK_OP_CONV, 7, 1, 96, 112, 96, 3},
    {MLK_OP_CONV, 0, 16, 1, 28, 16, 3},
    {MLK_OP_CONV, 8, 1, 64, 56, 64, 3},
    {MLK_OP_CONV, 10, 1, 64, 56, 64, 3},
    {MLK_OP_CONV, 8, 1, 512, 7, 512, 3},
    {MLK_OP_CONV, 10, 1, 512, 7, 512, 3},
    {MLK_OP_CONV, 8, 1, 256, 14, 256, 3},
    {MLK_OP_CONV, 10, 4, 128, 28, 128, 3},
    {MLK_OP_CONV, 8, 1, 1024, 14, 256, 1},
    {MLK_OP_CONV, 10, 1, 64, 56, 256, 1},
    {MLK_OP_CONV, 9, 1, 3, 224, 64, 7},
    {MLK_OP_CONV, 12, 1, 144, 56, 144, 3},
    {MLK_OP_CONV, 14, 1, 144, 56, 144, 3},
    {MLK_OP_CONV, 2, 32, 64, 56, 64, 3},
    {MLK_OP_CONV, 2, 32, 256, 14, 256, 3},
    {MLK_OP_CONV, 18, 32, 64, 56, 64, 3},
    {MLK_OP_CONV, 18, 32, 256, 14, 256, 3},
    {MLK_OP_CONV, 18, 32, 512, 7, 512, 3},
    {MLK_OP_CONV, 18, 32, 256, 56, 64, 1},
    {MLK_OP_CONV, 16, 32, 128, 28, 128, 3},
    {MLK_OP_CONV_GRAD_INPUT, 0, 1, 64, 56, 64, 3},
    {MLK_OP_CONV_GRAD_INPUT, 2, 1, 64, 56, 64, 3},
    {MLK_OP_CONV_GRAD_INPUT, 0, 1, 256, 14, 256, 3},
    {MLK_OP_CONV_GRAD_INPUT, 2, 1, 256, 14, 256, 3},
    {MLK_OP_CONV_GRAD_INPUT, 2, 1, 512, 7, 512, 3},
    {MLK_OP_CONV_GRAD_INPUT, 1, 1, 128, 56, 128, 3},
    {MLK_OP_CONV_GRAD_INPUT, 3, 1, 128, 56, 128, 3},
    {MLK_OP_CONV_GRAD_INPUT, 0, 1, 64, 56, 256, 1},
    {MLK_OP_CONV_GRAD_INPUT, 2, 1, 1024, 14, 256, 1},
    {MLK_OP_CONV_GRAD_INPUT, 1, 1, 3, 224, 64, 7},
    {MLK_OP_CONV_GRAD_INPUT, 4, 1, 144, 56, 144, 3},
    {MLK_OP_CONV_GRAD_INPUT, 6, 1, 144, 56, 144, 3},
    {MLK_OP_CONV_GRAD_INPUT, 5, 1, 96, 112, 96, 3},
    {MLK_OP_CONV_GRAD_INPUT, 18, 32, 128, 28, 128, 3},
    {MLK_OP_CONV_GRAD_INPUT, 18, 32, 512, 7, 512, 3},
    {MLK_OP_CONV_GRAD_WEIGHTS, 0, 1, 64, 56, 64, 3},
    {MLK_OP_CONV_GRAD_WEIGHTS, 2, 1, 64, 56, 64, 3},
    {MLK_OP_CONV_GRAD_WEIGHTS, 0, 1, 256, 14, 256, 3},
    {MLK_OP_CONV_GRAD_WEIGHTS, 2, 1, 256, 14, 256, 3},
    {MLK_OP_CONV_GRAD_WEIGHTS, 2, 1, 512, 7, 512, 3},
    {MLK_OP_CONV_GRAD_WEIGHTS, 1, 1, 128, 56, 128, 3},
    {MLK_OP_CONV_GRAD_WEIGHTS, 0, 1, 64, 56, 256, 1},
    {MLK_OP_CONV_GRAD_WEIGHTS, 2, 1, 1024, 14, 256, 1},
    {MLK_OP_CONV_GRAD_WEIGHTS, 1, 1, 3, 224, 64, 7},
    {MLK_OP_CONV_GRAD_WEIGHTS, 3, 1, 3, 224, 64, 7},
    {MLK_OP_CONV_GRAD_WEIGHTS, 4, 1, 144, 56, 144, 3},
    {MLK_OP_CONV_GRAD_WEIGHTS, 6, 1, 144, 56, 144, 3},
    {MLK_OP_CONV_GRAD_WEIGHTS, 18, 32, 128, 28, 128, 3},
    {MLK_OP_CONV_GRAD_WEIGHTS, 18, 32, 512, 7, 512, 3},
    {MLK_OP_ATTENTION, 0, 4, 12, 32, 32, 64},
    {MLK_OP_ATTENTION, 0, 2, 12, 128, 128, 64},
    {MLK_OP_ATTENTION, 0, 32, 12, 32, 32, 64},
    {MLK_OP_ATTENTION, 0, 16, 16, 128, 128, 64},
    {MLK_OP_ATTENTION, 1, 16, 16, 128, 128, 64},
    {MLK_OP_ATTENTION, 0, 1, 8, 512, 512, 64},
    {MLK_OP_ATTENTION, 1, 1, 8, 512, 512, 64},
    {MLK_OP_ATTENTION, 0, 1, 4, 1024, 1024, 128},
    {MLK_OP_ATTENTION, 1, 1, 4, 2048, 2048, 64},
    {MLK_OP_ATTENTION, 3, 1, 8, 1024, 1024, 64},
    {MLK_OP_ATTENTION, 0, 1, 12, 1, 256, 64},
    {MLK_OP_ATTENTION, 0, 1, 16, 1, 2048, 64},
    {MLK_OP_ATTENTION, 0, 1, 16, 1, 4096, 128},
    {MLK_OP_ATTENTION, 2, 1, 32, 1, 4096, 128},
    {MLK_OP_ATTENTION, 2, 4, 32, 1, 1024, 128},
    {MLK_OP_ATTENTION, 0, 4, 16, 2048, 2048, 128},
    {MLK_OP_ATTENTION, 16, 16, 16, 128, 128, 64},
    {MLK_OP_ATTENTION, 16, 8, 16, 1024, 1024, 64},
    {MLK_OP_ATTENTION, 16, 4, 16, 2048, 2048, 128},
    {MLK_OP_ATTENTION, 17, 4, 16, 2048, 2048, 128},
    {MLK_OP_ATTENTION, 17, 1, 16, 8192, 8192, 128},
    {MLK_OP_ATTENTION, 18, 1, 32, 1, 4096, 128},
    {MLK_OP_ATTENTION, 18, 16, 32, 1, 2048, 128},
    {MLK_OP_ATTENTION_GRAD, 0, 2, 12, 128, 128, 64},
    {MLK_OP_ATTENTION_GRAD, 0, 1, 4, 512, 512, 64},
    {MLK_OP_ATTENTION_GRAD, 1, 1, 4, 1024, 1024, 64},
    {MLK_OP_ATTENTION_GRAD, 0, 1, 2, 1024, 1024, 128},
    {MLK_OP_ATTENTION_GRAD, 16, 8, 16, 1024, 1024, 64},
    {MLK_OP_ATTENTION_GRAD, 17, 4, 16, 2048, 2048, 128},
    {MLK_OP_ATTENTION_MERGE, 0, 8, 4, 16, 64, 64},
    {MLK_OP_ATTENTION_MERGE, 0, 8, 1, 32, 1, 128},
    {MLK_OP_ATTENTION_MERGE, 0, 8, 1, 16, 1024, 64},
    {MLK_OP_KNN, 0, 1, 4096, 64, 10, 0},
    {MLK_OP_KNN, 0, 1, 200000, 16, 10, 0},
    {MLK_OP_KNN, 0, 1, 200000, 64, 10, 0},
    {MLK_OP_KNN, 0, 1, 40000, 784, 10, 0},
    {MLK_OP_KNN, 0, 10, 20000, 784, 10, 0},
    {MLK_OP_KNN, 0, 1000, 4000, 784, 1, 0},
    {MLK_OP_KNN, 0, 64, 60000, 784, 10, 0},
    {MLK_OP_KNN, 0, 64, 60000, 784, 100, 0},
    {MLK_OP_KNN, 0, 256, 100000, 128, 1, 0},
    {MLK_OP_KNN, 0, 256, 100000, 128, 10, 0},
    {MLK_OP_KNN, 0, 256, 100000, 128, 100, 0},
    {MLK_OP_KNN, 1, 256, 8000, 784, 10, 0},
    {MLK_OP_KNN, 0, 1000, 100000, 16, 10, 0},
    {MLK_OP_KNN, 0, 1000, 100000, 16, 100, 0},
    {MLK_OP_KNN, 0, 10000, 100000, 128, 10, 0},
    {MLK_OP_KNN, 0, 10000, 60000, 784, 10, 0},
    {MLK_OP_DISTANCES, 0, 64, 1024, 64, 0, 0},
    {MLK_OP_DISTANCES, 0, 500, 10000, 16, 0, 0},
    {MLK_OP_DISTANCES, 0, 500, 10000, 128, 0, 0},
    {MLK_OP_DISTANCES, 0, 200, 2500, 784, 0, 0},
    {MLK_OP_AVERAGE, 0, 2, 1 << 15, 1, 0, 0},
    {MLK_OP_AVERAGE, 0, 4, 1 << 14, 1, 0, 0},
    {MLK_OP_AVERAGE, 0, 8, 1 << 13, 1, 0, 0},
    {MLK_OP_AVERAGE, 2, 2, 40000, 1, 0, 0},
    {MLK_OP_AVERAGE, 2, 4, 24000, 1, 0, 0},
    {MLK_OP_AVERAGE, 2, 8, 14000, 1, 0, 0},
    {MLK_OP_AVERAGE, 3, 2, 80000, 1, 0, 0},
    {MLK_OP_AVERAGE, 3, 4, 48000, 1, 0, 0},
    {MLK_OP_AVERAGE, 3, 8, 28000, 1, 0, 0},
    {MLK_OP_AVERAGE, 0, 2, 8 << 20, 1, 0, 0},
    {MLK_OP_AVERAGE, 0, 8, 4 << 20, 1, 0, 0},
    {MLK_OP_AVERAGE, 2, 2, 8 << 20, 1, 0, 0},
    {MLK_OP_AVERAGE, 2, 4, 5 << 20, 1, 0, 0},
    {MLK_OP_AVERAGE, 2, 8, 3 << 20, 1, 0, 0},
    {MLK_OP_AVERAGE, 3, 2, 16 << 20, 1, 0, 0},
    {MLK_OP_AVERAGE, 3, 8, 5 << 20, 1, 0, 0},
    {MLK_OP_AVERAGE, 2, 4, 100, 400, 0, 0},
    {MLK_OP_AVERAGE, 2, 4, 1000, 400, 0, 0},
    {MLK_OP_AVERAGE, 2, 4, 10000, 400, 0, 0},
    {MLK_OP_MAP, MLK_ADD, 1 << 14, 0, 0, 0, 0},
    {MLK_OP_MAP, MLK_ADD, 1 << 16, 0, 0, 0, 0},
    {MLK_OP_MAP, MLK_ADD, 12 << 20, 0, 0, 0, 0},
    {MLK_OP_MAP, MLK_SCALE, 16 << 20, 0, 0, 0, 0},
    {MLK_OP_MAP, MLK_DIV, 1 << 16, 0, 0, 0, 0},
    {MLK_OP_MAP, MLK_COPY, 1 << 15, 0, 0, 0, 0},
    {MLK_OP_MAP, MLK_COPY, 16 << 20, 0, 0, 0, 0},
    {MLK_OP_MAP, MLK_ACT, 1 << 16, 0, 0, 0, 0},
    {MLK_OP_MAP, MLK_ACT, 8 << 20, 0, 0, 0, 0},
    {MLK_OP_MAP, MLK_ACT_GRAD, 1 << 18, 0, 0, 0, 0},
    {MLK_OP_REDUCE, 0, 256, 256, 0, 0, 0},
    {MLK_OP_REDUCE, 0, 16384, 1024, 0, 0, 0},
    {MLK_OP_REDUCE, 1, 512, 768, 0, 0, 0},
    {MLK_OP_REDUCE, 1, 16384, 1024, 0, 0, 0},
    {MLK_OP_CLIP_NORM, 0, 1 << 16, 0, 0, 0, 0},
    {MLK_OP_CLIP_NORM, 0, 12 << 20, 0, 0, 0, 0},
    {MLK_OP_SGD, 0, 1 << 15, 0, 0, 0, 0},
    {MLK_OP_SGD, 0, 8 << 20, 0, 0, 0, 0},
    {MLK_OP_ADAMW, 0, 1 << 14, 0, 0, 0, 0},
    {MLK_OP_ADAMW, 0, 6 << 20, 0, 0, 0, 0},
    {MLK_OP_POOL, 0, 1, 16, 56, 0, 0},
    {MLK_OP_POOL, 1, 1, 16, 56, 0, 0},
    {MLK_OP_POOL, 2, 1, 16, 112, 0, 0},
    {MLK_OP_POOL, 3, 1, 16, 112, 0, 0},
    {MLK_OP_POOL, 0, 16, 64, 112, 0, 0},
    {MLK_OP_POOL, 1, 16, 64, 112, 0, 0},
    {MLK_OP_POOL, 2, 8, 64, 112, 0, 0},
    {MLK_OP_POOL, 3, 8, 64, 112, 0, 0},
    {MLK_OP_POOL_GRAD, 0, 4, 64, 28, 0, 0},
    {MLK_OP_SOFTMAX, 0, 64, 1024, 0, 0, 0},
    {MLK_OP_SOFTMAX, 0, 16384, 1024, 0, 0, 0},
    {MLK_OP_SOFTMAX_GRAD, 0, 64, 1024, 0, 0, 0},
    {MLK_OP_SOFTMAX_GRAD, 0, 8192, 1024, 0, 0, 0},
    {MLK_OP_CROSS_ENTROPY, 0, 64, 1000, 0, 0, 0},
    {MLK_OP_CROSS_ENTROPY, 0, 512, 32000, 0, 0, 0},
    {MLK_OP_NORM, 0, 64, 768, 0, 0, 0},
    {MLK_OP_NORM, 0, 16384, 768, 0, 0, 0},
    {MLK_OP_NORM, 1, 256, 1024, 0, 0, 0},
    {MLK_OP_NORM_GRAD, 0, 64, 768, 0, 0, 0},
    {MLK_OP_NORM_GRAD, 0, 8192, 768, 0, 0, 0},
    {MLK_OP_EMBEDDING, 0, 64, 1000, 128, 0, 0},
    {MLK_OP_EMBEDDING, 0, 4096, 30000, 768, 0, 0},
    {MLK_OP_EMBEDDING_GRAD, 0, 64, 1000, 128, 0, 0},
    {MLK_OP_EMBEDDING_GRAD, 0, 4096, 30000, 768, 0, 0},
    {MLK_OP_ROTARY, 0, 64, 12, 64, 0, 0},
    {MLK_OP_ROTARY, 0, 4096, 16, 128, 0, 0},
};

#define MLKI_CALIBRATE_LISTS 2048 /* tensors of an average */

typedef struct mlki_calibrator {
  mlk_context *ctx;
  char *memory;               /* of the context's device */
  int64_t bytes, start, used; /* operands lie in [start, start + used) */
  mlk_dtype dtype;            /* of matrices, images, heads */
  float *pattern;
  int64_t *ids;
  mlk_tensor *list;
  mlk_calibration_point *points;
  mlk_packed packed;
  mlk_tensor weights; /* of a trial that packs them, and */
  mlk_tensor panels;  /* where they go */
  union {
    mlk_matmul_desc matmul;
    mlk_conv_desc conv;
    mlk_conv_grad_input_desc grad_input;
    mlk_conv_grad_weights_desc grad_weights;
    mlk_attention_desc attention;
    mlk_attention_grad_desc attention_grad;
    mlk_attention_merge_desc merge;
    mlk_knn_desc knn;
    mlk_distances_desc distances;
    mlk_average_desc average;
    mlk_map_desc map;
    mlk_reduce_desc reduce;
    mlk_clip_norm_desc clip;
    mlk_sgd_desc sgd;
    mlk_adamw_desc adamw;
    mlk_pool_desc pool;
    mlk_pool_grad_desc pool_grad;
    mlk_softmax_desc softmax;
    mlk_softmax_grad_desc softmax_grad;
    mlk_cross_entropy_desc cross_entropy;
    mlk_norm_desc norm;
    mlk_norm_grad_desc norm_grad;
    mlk_embedding_desc embedding;
    mlk_embedding_grad_desc embedding_grad;
    mlk_rotary_desc rotary;
  } desc;
} mlki_calibrator;

/* The next operand of the block, dense; sizes of 0 end the shape. Beyond the block the place is only counted. */
static mlk_tensor mlki_trial_operand(mlki_calibrator *c, mlk_dtype dtype, int64_t s0, int64_t s1, int64_t s2,
                                     int64_t s3) {
  const int64_t sizes[4] = {s0, s1, s2, s3};
  mlk_tensor t;
  int64_t count = 1;
  memset(&t, 0, sizeof t);
  for (; t.rank < 4 && sizes[t.rank] > 0; t.rank++) count *= t.shape[t.rank] = sizes[t.rank];
  t.dtype = (int32_t)dtype;
  t.data = c->memory + (c->start + c->used) % c->bytes;
  c->used += (count * (int64_t)mlki_dtype_bytes((int32_t)dtype) + 255) / 256 * 256;
  return t;
}

static mlk_tensor mlki_floats(mlki_calibrator *c, int64_t s0, int64_t s1, int64_t s2, int64_t s3) {
  return mlki_trial_operand(c, MLK_F32, s0, s1, s2, s3);
}

/* The same in the trial's own type. */
static mlk_tensor mlki_values(mlki_calibrator *c, int64_t s0, int64_t s1, int64_t s2, int64_t s3) {
  return mlki_trial_operand(c, c->dtype, s0, s1, s2, s3);
}

/* The same dense tensor with a further axis of size 1. */
static mlk_tensor mlki_with_one(mlk_tensor t, int axis) {
  int i;
  for (i = t.rank++; i > axis; i--) t.shape[i] = t.shape[i - 1];
  t.shape[axis] = 1;
  return t;
}

/* [n, channels, size, size] */
static mlk_tensor mlki_images(mlki_calibrator *c, int64_t n, int64_t channels, int64_t size, int last) {
  return last ? mlk_channels_last(mlki_values(c, n, size, size, channels)) : mlki_values(c, n, channels, size, size);
}

static void mlki_trial_conv(mlki_calibrator *c, const mlki_trial *t) {
  const int64_t stride = t->flags & 1 ? 2 : 1, pad = t->e / 2, groups = t->flags & 4 ? t->b : 1;
  const int64_t out = (t->c + 2 * pad - t->e) / stride + 1;
  const int last = (t->flags & 2) != 0;
  const mlk_tensor x = mlki_images(c, t->a, t->b, t->c, last), y = mlki_images(c, t->a, t->d, out, last);
  const mlk_tensor w = mlki_values(c, t->d, t->b / groups, t->e, t->e);
  mlk_conv_geometry g;
  memset(&g, 0, sizeof g);
  g.stride[0] = g.stride[1] = stride, g.groups = groups;
  g.pad_before[0] = g.pad_before[1] = g.pad_after[0] = g.pad_after[1] = pad;
  if (t->op == MLK_OP_CONV) c->desc.conv.x = x, c->desc.conv.w = w, c->desc.conv.y = y, c->desc.conv.geometry = g;
  if (t->op == MLK_OP_CONV_GRAD_INPUT) {
    mlk_conv_grad_input_desc *d = &c->desc.grad_input;
    d->dy = y, d->w = w, d->dx = x, d->geometry = g;
  }
  if (t->op == MLK_OP_CONV_GRAD_WEIGHTS) {
    mlk_conv_grad_weights_desc *d = &c->desc.grad_weights;
    d->x = x, d->dy = y, d->dw = w, d->geometry = g;
  }
}

static void mlki_trial_attention(mlki_calibrator *c, const mlki_trial *t) {
  const int64_t heads = t->flags & 2 ? t->b / 4 : t->b;
  const mlk_tensor q = mlki_values(c, t->a, t->b, t->c, t->e), out = mlki_values(c, t->a, t->b, t->c, t->e);
  const mlk_tensor k = mlki_values(c, t->a, heads, t->d, t->e), v = mlki_values(c, t->a, heads, t->d, t->e);
  if (t->op == MLK_OP_ATTENTION) {
    c->desc.attention.q = q, c->desc.attention.k = k, c->desc.attention.v = v, c->desc.attention.out = out;
    c->desc.attention.scores.causal = t->flags & 1;
  } else {
    mlk_attention_grad_desc *d = &c->desc.attention_grad;
    d->q = q, d->k = k, d->v = v, d->out = out, d->scores.causal = t->flags & 1;
    d->lse = mlki_floats(c, t->a, t->b, t->c, 0);
    d->dout = mlki_values(c, t->a, t->b, t->c, t->e), d->dq = mlki_values(c, t->a, t->b, t->c, t->e);
    d->dk = mlki_values(c, t->a, heads, t->d, t->e), d->dv = mlki_values(c, t->a, heads, t->d, t->e);
  }
}

static void mlki_trial_average(mlki_calibrator *c, const mlki_trial *t) {
  const mlk_dtype dtype = t->flags & 1 ? MLK_BF16 : MLK_F32;
  mlk_average_desc *d = &c->desc.average;
  int64_t i;
  for (i = 0; i < t->a * t->c; i++) c->list[i] = mlki_trial_operand(c, dtype, t->b, 0, 0, 0);
  d->inputs = c->list, d->replicas = t->a, d->count = t->c;
  for (i = 0; i < t->c && (t->flags & 2); i++) c->list[t->a * t->c + i] = mlki_trial_operand(c, dtype, t->b, 0, 0, 0);
  if (t->flags & 2) d->outputs = c->list + t->a * t->c, d->output_count = t->c;
}

static void mlki_trial_rows(mlki_calibrator *c, const mlki_trial *t) { /* operators on [rows, columns] */
  const mlk_tensor x = mlki_floats(c, t->a, t->b, 0, 0), y = mlki_floats(c, t->a, t->b, 0, 0);
  if (t->op == MLK_OP_SOFTMAX) c->desc.softmax.x = x, c->desc.softmax.y = y;
  if (t->op == MLK_OP_SOFTMAX_GRAD) {
    c->desc.softmax_grad.y = x, c->desc.softmax_grad.dy = y;
    c->desc.softmax_grad.dx = mlki_floats(c, t->a, t->b, 0, 0);
  }
  if (t->op == MLK_OP_CROSS_ENTROPY) {
    mlk_cross_entropy_desc *d = &c->desc.cross_entropy;
    d->x = x, d->dx = y;
    d->labels = mlki_trial_operand(c, MLK_I64, t->a, 0, 0, 0), d->loss = mlki_floats(c, t->a, 0, 0, 0);
  }
  if (t->op == MLK_OP_NORM) {
    mlk_norm_desc *d = &c->desc.norm;
    d->kind = t->flags & 1 ? MLK_NORM_RMS : MLK_NORM_LAYER, d->x = x, d->y = y;
    d->gamma = mlki_floats(c, t->b, 0, 0, 0), d->beta = mlki_floats(c, t->b, 0, 0, 0);
    d->mean = mlki_floats(c, t->a, 0, 0, 0), d->rstd = mlki_floats(c, t->a, 0, 0, 0);
  }
  if (t->op == MLK_OP_NORM_GRAD) {
    mlk_norm_grad_desc *d = &c->desc.norm_grad;
    d->x = x, d->dy = y, d->dx = mlki_floats(c, t->a, t->b, 0, 0);
    d->gamma = mlki_floats(c, t->b, 0, 0, 0);
    d->mean = mlki_floats(c, t->a, 0, 0, 0), d->rstd = mlki_floats(c, t->a, 0, 0, 0);
    d->dgamma = mlki_floats(c, t->b, 0, 0, 0), d->dbeta = mlki_floats(c, t->b, 0, 0, 0);
  }
}

static void mlki_trial_elements(mlki_calibrator *c, const mlki_trial *t) { /* operators on [elements] */
  const mlk_tensor x = mlki_floats(c, t->a, 0, 0, 0);
  const mlk_tensor y = t->op == MLK_OP_CLIP_NORM ? x : mlki_floats(c, t->a, 0, 0, 0);
  if (t->op == MLK_OP_MAP) {
    mlk_map_desc *d = &c->desc.map;
    d->op = (mlk_map_op)t->flags, d->a = x, d->out = y, d->activation = MLK_GELU;
    if (d->op == MLK_ADD || d->op == MLK_DIV || d->op == MLK_ACT_GRAD) d->b = mlki_floats(c, t->a, 0, 0, 0);
  }
  if (t->op == MLK_OP_CLIP_NORM) {
    c->list[0] = x;
    c->desc.clip.grads = c->list, c->desc.clip.count = 1, c->desc.clip.max_norm = 1.0f;
    c->desc.clip.norm = (float *)mlki_floats(c, 1, 0, 0, 0).data;
  }
  if (t->op == MLK_OP_SGD) {
    c->desc.sgd.param = x, c->desc.sgd.grad = y, c->desc.sgd.velocity = mlki_floats(c, t->a, 0, 0, 0);
    c->desc.sgd.lr = 1e-3f, c->desc.sgd.momentum = 0.9f;
  }
  if (t->op == MLK_OP_ADAMW) {
    c->desc.adamw.param = x, c->desc.adamw.grad = y, c->desc.adamw.step = 1, c->desc.adamw.lr = 1e-3f;
    c->desc.adamw.m = mlki_floats(c, t->a, 0, 0, 0), c->desc.adamw.v = mlki_floats(c, t->a, 0, 0, 0);
  }
}

static void mlki_trial_pool(mlki_calibrator *c, const mlki_trial *t) {
  const int last = t->flags & 1;
  const mlk_tensor x = mlki_images(c, t->a, t->b, t->c, last);
  const mlk_tensor y = mlki_images(c, t->a, t->b, (t->c - 1) / 2 + 1, last);
  mlk_conv_geometry g;
  memset(&g, 0, sizeof g);
  g.stride[0] = g.stride[1] = 2;
  g.pad_before[0] = g.pad_before[1] = g.pad_after[0] = g.pad_after[1] = 1;
  if (t->op == MLK_OP_POOL) {
    mlk_pool_desc *d = &c->desc.pool;
    d->x = x, d->y = y, d->window[0] = d->window[1] = 3, d->geometry = g;
    if (t->flags & 2) {
      mlk_tensor indices = mlki_trial_operand(c, MLK_I64, y.shape[0], y.shape[1], y.shape[2], y.shape[3]);
      memcpy(indices.stride, y.stride, sizeof indices.stride);
      d->indices = indices;
    }
  } else {
    mlk_pool_grad_desc *d = &c->desc.pool_grad;
    d->kind = MLK_POOL_AVERAGE, d->dx = x, d->dy = y, d->window[0] = d->window[1] = 3, d->geometry = g;
  }
}

static void mlki_trial_search(mlki_calibrator *c, const mlki_trial *t) {
  const mlk_tensor queries = mlki_floats(c, t->a, t->c, 0, 0), base = mlki_floats(c, t->b, t->c, 0, 0);
  const mlk_metric metric = t->flags & 1 ? MLK_INNER_PRODUCT : MLK_L2SQ;
  if (t->op == MLK_OP_KNN) {
    c->desc.knn.queries = queries, c->desc.knn.base = base, c->desc.knn.k = t->d, c->desc.knn.metric = metric;
    c->desc.knn.ids = mlki_trial_operand(c, MLK_I64, t->a, t->d, 0, 0);
    c->desc.knn.distances = mlki_floats(c, t->a, t->d, 0, 0);
  } else {
    c->desc.distances.queries = queries, c->desc.distances.base = base, c->desc.distances.metric = metric;
    c->desc.distances.out = mlki_floats(c, t->a, t->b, 0, 0);
  }
}

static void mlki_trial_matmul(mlki_calibrator *c, const mlki_trial *t) {
  mlk_matmul_desc *d = &c->desc.matmul;
  if (t->d) {
    d->a = mlki_values(c, t->d, t->a, t->c, 0), d->b = mlki_values(c, t->d, t->c, t->b, 0);
    d->d = mlki_values(c, t->d, t->a, t->b, 0);
  } else {
    d->a = t->flags & 2 ? mlk_transposed(mlki_values(c, t->c, t->a, 0, 0)) : mlki_values(c, t->a, t->c, 0, 0);
    d->b = t->flags & 1 ? mlk_transposed(mlki_values(c, t->b, t->c, 0, 0)) : mlki_values(c, t->c, t->b, 0, 0);
    d->d = mlki_values(c, t->a, t->b, 0, 0);
  }
}

static int mlki_trial_16_bits(const mlki_trial *t) { /* other operators' flags mean something else */
  switch (t->op) {
  case MLK_OP_MATMUL:
  case MLK_OP_CONV:
  case MLK_OP_CONV_GRAD_INPUT:
  case MLK_OP_CONV_GRAD_WEIGHTS:
  case MLK_OP_ATTENTION:
  case MLK_OP_ATTENTION_GRAD: return (t->flags & MLKI_TRIAL_BF16) != 0;
  default: return 0;
  }
}

/* The descriptor of trial t, with operands from byte start of the block on. */
static void mlki_trial_make(mlki_calibrator *c, const mlki_trial *t, int64_t start) {
  memset(&c->desc, 0, sizeof c->desc);
  c->start = start, c->used = 0;
  c->dtype = mlki_trial_16_bits(t) ? MLK_BF16 : MLK_F32;
  switch (t->op) {
  case MLK_OP_MATMUL: mlki_trial_matmul(c, t); break;
  case MLK_OP_CONV:
  case MLK_OP_CONV_GRAD_INPUT:
  case MLK_OP_CONV_GRAD_WEIGHTS: mlki_trial_conv(c, t); break;
  case MLK_OP_ATTENTION:
  case MLK_OP_ATTENTION_GRAD: mlki_trial_attention(c, t); break;
  case MLK_OP_ATTENTION_MERGE:
    c->desc.merge.parts = mlki_with_one(mlki_floats(c, t->a, t->b * t->c, t->d, t->e), 1);
    c->desc.merge.parts_lse = mlki_with_one(mlki_floats(c, t->a, t->b * t->c, t->d, 0), 1);
    c->desc.merge.out = mlki_with_one(mlki_floats(c, t->b * t->c, t->d, t->e, 0), 0);
    break;
  case MLK_OP_KNN:
  case MLK_OP_DISTANCES: mlki_trial_search(c, t); break;
  case MLK_OP_AVERAGE: mlki_trial_average(c, t); break;
  case MLK_OP_REDUCE:
    c->desc.reduce.x = mlki_floats(c, t->a, t->b, 0, 0);
    c->desc.reduce.out = mlki_floats(c, t->flags ? t->b : t->a, 0, 0, 0);
    c->desc.reduce.axes = t->flags ? 1u : 2u;
    break;
  case MLK_OP_POOL:
  case MLK_OP_POOL_GRAD: mlki_trial_pool(c, t); break;
  case MLK_OP_EMBEDDING:
  case MLK_OP_EMBEDDING_GRAD: {
    const mlk_tensor ids = mlki_trial_operand(c, MLK_I64, t->a, 0, 0, 0), rows = mlki_floats(c, t->a, t->c, 0, 0);
    const mlk_tensor table = mlki_floats(c, t->b, t->c, 0, 0);
    if (t->op == MLK_OP_EMBEDDING)
      c->desc.embedding.ids = ids, c->desc.embedding.out = rows, c->desc.embedding.table = table;
    else
      c->desc.embedding_grad.ids = ids, c->desc.embedding_grad.dout = rows, c->desc.embedding_grad.dtable = table;
    break;
  }
  case MLK_OP_ROTARY:
    c->desc.rotary.x = mlki_floats(c, t->a, t->b, t->c, 0), c->desc.rotary.y = mlki_floats(c, t->a, t->b, t->c, 0);
    break;
  case MLK_OP_MAP:
  case MLK_OP_CLIP_NORM:
  case MLK_OP_SGD:
  case MLK_OP_ADAMW: mlki_trial_elements(c, t); break;
  default: mlki_trial_rows(c, t); break;
  }
}

/* The call that the descriptor says, or its plan. */
static mlk_status mlki_trial_call(mlki_calibrator *c, mlk_op op, mlk_plan *plan) {
#define MLKI_TRIAL(OP, name, desc_)                                                                                    \
  case MLK_OP_##OP: return plan ? mlk_##name##_plan(c->ctx, &c->desc.desc_, plan) : mlk_##name(c->ctx, &c->desc.desc_)
  switch (op) {
    MLKI_TRIAL(MATMUL, matmul, matmul);
    MLKI_TRIAL(CONV, conv, conv);
    MLKI_TRIAL(CONV_GRAD_INPUT, conv_grad_input, grad_input);
    MLKI_TRIAL(CONV_GRAD_WEIGHTS, conv_grad_weights, grad_weights);
    MLKI_TRIAL(ATTENTION, attention, attention);
    MLKI_TRIAL(ATTENTION_GRAD, attention_grad, attention_grad);
    MLKI_TRIAL(ATTENTION_MERGE, attention_merge, merge);
    MLKI_TRIAL(KNN, knn, knn);
    MLKI_TRIAL(DISTANCES, distances, distances);
    MLKI_TRIAL(AVERAGE, average, average);
    MLKI_TRIAL(MAP, map, map);
    MLKI_TRIAL(REDUCE, reduce, reduce);
    MLKI_TRIAL(CLIP_NORM, clip_norm, clip);
    MLKI_TRIAL(SGD, sgd, sgd);
    MLKI_TRIAL(ADAMW, adamw, adamw);
    MLKI_TRIAL(POOL, pool, pool);
    MLKI_TRIAL(POOL_GRAD, pool_grad, pool_grad);
    MLKI_TRIAL(SOFTMAX, softmax, softmax);
    MLKI_TRIAL(SOFTMAX_GRAD, softmax_grad, softmax_grad);
    MLKI_TRIAL(CROSS_ENTROPY, cross_entropy, cross_entropy);
    MLKI_TRIAL(NORM, norm, norm);
    MLKI_TRIAL(NORM_GRAD, norm_grad, norm_grad);
    MLKI_TRIAL(EMBEDDING, embedding, embedding);
    MLKI_TRIAL(EMBEDDING_GRAD, embedding_grad, embedding_grad);
    MLKI_TRIAL(ROTARY, rotary, rotary);
  default: return MLK_ERR_ARGUMENT;
  }
#undef MLKI_TRIAL
}

static int mlki_trial_weights_packed(const mlki_trial *t) {
  return (t->op == MLK_OP_MATMUL || t->op == MLK_OP_CONV) && (t->flags & 8);
}

/* Lets the call of the descriptor take its weights packed, of which so far only the size is known. */
static mlk_status mlki_trial_packs(mlki_calibrator *c, const mlki_trial *t) {
  mlk_tensor *weights = t->op == MLK_OP_MATMUL ? &c->desc.matmul.b : &c->desc.conv.w;
  mlk_status status;
  c->weights = *weights;
  status = t->op == MLK_OP_MATMUL ? mlk_matmul_pack(c->ctx, *weights, NULL, 0, &c->packed)
                                  : mlk_conv_pack(c->ctx, &c->desc.conv, NULL, 0, &c->packed);
  if (status != MLK_OK) return status;
  c->panels = mlki_trial_operand(c, MLK_U8, (int64_t)c->packed.bytes, 0, 0, 0);
  c->packed.data = c->panels.data;
  memset(weights, 0, sizeof *weights);
  if (t->op == MLK_OP_MATMUL) c->desc.matmul.packed_b = &c->packed;
  if (t->op == MLK_OP_CONV) c->desc.conv.packed_w = &c->packed;
  return MLK_OK;
}

static mlk_status mlki_trial_pack(mlki_calibrator *c, mlk_op op) {
  mlk_conv_desc conv = c->desc.conv;
  if (op == MLK_OP_MATMUL) return mlk_matmul_pack(c->ctx, c->weights, c->panels.data, c->packed.bytes, &c->packed);
  conv.w = c->weights, conv.packed_w = NULL;
  return mlk_conv_pack(c->ctx, &conv, c->panels.data, c->packed.bytes, &c->packed);
}

/* Values in (0, 1) for all that the trial reads, in every copy of its operands; ids and labels where it has them. */
static mlk_status mlki_trial_fill(mlki_calibrator *c, const mlki_trial *t, int64_t stride, int64_t copies) {
  const int64_t chunk = (int64_t)sizeof(float) * MLKI_CALIBRATE_PATTERN, end = stride * copies;
  const mlk_tensor *ids = t->op == MLK_OP_CROSS_ENTROPY    ? &c->desc.cross_entropy.labels
                          : t->op == MLK_OP_EMBEDDING      ? &c->desc.embedding.ids
                          : t->op == MLK_OP_EMBEDDING_GRAD ? &c->desc.embedding_grad.ids
                                                           : NULL;
  mlk_status status = MLK_OK;
  int64_t at, i;
  for (at = 0; at < end && status == MLK_OK; at += chunk)
    status = mlk_copy(c->ctx, c->memory + at, c->pattern, (uint64_t)mlki_min(chunk, end - at));
  if (!ids) return status;
  for (i = 0; i < t->a; i++) c->ids[i] = i * 7919 % t->b;
  for (i = 0; i < copies && status == MLK_OK; i++) {
    mlki_trial_make(c, t, i * stride);
    status = mlk_copy(c->ctx, ids->data, c->ids, (uint64_t)t->a * sizeof *c->ids);
  }
  return status;
}

/* Seconds of one of so many calls in turn, operands from copy *copy on. */
static mlk_status mlki_trial_run(mlki_calibrator *c, const mlki_trial *t, int64_t stride, int64_t copies, int64_t calls,
                                 int64_t *copy, double *seconds) {
  const double start = mlki_seconds();
  mlk_status status = MLK_OK;
  int64_t i;
  for (i = 0; i < calls && status == MLK_OK; i++) {
    if (copies > 1) mlki_trial_make(c, t, (*copy)++ % copies * stride);
    status = mlki_trial_call(c, t->op, NULL);
  }
  if (status == MLK_OK) status = mlk_sync(c->ctx);
  *seconds = (mlki_seconds() - start) / (double)calls;
  return status;
}

/* The median time of a call, after one that is not counted unless it was late. */
static mlk_status mlki_trial_time(mlki_calibrator *c, const mlki_trial *t, double *median) {
  const int64_t stride = (c->used + 4095) / 4096 * 4096;
  const int decodes = t->op == MLK_OP_ATTENTION && t->c == 1; /* its keys are read once in a model's step */
  const int packs = mlki_trial_weights_packed(t), far = decodes || (!packs && c->used > MLKI_CALIBRATE_NEAR);
  const int64_t copies = far ? c->bytes / stride : 1;
  double sample[MLKI_CALIBRATE_SAMPLES];
  int64_t copy = 0, calls = 1;
  mlk_status status = mlki_trial_fill(c, t, stride, copies);
  int i, j;
  if (copies > 1) mlki_trial_make(c, t, 0);
  if (packs && status == MLK_OK) status = mlki_trial_pack(c, t->op);
  if (status == MLK_OK) status = mlki_trial_run(c, t, stride, copies, 1, &copy, median);
  if (status != MLK_OK || *median > MLKI_CALIBRATE_LATE) return status;
  for (; status == MLK_OK && *median * (double)calls < MLKI_CALIBRATE_SAMPLE; calls *= 2)
    status = mlki_trial_run(c, t, stride, copies, calls, &copy, median);
  for (i = 0; i < MLKI_CALIBRATE_SAMPLES && status == MLK_OK; i++) {
    double seconds;
    status = mlki_trial_run(c, t, stride, copies, calls, &copy, &seconds);
    for (j = i; j > 0 && sample[j - 1] > seconds; j--) sample[j] = sample[j - 1];
    sample[j] = seconds;
  }
  if (status == MLK_OK) *median = sample[MLKI_CALIBRATE_SAMPLES / 2];
  return status;
}

/* Whether the call fits the block and the workspace and does not take long; then its plan and its roofline. */
static mlk_status mlki_trial_wanted(mlki_calibrator *c, const mlki_trial *t, mlk_plan *plan, int *wanted) {
  mlk_context *ctx = c->ctx;
  mlk_status status;
  *wanted = 0;
  if (mlki_trial_16_bits(t) && !ctx->backend) return MLK_OK;
  mlki_trial_make(c, t, 0);
  if (mlki_trial_weights_packed(t) && (status = mlki_trial_packs(c, t)) != MLK_OK)
    return status == MLK_ERR_UNSUPPORTED ? MLK_OK : status; /* the reference does not pack */
  if (c->used > c->bytes) return MLK_OK;
  if ((status = mlki_trial_call(c, t->op, plan)) != MLK_OK) return status;
  *wanted = plan->seconds > 0.0 && plan->seconds < (ctx->reference ? 1e-4 : MLKI_CALIBRATE_LONG);
  if (ctx->growth == MLK_FIXED &&
      plan->workspace_bytes > (ctx->backend ? ctx->device_workspace_bytes : ctx->workspace_bytes))
    *wanted = 0;
  return MLK_OK;
}

/* All trials, into ctx->calibration, whose points count only when all are there. */
static mlk_status mlki_calibrate(mlki_calibrator *c) {
  mlk_calibration *to = &c->ctx->calibration;
  int32_t count = 0;
  size_t i;
  for (i = 0; i < sizeof mlki_trials / sizeof *mlki_trials && count < MLK_CALIBRATION_POINTS; i++) {
    const mlki_trial *t = &mlki_trials[i];
    mlk_plan plan;
    double seconds = 0.0;
    int wanted;
    mlk_status status = mlki_trial_wanted(c, t, &plan, &wanted);
    if (status == MLK_OK && wanted) status = mlki_trial_time(c, t, &seconds);
    if (status != MLK_OK) return status;
    if (!wanted || seconds <= 0.0) continue;
    c->points[count] = mlki_calibration_point(t->op, &c->desc, &plan);
    c->points[count++].factor = (float)log2(seconds / plan.seconds);
  }
  memcpy(to->points, c->points, (size_t)count * sizeof *c->points);
  to->count = count;
  return MLK_OK;
}

/* The host's arrays and the block; the values are floats in (0, 1) whose halves are both a bf16 there. */
#define MLKI_CALIBRATE_HOST                                                                                            \
  (MLKI_CALIBRATE_LISTS * sizeof(mlk_tensor) + MLKI_CALIBRATE_IDS * sizeof(int64_t) +                                  \
   MLK_CALIBRATION_POINTS * sizeof(mlk_calibration_point) + MLKI_CALIBRATE_PATTERN * sizeof(float))
static mlk_status mlki_calibrator_open(mlki_calibrator *c, void **host) {
  uint32_t random = 1, i;
  void *memory;
  mlk_status status;
  c->bytes = MLKI_PROBE_BYTES;
  if ((status = mlk_alloc(c->ctx, (uint64_t)c->bytes, &memory)) != MLK_OK) return status;
  c->memory = (char *)memory;
  *host = mlki_alloc(c->ctx, MLKI_CALIBRATE_HOST);
  if (!*host)
    return mlki_fail(c->ctx, MLK_ERR_MEMORY, "calibrate: the allocator could not give %llu bytes",
                     (unsigned long long)MLKI_CALIBRATE_HOST);
  c->list = (mlk_tensor *)*host;
  c->ids = (int64_t *)(void *)(c->list + MLKI_CALIBRATE_LISTS);
  c->points = (mlk_calibration_point *)(void *)(c->ids + MLKI_CALIBRATE_IDS);
  c->pattern = (float *)(void *)(c->points + MLK_CALIBRATION_POINTS);
  for (i = 0; i < MLKI_CALIBRATE_PATTERN; i++) {
    uint32_t half, word;
    random = random * 1664525u + 1013904223u;  /* Numerical Recipes' generator */
    half = 0x3c00u + (random >> 16) % 0x0380u; /* bf16 of 2^-7 to 1 */
    word = half << 16 | half;
    memcpy(&c->pattern[i], &word, sizeof word);
  }
  return MLK_OK;
}

/* What a calibration is of: contexts that differ in it refuse it. */
static mlk_status mlki_calibration_head(mlk_context *ctx, mlk_calibration *head) {
  mlk_info info;
  mlk_status status;
  memset(&info, 0, sizeof info);
  if ((status = mlk_get_info(ctx, &info)) != MLK_OK) return status;
  head->version = MLK_VERSION;
  head->threads = ctx->backend ? 1 : info.threads;
  memset(head->backend, 0, sizeof head->backend), memset(head->isa, 0, sizeof head->isa);
  snprintf(head->backend, sizeof head->backend, "%s", info.backend);
  snprintf(head->isa, sizeof head->isa, "%s", info.isa);
  return MLK_OK;
}

/* >>public --------------------------------------------------------------------------------------------------------- */

MLK_API int mlk_version(void) { return MLK_VERSION; }

MLK_API const char *mlk_status_name(mlk_status status) {
  return (int)status >= 0 && status < MLK_STATUS_COUNT ? mlki_status_names[status] : "unknown";
}

MLK_API const char *mlk_isa_name(mlk_isa isa) {
  return (int)isa >= 0 && isa < MLK_ISA_COUNT ? mlki_isa_names[isa] : "unknown";
}

MLK_API int mlk_isa_available(mlk_isa isa) { return mlki_find_row(isa, mlki_isa_mask()) != NULL; }

/* The checks of mlk_open, on a context that lives on the stack until they are passed. */
static mlk_status mlki_open_check(mlk_context *ctx, const mlk_context_desc *desc) {
  const unsigned mask = mlki_isa_mask();
  ctx->log = desc->log, ctx->log_user = desc->log_user;
  if ((desc->allocator.alloc == NULL) != (desc->allocator.free == NULL))
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "allocator: alloc and free must both be set or both be NULL");
  if (desc->threads < 0 || desc->threads > 1024)
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "threads: is %d, but must be 0 to 1024", desc->threads);
  if (desc->parallel.run && (desc->parallel.workers < 1 || desc->parallel.workers > 1024))
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "parallel.workers: is %d, but must be 1 to 1024", desc->parallel.workers);
  if ((int)desc->numerics < 0 || desc->numerics > MLK_FAST)
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "numerics: is %d, but must be MLK_STRICT or MLK_FAST", (int)desc->numerics);
  if ((int)desc->growth < 0 || desc->growth > MLK_FIXED)
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "growth: is %d, but must be MLK_GROWS or MLK_FIXED", (int)desc->growth);
  if ((int)desc->isa < 0 || desc->isa >= MLK_ISA_COUNT)
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "isa: is %d, but must be 0 to %d", (int)desc->isa, MLK_ISA_COUNT - 1);
  if ((int)desc->device < 0 || desc->device >= MLK_DEVICE_COUNT)
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "device: is %d, but must be 0 to %d", (int)desc->device,
                     MLK_DEVICE_COUNT - 1);
  if ((int)desc->host_arrays < 0 || desc->host_arrays >= MLK_HOST_ARRAYS_COUNT)
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "host_arrays: is %d, but must be 0 to %d", (int)desc->host_arrays,
                     MLK_HOST_ARRAYS_COUNT - 1);
  ctx->row = mlki_find_row(desc->isa, mask);
  if (!ctx->row)
    return mlki_fail(ctx, MLK_ERR_UNSUPPORTED, "isa: %s is not in this build or does not run on this machine",
                     mlk_isa_name(desc->isa));
  ctx->reference = desc->isa == MLK_ISA_REFERENCE;
  ctx->allocator = desc->allocator;
  if (!ctx->allocator.alloc) ctx->allocator.alloc = mlki_default_alloc, ctx->allocator.free = mlki_default_free;
  ctx->parallel = desc->parallel;
  ctx->numerics = desc->numerics;
  ctx->growth = MLK_GROWS;
  ctx->l2_bytes = mlki_l2_bytes();
  if (ctx->l2_bytes < 128 << 10 || ctx->l2_bytes > 64 << 20) ctx->l2_bytes = 512 << 10; /* unknown or absurd */
  ctx->threads = desc->threads;
  if (ctx->parallel.run && (ctx->threads == 0 || ctx->threads > ctx->parallel.workers))
    ctx->threads = ctx->parallel.workers;
#if MLKI_OPENMP
  if (ctx->threads == 0) ctx->threads = (int)mlki_max(mlki_min(omp_get_max_threads(), 1024), 1);
#endif
  if (ctx->threads == 0) ctx->threads = 1;
  return MLK_OK;
}

/* Finds the backend that the descriptor asks for and opens its device; none and no error: the CPU. */
static mlk_status mlki_open_device(mlk_context *ctx, const mlk_context_desc *desc) {
  int i;
  mlk_status status;
  for (i = 0; i < MLK_MAX_BACKENDS && desc->device != MLK_DEVICE_CPU && !ctx->backend; i++) {
    const mlk_backend *b = desc->backends[i];
    if (b && b->version != MLK_VERSION)
      return mlki_fail(ctx, MLK_ERR_UNSUPPORTED, "backends[%d]: %s is of version %d, but mlk.h is of %d", i, b->name,
                       b->version, MLK_VERSION);
    if (b && (desc->figures || b->devices() > 0)) ctx->backend = b;
  }
  if (!ctx->backend && desc->device == MLK_DEVICE_BACKEND)
    return mlki_fail(ctx, MLK_ERR_UNSUPPORTED, "device: MLK_DEVICE_BACKEND, but no backend has a device");
  if (!ctx->backend) return MLK_OK;
  ctx->shared_memory = desc->shared_memory;
  if (desc->isa == MLK_ISA_REFERENCE)
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "isa: the reference runs on the CPU only; set device to MLK_DEVICE_CPU");
  status = ctx->backend->open(&ctx->device, desc, ctx->error);
  if (status != MLK_OK) ctx->device = NULL;
  return mlki_backend_said(ctx, status);
}

/* An earlier calibration counts when it is of the same library, machine's row and thread count. */
static mlk_status mlki_open_calibration(mlk_context *ctx, const mlk_calibration *from) {
  mlk_calibration head;
  mlk_status status = mlki_calibration_head(ctx, &head);
  if (status) return status;
  if (from->version != MLK_VERSION || from->count < 0 || from->count > MLK_CALIBRATION_POINTS)
    return mlki_fail(ctx, MLK_ERR_ARGUMENT,
                     "calibration: is of version %d with %d points, but must be of %d with at most %d",
                     (int)from->version, (int)from->count, MLK_VERSION, MLK_CALIBRATION_POINTS);
  if (memcmp(from->backend, head.backend, sizeof head.backend) != 0 ||
      memcmp(from->isa, head.isa, sizeof head.isa) != 0 || from->threads != head.threads)
    return mlki_fail(ctx, MLK_ERR_ARGUMENT,
                     "calibration: is of %.15s, %.15s, threads %d, but this context is of %s, %s, threads %d",
                     from->backend, from->isa, (int)from->threads, head.backend, head.isa, (int)head.threads);
  if (!(from->ceilings.flops_1 > 0 && from->ceilings.flops_all > 0 && from->ceilings.read_1 > 0 &&
        from->ceilings.read_all > 0))
    return mlki_fail(ctx, MLK_ERR_ARGUMENT,
                     "calibration: its ceilings are %g and %g flops, %g and %g bytes a second, "
                     "but must be positive",
                     from->ceilings.flops_1, from->ceilings.flops_all, from->ceilings.read_1, from->ceilings.read_all);
  ctx->calibration = *from;
  if (!ctx->backend) return MLK_OK;
  status = ctx->backend->measure(ctx->device, &from->ceilings, &ctx->calibration.ceilings, ctx->error);
  return mlki_backend_said(ctx, status);
}

MLK_API mlk_status mlk_open(mlk_context **out, const mlk_context_desc *desc) {
  mlk_context_desc defaults;
  mlk_context local, *ctx;
  mlk_status status;
  if (!out) return MLK_ERR_ARGUMENT;
  *out = NULL;
  memset(&defaults, 0, sizeof defaults);
  memset(&local, 0, sizeof local);
  if (!desc) desc = &defaults;
  status = mlki_open_check(&local, desc);
  if (status) return status;
  ctx = (mlk_context *)mlki_alloc(&local, sizeof local);
  if (!ctx)
    return mlki_fail(&local, MLK_ERR_MEMORY, "context: the allocator could not give %llu bytes",
                     (unsigned long long)sizeof local);
  *ctx = local;
  status = mlki_open_device(ctx, desc);
  if (status == MLK_OK && desc->calibration) status = mlki_open_calibration(ctx, desc->calibration);
  if (status == MLK_OK) status = mlk_reserve(ctx, desc->workspace_bytes, desc->growth);
  if (status) {
    mlk_close(ctx);
    return status;
  }
  *out = ctx;
  return MLK_OK;
}

MLK_API void mlk_close(mlk_context *ctx) {
  if (!ctx) return;
  if (ctx->device_workspace) ctx->backend->free(ctx->device, ctx->device_workspace);
  if (ctx->device) ctx->backend->close(ctx->device);
  mlki_free(ctx, ctx->workspace, ctx->workspace_bytes);
  mlki_free(ctx, ctx, sizeof *ctx);
}

MLK_API const char *mlk_last_error(const mlk_context *ctx) { return ctx ? ctx->error : "ctx: is NULL"; }

MLK_API mlk_status mlk_get_info(const mlk_context *ctx, mlk_info *info) {
  if (!ctx || !info) return MLK_ERR_ARGUMENT;
  info->backend = "cpu";
  info->isa = mlki_isa_names[ctx->reference ? MLK_ISA_REFERENCE : ctx->row->isa];
  info->threads = ctx->threads;
  info->openmp = MLKI_OPENMP && !ctx->parallel.run;
  info->workspace_bytes = ctx->workspace_bytes;
  info->ceilings = ctx->calibration.ceilings;
  info->device = "";
  if (ctx->backend) {
    char error[MLK_ERROR_BYTES];
    info->backend = ctx->backend->name, info->openmp = 0, info->workspace_bytes = ctx->device_workspace_bytes;
    return ctx->backend->info(ctx->device, info, error);
  }
  return MLK_OK;
}

MLK_API mlk_status mlk_reserve(mlk_context *ctx, uint64_t bytes, mlk_growth growth) {
  mlk_status status;
  if (!ctx) return MLK_ERR_ARGUMENT;
  if ((int)growth < 0 || growth > MLK_FIXED)
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "growth: is %d, but must be MLK_GROWS or MLK_FIXED", (int)growth);
  ctx->growth = MLK_GROWS;
  status = ctx->backend ? mlki_backend_workspace(ctx, bytes) : mlki_workspace(ctx, bytes);
  ctx->growth = growth;
  return status;
}

MLK_API mlk_status mlk_alloc(mlk_context *ctx, uint64_t bytes, void **memory) {
  if (!ctx) return MLK_ERR_ARGUMENT;
  if (!memory) return mlki_fail(ctx, MLK_ERR_ARGUMENT, "memory: is NULL");
  *memory = NULL;
  if (bytes == 0) return mlki_fail(ctx, MLK_ERR_ARGUMENT, "bytes: is 0, but must be at least 1");
  if (ctx->backend)
    return mlki_backend_said(ctx, ctx->backend->alloc(ctx->device, bytes, ctx->shared_memory, memory, ctx->error));
  *memory = mlki_alloc(ctx, bytes);
  if (*memory) return MLK_OK;
  return mlki_fail(ctx, MLK_ERR_MEMORY, "bytes: the allocator could not give %llu", (unsigned long long)bytes);
}

MLK_API void mlk_free(mlk_context *ctx, void *memory, uint64_t bytes) {
  if (!ctx || !memory) return;
  if (ctx->backend)
    ctx->backend->free(ctx->device, memory);
  else
    mlki_free(ctx, memory, bytes);
}

MLK_API mlk_status mlk_copy(mlk_context *ctx, void *to, const void *from, uint64_t bytes) {
  if (!ctx) return MLK_ERR_ARGUMENT;
  if (bytes && (!to || !from)) return mlki_fail(ctx, MLK_ERR_ARGUMENT, "%s: is NULL", to ? "from" : "to");
  if (bytes > SIZE_MAX / 2)
    return mlki_fail(ctx, MLK_ERR_SIZE, "bytes: is %llu, more than memory can hold", (unsigned long long)bytes);
  if (ctx->backend && bytes)
    return mlki_backend_said(ctx, ctx->backend->copy(ctx->device, to, from, bytes, ctx->error));
  if (bytes) memmove(to, from, (size_t)bytes);
  return MLK_OK;
}

MLK_API mlk_status mlk_sync(mlk_context *ctx) {
  if (!ctx) return MLK_ERR_ARGUMENT;
  return ctx->backend ? mlki_backend_said(ctx, ctx->backend->sync(ctx->device, ctx->error)) : MLK_OK;
}

MLK_API mlk_status mlk_measure(mlk_context *ctx, mlk_ceilings *ceilings) {
  mlk_status status;
  if (!ctx) return MLK_ERR_ARGUMENT;
  status = ctx->backend ? mlki_backend_said(
                              ctx, ctx->backend->measure(ctx->device, NULL, &ctx->calibration.ceilings, ctx->error))
                        : mlki_measure(ctx);
  if (status == MLK_OK && ceilings) *ceilings = ctx->calibration.ceilings;
  return status;
}

MLK_API mlk_status mlk_calibrate(mlk_context *ctx, mlk_calibration *calibration) {
  mlki_calibrator c;
  mlk_calibration head;
  void *host = NULL;
  int32_t before;
  mlk_status status;
  if (!ctx) return MLK_ERR_ARGUMENT;
  memset(&c, 0, sizeof c);
  c.ctx = ctx;
  if ((status = mlki_calibration_head(ctx, &head)) != MLK_OK || (status = mlk_measure(ctx, NULL)) != MLK_OK)
    return status;
  before = ctx->calibration.count, ctx->calibration.count = MLKI_CALIBRATING;
  status = mlki_calibrator_open(&c, &host);
  if (status == MLK_OK) status = mlki_calibrate(&c);
  mlki_free(ctx, host, MLKI_CALIBRATE_HOST);
  if (c.memory) mlk_free(ctx, c.memory, (uint64_t)c.bytes);
  if (status != MLK_OK) {
    ctx->calibration.count = before;
    return status;
  }
  head.ceilings = ctx->calibration.ceilings, head.count = ctx->calibration.count, head.reserved = 0;
  memcpy(head.points, ctx->calibration.points, sizeof head.points);
  ctx->calibration = head;
  if (calibration) *calibration = head;
  return MLK_OK;
}

/* The same call with B as the tensor that a device's handle is. */
static mlk_status mlki_matmul_unpack(mlk_context *ctx, const mlk_matmul_desc *desc, mlk_matmul_desc *plain) {
  *plain = *desc;
  if (desc->b.data) return mlki_fail(ctx, MLK_ERR_ARGUMENT, "b: given together with packed_b; give one of them");
  plain->packed_b = NULL;
  return mlki_backend_packed(ctx, "packed_b", desc->packed_b, &plain->b);
}

MLK_API mlk_status mlk_matmul_plan(mlk_context *ctx, const mlk_matmul_desc *desc, mlk_plan *plan) {
  mlki_matmul mm;
  mlk_status status;
  if (!ctx) return MLK_ERR_ARGUMENT;
  if (!plan) return mlki_fail(ctx, MLK_ERR_ARGUMENT, "plan: is NULL");
  if (ctx->backend && desc && desc->packed_b) {
    mlk_matmul_desc plain;
    if ((status = mlki_matmul_unpack(ctx, desc, &plain)) != MLK_OK) return status;
    return mlk_matmul_plan(ctx, &plain, plan);
  }
  if ((status = mlki_matmul_prepare(ctx, desc, 0, &mm)) != MLK_OK) return status;
  if (ctx->backend) return mlki_backend_plan(ctx, MLK_OP_MATMUL, desc, mm.flops, mm.bytes, plan);
  mlki_fill_plan(ctx, plan, MLK_OP_MATMUL, desc, mm.flops, mm.bytes, 4 * (uint64_t)(mm.floats * mm.tasks), mm.tasks,
                 mlki_matmul_variant_names[mm.variant]);
  return MLK_OK;
}

MLK_API mlk_status mlk_matmul(mlk_context *ctx, const mlk_matmul_desc *desc) {
  if (!ctx) return MLK_ERR_ARGUMENT;
  if (ctx->backend && desc && desc->packed_b) {
    mlk_matmul_desc plain;
    const mlk_status status = mlki_matmul_unpack(ctx, desc, &plain);
    return status ? status : mlki_matmul_run(ctx, &plain, 1);
  }
  return mlki_matmul_tiny(ctx, desc) ? MLK_OK : mlki_matmul_run(ctx, desc, 1);
}

MLK_API mlk_status mlk_matmul_pack(mlk_context *ctx, mlk_tensor b, void *buffer, uint64_t buffer_bytes,
                                   mlk_packed *packed) {
  mlki_extent extent;
  mlki_mat mat;
  mlk_status status;
  int64_t k, n, nr, bytes;
  if (!ctx) return MLK_ERR_ARGUMENT;
  if (!packed) return mlki_fail(ctx, MLK_ERR_ARGUMENT, "packed: is NULL");
  if ((status = mlki_check_real(ctx, "b", &b, 2, 2, &extent)) != MLK_OK) return status;
  if ((status = mlki_broadcast(ctx, "b", &b, b.shape, 2, &mat)) != MLK_OK) return status;
  if (ctx->backend) return mlki_backend_pack(ctx, &b, buffer, buffer_bytes, packed);
  k = b.shape[0], n = b.shape[1], nr = ctx->row->nr;
  if (n > INT64_MAX - nr || mlki_mul_overflows(mlki_round_up(n, nr), k, &bytes) || mlki_mul_overflows(bytes, 4, &bytes))
    return mlki_fail(ctx, MLK_ERR_SIZE, "b: %lld x %lld packed does not fit in 63 bits", (long long)k, (long long)n);
  if (buffer && (uint64_t)bytes > buffer_bytes)
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "buffer_bytes: is %llu, but must be at least %lld",
                     (unsigned long long)buffer_bytes, (long long)bytes);
  if ((uintptr_t)buffer % MLKI_ALIGN)
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "buffer: must be aligned to %d bytes", MLKI_ALIGN);
  if (buffer) mlki_matmul_pack_columns(ctx->row, (float *)buffer, &mat, 0, k, 0, n);
  memset(packed, 0, sizeof *packed);
  packed->data = buffer;
  packed->bytes = (uint64_t)bytes;
  packed->k = k, packed->n = n;
  packed->dtype = MLK_F32;
  packed->isa = (int32_t)ctx->row->isa;
  packed->panel = (int32_t)nr;
  return MLK_OK;
}

static void mlki_conv_args_of(const mlk_conv_desc *desc, mlki_conv_args *t) {
  memset(t, 0, sizeof *t);
  t->x_name = "x", t->y_name = "y", t->x = desc->x, t->w = desc->w, t->y = desc->y;
  t->bias = desc->bias, t->residual = desc->residual, t->preact = desc->preact;
  t->packed = desc->packed_w, t->alpha = desc->alpha, t->beta = desc->beta, t->activation = desc->activation;
  t->geometry = &desc->geometry;
}

static void mlki_conv_grad_input_args_of(const mlk_conv_grad_input_desc *desc, mlki_conv_args *t) {
  memset(t, 0, sizeof *t);
  t->x_name = "dy", t->y_name = "dx", t->x = desc->dy, t->w = desc->w, t->y = desc->dx;
  t->bias = desc->bias, t->residual = desc->residual, t->preact = desc->preact;
  t->packed = desc->packed_w, t->alpha = desc->alpha, t->beta = desc->beta, t->activation = desc->activation;
  t->geometry = &desc->geometry, t->transposed = 1;
}

/* On a device: the tensor that a handle of weights is, in place of the handle. */
static mlk_status mlki_conv_unpack(mlk_context *ctx, int has_w, const mlk_packed **packed, mlk_tensor *w) {
  const mlk_packed *handle = *packed;
  *packed = NULL;
  if (has_w) return mlki_fail(ctx, MLK_ERR_ARGUMENT, "w: given together with packed_w; give one of them");
  return mlki_backend_packed(ctx, "packed_w", handle, w);
}

/* Bytes of workspace: the panels, unless they are given, then the tasks' parts. */
static uint64_t mlki_conv_workspace(const mlki_conv *cv) {
  const int64_t panels = cv->pack ? mlki_round_up(cv->groups * cv->panel_floats, MLKI_LANES_MAX) : 0;
  return 4 * (uint64_t)(panels + cv->floats * cv->tasks);
}

static mlk_status mlki_conv_plan_of(mlk_context *ctx, mlki_conv_args *t, mlk_op op, const void *desc, mlk_plan *plan) {
  mlki_conv cv;
  mlki_matmul mm;
  mlk_matmul_desc product;
  mlk_packed packed;
  mlk_status status;
  if (!plan) return mlki_fail(ctx, MLK_ERR_ARGUMENT, "plan: is NULL");
  if ((status = mlki_conv_prepare(ctx, t, 0, &cv)) != MLK_OK) return status;
  if (ctx->backend) return mlki_backend_plan(ctx, op, desc, cv.flops, cv.bytes, plan);
  if (mlki_conv_as_matmul(ctx, &cv, t, &packed, &product)) {
    if ((status = mlki_matmul_prepare(ctx, &product, 0, &mm)) != MLK_OK) return status;
    mlki_fill_plan(ctx, plan, op, desc, cv.flops, cv.bytes, 4 * (uint64_t)(mm.floats * mm.tasks), mm.tasks, "matmul");
    return MLK_OK;
  }
  mlki_fill_plan(ctx, plan, op, desc, cv.flops, cv.bytes, mlki_conv_workspace(&cv), cv.tasks,
                 mlki_conv_variant_names[cv.variant]);
  return MLK_OK;
}

static mlk_status mlki_conv_run_of(mlk_context *ctx, mlki_conv_args *t, mlk_op op, const void *desc) {
  mlki_conv cv;
  mlk_matmul_desc product;
  mlk_packed packed;
  mlk_status status;
  if ((status = mlki_conv_prepare(ctx, t, 1, &cv)) != MLK_OK) return status;
  if (ctx->backend) return mlki_backend_run(ctx, op, desc, cv.flops, cv.bytes);
  if (cv.variant == MLKI_CONV_EMPTY) return MLK_OK;
  if (mlki_conv_as_matmul(ctx, &cv, t, &packed, &product)) return mlki_matmul_run(ctx, &product, 0);
  if ((status = mlki_workspace(ctx, mlki_conv_workspace(&cv))) != MLK_OK) return status;
  cv.workspace = (float *)mlki_workspace_base(ctx);
  if (cv.variant == MLKI_CONV_REFERENCE) {
    mlki_conv_reference(&cv);
    return MLK_OK;
  }
  if (cv.pack) {
    mlki_conv_packing packing;
    packing.cv = &cv, packing.to = cv.workspace, packing.tasks = cv.tasks;
    cv.panels = cv.workspace;
    cv.workspace += mlki_round_up(cv.groups * cv.panel_floats, MLKI_LANES_MAX);
    mlki_parallel_for(ctx, packing.tasks, mlki_conv_pack_task, &packing);
  }
  mlki_parallel_for(ctx, cv.tasks, cv.variant >= MLKI_CONV_PLANES ? mlki_conv_band_task : mlki_conv_task, &cv);
  return MLK_OK;
}

static mlk_status mlki_conv_pack_of(mlk_context *ctx, mlki_conv_args *t, void *buffer, uint64_t buffer_bytes,
                                    mlk_packed *packed) {
  mlki_conv cv;
  mlki_conv_packing packing;
  mlk_status status;
  uint64_t bytes;
  int i;
  if (!packed) return mlki_fail(ctx, MLK_ERR_ARGUMENT, "packed: is NULL");
  if (t->packed) return mlki_fail(ctx, MLK_ERR_ARGUMENT, "packed_w: given to a call that packs; give w");
  if (ctx->reference) return mlki_fail(ctx, MLK_ERR_UNSUPPORTED, "isa: the reference does not read packed panels");
  t->alpha = NULL;
  if ((status = mlki_conv_prepare(ctx, t, 0, &cv)) != MLK_OK) return status;
  if (ctx->backend) return mlki_backend_pack(ctx, &t->w, buffer, buffer_bytes, packed);
  if (cv.variant == MLKI_CONV_EMPTY) mlki_conv_form(&cv); /* an empty output has chosen no variant */
  bytes = 4 * (uint64_t)(cv.groups * cv.panel_floats);
  if (buffer && bytes > buffer_bytes)
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "buffer_bytes: is %llu, but must be at least %llu",
                     (unsigned long long)buffer_bytes, (unsigned long long)bytes);
  if ((uintptr_t)buffer % MLKI_ALIGN)
    return mlki_fail(ctx, MLK_ERR_ARGUMENT, "buffer: must be aligned to %d bytes", MLKI_ALIGN);
  packing.cv = &cv, packing.to = (float *)buffer, packing.tasks = cv.tasks;
  if (buffer) mlki_parallel_for(ctx, packing.tasks, mlki_conv_pack_task, &packing);
  memset(packed, 0, sizeof *packed);
  packed->data = buffer;
  packed->bytes = bytes;
  packed->dtype = MLK_F32;
  packed->isa = (int32_t)ctx->row->isa;
  packed->panel = (int32_t)cv.width;
  packed->form = t->transposed ? MLKI_FORM_CONV_TRANSPOSED : MLKI_FORM_CONV;
  packed->variant = (int32_t)(cv.variant >= MLKI_CONV_PLANES ? MLKI_CONV_COLUMNS : cv.variant);
  packed->rank = t->w.rank;
  for (i = 0; i < t->w.rank; i++) packed->shape[i] = t->w.shape[i];
  packed->groups = cv.groups;
  for (i = 0; i < 3 && t->transposed; i++)
    packed->stride[i] = cv.stride[i], packed->dilation[i] = cv.dilation[i], packed->pad[i] = cv.pad[i] % cv.stride[i];
  return MLK_OK;
}

MLK_API mlk_status mlk_conv_plan(mlk_context *ctx, const mlk_conv_desc *desc, mlk_plan *plan) {
  mlki_conv_args t;
  if (!ctx) return MLK_ERR_ARGUMENT;
  if (!desc) return mlki_fail(ctx, MLK_ERR_ARGUMENT, "desc: is NULL");
  if (ctx->backend && desc->packed_w) {
    mlk_conv_desc plain = *desc;
    const mlk_status status = mlki_conv_unpack(ctx, desc->w.data != NULL, &plain.packed_w, &plain.w);
    return status ? status : mlk_conv_plan(ctx, &plain, plan);
  }
  mlki_conv_args_of(desc, &t);
  return mlki_conv_plan_of(ctx, &t, MLK_OP_CONV, desc, plan);
}

MLK_API mlk_status mlk_conv(mlk_context *ctx, const mlk_conv_desc *desc) {
  mlki_conv_args t;
  if (!ctx) return MLK_ERR_ARGUMENT;
  if (!desc) return mlki_fail(ctx, MLK_ERR_ARGUMENT, "desc: is NULL");
  if (ctx->backend && desc->packed_w) {
    mlk_conv_desc plain = *desc;
    const mlk_status status = mlki_conv_unpack(ctx, desc->w.data != NULL, &plain.packed_w, &plain.w);
    return status ? status : mlk_conv(ctx, &plain);
  }
  mlki_conv_args_of(desc, &t);
  return mlki_conv_run_of(ctx, &t, MLK_OP_CONV, desc);
}

MLK_API mlk_status mlk_conv_pack(mlk_context *ctx, const mlk_conv_desc *desc, void *buffer, uint64_t buffer_bytes,
                                 mlk_packed *packed) {
  mlki_conv_args t;
  if (!ctx) return MLK_ERR_ARGUMENT;
  if (!desc) return mlki_fail(ctx, MLK_ERR_ARGUMENT, "desc: is NULL");
  mlki_conv_args_of(desc, &t);
  return mlki_conv_pack_of(ctx, &t, buffer, buffer_bytes, packed);
}

MLK_API mlk_status mlk_conv_grad_input_plan(mlk_context *ctx, const mlk_conv_grad_input_desc *desc, mlk_plan *plan) {
  mlki_conv_args t;
  if (!ctx) return MLK_ERR_ARGUMENT;
  if (!desc) return mlki_fail(ctx, MLK_ERR_ARGUMENT, "desc: is NULL");
  if (ctx->backend && desc->packed_w) {
    mlk_conv_grad_input_desc plain = *desc;
    const mlk_status status = mlki_conv_unpack(ctx, desc->w.data != NULL, &plain.packed_w, &plain.w);
    return status ? status : mlk_conv_grad_input_plan(ctx, &plain, plan);
  }
  mlki_conv_grad_input_args_of(desc, &t);
  return mlki_conv_plan_of(ctx, &t, MLK_OP_CONV_GRAD_INPUT, desc, plan);
}

MLK_API mlk_status mlk_conv_grad_input(mlk_context *ctx, const mlk_conv_grad_input_desc *desc) {
  mlki_conv_args t;
  if (!ctx) return MLK_ERR_ARGUMENT;
  if (!desc) return mlki_fail(ctx, MLK_ERR_ARGUMENT, "desc: is NULL");
  if (ctx->backend && desc->packed_w) {
    mlk_conv_grad_input_desc plain = *desc;
    const mlk_status status = mlki_conv_unpack(ctx, desc->w.data != NULL, &plain.packed_w, &plain.w);
    return status ? status : mlk_conv_grad_input(ctx, &plain);
  }
  mlki_conv_grad_input_args_of(desc, &t);
  return mlki_conv_run_of(ctx, &t, MLK_OP_CONV_GRAD_INPUT, desc);
}

MLK_API mlk_status mlk_conv_grad_input_pack(mlk_context *ctx, const mlk_conv_grad_input_desc *desc, void *buffer,
                                            uint64_t buffer_bytes, mlk_packed *packed) {
  mlki_conv_args t;
  if (!ctx) return MLK_ERR_ARGUMENT;
  if (!desc) return mlki_fail(ctx, MLK_ERR_ARGUMENT, "desc: is NULL");
  mlki_conv_grad_input_args_of(desc, &t);
  return mlki_conv_pack_of(ctx, &t, buffer, buffer_bytes, packed);
}

MLK_API mlk_status mlk_conv_grad_weights_plan(mlk_context *ctx, const mlk_conv_grad_weights_desc *desc,
                                              mlk_plan *plan) {
  mlki_conv_weights gw;
  mlk_status status;
  if (!ctx) return MLK_ERR_ARGUMENT;
  if (!plan) return mlki_fail(ctx, MLK_ERR_ARGUMENT, "plan: is NULL");
  if ((status = mlki_conv_weights_prepare(ctx, desc, 0, &gw)) != MLK_OK) return status;
  if (ctx->backend) return mlki_backend_plan(ctx, MLK_OP_CONV_GRAD_WEIGHTS, desc, gw.cv.flops, gw.cv.bytes, plan);
  mlki_fill_plan(ctx, plan, MLK_OP_CONV_GRAD_WEIGHTS, desc, gw.cv.flops, gw.cv.bytes,
                 4 * (uint64_t)(gw.cv.floats * gw.cv.tasks), gw.cv.tasks, mlki_conv_variant_names[gw.cv.variant]);
  return MLK_OK;
}

/* DBIAS as a reduction of DY, which takes no workspace. */
static mlk_status mlki_conv_bias_prepare(mlk_context *ctx, const mlki_conv_weights *gw, mlki_reduction *r) {
  mlk_reduce_desc sum;
  memset(&sum, 0, sizeof sum);
  sum.op = MLK_SUM;
  sum.x = gw->dy, sum.out = gw->dbias;
  sum.axes = ((1u << gw->dy.rank) - 1u) & ~2u; /* all but the channels */
  sum.beta = &gw->beta;
  return mlki_reduce_prepare(ctx, &sum, 0, 0, r);
}

MLK_API mlk_status mlk_conv_grad_weights(mlk_context *ctx, const mlk_conv_grad_weights_desc *desc) {
  mlki_conv_weights gw;
  mlki_reduction bias;
  mlk_status status;
  if (!ctx) return MLK_ERR_ARGUMENT;
  if ((status = mlki_conv_weights_prepare(ctx, desc, 1, &gw)) != MLK_OK) return status;
  if (ctx->backend) return mlki_backend_run(ctx, MLK_OP_CONV_GRAD_WEIGHTS, desc, gw.cv.flops, gw.cv.bytes);
  if (gw.dbias.data && (status = mlki_conv_bias_prepare(ctx, &gw, &bias)) != MLK_OK) return status;
  if ((status = mlki_workspace(ctx, 4 * (uint64_t)(gw.cv.floats * gw.cv.tasks))) != MLK_OK) return status;
  gw.cv.workspace = (float *)mlki_workspace_base(ctx);
  if (gw.cv.variant == MLKI_CONV_REFERENCE) mlki_conv_weights_reference(&gw);
  if (gw.cv.variant > MLKI_CONV_REFERENCE)
    mlki_parallel_for(ctx, gw.cv.tasks,
                      gw.cv.variant == MLKI_CONV_LANES ? mlki_conv_weights_lanes_task : mlki_conv_weights_task, &gw);
  return gw.dbias.data ? mlki_reduce_execute(ctx, &bias) : MLK_OK;
}

MLK_API mlk_status mlk_attention_plan(mlk_context *ctx, const mlk_attention_desc *desc, mlk_plan *plan) {
  mlki_attention op;
  if (!ctx) return MLK_ERR_ARGUMENT;
  return mlki_job_plan(ctx, &op.job, MLK_OP_ATTENTION, desc, mlki_attention_prepare(ctx, desc, 0, &op), plan);
}

MLK_API mlk_status mlk_attention(mlk_context *ctx, const mlk_attention_desc *desc) {
  mlki_attention op;
  mlk_status status;
  if (!ctx) return MLK_ERR_ARGUMENT;
  if ((status = mlki_attention_prepare(ctx, desc, 1, &op)) != MLK_OK) return status;
  return mlki_job_run(ctx, &op.job, &op, MLK_OP_ATTENTION, desc);
}

MLK_API mlk_status mlk_attention_grad_plan(mlk_context *ctx, const mlk_attention_grad_desc *desc, mlk_plan *plan) {
  mlki_attention op;
  if (!ctx) return MLK_ERR_ARGUMENT;
  return mlki_job_plan(ctx, &op.job, MLK_OP_ATTENTION_GRAD, desc, mlki_attention_grad_prepare(ctx, desc, 0, &op), plan);
}

MLK_API mlk_status mlk_attention_grad(mlk_context *ctx, const mlk_attention_grad_desc *desc) {
  mlki_attention op;
  mlk_status status;
  if (!ctx) return MLK_ERR_ARGUMENT;
  if ((status = mlki_attention_grad_prepare(ctx, desc, 1, &op)) != MLK_OK) return status;
  return mlki_job_run(ctx, &op.job, &op, MLK_OP_ATTENTION_GRAD, desc);
}

MLK_API mlk_status mlk_attention_merge_plan(mlk_context *ctx, const mlk_attention_merge_desc *desc, mlk_plan *plan) {
  mlki_attention_merge op;
  if (!ctx) return MLK_ERR_ARGUMENT;
  return mlki_job_plan(ctx, &op.job, MLK_OP_ATTENTION_MERGE, desc, mlki_attention_merge_prepare(ctx, desc, 0, &op),
                       plan);
}

MLK_API mlk_status mlk_attention_merge(mlk_context *ctx, const mlk_attention_merge_desc *desc) {
  mlki_attention_merge op;
  mlk_status status;
  if (!ctx) return MLK_ERR_ARGUMENT;
  if ((status = mlki_attention_merge_prepare(ctx, desc, 1, &op)) != MLK_OK) return status;
  return mlki_job_run(ctx, &op.job, &op, MLK_OP_ATTENTION_MERGE, desc);
}

MLK_API mlk_status mlk_knn_plan(mlk_context *ctx, const mlk_knn_desc *desc, mlk_plan *plan) {
  mlki_knn knn;
  mlk_status status;
  if (!ctx) return MLK_ERR_ARGUMENT;
  if (!plan) return mlki_fail(ctx, MLK_ERR_ARGUMENT, "plan: is NULL");
  if ((status = mlki_knn_prepare(ctx, desc, 0, &knn)) != MLK_OK) return status;
  if (ctx->backend) return mlki_backend_plan(ctx, MLK_OP_KNN, desc, knn.flops, knn.bytes, plan);
  mlki_fill_plan(ctx, plan, MLK_OP_KNN, desc, knn.flops, knn.bytes, knn.task_bytes * (uint64_t)knn.tasks, knn.tasks,
                 mlki_knn_variant_names[knn.variant]);
  if (knn.variant == MLKI_KNN_FILTER && ctx->calibration.count != 0) {
    const double flops = (double)knn.flops + mlki_knn_aside(&knn);
    plan->seconds = mlki_predict(ctx, MLK_OP_KNN, desc, plan, mlki_roofline(ctx, flops, (double)knn.bytes, knn.tasks));
  }
  return MLK_OK;
}

MLK_API mlk_status mlk_knn(mlk_context *ctx, const mlk_knn_desc *desc) {
  mlki_knn knn;
  mlk_status status;
  if (!ctx) return MLK_ERR_ARGUMENT;
  if ((status = mlki_knn_prepare(ctx, desc, 1, &knn)) != MLK_OK) return status;
  if (ctx->backend) return mlki_backend_run(ctx, MLK_OP_KNN, desc, knn.flops, knn.bytes);
  if (knn.variant == MLKI_KNN_EMPTY) return MLK_OK;
  if ((status = mlki_workspace(ctx, knn.task_bytes * (uint64_t)knn.tasks)) != MLK_OK) return status;
  knn.workspace = (char *)mlki_workspace_base(ctx);
  mlki_parallel_for(ctx, knn.tasks, mlki_knn_task, &knn);
  if (knn.split_base) mlki_knn_merge(&knn);
  return MLK_OK;
}

MLK_API mlk_status mlk_distances_plan(mlk_context *ctx, const mlk_distances_desc *desc, mlk_plan *plan) {
  mlki_distances dist;
  mlk_status status;
  if (!ctx) return MLK_ERR_ARGUMENT;
  if (!plan) return mlki_fail(ctx, MLK_ERR_ARGUMENT, "plan: is NULL");
  if ((status = mlki_distances_prepare(ctx, desc, 0, &dist)) != MLK_OK) return status;
  if (ctx->backend) return mlki_backend_plan(ctx, MLK_OP_DISTANCES, desc, dist.flops, dist.bytes, plan);
  mlki_fill_plan(ctx, plan, MLK_OP_DISTANCES, desc, dist.flops, dist.bytes, dist.task_bytes * (uint64_t)dist.tasks,
                 dist.tasks, dist.reference ? "reference" : "pairs");
  return MLK_OK;
}

MLK_API mlk_status mlk_distances(mlk_context *ctx, const mlk_distances_desc *desc) {
  mlki_distances dist;
  mlk_status status;
  if (!ctx) return MLK_ERR_ARGUMENT;
  if ((status = mlki_distances_prepare(ctx, desc, 1, &dist)) != MLK_OK) return status;
  if (ctx->backend) return mlki_backend_run(ctx, MLK_OP_DISTANCES, desc, dist.flops, dist.bytes);
  if ((status = mlki_workspace(ctx, dist.task_bytes * (uint64_t)dist.tasks)) != MLK_OK) return status;
  dist.workspace = (char *)mlki_workspace_base(ctx);
  mlki_parallel_for(ctx, dist.tasks, mlki_distances_task, &dist);
  return MLK_OK;
}

MLK_API mlk_status mlk_map_plan(mlk_context *ctx, const mlk_map_desc *desc, mlk_plan *plan) {
  mlki_mapping m;
  mlk_status status;
  if (!ctx) return MLK_ERR_ARGUMENT;
  if (!plan) return mlki_fail(ctx, MLK_ERR_ARGUMENT, "plan: is NULL");
  if ((status = mlki_map_prepare(ctx, desc, 0, &m)) != MLK_OK) return status;
  if (ctx->backend) return mlki_backend_plan(ctx, MLK_OP_MAP, desc, m.flops, m.bytes, plan);
  mlki_fill_plan(ctx, plan, MLK_OP_MAP, desc, m.flops, m.bytes, 0, m.tasks,
                 m.reference ? "reference"
                 : m.convert ? "convert"
                             : "map");
  return MLK_OK;
}

MLK_API mlk_status mlk_map(mlk_context *ctx, const mlk_map_desc *desc) {
  mlki_mapping m;
  mlk_status status;
  if (!ctx) return MLK_ERR_ARGUMENT;
  if ((status = mlki_map_prepare(ctx, desc, 1, &m)) != MLK_OK) return status;
  if (ctx->backend) return mlki_backend_run(ctx, MLK_OP_MAP, desc, m.flops, m.bytes);
  mlki_map_execute(ctx, &m);
  return MLK_OK;
}

MLK_API mlk_status mlk_reduce_plan(mlk_context *ctx, const mlk_reduce_desc *desc, mlk_plan *plan) {
  mlki_reduction r;
  mlk_status status;
  if (!ctx) return MLK_ERR_ARGUMENT;
  if (!plan) return mlki_fail(ctx, MLK_ERR_ARGUMENT, "plan: is NULL");
  if ((status = mlki_reduce_prepare(ctx, desc, 0, 1, &r)) != MLK_OK) return status;
  if (ctx->backend) return mlki_backend_plan(ctx, MLK_OP_REDUCE, desc, r.flops, r.bytes, plan);
  mlki_fill_plan(ctx, plan, MLK_OP_REDUCE, desc, r.flops, r.bytes, r.workspace_bytes, r.tasks,
                 mlki_reduce_variant_names[ctx->reference ? MLKI_REDUCE_REFERENCE : r.variant]);
  return MLK_OK;
}

MLK_API mlk_status mlk_reduce(mlk_context *ctx, const mlk_reduce_desc *desc) {
  mlki_reduction r;
  mlk_status status;
  if (!ctx) return MLK_ERR_ARGUMENT;
  if ((status = mlki_reduce_prepare(ctx, desc, 1, 1, &r)) != MLK_OK) return status;
  if (ctx->backend) return mlki_backend_run(ctx, MLK_OP_REDUCE, desc, r.flops, r.bytes);
  return mlki_reduce_execute(ctx, &r);
}

MLK_API mlk_status mlk_clip_norm_plan(mlk_context *ctx, const mlk_clip_norm_desc *desc, mlk_plan *plan) {
  mlki_clip_plan clip;
  mlk_status status;
  if (!ctx) return MLK_ERR_ARGUMENT;
  if (!plan) return mlki_fail(ctx, MLK_ERR_ARGUMENT, "plan: is NULL");
  if ((status = mlki_clip_prepare(ctx, desc, 0, &clip)) != MLK_OK) return status;
  if (ctx->backend) return mlki_backend_plan(ctx, MLK_OP_CLIP_NORM, desc, clip.flops, clip.bytes, plan);
  mlki_fill_plan(ctx, plan, MLK_OP_CLIP_NORM, desc, clip.flops, clip.bytes, clip.workspace_bytes, clip.tasks,
                 ctx->reference ? "reference" : "clip");
  return MLK_OK;
}

MLK_API mlk_status mlk_clip_norm(mlk_context *ctx, const mlk_clip_norm_desc *desc) {
  mlki_clip_plan clip;
  mlk_status status;
  if (!ctx) return MLK_ERR_ARGUMENT;
  if ((status = mlki_clip_prepare(ctx, desc, 1, &clip)) != MLK_OK) return status;
  if (ctx->backend) return mlki_backend_run(ctx, MLK_OP_CLIP_NORM, desc, clip.flops, clip.bytes);
  if ((status = mlki_workspace(ctx, clip.workspace_bytes)) != MLK_OK) return status;
  return mlki_clip_run(ctx, desc);
}

MLK_API mlk_status mlk_sgd_plan(mlk_context *ctx, const mlk_sgd_desc *desc, mlk_plan *plan) {
  mlki_step s;
  mlk_status status;
  if (!ctx) return MLK_ERR_ARGUMENT;
  if (!plan) return mlki_fail(ctx, MLK_ERR_ARGUMENT, "plan: is NULL");
  if ((status = mlki_sgd_prepare(ctx, desc, 0, &s)) != MLK_OK) return status;
  if (ctx->backend) return mlki_backend_plan(ctx, MLK_OP_SGD, desc, s.flops, s.bytes, plan);
  mlki_fill_plan(ctx, plan, MLK_OP_SGD, desc, s.flops, s.bytes, 0, s.tasks, ctx->reference ? "reference" : "sgd");
  return MLK_OK;
}

MLK_API mlk_status mlk_sgd(mlk_context *ctx, const mlk_sgd_desc *desc) {
  mlki_step s;
  mlk_status status;
  if (!ctx) return MLK_ERR_ARGUMENT;
  if ((status = mlki_sgd_prepare(ctx, desc, 1, &s)) != MLK_OK) return status;
  if (ctx->backend) return mlki_backend_run(ctx, MLK_OP_SGD, desc, s.flops, s.bytes);
  mlki_step_execute(ctx, &s);
  return MLK_OK;
}

MLK_API mlk_status mlk_adamw_plan(mlk_context *ctx, const mlk_adamw_desc *desc, mlk_plan *plan) {
  mlki_step s;
  mlk_status status;
  if (!ctx) return MLK_ERR_ARGUMENT;
  if (!plan) return mlki_fail(ctx, MLK_ERR_ARGUMENT, "plan: is NULL");
  if ((status = mlki_adamw_prepare(ctx, desc, 0, &s)) != MLK_OK) return status;
  if (ctx->backend) return mlki_backend_plan(ctx, MLK_OP_ADAMW, desc, s.flops, s.bytes, plan);
  mlki_fill_plan(ctx, plan, MLK_OP_ADAMW, desc, s.flops, s.bytes, 0, s.tasks, ctx->reference ? "reference" : "adamw");
  return MLK_OK;
}

MLK_API mlk_status mlk_adamw(mlk_context *ctx, const mlk_adamw_desc *desc) {
  mlki_step s;
  mlk_status status;
  if (!ctx) return MLK_ERR_ARGUMENT;
  if ((status = mlki_adamw_prepare(ctx, desc, 1, &s)) != MLK_OK) return status;
  if (ctx->backend) return mlki_backend_run(ctx, MLK_OP_ADAMW, desc, s.flops, s.bytes);
  mlki_step_execute(ctx, &s);
  return MLK_OK;
}

MLK_API mlk_status mlk_average_plan(mlk_context *ctx, const mlk_average_desc *desc, mlk_plan *plan) {
  mlki_average g;
  mlk_status status;
  if (!ctx) return MLK_ERR_ARGUMENT;
  if (!plan) return mlki_fail(ctx, MLK_ERR_ARGUMENT, "plan: is NULL");
  if ((status = mlki_average_prepare(ctx, desc, 0, &g)) != MLK_OK) return status;
  if (ctx->backend) return mlki_backend_plan(ctx, MLK_OP_AVERAGE, desc, g.flops, g.bytes, plan);
  mlki_fill_plan(ctx, plan, MLK_OP_AVERAGE, desc, g.flops, g.bytes, g.workspace_bytes, g.tasks,
                 ctx->reference ? "reference"
                 : g.stream     ? "streamed"
                                : "cached");
  return MLK_OK;
}

MLK_API mlk_status mlk_average(mlk_context *ctx, const mlk_average_desc *desc) {
  mlki_average g;
  mlk_status status;
  if (!ctx) return MLK_ERR_ARGUMENT;
  if (!ctx->backend) return mlki_average_run(ctx, desc);
  if ((status = mlki_average_prepare(ctx, desc, 1, &g)) != MLK_OK) return status;
  return mlki_backend_run(ctx, MLK_OP_AVERAGE, desc, g.flops, g.bytes);
}

MLK_API mlk_status mlk_pool_plan(mlk_context *ctx, const mlk_pool_desc *desc, mlk_plan *plan) {
  mlki_pool op;
  if (!ctx) return MLK_ERR_ARGUMENT;
  return mlki_job_plan(ctx, &op.job, MLK_OP_POOL, desc, mlki_pool_prepare(ctx, desc, 0, &op), plan);
}

MLK_API mlk_status mlk_pool(mlk_context *ctx, const mlk_pool_desc *desc) {
  mlki_pool op;
  mlk_status status;
  if (!ctx) return MLK_ERR_ARGUMENT;
  if ((status = mlki_pool_prepare(ctx, desc, 1, &op)) != MLK_OK) return status;
  return mlki_job_run(ctx, &op.job, &op, MLK_OP_POOL, desc);
}

MLK_API mlk_status mlk_pool_grad_plan(mlk_context *ctx, const mlk_pool_grad_desc *desc, mlk_plan *plan) {
  mlki_pool op;
  if (!ctx) return MLK_ERR_ARGUMENT;
  return mlki_job_plan(ctx, &op.job, MLK_OP_POOL_GRAD, desc, mlki_pool_grad_prepare(ctx, desc, 0, &op), plan);
}

MLK_API mlk_status mlk_pool_grad(mlk_context *ctx, const mlk_pool_grad_desc *desc) {
  mlki_pool op;
  mlk_status status;
  if (!ctx) return MLK_ERR_ARGUMENT;
  if ((status = mlki_pool_grad_prepare(ctx, desc, 1, &op)) != MLK_OK) return status;
  return mlki_job_run(ctx, &op.job, &op, MLK_OP_POOL_GRAD, desc);
}

MLK_API mlk_status mlk_softmax_plan(mlk_context *ctx, const mlk_softmax_desc *desc, mlk_plan *plan) {
  mlki_softmax op;
  if (!ctx) return MLK_ERR_ARGUMENT;
  return mlki_job_plan(ctx, &op.job, MLK_OP_SOFTMAX, desc, mlki_softmax_prepare(ctx, desc, 0, &op), plan);
}

MLK_API mlk_status mlk_softmax(mlk_context *ctx, const mlk_softmax_desc *desc) {
  mlki_softmax op;
  mlk_status status;
  if (!ctx) return MLK_ERR_ARGUMENT;
  if ((status = mlki_softmax_prepare(ctx, desc, 1, &op)) != MLK_OK) return status;
  return mlki_job_run(ctx, &op.job, &op, MLK_OP_SOFTMAX, desc);
}

MLK_API mlk_status mlk_cross_entropy_plan(mlk_context *ctx, const mlk_cross_entropy_desc *desc, mlk_plan *plan) {
  mlki_softmax op;
  if (!ctx) return MLK_ERR_ARGUMENT;
  return mlki_job_plan(ctx, &op.job, MLK_OP_CROSS_ENTROPY, desc, mlki_cross_entropy_prepare(ctx, desc, 0, &op), plan);
}

MLK_API mlk_status mlk_cross_entropy(mlk_context *ctx, const mlk_cross_entropy_desc *desc) {
  mlki_softmax op;
  mlk_status status;
  if (!ctx) return MLK_ERR_ARGUMENT;
  if ((status = mlki_cross_entropy_prepare(ctx, desc, 1, &op)) != MLK_OK) return status;
  return mlki_job_run(ctx, &op.job, &op, MLK_OP_CROSS_ENTROPY, desc);
}

MLK_API mlk_status mlk_softmax_grad_plan(mlk_context *ctx, const mlk_softmax_grad_desc *desc, mlk_plan *plan) {
  mlki_softmax_grad op;
  if (!ctx) return MLK_ERR_ARGUMENT;
  return mlki_job_plan(ctx, &op.job, MLK_OP_SOFTMAX_GRAD, desc, mlki_softmax_grad_prepare(ctx, desc, 0, &op), plan);
}

MLK_API mlk_status mlk_softmax_grad(mlk_context *ctx, const mlk_softmax_grad_desc *desc) {
  mlki_softmax_grad op;
  mlk_status status;
  if (!ctx) return MLK_ERR_ARGUMENT;
  if ((status = mlki_softmax_grad_prepare(ctx, desc, 1, &op)) != MLK_OK) return status;
  return mlki_job_run(ctx, &op.job, &op, MLK_OP_SOFTMAX_GRAD, desc);
}

MLK_API mlk_status mlk_norm_plan(mlk_context *ctx, const mlk_norm_desc *desc, mlk_plan *plan) {
  mlki_normal op;
  if (!ctx) return MLK_ERR_ARGUMENT;
  return mlki_job_plan(ctx, &op.job, MLK_OP_NORM, desc, mlki_norm_prepare(ctx, desc, 0, &op), plan);
}

MLK_API mlk_status mlk_norm(mlk_context *ctx, const mlk_norm_desc *desc) {
  mlki_normal op;
  mlk_status status;
  if (!ctx) return MLK_ERR_ARGUMENT;
  if ((status = mlki_norm_prepare(ctx, desc, 1, &op)) != MLK_OK) return status;
  return mlki_job_run(ctx, &op.job, &op, MLK_OP_NORM, desc);
}

MLK_API mlk_status mlk_norm_grad_plan(mlk_context *ctx, const mlk_norm_grad_desc *desc, mlk_plan *plan) {
  mlki_normal op;
  if (!ctx) return MLK_ERR_ARGUMENT;
  return mlki_job_plan(ctx, &op.job, MLK_OP_NORM_GRAD, desc, mlki_norm_grad_prepare(ctx, desc, 0, &op), plan);
}

MLK_API mlk_status mlk_norm_grad(mlk_context *ctx, const mlk_norm_grad_desc *desc) {
  mlki_normal op;
  mlk_status status;
  if (!ctx) return MLK_ERR_ARGUMENT;
  if ((status = mlki_norm_grad_prepare(ctx, desc, 1, &op)) != MLK_OK) return status;
  return mlki_job_run(ctx, &op.job, &op, MLK_OP_NORM_GRAD, desc);
}

MLK_API mlk_status mlk_embedding_plan(mlk_context *ctx, const mlk_embedding_desc *desc, mlk_plan *plan) {
  mlki_embedding op;
  if (!ctx) return MLK_ERR_ARGUMENT;
  return mlki_job_plan(ctx, &op.job, MLK_OP_EMBEDDING, desc, mlki_embedding_prepare(ctx, desc, 0, &op), plan);
}

MLK_API mlk_status mlk_embedding(mlk_context *ctx, const mlk_embedding_desc *desc) {
  mlki_embedding op;
  mlk_status status;
  if (!ctx) return MLK_ERR_ARGUMENT;
  if ((status = mlki_embedding_prepare(ctx, desc, 1, &op)) != MLK_OK) return status;
  return mlki_job_run(ctx, &op.job, &op, MLK_OP_EMBEDDING, desc);
}

MLK_API mlk_status mlk_embedding_grad_plan(mlk_context *ctx, const mlk_embedding_grad_desc *desc, mlk_plan *plan) {
  mlki_embedding op;
  if (!ctx) return MLK_ERR_ARGUMENT;
  return mlki_job_plan(ctx, &op.job, MLK_OP_EMBEDDING_GRAD, desc, mlki_embedding_grad_prepare(ctx, desc, 0, &op), plan);
}

MLK_API mlk_status mlk_embedding_grad(mlk_context *ctx, const mlk_embedding_grad_desc *desc) {
  mlki_embedding op;
  mlk_status status;
  if (!ctx) return MLK_ERR_ARGUMENT;
  if ((status = mlki_embedding_grad_prepare(ctx, desc, 1, &op)) != MLK_OK) return status;
  return mlki_job_run(ctx, &op.job, &op, MLK_OP_EMBEDDING_GRAD, desc);
}

MLK_API mlk_status mlk_rotary_plan(mlk_context *ctx, const mlk_rotary_desc *desc, mlk_plan *plan) {
  mlki_rotary op;
  if (!ctx) return MLK_ERR_ARGUMENT;
  return mlki_job_plan(ctx, &op.job, MLK_OP_ROTARY, desc, mlki_rotary_prepare(ctx, desc, 0, &op), plan);
}

MLK_API mlk_status mlk_rotary(mlk_context *ctx, const mlk_rotary_desc *desc) {
  mlki_rotary op;
  mlk_status status;
  if (!ctx) return MLK_ERR_ARGUMENT;
  if ((status = mlki_rotary_prepare(ctx, desc, 1, &op)) != MLK_OK) return status;
  return mlki_job_run(ctx, &op.job, &op, MLK_OP_ROTARY, desc);
}

#endif /* !MLKI_PASS */
#endif /* !MLKI_DEVICE_PASS */
#endif /* MLK_IMPLEMENTATION */

/* >>licence --------------------------------------------------------------------------------------------------------

   MLK is available under two licences; choose the one you prefer.

   ------------------------------------------------------------------------------
   ALTERNATIVE A - MIT No Attribution (SPDX: MIT-0)

   Copyright (c) 2026 The MLK authors

   Permission is hereby granted, free of charge, to any person obtaining a copy of
   this software and associated documentation files (the "Software"), to deal in
   the Software without restriction, including without limitation the rights to
   use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies
   of the Software, and to permit persons to whom the Software is furnished to do
   so.

   THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
   IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
   FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
   AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
   LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
   OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
   SOFTWARE.

   ------------------------------------------------------------------------------
   ALTERNATIVE B - Public Domain (www.unlicense.org, SPDX: Unlicense)

   This is free and unencumbered software released into the public domain.

   Anyone is free to copy, modify, publish, use, compile, sell, or distribute this
   software, either in source code form or as a compiled binary, for any purpose,
   commercial or non-commercial, and by any means.

   In jurisdictions that recognize copyright laws, the author or authors of this
   software dedicate any and all copyright interest in the software to the public
   domain. We make this dedication for the benefit of the public at large and to
   the detriment of our heirs and successors. We intend this dedication to be an
   overt act of relinquishment in perpetuity of all present and future rights to
   this software under copyright law.

   THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
   IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
   FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
   AUTHORS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN
   ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION
   WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
   ------------------------------------------------------------------------------
*/
