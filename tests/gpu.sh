#!/usr/bin/env bash
# gpu.sh - everything that wants a GPU, by one command: the kernels of mlk_cuda.cuh against the CPU's bits, the examples' pinned
# lines, the rows of mlk_bench, compute-sanitizer's four tools, memory that runs out. Under ten minutes on 16 cores.
# usage: tests/gpu.sh [--quick]       --quick: one point of a sweep in 20 instead of all
# NVCC, CC; CUDA_ARCH (default: what the first GPU is). OUT: where gpu_tests.txt goes (default: build/gpu).
# Ends with "N passed, N failed, N skipped"; status 1 when something failed, 77 where there is no GPU.

set -u
cd "$(dirname "$0")/.." || exit 2
sweep=""
case ${1:-} in
  "") ;;
  --quick) sweep="--quick" ;;
  --help | -h) sed -n '2,6s/^# //p' tests/gpu.sh; exit 0 ;;
  *) echo "gpu.sh: unknown argument $1; try --help" >&2; exit 2 ;;
esac
export MLK_VERBOSE=1
MLK_JOBS=${MLK_JOBS:-$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)}
. tests/checks.sh

NVCC=${NVCC:-$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)}
command -v "$NVCC" >/dev/null || { echo "skipped: no nvcc"; exit 77; }
capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1 | tr -d .)
[ -n "$capability" ] || { echo "skipped: no GPU (nvidia-smi names none)"; exit 77; }
case $capability in 90) arch=90a ;; *) arch=$capability ;; esac
arch=${CUDA_ARCH:-$arch}
base=build/gpu
out=${OUT:-$base}
mkdir -p "$out" "$base"
started=$(date +%s)

# --- building -----------------------------------------------------------------------------------------------------------
makes() { # makes GOAL...
  make -s -j"$MLK_JOBS" B=$base NVCC="$NVCC" CUDA=1 CUDA_ARCH="$arch" NVCCFLAGS="-O3 -lineinfo --split-compile=0" "$@"
}
build() {
  nvidia-smi --query-gpu=name,driver_version,compute_cap,memory.total,clocks.max.sm --format=csv,noheader
  echo "commit $(git rev-parse --short HEAD 2>/dev/null || echo unknown), $("$NVCC" --version | sed -n 's/.*release/nvcc/p'), sm_$arch, $MLK_JOBS processors, $(date -u '+%Y-%m-%d %H:%M UTC')"
  makes $base/mlk_test_cuda $base/00_knn_pictures $base/02_fashion_cnn $base/03_gpt $base/07_cuda $base/08_plan $base/mlk_bench >"$base/build.txt" 2>&1 ||
    { tail -n 40 "$base/build.txt"; echo "0 passed, 1 failed, 0 skipped"; return 1; }
  echo "built in $(($(date +%s) - started)) s"
}

# --- running ------------------------------------------------------------------------------------------------------------
program=$base/mlk_test_cuda
cases() { timeout 200 "$program" --cuda "$@"; }
suites() { # the areas of the suite, each in a process of its own: the CPU's reference takes longer than the GPU
  local area seed
  for area in $areas; do check "suite, $area" cases $sweep --filter "$area"; done
  for seed in 2 3; do check "suite, seed $seed" cases --quick --seed $seed; done
  check "07_cuda: the CPU's bits" $base/07_cuda
  check "examples, pinned lines" bash tests/cuda_examples.sh $base
  check "mlk_bench: what its quick rows compute" timeout 300 $base/mlk_bench run --device cuda --quick --min-time 0.01
}

# --- compute-sanitizer --------------------------------------------------------------------------------------------------
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
sanitized() { # sanitized TOOL AREA OPTIONS...: a sample of an area's cases; slower by factors of 10 to 100
  local tool=$1 area=$2
  shift 2
  timeout 110 "$sanitizer" --tool "$tool" --error-exitcode 9 "$@" "$program" --cuda --quick --one-in 400 --threads-max 2 --filter "$area"
}
tools() {
  local area tool leaks
  [ -n "$sanitizer" ] || { check "compute-sanitizer" skip "no compute-sanitizer"; return; }
  for tool in memcheck racecheck synccheck initcheck; do
    leaks=""
    [ $tool != memcheck ] || leaks="--leak-check full"
    for area in $areas; do
      case $area in context/ | group/ | math/) continue ;; esac # the host's part, or one launch
      check "$tool, $area" sanitized $tool "$area" $leaks
    done
  done
}

all_of_it() {
  build || return 1
  areas=$("$program" --list | sed 's,/.*,/,' | sort -u)
  suites
  wait
  tools
  wait
  echo "after $(($(date +%s) - started)) s:"
  finish
}
all_of_it 2>&1 | tee "$out/gpu_tests.txt"
exit "${PIPESTATUS[0]}"
