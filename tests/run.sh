#!/usr/bin/env bash
# run.sh - every check this machine has the tools for; README.md in this folder says what each stage looks at.
# usage: tests/run.sh [--long] [--cuda] [--bench] [--list] [STAGE...]  STAGE: only the stages whose name contains one of these words
# --cuda: the stages of mlk_cuda.cuh instead (make test-cuda); no GPU is needed. --bench: those of bench instead (make test-bench).
# CC, CFLAGS, OPENMP, MAKE: as make gives them. MLK_JOBS: stages at once (default: one more than processors, since stages also wait).
# MLK_STAGE_SECONDS: a stage that takes longer has hung and is killed (default 400, --cuda 1800, --long 3600).
# Prints a line per stage and ends with "N passed, N failed, N skipped"; exit status 1 when something failed.
# What a stage printed is left in build/check/log.

set -u
cd "$(dirname "$0")/.." || exit 2

long=0 cuda=0 bench=0 list=0 wanted=()
for argument in "$@"; do
  case $argument in
    --long) long=1 ;;
    --cuda) cuda=1 ;;
    --bench) bench=1 ;;
    --list) list=1 ;;
    --help | -h) sed -n '2,8s/^# //p' tests/run.sh; exit 0 ;;
    -*) echo "run.sh: unknown option $argument; try --help" >&2; exit 2 ;;
    *) wanted+=("$argument") ;;
  esac
done

MAKE=${MAKE:-make}
CC=${CC:-cc}
CFLAGS=${CFLAGS:--O2}
cores=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
jobs_at_once=${MLK_JOBS:-$((cores + 1))}
limit=${MLK_STAGE_SECONDS:-$((long ? 3600 : cuda ? 1800 : 400))} # a stage that hangs is a failure, not a hung build
base=build/check
log=$base/log
mkdir -p "$log"
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive} # stages share the cores: waiting threads must not burn them
unset MAKEFLAGS MFLAGS MAKELEVEL

have() { command -v "$1" >/dev/null 2>&1; }
skip() { echo "skipped: $*"; exit 77; }

# --- stages -----------------------------------------------------------------------------------------------------------
# Each is a function that runs in a process of its own: status 0, 77 (skipped) or another; a closing line
# "N passed, N failed, N skipped" in its output is added up, else the stage counts as one.

build() { # build NAME VARIABLE=VALUE...: the test program, or what goal names, as build/check/NAME/mlk_test
  local name=$1 program=${goal:-mlk_test}
  shift
  env -u OPENMP -u CFLAGS -u CC "$MAKE" -s B="$base/$name" "$@" "$base/$name/$program" || { echo "$program does not build: $*"; exit 1; }
}
# The implementation as another compiler or other flags make it, under the tests as the suite has them: for stages that look
# at the library and not at the tests. Where the objects of two compilers do not link, the stage compiles the tests too.
build_under_suite() { # build_under_suite NAME COMPILER FLAGS
  local name=$1 cc=$2 flags=$3 objects=() test
  for test in tests/test_*.c; do
    test=${test#tests/}
    case $test in test_mlk.c | test_cuda_*) ;; *) objects+=("$base/suite/test/${test%.c}.o") ;; esac
  done
  env -u OPENMP -u CFLAGS -u CC "$MAKE" -s B="$base/$name" CC="$cc" CFLAGS="$flags" "$base/$name/test/test_mlk.o" ||
    { echo "mlk.h does not compile: $cc $flags"; exit 1; }
  $cc $flags -fopenmp -pthread "$base/$name/test/test_mlk.o" "${objects[@]}" -o "$base/$name/mlk_test" -ldl -lm 2>/dev/null ||
    build "$name" CC="$cc" CFLAGS="$flags"
}
cxx_warnings() { echo "-x c++ -std=$1 -Wall -Wextra -Wpedantic -Wshadow -Wconversion"; }

# What depends on how the kernels were compiled and which row was chosen, for stages that ask only that: a spread of every
# operator's sweep, and the cases that compare rows.
dispatched="--one-in 60 --filter context/rows --filter context/open --filter /sweep --filter /bits --filter matmul/epilogues
  --filter math/special --filter math/place --filter knn/base_order --filter knn/shards --filter knn/faiss_5327
  --filter attention/combinations --filter attention/blocks --filter attention/split"
