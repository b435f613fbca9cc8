/* cuda_emulator.h - CUDA C++ kernels on the CPU, for tests: every index, mask, tail, barrier and fragment layout is
   executed, under the sanitizers if they are on. C++17, POSIX, gcc or clang; included by one translation unit, in
   place of cuda_runtime.h (tests/cuda_backend.cc). Written from NVIDIA's public manuals (CUDA C++ programming guide,
   PTX ISA).

   How it works. A launch runs its blocks one after another on the calling thread. Every CUDA thread of a block is a
   fiber; it runs until it has to wait for others (barrier, warp collective) or ends. A thread that never waits costs
   a function call. `__shared__` is `static`, since one block runs at a time. The order is ascending or random, see
   mlkt_emu_seed.

   What it finds: wrong indices (sanitizers; device memory and dynamic shared memory are blocks of exactly the size
   asked for, filled with rogue bytes, NaN as f16, bf16, f32 and f64), missing barriers and waits (an order in which
   it matters is soon found), deadlocks, warp collectives that not all threads of the mask reach, misaligned vector
   accesses, instructions the device lacks, illegal launches. Such errors end the program with a sentence, block and
   thread.

   Of sm_90a it knows mbarriers, boxes of the copy engine (which arrive as late as allowed, or at random) and wgmma
   (done when waited for; registers rogue till then), by the descriptors and fragments of the PTX ISA.

   What it does not know: speed, registers, bank conflicts, fences between proxies other than those of mbarriers, memory
   order within one thread's accesses, blocks that run at the same time (a kernel that spins until another block acts
   hangs). mma sums as the most truncating hardware does, see there: tests of it may rely on bounds, not on bits. min,
   max are exact; libm's functions are the CPU's.

   Under ThreadSanitizer every CUDA thread is a thread of its own that only barriers, __syncwarp and fences order:
   races within a block, in shared or global memory, are reported even where the order at hand hides them.

   Compile with -ffp-contract=off (checked at the first launch), and with -mfma where there is one, for speed. */

#ifndef MLKT_CUDA_EMULATOR_H
#define MLKT_CUDA_EMULATOR_H

/* Everything of the standard library that is used here or by mlk_cuda.cuh comes before the keywords. */
#include <algorithm>
#include <atomic>
#include <cfenv>
#include <cfloat>
#include <chrono>
#include <climits>
#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <set>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <dlfcn.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "cuda_emulator_control.h"

#if defined(__SANITIZE_ADDRESS__)
#define MLKT_EMU_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define MLKT_EMU_ASAN 1
#endif
#endif
#ifndef MLKT_EMU_ASAN
#define MLKT_EMU_ASAN 0
#endif
#if MLKT_EMU_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(__SANITIZE_THREAD__)
#define MLKT_EMU_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define MLKT_EMU_TSAN 1
#endif
#endif
#ifndef MLKT_EMU_TSAN
#define MLKT_EMU_TSAN 0
#endif
#if MLKT_EMU_TSAN
#include <sanitizer/tsan_interface.h>
extern "C" { /* of its run-time, without a header */
void AnnotateIgnoreReadsBegin(const char *, int);
void AnnotateIgnoreReadsEnd(const char *, int);
void AnnotateIgnoreWritesBegin(const char *, int);
void AnnotateIgnoreWritesEnd(const char *, int);
void __tsan_read_range(void *, unsigned long);
void __tsan_write_range(void *, unsigned long);
}
#endif

/* MLKT_EMU_UCONTEXT: fibers by ucontext.h, as on other machines. */
#if defined(__ELF__) && (defined(__x86_64__) || defined(__aarch64__)) && !defined(MLKT_EMU_UCONTEXT)
#define MLKT_EMU_ASSEMBLY 1
#else
#define MLKT_EMU_ASSEMBLY 0
#include <ucontext.h>
#endif

#if defined(__clang__)
#pragma clang fp contract(off)
#endif

/* ---- keywords ---------------------------------------------------------------------------------------------------- */

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__      static
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__    __attribute__((noinline))
#define __align__(n)    __attribute__((aligned(n)))

/* ---- types of the device ----------------------------------------------------------------------------------------- */

#define MLKT_EMU_VECTOR2(type, element, bytes)                                                                         \
  struct __align__(bytes) type {                                                                                       \
    element x, y;                                                                                                      \
  };                                                                                                                   \
  inline type make_##type(element x, element y) { return {x, y}; }
#define MLKT_EMU_VECTOR3(type, element)                                                                                \
  struct type {                                                                                                        \
    element x, y, z;                                                                                                   \
  };                                                                                                                   \
  inline type make_##type(element x, element y, element z) { return {x, y, z}; }
#define MLKT_EMU_VECTOR4(type, element, bytes)                                                                         \
  struct __align__(bytes) type {                                                                                       \
    element x, y, z, w;                                                                                                \
  };                                                                                                                   \
  inline type make_##type(element x, element y, element z, element w) { return {x, y, z, w}; }

MLKT_EMU_VECTOR2(char2, signed char, 2)
MLKT_EMU_VECTOR2(uchar2, unsigned char, 2)
MLKT_EMU_VECTOR2(short2, short, 4)
MLKT_EMU_VECTOR2(ushort2, unsigned short, 4)
MLKT_EMU_VECTOR2(int2, int, 8)
MLKT_EMU_VECTOR2(uint2, unsigned, 8)
MLKT_EMU_VECTOR2(float2, float, 8)
MLKT_EMU_VECTOR2(longlong2, long long, 16)
MLKT_EMU_VECTOR2(ulonglong2, unsigned long long, 16)
MLKT_EMU_VECTOR2(double2, double, 16)
MLKT_EMU_VECTOR3(int3, int)
MLKT_EMU_VECTOR3(uint3, unsigned)
MLKT_EMU_VECTOR3(float3, float)
MLKT_EMU_VECTOR4(char4, signed char, 4)
MLKT_EMU_VECTOR4(uchar4, unsigned char, 4)
MLKT_EMU_VECTOR4(short4, short, 8)
MLKT_EMU_VECTOR4(ushort4, unsigned short, 8)
MLKT_EMU_VECTOR4(int4, int, 16)
MLKT_EMU_VECTOR4(uint4, unsigned, 16)
MLKT_EMU_VECTOR4(float4, float, 16)

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned ax = 1, unsigned ay = 1, unsigned az = 1) : x(ax), y(ay), z(az) {}
  constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
  operator uint3() const { return {x, y, z}; }
};

inline uint3 threadIdx, blockIdx; /* of the thread that runs; outside kernels meaningless */
inline dim3 blockDim, gridDim;
constexpr int warpSize = 32;

/* ---- types of the runtime: names and values of CUDA's ------------------------------------------------------------ */

#define MLKT_EMU_ERRORS(X)                                                                                             \
  X(cudaSuccess, 0, "no error")                                                                                        \
  X(cudaErrorInvalidValue, 1, "invalid argument")                                                                      \
  X(cudaErrorMemoryAllocation, 2, "out of memory")                                                                     \
  X(cudaErrorInitializationError, 3, "initialization error")                                                           \
  X(cudaErrorCudartUnloading, 4, "driver shutting down")                                                               \
  X(cudaErrorInvalidConfiguration, 9, "invalid configuration argument")                                                \
  X(cudaErrorInvalidPitchValue, 12, "invalid pitch argument")                                                          \
  X(cudaErrorInvalidSymbol, 13, "invalid device symbol")                                                               \
  X(cudaErrorInvalidMemcpyDirection, 21, "invalid copy direction for memcpy")                                          \
  X(cudaErrorInsufficientDriver, 35, "CUDA driver version is insufficient for CUDA runtime version")                   \
  X(cudaErrorDevicesUnavailable, 46, "CUDA-capable device(s) is/are busy or unavailable")                              \
  X(cudaErrorInvalidDeviceFunction, 98, "invalid device function")                                                     \
  X(cudaErrorNoDevice, 100, "no CUDA-capable device is detected")                                                      \
  X(cudaErrorInvalidDevice, 101, "invalid device ordinal")                                                             \
  X(cudaErrorInvalidKernelImage, 200, "device kernel image is invalid")                                                \
  X(cudaErrorDeviceUninitialized, 201, "invalid device context")                                                       \
  X(cudaErrorNoKernelImageForDevice, 209, "no kernel image is available for execution on the device")                  \
  X(cudaErrorECCUncorrectable, 214, "uncorrectable ECC error encountered")                                             \
  X(cudaErrorPeerAccessUnsupported, 217, "peer access is not supported between these two devices")                     \
  X(cudaErrorInvalidPtx, 218, "a PTX JIT compilation failed")                                                          \
  X(cudaErrorUnsupportedPtxVersion, 222, "the provided PTX was compiled with an unsupported toolchain.")               \
  X(cudaErrorOperatingSystem, 304, "OS call failed or operation not supported on this OS")                             \
  X(cudaErrorInvalidResourceHandle, 400, "invalid resource handle")                                                    \
  X(cudaErrorIllegalState, 401, "the operation cannot be performed in the present state")                              \
  X(cudaErrorSymbolNotFound, 500, "named symbol not found")                                                            \
  X(cudaErrorNotReady, 600, "device not ready")                                                                        \
  X(cudaErrorIllegalAddress, 700, "an illegal memory access was encountered")                                          \
  X(cudaErrorLaunchOutOfResources, 701, "too many resources requested for launch")                                     \
  X(cudaErrorLaunchTimeout, 702, "the launch timed out and was terminated")                                            \
  X(cudaErrorPeerAccessAlreadyEnabled, 704, "peer access is already enabled")                                          \
  X(cudaErrorPeerAccessNotEnabled, 705, "peer access has not been enabled")                                            \
  X(cudaErrorContextIsDestroyed, 709, "context is destroyed")                                                          \
  X(cudaErrorAssert, 710, "device-side assert triggered")                                                              \
  X(cudaErrorHostMemoryAlreadyRegistered, 712, "part or all of the requested memory range is already mapped")          \
  X(cudaErrorHostMemoryNotRegistered, 713, "pointer does not correspond to a registered memory region")                \
  X(cudaErrorIllegalInstruction, 715, "an illegal instruction was encountered")                                        \
  X(cudaErrorMisalignedAddress, 716, "misaligned address")                                                             \
  X(cudaErrorLaunchFailure, 719, "unspecified launch failure")                                                         \
  X(cudaErrorNotPermitted, 800, "operation not permitted")                                                             \
  X(cudaErrorNotSupported, 801, "operation not supported")                                                             \
  X(cudaErrorSystemNotReady, 802, "system not yet initialized")                                                        \
  X(cudaErrorStreamCaptureUnsupported, 900, "operation not permitted when stream is capturing")                        \
  X(cudaErrorStreamCaptureInvalidated, 901, "operation failed due to a previous error during capture")                 \
  X(cudaErrorStreamCaptureUnmatched, 903, "capture was not ended in the same stream as it began")                      \
  X(cudaErrorStreamCaptureUnjoined, 904, "capturing stream has unjoined work")                                         \
  X(cudaErrorStreamCaptureIsolation, 905, "dependency created on uncaptured work in another stream")                   \
  X(cudaErrorStreamCaptureImplicit, 906,                                                                               \
    "operation would make the legacy stream depend on a capturing blocking stream")                                    \
  X(cudaErrorCapturedEvent, 907, "operation not permitted on an event last recorded in a capturing stream")            \
  X(cudaErrorStreamCaptureWrongThread, 908,                                                                            \
    "attempt to terminate a thread-local capture sequence from another thread")                                        \
  X(cudaErrorUnknown, 999, "unknown error")

#define MLKT_EMU_ENUMERATOR(name, value, text) name = value,
typedef enum cudaError { MLKT_EMU_ERRORS(MLKT_EMU_ENUMERATOR) } cudaError_t;

typedef enum cudaDeviceAttr {
  cudaDevAttrMaxThreadsPerBlock = 1,
  cudaDevAttrMaxBlockDimX = 2,
  cudaDevAttrMaxBlockDimY = 3,
  cudaDevAttrMaxBlockDimZ = 4,
  cudaDevAttrMaxGridDimX = 5,
  cudaDevAttrMaxGridDimY = 6,
  cudaDevAttrMaxGridDimZ = 7,
  cudaDevAttrMaxSharedMemoryPerBlock = 8,
  cudaDevAttrTotalConstantMemory = 9,
  cudaDevAttrWarpSize = 10,
  cudaDevAttrMaxRegistersPerBlock = 12,
  cudaDevAttrClockRate = 13,
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrIntegrated = 18,
  cudaDevAttrCanMapHostMemory = 19,
  cudaDevAttrComputeMode = 20,
  cudaDevAttrConcurrentKernels = 31,
  cudaDevAttrPciBusId = 33,
  cudaDevAttrPciDeviceId = 34,
  cudaDevAttrMemoryClockRate = 36,
  cudaDevAttrGlobalMemoryBusWidth = 37,
  cudaDevAttrL2CacheSize = 38,
  cudaDevAttrMaxThreadsPerMultiProcessor = 39,
  cudaDevAttrAsyncEngineCount = 40,
  cudaDevAttrUnifiedAddressing = 41,
  cudaDevAttrPciDomainId = 50,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
  cudaDevAttrMaxRegistersPerMultiprocessor = 82,
  cudaDevAttrManagedMemory = 83,
  cudaDevAttrSingleToDoublePrecisionPerfRatio = 87,
  cudaDevAttrPageableMemoryAccess = 88,
  cudaDevAttrCooperativeLaunch = 95,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
  cudaDevAttrMaxBlocksPerMultiprocessor = 106,
  cudaDevAttrReservedSharedMemoryPerBlock = 111,
  cudaDevAttrMemoryPoolsSupported = 115,
  cudaDevAttrClusterLaunch = 120
} cudaDeviceAttr;

typedef enum cudaMemcpyKind {
  cudaMemcpyHostToHost = 0,
  cudaMemcpyHostToDevice = 1,
  cudaMemcpyDeviceToHost = 2,
  cudaMemcpyDeviceToDevice = 3,
  cudaMemcpyDefault = 4
} cudaMemcpyKind;

typedef enum cudaMemoryType {
  cudaMemoryTypeUnregistered = 0,
  cudaMemoryTypeHost = 1,
  cudaMemoryTypeDevice = 2,
  cudaMemoryTypeManaged = 3
} cudaMemoryType;

struct cudaPointerAttributes {
  cudaMemoryType type;
  int device;
  void *devicePointer, *hostPointer;
};

typedef enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
  cudaFuncAttributePreferredSharedMemoryCarveout = 9
} cudaFuncAttribute;
enum { cudaSharedmemCarveoutDefault = -1, cudaSharedmemCarveoutMaxShared = 100, cudaSharedmemCarveoutMaxL1 = 0 };

struct cudaFuncAttributes {
  size_t sharedSizeBytes, constSizeBytes, localSizeBytes;
  int maxThreadsPerBlock, numRegs, ptxVersion, binaryVersion, cacheModeCA, maxDynamicSharedSizeBytes;
  int preferredShmemCarveout;
};

struct cudaDeviceProp {
  char name[256];
  size_t totalGlobalMem, sharedMemPerBlock;
  int regsPerBlock, warpSize;
  size_t memPitch;
  int maxThreadsPerBlock, maxThreadsDim[3], maxGridSize[3];
  size_t totalConstMem;
  int major, minor, multiProcessorCount, integrated, canMapHostMemory, concurrentKernels, ECCEnabled;
  int pciBusID, pciDeviceID, pciDomainID, asyncEngineCount, unifiedAddressing, memoryBusWidth, l2CacheSize;
  int maxThreadsPerMultiProcessor;
  size_t sharedMemPerMultiprocessor;
  int regsPerMultiprocessor, managedMemory, pageableMemoryAccess, cooperativeLaunch;
  size_t sharedMemPerBlockOptin;
  int maxBlocksPerMultiProcessor;
  size_t reservedSharedMemPerBlock;
};

typedef enum cudaStreamCaptureStatus {
  cudaStreamCaptureStatusNone = 0,
  cudaStreamCaptureStatusActive = 1,
  cudaStreamCaptureStatusInvalidated = 2
} cudaStreamCaptureStatus;
typedef enum cudaStreamCaptureMode {
  cudaStreamCaptureModeGlobal = 0,
  cudaStreamCaptureModeThreadLocal = 1,
  cudaStreamCaptureModeRelaxed = 2
} cudaStreamCaptureMode;

struct CUstream_st;
struct CUevent_st;
struct CUgraph_st;
typedef CUstream_st *cudaStream_t;
typedef CUevent_st *cudaEvent_t;
typedef CUgraph_st *cudaGraph_t;
typedef CUgraph_st *cudaGraphExec_t;
#define cudaStreamLegacy    ((cudaStream_t)0x1)
#define cudaStreamPerThread ((cudaStream_t)0x2)
enum { cudaStreamDefault = 0, cudaStreamNonBlocking = 1 };
enum { cudaEventDefault = 0, cudaEventBlockingSync = 1, cudaEventDisableTiming = 2, cudaEventInterprocess = 4 };
enum { cudaHostAllocDefault = 0, cudaHostAllocPortable = 1, cudaHostAllocMapped = 2, cudaHostAllocWriteCombined = 4 };
enum { cudaHostRegisterDefault = 0, cudaHostRegisterPortable = 1, cudaHostRegisterMapped = 2 };
enum { cudaIpcMemLazyEnablePeerAccess = 1 };
enum { cudaMemAttachGlobal = 1, cudaMemAttachHost = 2, cudaMemAttachSingle = 4 };

struct cudaIpcMemHandle_t {
  char reserved[64];
};

/* ---- types of the driver API that the description of tensors needs ----------------------------------------------- */

#define CUDART_VERSION 13000
#define CUDAAPI
typedef uint32_t cuuint32_t;
typedef uint64_t cuuint64_t;
typedef enum cudaError_enum { CUDA_SUCCESS = 0, CUDA_ERROR_INVALID_VALUE = 1 } CUresult;
typedef enum CUtensorMapDataType_enum {
  CU_TENSOR_MAP_DATA_TYPE_FLOAT16 = 6,
  CU_TENSOR_MAP_DATA_TYPE_FLOAT32 = 7,
  CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 = 9
} CUtensorMapDataType;
typedef enum CUtensorMapInterleave_enum { CU_TENSOR_MAP_INTERLEAVE_NONE = 0 } CUtensorMapInterleave;
typedef enum CUtensorMapSwizzle_enum {
  CU_TENSOR_MAP_SWIZZLE_NONE = 0,
  CU_TENSOR_MAP_SWIZZLE_32B = 1,
  CU_TENSOR_MAP_SWIZZLE_64B = 2,
  CU_TENSOR_MAP_SWIZZLE_128B = 3
} CUtensorMapSwizzle;
typedef enum CUtensorMapL2promotion_enum {
  CU_TENSOR_MAP_L2_PROMOTION_NONE = 0,
  CU_TENSOR_MAP_L2_PROMOTION_L2_64B = 1,
  CU_TENSOR_MAP_L2_PROMOTION_L2_128B = 2,
  CU_TENSOR_MAP_L2_PROMOTION_L2_256B = 3
} CUtensorMapL2promotion;
typedef enum CUtensorMapFloatOOBfill_enum { CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE = 0 } CUtensorMapFloatOOBfill;
typedef struct CUtensorMap_st {
  cuuint64_t opaque[16]; /* CUDA's is aligned to 128 bytes */
} CUtensorMap;
typedef enum cudaDriverEntryPointQueryResult {
  cudaDriverEntryPointSuccess = 0,
  cudaDriverEntryPointSymbolNotFound = 1,
  cudaDriverEntryPointVersionNotSufficent = 2
} cudaDriverEntryPointQueryResult;
enum { cudaEnableDefault = 0 };

inline cudaError_t cudaGetLastError();

/* ---- state ------------------------------------------------------------------------------------------------------- */

