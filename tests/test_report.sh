#!/usr/bin/env bash
# test_report.sh - bench/report and bench/results.sh from outside: pages of small results (tests/data/report), made-up and
# hostile ones among them.
# usage: tests/test_report.sh      CC, CFLAGS as make gives them. Ends with "N passed, N failed, N skipped".
# With xmllint or python3 pages are parsed, with python3 or openssl the script's hash is computed, with Chromium they are
# laid out, as wide as a telephone and as a desk. What is not there is skipped, with a word.

cd "$(dirname "$0")/.." || exit 1
. tests/checks.sh
CC=${CC:-cc}
data=tests/data/report
WARN='-std=c99 -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Werror'
sanitize='-g1 -fsanitize=address,undefined -fno-sanitize-recover=all'
printf 'int main(void) { return 0; }\n' >"$mlk_work/probe.c"
$CC $sanitize "$mlk_work/probe.c" -o "$mlk_work/probe" >/dev/null 2>&1 && "$mlk_work/probe" || sanitize=""
report=$mlk_work/report page=$mlk_work/page.html
$CC $WARN -O1 $sanitize -I. bench/report.c -o "$report" -lm || { echo "0 passed, 1 failed, 0 skipped"; exit 1; }
browser=$(command -v chromium || command -v chromium-browser || command -v google-chrome)

all="$data/new.json $data/other.json $data/gpu.json"
"$report" --baseline $data/old.json --title 'A <title> & more' -o "$page" $all ||
  { echo "0 passed, 1 failed, 0 skipped"; exit 1; }
"$report" -o "$mlk_work/hostile.html" $data/hostile.json

wrong() { echo "$*"; return 1; }
says() { grep -qF -- "$2" "$1" || wrong "$1 does not say: $2" || return; }

# --- what the page says -----------------------------------------------------------------------------------------------

contents() { # figures of the fixtures, worked out by hand
  local status=0 text
  for text in 'Example CPU, avx512' 'Another CPU, avx512' 'Example GPU' 'A &lt;title&gt; &amp; more' \
    '<b class="bad">1</b>wrong results' '<b class="warn">2</b>noisy rows' \
    '1 contender failed the check and was not timed.' 'WRONG: element 3 is nan' '1 of 7 contenders regressed' \
    'REGRESSED' 'changed as the machine did' '1.213 to 1.288' '>improved<' '>1.250x<' \
    'matmul/<wbr/>large/<wbr/>1024/<wbr/>tN' '0.3.34, kernels: SkylakeX' 'absent: not fetched' '-O2 -fopenmp' \
    'mlk_bench run matmul/large/1024/t1' 'bench/gpu.sh --filter attention/decode/bf16/b32' \
    '>0.80x<' '>1.05x<' '>+10.0 %<' \
    '>49152<' '(cold)' '>1 MiB<' 'tile 12x32' '>97.6 % memory<' '>split<'; do
    says "$page" "$text" || status=1
  done
  return $status
}

once_each() { # both machines stand in one line: the row on all threads is one, though its names differ
  sed -n '/id="machines"/,/<\/table>/p' "$page" | grep 'large/<wbr/>1024/<wbr/>t' >"$mlk_work/lines"
  [ "$(wc -l <"$mlk_work/lines")" = 2 ] || wrong "not two lines for t1 and tN" || return
  grep '1024/<wbr/>tN' "$mlk_work/lines" | grep -q '5.00 ms.*3.12 ms' || wrong "not both times" || return
}

device() { # mlk_bench --device cuda: a machine of its own; its rows beside those on all threads of a processor
  sed -e 's,/t8,/cuda,g; s/"Another CPU"/"Another GPU"/; s/"device": "cpu"/"device": "cuda"/; s/"threads": 8/"threads": 1/' \
    $data/other.json >"$mlk_work/device.json"
  "$report" -o "$mlk_work/device.html" $data/new.json "$mlk_work/device.json" || return 1
  says "$mlk_work/device.html" 'Roofline of Another GPU, avx512, 1 thread' || return 1
  sed -n '/id="machines"/,/<\/table>/p' "$mlk_work/device.html" | grep '1024/<wbr/>tN' >"$mlk_work/lines"
  [ "$(wc -l <"$mlk_work/lines")" = 1 ] && grep -q '5.00 ms.*3.12 ms' "$mlk_work/lines" || wrong "not both times" || return
}

