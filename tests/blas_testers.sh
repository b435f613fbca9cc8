#!/usr/bin/env bash
# blas_testers.sh - netlib's BLAS testers, unmodified (Debian: libblas-test), against tests/blas_shim.c: sgemm_ and cblas_sgemm
# on mlk_matmul, all other routines on the reference BLAS. Every instruction set; the testers' own input files, and the same
# with sizes up to the testers' limit of 65.

set -u
cd "$(dirname "$0")/.." || exit 2
. tests/checks.sh

cc=${CC:-cc}
folder=""
for f in /usr/lib/*/blas /usr/lib/blas /usr/lib64/blas; do [ -x "$f/xblat3s" ] && [ -x "$f/xscblat3" ] && folder=$f; done
if [ -z "$folder" ]; then
  check "netlib testers" skip "no xblat3s and xscblat3 (Debian package libblas-test)"
  finish
  exit
fi

shim=$mlk_work/libmlk_blas.so
# MLK_OBJECT: the implementation as an object of position-independent code, to save compiling it
$cc ${CFLAGS:--O2} ${OPENMP:-} -fPIC -shared -I. ${MLK_OBJECT:+-DMLK_SHIM_LINKED "$MLK_OBJECT"} tests/blas_shim.c -o "$shim" -lm || { echo "0 passed, 1 failed, 0 skipped"; exit 1; }

larger() { # the input with nine larger sizes, and only the matrix product
  sed -E -e 's/^6( +NUMBER OF VALUES OF N)/9\1/' -e 's/^0 1 2 3 5 9( +VALUES OF N)/0 1 4 7 16 31 33 48 65\1/' \
    -e '/gemm/I!s/^([A-Za-z0-9_]+ +)T( PUT F)/\1F\2/' "$1"
}

tester() { # tester PROGRAM INPUT ISA THREADS
  local d=$mlk_work/tester_$BASHPID status
  mkdir "$d" && cd "$d" || return 1
  LD_LIBRARY_PATH=$folder${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} LD_PRELOAD=$shim MLK_SHIM_ISA=$3 MLK_SHIM_THREADS=$4 \
    MLK_SHIM_REPORT=$d/report "$1" <"$2" >"$d/said" 2>&1
  status=$?
  grep -q 'mlk_open: unsupported' "$d/said" && skip "the instruction set $3 is not available here"
  cat "$d/said" "$d"/*.out 2>/dev/null >"$d/all"
  [ $status -eq 0 ] || { cat "$d/all"; echo "exit status $status"; return 1; }
  grep -E '\*\*\*|FAIL|SUSPECT' "$d/all" && return 1
  grep -q -i -E 'gemm +PASSED THE TESTS OF ERROR-EXITS' "$d/all" && grep -q -i -E 'gemm +PASSED THE .*COMPUTATIONAL TESTS' "$d/all" &&
    grep -q "products on $3" "$d/report" || { cat "$d/all" "$d/report"; return 1; }
  grep -i 'gemm.*CALLS' "$d/all" | sed -E 's/.*\( *([0-9]+) CALLS.*/\1/' >>"$mlk_work/calls"
}

larger "$folder/sblat3.in" >"$mlk_work/large_fortran.in"
larger "$folder/sin3" >"$mlk_work/large_c.in"
case $(uname -m) in
  x86_64 | amd64) rows="scalar avx2 avx512" ;;
  aarch64 | arm64) rows="scalar neon" ;;
  *) rows=scalar ;;
esac
for row in $rows; do
  check "sgemm, netlib's sizes, $row" tester "$folder/xblat3s" "$folder/sblat3.in" "$row" 1
  check "cblas_sgemm, netlib's sizes, $row" tester "$folder/xscblat3" "$folder/sin3" "$row" 1
  check "sgemm, sizes to 65, $row" tester "$folder/xblat3s" "$mlk_work/large_fortran.in" "$row" 2
  check "cblas_sgemm, sizes to 65, $row" tester "$folder/xscblat3" "$mlk_work/large_c.in" "$row" 2
done
wait
[ ! -f "$mlk_work/calls" ] || echo "calls of sgemm and cblas_sgemm checked by the testers: $(awk '{n += $1} END {print n}' "$mlk_work/calls")"
finish