namespace mlkt_emu {

constexpr int THREADS_MAX = 1024, LANES = 32, WARPS_MAX = THREADS_MAX / LANES, BARRIERS = 16;
constexpr unsigned FULL_MASK = 0xFFFFFFFFu;

/* Where a call stands in the source, as a default argument: the caller's line. */
struct place {
  const char *file;
  int line;
  static place here(const char *f = __builtin_FILE(), int l = __builtin_LINE()) { return {f, l}; }
};

struct fiber {
#if MLKT_EMU_ASSEMBLY
  void *sp = nullptr; /* saved stack pointer while it does not run */
#else
  ucontext_t context;
#endif
  const void *bottom = nullptr; /* of its stack, and bytes: for AddressSanitizer */
  size_t size = 0;
  void *fake = nullptr;
  void *tsan = nullptr; /* ThreadSanitizer's idea of it */
};

/* A cp.async on its way: its source as it was at issue, written to the target when waited for. */
struct copy {
  void *to;
  int bytes, group;
  unsigned char data[16];
};

enum class state { fresh, ready, at_barrier, at_mbarrier, at_warp, exited };

struct thread {
  state now = state::exited;
  fiber *on = nullptr; /* none before it starts and after it ends */
  uint3 index = {0, 0, 0};
  const char *what = ""; /* it waits for, and where */
  place at = {"", 0};
  unsigned mask = 0;    /* at_warp: of the collective */
  void *args = nullptr; /* at_warp: of its own call, on its own stack; at_mbarrier: the barrier */
  int barrier = 0;      /* at_barrier: which */
  int value = 0;        /* at_barrier: its predicate, then the result; at_mbarrier: the parity waited for */
  int group = 0;        /* cp.async groups committed so far */
  std::vector<copy> copies;
};

/* An mbarrier of the block. A phase ends when nobody and no byte is missing. */
struct mbarrier {
  int arrivals, missing;
  int64_t bytes;   /* expected and not arrived; below 0: arrived and not yet expected */
  unsigned phase;  /* how many were complete */
  int fence_lacks; /* thread that made it and has not fenced; -1: none */
  char order[2];   /* ThreadSanitizer: what even and odd phases order */
};

/* A box on its way to shared memory: its bytes as they were at issue. */
struct box {
  unsigned char *to;
  uint64_t *barrier;
  std::vector<unsigned char> data;
  unsigned swizzle; /* 16-byte columns that change places: 1, 2, 4 or 8 */
};

/* A warp's part of a wgmma that was issued: done when it is waited for. */
struct wgmma {
  uint64_t a, b;
  int columns, bf16, a_lines, b_lines, fresh, held, group; /* fresh: D is not added to; held: A is in registers */
  float *d[LANES];
  const uint32_t *registers[LANES];
  std::vector<uint32_t> terms; /* held: what the registers had at issue, four of each lane */
};
/* What the registers of d hold; the registers themselves are rogue while products are under way. */
struct wgmma_sums {
  float *d[LANES];
  int count, left; /* registers of a lane; products under way */
  std::vector<float> value;
};

/* Threads of a warp that have arrived at a collective with this mask. */
struct meeting {
  unsigned mask, arrived;
  const char *what;
};

struct warp {
  unsigned gone; /* lanes that do not exist or have exited */
  int meetings;
  meeting meeting_of[LANES];
  char order; /* ThreadSanitizer: what __syncwarp orders */
  bool wgmma_fenced = false;
  int wgmma_group = 0; /* committed so far */
  size_t wgmma_issued = 0;
  std::vector<wgmma> wgmmas;
  std::vector<wgmma_sums> sums;
};

struct barrier {
  int arrived, expected; /* threads; expected 0: all that have not exited */
  const char *what;
  unsigned generation; /* how often it was complete */
  char order[2];       /* ThreadSanitizer: what even and odd generations order */
};

typedef void (*lane_function)(void *const args[LANES], unsigned mask);

struct allocation {
  size_t bytes;
  cudaMemoryType type;
  int device;
  int file;      /* -1, or the memory file behind it, which other processes can open */
  size_t mapped; /* bytes of that mapping */
  bool opened;   /* another process's */
};

struct capture {
  std::vector<std::function<void()>> work;
  cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  cudaStream_t origin = nullptr;
  const void *host_thread = nullptr;
  bool valid = true;
};

struct settings {
  uint64_t seed = 0;
  bool late_copies = true, late_streams = false, real_pointers = false, peers = true, ipc = false;
  bool specific = true, entry_points = true;
  int driver = 13000;    /* its version */
  float interval = 0.0f; /* ms that events tell; 0: the time that passed */
  int devices = 1, cc = 80, multiprocessors = 108;
  std::map<int, int> attributes;
  size_t memory = size_t(4) << 30;
  uint64_t fail_in = 0;
  cudaError_t fail_error = cudaSuccess, sticky = cudaSuccess;
};

inline uint64_t environment(const char *name, uint64_t otherwise) {
  const char *text = std::getenv(name);
  return text && *text ? std::strtoull(text, nullptr, 0) : otherwise;
}

inline settings first_settings() {
  settings s;
  s.seed = environment("MLK_EMU_SEED", s.seed);
  s.ipc = environment("MLK_EMU_IPC", 0) != 0;
  s.real_pointers = environment("MLK_EMU_POINTERS", 0) != 0;
  s.cc = int(environment("MLK_EMU_CC", uint64_t(s.cc)));
  s.multiprocessors = int(environment("MLK_EMU_SMS", uint64_t(s.multiprocessors)));
  return s;
}

struct machine {
  std::recursive_mutex lock; /* around every runtime call: one kernel runs at a time */
  settings set = first_settings();
  uint64_t counts[MLKT_EMU_WHATS] = {};
  std::map<unsigned char *, allocation> allocations;
  std::set<cudaStream_t> streams;
  std::set<cudaEvent_t> events;
  std::vector<capture *> captures;            /* those going on */
  std::map<const void *, int> dynamic_shared; /* by kernel: cudaFuncSetAttribute */
  std::set<std::pair<int, int>> peers;
  uint64_t launches = 0;

  /* the block that runs */
  const char *kernel = "";        /* its name, if known */
  const void *function = nullptr; /* its address, if known */
  bool running = false;
  void (*call)(void *) = nullptr; /* the body, with its context */
  void *body = nullptr;
  thread threads[THREADS_MAX];
  int count = 0, live = 0; /* threads, and those that have not exited */
  warp warps[WARPS_MAX];
  barrier barriers[BARRIERS] = {};
  unsigned char *shared = nullptr;
  size_t shared_bytes = 0;
  std::map<uint64_t *, mbarrier> mbarriers;
  std::deque<box> boxes;
  std::vector<wgmma> wgmma_of[WARPS_MAX / 4]; /* all that a warpgroup issued, by its first warp there */

  /* who may run: a ring (ascending order) or a bag (random) of indices into threads */
  uint16_t ready[THREADS_MAX];
  unsigned ready_head = 0;
  int ready_count = 0;
  uint64_t random = 0; /* state; 0: ascending */

  int current = 0;
  fiber host; /* what launched */
  fiber *running_on = nullptr, *came_from = nullptr;
  std::vector<fiber *> idle; /* fibers that wait for a thread to run */
  std::vector<fiber *> used; /* ThreadSanitizer: those of threads of this block that have exited */
  char launch_order = 0, exit_order = 0, fence_order = 0;
};

inline machine &m() {
  static machine *one = new machine; /* never destroyed: exit handlers of programs may still free memory */
  return *one;
}

inline thread_local int device_now = 0;
inline thread_local cudaError_t last_error = cudaSuccess;

/* The running kernel in words: its name as given, or what addr2line says of its address, or the address. */
inline std::string kernel_name(const machine &e) {
  char text[512] = "";
  Dl_info image;
  if (e.kernel[0] || !e.function) return e.kernel[0] ? e.kernel : "(unnamed)";
  uintptr_t offset = reinterpret_cast<uintptr_t>(e.function);
  if (dladdr(e.function, &image)) offset -= reinterpret_cast<uintptr_t>(image.dli_fbase); /* else linked statically */
  std::snprintf(text, sizeof text, "addr2line -C -f -s -e /proc/%d/exe 0x%zx 2>/dev/null", int(getpid()),
                size_t(offset));
  std::FILE *said = popen(text, "r");
  std::string name;
  if (said && std::fgets(text, sizeof text, said)) name.assign(text, std::strcspn(text, "\n"));
  if (said) pclose(said);
  if (!name.empty() && name[0] != '?') return name;
  std::snprintf(text, sizeof text, "at %p", e.function);
  return text;
}

[[noreturn]] __attribute__((format(printf, 1, 2))) inline void fatal(const char *format, ...) {
  machine &e = m();
  va_list arguments;
  std::fflush(stdout);
  std::fprintf(stderr, "cuda_emulator: ");
  if (e.running) {
    std::fprintf(stderr, "kernel %s, block (%u, %u, %u), thread (%u, %u, %u): ", kernel_name(e).c_str(), blockIdx.x,
                 blockIdx.y, blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z);
  }
  va_start(arguments, format);
  std::vfprintf(stderr, format, arguments);
  va_end(arguments);
  std::fprintf(stderr, "\n");
  std::fflush(stderr);
  std::abort();
}

/* Quiet NaNs as f16, bf16, f32 and f64; large and odd as integers. */
inline void rogue(void *memory, size_t bytes) {
  static const unsigned char pattern[2] = {0xFE, 0x7F};
  unsigned char *p = static_cast<unsigned char *>(memory);
  const size_t first = std::min(bytes, sizeof pattern);
  std::memcpy(p, pattern, first);
  for (size_t done = first; done < bytes;) { /* doubles what is there */
    const size_t n = std::min(done, bytes - done);
    std::memcpy(p + done, p, n);
    done += n;
  }
}

inline uint64_t random_u64(uint64_t *x) { /* xorshift64*; the state is never 0 */
  *x ^= *x >> 12;
  *x ^= *x << 25;
  *x ^= *x >> 27;
  return *x * UINT64_C(0x2545F4914F6CDD1D);
}

inline uint32_t random_below(uint64_t *x, uint32_t n) { return uint32_t((random_u64(x) >> 32) * n >> 32); }

/* ---- ThreadSanitizer --------------------------------------------------------------------------------------------- */

/* What the emulator itself reads and writes, while one lives, is no access of the CUDA thread. */
struct quiet {
  quiet() {
#if MLKT_EMU_TSAN
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
#endif
  }
  ~quiet() {
#if MLKT_EMU_TSAN
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
#endif
  }
  quiet(const quiet &) = delete;
  quiet &operator=(const quiet &) = delete;
};

/* What the running thread did before release comes before what others do after acquire of the same byte. */
inline void release_order(char *order) {
  (void)order;
#if MLKT_EMU_TSAN
  __tsan_release(order);
#endif
}
inline void acquire_order(char *order) {
  (void)order;
#if MLKT_EMU_TSAN
  __tsan_acquire(order);
#endif
}
/* An access that an instruction made for the running thread. */
inline void accessed(const void *p, size_t bytes, bool written) {
  (void)p, (void)bytes, (void)written;
#if MLKT_EMU_TSAN
  written ? __tsan_write_range(const_cast<void *>(p), bytes) : __tsan_read_range(const_cast<void *>(p), bytes);
#endif
}

/* ---- fibers ------------------------------------------------------------------------------------------------------ */

#if MLKT_EMU_ASAN || MLKT_EMU_TSAN || !defined(__OPTIMIZE__)
constexpr size_t STACK_BYTES = size_t(1) << 20; /* address space; memory only where touched */
#else
constexpr size_t STACK_BYTES = size_t(1) << 18;
#endif

#if MLKT_EMU_ASSEMBLY
extern "C" void mlkt_emu_switch(void **save_sp, void *load_sp); /* below */
#endif

#if defined(__x86_64__) && MLKT_EMU_ASSEMBLY
/* System V: rbx, rbp, r12 to r15 belong to the caller; the return address is on the stack. */
__asm__(".text\n"
        ".globl mlkt_emu_switch\n"
        ".hidden mlkt_emu_switch\n"
        ".type mlkt_emu_switch, @function\n"
        "mlkt_emu_switch:\n"
        "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
        "  movq %rsp, (%rdi)\n"
        "  movq %rsi, %rsp\n"
        "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n"
        "  ret\n"
        ".size mlkt_emu_switch, . - mlkt_emu_switch\n");
constexpr int RETURN_WORD = 6; /* of the frame that mlkt_emu_switch loads */
#elif MLKT_EMU_ASSEMBLY
/* AAPCS64: x19 to x30 and d8 to d15. */
__asm__(".text\n"
        ".globl mlkt_emu_switch\n"
        ".hidden mlkt_emu_switch\n"
        ".type mlkt_emu_switch, %function\n"
        "mlkt_emu_switch:\n"
        "  sub sp, sp, #160\n"
        "  stp x19, x20, [sp]\n  stp x21, x22, [sp, #16]\n  stp x23, x24, [sp, #32]\n"
        "  stp x25, x26, [sp, #48]\n  stp x27, x28, [sp, #64]\n  stp x29, x30, [sp, #80]\n"
        "  stp d8, d9, [sp, #96]\n  stp d10, d11, [sp, #112]\n  stp d12, d13, [sp, #128]\n  stp d14, d15, [sp, #144]\n"
        "  mov x9, sp\n  str x9, [x0]\n  mov sp, x1\n"
        "  ldp x19, x20, [sp]\n  ldp x21, x22, [sp, #16]\n  ldp x23, x24, [sp, #32]\n"
        "  ldp x25, x26, [sp, #48]\n  ldp x27, x28, [sp, #64]\n  ldp x29, x30, [sp, #80]\n"
        "  ldp d8, d9, [sp, #96]\n  ldp d10, d11, [sp, #112]\n  ldp d12, d13, [sp, #128]\n  ldp d14, d15, [sp, #144]\n"
        "  add sp, sp, #160\n"
        "  ret\n"
        ".size mlkt_emu_switch, . - mlkt_emu_switch\n");
constexpr int RETURN_WORD = 11;
#endif

inline void arrived_on_fiber() { /* first thing after every switch, on the stack switched to */
#if MLKT_EMU_ASAN
  machine &e = m();
  __sanitizer_finish_switch_fiber(e.running_on->fake, &e.came_from->bottom, &e.came_from->size);
#endif
}

inline void switch_to(fiber *to) {
  machine &e = m();
  fiber *from = e.running_on;
  e.came_from = from;
  e.running_on = to;
#if MLKT_EMU_ASAN
  __sanitizer_start_switch_fiber(&from->fake, to->bottom, to->size);
#endif
#if MLKT_EMU_TSAN
  __tsan_switch_to_fiber(to->tsan, 1); /* 1: which orders nothing */
#endif
#if MLKT_EMU_ASSEMBLY
  mlkt_emu_switch(&from->sp, to->sp);
#else
  swapcontext(&from->context, &to->context);
#endif
  arrived_on_fiber();
}

void fiber_main();

inline fiber *new_fiber() {
  static size_t made = 0;
  const size_t page = size_t(sysconf(_SC_PAGESIZE));
  void *memory = mmap(nullptr, STACK_BYTES + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                      -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, page, PROT_NONE) != 0) fatal("no memory for a fiber's stack");
  fiber *f = new fiber;
  unsigned char *bottom = static_cast<unsigned char *>(memory) + page;
  /* Stacks start at different sets of the caches, or all threads' frames would share a few. */
  const size_t size = STACK_BYTES - made++ % 61 * 1088 / 64 * 64;
  f->bottom = bottom;
  f->size = size;
#if MLKT_EMU_TSAN
  f->tsan = __tsan_create_fiber(0);
#endif
#if MLKT_EMU_ASSEMBLY
  /* The frame mlkt_emu_switch loads, zeros but for the return address. It is 16-byte aligned, so that the stack is
     as both ABIs want it when fiber_main starts. */
  void **frame = reinterpret_cast<void **>(bottom + size) - 32;
  frame[RETURN_WORD] = reinterpret_cast<void *>(&fiber_main);
  f->sp = frame;
#else
  getcontext(&f->context);
  f->context.uc_stack.ss_sp = bottom;
  f->context.uc_stack.ss_size = size;
  f->context.uc_link = nullptr;
  makecontext(&f->context, &fiber_main, 0);
#endif
  return f;
}

/* ---- scheduling -------------------------------------------------------------------------------------------------- */

inline void make_ready(machine &e, int index) {
  e.ready[(e.ready_head + unsigned(e.ready_count++)) % THREADS_MAX] = uint16_t(index);
}

bool deliver_box(machine &e); /* one that is on its way; false: there is none */

inline int pick_ready(machine &e) { /* the next thread to run, or -1 */
  if (e.random && !e.boxes.empty() && random_below(&e.random, 8) == 0) deliver_box(e);
  while (e.ready_count == 0)
    if (e.live == 0 || !deliver_box(e)) return -1; /* as late as possible */
  uint16_t &first = e.ready[e.ready_head];
  if (e.random)
    std::swap(first, e.ready[(e.ready_head + random_below(&e.random, uint32_t(e.ready_count))) % THREADS_MAX]);
  e.ready_head = (e.ready_head + 1) % THREADS_MAX;
  e.ready_count--;
  return first;
}

/* The thread with this index is the one that runs, or will when its fiber is switched to. */
inline void set_current(machine &e, int index) {
  e.current = index;
  threadIdx = e.threads[index].index;
  e.threads[index].now = state::ready;
}

inline fiber *fiber_for(machine &e, int index) {
  thread &t = e.threads[index];
  if (t.on) return t.on;
  if (e.idle.empty()) {
    t.on = new_fiber();
  } else {
    t.on = e.idle.back();
    e.idle.pop_back();
  }
#if MLKT_EMU_TSAN
  char name[64];
  std::snprintf(name, sizeof name, "threadIdx %u %u %u", t.index.x, t.index.y, t.index.z);
  __tsan_set_fiber_name(t.on->tsan, name);
#endif
  return t.on;
}

inline bool same_wait(const thread &a, const thread &b) {
  if (a.now == state::at_mbarrier && (a.args != b.args || a.value != b.value)) return false;
  return a.now == b.now && std::strcmp(a.what, b.what) == 0 && a.at.line == b.at.line && a.mask == b.mask;
}

[[noreturn]] inline void deadlock(machine &e) {
  std::string text = "deadlock, every thread waits:";
  char line[512];
  int listed = 0;
  for (int first = 0; first < e.count && listed < 40; listed++) {
    const thread &t = e.threads[first];
    int last = first;
    while (last + 1 < e.count && same_wait(t, e.threads[last + 1])) last++;
    if (t.now == state::exited) {
      std::snprintf(line, sizeof line, "\n  threads %d to %d have exited", first, last);
    } else if (t.now == state::at_warp) {
      std::snprintf(line, sizeof line, "\n  threads %d to %d wait in %s, mask 0x%08x, %s:%d", first, last, t.what,
                    t.mask, t.at.file, t.at.line);
    } else if (t.now == state::at_mbarrier) {
      const mbarrier &b = e.mbarriers[static_cast<uint64_t *>(t.args)];
      std::snprintf(line, sizeof line,
                    "\n  threads %d to %d wait for parity %d of the mbarrier at byte %td, which lacks %d arrivals and "
                    "%lld bytes, %s:%d",
                    first, last, t.value, static_cast<unsigned char *>(t.args) - e.shared, b.missing,
                    static_cast<long long>(b.bytes), t.at.file, t.at.line);
    } else {
      const barrier &b = e.barriers[t.barrier];
      std::snprintf(line, sizeof line, "\n  threads %d to %d wait at %s, barrier %d with %d of %d, %s:%d", first, last,
                    t.what, t.barrier, b.arrived, b.expected ? b.expected : e.live, t.at.file, t.at.line);
    }
    text += line;
    first = last + 1;
  }
  fatal("%s", text.c_str());
}

/* The running thread waits (its state says for what): the next one runs. Returns when this one runs again. */
inline void wait() {
  machine &e = m();
  const int self = e.current, next = pick_ready(e);
  if (next < 0) deadlock(e);
  set_current(e, next);
  if (next == self) return;
  switch_to(fiber_for(e, next));
}

/* A point at which a random order may let others go first. */
inline void yield() {
  machine &e = m();
  if (!e.random) return;
  const quiet internal;
  make_ready(e, e.current);
  wait();
}

/* ---- barriers ---------------------------------------------------------------------------------------------------- */

enum { BARRIER_SYNC, BARRIER_COUNT, BARRIER_AND, BARRIER_OR };