charts() { # a roofline for each machine and number of threads that something ran on; every row on one of them
  [ "$(grep -c '>Roofline of ' "$page")" = 5 ] || wrong "not 5 rooflines" || return
  [ "$(grep -c '>Speed against the best peer on ' "$page")" = 3 ] || wrong "not 3 charts of peers" || return
  [ "$(grep -c '>Predicted against measured time on ' "$page")" = 2 ] || wrong "not 2 charts of predictions" || return
  # rows on rooflines: 6 of each processor and 2 of the GPU; against peers 2, 2 and 1; predicted 3 and 3
  [ "$(grep -c '<use class="f[0-9h ]*" href="#m[0-9]" [^>]*><title>' "$page")" = 25 ] ||
    wrong "not 25 marks" || return
  [ "$(grep -c '<use class="f4 h"' "$page")" = 2 ] || wrong "the noisy rows are not hollow" || return
}

later_counts() { # the same machine twice: the later file's figures, once
  "$report" -o "$mlk_work/twice.html" $data/old.json $data/new.json || return 1
  says "$mlk_work/twice.html" '9 contenders were measured again' && says "$mlk_work/twice.html" '>10.0 ms<' || return 1
  ! grep -q '>8.00 ms<' "$mlk_work/twice.html" || wrong "the earlier file's time is there" || return
}

plain_google() { # what Google Benchmark itself writes: no rows, contenders, shares or context of ours
  printf '{"context": {"date": "2026", "num_cpus": 2}, "benchmarks": [{"name": "BM_x/8", "run_type": "iteration",
    "real_time": 2.5, "cpu_time": 2.5, "time_unit": "us", "items_per_second": 3},
    {"name": "BM_x/8_mean", "run_type": "aggregate",
    "real_time": 9, "time_unit": "us"}]}' >"$mlk_work/google.json"
  "$report" -o "$mlk_work/google.html" "$mlk_work/google.json" || return 1
  says "$mlk_work/google.html" '2.50 µs' && says "$mlk_work/google.html" 'BM_x/' &&
    says "$mlk_work/google.html" 'unknown machine' || return 1
  ! grep -q '_mean' "$mlk_work/google.html" || wrong "an aggregate is there" || return
}

markdown() {
  "$report" --markdown $all >"$mlk_work/said.md" || return 1
  says "$mlk_work/said.md" '| matmul | 3 | 86 % | 0.93x (2 rows) | 10 % |' || return
  says "$mlk_work/said.md" 'Wrong results: 1. Noisy rows: 2.' || return
  says "$mlk_work/said.md" '**Example CPU, avx512**, 2026-11-21T10:00:00+00:00, mlk 0.2.0, gcc 12.2.0, -O2 -fopenmp.' || return
  says "$mlk_work/said.md" ' Peers: openblas 0.3.34, kernels: SkylakeX. Command: build/mlk&#95;bench run --json ' || return
  "$report" --markdown $data/hostile.json >"$mlk_work/hostile.md" || return 1
  ! grep -q '<' "$mlk_work/hostile.md" || wrong "markup in Markdown" || return
}

uncalibrated() { # its plans told bounds, which are not shown as predictions
  grep -q predicted_time $data/new.json || wrong "no predictions to leave out" || return
  sed 's/"context": *{/"context": {"calibrated": false,/' $data/new.json >"$mlk_work/bounds.json"
  "$report" --markdown "$mlk_work/bounds.json" >"$mlk_work/bounds.md" || return 1
  grep -q '^| matmul .* | – |$' "$mlk_work/bounds.md" || wrong "bounds are taken for predictions" || return
  "$report" "$mlk_work/bounds.json" >"$mlk_work/bounds.html" && says "$mlk_work/bounds.html" 'No file has predicted times.'
}

