#!/usr/bin/env bash
# cuda_gates.sh - does mlk_cuda.cuh compile to what it promises? No GPU is needed, only nvcc; README.md, "CUDA", tells more.
# usage: tests/cuda_gates.sh [--quick] [--update] [FAMILY...]     FAMILY: matmul conv attention knn average maps layers
#   --quick    one device (sm_80) instead of seven, and no look at the PTX
#   --update   writes what was measured into tests/cuda_budget.txt, for the families named (every full run: build/cuda_budget.txt)
# NVCC: the compiler (default: on the path, or /usr/local/cuda/bin). MLK_JOBS: compilers at once (default: the processors).
# Ends with "N passed, N failed, N skipped"; status 1 when something failed, 77 where there is no nvcc.

set -u
cd "$(dirname "$0")/.." || exit 2
quick=0 update=0 families=()
for argument in "$@"; do
  case $argument in
    --quick) quick=1 ;;
    --update) update=1 ;;
    --help | -h) sed -n '2,7s/^# //p' tests/cuda_gates.sh; exit 0 ;;
    matmul | conv | attention | knn | average | maps | layers) families+=("$argument") ;;
    *) echo "cuda_gates.sh: unknown argument $argument; try --help" >&2; exit 2 ;;
  esac
done
whole=0
[ ${#families[@]} -gt 0 ] || { families=(attention matmul conv knn layers maps average); whole=1; } # the longest first
NVCC=${NVCC:-$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)}
command -v "$NVCC" >/dev/null || { echo "skipped: no nvcc"; exit 77; }
. tests/checks.sh

CC=${CC:-cc}
budget=tests/cuda_budget.txt
release=$("$NVCC" --version | sed -n 's/.*release \([0-9.]*\).*/\1/p')
out=$mlk_work/out
mkdir "$out"

# compute_90's PTX is what newer devices get from the default build; sm_100 and sm_120 are compiled from it.
devices="75 80 86 89 90a 100 120"
targets="-gencode arch=compute_75,code=[sm_75,compute_75] -gencode arch=compute_80,code=[sm_80,sm_86,sm_89,compute_80]
  -gencode arch=compute_90a,code=[sm_90a,compute_90a] -gencode arch=compute_90,code=[sm_100,sm_120,compute_90]"
[ $quick = 0 ] || devices=80 targets="-gencode arch=compute_80,code=sm_80"
host="-Xcompiler -Wall,-Wextra,-Wshadow,-Wconversion,-fno-exceptions,-fno-threadsafe-statics"
flags="-O3 -std=c++17 -I. $host -Werror all-warnings"
unit=$out/unit.cu
printf '#define MLK_CUDA_IMPLEMENTATION\n#include "mlk_cuda.cuh"\n' >"$unit"

only() { # only FAMILY: the macros that leave the others out
  if [ "$1" = base ]; then echo -DMLKI_CUDA_SOME; else echo "-DMLK_CUDA_ONLY_$(tr '[:lower:]' '[:upper:]' <<<"$1")"; fi
}

# --- compiling ----------------------------------------------------------------------------------------------------------
# (not -warn-spills, -warn-lmem-usage: as errors they hide the figures, which are judged below)
compiles() { # compiles FAMILY: its object, ptxas's words and the PTX, in $out/FAMILY
  local d=$out/$1
  mkdir "$d"
  "$NVCC" $flags $(only "$1") $targets -Xptxas -v --keep --keep-dir "$d" -c "$unit" -o "$d/object.o" >"$d/said" 2>&1 ||
    { grep -v -E '^ptxas info|bytes stack frame' "$d/said" | head -n 40; return 1; }
  if grep -n -E '[Ww]arning|C75[0-9][0-9]' "$d/said"; then return 1; fi # C75xx: an optimisation was lost
}

# kernel by kernel: DEVICE REGISTERS SHARED STACK SPILLED NAME. Functions that kernels call are listed behind them.
figures() {
  awk '/Compiling entry function/ { emit(); split($0, part, "\x27"); name = part[2]; device = part[4]; sub(/sm_/, "", device)
                                    registers = shared = stack = spilled = 0; next }
       /bytes stack frame/        { if ($1 > stack) stack = $1; spilled += $5 + $9 }
       /Used [0-9]+ registers/    { for (i = 2; i <= NF; i++) {
                                      if ($i ~ /^registers/) registers = $(i - 1)
                                      if ($i ~ /^smem/) shared = $(i - 2) } }
       END                        { emit() }
       function emit() { if (name != "") print device, registers, shared, stack, spilled, name }' "$1/said" |
    c++filt -p | sed -E 's/_(INTERNAL|GLOBAL__N)_[A-Za-z0-9_]*:://g' | sort -u
}