/* PTX: bar.sync is .aligned: all threads of a warp must execute the same one. */
inline void check_aligned(machine &e, int id, int first) {
  const thread &reference = e.threads[first];
  for (int i = first / LANES * LANES; i < std::min(e.count, (first / LANES + 1) * LANES); i++) {
    const thread &t = e.threads[i];
    if (t.now == state::exited) continue;
    if (t.now != state::at_barrier || t.barrier != id)
      fatal("barrier %d: thread %d of a warp waits at %s:%d, thread %d does not", id, first, reference.at.file,
            reference.at.line, i);
    if (t.at.line != reference.at.line || std::strcmp(t.at.file, reference.at.file) != 0)
      fatal("barrier %d: threads %d and %d of a warp wait at different places, %s:%d and %s:%d", id, first, i,
            reference.at.file, reference.at.line, t.at.file, t.at.line);
  }
}

/* All have arrived: their results, and they may run. self: the thread that goes on by itself, or -1. */
inline void release_barrier(machine &e, int id, int self) {
  barrier &b = e.barriers[id];
  int sum = 0, all = 1, any = 0, waiting = 0;
  for (int i = 0; i < e.count; i++) {
    thread &t = e.threads[i];
    if (t.now != state::at_barrier || t.barrier != id) continue;
    if (waiting++ == 0 || i % LANES == 0) check_aligned(e, id, i);
    sum += t.value != 0;
    all &= t.value != 0;
    any |= t.value != 0;
  }
  b.generation++;
  for (int i = 0; i < e.count; i++) {
    thread &t = e.threads[i];
    if (t.now != state::at_barrier || t.barrier != id) continue;
    t.now = state::ready;
    t.value = b.what[0] == 'c' ? sum : b.what[0] == 'a' ? all : any;
    if (i != self) make_ready(e, i);
  }
  b.arrived = 0;
}

inline const char *barrier_name(const char *kind) {
  return kind[0] == 'c'   ? "__syncthreads_count"
         : kind[0] == 'a' ? "__syncthreads_and"
         : kind[0] == 'o' ? "__syncthreads_or"
                          : kind;
}

/* expected 0: all threads that have not exited. kind: "count", "and", "or", or the name of a barrier without a
   result. */
inline int arrive(int id, int expected, const char *kind, int value, bool waits, place at) {
  const quiet internal;
  machine &e = m();
  if (!e.running) fatal("%s outside a kernel, %s:%d", barrier_name(kind), at.file, at.line);
  if (id < 0 || id >= BARRIERS || expected < 0 || expected % LANES != 0 ||
      expected > (e.count + LANES - 1) / LANES * LANES)
    fatal("barrier %d for %d threads: there are 16, each for a multiple of 32 threads of the block, %s:%d", id,
          expected, at.file, at.line);
  barrier &b = e.barriers[id];
  thread &t = e.threads[e.current];
  if (b.arrived > 0 && (b.expected != expected || std::strcmp(b.what, kind) != 0))
    fatal("barrier %d: %s for %d threads, %s:%d, but others wait at %s for %d", id, barrier_name(kind), expected,
          at.file, at.line, barrier_name(b.what), b.expected);
  char *order = &b.order[b.generation % 2];
  release_order(order);
  b.expected = expected;
  b.what = kind;
  b.arrived++;
  if (waits) {
    t.now = state::at_barrier;
    t.what = barrier_name(kind);
    t.at = at;
    t.mask = 0;
    t.barrier = id;
    t.value = value;
  }
  if (b.arrived == (expected ? expected : e.live)) {
    release_barrier(e, id, waits ? e.current : -1);
    yield();
  } else if (waits) {
    wait();
  }
  if (waits) acquire_order(order);
  return e.threads[e.current].value;
}

/* ---- warp collectives -------------------------------------------------------------------------------------------- */

/* All threads of the mask meet; the last to arrive computes for all: args, one per lane of the mask, live on the
   stacks of the threads. */
inline void meet(const char *what, unsigned mask, void *args, lane_function compute, place at) {
  const quiet internal;
  machine &e = m();
  if (!e.running) fatal("%s outside a kernel, %s:%d", what, at.file, at.line);
  const int self = e.current, lane = self % LANES;
  warp &w = e.warps[self / LANES];
  thread *lanes = &e.threads[self - lane];
  thread &t = e.threads[self];
  if (!(mask >> lane & 1))
    fatal("%s: the mask 0x%08x lacks the calling lane %d, %s:%d", what, mask, lane, at.file, at.line);
  if (mask & w.gone)
    fatal("%s: the mask 0x%08x names lanes 0x%08x that have exited or do not exist, %s:%d", what, mask, mask & w.gone,
          at.file, at.line);
  int i = 0;
  while (i < w.meetings && w.meeting_of[i].mask != mask) i++;
  if (i == w.meetings) w.meeting_of[w.meetings++] = {mask, 0, what};
  meeting &here = w.meeting_of[i];
  if (here.what != what && std::strcmp(here.what, what) != 0)
    fatal("%s with mask 0x%08x, %s:%d, but other lanes of it wait in %s", what, mask, at.file, at.line, here.what);
  here.arrived |= 1u << lane;
  t.now = state::at_warp;
  t.what = what;
  t.at = at;
  t.mask = mask;
  t.args = args;
  if (here.arrived != mask) {
    wait();
    return;
  }
  here = w.meeting_of[--w.meetings];
  void *all[LANES] = {};
  for (int l = 0; l < LANES; l++)
    if (mask >> l & 1) all[l] = lanes[l].args;
  if (compute) compute(all, mask);
  for (int l = 0; l < LANES; l++)
    if (mask >> l & 1) {
      lanes[l].now = state::ready;
      if (&lanes[l] != &t) make_ready(e, self - lane + l);
    }
  yield();
}

/* ---- threads ----------------------------------------------------------------------------------------------------- */

inline void finish_copies(thread &t, int groups_done) {
  size_t kept = 0;
  for (const copy &c : t.copies) {
    if (c.group < groups_done) {
      std::memcpy(c.to, c.data, size_t(c.bytes));
    } else {
      t.copies[kept++] = c;
    }
  }
  t.copies.resize(kept);
}

inline void exit_thread(machine &e) {
  thread &t = e.threads[e.current];
  warp &w = e.warps[e.current / LANES];
  const unsigned bit = 1u << e.current % LANES;
  if (!t.copies.empty()) finish_copies(t, INT_MAX);
  for (int i = 0; i < w.meetings; i++)
    if (w.meeting_of[i].mask & bit)
      fatal("the thread exits, but lanes 0x%08x wait for it in %s with mask 0x%08x", w.meeting_of[i].arrived,
            w.meeting_of[i].what, w.meeting_of[i].mask);
  if (!w.wgmmas.empty()) fatal("the thread exits with %zu wgmma under way", w.wgmmas.size());
  w.gone |= bit;
  t.now = state::exited;
  t.on = nullptr;
  e.live--;
  for (int id = 0; id < BARRIERS; id++) {
    const barrier &b = e.barriers[id];
    if (b.arrived > 0 && b.expected == 0 && b.arrived == e.live) release_barrier(e, id, -1);
  }
}

/* The thread that ran on this fiber has exited: the next one's fiber; nullptr when it starts on this one. */
inline fiber *next_fiber(machine &e, fiber *self) {
  const quiet internal;
  exit_thread(e);
  const int next = pick_ready(e);
  if (next < 0 && e.live > 0) deadlock(e);
  if (next >= 0) set_current(e, next);
  if (next >= 0 && !e.threads[next].on && !MLKT_EMU_TSAN) {
    e.threads[next].on = self;
    return nullptr;
  }
  (MLKT_EMU_TSAN ? e.used : e.idle).push_back(self);
  return next >= 0 ? fiber_for(e, next) : &e.host;
}

/* What every fiber runs: one thread after another, for ever. */
inline void fiber_main() {
  machine &e = m();
  fiber *self = e.running_on;
  arrived_on_fiber();
  for (;;) {
    acquire_order(&e.launch_order);
    e.call(e.body);
    release_order(&e.exit_order);
    fiber *next = next_fiber(e, self);
    if (next) {
      const quiet internal;
      switch_to(next);
    }
  }
}

inline void run_block(machine &e) {
  const quiet internal;
  for (int w = 0; w * LANES < e.count; w++) {
    const int lanes = std::min(LANES, e.count - w * LANES);
    e.warps[w].gone = lanes == LANES ? 0 : FULL_MASK << lanes;
    e.warps[w].meetings = 0;
  }
  for (barrier &b : e.barriers) b.arrived = b.expected = 0;
  e.mbarriers.clear();
  for (warp &w : e.warps) w.wgmma_fenced = false, w.wgmma_group = 0, w.wgmma_issued = 0;
  for (std::vector<wgmma> &all : e.wgmma_of) all.clear();
  e.ready_head = 0;
  e.ready_count = 0;
  e.live = e.count;
  for (int i = 0; i < e.count; i++) {
    thread &t = e.threads[i];
    t.now = state::fresh;
    t.what = "";
    t.group = 0;
    make_ready(e, i);
  }
  release_order(&e.launch_order);
  set_current(e, pick_ready(e));
  switch_to(fiber_for(e, e.current));
  acquire_order(&e.exit_order);
  e.idle.insert(e.idle.end(), e.used.begin(), e.used.end());
  e.used.clear();
  for (int id = 0; id < BARRIERS; id++)
    if (e.barriers[id].arrived > 0)
      fatal("the block has ended with %d threads arrived at barrier %d", e.barriers[id].arrived, id);
  if (!e.boxes.empty()) fatal("the block has ended with %zu boxes on their way", e.boxes.size());
  for (int i = 0; i < e.count; i++)
    if (e.warps[i / LANES].wgmma_issued != e.wgmma_of[i / LANES / 4].size())
      fatal("the block has ended: warp %d had part in %zu of %zu wgmma of its warpgroup", i / LANES,
            e.warps[i / LANES].wgmma_issued, e.wgmma_of[i / LANES / 4].size());
}

/* ---- launches ---------------------------------------------------------------------------------------------------- */

/* a * b - a * b rounded first is the product's rounding error when fused, 0 otherwise. */
__attribute__((noinline)) inline float contracted(float a, float b, float c) { return a * b - c; }

inline void check_contraction() {
  volatile float a = 1.0f + 0x1p-12f, product = a * a;
  if (contracted(a, a, product) != 0.0f) fatal("compile with -ffp-contract=off");
}

/* Every block of a grid once: ascending, or index * step + start modulo their number, step having no factor in
   common. */
struct block_order {
  uint64_t count, step = 1, at = 0;
  block_order(uint64_t blocks, uint64_t *random) : count(blocks) {
    if (*random == 0 || blocks < 2) return;
    at = random_u64(random) % blocks;
    do step = 1 + random_u64(random) % (blocks - 1);
    while (gcd(step, blocks) != 1);
  }
  static uint64_t gcd(uint64_t a, uint64_t b) {
    while (b) {
      const uint64_t r = a % b;
      a = b;
      b = r;
    }
    return a;
  }
  uint64_t next() {
    const uint64_t block = at;
    at = at + step >= count ? at + step - count : at + step;
    return block;
  }
};

constexpr size_t CANARY = MLKT_EMU_ASAN ? 0 : 64; /* bytes behind a block, where no red zone guards it */

inline void check_canary(const unsigned char *end, const char *what) {
  for (size_t i = 0; i < CANARY; i++)
    if (end[i] != 0xA5) fatal("%s is overrun: byte %zu behind its end is changed", what, i);
}

inline unsigned char *new_block(size_t alignment, size_t bytes) {
  void *memory = nullptr;
  if (posix_memalign(&memory, alignment, std::max<size_t>(bytes + CANARY, 1)) != 0) return nullptr;
  unsigned char *p = static_cast<unsigned char *>(memory);
  rogue(p, bytes);
  std::memset(p + bytes, 0xA5, CANARY);
  return p;
}

inline int attribute_of(const machine &e, int attribute);
inline void expose_device_memory(machine &e, bool exposed);

/* A device has modes of its own: it rounds to nearest and keeps denormals, whatever the calling thread does. */
struct device_modes {
  std::fenv_t before;
  device_modes() {
    std::fegetenv(&before);
    std::fesetenv(FE_DFL_ENV);
  }
  ~device_modes() { std::fesetenv(&before); }
};

inline void run_grid(const char *kernel, const void *function, dim3 grid, dim3 block, size_t bytes,
                     void (*call)(void *), void *body) {
  static bool checked = false;
  const device_modes modes;
  machine &e = m();
  if (!checked) check_contraction();
  checked = true;
  if (e.running) fatal("a kernel launches a kernel");
  e.kernel = kernel;
  e.function = function;
  e.call = call;
  e.body = body;
  gridDim = grid;
  blockDim = block;
  e.count = int(block.x * block.y * block.z);
  for (int i = 0; i < e.count; i++) {
    const unsigned u = unsigned(i);
    e.threads[i].index = {u % block.x, u / block.x % block.y, u / block.x / block.y};
  }
  e.launches++;
  e.counts[MLKT_EMU_LAUNCHES]++;
  e.random = e.set.seed ? (e.set.seed * UINT64_C(0x9E3779B97F4A7C15) ^ e.launches) | UINT64_C(1) << 63 : 0;
  e.shared = new_block(1024, bytes);
  e.shared_bytes = bytes;
  if (!e.shared) fatal("no memory for %zu bytes of shared memory", bytes);
  expose_device_memory(e, true);
  e.running = true;
  e.running_on = &e.host;
#if MLKT_EMU_TSAN
  e.host.tsan = __tsan_get_current_fiber();
#endif
  const uint64_t blocks = uint64_t(grid.x) * grid.y * grid.z;
  block_order order(blocks, &e.random);
  for (uint64_t i = 0; i < blocks; i++) {
    const uint64_t b = order.next();
    blockIdx = {unsigned(b % grid.x), unsigned(b / grid.x % grid.y), unsigned(b / grid.x / grid.y)};
    if (i > 0) rogue(e.shared, bytes);
    run_block(e);
    check_canary(e.shared + bytes, "dynamic shared memory");
  }
  e.running = false;
  expose_device_memory(e, false);
  std::free(e.shared);
  e.shared = nullptr;
}

/* Every limit a launch must respect; on hardware most give cudaErrorInvalidConfiguration, here they are bugs. */
inline void check_launch(machine &e, const char *name, const void *function, bool opt_in, dim3 grid, dim3 block,
                         size_t bytes, size_t parameters) {
  e.kernel = name;
  e.function = function;
  const auto limit = [&](int attribute) { return unsigned(attribute_of(e, attribute)); };
  if (grid.x < 1 || grid.y < 1 || grid.z < 1 || grid.x > limit(cudaDevAttrMaxGridDimX) ||
      grid.y > limit(cudaDevAttrMaxGridDimY) || grid.z > limit(cudaDevAttrMaxGridDimZ))
    fatal("launch of %s: a grid of %u x %u x %u blocks", kernel_name(e).c_str(), grid.x, grid.y, grid.z);
  if (block.x < 1 || block.y < 1 || block.z < 1 || block.x > limit(cudaDevAttrMaxBlockDimX) ||
      block.y > limit(cudaDevAttrMaxBlockDimY) || block.z > limit(cudaDevAttrMaxBlockDimZ) ||
      uint64_t(block.x) * block.y * block.z > limit(cudaDevAttrMaxThreadsPerBlock))
    fatal("launch of %s: blocks of %u x %u x %u threads", kernel_name(e).c_str(), block.x, block.y, block.z);
  if (bytes > limit(cudaDevAttrMaxSharedMemoryPerBlockOptin))
    fatal("launch of %s: %zu bytes of shared memory, the device has %u", kernel_name(e).c_str(), bytes,
          limit(cudaDevAttrMaxSharedMemoryPerBlockOptin));
  if (opt_in && bytes > limit(cudaDevAttrMaxSharedMemoryPerBlock)) {
    const auto set = e.dynamic_shared.find(function);
    if (set == e.dynamic_shared.end() || bytes > size_t(set->second))
      fatal("launch of %s: %zu bytes of shared memory without cudaFuncSetAttribute", kernel_name(e).c_str(), bytes);
  }
  const size_t most = e.set.driver >= 12010 ? 32764 : 4096;
  if (parameters > most)
    fatal("launch of %s: about %zu bytes of parameters, more than %zu", kernel_name(e).c_str(), parameters, most);
}

} // namespace mlkt_emu

/* ---- barriers and warp collectives of CUDA C++ ------------------------------------------------------------------- */

inline void __syncthreads(mlkt_emu::place at = mlkt_emu::place::here()) {
  mlkt_emu::arrive(0, 0, "__syncthreads", 0, true, at);
}
inline int __syncthreads_count(int predicate, mlkt_emu::place at = mlkt_emu::place::here()) {
  return mlkt_emu::arrive(0, 0, "count", predicate, true, at);
}
inline int __syncthreads_and(int predicate, mlkt_emu::place at = mlkt_emu::place::here()) {
  return mlkt_emu::arrive(0, 0, "and", predicate, true, at);
}
inline int __syncthreads_or(int predicate, mlkt_emu::place at = mlkt_emu::place::here()) {
  return mlkt_emu::arrive(0, 0, "or", predicate, true, at);
}
/* bar.sync id, count and bar.arrive id, count. */
inline void mlkt_emu_named_barrier(int id, int count, mlkt_emu::place at = mlkt_emu::place::here()) {
  if (count == 0) mlkt_emu::fatal("barrier %d for 0 threads", id);
  mlkt_emu::arrive(id, count, "bar.sync", 0, true, at);
}
inline void mlkt_emu_named_barrier_arrive(int id, int count, mlkt_emu::place at = mlkt_emu::place::here()) {
  if (count == 0) mlkt_emu::fatal("barrier %d for 0 threads", id);
  mlkt_emu::arrive(id, count, "bar.sync", 0, false, at);
}
inline void __syncwarp(unsigned mask = 0xFFFFFFFFu, mlkt_emu::place at = mlkt_emu::place::here()) {
  char *order = &mlkt_emu::m().warps[mlkt_emu::m().current / mlkt_emu::LANES].order;
  mlkt_emu::release_order(order);
  mlkt_emu::meet("__syncwarp", mask, nullptr, nullptr, at);
  mlkt_emu::acquire_order(order);
}
inline void __nanosleep(unsigned) {
  const mlkt_emu::quiet internal;
  mlkt_emu::make_ready(mlkt_emu::m(), mlkt_emu::m().current);
  mlkt_emu::wait();
}
/* With an atomic behind or before it a fence orders; here the fences alone do. */
inline void __threadfence_block() {
  mlkt_emu::acquire_order(&mlkt_emu::m().fence_order);
  mlkt_emu::release_order(&mlkt_emu::m().fence_order);
}
inline void __threadfence() { __threadfence_block(); }
inline void __threadfence_system() { __threadfence_block(); }

namespace mlkt_emu {

struct shuffle_args {
  uint64_t value, result;
  int lane, source; /* source: the lane read, itself when the one asked for is out of range */
};

inline void shuffle(void *const args[LANES], unsigned mask) {
  for (int l = 0; l < LANES; l++) {
    if (!(mask >> l & 1)) continue;
    shuffle_args *a = static_cast<shuffle_args *>(args[l]);
    if (!(mask >> a->source & 1))
      fatal("a shuffle of lane %d reads lane %d, which mask 0x%08x lacks", l, a->source, mask);
    a->result = static_cast<const shuffle_args *>(args[a->source])->value;
  }
}

inline int lane_id() { return m().current % LANES; }

template <class T> T exchange(const char *what, unsigned mask, T value, int source, place at) {
  static_assert(std::is_arithmetic<T>::value && (sizeof(T) == 4 || sizeof(T) == 8), "a type that shuffles have");
  shuffle_args a = {0, 0, lane_id(), source};
  std::memcpy(&a.value, &value, sizeof value);
  meet(what, mask, &a, shuffle, at);
  std::memcpy(&value, &a.result, sizeof value);
  return value;
}

inline void check_width(int width) {
  if (width < 1 || width > LANES || (width & (width - 1)) != 0) fatal("a shuffle of width %d", width);
}

struct vote_args {
  uint64_t value;
  uint64_t result;
};

inline void ballot(void *const args[LANES], unsigned mask) {
  unsigned bits = 0;
  for (int l = 0; l < LANES; l++)
    if (mask >> l & 1) bits |= unsigned(static_cast<vote_args *>(args[l])->value != 0) << l;
  for (int l = 0; l < LANES; l++)
    if (mask >> l & 1) static_cast<vote_args *>(args[l])->result = bits;
}

inline void match(void *const args[LANES], unsigned mask) {
  for (int l = 0; l < LANES; l++) {
    if (!(mask >> l & 1)) continue;
    vote_args *a = static_cast<vote_args *>(args[l]);
    a->result = 0;
    for (int o = 0; o < LANES; o++)
      if (mask >> o & 1 && static_cast<vote_args *>(args[o])->value == a->value) a->result |= uint64_t(1) << o;
  }
}

inline unsigned vote(const char *what, unsigned mask, uint64_t value, lane_function compute, place at) {
  vote_args a = {value, 0};
  meet(what, mask, &a, compute, at);
  return unsigned(a.result);
}

template <class Combine> void reduce(void *const args[LANES], unsigned mask, Combine combine) {
  uint64_t total = 0;
  bool first = true;
  for (int l = 0; l < LANES; l++) {
    if (!(mask >> l & 1)) continue;
    const uint64_t value = static_cast<vote_args *>(args[l])->value;
    total = first ? value : combine(total, value);
    first = false;
  }
  for (int l = 0; l < LANES; l++)
    if (mask >> l & 1) static_cast<vote_args *>(args[l])->result = total;
}

/* The device must have an instruction that came with compute capability cc. */
inline void require(const char *what, int cc) {
  if (m().set.cc < cc)
    fatal("%s needs compute capability %d.%d, the device has %d.%d", what, cc / 10, cc % 10, m().set.cc / 10,
          m().set.cc % 10);
}

} // namespace mlkt_emu

