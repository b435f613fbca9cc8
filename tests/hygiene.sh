#!/usr/bin/env bash
# hygiene.sh - is mlk.h a good header? Compiles it in every language mode and through every awkward include, looks at the
# objects and at the text, that of mlk_cuda.cuh as well. Each line of tests/README.md, "hygiene", is a group of checks here.
# usage: tests/hygiene.sh [--cost]      --cost prints only compile time and object size of the implementation
# MLK_HEADER: the header to look at (default: mlk.h of this tree). MLK_JOBS: checks at once (default: the processors).
# MLK_LONG=1: what make test-long adds. MLK_VERBOSE=1: a line for passed checks too. Ends with "N passed, N failed, N
# skipped"; status 1 when something failed.

set -u
cd "$(dirname "$0")/.." || exit 2
root=$PWD
case ${1:-} in
  "" | --cost) ;;
  --help | -h) sed -n '2,7s/^# //p' tests/hygiene.sh; exit 0 ;;
  *) echo "hygiene.sh: unknown argument $1; try --help" >&2; exit 2 ;;
esac
header=${MLK_HEADER:-$root/mlk.h}
cuh=$root/mlk_cuda.cuh
. tests/checks.sh

W="-Wall -Wextra -Wpedantic -Wshadow -Wconversion -Werror"
out=$mlk_work/objects
mkdir -p "$out" "$mlk_work/inc"
cp "$header" "$mlk_work/inc/mlk.h"
inc=$mlk_work/inc
source=$inc/mlk.h

c_compilers=(); for c in gcc clang; do have $c && c_compilers+=($c); done
cxx_of() { case $1 in gcc) echo g++ ;; clang) echo clang++ ;; esac; }
[ ${#c_compilers[@]} -gt 0 ] || c_compilers=("${CC:-cc}")
first=${c_compilers[0]}
openmp=""
printf '#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n' > "$out/omp.c"
$first -fopenmp "$out/omp.c" -o "$out/omp" 2>/dev/null && openmp=-fopenmp

# --- cost, for the README ---------------------------------------------------------------------------------------------
# User time, which other work on the machine does not move.
cost() {
  local TIMEFORMAT=%U seconds o=$out/cost_$1.o
  seconds=$({ time "$1" -O2 $openmp -I"$inc" -c tests/hygiene_impl.c -o "$o" 2>"$o.said"; } 2>&1)
  [ -f "$o" ] || { cat "$o.said"; return 1; }
  echo "$1 -O2 $openmp: compiles in $seconds s, code and constants" \
    "$(size -A "$o" | awk '$1 ~ /^\.(text|rodata|data)/ {n += $2} END {print int((n + 512) / 1024)}') KiB"
}
if [ "${1:-}" = --cost ]; then
  for c in "${c_compilers[@]}"; do cost "$c"; done
  exit
fi

# --- language modes ---------------------------------------------------------------------------------------------------
quiet() { # a compiler that says nothing and gives 0
  local said
  said=$("$@" 2>&1) || { echo "$*"; echo "$said"; return 1; }
  [ -z "$said" ] || { echo "$*"; echo "$said"; return 1; }
}
scalar_only="-DMLK_NO_AVX2 -DMLK_NO_AVX512 -DMLK_NO_NEON" # for what does not depend on the rows: a third of the work
modes() { # modes COMPILER STANDARD LANGUAGE: a whole object in C99, else the parser's view
  local how=-fsyntax-only
  [ $2 != c99 ] || how="-O0 $openmp -fno-pie -c -o $out/impl_$1.o"
  check "implementation, $1 -std=$2" quiet "$1" -std="$2" -x "$3" $W $how -I"$inc" tests/hygiene_impl.c
  check "declarations, $1 -std=$2" quiet "$1" -std="$2" -x "$3" $W -O2 -I"$inc" -c tests/hygiene_use.c -o "$out/use_$1_$2.o"
}
for c in "${c_compilers[@]}"; do
  for std in c99 c11; do modes "$c" $std c; done
  cxx=$(cxx_of "$c")
  if have "$cxx"; then
    for std in c++11 c++17 c++20; do modes "$cxx" $std c++; done
  else
    check "C++ modes of $c" skip "no $cxx"
  fi
done
for c in clang gcc; do have $c || check "modes of $c" skip "no $c"; done
# What C++ makes of the rows is in the stages cxx11_native and cxx17_plain; this object is to be linked with users in C and C++.
if have g++; then
  check "object, g++ -std=c++11" quiet g++ -std=c++11 -x c++ $W -O0 $openmp $scalar_only -fno-pie -I"$inc" -c tests/hygiene_impl.c -o "$out/impl_g++.o"
fi
more="-Wundef -Wdouble-promotion -Wstrict-prototypes -Wmissing-prototypes -Wvla -Wwrite-strings -Wcast-align"
case $(uname -m) in x86_64) rows="MLK_NO_AVX2 MLK_NO_AVX512" ;; *) rows=MLK_NO_NEON ;; esac
for c in "${c_compilers[@]}"; do
  for without in $rows; do
    check "implementation, $c $without" quiet "$c" -std=c99 $W -D$without -I"$inc" -fsyntax-only tests/hygiene_impl.c
  done
  check "more warnings, $c" quiet "$c" -std=c99 $W $more $openmp -I"$inc" -fsyntax-only tests/hygiene_impl.c