# and of them what tells no more than a smaller case where fused multiply-adds are emulated, a microsecond each
small="--without matmul/bits_across --without conv/bits_across --without average/bits_of_threads --without _large
  --without knn/base_order --without knn/shards"

# Every case, for stages that look at how it is done rather than at what comes out: fewer points of a sweep and threads,
# which --long has as --quick takes them. (context/calibrate, which takes seconds, is for the stages suite, asan and msan.)
sampled="--one-in 100 --every-case --threads-max 3"
[ $long = 0 ] || sampled=""

# The test program as make builds it, and the library in it as an object: compiled once, for several stages.
stage_program() {
  build suite CC="$CC" CFLAGS="$CFLAGS -fPIC -Werror" ${OPENMP+"OPENMP=$OPENMP"}
}
library=$PWD/$base/suite/test/test_mlk.o

stage_suite() { # everything
  stage_program
  if [ $long = 1 ]; then "$base/suite/mlk_test" --long; else "$base/suite/mlk_test"; fi
}

stage_clang() { # and the optimiser at link time, where it works: a row's instructions stay in its functions
  local flags="-O2 -flto -Werror"
  have clang || skip "no clang"
  sanitizer_works clang -flto || flags="-O2 -Werror"
  build_under_suite clang clang "$flags"
  "$base/clang/mlk_test" --quick $sampled --without context/calibrate
}

stage_cxx11_native() { # C++11; and the compiler may use this machine's instructions everywhere, contract, and optimise at
  # link time: the bits must stay
  local flags="-O2 -march=native -ffp-contract=fast"
  have g++ || skip "no g++"
  ! sanitizer_works g++ -flto=1 || flags+=" -flto=1"
  build cxx11_native CC=g++ CFLAGS="$flags -Werror" TEST_CFLAGS="-O0 -Werror" WARN="$(cxx_warnings c++11)"
  "$base/cxx11_native/mlk_test" --quick $dispatched
}

stage_cxx17_plain() { # C++17; without optimisation, and as a compiler without OpenMP builds it
  local cxx=clang++
  have $cxx || cxx=g++
  have $cxx || skip "no clang++ and no g++"
  build cxx17_plain CC=$cxx CFLAGS="-O0 -Werror -Wno-deprecated" WARN="$(cxx_warnings c++17)" OPENMP=
  "$base/cxx17_plain/mlk_test" --quick $dispatched
}

probe="-DMLKI_PROBE_BYTES=4194304" # mlk_measure reads less where every read is looked at

sanitizer_works() { # sanitizer_works COMPILER FLAGS: links, and the program starts
  mkdir -p "$base/probe"
  local p=$base/probe/$BASHPID
  printf 'int main(void) { return 0; }\n' >"$p.c"
  $1 $2 "$p.c" -o "$p" >/dev/null 2>&1 && "$p" >"$p.said" 2>&1
}

# Instrumenting the wide kernels in line takes compilers minutes; through calls it takes seconds.
by_calls() { # by_calls COMPILER: the flags for that, where it knows them
  local flags
  for flags in "--param asan-instrumentation-with-call-threshold=0" "-mllvm -asan-instrumentation-with-call-threshold=0"; do
    sanitizer_works "$1" "-fsanitize=address $flags" && { echo "$flags"; return; }
  done
}

stage_asan() { # addresses, leaks, and of undefined behaviour what ASan does not see; pointers are left to the stage ubsan
  local checks="address,undefined -fno-sanitize=null,alignment,object-size,pointer-overflow" cc=$CC leaks=1
  local flags="-O1 -g1 -fno-omit-frame-pointer $probe -fsanitize=$checks -fno-sanitize-recover=all"
  sanitizer_works "$cc" "$flags" || cc=clang
  if ! sanitizer_works "$cc" "$flags"; then
    export ASAN_OPTIONS=detect_leaks=0 # LeakSanitizer needs ptrace, which some containers forbid
    leaks=0
    sanitizer_works "$CC" "$flags" && cc=$CC
    sanitizer_works "$cc" "$flags" || skip "no compiler here links AddressSanitizer"
  fi
  if [ $long = 1 ]; then build asan CC="$cc" CFLAGS="$flags $(by_calls "$cc")" # and the tests themselves
  else build_under_suite asan "$cc" "$flags $(by_calls "$cc")"; fi
  export UBSAN_OPTIONS=print_stacktrace=1 ASAN_OPTIONS=${ASAN_OPTIONS:-detect_leaks=$leaks}:allocator_may_return_null=1
  "$base/asan/mlk_test" --quick $sampled
}