/* Sources as PTX has them for shfl: lane numbers modulo 32, clamped to the segment of width lanes. */
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, mlkt_emu::place at = mlkt_emu::place::here()) {
  mlkt_emu::check_width(width);
  const int segment = mlkt_emu::lane_id() & ~(width - 1);
  return mlkt_emu::exchange("__shfl_sync", mask, value, segment | (source & (width - 1)), at);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, mlkt_emu::place at = mlkt_emu::place::here()) {
  mlkt_emu::check_width(width);
  const int lane = mlkt_emu::lane_id(), source = lane - int(delta & 31);
  return mlkt_emu::exchange("__shfl_up_sync", mask, value, source >= (lane & ~(width - 1)) ? source : lane, at);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   mlkt_emu::place at = mlkt_emu::place::here()) {
  mlkt_emu::check_width(width);
  const int lane = mlkt_emu::lane_id(), source = lane + int(delta & 31);
  return mlkt_emu::exchange("__shfl_down_sync", mask, value, source <= (lane | (width - 1)) ? source : lane, at);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, mlkt_emu::place at = mlkt_emu::place::here()) {
  mlkt_emu::check_width(width);
  const int lane = mlkt_emu::lane_id(), source = lane ^ (bits & 31);
  return mlkt_emu::exchange("__shfl_xor_sync", mask, value, source <= (lane | (width - 1)) ? source : lane, at);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, mlkt_emu::place at = mlkt_emu::place::here()) {
  return mlkt_emu::vote("__ballot_sync", mask, predicate != 0, mlkt_emu::ballot, at);
}
inline int __any_sync(unsigned mask, int predicate, mlkt_emu::place at = mlkt_emu::place::here()) {
  return mlkt_emu::vote("__any_sync", mask, predicate != 0, mlkt_emu::ballot, at) != 0;
}
inline int __all_sync(unsigned mask, int predicate, mlkt_emu::place at = mlkt_emu::place::here()) {
  return mlkt_emu::vote("__all_sync", mask, predicate != 0, mlkt_emu::ballot, at) == mask;
}
template <class T> unsigned __match_any_sync(unsigned mask, T value, mlkt_emu::place at = mlkt_emu::place::here()) {
  static_assert(std::is_arithmetic<T>::value && (sizeof(T) == 4 || sizeof(T) == 8), "a type that match has");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  return mlkt_emu::vote("__match_any_sync", mask, bits, mlkt_emu::match, at);
}