done
# (the stage neon compiles the object for AArch64)
for cross in aarch64-linux-gnu-g++ x86_64-w64-mingw32-gcc; do
  case $cross in *++) std=c++17 lang=c++ how=-fsyntax-only ;; *) std=c99 lang=c how="-O0 -c -o $out/$cross.o" ;; esac
  if have $cross; then
    check "implementation, $cross" quiet $cross -std=$std -x $lang $W $how -I"$inc" tests/hygiene_impl.c
    case $cross in aarch64*) check "implementation, $cross MLK_NO_NEON" quiet $cross -std=$std -x $lang $W -DMLK_NO_NEON $how -I"$inc" tests/hygiene_impl.c ;; esac
  else
    check "implementation, $cross" skip "no $cross"
  fi
done

# --- programs: they must run and name the same instruction sets ---------------------------------------------------------
wait # for the objects of the language modes
run_use() { "$1" >"$1.txt" || { echo "$1 gives $?"; return 1; }; }
plain=$out/plain # all rows, two files
$first $openmp -no-pie "$out/impl_$first.o" "$out/use_${first}_c99.o" -o "$plain" -lm && run_use "$plain" || echo "unusable" >"$plain.txt"
prints_the_same() { # prints_the_same PROGRAM [INSTRUCTION SETS TO LEAVE OUT OF THE COMPARISON, A PATTERN]
  run_use "$1" || return 1
  diff <(sed -E "s/${2:-nothing}//g; s/ +\$//" "$plain.txt") "$1.txt"
}
builds() { # builds COMPILER FLAGS...: hygiene_use in one file, run
  local program=$out/one_$BASHPID
  "$@" -I"$inc" -DHYGIENE_ONE_FILE tests/hygiene_use.c -o "$program" -lm && prints_the_same "$program" "${LEFT_OUT:-}"
}
two_files() { # two_files COMPILER_OF_IMPLEMENTATION COMPILER_OF_USER LINKER: the objects of the language modes
  local program=$out/two_$BASHPID use
  for use in "$out/use_$2"_c99.o "$out/use_$2"_c++11.o; do [ ! -f "$use" ] || break; done
  "$3" $openmp -no-pie "$out/impl_$1.o" "$use" -o "$program" -lm && prints_the_same "$program" "${LEFT_OUT:-}"
}
static_twice() { # static_twice LANGUAGE COMPILER [COMPILER OF THE SECOND FILE]: who warns of unused functions, each sees one
  local o=$out/static_$BASHPID second=${3:-$2}
  "$2" $W -x "$1" -O0 $scalar_only -I"$inc" -c tests/hygiene_static.c -o "${o}_a.o" &&
    "$second" $W -x "$1" -O0 $scalar_only -I"$inc" -DHYGIENE_SECOND -c tests/hygiene_static.c -o "${o}_b.o" &&
    "$2" "${o}_a.o" "${o}_b.o" -o "$o" -lm && [ "$("$o")" = "6 6" ] || return 1
  ! nm -g --defined-only "${o}_a.o" "${o}_b.o" | awk 'NF == 3 {print $3}' | grep -v -E '^(main|_?_?Z?[0-9]*hygiene_static_bv?|DW\.ref\..*)$' ||
    { echo "MLK_STATIC leaves external symbols"; return 1; }
}
check "MLK_STATIC twice, ${c_compilers[*]}" static_twice c "${c_compilers[@]}"
for c in "${c_compilers[@]}"; do
  check "two files, $c" two_files "$c" "$c" "$c"
  LEFT_OUT=' (avx2|avx512|neon)' check "runs, $c, MLK_NO_OPENMP and no row but scalar" \
    builds "$c" -O0 $W $openmp -DMLK_NO_OPENMP $scalar_only
