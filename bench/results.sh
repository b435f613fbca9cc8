#!/usr/bin/env bash
# results.sh - measures this machine and writes what docs/results shows of it: NAME-ISA.json for each instruction set,
# NAME.html (the page of bench/report), NAME.md (medians by family), and the figures of README.md between its marks.
# usage: bench/results.sh [--quick] [--name NAME] [--no-readme]
#   --quick: fewer rows, about six minutes with all peers; without it about 25. Rows run on one and on all threads.
#   --name: default, the processor's. --no-readme: README.md stays as it is.
# Leave the machine alone meanwhile, and fetch the peers before (make peers). CC, CFLAGS; OUT: the folder (default
# docs/results); WORK: that of the files with their samples (default build/results); README: the file with the marks;
# BENCH, REPORT: other builds. Exit status: 0; 1 when a result was wrong: the page says which, README is left alone;
# 2 when something does not build or run.

set -u
cd "$(dirname "$0")/.." || exit 2
quick=0 name="" readme=${README:-README.md}
while [ $# -gt 0 ]; do
  case $1 in
    --quick) quick=1 ;;
    --name) shift; name=${1:?--name needs a value} ;;
    --no-readme) readme="" ;;
    --help | -h) sed -n '2,10s/^# //p' bench/results.sh; exit 0 ;;
    *) echo "results.sh: unknown argument $1; try --help" >&2; exit 2 ;;
  esac
  shift
done
give_up() { echo "results.sh: $*" >&2; exit 2; }

bench=${BENCH:-build/mlk_bench} report=${REPORT:-build/report} out=${OUT:-docs/results}
[ -n "${BENCH:-}" ] || make -s build/mlk_bench || exit 2
[ -n "${REPORT:-}" ] || make -s build/report || exit 2
work=${WORK:-build/results} # files as they were measured, samples and all, stay there
mkdir -p "$out" "$work" || exit 2
if [ -z "$name" ]; then
  name=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo 2>/dev/null | head -n 1)
  name=cpu-$(printf '%s' "${name:-$(uname -m)}" | tr '[:upper:] ' '[:lower:]-' |
    sed 's/(r)//g; s/(tm)//g' | tr -cd 'a-z0-9-')
fi
case $name in
  *[!A-Za-z0-9._-]* | "") give_up "--name: letters, digits, '.', '_' and '-' make a file's name, not: $name" ;;
esac
[ -z "$readme" ] || grep -q '^<!-- figures: ' "$readme" || give_up "$readme has no line <!-- figures: ... -->"

# The best instruction set with all peers and rows; of the others the quick rows, without peers, which have no such
# rows. The scalar one is some fifty times slower: the largest rows would take it minutes each.
too_large=-/large/,-forced,-knn/pictures,-distances,-attention/forward,-attention/short,-attention/backward
args_of() { # ISA BEST?
  local args="--isa $1"
  [ "$2" = 1 ] && [ $quick = 0 ] && args="$args --min-time 0.15"
  [ "$2" = 1 ] && [ $quick = 1 ] && args="$args --quick"
  [ "$2" = 0 ] && args="$args --quick --no-peers"
  [ "$1" = scalar ] && args="$args --filter $too_large"
  echo "$args"
}

status=0 best="" files=()
for isa in avx512 avx2 neon scalar; do
  "$bench" list --isa $isa >"$work/list" 2>&1 || continue # does not run here
  args=$(args_of $isa $([ -z "$best" ] && echo 1 || echo 0))
  echo "results.sh: $bench run $args"
  "$bench" run $args --json "$work/$isa.json" >"$work/said" 2>&1
  case $? in
    0) ;;
    1) status=1; grep -i wrong "$work/said" | head -n 20 ;;
    *) tail -n 5 "$work/said"; give_up "mlk_bench does not run" ;;
  esac
  tail -n 1 "$work/said"
  "$report" --strip -o "$out/$name-$isa.json" "$work/$isa.json" || exit 2
  files+=("$out/$name-$isa.json")
  [ -n "$best" ] || best=$isa
done
[ -n "$best" ] || give_up "mlk_bench lists no rows for any instruction set"

"$report" --title "MLK on $name" -o "$out/$name.html" "${files[@]}" || exit 2
"$report" --markdown "${files[@]}" >"$work/all.md" && "$report" --markdown "${files[0]}" >"$work/best.md" || exit 2
kind=$([ $quick = 1 ] && echo "bench/results.sh --quick" || echo "bench/results.sh")
{
  commit=$(git rev-parse --short HEAD 2>/dev/null || echo unknown)
  printf '# MLK on %s\n\nMade by `%s`, commit %s. ' "$name" "$kind" "$commit"
  printf 'The page with every row, its ceilings, peers and command: [%s](%s).\nFigures:' "$name.html" "$name.html"
  for file in "${files[@]}"; do printf ' [%s](%s)' "$(basename "$file")" "$(basename "$file")"; done
  printf '.\n'
  cat "$work/all.md"
} >"$out/$name.md"

bytes=$(cat "${files[@]}" "$out/$name.html" "$out/$name.md" | wc -c)
echo "results.sh: $out/$name.html, $out/$name.md and ${#files[@]} files of figures, $((bytes / 1024)) KiB"
[ "$bytes" -lt 2097152 ] || echo "results.sh: that is more than 2 MiB, much for a repository"
[ $status = 0 ] || { echo "results.sh: a result was wrong${readme:+; $readme is left alone}"; exit 1; }

# What stands between the marks comes from the best instruction set's file.
if [ -n "$readme" ]; then
  {
    printf '<!-- figures: docs/results/%s-%s.json; bench/results.sh writes up to the next mark -->\n' "$name" "$best"
    cat "$work/best.md"
    printf '\nMade by `%s`; every row and the other instruction sets: [docs/results/%s.md](docs/results/%s.md).\n' \
      "$kind" "$name" "$name"
    echo '<!-- end of figures -->'
  } >"$work/block"
  awk -v block="$work/block" '
    /^<!-- figures: / { while ((getline line < block) > 0) print line; inside = 1; next }
    /^<!-- end of figures -->/ && inside { inside = 0; next }
    !inside { print }
    END { exit inside }' "$readme" >"$work/readme" ||
    give_up "$readme has no line <!-- end of figures --> after the first mark"
  cp "$work/readme" "$readme" || exit 2
fi
exit $status
