#!/usr/bin/env bash
# examples/04_semantic_search.c from outside: with a small model of random weights its results on every instruction set and
# thread count, its index (made, reopened, changed, interrupted, damaged, on a full disk), its options, bad models and bad
# texts; then, if `make data` has fetched it, the real model against its reference implementation.
#
# usage: tests/test_search.sh     from anywhere; CC, CFLAGS and OPENMP are taken from the environment, and MLK_OBJECT: the
#                                 implementation of mlk.h as an object, to save compiling it
# Last line: N passed, N failed, N skipped. Exit code 1 when something failed.

cd "$(dirname "$0")/.." || exit 1
. tests/until.sh
CC=${CC:-cc}
CFLAGS=${CFLAGS:--O2}
OPENMP=${OPENMP--fopenmp}
WARN='-std=c99 -Wall -Wextra -Wpedantic -Wshadow -Wconversion'
export LC_ALL=C
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive} # other tests share the cores
passed=0 failed=0 skipped=0

pass() { passed=$((passed + 1)); }
fail() { failed=$((failed + 1)) && echo "FAIL test_search: $*"; }
skip() { skipped=$((skipped + 1)) && echo "skip test_search: $*"; }
finish() { echo "$passed passed, $failed failed, $skipped skipped" && [ $failed = 0 ] && exit 0 || exit 1; }

work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT

# --- build: as users do but for the library, which is compiled once; with sanitizers; the checker -----------------------
library=${MLK_OBJECT:-$work/mlk.o}
[ -n "${MLK_OBJECT:-}" ] || $CC $WARN $CFLAGS $OPENMP -I. -c tests/test_mlk.c -o "$library" || { fail 'mlk.h does not compile' && finish; }
sed '/^#define MLK_IMPLEMENTATION$/d' examples/04_semantic_search.c >"$work/search.c"
compile() { # name, flags, source
  $CC $WARN $2 -I. "$3" "$library" $OPENMP -o "$work/$1" -lm >"$work/log" 2>&1 && ! [ -s "$work/log" ] && pass && return
  fail "$3 does not compile without warnings: $CC $WARN $2: $(head -n 5 "$work/log")"
  return 1
}
compile search "$CFLAGS" "$work/search.c" || finish
compile check "$CFLAGS -Wno-unused-function -DSEARCH_EXAMPLE=\"$work/search.c\"" tests/search_check.c || finish
search=$work/search
checkers=$search
sanitize='-O1 -fsanitize=address,undefined -fno-sanitize-recover=all'
echo 'int main(void) { return 0; }' >"$work/probe.c"
if $CC $sanitize "$work/probe.c" -o "$work/probe" >/dev/null 2>&1 && "$work/probe"; then
  compile search_sanitized "$sanitize" "$work/search.c" && checkers="$search $work/search_sanitized"
else
  skip 'no address sanitizer here'
fi
small=$work/small
mkdir "$small" && "$work/check" --small "$small" || { fail 'no small model' && finish; }
small_hash=5f50dedba7a50724 # its vectors were compared with those of transformers' BertModel in f64: 3e-8 off

# --- the same vectors everywhere ----------------------------------------------------------------------------------------
for isa in scalar neon avx2 avx512; do
  "$search" --isa $isa --model "$small" --self-test --quiet >/dev/null 2>&1 || { skip "instruction set $isa: not on this machine" && continue; }
  for threads in 1 2 3; do
    "$search" --isa $isa --threads $threads --model "$small" --self-test --quiet 2>&1 | grep -q "^self-test  model [0-9a-f]*  vectors $small_hash " &&
      pass || fail "--self-test --isa $isa --threads $threads"
  done
done

# --- searches -----------------------------------------------------------------------------------------------------------
texts=$work/texts
mkdir "$texts" && cd "$texts" || exit 1
printf 'the cat sat on the mat.\n\n  \t---|{}\na dog, running!\nthe cat sat on the mat.\n' >a.txt
printf '  a cat \r\nthe dog sat on the mat \r\n\302\233[31m the end\033[0m' >b.txt
printf 'text\0more\n' >binary
: >empty
cd - >/dev/null || exit 1

