#!/usr/bin/env bash
# examples/05_chat.c from outside: what a small model with random weights says, on every instruction set, thread count and
# cut of the prompt; its options, conversations, bad files, an interrupt, a full disk; then what SmolLM2 says, if
# `make data` has fetched it.
#
# usage: tests/test_chat.sh     from anywhere; CC, CFLAGS and OPENMP are taken from the environment, and MLK_OBJECT: the
#                               implementation of mlk.h as an object, to save compiling it
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
fail() { failed=$((failed + 1)) && echo "FAIL test_chat: $*"; }
skip() { skipped=$((skipped + 1)) && echo "skip test_chat: $*"; }
finish() { echo "$passed passed, $failed failed, $skipped skipped" && [ $failed = 0 ] && exit 0 || exit 1; }

work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT

# --- build: as users do but for the library, which is compiled once; with sanitizers; the writer of the small model ---------
library=${MLK_OBJECT:-$work/mlk.o}
[ -n "${MLK_OBJECT:-}" ] || $CC $WARN $CFLAGS $OPENMP -I. -c tests/test_mlk.c -o "$library" || { fail 'mlk.h does not compile' && finish; }
sed '/^#define MLK_IMPLEMENTATION$/d' examples/05_chat.c >"$work/05_chat.c"
compile() { # name, flags, source
  $CC $WARN $2 -I. "$3" "$library" $OPENMP -o "$work/$1" -lm >"$work/log" 2>&1 && ! [ -s "$work/log" ] && pass && return
  fail "$3 does not compile without warnings: $CC $WARN $2: $(head -n 5 "$work/log")"
  return 1
}
compile chat "$CFLAGS" "$work/05_chat.c" || finish
compile small "$CFLAGS -Wno-unused-function -DFUZZ_EXAMPLE=\"$work/05_chat.c\"" tests/fuzz_gguf.c || finish
chat=$work/chat
checkers=$chat
sanitize='-O1 -fsanitize=address,undefined -fno-sanitize-recover=all'
echo 'int main(void) { return 0; }' >"$work/probe.c"
if $CC $sanitize "$work/probe.c" -o "$work/probe" >/dev/null 2>&1 && "$work/probe"; then
  compile chat_sanitized "$sanitize" "$work/05_chat.c" && checkers="$chat $work/chat_sanitized"
else
  skip 'no address sanitizer here'
fi
mkdir "$work/seeds" && "$work/small" --seeds "$work/seeds" && [ -s "$work/seeds/seed_0" ] || { fail 'no small model' && finish; }
small=$work/seeds/seed_0

# --- the same tokens everywhere -------------------------------------------------------------------------------------------
answers() { # expected, arguments: the line that --ids prints of the answer
  local expected=$1 line
  shift
  line=$("$chat" --model "$small" --ids --quiet "$@" 2>"$work/err" | tail -n 1)
  [ "$line" = "answer $expected" ] && pass || fail "$* gives '$line', not 'answer $expected' $(cat "$work/err")"
}

drawn='35 235 184 36 144 43 10 92 192 10 48 204'
greedy='59 231 235 3 3 3'
long_drawn='62 243 188 151 124 124 155 54'
words='The thing: 12 x 34 = 408, n\303\251?'
words=$(printf "$words")
for isa in scalar neon avx2 avx512 reference; do
  if ! "$chat" --model "$small" --isa $isa --quiet --prompt x --max-tokens 1 >/dev/null 2>&1; then
    skip "instruction set $isa: not on this machine"
    continue
  fi
  for threads in 1 2 3; do
    answers "$drawn" --isa $isa --threads $threads --prompt "$words" --max-tokens 12 --temperature 1
    answers "$greedy" --isa $isa --threads $threads --prompt "$words" --max-tokens 6
  done
  for batch in 1 2 7 33 1024; do answers "$drawn" --isa $isa --batch $batch --prompt "$words" --max-tokens 12 --temperature 1; done
  answers "$long_drawn" --isa $isa --prompt "$(printf 'over and over %.0s' 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16)" --max-tokens 8 --temperature 0.7 --seed 9
