#!/usr/bin/env bash
# snippets.sh - the code that the documents show compiles, and programs among it run.
#
# Blocks marked c are compiled as C99 and as C++11, warnings are errors.
# Looked at: README.md, docs/*.md, examples/README.md, tests/README.md, and the banner of mlk.h.
# A fenced block marked c or cpp
#   with a main()      is a program: compiled, run, must give 0; a block marked "output" right after it is what it prints
#   with an #include   is a file: compiled
#   else               is the inside of a function that returns int, with mlk.h, stdio.h and a context "ctx" around it
# A comment on the line before the block helps it:
#   <!-- given: float A[6]; -->     declarations the reader is taken to have (at file scope)
#   <!-- file -->                   the block is a file, not the inside of a function
#   <!-- C only -->                 the block uses what C++11 does not have, like compound literals
#   <!-- sketch: why -->            not compiled

set -u
cd "$(dirname "$0")/.." || exit 2
root=$PWD
. tests/checks.sh

cc=${CC:-cc}
quick=$cc # of two compilers clang takes half the time without optimisation
printf 'int main(void) { return 0; }\n' >"$mlk_work/probe.c"
! clang ${OPENMP:-} "$mlk_work/probe.c" -o "$mlk_work/probe" 2>/dev/null || quick=clang
small="-O0 -DMLK_NO_AVX2 -DMLK_NO_AVX512" # the text is looked at here: any row prints the same
blocks=$mlk_work/blocks
mkdir "$blocks"

split() { # split FILE: every c or cpp block as blocks/FILE_LINE.c or .cpp, with .given, .kind and .output beside it
  awk -v prefix="$blocks/$(echo "$1" | tr '/.' '__')_" '
    /^<!-- given:/  { given = $0; sub(/^<!-- given: */, "", given); sub(/ *-->.*/, "", given); next }
    /^<!-- file -->/ { kind = "file"; next }
    /^<!-- C only -->/ { kind = "C only"; next }
    /^<!-- sketch/  { kind = "sketch"; next }
    /^ *```/ && !inside {
      inside = 1; mark = $0; sub(/^ *```/, "", mark)
      if (mark == "c" || mark == "cpp") { name = prefix NR "." mark; print given > (name ".given"); print kind > (name ".kind"); printf "" > name; last = name }
      else if (mark == "output" && last != "") { name = last ".output"; printf "" > name }
      else name = ""
      given = ""; kind = ""; next }
    /^ *```/ && inside { inside = 0; if (name !~ /output$/) last = name; next }
    inside && name != "" { print > name }
    !inside && /[^ ]/ { given = ""; kind = "" }' "$1"
}

compile_block() { # compile_block BLOCK LANGUAGE
  local block=$1 language=$2 source=$1 kind given compiler result=$1.$2
  kind=$(cat "$block.kind") given=$(cat "$block.given")
  local warnings="-Wall -Wextra -Wpedantic -Werror"
  case $language in
    c99) compiler="$cc -std=c99" ;;
    # mlk_X_desc desc = {0} is what C has; g++ would have {} there
    c++*) have g++ || skip "no g++"; compiler="g++ -x c++ -std=$language -Wno-missing-field-initializers" ;;
  esac
  if ! grep -q '#include' "$block" && [ "$kind" != file ] && ! grep -q 'main(' "$block"; then
    source=$result.whole.${block##*.}
    { printf '#include "mlk.h"\n#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n%s\n' "$given"
      printf 'int snippet(mlk_context *given_ctx);\nint snippet(mlk_context *given_ctx) {\n'
      grep -q 'mlk_context \*ctx' "$block" || printf 'mlk_context *ctx = given_ctx;\n'
      printf '(void)given_ctx;\n'
      cat "$block"
      printf 'return 0;\n}\n'; } >"$source"
  fi
  if grep -q 'main(' "$source"; then
    $compiler $warnings $small ${OPENMP:-} -I"$root" "$source" -o "$result.program" -lm || return 1
    (cd "$blocks" && "$result.program" >"$result.printed") || { echo "gives $?"; return 1; }
    if [ -f "$block.output" ]; then diff "$block.output" "$result.printed" || { echo "< what the document says, > what is printed"; return 1; }; fi
  else
    $compiler $warnings -Wno-unused-variable -Wno-unused-but-set-variable -I"$root" -c "$source" -o "$result.o"
  fi
}

for document in README.md docs/*.md examples/README.md tests/README.md CHANGELOG.md; do
  [ ! -f "$document" ] || split "$document"
done
for block in "$blocks"/*.c "$blocks"/*.cpp; do
  [ -f "$block.kind" ] || continue
  name=$(basename "$block")
  if [ "$(cat "$block.kind")" = sketch ]; then continue; fi
  case $name in
    *.cpp) check "snippet ${name%.*}" compile_block "$block" c++20 ;;
    *) check "snippet ${name%.*} as C99" compile_block "$block" c99
       [ "$(cat "$block.kind")" = "C only" ] || check "snippet ${name%.*} as C++11" compile_block "$block" c++11 ;;
  esac
done

# The banner of the header: the lines from "Then:" to "Build:", on a real 2 x 3 times 3 x 2 product.
banner() { # banner COMPILER...
  local file=$blocks/banner_${1//+/x}.c
  { printf '#define MLK_IMPLEMENTATION\n#include "mlk.h"\n#include <stdio.h>\n'
    printf 'static const float A[6] = {1, 2, 3, 4, 5, 6}, B[6] = {1, 0, 0, 1, 1, 1};\nstatic float D[4];\nint main(void) {\nconst int m = 2, n = 2, k = 3;\n'
    sed -n '/^ *Then:/,/^ *Build:/p' mlk.h | sed '1d;$d' | sed '/^$/d'
    printf 'return D[0] == 4 && D[1] == 5 && D[2] == 10 && D[3] == 11 ? 0 : 2;\n}\n'; } >"$file"
  "$@" -Wall -Wextra -Werror $small -I. "$file" -o "$file.program" -lm && "$file.program" || { cat "$file"; return 1; }
}
check "the banner of mlk.h as C99" banner $cc -std=c99
! have g++ || check "the banner of mlk.h as C++11" banner g++ -x c++ -std=c++11 -Wno-missing-field-initializers

# One command builds an example: the one its head shows.
command_of_head() {
  local command
  command=$(sed -n 's/^ *Build: *\(cc .*\|mpicc .*\)/\1/p' "$1" | head -n 1)
  [ -n "$command" ] || { echo "no \"Build: cc ...\" in the first lines"; return 1; }
  command=${command//build\//$blocks/}
  [ -n "${OPENMP:-}" ] || command=${command//-fopenmp/}
  command=${command//-O[23]/} # the stage demo builds with the optimiser
  case $command in mpicc*) have mpicc || skip "no mpicc" ;; esac
  OMPI_CC=$quick MPICH_CC=$quick eval "${command/#cc/$quick} $small"
}
for example in examples/*.c; do [ ! -f "$example" ] || check "the command in the head of $example" command_of_head "$example"; done

finish