stage_ubsan() { # clang's checks beyond the standard as well: implicit truncation
  # the scalar row alone, which is the same text as the others: clang takes minutes to instrument the wide ones, and with
  # its optimiser two minutes of processor even for this one (at -O0 seven seconds)
  local flags="-O0 -g1 -DMLK_NO_AVX2 -DMLK_NO_AVX512 $probe -fsanitize=undefined,implicit-integer-truncation -fno-sanitize-recover=all"
  have clang || skip "no clang"
  sanitizer_works clang "$flags" || skip "clang does not link its sanitizers"
  build_under_suite ubsan clang "$flags"
  UBSAN_OPTIONS=print_stacktrace=1 "$base/ubsan/mlk_test" --quick $sampled --isa scalar --without context/calibrate
}

stage_tsan() { # races: on a pthread pool in the parallel hook, since OpenMP's runtime is not instrumented
  # one wide row is enough, and without --long the scalar one does not run: they differ in width, not in who writes what
  local flags="-O1 -g1 -fsanitize=thread -DMLK_NO_OPENMP -DMLK_NO_AVX512 $probe" cc=$CC prefix=""
  if ! sanitizer_works "$cc" "$flags"; then
    if have setarch && $cc $flags "$base/probe/$BASHPID.c" -o "$base/probe/$BASHPID" 2>/dev/null &&
      setarch -R "$base/probe/$BASHPID" 2>/dev/null; then
      prefix="setarch -R" # this ThreadSanitizer is older than the kernel's address space randomisation
    else
      cc=clang
      sanitizer_works "$cc" "$flags" || skip "no compiler here links and starts ThreadSanitizer"
    fi
  fi
  build tsan CC="$cc" CFLAGS="$flags" OPENMP=
  TSAN_OPTIONS=halt_on_error=0:exitcode=66 $prefix "$base/tsan/mlk_test" --quick $sampled --pool --without context/calibrate \
    $([ $long = 1 ] || echo "--isa $($prefix "$base/tsan/mlk_test" --filter context/names | sed -n 's/^mlk_test:.* //p')")
}

stage_msan() { # reads of uninitialised memory, on the pool for the same reason
  # the scalar row alone: MemorySanitizer does not know the masked stores of the others
  local flags="-O1 -g1 -fsanitize=memory -DMLK_NO_OPENMP -DMLK_NO_AVX2 -DMLK_NO_AVX512 $probe"
  have clang || skip "no clang"
  sanitizer_works clang "$flags" || skip "clang does not link MemorySanitizer"
  build msan CC=clang CFLAGS="$flags" TEST_CFLAGS="-O0 -g1 -fsanitize=memory -Werror" OPENMP=
  "$base/msan/mlk_test" --quick $sampled --pool --isa scalar
}

rows_are() { # rows_are "NAMES" OUTPUT: the program found exactly these instruction sets
  grep -q -E "instruction sets $1\$" "$2" || { echo "expected the instruction sets \"$1\", found: $(grep "instruction sets" "$2" || head -n 3 "$2")"; return 1; }
}

emulated() { # emulated STAGE "EXPECTED ROWS" "OPTIONS" PROGRAM EMULATOR...
  local name=$1 rows=$2 options=$3 program=$4
  shift 4
  mkdir -p "$base/$name"
  "$@" "$program" --quick --threads-max 2 $options >"$base/$name/said" 2>&1
  local status=$?
  cat "$base/$name/said"
  rows_are "$rows" "$base/$name/said" || return 1
  return $status
}

stage_neon() {
  have aarch64-linux-gnu-gcc || skip "no aarch64-linux-gnu-gcc"
  have qemu-aarch64 || skip "no qemu-aarch64 (Debian package qemu-user)"
  build neon CC=aarch64-linux-gnu-gcc CFLAGS="-O2 -static -Werror $probe" TEST_CFLAGS="-O1 -static -Werror"
  emulated neon "scalar neon" "--one-in 100 --every-case --without context/calibrate" "$base/neon/mlk_test" qemu-aarch64
}