done
# The optimisers of the suite, clang and cxx11_native (both with -flto) do their stages; what those leave out:
preprocessed() { # preprocessed COMPILER FLAGS...: first, as ccache and distcc compile; without the widest row, to see that MLK_NO_AVX512 works
  local o=$out/pre_$BASHPID
  "$@" -DMLK_NO_AVX512 -I"$inc" -DHYGIENE_ONE_FILE -E tests/hygiene_use.c -o "$o.i" && "$@" -c "$o.i" -o "$o.o" &&
    "$@" "$o.o" -o "$o" -lm && prints_the_same "$o" ' avx512'
}
for c in "${c_compilers[@]}"; do
  check "preprocessed first, GNU C, hidden, MLK_NO_AVX512, $c" preprocessed "$c" -O0 -std=gnu11 -fvisibility=hidden -fno-math-errno -fno-trapping-math
done
[ "${MLK_LONG:-0}" = 0 ] || for c in "${c_compilers[@]}"; do check "runs, $c -Os" builds "$c" -Os; done
if have g++; then
  LEFT_OUT=' (avx2|avx512|neon)' check "two files, implementation in C++, user in C++" two_files g++ g++ g++
  LEFT_OUT=' (avx2|avx512|neon)' check "two files, implementation in C++, user in C" two_files g++ "$first" g++
  check "two files, implementation in C, user in C++" two_files "$first" g++ g++
  check "MLK_STATIC twice, C++" static_twice c++ g++ $(have clang++ && echo clang++)
fi