stripped() { # without samples, all else as it was: the same page, and stripping twice changes nothing
  local less=$mlk_work/less.json same=$mlk_work/same.json
  "$report" --strip -o "$less" $data/new.json && "$report" --strip "$less" >"$less.2" && cmp "$less" "$less.2" || return 1
  grep -q samples $data/new.json && ! grep -q samples "$less" || wrong "samples are there, or never were" || return
  cp $data/new.json "$same" && "$report" "$same" >"$mlk_work/before.html" || return 1
  cp "$less" "$same" && "$report" "$same" >"$mlk_work/after.html" && cmp "$mlk_work/before.html" "$mlk_work/after.html"
}

check "the page says what the files say" contents
check "machines stand side by side" once_each
check "a GPU stands beside all threads" device
check "every row is on a chart" charts
check "of two measurements the later one counts" later_counts
check "files of Google Benchmark" plain_google
check "--markdown" markdown
check "--strip" stripped
check "bounds are no predictions" uncalibrated

# --- what the page is -------------------------------------------------------------------------------------------------

well_formed() { # FILE: as XML; and no id twice, which XML without a schema does not see
  if have xmllint; then xmllint --noout "$1" || return 1
  elif have python3; then python3 -c 'import sys, xml.dom.minidom; xml.dom.minidom.parse(sys.argv[1])' "$1" || return 1
  else skip "no xmllint and no python3"; fi
  [ -z "$(grep -o ' id="[^"]*"' "$1" | sort | uniq -d)" ] || wrong "an id stands there twice" || return
}
html_parses() { # FILE: as HTML: what is opened is closed
  have python3 || skip "no python3"
  python3 - "$1" <<'P'
import sys
from html.parser import HTMLParser
class Nesting(HTMLParser):
    open = []
    def handle_starttag(self, tag, attrs): self.open.append(tag)
    def handle_startendtag(self, tag, attrs): pass
    def handle_endtag(self, tag):
        last = self.open.pop()
        assert last == tag, '%s closed by %s, line %d' % (last, tag, self.getpos()[0])
parser = Nesting()
parser.feed(open(sys.argv[1], encoding='utf-8').read())
parser.close()
assert not parser.open, parser.open
P
}
offline() { # nothing is fetched: the only addresses are places of the page itself
  ! grep -nE '(src|href|data|action|poster)="[^#"]|url\(|@import|https?://|//[a-z]+\.[a-z]' "$1" || return 1
  says "$1" "default-src 'none'"
}
harmless() { # the only elements are ours, whatever rows are called: one script, no image, no handler
  local f=$mlk_work/hostile.html
  [ "$(grep -c '<script' "$f")" = 1 ] || wrong "more than one script" || return
  ! grep -niE '<img|<i>|<b>key|<svg onload| on[a-z]+="|<title></title>' "$f" || return 1
  says "$f" '&lt;script&gt;alert(&quot;row&quot;)&lt;/' &&
    says "$f" '&lt;/title&gt;&lt;img src=&quot;x&quot; onerror=' &&
    says "$f" '&quot;&gt;&lt;svg' && says "$f" "'&quot; onmouseover=&quot;alert(2)" &&
    says "$f" '&lt;!-- is &quot;wrong&quot; --&gt;' &&
    says "$f" '&lt;b&gt;key' && says "$f" "$(printf 'control \357\277\275 and \302\265 and \360\237\230\200')"
}
hash_fits() { # the policy runs the script that is there, and no other
  local hash
  sed -n '/^<script>/,/<\/script>/p' "$page" | sed '1s/^<script>//' | sed '/<\/script>/,$d' >"$mlk_work/script.js"
  if have openssl; then hash=$(openssl dgst -sha256 -binary "$mlk_work/script.js" | openssl base64)
  elif have python3; then
    hash=$(python3 -c 'import base64, hashlib, sys
print(base64.b64encode(hashlib.sha256(open(sys.argv[1], "rb").read()).digest()).decode())' "$mlk_work/script.js")
  else skip "no openssl and no python3"; fi
  says "$page" "sha256-$hash'"
}
accessible() { # tables have captions, heads scopes, charts titles and descriptions; one h1, sections under it
  local f=$page
  [ "$(grep -o '<table' "$f" | wc -l)" = "$(grep -o '<caption' "$f" | wc -l)" ] ||
    wrong "a table without a caption" || return
  ! grep -oE '<th( [^>]*)?>' "$f" | grep -qv scope= || wrong "a th without scope" || return
  [ "$(grep -o 'role="img"' "$f" | wc -l)" = "$(grep -o '<desc id' "$f" | wc -l)" ] ||
    wrong "a chart without a description" || return
  [ "$(grep -o '<h1' "$f" | wc -l)" = 1 ] && [ "$(grep -o '<h2' "$f" | wc -l)" -ge 8 ] || wrong "headings" || return
  local anchor
  for anchor in $(grep -o 'href="#[^"]*"' "$f" | sed 's/href="#//; s/"//' | sort -u); do
    grep -q " id=\"$anchor\"" "$f" || wrong "#$anchor leads nowhere" || return
  done
}
for f in page hostile; do
  check "$f.html is well-formed" well_formed "$mlk_work/$f.html"
  check "$f.html nests as HTML" html_parses "$mlk_work/$f.html"
  check "$f.html fetches nothing" offline "$mlk_work/$f.html"
done
check "names that are markup are text" harmless
check "the script's hash is the policy's" hash_fits
check "tables, charts and headings are announced" accessible

# --- contrast of text and marks with what they stand on, light and dark -----------------------------------------------
contrast() {
  sed -n '/^:root/,/^\*/p' "$page" | awk '
    function digit(h, i) { return index("0123456789abcdef", substr(h, i, 1)) - 1 }
    function part(h, i, v) {
      v = (digit(h, i) * 16 + digit(h, i + 1)) / 255
      return v <= 0.03928 ? v / 12.92 : exp(2.4 * log((v + 0.055) / 1.055)) }
    function light(h) { # the luminance of WCAG
      if (length(h) == 3) gsub(/./, "&&", h)
      return 0.2126 * part(h, 1) + 0.7152 * part(h, 3) + 0.0722 * part(h, 5) }
    function need(name, on, least, a, b, r) {
      a = light(c[name]); b = light(c[on]); asked++
      r = a > b ? (a + 0.05) / (b + 0.05) : (b + 0.05) / (a + 0.05)
      if (r < least) { printf "--%s on --%s: %.2f, not %.1f, line %d\n", name, on, r, least, NR; bad = 1 } }
    { line = $0
      while (match(line, /--[a-z0-9]+:#[0-9a-f]+/)) {
        split(substr(line, RSTART + 2, RLENGTH - 2), p, ":#"); c[p[1]] = p[2]; line = substr(line, RSTART + RLENGTH) } }
    /--fg:/ || /--f7:/ {
      need("fg", "bg", 7); need("fg", "panel", 7); need("fg", "warnbg", 7); need("fg", "badbg", 7)
      need("dim", "bg", 4.5); need("dim", "panel", 4.5); need("link", "bg", 4.5); need("bad", "bg", 4.5)
      need("bad", "badbg", 4.5); need("good", "bg", 4.5); need("warn", "bg", 4.5)
      for (i = 0; i < 8; i++) { need("f" i, "bg", 3); need("f" i, "panel", 3) } }
    END { if (asked < 54) { print "only " asked " pairs were found"; bad = 1 } exit bad }'
}
check "contrast, light and dark" contrast

# --- what is refused --------------------------------------------------------------------------------------------------
refused() { # SENTENCE BYTES: exit status 2, the sentence with file, line and column, and no page
  local status here=$mlk_work/refused$BASHPID
  printf "$2" >"$here.json"
  "$report" -o "$here.html" "$here.json" >"$here.out" 2>&1
  status=$?
  [ $status = 2 ] || { echo "exit status $status, not 2"; cat "$here.out"; return 1; }
  printf '%s\n' "$here.json:$1" | cmp -s - "$here.out" || { echo "expected :$1"; cat "$here.out"; return 1; }
  [ ! -e "$here.html" ] || wrong "a page was written" || return
}
nested=$(printf '%40s' '' | tr ' ' '[')
row='{"benchmarks": [{"name": "a", "real_time": '
while IFS='|' read -r sentence bytes; do
  check "refused: $sentence" refused "$sentence" "$bytes"
done <<ROWS
1:1: a value must stand here, found the end of the file|
1:1: a value must stand here, found 'x'|xyz
1:1: neither "benchmarks" (bench --json) nor "rows" (bench/gpu.sh): no result of bench|{"context": {}}
1:1: neither "benchmarks" (bench --json) nor "rows" (bench/gpu.sh): no result of bench|[1, 2]
1:16: "benchmarks" must be an array|{"benchmarks": 3}
2:7: ',' or '}' must stand here, found the end of the file|{"a":\n1.5e+3
2:2: a key in quotes must stand here, found '}'|{"a": 1,\n }
1:5: a value must stand here, found ']'|[1, ]
1:4: ',' or ']' must stand here, found '2'|[1 2]
1:6: ':' must follow a key, found ','|{"a" , 1}
1:9: something follows the value: '}'|{"a": 1}}
1:2: a number with a leading 0|[01]
1:3: a digit must follow the sign, found 'i'|[-inf]
1:4: a digit must follow the point, found ']'|[1.]
1:4: a digit must follow the e, found ']'|[1e]
1:2: 1e999 is beyond what a double holds|[1e999]
1:2: a value must stand here, found 'N'|[NaN]
1:2: no value in JSON begins like this; true is one|[trye]
1:2: a string that does not end|["abc
1:3: byte 0x0a in a string must be written as an escape|["\\n"]
1:4: no escape in JSON begins with \\ and 'x'|["\\\\x41"]
1:7: \\u wants four hexadecimal digits, found 'g'|["\\\\u00g0"]
1:3: \\u0000 in a string|["\\\\u0000"]
1:3: half of a surrogate pair|["\\\\ud800"]
1:3: byte 0xff is no UTF-8|["\\377"]
1:3: byte 0xc0 is no UTF-8|["\\300\\200"]
1:3: byte 0xc3 begins no UTF-8 sequence that ends|["\\303"]
1:3: a sequence that UTF-8 does not allow, U+D800|["\\355\\240\\200"]
1:1: a value must stand here, found byte 0xef|\\357\\273\\277{}
1:10: the key "a" stands there twice|{"a": 1, "a": 2}
1:34: more than 32 levels deep|$nested
1:17: this row has no "name"|{"benchmarks": [{"real_time": 1}]}
1:17: this row has no "real_time"|{"benchmarks": [{"name": "a"}]}
1:17: a row must be an object|{"benchmarks": [7]}
1:44: "real_time" must be a number|$row"1"}]}
1:44: "real_time" must be above 0|${row}0}]}
1:44: "real_time" is -1; it must be 0 or in 1e-24 .. 1e24|${row}-1}]}
1:60: "time_unit" is "min"; it must be ns, us, ms or s|${row}2, "time_unit": "min"}]}
1:56: "noise" is 1e+30; it must be 0 or in 1e-24 .. 1e24|${row}2, "noise": 1e30}]}
1:58: "threads" is 0; it must be in 1 .. 65536|${row}2, "threads": 0}]}
1:55: "busy" must be true or false|${row}2, "busy": "no"}]}
1:58: "samples" must be an array|${row}2, "samples": 3}]}
1:62: a sample must be a number in 1e-24 .. 1e24|${row}2, "samples": [1, 0]}]}
1:13: "context" must be an object|{"context": [], "benchmarks": []}
1:28: "ceilings" must be an array|{"context": {"ceilings":   5}, "benchmarks": []}
1:29: a ceiling must be an object|{"context": {"ceilings":   [5]}, "benchmarks": []}
ROWS