# The program of the suite itself runs there, if this machine's C library does; else one linked with all it needs.
dispatch() { # dispatch NAME CPU "EXPECTED ROWS"
  local program=$base/suite/mlk_test
  if ! qemu-x86_64 -cpu "$2" "$program" --list >/dev/null 2>&1; then
    build "$1" CC="$CC" CFLAGS="$CFLAGS -static"
    program=$base/$1/mlk_test
  fi
  emulated "$1" "$3" "$dispatched $small" "$program" qemu-x86_64 -cpu "$2"
}

stage_dispatch_sse() { # a machine without AVX: the scalar row, and no instruction beyond SSE on the way
  [ "$(uname -m)" = x86_64 ] || skip "not an x86-64 machine"
  have qemu-x86_64 || skip "no qemu-x86_64 (Debian package qemu-user)"
  dispatch dispatch_sse Nehalem "scalar"
}

stage_dispatch_avx2() {
  [ "$(uname -m)" = x86_64 ] || skip "not an x86-64 machine"
  have qemu-x86_64 || skip "no qemu-x86_64 (Debian package qemu-user)"
  printf '#include <immintrin.h>\nint main(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? 0 : 1; }\n' \
    >"$base/has_avx2.c"
  $CC -static "$base/has_avx2.c" -o "$base/has_avx2" && qemu-x86_64 -cpu Haswell "$base/has_avx2" 2>/dev/null ||
    skip "this qemu-x86_64 does not emulate AVX2"
  export MLKT_OPEN_PAGES=1 # this qemu reads the masked lanes of a masked load; the guard pages are watched by the native stages
  dispatch dispatch_avx2 Haswell "scalar avx2"
}

stage_hygiene() { MLK_JOBS=$cores MLK_LONG=$long bash tests/hygiene.sh; }
stage_blas() {
  stage_program
  MLK_OBJECT=$library MLK_JOBS=$cores bash tests/blas_testers.sh
}
stage_snippets() { MLK_JOBS=$cores bash tests/snippets.sh; }

stage_demo() {
  stage_program
  MLK_OBJECT=$library CC=$CC CFLAGS=$CFLAGS bash tests/test_demo.sh
}

stage_search() {
  stage_program
  MLK_OBJECT=$library CC=$CC CFLAGS=$CFLAGS bash tests/test_search.sh
}

stage_chat() {
  stage_program
  MLK_OBJECT=$library CC=$CC CFLAGS=$CFLAGS bash tests/test_chat.sh
}

stage_plan() {
  stage_program
  MLK_OBJECT=$library CC=$CC CFLAGS=$CFLAGS bash tests/test_plan.sh
}

stage_fuzz() { # the examples' file readers
  stage_program
  local search=()
  [ $long = 0 ] || search=(--search 60)
  MLK_FUZZ_ROUNDS=${MLK_FUZZ_ROUNDS:-$((long ? 20000 : 3000))} MLK_OBJECT=$library CC=$CC MLK_JOBS=$cores bash tests/fuzz_readers.sh ${search[@]+"${search[@]}"}
}

stage_group() { # replica groups of processes
  [ "$(uname -s)" = Linux ] || skip "processes that share memory are tested on Linux"
  local seed
  goal=group_processes stage_program
  for seed in 1 $([ $long = 0 ] || echo 2 3 4 5); do "$base/suite/group_processes" --seed "$seed" || return 1; done
}

stage_model() { # the protocol of replica groups
  have spin || skip "no spin (Debian package spin)"
  local more=()
  [ $long = 0 ] || more=(--long)
  MLK_JOBS=$cores CC=$CC bash tests/model.sh ${more[@]+"${more[@]}"}
}

stage_mpi() {
  have mpicc || skip "no mpicc (Debian packages libopenmpi-dev, openmpi-bin)"
  stage_program
  MLK_OBJECT=$library CC=$CC CFLAGS=$CFLAGS MLK_JOBS=$cores bash tests/test_mpi.sh
}

stage_valgrind() { # reads of uninitialised memory; this valgrind knows no AVX-512, so the rows below it run
  have valgrind || skip "no valgrind"
  build valgrind CC="$CC" CFLAGS="-O1 -g" OPENMP=
  valgrind -q --error-exitcode=9 --leak-check=full "$base/valgrind/mlk_test" --quick --threads-max 2
}

stage_seeds() { # other random numbers than the fixed ones
  stage_program
  local first
  first=$(date +%s)
  for seed in $first $((first + 1)) $((first + 2)); do "$base/suite/mlk_test" --seed "$seed" || return 1; done
}