#define MLKT_EMU_REDUCE(name, type, expression)                                                                        \
  inline type name(unsigned mask, type value, mlkt_emu::place at = mlkt_emu::place::here()) {                          \
    mlkt_emu::require(#name, 80);                                                                                      \
    return type(mlkt_emu::vote(                                                                                        \
        #name, mask, uint32_t(value),                                                                                  \
        [](void *const args[mlkt_emu::LANES], unsigned lanes) {                                                        \
          mlkt_emu::reduce(args, lanes, [](uint64_t p, uint64_t q) {                                                   \
            const type a = static_cast<type>(p), b = static_cast<type>(q);                                             \
            return uint64_t(uint32_t(expression));                                                                     \
          });                                                                                                          \
        },                                                                                                             \
        at));                                                                                                          \
  }
MLKT_EMU_REDUCE(__reduce_add_sync, unsigned, a + b)
MLKT_EMU_REDUCE(__reduce_min_sync, unsigned, std::min(a, b))
MLKT_EMU_REDUCE(__reduce_max_sync, unsigned, std::max(a, b))
MLKT_EMU_REDUCE(__reduce_and_sync, unsigned, a &b)
MLKT_EMU_REDUCE(__reduce_or_sync, unsigned, a | b)
MLKT_EMU_REDUCE(__reduce_xor_sync, unsigned, a ^ b)
MLKT_EMU_REDUCE(__reduce_add_sync, int, unsigned(a) + unsigned(b))
MLKT_EMU_REDUCE(__reduce_min_sync, int, std::min(a, b))
MLKT_EMU_REDUCE(__reduce_max_sync, int, std::max(a, b))

/* ---- arithmetic intrinsics --------------------------------------------------------------------------------------- */

inline float __fmaf_rn(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return __builtin_sqrtf(a); }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline double __fma_rn(double a, double b, double c) { return __builtin_fma(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __dsqrt_rn(double a) { return __builtin_sqrt(a); }
inline double __drcp_rn(double a) { return 1.0 / a; }

namespace mlkt_emu {

template <class To, class From> To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "the same size");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

/* PTX cvt to integers: saturates; NaN gives 0 for 32 bits. x is already integral, or about to be truncated. */
template <class To> To saturate(double x) {
  if (x != x) return 0;
  if (x <= double(std::numeric_limits<To>::min())) return std::numeric_limits<To>::min();
  if (x >= double(std::numeric_limits<To>::max())) return std::numeric_limits<To>::max();
  return To(x);
}

} // namespace mlkt_emu

inline unsigned __float_as_uint(float x) { return mlkt_emu::bits_as<unsigned>(x); }
inline int __float_as_int(float x) { return mlkt_emu::bits_as<int>(x); }
inline float __uint_as_float(unsigned x) { return mlkt_emu::bits_as<float>(x); }
inline float __int_as_float(int x) { return mlkt_emu::bits_as<float>(x); }
inline long long __double_as_longlong(double x) { return mlkt_emu::bits_as<long long>(x); }
inline double __longlong_as_double(long long x) { return mlkt_emu::bits_as<double>(x); }

inline int __float2int_rn(float x) { return mlkt_emu::saturate<int>(std::nearbyint(double(x))); }
inline int __float2int_rz(float x) { return mlkt_emu::saturate<int>(double(x)); }
inline int __float2int_rd(float x) { return mlkt_emu::saturate<int>(std::floor(double(x))); }
inline int __float2int_ru(float x) { return mlkt_emu::saturate<int>(std::ceil(double(x))); }
inline unsigned __float2uint_rn(float x) { return mlkt_emu::saturate<unsigned>(std::nearbyint(double(x))); }
inline unsigned __float2uint_rz(float x) { return mlkt_emu::saturate<unsigned>(double(x)); }
inline int __double2int_rn(double x) { return mlkt_emu::saturate<int>(std::nearbyint(x)); }
inline int __double2int_rz(double x) { return mlkt_emu::saturate<int>(x); }
inline float __int2float_rn(int x) { return float(x); }
inline float __uint2float_rn(unsigned x) { return float(x); }
inline float __ll2float_rn(long long x) { return float(x); }
inline double __int2double_rn(int x) { return double(x); }
inline float __double2float_rn(double x) { return float(x); }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(unsigned(x)); }
inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll((unsigned long long)x); }
inline unsigned __brev(unsigned x) {
  unsigned y = 0;
  for (int i = 0; i < 32; i++) y |= (x >> i & 1) << (31 - i);
  return y;
}
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((unsigned long long)a * b >> 32); }
inline int __mulhi(int a, int b) { return int((long long)a * b >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  __extension__ typedef unsigned __int128 wide;
  return (unsigned long long)((wide)a * b >> 64);
}
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const unsigned long long bytes = (unsigned long long)y << 32 | x;
  unsigned r = 0;
  for (int i = 0; i < 4; i++) r |= unsigned(bytes >> 8 * (selector >> 4 * i & 7) & 0xFF) << 8 * i;
  return r;
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return unsigned(((unsigned long long)high << 32 | low) << (shift & 31) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return unsigned(((unsigned long long)high << 32 | low) >> (shift & 31));
}

/* min and max with CUDA's overloads. Of a NaN and a number, the number; -0 is below +0. */
#define MLKT_EMU_MIN_MAX(type)                                                                                         \
  inline type min(type a, type b) { return b < a ? b : a; }                                                            \
  inline type max(type a, type b) { return a < b ? b : a; }
MLKT_EMU_MIN_MAX(int)
MLKT_EMU_MIN_MAX(unsigned)
MLKT_EMU_MIN_MAX(long)
MLKT_EMU_MIN_MAX(unsigned long)
MLKT_EMU_MIN_MAX(long long)
MLKT_EMU_MIN_MAX(unsigned long long)
inline unsigned min(int a, unsigned b) { return min(unsigned(a), b); }
inline unsigned min(unsigned a, int b) { return min(a, unsigned(b)); }
inline unsigned max(int a, unsigned b) { return max(unsigned(a), b); }
inline unsigned max(unsigned a, int b) { return max(a, unsigned(b)); }
inline float min(float a, float b) { return a != a || b < a || (a == b && std::signbit(b)) ? b : a; }
inline float max(float a, float b) { return a != a || a < b || (a == b && std::signbit(a)) ? b : a; }
inline double min(double a, double b) { return a != a || b < a || (a == b && std::signbit(b)) ? b : a; }
inline double max(double a, double b) { return a != a || a < b || (a == b && std::signbit(a)) ? b : a; }

/* ---- memory intrinsics ------------------------------------------------------------------------------------------- */

namespace mlkt_emu {

inline void check_aligned_address(const char *what, const void *p, size_t alignment) {
  if (reinterpret_cast<uintptr_t>(p) % alignment != 0)
    fatal("%s at %p, which is not aligned to %zu bytes", what, p, alignment);
}

template <class T> T load(const char *what, const T *p) {
  check_aligned_address(what, p, sizeof(T));
  return *p;
}
template <class T> void store(const char *what, T *p, T value) {
  check_aligned_address(what, p, sizeof(T));
  *p = value;
}

} // namespace mlkt_emu

#define MLKT_EMU_LOAD(name)                                                                                            \
  template <class T> T name(const T *p) { return mlkt_emu::load(#name, p); }
#define MLKT_EMU_STORE(name)                                                                                           \
  template <class T> void name(T *p, T value) { mlkt_emu::store(#name, p, value); }
MLKT_EMU_LOAD(__ldg)
MLKT_EMU_LOAD(__ldca)
MLKT_EMU_LOAD(__ldcg)
MLKT_EMU_LOAD(__ldcs)
MLKT_EMU_LOAD(__ldcv)
MLKT_EMU_LOAD(__ldlu)
MLKT_EMU_STORE(__stcg)
MLKT_EMU_STORE(__stcs)
MLKT_EMU_STORE(__stwb)
MLKT_EMU_STORE(__stwt)

/* Threads take turns, so each is a load and a store. Each is a point where, in a random order, others may go first. */
#define MLKT_EMU_ATOMIC(name, type, expression)                                                                        \
  inline type name(type *p, type value) {                                                                              \
    mlkt_emu::check_aligned_address(#name, p, sizeof(type));                                                           \
    mlkt_emu::yield();                                                                                                 \
    type old;                                                                                                          \
    __atomic_load(p, &old, __ATOMIC_RELAXED);                                                                          \
    type changed = static_cast<type>(expression);                                                                      \
    __atomic_store(p, &changed, __ATOMIC_RELAXED);                                                                     \
    return old;                                                                                                        \
  }
#define MLKT_EMU_ATOMIC_INTEGERS(name, expression)                                                                     \
  MLKT_EMU_ATOMIC(name, int, expression)                                                                               \
  MLKT_EMU_ATOMIC(name, unsigned, expression)                                                                          \
  MLKT_EMU_ATOMIC(name, unsigned long long, expression)
MLKT_EMU_ATOMIC(atomicAdd, int, unsigned(old) + unsigned(value))
MLKT_EMU_ATOMIC(atomicAdd, unsigned, old + value)
MLKT_EMU_ATOMIC(atomicAdd, unsigned long long, old + value)
MLKT_EMU_ATOMIC(atomicAdd, float, old + value)
MLKT_EMU_ATOMIC(atomicAdd, double, old + value)
MLKT_EMU_ATOMIC(atomicSub, int, unsigned(old) - unsigned(value))
MLKT_EMU_ATOMIC(atomicSub, unsigned, old - value)
MLKT_EMU_ATOMIC_INTEGERS(atomicMax, std::max(old, value))
MLKT_EMU_ATOMIC_INTEGERS(atomicMin, std::min(old, value))
MLKT_EMU_ATOMIC(atomicMax, long long, std::max(old, value))
MLKT_EMU_ATOMIC(atomicMin, long long, std::min(old, value))
MLKT_EMU_ATOMIC_INTEGERS(atomicAnd, old &value)
MLKT_EMU_ATOMIC_INTEGERS(atomicOr, old | value)
MLKT_EMU_ATOMIC_INTEGERS(atomicXor, old ^ value)
MLKT_EMU_ATOMIC_INTEGERS(atomicExch, value)
MLKT_EMU_ATOMIC(atomicExch, float, value)
MLKT_EMU_ATOMIC(atomicInc, unsigned, old >= value ? 0u : old + 1u)
MLKT_EMU_ATOMIC(atomicDec, unsigned, old == 0 || old > value ? value : old - 1u)

template <class T, class V> T mlkt_emu_compare_and_swap(T *p, V expected, V desired) {
  mlkt_emu::check_aligned_address("atomicCAS", p, sizeof(T));
  mlkt_emu::yield();
  const T old = __atomic_load_n(p, __ATOMIC_RELAXED);
  if (old == T(expected)) __atomic_store_n(p, T(desired), __ATOMIC_RELAXED);
  return old;
}
inline int atomicCAS(int *p, int expected, int desired) { return mlkt_emu_compare_and_swap(p, expected, desired); }
inline unsigned atomicCAS(unsigned *p, unsigned expected, unsigned desired) {
  return mlkt_emu_compare_and_swap(p, expected, desired);
}
inline unsigned long long atomicCAS(unsigned long long *p, unsigned long long expected, unsigned long long desired) {
  return mlkt_emu_compare_and_swap(p, expected, desired);
}

/* The dynamic shared memory of the block: exactly the bytes of the launch. */
inline void *mlkt_emu_shared() {
  if (!mlkt_emu::m().running) mlkt_emu::fatal("dynamic shared memory outside a kernel");
  return mlkt_emu::m().shared;
}

/* As __CUDA_ARCH__: 800 on a device of compute capability 8.0. */
inline int mlkt_emu_arch() { return mlkt_emu::m().set.cc * 10; }
/* Is the code that runs there sm_90a's? */
inline bool mlkt_emu_specific() { return mlkt_emu::m().set.cc == 90 && mlkt_emu::m().set.specific; }

/* ---- PTX: cp.async ----------------------------------------------------------------------------------------------- */

/* cp.async.shared.global of 4, 8 or 16 bytes, of which the first source_bytes are read and the rest become 0. */
inline void mlkt_emu_cp_async(void *shared, const void *global, int bytes, int source_bytes) {
  mlkt_emu::machine &e = mlkt_emu::m();
  mlkt_emu::require("cp.async", 80);
  if ((bytes != 4 && bytes != 8 && bytes != 16) || source_bytes < 0 || source_bytes > bytes)
    mlkt_emu::fatal("cp.async of %d bytes, %d from the source", bytes, source_bytes);
  mlkt_emu::check_aligned_address("cp.async to shared memory", shared, size_t(bytes));
  mlkt_emu::check_aligned_address("cp.async from global memory", global, size_t(bytes));
  mlkt_emu::thread &t = e.threads[e.current];
  mlkt_emu::copy c = {shared, bytes, t.group, {}};
  if (source_bytes > 0) std::memcpy(c.data, global, size_t(source_bytes));
  if (e.set.late_copies) {
    mlkt_emu::rogue(shared, size_t(bytes));
    t.copies.push_back(c);
  } else {
    std::memcpy(shared, c.data, size_t(bytes));
  }
}
inline void mlkt_emu_cp_async_commit() { mlkt_emu::m().threads[mlkt_emu::m().current].group++; }
/* cp.async.wait_group: all but the newest groups_left groups of this thread have arrived. What is not committed has
   not. */
inline void mlkt_emu_cp_async_wait(int groups_left) {
  mlkt_emu::thread &t = mlkt_emu::m().threads[mlkt_emu::m().current];
  if (groups_left < 0) mlkt_emu::fatal("cp.async.wait_group %d", groups_left);
  mlkt_emu::finish_copies(t, t.group - groups_left);
}

/* ---- PTX: ldmatrix, stmatrix ------------------------------------------------------------------------------------- */

namespace mlkt_emu {

/* One lane's part of ldmatrix and stmatrix: count registers, each two b16 of one 8 x 8 matrix; row: the address of
   row lane % 8 of matrix lane / 8. Register i of lane l holds row l / 4, columns 2 * (l % 4) and + 1, of matrix i;
   transposed: column l / 4, rows 2 * (l % 4) and + 1. */
struct matrix_args {
  uint32_t *r;
  int count, transposed;
  void *row;
};

template <bool LOAD> void matrices(void *const args[LANES], unsigned) {
  const matrix_args &first = *static_cast<const matrix_args *>(args[0]);
  for (int l = 0; l < LANES; l++) {
    const matrix_args &a = *static_cast<const matrix_args *>(args[l]);
    if (a.count != first.count || a.transposed != first.transposed)
      fatal("lanes of one ldmatrix or stmatrix differ in its kind");
    /* sm_75 wants valid addresses of all lanes, used or not */
    check_aligned_address("a row of ldmatrix or stmatrix", a.row, 16);
    volatile const unsigned char *touch = static_cast<const unsigned char *>(a.row);
    (void)touch[0];
    (void)touch[15];
  }
  for (int matrix = 0; matrix < first.count; matrix++)
    for (int l = 0; l < LANES; l++) {
      uint32_t &r = static_cast<const matrix_args *>(args[l])->r[matrix];
      uint32_t loaded = 0;
      for (int half = 0; half < 2; half++) {
        const int inner = 2 * (l % 4) + half, outer = l / 4;
        const int row = first.transposed ? inner : outer, column = first.transposed ? outer : inner;
        unsigned char *at = static_cast<unsigned char *>(
                                static_cast<const matrix_args *>(args[8 * matrix + row])->row) +
                            2 * column;
        uint16_t element = uint16_t(r >> 16 * half);
        if (LOAD) std::memcpy(&element, at, sizeof element);
        if (!LOAD) std::memcpy(at, &element, sizeof element);
        loaded |= uint32_t(element) << 16 * half;
      }
      if (LOAD) r = loaded;
    }
}

} // namespace mlkt_emu

inline void mlkt_emu_ldmatrix(uint32_t *r, int count, int transposed, const void *row,
                              mlkt_emu::place at = mlkt_emu::place::here()) {
  mlkt_emu::require("ldmatrix", 75);
  if (count != 1 && count != 2 && count != 4) mlkt_emu::fatal("ldmatrix.x%d", count);
  mlkt_emu::matrix_args a = {r, count, transposed, const_cast<void *>(row)};
  mlkt_emu::meet("ldmatrix", mlkt_emu::FULL_MASK, &a, mlkt_emu::matrices<true>, at);
  if (mlkt_emu::lane_id() < 8 * count) mlkt_emu::accessed(row, 16, false);
}
inline void mlkt_emu_stmatrix(const uint32_t *r, int count, int transposed, void *row,
                              mlkt_emu::place at = mlkt_emu::place::here()) {
  mlkt_emu::require("stmatrix", 90);
  if (count != 1 && count != 2 && count != 4) mlkt_emu::fatal("stmatrix.x%d", count);
  mlkt_emu::matrix_args a = {const_cast<uint32_t *>(r), count, transposed, row};
  mlkt_emu::meet("stmatrix", mlkt_emu::FULL_MASK, &a, mlkt_emu::matrices<false>, at);
  if (mlkt_emu::lane_id() < 8 * count) mlkt_emu::accessed(row, 16, true);
}

/* ---- PTX: mma ---------------------------------------------------------------------------------------------------- */

namespace mlkt_emu {

inline float half_value(uint16_t h) {
  const uint32_t magnitude = h & 0x7FFFu, sign = uint32_t(h & 0x8000u) << 16;
  if (magnitude >= 0x7C00u) return bits_as<float>(sign | 0x7F800000u | (magnitude & 0x3FFu) << 13);
  return bits_as<float>(sign | magnitude << 13) * 0x1p112f; /* exact, subnormal ones too */
}
inline float bfloat_value(uint16_t b) { return bits_as<float>(uint32_t(b) << 16); }
/* Rounded to nearest even; too large becomes infinity, NaN the quiet NaN 0x7FFF, as cvt.rn.f16.f32 has it. */
inline uint16_t half_bits(float x) {
  const uint32_t bits = bits_as<uint32_t>(x), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return 0x7FFF;
  if (magnitude >= 0x477FF000u) return uint16_t(sign | 0x7C00u); /* 65520 and more */
  if (magnitude < 0x38800000u) /* below 2^-14: a multiple of 2^-24; 1024 of them are the smallest normal number */
    return uint16_t(sign | uint32_t(std::nearbyint(double(bits_as<float>(magnitude)) * 0x1p24)));
  const uint32_t rounded = magnitude + 0xFFFu + (magnitude >> 13 & 1u); /* may carry into the exponent */
  return uint16_t(sign | ((rounded - 0x38000000u) >> 13));
}
/* The hardware reads 19 bits of an f32 as tf32. */
inline float tf32_value(uint32_t bits) { return bits_as<float>(bits & 0xFFFFE000u); }

struct mma_args {
  float *d;
  const uint32_t *a, *b;
  int bf16;
};

/* d (16 x 8) += a b by exact products and sums that are truncated as the most truncating tensor core does (Fasi,
   Higham, Mikaitis, Pranesh 2021, doi 10.7717/peerj-cs.330, on V100): four products and the sum so far are aligned
   to the largest, truncated to 24 bits and added, and the sum truncated to f32. Newer devices keep more bits and
   take 8 or more products at a time, in an order of their own: a bound that holds here holds there, a bit need not.
   Where sums come near f32's range, or something is not finite, or results are subnormal: plain f32 sums, rounded to
   nearest. */
template <int DEPTH> void tensor_core(const float a[16][DEPTH], const float b[DEPTH][8], float d[16][8]) {
  const uint64_t exponent = UINT64_C(0x7FF0000000000000), twice_bias = UINT64_C(2046) << 52;
  double a_most = 0.0, b_most = 0.0, d_most = 0.0;
  bool number = true;
  for (int i = 0; i < 16 * DEPTH; i++) {
    const double x = std::fabs(double(a[i / DEPTH][i % DEPTH]));
    number &= x == x;
    a_most = x > a_most ? x : a_most;
  }
  for (int i = 0; i < 8 * DEPTH; i++) {
    const double x = std::fabs(double(b[i / 8][i % 8]));
    number &= x == x;
    b_most = x > b_most ? x : b_most;
  }
  for (int i = 0; i < 128; i++) {
    const double x = std::fabs(double(d[i / 8][i % 8]));
    number &= x == x;
    d_most = x > d_most ? x : d_most;
  }
  if (!number || !(a_most * b_most * DEPTH + d_most <= double(FLT_MAX) / 2)) {
    for (int i = 0; i < 128; i++)
      for (int k = 0; k < DEPTH; k++) d[i / 8][i % 8] += a[i / 8][k] * b[k][i % 8];
    return;
  }
  for (int row = 0; row < 16; row++) {
    double sum[8], largest[8], term[4][8];
    for (int c = 0; c < 8; c++) sum[c] = double(d[row][c]);
    for (int k = 0; k < DEPTH; k += 4) {
      for (int c = 0; c < 8; c++) largest[c] = std::max(std::fabs(sum[c]), 0x1p-900); /* not 0 */
      for (int i = 0; i < 4; i++)
        for (int c = 0; c < 8; c++) {
          term[i][c] = double(a[row][k + i]) * double(b[k + i][c]);
          largest[c] = std::fabs(term[i][c]) > largest[c] ? std::fabs(term[i][c]) : largest[c];
        }
      for (int c = 0; c < 8; c++) { /* unit: the last of 24 bits of the largest, a power of two */
        const double power = bits_as<double>(bits_as<uint64_t>(largest[c]) & exponent), unit = power * 0x1p-23;
        const double per_unit = bits_as<double>(twice_bias - bits_as<uint64_t>(power)) * 0x1p23;
        int32_t units = int32_t(sum[c] * per_unit); /* truncates */
        for (int i = 0; i < 4; i++) units += int32_t(term[i][c] * per_unit);
        /* the upper 24 bits of the sum */
        sum[c] = bits_as<double>(bits_as<uint64_t>(double(units) * unit) & ~((UINT64_C(1) << 29) - 1));
      }
    }
    for (int c = 0; c < 8; c++) d[row][c] = float(sum[c]);
  }
}

/* d (16 x 8) += a (16 x DEPTH) b (DEPTH x 8) from and to the fragments of the PTX ISA. With g = lane / 4, t = lane %
   4: a register i holds row g + 8 * (i % 2); 16-bit types: columns 2 t + 8 * (i / 2) and + 1; tf32: column t + 4 *
   (i / 2). b register i holds column g; 16-bit types: rows 2 t + 8 i and + 1; tf32: row t + 4 i. d element i: row g
   + 8 * (i / 2), column 2 t + i % 2. */
template <int DEPTH, bool TF32> void mma(void *const args[LANES], unsigned) {
  constexpr int PER = TF32 ? 1 : 2,
                SPAN = 4 * PER; /* elements of a register, columns that four lanes' registers cover */
  float a[16][DEPTH], b[DEPTH][8], d[16][8];
  const int bf16 = static_cast<const mma_args *>(args[0])->bf16;
  const auto element = [&](uint32_t r, int half) {
    if (TF32) return tf32_value(r);
    return bf16 ? bfloat_value(uint16_t(r >> 16 * half)) : half_value(uint16_t(r >> 16 * half));
  };
  for (int l = 0; l < LANES; l++) {
    const mma_args &own = *static_cast<const mma_args *>(args[l]);
    const int g = l / 4, t = l % 4;
    if (own.bf16 != bf16) fatal("lanes of one mma differ in its type");
    for (int i = 0; i < 2 * DEPTH / SPAN; i++)
      for (int h = 0; h < PER; h++) a[g + 8 * (i % 2)][PER * t + h + SPAN * (i / 2)] = element(own.a[i], h);
    for (int i = 0; i < DEPTH / SPAN; i++)
      for (int h = 0; h < PER; h++) b[PER * t + h + SPAN * i][g] = element(own.b[i], h);
    for (int i = 0; i < 4; i++) d[g + 8 * (i / 2)][2 * t + i % 2] = own.d[i];
  }
  tensor_core<DEPTH>(a, b, d);
  for (int l = 0; l < LANES; l++)
    for (int i = 0; i < 4; i++)
      static_cast<const mma_args *>(args[l])->d[i] = d[l / 4 + 8 * (i / 2)][2 * (l % 4) + i % 2];
}

} // namespace mlkt_emu

inline float mlkt_emu_from_f16(uint16_t h) { return mlkt_emu::half_value(h); }
inline uint16_t mlkt_emu_to_f16(float x) { return mlkt_emu::half_bits(x); }
/* cvt.rna.tf32.f32: 10 bits of mantissa, to nearest, ties away from zero; NaN and infinity keep theirs. */
inline uint32_t mlkt_emu_to_tf32(float x) {
  const uint32_t bits = __float_as_uint(x);
  return (bits & 0x7F800000u) == 0x7F800000u ? bits : (bits + 0x1000u) & 0xFFFFE000u;
}
inline void mlkt_emu_mma_m16n8k16(float d[4], const uint32_t a[4], const uint32_t b[2], int bf16,
                                  mlkt_emu::place at = mlkt_emu::place::here()) {
  mlkt_emu::require("mma.m16n8k16", 80);
  mlkt_emu::mma_args args = {d, a, b, bf16 != 0};
  mlkt_emu::meet("mma.m16n8k16", mlkt_emu::FULL_MASK, &args, mlkt_emu::mma<16, false>, at);
}
inline void mlkt_emu_mma_m16n8k8_f16(float d[4], const uint32_t a[2], const uint32_t b[1],
                                     mlkt_emu::place at = mlkt_emu::place::here()) {
  mlkt_emu::require("mma.m16n8k8", 75);
  mlkt_emu::mma_args args = {d, a, b, 0};
  mlkt_emu::meet("mma.m16n8k8.f16", mlkt_emu::FULL_MASK, &args, mlkt_emu::mma<8, false>, at);
}
inline void mlkt_emu_mma_m16n8k8_tf32(float d[4], const uint32_t a[4], const uint32_t b[2],
                                      mlkt_emu::place at = mlkt_emu::place::here()) {
  mlkt_emu::require("mma.m16n8k8.tf32", 80);
  mlkt_emu::mma_args args = {d, a, b, 0};
  mlkt_emu::meet("mma.m16n8k8.tf32", mlkt_emu::FULL_MASK, &args, mlkt_emu::mma<8, true>, at);
}

/* ---- PTX of sm_90a: mbarrier, cp.async.bulk.tensor, wgmma -------------------------------------------------------- */

namespace mlkt_emu {

inline void require_specific(const char *what) {
  if (!mlkt_emu_specific()) fatal("%s needs code for sm_90a", what);
}

/* The shared window: addresses as instructions and descriptors have them. The block's dynamic memory starts where no
   kernel should count on. */
constexpr uint32_t SHARED_START = 1024 + 128;

inline uint32_t shared_address(const void *p, size_t bytes, const char *what) {
  const machine &e = m();
  const unsigned char *at = static_cast<const unsigned char *>(p);
  if (!e.running || at < e.shared || bytes > e.shared_bytes || at > e.shared + e.shared_bytes - bytes)
    fatal("%s: %zu bytes at %p are not in the dynamic shared memory", what, bytes, p);
  return uint32_t(at - e.shared) + SHARED_START;
}

/* Bits 4 to 6 of an address of shared memory, exclusive or bits 7 to 9, as many as make columns:
   CuTe's Swizzle<n, 4, 3>. */
inline uint32_t swizzled(uint32_t address, unsigned columns) { return address ^ ((address >> 7 & (columns - 1)) << 4); }

inline mbarrier &mbarrier_of(uint64_t *p, place at) {
  const auto found = m().mbarriers.find(p);
  if (found == m().mbarriers.end())
    fatal("no mbarrier was made at %p, %s:%d", static_cast<void *>(p), at.file, at.line);
  return found->second;
}

/* Ends the phase if it is complete: those who wait for it may run. */
inline void try_phase(machine &e, uint64_t *p, mbarrier &b) {
  if (b.missing > 0 || b.bytes > 0) return;
  if (b.bytes < 0) fatal("an mbarrier got %lld bytes more than were expected", static_cast<long long>(-b.bytes));
  b.phase++;
  b.missing = b.arrivals;
  for (int i = 0; i < e.count; i++) {
    thread &t = e.threads[i];
    if (t.now != state::at_mbarrier || t.args != p || int(b.phase & 1) == t.value) continue;
    t.now = state::ready;
    make_ready(e, i);
  }
}

inline void arrive_mbarrier(uint64_t *p, int64_t bytes, place at) {
  const quiet internal;
  machine &e = m();
  require_specific("mbarrier.arrive");
  mbarrier &b = mbarrier_of(p, at);
  if (b.missing == 0) fatal("more arrivals at an mbarrier than its %d, %s:%d", b.arrivals, at.file, at.line);
  release_order(&b.order[b.phase & 1]);
  b.bytes += bytes;
  b.missing--;
  try_phase(e, p, b);
  yield();
}

inline bool deliver_box(machine &e) {
  if (e.boxes.empty()) return false;
  if (e.random) std::swap(e.boxes.front(), e.boxes[random_below(&e.random, uint32_t(e.boxes.size()))]);
  const box c = std::move(e.boxes.front());
  e.boxes.pop_front();
  const uint32_t start = uint32_t(c.to - e.shared) + SHARED_START;
  for (size_t i = 0; i < c.data.size(); i += 16)
    std::memcpy(e.shared + (swizzled(start + uint32_t(i), c.swizzle) - SHARED_START), &c.data[i],
                std::min<size_t>(16, c.data.size() - i));
  mbarrier &b = e.mbarriers[c.barrier];
  b.bytes -= int64_t(c.data.size());
  if (b.missing == 0) try_phase(e, c.barrier, b);
  return true;
}

/* What cuTensorMapEncodeTiled leaves in a CUtensorMap, here. */
struct tensor_map {
  const unsigned char *memory;
  uint64_t stride[4];
  uint32_t size[5];
  uint16_t box[5];              /* elements that are taken */
  uint8_t step[5];              /* from one to the next */
  uint8_t rank, bytes, swizzle; /* bytes of an element; columns that change places */
  uint32_t magic;
};
constexpr uint32_t MAP_MAGIC = 0x7E2508A9u;

/* With the limits of cuda.h; interleaving and NaN as fill are not emulated, and refused. The first step is ignored. */
inline CUresult encode_tiled(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank, void *memory,
                             const cuuint64_t *size, const cuuint64_t *stride, const cuuint32_t *box_size,
                             const cuuint32_t *steps, CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                             CUtensorMapL2promotion, CUtensorMapFloatOOBfill fill) {
  tensor_map t = tensor_map();
  const uint64_t span = uint64_t(16) << swizzle;
  if (rank < 1 || rank > 5 || interleave || fill || swizzle > 3) return CUDA_ERROR_INVALID_VALUE;
  if (!memory || reinterpret_cast<uintptr_t>(memory) % 16 != 0) return CUDA_ERROR_INVALID_VALUE;
  t.bytes = type == CU_TENSOR_MAP_DATA_TYPE_FLOAT32 ? 4 : 2;
  for (cuuint32_t i = 0; i < rank; i++) {
    if (size[i] < 1 || size[i] > UINT32_MAX || box_size[i] < 1 || box_size[i] > 256 || steps[i] < 1 || steps[i] > 8)
      return CUDA_ERROR_INVALID_VALUE;
    if (i > 0 && (stride[i - 1] % 16 != 0 || stride[i - 1] == 0 || stride[i - 1] >= uint64_t(1) << 40))
      return CUDA_ERROR_INVALID_VALUE;
    t.size[i] = uint32_t(size[i]);
    t.step[i] = uint8_t(i > 0 ? steps[i] : 1);
    t.box[i] = uint16_t((box_size[i] + t.step[i] - 1) / t.step[i]);
    if (i > 0) t.stride[i - 1] = stride[i - 1];
  }
  if (box_size[0] * t.bytes % 16 != 0 || (swizzle && box_size[0] * t.bytes > span)) return CUDA_ERROR_INVALID_VALUE;
  t.memory = static_cast<const unsigned char *>(memory);
  t.rank = uint8_t(rank);
  t.swizzle = uint8_t(1u << swizzle);
  t.magic = MAP_MAGIC;
  static_assert(sizeof t <= sizeof *map, "fits");
  *map = CUtensorMap();
  std::memcpy(map, &t, sizeof t);
  return CUDA_SUCCESS;
}

/* The box's elements, first axis innermost, zeros outside of the tensor. */
inline std::vector<unsigned char> gather_box(const tensor_map &t, const int *at) {
  const size_t row = size_t(t.box[0]) * t.bytes;
  size_t rows = 1;
  for (int i = 1; i < t.rank; i++) rows *= t.box[i];
  std::vector<unsigned char> data(rows * row);
  const int64_t low = std::max<int64_t>(at[0], 0), high = std::min<int64_t>(int64_t(at[0]) + t.box[0], t.size[0]);
  for (size_t r = 0; r < rows && low < high; r++) {
    const unsigned char *from = t.memory + low * t.bytes;
    bool inside = true;
    size_t rest = r;
    for (int i = 1; i < t.rank; i++) {
      const int64_t x = at[i] + int64_t(rest % t.box[i]) * t.step[i];
      rest /= t.box[i];
      inside = inside && x >= 0 && x < int64_t(t.size[i]);
      if (inside) from += uint64_t(x) * t.stride[i - 1];
    }
    if (inside) std::memcpy(&data[r * row + size_t(low - at[0]) * t.bytes], from, size_t(high - low) * t.bytes);
  }
  return data;
}

} // namespace mlkt_emu

inline uint32_t mlkt_emu_shared_address(const void *p) { return mlkt_emu::shared_address(p, 0, "an address"); }

inline void mlkt_emu_mbarrier_init(uint64_t *p, int arrivals, mlkt_emu::place at = mlkt_emu::place::here()) {
  const mlkt_emu::quiet internal;
  mlkt_emu::machine &e = mlkt_emu::m();
  mlkt_emu::require_specific("mbarrier.init");
  mlkt_emu::check_aligned_address("an mbarrier", p, 8);
  mlkt_emu::shared_address(p, 8, "an mbarrier");
  if (arrivals < 1 || arrivals >= 1 << 20)
    mlkt_emu::fatal("an mbarrier for %d arrivals, %s:%d", arrivals, at.file, at.line);
  e.mbarriers[p] = {arrivals, arrivals, 0, 0, e.current, {0, 0}};
}
/* fence.mbarrier_init and fence.proxy.async: the copy engine sees the barriers that this thread made. */
inline void mlkt_emu_mbarrier_fence() {
  mlkt_emu::machine &e = mlkt_emu::m();
  for (auto &b : e.mbarriers)
    if (b.second.fence_lacks == e.current) b.second.fence_lacks = -1;
}
inline void mlkt_emu_mbarrier_arrive(uint64_t *p, mlkt_emu::place at = mlkt_emu::place::here()) {
  mlkt_emu::arrive_mbarrier(p, 0, at);
}
inline void mlkt_emu_mbarrier_expect(uint64_t *p, int bytes, mlkt_emu::place at = mlkt_emu::place::here()) {
  if (bytes < 0 || bytes >= 1 << 20)
    mlkt_emu::fatal("an mbarrier is to expect %d bytes, %s:%d", bytes, at.file, at.line);
  mlkt_emu::arrive_mbarrier(p, bytes, at);
}
inline void mlkt_emu_mbarrier_wait(uint64_t *p, uint32_t parity, mlkt_emu::place at = mlkt_emu::place::here()) {
  const mlkt_emu::quiet internal;
  mlkt_emu::machine &e = mlkt_emu::m();
  mlkt_emu::require_specific("mbarrier.try_wait");
  mlkt_emu::mbarrier &b = mlkt_emu::mbarrier_of(p, at);
  mlkt_emu::thread &t = e.threads[e.current];
  if (parity > 1) mlkt_emu::fatal("an mbarrier's parity is %u, %s:%d", parity, at.file, at.line);
  mlkt_emu::yield();
  while ((b.phase & 1) == parity) {
    t.now = mlkt_emu::state::at_mbarrier;
    t.what = "mbarrier";
    t.at = at;
    t.mask = 0;
    t.args = p;
    t.value = int(parity);
    mlkt_emu::wait();
  }
  mlkt_emu::acquire_order(&b.order[parity]);
}

/* cp.async.bulk.tensor to shared memory, of a box whose first element is at these coordinates. */
inline void mlkt_emu_box_load(void *to, const CUtensorMap *map, uint64_t *p, int rank, const int *at,
                              mlkt_emu::place here = mlkt_emu::place::here()) {
  const mlkt_emu::quiet internal;
  mlkt_emu::machine &e = mlkt_emu::m();
  mlkt_emu::tensor_map t;
  mlkt_emu::require_specific("cp.async.bulk.tensor");
  std::memcpy(&t, map, sizeof t);
  if (t.magic != mlkt_emu::MAP_MAGIC || t.rank != rank)
    mlkt_emu::fatal("cp.async.bulk.tensor.%dd: the map is of rank %d, %s:%d", rank,
                    t.magic == mlkt_emu::MAP_MAGIC ? t.rank : 0, here.file, here.line);
  const mlkt_emu::mbarrier &b = mlkt_emu::mbarrier_of(p, here);
  if (b.fence_lacks >= 0)
    mlkt_emu::fatal("thread %d made an mbarrier that the copy engine sees only behind a fence, %s:%d", b.fence_lacks,
                    here.file, here.line);
  mlkt_emu::box c = {static_cast<unsigned char *>(to), p, mlkt_emu::gather_box(t, at), t.swizzle};
  const uint32_t start = mlkt_emu::shared_address(to, c.data.size(), "a box");
  if (start % 128 != 0) mlkt_emu::fatal("a box to byte %u of shared memory, %s:%d", start, here.file, here.line);
  if (t.swizzle > 1 && t.box[0] * t.bytes != 16 * t.swizzle)
    mlkt_emu::fatal("a box of rows of %d bytes with a swizzle of %d is not emulated, %s:%d", t.box[0] * t.bytes,
                    16 * t.swizzle, here.file, here.line);
  mlkt_emu::rogue(to, c.data.size());
  e.boxes.push_back(std::move(c));
  if (!e.set.late_copies)
    while (mlkt_emu::deliver_box(e)) continue;
  mlkt_emu::yield();
}

inline void mlkt_emu_setmaxnreg(int registers) {
  mlkt_emu::require_specific("setmaxnreg");
  if (registers < 24 || registers > 256 || registers % 8 != 0) mlkt_emu::fatal("setmaxnreg %d", registers);
}

namespace mlkt_emu {

/* A matrix by its descriptor (PTX ISA 9.0, 9.7.15.5.1.2): element (line, term), line: of 64 rows of
   A or of B's columns. */
struct wgmma_matrix {
  uint32_t start, leading, stride;
  unsigned columns; /* of 16 bytes that change places: 8, 4, 2, or 1, no swizzle */
  bool lines;       /* MN-major */
  wgmma_matrix(uint64_t d, bool lines_side_by_side)
      : start(uint32_t(d & 0x3FFF) << 4), leading(uint32_t(d >> 16 & 0x3FFF) << 4),
        stride(uint32_t(d >> 32 & 0x3FFF) << 4), columns(d >> 62 == 0 ? 1 : 16u >> (d >> 62)),
        lines(lines_side_by_side) {
    if (d >> 49 & 7) fatal("wgmma: a descriptor with a base offset of %d is not emulated", int(d >> 49 & 7));
    if (d & UINT64_C(0x3FF1C000C000C000))
      fatal("wgmma: a descriptor with bits that must be 0: %016llx", (unsigned long long)d);
  }
  uint16_t at(uint32_t line, uint32_t term) const {
    const machine &e = m();
    const uint32_t span = 8 * columns, row = 16 * columns; /* elements and bytes of a row of the pattern */
    uint32_t x = start;
    if (lines && columns > 1)
      x += line % span * 2 + line / span * leading + term % 8 * row + term / 8 * stride;
    else if (lines)
      x += line % 8 * 2 + line / 8 * stride + term % 8 * 16 + term / 8 * leading;
    else if (columns > 1)
      x += line % 8 * row + line / 8 * stride + term * 2;
    else
      x += line % 8 * 16 + line / 8 * stride + term % 8 * 2 + term / 8 * leading;
    x = swizzled(x, columns);
    if (x < SHARED_START || x + 2 > SHARED_START + e.shared_bytes)
      fatal("wgmma reads byte %u of shared memory, the block's are %u to %zu", x, SHARED_START,
            SHARED_START + e.shared_bytes);
    uint16_t element;
    std::memcpy(&element, e.shared + (x - SHARED_START), sizeof element);
    return element;
  }
};

/* Element (row, term) of a warp's 16 x 16 of A in registers (9.7.15.5.1.1.1): register i of lane l holds row l / 4 + 8
   (i % 2), terms 2 (l % 4) + 8 (i / 2) and the next, the first in the lower half. */
inline uint16_t held_term(const wgmma &op, uint32_t row, uint32_t term) {
  const uint32_t lane = row % 8 * 4 + term % 8 / 2, i = row / 8 + term / 8 * 2;
  return uint16_t(op.terms[lane * 4 + i] >> term % 2 * 16);
}

/* A warp's 16 rows of d += a b. Register i of lane l holds row l / 4 + 8 * (i / 2 % 2), column 8 * (i / 4) +
   2 * (l % 4) + i % 2. */
inline void multiply(const wgmma &op, wgmma_sums &sums, uint32_t warp_in_group) {
  const wgmma_matrix a(op.held ? 0 : op.a, op.a_lines != 0), b(op.b, op.b_lines != 0);
  const auto value = [&](uint16_t x) { return op.bf16 ? bfloat_value(x) : half_value(x); };
  float x[16][16], y[16][8], d[16][8];
  for (uint32_t i = 0; i < 16; i++)
    for (uint32_t k = 0; k < 16; k++) x[i][k] = value(op.held ? held_term(op, i, k) : a.at(16 * warp_in_group + i, k));
  for (int c = 0; c < op.columns; c += 8) {
    for (uint32_t k = 0; k < 16; k++)
      for (uint32_t j = 0; j < 8; j++) y[k][j] = value(b.at(uint32_t(c) + j, k));
    const auto sum = [&](int l, int i) -> float & { return sums.value[size_t(l * sums.count + c / 2 + i)]; };
    for (int l = 0; l < LANES; l++)
      for (int i = 0; i < 4; i++) d[l / 4 + 8 * (i / 2)][2 * (l % 4) + i % 2] = op.fresh ? 0.0f : sum(l, i);
    tensor_core<16>(x, y, d);
    for (int l = 0; l < LANES; l++)
      for (int i = 0; i < 4; i++) sum(l, i) = d[l / 4 + 8 * (i / 2)][2 * (l % 4) + i % 2];
  }
}

struct wgmma_args {
  wgmma op;
  float *d;
};

/* All lanes of the warp are there: the same product as the other warps of the warpgroup issue. */
inline void issue_wgmma(void *const args[LANES], unsigned) {
  machine &e = m();
  const int number = e.current / LANES;
  warp &w = e.warps[number];
  wgmma op = static_cast<const wgmma_args *>(args[0])->op;
  const auto same = [&](const wgmma &o) {
    return o.a == op.a && o.b == op.b && o.columns == op.columns && o.bf16 == op.bf16 && o.a_lines == op.a_lines &&
           o.b_lines == op.b_lines && o.fresh == op.fresh && o.held == op.held;
  };
  for (int l = 0; l < LANES; l++) {
    const wgmma_args &own = *static_cast<const wgmma_args *>(args[l]);
    if (!same(own.op)) fatal("lanes of one wgmma differ in its kind or descriptors");
    op.d[l] = own.d;
    op.registers[l] = own.op.registers[0];
    if (op.held) op.terms.insert(op.terms.end(), op.registers[l], op.registers[l] + 4);
  }
  std::vector<wgmma> &all = e.wgmma_of[number / 4];
  if (w.wgmma_issued == all.size()) all.push_back(op);
  if (!same(all[w.wgmma_issued++])) fatal("warps of one warpgroup differ in a wgmma's kind or descriptors");
  op.group = w.wgmma_group;
  size_t i = 0;
  while (i < w.sums.size() && w.sums[i].d[0] != op.d[0]) i++;
  if (i == w.sums.size()) {
    if (!w.wgmma_fenced) fatal("wgmma without wgmma.fence before it");
    w.sums.push_back(wgmma_sums());
    wgmma_sums &fresh = w.sums.back();
    fresh.count = op.columns / 2;
    fresh.left = 0;
    for (int l = 0; l < LANES; l++) {
      fresh.d[l] = op.d[l];
      fresh.value.insert(fresh.value.end(), op.d[l], op.d[l] + fresh.count);
      rogue(op.d[l], size_t(fresh.count) * sizeof(float));
    }
  }
  if (w.sums[i].count != op.columns / 2) fatal("wgmma of %d columns on registers of another under way", op.columns);
  w.sums[i].left++;
  w.wgmmas.push_back(op);
}

inline void finish_wgmmas(warp &w, int number, int groups_done) {
  size_t kept = 0;
  for (const wgmma &op : w.wgmmas) {
    if (op.group >= groups_done) {
      w.wgmmas[kept++] = op;
      continue;
    }
    for (size_t i = 0; i < op.terms.size(); i++)
      if (op.terms[i] != op.registers[i / 4][i % 4]) fatal("registers of A were written with a wgmma under way");
    for (wgmma_sums &sums : w.sums)
      if (sums.d[0] == op.d[0]) {
        multiply(op, sums, uint32_t(number % 4));
        sums.left--;
      }
  }
  w.wgmmas.resize(kept);
  for (size_t i = w.sums.size(); i-- > 0;) {
    if (w.sums[i].left > 0) continue;
    for (int l = 0; l < LANES; l++)
      std::memcpy(w.sums[i].d[l], &w.sums[i].value[size_t(l * w.sums[i].count)],
                  size_t(w.sums[i].count) * sizeof(float));
    w.sums.erase(w.sums.begin() + std::ptrdiff_t(i));
    w.wgmma_fenced = false;
  }
}

} // namespace mlkt_emu

inline void mlkt_emu_wgmma_fence(mlkt_emu::place at = mlkt_emu::place::here()) {
  mlkt_emu::require_specific("wgmma.fence");
  mlkt_emu::meet(
      "wgmma.fence", mlkt_emu::FULL_MASK, nullptr,
      [](void *const *, unsigned) { mlkt_emu::m().warps[mlkt_emu::m().current / mlkt_emu::LANES].wgmma_fenced = true; },
      at);
}
/* d: the lane's columns / 2 registers; fresh: products take the place of what they hold. */
inline void mlkt_emu_wgmma(float *d, int columns, uint64_t a, uint64_t b, int bf16, int a_lines, int b_lines,
                           int fresh = 0, mlkt_emu::place at = mlkt_emu::place::here()) {
  mlkt_emu::require_specific("wgmma");
  if (columns < 8 || columns > 256 || columns % 8 != 0) mlkt_emu::fatal("wgmma.m64n%dk16", columns);
  mlkt_emu::wgmma_args args = {{a, b, columns, bf16 != 0, a_lines != 0, b_lines != 0, fresh != 0, 0, 0, {}, {}, {}}, d};
  mlkt_emu::meet("wgmma", mlkt_emu::FULL_MASK, &args, mlkt_emu::issue_wgmma, at);
}
/* The same with A in registers: the lane's four. */
inline void mlkt_emu_wgmma_held(float *d, int columns, const uint32_t *a, uint64_t b, int bf16, int b_lines,
                                mlkt_emu::place at = mlkt_emu::place::here()) {
  mlkt_emu::require_specific("wgmma");
  if (columns < 8 || columns > 256 || columns % 8 != 0) mlkt_emu::fatal("wgmma.m64n%dk16", columns);
  mlkt_emu::wgmma_args args = {{0, b, columns, bf16 != 0, 0, b_lines != 0, 0, 1, 0, {}, {a}, {}}, d};
  mlkt_emu::meet("wgmma", mlkt_emu::FULL_MASK, &args, mlkt_emu::issue_wgmma, at);
}
inline void mlkt_emu_wgmma_commit(mlkt_emu::place at = mlkt_emu::place::here()) {
  mlkt_emu::meet(
      "wgmma.commit_group", mlkt_emu::FULL_MASK, nullptr,
      [](void *const *, unsigned) { mlkt_emu::m().warps[mlkt_emu::m().current / mlkt_emu::LANES].wgmma_group++; }, at);
}
/* wgmma.wait_group: all but the newest groups of this warp are done; what is not committed is not. */
inline void mlkt_emu_wgmma_wait(int groups_left, mlkt_emu::place at = mlkt_emu::place::here()) {
  if (groups_left < 0) mlkt_emu::fatal("wgmma.wait_group %d", groups_left);
  mlkt_emu::meet(
      "wgmma.wait_group", mlkt_emu::FULL_MASK, &groups_left,
      [](void *const args[mlkt_emu::LANES], unsigned) {
        const int number = mlkt_emu::m().current / mlkt_emu::LANES;
        mlkt_emu::warp &w = mlkt_emu::m().warps[number];
        mlkt_emu::finish_wgmmas(w, number, w.wgmma_group - *static_cast<const int *>(args[0]));
      },
      at);
}

/* ---- the runtime's API: devices ---------------------------------------------------------------------------------- */

struct CUstream_st {
  unsigned flags;
  int device;
  mlkt_emu::capture *captured;
  std::deque<std::function<void()>> queue; /* late streams: what has not run */
};

struct CUevent_st {
  unsigned flags;
  cudaStream_t stream;         /* late streams: where it was recorded, */
  uint64_t recorded, done;     /* and how often, and how many of these records have run */
  mlkt_emu::capture *captured; /* recorded while that went on */
  std::chrono::steady_clock::time_point at;
};

struct CUgraph_st {
  std::vector<std::function<void()>> work;
};

namespace mlkt_emu {

/* Figures NVIDIA publishes per compute capability; the rest is made up. */
inline int attribute_of(const machine &e, int attribute) {
  const int cc = e.set.cc;
  const bool large = cc == 80 || cc == 90 || cc == 100; /* data-centre parts */
  const auto set = e.set.attributes.find(attribute);
  if (set != e.set.attributes.end()) return set->second;
  switch (attribute) {
  case cudaDevAttrMaxThreadsPerBlock:
  case cudaDevAttrMaxBlockDimX:
  case cudaDevAttrMaxBlockDimY: return THREADS_MAX;
  case cudaDevAttrMaxBlockDimZ: return 64;
  case cudaDevAttrMaxGridDimX: return INT_MAX;
  case cudaDevAttrMaxGridDimY:
  case cudaDevAttrMaxGridDimZ: return 65535;
  case cudaDevAttrMaxSharedMemoryPerBlock: return 48 << 10;
  case cudaDevAttrMaxSharedMemoryPerBlockOptin: return (cc < 80 ? 64 : cc == 80 ? 163 : large ? 227 : 99) << 10;
  case cudaDevAttrMaxSharedMemoryPerMultiprocessor: return (cc < 80 ? 64 : cc == 80 ? 164 : large ? 228 : 100) << 10;
  case cudaDevAttrReservedSharedMemoryPerBlock: return cc < 80 ? 0 : 1024;
  case cudaDevAttrTotalConstantMemory: return 64 << 10;
  case cudaDevAttrWarpSize: return LANES;
  case cudaDevAttrMaxRegistersPerBlock:
  case cudaDevAttrMaxRegistersPerMultiprocessor: return 65536;
  case cudaDevAttrClockRate: return 1410000;
  case cudaDevAttrMemoryClockRate: return large ? 1593000 : 9751000;
  case cudaDevAttrGlobalMemoryBusWidth: return large ? 5120 : 384;
  case cudaDevAttrL2CacheSize: return (large ? 40 : 6) << 20;
  case cudaDevAttrMultiProcessorCount: return e.set.multiprocessors;
  case cudaDevAttrMaxThreadsPerMultiProcessor: return cc < 80 ? 1024 : large ? 2048 : 1536;
  case cudaDevAttrMaxBlocksPerMultiprocessor: return large ? 32 : 16;
  case cudaDevAttrComputeCapabilityMajor: return cc / 10;
  case cudaDevAttrComputeCapabilityMinor: return cc % 10;
  case cudaDevAttrAsyncEngineCount: return 2;
  case cudaDevAttrSingleToDoublePrecisionPerfRatio: return large ? 2 : 64;
  case cudaDevAttrClusterLaunch: return cc >= 90;
  case cudaDevAttrCanMapHostMemory:
  case cudaDevAttrConcurrentKernels:
  case cudaDevAttrUnifiedAddressing:
  case cudaDevAttrManagedMemory:
  case cudaDevAttrCooperativeLaunch:
  case cudaDevAttrMemoryPoolsSupported: return 1;
  default: return 0; /* integrated, compute mode, PCI place, pageable memory */
  }
}

/* With real pointers, under AddressSanitizer: the host may not look into device memory. */
inline void expose_device_memory(machine &e, bool exposed) {
#if MLKT_EMU_ASAN
  if (!e.set.real_pointers && !exposed) return;
  for (const auto &a : e.allocations) {
    if (a.second.type != cudaMemoryTypeDevice) continue;
    if (exposed) __asan_unpoison_memory_region(a.first, a.second.bytes);
    if (!exposed) __asan_poison_memory_region(a.first, a.second.bytes);
  }
#else
  (void)e;
  (void)exposed;
#endif
}

inline cudaError_t remember(cudaError_t error) {
  if (error != cudaSuccess && error != cudaErrorNotReady) last_error = error;
  return error;
}

inline void invalidate(capture *c) { c->valid = false; }

/* Captures of other streams that forbid a call which is unsafe while capturing: those of all threads begun in global
   mode, those of this thread in thread-local mode. */
inline bool capture_forbids(machine &e) {
  bool forbidden = false;
  for (capture *c : e.captures) {
    if (c->mode == cudaStreamCaptureModeRelaxed) continue;
    if (c->mode == cudaStreamCaptureModeThreadLocal && c->host_thread != &last_error) continue;
    invalidate(c);
    forbidden = true;
  }
  return forbidden;
}

enum class while_capturing { allowed, refused };

/* Every runtime call starts with one: the lock, injected and sticky errors, refusal while a stream captures. */
struct entry {
  std::lock_guard<std::recursive_mutex> guard;
  machine &e;
  cudaError_t error = cudaSuccess;
  explicit entry(while_capturing when = while_capturing::allowed) : guard(m().lock), e(m()) {
    if (e.running) fatal("a kernel calls the runtime");
    e.counts[MLKT_EMU_CALLS]++;
    if (e.set.fail_in > 0 && --e.set.fail_in == 0) {
      error = e.set.fail_error;
    } else if (e.set.sticky != cudaSuccess) {
      error = e.set.sticky;
    } else if (when == while_capturing::refused && capture_forbids(e)) {
      error = cudaErrorStreamCaptureUnsupported;
    }
    remember(error);
  }
};

inline CUstream_st *legacy_stream() {
  static CUstream_st *one = new CUstream_st{0, 0, nullptr, {}};
  return one;
}

/* The stream behind a handle, nullptr when there is none. */
inline CUstream_st *stream_of(machine &e, cudaStream_t stream) {
  if (stream == nullptr || stream == cudaStreamLegacy || stream == cudaStreamPerThread) return legacy_stream();
  return e.streams.count(stream) ? stream : nullptr;
}

inline void run_one(CUstream_st *s) {
  std::function<void()> work = std::move(s->queue.front());
  s->queue.pop_front();
  work();
}
inline void flush(CUstream_st *s) {
  while (!s->queue.empty()) run_one(s);
}
inline void flush_all(machine &e) {
  for (cudaStream_t s : std::set<cudaStream_t>(e.streams)) flush(s);
}

/* Work for a stream: recorded while it captures, kept for later with late streams, else run. */
inline cudaError_t submit(machine &e, cudaStream_t stream, std::function<void()> work) {
  CUstream_st *s = stream_of(e, stream);
  if (!s) return remember(cudaErrorInvalidResourceHandle);
  if (s->captured) {
    if (!s->captured->valid) return remember(cudaErrorStreamCaptureInvalidated);
    s->captured->work.push_back(std::move(work));
    return cudaSuccess;
  }
  if (s == legacy_stream()) { /* waits for all streams that are not cudaStreamNonBlocking */
    for (cudaStream_t other : std::set<cudaStream_t>(e.streams)) {
      if (other->flags & cudaStreamNonBlocking) continue;
      if (other->captured) {
        invalidate(other->captured);
        return remember(cudaErrorStreamCaptureImplicit);
      }
      flush(other);
    }
    work();
  } else if (e.set.late_streams) {
    s->queue.push_back(std::move(work));
  } else {
    work();
  }
  return cudaSuccess;
}

inline const char *error_text(cudaError_t error, bool name) {
  switch (int(error)) {
#define MLKT_EMU_TEXT(enumerator, value, text)                                                                         \
  case value: return name ? #enumerator : text;
    MLKT_EMU_ERRORS(MLKT_EMU_TEXT)
#undef MLKT_EMU_TEXT
  default: return name ? "cudaErrorUnknown" : "unrecognized error code";
  }
}

} // namespace mlkt_emu

inline const char *cudaGetErrorName(cudaError_t error) { return mlkt_emu::error_text(error, true); }
inline const char *cudaGetErrorString(cudaError_t error) { return mlkt_emu::error_text(error, false); }

inline cudaError_t cudaPeekAtLastError() {
  const cudaError_t sticky = mlkt_emu::m().set.sticky;
  return sticky != cudaSuccess ? sticky : mlkt_emu::last_error;
}
inline cudaError_t cudaGetLastError() {
  const cudaError_t error = cudaPeekAtLastError();
  mlkt_emu::last_error = cudaSuccess;
  return error;
}

/* MLKT_EMU_ENTER: declares the call's entry, `call`, and returns its error if it has one. */
#define MLKT_EMU_ENTER(when)                                                                                           \
  mlkt_emu::entry call(mlkt_emu::while_capturing::when);                                                               \
  if (call.error != cudaSuccess) return call.error
#define MLKT_EMU_REFUSE_IF(condition, error)                                                                           \
  if (condition) return mlkt_emu::remember(error)

inline cudaError_t cudaGetDeviceCount(int *count) {
  MLKT_EMU_ENTER(allowed);
  *count = call.e.set.devices;
  return mlkt_emu::remember(*count > 0 ? cudaSuccess : cudaErrorNoDevice);
}
inline cudaError_t cudaGetDevice(int *device) {
  MLKT_EMU_ENTER(allowed);
  MLKT_EMU_REFUSE_IF(call.e.set.devices == 0, cudaErrorNoDevice);
  *device = mlkt_emu::device_now;
  return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int device) {
  MLKT_EMU_ENTER(allowed);
  MLKT_EMU_REFUSE_IF(call.e.set.devices == 0, cudaErrorNoDevice);
  MLKT_EMU_REFUSE_IF(device < 0 || device >= call.e.set.devices, cudaErrorInvalidDevice);
  mlkt_emu::device_now = device;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int device) {
  MLKT_EMU_ENTER(allowed);
  MLKT_EMU_REFUSE_IF(device < 0 || device >= call.e.set.devices, cudaErrorInvalidDevice);
  *value = mlkt_emu::attribute_of(call.e, attribute);
  return cudaSuccess;
}
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int device) {
  MLKT_EMU_ENTER(allowed);
  MLKT_EMU_REFUSE_IF(device < 0 || device >= call.e.set.devices, cudaErrorInvalidDevice);
  const auto get = [&](int attribute) { return mlkt_emu::attribute_of(call.e, attribute); };
  *p = cudaDeviceProp();
  std::snprintf(p->name, sizeof p->name, "emulated sm_%d", call.e.set.cc);
  p->totalGlobalMem = call.e.set.memory;
  p->sharedMemPerBlock = size_t(get(cudaDevAttrMaxSharedMemoryPerBlock));
  p->sharedMemPerBlockOptin = size_t(get(cudaDevAttrMaxSharedMemoryPerBlockOptin));
  p->sharedMemPerMultiprocessor = size_t(get(cudaDevAttrMaxSharedMemoryPerMultiprocessor));
  p->reservedSharedMemPerBlock = size_t(get(cudaDevAttrReservedSharedMemoryPerBlock));
  p->totalConstMem = size_t(get(cudaDevAttrTotalConstantMemory));
  p->regsPerBlock = get(cudaDevAttrMaxRegistersPerBlock);
  p->regsPerMultiprocessor = get(cudaDevAttrMaxRegistersPerMultiprocessor);
  p->warpSize = get(cudaDevAttrWarpSize);
  p->maxThreadsPerBlock = get(cudaDevAttrMaxThreadsPerBlock);
  p->maxThreadsPerMultiProcessor = get(cudaDevAttrMaxThreadsPerMultiProcessor);
  p->maxBlocksPerMultiProcessor = get(cudaDevAttrMaxBlocksPerMultiprocessor);
  for (int i = 0; i < 3; i++) p->maxThreadsDim[i] = get(cudaDevAttrMaxBlockDimX + i);
  for (int i = 0; i < 3; i++) p->maxGridSize[i] = get(cudaDevAttrMaxGridDimX + i);
  p->major = get(cudaDevAttrComputeCapabilityMajor);
  p->minor = get(cudaDevAttrComputeCapabilityMinor);
  p->multiProcessorCount = get(cudaDevAttrMultiProcessorCount);
  p->memoryBusWidth = get(cudaDevAttrGlobalMemoryBusWidth);
  p->l2CacheSize = get(cudaDevAttrL2CacheSize);
  p->canMapHostMemory = p->concurrentKernels = p->unifiedAddressing = p->managedMemory = p->cooperativeLaunch = 1;
  p->asyncEngineCount = get(cudaDevAttrAsyncEngineCount);
  p->pciDeviceID = device;
  return cudaSuccess;
}
inline cudaError_t cudaGetDriverEntryPointByVersion(const char *symbol, void **entry, unsigned version,
                                                    unsigned long long, cudaDriverEntryPointQueryResult *found) {
  MLKT_EMU_ENTER(allowed);
  const bool known = call.e.set.entry_points && std::strcmp(symbol, "cuTensorMapEncodeTiled") == 0;
  *found = !known            ? cudaDriverEntryPointSymbolNotFound
           : version < 12000 ? cudaDriverEntryPointVersionNotSufficent
                             : cudaDriverEntryPointSuccess;
  *entry = *found == cudaDriverEntryPointSuccess ? reinterpret_cast<void *>(&mlkt_emu::encode_tiled) : nullptr;
  return cudaSuccess;
}
inline cudaError_t cudaRuntimeGetVersion(int *version) {
  MLKT_EMU_ENTER(allowed);
  *version = 13000;
  return cudaSuccess;
}
inline cudaError_t cudaDriverGetVersion(int *version) {
  MLKT_EMU_ENTER(allowed);
  *version = call.e.set.driver;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceCanAccessPeer(int *can, int device, int peer) {
  MLKT_EMU_ENTER(allowed);
  MLKT_EMU_REFUSE_IF(device < 0 || device >= call.e.set.devices || peer < 0 || peer >= call.e.set.devices,
                     cudaErrorInvalidDevice);
  *can = call.e.set.peers && device != peer;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceEnablePeerAccess(int peer, unsigned flags) {
  MLKT_EMU_ENTER(allowed);
  MLKT_EMU_REFUSE_IF(flags != 0, cudaErrorInvalidValue);
  MLKT_EMU_REFUSE_IF(peer < 0 || peer >= call.e.set.devices || peer == mlkt_emu::device_now, cudaErrorInvalidDevice);
  MLKT_EMU_REFUSE_IF(!call.e.set.peers, cudaErrorPeerAccessUnsupported);
  return mlkt_emu::remember(
      call.e.peers.insert({mlkt_emu::device_now, peer}).second ? cudaSuccess : cudaErrorPeerAccessAlreadyEnabled);
}
inline cudaError_t cudaDeviceDisablePeerAccess(int peer) {
  MLKT_EMU_ENTER(allowed);
  return mlkt_emu::remember(call.e.peers.erase({mlkt_emu::device_now, peer}) ? cudaSuccess
                                                                             : cudaErrorPeerAccessNotEnabled);
}

/* ---- memory ------------------------------------------------------------------------------------------------------ */

namespace mlkt_emu {

inline uint64_t live_device_bytes(const machine &e, int device) { /* managed memory too; device -1: of all */
  uint64_t bytes = 0;
  for (const auto &a : e.allocations)
    if (a.second.type != cudaMemoryTypeHost && (device < 0 || a.second.device == device)) bytes += a.second.bytes;
  return bytes;
}

/* The allocation p lies in, or end(). */
inline std::map<unsigned char *, allocation>::iterator allocation_of(machine &e, const void *p) {
  unsigned char *at = static_cast<unsigned char *>(const_cast<void *>(p));
  auto i = e.allocations.upper_bound(at);
  if (i == e.allocations.begin()) return e.allocations.end();
  --i;
  return at < i->first + std::max<size_t>(i->second.bytes, 1) ? i : e.allocations.end();
}

/* Maps size bytes of a memory file; nullptr when that fails. */
inline unsigned char *map_file(int file, size_t size) {
  void *memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  return memory == MAP_FAILED ? nullptr : static_cast<unsigned char *>(memory);
}

/* A block in a memory file, for cudaIpcGetMemHandle; with a canary behind it. */
inline unsigned char *new_shared_block(allocation *made) {
#if defined(__linux__)
  made->mapped = made->bytes + CANARY;
  made->file = memfd_create("mlk_emulated_device", MFD_CLOEXEC);
  if (made->file < 0) return nullptr;
  unsigned char *memory = ftruncate(made->file, off_t(made->mapped)) == 0 ? map_file(made->file, made->mapped)
                                                                          : nullptr;
  if (!memory) {
    close(made->file);
    return nullptr;
  }
  rogue(memory, made->bytes);
  std::memset(memory + made->bytes, 0xA5, CANARY);
  return memory;
#else
  made->mapped = 0;
  return nullptr;
#endif
}

inline cudaError_t allocate(machine &e, void **p, size_t bytes, cudaMemoryType type) {
  *p = nullptr;
  e.counts[MLKT_EMU_ALLOCATIONS]++;
  if (bytes == 0) return cudaSuccess;
  if (type != cudaMemoryTypeHost && (bytes > e.set.memory || live_device_bytes(e, device_now) > e.set.memory - bytes))
    return remember(cudaErrorMemoryAllocation);
  allocation made = {bytes, type, device_now, -1, 0, false};
  unsigned char *memory = type == cudaMemoryTypeDevice && e.set.ipc ? new_shared_block(&made) : new_block(256, bytes);
  if (!memory) return remember(cudaErrorMemoryAllocation);
  e.allocations[memory] = made;
  if (type == cudaMemoryTypeDevice) expose_device_memory(e, false);
  *p = memory;
  return cudaSuccess;
}

inline cudaError_t release(entry &call, void *p, bool host) {
  machine &e = call.e;
  if (call.error == cudaErrorStreamCaptureUnsupported) return call.error;
  if (p == nullptr) return call.error;
  flush_all(e); /* frees wait for the device */
  const auto i = e.allocations.find(static_cast<unsigned char *>(p));
  if (i == e.allocations.end() || (i->second.type == cudaMemoryTypeHost) != host || i->second.opened)
    return remember(cudaErrorInvalidValue);
  e.counts[MLKT_EMU_FREES]++;
  check_canary(i->first + i->second.bytes, host ? "pinned memory" : "device memory");
#if MLKT_EMU_ASAN
  __asan_unpoison_memory_region(i->first, i->second.bytes);
#endif
  if (i->second.file >= 0) {
    close(i->second.file);
    munmap(i->first, i->second.mapped);
  } else {
    std::free(i->first);
  }
  e.allocations.erase(i);
  return call.error;
}

/* With real pointers [p, p + bytes) must be what kind says; a range that starts in an allocation must end there. */
inline bool range_fits(machine &e, const void *p, size_t bytes, bool device) {
  const auto i = allocation_of(e, p);
  if (i == e.allocations.end()) return !(e.set.real_pointers && device);
  if (e.set.real_pointers && !device && i->second.type == cudaMemoryTypeDevice) return false;
  const size_t offset = size_t(static_cast<const unsigned char *>(p) - i->first);
  return bytes <= i->second.bytes - offset;
}

inline bool pinned_or_device(machine &e, const void *p) {
  return !e.set.real_pointers || allocation_of(e, p) != e.allocations.end();
}

inline void copy_bytes(void *to, const void *from, size_t bytes) {
  machine &e = m();
  expose_device_memory(e, true);
  std::memmove(to, from, bytes);
  expose_device_memory(e, false);
}

inline cudaError_t copy_async(machine &e, void *to, const void *from, size_t bytes, cudaMemcpyKind kind,
                              cudaStream_t stream) {
  if (kind < cudaMemcpyHostToHost || kind > cudaMemcpyDefault) return remember(cudaErrorInvalidMemcpyDirection);
  if (bytes == 0) return cudaSuccess;
  const bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
  const bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  if (!to || !from) return remember(cudaErrorInvalidValue);
  if (kind != cudaMemcpyDefault && (!range_fits(e, to, bytes, to_device) || !range_fits(e, from, bytes, from_device)))
    return remember(cudaErrorInvalidValue);
  e.counts[MLKT_EMU_COPIES]++;
  CUstream_st *s = stream_of(e, stream);
  if (s && !s->captured && !pinned_or_device(e, from)) { /* pageable memory is read before the call returns */
    std::vector<unsigned char> snapshot(static_cast<const unsigned char *>(from),
                                        static_cast<const unsigned char *>(from) + bytes);
    const auto kept = std::make_shared<std::vector<unsigned char>>(std::move(snapshot));
    return submit(e, stream, [=] { copy_bytes(to, kept->data(), bytes); });
  }
  const cudaError_t error = submit(e, stream, [=] { copy_bytes(to, from, bytes); });
  if (s && !s->captured && !pinned_or_device(e, to)) flush(s); /* and has been written */
  return error;
}

} // namespace mlkt_emu

inline cudaError_t cudaMalloc(void **p, size_t bytes) {
  MLKT_EMU_ENTER(refused);
  return mlkt_emu::allocate(call.e, p, bytes, cudaMemoryTypeDevice);
}
template <class T> cudaError_t cudaMalloc(T **p, size_t bytes) {
  return cudaMalloc(reinterpret_cast<void **>(p), bytes);
}
inline cudaError_t cudaHostAlloc(void **p, size_t bytes, unsigned) {
  MLKT_EMU_ENTER(refused);
  return mlkt_emu::allocate(call.e, p, bytes, cudaMemoryTypeHost);
}
template <class T> cudaError_t cudaHostAlloc(T **p, size_t bytes, unsigned flags) {
  return cudaHostAlloc(reinterpret_cast<void **>(p), bytes, flags);
}
inline cudaError_t cudaMallocHost(void **p, size_t bytes) { return cudaHostAlloc(p, bytes, cudaHostAllocDefault); }
inline cudaError_t cudaMallocManaged(void **p, size_t bytes, unsigned = cudaMemAttachGlobal) {
  MLKT_EMU_ENTER(refused);
  return mlkt_emu::allocate(call.e, p, bytes, cudaMemoryTypeManaged);
}
template <class T> cudaError_t cudaMallocManaged(T **p, size_t bytes, unsigned flags = cudaMemAttachGlobal) {
  return cudaMallocManaged(reinterpret_cast<void **>(p), bytes, flags);
}
template <class T> cudaError_t cudaMallocHost(T **p, size_t bytes, unsigned flags = cudaHostAllocDefault) {
  return cudaHostAlloc(reinterpret_cast<void **>(p), bytes, flags);
}
inline cudaError_t cudaFree(void *p) {
  mlkt_emu::entry call(mlkt_emu::while_capturing::refused);
  return mlkt_emu::release(call, p, false);
}
inline cudaError_t cudaFreeHost(void *p) {
  mlkt_emu::entry call(mlkt_emu::while_capturing::refused);
  return mlkt_emu::release(call, p, true);
}
inline cudaError_t cudaHostGetDevicePointer(void **device, void *host, unsigned) {
  MLKT_EMU_ENTER(allowed);
  const auto i = mlkt_emu::allocation_of(call.e, host);
  MLKT_EMU_REFUSE_IF(i == call.e.allocations.end() || i->second.type != cudaMemoryTypeHost, cudaErrorInvalidValue);
  *device = host;
  return cudaSuccess;
}
inline cudaError_t cudaMemGetInfo(size_t *available, size_t *total) {
  MLKT_EMU_ENTER(allowed);
  *total = call.e.set.memory;
  *available = *total - std::min<size_t>(*total, size_t(mlkt_emu::live_device_bytes(call.e, mlkt_emu::device_now)));
  return cudaSuccess;
}
inline cudaError_t cudaPointerGetAttributes(cudaPointerAttributes *attributes, const void *p) {
  MLKT_EMU_ENTER(allowed);
  void *address = const_cast<void *>(p);
  const auto i = mlkt_emu::allocation_of(call.e, p);
  if (i != call.e.allocations.end()) {
    const bool host_too = i->second.type != cudaMemoryTypeDevice;
    *attributes = {i->second.type, i->second.device, address, host_too ? address : nullptr};
  } else if (call.e.set.real_pointers || p == nullptr) {
    *attributes = {cudaMemoryTypeUnregistered, -2, nullptr, address};
  } else {
    *attributes = {cudaMemoryTypeDevice, mlkt_emu::device_now, address, nullptr};
  }
  return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind,
                                   cudaStream_t stream = nullptr) {
  MLKT_EMU_ENTER(allowed);
  return mlkt_emu::copy_async(call.e, to, from, bytes, kind, stream);
}
inline cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind) {
  MLKT_EMU_ENTER(refused);
  call.e.counts[MLKT_EMU_SYNCHRONISATIONS]++;
  return mlkt_emu::copy_async(call.e, to, from, bytes, kind, nullptr);
}
inline cudaError_t cudaMemcpyPeerAsync(void *to, int to_device, const void *from, int from_device, size_t bytes,
                                       cudaStream_t stream = nullptr) {
  MLKT_EMU_ENTER(allowed);
  MLKT_EMU_REFUSE_IF(to_device < 0 || to_device >= call.e.set.devices || from_device < 0 ||
                         from_device >= call.e.set.devices,
                     cudaErrorInvalidDevice);
  return mlkt_emu::copy_async(call.e, to, from, bytes, cudaMemcpyDeviceToDevice, stream);
}
inline cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
                                     size_t height, cudaMemcpyKind kind, cudaStream_t stream = nullptr) {
  MLKT_EMU_ENTER(allowed);
  MLKT_EMU_REFUSE_IF(width > to_pitch || width > from_pitch, cudaErrorInvalidPitchValue);
  cudaError_t error = cudaSuccess;
  for (size_t row = 0; row < height && error == cudaSuccess; row++)
    error = mlkt_emu::copy_async(call.e, static_cast<char *>(to) + row * to_pitch,
                                 static_cast<const char *>(from) + row * from_pitch, width, kind, stream);
  return error;
}
inline cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t stream = nullptr) {
  MLKT_EMU_ENTER(allowed);
  MLKT_EMU_REFUSE_IF(bytes > 0 && (!p || !mlkt_emu::range_fits(call.e, p, bytes, true)), cudaErrorInvalidValue);
  if (bytes == 0) return cudaSuccess;
  return mlkt_emu::submit(call.e, stream, [=] {
    mlkt_emu::expose_device_memory(mlkt_emu::m(), true);
    std::memset(p, value, bytes);
    mlkt_emu::expose_device_memory(mlkt_emu::m(), false);
  });
}
inline cudaError_t cudaMemset(void *p, int value, size_t bytes) { return cudaMemsetAsync(p, value, bytes, nullptr); }

namespace mlkt_emu {
struct ipc_handle { /* in cudaIpcMemHandle_t */
  int process, file, device;
  uint64_t bytes;
};
} // namespace mlkt_emu

/* After mlkt_emu_ipc(1), of the beginning of an allocation, for other processes only, as on a device. */
inline cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t *handle, void *p) {
  MLKT_EMU_ENTER(allowed);
  const auto i = mlkt_emu::allocation_of(call.e, p);
  MLKT_EMU_REFUSE_IF(i == call.e.allocations.end() || i->first != p || i->second.opened, cudaErrorInvalidValue);
  MLKT_EMU_REFUSE_IF(i->second.file < 0, cudaErrorNotSupported);
  const mlkt_emu::ipc_handle own = {int(getpid()), i->second.file, i->second.device, i->second.bytes};
  static_assert(sizeof own <= sizeof *handle, "fits");
  *handle = cudaIpcMemHandle_t();
  std::memcpy(handle->reserved, &own, sizeof own);
  return cudaSuccess;
}
inline cudaError_t cudaIpcOpenMemHandle(void **p, cudaIpcMemHandle_t handle, unsigned) {
  MLKT_EMU_ENTER(refused);
  mlkt_emu::ipc_handle theirs;
  std::memcpy(&theirs, handle.reserved, sizeof theirs);
  MLKT_EMU_REFUSE_IF(theirs.process == int(getpid()), cudaErrorDeviceUninitialized);
  char path[64];
  std::snprintf(path, sizeof path, "/proc/%d/fd/%d", theirs.process, theirs.file);
  const size_t mapped = size_t(theirs.bytes) + mlkt_emu::CANARY;
  const int file = open(path, O_RDWR | O_CLOEXEC);
  MLKT_EMU_REFUSE_IF(file < 0, cudaErrorInvalidResourceHandle);
  unsigned char *memory = mlkt_emu::map_file(file, mapped);
  if (!memory) close(file);
  MLKT_EMU_REFUSE_IF(!memory, cudaErrorMemoryAllocation);
  call.e.allocations[memory] = {size_t(theirs.bytes), cudaMemoryTypeDevice, theirs.device, file, mapped, true};
  *p = memory;
  return cudaSuccess;
}
inline cudaError_t cudaIpcCloseMemHandle(void *p) {
  mlkt_emu::entry call(mlkt_emu::while_capturing::refused);
  const auto i = call.e.allocations.find(static_cast<unsigned char *>(p));
  MLKT_EMU_REFUSE_IF(i == call.e.allocations.end() || !i->second.opened, cudaErrorInvalidValue);
  mlkt_emu::flush_all(call.e);
#if MLKT_EMU_ASAN
  __asan_unpoison_memory_region(i->first, i->second.bytes);
#endif
  close(i->second.file);
  munmap(i->first, i->second.mapped);
  call.e.allocations.erase(i);
  return call.error;
}

/* ---- streams, events, graphs ------------------------------------------------------------------------------------- */

inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) {
  MLKT_EMU_ENTER(allowed);
  *stream = new CUstream_st{flags, mlkt_emu::device_now, nullptr, {}};
  call.e.streams.insert(*stream);
  return cudaSuccess;
}
inline cudaError_t cudaStreamCreate(cudaStream_t *stream) {
  return cudaStreamCreateWithFlags(stream, cudaStreamDefault);
}
inline cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  mlkt_emu::entry call;
  MLKT_EMU_REFUSE_IF(!call.e.streams.count(stream), cudaErrorInvalidResourceHandle);
  MLKT_EMU_REFUSE_IF(stream->captured, cudaErrorStreamCaptureUnsupported);
  mlkt_emu::flush(stream);
  call.e.streams.erase(stream);
  for (cudaEvent_t event : call.e.events)
    if (event->stream == stream) event->stream = nullptr;
  delete stream;
  return call.error;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  MLKT_EMU_ENTER(allowed);
  CUstream_st *s = mlkt_emu::stream_of(call.e, stream);
  MLKT_EMU_REFUSE_IF(!s, cudaErrorInvalidResourceHandle);
  if (s->captured || mlkt_emu::capture_forbids(call.e)) {
    if (s->captured) mlkt_emu::invalidate(s->captured);
    return mlkt_emu::remember(cudaErrorStreamCaptureUnsupported);
  }
  call.e.counts[MLKT_EMU_SYNCHRONISATIONS]++;
  if (s == mlkt_emu::legacy_stream()) {
    for (cudaStream_t other : std::set<cudaStream_t>(call.e.streams))
      if (!(other->flags & cudaStreamNonBlocking)) mlkt_emu::flush(other);
  } else {
    mlkt_emu::flush(s);
  }
  return cudaSuccess;
}
inline cudaError_t cudaStreamQuery(cudaStream_t stream) {
  MLKT_EMU_ENTER(allowed);
  CUstream_st *s = mlkt_emu::stream_of(call.e, stream);
  MLKT_EMU_REFUSE_IF(!s, cudaErrorInvalidResourceHandle);
  MLKT_EMU_REFUSE_IF(s->captured, cudaErrorStreamCaptureUnsupported);
  if (s->queue.empty()) return cudaSuccess;
  mlkt_emu::run_one(s);
  return cudaErrorNotReady;
}
inline cudaError_t cudaDeviceSynchronize() {
  MLKT_EMU_ENTER(refused);
  call.e.counts[MLKT_EMU_SYNCHRONISATIONS]++;
  mlkt_emu::flush_all(call.e);
  return cudaSuccess;
}

inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) {
  MLKT_EMU_ENTER(allowed);
  *event = new CUevent_st{flags, nullptr, 0, 0, nullptr, std::chrono::steady_clock::now()};
  call.e.events.insert(*event);
  return cudaSuccess;
}
inline cudaError_t cudaEventCreate(cudaEvent_t *event) { return cudaEventCreateWithFlags(event, cudaEventDefault); }
inline cudaError_t cudaEventDestroy(cudaEvent_t event) {
  mlkt_emu::entry call;
  MLKT_EMU_REFUSE_IF(!call.e.events.count(event), cudaErrorInvalidResourceHandle);
  if (event->stream) mlkt_emu::flush(event->stream);
  call.e.events.erase(event);
  delete event;
  return call.error;
}
inline cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream = nullptr) {
  MLKT_EMU_ENTER(allowed);
  CUstream_st *s = mlkt_emu::stream_of(call.e, stream);
  MLKT_EMU_REFUSE_IF(!s || !call.e.events.count(event), cudaErrorInvalidResourceHandle);
  event->captured = s->captured;
  if (s->captured) return cudaSuccess;
  const uint64_t ticket = ++event->recorded;
  event->stream = s;
  return mlkt_emu::submit(call.e, stream, [=] {
    event->done = ticket;
    event->at = std::chrono::steady_clock::now();
  });
}
inline cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned = 0) {
  MLKT_EMU_ENTER(allowed);
  CUstream_st *s = mlkt_emu::stream_of(call.e, stream);
  MLKT_EMU_REFUSE_IF(!s || !call.e.events.count(event), cudaErrorInvalidResourceHandle);
  if (event->captured) { /* joins the capture */
    MLKT_EMU_REFUSE_IF(s->captured && s->captured != event->captured, cudaErrorStreamCaptureIsolation);
    s->captured = event->captured;
    return cudaSuccess;
  }
  if (s->captured && event->recorded > 0) {
    mlkt_emu::invalidate(s->captured);
    return mlkt_emu::remember(cudaErrorStreamCaptureIsolation);
  }
  if (event->recorded == event->done) return cudaSuccess;
  const uint64_t ticket = event->recorded;
  const cudaStream_t other = event->stream;
  return mlkt_emu::submit(call.e, stream, [=] {
    mlkt_emu::machine &e = mlkt_emu::m();
    while (e.events.count(event) && event->done < ticket && e.streams.count(other) && !other->queue.empty())
      mlkt_emu::run_one(other);
  });
}
inline cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  MLKT_EMU_ENTER(allowed);
  MLKT_EMU_REFUSE_IF(!call.e.events.count(event), cudaErrorInvalidResourceHandle);
  MLKT_EMU_REFUSE_IF(event->captured, cudaErrorCapturedEvent);
  MLKT_EMU_REFUSE_IF(mlkt_emu::capture_forbids(call.e), cudaErrorStreamCaptureUnsupported);
  call.e.counts[MLKT_EMU_SYNCHRONISATIONS]++;
  while (event->done < event->recorded && event->stream && !event->stream->queue.empty())
    mlkt_emu::run_one(event->stream);
  return cudaSuccess;
}
inline cudaError_t cudaEventQuery(cudaEvent_t event) {
  MLKT_EMU_ENTER(allowed);
  MLKT_EMU_REFUSE_IF(!call.e.events.count(event), cudaErrorInvalidResourceHandle);
  MLKT_EMU_REFUSE_IF(event->captured, cudaErrorCapturedEvent);
  if (event->done == event->recorded) return cudaSuccess;
  if (event->stream && !event->stream->queue.empty()) mlkt_emu::run_one(event->stream);
  return cudaErrorNotReady;
}
inline cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t start, cudaEvent_t stop) {
  MLKT_EMU_ENTER(allowed);
  MLKT_EMU_REFUSE_IF(!call.e.events.count(start) || !call.e.events.count(stop), cudaErrorInvalidResourceHandle);
  MLKT_EMU_REFUSE_IF((start->flags | stop->flags) & cudaEventDisableTiming || !start->recorded || !stop->recorded,
                     cudaErrorInvalidResourceHandle);
  MLKT_EMU_REFUSE_IF(start->done < start->recorded || stop->done < stop->recorded, cudaErrorNotReady);
  *milliseconds = std::chrono::duration<float, std::milli>(stop->at - start->at).count();
  if (call.e.set.interval > 0.0f) *milliseconds = call.e.set.interval;
  return cudaSuccess;
}