prints() { # expected output, arguments; with the small model
  local expected=$1 program
  shift
  for program in $checkers; do
    (cd "$texts" && "$program" --quiet --model "$small" "$@") >"$work/out" 2>"$work/err"
    [ $? = 0 ] && printf '%b' "$expected" | cmp -s - "$work/out" && pass ||
      fail "$(basename "$program") $* prints '$(cat "$work/out" "$work/err")', not '$(printf '%b' "$expected")'"
  done
}
prints 'a.txt:1: 1.0000 the cat sat on the mat.   (and 1 more)\n' --k 1 'The CAT  sat on the mat.' a.txt
prints 'b.txt:1: 1.0000 a cat\n' --k=1 -- 'A cat' a.txt b.txt
prints 'b.txt:3: 1.0000  [31m the end [0m\n' --k 1 '[31m the end[0m' a.txt b.txt
prints '' '' a.txt
[ "$(cd "$texts" && "$search" --quiet --model "$small" --k 100 cat a.txt b.txt empty | wc -l)" = 5 ] && pass || fail '--k beyond the lines'
(cd "$texts" && printf 'A cat\n\na dog, running!\n' | "$search" --quiet --model "$small" --k 1 - a.txt b.txt) >"$work/out"
printf 'b.txt:1: 1.0000 a cat\n\n\na.txt:4: 1.0000 a dog, running!\n\n' | cmp -s - "$work/out" && pass || fail "queries from standard input: $(cat "$work/out")"
(cd "$texts" && "$search" --model "$small" --k 1 'A cat' nowhere binary . b.txt a.txt a.txt) >"$work/out" 2>"$work/err"
[ $? = 0 ] && [ "$(cat "$work/out")" = 'b.txt:1: 1.0000 a cat' ] && grep -q 'nowhere cannot be opened: No such file' "$work/err" &&
  grep -q 'binary holds zero bytes and is taken for no text: left out' "$work/err" && grep -q '\. cannot be read: Is a directory' "$work/err" &&
  grep -q '^index      6 lines of 2 files, 5 different' "$work/err" && grep -q '^encoded    5 lines in' "$work/err" && pass ||
  fail "files that cannot be searched: $(cat "$work/out" "$work/err")"
{ printf 'the '; head -c 40000 /dev/zero | tr '\0' x; printf ' cat\n'; } >"$texts/long.txt"
for program in $checkers; do
  "$program" --quiet --model "$small" the "$texts/long.txt" >"$work/out" 2>"$work/err" && [ "$(wc -c <"$work/out")" -lt 17000 ] && ! [ -s "$work/err" ] &&
    pass || fail "a long line: $(cat "$work/err")"
done

# --- the index ----------------------------------------------------------------------------------------------------------
index=$work/index
said() { grep -q -- "$1" "$work/err"; }
indexed() { # program, arguments; in the folder of the texts
  local program=$1
  shift
  (cd "$texts" && "$program" --model "$small" --index "$index" "$@") >"$work/out" 2>"$work/err"
}
for program in $checkers; do
  rm -f "$index"
  indexed "$program" --k 1 'A cat' a.txt b.txt && said '^encoded    5 lines' && cp "$index" "$work/first" && pass || fail "a new index: $(cat "$work/err")"
  indexed "$program" --k 1 'A cat' && ! said '^encoded' && said '6 lines of 2 files, 5 different' && cmp -s "$index" "$work/first" && pass ||
    fail "an index again: $(cat "$work/err")"
  [ "$(cat "$work/out")" = 'b.txt:1: 1.0000 a cat' ] && pass || fail "an index again: $(cat "$work/out")"
  indexed "$program" --threads 1 --isa scalar --fresh '' a.txt b.txt && said '^encoded    5 lines' && cmp -s "$index" "$work/first" && pass ||
    fail "--fresh: $(cat "$work/err")"
  printf '1 dog\n' >>"$texts/a.txt"
  indexed "$program" --k 1 '1 dog' && said '^encoded    1 line in' && [ "$(cat "$work/out")" = 'a.txt:6: 1.0000 1 dog' ] && pass ||
    fail "a file that has changed: $(cat "$work/out" "$work/err")"
  mv "$texts/b.txt" "$work/away"
  indexed "$program" --k 1 'A cat' && said 'b.txt: the lines that the index has of it stay' && ! said '^encoded' &&
    [ "$(cat "$work/out")" = 'b.txt:1: 1.0000 a cat' ] && pass || fail "a file that is gone: $(cat "$work/out" "$work/err")"
  mv "$work/away" "$texts/b.txt"
  indexed "$program" '' a.txt && said '^index      4 lines of 1 file, 3 different' && ! said '^encoded' && [ "$(wc -c <"$index")" -lt "$(wc -c <"$work/first")" ] &&
    pass || fail "fewer files: $(cat "$work/err")"
  sed -i '$d' "$texts/a.txt"
  indexed "$program" '' a.txt b.txt && cmp -s "$index" "$work/first" && pass || fail 'as in the beginning, but another index'