done
answers "$drawn" --prompt "$words" --max-tokens 12 --temperature 1 --context 4096
answers "$drawn" --prompt="$words" --max-tokens=12 --temperature=1 --context=160

# Tokens of a text: contractions, digits one by one, white space before words and numbers, letters beyond ASCII.
tokens() { # expected, text: what lies between the user's "\n" and the end of the turn
  local line
  line=$("$chat" --model "$small" --ids --quiet --system '' --max-tokens 1 --prompt "$(printf "$2")" | sed -n 's/^prompt 1 120 118 262 13 \(.*\) 2 13 1 100 .*/\1/p')
  [ "$line" = "$1" ] && pass || fail "the tokens of '$2' are '$line', not '$1'"
}
tokens '103 114 113 42 119 35 122 104 42 111 111 35 123' "don't we'll x"
tokens '35 35 100 35 35 52 13 13 35 53 54' '  a  1\n\n 23'
tokens '259 72 35 263 35 35 263' 'thE the  the'
tokens '269 100 35 229 133 175 197 163 123' '\303\251a \342\202\254\302\240x'
tokens '258 214 35 194' '\377\323 \277' # no UTF-8

# --- conversations ------------------------------------------------------------------------------------------------------
said() { # lines: what --ids prints for them on standard input, the prompts only
  printf "$1" | "$chat" --model "$small" --ids --quiet --max-tokens 2 --system '' 2>"$work/err" | grep '^prompt'
}
first='1 120 118 262 13 100 2 13 1 100 118 118 108 118 119 100 113 119 13'
[ "$(said 'a')" = "prompt $first" ] && pass || fail "a line without an end: $(said 'a') $(cat "$work/err")"
[ "$(said '\n\na\n\n')" = "prompt $first" ] && pass || fail 'empty lines'
[ "$(said 'a\na\n')" = "$(printf 'prompt %s\nprompt 3 2 13 %s' "$first" "$first")" ] && pass || fail "two turns: $(said 'a\na\n')"
[ "$(said 'a\n/new\na\n')" = "$(printf 'prompt %s\nprompt %s' "$first" "$first")" ] && pass || fail "/new: $(said 'a\n/new\na\n')"
[ "$(said '')" = '' ] && pass || fail 'nothing said'
# What a user writes is text: no token that separates turns.
"$chat" --model "$small" --ids --quiet --max-tokens 1 --system '' --prompt 'a<|im_end|>' | grep -qE '^prompt 1 120 118 262 13 100 ([0-9]{2,3} ){10}2 13 1 ' && pass ||
  fail 'a special token in a message'

"$chat" --model "$small" --prompt a --max-tokens 2 >"$work/out" 2>"$work/err"
for pattern in '^model   a small model for tests: 2 blocks of 32 and 64 features, 4 heads on 2, 270 tokens   \(.*seed_0, read in [0-9.]+ s\)$' \
  '^device  cpu, instruction set [a-z0-9]+, [0-9]+ threads?( \(OpenMP\))?$' \
  '^prefill 92 tokens, [0-9]+ tokens/s   decode 1 tokens, [0-9.]+ tokens/s   memory: weights [0-9,]+, cache 262,144, workspace [0-9,]+ bytes$'; do
  grep -qE "$pattern" "$work/err" && pass || fail "no '$pattern' in: $(cat "$work/err")"
done
[ "$(wc -l <"$work/out")" -ge 1 ] && ! grep -q "$(printf '[\001-\010\013-\037\177]')" "$work/out" && pass || fail 'the text has control characters'

# The context ends: in an answer, between turns, before the first.
"$chat" --model "$small" --ids --context 110 --prompt a --max-tokens 100 --temperature 1 >"$work/out" 2>"$work/err" &&
  [ "$(tail -n 1 "$work/out" | wc -w)" = 20 ] && grep -q '^(the context of 110 positions is full: --context)' "$work/err" && pass ||
  fail "a full context: $(tail -n 1 "$work/out" | wc -w) words, $(cat "$work/err")"
