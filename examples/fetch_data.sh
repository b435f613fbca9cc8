#!/bin/sh
# Puts Fashion-MNIST (31 MB, MIT licence) into examples/data/cache/fashion-mnist, without root and without installing
# anything: the Debian and Ubuntu package dataset-fashion-mnist is downloaded and unpacked there.
# Says in one line what happened and always succeeds: the demo also runs without this data.
#
# usage: examples/fetch_data.sh [--quiet]     --quiet: nothing is printed
# MLK_OFFLINE=1 in the environment: nothing is downloaded.

package=dataset-fashion-mnist
case $0 in */*) here=${0%/*} ;; *) here=. ;; esac
here=$(cd "$here" && pwd) || exit 0
to=$here/data/cache/fashion-mnist
files='train-images-idx3-ubyte.gz train-labels-idx1-ubyte.gz t10k-images-idx3-ubyte.gz t10k-labels-idx1-ubyte.gz'
quiet=
[ "${1:-}" = --quiet ] && quiet=1

say() {
  [ "$quiet" ] || echo "Fashion-MNIST: $*"
  exit 0
}

by_hand="put its four *-ubyte.gz files from https://github.com/zalandoresearch/fashion-mnist into examples/data/cache/fashion-mnist"

# SHA-256 of the four files, in the order of $files
published='b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7
0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056
cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa
8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05'

# Are all four files in folder $1, with the published contents as far as this machine can tell?
has_all() {
  for f in $files; do [ -s "$1/$f" ] || return 1; done
  command -v sha256sum >/dev/null || return 0
  sums=$(cd "$1" && sha256sum $files | cut -d ' ' -f 1) && [ "$sums" = "$published" ]
}

has_all "$to" && say "already in examples/data/cache/fashion-mnist"
has_all "/usr/share/datasets/fashion-mnist" && say "already in /usr/share/datasets/fashion-mnist ($package is installed)"
[ "${MLK_OFFLINE:-}" = 1 ] && say "not fetched: MLK_OFFLINE=1"
command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || say "not fetched: no apt-get and dpkg-deb here; $by_hand"

work=$(mktemp -d) || say "not fetched: no temporary folder"
trap 'rm -rf "$work"' EXIT
trap 'exit 0' HUP INT TERM
cd "$work" || say "not fetched: no temporary folder"

# A dead mirror must not hold up a build.
patience='-o Acquire::Retries=1 -o Acquire::http::Timeout=15 -o Acquire::https::Timeout=15'
limit=
command -v timeout >/dev/null && limit='timeout 120'

# First with the package lists that are there; where there are none (fresh containers), with lists of our own.
$limit apt-get $patience download "$package" >log 2>&1
if ! ls ./*.deb >/dev/null 2>&1; then
  mkdir -p state/lists/partial cache/archives/partial
  own="-o Dir::State::Lists=$work/state/lists -o Dir::Cache=$work/cache -o APT::Sandbox::User="
  $limit apt-get $patience $own update >>log 2>&1
  $limit apt-get $patience $own download "$package" >>log 2>&1
fi
ls ./*.deb >/dev/null 2>&1 || say "not fetched: apt-get found no $package ($(grep '^E:' log | head -n 1)); $by_hand"

dpkg-deb -x ./*.deb tree >>log 2>&1 || say "not fetched: the package could not be unpacked; $by_hand"
has_all "$work/tree/usr/share/datasets/fashion-mnist" || say "not fetched: the package holds other files than expected; $by_hand"
rm -rf "$to" 2>>log
mkdir -p "${to%/*}" 2>>log && cp -R tree/usr/share/datasets/fashion-mnist "$to" 2>>log &&
  cp tree/usr/share/doc/"$package"/copyright "$to/LICENSE" 2>>log &&
  say "now in examples/data/cache/fashion-mnist (from $package)"
rm -rf "$to" 2>>log
say "not fetched: examples/data/cache cannot be written (disk full?)"