stage_coverage() { # how much of mlk.h the suite runs; printed, not judged
  have gcov || skip "no gcov"
  build coverage CC=gcc CFLAGS="-O0 --coverage" OPENMP=
  "$base/coverage/mlk_test" >"$base/coverage/said" || { tail -n 30 "$base/coverage/said"; return 1; }
  (cd "$base/coverage/test" && gcov -b test_mlk.gcda 2>/dev/null | grep -A 4 "mlk.h'")
}

# --- the stages of --cuda: the kernels of mlk_cuda.cuh, compiled by nvcc and judged, and run by the CPU ------------------------
emulated_program() { # emulated_program NAME FLAGS LINK: the suite on the emulator that these flags make, as build/check/suite/NAME
  local name=$1 flags=$2 link=$3
  env -u OPENMP -u CFLAGS -u CC "$MAKE" -s B="$base/suite" CC="$CC" CFLAGS="$CFLAGS -fPIC -Werror" ${OPENMP+"OPENMP=$OPENMP"} \
    EMULATED="$name" EMULATOR_FLAGS="$flags -Werror" EMULATOR_LINK="$link" "$base/suite/$name" || { echo "$name does not build"; exit 1; }
}
stage_cuda_program() { emulated_program mlk_test_emulated -O2 ""; }

stage_cuda_gates() { NVCC=${NVCC:-nvcc} MLK_JOBS=$cores bash tests/cuda_gates.sh; }

# Blocks and threads in ascending order, every family against the CPU's bits: a spread of all sweeps.
stage_cuda_sweeps() {
  stage_cuda_program
  if [ $long = 1 ]; then "$base/suite/mlk_test_emulated" --cuda --quick
  else "$base/suite/mlk_test_emulated" --cuda --quick --one-in 60 --threads-max 3; fi
}

stage_cuda_orders() { # in other orders, which find missing barriers and waits
  local seed
  stage_cuda_program
  for seed in 1 2 3 $([ $long = 0 ] || echo 4 5 6 7 8 9 10); do
    MLK_EMU_SEED=$seed "$base/suite/mlk_test_emulated" --cuda --quick --one-in 200 --seed "$seed" --threads-max 2 || return 1
  done
}

stage_cuda_asan() { # addresses and undefined behaviour in the kernels and in the host's part
  local flags="-O1 -g1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all -Wno-maybe-uninitialized"
  sanitizer_works "$CC" "-fsanitize=address,undefined" || skip "$CC does not link AddressSanitizer"
  emulated_program mlk_test_emulated_asan "$flags" "-fsanitize=address,undefined"
  UBSAN_OPTIONS=print_stacktrace=1 ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 \
    "$base/suite/mlk_test_emulated_asan" --cuda --quick --one-in 200 --threads-max 2
}

stage_cuda_races() { # what barriers do not order, between the threads of a block
  sanitizer_works "$CC" "-fsanitize=thread" || skip "$CC does not link ThreadSanitizer"
  emulated_program mlk_test_emulated_tsan "-O1 -g1 -fsanitize=thread" "-fsanitize=thread"
  # threads of the host are the stage tsan's; libgomp would be reported here. Of k-NN the cases that differ in data only are
  # left out, which take minutes here
  OMP_THREAD_LIMIT=1 TSAN_OPTIONS=halt_on_error=1 "$base/suite/mlk_test_emulated_tsan" --cuda --quick --one-in 400 --threads-max 1 \
    --without group/ --without threads --without context/ --without knn/shards --without knn/large --without knn/base_order \
    --without agree_with_knn --without knn/filter --without knn/zero_padding --without knn/translation --without knn/batches --without knn/faiss
}

stage_cuda_emulator() { # is the emulator itself right? As it is, under the sanitizers, with the portable fibers, and on AArch64
  local cxx=${CXX:-g++} flags="-std=c++17 -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Werror -ffp-contract=off"
  local source=tests/test_cuda_emulator.cc test=$base/emulator/test
  have "$cxx" || skip "no C++ compiler"
  mkdir -p "$base/emulator"
  $cxx $flags -O2 $source -o "$test" && "$test" || return 1
  $cxx $flags -O1 -DMLKT_EMU_UCONTEXT $source -o "$test.ucontext" && "$test.ucontext" || return 1
  if sanitizer_works "$cxx" "-fsanitize=address,undefined"; then
    $cxx $flags -O1 -g1 -fsanitize=address,undefined -fno-sanitize-recover=all $source -o "$test.asan" && "$test.asan" || return 1
  fi
  if sanitizer_works "$cxx" "-fsanitize=thread"; then
    $cxx $flags -O1 -g1 -fsanitize=thread $source -o "$test.tsan" && TSAN_OPTIONS=halt_on_error=1 "$test.tsan" || return 1
  fi
  if have aarch64-linux-gnu-g++ && have qemu-aarch64; then
    aarch64-linux-gnu-g++ $flags -O1 -static $source -o "$test.aarch64" && qemu-aarch64 "$test.aarch64" || return 1
  fi
}

