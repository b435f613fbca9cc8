/* cuda_emulator_control.h - what tests may ask of tests/cuda_emulator.h: C99 and C++.

   The emulator is part of the object that tests/cuda_backend.cc makes. All of this is for one thread at a time. */

#ifndef MLKT_CUDA_EMULATOR_CONTROL_H
#define MLKT_CUDA_EMULATOR_CONTROL_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Order in which blocks and threads run, from the next launch on. 0 (the default, unless the environment's
   MLK_EMU_SEED says otherwise): ascending, quickest. Otherwise random from the seed: blocks in a random order, and
   at every point where threads wait, any thread that may run. */
void mlkt_emu_seed(uint64_t seed);

/* cp.async copies as late as allowed: nothing before the wait, and rogue bytes in the target meanwhile (1, the
   default), or at issue (0). */
void mlkt_emu_late_copies(int late);

/* Work of streams runs as late as allowed, when something waits for it (1), or at the call (0, the default). Late
   work finds what a program frees, changes or reads without waiting. */
void mlkt_emu_late_streams(int late);

/* What cudaPointerGetAttributes says of memory the runtime did not allocate: 0 (the default): device memory, so that
   tests with operands from malloc run unchanged (unless the environment's MLK_EMU_POINTERS is 1); 1: unregistered
   host memory, as on a real machine. With 1, under AddressSanitizer, the host may not touch device memory between
   launches and copies. */
void mlkt_emu_pointers(int real);

/* The machine: count devices of compute capability cc (75, 80, 86, 89, 90, 100, 120: shared memory and the like follow)
   with so many multiprocessors. The default is one device, cc 80 with 108 (MLK_EMU_CC, MLK_EMU_SMS). */
void mlkt_emu_device(int count, int cc, int multiprocessors);
/* Any cudaDeviceAttr, by its number, to another value than cc implies. mlkt_emu_device takes it back. */
void mlkt_emu_attribute(int attribute, int value);
/* Of devices of cc 90: is the code there sm_90a's (1, the default) or sm_90's (0)? Does the driver have the entry
   points of tensor maps (1, the default)? */
void mlkt_emu_hopper(int specific, int entry_points);
/* The driver's version, 13000 for CUDA 13.0 (the default). Before 12010 a kernel's arguments may have 4 KiB, from then
   on 32,764 bytes. */
void mlkt_emu_driver(int version);
/* What cudaEventElapsedTime says of any two events, so that nothing hangs on how busy the host is. 0 (the default): the
   time that passed on it. */
void mlkt_emu_interval(float milliseconds);
/* Device memory in bytes, for each device; cudaMalloc beyond it fails. Default 4 GiB. */
void mlkt_emu_memory(size_t bytes);
/* 1 (the default): devices can access each other's memory; 0: they cannot. */
void mlkt_emu_peers(int possible);
/* 1: what cudaMalloc gives from now on can be shared with other processes (cudaIpcGetMemHandle; Linux), at the cost
   of red zones; 0 (the default, unless the environment's MLK_EMU_IPC is 1): it cannot. */
void mlkt_emu_ipc(int possible);

/* The nth call of the runtime from now (1: the next) gives error, once. Calls that free do so all the same. 0: none. */
void mlkt_emu_fail(uint64_t nth, int error);
/* Every call gives error from now on, as after a kernel's fault, until mlkt_emu_reset or mlkt_emu_stick(0). */
void mlkt_emu_stick(int error);
/* cudaGetLastError: the calling thread's last error, once. */
int mlkt_emu_last_error(void);

typedef enum mlkt_emu_what {
  MLKT_EMU_CALLS,            /* runtime calls that could fail, launches included */
  MLKT_EMU_LAUNCHES,         /* kernels run (one in a graph counts each time) */
  MLKT_EMU_ALLOCATIONS,      /* cudaMalloc, cudaMallocHost and relatives */
  MLKT_EMU_FREES,            /* their counterparts */
  MLKT_EMU_SYNCHRONISATIONS, /* of devices, streams, events, and copies that wait */
  MLKT_EMU_COPIES,           /* cudaMemcpy and relatives */
  MLKT_EMU_LIVE_BYTES,       /* device memory now */
  MLKT_EMU_LIVE_BLOCKS,      /* allocations now, pinned ones included */
  MLKT_EMU_LIVE_STREAMS,
  MLKT_EMU_LIVE_EVENTS,
  MLKT_EMU_WHATS
} mlkt_emu_what;

uint64_t mlkt_emu_count(mlkt_emu_what what);

/* The device whose memory p lies in, or -1. */
int mlkt_emu_device_of(const void *p);
/* The calling thread's device; then device becomes it, unless it is negative. */
int mlkt_emu_current(int device);

/* Streams and graphs for callers in C. new: not blocking, NULL after a failure. The others give a cudaError. */
void *mlkt_emu_stream_new(void);
void mlkt_emu_stream_free(void *stream);
int mlkt_emu_capture_begin(void *stream);
int mlkt_emu_capture_end(void *stream, void **graph);
int mlkt_emu_graph_run(void *graph, void *stream);
void mlkt_emu_graph_free(void *graph);

/* Settings and errors as at the start (allocations, streams and events stay), counters other than of what lives 0. */
void mlkt_emu_reset(void);

#ifdef __cplusplus
}
#endif

#endif /* MLKT_CUDA_EMULATOR_CONTROL_H */