# --- awkward includes: see the cases in which a header that includes __FILE__ fails ---------------------------------------
tree=$mlk_work/tree
mkdir -p "$tree/third_party" "$tree/src/deep" "$tree/a folder" "$tree/links"
cp "$header" "$tree/third_party/mlk.h"
cp "$header" "$tree/a folder/mlk.h"
ln -s ../third_party/mlk.h "$tree/links/mlk.h"
direct() { # direct FILE INCLUDE: a unit that includes the header itself, so that the path is relative to the unit
  { printf '#define MLK_IMPLEMENTATION\n#include %s\n' "$2"; } >"$tree/$1"
}
# What comes out of the preprocessor is the plain include's, token for token: then it is the program that runs above.
tokens() { "$@" -E -P | tr -s '[:space:]' '\n' | sed '/^$/d'; }
for c in "${c_compilers[@]}"; do tokens "$c" -x c -I"$inc" -DMLK_IMPLEMENTATION "$inc/mlk.h" >"$out/tokens_$c"; done
same_tokens() { # same_tokens FOLDER COMPILER ARGUMENTS...
  local file=$out/tokens_$BASHPID folder=$1
  shift
  grep -q mlki_ "$out/tokens_$1" || { echo "no plain include to compare with"; return 1; }
  (cd "$folder" && tokens "$@") >"$file" || return 1
  cmp "$out/tokens_$1" "$file"
}
awkward() { # awkward FOLDER UNIT COMPILER FLAGS...
  local folder=$tree/$1 file=$2 compiler=$3
  shift 3
  same_tokens "$folder" "$compiler" "$@" "$file"
}
direct root.c '"third_party/mlk.h"'
direct src/up.c '"../third_party/mlk.h"'
direct src/deep/up.c '"../../third_party/mlk.h"'
direct plain.c '"mlk.h"'
direct angle.c '<mlk.h>'
direct space.c '"a folder/mlk.h"'
direct link.c '"links/mlk.h"'
direct absolute.c "\"$tree/third_party/mlk.h\""
for c in "${c_compilers[@]}"; do
  check "include third_party/mlk.h from the root, $c" awkward . root.c "$c"
  check "include ../third_party/mlk.h from the parent folder, $c" awkward . src/up.c "$c"
  check "include ../third_party/mlk.h from its own folder, $c" awkward src up.c "$c"
  check "include ../../third_party/mlk.h from elsewhere, $c" awkward third_party ../src/deep/up.c "$c"
  check "include by a relative -I, $c" awkward . plain.c "$c" -Ithird_party
  check "include by a relative -I from another folder, $c" awkward src/deep ../../plain.c "$c" -I../../third_party
  check "include by -I., $c" awkward third_party ../plain.c "$c" -I.
  check "include by an absolute -I, $c" awkward . plain.c "$c" -I"$tree/third_party"
  check "include in angle brackets, $c" awkward . angle.c "$c" -Ithird_party
  check "include as a system header, $c" awkward . angle.c "$c" -isystem third_party
  check "include by an absolute name, $c" awkward . absolute.c "$c"
  check "include from a folder with a space, $c" awkward . space.c "$c"
  check "include through a link, $c" awkward . link.c "$c"
  check "-fmacro-prefix-map, $c" awkward . absolute.c "$c" -fmacro-prefix-map="$tree"=/nowhere
  check "-ffile-prefix-map and an absolute -I, $c" awkward . plain.c "$c" -I"$tree/third_party" -ffile-prefix-map="$tree"=.
  check "the header itself as the file, $c" awkward third_party mlk.h "$c" -x c -DMLK_IMPLEMENTATION
done
renamed() { # renamed COMPILER: a copy under another name, next to it a different mlk.h
  local d=$out/renamed_$BASHPID
  mkdir "$d" && cp "$header" "$d/vector_kernels.h" && echo '#error "the wrong file was included"' >"$d/mlk.h"
  printf '#define MLK_FILENAME "vector_kernels.h"\n#define MLK_IMPLEMENTATION\n#include "vector_kernels.h"\n' >"$d/unit.c"
  same_tokens "$d" "$1" unit.c
}
renamed_in_silence() { # without MLK_FILENAME: works, or stops with a sentence that names the macro; never something else
  local d=$out/silent_$BASHPID
  mkdir "$d" && cp "$header" "$d/vector_kernels.h"
  printf '#define MLK_IMPLEMENTATION\n#include "vector_kernels.h"\n' >"$d/unit.c"
  if "$1" -fsyntax-only "$d/unit.c" 2>"$d/said"; then same_tokens "$d" "$1" unit.c
  else grep -E 'error.*MLK_FILENAME' "$d/said" || { head -n 20 "$d/said"; return 1; }; fi
}
for c in "${c_compilers[@]}"; do
  check "renamed copy with MLK_FILENAME, $c" renamed "$c"
  check "renamed copy without MLK_FILENAME, $c" renamed_in_silence "$c"
done

# --- -ffast-math --------------------------------------------------------------------------------------------------------
refuses_fast_math() {
  local said
  said=$("$1" "$2" -I"$inc" -DHYGIENE_ONE_FILE -c tests/hygiene_use.c -o "$out/fast_$BASHPID.o" 2>&1) && { echo "compiled"; return 1; }
  echo "$said" | grep -E 'error.*MLK_ALLOW_FAST_MATH' || { echo "$said" | head; return 1; }
  "$1" "$2" -I"$inc" -c tests/hygiene_use.c -o "$out/fast_$BASHPID.o" || { echo "declarations refused as well"; return 1; }
  [ "$2" != -ffast-math ] || "$1" "$2" -I"$inc" -DMLK_ALLOW_FAST_MATH -DHYGIENE_ONE_FILE -fsyntax-only tests/hygiene_use.c # -Ofast defines the same
}
for c in "${c_compilers[@]}"; do
  check "-ffast-math is refused, $c" refuses_fast_math "$c" -ffast-math
  check "-Ofast is refused, $c" refuses_fast_math "$c" -Ofast