inline cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus *status) {
  MLKT_EMU_ENTER(allowed);
  CUstream_st *s = mlkt_emu::stream_of(call.e, stream);
  MLKT_EMU_REFUSE_IF(!s, cudaErrorInvalidResourceHandle);
  if (s == mlkt_emu::legacy_stream()) { /* asking about it while a blocking stream captures is an error of its own */
    for (cudaStream_t other : call.e.streams)
      MLKT_EMU_REFUSE_IF(other->captured && !(other->flags & cudaStreamNonBlocking), cudaErrorStreamCaptureImplicit);
  }
  *status = !s->captured         ? cudaStreamCaptureStatusNone
            : s->captured->valid ? cudaStreamCaptureStatusActive
                                 : cudaStreamCaptureStatusInvalidated;
  return cudaSuccess;
}
inline cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  MLKT_EMU_ENTER(allowed);
  CUstream_st *s = mlkt_emu::stream_of(call.e, stream);
  MLKT_EMU_REFUSE_IF(!s, cudaErrorInvalidResourceHandle);
  MLKT_EMU_REFUSE_IF(s == mlkt_emu::legacy_stream(), cudaErrorStreamCaptureUnsupported);
  MLKT_EMU_REFUSE_IF(s->captured, cudaErrorIllegalState);
  s->captured = new mlkt_emu::capture;
  s->captured->mode = mode;
  s->captured->origin = s;
  s->captured->host_thread = &mlkt_emu::last_error; /* tells threads apart */
  call.e.captures.push_back(s->captured);
  return cudaSuccess;
}
inline cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
  mlkt_emu::entry call;
  *graph = nullptr;
  CUstream_st *s = mlkt_emu::stream_of(call.e, stream);
  MLKT_EMU_REFUSE_IF(!s, cudaErrorInvalidResourceHandle);
  MLKT_EMU_REFUSE_IF(!s->captured, cudaErrorIllegalState);
  MLKT_EMU_REFUSE_IF(s->captured->origin != s, cudaErrorStreamCaptureUnmatched);
  mlkt_emu::capture *c = s->captured;
  const bool valid = c->valid && call.error == cudaSuccess;
  if (valid) *graph = new CUgraph_st{std::move(c->work)};
  for (cudaStream_t other : call.e.streams)
    if (other->captured == c) other->captured = nullptr;
  for (cudaEvent_t event : call.e.events)
    if (event->captured == c) event->captured = nullptr;
  call.e.captures.erase(std::find(call.e.captures.begin(), call.e.captures.end(), c));
  delete c;
  return mlkt_emu::remember(call.error != cudaSuccess ? call.error
                            : valid                   ? cudaSuccess
                                                      : cudaErrorStreamCaptureInvalidated);
}
inline cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long = 0) {
  MLKT_EMU_ENTER(allowed);
  MLKT_EMU_REFUSE_IF(!graph, cudaErrorInvalidValue);
  *exec = new CUgraph_st(*graph);
  return cudaSuccess;
}
inline cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  MLKT_EMU_ENTER(allowed);
  const std::vector<std::function<void()>> work = exec->work;
  return mlkt_emu::submit(call.e, stream, [=] {
    for (const auto &f : work) f();
  });
}
inline cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  mlkt_emu::entry call;
  delete graph;
  return call.error;
}
inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) { return cudaGraphDestroy(exec); }

