#!/usr/bin/env bash
# The demo examples/00_knn_pictures.c from outside: its results on every instruction set, thread count and metric against
# tests/demo_expected.txt, its options, its refusal of wrong arguments and files, its JSON; then the network of
# examples/02_fashion_cnn.c and the text model of examples/03_gpt.c: their weights everywhere, with several replicas too,
# their checkpoints under kill -9, damage and a full disk; then the rest.
#
# usage: tests/test_demo.sh     from anywhere; CC, CFLAGS and OPENMP are taken from the environment, and MLK_OBJECT: the
#                               implementation of mlk.h as an object, to save compiling it
# Last line: N passed, N failed, N skipped. Exit code 1 when something failed.

cd "$(dirname "$0")/.." || exit 1
. tests/until.sh
CC=${CC:-cc}
CFLAGS=${CFLAGS:--O2}
WARN='-std=c99 -Wall -Wextra -Wpedantic -Wshadow -Wconversion'
export LC_ALL=C
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive} # other tests share the cores
passed=0 failed=0 skipped=0

pass() { passed=$((passed + 1)); }
fail() { failed=$((failed + 1)) && echo "FAIL test_demo: $*"; }
skip() { skipped=$((skipped + 1)) && echo "skip test_demo: $*"; }

work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
expected=tests/demo_expected.txt

# --- build: .gz through a pipe, through zlib, and with sanitizers ---------------------------------------------------------
links() { # flags, program
  printf '%b' "$2" >"$work/probe.c" && $CC "$work/probe.c" -o "$work/probe" $1 >/dev/null 2>&1 && "$work/probe"
}

# The library is compiled once; the programs, which have it inside them for their users, are compiled without it.
# tests/snippets.sh compiles them as users do.
library=$work/mlk.o
[ -z "${MLK_OBJECT:-}" ] || library=$MLK_OBJECT
against_library() { # example, name, flags, libraries
  sed '/^#define MLK_IMPLEMENTATION$/d' "examples/$1.c" >"$work/$2.c"
  if $CC $WARN $CFLAGS $3 -I. "$work/$2.c" "$library" $OPENMP $pthread -o "$work/$2" -lm $4 >"$work/log" 2>&1 && ! [ -s "$work/log" ]; then
    pass
  else
    fail "examples/$1.c does not compile without warnings: $CC $WARN $CFLAGS $3: $(head -n 5 "$work/log")"
    return 1
  fi
}

pthread= # where threads are not in the C library
links -pthread 'int main(void) { return 0; }\n' && pthread=-pthread
if [ -z "${OPENMP+set}" ]; then
  OPENMP=
  links -fopenmp '#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n' && OPENMP=-fopenmp
fi
[ -n "${MLK_OBJECT:-}" ] || $CC $WARN $CFLAGS $OPENMP -I. -c tests/test_mlk.c -o "$library" ||
  { fail "mlk.h does not compile" && echo "$passed passed, $failed failed, $skipped skipped" && exit 1; }
# The readers are what the sanitizers look at here, not the library.
sanitize='-O1 -fsanitize=address,undefined -fno-sanitize-recover=all'
links "$sanitize" 'int main(void) { return 0; }\n' || { skip 'no address sanitizer here' && sanitize=; }
against_library 00_knn_pictures demo || { echo "$passed passed, $failed failed, $skipped skipped" && exit 1; }
demo=$work/demo
checkers=$demo
[ "$sanitize" ] && against_library 00_knn_pictures demo_sanitized "$sanitize" && checkers="$checkers $work/demo_sanitized"
if links -lz '#include <zlib.h>\nint main(void) { return zlibVersion() == 0; }\n'; then
  against_library 00_knn_pictures demo_zlib "-DMLK_EXAMPLE_ZLIB $sanitize" -lz && checkers="$checkers $work/demo_zlib"
else
  skip 'no zlib here'
fi

# --- the same results everywhere --------------------------------------------------------------------------------------
matches() { # arguments of the demo; every line it prints must stand in the expected file
  local line
  if ! "$demo" --quiet "$@" >"$work/out" 2>"$work/err"; then
    fail "$* ends with an error: $(cat "$work/err")"
    return
  fi
  [ -s "$work/out" ] || { fail "$* prints nothing" && return; }
  while read -r line; do
    if grep -qxF -- "$line" $expected; then pass; else fail "$* gives '$line', which $expected does not have"; fi
  done <"$work/out"
}

for isa in scalar neon avx2 avx512; do
  if ! "$demo" --isa $isa --data none --queries 1 --quiet >/dev/null 2>&1; then
    skip "instruction set $isa: not on this machine"
    continue
  fi
  for threads in 1 2 3; do
    for metric in l2sq l2 ip cosine; do
      for k in 1 5 50; do matches --data none --isa $isa --threads $threads --metric $metric --k $k; done
    done
  done
done
matches --data none
matches --data none --queries 1
matches --data none --queries 77 --threads 3

fashion=
for folder in examples/data/cache/fashion-mnist /usr/share/datasets/fashion-mnist; do
  [ -z "$fashion" ] && [ -e $folder/train-images-idx3-ubyte.gz ] && fashion=$folder
done
if [ "$fashion" ]; then
  for isa in scalar neon avx2 avx512; do
    "$demo" --isa $isa --data none --queries 1 --quiet >/dev/null 2>&1 || continue
    queries=200 metrics='l2sq l2 ip cosine'
    [ $isa = scalar ] && queries=20 metrics='l2 ip' # C's fmaf without an instruction for it
    for metric in $metrics; do matches --data $fashion --isa $isa --metric $metric --queries $queries; done
  done
  for program in $checkers; do # every way of reading 31 MB of .gz
    "$program" --quiet --data $fashion --queries 1 2>&1 | grep '^Fashion' | grep -qxFf $expected && pass || fail "$(basename "$program") reads $fashion"
  done
  # All 10,000 queries are 941 GFLOP: seconds with vector instructions, minutes without.
  if "$demo" --isa avx2 --data none --queries 1 --quiet >/dev/null 2>&1 ||
    "$demo" --isa neon --data none --queries 1 --quiet >/dev/null 2>&1; then
    matches # found without being told
  else
    skip 'all of Fashion-MNIST: no vector instructions here'
  fi