done

# --- objects ------------------------------------------------------------------------------------------------------------
external_names() {
  local o=$out/impl_$1.o found
  [ -f "$o" ] || return 1
  found=$(nm -g --defined-only "$o" | awk 'NF {print $NF}' | grep -v '^mlk_[a-z]')
  [ -z "$found" ] || { echo "external names without mlk_: $found"; return 1; }
  # every public function is there, and nothing that is not in >>api
  diff <(nm -g --defined-only "$o" | awk '{print $NF}' | sort) \
       <(sed -n 's/^MLK_API .*[ *]\(mlk_[a-z0-9_]*\)(.*/\1/p' "$inc/mlk.h" | sort -u) || { echo "not the functions of >>api"; return 1; }
}
no_writable_state() {
  local o=$out/impl_$1.o
  [ -f "$o" ] || return 1
  size -A "$o" | awk '$1 ~ /^\.(data|bss|tdata|tbss|init_array|fini_array|ctors|dtors|preinit_array)/ && $1 !~ /^\.data\.rel\.ro/ && $2 > 0 \
    {print "section " $1 " holds " $2 " bytes"; bad = 1} END {exit bad}' || { nm -S "$o" | grep -E ' [bBdDsSC] '; return 1; }
}
guest_manners() { # no output, no exit, no handlers, no rounding mode: none of these is even referenced
  local o=$out/impl_$1.o found
  [ -f "$o" ] || return 1
  found=$(nm -u "$o" | awk '{print $NF}' | grep -E -x '_?(exit|_exit|abort|__assert_fail|printf|puts|putchar|fprintf|__printf_chk|__fprintf_chk|vprintf|fopen|fwrite|stdout|stderr|signal|sigaction|raise|longjmp|setlocale|fesetround|fesetenv|feholdexcept|pthread_create|atexit|__cxa_atexit|getenv|system|rand)')
  [ -z "$found" ] || { echo "references $found"; return 1; }
}
leaked_macros() { # leaked_macros COMPILER LANGUAGE [-DMLK_IMPLEMENTATION]
  local base=$out/base_$BASHPID.c
  { if [ -n "${3:-}" ]; then grep -E '^ *# *include <' "$inc/mlk.h" | sed -E 's/.*include (<[^>]*>).*/#if __has_include(\1)\n#include \1\n#endif/'
    else printf '#include <stddef.h>\n#include <stdint.h>\n'; fi; } >"$base"
  sed -i -E '/arm_neon|windows.h|intrin.h>/{/immintrin/!d}' "$base"
  diff <("$1" -x "$2" -dM -E "$base" 2>/dev/null | sort) <("$1" -x "$2" ${3:-} -dM -E "$inc/mlk.h" | sort) |
    sed -n 's/^> #define \([A-Za-z_0-9]*\).*/\1/p' | grep -v -E '^(MLK_|MLKI_|mlk_|mlki_)' | sed 's/^/leaks the macro /' | tee "$base.txt"
  ! [ -s "$base.txt" ]
}
for c in "${c_compilers[@]}"; do
  if have nm && have size; then
    check "only the functions of >>api are external, $c" external_names "$c"
    check "no writable state, no constructors, $c" no_writable_state "$c"
    check "no output, exit, handlers or rounding modes, $c" guest_manners "$c"
  else
    check "symbol table, $c" skip "no nm or size"
  fi
  check "macros of the declarations, $c" leaked_macros "$c" c
  check "macros of the implementation, $c" leaked_macros "$c" c -DMLK_IMPLEMENTATION
  have "$(cxx_of "$c")" && check "macros of the declarations in C++, $c" leaked_macros "$(cxx_of "$c")" c++
done
declarations_are_light() { # two small headers of C, nothing else
  ! $first -H -fsyntax-only -x c "$inc/mlk.h" 2>&1 | grep '^\. ' | grep -v -E '/std(def|int)\.h$'
}
check "the declarations include only stddef.h and stdint.h" declarations_are_light