# --- the budget -------------------------------------------------------------------------------------------------------------
# One line for each kernel: what a thread may use of registers on each device, and on any of them a block of static shared
# memory and a thread of stack and of spilled registers, in bytes. Spills are 0 but where a call in a kernel's last step costs some.
name_from='function name_from(first, i, name) { # (not every awk knows how to strip so many fields)
             name = $first
             for (i = first + 1; i <= NF; i++) name = name " " $i
             return name }'
kernels_of() { # kernels_of FAMILY: its figures without those of kernels that every family has
  if [ "$1" = base ]; then figures "$out/base"
  else figures "$out/$1" | grep -v -F -f <(figures "$out/base" | cut -d ' ' -f 6-); fi
}
table_of() { # table_of FAMILY: its lines of the budget; registers are given out by eights
  kernels_of "$1" | awk -v family="$1" -v devices="$devices" '
    { name = name_from(6); names[name] = 1
      used[name, $1] = int(($2 + 7) / 8) * 8
      if ($3 > shared[name]) shared[name] = $3
      if ($4 > stack[name]) stack[name] = $4
      if ($5 > spilled[name]) spilled[name] = $5 }
    END { count = split(devices, device, " ")
          for (name in names) {
            printf "%-9s", family
            for (i = 1; i <= count; i++) printf " %5d", used[name, device[i]]
            printf " %6d %5d %6d  %s\n", shared[name], stack[name], spilled[name], name } }
    '"$name_from" | LC_ALL=C sort -k 12
}
within_budget() { # within_budget FAMILY DEVICE
  local recorded
  recorded=$(sed -n 's/^# nvcc //p' $budget 2>/dev/null)
  kernels_of "$1" | awk -v family="$1" -v device="$2" -v budget=$budget -v devices="75 80 86 89 90a 100 120" '
    BEGIN { count = split(devices, all, " ")
            for (i = 1; i <= count; i++) if (all[i] == device) column = i + 1
            while ((getline line < budget) > 0) {
              n = split(line, field, " ")
              if (line ~ /^#/ || field[1] != family) continue
              name = field[12]
              for (i = 13; i <= n; i++) name = name " " field[i]
              most[name] = field[column]; shared[name] = field[9]; stack[name] = field[10]; spills[name] = field[11] } }
    $1 != device { next }
    { name = name_from(6); seen[name] = 1
      if ($5 > (name in most ? spills[name] : 0)) say("spills " $5 " bytes")
      if (!(name in most)) { say("is not in the budget"); next }
      if ($2 > most[name]) say("uses " $2 " registers, the budget is " most[name])
      if ($3 > shared[name]) say("uses " $3 " bytes of shared memory, the budget is " shared[name])
      if ($4 > stack[name]) say("uses " $4 " bytes of stack, the budget is " stack[name]) }
    function say(what) { print name " " what; bad = 1 }
    END { for (name in most) if (!(name in seen)) { print name " is in the budget, but not in the header"; bad = 1 }
          exit bad }'"$name_from" >"$out/$1.$2.judged" && return 0
  cat "$out/$1.$2.judged"
  grep -q ' spills ' "$out/$1.$2.judged" && return 1
  grep -q "^$1 " $budget 2>/dev/null || skip "there is no budget of this family; what was measured is in build/cuda_budget.txt"
  [ "$release" = "$recorded" ] || skip "the budget is nvcc $recorded's, this is $release"
  echo "tests/cuda_gates.sh --update $1 writes the budget anew"
  return 1
}
write_budget() { # write_budget FILE: the budget, with what was measured now
  local kept=$out/kept family
  grep -v '^#' $budget 2>/dev/null >"$kept"
  for family in base "${families[@]}"; do
    [ -f "$out/$family/object.o" ] || continue
    sed -i "/^$family /d" "$kept"
    table_of "$family" >>"$kept"
  done
  { echo "# What kernels may use; tests/cuda_gates.sh judges by it, and with --update writes it. Registers are rounded up to eights."
    echo "# nvcc $release"
    printf '%-9s' '# family'
    printf ' %5s' sm_75 sm_80 sm_86 sm_89 sm_90a sm_100 sm_120
    printf ' %6s %5s %6s  %s\n' shared stack spills kernel
    LC_ALL=C sort -s -k 1,1 "$kept"; } >"$1"
}

# --- the PTX ------------------------------------------------------------------------------------------------------------
ptx_of() { # ptx_of FAMILY TIER
  local file
  for file in "$out/$1"/*compute_"$2".ptx; do [ -f "$file" ] && { echo "$file"; return; }; done
}
has() { # has FILE PATTERN...: every one
  local file=$1 pattern
  shift
  for pattern in "$@"; do grep -q -E -e "$pattern" "$file" || { echo "no $pattern"; return 1; }; done
}
lacks() { # lacks FILE PATTERN...: not one
  local file=$1 pattern
  shift
  for pattern in "$@"; do ! grep -m 3 -n -E -e "$pattern" "$file" || return 1; done
}
# FAMILY's instructions of tensor cores on TIER, as patterns; nothing: it has none.
tensor_cores() {
  local mma='mma\.sync\.aligned' wgmma='wgmma\.mma_async\.sync\.aligned'
  case $1.$2 in
    matmul.90a | conv.90a | attention.90a | knn.90a)
      echo "cp\.async\.bulk\.tensor mbarrier\.try_wait mbarrier\.arrive\.expect_tx setmaxnreg\.inc setmaxnreg\.dec $wgmma\.m64n128k16\.f32\.f16" ;;
  esac
  case $1.$2 in
    matmul.90a) echo "$wgmma\.m64n256k16\.f32\.f16 $wgmma\.m64n256k16\.f32\.bf16" ;;
    conv.90a) echo "$wgmma\.m64n256k16\.f32\.f16 $wgmma\.m64n256k16\.f32\.bf16 $wgmma\.m64n64k16 cp\.async\.bulk\.tensor\.5d" ;;
    attention.90a) echo "$wgmma\.m64n64k16\.f32\.f16 $wgmma\.m64n128k16\.f32\.bf16 $wgmma\.m64n256k16\.f32\.bf16 bar\.arrive" ;;
  esac
  case $1.$2 in
    matmul.75 | conv.75 | attention.75 | knn.75) echo "ldmatrix $mma\.m16n8k8\.row\.col\.f32\.f16\.f16\.f32" ;;
    matmul.* | conv.* | attention.*) echo "ldmatrix cp\.async\.c[ag]\.shared\.global cp\.async\.wait_group $mma\.m16n8k16\.row\.col\.f32\.f16" \
      "$mma\.m16n8k16\.row\.col\.f32\.bf16 $mma\.m16n8k8\.row\.col\.f32\.tf32" ;;
    knn.*) echo "ldmatrix $mma\.m16n8k16\.row\.col\.f32\.f16" ;;
  esac
}
promises() { # promises FAMILY TIER: the instructions of that tier, and none beyond
  local file
  file=$(ptx_of "$1" "$2")
  [ -n "$file" ] || { echo "no PTX of compute_$2"; return 1; }
  has "$file" $(tensor_cores "$1" "$2") || return 1
  case $2 in
    75) lacks "$file" 'cp\.async' 'm16n8k16' 'm16n8k8\.[^;]*tf32' 'wgmma\.' 'mbarrier\.' setmaxnreg ;;
    80 | 90) lacks "$file" 'wgmma\.' 'cp\.async\.bulk' 'mbarrier\.' setmaxnreg ;;
  esac
}
# Products and sums that nvcc may join into one multiply-add lose the CPU's bits. Where it could join nothing, the PTX is the
# same with and without its leave.
nothing_contracted() { # nothing_contracted FAMILY
  local d=$out/$1
  "$NVCC" $flags $(only "$1") -arch=compute_80 -fmad=false -ptx "$unit" -o "$d/apart.ptx" >"$d/apart.said" 2>&1 ||
    { cat "$d/apart.said"; return 1; }
  by_kernel "$(ptx_of "$1" 80)" >"$d/joined.lines"
  by_kernel "$d/apart.ptx" >"$d/apart.lines"
  diff "$d/joined.lines" "$d/apart.lines" | sed -n 's/^[<>] \([^:]*\):.*/\1/p' | sort -u | c++filt -p >"$d/differ"
  grep -v -E "$may_contract" "$d/differ" | sed 's/^/nvcc contracts arithmetic of /' | tee "$d/bad"
  ! [ -s "$d/bad" ]
}
# Sums in f32 of 16-bit or tf32 products have bounds, not bits.
may_contract='mma|tc_kernel|tensor|tf32|f16|half|spin_kernel'
by_kernel() { # floating-point arithmetic as KERNEL:INSTRUCTION, counted, without registers
  awk '/^\.(visible |weak )?(entry|func)|^ *\.(visible |weak )?(entry|func) / { for (i = 1; i <= NF; i++) if ($i ~ /^_Z|^mlki/) name = $i; sub(/\(.*/, "", name) }
       $1 ~ /^(add|sub|mul|fma|mad)\.(rn\.)?(ftz\.)?f(32|64)$/ { count[name ":" $1]++ }
       END { for (what in count) print what ": " count[what] }' "$1" | sort
}

# --- what C programs link ---------------------------------------------------------------------------------------------------
libraries=$(echo | "$NVCC" --dryrun -x cu - 2>&1 | sed -n 's/^.*LIBRARIES=//p' | tr -d '"')
no_library_of_cxx() { # the object needs the C library and the CUDA run-time
  local found
  found=$(nm -u "$out/$1/object.o" | awk '{print $NF}' | grep -E '^(_Z|__cxa_|__gxx_|_Unwind)')
  [ -z "$found" ] || { echo "needs $found"; return 1; }
}
one_function() { # and nothing else is external
  diff <(nm -g --defined-only "$out/$1/object.o" | awk 'NF {print $NF}' | grep -v -E '^(__(cuda|fatbin|nv)|fatbinData$)') <(echo mlk_cuda_backend)
}
says_what_is_missing() { # says_what_is_missing PROGRAM: where there is no device, and the same sums where there is
  "$1" >"$1.said" || { cat "$1.said"; echo "$1 gives $?"; return 1; }
  diff "$1.said" <(printf 'best: 58 64 139 154\n'
                   if nvidia-smi -L >/dev/null 2>&1; then echo 'backend: 58 64 139 154'
                   else echo 'backend: device: MLK_DEVICE_BACKEND, but no backend has a device'; fi)
}
c_program() { # c_program COMPILER: the C compiler, its linker, no library of C++
  "$1" -std=c99 -Wall -Wextra -Wpedantic -Werror -O0 -I. -DMLK_NO_AVX2 -DMLK_NO_AVX512 -DMLK_IMPLEMENTATION tests/cuda_use.c \
    "$out/matmul/object.o" -o "$out/use_$1" $libraries -lcudart_static -ldl -lrt -lpthread -lm && says_what_is_missing "$out/use_$1"
}
one_file() { # both implementations and the program in one .cu file, by one command; every family
  "$NVCC" -std=c++17 -I. -arch=sm_80 -Werror all-warnings -Xcicc -O1 -Xptxas -O1 examples/07_cuda.cu -o "$out/one" && "$out/one"
}
gpu_programs() { # what tests/gpu.sh and bench/gpu.sh build where there is a GPU; without peers
  local source
  for source in tests/gpu_graphs.cu bench/gpu.cu; do
    "$NVCC" -std=c++17 -I. -arch=sm_80 -Werror all-warnings -Xcompiler -Wall,-Wextra -Xcicc -O0 -c "$source" -o "$out/gpu_program.o" || return
  done
}
emulated() { # emulated COMPILER: the host's parts and the kernels in the eyes of another compiler
  "$1" -std=c++17 -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wno-unknown-pragmas -Werror -fsyntax-only -Itests -I. tests/cuda_backend.cc
}
cmake_builds() {
  cmake -S . -B "$out/cmake" -DMLK_CUDA=ON -DMLK_BUILD_TESTS=OFF -DMLK_BUILD_EXAMPLES=OFF -DCMAKE_CUDA_COMPILER="$NVCC" \
    -DCMAKE_CUDA_ARCHITECTURES=80-virtual -DCMAKE_CUDA_FLAGS=-DMLK_CUDA_ONLY_AVERAGE && cmake --build "$out/cmake" && test -f "$out/cmake/libmlk_cuda.a"
}

# --- all of it ----------------------------------------------------------------------------------------------------------
check "base compiles" compiles base
for family in "${families[@]}"; do check "$family compiles" compiles "$family"; done
if [ $quick = 0 ] && [ $update = 0 ]; then
  [ $whole = 0 ] || check "both implementations in one .cu file" one_file
  [ $whole = 0 ] || check "the programs of gpu.sh" gpu_programs
  for cxx in g++ clang++; do
    [ $whole = 1 ] || continue
    if have $cxx; then check "without warnings, $cxx" emulated $cxx; else check "without warnings, $cxx" skip "no $cxx"; fi
  done
  if [ $whole = 0 ]; then :; elif have cmake; then check "cmake, MLK_CUDA" cmake_builds; else check "cmake, MLK_CUDA" skip "no cmake"; fi
fi
wait
if [ $update = 1 ]; then
  [ $quick = 0 ] || { echo "cuda_gates.sh: --update looks at all devices" >&2; exit 2; }
  finish || exit 1
  write_budget $budget
  exit
fi
for family in base "${families[@]}"; do
  [ -f "$out/$family/object.o" ] || continue # failed above
  for device in $devices; do check "$family, registers and memory on sm_$device" within_budget "$family" "$device"; done
  check "$family needs no library of C++" no_library_of_cxx "$family"
  check "$family exports one function" one_function "$family"
  [ $quick = 0 ] || continue
  for tier in 75 80 90 90a; do check "$family, instructions of compute_$tier" promises "$family" "$tier"; done
  check "$family, nothing contracted" nothing_contracted "$family"
done
[ $quick = 1 ] || { mkdir -p build && write_budget build/cuda_budget.txt; } # to be copied where it should be the budget
if [ -f "$out/matmul/object.o" ] && [ $quick = 0 ]; then
  for c in gcc clang; do
    if have $c; then check "linked by $c" c_program $c; else check "linked by $c" skip "no $c"; fi
  done
fi
finish