else
  skip 'Fashion-MNIST is not here; make data fetches it'
fi

# --- what is printed --------------------------------------------------------------------------------------------------
says() { # regular expression, then arguments: exit code 0 and the text printed
  local pattern=$1
  shift
  if "$demo" "$@" >"$work/out" 2>"$work/err" && grep -qE -- "$pattern" "$work/out" && ! [ -s "$work/err" ]; then
    pass
  else
    fail "'$*' does not print '$pattern', or complains: $(cat "$work/err")"
  fi
}

says '^usage: ' --help
says '^device +cpu' --data none
says '^measured +[0-9.]+ GFLOP/s and [0-9.]+ GB/s' --data none
says '^plan +[a-z_0-9]+, 0.083 GFLOP, [0-9,]+ bytes of workspace' --data none
says '^accuracy +96.40 %   482 of 500 right, k = 5, metric l2' --data none
says '^speed +[0-9,]+ queries/s   [0-9.]+ GFLOP/s = [0-9]+ % of the measured peak' --data none
says "^hash +$(sed -n 's/^UCI-digits l2 k=5 queries=500 .*hash=//p' $expected) " --data none
says '^ +5 +\. .* 50 ' --data none
says 'query 64: 5, voted 6; nearest: 6' --data none
says 'k = 7, metric cosine' --data none --k=7 --metric=cosine

json="$work/result.json"
if command -v python3 >/dev/null; then
  check='
import json, sys
r = json.load(open(sys.argv[1]))
s = r["sets"][0]
assert r["backend"] == "cpu" and r["threads"] == 1 and r["isa"] and r["ceilings"]["flops_all"] > 0
assert s["name"] == "UCI-digits" and s["base"] == 1297 and s["queries"] == 500 and s["dimensions"] == 64
assert s["k"] == 5 and s["metric"] == "l2" and s["flops"] == 2 * 500 * 1297 * 64 and s["seconds"] > 0
assert s["hash_fnv1a64"] == sys.argv[2] and s["correct"] == 482 == sum(s["confusion"][c][c] for c in range(10))
assert sum(map(sum, s["confusion"])) == 500'
  hash=$(sed -n 's/^UCI-digits l2 k=5 queries=500 .*hash=//p' $expected)
  "$demo" --data none --threads 1 --quiet --json "$json" >/dev/null && python3 -c "$check" "$json" "$hash" && pass || fail "--json $json"
  "$demo" --data none --threads 1 --json - >"$json" 2>/dev/null && python3 -c "$check" "$json" "$hash" && pass || fail '--json -'
else
  skip 'no python3 to read the JSON with'
fi
if [ -c /dev/full ]; then
  "$demo" --data none --quiet >/dev/full 2>"$work/err"
  [ $? = 1 ] && grep -q 'standard output could not be written' "$work/err" && pass || fail 'a full disk under standard output'
  "$demo" --data none --quiet --json /dev/full >/dev/null 2>"$work/err"
  [ $? = 1 ] && grep -q '/dev/full could not be written' "$work/err" && pass || fail 'a full disk under --json'
else
  skip 'no /dev/full'
fi

# --- wrong arguments --------------------------------------------------------------------------------------------------
refuses() { # regular expression, then arguments: exit code 2, one line on standard error, nothing on standard output
  local pattern=$1 program code
  shift
  for program in $checkers; do
    "$program" "$@" >"$work/out" 2>"$work/err"
    code=$?
    if [ $code = 2 ] && [ "$(wc -l <"$work/err")" = 1 ] && ! [ -s "$work/out" ] && grep -qE -- "$pattern" "$work/err"; then
      pass
    else
      fail "$(basename "$program") $*: exit code $code, expected 2 and one line with '$pattern', got: $(head -n 5 "$work/err")"
    fi
  done
}

for value in 0 -1 1001 x 5x '' ' ' 99999999999999999999 1e3; do
  refuses "--k is '$value'; it must be a whole number from 1 to 1000" --data none --k "$value"
done
refuses "--k needs a value" --data none --k
refuses "--k is ''" --data none --k=
refuses "--metric is 'l3'; it must be l2sq, l2, ip or cosine" --data none --metric l3
refuses "--metric is 'L2'" --data none --metric=L2
refuses "--threads is '-1'; it must be a whole number from 0 to 1024" --data none --threads -1
refuses "--threads is '1025'" --data none --threads 1025
refuses "--isa is 'mmx'; it must be best, scalar, neon, avx2 or avx512" --data none --isa mmx
refuses "--queries is '0'; it must be a whole number from 1 to 10000000" --data none --queries 0
refuses "'--fast' is not an option" --fast
refuses "'--kk' is not an option" --kk 3
refuses "'-k' is not an option" -k 3
refuses "'digits' is not an option" digits
refuses "--json: .*/nowhere/x cannot be written: No such file" --data none --json "$work/nowhere/x"
refuses "has no file train-images-idx3-ubyte and no train-images-idx3-ubyte.gz" --data "$work/nowhere"
refuses "has no file train-images-idx3-ubyte" --data ''
refuses "--data is 5000 bytes long; the limit is [0-9]+" --data "$(printf '%05000d' 0)"
for isa in neon avx2; do
  "$demo" --isa $isa --data none --quiet >/dev/null 2>&1 ||
    refuses "--isa is '$isa', which this build or machine does not run; it runs best, scalar" --data none --isa $isa
done

# --- wrong files ------------------------------------------------------------------------------------------------------
set_of_2x2() { # folder: three pictures and two queries
  rm -rf "$1" && mkdir -p "$1"
  printf '\0\0\10\3\0\0\0\3\0\0\0\2\0\0\0\2\1\2\3\4\5\6\7\10\377\376\375\374' >"$1/train-images-idx3-ubyte"
  printf '\0\0\10\1\0\0\0\3\0\1\2' >"$1/train-labels-idx1-ubyte"
  printf '\0\0\10\3\0\0\0\2\0\0\0\2\0\0\0\2\1\2\3\5\377\377\377\377' >"$1/t10k-images-idx3-ubyte"
  printf '\0\0\10\1\0\0\0\2\0\2' >"$1/t10k-labels-idx1-ubyte"
}

