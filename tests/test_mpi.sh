#!/usr/bin/env bash
# examples/06_group_mpi.c from outside: replica groups on MPI's windows. The weights have the same bits on 1 to 4 ranks,
# through shared memory, through messages, between network namespaces that stand for hosts, with Open MPI and MPICH; the
# averaging it times is right; its options.
#
# usage: tests/test_mpi.sh      from anywhere; CC, CFLAGS and OPENMP are taken from the environment, and MLK_OBJECT: the
#                               implementation of mlk.h as an object, to save compiling it. The namespaces need root.
# Ends with "N passed, N failed, N skipped"; without MPI with the status 77 and the reason.

set -u
cd "$(dirname "$0")/.." || exit 2
export LC_ALL=C OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}
CC=${CC:-cc}
CFLAGS=${CFLAGS:--O2}
WARN='-std=c99 -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Werror'
. tests/checks.sh

# Both kinds where a system has both; Debian gives them names of their own.
mpis=()
for kind in openmpi mpich; do have mpicc.$kind && have mpirun.$kind && mpis+=($kind); done
if [ ${#mpis[@]} = 0 ] && have mpicc && have mpirun; then
  case $(mpirun --version 2>&1) in *"Open MPI"*) mpis=(openmpi) ;; *) mpis=(mpich) ;; esac
