#!/usr/bin/env bash
# test_bench.sh - mlk_bench: its commands, problems, files, comparisons and messages. No figure of it is judged.
# usage: tests/test_bench.sh [DIRECTORY]      CC, CXX, OPENMP: as make gives them. DIRECTORY: where it works, default build/check/bench
# Prints a line for each check that fails and ends with "N passed, N failed, N skipped".

set -u
cd "$(dirname "$0")/.." || exit 2
out=${1:-build/check/bench}
rm -rf "$out"
mkdir -p "$out"
passed=0 failed=0 skipped=0
bench=$out/mlk_bench

pass() { passed=$((passed + 1)); }
fail() { failed=$((failed + 1)); echo "FAIL $*"; }
finish() { echo "$passed passed, $failed failed, $skipped skipped"; [ $failed = 0 ]; exit; }
check() { # check "WHAT" COMMAND...
  local what=$1
  shift
  if "$@"; then pass; else fail "$what"; fi
}
# says STATUS "TEXT" ARGUMENTS...: mlk_bench ends with STATUS, and one line of what it writes is, or contains, TEXT
says() {
  local status=$1 expected=$2 got
  shift 2
  "$bench" "$@" >"$out/said" 2>&1 </dev/null
  got=$?
  if [ $got = "$status" ] && grep -q -F -e "$expected" "$out/said"; then pass
  else fail "mlk_bench $*: status $got, expected $status and \"$expected\", said: $(tail -n 3 "$out/said" | tr '\n' ' ')"; fi
}

# Without optimisation, which is quickest to compile; one row, of no table, is spoilt after it was computed.
broken="matmul/problem/17x17:17x17/t1"
${CC:-cc} -std=c99 -O0 -DMLK_NO_AVX512 -DBENCH_BREAK_RESULTS="\"$broken\"" ${OPENMP--fopenmp} -pthread -I. bench/mlk_bench.c -o "$bench" -ldl -lm ||
  { fail "bench/mlk_bench.c does not compile"; finish; }

# --- arguments ------------------------------------------------------------------------------------------------------------
says 0 "mlk_bench run [FAMILY | ROW | PROBLEM]" --help
says 2 "mlk_bench run [FAMILY | ROW | PROBLEM]"
says 2 "measure is no command; the first word is one of list, run, plan, peers, ceilings, compare" measure
says 2 "unknown option --fast; see --help" run --fast
says 2 "--threads: 0 is not a number in 1 .. 1024" run --threads 0
says 2 "--threads: two is not a number in 1 .. 1024" run --threads two
says 2 "--min-time: -1 is not a number in 0 .. 60" run --min-time -1
says 2 "--max-noise needs a value" run --max-noise
says 2 "--isa: no instruction set is named sse" run --isa sse
says 2 "--cache: hot is neither warm nor cold" run --cache hot
says 2 "--device cuda: this program was built without CUDA; make CUDA=1 build/mlk_bench builds it with" list --device cuda
says 2 "--device: tpu is neither cpu nor cuda" run --device tpu
says 2 "peers takes no operand; found matmul" peers matmul
says 2 "no row is left: --filter nothing; see mlk_bench list" list --filter nothing
says 2 "no row is left: attention/merge --quick" list attention/merge --quick
says 2 "cannot write $out/none/x.json" run "matmul 8x8:8x8" --json "$out/none/x.json"
says 2 "cannot open $out/none.txt" list --batch "$out/none.txt"
says 2 "--batch names a file of problems; matmul beside it is one too many" list matmul --batch "$out/none.txt"