small=$work/small
set_of_2x2 "$small"
says '^accuracy +100.00 %   2 of 2 right' --data "$small" --k 1
says 'k = 9' --data "$small" --k 9 # more than there are: the missing neighbours do not vote
gzip -9 "$small"/*
says '^accuracy +100.00 %   2 of 2 right' --data "$small" --k 1
odd="$work/it's \$(odd); \"name\" \`x\` \\ "
set_of_2x2 "$odd" && gzip "$odd"/*
for program in $checkers; do
  "$program" --quiet --data "$odd" --k 1 2>&1 | grep -q '^pictures l2 k=1 queries=2 correct=2 ' && pass || fail "folder $odd"
done

for name in train-images-idx3-ubyte train-labels-idx1-ubyte t10k-images-idx3-ubyte t10k-labels-idx1-ubyte; do
  header=8
  case $name in *images*) header=16 ;; esac
  file=$small/$name
  fresh() { set_of_2x2 "$small" && bytes=$(wc -c <"$file") && bytes=$((bytes)); }
  patch() { printf "$2" | dd of="$file" bs=1 seek="$1" conv=notrunc 2>/dev/null; } # offset, bytes

  fresh && rm "$file"
  refuses "$small has no file $name and no $name.gz" --data "$small"
  fresh && rm "$file" && mkdir "$file"
  refuses "$name" --data "$small"
  for length in 0 3 $((header - 1)); do
    fresh && head -c $length "$file" >"$work/cut" && mv "$work/cut" "$file"
    refuses "$name ends after $length bytes, or is damaged there; its header alone has $header" --data "$small"
  done
  for length in $header $((bytes - 1)); do
    fresh && head -c $length "$file" >"$work/cut" && mv "$work/cut" "$file"
    refuses "$name ends after $length bytes, or is damaged there; its header promises $bytes" --data "$small"
  done
  fresh && printf x >>"$file"
  refuses "$name goes on after the $bytes bytes that its header promises" --data "$small"
  fresh && patch 2 '\015'
  refuses "$name begins with 0x00000d0[13]; [a-z]+ begin with 0x0000080[13]" --data "$small"
  fresh && patch 3 '\002'
  refuses "$name begins with 0x00000802" --data "$small"
  fresh && patch 4 '\0\0\0\0'
  refuses "$name says 0 entries; it must be 1 to 10000000" --data "$small"
  fresh && patch 4 '\377\377\377\377'
  refuses "$name says 4294967295 entries; it must be 1 to 10000000" --data "$small"
  fresh && patch 4 '\0\0\0\1'
  refuses "$name goes on after" --data "$small"

  fresh && mv "$file" "$file.gz"
  refuses "$name.gz begins with the bytes 00 00; a gzip file begins with 1f 8b" --data "$small"
  fresh && gzip "$file" && head -c 25 "$file.gz" >"$work/cut" && mv "$work/cut" "$file.gz"
  refuses "$name.gz ends after [0-9]+ bytes, or is damaged there" --data "$small"
  fresh && gzip "$file" && bytes=$(wc -c <"$file.gz") && file=$file.gz && patch $((bytes - 8)) '\252\125\252\125' && file=$small/$name
  refuses "$name.gz (cannot be read to its end: gzip finds it damaged|ends after [0-9]+ bytes, or is damaged)" --data "$small"
done

file=$small/train-images-idx3-ubyte
fresh && patch 8 '\0\0\1\1'
refuses 'images-idx3-ubyte says 257 rows; it must be 1 to 256' --data "$small"
fresh && patch 12 '\0\0\0\0'
refuses 'images-idx3-ubyte says 0 columns; it must be 1 to 256' --data "$small"
fresh && patch 4 '\0\230\226\200\0\0\1\0\0\0\1\0'
refuses 'says 655360000000 bytes of pixels; the limit is 1073741824' --data "$small"
fresh && patch 8 '\0\0\0\4\0\0\0\1'
refuses 'pictures of 4 x 1 to search, but queries of 2 x 2' --data "$small"
# A header that promises a gigabyte must not take one.
fresh && patch 4 '\0\0\100\0\0\0\1\0\0\0\1\0'
(ulimit -v 500000 && "$demo" --data "$small" >"$work/out" 2>"$work/err")
[ $? = 2 ] && grep -q 'ends after 28 bytes, .* promises 1073741840' "$work/err" && pass || fail "a promised gigabyte: $(cat "$work/err")"
refuses 'ends after 28 bytes, .* promises 1073741840' --data "$small"

file=$small/train-labels-idx1-ubyte
fresh && patch 9 '\012'
refuses 'train-labels-idx1-ubyte: label 1 is 10; the limit is 9' --data "$small"
fresh && printf '\0\0\10\1\0\0\0\2\0\1' >"$file"
refuses 'train-labels-idx1-ubyte has 2 labels for 3 pictures' --data "$small"
file=$small/t10k-labels-idx1-ubyte
fresh && patch 9 '\377'
refuses 't10k-labels-idx1-ubyte: label 1 is 255; the limit is 9' --data "$small"
fresh && printf '\0\0\10\1\0\0\0\3\0\1\1' >"$file"
refuses 't10k-labels-idx1-ubyte has 3 labels for 2 pictures' --data "$small"
if [ "$(id -u)" != 0 ]; then
  fresh && chmod 000 "$file"
  refuses 't10k-labels-idx1-ubyte cannot be opened: Permission denied' --data "$small"
else
  skip 'an unreadable file: root reads everything'
fi

# The program finds its digits from its own place, and says what it misses.
elsewhere=$work/elsewhere
mkdir -p "$elsewhere/build/deep" && cp "$demo" "$elsewhere/build/deep/demo"
(cd / && "$elsewhere/build/deep/demo" --data none >"$work/out" 2>"$work/err")
[ $? = 2 ] && grep -q 'examples/data/digits is not found from here' "$work/err" && pass || fail 'digits that are missing'
mkdir -p "$elsewhere/examples/data" && cp -R examples/data/digits "$elsewhere/examples/data"
cp "$demo" "$elsewhere/build/demo"
(cd / && "$elsewhere/build/demo" --data none --quiet 2>&1) | grep -qxFf $expected && pass || fail 'digits beside the program'

# --- the progress line ------------------------------------------------------------------------------------------------
# The first 2,500 pictures of Fashion-MNIST and 600 queries on the scalar row: seconds, so several batches.
part() { # file, bytes of header, bytes of one entry, count in octal, entries
  { gunzip -c "$fashion/$1.gz" | head -c 4 && printf "$4" && gunzip -c "$fashion/$1.gz" | tail -c +9 | head -c $(($2 - 8 + $3 * $5)); } >"$work/part/$1"
}
if [ "$fashion" ] && command -v python3 >/dev/null; then
  mkdir "$work/part"
  part train-images-idx3-ubyte 16 784 '\0\0\11\304' 2500
  part train-labels-idx1-ubyte 8 1 '\0\0\11\304' 2500
  part t10k-images-idx3-ubyte 16 784 '\0\0\2\130' 600
  part t10k-labels-idx1-ubyte 8 1 '\0\0\2\130' 600
  python3 -c 'import pty, sys; pty.spawn(sys.argv[1:])' "$demo" --data "$work/part" --isa scalar --threads 1 </dev/null >"$work/out"
  tr '\r' '\n' <"$work/out" >"$work/lines"
  if grep -E '^plan .* 0\.[0-4][0-9]* s at' "$work/lines" | grep -q ' 2.35 GFLOP'; then
    skip 'the progress line: this machine needs less than half a second'
  else
    grep -qE '^  [0-9]+ of 600 queries   [0-9]+ queries/s   [0-9.]+ s left' "$work/lines" && pass || fail 'no progress line on a terminal'
    grep -qE "^$(printf '\033')\[K" "$work/lines" && pass || fail 'the progress line is not erased'
  fi
else
  skip 'the progress line: no Fashion-MNIST, or no python3 to pretend a terminal with'
fi

# --- the network of 02_fashion_cnn -----------------------------------------------------------------------------------------
cnn=$work/cnn
against_library 02_fashion_cnn cnn || { echo "$passed passed, $failed failed, $skipped skipped" && exit 1; }
checkers=$cnn
[ "$sanitize" ] && against_library 02_fashion_cnn cnn_sanitized "$sanitize" && checkers="$checkers $work/cnn_sanitized"

learns() { # arguments; the line that --hash-only prints must stand in the expected file
  local line
  line=$("$cnn" --hash-only "$@" 2>"$work/err") && grep -qxF -- "$line" $expected && pass ||
    fail "02_fashion_cnn --hash-only $* gives '$line', which $expected does not have $(cat "$work/err")"
}

for isa in scalar neon avx2 avx512; do
  "$cnn" --data digits --isa $isa --hash-only --steps 1 >/dev/null 2>&1 || continue # its absence is named above
  for threads in 1 2 3; do learns --data digits --isa $isa --threads $threads --steps 40; done
done
learns --data digits --isa reference --steps 3
learns --data digits --steps 3
learns --data digits --steps 200
if [ "$fashion" ]; then
  learns --data $fashion --steps 5
  learns --data $fashion --steps 5 --threads 1
  learns --data $fashion --steps 5 --processes 2
fi

# Killed again and again, at every moment of a training that mostly writes checkpoints: what is left always continues.
state=$work/state
kills=0
for pause in 0.1 0.2 0.15 0.3 0.05 0.25; do
  "$cnn" --data digits --hash-only --steps 400 --save-every 1 --threads 1 --out "$state" >"$work/out" 2>"$work/err" &
  sleep $pause
  kill -9 $! 2>/dev/null && kills=$((kills + 1))
  wait $! 2>/dev/null
  [ -s "$work/err" ] && fail "after a kill: $(cat "$work/err")"
done
learns --data digits --steps 400 --save-every 1 --out "$state"
[ $kills -ge 1 ] && pass || skip 'kill -9: this machine trains faster than it can be killed'
rm -rf "$state"

# An interrupt writes a checkpoint, which another instruction set and another number of threads continue.
"$cnn" --data digits --hash-only --isa scalar --threads 1 --save-every 100000 --out "$state" >"$work/out" 2>"$work/err" &
until_it catches_interrupt $!
kill -INT $!
wait $!
[ $? = 130 ] && grep -q '^interrupted after step [0-9]*; a checkpoint is written' "$work/out" && [ -s "$state/checkpoint" ] && pass ||
  fail "an interrupt: $(cat "$work/out" "$work/err")"
rm -rf "$state"
learns --data digits --steps 40 --isa scalar --threads 1 --out "$state"
cp "$state/checkpoint" "$work/checkpoint_40"
learns --data digits --steps 200 --threads 3 --resume --out "$state"

# Replicas: for a number of shares one hash, whoever computes them. One share is what there is without replicas.
learns --data digits --steps 40 --processes 1 --shares 1
learns --data digits --steps 40 --shares 4
for group in '--replicas 2' '--replicas 4 --threads 1' '--processes 2' '--processes 3 --isa scalar --threads 1 --on-loss shrinks'; do
  learns --data digits --steps 40 $group
done
"$cnn" --data digits --out "$work/group" --epochs 2 --processes 2 --threads 1 >"$work/out" 2>"$work/err" || fail "two processes: $(cat "$work/err")"
grep -qx 'replicas   2 processes, 4 shares of 8 pictures, gradients in 4 buckets' "$work/out" &&
  grep -qE '^epoch 2/2  step 80/80  [0-9,]+ images/s .* test: loss' "$work/out" && grep -qE '^accuracy ' "$work/out" &&
  [ "$(wc -l <"$work/group/loss.csv")" = 81 ] && ! [ -s "$work/err" ] && pass || fail "two processes print $(cat "$work/out" "$work/err")"
if [ "$sanitize" ]; then
  for group in --replicas --processes; do
    "$work/cnn_sanitized" --data digits --hash-only --steps 3 $group 2 --threads 1 >"$work/out" 2>"$work/err" && ! [ -s "$work/err" ] && pass ||
      fail "02_fashion_cnn $group under the sanitizers: $(cat "$work/err")"
  done
fi

# Of a training that has written its first checkpoint, the process ID: $1, and its children, or one of them: $2.
alive() { ps -o stat= -p "$(echo $1 | tr ' ' ',')" | grep -qv '^Z'; } # any of these processes
children() { ps -A -o pid=,ppid= | awk -v parent="$1" '$2 == parent { print $1 }' | sort -n | sed -n "${2:-p}"; }
wait_for() { # file that a training writes
  local i
  for i in $(seq 200); do [ -s "$1" ] && return; sleep 0.02; done
}

# A process killed: the others go on without its shares, whoever it is, and end well; or all end.
for victim in 1 3; do
  rm -rf "$state"
  "$cnn" --data digits --hash-only --steps 400 --save-every 1 --processes 3 --threads 1 --on-loss shrinks --out "$state" >"$work/out" 2>"$work/err" &
  wait_for "$state/checkpoint"
  kill -9 "$(children $! ${victim}p)"
  wait $!
  code=$?
  [ $code = 0 ] && grep -qE "replica $((victim - 1)), process [0-9]+, was ended by signal 9" "$work/err" &&
    grep -qE "replica $((victim - 1)) was lost in step [0-9]+; 2 of 3 go on without its shares" "$work/err" &&
    awk '{ sub(/.*steps=400 loss=/, ""); exit !($1 + 0 > 0 && $1 + 0 < 1) }' "$work/out" && pass ||
    fail "replica $((victim - 1)) killed, exit code $code: $(cat "$work/out" "$work/err")"
done
rm -rf "$state"
learns --data digits --steps 40 --isa scalar --threads 1 --out "$state"

# A full disk leaves the checkpoint before it as it was.
cp "$work/checkpoint_40" "$state/checkpoint"
(trap '' XFSZ && ulimit -f 64 && "$cnn" --data digits --hash-only --steps 60 --out "$state" >"$work/out" 2>"$work/err")
[ $? = 1 ] && grep -q 'checkpoint.new cannot be written: File too large' "$work/err" && cmp -s "$work/checkpoint_40" "$state/checkpoint" &&
  pass || fail "a full disk: $(cat "$work/err")"
learns --data digits --steps 200 --out "$state"

# Checkpoints that must be refused.
damaged() { # regular expression, then further arguments; the file is $state/checkpoint
  local pattern=$1
  shift
  refuses "$pattern; --fresh begins anew" --data digits --hash-only --steps 60 --out "$state" "$@"
}
bytes=$(($(wc -c <"$work/checkpoint_40")))
again() { cp "$work/checkpoint_40" "$state/checkpoint"; }
for length in 0 7 71; do
  head -c $length "$work/checkpoint_40" >"$state/checkpoint"
  damaged 'checkpoint is no checkpoint of this program: it does not begin with MLKCNN02'
done
for length in 72 1000 $((bytes - 1)); do
  head -c $length "$work/checkpoint_40" >"$state/checkpoint"
  damaged "checkpoint is damaged: it has $length bytes and says $bytes"
done
again && printf x >>"$state/checkpoint" && damaged "checkpoint is damaged: it has $((bytes + 1)) bytes and says $bytes"
for offset in 16 64 5000 $((bytes - 1)); do # fingerprint, weights, checksum
  again && printf '\125\252\125\252' | head -c $((bytes - offset < 4 ? 1 : 4)) | dd of="$state/checkpoint" bs=1 seek=$offset conv=notrunc 2>/dev/null
  damaged 'checkpoint is damaged: its checksum does not fit its [0-9]+ bytes'
done
again && printf 'PNG' | dd of="$state/checkpoint" bs=1 conv=notrunc 2>/dev/null && damaged 'checkpoint is no checkpoint of this program: .*'
again && damaged 'was made with --batch 32 --epochs 30, this is --batch 16 --epochs 30' --batch 16
again && damaged 'was made with --batch 32 --epochs 30, this is --batch 32 --epochs 3' --epochs 3
again && damaged 'was made with --shares 1, this is --shares 4' --replicas 2
rm -f "$state/checkpoint"
refuses "--resume: there is no $state/checkpoint" --data digits --hash-only --resume --out "$state"
printf x >"$state/checkpoint"
learns --data digits --steps 3 --fresh --out "$state"

# Data that must be refused.
set_of_4x4() { # folder: three pictures to learn from and two to test
  rm -rf "$1" && mkdir -p "$1"
  { printf '\0\0\10\3\0\0\0\3\0\0\0\4\0\0\0\4' && printf '\1\2\3\4%.0s' 1 2 3 4 5 6 7 8 9 10 11 12; } >"$1/train-images-idx3-ubyte"
  printf '\0\0\10\1\0\0\0\3\0\1\2' >"$1/train-labels-idx1-ubyte"
  { printf '\0\0\10\3\0\0\0\2\0\0\0\4\0\0\0\4' && printf '\1\2\3\4%.0s' 1 2 3 4 5 6 7 8; } >"$1/t10k-images-idx3-ubyte"
  printf '\0\0\10\1\0\0\0\2\0\2' >"$1/t10k-labels-idx1-ubyte"
}
set_of_4x4 "$small"
"$cnn" --data "$small" --batch 2 --epochs 2 --out "$work/small_out" 2>&1 | grep -q '^accuracy ' && pass || fail 'pictures of 4 x 4'
refuses '--batch is 32; there are 3 training pictures' --data "$small"
spoil() { set_of_4x4 "$small" && file=$small/$1; }
spoil train-images-idx3-ubyte && patch 3 '\001' && refuses "$file begins with 0x00000801; pictures begin with 0x00000803" --data "$small"
spoil train-images-idx3-ubyte && patch 8 '\0\0\0\3' && refuses "$file says 3 rows; it must be 4 to 64" --data "$small"
spoil train-images-idx3-ubyte && patch 12 '\0\0\0\101' && refuses "$file says 65 columns; it must be 4 to 64" --data "$small"
spoil train-images-idx3-ubyte && patch 4 '\177\377\377\377' && refuses "$file says 2147483647 entries; it must be 1 to 1000000" --data "$small"
spoil t10k-images-idx3-ubyte && patch 4 '\0\017\102\100' && refuses "$file ends after 48 bytes, .* promises 16000016" --data "$small"
spoil t10k-labels-idx1-ubyte && patch 9 '\012' && refuses "$file: label 1 is 10; the limit is 9" --data "$small"
spoil t10k-labels-idx1-ubyte && printf x >>"$file" && refuses "$file goes on after the 10 bytes" --data "$small"
spoil train-labels-idx1-ubyte && rm "$file" && refuses "$small has no file train-labels-idx1-ubyte and no train-labels-idx1-ubyte.gz" --data "$small"
spoil train-labels-idx1-ubyte && gzip "$file" && head -c 20 "$file.gz" >"$work/cut" && mv "$work/cut" "$file.gz" && rm -f "$file" &&
  refuses "$file.gz (ends after|cannot be read to its end)" --data "$small"

# Arguments.
refuses "--epochs is '0'; it must be a whole number from 1 to 1000" --epochs 0
refuses "--batch is '1025'; it must be a whole number from 1 to 1024" --batch=1025
refuses "--steps is 'x'" --steps x
refuses "--isa is 'mmx'; it must be best, scalar, neon, avx2, avx512 or reference" --isa mmx
refuses '--resume and --fresh exclude each other' --resume --fresh
refuses "'--momentum' is not an option" --momentum 1
refuses '--out needs a value' --out
refuses "--out: $cnn/x cannot be made: Not a directory" --data digits --out "$cnn/x"
refuses "--replicas is '17'; it must be a whole number from 1 to 16" --replicas 17
refuses '--replicas and --processes exclude each other' --replicas 2 --processes 2
refuses '--shares is 2; there are 3 replicas, and each needs one' --replicas 3 --shares 2
refuses '--batch is 30 and --shares 4; the latter must divide the former' --data digits --batch 30 --replicas 2
refuses "--on-loss is 'waits'; it must be fails or shrinks" --replicas 2 --on-loss waits
refuses "--timeout is '-1'; it must be a number from 0 to 86400" --replicas 2 --timeout -1

# What is printed and written.
"$cnn" --data digits --out "$work/digits_cnn" >"$work/out" 2>"$work/err" || fail "02_fashion_cnn: $(cat "$work/err")"
for pattern in '^epoch 30/30  step 1200/1200  [0-9,]+ images/s  loss [0-9.]+  0 s left   test: loss [0-9.]+, [0-9.]+ %$' \
  "$(sed -n 's/^# 02_fashion_cnn, digits: /^/p' $expected)" '^hash +[0-9a-f]{16} .*; after 200 steps it was the pinned one$' \
  '^  [ 0-9.]+\|\*' '^  9 +[0-9. ]+ %$'; do
  grep -qE -- "$pattern" "$work/out" && pass || fail "02_fashion_cnn does not print '$pattern'"
done
[ "$(wc -l <"$work/digits_cnn/loss.csv")" = 1201 ] && grep -qE '^1200,30,[0-9.e-]+,[0-9.e-]+,[0-9.]+,0\.[0-9]{4}$' "$work/digits_cnn/loss.csv" && pass || fail 'loss.csv'
[ "$(head -c 15 "$work/digits_cnn/mistakes.ppm" | head -n 2 | tr '\n' ' ')" = "P6 640 164 " ] &&
  [ "$(wc -c <"$work/digits_cnn/mistakes.ppm")" = $((15 + 640 * 164 * 3)) ] && pass || fail 'mistakes.ppm'
[ "$(grep -cE '^ +[0-9]+ +[0-9]+ +[0-9]+  [0-9] +[0-9] +[01]\.[0-9]{4}$' "$work/digits_cnn/mistakes.txt")" -ge 11 ] && pass || fail 'mistakes.txt'
if command -v python3 >/dev/null; then
  python3 -c 'import sys, xml.dom.minidom as x; d = x.parse(sys.argv[1]); assert len(d.getElementsByTagName("circle")) == 30' "$work/digits_cnn/loss.svg" &&
    pass || fail 'loss.svg is no XML or lacks its dots'
fi

# --- the text model of 03_gpt -----------------------------------------------------------------------------------------------
gpt=$work/gpt
against_library 03_gpt gpt || { echo "$passed passed, $failed failed, $skipped skipped" && exit 1; }
checkers=$gpt
[ "$sanitize" ] && against_library 03_gpt gpt_sanitized "$sanitize" && checkers="$checkers $work/gpt_sanitized"

tiny="--demo --layers 2 --width 32 --context 16 --batch 2 --sample 40"
reads() { # arguments; the line that --hash prints must stand in the expected file
  local line
  line=$("$gpt" --hash "$@" 2>"$work/err") && grep -qxF -- "$line" $expected && pass ||
    fail "03_gpt --hash $* gives '$line', which $expected does not have $(cat "$work/err")"
}

for isa in scalar neon avx2 avx512 reference; do
  "$gpt" $tiny --isa $isa --hash --steps 1 >/dev/null 2>&1 || continue
  for threads in 1 3; do reads $tiny --isa $isa --threads $threads --steps 20; done
done
reads $tiny --heads 2 --kv-heads 1 --width 36 --context 40 --steps 20 # odd sizes, one key head
reads $tiny --heads 4 --kv-heads 4 --temperature 0 --seed 7 --prompt 'On the ' --steps 20

# Replicas: for a number of shares one hash, whoever computes them, and whoever keeps the moments (--zero).
reads $tiny --steps 20 --replicas 1 --shares 1
wide="${tiny/--batch 2/--batch 4}"
reads $wide --steps 20 --shares 4
for group in '--replicas 2' '--replicas 4 --threads 1' '--processes 2' '--processes 3 --isa scalar --on-loss shrinks' \
  '--replicas 3 --zero 1' '--processes 2 --zero 1'; do
  reads $wide --steps 20 $group
done
reads $wide --steps 20 --shares 4 --clip 0
reads $wide --steps 20 --processes 3 --zero 1 --clip 0
if [ "$sanitize" ]; then
  for group in --replicas --processes; do
    "$work/gpt_sanitized" $wide --hash --steps 3 $group 2 --zero 1 >"$work/out" 2>"$work/err" && ! [ -s "$work/err" ] && pass ||
      fail "03_gpt $group under the sanitizers: $(cat "$work/err")"
  done
fi

# Continued by other replicas: the same bits, the same checkpoint.
rm -rf "$state" && mkdir -p "$state"
reads $wide --steps 400 --shares 4 --checkpoint "$state/once"
for group in '--processes 2 --stop 5' '--replicas 4 --stop 9' '--processes 3 --zero 1 --stop 14 --save-every 2' '--replicas 2 --zero 1 --stop 20' '--shares 4'; do
  "$gpt" $wide --hash --steps 400 $group --checkpoint "$state/gpt" >"$work/out" 2>"$work/err" || fail "03_gpt $group: $(cat "$work/err")"
done
cmp -s "$state/once" "$state/gpt" && pass || fail 'a checkpoint that several groups continued is another one'

# A process killed: all end, and the checkpoint is whole; an interrupt, and the end of the parent, end all after a step.
for how in 'kill -9 child' 'kill -INT parent' 'kill -9 parent'; do
  rm -f "$state/gpt"
  "$gpt" $wide --hash --steps 400 --save-every 1 --processes 3 --timeout 5 --checkpoint "$state/gpt" >"$work/out" 2>"$work/err" &
  wait_for "$state/gpt"
  replicas=$(children $!)
  case $how in
    *child) kill -9 "$(children $! 2p)" ;;
    *) ${how% parent} $! ;;
  esac
  wait $! 2>/dev/null
  code=$?
  for i in $(seq 100); do alive "$replicas" && sleep 0.05 || break; done
  case $how in
    *child) [ $code = 1 ] && grep -q 'replica 1, process [0-9]*, was ended by signal 9' "$work/err" &&
      grep -qE 'replica [02] ends in step [0-9]+ of the training: .*; the last checkpoint is whole' "$work/err" ;;
    *INT*) [ $code = 130 ] && [ "$(grep -c '^interrupted after step [0-9]*; a checkpoint is written' "$work/out")" = 1 ] && ! [ -s "$work/err" ] ;;
    *) [ $code = 137 ] && grep -q '^interrupted after step [0-9]*; a checkpoint is written' "$work/out" ;;
  esac && pass || fail "03_gpt, $how: exit code $code, $(cat "$work/out" "$work/err")"
  alive "$replicas" && fail "03_gpt, $how: there are replicas left"
  reads $wide --steps 400 --shares 4 --checkpoint "$state/gpt"
done
rm -f "$state/gpt"

# Killed at every moment of a training that mostly writes checkpoints: what is left always continues.
rm -rf "$state" && mkdir -p "$state"
kills=0
for pause in 0.05 0.1 0.15 0.2; do
  "$gpt" $tiny --hash --steps 400 --save-every 1 --threads 1 --checkpoint "$state/gpt" >"$work/out" 2>"$work/err" &
  sleep $pause
  kill -9 $! 2>/dev/null && kills=$((kills + 1))
  wait $! 2>/dev/null
  [ -s "$work/err" ] && fail "03_gpt after a kill: $(cat "$work/err")"
done
reads $tiny --steps 400 --save-every 50 --checkpoint "$state/gpt"
reads $tiny --steps 400 --checkpoint "$state/gpt" # nothing is left to learn
[ $kills -ge 1 ] && pass || skip 'kill -9: this machine trains faster than it can be killed'
rm -f "$state/gpt"

# Stopped, interrupted, continued on another instruction set with other threads: the bits of a run that never stopped.
reads $tiny --steps 400 --stop 20 --isa scalar --threads 1 --checkpoint "$state/gpt"
cp "$state/gpt" "$work/gpt_20"
"$gpt" $tiny --hash --steps 400 --isa scalar --checkpoint "$state/gpt" >"$work/out" 2>"$work/err" &
until_it catches_interrupt $!
kill -INT $!
wait $!
[ $? = 130 ] && grep -q '^interrupted after step [0-9]*; a checkpoint is written' "$work/out" && pass ||
  fail "03_gpt, an interrupt: $(cat "$work/out" "$work/err")"
reads $tiny --steps 400 --threads 2 --checkpoint "$state/gpt"
cp "$work/gpt_20" "$state/gpt"
(trap '' XFSZ && ulimit -f 64 && "$gpt" $tiny --hash --steps 400 --stop 30 --checkpoint "$state/gpt" >"$work/out" 2>"$work/err")
[ $? = 1 ] && grep -q 'gpt.new cannot be written: File too large' "$work/err" && cmp -s "$work/gpt_20" "$state/gpt" &&
  pass || fail "03_gpt, a full disk: $(cat "$work/err")"
reads $tiny --steps 400 --stop 20 --checkpoint "$state/nothing" --fresh

# Checkpoints that must be refused: cut, changed, of other settings; then with numbers that lie under a right checksum.
damaged() { # regular expression, then further arguments; the file is $state/gpt
  local pattern=$1
  shift
  refuses "$pattern; --fresh begins anew" $tiny --hash --steps 400 --checkpoint "$state/gpt" "$@"
}
damaged 'gpt was made with --layers 2, this is --layers 3' --layers 3
damaged 'gpt was made with --context 16, this is --context 8' --context 8
damaged 'gpt was made with --seed 2026, this is --seed 1' --seed=1
damaged 'gpt was made with another --lr than 0.001' --lr 0.001
damaged 'gpt was made with another --clip than 0' --clip 0
damaged 'gpt was made with --shares 1, this is --shares 2' --processes 2 --shares 2
refuses 'gpt belongs to another text' --layers 2 --width 32 --context 16 --batch 2 --checkpoint "$state/gpt" README.md
printf x >>"$state/gpt" && damaged 'gpt has [0-9]+ weights, step 20 and [0-9]+ bytes, which do not go together'
printf 'PNG' >"$state/gpt" && damaged 'gpt is no checkpoint of this program: it does not begin with MLKGPT02'
rm "$state/gpt" && mkdir "$state/gpt" && refuses '/gpt' $tiny --hash --steps 400 --checkpoint "$state/gpt" && rmdir "$state/gpt"
if command -v python3 >/dev/null; then
  for program in $checkers; do
    damage='
import random, struct, subprocess, sys
program, good, path = sys.argv[1:4]
file, rng = open(good, "rb").read(), random.Random(1)
header, bad = 8 + 8 * 15, []
def sealed(body):
    h = 0xcbf29ce484222325
    for b in body: h = (h ^ b) * 0x100000001b3 & (1 << 64) - 1
    return body + struct.pack("<Q", h)
bad += [file[:n] for n in (0, 1, 7, 8, 15, 16, header - 1, header, header + 7, header + 8, len(file) // 2, len(file) - 8, len(file) - 1)]
for i in [rng.randrange(header) for _ in range(20)] + [rng.randrange(len(file)) for _ in range(10)] + [len(file) - 1]:
    bad.append(file[:i] + bytes([file[i] ^ 1 << rng.randrange(8)]) + file[i + 1:])
short = file[:header] # sealing takes python a tenth of a second with all weights, so most lies are short files
for field in range(15):
    for value in (1 << 63, (1 << 64) - 1, 401, 0) if field else (1 << 63, 0):
        at = 8 + 8 * field
        bad.append(sealed(short[:at] + struct.pack("<Q", value) + short[at + 8:]))
bad.append(sealed(short[:8] + struct.pack("<Q", header + 8) + short[16:]))
for field, value in (14, 401), (14, (1 << 64) - 1), (13, 0), (13, 1 << 62):
    at = 8 + 8 * field
    bad.append(sealed(file[:at] + struct.pack("<Q", value) + file[at + 8:-8]))
for i, bytes_ in enumerate(bad):
    open(path, "wb").write(bytes_)
    ran = subprocess.run([program] + sys.argv[4:] + ["--checkpoint", path], capture_output=True, text=True)
    assert ran.returncode == 2 and not ran.stdout and ran.stderr.count("\n") == 1 and "; --fresh begins anew" in ran.stderr, (i, ran)
'
    python3 -c "$damage" "$program" "$work/gpt_20" "$state/gpt" $tiny --hash --steps 400 2>"$work/err" && pass || fail "$program takes a damaged checkpoint: $(tail -n 1 "$work/err")"
  done
else
  skip 'no python3 to damage checkpoints of 03_gpt with'
fi

# Texts. The repository's own is found from here and from elsewhere.
model="--layers 1 --width 8 --heads 1 --kv-heads 1 --context 8 --batch 1 --steps 2 --sample 0"
"$gpt" $model --hash | grep -q '^text gpt .* step=2/2 ' && pass || fail '03_gpt does not find the documents'
mkdir -p "$elsewhere/build" && cp "$gpt" "$elsewhere/build/gpt"
(cd / && "$elsewhere/build/gpt" $model --hash >"$work/out" 2>"$work/err")
[ $? = 2 ] && grep -q 'the documents of the repository are not found from here' "$work/err" && pass || fail "03_gpt: $(cat "$work/err")"
printf '%0100d' 0 >"$work/-text"
lines=$(cat "$work/-text" | "$gpt" $model --hash /dev/stdin "$work/-text" && cd "$work" && cat -- -text | "$gpt" $model --hash -- -text /dev/stdin)
[ "$(printf '%s\n' "$lines" | grep -c '^text gpt ')" = 2 ] && [ "$(printf '%s\n' "$lines" | sort -u | wc -l)" = 1 ] && pass ||
  fail "03_gpt reads a pipe otherwise than a file: $lines"
: >"$work/empty"
refuses 'the text has 0 bytes to learn from and 0 held out; it must have more than --context, 8, and 2' $model "$work/empty"
refuses 'the text has 90 bytes to learn from .* more than --context, 90,' $model --context=90 "$work/-text"
refuses "$work/nowhere cannot be opened: No such file" $model "$work/nowhere"
refuses "$work cannot be read: Is a directory" $model "$work"

# Arguments.
refuses "--layers is '17'; it must be a whole number from 1 to 16" --layers 17
refuses "--steps is '1e3'" --steps 1e3
refuses "--lr is 'nan'; it must be a number from 0 to 1" --lr nan
refuses "--temperature is '-1'" --temperature=-1
refuses "--isa is 'mmx'; it must be best, scalar, neon, avx2, avx512 or reference" --isa mmx
refuses "--width is 128 and --heads 3; a head must have a whole, even share of the width" --heads 3
refuses "--heads is 4 and --kv-heads 3; the latter must divide the former" --kv-heads 3
refuses "--demo and 'x' exclude each other" --demo x
refuses "'--momentum' is not an option" --momentum 1
refuses '--prompt needs a value' --prompt
refuses "--checkpoint is 0 bytes long; it must have 1 to" --checkpoint=
refuses '--replicas and --processes exclude each other' --replicas 2 --processes 2
refuses '--shares is 2; there are 3 replicas, and each needs one' --processes 3 --shares 2
refuses '--batch is 16 and --shares 5; the latter must divide the former' --shares 5
refuses '--zero 1 needs --on-loss fails' --replicas 2 --zero 1 --on-loss shrinks
refuses "--clip is '-1'; it must be a number from 0 to 1e.06" --clip -1

# What is printed, and the hash that the program checks itself.
"$gpt" --demo --profile >"$work/out" 2>"$work/err" || fail "03_gpt: $(cat "$work/err")"
for pattern in '^text       two rhymes: 2 files, 4,225 bytes to learn from, 469 held out$' '^model      2 layers of width 64, 4 query and 2 key heads of 16, ' \
  '^step 300/300  [0-9,]+ tokens/s  [0-9.]+ bits per byte  0 s left   held out: [0-9.]+$' '^That lay in the house that Jack built.$' '^speed +[0-9,]+ tokens/s ' \
  "$(sed -n 's/^# 03_gpt, rhymes: /^/p' $expected)" '^hash +[0-9a-f]{16} .*; it is the pinned one$' '^attention, gradient +2 '; do
  grep -qE -- "$pattern" "$work/out" && pass || fail "03_gpt does not print '$pattern'"
done

# --- the other example ------------------------------------------------------------------------------------------------
against_library 01_matmul 01_matmul
if (cd "$work" && ./01_matmul >out 2>&1); then pass; else fail "01_matmul says: $(tail -n 3 "$work/out")"; fi

# --- fetch_data.sh never fails and says one line ----------------------------------------------------------------------
mkdir -p "$work/fetch" && cp examples/fetch_data.sh "$work/fetch"
for setting in MLK_OFFLINE=1 PATH=/nonexistent; do
  lines=$(env $setting /bin/sh "$work/fetch/fetch_data.sh" 2>&1)
  [ $? = 0 ] && [ "$(printf '%s\n' "$lines" | grep -c '^Fashion-MNIST: ')" = 1 ] && pass || fail "fetch_data.sh with $setting: $lines"
done

echo "$passed passed, $failed failed, $skipped skipped"
[ $failed = 0 ]