stage_cuda_examples() { # the examples with --device cuda
  local example
  stage_cuda_program
  for example in 00_knn_pictures 02_fashion_cnn 03_gpt 08_plan; do
    env -u OPENMP -u CFLAGS -u CC "$MAKE" -s B="$base/suite" CC="$CC" CFLAGS="$CFLAGS -fPIC -Werror" ${OPENMP+"OPENMP=$OPENMP"} \
      EMULATOR_FLAGS="-O2 -Werror" "$base/suite/emulated/$example" || { echo "$example does not build"; return 1; }
  done
  bash tests/cuda_examples.sh "$base/suite/emulated" --short
}

stage_cuda_devices() { # a device without bf16 and cp.async, and a newer one
  local cc
  stage_cuda_program
  for cc in 75 90; do
    MLK_EMU_CC=$cc "$base/suite/mlk_test_emulated" --cuda --quick --one-in 200 --threads-max 2 || return 1
  done
}

# --- the stages of --bench: the benchmark programs ------------------------------------------------------------------------------
stage_bench_tool() { CC=$CC CFLAGS=$CFLAGS OPENMP=${OPENMP-} bash tests/test_bench.sh "$base/bench"; }

stage_bench_report() { MLK_JOBS=$cores CC=$CC bash tests/test_report.sh; } # pages of results
stage_bench_instructions() { CC=$CC bash tests/instructions.sh; } # a slowdown without timing

# The program first, beside hygiene, which does not need it; then the longest first, so that the cores stay busy.
stages="program suite hygiene asan tsan neon demo msan ubsan clang cxx11_native dispatch_sse snippets dispatch_avx2 cxx17_plain fuzz blas group model mpi chat search plan"
[ $long = 0 ] || stages="$stages valgrind seeds coverage"
[ $cuda = 0 ] || stages="cuda_program cuda_gates cuda_sweeps cuda_asan cuda_races cuda_examples cuda_orders cuda_devices cuda_emulator"
[ $bench = 0 ] || stages="bench_instructions bench_tool bench_report"

if [ ${#wanted[@]} -gt 0 ]; then
  chosen=""
  for stage in $stages; do
    for word in "${wanted[@]}"; do case $stage in *"$word"*) chosen="$chosen $stage"; break ;; esac; done
  done
  [ -n "$chosen" ] || { echo "run.sh: no stage has such a name; there are: $stages" >&2; exit 2; }
  case $chosen in *program*) ;; *cuda_gates*) ;; *cuda_*) chosen="cuda_program $chosen" ;; *suite* | *clang* | *asan* | *ubsan* | *dispatch* | *seeds* | *demo* | *blas* | *fuzz* | *group* | *mpi* | *chat* | *search* | *plan*) chosen="program $chosen" ;; esac
  stages=$chosen
fi
if [ $list = 1 ]; then printf '%s\n' $stages; exit; fi

# --- running them -------------------------------------------------------------------------------------------------------
counts='^([0-9]+) passed, ([0-9]+) failed, ([0-9]+) skipped'

failures_of() { # failures_of STAGE: what failed there, a line each; without a name, the last thing it said
  local found
  found=$(grep -E '^FAIL |^killed: ' "$log/$1" | sed -E 's/^FAIL +//; s/ +[0-9]+ checks, .*//' | head -n 20)
  [ -n "$found" ] || found=$(tail -n 1 "$log/$1")
  sed "s/^/failed: $1: /" <<<"${found:-nothing was said}" | cut -c 1-200
}