arguments() { # WORDS SENTENCE: bad arguments
  local said status
  said=$("$report" $1 2>&1 </dev/null)
  status=$?
  [ $status = 2 ] && [ "$said" = "$2" ] || wrong "exit status $status: $said" || return
}
check "no file" arguments "" "report: no file; see --help"
check "no value" arguments "-o" "report: -o needs a value; see --help"
check "unknown argument" arguments "--fast x.json" "report: unknown argument --fast; see --help"
check "a wrong threshold" arguments "--threshold x y.json" "report: --threshold: x is not a number in 0 .. 1000"
check "no such file" arguments "/nowhere/x.json" "/nowhere/x.json: No such file or directory"
check "a folder" arguments "$data" "$data: cannot be read"
check "nowhere to write" arguments "-o /nowhere/x.html $data/new.json" \
  "report: cannot write /nowhere/x.html: No such file or directory"
check "--strip of two" arguments "--strip a.json b.json" "report: --strip takes one file and nothing else"
check "--markdown with a baseline" arguments "--markdown --baseline a.json b.json" \
  "report: --markdown has no part for --baseline"
full_disk() {
  [ -w /dev/full ] || skip "no /dev/full"
  arguments "-o /dev/full $data/new.json" "report: cannot write /dev/full"
}
check "a full disk" full_disk