# --- programs that nothing else compiles, once -----------------------------------------------------------------------------
bench_starts() {
  quiet "$first" -std=c99 $W -O0 $scalar_only $openmp -pthread -I. bench/mlk_bench.c -o "$out/mlk_bench" -ldl -lm && "$out/mlk_bench" --help >/dev/null
}
if [ "$(uname -s)" = Linux ]; then
  check "bench compiles without warnings and starts" bench_starts
  cxx=$(cxx_of "$first") # by itself; run.sh adds MPI and gloo where they are
  if have "$cxx"; then check "bench/processes compiles without warnings" quiet "$cxx" -std=c++11 $W -fsyntax-only -I. bench/processes/average.cc; fi
fi

# --- text ---------------------------------------------------------------------------------------------------------------
# of mlk.h, or of the file that $source names
tags_agree() {
  diff <(awk '/CONTENTS/ {on = 1; next} on && /^(\*\/)?$/ {exit} on && />>/ {sub(/.*>>/, ""); sub(/ .*/, ""); print}' "$source") \
       <(sed -n 's,^/\* >>\([a-z_]*\).*,\1,p' "$source") || { echo "< contents, > sections"; return 1; }
}
tags_are_known() { # every >>tag mentioned anywhere is a section
  local tags found=$out/tags_$BASHPID.txt
  tags=$(sed -n 's,^/\* >>\([a-z_]*\).*,\1,p' "$inc/mlk.h" "$cuh")
  grep -o '>>[a-z_]\{3,\}' "$source" | sed 's/>>//' | sort -u | grep -v -x -F "$tags" | sed 's/^/no section: >>/' | tee "$found"
  ! [ -s "$found" ]
}
code_by_section() { # the header without comments, each line as "section:number: text"
  awk '{ text = $0
         if (match(text, /^\/\* >>[a-z_]+/)) section = substr(text, 6, RLENGTH - 5)
         kept = ""
         while (text != "") {
           if (inside) { i = index(text, "*/"); if (!i) break; text = substr(text, i + 2); inside = 0 }
           else { i = index(text, "/*"); j = index(text, "//")
                  if (j && (!i || j < i) && substr(text, j - 1, 1) != ":") { kept = kept substr(text, 1, j - 1); break }
                  if (!i) { kept = kept text; break }
                  kept = kept substr(text, 1, i - 1); text = substr(text, i + 2); inside = 1 } }
         if (kept ~ /[^ ]/) print section ":" NR ": " kept }' "$source"
}
only_in() { # only_in PATTERN SECTIONS: what matches stands in these sections
  code_by_section | grep -E "$1" | grep -v -E "^($2):" | head -n 20 | tee "$out/only_$BASHPID.txt"
  ! [ -s "$out/only_$BASHPID.txt" ]
}
machine='__GNUC__|__clang__|_MSC_VER|__INTEL|__MINGW|__AVX|__SSE|__FMA__|__F16C__|__x86_64__|__i386__|_M_X64|_M_IX86|_M_ARM|__aarch64__|__arm__|__ARM_|_WIN32|__APPLE__|__linux__|__unix__|__has_[a-z]+|__CUDACC__|__NVCC__|__FAST_MATH__|__FINITE_MATH'
operators_are_tested() { # each in the table that the tests of what every operator must do walk over
  diff <(sed -n 's/^MLK_API mlk_status mlk_\([a-z0-9_]*\)_plan(.*[ ,]mlk_plan \*plan);$/\1/p' "$inc/mlk.h" | sort) \
       <(sed -n '/^#define OPERATORS(X)/,/[^\\]$/s/^  X(\([a-z0-9_]*\),.*/\1/p' tests/operators.h | sort) ||
    { echo "< operators of >>api, > OPERATORS of tests/operators.h"; return 1; }
}
check "every operator is in the table of tests/operators.h" operators_are_tested
check "the contents list and the sections agree" tags_agree
check "every tag mentioned is a section" tags_are_known
check "compiler and machine macros stand in five sections" only_in "$machine" 'config|platform|cpu|vec|isa'
check "intrinsics stand in >>vec" only_in '\b_mm(256|512)?_[a-z0-9_]+ *\(|\bv[a-z]+q?_(n_)?(f32|u32|s32|s64|u64)\b|__m(128|256|512)' 'platform|cpu|vec'
check "OpenMP stands in >>threads" only_in '# *pragma omp|_OPENMP|\bomp_[a-z]' 'platform|threads'
check "no dead code in mlk.h" only_in '# *if +[01]( |$)' 'nowhere'
no_notes() { ! grep -n -E '\b(TODO|FIXME|XXX|HACK)\b' "$source"; }
check "no notes to self" no_notes
no_tabs() { ! grep -n -P '\t| +$|\r' "$source"; }
check "no tabs, no blanks at line ends" no_tabs