done

# What an interrupt leaves is continued, and ends in the same bytes. 400,000 lines take the small model seconds.
awk 'BEGIN { for (i = 0; i < 400000; i++) printf "the cat %x sat on %x mats, running %x\n", i, i * 7, i % 1000 }' >"$texts/many.txt"
rm -f "$index"
(cd "$texts" && exec "$search" --model "$small" --index "$index" '' many.txt) >"$work/out" 2>"$work/err" &
until_it catches_interrupt $!
sleep 0.5 # some lines, of seconds' worth
kill -INT $! && wait $!
code=$?
if [ $code = 130 ] && said 'interrupted; what is encoded is in the index' && [ -s "$index" ] && ! [ -e "$index.new" ]; then
  pass
  partial=$(wc -c <"$index")
  head -n 3000 "$texts/many.txt" >"$texts/some.txt"
  indexed "$search" '' some.txt && ! said '^encoded    3,000 lines' && [ "$(wc -c <"$index")" -lt "$partial" ] &&
    cp "$index" "$work/continued" && pass || fail "after an interrupt: $(cat "$work/out" "$work/err")"
  rm -f "$index"
  indexed "$search" '' some.txt && cmp -s "$index" "$work/continued" && pass || fail 'an interrupted index ends in other bytes'
elif [ $code = 0 ]; then
  skip 'an interrupt: this machine was faster'
else
  fail "an interrupt: exit code $code: $(cat "$work/err")"
fi
rm -f "$texts/many.txt" "$texts/some.txt"

# A full disk leaves the index before it as it was.
cp "$work/first" "$index"
printf 'a dog, running, running\n%.0s' $(seq 1 400) | awk '{ print NR, $0 }' >"$texts/more.txt"
(trap '' XFSZ && ulimit -f 8 && cd "$texts" && "$search" --model "$small" --index "$index" '' a.txt more.txt) >"$work/out" 2>"$work/err"
[ $? = 1 ] && said "index.new cannot be written: File too large; what was there before stays as it was" && cmp -s "$index" "$work/first" && pass ||
  fail "a full disk: $(cat "$work/err")"
[ -e "$index.new" ] && fail 'a full disk leaves its half-written file there' || pass
rm -f "$texts/more.txt"

# Killed at any moment, the program leaves the old index or the new one, whole.
awk 'BEGIN { for (i = 0; i < 3000; i++) printf "the cat %x sat on %x mats\n", i, i * 7 }' >"$texts/some.txt"
indexed "$search" '' some.txt && cp "$index" "$work/whole" || fail "3000 lines: $(cat "$work/err")"
kills=0
for pause in 0.02 0.05 0.1 0.15 0.2 0.3; do
  (cd "$texts" && exec "$search" --quiet --model "$small" --index "$index" --fresh '' some.txt a.txt) >"$work/out" 2>"$work/err" &
  sleep $pause
  kill -9 $! 2>/dev/null && kills=$((kills + 1))
  wait $! 2>/dev/null
  indexed "$search" '' some.txt && ! said '^encoded' && cmp -s "$index" "$work/whole" || fail "after a kill: $(cat "$work/err")"
done
[ $kills -ge 1 ] && pass || skip 'kill -9: this machine encodes faster than it can be killed'
rm -f "$index.new" "$texts/some.txt"