run_stage() {
  local stage=$1 from to status line guard pid busy passed=0 failed=0 skipped=0 word=ok
  from=$(date +%s)
  set -m # a process group of its own: whatever the stage started dies with it
  ((stage_"$stage") >"$log/$stage" 2>&1 </dev/null; status=$?; times >"$log/$stage.times"; exit $status) &
  pid=$!
  set +m
  echo "$pid" >"$log/$stage.group"
  (
    trap 'kill "$nap" 2>/dev/null; exit' TERM
    sleep "$limit" & nap=$!
    wait "$nap"
    echo "killed: not finished after $limit s (MLK_STAGE_SECONDS)" >>"$log/$stage"
    kill -KILL -- "-$pid"
  ) >/dev/null 2>&1 &
  guard=$!
  wait "$pid"
  status=$?
  kill "$guard" 2>/dev/null
  wait "$guard" 2>/dev/null
  rm -f "$log/$stage.group"
  to=$(date +%s)
  line=$(grep -E "$counts" "$log/$stage" | tail -n 1)
  if [ -n "$line" ] && [[ $line =~ $counts ]]; then
    passed=${BASH_REMATCH[1]} failed=${BASH_REMATCH[2]} skipped=${BASH_REMATCH[3]}
    [ $status -eq 0 ] || [ "$failed" -gt 0 ] || failed=1 # died after, or beside, its closing line
  elif [ $status -eq 77 ]; then skipped=1
  elif [ $status -eq 0 ]; then passed=1
  else failed=1
  fi
  [ "$skipped" -eq 0 ] || word=skip
  [ "$passed" -eq 0 ] || word=ok
  [ "$failed" -eq 0 ] || word=FAIL
  echo "$passed $failed $skipped" >"$log/$stage.counts"
  if [ $word = skip ]; then printf '%-4s %-14s %s\n' SKIP "$stage" "$(tail -n 1 "$log/$stage" | sed 's/^skipped: //')"
  else
    busy=$(tail -n 1 "$log/$stage.times" 2>/dev/null | tr 'ms' '  ' | awk '{print int($1 * 60 + $2 + $3 * 60 + $4 + 0.5)}')
    printf '%-4s %-14s %5d passed, %d failed, %d skipped %5d s, %d s of processor\n' \
      $word "$stage" "$passed" "$failed" "$skipped" $((to - from)) "${busy:-0}"
  fi
  [ $word != FAIL ] || failures_of "$stage" | sed 's/^/     /'
}

rm -f "$log"/*.counts "$log"/*.group "$log"/*.times
give_up() { # the stages are in process groups of their own, which the terminal's interrupt does not reach
  local file
  for file in "$log"/*.group; do [ ! -f "$file" ] || kill -KILL -- "-$(cat "$file")" 2>/dev/null; done
  echo "run.sh: interrupted" >&2
  exit 130
}
trap give_up INT TERM HUP
started=$(date +%s)
stages_left=$stages
first=${stages%% *}
case $first in program | cuda_program)
  run_stage $first &
  program=$!
  stages_left=${stages#"$first"}
  for stage in hygiene cuda_gates; do # need nothing of it
    case "$stages_left " in *" $stage "*)
      run_stage $stage &
      stages_left=${stages_left/ $stage/} ;;
    esac
  done
  wait $program ;;
esac
wait_for_one() { wait -n; }
((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 403)) || wait_for_one() { sleep 1; } # older ones have no wait -n
for stage in $stages_left; do
  while [ "$(jobs -rp | wc -l)" -ge "$jobs_at_once" ]; do wait_for_one; done
  run_stage "$stage" &
done
wait

passed=0 failed=0 skipped=0 failures=""
for stage in $stages; do
  read -r p f s <"$log/$stage.counts" || { p=0 f=1 s=0; }
  passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
  if [ "$s" -gt 0 ] && [ "$p" -gt 0 ]; then grep -E '^skip ' "$log/$stage" | sed "s/^skip */skipped in $stage: /"; fi
  if [ "$f" -gt 0 ]; then
    failures+=$(failures_of "$stage")$'\n'
    echo
    echo "--- $stage: the end of $log/$stage"
    grep -n -E -A 12 '^FAIL|^killed:|error:|ERROR:|WARNING: ThreadSanitizer' "$log/$stage" | head -n 60
    tail -n 15 "$log/$stage"
  fi
done
echo "in $(($(date +%s) - started)) s; what each stage said: $log"
printf '%s' "$failures" # once more: of a long output often only the end, or only the beginning, is kept
echo "$passed passed, $failed failed, $skipped skipped"
[ $failed -eq 0 ]
