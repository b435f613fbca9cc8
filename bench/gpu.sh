#!/usr/bin/env bash
# gpu.sh - builds bench/gpu.cu for the GPU that is here, runs it, and writes docs/results/gpu-NAME.md and .json; without options then
# the quick rows of mlk_bench --device cuda as well, into gpu-NAME-bench.json. bench/report makes a page of both files.
# usage: bench/gpu.sh [--build | --built] [--seconds N] [OPTION...]     other options are gpu.cu's: --filter, --quick, --list
#   --build          only build, in build/gpu as tests/gpu.sh does          --built: build nothing
#   --seconds N      rows still to come after N seconds are left out (default: no limit); what was measured is in the files
# NVCC, CC; CUDA_ARCH (default: what the first GPU is). OUT: the folder of results (default: docs/results). cuBLAS and cuDNN are peers
# where their headers and libraries are found: in the toolkit, else in the wheels that python3 has. Each family runs in a process of its
# own: a fault ends one. Exit status: 0; 1 a result was wrong or refused; 2 nothing runs here; 3 an error of CUDA, or no time was left.

set -u
cd "$(dirname "$0")/.." || exit 2
started=$(date +%s)
only_build=0 build=1 seconds=0
while [ $# -gt 0 ]; do
  case $1 in
    --build) only_build=1 ;;
    --built) build=0 ;;
    --seconds) seconds=${2:?gpu.sh: --seconds needs a number}; shift ;;
    --help | -h) sed -n '2,10s/^# //p' bench/gpu.sh; exit 0 ;;
    *) break ;;
  esac
  shift
done
NVCC=${NVCC:-$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)}
CC=${CC:-cc}
asked() { nvidia-smi --query-gpu="$1" --format=csv,noheader 2>/dev/null | head -n 1; }
capability=$(asked compute_cap | tr -d .)
case $capability in 90) arch=90a ;; "") arch=80 ;; *) arch=$capability ;; esac
arch=${CUDA_ARCH:-$arch}
base=build/gpu
mkdir -p $base/peers

# --- building -----------------------------------------------------------------------------------------------------------
# A peer is named by its header, its library and what its program calls; found in the toolkit, or in Python's wheels by links to what is
# needed of them: their copies of the toolkit's own headers must not hide nvcc's.
wheels=$(python3 -c 'import nvidia; print(*nvidia.__path__, sep="\n")' 2>/dev/null)
compiles() { "$NVCC" -arch="sm_$arch" -I$base/peers $base/probe.cu -o $base/probe "$@" >/dev/null 2>&1; }
peer() { # peer HEADER LIBRARY CALL: prints what to link, if that links
  local folder file
  printf '#include <%s>\nint main() { return %s == 0; }\n' "$1" "$3" >$base/probe.cu
  if compiles "-l$2"; then echo "-l$2"; return; fi
  [ -n "$wheels" ] || return
  file=$(find $wheels -name "$1" 2>/dev/null | head -n 1)
  [ -n "$file" ] || return
  folder=$(dirname "$file")
  ln -sf "$folder"/cublas*.h "$folder"/cudnn*.h $base/peers/ 2>/dev/null
  file=$(find $wheels -name "lib$2.so.*" 2>/dev/null | sort | head -n 1)
  [ -n "$file" ] || return
  folder=$(dirname "$file")
  set -- -L"$folder" -l:"$(basename "$file")" -Xlinker -rpath -Xlinker "$folder" -Xlinker -rpath-link -Xlinker "$folder"
  if compiles "$@"; then echo "$@"; fi
}
built() {
  command -v "$NVCC" >/dev/null || { echo "gpu.sh: no nvcc"; return 2; }
  command -v make >/dev/null || { echo "gpu.sh: no make"; return 2; }
  local blas dnn jobs
  jobs=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
  make -s -j"$jobs" B=$base CC="$CC" NVCC="$NVCC" CUDA=1 CUDA_ARCH="$arch" NVCCFLAGS="-O3 -lineinfo --split-compile=0" \
    $base/mlk_cuda.o $base/test/test_mlk.o $base/mlk_bench || return 2
  blas=$(peer cublasLt.h cublasLt 'cublasLtGetVersion()')
  dnn=$(peer cudnn.h cudnn 'cudnnGetVersion()')
  "$NVCC" -O3 -std=c++17 -arch="sm_$arch" -I. -I$base/peers ${blas:+-DBENCH_CUBLAS} ${dnn:+-DBENCH_CUDNN} bench/gpu.cu $base/mlk_cuda.o \
    $base/test/test_mlk.o -o $base/gpu -Xcompiler -fopenmp $blas $dnn || return 2
  echo "built $base/gpu for sm_$arch${blas:+, with cuBLAS}${dnn:+, with cuDNN} in $(($(date +%s) - started)) s"
}
if [ $build = 1 ]; then built || exit; fi
[ $only_build = 0 ] || exit 0
[ -x $base/gpu ] || { echo "gpu.sh: no $base/gpu: bench/gpu.sh --build comes first"; exit 2; }
case " $* " in *" --list "* | *" --help "*) exec $base/gpu "$@" ;; esac
[ -n "$capability" ] || { echo "gpu.sh: no GPU (nvidia-smi names none)"; exit 2; }