# --- list -----------------------------------------------------------------------------------------------------------------
"$bench" list --threads 2 >"$out/list"
check "list: hundreds of rows" [ "$(wc -l <"$out/list")" -gt 500 ]
check "list: a name stands once" [ -z "$(cut -d ' ' -f 1 "$out/list" | sort | uniq -d)" ]
check "list --quick: fewer" [ "$("$bench" list --quick --threads 2 | wc -l)" -lt 120 ]
check "list matmul/large: a class" [ "$("$bench" list matmul/large --threads 2 | wc -l)" = 8 ]
check "list --filter: with and without" [ "$("$bench" list --threads 1 --filter glue/near,-maxpool | wc -l)" = 7 ]
says 0 "matmul/large/1024/t1 " list matmul/large/1024/t1
for family in matmul knn distances conv glue attention average; do says 0 "$family/" list $family; done
# Every row is a problem, and the problem is the row: all of them as a batch are the table again. (Two rows may share a problem.)
sed 's/^[^ ]* *//' "$out/list" >"$out/all.txt"
"$bench" list --threads 2 --batch "$out/all.txt" >"$out/again"
check "list --batch: problems are read as they are written" diff "$out/all.txt" <(sed 's/^[^ ]* *//' "$out/again")
check "list --batch: a problem of the table has the table's name" [ -z "$(cut -d ' ' -f 1 "$out/again" | sort -u | comm -23 - <(cut -d ' ' -f 1 "$out/list" | sort))" ]
says 0 "matmul/large/1024/t1 " list "matmul threads=1 1024x1024:1024x1024"
says 0 "matmul/problem/24x8:8x40,layout=nt/t1 " list matmul 24x8:8x40 layout=nt --threads 1
for batch in bench/batches/*.txt; do
  name=$(basename "$batch" .txt)
  says 0 "/$name/" list --batch "$batch"
done

# --- problems that are none -------------------------------------------------------------------------------------------------
wrong() { says 2 "$2" list $1; } # wrong "PROBLEM" "SENTENCE"
wrong "gemm 8x8:8x8" "gemm begins no problem; one begins with matmul, knn, distances, conv"
wrong "matmul 8x8" "matmul: needs a shape like 1024x512:512x768, M x K : K x N, not 8x8"
wrong "matmul layout=nt" "matmul: needs a shape like 1024x512:512x768"
wrong "matmul 8x8:9x8" "matmul: 8x8:9x8: K is 8 in A and 9 in B"
wrong "matmul 8xy:8x8" "matmul: 8xy is not made of sizes 1 .. 2^31 with x between them"
wrong "matmul 8x0:0x8" "matmul: 8x0 is not made of sizes 1 .. 2^31"
wrong "matmul 8x8:8x8 8x8:8x8" "matmul: two shapes, 8x8:8x8 and 8x8:8x8; one is allowed"
wrong "matmul 8x8:8x8x8" "matmul: 8x8x8 has more than 2 sizes"
wrong "matmul 2x2000000:2000000x2" "matmul: 2x2000000:2000000x2: K is 2000000, but sums are exact, and checked, below 2^20"
wrong "matmul 8x8:8x8 layout=xy" "matmul: layout=xy is none of nn, nt, tn, tt"
wrong "matmul 8x8:8x8 layout=nt layout=tn" "matmul: layout stands twice: nt and tn"
wrong "matmul 8x8:8x8 batch=-1" "matmul: batch=-1 is not a whole number in 1 .. 16777216"
wrong "matmul 8x8:8x8 batch=two" "matmul: batch=two is not a whole number"
wrong "matmul 8x8:8x8 batch=4 packed=1" "matmul: packed=1 beside batch=4: packed weights have no batch"
wrong "matmul 8x8:8x8 epilog=bias" "matmul: epilog=bias is no word of it; there are layout, dtype, batch, pad, epilogue, packed, numerics, threads"
wrong "matmul 8x8:8x8 epilogue=gelu,bias" "matmul: epilogue=gelu,bias is none of none, bias, relu"
wrong "matmul 8x8:8x8 dtype=bf16" "matmul: dtype=bf16 is of --device cuda; on the CPU matrices are f32"
wrong "matmul 8x8:8x8 dtype=f64" "matmul: dtype=f64 is none of f32, bf16, f16"
wrong "matmul 8x8:8x8 numerics=exact" "matmul: numerics=exact is none of strict, fast, strict,fast"
wrong "matmul 8x8:8x8 isa=sse" "matmul: isa=sse is none of avx512, avx2, neon, scalar"
wrong "matmul 8x8:8x8 cache=hot" "matmul: cache=hot is none of warm, cold"
wrong "matmul 8x8:8x8 threads=0" "matmul: threads=0 is not a whole number in 1 .. 1024"
wrong "conv 1x4x8x8:8x4x3" "conv: 1x4x8x8:8x4x3: the image has 2 spatial axes and the filter 1"
wrong "conv 1x4x8x8:8x4x3x3 groups=3" "conv: 1x4x8x8:8x4x3x3 groups=3: groups must divide C=4 and K=8"
wrong "conv 1x4x8x8:8x4x9x9" "conv: 1x4x8x8:8x4x9x9 pad=0 dilation=1: the filter is larger than the image"
wrong "conv 1x4x8x8:8x4x3x3 op=grad_w packed=1" "conv: packed=1 beside op=grad_w"
wrong "conv 1x4x8x8:8x4x3x3 dtype=f16" "conv: dtype=f16 is of --device cuda; on the CPU images are f32"
wrong "knn q=10 base=100" "knn: needs d=N, a whole number in 1 .. 1024"
wrong "knn q=10 base=100 d=8 k=101" "knn: k=101 is more than base=100"
wrong "knn q=10 base=100 d=8 metric=cosine" "knn: metric=cosine is none of l2sq, l2, ip"
wrong "knn q=10 base=100 d=8 data=pictures" "knn: data=pictures has 60000 rows and 10000 queries of d=784"
wrong "attention q=1x4x8x8" "attention: needs kv=BxGxTxD"
wrong "attention q=1x4x8x8 kv=1x3x8x8" "B and D must be equal, and H a multiple of G"
wrong "attention q=1x4x8 kv=1x4x8x8" "attention: q=1x4x8 has 3 sizes, but needs 4"
wrong "attention q=1x4x8x8 kv=1x4x8x8 window=4 scores=bias" "attention: one of scores, window and lengths at a time"
wrong "attention q=1x4x8x8 kv=1x4x8x8 lengths=4,5" "attention: lengths=4,5 adds up to 9, but must fill the queries and keys of one batch, 8 and 8"
wrong "attention q=1x4x8x8 kv=1x4x8x8 page=4" "attention: page=4 is of one sequence, one query"
wrong "attention q=1x4x8x8 kv=1x2x8x8 op=bwd" "attention: op=bwd is checked for plain scores"
wrong "attention q=1x4x8x8 kv=1x4x8x8 dtype=f16" "attention: dtype=f16 is of cached keys and values on the CPU: S must be 1, not 8"
wrong "average n=3 elements=100" "average: n=3 is no power of two"
wrong "average n=4 elements=100 lists=7" "average: lists=7 does not divide elements=100"
wrong "pool 4x9x9" "pool: 4x9x9: the image must be square, with an even side"
wrong "softmax 8x8x8" "softmax: 8x8x8 has more than 2 sizes"
wrong "softmax" "softmax: needs a shape like 64x1024, rows x width"
printf '# two problems\nmatmul 8x8:8x8   # right\n\nsoftmax 8x8 axis=1\n' >"$out/bad.txt"
says 2 "$out/bad.txt:4: softmax: axis=1 is no word of it" run --batch "$out/bad.txt"
printf '# nothing\n' >"$out/empty.txt"
says 2 "$out/empty.txt has no problem in it" run --batch "$out/empty.txt"

# --- peers, ceilings ----------------------------------------------------------------------------------------------------------
"$bench" peers --peers "$out/none" >"$out/said"
check "peers: a line each" [ "$(grep -c '^peer: ' "$out/said")" = 8 ]
check "peers: why one is absent" grep -q 'openblas .*absent: not fetched (make peers)' "$out/said"
says 0 "scalar, 1 thread" ceilings --threads 1

# --- one small row of every family, in every form -------------------------------------------------------------------------------
cat >"$out/few.txt" <<'END'
matmul 24x40:40x56 threads=1                                      # a comment
matmul 24x40:40x56 layout=tt batch=3 pad=2 epilogue=bias,gelu numerics=strict,fast threads=2
matmul 24x40:40x56 layout=nt packed=1 epilogue=silu cache=cold threads=1
matmul 1x64:64x64 isa=scalar threads=1
conv 2x8x9x9:16x4x3x3 stride=2 pad=1 groups=2 layout=nhwc threads=1
conv 2x8x9x9:16x8x3x3 op=grad_x packed=1 threads=1
conv 2x8x9:16x8x3 op=grad_w dilation=2 threads=1
knn q=10 base=500 d=16 k=5 metric=l2 threads=1 count=3
distances q=10 base=500 d=16 metric=ip threads=1
attention q=2x4x16x8 kv=2x2x24x8 mask=causal threads=1
attention q=1x4x16x8 kv=1x4x16x8 op=bwd threads=1
attention q=1x8x1x16 kv=1x2x64x16 page=16 threads=1
merge parts=4 q=1x2x50x16 threads=1
average n=4 elements=4000 lists=4 dtype=bf16 threads=1
average n=2 elements=4000 into=all threads=1
softmax 8x100 cache=cold threads=1
map 8x100 op=mul threads=1
reduce 8x100 threads=1
pool 4x8x8 layout=nhwc threads=1
norm 8x100 op=rms threads=1
cross_entropy 8x100 threads=1
adamw 8x100 threads=1
END
"$bench" run --batch "$out/few.txt" --quick --min-time 0.001 --no-peers --threads 2 --progress --host-name here \
  --json "$out/x.json" --csv "$out/x.csv" --markdown "$out/x.md" >"$out/ran" 2>"$out/progress"
status=$?
check "run --batch: exit code $status, $(tail -n 1 "$out/ran")" [ $status = 0 ]
check "run: closing line" grep -q '^22 rows, 0 wrong, ' "$out/ran"
check "run --batch: the sum of the model's calls" grep -q -F "$out/few.txt: 24 calls of 22 problems take MLK" "$out/ran"
check "run --progress: where it is" grep -q -F '[3/22] matmul/few/24x40:40x56,layout=nt,packed=1,epilogue=silu,cache=cold/t1, about ' "$out/progress"
check "run --markdown: a table per family" [ "$(grep -c '^## ' "$out/x.md")" -ge 6 ]
check "run --csv: a line per contender, and its head" [ "$(wc -l <"$out/x.csv")" = "$(($(grep -c '"name"' "$out/x.json") + 1))" ]
if command -v python3 >/dev/null; then check "the files of a run" python3 tests/bench_files.py "$out/x.json" "$out/x.csv" "$out/few.txt"
else
  skipped=$((skipped + 1))
  echo "skip the files of a run in detail: no python3"
  check "JSON: as many problems as rows" [ "$(grep -o '"problem": "[^"]*"' "$out/x.json" | sort -u | wc -l)" = 22 ]
fi
says 0 "matmul/problem/24x8:8x40,layout=nt/t1" plan matmul 24x8:8x40 layout=nt --quick --threads 1 --isa scalar
check "plan: errors by family and overall" [ "$(grep -c '1 rows, median error' "$out/said")" = 2 ]
says 0 "noisy: more spread than 0.0 % (--max-noise) after all rounds" run "matmul 24x8:8x40" --quick --threads 1 --no-peers --max-noise 0

# --- a wrong result -----------------------------------------------------------------------------------------------------------
says 1 "$broken" run "matmul 17x17:17x17" --threads 1 --quick --no-peers --json "$out/wrong.json"
check "a wrong result: said in the table" grep -q "^$broken  *WRONG: matrix 0, row 0: D x is -*nan" "$out/said"
check "a wrong result: counted" grep -q '^1 rows, 1 wrong, ' "$out/said"
check "a wrong result: in the JSON" grep -q '"error_occurred": true, "error_message": "wrong result, not timed: matrix 0' "$out/wrong.json"
check "a wrong result: in the JSON's context" grep -q '"wrong": 1,' "$out/wrong.json"
check "a wrong result has no time" [ "$(grep -c '"real_time"' "$out/wrong.json")" = 0 ]

# --- compare ------------------------------------------------------------------------------------------------------------------
# results FACTOR SHARE [MORE]: a file of two rows, the second as much slower, at that share of its ceiling
results() {
  local i samples=""
  for i in 1 2 3 4 5 6 7 8 9; do samples+="$(awk "BEGIN {print (1000 + $i) * $1}")${samples:+}, "; done
  printf '{"context": {"machine": "a"}, "benchmarks": [\n'
  printf '{"name": "matmul/a/t1/mlk", "contender": "mlk", "real_time": 50, "noise": 0.01, "share_of_ceiling": 0.5, "samples": [49, 50, 51, 50, 50]},\n'
  printf '{"name": "matmul/b/t1/mlk", "contender": "mlk", "real_time": %s, "noise": 0.01, "share_of_ceiling": %s%s, "samples": [%s]},\n' \
    "$(awk "BEGIN {print 1005 * $1}")" "$2" "${3:-}" "${samples%, }"
  printf '{"name": "matmul/b/t1/openblas", "contender": "openblas", "real_time": 900, "time_unit": "ns", "noise": 0.01}\n]}\n'
}
results 1 0.9 >"$out/old.json"
results 1.2 0.75 >"$out/slower.json"
results 1.2 0.9 >"$out/machine.json"
results 0.8 0.99 >"$out/faster.json"
results 1.02 0.88 >"$out/little.json"
results 1 0.9 ', "error_occurred": true, "error_message": "wrong"' >"$out/bad_result.json"
says 0 "3 contenders in both files, 0 only in the old one: 0 regressed by more than 5.0 %, 0 improved, 0 wrong" compare "$out/old.json" "$out/old.json"
says 1 "REGRESSED" compare "$out/old.json" "$out/slower.json"
check "compare: the mean with its interval" grep -q '^mlk: 1.095x on (geometric) average, 95 % interval 1.0[89].* .. 1.1.*, 2 rows' "$out/said"
says 0 "slower, as the machine was" compare "$out/old.json" "$out/machine.json"
says 0 "improved" compare "$out/old.json" "$out/faster.json"
says 0 " 0 regressed" compare "$out/old.json" "$out/little.json"
says 1 " 1 regressed by more than 1.0 %" compare "$out/old.json" "$out/little.json" --threshold 1
says 0 " 0 regressed" compare "$out/old.json" "$out/slower.json" --threshold 25
says 1 "1 wrong" compare "$out/old.json" "$out/bad_result.json"
says 0 " 0 regressed" compare "$out/x.json" "$out/x.json"
says 2 "compare needs two files" compare "$out/old.json"
says 2 "is a third" compare "$out/old.json" "$out/old.json" "$out/old.json"
says 2 "none.json: No such file" compare "$out/old.json" "$out/none.json"
sed 's/matmul/conv/' "$out/old.json" >"$out/others.json"
says 2 "share no row" compare "$out/old.json" "$out/others.json"
broken_file() { # broken_file "TEXT" "SENTENCE"
  printf '%s\n' "$1" >"$out/broken.json"
  says 2 "$2" compare "$out/old.json" "$out/broken.json"
}
broken_file '' "broken.json:2:1: a value must stand here, found the end of the file"
broken_file '{"benchmarks": [1, ]}' "broken.json:1:20: a value must stand here"
broken_file '{"context": {}}' "no array \"benchmarks\": not a file of mlk_bench"
broken_file '[]' "no array \"benchmarks\""
broken_file '{"benchmarks": [1]}' "a benchmark must be an object"
broken_file '{"benchmarks": [{"real_time": 1}]}' "a benchmark without \"name\""
broken_file '{"benchmarks": [{"name": "a", "real_time": 0}]}' "\"real_time\" of a must be a number above 0"
broken_file '{"benchmarks": [{"name": "a", "real_time": "1"}]}' "\"real_time\" must be a number"
broken_file '{"benchmarks": [{"name": "a", "real_time": 1, "time_unit": "h"}]}' "\"time_unit\" is h, which is none of ns, us, ms, s"
broken_file '{"benchmarks": [{"name": "a", "real_time": 1, "samples": [1, -1]}]}' "a sample must be a number above 0"
head -c 300 "$out/x.json" >"$out/broken.json"
says 2 "broken.json:" compare "$out/old.json" "$out/broken.json"

# --- a device -----------------------------------------------------------------------------------------------------------------
# The emulator of the CUDA tests takes the GPU's place. Its memory is the device's alone where there is AddressSanitizer: then a row that
# reads it from the host ends here, as one does that hands over the host's memory. Streams work as late as they may: who does not wait sees it.
CXX=${CXX:-c++}
if ! command -v "$CXX" >/dev/null; then skipped=$((skipped + 1)); echo "skip --device cuda: no $CXX"; finish; fi
bench=$out/mlk_bench_cuda sanitize=-fsanitize=address
export MLK_EMU_POINTERS=1 ASAN_OPTIONS=detect_leaks=0
printf 'int main(void) { return 0; }\n' >"$out/probe.c"
${CC:-cc} $sanitize "$out/probe.c" -o "$out/probe" 2>/dev/null && "$out/probe" || sanitize=""
broken="matmul/problem/17x17:17x17/cuda"
printf '#include "cuda_emulator_control.h"\n__attribute__((constructor)) static void late(void) { mlkt_emu_late_streams(1); }\n' >"$out/late.c"
$CXX -std=c++17 -O0 $sanitize -ffp-contract=off $(grep -qsw fma /proc/cpuinfo && echo -mfma) -Wno-unknown-pragmas -Itests -I. \
  -c tests/cuda_backend.cc -o "$out/backend.o" &&
  ${CC:-cc} -std=c99 -O0 $sanitize -DMLK_NO_AVX2 -DMLK_NO_AVX512 -DBENCH_CUDA -DBENCH_DEVICE_CACHE=65536 -DBENCH_BREAK_RESULTS="\"$broken\"" \
    ${OPENMP--fopenmp} -pthread -Itests -I. bench/mlk_bench.c "$out/late.c" "$out/backend.o" -o "$bench" -ldl -lm -lstdc++ ||
  { fail "mlk_bench does not compile with the emulated device"; finish; }
says 2 "--threads 2 is of the CPU; beside --device cuda it says nothing" run --device cuda --threads 2
says 2 "--isa scalar is of the CPU; beside --device cuda it says nothing" run --isa scalar --device cuda
says 2 "peers are of the CPU; bench/gpu.sh compares a GPU with cuBLAS and cuDNN" peers --device cuda
says 2 "matmul: threads and isa are of the CPU; a problem for --device cuda has neither" run matmul 8x8:8x8 threads=1 --device cuda
says 2 "matmul: numerics beside dtype=bf16: products of 16 bits have one kind" run matmul 8x8:8x8 dtype=bf16 numerics=fast --device cuda
"$bench" list --device cuda >"$out/list"
check "list --device cuda: hundreds of rows" [ "$(wc -l <"$out/list")" -gt 300 ]
check "list --device cuda: a name stands once, and is the device's" [ -z "$(cut -d ' ' -f 1 "$out/list" | sed 's,/cuda$,,' | sort | uniq -d; grep -v '/cuda ' "$out/list")" ]
check "list --device cuda: nothing of threads or instruction sets" [ -z "$(grep 'threads=\|isa=' "$out/list")" ]
for class in matmul/bf16 matmul/f16 conv/bf16 attention/bf16 attention/bf16_backward; do says 0 "$class/" list $class --device cuda; done
for batch in bench/batches/*.txt; do says 0 "/cuda " list --batch "$batch" --device cuda; done
sed 's/^[^ ]* *//' "$out/list" >"$out/all.txt"
"$bench" list --device cuda --batch "$out/all.txt" | sed 's/^[^ ]* *//' >"$out/again"
check "list --device cuda --batch: problems are read as they are written" diff "$out/all.txt" "$out/again"
says 0 "emulated sm_80, sm_80; host: " ceilings --device cuda
cat >"$out/few_cuda.txt" <<'END'
matmul 9x20:20x13
matmul 9x20:20x13 layout=tt batch=2 pad=2 epilogue=bias,gelu numerics=strict,fast
matmul 9x20:20x13 layout=nt packed=1 epilogue=silu cache=cold
matmul 9x20:20x13 dtype=bf16
matmul 8x16:16x24 layout=nt batch=2 pad=8 epilogue=bias,relu dtype=f16
matmul 8x16:16x24 packed=1 dtype=f16
conv 1x4x5x5:8x2x3x3 stride=2 pad=1 groups=2 layout=nhwc
conv 1x4x5x5:8x4x3x3 op=grad_x packed=1
conv 1x4x6:8x4x3 op=grad_w dilation=2
conv 1x8x5x5:8x1x3x3 pad=1 groups=8
conv 1x8x5x5:8x8x3x3 pad=1 layout=nhwc packed=1 dtype=bf16
conv 1x8x5x5:8x8x3x3 pad=1 op=grad_x dtype=f16
conv 1x8x5x5:8x8x3x3 pad=1 layout=nhwc op=grad_w dtype=bf16
knn q=3 base=60 d=8 k=5 metric=l2 numerics=strict,fast count=3
distances q=3 base=40 d=8 metric=ip
attention q=1x4x8x8 kv=1x2x12x8 mask=causal layout=bshd
attention q=1x2x8x8 kv=1x2x8x8 scores=bias
attention q=1x2x8x8 kv=1x2x8x8 scores=mask
attention q=1x2x8x8 kv=1x2x8x8 scores=alibi
attention q=1x2x8x8 kv=1x2x8x8 lengths=3,5 mask=causal
attention q=1x2x8x8 kv=1x2x8x8 op=bwd
attention q=1x4x1x8 kv=1x2x32x8 page=8
attention q=1x4x1x8 kv=1x2x32x8 dtype=f16 cache=cold
attention q=1x2x8x8 kv=1x2x8x8 layout=bshd dtype=bf16
attention q=1x2x8x8 kv=1x2x8x8 op=bwd dtype=f16
attention q=1x2x8x8 kv=1x2x8x8 op=bwd mask=causal dtype=bf16
merge parts=2 q=1x2x5x8
average n=4 elements=400 lists=4 dtype=bf16
average n=2 elements=400 into=all
softmax 4x50 cache=cold
map 4x50 op=mul
reduce 4x50
pool 2x4x4 layout=nhwc
norm 4x50 op=rms
cross_entropy 4x50
adamw 4x50
END
"$bench" run --device cuda --batch "$out/few_cuda.txt" --quick --min-time 0.001 --host-name here \
  --json "$out/cuda.json" --csv "$out/cuda.csv" --markdown "$out/cuda.md" >"$out/ran" 2>"$out/progress"
status=$?
check "run --device cuda: exit code $status, $(tail -n 1 "$out/ran") $(grep -m 1 'ERROR' "$out/progress")" [ $status = 0 ]
check "run --device cuda: closing line" grep -q '^36 rows, 0 wrong, ' "$out/ran"
check "run --device cuda: the machine is the device" grep -q '"machine": "emulated sm_80",' "$out/cuda.json"
if command -v python3 >/dev/null; then
  check "the files of a run on a device" python3 tests/bench_files.py "$out/cuda.json" "$out/cuda.csv" "$out/few_cuda.txt"
fi
says 1 "$broken" run --device cuda "matmul 17x17:17x17" --quick --min-time 0.001 --json "$out/wrong.json"
check "a wrong result on a device: in the JSON" grep -q '"error_occurred": true, "error_message": "wrong result, not timed: matrix 0' "$out/wrong.json"
says 2 "share no row" compare "$out/x.json" "$out/cuda.json"

finish