/* ---- kernels ----------------------------------------------------------------------------------------------------- */

template <class K> cudaError_t cudaFuncSetAttribute(K *kernel, cudaFuncAttribute attribute, int value) {
  MLKT_EMU_ENTER(allowed);
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  MLKT_EMU_REFUSE_IF(value < 0 || value > mlkt_emu::attribute_of(call.e, cudaDevAttrMaxSharedMemoryPerBlockOptin),
                     cudaErrorInvalidValue);
  call.e.dynamic_shared[reinterpret_cast<const void *>(kernel)] = value;
  return cudaSuccess;
}
template <class K> cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *attributes, K *kernel) {
  MLKT_EMU_ENTER(allowed);
  const auto set = call.e.dynamic_shared.find(reinterpret_cast<const void *>(kernel));
  *attributes = cudaFuncAttributes();
  attributes->maxThreadsPerBlock = mlkt_emu::THREADS_MAX;
  attributes->numRegs = 64;
  attributes->ptxVersion = attributes->binaryVersion = call.e.set.cc;
  attributes->maxDynamicSharedSizeBytes = set != call.e.dynamic_shared.end() ? set->second : 48 << 10;
  return cudaSuccess;
}
template <class K>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, K *, int threads, size_t bytes) {
  MLKT_EMU_ENTER(allowed);
  MLKT_EMU_REFUSE_IF(threads < 1, cudaErrorInvalidValue);
  const size_t per_block = bytes + size_t(mlkt_emu::attribute_of(call.e, cudaDevAttrReservedSharedMemoryPerBlock));
  const int by_threads = mlkt_emu::attribute_of(call.e, cudaDevAttrMaxThreadsPerMultiProcessor) / threads;
  const size_t shared = size_t(mlkt_emu::attribute_of(call.e, cudaDevAttrMaxSharedMemoryPerMultiprocessor));
  const int by_shared = per_block == 0 ? by_threads : int(shared / per_block);
  *blocks = std::min({by_threads, by_shared, mlkt_emu::attribute_of(call.e, cudaDevAttrMaxBlocksPerMultiprocessor)});
  return cudaSuccess;
}