# --- running, with the clocks on record -----------------------------------------------------------------------------------
name=$(asked name | sed 's/^NVIDIA //' | tr '[:upper:] ' '[:lower:]-' | tr -cd 'a-z0-9-')
out=${OUT:-docs/results}
mkdir -p "$out"
rm -f $base/part-*.md $base/part-*.json
date=$(date -u '+%Y-%m-%d')
nvidia-smi --query-gpu=clocks.sm,clocks.mem,power.draw,temperature.gpu --format=csv,noheader,nounits -l 1 >$base/clocks.csv 2>/dev/null &
watcher=$!
trap 'kill $watcher 2>/dev/null' EXIT
about="$date, driver $(asked driver_version), $("$NVCC" --version | sed -n 's/.*\(release [0-9.]*\).*/nvcc \1/p'), sm_$arch, commit $(git rev-parse --short HEAD 2>/dev/null || echo unknown), most $(asked clocks.max.sm) of the multiprocessors; command: bench/gpu.sh $*"
median() { cut -d , -f "$1" $base/clocks.csv | grep -E '[0-9]' | sort -n | awk '{x[NR] = $1} END {print NR ? x[int((NR + 1) / 2)] : "unknown"}'; }
joined() { # the parts there are, in order, as one file of each kind: of later ones only rows and sections
  local first=""
  for first in $base/part-*.json; do break; done
  [ -f "$first" ] || return
  { sed '/^"rows": \[$/q' "$first"; sed -n 's/^\({"name".*}\),\{0,1\}$/\1/p' $base/part-*.json | sed '$!s/$/,/'; printf ']\n}\n'; } >"$out/gpu-$name.json"
  {
    sed '/^## /,$d' "${first%.json}.md"
    for part in $base/part-*.md; do sed -n '/^## /,$p' "$part"; echo; done
    printf 'While it ran, medians: %s MHz of the multiprocessors, %s MHz of the memory, %s W, %s degrees.\n' \
      "$(median 1)" "$(median 2)" "$(median 3)" "$(median 4)"
  } >"$out/gpu-$name.md"
}
limited() { # limited COMMAND...: by the time that is left
  local left=$((seconds - ($(date +%s) - started)))
  if [ "$seconds" = 0 ]; then "$@"; return; fi
  [ $left -ge 5 ] || { echo "no time left of $seconds s: $*"; return 3; }
  timeout -k 5 $left "$@"
}
worst=0
part() { # part NUMBER OPTION...: some rows
  local number=$1 status
  shift
  limited $base/gpu "$@" --about "$about" --out $base/part-"$number"
  status=$?
  [ $status -lt 4 ] || { echo "gpu.sh: ended with $status: gpu $*"; status=3; }
  [ $status -le $worst ] || worst=$status
  joined
}
case " $* " in
  *" --filter "*) part 1 "$@" ;;
  *)
    number=1
    for family in matmul/ conv/ attention/ knn/ average/; do part $((number++)) --filter $family "$@"; done
    ;;
esac
kill $watcher 2>/dev/null
if [ $# = 0 ]; then
  limited $base/mlk_bench run --device cuda --quick --json "$out/gpu-$name-bench.json" || { [ $worst -ge 1 ] || worst=1; }
fi
exit $worst
