#!/usr/bin/env bash
# model.sh - the protocol of mlk_group, checked by spin: every state of the model group.pml, then the same with one rule
# of the protocol missing, where spin must find what goes wrong. Needs spin and a C compiler.
# usage: tests/model.sh [--long]      --long: larger runs, a minute and 1 GB for each
# CC, MLK_JOBS, MLK_VERBOSE: as for run.sh and checks.sh. Ends with "N passed, N failed, N skipped"; without spin with
# the status 77 and the reason.

set -u
cd "$(dirname "$0")/.." || exit 2
root=$PWD
CC=${CC:-cc}
. tests/checks.sh
have spin || skip "no spin (Debian package spin)"
have "${CC%% *}" || skip "no C compiler for what spin writes"

checker() { # checker COMPILER-FLAGS "SETTINGS": makes the program that walks through the model, in a folder of its own
  cd "$(mktemp -d "$mlk_work/model.XXXXXX")" || exit 1
  spin -a $2 "$root/tests/group.pml" >said 2>&1 || { cat said; exit 1; }
  $CC -w -DMEMLIM=3000 $1 pan.c -o pan || exit 1
}

verdict() { # verdict RUN: everything was looked at, and nothing found
  grep -q ' errors: 0$' "$1" && ! grep -q -E 'not completed|depth too small|out of memory' "$1"
}

holds() { # holds SETTINGS...: no violated property, no state in which somebody waits for ever
  local optimise=-O0 # the optimiser takes longer than it saves, but for the large runs
  case $1 in *=3) optimise=-O1 ;; esac
  checker "$optimise -DSAFETY" "$*"
  ./pan -m100000 -n >run 2>&1
  verdict run || {
    grep -E '^pan:|errors:|warning' run
    [ ! -f group.pml.trail ] || spin -t -p $* -k group.pml.trail "$root/tests/group.pml" | tail -n 60
    return 1
  }
  grep 'states, stored' run
}

no_circles() { # no_circles SETTINGS...: whoever is not at rest gets on: there is no endless run without progress
  checker "-O0 -DNP" "$*"
  ./pan -l -m200000 -n >run 2>&1
  verdict run || { grep -E '^pan:|errors:|warning' run; return 1; }
}

bites() { # bites WHAT SETTINGS...: the named property is violated
  local what=$1
  shift
  checker "-O0 -DSAFETY" "$*"
  ./pan -m100000 -n >run 2>&1
  grep -q -F "pan:1: $what" run || { echo "expected: $what"; grep -E '^pan:|errors:|warning' run; return 1; }
}

long=0
[ "${1:-}" != --long ] || long=1
mutant() { # mutant NUMBER NAME WHAT SETTINGS...: without --long some of them, of each kind one
  local number=$1 name=$2
  shift 2
  [ $long = 1 ] || case " 1 4 8 12 15 17 18 " in *" $number "*) ;; *) return ;; esac
  check "mutant $number: $name" bites "$@"
}

two="-DN=2 -DSTEPS=3" three="-DN=3 -DSTEPS=2"
everything="-DDEATHS=2 -DREJOINS=2"

# the longest first
check "3 ranks, losses fail the step, replacement" holds $three -DMIN=3 -DDEATHS=1 -DREJOINS=1
check "3 ranks, two shots" holds $three -DTWO_SHOT=1
check "3 ranks, a rank comes back" holds $three -DREJOINS=1
check "3 ranks, deaths, no deadlines: nobody is stuck" holds $three -DDEADLINES=0 -DDEATHS=2 -DREJOINS=1
ranges="$three -DTWO_SHOT=1 -DDEADLINES=0 -DDEATHS=1 -DREJOINS=1"
check "3 ranks, two shots, death, no deadlines: nobody is stuck" holds $ranges
check "3 ranks, no deaths, no deadlines: all are in all steps" holds -DN=3 -DSTEPS=3 -DDEADLINES=0
check "2 ranks, deaths, replacements" holds $two $everything
check "2 ranks, losses fail the step" holds $two $everything -DMIN=2
check "2 ranks, two shots, death, replacement" holds $two -DTWO_SHOT=1 -DDEATHS=1 -DREJOINS=1
check "2 ranks, deaths, no deadlines: nobody is stuck" holds $two -DDEADLINES=0 $everything
check "2 ranks, losses fail the step, no deadlines" holds $two -DDEADLINES=0 $everything -DMIN=2
check "2 ranks, nobody runs in circles" no_circles $two -DDEADLINES=0 $everything
opening="-DSTEPS=1 -DOPENS=1 -DDEADLINES=0 -DDEATHS=2"
check "3 ranks open, some leave or die: nobody is stuck" holds -DN=3 $opening -DREJOINS=1

mean="assertion violated good" parameters="assertion violated  !(stale)"
mutant 1 "slots written before the others have read" "$mean" -DMUTANT=1 $two
mutant 2 "no look at the next step" "$mean" -DMUTANT=2 $two
mutant 3 "the look before the reading" "$mean" -DMUTANT=3 $three
mutant 4 "decided by a store" "assertion violated ((decided[s]==0)||" -DMUTANT=4 $two
mutant 5 "removed by a store" "assertion violated ((decided[s]==0)||" -DMUTANT=5 $two
mutant 6 "provisional means kept" "assertion violated (over==(w&7))" -DMUTANT=6 $two
mutant 7 "decided before all have published" "$mean" -DMUTANT=7 $two
mutant 8 "a rank that was left out goes on" "assertion violated ((w&7)&(1<<_pid))" -DMUTANT=8 $two
mutant 9 "announced, then written" "$mean" -DMUTANT=9 $two
twice="assertion violated (slot[_pid]<s)"
mutant 10 "a replacement in its predecessor's step" "$twice" -DMUTANT=10 $two $everything -DMIN=2
mutant 11 "a replacement taken for its predecessor" "$parameters" -DMUTANT=11 $two $everything
mutant 12 "joined, and nobody gives" "$parameters" -DMUTANT=12 $two $everything
mutant 13 "joined with a step that failed" "$parameters" -DMUTANT=13 $two $everything -DMIN=2
mutant 14 "ranges of another mask" "$mean" -DMUTANT=14 $three -DTWO_SHOT=1
mutant 15 "a range announced, then written" "$mean" -DMUTANT=15 $two -DTWO_SHOT=1
mutant 16 "waiting for the range of a rank that was replaced" "invalid end state" -DMUTANT=16 $ranges
mutant 17 "waiting for a range that is cut otherwise" "invalid end state" -DMUTANT=17 $ranges
mutant 18 "waiting for one that had opened, and left" "invalid end state" -DMUTANT=18 -DN=3 $opening

if [ $long = 1 ]; then
  check "3 ranks, 3 steps" holds -DN=3 -DSTEPS=3
  check "3 ranks, 3 steps, deaths, no deadlines" holds -DN=3 -DSTEPS=3 -DDEADLINES=0 -DDEATHS=2 -DREJOINS=1
  check "3 ranks, 3 steps, losses fail the step, no deadlines" holds -DN=3 -DSTEPS=3 -DDEADLINES=0 $everything -DMIN=3
  check "3 ranks, two must be left" holds $three -DMIN=2 -DDEATHS=1 -DREJOINS=1
  check "3 ranks, 3 steps, two shots" holds -DN=3 -DSTEPS=3 -DTWO_SHOT=1 -DDEADLINES=0 -DDEATHS=1 -DREJOINS=1
fi
finish