printf 'a\na\n' | "$chat" --model "$small" --ids --context 110 --max-tokens 2 >"$work/out" 2>"$work/err" &&
  grep -q 'positions is full: a new conversation begins' "$work/err" && [ "$(grep '^prompt' "$work/out" | sort -u | wc -l)" = 1 ] && pass ||
  fail "a new conversation: $(cat "$work/err")"

# --- what is refused ------------------------------------------------------------------------------------------------------
refuses() { # expected words, arguments: exit code 2 and one sentence, nothing on standard output but a prompt's tokens
  local pattern=$1 program status
  shift
  for program in $checkers; do
    "$program" "$@" >"$work/out" 2>"$work/err" </dev/null
    status=$?
    [ $status = 2 ] && grep -qE -- "^05_chat: .*$pattern" "$work/err" && [ "$(wc -l <"$work/err")" = 1 ] && pass ||
      fail "$(basename "$program") $*: exit code $status, '$(head -n 3 "$work/err")', expected '$pattern'"
  done
}

refuses "'--frobnicate' is not an option; --help lists them" --frobnicate
refuses '--model needs a value' --model
refuses "--threads is '1025'; it must be a whole number from 0 to 1024" --threads 1025
refuses "--batch is '0'; it must be a whole number from 1 to 1024" --batch=0
refuses "--temperature is 'nan'; it must be 0, or a number from 0.01 to 10" --temperature nan
refuses "--temperature is '0.001'" --temperature 0.001
refuses "--isa is 'mmx'; it must be best, scalar, neon, avx2, avx512 or reference" --isa mmx
refuses '--context is 5000; the model was made for 4096 positions' --model "$small" --context 5000 --quiet
refuses 'the message makes [0-9]+ tokens; the context has 40 \(--context\)' --model "$small" --context 40 --quiet --prompt x
refuses "$work/none cannot be opened: No such file or directory" --model "$work/none"
refuses "$work is a folder; it must be a GGUF file" --model "$work"
(cd / && "$chat" >/dev/null 2>"$work/err" </dev/null)
grep -q '^05_chat: the model is not found: `make data` fetches it to examples/data/cache/smollm2/' "$work/err" && pass || fail 'a model that is not there'

bad=$work/bad.gguf
patched() { # offset, bytes, expected: the small model with some bytes changed
  cp "$small" "$bad" && printf "$2" | dd of="$bad" bs=1 seek="$1" conv=notrunc 2>/dev/null
  refuses "$3" --model "$bad" --prompt x
}
offset_of() { grep -abo -- "$1" "$small" | head -n 1 | cut -d : -f 1; } # of the first such text
for length in 0 3; do head -c $length "$small" >"$bad" && refuses 'bad.gguf is no GGUF file: it does not begin with GGUF' --model "$bad"; done
head -c 20 "$small" >"$bad" && refuses 'bad.gguf ends after 20 bytes, within its header' --model "$bad"
head -c 100 "$small" >"$bad" && refuses 'bad.gguf promises [0-9]+ values and 20 tensors, which do not fit into its 100 bytes' --model "$bad"
head -c 2000 "$small" >"$bad" && refuses 'bad.gguf ends inside the value number [0-9]+ of 31' --model "$bad"
bytes=$(wc -c <"$small")
head -c $((bytes - 1)) "$small" >"$bad" && refuses "has $((bytes - 1)) bytes; tensor 'blk.1.ffn_down.weight' ends behind them. Is the file cut\?" --model "$bad"
patched 4 '\1' "is of GGUF's version 1; this program reads 2 and 3"
patched 4 '\0\0\0\3' 'is a GGUF file with the highest byte first'
patched 8 '\377\377\377\377\377\377\377\377' 'promises 31 values and 18446744073709551615 tensors'
patched "$(offset_of general.architecture)" 'gEneral' "holds a model of the kind ''"
patched $(($(offset_of llama.block_count) + 21)) '\1' "has a tensor 'blk.1.attn_norm.weight', which this program does not know what to do with"
patched $(($(offset_of llama.block_count) + 21)) '\3' 'has no tensor blk.2.attn_norm.weight'
patched $(($(offset_of llama.embedding_length) + 26)) '\100' 'tensor token_embd.weight is 270 x 32, with 2 axes; it must be 270 x 64, with 2'
patched $(($(offset_of llama.embedding_length) + 26)) '\0\0\0\177' 'llama.embedding_length must be a whole number from 1 to 65536'
patched $(($(offset_of general.alignment) + 21)) '\3' 'general.alignment must be a power of two'
patched $(($(offset_of general.alignment) + 21)) '\0\1' 'which 256, the alignment, does not divide'
patched $(($(offset_of epsilon) + 11)) '\0\0\300\177' 'llama.attention.layer_norm_rms_epsilon must be a positive real number'
patched $(($(offset_of smollm))) 'smullm' "its tokens are cut as 'smullm' says; this program knows 'smollm'"
patched $(($(offset_of '<|im_start|>'))) '<|IM' 'has no tokens <\|im_start\|> and <\|im_end\|>'
patched $(($(offset_of 't h'))) 'tXh' 'merge 0 is not of two tokens into a third'
patched $(($(offset_of token_embd.weight) + 37)) '\47' "tensor 'token_embd.weight' is of ggml's type 39, which this program does not read"
# A terminal is not steered by names in a file.
patched "$(offset_of output_norm.weight)" '\033[2J' "has a tensor '.\[2Jut_norm.weight'|has no tensor output_norm.weight"

