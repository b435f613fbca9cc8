#!/usr/bin/env bash
# gpu.sh - builds bench/gpu.cu for the GPU that is here, runs it, and writes docs/results/gpu-NAME.md and .json; without options then
# the quick rows of mlk_bench --device cuda as well, into gpu-NAME-bench.json. bench/report makes a page of both files.
# usage: bench/gpu.sh [--build] [OPTION...]     --build: only build; other options are gpu.cu's: --filter, --quick, --list
# NVCC, CC; CUDA_ARCH (default: what the first GPU is). OUT: the folder of results (default: docs/results).
# cuBLAS comes with the CUDA toolkit; cuDNN is a peer where its header and library are found. Exit status: gpu.cu's.

set -u
cd "$(dirname "$0")/.." || exit 2
only_build=0
case ${1:-} in
  --build) only_build=1; shift ;;
  --help | -h) sed -n '2,6s/^# //p' bench/gpu.sh; exit 0 ;;
esac
NVCC=${NVCC:-$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)}
CC=${CC:-cc}
command -v "$NVCC" >/dev/null || { echo "gpu.sh: no nvcc"; exit 2; }
asked() { nvidia-smi --query-gpu="$1" --format=csv,noheader 2>/dev/null | head -n 1; }
capability=$(asked compute_cap | tr -d .)
case $capability in 90) arch=90a ;; "") arch=80 ;; *) arch=$capability ;; esac
arch=${CUDA_ARCH:-$arch}
base=build/bench_gpu
mkdir -p $base

# --- building -----------------------------------------------------------------------------------------------------------
libraries=$(echo | "$NVCC" --dryrun -x cu - 2>&1 | sed -n 's/^.*LIBRARIES=//p' | tr -d '"')
with_cudnn=""
printf '#include <cudnn.h>\nint main(void) { return cudnnGetVersion() == 0; }\n' >$base/probe.cu
"$NVCC" -arch="sm_$arch" $base/probe.cu -o $base/probe -lcudnn >/dev/null 2>&1 && with_cudnn="-DBENCH_CUDNN"
jobs=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
make -s -j"$jobs" B=$base CC="$CC" NVCC="$NVCC" CUDA=1 CUDA_ARCH="$arch" NVCCFLAGS="-O3 --split-compile=0" \
  $base/mlk_cuda.o $base/test/test_mlk.o $base/mlk_bench || exit 2
"$NVCC" -O3 -std=c++17 -arch="sm_$arch" -I. $with_cudnn bench/gpu.cu $base/mlk_cuda.o $base/test/test_mlk.o -o $base/gpu $libraries \
  -Xcompiler -fopenmp -lcublasLt ${with_cudnn:+-lcudnn} || exit 2
[ $only_build = 0 ] || { echo "built $base/gpu for sm_$arch${with_cudnn:+, with cuDNN}"; exit 0; }
case " $* " in *" --list "* | *" --help "*) exec $base/gpu "$@" ;; esac
[ -n "$capability" ] || { echo "gpu.sh: no GPU (nvidia-smi names none)"; exit 2; }

# --- running, with the clocks on record -----------------------------------------------------------------------------------
name=$(asked name | sed 's/^NVIDIA //' | tr '[:upper:] ' '[:lower:]-' | tr -cd 'a-z0-9-')
out=${OUT:-docs/results}
mkdir -p "$out"
date=$(date -u '+%Y-%m-%d')
nvidia-smi --query-gpu=clocks.sm,clocks.mem,power.draw,temperature.gpu --format=csv,noheader,nounits -l 1 >$base/clocks.csv 2>/dev/null &
watcher=$!
trap 'kill $watcher 2>/dev/null' EXIT
about="$date, driver $(asked driver_version), $("$NVCC" --version | sed -n 's/.*\(release [0-9.]*\).*/nvcc \1/p'), sm_$arch, commit $(git rev-parse --short HEAD 2>/dev/null || echo unknown), most $(asked clocks.max.sm) of the multiprocessors; command: bench/gpu.sh $*"
$base/gpu "$@" --about "$about" --out "$out/gpu-$name" | tee "$base/said.txt"
status=${PIPESTATUS[0]}
kill $watcher 2>/dev/null
median() { cut -d , -f "$1" $base/clocks.csv | grep -E '[0-9]' | sort -n | awk '{x[NR] = $1} END {print NR ? x[int((NR + 1) / 2)] : "unknown"}'; }
[ ! -f "$out/gpu-$name.md" ] || printf '\nWhile it ran, medians: %s MHz of the multiprocessors, %s MHz of the memory, %s W, %s degrees.\n' \
  "$(median 1)" "$(median 2)" "$(median 3)" "$(median 4)" >>"$out/gpu-$name.md"
if [ $# = 0 ]; then
  $base/mlk_bench run --device cuda --quick --json "$out/gpu-$name-bench.json" && [ "$status" = 0 ] || status=1
fi
exit "$status"