# --- bench/results.sh, with a stand-in for mlk_bench ------------------------------------------------------------------
cat >"$mlk_work/stand_in" <<'STAND_IN'
#!/bin/sh
# runs avx512 and avx2 "rows": tests/data/report/new.json, and ends with the status that is asked for
command=$1
while [ $# -gt 0 ]; do
  case $1 in --isa) isa=$2 ;; --json) json=$2 ;; esac
  shift
done
case $isa in avx512 | avx2) ;; *) exit 2 ;; esac
[ "$command" != run ] || sed "s/\"mlk_isa\": \"avx512\"/\"mlk_isa\": \"$isa\"/" tests/data/report/new.json >"$json"
[ "$command" != run ] || exit "${STAND_IN_STATUS:-0}"
STAND_IN
chmod +x "$mlk_work/stand_in"

run_results() { # WORDS...: in the folder $here
  STAND_IN_STATUS=${asked:-0} BENCH=$mlk_work/stand_in REPORT=$report WORK=$here/work OUT=$here/results \
    README=$here/README.md bash bench/results.sh "$@" >"$here/said" 2>&1
}
results() { # STATUS README-TEXT WORDS...: results.sh in a folder of its own, $here
  local wanted=$1 status
  here=$mlk_work/results$BASHPID
  mkdir -p "$here"
  printf '%b' "$2" >"$here/README.md"
  shift 2
  run_results "$@"
  status=$?
  [ $status = "$wanted" ] || { echo "exit status $status, not $wanted"; cat "$here/said"; return 1; }
}
marks='# Title\nbefore\n<!-- figures: none -->\nold\n<!-- end of figures -->\nafter\n'
results_written() {
  local files="cpu-x-avx2.json cpu-x-avx512.json cpu-x.html cpu-x.md "
  results 0 "$marks" --name cpu-x --quick || return 1
  [ "$(ls "$here/results" | tr '\n' ' ')" = "$files" ] || { ls "$here/results"; return 1; }
  says "$here/results/cpu-x.md" '**Example CPU, avx2**' && says "$here/results/cpu-x.md" '`bench/results.sh --quick`' &&
    says "$here/results/cpu-x.html" 'Example CPU, avx2' || return 1
  says "$here/README.md" '| matmul | 3 | 86 % | 0.93x (2 rows) | 10 % |' || return 1
  ! grep -q 'old\|avx2\*\*' "$here/README.md" && [ "$(grep -c '^<!-- ' "$here/README.md")" = 2 ] &&
    [ "$(sed -n '1,2p;$p' "$here/README.md" | tr '\n' ' ')" = "# Title before after " ] ||
    { cat "$here/README.md"; return 1; }
  cp "$here/README.md" "$here/once"
  run_results --name cpu-x --quick && cmp "$here/once" "$here/README.md"
}
results_wrong() { # the page is there and says it, README is as it was
  asked=1 results 1 "$marks" --name cpu-x || return 1
  [ -s "$here/results/cpu-x.html" ] && [ "$(cat "$here/README.md")" = "$(printf '%b' "$marks")" ] ||
    { cat "$here/README.md"; return 1; }
  says "$here/said" "a result was wrong; $here/README.md is left alone"
}
results_refused() { # STATUS-TEXT README WORDS...
  local sentence=$1
  shift
  results 2 "$@" && says "$here/said" "$sentence"
}
check "results.sh writes page, table, figures and README" results_written
check "results.sh with a wrong result" results_wrong
check "results.sh without marks" results_refused "has no line <!-- figures: ... -->" "# Title\\n"
check "results.sh with half the marks" results_refused \
  "has no line <!-- end of figures -->" "<!-- figures: none -->\\nold\\n" --name x