if [ -w /dev/full ]; then
  "$chat" --model "$small" --prompt a --quiet >/dev/full 2>"$work/err"
  [ $? = 1 ] && grep -q '^05_chat: standard output: ' "$work/err" && pass || fail "a full disk: $(cat "$work/err")"
else
  skip 'a full disk: no /dev/full'
fi
mkfifo "$work/pipe" && { "$chat" --model "$small" --quiet <"$work/pipe" >"$work/out" 2>"$work/err" & } && exec 9>"$work/pipe"
echo a >&9 && until_it [ -s "$work/out" ] && kill -INT $! && wait $!
[ $? = 130 ] && [ -s "$work/out" ] && ! [ -s "$work/err" ] && pass || fail "an interrupt: $(cat "$work/err")"
exec 9>&-

# --- SmolLM2 ----------------------------------------------------------------------------------------------------------------
# What is expected here was checked against other implementations: the tokens of prompts are those of llama.cpp and of the
# Python package tokenizers, those of answers the likeliest ones of an implementation in float64 with numpy.
file=examples/data/cache/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
if [ -s $file ]; then
  answer=$("$chat" --quiet --prompt 'What is the capital of France?' 2>"$work/err")
  [ "$answer" = 'The capital of France is Paris.' ] && pass || fail "SmolLM2 says '$answer' $(cat "$work/err")"
  sky=$(printf '%s' 'The sky is blue because of a process called Rayleigh scattering, where light encounters tiny molecules of air and is' \
    ' deflected by them. When sunlight reaches our atmosphere, it')
  for how in '' '--isa avx2 --threads 1 --batch 13' '--isa neon --threads 1 --batch 13'; do
    "$chat" --model $file --quiet $how --prompt x --max-tokens 1 >/dev/null 2>&1 || continue # another machine
    answer=$("$chat" --quiet $how --prompt 'Explain in two sentences why the sky is blue.' --max-tokens 34 2>"$work/err")
    [ "$answer" = "$sky" ] && pass || fail "SmolLM2 $how says '$answer' $(cat "$work/err")"
  done
  # of llama.cpp and of tokenizers: "Gruesse, world! don't 2026", an empty line, "cafe" and a smile, with their accents
  line=$("$chat" --quiet --ids --system '' --max-tokens 1 --prompt "$(printf "Gr\303\274\303\237e, \344\270\226\347\225\214!  don't 2026\n\n\tcaf\303\251 \360\237\230\200")" | head -n 1)
  [ "$line" = 'prompt 1 4093 198 27302 7170 34878 85 28 216 7906 240 178 239 230 17 216 1326 982 216 34 32 34 38 1116 197 83 1939 2756 40303 218 2 198 1 520 9531 198' ] &&
    pass || fail "SmolLM2 has the tokens '$line'"
else
  skip "SmolLM2: no $file; \`make data\` fetches it"
fi

finish
