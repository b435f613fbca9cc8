#!/bin/sh
# Builds average.cc with what this machine has of MPI (mpicxx, mpirun) and gloo (libgloo-dev), and runs it with 2 and 4 processes.
#   sh bench/processes/run.sh [SECONDS]      for each contender and size, default 1
set -eu
cd "$(dirname "$0")/../.."
out=build/processes
mkdir -p "$out"
seconds=${1:-1}
flags="-O2 -Wall -Wextra -I." cxx=${CXX:-g++} libs=-lm start="" alone=1
if command -v mpicxx >/dev/null && command -v mpirun >/dev/null; then
  cxx=mpicxx flags="$flags -DBENCH_MPI" alone=0
  # processes share the cores: a waiting one must let others run
  start="mpirun --oversubscribe --bind-to none --mca mpi_yield_when_idle 1"
  [ "$(id -u)" != 0 ] || start="$start --allow-run-as-root"
else
  echo "no mpicxx and mpirun (Debian: libopenmpi-dev openmpi-bin): without MPI_Allreduce"
fi
printf '#include <gloo/allreduce.h>\nint main() {}\n' >"$out/probe.cc"
if g++ "$out/probe.cc" -o "$out/probe" -lgloo >/dev/null 2>&1; then
  flags="$flags -DBENCH_GLOO" libs="-lgloo $libs"
else
  echo "no gloo (Debian: libgloo-dev): without it"
fi
printf '#define MLK_IMPLEMENTATION\n#include "mlk.h"\n' >"$out/mlk.c"
[ "$out/mlk.o" -nt mlk.h ] || ${CC:-cc} -O2 -I. -c "$out/mlk.c" -o "$out/mlk.o"
$cxx $flags bench/processes/average.cc "$out/mlk.o" -o "$out/average" $libs
for ranks in 2 4; do
  if [ $alone = 1 ]; then "$out/average" $ranks "$seconds"; else $start -n $ranks "$out/average" 0 "$seconds"; fi
done