check "results.sh with a path for a name" results_refused "make a file's name, not: ../x" "$marks" --name ../x
check "results.sh, unknown argument" results_refused "unknown argument --fast" "$marks" --fast
asked=2 check "results.sh where mlk_bench fails" results_refused "mlk_bench does not run" "$marks" --name x

# --- how it looks: laid out by a browser ------------------------------------------------------------------------------
# In a frame of so many pixels, since a window is never that narrow. A script in a copy of the page tells the page around
# the frame: its width, by how much the content exceeds it, elements that stick out, labels of charts that are too small,
# whether a table was sorted, and how many files were asked for.
question='addEventListener("load",()=>{
const root=document.documentElement,right=e=>e.getBoundingClientRect().right;
const out=[...document.querySelectorAll("body *")].filter(e=>!e.closest(".box, svg")).filter(e=>right(e)>innerWidth+1);
const small=[...document.querySelectorAll("svg[role] text")].filter(e=>e.getBoundingClientRect().height<9);
const button=document.querySelector("table.sort th button");
button.click();
const sorted=button.parentElement.getAttribute("aria-sort"),asked=performance.getEntriesByType("resource").length;
parent.postMessage([innerWidth,root.scrollWidth-root.clientWidth,out.length,small.length,sorted,asked].join(" "),"*");});'