namespace mlkt_emu {

template <class F>
cudaError_t launch(const char *name, const void *function, bool opt_in, dim3 grid, dim3 block, size_t bytes,
                   cudaStream_t stream, F body) {
  MLKT_EMU_ENTER(allowed);
  check_launch(call.e, name, function, opt_in, grid, block, bytes, sizeof body);
  return submit(call.e, stream, [=]() mutable {
    run_grid(
        name, function, grid, block, bytes, [](void *f) { (*static_cast<F *>(f))(); }, &body);
  });
}

} // namespace mlkt_emu

/* kernel<<<grid, block, bytes, stream>>>(...): body() is run for every thread and must hold its arguments by value. */
template <class F> cudaError_t mlkt_emu_launch(dim3 grid, dim3 block, size_t bytes, cudaStream_t stream, F body) {
  return mlkt_emu::launch("", nullptr, false, grid, block, bytes, stream, body);
}
/* The same, with a kernel to be named in messages. More than 48 KiB of shared memory must have been allowed by
   cudaFuncSetAttribute where opt_in is true. */
template <class K, class F>
cudaError_t mlkt_emu_launch_kernel(K *kernel, bool opt_in, dim3 grid, dim3 block, size_t bytes, cudaStream_t stream,
                                   F body) {
  return mlkt_emu::launch("", reinterpret_cast<const void *>(kernel), opt_in, grid, block, bytes, stream, body);
}

/* ---- control ----------------------------------------------------------------------------------------------------- */

extern "C" {

void mlkt_emu_seed(uint64_t seed) { mlkt_emu::m().set.seed = seed; }
void mlkt_emu_late_copies(int late) { mlkt_emu::m().set.late_copies = late != 0; }
void mlkt_emu_late_streams(int late) {
  mlkt_emu::flush_all(mlkt_emu::m());
  mlkt_emu::m().set.late_streams = late != 0;
}
void mlkt_emu_pointers(int real) {
  mlkt_emu::expose_device_memory(mlkt_emu::m(), true);
  mlkt_emu::m().set.real_pointers = real != 0;
  mlkt_emu::expose_device_memory(mlkt_emu::m(), false);
}
void mlkt_emu_device(int count, int cc, int multiprocessors) {
  mlkt_emu::settings &set = mlkt_emu::m().set;
  set.devices = count;
  set.cc = cc;
  set.multiprocessors = multiprocessors;
  set.attributes.clear();
}
void mlkt_emu_attribute(int attribute, int value) { mlkt_emu::m().set.attributes[attribute] = value; }
void mlkt_emu_memory(size_t bytes) { mlkt_emu::m().set.memory = bytes; }
void mlkt_emu_driver(int version) { mlkt_emu::m().set.driver = version; }
void mlkt_emu_interval(float milliseconds) { mlkt_emu::m().set.interval = milliseconds; }
void mlkt_emu_hopper(int specific, int entry_points) {
  mlkt_emu::m().set.specific = specific != 0;
  mlkt_emu::m().set.entry_points = entry_points != 0;
}
void mlkt_emu_ipc(int possible) { mlkt_emu::m().set.ipc = possible != 0; }
void mlkt_emu_peers(int possible) { mlkt_emu::m().set.peers = possible != 0; }
void mlkt_emu_fail(uint64_t nth, int error) {
  mlkt_emu::m().set.fail_in = nth;
  mlkt_emu::m().set.fail_error = cudaError_t(error);
}
void mlkt_emu_stick(int error) { mlkt_emu::m().set.sticky = cudaError_t(error); }
int mlkt_emu_last_error(void) { return cudaGetLastError(); }
uint64_t mlkt_emu_count(mlkt_emu_what what) {
  mlkt_emu::machine &e = mlkt_emu::m();
  switch (what) {
  case MLKT_EMU_LIVE_BYTES: return mlkt_emu::live_device_bytes(e, -1);
  case MLKT_EMU_LIVE_BLOCKS: return e.allocations.size();
  case MLKT_EMU_LIVE_STREAMS: return e.streams.size();
  case MLKT_EMU_LIVE_EVENTS: return e.events.size();
  default: return what < MLKT_EMU_WHATS ? e.counts[what] : 0;
  }
}
int mlkt_emu_device_of(const void *p) {
  const auto i = mlkt_emu::allocation_of(mlkt_emu::m(), p);
  return i == mlkt_emu::m().allocations.end() || i->second.type == cudaMemoryTypeHost ? -1 : i->second.device;
}
int mlkt_emu_current(int device) {
  const int before = mlkt_emu::device_now;
  if (device >= 0) mlkt_emu::device_now = device;
  return before;
}
void *mlkt_emu_stream_new(void) {
  cudaStream_t stream = nullptr;
  return cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == cudaSuccess ? stream : nullptr;
}
void mlkt_emu_stream_free(void *stream) { cudaStreamDestroy(static_cast<cudaStream_t>(stream)); }
int mlkt_emu_capture_begin(void *stream) {
  return cudaStreamBeginCapture(static_cast<cudaStream_t>(stream), cudaStreamCaptureModeGlobal);
}
int mlkt_emu_capture_end(void *stream, void **graph) {
  cudaGraph_t captured = nullptr;
  const cudaError_t error = cudaStreamEndCapture(static_cast<cudaStream_t>(stream), &captured);
  *graph = captured;
  return error;
}
int mlkt_emu_graph_run(void *graph, void *stream) {
  return cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph), static_cast<cudaStream_t>(stream));
}
void mlkt_emu_graph_free(void *graph) { cudaGraphDestroy(static_cast<cudaGraph_t>(graph)); }
void mlkt_emu_reset(void) {
  mlkt_emu::machine &e = mlkt_emu::m();
  mlkt_emu::flush_all(e);
  mlkt_emu_pointers(0);
  e.set = mlkt_emu::first_settings();
  mlkt_emu_pointers(e.set.real_pointers);
  e.peers.clear();
  mlkt_emu::device_now = 0;
  mlkt_emu::last_error = cudaSuccess;
  std::fill(std::begin(e.counts), std::end(e.counts), uint64_t(0));
}

} /* extern "C" */

#endif /* MLKT_CUDA_EMULATOR_H */
