#!/usr/bin/env bash
# gpu.sh - everything that wants a GPU: the kernels of mlk_cuda.cuh against the CPU's bits, calls in graphs, the examples' pinned
# lines, the rows of mlk_bench, compute-sanitizer's four tools, memory that runs out. Some ten minutes on 16 cores.
# usage: tests/gpu.sh [OPTION...] [STAGE...]     stages: build suite graphs examples bench tools (default: all, in this order)
#   --quick          one point of a sweep in 20 instead of all
#   --filter AREA    of suite and tools only this area, such as cuda_matmul/; may be given several times
#   --seconds N      nothing starts or goes on after N seconds (default: 560); what is left out counts as skipped
# What stage build left in build/gpu serves later runs. NVCC, CC; CUDA_ARCH (default: what the first GPU is). OUT: where
# gpu_STAGES.txt goes (default: build/gpu); outcomes are written there as they come. Ends with "N passed, N failed,
# N skipped"; status 1 when something failed, 77 where there is no GPU.

set -u
cd "$(dirname "$0")/.." || exit 2
started=$(date +%s)
sweep="" stages="" seconds=560 areas=""
while [ $# -gt 0 ]; do
  case $1 in
    --quick) sweep="--quick" ;;
    --filter) areas="$areas ${2:?gpu.sh: --filter needs an area}"; shift ;;
    --seconds) seconds=${2:?gpu.sh: --seconds needs a number}; shift ;;
    --help | -h) sed -n '2,11s/^# //p' tests/gpu.sh; exit 0 ;;
    build | suite | graphs | examples | bench | tools) stages="$stages $1" ;;
    *) echo "gpu.sh: unknown argument $1; try --help" >&2; exit 2 ;;
  esac
  shift
done
wants() { [ -z "$stages" ] || [[ " $stages " == *" $1 "* ]]; }
export MLK_VERBOSE=1 MLK_LIVE=1
MLK_JOBS=${MLK_JOBS:-$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)}
. tests/checks.sh

NVCC=${NVCC:-$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)}
capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1 | tr -d .)
[ -n "$capability" ] || { echo "skipped: no GPU (nvidia-smi names none)"; exit 77; }
case $capability in 90) arch=90a ;; *) arch=$capability ;; esac
arch=${CUDA_ARCH:-$arch}
base=build/gpu
out=${OUT:-$base}
mkdir -p "$out" "$base"

left() { echo $((seconds - ($(date +%s) - started))); }
limited() { # limited MOST COMMAND...: at most so many seconds, and no more than there are
  local most=$1 now status
  shift
  now=$(left)
  [ "$now" -ge 5 ] || skip "no time left of $seconds s"
  [ "$now" -ge "$most" ] || most=$now
  timeout -k 5 "$most" "$@"
  status=$?
  [ $status != 124 ] || echo "no end after $most s: $*"
  return $status
}

# --- building -----------------------------------------------------------------------------------------------------------
# (bench/gpu.sh builds in the same place, with the same flags)
makes() { # makes GOAL...
  make -s -j"$MLK_JOBS" B=$base NVCC="$NVCC" CUDA=1 CUDA_ARCH="$arch" NVCCFLAGS="-O3 -lineinfo --split-compile=0" "$@"
}
build() {
  command -v "$NVCC" >/dev/null || { echo "skipped: no nvcc"; return 77; }
  have make || { echo "skipped: no make"; return 77; }
  nvidia-smi --query-gpu=name,driver_version,compute_cap,memory.total,clocks.max.sm --format=csv,noheader
  echo "commit $(git rev-parse --short HEAD 2>/dev/null || echo unknown), $("$NVCC" --version | sed -n 's/.*release/nvcc/p'), sm_$arch, $MLK_JOBS processors, $(date -u '+%Y-%m-%d %H:%M UTC')"
  makes $base/mlk_test_cuda $base/gpu_graphs $base/00_knn_pictures $base/02_fashion_cnn $base/03_gpt $base/07_cuda $base/08_plan \
    $base/mlk_bench >"$base/build.txt" 2>&1 || { tail -n 40 "$base/build.txt"; echo "0 passed, 1 failed, 0 skipped"; return 1; }
  echo "built in $(($(date +%s) - started)) s"
}

# --- running ------------------------------------------------------------------------------------------------------------
program=$base/mlk_test_cuda
cases() { limited 300 "$program" --cuda "$@"; }
suite() { # each area in a process of its own: the CPU's reference takes longer than the GPU
  local area seed
  for area in $areas; do check "suite, $area" cases $sweep --filter "$area"; done
  for seed in 2 3; do check "suite, seed $seed" cases --quick --seed $seed $(printf -- '--filter %s ' $areas); done
  check "07_cuda: the CPU's bits" limited 60 $base/07_cuda
}
examples() { limited 300 bash tests/cuda_examples.sh $base; }
rows() { # what mlk_bench computes; where there are warpgroups, by them: nothing else would say that they are not used
  local status
  limited 300 $base/mlk_bench run --device cuda --quick --min-time 0.01 --json $base/rows.json
  status=$?
  [ $status = 0 ] || return $status
  [ "$arch" != 90a ] || grep -q '"variant": *"wgmma' $base/rows.json || { echo "no row ran by wgmma"; return 1; }
}

# --- compute-sanitizer --------------------------------------------------------------------------------------------------
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
sanitized() { # sanitized TOOL AREA OPTIONS...: a sample of an area's cases; slower by factors of 10 to 100
  local tool=$1 area=$2
  shift 2
  limited 110 "$sanitizer" --tool "$tool" --error-exitcode 9 "$@" "$program" --cuda --quick --one-in 400 --threads-max 2 --filter "$area"
}
tools() {
  local area tool leaks
  [ -n "$sanitizer" ] || { check "compute-sanitizer" skip "no compute-sanitizer"; return; }
  for tool in memcheck racecheck synccheck initcheck; do
    leaks=""
    [ $tool != memcheck ] || leaks="--leak-check full --report-api-errors no" # the suite provokes errors of the run-time
    for area in $areas; do
      case $area in context/ | group/ | math/) continue ;; esac # the host's part, or one launch
      check "$tool, $area" sanitized $tool "$area" $leaks
    done
  done
}

all_of_it() {
  if wants build; then build || return; fi
  [ "$stages" != " build" ] || return 0
  [ -x "$program" ] || { echo "gpu.sh: no $program: stage build comes first"; return 2; }
  [ -n "$areas" ] || areas=$("$program" --list | sed 's,/.*,/,' | sort -u)
  ! wants suite || suite
  ! wants graphs || check "calls in graphs, and by threads" limited 60 $base/gpu_graphs
  ! wants examples || check "examples, pinned lines" examples
  wait # the suite would be in the way of what is timed
  ! wants bench || check "mlk_bench: what its quick rows compute" rows
  ! wants tools || tools
  wait
  echo "after $(($(date +%s) - started)) s:"
  finish
}
all_of_it 2>&1 | tee "$out/gpu$(tr ' ' _ <<<"${stages:-_tests}").txt"
exit "${PIPESTATUS[0]}"