laid_out() { # PIXELS FILE
  [ -n "$browser" ] || skip "no Chromium"
  local here=$mlk_work/frame$BASHPID said
  mkdir "$here"
  sed "s/script-src '[^']*'/script-src 'unsafe-inline'/; /^<\/body>/d; /^<\/html>/d" "$2" >"$here/copy.html"
  printf '<script>%s</script></body></html>\n' "$question" >>"$here/copy.html"
  printf '<!DOCTYPE html><title>none</title><body style="margin:0">
    <script>addEventListener("message",e=>{document.title=e.data})</script>
    <iframe src="copy.html" style="width:%spx;height:900px;border:0"></iframe>' "$1" >"$here/frame.html"
  said=$(timeout 90 "$browser" --headless=new --no-sandbox --disable-gpu --user-data-dir="$here/profile" \
    --virtual-time-budget=5000 --window-size=1500,1000 --dump-dom "file://$here/frame.html" 2>/dev/null | grep -o '<title>[^<]*' | head -n 1)
  [ "$said" = "<title>$1 0 0 0 ascending 0" ] ||
    wrong "frame, excess, elements beyond it, small labels, sorted, requests: $said"
}
for width in 390 1280; do
  for f in page hostile; do check "$f.html fits $width pixels" laid_out $width "$mlk_work/$f.html"; done
done
finish