refuses() { # regular expression, then arguments: exit code 2, one line on standard error, nothing on standard output
  local pattern=$1 program code
  shift
  for program in $checkers; do
    (cd "$texts" && "$program" --quiet "$@") >"$work/out" 2>"$work/err"
    code=$?
    if [ $code = 2 ] && [ "$(wc -l <"$work/err")" = 1 ] && ! [ -s "$work/out" ] && grep -qE -- "$pattern" "$work/err"; then
      pass
    else
      fail "$(basename "$program") $*: exit code $code, expected 2 and one line with '$pattern', got: $(head -n 5 "$work/err")"
    fi
  done
}
bytes=$(($(wc -c <"$work/first")))
damaged() { refuses "$1; --fresh begins anew" --model "$small" --index "$index" cat; }
for length in 0 7 79; do head -c $length "$work/first" >"$index" && damaged 'is no index of this program: it does not begin with MLKIDX01'; done
for length in 80 200 $((bytes - 1)); do head -c $length "$work/first" >"$index" && damaged "is damaged: it has $length bytes and says $bytes"; done
cp "$work/first" "$index" && printf x >>"$index" && damaged "is damaged: it has $((bytes + 1)) bytes and says $bytes"
for offset in 40 100 $((bytes - 30)) $((bytes - 1)); do
  cp "$work/first" "$index" && printf '\125' | dd of="$index" bs=1 seek=$offset conv=notrunc 2>/dev/null
  damaged "is damaged: its checksum does not fit its $bytes bytes"
done
cp "$work/first" "$index" && cp -R "$small" "$work/other" && sed -i 's/1e-12/1e-5/' "$work/other/config.json"
refuses "was made with another model than that in $work/other; --fresh begins anew" --model "$work/other" --index "$index" cat
refuses 'index is not there, and no files are given to make it of' --model "$small" --index "$work/no_index" cat

# --- models that must be refused ------------------------------------------------------------------------------------------
model=$work/model
spoil() { rm -rf "$model" && cp -R "$small" "$model"; }
bad() { refuses "$1" --model "$model" cat a.txt; }
setting() { spoil && sed -i "s/$1/$2/" "$model/config.json" && bad "$3"; } # pattern, replacement, message
setting '"hidden_size": 16' '"hidden_size": 17' 'config.json: 2 heads do not divide hidden_size 17'
setting '"hidden_size": 16' '"hidden_size": 18' 'word_embeddings.weight has not the shape that the configuration asks for, 23 x 18'
setting '"hidden_size": 16' '"hidden_size": 1e9' 'config.json is damaged: what stands at byte [0-9]+ is not expected there'
setting '"num_hidden_layers": 2' '"num_hidden_layers": 3' 'model.safetensors has no tensor encoder.layer.2.attention.self.query.weight'
setting '"num_hidden_layers": 2' '"num_hidden_layers": 65' 'num_hidden_layers is 65; it must be 1 to 64'
setting '"vocab_size": 23' '"vocab_size": 24' 'vocab.txt has 23 lines; the configuration says 24'
setting '"type_vocab_size": 2, ' '' 'config.json does not tell type_vocab_size'
setting 'gelu' 'relu' "hidden_act is 'relu'; only gelu is known"
setting '"bert"' '"gpt2"' "model_type is 'gpt2'; only bert is known"
setting '}' '' 'config.json is damaged'
spoil && printf '{"do_lower_case": false}' >"$model/tokenizer_config.json" && bad 'do_lower_case is false; only uncased models are known'
spoil && printf '{"max_seq_length": 25}' >"$model/sentence_bert_config.json" && bad 'max_seq_length is 25; it must be 3 to 24'
spoil && mkdir "$model/1_Pooling" && printf '{"pooling_mode_mean_tokens":false}' >"$model/1_Pooling/config.json" && bad 'only the mean over tokens is known'
spoil && rm "$model/vocab.txt" && bad 'vocab.txt cannot be opened: No such file'
spoil && printf 'cat\n' >>"$model/vocab.txt" && bad 'vocab.txt: line 24 repeats an earlier one'
spoil && printf 'x' >>"$model/vocab.txt" && bad 'vocab.txt does not end with a line feed: it is cut'
spoil && sed -i 's/\[CLS\]/[cls]/' "$model/vocab.txt" && bad 'vocab.txt has no line \[CLS\], \[SEP\] or \[UNK\]'
file=$model/model.safetensors
spoil && head -c 5 "$small/model.safetensors" >"$file" && bad 'has 5 bytes, which is no safetensors file'
spoil && head -c 900 "$small/model.safetensors" >"$file" && bad 'has 900 bytes, but says that its header has [0-9]+'
spoil && printf x >>"$file" && bad 'no tensor, or more than one, holds byte [0-9]+ of the data'
spoil && sed -i 's/"BF16"/"BF17"/' "$file" && bad 'the header is damaged at byte [0-9]+'
spoil && printf '\377\377\377\377' | dd of="$file" bs=1 seek=$(($(wc -c <"$file") - 100)) conv=notrunc 2>/dev/null &&
  bad 'element 6 of encoder.layer.1.output.LayerNorm.bias is not a number'