# mlk_cuda.cuh; tests/cuda_gates.sh looks at what nvcc makes of it
includes_little() { # mlk.h, the CUDA run-time, the C library; in the tests the emulator
  code_by_section | sed -n -E 's/^[^#]*# *include *//p' | grep -v -x -E 'MLK_CUDA_EMULATOR|MLK_FILENAME|<(cuda|cuda_runtime|math|stdarg|process|stddef|stdint|stdio|stdlib|string|unistd)\.h>' |
    sed 's/^/includes /' | tee "$out/includes.txt"
  ! [ -s "$out/includes.txt" ]
}
named_mlk() { # macros that stay MLK_ or MLKI_; what is defined at the margin mlki_
  code_by_section | awk '
    { sub(/^[a-z_]*:[0-9]*: /, "") }
    /^ *# *define / { sub(/^ *# *define +/, ""); sub(/[^A-Za-z_0-9].*/, ""); if ($0 !~ /^MLKI?_/) stays[$0] = 1; next }
    /^ *# *undef / { sub(/^ *# *undef +/, ""); sub(/[^A-Za-z_0-9].*/, ""); delete stays[$0] }
    /^(template|static|inline|extern|constexpr|MLKI_CUDA_[A-Z]+) / {
      while (match($0, /[A-Za-z_0-9]+\(/)) {
        name = substr($0, RSTART, RLENGTH - 1); $0 = substr($0, RSTART + RLENGTH)
        if (name !~ /^(mlki?_|__|MLKI_|static_assert|defined)/) print name
        if (name ~ /^mlki?_/ || name !~ /^__/) break } }
    /^(typedef )?(struct|union|enum|class) [A-Za-z_]/ {
      sub(/^typedef /, ""); sub(/^[a-z]+ /, ""); sub(/[^A-Za-z_0-9].*/, ""); if ($0 !~ /^mlki_/) print }
    END { for (name in stays) print name }' | sed 's/^/not named as ours: /' | tee "$out/named.txt"
  ! [ -s "$out/named.txt" ]
}
same_licence() { diff <(sed -n '/^   MLK is available/,$p' "$inc/mlk.h") <(sed -n '/^   MLK is available/,$p' "$cuh"); }
same_version() {
  [ "$(sed -n '1s/.* - \([0-9.]*\) - .*/\1/p' "$inc/mlk.h")" = "$(sed -n '1s/.* - \([0-9.]*\) - .*/\1/p' "$cuh")" ] ||
    { head -n 1 "$inc/mlk.h" "$cuh"; return 1; }
}
source=$cuh
check "mlk_cuda.cuh: the contents list and the sections agree" tags_agree
check "mlk_cuda.cuh: every tag mentioned is a section" tags_are_known
check "mlk_cuda.cuh: no dead code" only_in '# *if +[01]( |$)' nowhere
check "mlk_cuda.cuh: no notes to self" no_notes
check "mlk_cuda.cuh: no tabs, no blanks at line ends" no_tabs
check "mlk_cuda.cuh: includes" includes_little
check "mlk_cuda.cuh: names" named_mlk
check "mlk_cuda.cuh: licence" same_licence
check "mlk_cuda.cuh: version" same_version
check "mlk_cuda.cuh: PTX stands in >>cuda_device" only_in '\basm\b' cuda_device
check "mlk_cuda.cuh: the compiler's macros stand in >>cuda_platform" only_in '__CUDA_ARCH__|__CUDACC__|__NVCC__' cuda_platform
check "mlk_cuda.cuh: the emulator is known where instructions, launches and shared memory are" \
  only_in 'MLK_CUDA_EMULATOR|mlkt_' 'cuda_platform|cuda_device|cuda_runtime'
check "mlk_cuda.cuh: memory is taken and waited for in >>cuda_backend" \
  only_in 'cudaMalloc|cudaHostAlloc|cudaFree|cudaMemcpy|cuda[A-Za-z]*Synchronize|cudaLaunchKernel' 'cuda_backend|cuda_runtime'
check "mlk_cuda.cuh: one way to launch" only_in '<<<' nowhere
check "mlk_cuda.cuh: rounding is spelled in >>cuda_device and >>cuda_math" \
  only_in '__f(maf|mul|add|sub|div|sqrt)_r[nzud]\b' 'cuda_device|cuda_math|cuda_runtime'
check "mlk_cuda.cuh: no function of CUDA's mathematics in place of mlk.h's" \
  only_in '\b(__expf|__exp10f|__logf|__log2f|__powf|__fdividef|__tanhf|__sinf|__cosf|expf|exp2f|logf|log2f|powf|tanhf|erff|fmaf|sqrtf|rsqrtf|sinf|cosf) *\(' nowhere
check "mlk_cuda.cuh: no output, no exit" only_in '\b(printf|puts|fprintf|exit|abort|assert|__trap) *\(' nowhere
check "mlk_cuda.cuh: no libraries on top of the run-time" only_in '\b(cub|thrust|cute|cooperative_groups|nvcuda|cutlass)::|__half\b|__nv_bfloat16' nowhere
source=$inc/mlk.h
formatted() { clang-format --dry-run --Werror "$@"; }
clang_format_14() { have clang-format && clang-format --version | grep -q 'version 14\.'; }
files=()
for file in mlk.h mlk_cuda.cuh tests/*.[ch] tests/*.cc tests/*.cu examples/*.[ch] examples/*.cu bench/*.[ch] bench/*.cu bench/*.cuh bench/processes/*.cc; do
  [ ! -f "$file" ] || files+=("$file")
done
narrow() { ! LC_ALL=C.UTF-8 grep -H -n -E '^.{121,}' "$@"; } # clang-format leaves comments as they are
check "no line is longer than 120 columns" narrow "${files[@]}"
for file in "${files[@]}"; do
  if clang_format_14; then check "format of $file" formatted "$file"; else check "format of $file" skip "no clang-format 14"; fi
done

# --- cmake: a project that finds the installed package, and one that takes the tree along ---------------------------------
consumer() { # consumer WAY FLAGS...
  local b=$out/cmake_$1 way=$1
  shift
  mkdir -p "$b"
  if [ "$way" = installed ]; then
    cmake -S "$root" -B "$b/mlk" -DCMAKE_INSTALL_PREFIX="$b/prefix" -DMLK_BUILD_TESTS=OFF -DMLK_BUILD_EXAMPLES=OFF &&
      cmake --build "$b/mlk" --target install || return 1
    test -f "$b/prefix/include/mlk.h" || return 1
  fi
  cmake -S tests/hygiene_cmake -B "$b/build" -DWAY="$way" -DCMAKE_BUILD_TYPE=None -DCMAKE_PREFIX_PATH="$b/prefix" "$@" && cmake --build "$b/build" &&
    { [ "$way" != installed ] || "$b/build/user_cxx" >/dev/null; } && prints_the_same "$b/build/user" "${LEFT_OUT:-}"
}
if have cmake; then
  LEFT_OUT=' (avx2|avx512|neon)'
  quick=() # clang takes half the time without optimisation, and what is asked here is what CMake does
  ! have clang || ! have clang++ || quick=(-DCMAKE_C_COMPILER=clang -DCMAKE_CXX_COMPILER=clang++)
  for way in installed subdirectory; do
    check "cmake, $way" consumer $way ${quick[@]+"${quick[@]}"} -DCMAKE_C_FLAGS="$scalar_only" -DCMAKE_CXX_FLAGS="$scalar_only"
  done
else
  check "cmake" skip "no cmake"
fi

finish