fi
[ ${#mpis[@]} -gt 0 ] || skip "no mpicc and mpirun (Debian packages libopenmpi-dev, openmpi-bin)"
named() { if have "$1.$2"; then echo "$1.$2"; else echo "$1"; fi; } # named mpicc openmpi

run() { # run KIND RANKS ARGUMENTS...: of mpirun first, then behind -- of the program
  local kind=$1 ranks=$2 options=()
  shift 2
  # ranks that are bound to cores would share one with the tests beside this
  [ "$kind" = openmpi ] && options=(--bind-to none --oversubscribe)
  [ "$kind" = openmpi ] && [ "$(id -u)" = 0 ] && options+=(--allow-run-as-root)
  while [ $# -gt 0 ] && [ "$1" != -- ]; do options+=("$1") && shift; done
  shift
  timeout 100 "$(named mpirun $kind)" ${options[@]+"${options[@]}"} -n "$ranks" "$mlk_work/$kind" "$@"
}

hash_is() { # hash_is HASH COMMAND...: it prints that and nothing else
  local expected=$1 said
  shift
  said=$("$@" 2>"$mlk_work/err.$BASHPID") || { echo "$* gives $?: $said"; cat "$mlk_work/err.$BASHPID"; return 1; }
  [ "$said" = "$expected" ] || { echo "expected $expected, printed: $said"; return 1; }
}

# --- build ------------------------------------------------------------------------------------------------------------
library=${MLK_OBJECT:-$mlk_work/mlk.o}
if [ -z "${OPENMP+set}" ]; then
  OPENMP=
  echo 'int main(void) { return 0; }' >"$mlk_work/probe.c"
  $CC -fopenmp "$mlk_work/probe.c" -o "$mlk_work/probe" 2>/dev/null && OPENMP=-fopenmp
fi
[ -n "${MLK_OBJECT:-}" ] || $CC $WARN $CFLAGS $OPENMP -I. -c tests/test_mlk.c -o "$library" || exit 1
sed '/^#define MLK_IMPLEMENTATION$/d' examples/06_group_mpi.c >"$mlk_work/group_mpi.c"
for kind in "${mpis[@]}"; do
  OMPI_CC=$CC MPICH_CC=$CC "$(named mpicc $kind)" $WARN $CFLAGS -I. "$mlk_work/group_mpi.c" "$library" $OPENMP \
    -o "$mlk_work/$kind" -lm || { echo "examples/06_group_mpi.c does not compile with $kind" && exit 1; }
done

# --- the same bits ----------------------------------------------------------------------------------------------------
first=${mpis[0]}
alone() { run $first 1 -- --hash "$@" 2>/dev/null; }
few="--steps 5 --shares 4"
of_few=$(alone $few) of_some=$(alone --steps 40) of_seven=$(alone --steps 20 --shares 7)

whole_run() { # as a user starts it: the pinned weights, and an averaging that is checked
  run $first 2 -- --elements 300000 --rounds 3 >"$mlk_work/whole" 2>&1 || { cat "$mlk_work/whole"; return 1; }
  grep -q '^hash .* it is the pinned one$' "$mlk_work/whole" &&
    grep -q '^averaging  300000 floats of 2 ranks: mlk_group [0-9.]* ms, MPI_Allreduce' "$mlk_work/whole" &&
    grep -q 'means out of the error bound: 0 and 0; mlk_group gave all ranks the same bits$' "$mlk_work/whole" ||
    { cat "$mlk_work/whole"; return 1; }
}
check "a whole run on 2 ranks" whole_run

for kind in "${mpis[@]}"; do
  check "$kind, 1 rank" hash_is "$of_few" run $kind 1 -- --hash $few
  check "$kind, 2 ranks" hash_is "$of_few" run $kind 2 -- --hash $few
  check "$kind, 3 ranks" hash_is "$of_few" run $kind 3 -- --hash $few
done
check "$first, 2 ranks, more steps" hash_is "$of_some" run $first 2 -- --hash --steps 40
check "$first, 4 ranks, more steps" hash_is "$of_some" run $first 4 -- --hash --steps 40
check "$first, 3 ranks of 7 shares" hash_is "$of_seven" run $first 3 -- --hash --steps 20 --shares 7
if [ $first = openmpi ]; then
  check "openmpi by messages, 2 ranks" hash_is "$of_few" \
    run openmpi 2 --mca osc pt2pt --mca btl tcp,self --mca btl_tcp_if_include lo -- --hash $few
fi

# --- between hosts ----------------------------------------------------------------------------------------------------
# Two network namespaces with a cable between them; in place of ssh an agent that goes into the right one.
hosts() { # hosts RANKS-EACH
  local a=mlk$BASHPID-a b=mlk$BASHPID-b agent=$mlk_work/agent.$BASHPID
  [ "$(id -u)" = 0 ] || skip "not root: no network namespaces"
  have ip && have unshare || skip "no ip or unshare (Debian packages iproute2, util-linux)"
  trap "ip netns del $a; ip netns del $b" EXIT
  ip netns add $a && ip netns add $b || skip "network namespaces may not be made here"
  ip link add cable netns $a type veth peer name cable netns $b || skip "no veth devices here"
  ip -n $a addr add 10.213.0.1/24 dev cable && ip -n $b addr add 10.213.0.2/24 dev cable || return 1
  for name in $a $b; do ip -n $name link set lo up && ip -n $name link set cable up || return 1; done
  ip netns exec $a unshare --uts true || skip "hosts may not get names of their own here"
  cat >"$agent" <<END
#!/bin/sh
host=\$1
shift
case \$host in 10.213.0.1) name=$a ;; 10.213.0.2) name=$b ;; *) exit 1 ;; esac
exec ip netns exec \$name unshare --uts sh -c "hostname \$name; \$*"
END
  chmod +x "$agent"
  local mpirun="timeout 100 $(named mpirun openmpi) --allow-run-as-root --oversubscribe --bind-to none"
  mpirun="$mpirun --mca plm_rsh_agent $agent --mca btl tcp,self --mca btl_tcp_if_include cable"
  mpirun="$mpirun --mca oob_tcp_if_include cable --host 10.213.0.1:$1,10.213.0.2:$1 -n $((2 * $1))"
  hash_is "$of_few" "$agent" 10.213.0.1 "$mpirun $mlk_work/openmpi --hash $few"
}
if [ $first = openmpi ]; then
  check "2 hosts of 1 rank, over TCP" hosts 1
  check "2 hosts of 2 ranks, over TCP" hosts 2
else
  check "2 hosts" skip "no Open MPI"
fi

# --- options ----------------------------------------------------------------------------------------------------------
refuses() { # refuses RANKS "SENTENCE" ARGUMENTS...: exit code 2 and one line
  local ranks=$1 sentence=$2 said status
  shift 2
  said=$(run $first $ranks -- "$@" 2>&1)
  status=$?
  [ $status = 2 ] && [ "$(grep -c '^06_group_mpi:' <<<"$said")" = 1 ] && grep -q -F "06_group_mpi: $sentence" <<<"$said" ||
    { echo "status $status: $said"; return 1; }
}
check "steps that are no number" refuses 2 "--steps: is x, but must be 0 to 100000" --steps x
check "a value that is missing" refuses 1 "--shares: is missing, but must be 1 to 32" --shares
check "an unknown option" refuses 1 "unknown option --rank" --rank
check "more ranks than shares" refuses 3 "3 ranks, but there must be at most 16, and no more than shares (2)" --shares 2
help() { run $first 2 -- --help >"$mlk_work/help" && [ "$(grep -c '^usage:' "$mlk_work/help")" = 1 ]; }
check "--help" help

finish