spoil && printf '\377\377\377\377\377\377\377\177' | dd of="$file" bs=1 conv=notrunc 2>/dev/null && bad 'says that its header has 9223372036854775807'

# --- arguments ----------------------------------------------------------------------------------------------------------
refuses 'there is no query; --help tells the usage'
refuses 'there are no files to search; --help tells the usage' cat
refuses "--k is '0'; it must be a whole number from 1 to 10000" --k 0 cat a.txt
refuses "--threads is '1025'; it must be a whole number from 0 to 1024" --threads=1025 cat a.txt
refuses "--isa is 'mmx'; it must be best, scalar, neon, avx2 or avx512" --isa mmx cat a.txt
refuses "--isa is 'reference'" --isa reference cat a.txt
refuses "'--kk' is not an option" --kk 3 cat a.txt
refuses '--index needs a value' --index
refuses '--fresh needs the files to index' --fresh --index "$index" cat
refuses '--self-test takes no query' --self-test cat
refuses '--model is 5000 bytes long; it must have 1 to [0-9]+' --model "$(printf '%05000d' 0)" cat a.txt
refuses 'config.json cannot be opened: No such file' --model "$work/nowhere" cat a.txt
refuses 'there is not one line of text in the files given' --model "$small" cat empty
"$search" --help | grep -q '^usage: 04_semantic_search' && pass || fail '--help'
if [ -c /dev/full ]; then
  (cd "$texts" && "$search" --quiet --model "$small" cat a.txt) >/dev/full 2>"$work/err"
  [ $? = 1 ] && grep -q 'standard output: could not be written to its end' "$work/err" && pass || fail 'a full disk under standard output'
else
  skip 'no /dev/full'
fi
mkdir -p "$work/else/where" && cp "$search" "$work/else/where" && (cd "$work/else/where" && ./search cat x) >"$work/out" 2>"$work/err"
[ $? = 2 ] && said "the model is not in examples/data/cache/minilm: .make data. fetches it" && pass || fail "without the model: $(cat "$work/err")"

# --- the real model -----------------------------------------------------------------------------------------------------
real=examples/data/cache/minilm
if [ -s $real/model.safetensors ]; then
  said=$("$work/check" $real tests/search_expected.txt)
  code=$?
  echo "$said"
  passed=$((passed + $(printf '%s\n' "$said" | tail -n 1 | cut -d ' ' -f 1)))
  [ $code = 0 ] || fail 'tokens or vectors are not those of the reference implementation'
  for isa in avx2 avx512 neon; do # the scalar row takes C's fmaf without an instruction for it: ten seconds
    "$search" --isa $isa --model "$small" --self-test >/dev/null 2>&1 || continue
    "$search" --isa $isa --self-test --quiet | grep -q 'as pinned$' && pass || fail "--self-test --isa $isa with the real model"
  done
  printf '%s\n' 'The invoice must be paid within thirty days.' 'Our train leaves at half past nine.' 'Boil the pasta until it is tender.' \
    'A red panda slept in the tree.' >"$texts/real.txt"
  while read -r line query; do
    "$search" --quiet --k 1 "$query" "$texts/real.txt" | grep -q "real.txt:$line: " && pass || fail "'$query' does not find line $line"
  done <<'END'
1 when do I have to settle the bill?
2 departure time of the railway
4 wild animal taking a nap
END
else
  skip 'the real model is not here; make data fetches it'
fi
finish
