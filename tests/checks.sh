# checks.sh - sourced by the scripts of tests/: named checks, run side by side, counted.
#
#   check NAME COMMAND...   queues a check. Exit status 0: passed; 77: skipped, the last line of output is the reason;
#                           anything else: failed.
#   finish                  waits, prints what failed with its output, then the closing line; status 1 when something failed
#
# MLK_JOBS: how many at once (default: the processors). MLK_VERBOSE=1: a line for passed checks too, with their processor time.
# MLK_LIVE=1: what became of a check is printed when it ends, and so is there when the script is killed.

mlk_jobs=${MLK_JOBS:-$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)}
mlk_work=$(mktemp -d "${TMPDIR:-/tmp}/mlk_checks.XXXXXX") || exit 2
trap 'rm -rf "$mlk_work"' EXIT
mlk_names=()

have() { command -v "$1" >/dev/null 2>&1; }
skip() { echo "$*"; exit 77; } # inside a checked function: it runs in a process of its own

wait_for_one() { wait -n; }
((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 403)) || wait_for_one() { sleep 0.1; } # older ones have no wait -n

wait_for_slot() {
  while [ "$(jobs -rp | wc -l)" -ge "$mlk_jobs" ]; do wait_for_one; done
}

check() {
  local name=$1 id=${#mlk_names[@]}
  shift
  mlk_names[id]=$name
  wait_for_slot
  mkdir "$mlk_work/$id"
  (
    ( "$@" ) >"$mlk_work/$id/log" 2>&1 </dev/null
    echo $? >"$mlk_work/$id/status"
    times >"$mlk_work/$id/times"
    [ -z "${MLK_LIVE:-}" ] || outcome $id
  ) &
}

seconds() { # of processor that check ID took, in its own process and in what it started
  tail -n 1 "$mlk_work/$1/times" | tr 'ms' '  ' | awk '{printf "%.1f s", $1 * 60 + $2 + $3 * 60 + $4}'
}

excerpt() { # the ends of a long log
  if [ "$(wc -l <"$1")" -le 30 ]; then cat "$1"; else head -n 14 "$1"; echo ...; tail -n 15 "$1"; fi
}

outcome() { # what became of check ID
  local log=$mlk_work/$1/log name=${mlk_names[$1]}
  case $(cat "$mlk_work/$1/status" 2>/dev/null) in
    0) [ -z "${MLK_VERBOSE:-}" ] || echo "ok    $name, $(seconds "$1")" ;;
    77) echo "skip  $name: $(tail -n 1 "$log")" ;;
    *) printf '%s\n' "FAIL  $name" "$(excerpt "$log" | sed 's/^/      /')" ;;
  esac
}

finish() {
  local id passed=0 failed=0 skipped=0
  wait
  for id in "${!mlk_names[@]}"; do
    [ -n "${MLK_LIVE:-}" ] || outcome "$id"
    case $(cat "$mlk_work/$id/status" 2>/dev/null) in
      0) passed=$((passed + 1)) ;;
      77) skipped=$((skipped + 1)) ;;
      *) failed=$((failed + 1)) ;;
    esac
  done
  echo "$passed passed, $failed failed, $skipped skipped"
  [ "$failed" -eq 0 ]
}
