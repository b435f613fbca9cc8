/* mlk_cuda.cuh - 0.1.0 - the operators of mlk.h on NVIDIA GPUs                no warranty; see the end of the file

   Do this in exactly one .cu file (C++17):

       #define MLK_CUDA_IMPLEMENTATION
       #include "mlk_cuda.cuh"

   and compile it: nvcc -O3 -std=c++17 -gencode arch=compute_90a,code=sm_90a -c file.cu
   Programs in C or C++ declare nothing but

       #include "mlk_cuda.cuh"                                 // plain: one function

       mlk_context_desc desc = {0};
       desc.backends[0] = mlk_cuda_backend();
       if (mlk_open(&ctx, &desc) != MLK_OK) return 1;          // a GPU where there is one, else the CPU

   and link: cc main.o file.o -lcudart_static -ldl -lrt -lpthread -lm -lstdc++, with -L where the CUDA toolkit keeps
   libcudart_static. Compiled with -Xcompiler -fno-exceptions,-fno-threadsafe-statics it does without -lstdc++.
   No libcuda, cuBLAS, cuDNN or NCCL on the link line. Devices of compute capability 7.5 and newer;
   toolkits from 12.0 on.

   CONTENTS (search for the tag)
     >>cuda_manual               memory, streams, errors, numerics, tiers, configuration
     >>cuda_config               macros that change how the header compiles
     >>cuda_api                  the one function
     >>cuda_implementation       (below here only with MLK_CUDA_IMPLEMENTATION)
     >>cuda_platform             the run-time, or the emulator of the tests
     >>cuda_device               one wrapper for each instruction of PTX; arithmetic that is never contracted
     >>cuda_math                 exp, tanh, erf, log and the activations: those of mlk.h
     >>cuda_runtime              a call: workspace, launches, errors
     >>cuda_gemm                 matrix products that several operators share: readers, tiles, writers
     >>cuda_gemm_mma             the same on tensor cores
     >>cuda_gemm_few             the same with few rows, at the speed of memory
     >>cuda_hopper               matrix products by warpgroups, which sm_90a has
     >>cuda_matmul               matrix products
     >>cuda_conv                 convolution and its gradients: images, f32 tiles
     >>cuda_conv_weights         the weight gradient
     >>cuda_conv_narrow          few channels, packed weights, DBIAS
     >>cuda_conv_mma             on tensor cores
     >>cuda_conv_hopper          by warpgroups
     >>cuda_conv_calls           the three operators
     >>cuda_attention            attention and its gradient: operands, masks, scores, the state of a row
     >>cuda_attention_tiles      tiles of scores in f32
     >>cuda_attention_fold       parts and blocks into one; the merge of parts
     >>cuda_attention_few        few rows, as in decoding
     >>cuda_attention_mma        on tensor cores
     >>cuda_attention_wgmma      by warpgroups, which sm_90a has; the operator
     >>cuda_attention_grad       the gradient in f32
     >>cuda_attention_grad_mma   on tensor cores; the operator
     >>cuda_knn                  nearest neighbours, distances
     >>cuda_pairs                the tiles of distances of both
     >>cuda_knn_filter           lower bounds of distances by tensor cores
     >>cuda_map                  walks over views; elementwise maps
     >>cuda_convert              conversions, arithmetic, turned views
     >>cuda_steps                optimisers
     >>cuda_reduce               reductions
     >>cuda_clip                 norms of lists
     >>cuda_average              means of replicas
     >>cuda_layer                layers: rows of views
     >>cuda_rows                 softmax, cross-entropy, normalisation: one pass over each row
     >>cuda_norm_grad            gradients of gamma and beta
     >>cuda_embedding            embedding and its gradient
     >>cuda_rotary               rotary positions
     >>cuda_pool                 pooling
     >>cuda_stage                operands in the host's memory
     >>cuda_backend              devices, memory, the table of operators
     >>cuda_licence              MIT No Attribution, or public domain
*/

/* >>cuda_manual

   MEMORY      Operands are device memory (mlk_alloc, cudaMalloc, managed memory), on the context's device. Host memory
               is refused by name or, with MLK_HOST_STAGED, copied; scalars that descriptors point to (alpha, weights)
               and lists of tensors are the host's always. Results that a descriptor points to (norm, used) are device
               memory.

   STREAMS     A call queues kernels on the context's stream and returns; it neither waits nor allocates once the
               workspace is large enough (plan, mlk_reserve, run), so calls can be captured in a graph. A graph keeps
               the addresses of operands and workspace: reserve for the largest call before the first capture, run
               what is captured once before (kernels are loaded then), and replay a context's graphs one at a time and
               not after mlk_close.

   ERRORS      What the host can see is checked before anything runs, as on the CPU. What only the device can see (an id
               out of its range) is told by mlk_sync or a later call; that element takes no part. So is that
               mlk_average with skip_nonfinite found no replica to be finite; *used is 0 then. An error of CUDA is
               MLK_ERR_SYSTEM with its name and place. After one that CUDA calls sticky the process cannot use the
               device any more, and every call says so.

   NUMERICS    f32 in MLK_STRICT: the CPU's bits, on every device. With 16-bit operands, or MLK_FAST: tensor cores with
               f32 sums where the device has them; the same bits from run to run on one kind of device, and the error
               bounds of docs/numerics.md.

   TIERS       T0: any device, f32 multiply-adds. T1: mma.sync, f16 from sm_75 on, bf16 and tf32 from sm_80 on. T2:
               wgmma and the copy engine, for mlk_matmul, mlk_attention, convolution and its gradients of f16 and bf16
               operands that are aligned to 16 bytes, and for the filter of mlk_knn, where the file was compiled for
               sm_90a (-gencode arch=compute_90a,code=sm_90a). Chosen by what the file was compiled for and what the
               device is: a kernel that was compiled says which.

   CONFIGURE   Define before including the implementation:
               MLK_CUDA_ONLY_MATMUL, _CONV, _ATTENTION, _KNN, _AVERAGE, _MAPS, _LAYERS
                                     compile only these families (shorter compilation, smaller object); calls of the
                                     others give MLK_ERR_UNSUPPORTED. MAPS: map, reduce, clip_norm, sgd, adamw. LAYERS:
                                     pool, softmax, cross-entropy, norm, embedding, rotary
               All families take nvcc 13.0 some 105 seconds of processor for sm_80 (attention 38, conv 30, matmul 23,
               the others 7 to 11 each), and about as much for each further architecture; with --threads 0
               architectures are compiled side by side.
*/

/* >>cuda_config ---------------------------------------------------------------------------------------------------- */
#ifndef MLK_CUDA_CUH
#define MLK_CUDA_CUH

#ifndef MLK_FILENAME
#define MLK_FILENAME "mlk.h"
#endif
#include MLK_FILENAME

#if defined(__cplusplus)
extern "C" {
#endif

/* >>cuda_api ------------------------------------------------------------------------------------------------------- */

/* The table for mlk_context_desc.backends; never NULL, also where there is no device or no driver. */
const mlk_backend *mlk_cuda_backend(void);

#if defined(__cplusplus)
}
#endif
#endif /* MLK_CUDA_CUH */

/* >>cuda_implementation -------------------------------------------------------------------------------------------- */
#if defined(MLK_CUDA_IMPLEMENTATION) && !defined(MLKI_CUDA_IMPLEMENTED)
#define MLKI_CUDA_IMPLEMENTED

/* >>cuda_platform -------------------------------------------------------------------------------------------------- */

#if defined(MLK_CUDA_EMULATOR) /* tests run the kernels on the CPU: tests/cuda_emulator.h */
#include MLK_CUDA_EMULATOR
#else
/* cuda.h: types and constants only, libcuda is not linked */
#include <cuda.h>
#include <cuda_runtime.h>
#endif

#include <math.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#if defined(_WIN32)
#include <process.h>
#else
#include <unistd.h>
#endif

#if defined(MLK_CUDA_ONLY_MATMUL) || defined(MLK_CUDA_ONLY_CONV) || defined(MLK_CUDA_ONLY_ATTENTION) ||                \
    defined(MLK_CUDA_ONLY_KNN) || defined(MLK_CUDA_ONLY_AVERAGE) || defined(MLK_CUDA_ONLY_MAPS) ||                     \
    defined(MLK_CUDA_ONLY_LAYERS)
#define MLKI_CUDA_SOME
#endif
#if !defined(MLKI_CUDA_SOME) || defined(MLK_CUDA_ONLY_MATMUL)
#define MLKI_CUDA_MATMUL
#endif
#if !defined(MLKI_CUDA_SOME) || defined(MLK_CUDA_ONLY_CONV)
#define MLKI_CUDA_CONV
#endif
#if !defined(MLKI_CUDA_SOME) || defined(MLK_CUDA_ONLY_ATTENTION)
#define MLKI_CUDA_ATTENTION
#endif
#if !defined(MLKI_CUDA_SOME) || defined(MLK_CUDA_ONLY_KNN)
#define MLKI_CUDA_KNN
#endif
#if !defined(MLKI_CUDA_SOME) || defined(MLK_CUDA_ONLY_AVERAGE)
#define MLKI_CUDA_AVERAGE
#endif
#if !defined(MLKI_CUDA_SOME) || defined(MLK_CUDA_ONLY_MAPS)
#define MLKI_CUDA_MAPS
#endif
#if !defined(MLKI_CUDA_SOME) || defined(MLK_CUDA_ONLY_LAYERS)
#define MLKI_CUDA_LAYERS
#endif

#if defined(MLKI_CUDA_MAPS) || defined(MLKI_CUDA_AVERAGE) || defined(MLKI_CUDA_CONV)
#define MLKI_CUDA_REDUCTIONS
#endif
#if defined(MLKI_CUDA_MATMUL) || defined(MLKI_CUDA_CONV) || defined(MLKI_CUDA_ATTENTION) || defined(MLKI_CUDA_KNN)
#define MLKI_CUDA_PRODUCTS /* what products are made of: >>cuda_gemm to >>cuda_hopper */
#endif

/* Compute capability that the code at hand is compiled for; kernels' bodies may depend on it, their signatures not. */
#if defined(MLK_CUDA_EMULATOR)
#define MLKI_CUDA_ARCH 800
#elif defined(__CUDA_ARCH__)
#define MLKI_CUDA_ARCH __CUDA_ARCH__
#else
#define MLKI_CUDA_ARCH 0 /* the host's pass */
#endif

/* Code for sm_90a, which alone has warpgroups' products; that of sm_90 is chosen for the same
   device, and lacks them. */
#if defined(MLK_CUDA_EMULATOR) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define MLKI_CUDA_HOPPER
#endif

#define MLKI_CUDA_WARP       32
#define MLKI_CUDA_ALL        0xffffffffu /* all lanes of a warp */
#define MLKI_CUDA_DEVICE     static __device__ __forceinline__
#define MLKI_CUDA_CALLED     static __device__ __noinline__
#define MLKI_CUDA_MEMBER     __device__ __forceinline__ /* of a struct */
#define MLKI_CUDA_MOST_BYTES (1ull << 40)               /* of operands: beyond any device's memory */
#define MLKI_CUDA_GRID       (1 << 20) /* most blocks of a launch where blocks take several items in turn */

/* >>cuda_device ----------------------------------------------------------------------------------------------------
   Arithmetic is spelled so that nvcc never contracts it: mlki_cuda_mul and _add round each; mlki_cuda_fma once. */

MLKI_CUDA_DEVICE float mlki_cuda_fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
MLKI_CUDA_DEVICE float mlki_cuda_mul(float a, float b) { return __fmul_rn(a, b); }
MLKI_CUDA_DEVICE float mlki_cuda_add(float a, float b) { return __fadd_rn(a, b); }
MLKI_CUDA_DEVICE float mlki_cuda_sub(float a, float b) { return __fsub_rn(a, b); }
MLKI_CUDA_DEVICE float mlki_cuda_div(float a, float b) { return __fdiv_rn(a, b); }
MLKI_CUDA_DEVICE float mlki_cuda_sqrt(float a) { return __fsqrt_rn(a); }

/* f16 and bf16 are their bits, as in mlk.h. */
MLKI_CUDA_DEVICE float mlki_cuda_from_f16(uint16_t h) {
#if defined(MLK_CUDA_EMULATOR)
  return mlkt_emu_from_f16(h);
#else
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
  return f;
#endif
}

MLKI_CUDA_DEVICE uint16_t mlki_cuda_to_f16(float f) {
#if defined(MLK_CUDA_EMULATOR)
  return mlkt_emu_to_f16(f);
#else
  uint16_t h;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
  return h;
#endif
}

MLKI_CUDA_DEVICE float mlki_cuda_from_bf16(uint16_t h) { return __uint_as_float((uint32_t)h << 16); }

MLKI_CUDA_DEVICE uint16_t mlki_cuda_to_bf16(float f) {
#if MLKI_CUDA_ARCH >= 800 && !defined(MLK_CUDA_EMULATOR)
  uint16_t h;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h) : "f"(f));
  return h;
#else
  const uint32_t a = __float_as_uint(f);
  if ((a & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(a >> 16 | 0x40u);
  return (uint16_t)((a + 0x7fffu + (a >> 16 & 1u)) >> 16);
#endif
}

/* Two values as 16 bits, the first in the lower half. */
template <int dtype> MLKI_CUDA_DEVICE uint32_t mlki_cuda_pack16(float low, float high) {
#if MLKI_CUDA_ARCH >= 800 && !defined(MLK_CUDA_EMULATOR)
  uint32_t r;
  if (dtype == MLK_F16)
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  else
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
#else
  if (dtype == MLK_F16) return (uint32_t)mlki_cuda_to_f16(low) | (uint32_t)mlki_cuda_to_f16(high) << 16;
  return (uint32_t)mlki_cuda_to_bf16(low) | (uint32_t)mlki_cuda_to_bf16(high) << 16;
#endif
}

/* Element i of an array of f32, f16 or bf16 as f32, and back, rounded to nearest even. */
MLKI_CUDA_DEVICE float mlki_cuda_load(const void *p, int64_t i, int dtype) {
  if (dtype == MLK_F32) return ((const float *)p)[i];
  const uint16_t h = ((const uint16_t *)p)[i];
  return dtype == MLK_F16 ? mlki_cuda_from_f16(h) : mlki_cuda_from_bf16(h);
}

MLKI_CUDA_DEVICE void mlki_cuda_store(void *p, int64_t i, int dtype, float f) {
  if (dtype == MLK_F32)
    ((float *)p)[i] = f;
  else
    ((uint16_t *)p)[i] = dtype == MLK_F16 ? mlki_cuda_to_f16(f) : mlki_cuda_to_bf16(f);
}

/* What mlki_cuda_cp_async is before sm_80. */
template <int bytes> MLKI_CUDA_DEVICE void mlki_cuda_copy_now(void *to, const void *from, int source_bytes) {
#pragma unroll
  for (int i = 0; i < bytes / 4; i++) {
    const int left = source_bytes - i * 4;
    ((uint32_t *)to)[i] = left >= 4   ? ((const uint32_t *)from)[i]
                          : left >= 2 ? (uint32_t)((const uint16_t *)from)[i * 2]
                                      : 0u;
  }
}

/* Copies bytes (4, 8 or 16, both addresses aligned to it) from global to shared memory behind the thread's back; the
   last bytes - source_bytes become zeros (source_bytes is even), and with source_bytes 0 from is not read. Visible to
   this thread after a wait for the group, to others after a barrier behind it. Before sm_80: at
   once, through a register. */
template <int bytes> MLKI_CUDA_DEVICE void mlki_cuda_cp_async(void *to, const void *from, int source_bytes) {
  static_assert(bytes == 4 || bytes == 8 || bytes == 16, "the sizes that cp.async knows");
#if defined(MLK_CUDA_EMULATOR)
  if (mlkt_emu_arch() >= 800) {
    mlkt_emu_cp_async(to, from, bytes, source_bytes);
  } else {
    mlki_cuda_copy_now<bytes>(to, from, source_bytes);
  }
#elif MLKI_CUDA_ARCH >= 800
  const unsigned at = (unsigned)__cvta_generic_to_shared(to);
  if (bytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(source_bytes) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(at), "l"(from), "n"(bytes), "r"(source_bytes)
                 : "memory");
#else
  mlki_cuda_copy_now<bytes>(to, from, source_bytes);
#endif
}

MLKI_CUDA_DEVICE void mlki_cuda_cp_commit(void) {
#if defined(MLK_CUDA_EMULATOR)
  mlkt_emu_cp_async_commit();
#elif MLKI_CUDA_ARCH >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

/* Waits until at most left of the thread's youngest groups are under way. */
template <int left> MLKI_CUDA_DEVICE void mlki_cuda_cp_wait(void) {
#if defined(MLK_CUDA_EMULATOR)
  mlkt_emu_cp_async_wait(left);
#elif MLKI_CUDA_ARCH >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(left) : "memory");
#endif
}

/* Four 8 x 8 matrices of 16-bit elements from shared memory, by the whole warp: lane l gives the address of row l % 8
   of matrix l / 8, 16-byte aligned, and gets elements (l / 4, 2 (l % 4)) and the next of each matrix; transposed: of
   its transpose. */
MLKI_CUDA_DEVICE void mlki_cuda_ldmatrix(uint32_t r[4], const void *row) {
#if defined(MLK_CUDA_EMULATOR)
  mlkt_emu_ldmatrix(r, 4, 0, row);
#elif MLKI_CUDA_ARCH >= 750
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"((unsigned)__cvta_generic_to_shared(row))
               : "memory");
#endif
}

MLKI_CUDA_DEVICE void mlki_cuda_ldmatrix_transposed(uint32_t r[4], const void *row) {
#if defined(MLK_CUDA_EMULATOR)
  mlkt_emu_ldmatrix(r, 4, 1, row);
#elif MLKI_CUDA_ARCH >= 750
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"((unsigned)__cvta_generic_to_shared(row))
               : "memory");
#endif
}

/* D += A B by the whole warp, sums in f32; A 16 x 16 and B 16 x 8 of f16 or bf16 (only f16 before sm_80, as two halves
   of k). Lane l holds of D rows l / 4 and l / 4 + 8, columns 2 (l % 4) and the next: d[0], d[1] and d[2], d[3]; of A
   the rows likewise, a[0], a[1] from k = 2 (l % 4), a[2], a[3] from k + 8; of B column l / 4, the same k. */
template <int dtype> MLKI_CUDA_DEVICE void mlki_cuda_mma(float d[4], const uint32_t a[4], const uint32_t b[2]) {
  static_assert(dtype == MLK_F16 || dtype == MLK_BF16, "the 16-bit types");
#if defined(MLK_CUDA_EMULATOR)
  if (mlkt_emu_arch() >= 800 || dtype == MLK_BF16) {
    mlkt_emu_mma_m16n8k16(d, a, b, dtype == MLK_BF16);
  } else {
    mlkt_emu_mma_m16n8k8_f16(d, a, b);
    mlkt_emu_mma_m16n8k8_f16(d, a + 2, b + 1);
  }
#elif MLKI_CUDA_ARCH >= 800
  if (dtype == MLK_F16)
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#elif MLKI_CUDA_ARCH >= 750
  if (dtype == MLK_F16) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(b[0]));
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[2]), "r"(a[3]), "r"(b[1]));
  }
#endif
}

/* The same with A 16 x 8 and B 8 x 8 of f32, of which the tensor cores read the upper 19 bits: round with
   mlki_cuda_to_tf32 first. Lane l holds a[0], a[1] (rows as above) at k = l % 4, a[2], a[3] at k + 4; of B column l /
   4, k and k + 4. From sm_80 on. */
MLKI_CUDA_DEVICE void mlki_cuda_mma_tf32(float d[4], const uint32_t a[4], const uint32_t b[2]) {
#if defined(MLK_CUDA_EMULATOR)
  mlkt_emu_mma_m16n8k8_tf32(d, a, b);
#elif MLKI_CUDA_ARCH >= 800
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
               "{%0, %1, %2, %3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

/* f as tf32: rounded to 10 bits of mantissa, to nearest, ties away from zero. */
MLKI_CUDA_DEVICE uint32_t mlki_cuda_to_tf32(float f) {
#if defined(MLK_CUDA_EMULATOR)
  return mlkt_emu_to_tf32(f);
#elif MLKI_CUDA_ARCH >= 800
  uint32_t r;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(f));
  return r;
#else
  return __float_as_uint(f);
#endif
}

/* x, but what is computed from it is computed here: addresses that do not change in a loop are not kept in registers
   all along where those are scarce. */
MLKI_CUDA_DEVICE int mlki_cuda_anew(unsigned x) {
#if !defined(MLK_CUDA_EMULATOR)
  asm volatile("" : "+r"(x));
#endif
  return (int)x;
}

/* The launch's dynamic shared memory, 1024-byte aligned where it matters by the kernel's own rounding. */
MLKI_CUDA_DEVICE unsigned char *mlki_cuda_shared(void) {
#if defined(MLK_CUDA_EMULATOR)
  return (unsigned char *)mlkt_emu_shared();
#else
  extern __shared__ __align__(128) unsigned char mlki_cuda_shared_bytes[];
  return mlki_cuda_shared_bytes;
#endif
}

/* ---- sm_90a ----

   What >>cuda_hopper is made of. Numbers in brackets are sections of the PTX ISA 9.0. The threads of a warp, and the
   four warps of a warpgroup, reach setmaxnreg and the instructions on products together; the others
   are for single threads. */
#if defined(MLKI_CUDA_HOPPER)

/* Address in the shared window, as instructions and descriptors take it. */
MLKI_CUDA_DEVICE uint32_t mlki_cuda_shared_address(const void *p) {
#if defined(MLK_CUDA_EMULATOR)
  return mlkt_emu_shared_address(p);
#else
  return (uint32_t)__cvta_generic_to_shared(p);
#endif
}

/* A barrier in shared memory (mbarrier, 9.7.13.15): a phase is complete when so many threads have arrived, and as many
   bytes as were expected. Phases are told apart by their parity; that of the first is 0. */
MLKI_CUDA_DEVICE void mlki_cuda_mbarrier_init(uint64_t *barrier, int arrivals) {
#if defined(MLK_CUDA_EMULATOR)
  mlkt_emu_mbarrier_init(barrier, arrivals);
#else
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(mlki_cuda_shared_address(barrier)), "r"(arrivals)
               : "memory");
#endif
}

/* Behind the inits, by the thread that made them: the copy engine, which is of the async proxy, sees them. */
MLKI_CUDA_DEVICE void mlki_cuda_mbarrier_fence(void) {
#if defined(MLK_CUDA_EMULATOR)
  mlkt_emu_mbarrier_fence();
#else
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

/* What this thread wrote to shared memory, the copy engine and the tensor cores, which are of the async proxy, see, or
   write over, behind it and a barrier. */
MLKI_CUDA_DEVICE void mlki_cuda_async_fence(void) {
#if !defined(MLK_CUDA_EMULATOR)
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

MLKI_CUDA_DEVICE void mlki_cuda_mbarrier_arrive(uint64_t *barrier) {
#if defined(MLK_CUDA_EMULATOR)
  mlkt_emu_mbarrier_arrive(barrier);
#else
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(mlki_cuda_shared_address(barrier)) : "memory");
#endif
}

/* Arrives, and lets the phase wait for bytes of copies too. */
MLKI_CUDA_DEVICE void mlki_cuda_mbarrier_expect(uint64_t *barrier, int bytes) {
#if defined(MLK_CUDA_EMULATOR)
  mlkt_emu_mbarrier_expect(barrier, bytes);
#else
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(mlki_cuda_shared_address(barrier)),
               "r"(bytes)
               : "memory");
#endif
}

/* Waits until the phase of this parity is complete; true at once for parity 1 of a new barrier. */
MLKI_CUDA_DEVICE void mlki_cuda_mbarrier_wait(uint64_t *barrier, uint32_t parity) {
#if defined(MLK_CUDA_EMULATOR)
  mlkt_emu_mbarrier_wait(barrier, parity);
#else
  const uint32_t at = mlki_cuda_shared_address(barrier);
  uint32_t done;
  do
    asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.b32 %0, 1, 0, p;\n}"
                 : "=r"(done)
                 : "r"(at), "r"(parity)
                 : "memory");
  while (!done);
#endif
}

/* Brings a box of the tensor that map describes to shared memory (cp.async.bulk.tensor, 9.7.9.25.5.2): the first
   element is at these coordinates of four axes, elements outside become zeros. All of the box's bytes arrive at the
   barrier. map: in a kernel's __grid_constant__ parameter. */
MLKI_CUDA_DEVICE void mlki_cuda_box_load(void *to, const CUtensorMap *map, uint64_t *barrier, int x, int y, int z,
                                         int w) {
#if defined(MLK_CUDA_EMULATOR)
  const int at[4] = {x, y, z, w};
  mlkt_emu_box_load(to, map, barrier, 4, at);
#else
  asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
               "[%0], [%1, {%2, %3, %4, %5}], [%6];" ::"r"(mlki_cuda_shared_address(to)),
               "l"(map), "r"(x), "r"(y), "r"(z), "r"(w), "r"(mlki_cuda_shared_address(barrier))
               : "memory");
#endif
}

/* The same of five axes. */
MLKI_CUDA_DEVICE void mlki_cuda_box_load(void *to, const CUtensorMap *map, uint64_t *barrier, int x, int y, int z,
                                         int w, int v) {
#if defined(MLK_CUDA_EMULATOR)
  const int at[5] = {x, y, z, w, v};
  mlkt_emu_box_load(to, map, barrier, 5, at);
#else
  asm volatile("cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
               "[%0], [%1, {%2, %3, %4, %5, %6}], [%7];" ::"r"(mlki_cuda_shared_address(to)),
               "l"(map), "r"(x), "r"(y), "r"(z), "r"(w), "r"(v), "r"(mlki_cuda_shared_address(barrier))
               : "memory");
#endif
}

MLKI_CUDA_DEVICE void mlki_cuda_box_prefetch(const CUtensorMap *map) {
#if defined(MLK_CUDA_EMULATOR)
  (void)map;
#else
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
#endif
}

/* A barrier of the block's 16 (barrier, 9.7.13.1): waits until so many threads have come to it, by waiting or by
   arriving; whole warps. Number 0 is that of __syncthreads. */
MLKI_CUDA_DEVICE void mlki_cuda_barrier_wait(int number, int threads) {
#if defined(MLK_CUDA_EMULATOR)
  mlkt_emu_named_barrier(number, threads);
#else
  asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
#endif
}

MLKI_CUDA_DEVICE void mlki_cuda_barrier_arrive(int number, int threads) {
#if defined(MLK_CUDA_EMULATOR)
  mlkt_emu_named_barrier_arrive(number, threads);
#else
  asm volatile("bar.arrive %0, %1;" ::"r"(number), "r"(threads) : "memory");
#endif
}

/* setmaxnreg (9.7.19.5): the warpgroup gives registers back, or waits until it gets so many for each thread. */
template <int registers> MLKI_CUDA_DEVICE void mlki_cuda_registers_give(void) {
#if defined(MLK_CUDA_EMULATOR)
  mlkt_emu_setmaxnreg(registers);
#else
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(registers));
#endif
}

template <int registers> MLKI_CUDA_DEVICE void mlki_cuda_registers_take(void) {
#if defined(MLK_CUDA_EMULATOR)
  mlkt_emu_setmaxnreg(registers);
#else
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(registers));
#endif
}

/* A matrix in shared memory with the 128-byte swizzle, as wgmma takes it (9.7.15.5.1.2.2): bits 13-0 the address, 29-16
   the leading and 45-32 the stride dimension's byte offset, each as (x & 0x3ffff) >> 4; 51-49 the base offset, 0 since
   the pattern starts at a multiple of 1024 bytes; 63-62 the swizzle: 1. */
MLKI_CUDA_DEVICE uint64_t mlki_cuda_wgmma_matrix(uint32_t address, uint32_t leading, uint32_t stride) {
  return (uint64_t)(address & 0x3ffff) >> 4 | (uint64_t)(leading >> 4) << 16 | (uint64_t)(stride >> 4) << 32 |
         (uint64_t)1 << 62;
}

/* The matrix so many bytes on, which are in the lower half alone. */
MLKI_CUDA_DEVICE uint64_t mlki_cuda_wgmma_on(uint64_t matrix, uint32_t bytes) {
  return (matrix & 0xffffffff00000000u) | (uint32_t)((uint32_t)matrix + (bytes >> 4));
}

/* Before the first product, and whenever its registers were touched: products come behind that (9.7.15.7.1). */
MLKI_CUDA_DEVICE void mlki_cuda_wgmma_fence(void) {
#if defined(MLK_CUDA_EMULATOR)
  mlkt_emu_wgmma_fence();
#else
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}

MLKI_CUDA_DEVICE void mlki_cuda_wgmma_commit(void) {
#if defined(MLK_CUDA_EMULATOR)
  mlkt_emu_wgmma_commit();
#else
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}

/* For the compiler: d is computed by here, and what is read of it behind is read behind. */
template <int count> MLKI_CUDA_DEVICE void mlki_cuda_hold(float (&d)[count]) {
#if defined(MLK_CUDA_EMULATOR)
  (void)d;
#else
#pragma unroll
  for (int i = 0; i < count; i++) asm volatile("" : "+f"(d[i])::"memory");
#endif
}

template <int count> MLKI_CUDA_DEVICE void mlki_cuda_hold(uint32_t (&a)[count][4]) {
#if defined(MLK_CUDA_EMULATOR)
  (void)a;
#else
#pragma unroll
  for (int i = 0; i < count * 4; i++) asm volatile("" : "+r"(a[i / 4][i % 4])::"memory");
#endif
}

/* Waits until at most left of the youngest groups are under way: d of the others may be read, their matrices written.
   The compiler does not know that d changes here: it is told so. */
template <int left, int count> MLKI_CUDA_DEVICE void mlki_cuda_wgmma_wait(float (&d)[count]) {
#if defined(MLK_CUDA_EMULATOR)
  (void)d;
  mlkt_emu_wgmma_wait(left);
#else
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(left) : "memory");
  if (left == 0) mlki_cuda_hold(d);
#endif
}

/* D += A B by the warpgroup, behind the threads' backs (9.7.15.5.2): A of 64 x 16 and B of 16 x 256, 128 or 64 elements
   of f16 or bf16, sums in f32; adds 0: D = A B, where no products on D are under way. a_lines, b_lines: what lies side
   by side is A's rows or B's columns instead of terms. Lane l of warp w holds of D in d[i] row 16 w + l / 4 + 8 (i / 2
   % 2), column 8 (i / 4) + 2 (l % 4) + i % 2 (9.7.15.5.1.1.1). */
#if !defined(MLK_CUDA_EMULATOR)
#define MLKI_CUDA_8_OF(d, i)                                                                                           \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]),          \
      "+f"(d[i + 7])
#define MLKI_CUDA_32_OF(d, i)                                                                                          \
  MLKI_CUDA_8_OF(d, i), MLKI_CUDA_8_OF(d, i + 8), MLKI_CUDA_8_OF(d, i + 16), MLKI_CUDA_8_OF(d, i + 24)
#define MLKI_CUDA_64_OF(d, i) MLKI_CUDA_32_OF(d, i), MLKI_CUDA_32_OF(d, i + 32)
#define MLKI_CUDA_NAMES_32                                                                                             \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, "               \
  "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define MLKI_CUDA_NAMES_64                                                                                             \
  MLKI_CUDA_NAMES_32                                                                                                   \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, "                                                               \
  "%42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, "               \
  "%62, %63"
#define MLKI_CUDA_NAMES_128                                                                                            \
  MLKI_CUDA_NAMES_64                                                                                                   \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, "             \
  "%84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, %101, %102, %103, "           \
  "%104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, %117, %118, %119, %120, "             \
  "%121, %122, %123, %124, %125, %126, %127"
/* adds: that of a number, 0: D is not added to but set; matrices: the names of a, b and flags. For either type. */
#define MLKI_CUDA_WGMMA_OF(shape, names, adds, matrices, ...)                                                          \
  asm volatile("{\n.reg .pred p;\nsetp.ne.s32 p, " adds ", 0;\nwgmma.mma_async.sync.aligned." shape " {" names         \
               "}, " matrices "\n}" __VA_ARGS__)
#define MLKI_CUDA_WGMMA(n, names, adds, matrices, ...)                                                                 \
  do {                                                                                                                 \
    if (dtype == MLK_F16)                                                                                              \
      MLKI_CUDA_WGMMA_OF("m64n" n "k16.f32.f16.f16", names, adds, matrices, __VA_ARGS__);                              \
    else                                                                                                               \
      MLKI_CUDA_WGMMA_OF("m64n" n "k16.f32.bf16.bf16", names, adds, matrices, __VA_ARGS__);                            \
  } while (0)
#endif

template <int dtype, bool a_lines, bool b_lines>
MLKI_CUDA_DEVICE void mlki_cuda_wgmma(float (&d)[128], uint64_t a, uint64_t b, int adds = 1) {
#if defined(MLK_CUDA_EMULATOR)
  mlkt_emu_wgmma(d, 256, a, b, dtype == MLK_BF16, a_lines, b_lines, !adds);
#else
  MLKI_CUDA_WGMMA("256", MLKI_CUDA_NAMES_128, "%132", "%128, %129, p, 1, 1, %130, %131;",
                  : MLKI_CUDA_64_OF(d, 0), MLKI_CUDA_64_OF(d, 64)
                  : "l"(a), "l"(b), "n"(a_lines), "n"(b_lines), "r"(adds));
#endif
}

template <int dtype, bool a_lines, bool b_lines>
MLKI_CUDA_DEVICE void mlki_cuda_wgmma(float (&d)[64], uint64_t a, uint64_t b, int adds = 1) {
#if defined(MLK_CUDA_EMULATOR)
  mlkt_emu_wgmma(d, 128, a, b, dtype == MLK_BF16, a_lines, b_lines, !adds);
#else
  MLKI_CUDA_WGMMA("128", MLKI_CUDA_NAMES_64, "%68", "%64, %65, p, 1, 1, %66, %67;",
                  : MLKI_CUDA_64_OF(d, 0)
                  : "l"(a), "l"(b), "n"(a_lines), "n"(b_lines), "r"(adds));
#endif
}

template <int dtype, bool a_lines, bool b_lines>
MLKI_CUDA_DEVICE void mlki_cuda_wgmma(float (&d)[32], uint64_t a, uint64_t b, int adds = 1) {
#if defined(MLK_CUDA_EMULATOR)
  mlkt_emu_wgmma(d, 64, a, b, dtype == MLK_BF16, a_lines, b_lines, !adds);
#else
  MLKI_CUDA_WGMMA("64", MLKI_CUDA_NAMES_32, "%36", "%32, %33, p, 1, 1, %34, %35;",
                  : MLKI_CUDA_32_OF(d, 0)
                  : "l"(a), "l"(b), "n"(a_lines), "n"(b_lines), "r"(adds));
#endif
}

/* The same with A in registers: lane l of warp w holds of A row 16 w + l / 4 + 8 (i % 2), terms 2 (l % 4) + 8 (i / 2)
   and the next in a[i] (9.7.15.5.1.1.1). They stay as they are until the product is waited for. */
template <int dtype, bool b_lines>
MLKI_CUDA_DEVICE void mlki_cuda_wgmma_held(float (&d)[128], const uint32_t (&a)[4], uint64_t b) {
#if defined(MLK_CUDA_EMULATOR)
  mlkt_emu_wgmma_held(d, 256, a, b, dtype == MLK_BF16, b_lines);
#else
  MLKI_CUDA_WGMMA("256", MLKI_CUDA_NAMES_128, "1", "{%128, %129, %130, %131}, %132, p, 1, 1, %133;",
                  : MLKI_CUDA_64_OF(d, 0), MLKI_CUDA_64_OF(d, 64)
                  : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(b_lines));
#endif
}

template <int dtype, bool b_lines>
MLKI_CUDA_DEVICE void mlki_cuda_wgmma_held(float (&d)[64], const uint32_t (&a)[4], uint64_t b) {
#if defined(MLK_CUDA_EMULATOR)
  mlkt_emu_wgmma_held(d, 128, a, b, dtype == MLK_BF16, b_lines);
#else
  MLKI_CUDA_WGMMA("128", MLKI_CUDA_NAMES_64, "1", "{%64, %65, %66, %67}, %68, p, 1, 1, %69;",
                  : MLKI_CUDA_64_OF(d, 0)
                  : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(b_lines));
#endif
}

template <int dtype, bool b_lines>
MLKI_CUDA_DEVICE void mlki_cuda_wgmma_held(float (&d)[32], const uint32_t (&a)[4], uint64_t b) {
#if defined(MLK_CUDA_EMULATOR)
  mlkt_emu_wgmma_held(d, 64, a, b, dtype == MLK_BF16, b_lines);
#else
  MLKI_CUDA_WGMMA("64", MLKI_CUDA_NAMES_32, "1", "{%32, %33, %34, %35}, %36, p, 1, 1, %37;",
                  : MLKI_CUDA_32_OF(d, 0)
                  : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(b_lines));
#endif
}

#endif /* MLKI_CUDA_HOPPER */

/* >>cuda_math ------------------------------------------------------------------------------------------------------
   A vocabulary of one lane; with it >>math of mlk.h compiles for the device, as mlki_exp_cuda(x) and so on: the same
   polynomials, the same bits. */

typedef float mlki_vec_cuda;
typedef bool mlki_mask_cuda;
#define MLKI_V_cuda      MLKI_CUDA_DEVICE
#define MLKI_TARGET_cuda __device__ __noinline__

MLKI_CUDA_DEVICE float mlki_v_zero_cuda(void) { return 0.0f; }
MLKI_CUDA_DEVICE float mlki_v_set1_cuda(float x) { return x; }
MLKI_CUDA_DEVICE float mlki_v_add_cuda(float a, float b) { return __fadd_rn(a, b); }
MLKI_CUDA_DEVICE float mlki_v_sub_cuda(float a, float b) { return __fsub_rn(a, b); }
MLKI_CUDA_DEVICE float mlki_v_mul_cuda(float a, float b) { return __fmul_rn(a, b); }
MLKI_CUDA_DEVICE float mlki_v_div_cuda(float a, float b) { return __fdiv_rn(a, b); }
MLKI_CUDA_DEVICE float mlki_v_fma_cuda(float a, float b, float c) { return __fmaf_rn(a, b, c); }
MLKI_CUDA_DEVICE float mlki_v_fnma_cuda(float a, float b, float c) { return __fmaf_rn(-a, b, c); }
MLKI_CUDA_DEVICE float mlki_v_min_cuda(float a, float b) { return a < b ? a : b; }
MLKI_CUDA_DEVICE float mlki_v_max_cuda(float a, float b) { return a > b ? a : b; }
MLKI_CUDA_DEVICE float mlki_v_abs_cuda(float a) { return __uint_as_float(__float_as_uint(a) & 0x7fffffffu); }
MLKI_CUDA_DEVICE float mlki_v_copysign_cuda(float m, float s) {
  return __uint_as_float((__float_as_uint(m) & 0x7fffffffu) | (__float_as_uint(s) & 0x80000000u));
}
MLKI_CUDA_DEVICE bool mlki_v_lt_cuda(float a, float b) { return a < b; }
MLKI_CUDA_DEVICE bool mlki_v_gt_cuda(float a, float b) { return a > b; }
MLKI_CUDA_DEVICE float mlki_v_select_cuda(bool m, float a, float b) { return m ? a : b; }
/* Adding 1.5 2^23 drops the fraction, to nearest even. */
MLKI_CUDA_DEVICE float mlki_v_round_cuda(float a) { return __fsub_rn(__fadd_rn(a, 12582912.0f), 12582912.0f); }
/* n from the low bits of n + 1.5 2^23; half is floor(n / 2). */
MLKI_CUDA_DEVICE float mlki_v_scale2_cuda(float a, float n) {
  const uint32_t e = __float_as_uint(__fadd_rn(n, 12582912.0f)) - 0x4b400000u, half = ((e + 256u) >> 1) - 128u;
  return __fmul_rn(__fmul_rn(a, __uint_as_float((half + 127u) << 23)), __uint_as_float((e - half + 127u) << 23));
}
#define MLKI_CUDA_SQRT_HALF 0x3f3504f3u            /* bits of sqrt(1/2) */
MLKI_CUDA_DEVICE float mlki_v_expo_cuda(float a) { /* the floor of a negative quotient, by an offset */
  return __fsub_rn((float)(int)((__float_as_uint(a) - MLKI_CUDA_SQRT_HALF + 0x80000000u) >> 23), 256.0f);
}
MLKI_CUDA_DEVICE float mlki_v_mant_cuda(float a) {
  return __uint_as_float(((__float_as_uint(a) - MLKI_CUDA_SQRT_HALF) & 0x7fffffu) + MLKI_CUDA_SQRT_HALF);
}

#if defined(MLKI_SUFFIX)
#undef MLKI_SUFFIX /* where the implementation of mlk.h is in the same file */
#endif
#define MLKI_SUFFIX _cuda
#define MLKI_PASS
#define MLKI_DEVICE_PASS
#include MLK_FILENAME
#undef MLKI_DEVICE_PASS
#undef MLKI_PASS

/* The 16 lanes of a sum, in lanes 0 .. 15 or 16 .. 31 of a warp, as the tree of NUMERICS: l with l + 8, then + 4, + 2,
   + 1. Every lane of the half gets the sum. All 32 lanes must call. */
MLKI_CUDA_DEVICE float mlki_cuda_sum16(float x) {
#pragma unroll
  for (int step = 8; step > 0; step >>= 1) x = __fadd_rn(x, __shfl_xor_sync(MLKI_CUDA_ALL, x, step));
  return x;
}

/* >>cuda_runtime ---------------------------------------------------------------------------------------------------
   An operator is one function of a call: it carves the workspace and launches kernels. For a plan the same function
   runs without launching anything: so a plan's workspace is the call's. */

/* What kernels found wrong in memory that the host did not look at. */
typedef enum mlki_cuda_wrong {
  MLKI_CUDA_FINE = 0,
  MLKI_CUDA_IDS,       /* mlk_embedding: ids */
  MLKI_CUDA_LABELS,    /* mlk_cross_entropy: labels */
  MLKI_CUDA_INDICES,   /* mlk_pool_grad: indices */
  MLKI_CUDA_POSITIONS, /* mlk_rotary: positions */
  MLKI_CUDA_OFFSETS,   /* mlk_attention: q_offsets or k_offsets */
  MLKI_CUDA_LENGTHS,   /* mlk_attention: k_lengths */
  MLKI_CUDA_PAGES,     /* mlk_attention: pages */
  MLKI_CUDA_REPLICAS,  /* mlk_average: none is left that is finite */
  MLKI_CUDA_WRONG_COUNT
} mlki_cuda_wrong;

#define MLKI_CUDA_FIELDS 20 /* most of a descriptor, and one */

/* Bytes of a launch's arguments: of any launch, and the most where toolkit and driver are of CUDA 12.1 (driver R530) or
   newer; an older driver refuses them (CUDA C++ Programming Guide, "__global__ function parameters"). */
#define MLKI_CUDA_ARGUMENTS 4096
#if CUDART_VERSION >= 12010
#define MLKI_CUDA_MOST_ARGUMENTS 32764
#else
#define MLKI_CUDA_MOST_ARGUMENTS MLKI_CUDA_ARGUMENTS
#endif

/* What a pointer in a descriptor spans, if that lies in the host's memory. */
typedef struct mlki_cuda_span {
  void **pointer;
  char *low, *high; /* first byte, and behind the last */
  int written;
  char *there; /* low on the device; NULL: it belongs to the block of an earlier span */
} mlki_cuda_span;

/* cuTensorMapEncodeTiled of the driver API. */
typedef CUresult(CUDAAPI *mlki_cuda_encode)(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank, void *memory,
                                            const cuuint64_t *sizes, const cuuint64_t *strides, const cuuint32_t *box,
                                            const cuuint32_t *steps, CUtensorMapInterleave interleave,
                                            CUtensorMapSwizzle swizzle, CUtensorMapL2promotion promotion,
                                            CUtensorMapFloatOOBfill fill);

/* A context's device. */
typedef struct mlki_cuda_device {
  int index;
  int planned; /* a description: nothing runs */
  cudaStream_t stream;
  int cc;           /* compute capability, 90 for 9.0 */
  int tier;         /* of what was compiled and what is there */
  int sms;          /* multiprocessors */
  int shared_bytes; /* a block's most, with opt-in */
  int long_lists;   /* may launches have MLKI_CUDA_MOST_ARGUMENTS? */
  int64_t l2_bytes;
  double flops, bandwidth; /* f32 multiply-adds x 2 and bytes per second, of the device's figures or as measured */
  double tensor_flops;     /* of 16-bit operands by mma.sync */
  double wgmma_flops;      /* the same by warpgroups; 0: no code for them runs here */
  mlki_cuda_encode encode; /* the driver's description of tensors for the copy engine; NULL: it cannot */
  mlk_host_arrays host_arrays;
  unsigned long long *wrong; /* page-locked, seen by the device: mlki_cuda_wrong << 56 | element; 0: nothing */
  unsigned long long *wrong_there;
  mlki_cuda_span span[MLKI_CUDA_FIELDS]; /* of a call without lists: >>cuda_stage */
  mlk_allocator allocator;               /* of the host's memory; alloc NULL: malloc */
  void *room;                            /* for spans and lists of others */
  uint64_t room_bytes;
  char name[256], isa[16];
} mlki_cuda_device;

typedef struct mlki_cuda_call {
  const mlki_cuda_device *device;
  mlk_backend_call *io;
  char *error;
  int run;       /* 0: plan */
  char *base;    /* of the workspace; NULL: plan */
  uint64_t used; /* of it */
  int launches;
  double work;  /* seconds predicted by the operator itself; 0: the roofline of flops and bytes in f32 */
  double model; /* those of the last product, without regard to bytes */
  mlk_status status;
} mlki_cuda_call;

/* Writes the sentence, returns status. */
#if defined(__GNUC__)
__attribute__((format(printf, 3, 4)))
#endif
static mlk_status
mlki_cuda_fail(char *error, mlk_status status, const char *format, ...) {
  va_list args;
  va_start(args, format);
  vsnprintf(error, MLK_ERROR_BYTES, format, args);
  va_end(args);
  return status;
}

/* Did it go well? An error that is dealt with here is not left for the program's own cudaGetLastError. */
static bool mlki_cuda_went(cudaError_t code) {
  if (code != cudaSuccess) (void)cudaGetLastError();
  return code == cudaSuccess;
}

/* place: what was being done, in words. */
static mlk_status mlki_cuda_check(char *error, cudaError_t code, const char *place) {
  if (mlki_cuda_went(code)) return MLK_OK;
  return mlki_cuda_fail(error, code == cudaErrorMemoryAllocation ? MLK_ERR_MEMORY : MLK_ERR_SYSTEM, "cuda: %s: %s (%s)",
                        place, cudaGetErrorString(code), cudaGetErrorName(code));
}

/* count elements of the workspace, 256-byte aligned; NULL for a plan. */
template <class T> static T *mlki_cuda_carve(mlki_cuda_call *call, int64_t count) {
  const uint64_t at = call->used;
  call->used += ((uint64_t)count * sizeof(T) + 255u) / 256u * 256u;
  return call->base ? (T *)(void *)(call->base + at) : NULL;
}

template <class T> struct mlki_cuda_same { typedef T type; };

#define MLKI_CUDA_STATIC 4096 /* bytes of static shared memory, at most, of a kernel that has dynamic one too */

/* Lets a kernel have more than 48 KiB of shared memory, which is of both kinds together. What is set here holds for the
   device's other contexts and threads too: so a kernel gets the same each time, all there is, whatever this call needs,
   and no thread takes back what another is about to launch with. */
static cudaError_t mlki_cuda_let_share(const mlki_cuda_device *device, const void *kernel, size_t shared) {
  const int all = device->shared_bytes - MLKI_CUDA_STATIC;
  if (shared <= (48 << 10) - MLKI_CUDA_STATIC) return cudaSuccess;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              (int)shared > all ? (int)shared : all);
}

/* Queues grid blocks of block threads of a kernel, with shared bytes of dynamic shared memory; for a plan only counts.
   No blocks: nothing. After a failure nothing more is launched. */
template <class... P>
static void mlki_cuda_launch(mlki_cuda_call *call, int64_t grid, int block, size_t shared, void (*kernel)(P...),
                             typename mlki_cuda_same<P>::type... arguments) {
  if (grid <= 0 || call->status != MLK_OK) return;
  if (grid > INT32_MAX) {
    call->status = mlki_cuda_fail(call->error, MLK_ERR_SIZE,
                                  "operands: make %lld blocks of threads, more than 2^31 - 1", (long long)grid);
    return;
  }
  call->launches++;
  if (!call->run) return;
  const cudaStream_t stream = call->device->stream;
  cudaError_t code = mlki_cuda_let_share(call->device, (const void *)kernel, shared);
  if (code == cudaSuccess) {
#if defined(MLK_CUDA_EMULATOR)
    code = mlkt_emu_launch_kernel(kernel, true, dim3((unsigned)grid), dim3((unsigned)block), shared, stream,
                                  [=] { kernel(arguments...); });
#else
    void *values[] = {(void *)&arguments...};
    code = cudaLaunchKernel((const void *)kernel, dim3((unsigned)grid), dim3((unsigned)block), values, shared, stream);
#endif
  }
  call->status = mlki_cuda_check(call->error, code, "a kernel was not launched");
}

/* For kernels: tells the host, once, what is wrong at which element. */
MLKI_CUDA_DEVICE void mlki_cuda_report(unsigned long long *wrong, int what, int64_t element) {
  atomicCAS(wrong, 0ull, (unsigned long long)what << 56 | ((unsigned long long)element & 0xffffffffffffffull));
}

static inline int64_t mlki_cuda_ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t mlki_cuda_min(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t mlki_cuda_max(int64_t a, int64_t b) { return a > b ? a : b; }

/* What a kernel reported, as an error of now. */
static mlk_status mlki_cuda_wrong_said(const mlki_cuda_device *device, char *error) {
  static const char *const what[MLKI_CUDA_WRONG_COUNT] = {"",
                                                          "mlk_embedding: ids",
                                                          "mlk_cross_entropy: labels",
                                                          "mlk_pool_grad: indices",
                                                          "mlk_rotary: positions",
                                                          "mlk_attention: q_offsets or k_offsets",
                                                          "mlk_attention: k_lengths",
                                                          "mlk_attention: pages",
                                                          "mlk_average: replicas"};
  const unsigned long long word = device->wrong ? *(volatile unsigned long long *)device->wrong : 0;
  const int code = (int)(word >> 56);
  if (!code) return MLK_OK;
  *(volatile unsigned long long *)device->wrong = 0;
  if (code == MLKI_CUDA_REPLICAS)
    return mlki_cuda_fail(error, MLK_ERR_REPLICA,
                          "%s: in an earlier call none was left: those that took part were not "
                          "finite",
                          what[code]);
  return mlki_cuda_fail(error, MLK_ERR_ARGUMENT, "%s: in an earlier call element %llu was out of its range",
                        what[code < MLKI_CUDA_WRONG_COUNT ? code : 0], word & 0xffffffffffffffull);
}

/* A view as kernels get it: explicit strides, data NULL where absent. */
typedef struct mlki_cuda_view {
  char *p;
  int dtype, rank;
  int64_t size[MLK_MAX_RANK], stride[MLK_MAX_RANK]; /* elements */
} mlki_cuda_view;

static inline mlki_cuda_view mlki_cuda_view_of(const mlk_tensor *t) {
  const mlk_tensor whole = mlki_explicit_strides(*t);
  mlki_cuda_view v;
  memset(&v, 0, sizeof v);
  v.p = (char *)t->data, v.dtype = t->dtype;
  if (!t->data) return v;
  v.rank = whole.rank;
  for (int i = 0; i < whole.rank; i++) v.size[i] = whole.shape[i], v.stride[i] = whole.stride[i];
  return v;
}

/* Row-major without gaps? */
static inline bool mlki_cuda_dense(const mlki_cuda_view *v) {
  int64_t step = 1;
  for (int i = v->rank - 1; i >= 0; i--) {
    if (v->size[i] != 1 && v->stride[i] != step) return false;
    step *= v->size[i];
  }
  return true;
}

static inline int64_t mlki_cuda_count(const mlk_tensor *t) {
  int64_t count = 1;
  for (int i = 0; i < t->rank; i++) count *= t->shape[i];
  return count;
}

/* >>cuda_gemm ------------------------------------------------------------------------------------------------------
   Matrix products for several operators: D(i, j) from the sums over k of A(i, k) B(j, k), i < m, j < n, for each matrix
   of a batch. mlki_cuda_gemm_simt runs one in f32 with the bits of NUMERICS: chains of fused multiply-adds from +0 in
   ascending k, a chain for each segment of MLK_SEGMENT terms, the chains' sums added in ascending order.

   What the elements are is told by readers, one for A and one for B; an index i of A or j of B is a line, an index k a
   term. A reader is a struct that kernels get by value:
     element           float, or uint16_t for 16-bit types
     line              what is to be known of a line, at most 16 bytes: computed once for each line of a tile, kept in
                       shared memory
     term              the same of a term, computed whenever one is read: keep it cheap
     void select(int64_t batch)           before all else: moves to a matrix of the batch
     int order() const                    which way neighbours are to be read: see mlki_cuda_order; any is correct for
                                          LINES and TERMS, the right one coalesces
     line line_of(int64_t i) const        i may be past the last line: then at() must give NULL for it
     term term_of(int64_t k) const        k is below the product's k
     const element *at(line, term) const  the element, or NULL: zero. VECTORS: the first of four
     float widen(element) const
   A writer takes the sums, in rows:
     void select(int64_t batch)
     void put(int64_t i, int64_t j, const float t[4], int count) const    D(i, j .. j + count), j % 4 == 0, count 1 to 4

   A block of threads computes a tile of D in registers, tm x tn of each thread in groups of 4 x 4, so that a warp's
   reads of shared memory are float4 without bank conflicts; tiles of A and B, 16 terms deep, pass through shared memory
   as [term][line] in two or three stages. From sm_80 on f32 gets there by cp.async; else a tile is held in registers
   while the one before is used. The arrangement is that of Boehm, "How to optimize a CUDA matmul kernel", 2022. */
#if defined(MLKI_CUDA_PRODUCTS)

#define MLKI_CUDA_DEPTH  16 /* terms of a tile; divides MLK_SEGMENT */
#define MLKI_CUDA_THIN   16 /* rows of the thinnest tiles */
#define MLKI_CUDA_RASTER 8  /* rows of tiles that are walked together, so that tiles side by side share B in level 2 */
#define MLKI_CUDA_SLOTS  (256ll << 20) /* bytes of sums of segments at a time, when a product is split along k */

typedef enum mlki_cuda_order {
  MLKI_CUDA_VECTORS, /* lines, four side by side: dense, aligned to four elements */
  MLKI_CUDA_LINES,   /* neighbouring lines are near each other in memory */
  MLKI_CUDA_TERMS    /* neighbouring terms are */
} mlki_cuda_order;

/* The batch of a product as kernels see it: offsets of matrix number index in up to MLK_MAX_RANK - 2 axes. */
#define MLKI_CUDA_BATCH (MLK_MAX_RANK - 2)
typedef struct mlki_cuda_batch {
  int rank;
  int64_t size[MLKI_CUDA_BATCH];
} mlki_cuda_batch;

/* Unrolled, since an array that is indexed by a variable would be kept in local memory, all of its struct with it. */
MLKI_CUDA_DEVICE int64_t mlki_cuda_batch_offset(const mlki_cuda_batch &batch, const int64_t *stride, int64_t index) {
  int64_t offset = 0;
#pragma unroll
  for (int x = MLKI_CUDA_BATCH - 1; x > 0; x--)
    if (x < batch.rank) {
      const int64_t rest = index / batch.size[x];
      offset += (index - rest * batch.size[x]) * stride[x];
      index = rest;
    }
  return batch.rank > 0 ? offset + index * stride[0] : 0;
}

/* The reader of a matrix in memory, T: float, or uint16_t of dtype. */
template <class T> struct mlki_cuda_matrix {
  typedef T element;
  typedef const T *line;
  typedef int64_t term;
  const T *p;
  int dtype, way; /* way: mlki_cuda_order */
  int64_t lines, line_step, term_step, step[MLKI_CUDA_BATCH];
  mlki_cuda_batch batch;

  __device__ void select(int64_t index) { p += mlki_cuda_batch_offset(batch, step, index); }
  __device__ int order() const { return way; }
  __device__ line line_of(int64_t i) const { return i < lines ? p + i * line_step : NULL; }
  __device__ term term_of(int64_t k) const { return k * term_step; }
  __device__ const T *at(line l, term k) const { return l ? l + k : NULL; }
  __device__ float widen(float x) const { return x; }
  __device__ float widen(uint16_t x) const { return dtype == MLK_F16 ? mlki_cuda_from_f16(x) : mlki_cuda_from_bf16(x); }
};

/* A product as a launch sees it. */
typedef struct mlki_cuda_product {
  int64_t m, n, k;
  int64_t first_batch, batches; /* of the launch; of all */
  int tiles_m, tiles_n;
  /* slots NULL: a block sums all of k and hands over to the writer. Else k is cut into parts of chunk terms; a block
     sums one of parts parts from first on and writes that to slots[part - first][batch][m][pitch], pitch: n rounded up
     to four. */
  int parts;
  int64_t first, chunk, pitch;
  float *slots;
} mlki_cuda_product;

/* Which tile, batch and part a block does. */
typedef struct mlki_cuda_gemm_place {
  int64_t batch, i0, j0, k0, k1;
  int part;
} mlki_cuda_gemm_place;

/* raster: rows of tiles that are walked together. */
MLKI_CUDA_DEVICE mlki_cuda_gemm_place mlki_cuda_gemm_place_of(const mlki_cuda_product &p, int rows, int columns,
                                                              unsigned block = blockIdx.x,
                                                              unsigned raster = MLKI_CUDA_RASTER) {
  const unsigned tiles = (unsigned)p.tiles_m * (unsigned)p.tiles_n, parts = p.slots ? (unsigned)p.parts : 1u,
                 tile = block % tiles, rest = block / tiles;
  const unsigned group = tile / (raster * (unsigned)p.tiles_n), first = group * raster,
                 in = tile - first * (unsigned)p.tiles_n, left = (unsigned)p.tiles_m - first,
                 high = left < raster ? left : raster;
  mlki_cuda_gemm_place at;
  at.batch = p.first_batch + rest / parts;
  at.part = (int)(rest % parts);
  at.i0 = (int64_t)(first + in % high) * rows, at.j0 = (int64_t)(in / high) * columns;
  at.k0 = p.slots ? (p.first + at.part) * p.chunk : 0;
  at.k1 = p.slots && at.k0 + p.chunk < p.k ? at.k0 + p.chunk : p.k;
  return at;
}

/* A tile of DEPTH terms x width lines on its way to shared memory, to[term * pitch + line]. With rows 4 banks apart the
   eight terms of four lines, which a warp writes at a time when it reads along the terms, meet no bank twice. */
template <class R, int width, int pitch, int threads> struct mlki_cuda_bring {
  static constexpr int units = width * MLKI_CUDA_DEPTH / threads;
  static_assert(threads % 64 == 0 && units % 4 == 0, "each thread brings the same number of vectors");
  typedef typename R::element element;
  typedef typename R::line line;

  static __device__ __forceinline__ void place(int order, int unit, int &i, int &k) {
    const int at = unit * threads + (int)threadIdx.x;
    if (order == MLKI_CUDA_VECTORS)
      i = at % (width / 4) * 4, k = at / (width / 4);
    else if (order == MLKI_CUDA_LINES)
      i = at % width, k = at / width;
    else
      i = at / 8 % 4 + at / 64 * 4, k = at % 8 + at / 32 % 2 * 8;
  }

  static __device__ __forceinline__ void open(const R &r, line *lines, int64_t i0) {
    for (int i = (int)threadIdx.x; i < width; i += threads) lines[i] = r.line_of(i0 + i);
  }

  /* Terms [k0, k1); left: lines of the operand from the tile's first on. */
  static __device__ __forceinline__ const element *find(const R &r, const line *lines, int i, int64_t k, int64_t k1) {
    return k < k1 ? r.at(lines[i], r.term_of(k)) : NULL;
  }

  template <int order>
  static __device__ __forceinline__ void copy_in_order(const R &r, const line *lines, float *to, int64_t k0, int64_t k1,
                                                       int left) {
    constexpr int vector = order == MLKI_CUDA_VECTORS ? 4 : 1;
#pragma unroll(units > 16 ? 4 : 16) /* more addresses at a time would spill */
    for (int u = 0; u < units / vector; u++) {
      int i, k;
      place(order, u, i, k);
      const element *p = find(r, lines, i, k0 + k, k1);
      const int count = !p ? 0 : vector < left - i ? vector : left - i;
      mlki_cuda_cp_async<4 * vector>(to + k * pitch + i, p, 4 * count);
    }
  }

  static __device__ __forceinline__ void copy(const R &r, const line *lines, float *to, int64_t k0, int64_t k1,
                                              int left) {
    const int order = r.order();
    if (order == MLKI_CUDA_VECTORS)
      copy_in_order<MLKI_CUDA_VECTORS>(r, lines, to, k0, k1, left);
    else if (order == MLKI_CUDA_LINES)
      copy_in_order<MLKI_CUDA_LINES>(r, lines, to, k0, k1, left);
    else
      copy_in_order<MLKI_CUDA_TERMS>(r, lines, to, k0, k1, left);
  }

  element held[units];

  template <int order>
  __device__ __forceinline__ void hold_in_order(const R &r, const line *lines, int64_t k0, int64_t k1, int left) {
    constexpr int vector = order == MLKI_CUDA_VECTORS ? 4 : 1;
    struct __align__(4 * sizeof(element)) four {
      element x[4];
    };
#pragma unroll
    for (int u = 0; u < units / vector; u++) {
      int i, k;
      place(order, u, i, k);
      const element *p = find(r, lines, i, k0 + k, k1);
      if (vector == 4 && p && left - i >= 4) {
        const four x = *(const four *)p;
#pragma unroll
        for (int e = 0; e < vector; e++) held[u * vector + e] = x.x[e];
      } else {
#pragma unroll
        for (int e = 0; e < vector; e++) held[u * vector + e] = p && (e == 0 || e < left - i) ? p[e] : (element)0;
      }
    }
  }

  __device__ __forceinline__ void hold(const R &r, const line *lines, int64_t k0, int64_t k1, int left) {
    const int order = r.order();
    if (order == MLKI_CUDA_VECTORS)
      hold_in_order<MLKI_CUDA_VECTORS>(r, lines, k0, k1, left);
    else if (order == MLKI_CUDA_LINES)
      hold_in_order<MLKI_CUDA_LINES>(r, lines, k0, k1, left);
    else
      hold_in_order<MLKI_CUDA_TERMS>(r, lines, k0, k1, left);
  }

  template <int order> __device__ __forceinline__ void put_in_order(const R &r, float *to) const {
    constexpr int vector = order == MLKI_CUDA_VECTORS ? 4 : 1;
#pragma unroll
    for (int u = 0; u < units / vector; u++) {
      int i, k;
      place(order, u, i, k);
      if (vector == 4)
        *(float4 *)(to + k * pitch + i) = make_float4(r.widen(held[u * vector]), r.widen(held[u * vector + 1 % vector]),
                                                      r.widen(held[u * vector + 2 % vector]),
                                                      r.widen(held[u * vector + 3 % vector]));
      else
        to[k * pitch + i] = r.widen(held[u]);
    }
  }

  __device__ __forceinline__ void put(const R &r, float *to) const {
    const int order = r.order();
    if (order == MLKI_CUDA_VECTORS)
      put_in_order<MLKI_CUDA_VECTORS>(r, to);
    else if (order == MLKI_CUDA_LINES)
      put_in_order<MLKI_CUDA_LINES>(r, to);
    else
      put_in_order<MLKI_CUDA_TERMS>(r, to);
  }
};

/* Tiles of the SIMT kernel: rows x columns of D, tm x tn of each thread; a warp's lanes are 4 x 8. */
template <int rows_, int columns_, int tm_, int tn_, int blocks_> struct mlki_cuda_simt {
  static constexpr int rows = rows_, columns = columns_, tm = tm_, tn = tn_, blocks = blocks_, stages = 3, pad = 4;
  static constexpr int warp_rows = 4 * tm, warp_columns = 8 * tn, warps_n = columns / warp_columns;
  static constexpr int threads = 32 * (rows / warp_rows) * warps_n;
  static constexpr int stage_a = MLKI_CUDA_DEPTH * (rows + pad),
                       stage_b = MLKI_CUDA_DEPTH * (columns + pad); /* floats */
  static_assert(tm % 4 == 0 && tn % 4 == 0 && rows % warp_rows == 0 && columns % warp_columns == 0, "whole warps");

  /* Tiles that wait in registers leave room for fewer blocks. */
  template <class A> static constexpr int least_blocks() {
    return (sizeof(typename A::element) < 4 || MLKI_CUDA_ARCH < 800) && blocks > 1 ? blocks - 1 : blocks;
  }

  /* The stages and the tables of lines; afterwards the sums on their way to the writer take their place. */
  template <class A, class B> static constexpr int shared_bytes() {
    return stages * (stage_a + stage_b) * 4 + rows * (int)sizeof(typename A::line) +
                       columns * (int)sizeof(typename B::line) >
                   rows * columns * 4
               ? stages * (stage_a + stage_b) * 4 + rows * (int)sizeof(typename A::line) +
                     columns * (int)sizeof(typename B::line)
               : rows * columns * 4;
  }
};

typedef mlki_cuda_simt<128, 128, 8, 8, 1> mlki_cuda_simt_large;
typedef mlki_cuda_simt<64, 64, 8, 4, 3> mlki_cuda_simt_middle;
typedef mlki_cuda_simt<32, 32, 4, 4, 6> mlki_cuda_simt_small;
typedef mlki_cuda_simt<16, 128, 4, 8, 6> mlki_cuda_simt_thin;

/* Where sum (row, column) of a warp is put down: columns as blocks of eight, exchanged so that neither the lanes of a
   tensor core's result nor those that read four sums each meet a bank twice. */
template <int columns> MLKI_CUDA_DEVICE int mlki_cuda_gemm_spot(int row, int column) {
  return row * columns + (column ^ (row & 3) << 3);
}

/* Hands warp_rows x warp_columns sums, which the warp has put down at sums, to the writer or the slot of a part. */
template <int warp_rows, int warp_columns, class W>
MLKI_CUDA_DEVICE void mlki_cuda_gemm_write(const W &w, const mlki_cuda_product &p, const mlki_cuda_gemm_place &at,
                                           const float *sums, int row, int column) {
  constexpr int vectors = warp_columns / 4;
  float *slot = p.slots ? p.slots + ((int64_t)at.part * p.batches + at.batch) * p.m * p.pitch : NULL;
  __syncwarp();
#pragma unroll 1
  for (int v = (int)threadIdx.x % MLKI_CUDA_WARP; v < warp_rows * vectors; v += MLKI_CUDA_WARP) {
    const int r = v / vectors, c = v % vectors * 4;
    const int64_t i = at.i0 + row + r, j = at.j0 + column + c;
    if (i >= p.m || j >= p.n) continue;
    const float4 t = *(const float4 *)(sums + mlki_cuda_gemm_spot<warp_columns>(r, c));
    const float four[4] = {t.x, t.y, t.z, t.w};
    if (slot)
      __stcg((float4 *)(slot + i * p.pitch + j), t); /* another multiprocessor reads it; = would be four stores */
    else
      w.put(i, j, four, p.n - j < 4 ? (int)(p.n - j) : 4);
  }
}

/* The loop of all kernels here: use(t, stage) for tiles 0, 1, ... in turn, by all threads, after copy(t, stage) has
   brought the tile there, some tiles ahead; or, not async, hold(t) has read it into registers and put(stage) left it
   there. The stages are free afterwards. */
template <int stages, bool async, class Copy, class Hold, class Put, class Use>
MLKI_CUDA_DEVICE void mlki_cuda_gemm_pipe(int tiles, Copy copy, Hold hold, Put put, Use use) {
  constexpr int ahead = async ? stages - 1 : 1, ring = async ? stages : 2;
  int now = ring - ahead;
  /* (the first tiles are brought by rounds of their own: so the code that brings one is there once, not three times) */
#pragma unroll 1
  for (int t = -ahead; t < tiles; t++) {
    const int next = now + ahead >= ring ? now + ahead - ring : now + ahead;
    if (t >= 0) {
      if (async) mlki_cuda_cp_wait<stages - 2>();
      __syncthreads(); /* tile t is there, and nobody uses tile t - 1 any more */
    }
    if (t + ahead < tiles) {
      if (async)
        copy(t + ahead, next);
      else
        hold(t + ahead);
    }
    if (async) mlki_cuda_cp_commit();
    if (t >= 0) use(t, now);
    if (!async && t + ahead < tiles) put(next);
    now = now + 1 == ring ? 0 : now + 1;
  }
  if (async) mlki_cuda_cp_wait<0>();
  __syncthreads();
}

/* acc += the outer product of one term; a, b: this thread's first of the term's lines. */
template <class T> MLKI_CUDA_DEVICE void mlki_cuda_simt_term(float acc[T::tm][T::tn], const float *a, const float *b) {
  __align__(16) float x[T::tm], y[T::tn];
#pragma unroll
  for (int g = 0; g < T::tm; g += 4) *(float4 *)(x + g) = *(const float4 *)(a + g * 4);
#pragma unroll
  for (int h = 0; h < T::tn; h += 4) *(float4 *)(y + h) = *(const float4 *)(b + h * 8);
#pragma unroll
  for (int i = 0; i < T::tm; i++)
#pragma unroll
    for (int j = 0; j < T::tn; j++) acc[i][j] = mlki_cuda_fma(x[i], y[j], acc[i][j]);
}

template <class T, class A, class B, class W>
static __global__ void __launch_bounds__(T::threads, T::template least_blocks<A>())
    mlki_cuda_gemm_simt_kernel(A a, B b, W w, mlki_cuda_product p) {
  constexpr bool async = MLKI_CUDA_ARCH >= 800 && sizeof(typename A::element) == 4 && sizeof(typename B::element) == 4;
  if (T::rows == MLKI_CUDA_THIN && !async) return; /* never asked for there: what waits in registers would spill */
  constexpr int depth = MLKI_CUDA_DEPTH, pitch_a = T::rows + T::pad, pitch_b = T::columns + T::pad;
  typedef mlki_cuda_bring<A, T::rows, pitch_a, T::threads> bring_a;
  typedef mlki_cuda_bring<B, T::columns, pitch_b, T::threads> bring_b;
  const mlki_cuda_gemm_place at = mlki_cuda_gemm_place_of(p, T::rows, T::columns);
  float *stage_a = (float *)mlki_cuda_shared(), *stage_b = stage_a + T::stages * T::stage_a;
  typename A::line *lines_a = (typename A::line *)(stage_b + T::stages * T::stage_b);
  typename B::line *lines_b = (typename B::line *)(lines_a + T::rows);
  const int warp = (int)threadIdx.x / MLKI_CUDA_WARP, lane = (int)threadIdx.x % MLKI_CUDA_WARP;
  const int row = warp / T::warps_n * T::warp_rows, column = warp % T::warps_n * T::warp_columns;
  const int my_row = lane / 8 * 4, my_column = lane % 8 * 4; /* groups of four follow 16 rows or 32 columns on */
  const int left_a = (int)(p.m - at.i0 < T::rows ? p.m - at.i0 : T::rows),
            left_b = (int)(p.n - at.j0 < T::columns ? p.n - at.j0 : T::columns);
  const int tiles = (int)((at.k1 - at.k0 + depth - 1) / depth);

  a.select(at.batch), b.select(at.batch);
  bring_a::open(a, lines_a, at.i0), bring_b::open(b, lines_b, at.j0);
  __syncthreads();

  /* -0 is what leaves every first sum as it is, +0 and -0 too */
  bring_a held_a;
  bring_b held_b;
  float acc[T::tm][T::tn], total[T::tm][T::tn];
#pragma unroll
  for (int i = 0; i < T::tm; i++)
#pragma unroll
    for (int j = 0; j < T::tn; j++) acc[i][j] = 0.0f, total[i][j] = -0.0f;

  mlki_cuda_gemm_pipe<T::stages, async>(
      tiles,
      [&](int t, int stage) {
        const int64_t k = at.k0 + (int64_t)t * depth;
        bring_a::copy(a, lines_a, stage_a + stage * T::stage_a, k, at.k1, left_a);
        bring_b::copy(b, lines_b, stage_b + stage * T::stage_b, k, at.k1, left_b);
      },
      [&](int t) {
        const int64_t k = at.k0 + (int64_t)t * depth;
        held_a.hold(a, lines_a, k, at.k1, left_a), held_b.hold(b, lines_b, k, at.k1, left_b);
      },
      [&](int stage) { held_a.put(a, stage_a + stage * T::stage_a), held_b.put(b, stage_b + stage * T::stage_b); },
      [&](int t, int stage) {
        const float *x = stage_a + stage * T::stage_a + row + my_row,
                    *y = stage_b + stage * T::stage_b + column + my_column;
        const int64_t terms = at.k1 - at.k0 - (int64_t)t * depth;
        if (terms >= depth) {
#pragma unroll
          for (int c = 0; c < depth; c++) mlki_cuda_simt_term<T>(acc, x + c * pitch_a, y + c * pitch_b);
        } else { /* zeros behind the last term would turn a sum of -0 into +0 */
#pragma unroll 1
          for (int c = 0; c < (int)terms; c++) mlki_cuda_simt_term<T>(acc, x + c * pitch_a, y + c * pitch_b);
        }
        if (t % (MLK_SEGMENT / depth) == MLK_SEGMENT / depth - 1 || t + 1 == tiles) {
#pragma unroll
          for (int i = 0; i < T::tm; i++)
#pragma unroll
            for (int j = 0; j < T::tn; j++) total[i][j] = mlki_cuda_add(total[i][j], acc[i][j]), acc[i][j] = 0.0f;
        }
      });

  float *sums = (float *)mlki_cuda_shared() + warp * T::warp_rows * T::warp_columns;
#pragma unroll
  for (int i = 0; i < T::tm; i++)
#pragma unroll
    for (int j = 0; j < T::tn; j += 4)
      *(float4 *)(sums + mlki_cuda_gemm_spot<T::warp_columns>(i / 4 * 16 + my_row + i % 4, j * 8 + my_column)) =
          make_float4(total[i][j], total[i][j + 1], total[i][j + 2], total[i][j + 3]);
  w.select(at.batch);
  mlki_cuda_gemm_write<T::warp_rows, T::warp_columns>(w, p, at, sums, row, column);
}

/* Adds the sums of parts of each element in ascending order, to total where there were parts before; total is where the
   sum goes, or, after the last part, the writer. slots [part][batch][m][pitch], total [batch][m][pitch]. No parts at
   all: a sum of +0. */
template <class W>
static __global__ void __launch_bounds__(256)
    mlki_cuda_gemm_fold_kernel(W w, mlki_cuda_product p, float *total, int before, int last) {
  const int64_t columns = p.pitch / 4, vectors = p.batches * p.m * columns;
  for (int64_t v = (int64_t)blockIdx.x * 256 + threadIdx.x; v < vectors; v += (int64_t)gridDim.x * 256) {
    float4 t = before ? ((const float4 *)total)[v] : make_float4(-0.0f, -0.0f, -0.0f, -0.0f);
#pragma unroll 4
    for (int s = 0; s < p.parts; s++) {
      const float4 x = ((const float4 *)p.slots)[s * vectors + v];
      t.x = mlki_cuda_add(t.x, x.x), t.y = mlki_cuda_add(t.y, x.y);
      t.z = mlki_cuda_add(t.z, x.z), t.w = mlki_cuda_add(t.w, x.w);
    }
    if (!before && !p.parts) t = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (!last) {
      ((float4 *)total)[v] = t;
      continue;
    }
    const int64_t row = v / columns, j = (v - row * columns) * 4, batch = row / p.m;
    const float four[4] = {t.x, t.y, t.z, t.w};
    W mine = w;
    mine.select(batch);
    mine.put(row - batch * p.m, j, four, p.n - j < 4 ? (int)(p.n - j) : 4);
  }
}

/* A tile as the choice sees it: the share of a multiprocessor's multiply-adds that full ones and
   a single block reach. */
typedef struct mlki_cuda_gemm_cost {
  int rows, columns;
  double full, alone;
} mlki_cuda_gemm_cost;

/* How a product is run: which tile of the table at hand; 0 or the terms of a part; predicted seconds. */
typedef struct mlki_cuda_gemm_form {
  int tile;
  int64_t chunk;
  double seconds;
} mlki_cuda_gemm_form;

/* Seconds of blocks of one tile each over k terms: the multiprocessor with most blocks decides. rate: multiply-adds of
   all of them per second. */
static inline double mlki_cuda_gemm_seconds(const mlki_cuda_device *device, const mlki_cuda_gemm_cost *cost,
                                            double rate, double blocks, int64_t k) {
  const double most = ceil(blocks / device->sms), work = (double)cost->rows * cost->columns * (double)(k + 32);
  return work * device->sms / rate * (most / cost->full > 1 / cost->alone ? most / cost->full : 1 / cost->alone);
}

/* The quickest of the tiles, whole or cut along k, by a model: the same answer for the same device and sizes. Parts are
   segments, or, loose 1, a power of two of at least 256 terms each; loose 2: any number of them up to 32 too. */
static inline mlki_cuda_gemm_form mlki_cuda_gemm_choose(const mlki_cuda_device *device,
                                                        const mlki_cuda_gemm_cost *table, int tiles, double rate,
                                                        int loose, const mlki_cuda_product *p) {
  mlki_cuda_gemm_form best = {-1, 0, 0};
  for (int tile = 0; tile < tiles; tile++) {
    const double blocks = (double)p->batches * (double)mlki_cuda_ceil_div(p->m, table[tile].rows) *
                          (double)mlki_cuda_ceil_div(p->n, table[tile].columns);
    int64_t chunk = 0;
    for (int64_t parts = 2;; parts = loose == 2 && parts < 32 ? parts + 1 : parts * 2) {
      double time = mlki_cuda_gemm_seconds(device, &table[tile], rate,
                                           chunk ? blocks * (double)mlki_cuda_ceil_div(p->k, chunk) : blocks,
                                           chunk ? chunk : p->k);
      if (chunk) /* sums are written and read again */
        time += 4e-6 + 8.0 * (double)mlki_cuda_ceil_div(p->k, chunk) * (double)p->batches * (double)p->m *
                           (double)p->n / device->bandwidth;
      if (best.tile < 0 || time < best.seconds) best.tile = tile, best.chunk = chunk, best.seconds = time;
      if (loose)
        chunk = mlki_cuda_ceil_div(mlki_cuda_ceil_div(p->k, parts), 64) * 64;
      else
        chunk = chunk ? 0 : MLK_SEGMENT;
      if (chunk < 256 || chunk >= p->k) break;
    }
  }
  return best;
}

/* Launches p in runs of whole batches that fit a grid. */
template <class F> static void mlki_cuda_gemm_batches(mlki_cuda_product p, int64_t blocks_per_batch, F launch) {
  const int64_t most = mlki_cuda_max(INT32_MAX / blocks_per_batch, 1);
  for (p.first_batch = 0; p.first_batch < p.batches; p.first_batch += most)
    launch(p, mlki_cuda_min(most, p.batches - p.first_batch) * blocks_per_batch);
}

/* Runs p by launch(p, blocks), which makes rows x columns of D a block: whole (chunk 0), or in parts, as many at a time
   as the slots hold. */
template <class W, class F>
static void mlki_cuda_gemm_run(mlki_cuda_call *call, const W &w, mlki_cuda_product p, int rows, int columns,
                               int64_t chunk, F launch) {
  int64_t tiles, all, most;
  float *slots = NULL, *total = NULL;
  p.tiles_m = (int)mlki_cuda_ceil_div(p.m, rows), p.tiles_n = (int)mlki_cuda_ceil_div(p.n, columns);
  p.pitch = (p.n + 3) / 4 * 4, tiles = (int64_t)p.tiles_m * p.tiles_n;
  if (p.k > 0 && !chunk) {
    mlki_cuda_gemm_batches(p, tiles, launch);
    return;
  }
  const int64_t sums = p.batches * p.m * p.pitch;
  const int64_t fold_blocks = mlki_cuda_min(mlki_cuda_ceil_div(sums / 4, 256), MLKI_CUDA_GRID);
  p.chunk = mlki_cuda_max(chunk, 1), all = mlki_cuda_ceil_div(p.k, p.chunk);
  most = mlki_cuda_min(all, mlki_cuda_max(MLKI_CUDA_SLOTS / 4 / sums, 1));
  if (most > 0) slots = mlki_cuda_carve<float>(call, most * sums);
  if (most < all) total = mlki_cuda_carve<float>(call, sums);
  p.slots = slots;
  do {
    p.parts = (int)mlki_cuda_min(most, all - p.first);
    if (p.parts) mlki_cuda_gemm_batches(p, tiles * p.parts, launch);
    mlki_cuda_launch(call, fold_blocks, 256, 0, mlki_cuda_gemm_fold_kernel<W>, w, p, total, p.first > 0,
                     p.first + p.parts == all);
    p.first += p.parts;
  } while (p.first < all);
}

static inline mlki_cuda_product mlki_cuda_product_of(int64_t batches, int64_t m, int64_t n, int64_t k) {
  mlki_cuda_product p;
  memset(&p, 0, sizeof p);
  p.m = m, p.n = n, p.k = k, p.batches = batches;
  return p;
}

/* What the plan says: the model's time, or that of the bytes. */
static inline void mlki_cuda_gemm_tell(mlki_cuda_call *call, const char *variant, double seconds) {
  const double memory = (double)call->io->bytes / call->device->bandwidth;
  call->io->variant = variant, call->model = seconds;
  call->work = seconds > memory ? seconds : memory;
}

template <class T, class A, class B, class W>
static void mlki_cuda_gemm_simt_run(mlki_cuda_call *call, const A &a, const B &b, const W &w,
                                    const mlki_cuda_product &p, int64_t chunk) {
  mlki_cuda_gemm_run(call, w, p, T::rows, T::columns, chunk, [&](const mlki_cuda_product &product, int64_t blocks) {
    mlki_cuda_launch(call, blocks, T::threads, (size_t)T::template shared_bytes<A, B>(),
                     mlki_cuda_gemm_simt_kernel<T, A, B, W>, a, b, w, product);
  });
}

/* The product of batches of m x k and n x k elements into w: T0, strict. Sets variant and predicted time. Sizes may be
   zero: with k = 0 the sums are +0. */
template <class A, class B, class W>
static void mlki_cuda_gemm_simt(mlki_cuda_call *call, const A &a, const B &b, const W &w, int64_t batches, int64_t m,
                                int64_t n, int64_t k) {
  static const mlki_cuda_gemm_cost table[] = {{128, 128, 0.90, 0.90}, {64, 64, 0.75, 0.45}, {32, 32, 0.45, 0.15}};
  const mlki_cuda_product p = mlki_cuda_product_of(batches, m, n, k);
  if (batches == 0 || m == 0 || n == 0) return;
  const mlki_cuda_gemm_form form = mlki_cuda_gemm_choose(call->device, table, 3, call->device->flops / 2, 0, &p);
  if (form.tile == 0)
    mlki_cuda_gemm_simt_run<mlki_cuda_simt_large>(call, a, b, w, p, form.chunk);
  else if (form.tile == 1)
    mlki_cuda_gemm_simt_run<mlki_cuda_simt_middle>(call, a, b, w, p, form.chunk);
  else
    mlki_cuda_gemm_simt_run<mlki_cuda_simt_small>(call, a, b, w, p, form.chunk);
  mlki_cuda_gemm_tell(call, form.chunk ? "simt_split_k" : "simt", form.seconds);
}

/* >>cuda_gemm_mma ---------------------------------------------------------------------------------------------------
   mlki_cuda_gemm_mma runs a product of 16-bit elements by mma.sync with f32 sums, in any order; the same bits from run
   to run. A reader for it has the members above with element uint16_t (order() is not asked), and
     static const bool along_terms   eight consecutive terms of a line lie side by side; else eight lines of a term
     bool whole() const              at() of each eight (from multiples of eight on) is 16-byte aligned, and where it is
                                     not NULL all of them that the product has are there; else each element is asked for
   Shared memory holds a tile of A or B as rows of eights, [line][term] or [term][line], the eights of a row exchanged
   by an exclusive or with the row's number: so neither the copies nor the eight rows of ldmatrix meet a bank twice. */

#define MLKI_CUDA_MMA_DEPTH 32 /* terms of a tile */

/* A tile of 16-bit elements on its way to shared memory. */
template <class R, int width, int threads> struct mlki_cuda_bring_eights {
  static constexpr int depth = MLKI_CUDA_MMA_DEPTH,
                       columns = (R::along_terms ? depth : width) / 8, /* eights of a row */
      eights = width * depth / 8, units = (eights + threads - 1) / threads;
  static_assert(columns >= 8 || 8 % columns == 0, "rows of a power of two");
  typedef typename R::line line;
  uint4 held[units];

  /* Where eight number column of a row is. */
  static __device__ __forceinline__ int spot(int row, int column) {
    return (row * columns + (column ^ (columns >= 8 ? row & 7 : row / (columns >= 8 ? 1 : 8 / columns) % columns))) * 8;
  }

  static __device__ __forceinline__ bool place(int unit, int &i, int &k, int &at) {
    const int number = unit * threads + (int)threadIdx.x, row = number / columns, column = number % columns;
    i = R::along_terms ? row : column * 8, k = R::along_terms ? column * 8 : row;
    at = spot(row, column);
    return eights % threads == 0 || number < eights;
  }

  static __device__ __forceinline__ void open(const R &r, line *lines, int64_t i0) {
    for (int i = (int)threadIdx.x; i < width; i += threads) lines[i] = r.line_of(i0 + i);
  }

  /* Eight elements, each asked for. */
  static __device__ __forceinline__ uint4 gather(const R &r, const line *lines, int i, int64_t k, int64_t k1) {
    uint32_t x[8];
#pragma unroll
    for (int e = 0; e < 8; e++) {
      const int64_t term = R::along_terms ? k + e : k;
      const uint16_t *p = term < k1 ? r.at(lines[R::along_terms ? i : i + e], r.term_of(term)) : NULL;
      x[e] = p ? *p : 0u;
    }
    return make_uint4(x[0] | x[1] << 16, x[2] | x[3] << 16, x[4] | x[5] << 16, x[6] | x[7] << 16);
  }

  /* The first of an eight and how many of it there are. left: lines of the operand from the tile's first on. */
  static __device__ __forceinline__ const uint16_t *find(const R &r, const line *lines, int i, int64_t k, int64_t k1,
                                                         int left, int &count) {
    const uint16_t *p = k < k1 ? r.at(lines[i], r.term_of(k)) : NULL;
    const int64_t most = R::along_terms ? k1 - k : (int64_t)(left - i);
    count = !p ? 0 : most < 8 ? (int)most : 8;
    return p;
  }

  static __device__ __forceinline__ void copy(const R &r, const line *lines, uint16_t *to, int64_t k0, int64_t k1,
                                              int left) {
    if (r.whole()) {
#pragma unroll
      for (int u = 0; u < units; u++) {
        int i, k, at, count;
        if (!place(u, i, k, at)) continue;
        const uint16_t *p = find(r, lines, i, k0 + k, k1, left, count);
        mlki_cuda_cp_async<16>(to + at, p, 2 * count);
      }
    } else {
#pragma unroll 1
      for (int u = 0; u < units; u++) {
        int i, k, at;
        if (place(u, i, k, at)) *(uint4 *)(to + at) = gather(r, lines, i, k0 + k, k1);
      }
    }
  }

  __device__ __forceinline__ void hold(const R &r, const line *lines, int64_t k0, int64_t k1, int left) {
    const bool whole = r.whole();
#pragma unroll
    for (int u = 0; u < units; u++) {
      int i, k, at, count = 0;
      if (!place(u, i, k, at)) continue;
      const uint16_t *p = whole ? find(r, lines, i, k0 + k, k1, left, count) : NULL;
      held[u] = count == 8 ? *(const uint4 *)p : gather(r, lines, i, k0 + k, k1);
    }
  }

  __device__ __forceinline__ void put(uint16_t *to) const {
#pragma unroll
    for (int u = 0; u < units; u++) {
      int i, k, at;
      if (place(u, i, k, at)) *(uint4 *)(to + at) = held[u];
    }
  }
};

/* Tiles of the tensor-core kernels; sums of a thread: 2 warp_rows warp_columns / 64. */
template <int rows_, int columns_, int warp_rows_, int warp_columns_, int depth_, int stages_, int blocks_>
struct mlki_cuda_mma_tile {
  static constexpr int rows = rows_, columns = columns_, warp_rows = warp_rows_, warp_columns = warp_columns_,
                       depth = depth_, stages = stages_, blocks = blocks_, warps_n = columns / warp_columns,
                       threads = MLKI_CUDA_WARP * (rows / warp_rows) * warps_n, tm = warp_rows / 16,
                       tn = warp_columns / 8;
  static_assert(rows % warp_rows == 0 && columns % warp_columns == 0 && warp_rows % 16 == 0 && warp_columns % 32 == 0,
                "whole warps, whole blocks of sums");

  /* Readers that have to work out where they read need registers of their own. */
  template <class A, class B> static constexpr int least_blocks() {
    return sizeof(typename A::line) + sizeof(typename B::line) > 16 && blocks > 1 ? blocks - 1 : blocks;
  }

  /* The stages of stage bytes each and the tables of lines; afterwards the sums take their place. */
  template <class A, class B> static constexpr int shared_bytes(int stage) {
    return stages * stage + rows * (int)sizeof(typename A::line) + columns * (int)sizeof(typename B::line) >
                   rows * columns * 4
               ? stages * stage + rows * (int)sizeof(typename A::line) + columns * (int)sizeof(typename B::line)
               : rows * columns * 4;
  }
};

typedef mlki_cuda_mma_tile<128, 256, 64, 64, MLKI_CUDA_MMA_DEPTH, 4, 1> mlki_cuda_mma_wide;
typedef mlki_cuda_mma_tile<128, 128, 64, 32, MLKI_CUDA_MMA_DEPTH, 3, 2> mlki_cuda_mma_large; /* 64 KiB: sm_75's */
typedef mlki_cuda_mma_tile<64, 64, 32, 32, MLKI_CUDA_MMA_DEPTH, 4, 3> mlki_cuda_mma_small;
typedef mlki_cuda_mma_tile<16, 128, 16, 32, MLKI_CUDA_MMA_DEPTH, 4, 4> mlki_cuda_mma_thin;
typedef mlki_cuda_mma_tile<128, 128, 64, 32, MLKI_CUDA_DEPTH, 4, 1> mlki_cuda_tf32_large;
typedef mlki_cuda_mma_tile<64, 64, 32, 32, MLKI_CUDA_DEPTH, 4, 2> mlki_cuda_tf32_small;
typedef mlki_cuda_mma_tile<16, 128, 16, 64, MLKI_CUDA_DEPTH, 4, 5> mlki_cuda_tf32_thin;

/* Puts down a warp's sums as the tensor cores leave them and writes them. */
template <class T, class W>
MLKI_CUDA_DEVICE void mlki_cuda_mma_write(const W &w, const mlki_cuda_product &p, const mlki_cuda_gemm_place &at,
                                          float acc[T::tm][T::tn][4]) {
  const int warp = (int)threadIdx.x / MLKI_CUDA_WARP, lane = (int)threadIdx.x % MLKI_CUDA_WARP;
  float *sums = (float *)mlki_cuda_shared() + warp * T::warp_rows * T::warp_columns;
#pragma unroll
  for (int i = 0; i < T::tm; i++)
#pragma unroll
    for (int j = 0; j < T::tn; j++)
#pragma unroll
      for (int half = 0; half < 2; half++)
        *(float2 *)(sums + mlki_cuda_gemm_spot<T::warp_columns>(i * 16 + half * 8 + lane / 4, j * 8 + lane % 4 * 2)) =
            make_float2(acc[i][j][half * 2], acc[i][j][half * 2 + 1]);
  mlki_cuda_gemm_write<T::warp_rows, T::warp_columns>(w, p, at, sums, warp / T::warps_n * T::warp_rows,
                                                      warp % T::warps_n * T::warp_columns);
}

/* 16 terms from k on of 16 (A) or twice 8 (B) lines from i on, as operands of mma: see mlki_cuda_mma. */
template <class Bring, bool along_terms, bool is_a>
MLKI_CUDA_DEVICE void mlki_cuda_mma_load(uint32_t r[4], const uint16_t *tile, int i, int k) {
  const int lane = (int)threadIdx.x % MLKI_CUDA_WARP, low = lane / 8 % 2, high = lane / 16;
  const int more_i = is_a ? low : high, more_k = is_a ? high : low; /* which eights this lane's matrix takes */
  if (along_terms)
    mlki_cuda_ldmatrix(r, tile + Bring::spot(i + more_i * 8 + lane % 8, k / 8 + more_k));
  else
    mlki_cuda_ldmatrix_transposed(r, tile + Bring::spot(k + more_k * 8 + lane % 8, i / 8 + more_i));
}

/* acc += the product of 16 terms from k on; a, b: the tiles, row, column: this warp's first lines. */
template <class T, int dtype, class A, class B, class BringA, class BringB>
MLKI_CUDA_DEVICE void mlki_cuda_mma_terms(float acc[T::tm][T::tn][4], const uint16_t *a, const uint16_t *b, int row,
                                          int column, int k) {
  uint32_t x[4], y[T::tn / 2][4];
#pragma unroll
  for (int j = 0; j < T::tn / 2; j++) mlki_cuda_mma_load<BringB, B::along_terms, false>(y[j], b, column + j * 16, k);
#pragma unroll
  for (int i = 0; i < T::tm; i++) {
    mlki_cuda_mma_load<BringA, A::along_terms, true>(x, a, row + i * 16, k);
#pragma unroll
    for (int j = 0; j < T::tn; j++) mlki_cuda_mma<dtype>(acc[i][j], x, y[j / 2] + j % 2 * 2);
  }
}

/* dtype: of all elements; one branch in 16 terms costs less than a second kernel for each pair of readers. */
template <class T, class A, class B, class W>
static __global__ void __launch_bounds__(T::threads, MLKI_CUDA_ARCH >= 800 ? T::template least_blocks<A, B>() : 1)
    mlki_cuda_gemm_mma_kernel(A a, B b, W w, mlki_cuda_product p, int dtype) {
#if MLKI_CUDA_ARCH >= 750
  constexpr bool async = MLKI_CUDA_ARCH >= 800;
  constexpr int size_a = T::rows * T::depth, size_b = T::columns * T::depth;
  typedef mlki_cuda_bring_eights<A, T::rows, T::threads> bring_a;
  typedef mlki_cuda_bring_eights<B, T::columns, T::threads> bring_b;
  const mlki_cuda_gemm_place at = mlki_cuda_gemm_place_of(p, T::rows, T::columns);
  uint16_t *stage_a = (uint16_t *)mlki_cuda_shared(), *stage_b = stage_a + T::stages * size_a;
  typename A::line *lines_a = (typename A::line *)(stage_b + T::stages * size_b);
  typename B::line *lines_b = (typename B::line *)(lines_a + T::rows);
  const int warp = (int)threadIdx.x / MLKI_CUDA_WARP;
  const int row = warp / T::warps_n * T::warp_rows, column = warp % T::warps_n * T::warp_columns;
  const int left_a = (int)(p.m - at.i0 < T::rows ? p.m - at.i0 : T::rows),
            left_b = (int)(p.n - at.j0 < T::columns ? p.n - at.j0 : T::columns);

  a.select(at.batch), b.select(at.batch);
  bring_a::open(a, lines_a, at.i0), bring_b::open(b, lines_b, at.j0);
  __syncthreads();

  bring_a held_a;
  bring_b held_b;
  float acc[T::tm][T::tn][4];
#pragma unroll
  for (int i = 0; i < T::tm; i++)
#pragma unroll
    for (int j = 0; j < T::tn; j++) acc[i][j][0] = acc[i][j][1] = acc[i][j][2] = acc[i][j][3] = 0.0f;

  mlki_cuda_gemm_pipe<T::stages, async>(
      (int)((at.k1 - at.k0 + T::depth - 1) / T::depth),
      [&](int t, int stage) {
        const int64_t k = at.k0 + (int64_t)t * T::depth;
        bring_a::copy(a, lines_a, stage_a + stage * size_a, k, at.k1, left_a);
        bring_b::copy(b, lines_b, stage_b + stage * size_b, k, at.k1, left_b);
      },
      [&](int t) {
        const int64_t k = at.k0 + (int64_t)t * T::depth;
        held_a.hold(a, lines_a, k, at.k1, left_a), held_b.hold(b, lines_b, k, at.k1, left_b);
      },
      [&](int stage) { held_a.put(stage_a + stage * size_a), held_b.put(stage_b + stage * size_b); },
      [&](int t, int stage) {
        (void)t;                                   /* past k's end there are zeros */
#pragma unroll(T::blocks == 2 ? 1 : T::depth / 16) /* two blocks leave each thread 128 registers */
        for (int k = 0; k < T::depth; k += 16) {
          const uint16_t *from_a = stage_a + stage * size_a, *from_b = stage_b + stage * size_b;
          if (dtype == MLK_F16)
            mlki_cuda_mma_terms<T, MLK_F16, A, B, bring_a, bring_b>(acc, from_a, from_b, row, column, k);
          else
            mlki_cuda_mma_terms<T, MLK_BF16, A, B, bring_a, bring_b>(acc, from_a, from_b, row, column, k);
        }
      });
  w.select(at.batch);
  mlki_cuda_mma_write<T>(w, p, at, acc);
#endif
}

/* f32 elements rounded to tf32. Shared memory as for the SIMT kernel; rows 8 banks apart, so that the four terms of
   eight lines that make an operand meet no bank twice. */
template <class T, class A, class B, class W>
static __global__ void __launch_bounds__(T::threads, T::blocks)
    mlki_cuda_gemm_tf32_kernel(A a, B b, W w, mlki_cuda_product p) {
#if MLKI_CUDA_ARCH >= 800
  constexpr int pitch_a = T::rows + 8, pitch_b = T::columns + 8, size_a = pitch_a * T::depth,
                size_b = pitch_b * T::depth;
  typedef mlki_cuda_bring<A, T::rows, pitch_a, T::threads> bring_a;
  typedef mlki_cuda_bring<B, T::columns, pitch_b, T::threads> bring_b;
  const mlki_cuda_gemm_place at = mlki_cuda_gemm_place_of(p, T::rows, T::columns);
  float *stage_a = (float *)mlki_cuda_shared(), *stage_b = stage_a + T::stages * size_a;
  typename A::line *lines_a = (typename A::line *)(stage_b + T::stages * size_b);
  typename B::line *lines_b = (typename B::line *)(lines_a + T::rows);
  const int warp = (int)threadIdx.x / MLKI_CUDA_WARP, lane = (int)threadIdx.x % MLKI_CUDA_WARP;
  const int my_a = lane % 4 * pitch_a + warp / T::warps_n * T::warp_rows + lane / 4,
            my_b = lane % 4 * pitch_b + warp % T::warps_n * T::warp_columns + lane / 4;
  const int left_a = (int)(p.m - at.i0 < T::rows ? p.m - at.i0 : T::rows),
            left_b = (int)(p.n - at.j0 < T::columns ? p.n - at.j0 : T::columns);

  a.select(at.batch), b.select(at.batch);
  bring_a::open(a, lines_a, at.i0), bring_b::open(b, lines_b, at.j0);
  __syncthreads();

  float acc[T::tm][T::tn][4];
#pragma unroll
  for (int i = 0; i < T::tm; i++)
#pragma unroll
    for (int j = 0; j < T::tn; j++) acc[i][j][0] = acc[i][j][1] = acc[i][j][2] = acc[i][j][3] = 0.0f;

  mlki_cuda_gemm_pipe<T::stages, true>((int)((at.k1 - at.k0 + T::depth - 1) / T::depth),
                                       [&](int t, int stage) {
                                         const int64_t k = at.k0 + (int64_t)t * T::depth;
                                         bring_a::copy(a, lines_a, stage_a + stage * size_a, k, at.k1, left_a);
                                         bring_b::copy(b, lines_b, stage_b + stage * size_b, k, at.k1, left_b);
                                       },
                                       [](int) {}, [](int) {},
                                       [&](int t, int stage) {
                                         (void)t;
#pragma unroll
                                         for (int k = 0; k < T::depth; k += 8) {
                                           const float *from_a = stage_a + stage * size_a + k * pitch_a + my_a,
                                                       *from_b = stage_b + stage * size_b + k * pitch_b + my_b;
                                           uint32_t x[T::tm][4], y[T::tn][2];
#pragma unroll
                                           for (int j = 0; j < T::tn; j++)
#pragma unroll
                                             for (int e = 0; e < 2; e++)
                                               y[j][e] = mlki_cuda_to_tf32(from_b[j * 8 + e * 4 * pitch_b]);
#pragma unroll
                                           for (int i = 0; i < T::tm; i++)
#pragma unroll
                                             for (int e = 0; e < 4; e++)
                                               x[i][e] = mlki_cuda_to_tf32(
                                                   from_a[i * 16 + e % 2 * 8 + e / 2 * 4 * pitch_a]);
#pragma unroll
                                           for (int i = 0; i < T::tm; i++)
#pragma unroll
                                             for (int j = 0; j < T::tn; j++) mlki_cuda_mma_tf32(acc[i][j], x[i], y[j]);
                                         }
                                       });
  w.select(at.batch);
  mlki_cuda_mma_write<T>(w, p, at, acc);
#endif
}

template <class T, class A, class B, class W>
static void mlki_cuda_gemm_mma_run(mlki_cuda_call *call, int dtype, const A &a, const B &b, const W &w,
                                   const mlki_cuda_product &p, int64_t chunk) {
  mlki_cuda_gemm_run(call, w, p, T::rows, T::columns, chunk, [&](const mlki_cuda_product &product, int64_t blocks) {
    mlki_cuda_launch(call, blocks, T::threads,
                     (size_t)T::template shared_bytes<A, B>((T::rows + T::columns) * T::depth * 2),
                     mlki_cuda_gemm_mma_kernel<T, A, B, W>, a, b, w, product, dtype);
  });
}

/* The product of batches of m x k and n x k elements of f16 or bf16 into w by tensor cores. The device must have them:
   see mlki_cuda_has_mma. */
template <class A, class B, class W>
static void mlki_cuda_gemm_mma(mlki_cuda_call *call, int dtype, const A &a, const B &b, const W &w, int64_t batches,
                               int64_t m, int64_t n, int64_t k) {
  static const mlki_cuda_gemm_cost table[] = {{64, 64, 0.50, 0.20}, {128, 128, 0.85, 0.60}, {128, 256, 0.95, 0.95}};
  const mlki_cuda_product p = mlki_cuda_product_of(batches, m, n, k);
  const int wide = call->device->shared_bytes >= mlki_cuda_mma_wide::rows * mlki_cuda_mma_wide::columns * 4;
  if (batches == 0 || m == 0 || n == 0) return;
  const mlki_cuda_gemm_form form = mlki_cuda_gemm_choose(call->device, table, wide ? 3 : 2,
                                                         call->device->tensor_flops / 2, 1, &p);
  if (form.tile == 0)
    mlki_cuda_gemm_mma_run<mlki_cuda_mma_small>(call, dtype, a, b, w, p, form.chunk);
  else if (form.tile == 1)
    mlki_cuda_gemm_mma_run<mlki_cuda_mma_large>(call, dtype, a, b, w, p, form.chunk);
  else
    mlki_cuda_gemm_mma_run<mlki_cuda_mma_wide>(call, dtype, a, b, w, p, form.chunk);
  mlki_cuda_gemm_tell(call, form.chunk ? "mma_split_k" : "mma", form.seconds);
}

template <class T, class A, class B, class W>
static void mlki_cuda_gemm_tf32_run(mlki_cuda_call *call, const A &a, const B &b, const W &w,
                                    const mlki_cuda_product &p, int64_t chunk) {
  mlki_cuda_gemm_run(call, w, p, T::rows, T::columns, chunk, [&](const mlki_cuda_product &product, int64_t blocks) {
    mlki_cuda_launch(call, blocks, T::threads,
                     (size_t)T::template shared_bytes<A, B>((T::rows + T::columns + 16) * T::depth * 4),
                     mlki_cuda_gemm_tf32_kernel<T, A, B, W>, a, b, w, product);
  });
}

/* The product of f32 elements by tensor cores, for MLK_FAST; readers as for mlki_cuda_gemm_simt. From sm_80 on. */
template <class A, class B, class W>
static void mlki_cuda_gemm_tf32(mlki_cuda_call *call, const A &a, const B &b, const W &w, int64_t batches, int64_t m,
                                int64_t n, int64_t k) {
  static const mlki_cuda_gemm_cost table[] = {{64, 64, 0.50, 0.25}, {128, 128, 0.80, 0.80}};
  const mlki_cuda_product p = mlki_cuda_product_of(batches, m, n, k);
  if (batches == 0 || m == 0 || n == 0) return;
  const mlki_cuda_gemm_form form = mlki_cuda_gemm_choose(call->device, table, 2, call->device->tensor_flops / 4, 1, &p);
  if (form.tile == 0)
    mlki_cuda_gemm_tf32_run<mlki_cuda_tf32_small>(call, a, b, w, p, form.chunk);
  else
    mlki_cuda_gemm_tf32_run<mlki_cuda_tf32_large>(call, a, b, w, p, form.chunk);
  mlki_cuda_gemm_tell(call, form.chunk ? "tf32_split_k" : "tf32", form.seconds);
}

/* Do tensor cores take this call's operands? f32 ones only where it asks for speed. */
static inline int mlki_cuda_has_mma(const mlki_cuda_call *call, int dtype) {
  const int tier = call->device->tier;
  return dtype == MLK_F16 ? tier >= 750 : tier >= 800 && (dtype == MLK_BF16 || call->io->numerics == MLK_FAST);
}

/* >>cuda_gemm_few ---------------------------------------------------------------------------------------------------
   With at most MLKI_CUDA_FEW rows of D the other operand is read once, at the speed of memory. A thread sums whole
   chains, of all rows and one or two columns; parallel are columns, segments and batches. Sums are those of
   mlki_cuda_gemm_simt. */

#define MLKI_CUDA_FEW         8
#define MLKI_CUDA_FEW_THREADS 128

/* One segment of A's rows as xs[term][row], by all threads. */
template <int rows, class T>
MLKI_CUDA_DEVICE void mlki_cuda_few_bring(const mlki_cuda_matrix<T> &a, float *xs, int64_t k0, int64_t k1) {
  const int64_t last = k0 + MLK_SEGMENT < k1 ? k0 + MLK_SEGMENT : k1;
  __syncthreads(); /* the segment before is not used any more */
  for (int i = 0; i < rows; i++) {
    const T *line = a.line_of(i);
    for (int64_t k = k0 + threadIdx.x; k < last; k += MLKI_CUDA_FEW_THREADS) {
      const T *p = a.at(line, a.term_of(k));
      xs[(k - k0) * rows + i] = p ? a.widen(*p) : 0.0f;
    }
  }
  __syncthreads();
}

/* acc[i] += the product of a term and row i's. */
template <int rows> MLKI_CUDA_DEVICE void mlki_cuda_few_term(float acc[rows], const float *xs, float y) {
  float x[rows];
  if (rows % 4 == 0) {
#pragma unroll
    for (int i = 0; i < rows; i += 4) {
      const float4 v = *(const float4 *)(xs + i);
      x[i] = v.x, x[i + 1 % rows] = v.y, x[i + 2 % rows] = v.z, x[i + 3 % rows] = v.w;
    }
  } else {
#pragma unroll
    for (int i = 0; i < rows; i++) x[i] = xs[i];
  }
#pragma unroll
  for (int i = 0; i < rows; i++) acc[i] = mlki_cuda_fma(x[i], y, acc[i]);
}

/* Hands a block's sums, sums[row][columns], to the writer or the slot of a segment. */
template <int columns, class W>
MLKI_CUDA_DEVICE void mlki_cuda_few_write(const W &w, const mlki_cuda_product &p, const mlki_cuda_gemm_place &at,
                                          const float *sums) {
  constexpr int vectors = columns / 4;
  const int me = (int)threadIdx.x % vectors * 4; /* column; a thread has some rows of four columns */
  const int64_t j = at.j0 + me;
  __syncthreads();
  if (j >= p.n) return;
  if (p.slots) {
    float *slot = p.slots + ((int64_t)at.part * p.batches + at.batch) * p.m * p.pitch + j;
    for (int i = (int)threadIdx.x / vectors; i < (int)p.m; i += MLKI_CUDA_FEW_THREADS / vectors)
      *(float4 *)(slot + i * p.pitch) = *(const float4 *)(sums + i * columns + me);
    return;
  }
  const int count = p.n - j < 4 ? (int)(p.n - j) : 4;
#pragma unroll 1
  for (int i = (int)threadIdx.x / vectors; i < (int)p.m; i += MLKI_CUDA_FEW_THREADS / vectors) {
    const float4 t = *(const float4 *)(sums + i * columns + me);
    const float four[4] = {t.x, t.y, t.z, t.w};
    w.put(i, j, four, count);
  }
}

/* A row of a tile in shared memory is 128 bytes of terms and 16 of nothing: then the eight lines that lanes read 16
   bytes of at a time meet no bank twice. */
template <int rows_, class T> struct mlki_cuda_few_tile {
  static constexpr int rows = rows_, lines = MLKI_CUDA_FEW_THREADS, vector = 16 / (int)sizeof(T), depth = 8 * vector,
                       pitch = depth + vector, stages = rows > 4 ? 2 : 3; /* 64 KiB of sm_75 */
  static constexpr int shared_bytes = stages * lines * pitch * (int)sizeof(T) + MLK_SEGMENT * rows * 4;
  static_assert(MLK_SEGMENT % depth == 0, "segments are whole tiles");
};

/* The terms of B's lines lie side by side: tiles of 128 lines come by way of shared memory, in 16
   bytes where aligned. */
template <class F, class T, class W>
static __global__ void __launch_bounds__(MLKI_CUDA_FEW_THREADS, MLKI_CUDA_ARCH >= 800 ? 4 : 1)
    mlki_cuda_few_terms_kernel(mlki_cuda_matrix<T> a, mlki_cuda_matrix<T> b, W w, mlki_cuda_product p, int aligned) {
  constexpr int rows = F::rows, vector = F::vector, depth = F::depth, pitch = F::pitch;
  const mlki_cuda_gemm_place at = mlki_cuda_gemm_place_of(p, rows, F::lines);
  const int me = (int)threadIdx.x;
  float *xs = (float *)mlki_cuda_shared();
  T *stages = (T *)(xs + MLK_SEGMENT * rows);
  float acc[rows], total[rows];
#pragma unroll
  for (int i = 0; i < rows; i++) acc[i] = 0.0f, total[i] = -0.0f;
  a.select(at.batch), b.select(at.batch);
  const int tiles = (int)((at.k1 - at.k0 + depth - 1) / depth);
  mlki_cuda_gemm_pipe<F::stages, true>(
      tiles,
      [&](int t, int stage) {
        T *to = stages + stage * F::lines * pitch;
#pragma unroll
        for (int u = 0; u < 8; u++) {
          const int number = u * MLKI_CUDA_FEW_THREADS + me, row = number / 8, column = number % 8 * vector;
          const int64_t k = at.k0 + (int64_t)t * depth + column, left = at.k1 - k;
          const T *line = b.line_of(at.j0 + row);
          const int count = !line || left <= 0 ? 0 : left < vector ? (int)left : vector;
          if (aligned) {
            mlki_cuda_cp_async<16>(to + row * pitch + column, count ? line + k : NULL, count * (int)sizeof(T));
          } else {
            for (int e = 0; e < count; e++) to[row * pitch + column + e] = line[(k + e) * b.term_step];
          }
        }
      },
      [](int) {}, [](int) {},
      [&](int t, int stage) {
        const int64_t k = at.k0 + (int64_t)t * depth;
        const int in_segment = t % (MLK_SEGMENT / depth) * depth;
        const T *mine = stages + (stage * F::lines + me) * pitch;
        const float *x = xs + in_segment * rows;
        if (in_segment == 0) mlki_cuda_few_bring<rows>(a, xs, k, at.k1);
        if (at.k1 - k >= depth) {
          struct __align__(16) whole {
            T x[vector];
          };
#pragma unroll
          for (int c = 0; c < depth; c += vector) {
            const whole y = *(const whole *)(mine + c);
#pragma unroll
            for (int e = 0; e < vector; e++) mlki_cuda_few_term<rows>(acc, x + (c + e) * rows, b.widen(y.x[e]));
          }
        } else {
#pragma unroll 1
          for (int c = 0; c < (int)(at.k1 - k); c++) mlki_cuda_few_term<rows>(acc, x + c * rows, b.widen(mine[c]));
        }
        if (in_segment == MLK_SEGMENT - depth || t + 1 == tiles)
#pragma unroll
          for (int i = 0; i < rows; i++) total[i] = mlki_cuda_add(total[i], acc[i]), acc[i] = 0.0f;
      });
#pragma unroll
  for (int i = 0; i < rows; i++) xs[i * F::lines + me] = total[i];
  w.select(at.batch);
  mlki_cuda_few_write<F::lines>(w, p, at, xs);
}

/* B's lines lie side by side, or nothing does: threads read memory themselves, two 16-bit columns each, in pairs where
   aligned. */
template <class F, class T, class W>
static __global__ void __launch_bounds__(MLKI_CUDA_FEW_THREADS)
    mlki_cuda_few_lines_kernel(mlki_cuda_matrix<T> a, mlki_cuda_matrix<T> b, W w, mlki_cuda_product p, int aligned) {
  constexpr int rows = F::rows, wide = 4 / (int)sizeof(T), columns = MLKI_CUDA_FEW_THREADS * wide, ahead = 16;
  struct __align__(4) pair {
    T x[wide];
  };
  const mlki_cuda_gemm_place at = mlki_cuda_gemm_place_of(p, rows, columns);
  float *xs = (float *)mlki_cuda_shared();
  float acc[wide][rows], total[wide][rows];
  const T *column[wide];
  a.select(at.batch), b.select(at.batch);
#pragma unroll
  for (int c = 0; c < wide; c++) {
    column[c] = b.line_of(at.j0 + (int)threadIdx.x * wide + c);
#pragma unroll
    for (int i = 0; i < rows; i++) total[c][i] = -0.0f;
  }
  const bool pairs = wide == 1 || (aligned && column[wide - 1]);
  for (int64_t k = at.k0; k < at.k1; k += MLK_SEGMENT) {
    const int terms = (int)(at.k1 - k < MLK_SEGMENT ? at.k1 - k : MLK_SEGMENT);
    mlki_cuda_few_bring<rows>(a, xs, k, at.k1);
#pragma unroll
    for (int c = 0; c < wide; c++)
#pragma unroll
      for (int i = 0; i < rows; i++) acc[c][i] = 0.0f;
    if (!column[0]) continue;
    int t = 0;
    if (pairs) { /* many loads under way at a time */
#pragma unroll 1
      for (; t + ahead <= terms; t += ahead) {
        pair y[ahead];
#pragma unroll
        for (int s = 0; s < ahead; s++) y[s] = *(const pair *)(column[0] + b.term_of(k + t + s));
#pragma unroll
        for (int s = 0; s < ahead; s++)
#pragma unroll
          for (int c = 0; c < wide; c++) mlki_cuda_few_term<rows>(acc[c], xs + (t + s) * rows, b.widen(y[s].x[c]));
      }
    }
#pragma unroll 2
    for (; t < terms; t++)
#pragma unroll
      for (int c = 0; c < wide; c++)
        if (column[c]) mlki_cuda_few_term<rows>(acc[c], xs + t * rows, b.widen(column[c][b.term_of(k + t)]));
#pragma unroll
    for (int c = 0; c < wide; c++)
#pragma unroll
      for (int i = 0; i < rows; i++) total[c][i] = mlki_cuda_add(total[c][i], acc[c][i]);
  }
  __syncthreads();
#pragma unroll
  for (int c = 0; c < wide; c++)
#pragma unroll
    for (int i = 0; i < rows; i++) xs[i * columns + (int)threadIdx.x * wide + c] = total[c][i];
  w.select(at.batch);
  mlki_cuda_few_write<columns>(w, p, at, xs);
}

/* aligned: lines of B can be read 16 bytes of terms at a time, or terms 4 bytes of lines at a time. */
template <int rows, class T, class W>
static void mlki_cuda_few_run(mlki_cuda_call *call, const mlki_cuda_matrix<T> &a, const mlki_cuda_matrix<T> &b,
                              const W &w, const mlki_cuda_product &p, int aligned) {
  typedef mlki_cuda_few_tile<rows, T> F;
  const int terms = b.way == MLKI_CUDA_TERMS, columns = terms ? F::lines : MLKI_CUDA_FEW_THREADS * (4 / (int)sizeof(T));
  const int64_t blocks = p.batches * mlki_cuda_ceil_div(p.n, columns);
  const int64_t chunk = blocks < 4 * call->device->sms && p.k > MLK_SEGMENT ? MLK_SEGMENT : 0;
  mlki_cuda_gemm_run(call, w, p, rows, columns, chunk, [&](const mlki_cuda_product &product, int64_t grid) {
    if (terms)
      mlki_cuda_launch(call, grid, MLKI_CUDA_FEW_THREADS, F::shared_bytes, mlki_cuda_few_terms_kernel<F, T, W>, a, b, w,
                       product, aligned);
    else
      mlki_cuda_launch(call, grid, MLKI_CUDA_FEW_THREADS, MLK_SEGMENT * rows * 4, mlki_cuda_few_lines_kernel<F, T, W>,
                       a, b, w, product, aligned);
  });
  mlki_cuda_gemm_tell(call, chunk ? "rows_split_k" : "rows", 0);
}

/* With up to MLKI_CUDA_THIN rows: tiles of 16 rows, B read once. So it would be by tiles of 32 or 64 rows, but their
   padding would go through shared memory, or the multipliers, for longer than B's bytes take to come. In f32 by
   multiply-adds from sm_80 on. */
template <class A, class B, class W>
static void mlki_cuda_thin_simt(mlki_cuda_call *call, const A &a, const B &b, const W &w, const mlki_cuda_product &p) {
  static const mlki_cuda_gemm_cost tile = {16, 128, 0.60, 0.25};
  const mlki_cuda_gemm_form form = mlki_cuda_gemm_choose(call->device, &tile, 1, call->device->flops / 2, 0, &p);
  mlki_cuda_gemm_simt_run<mlki_cuda_simt_thin>(call, a, b, w, p, form.chunk);
  mlki_cuda_gemm_tell(call, form.chunk ? "simt_rows_split_k" : "simt_rows", form.seconds);
}

template <class A, class B, class W>
static void mlki_cuda_thin_mma(mlki_cuda_call *call, int dtype, const A &a, const B &b, const W &w,
                               const mlki_cuda_product &p) {
  static const mlki_cuda_gemm_cost tile = {16, 128, 0.25, 0.10};
  const mlki_cuda_gemm_form form = mlki_cuda_gemm_choose(call->device, &tile, 1, call->device->tensor_flops / 2, 1, &p);
  mlki_cuda_gemm_mma_run<mlki_cuda_mma_thin>(call, dtype, a, b, w, p, form.chunk);
  mlki_cuda_gemm_tell(call, form.chunk ? "mma_rows_split_k" : "mma_rows", form.seconds);
}

template <class A, class B, class W>
static void mlki_cuda_thin_tf32(mlki_cuda_call *call, const A &a, const B &b, const W &w, const mlki_cuda_product &p) {
  static const mlki_cuda_gemm_cost tile = {16, 128, 0.25, 0.10};
  const mlki_cuda_gemm_form form = mlki_cuda_gemm_choose(call->device, &tile, 1, call->device->tensor_flops / 4, 1, &p);
  mlki_cuda_gemm_tf32_run<mlki_cuda_tf32_thin>(call, a, b, w, p, form.chunk);
  mlki_cuda_gemm_tell(call, form.chunk ? "tf32_rows_split_k" : "tf32_rows", form.seconds);
}

/* A tensor of the epilogue: element (i, j) at p[i * rs + j * cs]; NULL: absent. vector: four of a row can be read at
   once where j % 4 == 0. */
typedef struct mlki_cuda_plane {
  char *p;
  int dtype, vector;
  int64_t rs, cs, step[MLKI_CUDA_BATCH];
} mlki_cuda_plane;

MLKI_CUDA_DEVICE void mlki_cuda_plane_move(mlki_cuda_plane &x, const mlki_cuda_batch &batch, int64_t index) {
  if (x.p) x.p += mlki_cuda_batch_offset(batch, x.step, index) * (x.dtype == MLK_F32 ? 4 : 2);
}

MLKI_CUDA_DEVICE void mlki_cuda_plane_read(const mlki_cuda_plane &x, int64_t i, int64_t j, int count, float t[4]) {
  const int64_t at = i * x.rs + j * x.cs;
  if (x.vector && count == 4 && x.dtype == MLK_F32) {
    const float4 v = *(const float4 *)((const float *)x.p + at);
    t[0] = v.x, t[1] = v.y, t[2] = v.z, t[3] = v.w;
  } else if (x.vector && count == 4) {
    const uint2 v = *(const uint2 *)((const uint16_t *)x.p + at);
    const uint16_t h[4] = {(uint16_t)v.x, (uint16_t)(v.x >> 16), (uint16_t)v.y, (uint16_t)(v.y >> 16)};
#pragma unroll
    for (int e = 0; e < 4; e++) t[e] = x.dtype == MLK_F16 ? mlki_cuda_from_f16(h[e]) : mlki_cuda_from_bf16(h[e]);
  } else {
#pragma unroll
    for (int e = 0; e < 4; e++)
      if (e < count) t[e] = mlki_cuda_load(x.p, at + e * x.cs, x.dtype);
  }
}

MLKI_CUDA_DEVICE void mlki_cuda_plane_write(const mlki_cuda_plane &x, int64_t i, int64_t j, int count,
                                            const float t[4]) {
  const int64_t at = i * x.rs + j * x.cs;
  if (x.vector && count == 4 && x.dtype == MLK_F32) {
    *(float4 *)((float *)x.p + at) = make_float4(t[0], t[1], t[2], t[3]);
  } else if (x.vector && count == 4) {
    uint32_t h[4];
#pragma unroll
    for (int e = 0; e < 4; e++) h[e] = x.dtype == MLK_F16 ? mlki_cuda_to_f16(t[e]) : mlki_cuda_to_bf16(t[e]);
    *(uint2 *)((uint16_t *)x.p + at) = make_uint2(h[0] | h[1] << 16, h[2] | h[3] << 16);
  } else {
#pragma unroll
    for (int e = 0; e < 4; e++)
      if (e < count) mlki_cuda_store(x.p, at + e * x.cs, x.dtype, t[e]);
  }
}

/* The writer of mlk_matmul_desc: D = act(alpha acc + bias + beta C) + residual, absent terms skipped. c absent: beta is
   not read. Each element of C and residual is read before the same element of D is written. */
struct mlki_cuda_epilogue {
  float alpha, beta;
  int activation, plain; /* plain: D = acc */
  int eights;            /* plain, and D is aligned and whole eights of 16 bits, which go to memory at once */
  mlki_cuda_batch batch;
  mlki_cuda_plane c, bias, residual, preact, d;

  __device__ void select(int64_t index) {
    if (batch.rank == 0) return;
    mlki_cuda_plane_move(d, batch, index);
    if (plain) return;
    mlki_cuda_plane_move(c, batch, index), mlki_cuda_plane_move(bias, batch, index);
    mlki_cuda_plane_move(residual, batch, index), mlki_cuda_plane_move(preact, batch, index);
  }

  /* See >>cuda_hopper. */
  __device__ bool whole(int *dtype) const {
    *dtype = d.dtype;
    return eights != 0;
  }
  __device__ uint16_t *eight(int64_t i, int64_t j) const { return (uint16_t *)d.p + (i * d.rs + j); }

  __device__ void put(int64_t i, int64_t j, const float acc[4], int count) const {
    float t[4] = {acc[0], acc[1], acc[2], acc[3]}, x[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    if (!plain) {
      if (bias.p) mlki_cuda_plane_read(bias, i, j, count, x);
#pragma unroll
      for (int e = 0; e < 4; e++) t[e] = bias.p ? mlki_cuda_fma(alpha, t[e], x[e]) : mlki_cuda_mul(alpha, t[e]);
      if (c.p) {
        mlki_cuda_plane_read(c, i, j, count, x);
#pragma unroll
        for (int e = 0; e < 4; e++) t[e] = mlki_cuda_fma(beta, x[e], t[e]);
      }
      if (preact.p) mlki_cuda_plane_write(preact, i, j, count, t);
      if (activation)
#pragma unroll
        for (int e = 0; e < 4; e++) t[e] = mlki_activate_cuda((mlk_activation)activation, t[e]);
      if (residual.p) {
        mlki_cuda_plane_read(residual, i, j, count, x);
#pragma unroll
        for (int e = 0; e < 4; e++) t[e] = mlki_cuda_add(t[e], x[e]);
      }
    }
    mlki_cuda_plane_write(d, i, j, count, t);
  }
};

#endif /* MLKI_CUDA_PRODUCTS */

/* The type whose load or store moves so many bytes. */
template <int bytes> struct mlki_cuda_word;
template <> struct mlki_cuda_word<1> { typedef uint8_t type; };
template <> struct mlki_cuda_word<2> { typedef uint16_t type; };
template <> struct mlki_cuda_word<4> { typedef uint32_t type; };
template <> struct mlki_cuda_word<8> { typedef uint2 type; };
template <> struct mlki_cuda_word<16> { typedef uint4 type; };

/* width elements between registers and aligned memory. */
template <class T, int width> MLKI_CUDA_DEVICE void mlki_cuda_load_vector(T *to, const void *from) {
  constexpr int bytes = (int)sizeof(T) * width, unit = bytes < 16 ? bytes : 16;
  typename mlki_cuda_word<unit>::type words[bytes / unit];
#pragma unroll
  for (int i = 0; i < bytes / unit; i++) words[i] = ((const typename mlki_cuda_word<unit>::type *)from)[i];
  memcpy(to, words, bytes);
}

template <class T, int width> MLKI_CUDA_DEVICE void mlki_cuda_store_vector(void *to, const T *from) {
  constexpr int bytes = (int)sizeof(T) * width, unit = bytes < 16 ? bytes : 16;
  typename mlki_cuda_word<unit>::type words[bytes / unit];
  memcpy(words, from, bytes);
#pragma unroll
  for (int i = 0; i < bytes / unit; i++) ((typename mlki_cuda_word<unit>::type *)to)[i] = words[i];
}

/* Division of numbers below 2^31 by a constant: a multiplication and a shift (Granlund & Montgomery, 1994). */
typedef struct mlki_cuda_divider {
  uint32_t divisor, magic, shift;
} mlki_cuda_divider;

static inline mlki_cuda_divider mlki_cuda_divider_of(int64_t divisor) {
  mlki_cuda_divider d;
  d.divisor = (uint32_t)divisor, d.shift = 0;
  while (((int64_t)1 << d.shift) < divisor) d.shift++;
  d.magic = (uint32_t)((((uint64_t)1 << 32) * (((uint64_t)1 << d.shift) - d.divisor)) / d.divisor + 1);
  return d;
}

/* The quotient; the remainder is left in n. */
MLKI_CUDA_DEVICE uint32_t mlki_cuda_divide(const mlki_cuda_divider &d, uint32_t *n) {
  const uint32_t quotient = (__umulhi(*n, d.magic) + *n) >> d.shift;
  *n -= quotient * d.divisor;
  return quotient;
}

#if defined(MLKI_CUDA_REDUCTIONS)
/* mlk_reduce, in >>cuda_reduce, for operators that need one: carves its workspace and launches its kernels. */
static mlk_status mlki_cuda_reduce(mlki_cuda_call *call, const mlk_reduce_desc *desc);
#endif

/* >>cuda_hopper ----------------------------------------------------------------------------------------------------
   T2: products of 16-bit elements by wgmma, in code for sm_90a. mlki_cuda_wgmma_run is to warpgroups what
   mlki_cuda_gemm_mma is to warps, with the same writers and parts.

   A block has three warpgroups and stays: it does one tile of D after the other. The first warpgroup is the producer:
   one thread of it has the copy engine bring stages of 64 terms of A and B. full[stage] tells when a stage's bytes are
   there, empty[stage] when the eight warps of the two consumers have done with it; so the stages of the next tile come
   while D is written. Each consumer multiplies 64 lines of A by all of B's, the products of one stage always under way.
   The producer gives registers to the consumers. It is the arrangement of CUTLASS's cooperative kernel
   (NVIDIA/cutlass:media/docs/cpp/efficient_gemm.md).

   A stage holds A's lines and B's as the copy engine leaves them and wgmma takes them: rows of 128 bytes from a
   multiple of 1024 bytes on, with the 128-byte swizzle (PTX ISA 9.0, 9.7.15.5.1.2, "canonical layouts"), T = 8 elements
   in 16 bytes:
     along the terms, K-major     ((8,m),(T,2k)):((8T,SBO),(1,T)). A row is 64 terms of a line; eight lines are the
                                  stride dimension's offset SBO, 1024 bytes; the leading dimension's LBO is not used. 16
                                  terms on are 32 bytes on, within the rows.
     along the lines, MN-major    ((T,8,m),(8,k)):((1,T,LBO),(8T,SBO)). A row is 64 lines of a term; eight terms are
                                  SBO, 1024 bytes; the next 64 lines are LBO, 8192 bytes, on. 16 terms on are 2048 bytes
                                  on.
   In both, 64 lines are 8192 bytes. Elements outside of A or B arrive as zeros, so tails need nothing more.

   A reader for it is a struct that kernels get by value, as a __grid_constant__ parameter:
     static const bool along_terms      as above
     void prefetch() const              by one thread, once, before all else: may fetch what load() will need
     spot select(int64_t batch, int64_t line, int64_t term) const         where a tile begins
     void load<lines>(unsigned char *to, uint64_t *arrived, spot &) const by one thread: brings lines x 64 terms from
                                        there on, as above, and moves on by as many terms
     int bytes<lines>() const           that it brings
     bool holes() const                 it leaves out terms of stages, the same for A and B: these must stay zeros
   A writer for it has, besides those of >>cuda_gemm:
     bool whole(int *dtype) const       are sums alone to be written, as this type of 16 bits, in whole eights?
     uint16_t *eight(int64_t i, int64_t j) const      where the eight from (i, j) on go then; NULL: nowhere */
#if defined(MLKI_CUDA_PRODUCTS)

#define MLKI_CUDA_WGMMA_EIGHT 1024u /* bytes of eight rows, after which the pattern repeats */
#define MLKI_CUDA_WGMMA_BLOCK 8192u /* of 64 lines x 64 terms */

/* Tiles of rows x columns of D, two consumers. A warp writes 16 rows x 64 columns at a time, by
   way of its own 4 KiB. */
template <int columns_, int stages_, int raster_> struct mlki_cuda_wgmma_tile {
  static constexpr int rows = 128, columns = columns_, depth = 64, stages = stages_, raster = raster_;
  static constexpr int consumers = 2, warps = 4 * consumers, threads = 128 * (1 + consumers), sums = columns / 2;
  static constexpr int bytes_a = rows * depth * 2, stage = bytes_a + columns * depth * 2;
  static constexpr int written = 64, put_down = 16 * written * 4;
  static constexpr int shared_bytes = (int)MLKI_CUDA_WGMMA_EIGHT + stages * stage + warps * put_down + stages * 16;
  static_assert(columns % 64 == 0 && columns <= 256 && shared_bytes <= 227 << 10,
                "what instruction and block can hold");
};

typedef mlki_cuda_wgmma_tile<256, 4, 16> mlki_cuda_wgmma_wide;
typedef mlki_cuda_wgmma_tile<128, 6, 12> mlki_cuda_wgmma_large;
typedef mlki_cuda_wgmma_tile<64, 7, 12> mlki_cuda_wgmma_narrow;

/* The reader of matrices in memory, dense along terms or lines. Axes of map: the dense one, the other one, and two of
   the batch, of size 1 where the operand repeats. */
template <bool terms> struct mlki_cuda_boxes {
  static constexpr bool along_terms = terms;
  struct spot {
    int inner, outer, line, term;
  };
  CUtensorMap map;
  unsigned inner_size;        /* of the batch's inner axis */
  int inner_step, outer_step; /* 0: repeats */

#if defined(MLKI_CUDA_HOPPER)
  MLKI_CUDA_MEMBER void prefetch() const { mlki_cuda_box_prefetch(&map); }

  MLKI_CUDA_MEMBER spot select(int64_t batch, int64_t line, int64_t term) const {
    const unsigned outer = (unsigned)batch / inner_size, inner = (unsigned)batch - outer * inner_size;
    spot at;
    at.inner = (int)inner * inner_step, at.outer = (int)outer * outer_step;
    at.line = (int)line, at.term = (int)term;
    return at;
  }

  template <int lines> MLKI_CUDA_MEMBER int bytes() const { return lines * 128; }
  MLKI_CUDA_MEMBER bool holes() const { return false; }

  template <int lines> MLKI_CUDA_MEMBER void load(unsigned char *to, uint64_t *arrived, spot &at) const {
    if (terms) {
      mlki_cuda_box_load(to, &map, arrived, at.term, at.line, at.inner, at.outer);
    } else {
#pragma unroll
      for (int l = 0; l < lines; l += 64)
        mlki_cuda_box_load(to + (uint32_t)l / 64 * MLKI_CUDA_WGMMA_BLOCK, &map, arrived, at.line + l, at.term, at.inner,
                           at.outer);
    }
    at.term += 64;
  }
#endif
};

#if defined(MLKI_CUDA_HOPPER)

/* A place in the ring of stages; round: parity of how often it was gone round. */
template <int stages> struct mlki_cuda_ring {
  int stage;
  uint32_t round;
  MLKI_CUDA_MEMBER mlki_cuda_ring() : stage(0), round(0) {}
  MLKI_CUDA_MEMBER void next() {
    if (++stage == stages) stage = 0, round ^= 1;
  }
};

/* What the roles of a block share. */
template <class T> struct mlki_cuda_wgmma_shared {
  unsigned char *stages;
  float *sums; /* of warp 0 */
  uint64_t *full, *empty;
  MLKI_CUDA_MEMBER mlki_cuda_wgmma_shared() {
    unsigned char *p = mlki_cuda_shared();
    p += (0u - mlki_cuda_shared_address(p)) % MLKI_CUDA_WGMMA_EIGHT;
    stages = p;
    sums = (float *)(p + T::stages * T::stage);
    full = (uint64_t *)(void *)(p + T::stages * T::stage + T::warps * T::put_down);
    empty = full + T::stages;
  }
};

/* Zeros in all stages, by all threads, before the first copy. */
template <class T> MLKI_CUDA_DEVICE void mlki_cuda_wgmma_clear(const mlki_cuda_wgmma_shared<T> &shared) {
  for (int i = (int)threadIdx.x * 16; i < T::stages * T::stage; i += T::threads * 16)
    *(uint4 *)(void *)(shared.stages + i) = make_uint4(0, 0, 0, 0);
  mlki_cuda_async_fence();
}

/* By one thread. */
template <class T, class A, class B>
MLKI_CUDA_DEVICE void mlki_cuda_wgmma_produce(const A &a, const B &b, const mlki_cuda_product &p, unsigned blocks,
                                              const mlki_cuda_wgmma_shared<T> &shared) {
  mlki_cuda_ring<T::stages> ring;
  for (unsigned block = blockIdx.x; block < blocks; block += gridDim.x) {
    const mlki_cuda_gemm_place at = mlki_cuda_gemm_place_of(p, T::rows, T::columns, block, T::raster);
    typename A::spot spot_a = a.select(at.batch, at.i0, at.k0);
    typename B::spot spot_b = b.select(at.batch, at.j0, at.k0);
#pragma unroll 1
    for (int64_t k = at.k0; k < at.k1; k += T::depth) {
      unsigned char *to = shared.stages + ring.stage * T::stage;
      uint64_t *full = shared.full + ring.stage;
      mlki_cuda_mbarrier_wait(shared.empty + ring.stage, ring.round ^ 1);
      mlki_cuda_mbarrier_expect(full, a.template bytes<T::rows>() + b.template bytes<T::columns>());
      a.template load<T::rows>(to, full, spot_a);
      b.template load<T::columns>(to + T::bytes_a, full, spot_b);
      ring.next();
    }
  }
}

/* acc += a stage's product; from: this consumer's 64 lines of A, and B. */
template <class T, int dtype, class A, class B>
MLKI_CUDA_DEVICE void mlki_cuda_wgmma_stage(float (&acc)[T::sums], uint32_t from_a, uint32_t from_b) {
  constexpr uint32_t on_a = A::along_terms ? 32 : 2 * MLKI_CUDA_WGMMA_EIGHT,
                     on_b = B::along_terms ? 32 : 2 * MLKI_CUDA_WGMMA_EIGHT;
  mlki_cuda_wgmma_fence();
#pragma unroll
  for (uint32_t k = 0; k < T::depth / 16; k++)
    mlki_cuda_wgmma<dtype, !A::along_terms, !B::along_terms>(
        acc, mlki_cuda_wgmma_matrix(from_a + k * on_a, MLKI_CUDA_WGMMA_BLOCK, MLKI_CUDA_WGMMA_EIGHT),
        mlki_cuda_wgmma_matrix(from_b + k * on_b, MLKI_CUDA_WGMMA_BLOCK, MLKI_CUDA_WGMMA_EIGHT));
  mlki_cuda_wgmma_commit();
}

/* 16 rows x columns sums that a warp has put down, as 16 bits, eight at a time. The general way has seven times the
   instructions, in which a tile's products wait. */
template <int columns, class W>
MLKI_CUDA_DEVICE void mlki_cuda_wgmma_eights(const W &w, const mlki_cuda_product &p, const mlki_cuda_gemm_place &at,
                                             int dtype, const float *sums, int row, int column) {
  const int r = (int)threadIdx.x % MLKI_CUDA_WARP / (columns / 8), c = (int)threadIdx.x % (columns / 8) * 8;
  constexpr int step = MLKI_CUDA_WARP / (columns / 8);
  const int64_t j = at.j0 + column + c;
  __syncwarp();
#pragma unroll
  for (int i = 0; i < 16; i += step) {
    const float4 *from = (const float4 *)(sums + mlki_cuda_gemm_spot<columns>(r + i, c));
    const float4 a = from[0], b = from[1];
    uint4 t;
    if (dtype == MLK_F16)
      t = make_uint4(mlki_cuda_pack16<MLK_F16>(a.x, a.y), mlki_cuda_pack16<MLK_F16>(a.z, a.w),
                     mlki_cuda_pack16<MLK_F16>(b.x, b.y), mlki_cuda_pack16<MLK_F16>(b.z, b.w));
    else
      t = make_uint4(mlki_cuda_pack16<MLK_BF16>(a.x, a.y), mlki_cuda_pack16<MLK_BF16>(a.z, a.w),
                     mlki_cuda_pack16<MLK_BF16>(b.x, b.y), mlki_cuda_pack16<MLK_BF16>(b.z, b.w));
    if (at.i0 + row + r + i >= p.m || j >= p.n) continue;
    uint16_t *to = w.eight(at.i0 + row + r + i, j);
    if (to) *(uint4 *)(void *)to = t;
  }
}

/* Writes the warp's 16 rows of sums, 64 columns at a time. */
template <class T, class W>
MLKI_CUDA_DEVICE void mlki_cuda_wgmma_write(const W &w, const mlki_cuda_product &p, const mlki_cuda_gemm_place &at,
                                            const float (&acc)[T::sums], float *sums, int row) {
  constexpr int eights = T::written / 8, held = T::written / 2;
  const int lane = (int)threadIdx.x % MLKI_CUDA_WARP;
  W mine = w;
  int dtype;
  const bool whole = mine.whole(&dtype) && !p.slots;
  mine.select(at.batch);
#pragma unroll 1
  for (int part = 0; part < T::columns / T::written; part++) {
    __syncwarp(); /* the part before was read */
#pragma unroll
    for (int c = 0; c < T::columns / T::written; c++) /* registers have no index of run time */
      if (c == part)
#pragma unroll
        for (int j = 0; j < eights; j++)
#pragma unroll
          for (int half = 0; half < 2; half++)
            *(float2 *)(sums + mlki_cuda_gemm_spot<T::written>(half * 8 + lane / 4, j * 8 + lane % 4 * 2)) =
                make_float2(acc[c * held + j * 4 + half * 2], acc[c * held + j * 4 + half * 2 + 1]);
    if (whole)
      mlki_cuda_wgmma_eights<T::written>(mine, p, at, dtype, sums, row, part * T::written);
    else
      mlki_cuda_gemm_write<16, T::written>(mine, p, at, sums, row, part * T::written);
  }
}

/* acc = the sums of a tile, from the ring's next stages; number: which 64 of A's lines. */
template <class T, int dtype, class A, class B>
MLKI_CUDA_DEVICE void mlki_cuda_wgmma_sum(float (&acc)[T::sums], const mlki_cuda_gemm_place &at,
                                          const mlki_cuda_wgmma_shared<T> &shared, mlki_cuda_ring<T::stages> &ring,
                                          int number) {
  const bool speaks = threadIdx.x % MLKI_CUDA_WARP == 0; /* for its warp */
  const uint32_t stages = mlki_cuda_shared_address(shared.stages);
  uint64_t *before = NULL; /* of the stage whose products may be under way */
#pragma unroll
  for (int i = 0; i < T::sums; i++) acc[i] = 0.0f;
#pragma unroll 1
  for (int64_t k = at.k0; k < at.k1; k += T::depth) {
    const uint32_t from = stages + (uint32_t)(ring.stage * T::stage);
    mlki_cuda_mbarrier_wait(shared.full + ring.stage, ring.round);
    mlki_cuda_wgmma_stage<T, dtype, A, B>(acc, from + (uint32_t)number * MLKI_CUDA_WGMMA_BLOCK, from + T::bytes_a);
    mlki_cuda_wgmma_wait<1>(acc);
    if (before && speaks) mlki_cuda_mbarrier_arrive(before);
    before = shared.empty + ring.stage;
    ring.next();
  }
  mlki_cuda_wgmma_wait<0>(acc);
  if (before && speaks) mlki_cuda_mbarrier_arrive(before);
}

/* By a consumer, number 0 or 1. The types' loops are apart: what is in flight stays in its registers. */
template <class T, class A, class B, class W>
MLKI_CUDA_DEVICE void mlki_cuda_wgmma_consume(const W &w, const mlki_cuda_product &p, unsigned blocks, int dtype,
                                              const mlki_cuda_wgmma_shared<T> &shared, int number) {
  const int warp = (int)threadIdx.x / MLKI_CUDA_WARP % 4;
  float *sums = shared.sums + (number * 4 + warp) * (T::put_down / 4);
  mlki_cuda_ring<T::stages> ring;
  for (unsigned block = blockIdx.x; block < blocks; block += gridDim.x) {
    const mlki_cuda_gemm_place at = mlki_cuda_gemm_place_of(p, T::rows, T::columns, block, T::raster);
    float acc[T::sums];
    if (dtype == MLK_F16)
      mlki_cuda_wgmma_sum<T, MLK_F16, A, B>(acc, at, shared, ring, number);
    else
      mlki_cuda_wgmma_sum<T, MLK_BF16, A, B>(acc, at, shared, ring, number);
    mlki_cuda_wgmma_write<T>(w, p, at, acc, sums, number * 64 + warp * 16);
  }
}
#endif /* MLKI_CUDA_HOPPER */

/* blocks: tiles, parts and matrices of the launch, by turns of the grid. 168 registers a thread at the start (65536 /
   384) are 40 of the producer and 232 of the consumers. */
template <class T, class A, class B, class W>
static __global__ void __launch_bounds__(T::threads, 1)
    mlki_cuda_wgmma_kernel(const __grid_constant__ A a, const __grid_constant__ B b, W w, mlki_cuda_product p,
                           unsigned blocks, int dtype) {
#if defined(MLKI_CUDA_HOPPER)
  const mlki_cuda_wgmma_shared<T> shared;
  const int group = (int)threadIdx.x / 128;
  if (threadIdx.x == 0) {
    a.prefetch(), b.prefetch();
    for (int s = 0; s < T::stages; s++)
      mlki_cuda_mbarrier_init(shared.full + s, 1), mlki_cuda_mbarrier_init(shared.empty + s, T::warps);
    mlki_cuda_mbarrier_fence();
  }
  if (a.holes()) mlki_cuda_wgmma_clear(shared);
  __syncthreads();
  if (group == 0) {
    mlki_cuda_registers_give<40>();
    if (threadIdx.x == 0) mlki_cuda_wgmma_produce<T>(a, b, p, blocks, shared);
  } else {
    mlki_cuda_registers_take<232>();
    mlki_cuda_wgmma_consume<T, A, B>(w, p, blocks, dtype, shared, group - 1);
  }
#endif
}

/* Can this call's 16-bit operands go to warpgroups at all? */
static inline int mlki_cuda_has_wgmma(const mlki_cuda_call *call) {
  return call->device->wgmma_flops > 0 && call->device->shared_bytes >= mlki_cuda_wgmma_wide::shared_bytes &&
         (call->device->encode || call->device->planned);
}

static const mlki_cuda_gemm_cost mlki_cuda_wgmma_costs[] = {{128, 128, 0.65, 0.65}, {128, 256, 0.78, 0.78}};

static inline mlki_cuda_gemm_form mlki_cuda_wgmma_form(const mlki_cuda_device *device, const mlki_cuda_product *p) {
  return mlki_cuda_gemm_choose(device, mlki_cuda_wgmma_costs, 2, device->wgmma_flops / 2, 1, p);
}

/* The product of batches of m x k and n x k elements of dtype into w. One block at a time fits a multiprocessor. */
template <class T, class A, class B, class W>
static void mlki_cuda_wgmma_run(mlki_cuda_call *call, int dtype, const A &a, const B &b, const W &w,
                                const mlki_cuda_product &p, const mlki_cuda_gemm_form &form) {
  mlki_cuda_gemm_run(call, w, p, T::rows, T::columns, form.chunk,
                     [&](const mlki_cuda_product &product, int64_t blocks) {
                       mlki_cuda_launch(call, mlki_cuda_min(blocks, call->device->sms), T::threads, T::shared_bytes,
                                        mlki_cuda_wgmma_kernel<T, A, B, W>, a, b, w, product, (unsigned)blocks, dtype);
                     });
  mlki_cuda_gemm_tell(call, form.chunk ? "wgmma_split_k" : "wgmma", form.seconds);
}

#define MLKI_CUDA_MAP_RANK 5

/* A tensor of 16-bit elements for the copy engine, the first axis dense: sizes, steps from element to element and the
   box in elements; of axis i every taken[i]th element of a box is taken. Steps of axes of one element do not matter.
   False: the copy engine cannot read memory that is laid out so, or the driver does not take it. (cuda.h writes of
   strides that grow from axis to axis; CUTLASS and FlashAttention-3 pass them in any order, as is done here.) */
static inline bool mlki_cuda_map_of(const mlki_cuda_call *call, CUtensorMap *map, int dtype, const void *memory,
                                    int rank, const int64_t *size, const int64_t *step, const cuuint32_t *box,
                                    const cuuint32_t *taken) {
  cuuint64_t sizes[MLKI_CUDA_MAP_RANK], strides[MLKI_CUDA_MAP_RANK], natural = 2;
  bool fits = (uintptr_t)memory % 16 == 0 && (size[0] == 1 || step[0] == 1);
  for (int i = 0; i < rank; i++) {
    const bool steps = i == 0 || size[i] == 1 || (step[i] > 0 && step[i] % 8 == 0); /* multiples of 16 bytes */
    fits = fits && steps && size[i] > 0 && size[i] <= INT32_MAX - 256;
    sizes[i] = (cuuint64_t)size[i];
    if (i > 0) strides[i - 1] = natural = size[i] == 1 ? (natural + 15) / 16 * 16 : (cuuint64_t)step[i] * 2;
    fits = fits && natural < MLKI_CUDA_MOST_BYTES;
    natural *= sizes[i];
  }
  if (!fits || !call->run) return fits;
  return call->device->encode(map,
                              dtype == MLK_F16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                              (cuuint32_t)rank, (void *)(uintptr_t)memory, sizes, strides, box, taken,
                              CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                              CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

/* The same of four axes, all elements; boxes are 64 of the first and so many others of the second. */
static inline bool mlki_cuda_boxes_of(const mlki_cuda_call *call, CUtensorMap *map, int dtype, const void *memory,
                                      const int64_t size[4], const int64_t step[4], int others) {
  const cuuint32_t box[4] = {64, (cuuint32_t)others, 1, 1}, taken[4] = {1, 1, 1, 1};
  return mlki_cuda_map_of(call, map, dtype, memory, 4, size, step, box, taken);
}

#endif /* MLKI_CUDA_PRODUCTS */

/* >>cuda_matmul ---------------------------------------------------------------------------------------------------- */
#if defined(MLKI_CUDA_MATMUL)

/* A call as the kernels need it: D's rows dense where D is dense at all. */
typedef struct mlki_cuda_matmul {
  int64_t m, n, k, batches;
  int dtype;            /* of A and B */
  mlki_cuda_plane a, b; /* b as N x K: rs is the stride of n */
  mlki_cuda_epilogue e;
} mlki_cuda_matmul;

/* Strides of t in D's axes: see mlki_broadcast_strides. */
static mlki_cuda_plane mlki_cuda_plane_of(const mlk_tensor *t, const mlk_tensor *d) {
  const mlki_cuda_view v = mlki_cuda_view_of(t);
  mlki_cuda_plane x;
  memset(&x, 0, sizeof x);
  x.p = v.p, x.dtype = v.dtype;
  for (int i = 0; i < v.rank; i++) {
    const int at = d->rank - v.rank + i;
    const int64_t stride = v.size[i] == 1 ? 0 : v.stride[i];
    if (at == d->rank - 1)
      x.cs = stride;
    else if (at == d->rank - 2)
      x.rs = stride;
    else
      x.step[at] = stride;
  }
  return x;
}

static void mlki_cuda_plane_turn(mlki_cuda_plane *x) {
  const int64_t rs = x->rs;
  x->rs = x->cs, x->cs = rs;
}

/* Can count elements from j % count == 0 on be read at once, in every row of every matrix? */
static int mlki_cuda_plane_vector(const mlki_cuda_plane *x, int rank, int count) {
  const int bytes = x->dtype == MLK_F32 ? 4 : 2;
  int fits = x->cs == 1 && x->rs % count == 0 && (uintptr_t)x->p % (uintptr_t)(count * bytes) == 0;
  for (int i = 0; i < rank; i++) fits = fits && x->step[i] % count == 0;
  return fits;
}

/* Batch axes that all tensors step through alike become one. */
static void mlki_cuda_matmul_merge(mlki_cuda_matmul *mm) {
  mlki_cuda_plane *all[] = {&mm->a, &mm->b, &mm->e.c, &mm->e.bias, &mm->e.residual, &mm->e.preact, &mm->e.d};
  mlki_cuda_batch *batch = &mm->e.batch;
  for (int x = batch->rank - 2; x >= 0; x--) {
    int alike = 1;
    for (mlki_cuda_plane *t : all) alike = alike && (!t->p || t->step[x] == t->step[x + 1] * batch->size[x + 1]);
    if (!alike && batch->size[x] != 1 && batch->size[x + 1] != 1) continue;
    for (mlki_cuda_plane *t : all) {
      if (alike || batch->size[x] == 1) t->step[x] = t->step[x + 1];
      for (int y = x + 1; y + 1 < batch->rank; y++) t->step[y] = t->step[y + 1];
    }
    batch->size[x] *= batch->size[x + 1];
    for (int y = x + 1; y + 1 < batch->rank; y++) batch->size[y] = batch->size[y + 1];
    batch->rank--;
  }
}

static mlki_cuda_matmul mlki_cuda_matmul_of(const mlk_matmul_desc *desc) {
  const mlk_tensor *d = &desc->d;
  mlki_cuda_matmul mm;
  memset(&mm, 0, sizeof mm);
  mlki_cuda_epilogue *e = &mm.e;
  mm.m = d->shape[d->rank - 2], mm.n = d->shape[d->rank - 1], mm.k = desc->a.shape[desc->a.rank - 1];
  mm.dtype = desc->a.dtype, mm.batches = 1;
  e->batch.rank = d->rank - 2;
  for (int i = 0; i < e->batch.rank; i++) e->batch.size[i] = d->shape[i], mm.batches *= d->shape[i];
  mm.a = mlki_cuda_plane_of(&desc->a, d), mm.b = mlki_cuda_plane_of(&desc->b, d);
  mlki_cuda_plane_turn(&mm.b);
  e->c = mlki_cuda_plane_of(&desc->c, d), e->bias = mlki_cuda_plane_of(&desc->bias, d);
  e->residual = mlki_cuda_plane_of(&desc->residual, d), e->preact = mlki_cuda_plane_of(&desc->preact, d);
  e->d = mlki_cuda_plane_of(d, d);
  e->alpha = desc->alpha ? *desc->alpha : 1.0f;
  e->beta = desc->beta ? *desc->beta : desc->c.data ? 1.0f : 0.0f;
  e->activation = desc->activation;
  if (e->beta == 0.0f)
    e->c.p = NULL;
  else if (!e->c.p)
    e->c = e->d;
  if (e->alpha == 0.0f) mm.k = 0;
  e->plain = e->alpha == 1.0f && !e->c.p && !e->bias.p && !e->residual.p && !e->preact.p && !e->activation;
  const int few = mm.k < 16 * MLKI_CUDA_THIN ? MLKI_CUDA_FEW : MLKI_CUDA_THIN; /* where D is little next to A or B */
  const int few_columns = mm.n <= few && mm.m > mm.n, few_rows = mm.m <= few && !few_columns;
  if (few_columns ||
      (!few_rows && e->d.cs != 1 && e->d.rs == 1)) { /* D^T = B^T A^T: few rows, or rows that are dense */
    mlki_cuda_plane *const turn[] = {&e->c, &e->bias, &e->residual, &e->preact, &e->d};
    const mlki_cuda_plane a = mm.a;
    const int64_t m = mm.m;
    mm.a = mm.b, mm.b = a, mm.m = mm.n, mm.n = m;
    for (mlki_cuda_plane *t : turn) mlki_cuda_plane_turn(t);
  }
  mlki_cuda_matmul_merge(&mm);
  mlki_cuda_plane *const in_rows[] = {&e->c, &e->bias, &e->residual, &e->preact, &e->d};
  for (mlki_cuda_plane *t : in_rows) t->vector = mlki_cuda_plane_vector(t, e->batch.rank, 4);
  e->eights = e->plain && e->d.dtype != MLK_F32 && mm.n % 8 == 0 && mlki_cuda_plane_vector(&e->d, e->batch.rank, 8);
  return mm;
}

/* x, lines x terms, as a reader. */
template <class T>
static mlki_cuda_matrix<T> mlki_cuda_matmul_reader(const mlki_cuda_matmul *mm, const mlki_cuda_plane *x,
                                                   int64_t lines) {
  mlki_cuda_plane turned = *x;
  mlki_cuda_matrix<T> r;
  memset(&r, 0, sizeof r);
  mlki_cuda_plane_turn(&turned);
  r.p = (const T *)(const void *)x->p, r.dtype = x->dtype, r.lines = lines;
  r.line_step = x->rs, r.term_step = x->cs, r.batch = mm->e.batch;
  memcpy(r.step, x->step, sizeof r.step);
  const int64_t line_step = x->rs < 0 ? -x->rs : x->rs, term_step = x->cs < 0 ? -x->cs : x->cs;
  r.way = mlki_cuda_plane_vector(&turned, r.batch.rank, 4)     ? MLKI_CUDA_VECTORS
          : mm->k > 1 && (lines == 1 || term_step < line_step) ? MLKI_CUDA_TERMS
                                                               : MLKI_CUDA_LINES;
  return r;
}

/* The same for tensor cores: eights along the axis that is dense. */
template <bool terms> struct mlki_cuda_eights : mlki_cuda_matrix<uint16_t> {
  static constexpr bool along_terms = terms;
  int aligned;
  __device__ bool whole() const { return aligned != 0; }
};

template <bool terms>
static mlki_cuda_eights<terms> mlki_cuda_matmul_eights(const mlki_cuda_matmul *mm, const mlki_cuda_plane *x,
                                                       int64_t lines) {
  mlki_cuda_plane turned = *x;
  mlki_cuda_eights<terms> r;
  mlki_cuda_plane_turn(&turned);
  static_cast<mlki_cuda_matrix<uint16_t> &>(r) = mlki_cuda_matmul_reader<uint16_t>(mm, x, lines);
  r.aligned = mlki_cuda_plane_vector(terms ? x : &turned, mm->e.batch.rank, 8);
  return r;
}

/* Is x, lines x terms, read along the terms? */
static int mlki_cuda_matmul_along_terms(const mlki_cuda_plane *x) {
  const int64_t line_step = x->rs < 0 ? -x->rs : x->rs, term_step = x->cs < 0 ? -x->cs : x->cs;
  return x->cs == 1 || (x->rs != 1 && term_step < line_step);
}

static void mlki_cuda_matmul_mma(mlki_cuda_call *call, const mlki_cuda_matmul *mm) {
  const mlki_cuda_eights<true> a_terms = mlki_cuda_matmul_eights<true>(mm, &mm->a, mm->m),
                               b_terms = mlki_cuda_matmul_eights<true>(mm, &mm->b, mm->n);
  const mlki_cuda_eights<false> a_lines = mlki_cuda_matmul_eights<false>(mm, &mm->a, mm->m),
                                b_lines = mlki_cuda_matmul_eights<false>(mm, &mm->b, mm->n);
  const int a_along = mlki_cuda_matmul_along_terms(&mm->a), b_along = mlki_cuda_matmul_along_terms(&mm->b);
  const auto run = [&](const auto &a, const auto &b) {
    if (mm->m <= MLKI_CUDA_THIN)
      mlki_cuda_thin_mma(call, mm->dtype, a, b, mm->e, mlki_cuda_product_of(mm->batches, mm->m, mm->n, mm->k));
    else
      mlki_cuda_gemm_mma(call, mm->dtype, a, b, mm->e, mm->batches, mm->m, mm->n, mm->k);
  };
  if (a_along && b_along)
    run(a_terms, b_terms);
  else if (a_along)
    run(a_terms, b_lines);
  else if (b_along)
    run(a_lines, b_terms);
  else
    run(a_lines, b_lines);
}

/* x, lines x terms, as boxes for tiles of so many lines. False: the copy engine cannot read memory
   that is laid out so. */
template <bool terms>
static bool mlki_cuda_matmul_boxes(const mlki_cuda_call *call, const mlki_cuda_matmul *mm, const mlki_cuda_plane *x,
                                   int64_t lines, int tile, mlki_cuda_boxes<terms> *r) {
  const mlki_cuda_batch *batch = &mm->e.batch;
  const int64_t dense = terms ? x->cs : x->rs, other = terms ? x->rs : x->cs;
  int64_t size[4] = {terms ? mm->k : lines, terms ? lines : mm->k, 1, 1}, step[4] = {dense, other, 0, 0};
  memset(r, 0, sizeof *r);
  if (batch->rank > 2 || mm->batches > INT32_MAX) return false;
  for (int i = 0; i < batch->rank; i++) {
    const int at = batch->rank - 1 - i;
    if (x->step[at] != 0) size[2 + i] = batch->size[at], step[2 + i] = x->step[at];
  }
  r->inner_size = batch->rank > 0 ? (unsigned)batch->size[batch->rank - 1] : 1u;
  r->inner_step = size[2] > 1, r->outer_step = size[3] > 1;
  return mlki_cuda_boxes_of(call, &r->map, mm->dtype, x->p, size, step, terms ? tile : 64);
}

template <class T, bool a_terms, bool b_terms>
static bool mlki_cuda_matmul_wgmma_run(mlki_cuda_call *call, const mlki_cuda_matmul *mm,
                                       const mlki_cuda_gemm_form &form) {
  const mlki_cuda_product p = mlki_cuda_product_of(mm->batches, mm->m, mm->n, mm->k);
  mlki_cuda_boxes<a_terms> a;
  mlki_cuda_boxes<b_terms> b;
  if (!mlki_cuda_matmul_boxes(call, mm, &mm->a, mm->m, T::rows, &a)) return false;
  if (!mlki_cuda_matmul_boxes(call, mm, &mm->b, mm->n, T::columns, &b)) return false;
  mlki_cuda_wgmma_run<T>(call, mm->dtype, a, b, mm->e, p, form);
  return true;
}

template <class T>
static bool mlki_cuda_matmul_wgmma_tile(mlki_cuda_call *call, const mlki_cuda_matmul *mm,
                                        const mlki_cuda_gemm_form &form) {
  const int a_along = mlki_cuda_matmul_along_terms(&mm->a), b_along = mlki_cuda_matmul_along_terms(&mm->b);
  if (a_along && b_along) return mlki_cuda_matmul_wgmma_run<T, true, true>(call, mm, form);
  if (a_along) return mlki_cuda_matmul_wgmma_run<T, true, false>(call, mm, form);
  if (b_along) return mlki_cuda_matmul_wgmma_run<T, false, true>(call, mm, form);
  return mlki_cuda_matmul_wgmma_run<T, false, false>(call, mm, form);
}

/* The product by warpgroups where they can and are predicted to be quicker, else by warps. How memory is aligned may
   differ between plan and call, and the driver may refuse: so the workspace is enough for either. */
static void mlki_cuda_matmul_tensor(mlki_cuda_call *call, const mlki_cuda_matmul *mm) {
  if (mm->k == 0 || !mlki_cuda_has_wgmma(call)) {
    mlki_cuda_matmul_mma(call, mm);
    return;
  }
  const mlki_cuda_product p = mlki_cuda_product_of(mm->batches, mm->m, mm->n, mm->k);
  const mlki_cuda_gemm_form form = mlki_cuda_wgmma_form(call->device, &p);
  const mlki_cuda_gemm_cost *tile = &mlki_cuda_wgmma_costs[form.tile];
  mlk_backend_call io = *call->io;
  mlki_cuda_call warps = *call; /* planned only, as is the other */
  warps.io = &io, warps.run = 0, warps.base = NULL;
  mlki_cuda_call groups = warps;
  mlki_cuda_matmul_mma(&warps, mm);
  mlki_cuda_gemm_run(&groups, mm->e, p, tile->rows, tile->columns, form.chunk,
                     [](const mlki_cuda_product &, int64_t) {});
  const bool quicker = form.seconds < warps.model;
  const bool done = quicker && (form.tile == 0 ? mlki_cuda_matmul_wgmma_tile<mlki_cuda_wgmma_large>(call, mm, form)
                                               : mlki_cuda_matmul_wgmma_tile<mlki_cuda_wgmma_wide>(call, mm, form));
  if (!done) mlki_cuda_matmul_mma(call, mm);
  if (call->used < warps.used) call->used = warps.used;
  if (quicker && call->used < groups.used) call->used = groups.used;
}

static void mlki_cuda_matmul_tf32(mlki_cuda_call *call, const mlki_cuda_matmul *mm) {
  const mlki_cuda_matrix<float> a = mlki_cuda_matmul_reader<float>(mm, &mm->a, mm->m),
                                b = mlki_cuda_matmul_reader<float>(mm, &mm->b, mm->n);
  if (mm->m <= MLKI_CUDA_THIN)
    mlki_cuda_thin_tf32(call, a, b, mm->e, mlki_cuda_product_of(mm->batches, mm->m, mm->n, mm->k));
  else
    mlki_cuda_gemm_tf32(call, a, b, mm->e, mm->batches, mm->m, mm->n, mm->k);
}

template <class T> static void mlki_cuda_matmul_simt(mlki_cuda_call *call, const mlki_cuda_matmul *mm) {
  const mlki_cuda_matrix<T> a = mlki_cuda_matmul_reader<T>(mm, &mm->a, mm->m),
                            b = mlki_cuda_matmul_reader<T>(mm, &mm->b, mm->n);
  if constexpr (sizeof(T) == 4)
    if (mm->m <= MLKI_CUDA_THIN && call->device->tier >= 800) {
      mlki_cuda_thin_simt(call, a, b, mm->e, mlki_cuda_product_of(mm->batches, mm->m, mm->n, mm->k));
      return;
    }
  mlki_cuda_gemm_simt(call, a, b, mm->e, mm->batches, mm->m, mm->n, mm->k);
}

template <class T> static void mlki_cuda_matmul_few(mlki_cuda_call *call, const mlki_cuda_matmul *mm) {
  const int rank = mm->e.batch.rank, wide = 4 / (int)sizeof(T);
  mlki_cuda_matrix<T> a = mlki_cuda_matmul_reader<T>(mm, &mm->a, mm->m),
                      b = mlki_cuda_matmul_reader<T>(mm, &mm->b, mm->n);
  const mlki_cuda_product p = mlki_cuda_product_of(mm->batches, mm->m, mm->n, mm->k);
  mlki_cuda_plane turned = mm->b;
  mlki_cuda_plane_turn(&turned);
  const int aligned = b.way == MLKI_CUDA_TERMS ? mlki_cuda_plane_vector(&mm->b, rank, 16 / (int)sizeof(T))
                                               : mlki_cuda_plane_vector(&turned, rank, wide);
  if (mm->m == 1)
    mlki_cuda_few_run<1>(call, a, b, mm->e, p, aligned);
  else
    mlki_cuda_few_run<MLKI_CUDA_FEW>(call, a, b, mm->e, p, aligned);
}

static mlk_status mlki_cuda_matmul_call(mlki_cuda_call *call, const mlk_matmul_desc *desc) {
  const mlki_cuda_matmul mm = mlki_cuda_matmul_of(desc);
  const double tiles = ceil((double)mm.m / 32) * ceil((double)mm.n / 32); /* of the smallest tile */
  if (tiles > INT32_MAX)
    return mlki_cuda_fail(call->error, MLK_ERR_SIZE, "d: has %g tiles of 32 x 32 elements, more than 2^31 - 1", tiles);
  const int mma = mlki_cuda_has_mma(call, mm.dtype);
  if (mm.batches == 0 || mm.m == 0 || mm.n == 0) return MLK_OK;
  if (mm.m <= MLKI_CUDA_FEW && mm.dtype == MLK_F32)
    mlki_cuda_matmul_few<float>(call, &mm);
  else if (mm.m <= MLKI_CUDA_FEW)
    mlki_cuda_matmul_few<uint16_t>(call, &mm);
  else if (mma && mm.dtype != MLK_F32 && mm.m <= MLKI_CUDA_THIN)
    mlki_cuda_matmul_mma(call, &mm); /* warpgroups multiply 64 rows */
  else if (mma && mm.dtype != MLK_F32)
    mlki_cuda_matmul_tensor(call, &mm);
  else if (mma)
    mlki_cuda_matmul_tf32(call, &mm);
  else if (mm.dtype == MLK_F32)
    mlki_cuda_matmul_simt<float>(call, &mm);
  else
    mlki_cuda_matmul_simt<uint16_t>(call, &mm);
  return MLK_OK;
}

#endif /* MLKI_CUDA_MATMUL */

/* >>cuda_conv ------------------------------------------------------------------------------------------------------ */
#if defined(MLKI_CUDA_CONV)

/* Convolution and its input gradient are one thing, a correlation, as in >>conv of mlk.h: every output is a sum over
   terms (tap, then read channel) of one group, read at places that move linearly with the output ("pixel") and the
   term. The input gradient with strides s is one such correlation, a phase, for each remainder modulo s. All are
   implicit matrix products: pixels x terms (the image, gathered) times terms x written channels (weights, packed once:
   no im2col buffer; Chetlur et al., "cuDNN: efficient primitives for deep learning", 2014). The weight gradient is a
   product over pixels.

   simt       f32 in strict mode: tiles of 8 x 8 sums a thread, chains of MLK_SEGMENT terms, the CPU's bits
   split      the same with the segments of one tile spread over blocks, then added in ascending order
   direct     few channels in a group: a thread sums four pixels of one or four channels, straight from memory
   mma, tf32  16-bit operands, and f32 in MLK_FAST, on tensor cores by >>cuda_gemm_mma; 16-bit images whose channels
              are not dense, aligned and eights are copied so first
   wgmma      the same of 16-bit operands by >>cuda_hopper, where predicted to be quicker: >>cuda_conv_hopper
   plain      what does not fit 32-bit offsets: a thread an output, in 64 bits */

#define MLKI_CUDA_CONV_PHASES 16        /* of one launch */
#define MLKI_CUDA_CONV_MOST   256       /* phases, before plain is the shorter way */
#define MLKI_CUDA_CONV_FEW    16        /* written channels of a group that direct is for */
#define MLKI_CUDA_CONV_ROUNDS 1024      /* of them, at most */
#define MLKI_CUDA_CONV_ROUND  (4 << 20) /* floats of segments of DW under way */
#define MLKI_CUDA_CONV_FAR    (1 << 29) /* bound of places along an axis; -2 of it is outside everything */

typedef struct mlki_cuda_image { /* a tensor [N, C, spatial...]; p NULL: absent */
  char *p;
  int dtype;
  int64_t n, c, s[3]; /* strides in elements */
} mlki_cuda_image;

/* One correlation: see mlki_conv_phase of mlk.h. */
typedef struct mlki_cuda_phase {
  int out[3], taps[3], origin[3], first[3], tap_first[3];
  mlki_cuda_divider by_image, out1, out2, taps1, taps2;
  int image_pixels;
  int64_t pixels, terms; /* outputs of all images; (tap, read channel) */
  int64_t length;        /* of a sum: terms, for the weight gradient pixels */
  int64_t w, w_group;    /* where its weights start among the packed, and from group to group */
  int64_t blocks;        /* of the phases before it in the launch */
  int m_tiles, splits;
} mlki_cuda_phase;

/* What kernels get. x is what is read, y what is written: X and Y, DY and DX, or X and DY for the weight gradient. */
typedef struct mlki_cuda_correlation {
  mlki_cuda_image x, y, residual, preact, dw;
  const char *bias, *w;   /* w: packed */
  int64_t bias_c, w_term; /* w_term: from term to term of the packed weights, which have w_columns */
  int bias_dtype, w_dtype, activation;
  float alpha, beta;
  int groups, cin, cout, w_columns;
  int in[3], step[3], dilation[3], skip[3], tap_skip[3];
  mlki_cuda_divider by_cin;
  int n_tiles;
  int channels_last; /* y's channels are nearer to each other than its pixels */
  float *partial;    /* [segment][group][m][n], or [n][m]; NULL: blocks do whole sums */
  int64_t segment;   /* the first of the launch */
  int64_t partial_m, partial_n, partial_group, partial_segment;
  int phases;
  mlki_cuda_phase phase[MLKI_CUDA_CONV_PHASES];
} mlki_cuda_correlation;
static_assert(sizeof(mlki_cuda_correlation) + 512 <= MLKI_CUDA_ARGUMENTS, "a kernel's arguments");

/* Where an output begins to read, and what a term adds to that. */
typedef struct mlki_cuda_pixel {
  int64_t at;
  int i[3];
} mlki_cuda_pixel;
typedef struct mlki_cuda_term {
  int at, d[3];
} mlki_cuda_term;

/* Image n and output o of number p of a phase. */
MLKI_CUDA_DEVICE int64_t mlki_cuda_pixel_of(const mlki_cuda_phase &ph, int64_t p, int o[3]) {
  uint32_t column = (uint32_t)p;
  int64_t n;
  if (p <= INT32_MAX)
    n = mlki_cuda_divide(ph.by_image, &column);
  else
    n = p / ph.image_pixels, column = (uint32_t)(p - n * ph.image_pixels);
  uint32_t row = mlki_cuda_divide(ph.out2, &column);
  o[0] = (int)mlki_cuda_divide(ph.out1, &row), o[1] = (int)row, o[2] = (int)column;
  return n;
}

/* group: its first read channel's offset. Beyond the last pixel: outside everywhere. */
template <class C>
MLKI_CUDA_DEVICE mlki_cuda_pixel mlki_cuda_conv_pixel(const C &cv, const mlki_cuda_phase &ph, int64_t group,
                                                      int64_t p) {
  mlki_cuda_pixel pixel = {group, {-2 * MLKI_CUDA_CONV_FAR, 0, 0}};
  if (p >= ph.pixels) return pixel;
  int o[3];
  pixel.at += mlki_cuda_pixel_of(ph, p, o) * cv.x.n;
#pragma unroll
  for (int a = 0; a < 3; a++) {
    pixel.i[a] = o[a] * cv.step[a] + ph.origin[a];
    pixel.at += pixel.i[a] * cv.x.s[a];
  }
  return pixel;
}

/* Read channel and tap of a term. */
template <class C>
MLKI_CUDA_DEVICE uint32_t mlki_cuda_conv_tap(const C &cv, const mlki_cuda_phase &ph, int64_t term, int tap[3]) {
  uint32_t c = (uint32_t)term, column = mlki_cuda_divide(cv.by_cin, &c), row = mlki_cuda_divide(ph.taps2, &column);
  tap[0] = (int)mlki_cuda_divide(ph.taps1, &row), tap[1] = (int)row, tap[2] = (int)column;
  return c;
}

template <class C>
MLKI_CUDA_DEVICE mlki_cuda_term mlki_cuda_conv_term(const C &cv, const mlki_cuda_phase &ph, int64_t term) {
  mlki_cuda_term t = {0, {-2 * MLKI_CUDA_CONV_FAR, 0, 0}};
  if (term >= ph.terms) return t;
  int tap[3];
  int64_t at = mlki_cuda_conv_tap(cv, ph, term, tap) * cv.x.c;
#pragma unroll
  for (int a = 0; a < 3; a++) t.d[a] = tap[a] * cv.dilation[a], at += t.d[a] * cv.x.s[a];
  t.at = (int)at;
  return t;
}

template <class C>
MLKI_CUDA_DEVICE bool mlki_cuda_inside(const C &cv, const mlki_cuda_pixel &p, const mlki_cuda_term &t) {
  return (unsigned)(p.i[0] + t.d[0]) < (unsigned)cv.in[0] && (unsigned)(p.i[1] + t.d[1]) < (unsigned)cv.in[1] &&
         (unsigned)(p.i[2] + t.d[2]) < (unsigned)cv.in[2];
}

/* Where output o of image n, channel c, of a phase lies in a written tensor. */
template <class C>
MLKI_CUDA_DEVICE int64_t mlki_cuda_image_at(const C &cv, const mlki_cuda_phase &ph, const mlki_cuda_image &y, int64_t n,
                                            const int o[3]) {
  int64_t at = n * y.n;
#pragma unroll
  for (int a = 0; a < 3; a++) at += (ph.first[a] + (int64_t)o[a] * cv.skip[a]) * y.s[a];
  return at;
}

/* The epilogue of one output of channel c up to act, and after it: y, r and b are its places in y, residual and
   preact. */
template <class C>
MLKI_CUDA_DEVICE float mlki_cuda_conv_before(const C &cv, float sum, int64_t c, int64_t y, int64_t b) {
  float t = mlki_cuda_mul(cv.alpha, sum);
  if (cv.bias) t = mlki_cuda_fma(cv.alpha, sum, mlki_cuda_load(cv.bias, c * cv.bias_c, cv.bias_dtype));
  if (cv.beta != 0.0f) t = mlki_cuda_fma(cv.beta, mlki_cuda_load(cv.y.p, y, cv.y.dtype), t);
  if (cv.preact.p) mlki_cuda_store(cv.preact.p, b, cv.preact.dtype, t);
  return t;
}
template <class C> MLKI_CUDA_DEVICE void mlki_cuda_conv_after(const C &cv, float t, int64_t y, int64_t r) {
  if (cv.residual.p) t = mlki_cuda_add(t, mlki_cuda_load(cv.residual.p, r, cv.residual.dtype));
  mlki_cuda_store(cv.y.p, y, cv.y.dtype, t);
}
template <class C>
MLKI_CUDA_DEVICE void mlki_cuda_conv_finish(const C &cv, float sum, int64_t c, int64_t y, int64_t r, int64_t b) {
  const float t = mlki_cuda_conv_before(cv, sum, c, y, b);
  mlki_cuda_conv_after(cv, mlki_activate_cuda((mlk_activation)cv.activation, t), y, r);
}

/* ---- f32, strict: tiles of 8 x 8 sums a thread ---- */

#define MLKI_CUDA_CONV_BK     8 /* terms of a tile; MLK_SEGMENT is a multiple */
#define MLKI_CUDA_CONV_STAGES 4 /* tiles under way */

/* What a block does: tile (m, n) of a group of a phase, terms [first, last) of its sums: all, or one segment. */
typedef struct mlki_cuda_conv_block {
  int phase, group, n, split;
  int64_t m, first, last;
} mlki_cuda_conv_block;

MLKI_CUDA_DEVICE mlki_cuda_conv_block mlki_cuda_conv_block_of(const mlki_cuda_correlation &cv, int64_t index) {
  mlki_cuda_conv_block b;
  b.phase = 0;
  while (b.phase + 1 < cv.phases && index >= cv.phase[b.phase + 1].blocks) b.phase++;
  const mlki_cuda_phase &ph = cv.phase[b.phase];
  uint32_t left = (uint32_t)(index - ph.blocks);
  b.n = (int)(left % (uint32_t)cv.n_tiles), left /= (uint32_t)cv.n_tiles;
  b.m = left % (uint32_t)ph.m_tiles, left /= (uint32_t)ph.m_tiles;
  b.group = (int)(left % (uint32_t)cv.groups), b.split = (int)(left / (uint32_t)cv.groups);
  b.first = 0, b.last = ph.length;
  if (cv.partial) {
    b.first = (cv.segment + b.split) * MLK_SEGMENT;
    if (b.last > b.first + MLK_SEGMENT) b.last = b.first + MLK_SEGMENT;
  }
  return b;
}

#define MLKI_CUDA_MEMBER __device__ __forceinline__

/* 8 x 8 sums of a thread: rows lm * 4 and 32 + lm * 4 of a warp's 64, columns ln * 4 and 16 + ln * 4 of its 32. */
template <int BM, int BN> struct mlki_cuda_conv_tile {
  static constexpr int threads = BM * BN / 64, pitch_a = BM + 4, pitch_b = BN + 4;
  static constexpr int floats = MLKI_CUDA_CONV_BK * (pitch_a + pitch_b); /* of a stage */
  static_assert(BM % 64 == 0 && BN % 32 == 0, "a warp's part");
  float sum[8][8];

  static MLKI_CUDA_MEMBER int row(int i) {
    const int warp = (int)threadIdx.x / MLKI_CUDA_WARP, lane = (int)threadIdx.x % MLKI_CUDA_WARP;
    return warp % (BM / 64) * 64 + i / 4 * 32 + lane / 4 * 4 + i % 4;
  }
  static MLKI_CUDA_MEMBER int column(int j) {
    const int warp = (int)threadIdx.x / MLKI_CUDA_WARP, lane = (int)threadIdx.x % MLKI_CUDA_WARP;
    return warp / (BM / 64) * 32 + j / 4 * 16 + lane % 4 * 4 + j % 4;
  }
  MLKI_CUDA_MEMBER void fill(float value) {
#pragma unroll
    for (int i = 0; i < 8; i++)
#pragma unroll
      for (int j = 0; j < 8; j++) sum[i][j] = value;
  }
  /* Row 0 goes, the others move up: so a loop over rows need not be unrolled, since registers cannot be indexed. */
  MLKI_CUDA_MEMBER void shift(void) {
#pragma unroll
    for (int i = 0; i < 7; i++)
#pragma unroll
      for (int j = 0; j < 8; j++) sum[i][j] = sum[i + 1][j];
  }
  /* One term: a and b are its row of A's and of B's tile. */
  MLKI_CUDA_MEMBER void term(const float *a, const float *b) {
    float x[8], w[8];
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const float4 va = *(const float4 *)(const void *)(a + h * 32), vb = *(const float4 *)(const void *)(b + h * 16);
      x[4 * h] = va.x, x[4 * h + 1] = va.y, x[4 * h + 2] = va.z, x[4 * h + 3] = va.w;
      w[4 * h] = vb.x, w[4 * h + 1] = vb.y, w[4 * h + 2] = vb.z, w[4 * h + 3] = vb.w;
    }
#pragma unroll
    for (int i = 0; i < 8; i++)
#pragma unroll
      for (int j = 0; j < 8; j++) sum[i][j] = mlki_cuda_fma(x[i], w[j], sum[i][j]);
  }
  /* count terms of a stage. The last tile's rest is left out: a product of zeros could turn -0 into +0. */
  MLKI_CUDA_MEMBER void multiply(const float *stage, int count) {
    const float *a = stage + row(0), *b = stage + MLKI_CUDA_CONV_BK * pitch_a + column(0);
    if (count >= MLKI_CUDA_CONV_BK) {
#pragma unroll
      for (int k = 0; k < MLKI_CUDA_CONV_BK; k++) term(a + k * pitch_a, b + k * pitch_b);
    } else {
#pragma unroll 1
      for (int k = 0; k < count; k++) term(a + k * pitch_a, b + k * pitch_b);
    }
  }
};

/* A gathered tile: element (row, k) from places that rows and ks add up to. With k_fast neighbours in memory are
   neighbours along k, else along rows; so are then a warp's lanes. f32 goes by cp.async, 16 bits are widened on the
   way. */
template <int ROWS, int THREADS, int PITCH, bool k_fast> struct mlki_cuda_conv_walk {
  static constexpr int bk = MLKI_CUDA_CONV_BK, count = ROWS * bk / THREADS;
  static constexpr int rows = k_fast ? count : 1; /* of a thread */
  static_assert(THREADS % ROWS == 0 && THREADS % bk == 0, "a thread stays in one row, or at one k");
  static MLKI_CUDA_MEMBER int row(int i) {
    return k_fast ? (int)threadIdx.x / bk + i * (THREADS / bk) : (int)threadIdx.x % ROWS;
  }
  static MLKI_CUDA_MEMBER int k(int i) {
    return k_fast ? (int)threadIdx.x % bk : (int)threadIdx.x / ROWS + i * (THREADS / ROWS);
  }
  static MLKI_CUDA_MEMBER int at(int i) { return k(i) * PITCH + row(i); }
};

template <bool wide>
MLKI_CUDA_DEVICE void mlki_cuda_conv_fetch(float *to, const mlki_cuda_image &x, int64_t at, bool take) {
  if (wide)
    mlki_cuda_cp_async<4>(to, x.p + 4 * (take ? at : 0), take ? 4 : 0);
  else
    *to = take ? mlki_cuda_load(x.p, at, x.dtype) : 0.0f;
}

/* The terms of one k tile, worked out by the block's first threads two tiles ahead. */
typedef struct mlki_cuda_conv_terms {
  mlki_cuda_term slot[MLKI_CUDA_CONV_STAGES][MLKI_CUDA_CONV_BK];
} mlki_cuda_conv_terms;

/* A tile's finished sums go through shared memory, so that outputs are written in the order they lie in. */
template <int BM, int BN>
MLKI_CUDA_DEVICE void mlki_cuda_conv_write(const mlki_cuda_correlation &cv, const mlki_cuda_conv_block &block,
                                           const mlki_cuda_conv_tile<BM, BN> &tile, float *staged, int64_t *places) {
  typedef mlki_cuda_conv_tile<BM, BN> shape;
  const mlki_cuda_phase &ph = cv.phase[block.phase];
  const int step_m = cv.channels_last ? BN : 1, step_n = cv.channels_last ? 1 : BM;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 8; i++)
#pragma unroll
    for (int j = 0; j < 8; j++) staged[shape::row(i) * step_m + shape::column(j) * step_n] = tile.sum[i][j];
  for (int m = (int)threadIdx.x; m < BM; m += shape::threads) {
    int o[3];
    if (block.m * BM + m >= ph.pixels) continue;
    const int64_t n = mlki_cuda_pixel_of(ph, block.m * BM + m, o);
    places[m] = mlki_cuda_image_at(cv, ph, cv.y, n, o);
    places[BM + m] = mlki_cuda_image_at(cv, ph, cv.residual, n, o);
    places[2 * BM + m] = mlki_cuda_image_at(cv, ph, cv.preact, n, o);
  }
  __syncthreads();
#pragma unroll 1
  for (int e = (int)threadIdx.x; e < BM * BN; e += shape::threads) {
    const int m = cv.channels_last ? e / BN : e % BM, n = cv.channels_last ? e % BN : e / BM;
    if (block.m * BM + m >= ph.pixels || block.n * BN + n >= cv.cout) continue;
    const int64_t c = (int64_t)block.group * cv.cout + block.n * BN + n;
    mlki_cuda_conv_finish(cv, staged[e], c, places[m] + c * cv.y.c, places[BM + m] + c * cv.residual.c,
                          places[2 * BM + m] + c * cv.preact.c);
  }
}

/* The sums of one segment of a tile, into the workspace. */
template <int BM, int BN>
MLKI_CUDA_DEVICE void mlki_cuda_conv_park(const mlki_cuda_correlation &cv, const mlki_cuda_conv_block &block,
                                          int64_t rows, int64_t segment, const mlki_cuda_conv_tile<BM, BN> &tile) {
  typedef mlki_cuda_conv_tile<BM, BN> shape;
  float *to = cv.partial + segment * cv.partial_segment + block.group * cv.partial_group;
#pragma unroll
  for (int i = 0; i < 8; i++)
#pragma unroll
    for (int j = 0; j < 8; j++) {
      const int64_t m = block.m * BM + shape::row(i), n = block.n * BN + shape::column(j);
      if (m < rows && n < cv.cout) to[m * cv.partial_m + n * cv.partial_n] = tile.sum[i][j];
    }
}

/* total + the chains that end here, in ascending order; total starts as -0, which adds nothing. */
template <int BM, int BN>
MLKI_CUDA_DEVICE void mlki_cuda_conv_fold(mlki_cuda_conv_tile<BM, BN> &total, mlki_cuda_conv_tile<BM, BN> &chain) {
#pragma unroll
  for (int i = 0; i < 8; i++)
#pragma unroll
    for (int j = 0; j < 8; j++) total.sum[i][j] = mlki_cuda_add(total.sum[i][j], chain.sum[i][j]);
  chain.fill(0.0f);
}

/* Shared memory of a block: stages, terms; afterwards the staged tile and its places. */
template <int BM, int BN> constexpr size_t mlki_cuda_conv_simt_bytes(void) {
  return MLKI_CUDA_CONV_STAGES * mlki_cuda_conv_tile<BM, BN>::floats * 4 > BM * BN * 4 + 3 * BM * 8
             ? (size_t)MLKI_CUDA_CONV_STAGES * mlki_cuda_conv_tile<BM, BN>::floats * 4
             : (size_t)(BM * BN * 4 + 3 * BM * 8);
}

template <int BM, int BN, bool k_fast, bool wide>
static __global__ void __launch_bounds__(BM *BN / 64, 256 / (BM * BN / 64))
    mlki_cuda_conv_simt_kernel(const __grid_constant__ mlki_cuda_correlation cv) {
  typedef mlki_cuda_conv_tile<BM, BN> shape;
  typedef mlki_cuda_conv_walk<BM, shape::threads, shape::pitch_a, k_fast> walk;
  constexpr int bk = MLKI_CUDA_CONV_BK, stages = MLKI_CUDA_CONV_STAGES;
  __shared__ mlki_cuda_conv_terms terms;
  float *const memory = (float *)(void *)mlki_cuda_shared();
  const mlki_cuda_conv_block block = mlki_cuda_conv_block_of(cv, blockIdx.x);
  const mlki_cuda_phase &ph = cv.phase[block.phase];
  const float *const w = (const float *)(const void *)cv.w + ph.w + block.group * ph.w_group;
  const int tiles = (int)((block.last - block.first + bk - 1) / bk);
  shape chain, total;
  mlki_cuda_pixel pixel[walk::rows];
#pragma unroll
  for (int i = 0; i < walk::rows; i++)
    pixel[i] = mlki_cuda_conv_pixel(cv, ph, (int64_t)block.group * cv.cin * cv.x.c, block.m * BM + walk::row(i));
  const auto look = [&](int tile) { /* the terms of a tile */
                                    if (threadIdx.x < bk)
                                      terms.slot[tile % stages][threadIdx.x] = mlki_cuda_conv_term(
                                          cv, ph, block.first + tile * bk + (int)threadIdx.x);
  };
  const auto fetch = [&](int tile) {
    if (tile < tiles) {
      float *const a = memory + tile % stages * shape::floats, *const b = a + bk * shape::pitch_a;
#pragma unroll
      for (int i = 0; i < walk::count; i++) {
        const mlki_cuda_term t = terms.slot[tile % stages][walk::k(i)];
        const mlki_cuda_pixel &p = pixel[k_fast ? i : 0];
        mlki_cuda_conv_fetch<wide>(a + walk::at(i), cv.x, p.at + t.at, mlki_cuda_inside(cv, p, t));
      }
#pragma unroll
      for (int i = (int)threadIdx.x; i < bk * BN / 4; i += shape::threads) {
        const int k = i / (BN / 4), n = i % (BN / 4) * 4;
        const int64_t term = block.first + tile * bk + k;
        const bool take = term < ph.terms && block.n * BN + n < cv.cout;
        mlki_cuda_cp_async<16>(b + k * shape::pitch_b + n, w + (take ? term * cv.w_term + block.n * BN + n : 0),
                               take ? 16 : 0);
      }
    }
    mlki_cuda_cp_commit();
  };
  chain.fill(0.0f), total.fill(-0.0f);
#pragma unroll 1
  for (int i = 0; i < stages; i++) look(i);
  __syncthreads();
#pragma unroll 1 /* (not by the loop below: on sm_120 some of these would spill registers) */
  for (int i = 0; i < stages - 1; i++) fetch(i);
#pragma unroll 1
  for (int tile = 0; tile < tiles; tile++) {
    mlki_cuda_cp_wait<stages - 2>();
    __syncthreads();
    fetch(tile + stages - 1);
    look(tile + stages);
    const int64_t k = block.first + tile * bk;
    chain.multiply(memory + tile % stages * shape::floats, (int)(block.last - k < bk ? block.last - k : bk));
    if ((k + bk) % MLK_SEGMENT && tile + 1 < tiles) continue;
    if (cv.partial) {
      mlki_cuda_conv_park(cv, block, ph.pixels, k / MLK_SEGMENT, chain);
      chain.fill(0.0f);
    } else
      mlki_cuda_conv_fold(total, chain);
  }
  if (cv.partial) return;
  if (tiles == 0) total.fill(0.0f);
  mlki_cuda_conv_write(cv, block, total, memory, (int64_t *)(void *)(memory + BM * BN));
}

/* Adds the segments of a split sum in ascending order and finishes it: a thread an output, along the axis that lies
   dense. */
static __global__ void mlki_cuda_conv_add_kernel(const __grid_constant__ mlki_cuda_correlation cv, int segments) {
  const mlki_cuda_phase &ph = cv.phase[0];
  const int64_t inner = cv.channels_last ? cv.cout : ph.pixels, outer = cv.channels_last ? ph.pixels : cv.cout;
  const int64_t count = inner * outer * cv.groups, step = (int64_t)gridDim.x * blockDim.x;
  for (int64_t e = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; e < count; e += step) {
    const int64_t group = e / (inner * outer), left = e - group * inner * outer, i = left % inner, j = left / inner;
    const int64_t m = cv.channels_last ? j : i, n = cv.channels_last ? i : j, c = group * cv.cout + n;
    const float *from = cv.partial + group * cv.partial_group + m * cv.partial_m + n * cv.partial_n;
    float sum = *from;
    for (int s = 1; s < segments; s++) sum = mlki_cuda_add(sum, from[s * cv.partial_segment]);
    int o[3];
    const int64_t image = mlki_cuda_pixel_of(ph, m, o);
    mlki_cuda_conv_finish(cv, sum, c, mlki_cuda_image_at(cv, ph, cv.y, image, o) + c * cv.y.c,
                          mlki_cuda_image_at(cv, ph, cv.residual, image, o) + c * cv.residual.c,
                          mlki_cuda_image_at(cv, ph, cv.preact, image, o) + c * cv.preact.c);
  }
}

/* >>cuda_conv_weights -----------------------------------------------------------------------------------------------
   The weight gradient: terms x written channels, summed over pixels. */

/* A pixel, and its place in DY. */
typedef struct mlki_cuda_conv_place {
  mlki_cuda_pixel pixel;
  int64_t dy;
  bool taken; /* there is such a pixel */
} mlki_cuda_conv_place;

MLKI_CUDA_DEVICE mlki_cuda_conv_place mlki_cuda_conv_place_of(const mlki_cuda_correlation &cv,
                                                              const mlki_cuda_phase &ph, int64_t p) {
  mlki_cuda_conv_place place;
  int o[3];
  place.pixel = mlki_cuda_conv_pixel(cv, ph, 0, p);
  place.taken = p < ph.pixels;
  place.dy = 0;
  if (!place.taken) return place;
  const int64_t n = mlki_cuda_pixel_of(ph, p, o);
  place.dy = mlki_cuda_image_at(cv, ph, cv.y, n, o);
  return place;
}

/* Where the weight of a term lies in DW, for written channel 0. */
template <class C>
MLKI_CUDA_DEVICE int64_t mlki_cuda_conv_weight(const C &cv, const mlki_cuda_phase &ph, int64_t term) {
  int tap[3];
  const int64_t c = mlki_cuda_conv_tap(cv, ph, term, tap);
  return c * cv.dw.c + tap[0] * cv.dw.s[0] + tap[1] * cv.dw.s[1] + tap[2] * cv.dw.s[2];
}

template <class C> MLKI_CUDA_DEVICE void mlki_cuda_conv_weight_write(const C &cv, int64_t at, float sum) {
  if (cv.beta != 0.0f) sum = mlki_cuda_fma(cv.beta, mlki_cuda_load(cv.dw.p, at, cv.dw.dtype), sum);
  mlki_cuda_store(cv.dw.p, at, cv.dw.dtype, sum);
}

template <int BM, int BN, bool k_fast, bool wide>
static __global__ void __launch_bounds__(BM *BN / 64, 256 / (BM * BN / 64))
    mlki_cuda_conv_weights_kernel(const __grid_constant__ mlki_cuda_correlation cv) {
  typedef mlki_cuda_conv_tile<BM, BN> shape;
  typedef mlki_cuda_conv_walk<BM, shape::threads, shape::pitch_a, k_fast> walk_x;
  typedef mlki_cuda_conv_walk<BN, shape::threads, shape::pitch_b, k_fast> walk_dy;
  constexpr int bk = MLKI_CUDA_CONV_BK, stages = MLKI_CUDA_CONV_STAGES;
  __shared__ mlki_cuda_conv_place places[stages][bk];
  __shared__ mlki_cuda_term terms[BM];
  float *const memory = (float *)(void *)mlki_cuda_shared();
  const mlki_cuda_conv_block block = mlki_cuda_conv_block_of(cv, blockIdx.x);
  const mlki_cuda_phase &ph = cv.phase[0];
  const int tiles = (int)((block.last - block.first + bk - 1) / bk);
  const int64_t group_x = (int64_t)block.group * cv.cin * cv.x.c, group_dy = (int64_t)block.group * cv.cout;
  shape chain, total;
  for (int i = (int)threadIdx.x; i < BM; i += shape::threads) terms[i] = mlki_cuda_conv_term(cv, ph, block.m * BM + i);
  const auto look = [&](int tile) { /* the pixels of a tile */
                                    if (threadIdx.x < bk)
                                      places[tile % stages][threadIdx.x] = mlki_cuda_conv_place_of(
                                          cv, ph, block.first + (int64_t)tile * bk + (int)threadIdx.x);
  };
  const auto fetch = [&](int tile) {
    if (tile < tiles) {
      float *const a = memory + tile % stages * shape::floats, *const b = a + bk * shape::pitch_a;
      const mlki_cuda_conv_place *const place = places[tile % stages];
#pragma unroll
      for (int i = 0; i < walk_x::count; i++) {
        const mlki_cuda_pixel &p = place[walk_x::k(i)].pixel;
        const mlki_cuda_term &t = terms[walk_x::row(i)];
        mlki_cuda_conv_fetch<wide>(a + walk_x::at(i), cv.x, group_x + p.at + t.at, mlki_cuda_inside(cv, p, t));
      }
#pragma unroll
      for (int i = 0; i < walk_dy::count; i++) {
        const int n = block.n * BN + walk_dy::row(i);
        const mlki_cuda_conv_place &p = place[walk_dy::k(i)];
        mlki_cuda_conv_fetch<wide>(b + walk_dy::at(i), cv.y, p.dy + (group_dy + n) * cv.y.c, p.taken && n < cv.cout);
      }
    }
    mlki_cuda_cp_commit();
  };
  chain.fill(0.0f), total.fill(-0.0f);
#pragma unroll 1
  for (int i = 0; i < stages; i++) look(i);
  __syncthreads();
#pragma unroll 1
  for (int tile = 1 - stages; tile < tiles; tile++) { /* the first only fetch: see mlki_cuda_gemm_pipe */
    if (tile >= 0) {
      mlki_cuda_cp_wait<stages - 2>();
      __syncthreads();
    }
    fetch(tile + stages - 1);
    if (tile < 0) continue;
    look(tile + stages);
    const int64_t k = block.first + (int64_t)tile * bk;
    chain.multiply(memory + tile % stages * shape::floats, (int)(block.last - k < bk ? block.last - k : bk));
    if ((k + bk) % MLK_SEGMENT && tile + 1 < tiles) continue;
    if (cv.partial) {
      mlki_cuda_conv_park(cv, block, ph.terms, k / MLK_SEGMENT - cv.segment, chain);
      chain.fill(0.0f);
    } else
      mlki_cuda_conv_fold(total, chain);
  }
  if (cv.partial) return;
#pragma unroll 1
  for (int i = 0; i < 8; i++, total.shift()) {
    const int64_t m = block.m * BM + shape::row(i);
    if (m >= ph.terms) continue;
    const int64_t at = mlki_cuda_conv_weight(cv, ph, m);
#pragma unroll
    for (int j = 0; j < 8; j++) {
      const int n = block.n * BN + shape::column(j);
      if (n < cv.cout) mlki_cuda_conv_weight_write(cv, at + (group_dy + n) * cv.dw.n, tiles ? total.sum[0][j] : 0.0f);
    }
  }
}

/* Adds segments of sums of DW, [segment][group][term][n], to totals, ascending, and finishes them after the last. */
static __global__ void mlki_cuda_conv_weights_add_kernel(const __grid_constant__ mlki_cuda_correlation cv,
                                                         float *totals, int segments, int first, int last) {
  const mlki_cuda_phase &ph = cv.phase[0];
  const int64_t count = cv.partial_segment, step = (int64_t)gridDim.x * blockDim.x;
  for (int64_t e = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; e < count; e += step) {
    float sum = first ? -0.0f : totals[e];
    for (int s = 0; s < segments; s++) sum = mlki_cuda_add(sum, cv.partial[s * count + e]);
    const int64_t row = e / cv.cout, n = e - row * cv.cout, group = row / ph.terms;
    if (last)
      mlki_cuda_conv_weight_write(
          cv, mlki_cuda_conv_weight(cv, ph, row - group * ph.terms) + (group * cv.cout + n) * cv.dw.n, sum);
    else
      totals[e] = sum;
  }
}

/* >>cuda_conv_narrow ------------------------------------------------------------------------------------------------
   Few channels in a group: straight from memory. Weights packed for it, calls that do not fit 32 bits, DBIAS. */

#define MLKI_CUDA_CONV_PIXELS 4 /* of a thread */

/* A thread sums CO channels of four pixels: 32 apart where pixels lie dense and so are neighbours in a warp, else
   neighbours while a warp runs over channels. Weights are packed as [term][channel of all groups]. */
template <int CO, bool wide>
static __global__ void __launch_bounds__(256, CO == 1 ? 3 : 2)
    mlki_cuda_conv_direct_kernel(const __grid_constant__ mlki_cuda_correlation cv) {
  constexpr int P = MLKI_CUDA_CONV_PIXELS;
  __shared__ float sums[256][P * CO + 1];
  const int parts = (cv.cout + CO - 1) / CO;
  int index = 0;
  while (index + 1 < cv.phases && blockIdx.x >= cv.phase[index + 1].blocks) index++;
  const mlki_cuda_phase &ph = cv.phase[index];
  const int64_t units = (int64_t)cv.groups * parts, thread = (blockIdx.x - ph.blocks) * blockDim.x + threadIdx.x;
  const int64_t runs = (ph.pixels + P * MLKI_CUDA_WARP - 1) / (P * MLKI_CUDA_WARP); /* of a warp's pixels */
  int64_t unit, first, apart;
  if (cv.channels_last) {
    unit = thread % units, first = thread / units * P, apart = 1;
  } else {
    const int64_t warp = thread / MLKI_CUDA_WARP;
    unit = warp / runs, first = warp % runs * P * MLKI_CUDA_WARP + thread % MLKI_CUDA_WARP, apart = MLKI_CUDA_WARP;
  }
  if (unit >= units || first >= ph.pixels) return;
  const int group = (int)(unit / parts), n = (int)(unit % parts) * CO;
  mlki_cuda_pixel pixel[P];
  float chain[P][CO], total[P][CO];
#pragma unroll
  for (int i = 0; i < P; i++) {
    pixel[i] = mlki_cuda_conv_pixel(cv, ph, (int64_t)group * cv.cin * cv.x.c, first + i * apart);
#pragma unroll
    for (int j = 0; j < CO; j++) chain[i][j] = 0.0f, total[i][j] = -0.0f;
  }
  const float *w = (const float *)(const void *)cv.w + ph.w + group * ph.w_group + n;
  int count = 0;
  const auto fold = [&] {
#pragma unroll
    for (int i = 0; i < P; i++)
#pragma unroll
      for (int j = 0; j < CO; j++) total[i][j] = mlki_cuda_add(total[i][j], chain[i][j]), chain[i][j] = 0.0f;
    count = 0;
  };
  const int cin = ph.terms ? cv.cin : 0;
  for (int t0 = 0; t0 < ph.taps[0]; t0++)
    for (int t1 = 0; t1 < ph.taps[1]; t1++) {
      const int d0 = t0 * cv.dilation[0], d1 = t1 * cv.dilation[1];
      const int64_t row = d0 * cv.x.s[0] + d1 * cv.x.s[1];
      bool in[P];
#pragma unroll
      for (int i = 0; i < P; i++)
        in[i] = (unsigned)(pixel[i].i[0] + d0) < (unsigned)cv.in[0] &&
                (unsigned)(pixel[i].i[1] + d1) < (unsigned)cv.in[1];
      for (int t2 = 0; t2 < ph.taps[2]; t2++) {
        const int d2 = t2 * cv.dilation[2];
        int64_t at = row + d2 * cv.x.s[2];
        bool take[P];
#pragma unroll
        for (int i = 0; i < P; i++) take[i] = in[i] && (unsigned)(pixel[i].i[2] + d2) < (unsigned)cv.in[2];
        for (int c = 0; c < cin; c++, at += cv.x.c, w += cv.w_term) {
          float x[P], v[CO];
#pragma unroll
          for (int i = 0; i < P; i++)
            x[i] = !take[i] ? 0.0f
                   : wide   ? ((const float *)(const void *)cv.x.p)[pixel[i].at + at]
                            : mlki_cuda_load(cv.x.p, pixel[i].at + at, cv.x.dtype);
#pragma unroll
          for (int j = 0; j < CO; j++) v[j] = n + j < cv.cout ? w[j] : 0.0f;
#pragma unroll
          for (int i = 0; i < P; i++)
#pragma unroll
            for (int j = 0; j < CO; j++) chain[i][j] = mlki_cuda_fma(v[j], x[i], chain[i][j]);
          if (++count == MLK_SEGMENT) fold();
        }
      }
    }
  if (count || !ph.terms) fold();
    /* Indexed below, and live over calls. */
#pragma unroll
  for (int i = 0; i < P; i++)
#pragma unroll
    for (int j = 0; j < CO; j++) sums[threadIdx.x][i * CO + j] = total[i][j];
  /* In three rounds, so that next to nothing lives over the call of act. */
  float *const mine = sums[threadIdx.x];
  const auto each = [&](int e, auto act) {
    const int64_t p = first + e / CO * apart, c = (int64_t)group * cv.cout + n + e % CO;
    int o[3];
    if (p >= ph.pixels || n + e % CO >= cv.cout) return;
    const int64_t image = mlki_cuda_pixel_of(ph, p, o);
    act(c, image, o);
  };
#pragma unroll 1
  for (int e = 0; e < P * CO; e++)
    each(e, [&](int64_t c, int64_t image, const int *o) {
      mine[e] = mlki_cuda_conv_before(cv, mine[e], c, mlki_cuda_image_at(cv, ph, cv.y, image, o) + c * cv.y.c,
                                      mlki_cuda_image_at(cv, ph, cv.preact, image, o) + c * cv.preact.c);
    });
#pragma unroll 1
  for (int e = 0; e < P * CO && cv.activation; e++)
    mine[e] = mlki_activate_cuda((mlk_activation)cv.activation, mine[e]);
#pragma unroll 1
  for (int e = 0; e < P * CO; e++)
    each(e, [&](int64_t c, int64_t image, const int *o) {
      mlki_cuda_conv_after(cv, mine[e], mlki_cuda_image_at(cv, ph, cv.y, image, o) + c * cv.y.c,
                           mlki_cuda_image_at(cv, ph, cv.residual, image, o) + c * cv.residual.c);
    });
}

/* DW of small groups: a thread sums one segment of one weight; lanes run over channels where they lie dense, else
   over the weights of a group. partial is [segment][group][term][n]. */
template <bool wide>
static __global__ void __launch_bounds__(256)
    mlki_cuda_conv_weights_direct_kernel(const __grid_constant__ mlki_cuda_correlation cv, int segments) {
  const mlki_cuda_phase &ph = cv.phase[0];
  const int64_t each = ph.terms * cv.cout, count = each * cv.groups;
  const int64_t thread = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, segment = thread / count;
  if (segment >= segments) return;
  const int64_t left = thread - segment * count;
  const int64_t group = cv.channels_last ? left % cv.groups : left / each;
  const int64_t weight = cv.channels_last ? left / cv.groups : left % each, term = weight / cv.cout,
                n = weight - term * cv.cout;
  const mlki_cuda_term t = mlki_cuda_conv_term(cv, ph, term);
  const int64_t start = (cv.segment + segment) * MLK_SEGMENT, x_at = group * cv.cin * cv.x.c,
                dy_at = (group * cv.cout + n) * cv.y.c;
  const int64_t end = start + MLK_SEGMENT < ph.pixels ? start + MLK_SEGMENT : ph.pixels;
  float chain = 0.0f;
  int o[3];
  int64_t image = mlki_cuda_pixel_of(ph, start < ph.pixels ? start : 0, o);
  for (int64_t p = start; p < end;) { /* what is left of a row of outputs */
    const int run = end - p < ph.out[2] - o[2] ? (int)(end - p) : ph.out[2] - o[2];
    const int i0 = o[0] * cv.step[0] + ph.origin[0], i1 = o[1] * cv.step[1] + ph.origin[1];
    const bool row = (unsigned)(i0 + t.d[0]) < (unsigned)cv.in[0] && (unsigned)(i1 + t.d[1]) < (unsigned)cv.in[1];
    int i2 = o[2] * cv.step[2] + ph.origin[2];
    int64_t x = x_at + t.at + image * cv.x.n + i0 * cv.x.s[0] + i1 * cv.x.s[1] + i2 * cv.x.s[2];
    int64_t dy = dy_at + mlki_cuda_image_at(cv, ph, cv.y, image, o);
    i2 += t.d[2];
#pragma unroll 4
    for (int i = 0; i < run; i++, i2 += cv.step[2], x += cv.step[2] * cv.x.s[2], dy += cv.y.s[2]) {
      const bool take = row && (unsigned)i2 < (unsigned)cv.in[2];
      const float a = !take  ? 0.0f
                      : wide ? ((const float *)(const void *)cv.x.p)[x]
                             : mlki_cuda_load(cv.x.p, x, cv.x.dtype);
      const float b = wide ? ((const float *)(const void *)cv.y.p)[dy] : mlki_cuda_load(cv.y.p, dy, cv.y.dtype);
      chain = mlki_cuda_fma(b, a, chain);
    }
    p += run, o[2] = 0;
    if (++o[1] == ph.out[1]) o[1] = 0, o[0]++;
    if (o[0] == ph.out[0]) o[0] = 0, image++;
  }
  cv.partial[segment * count + group * each + weight] = chain;
}

/* ---- weights, packed ---- */

/* The weights as they lie: written and read channel, taps, groups. */
typedef struct mlki_cuda_conv_weights {
  const char *p;
  int dtype, taps_inside;                   /* a filter's taps are nearer to each other than its channels */
  int64_t group, out, in, tap[3], channels; /* channels: read ones; the packed may have more, zeros */
} mlki_cuda_conv_weights;

#define MLKI_CUDA_CONV_PACK 32 /* terms and written channels of a block */

static inline int64_t mlki_cuda_conv_pack_blocks(const mlki_cuda_correlation *cv, const mlki_cuda_phase *ph) {
  return mlki_cuda_ceil_div(ph->terms, MLKI_CUDA_CONV_PACK) * mlki_cuda_ceil_div(cv->w_columns, MLKI_CUDA_CONV_PACK) *
         cv->groups;
}

/* [phase][group][term][written channel], columns beyond the last channel zeros: read in the order weights lie in,
   turned in shared memory. */
static __global__ void __launch_bounds__(256)
    mlki_cuda_conv_pack_kernel(const __grid_constant__ mlki_cuda_correlation cv, const mlki_cuda_conv_weights from,
                               char *to) {
  constexpr int tile = MLKI_CUDA_CONV_PACK;
  __shared__ float turned[tile][tile + 1];
  const int x = (int)threadIdx.x % tile, y = (int)threadIdx.x / tile;
  const int64_t across = (cv.w_columns + tile - 1) / tile;
  int64_t left = blockIdx.x;
  int index = 0;
  for (;; index++) {
    const int64_t blocks = (cv.phase[index].terms + tile - 1) / tile * across * cv.groups;
    if (left < blocks || index + 1 == cv.phases) break;
    left -= blocks;
  }
  const mlki_cuda_phase &ph = cv.phase[index];
  const int64_t n0 = left % across * tile, high = (ph.terms + tile - 1) / tile, j0 = left / across % high * tile,
                group = left / across / high;
  const int taps = ph.taps[0] * ph.taps[1] * ph.taps[2], n_first = from.out == 1;
  for (int i = y; i < tile; i += 256 / tile) {
    const int64_t j = j0 + (n_first ? i : x), n = n0 + (n_first ? x : i);
    if (j >= ph.terms || n >= cv.cout) continue;
    const int64_t c = from.taps_inside ? j / taps : j % cv.cin;
    const int tap = (int)(from.taps_inside ? j % taps : j / cv.cin);
    const int t[3] = {tap / (ph.taps[1] * ph.taps[2]), tap / ph.taps[2] % ph.taps[1], tap % ph.taps[2]};
    int64_t at = group * from.group + n * from.out + c * from.in;
    for (int a = 0; a < 3; a++) at += (ph.tap_first[a] + (int64_t)t[a] * cv.tap_skip[a]) * from.tap[a];
    turned[n_first ? i : x][n_first ? x : i] = c < from.channels ? mlki_cuda_load(from.p, at, from.dtype) : 0.0f;
  }
  __syncthreads();
  for (int i = y; i < tile; i += 256 / tile) {
    const int64_t j = j0 + i, n = n0 + x, term = from.taps_inside ? j % taps * cv.cin + j / taps : j;
    if (j < ph.terms && n < cv.w_columns)
      mlki_cuda_store(to, ph.w + group * ph.w_group + term * cv.w_term + n, cv.w_dtype,
                      n < cv.cout ? turned[i][x] : 0.0f);
  }
}

/* ---- whatever does not fit 32 bits ---- */

/* A convolution as it is described. x and y are X and Y, or DY and DX when transposed, or X and DY. */
typedef struct mlki_cuda_conv {
  int transposed, activation, bias_dtype;
  int64_t images, groups, cin, cout; /* channels of one group, read and written */
  int64_t y_group;                   /* from group to group of y */
  int64_t in[3], out[3], taps[3], stride[3], dilation[3], pad[3];
  mlki_cuda_image x, y, residual, preact, dw;
  mlki_cuda_conv_weights w;
  const char *bias;
  int64_t bias_c;
  float alpha, beta;
} mlki_cuda_conv;

/* Where tap t of output o reads along an axis; -1: outside, -2: no term of this sum. */
MLKI_CUDA_DEVICE int64_t mlki_cuda_conv_reads(const mlki_cuda_conv &cv, int a, int64_t o, int64_t t) {
  int64_t i = o * cv.stride[a] + t * cv.dilation[a] - cv.pad[a];
  if (cv.transposed) {
    i = o + cv.pad[a] - t * cv.dilation[a];
    if (i % cv.stride[a]) return -2;
    i /= cv.stride[a];
  }
  return i >= 0 && i < cv.in[a] ? i : -1;
}

/* A sum of chains, one term after another. */
typedef struct mlki_cuda_chain {
  float total, chain;
  int64_t terms;
} mlki_cuda_chain;
MLKI_CUDA_DEVICE void mlki_cuda_chain_add(mlki_cuda_chain &s, float a, float b) {
  if (s.terms > 0 && s.terms % MLK_SEGMENT == 0)
    s.total = s.terms == MLK_SEGMENT ? s.chain : mlki_cuda_add(s.total, s.chain), s.chain = 0.0f;
  s.chain = mlki_cuda_fma(a, b, s.chain), s.terms++;
}
MLKI_CUDA_DEVICE float mlki_cuda_chain_end(const mlki_cuda_chain &s) {
  return s.terms > MLK_SEGMENT ? mlki_cuda_add(s.total, s.chain) : s.chain;
}

static __global__ void mlki_cuda_conv_plain_kernel(const __grid_constant__ mlki_cuda_conv cv) {
  const int64_t count = cv.images * cv.groups * cv.cout * cv.out[0] * cv.out[1] * cv.out[2];
  const int64_t step = (int64_t)gridDim.x * blockDim.x;
  for (int64_t e = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; e < count; e += step) {
    int64_t left = e, o[3], t[3];
    for (int a = 2; a >= 0; a--) o[a] = left % cv.out[a], left /= cv.out[a];
    const int64_t channel = left % (cv.groups * cv.cout), n = left / (cv.groups * cv.cout), group = channel / cv.cout;
    const int64_t w = group * cv.w.group + channel % cv.cout * cv.w.out;
    mlki_cuda_chain sum = {0.0f, 0.0f, 0};
    for (t[0] = 0; t[0] < cv.taps[0] && cv.cin; t[0]++)
      for (t[1] = 0; t[1] < cv.taps[1]; t[1]++)
        for (t[2] = 0; t[2] < cv.taps[2]; t[2]++) {
          int64_t x = n * cv.x.n + group * cv.cin * cv.x.c, tap = w;
          bool inside = true, left_out = false;
          for (int a = 0; a < 3; a++) {
            const int64_t i = mlki_cuda_conv_reads(cv, a, o[a], t[a]);
            inside &= i >= 0, left_out |= i == -2;
            x += i * cv.x.s[a], tap += t[a] * cv.w.tap[a];
          }
          for (int64_t c = 0; c < cv.cin && !left_out; c++)
            mlki_cuda_chain_add(sum, mlki_cuda_load(cv.w.p, tap + c * cv.w.in, cv.w.dtype),
                                inside ? mlki_cuda_load(cv.x.p, x + c * cv.x.c, cv.x.dtype) : 0.0f);
        }
    const mlki_cuda_image *const image[3] = {&cv.y, &cv.residual, &cv.preact};
    int64_t at[3];
    for (int i = 0; i < 3; i++)
      at[i] = n * image[i]->n + channel * image[i]->c + o[0] * image[i]->s[0] + o[1] * image[i]->s[1] +
              o[2] * image[i]->s[2];
    mlki_cuda_conv_finish(cv, mlki_cuda_chain_end(sum), channel, at[0], at[1], at[2]);
  }
}

static __global__ void mlki_cuda_conv_weights_plain_kernel(const __grid_constant__ mlki_cuda_conv cv) {
  const int64_t taps = cv.taps[0] * cv.taps[1] * cv.taps[2], count = cv.groups * cv.cout * cv.cin * taps;
  const int64_t step = (int64_t)gridDim.x * blockDim.x, pixels = cv.images * cv.out[0] * cv.out[1] * cv.out[2];
  for (int64_t e = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; e < count; e += step) {
    int64_t left = e, t[3];
    for (int a = 2; a >= 0; a--) t[a] = left % cv.taps[a], left /= cv.taps[a];
    const int64_t c = left % cv.cin, channel = left / cv.cin, group = channel / cv.cout;
    mlki_cuda_chain sum = {0.0f, 0.0f, 0};
    for (int64_t p = 0; p < pixels; p++) {
      int64_t rest = p, x = (group * cv.cin + c) * cv.x.c, dy = channel * cv.y.c;
      bool inside = true;
      for (int a = 2; a >= 0; a--) {
        const int64_t o = rest % cv.out[a], i = mlki_cuda_conv_reads(cv, a, o, t[a]);
        rest /= cv.out[a], inside &= i >= 0, x += i * cv.x.s[a], dy += o * cv.y.s[a];
      }
      mlki_cuda_chain_add(sum, mlki_cuda_load(cv.y.p, dy + rest * cv.y.n, cv.y.dtype),
                          inside ? mlki_cuda_load(cv.x.p, x + rest * cv.x.n, cv.x.dtype) : 0.0f);
    }
    mlki_cuda_conv_weight_write(
        cv, channel * cv.dw.n + c * cv.dw.c + t[0] * cv.dw.s[0] + t[1] * cv.dw.s[1] + t[2] * cv.dw.s[2],
        mlki_cuda_chain_end(sum));
  }
}

/* ---- DBIAS of 16-bit DY: mlk_reduce's sum, segments in 16 lanes ---- */

#define MLKI_CUDA_CONV_BIAS 16 /* channels of a block, 16 lanes each */

/* One segment of 16 channels: partial[segment][channel]. */
static __global__ void __launch_bounds__(256)
    mlki_cuda_conv_bias_kernel(const __grid_constant__ mlki_cuda_conv cv, int channels_last, float *partial) {
  __shared__ float lanes[MLKI_CUDA_CONV_BIAS][17];
  const int64_t channels = cv.groups * cv.cout, blocks = (channels + MLKI_CUDA_CONV_BIAS - 1) / MLKI_CUDA_CONV_BIAS;
  const int64_t segment = blockIdx.x / blocks, first = segment * MLK_REDUCE_SEGMENT;
  const int64_t pixels = cv.images * cv.out[0] * cv.out[1] * cv.out[2];
  const int64_t end = pixels - first < MLK_REDUCE_SEGMENT ? pixels : first + MLK_REDUCE_SEGMENT;
  const int high = (int)threadIdx.x / 16, low = (int)threadIdx.x % 16, lane = channels_last ? high : low;
  const int channel = channels_last ? low : high;
  const int64_t c = blockIdx.x % blocks * MLKI_CUDA_CONV_BIAS + channel;
  int64_t p = first + lane, n = p / cv.out[2], o[3];
  float sum = 0.0f;
  o[2] = p - n * cv.out[2], p = n, n = p / cv.out[1];
  o[1] = p - n * cv.out[1], p = n, n = p / cv.out[0];
  o[0] = p - n * cv.out[0];
  if (c < channels) {
#pragma unroll 4
    for (p = first + lane; p < end; p += 16) {
      sum = mlki_cuda_add(
          sum, mlki_cuda_load(cv.y.p, n * cv.y.n + c * cv.y.c + o[0] * cv.y.s[0] + o[1] * cv.y.s[1] + o[2] * cv.y.s[2],
                              cv.y.dtype));
      for (o[2] += 16; o[2] >= cv.out[2]; o[1]++) o[2] -= cv.out[2];
      for (; o[1] >= cv.out[1]; o[0]++) o[1] -= cv.out[1];
      for (; o[0] >= cv.out[0]; n++) o[0] -= cv.out[0];
    }
  }
  lanes[channel][lane] = sum;
  __syncthreads();
  sum = mlki_cuda_sum16(lanes[high][low]);
  const int64_t written = blockIdx.x % blocks * MLKI_CUDA_CONV_BIAS + high;
  if (low == 0 && written < channels) partial[segment * channels + written] = sum;
}

static __global__ void mlki_cuda_conv_bias_add_kernel(const float *partial, int64_t segments, int64_t channels,
                                                      float beta, float *dbias, int64_t stride) {
  const int64_t c = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (c >= channels) return;
  float sum = segments ? partial[c] : 0.0f;
  for (int64_t s = 1; s < segments; s++) sum = mlki_cuda_add(sum, partial[s * channels + c]);
  dbias[c * stride] = beta != 0.0f ? mlki_cuda_fma(beta, dbias[c * stride], sum) : sum;
}

/* >>cuda_conv_mma ---------------------------------------------------------------------------------------------------
   On tensor cores, by >>cuda_gemm_mma. */

/* A 16-bit image with dense channels, those of a group padded with zeros to a multiple of eight. */
typedef struct mlki_cuda_conv_turning {
  mlki_cuda_image x;
  uint16_t *to;
  int channels, padded, groups;
  int64_t pixels; /* of an image */
  mlki_cuda_divider by1, by2;
} mlki_cuda_conv_turning;

static __global__ void __launch_bounds__(256)
    mlki_cuda_conv_turn_kernel(const __grid_constant__ mlki_cuda_conv_turning v) {
  constexpr int tile = MLKI_CUDA_CONV_PACK;
  __shared__ uint16_t turned[tile][tile + 2];
  const int x = (int)threadIdx.x % tile, y = (int)threadIdx.x / tile;
  const int64_t width = (int64_t)v.groups * v.padded, across = (width + tile - 1) / tile,
                down = (v.pixels + tile - 1) / tile;
  const int64_t c0 = blockIdx.x % across * tile, p0 = blockIdx.x / across % down * tile, n = blockIdx.x / across / down;
  const bool c_first = v.x.c == 1;
  for (int i = y; i < tile; i += 256 / tile) {
    const int64_t p = p0 + (c_first ? i : x), column = c0 + (c_first ? x : i);
    uint32_t i2 = (uint32_t)p, i1 = mlki_cuda_divide(v.by2, &i2), i0 = mlki_cuda_divide(v.by1, &i1);
    const int64_t group = column / v.padded, c = column - group * v.padded;
    uint16_t h = 0;
    if (p < v.pixels && column < width && c < v.channels)
      h = ((const uint16_t *)(const void *)
               v.x.p)[n * v.x.n + (group * v.channels + c) * v.x.c + i0 * v.x.s[0] + i1 * v.x.s[1] + i2 * v.x.s[2]];
    turned[c_first ? i : x][c_first ? x : i] = h;
  }
  __syncthreads();
  for (int i = y; i < tile; i += 256 / tile)
    if (p0 + i < v.pixels && c0 + x < width) v.to[(n * v.pixels + p0 + i) * width + c0 + x] = turned[i][x];
}

/* The image as readers see it; the members are those of mlki_cuda_correlation. 16-bit ones come with dense channels,
   an aligned multiple of eight of them in each group: else mlki_cuda_conv_turn has copied them so. What is constant
   here keeps what is never needed out of the kernels. */
typedef struct mlki_cuda_conv_gather {
  mlki_cuda_image x;
  int in[3], step[3], dilation[3], cin, channels_first; /* channels_first: pixels lie nearer to each other */
  mlki_cuda_divider by_cin;
  mlki_cuda_phase ph;
} mlki_cuda_conv_gather;

template <class T> struct mlki_cuda_conv_source : mlki_cuda_conv_gather {
  typedef T element;
  __device__ void select(int64_t group) { x.p += group * cin * x.c * (int64_t)sizeof(T); }
  __device__ int order(bool pixels_are_lines) const {
    return (channels_first != 0) == pixels_are_lines ? MLKI_CUDA_LINES : MLKI_CUDA_TERMS;
  }
  __device__ bool whole() const { return true; }
  __device__ float widen(float f) const { return f; }
  __device__ const T *reads(const mlki_cuda_pixel &p, const mlki_cuda_term &t) const {
    return mlki_cuda_inside(*this, p, t) ? (const T *)(const void *)x.p + p.at + t.at : NULL;
  }
};

/* Lines are pixels, or terms where a product runs over pixels. */
template <class T> struct mlki_cuda_conv_pixels : mlki_cuda_conv_source<T> {
  static constexpr bool along_terms = true;
  typedef mlki_cuda_pixel line;
  typedef mlki_cuda_term term;
  __device__ int order() const { return mlki_cuda_conv_source<T>::order(true); }
  __device__ line line_of(int64_t i) const { return mlki_cuda_conv_pixel(*this, this->ph, 0, i); }
  __device__ term term_of(int64_t k) const { return mlki_cuda_conv_term(*this, this->ph, k); }
  __device__ const T *at(const line &l, const term &t) const { return this->reads(l, t); }
};
template <class T> struct mlki_cuda_conv_patches : mlki_cuda_conv_source<T> {
  static constexpr bool along_terms = false;
  typedef mlki_cuda_term line;
  typedef mlki_cuda_pixel term;
  __device__ int order() const { return mlki_cuda_conv_source<T>::order(false); }
  __device__ line line_of(int64_t i) const { return mlki_cuda_conv_term(*this, this->ph, i); }
  __device__ term term_of(int64_t k) const { return mlki_cuda_conv_pixel(*this, this->ph, 0, k); }
  __device__ const T *at(const line &l, const term &t) const { return this->reads(t, l); }
};

/* Packed weights: lines are written channels, side by side. */
template <class T> struct mlki_cuda_conv_filters {
  static constexpr bool along_terms = false;
  typedef T element;
  typedef const T *line;
  typedef int64_t term;
  const T *p;
  int64_t group, step;
  int lines;
  __device__ void select(int64_t index) { p += index * group; }
  __device__ int order() const { return MLKI_CUDA_VECTORS; }
  __device__ bool whole() const { return true; }
  __device__ float widen(float f) const { return f; }
  __device__ line line_of(int64_t i) const { return i < lines ? p + i : NULL; }
  __device__ term term_of(int64_t k) const { return k * step; }
  __device__ const T *at(line l, term k) const { return l ? l + k : NULL; }
};

/* DY of the weight gradient: lines are channels, terms pixels; step: from pixel to pixel where all are one axis,
   else 0. */
template <class T> struct mlki_cuda_conv_outputs {
  static constexpr bool along_terms = false;
  typedef T element;
  typedef const T *line;
  typedef int64_t term;
  mlki_cuda_image y;
  int64_t step;
  int lines, channels_first, skip[3];
  int64_t group; /* from group to group */
  mlki_cuda_phase ph;
  __device__ void select(int64_t index) { y.p += index * group * (int64_t)sizeof(T); }
  __device__ int order() const { return channels_first ? MLKI_CUDA_TERMS : MLKI_CUDA_LINES; }
  __device__ bool whole() const { return true; }
  __device__ float widen(float f) const { return f; }
  __device__ line line_of(int64_t i) const { return i < lines ? (const T *)(const void *)y.p + i * y.c : NULL; }
  __device__ term term_of(int64_t k) const {
    int o[3];
    if (step) return k * step;
    const int64_t n = mlki_cuda_pixel_of(ph, k, o);
    return mlki_cuda_image_at(*this, ph, y, n, o);
  }
  __device__ const T *at(line l, term k) const { return l ? l + k : NULL; }
};

/* Writes an image: rows are pixels and columns channels, or turned the other way round. */
struct mlki_cuda_conv_writer {
  mlki_cuda_image y, residual, preact;
  const char *bias;
  int64_t bias_c, channel; /* channel: the group's first */
  float alpha, beta;
  int bias_dtype, activation, cout, turned, skip[3];
  mlki_cuda_phase ph;
  __device__ void select(int64_t group) { channel = group * cout; }
  __device__ void put(int64_t i, int64_t j, const float t[4], int count) const {
    int o[3];
    int64_t n = mlki_cuda_pixel_of(ph, turned ? j : i, o);
#pragma unroll
    for (int e = 0; e < 4; e++) {
      const int64_t c = channel + (turned ? i : j + e);
      if (e >= count) continue;
      mlki_cuda_conv_finish(*this, t[e], c, mlki_cuda_image_at(*this, ph, y, n, o) + c * y.c,
                            mlki_cuda_image_at(*this, ph, residual, n, o) + c * residual.c,
                            mlki_cuda_image_at(*this, ph, preact, n, o) + c * preact.c);
      if (turned && ++o[2] == ph.out[2]) n = mlki_cuda_pixel_of(ph, j + e + 1, o);
    }
  }
};

/* Writes DW: rows are terms, columns written channels. */
struct mlki_cuda_conv_weights_writer {
  mlki_cuda_image dw;
  mlki_cuda_divider by_cin;
  int64_t channel;
  float beta;
  int cout, channels; /* channels: read ones of a group, without those that pad */
  mlki_cuda_phase ph;
  __device__ void select(int64_t group) { channel = group * cout; }
  __device__ void put(int64_t i, int64_t j, const float t[4], int count) const {
    int tap[3];
    if (mlki_cuda_conv_tap(*this, ph, i, tap) >= (uint32_t)channels) return;
    const int64_t at = mlki_cuda_conv_weight(*this, ph, i) + (channel + j) * dw.n;
#pragma unroll
    for (int e = 0; e < 4; e++)
      if (e < count) mlki_cuda_conv_weight_write(*this, at + e * dw.n, t[e]);
  }
};

/* >>cuda_conv_hopper ------------------------------------------------------------------------------------------------
   By warpgroups, >>cuda_hopper: 16-bit images whose channels are dense and aligned eights, one group.

   A box is outputs that are neighbours along each axis, of several images: so many of each as make the boxes fewest.
   Its places in the image, shifted by a tap, are one box of the copy engine: 64 channels at every step-th place, zeros
   beyond the edges. Terms are (tap, read channel), a tap's channels rounded up to 64, so that each stage is one such
   box; a box of at most 128 outputs is one matrix of the product's batch, its outputs the lines.
   The weight gradient is the product of all written channels and all (tap, read channel), whose terms are boxes of at
   most 64 outputs. What a box has beside the outputs must not count there, whatever the image holds at its places: so
   boxes divide the outputs of an axis, images beyond the last are zeros in both operands, and the terms that a box
   leaves out of a stage stay the zeros they were. */

#define MLKI_CUDA_CONV_BOX   128 /* outputs of a box, lines of a tile */
#define MLKI_CUDA_CONV_SLICE 64  /* channels of a tap in a stage; outputs of a box that are terms */

/* Slices of 64 channels: of the first tap, the next one, ... A tap is at first + number * step along each axis. */
struct mlki_cuda_conv_slice {
  int c, tap1, tap2, at[3];
};
struct mlki_cuda_conv_slices {
  mlki_cuda_divider channels, taps1, taps2; /* channels: rounded up to slices */
  int first[3], step[3];

  /* Slice and channel of (tap, channel) number k. */
  MLKI_CUDA_MEMBER mlki_cuda_conv_slice find(int64_t k) const {
    mlki_cuda_conv_slice s;
    uint32_t c = (uint32_t)k, column = mlki_cuda_divide(channels, &c), row = mlki_cuda_divide(taps2, &column);
    s.at[0] = first[0] + (int)mlki_cuda_divide(taps1, &row) * step[0];
    s.tap1 = (int)row, s.at[1] = first[1] + (int)row * step[1];
    s.tap2 = (int)column, s.at[2] = first[2] + (int)column * step[2], s.c = (int)c;
    return s;
  }

  MLKI_CUDA_MEMBER void next(mlki_cuda_conv_slice &s) const {
    s.c += MLKI_CUDA_CONV_SLICE;
    if (s.c < (int)channels.divisor) return;
    s.c = 0, s.at[2] += step[2];
    if (++s.tap2 < (int)taps2.divisor) return;
    s.tap2 = 0, s.at[2] = first[2], s.at[1] += step[1];
    if (++s.tap1 < (int)taps1.divisor) return;
    s.tap1 = 0, s.at[1] = first[1], s.at[0] += step[0];
  }
};

/* The boxes of outputs: sizes, how many along axes 0 to 2, outputs and images; [3]: images. */
struct mlki_cuda_conv_boxes {
  int size[4], outputs[4];
  mlki_cuda_divider count[3], in[3]; /* in: by sizes */

  /* The first output of a box; of the next one; where output number line lies from the first on. */
  MLKI_CUDA_MEMBER void first(int64_t box, int at[4]) const {
    uint32_t i2 = (uint32_t)box, i1 = mlki_cuda_divide(count[2], &i2), i0 = mlki_cuda_divide(count[1], &i1);
    at[3] = (int)mlki_cuda_divide(count[0], &i0) * size[3];
    at[0] = (int)i0 * size[0], at[1] = (int)i1 * size[1], at[2] = (int)i2 * size[2];
  }
  MLKI_CUDA_MEMBER void next(int at[4]) const {
    if ((at[2] += size[2]) < outputs[2]) return;
    at[2] = 0;
    if ((at[1] += size[1]) < outputs[1]) return;
    at[1] = 0;
    if ((at[0] += size[0]) < outputs[0]) return;
    at[0] = 0, at[3] += size[3];
  }
  MLKI_CUDA_MEMBER void output(int64_t line, int at[4]) const {
    uint32_t i2 = (uint32_t)line, i1 = mlki_cuda_divide(in[2], &i2), i0 = mlki_cuda_divide(in[1], &i1);
    at[3] = (int)mlki_cuda_divide(in[0], &i0);
    at[0] = (int)i0, at[1] = (int)i1, at[2] = (int)i2;
  }
};

/* The reader of an image, whose lines are the outputs of a box, or whose terms are all boxes. Axes of map: channels,
   spatial axes 2, 1 and 0, images. step: from output to output; held: outputs of a box. */
template <bool lines_are_outputs> struct mlki_cuda_conv_view {
  static constexpr bool along_terms = lines_are_outputs;
  struct spot {
    mlki_cuda_conv_slice slice;
    int at[4]; /* the box's first output */
  };
  CUtensorMap map;
  mlki_cuda_conv_slices slices;
  mlki_cuda_conv_boxes boxes;
  int step[3], held;

#if defined(MLKI_CUDA_HOPPER)
  MLKI_CUDA_MEMBER void prefetch() const { mlki_cuda_box_prefetch(&map); }
  template <int lines> MLKI_CUDA_MEMBER int bytes() const { return held * (lines_are_outputs ? 128 : lines * 2); }
  MLKI_CUDA_MEMBER bool holes() const { return !lines_are_outputs && held < MLKI_CUDA_CONV_SLICE; }

  MLKI_CUDA_MEMBER spot select(int64_t batch, int64_t line, int64_t term) const {
    spot s;
    s.slice = slices.find(lines_are_outputs ? term : line);
    boxes.first(lines_are_outputs ? batch : term / MLKI_CUDA_CONV_SLICE, s.at);
    return s;
  }

  MLKI_CUDA_MEMBER void bring(unsigned char *to, uint64_t *arrived, const spot &s) const {
    mlki_cuda_box_load(to, &map, arrived, s.slice.c, s.at[2] * step[2] + s.slice.at[2],
                       s.at[1] * step[1] + s.slice.at[1], s.at[0] * step[0] + s.slice.at[0], s.at[3]);
  }

  template <int lines> MLKI_CUDA_MEMBER void load(unsigned char *to, uint64_t *arrived, spot &s) const {
    if (lines_are_outputs) {
      bring(to, arrived, s);
      slices.next(s.slice);
    } else {
      const mlki_cuda_conv_slice first = s.slice;
#pragma unroll 1
      for (int l = 0; l < lines; l += 64, to += MLKI_CUDA_WGMMA_BLOCK, slices.next(s.slice)) bring(to, arrived, s);
      s.slice = first;
      boxes.next(s.at);
    }
  }
#endif
};

/* The reader of weights, which lie dense along read channels or along written ones. Axes of map: the dense channels,
   the other ones, taps 2, 1 and 0. */
template <bool terms> struct mlki_cuda_conv_taps {
  static constexpr bool along_terms = terms;
  struct spot {
    mlki_cuda_conv_slice slice;
    int line;
  };
  CUtensorMap map;
  mlki_cuda_conv_slices slices;

#if defined(MLKI_CUDA_HOPPER)
  MLKI_CUDA_MEMBER void prefetch() const { mlki_cuda_box_prefetch(&map); }
  template <int lines> MLKI_CUDA_MEMBER int bytes() const { return lines * 128; }
  MLKI_CUDA_MEMBER bool holes() const { return false; }

  MLKI_CUDA_MEMBER spot select(int64_t, int64_t line, int64_t term) const {
    spot s;
    s.slice = slices.find(term), s.line = (int)line;
    return s;
  }

  template <int lines> MLKI_CUDA_MEMBER void load(unsigned char *to, uint64_t *arrived, spot &s) const {
    const int *tap = s.slice.at;
    if (terms) {
      mlki_cuda_box_load(to, &map, arrived, s.slice.c, s.line, tap[2], tap[1], tap[0]);
    } else {
#pragma unroll
      for (int l = 0; l < lines; l += 64)
        mlki_cuda_box_load(to + (uint32_t)l / 64 * MLKI_CUDA_WGMMA_BLOCK, &map, arrived, s.line + l, s.slice.c, tap[2],
                           tap[1], tap[0]);
    }
    slices.next(s.slice);
  }
#endif
};

/* Writes a box of an image: rows are its outputs, columns channels. Planes of e: row 0 is the phase's first output, or
   the box's; their steps are from output to output along axes 0 to 2, and from image to image. Within a box 32 bits do
   for offsets. */
struct mlki_cuda_conv_box_writer {
  mlki_cuda_epilogue e;
  mlki_cuda_conv_boxes boxes;
  int left[4]; /* outputs from the box's first on, along each axis */

  static MLKI_CUDA_MEMBER void start(mlki_cuda_plane &x, const int at[4]) {
    int64_t offset = 0;
#pragma unroll
    for (int a = 0; a < 4; a++) offset += at[a] * x.step[a];
    if (x.p) x.p += offset * (x.dtype == MLK_F32 ? 4 : 2);
  }

  __device__ void select(int64_t box) {
    int at[4];
    boxes.first(box, at);
#pragma unroll
    for (int a = 0; a < 4; a++) left[a] = boxes.outputs[a] - at[a];
    start(e.d, at), start(e.c, at), start(e.residual, at), start(e.preact, at);
  }

  static MLKI_CUDA_MEMBER void move(mlki_cuda_plane &x, const int at[4]) {
    int offset = 0;
#pragma unroll
    for (int a = 0; a < 4; a++) offset += at[a] * (int)x.step[a];
    if (x.p) x.p += (int64_t)offset * (x.dtype == MLK_F32 ? 4 : 2);
  }

  /* Output number i of the box, if it is one. */
  __device__ bool find(int64_t i, int at[4]) const {
    boxes.output(i, at);
    return at[0] < left[0] && at[1] < left[1] && at[2] < left[2] && at[3] < left[3];
  }

  __device__ bool whole(int *dtype) const { return e.whole(dtype); }
  __device__ uint16_t *eight(int64_t i, int64_t j) const {
    int at[4];
    mlki_cuda_plane d = e.d;
    if (!find(i, at)) return NULL;
    move(d, at);
    return (uint16_t *)d.p + j;
  }

  __device__ void put(int64_t i, int64_t j, const float t[4], int count) const {
    int at[4];
    if (!find(i, at)) return;
    mlki_cuda_epilogue mine = e;
    move(mine.d, at);
    if (!mine.plain) move(mine.c, at), move(mine.residual, at), move(mine.preact, at);
    mine.put(0, j, t, count);
  }
};

/* Writes DW: rows are written channels, columns (tap, read channel). slices: where the taps lie in dw. */
struct mlki_cuda_conv_taps_writer {
  mlki_cuda_image dw;
  mlki_cuda_conv_slices slices;
  float beta;
  int channels; /* read ones, without those that pad */

  __device__ void select(int64_t) {}
  __device__ bool whole(int *) const { return false; }
  __device__ uint16_t *eight(int64_t, int64_t) const { return NULL; }

  __device__ void put(int64_t i, int64_t j, const float t[4], int count) const {
    const mlki_cuda_conv_slice s = slices.find(j);
    const int64_t at = i * dw.n + s.c * dw.c + s.at[0] * dw.s[0] + s.at[1] * dw.s[1] + s.at[2] * dw.s[2];
#pragma unroll
    for (int e = 0; e < 4; e++)
      if (e < count && s.c + e < channels) mlki_cuda_conv_weight_write(*this, at + e * dw.c, t[e]);
  }
};

/* >>cuda_conv_calls ------------------------------------------------------------------------------------------------ */

static mlki_cuda_image mlki_cuda_conv_image(const mlk_tensor *t) {
  const mlki_cuda_view v = mlki_cuda_view_of(t);
  mlki_cuda_image y;
  memset(&y, 0, sizeof y);
  y.p = v.p, y.dtype = v.dtype;
  if (!y.p) return y;
  y.n = v.stride[0], y.c = v.stride[1];
  for (int i = 2; i < v.rank; i++) y.s[i + 3 - v.rank] = v.stride[i];
  return y;
}

/* read, written: X and Y of a convolution, the other way round of its transpose. Axes that are not there have size
   1. */
static void mlki_cuda_conv_describe(mlki_cuda_conv *cv, const mlk_conv_geometry *g, const mlk_tensor *read,
                                    const mlk_tensor *written, const mlk_tensor *w, int transposed) {
  const int absent = 5 - written->rank;
  memset(cv, 0, sizeof *cv);
  cv->transposed = transposed, cv->groups = g->groups ? g->groups : 1;
  cv->images = written->shape[0], cv->cout = written->shape[1] / cv->groups;
  cv->cin = read ? read->shape[1] / cv->groups : 0;
  cv->y = mlki_cuda_conv_image(written), cv->alpha = 1.0f;
  if (read) cv->x = mlki_cuda_conv_image(read);
  for (int a = 0; a < 3; a++) {
    const int i = a - absent; /* of the geometry */
    cv->in[a] = cv->out[a] = cv->taps[a] = cv->stride[a] = cv->dilation[a] = 1;
    if (i < 0) continue;
    if (g->stride[i]) cv->stride[a] = g->stride[i];
    if (g->dilation[i]) cv->dilation[a] = g->dilation[i];
    cv->pad[a] = g->pad_before[i], cv->out[a] = written->shape[2 + i];
    if (read) cv->in[a] = read->shape[2 + i], cv->taps[a] = w->shape[2 + i];
  }
}

/* What the two that write an image have in common. */
static void mlki_cuda_conv_operands(mlki_cuda_conv *cv, const mlk_tensor *w, const mlk_tensor *bias,
                                    const mlk_tensor *residual, const mlk_tensor *preact, const float *alpha,
                                    const float *beta, mlk_activation activation) {
  const mlki_cuda_image filter = mlki_cuda_conv_image(w);
  const mlki_cuda_view b = mlki_cuda_view_of(bias);
  cv->residual = mlki_cuda_conv_image(residual), cv->preact = mlki_cuda_conv_image(preact);
  cv->bias = b.p, cv->bias_dtype = b.dtype, cv->bias_c = b.stride[0];
  cv->alpha = alpha ? *alpha : 1.0f, cv->beta = beta ? *beta : 0.0f, cv->activation = activation;
  cv->w.p = filter.p, cv->w.dtype = filter.dtype;
  cv->w.out = cv->transposed ? filter.c : filter.n, cv->w.in = cv->transposed ? filter.n : filter.c;
  cv->w.group = filter.n * (w->shape[0] / cv->groups), cv->w.channels = cv->cin;
  for (int a = 0; a < 3; a++) cv->w.tap[a] = filter.s[a];
  cv->w.taps_inside = llabs(filter.s[2]) < llabs(cv->w.in) && cv->taps[0] * cv->taps[1] * cv->taps[2] > 1;
  if (cv->alpha == 0.0f) cv->cin = 0; /* X and W are not read */
}

/* 1 where 32 bits do for places, terms and offsets within an image, and for the number of blocks. */
static int mlki_cuda_conv_fits(const mlki_cuda_conv *cv) {
  const double far = MLKI_CUDA_CONV_FAR, most = INT32_MAX;
  double reach = fabs((double)cv->x.c) * (double)cv->cin, pixels = 1, terms = (double)cv->cin;
  for (int a = 0; a < 3; a++) {
    const double taps = (double)cv->taps[a] * (double)cv->dilation[a];
    if ((double)(cv->out[a] + 1) * (double)cv->stride[a] >= far || (double)cv->pad[a] >= far || taps >= far) return 0;
    pixels *= (double)cv->out[a], terms *= (double)cv->taps[a];
    reach += taps * fabs((double)cv->x.s[a]);
  }
  const double channels = (double)cv->groups * (double)(cv->cin > cv->cout ? cv->cin : cv->cout);
  return reach < most && pixels < most && terms < most && channels < most && pixels * (double)cv->images < 8.0 * most &&
         pixels * (double)cv->images * (double)cv->groups * (double)(cv->cout + 64) < 4096.0 * most &&
         terms * (double)cv->groups * (double)(cv->cout + 64) < 4096.0 * most;
}

static int64_t mlki_cuda_gcd(int64_t a, int64_t b) {
  while (b) {
    const int64_t t = a % b;
    a = b, b = t;
  }
  return a;
}

/* The least stride from pixel to pixel of x. */
static int64_t mlki_cuda_conv_nearest(const mlki_cuda_conv *cv) {
  int64_t nearest = INT64_MAX;
  for (int a = 0; a < 3; a++)
    if (cv->in[a] > 1) nearest = mlki_cuda_min(nearest, llabs(cv->x.s[a]));
  return nearest;
}

/* What all phases share; y's strides decide in which order outputs are written. */
static void mlki_cuda_conv_correlate(const mlki_cuda_conv *cv, mlki_cuda_correlation *c) {
  memset(c, 0, sizeof *c);
  c->x = cv->x, c->y = cv->y, c->residual = cv->residual, c->preact = cv->preact, c->dw = cv->dw;
  c->bias = cv->bias, c->bias_c = cv->bias_c, c->bias_dtype = cv->bias_dtype, c->activation = cv->activation;
  c->alpha = cv->alpha, c->beta = cv->beta;
  c->groups = (int)cv->groups, c->cin = (int)cv->cin, c->cout = (int)cv->cout;
  c->by_cin = mlki_cuda_divider_of(mlki_cuda_max(cv->cin, 1));
  int64_t nearest = INT64_MAX;
  for (int a = 0; a < 3; a++) {
    const int64_t g = mlki_cuda_gcd(cv->stride[a], cv->dilation[a]);
    c->in[a] = (int)mlki_cuda_min(cv->in[a], 2 * MLKI_CUDA_CONV_FAR - 1);
    c->step[a] = cv->transposed ? 1 : (int)cv->stride[a];
    c->dilation[a] = (int)(cv->transposed ? -(cv->dilation[a] / g) : cv->dilation[a]);
    c->skip[a] = cv->transposed ? (int)cv->stride[a] : 1;
    c->tap_skip[a] = cv->transposed ? (int)(cv->stride[a] / g) : 1;
    if (cv->out[a] > 1) nearest = mlki_cuda_min(nearest, llabs(cv->y.s[a]));
  }
  c->channels_last = cv->cout * cv->groups > 1 && llabs(cv->y.c) < nearest;
}

/* One axis of the phase of elements first, first + stride, ...: see mlki_conv_phase_axis of mlk.h. */
static void mlki_cuda_conv_phase_axis(const mlki_cuda_conv *cv, int a, int64_t first, mlki_cuda_phase *ph) {
  const int64_t s = cv->stride[a], d = cv->dilation[a], g = mlki_cuda_gcd(s, d), every = s / g;
  int64_t t = 0;
  ph->first[a] = (int)first;
  if (!cv->transposed) {
    ph->out[a] = (int)cv->out[a], ph->taps[a] = (int)cv->taps[a], ph->origin[a] = (int)-cv->pad[a];
    return;
  }
  while (t < every && t < cv->taps[a] && (first + cv->pad[a] - t * d) % s != 0) t++;
  if (t == every) t = cv->taps[a];
  ph->out[a] = first < cv->out[a] ? (int)mlki_cuda_ceil_div(cv->out[a] - first, s) : 0;
  ph->taps[a] = t < cv->taps[a] ? (int)mlki_cuda_ceil_div(cv->taps[a] - t, every) : 0;
  ph->origin[a] = ph->taps[a] ? (int)((first + cv->pad[a] - t * d) / s) : 0;
  ph->tap_first[a] = (int)t;
}

static void mlki_cuda_conv_phase_of(const mlki_cuda_conv *cv, const int64_t *first, mlki_cuda_phase *ph) {
  memset(ph, 0, sizeof *ph);
  for (int a = 0; a < 3; a++) mlki_cuda_conv_phase_axis(cv, a, first[a], ph);
  ph->out1 = mlki_cuda_divider_of(mlki_cuda_max(ph->out[1], 1));
  ph->out2 = mlki_cuda_divider_of(mlki_cuda_max(ph->out[2], 1));
  ph->taps1 = mlki_cuda_divider_of(mlki_cuda_max(ph->taps[1], 1));
  ph->taps2 = mlki_cuda_divider_of(mlki_cuda_max(ph->taps[2], 1));
  ph->image_pixels = ph->out[0] * ph->out[1] * ph->out[2];
  ph->by_image = mlki_cuda_divider_of(mlki_cuda_max(ph->image_pixels, 1));
  ph->pixels = cv->images * ph->image_pixels;
  ph->length = ph->terms = (int64_t)ph->taps[0] * ph->taps[1] * ph->taps[2] * cv->cin;
  ph->splits = 1;
}

/* A tile and the kernels for it, by the order x lies in. */
typedef struct mlki_cuda_conv_kernels {
  int bm, bn, threads;
  size_t shared;
  void (*kernel[2])(const mlki_cuda_correlation); /* [k_fast] */
} mlki_cuda_conv_kernels;

#define MLKI_CUDA_CONV_ROW(name, bm, bn, wide)                                                                         \
  {                                                                                                                    \
    bm, bn, mlki_cuda_conv_tile<bm, bn>::threads, mlki_cuda_conv_simt_bytes<bm, bn>(), {                               \
      name<bm, bn, false, wide>, name<bm, bn, true, wide>                                                              \
    }                                                                                                                  \
  }

/* Largest first: the first that fills the device is taken. The last one is for 16 bits, which come here only where the
   device's tensor cores do not take them. */
static const mlki_cuda_conv_kernels mlki_cuda_conv_simt[] = {
    MLKI_CUDA_CONV_ROW(mlki_cuda_conv_simt_kernel, 128, 128, true),
    MLKI_CUDA_CONV_ROW(mlki_cuda_conv_simt_kernel, 128, 64, true),
    MLKI_CUDA_CONV_ROW(mlki_cuda_conv_simt_kernel, 64, 64, true),
    MLKI_CUDA_CONV_ROW(mlki_cuda_conv_simt_kernel, 64, 64, false)};
static const mlki_cuda_conv_kernels mlki_cuda_conv_weights_simt[] = {
    MLKI_CUDA_CONV_ROW(mlki_cuda_conv_weights_kernel, 128, 128, true),
    MLKI_CUDA_CONV_ROW(mlki_cuda_conv_weights_kernel, 64, 64, true),
    MLKI_CUDA_CONV_ROW(mlki_cuda_conv_weights_kernel, 64, 64, false)};

static int64_t mlki_cuda_conv_tiles(const mlki_cuda_conv_kernels *k, int64_t m, int64_t n) {
  return mlki_cuda_ceil_div(m, k->bm) * mlki_cuda_ceil_div(n, k->bn);
}

static const mlki_cuda_conv_kernels *mlki_cuda_conv_choose(const mlki_cuda_conv_kernels *k, int count, int f32,
                                                           int64_t m, int64_t n, int64_t times, int sms) {
  if (!f32) return k + count;
  for (; count > 1; k++, count--) {
    const int wide = n > k->bn / 2 && m > k->bm / 2; /* else most of a tile is empty */
    if (wide && mlki_cuda_conv_tiles(k, m, n) * times >= sms) break;
  }
  return k;
}

/* Numbers the blocks of a launch's phases. */
static int64_t mlki_cuda_conv_blocks(mlki_cuda_correlation *c, const mlki_cuda_conv_kernels *k) {
  int64_t blocks = 0;
  c->n_tiles = (int)mlki_cuda_ceil_div(c->cout, k->bn);
  for (int i = 0; i < c->phases; i++) {
    mlki_cuda_phase *ph = &c->phase[i];
    ph->blocks = blocks, ph->m_tiles = (int)mlki_cuda_ceil_div(ph->pixels, k->bm);
    blocks += (int64_t)ph->m_tiles * c->n_tiles * c->groups * ph->splits;
  }
  return blocks;
}

/* Packs the weights of a launch's phases into to. */
static void mlki_cuda_conv_pack(mlki_cuda_call *call, const mlki_cuda_conv *cv, mlki_cuda_correlation *c, char *to) {
  int64_t blocks = 0;
  c->w = to;
  for (int i = 0; i < c->phases; i++) blocks += mlki_cuda_conv_pack_blocks(c, &c->phase[i]);
  mlki_cuda_launch(call, blocks, 256, 0, mlki_cuda_conv_pack_kernel, *c, cv->w, to);
}

/* Threads of as many blocks of 256 as there are items, or blocks that take several in turn. */
static int64_t mlki_cuda_conv_grid(int64_t items) {
  return mlki_cuda_min(mlki_cuda_ceil_div(items, 256), MLKI_CUDA_GRID);
}

/* f32 by tiles; a sum of several segments is split where tiles are too few to fill the device. */
static void mlki_cuda_conv_tiled(mlki_cuda_call *call, const mlki_cuda_conv *cv, mlki_cuda_correlation *c) {
  const int sms = call->device->sms;
  int64_t pixels = 0;
  for (int i = 0; i < c->phases; i++) pixels += c->phase[i].pixels;
  const mlki_cuda_conv_kernels *k = mlki_cuda_conv_choose(mlki_cuda_conv_simt, 3, cv->x.dtype == MLK_F32, pixels,
                                                          cv->cout, cv->groups, sms);
  mlki_cuda_phase *ph = &c->phase[0];
  const int64_t segments = mlki_cuda_ceil_div(ph->terms, MLK_SEGMENT);
  const int split = c->phases == 1 && segments > 1 && mlki_cuda_conv_tiles(k, pixels, cv->cout) * cv->groups < sms;
  const int k_fast = cv->cin > 1 && llabs(cv->x.c) < mlki_cuda_conv_nearest(cv);
  if (split) {
    ph->splits = (int)segments;
    c->partial_group = ph->pixels * cv->cout, c->partial_segment = c->partial_group * cv->groups;
    c->partial_m = c->channels_last ? cv->cout : 1, c->partial_n = c->channels_last ? 1 : ph->pixels;
    c->partial = mlki_cuda_carve<float>(call, c->partial_segment * segments);
  }
  call->io->variant = split ? "split" : "simt";
  mlki_cuda_launch(call, mlki_cuda_conv_blocks(c, k), k->threads, k->shared, k->kernel[k_fast], *c);
  if (split)
    mlki_cuda_launch(call, mlki_cuda_conv_grid(c->partial_segment), 256, 0, mlki_cuda_conv_add_kernel, *c,
                     (int)segments);
}

static void mlki_cuda_conv_direct(mlki_cuda_call *call, const mlki_cuda_conv *cv, mlki_cuda_correlation *c) {
  const int co = cv->cout > 1 ? 4 : 1, wide = cv->x.dtype == MLK_F32;
  const int64_t units = cv->groups * mlki_cuda_ceil_div(cv->cout, co);
  int64_t blocks = 0;
  for (int i = 0; i < c->phases; i++) {
    mlki_cuda_phase *ph = &c->phase[i];
    const int64_t group = MLKI_CUDA_CONV_PIXELS * (c->channels_last ? 1 : MLKI_CUDA_WARP);
    const int64_t threads = mlki_cuda_ceil_div(ph->pixels, group) * units * (c->channels_last ? 1 : MLKI_CUDA_WARP);
    ph->blocks = blocks, blocks += mlki_cuda_ceil_div(threads, 256);
  }
  call->io->variant = "direct";
  mlki_cuda_launch(call, blocks, 256, 0,
                   co == 1 ? wide ? mlki_cuda_conv_direct_kernel<1, true> : mlki_cuda_conv_direct_kernel<1, false>
                   : wide ? mlki_cuda_conv_direct_kernel<4, true>
                           : mlki_cuda_conv_direct_kernel<4, false>,
                   *c);
}

/* The strides of an image's pixels as one axis, to step; 0 where they are not one. */
static int mlki_cuda_conv_merges(const mlki_cuda_image *y, const int64_t *size, int64_t *step) {
  int64_t run = 1;
  *step = 1;
  for (int a = 2; a >= 0 && y->p; a--) {
    if (size[a] == 1) continue;
    if (run == 1)
      *step = y->s[a];
    else if (y->s[a] != *step * run)
      return 0;
    run *= size[a];
  }
  return 1;
}

/* Can channels of a group be read in aligned eights of 16 bits, at every pixel? */
static int mlki_cuda_conv_eights(const mlki_cuda_image *y, int64_t channels) {
  return y->c == 1 && channels % 8 == 0 && y->n % 8 == 0 && y->s[0] % 8 == 0 && y->s[1] % 8 == 0 && y->s[2] % 8 == 0 &&
         (uintptr_t)y->p % 16 == 0;
}

/* Makes y, an image of sizes size with channels channels in each of groups groups, fit for tensor cores: copied
   where it is not. Gives the channels of a group, with those that pad. */
static int64_t mlki_cuda_conv_turn(mlki_cuda_call *call, mlki_cuda_image *y, int64_t images, int64_t groups,
                                   int64_t channels, const int64_t *size) {
  mlki_cuda_conv_turning v;
  if (mlki_cuda_conv_eights(y, channels)) return channels;
  memset(&v, 0, sizeof v);
  v.x = *y, v.channels = (int)channels, v.padded = (int)((channels + 7) / 8 * 8), v.groups = (int)groups;
  v.pixels = size[0] * size[1] * size[2];
  v.by1 = mlki_cuda_divider_of(mlki_cuda_max(size[1], 1)), v.by2 = mlki_cuda_divider_of(mlki_cuda_max(size[2], 1));
  const int64_t width = groups * v.padded;
  v.to = mlki_cuda_carve<uint16_t>(call, images * v.pixels * width);
  mlki_cuda_launch(
      call, mlki_cuda_ceil_div(width, MLKI_CUDA_CONV_PACK) * mlki_cuda_ceil_div(v.pixels, MLKI_CUDA_CONV_PACK) * images,
      256, 0, mlki_cuda_conv_turn_kernel, v);
  y->p = (char *)v.to, y->c = 1, y->n = v.pixels * width;
  y->s[2] = width, y->s[1] = width * size[2], y->s[0] = y->s[1] * size[1];
  return v.padded;
}

template <class R>
static void mlki_cuda_conv_gather_of(const mlki_cuda_conv *cv, const mlki_cuda_correlation *c, R *r) {
  memset(r, 0, sizeof *r);
  r->x = c->x, r->cin = c->cin, r->by_cin = c->by_cin;
  for (int a = 0; a < 3; a++) r->in[a] = c->in[a], r->step[a] = c->step[a], r->dilation[a] = c->dilation[a];
  r->channels_first = cv->cin == 1 || llabs(cv->x.c) >= mlki_cuda_conv_nearest(cv);
}

static void mlki_cuda_conv_multiply(mlki_cuda_call *call, const mlki_cuda_conv *cv,
                                    const mlki_cuda_conv_pixels<uint16_t> &image,
                                    const mlki_cuda_conv_filters<uint16_t> &w, const mlki_cuda_conv_writer &writer) {
  const mlki_cuda_phase *ph = &writer.ph;
  if (writer.turned)
    mlki_cuda_gemm_mma(call, cv->x.dtype, w, image, writer, cv->groups, cv->cout, ph->pixels, ph->terms);
  else
    mlki_cuda_gemm_mma(call, cv->x.dtype, image, w, writer, cv->groups, ph->pixels, cv->cout, ph->terms);
}

static void mlki_cuda_conv_multiply(mlki_cuda_call *call, const mlki_cuda_conv *cv,
                                    const mlki_cuda_conv_pixels<float> &image, const mlki_cuda_conv_filters<float> &w,
                                    const mlki_cuda_conv_writer &writer) {
  const mlki_cuda_phase *ph = &writer.ph;
  if (writer.turned)
    mlki_cuda_gemm_tf32(call, w, image, writer, cv->groups, cv->cout, ph->pixels, ph->terms);
  else
    mlki_cuda_gemm_tf32(call, image, w, writer, cv->groups, ph->pixels, cv->cout, ph->terms);
}

/* The phases of one launch by tensor cores, one after another. */
template <class T>
static void mlki_cuda_conv_tensor(mlki_cuda_call *call, const mlki_cuda_conv *cv, const mlki_cuda_correlation *c) {
  mlki_cuda_conv_pixels<T> image;
  mlki_cuda_conv_filters<T> w;
  mlki_cuda_conv_writer writer;
  double seconds = 0;
  mlki_cuda_conv_gather_of(cv, c, &image);
  memset(&w, 0, sizeof w), memset(&writer, 0, sizeof writer);
  w.step = c->w_term, w.lines = c->cout;
  writer.y = c->y, writer.residual = c->residual, writer.preact = c->preact;
  writer.bias = c->bias, writer.bias_c = c->bias_c, writer.bias_dtype = c->bias_dtype;
  writer.alpha = c->alpha, writer.beta = c->beta, writer.activation = c->activation;
  writer.cout = c->cout, writer.turned = !c->channels_last;
  for (int a = 0; a < 3; a++) writer.skip[a] = c->skip[a];
  for (int i = 0; i < c->phases; i++) {
    image.ph = writer.ph = c->phase[i];
    w.group = c->phase[i].w_group;
    w.p = c->w ? (const T *)(const void *)c->w + c->phase[i].w : NULL;
    mlki_cuda_conv_multiply(call, cv, image, w, writer);
    seconds += call->model;
  }
  mlki_cuda_gemm_tell(call, call->io->variant, seconds);
}

static void mlki_cuda_conv_multiply(mlki_cuda_call *call, const mlki_cuda_conv *cv,
                                    const mlki_cuda_conv_patches<uint16_t> &x,
                                    const mlki_cuda_conv_outputs<uint16_t> &dy,
                                    const mlki_cuda_conv_weights_writer &writer) {
  mlki_cuda_gemm_mma(call, cv->x.dtype, x, dy, writer, cv->groups, writer.ph.terms, cv->cout, writer.ph.pixels);
}
static void mlki_cuda_conv_multiply(mlki_cuda_call *call, const mlki_cuda_conv *cv,
                                    const mlki_cuda_conv_patches<float> &x, const mlki_cuda_conv_outputs<float> &dy,
                                    const mlki_cuda_conv_weights_writer &writer) {
  mlki_cuda_gemm_tf32(call, x, dy, writer, cv->groups, writer.ph.terms, cv->cout, writer.ph.pixels);
}

/* DW by tensor cores. */
template <class T>
static void mlki_cuda_conv_weights_tensor(mlki_cuda_call *call, const mlki_cuda_conv *cv,
                                          const mlki_cuda_correlation *c, int channels) {
  const mlki_cuda_phase *ph = &c->phase[0];
  mlki_cuda_conv_patches<T> x;
  mlki_cuda_conv_outputs<T> dy;
  mlki_cuda_conv_weights_writer writer;
  mlki_cuda_conv_gather_of(cv, c, &x);
  memset(&dy, 0, sizeof dy), memset(&writer, 0, sizeof writer);
  x.ph = dy.ph = writer.ph = *ph;
  dy.y = c->y, dy.lines = c->cout, dy.group = cv->y_group;
  for (int a = 0; a < 3; a++) dy.skip[a] = 1;
  if (!mlki_cuda_conv_merges(&cv->y, cv->out, &dy.step) || (cv->images > 1 && cv->y.n != dy.step * ph->image_pixels))
    dy.step = 0;
  dy.channels_first = llabs(cv->y.c) >= llabs(cv->y.s[2]);
  writer.dw = c->dw, writer.by_cin = c->by_cin, writer.beta = c->beta, writer.cout = c->cout;
  writer.channels = channels;
  mlki_cuda_conv_multiply(call, cv, x, dy, writer);
}

/* ---- by warpgroups ---- */

/* What gathering, an address for every 16 bytes, adds to the time of a product by warps, which is predicted as that of
   matrices. Not measured. */
#define MLKI_CUDA_CONV_GATHER 1.15

/* The share of the tensor cores' peak that tiles reach: see docs/design.md. */
static const mlki_cuda_gemm_cost mlki_cuda_conv_group_costs[] = {
    {128, 64, 0.35, 0.35}, {128, 128, 0.53, 0.53}, {128, 256, 0.68, 0.68}};

static mlki_cuda_gemm_form mlki_cuda_conv_group_form(const mlki_cuda_call *call, const mlki_cuda_product *p) {
  return mlki_cuda_gemm_choose(call->device, mlki_cuda_conv_group_costs, 3, call->device->wgmma_flops / 2, 2, p);
}

/* The sizes that a box may have along an axis of so many outputs, descending: those that cut it into so many parts with
   least waste, or, whole, its divisors. */
typedef struct mlki_cuda_conv_sizes {
  int count, size[MLKI_CUDA_CONV_BOX];
} mlki_cuda_conv_sizes;

static mlki_cuda_conv_sizes mlki_cuda_conv_sizes_of(int outputs, int most, bool whole) {
  mlki_cuda_conv_sizes s;
  s.count = 0;
  for (int size = outputs < most ? outputs : most; size >= 1; size--) {
    if (whole && outputs % size != 0) continue;
    const int parts = (outputs - 1) / size + 1;
    size = (outputs - 1) / parts + 1;
    s.size[s.count++] = size;
  }
  return s;
}

/* The fewest boxes of at most most outputs; among those of one number the most outputs of an image, nearest to each
   other. Gives how many there are. */
static int64_t mlki_cuda_conv_box_of(const mlki_cuda_phase *ph, int64_t images, const int step[3], int most, bool whole,
                                     mlki_cuda_conv_boxes *b) {
  mlki_cuda_conv_sizes sizes[3];
  int64_t best = INT64_MAX;
  int best_places = 0, best_far = 0;
  for (int a = 0; a < 3; a++)
    sizes[a] = mlki_cuda_conv_sizes_of(ph->out[a], (int)mlki_cuda_min(most, 256 / step[a]), whole);
  for (int i0 = 0; i0 < sizes[0].count; i0++)
    for (int i1 = 0; i1 < sizes[1].count; i1++)
      for (int i2 = 0; i2 < sizes[2].count; i2++) {
        const int size[3] = {sizes[0].size[i0], sizes[1].size[i1], sizes[2].size[i2]};
        const int places = size[0] * size[1] * size[2], far = size[0] + size[1] + size[2];
        if (places > most) continue;
        const int64_t of_images = mlki_cuda_min(images, most / places);
        int64_t count = mlki_cuda_ceil_div(images, of_images);
        for (int a = 0; a < 3; a++) count *= mlki_cuda_ceil_div(ph->out[a], size[a]);
        if (count > best || (count == best && (places < best_places || (places == best_places && far >= best_far))))
          continue;
        best = count, best_places = places, best_far = far;
        for (int a = 0; a < 3; a++) b->size[a] = size[a];
        b->size[3] = (int)of_images;
      }
  for (int a = 0; a < 3; a++) {
    b->outputs[a] = ph->out[a];
    b->count[a] = mlki_cuda_divider_of(mlki_cuda_ceil_div(ph->out[a], b->size[a]));
    b->in[a] = mlki_cuda_divider_of(b->size[a]);
  }
  b->outputs[3] = (int)images;
  return best;
}

static mlki_cuda_conv_slices mlki_cuda_conv_slices_of(const mlki_cuda_phase *ph, int64_t channels) {
  mlki_cuda_conv_slices s;
  memset(&s, 0, sizeof s);
  s.channels = mlki_cuda_divider_of(mlki_cuda_ceil_div(channels, MLKI_CUDA_CONV_SLICE) * MLKI_CUDA_CONV_SLICE);
  s.taps1 = ph->taps1, s.taps2 = ph->taps2;
  return s;
}

/* channels of image y, of these spatial sizes, in boxes of so many outputs, step apart. */
template <bool lines_are_outputs>
static bool mlki_cuda_conv_view_of(const mlki_cuda_call *call, const mlki_cuda_image *y, int64_t images,
                                   int64_t channels, const int64_t *in, const int *step,
                                   const mlki_cuda_conv_boxes *boxes, mlki_cuda_conv_view<lines_are_outputs> *v) {
  const int64_t size[5] = {channels, in[2], in[1], in[0], images}, strides[5] = {y->c, y->s[2], y->s[1], y->s[0], y->n};
  cuuint32_t box[5] = {MLKI_CUDA_CONV_SLICE, 1, 1, 1, (cuuint32_t)boxes->size[3]}, steps[5] = {1, 1, 1, 1, 1};
  v->boxes = *boxes, v->held = boxes->size[3];
  for (int a = 0; a < 3; a++) {
    v->step[a] = step[a], v->held *= boxes->size[a];
    steps[3 - a] = (cuuint32_t)step[a], box[3 - a] = (cuuint32_t)(boxes->size[a] * step[a]);
  }
  return mlki_cuda_map_of(call, &v->map, y->dtype, y->p, 5, size, strides, box, steps);
}

/* A phase of a correlation as a product: the boxes are its batches. */
template <bool terms> struct mlki_cuda_conv_group_phase {
  mlki_cuda_conv_view<true> image;
  mlki_cuda_conv_taps<terms> w;
  mlki_cuda_conv_box_writer writer;
  mlki_cuda_product p;
  mlki_cuda_gemm_form form;
};

/* The weights of a phase: as they lie, or packed; taps, which of them is the first, how far the next. */
typedef struct mlki_cuda_conv_filter {
  mlki_cuda_conv_weights at;
  int64_t taps[3];
  int first[3], skip[3];
} mlki_cuda_conv_filter;

static mlki_cuda_conv_filter mlki_cuda_conv_filter_of(const mlki_cuda_conv *cv, const mlki_cuda_correlation *c,
                                                      const mlki_cuda_phase *ph, bool packed) {
  mlki_cuda_conv_filter f;
  memset(&f, 0, sizeof f);
  f.at = cv->w;
  if (packed) {
    f.at.p = c->w + ph->w * 2, f.at.dtype = cv->x.dtype, f.at.channels = cv->cin, f.at.out = 1, f.at.in = c->w_term;
    f.at.tap[2] = cv->cin * c->w_term, f.at.tap[1] = f.at.tap[2] * ph->taps[2];
    f.at.tap[0] = f.at.tap[1] * ph->taps[1];
  }
  for (int a = 0; a < 3; a++) {
    f.taps[a] = packed ? ph->taps[a] : cv->taps[a];
    f.first[a] = packed ? 0 : ph->tap_first[a], f.skip[a] = packed ? 1 : c->tap_skip[a];
  }
  return f;
}

/* Can count channels, from a multiple of that on, be read or written at once? */
static bool mlki_cuda_conv_vector(const mlki_cuda_plane *x, int count) {
  bool fits = x->cs == 1 && (uintptr_t)x->p % (uintptr_t)(count * (x->dtype == MLK_F32 ? 4 : 2)) == 0;
  for (int a = 0; a < 4; a++) fits = fits && x->step[a] % count == 0;
  return fits;
}

/* A plane of the epilogue: image y from the phase's first output on. */
static mlki_cuda_plane mlki_cuda_conv_plane(const mlki_cuda_correlation *c, const mlki_cuda_phase *ph,
                                            const mlki_cuda_image *y) {
  const int width = y->dtype == MLK_F32 ? 4 : 2;
  mlki_cuda_plane x;
  memset(&x, 0, sizeof x);
  if (!y->p) return x;
  x.p = y->p, x.dtype = y->dtype, x.cs = y->c, x.step[3] = y->n;
  for (int a = 0; a < 3; a++) x.p += ph->first[a] * y->s[a] * width, x.step[a] = c->skip[a] * y->s[a];
  x.vector = mlki_cuda_conv_vector(&x, 4);
  return x;
}

/* Do 32 bits reach from a box's first output to its last? */
static bool mlki_cuda_conv_near(const mlki_cuda_plane *x, const mlki_cuda_conv_boxes *b) {
  double reach = 0;
  for (int a = 0; a < 4; a++) reach += fabs((double)x->step[a]) * b->size[a];
  return reach < INT32_MAX;
}

static mlki_cuda_epilogue mlki_cuda_conv_epilogue(const mlki_cuda_correlation *c, const mlki_cuda_phase *ph) {
  mlki_cuda_epilogue e;
  memset(&e, 0, sizeof e);
  e.alpha = c->alpha, e.beta = c->beta, e.activation = c->activation;
  e.d = mlki_cuda_conv_plane(c, ph, &c->y), e.residual = mlki_cuda_conv_plane(c, ph, &c->residual);
  e.preact = mlki_cuda_conv_plane(c, ph, &c->preact);
  if (c->beta != 0.0f) e.c = e.d;
  e.bias.p = (char *)(uintptr_t)c->bias, e.bias.dtype = c->bias_dtype, e.bias.cs = c->bias_c;
  e.bias.vector = c->bias_c == 1 && (uintptr_t)c->bias % (c->bias_dtype == MLK_F32 ? 16 : 8) == 0;
  e.plain = e.alpha == 1.0f && !e.c.p && !e.bias.p && !e.residual.p && !e.preact.p && !e.activation;
  e.eights = e.plain && e.d.dtype != MLK_F32 && c->cout % 8 == 0 && mlki_cuda_conv_vector(&e.d, 8);
  return e;
}

/* Phase ph; w: its weights. False: the copy engine does not take something. */
template <bool terms>
static bool mlki_cuda_conv_group_of(const mlki_cuda_call *call, const mlki_cuda_conv *cv,
                                    const mlki_cuda_correlation *c, const mlki_cuda_phase *ph,
                                    const mlki_cuda_conv_filter *w, mlki_cuda_conv_group_phase<terms> *g) {
  memset((void *)g, 0, sizeof *g);
  const mlki_cuda_conv_slices slices = mlki_cuda_conv_slices_of(ph, cv->cin);
  mlki_cuda_conv_boxes boxes;
  const int64_t count = mlki_cuda_conv_box_of(ph, cv->images, c->step, MLKI_CUDA_CONV_BOX, false, &boxes);
  g->writer.e = mlki_cuda_conv_epilogue(c, ph), g->writer.boxes = boxes;
  g->p = mlki_cuda_product_of(count, boxes.size[0] * boxes.size[1] * boxes.size[2] * boxes.size[3], cv->cout,
                              (int64_t)ph->taps[0] * ph->taps[1] * ph->taps[2] * slices.channels.divisor);
  g->form = mlki_cuda_conv_group_form(call, &g->p);
  const mlki_cuda_plane *const planes[] = {&g->writer.e.d, &g->writer.e.residual, &g->writer.e.preact};
  for (const mlki_cuda_plane *x : planes)
    if (!mlki_cuda_conv_near(x, &boxes)) return false;
  if (count > INT32_MAX || g->p.k > INT32_MAX) return false;
  if (g->p.k == 0) return true;
  g->image.slices = g->w.slices = slices;
  for (int a = 0; a < 3; a++) {
    g->image.slices.first[a] = ph->origin[a], g->image.slices.step[a] = c->dilation[a];
    g->w.slices.first[a] = w->first[a], g->w.slices.step[a] = w->skip[a];
  }
  const mlki_cuda_conv_weights *at = &w->at;
  const int64_t size[5] = {terms ? at->channels : cv->cout, terms ? cv->cout : at->channels, w->taps[2], w->taps[1],
                           w->taps[0]},
                step[5] = {terms ? at->in : at->out, terms ? at->out : at->in, at->tap[2], at->tap[1], at->tap[0]};
  const int columns = mlki_cuda_conv_group_costs[g->form.tile].columns;
  const cuuint32_t box[5] = {64, (cuuint32_t)(terms ? columns : 64), 1, 1, 1}, steps[5] = {1, 1, 1, 1, 1};
  return mlki_cuda_map_of(call, &g->w.map, at->dtype, at->p, 5, size, step, box, steps) &&
         mlki_cuda_conv_view_of(call, &cv->x, cv->images, cv->cin, cv->in, c->step, &boxes, &g->image);
}

template <class A, class B, class W>
static void mlki_cuda_conv_group_run(mlki_cuda_call *call, int dtype, const A &a, const B &b, const W &w,
                                     const mlki_cuda_product &p, const mlki_cuda_gemm_form &form) {
  if (form.tile == 0)
    mlki_cuda_wgmma_run<mlki_cuda_wgmma_narrow>(call, dtype, a, b, w, p, form);
  else if (form.tile == 1)
    mlki_cuda_wgmma_run<mlki_cuda_wgmma_large>(call, dtype, a, b, w, p, form);
  else
    mlki_cuda_wgmma_run<mlki_cuda_wgmma_wide>(call, dtype, a, b, w, p, form);
}

/* The phases of one launch, one after another, with the weights as they lie or packed to room. False: nothing was
   done, since the copy engine does not take something. */
template <bool terms>
static bool mlki_cuda_conv_groups_run(mlki_cuda_call *call, const mlki_cuda_conv *cv, mlki_cuda_correlation *c,
                                      bool packed, char *room) {
  mlki_cuda_conv_group_phase<terms> g[MLKI_CUDA_CONV_PHASES];
  double seconds = 0;
  c->w = room;
  for (int i = 0; i < c->phases; i++) {
    const mlki_cuda_conv_filter w = mlki_cuda_conv_filter_of(cv, c, &c->phase[i], packed);
    if (!mlki_cuda_conv_group_of(call, cv, c, &c->phase[i], &w, &g[i])) return false;
  }
  if (packed) mlki_cuda_conv_pack(call, cv, c, room);
  for (int i = 0; i < c->phases; i++) {
    mlki_cuda_conv_group_run(call, cv->x.dtype, g[i].image, g[i].w, g[i].writer, g[i].p, g[i].form);
    seconds += call->model;
  }
  mlki_cuda_gemm_tell(call, call->io->variant, seconds);
  return true;
}

static bool mlki_cuda_conv_groups(mlki_cuda_call *call, const mlki_cuda_conv *cv, mlki_cuda_correlation *c,
                                  char *room) {
  const bool alike = cv->w.dtype == cv->x.dtype;
  if (alike && cv->w.in == 1 && mlki_cuda_conv_groups_run<true>(call, cv, c, false, room)) return true;
  if (alike && cv->w.out == 1 && mlki_cuda_conv_groups_run<false>(call, cv, c, false, room)) return true;
  return mlki_cuda_conv_groups_run<false>(call, cv, c, true, room);
}

/* Runs groups or warps, whichever is predicted to be quicker: both are called to plan first. The driver may refuse what
   groups, which then gives false, asks of it: so the workspace is enough for either. */
template <class Groups, class Warps>
static void mlki_cuda_conv_quicker(mlki_cuda_call *call, Groups groups, Warps warps) {
  mlk_backend_call io[2] = {*call->io, *call->io};
  mlki_cuda_call plan[2] = {*call, *call};
  for (int i = 0; i < 2; i++) plan[i].io = &io[i], plan[i].run = 0, plan[i].base = NULL;
  warps(&plan[1]);
  const bool quicker = groups(&plan[0]) && plan[0].model < MLKI_CUDA_CONV_GATHER * plan[1].model,
             done = quicker && groups(call);
  if (!done) warps(call);
  if (call->used < plan[1].used) call->used = plan[1].used;
  if (quicker && call->used < plan[0].used) call->used = plan[0].used;
}

/* Is this for warpgroups at all? */
static bool mlki_cuda_conv_has_groups(const mlki_cuda_call *call, const mlki_cuda_conv *cv,
                                      const mlki_cuda_correlation *c) {
  return mlki_cuda_has_wgmma(call) && cv->groups == 1 && cv->cin > 0 && c->step[0] <= 8 && c->step[1] <= 8 &&
         c->step[2] <= 8;
}

/* A correlation of 16-bit images by tensor cores; room: that room for the weights. */
static void mlki_cuda_conv_correlate_16(mlki_cuda_call *call, const mlki_cuda_conv *cv, mlki_cuda_correlation *c,
                                        char *room) {
  const auto warps = [&](mlki_cuda_call *by) {
    mlki_cuda_conv_pack(by, cv, c, room);
    mlki_cuda_conv_tensor<uint16_t>(by, cv, c);
  };
  if (mlki_cuda_conv_has_groups(call, cv, c) && c->channels_last)
    mlki_cuda_conv_quicker(
        call, [&](mlki_cuda_call *by) { return mlki_cuda_conv_groups(by, cv, c, room); }, warps);
  else
    warps(call);
}

/* DW, of channels read channels. False: nothing was done. */
static bool mlki_cuda_conv_weights_groups(mlki_cuda_call *call, const mlki_cuda_conv *cv,
                                          const mlki_cuda_correlation *c, int channels) {
  const mlki_cuda_phase *ph = &c->phase[0];
  const int one[3] = {1, 1, 1};
  mlki_cuda_conv_view<false> dy, x;
  mlki_cuda_conv_taps_writer writer;
  mlki_cuda_conv_boxes boxes;
  memset((void *)&dy, 0, sizeof dy), memset((void *)&x, 0, sizeof x), memset(&writer, 0, sizeof writer);
  const int64_t count = mlki_cuda_conv_box_of(ph, cv->images, c->step, MLKI_CUDA_CONV_SLICE, true, &boxes);
  if (count > INT32_MAX / MLKI_CUDA_CONV_SLICE) return false;
  x.slices = writer.slices = mlki_cuda_conv_slices_of(ph, cv->cin), dy.slices = x.slices;
  dy.slices.channels = mlki_cuda_divider_of(1 << 30); /* no taps */
  for (int a = 0; a < 3; a++) {
    x.slices.first[a] = ph->origin[a], x.slices.step[a] = c->dilation[a];
    writer.slices.step[a] = 1;
  }
  writer.dw = c->dw, writer.beta = c->beta, writer.channels = channels;
  const mlki_cuda_product p = mlki_cuda_product_of(
      1, cv->cout, (int64_t)ph->taps[0] * ph->taps[1] * ph->taps[2] * x.slices.channels.divisor,
      count * MLKI_CUDA_CONV_SLICE);
  const mlki_cuda_gemm_form form = mlki_cuda_conv_group_form(call, &p);
  if (p.n > INT32_MAX - 256) return false;
  if (!mlki_cuda_conv_view_of(call, &cv->y, cv->images, cv->cout, cv->out, one, &boxes, &dy)) return false;
  if (!mlki_cuda_conv_view_of(call, &cv->x, cv->images, cv->cin, cv->in, c->step, &boxes, &x)) return false;
  mlki_cuda_conv_group_run(call, cv->x.dtype, dy, x, writer, p, form);
  return true;
}

static void mlki_cuda_conv_weights_16(mlki_cuda_call *call, const mlki_cuda_conv *cv, const mlki_cuda_correlation *c,
                                      int channels) {
  const auto warps = [&](mlki_cuda_call *by) { mlki_cuda_conv_weights_tensor<uint16_t>(by, cv, c, channels); };
  if (mlki_cuda_conv_has_groups(call, cv, c) && c->phase[0].pixels > 0)
    mlki_cuda_conv_quicker(
        call, [&](mlki_cuda_call *by) { return mlki_cuda_conv_weights_groups(by, cv, c, channels); }, warps);
  else
    warps(call);
}

#if defined(MLKI_CUDA_MATMUL)
/* [images, groups, rows, columns]. */
static mlk_tensor mlki_cuda_conv_matrix(const char *p, int dtype, const int64_t *shape, int64_t sn, int64_t sg,
                                        int64_t rs, int64_t cs) {
  mlk_tensor t;
  memset(&t, 0, sizeof t);
  t.data = (void *)(uintptr_t)p, t.dtype = dtype, t.rank = 4;
  for (int i = 0; i < 4; i++) t.shape[i] = shape[i];
  t.stride[0] = sn, t.stride[1] = sg, t.stride[2] = rs, t.stride[3] = cs;
  return t;
}

/* A filter of one tap that touches every pixel once is a matrix product, Y = W X for each image and group: the same
   sums in the same order. 0: it is not, or the strides do not allow it. */
static int mlki_cuda_conv_pointwise(mlki_cuda_call *call, const mlki_cuda_conv *cv) {
  const mlki_cuda_image *const image[4] = {&cv->x, &cv->y, &cv->residual, &cv->preact};
  mlk_tensor matrix[4];
  int64_t step[4], pixels = cv->out[0] * cv->out[1] * cv->out[2], images = cv->images;
  int merges = 1;
  if (cv->cin == 0) return 0;
  for (int a = 0; a < 3; a++)
    if (cv->taps[a] != 1 || cv->stride[a] != 1 || cv->in[a] != cv->out[a] || cv->pad[a]) return 0;
  for (int i = 0; i < 4; i++) {
    if (!mlki_cuda_conv_merges(image[i], cv->out, &step[i])) return 0;
    merges &= !image[i]->p || pixels == 1 || image[i]->n == step[i] * pixels;
  }
  if (merges && pixels > 1) pixels *= images, images = 1;
  for (int i = 0; i < 4; i++) {
    const mlki_cuda_image *t = image[i];
    if (t->p && !t->n && !t->c && !step[i]) return 0; /* all strides zero would mean dense */
    const int64_t channels = i == 0 ? cv->cin : cv->cout, shape[4] = {images, cv->groups, channels, pixels};
    matrix[i] = mlki_cuda_conv_matrix(t->p, t->dtype, shape, t->n, channels * t->c, t->c, step[i]);
  }
  const int64_t weights[4] = {1, cv->groups, cv->cout, cv->cin}, column[4] = {1, cv->groups, cv->cout, 1};
  mlk_matmul_desc mm;
  memset(&mm, 0, sizeof mm);
  mm.a = mlki_cuda_conv_matrix(cv->w.p, cv->w.dtype, weights, 1, cv->w.group, cv->w.out, cv->w.in);
  mm.b = matrix[0], mm.d = matrix[1], mm.residual = matrix[2], mm.preact = matrix[3];
  mm.bias = mlki_cuda_conv_matrix(cv->bias, cv->bias_dtype, column, 1, cv->cout * cv->bias_c, cv->bias_c, 1);
  mm.alpha = &cv->alpha, mm.beta = &cv->beta, mm.activation = (mlk_activation)cv->activation;
  return mlki_cuda_matmul_call(call, &mm) == MLK_OK;
}

/* DW of such a filter, where images follow each other as pixels do: DW = DY X for each group. */
static int mlki_cuda_conv_pointwise_weights(mlki_cuda_call *call, const mlki_cuda_conv *cv) {
  int64_t x, dy, pixels = cv->out[0] * cv->out[1] * cv->out[2];
  for (int a = 0; a < 3; a++)
    if (cv->taps[a] != 1 || cv->stride[a] != 1 || cv->in[a] != cv->out[a] || cv->pad[a]) return 0;
  if (!mlki_cuda_conv_merges(&cv->x, cv->out, &x) || !mlki_cuda_conv_merges(&cv->y, cv->out, &dy)) return 0;
  if (pixels == 1) x = cv->x.n, dy = cv->y.n;
  if (cv->images > 1 && (cv->x.n != x * pixels || cv->y.n != dy * pixels)) return 0;
  pixels *= cv->images;
  const int64_t a[4] = {1, cv->groups, cv->cout, pixels}, b[4] = {1, cv->groups, pixels, cv->cin},
                d[4] = {1, cv->groups, cv->cout, cv->cin};
  mlk_matmul_desc mm;
  memset(&mm, 0, sizeof mm);
  mm.a = mlki_cuda_conv_matrix(cv->y.p, cv->y.dtype, a, 1, cv->cout * cv->y.c, cv->y.c, dy);
  mm.b = mlki_cuda_conv_matrix(cv->x.p, cv->x.dtype, b, 1, cv->cin * cv->x.c, x, cv->x.c);
  mm.d = mlki_cuda_conv_matrix(cv->dw.p, cv->dw.dtype, d, 1, cv->cout * cv->dw.n, cv->dw.n, cv->dw.c);
  mm.beta = &cv->beta;
  return mlki_cuda_matmul_call(call, &mm) == MLK_OK;
}
#else
static int mlki_cuda_conv_pointwise(mlki_cuda_call *, const mlki_cuda_conv *) { return 0; }
static int mlki_cuda_conv_pointwise_weights(mlki_cuda_call *, const mlki_cuda_conv *) { return 0; }
#endif

typedef enum mlki_cuda_conv_way {
  MLKI_CUDA_CONV_TILED,
  MLKI_CUDA_CONV_DIRECT,
  MLKI_CUDA_CONV_TENSOR
} mlki_cuda_conv_way;

/* The phases of one launch, their weights packed to w. */
static void mlki_cuda_conv_launch(mlki_cuda_call *call, const mlki_cuda_conv *cv, mlki_cuda_correlation *c,
                                  mlki_cuda_conv_way way, char *w) {
  const int direct = way == MLKI_CUDA_CONV_DIRECT;
  int64_t at = 0;
  c->w_dtype = way == MLKI_CUDA_CONV_TENSOR ? cv->x.dtype : MLK_F32;
  c->w_columns = direct ? c->cout : (c->cout + 7) / 8 * 8;
  c->w_term = direct ? (int64_t)c->cout * c->groups : c->w_columns;
  for (int i = 0; i < c->phases; i++) {
    mlki_cuda_phase *ph = &c->phase[i];
    ph->w = at, ph->w_group = direct ? c->cout : ph->terms * c->w_term;
    at += ph->terms * c->groups * c->w_columns;
  }
  if (way == MLKI_CUDA_CONV_TENSOR && cv->x.dtype != MLK_F32) {
    mlki_cuda_conv_correlate_16(call, cv, c, w);
    return;
  }
  mlki_cuda_conv_pack(call, cv, c, w);
  if (direct)
    mlki_cuda_conv_direct(call, cv, c);
  else if (way == MLKI_CUDA_CONV_TILED)
    mlki_cuda_conv_tiled(call, cv, c);
  else
    mlki_cuda_conv_tensor<float>(call, cv, c);
}

static void mlki_cuda_conv_plain(mlki_cuda_call *call, const mlki_cuda_conv *cv) {
  const int64_t outputs = cv->images * cv->groups * cv->cout * cv->out[0] * cv->out[1] * cv->out[2];
  call->io->variant = "plain";
  mlki_cuda_launch(call, mlki_cuda_conv_grid(outputs), 256, 0, mlki_cuda_conv_plain_kernel, *cv);
}

/* Do tensor cores take X, as it is or as mlki_cuda_conv_turn copies it? */
static int mlki_cuda_conv_tensors(const mlki_cuda_call *call, const mlki_cuda_conv *cv) {
  const double image = (double)cv->in[0] * (double)cv->in[1] * (double)cv->in[2] * (double)cv->groups;
  return mlki_cuda_has_mma(call, cv->x.dtype) && image * (double)(cv->cin + 7) < (double)INT32_MAX;
}

/* A convolution or its transpose: all phases that write something, as many at a time as fit a launch's arguments. */
static mlk_status mlki_cuda_conv_correlation(mlki_cuda_call *call, mlki_cuda_conv *cv) {
  mlki_cuda_conv_way way = MLKI_CUDA_CONV_TILED;
  int64_t phases[3], count = 1, first[3];
  mlki_cuda_correlation c;
  for (int a = 0; a < 3; a++) {
    phases[a] = cv->transposed ? mlki_cuda_min(cv->stride[a], cv->out[a]) : 1;
    count = count > MLKI_CUDA_CONV_MOST ? count : count * phases[a];
  }
  if (cv->images == 0 || cv->cout == 0 || cv->out[0] == 0 || cv->out[1] == 0 || cv->out[2] == 0) {
    call->io->variant = "empty";
    return MLK_OK;
  }
  if (mlki_cuda_conv_pointwise(call, cv)) return call->status;
  if (!mlki_cuda_conv_fits(cv) || count > MLKI_CUDA_CONV_MOST) {
    mlki_cuda_conv_plain(call, cv);
    return call->status;
  }
  const int mma = mlki_cuda_conv_tensors(call, cv) && count <= MLKI_CUDA_CONV_PHASES;
  if (cv->cout <= (mma ? MLKI_CUDA_CONV_FEW / 2 : MLKI_CUDA_CONV_FEW))
    way = MLKI_CUDA_CONV_DIRECT;
  else if (mma)
    way = MLKI_CUDA_CONV_TENSOR;
  if (way == MLKI_CUDA_CONV_TENSOR && cv->x.dtype != MLK_F32 && cv->cin)
    cv->cin = mlki_cuda_conv_turn(call, &cv->x, cv->images, cv->groups, cv->cin, cv->in);
  mlki_cuda_conv_correlate(cv, &c);
  const int64_t columns = way == MLKI_CUDA_CONV_DIRECT ? cv->cout : (cv->cout + 7) / 8 * 8;
  char *w = (char *)mlki_cuda_carve<float>(call,
                                           cv->taps[0] * cv->taps[1] * cv->taps[2] * cv->cin * cv->groups * columns);
  for (first[0] = 0; first[0] < phases[0]; first[0]++)
    for (first[1] = 0; first[1] < phases[1]; first[1]++)
      for (first[2] = 0; first[2] < phases[2]; first[2]++) {
        mlki_cuda_conv_phase_of(cv, first, &c.phase[c.phases++]);
        if (--count > 0 && c.phases < MLKI_CUDA_CONV_PHASES) continue;
        mlki_cuda_conv_launch(call, cv, &c, way, w);
        c.phases = 0;
      }
  return call->status;
}

static mlk_status mlki_cuda_conv_forward(mlki_cuda_call *call, const mlk_conv_desc *desc) {
  mlki_cuda_conv cv;
  mlki_cuda_conv_describe(&cv, &desc->geometry, &desc->x, &desc->y, &desc->w, 0);
  mlki_cuda_conv_operands(&cv, &desc->w, &desc->bias, &desc->residual, &desc->preact, desc->alpha, desc->beta,
                          desc->activation);
  return mlki_cuda_conv_correlation(call, &cv);
}

static mlk_status mlki_cuda_conv_grad_input(mlki_cuda_call *call, const mlk_conv_grad_input_desc *desc) {
  mlki_cuda_conv cv;
  mlki_cuda_conv_describe(&cv, &desc->geometry, &desc->dy, &desc->dx, &desc->w, 1);
  mlki_cuda_conv_operands(&cv, &desc->w, &desc->bias, &desc->residual, &desc->preact, desc->alpha, desc->beta,
                          desc->activation);
  return mlki_cuda_conv_correlation(call, &cv);
}

/* DW: sums of whole chains by tiles, or all segments apart where tiles are few, in rounds that stay in the cache. */
static void mlki_cuda_conv_weights_tiled(mlki_cuda_call *call, const mlki_cuda_conv *cv, mlki_cuda_correlation *c) {
  const int sms = call->device->sms, few = cv->cout <= MLKI_CUDA_CONV_FEW && cv->groups > 1;
  const int k_fast = llabs(cv->x.c) >= mlki_cuda_conv_nearest(cv), wide = cv->x.dtype == MLK_F32;
  mlki_cuda_phase *ph = &c->phase[0];
  const int64_t segments = mlki_cuda_max(mlki_cuda_ceil_div(ph->pixels, MLK_SEGMENT), 1),
                sums = ph->terms * cv->cout * cv->groups;
  const mlki_cuda_conv_kernels *k = mlki_cuda_conv_choose(mlki_cuda_conv_weights_simt, 2, wide, ph->terms, cv->cout,
                                                          cv->groups * segments, 2 * sms);
  const int64_t tiles = mlki_cuda_conv_tiles(k, ph->terms, cv->cout) * cv->groups;
  ph->length = ph->pixels, ph->m_tiles = (int)mlki_cuda_ceil_div(ph->terms, k->bm);
  c->n_tiles = (int)mlki_cuda_ceil_div(cv->cout, k->bn), c->channels_last = !k_fast;
  call->io->variant = few ? "direct" : "simt";
  if (!few && (tiles >= sms || segments <= 1)) {
    mlki_cuda_launch(call, tiles, k->threads, k->shared, k->kernel[k_fast], *c);
    return;
  }
  if (!few) call->io->variant = "split";
  const int64_t room = mlki_cuda_max(MLKI_CUDA_CONV_ROUND / sums, segments / MLKI_CUDA_CONV_ROUNDS + 1);
  const int64_t round = mlki_cuda_min(room, segments);
  c->partial = mlki_cuda_carve<float>(call, sums * round);
  float *totals = segments > round ? mlki_cuda_carve<float>(call, sums) : NULL;
  c->partial_segment = sums, c->partial_group = ph->terms * cv->cout, c->partial_m = cv->cout, c->partial_n = 1;
  for (c->segment = 0; c->segment < segments; c->segment += round) {
    const int now = (int)mlki_cuda_min(round, segments - c->segment);
    ph->splits = now;
    if (few)
      mlki_cuda_launch(call, mlki_cuda_ceil_div(sums * now, 256), 256, 0,
                       wide ? mlki_cuda_conv_weights_direct_kernel<true> : mlki_cuda_conv_weights_direct_kernel<false>,
                       *c, now);
    else
      mlki_cuda_launch(call, tiles * now, k->threads, k->shared, k->kernel[k_fast], *c);
    mlki_cuda_launch(call, mlki_cuda_conv_grid(sums), 256, 0, mlki_cuda_conv_weights_add_kernel, *c, totals, now,
                     c->segment == 0, c->segment + now >= segments);
  }
}

static void mlki_cuda_conv_bias(mlki_cuda_call *call, const mlki_cuda_conv *cv, const mlk_tensor *dbias) {
  const int64_t channels = cv->groups * cv->cout, pixels = cv->images * cv->out[0] * cv->out[1] * cv->out[2];
  const int64_t segments = mlki_cuda_ceil_div(pixels, MLK_REDUCE_SEGMENT);
  float *partial = mlki_cuda_carve<float>(call, segments * channels);
  const mlki_cuda_view to = mlki_cuda_view_of(dbias);
  mlki_cuda_launch(call, segments * mlki_cuda_ceil_div(channels, MLKI_CUDA_CONV_BIAS), 256, 0,
                   mlki_cuda_conv_bias_kernel, *cv, llabs(cv->y.c) < llabs(cv->y.s[2]), partial);
  mlki_cuda_launch(call, mlki_cuda_ceil_div(channels, 256), 256, 0, mlki_cuda_conv_bias_add_kernel,
                   (const float *)partial, segments, channels, cv->beta, (float *)(void *)to.p, to.stride[0]);
}

/* DW by the way that suits it. */
static void mlki_cuda_conv_weights_choose(mlki_cuda_call *call, mlki_cuda_conv cv) {
  const int64_t first[3] = {0, 0, 0};
  const int few = cv.cout <= MLKI_CUDA_CONV_FEW && cv.groups > 1, mma = !few && mlki_cuda_conv_tensors(call, &cv);
  const int channels = (int)cv.cin;
  mlki_cuda_correlation c;
  cv.y_group = cv.cout * cv.y.c;
  if (mma && cv.x.dtype != MLK_F32) {
    cv.cin = mlki_cuda_conv_turn(call, &cv.x, cv.images, cv.groups, cv.cin, cv.in);
    const int64_t padded = mlki_cuda_conv_turn(call, &cv.y, cv.images, cv.groups, cv.cout, cv.out);
    cv.y_group = padded * cv.y.c;
  }
  mlki_cuda_conv_correlate(&cv, &c);
  mlki_cuda_conv_phase_of(&cv, first, &c.phase[c.phases++]);
  if (mma && cv.x.dtype == MLK_F32)
    mlki_cuda_conv_weights_tensor<float>(call, &cv, &c, channels);
  else if (mma)
    mlki_cuda_conv_weights_16(call, &cv, &c, channels);
  else
    mlki_cuda_conv_weights_tiled(call, &cv, &c);
}

static mlk_status mlki_cuda_conv_grad_weights(mlki_cuda_call *call, const mlk_conv_grad_weights_desc *desc) {
  mlki_cuda_conv cv;
  mlki_cuda_conv_describe(&cv, &desc->geometry, desc->dw.data ? &desc->x : NULL, &desc->dy, &desc->dw, 0);
  cv.dw = mlki_cuda_conv_image(&desc->dw), cv.beta = desc->beta ? *desc->beta : 0.0f;
  const int64_t weights = cv.groups * cv.cout * cv.cin * cv.taps[0] * cv.taps[1] * cv.taps[2];
  call->io->variant = "empty";
  if (desc->dw.data && weights && mlki_cuda_conv_pointwise_weights(call, &cv)) {
    /* done */
  } else if (desc->dw.data && weights && !mlki_cuda_conv_fits(&cv)) {
    call->io->variant = "plain";
    mlki_cuda_launch(call, mlki_cuda_conv_grid(weights), 256, 0, mlki_cuda_conv_weights_plain_kernel, cv);
  } else if (desc->dw.data && weights) {
    mlki_cuda_conv_weights_choose(call, cv);
  }
  if (desc->dbias.data && desc->dy.dtype == MLK_F32) {
    const char *const variant = call->io->variant;
    mlk_reduce_desc sum;
    memset(&sum, 0, sizeof sum);
    sum.op = MLK_SUM, sum.x = desc->dy, sum.out = desc->dbias, sum.beta = desc->beta;
    sum.axes = ((1u << desc->dy.rank) - 1u) & ~2u; /* all but the channels */
    mlki_cuda_reduce(call, &sum);
    if (desc->dw.data) call->io->variant = variant;
  } else if (desc->dbias.data) {
    mlki_cuda_conv_bias(call, &cv, &desc->dbias);
  }
  return call->status;
}

#endif /* MLKI_CUDA_CONV */

/* >>cuda_attention -------------------------------------------------------------------------------------------------
   Rows of a key head are its queries' heads: row r is query r / group, head r % group of the group. T0 computes tiles
   of 64 rows and blocks of MLK_ATTENTION_BLOCK keys in registers, so that a block's softmax needs no second pass:
     scores  256 threads, warp w has rows 8 w .. 8 w + 7, lane l keys l, l + 32, ...: 8 x 16 chains a thread over slabs
             of 8 elements of a head, which wait in shared memory, keys along the banks
     weights maximum and 16-lane sum within the warp
     values  weights go to shared memory, 128 keys of the warp's rows at a time; slabs of 16 rows of v; 8 x EV chains
   The state (M, L, O) of a part and of the whole lie in the workspace, O element by element where its thread finds it.
   Few tasks: each block of keys is a task of its own, and a second kernel folds (split). */
#if defined(MLKI_CUDA_ATTENTION)

#define MLKI_CUDA_AT_ROWS        64
#define MLKI_CUDA_AT_DEPTH       8  /* elements of a slab of q and k */
#define MLKI_CUDA_AT_SLAB        16 /* keys of a slab of v */
#define MLKI_CUDA_AT_KEYS        MLK_ATTENTION_BLOCK
#define MLKI_CUDA_AT_THREADS     256
#define MLKI_CUDA_AT_SCORE_BYTES (2 * MLKI_CUDA_AT_DEPTH * (MLKI_CUDA_AT_ROWS + MLKI_CUDA_AT_KEYS) * 4)

/* An operand [B, H, S, D]. wide: four neighbours of the last axis may be loaded at once. */
typedef struct mlki_cuda_at_operand {
  char *p;
  int dtype, wide;
  int64_t stride[4];
} mlki_cuda_at_operand;

/* A call as kernels get it; sizes of the longest sequences. */
typedef struct mlki_cuda_attend {
  int batch, heads, groups, group, s, t, d, e;
  int packed_q, packed_k, causal, plain; /* plain: scores are products */
  float scale, softcap;
  int64_t offset, window;
  mlki_cuda_at_operand q, k, v, out;
  float *lse;
  int64_t out_part, lse_part, lse_stride[3]; /* strides of parts */
  int parts;                                 /* 0, or how many are written */
  const uint8_t *mask;
  const float *bias, *alibi, *sinks;
  int64_t mask_stride[4], bias_stride[4], alibi_step, sinks_step;
  const int64_t *q_offsets, *k_offsets, *k_lengths, *pages;
  int64_t q_offsets_step, k_offsets_step, k_lengths_step, pages_stride[2], page_count, q_size, k_size;
  int page;             /* keys of a page */
  const int64_t *table; /* first query, queries, first key, keys of each sequence; NULL: all alike */
  unsigned long long *wrong;
} mlki_cuda_attend;

typedef struct mlki_cuda_at_sequence {
  int b, s, t;
  int64_t qb, q0, kb, k0; /* rows of the first axis, first rows of the second */
} mlki_cuda_at_sequence;

MLKI_CUDA_DEVICE mlki_cuda_at_sequence mlki_cuda_at_sequence_of(const mlki_cuda_attend &a, int b) {
  mlki_cuda_at_sequence q;
  q.b = b, q.s = a.s, q.t = a.t, q.q0 = 0, q.k0 = 0;
  q.qb = a.packed_q ? 0 : b, q.kb = a.packed_k ? 0 : b;
  if (a.table) {
    q.q0 = a.table[4 * b], q.s = (int)a.table[4 * b + 1];
    q.k0 = a.table[4 * b + 2], q.t = (int)a.table[4 * b + 3];
  }
  return q;
}

/* The span between two offsets, or none where they are wrong: from 0 to size, ascending, none longer than longest. */
MLKI_CUDA_DEVICE void mlki_cuda_at_span(const int64_t *offsets, int64_t step, int b, int batch, int64_t size,
                                        int longest, unsigned long long *wrong, int64_t *first, int64_t *count) {
  const int64_t from = offsets[b * step], to = offsets[(b + 1) * step];
  const bool right = from >= 0 && from <= to && to <= size && to - from <= longest && (b > 0 || from == 0) &&
                     (b + 1 < batch || to == size);
  *first = right ? from : 0, *count = right ? to - from : 0;
  if (!right) mlki_cuda_report(wrong, MLKI_CUDA_OFFSETS, b);
}

/* Block b: where sequence b lies; 0 queries or keys where what says so is wrong. */
static __global__ void mlki_cuda_at_table_kernel(const mlki_cuda_attend a, int64_t *table) {
  const int b = (int)blockIdx.x;
  int64_t q0 = 0, s = a.s, k0 = 0, t = a.t;
  if (a.q_offsets) mlki_cuda_at_span(a.q_offsets, a.q_offsets_step, b, a.batch, a.q_size, a.s, a.wrong, &q0, &s);
  if (a.k_offsets) mlki_cuda_at_span(a.k_offsets, a.k_offsets_step, b, a.batch, a.k_size, a.t, a.wrong, &k0, &t);
  if (a.k_lengths) {
    t = a.k_lengths[b * a.k_lengths_step];
    if (t < 0 || t > a.t) {
      mlki_cuda_report(a.wrong, MLKI_CUDA_LENGTHS, b);
      t = 0;
    }
  }
  int bad = 0;
  for (int64_t n = threadIdx.x; a.pages && n * a.page < t; n += blockDim.x) {
    const int64_t page = a.pages[b * a.pages_stride[0] + n * a.pages_stride[1]];
    if (page < 0 || page >= a.page_count) {
      mlki_cuda_report(a.wrong, MLKI_CUDA_PAGES, n);
      bad = 1;
    }
  }
  if (__syncthreads_or(bad)) t = 0;
  if (threadIdx.x == 0) table[4 * b] = q0, table[4 * b + 1] = s, table[4 * b + 2] = k0, table[4 * b + 3] = t;
}

/* The first element of key j of key head g. */
MLKI_CUDA_DEVICE const char *mlki_cuda_at_key(const mlki_cuda_attend &a, const mlki_cuda_at_sequence &q,
                                              const mlki_cuda_at_operand &o, int g, int j) {
  int64_t first = q.kb, row = q.k0 + j;
  if (a.pages) first = a.pages[q.b * a.pages_stride[0] + j / a.page * a.pages_stride[1]], row = j % a.page;
  return o.p + (first * o.stride[0] + g * o.stride[1] + row * o.stride[2]) * (o.dtype == MLK_F32 ? 4 : 2);
}

/* The first element of row r of key head g of q or what has its rows. */
MLKI_CUDA_DEVICE char *mlki_cuda_at_row(const mlki_cuda_attend &a, const mlki_cuda_at_sequence &q,
                                        const mlki_cuda_at_operand &o, int g, int r) {
  const int i = r / a.group, h = g * a.group + (r - i * a.group);
  return o.p + (q.qb * o.stride[0] + h * o.stride[1] + (q.q0 + i) * o.stride[2]) * (o.dtype == MLK_F32 ? 4 : 2);
}

/* Elements at .. at + 3 of a row of count; zeros behind it, and for no row. */
MLKI_CUDA_DEVICE float4 mlki_cuda_at_fetch(const mlki_cuda_at_operand &o, const char *row, int at, int count) {
  float4 x = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  if (!row || at >= count) return x;
  const int64_t step = o.stride[3], first = at * step;
  const bool whole = o.wide && at + 4 <= count, y = at + 1 < count, z = at + 2 < count, w = at + 3 < count;
  if (o.dtype == MLK_F32) {
    const float *from = (const float *)(const void *)row + first;
    if (whole) return *(const float4 *)(const void *)from;
    x.x = from[0];
    if (y) x.y = from[step];
    if (z) x.z = from[2 * step];
    if (w) x.w = from[3 * step];
    return x;
  }
  const uint16_t *from = (const uint16_t *)(const void *)row + first;
  ushort4 h = make_ushort4(0, 0, 0, 0);
  if (whole) {
    h = *(const ushort4 *)(const void *)from;
  } else {
    h.x = from[0];
    if (y) h.y = from[step];
    if (z) h.z = from[2 * step];
    if (w) h.w = from[3 * step];
  }
  if (o.dtype == MLK_F16)
    return make_float4(mlki_cuda_from_f16(h.x), mlki_cuda_from_f16(h.y), mlki_cuda_from_f16(h.z),
                       mlki_cuda_from_f16(h.w));
  return make_float4(mlki_cuda_from_bf16(h.x), mlki_cuda_from_bf16(h.y), mlki_cuda_from_bf16(h.z),
                     mlki_cuda_from_bf16(h.w));
}

MLKI_CUDA_DEVICE float4 mlki_cuda_at_scaled(float scale, float4 x) {
  return make_float4(mlki_cuda_mul(scale, x.x), mlki_cuda_mul(scale, x.y), mlki_cuda_mul(scale, x.z),
                     mlki_cuda_mul(scale, x.w));
}

/* Puts n values to elements at, at + 1, ... of a row of count. */
template <int n>
MLKI_CUDA_DEVICE void mlki_cuda_at_put(const mlki_cuda_at_operand &o, char *row, int at, int count, const float *x) {
  if (o.wide && o.dtype == MLK_F32 && at + n <= count) {
    float *to = (float *)(void *)row + at;
    if (n == 4)
      *(float4 *)(void *)to = make_float4(x[0], x[1], x[2 % n], x[3 % n]);
    else if (n == 2)
      *(float2 *)(void *)to = make_float2(x[0], x[1 % n]);
    return;
  }
#pragma unroll
  for (int v = 0; v < n; v++)
    if (at + v < count) mlki_cuda_store(row, (at + v) * o.stride[3], o.dtype, x[v]);
}

MLKI_CUDA_DEVICE bool mlki_cuda_at_finite(float x) { return (__float_as_uint(x) & 0x7f800000u) != 0x7f800000u; }

/* Elements that are not finite become 0; whether there were any. */
MLKI_CUDA_DEVICE int mlki_cuda_at_clean(float4 *x) {
  const bool fx = mlki_cuda_at_finite(x->x), fy = mlki_cuda_at_finite(x->y), fz = mlki_cuda_at_finite(x->z),
             fw = mlki_cuda_at_finite(x->w);
  if (fx && fy && fz && fw) return 0;
  *x = make_float4(fx ? x->x : 0.0f, fy ? x->y : 0.0f, fz ? x->z : 0.0f, fw ? x->w : 0.0f);
  return 1;
}

/* The position of query i among the keys of its sequence. */
MLKI_CUDA_DEVICE int64_t mlki_cuda_at_position(const mlki_cuda_attend &a, const mlki_cuda_at_sequence &q, int i) {
  return (int64_t)i + q.t - q.s + a.offset;
}

/* The keys [*low, *high) that causal and window leave to query i. */
MLKI_CUDA_DEVICE void mlki_cuda_at_seen(const mlki_cuda_attend &a, const mlki_cuda_at_sequence &q, int i, int *low,
                                        int *high) {
  const int64_t p = mlki_cuda_at_position(a, q, i), t = q.t;
  int64_t from = a.window ? p - a.window + 1 : 0, to = a.causal ? p + 1 : a.window ? p + a.window : t;
  from = from < 0 ? 0 : from > t ? t : from;
  to = to > t ? t : to;
  *low = (int)from, *high = (int)(to > from ? to : from);
}

/* What the scores of a row have in common. */
typedef struct mlki_cuda_at_scores {
  const float *bias;
  const uint8_t *mask;
  float slope;
  int64_t position;
} mlki_cuda_at_scores;

MLKI_CUDA_DEVICE mlki_cuda_at_scores mlki_cuda_at_scores_of(const mlki_cuda_attend &a, const mlki_cuda_at_sequence &q,
                                                            int h, int i) {
  mlki_cuda_at_scores c;
  c.bias = a.bias ? a.bias + q.b * a.bias_stride[0] + h * a.bias_stride[1] + i * a.bias_stride[2] : NULL;
  c.mask = a.mask ? a.mask + q.b * a.mask_stride[0] + h * a.mask_stride[1] + i * a.mask_stride[2] : NULL;
  c.slope = a.alibi ? -a.alibi[h * a.alibi_step] : 0.0f;
  c.position = mlki_cuda_at_position(a, q, i);
  return c;
}

/* From a product to a score (x) and, with a soft-cap, the hyperbolic tangent on the way (y). bias, mask: of the key. */
MLKI_CUDA_CALLED float2 mlki_cuda_at_score_called(float x, float softcap, int alibi, float slope, float away,
                                                  const float *bias, const uint8_t *mask) {
  float cap = 0.0f;
  if (softcap > 0.0f) {
    cap = mlki_activate_called_cuda(MLK_TANH, mlki_cuda_div(x, softcap));
    x = mlki_cuda_mul(softcap, cap);
  }
  if (alibi) x = mlki_cuda_fma(slope, away, x);
  if (bias) x = mlki_cuda_add(x, *bias);
  if (mask && !*mask) x = -INFINITY;
  return make_float2(x, cap);
}

MLKI_CUDA_DEVICE float2 mlki_cuda_at_score(const mlki_cuda_attend &a, const mlki_cuda_at_scores &c, float x, int j) {
  const int64_t away = c.position < j ? j - c.position : c.position - j;
  return mlki_cuda_at_score_called(x, a.softcap, a.alibi != NULL, c.slope, (float)away,
                                   c.bias ? c.bias + j * a.bias_stride[3] : NULL,
                                   c.mask ? c.mask + j * a.mask_stride[3] : NULL);
}

/* --- the state of a row --- */

typedef enum mlki_cuda_fold { MLKI_CUDA_KEPT = 0, MLKI_CUDA_TAKEN, MLKI_CUDA_FOLDED } mlki_cuda_fold;

/* How a state (m, l) takes in (top, sum): what becomes of O is KEPT, or TAKEN from the new one, or fma(O, a, o c). */
MLKI_CUDA_DEVICE mlki_cuda_fold mlki_cuda_at_fold(float *m, float *l, float top, float sum, float *a, float *c) {
  *a = 1.0f, *c = 1.0f;
  if (sum == 0.0f) return MLKI_CUDA_KEPT;
  if (*l == 0.0f) {
    *m = top, *l = sum;
    return MLKI_CUDA_TAKEN;
  }
  const float best = top > *m ? top : *m;
  *a = mlki_exp_cuda(mlki_cuda_sub(*m, best)), *c = mlki_exp_cuda(mlki_cuda_sub(top, best));
  *m = best, *l = mlki_cuda_fma(*l, *a, mlki_cuda_mul(sum, *c));
  return MLKI_CUDA_FOLDED;
}

MLKI_CUDA_DEVICE float mlki_cuda_at_folded(mlki_cuda_fold how, float o, float a, float x, float c) {
  return how == MLKI_CUDA_KEPT ? o : how == MLKI_CUDA_TAKEN ? x : mlki_cuda_fma(o, a, mlki_cuda_mul(x, c));
}

/* What a state stands for: an element, the log-sum-exp. No -0. */
MLKI_CUDA_DEVICE float mlki_cuda_at_unfolded(float o, float l) {
  return l == 0.0f ? 0.0f : mlki_cuda_add(mlki_cuda_div(o, l), 0.0f);
}
MLKI_CUDA_DEVICE float mlki_cuda_at_lse(float m, float l) {
  return l == 0.0f ? -INFINITY : mlki_cuda_add(m, mlki_log_cuda(l));
}

/* >>cuda_attention_tiles --------------------------------------------------------------------------------------------
   Tiles of scores by multiply-adds in f32. */

/* A task: rows from row0 of key head g of a sequence. */
typedef struct mlki_cuda_at_task {
  mlki_cuda_at_sequence q;
  int g, row0, rows; /* rows: of the head, beyond the tile too */
  int low, high;     /* keys that any row sees */
  int only;          /* split: which unit of keys */
} mlki_cuda_at_task;

/* Tile number tile of the head number head of all. Later tiles of causal calls see more keys: they come first. */
MLKI_CUDA_DEVICE mlki_cuda_at_task mlki_cuda_at_task_of(const mlki_cuda_attend &a, int head, int tile, int tile_rows) {
  mlki_cuda_at_task k;
  int skip;
  k.q = mlki_cuda_at_sequence_of(a, head / a.groups);
  k.g = head % a.groups, k.row0 = tile * tile_rows, k.rows = k.q.s * a.group;
  k.low = k.high = k.only = 0;
  if (k.row0 < k.rows) {
    const int last = k.row0 + tile_rows < k.rows ? k.row0 + tile_rows - 1 : k.rows - 1;
    mlki_cuda_at_seen(a, k.q, k.row0 / a.group, &k.low, &skip);
    mlki_cuda_at_seen(a, k.q, last / a.group, &skip, &k.high);
    if (k.high < k.low) k.high = k.low;
  }
  return k;
}

/* Where key c of a block lies in a slab: lane c % 32 finds its 16 keys as four times four. */
MLKI_CUDA_DEVICE int mlki_cuda_at_key_of(int place) { return (place & ~127) + (place & 3) * 32 + (place & 127) / 4; }

typedef struct mlki_cuda_at_ahead {
  float4 q, k[2][2];
} mlki_cuda_at_ahead;

/* Slab number slab of the tile's rows and a block's keys, on its way: thread t brings keys of places t and t + 256. */
MLKI_CUDA_DEVICE void mlki_cuda_at_ahead_load(const mlki_cuda_attend &a, const char *row, const char *const key[2],
                                              int slab, mlki_cuda_at_ahead *x) {
  const int at = slab * MLKI_CUDA_AT_DEPTH;
  x->q = mlki_cuda_at_scaled(a.scale, mlki_cuda_at_fetch(a.q, row, at + (int)(threadIdx.x & 1) * 4, a.d));
#pragma unroll
  for (int n = 0; n < 2; n++)
#pragma unroll
    for (int c = 0; c < 2; c++) x->k[n][c] = mlki_cuda_at_fetch(a.k, key[n], at + 4 * c, a.d);
}

MLKI_CUDA_DEVICE void mlki_cuda_at_ahead_store(const mlki_cuda_at_ahead *x, float *slab) {
  const int t = (int)threadIdx.x;
  float *keys = slab + MLKI_CUDA_AT_DEPTH * MLKI_CUDA_AT_ROWS;
  if (t < 2 * MLKI_CUDA_AT_ROWS) {
    float *to = slab + (t & 1) * 4 * MLKI_CUDA_AT_ROWS + t / 2;
    to[0] = x->q.x, to[MLKI_CUDA_AT_ROWS] = x->q.y;
    to[2 * MLKI_CUDA_AT_ROWS] = x->q.z, to[3 * MLKI_CUDA_AT_ROWS] = x->q.w;
  }
#pragma unroll
  for (int n = 0; n < 2; n++)
#pragma unroll
    for (int c = 0; c < 2; c++) {
      float *to = keys + 4 * c * MLKI_CUDA_AT_KEYS + n * MLKI_CUDA_AT_THREADS + t;
      to[0] = x->k[n][c].x, to[MLKI_CUDA_AT_KEYS] = x->k[n][c].y;
      to[2 * MLKI_CUDA_AT_KEYS] = x->k[n][c].z, to[3 * MLKI_CUDA_AT_KEYS] = x->k[n][c].w;
    }
}

/* One slab's terms of 8 x 16 chains, those of quarters [from, to) of the block. */
MLKI_CUDA_DEVICE void mlki_cuda_at_terms(const float *slab, int from, int to, float (*acc)[16]) {
  const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
  const float *keys = slab + MLKI_CUDA_AT_DEPTH * MLKI_CUDA_AT_ROWS + 4 * lane;
#pragma unroll
  for (int d = 0; d < MLKI_CUDA_AT_DEPTH; d++) {
    const float4 q0 = *(const float4 *)(const void *)(slab + d * MLKI_CUDA_AT_ROWS + 8 * warp);
    const float4 q1 = *(const float4 *)(const void *)(slab + d * MLKI_CUDA_AT_ROWS + 8 * warp + 4);
    const float q[8] = {q0.x, q0.y, q0.z, q0.w, q1.x, q1.y, q1.z, q1.w};
#pragma unroll
    for (int u = 0; u < 4; u++) {
      if (u < from || u >= to) continue;
      const float4 k = *(const float4 *)(const void *)(keys + d * MLKI_CUDA_AT_KEYS + 128 * u);
#pragma unroll
      for (int r = 0; r < 8; r++) {
        acc[r][4 * u] = mlki_cuda_fma(q[r], k.x, acc[r][4 * u]);
        acc[r][4 * u + 1] = mlki_cuda_fma(q[r], k.y, acc[r][4 * u + 1]);
        acc[r][4 * u + 2] = mlki_cuda_fma(q[r], k.z, acc[r][4 * u + 2]);
        acc[r][4 * u + 3] = mlki_cuda_fma(q[r], k.w, acc[r][4 * u + 3]);
      }
    }
  }
}

/* A segment of a product ends: total += chain, the first as it is. total: n values of each thread, a block's apart. */
template <int n> MLKI_CUDA_DEVICE void mlki_cuda_at_close(float *chain, float *total, int first, int last) {
#pragma unroll
  for (int i = 0; i < n; i++) {
    float *at = total + i * MLKI_CUDA_AT_THREADS;
    const float sum = first ? chain[i] : mlki_cuda_add(*at, chain[i]);
    *at = sum;
    chain[i] = last ? sum : 0.0f;
  }
}

/* The products of the tile's rows with keys first .. first + 511, of which quarters [from, to) are wanted. */
MLKI_CUDA_DEVICE void mlki_cuda_at_products(const mlki_cuda_attend &a, const mlki_cuda_at_task &k, int first, int from,
                                            int to, float *shared, float *totals, float (*acc)[16]) {
  const int t = (int)threadIdx.x, slab_floats = MLKI_CUDA_AT_SCORE_BYTES / 8;
  const int slabs = (a.d + MLKI_CUDA_AT_DEPTH - 1) / MLKI_CUDA_AT_DEPTH;
  const bool busy = k.row0 + t / 32 * 8 < k.rows;
  const char *row = NULL, *key[2] = {NULL, NULL};
  mlki_cuda_at_ahead ahead;
  if (t < 2 * MLKI_CUDA_AT_ROWS && k.row0 + t / 2 < k.rows) row = mlki_cuda_at_row(a, k.q, a.q, k.g, k.row0 + t / 2);
#pragma unroll
  for (int n = 0; n < 2; n++) {
    const int place = t + n * MLKI_CUDA_AT_THREADS, j = first + mlki_cuda_at_key_of(place);
    if (place / 128 >= from && place / 128 < to && j < k.q.t) key[n] = mlki_cuda_at_key(a, k.q, a.k, k.g, j);
  }
#pragma unroll
  for (int r = 0; r < 8; r++)
#pragma unroll
    for (int i = 0; i < 16; i++) acc[r][i] = 0.0f;
#pragma unroll 1
  for (int n = -1; n < slabs; n++) { /* round -1 only brings slab 0 */
    const int segment_end = (n + 1) * MLKI_CUDA_AT_DEPTH % MLK_SEGMENT == 0 || n + 1 == slabs;
    if (n + 1 < slabs) mlki_cuda_at_ahead_load(a, row, key, n + 1, &ahead);
    if (busy && n >= 0) mlki_cuda_at_terms(shared + (n & 1) * slab_floats, from, to, acc);
    if (totals && segment_end && n >= 0)
      mlki_cuda_at_close<128>(&acc[0][0], totals + t, (n + 1) * MLKI_CUDA_AT_DEPTH <= MLK_SEGMENT, n + 1 == slabs);
    if (n + 1 < slabs) mlki_cuda_at_ahead_store(&ahead, shared + (~n & 1) * slab_floats);
    __syncthreads();
  }
}

/* A thread's count values of row r, of rows of which each has its own in registers, to shared memory and back: so a
   loop over rows and one over values need not be unrolled. */
template <int rows, int count> MLKI_CUDA_DEVICE void mlki_cuda_at_row_out(const float (*x)[count], int r, float *mine) {
#pragma unroll
  for (int row = 0; row < rows; row++)
    if (row == r)
#pragma unroll
      for (int n = 0; n < count; n++) mine[n * MLKI_CUDA_AT_THREADS] = x[row][n];
}
template <int rows, int count> MLKI_CUDA_DEVICE void mlki_cuda_at_row_in(float (*x)[count], int r, const float *mine) {
#pragma unroll
  for (int row = 0; row < rows; row++)
    if (row == r)
#pragma unroll
      for (int n = 0; n < count; n++) x[row][n] = mine[n * MLKI_CUDA_AT_THREADS];
}

/* Products of the warp's rows to scores. */
MLKI_CUDA_DEVICE void mlki_cuda_at_scores_rows(const mlki_cuda_attend &a, const mlki_cuda_at_task &k, int row0,
                                               int first, float *shared, float (*x)[16]) {
  const int lane = (int)threadIdx.x % 32;
  float *mine = shared + threadIdx.x;
#pragma unroll 1
  for (int r = 0; r < 8 && row0 + r < k.rows; r++) {
    const int row = row0 + r, i = row / a.group, h = k.g * a.group + (row - i * a.group);
    const mlki_cuda_at_scores c = mlki_cuda_at_scores_of(a, k.q, h, i);
    int low, high;
    mlki_cuda_at_seen(a, k.q, i, &low, &high);
    mlki_cuda_at_row_out<8>(x, r, mine);
#pragma unroll 1
    for (int n = 0; n < 16; n++) {
      const int j = first + 32 * n + lane;
      if (j >= low && j < high)
        mine[n * MLKI_CUDA_AT_THREADS] = mlki_cuda_at_score(a, c, mine[n * MLKI_CUDA_AT_THREADS], j).x;
    }
    mlki_cuda_at_row_in<8>(x, r, mine);
  }
}

/* Products of the warp's rows become weights exp(x - m), -0 for keys that take no part; lane r has *ml, of row r. */
MLKI_CUDA_DEVICE void mlki_cuda_at_weights(const mlki_cuda_attend &a, const mlki_cuda_at_task &k, int first,
                                           float *shared, float (*x)[16], float2 *ml) {
  const int lane = (int)threadIdx.x % 32, row0 = k.row0 + (int)threadIdx.x / 32 * 8;
  *ml = make_float2(0.0f, 0.0f);
  if (!a.plain) mlki_cuda_at_scores_rows(a, k, row0, first, shared, x);
#pragma unroll
  for (int r = 0; r < 8; r++) {
    int low = 0, high = 0;
    float top = -INFINITY;
    if (row0 + r < k.rows) mlki_cuda_at_seen(a, k.q, (row0 + r) / a.group, &low, &high);
    low -= first + lane, high -= first + lane;
#pragma unroll
    for (int n = 0; n < 16; n++) {
      x[r][n] = 32 * n >= low && 32 * n < high ? x[r][n] : -INFINITY;
      top = x[r][n] > top ? x[r][n] : top;
    }
#pragma unroll
    for (int step = 16; step > 0; step >>= 1) {
      const float other = __shfl_xor_sync(MLKI_CUDA_ALL, top, step);
      top = other > top ? other : top;
    }
    top = top == -INFINITY ? 0.0f : mlki_cuda_add(top, 0.0f);
#pragma unroll
    for (int n = 0; n < 16; n++) x[r][n] = x[r][n] == -INFINITY ? -0.0f : mlki_exp_cuda(mlki_cuda_sub(x[r][n], top));
    if (lane == r) ml->x = top;
  }
  /* lane l % 16 of the sum has terms of lanes l and l + 16 in turn: these two take a row each */
#pragma unroll
  for (int r = 0; r < 8; r += 2) {
    float sum = 0.0f;
#pragma unroll
    for (int n = 0; n < 16; n++) {
      const float mine = lane < 16 ? x[r][n] : x[r + 1][n];
      const float other = __shfl_xor_sync(MLKI_CUDA_ALL, lane < 16 ? x[r + 1][n] : x[r][n], 16);
      sum = mlki_cuda_add(sum, lane < 16 ? mine : other);
      sum = mlki_cuda_add(sum, lane < 16 ? other : mine);
    }
    sum = mlki_cuda_sum16(sum);
    const float second = __shfl_sync(MLKI_CUDA_ALL, sum, 16);
    if (lane == r) ml->y = sum;
    if (lane == r + 1) ml->y = second;
  }
}

template <int EV> struct mlki_cuda_at_values {
  static constexpr int width = 32 * EV;                                              /* elements of v at a time */
  static constexpr int loads = MLKI_CUDA_AT_SLAB * width / 4 / MLKI_CUDA_AT_THREADS; /* of a thread */
  static constexpr int slab_floats = MLKI_CUDA_AT_SLAB * width;
  static constexpr int weight_floats = 8 * 2 * 128 * 4; /* of 8 warps, rows by fours, 128 keys */
  static constexpr int bytes = 4 * (2 * slab_floats + weight_floats);
  static constexpr int shared_bytes = (bytes > MLKI_CUDA_AT_SCORE_BYTES ? bytes : MLKI_CUDA_AT_SCORE_BYTES) +
                                      16; /* last: keys that are not finite */
};

/* Rows key0 .. key0 + 15 of v from element e0 on. */
template <int EV>
MLKI_CUDA_DEVICE void mlki_cuda_at_values_load(const mlki_cuda_attend &a, const mlki_cuda_at_task &k, int key0, int e0,
                                               float4 *x) {
  typedef mlki_cuda_at_values<EV> V;
#pragma unroll
  for (int n = 0; n < V::loads; n++) {
    const int at = (int)threadIdx.x + n * MLKI_CUDA_AT_THREADS, j = key0 + at / (8 * EV);
    x[n] = mlki_cuda_at_fetch(a.v, j < k.q.t ? mlki_cuda_at_key(a, k.q, a.v, k.g, j) : NULL, e0 + at % (8 * EV) * 4,
                              a.e);
  }
}

template <int EV> MLKI_CUDA_DEVICE void mlki_cuda_at_values_store(float4 *x, float *slab, unsigned *bad) {
  typedef mlki_cuda_at_values<EV> V;
#pragma unroll
  for (int n = 0; n < V::loads; n++) {
    const int at = (int)threadIdx.x + n * MLKI_CUDA_AT_THREADS;
    if (mlki_cuda_at_clean(&x[n])) atomicOr(bad, 1u << at / (8 * EV));
    ((float4 *)(void *)slab)[at] = x[n];
  }
}

/* o += weights of rows p0, p1 times EV elements at y. */
template <int EV> MLKI_CUDA_DEVICE void mlki_cuda_at_outer(float4 p0, float4 p1, const float *at, float (*o)[EV]) {
  const float p[8] = {p0.x, p0.y, p0.z, p0.w, p1.x, p1.y, p1.z, p1.w};
  float y[EV];
  if (EV == 4) {
    const float4 z = *(const float4 *)(const void *)at;
    y[0] = z.x, y[1] = z.y, y[2 % EV] = z.z, y[3 % EV] = z.w;
  } else {
    const float2 z = *(const float2 *)(const void *)at;
    y[0] = z.x, y[1] = z.y;
  }
#pragma unroll
  for (int r = 0; r < 8; r++)
#pragma unroll
    for (int v = 0; v < EV; v++) o[r][v] = mlki_cuda_fma(p[r], y[v], o[r][v]);
}

/* Weights of others 128 quarter .. 128 quarter + 127 of the warp's rows to its part of shared memory. A branch for each
   quarter there may be, since registers cannot be indexed. */
template <int count>
MLKI_CUDA_DEVICE void mlki_cuda_at_weights_out(const float (*x)[count], int quarter, float *weights) {
  __syncwarp();
#pragma unroll
  for (int u = 0; u < count / 4; u++) {
    if (u != quarter) continue;
#pragma unroll
    for (int n = 4 * u; n < 4 * u + 4; n++) {
      float4 *to = (float4 *)(void *)weights + n % 4 * 32 + threadIdx.x % 32;
      to[0] = make_float4(x[0][n], x[1][n], x[2][n], x[3][n]);
      to[128] = make_float4(x[4][n], x[5][n], x[6][n], x[7][n]);
    }
  }
  __syncwarp();
}

/* o = the chains over keys of the block in [low, high) of weights x times elements e0 .. of v. Bit r of the result: row
   r has a key that takes part and whose value is not finite. */
template <int EV>
MLKI_CUDA_DEVICE unsigned mlki_cuda_at_chains(const mlki_cuda_attend &a, const mlki_cuda_at_task &k, int first, int e0,
                                              float *shared, const float (*x)[16], float (*o)[EV]) {
  typedef mlki_cuda_at_values<EV> V;
  const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
  const bool busy = k.row0 + 8 * warp < k.rows;
  const int begin = k.low > first ? (k.low - first) / MLKI_CUDA_AT_SLAB : 0;
  const int rest = k.high - first < MLKI_CUDA_AT_KEYS ? k.high - first : MLKI_CUDA_AT_KEYS;
  const int end = (rest + MLKI_CUDA_AT_SLAB - 1) / MLKI_CUDA_AT_SLAB;
  float *weights = shared + 2 * V::slab_floats + warp * 2 * 128 * 4;
  unsigned *bad = (unsigned *)(void *)((char *)(void *)shared + V::shared_bytes - 16);
  float4 ahead[V::loads];
  unsigned poisoned = 0;
#pragma unroll
  for (int r = 0; r < 8; r++)
#pragma unroll
    for (int v = 0; v < EV; v++) o[r][v] = 0.0f;
  if (threadIdx.x < 2) bad[threadIdx.x] = 0;
  __syncthreads();
#pragma unroll 1
  for (int n = begin - 1; n < end; n++) { /* round begin - 1 only brings the first slab */
    const float *slab = shared + (n & 1) * V::slab_floats + EV * lane;
    const float4 *w = (const float4 *)(const void *)weights + n % 8 * MLKI_CUDA_AT_SLAB;
    const bool uses = n >= begin;
    const unsigned broken = uses ? bad[n & 1] : 0;
    if (uses && (n == begin || n % 8 == 0)) mlki_cuda_at_weights_out<16>(x, n / 8, weights);
    if (n + 1 < end) mlki_cuda_at_values_load<EV>(a, k, first + (n + 1) * MLKI_CUDA_AT_SLAB, e0, ahead);
    if (busy && uses)
#pragma unroll 2
      for (int j = 0; j < MLKI_CUDA_AT_SLAB; j++) mlki_cuda_at_outer<EV>(w[j], w[128 + j], slab + j * V::width, o);
    if (broken && busy)
#pragma unroll 1
      for (int r = 0; r < 8; r++)
#pragma unroll 1
        for (int j = 0; j < MLKI_CUDA_AT_SLAB; j++)
          if ((broken >> j & 1) && __float_as_uint(((const float *)&w[r / 4 * 128 + j])[r % 4]) != 0x80000000u)
            poisoned |= 1u << r;
    if (n + 1 < end) {
      if (broken) {
        __syncthreads();
        if (threadIdx.x == 0) bad[n & 1] = 0;
      }
      mlki_cuda_at_values_store<EV>(ahead, shared + (~n & 1) * V::slab_floats, &bad[~n & 1]);
    }
    __syncthreads();
  }
  return poisoned;
}

/* A level of states: 0 of the whole, 1 of the part, 2 of the block, which has no O. Lane r of a warp has (m, l) of row
   r, in shared memory since registers are scarce; O is in global memory, an element apart from its thread's next. */
typedef struct mlki_cuda_at_state {
  float2 *ml;
  float *o;
} mlki_cuda_at_state;

template <int EV>
MLKI_CUDA_DEVICE mlki_cuda_at_state mlki_cuda_at_level(const mlki_cuda_attend &a, float *states, int level) {
  const int64_t floats = (int64_t)(a.e + 32 * EV - 1) / (32 * EV) * 8 * EV * MLKI_CUDA_AT_THREADS;
  mlki_cuda_at_state s;
  s.ml = (float2 *)(void *)(mlki_cuda_shared() + mlki_cuda_at_values<EV>::shared_bytes) + level * MLKI_CUDA_AT_THREADS +
         threadIdx.x;
  s.o = states + (2 * (int64_t)blockIdx.x + level) * floats;
  return s;
}

/* A level takes in m and l of lane r, for row r, and elements x, chunk number chunk, of the thread. */
template <int EV>
MLKI_CUDA_DEVICE void mlki_cuda_at_state_put(mlki_cuda_fold how, float a, float c, float *o, int chunk,
                                             const float (*x)[EV]) {
  float *at = o + (int64_t)chunk * 8 * EV * MLKI_CUDA_AT_THREADS + threadIdx.x;
#pragma unroll
  for (int r = 0; r < 8; r++) {
    const int row_how = __shfl_sync(MLKI_CUDA_ALL, (int)how, r);
    const float row_a = __shfl_sync(MLKI_CUDA_ALL, a, r), row_c = __shfl_sync(MLKI_CUDA_ALL, c, r);
#pragma unroll
    for (int v = 0; v < EV; v++) {
      float *to = at + (r * EV + v) * MLKI_CUDA_AT_THREADS;
      if (row_how == MLKI_CUDA_TAKEN) *to = x[r][v];
      if (row_how == MLKI_CUDA_FOLDED) *to = mlki_cuda_fma(*to, row_a, mlki_cuda_mul(x[r][v], row_c));
    }
  }
}

/* The rows that a level stands for. */
template <int EV> MLKI_CUDA_DEVICE void mlki_cuda_at_state_get(const mlki_cuda_at_state &s, int chunk, float (*x)[EV]) {
  const float *at = s.o + (int64_t)chunk * 8 * EV * MLKI_CUDA_AT_THREADS + threadIdx.x;
#pragma unroll
  for (int r = 0; r < 8; r++) {
    const float l = __shfl_sync(MLKI_CUDA_ALL, s.ml->y, r);
#pragma unroll
    for (int v = 0; v < EV; v++)
      x[r][v] = l == 0.0f ? 0.0f : mlki_cuda_at_unfolded(at[(r * EV + v) * MLKI_CUDA_AT_THREADS], l);
  }
}

/* Row 0 goes, the others move up: so a loop over rows need not be unrolled. */
template <int EV> MLKI_CUDA_DEVICE void mlki_cuda_at_shift(float (*x)[EV]) {
#pragma unroll
  for (int r = 0; r < 7; r++)
#pragma unroll
    for (int v = 0; v < EV; v++) x[r][v] = x[r + 1][v];
}

/* Rows of the tile to out, part number part of parts. */
template <int EV>
MLKI_CUDA_DEVICE void mlki_cuda_at_write(const mlki_cuda_attend &a, const mlki_cuda_at_task &k,
                                         const mlki_cuda_at_state &s, int part) {
  const int lane = (int)threadIdx.x % 32, row0 = k.row0 + (int)threadIdx.x / 32 * 8;
  for (int e0 = 0; e0 < a.e; e0 += 32 * EV) {
    float x[8][EV];
    mlki_cuda_at_state_get<EV>(s, e0 / (32 * EV), x);
#pragma unroll 1
    for (int r = 0; r < 8 && row0 + r < k.rows; r++, mlki_cuda_at_shift<EV>(x))
      mlki_cuda_at_put<EV>(
          a.out, mlki_cuda_at_row(a, k.q, a.out, k.g, row0 + r) + part * a.out_part * (a.out.dtype == MLK_F32 ? 4 : 2),
          e0 + EV * lane, a.e, x[0]);
  }
  if (a.lse && lane < 8 && row0 + lane < k.rows) {
    const int i = (row0 + lane) / a.group, h = k.g * a.group + (row0 + lane - i * a.group);
    a.lse[part * a.lse_part + k.q.qb * a.lse_stride[0] + h * a.lse_stride[1] + (k.q.q0 + i) * a.lse_stride[2]] =
        mlki_cuda_at_lse(s.ml->x, s.ml->y);
  }
}

/* The number of the row in what split tasks leave: all sequences as long as the longest. */
MLKI_CUDA_DEVICE int64_t mlki_cuda_at_row_number(const mlki_cuda_attend &a, const mlki_cuda_at_task &k, int row) {
  return ((int64_t)k.q.b * a.groups + k.g) * a.s * a.group + row;
}

/* Unit n's (m, l) and o of the tile's rows for the fold: [row][unit], [row][unit][E]. */
template <int EV>
MLKI_CUDA_DEVICE void mlki_cuda_at_leave(const mlki_cuda_attend &a, const mlki_cuda_at_task &k, int n, int units,
                                         int e0, const float (*o)[EV], float *to) {
  const int lane = (int)threadIdx.x % 32, row0 = k.row0 + (int)threadIdx.x / 32 * 8;
#pragma unroll
  for (int r = 0; r < 8; r++) {
    if (row0 + r >= k.rows) continue;
    float *at = to + (mlki_cuda_at_row_number(a, k, row0 + r) * units + n) * a.e;
#pragma unroll
    for (int v = 0; v < EV; v++)
      if (e0 + EV * lane + v < a.e) at[e0 + EV * lane + v] = o[r][v];
  }
}

/* What a tile's tasks write to. */
typedef struct mlki_cuda_at_places {
  float *state;  /* [CTAs][2 levels][rows][E, rounded up]; NULL: split by blocks */
  float *totals; /* [CTAs][64][512] products of segments, where D has several */
  float2 *ml;    /* split: what the fold reads */
  float *o;
  int units, unit; /* split: into how many, of how many blocks of keys each: 1, or as many as a part has */
} mlki_cuda_at_places;

/* A unit of one part, folded, for the fold of parts. */
template <int EV>
MLKI_CUDA_DEVICE void mlki_cuda_at_leave_part(const mlki_cuda_attend &a, const mlki_cuda_at_task &k,
                                              const mlki_cuda_at_places &w, const mlki_cuda_at_state &part) {
  const int lane = (int)threadIdx.x % 32, row = k.row0 + (int)threadIdx.x / 32 * 8 + lane;
  for (int e0 = 0; e0 < a.e; e0 += 32 * EV) {
    float x[8][EV];
    mlki_cuda_at_state_get<EV>(part, e0 / (32 * EV), x);
    mlki_cuda_at_leave<EV>(a, k, k.only, w.units, e0, x, w.o);
  }
  if (lane < 8 && row < k.rows)
    w.ml[mlki_cuda_at_row_number(a, k, row) * w.units + k.only] = make_float2(mlki_cuda_at_lse(part.ml->x, part.ml->y),
                                                                              part.ml->y == 0.0f ? 0.0f : 1.0f);
}

/* Block n of keys: its products, weights, chains; into the state, or left for the fold. */
template <int EV>
MLKI_CUDA_DEVICE void mlki_cuda_at_block(const mlki_cuda_attend &a, const mlki_cuda_at_task &k, int n,
                                         const mlki_cuda_at_places &w) {
  const int first = n * MLKI_CUDA_AT_KEYS, lane = (int)threadIdx.x % 32;
  const int row0 = k.row0 + (int)threadIdx.x / 32 * 8;
  const int from = k.low > first ? (k.low - first) / 128 : 0;
  const int rest = k.high - first < MLKI_CUDA_AT_KEYS ? k.high - first : MLKI_CUDA_AT_KEYS;
  float *shared = (float *)(void *)mlki_cuda_shared();
  float x[8][16];
  float *totals = w.totals ? w.totals + (int64_t)blockIdx.x * MLKI_CUDA_AT_ROWS * MLKI_CUDA_AT_KEYS : NULL;
  mlki_cuda_at_products(a, k, first, from, (rest + 127) / 128, shared, totals, x);
  mlki_cuda_at_weights(a, k, first, shared, x, mlki_cuda_at_level<EV>(a, NULL, 2).ml);
  unsigned poisoned = 0;
  for (int e0 = 0; e0 < a.e; e0 += 32 * EV) {
    float o[8][EV];
    poisoned |= mlki_cuda_at_chains<EV>(a, k, first, e0, shared, x, o);
    if (!w.state) {
      mlki_cuda_at_leave<EV>(a, k, k.only, w.units, e0, o, w.o);
      continue;
    }
    const mlki_cuda_at_state s = mlki_cuda_at_level<EV>(a, w.state, 1);
    const float2 block = *mlki_cuda_at_level<EV>(a, NULL, 2).ml;
    float2 ml = *s.ml; /* folded again for each chunk: registers are scarce */
    float fold_a, fold_c;
    const mlki_cuda_fold how = mlki_cuda_at_fold(&ml.x, &ml.y, block.x, block.y, &fold_a, &fold_c);
    mlki_cuda_at_state_put<EV>(how, fold_a, fold_c, s.o, e0 / (32 * EV), o);
  }
  float2 block = *mlki_cuda_at_level<EV>(a, NULL, 2).ml, *part = mlki_cuda_at_level<EV>(a, NULL, 1).ml;
  if (lane < 8 && (poisoned >> lane & 1)) block.y = NAN;
  if (!w.state && lane < 8 && row0 + lane < k.rows)
    w.ml[mlki_cuda_at_row_number(a, k, row0 + lane) * w.units + k.only] = block;
  float fold_a, fold_c;
  if (w.state) mlki_cuda_at_fold(&part->x, &part->y, block.x, block.y, &fold_a, &fold_c);
}

/* The part that ended goes into the whole. */
template <int EV>
MLKI_CUDA_DEVICE void mlki_cuda_at_part(const mlki_cuda_attend &a, const mlki_cuda_at_state &part,
                                        const mlki_cuda_at_state &whole) {
  const float2 ml = *part.ml;
  float fold_a, fold_c;
  const mlki_cuda_fold how = mlki_cuda_at_fold(&whole.ml->x, &whole.ml->y, mlki_cuda_at_lse(ml.x, ml.y),
                                               ml.y == 0.0f ? 0.0f : 1.0f, &fold_a, &fold_c);
  for (int e0 = 0; e0 < a.e; e0 += 32 * EV) {
    float x[8][EV];
    mlki_cuda_at_state_get<EV>(part, e0 / (32 * EV), x);
    mlki_cuda_at_state_put<EV>(how, fold_a, fold_c, whole.o, e0 / (32 * EV), x);
  }
}

template <int EV>
MLKI_CUDA_DEVICE void mlki_cuda_at_sink(const mlki_cuda_attend &a, const mlki_cuda_at_task &k,
                                        const mlki_cuda_at_state &whole) {
  const int lane = (int)threadIdx.x % 32, row = k.row0 + (int)threadIdx.x / 32 * 8 + lane;
  const float sink = lane < 8 ? a.sinks[(k.g * a.group + row % a.group) * a.sinks_step] : 0.0f;
  float fold_a, fold_c, none[8][EV] = {{0.0f}};
  const mlki_cuda_fold how = mlki_cuda_at_fold(&whole.ml->x, &whole.ml->y, sink, 1.0f, &fold_a, &fold_c);
  for (int e0 = 0; e0 < a.e; e0 += 32 * EV)
    mlki_cuda_at_state_put<EV>(how, fold_a, fold_c, whole.o, e0 / (32 * EV), none);
}

/* All parts of a tile, or with split one unit of keys: a block, left as it is, or a part, folded. */
template <int EV>
MLKI_CUDA_DEVICE void mlki_cuda_at_tile(const mlki_cuda_attend &a, const mlki_cuda_at_task &k,
                                        const mlki_cuda_at_places &w) {
  const int per_part = MLK_ATTENTION_SEGMENT / MLKI_CUDA_AT_KEYS;
  const int row = k.row0 + (int)threadIdx.x / 32 * 8 + (int)threadIdx.x % 32;
  int first = k.low / MLKI_CUDA_AT_KEYS, end = (k.high + MLKI_CUDA_AT_KEYS - 1) / MLKI_CUDA_AT_KEYS;
  *mlki_cuda_at_level<EV>(a, w.state, 0).ml = make_float2(0.0f, 0.0f);
  if (w.units) {
    const int from = k.only * w.unit, to = from + w.unit;
    first = from > first ? from : first, end = to < end ? to : end;
    if (first >= end) {
      if (threadIdx.x % 32 < 8 && row < k.rows)
        w.ml[mlki_cuda_at_row_number(a, k, row) * w.units + k.only] = make_float2(0.0f, 0.0f);
      return;
    }
  }
  const bool writes = a.parts && !w.units;
  const int parts = writes ? a.parts : (end + per_part - 1) / per_part;
  for (int p = writes ? 0 : first / per_part; p < parts; p++) {
    *mlki_cuda_at_level<EV>(a, w.state, 1).ml = make_float2(0.0f, 0.0f);
    for (int n = p * per_part > first ? p * per_part : first; n < end && n < (p + 1) * per_part; n++)
      mlki_cuda_at_block<EV>(a, k, n, w);
    const mlki_cuda_at_state part = mlki_cuda_at_level<EV>(a, w.state, 1);
    if (writes) mlki_cuda_at_write<EV>(a, k, part, p);
    if (!writes && !w.units) mlki_cuda_at_part<EV>(a, part, mlki_cuda_at_level<EV>(a, w.state, 0));
    if (w.units && w.unit > 1) mlki_cuda_at_leave_part<EV>(a, k, w, part);
  }
  if (w.units || writes) return;
  const mlki_cuda_at_state whole = mlki_cuda_at_level<EV>(a, w.state, 0);
  if (a.sinks) mlki_cuda_at_sink<EV>(a, k, whole);
  mlki_cuda_at_write<EV>(a, k, whole, 0);
}

/* Tasks are tiles of heads, heads fastest, or with split those of blocks of keys. Blocks take several in turn, there
   and back, since tasks are sorted by size. */
template <int EV>
static __global__ void __launch_bounds__(MLKI_CUDA_AT_THREADS, 1)
    mlki_cuda_at_tiles_kernel(const __grid_constant__ mlki_cuda_attend a, const mlki_cuda_at_places w, int tiles,
                              int64_t tasks) {
  __shared__ mlki_cuda_at_task k; /* registers are scarce */
  const int heads = a.batch * a.groups;
  for (int64_t round = 0; round * gridDim.x < tasks; round++) {
    const int64_t task = round * gridDim.x + ((round & 1) ? gridDim.x - 1 - blockIdx.x : blockIdx.x);
    if (task >= tasks) continue;
    const int tile = tiles - 1 - (int)(task / heads % tiles), n = (int)(task / heads / tiles);
    __syncthreads();
    if (threadIdx.x == 0) k = mlki_cuda_at_task_of(a, (int)(task % heads), tile, MLKI_CUDA_AT_ROWS), k.only = n;
    __syncthreads();
    if (k.row0 < k.rows) mlki_cuda_at_tile<EV>(a, k, w);
  }
}

/* >>cuda_attention_fold ---------------------------------------------------------------------------------------------
   Folding what blocks of keys or parts left; mlk_attention_merge. */

#define MLKI_CUDA_FOLD_WARPS 8

/* Row number blockIdx.x / chunks, 128 elements: each warp folds a part, of 8 blocks or as it comes, then warp 0 those
   of the round. */
static __global__ void __launch_bounds__(32 * MLKI_CUDA_FOLD_WARPS, 2)
    mlki_cuda_at_fold_kernel(const __grid_constant__ mlki_cuda_attend a, const float2 *ml, const float *from, int units,
                             int unit) {
  __shared__ float part_o[MLKI_CUDA_FOLD_WARPS][128], part_lse[MLKI_CUDA_FOLD_WARPS];
  const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32, chunks = a.e > 0 ? (a.e + 127) / 128 : 1;
  const int all = a.s * a.group, head = (int)blockIdx.x / chunks / all, r = (int)blockIdx.x / chunks % all;
  const int e0 = (int)blockIdx.x % chunks * 128 + lane, per_part = MLK_ATTENTION_SEGMENT / MLKI_CUDA_AT_KEYS / unit;
  const int64_t number = (int)blockIdx.x / chunks;
  const mlki_cuda_at_sequence q = mlki_cuda_at_sequence_of(a, head / a.groups);
  const int g = head % a.groups, i = r / a.group, h = g * a.group + r % a.group;
  const int parts = a.parts ? a.parts : (units + per_part - 1) / per_part;
  float whole_m = 0.0f, whole_l = 0.0f, whole[4] = {0.0f, 0.0f, 0.0f, 0.0f}, fold_a, fold_c;
  if (r >= q.s * a.group) return;
  char *out = mlki_cuda_at_row(a, q, a.out, g, r);
  float *lse = a.lse ? a.lse + q.qb * a.lse_stride[0] + h * a.lse_stride[1] + (q.q0 + i) * a.lse_stride[2] : NULL;
  const bool first_chunk = (int)blockIdx.x % chunks == 0;
  for (int p0 = 0; p0 < parts; p0 += MLKI_CUDA_FOLD_WARPS) {
    const int p = p0 + warp;
    float m = 0.0f, l = 0.0f, o[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll 8
    for (int n = 0; n < per_part; n++) {
      const int one = p * per_part + n;
      const float2 x = one < units ? ml[number * units + one] : make_float2(0.0f, 0.0f);
      const float *at = from + (number * units + one) * a.e;
      const mlki_cuda_fold how = mlki_cuda_at_fold(&m, &l, x.x, x.y, &fold_a, &fold_c);
#pragma unroll
      for (int c = 0; c < 4; c++)
        if (how != MLKI_CUDA_KEPT && e0 + 32 * c < a.e)
          o[c] = mlki_cuda_at_folded(how, o[c], fold_a, at[e0 + 32 * c], fold_c);
    }
    const float part = unit == 1 ? mlki_cuda_at_lse(m, l) : l == 0.0f ? -INFINITY : m; /* m: the part's log-sum-exp */
#pragma unroll
    for (int c = 0; c < 4; c++) {
      if (unit == 1) o[c] = mlki_cuda_at_unfolded(o[c], l);
      part_o[warp][32 * c + lane] = o[c];
      if (a.parts && p < parts && e0 + 32 * c < a.e)
        mlki_cuda_store(out, p * a.out_part + (e0 + 32 * c) * a.out.stride[3], a.out.dtype, o[c]);
    }
    if (lane == 0) part_lse[warp] = part;
    if (a.parts && p < parts && first_chunk && lane == 0) lse[p * a.lse_part] = part;
    __syncthreads();
    for (int n = 0; warp == 0 && n < MLKI_CUDA_FOLD_WARPS && p0 + n < parts; n++) {
      const float top = part_lse[n];
      const mlki_cuda_fold how = mlki_cuda_at_fold(&whole_m, &whole_l, top, top == -INFINITY ? 0.0f : 1.0f, &fold_a,
                                                   &fold_c);
#pragma unroll
      for (int c = 0; c < 4; c++)
        whole[c] = mlki_cuda_at_folded(how, whole[c], fold_a, part_o[n][32 * c + lane], fold_c);
    }
    __syncthreads();
  }
  if (a.parts || warp > 0) return;
  if (a.sinks) {
    const mlki_cuda_fold how = mlki_cuda_at_fold(&whole_m, &whole_l, a.sinks[h * a.sinks_step], 1.0f, &fold_a, &fold_c);
#pragma unroll
    for (int c = 0; c < 4; c++) whole[c] = mlki_cuda_at_folded(how, whole[c], fold_a, 0.0f, fold_c);
  }
#pragma unroll
  for (int c = 0; c < 4; c++)
    if (e0 + 32 * c < a.e)
      mlki_cuda_store(out, (e0 + 32 * c) * a.out.stride[3], a.out.dtype, mlki_cuda_at_unfolded(whole[c], whole_l));
  if (lse && first_chunk && lane == 0) *lse = mlki_cuda_at_lse(whole_m, whole_l);
}

/* Parts [P, B, H, S, E] as mlk_attention_merge gets them. */
typedef struct mlki_cuda_at_merge {
  int parts, e;
  int64_t rows, h, s;
  const float *o, *lse, *sinks;
  char *out;
  float *out_lse;
  int out_dtype;
  int64_t o_stride[5], lse_stride[4], out_stride[4], out_lse_stride[3], sinks_step;
} mlki_cuda_at_merge;

/* A warp for each row and 128 elements of it. */
static __global__ void __launch_bounds__(128) mlki_cuda_at_merge_kernel(const __grid_constant__ mlki_cuda_at_merge g) {
  const int lane = (int)threadIdx.x % 32, chunks = (g.e + 127) / 128 > 1 ? (g.e + 127) / 128 : 1;
  const int64_t warps = (int64_t)gridDim.x * 4;
  for (int64_t task = (int64_t)blockIdx.x * 4 + threadIdx.x / 32; task < g.rows * chunks; task += warps) {
    const int64_t r = task / chunks, b = r / (g.h * g.s), h = r / g.s % g.h, i = r % g.s;
    const int e0 = (int)(task % chunks) * 128 + lane;
    const float *o = g.o + b * g.o_stride[1] + h * g.o_stride[2] + i * g.o_stride[3];
    const float *lse = g.lse + b * g.lse_stride[1] + h * g.lse_stride[2] + i * g.lse_stride[3];
    float m = 0.0f, l = 0.0f, x[4] = {0.0f, 0.0f, 0.0f, 0.0f}, fold_a, fold_c;
    for (int p = 0; p < g.parts; p++) {
      const float top = lse[p * g.lse_stride[0]];
      const mlki_cuda_fold how = mlki_cuda_at_fold(&m, &l, top, top == -INFINITY ? 0.0f : 1.0f, &fold_a, &fold_c);
#pragma unroll
      for (int c = 0; c < 4; c++)
        if (how != MLKI_CUDA_KEPT && e0 + 32 * c < g.e)
          x[c] = mlki_cuda_at_folded(how, x[c], fold_a, o[p * g.o_stride[0] + (e0 + 32 * c) * g.o_stride[4]], fold_c);
    }
    if (g.sinks) {
      const mlki_cuda_fold how = mlki_cuda_at_fold(&m, &l, g.sinks[h * g.sinks_step], 1.0f, &fold_a, &fold_c);
#pragma unroll
      for (int c = 0; c < 4; c++) x[c] = mlki_cuda_at_folded(how, x[c], fold_a, 0.0f, fold_c);
    }
    const int64_t at = b * g.out_stride[0] + h * g.out_stride[1] + i * g.out_stride[2];
#pragma unroll
    for (int c = 0; c < 4; c++)
      if (e0 + 32 * c < g.e)
        mlki_cuda_store(g.out, at + (e0 + 32 * c) * g.out_stride[3], g.out_dtype, mlki_cuda_at_unfolded(x[c], l));
    if (g.out_lse && task % chunks == 0 && lane == 0)
      g.out_lse[b * g.out_lse_stride[0] + h * g.out_lse_stride[1] + i * g.out_lse_stride[2]] = mlki_cuda_at_lse(m, l);
  }
}

static mlk_status mlki_cuda_attention_merge(mlki_cuda_call *call, const mlk_attention_merge_desc *desc) {
  const mlki_cuda_view parts = mlki_cuda_view_of(&desc->parts), lse = mlki_cuda_view_of(&desc->parts_lse),
                       out = mlki_cuda_view_of(&desc->out), out_lse = mlki_cuda_view_of(&desc->lse),
                       sinks = mlki_cuda_view_of(&desc->sinks);
  const int64_t *shape = desc->parts.shape;
  mlki_cuda_at_merge g;
  memset(&g, 0, sizeof g);
  call->io->variant = "rows";
  if (shape[0] > INT32_MAX || shape[4] > INT32_MAX - 256)
    return mlki_cuda_fail(call->error, MLK_ERR_SIZE, "parts: %lld parts of %lld elements a row are too many",
                          (long long)shape[0], (long long)shape[4]);
  g.parts = (int)shape[0], g.e = (int)shape[4];
  g.rows = shape[1] * shape[2] * shape[3], g.h = shape[2], g.s = shape[3];
  g.o = (const float *)(void *)parts.p, g.lse = (const float *)(void *)lse.p;
  g.out = out.p, g.out_dtype = MLK_F32, g.out_lse = (float *)(void *)out_lse.p;
  g.sinks = (const float *)(void *)sinks.p, g.sinks_step = sinks.stride[0];
  memcpy(g.o_stride, parts.stride, sizeof g.o_stride), memcpy(g.lse_stride, lse.stride, sizeof g.lse_stride);
  memcpy(g.out_stride, out.stride, sizeof g.out_stride);
  memcpy(g.out_lse_stride, out_lse.stride, sizeof g.out_lse_stride);
  const int64_t chunks = mlki_cuda_max(mlki_cuda_ceil_div(g.e, 128), 1);
  mlki_cuda_launch(call, mlki_cuda_min(mlki_cuda_ceil_div(g.rows * chunks, 4), MLKI_CUDA_GRID), 128, 0,
                   mlki_cuda_at_merge_kernel, g);
  return MLK_OK;
}

/* --- the forward call --- */

static mlki_cuda_at_operand mlki_cuda_at_operand_of(const mlk_tensor *t, int first) {
  const mlki_cuda_view v = mlki_cuda_view_of(t);
  const uintptr_t grain = v.dtype == MLK_F32 ? 16 : 8;
  mlki_cuda_at_operand o;
  memset(&o, 0, sizeof o);
  o.p = v.p, o.dtype = v.dtype;
  o.wide = v.p && v.stride[first + 3] == 1 && (uintptr_t)v.p % grain == 0;
  for (int i = 0; i < 4; i++) {
    o.stride[i] = v.stride[first + i];
    if (i < 3 && o.stride[i] % 4) o.wide = 0;
  }
  if (first && v.stride[0] % 4) o.wide = 0;
  return o;
}

/* The strides of a view in the axes [B, H, S, T]; 0 along axes of one element and those it lacks. */
static void mlki_cuda_at_repeated(const mlki_cuda_view *v, int64_t stride[4]) {
  for (int i = 0; i < 4; i++) {
    const int at = i - (4 - v->rank);
    stride[i] = at < 0 || v->size[at] == 1 ? 0 : v->stride[at];
  }
}

/* What calls of attention have in common: sizes, q, k, v, scores. */
static mlk_status mlki_cuda_at_inputs(mlki_cuda_call *call, const mlk_tensor *q, const mlk_tensor *k,
                                      const mlk_tensor *v, const mlk_tensor *pages, const mlk_attention_scores *scores,
                                      mlki_cuda_attend *a) {
  const mlki_cuda_view mask = mlki_cuda_view_of(&scores->mask), bias = mlki_cuda_view_of(&scores->bias),
                       alibi = mlki_cuda_view_of(&scores->alibi), sinks = mlki_cuda_view_of(&scores->sinks),
                       qo = mlki_cuda_view_of(&scores->q_offsets), ko = mlki_cuda_view_of(&scores->k_offsets),
                       kl = mlki_cuda_view_of(&scores->k_lengths);
  const int64_t most = INT32_MAX - 1024;
  int64_t batch = qo.p ? scores->q_offsets.shape[0] - 1 : q->shape[0], s = q->shape[2], t = k->shape[2];
  memset(a, 0, sizeof *a);
  if (pages && pages->data) {
    const mlki_cuda_view p = mlki_cuda_view_of(pages);
    a->pages = (const int64_t *)(void *)p.p, a->pages_stride[0] = p.stride[0], a->pages_stride[1] = p.stride[1];
    a->page = (int)mlki_cuda_max(mlki_cuda_min(t, INT32_MAX), 1), a->page_count = k->shape[0];
    t *= pages->shape[1];
  }
  a->q_size = s, a->k_size = t;
  if (scores->longest_q) s = scores->longest_q;
  if (scores->longest_k) t = scores->longest_k;
  if (batch * q->shape[1] > most || s * mlki_cuda_max(q->shape[1], 1) > most || t > most || q->shape[3] > most ||
      v->shape[3] > most)
    return mlki_cuda_fail(
        call->error, MLK_ERR_SIZE,
        "q, k, v: on CUDA sequences, queries and keys of a head and their elements must be below 2^31");
  a->batch = (int)batch, a->heads = (int)q->shape[1], a->groups = (int)k->shape[1];
  a->group = a->groups ? a->heads / a->groups : 0;
  a->s = (int)s, a->t = (int)t, a->d = (int)q->shape[3], a->e = (int)v->shape[3];
  a->packed_q = qo.p != NULL, a->packed_k = ko.p != NULL, a->causal = scores->causal != 0;
  a->scale = scores->scale != 0.0f ? scores->scale : 1.0f / sqrtf((float)a->d);
  a->softcap = scores->softcap, a->offset = scores->offset, a->window = scores->window;
  a->q = mlki_cuda_at_operand_of(q, 0), a->k = mlki_cuda_at_operand_of(k, 0), a->v = mlki_cuda_at_operand_of(v, 0);
  a->mask = (const uint8_t *)mask.p, a->bias = (const float *)(void *)bias.p;
  a->alibi = (const float *)(void *)alibi.p, a->alibi_step = alibi.stride[0];
  a->sinks = (const float *)(void *)sinks.p, a->sinks_step = sinks.stride[0];
  mlki_cuda_at_repeated(&mask, a->mask_stride), mlki_cuda_at_repeated(&bias, a->bias_stride);
  a->q_offsets = (const int64_t *)(void *)qo.p, a->q_offsets_step = qo.stride[0];
  a->k_offsets = (const int64_t *)(void *)ko.p, a->k_offsets_step = ko.stride[0];
  a->k_lengths = (const int64_t *)(void *)kl.p, a->k_lengths_step = kl.stride[0];
  a->plain = a->softcap == 0.0f && !a->alibi && !a->bias && !a->mask;
  a->wrong = call->device->wrong_there;
  return MLK_OK;
}

/* The table of sequences, where they are not all alike. */
static void mlki_cuda_at_sequences(mlki_cuda_call *call, mlki_cuda_attend *a) {
  if (!a->q_offsets && !a->k_offsets && !a->k_lengths && !a->pages) return;
  int64_t *table = mlki_cuda_carve<int64_t>(call, 4 * (int64_t)a->batch);
  mlki_cuda_launch(call, a->batch, 128, 0, mlki_cuda_at_table_kernel, *a, table);
  a->table = table;
}

/* T0: tiles, or with fewer of them than multiprocessors tiles of each part or block of keys, and their fold. */
template <int EV> static void mlki_cuda_at_tiles(mlki_cuda_call *call, const mlki_cuda_attend &a) {
  const int64_t heads = (int64_t)a.batch * a.groups, rows = (int64_t)a.s * a.group;
  const int64_t tiles = mlki_cuda_ceil_div(rows, MLKI_CUDA_AT_ROWS), sms = call->device->sms;
  const int64_t blocks = mlki_cuda_ceil_div(a.t, MLKI_CUDA_AT_KEYS), width = 32 * EV;
  const int64_t parts = mlki_cuda_ceil_div(a.t, MLK_ATTENTION_SEGMENT);
  int64_t tasks = heads * tiles, grid;
  mlki_cuda_at_places w;
  memset(&w, 0, sizeof w);
  w.unit = 1;
  if (tasks < sms && blocks > 1) {
    if (tasks * parts >= sms) w.unit = MLK_ATTENTION_SEGMENT / MLKI_CUDA_AT_KEYS;
    w.units = (int)(w.unit > 1 ? parts : blocks);
    w.ml = mlki_cuda_carve<float2>(call, heads * rows * w.units);
    w.o = mlki_cuda_carve<float>(call, heads * rows * w.units * a.e);
    tasks *= w.units;
  }
  grid = mlki_cuda_min(tasks, sms);
  if (a.d > MLK_SEGMENT) w.totals = mlki_cuda_carve<float>(call, grid * MLKI_CUDA_AT_ROWS * MLKI_CUDA_AT_KEYS);
  if (!w.units || w.unit > 1)
    w.state = mlki_cuda_carve<float>(call, grid * 2 * MLKI_CUDA_AT_ROWS * (mlki_cuda_ceil_div(a.e, width) * width));
  call->io->variant = w.units ? "split" : "tiles";
  mlki_cuda_launch(call, grid, MLKI_CUDA_AT_THREADS,
                   mlki_cuda_at_values<EV>::shared_bytes + 3 * MLKI_CUDA_AT_THREADS * sizeof(float2),
                   mlki_cuda_at_tiles_kernel<EV>, a, w, (int)tiles, tasks);
  if (w.units)
    mlki_cuda_launch(call, heads * rows * mlki_cuda_max(mlki_cuda_ceil_div(a.e, 128), 1), 32 * MLKI_CUDA_FOLD_WARPS, 0,
                     mlki_cuda_at_fold_kernel, a, w.ml, w.o, w.units, w.unit);
}

/* >>cuda_attention_few ----------------------------------------------------------------------------------------------
   At most 8 rows of a head, as in decoding: K and V are read once, so all that counts is that loads are always on their
   way. A task is a block of keys: slabs of 64 bytes of 256 keys' rows, a thread then having a key, and slabs of 32 rows
   of 128 elements of V, a thread then having an element of some rows, come through a ring of three stages. */

#define MLKI_CUDA_FEW_STAGES 3
#define MLKI_CUDA_FEW_KEYS   256 /* of a slab of k */
#define MLKI_CUDA_FEW_PITCH  80  /* bytes from key to key: 16-byte loads meet no bank twice */
#define MLKI_CUDA_FEW_BYTES  (MLKI_CUDA_FEW_KEYS * MLKI_CUDA_FEW_PITCH) /* of a stage; of v 32 x 128 x 4 at most */
#define MLKI_CUDA_FEW_VALUES 32                                         /* keys of a slab of v */
#define MLKI_CUDA_FEW_WIDTH  128                                        /* elements of v at a time */

/* Slab number n of k's rows, those of the first 256 keys first. */
MLKI_CUDA_DEVICE void mlki_cuda_few_keys(const mlki_cuda_attend &a, const mlki_cuda_at_task &k, int first, int n,
                                         int slabs, char *ring) {
  const int size = a.k.dtype == MLK_F32 ? 4 : 2, at = n % slabs * 64 + (int)threadIdx.x % 4 * 16;
  char *stage = ring + n % MLKI_CUDA_FEW_STAGES * MLKI_CUDA_FEW_BYTES;
#pragma unroll
  for (int i = 0; i < MLKI_CUDA_FEW_KEYS; i += 64) {
    const int c = (int)threadIdx.x / 4 + i, j = first + n / slabs * MLKI_CUDA_FEW_KEYS + c;
    const bool there = j >= k.low && j < k.high && at < a.d * size;
    mlki_cuda_cp_async<16>(stage + c * MLKI_CUDA_FEW_PITCH + (int)threadIdx.x % 4 * 16,
                           there ? mlki_cuda_at_key(a, k.q, a.k, k.g, j) + at : a.k.p, there ? 16 : 0);
  }
}

/* Slab number n of v's rows from element e0 on. */
MLKI_CUDA_DEVICE void mlki_cuda_few_values(const mlki_cuda_attend &a, const mlki_cuda_at_task &k, int first, int n,
                                           int e0, char *ring) {
  const int size = a.v.dtype == MLK_F32 ? 4 : 2, pieces = MLKI_CUDA_FEW_WIDTH * size / 16;
  char *stage = ring + n % MLKI_CUDA_FEW_STAGES * MLKI_CUDA_FEW_BYTES;
  for (int i = (int)threadIdx.x; i < MLKI_CUDA_FEW_VALUES * pieces; i += MLKI_CUDA_AT_THREADS) {
    const int j = first + n * MLKI_CUDA_FEW_VALUES + i / pieces, e = e0 + i % pieces * 16 / size;
    const bool there = j >= k.low && j < k.high && e < a.e;
    mlki_cuda_cp_async<16>(stage + 16 * i, there ? mlki_cuda_at_key(a, k.q, a.v, k.g, j) + e * size : a.v.p,
                           there ? 16 : 0);
  }
}

/* Four or eight neighbours from shared memory as f32; how many. */
MLKI_CUDA_DEVICE int mlki_cuda_few_widen(const char *at, int dtype, float x[8]) {
  const uint4 w = *(const uint4 *)(const void *)at;
  const uint32_t u[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
  for (int i = 0; i < 4; i++)
    if (dtype == MLK_F32) {
      x[i] = __uint_as_float(u[i]);
    } else {
      const uint16_t low = (uint16_t)(u[i] & 0xffffu), high = (uint16_t)(u[i] >> 16);
      x[2 * i] = dtype == MLK_F16 ? mlki_cuda_from_f16(low) : mlki_cuda_from_bf16(low);
      x[2 * i + 1] = dtype == MLK_F16 ? mlki_cuda_from_f16(high) : mlki_cuda_from_bf16(high);
    }
  return dtype == MLK_F32 ? 4 : 8;
}

/* x[r][c] = the products of R rows of q, scaled, and the block's keys. */
template <int R>
MLKI_CUDA_DEVICE void mlki_cuda_few_products(const mlki_cuda_attend &a, const mlki_cuda_at_task &k, int first,
                                             char *ring, const float *q, int pitch, float *x) {
  const int slabs = (a.d * (a.k.dtype == MLK_F32 ? 4 : 2) + 63) / 64;
  float acc[R] = {0.0f};
#pragma unroll
  for (int n = 0; n < MLKI_CUDA_FEW_STAGES - 1; n++) {
    if (n < 2 * slabs) mlki_cuda_few_keys(a, k, first, n, slabs, ring);
    mlki_cuda_cp_commit();
  }
  for (int n = 0; n < 2 * slabs; n++) {
    mlki_cuda_cp_wait<MLKI_CUDA_FEW_STAGES - 2>();
    __syncthreads();
    if (n + MLKI_CUDA_FEW_STAGES - 1 < 2 * slabs)
      mlki_cuda_few_keys(a, k, first, n + MLKI_CUDA_FEW_STAGES - 1, slabs, ring);
    mlki_cuda_cp_commit();
    const char *mine = ring + n % MLKI_CUDA_FEW_STAGES * MLKI_CUDA_FEW_BYTES + (int)threadIdx.x * MLKI_CUDA_FEW_PITCH;
    int d = n % slabs * (a.k.dtype == MLK_F32 ? 16 : 32);
    if (n % slabs == 0)
#pragma unroll
      for (int r = 0; r < R; r++) acc[r] = 0.0f;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      float y[8] = {0.0f};
      const int count = mlki_cuda_few_widen(mine + 16 * i, a.k.dtype, y);
#pragma unroll
      for (int v = 0; v < 8; v++)
        if (v < count)
#pragma unroll
          for (int r = 0; r < R; r++) acc[r] = mlki_cuda_fma(q[r * pitch + d + v], y[v], acc[r]);
      d += count;
    }
    if (n % slabs == slabs - 1)
#pragma unroll
      for (int r = 0; r < R; r++) x[r * MLKI_CUDA_AT_KEYS + n / slabs * MLKI_CUDA_FEW_KEYS + (int)threadIdx.x] = acc[r];
  }
  mlki_cuda_cp_wait<0>();
  __syncthreads();
}

/* Row r of x, a warp's: scores, then weights, -0 for keys that take no part; all lanes get (m, l). */
MLKI_CUDA_DEVICE float2 mlki_cuda_few_weights(const mlki_cuda_attend &a, const mlki_cuda_at_task &k, int first, int row,
                                              float *x) {
  const int lane = (int)threadIdx.x % 32, i = row / a.group, h = k.g * a.group + (row - i * a.group);
  const mlki_cuda_at_scores c = mlki_cuda_at_scores_of(a, k.q, h, i);
  int low, high;
  float top = -INFINITY, sum = 0.0f;
  mlki_cuda_at_seen(a, k.q, i, &low, &high);
  for (int n = lane; n < MLKI_CUDA_AT_KEYS; n += 32) {
    float s = -INFINITY;
    if (first + n >= low && first + n < high) s = a.plain ? x[n] : mlki_cuda_at_score(a, c, x[n], first + n).x;
    x[n] = s;
    top = s > top ? s : top;
  }
#pragma unroll
  for (int step = 16; step > 0; step >>= 1) {
    const float other = __shfl_xor_sync(MLKI_CUDA_ALL, top, step);
    top = other > top ? other : top;
  }
  top = top == -INFINITY ? 0.0f : mlki_cuda_add(top, 0.0f);
  for (int n = lane; n < MLKI_CUDA_AT_KEYS; n += 32) {
    const float p = x[n] == -INFINITY ? -0.0f : mlki_exp_cuda(mlki_cuda_sub(x[n], top));
    const float other = __shfl_xor_sync(MLKI_CUDA_ALL, p, 16);
    sum = mlki_cuda_add(sum, lane < 16 ? p : other);
    sum = mlki_cuda_add(sum, lane < 16 ? other : p);
    x[n] = p;
  }
  return make_float2(top, mlki_cuda_sum16(sum));
}

/* A task: block n of a head's keys, left for the fold. Threads 0 .. 127 and 128 .. 255 have every other row. */
template <int R>
MLKI_CUDA_DEVICE void mlki_cuda_few_chains(const mlki_cuda_attend &a, const mlki_cuda_at_task &k, int first, int e0,
                                           char *ring, const float *x, const mlki_cuda_at_places &w, unsigned *bad) {
  const int e = (int)threadIdx.x % MLKI_CUDA_FEW_WIDTH, half = (int)threadIdx.x / MLKI_CUDA_FEW_WIDTH;
  const int rest = k.high - first < MLKI_CUDA_AT_KEYS ? k.high - first : MLKI_CUDA_AT_KEYS;
  const int slabs = (rest + MLKI_CUDA_FEW_VALUES - 1) / MLKI_CUDA_FEW_VALUES;
  float o[(R + 1) / 2];
#pragma unroll
  for (int r = 0; r < (R + 1) / 2; r++) o[r] = 0.0f;
#pragma unroll
  for (int n = 0; n < MLKI_CUDA_FEW_STAGES - 1; n++) {
    if (n < slabs) mlki_cuda_few_values(a, k, first, n, e0, ring);
    mlki_cuda_cp_commit();
  }
  for (int n = 0; n < slabs; n++) {
    mlki_cuda_cp_wait<MLKI_CUDA_FEW_STAGES - 2>();
    __syncthreads();
    if (n + MLKI_CUDA_FEW_STAGES - 1 < slabs) mlki_cuda_few_values(a, k, first, n + MLKI_CUDA_FEW_STAGES - 1, e0, ring);
    mlki_cuda_cp_commit();
    const char *stage = ring + n % MLKI_CUDA_FEW_STAGES * MLKI_CUDA_FEW_BYTES;
#pragma unroll 8
    for (int j = 0; j < MLKI_CUDA_FEW_VALUES; j++) {
      const float *p = x + n * MLKI_CUDA_FEW_VALUES + j;
      float y = mlki_cuda_load(stage, j * MLKI_CUDA_FEW_WIDTH + e, a.v.dtype);
      if (!mlki_cuda_at_finite(y)) {
        for (int r = 0; r < R; r++)
          if (__float_as_uint(p[r * MLKI_CUDA_AT_KEYS]) != 0x80000000u) atomicOr(bad, 1u << r);
        y = 0.0f;
      }
#pragma unroll
      for (int r = 0; r < (R + 1) / 2; r++)
        if (2 * r + half < R) o[r] = mlki_cuda_fma(p[(2 * r + half) * MLKI_CUDA_AT_KEYS], y, o[r]);
    }
  }
  mlki_cuda_cp_wait<0>();
  __syncthreads();
#pragma unroll
  for (int r = 0; r < (R + 1) / 2; r++)
    if (2 * r + half < R && 2 * r + half < k.rows && e0 + e < a.e)
      w.o[(mlki_cuda_at_row_number(a, k, 2 * r + half) * w.units + k.only) * a.e + e0 + e] = o[r];
}

template <int R>
static __global__ void __launch_bounds__(MLKI_CUDA_AT_THREADS, 2)
    mlki_cuda_few_kernel(const __grid_constant__ mlki_cuda_attend a, const mlki_cuda_at_places w) {
  __shared__ mlki_cuda_at_task k;
  __shared__ unsigned bad;
  char *ring = (char *)mlki_cuda_shared();
  float *x = (float *)(void *)(ring + MLKI_CUDA_FEW_STAGES * MLKI_CUDA_FEW_BYTES), *q = x + R * MLKI_CUDA_AT_KEYS;
  const int heads = a.batch * a.groups, n = (int)blockIdx.x / heads, first = n * MLKI_CUDA_AT_KEYS;
  const int pitch = (a.d + 31) / 32 * 32, warp = (int)threadIdx.x / 32;
  if (threadIdx.x == 0) k = mlki_cuda_at_task_of(a, (int)blockIdx.x % heads, 0, R), k.only = n, bad = 0;
  __syncthreads();
  if (first >= k.high || first + MLKI_CUDA_AT_KEYS <= k.low) {
    if ((int)threadIdx.x < k.rows)
      w.ml[mlki_cuda_at_row_number(a, k, (int)threadIdx.x) * w.units + n] = make_float2(0.0f, 0.0f);
    return;
  }
  for (int i = (int)threadIdx.x; i < R * pitch; i += MLKI_CUDA_AT_THREADS) {
    const int r = i / pitch, d = i % pitch;
    q[i] = r < k.rows && d < a.d ? mlki_cuda_mul(a.scale, mlki_cuda_load(mlki_cuda_at_row(a, k.q, a.q, k.g, r),
                                                                         d * a.q.stride[3], a.q.dtype))
                                 : 0.0f;
  }
  mlki_cuda_few_products<R>(a, k, first, ring, q, pitch, x);
  float2 ml = make_float2(0.0f, 0.0f);
  if (warp < R && warp < k.rows) ml = mlki_cuda_few_weights(a, k, first, warp, x + warp * MLKI_CUDA_AT_KEYS);
  __syncthreads();
  for (int e0 = 0; e0 < a.e; e0 += MLKI_CUDA_FEW_WIDTH) mlki_cuda_few_chains<R>(a, k, first, e0, ring, x, w, &bad);
  if (warp >= R || warp >= k.rows || threadIdx.x % 32) return;
  if (bad >> warp & 1) ml.y = NAN;
  w.ml[mlki_cuda_at_row_number(a, k, warp) * w.units + n] = ml;
}

/* May rows of an operand be brought 16 bytes at a time? */
static int mlki_cuda_at_pieces(const mlki_cuda_at_operand *o, int count) {
  const int64_t pieces = o->dtype == MLK_F32 ? 4 : 8;
  return o->wide && (uintptr_t)o->p % 16 == 0 && count % pieces == 0 && o->stride[0] % pieces == 0 &&
         o->stride[1] % pieces == 0 && o->stride[2] % pieces == 0;
}

/* Whether the call is one of few rows, and done. */
template <int R> static bool mlki_cuda_few_run(mlki_cuda_call *call, const mlki_cuda_attend &a) {
  const int64_t heads = (int64_t)a.batch * a.groups, rows = (int64_t)a.s * a.group;
  const size_t shared = MLKI_CUDA_FEW_STAGES * MLKI_CUDA_FEW_BYTES +
                        (size_t)R * (MLKI_CUDA_AT_KEYS + (size_t)mlki_cuda_ceil_div(a.d, 32) * 32) * sizeof(float);
  mlki_cuda_at_places w;
  if (rows > R || a.d > MLK_SEGMENT || !mlki_cuda_at_pieces(&a.k, a.d) || !mlki_cuda_at_pieces(&a.v, a.e) ||
      shared + sizeof(mlki_cuda_at_task) + 64 > (size_t)call->device->shared_bytes)
    return false;
  memset(&w, 0, sizeof w);
  w.unit = 1, w.units = (int)mlki_cuda_ceil_div(a.t, MLKI_CUDA_AT_KEYS);
  w.ml = mlki_cuda_carve<float2>(call, heads * rows * w.units);
  w.o = mlki_cuda_carve<float>(call, heads * rows * w.units * a.e);
  call->io->variant = "few";
  mlki_cuda_launch(call, heads * w.units, MLKI_CUDA_AT_THREADS, shared, mlki_cuda_few_kernel<R>, a, w);
  mlki_cuda_launch(call, heads * rows * mlki_cuda_max(mlki_cuda_ceil_div(a.e, 128), 1), 32 * MLKI_CUDA_FOLD_WARPS, 0,
                   mlki_cuda_at_fold_kernel, a, w.ml, w.o, w.units, w.unit);
  return true;
}

/* >>cuda_attention_mma ----------------------------------------------------------------------------------------------
   After FlashAttention-2 (Dao, 2023): 4 warps, 16 MT rows each; tiles of 64 keys; scores in registers, online softmax
   in powers of two with the scale in its multiply-add, sums of a row over its four lanes only at the end; weights
   rounded to the operands' type become the A operand of the second product where they are. K of the next tile is on its
   way during the softmax, V during the first product. Rows of DP elements in shared memory, 16-byte pieces swizzled by
   the row's number. What no row may see is left out; tiles that not all rows see whole, and scores with cap, alibi,
   bias or mask, take a general path. Bounds: see docs/numerics.md; bits depend on how keys are split, not on the run.
   f32 operands, in MLK_FAST, are rounded to tf32 where they lie by the thread that brought them: once, where four
   warps would each do so at the 16 conversions a cycle of sm_80. Eight rows of 16 bytes are the same fragment of four
   32-bit terms as of eight 16-bit ones, so the first product is the same. For the second, a lane has the weights of
   keys 2 t and 2 t + 1 (t = lane % 4) where a fragment wants terms t and t + 4: so those keys are these terms, of V as
   well, whose rows a lane reads element by element; the swizzle keeps its 4 keys x 8 elements in 32 banks. */

#define MLKI_CUDA_TC_KEYS    64
#define MLKI_CUDA_TC_THREADS 128
#define MLKI_CUDA_LOG2E      1.44269504f
#define MLKI_CUDA_LN2        0.693147182f

/* 2^x, within 2 ulp, denormals as 0. */
MLKI_CUDA_DEVICE float mlki_cuda_exp2(float x) {
#if defined(MLK_CUDA_EMULATOR)
  return exp2f(x);
#else
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

/* 1 / x, within 1 ulp, denormals as 0. */
MLKI_CUDA_DEVICE float mlki_cuda_reciprocal(float x) {
#if defined(MLK_CUDA_EMULATOR)
  return 1.0f / x;
#else
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

template <int dtype, int DP, int MT> struct mlki_cuda_tc {
  static constexpr int size = dtype == MLK_F32 ? 4 : 2, rows = 64 * MT, pieces = DP * size / 16; /* of a row */
  static constexpr int keys = DP * size > 512 ? 32 : MLKI_CUDA_TC_KEYS; /* of a tile: 64 would spill registers */
  static constexpr int q_bytes = rows * DP * size, k_bytes = keys * DP * size;
  static constexpr int stage_bytes = 4 * MT * MLKI_CUDA_TC_THREADS * 4;
  static constexpr int shared_bytes = q_bytes + 2 * k_bytes + stage_bytes + 16;
};

/* Where piece c of row r lies in a tile of elements of size bytes. */
template <int size, int DP> MLKI_CUDA_DEVICE char *mlki_cuda_tc_at(char *tile, int r, int c) {
  return tile + (r * (DP * size / 16) + (c ^ (r & 7))) * 16;
}

/* Brings piece c of a row of count elements; row NULL, or behind count: zeros. */
template <int size, int DP>
MLKI_CUDA_DEVICE void mlki_cuda_tc_bring(const mlki_cuda_at_operand &o, int pieces_wide, const char *row, int r, int c,
                                         int count, char *tile) {
  char *to = mlki_cuda_tc_at<size, DP>(tile, r, c);
  const int first = 16 / size * c;
  if (pieces_wide) {
    const bool there = row && first < count;
    mlki_cuda_cp_async<16>(to, there ? row + 16 * c : o.p, there ? 16 : 0);
    return;
  }
  uint32_t x[4] = {0, 0, 0, 0};
#pragma unroll
  for (int i = 0; i < 16 / size; i++) {
    if (!row || first + i >= count) continue;
    if (size == 4)
      x[i % 4] = ((const uint32_t *)(const void *)row)[(first + i) * o.stride[3]];
    else
      x[i / 2] |= (uint32_t)((const uint16_t *)(const void *)row)[(first + i) * o.stride[3]] << (i & 1) * 16;
  }
  *(uint4 *)(void *)to = make_uint4(x[0], x[1], x[2], x[3]);
}

/* n keys of K or V from j0 on, those before end. */
template <int size, int DP, int n>
MLKI_CUDA_DEVICE void mlki_cuda_tc_keys(const mlki_cuda_attend &a, const mlki_cuda_at_task &k,
                                        const mlki_cuda_at_operand &o, int wide, int j0, int end, int count,
                                        char *tile) {
  const int pieces = DP * size / 16, c = (int)threadIdx.x % pieces, per = MLKI_CUDA_TC_THREADS / pieces;
  const char *base = o.p + size * (k.q.kb * o.stride[0] + k.g * o.stride[1] + k.q.k0 * o.stride[2]);
#pragma unroll(DP > 128 ? 1 : 2)
  for (int r = (int)threadIdx.x / pieces; r < n; r += per) {
    const int j = j0 + r;
    const char *row = NULL;
    if (j < end) row = a.pages ? mlki_cuda_at_key(a, k.q, o, k.g, j) : base + size * j * o.stride[2];
    mlki_cuda_tc_bring<size, DP>(o, wide, row, r, c, count, tile);
  }
}

/* Elements of the thread's own pieces of V that are not finite become 0; bit r of bad: key r of the tile had some. */
template <int dtype, int DP, int n> MLKI_CUDA_DEVICE void mlki_cuda_tc_clean(char *tile, unsigned *bad) {
  const int size = dtype == MLK_F32 ? 4 : 2, pieces = DP * size / 16;
  const int c = (int)threadIdx.x % pieces, per = MLKI_CUDA_TC_THREADS / pieces;
  const uint32_t exponent = dtype == MLK_F16 ? 0x7c00u : 0x7f80u;
  for (int r = (int)threadIdx.x / pieces; r < n; r += per) {
    uint4 *at = (uint4 *)(void *)mlki_cuda_tc_at<size, DP>(tile, r, c);
    uint32_t x[4] = {at->x, at->y, at->z, at->w};
    bool broken = false;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      if ((x[i] >> 16 & exponent) == exponent) x[i] = dtype == MLK_F32 ? 0u : x[i] & 0xffffu, broken = true;
      if (dtype != MLK_F32 && (x[i] & exponent) == exponent) x[i] &= 0xffff0000u, broken = true;
    }
    if (!broken) continue;
    *at = make_uint4(x[0], x[1], x[2], x[3]);
    atomicOr(&bad[r / 32], 1u << r % 32);
  }
}

/* The thread's own pieces of a tile of f32, rounded to tf32. What f32 has close below 2^128 becomes infinite. */
template <int DP> MLKI_CUDA_DEVICE void mlki_cuda_tc_round(char *tile, int rows) {
  const int pieces = DP / 4, c = (int)threadIdx.x % pieces, per = MLKI_CUDA_TC_THREADS / pieces;
#pragma unroll 4
  for (int r = (int)threadIdx.x / pieces; r < rows; r += per) {
    float4 *at = (float4 *)(void *)mlki_cuda_tc_at<4, DP>(tile, r, c);
    const float4 x = *at;
    *(uint4 *)(void *)at = make_uint4(mlki_cuda_to_tf32(x.x), mlki_cuda_to_tf32(x.y), mlki_cuda_to_tf32(x.z),
                                      mlki_cuda_to_tf32(x.w));
  }
}

/* A step of products: k is 16 for 16-bit types, 8 for f32; 32 bytes of a row either way. */
template <int dtype> MLKI_CUDA_DEVICE void mlki_cuda_tc_mma(float d[4], const uint32_t a[4], const uint32_t b[2]) {
  if constexpr (dtype == MLK_F32)
    mlki_cuda_mma_tf32(d, a, b);
  else
    mlki_cuda_mma<dtype>(d, a, b);
}

/* s[m][n] = the products of the rows of the thread's warp and the tile's 8 N keys. */
template <int dtype, int DP, int MT, int N>
MLKI_CUDA_DEVICE void mlki_cuda_tc_scores(int thread, char *q, char *keys, float (*s)[N][4]) {
  constexpr int size = dtype == MLK_F32 ? 4 : 2;
  const int lane = thread % 32, warp = thread / 32;
#pragma unroll
  for (int m = 0; m < MT; m++)
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) s[m][n][i] = 0.0f;
#pragma unroll(DP > 128 ? 1 : 4)
  for (int c = 0; c < DP * size / 32; c++) {
    uint32_t x[MT][4];
#pragma unroll
    for (int m = 0; m < MT; m++)
      mlki_cuda_ldmatrix(x[m], mlki_cuda_tc_at<size, DP>(q, (warp * MT + m) * 16 + lane % 16, 2 * c + lane / 16));
#pragma unroll
    for (int n = 0; n < N; n += 2) {
      uint32_t y[4];
      mlki_cuda_ldmatrix(y, mlki_cuda_tc_at<size, DP>(keys, 8 * n + lane % 8 + lane / 16 * 8, 2 * c + lane / 8 % 2));
#pragma unroll
      for (int m = 0; m < MT; m++) {
        mlki_cuda_tc_mma<dtype>(s[m][n], x[m], y);
        mlki_cuda_tc_mma<dtype>(s[m][n + 1], x[m], y + 2);
      }
    }
  }
}

/* o += weights times the tile's values, of 8 N keys, in tf32. */
template <int DP, int MT, int N>
MLKI_CUDA_DEVICE void mlki_cuda_tc_values_tf32(int thread, const float (*p)[N][4], char *values,
                                               float (*o)[DP / 8][4]) {
  const int lane = thread % 32, t = lane % 4, half = lane / 16; /* bytes of the lane's key 2 t, unswizzled, and on */
  char *const at[2] = {values + 2 * t * DP * 4 + lane / 4 % 4 * 4 + half * 16,
                       values + (2 * t + 1) * DP * 4 + lane / 4 % 4 * 4 + (half ^ 1) * 16};
#pragma unroll
  for (int c = 0; c < N; c++) {
    uint32_t x[MT][4];
#pragma unroll
    for (int m = 0; m < MT; m++) /* terms t, t + 4: keys 2 t, 2 t + 1 */
#pragma unroll
      for (int i = 0; i < 4; i++) x[m][i] = mlki_cuda_to_tf32(p[m][c][i / 2 + i % 2 * 2]);
#pragma unroll
    for (int n = 0; n < DP / 8; n++) {
      uint32_t y[2];
#pragma unroll
      for (int i = 0; i < 2; i++) /* pieces (2 n + half) ^ (2 t + i) of each eight */
        y[i] = *(const uint32_t *)(const void *)(at[i] + ((n % 4) ^ t) * 32 + c * 32 * DP + n / 4 * 128);
#pragma unroll
      for (int m = 0; m < MT; m++) mlki_cuda_mma_tf32(o[m][n], x[m], y);
    }
  }
}

/* The same in 16 bits. */
template <int dtype, int DP, int MT, int N>
MLKI_CUDA_DEVICE void mlki_cuda_tc_values_16(int thread, const float (*p)[N][4], char *values, float (*o)[DP / 8][4]) {
  const int lane = thread % 32;
#pragma unroll
  for (int c = 0; c < N / 2; c++) {
    uint32_t x[MT][4];
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
      for (int i = 0; i < 4; i++)
        x[m][i] = mlki_cuda_pack16<dtype>(p[m][2 * c + i / 2][2 * (i & 1)], p[m][2 * c + i / 2][2 * (i & 1) + 1]);
#pragma unroll
    for (int n = 0; n < DP / 8; n += 2) {
      uint32_t y[4];
      mlki_cuda_ldmatrix_transposed(y, mlki_cuda_tc_at<2, DP>(values, 16 * c + lane % 16, n + lane / 16));
#pragma unroll
      for (int m = 0; m < MT; m++) {
        mlki_cuda_mma<dtype>(o[m][n], x[m], y);
        mlki_cuda_mma<dtype>(o[m][n + 1], x[m], y + 2);
      }
    }
  }
}

template <int dtype, int DP, int MT, int N>
MLKI_CUDA_DEVICE void mlki_cuda_tc_values(int thread, const float (*p)[N][4], char *values, float (*o)[DP / 8][4]) {
  if constexpr (dtype == MLK_F32)
    mlki_cuda_tc_values_tf32<DP, MT, N>(thread, p, values, o);
  else
    mlki_cuda_tc_values_16<dtype, DP, MT, N>(thread, p, values, o);
}

/* tanh x = 1 - 2 / (e^2x + 1), within 2^-21: no more is left of a score. */
MLKI_CUDA_DEVICE float mlki_cuda_tc_tanh(float x) {
  const float e = mlki_cuda_exp2(mlki_cuda_mul(x, 2.0f * MLKI_CUDA_LOG2E));
  return mlki_cuda_fma(-2.0f, mlki_cuda_reciprocal(mlki_cuda_add(e, 1.0f)), 1.0f);
}

/* The score of row row of key head g and key j in powers of two; with a soft-cap, the hyperbolic tangent on the way
   into cap. Without calls: they would cost registers all along. */
MLKI_CUDA_DEVICE float mlki_cuda_tc_score(const mlki_cuda_attend &a, const mlki_cuda_at_sequence &q, int g, float x,
                                          int row, int query, int j, float *cap) {
  const mlki_cuda_at_scores c = mlki_cuda_at_scores_of(a, q, g * a.group + (row - query * a.group), query);
  const int64_t away = c.position < j ? j - c.position : c.position - j;
  x = mlki_cuda_mul(x, a.scale);
  if (a.softcap > 0.0f) {
    *cap = mlki_cuda_tc_tanh(mlki_cuda_mul(x, mlki_cuda_reciprocal(a.softcap)));
    x = mlki_cuda_mul(a.softcap, *cap);
  }
  if (a.alibi) x = mlki_cuda_fma(c.slope, (float)away, x);
  if (a.bias) x = mlki_cuda_add(x, c.bias[j * a.bias_stride[3]]);
  if (a.mask && !c.mask[j * a.mask_stride[3]]) x = -INFINITY;
  return mlki_cuda_mul(x, MLKI_CUDA_LOG2E);
}

/* What rows do not see becomes -infinity; with cap, alibi, bias or mask products become scores. */
template <int MT, int N>
MLKI_CUDA_DEVICE void mlki_cuda_tc_mask(const mlki_cuda_attend &a, const mlki_cuda_at_task &k, int j0, int end,
                                        float *stage, float (*s)[N][4]) {
  const int lane = (int)threadIdx.x % 32, row0 = k.row0 + (int)threadIdx.x / 32 * 16 * MT + lane / 4;
  float *mine = stage + threadIdx.x;
#pragma unroll
  for (int n = 0; n < N; n++) {
    const int j = j0 + 8 * n + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < 4 * MT; i++) mine[i * MLKI_CUDA_TC_THREADS] = s[i / 4][n][i % 4];
#pragma unroll 1
    for (int i = 0; i < 4 * MT; i++) {
      const int row = row0 + i / 4 * 16 + i / 2 % 2 * 8, key = j + i % 2, query = row / a.group;
      int low = 0, high = 0;
      float x = -INFINITY;
      if (row < k.rows && key < end) mlki_cuda_at_seen(a, k.q, query, &low, &high);
      if (key >= low && key < high) {
        float cap;
        x = mine[i * MLKI_CUDA_TC_THREADS];
        if (!a.plain) x = mlki_cuda_tc_score(a, k.q, k.g, x, row, query, key, &cap);
      }
      mine[i * MLKI_CUDA_TC_THREADS] = x;
    }
#pragma unroll
    for (int i = 0; i < 4 * MT; i++) s[i / 4][n][i % 4] = mine[i * MLKI_CUDA_TC_THREADS];
  }
}

/* Weights of keys that take part and whose value is not finite become NaN. */
template <int MT, int N> MLKI_CUDA_DEVICE void mlki_cuda_tc_poison(const unsigned *bad, float (*s)[N][4]) {
  const int lane = (int)threadIdx.x % 32;
#pragma unroll
  for (int n = 0; n < N; n++)
#pragma unroll
    for (int i = 0; i < 4 * MT; i++) {
      const int key = 8 * n + lane % 4 * 2 + i % 2;
      if ((bad[key / 32] >> key % 32 & 1) && s[i / 4][n][i % 4] != -INFINITY) s[i / 4][n][i % 4] = NAN;
    }
}

/* A step of the online softmax of row r of two: scores become weights; maximum m (times c: in powers of two), sum l of
   the lane's. What came before shrinks by the result. */
template <int N> MLKI_CUDA_DEVICE float mlki_cuda_tc_weights(float c, float (*s)[4], int r, float *m, float *l) {
  float top = *m;
#pragma unroll
  for (int n = 0; n < N; n++) top = fmaxf(top, fmaxf(s[n][2 * r], s[n][2 * r + 1]));
  top = fmaxf(top, __shfl_xor_sync(MLKI_CUDA_ALL, top, 1));
  top = fmaxf(top, __shfl_xor_sync(MLKI_CUDA_ALL, top, 2));
  const float base = top == -INFINITY ? 0.0f : mlki_cuda_mul(top, c);
  const float shrink = mlki_cuda_exp2(mlki_cuda_fma(*m, c, -base));
  float sum = 0.0f;
#pragma unroll
  for (int n = 0; n < N; n++)
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const float p = mlki_cuda_exp2(mlki_cuda_fma(s[n][2 * r + i], c, -base));
      s[n][2 * r + i] = p, sum = mlki_cuda_add(sum, p);
    }
  *m = top, *l = mlki_cuda_fma(*l, shrink, sum);
  return shrink;
}

/* The same for 2 MT rows, and o scaled to the new maxima. */
template <int DP, int MT, int N>
MLKI_CUDA_DEVICE void mlki_cuda_tc_softmax(float c, float (*s)[N][4], float (*m)[2], float (*l)[2],
                                           float (*o)[DP / 8][4]) {
#pragma unroll
  for (int t = 0; t < MT; t++)
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const float shrink = mlki_cuda_tc_weights<N>(c, s[t], r, &m[t][r], &l[t][r]);
      if (!__any_sync(MLKI_CUDA_ALL, shrink != 1.0f)) continue; /* as a rule, after the first tiles */
#pragma unroll
      for (int n = 0; n < DP / 8; n++)
#pragma unroll
        for (int i = 0; i < 2; i++) o[t][n][2 * r + i] = mlki_cuda_mul(o[t][n][2 * r + i], shrink);
    }
}

/* Where a row's elements go: out, or a part of f32. */
typedef struct mlki_cuda_tc_row {
  char *p;
  int dtype, wide; /* two neighbours at once? */
  int64_t step;
} mlki_cuda_tc_row;

/* Elements e and e + 1 of count to a row: with few branches, for there are up to 128 copies of it in a kernel. */
MLKI_CUDA_DEVICE void mlki_cuda_tc_put(const mlki_cuda_tc_row &row, int e, int count, float x, float y) {
  const bool wide = row.wide && e + 2 <= count;
  if (row.dtype == MLK_F32) {
    float *to = (float *)(void *)row.p + e * row.step;
    if (wide) *(float2 *)(void *)to = make_float2(x, y);
    if (!wide && e < count) to[0] = x;
    if (!wide && e + 1 < count) to[row.step] = y;
  } else {
    uint16_t *to = (uint16_t *)(void *)row.p + e * row.step;
    const uint32_t two = row.dtype == MLK_F16 ? mlki_cuda_pack16<MLK_F16>(x, y) : mlki_cuda_pack16<MLK_BF16>(x, y);
    if (wide) *(uint32_t *)(void *)to = two;
    if (!wide && e < count) to[0] = (uint16_t)two;
    if (!wide && e + 1 < count) to[row.step] = (uint16_t)(two >> 16);
  }
}

/* The warp's rows to out and lse, or left for the fold as a part. A row with an element that is not finite is NaN. */
template <int DP, int MT>
MLKI_CUDA_DEVICE void mlki_cuda_tc_write(const mlki_cuda_attend &a, const mlki_cuda_at_task &k,
                                         const mlki_cuda_at_places &w, float c, float (*m)[2], float (*l)[2],
                                         float (*o)[DP / 8][4]) {
  const int lane = (int)threadIdx.x % 32;
#pragma unroll
  for (int t = 0; t < MT; t++)
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const int row = k.row0 + ((int)threadIdx.x / 32 * MT + t) * 16 + 8 * r + lane / 4;
      float sum = l[t][r], top = m[t][r] == -INFINITY ? 0.0f : mlki_cuda_mul(m[t][r], c), wrong = 0.0f;
#pragma unroll
      for (int n = 0; n < DP / 8; n++)
        wrong += mlki_cuda_at_finite(o[t][n][2 * r]) && mlki_cuda_at_finite(o[t][n][2 * r + 1]) ? 0.0f : NAN;
      sum = mlki_cuda_add(sum, wrong);
      sum = mlki_cuda_add(sum, __shfl_xor_sync(MLKI_CUDA_ALL, sum, 1));
      sum = mlki_cuda_add(sum, __shfl_xor_sync(MLKI_CUDA_ALL, sum, 2));
      if (row >= k.rows) continue;
      const int query = row / a.group, h = k.g * a.group + (row - query * a.group);
      float grow = 1.0f;
      if (a.sinks && !w.units) {
        const float sink = mlki_cuda_mul(a.sinks[h * a.sinks_step], MLKI_CUDA_LOG2E);
        const float best = sum == 0.0f ? sink : fmaxf(top, sink);
        grow = sum == 0.0f ? 0.0f : mlki_cuda_exp2(mlki_cuda_sub(top, best));
        sum = mlki_cuda_fma(sum, grow, mlki_cuda_exp2(mlki_cuda_sub(sink, best))), top = best;
      }
      const float lse = sum == 0.0f ? -INFINITY : mlki_cuda_fma(top, MLKI_CUDA_LN2, mlki_log_cuda(sum));
      const float share = sum == 0.0f ? 0.0f : mlki_cuda_mul(grow, mlki_cuda_reciprocal(sum));
      const int64_t at = mlki_cuda_at_row_number(a, k, row) * w.units + k.only;
      const mlki_cuda_tc_row to = w.units ? mlki_cuda_tc_row{(char *)(void *)(w.o + at * a.e), MLK_F32, a.e % 2 == 0, 1}
                                          : mlki_cuda_tc_row{mlki_cuda_at_row(a, k.q, a.out, k.g, row), a.out.dtype,
                                                             a.out.wide, a.out.stride[3]};
      if (w.units && lane % 4 == 0) w.ml[at] = make_float2(lse, sum == 0.0f ? 0.0f : 1.0f);
      if (!w.units && a.lse && lane % 4 == 0)
        a.lse[k.q.qb * a.lse_stride[0] + h * a.lse_stride[1] + (k.q.q0 + query) * a.lse_stride[2]] = lse;
#pragma unroll
      for (int n = 0; n < DP / 8; n++) {
        const int e = 8 * n + lane % 4 * 2;
        const float x = mlki_cuda_add(mlki_cuda_mul(o[t][n][2 * r], share), 0.0f);
        const float y = mlki_cuda_add(mlki_cuda_mul(o[t][n][2 * r + 1], share), 0.0f);
        mlki_cuda_tc_put(to, e, a.e, x, y);
      }
    }
}

/* The keys of a task, from the start of a tile on, and those that all its rows see. */
typedef struct mlki_cuda_tc_span {
  int begin, end, whole_begin, whole_end;
} mlki_cuda_tc_span;

MLKI_CUDA_DEVICE mlki_cuda_tc_span mlki_cuda_tc_span_of(const mlki_cuda_attend &a, const mlki_cuda_at_task &k,
                                                        const mlki_cuda_at_places &w, int rows) {
  const int from = w.units ? k.only * w.unit : 0, to = w.units && from + w.unit < k.high ? from + w.unit : k.high;
  const int low = k.low > from ? k.low : from, last = (k.row0 + rows < k.rows ? k.row0 + rows : k.rows) - 1;
  mlki_cuda_tc_span s;
  int skip;
  s.begin = low < to ? low / MLKI_CUDA_TC_KEYS * MLKI_CUDA_TC_KEYS : to, s.end = to;
  mlki_cuda_at_seen(a, k.q, k.row0 / a.group, &skip, &s.whole_end);
  mlki_cuda_at_seen(a, k.q, last / a.group, &s.whole_begin, &skip);
  if (s.whole_end > to) s.whole_end = to;
  if (!a.plain) s.whole_end = 0; /* scores are more than products everywhere */
  return s;
}

/* Which operands have rows that can be brought 16 bytes at a time. */
typedef struct mlki_cuda_tc_wide {
  int q, k, v;
} mlki_cuda_tc_wide;

/* Task: rows of a head, and with split a unit of keys. */
template <int dtype, int DP, int MT>
static __global__ void __launch_bounds__(MLKI_CUDA_TC_THREADS,
                                         DP == 128 && dtype != MLK_F32 && MLKI_CUDA_ARCH >= 800 ? 3 : 1)
    mlki_cuda_tc_kernel(const __grid_constant__ mlki_cuda_attend a, const mlki_cuda_at_places w,
                        const mlki_cuda_tc_wide wide, int tiles) {
#if MLKI_CUDA_ARCH >= 750
  typedef mlki_cuda_tc<dtype, DP, MT> C;
  if (MLKI_CUDA_ARCH < 800 && (dtype != MLK_F16 || C::shared_bytes > 64 << 10)) return; /* never asked for there */
  __shared__ mlki_cuda_at_task k;
  __shared__ mlki_cuda_tc_span span;
  char *q = (char *)mlki_cuda_shared(), *keys = q + C::q_bytes, *values = keys + C::k_bytes;
  float *stage = (float *)(void *)(values + C::k_bytes);
  unsigned *bad = (unsigned *)(void *)((char *)(void *)stage + C::stage_bytes);
  const int heads = a.batch * a.groups, task = (int)blockIdx.x, warp = (int)threadIdx.x / 32;
  if (threadIdx.x == 0) {
    k = mlki_cuda_at_task_of(a, task % heads, tiles - 1 - task / heads % tiles, C::rows);
    k.only = task / heads / tiles;
  }
  if (threadIdx.x < 2) bad[threadIdx.x] = 0;
  __syncthreads();
  if (k.row0 >= k.rows) return;
  if (threadIdx.x == 0) span = mlki_cuda_tc_span_of(a, k, w, C::rows);
  const float c = a.plain ? mlki_cuda_mul(a.scale, MLKI_CUDA_LOG2E) : 1.0f;
  const bool busy = k.row0 + warp * 16 * MT < k.rows;
  float o[MT][DP / 8][4], m[MT][2], l[MT][2];
#pragma unroll
  for (int t = 0; t < MT; t++) {
#pragma unroll
    for (int i = 0; i < DP / 2; i++) o[t][i / 4][i % 4] = 0.0f;
    m[t][0] = m[t][1] = -INFINITY, l[t][0] = l[t][1] = 0.0f;
  }
#pragma unroll 1
  for (int i = (int)threadIdx.x; i < C::rows * C::pieces; i += MLKI_CUDA_TC_THREADS) {
    const int r = i / C::pieces;
    const char *row = k.row0 + r < k.rows ? mlki_cuda_at_row(a, k.q, a.q, k.g, k.row0 + r) : NULL;
    mlki_cuda_tc_bring<C::size, DP>(a.q, wide.q, row, r, i % C::pieces, a.d, q);
  }
  __syncthreads();
  if (span.begin < span.end) mlki_cuda_tc_keys<C::size, DP, C::keys>(a, k, a.k, wide.k, span.begin, k.q.t, a.d, keys);
  mlki_cuda_cp_commit();
  if (dtype == MLK_F32) {
    mlki_cuda_cp_wait<0>();
    mlki_cuda_tc_round<DP>(q, C::rows);
  }
  for (int j0 = span.begin; j0 < span.end; j0 += C::keys) {
    const bool masked = j0 < span.whole_begin || j0 + C::keys > span.whole_end;
    float s[MT][C::keys / 8][4];
    mlki_cuda_cp_wait<0>();
    if (dtype == MLK_F32) mlki_cuda_tc_round<DP>(keys, C::keys);
    __syncthreads(); /* k is there, v is free */
    mlki_cuda_tc_keys<C::size, DP, C::keys>(a, k, a.v, wide.v, j0, k.q.t, a.e, values);
    mlki_cuda_cp_commit();
    if (busy) mlki_cuda_tc_scores<dtype, DP, MT, C::keys / 8>((int)threadIdx.x, q, keys, s);
    mlki_cuda_cp_wait<0>();
    if (dtype == MLK_F32) mlki_cuda_tc_round<DP>(values, C::keys);
    if (masked) mlki_cuda_tc_clean<dtype, DP, C::keys>(values, bad);
    __syncthreads(); /* v is there, k is free */
    const bool broken = masked && (bad[0] | bad[1]);
    if (j0 + C::keys < span.end)
      mlki_cuda_tc_keys<C::size, DP, C::keys>(a, k, a.k, wide.k, j0 + C::keys, k.q.t, a.d, keys);
    mlki_cuda_cp_commit();
    if (busy) {
      if (masked) mlki_cuda_tc_mask<MT>(a, k, j0, span.end, stage, s);
      if (broken) mlki_cuda_tc_poison<MT>(bad, s);
      mlki_cuda_tc_softmax<DP, MT>(c, s, m, l, o);
      mlki_cuda_tc_values<dtype, DP, MT, C::keys / 8>((int)threadIdx.x, s, values, o);
    }
    if (broken) {
      __syncthreads();
      if (threadIdx.x < 2) bad[threadIdx.x] = 0;
    }
  }
  mlki_cuda_cp_wait<0>();
  mlki_cuda_tc_write<DP, MT>(a, k, w, c, m, l, o);
#endif
}

/* What tasks write to if keys are split into so many units as are wanted, each of at least 256 keys, or into parts. */
static mlki_cuda_at_places mlki_cuda_tc_units(mlki_cuda_call *call, const mlki_cuda_attend &a, int64_t wanted) {
  const int64_t rows = (int64_t)a.batch * a.groups * a.s * a.group;
  const int64_t blocks = mlki_cuda_ceil_div(a.t, 4 * MLKI_CUDA_TC_KEYS);
  mlki_cuda_at_places w;
  memset(&w, 0, sizeof w);
  if (a.parts) {
    w.units = a.parts, w.unit = MLK_ATTENTION_SEGMENT;
  } else if (wanted > 1 && blocks > 1) {
    w.unit = (int)(mlki_cuda_ceil_div(blocks, mlki_cuda_min(wanted, blocks)) * 4 * MLKI_CUDA_TC_KEYS);
    w.units = (int)mlki_cuda_ceil_div(a.t, w.unit);
  }
  if (w.units) {
    w.ml = mlki_cuda_carve<float2>(call, rows * w.units);
    w.o = mlki_cuda_carve<float>(call, rows * w.units * a.e);
  }
  return w;
}

/* The units of each row into one. */
static void mlki_cuda_tc_fold(mlki_cuda_call *call, const mlki_cuda_attend &a, const mlki_cuda_at_places &w) {
  const int64_t rows = (int64_t)a.batch * a.groups * a.s * a.group;
  if (w.units)
    mlki_cuda_launch(call, rows * mlki_cuda_max(mlki_cuda_ceil_div(a.e, 128), 1), 32 * MLKI_CUDA_FOLD_WARPS, 0,
                     mlki_cuda_at_fold_kernel, a, w.ml, w.o, w.units, MLK_ATTENTION_SEGMENT / MLKI_CUDA_AT_KEYS);
}

/* Seconds at so many floating-point operations per second. Of tasks which take as long as whole tiles of rows and
   keys, at heads of width elements, and have a multiprocessor each; tasks 0: by the roofline, with which f32's is
   compared. */
static double mlki_cuda_tc_seconds(const mlki_cuda_call *call, const mlki_cuda_attend &a, int64_t tasks, int rows,
                                   int keys, int width, double rate) {
  const double sms = call->device->sms, all = (double)a.s * a.group;
  const double memory = (double)call->io->bytes / call->device->bandwidth;
  double compute = (double)call->io->flops / rate;
  if (tasks > 0 && a.t > 0) {
    const double whole = ceil(all / rows) * rows / all * ceil((double)a.t / keys) * keys / a.t;
    compute *= whole * (2.0 * width / (a.d + a.e)) * (ceil((double)tasks / sms) * sms / (double)tasks);
  }
  return compute > memory ? compute : memory;
}

/* Of the rate of mma.sync, at heads of 128 elements, FlashAttention-2 reaches 0.73 of an A100's and 370 TFLOP/s, 0.60,
   of an H100's; at 64 there are twice as many powers for the same products. */
template <int dtype, int DP, int MT> static void mlki_cuda_tc_launch(mlki_cuda_call *call, const mlki_cuda_attend &a) {
  typedef mlki_cuda_tc<dtype, DP, MT> C;
  const int64_t heads = (int64_t)a.batch * a.groups, rows = (int64_t)a.s * a.group, sms = call->device->sms;
  const int64_t tiles = mlki_cuda_ceil_div(rows, C::rows), tasks = heads * tiles;
  /* two waves of two blocks a multiprocessor */
  const int64_t wanted = tasks < 2 * sms ? mlki_cuda_ceil_div(4 * sms, mlki_cuda_max(tasks, 1)) : 1;
  const mlki_cuda_at_places w = mlki_cuda_tc_units(call, a, wanted);
  const int64_t blocks = tasks * (w.units ? w.units : 1);
  mlki_cuda_tc_wide wide;
  wide.q = mlki_cuda_at_pieces(&a.q, a.d), wide.k = mlki_cuda_at_pieces(&a.k, a.d);
  wide.v = mlki_cuda_at_pieces(&a.v, a.e);
  call->io->variant = dtype == MLK_F32 ? w.units ? "tf32_split" : "tf32" : w.units ? "mma_split" : "mma";
  const double rate = call->device->tensor_flops * (DP > 64 ? 0.62 : 0.5) / (C::size / 2);
  call->work = mlki_cuda_tc_seconds(call, a, dtype == MLK_F32 ? 0 : blocks, C::rows, C::keys, DP, rate);
  mlki_cuda_launch(call, blocks, MLKI_CUDA_TC_THREADS, C::shared_bytes, mlki_cuda_tc_kernel<dtype, DP, MT>, a, w, wide,
                   (int)tiles);
  mlki_cuda_tc_fold(call, a, w);
}

/* Tensor cores, where the operands and the device are such: heads of up to 256 elements; of f32 those of more than 128
   where a block may have 130 KiB of shared memory. */
template <int dtype> static bool mlki_cuda_tc_run(mlki_cuda_call *call, const mlki_cuda_attend &given) {
  mlki_cuda_attend a = given;
  const int width = a.d > a.e ? a.d : a.e, room = call->device->shared_bytes - (int)sizeof(mlki_cuda_at_task) - 64;
  const int64_t rows = (int64_t)a.s * a.group;
  if (a.scale < 0.0f) a.plain = 0; /* the largest product is not the largest score */
  if (width <= 64 && rows > 64)
    mlki_cuda_tc_launch<dtype, 64, 2>(call, a);
  else if (width <= 128)
    mlki_cuda_tc_launch<dtype, 128, 1>(call, a);
  else if (width <= 256 && mlki_cuda_tc<dtype, 256, 1>::shared_bytes <= room)
    mlki_cuda_tc_launch<dtype, 256, 1>(call, a);
  else
    return false;
  return true;
}

/* >>cuda_attention_wgmma --------------------------------------------------------------------------------------------
   T2: 16-bit operands by wgmma, after FlashAttention-3 (Shah et al., arXiv 2407.08608), made of what >>cuda_hopper is
   made of. A block stays and does one task after the other: 128 queries of a head. One thread of the producer has the
   copy engine bring Q, and K and V through rings of tiles. Two warpgroups have 64 rows each:
     scores   S = Q K^T, both from shared memory, along the terms
     weights  as in >>cuda_attention_mma; D's fragment of S, rounded to 16 bits, is A's of the second product, so the
              weights stay in registers
     values   O += P V, V as B whose columns lie side by side
   The scores of the next tile are under way before the values of this one, and its softmax runs behind both: while one
   warpgroup computes powers, the tensor cores have the other's products, since they take turns in issuing them.
   Heads of a group share K and V in the L2 cache only: each is a head of its own here.

   A tile that not all rows see whole is looked through for values that are not finite: what takes no part must be
   nothing, and 0 times infinity is not. Both warpgroups wait for that, and these tiles are few. */

/* Heads of up to DP elements. A tile of Q is rows of 128 bytes: chunks of 64 elements, 64 queries each, for one
   warpgroup and then the other; of K and V: chunks of 64 elements, of all keys. */
template <int DP_> struct mlki_cuda_wg {
  static constexpr int DP = DP_, consumers = 2, warps = 4 * consumers, threads = 128 * (1 + consumers);
  static constexpr int rows = 64 * consumers, keys = DP > 128 ? 64 : 128, scores = keys / 2, sums = DP / 2;
  static constexpr int stages = DP > 64 ? 2 : 4, chunk = keys * 128, tile = DP / 64 * chunk, q_bytes = rows * DP * 2;
  static constexpr int bad_bytes = stages * keys / 8, barriers = 2 + 4 * stages;
  static constexpr int shared_bytes = (int)MLKI_CUDA_WGMMA_EIGHT + q_bytes + 2 * stages * tile + bad_bytes +
                                      barriers * 8;
  static_assert(shared_bytes <= (226 << 10), "what a block can hold, with its task");
};

typedef struct mlki_cuda_wg_maps {
  CUtensorMap q, k, v; /* axes: element, query or key, head, sequence */
} mlki_cuda_wg_maps;

/* The tasks of a launch. */
typedef struct mlki_cuda_wg_tasks {
  mlki_cuda_at_places w;
  int count, tiles, share; /* tiles of rows of a head; query heads of a key head */
} mlki_cuda_wg_tasks;

typedef struct mlki_cuda_wg_work {
  mlki_cuda_at_task k;
  mlki_cuda_tc_span span;
} mlki_cuda_wg_work;

#if defined(MLKI_CUDA_HOPPER)

/* Barriers of the block: turns of the warpgroups, one for each, then that of both, then one for each alone. */
#define MLKI_CUDA_WG_TURN  1
#define MLKI_CUDA_WG_BOTH  3
#define MLKI_CUDA_WG_ALONE 4

/* What the roles of a block share. */
template <class T> struct mlki_cuda_wg_shared {
  unsigned char *q, *k, *v;
  unsigned *bad; /* of each tile of V: keys whose values are not finite */
  uint64_t *q_full, *q_empty, *k_full, *k_empty, *v_full, *v_empty;
  MLKI_CUDA_MEMBER mlki_cuda_wg_shared() {
    q = mlki_cuda_shared();
    q += (0u - mlki_cuda_shared_address(q)) % MLKI_CUDA_WGMMA_EIGHT;
    k = q + T::q_bytes, v = k + T::stages * T::tile;
    q_full = (uint64_t *)(void *)(v + T::stages * T::tile), q_empty = q_full + 1;
    k_full = q_full + 2, k_empty = k_full + T::stages;
    v_full = k_empty + T::stages, v_empty = v_full + T::stages;
    bad = (unsigned *)(void *)(v_empty + T::stages);
  }
};

/* The block's task of this round, there and back since tasks are sorted by size. False: it has none, or one without
   rows. */
MLKI_CUDA_DEVICE bool mlki_cuda_wg_find(const mlki_cuda_attend &a, const mlki_cuda_wg_tasks &t, int rows, int round,
                                        mlki_cuda_wg_work *work) {
  const unsigned task = (unsigned)round * gridDim.x + (round & 1 ? gridDim.x - 1 - blockIdx.x : blockIdx.x);
  const unsigned heads = (unsigned)(a.batch * a.groups), all = task / heads, tiles = (unsigned)t.tiles;
  if (task >= (unsigned)t.count) return false;
  work->k = mlki_cuda_at_task_of(a, (int)(task - all * heads), t.tiles - 1 - (int)(all % tiles), rows);
  work->k.only = (int)(all / tiles);
  if (work->k.row0 >= work->k.rows) return false;
  work->span = mlki_cuda_tc_span_of(a, work->k, t.w, rows);
  return true;
}

/* Has the copy engine bring a tile of K or V to the ring's next place. By one thread. */
template <class T>
MLKI_CUDA_DEVICE void mlki_cuda_wg_bring(const CUtensorMap *map, const mlki_cuda_at_task &k, int share, int j0,
                                         unsigned char *tiles, uint64_t *full, uint64_t *empty,
                                         mlki_cuda_ring<T::stages> &ring) {
  uint64_t *arrived = full + ring.stage;
  mlki_cuda_mbarrier_wait(empty + ring.stage, ring.round ^ 1);
  mlki_cuda_mbarrier_expect(arrived, T::tile);
#pragma unroll
  for (int c = 0; c < T::DP / 64; c++)
    mlki_cuda_box_load(tiles + ring.stage * T::tile + c * T::chunk, map, arrived, 64 * c, (int)k.q.k0 + j0, k.g / share,
                       (int)k.q.kb);
  ring.next();
}

/* By one thread: Q of each task, and its keys' tiles in the order in which they are used. */
template <class T>
MLKI_CUDA_DEVICE void mlki_cuda_wg_produce(const mlki_cuda_attend &a, const mlki_cuda_wg_maps &maps,
                                           const mlki_cuda_wg_tasks &t, const mlki_cuda_wg_shared<T> &shared) {
  mlki_cuda_ring<T::stages> ring_k, ring_v;
  uint32_t q_round = 0;
  for (int round = 0; round * (int64_t)gridDim.x < t.count; round++) {
    mlki_cuda_wg_work work;
    if (!mlki_cuda_wg_find(a, t, T::rows, round, &work) || work.span.begin >= work.span.end) continue;
    const mlki_cuda_at_task &k = work.k;
    mlki_cuda_mbarrier_wait(shared.q_empty, q_round ^ 1);
    mlki_cuda_mbarrier_expect(shared.q_full, T::q_bytes);
#pragma unroll 1
    for (int i = 0; i < T::q_bytes / (int)MLKI_CUDA_WGMMA_BLOCK; i++)
      mlki_cuda_box_load(shared.q + i * (int)MLKI_CUDA_WGMMA_BLOCK, &maps.q, shared.q_full, i % (T::DP / 64) * 64,
                         (int)k.q.q0 + k.row0 + i / (T::DP / 64) * 64, k.g, (int)k.q.qb);
    q_round ^= 1;
#pragma unroll 1
    for (int j0 = work.span.begin; j0 < work.span.end + T::keys; j0 += T::keys) {
      if (j0 < work.span.end)
        mlki_cuda_wg_bring<T>(&maps.k, k, t.share, j0, shared.k, shared.k_full, shared.k_empty, ring_k);
      if (j0 > work.span.begin)
        mlki_cuda_wg_bring<T>(&maps.v, k, t.share, j0 - T::keys, shared.v, shared.v_full, shared.v_empty, ring_v);
    }
  }
}

/* s = the products of 64 rows of Q and a tile's keys, under way. */
template <class T, int dtype> MLKI_CUDA_DEVICE void mlki_cuda_wg_scores(float (&s)[T::scores], uint32_t q, uint32_t k) {
  const uint64_t a = mlki_cuda_wgmma_matrix((uint32_t)mlki_cuda_anew(q), 16, MLKI_CUDA_WGMMA_EIGHT),
                 b = mlki_cuda_wgmma_matrix(k, 16, MLKI_CUDA_WGMMA_EIGHT);
  mlki_cuda_wgmma_fence();
  mlki_cuda_wgmma<dtype, false, false>(s, a, b, 0);
#pragma unroll
  for (uint32_t x = 1; x < T::DP / 16; x++)
    mlki_cuda_wgmma<dtype, false, false>(s, mlki_cuda_wgmma_on(a, x / 4 * MLKI_CUDA_WGMMA_BLOCK + x % 4 * 32),
                                         mlki_cuda_wgmma_on(b, x / 4 * T::chunk + x % 4 * 32));
  mlki_cuda_wgmma_commit();
}

/* o += weights times a tile's values, under way. */
template <class T, int dtype>
MLKI_CUDA_DEVICE void mlki_cuda_wg_values(float (&o)[T::sums], uint32_t (&p)[T::keys / 16][4], uint32_t v) {
  const uint64_t b = mlki_cuda_wgmma_matrix(v, T::chunk, MLKI_CUDA_WGMMA_EIGHT);
  mlki_cuda_hold(o), mlki_cuda_hold(p);
  mlki_cuda_wgmma_fence();
#pragma unroll
  for (uint32_t x = 0; x < T::keys / 16; x++)
    mlki_cuda_wgmma_held<dtype, true>(o, p[x], mlki_cuda_wgmma_on(b, x * 2 * MLKI_CUDA_WGMMA_EIGHT));
  mlki_cuda_wgmma_commit();
}

/* Elements of 16 bytes of V that are not finite become 0; whether there were any. With 1 added, an exponent of ones
   becomes the sign. */
template <int dtype> MLKI_CUDA_DEVICE bool mlki_cuda_wg_clean_piece(uint4 *at) {
  constexpr uint32_t exponent = dtype == MLK_F16 ? 0x7c007c00u : 0x7f807f80u;
  constexpr uint32_t one = dtype == MLK_F16 ? 0x04000400u : 0x00800080u, sign = 0x80008000u;
  uint32_t x[4] = {at->x, at->y, at->z, at->w}, found = 0;
#pragma unroll
  for (int i = 0; i < 4; i++) found |= (x[i] & exponent) + one;
  if (!(found & sign)) return false;
#pragma unroll
  for (int i = 0; i < 4; i++) x[i] &= ~(((((x[i] & exponent) + one) & sign) >> 15) * 0xffffu);
  *at = make_uint4(x[0], x[1], x[2], x[3]);
  return true;
}

/* Elements of a tile of V that are not finite become 0, by both warpgroups; bit r of bad: key r had some. */
template <class T, int dtype> MLKI_CUDA_DEVICE void mlki_cuda_wg_clean(unsigned char *v, unsigned *bad) {
  constexpr int own = T::keys / T::warps; /* keys of a warp */
  const int lane = (int)threadIdx.x % MLKI_CUDA_WARP, warp = (int)threadIdx.x / MLKI_CUDA_WARP;
  unsigned char *at = v + (warp * own + lane / 8) * 128 + lane % 8 * 16;
  unsigned mine = 0;
#pragma unroll 1
  for (int r = 0; r < own; r += 4) {
    bool broken = false;
#pragma unroll
    for (int c = 0; c < T::DP / 64; c++)
      broken |= mlki_cuda_wg_clean_piece<dtype>((uint4 *)(void *)(at + c * T::chunk + r * 128));
    const unsigned lanes = __ballot_sync(MLKI_CUDA_ALL, broken);
#pragma unroll
    for (int i = 0; i < 4; i++) mine |= (unsigned)((lanes >> 8 * i & 255u) != 0) << (r + i);
  }
  if (lane < own / 8) ((unsigned char *)bad)[warp * (own / 8) + lane] = (unsigned char)(mine >> 8 * lane);
  mlki_cuda_async_fence();
  mlki_cuda_barrier_wait(MLKI_CUDA_WG_BOTH, 128 * T::consumers);
}

/* How many of the lane's places of a row, two in eight keys, lie before key x of a tile. */
MLKI_CUDA_DEVICE int mlki_cuda_wg_before(int x, int places) {
  const int own = x - (int)threadIdx.x % 4 * 2, count = own < 0 ? 0 : own / 8 * 2 + (own % 8 < 2 ? own % 8 : 2);
  return count < places ? count : places;
}

/* What rows do not see of the tile at j0 becomes -infinity; a row that sees a key whose values are not finite becomes
   NaN. Bit 2 n + i of what a row sees: key 8 n + i of the lane's. */
template <class T, int dtype>
MLKI_CUDA_DEVICE void mlki_cuda_wg_mask(const mlki_cuda_attend &a, const mlki_cuda_wg_work &work, int j0,
                                        unsigned char *v, unsigned *bad, float (&s)[T::scores]) {
  const int row0 = work.k.row0 + (int)threadIdx.x / MLKI_CUDA_WARP * 16 + (int)threadIdx.x % MLKI_CUDA_WARP / 4;
  unsigned seen[2], broken = 0;
  mlki_cuda_wg_clean<T, dtype>(v, bad);
#pragma unroll
  for (int i = 0; i < T::keys / 32; i++) broken |= bad[i];
#pragma unroll
  for (int r = 0; r < 2; r++) {
    int low = 0, high = 0;
    if (row0 + 8 * r < work.k.rows) mlki_cuda_at_seen(a, work.k.q, row0 + 8 * r, &low, &high);
    if (high > work.span.end) high = work.span.end;
    const uint64_t from = (uint64_t)1 << mlki_cuda_wg_before(low - j0, T::keys / 4),
                   to = (uint64_t)1 << mlki_cuda_wg_before(high - j0, T::keys / 4);
    seen[r] = to > from ? (unsigned)(to - from) : 0u;
#pragma unroll
    for (int b = 0; b < T::keys / 4; b++)
      if (!(seen[r] >> b & 1)) s[b / 2 * 4 + 2 * r + b % 2] = -INFINITY;
  }
  if (!broken) return;
  for (int n = 0; n < T::keys / 8; n++) {
    const unsigned two = bad[n / 4] >> (n % 4 * 8 + (int)threadIdx.x % 4 * 2) & 3u;
    if (seen[0] >> 2 * n & two) s[0] = NAN;
    if (seen[1] >> 2 * n & two) s[2] = NAN;
  }
}

/* A consumer's registers: O, weights as A's fragments, maxima and sums of two rows. */
template <class T> struct mlki_cuda_wg_state {
  float o[T::sums], m[1][2], l[1][2], shrink[2];
  uint32_t p[T::keys / 16][4];

  MLKI_CUDA_MEMBER mlki_cuda_wg_state() {
#pragma unroll
    for (int i = 0; i < T::sums; i++) o[i] = 0.0f;
    m[0][0] = m[0][1] = -INFINITY, l[0][0] = l[0][1] = 0.0f;
  }

  /* Scores become weights. */
  MLKI_CUDA_MEMBER void weigh(float c, float (&s)[T::scores]) {
#pragma unroll
    for (int r = 0; r < 2; r++) shrink[r] = mlki_cuda_tc_weights<T::keys / 8>(c, (float(*)[4])s, r, &m[0][r], &l[0][r]);
  }

  /* Waits for the values under way; O to the new maxima, weights rounded. The powers lie in front of a branch and the
     wait behind it: else ptxas puts half of them behind the wait. A wait is for the four warps together (PTX ISA 9.0,
     9.7.15.7.3, .aligned), so the branch is one that all take alike: sums of powers are never negative. */
  template <int dtype> MLKI_CUDA_MEMBER void settle(const float (&s)[T::scores]) {
    if (__any_sync(MLKI_CUDA_ALL, l[0][0] < 0.0f || l[0][1] < 0.0f)) {
      mlki_cuda_wgmma_wait<0>(o);
    } else {
      mlki_cuda_wgmma_wait<0>(o);
      if (__any_sync(MLKI_CUDA_ALL, shrink[0] != 1.0f || shrink[1] != 1.0f)) /* as a rule not, after the first tiles */
#pragma unroll
        for (int i = 0; i < T::sums; i++) o[i] = mlki_cuda_mul(o[i], shrink[i / 2 % 2]);
    }
#pragma unroll
    for (int i = 0; i < T::keys / 4; i++)
      p[i / 4][i % 4] = mlki_cuda_pack16<dtype>(s[i / 4 * 8 + i % 4 * 2], s[i / 4 * 8 + i % 4 * 2 + 1]);
  }
};

/* This warp has done with the ring's tile. */
template <class T> MLKI_CUDA_DEVICE void mlki_cuda_wg_release(uint64_t *empty, mlki_cuda_ring<T::stages> &ring) {
  if (threadIdx.x % MLKI_CUDA_WARP == 0) mlki_cuda_mbarrier_arrive(empty + ring.stage);
  ring.next();
}

/* The scores of the tile at j0 become weights; ring: where its values come. */
template <class T, int dtype>
MLKI_CUDA_DEVICE void mlki_cuda_wg_weigh(const mlki_cuda_attend &a, const mlki_cuda_wg_work &work, float c, int j0,
                                         const mlki_cuda_wg_shared<T> &shared, const mlki_cuda_ring<T::stages> &ring,
                                         float (&s)[T::scores], mlki_cuda_wg_state<T> &x) {
  if (j0 < work.span.whole_begin || j0 + T::keys > work.span.whole_end) {
    mlki_cuda_mbarrier_wait(shared.v_full + ring.stage, ring.round);
    mlki_cuda_wg_mask<T, dtype>(a, work, j0, shared.v + ring.stage * T::tile, shared.bad + ring.stage * (T::keys / 32),
                                s);
  }
  x.weigh(c, s);
}

/* The keys of a task, by consumer number number. */
template <class T, int dtype>
MLKI_CUDA_DEVICE void mlki_cuda_wg_keys(const mlki_cuda_attend &a, const mlki_cuda_wg_work &work, float c, int number,
                                        const mlki_cuda_wg_shared<T> &shared, mlki_cuda_ring<T::stages> &ring_k,
                                        mlki_cuda_ring<T::stages> &ring_v, mlki_cuda_wg_state<T> &x) {
  const uint32_t q = mlki_cuda_shared_address(shared.q) + (uint32_t)(number * (T::q_bytes / T::consumers)),
                 k = mlki_cuda_shared_address(shared.k), v = mlki_cuda_shared_address(shared.v);
  const mlki_cuda_tc_span span = work.span;
  mlki_cuda_ring<T::stages> ahead;
  float s[T::scores];
#pragma unroll
  for (int i = 0; i < T::scores; i++) s[i] = 0.0f;
  mlki_cuda_mbarrier_wait(shared.k_full + ring_k.stage, ring_k.round);
  mlki_cuda_wg_scores<T, dtype>(s, q, k + (uint32_t)(ring_k.stage * T::tile));
  mlki_cuda_wgmma_wait<0>(s);
  mlki_cuda_wg_release<T>(shared.k_empty, ring_k);
  mlki_cuda_wg_weigh<T, dtype>(a, work, c, span.begin, shared, ring_v, s, x);
  x.template settle<dtype>(s);
#pragma unroll 1
  for (int j0 = span.begin + T::keys; j0 < span.end; j0 += T::keys) {
    mlki_cuda_barrier_wait(MLKI_CUDA_WG_TURN + number, 128 * T::consumers);
    mlki_cuda_mbarrier_wait(shared.k_full + ring_k.stage, ring_k.round);
    mlki_cuda_wg_scores<T, dtype>(s, q, k + (uint32_t)(ring_k.stage * T::tile));
    mlki_cuda_mbarrier_wait(shared.v_full + ring_v.stage, ring_v.round);
    mlki_cuda_wg_values<T, dtype>(x.o, x.p, v + (uint32_t)(ring_v.stage * T::tile));
    mlki_cuda_barrier_arrive(MLKI_CUDA_WG_TURN + 1 - number, 128 * T::consumers);
    mlki_cuda_wgmma_wait<1>(x.o);
    mlki_cuda_hold(s);
    mlki_cuda_wg_release<T>(shared.k_empty, ring_k);
    ahead = ring_v, ahead.next();
    mlki_cuda_wg_weigh<T, dtype>(a, work, c, j0, shared, ahead, s, x);
    x.template settle<dtype>(s);
    mlki_cuda_wg_release<T>(shared.v_empty, ring_v);
  }
  if (threadIdx.x % MLKI_CUDA_WARP == 0) mlki_cuda_mbarrier_arrive(shared.q_empty);
  mlki_cuda_mbarrier_wait(shared.v_full + ring_v.stage, ring_v.round);
  mlki_cuda_wg_values<T, dtype>(x.o, x.p, v + (uint32_t)(ring_v.stage * T::tile));
  mlki_cuda_wgmma_wait<0>(x.o);
  mlki_cuda_wg_release<T>(shared.v_empty, ring_v);
}

/* By consumer number number: its 64 rows of each task. The task lies in shared memory: registers are scarce. */
template <class T, int dtype>
MLKI_CUDA_DEVICE void mlki_cuda_wg_consume(const mlki_cuda_attend &a, const mlki_cuda_wg_tasks &t, int number,
                                           const mlki_cuda_wg_shared<T> &shared, mlki_cuda_wg_work *work) {
  const float c = mlki_cuda_mul(a.scale, MLKI_CUDA_LOG2E);
  mlki_cuda_ring<T::stages> ring_k, ring_v;
  uint32_t q_round = 0;
  if (number == 1) mlki_cuda_barrier_arrive(MLKI_CUDA_WG_TURN, 128 * T::consumers); /* the other's turn is first */
  for (int round = 0; round * (int64_t)gridDim.x < t.count; round++) {
    mlki_cuda_barrier_wait(MLKI_CUDA_WG_ALONE + number, 128); /* the task before was read */
    if (threadIdx.x % 128 == 0 && !mlki_cuda_wg_find(a, t, T::rows, round, work)) work->k.row0 = work->k.rows = 0;
    mlki_cuda_barrier_wait(MLKI_CUDA_WG_ALONE + number, 128);
    if (work->k.row0 >= work->k.rows) continue;
    mlki_cuda_wg_state<T> x;
    if (work->span.begin < work->span.end) {
      mlki_cuda_mbarrier_wait(shared.q_full, q_round);
      q_round ^= 1;
      mlki_cuda_wg_keys<T, dtype>(a, *work, c, number, shared, ring_k, ring_v, x);
    }
    mlki_cuda_tc_write<T::DP, 1>(a, work->k, t.w, c, x.m, x.l, (float(*)[T::DP / 8][4]) x.o);
  }
  if (number == 0) mlki_cuda_barrier_wait(MLKI_CUDA_WG_TURN, 128 * T::consumers); /* the turn that nobody took */
}
#endif /* MLKI_CUDA_HOPPER */

/* The producer is the last warpgroup: threads number rows. 168 registers a thread at the start (65536 / 384) are 24 of
   the producer and 240 of the consumers. a: heads are groups of one. */
template <class T, int dtype>
static __global__ void __launch_bounds__(T::threads, 1)
    mlki_cuda_wg_kernel(const __grid_constant__ mlki_cuda_attend a, const __grid_constant__ mlki_cuda_wg_maps maps,
                        const mlki_cuda_wg_tasks t) {
#if defined(MLKI_CUDA_HOPPER)
  __shared__ mlki_cuda_wg_work work[T::consumers];
  const mlki_cuda_wg_shared<T> shared;
  const int group = (int)threadIdx.x / 128;
  if (threadIdx.x == 0) {
    mlki_cuda_box_prefetch(&maps.q), mlki_cuda_box_prefetch(&maps.k), mlki_cuda_box_prefetch(&maps.v);
    mlki_cuda_mbarrier_init(shared.q_full, 1), mlki_cuda_mbarrier_init(shared.q_empty, T::warps);
    for (int s = 0; s < T::stages; s++) {
      mlki_cuda_mbarrier_init(shared.k_full + s, 1), mlki_cuda_mbarrier_init(shared.k_empty + s, T::warps);
      mlki_cuda_mbarrier_init(shared.v_full + s, 1), mlki_cuda_mbarrier_init(shared.v_empty + s, T::warps);
    }
    mlki_cuda_mbarrier_fence();
  }
  __syncthreads();
  if (group == T::consumers) {
    mlki_cuda_registers_give<24>();
    if (threadIdx.x % 128 == 0) mlki_cuda_wg_produce<T>(a, maps, t, shared);
  } else {
    mlki_cuda_registers_take<240>();
    mlki_cuda_wg_consume<T, dtype>(a, t, group, shared, work + group);
  }
#endif
}

/* A dense operand [B, H, S, D] in boxes of 64 elements of so many rows. False: the copy engine does not take it. */
static bool mlki_cuda_wg_map(const mlki_cuda_call *call, const mlki_cuda_at_operand *o, int batch, int heads,
                             int64_t rows, int width, int box, CUtensorMap *map) {
  const int64_t size[4] = {width, rows, heads, batch},
                step[4] = {o->stride[3], o->stride[2], o->stride[1], o->stride[0]};
  return mlki_cuda_boxes_of(call, map, o->dtype, o->p, size, step, box);
}

/* Of the rate of wgmma, for heads of up to 64, 128 and 256 elements. A tile of 128 x 128 scores at D = 128 is 2048
   cycles of wgmma, 1024 of the special function unit (16384 powers, 16 a cycle) and some 600 of issue, so that
   products bound it where they hide the others. FlashAttention-3, by the same steps, reaches 0.66 of an H100's peak;
   at 64 powers and products take as long, and it reaches 0.5; at 256 0.76. A little less is promised here. */
template <class T> static double mlki_cuda_wg_share(void) { return T::DP == 64 ? 0.42 : T::DP == 128 ? 0.60 : 0.62; }

/* The call by warpgroups, if they are predicted to be quicker than limit seconds and the copy engine takes its
   operands; most: bytes of workspace, if they are quicker. */
template <class T, int dtype>
static bool mlki_cuda_wg_run(mlki_cuda_call *call, const mlki_cuda_attend &given, double limit, uint64_t *most) {
  const int64_t sms = call->device->sms, heads = (int64_t)given.batch * given.heads,
                tiles = mlki_cuda_ceil_div(given.s, T::rows), wanted = sms / (heads * tiles);
  const int batch_q = given.packed_q ? 1 : given.batch, batch_k = given.packed_k ? 1 : given.batch;
  mlki_cuda_call planned = *call;
  mlki_cuda_attend a = given;
  mlki_cuda_wg_maps maps;
  mlki_cuda_wg_tasks t;
  memset(&maps, 0, sizeof maps);
  a.groups = a.heads, a.group = 1;
  planned.run = 0, planned.base = NULL;
  t.w = mlki_cuda_tc_units(&planned, a, wanted);
  const int64_t tasks = heads * tiles * (t.w.units ? t.w.units : 1);
  const double seconds = mlki_cuda_tc_seconds(call, a, tasks, T::rows, T::keys, T::DP,
                                              call->device->wgmma_flops * mlki_cuda_wg_share<T>());
  if (tasks > INT32_MAX - sms || seconds >= limit) return false;
  *most = planned.used;
  if (!mlki_cuda_wg_map(call, &a.q, batch_q, given.heads, a.q_size, a.d, 64, &maps.q) ||
      !mlki_cuda_wg_map(call, &a.k, batch_k, given.groups, a.k_size, a.d, T::keys, &maps.k) ||
      !mlki_cuda_wg_map(call, &a.v, batch_k, given.groups, a.k_size, a.e, T::keys, &maps.v))
    return false;
  t.w = mlki_cuda_tc_units(call, a, wanted);
  t.count = (int)tasks, t.tiles = (int)tiles, t.share = given.group;
  call->io->variant = t.w.units ? "wgmma_split" : "wgmma";
  call->work = seconds;
  mlki_cuda_launch(call, mlki_cuda_min(tasks, sms), T::threads, T::shared_bytes, mlki_cuda_wg_kernel<T, dtype>, a, maps,
                   t);
  mlki_cuda_tc_fold(call, a, t.w);
  return true;
}

/* 16-bit operands on tensor cores: by warpgroups where they can and are predicted to be quicker, else by warps. How
   memory is aligned may differ between plan and call, and the driver may refuse: so the workspace is enough for
   either. */
template <int dtype> static bool mlki_cuda_at_tensor(mlki_cuda_call *call, const mlki_cuda_attend &a) {
  const int width = a.d > a.e ? a.d : a.e;
  const bool empty = a.batch == 0 || a.s == 0 || a.heads == 0 || a.t == 0 || a.d == 0 || a.e == 0;
  if (!mlki_cuda_has_wgmma(call) || empty || width > 256 || !a.plain || a.scale < 0.0f || a.pages)
    return mlki_cuda_tc_run<dtype>(call, a);
  mlk_backend_call io = *call->io;
  mlki_cuda_call warps = *call; /* planned only */
  uint64_t most = 0;
  warps.io = &io, warps.run = 0, warps.base = NULL;
  if (!mlki_cuda_tc_run<dtype>(&warps, a)) return false;
  const bool done = width <= 64    ? mlki_cuda_wg_run<mlki_cuda_wg<64>, dtype>(call, a, warps.work, &most)
                    : width <= 128 ? mlki_cuda_wg_run<mlki_cuda_wg<128>, dtype>(call, a, warps.work, &most)
                                   : mlki_cuda_wg_run<mlki_cuda_wg<256>, dtype>(call, a, warps.work, &most);
  if (!done) mlki_cuda_tc_run<dtype>(call, a);
  if (call->used < warps.used) call->used = warps.used;
  if (call->used < most) call->used = most;
  return true;
}

static mlk_status mlki_cuda_attention(mlki_cuda_call *call, const mlk_attention_desc *desc) {
  const int with = desc->out.rank == 5;
  const mlki_cuda_view out = mlki_cuda_view_of(&desc->out), lse = mlki_cuda_view_of(&desc->lse);
  mlki_cuda_attend a;
  const mlk_status status = mlki_cuda_at_inputs(call, &desc->q, &desc->k, &desc->v, &desc->pages, &desc->scores, &a);
  if (status) return status;
  a.out = mlki_cuda_at_operand_of(&desc->out, with);
  a.lse = (float *)(void *)lse.p;
  if (with) a.out_part = out.stride[0], a.lse_part = lse.stride[0], a.parts = (int)desc->out.shape[0];
  for (int i = 0; i < 3; i++) a.lse_stride[i] = lse.stride[with + i];
  mlki_cuda_at_sequences(call, &a);
  if (a.q.dtype == MLK_F16 && mlki_cuda_at_tensor<MLK_F16>(call, a)) return MLK_OK;
  if (a.q.dtype == MLK_BF16 && call->device->tier >= 800 && mlki_cuda_at_tensor<MLK_BF16>(call, a)) return MLK_OK;
  if (mlki_cuda_few_run<1>(call, a) || mlki_cuda_few_run<8>(call, a)) return MLK_OK; /* as fast as memory, and exact */
  const bool f32 = a.q.dtype == MLK_F32 && a.k.dtype == MLK_F32 && a.v.dtype == MLK_F32;
  if (f32 && call->io->numerics == MLK_FAST && call->device->tier >= 800 && mlki_cuda_tc_run<MLK_F32>(call, a))
    return MLK_OK;
  if (a.e > 64)
    mlki_cuda_at_tiles<4>(call, a);
  else
    mlki_cuda_at_tiles<2>(call, a);
  return MLK_OK;
}

/* >>cuda_attention_grad ---------------------------------------------------------------------------------------------
   Weights are made again from lse. A task has 64 rows and goes through the keys, for dq, or 64 keys and goes through
   the rows, for dk and dv: 256 at a time, 8 x 8 scores and as many products of dout and v a thread, then chains as in
   the forward call. Chains of MLK_ATTENTION_BLOCK keys and MLK_SEGMENT rows go on over two such steps. */

#define MLKI_CUDA_GRAD_STEP  256
#define MLKI_CUDA_GRAD_CHAIN 512
static_assert(MLK_ATTENTION_BLOCK == MLKI_CUDA_GRAD_CHAIN && MLK_SEGMENT == MLKI_CUDA_GRAD_CHAIN,
              "chains of two steps");
#define MLKI_CUDA_GRAD_BIAS (16 << 20) /* floats of ds that wait for dbias at most */

typedef enum mlki_cuda_grad_mode {
  MLKI_CUDA_GRAD_ROWS = 0,
  MLKI_CUDA_GRAD_KEYS,
  MLKI_CUDA_GRAD_DS
} mlki_cuda_grad_mode;

/* What the kernels on tensor cores know of a row: log-sum-exp in powers of two, delta, which keys it sees. */
typedef struct mlki_cuda_gtc_limits {
  alignas(16) float lse;
  float delta;
  int low, high;
} mlki_cuda_gtc_limits;

typedef struct mlki_cuda_at_grad {
  mlki_cuda_attend a;
  mlki_cuda_at_operand dout, dq, dk, dv;
  int axis;                     /* keys of k, those behind the lengths too */
  float2 *info;                 /* log-sum-exp (NaN where dout is not finite) and delta of each row */
  mlki_cuda_gtc_limits *limits; /* T1: the same once more */
  float *state;                 /* [CTAs][chain, total][64][D and E, rounded up] */
  float *totals; /* [4 CTAs of each multiprocessor][64][256] products of segments, where D or E have several */
  float *ds;     /* for dbias: [unit][row][512] */
  float *dbias, *dsinks;
  int64_t dbias_stride[4], dbias_size[4], dsinks_step;
  int b0, g0, n0, r0, nb, ng, nn, nr; /* for dbias: sequences, key heads, blocks of keys, rows at hand */
} mlki_cuda_at_grad;

/* 16 lanes for each row: lse and delta. */
static __global__ void __launch_bounds__(256)
    mlki_cuda_at_delta_kernel(const __grid_constant__ mlki_cuda_at_grad d, int64_t rows) {
  const mlki_cuda_attend &a = d.a;
  const int64_t number = ((int64_t)blockIdx.x * 256 + threadIdx.x) / 16;
  const int lane = (int)threadIdx.x % 16, all = a.s * a.group;
  const int head = (int)(number < rows ? number / all : 0), r = (int)(number < rows ? number % all : 0);
  const mlki_cuda_at_sequence q = mlki_cuda_at_sequence_of(a, head / a.groups);
  const bool there = number < rows && r < q.s * a.group;
  float sum = 0.0f, broken = 0.0f;
  if (there) {
    const char *dout = mlki_cuda_at_row(a, q, d.dout, head % a.groups, r);
    const char *out = mlki_cuda_at_row(a, q, a.out, head % a.groups, r);
    for (int e = lane; e < a.e; e += 16) {
      const float x = mlki_cuda_load(dout, e * d.dout.stride[3], d.dout.dtype);
      sum = mlki_cuda_fma(x, mlki_cuda_load(out, e * a.out.stride[3], a.out.dtype), sum);
      if (!mlki_cuda_at_finite(x)) broken = 1.0f;
    }
  }
  sum = mlki_cuda_sum16(sum), broken = mlki_cuda_sum16(broken);
  if (!there || lane) return;
  const int i = r / a.group, h = head % a.groups * a.group + r % a.group;
  const float lse = a.lse[q.qb * a.lse_stride[0] + h * a.lse_stride[1] + (q.q0 + i) * a.lse_stride[2]];
  d.info[number] = make_float2(broken > 0.0f ? NAN : lse, sum);
  if (!d.limits) return;
  mlki_cuda_gtc_limits known;
  known.lse = broken > 0.0f ? NAN : mlki_cuda_mul(lse, MLKI_CUDA_LOG2E), known.delta = sum;
  mlki_cuda_at_seen(a, q, i, &known.low, &known.high);
  d.limits[number] = known;
}

/* A warp for each head: dsinks, a sum in double precision by sequence and query. */
static __global__ void mlki_cuda_at_dsinks_kernel(const __grid_constant__ mlki_cuda_at_grad d) {
  const mlki_cuda_attend &a = d.a;
  const int h = (int)blockIdx.x, lane = (int)threadIdx.x, g = h / a.group;
  const float sink = a.sinks[h * a.sinks_step];
  double sum = 0.0;
  for (int b = 0; b < a.batch; b++) {
    const mlki_cuda_at_sequence q = mlki_cuda_at_sequence_of(a, b);
    const float2 *info = d.info + ((int64_t)b * a.groups + g) * a.s * a.group + h % a.group;
    for (int i0 = 0; i0 < q.s; i0 += 32) {
      double term = 0.0;
      if (i0 + lane < q.s) {
        const float2 x = info[(int64_t)(i0 + lane) * a.group];
        term = __dmul_rn((double)mlki_exp_cuda(mlki_cuda_sub(sink, x.x)), (double)x.y);
      }
      const int count = q.s - i0 < 32 ? q.s - i0 : 32;
      for (int i = 0; i < count; i++) sum = __dsub_rn(sum, __shfl_sync(MLKI_CUDA_ALL, term, i));
    }
  }
  if (lane == 0) d.dsinks[h * d.dsinks_step] = (float)sum;
}

/* The task at hand, in shared memory. Items: the 64 rows or keys of the task, and those it goes through. */
typedef struct mlki_cuda_at_grad_task {
  mlki_cuda_at_sequence q;
  int g, first, items, others; /* first item; items and others of the sequence */
  int from, to;                /* others that matter, about */
} mlki_cuda_at_grad_task;

/* What a thread brings of a slab: of the items half a row, of the others one. */
typedef struct mlki_cuda_at_pair {
  float4 item, other[2];
} mlki_cuda_at_pair;

#define MLKI_CUDA_GRAD_SLAB (MLKI_CUDA_AT_DEPTH * (MLKI_CUDA_AT_ROWS + MLKI_CUDA_GRAD_STEP)) /* floats */

MLKI_CUDA_DEVICE void mlki_cuda_at_pair_load(const mlki_cuda_at_operand &io, const char *item, float item_scale,
                                             const mlki_cuda_at_operand &oo, const char *other, float other_scale,
                                             int at, int depth, mlki_cuda_at_pair *x) {
  x->item = mlki_cuda_at_scaled(item_scale, mlki_cuda_at_fetch(io, item, at + (int)(threadIdx.x & 1) * 4, depth));
  x->other[0] = mlki_cuda_at_scaled(other_scale, mlki_cuda_at_fetch(oo, other, at, depth));
  x->other[1] = mlki_cuda_at_scaled(other_scale, mlki_cuda_at_fetch(oo, other, at + 4, depth));
}

MLKI_CUDA_DEVICE void mlki_cuda_at_pair_store(const mlki_cuda_at_pair *x, float *slab) {
  const int t = (int)threadIdx.x;
  if (t < 2 * MLKI_CUDA_AT_ROWS) {
    float *to = slab + (t & 1) * 4 * MLKI_CUDA_AT_ROWS + t / 2;
    to[0] = x->item.x, to[MLKI_CUDA_AT_ROWS] = x->item.y;
    to[2 * MLKI_CUDA_AT_ROWS] = x->item.z, to[3 * MLKI_CUDA_AT_ROWS] = x->item.w;
  }
#pragma unroll
  for (int c = 0; c < 2; c++) {
    float *to = slab + MLKI_CUDA_AT_DEPTH * MLKI_CUDA_AT_ROWS + 4 * c * MLKI_CUDA_GRAD_STEP + t;
    to[0] = x->other[c].x, to[MLKI_CUDA_GRAD_STEP] = x->other[c].y;
    to[2 * MLKI_CUDA_GRAD_STEP] = x->other[c].z, to[3 * MLKI_CUDA_GRAD_STEP] = x->other[c].w;
  }
}

/* acc[r][i] = the product over depth of item 8 warp + r and other lane + 32 i; item, other: the rows that the thread
   brings, NULL for none. */
MLKI_CUDA_DEVICE void mlki_cuda_at_pairs(const mlki_cuda_at_operand &io, const char *item, float item_scale,
                                         const mlki_cuda_at_operand &oo, const char *other, float other_scale,
                                         int depth, bool busy, float *shared, float *totals, float (*acc)[8]) {
  const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
  const int slabs = (depth + MLKI_CUDA_AT_DEPTH - 1) / MLKI_CUDA_AT_DEPTH;
  mlki_cuda_at_pair ahead = {};
#pragma unroll
  for (int r = 0; r < 8; r++)
#pragma unroll
    for (int i = 0; i < 8; i++) acc[r][i] = 0.0f;
  __syncthreads();
#pragma unroll 1
  for (int n = -1; n < slabs; n++) { /* round -1 only brings slab 0 */
    const float *slab = shared + (n & 1) * MLKI_CUDA_GRAD_SLAB;
    if (n + 1 < slabs)
      mlki_cuda_at_pair_load(io, item, item_scale, oo, other, other_scale, (n + 1) * MLKI_CUDA_AT_DEPTH, depth, &ahead);
#pragma unroll
    for (int d = 0; d < MLKI_CUDA_AT_DEPTH; d++) {
      if (!busy || n < 0) continue;
      const float4 *x = (const float4 *)(const void *)(slab + d * MLKI_CUDA_AT_ROWS + 8 * warp);
      const float4 *y = (const float4 *)(const void *)(slab + MLKI_CUDA_AT_DEPTH * MLKI_CUDA_AT_ROWS +
                                                       d * MLKI_CUDA_GRAD_STEP + 4 * lane);
      const float4 x0 = x[0], x1 = x[1], y0 = y[0], y1 = y[32];
      const float xs[8] = {x0.x, x0.y, x0.z, x0.w, x1.x, x1.y, x1.z, x1.w};
      const float ys[8] = {y0.x, y0.y, y0.z, y0.w, y1.x, y1.y, y1.z, y1.w};
#pragma unroll
      for (int r = 0; r < 8; r++)
#pragma unroll
        for (int i = 0; i < 8; i++) acc[r][i] = mlki_cuda_fma(xs[r], ys[i], acc[r][i]);
    }
    if (totals && n >= 0 && ((n + 1) * MLKI_CUDA_AT_DEPTH % MLK_SEGMENT == 0 || n + 1 == slabs))
      mlki_cuda_at_close<64>(&acc[0][0], totals + threadIdx.x, (n + 1) * MLKI_CUDA_AT_DEPTH <= MLK_SEGMENT,
                             n + 1 == slabs);
    if (n + 1 < slabs) mlki_cuda_at_pair_store(&ahead, shared + (~n & 1) * MLKI_CUDA_GRAD_SLAB);
    __syncthreads();
  }
}

/* From products x of q and k, y of dout and v, of row r and key j to the weight and the gradient of the score, before
   the cap or, for dbias, behind it. */
template <int mode>
MLKI_CUDA_DEVICE float2 mlki_cuda_at_pair_value(const mlki_cuda_at_grad &d, const mlki_cuda_at_grad_task &k, int r,
                                                int j, float x, float y) {
  const mlki_cuda_attend &a = d.a;
  const int i = r / a.group, h = k.g * a.group + (r - i * a.group);
  int low, high;
  mlki_cuda_at_seen(a, k.q, i, &low, &high);
  if (j < low || j >= high) return make_float2(0.0f, 0.0f);
  float cap = 0.0f;
  if (!a.plain) {
    const float2 score = mlki_cuda_at_score(a, mlki_cuda_at_scores_of(a, k.q, h, i), x, j);
    x = score.x, cap = score.y;
    if (x == -INFINITY) return make_float2(0.0f, 0.0f);
  } else if (x == -INFINITY) {
    return make_float2(0.0f, 0.0f);
  }
  const float2 info = d.info[((int64_t)k.q.b * a.groups + k.g) * a.s * a.group + r];
  const float p = mlki_exp_cuda(mlki_cuda_sub(x, info.x));
  float ds = mlki_cuda_mul(p, mlki_cuda_sub(y, info.y));
  if (a.softcap > 0.0f && mode != MLKI_CUDA_GRAD_DS) ds = mlki_cuda_mul(ds, mlki_cuda_fma(-cap, cap, 1.0f));
  return make_float2(p, ds);
}

/* The same for all pairs of a thread: x becomes weights, y gradients. Through shared memory, so that the code is there
   once. */
template <int mode>
MLKI_CUDA_DEVICE void mlki_cuda_at_pair_values(const mlki_cuda_at_grad &d, const mlki_cuda_at_grad_task &k, int step,
                                               float *shared, float (*x)[8], float (*y)[8]) {
  const int lane = (int)threadIdx.x % 32;
  float *mine = shared + threadIdx.x;
#pragma unroll 1
  for (int r = 0; r < 8; r++) {
    const int item = k.first + (int)threadIdx.x / 32 * 8 + r;
    mlki_cuda_at_row_out<8>(x, r, mine), mlki_cuda_at_row_out<8>(y, r, mine + 8 * MLKI_CUDA_AT_THREADS);
#pragma unroll 1
    for (int i = 0; i < 8; i++) {
      const int other = step + lane + 32 * i;
      float2 v = make_float2(0.0f, 0.0f);
      if (item < k.items && other < k.others)
        v = mlki_cuda_at_pair_value<mode>(d, k, mode == MLKI_CUDA_GRAD_KEYS ? other : item,
                                          mode == MLKI_CUDA_GRAD_KEYS ? item : other, mine[i * MLKI_CUDA_AT_THREADS],
                                          mine[(8 + i) * MLKI_CUDA_AT_THREADS]);
      mine[i * MLKI_CUDA_AT_THREADS] = v.x, mine[(8 + i) * MLKI_CUDA_AT_THREADS] = v.y;
    }
    mlki_cuda_at_row_in<8>(x, r, mine), mlki_cuda_at_row_in<8>(y, r, mine + 8 * MLKI_CUDA_AT_THREADS);
  }
}

/* Where item or other number n of a task has its row of an operand; NULL: there is none. */
template <bool keys>
MLKI_CUDA_DEVICE char *mlki_cuda_at_place(const mlki_cuda_attend &a, const mlki_cuda_at_grad_task &k,
                                          const mlki_cuda_at_operand &o, int n, int count) {
  if (n >= count) return NULL;
  return keys ? (char *)mlki_cuda_at_key(a, k.q, o, k.g, n) : mlki_cuda_at_row(a, k.q, o, k.g, n);
}

/* Rows of a slab of what the chains multiply by: 16 others, elements from e0 on; what is not finite is 0. */
template <int EV, bool keys>
MLKI_CUDA_DEVICE void mlki_cuda_at_others_load(const mlki_cuda_attend &a, const mlki_cuda_at_grad_task &k,
                                               const mlki_cuda_at_operand &o, float scale, int n, int e0, int width,
                                               float4 *x) {
#pragma unroll
  for (int c = 0; c < mlki_cuda_at_values<EV>::loads; c++) {
    const int at = (int)threadIdx.x + c * MLKI_CUDA_AT_THREADS;
    const char *row = mlki_cuda_at_place<keys>(a, k, o, n + at / (8 * EV), k.others);
    x[c] = mlki_cuda_at_scaled(scale, mlki_cuda_at_fetch(o, row, e0 + at % (8 * EV) * 4, width));
    mlki_cuda_at_clean(&x[c]);
  }
}

/* o = the chains, from begin or from zero, over the step's others of weights w times elements e0 .. of rows of from. */
template <int EV, bool keys>
MLKI_CUDA_DEVICE void mlki_cuda_at_grad_chains(const mlki_cuda_attend &a, const mlki_cuda_at_grad_task &k,
                                               const mlki_cuda_at_operand &from, float scale, int width, int step,
                                               int e0, float *shared, const float (*w)[8], float (*o)[EV]) {
  typedef mlki_cuda_at_values<EV> V;
  const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
  const int rest = k.others - step < MLKI_CUDA_GRAD_STEP ? k.others - step : MLKI_CUDA_GRAD_STEP;
  const int end = (rest + MLKI_CUDA_AT_SLAB - 1) / MLKI_CUDA_AT_SLAB;
  float *weights = shared + 2 * V::slab_floats + warp * 2 * 128 * 4;
  float4 ahead[V::loads];
  __syncthreads();
#pragma unroll 1
  for (int n = -1; n < end; n++) { /* round -1 only brings slab 0 */
    const float *slab = shared + (n & 1) * V::slab_floats + EV * lane;
    const float4 *p = (const float4 *)(const void *)weights + n % 8 * MLKI_CUDA_AT_SLAB;
    if (n >= 0 && n % 8 == 0) mlki_cuda_at_weights_out<8>(w, n / 8, weights);
    if (n + 1 < end)
      mlki_cuda_at_others_load<EV, keys>(a, k, from, scale, step + (n + 1) * MLKI_CUDA_AT_SLAB, e0, width, ahead);
    if (n >= 0 && k.first + 8 * warp < k.items)
#pragma unroll 2
      for (int j = 0; j < MLKI_CUDA_AT_SLAB; j++) mlki_cuda_at_outer<EV>(p[j], p[128 + j], slab + j * V::width, o);
    if (n + 1 < end)
#pragma unroll
      for (int c = 0; c < V::loads; c++)
        ((float4 *)(void *)(shared +
                            (~n & 1) * V::slab_floats))[(int)threadIdx.x + c * MLKI_CUDA_AT_THREADS] = ahead[c];
    __syncthreads();
  }
}

/* A step's terms of all elements of one result: chains go on from the step before where open, and are added to the
   totals where it closes. */
template <int EV, bool keys>
MLKI_CUDA_DEVICE void mlki_cuda_at_grad_sums(const mlki_cuda_attend &a, const mlki_cuda_at_grad_task &k,
                                             const mlki_cuda_at_operand &from, float scale, int width, int step,
                                             bool open, bool close, float *chain, float *total, float *shared,
                                             const float (*w)[8]) {
  for (int e0 = 0; e0 < width; e0 += 32 * EV) {
    const int64_t at = (int64_t)(e0 / (32 * EV)) * 8 * EV * MLKI_CUDA_AT_THREADS + threadIdx.x;
    float o[8][EV];
#pragma unroll
    for (int i = 0; i < 8 * EV; i++) o[i / EV][i % EV] = open ? chain[at + i * MLKI_CUDA_AT_THREADS] : 0.0f;
    mlki_cuda_at_grad_chains<EV, keys>(a, k, from, scale, width, step, e0, shared, w, o);
#pragma unroll
    for (int i = 0; i < 8 * EV; i++)
      if (close)
        total[at + i * MLKI_CUDA_AT_THREADS] = mlki_cuda_add(total[at + i * MLKI_CUDA_AT_THREADS], o[i / EV][i % EV]);
      else
        chain[at + i * MLKI_CUDA_AT_THREADS] = o[i / EV][i % EV];
  }
}

/* Totals start from zero, and go, times scale, to the items' rows of an output. */
template <int EV> MLKI_CUDA_DEVICE void mlki_cuda_at_grad_clear(int width, float *total) {
  for (int e0 = 0; e0 < width; e0 += 32 * EV)
#pragma unroll
    for (int i = 0; i < 8 * EV; i++)
      total[((int64_t)(e0 / (32 * EV)) * 8 * EV + i) * MLKI_CUDA_AT_THREADS + threadIdx.x] = 0.0f;
}

template <int EV, bool keys>
MLKI_CUDA_DEVICE void mlki_cuda_at_grad_write(const mlki_cuda_attend &a, const mlki_cuda_at_grad_task &k,
                                              const mlki_cuda_at_operand &to, float scale, int width, int count,
                                              const float *total) {
  const int lane = (int)threadIdx.x % 32, item0 = k.first + (int)threadIdx.x / 32 * 8;
  for (int e0 = 0; e0 < width; e0 += 32 * EV) {
    float x[8][EV];
#pragma unroll
    for (int i = 0; i < 8 * EV; i++)
      x[i / EV][i % EV] = mlki_cuda_mul(
          scale, total[((int64_t)(e0 / (32 * EV)) * 8 * EV + i) * MLKI_CUDA_AT_THREADS + threadIdx.x]);
#pragma unroll 1
    for (int r = 0; r < 8; r++, mlki_cuda_at_shift<EV>(x)) {
      char *row = mlki_cuda_at_place<keys>(a, k, to, item0 + r, count);
      if (row) mlki_cuda_at_put<EV>(to, row, e0 + EV * lane, width, x[0]);
    }
  }
}

/* Does any of the task's rows see any of the keys of a step? */
template <int mode>
MLKI_CUDA_DEVICE bool mlki_cuda_at_grad_seen(const mlki_cuda_attend &a, const mlki_cuda_at_grad_task &k, int step) {
  if (mode != MLKI_CUDA_GRAD_KEYS) return step < k.to && step + MLKI_CUDA_GRAD_STEP > k.from;
  const int last = step + MLKI_CUDA_GRAD_STEP < k.others ? step + MLKI_CUDA_GRAD_STEP - 1 : k.others - 1;
  int low, high, skip;
  mlki_cuda_at_seen(a, k.q, step / a.group, &low, &skip);
  mlki_cuda_at_seen(a, k.q, last / a.group, &skip, &high);
  return low < k.first + MLKI_CUDA_AT_ROWS && high > k.first;
}

/* Weights p and gradients y of the task's items and a step's others. */
template <int mode>
MLKI_CUDA_DEVICE void mlki_cuda_at_grad_make(const mlki_cuda_at_grad &d, const mlki_cuda_at_grad_task &k, int step,
                                             float *shared, float (*p)[8], float (*y)[8]) {
  const mlki_cuda_attend &a = d.a;
  const int t = (int)threadIdx.x, item = t < 2 * MLKI_CUDA_AT_ROWS ? k.first + t / 2 : k.items;
  const int other = step + mlki_cuda_at_key_of(t);
  const bool busy = k.first + t / 32 * 8 < k.items;
  float *totals = d.totals ? d.totals + (int64_t)blockIdx.x * MLKI_CUDA_AT_ROWS * MLKI_CUDA_GRAD_STEP : NULL;
  constexpr bool keys = mode == MLKI_CUDA_GRAD_KEYS;
  const mlki_cuda_at_operand &i0 = keys ? a.k : a.q, &o0 = keys ? a.q : a.k;
  const mlki_cuda_at_operand &i1 = keys ? a.v : d.dout, &o1 = keys ? d.dout : a.v;
  mlki_cuda_at_pairs(i0, mlki_cuda_at_place<keys>(a, k, i0, item, k.items), keys ? 1.0f : a.scale, o0,
                     mlki_cuda_at_place<!keys>(a, k, o0, other, k.others), keys ? a.scale : 1.0f, a.d, busy, shared,
                     totals, p);
  mlki_cuda_at_pairs(i1, mlki_cuda_at_place<keys>(a, k, i1, item, k.items), 1.0f, o1,
                     mlki_cuda_at_place<!keys>(a, k, o1, other, k.others), 1.0f, a.e, busy, shared, totals, y);
  mlki_cuda_at_pair_values<mode>(d, k, step, shared, p, y);
}

/* All steps of a task. */
template <int mode, int EV>
MLKI_CUDA_DEVICE void mlki_cuda_at_grad_run(const mlki_cuda_at_grad &d, const mlki_cuda_at_grad_task &k) {
  const mlki_cuda_attend &a = d.a;
  const int64_t dw = (int64_t)(a.d + 32 * EV - 1) / (32 * EV) * 8 * EV * MLKI_CUDA_AT_THREADS;
  const int64_t ew = (int64_t)(a.e + 32 * EV - 1) / (32 * EV) * 8 * EV * MLKI_CUDA_AT_THREADS;
  float *shared = (float *)(void *)mlki_cuda_shared(), *chain = d.state + 2 * (dw + ew) * blockIdx.x;
  float *chain_v = chain + dw, *total = chain + dw + ew, *total_v = total + dw;
  mlki_cuda_at_grad_clear<EV>(a.d, total), mlki_cuda_at_grad_clear<EV>(a.e, total_v);
  for (int first = 0; first < k.others; first += MLKI_CUDA_GRAD_CHAIN) {
    const bool seen[2] = {mlki_cuda_at_grad_seen<mode>(a, k, first),
                          first + MLKI_CUDA_GRAD_STEP < k.others &&
                              mlki_cuda_at_grad_seen<mode>(a, k, first + MLKI_CUDA_GRAD_STEP)};
#pragma unroll 1
    for (int half = 0; half < 2; half++) {
      const int step = first + half * MLKI_CUDA_GRAD_STEP;
      const bool open = half && seen[0], close = half || !seen[1];
      float p[8][8], ds[8][8];
      if (!(half ? seen[1] : seen[0])) continue;
      mlki_cuda_at_grad_make<mode>(d, k, step, shared, p, ds);
      if (mode == MLKI_CUDA_GRAD_ROWS)
        mlki_cuda_at_grad_sums<EV, true>(a, k, a.k, 1.0f, a.d, step, open, close, chain, total, shared, ds);
      if (mode == MLKI_CUDA_GRAD_KEYS && d.dk.p)
        mlki_cuda_at_grad_sums<EV, false>(a, k, a.q, a.scale, a.d, step, open, close, chain, total, shared, ds);
      if (mode == MLKI_CUDA_GRAD_KEYS && d.dv.p)
        mlki_cuda_at_grad_sums<EV, false>(a, k, d.dout, 1.0f, a.e, step, open, close, chain_v, total_v, shared, p);
    }
  }
  if (mode == MLKI_CUDA_GRAD_ROWS) mlki_cuda_at_grad_write<EV, false>(a, k, d.dq, a.scale, a.d, k.items, total);
  if (mode == MLKI_CUDA_GRAD_KEYS && d.dk.p)
    mlki_cuda_at_grad_write<EV, true>(a, k, d.dk, 1.0f, a.d, a.packed_k ? k.items : d.axis, total);
  if (mode == MLKI_CUDA_GRAD_KEYS && d.dv.p)
    mlki_cuda_at_grad_write<EV, true>(a, k, d.dv, 1.0f, a.e, a.packed_k ? k.items : d.axis, total_v);
}

/* Task: 64 rows or keys of a head. */
template <int mode>
MLKI_CUDA_DEVICE mlki_cuda_at_grad_task mlki_cuda_at_grad_task_of(const mlki_cuda_attend &a, int head, int tile) {
  mlki_cuda_at_grad_task k;
  const mlki_cuda_at_task rows = mlki_cuda_at_task_of(a, head, tile, MLKI_CUDA_AT_ROWS);
  k.q = rows.q, k.g = rows.g, k.first = tile * MLKI_CUDA_AT_ROWS;
  k.items = mode == MLKI_CUDA_GRAD_KEYS ? k.q.t : rows.rows;
  k.others = mode == MLKI_CUDA_GRAD_KEYS ? rows.rows : k.q.t;
  k.from = rows.low, k.to = rows.high;
  return k;
}

template <int mode, int EV>
static __global__ void __launch_bounds__(MLKI_CUDA_AT_THREADS, 1)
    mlki_cuda_at_grad_kernel(const __grid_constant__ mlki_cuda_at_grad d, int tiles, int64_t tasks) {
  __shared__ mlki_cuda_at_grad_task k;
  const int heads = d.a.batch * d.a.groups;
  for (int64_t round = 0; round * gridDim.x < tasks; round++) {
    const int64_t task = round * gridDim.x + ((round & 1) ? gridDim.x - 1 - blockIdx.x : blockIdx.x);
    if (task >= tasks) continue;
    const int tile = (int)(task / heads); /* of keys, the first are seen by most; of rows, the last see most */
    __syncthreads();
    if (threadIdx.x == 0)
      k = mlki_cuda_at_grad_task_of<mode>(d.a, (int)(task % heads),
                                          mode == MLKI_CUDA_GRAD_KEYS ? tile : tiles - 1 - tile);
    __syncthreads();
    if (k.first < (mode == MLKI_CUDA_GRAD_KEYS && !d.a.packed_k ? d.axis : k.items))
      mlki_cuda_at_grad_run<mode, EV>(d, k);
  }
}

/* --- dbias: ds of some blocks of keys waits in the workspace, then each element takes its terms in order --- */

/* Tasks: row tiles fastest, then steps of a block of keys, blocks, key heads, sequences of those at hand. */
static __global__ void __launch_bounds__(MLKI_CUDA_AT_THREADS, 1)
    mlki_cuda_at_ds_kernel(const __grid_constant__ mlki_cuda_at_grad d, int tiles, int tasks) {
  __shared__ mlki_cuda_at_grad_task k;
  for (int task = (int)blockIdx.x; task < tasks; task += (int)gridDim.x) {
    const int tile = task % tiles, half = task / tiles % 2, unit = task / tiles / 2, lane = (int)threadIdx.x % 32;
    const int n = d.n0 + unit % d.nn, g = d.g0 + unit / d.nn % d.ng, b = d.b0 + unit / d.nn / d.ng;
    const int step = n * MLKI_CUDA_GRAD_CHAIN + half * MLKI_CUDA_GRAD_STEP;
    float p[8][8], ds[8][8];
    __syncthreads();
    if (threadIdx.x == 0)
      k = mlki_cuda_at_grad_task_of<MLKI_CUDA_GRAD_DS>(d.a, b * d.a.groups + g, d.r0 / MLKI_CUDA_AT_ROWS + tile);
    __syncthreads();
    if (mlki_cuda_at_grad_seen<MLKI_CUDA_GRAD_DS>(d.a, k, step))
      mlki_cuda_at_grad_make<MLKI_CUDA_GRAD_DS>(d, k, step, (float *)(void *)mlki_cuda_shared(), p, ds);
    else
#pragma unroll
      for (int i = 0; i < 64; i++) ds[i / 8][i % 8] = 0.0f;
#pragma unroll
    for (int r = 0; r < 8; r++) {
      const int row = tile * MLKI_CUDA_AT_ROWS + (int)threadIdx.x / 32 * 8 + r;
      float *to = d.ds + ((int64_t)unit * d.nr + row) * MLKI_CUDA_GRAD_CHAIN + half * MLKI_CUDA_GRAD_STEP + lane;
      if (row < d.nr)
#pragma unroll
        for (int i = 0; i < 8; i++) to[32 * i] = ds[r][i];
    }
  }
}

/* A thread for each element of dbias that what is at hand adds to. */
static __global__ void __launch_bounds__(256)
    mlki_cuda_at_dbias_kernel(const __grid_constant__ mlki_cuda_at_grad d, int64_t count) {
  const mlki_cuda_attend &a = d.a;
  const int64_t *own = d.dbias_stride;
  const int keys0 = d.n0 * MLKI_CUDA_GRAD_CHAIN, rest = a.t - keys0, all = d.nn * MLKI_CUDA_GRAD_CHAIN;
  const int keys = rest < all ? rest : all, i_first = d.r0 / a.group, i_last = (d.r0 + d.nr - 1) / a.group;
  const int is = own[2] ? i_last - i_first + 1 : 1, hs = own[1] ? d.ng * a.group : 1, js = own[3] ? keys : 1;
  const int64_t at = (int64_t)blockIdx.x * 256 + threadIdx.x;
  if (at >= count) return;
  const int j = (int)(at % js), i = (int)(at / js % is), h = (int)(at / js / is % hs), b = (int)(at / js / is / hs);
  const int64_t unit0 = ((int64_t)b * d.ng + (own[1] ? h / a.group : 0)) * d.nn + j / MLKI_CUDA_GRAD_CHAIN;
  const float *ds = d.ds + unit0 * d.nr * MLKI_CUDA_GRAD_CHAIN;
  float *to = d.dbias + (d.b0 + b) * own[0] + ((int64_t)d.g0 * a.group + h) * own[1] + (int64_t)(i_first + i) * own[2] +
              (int64_t)(keys0 + j) * own[3];
  float sum = *to;
  for (int q = own[2] ? i_first + i : i_first; q <= (own[2] ? i_first + i : i_last); q++)
    for (int c = own[1] ? h % a.group : 0; c <= (own[1] ? h % a.group : a.group - 1); c++) {
      const int64_t r = (int64_t)q * a.group + c - d.r0;
      if (r < 0 || r >= d.nr) continue;
      if (own[3])
        sum = mlki_cuda_add(sum, ds[r * MLKI_CUDA_GRAD_CHAIN + j % MLKI_CUDA_GRAD_CHAIN]);
      else
        for (int n = 0; n < keys; n++) sum = mlki_cuda_add(sum, ds[r * MLKI_CUDA_GRAD_CHAIN + n]);
    }
  *to = sum;
}

/* Zeros for dbias. */
static __global__ void __launch_bounds__(256)
    mlki_cuda_at_clear_kernel(const __grid_constant__ mlki_cuda_at_grad d, int64_t count) {
  for (int64_t at = (int64_t)blockIdx.x * 256 + threadIdx.x; at < count; at += (int64_t)gridDim.x * 256) {
    const int64_t *n = d.dbias_size, *s = d.dbias_stride;
    d.dbias[at % n[3] * s[3] + at / n[3] % n[2] * s[2] + at / n[3] / n[2] % n[1] * s[1] +
            at / n[3] / n[2] / n[1] * s[0]] = 0.0f;
  }
}

/* Axes that bias repeats are gone through one after another, the others as many at a time as find room. */
static void mlki_cuda_at_dbias(mlki_cuda_call *call, mlki_cuda_at_grad *d) {
  const mlki_cuda_attend *a = &d->a;
  const int64_t rows = (int64_t)a->s * a->group, blocks = mlki_cuda_ceil_div(a->t, MLKI_CUDA_GRAD_CHAIN);
  const int64_t nr = mlki_cuda_min(rows, MLKI_CUDA_GRAD_BIAS / MLKI_CUDA_GRAD_CHAIN);
  const int64_t cap = mlki_cuda_max(MLKI_CUDA_GRAD_BIAS / (mlki_cuda_max(nr, 1) * MLKI_CUDA_GRAD_CHAIN), 1);
  const int64_t nn = d->dbias_stride[3] ? mlki_cuda_min(blocks, cap) : mlki_cuda_min(blocks, 1);
  const int64_t ng = d->dbias_stride[1] ? mlki_cuda_min(a->groups, mlki_cuda_max(cap / mlki_cuda_max(nn, 1), 1)) : 1;
  const int64_t nb = d->dbias_stride[0] ? mlki_cuda_min(a->batch, mlki_cuda_max(cap / mlki_cuda_max(nn * ng, 1), 1))
                                        : 1;
  const int64_t count = d->dbias_size[0] * d->dbias_size[1] * d->dbias_size[2] * d->dbias_size[3];
  d->ds = mlki_cuda_carve<float>(call, nb * ng * nn * nr * MLKI_CUDA_GRAD_CHAIN);
  mlki_cuda_launch(call, mlki_cuda_min(mlki_cuda_ceil_div(count, 256), MLKI_CUDA_GRID), 256, 0,
                   mlki_cuda_at_clear_kernel, *d, count);
  for (int64_t b = 0; b < a->batch; b += nb)
    for (int64_t g = 0; g < a->groups; g += ng)
      for (int64_t n = 0; n < blocks; n += nn)
        for (int64_t r = 0; r < rows; r += nr) {
          d->b0 = (int)b, d->nb = (int)mlki_cuda_min(nb, a->batch - b), d->g0 = (int)g;
          d->ng = (int)mlki_cuda_min(ng, a->groups - g), d->n0 = (int)n, d->nn = (int)mlki_cuda_min(nn, blocks - n);
          d->r0 = (int)r, d->nr = (int)mlki_cuda_min(nr, rows - r);
          const int tiles = (int)mlki_cuda_ceil_div(d->nr, MLKI_CUDA_AT_ROWS);
          const int64_t keys = mlki_cuda_min((int64_t)d->nn * MLKI_CUDA_GRAD_CHAIN, a->t - n * MLKI_CUDA_GRAD_CHAIN);
          const int64_t is = (r + d->nr - 1) / a->group - r / a->group + 1;
          const int64_t elements = (d->dbias_stride[0] ? d->nb : 1) * (d->dbias_stride[1] ? d->ng * a->group : 1) *
                                   (d->dbias_stride[2] ? is : 1) * (d->dbias_stride[3] ? keys : 1);
          const int64_t tasks = (int64_t)tiles * 2 * d->nb * d->ng * d->nn;
          mlki_cuda_launch(call, mlki_cuda_min(tasks, 4 * call->device->sms), MLKI_CUDA_AT_THREADS,
                           2 * MLKI_CUDA_GRAD_SLAB * sizeof(float), mlki_cuda_at_ds_kernel, *d, tiles, (int)tasks);
          mlki_cuda_launch(call, mlki_cuda_ceil_div(elements, 256), 256, 0, mlki_cuda_at_dbias_kernel, *d, elements);
        }
}

/* dq, or dk and dv, of all heads. */
template <int mode, int EV> static void mlki_cuda_at_grad_launch(mlki_cuda_call *call, mlki_cuda_at_grad d) {
  const int64_t heads = (int64_t)d.a.batch * d.a.groups;
  const int64_t items = mode == MLKI_CUDA_GRAD_KEYS ? d.a.packed_k ? d.a.t : d.axis : (int64_t)d.a.s * d.a.group;
  const int64_t tiles = mlki_cuda_ceil_div(items, MLKI_CUDA_AT_ROWS), tasks = heads * tiles;
  mlki_cuda_launch(call, mlki_cuda_min(tasks, call->device->sms), MLKI_CUDA_AT_THREADS,
                   mlki_cuda_at_values<EV>::shared_bytes, mlki_cuda_at_grad_kernel<mode, EV>, d, (int)tiles, tasks);
}

/* >>cuda_attention_grad_mma -----------------------------------------------------------------------------------------
   Two kernels of one shape, of 4 warps with 16 MT items each. One has rows and goes through keys, for dq; the other has
   keys and goes through rows, for dk and dv. Both make scores and products of dout and v again, in registers, where the
   weights and ds, rounded to 16 bits, already are the A operand of the chains. FlashAttention-2 (Dao, 2023,
   arXiv:2307.08691) has one kernel, five products instead of seven, with both brought through shared memory and dq
   added up by atomics in f32. Adding in a fixed order would take S / 64 x T / 128 waits of one block for another, or a
   copy of dq in f32 for each block at work. Here nothing is shared, nothing waits, and the workspace is O(rows). What
   limits mma.sync is shared memory: for five products of 16 x 8 x 16 that count, FlashAttention-2 moves some 1,220
   bytes, this 1,408 at D = 64 and 1,835 at D = 128, which at 128 bytes a cycle bounds an H200 at 1.7 GHz to 420 and 320
   TFLOP/s. Tiles of C others come by cp.async while those before are computed, rows swizzled as in the forward call.
   Registers for sums of D elements decide the rest: MT = 2 halves what is read of others, and does not fit dk and dv at
   D = 128. Two blocks a multiprocessor (sm_90), so that one's exponentials are under the other's products. D = 256
   makes dk and dv in passes of their own. Tasks of a head are neighbours: what they go through is in L2.
   f32 in tf32, as the forward call does it: items are rounded once, others where they lie, by the thread that brought
   them. For five products of 16 x 8 x 8 that is 1,664 bytes at D = 64, and 3,328 at D = 128, where 16 others at a time
   leave room for two blocks on sm_90, and for one where a block has 99 KiB (sm_86, 89, 120): 177 and 88 TFLOP/s on that
   H200, whose f32 multiply-adds end at 41. D = 256 would take 192 KiB, sm_90's, for eight products of MT = 1: 72.
   Bounds: docs/numerics.md. */

typedef enum mlki_cuda_gtc_mode {
  MLKI_CUDA_GTC_Q = 0, /* items are rows: dq */
  MLKI_CUDA_GTC_KV,    /* items are keys: dk, dv, */
  MLKI_CUDA_GTC_K,     /* dk, */
  MLKI_CUDA_GTC_V      /* dv */
} mlki_cuda_gtc_mode;

template <int dtype, int DP, int MT, int C> struct mlki_cuda_gtc {
  static constexpr int size = dtype == MLK_F32 ? 4 : 2, items = 64 * MT;
  static constexpr int item_bytes = items * DP * size, other_bytes = C * DP * size;
  static constexpr int limits = items > 2 * C ? items : 2 * C;          /* of all items, or of others in two tiles */
  static constexpr int stage_bytes = 4 * MT * C * MLKI_CUDA_TC_THREADS; /* of products, if scores are more than that */
  static constexpr int shared_bytes = 2 * item_bytes + 4 * other_bytes + limits * (int)sizeof(mlki_cuda_gtc_limits);
};

/* How the rows of an operand are found: bytes from one head, and one row, to the next; 16 bytes at a time? */
typedef struct mlki_cuda_gtc_rows {
  uint32_t head, row;
  int wide;
} mlki_cuda_gtc_rows;

typedef struct mlki_cuda_gtc_how {
  mlki_cuda_gtc_rows q, k, v, dout;
  mlki_cuda_divider group;
} mlki_cuda_gtc_how;

static mlki_cuda_gtc_rows mlki_cuda_gtc_rows_of(const mlki_cuda_at_operand *o, int count) {
  const int64_t size = o->dtype == MLK_F32 ? 4 : 2, most = UINT32_MAX / size, head = o->stride[1], row = o->stride[2];
  const bool narrow = head < 0 || head > most || row < 0 || row > most;
  mlki_cuda_gtc_rows r;
  r.head = narrow ? 0 : (uint32_t)(head * size), r.row = narrow ? 0 : (uint32_t)(row * size);
  r.wide = !narrow && mlki_cuda_at_pieces(o, count);
  return r;
}

/* The task at hand, in shared memory. */
typedef struct mlki_cuda_gtc_task {
  mlki_cuda_at_grad_task k;
  const char *rows[2], *keys[2]; /* the first row of the head of q and dout, of k and v */
} mlki_cuda_gtc_task;

/* The rows [*from, *to) of a key head that see any of the keys [first, end). */
MLKI_CUDA_DEVICE void mlki_cuda_gtc_seeing(const mlki_cuda_attend &a, const mlki_cuda_at_sequence &q, int first,
                                           int end, int *from, int *to) {
  const int64_t position = mlki_cuda_at_position(a, q, 0), s = q.s;
  int64_t low = 0, high = s;
  if (a.causal)
    low = first - position; /* the first that stands at first or behind it */
  else if (a.window)
    low = first - a.window + 1 - position;
  if (a.window) high = end + a.window - 1 - position;
  low = low < 0 ? 0 : low > s ? s : low, high = high > s ? s : high < low ? low : high;
  *from = (int)low * a.group, *to = (int)high * a.group;
}

template <int mode, int items, int C>
MLKI_CUDA_DEVICE mlki_cuda_gtc_task mlki_cuda_gtc_task_of(const mlki_cuda_at_grad &d, int head, int tile) {
  const mlki_cuda_attend &a = d.a;
  const mlki_cuda_at_task rows = mlki_cuda_at_task_of(a, head, tile, items);
  mlki_cuda_gtc_task task;
  mlki_cuda_at_grad_task &k = task.k;
  k.q = rows.q, k.g = rows.g, k.first = tile * items;
  if (mode == MLKI_CUDA_GTC_Q) {
    k.items = rows.rows, k.others = k.q.t;
    k.from = rows.low / C * C, k.to = rows.high;
  } else {
    k.items = k.q.t, k.others = rows.rows, k.from = k.to = 0;
    if (k.first < k.items)
      mlki_cuda_gtc_seeing(a, k.q, k.first, k.first + items < k.items ? k.first + items : k.items, &k.from, &k.to);
  }
  task.rows[0] = mlki_cuda_at_row(a, k.q, a.q, k.g, 0), task.rows[1] = mlki_cuda_at_row(a, k.q, d.dout, k.g, 0);
  task.keys[0] = mlki_cuda_at_key(a, k.q, a.k, k.g, 0), task.keys[1] = mlki_cuda_at_key(a, k.q, a.v, k.g, 0);
  return task;
}

/* Brings n rows of q and dout, or keys of k and v, from number first on, those before end, to two tiles. In the loop of
   others, whose instructions a warp of sm_90 issues hardly faster than mma.sync takes its products: so an address is
   one or two multiply-adds of 32 by 32 bits (at D = 64 dk and dv take 569 instructions for 128 products, not 786). */
template <int size, int DP, int n, bool keys>
MLKI_CUDA_DEVICE void mlki_cuda_gtc_bring(const mlki_cuda_at_grad &d, const mlki_cuda_gtc_how &how,
                                          const mlki_cuda_gtc_task &task, int first, int end, char *x, char *y) {
  const mlki_cuda_at_operand &from_x = keys ? d.a.k : d.a.q, &from_y = keys ? d.a.v : d.dout;
  const mlki_cuda_gtc_rows &by_x = keys ? how.k : how.q, &by_y = keys ? how.v : how.dout;
  constexpr int pieces = DP * size / 16, per = MLKI_CUDA_TC_THREADS / pieces;
  static_assert(n % per == 0, "as many pieces for each thread");
  const int c = (int)threadIdx.x % pieces, r0 = (int)threadIdx.x / pieces;
  const char *base_x = (keys ? task.keys : task.rows)[0], *base_y = (keys ? task.keys : task.rows)[1];
  if (by_x.wide && by_y.wide) {
    const bool has_x = 16 / size * c < d.a.d, has_y = 16 / size * c < d.a.e;
#pragma unroll(n / per > 4 ? 2 : 4)
    for (int i = 0; i < n / per; i++) {
      const int r = r0 + i * per, number = first + r < end ? first + r : end - 1;
      uint32_t head = keys ? 0 : (uint32_t)number;
      const uint64_t row = keys ? (uint32_t)number : mlki_cuda_divide(how.group, &head);
      mlki_cuda_cp_async<16>(mlki_cuda_tc_at<size, DP>(x, r, c),
                             base_x + row * by_x.row + (uint64_t)head * by_x.head + 16 * c,
                             first + r < end && has_x ? 16 : 0);
      mlki_cuda_cp_async<16>(mlki_cuda_tc_at<size, DP>(y, r, c),
                             base_y + row * by_y.row + (uint64_t)head * by_y.head + 16 * c,
                             first + r < end && has_y ? 16 : 0);
    }
    return;
  }
#pragma unroll 1
  for (int r = r0; r < n; r += per) {
    const char *at_x = NULL, *at_y = NULL;
    if (first + r < end) {
      uint32_t head = (uint32_t)(first + r);
      const int64_t i = keys ? first + r : (int64_t)mlki_cuda_divide(how.group, &head), h = keys ? 0 : (int64_t)head;
      at_x = base_x + size * (h * from_x.stride[1] + i * from_x.stride[2]);
      at_y = base_y + size * (h * from_y.stride[1] + i * from_y.stride[2]);
    }
    mlki_cuda_tc_bring<size, DP>(from_x, by_x.wide, at_x, r, c, d.a.d, x);
    mlki_cuda_tc_bring<size, DP>(from_y, by_y.wide, at_y, r, c, d.a.e, y);
  }
}

/* Brings what is known of n rows; of those from end on: they see nothing. */
template <int n>
MLKI_CUDA_DEVICE void mlki_cuda_gtc_bring_limits(const mlki_cuda_at_grad &d, const mlki_cuda_gtc_task &task, int first,
                                                 int end, mlki_cuda_gtc_limits *to) {
  const mlki_cuda_gtc_limits *from = d.limits + ((int64_t)task.k.q.b * d.a.groups + task.k.g) * d.a.s * d.a.group +
                                     first;
  const int r = (int)threadIdx.x;
  static_assert(n <= MLKI_CUDA_TC_THREADS, "one for each thread");
  if (r < n) mlki_cuda_cp_async<16>(to + r, first + r < end ? from + r : d.limits, first + r < end ? 16 : 0);
}

/* Has the thread brought elements to a tile of n others that are not finite? With clean they become 0. */
template <int dtype, int DP, int n> MLKI_CUDA_DEVICE int mlki_cuda_gtc_broken(char *tile, bool clean) {
  const int size = dtype == MLK_F32 ? 4 : 2, pieces = DP * size / 16, c = (int)threadIdx.x % pieces;
  const uint32_t exponent = dtype == MLK_F16 ? 0x7c00u : 0x7f80u;
  int broken = 0;
#pragma unroll 1
  for (int r = (int)threadIdx.x / pieces; r < n; r += MLKI_CUDA_TC_THREADS / pieces) {
    uint32_t *at = (uint32_t *)(void *)mlki_cuda_tc_at<size, DP>(tile, r, c);
#pragma unroll 1
    for (int i = 0; i < 4; i++) {
      const uint32_t high = (at[i] >> 16 & exponent) == exponent ? 0u : 0xffff0000u;
      const uint32_t low = size == 4 ? high >> 16 : (at[i] & exponent) == exponent ? 0u : 0xffffu;
      if (low && high) continue;
      broken = 1;
      if (clean) at[i] &= low | high;
    }
  }
  return broken;
}

/* Where a thread's products lie: item m, i and other n, i of s[m][n][i], counted from the thread's first. */
MLKI_CUDA_DEVICE int mlki_cuda_gtc_item(int m, int i) { return 16 * m + i / 2 * 8; }
MLKI_CUDA_DEVICE int mlki_cuda_gtc_other(int n, int i) { return 8 * n + i % 2; }

/* Scores s, times c in powers of two, become weights; 0 of pairs that take no part, if there may be some. limits: of
   rows, from the thread's first on. */
template <bool keys, bool masked, int MT, int N>
MLKI_CUDA_DEVICE void mlki_cuda_gtc_weights(float c, int first_key, const mlki_cuda_gtc_limits *limits,
                                            float (*s)[N][4]) {
#pragma unroll
  for (int m = 0; m < MT; m++)
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int own = mlki_cuda_gtc_item(m, i), o = mlki_cuda_gtc_other(n, i), j = first_key + (keys ? own : o);
        const mlki_cuda_gtc_limits &at = limits[keys ? o : own];
        const float p = mlki_cuda_exp2(mlki_cuda_fma(s[m][n][i], c, -at.lse));
        const bool seen = !masked || (j >= at.low && j < at.high && s[m][n][i] != -INFINITY);
        s[m][n][i] = seen ? p : 0.0f;
      }
}

/* Products t of dout and v become ds; 0 where p is, whatever v holds. */
template <bool keys, bool masked, int MT, int N>
MLKI_CUDA_DEVICE void mlki_cuda_gtc_gradients(const mlki_cuda_gtc_limits *limits, const float (*p)[N][4],
                                              float (*t)[N][4]) {
#pragma unroll
  for (int m = 0; m < MT; m++)
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const float delta = limits[keys ? mlki_cuda_gtc_other(n, i) : mlki_cuda_gtc_item(m, i)].delta;
        const float ds = mlki_cuda_mul(p[m][n][i], mlki_cuda_sub(t[m][n][i], delta));
        t[m][n][i] = masked && p[m][n][i] == 0.0f ? 0.0f : ds;
      }
}

/* A thread's values to shared memory, where a loop finds them that is not unrolled, and back. */
template <int MT, int N> MLKI_CUDA_DEVICE void mlki_cuda_gtc_put(const float (*x)[N][4], float *to) {
#pragma unroll
  for (int i = 0; i < 4 * MT * N; i++) to[i * MLKI_CUDA_TC_THREADS] = x[i / (4 * N)][i / 4 % N][i % 4];
}
template <int MT, int N> MLKI_CUDA_DEVICE void mlki_cuda_gtc_get(const float *from, float (*x)[N][4]) {
#pragma unroll
  for (int i = 0; i < 4 * MT * N; i++) x[i / (4 * N)][i / 4 % N][i % 4] = from[i * MLKI_CUDA_TC_THREADS];
}

/* Where scores are more than products: products s of q and k become weights, t of dout and v become ds. item, other:
   the thread's first. */
template <bool keys, int N>
MLKI_CUDA_DEVICE void mlki_cuda_gtc_pairs(const mlki_cuda_at_grad &d, const mlki_cuda_at_grad_task &k, int item,
                                          int other, const mlki_cuda_gtc_limits *limits, int count, float *s,
                                          float *t) {
#pragma unroll 1
  for (int i = 0; i < count; i++) {
    const int o = mlki_cuda_gtc_other(i / 4 % N, i % 4), own = mlki_cuda_gtc_item(i / (4 * N), i % 4);
    const int row = keys ? other + o : item + own, j = keys ? item + own : other + o;
    const mlki_cuda_gtc_limits at = limits[keys ? o : own];
    float p = 0.0f, ds = 0.0f, cap = 0.0f;
    if (j >= at.low && j < at.high) {
      const float x = mlki_cuda_tc_score(d.a, k.q, k.g, s[i * MLKI_CUDA_TC_THREADS], row, row / d.a.group, j, &cap);
      if (x != -INFINITY) p = mlki_cuda_exp2(mlki_cuda_sub(x, at.lse));
      if (p != 0.0f) ds = mlki_cuda_mul(p, mlki_cuda_sub(t[i * MLKI_CUDA_TC_THREADS], at.delta));
      ds = mlki_cuda_mul(ds, mlki_cuda_fma(-cap, cap, 1.0f));
    }
    s[i * MLKI_CUDA_TC_THREADS] = p, t[i * MLKI_CUDA_TC_THREADS] = ds;
  }
}

/* Sums times scale to the items' rows of an output, by way of shared memory (of the items' operands: nobody reads them
   any more), so that rows are written whole; zeros for keys that are not there. */
template <int DP, int MT, bool keys>
MLKI_CUDA_DEVICE void mlki_cuda_gtc_write(const mlki_cuda_attend &a, const mlki_cuda_at_grad_task &k,
                                          const mlki_cuda_at_operand &to, float scale, int width, int count,
                                          const float (*sum)[DP / 8][4]) {
  const int lane = (int)threadIdx.x % 32, first = (int)threadIdx.x / 32 * 16 * MT + lane / 4;
  float4 *stage = (float4 *)(void *)mlki_cuda_shared();
  __syncthreads();
#pragma unroll
  for (int i = 0; i < MT * DP / 4; i++) { /* four neighbours are swizzled by the row's number as 16-byte pieces are */
    const int m = i / (DP / 4), n = i / 2 % (DP / 8), r = i % 2, own = first + mlki_cuda_gtc_item(m, 2 * r);
    float4 *at = stage + own * (DP / 4) + ((2 * n + lane % 4 / 2) ^ (own & 7));
    *(float2 *)(void *)((float *)(void *)at + lane % 2 * 2) = make_float2(sum[m][n][2 * r], sum[m][n][2 * r + 1]);
  }
  __syncthreads();
#pragma unroll 1
  for (int i = (int)threadIdx.x; i < 16 * MT * DP; i += MLKI_CUDA_TC_THREADS) {
    const int own = i / (DP / 4), piece = i % (DP / 4), e = 4 * piece;
    const float4 x = mlki_cuda_at_scaled(scale, stage[own * (DP / 4) + (piece ^ (own & 7))]);
    const bool there = k.first + own < k.items;
    const float y[4] = {there ? x.x : 0.0f, there ? x.y : 0.0f, there ? x.z : 0.0f, there ? x.w : 0.0f};
    char *row = e < width ? mlki_cuda_at_place<keys>(a, k, to, k.first + own, count) : NULL;
    if (!row) continue;
    if (to.wide && to.dtype == MLK_F16 && e + 4 <= width)
      *(uint2 *)(void *)(row + 2 * e) = make_uint2(mlki_cuda_pack16<MLK_F16>(y[0], y[1]),
                                                   mlki_cuda_pack16<MLK_F16>(y[2], y[3]));
    else if (to.wide && to.dtype == MLK_BF16 && e + 4 <= width)
      *(uint2 *)(void *)(row + 2 * e) = make_uint2(mlki_cuda_pack16<MLK_BF16>(y[0], y[1]),
                                                   mlki_cuda_pack16<MLK_BF16>(y[2], y[3]));
    else
      mlki_cuda_at_put<4>(to, row, e, width, y);
  }
}

/* Does every pair of the task's items and the C others from number at on take part? limits: of the items' rows, or of
   the others. */
template <int mode, int items, int C>
MLKI_CUDA_DEVICE bool mlki_cuda_gtc_whole(const mlki_cuda_attend &a, const mlki_cuda_at_grad_task &k, int at,
                                          const mlki_cuda_gtc_limits *limits) {
  const int end = k.first + items < k.items ? k.first + items : k.items;
  if (!a.plain || at + C > k.others) return false;
  if (mode == MLKI_CUDA_GTC_Q) return limits[end - 1 - k.first].low <= at && limits[0].high >= at + C;
  return limits[C - 1].low <= k.first && limits[0].high >= end;
}

/* Task: 64 MT rows or keys of a head. x: of the task, what the scores are of (q or k) and the other one (dout or v); y:
   the others' likewise. */
template <int dtype, int DP, int MT, int C, int mode>
static __global__ void __launch_bounds__(MLKI_CUDA_TC_THREADS, 2)
    mlki_cuda_grad_tc_kernel(const __grid_constant__ mlki_cuda_at_grad d, const mlki_cuda_gtc_how how, int tiles) {
#if MLKI_CUDA_ARCH >= 750
  typedef mlki_cuda_gtc<dtype, DP, MT, C> G;
  if (MLKI_CUDA_ARCH < 800 &&
      (dtype != MLK_F16 || G::shared_bytes > 64 << 10 || (DP == 64 && MT == 2 && mode == MLKI_CUDA_GTC_KV)))
    return; /* never asked for there */
  constexpr bool keys = mode != MLKI_CUDA_GTC_Q;
  constexpr int N = C / 8;
  __shared__ mlki_cuda_gtc_task task;
  const mlki_cuda_at_grad_task &k = task.k;
  const mlki_cuda_attend &a = d.a;
  char *x0 = (char *)mlki_cuda_shared(), *x1 = x0 + G::item_bytes, *ring = x1 + G::item_bytes;
  mlki_cuda_gtc_limits *limits = (mlki_cuda_gtc_limits *)(void *)(ring + 4 * G::other_bytes);
  float *stage = (float *)(void *)(limits + G::limits) + threadIdx.x, *stage_t = stage + G::stage_bytes / 8;
  const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32, tile = (int)blockIdx.x % tiles;
  if (threadIdx.x == 0)
    task = mlki_cuda_gtc_task_of<mode, G::items, C>(d, (int)blockIdx.x / tiles, keys ? tile : tiles - 1 - tile);
  __syncthreads();
  const int count = keys && !a.packed_k ? d.axis : k.items, item = k.first + warp * 16 * MT + lane / 4;
  if (k.first >= count) return;
  const bool busy = k.first + warp * 16 * MT < k.items;
  const float c = a.plain ? mlki_cuda_mul(a.scale, MLKI_CUDA_LOG2E) : 1.0f;
  float sum_d[MT][DP / 8][4], sum_e[MT][DP / 8][4]; /* dq or dk, and dv */
#pragma unroll
  for (int i = 0; i < MT * DP / 2; i++) sum_d[i / (DP / 2)][i / 4 % (DP / 8)][i % 4] = 0.0f;
#pragma unroll
  for (int i = 0; i < MT * DP / 2; i++) sum_e[i / (DP / 2)][i / 4 % (DP / 8)][i % 4] = 0.0f;
  if (k.from < k.to) {
    mlki_cuda_gtc_bring<G::size, DP, G::items, keys>(d, how, task, k.first, k.items, x0, x1);
    if (!keys) mlki_cuda_gtc_bring_limits<G::items>(d, task, k.first, k.items, limits);
  }
  for (int at = k.from - C, half = 1; at < k.to; at += C, half ^= 1) { /* at first only brings */
    char *y0 = ring + half * 2 * G::other_bytes, *y1 = y0 + G::other_bytes;
    const mlki_cuda_gtc_limits *in = keys ? limits + half * C : limits;
    const mlki_cuda_gtc_limits *mine = in + (keys ? lane % 4 * 2 : warp * 16 * MT + lane / 4);
    const int other = at + lane % 4 * 2;
    float s[MT][N][4], t[MT][N][4];
    mlki_cuda_cp_wait<0>();
    if (dtype == MLK_F32 && at == k.from) mlki_cuda_tc_round<DP>(x0, 2 * G::items);
    if (dtype == MLK_F32 && at >= k.from) mlki_cuda_tc_round<DP>(y0, 2 * C);
    __syncthreads(); /* these others are there, and nobody reads those before them */
    if (at + C < k.to) {
      char *next = ring + (half ^ 1) * 2 * G::other_bytes;
      mlki_cuda_gtc_bring<G::size, DP, C, !keys>(d, how, task, at + C, k.others, next, next + G::other_bytes);
      if (keys) mlki_cuda_gtc_bring_limits<C>(d, task, at + C, k.others, limits + (half ^ 1) * C);
    }
    mlki_cuda_cp_commit();
    if (at < k.from) continue;
    const bool whole = mlki_cuda_gtc_whole<mode, G::items, C>(a, k, at, in);
    if (busy) {
      mlki_cuda_tc_scores<dtype, DP, MT, N>(mlki_cuda_anew(threadIdx.x), x0, y0, s);
      if (whole)
        mlki_cuda_gtc_weights<keys, false, MT, N>(c, 0, mine, s);
      else if (a.plain)
        mlki_cuda_gtc_weights<keys, true, MT, N>(c, keys ? item : other, mine, s);
      else
        mlki_cuda_gtc_put<MT, N>(s, stage);
      if (mode != MLKI_CUDA_GTC_V) {
        mlki_cuda_tc_scores<dtype, DP, MT, N>(mlki_cuda_anew(threadIdx.x), x1, y1, t);
        if (whole)
          mlki_cuda_gtc_gradients<keys, false, MT, N>(mine, s, t);
        else if (a.plain)
          mlki_cuda_gtc_gradients<keys, true, MT, N>(mine, s, t);
        else
          mlki_cuda_gtc_put<MT, N>(t, stage_t);
      }
      if (!a.plain) {
        mlki_cuda_gtc_pairs<keys, N>(d, k, item, other, mine, 4 * MT * N, stage, stage_t);
        mlki_cuda_gtc_get<MT, N>(stage, s);
        if (mode != MLKI_CUDA_GTC_V) mlki_cuda_gtc_get<MT, N>(stage_t, t);
      }
    }
    if (!whole) {
      int broken = 0;
#pragma unroll 1
      for (int clean = 0; clean < 2; clean++) { /* 0 times what is not finite would not be 0 */
        if (mode != MLKI_CUDA_GTC_V) broken |= mlki_cuda_gtc_broken<dtype, DP, C>(y0, clean);
        if (mode == MLKI_CUDA_GTC_KV || mode == MLKI_CUDA_GTC_V)
          broken |= mlki_cuda_gtc_broken<dtype, DP, C>(y1, clean);
        broken = __syncthreads_or(broken);
        if (!broken) break;
      }
    }
    if (!busy) continue;
    if (mode == MLKI_CUDA_GTC_KV || mode == MLKI_CUDA_GTC_V)
      mlki_cuda_tc_values<dtype, DP, MT, N>(mlki_cuda_anew(threadIdx.x), s, y1, sum_e);
    if (mode != MLKI_CUDA_GTC_V) mlki_cuda_tc_values<dtype, DP, MT, N>(mlki_cuda_anew(threadIdx.x), t, y0, sum_d);
  }
  mlki_cuda_cp_wait<0>();
  if (mode == MLKI_CUDA_GTC_Q) mlki_cuda_gtc_write<DP, MT, false>(a, k, d.dq, a.scale, a.d, count, sum_d);
  if (keys && mode != MLKI_CUDA_GTC_V && d.dk.p)
    mlki_cuda_gtc_write<DP, MT, true>(a, k, d.dk, a.scale, a.d, count, sum_d);
  if (keys && mode != MLKI_CUDA_GTC_K && d.dv.p) mlki_cuda_gtc_write<DP, MT, true>(a, k, d.dv, 1.0f, a.e, count, sum_e);
#endif
}

/* Dynamic shared memory of a block: with scores that are more than products, stages for them. */
template <int dtype, int DP, int MT, int C> static int mlki_cuda_gtc_shared(const mlki_cuda_at_grad &d) {
  typedef mlki_cuda_gtc<dtype, DP, MT, C> G;
  return G::shared_bytes + (d.a.plain ? 0 : G::stage_bytes);
}
template <int dtype, int DP, int MT, int C>
static bool mlki_cuda_gtc_room(const mlki_cuda_call *call, const mlki_cuda_at_grad &d) {
  return mlki_cuda_gtc_shared<dtype, DP, MT, C>(d) + (int)sizeof(mlki_cuda_gtc_task) + 64 <= call->device->shared_bytes;
}

template <int dtype, int DP, int MT, int C, int mode>
static void mlki_cuda_gtc_launch(mlki_cuda_call *call, const mlki_cuda_at_grad &d) {
  const int64_t items = mode == MLKI_CUDA_GTC_Q ? (int64_t)d.a.s * d.a.group : d.a.packed_k ? d.a.t : d.axis;
  const int64_t heads = (int64_t)d.a.batch * d.a.groups;
  const int64_t tiles = mlki_cuda_ceil_div(items, mlki_cuda_gtc<dtype, DP, MT, C>::items);
  mlki_cuda_gtc_how how;
  how.q = mlki_cuda_gtc_rows_of(&d.a.q, d.a.d), how.k = mlki_cuda_gtc_rows_of(&d.a.k, d.a.d);
  how.v = mlki_cuda_gtc_rows_of(&d.a.v, d.a.e), how.dout = mlki_cuda_gtc_rows_of(&d.dout, d.a.e);
  how.group = mlki_cuda_divider_of(mlki_cuda_max(d.a.group, 1));
  mlki_cuda_launch(call, heads * tiles, MLKI_CUDA_TC_THREADS, (size_t)mlki_cuda_gtc_shared<dtype, DP, MT, C>(d),
                   mlki_cuda_grad_tc_kernel<dtype, DP, MT, C, mode>, d, how, (int)tiles);
}

/* Are the operands and the device such that tensor cores make dq, dk and dv? */
static bool mlki_cuda_gtc_fits(const mlki_cuda_call *call, const mlki_cuda_at_grad &d) {
  const int width = d.a.d > d.a.e ? d.a.d : d.a.e;
  if (d.a.q.dtype == MLK_F32) {
    const bool all = d.a.k.dtype == MLK_F32 && d.a.v.dtype == MLK_F32 && d.dout.dtype == MLK_F32;
    if (call->io->numerics != MLK_FAST || call->device->tier < 800 || !all) return false;
    if (call->device->tensor_flops / 2 <= call->device->flops) return false; /* both make seven products */
    if (width <= 64) return mlki_cuda_gtc_room<MLK_F32, 64, 2, 32>(call, d);
    return width <= 128 && mlki_cuda_gtc_room<MLK_F32, 128, 1, 16>(call, d);
  }
  if (d.a.q.dtype == MLK_BF16 && call->device->tier < 800) return false;
  return width <= 128 || (width <= 256 && mlki_cuda_gtc_room<MLK_F16, 256, 1, 16>(call, d));
}

/* dq, dk and dv by tensor cores. Small tiles are for devices, and scores, that leave too little shared memory; before
   sm_80, where a product is two instructions, registers are short too. */
template <int dtype> static void mlki_cuda_gtc_run(mlki_cuda_call *call, const mlki_cuda_at_grad &d) {
  const int width = d.a.d > d.a.e ? d.a.d : d.a.e;
  const bool dkv = d.dk.p || d.dv.p;
  call->io->variant = "mma";
  call->work = 1.4 * (double)call->io->flops / call->device->tensor_flops; /* 7 products, of which 5 count */
  if (width <= 64 && mlki_cuda_gtc_room<dtype, 64, 2, 32>(call, d)) {
    if (d.dq.p) mlki_cuda_gtc_launch<dtype, 64, 2, 32, MLKI_CUDA_GTC_Q>(call, d);
    if (dkv && call->device->tier >= 800) mlki_cuda_gtc_launch<dtype, 64, 2, 32, MLKI_CUDA_GTC_KV>(call, d);
    if (dkv && call->device->tier < 800) mlki_cuda_gtc_launch<MLK_F16, 64, 1, 32, MLKI_CUDA_GTC_KV>(call, d);
  } else if (width <= 128 && mlki_cuda_gtc_room<dtype, 128, 2, 32>(call, d) &&
             mlki_cuda_gtc_room<dtype, 128, 1, 48>(call, d)) {
    if (d.dq.p) mlki_cuda_gtc_launch<dtype, 128, 2, 32, MLKI_CUDA_GTC_Q>(call, d);
    if (dkv) mlki_cuda_gtc_launch<dtype, 128, 1, 48, MLKI_CUDA_GTC_KV>(call, d);
  } else if (width <= 128) {
    if (d.dq.p) mlki_cuda_gtc_launch<dtype, 128, 1, 16, MLKI_CUDA_GTC_Q>(call, d);
    if (dkv) mlki_cuda_gtc_launch<dtype, 128, 1, 16, MLKI_CUDA_GTC_KV>(call, d);
  } else {
    if (d.dq.p) mlki_cuda_gtc_launch<dtype, 256, 1, 16, MLKI_CUDA_GTC_Q>(call, d);
    if (d.dk.p) mlki_cuda_gtc_launch<dtype, 256, 1, 16, MLKI_CUDA_GTC_K>(call, d);
    if (d.dv.p) mlki_cuda_gtc_launch<dtype, 256, 1, 16, MLKI_CUDA_GTC_V>(call, d);
  }
}

/* The same of f32 in tf32. */
static void mlki_cuda_gtc_run_tf32(mlki_cuda_call *call, const mlki_cuda_at_grad &d) {
  const bool dkv = d.dk.p || d.dv.p;
  call->io->variant = "tf32";
  call->work = 1.4 * (double)call->io->flops / (call->device->tensor_flops / 2);
  if (d.a.d <= 64 && d.a.e <= 64) {
    if (d.dq.p) mlki_cuda_gtc_launch<MLK_F32, 64, 2, 32, MLKI_CUDA_GTC_Q>(call, d);
    if (dkv) mlki_cuda_gtc_launch<MLK_F32, 64, 2, 32, MLKI_CUDA_GTC_KV>(call, d);
  } else {
    if (d.dq.p) mlki_cuda_gtc_launch<MLK_F32, 128, 1, 16, MLKI_CUDA_GTC_Q>(call, d);
    if (dkv) mlki_cuda_gtc_launch<MLK_F32, 128, 1, 16, MLKI_CUDA_GTC_KV>(call, d);
  }
}

/* dq, dk and dv by multiply-adds in f32. */
static void mlki_cuda_at_grad_tiles(mlki_cuda_call *call, mlki_cuda_at_grad d) {
  const int ev = d.a.d > 64 || d.a.e > 64 ? 4 : 2;
  const int64_t width = 32 * ev;
  call->io->variant = "tiles";
  d.state = mlki_cuda_carve<float>(call, (int64_t)call->device->sms * 2 * MLKI_CUDA_AT_ROWS *
                                             (mlki_cuda_ceil_div(d.a.d, width) + mlki_cuda_ceil_div(d.a.e, width)) *
                                             width);
  if (d.dq.p && ev == 4) mlki_cuda_at_grad_launch<MLKI_CUDA_GRAD_ROWS, 4>(call, d);
  if (d.dq.p && ev == 2) mlki_cuda_at_grad_launch<MLKI_CUDA_GRAD_ROWS, 2>(call, d);
  if ((d.dk.p || d.dv.p) && ev == 4) mlki_cuda_at_grad_launch<MLKI_CUDA_GRAD_KEYS, 4>(call, d);
  if ((d.dk.p || d.dv.p) && ev == 2) mlki_cuda_at_grad_launch<MLKI_CUDA_GRAD_KEYS, 2>(call, d);
}

static mlk_status mlki_cuda_attention_grad(mlki_cuda_call *call, const mlk_attention_grad_desc *desc) {
  const mlki_cuda_view lse = mlki_cuda_view_of(&desc->lse), dbias = mlki_cuda_view_of(&desc->dbias),
                       dsinks = mlki_cuda_view_of(&desc->dsinks);
  mlki_cuda_at_grad d;
  memset(&d, 0, sizeof d);
  const mlk_status status = mlki_cuda_at_inputs(call, &desc->q, &desc->k, &desc->v, NULL, &desc->scores, &d.a);
  if (status) return status;
  d.a.out = mlki_cuda_at_operand_of(&desc->out, 0), d.dout = mlki_cuda_at_operand_of(&desc->dout, 0);
  d.dq = mlki_cuda_at_operand_of(&desc->dq, 0), d.dk = mlki_cuda_at_operand_of(&desc->dk, 0);
  d.dv = mlki_cuda_at_operand_of(&desc->dv, 0);
  d.a.lse = (float *)(void *)lse.p, d.axis = (int)desc->k.shape[2];
  for (int i = 0; i < 3; i++) d.a.lse_stride[i] = lse.stride[i];
  d.dbias = (float *)(void *)dbias.p, d.dsinks = (float *)(void *)dsinks.p, d.dsinks_step = dsinks.stride[0];
  mlki_cuda_at_repeated(&dbias, d.dbias_stride);
  for (int i = 0; i < 4; i++) d.dbias_size[i] = i < 4 - dbias.rank ? 1 : dbias.size[i - (4 - dbias.rank)];
  mlki_cuda_at_sequences(call, &d.a);
  const int64_t rows = (int64_t)d.a.batch * d.a.groups * d.a.s * d.a.group, sms = call->device->sms;
  const bool tensor = mlki_cuda_gtc_fits(call, d);
  d.info = mlki_cuda_carve<float2>(call, rows);
  if (tensor) d.limits = mlki_cuda_carve<mlki_cuda_gtc_limits>(call, rows);
  if (d.a.d > MLK_SEGMENT || d.a.e > MLK_SEGMENT)
    d.totals = mlki_cuda_carve<float>(call, 4 * sms * MLKI_CUDA_AT_ROWS * MLKI_CUDA_GRAD_STEP);
  mlki_cuda_launch(call, mlki_cuda_ceil_div(rows, 16), 256, 0, mlki_cuda_at_delta_kernel, d, rows);
  if (!tensor)
    mlki_cuda_at_grad_tiles(call, d);
  else if (d.a.q.dtype == MLK_F32)
    mlki_cuda_gtc_run_tf32(call, d);
  else if (d.a.q.dtype == MLK_F16)
    mlki_cuda_gtc_run<MLK_F16>(call, d);
  else
    mlki_cuda_gtc_run<MLK_BF16>(call, d);
  if (d.dbias) mlki_cuda_at_dbias(call, &d);
  if (d.dsinks) mlki_cuda_launch(call, d.a.heads, 32, 0, mlki_cuda_at_dsinks_kernel, d);
  return MLK_OK;
}

#endif /* MLKI_CUDA_ATTENTION */

/* >>cuda_knn -------------------------------------------------------------------------------------------------------
   Answers are defined by the 16-lane distances (NUMERICS), so every key that decides is computed as defined, and the
   bits are the CPU's. A pair's 16 chains lie in four threads, a quad: thread g holds lanes 4 g .. 4 g + 3, so that
   operands come in pieces of 16 bytes.

   A batch of queries keeps its k nearest so far, sorted, and visits the base in chunks:
     1. producers append rows that may enter to a query's buffer: all pairs as defined (tiles, or a scan for few
        queries), or what a matrix product of tensor cores does not exclude (>>cuda_knn_filter)
     2. select: one block a query computes the keys that are missing, sorts the buffer and merges it into the list
   Pairs are not stored; a buffer holds `capacity` entries. Pieces of 32 rows are visited in an order that spreads any
   number of them over the whole base, so after n rows a chunk of m brings about k m / n new ones in whatever order rows
   lie; m is chosen to fill a quarter of the buffer at most. Where more come, the stored ones tighten the query's limit
   and all pairs of that query and chunk are looked at again, at last by select itself in pieces no longer than a
   buffer. Entries reach a buffer in any order, but what leaves select is sorted by (key, id): no result depends on that
   order.

   An entry is key << 32 | row << 1 | negative zero: the key as an integer of the same order, in which -0 is 0, the row
   within a shard of at most 2^31 rows. Lists hold keys and row << 1 | negative zero of the whole base. */
#if defined(MLKI_CUDA_KNN)

#if defined(MLK_CUDA_EMULATOR)            /* small, so that tests go every way */
#define MLKI_CUDA_KNN_SHARD    2048       /* rows */
#define MLKI_CUDA_KNN_CAPACITY 128        /* entries of a buffer, at least */
#define MLKI_CUDA_KNN_SORT     256        /* entries sorted at once, in shared memory */
#define MLKI_CUDA_KNN_SCAN     8          /* queries up to which the base is read straight from memory */
#define MLKI_CUDA_KNN_LISTS    (96 << 10) /* bytes of lists and buffers of a batch, where k allows */
#define MLKI_CUDA_FILTER_LEAST 9          /* queries from which the filter pays */
#define MLKI_CUDA_FILTER_ROWS  384        /* most rows of a chunk as f16: a multiple of the filter's tile */
#else
#define MLKI_CUDA_KNN_SHARD    ((INT64_C(1) << 31) - 32)
#define MLKI_CUDA_KNN_CAPACITY 1024
#define MLKI_CUDA_KNN_SORT     4096
#define MLKI_CUDA_KNN_SCAN     16
#define MLKI_CUDA_KNN_LISTS    (INT64_C(96) << 20)
#define MLKI_CUDA_FILTER_LEAST 17
#define MLKI_CUDA_FILTER_ROWS  65536
#endif
#define MLKI_CUDA_KNN_BATCH  32             /* queries of a batch, at least */
#define MLKI_CUDA_KNN_ROUNDS 3              /* looks at a chunk before the one in pieces */
#define MLKI_CUDA_KNN_NONE   (~(uint64_t)0) /* behind every entry */
#define MLKI_CUDA_KNN_PIECE  32             /* rows that are visited together */

#define MLKI_CUDA_SELECT_THREADS 64 /* that select one of many queries' rows; else those of pairs */
#define MLKI_CUDA_PAIR_THREADS   256
#define MLKI_CUDA_PAIR_Q         64 /* queries of a tile */
#define MLKI_CUDA_PAIR_X         32 /* rows of a tile: a piece */
static_assert(MLKI_CUDA_PAIR_X == MLKI_CUDA_KNN_PIECE && MLKI_CUDA_PAIR_Q == 2 * MLKI_CUDA_PAIR_X,
              "the copies to shared memory count on it");
static_assert((MLKI_CUDA_KNN_SORT & (MLKI_CUDA_KNN_SORT - 1)) == 0, "sorted by halves");

enum { MLKI_CUDA_L2, MLKI_CUDA_IP, MLKI_CUDA_COSINE }; /* what is summed: differences; products; and norms with them */

/* Rows of d elements. whole: rows can be read in pieces of 16 bytes. */
typedef struct mlki_cuda_rows {
  const float *p;
  int64_t rs, cs, d;
  int whole;
} mlki_cuda_rows;

/* Which rows of a shard a launch takes: pieces at .. at + count - 1 of the order p -> p step mod pieces; step and
   pieces have no common factor. */
typedef struct mlki_cuda_visit {
  int64_t first, rows; /* of the shard */
  int64_t pieces, step, at, count;
} mlki_cuda_visit;

/* What the filter multiplies: rows of unit length, depth f16 each, zeros behind d; see the bounds at its head. */
typedef struct mlki_cuda_filter {
  uint16_t *q, *x;                  /* [queries up to a multiple of the tile][depth], [rows][depth] */
  float2 *q_terms;                  /* (scale, limit) of a query */
  float2 *x_terms;                  /* (start, slope) of a row: start scale - limit slope - product > 0 means far */
  unsigned *x_rows;                 /* which of the shard it is; MLKI_CUDA_FILTER_NO_ROW: behind the end */
  float *q_norm;                    /* [queries]: |q - center|^2 for L2, |q| for IP; -1: this query is not filtered */
  float *center;                    /* [d]; NULL but for L2 */
  int depth;                        /* d up to a multiple of the step; 0: no filter */
  int64_t rows;                     /* of a chunk, at most */
  double keep, relative, underflow; /* of the bounds */
  float x_factor;
} mlki_cuda_filter;

typedef struct mlki_cuda_knn {
  mlki_cuda_rows q, x; /* the batch, the base */
  int metric;
  int queries;             /* of the batch */
  int capacity;            /* of a buffer */
  int sort;                /* entries sorted at once: a power of two */
  double growth;           /* a chunk's rows to all before it, at most */
  int64_t kept;            /* entries of a list: min(k, N) */
  uint64_t *found, *spare; /* [queries][capacity]; spare: NULL where capacity <= sort */
  unsigned *counts;        /* [queries]: entries that came, also those that found no room */
  uint32_t *keys;          /* [2][queries][kept], sorted */
  int64_t *tags;           /* [2][queries][kept] */
  int64_t *sizes;          /* [queries]: 2 x entries + which of the two lists */
  uint32_t *limit_key;     /* [queries]: only entries before (limit_key, limit_tag) may enter */
  int64_t *limit_tag;
  int *unfinished; /* [2][queries]: queries whose chunk must be looked at again, by rounds */
  int *listed;     /* [ROUNDS + 1]: how many */
  mlki_cuda_filter filter;
} mlki_cuda_knn;

/* All pairs of queries and rows. */
typedef struct mlki_cuda_pairs {
  mlki_cuda_rows q, x;
  mlki_cuda_visit visit;
  int64_t queries;
  int metric;
  float *out; /* mlk_distances; NULL: mlk_knn */
  int64_t out_rs, out_cs;
  mlki_cuda_knn knn;
  int turn; /* of mlk_knn; after 0: only unfinished queries */
} mlki_cuda_pairs;

static mlki_cuda_rows mlki_cuda_rows_of(const mlk_tensor *t) {
  const mlki_cuda_view v = mlki_cuda_view_of(t);
  mlki_cuda_rows m;
  m.p = (const float *)(const void *)v.p, m.rs = v.stride[0], m.cs = v.stride[1], m.d = v.size[1];
  m.whole = m.cs == 1 && m.rs % 4 == 0 && m.d % 4 == 0 && (uintptr_t)m.p % 16 == 0;
  return m;
}

/* Elements k .. k + 3 of a row, zeros behind its end; k % 4 = 0. */
MLKI_CUDA_DEVICE float4 mlki_cuda_row_4(const mlki_cuda_rows &m, const float *row, int64_t k) {
  float4 v = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  if (m.whole) {
    if (k < m.d) v = *(const float4 *)(const void *)(row + k);
  } else {
    if (k < m.d) v.x = row[k * m.cs];
    if (k + 1 < m.d) v.y = row[(k + 1) * m.cs];
    if (k + 2 < m.d) v.z = row[(k + 2) * m.cs];
    if (k + 3 < m.d) v.w = row[(k + 3) * m.cs];
  }
  return v;
}

/* The row within the shard of a launch's row local; -1: behind the end. */
MLKI_CUDA_DEVICE int64_t mlki_cuda_visited(const mlki_cuda_visit &v, int64_t local) {
  const int64_t piece = local / MLKI_CUDA_KNN_PIECE;
  if (piece >= v.count) return -1;
  const uint64_t place = (uint64_t)(v.at + piece) * (uint64_t)v.step % (uint64_t)v.pieces;
  const int64_t row = (int64_t)place * MLKI_CUDA_KNN_PIECE + local % MLKI_CUDA_KNN_PIECE;
  return row < v.rows ? row : -1;
}

/* acc += the four terms of q and x. */
template <int kind> MLKI_CUDA_DEVICE void mlki_cuda_pair_4(float acc[4], const float4 q, const float4 x) {
  const float a[4] = {q.x, q.y, q.z, q.w}, b[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
  for (int c = 0; c < 4; c++) {
    if (kind == MLKI_CUDA_L2) {
      const float t = mlki_cuda_sub(a[c], b[c]);
      acc[c] = mlki_cuda_fma(t, t, acc[c]);
    } else {
      acc[c] = mlki_cuda_fma(a[c], b[c], acc[c]);
    }
  }
}

/* The last two levels of the tree: lanes c of four, after l + 8 and l + 4. */
MLKI_CUDA_DEVICE float mlki_cuda_sum4(const float t[4]) {
  return mlki_cuda_add(mlki_cuda_add(t[0], t[2]), mlki_cuda_add(t[1], t[3]));
}

/* The sum of a quad's 16 lanes, for each of its threads; the quad: lanes that differ in the bits 1 and 2. */
MLKI_CUDA_DEVICE float mlki_cuda_quad_sum(const float lane[4]) {
  float t[4];
#pragma unroll
  for (int c = 0; c < 4; c++) t[c] = mlki_cuda_add(lane[c], __shfl_xor_sync(MLKI_CUDA_ALL, lane[c], 2));
#pragma unroll
  for (int c = 0; c < 4; c++) t[c] = mlki_cuda_add(t[c], __shfl_xor_sync(MLKI_CUDA_ALL, t[c], 1));
  return mlki_cuda_sum4(t);
}

/* From the sum and the norms to the distance, as mlki_metric_distance of mlk.h. */
template <int kind> MLKI_CUDA_DEVICE float mlki_cuda_distance(int metric, float sum, float norm_q, float norm_x) {
  if (kind == MLKI_CUDA_L2) return metric == MLK_L2 ? mlki_cuda_sqrt(sum) : sum;
  if (kind == MLKI_CUDA_IP) return sum;
  return norm_q == 0.0f || norm_x == 0.0f ? 0.0f : mlki_cuda_div(mlki_cuda_div(sum, norm_q), norm_x);
}

/* key as an integer of the same order; -0 as 0. */
MLKI_CUDA_DEVICE uint32_t mlki_cuda_ordered(float key) {
  const uint32_t bits = __float_as_uint(key);
  return bits == 0x80000000u ? bits : bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
MLKI_CUDA_DEVICE float mlki_cuda_unordered(uint32_t key) {
  return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

/* The entry of a row at a distance; NaN is nobody's neighbour. */
template <int kind> MLKI_CUDA_DEVICE uint64_t mlki_cuda_entry(float distance, int64_t row) {
  const float key = kind == MLKI_CUDA_L2 ? distance : __uint_as_float(__float_as_uint(distance) ^ 0x80000000u);
  if (!(key == key) || row < 0) return MLKI_CUDA_KNN_NONE;
  return (uint64_t)mlki_cuda_ordered(key) << 32 | (uint64_t)row << 1 | (__float_as_uint(key) == 0x80000000u);
}

/* (key, tag) as an entry of the shard that begins at row first: tags before it are 0, so that all rows of the shard
   come after them, tags behind it the largest. */
MLKI_CUDA_DEVICE uint64_t mlki_cuda_relative(uint32_t key, int64_t tag, int64_t first) {
  const int64_t rel = tag - 2 * first;
  return (uint64_t)key << 32 | (rel < 0 ? 0u : rel > 0xffffffff ? 0xffffffffu : (uint32_t)rel);
}

/* Entries at or behind it do not enter. */
MLKI_CUDA_DEVICE uint64_t mlki_cuda_knn_limit(const mlki_cuda_knn &s, int q, int64_t first) {
  return mlki_cuda_relative(s.limit_key[q], s.limit_tag[q], first);
}

/* All 32 lanes offer an entry to query q. */
MLKI_CUDA_DEVICE void mlki_cuda_knn_offer(const mlki_cuda_knn &s, int q, uint64_t limit, uint64_t entry) {
  const unsigned lane = threadIdx.x % MLKI_CUDA_WARP, all = __ballot_sync(MLKI_CUDA_ALL, entry < limit);
  unsigned at = 0;
  if (!all) return;
  if (lane == 0) at = atomicAdd(s.counts + q, (unsigned)__popc(all));
  at = __shfl_sync(MLKI_CUDA_ALL, at, 0) + (unsigned)__popc(all & ((1u << lane) - 1u));
  if (entry < limit && at < (unsigned)s.capacity) s.found[(int64_t)q * s.capacity + at] = entry;
}

/* Before the first round of a chunk: nobody is unfinished. By a kernel that does not look at listed. */
MLKI_CUDA_DEVICE void mlki_cuda_knn_begin(const mlki_cuda_knn &s) {
  if (blockIdx.x == 0 && threadIdx.x <= MLKI_CUDA_KNN_ROUNDS) s.listed[threadIdx.x] = 0;
}

/* >>cuda_pairs -----------------------------------------------------------------------------------------------------
   Tiles of 64 queries x 32 rows. A thread holds 8 x 4 pairs of its warp's 32 x 8, four lanes of each: 128 chains. In a
   warp, lane = 8 g + 2 (query % 4) + row % 2, so that of the loads of 16 bytes neighbours share addresses and no two
   meet in a bank: piece c of row r lies at place c ^ 2 (r % 4). */
typedef struct mlki_cuda_tile {
  float4 q[2][MLKI_CUDA_PAIR_Q][8], x[2][MLKI_CUDA_PAIR_X][8]; /* two steps of 32 elements */
  float sums[MLKI_CUDA_PAIR_Q][MLKI_CUDA_PAIR_X + 1];
  float norm_q[MLKI_CUDA_PAIR_Q], norm_x[MLKI_CUDA_PAIR_X];
} mlki_cuda_tile;

/* Step of 32 elements: 12 pieces of 16 bytes for four threads. */
template <int kind>
MLKI_CUDA_DEVICE void mlki_cuda_tile_step(const mlki_cuda_tile &t, int half, float acc[8][4][4], float norm_q[4],
                                          float norm_x[4]) {
  const int lane = (int)threadIdx.x % MLKI_CUDA_WARP, warp = (int)threadIdx.x / MLKI_CUDA_WARP;
  const int g = lane / 8, q0 = warp % 2 * 32 + lane / 2 % 4, x0 = warp / 2 * 8 + lane % 2;
#pragma unroll 1 /* two at once take more registers than there are */
  for (int group = 0; group < 8; group += 4) {
    float4 x[4];
#pragma unroll
    for (int j = 0; j < 4; j++) x[j] = t.x[half][x0 + 2 * j][(group + g) ^ 2 * ((x0 + 2 * j) % 4)];
#pragma unroll
    for (int i = 0; i < 8; i++) {
      const float4 q = t.q[half][q0 + 4 * i][(group + g) ^ 2 * (q0 % 4)];
#pragma unroll
      for (int j = 0; j < 4; j++) mlki_cuda_pair_4<kind>(acc[i][j], q, x[j]);
    }
    if (kind == MLKI_CUDA_COSINE) {
      const int row = (int)threadIdx.x / 4, c = (group + (int)threadIdx.x % 4) ^ 2 * (row % 4);
      mlki_cuda_pair_4<MLKI_CUDA_IP>(norm_q, t.q[half][row][c], t.q[half][row][c]);
      if (row < MLKI_CUDA_PAIR_X) mlki_cuda_pair_4<MLKI_CUDA_IP>(norm_x, t.x[half][row][c], t.x[half][row][c]);
    }
  }
}

/* The lanes of all pairs to sums: each exchange hands over the half of the pairs that the other thread goes on with. */
MLKI_CUDA_DEVICE void mlki_cuda_tile_sums(mlki_cuda_tile &t, float acc[8][4][4]) {
  const int lane = (int)threadIdx.x % MLKI_CUDA_WARP, warp = (int)threadIdx.x / MLKI_CUDA_WARP;
  const int g = lane / 8, q0 = warp % 2 * 32 + lane / 2 % 4, x0 = warp / 2 * 8 + lane % 2;
#pragma unroll
  for (int half = 4, bit = 2; bit > 0; half /= 2, bit /= 2)
#pragma unroll
    for (int i = 0; i < half; i++)
#pragma unroll
      for (int j = 0; j < 4; j++)
#pragma unroll
        for (int c = 0; c < 4; c++) {
          const float low = acc[i][j][c], high = acc[i + half][j][c];
          const float theirs = __shfl_xor_sync(MLKI_CUDA_ALL, g & bit ? low : high, 8 * bit);
          acc[i][j][c] = mlki_cuda_add(g & bit ? high : low, theirs);
        }
#pragma unroll
  for (int i = 0; i < 2; i++)
#pragma unroll
    for (int j = 0; j < 4; j++)
      t.sums[q0 + 4 * (4 * (g / 2) + 2 * (g % 2) + i)][x0 + 2 * j] = mlki_cuda_sum4(acc[i][j]);
}

/* What becomes of a tile's sums: distances, by rows of whichever axis lies denser in memory, or entries. */
template <int kind>
MLKI_CUDA_DEVICE void mlki_cuda_tile_put(const mlki_cuda_pairs &a, const mlki_cuda_tile &t, int64_t q0, int64_t queries,
                                         int64_t local) {
  const int lane = (int)threadIdx.x % MLKI_CUDA_WARP, warp = (int)threadIdx.x / MLKI_CUDA_WARP;
  if (!a.out) {
    const int64_t row = mlki_cuda_visited(a.visit, local + lane);
    for (int i = warp * 8; i < warp * 8 + 8 && q0 + i < queries; i++) {
      const int q = a.turn ? a.knn.unfinished[a.turn % 2 * a.knn.queries + q0 + i] : (int)(q0 + i);
      const float d = mlki_cuda_distance<kind>(a.metric, t.sums[i][lane], t.norm_q[i], t.norm_x[lane]);
      mlki_cuda_knn_offer(a.knn, q, mlki_cuda_knn_limit(a.knn, q, a.visit.first), mlki_cuda_entry<kind>(d, row));
    }
    return;
  }
  const bool along_rows = (a.out_cs < 0 ? -a.out_cs : a.out_cs) <= (a.out_rs < 0 ? -a.out_rs : a.out_rs);
  for (int at = (int)threadIdx.x; at < MLKI_CUDA_PAIR_Q * MLKI_CUDA_PAIR_X; at += MLKI_CUDA_PAIR_THREADS) {
    const int i = along_rows ? at / MLKI_CUDA_PAIR_X : at % MLKI_CUDA_PAIR_Q,
              j = along_rows ? at % MLKI_CUDA_PAIR_X : at / MLKI_CUDA_PAIR_Q;
    if (q0 + i < queries && local + j < a.visit.rows)
      a.out[(q0 + i) * a.out_rs + (local + j) * a.out_cs] = mlki_cuda_distance<kind>(a.metric, t.sums[i][j],
                                                                                     t.norm_q[i], t.norm_x[j]);
  }
}

/* One tile: thread t copies piece t % 8 of the queries t / 8 and t / 8 + 32 and of the row t / 8, one step ahead. */
template <int kind>
MLKI_CUDA_DEVICE void mlki_cuda_tile_run(const mlki_cuda_pairs &a, mlki_cuda_tile &t, int64_t q0, int64_t queries,
                                         int64_t local) {
  const int line = (int)threadIdx.x / 8, piece = (int)threadIdx.x % 8, place = piece ^ 2 * (line % 4);
  const int64_t row = mlki_cuda_visited(a.visit, local + line), steps = (a.x.d + 31) / 32;
  const float *from[3];
  float4 next[3];
  float acc[8][4][4], norm_q[4] = {0, 0, 0, 0}, norm_x[4] = {0, 0, 0, 0};
#pragma unroll
  for (int i = 0; i < 128; i++) acc[i / 16][i / 4 % 4][i % 4] = 0.0f;
#pragma unroll
  for (int s = 0; s < 2; s++) {
    const int64_t i = q0 + line + 32 * s;
    from[s] = NULL;
    if (i < queries) from[s] = a.q.p + (a.turn ? a.knn.unfinished[a.turn % 2 * a.knn.queries + i] : i) * a.q.rs;
  }
  from[2] = row < 0 ? NULL : a.x.p + (a.visit.first + row) * a.x.rs;
  for (int64_t step = 0; step <= steps; step++) {
    const int64_t k = step * 32 + piece * 4;
    if (step < steps) {
#pragma unroll
      for (int s = 0; s < 3; s++)
        next[s] = from[s] ? mlki_cuda_row_4(s < 2 ? a.q : a.x, from[s], k) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    }
    if (step > 0) mlki_cuda_tile_step<kind>(t, (int)(step - 1) % 2, acc, norm_q, norm_x);
    if (step < steps) {
      t.q[step % 2][line][place] = next[0], t.q[step % 2][line + 32][place] = next[1];
      t.x[step % 2][line][place] = next[2];
    }
    __syncthreads();
  }
  mlki_cuda_tile_sums(t, acc);
  if (kind == MLKI_CUDA_COSINE) {
    const float q_norm = mlki_cuda_sqrt(mlki_cuda_quad_sum(norm_q)),
                x_norm = mlki_cuda_sqrt(mlki_cuda_quad_sum(norm_x));
    if (threadIdx.x % 4 == 0) t.norm_q[threadIdx.x / 4] = q_norm;
    if (threadIdx.x % 4 == 0 && threadIdx.x / 4 < MLKI_CUDA_PAIR_X) t.norm_x[threadIdx.x / 4] = x_norm;
  }
  __syncthreads();
  mlki_cuda_tile_put<kind>(a, t, q0, queries, local);
  __syncthreads();
}

/* All pairs by tiles, those of one piece of rows together, so that rows come from memory once. */
template <int kind>
static __global__ void __launch_bounds__(MLKI_CUDA_PAIR_THREADS, 1) mlki_cuda_tile_kernel(const mlki_cuda_pairs a) {
  __shared__ mlki_cuda_tile tile;
  const int64_t queries = a.turn ? a.knn.listed[a.turn] : a.queries;
  const int64_t across = (queries + MLKI_CUDA_PAIR_Q - 1) / MLKI_CUDA_PAIR_Q, tiles = across * a.visit.count;
  if (!a.out && !a.turn) mlki_cuda_knn_begin(a.knn);
  for (int64_t i = blockIdx.x; i < tiles; i += gridDim.x)
    mlki_cuda_tile_run<kind>(a, tile, i % across * MLKI_CUDA_PAIR_Q, queries, i / across * MLKI_CUDA_PAIR_X);
}

/* The sums of four rows' lanes; thread g of the quad gets that of row g. */
MLKI_CUDA_DEVICE float mlki_cuda_scan_sum(const float acc[4][4]) {
  const int g = (int)threadIdx.x % 4;
  float two[2][4], one[4];
#pragma unroll
  for (int j = 0; j < 2; j++)
#pragma unroll
    for (int c = 0; c < 4; c++) {
      const float theirs = __shfl_xor_sync(MLKI_CUDA_ALL, g & 2 ? acc[j][c] : acc[j + 2][c], 2);
      two[j][c] = mlki_cuda_add(g & 2 ? acc[j + 2][c] : acc[j][c], theirs);
    }
#pragma unroll
  for (int c = 0; c < 4; c++) {
    const float theirs = __shfl_xor_sync(MLKI_CUDA_ALL, g & 1 ? two[0][c] : two[1][c], 1);
    one[c] = mlki_cuda_add(g & 1 ? two[1][c] : two[0][c], theirs);
  }
  return mlki_cuda_sum4(one);
}

/* Few queries: a quad takes four rows, 64 apart, and width queries, straight from memory; thread g ends with row g. */
template <int kind, int width>
MLKI_CUDA_DEVICE void mlki_cuda_scan_run(const mlki_cuda_pairs &a, int64_t q0, int64_t local) {
  const int g = (int)threadIdx.x % 4, quad = (int)threadIdx.x / 4;
  const float *x[4], *q[width];
  float acc[width][4][4], norm_q[width][4], norm_x[4][4], own_norm = 0.0f;
#pragma unroll
  for (int j = 0; j < 4; j++) {
    const int64_t row = mlki_cuda_visited(a.visit, local + quad + 64 * j);
    x[j] = row < 0 ? NULL : a.x.p + (a.visit.first + row) * a.x.rs;
  }
#pragma unroll
  for (int i = 0; i < width; i++) q[i] = a.q.p + (q0 + i < a.queries ? q0 + i : a.queries - 1) * a.q.rs;
#pragma unroll
  for (int c = 0; c < 4; c++)
#pragma unroll
    for (int j = 0; j < 4; j++) {
      norm_x[j][c] = 0.0f;
#pragma unroll
      for (int i = 0; i < width; i++) acc[i][j][c] = norm_q[i][c] = 0.0f;
    }
  for (int64_t k = 4 * g; k < (a.x.d + 15) / 16 * 16; k += 16) {
    float4 xv[4];
#pragma unroll
    for (int j = 0; j < 4; j++) {
      xv[j] = x[j] ? mlki_cuda_row_4(a.x, x[j], k) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      if (kind == MLKI_CUDA_COSINE) mlki_cuda_pair_4<MLKI_CUDA_IP>(norm_x[j], xv[j], xv[j]);
    }
#pragma unroll
    for (int i = 0; i < width; i++) {
      const float4 qv = mlki_cuda_row_4(a.q, q[i], k);
      if (kind == MLKI_CUDA_COSINE) mlki_cuda_pair_4<MLKI_CUDA_IP>(norm_q[i], qv, qv);
#pragma unroll
      for (int j = 0; j < 4; j++) mlki_cuda_pair_4<kind>(acc[i][j], qv, xv[j]);
    }
  }
  const int64_t row = mlki_cuda_visited(a.visit, local + quad + 64 * g);
  if (kind == MLKI_CUDA_COSINE) own_norm = mlki_cuda_sqrt(mlki_cuda_scan_sum(norm_x));
#pragma unroll
  for (int i = 0; i < width; i++) {
    const float norm = kind == MLKI_CUDA_COSINE ? mlki_cuda_sqrt(mlki_cuda_quad_sum(norm_q[i])) : 1.0f;
    const float d = mlki_cuda_distance<kind>(a.metric, mlki_cuda_scan_sum(acc[i]), norm, own_norm);
    if (q0 + i >= a.queries) continue;
    if (!a.out)
      mlki_cuda_knn_offer(a.knn, (int)(q0 + i), mlki_cuda_knn_limit(a.knn, (int)(q0 + i), a.visit.first),
                          mlki_cuda_entry<kind>(d, row));
    else if (row >= 0)
      a.out[(q0 + i) * a.out_rs + row * a.out_cs] = d;
  }
}

template <int kind, int width>
static __global__ void __launch_bounds__(MLKI_CUDA_PAIR_THREADS) mlki_cuda_scan_kernel(const mlki_cuda_pairs a) {
  const int64_t across = (a.queries + width - 1) / width, strips = (a.visit.count + 7) / 8;
  if (!a.out) mlki_cuda_knn_begin(a.knn);
  for (int64_t i = blockIdx.x; i < strips * across; i += gridDim.x)
    mlki_cuda_scan_run<kind, width>(a, i % across * width, i / across * 256);
}

/* The distance of one pair by a quad; x NULL: of nothing. */
template <int kind>
MLKI_CUDA_DEVICE float mlki_cuda_quad_distance(const mlki_cuda_knn &s, const float *q, const float *x) {
  const int64_t end = x ? (s.x.d + 15) / 16 * 16 : 0;
  float acc[4] = {0, 0, 0, 0}, norm_q[4] = {0, 0, 0, 0}, norm_x[4] = {0, 0, 0, 0};
#pragma unroll 4
  for (int64_t k = threadIdx.x % 4 * 4; k < end; k += 16) {
    const float4 qv = mlki_cuda_row_4(s.q, q, k), xv = mlki_cuda_row_4(s.x, x, k);
    mlki_cuda_pair_4<kind>(acc, qv, xv);
    if (kind != MLKI_CUDA_COSINE) continue;
    mlki_cuda_pair_4<MLKI_CUDA_IP>(norm_q, qv, qv);
    mlki_cuda_pair_4<MLKI_CUDA_IP>(norm_x, xv, xv);
  }
  const float sum = mlki_cuda_quad_sum(acc);
  if (kind != MLKI_CUDA_COSINE) return mlki_cuda_distance<kind>(s.metric, sum, 1.0f, 1.0f);
  const float a = mlki_cuda_sqrt(mlki_cuda_quad_sum(norm_q)), b = mlki_cuda_sqrt(mlki_cuda_quad_sum(norm_x));
  return mlki_cuda_distance<kind>(s.metric, sum, a, b);
}

/* How many of n sorted entries are less than entry; or_equal: or the same. */
MLKI_CUDA_DEVICE int64_t mlki_cuda_rank(const uint64_t *sorted, int64_t n, uint64_t entry, bool or_equal) {
  int64_t low = 0;
  while (n > 0) {
    const int64_t half = n / 2;
    if (sorted[low + half] < entry || (or_equal && sorted[low + half] == entry))
      low += half + 1, n -= half + 1;
    else
      n = half;
  }
  return low;
}

/* How many of a list's n places come before (key, tag). */
MLKI_CUDA_DEVICE int64_t mlki_cuda_list_rank(const uint32_t *keys, const int64_t *tags, int64_t n, uint32_t key,
                                             int64_t tag) {
  int64_t low = 0;
  while (n > 0) {
    const int64_t at = low + n / 2;
    if (keys[at] < key || (keys[at] == key && tags[at] < tag))
      low = at + 1, n -= n / 2 + 1;
    else
      n /= 2;
  }
  return low;
}

/* Sorts n = 2^i entries in shared memory, bitonically, by the whole block; a barrier before and behind. */
MLKI_CUDA_DEVICE void mlki_cuda_sort(uint64_t *v, int n) {
  __syncthreads();
  for (int size = 2; size <= n; size *= 2)
    for (int step = size / 2; step > 0; step /= 2) {
      for (int i = (int)threadIdx.x; i < n / 2; i += (int)blockDim.x) {
        const int low = 2 * i - (i & (step - 1)), high = low + step;
        const uint64_t a = v[low], b = v[high];
        if ((a > b) == !(low & size)) v[low] = b, v[high] = a;
      }
      __syncthreads();
    }
}

MLKI_CUDA_DEVICE int mlki_cuda_power_of_2(int n) {
  int power = 2;
  while (power < n) power *= 2;
  return power;
}

/* count entries of query q to shared memory, padded to slots: as found, or with their keys computed here. */
template <int kind>
MLKI_CUDA_DEVICE void mlki_cuda_knn_load(const mlki_cuda_knn &s, int64_t first, int q, const uint64_t *found, int count,
                                         bool keyed, uint64_t *to, int slots) {
  if (keyed) {
    for (int i = (int)threadIdx.x; i < slots; i += (int)blockDim.x) to[i] = i < count ? found[i] : MLKI_CUDA_KNN_NONE;
    return;
  }
  for (int at = 0; at < slots; at += (int)blockDim.x / 4) {
    const int i = at + (int)threadIdx.x / 4;
    const int64_t row = i < count && found[i] != MLKI_CUDA_KNN_NONE ? (int64_t)(found[i] >> 1) : -1;
    const float d = mlki_cuda_quad_distance<kind>(s, s.q.p + q * s.q.rs,
                                                  row < 0 ? NULL : s.x.p + (first + row) * s.x.rs);
    if (threadIdx.x % 4 == 0 && i < slots) to[i] = mlki_cuda_entry<kind>(d, row);
  }
}

/* One level of merging sorted runs of width entries, by the whole block. */
MLKI_CUDA_DEVICE void mlki_cuda_merge_runs(const uint64_t *from, uint64_t *to, int64_t count, int64_t width) {
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) {
    const int64_t run = i / width, other = (run ^ 1) * width, left = count - other;
    const int64_t length = left < 0 ? 0 : left < width ? left : width;
    to[run / 2 * 2 * width + i % width + mlki_cuda_rank(from + other, length, from[i], run % 2)] = from[i];
  }
  __syncthreads();
}

/* The count entries of query q, sorted: in shared memory where they fit, else in one of its two buffers. */
template <int kind>
MLKI_CUDA_DEVICE const uint64_t *mlki_cuda_knn_sorted(const mlki_cuda_knn &s, int64_t first, int q, int count,
                                                      bool keyed, uint64_t *shared) {
  uint64_t *found = s.found + (int64_t)q * s.capacity, *spare = s.spare + (int64_t)q * s.capacity;
  for (int run = 0; run < count; run += s.sort) {
    const int length = count - run < s.sort ? count - run : s.sort;
    const int slots = count > s.sort ? s.sort : mlki_cuda_power_of_2(count);
    mlki_cuda_knn_load<kind>(s, first, q, found + run, length, keyed, shared, slots);
    mlki_cuda_sort(shared, slots);
    if (count <= s.sort) return shared;
    for (int i = (int)threadIdx.x; i < length; i += (int)blockDim.x) found[run + i] = shared[i];
    __syncthreads();
  }
  for (int64_t width = s.sort; width < count; width *= 2) {
    mlki_cuda_merge_runs(found, spare, count, width);
    uint64_t *const merged = spare;
    spare = found, found = merged;
  }
  return found;
}

/* n_q for L2, from its square: of a zero, which makes all products 0, any length will do. */
MLKI_CUDA_DEVICE float mlki_cuda_filter_length(float norm2) { return norm2 > 0.0f ? mlki_cuda_sqrt(norm2) : 1.0f; }

/* The filter's limit of query q whose place kept - 1 is at key. See the bounds at the head of the filter. */
MLKI_CUDA_DEVICE float mlki_cuda_filter_limit(const mlki_cuda_knn &s, int q, float key) {
  const mlki_cuda_filter &f = s.filter;
  const double norm = (double)f.q_norm[q], k = (double)key;
  double limit = __dadd_rn(k, f.underflow);
  if (norm < 0) return __uint_as_float(0x7f800000u);
  if (s.metric == MLK_INNER_PRODUCT) limit = __ddiv_rn(limit, norm);
  if (s.metric == MLK_L2SQ || s.metric == MLK_L2) {
    const double squared = s.metric == MLK_L2 ? __dmul_rn(__dmul_rn(k, k), 1.0 + 0x1p-22) : k;
    limit = __dadd_rn(__dmul_rn(squared, __dadd_rn(1.0, f.relative)), f.underflow);
    limit = __dadd_rn(limit, -__dmul_rn(f.keep, norm));
    limit = __ddiv_rn(limit, __dmul_rn(2.0, (double)mlki_cuda_filter_length(f.q_norm[q])));
  }
  /* more than the rounding of all this, to f32 at last, and of what is done with it */
  limit = __dadd_rn(limit, __dadd_rn(__dmul_rn(fabs(limit), 0x1p-20), 0x1p-120));
  return limit < 1e38 ? (float)(limit > -1e38 ? limit : -1e38) : __uint_as_float(0x7f800000u);
}

/* n sorted entries, all before the limit, into the list of query q: each goes where its rank in the other says. */
MLKI_CUDA_DEVICE void mlki_cuda_knn_merge(const mlki_cuda_knn &s, int64_t first, int q, const uint64_t *entries,
                                          int64_t n) {
  const int64_t size = s.sizes[q] / 2, which = s.sizes[q] % 2;
  const int64_t here = (which * s.queries + q) * s.kept, there = ((1 - which) * s.queries + q) * s.kept;
  const int64_t merged = size + n < s.kept ? size + n : s.kept;
  for (int64_t i = threadIdx.x; i < size; i += blockDim.x) {
    const uint32_t key = s.keys[here + i];
    const int64_t tag = s.tags[here + i];
    const int64_t at = i + mlki_cuda_rank(entries, n, mlki_cuda_relative(key, tag, first), false);
    if (at < s.kept) s.keys[there + at] = key, s.tags[there + at] = tag;
  }
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
    const uint32_t key = (uint32_t)(entries[i] >> 32);
    const int64_t tag = 2 * first + (int64_t)(entries[i] & 0xffffffffu);
    const int64_t at = i + mlki_cuda_list_rank(s.keys + here, s.tags + here, size, key, tag);
    if (at < s.kept) s.keys[there + at] = key, s.tags[there + at] = tag;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    s.sizes[q] = 2 * merged + 1 - which;
    if (merged == s.kept) {
      s.limit_key[q] = s.keys[there + merged - 1], s.limit_tag[q] = s.tags[there + merged - 1];
      if (s.filter.depth) s.filter.q_terms[q].y = mlki_cuda_filter_limit(s, q, mlki_cuda_unordered(s.limit_key[q]));
    }
  }
  __syncthreads();
}

/* The limit of query q by n sorted entries that are not in its list: what is at place kept - 1 of both together may
   itself still enter. */
MLKI_CUDA_DEVICE void mlki_cuda_knn_tighten(const mlki_cuda_knn &s, int64_t first, int q, const uint64_t *entries,
                                            int64_t n) {
  const int64_t size = s.sizes[q] / 2, here = (s.sizes[q] % 2 * s.queries + q) * s.kept;
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
    const uint32_t key = (uint32_t)(entries[i] >> 32);
    const int64_t tag = 2 * first + (int64_t)(entries[i] & 0xffffffffu);
    if (i + mlki_cuda_list_rank(s.keys + here, s.tags + here, size, key, tag) == s.kept - 1)
      s.limit_key[q] = key, s.limit_tag[q] = tag + 1;
  }
  for (int64_t i = threadIdx.x; i < size; i += blockDim.x)
    if (i + mlki_cuda_rank(entries, n, mlki_cuda_relative(s.keys[here + i], s.tags[here + i], first), false) ==
        s.kept - 1)
      s.limit_key[q] = s.keys[here + i], s.limit_tag[q] = s.tags[here + i] + 1;
}

/* The last way out: rows local .. local + sort - 1 of the chunk into the buffer of query q, as
   if all had been found. */
MLKI_CUDA_DEVICE void mlki_cuda_knn_refill(const mlki_cuda_knn &s, const mlki_cuda_visit &visit, int q, int64_t local) {
  for (int i = (int)threadIdx.x; i < s.sort; i += (int)blockDim.x) {
    const int64_t row = mlki_cuda_visited(visit, local + i);
    s.found[(int64_t)q * s.capacity + i] = row < 0 ? MLKI_CUDA_KNN_NONE : (uint64_t)row << 1;
  }
  __syncthreads();
}

/* A block takes the buffers of queries one after another: all of the batch, or after round 0 the unfinished ones.
   keyed: entries come with their keys. */
template <int kind>
static __global__ void __launch_bounds__(MLKI_CUDA_PAIR_THREADS, 2)
    mlki_cuda_knn_select_kernel(const mlki_cuda_knn s, const mlki_cuda_visit visit, int round, bool keyed) {
  uint64_t *const shared = (uint64_t *)(void *)mlki_cuda_shared();
  const int queries = round ? s.listed[round] : s.queries;
  for (int i = (int)blockIdx.x; i < queries; i += (int)gridDim.x) {
    const int q = round ? s.unfinished[round % 2 * s.queries + i] : i;
    const unsigned count = s.counts[q];
    const bool fits = count <= (unsigned)s.capacity, pieces = !fits && round + 1 == MLKI_CUDA_KNN_ROUNDS;
    const int here = pieces ? s.sort : fits ? (int)count : s.capacity;
    __syncthreads();
    if (threadIdx.x == 0) s.counts[q] = 0;
    if (count == 0) continue;
    for (int64_t local = 0; local < (pieces ? visit.count * MLKI_CUDA_KNN_PIECE : 1); local += s.sort) {
      if (pieces) mlki_cuda_knn_refill(s, visit, q, local);
      const uint64_t *sorted = mlki_cuda_knn_sorted<kind>(s, visit.first, q, here, keyed && !pieces, shared);
      const int64_t n = mlki_cuda_rank(sorted, here, mlki_cuda_knn_limit(s, q, visit.first), false);
      __syncthreads();
      if (n > 0 && (fits || pieces)) mlki_cuda_knn_merge(s, visit.first, q, sorted, n);
      if (!fits && !pieces) mlki_cuda_knn_tighten(s, visit.first, q, sorted, n);
    }
    if (!fits && !pieces && threadIdx.x == 0)
      s.unfinished[(round + 1) % 2 * s.queries + atomicAdd(s.listed + round + 1, 1)] = q;
    __syncthreads();
  }
}

static __global__ void mlki_cuda_knn_start_kernel(const mlki_cuda_knn s) {
  const int q = (int)(blockIdx.x * blockDim.x + threadIdx.x);
  if (q >= s.queries) return;
  s.sizes[q] = 0, s.counts[q] = 0;
  s.limit_key[q] = 0xffffffffu, s.limit_tag[q] = INT64_MAX;
}

/* The batch's lists as rows of the result. */
static __global__ void mlki_cuda_knn_emit_kernel(const mlki_cuda_knn s, int64_t k, int64_t first_id, int64_t *ids,
                                                 int64_t ids_rs, float *distances, int64_t distances_rs) {
  const bool similarity = s.metric == MLK_INNER_PRODUCT || s.metric == MLK_COSINE;
  for (int64_t at = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; at < s.queries * k;
       at += (int64_t)gridDim.x * blockDim.x) {
    const int64_t q = at / k, i = at % k, size = s.sizes[q] / 2;
    const int64_t from = (s.sizes[q] % 2 * s.queries + q) * s.kept + i;
    float key = __uint_as_float(0x7f800000u);
    int64_t id = -1;
    if (i < size) {
      key = s.tags[from] % 2 ? -0.0f : mlki_cuda_unordered(s.keys[from]);
      id = s.tags[from] / 2 + first_id;
    }
    ids[q * ids_rs + i] = id;
    if (distances) distances[q * distances_rs + i] = similarity ? -key : key;
  }
}

/* One of the three kinds, and for a scan one of two widths. */
static void mlki_cuda_pairs_launch(mlki_cuda_call *call, const mlki_cuda_pairs *a) {
  const bool scan = a->queries <= MLKI_CUDA_KNN_SCAN && a->turn == 0, one = a->queries == 1;
  const int kind = a->metric == MLK_COSINE          ? MLKI_CUDA_COSINE
                   : a->metric == MLK_INNER_PRODUCT ? MLKI_CUDA_IP
                                                    : MLKI_CUDA_L2;
  static void (*const tiles[3])(mlki_cuda_pairs) = {mlki_cuda_tile_kernel<MLKI_CUDA_L2>,
                                                    mlki_cuda_tile_kernel<MLKI_CUDA_IP>,
                                                    mlki_cuda_tile_kernel<MLKI_CUDA_COSINE>};
  static void (*const scans[2][3])(mlki_cuda_pairs) = {
      {mlki_cuda_scan_kernel<MLKI_CUDA_L2, 4>, mlki_cuda_scan_kernel<MLKI_CUDA_IP, 4>,
       mlki_cuda_scan_kernel<MLKI_CUDA_COSINE, 4>},
      {mlki_cuda_scan_kernel<MLKI_CUDA_L2, 1>, mlki_cuda_scan_kernel<MLKI_CUDA_IP, 1>,
       mlki_cuda_scan_kernel<MLKI_CUDA_COSINE, 1>}};
  const int64_t across = scan ? mlki_cuda_ceil_div(a->queries, one ? 1 : 4)
                              : mlki_cuda_ceil_div(a->queries, MLKI_CUDA_PAIR_Q);
  const int64_t along = scan ? mlki_cuda_ceil_div(a->visit.count, 8) : a->visit.count;
  const int64_t most = a->turn ? 2 * call->device->sms : MLKI_CUDA_GRID;
  mlki_cuda_launch(call, mlki_cuda_min(along > most / across + 1 ? most : across * along, most), MLKI_CUDA_PAIR_THREADS,
                   0, scan ? scans[one][kind] : tiles[kind], *a);
}

/* A query is a chain of steps that wait, for its count, its rows, its list: where there are many of short lists, small
   blocks, of which nine fit a multiprocessor instead of two. */
static void mlki_cuda_select_launch(mlki_cuda_call *call, const mlki_cuda_pairs *a, bool keyed) {
  const mlki_cuda_knn *s = &a->knn;
  const int64_t blocks = a->turn ? mlki_cuda_min(2 * call->device->sms, s->queries) : s->queries;
  const bool small = blocks > 4 * call->device->sms && s->sort <= MLKI_CUDA_KNN_CAPACITY;
  mlki_cuda_launch(call, mlki_cuda_min(blocks, MLKI_CUDA_GRID),
                   small ? MLKI_CUDA_SELECT_THREADS : MLKI_CUDA_PAIR_THREADS, 8 * (size_t)s->sort,
                   a->metric == MLK_COSINE          ? mlki_cuda_knn_select_kernel<MLKI_CUDA_COSINE>
                   : a->metric == MLK_INNER_PRODUCT ? mlki_cuda_knn_select_kernel<MLKI_CUDA_IP>
                                                    : mlki_cuda_knn_select_kernel<MLKI_CUDA_L2>,
                   *s, a->visit, a->turn, keyed);
}

/* What all pairs as defined take: differences are an operation of their own. */
static double mlki_cuda_pairs_seconds(const mlki_cuda_call *call, int metric) {
  const double sums = (double)call->io->flops / call->device->flops, bytes = (double)call->io->bytes;
  const double both = metric == MLK_L2SQ || metric == MLK_L2 ? 2 * sums : sums;
  return both > bytes / call->device->bandwidth ? both : bytes / call->device->bandwidth;
}

/* mlk_distances: every row once, in order. */
static mlk_status mlki_cuda_distances(mlki_cuda_call *call, const mlk_distances_desc *desc) {
  const mlki_cuda_view out = mlki_cuda_view_of(&desc->out);
  mlki_cuda_pairs a;
  memset(&a, 0, sizeof a);
  a.q = mlki_cuda_rows_of(&desc->queries), a.x = mlki_cuda_rows_of(&desc->base);
  a.queries = desc->queries.shape[0], a.metric = desc->metric;
  a.visit.rows = desc->base.shape[0], a.visit.step = 1;
  a.visit.pieces = a.visit.count = mlki_cuda_ceil_div(a.visit.rows, MLKI_CUDA_KNN_PIECE);
  a.out = (float *)(void *)out.p, a.out_rs = out.stride[0], a.out_cs = out.stride[1];
  call->io->variant = a.queries <= MLKI_CUDA_KNN_SCAN ? "scan" : "tiles";
  call->work = mlki_cuda_pairs_seconds(call, a.metric);
  if (a.queries > 0 && a.visit.rows > 0) mlki_cuda_pairs_launch(call, &a);
  return MLK_OK;
}

/* >>cuda_knn_filter ------------------------------------------------------------------------------------------------
   A matrix product of tensor cores gives each pair a lower bound of its key, as on the CPU (>>knn of mlk.h), from rows
   in f16: eight times as exact as bf16 and as fast. u = 2^-24, g_n = n u (1 + 2^-7), all for d <= 8192.

   Rows. v = x, or fl(x - c) for L2; N = fl(sum v^2), |N - |v|^2| <= g_d |v|^2 in any order of at most d terms;
   n = fl(sqrt(N)), i = fl(1 / n); the row holds r = f16(fl(v i)). Elements are rounded by 2^-11 of themselves or, below
   the normal range, by 2^-25, and | n i - 1 | <= 3 u, so
     | n r - v | <= p |v|,   p = 1.01 (2^-11 + sqrt(d) 2^-25 + 4 u)
   Sums. Tensor cores multiply exactly and add in f32, a few terms at a time, and may cut off what lies below 2^-23 of
   the largest of them and of the sum so far (Fasi et al., "Numerical behavior of NVIDIA tensor cores", 2021): four
   terms and the sum lose at most 5 2^-23 of |r_q| |r_x| a time, more terms at a time less in all. With room to spare
     | acc - r_q r_x | <= e |r_q| |r_x|,   e = (depth + 16) 2^-22
   Both: | n_q n_x acc - v_q v_x | <= h |v_q| |v_x|,   h = 1.02 (2 p + p^2 + e (1 + p)^2).

   L2.  2 |v_q| |v_x| <= N_q + N_x up to g_d, so with keep = 1 - h - g_d - 32 u, of which 5 u are for the rounding of
        x - c and q - c and the rest for the three operations below:
          keep N_x - 2 n_q n_x acc + keep N_q <= |q - x|^2
        A pair is far when keep N_x - 2 n_q n_x acc > L = key (1 + relative) - keep N_q; divided by 2 n_q n_x: when
          (keep n_x) (1 / 2 n_q) - (L / 2 n_q) (1 / n_x) - acc > 0.
   IP.  -x q >= -n_q n_x acc - h |q| |x|, and the defined value is off by at most g_r |q| |x|, r = d / 16 + 8. Divided
        by n_q n_x: far when  -H - (key / n_q) (1 / n_x) - acc > 0,  H = 1.02 (h + g_r + 16 u).
   COSINE. Norms are as exact as sums: far when  -E - key - acc > 0,  E = 1.02 h + (3 d + 64) u 1.02.
   relative and underflow are the CPU's. All in one form of two multiply-adds, whose sign is the answer:
     far when  start_x scale_q - (limit_q slope_x + acc) > 0,
   of a row (keep n_x or -H or -E; 1 / n_x or 1), of a query (1 / 2 n_q or 1; the limit). Its rounding, with that of
   the terms, is at most 8 u of start scale, 3 u of limit slope and 3 u of 1 >= 0.99 |acc|: the first and the last are
   among the 32 u of keep, the 16 u of H and the 64 u of E, for 2 n_q n_x <= N_q + N_x; a limit has 16 u of itself more.

   Rows of zeros have start 0 and slope 1: they are exact. Norms that are NaN or beyond 1e-30 .. 1e37 switch the filter
   off for their row (start -3e38, slope 1e-30; limits are at least -1e38) or query (limit +inf; no slope is 0): such
   pairs get their defined distance. A row with a NaN in it has start 3e38 and the same slope: its distances are NaN,
   but for COSINE's queries of norm 0, which are not filtered. So no sum is NaN. */

#define MLKI_CUDA_FILTER_TILE   128 /* queries and rows of a tile */
#define MLKI_CUDA_FILTER_STEP   32  /* elements: rows of 64 bytes */
#define MLKI_CUDA_FILTER_STAGES 3
#define MLKI_CUDA_FILTER_HALF   (MLKI_CUDA_FILTER_TILE * MLKI_CUDA_FILTER_STEP * 2) /* bytes of one operand's stage */
#define MLKI_CUDA_FILTER_D      8192                                                /* longer rows are not filtered */
#define MLKI_CUDA_FILTER_BYTES  (INT64_C(24) << 20)                                 /* of f16 rows of each operand */
#define MLKI_CUDA_FILTER_CENTER 64                                                  /* rows whose mean is the center */
#define MLKI_CUDA_FILTER_NO_ROW 0xffffffffu
static_assert(MLKI_CUDA_FILTER_ROWS % MLKI_CUDA_FILTER_TILE == 0, "chunks are whole tiles");

/* The mean of some rows; any center is right, a central one filters best. Not finite: 0. */
static __global__ void mlki_cuda_center_kernel(const mlki_cuda_rows x, int64_t rows, float *center) {
  const int64_t k = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  const int64_t some = rows < MLKI_CUDA_FILTER_CENTER ? rows : MLKI_CUDA_FILTER_CENTER;
  float sum = 0.0f;
  if (k >= x.d) return;
  for (int64_t i = 0; i < some; i++)
    sum = mlki_cuda_add(sum, mlki_cuda_div(x.p[rows / some * i * x.rs + k * x.cs], (float)some));
  center[k] = fabsf(sum) <= 3.0e38f ? sum : 0.0f;
}

/* A row by a warp: to f16 of unit length. Gives its squared norm; 0: zeros; -1: out of bounds; -2: NaN in it. */
MLKI_CUDA_DEVICE float mlki_cuda_unit_row(const mlki_cuda_rows &m, const float *row, const mlki_cuda_filter &f,
                                          uint16_t *to) {
  const int lane = (int)threadIdx.x % MLKI_CUDA_WARP;
  float norm2 = 0.0f;
  bool something = false, nan = false;
  for (int k = lane; k < (int)m.d; k += MLKI_CUDA_WARP) {
    const float x = row[k * m.cs], v = f.center ? mlki_cuda_sub(x, f.center[k]) : x;
    norm2 = mlki_cuda_fma(v, v, norm2);
    something = something || v != 0.0f, nan = nan || x != x;
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) norm2 = mlki_cuda_add(norm2, __shfl_xor_sync(MLKI_CUDA_ALL, norm2, step));
  something = __ballot_sync(MLKI_CUDA_ALL, something), nan = __ballot_sync(MLKI_CUDA_ALL, nan);
  const bool usable = norm2 > 1e-30f && norm2 < 1e37f;
  const float scale = usable ? mlki_cuda_div(1.0f, mlki_cuda_sqrt(norm2)) : 0.0f;
  for (int k = 2 * lane; k < f.depth; k += 2 * MLKI_CUDA_WARP) {
    uint32_t pair = 0;
#pragma unroll
    for (int e = 0; e < 2; e++) {
      const float x = usable && k + e < m.d ? row[(k + e) * m.cs] : 0.0f;
      const float v = usable && f.center && k + e < m.d ? mlki_cuda_sub(x, f.center[k + e]) : x;
      pair |= (uint32_t)mlki_cuda_to_f16(mlki_cuda_mul(v, scale)) << 16 * e;
    }
    ((uint32_t *)(void *)to)[k / 2] = pair;
  }
  return nan ? -2.0f : usable ? norm2 : something ? -1.0f : 0.0f;
}

/* Rows of a chunk for the filter, a warp each, whole tiles of them. */
static __global__ void __launch_bounds__(256)
    mlki_cuda_filter_rows_kernel(const mlki_cuda_knn s, const mlki_cuda_visit visit, int64_t rows) {
  const mlki_cuda_filter &f = s.filter;
  const int64_t local = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) / MLKI_CUDA_WARP;
  if (local >= rows) return;
  const int64_t row = mlki_cuda_visited(visit, local);
  mlki_cuda_rows m = s.x;
  if (row < 0) m.d = 0;
  const float norm2 = mlki_cuda_unit_row(m, m.p + (row < 0 ? 0 : visit.first + row) * m.rs, f, f.x + local * f.depth);
  float2 terms = make_float2(0.0f, 1.0f);
  if (norm2 > 0.0f) {
    const float norm = mlki_cuda_sqrt(norm2);
    terms.x = f.center ? mlki_cuda_mul(f.x_factor, norm) : -f.x_factor;
    if (s.metric != MLK_COSINE) terms.y = mlki_cuda_div(1.0f, norm);
  } else if (norm2 < 0.0f) {
    terms = make_float2(norm2 == -2.0f ? 3e38f : -3e38f, 1e-30f);
  }
  if (threadIdx.x % MLKI_CUDA_WARP != 0) return;
  f.x_terms[local] = terms;
  f.x_rows[local] = row < 0 ? MLKI_CUDA_FILTER_NO_ROW : (unsigned)row;
}

/* The same for the queries of a batch. */
static __global__ void __launch_bounds__(256) mlki_cuda_filter_queries_kernel(const mlki_cuda_knn s, int queries) {
  const mlki_cuda_filter &f = s.filter;
  const int q = (int)((blockIdx.x * blockDim.x + threadIdx.x) / MLKI_CUDA_WARP);
  if (q >= queries) return;
  const bool there = q < s.queries;
  mlki_cuda_rows m = s.q;
  if (!there) m.d = 0;
  float norm2 = mlki_cuda_unit_row(m, m.p + (there ? q : 0) * m.rs, f, f.q + (int64_t)q * f.depth);
  if (!f.center && norm2 == 0.0f) norm2 = -1.0f; /* nothing to divide by */
  if (threadIdx.x % MLKI_CUDA_WARP != 0) return;
  f.q_terms[q] = make_float2(f.center ? mlki_cuda_div(0.5f, mlki_cuda_filter_length(norm2)) : 1.0f,
                             there ? __uint_as_float(0x7f800000u) : -1e38f);
  if (there) f.q_norm[q] = norm2 < 0.0f ? -1.0f : f.center ? norm2 : mlki_cuda_sqrt(norm2);
}

/* Bytes into a stage's operand of its row's piece of 16: eight rows of one piece meet in no bank. */
MLKI_CUDA_DEVICE int mlki_cuda_filter_place(int row, int piece) { return row * 64 + (piece ^ row / 2 % 4) * 16; }

MLKI_CUDA_DEVICE void mlki_cuda_filter_copy(const mlki_cuda_filter &f, unsigned char *stage, int64_t q0, int64_t x0,
                                            int k) {
#pragma unroll
  for (int i = 0; i < MLKI_CUDA_FILTER_TILE * 4; i += MLKI_CUDA_PAIR_THREADS) {
    const int row = (i + (int)threadIdx.x) / 4, piece = (int)threadIdx.x % 4,
              place = mlki_cuda_filter_place(row, piece);
    mlki_cuda_cp_async<16>(stage + place, f.q + (q0 + row) * f.depth + k + 8 * piece, 16);
    mlki_cuda_cp_async<16>(stage + MLKI_CUDA_FILTER_HALF + place, f.x + (x0 + row) * f.depth + k + 8 * piece, 16);
  }
}

/* 32 elements of a warp's 64 queries x 32 rows: 4 x 4 tiles of 16 x 8. */
MLKI_CUDA_DEVICE void mlki_cuda_filter_step(const unsigned char *stage, float acc[4][4][4]) {
  const int lane = (int)threadIdx.x % MLKI_CUDA_WARP, warp = (int)threadIdx.x / MLKI_CUDA_WARP;
  const int q0 = warp % 2 * 64 + lane % 16, x0 = warp / 2 * 32 + lane / 16 * 8 + lane % 8;
#pragma unroll
  for (int k = 0; k < 4; k += 2) {
    uint32_t q[4][4], x[2][4];
#pragma unroll
    for (int i = 0; i < 4; i++) mlki_cuda_ldmatrix(q[i], stage + mlki_cuda_filter_place(q0 + 16 * i, k + lane / 16));
#pragma unroll
    for (int j = 0; j < 2; j++)
      mlki_cuda_ldmatrix(x[j], stage + MLKI_CUDA_FILTER_HALF + mlki_cuda_filter_place(x0 + 16 * j, k + lane / 8 % 2));
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
      for (int j = 0; j < 4; j++) mlki_cuda_mma<MLK_F16>(acc[i][j], q[i], x[j / 2] + j % 2 * 2);
  }
}

/* Below 0, in its sign bit: the pair is not far. */
MLKI_CUDA_DEVICE float mlki_cuda_filter_far(const float2 q, const float2 x, float acc) {
  return mlki_cuda_fma(x.x, q.x, mlki_cuda_fma(-q.y, x.y, -acc));
}

/* The pairs of a thread that are not far: their rows into the queries' buffers, without keys. */
MLKI_CUDA_DEVICE void mlki_cuda_filter_put(const mlki_cuda_knn &s, int64_t q_tile, int64_t x_tile,
                                           const float acc[4][4][4]) {
  const mlki_cuda_filter &f = s.filter;
  const int lane = (int)threadIdx.x % MLKI_CUDA_WARP, warp = (int)threadIdx.x / MLKI_CUDA_WARP;
  const int64_t q0 = q_tile + warp % 2 * 64 + lane / 4, x0 = x_tile + warp / 2 * 32 + lane % 4 * 2;
  unsigned near[2] = {0, 0}; /* a bit for each pair, the first ones highest: 32 (i / 4) + 8 (i % 4) + j */
  float4 x[4];
#pragma unroll
  for (int j = 0; j < 4; j++) x[j] = *(const float4 *)(const void *)(f.x_terms + x0 + 8 * j);
#pragma unroll
  for (int i = 0; i < 8; i++) {
    const float2 q = f.q_terms[q0 + 8 * i];
#pragma unroll
    for (int j = 0; j < 8; j++) {
      const float2 row = j % 2 ? make_float2(x[j / 2].z, x[j / 2].w) : make_float2(x[j / 2].x, x[j / 2].y);
      const float t = mlki_cuda_filter_far(q, row, acc[i / 2][j / 2][i % 2 * 2 + j % 2]);
      near[i / 4] = __funnelshift_l(__float_as_uint(t), near[i / 4], 1);
    }
  }
  for (uint64_t left = (uint64_t)near[0] << 32 | near[1]; left;) {
    const int bit = __clzll((long long)left);
    const int64_t q = q0 + bit / 8 * 8;
    const unsigned row = f.x_rows[x0 + bit % 8 / 2 * 8 + bit % 2];
    left &= ~((uint64_t)1 << (63 - bit));
    if (q >= s.queries || row == MLKI_CUDA_FILTER_NO_ROW) continue;
    const unsigned at = atomicAdd(s.counts + q, 1u);
    if (at < (unsigned)s.capacity) s.found[q * s.capacity + at] = (uint64_t)row << 1;
  }
}

/* A tile of 128 queries x 128 rows of the chunk. */
static __global__ void __launch_bounds__(MLKI_CUDA_PAIR_THREADS, 2)
    mlki_cuda_filter_kernel(const mlki_cuda_knn s, int q_tiles) {
  unsigned char *const stages = mlki_cuda_shared();
  const int steps = s.filter.depth / MLKI_CUDA_FILTER_STEP;
  const int64_t q0 = (int64_t)(blockIdx.x % (unsigned)q_tiles) * MLKI_CUDA_FILTER_TILE,
                x0 = (int64_t)(blockIdx.x / (unsigned)q_tiles) * MLKI_CUDA_FILTER_TILE;
  float acc[4][4][4];
  mlki_cuda_knn_begin(s);
#pragma unroll
  for (int i = 0; i < 64; i++) acc[i / 16][i / 4 % 4][i % 4] = 0.0f;
#pragma unroll
  for (int step = 0; step < MLKI_CUDA_FILTER_STAGES - 1; step++) {
    if (step < steps)
      mlki_cuda_filter_copy(s.filter, stages + 2 * step * MLKI_CUDA_FILTER_HALF, q0, x0, step * MLKI_CUDA_FILTER_STEP);
    mlki_cuda_cp_commit();
  }
  for (int step = 0; step < steps; step++) {
    const int ahead = step + MLKI_CUDA_FILTER_STAGES - 1;
    mlki_cuda_cp_wait<MLKI_CUDA_FILTER_STAGES - 2>();
    __syncthreads();
    if (ahead < steps)
      mlki_cuda_filter_copy(s.filter, stages + 2 * (ahead % MLKI_CUDA_FILTER_STAGES) * MLKI_CUDA_FILTER_HALF, q0, x0,
                            ahead * MLKI_CUDA_FILTER_STEP);
    mlki_cuda_cp_commit();
    mlki_cuda_filter_step(stages + 2 * (step % MLKI_CUDA_FILTER_STAGES) * MLKI_CUDA_FILTER_HALF, acc);
  }
  mlki_cuda_filter_put(s, q0, x0, acc);
}

/* ---- by warpgroups ----

   The same filter from the parts of >>cuda_hopper. A block stays and does tiles of 256 queries x 128 rows: all its
   queries' rows one after the other, then its next queries. Each of two consumers multiplies 128 queries, in two halves
   of 64, by the 128 rows that both share, 64 terms a stage, and looks at its sums where they are, in registers.

   With up to 256 terms (held) the queries lie in shared memory as long as they last, and a stage is 16 KiB of rows; the
   consumers take turns: one multiplies a tile while the other looks at its own, so that the tensor cores go on. Each
   hands over when it has issued its last products, not when they are done. With more terms a stage has the queries'
   64 terms as well, and looking is little against multiplying: no turns.

   Clocks of a multiprocessor for a consumer's tile of 128 x 128: 8 d of the tensor cores, at 4096 operations a clock.
   Looking takes of each of its four warps two multiply-adds and a shift a pair, 128 pairs a thread, 16 loads and some
   15 more: 415 instructions, one a clock. Of shared memory's 128 bytes a clock, products read 96 while they run,
   looking 32 KiB in all: 6 d + 256 clocks. Rows come from the L2 cache at 16 bytes a clock, above 256 terms with the
   queries' at 48, as for matrix products. So by the scarcest: d = 64: 640 for 512, 0.80 of the peak; d = 128: 1024 of
   each; d = 256: tensor cores alone; d = 768: both look at once, at worst 415 after 2 x 6144, 0.97. But for the
   shortest rows it is the tensor cores, and what matrix products reach of their peak, 0.7 to 0.8. Not measured.

   Entries found go to a query's buffer by an atomic add, whose answer is waited for when the next entry comes. */
template <bool held_> struct mlki_cuda_filter_groups {
  static constexpr bool held = held_;
  static constexpr int queries = 256, rows = 128, depth = 64, most = 256;    /* most: of terms, held */
  static constexpr int warps = 8, threads = 384, slots = 4, slot = rows * 8; /* slots: of rows' terms */
  static constexpr int block = rows * depth * 2;                             /* bytes of 128 lines x 64 terms */
  static constexpr int stages = held ? 5 : 4, stage = held ? block : 3 * block, bytes_q = held ? 2 * block * 4 : 0;
  static constexpr int barriers = 2 * stages + 2 * slots + 4;
  static constexpr int shared_bytes = (int)MLKI_CUDA_WGMMA_EIGHT + bytes_q + stages * stage + slots * slot +
                                      barriers * 8;
  static_assert(queries == 2 * rows && shared_bytes <= 227 << 10, "boxes are of 128 lines");
};

/* A block's tiles: number q_tile x_tiles + x_tile, from unit to last. */
typedef struct mlki_cuda_filter_walk {
  unsigned x_tiles, unit, last;
} mlki_cuda_filter_walk;

#if defined(MLKI_CUDA_HOPPER)

/* What the roles of a block share. q_full, q_empty: of the queries that are held; turn: whose it is to multiply. */
template <class T> struct mlki_cuda_filter_shared {
  unsigned char *q, *stages;
  float4 *terms;
  uint64_t *full, *empty, *terms_full, *terms_empty, *q_full, *q_empty, *turn;
  MLKI_CUDA_MEMBER mlki_cuda_filter_shared() {
    unsigned char *p = mlki_cuda_shared();
    p += (0u - mlki_cuda_shared_address(p)) % MLKI_CUDA_WGMMA_EIGHT;
    q = p, stages = q + T::bytes_q;
    terms = (float4 *)(void *)(stages + T::stages * T::stage);
    full = (uint64_t *)(void *)((unsigned char *)terms + T::slots * T::slot), empty = full + T::stages;
    terms_full = empty + T::stages, terms_empty = terms_full + T::slots;
    q_full = terms_empty + T::slots, q_empty = q_full + 1, turn = q_empty + 1;
  }
  MLKI_CUDA_MEMBER void init() const {
    for (int i = 0; i < T::stages; i++)
      mlki_cuda_mbarrier_init(full + i, 1), mlki_cuda_mbarrier_init(empty + i, T::warps);
    for (int i = 0; i < T::slots; i++)
      mlki_cuda_mbarrier_init(terms_full + i, MLKI_CUDA_WARP), mlki_cuda_mbarrier_init(terms_empty + i, T::warps);
    mlki_cuda_mbarrier_init(q_full, 1), mlki_cuda_mbarrier_init(q_empty, T::warps);
    for (int i = 0; i < 2; i++) mlki_cuda_mbarrier_init(turn + i, T::warps / 2);
    mlki_cuda_mbarrier_fence();
  }
};

/* 256 queries x 64 terms. */
template <class T>
MLKI_CUDA_DEVICE void mlki_cuda_filter_queries_load(unsigned char *to, const CUtensorMap *q, uint64_t *arrived,
                                                    unsigned q_tile, int k) {
  mlki_cuda_box_load(to, q, arrived, k, (int)q_tile * T::queries, 0, 0);
  mlki_cuda_box_load(to + T::block, q, arrived, k, (int)q_tile * T::queries + T::rows, 0, 0);
}

/* By one thread: the boxes. */
template <class T>
MLKI_CUDA_DEVICE void mlki_cuda_filter_produce(const CUtensorMap *q, const CUtensorMap *x, int depth,
                                               mlki_cuda_filter_walk walk, const mlki_cuda_filter_shared<T> &shared) {
  mlki_cuda_ring<T::stages> ring;
  uint32_t round = 1; /* of the queries */
  while (walk.unit < walk.last) {
    const unsigned q_tile = walk.unit / walk.x_tiles, first = q_tile * walk.x_tiles;
    if (T::held) {
      mlki_cuda_mbarrier_wait(shared.q_empty, round), round ^= 1;
      mlki_cuda_mbarrier_expect(shared.q_full, (depth + T::depth - 1) / T::depth * 2 * T::block);
      for (int k = 0; k < depth; k += T::depth)
        mlki_cuda_filter_queries_load<T>(shared.q + k / T::depth * 2 * T::block, q, shared.q_full, q_tile, k);
    }
    for (; walk.unit < walk.last && walk.unit - first < walk.x_tiles; walk.unit++)
#pragma unroll 1
      for (int k = 0; k < depth; k += T::depth) {
        unsigned char *to = shared.stages + ring.stage * T::stage;
        uint64_t *full = shared.full + ring.stage;
        mlki_cuda_mbarrier_wait(shared.empty + ring.stage, ring.round ^ 1);
        mlki_cuda_mbarrier_expect(full, T::stage);
        mlki_cuda_box_load(to, x, full, k, (int)(walk.unit - first) * T::rows, 0, 0);
        if (!T::held) mlki_cuda_filter_queries_load<T>(to + T::block, q, full, q_tile, k);
        ring.next();
      }
  }
}

/* By a warp: the rows' terms. */
template <class T>
MLKI_CUDA_DEVICE void mlki_cuda_filter_terms(const float2 *terms, mlki_cuda_filter_walk walk,
                                             const mlki_cuda_filter_shared<T> &shared) {
  const int lane = (int)threadIdx.x % MLKI_CUDA_WARP;
  mlki_cuda_ring<T::slots> ring;
  for (; walk.unit < walk.last; walk.unit++, ring.next()) {
    const float4 *from = (const float4 *)(const void *)(terms + (int64_t)(walk.unit % walk.x_tiles) * T::rows) + lane;
    float4 *to = shared.terms + ring.stage * (T::slot / 16) + lane;
    const float4 one = from[0], two = from[MLKI_CUDA_WARP];
    mlki_cuda_mbarrier_wait(shared.terms_empty + ring.stage, ring.round ^ 1);
    to[0] = one, to[MLKI_CUDA_WARP] = two;
    mlki_cuda_mbarrier_arrive(shared.terms_full + ring.stage);
  }
}

/* acc = or += the products of sixteens x 16 terms: of 128 queries and 128 rows. */
template <int sixteens>
MLKI_CUDA_DEVICE void mlki_cuda_filter_stage(float (&acc)[2][64], uint32_t from_q, uint32_t from_x, int adds) {
  mlki_cuda_wgmma_fence();
#pragma unroll
  for (uint32_t k = 0; k < sixteens; k++)
#pragma unroll
    for (uint32_t half = 0; half < 2; half++)
      mlki_cuda_wgmma<MLK_F16, false, false>(
          acc[half],
          mlki_cuda_wgmma_matrix(from_q + half * MLKI_CUDA_WGMMA_BLOCK + k * 32, MLKI_CUDA_WGMMA_BLOCK,
                                 MLKI_CUDA_WGMMA_EIGHT),
          mlki_cuda_wgmma_matrix(from_x + k * 32, MLKI_CUDA_WGMMA_BLOCK, MLKI_CUDA_WGMMA_EIGHT), k > 0 ? 1 : adds);
  mlki_cuda_wgmma_commit();
}

/* A consumer of a block, number 0 or 1, between tiles. */
template <class T> struct mlki_cuda_filter_consumer {
  mlki_cuda_ring<T::stages> ring;
  mlki_cuda_ring<T::slots> slots;
  uint32_t number, turns; /* parity of its turns so far */
  unsigned at, row;       /* the youngest entry: its place in the buffer of query q; row, as x_rows has it */
  int64_t q;

  MLKI_CUDA_MEMBER explicit mlki_cuda_filter_consumer(int number_)
      : number((uint32_t)number_), turns(0), at(~0u), row(0), q(0) {}

  MLKI_CUDA_MEMBER static bool speaks() { return threadIdx.x % MLKI_CUDA_WARP == 0; } /* for its warp */

  MLKI_CUDA_MEMBER void begin_turn(const mlki_cuda_filter_shared<T> &shared) {
    if (T::held) mlki_cuda_mbarrier_wait(shared.turn + number, turns ^ number ^ 1);
    turns ^= 1;
  }
  MLKI_CUDA_MEMBER void end_turn(const mlki_cuda_filter_shared<T> &shared) const {
    if (T::held && speaks()) mlki_cuda_mbarrier_arrive(shared.turn + (number ^ 1));
  }

  /* acc = a tile's products. */
  MLKI_CUDA_MEMBER void multiply(float (&acc)[2][64], int depth, const mlki_cuda_filter_shared<T> &shared) {
    const uint32_t stages = mlki_cuda_shared_address(shared.stages), mine = number * (uint32_t)T::block;
    const uint32_t held = mlki_cuda_shared_address(shared.q) + mine;
    uint64_t *before = NULL; /* of the stage whose products may be under way */
    begin_turn(shared);
#pragma unroll 1
    for (int k = 0; k < depth; k += T::depth) {
      const uint32_t from_x = stages + (uint32_t)(ring.stage * T::stage);
      const uint32_t from_q = T::held ? held + (uint32_t)(k / T::depth * 2 * T::block)
                                      : from_x + (uint32_t)T::block + mine;
      mlki_cuda_mbarrier_wait(shared.full + ring.stage, ring.round);
      if (depth - k > T::depth / 2)
        mlki_cuda_filter_stage<T::depth / 16>(acc, from_q, from_x, k);
      else
        mlki_cuda_filter_stage<T::depth / 32>(acc, from_q, from_x, k);
      if (k + T::depth >= depth) end_turn(shared);
      mlki_cuda_wgmma_wait<1>(acc[0]);
      if (before && speaks()) mlki_cuda_mbarrier_arrive(before);
      before = shared.empty + ring.stage;
      ring.next();
    }
    mlki_cuda_wgmma_wait<0>(acc[0]), mlki_cuda_wgmma_wait<0>(acc[1]);
    if (speaks()) mlki_cuda_mbarrier_arrive(before);
  }

  /* Bits of the pairs that are not far: those of the thread's four queries with its 32 rows, the first highest. */
  MLKI_CUDA_MEMBER void look(unsigned (&near)[4], const float (&acc)[2][64], const float2 (&q_terms)[4],
                             const mlki_cuda_filter_shared<T> &shared) {
    const float4 *terms = shared.terms + slots.stage * (T::slot / 16) + threadIdx.x % 4;
    mlki_cuda_mbarrier_wait(shared.terms_full + slots.stage, slots.round);
#pragma unroll
    for (int i = 0; i < 4; i++) near[i] = 0;
#pragma unroll
    for (int j = 0; j < 16; j++) {
      const float4 x = terms[4 * j];
#pragma unroll
      for (int e = 0; e < 2; e++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const float t = mlki_cuda_filter_far(q_terms[i], e ? make_float2(x.z, x.w) : make_float2(x.x, x.y),
                                               acc[i / 2][4 * j + i % 2 * 2 + e]);
          near[i] = __funnelshift_l(__float_as_uint(t), near[i], 1);
        }
    }
    __syncwarp();
    if (speaks()) mlki_cuda_mbarrier_arrive(shared.terms_empty + slots.stage);
    slots.next();
  }

  /* The youngest entry to its place. */
  MLKI_CUDA_MEMBER void settle(const mlki_cuda_knn &s) {
    if (at < (unsigned)s.capacity)
      s.found[q * s.capacity + at] = row == MLKI_CUDA_FILTER_NO_ROW ? MLKI_CUDA_KNN_NONE : (uint64_t)row << 1;
    at = ~0u;
  }

  /* The pairs of bits: queries q0 + 8 (i % 2) + 64 (i / 2), rows x0 + 4 (bit - bit % 2) + bit % 2. */
  MLKI_CUDA_MEMBER void keep(const mlki_cuda_knn &s, unsigned (&near)[4], int64_t q0, int64_t x0) {
    while (near[0] | near[1] | near[2] | near[3]) {
      const int i = near[0] ? 0 : near[1] ? 1 : near[2] ? 2 : 3;
      const int bit = __clz((int)(near[0] ? near[0] : near[1] ? near[1] : near[2] ? near[2] : near[3]));
#pragma unroll
      for (int other = 0; other < 4; other++)
        if (other == i) near[other] &= ~(0x80000000u >> bit);
      if (q0 + i % 2 * 8 + i / 2 * 64 >= s.queries) continue;
      settle(s);
      q = q0 + i % 2 * 8 + i / 2 * 64;
      row = s.filter.x_rows[x0 + (bit - bit % 2) * 4 + bit % 2];
      at = atomicAdd(s.counts + q, 1u);
    }
  }

  /* A tile that the other consumer does alone: there are no more queries. */
  MLKI_CUDA_MEMBER void pass(int depth, const mlki_cuda_filter_shared<T> &shared) {
    begin_turn(shared), end_turn(shared);
    for (int k = 0; k < depth; k += T::depth, ring.next()) {
      mlki_cuda_mbarrier_wait(shared.full + ring.stage, ring.round);
      __syncwarp();
      if (speaks()) mlki_cuda_mbarrier_arrive(shared.empty + ring.stage);
    }
    mlki_cuda_mbarrier_wait(shared.terms_full + slots.stage, slots.round);
    __syncwarp();
    if (speaks()) mlki_cuda_mbarrier_arrive(shared.terms_empty + slots.stage);
    slots.next();
  }
};

template <class T>
MLKI_CUDA_DEVICE void mlki_cuda_filter_consume(const mlki_cuda_knn &s, int number, mlki_cuda_filter_walk walk,
                                               const mlki_cuda_filter_shared<T> &shared) {
  const int lane = (int)threadIdx.x % MLKI_CUDA_WARP, warp = (int)threadIdx.x / MLKI_CUDA_WARP % 4;
  const int depth = s.filter.depth;
  mlki_cuda_filter_consumer<T> me(number);
  uint32_t round = 0; /* of the queries */
  while (walk.unit < walk.last) {
    const unsigned q_tile = walk.unit / walk.x_tiles, first = q_tile * walk.x_tiles;
    const int64_t mine = (int64_t)q_tile * T::queries + number * T::rows, q0 = mine + warp * 16 + lane / 4;
    float2 q_terms[4];
#pragma unroll
    for (int i = 0; i < 4; i++)
      q_terms[i] = mine < s.queries ? s.filter.q_terms[q0 + i % 2 * 8 + i / 2 * 64] : make_float2(0.0f, 0.0f);
    if (T::held) mlki_cuda_mbarrier_wait(shared.q_full, round), round ^= 1;
    for (; walk.unit < walk.last && walk.unit - first < walk.x_tiles; walk.unit++) {
      if (mine < s.queries) {
        float acc[2][64];
        unsigned near[4];
        me.multiply(acc, depth, shared);
        me.look(near, acc, q_terms, shared);
        me.keep(s, near, q0, (int64_t)(walk.unit - first) * T::rows + lane % 4 * 2);
        __syncwarp();
      } else {
        me.pass(depth, shared);
      }
    }
    if (T::held && me.speaks()) mlki_cuda_mbarrier_arrive(shared.q_empty);
  }
  me.settle(s);
}
#endif /* MLKI_CUDA_HOPPER */

template <class T>
static __global__ void __launch_bounds__(T::threads, 1)
    mlki_cuda_filter_groups_kernel(const __grid_constant__ CUtensorMap q, const __grid_constant__ CUtensorMap x,
                                   const mlki_cuda_knn s, unsigned q_tiles, unsigned x_tiles) {
#if defined(MLKI_CUDA_HOPPER)
  const mlki_cuda_filter_shared<T> shared;
  const int group = (int)threadIdx.x / 128, warp = (int)threadIdx.x / MLKI_CUDA_WARP;
  const uint64_t units = (uint64_t)q_tiles * x_tiles;
  mlki_cuda_filter_walk walk;
  walk.x_tiles = x_tiles;
  walk.unit = (unsigned)(units * blockIdx.x / gridDim.x), walk.last = (unsigned)(units * (blockIdx.x + 1) / gridDim.x);
  mlki_cuda_knn_begin(s);
  if (threadIdx.x == 0) {
    mlki_cuda_box_prefetch(&q), mlki_cuda_box_prefetch(&x);
    shared.init();
  }
  __syncthreads();
  if (group == 0) {
    mlki_cuda_registers_give<40>();
    if (threadIdx.x == 0) mlki_cuda_filter_produce<T>(&q, &x, s.filter.depth, walk, shared);
    if (warp == 1) mlki_cuda_filter_terms<T>(s.filter.x_terms, walk, shared);
  } else {
    mlki_cuda_registers_take<232>();
    mlki_cuda_filter_consume<T>(s, group - 1, walk, shared);
  }
#endif
}

/* What the copy engine is told of the filter's rows, a call's queries and a chunk's. */
typedef struct mlki_cuda_filter_boxes {
  CUtensorMap q, x;
} mlki_cuda_filter_boxes;

static bool mlki_cuda_filter_encode(const mlki_cuda_call *call, CUtensorMap *map, const mlki_cuda_filter *f,
                                    uint16_t *memory, int64_t lines) {
  const int64_t size[4] = {f->depth, lines, 1, 1}, step[4] = {1, f->depth, 0, 0};
  return mlki_cuda_boxes_of(call, map, MLK_F16, memory, size, step, mlki_cuda_filter_groups<true>::rows);
}

/* Shares of the peak that the filter reaches: by warps; by warpgroups, whose consumers come in pairs. */
#define MLKI_CUDA_FILTER_BY_WARPS  0.65
#define MLKI_CUDA_FILTER_BY_GROUPS 0.7

/* Is the filter quicker by warpgroups, and does the driver take its rows? The longest chunk decides. */
static bool mlki_cuda_filter_by_groups(const mlki_cuda_call *call, const mlki_cuda_knn *s,
                                       mlki_cuda_filter_boxes *boxes) {
  typedef mlki_cuda_filter_groups<false> T;
  const mlki_cuda_filter *f = &s->filter;
  memset(boxes, 0, sizeof *boxes);
  if (!mlki_cuda_has_wgmma(call)) return false;
  const int64_t along = mlki_cuda_ceil_div(f->rows, T::rows), across = mlki_cuda_ceil_div(s->queries, T::rows);
  const double warps = (double)mlki_cuda_ceil_div(along * across, call->device->sms) /
                       (MLKI_CUDA_FILTER_BY_WARPS * call->device->tensor_flops);
  const double groups = (double)(mlki_cuda_ceil_div(along * mlki_cuda_ceil_div(across, 2), call->device->sms) *
                                 mlki_cuda_min(across, 2)) /
                        (MLKI_CUDA_FILTER_BY_GROUPS * call->device->wgmma_flops);
  return groups < warps && mlki_cuda_filter_encode(call, &boxes->q, f, f->q, across * T::rows) &&
         mlki_cuda_filter_encode(call, &boxes->x, f, f->x, f->rows);
}

template <class T>
static void mlki_cuda_filter_groups_launch(mlki_cuda_call *call, const mlki_cuda_filter_boxes *boxes,
                                           const mlki_cuda_knn *s, int64_t x_tiles) {
  const int64_t q_tiles = mlki_cuda_ceil_div(s->queries, T::queries);
  mlki_cuda_launch(call, mlki_cuda_min(q_tiles * x_tiles, call->device->sms), T::threads, T::shared_bytes,
                   mlki_cuda_filter_groups_kernel<T>, boxes->q, boxes->x, *s, (unsigned)q_tiles, (unsigned)x_tiles);
}

/* Does the filter pay, and how large are its operands? */
static void mlki_cuda_filter_carve(mlki_cuda_call *call, mlki_cuda_knn *s, int64_t queries, int64_t rows) {
  mlki_cuda_filter *f = &s->filter;
  const double u = 0x1p-24, d = (double)s->x.d, g = d * u * (1 + 0x1p-7), r = d / 16 + 8;
  if (queries < MLKI_CUDA_FILTER_LEAST || s->x.d < 1 || s->x.d > MLKI_CUDA_FILTER_D ||
      rows < mlki_cuda_max(2 * s->capacity, 4 * s->kept))
    return;
  f->depth = (int)mlki_cuda_ceil_div(s->x.d, MLKI_CUDA_FILTER_STEP) * MLKI_CUDA_FILTER_STEP;
  const int64_t fit = MLKI_CUDA_FILTER_BYTES / (2 * f->depth) / MLKI_CUDA_FILTER_TILE * MLKI_CUDA_FILTER_TILE;
  const int64_t tile = MLKI_CUDA_FILTER_TILE, all = mlki_cuda_ceil_div(rows, tile) * tile;
  s->queries = (int)mlki_cuda_min(s->queries, fit);
  f->rows = mlki_cuda_min(mlki_cuda_min(fit, MLKI_CUDA_FILTER_ROWS), all);
  const int64_t padded = mlki_cuda_ceil_div(s->queries, tile) * tile;
  const bool centered = s->metric == MLK_L2SQ || s->metric == MLK_L2;
  f->q = mlki_cuda_carve<uint16_t>(call, padded * f->depth), f->x = mlki_cuda_carve<uint16_t>(call, f->rows * f->depth);
  f->q_terms = mlki_cuda_carve<float2>(call, padded), f->x_terms = mlki_cuda_carve<float2>(call, f->rows);
  f->x_rows = mlki_cuda_carve<unsigned>(call, f->rows);
  f->q_norm = mlki_cuda_carve<float>(call, s->queries);
  f->center = centered ? mlki_cuda_carve<float>(call, s->x.d) : NULL;
  const double p = 1.01 * (0x1p-11 + sqrt(d) * 0x1p-25 + 4 * u), e = ((double)f->depth + 16) * 0x1p-22;
  const double h = 1.02 * (2 * p + p * p + e * (1 + p) * (1 + p));
  f->keep = 1 - h - g - 32 * u;
  f->relative = 2 * r * u / (1 - r * u);
  f->underflow = (4 * d + 64) * 0x1p-126;
  f->x_factor = (float)(centered                         ? f->keep * (1 - 0x1p-23)
                        : s->metric == MLK_INNER_PRODUCT ? 1.02 * (h + r * u * (1 + 0x1p-7) + 16 * u) * (1 + 0x1p-23)
                                                         : (1.02 * h + (3 * d + 64) * u * 1.02) * (1 + 0x1p-23));
}

/* The chunk through the filter, where the first round of pairs would be; boxes NULL: by warps. */
static void mlki_cuda_filter_launch(mlki_cuda_call *call, const mlki_cuda_pairs *a,
                                    const mlki_cuda_filter_boxes *boxes) {
  const int64_t tile = MLKI_CUDA_FILTER_TILE, tiles = mlki_cuda_ceil_div(a->visit.count * MLKI_CUDA_KNN_PIECE, tile);
  const int64_t q_tiles = mlki_cuda_ceil_div(a->knn.queries, tile);
  mlki_cuda_launch(call, tiles * tile / 8, 256, 0, mlki_cuda_filter_rows_kernel, a->knn, a->visit, tiles * tile);
  if (!boxes)
    mlki_cuda_launch(call, tiles * q_tiles, MLKI_CUDA_PAIR_THREADS, 2 * MLKI_CUDA_FILTER_STAGES * MLKI_CUDA_FILTER_HALF,
                     mlki_cuda_filter_kernel, a->knn, (int)q_tiles);
  else if (a->knn.filter.depth <= mlki_cuda_filter_groups<true>::most)
    mlki_cuda_filter_groups_launch<mlki_cuda_filter_groups<true>>(call, boxes, &a->knn, tiles);
  else
    mlki_cuda_filter_groups_launch<mlki_cuda_filter_groups<false>>(call, boxes, &a->knn, tiles);
}

/* Once for a batch; the center, a call's, with the first. */
static void mlki_cuda_filter_start(mlki_cuda_call *call, const mlki_cuda_knn *s, int64_t rows, bool first) {
  const int64_t padded = mlki_cuda_ceil_div(s->queries, MLKI_CUDA_FILTER_TILE) * MLKI_CUDA_FILTER_TILE;
  if (!s->filter.depth) return;
  if (first && (s->metric == MLK_L2SQ || s->metric == MLK_L2))
    mlki_cuda_launch(call, mlki_cuda_ceil_div(s->x.d, 256), 256, 0, mlki_cuda_center_kernel, s->x, rows,
                     s->filter.center);
  mlki_cuda_launch(call, padded / 8, 256, 0, mlki_cuda_filter_queries_kernel, *s, (int)padded);
}

/* A step through so many pieces that spreads them evenly: near the golden section, without a common factor. */
static int64_t mlki_cuda_knn_step(int64_t pieces) {
  int64_t step = mlki_cuda_max((int64_t)(0.6180339887498949 * (double)pieces), 1);
  for (;; step++) {
    int64_t a = pieces, b = step;
    while (b > 0) {
      const int64_t rest = a % b;
      a = b, b = rest;
    }
    if (a == 1) return step;
  }
}

/* How long buffers are, and how many queries a batch has. */
static void mlki_cuda_knn_sizes(mlki_cuda_knn *s, int64_t queries) {
  int64_t capacity = MLKI_CUDA_KNN_CAPACITY, bytes;
  while (capacity < 2 * s->kept && capacity < MLKI_CUDA_KNN_SORT) capacity *= 2;
  if (capacity < s->kept) capacity = mlki_cuda_min(mlki_cuda_ceil_div(s->kept, 128) * 128, 1 << 30);
  s->capacity = (int)capacity, s->sort = (int)mlki_cuda_min(capacity, MLKI_CUDA_KNN_SORT);
  bytes = 24 * s->kept + 8 * capacity * (capacity > s->sort ? 2 : 1) + 64;
  s->queries = (int)mlki_cuda_min(queries, mlki_cuda_max(MLKI_CUDA_KNN_LISTS / bytes, MLKI_CUDA_KNN_BATCH));
}

static void mlki_cuda_knn_carve(mlki_cuda_call *call, mlki_cuda_knn *s) {
  const int64_t entries = (int64_t)s->queries * s->capacity;
  s->found = mlki_cuda_carve<uint64_t>(call, entries);
  s->spare = s->capacity > s->sort ? mlki_cuda_carve<uint64_t>(call, entries) : s->found;
  s->counts = mlki_cuda_carve<unsigned>(call, s->queries);
  s->keys = mlki_cuda_carve<uint32_t>(call, 2 * s->queries * s->kept);
  s->tags = mlki_cuda_carve<int64_t>(call, 2 * s->queries * s->kept);
  s->sizes = mlki_cuda_carve<int64_t>(call, s->queries);
  s->limit_key = mlki_cuda_carve<uint32_t>(call, s->queries);
  s->limit_tag = mlki_cuda_carve<int64_t>(call, s->queries);
  s->unfinished = mlki_cuda_carve<int>(call, 2 * (int64_t)s->queries);
  s->listed = mlki_cuda_carve<int>(call, MLKI_CUDA_KNN_ROUNDS + 1);
}

/* What a chunk costs beside its pairs: launches, and select's waits for memory. An estimate, in seconds. */
#define MLKI_CUDA_KNN_STEP 6e-5

/* How long chunks may be. Behind a filter the rows that enter, about k growth a query, are read once more, so long
   chunks make reading, short ones steps: the least of (step + growth reading) / ln(1 + growth), per e-fold of rows. */
static double mlki_cuda_knn_growth(const mlki_cuda_call *call, const mlki_cuda_knn *s) {
  const double full = (double)s->capacity / (4.0 * (double)s->kept), most = full < 8 ? full : 8;
  const double reading = (double)s->queries * (double)s->kept * (double)s->x.d * 4 / call->device->bandwidth;
  double best = most;
  if (!s->filter.depth) return most;
  for (double growth = most / 2; growth >= 1; growth /= 2)
    if ((MLKI_CUDA_KNN_STEP + growth * reading) / log1p(growth) < (MLKI_CUDA_KNN_STEP + best * reading) / log1p(best))
      best = growth;
  return best;
}

/* Rows of the next chunk, after seen: see the head of the section. Up to capacity rows always fit. Before a filter a
   few times k are enough: distances of all pairs are dear. */
static int64_t mlki_cuda_knn_chunk(const mlki_cuda_knn *s, int64_t seen) {
  if (seen < s->kept)
    return s->filter.depth ? mlki_cuda_min(mlki_cuda_max(32 * s->kept, s->capacity / 4), s->capacity) : s->capacity;
  return mlki_cuda_max((int64_t)((double)seen * s->growth), s->capacity);
}

/* One chunk of the batch: rounds until every query has what it may get from it. */
static void mlki_cuda_knn_chunk_launch(mlki_cuda_call *call, mlki_cuda_pairs *a, bool filtered,
                                       const mlki_cuda_filter_boxes *boxes) {
  for (a->turn = 0; a->turn < MLKI_CUDA_KNN_ROUNDS; a->turn++) {
    if (filtered && a->turn == 0)
      mlki_cuda_filter_launch(call, a, boxes);
    else
      mlki_cuda_pairs_launch(call, a);
    mlki_cuda_select_launch(call, a, !filtered || a->turn > 0);
    if (a->visit.count * MLKI_CUDA_KNN_PIECE <= a->knn.capacity) break;
  }
}

/* The filter needs full lists, so the first rows come by pairs. */
static void mlki_cuda_knn_batch(mlki_cuda_call *call, mlki_cuda_pairs *a, int64_t rows,
                                const mlki_cuda_filter_boxes *boxes) {
  const mlki_cuda_knn *s = &a->knn;
  int64_t seen = 0;
  mlki_cuda_launch(call, mlki_cuda_ceil_div(a->knn.queries, 256), 256, 0, mlki_cuda_knn_start_kernel, a->knn);
  for (int64_t first = 0; first < (call->run ? rows : mlki_cuda_min(rows, MLKI_CUDA_KNN_SHARD));
       first += MLKI_CUDA_KNN_SHARD) {
    a->visit.first = first, a->visit.rows = mlki_cuda_min(rows - first, MLKI_CUDA_KNN_SHARD);
    a->visit.pieces = mlki_cuda_ceil_div(a->visit.rows, MLKI_CUDA_KNN_PIECE);
    a->visit.step = mlki_cuda_knn_step(a->visit.pieces);
    for (a->visit.at = 0; a->visit.at < a->visit.pieces; a->visit.at += a->visit.count) {
      const bool filtered = s->filter.depth && seen >= s->kept;
      int64_t chunk = mlki_cuda_knn_chunk(s, seen);
      if (filtered) chunk = mlki_cuda_min(chunk, s->filter.rows);
      a->visit.count = mlki_cuda_min(chunk / MLKI_CUDA_KNN_PIECE, a->visit.pieces - a->visit.at);
      mlki_cuda_knn_chunk_launch(call, a, filtered, boxes);
      seen += a->visit.count * MLKI_CUDA_KNN_PIECE;
    }
  }
}

static mlk_status mlki_cuda_knn_run(mlki_cuda_call *call, const mlk_knn_desc *desc) {
  const int64_t queries = desc->queries.shape[0], rows = desc->base.shape[0];
  const mlki_cuda_view ids = mlki_cuda_view_of(&desc->ids), distances = mlki_cuda_view_of(&desc->distances);
  mlki_cuda_pairs a;
  mlki_cuda_filter_boxes boxes;
  if (queries == 0 || desc->k == 0) return MLK_OK;
  memset(&a, 0, sizeof a);
  a.q = mlki_cuda_rows_of(&desc->queries), a.x = mlki_cuda_rows_of(&desc->base), a.metric = desc->metric;
  a.knn.x = a.x, a.knn.metric = desc->metric, a.knn.kept = mlki_cuda_min(desc->k, rows);
  mlki_cuda_knn_sizes(&a.knn, queries);
  mlki_cuda_filter_carve(call, &a.knn, queries, rows);
  mlki_cuda_knn_carve(call, &a.knn);
  a.knn.growth = mlki_cuda_knn_growth(call, &a.knn);
  const bool by_groups = a.knn.filter.depth && mlki_cuda_filter_by_groups(call, &a.knn, &boxes);
  call->work = mlki_cuda_pairs_seconds(call, desc->metric);
  if (a.knn.filter.depth) /* and the base once more, for rows in f16 */
    call->work = (double)call->io->flops / (by_groups ? call->device->wgmma_flops : call->device->tensor_flops) +
                 (double)call->io->bytes * (double)mlki_cuda_ceil_div(queries, a.knn.queries) / call->device->bandwidth;
  call->io->variant = by_groups                       ? "wgmma_filter"
                      : a.knn.filter.depth            ? "mma_filter"
                      : queries <= MLKI_CUDA_KNN_SCAN ? "scan"
                                                      : "tiles";
  const int64_t batch = a.knn.queries;
  const float *const first_query = a.q.p;
  for (int64_t q0 = 0; q0 < (call->run ? queries : 1); q0 += batch) {
    a.queries = a.knn.queries = (int)mlki_cuda_min(batch, queries - q0);
    if (call->run) a.q.p = first_query + q0 * a.q.rs;
    a.knn.q = a.q;
    mlki_cuda_filter_start(call, &a.knn, rows, q0 == 0);
    mlki_cuda_knn_batch(call, &a, rows, by_groups ? &boxes : NULL);
    mlki_cuda_launch(call, mlki_cuda_min(mlki_cuda_ceil_div(a.knn.queries * desc->k, 256), MLKI_CUDA_GRID), 256, 0,
                     mlki_cuda_knn_emit_kernel, a.knn, desc->k, desc->first_id,
                     (int64_t *)(void *)ids.p + (call->run ? q0 * ids.stride[0] : 0), ids.stride[0],
                     distances.p ? (float *)(void *)distances.p + (call->run ? q0 * distances.stride[0] : 0) : NULL,
                     distances.stride[0]);
  }
  if (!call->run) { /* batches and shards are alike */
    const double launches = (double)call->launches * (double)mlki_cuda_ceil_div(queries, batch) *
                            (double)mlki_cuda_max(mlki_cuda_ceil_div(rows, MLKI_CUDA_KNN_SHARD), 1);
    call->launches = launches < 1e9 ? (int)launches : 1000000000;
  }
  return MLK_OK;
}

#endif /* MLKI_CUDA_KNN */

/* >>cuda_map ------------------------------------------------------------------------------------------------------- */
#if defined(MLKI_CUDA_MAPS)

/* Elementwise operators walk over several views at once, of which the first is written. Its axes are sorted by its
   strides and merged where every view allows it; then axis 0 is the innermost. Work is handed out in chunks of 1 or 4
   elements along axis 0; a thread loads all of its chunks before it stores any: tens of KB must be under way in each
   multiprocessor to hide the latency of HBM. */
#define MLKI_CUDA_VIEWS       4   /* of a walk */
#define MLKI_CUDA_MAP_THREADS 256 /* of a block */
#define MLKI_CUDA_TURN        64  /* sides of a tile that is transposed in shared memory */
#define MLKI_CUDA_TURN_PITCH  65  /* elements between its rows there: neither rows nor columns meet in a bank */
#define MLKI_CUDA_TURN_LEAST  8   /* shorter axes are read as they lie: the caches hold their neighbours */

typedef struct mlki_cuda_walk {
  int rank, views;
  int64_t size[MLK_MAX_RANK];                    /* >= 1, or an empty walk */
  int64_t stride[MLKI_CUDA_VIEWS][MLK_MAX_RANK]; /* elements */
  int64_t bytes[MLKI_CUDA_VIEWS];                /* of an element */
  char *p[MLKI_CUDA_VIEWS];
} mlki_cuda_walk;

/* Adds a tensor: the first gives the walk its axes, others broadcast to it. */
static inline void mlki_cuda_walk_add(mlki_cuda_walk *w, const mlk_tensor *t) {
  const mlki_cuda_view v = mlki_cuda_view_of(t);
  const int k = w->views++;
  if (k == 0) {
    w->rank = v.rank;
    for (int i = 0; i < v.rank; i++) w->size[v.rank - 1 - i] = v.size[i];
  }
  w->p[k] = v.p, w->bytes[k] = mlki_dtype_bytes(v.dtype);
  for (int i = 0; i < v.rank; i++) w->stride[k][v.rank - 1 - i] = v.size[i] == 1 && k > 0 ? 0 : v.stride[i];
}

static inline int64_t mlki_cuda_walk_count(const mlki_cuda_walk *w) {
  int64_t count = 1;
  for (int i = 0; i < w->rank; i++) count *= w->size[i];
  return count;
}

static inline void mlki_cuda_walk_swap(mlki_cuda_walk *w, int i, int j) {
  int64_t t = w->size[i];
  w->size[i] = w->size[j], w->size[j] = t;
  for (int k = 0; k < w->views; k++) t = w->stride[k][i], w->stride[k][i] = w->stride[k][j], w->stride[k][j] = t;
}

/* Axes of one element go, strides of view 0 become positive and ascending, neighbours merge. One axis is left at
   least. */
static inline void mlki_cuda_walk_merge(mlki_cuda_walk *w) {
  int rank = 0;
  for (int i = 0; i < w->rank; i++)
    if (w->size[i] != 1) mlki_cuda_walk_swap(w, i, rank++);
  w->rank = rank;
  for (int i = 0; i < rank; i++) {
    for (int k = w->views - 1; k >= 0 && w->stride[0][i] < 0; k--) { /* view 0, which decides, last */
      w->p[k] += (w->size[i] - 1) * w->stride[k][i] * w->bytes[k];
      w->stride[k][i] = -w->stride[k][i];
    }
    for (int j = i; j > 0 && w->stride[0][j] < w->stride[0][j - 1]; j--) mlki_cuda_walk_swap(w, j, j - 1);
  }
  for (int i = 0; i + 1 < w->rank;) {
    int k = 0;
    while (k < w->views && w->stride[k][i + 1] == w->size[i] * w->stride[k][i]) k++;
    if (k < w->views) {
      i++;
      continue;
    }
    w->size[i] *= w->size[i + 1];
    for (int j = i + 1; j + 1 < w->rank; j++) mlki_cuda_walk_swap(w, j, j + 1);
    w->rank--;
  }
  if (w->rank > 0) return;
  w->rank = 1, w->size[0] = 1;
  for (int k = 0; k < w->views; k++) w->stride[k][0] = 1;
}

/* Moves bits only: two neighbours become one element of twice the bytes, as long as that can be, up to 4 bytes. */
static inline void mlki_cuda_walk_widen(mlki_cuda_walk *w) {
  while (w->bytes[0] < 4 && w->size[0] % 2 == 0) {
    for (int k = 0; k < w->views; k++) {
      if (w->stride[k][0] != 1 || (uintptr_t)w->p[k] % (uintptr_t)(2 * w->bytes[k]) != 0) return;
      for (int i = 1; i < w->rank; i++)
        if (w->stride[k][i] % 2 != 0) return;
    }
    w->size[0] /= 2;
    for (int k = 0; k < w->views; k++) {
      w->bytes[k] *= 2;
      for (int i = 1; i < w->rank; i++) w->stride[k][i] /= 2;
    }
  }
}

/* A walk as kernels get it. A piece is a chunk along axis 0, or a tile of axes 0 and 1. There may be any number of
   pieces along one axis, less than 2^31 along several. */
typedef struct mlki_cuda_pieces {
  int rank, views;
  unsigned turned;          /* tiles: bit k: view k lies dense along axis 1 */
  int64_t first, end;       /* elements of axis 0 that are there: chunks are aligned, and may begin further left */
  int64_t end1;             /* tiles: of axis 1 */
  int64_t count;            /* pieces */
  char *p[MLKI_CUDA_VIEWS]; /* of element 0 */
  int64_t stride[MLKI_CUDA_VIEWS][MLK_MAX_RANK]; /* bytes */
  mlki_cuda_divider pieces[MLK_MAX_RANK];        /* along each axis */
} mlki_cuda_pieces;

static inline mlki_cuda_pieces mlki_cuda_pieces_of(const mlki_cuda_walk *w, int64_t side0, int64_t side1) {
  mlki_cuda_pieces c;
  memset(&c, 0, sizeof c);
  c.rank = w->rank, c.views = w->views, c.end = w->size[0], c.end1 = w->rank > 1 ? w->size[1] : 1;
  for (int k = 0; k < w->views; k++) {
    c.p[k] = w->p[k];
    for (int i = 0; i < w->rank; i++) c.stride[k][i] = w->stride[k][i] * w->bytes[k];
  }
  c.count = 1;
  for (int i = 0; i < w->rank; i++) {
    const int64_t along = mlki_cuda_ceil_div(w->size[i], i == 0 ? side0 : i == 1 ? side1 : 1);
    c.count *= along;
    if (along < (int64_t)1 << 31) c.pieces[i] = mlki_cuda_divider_of(along);
  }
  return c;
}

/* Can all views be read as vectors of 4 elements, but for those that stand still along axis 0? If so rows begin *before
   elements further left, where addresses are aligned. */
static inline int mlki_cuda_walk_vectors(const mlki_cuda_walk *w, int *before) {
  for (int k = 0; k < w->views; k++) {
    const int beyond = (int)((uintptr_t)w->p[k] / (uintptr_t)w->bytes[k] % 4);
    if (k > 0 && w->stride[k][0] == 0) continue;
    if (w->stride[k][0] != 1 || (k > 0 && beyond != *before)) return 0;
    for (int i = 1; i < w->rank; i++)
      if (w->stride[k][i] % 4 != 0) return 0;
    *before = beyond;
  }
  return 1;
}

/* The walk in chunks of *width elements. */
static inline mlki_cuda_pieces mlki_cuda_chunks_of(const mlki_cuda_walk *w, int *width) {
  mlki_cuda_walk wide = *w;
  int before = 0;
  *width = mlki_cuda_walk_vectors(w, &before) ? 4 : 1;
  if (*width == 1) return mlki_cuda_pieces_of(w, 1, 1);
  wide.size[0] += before;
  mlki_cuda_pieces c = mlki_cuda_pieces_of(&wide, 4, 1);
  c.first = before;
  for (int k = 0; k < w->views; k++)
    if (w->stride[k][0]) c.p[k] = (char *)((uintptr_t)w->p[k] - (uintptr_t)(before * w->bytes[k]));
  return c;
}

/* Calls queue(walk) for parts of w that have less than 2^31 elements, or one axis. */
template <class F> static void mlki_cuda_walk_parts(const mlki_cuda_walk *w, F queue) {
  const int64_t most = (int64_t)1 << 30;
  int longest = 0;
  if (mlki_cuda_walk_count(w) == 0) return;
  if (w->rank == 1 || mlki_cuda_walk_count(w) <= most) {
    queue(*w);
    return;
  }
  for (int i = 1; i < w->rank; i++)
    if (w->size[i] > w->size[longest]) longest = i;
  const int64_t all = w->size[longest], rest = mlki_cuda_walk_count(w) / all;
  const int64_t step = mlki_cuda_max(rest < most ? most / rest : 1, 1);
  for (int64_t at = 0; at < all; at += step) {
    mlki_cuda_walk part = *w;
    part.size[longest] = mlki_cuda_min(step, all - at);
    for (int k = 0; k < w->views; k++) part.p[k] += at * w->stride[k][longest] * w->bytes[k];
    if (step > 1)
      queue(part);
    else
      mlki_cuda_walk_parts(&part, queue);
  }
}

/* A piece's place: its number along axes 0 and 1, and in bytes that of the others. */
struct mlki_cuda_place {
  int64_t at0, at1, offset[MLKI_CUDA_VIEWS];
};

/* chunks: axis 1 counts among the others. */
template <int views, bool chunks>
MLKI_CUDA_DEVICE mlki_cuda_place mlki_cuda_piece(const mlki_cuda_pieces &c, int64_t piece) {
  mlki_cuda_place place;
  place.at0 = piece, place.at1 = 0;
#pragma unroll
  for (int k = 0; k < views; k++) place.offset[k] = 0;
  if (c.rank == 1) return place;
  uint32_t at = (uint32_t)piece, left = mlki_cuda_divide(c.pieces[0], &at);
  place.at0 = at;
#pragma unroll
  for (int i = 1; i < MLK_MAX_RANK; i++) {
    if (i >= c.rank) break;
    at = left, left = i + 1 < c.rank ? mlki_cuda_divide(c.pieces[i], &at) : 0;
    if (i == 1) place.at1 = at;
    if (i == 1 && !chunks) continue;
#pragma unroll
    for (int k = 0; k < views; k++) place.offset[k] += at * c.stride[k][i];
  }
  return place;
}

/* A chunk of view k between registers and memory; elements that are not there are 0, and are not written. */
template <class T, int width>
MLKI_CUDA_DEVICE void mlki_cuda_load_chunk(T *to, const mlki_cuda_pieces &c, int k, const mlki_cuda_place &place) {
  const char *row = c.p[k] + place.offset[k];
  const int64_t at = place.at0 * width, step = c.stride[k][0];
  if (width == 1) {
    *to = *(const T *)(row + at * step);
  } else if (step == 0) {
    const T value = *(const T *)row;
#pragma unroll
    for (int i = 0; i < width; i++) to[i] = value;
  } else if (at >= c.first && at + width <= c.end) {
    mlki_cuda_load_vector<T, width>(to, row + at * (int64_t)sizeof(T));
  } else {
#pragma unroll
    for (int i = 0; i < width; i++) to[i] = at + i >= c.first && at + i < c.end ? ((const T *)row)[at + i] : T(0);
  }
}

template <class T, int width>
MLKI_CUDA_DEVICE void mlki_cuda_store_chunk(const T *from, const mlki_cuda_pieces &c, int k,
                                            const mlki_cuda_place &place) {
  char *row = c.p[k] + place.offset[k];
  const int64_t at = place.at0 * width;
  if (width == 1) {
    *(T *)(row + at * c.stride[k][0]) = *from;
  } else if (at >= c.first && at + width <= c.end) {
    mlki_cuda_store_vector<T, width>(row + at * (int64_t)sizeof(T), from);
  } else {
#pragma unroll
    for (int i = 0; i < width; i++)
      if (at + i >= c.first && at + i < c.end) ((T *)row)[at + i] = from[i];
  }
}

/* Chunks of a thread: block b has those from b threads chunks on, one of each row of threads. */
template <int width> struct mlki_cuda_several { static const int chunks = width == 4 ? 4 : 8; };
#define MLKI_CUDA_CHUNK(u)                                                                                             \
  ((int64_t)blockIdx.x * (MLKI_CUDA_MAP_THREADS * chunks) + (u)*MLKI_CUDA_MAP_THREADS + (int)threadIdx.x)

static inline int64_t mlki_cuda_chunk_blocks(const mlki_cuda_pieces *c, int chunks) {
  return mlki_cuda_ceil_div(c->count, (int64_t)MLKI_CUDA_MAP_THREADS * chunks);
}

/* Bits from view 1 to view 0. */
template <class T, int width>
static __global__ void __launch_bounds__(MLKI_CUDA_MAP_THREADS) mlki_cuda_move_kernel(mlki_cuda_pieces c) {
  constexpr int chunks = mlki_cuda_several<width>::chunks;
  mlki_cuda_place place[chunks];
  T value[chunks][width];
#pragma unroll
  for (int u = 0; u < chunks; u++) {
    if (MLKI_CUDA_CHUNK(u) >= c.count) break;
    place[u] = mlki_cuda_piece<2, true>(c, MLKI_CUDA_CHUNK(u));
    mlki_cuda_load_chunk<T, width>(value[u], c, 1, place[u]);
  }
#pragma unroll
  for (int u = 0; u < chunks; u++)
    if (MLKI_CUDA_CHUNK(u) < c.count) mlki_cuda_store_chunk<T, width>(value[u], c, 0, place[u]);
}

/* >>cuda_convert ----------------------------------------------------------------------------------------------------
   Conversions: everything but i64 passes through f32, which holds it. */

/* i64 to f32 rounded to odd: any later rounding to fewer than 23 bits then is the only one. */
MLKI_CUDA_DEVICE float mlki_cuda_i64_to_odd(int64_t x) {
  const uint64_t a = x < 0 ? ~(uint64_t)x + 1 : (uint64_t)x;
  const int zeros = a ? __clzll((long long)a) : 64, shift = zeros < 40 ? 40 - zeros : 0;
  const uint32_t sticky = (a & (((uint64_t)1 << shift) - 1)) != 0;
  const float f = mlki_cuda_mul(__uint2float_rn((uint32_t)(a >> shift) | sticky),
                                __uint_as_float((uint32_t)(127 + shift) << 23));
  return x < 0 ? -f : f;
}

MLKI_CUDA_DEVICE int64_t mlki_cuda_to_i64(float f) {
  if (f >= 9223372036854775808.0f) return INT64_MAX;
  if (f < -9223372036854775808.0f) return INT64_MIN;
  return f != f ? 0 : (int64_t)f;
}

MLKI_CUDA_DEVICE uint8_t mlki_cuda_to_u8(float f) { return (uint8_t)(f > 0.0f ? f < 255.0f ? (int)f : 255 : 0); }

/* A chunk as f32. */
template <int width>
MLKI_CUDA_DEVICE void mlki_cuda_load_converted(float *to, const mlki_cuda_pieces &c, const mlki_cuda_place &place,
                                               int from) {
  uint16_t half[width];
  uint8_t byte[width];
  if (from == MLK_F32) {
    mlki_cuda_load_chunk<float, width>(to, c, 1, place);
  } else if (from == MLK_U8) {
    mlki_cuda_load_chunk<uint8_t, width>(byte, c, 1, place);
#pragma unroll
    for (int i = 0; i < width; i++) to[i] = (float)byte[i];
  } else {
    mlki_cuda_load_chunk<uint16_t, width>(half, c, 1, place);
#pragma unroll
    for (int i = 0; i < width; i++)
      to[i] = from == MLK_F16 ? mlki_cuda_from_f16(half[i]) : mlki_cuda_from_bf16(half[i]);
  }
}

template <int width>
MLKI_CUDA_DEVICE void mlki_cuda_store_converted(const float *from, const mlki_cuda_pieces &c,
                                                const mlki_cuda_place &place, int to) {
  int64_t whole[width];
  uint16_t half[width];
  uint8_t byte[width];
  if (to == MLK_F32) {
    mlki_cuda_store_chunk<float, width>(from, c, 0, place);
  } else if (to == MLK_U8) {
#pragma unroll
    for (int i = 0; i < width; i++) byte[i] = mlki_cuda_to_u8(from[i]);
    mlki_cuda_store_chunk<uint8_t, width>(byte, c, 0, place);
  } else if (to == MLK_I64) {
#pragma unroll
    for (int i = 0; i < width; i++) whole[i] = mlki_cuda_to_i64(from[i]);
    mlki_cuda_store_chunk<int64_t, width>(whole, c, 0, place);
  } else {
#pragma unroll
    for (int i = 0; i < width; i++) half[i] = to == MLK_F16 ? mlki_cuda_to_f16(from[i]) : mlki_cuda_to_bf16(from[i]);
    mlki_cuda_store_chunk<uint16_t, width>(half, c, 0, place);
  }
}

/* From anything but i64. */
template <int width>
static __global__ void __launch_bounds__(MLKI_CUDA_MAP_THREADS)
    mlki_cuda_convert_kernel(mlki_cuda_pieces c, int from, int to) {
  constexpr int chunks = mlki_cuda_several<width>::chunks;
  mlki_cuda_place place[chunks];
  float value[chunks][width];
#pragma unroll
  for (int u = 0; u < chunks; u++) {
    if (MLKI_CUDA_CHUNK(u) >= c.count) break;
    place[u] = mlki_cuda_piece<2, true>(c, MLKI_CUDA_CHUNK(u));
    mlki_cuda_load_converted<width>(value[u], c, place[u], from);
  }
#pragma unroll
  for (int u = 0; u < chunks; u++)
    if (MLKI_CUDA_CHUNK(u) < c.count) mlki_cuda_store_converted<width>(value[u], c, place[u], to);
}

/* From i64, to the f32 that is to be stored; of u8 what its range leaves. */
MLKI_CUDA_DEVICE float mlki_cuda_narrow_i64(int64_t x, int to) {
  if (to == MLK_F32) return __ll2float_rn(x);
  if (to == MLK_U8) return (float)(x < 0 ? 0 : x < 255 ? (int)x : 255);
  return mlki_cuda_i64_to_odd(x);
}

template <int width>
static __global__ void __launch_bounds__(MLKI_CUDA_MAP_THREADS) mlki_cuda_narrow_kernel(mlki_cuda_pieces c, int to) {
  constexpr int chunks = mlki_cuda_several<width>::chunks;
  mlki_cuda_place place[chunks];
  int64_t value[chunks][width];
  float narrow[width];
#pragma unroll
  for (int u = 0; u < chunks; u++) {
    if (MLKI_CUDA_CHUNK(u) >= c.count) break;
    place[u] = mlki_cuda_piece<2, true>(c, MLKI_CUDA_CHUNK(u));
    mlki_cuda_load_chunk<int64_t, width>(value[u], c, 1, place[u]);
  }
#pragma unroll
  for (int u = 0; u < chunks; u++) {
    if (MLKI_CUDA_CHUNK(u) >= c.count) break;
#pragma unroll
    for (int i = 0; i < width; i++) narrow[i] = mlki_cuda_narrow_i64(value[u][i], to);
    mlki_cuda_store_converted<width>(narrow, c, place[u], to);
  }
}

/* Arithmetic of mlk_map. */
typedef struct mlki_cuda_mapping {
  mlk_map_op op;
  mlk_activation activation;
  float alpha, beta;
} mlki_cuda_mapping;

/* Operations with long bodies. */
static inline int mlki_cuda_map_long(const mlki_cuda_mapping *m) {
  if (m->op == MLK_ACT || m->op == MLK_ACT_GRAD) return m->activation != MLK_RELU && m->activation != MLK_NONE;
  return m->op == MLK_EXP || m->op == MLK_LOG || m->op == MLK_ERF;
}

/* a[i] = f(a[i], b[i]) */
template <int n, class F> MLKI_CUDA_DEVICE void mlki_cuda_each(float *a, const float *b, F f) {
#pragma unroll
  for (int i = 0; i < n; i++) a[i] = f(a[i], b[i]);
}

/* Their bodies, four side by side; one function, so that there is one of each. */
MLKI_CUDA_CALLED float4 mlki_cuda_map_four(mlk_map_op op, mlk_activation activation, float4 x, float4 y) {
  float a[4] = {x.x, x.y, x.z, x.w};
  const float b[4] = {y.x, y.y, y.z, y.w};
  switch (op) {
  case MLK_EXP: mlki_cuda_each<4>(a, b, [](float s, float) { return mlki_exp_cuda(s); }); break;
  case MLK_LOG: mlki_cuda_each<4>(a, b, [](float s, float) { return mlki_log_cuda(s); }); break;
  case MLK_ERF: mlki_cuda_each<4>(a, b, [](float s, float) { return mlki_erf_cuda(s); }); break;
  case MLK_ACT: mlki_cuda_each<4>(a, b, [=](float s, float) { return mlki_activate_cuda(activation, s); }); break;
  default: mlki_cuda_each<4>(a, b, [=](float s, float t) { return mlki_activate_grad_cuda(activation, s, t); }); break;
  }
  return make_float4(a[0], a[1], a[2], a[3]);
}

/* op on n values; n is a multiple of 4. */
template <int n, bool called>
MLKI_CUDA_DEVICE void mlki_cuda_map_values(const mlki_cuda_mapping &m, float *a, const float *b) {
  if (called) {
#pragma unroll
    for (int i = 0; i < n; i += 4) {
      const float4 t = mlki_cuda_map_four(m.op, m.activation, make_float4(a[i], a[i + 1], a[i + 2], a[i + 3]),
                                          make_float4(b[i], b[i + 1], b[i + 2], b[i + 3]));
      a[i] = t.x, a[i + 1] = t.y, a[i + 2] = t.z, a[i + 3] = t.w;
    }
    return;
  }
  const float alpha = m.alpha, beta = m.beta;
  switch (m.op) {
  case MLK_SCALE: mlki_cuda_each<n>(a, b, [=](float s, float) { return mlki_cuda_mul(alpha, s); }); break;
  case MLK_ADD:
    mlki_cuda_each<n>(a, b, [=](float s, float t) { return mlki_cuda_fma(alpha, s, mlki_cuda_mul(beta, t)); });
    break;
  case MLK_SUB: mlki_cuda_each<n>(a, b, [](float s, float t) { return mlki_cuda_sub(s, t); }); break;
  case MLK_MUL: mlki_cuda_each<n>(a, b, [](float s, float t) { return mlki_cuda_mul(s, t); }); break;
  case MLK_DIV: mlki_cuda_each<n>(a, b, [](float s, float t) { return mlki_cuda_div(s, t); }); break;
  case MLK_SQRT: mlki_cuda_each<n>(a, b, [](float s, float) { return mlki_cuda_sqrt(s); }); break;
  case MLK_ACT:
    if (m.activation == MLK_RELU)
      mlki_cuda_each<n>(a, b, [](float s, float) { return mlki_activate_cuda(MLK_RELU, s); });
    break;
  default:
    if (m.activation == MLK_RELU)
      mlki_cuda_each<n>(a, b, [](float s, float t) { return mlki_relu_grad_cuda(s, t); });
    else
      mlki_cuda_each<n>(a, b, [](float, float t) { return t; });
    break;
  }
}

/* out, a and perhaps b, all f32. */
template <int width, bool called>
static __global__ void __launch_bounds__(MLKI_CUDA_MAP_THREADS)
    mlki_cuda_map_kernel(mlki_cuda_pieces c, mlki_cuda_mapping m) {
  constexpr int chunks = mlki_cuda_several<width>::chunks / (called && width == 4 ? 2 : 1);
  mlki_cuda_place place[chunks];
  float a[chunks * width] = {}, b[chunks * width] = {};
#pragma unroll
  for (int u = 0; u < chunks; u++) {
    if (MLKI_CUDA_CHUNK(u) >= c.count) break;
    place[u] = mlki_cuda_piece<3, true>(c, MLKI_CUDA_CHUNK(u));
    mlki_cuda_load_chunk<float, width>(a + u * width, c, 1, place[u]);
    if (c.views > 2) mlki_cuda_load_chunk<float, width>(b + u * width, c, 2, place[u]);
  }
  mlki_cuda_map_values<chunks * width, called>(m, a, b);
#pragma unroll
  for (int u = 0; u < chunks; u++)
    if (MLKI_CUDA_CHUNK(u) < c.count) mlki_cuda_store_chunk<float, width>(a + u * width, c, 0, place[u]);
}

/* Tiles of MLKI_CUDA_TURN elements along axes 0 and 1, for views that lie dense along either. A thread has column
   (thread % TURN) of every fourth row. What lies dense along axis 1 goes through shared memory. */
#define MLKI_CUDA_TURN_ROWS (MLKI_CUDA_MAP_THREADS / MLKI_CUDA_TURN)                  /* rows of threads */
#define MLKI_CUDA_TURN_EACH (MLKI_CUDA_TURN * MLKI_CUDA_TURN / MLKI_CUDA_MAP_THREADS) /* elements of a thread */

/* The tile of view k in registers: value[i] is element (column, row + i TURN_ROWS) of axes (0, 1). */
template <class T>
MLKI_CUDA_DEVICE void mlki_cuda_load_tile(T *value, const mlki_cuda_pieces &c, int k, const mlki_cuda_place &place,
                                          T *tile) {
  const int column = (int)threadIdx.x % MLKI_CUDA_TURN, row = (int)threadIdx.x / MLKI_CUDA_TURN;
  const bool turned = (c.turned >> k & 1u) != 0;
  const int64_t step0 = c.stride[k][0], step1 = c.stride[k][1];
  const int64_t first0 = place.at0 * MLKI_CUDA_TURN, first1 = place.at1 * MLKI_CUDA_TURN;
  const char *p = c.p[k] + place.offset[k] + first0 * step0 + first1 * step1;
  const int n0 = (int)(c.end - first0 < MLKI_CUDA_TURN ? c.end - first0 : MLKI_CUDA_TURN);
  const int n1 = (int)(c.end1 - first1 < MLKI_CUDA_TURN ? c.end1 - first1 : MLKI_CUDA_TURN);
  const int64_t along = turned ? step1 : step0, across = turned ? step0 : step1;
  const int columns = turned ? n1 : n0, rows = turned ? n0 : n1;
#pragma unroll
  for (int i = 0; i < MLKI_CUDA_TURN_EACH; i++) {
    const int r = row + i * MLKI_CUDA_TURN_ROWS;
    value[i] = r < rows && column < columns ? *(const T *)(p + column * along + r * across) : T(0);
  }
  if (!turned) return;
#pragma unroll
  for (int i = 0; i < MLKI_CUDA_TURN_EACH; i++)
    tile[(row + i * MLKI_CUDA_TURN_ROWS) * MLKI_CUDA_TURN_PITCH + column] = value[i];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < MLKI_CUDA_TURN_EACH; i++)
    value[i] = tile[column * MLKI_CUDA_TURN_PITCH + row + i * MLKI_CUDA_TURN_ROWS];
}

/* Calls put(address, i) for the thread's elements of view 0 that are there. */
template <class F>
MLKI_CUDA_DEVICE void mlki_cuda_each_of_tile(const mlki_cuda_pieces &c, const mlki_cuda_place &place, F put) {
  const int column = (int)threadIdx.x % MLKI_CUDA_TURN, row = (int)threadIdx.x / MLKI_CUDA_TURN;
  const int64_t at0 = place.at0 * MLKI_CUDA_TURN + column, at1 = place.at1 * MLKI_CUDA_TURN + row;
  char *p = c.p[0] + place.offset[0] + at0 * c.stride[0][0] + at1 * c.stride[0][1];
#pragma unroll
  for (int i = 0; i < MLKI_CUDA_TURN_EACH; i++)
    if (at0 < c.end && at1 + i * MLKI_CUDA_TURN_ROWS < c.end1) put(p + i * MLKI_CUDA_TURN_ROWS * c.stride[0][1], i);
}

/* A copy or a conversion; T as wide as an element of view 1. */
template <class T>
static __global__ void __launch_bounds__(MLKI_CUDA_MAP_THREADS)
    mlki_cuda_turn_kernel(mlki_cuda_pieces c, int from, int to) {
  const mlki_cuda_place place = mlki_cuda_piece<2, false>(c, (int64_t)blockIdx.x);
  T value[MLKI_CUDA_TURN_EACH];
  mlki_cuda_load_tile<T>(value, c, 1, place, (T *)(void *)mlki_cuda_shared());
  if (from == to)
    mlki_cuda_each_of_tile(c, place, [&](char *p, int i) { *(T *)(void *)p = value[i]; });
  else
    mlki_cuda_each_of_tile(c, place, [&](char *p, int i) {
      const float f = sizeof(T) == 8    ? mlki_cuda_narrow_i64((int64_t)value[i], to)
                      : sizeof(T) == 4  ? __uint_as_float((uint32_t)value[i])
                      : sizeof(T) == 1  ? (float)(uint8_t)value[i]
                      : from == MLK_F16 ? mlki_cuda_from_f16((uint16_t)value[i])
                                        : mlki_cuda_from_bf16((uint16_t)value[i]);
      if (to == MLK_I64)
        *(int64_t *)(void *)p = mlki_cuda_to_i64(f);
      else if (to == MLK_U8)
        *(uint8_t *)p = mlki_cuda_to_u8(f);
      else
        mlki_cuda_store(p, 0, to, f);
    });
}

template <bool called>
static __global__ void __launch_bounds__(MLKI_CUDA_MAP_THREADS)
    mlki_cuda_map_turn_kernel(mlki_cuda_pieces c, mlki_cuda_mapping m) {
  const mlki_cuda_place place = mlki_cuda_piece<3, false>(c, (int64_t)blockIdx.x);
  float *tile = (float *)(void *)mlki_cuda_shared();
  float a[MLKI_CUDA_TURN_EACH], b[MLKI_CUDA_TURN_EACH] = {};
  mlki_cuda_load_tile<float>(a, c, 1, place, tile);
  if (c.views > 2)
    mlki_cuda_load_tile<float>(b, c, 2, place, tile + (c.turned & 2u ? MLKI_CUDA_TURN * MLKI_CUDA_TURN_PITCH : 0));
  mlki_cuda_map_values<MLKI_CUDA_TURN_EACH, called>(m, a, b);
  mlki_cuda_each_of_tile(c, place, [&](char *p, int i) { *(float *)(void *)p = a[i]; });
}

/* Which views lie dense along another axis than axis 0, which then becomes axis 1; bit k: view k. */
static inline unsigned mlki_cuda_walk_turned(mlki_cuda_walk *w) {
  unsigned turned = 0;
  int axis = 0;
  if (w->size[0] < MLKI_CUDA_TURN_LEAST) return 0;
  for (int k = 1; k < w->views; k++)
    for (int i = 1; i < w->rank && !axis; i++)
      if (w->stride[k][i] == 1 && w->stride[k][0] != 1 && w->stride[k][0] != 0 && w->size[i] >= MLKI_CUDA_TURN_LEAST)
        axis = i;
  if (!axis) return 0;
  mlki_cuda_walk_swap(w, axis, 1);
  for (int k = 1; k < w->views; k++)
    if (w->stride[k][1] == 1 && w->stride[k][0] != 1) turned |= 1u << k;
  return turned;
}

static void mlki_cuda_map_tiles(mlki_cuda_call *call, const mlki_cuda_walk *w, unsigned turned,
                                const mlki_cuda_mapping *m, int from, int to) {
  mlki_cuda_pieces c = mlki_cuda_pieces_of(w, MLKI_CUDA_TURN, MLKI_CUDA_TURN);
  const size_t tile = (size_t)(MLKI_CUDA_TURN * MLKI_CUDA_TURN_PITCH) * (size_t)w->bytes[1];
  const size_t shared = tile * (turned & 2u && turned & 4u ? 2 : 1);
  const int threads = MLKI_CUDA_MAP_THREADS;
  c.turned = turned;
  if (m->op != MLK_COPY && mlki_cuda_map_long(m))
    mlki_cuda_launch(call, c.count, threads, shared, mlki_cuda_map_turn_kernel<true>, c, *m);
  else if (m->op != MLK_COPY)
    mlki_cuda_launch(call, c.count, threads, shared, mlki_cuda_map_turn_kernel<false>, c, *m);
  else if (w->bytes[1] == 1)
    mlki_cuda_launch(call, c.count, threads, shared, mlki_cuda_turn_kernel<uint8_t>, c, from, to);
  else if (w->bytes[1] == 2)
    mlki_cuda_launch(call, c.count, threads, shared, mlki_cuda_turn_kernel<uint16_t>, c, from, to);
  else if (w->bytes[1] == 4)
    mlki_cuda_launch(call, c.count, threads, shared, mlki_cuda_turn_kernel<uint32_t>, c, from, to);
  else
    mlki_cuda_launch(call, c.count, threads, shared, mlki_cuda_turn_kernel<uint64_t>, c, from, to);
}

template <int width>
static void mlki_cuda_map_chunks(mlki_cuda_call *call, const mlki_cuda_pieces *c, int64_t bytes,
                                 const mlki_cuda_mapping *m, int from, int to) {
  const int chunks = mlki_cuda_several<width>::chunks, threads = MLKI_CUDA_MAP_THREADS;
  const int64_t blocks = mlki_cuda_chunk_blocks(c, chunks);
  if (m->op != MLK_COPY && mlki_cuda_map_long(m))
    mlki_cuda_launch(call, mlki_cuda_chunk_blocks(c, width == 4 ? chunks / 2 : chunks), threads, 0,
                     mlki_cuda_map_kernel<width, true>, *c, *m);
  else if (m->op != MLK_COPY)
    mlki_cuda_launch(call, blocks, threads, 0, mlki_cuda_map_kernel<width, false>, *c, *m);
  else if (from != to && from == MLK_I64)
    mlki_cuda_launch(call, blocks, threads, 0, mlki_cuda_narrow_kernel<width>, *c, to);
  else if (from != to)
    mlki_cuda_launch(call, blocks, threads, 0, mlki_cuda_convert_kernel<width>, *c, from, to);
  else if (bytes == 1)
    mlki_cuda_launch(call, blocks, threads, 0, mlki_cuda_move_kernel<uint8_t, width>, *c);
  else if (bytes == 2)
    mlki_cuda_launch(call, blocks, threads, 0, mlki_cuda_move_kernel<uint16_t, width>, *c);
  else if (bytes == 4)
    mlki_cuda_launch(call, blocks, threads, 0, mlki_cuda_move_kernel<uint32_t, width>, *c);
  else
    mlki_cuda_launch(call, blocks, threads, 0, mlki_cuda_move_kernel<uint64_t, width>, *c);
}

static mlk_status mlki_cuda_map(mlki_cuda_call *call, const mlk_map_desc *desc) {
  mlki_cuda_mapping m;
  mlki_cuda_walk w;
  const int from = desc->a.dtype, to = desc->out.dtype;
  memset(&w, 0, sizeof w);
  m.op = desc->op, m.activation = desc->activation;
  m.alpha = desc->alpha ? *desc->alpha : 1.0f, m.beta = desc->beta ? *desc->beta : 1.0f;
  mlki_cuda_walk_add(&w, &desc->out);
  if (mlki_cuda_walk_count(&w) == 0) return MLK_OK;
  mlki_cuda_walk_add(&w, &desc->a);
  if (desc->b.data) mlki_cuda_walk_add(&w, &desc->b);
  mlki_cuda_walk_merge(&w);
  if (desc->op == MLK_COPY && from == to) mlki_cuda_walk_widen(&w);
  const unsigned turned = mlki_cuda_walk_turned(&w);
  mlki_cuda_walk_parts(&w, [&](const mlki_cuda_walk &part) {
    int width;
    if (turned) {
      call->io->variant = "tiles";
      mlki_cuda_map_tiles(call, &part, turned, &m, from, to);
      return;
    }
    const mlki_cuda_pieces c = mlki_cuda_chunks_of(&part, &width);
    call->io->variant = width == 4 ? "vectors" : "elements";
    if (width == 4)
      mlki_cuda_map_chunks<4>(call, &c, part.bytes[0], &m, from, to);
    else
      mlki_cuda_map_chunks<1>(call, &c, part.bytes[0], &m, from, to);
  });
  return MLK_OK;
}

/* >>cuda_steps ------------------------------------------------------------------------------------------------------
   Optimiser steps: param, grad and the moments in one pass. The constants are those of mlk.h's descriptors. */
enum { MLKI_CUDA_SGD, MLKI_CUDA_MOMENTUM, MLKI_CUDA_ADAMW };

typedef struct mlki_cuda_step {
  float lr, momentum, weight_decay; /* SGD; lr is -lr */
  int nesterov;
  float beta1, beta2, b1, b2, d, r, q, epsilon; /* AdamW; r is -r */
} mlki_cuda_step;

/* One element: p the parameter, g the gradient, v and w the moments. */
template <int kind>
MLKI_CUDA_DEVICE void mlki_cuda_step_value(const mlki_cuda_step &s, float *p, float g, float *v, float *w) {
  if (kind == MLKI_CUDA_ADAMW) {
    *v = mlki_cuda_fma(s.beta1, *v, mlki_cuda_mul(s.b1, g));
    *w = mlki_cuda_fma(s.beta2, *w, mlki_cuda_mul(s.b2, mlki_cuda_mul(g, g)));
    const float root = mlki_cuda_add(mlki_cuda_sqrt(mlki_cuda_mul(s.q, *w)), s.epsilon);
    *p = mlki_cuda_fma(s.d, *p, mlki_cuda_div(mlki_cuda_mul(s.r, *v), root));
    return;
  }
  const float t = mlki_cuda_fma(s.weight_decay, *p, g);
  float step = t;
  if (kind == MLKI_CUDA_MOMENTUM) {
    *v = mlki_cuda_fma(s.momentum, *v, t);
    step = s.nesterov ? mlki_cuda_fma(s.momentum, *v, t) : *v;
  }
  *p = mlki_cuda_fma(s.lr, step, *p);
}

template <int width, int kind>
static __global__ void __launch_bounds__(MLKI_CUDA_MAP_THREADS)
    mlki_cuda_step_kernel(mlki_cuda_pieces c, mlki_cuda_step s) {
  constexpr int chunks = width == 4 ? 2 : 4, views = 2 + kind, n = chunks * width;
  mlki_cuda_place place[chunks];
  float value[4][n] = {};
#pragma unroll
  for (int u = 0; u < chunks; u++) {
    if (MLKI_CUDA_CHUNK(u) >= c.count) break;
    place[u] = mlki_cuda_piece<views, true>(c, MLKI_CUDA_CHUNK(u));
#pragma unroll
    for (int k = 0; k < views; k++) mlki_cuda_load_chunk<float, width>(value[k] + u * width, c, k, place[u]);
  }
#pragma unroll
  for (int i = 0; i < n; i++) mlki_cuda_step_value<kind>(s, &value[0][i], value[1][i], &value[2][i], &value[3][i]);
#pragma unroll
  for (int u = 0; u < chunks; u++) {
    if (MLKI_CUDA_CHUNK(u) >= c.count) break;
#pragma unroll
    for (int k = 0; k < views; k++)
      if (k != 1) mlki_cuda_store_chunk<float, width>(value[k] + u * width, c, k, place[u]);
  }
}

template <int kind>
static mlk_status mlki_cuda_step_run(mlki_cuda_call *call, const mlk_tensor *const *tensors, const mlki_cuda_step *s) {
  mlki_cuda_walk w;
  memset(&w, 0, sizeof w);
  for (int k = 0; k < 2 + kind; k++) mlki_cuda_walk_add(&w, tensors[k]);
  if (mlki_cuda_walk_count(&w) == 0) return MLK_OK;
  mlki_cuda_walk_merge(&w);
  mlki_cuda_walk_parts(&w, [&](const mlki_cuda_walk &part) {
    int width;
    const mlki_cuda_pieces c = mlki_cuda_chunks_of(&part, &width);
    call->io->variant = width == 4 ? "vectors" : "elements";
    if (width == 4)
      mlki_cuda_launch(call, mlki_cuda_chunk_blocks(&c, 2), MLKI_CUDA_MAP_THREADS, 0, mlki_cuda_step_kernel<4, kind>, c,
                       *s);
    else
      mlki_cuda_launch(call, mlki_cuda_chunk_blocks(&c, 4), MLKI_CUDA_MAP_THREADS, 0, mlki_cuda_step_kernel<1, kind>, c,
                       *s);
  });
  return MLK_OK;
}

static mlk_status mlki_cuda_sgd(mlki_cuda_call *call, const mlk_sgd_desc *desc) {
  const mlk_tensor *const tensors[] = {&desc->param, &desc->grad, &desc->velocity};
  mlki_cuda_step s;
  memset(&s, 0, sizeof s);
  s.lr = -desc->lr, s.momentum = desc->momentum, s.weight_decay = desc->weight_decay, s.nesterov = desc->nesterov;
  return desc->velocity.data ? mlki_cuda_step_run<MLKI_CUDA_MOMENTUM>(call, tensors, &s)
                             : mlki_cuda_step_run<MLKI_CUDA_SGD>(call, tensors, &s);
}

/* x^n by squaring, lowest bit first. */
static inline double mlki_cuda_power(double x, int64_t n) {
  double y = 1.0;
  for (; n > 0; n >>= 1) {
    if (n & 1) y *= x;
    x *= x;
  }
  return y;
}

static mlk_status mlki_cuda_adamw(mlki_cuda_call *call, const mlk_adamw_desc *desc) {
  const mlk_tensor *const tensors[] = {&desc->param, &desc->grad, &desc->m, &desc->v};
  mlki_cuda_step s;
  memset(&s, 0, sizeof s);
  s.beta1 = desc->beta1 == 0.0f ? 0.9f : desc->beta1;
  s.beta2 = desc->beta2 == 0.0f ? 0.999f : desc->beta2;
  s.epsilon = desc->epsilon == 0.0f ? 1e-8f : desc->epsilon;
  /* volatile: a product that is rounded before it is subtracted, whatever the host's compiler contracts */
  const volatile double decay = (double)desc->lr * (double)desc->weight_decay;
  const volatile double power1 = mlki_cuda_power((double)s.beta1, desc->step);
  const volatile double power2 = mlki_cuda_power((double)s.beta2, desc->step);
  s.b1 = (float)(1.0 - (double)s.beta1), s.b2 = (float)(1.0 - (double)s.beta2);
  s.d = (float)(1.0 - decay);
  s.r = (float)-((double)desc->lr / (1.0 - power1));
  s.q = (float)(1.0 / (1.0 - power2));
  return mlki_cuda_step_run<MLKI_CUDA_ADAMW>(call, tensors, &s);
}

#endif /* MLKI_CUDA_MAPS */

#if defined(MLKI_CUDA_REDUCTIONS)

/* >>cuda_reduce -----------------------------------------------------------------------------------------------------
   Reductions. The terms of an output are cut into segments of MLK_REDUCE_SEGMENT; a unit is one segment of one
   output: 16 lanes and their tree. With several segments the units' results go to the workspace and are joined in
   order. A unit is the work of 16 threads ("rows"), of 16 warps that have 32 neighbouring outputs ("columns"), of
   one thread ("each"), or of 16 threads whose terms a block brings into shared memory ("staged": 24 KB under way for
   each unit, so that two units a multiprocessor are enough). Largest, smallest and their places do not depend on any
   order but for +-0. */
#define MLKI_CUDA_REDUCE_THREADS 256
#define MLKI_CUDA_REDUCE_AHEAD   8    /* terms that a lane loads at once */
#define MLKI_CUDA_STAGE_THREADS  128  /* of a block that stages */
#define MLKI_CUDA_STAGE          2048 /* terms of a stage */
#define MLKI_CUDA_STAGES         4    /* in the ring */
#define MLKI_CUDA_COLUMNS        32   /* outputs of a block, one a thread of each warp */

enum { MLKI_CUDA_SUMS, MLKI_CUDA_MOST, MLKI_CUDA_WHERE }; /* kinds: of MEAN too; MAX, and MIN of the negated; ARGMAX */

typedef struct mlki_cuda_reduction {
  const float *x;
  void *out;     /* float *, of ARGMAX int64_t * */
  void *partial; /* [kept][segments], where there are several */
  int squares, mean;
  uint32_t sign; /* of MIN: what negates */
  float beta, divisor;
  int64_t kept, count, segments; /* outputs, terms of each, at least 1 */
  int rank, kept_rank;           /* reduced and kept axes, innermost first */
  int64_t size[MLK_MAX_RANK], stride[MLK_MAX_RANK];
  int64_t kept_size[MLK_MAX_RANK], kept_x[MLK_MAX_RANK], kept_out[MLK_MAX_RANK];
  mlki_cuda_divider by[MLK_MAX_RANK], kept_by[MLK_MAX_RANK]; /* sizes, where all numbers are below 2^31 */
} mlki_cuda_reduction;

/* Where element number i < 2^31 of the axes is. */
MLKI_CUDA_DEVICE int64_t mlki_cuda_near(int rank, const mlki_cuda_divider *by, const int64_t *stride, uint32_t i) {
  int64_t offset = 0;
  for (int axis = 0; axis + 1 < rank; axis++) {
    uint32_t at = i;
    i = mlki_cuda_divide(by[axis], &at);
    offset += at * stride[axis];
  }
  return offset + i * stride[rank - 1];
}

/* The same of any number. */
MLKI_CUDA_DEVICE int64_t mlki_cuda_far(int rank, const int64_t *size, const int64_t *stride, int64_t i) {
  int64_t offset = 0;
#pragma unroll 1
  for (int axis = 0; axis < rank; axis++) offset += i % size[axis] * stride[axis], i /= size[axis];
  return offset;
}

/* Of an output in x or out. */
MLKI_CUDA_DEVICE int64_t mlki_cuda_reduce_kept(const mlki_cuda_reduction &r, const int64_t *stride, int64_t output) {
  if (r.kept_rank == 1) return output * stride[0];
  return r.kept < (int64_t)1 << 31 ? mlki_cuda_near(r.kept_rank, r.kept_by, stride, (uint32_t)output)
                                   : mlki_cuda_far(r.kept_rank, r.kept_size, stride, output);
}

MLKI_CUDA_DEVICE const float *mlki_cuda_reduce_x(const mlki_cuda_reduction &r, int64_t output) {
  return r.x + mlki_cuda_reduce_kept(r, r.kept_x, output);
}

/* Are terms beyond the reach of near()? Then only mlki_cuda_reduce_lane knows how. */
#define MLKI_CUDA_REDUCE_FAR(r) ((r).rank > 1 && (r).count >= (int64_t)1 << 31)

/* The state of a lane: step takes term number i of its unit, join another lane,
   follow a later segment. */
template <int kind> struct mlki_cuda_reducer { /* SUMS: a sum that begins at +0 is never -0, so fma(x, 1, .) adds */
  typedef float state;
  static MLKI_CUDA_MEMBER state start(void) { return 0.0f; }
  static MLKI_CUDA_MEMBER state step(const mlki_cuda_reduction &r, state t, float x, int) {
    return mlki_cuda_fma(x, r.squares ? x : 1.0f, t);
  }
  static MLKI_CUDA_MEMBER state join(state t, state x) { return mlki_cuda_add(t, x); }
  static MLKI_CUDA_MEMBER void follow(state *t, state x, int64_t *, int64_t) { *t = join(*t, x); }
  static MLKI_CUDA_MEMBER void put(const mlki_cuda_reduction &r, int64_t at, int64_t, state t) {
    float *out = (float *)r.out + at;
    if (r.mean) t = mlki_cuda_div(t, r.divisor);
    *out = r.beta != 0.0f ? mlki_cuda_fma(r.beta, *out, t) : t;
  }
};

template <> struct mlki_cuda_reducer<MLKI_CUDA_MOST> {
  typedef float state;
  static MLKI_CUDA_MEMBER state start(void) { return __uint_as_float(0xff800000u); }
  static MLKI_CUDA_MEMBER state join(state m, state x) { return m != m || x < m ? m : x; }
  static MLKI_CUDA_MEMBER void follow(state *m, state x, int64_t *, int64_t) { *m = join(*m, x); }
  static MLKI_CUDA_MEMBER state step(const mlki_cuda_reduction &r, state m, float x, int) {
    return join(m, __uint_as_float(__float_as_uint(x) ^ r.sign));
  }
  static MLKI_CUDA_MEMBER void put(const mlki_cuda_reduction &r, int64_t at, int64_t, state m) {
    ((float *)r.out)[at] = __uint_as_float(__float_as_uint(m) ^ r.sign);
  }
};

/* The value as a number that grows with it, NaN largest, above the complement of the place in the unit; 0: nothing. */
template <> struct mlki_cuda_reducer<MLKI_CUDA_WHERE> {
  typedef unsigned long long state;
  static MLKI_CUDA_MEMBER state start(void) { return 0; }
  static MLKI_CUDA_MEMBER state join(state m, state x) { return x > m ? x : m; }
  static MLKI_CUDA_MEMBER void follow(state *m, state x, int64_t *where, int64_t segment) {
    if (x >> 32 > *m >> 32) *m = x, *where = segment;
  }
  static MLKI_CUDA_MEMBER state step(const mlki_cuda_reduction &, state m, float x, int i) {
    const uint32_t bits = x == 0.0f ? 0u : __float_as_uint(x);
    const uint32_t key = x != x ? 0xffffffffu : bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return join(m, (state)key << 32 | (0xffffffffu - (uint32_t)i));
  }
  static MLKI_CUDA_MEMBER void put(const mlki_cuda_reduction &r, int64_t at, int64_t segment, state m) {
    ((int64_t *)r.out)[at] = m == 0 ? -1 : segment * MLK_REDUCE_SEGMENT + (0xffffffffu - (uint32_t)m);
  }
};

/* The tree over lanes 0 .. 15 and 16 .. 31 of a warp; right in lanes 0 and 16. */
template <int kind>
MLKI_CUDA_DEVICE typename mlki_cuda_reducer<kind>::state
mlki_cuda_reduce_tree(typename mlki_cuda_reducer<kind>::state t) {
#pragma unroll
  for (int step = 8; step > 0; step >>= 1)
    t = mlki_cuda_reducer<kind>::join(t, __shfl_xor_sync(MLKI_CUDA_ALL, t, step));
  return t;
}

/* What a unit came to. */
template <int kind>
MLKI_CUDA_DEVICE void mlki_cuda_reduce_put(const mlki_cuda_reduction &r, int64_t output, int64_t segment,
                                           typename mlki_cuda_reducer<kind>::state t) {
  typedef typename mlki_cuda_reducer<kind>::state state;
  if (r.segments > 1)
    ((state *)r.partial)[output * r.segments + segment] = t;
  else
    mlki_cuda_reducer<kind>::put(r, mlki_cuda_reduce_kept(r, r.kept_out, output), 0, t);
}

/* Terms of a segment. */
MLKI_CUDA_DEVICE int mlki_cuda_reduce_terms(const mlki_cuda_reduction &r, int64_t segment) {
  const int64_t left = r.count - segment * MLK_REDUCE_SEGMENT;
  return left < MLK_REDUCE_SEGMENT ? (int)left : MLK_REDUCE_SEGMENT;
}

/* Terms lane, lane + 16, ... of n; load(j) gives term number j. */
template <int kind, class F>
MLKI_CUDA_DEVICE typename mlki_cuda_reducer<kind>::state mlki_cuda_reduce_terms_of(const mlki_cuda_reduction &r, int n,
                                                                                   int lane, F load) {
  typedef mlki_cuda_reducer<kind> reducer;
  typename reducer::state t = reducer::start();
  float value[MLKI_CUDA_REDUCE_AHEAD];
  int j = lane;
  for (; j + 16 * (MLKI_CUDA_REDUCE_AHEAD - 1) < n; j += 16 * MLKI_CUDA_REDUCE_AHEAD) {
#pragma unroll
    for (int i = 0; i < MLKI_CUDA_REDUCE_AHEAD; i++) value[i] = load(j + 16 * i);
#pragma unroll
    for (int i = 0; i < MLKI_CUDA_REDUCE_AHEAD; i++) t = reducer::step(r, t, value[i], j + 16 * i);
  }
#pragma unroll
  for (int i = 0; i < MLKI_CUDA_REDUCE_AHEAD; i++) value[i] = j + 16 * i < n ? load(j + 16 * i) : 0.0f;
#pragma unroll
  for (int i = 0; i < MLKI_CUDA_REDUCE_AHEAD; i++)
    if (j + 16 * i < n) t = reducer::step(r, t, value[i], j + 16 * i);
  return t;
}

/* Lane number lane of a unit of n terms, the first of which is term number from of x. */
template <int kind>
MLKI_CUDA_DEVICE typename mlki_cuda_reducer<kind>::state
mlki_cuda_reduce_lane(const mlki_cuda_reduction &r, const float *x, int64_t from, int n, int lane) {
  typedef mlki_cuda_reducer<kind> reducer;
  if (r.rank == 1) {
    const float *first = x + from * r.stride[0];
    const int64_t step = r.stride[0];
    return mlki_cuda_reduce_terms_of<kind>(r, n, lane, [=](int j) { return first[j * step]; });
  }
  if (!MLKI_CUDA_REDUCE_FAR(r))
    return mlki_cuda_reduce_terms_of<kind>(
        r, n, lane, [&](int j) { return x[mlki_cuda_near(r.rank, r.by, r.stride, (uint32_t)(from + j))]; });
  typename reducer::state t = reducer::start();
#pragma unroll 1
  for (int j = lane; j < n; j += 16) t = reducer::step(r, t, x[mlki_cuda_far(r.rank, r.size, r.stride, from + j)], j);
  return t;
}

/* Sixteen threads a unit. */
template <int kind>
static __global__ void __launch_bounds__(MLKI_CUDA_REDUCE_THREADS) mlki_cuda_reduce_rows_kernel(mlki_cuda_reduction r) {
  const int64_t unit = (int64_t)blockIdx.x * (MLKI_CUDA_REDUCE_THREADS / 16) + (int)threadIdx.x / 16;
  const int64_t output = r.segments > 1 ? unit / r.segments : unit, segment = unit - output * r.segments;
  const bool mine = output < r.kept;
  typename mlki_cuda_reducer<kind>::state t = mlki_cuda_reducer<kind>::start();
  if (mine)
    t = mlki_cuda_reduce_lane<kind>(r, mlki_cuda_reduce_x(r, output), segment * MLK_REDUCE_SEGMENT,
                                    mlki_cuda_reduce_terms(r, segment), (int)threadIdx.x % 16);
  t = mlki_cuda_reduce_tree<kind>(t);
  if (mine && threadIdx.x % 16 == 0) mlki_cuda_reduce_put<kind>(r, output, segment, t);
}

/* The tree of 16 lanes in registers. */
template <int kind>
MLKI_CUDA_DEVICE typename mlki_cuda_reducer<kind>::state
mlki_cuda_reduce_fold(typename mlki_cuda_reducer<kind>::state *t) {
#pragma unroll
  for (int s = 0; s < 4; s++)
#pragma unroll
    for (int l = 0; l < 8; l++)
      if (l < 8 >> s) t[l] = mlki_cuda_reducer<kind>::join(t[l], t[l + (8 >> s)]);
  return t[0];
}

/* All lanes of n terms; load(j) gives term number j. */
template <int kind, class F>
MLKI_CUDA_DEVICE typename mlki_cuda_reducer<kind>::state mlki_cuda_reduce_all_of(const mlki_cuda_reduction &r, int n,
                                                                                 F load) {
  typedef mlki_cuda_reducer<kind> reducer;
  typename reducer::state t[16];
#pragma unroll
  for (int l = 0; l < 16; l++) t[l] = reducer::start();
#pragma unroll 1
  for (int j = 0; j < n; j += 16)
#pragma unroll
    for (int half = 0; half < 16; half += MLKI_CUDA_REDUCE_AHEAD) {
      float value[MLKI_CUDA_REDUCE_AHEAD];
#pragma unroll
      for (int i = 0; i < MLKI_CUDA_REDUCE_AHEAD; i++) value[i] = j + half + i < n ? load(j + half + i) : 0.0f;
#pragma unroll
      for (int i = 0; i < MLKI_CUDA_REDUCE_AHEAD; i++)
        if (j + half + i < n) t[half + i] = reducer::step(r, t[half + i], value[i], j + half + i);
    }
  return mlki_cuda_reduce_fold<kind>(t);
}

/* One thread a unit, neighbours have neighbouring outputs. */
template <int kind>
static __global__ void __launch_bounds__(MLKI_CUDA_REDUCE_THREADS) mlki_cuda_reduce_each_kernel(mlki_cuda_reduction r) {
  const int64_t unit = (int64_t)blockIdx.x * MLKI_CUDA_REDUCE_THREADS + (int)threadIdx.x;
  const int64_t segment = r.segments > 1 ? unit / r.kept : 0, output = unit - segment * r.kept;
  if (segment >= r.segments || output >= r.kept) return;
  const float *x = mlki_cuda_reduce_x(r, output);
  const int64_t from = segment * MLK_REDUCE_SEGMENT, step = r.stride[0];
  const int n = mlki_cuda_reduce_terms(r, segment);
  if (r.rank == 1) {
    x += from * step;
    mlki_cuda_reduce_put<kind>(r, output, segment,
                               mlki_cuda_reduce_all_of<kind>(r, n, [=](int j) { return x[j * step]; }));
  } else {
    mlki_cuda_reduce_put<kind>(r, output, segment, mlki_cuda_reduce_all_of<kind>(r, n, [&](int j) {
                                 return x[mlki_cuda_near(r.rank, r.by, r.stride, (uint32_t)(from + j))];
                               }));
  }
}

/* Warp l has lane l of MLKI_CUDA_COLUMNS neighbouring outputs. */
template <int kind>
static __global__ void __launch_bounds__(16 * MLKI_CUDA_COLUMNS)
    mlki_cuda_reduce_columns_kernel(mlki_cuda_reduction r) {
  typedef typename mlki_cuda_reducer<kind>::state state;
  __shared__ state lanes[16][MLKI_CUDA_COLUMNS];
  const int64_t group = (int64_t)blockIdx.x / r.segments, segment = (int64_t)blockIdx.x - group * r.segments;
  const int lane = (int)threadIdx.x / MLKI_CUDA_COLUMNS, column = (int)threadIdx.x % MLKI_CUDA_COLUMNS;
  const int64_t output = group * MLKI_CUDA_COLUMNS + column;
  if (output < r.kept)
    lanes[lane][column] = mlki_cuda_reduce_lane<kind>(r, mlki_cuda_reduce_x(r, output), segment * MLK_REDUCE_SEGMENT,
                                                      mlki_cuda_reduce_terms(r, segment), lane);
  __syncthreads();
  if (lane > 0 || output >= r.kept) return;
  state t[16];
#pragma unroll
  for (int l = 0; l < 16; l++) t[l] = lanes[l][column];
  mlki_cuda_reduce_put<kind>(r, output, segment, mlki_cuda_reduce_fold<kind>(t));
}

/* Terms [first, first + MLKI_CUDA_STAGE) of the n of a unit to shared memory; vectors: four at a time. */
template <bool vectors>
MLKI_CUDA_DEVICE void mlki_cuda_reduce_stage(const mlki_cuda_reduction &r, const float *x, int64_t from, int first,
                                             int n, float *to) {
  constexpr int each = vectors ? 4 : 1, turns = MLKI_CUDA_STAGE / each / MLKI_CUDA_STAGE_THREADS;
  const int own = each * (int)threadIdx.x;
  if (r.rank == 1) {
    const float *p = x + (from + first) * r.stride[0];
#pragma unroll 8
    for (int i = 0; i < turns; i++) {
      const int at = i * each * MLKI_CUDA_STAGE_THREADS + own, left = n - first - at;
      if (left > 0) mlki_cuda_cp_async<4 * each>(to + at, p + at * r.stride[0], left < each ? 4 * left : 4 * each);
    }
    return;
  }
#pragma unroll 4
  for (int i = 0; i < turns; i++) {
    const int at = i * each * MLKI_CUDA_STAGE_THREADS + own, left = n - first - at;
    if (left > 0)
      mlki_cuda_cp_async<4 * each>(to + at, x + mlki_cuda_near(r.rank, r.by, r.stride, (uint32_t)(from + first + at)),
                                   left < each ? 4 * left : 4 * each);
  }
}

/* A block's unit of n terms; the result is right in thread 0. The ring is dynamic shared memory. */
template <int kind, bool vectors>
MLKI_CUDA_DEVICE typename mlki_cuda_reducer<kind>::state mlki_cuda_reduce_staged(const mlki_cuda_reduction &r,
                                                                                 const float *x, int64_t from, int n) {
  typedef mlki_cuda_reducer<kind> reducer;
  float *ring = (float *)(void *)mlki_cuda_shared();
  const int stages = (n + MLKI_CUDA_STAGE - 1) / MLKI_CUDA_STAGE;
  typename reducer::state t = reducer::start();
#pragma unroll 1
  for (int i = 0; i < MLKI_CUDA_STAGES - 1; i++) {
    mlki_cuda_reduce_stage<vectors>(r, x, from, i * MLKI_CUDA_STAGE, n, ring + i * MLKI_CUDA_STAGE);
    mlki_cuda_cp_commit();
  }
  for (int i = 0; i < stages; i++) {
    mlki_cuda_cp_wait<MLKI_CUDA_STAGES - 2>();
    __syncthreads(); /* everybody's part of stage i is there, and stage i - 1 was read */
    const int ahead = i + MLKI_CUDA_STAGES - 1;
    mlki_cuda_reduce_stage<vectors>(r, x, from, ahead * MLKI_CUDA_STAGE, n,
                                    ring + ahead % MLKI_CUDA_STAGES * MLKI_CUDA_STAGE);
    mlki_cuda_cp_commit();
    if (threadIdx.x >= 16) continue;
    const float *stage = ring + i % MLKI_CUDA_STAGES * MLKI_CUDA_STAGE;
    const int first = i * MLKI_CUDA_STAGE, left = n - first < MLKI_CUDA_STAGE ? n - first : MLKI_CUDA_STAGE;
    int j = (int)threadIdx.x;
    for (; j + 16 * 15 < left; j += 16 * 16) {
      float value[16];
#pragma unroll
      for (int l = 0; l < 16; l++) value[l] = stage[j + 16 * l];
#pragma unroll
      for (int l = 0; l < 16; l++) t = reducer::step(r, t, value[l], first + j + 16 * l);
    }
    for (; j < left; j += 16) t = reducer::step(r, t, stage[j], first + j);
  }
  return threadIdx.x < MLKI_CUDA_WARP ? mlki_cuda_reduce_tree<kind>(t) : t;
}

template <int kind, bool vectors>
static __global__ void __launch_bounds__(MLKI_CUDA_STAGE_THREADS)
    mlki_cuda_reduce_staged_kernel(mlki_cuda_reduction r) {
  const int64_t output = (int64_t)blockIdx.x / r.segments, segment = (int64_t)blockIdx.x - output * r.segments;
  const typename mlki_cuda_reducer<kind>::state t = mlki_cuda_reduce_staged<kind, vectors>(
      r, mlki_cuda_reduce_x(r, output), segment * MLK_REDUCE_SEGMENT, mlki_cuda_reduce_terms(r, segment));
  if (threadIdx.x == 0) mlki_cuda_reduce_put<kind>(r, output, segment, t);
}

/* Joins the segments of an output in order, of ARGMAX to the first largest: a warp each. It brings 128 results at a
   time to shared memory, the next ones into registers, and lane 0 takes them one after another. */
#define MLKI_CUDA_JOIN_THREADS 128
#define MLKI_CUDA_JOIN_EACH    4 /* results of a lane */

template <class T>
MLKI_CUDA_DEVICE void mlki_cuda_join_load(T *value, const T *partial, int64_t first, int64_t segments, int lane) {
#pragma unroll
  for (int i = 0; i < MLKI_CUDA_JOIN_EACH; i++) {
    const int64_t at = first + i * MLKI_CUDA_WARP + lane;
    value[i] = at < segments ? partial[at] : T(0);
  }
}

/* The joined state, right in lane 0, and the segment that ARGMAX found it in. */
template <int kind>
MLKI_CUDA_DEVICE typename mlki_cuda_reducer<kind>::state
mlki_cuda_join(const typename mlki_cuda_reducer<kind>::state *partial, int64_t segments, int64_t *where) {
  typedef typename mlki_cuda_reducer<kind>::state state;
  constexpr int batch = MLKI_CUDA_JOIN_EACH * MLKI_CUDA_WARP;
  __shared__ state results[MLKI_CUDA_JOIN_THREADS / MLKI_CUDA_WARP][batch];
  const int lane = (int)threadIdx.x % MLKI_CUDA_WARP, warp = (int)threadIdx.x / MLKI_CUDA_WARP;
  state value[MLKI_CUDA_JOIN_EACH], total = state(0);
  *where = 0;
  mlki_cuda_join_load<state>(value, partial, 0, segments, lane);
  for (int64_t first = 0; first < segments; first += batch) {
#pragma unroll
    for (int i = 0; i < MLKI_CUDA_JOIN_EACH; i++) results[warp][i * MLKI_CUDA_WARP + lane] = value[i];
    __syncwarp();
    mlki_cuda_join_load<state>(value, partial, first + batch, segments, lane);
    const int n = segments - first < batch ? (int)(segments - first) : batch;
    if (lane == 0)
#pragma unroll 16
      for (int i = 0; i < n; i++) {
        const state next = results[warp][i];
        if (first + i == 0)
          total = next;
        else
          mlki_cuda_reducer<kind>::follow(&total, next, where, first + i);
      }
    __syncwarp();
  }
  return total;
}

template <int kind>
static __global__ void __launch_bounds__(MLKI_CUDA_JOIN_THREADS) mlki_cuda_join_kernel(mlki_cuda_reduction r) {
  typedef typename mlki_cuda_reducer<kind>::state state;
  const int64_t output = (int64_t)blockIdx.x * (MLKI_CUDA_JOIN_THREADS / MLKI_CUDA_WARP) +
                         (int)threadIdx.x / MLKI_CUDA_WARP;
  int64_t where;
  if (output >= r.kept) return;
  const state total = mlki_cuda_join<kind>((const state *)r.partial + output * r.segments, r.segments, &where);
  if (threadIdx.x % MLKI_CUDA_WARP == 0)
    mlki_cuda_reducer<kind>::put(r, mlki_cuda_reduce_kept(r, r.kept_out, output), where, total);
}

/* Lists the kept and the reduced axes: the latter keep their order, the former are sorted by their strides in x; what
   merges is merged. out has x's axes or lacks the reduced ones. */
static inline void mlki_cuda_reduce_axes(const mlki_cuda_view *x, const mlki_cuda_view *out, unsigned axes,
                                         mlki_cuda_reduction *r) {
  int at = out->rank - 1;
  r->count = r->kept = 1;
  for (int i = x->rank - 1; i >= 0; i--) {
    const bool gone = (axes >> i & 1u) != 0;
    const int64_t size = x->size[i], stride = x->stride[i];
    if (gone) {
      const int k = r->rank - 1;
      r->count *= size;
      if (size != 1 && k >= 0 && stride == r->size[k] * r->stride[k])
        r->size[k] *= size;
      else if (size != 1)
        r->size[r->rank] = size, r->stride[r->rank++] = stride;
    } else {
      int j = r->kept_rank;
      r->kept *= size;
      if (size != 1) {
        for (; j > 0 && llabs(stride) < llabs(r->kept_x[j - 1]); j--)
          r->kept_size[j] = r->kept_size[j - 1], r->kept_x[j] = r->kept_x[j - 1], r->kept_out[j] = r->kept_out[j - 1];
        r->kept_size[j] = size, r->kept_x[j] = stride, r->kept_out[j] = out->stride[at], r->kept_rank++;
      }
    }
    if (!gone || out->rank == x->rank) at--;
  }
  if (r->rank == 0) r->rank = 1, r->size[0] = 1, r->stride[0] = 1;
  if (r->kept_rank == 0) r->kept_rank = 1, r->kept_size[0] = 1;
  int last = 0;
  for (int i = 1; i < r->kept_rank; i++) {
    if (r->kept_x[i] == r->kept_size[last] * r->kept_x[last] &&
        r->kept_out[i] == r->kept_size[last] * r->kept_out[last]) {
      r->kept_size[last] *= r->kept_size[i];
    } else {
      last++;
      r->kept_size[last] = r->kept_size[i], r->kept_x[last] = r->kept_x[i], r->kept_out[last] = r->kept_out[i];
    }
  }
  r->kept_rank = last + 1;
}

/* May terms be read four at a time: does every run of neighbours have a multiple of them, and an aligned address? */
static inline bool mlki_cuda_reduce_vectors(const mlki_cuda_reduction *r) {
  if (r->stride[0] != 1 || (uintptr_t)r->x % 16 != 0 || (r->rank > 1 && r->size[0] % 4 != 0)) return false;
  for (int i = 1; i < r->rank; i++)
    if (r->stride[i] % 4 != 0) return false;
  for (int i = 0; i < r->kept_rank; i++)
    if (r->kept_x[i] % 4 != 0 && r->kept_size[i] > 1) return false;
  return true;
}

/* How the units are worked on; see above. */
static const char *mlki_cuda_reduce_choose(const mlki_cuda_call *call, const mlki_cuda_reduction *r) {
  const int64_t units = r->kept * r->segments, sms = call->device->sms;
  const bool rows = r->stride[0] == 1 || r->size[0] == 1 || llabs(r->stride[0]) <= llabs(r->kept_x[0]);
  if (!rows &&
      r->kept_size[0] >= MLKI_CUDA_COLUMNS) /* half a multiprocessor's threads keep it busy with 64 bytes each */
    return r->count < 64 || units >= sms * 1024 ? "each" : "columns";
  if (r->count >= 4096 || (r->count >= 512 && units < 32 * sms)) return "staged";
  return r->count < 24 ? "each" : "rows";
}

template <int kind> static void mlki_cuda_reduce_launch(mlki_cuda_call *call, mlki_cuda_reduction *r) {
  typedef typename mlki_cuda_reducer<kind>::state state;
  const int64_t units = r->kept * r->segments;
  const int threads = MLKI_CUDA_REDUCE_THREADS;
  const size_t ring = MLKI_CUDA_STAGES * MLKI_CUDA_STAGE * sizeof(float);
  const char *const how = mlki_cuda_reduce_choose(call, r);
  if (r->segments > 1) r->partial = mlki_cuda_carve<state>(call, units);
  if (call->io->op == MLK_OP_REDUCE) call->io->variant = how;
  if (how[0] == 'e')
    mlki_cuda_launch(call, mlki_cuda_ceil_div(units, threads), threads, 0, mlki_cuda_reduce_each_kernel<kind>, *r);
  else if (how[0] == 'c')
    mlki_cuda_launch(call, mlki_cuda_ceil_div(r->kept, MLKI_CUDA_COLUMNS) * r->segments, 16 * MLKI_CUDA_COLUMNS, 0,
                     mlki_cuda_reduce_columns_kernel<kind>, *r);
  else if (how[0] == 'r')
    mlki_cuda_launch(call, mlki_cuda_ceil_div(units, threads / 16), threads, 0, mlki_cuda_reduce_rows_kernel<kind>, *r);
  else if (mlki_cuda_reduce_vectors(r))
    mlki_cuda_launch(call, units, MLKI_CUDA_STAGE_THREADS, ring, mlki_cuda_reduce_staged_kernel<kind, true>, *r);
  else
    mlki_cuda_launch(call, units, MLKI_CUDA_STAGE_THREADS, ring, mlki_cuda_reduce_staged_kernel<kind, false>, *r);
  if (r->segments > 1)
    mlki_cuda_launch(call, mlki_cuda_ceil_div(r->kept, MLKI_CUDA_JOIN_THREADS / MLKI_CUDA_WARP), MLKI_CUDA_JOIN_THREADS,
                     0, mlki_cuda_join_kernel<kind>, *r);
}

static mlk_status mlki_cuda_reduce(mlki_cuda_call *call, const mlk_reduce_desc *desc) {
  const mlki_cuda_view x = mlki_cuda_view_of(&desc->x), out = mlki_cuda_view_of(&desc->out);
  mlki_cuda_reduction r;
  memset(&r, 0, sizeof r);
  r.x = (const float *)(const void *)x.p, r.out = out.p;
  mlki_cuda_reduce_axes(&x, &out, desc->axes, &r);
  if (r.kept == 0) return MLK_OK;
  r.segments = mlki_cuda_max(mlki_cuda_ceil_div(r.count, MLK_REDUCE_SEGMENT), 1);
  r.squares = desc->op == MLK_SUM_SQUARES, r.mean = desc->op == MLK_MEAN;
  r.sign = desc->op == MLK_MIN ? 0x80000000u : 0u;
  r.beta = desc->beta ? *desc->beta : 0.0f, r.divisor = (float)r.count;
  for (int i = 0; i < r.rank && r.count < (int64_t)1 << 31 && r.count > 0; i++)
    r.by[i] = mlki_cuda_divider_of(r.size[i]);
  for (int i = 0; i < r.kept_rank && r.kept < (int64_t)1 << 31; i++)
    r.kept_by[i] = mlki_cuda_divider_of(r.kept_size[i]);
  if (desc->op == MLK_ARGMAX)
    mlki_cuda_reduce_launch<MLKI_CUDA_WHERE>(call, &r);
  else if (desc->op == MLK_MAX || desc->op == MLK_MIN)
    mlki_cuda_reduce_launch<MLKI_CUDA_MOST>(call, &r);
  else
    mlki_cuda_reduce_launch<MLKI_CUDA_SUMS>(call, &r);
  return MLK_OK;
}

/* >>cuda_clip -------------------------------------------------------------------------------------------------------
   The norm of a list of tensors, and their scaling. Dense tensors go together, as many as a launch's arguments hold;
   others one at a time. The norm never leaves the device. */
template <int bytes> struct mlki_cuda_list {
  static constexpr int room = (bytes - 64) / 20 - 1; /* tensors in a launch's arguments */
  int64_t n[room];                                   /* elements */
  float *p[room];
  int first[room + 1]; /* a tensor's first unit of work; the number of all units */
  int count;
};
typedef mlki_cuda_list<MLKI_CUDA_ARGUMENTS> mlki_cuda_list_short;
typedef mlki_cuda_list<MLKI_CUDA_MOST_ARGUMENTS> mlki_cuda_list_long;
static_assert(sizeof(mlki_cuda_list_short) + 32 <= MLKI_CUDA_ARGUMENTS, "arguments of a launch");
static_assert(sizeof(mlki_cuda_list_long) + 32 <= MLKI_CUDA_MOST_ARGUMENTS, "arguments of a launch");

static inline void mlki_cuda_list_clear(mlki_cuda_list_long *l) { l->count = l->first[0] = 0; }

/* Adds a tensor whose units have unit elements. */
static inline void mlki_cuda_list_add(mlki_cuda_list_long *l, float *p, int64_t n, int64_t unit) {
  l->p[l->count] = p, l->n[l->count] = n;
  l->first[l->count + 1] = l->first[l->count] + (int)mlki_cuda_ceil_div(n, unit);
  l->count++;
}

/* Would that tensor still fit? */
static inline bool mlki_cuda_list_room(const mlki_cuda_call *call, const mlki_cuda_list_long *l, int64_t n,
                                       int64_t unit) {
  const int room = call->device->long_lists ? mlki_cuda_list_long::room : mlki_cuda_list_short::room;
  return l->count < room && mlki_cuda_ceil_div(n, unit) <= (INT32_MAX >> 1) - l->first[l->count];
}

/* f(list), a list that is no longer than it must be. */
template <class F> static inline void mlki_cuda_list_pass(const mlki_cuda_list_long &l, F f) {
  const size_t count = (size_t)l.count;
  if (l.count > mlki_cuda_list_short::room) {
    f(l);
    return;
  }
  mlki_cuda_list_short few;
  memset(&few, 0, sizeof few);
  memcpy(few.n, l.n, count * sizeof *l.n), memcpy(few.p, l.p, count * sizeof *l.p);
  memcpy(few.first, l.first, (count + 1) * sizeof *l.first);
  few.count = l.count;
  f(few);
}

/* The tensor of a unit. */
template <class L> MLKI_CUDA_DEVICE int mlki_cuda_list_find(const L &l, int unit) {
  int low = 0, high = l.count;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (l.first[middle] <= unit)
      low = middle;
    else
      high = middle;
  }
  return low;
}

/* Sums of squares of segments, a block each: 16 lanes and their tree. */
template <class L>
static __global__ void __launch_bounds__(MLKI_CUDA_STAGE_THREADS)
    mlki_cuda_list_squares_kernel(const __grid_constant__ L l, float *partial) {
  const int unit = (int)blockIdx.x, i = mlki_cuda_list_find(l, unit);
  mlki_cuda_reduction r;
  r.rank = 1, r.stride[0] = 1, r.squares = 1, r.count = l.n[i], r.segments = 1;
  const int64_t segment = unit - l.first[i], from = segment * MLK_REDUCE_SEGMENT;
  const int n = mlki_cuda_reduce_terms(r, segment);
  const float t = (uintptr_t)l.p[i] % 16 == 0 ? mlki_cuda_reduce_staged<MLKI_CUDA_SUMS, true>(r, l.p[i], from, n)
                                              : mlki_cuda_reduce_staged<MLKI_CUDA_SUMS, false>(r, l.p[i], from, n);
  if (threadIdx.x == 0) partial[unit] = t;
}

/* sums[i] = those of tensor i in order: a warp each. */
template <class L>
static __global__ void __launch_bounds__(MLKI_CUDA_JOIN_THREADS)
    mlki_cuda_list_join_kernel(const __grid_constant__ L l, const float *partial, float *sums) {
  const int i = (int)(blockIdx.x * (MLKI_CUDA_JOIN_THREADS / MLKI_CUDA_WARP) + threadIdx.x / MLKI_CUDA_WARP);
  int64_t where;
  if (i >= l.count) return;
  const float sum = mlki_cuda_join<MLKI_CUDA_SUMS>(partial + l.first[i], l.first[i + 1] - l.first[i], &where);
  if (threadIdx.x % MLKI_CUDA_WARP == 0) sums[i] = sum;
}

/* The norm from the tensors' sums of squares, by one warp; factor[0] what scales to most, factor[1]: 1 if it is to.
   live: NULL, or 0 where there is nothing to measure. */
static __global__ void mlki_cuda_list_norm_kernel(const float *sums, int64_t count, float most, float *norm,
                                                  float *factor, const unsigned long long *live) {
  int64_t where;
  if (live && *live == 0) return;
  const float length = mlki_cuda_sqrt(mlki_cuda_join<MLKI_CUDA_SUMS>(sums, count, &where));
  if (threadIdx.x != 0) return;
  if (norm) *norm = length;
  if (!factor) return;
  factor[1] = length > most && length <= 3.402823466e38f ? 1.0f : 0.0f;
  factor[0] = mlki_cuda_div(most, length);
}

template <class L>
static inline void mlki_cuda_list_squares(mlki_cuda_call *call, const L &l, float *partial, float *sums) {
  mlki_cuda_launch(call, l.first[l.count], MLKI_CUDA_STAGE_THREADS, MLKI_CUDA_STAGES * MLKI_CUDA_STAGE * sizeof(float),
                   mlki_cuda_list_squares_kernel<L>, l, partial);
  mlki_cuda_launch(call, mlki_cuda_ceil_div(l.count, MLKI_CUDA_JOIN_THREADS / MLKI_CUDA_WARP), MLKI_CUDA_JOIN_THREADS,
                   0, mlki_cuda_list_join_kernel<L>, l, partial, sums);
}

/* Queues the sums of squares of count tensors, in row-major order each, to sums [count]. Strided ones by mlk_reduce. */
static inline void mlki_cuda_list_sums(mlki_cuda_call *call, const mlk_tensor *tensors, int64_t count, float *sums) {
  for (int64_t i = 0, next; i < count; i = next) {
    mlki_cuda_list_long l;
    mlki_cuda_list_clear(&l);
    for (next = i; next < count; next++) { /* a run of dense tensors */
      const mlki_cuda_view v = mlki_cuda_view_of(tensors + next);
      const int64_t n = mlki_cuda_count(tensors + next);
      if (!mlki_cuda_dense(&v) || !mlki_cuda_list_room(call, &l, n, MLK_REDUCE_SEGMENT)) break;
      mlki_cuda_list_add(&l, (float *)(void *)v.p, n, MLK_REDUCE_SEGMENT);
    }
    if (l.count) {
      float *partial = mlki_cuda_carve<float>(call, l.first[l.count]);
      mlki_cuda_list_pass(
          l, [&](const auto &list) { mlki_cuda_list_squares(call, list, partial, sums ? sums + i : sums); });
      continue;
    }
    mlk_reduce_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.op = MLK_SUM_SQUARES, desc.x = tensors[i], desc.axes = (1u << tensors[i].rank) - 1u;
    desc.out.data = sums ? sums + i : (void *)call, desc.out.rank = 1,
    desc.out.shape[0] = 1; /* a plan writes nowhere */
    (void)mlki_cuda_reduce(call, &desc);
    next = i + 1;
  }
}

#endif /* MLKI_CUDA_REDUCTIONS */

#if defined(MLKI_CUDA_MAPS)
/* Scaling of a list: a block has 16 KB. */
#define MLKI_CUDA_SCALE_EACH 16 /* elements of a thread */
#define MLKI_CUDA_SCALE_UNIT (MLKI_CUDA_SCALE_EACH * MLKI_CUDA_MAP_THREADS)

template <class L>
static __global__ void __launch_bounds__(MLKI_CUDA_MAP_THREADS)
    mlki_cuda_list_scale_kernel(const __grid_constant__ L l, const float *factor) {
  if (factor[1] == 0.0f) return;
  const int unit = (int)blockIdx.x, i = mlki_cuda_list_find(l, unit);
  const int64_t first = (int64_t)(unit - l.first[i]) * MLKI_CUDA_SCALE_UNIT, left = l.n[i] - first;
  const float scale = factor[0];
  float *p = l.p[i] + first;
  if (left >= MLKI_CUDA_SCALE_UNIT && (uintptr_t)p % 16 == 0) {
    float value[MLKI_CUDA_SCALE_EACH];
#pragma unroll
    for (int u = 0; u < MLKI_CUDA_SCALE_EACH; u += 4)
      mlki_cuda_load_vector<float, 4>(value + u, p + u * MLKI_CUDA_MAP_THREADS + 4 * (int)threadIdx.x);
#pragma unroll
    for (int u = 0; u < MLKI_CUDA_SCALE_EACH; u++) value[u] = mlki_cuda_mul(scale, value[u]);
#pragma unroll
    for (int u = 0; u < MLKI_CUDA_SCALE_EACH; u += 4)
      mlki_cuda_store_vector<float, 4>(p + u * MLKI_CUDA_MAP_THREADS + 4 * (int)threadIdx.x, value + u);
    return;
  }
#pragma unroll
  for (int u = 0; u < MLKI_CUDA_SCALE_EACH; u++) {
    const int at = u * MLKI_CUDA_MAP_THREADS + (int)threadIdx.x;
    if (at < left) p[at] = mlki_cuda_mul(scale, p[at]);
  }
}

/* The same of one strided tensor. */
static __global__ void __launch_bounds__(MLKI_CUDA_MAP_THREADS)
    mlki_cuda_scale_kernel(mlki_cuda_pieces c, const float *factor) {
  constexpr int chunks = 4;
  if (factor[1] == 0.0f) return;
  const float scale = factor[0];
#pragma unroll
  for (int u = 0; u < chunks; u++) {
    if (MLKI_CUDA_CHUNK(u) >= c.count) break;
    const mlki_cuda_place place = mlki_cuda_piece<1, true>(c, MLKI_CUDA_CHUNK(u));
    float value;
    mlki_cuda_load_chunk<float, 1>(&value, c, 0, place);
    value = mlki_cuda_mul(scale, value);
    mlki_cuda_store_chunk<float, 1>(&value, c, 0, place);
  }
}

template <class L> static void mlki_cuda_list_scale_launch(mlki_cuda_call *call, const L &l, const float *factor) {
  mlki_cuda_launch(call, l.first[l.count], MLKI_CUDA_MAP_THREADS, 0, mlki_cuda_list_scale_kernel<L>, l, factor);
}

static void mlki_cuda_list_scale(mlki_cuda_call *call, const mlk_tensor *tensors, int64_t count, const float *factor) {
  const auto launch = [&](const auto &list) { mlki_cuda_list_scale_launch(call, list, factor); };
  mlki_cuda_list_long l;
  mlki_cuda_list_clear(&l);
  for (int64_t i = 0; i < count; i++) {
    mlki_cuda_walk w;
    memset(&w, 0, sizeof w);
    mlki_cuda_walk_add(&w, tensors + i);
    const int64_t n = mlki_cuda_walk_count(&w);
    if (n == 0) continue;
    mlki_cuda_walk_merge(&w); /* in whatever order its axes lie: dense is one axis */
    if (w.rank == 1 && w.stride[0][0] == 1) {
      if (!mlki_cuda_list_room(call, &l, n, MLKI_CUDA_SCALE_UNIT)) {
        mlki_cuda_list_pass(l, launch);
        mlki_cuda_list_clear(&l);
      }
      mlki_cuda_list_add(&l, (float *)(void *)w.p[0], n, MLKI_CUDA_SCALE_UNIT);
      continue;
    }
    mlki_cuda_walk_parts(&w, [&](const mlki_cuda_walk &part) {
      const mlki_cuda_pieces c = mlki_cuda_pieces_of(&part, 1, 1);
      mlki_cuda_launch(call, mlki_cuda_chunk_blocks(&c, 4), MLKI_CUDA_MAP_THREADS, 0, mlki_cuda_scale_kernel, c,
                       factor);
    });
  }
  if (l.count) mlki_cuda_list_pass(l, launch);
}

static mlk_status mlki_cuda_clip_norm(mlki_cuda_call *call, const mlk_clip_norm_desc *desc) {
  float *sums = mlki_cuda_carve<float>(call, desc->count), *factor = mlki_cuda_carve<float>(call, 2);
  call->io->variant = "lists";
  mlki_cuda_list_sums(call, desc->grads, desc->count, sums);
  const bool scales = desc->max_norm <= 3.402823466e38f;
  mlki_cuda_launch(call, 1, MLKI_CUDA_WARP, 0, mlki_cuda_list_norm_kernel, sums, desc->count, desc->max_norm,
                   desc->norm, scales ? factor : NULL, NULL);
  if (scales) mlki_cuda_list_scale(call, desc->grads, desc->count, factor);
  return MLK_OK;
}

#endif /* MLKI_CUDA_MAPS */

/* >>cuda_average --------------------------------------------------------------------------------------------------- */
#if defined(MLKI_CUDA_AVERAGE)

/* Means of replicas. Pieces of the vector that are dense in all that is read and written, or lie alike without gaps,
   go together, as many as a launch's arguments hold (after apex's multi_tensor_apply), in short arguments if they do;
   neighbours in memory become one. A thread loads vectors of 16 bytes of several replicas before it adds any; sums run
   over the replicas in order. Whatever is strided otherwise is summed in the workspace, one replica after another.
   skip_nonfinite: where inputs are written they are searched first; else the mean is taken, and only where some mean is
   not finite later kernels search, settle who takes part and take it again; they return at once otherwise. */
#define MLKI_CUDA_AVERAGE_AHEAD  4 /* replicas that are read side by side, */
#define MLKI_CUDA_AVERAGE_CHUNKS 2 /* so many vectors of each */
#define MLKI_CUDA_MEAN_THREADS   256

/* Who takes part, once that depends on what is in memory. */
typedef struct mlki_cuda_average_state {
  unsigned long long live, bad; /* bit r: replica r takes part; has an element that is not finite */
  float factor;
  int odd;   /* a mean was not finite, or inputs are to be searched in any case */
  int again; /* the mean is to be taken (again) */
} mlki_cuda_average_state;

typedef struct mlki_cuda_replicas {
  int lives;                         /* how many may take part */
  uint8_t replica[MLK_MAX_REPLICAS]; /* [lives] their numbers */
  float weight[MLK_MAX_REPLICAS];    /* [lives] */
} mlki_cuda_replicas;

/* What the pieces of a launch have in common. */
typedef struct mlki_cuda_means {
  mlki_cuda_replicas who;
  float factor;
  int to, outs, in_place, pointers, count, units;
} mlki_cuda_means;

/* Pieces: a piece is 2 + pointers words: the place of its last element + 1; its first unit, the place of its first
   element << 32, 1 << 40 where vectors are aligned; then addresses of place 0, of those that are read and the output,
   or in place of all replicas. */
template <int bytes> struct mlki_cuda_means_list {
  static constexpr int room = (bytes - 64 - (int)sizeof(mlki_cuda_means)) / 8;
  mlki_cuda_means all;
  uint64_t words[room];
};
typedef mlki_cuda_means_list<MLKI_CUDA_ARGUMENTS> mlki_cuda_means_short;
typedef mlki_cuda_means_list<MLKI_CUDA_MOST_ARGUMENTS> mlki_cuda_means_long;

/* What a piece's kernels do. */
enum { MLKI_CUDA_MEAN, MLKI_CUDA_MEAN_WATCH, MLKI_CUDA_MEAN_AGAIN };

/* The words of a unit's piece. */
template <class L> MLKI_CUDA_DEVICE const uint64_t *mlki_cuda_means_find(const L &list, int unit) {
  const int step = 2 + list.all.pointers;
  int low = 0, high = list.all.count;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if ((int)(uint32_t)list.words[middle * step + 1] <= unit)
      low = middle;
    else
      high = middle;
  }
  return list.words + low * step;
}

/* A thread's chunks of a piece. */
template <int width> struct mlki_cuda_mean_place {
  int64_t at[MLKI_CUDA_AVERAGE_CHUNKS], first, end;
  bool vectors[MLKI_CUDA_AVERAGE_CHUNKS];

  MLKI_CUDA_MEMBER explicit mlki_cuda_mean_place(const uint64_t *piece) {
    const int64_t block = (int)blockIdx.x - (int)(uint32_t)piece[1];
    first = (int64_t)(piece[1] >> 32 & 255u), end = (int64_t)piece[0];
#pragma unroll
    for (int u = 0; u < MLKI_CUDA_AVERAGE_CHUNKS; u++) {
      at[u] = width * ((block * MLKI_CUDA_AVERAGE_CHUNKS + u) * MLKI_CUDA_MEAN_THREADS + (int)threadIdx.x);
      vectors[u] = (piece[1] >> 40 & 1u) && at[u] >= first && at[u] + width <= end;
    }
  }

  template <class T> MLKI_CUDA_MEMBER void load(T *x, uint64_t p, int u) const {
    const T *from = (const T *)(uintptr_t)p + at[u];
    if (vectors[u]) {
      mlki_cuda_load_vector<T, width>(x, from);
      return;
    }
#pragma unroll
    for (int i = 0; i < width; i++) x[i] = at[u] + i >= first && at[u] + i < end ? from[i] : T(0);
  }

  template <class T> MLKI_CUDA_MEMBER void store(uint64_t p, const T *x, int u) const {
    T *to = (T *)(uintptr_t)p + at[u];
    if (vectors[u]) {
      mlki_cuda_store_vector<T, width>(to, x);
      return;
    }
#pragma unroll
    for (int i = 0; i < width; i++)
      if (at[u] + i >= first && at[u] + i < end) to[i] = x[i];
  }
};

/* The element type's storage, and elements of 16 bytes. */
template <int dtype> struct mlki_cuda_stored {
  typedef uint16_t type;
  static const int width = 8;
  static MLKI_CUDA_MEMBER float wide(uint16_t h) {
    return dtype == MLK_F16 ? mlki_cuda_from_f16(h) : mlki_cuda_from_bf16(h);
  }
};
template <> struct mlki_cuda_stored<MLK_F32> {
  typedef float type;
  static const int width = 4;
  static MLKI_CUDA_MEMBER float wide(float f) { return f; }
};

MLKI_CUDA_DEVICE bool mlki_cuda_finite(float f) { return (__float_as_uint(f) & 0x7f800000u) != 0x7f800000u; }

/* Where replica number k of those that may take part is among a piece's addresses. */
MLKI_CUDA_DEVICE uint64_t mlki_cuda_mean_input(const mlki_cuda_means &m, const uint64_t *piece, int k) {
  return piece[2 + (m.in_place ? m.who.replica[k] : k)];
}

template <int from, class L>
static __global__ void __launch_bounds__(MLKI_CUDA_MEAN_THREADS)
    mlki_cuda_average_kernel(const __grid_constant__ L list, mlki_cuda_average_state *state, int what) {
  const mlki_cuda_means &m = list.all;
  typedef mlki_cuda_stored<from> stored;
  typedef typename stored::type type;
  constexpr int width = stored::width, chunks = MLKI_CUDA_AVERAGE_CHUNKS, ahead = MLKI_CUDA_AVERAGE_AHEAD;
  if (what == MLKI_CUDA_MEAN_AGAIN && !state->again) return;
  const unsigned long long live = state ? state->live : ~0ull;
  const float factor = state ? state->factor : m.factor;
  const uint64_t *piece = mlki_cuda_means_find(list, (int)blockIdx.x);
  const mlki_cuda_mean_place<width> place(piece);
  float t[chunks][width] = {};
  for (int k = 0; k < m.who.lives; k += ahead) {
    type x[ahead][chunks][width];
#pragma unroll
    for (int i = 0; i < ahead; i++)
      if (k + i < m.who.lives && (live >> m.who.replica[k + i] & 1u)) {
        const uint64_t p = mlki_cuda_mean_input(m, piece, k + i);
#pragma unroll
        for (int u = 0; u < chunks; u++) place.load(x[i][u], p, u);
      }
#pragma unroll
    for (int i = 0; i < ahead; i++)
      if (k + i < m.who.lives && (live >> m.who.replica[k + i] & 1u)) {
        const float weight = m.who.weight[k + i];
#pragma unroll
        for (int u = 0; u < chunks; u++)
#pragma unroll
          for (int j = 0; j < width; j++) t[u][j] = mlki_cuda_fma(weight, stored::wide(x[i][u][j]), t[u][j]);
      }
  }
  bool finite = true;
#pragma unroll
  for (int u = 0; u < chunks; u++) {
    uint16_t half[width];
#pragma unroll
    for (int j = 0; j < width; j++) {
      t[u][j] = mlki_cuda_mul(factor, t[u][j]);
      finite = finite && mlki_cuda_finite(t[u][j]);
      half[j] = m.to == MLK_F16 ? mlki_cuda_to_f16(t[u][j]) : mlki_cuda_to_bf16(t[u][j]);
    }
    for (int o = 0; o < m.outs; o++) {
      const uint64_t p = piece[2 + m.pointers - m.outs + o];
      if (m.to == MLK_F32)
        place.store(p, t[u], u);
      else
        place.store(p, half, u);
    }
  }
  if (what == MLKI_CUDA_MEAN_WATCH && !finite) atomicExch(&state->odd, 1);
}

/* Notes the replicas that have something not finite. */
template <int from, class L>
static __global__ void __launch_bounds__(MLKI_CUDA_MEAN_THREADS)
    mlki_cuda_search_kernel(const __grid_constant__ L list, mlki_cuda_average_state *state) {
  const mlki_cuda_means &m = list.all;
  typedef mlki_cuda_stored<from> stored;
  typedef typename stored::type type;
  constexpr int width = stored::width, chunks = MLKI_CUDA_AVERAGE_CHUNKS;
  if (!state->odd) return;
  const uint64_t *piece = mlki_cuda_means_find(list, (int)blockIdx.x);
  const mlki_cuda_mean_place<width> place(piece);
  unsigned long long bad = 0;
#pragma unroll 4
  for (int k = 0; k < m.who.lives; k++) {
    type x[chunks][width];
    bool finite = true;
#pragma unroll
    for (int u = 0; u < chunks; u++) place.load(x[u], mlki_cuda_mean_input(m, piece, k), u);
#pragma unroll
    for (int u = 0; u < chunks; u++)
#pragma unroll
      for (int j = 0; j < width; j++) finite = finite && mlki_cuda_finite(stored::wide(x[u][j]));
    if (!finite) bad |= 1ull << m.who.replica[k];
  }
  if (bad) atomicOr(&state->bad, bad);
}

/* Begins: everybody takes part. */
static __global__ void mlki_cuda_average_begin_kernel(mlki_cuda_average_state *state, unsigned long long live,
                                                      float factor, int odd, unsigned long long *used) {
  if (used) *used = live;
  if (!state) return;
  state->live = live, state->bad = 0, state->factor = factor, state->odd = odd, state->again = 0;
}

/* Leaves out who has something not finite; the factor anew, in f64 over the replicas in order. */
static __global__ void mlki_cuda_average_settle_kernel(mlki_cuda_average_state *state, mlki_cuda_replicas who,
                                                       double scale, int always, unsigned long long *used,
                                                       unsigned long long *wrong) {
  if (!state->odd) return;
  const unsigned long long live = state->live & ~state->bad;
  double sum = 0.0;
  for (int k = 0; k < who.lives; k++)
    if (live >> who.replica[k] & 1u) sum = __dadd_rn(sum, (double)who.weight[k]);
  state->again = live != 0 && (always || state->bad != 0);
  state->live = live, state->factor = __double2float_rn(__ddiv_rn(scale, sum));
  if (used) *used = live;
  if (!live) mlki_cuda_report(wrong, MLKI_CUDA_REPLICAS, 0);
}

/* Strided pieces: elements [first, first + n) of a view in row-major order, n floats in the workspace. */
typedef struct mlki_cuda_stretch {
  char *p;
  int dtype, rank;         /* axes innermost first, those that merge merged */
  int64_t first, n, count; /* count: elements of the view */
  int64_t size[MLK_MAX_RANK], stride[MLK_MAX_RANK];
  mlki_cuda_divider by[MLK_MAX_RANK];
} mlki_cuda_stretch;

static inline mlki_cuda_stretch mlki_cuda_stretch_of(const mlk_tensor *t, int64_t first, int64_t n) {
  const mlki_cuda_view v = mlki_cuda_view_of(t);
  mlki_cuda_stretch s;
  memset(&s, 0, sizeof s);
  s.p = v.p, s.dtype = v.dtype, s.first = first, s.n = n, s.count = mlki_cuda_count(t);
  for (int i = v.rank - 1; i >= 0; i--) {
    const int k = s.rank - 1;
    if (v.size[i] == 1) continue;
    if (k >= 0 && v.stride[i] == s.size[k] * s.stride[k])
      s.size[k] *= v.size[i];
    else
      s.size[s.rank] = v.size[i], s.stride[s.rank++] = v.stride[i];
  }
  if (s.rank == 0) s.rank = 1, s.size[0] = 1, s.stride[0] = 1;
  for (int i = 0; i < s.rank && s.count < (int64_t)1 << 31; i++) s.by[i] = mlki_cuda_divider_of(s.size[i]);
  return s;
}

MLKI_CUDA_DEVICE int64_t mlki_cuda_stretch_at(const mlki_cuda_stretch &s, int64_t i) {
  return s.count < (int64_t)1 << 31 ? mlki_cuda_near(s.rank, s.by, s.stride, (uint32_t)(s.first + i))
                                    : mlki_cuda_far(s.rank, s.size, s.stride, s.first + i);
}

#define MLKI_CUDA_STRETCH_EACH 4 /* elements of a thread */
#define MLKI_CUDA_STRETCH(u)                                                                                           \
  ((int64_t)blockIdx.x * (MLKI_CUDA_STRETCH_EACH * MLKI_CUDA_MEAN_THREADS) + (u)*MLKI_CUDA_MEAN_THREADS +              \
   (int)threadIdx.x)

/* sums = fma(weight, x, sums) where replica r takes part; those of the first begin at +0. */
static __global__ void __launch_bounds__(MLKI_CUDA_MEAN_THREADS)
    mlki_cuda_stretch_add_kernel(mlki_cuda_stretch s, float *sums, float weight, int r, int first,
                                 const mlki_cuda_average_state *state, int what) {
  if (what == MLKI_CUDA_MEAN_AGAIN && !state->again) return;
  const bool live = !state || (state->live >> r & 1u);
#pragma unroll
  for (int u = 0; u < MLKI_CUDA_STRETCH_EACH; u++) {
    const int64_t i = MLKI_CUDA_STRETCH(u);
    if (i >= s.n) break;
    const float t = first ? 0.0f : sums[i];
    sums[i] = live ? mlki_cuda_fma(weight, mlki_cuda_load(s.p, mlki_cuda_stretch_at(s, i), s.dtype), t) : t;
  }
}

/* The means from the sums to a view. */
static __global__ void __launch_bounds__(MLKI_CUDA_MEAN_THREADS)
    mlki_cuda_stretch_put_kernel(mlki_cuda_stretch s, const float *sums, float factor, mlki_cuda_average_state *state,
                                 int what) {
  if (what == MLKI_CUDA_MEAN_AGAIN && !state->again) return;
  if (state) factor = state->factor;
#pragma unroll
  for (int u = 0; u < MLKI_CUDA_STRETCH_EACH; u++) {
    const int64_t i = MLKI_CUDA_STRETCH(u);
    if (i >= s.n) break;
    const float mean = mlki_cuda_mul(factor, sums[i]);
    mlki_cuda_store(s.p, mlki_cuda_stretch_at(s, i), s.dtype, mean);
    if (what == MLKI_CUDA_MEAN_WATCH && !mlki_cuda_finite(mean)) atomicExch(&state->odd, 1);
  }
}

static __global__ void __launch_bounds__(MLKI_CUDA_MEAN_THREADS)
    mlki_cuda_stretch_search_kernel(mlki_cuda_stretch s, int r, mlki_cuda_average_state *state) {
  if (!state->odd) return;
  bool finite = true;
#pragma unroll
  for (int u = 0; u < MLKI_CUDA_STRETCH_EACH; u++) {
    const int64_t i = MLKI_CUDA_STRETCH(u);
    if (i < s.n) finite = finite && mlki_cuda_finite(mlki_cuda_load(s.p, mlki_cuda_stretch_at(s, i), s.dtype));
  }
  if (!finite) atomicOr(&state->bad, 1ull << r);
}

/* A part of a strided tensor, dense, for its norm. */
static __global__ void __launch_bounds__(MLKI_CUDA_MEAN_THREADS)
    mlki_cuda_stretch_get_kernel(mlki_cuda_stretch s, float *to) {
#pragma unroll
  for (int u = 0; u < MLKI_CUDA_STRETCH_EACH; u++) {
    const int64_t i = MLKI_CUDA_STRETCH(u);
    if (i < s.n) to[i] = ((const float *)(const void *)s.p)[mlki_cuda_stretch_at(s, i)];
  }
}

static inline int64_t mlki_cuda_stretch_blocks(int64_t n) {
  return mlki_cuda_ceil_div(n, MLKI_CUDA_STRETCH_EACH * MLKI_CUDA_MEAN_THREADS);
}

/* A call, as the host sees it. */
typedef struct mlki_cuda_average_job {
  mlki_cuda_call *call;
  const mlk_average_desc *desc;
  mlki_cuda_replicas who;
  unsigned long long live;
  bool whole, in_place, aliased; /* not a range; results go to all inputs; an output is an input that is read */
  int64_t from, to;
  int type, out_type;
  float factor;
  mlki_cuda_average_state *state; /* NULL: not needed */
  float *sums;                    /* of the strided piece that is under way */
} mlki_cuda_average_job;

static inline const mlk_tensor *mlki_cuda_average_in(const mlki_cuda_average_job *g, int64_t r, int64_t i) {
  return g->desc->inputs + r * g->desc->count + i;
}

/* Calls f(i, at, j, out_at, n) for pieces: n elements from number at on of input tensor i, out_at of output j. */
template <class F> static void mlki_cuda_average_walk(const mlki_cuda_average_job *g, F f) {
  int64_t i = -1, j = -1, start = 0, end = 0, out_start = g->from, out_end = g->from, n;
  for (int64_t at = g->from; at < g->to; at += n) {
    while (end <= at) start = end, end += mlki_cuda_count(mlki_cuda_average_in(g, g->who.replica[0], ++i));
    n = mlki_cuda_min(end, g->to) - at;
    if (g->in_place) {
      f(i, at - start, i, at - start, n);
      continue;
    }
    while (out_end <= at) out_start = out_end, out_end += mlki_cuda_count(g->desc->outputs + ++j);
    n = mlki_cuda_min(n, out_end - at);
    f(i, at - start, j, at - out_start, n);
  }
}

/* Do the elements of a view lie in memory without gaps, from the first one on, whatever the order of the axes? */
static inline bool mlki_cuda_gapless(const mlki_cuda_view *v) {
  int64_t step = 1;
  int left = 0, axis;
  for (int i = 0; i < v->rank; i++) left += v->size[i] > 1;
  for (; left > 0; left--, step *= v->size[axis]) {
    for (axis = 0; axis < v->rank && !(v->size[axis] > 1 && v->stride[axis] == step);) axis++;
    if (axis == v->rank) return false;
  }
  return true;
}

/* Do two views of one shape place their elements alike? */
static inline bool mlki_cuda_alike(const mlki_cuda_view *a, const mlki_cuda_view *b) {
  for (int i = 0; i < a->rank; i++)
    if (a->size[i] > 1 && a->stride[i] != b->stride[i]) return false;
  return true;
}

/* May a piece be read and written as if all were dense? */
static bool mlki_cuda_average_flat(const mlki_cuda_average_job *g, int64_t i, int64_t j, int64_t n) {
  const mlki_cuda_view model = mlki_cuda_view_of(mlki_cuda_average_in(g, g->who.replica[0], i));
  const bool all = n == mlki_cuda_count(mlki_cuda_average_in(g, g->who.replica[0], i)) && (g->whole || g->in_place);
  bool dense = mlki_cuda_dense(&model), alike = all && mlki_cuda_gapless(&model);
  for (int k = 0; k < (g->in_place ? (int)g->desc->replicas : g->who.lives) && (dense || alike); k++) {
    const mlki_cuda_view v = mlki_cuda_view_of(mlki_cuda_average_in(g, g->in_place ? k : g->who.replica[k], i));
    dense = dense && mlki_cuda_dense(&v), alike = alike && mlki_cuda_alike(&model, &v);
  }
  if (!g->in_place) {
    const mlki_cuda_view v = mlki_cuda_view_of(g->desc->outputs + j);
    dense = dense && mlki_cuda_dense(&v), alike = alike && mlki_cuda_alike(&model, &v);
  }
  return dense || alike;
}

template <int from, class L>
static void mlki_cuda_means_launch(const mlki_cuda_average_job *g, const L &list, int what, bool search) {
  const int units = list.all.units, threads = MLKI_CUDA_MEAN_THREADS;
  if (search)
    mlki_cuda_launch(g->call, units, threads, 0, mlki_cuda_search_kernel<from, L>, list, g->state);
  else
    mlki_cuda_launch(g->call, units, threads, 0, mlki_cuda_average_kernel<from, L>, list, g->state, what);
}

template <class L>
static void mlki_cuda_means_go(const mlki_cuda_average_job *g, const L &list, int what, bool search) {
  if (g->type == MLK_F32)
    mlki_cuda_means_launch<MLK_F32>(g, list, what, search);
  else if (g->type == MLK_F16)
    mlki_cuda_means_launch<MLK_F16>(g, list, what, search);
  else
    mlki_cuda_means_launch<MLK_BF16>(g, list, what, search);
}

/* Launches what is in the list, with no longer arguments than it takes. */
static void mlki_cuda_means_flush(mlki_cuda_average_job *g, mlki_cuda_means_long *list, int what, bool search) {
  const int words = list->all.count * (2 + list->all.pointers);
  if (words <= mlki_cuda_means_short::room) {
    mlki_cuda_means_short few;
    memset(&few, 0, sizeof few);
    few.all = list->all;
    memcpy(few.words, list->words, (size_t)words * sizeof *few.words);
    mlki_cuda_means_go(g, few, what, search);
  } else {
    mlki_cuda_means_go(g, *list, what, search);
  }
  list->all.count = 0, list->all.units = 0;
}

/* Addresses of a piece: those that are read, then the output; in place those of all replicas. */
static void mlki_cuda_means_addresses(const mlki_cuda_average_job *g, int64_t i, int64_t at, int64_t j, int64_t out_at,
                                      uint64_t *p) {
  const int64_t bytes = mlki_dtype_bytes(g->type), out_bytes = mlki_dtype_bytes(g->out_type);
  const int inputs = g->in_place ? (int)g->desc->replicas : g->who.lives;
  for (int k = 0; k < inputs; k++)
    p[k] = (uint64_t)(uintptr_t)mlki_cuda_average_in(g, g->in_place ? k : g->who.replica[k], i)->data +
           (uint64_t)(at * bytes);
  if (!g->in_place) p[inputs] = (uint64_t)(uintptr_t)g->desc->outputs[j].data + (uint64_t)(out_at * out_bytes);
}

/* Adds a flat piece: to the last one where it follows that in memory. */
static void mlki_cuda_means_add(mlki_cuda_average_job *g, mlki_cuda_means_long *list, int64_t i, int64_t at, int64_t j,
                                int64_t out_at, int64_t n, int what, bool search) {
  mlki_cuda_means *m = &list->all;
  const int room = g->call->device->long_lists ? mlki_cuda_means_long::room : mlki_cuda_means_short::room;
  uint64_t p[MLK_MAX_REPLICAS + 1];
  const uint64_t bytes = (uint64_t)mlki_dtype_bytes(g->type);
  const uint64_t out_bytes = (uint64_t)mlki_dtype_bytes(g->out_type);
  const int step = 2 + m->pointers, width = g->type == MLK_F32 ? 4 : 8;
  const int64_t unit = (int64_t)width * MLKI_CUDA_AVERAGE_CHUNKS * MLKI_CUDA_MEAN_THREADS;
  mlki_cuda_means_addresses(g, i, at, j, out_at, p);
  if (m->count) {
    uint64_t *last = list->words + (m->count - 1) * step;
    bool follows = true;
    for (int k = 0; k < m->pointers && follows; k++)
      follows = p[k] == last[2 + k] + last[0] * (k < m->pointers - m->outs || g->in_place ? bytes : out_bytes);
    if (follows && m->units < INT32_MAX / 2) {
      last[0] += (uint64_t)n;
      m->units = (int)((int64_t)(uint32_t)last[1] + mlki_cuda_ceil_div((int64_t)last[0], unit));
      return;
    }
    if ((m->count + 1) * step > room || m->units >= INT32_MAX / 2) mlki_cuda_means_flush(g, list, what, search);
  }
  const uint64_t before = p[0] / bytes % (uint64_t)width;
  bool vectors = true;
  for (int k = 0; k < m->pointers; k++)
    vectors = vectors &&
              p[k] / (k < m->pointers - m->outs || g->in_place ? bytes : out_bytes) % (uint64_t)width == before;
  uint64_t *piece = list->words + m->count * step;
  const uint64_t shift = vectors ? before : 0;
  piece[0] = (uint64_t)n + shift;
  piece[1] = (uint64_t)(uint32_t)m->units | shift << 32 | (uint64_t)vectors << 40;
  for (int k = 0; k < m->pointers; k++)
    piece[2 + k] = p[k] - shift * (k < m->pointers - m->outs || g->in_place ? bytes : out_bytes);
  m->units += (int)mlki_cuda_ceil_div((int64_t)piece[0], unit), m->count++;
}

/* A strided piece. */
static void mlki_cuda_average_stretch(mlki_cuda_average_job *g, int64_t i, int64_t at, int64_t j, int64_t out_at,
                                      int64_t n, int what, bool search) {
  const int64_t blocks = mlki_cuda_stretch_blocks(n);
  const int threads = MLKI_CUDA_MEAN_THREADS;
  for (int k = 0; k < g->who.lives; k++) {
    const int r = g->who.replica[k];
    const mlki_cuda_stretch s = mlki_cuda_stretch_of(mlki_cuda_average_in(g, r, i), at, n);
    if (search)
      mlki_cuda_launch(g->call, blocks, threads, 0, mlki_cuda_stretch_search_kernel, s, r, g->state);
    else
      mlki_cuda_launch(g->call, blocks, threads, 0, mlki_cuda_stretch_add_kernel, s, g->sums, g->who.weight[k], r,
                       k == 0, g->state, what);
  }
  for (int r = 0; r < (g->in_place ? (int)g->desc->replicas : 1) && !search; r++) {
    const mlk_tensor *t = g->in_place ? mlki_cuda_average_in(g, r, i) : g->desc->outputs + j;
    mlki_cuda_launch(g->call, blocks, threads, 0, mlki_cuda_stretch_put_kernel, mlki_cuda_stretch_of(t, out_at, n),
                     g->sums, g->factor, g->state, what);
  }
}

/* One pass over all pieces: the means, or the search. */
static void mlki_cuda_average_pass(mlki_cuda_average_job *g, int what, bool search) {
  mlki_cuda_means_long list; /* words are written before they are read */
  mlki_cuda_means &m = list.all;
  memset(&m, 0, sizeof m);
  m.who = g->who, m.factor = g->factor, m.to = g->out_type, m.in_place = g->in_place;
  m.outs = g->in_place ? (int)g->desc->replicas : 1;
  m.pointers = g->in_place ? m.outs : g->who.lives + 1;
  mlki_cuda_average_walk(g, [&](int64_t i, int64_t at, int64_t j, int64_t out_at, int64_t n) {
    if (mlki_cuda_average_flat(g, i, j, n))
      mlki_cuda_means_add(g, &list, i, at, j, out_at, n, what, search);
    else
      mlki_cuda_average_stretch(g, i, at, j, out_at, n, what, search);
  });
  if (m.count) mlki_cuda_means_flush(g, &list, what, search);
}

/* The norm of what was written: of outputs; in place of replica 0's tensors, of a range of their parts in it. */
static void mlki_cuda_average_norm(mlki_cuda_average_job *g) {
  const int64_t count = g->in_place ? g->desc->count : g->desc->output_count;
  const mlk_tensor *tensors = g->in_place ? g->desc->inputs : g->desc->outputs;
  float *sums = mlki_cuda_carve<float>(g->call, count);
  int64_t parts = 0, first = -1; /* sums so far; the first of a run of whole tensors */
  if (!g->in_place || g->whole) {
    mlki_cuda_list_sums(g->call, tensors, parts = count, sums);
  } else {
    mlki_cuda_average_walk(g, [&](int64_t i, int64_t at, int64_t, int64_t, int64_t n) {
      const mlki_cuda_view v = mlki_cuda_view_of(tensors + i);
      if (n == mlki_cuda_count(tensors + i)) {
        if (first < 0) first = i;
        return;
      }
      if (first >= 0) mlki_cuda_list_sums(g->call, tensors + first, i - first, sums ? sums + parts : sums);
      if (first >= 0) parts += i - first, first = -1;
      mlk_tensor part;
      memset(&part, 0, sizeof part);
      part.rank = 1, part.shape[0] = n, part.data = v.p + 4 * at;
      if (!mlki_cuda_dense(&v)) {
        float *copy = mlki_cuda_carve<float>(g->call, n);
        mlki_cuda_launch(g->call, mlki_cuda_stretch_blocks(n), MLKI_CUDA_MEAN_THREADS, 0, mlki_cuda_stretch_get_kernel,
                         mlki_cuda_stretch_of(tensors + i, at, n), copy);
        part.data = copy ? (void *)copy : (void *)g; /* a plan reads nowhere */
      }
      mlki_cuda_list_sums(g->call, &part, 1, sums ? sums + parts : sums);
      parts++;
    });
    if (first >= 0) {
      int64_t last = first;
      mlki_cuda_average_walk(g, [&](int64_t i, int64_t, int64_t, int64_t, int64_t) { last = i; });
      mlki_cuda_list_sums(g->call, tensors + first, last + 1 - first, sums ? sums + parts : sums);
      parts += last + 1 - first;
    }
  }
  mlki_cuda_launch(g->call, 1, MLKI_CUDA_WARP, 0, mlki_cuda_list_norm_kernel, sums, parts, 0.0f, g->desc->norm, NULL,
                   g->state ? &g->state->live : NULL);
}

/* Who may take part, the types, the range. */
static void mlki_cuda_average_begin(mlki_cuda_average_job *g) {
  const mlk_average_desc *desc = g->desc;
  double sum = 0.0;
  int64_t total = 0;
  g->in_place = !desc->outputs, g->whole = desc->to == 0;
  for (int r = 0; r < (int)desc->replicas; r++) {
    const float weight = desc->weights ? desc->weights[r] : 1.0f;
    if ((desc->absent >> r & 1u) || !(weight > 0.0f)) continue;
    g->live |= 1ull << r, sum += (double)weight;
    g->who.replica[g->who.lives] = (uint8_t)r, g->who.weight[g->who.lives++] = weight;
  }
  g->factor = (float)((desc->scale ? (double)*desc->scale : 1.0) / sum);
  for (int64_t i = 0; i < desc->count; i++) total += mlki_cuda_count(mlki_cuda_average_in(g, g->who.replica[0], i));
  g->from = desc->from, g->to = g->whole ? total : desc->to;
  g->type = desc->count ? mlki_cuda_average_in(g, g->who.replica[0], 0)->dtype : MLK_F32;
  g->out_type = g->in_place ? g->type : desc->output_count ? desc->outputs[0].dtype : MLK_F32;
  for (int k = 0; k < g->who.lives && g->whole && !g->in_place; k++)
    for (int64_t i = 0; i < desc->count; i++)
      g->aliased |= mlki_cuda_average_in(g, g->who.replica[k], i)->data == desc->outputs[i].data;
}

static mlk_status mlki_cuda_average(mlki_cuda_call *call, const mlk_average_desc *desc) {
  mlki_cuda_average_job g;
  int64_t longest = 0;
  memset(&g, 0, sizeof g);
  g.call = call, g.desc = desc;
  mlki_cuda_average_begin(&g);
  const bool skip = desc->skip_nonfinite && g.from < g.to, always = g.in_place || g.aliased;
  unsigned long long *used = (unsigned long long *)(void *)desc->used;
  call->io->variant = "lists";
  mlki_cuda_average_state *state = mlki_cuda_carve<mlki_cuda_average_state>(call, skip);
  mlki_cuda_average_walk(&g, [&](int64_t i, int64_t, int64_t j, int64_t, int64_t n) {
    if (!mlki_cuda_average_flat(&g, i, j, n)) longest = mlki_cuda_max(longest, n);
  });
  g.sums = mlki_cuda_carve<float>(call, longest);
  if (skip) g.state = state;
  if (skip || used)
    mlki_cuda_launch(call, 1, 1, 0, mlki_cuda_average_begin_kernel, g.state, g.live, g.factor, always, used);
  if (!skip || !always) mlki_cuda_average_pass(&g, skip ? MLKI_CUDA_MEAN_WATCH : MLKI_CUDA_MEAN, false);
  if (skip) {
    mlki_cuda_average_pass(&g, MLKI_CUDA_MEAN, true);
    mlki_cuda_launch(call, 1, 1, 0, mlki_cuda_average_settle_kernel, g.state, g.who,
                     desc->scale ? (double)*desc->scale : 1.0, always, used, call->device->wrong_there);
    mlki_cuda_average_pass(&g, MLKI_CUDA_MEAN_AGAIN, false);
  }
  if (desc->norm) mlki_cuda_average_norm(&g);
  return MLK_OK;
}

#endif /* MLKI_CUDA_AVERAGE */

/* >>cuda_layer ----------------------------------------------------------------------------------------------------- */
#if defined(MLKI_CUDA_LAYERS)

#define MLKI_CUDA_INNER __device__ __forceinline__ /* member functions */

/* --- division by what is known before: n / divisor = the upper half of n factor, shifted, for 0 <= n < 2^63 --- */

typedef struct mlki_cuda_layer_divisor {
  int64_t divisor;
  uint64_t factor; /* 2^(64 + shift) / divisor, rounded up; 0: the divisor is 1 */
  uint32_t narrow; /* the same of 2^(32 + shift), where divisor < 2^31 */
  int shift;
} mlki_cuda_layer_divisor;

/* factor divisor exceeds 2^(64 + shift) by e < divisor <= 2^(shift + 1), and n e < 2^(64 + shift) (Granlund &
   Montgomery, "Division by Invariant Integers using Multiplication", 1994). */
static mlki_cuda_layer_divisor mlki_cuda_layer_divisor_of(int64_t n) {
  mlki_cuda_layer_divisor d = {n < 1 ? 1 : n, 0, 0, 0};
  const uint64_t by = (uint64_t)d.divisor;
  uint64_t rest = 0;
  if (by == 1) return d;
  while (((uint64_t)2 << d.shift) < by) d.shift++;
  for (int bit = 64 + d.shift; bit >= 0; bit--) {
    rest = 2 * rest + (bit == 64 + d.shift);
    d.factor <<= 1;
    if (rest >= by) rest -= by, d.factor |= 1;
  }
  d.factor += rest > 0;
  if (d.shift < 31) d.narrow = (uint32_t)((((uint64_t)1 << (32 + d.shift)) + by - 1) / by);
  return d;
}

MLKI_CUDA_DEVICE int mlki_cuda_quotient_of(int n, const mlki_cuda_layer_divisor &d) {
  return d.factor ? (int)(__umulhi((unsigned)n, d.narrow) >> d.shift) : n;
}

MLKI_CUDA_DEVICE int64_t mlki_cuda_quotient_of(int64_t n, const mlki_cuda_layer_divisor &d) {
  return d.factor ? (int64_t)(__umul64hi((unsigned long long)n, d.factor) >> d.shift) : n;
}

/* --- rows: a view [..., D] as vectors along its last axis, axes before it merged where their strides allow --- */

typedef struct mlki_cuda_layer_rows {
  char *p;      /* NULL: absent */
  int64_t step; /* elements apart along the last axis */
  int axes;
  int64_t stride[MLK_MAX_RANK];
  mlki_cuda_layer_divisor by[MLK_MAX_RANK]; /* sizes */
} mlki_cuda_layer_rows;

/* The first axes axes of t count rows. */
static mlki_cuda_layer_rows mlki_cuda_layer_rows_of(const mlk_tensor *t, int axes) {
  const mlki_cuda_view v = mlki_cuda_view_of(t);
  int64_t size[MLK_MAX_RANK] = {0};
  mlki_cuda_layer_rows r;
  memset(&r, 0, sizeof r);
  r.p = v.p, r.step = 1;
  if (!v.p) return r;
  if (axes < v.rank && v.size[axes] > 1) r.step = v.stride[axes];
  for (int i = 0; i < axes; i++) {
    if (v.size[i] == 1) continue;
    if (r.axes && r.stride[r.axes - 1] == v.size[i] * v.stride[i])
      size[r.axes - 1] *= v.size[i], r.stride[r.axes - 1] = v.stride[i];
    else
      size[r.axes] = v.size[i], r.stride[r.axes++] = v.stride[i];
  }
  for (int i = 0; i < r.axes; i++) r.by[i] = mlki_cuda_layer_divisor_of(size[i]);
  return r;
}

/* Are vectors of 4 possible? Absent views do not mind. d: elements of a row. */
static bool mlki_cuda_rows_by_4(const mlki_cuda_layer_rows &r, int64_t d) {
  if (!r.p) return true;
  if (r.step != 1 || d % 4 || (uintptr_t)r.p % 16) return false;
  for (int i = 0; i < r.axes; i++)
    if (r.stride[i] % 4) return false;
  return true;
}

template <class T> MLKI_CUDA_DEVICE T *mlki_cuda_row(const mlki_cuda_layer_rows &r, int64_t row) {
  int64_t offset = 0;
  for (int i = r.axes - 1; i > 0; i--) {
    const int64_t whole = mlki_cuda_quotient_of(row, r.by[i]);
    offset += (row - whole * r.by[i].divisor) * r.stride[i];
    row = whole;
  }
  if (r.axes) offset += row * r.stride[0];
  return (T *)(void *)r.p + offset;
}

/* Elements j .. j + V - 1 of a row; more than one only where the row is dense and aligned. */
template <int V> MLKI_CUDA_DEVICE void mlki_cuda_get(float *v, const float *p, int64_t step, int64_t j) {
  if (V == 4) {
    const float4 f = *(const float4 *)(const void *)(p + j);
    v[0] = f.x, v[1] = f.y, v[2] = f.z, v[3] = f.w;
  } else {
    v[0] = p[j * step];
  }
}

template <int V> MLKI_CUDA_DEVICE void mlki_cuda_put(float *p, int64_t step, int64_t j, const float *v) {
  if (V == 4)
    *(float4 *)(void *)(p + j) = make_float4(v[0], v[1], v[2], v[3]);
  else
    p[j * step] = v[0];
}

/* a / b for b from 1 to 2^31 with reciprocal = 1 / b, correctly rounded: two corrections by the residual (Markstein,
   "IA-64 and Elementary Functions", 2000), which is exact while nothing underflows. Anything else is divided. */
MLKI_CUDA_DEVICE float mlki_cuda_quotient(float a, float b, float reciprocal) {
  float q = mlki_cuda_mul(a, reciprocal);
  q = mlki_cuda_fma(mlki_cuda_fma(-q, b, a), reciprocal, q);
  q = mlki_cuda_fma(mlki_cuda_fma(-q, b, a), reciprocal, q);
  if ((a >= 0x1p-64f || a == 0.0f) && b <= 0x1p31f) return q;
  return mlki_cuda_div(a, b);
}

/* mlki_log64 of mlk.h. */
MLKI_CUDA_DEVICE double mlki_cuda_log64(double x) {
  const long long bits = __double_as_longlong(x);
  int k = (int)(bits >> 52) - 1023;
  double m = __longlong_as_double((bits & 0xfffffffffffffll) | 0x3ff0000000000000ll);
  if (m > 1.4142135623730951) m = __dmul_rn(m, 0.5), k++;
  const double s = __ddiv_rn(__dadd_rn(m, -1.0), __dadd_rn(m, 1.0)), q = __dmul_rn(s, s), twice = __dadd_rn(s, s);
  double p = 1.0 / 23.0;
#pragma unroll
  for (int i = 21; i >= 3; i -= 2) p = __dadd_rn(__dmul_rn(p, q), 1.0 / (double)i);
  p = __dadd_rn(__dmul_rn(__dmul_rn(twice, q), p), twice);
  p = __dadd_rn(p, __dmul_rn((double)k, 1.9082149292705877e-10));
  return __dadd_rn(__dmul_rn((double)k, 0.693147180369123816490), p);
}

/* log of a row's sum of exponentials, as mlki_log_sum. */
MLKI_CUDA_DEVICE float mlki_cuda_log_sum(float sum) {
  return sum >= 1.0f && sum <= 3.402823466e+38f ? __double2float_rn(mlki_cuda_log64((double)sum)) : sum;
}

/* >>cuda_rows -------------------------------------------------------------------------------------------------------
   What is done with a row: one struct an operator, in this form, and three kernels for all of them.
   stored      floats kept of each element
   stages      sums over the row, one after the other, each of up to two numbers
   peak        is the largest element wanted, before the sums?
   load        gets elements
   term        once the largest is known: what is summed, of one element
   results     is anything wanted but the row's scalars?
   again       must elements be loaded anew for the results, rather than kept as term made them?
   chain       one step of a lane of a sum
   settle      what the row needs of the sums, done by one warp
   take        the settled numbers; speaks: this thread writes the row's scalars
   store       results of elements as loaded or, unless again, as term made them */

/* Softmax, its logarithm, cross-entropy (where labels are there). */
struct mlki_cuda_softmax_rows {
  static constexpr int stored = 1, stages = 1;
  static constexpr bool peak = true;
  mlki_cuda_layer_rows x, out, labels, loss;
  int log;
  float scale;
  int64_t d;
  unsigned long long *wrong;
  struct row {
    const float *x;
    float *out, *loss;
    int64_t label;
    float at, max, sum, other; /* at: x[label]; other: log of the sum, or its reciprocal */
  };

  MLKI_CUDA_INNER void begin(row &r, int64_t i, bool speaks) const {
    r.x = mlki_cuda_row<const float>(x, i);
    r.out = out.p ? mlki_cuda_row<float>(out, i) : NULL;
    r.loss = loss.p ? mlki_cuda_row<float>(loss, i) : NULL;
    r.label = -1, r.at = 0.0f;
    if (!labels.p) return;
    r.label = *mlki_cuda_row<const int64_t>(labels, i);
    if (r.label >= d) {
      if (speaks) mlki_cuda_report(wrong, MLKI_CUDA_LABELS, i);
      r.label = -1;
    }
    if (r.label >= 0) r.at = r.x[r.label * x.step]; /* now: out may be x */
  }
  template <int V> MLKI_CUDA_INNER void load(const row &r, int64_t j, float v[stored][4]) const {
    mlki_cuda_get<V>(v[0], r.x, x.step, j);
  }
  MLKI_CUDA_INNER void top(row &r, float max) const { r.max = max == -INFINITY ? 0.0f : mlki_cuda_add(max, 0.0f); }
  MLKI_CUDA_INNER float term(const row &r, float v) const {
    const float t = mlki_cuda_sub(v, r.max);
    return mlki_exp_bounded_cuda(t < -104.0f ? -104.0f : t);
  }
  MLKI_CUDA_INNER bool again(void) const { return log != 0; }
  MLKI_CUDA_INNER bool results(const row &r) const { return r.out != NULL; }
  MLKI_CUDA_INNER void chain(int, const row &, float sum[2], const float *e) const {
    sum[0] = mlki_cuda_add(sum[0], e[0]);
  }
  MLKI_CUDA_INNER void settle(int, const row &r, float s[2]) const {
    if (s[0] == 0.0f) s[0] = 1.0f;
    if (log || (r.loss && r.label >= 0)) s[1] = mlki_cuda_log_sum(s[0]);
  }
  MLKI_CUDA_INNER void take(int, row &r, const float s[2], bool speaks) const {
    r.sum = s[0], r.other = log ? s[1] : __frcp_rn(s[0]);
    if (speaks && r.loss) *r.loss = r.label < 0 ? 0.0f : mlki_cuda_sub(s[1], mlki_cuda_sub(r.at, r.max));
  }
  template <int V> MLKI_CUDA_INNER void store(const row &r, int64_t j, const float v[stored][4]) const {
    float y[V];
    if (!r.out) return;
#pragma unroll
    for (int i = 0; i < V; i++) {
      y[i] = log ? mlki_cuda_sub(mlki_cuda_sub(v[0][i], r.max), r.other) : mlki_cuda_quotient(v[0][i], r.sum, r.other);
      if (!labels.p) continue;
      y[i] = mlki_cuda_mul(scale, j + i == r.label ? mlki_cuda_sub(y[i], 1.0f) : y[i]);
      if (r.label < 0) y[i] = 0.0f;
    }
    mlki_cuda_put<V>(r.out, out.step, j, y);
  }
};

/* The gradient of softmax: y and dy are stored. */
struct mlki_cuda_softmax_grad_rows {
  static constexpr int stored = 2, stages = 1;
  static constexpr bool peak = false;
  mlki_cuda_layer_rows y, dy, dx;
  int log;
  struct row {
    const float *y, *dy;
    float *dx, sum;
  };

  MLKI_CUDA_INNER void begin(row &r, int64_t i, bool) const {
    r.y = mlki_cuda_row<const float>(y, i), r.dy = mlki_cuda_row<const float>(dy, i);
    r.dx = mlki_cuda_row<float>(dx, i);
  }
  template <int V> MLKI_CUDA_INNER void load(const row &r, int64_t j, float v[stored][4]) const {
    mlki_cuda_get<V>(v[0], r.y, y.step, j);
    mlki_cuda_get<V>(v[1], r.dy, dy.step, j);
  }
  MLKI_CUDA_INNER void top(row &, float) const {}
  MLKI_CUDA_INNER float term(const row &, float v) const { return v; }
  MLKI_CUDA_INNER bool again(void) const { return false; }
  MLKI_CUDA_INNER bool results(const row &) const { return true; }
  MLKI_CUDA_INNER void chain(int, const row &, float sum[2], const float *v) const {
    sum[0] = log ? mlki_cuda_add(sum[0], v[1]) : mlki_cuda_fma(v[0], v[1], sum[0]);
  }
  MLKI_CUDA_INNER void settle(int, const row &, float *) const {}
  MLKI_CUDA_INNER void take(int, row &r, const float s[2], bool) const { r.sum = s[0]; }
  template <int V> MLKI_CUDA_INNER void store(const row &r, int64_t j, const float v[stored][4]) const {
    float x[V];
#pragma unroll
    for (int i = 0; i < V; i++)
      x[i] = log ? mlki_cuda_fma(-mlki_exp_cuda(v[0][i]), r.sum, v[1][i])
                 : mlki_cuda_mul(v[0][i], mlki_cuda_sub(v[1][i], r.sum));
    mlki_cuda_put<V>(r.dx, dx.step, j, x);
  }
};

/* A [D] tensor that may be absent. */
typedef struct mlki_cuda_vector {
  const float *p;
  int64_t step;
} mlki_cuda_vector;

static mlki_cuda_vector mlki_cuda_vector_of(const mlk_tensor *t) {
  const mlki_cuda_view v = mlki_cuda_view_of(t);
  const mlki_cuda_vector r = {(const float *)(const void *)v.p, v.stride[0]};
  return r;
}

static bool mlki_cuda_vector_by_4(const mlki_cuda_vector &v) {
  return !v.p || (v.step == 1 && (uintptr_t)v.p % 16 == 0);
}

/* Elements j .. j + V - 1, or absent. */
template <int V> MLKI_CUDA_DEVICE void mlki_cuda_or(float *v, const mlki_cuda_vector &t, int64_t j, float absent) {
  if (t.p) {
    mlki_cuda_get<V>(v, t.p, t.step, j);
    return;
  }
#pragma unroll
  for (int i = 0; i < V; i++) v[i] = absent;
}

/* Normalisation: the mean (0 of MLK_NORM_RMS), then the mean square of what differs from it. */
struct mlki_cuda_norm_rows {
  static constexpr int stored = 1, stages = 2;
  static constexpr bool peak = false;
  mlki_cuda_layer_rows x, y, mean, rstd;
  mlki_cuda_vector gamma, beta;
  int layer;
  float length, epsilon; /* length: D */
  struct row {
    const float *x;
    float *y, *mean_to, *rstd_to, mean, rstd;
  };

  MLKI_CUDA_INNER void begin(row &r, int64_t i, bool) const {
    r.x = mlki_cuda_row<const float>(x, i), r.y = mlki_cuda_row<float>(y, i);
    r.mean_to = mean.p ? mlki_cuda_row<float>(mean, i) : NULL;
    r.rstd_to = rstd.p ? mlki_cuda_row<float>(rstd, i) : NULL;
    r.mean = r.rstd = 0.0f;
  }
  template <int V> MLKI_CUDA_INNER void load(const row &r, int64_t j, float v[stored][4]) const {
    mlki_cuda_get<V>(v[0], r.x, x.step, j);
  }
  MLKI_CUDA_INNER void top(row &, float) const {}
  MLKI_CUDA_INNER float term(const row &, float v) const { return v; }
  MLKI_CUDA_INNER bool again(void) const { return false; }
  MLKI_CUDA_INNER bool results(const row &) const { return true; }
  MLKI_CUDA_INNER void chain(int stage, const row &r, float sum[2], const float *v) const {
    const float t = mlki_cuda_sub(v[0], r.mean);
    sum[0] = stage ? mlki_cuda_fma(t, t, sum[0]) : mlki_cuda_add(sum[0], v[0]);
  }
  MLKI_CUDA_INNER void settle(int stage, const row &, float s[2]) const {
    s[0] = mlki_cuda_div(s[0], length);
    if (stage)
      s[0] = mlki_cuda_div(1.0f, mlki_cuda_sqrt(mlki_cuda_add(s[0], epsilon)));
    else if (!layer)
      s[0] = 0.0f;
  }
  MLKI_CUDA_INNER void take(int stage, row &r, const float s[2], bool speaks) const {
    float *const to = stage ? r.rstd_to : r.mean_to;
    (stage ? r.rstd : r.mean) = s[0];
    if (speaks && to) *to = s[0];
  }
  template <int V> MLKI_CUDA_INNER void store(const row &r, int64_t j, const float v[stored][4]) const {
    float g[V], b[V];
    mlki_cuda_or<V>(g, gamma, j, 1.0f);
    mlki_cuda_or<V>(b, beta, j, -0.0f);
#pragma unroll
    for (int i = 0; i < V; i++) b[i] = mlki_cuda_fma(mlki_cuda_mul(mlki_cuda_sub(v[0][i], r.mean), r.rstd), g[i], b[i]);
    mlki_cuda_put<V>(r.y, y.step, j, b);
  }
};

/* The gradient of normalisation for x: h = (x - mean) rstd and g = dy gamma are stored. */
struct mlki_cuda_norm_grad_rows {
  static constexpr int stored = 2, stages = 1;
  static constexpr bool peak = false;
  mlki_cuda_layer_rows x, dy, dx, mean, rstd;
  mlki_cuda_vector gamma;
  int layer;
  float length;
  struct row {
    const float *x, *dy;
    float *dx, mean, rstd, a, b;
  };

  MLKI_CUDA_INNER void begin(row &r, int64_t i, bool) const {
    r.x = mlki_cuda_row<const float>(x, i), r.dy = mlki_cuda_row<const float>(dy, i);
    r.dx = mlki_cuda_row<float>(dx, i);
    r.mean = layer ? *mlki_cuda_row<const float>(mean, i) : 0.0f;
    r.rstd = *mlki_cuda_row<const float>(rstd, i);
  }
  template <int V> MLKI_CUDA_INNER void load(const row &r, int64_t j, float v[stored][4]) const {
    float g[V];
    mlki_cuda_get<V>(v[0], r.x, x.step, j);
    mlki_cuda_get<V>(v[1], r.dy, dy.step, j);
    mlki_cuda_or<V>(g, gamma, j, 1.0f);
#pragma unroll
    for (int i = 0; i < V; i++) {
      v[0][i] = mlki_cuda_mul(mlki_cuda_sub(v[0][i], r.mean), r.rstd);
      v[1][i] = mlki_cuda_mul(v[1][i], g[i]);
    }
  }
  MLKI_CUDA_INNER void top(row &, float) const {}
  MLKI_CUDA_INNER float term(const row &, float v) const { return v; }
  MLKI_CUDA_INNER bool again(void) const { return false; }
  MLKI_CUDA_INNER bool results(const row &) const { return true; }
  MLKI_CUDA_INNER void chain(int, const row &, float sum[2], const float *v) const {
    sum[0] = mlki_cuda_add(sum[0], v[1]);
    sum[1] = mlki_cuda_fma(v[1], v[0], sum[1]);
  }
  MLKI_CUDA_INNER void settle(int, const row &, float s[2]) const {
    s[0] = layer ? mlki_cuda_div(s[0], length) : 0.0f;
    s[1] = mlki_cuda_div(s[1], length);
  }
  MLKI_CUDA_INNER void take(int, row &r, const float s[2], bool) const { r.a = s[0], r.b = s[1]; }
  template <int V> MLKI_CUDA_INNER void store(const row &r, int64_t j, const float v[stored][4]) const {
    float t[V];
#pragma unroll
    for (int i = 0; i < V; i++) t[i] = mlki_cuda_mul(r.rstd, mlki_cuda_fma(-v[0][i], r.b, mlki_cuda_sub(v[1][i], r.a)));
    mlki_cuda_put<V>(r.dx, dx.step, j, t);
  }
};

/* Rows of up to LANES N elements in registers, 16 or 32 lanes to a row: element j in lane j % LANES. With 32, lanes 0
   .. 15 are the lanes of the sum, and the others hand them their elements. */
template <class Op, int LANES, int N>
static __global__ void __launch_bounds__(256, 1)
    mlki_cuda_short_rows_kernel(const __grid_constant__ Op op, int64_t rows, int d) {
  const int lane = (int)threadIdx.x % LANES;
  const int64_t i = (int64_t)blockIdx.x * (256 / LANES) + (int)threadIdx.x / LANES;
  const bool there = i < rows; /* half a warp may stand idle, but takes part in the shuffles */
  typename Op::row r;
  float v[N][Op::stored][4], max = -INFINITY;
  if (i - (int)threadIdx.x % 32 / LANES >= rows) return;
  op.begin(r, there ? i : rows - 1, there && lane == 0);
#pragma unroll
  for (int k = 0; k < N; k++) {
#pragma unroll
    for (int a = 0; a < Op::stored; a++) v[k][a][0] = 0.0f;
    if (k * LANES + lane < d) op.template load<1>(r, k * LANES + lane, v[k]);
    if (Op::peak && k * LANES + lane < d) max = v[k][0][0] > max ? v[k][0][0] : max;
  }
  if (Op::peak) {
#pragma unroll
    for (int step = LANES / 2; step > 0; step /= 2) {
      const float other = __shfl_xor_sync(MLKI_CUDA_ALL, max, step);
      max = other > max ? other : max;
    }
    op.top(r, max);
  }
#pragma unroll
  for (int stage = 0; stage < Op::stages; stage++) {
    float sum[2] = {0.0f, 0.0f};
#pragma unroll
    for (int k = 0; k < N; k++) {
      float u[Op::stored];
      if (k * LANES >= d) break;
#pragma unroll
      for (int a = 0; a < Op::stored; a++) {
        u[a] = op.term(r, v[k][a][0]);
        if (Op::peak && !op.again()) v[k][a][0] = u[a];
      }
      if (k * LANES + lane < d) op.chain(stage, r, sum, u);
      if constexpr (LANES == 32) {
#pragma unroll
        for (int a = 0; a < Op::stored; a++) u[a] = __shfl_down_sync(MLKI_CUDA_ALL, u[a], 16);
        if (k * LANES + 16 + lane < d) op.chain(stage, r, sum, u);
      }
    }
#pragma unroll
    for (int s = 0; s < 2; s++) {
      sum[s] = mlki_cuda_sum16(sum[s]);
      if (LANES == 32) sum[s] = __shfl_sync(MLKI_CUDA_ALL, sum[s], 0);
    }
    op.settle(stage, r, sum);
    op.take(stage, r, sum, there && lane == 0);
  }
  __syncwarp(); /* results may take the place of what others read: x[label], an idle half the row of its neighbour */
#pragma unroll
  for (int k = 0; k < N; k++)
    if (there && k * LANES + lane < d) op.template store<1>(r, k * LANES + lane, v[k]);
}

/* The largest of the block's numbers, to all its threads; no NaN. space: of 32 floats. */
MLKI_CUDA_DEVICE float mlki_cuda_block_max(float x, float *space) {
  const int warps = (int)blockDim.x / 32, lane = (int)threadIdx.x % 32;
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    const float other = __shfl_xor_sync(MLKI_CUDA_ALL, x, step);
    x = other > x ? other : x;
  }
  if (lane == 0) space[threadIdx.x / 32] = x;
  __syncthreads();
  x = lane < warps ? space[lane] : space[0];
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    const float other = __shfl_xor_sync(MLKI_CUDA_ALL, x, step);
    x = other > x ? other : x;
  }
  return x;
}

/* Four elements of a thread of a chunk of 4 threads elements that begins at base: neighbours where V is 4. */
template <class Op, int V>
MLKI_CUDA_DEVICE void mlki_cuda_load_4(const Op &op, const typename Op::row &r, int64_t base, int64_t d, int threads,
                                       float v[Op::stored][4]) {
  const int t = (int)threadIdx.x;
  if constexpr (V == 4) {
    if (base + 4 * t < d) op.template load<V>(r, base + 4 * t, v);
  } else {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      float one[Op::stored][4];
      if (base + t + i * threads >= d) break;
      op.template load<1>(r, base + t + i * threads, one);
#pragma unroll
      for (int a = 0; a < Op::stored; a++) v[a][i] = one[a][0];
    }
  }
}

template <class Op, int V>
MLKI_CUDA_DEVICE void mlki_cuda_store_4(const Op &op, const typename Op::row &r, int64_t base, int64_t d, int threads,
                                        const float v[Op::stored][4]) {
  const int t = (int)threadIdx.x;
  if constexpr (V == 4) {
    if (base + 4 * t < d) op.template store<V>(r, base + 4 * t, v);
  } else {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      float one[Op::stored][4];
      if (base + t + i * threads >= d) break;
#pragma unroll
      for (int a = 0; a < Op::stored; a++) one[a][0] = v[a][i];
      op.template store<1>(r, base + t + i * threads, one);
    }
  }
}

/* The same four to and from shared memory; slot holds the chunk, floats of the next stored number lie pitch behind. */
template <int stored, int V>
MLKI_CUDA_DEVICE void mlki_cuda_keep_4(float *slot, int pitch, int64_t left, int threads, float v[stored][4],
                                       bool put) {
  const int t = (int)threadIdx.x;
#pragma unroll
  for (int a = 0; a < stored; a++, slot += pitch) {
    if (V == 4 && 4 * t < left) {
      float4 *const at = (float4 *)(void *)(slot + 4 * t);
      if (put)
        *at = make_float4(v[a][0], v[a][1], v[a][2], v[a][3]);
      else
        v[a][0] = at->x, v[a][1] = at->y, v[a][2] = at->z, v[a][3] = at->w;
    }
#pragma unroll
    for (int i = 0; i < 4 && V == 1; i++)
      if (t + i * threads < left) {
        if (put)
          slot[t + i * threads] = v[a][i];
        else
          v[a][i] = slot[t + i * threads];
      }
  }
}

/* A half warp's steps over n elements in shared memory. */
template <class Op>
MLKI_CUDA_DEVICE void mlki_cuda_chain_chunk(const Op &op, const typename Op::row &r, int stage, const float *slot,
                                            int pitch, int n, float sum[2]) {
  int i = (int)threadIdx.x % 32;
  if (i >= 16) return;
#pragma unroll 16
  for (; i < n; i += 16) {
    float u[Op::stored];
#pragma unroll
    for (int a = 0; a < Op::stored; a++) u[a] = slot[a * pitch + i];
    op.chain(stage, r, sum, u);
  }
}

/* A long row for a block: the last warp does the steps of the sums out of shared memory, chunk by chunk, while the
   others (threads of them) load and make the terms of the next. held: shared memory has room for the row, which is read
   once (with again twice, then from the second-level cache); else for two chunks, and rows that are under way are few
   enough that the later passes over them find them in that cache. */
template <class Op, int V>
static __global__ void __launch_bounds__(1024)
    mlki_cuda_long_rows_kernel(const __grid_constant__ Op op, int64_t rows, int64_t d, int held, int pitch) {
  float *const space = (float *)(void *)mlki_cuda_shared();
  __shared__ float common[32 + 2 * Op::stages];
  const int threads = (int)blockDim.x - 32, chunk = 4 * threads;
  const bool chains = (int)threadIdx.x >= threads;
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    typename Op::row r;
    float v[Op::stored][4];
    op.begin(r, row, threadIdx.x == 0);
    if (Op::peak) {
      float max = -INFINITY;
#pragma unroll 2
      for (int64_t base = 0; base < d && !chains; base += chunk) {
#pragma unroll
        for (int i = 0; i < 4; i++) v[0][i] = -INFINITY; /* no element: not loaded */
        mlki_cuda_load_4<Op, V>(op, r, base, d, threads, v);
#pragma unroll
        for (int i = 0; i < 4; i++) max = v[0][i] > max ? v[0][i] : max;
        if (held) mlki_cuda_keep_4<Op::stored, V>(space + base, pitch, d - base, threads, v, true);
      }
      op.top(r, mlki_cuda_block_max(max, common));
    }
#pragma unroll
    for (int stage = 0; stage < Op::stages; stage++) {
      const bool fresh = !held || !(Op::peak || stage); /* elements come from memory: those of the next chunk before */
      float sum[2] = {0.0f, 0.0f};                      /* the barrier */
      int odd = 0;
      if (!chains && fresh) mlki_cuda_load_4<Op, V>(op, r, 0, d, threads, v);
      for (int64_t base = 0; base < d; base += chunk, odd ^= 1) {
        float *const slot = space + (held ? base : odd * chunk);
        const int64_t left = d - base;
        if (!chains && !(held && stage)) {
          if (!fresh) mlki_cuda_keep_4<Op::stored, V>(slot, pitch, left, threads, v, false);
#pragma unroll
          for (int i = 0; i < 4 && Op::peak; i++) v[0][i] = op.term(r, v[0][i]);
          mlki_cuda_keep_4<Op::stored, V>(slot, pitch, left, threads, v, true);
          if (fresh) mlki_cuda_load_4<Op, V>(op, r, base + chunk, d, threads, v);
        }
        if (!(held && stage)) __syncthreads();
        if (chains) mlki_cuda_chain_chunk(op, r, stage, slot, pitch, (int)(left < chunk ? left : chunk), sum);
      }
      if (chains) {
        sum[0] = mlki_cuda_sum16(sum[0]), sum[1] = mlki_cuda_sum16(sum[1]);
        op.settle(stage, r, sum); /* by lanes 0 .. 15; what the others have is dropped */
        if ((int)threadIdx.x == threads) common[32 + 2 * stage] = sum[0], common[33 + 2 * stage] = sum[1];
      }
      __syncthreads();
      op.take(stage, r, common + 32 + 2 * stage, threadIdx.x == 0);
    }
    for (int64_t base = 0; base < d && !chains && op.results(r); base += chunk) {
      if (held && !op.again()) {
        mlki_cuda_keep_4<Op::stored, V>(space + base, pitch, d - base, threads, v, false);
      } else {
        mlki_cuda_load_4<Op, V>(op, r, base, d, threads, v);
#pragma unroll
        for (int i = 0; i < 4 && Op::peak; i++)
          if (!op.again()) v[0][i] = op.term(r, v[0][i]);
      }
      mlki_cuda_store_4<Op, V>(op, r, base, d, threads, v);
    }
    __syncthreads();
  }
}

/* Rows whose elements are no neighbours, but whose rows may be: a block takes 32 rows, a lane each, and its 16 warps
   are the lanes of the sums. */
template <class Op>
static __global__ void __launch_bounds__(512)
    mlki_cuda_side_by_side_kernel(const __grid_constant__ Op op, int64_t rows, int64_t d) {
  __shared__ float part[2][16][32];
  const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
  const int64_t i = (int64_t)blockIdx.x * 32 + lane;
  const bool there = i < rows;
  typename Op::row r;
  float v[Op::stored][4];
  op.begin(r, there ? i : rows - 1, there && warp == 0);
  if (Op::peak) {
    float max = -INFINITY;
#pragma unroll 4
    for (int64_t j = warp; j < d; j += 16) {
      op.template load<1>(r, j, v);
      max = v[0][0] > max ? v[0][0] : max;
    }
    part[0][warp][lane] = max;
    __syncthreads();
#pragma unroll
    for (int w = 0; w < 16; w++) max = part[0][w][lane] > max ? part[0][w][lane] : max;
    op.top(r, max);
    __syncthreads();
  }
#pragma unroll 1
  for (int stage = 0; stage < Op::stages; stage++) {
    float sum[2] = {0.0f, 0.0f};
#pragma unroll 4
    for (int64_t j = warp; j < d; j += 16) {
      float u[Op::stored];
      op.template load<1>(r, j, v);
#pragma unroll
      for (int a = 0; a < Op::stored; a++) u[a] = op.term(r, v[a][0]);
      op.chain(stage, r, sum, u);
    }
    part[0][warp][lane] = sum[0], part[1][warp][lane] = sum[1];
    __syncthreads();
#pragma unroll
    for (int half = 8; half > 0; half /= 2) { /* the tree, by as many warps as it has leaves */
      if (warp < half)
        for (int s = 0; s < 2; s++)
          part[s][warp][lane] = mlki_cuda_add(part[s][warp][lane], part[s][warp + half][lane]);
      __syncthreads();
    }
    sum[0] = part[0][0][lane], sum[1] = part[1][0][lane];
    __syncthreads();
    op.settle(stage, r, sum);
    op.take(stage, r, sum, there && warp == 0);
  }
  for (int64_t j = warp; j < d && there; j += 16) {
    op.template load<1>(r, j, v);
    if (Op::peak && !op.again()) v[0][0] = op.term(r, v[0][0]);
    op.template store<1>(r, j, v);
  }
}

#define MLKI_CUDA_SHORT_ROW  1024 /* longest row that lies in a warp's registers */
#define MLKI_CUDA_ROW_BLOCKS 3    /* blocks with rows in shared memory that a multiprocessor should have at least */

/* Rows that do not fit in shared memory: blocks so few that the rows under way take half of the second-level cache. */
template <class Op>
static void mlki_cuda_run_huge_rows(mlki_cuda_call *call, const Op &op, int64_t rows, int64_t d, bool by_4) {
  const int block = 1024, pitch = 8 * (block - 32);
  const double row_bytes = 4.0 * (double)d * Op::stored;
  int64_t per_sm = (int64_t)((double)call->device->l2_bytes / 2 / row_bytes / call->device->sms);
  per_sm = per_sm < 1 ? 1 : per_sm > 2 ? 2 : per_sm;
  call->io->variant = "row_in_chunks";
  mlki_cuda_launch(call, mlki_cuda_min(rows, per_sm * call->device->sms), block, (size_t)pitch * 4 * Op::stored,
                   by_4 ? mlki_cuda_long_rows_kernel<Op, 4> : mlki_cuda_long_rows_kernel<Op, 1>, op, rows, d, 0, pitch);
}

/* dense: all views along the last axis; by_4: by vectors, too. */
template <class Op>
static void mlki_cuda_run_rows(mlki_cuda_call *call, const Op &op, int64_t rows, int64_t d, bool dense, bool by_4) {
  const int64_t room = call->device->shared_bytes / MLKI_CUDA_ROW_BLOCKS - 1024;
  const int64_t pitch = mlki_cuda_ceil_div(d, 4) * 4;
  if (rows == 0 || d == 0) return;
  call->io->variant = dense ? d <= MLKI_CUDA_SHORT_ROW ? "row_per_warp" : "row_per_block" : "side_by_side";
  if (!dense) {
    mlki_cuda_launch(call, mlki_cuda_ceil_div(rows, 32), 512, 0, mlki_cuda_side_by_side_kernel<Op>, op, rows, d);
  } else if (d <= 64) {
    mlki_cuda_launch(call, mlki_cuda_ceil_div(rows, 16), 256, 0, mlki_cuda_short_rows_kernel<Op, 16, 4>, op, rows,
                     (int)d);
  } else if (d <= 256) {
    mlki_cuda_launch(call, mlki_cuda_ceil_div(rows, 8), 256, 0, mlki_cuda_short_rows_kernel<Op, 32, 8>, op, rows,
                     (int)d);
  } else if (d <= MLKI_CUDA_SHORT_ROW) {
    mlki_cuda_launch(call, mlki_cuda_ceil_div(rows, 8), 256, 0, mlki_cuda_short_rows_kernel<Op, 32, 32>, op, rows,
                     (int)d);
  } else if (pitch * 4 * Op::stored <= room) {
    mlki_cuda_launch(call, mlki_cuda_min(rows, MLKI_CUDA_GRID), d <= 4096 ? 160 : 288, (size_t)pitch * 4 * Op::stored,
                     by_4 ? mlki_cuda_long_rows_kernel<Op, 4> : mlki_cuda_long_rows_kernel<Op, 1>, op, rows, d, 1,
                     (int)pitch);
  } else {
    mlki_cuda_run_huge_rows(call, op, rows, d, by_4);
  }
}

static mlk_status mlki_cuda_softmax(mlki_cuda_call *call, const mlk_softmax_desc *desc) {
  const int axes = desc->x.rank - 1;
  const int64_t d = desc->x.shape[axes];
  mlki_cuda_softmax_rows op;
  memset(&op, 0, sizeof op);
  op.x = mlki_cuda_layer_rows_of(&desc->x, axes), op.out = mlki_cuda_layer_rows_of(&desc->y, axes);
  op.log = desc->log != 0, op.d = d;
  mlki_cuda_run_rows(call, op, d ? mlki_cuda_count(&desc->x) / d : 0, d, op.x.step == 1 && op.out.step == 1,
                     mlki_cuda_rows_by_4(op.x, d) && mlki_cuda_rows_by_4(op.out, d));
  return call->status;
}

static mlk_status mlki_cuda_cross_entropy(mlki_cuda_call *call, const mlk_cross_entropy_desc *desc) {
  const int axes = desc->x.rank - 1;
  const int64_t d = desc->x.shape[axes], rows = mlki_cuda_count(&desc->labels);
  mlki_cuda_softmax_rows op;
  memset(&op, 0, sizeof op);
  op.x = mlki_cuda_layer_rows_of(&desc->x, axes), op.out = mlki_cuda_layer_rows_of(&desc->dx, axes);
  op.labels = mlki_cuda_layer_rows_of(&desc->labels, axes), op.loss = mlki_cuda_layer_rows_of(&desc->loss, axes);
  op.scale = desc->scale ? *desc->scale : 1.0f, op.d = d, op.wrong = call->device->wrong_there;
  mlki_cuda_run_rows(call, op, rows, d, op.x.step == 1 && op.out.step == 1,
                     mlki_cuda_rows_by_4(op.x, d) && mlki_cuda_rows_by_4(op.out, d));
  return call->status;
}

static mlk_status mlki_cuda_softmax_grad(mlki_cuda_call *call, const mlk_softmax_grad_desc *desc) {
  const int axes = desc->y.rank - 1;
  const int64_t d = desc->y.shape[axes];
  mlki_cuda_softmax_grad_rows op;
  memset(&op, 0, sizeof op);
  op.y = mlki_cuda_layer_rows_of(&desc->y, axes), op.dy = mlki_cuda_layer_rows_of(&desc->dy, axes);
  op.dx = mlki_cuda_layer_rows_of(&desc->dx, axes), op.log = desc->log != 0;
  mlki_cuda_run_rows(call, op, d ? mlki_cuda_count(&desc->y) / d : 0, d,
                     op.y.step == 1 && op.dy.step == 1 && op.dx.step == 1,
                     mlki_cuda_rows_by_4(op.y, d) && mlki_cuda_rows_by_4(op.dy, d) && mlki_cuda_rows_by_4(op.dx, d));
  return call->status;
}

static mlk_status mlki_cuda_norm(mlki_cuda_call *call, const mlk_norm_desc *desc) {
  const int axes = desc->x.rank - 1;
  const int64_t d = desc->x.shape[axes];
  mlki_cuda_norm_rows op;
  memset(&op, 0, sizeof op);
  op.x = mlki_cuda_layer_rows_of(&desc->x, axes), op.y = mlki_cuda_layer_rows_of(&desc->y, axes);
  op.mean = mlki_cuda_layer_rows_of(&desc->mean, axes), op.rstd = mlki_cuda_layer_rows_of(&desc->rstd, axes);
  op.gamma = mlki_cuda_vector_of(&desc->gamma), op.beta = mlki_cuda_vector_of(&desc->beta);
  op.layer = desc->kind == MLK_NORM_LAYER, op.length = (float)d;
  op.epsilon = desc->epsilon == 0.0f ? 1e-5f : desc->epsilon;
  mlki_cuda_run_rows(call, op, d ? mlki_cuda_count(&desc->x) / d : 0, d, op.x.step == 1 && op.y.step == 1,
                     mlki_cuda_rows_by_4(op.x, d) && mlki_cuda_rows_by_4(op.y, d) && mlki_cuda_vector_by_4(op.gamma) &&
                         mlki_cuda_vector_by_4(op.beta));
  return call->status;
}

/* >>cuda_norm_grad --------------------------------------------------------------------------------------------------
   Gradients of gamma and beta: sums over rows. */

#define MLKI_CUDA_LAYER_COLUMNS 128 /* of a block */

typedef struct mlki_cuda_norm_columns {
  mlki_cuda_layer_rows x, dy, mean, rstd;
  int layer;
  int64_t rows, d, tiles; /* tiles of MLKI_CUDA_LAYER_COLUMNS columns */
  float *sums;            /* [segments, 2, D]: dgamma's, then dbeta's */
} mlki_cuda_norm_columns;

/* The chains of a segment of rows, a thread for each column; 2 x 8 loads are under way. */
static __global__ void __launch_bounds__(MLKI_CUDA_LAYER_COLUMNS)
    mlki_cuda_norm_columns_kernel(const __grid_constant__ mlki_cuda_norm_columns p) {
  __shared__ const float *x_at[MLK_SEGMENT], *dy_at[MLK_SEGMENT];
  __shared__ float mean[MLK_SEGMENT], rstd[MLK_SEGMENT];
  const int64_t segment = blockIdx.x / p.tiles, first = segment * MLK_SEGMENT;
  const int64_t column = blockIdx.x % p.tiles * MLKI_CUDA_LAYER_COLUMNS + threadIdx.x;
  const int rows = (int)(p.rows - first < MLK_SEGMENT ? p.rows - first : MLK_SEGMENT);
  float dgamma = 0.0f, dbeta = 0.0f;
  for (int i = (int)threadIdx.x; i < rows; i += MLKI_CUDA_LAYER_COLUMNS) {
    x_at[i] = mlki_cuda_row<const float>(p.x, first + i), dy_at[i] = mlki_cuda_row<const float>(p.dy, first + i);
    mean[i] = p.layer ? *mlki_cuda_row<const float>(p.mean, first + i) : 0.0f;
    rstd[i] = *mlki_cuda_row<const float>(p.rstd, first + i);
  }
  __syncthreads();
  if (column >= p.d) return;
  const int64_t x_column = column * p.x.step, dy_column = column * p.dy.step;
  for (int i = 0; i < rows; i += 8) {
    float x[8], dy[8];
#pragma unroll
    for (int k = 0; k < 8; k++)
      if (i + k < rows) x[k] = x_at[i + k][x_column], dy[k] = dy_at[i + k][dy_column];
#pragma unroll
    for (int k = 0; k < 8; k++)
      if (i + k < rows) {
        dgamma = mlki_cuda_fma(dy[k], mlki_cuda_mul(mlki_cuda_sub(x[k], mean[i + k]), rstd[i + k]), dgamma);
        dbeta = mlki_cuda_add(dbeta, dy[k]);
      }
  }
  p.sums[2 * segment * p.d + column] = dgamma;
  p.sums[(2 * segment + 1) * p.d + column] = dbeta;
}

/* to[j] = sums[0][j] + sums[1][j] + ..., pitch apart, in order; 0 where there are none. */
static __global__ void __launch_bounds__(MLKI_CUDA_LAYER_COLUMNS)
    mlki_cuda_add_segments_kernel(const float *sums, int64_t segments, int64_t pitch, int64_t d, float *to,
                                  int64_t step, float accumulate) {
  const int64_t j = (int64_t)blockIdx.x * MLKI_CUDA_LAYER_COLUMNS + threadIdx.x;
  if (j >= d) return;
  float sum = segments ? sums[j] : 0.0f;
#pragma unroll 8
  for (int64_t s = 1; s < segments; s++) sum = mlki_cuda_add(sum, sums[s * pitch + j]);
  to += j * step;
  *to = accumulate == 0.0f ? sum : mlki_cuda_fma(accumulate, *to, sum);
}

/* dgamma and dbeta, before dx, which may be dy. */
static void mlki_cuda_norm_sums(mlki_cuda_call *call, const mlk_norm_grad_desc *desc,
                                const mlki_cuda_norm_grad_rows &op, int64_t rows, int64_t d) {
  const int64_t segments = mlki_cuda_ceil_div(rows, MLK_SEGMENT),
                tiles = mlki_cuda_ceil_div(d, MLKI_CUDA_LAYER_COLUMNS);
  const float accumulate = desc->accumulate ? *desc->accumulate : 0.0f;
  const mlk_tensor *const results[2] = {&desc->dgamma, &desc->dbeta};
  mlki_cuda_norm_columns p;
  memset(&p, 0, sizeof p);
  p.x = op.x, p.dy = op.dy, p.mean = op.mean, p.rstd = op.rstd, p.layer = op.layer;
  p.rows = rows, p.d = d, p.tiles = tiles;
  p.sums = mlki_cuda_carve<float>(call, segments * 2 * d);
  mlki_cuda_launch(call, segments * tiles, MLKI_CUDA_LAYER_COLUMNS, 0, mlki_cuda_norm_columns_kernel, p);
  for (int i = 0; i < 2; i++) {
    const mlki_cuda_view to = mlki_cuda_view_of(results[i]);
    if (to.p)
      mlki_cuda_launch(call, tiles, MLKI_CUDA_LAYER_COLUMNS, 0, mlki_cuda_add_segments_kernel, p.sums + i * d, segments,
                       2 * d, d, (float *)(void *)to.p, to.stride[0], accumulate);
  }
}

static mlk_status mlki_cuda_norm_grad(mlki_cuda_call *call, const mlk_norm_grad_desc *desc) {
  const int axes = desc->x.rank - 1;
  const int64_t d = desc->x.shape[axes], rows = d ? mlki_cuda_count(&desc->x) / d : 0;
  mlki_cuda_norm_grad_rows op;
  memset(&op, 0, sizeof op);
  op.x = mlki_cuda_layer_rows_of(&desc->x, axes), op.dy = mlki_cuda_layer_rows_of(&desc->dy, axes);
  op.dx = mlki_cuda_layer_rows_of(&desc->dx, axes);
  op.mean = mlki_cuda_layer_rows_of(&desc->mean, axes), op.rstd = mlki_cuda_layer_rows_of(&desc->rstd, axes);
  op.gamma = mlki_cuda_vector_of(&desc->gamma);
  op.layer = desc->kind == MLK_NORM_LAYER, op.length = (float)d;
  if (d && (desc->dgamma.data || desc->dbeta.data)) mlki_cuda_norm_sums(call, desc, op, rows, d);
  if (op.dx.p)
    mlki_cuda_run_rows(call, op, rows, d, op.x.step == 1 && op.dy.step == 1 && op.dx.step == 1,
                       mlki_cuda_rows_by_4(op.x, d) && mlki_cuda_rows_by_4(op.dy, d) && mlki_cuda_rows_by_4(op.dx, d) &&
                           mlki_cuda_vector_by_4(op.gamma));
  return call->status;
}

/* >>cuda_embedding ------------------------------------------------------------------------------------------------- */

typedef struct mlki_cuda_embedding_rows {
  float *table;
  int64_t table_stride, table_step, v, d, rows;
  mlki_cuda_layer_rows ids, out; /* out: or the gradient of it */
  unsigned long long *wrong;
} mlki_cuda_embedding_rows;

static mlki_cuda_embedding_rows mlki_cuda_embedding_of(const mlki_cuda_call *call, const mlk_tensor *table,
                                                       const mlk_tensor *ids, const mlk_tensor *out) {
  const mlki_cuda_view t = mlki_cuda_view_of(table);
  mlki_cuda_embedding_rows e;
  memset(&e, 0, sizeof e);
  e.table = (float *)(void *)t.p, e.table_stride = t.stride[0];
  e.v = table->shape[0], e.d = table->shape[1], e.rows = mlki_cuda_count(ids);
  e.table_step = e.d > 1 ? t.stride[1] : 1;
  e.ids = mlki_cuda_layer_rows_of(ids, ids->rank), e.out = mlki_cuda_layer_rows_of(out, ids->rank);
  e.wrong = call->device->wrong_there;
  return e;
}

static bool mlki_cuda_embedding_by_4(const mlki_cuda_embedding_rows &e) {
  return mlki_cuda_rows_by_4(e.out, e.d) && e.table_step == 1 && e.table_stride % 4 == 0 &&
         (uintptr_t)e.table % 16 == 0;
}

/* out = table[ids], group threads to a row. */
template <int V>
static __global__ void __launch_bounds__(256, 1)
    mlki_cuda_embedding_kernel(const __grid_constant__ mlki_cuda_embedding_rows e, int group) {
  const int lane = (int)threadIdx.x % group;
  const int64_t at_once = 256 / group;
  for (int64_t i = blockIdx.x * at_once + (int)threadIdx.x / group; i < e.rows; i += gridDim.x * at_once) {
    int64_t id = *mlki_cuda_row<const int64_t>(e.ids, i);
    if (id >= e.v) {
      if (lane == 0) mlki_cuda_report(e.wrong, MLKI_CUDA_IDS, i);
      id = -1;
    }
    const float *const from = e.table + (id < 0 ? 0 : id * e.table_stride);
    float *const to = mlki_cuda_row<float>(e.out, i);
#pragma unroll 4
    for (int64_t j = lane * V; j < e.d; j += group * V) {
      float v[V] = {0.0f};
      if (id >= 0) mlki_cuda_get<V>(v, from, e.table_step, j);
      mlki_cuda_put<V>(to, e.out.step, j, v);
    }
  }
}

static mlk_status mlki_cuda_embedding(mlki_cuda_call *call, const mlk_embedding_desc *desc) {
  const mlki_cuda_embedding_rows e = mlki_cuda_embedding_of(call, &desc->table, &desc->ids, &desc->out);
  const bool by_4 = mlki_cuda_embedding_by_4(e);
  int group = 1;
  while (group < 256 && group * (by_4 ? 4 : 1) < e.d) group *= 2;
  call->io->variant = "copy";
  if (e.d)
    mlki_cuda_launch(call, mlki_cuda_min(mlki_cuda_ceil_div(e.rows, 256 / group), MLKI_CUDA_GRID), 256, 0,
                     by_4 ? mlki_cuda_embedding_kernel<4> : mlki_cuda_embedding_kernel<1>, e, group);
  return call->status;
}

/* The gradient: the places of ids are sorted by id, stably, 8 bits at a time from the lowest; then every row of the
   table is a chain over its places, which are neighbours now and ascend. No order depends on time. */

#define MLKI_CUDA_SORT_TILE 4096      /* places of a block: 16 rounds of 32 for each of 8 warps */
#define MLKI_CUDA_SORT_MOST (1 << 20) /* places sorted together: 256 tiles, whose counts each block adds up */
#define MLKI_CUDA_LONG_LIST 64        /* longer ones are chained by blocks of their own */

typedef struct mlki_cuda_layer_sort {
  mlki_cuda_embedding_rows e;
  int64_t first; /* places are counted from here */
  int count, shift;
  const uint32_t *from; /* NULL: 0, 1, ... */
  uint32_t *to;
  unsigned *counts;     /* [tiles, 256] */
  unsigned *long_lists; /* how many, where each begins (in any order) */
} mlki_cuda_layer_sort;

/* The id at a place; V where it takes no part. */
MLKI_CUDA_DEVICE int64_t mlki_cuda_sort_key(const mlki_cuda_layer_sort &s, uint32_t place) {
  const int64_t id = *mlki_cuda_row<const int64_t>(s.e.ids, s.first + place);
  return id < 0 || id > s.e.v ? s.e.v : id;
}

/* How often each digit occurs in each tile; in the first pass also: is every id in its range? */
static __global__ void __launch_bounds__(256)
    mlki_cuda_sort_count_kernel(const __grid_constant__ mlki_cuda_layer_sort s) {
  __shared__ unsigned counts[256];
  const int first = (int)blockIdx.x * MLKI_CUDA_SORT_TILE, end = min(first + MLKI_CUDA_SORT_TILE, s.count);
  if (!s.from && blockIdx.x == 0 && threadIdx.x == 0) s.long_lists[0] = 0;
  counts[threadIdx.x] = 0;
  __syncthreads();
  for (int i = first + (int)threadIdx.x; i < end; i += 256) {
    const uint32_t place = s.from ? s.from[i] : (uint32_t)i;
    atomicAdd(&counts[mlki_cuda_sort_key(s, place) >> s.shift & 255], 1u);
    if (!s.from && *mlki_cuda_row<const int64_t>(s.e.ids, s.first + place) >= s.e.v)
      mlki_cuda_report(s.e.wrong, MLKI_CUDA_IDS, s.first + place);
  }
  __syncthreads();
  s.counts[blockIdx.x * 256 + threadIdx.x] = counts[threadIdx.x];
}

/* The block's 256 numbers, each replaced by the sum of those before it. space: of 8. */
MLKI_CUDA_DEVICE unsigned mlki_cuda_sums_before(unsigned x, unsigned *space) {
  const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
  unsigned sum = x, before = 0;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const unsigned other = __shfl_up_sync(MLKI_CUDA_ALL, sum, (unsigned)step);
    if (lane >= step) sum += other;
  }
  if (lane == 31) space[warp] = sum;
  __syncthreads();
  for (int w = 0; w < warp; w++) before += space[w];
  return before + sum - x;
}

/* Every place goes behind those of lower digits, and of the same digit those before it. */
static __global__ void __launch_bounds__(256)
    mlki_cuda_sort_place_kernel(const __grid_constant__ mlki_cuda_layer_sort s) {
  __shared__ unsigned counts[8][256], space[8];
  const int digit = (int)threadIdx.x, lane = digit % 32, warp = digit / 32;
  const int first = (int)blockIdx.x * MLKI_CUDA_SORT_TILE + warp * (MLKI_CUDA_SORT_TILE / 8);
  unsigned all = 0, at = 0, rank[16];
  uint32_t place[16];
  int digits[16];
#pragma unroll 8
  for (int tile = 0; tile < (int)gridDim.x; tile++) {
    const unsigned n = s.counts[tile * 256 + digit];
    all += n;
    at += tile < (int)blockIdx.x ? n : 0;
  }
  at += mlki_cuda_sums_before(all, space);
  for (int w = 0; w < 8; w++) counts[w][digit] = 0;
  __syncthreads();
#pragma unroll
  for (int round = 0; round < 16;
       round++) { /* the warp's places in order: equal digits before, here and in lower lanes */
    const int i = first + round * 32 + lane;
    place[round] = i < s.count ? s.from ? s.from[i] : (uint32_t)i : 0;
    digits[round] = i < s.count ? (int)(mlki_cuda_sort_key(s, place[round]) >> s.shift & 255) : 256;
  }
#pragma unroll
  for (int round = 0; round < 16; round++) {
    const unsigned equal = __match_any_sync(MLKI_CUDA_ALL, digits[round]), lower = equal & ((1u << lane) - 1);
    if (digits[round] < 256) rank[round] = counts[warp][digits[round]] + (unsigned)__popc(lower);
    __syncwarp();
    if (digits[round] < 256 && !lower) counts[warp][digits[round]] += (unsigned)__popc(equal);
    __syncwarp();
  }
  __syncthreads();
  for (int w = 0; w < 8; w++) {
    const unsigned n = counts[w][digit];
    counts[w][digit] = at;
    at += n;
  }
  __syncthreads();
#pragma unroll
  for (int round = 0; round < 16; round++)
    if (digits[round] < 256) s.to[counts[warp][digits[round]] + rank[round]] = place[round];
}

/* A warp for each place of the sorted list: the first of an id adds all of them to its row, or notes that the list is
   long. */
template <int V>
static __global__ void __launch_bounds__(256, 1)
    mlki_cuda_chain_lists_kernel(const __grid_constant__ mlki_cuda_layer_sort s) {
  const int lane = (int)threadIdx.x % 32, at = (int)blockIdx.x * 8 + (int)threadIdx.x / 32;
  const float *from[2] = {NULL, NULL};
  int n = 0;
  if (at >= s.count) return;
  const int64_t id = mlki_cuda_sort_key(s, s.to[at]);
  if (id == s.e.v || (at > 0 && mlki_cuda_sort_key(s, s.to[at - 1]) == id)) return;
  if (at + MLKI_CUDA_LONG_LIST < s.count && mlki_cuda_sort_key(s, s.to[at + MLKI_CUDA_LONG_LIST]) == id) {
    if (lane == 0) s.long_lists[1 + atomicAdd(s.long_lists, 1u)] = (unsigned)at;
    return;
  }
#pragma unroll
  for (int k = 0; k < 2; k++) {
    const int i = at + 32 * k + lane;
    const bool mine = i < s.count && mlki_cuda_sort_key(s, s.to[i]) == id;
    if (mine) from[k] = mlki_cuda_row<const float>(s.e.out, s.first + s.to[i]);
    n += __popc(__ballot_sync(MLKI_CUDA_ALL, mine));
  }
  float *const row = s.e.table + id * s.e.table_stride;
  for (int64_t base = 0; base < s.e.d; base += 32 * V) {
    const int64_t j = base + lane * V;
    float sum[V] = {0.0f};
    if (j < s.e.d) mlki_cuda_get<V>(sum, row, s.e.table_step, j);
#pragma unroll 4
    for (int k = 0; k < n; k++) {
      const float *const dout = (const float *)__shfl_sync(MLKI_CUDA_ALL,
                                                           (unsigned long long)(k < 32 ? from[0] : from[1]), k % 32);
      float v[V];
      if (j >= s.e.d) continue;
      mlki_cuda_get<V>(v, dout, s.e.out.step, j);
#pragma unroll
      for (int i = 0; i < V; i++) sum[i] = mlki_cuda_add(sum[i], v[i]);
    }
    if (j < s.e.d) mlki_cuda_put<V>(row, s.e.table_step, j, sum);
  }
}

#define MLKI_CUDA_LIST_STAGES 4

/* Where the list that begins at lo ends: 256 places between what is inside and what is not are looked at, again and
   again. By the whole block of 256. */
MLKI_CUDA_DEVICE int mlki_cuda_list_end(const mlki_cuda_layer_sort &s, int lo, int64_t id) {
  int hi = s.count;
  while (hi - lo > 1) {
    const int step = (hi - lo + 255) / 256, i = lo + (int)threadIdx.x * step;
    const int in = __syncthreads_count(i < hi && mlki_cuda_sort_key(s, s.to[i < hi ? i : lo]) == id);
    lo += (in - 1) * step;
    hi = min(hi, lo + step);
  }
  return hi;
}

/* Columns [column, column + 32) of the list [first, end): a block brings 64 rows at a time into shared memory, three
   such stages ahead of one warp that adds them. */
template <int V>
MLKI_CUDA_DEVICE void mlki_cuda_chain_long_list(const mlki_cuda_layer_sort &s, int first, int end, float *row,
                                                int64_t column) {
  __shared__ __align__(16) float stages[MLKI_CUDA_LIST_STAGES][MLKI_CUDA_LONG_LIST][32];
  const int chunks = (end - first + MLKI_CUDA_LONG_LIST - 1) / MLKI_CUDA_LONG_LIST, lane = (int)threadIdx.x;
  const bool adds = lane < 32 && column + lane < s.e.d;
  float *const to = row + (column + lane) * s.e.table_step;
  float sum = adds ? *to : 0.0f;
  for (int c = 1 - MLKI_CUDA_LIST_STAGES; c < chunks; c++) {
    const int next = c + MLKI_CUDA_LIST_STAGES - 1;
    for (int i = (int)threadIdx.x; i < MLKI_CUDA_LONG_LIST * 32 / V && next < chunks; i += 256) {
      const int r = i / (32 / V), j = i % (32 / V) * V, at = first + next * MLKI_CUDA_LONG_LIST + r;
      if (at < end && column + j < s.e.d)
        mlki_cuda_cp_async<4 * V>(&stages[next % MLKI_CUDA_LIST_STAGES][r][j],
                                  mlki_cuda_row<const float>(s.e.out, s.first + s.to[at]) + (column + j) * s.e.out.step,
                                  4 * V);
    }
    mlki_cuda_cp_commit();
    if (c < 0) continue;
    mlki_cuda_cp_wait<MLKI_CUDA_LIST_STAGES - 1>();
    __syncthreads();
    const int rows = min(end - first - c * MLKI_CUDA_LONG_LIST, MLKI_CUDA_LONG_LIST);
#pragma unroll 8
    for (int k = 0; k < rows && adds; k++) sum = mlki_cuda_add(sum, stages[c % MLKI_CUDA_LIST_STAGES][k][lane]);
    __syncthreads(); /* the next turn fills this stage */
  }
  mlki_cuda_cp_wait<0>();
  if (adds) *to = sum;
}

/* Blocks take long lists x 32 columns in turn. */
template <int V>
static __global__ void __launch_bounds__(256)
    mlki_cuda_chain_long_lists_kernel(const __grid_constant__ mlki_cuda_layer_sort s, int tiles) {
  const int64_t items = (int64_t)s.long_lists[0] * tiles;
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const int first = (int)s.long_lists[1 + item / tiles];
    const int64_t id = mlki_cuda_sort_key(s, s.to[first]);
    mlki_cuda_chain_long_list<V>(s, first, mlki_cuda_list_end(s, first, id), s.e.table + id * s.e.table_stride,
                                 item % tiles * 32);
  }
}

static mlk_status mlki_cuda_embedding_grad(mlki_cuda_call *call, const mlk_embedding_grad_desc *desc) {
  mlki_cuda_layer_sort s;
  memset(&s, 0, sizeof s);
  s.e = mlki_cuda_embedding_of(call, &desc->dtable, &desc->ids, &desc->dout);
  const bool by_4 = mlki_cuda_embedding_by_4(s.e);
  const int64_t most = mlki_cuda_min(s.e.rows, MLKI_CUDA_SORT_MOST);
  const int tiles = (int)mlki_cuda_ceil_div(s.e.d, 32);
  uint32_t *const lists[2] = {mlki_cuda_carve<uint32_t>(call, most), mlki_cuda_carve<uint32_t>(call, most)};
  s.counts = mlki_cuda_carve<unsigned>(call, mlki_cuda_ceil_div(most, MLKI_CUDA_SORT_TILE) * 256);
  s.long_lists = mlki_cuda_carve<unsigned>(call, 1 + most / (MLKI_CUDA_LONG_LIST + 1));
  call->io->variant = "sorted";
  for (; s.first < s.e.rows && s.e.d; s.first += s.count) {
    s.count = (int)mlki_cuda_min(s.e.rows - s.first, MLKI_CUDA_SORT_MOST);
    s.from = NULL, s.to = lists[0], s.shift = 0;
    for (int pass = 0; pass == 0 || (s.shift < 63 && s.e.v >> s.shift); pass++, s.shift += 8) {
      const int64_t blocks = mlki_cuda_ceil_div(s.count, MLKI_CUDA_SORT_TILE);
      s.from = pass ? lists[(pass + 1) % 2] : NULL, s.to = lists[pass % 2];
      mlki_cuda_launch(call, blocks, 256, 0, mlki_cuda_sort_count_kernel, s);
      mlki_cuda_launch(call, blocks, 256, 0, mlki_cuda_sort_place_kernel, s);
    }
    mlki_cuda_launch(call, mlki_cuda_ceil_div(s.count, 8), 256, 0,
                     by_4 ? mlki_cuda_chain_lists_kernel<4> : mlki_cuda_chain_lists_kernel<1>, s);
    if (s.count > MLKI_CUDA_LONG_LIST)
      mlki_cuda_launch(call, 4 * call->device->sms, 256, 0,
                       by_4 ? mlki_cuda_chain_long_lists_kernel<4> : mlki_cuda_chain_long_lists_kernel<1>, s, tiles);
  }
  return call->status;
}

/* >>cuda_rotary -----------------------------------------------------------------------------------------------------
   Rotary positions: >>rotary of mlk.h, the same words and roundings. */

#define MLKI_CUDA_PAIRS 256 /* of a block */

typedef struct mlki_cuda_frequency {
  double radians;
  uint32_t turns[4];
} mlki_cuda_frequency;

typedef struct mlki_cuda_rotary_rows {
  mlki_cuda_layer_rows x, y, positions; /* x, y: the batch */
  int64_t xs[3], ys[3];                 /* strides of S, H and D */
  int64_t batch, s, h, d, pairs, tiles, parts, first;
  int own, interleaved, inverse, copies; /* copies: of what is not turned */
  const mlki_cuda_frequency *frequencies;
  unsigned long long *wrong;
} mlki_cuda_rotary_rows;

/* e^x, |x| < 100. */
MLKI_CUDA_DEVICE double mlki_cuda_exp64(double x) {
  const int n = (int)__dadd_rn(__dmul_rn(x, 1.4426950408889634074), x < 0 ? -0.5 : 0.5);
  const double r = __dadd_rn(__dadd_rn(x, -__dmul_rn((double)n, 0.693147180369123816490)),
                             -__dmul_rn((double)n, 1.9082149292705877e-10));
  double p = 1.0;
#pragma unroll 1 /* divisions by what is known become products that nvcc may contract */
  for (int i = 14; i >= 1; i--) p = __dadd_rn(__dmul_rn(p, __ddiv_rn(r, (double)i)), 1.0);
  return __dmul_rn(p, __longlong_as_double((long long)(n + 1023) << 52));
}

/* |radians| / (2 pi) modulo 1 in words of 32 bits. */
MLKI_CUDA_DEVICE mlki_cuda_frequency mlki_cuda_frequency_of(float radians) {
  const uint32_t turn[9] = {0x28be60dbu, 0x9391054au, 0x7f09d5f4u, 0x7d4d3770u, 0x36d8a566u,
                            0x4f10e410u, 0x7f9458eau, 0xf7aef158u, 0x6dc91b8eu}; /* 1 / (2 pi) */
  const uint32_t bits = __float_as_uint(radians), field = bits >> 23 & 255;
  const uint64_t mantissa = (bits & 0x7fffff) | (field ? 0x800000u : 0);
  const int shift = (int)(field ? field : 1) - 150;
  const int first = shift + 352, skip = first / 32 - 6, bit = first % 32; /* place of the first bit wanted in word */
  uint32_t word[14] = {0}; /* four before mantissa / (2 pi), which has one before the point and nine after it */
  uint64_t carry = 0;
  mlki_cuda_frequency f;
#pragma unroll
  for (int i = 8; i >= 0; i--) {
    carry += mantissa * turn[i];
    word[i + 5] = (uint32_t)carry;
    carry >>= 32;
  }
  word[4] = (uint32_t)carry;
#pragma unroll
  for (int step = 8; step > 0; step /= 2) /* indices that are known keep the words in registers */
#pragma unroll
    for (int i = 0; i < 14; i++)
      if (skip & step) word[i] = i + step < 14 ? word[i + step] : 0;
  f.radians = (double)radians;
#pragma unroll
  for (int i = 0; i < 4; i++) f.turns[i] = (uint32_t)(((uint64_t)word[i] << 32 | word[i + 1]) >> (32 - bit));
  return f;
}

/* given: NULL: from theta. */
static __global__ void __launch_bounds__(128)
    mlki_cuda_frequencies_kernel(mlki_cuda_frequency *f, int64_t pairs, const float *given, int64_t step,
                                 double theta) {
  const int64_t j = (int64_t)blockIdx.x * 128 + threadIdx.x;
  if (j >= pairs) return;
  f[j] = mlki_cuda_frequency_of(
      given ? given[j * step]
            : __double2float_rn(mlki_cuda_exp64(__dmul_rn(-(double)j / (double)pairs, mlki_cuda_log64(theta)))));
}

/* sin and cos of |a| <= 0.786. */
MLKI_CUDA_DEVICE void mlki_cuda_sincos64(double a, double *sine, double *cosine) {
  const double s[8] = {-1.0 / 6,
                       1.0 / 120,
                       -1.0 / 5040,
                       1.0 / 362880,
                       -1.0 / 39916800,
                       1.0 / 6227020800.0,
                       -1.0 / 1307674368000.0,
                       1.0 / 355687428096000.0};
  const double c[9] = {-1.0 / 2,
                       1.0 / 24,
                       -1.0 / 720,
                       1.0 / 40320,
                       -1.0 / 3628800,
                       1.0 / 479001600,
                       -1.0 / 87178291200.0,
                       1.0 / 20922789888000.0,
                       -1.0 / 6402373705728000.0};
  const double q = __dmul_rn(a, a);
  double ps = s[7], pc = c[8];
#pragma unroll
  for (int i = 6; i >= 0; i--) ps = __dadd_rn(__dmul_rn(ps, q), s[i]);
#pragma unroll
  for (int i = 7; i >= 0; i--) pc = __dadd_rn(__dmul_rn(pc, q), c[i]);
  *sine = __dadd_rn(__dmul_rn(__dmul_rn(a, q), ps), a);
  *cosine = __dadd_rn(__dmul_rn(q, pc), 1.0);
}

/* Cosine and sine of position * frequency, position >= 0. */
MLKI_CUDA_DEVICE float2 mlki_cuda_rotation(const mlki_cuda_frequency &f, int64_t position) {
  const uint64_t low = (uint64_t)position & 0xffffffffu, high = (uint64_t)position >> 32;
  const double size = f.radians < 0 ? -f.radians : f.radians;
  double angle = __dmul_rn((double)position, size), s, c;
  unsigned quarter = 0;
  if (!(size <= 3.4028234663852886e38)) return make_float2(NAN, NAN); /* FLT_MAX */
  if (angle > 0.5) {
    uint32_t turns[4];
    uint64_t carry = 0;
#pragma unroll
    for (int i = 3; i >= 0; i--) {
      const uint64_t a = low * f.turns[i], b = i < 3 ? high * f.turns[i + 1] : 0;
      carry += (a & 0xffffffffu) + (b & 0xffffffffu);
      turns[i] = (uint32_t)carry;
      carry = (carry >> 32) + (a >> 32) + (b >> 32);
    }
    const uint64_t left = (uint64_t)turns[0] << 32 | turns[1];
    quarter = (unsigned)((left + ((uint64_t)1 << 61)) >> 62) & 3;
    const uint64_t rest = left - ((uint64_t)quarter << 62); /* modulo 2^64, between -2^61 and 2^61 */
    angle = rest >> 63 ? -(double)(0 - rest) : (double)rest;
    angle = __dmul_rn(__dadd_rn(angle, __dmul_rn((double)turns[2], 1.0 / 4294967296.0)),
                      6.283185307179586476925 / 18446744073709551616.0);
  }
  mlki_cuda_sincos64(angle, &s, &c);
  if (quarter & 1) angle = s, s = c, c = -angle;
  if (quarter & 2) s = -s, c = -c;
  return make_float2(__double2float_rn(c), __double2float_rn(f.radians < 0 ? -s : s));
}

/* Pairs j .. j + V - 1 of a head; table: of these pairs. */
template <int V, bool interleaved>
MLKI_CUDA_DEVICE void mlki_cuda_turn(const mlki_cuda_rotary_rows &p, float *y, const float *x, int64_t j,
                                     const float2 *table) {
  const int64_t at = interleaved ? 2 * j : j, other = interleaved ? at + V : at + p.pairs;
  constexpr bool mixed = interleaved &&
                         V == 4; /* a and b hold pairs 0, 1 and 2, 3, not their first and second elements */
  float a[4], b[4];
  mlki_cuda_get<V>(a, x, p.xs[2], at);
  mlki_cuda_get<V>(b, x, p.xs[2], other);
  if (mixed) {
    const float a1 = a[1], b0 = b[0], b2 = b[2];
    a[1] = a[2], b[0] = a1, b[2] = b[1], b[1] = a[3], a[2] = b0, a[3] = b2;
  }
#pragma unroll
  for (int i = 0; i < V; i++) {
    const float x0 = a[i], x1 = b[i];
    a[i] = mlki_cuda_fma(-x1, table[i].y, mlki_cuda_mul(x0, table[i].x));
    b[i] = mlki_cuda_fma(x0, table[i].y, mlki_cuda_mul(x1, table[i].x));
  }
  if (mixed) {
    const float a1 = a[1], a2 = a[2], a3 = a[3];
    a[1] = b[0], a[2] = a1, a[3] = b[1], b[0] = a2, b[1] = b[2], b[2] = a3;
  }
  mlki_cuda_put<V>(y, p.ys[2], at, a);
  mlki_cuda_put<V>(y, p.ys[2], other, b);
}

/* What lies behind the turned elements, of rows [from, to) of the batch: a warp for each head. */
MLKI_CUDA_DEVICE void mlki_cuda_rotary_copy(const mlki_cuda_rotary_rows &p, int64_t s, int64_t from, int64_t to) {
  for (int64_t i = threadIdx.x / 32; i < (to - from) * p.h; i += 8) {
    const int64_t b = from + i / p.h, h = i % p.h;
    const float *const x = mlki_cuda_row<const float>(p.x, b) + s * p.xs[0] + h * p.xs[1];
    float *const y = mlki_cuda_row<float>(p.y, b) + s * p.ys[0] + h * p.ys[1];
    for (int64_t j = 2 * p.pairs + threadIdx.x % 32; j < p.d; j += 32) y[j * p.ys[2]] = x[j * p.xs[2]];
  }
}

/* A unit is a position of the sequence, a part of the batch (where rows have their own positions: a row) and a tile of
   the pairs: their cosines and sines are made once, for all its heads. */
template <int V, bool interleaved>
static __global__ void __launch_bounds__(256)
    mlki_cuda_rotary_kernel(const __grid_constant__ mlki_cuda_rotary_rows p, int64_t units) {
  __shared__ float2 table[MLKI_CUDA_PAIRS];
  for (int64_t unit = blockIdx.x; unit < units; unit += gridDim.x) {
    const int64_t tile = unit % p.tiles, part = unit / p.tiles % p.parts, s = unit / p.tiles / p.parts;
    const int64_t from = p.batch * part / p.parts, to = p.batch * (part + 1) / p.parts, at = p.own ? from * p.s + s : s;
    const int64_t left = p.pairs - tile * MLKI_CUDA_PAIRS;
    const int pairs = (int)(left < MLKI_CUDA_PAIRS ? left : MLKI_CUDA_PAIRS), groups = pairs / V;
    int64_t position = p.positions.p ? *mlki_cuda_row<const int64_t>(p.positions, at) : p.first + s;
    if (position < 0) {
      if (threadIdx.x == 0) mlki_cuda_report(p.wrong, MLKI_CUDA_POSITIONS, at);
      position = 0;
    }
    if ((int)threadIdx.x < pairs) {
      float2 t = mlki_cuda_rotation(p.frequencies[tile * MLKI_CUDA_PAIRS + threadIdx.x], position);
      if (p.inverse) t.y = -t.y;
      table[threadIdx.x] = t;
    }
    __syncthreads();
    const int at_once = groups ? 256 / groups : 0, j = groups ? (int)threadIdx.x % groups * V : 0;
    int64_t b = from, h = groups ? (int)threadIdx.x / groups : 0;
    for (const bool works = h < at_once; works; h += at_once) {
      while (h >= p.h) h -= p.h, b++;
      if (b >= to) break;
      mlki_cuda_turn<V, interleaved>(p, mlki_cuda_row<float>(p.y, b) + s * p.ys[0] + h * p.ys[1],
                                     mlki_cuda_row<const float>(p.x, b) + s * p.xs[0] + h * p.xs[1],
                                     tile * MLKI_CUDA_PAIRS + j, table + j);
    }
    if (p.copies && tile == 0) mlki_cuda_rotary_copy(p, s, from, to);
    __syncthreads();
  }
}

/* Are vectors of 4 possible? */
static bool mlki_cuda_rotary_by_4(const mlki_cuda_rotary_rows &p) {
  bool by_4 = p.pairs % 4 == 0 && p.xs[2] == 1 && p.ys[2] == 1;
  for (int i = 0; i < 2; i++) by_4 = by_4 && p.xs[i] % 4 == 0 && p.ys[i] % 4 == 0;
  return by_4 && mlki_cuda_rows_by_4(p.x, 4) && mlki_cuda_rows_by_4(p.y, 4);
}

static mlk_status mlki_cuda_rotary(mlki_cuda_call *call, const mlk_rotary_desc *desc) {
  const mlki_cuda_view x = mlki_cuda_view_of(&desc->x), y = mlki_cuda_view_of(&desc->y);
  const mlki_cuda_view given = mlki_cuda_view_of(&desc->frequencies);
  const int axes = x.rank - 3;
  mlki_cuda_rotary_rows p;
  memset(&p, 0, sizeof p);
  p.x = mlki_cuda_layer_rows_of(&desc->x, axes), p.y = mlki_cuda_layer_rows_of(&desc->y, axes), p.x.step = p.y.step = 1;
  p.positions = mlki_cuda_layer_rows_of(&desc->positions, desc->positions.rank);
  for (int i = 0; i < 3; i++) {
    p.xs[i] = x.size[axes + i] == 1 ? 0 : x.stride[axes + i], p.ys[i] = x.size[axes + i] == 1 ? 0 : y.stride[axes + i];
    p.copies |= p.xs[i] != p.ys[i];
  }
  p.batch = 1;
  for (int i = 0; i < axes; i++) p.batch *= x.size[i];
  p.s = x.size[axes], p.h = x.size[axes + 1], p.d = x.size[axes + 2];
  p.pairs = (desc->rotated ? desc->rotated : p.d) / 2, p.first = desc->first_position;
  p.own = p.positions.p && desc->positions.rank != 1 && x.rank != 3;
  p.interleaved = desc->interleaved != 0, p.inverse = desc->inverse != 0;
  p.copies = 2 * p.pairs < p.d && (p.copies || x.p != y.p);
  p.tiles = mlki_cuda_max(mlki_cuda_ceil_div(p.pairs, MLKI_CUDA_PAIRS), 1);
  p.wrong = call->device->wrong_there;
  call->io->variant = p.interleaved ? "interleaved" : "halves";
  if (p.batch * p.s * p.h * p.d == 0) return call->status;
  p.parts = p.own ? p.batch : mlki_cuda_min(p.batch, mlki_cuda_ceil_div(4 * call->device->sms, p.s * p.tiles));
  mlki_cuda_frequency *const f = mlki_cuda_carve<mlki_cuda_frequency>(call, p.pairs);
  p.frequencies = f;
  mlki_cuda_launch(call, mlki_cuda_ceil_div(p.pairs, 128), 128, 0, mlki_cuda_frequencies_kernel, f, p.pairs,
                   (const float *)(const void *)given.p, given.stride[0], desc->theta == 0.0 ? 10000.0 : desc->theta);
  const int64_t units = p.s * p.parts * p.tiles;
  const bool by_4 = mlki_cuda_rotary_by_4(p);
  mlki_cuda_launch(call, mlki_cuda_min(units, MLKI_CUDA_GRID), 256, 0,
                   p.interleaved ? by_4 ? mlki_cuda_rotary_kernel<4, true> : mlki_cuda_rotary_kernel<1, true>
                   : by_4 ? mlki_cuda_rotary_kernel<4, false>
                                 : mlki_cuda_rotary_kernel<1, false>,
                   p, units);
  return call->status;
}

/* >>cuda_pool ------------------------------------------------------------------------------------------------------ */

typedef struct mlki_cuda_window {
  int64_t in, out, size, stride, dilation, pad;
  mlki_cuda_layer_divisor by_stride, by_dilation;
} mlki_cuda_window;

typedef struct mlki_cuda_pool_places {
  int kind;
  mlki_cuda_window axis[3]; /* missing ones, of size 1, come first */
  float *x, *y;             /* or the gradients of them */
  int64_t *indices;
  int64_t xs[5], ys[5], is[5]; /* strides of n, c and the three axes */
  float area;
  int64_t c, places;             /* channels; places of a plane of x */
  int channels;                  /* threads that are neighbours take channels; else places along the last axis */
  mlki_cuda_layer_divisor by[4]; /* the axes of the count of threads but the first, slowest first */
  int64_t threads;
  unsigned long long *wrong;
} mlki_cuda_pool_places;

/* How many taps of the window of output o lie inside, and which is the first. I, here and below: int where all counts
   fit. */
template <class I> MLKI_CUDA_DEVICE I mlki_cuda_window_taps(const mlki_cuda_window &w, I o, I *first) {
  const I base = o * (I)w.stride - (I)w.pad, room = (I)w.in - 1 - base;
  const I low = base < 0 ? mlki_cuda_quotient_of(-base + (I)w.dilation - 1, w.by_dilation) : 0;
  const I most = room >= 0 ? mlki_cuda_quotient_of(room, w.by_dilation) + 1 : 0;
  const I high = most < (I)w.size ? most : (I)w.size;
  *first = low;
  return high > low ? high - low : 0;
}

/* What this thread's element is: n, c and the place along three axes. */
template <class I>
MLKI_CUDA_DEVICE void mlki_cuda_pool_at(const mlki_cuda_pool_places &p, I thread, int vector, I at[5]) {
  I digit[5];
#pragma unroll
  for (int i = 3; i >= 0; i--) {
    const I whole = mlki_cuda_quotient_of(thread, p.by[i]);
    digit[i + 1] = thread - whole * (I)p.by[i].divisor;
    thread = whole;
  }
  digit[0] = thread;
  at[0] = digit[0], at[1] = p.channels ? digit[4] * vector : digit[1];
#pragma unroll
  for (int i = 0; i < 3; i++) at[2 + i] = p.channels ? digit[1 + i] : digit[2 + i];
}

template <class I> MLKI_CUDA_DEVICE int64_t mlki_cuda_pool_offset(const I at[5], const int64_t stride[5]) {
  int64_t offset = 0;
#pragma unroll
  for (int i = 0; i < 5; i++) offset += at[i] * stride[i];
  return offset;
}

/* V outputs a thread: neighbouring channels. Comparisons are strict and taps come in row-major order, so the first
   largest stays; a NaN is taken, and stays. */
template <int V, class I>
static __global__ void __launch_bounds__(256, 1)
    mlki_cuda_pool_kernel(const __grid_constant__ mlki_cuda_pool_places p) {
  const I thread = (I)blockIdx.x * 256 + (I)threadIdx.x;
  I at[5], taps[3], first[3], best[V];
  float value[V];
  if (thread >= (I)p.threads) return;
  mlki_cuda_pool_at(p, thread, V, at);
#pragma unroll
  for (int a = 0; a < 3; a++) {
    taps[a] = mlki_cuda_window_taps(p.axis[a], at[2 + a], &first[a]);
    first[a] = at[2 + a] * (I)p.axis[a].stride - (I)p.axis[a].pad + first[a] * (I)p.axis[a].dilation;
  }
#pragma unroll
  for (int k = 0; k < V; k++) best[k] = -1, value[k] = p.kind == MLK_POOL_MAX ? -INFINITY : 0.0f;
  const float *const x = p.x + at[0] * p.xs[0] + at[1] * p.xs[1];
  const int64_t step = p.axis[2].dilation * p.xs[4];
  for (I t0 = 0; t0 < taps[0]; t0++)
    for (I t1 = 0; t1 < taps[1]; t1++) {
      const I i0 = first[0] + t0 * (I)p.axis[0].dilation, i1 = first[1] + t1 * (I)p.axis[1].dilation;
      const float *e = x + i0 * p.xs[2] + i1 * p.xs[3] + first[2] * p.xs[4];
      I place = (i0 * (I)p.axis[1].in + i1) * (I)p.axis[2].in + first[2];
#pragma unroll 4
      for (I t2 = 0; t2 < taps[2]; t2++, place += (I)p.axis[2].dilation, e += step) {
        float v[V];
        mlki_cuda_get<V>(v, e, p.xs[1], 0);
#pragma unroll
        for (int k = 0; k < V; k++)
          if (p.kind != MLK_POOL_MAX)
            value[k] = mlki_cuda_add(value[k], v[k]);
          else if (best[k] < 0 || v[k] > value[k] || (v[k] != v[k] && value[k] == value[k]))
            value[k] = v[k], best[k] = place;
      }
    }
  const I count = taps[0] * taps[1] * taps[2];
#pragma unroll
  for (int k = 0; k < V; k++) {
    if (p.kind != MLK_POOL_MAX && count)
      value[k] = mlki_cuda_div(value[k], p.kind == MLK_POOL_AVERAGE_PADDED ? p.area : (float)count);
    if (p.indices) p.indices[mlki_cuda_pool_offset(at, p.is) + k * p.is[1]] = best[k];
  }
  mlki_cuda_put<V>(p.y + mlki_cuda_pool_offset(at, p.ys), p.ys[1], 0, value);
}

/* The outputs [*low, *high] whose windows can reach element i of an axis. */
template <class I> MLKI_CUDA_DEVICE void mlki_cuda_reaching(const mlki_cuda_window &w, I i, I *low, I *high) {
  const I last = i + (I)w.pad, first = last - ((I)w.size - 1) * (I)w.dilation;
  const I top = mlki_cuda_quotient_of(last, w.by_stride);
  *low = first > 0 ? mlki_cuda_quotient_of(first + (I)w.stride - 1, w.by_stride) : 0;
  *high = top < (I)w.out ? top : (I)w.out - 1;
}

/* Is element i a tap of the window of output o, one that can reach it? */
template <class I> MLKI_CUDA_DEVICE bool mlki_cuda_reaches(const mlki_cuda_window &w, I o, I i) {
  const I from_first = i + (I)w.pad - o * (I)w.stride;
  return mlki_cuda_quotient_of(from_first, w.by_dilation) * (I)w.dilation == from_first;
}

/* Index k channels behind (n, c, o) is beyond the plane: which it is in [N, C, out...]. */
template <class I> MLKI_CUDA_DEVICE void mlki_cuda_pool_wrong(const mlki_cuda_pool_places &p, const I at[5], int k) {
  int64_t i = at[0] * p.c + at[1] + k;
  for (int a = 0; a < 3; a++) i = i * p.axis[a].out + at[2 + a];
  mlki_cuda_report(p.wrong, MLKI_CUDA_INDICES, i);
}

/* What output o gives to V elements that its window reaches; place: theirs in the plane. */
template <int V, class I>
MLKI_CUDA_DEVICE void mlki_cuda_pool_give(const mlki_cuda_pool_places &p, const I o[5], I place, float sum[V]) {
  const int64_t from = mlki_cuda_pool_offset(o, p.is); /* of indices */
  float dy[V], count = p.area;
  I first;
  if (p.kind == MLK_POOL_AVERAGE)
    count = (float)(mlki_cuda_window_taps(p.axis[0], o[2], &first) * mlki_cuda_window_taps(p.axis[1], o[3], &first) *
                    mlki_cuda_window_taps(p.axis[2], o[4], &first));
  mlki_cuda_get<V>(dy, p.y + mlki_cuda_pool_offset(o, p.ys), p.ys[1], 0);
#pragma unroll
  for (int k = 0; k < V; k++)
    if (p.kind == MLK_POOL_MAX) {
      const int64_t index = p.indices[from + k * p.is[1]];
      if (index == place) sum[k] = mlki_cuda_add(sum[k], dy[k]);
      if (index >= p.places) mlki_cuda_pool_wrong(p, o, k);
    } else {
      sum[k] = mlki_cuda_add(sum[k], mlki_cuda_div(dy[k], count));
    }
}

/* V elements of the gradient a thread: the windows that reach them, in ascending order. */
template <int V, class I>
static __global__ void __launch_bounds__(256)
    mlki_cuda_pool_grad_kernel(const __grid_constant__ mlki_cuda_pool_places p) {
  const I thread = (I)blockIdx.x * 256 + (I)threadIdx.x;
  I at[5], low[3], high[3], o[5];
  float sum[V];
  if (thread >= (I)p.threads) return;
  mlki_cuda_pool_at(p, thread, V, at);
#pragma unroll
  for (int a = 0; a < 3; a++) mlki_cuda_reaching(p.axis[a], at[2 + a], &low[a], &high[a]);
#pragma unroll
  for (int k = 0; k < V; k++) sum[k] = 0.0f;
  const I place = (at[2] * (I)p.axis[1].in + at[3]) * (I)p.axis[2].in + at[4];
  o[0] = at[0], o[1] = at[1];
  for (o[2] = low[0]; o[2] <= high[0]; o[2]++) {
    if (!mlki_cuda_reaches(p.axis[0], o[2], at[2])) continue;
    for (o[3] = low[1]; o[3] <= high[1]; o[3]++) {
      if (!mlki_cuda_reaches(p.axis[1], o[3], at[3])) continue;
      for (o[4] = low[2]; o[4] <= high[2]; o[4]++)
        if (mlki_cuda_reaches(p.axis[2], o[4], at[4])) mlki_cuda_pool_give<V>(p, o, place, sum);
    }
  }
  mlki_cuda_put<V>(p.x + mlki_cuda_pool_offset(at, p.xs), p.xs[1], 0, sum);
}

/* Strides of n, c and three axes. */
static void mlki_cuda_pool_strides(const mlk_tensor *t, int64_t stride[5]) {
  const mlki_cuda_view v = mlki_cuda_view_of(t);
  const int missing = 5 - v.rank;
  for (int i = 0; i < 5 && v.p; i++) stride[i] = i < 2 ? v.stride[i] : i < 2 + missing ? 0 : v.stride[i - missing];
}

/* What both directions share. big: x or its gradient; small: y or its. Threads count elements of which. */
static mlki_cuda_pool_places mlki_cuda_pool_of(const mlki_cuda_call *call, mlk_pool_kind kind, const mlk_tensor *big,
                                               const mlk_tensor *small, const mlk_tensor *indices,
                                               const int64_t window[3], const mlk_conv_geometry *g,
                                               const mlk_tensor *which) {
  const int spatial = big->rank - 2;
  mlki_cuda_pool_places p;
  memset(&p, 0, sizeof p);
  p.kind = kind, p.c = big->shape[1], p.places = 1, p.threads = mlki_cuda_count(which),
  p.wrong = call->device->wrong_there;
  p.x = (float *)big->data, p.y = (float *)small->data, p.indices = (int64_t *)indices->data;
  mlki_cuda_pool_strides(big, p.xs), mlki_cuda_pool_strides(small, p.ys), mlki_cuda_pool_strides(indices, p.is);
  int64_t area = 1, sizes[5] = {which->shape[0], which->shape[1], 1, 1, 1};
  for (int a = 0; a < 3; a++) {
    const int i = a - (3 - spatial); /* of the descriptor */
    mlki_cuda_window *w = &p.axis[a];
    w->in = w->out = w->size = w->stride = w->dilation = 1;
    if (i >= 0) {
      w->in = big->shape[2 + i], w->out = small->shape[2 + i], w->size = window[i], w->pad = g->pad_before[i];
      w->stride = g->stride[i] ? g->stride[i] : 1, w->dilation = g->dilation[i] ? g->dilation[i] : 1;
      sizes[2 + a] = which->shape[2 + i];
    }
    w->by_stride = mlki_cuda_layer_divisor_of(w->stride), w->by_dilation = mlki_cuda_layer_divisor_of(w->dilation);
    area *= w->size, p.places *= w->in;
  }
  p.area = (float)area;
  const int64_t *const strides = which == big ? p.xs : p.ys;
  p.channels = sizes[1] > 1 && strides[1] == 1;
  for (int i = 0; i < 4; i++)
    p.by[i] = mlki_cuda_layer_divisor_of(p.channels ? sizes[i < 3 ? 2 + i : 1] : sizes[1 + i]);
  return p;
}

/* Do vectors of 4 channels work? Then threads are as many fewer. */
static bool mlki_cuda_pool_by_4(mlki_cuda_pool_places *p, int64_t c) {
  bool by_4 = p->channels && c % 4 == 0 && p->xs[1] == 1 && p->ys[1] == 1;
  by_4 = by_4 && (uintptr_t)p->x % 16 == 0 && (uintptr_t)p->y % 16 == 0;
  for (int i = 0; i < 5; i++) by_4 = by_4 && (i == 1 || (p->xs[i] % 4 == 0 && p->ys[i] % 4 == 0));
  if (by_4) p->threads /= 4, p->by[3] = mlki_cuda_layer_divisor_of(c / 4);
  return by_4;
}

/* Do all counts, and the sums that are made of them, fit in an int? */
static bool mlki_cuda_pool_narrow(const mlki_cuda_pool_places &p) {
  const int64_t most = 1 << 28;
  bool narrow = p.threads < most && p.places < most;
  for (const mlki_cuda_window &w : p.axis)
    narrow = narrow && w.in < most && w.pad < most && w.stride < most && w.dilation < most && w.size < most &&
             w.out * w.stride < most && w.size * w.dilation < most;
  return narrow;
}

/* Queues the kernel of wide or narrow counts. */
static void mlki_cuda_pool_launch(mlki_cuda_call *call, const mlki_cuda_pool_places &p,
                                  void (*wide)(mlki_cuda_pool_places), void (*narrow)(mlki_cuda_pool_places)) {
  mlki_cuda_launch(call, mlki_cuda_ceil_div(p.threads, 256), 256, 0, mlki_cuda_pool_narrow(p) ? narrow : wide, p);
}

static mlk_status mlki_cuda_pool(mlki_cuda_call *call, const mlk_pool_desc *desc) {
  mlki_cuda_pool_places p = mlki_cuda_pool_of(call, desc->kind, &desc->x, &desc->y, &desc->indices, desc->window,
                                              &desc->geometry, &desc->y);
  const bool by_4 = mlki_cuda_pool_by_4(&p, desc->y.shape[1]);
  call->io->variant = p.channels ? "channels" : "rows";
  if (by_4)
    mlki_cuda_pool_launch(call, p, mlki_cuda_pool_kernel<4, int64_t>, mlki_cuda_pool_kernel<4, int>);
  else
    mlki_cuda_pool_launch(call, p, mlki_cuda_pool_kernel<1, int64_t>, mlki_cuda_pool_kernel<1, int>);
  return call->status;
}

static mlk_status mlki_cuda_pool_grad(mlki_cuda_call *call, const mlk_pool_grad_desc *desc) {
  mlki_cuda_pool_places p = mlki_cuda_pool_of(call, desc->kind, &desc->dx, &desc->dy, &desc->indices, desc->window,
                                              &desc->geometry, &desc->dx);
  const bool by_4 = mlki_cuda_pool_by_4(&p, desc->dx.shape[1]);
  call->io->variant = p.channels ? "channels" : "rows";
  if (by_4)
    mlki_cuda_pool_launch(call, p, mlki_cuda_pool_grad_kernel<4, int64_t>, mlki_cuda_pool_grad_kernel<4, int>);
  else
    mlki_cuda_pool_launch(call, p, mlki_cuda_pool_grad_kernel<1, int64_t>, mlki_cuda_pool_grad_kernel<1, int>);
  return call->status;
}

#endif /* MLKI_CUDA_LAYERS */

/* >>cuda_stage -----------------------------------------------------------------------------------------------------
   Operands in the host's memory: refused by name, or copied to the workspace and back. What they span is copied as it
   lies, gaps included; spans that meet are one block, so that views of one array stay views of one array. */

/* A tensor of a descriptor. */
typedef struct mlki_cuda_field {
  const char *name;
  size_t at;
  int written;
} mlki_cuda_field;

#define MLKI_CUDA_READ(desc, field)                                                                                    \
  { #field, offsetof(desc, field), 0 }
#define MLKI_CUDA_WRITTEN(desc, field)                                                                                 \
  { #field, offsetof(desc, field), 1 }
#define MLKI_CUDA_SCORES(desc)                                                                                         \
  {"mask", offsetof(desc, scores.mask), 0}, {"bias", offsetof(desc, scores.bias), 0},                                  \
      {"alibi", offsetof(desc, scores.alibi), 0}, {"sinks", offsetof(desc, scores.sinks), 0},                          \
      {"q_offsets", offsetof(desc, scores.q_offsets), 0}, {"k_offsets", offsetof(desc, scores.k_offsets), 0}, {        \
    "k_lengths", offsetof(desc, scores.k_lengths), 0                                                                   \
  }

typedef struct mlki_cuda_fields {
  size_t bytes; /* of the descriptor */
  mlki_cuda_field field[MLKI_CUDA_FIELDS];
} mlki_cuda_fields;

/* clang-format off: one descriptor a line or two, in the order of mlk_op */
static const mlki_cuda_fields mlki_cuda_descs[MLK_OP_COUNT] = {
#define R(f) MLKI_CUDA_READ(D, f)
#define W(f) MLKI_CUDA_WRITTEN(D, f)
#define D    mlk_matmul_desc
    {sizeof(D), {R(a), R(b), R(c), R(bias), R(residual), W(d), W(preact)}},
#undef D
#define D mlk_conv_desc
    {sizeof(D), {R(x), R(w), R(bias), R(residual), W(y), W(preact)}},
#undef D
#define D mlk_conv_grad_input_desc
    {sizeof(D), {R(dy), R(w), R(bias), R(residual), W(dx), W(preact)}},
#undef D
#define D mlk_conv_grad_weights_desc
    {sizeof(D), {R(x), R(dy), W(dw), W(dbias)}},
#undef D
#define D mlk_attention_desc
    {sizeof(D), {R(q), R(k), R(v), R(pages), MLKI_CUDA_SCORES(D), W(out), W(lse)}},
#undef D
#define D mlk_attention_grad_desc
    {sizeof(D),
     {R(q), R(k), R(v), R(out), R(lse), R(dout), MLKI_CUDA_SCORES(D), W(dq), W(dk), W(dv), W(dbias), W(dsinks)}},
#undef D
#define D mlk_attention_merge_desc
    {sizeof(D), {R(parts), R(parts_lse), R(sinks), W(out), W(lse)}},
#undef D
#define D mlk_knn_desc
    {sizeof(D), {R(queries), R(base), W(ids), W(distances)}},
#undef D
#define D mlk_distances_desc
    {sizeof(D), {R(queries), R(base), W(out)}},
#undef D
    {sizeof(mlk_average_desc), {{NULL, 0, 0}}}, /* lists: see mlki_cuda_stage_lists */
#define D mlk_map_desc
    {sizeof(D), {R(a), R(b), W(out)}},
#undef D
#define D mlk_reduce_desc
    {sizeof(D), {R(x), W(out)}},
#undef D
    {sizeof(mlk_clip_norm_desc), {{NULL, 0, 0}}},
#define D mlk_sgd_desc
    {sizeof(D), {W(param), R(grad), W(velocity)}},
#undef D
#define D mlk_adamw_desc
    {sizeof(D), {W(param), R(grad), W(m), W(v)}},
#undef D
#define D mlk_pool_desc
    {sizeof(D), {R(x), W(y), W(indices)}},
#undef D
#define D mlk_pool_grad_desc
    {sizeof(D), {R(dy), R(indices), W(dx)}},
#undef D
#define D mlk_softmax_desc
    {sizeof(D), {R(x), W(y)}},
#undef D
#define D mlk_softmax_grad_desc
    {sizeof(D), {R(y), R(dy), W(dx)}},
#undef D
#define D mlk_cross_entropy_desc
    {sizeof(D), {R(x), R(labels), W(loss), W(dx)}},
#undef D
#define D mlk_norm_desc
    {sizeof(D), {R(x), R(gamma), R(beta), W(y), W(mean), W(rstd)}},
#undef D
#define D mlk_norm_grad_desc
    {sizeof(D), {R(x), R(gamma), R(mean), R(rstd), R(dy), W(dx), W(dgamma), W(dbeta)}},
#undef D
#define D mlk_embedding_desc
    {sizeof(D), {R(table), R(ids), W(out)}},
#undef D
#define D mlk_embedding_grad_desc
    {sizeof(D), {R(ids), R(dout), W(dtable)}},
#undef D
#define D mlk_rotary_desc
    {sizeof(D), {R(x), R(positions), R(frequencies), W(y)}},
#undef D
#undef R
#undef W
};
/* clang-format on */

/* A call's descriptor with the lists it points to, as they are changed, and its spans. */
typedef struct mlki_cuda_staged {
  union {
    mlk_average_desc average;
    mlk_clip_norm_desc clip;
    char bytes[sizeof(mlk_attention_grad_desc)]; /* the largest */
  } desc;
  mlki_cuda_span *span;
  int64_t count;
} mlki_cuda_staged;

/* Does the host's memory hold p? Page-locked memory counts as the host's: the device reaches it, at
   the speed of the bus. */
static mlk_status mlki_cuda_is_host(char *error, const void *p, int *host) {
  cudaPointerAttributes attributes;
  const cudaError_t code = cudaPointerGetAttributes(&attributes, p);
  *host = 0;
  if (code == cudaErrorInvalidValue) { /* of old drivers, for memory they have never seen */
    (void)mlki_cuda_went(code);
    *host = 1;
    return MLK_OK;
  }
  if (code == cudaSuccess) *host = attributes.type != cudaMemoryTypeDevice && attributes.type != cudaMemoryTypeManaged;
  return mlki_cuda_check(error, code, "asking where an operand lies");
}

/* Adds a span, or refuses it. name[index]; index < 0: no list. */
static mlk_status mlki_cuda_stage_span(mlki_cuda_call *call, mlki_cuda_staged *s, void **pointer, int64_t low,
                                       int64_t bytes, int written, const char *name, int64_t index) {
  mlki_cuda_span *span = &s->span[s->count];
  int host;
  const mlk_status status = mlki_cuda_is_host(call->error, *pointer, &host);
  if (status || !host) return status;
  if (call->device->host_arrays == MLK_HOST_REFUSED) {
    char at[32] = "";
    if (index >= 0) snprintf(at, sizeof at, "[%lld]", (long long)index);
    return mlki_cuda_fail(call->error, MLK_ERR_ARGUMENT,
                          "%s%s: lies in the host's memory; copy it (mlk_alloc, mlk_copy) or open the context with "
                          "MLK_HOST_STAGED",
                          name, at);
  }
  span->pointer = pointer, span->written = written, span->there = NULL;
  span->low = (char *)*pointer + low, span->high = span->low + bytes;
  s->count++;
  return MLK_OK;
}

static mlk_status mlki_cuda_stage_tensor(mlki_cuda_call *call, mlki_cuda_staged *s, mlk_tensor *t, int written,
                                         const char *name, int64_t index) {
  const mlk_tensor whole = mlki_explicit_strides(*t);
  int64_t low = 0, high = 1;
  if (!t->data || mlki_cuda_count(t) == 0) return MLK_OK;
  for (int i = 0; i < whole.rank; i++) {
    const int64_t reach = (whole.shape[i] - 1) * whole.stride[i];
    *(reach < 0 ? &low : &high) += reach;
  }
  const int64_t size = mlki_dtype_bytes(t->dtype);
  return mlki_cuda_stage_span(call, s, &t->data, low * size, (high - low) * size, written, name, index);
}

/* How many spans a call can have, and tensors its lists. */
static int64_t mlki_cuda_stage_most(mlk_op op, const void *desc, int64_t *listed) {
  const mlk_average_desc *average = (const mlk_average_desc *)desc;
  *listed = 0;
  if (op == MLK_OP_AVERAGE)
    *listed = average->replicas * average->count + (average->outputs ? average->output_count : 0);
  if (op == MLK_OP_CLIP_NORM) *listed = ((const mlk_clip_norm_desc *)desc)->count;
  return *listed + MLKI_CUDA_FIELDS;
}

/* Spans of average and clip_norm: their lists, copied to list, and what they report. */
static mlk_status mlki_cuda_stage_lists(mlki_cuda_call *call, mlki_cuda_staged *s, mlk_tensor *list) {
  mlk_average_desc *average = &s->desc.average;
  mlk_clip_norm_desc *clip = &s->desc.clip;
  mlk_status status = MLK_OK;
  int64_t i;
  if (call->io->op == MLK_OP_CLIP_NORM) {
    for (i = 0; i < clip->count && status == MLK_OK; i++) {
      list[i] = clip->grads[i];
      status = mlki_cuda_stage_tensor(call, s, &list[i], 1, "grads", i);
    }
    clip->grads = list;
    if (status == MLK_OK && clip->norm)
      status = mlki_cuda_stage_span(call, s, (void **)&clip->norm, 0, sizeof(float), 1, "norm", -1);
    return status;
  }
  const int64_t inputs = average->replicas * average->count;
  for (i = 0; i < inputs && status == MLK_OK; i++) {
    list[i] = average->inputs[i];
    if (average->outputs && (average->absent >> (i / average->count) & 1)) continue; /* not looked at */
    status = mlki_cuda_stage_tensor(call, s, &list[i], !average->outputs, "inputs", i);
  }
  average->inputs = list;
  for (i = 0; average->outputs && i < average->output_count && status == MLK_OK; i++) {
    list[inputs + i] = average->outputs[i];
    status = mlki_cuda_stage_tensor(call, s, &list[inputs + i], 1, "outputs", i);
  }
  if (average->outputs) average->outputs = list + inputs;
  if (status == MLK_OK && average->norm)
    status = mlki_cuda_stage_span(call, s, (void **)&average->norm, 0, sizeof(float), 1, "norm", -1);
  if (status == MLK_OK && average->used)
    status = mlki_cuda_stage_span(call, s, (void **)&average->used, 0, sizeof(uint64_t), 1, "used", -1);
  return status;
}

static int mlki_cuda_span_order(const void *a, const void *b) {
  const char *x = ((const mlki_cuda_span *)a)->low, *y = ((const mlki_cuda_span *)b)->low;
  return x < y ? -1 : x > y;
}

/* Finds the spans, sorts them, joins those that meet, and gives each block its place in the workspace, as far from a
   multiple of 256 as in the host's memory. room: of mlki_cuda_stage_most spans, then of the lists. */
static mlk_status mlki_cuda_stage_find(mlki_cuda_call *call, mlki_cuda_staged *s, void *room, int64_t most) {
  const mlki_cuda_fields *fields = &mlki_cuda_descs[call->io->op];
  mlk_status status = MLK_OK;
  int64_t i, first = 0;
  s->span = (mlki_cuda_span *)room, s->count = 0;
  memcpy(&s->desc, call->io->desc, fields->bytes);
  for (const mlki_cuda_field *f = fields->field; f->name && status == MLK_OK; f++)
    status = mlki_cuda_stage_tensor(call, s, (mlk_tensor *)(void *)(s->desc.bytes + f->at), f->written, f->name, -1);
  if (status == MLK_OK && (call->io->op == MLK_OP_AVERAGE || call->io->op == MLK_OP_CLIP_NORM))
    status = mlki_cuda_stage_lists(call, s, (mlk_tensor *)(void *)(s->span + most));
  if (status || s->count == 0) return status;
  qsort(s->span, (size_t)s->count, sizeof *s->span, mlki_cuda_span_order);
  for (i = 1; i <= s->count; i++) {
    mlki_cuda_span *block = &s->span[first];
    if (i < s->count && s->span[i].low < block->high) {
      if (s->span[i].high > block->high) block->high = s->span[i].high;
      block->written |= s->span[i].written;
    } else {
      const int64_t skew = (int64_t)((uintptr_t)block->low % 256);
      block->there = mlki_cuda_carve<char>(call, block->high - block->low + skew);
      if (block->there) block->there += skew;
      first = i;
    }
  }
  return MLK_OK;
}

/* Copies blocks there, and lets the descriptor point to them. */
static mlk_status mlki_cuda_stage_in(mlki_cuda_call *call, mlki_cuda_staged *s) {
  mlk_status status = MLK_OK;
  const mlki_cuda_span *block = NULL;
  for (int64_t i = 0; i < s->count && call->run && status == MLK_OK; i++) {
    mlki_cuda_span *span = &s->span[i];
    if (span->there) {
      block = span;
      status = mlki_cuda_check(call->error,
                               cudaMemcpyAsync(span->there, span->low, (size_t)(span->high - span->low),
                                               cudaMemcpyHostToDevice, call->device->stream),
                               "copying an operand to the device");
    }
    *span->pointer = block->there + ((char *)*span->pointer - block->low);
  }
  return status;
}

/* Waits for the call; if nothing was wrong, copies back what it wrote. */
static mlk_status mlki_cuda_stage_out(mlki_cuda_call *call, const mlki_cuda_staged *s) {
  const cudaStream_t stream = call->device->stream;
  mlk_status status = mlki_cuda_check(call->error, cudaStreamSynchronize(stream), "waiting for the call");
  if (status == MLK_OK) status = mlki_cuda_wrong_said(call->device, call->error);
  for (int64_t i = 0; i < s->count && status == MLK_OK; i++) {
    const mlki_cuda_span *span = &s->span[i];
    if (span->there && span->written)
      status = mlki_cuda_check(
          call->error,
          cudaMemcpyAsync(span->low, span->there, (size_t)(span->high - span->low), cudaMemcpyDeviceToHost, stream),
          "copying a result to the host");
  }
  return status ? status : mlki_cuda_check(call->error, cudaStreamSynchronize(stream), "waiting for the results");
}

/* >>cuda_backend --------------------------------------------------------------------------------------------------- */

#if !defined(MLKI_CUDA_PROBE_ROUNDS) /* the emulator makes do with less */
#define MLKI_CUDA_PROBE_ROUNDS 4096
#define MLKI_CUDA_PROBE_BYTES  ((size_t)256 << 20)
#endif
#define MLKI_CUDA_FLUSHES        (1ull << 32)
#define MLKI_CUDA_SPECIFIC       (1ull << 33) /* code for sm_90a */
#define MLKI_CUDA_LAUNCH_SECONDS 3e-6         /* of a kernel's start, as the host sees it */

/* Says which tier its code is of, whether that is sm_90a's, and whether it was compiled to flush denormals. */
static __global__ void mlki_cuda_probe_kernel(unsigned long long *word, float tiny) {
#if defined(MLK_CUDA_EMULATOR)
  const unsigned long long arch = (unsigned)mlkt_emu_arch() | (mlkt_emu_specific() ? MLKI_CUDA_SPECIFIC : 0);
#elif defined(MLKI_CUDA_HOPPER)
  const unsigned long long arch = MLKI_CUDA_ARCH | MLKI_CUDA_SPECIFIC;
#else
  const unsigned long long arch = MLKI_CUDA_ARCH;
#endif
  *word = arch | (mlki_cuda_mul(tiny, 0.5f) > 0.0f ? 0 : MLKI_CUDA_FLUSHES);
}

/* 8 chains a thread, each one fused multiply-add longer with every round. */
static __global__ void mlki_cuda_spin_kernel(float *out, int rounds) {
  float x[8];
  for (int i = 0; i < 8; i++) x[i] = (float)(threadIdx.x + (unsigned)i) * 0x1p-12f;
  for (int r = 0; r < rounds; r++)
#pragma unroll
    for (int i = 0; i < 8; i++) x[i] = mlki_cuda_fma(x[i], 0.5f, 0.25f);
  for (int i = 1; i < 8; i++) x[0] = mlki_cuda_add(x[0], x[i]);
  if (x[0] < 0.0f) out[threadIdx.x] = x[0]; /* never: keeps the chains */
}

/* Makes the context's device the thread's, and puts back what was. */
struct mlki_cuda_here {
  int before;
  cudaError_t code;
  explicit mlki_cuda_here(const mlki_cuda_device *device) : before(device->index), code(cudaGetDevice(&before)) {
    if (code == cudaSuccess && before != device->index) code = cudaSetDevice(device->index);
    (void)mlki_cuda_went(code);
  }
  ~mlki_cuda_here() {
    int now = before;
    if (mlki_cuda_went(cudaGetDevice(&now)) && now != before) (void)mlki_cuda_went(cudaSetDevice(before));
  }
};

static int mlki_cuda_devices(void) {
  int count = 0;
  return mlki_cuda_went(cudaGetDeviceCount(&count)) ? count : 0;
}

/* What mma.sync reaches of wgmma's products (Luo et al., arXiv 2402.13499). */
#define MLKI_CUDA_MMA_OF_WGMMA 0.62

/* Multiply-adds of a multiprocessor per clock: f32, and 16-bit operands by mma.sync. */
static int mlki_cuda_lanes(int cc) { return cc == 75 || cc == 80 ? 64 : 128; }
static int mlki_cuda_tensor_lanes(int cc) {
  return cc == 75 ? 512 : cc == 80 ? 1024 : cc < 90 ? 512 : cc < 120 ? 1270 : 512;
}

static int mlki_cuda_attribute(const mlki_cuda_device *device, cudaDeviceAttr attribute) {
  int value = 0;
  (void)mlki_cuda_went(cudaDeviceGetAttribute(&value, attribute, device->index));
  return value;
}

/* What the device is: from the driver's answers. */
static mlk_status mlki_cuda_describe(mlki_cuda_device *device, char *error) {
  cudaDeviceProp properties;
  const mlk_status status = mlki_cuda_check(error, cudaGetDeviceProperties(&properties, device->index),
                                            "asking for the device's properties");
  if (status) return status;
  device->cc = properties.major * 10 + properties.minor;
  device->sms = properties.multiProcessorCount;
  device->shared_bytes = (int)properties.sharedMemPerBlockOptin;
  device->l2_bytes = properties.l2CacheSize;
  int driver = 0;
  (void)mlki_cuda_went(cudaDriverGetVersion(&driver));
  device->long_lists = driver >= 12010;
  snprintf(device->name, sizeof device->name, "%s", properties.name);
  snprintf(device->isa, sizeof device->isa, "sm_%d", device->cc);
  const double clock = 1e3 * mlki_cuda_attribute(device, cudaDevAttrClockRate);
  device->flops = 2.0 * mlki_cuda_lanes(device->cc) * device->sms * clock;
  device->tensor_flops = 2.0 * mlki_cuda_tensor_lanes(device->cc) * device->sms * clock;
  device->bandwidth = 2e3 * mlki_cuda_attribute(device, cudaDevAttrMemoryClockRate) *
                      mlki_cuda_attribute(device, cudaDevAttrGlobalMemoryBusWidth) / 8;
  if (device->cc < 75)
    return mlki_cuda_fail(error, MLK_ERR_UNSUPPORTED,
                          "device_index: %s has compute capability %d.%d, but must have 7.5", device->name,
                          properties.major, properties.minor);
  return MLK_OK;
}

/* By way of the run-time, so that libcuda need not be linked. NULL where the driver, or the toolkit, is too old. */
static mlki_cuda_encode mlki_cuda_encode_of_driver(void) {
#if CUDART_VERSION >= 12050
  void *entry = NULL;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  if (mlki_cuda_went(
          cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &found)) &&
      found == cudaDriverEntryPointSuccess)
    return (mlki_cuda_encode)entry;
#endif
  return NULL;
}

/* Which of the compiled codes runs there; the word that kernels report to. */
static mlk_status mlki_cuda_start(mlki_cuda_device *device, char *error) {
  mlk_status status;
  void *there = NULL, *word = NULL;
  status = mlki_cuda_check(error, cudaHostAlloc(&word, 64, cudaHostAllocMapped), "allocating page-locked memory");
  if (status) return status;
  device->wrong = (unsigned long long *)word;
  *device->wrong = 0;
  if ((status = mlki_cuda_check(error, cudaHostGetDevicePointer(&there, word, 0), "mapping page-locked memory")) !=
      MLK_OK)
    return status;
  device->wrong_there = (unsigned long long *)there;
  mlk_backend_call io;
  mlki_cuda_call call;
  memset(&io, 0, sizeof io), memset(&call, 0, sizeof call);
  call.device = device, call.io = &io, call.error = error, call.run = 1;
  mlki_cuda_launch(&call, 1, 1, 0, mlki_cuda_probe_kernel, device->wrong_there, 0x1p-126f);
  if (call.status)
    return mlki_cuda_fail(error, MLK_ERR_UNSUPPORTED, "device_index: this file was not compiled for %s (%s)",
                          device->name, device->isa);
  if ((status = mlki_cuda_check(error, cudaStreamSynchronize(device->stream), "running the first kernel")) != MLK_OK)
    return status;
  const unsigned long long answer = *(volatile unsigned long long *)device->wrong;
  *device->wrong = 0;
  device->tier = (int)(answer & 0xffffu);
  if (answer & MLKI_CUDA_SPECIFIC) {
    device->wgmma_flops = device->tensor_flops / MLKI_CUDA_MMA_OF_WGMMA;
    device->encode = mlki_cuda_encode_of_driver();
  }
#if !defined(MLK_ALLOW_FAST_MATH)
  if (answer & MLKI_CUDA_FLUSHES)
    return mlki_cuda_fail(error, MLK_ERR_UNSUPPORTED,
                          "cuda: compiled with --use_fast_math or --ftz=true, which voids the numeric contract; see "
                          "MLK_ALLOW_FAST_MATH");
#endif
  return MLK_OK;
}

#define MLKI_CUDA_LISTED 256 /* tensors of a list that there is room for from the beginning */

static uint64_t mlki_cuda_room_bytes(int64_t spans, int64_t listed) {
  return (uint64_t)spans * sizeof(mlki_cuda_span) + (uint64_t)listed * sizeof(mlk_tensor);
}

/* Room for spans and lists of a call, kept for the next. */
static mlk_status mlki_cuda_room(mlki_cuda_device *device, uint64_t bytes, char *error) {
  const mlk_allocator *a = &device->allocator;
  if (bytes <= device->room_bytes) return MLK_OK;
  if (device->room && a->free)
    a->free(a->user, device->room, (size_t)device->room_bytes);
  else
    free(device->room);
  device->room_bytes = 0;
  device->room = a->alloc ? a->alloc(a->user, (size_t)bytes, 64) : malloc((size_t)bytes);
  if (!device->room)
    return mlki_cuda_fail(error, MLK_ERR_MEMORY, "host_arrays: the allocator could not give %llu bytes",
                          (unsigned long long)bytes);
  device->room_bytes = bytes;
  return MLK_OK;
}

static void mlki_cuda_close(void *state) {
  mlki_cuda_device *device = (mlki_cuda_device *)state;
  const mlk_allocator a = device->allocator;
  if (device->wrong) { /* kernels that report to it may be queued; the stream may be gone by now */
    mlki_cuda_here here(device);
    (void)mlki_cuda_went(cudaDeviceSynchronize());
    (void)mlki_cuda_went(cudaFreeHost(device->wrong));
  }
  if (a.free) {
    if (device->room) a.free(a.user, device->room, (size_t)device->room_bytes);
    a.free(a.user, device, sizeof *device);
  } else {
    free(device->room);
    free(device);
  }
}

static mlk_status mlki_cuda_open(void **state, const mlk_context_desc *desc, char *error) {
  const mlk_device_figures *figures = desc->figures;
  const mlk_allocator a = desc->allocator;
  mlki_cuda_device *device = (mlki_cuda_device *)(a.alloc ? a.alloc(a.user, sizeof *device, 64)
                                                          : malloc(sizeof *device));
  mlk_status status = MLK_OK;
  *state = NULL;
  if (!device) return mlki_cuda_fail(error, MLK_ERR_MEMORY, "device: no memory for %d bytes", (int)sizeof *device);
  memset(device, 0, sizeof *device);
  device->allocator = a;
  device->stream = (cudaStream_t)desc->stream, device->index = desc->device_index;
  device->host_arrays = desc->host_arrays;
  if (figures) {
    device->planned = 1, device->index = 0, device->host_arrays = MLK_HOST_REFUSED;
    device->cc = figures->compute_capability, device->sms = figures->multiprocessors;
    device->tier = device->cc * 10;
    device->flops = figures->flops, device->bandwidth = figures->bandwidth;
    device->tensor_flops = figures->tensor_flops > 0 ? figures->tensor_flops : figures->flops;
    if (device->cc == 90 && figures->tensor_flops > 0) /* as compiled for sm_90a */
      device->wgmma_flops = figures->tensor_flops, device->tensor_flops *= MLKI_CUDA_MMA_OF_WGMMA;
    device->long_lists = 1; /* as with a new driver */
    device->shared_bytes = device->cc == 75   ? 64 << 10
                           : device->cc == 80 ? 163 << 10
                           : device->cc < 90  ? 99 << 10
                           : device->cc < 120 ? 227 << 10
                                              : 99 << 10;
    device->l2_bytes = 32 << 20;
    snprintf(device->name, sizeof device->name, "%s", figures->name ? figures->name : "");
    snprintf(device->isa, sizeof device->isa, "sm_%d", device->cc);
    if (device->cc < 75 || device->sms < 1 || !(device->flops > 0) || !(device->bandwidth > 0))
      status = mlki_cuda_fail(
          error, MLK_ERR_ARGUMENT,
          "figures: compute_capability (%d) must be at least 75, multiprocessors (%d), flops and bandwidth "
          "positive",
          device->cc, device->sms);
  } else if (desc->device_index < 0 || desc->device_index >= mlki_cuda_devices()) {
    status = mlki_cuda_fail(error, MLK_ERR_ARGUMENT, "device_index: is %d, but there are %d devices",
                            desc->device_index, mlki_cuda_devices());
  } else {
    mlki_cuda_here here(device);
    status = mlki_cuda_check(error, here.code, "choosing the device");
    if (status == MLK_OK) status = mlki_cuda_describe(device, error);
    if (status == MLK_OK) status = mlki_cuda_start(device, error);
    if (status == MLK_OK && device->host_arrays == MLK_HOST_STAGED)
      status = mlki_cuda_room(device, mlki_cuda_room_bytes(MLKI_CUDA_LISTED + MLKI_CUDA_FIELDS, MLKI_CUDA_LISTED),
                              error);
  }
  if (status == MLK_OK)
    *state = device;
  else
    mlki_cuda_close(device);
  return status;
}

static mlk_status mlki_cuda_info(void *state, mlk_info *info, char *error) {
  const mlki_cuda_device *device = (const mlki_cuda_device *)state;
  (void)error;
  info->isa = device->isa, info->device = device->name;
  return MLK_OK;
}

static mlk_status mlki_cuda_alloc(void *state, uint64_t bytes, int shared, void **memory, char *error) {
  const mlki_cuda_device *device = (const mlki_cuda_device *)state;
  *memory = NULL;
  if (device->planned) return mlki_cuda_fail(error, MLK_ERR_UNSUPPORTED, "figures: this context only plans");
  mlki_cuda_here here(device);
  cudaError_t code = here.code;
  if (code == cudaSuccess)
    code = shared ? cudaMallocManaged(memory, (size_t)bytes, cudaMemAttachGlobal) : cudaMalloc(memory, (size_t)bytes);
  if (mlki_cuda_went(code)) return MLK_OK;
  *memory = NULL;
  return code == cudaErrorMemoryAllocation
             ? mlki_cuda_fail(error, MLK_ERR_MEMORY, "cuda: the device could not give %llu bytes",
                              (unsigned long long)bytes)
             : mlki_cuda_check(error, code, "allocating device memory");
}

static void mlki_cuda_free(void *state, void *memory) {
  mlki_cuda_here here((const mlki_cuda_device *)state);
  (void)mlki_cuda_went(cudaFree(memory));
}

static mlk_status mlki_cuda_copy(void *state, void *to, const void *from, uint64_t bytes, char *error) {
  const mlki_cuda_device *device = (const mlki_cuda_device *)state;
  if (device->planned) return mlki_cuda_fail(error, MLK_ERR_UNSUPPORTED, "figures: this context only plans");
  mlki_cuda_here here(device);
  const mlk_status status = mlki_cuda_check(error, here.code, "choosing the device");
  if (status) return status;
  return mlki_cuda_check(error, cudaMemcpyAsync(to, from, (size_t)bytes, cudaMemcpyDefault, device->stream), "copying");
}

static mlk_status mlki_cuda_sync(void *state, char *error) {
  const mlki_cuda_device *device = (const mlki_cuda_device *)state;
  if (device->planned) return MLK_OK;
  mlki_cuda_here here(device);
  mlk_status status = mlki_cuda_check(error, here.code, "choosing the device");
  if (status == MLK_OK)
    status = mlki_cuda_check(error, cudaStreamSynchronize(device->stream), "an earlier call failed");
  return status ? status : mlki_cuda_wrong_said(device, error);
}

/* A handle: whose memory it is, and how another process opens it. Of one process by the pointer; process numbers are
   those of one host. */
typedef struct mlki_cuda_handle {
  int64_t process;
  int32_t device, open;
  void *memory;
  cudaIpcMemHandle_t ipc;
} mlki_cuda_handle;

static int64_t mlki_cuda_process(void) {
#if defined(_WIN32)
  return (int64_t)_getpid();
#else
  return (int64_t)getpid();
#endif
}

/* memory: an allocation of its own, from its beginning. */
static mlk_status mlki_cuda_share(void *state, void *memory, void *to, char *error) {
  const mlki_cuda_device *device = (const mlki_cuda_device *)state;
  mlki_cuda_handle handle;
  static_assert(sizeof handle <= MLK_HANDLE_BYTES, "a handle fits its room");
  memset(&handle, 0, sizeof handle);
  mlki_cuda_here here(device);
  const mlk_status status = mlki_cuda_check(error, here.code, "choosing the device");
  if (status) return status;
  handle.process = mlki_cuda_process(), handle.device = device->index, handle.memory = memory;
  handle.open = mlki_cuda_went(cudaIpcGetMemHandle(&handle.ipc, memory)); /* not everywhere; threads do without */
  memcpy(to, &handle, sizeof handle);
  return MLK_OK;
}

static mlk_status mlki_cuda_attach(void *state, const void *from, void **memory, char *error) {
  const mlki_cuda_device *device = (const mlki_cuda_device *)state;
  mlki_cuda_handle handle;
  *memory = NULL;
  memcpy(&handle, from, sizeof handle);
  mlki_cuda_here here(device);
  const mlk_status status = mlki_cuda_check(error, here.code, "choosing the device");
  if (status) return status;
  if (handle.process == mlki_cuda_process()) {
    const cudaError_t code = handle.device == device->index ? cudaSuccess
                                                            : cudaDeviceEnablePeerAccess(handle.device, 0);
    if (!mlki_cuda_went(code) && code != cudaErrorPeerAccessAlreadyEnabled)
      return mlki_cuda_check(error, code, "reading another device's memory; MLK_PARTS_HOST does without");
    *memory = handle.memory;
    return MLK_OK;
  }
  if (!handle.open)
    return mlki_cuda_fail(error, MLK_ERR_SYSTEM,
                          "cuda: the other process could not share its memory; MLK_PARTS_HOST does without");
  const cudaError_t code = cudaIpcOpenMemHandle(memory, handle.ipc, cudaIpcMemLazyEnablePeerAccess);
  return mlki_cuda_check(error, code, "opening another process's memory; MLK_PARTS_HOST does without");
}

static void mlki_cuda_detach(void *state, const void *from, void *memory) {
  mlki_cuda_handle handle;
  memcpy(&handle, from, sizeof handle);
  mlki_cuda_here here((const mlki_cuda_device *)state);
  if (handle.process != mlki_cuda_process()) (void)mlki_cuda_went(cudaIpcCloseMemHandle(memory));
}

/* Runs an operator, or plans it. */
static mlk_status mlki_cuda_operate(mlki_cuda_call *call, const void *desc) {
  (void)desc; /* where all families are left out */
  switch (call->io->op) {
#if defined(MLKI_CUDA_CONV)
  case MLK_OP_CONV: return mlki_cuda_conv_forward(call, (const mlk_conv_desc *)desc);
  case MLK_OP_CONV_GRAD_INPUT: return mlki_cuda_conv_grad_input(call, (const mlk_conv_grad_input_desc *)desc);
  case MLK_OP_CONV_GRAD_WEIGHTS: return mlki_cuda_conv_grad_weights(call, (const mlk_conv_grad_weights_desc *)desc);
#endif
#if defined(MLKI_CUDA_MATMUL)
  case MLK_OP_MATMUL: return mlki_cuda_matmul_call(call, (const mlk_matmul_desc *)desc);
#endif
#if defined(MLKI_CUDA_KNN)
  case MLK_OP_KNN: return mlki_cuda_knn_run(call, (const mlk_knn_desc *)desc);
  case MLK_OP_DISTANCES: return mlki_cuda_distances(call, (const mlk_distances_desc *)desc);
#endif
#if defined(MLKI_CUDA_AVERAGE)
  case MLK_OP_AVERAGE: return mlki_cuda_average(call, (const mlk_average_desc *)desc);
#endif
#if defined(MLKI_CUDA_MAPS)
  case MLK_OP_MAP: return mlki_cuda_map(call, (const mlk_map_desc *)desc);
  case MLK_OP_REDUCE: return mlki_cuda_reduce(call, (const mlk_reduce_desc *)desc);
  case MLK_OP_CLIP_NORM: return mlki_cuda_clip_norm(call, (const mlk_clip_norm_desc *)desc);
  case MLK_OP_SGD: return mlki_cuda_sgd(call, (const mlk_sgd_desc *)desc);
  case MLK_OP_ADAMW: return mlki_cuda_adamw(call, (const mlk_adamw_desc *)desc);
#endif
#if defined(MLKI_CUDA_LAYERS)
  case MLK_OP_SOFTMAX: return mlki_cuda_softmax(call, (const mlk_softmax_desc *)desc);
  case MLK_OP_SOFTMAX_GRAD: return mlki_cuda_softmax_grad(call, (const mlk_softmax_grad_desc *)desc);
  case MLK_OP_CROSS_ENTROPY: return mlki_cuda_cross_entropy(call, (const mlk_cross_entropy_desc *)desc);
  case MLK_OP_NORM: return mlki_cuda_norm(call, (const mlk_norm_desc *)desc);
  case MLK_OP_NORM_GRAD: return mlki_cuda_norm_grad(call, (const mlk_norm_grad_desc *)desc);
  case MLK_OP_EMBEDDING: return mlki_cuda_embedding(call, (const mlk_embedding_desc *)desc);
  case MLK_OP_EMBEDDING_GRAD: return mlki_cuda_embedding_grad(call, (const mlk_embedding_grad_desc *)desc);
  case MLK_OP_ROTARY: return mlki_cuda_rotary(call, (const mlk_rotary_desc *)desc);
  case MLK_OP_POOL: return mlki_cuda_pool(call, (const mlk_pool_desc *)desc);
  case MLK_OP_POOL_GRAD: return mlki_cuda_pool_grad(call, (const mlk_pool_grad_desc *)desc);
#endif
#if defined(MLKI_CUDA_ATTENTION)
  case MLK_OP_ATTENTION: return mlki_cuda_attention(call, (const mlk_attention_desc *)desc);
  case MLK_OP_ATTENTION_MERGE: return mlki_cuda_attention_merge(call, (const mlk_attention_merge_desc *)desc);
  case MLK_OP_ATTENTION_GRAD: return mlki_cuda_attention_grad(call, (const mlk_attention_grad_desc *)desc);
#endif
  default:
    return mlki_cuda_fail(call->error, MLK_ERR_UNSUPPORTED, "this operator was left out of the build of mlk_cuda.cuh");
  }
}

/* Checks where operands lie, and runs or plans the operator on them. */
static mlk_status mlki_cuda_run(mlki_cuda_device *device, mlki_cuda_call *call) {
  mlki_cuda_staged staged;
  int64_t listed;
  const int64_t most = mlki_cuda_stage_most(call->io->op, call->io->desc, &listed);
  mlk_status status;
  if (!call->run && device->host_arrays == MLK_HOST_REFUSED) return mlki_cuda_operate(call, call->io->desc);
  if (!listed) {
    status = mlki_cuda_stage_find(call, &staged, device->span, most);
  } else {
    status = mlki_cuda_room(device, mlki_cuda_room_bytes(most, listed), call->error);
    if (status == MLK_OK) status = mlki_cuda_stage_find(call, &staged, device->room, most);
  }
  if (status == MLK_OK) status = mlki_cuda_stage_in(call, &staged);
  if (status == MLK_OK) status = mlki_cuda_operate(call, &staged.desc);
  if (status == MLK_OK) status = call->status;
  return status || !call->run || staged.count == 0 ? status : mlki_cuda_stage_out(call, &staged);
}

static mlk_status mlki_cuda_call_run(void *state, mlk_backend_call *io, char *error) {
  mlki_cuda_device *device = (mlki_cuda_device *)state;
  mlki_cuda_call call;
  mlk_status status;
  if (io->run && device->planned) return mlki_cuda_fail(error, MLK_ERR_UNSUPPORTED, "figures: this context only plans");
  if (io->bytes >= MLKI_CUDA_MOST_BYTES)
    return mlki_cuda_fail(error, MLK_ERR_SIZE, "operands: have %llu bytes, more than a device's memory",
                          (unsigned long long)io->bytes);
  memset(&call, 0, sizeof call);
  call.device = device, call.io = io, call.error = error, call.run = io->run, call.base = (char *)io->workspace;
  if (device->planned) {
    status = mlki_cuda_run(device, &call);
  } else {
    mlki_cuda_here here(device);
    status = mlki_cuda_check(error, here.code, "choosing the device");
    if (status == MLK_OK && io->run) status = mlki_cuda_wrong_said(device, error);
    if (status == MLK_OK) status = mlki_cuda_run(device, &call);
  }
  if (status == MLK_OK) status = call.status;
  if (status) return status;
  io->workspace_bytes = call.used, io->launches = call.launches;
  if (!io->variant) io->variant = call.launches ? "kernels" : "empty";
  io->seconds = call.work;
  if (io->seconds <= 0) {
    const double compute = (double)io->flops / device->flops, memory = (double)io->bytes / device->bandwidth;
    io->seconds = compute > memory ? compute : memory;
  }
  io->seconds += MLKI_CUDA_LAUNCH_SECONDS * call.launches;
  return MLK_OK;
}

/* Seconds of the fastest of a few runs of what queue() queues. */
template <class F>
static mlk_status mlki_cuda_time(const mlki_cuda_device *device, char *error, F queue, double *seconds) {
  cudaEvent_t start, stop;
  float milliseconds = 0;
  mlk_status status = mlki_cuda_check(error, cudaEventCreate(&start), "making an event");
  if (status) return status;
  if ((status = mlki_cuda_check(error, cudaEventCreate(&stop), "making an event")) != MLK_OK) {
    (void)mlki_cuda_went(cudaEventDestroy(start));
    return status;
  }
  *seconds = 1e30;
  for (int i = 0; i < 6 && status == MLK_OK; i++) {
    status = mlki_cuda_check(error, cudaEventRecord(start, device->stream), "measuring");
    if (status == MLK_OK) status = queue();
    if (status == MLK_OK) status = mlki_cuda_check(error, cudaEventRecord(stop, device->stream), "measuring");
    if (status == MLK_OK) status = mlki_cuda_check(error, cudaEventSynchronize(stop), "measuring");
    if (status == MLK_OK)
      status = mlki_cuda_check(error, cudaEventElapsedTime(&milliseconds, start, stop), "measuring");
    if (milliseconds > 0 && milliseconds * 1e-3 < *seconds) *seconds = milliseconds * 1e-3;
  }
  (void)mlki_cuda_went(cudaEventDestroy(start)), (void)mlki_cuda_went(cudaEventDestroy(stop));
  return status;
}

/* Ceilings: chains of multiply-adds in registers; a copy of 256 MiB, reads and writes counted. */
static mlk_status mlki_cuda_measure(void *state, const mlk_ceilings *known, mlk_ceilings *ceilings, char *error) {
  mlki_cuda_device *device = (mlki_cuda_device *)state;
  if (known) {
    *ceilings = *known, device->flops = known->flops_all, device->bandwidth = known->read_all;
    return MLK_OK;
  }
  const size_t half = MLKI_CUDA_PROBE_BYTES;
  const int rounds = MLKI_CUDA_PROBE_ROUNDS, threads = 256, blocks = device->sms * 8;
  void *memory = NULL;
  double spin = 0, copy = 0;
  mlk_status status = mlki_cuda_alloc(device, 2 * half, 0, &memory, error);
  if (status) return status;
  mlki_cuda_here here(device);
  mlk_backend_call io;
  mlki_cuda_call call;
  memset(&io, 0, sizeof io), memset(&call, 0, sizeof call);
  call.device = device, call.io = &io, call.error = error, call.run = 1;
  status = mlki_cuda_time(
      device, error,
      [&] {
        mlki_cuda_launch(&call, blocks, threads, 0, mlki_cuda_spin_kernel, (float *)memory, rounds);
        return call.status;
      },
      &spin);
  if (status == MLK_OK)
    status = mlki_cuda_time(
        device, error,
        [&] {
          return mlki_cuda_check(
              error, cudaMemcpyAsync(memory, (char *)memory + half, half, cudaMemcpyDeviceToDevice, device->stream),
              "measuring");
        },
        &copy);
  (void)mlki_cuda_went(cudaFree(memory));
  if (status) return status;
  device->flops = 16.0 * rounds * threads * blocks / spin;
  device->bandwidth = 2.0 * (double)half / copy;
  ceilings->flops_1 = ceilings->flops_all = device->flops;
  ceilings->read_1 = ceilings->read_all = device->bandwidth;
  return MLK_OK;
}

extern "C" const mlk_backend *mlk_cuda_backend(void) {
  static const mlk_backend backend = {MLK_VERSION,      "cuda",           mlki_cuda_devices, mlki_cuda_open,
                                      mlki_cuda_close,  mlki_cuda_info,   mlki_cuda_measure, mlki_cuda_alloc,
                                      mlki_cuda_free,   mlki_cuda_copy,   mlki_cuda_sync,    mlki_cuda_share,
                                      mlki_cuda_attach, mlki_cuda_detach, mlki_cuda_call_run};
  return &backend;
}

#endif /* MLK_CUDA_IMPLEMENTATION */

/* >>cuda_licence ---------------------------------------------------------------------------------------------------

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
