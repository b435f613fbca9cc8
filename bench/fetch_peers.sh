#!/bin/sh
# Fetches the libraries that bench compares with into bench/peers (ignored by git): prebuilt packages, unpacked, not installed.
# Needs python3 with pip (wheels) and, for BLIS, apt-get and dpkg; no root. What cannot be had is named and left out.
#
#   sh bench/fetch_peers.sh              all of them, about 1.6 GB downloaded, 1.3 GB kept
#   sh bench/fetch_peers.sh openblas faiss
#
# Licences differ from MLK's (MKL and the runtimes of oneDNN are proprietary): for measuring, never for linking or shipping.
set -u
here=$(cd "$(dirname "$0")" && pwd)
peers=$here/peers
mkdir -p "$peers" || exit 1
work=$(mktemp -d "$peers/.fetch.XXXXXX") || exit 1
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM
failed=

# wheel PACKAGE [==VERSION]: downloads one package and unpacks it into $work/PACKAGE; sets $version.
wheel() {
  command -v python3 >/dev/null 2>&1 || { why="no python3"; return 1; }
  python3 -m pip --version >/dev/null 2>&1 || { why="python3 has no pip"; return 1; }
  mkdir -p "$work/dl" "$work/$1"
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --dest "$work/dl" "$1${2-}" \
    >"$work/log" 2>&1 || { why="pip download $1: $(grep -v '^$' "$work/log" | tail -n 1)"; return 1; }
  file=$(ls -t "$work"/dl/*.whl | head -n 1)
  version=$(basename "$file" | cut -d- -f2)
  python3 -m zipfile -e "$file" "$work/$1" || { why="$file does not unpack"; return 1; }
  rm -f "$file"
}

# keep PEER PACKAGE NAME...: moves the named libraries of an unpacked package into bench/peers/PEER.
keep() {
  peer=$1 package=$2
  shift 2
  mkdir -p "$work/out/$peer"
  for name in "$@"; do
    found=$(find "$work/$package" -name "$name" -type f | sort | head -n 1)
    [ -n "$found" ] || { why="$package has no $name"; return 1; }
    cp -p "$found" "$work/out/$peer/$name" || return 1
  done
}

openblas() {
  wheel scipy-openblas32 && keep openblas scipy-openblas32 libscipy_openblas.so
}

mkl() {
  wheel mkl && keep mkl mkl libmkl_rt.so.3 libmkl_core.so.3 libmkl_intel_lp64.so.3 libmkl_gnu_thread.so.3 \
    libmkl_sequential.so.3 libmkl_def.so.3 libmkl_mc3.so.3 libmkl_avx2.so.3 libmkl_avx512.so.3 libmkl_avx10.so.3
}

# The current package is built with SYCL and wants its runtime next to it; where that fails, the last plain CPU package (2023) does.
onednn() {
  if wheel intel-cmplr-lib-rt && keep onednn intel-cmplr-lib-rt libintlc.so.5 libirng.so libimf.so libsvml.so &&
    wheel tbb && keep onednn tbb libtbb.so.12 &&
    wheel intel-cmplr-lib-ur && keep onednn intel-cmplr-lib-ur libur_loader.so.0 &&
    wheel intel-sycl-rt && keep onednn intel-sycl-rt libsycl.so.9 &&
    wheel onednn && keep onednn onednn libdnnl.so.3; then
    return 0
  fi
  echo "  onednn: $why; taking onednn-cpu-gomp instead"
  rm -rf "$work/out/onednn"
  wheel onednn-cpu-gomp && keep onednn onednn-cpu-gomp libdnnl.so.3
}

# oneDNN's primitives (convolution, ...) need an engine, which the SYCL package has only beside a driver for the processor. Newest plain
# CPU build in a package: the one that PaddlePaddle ships, on GNU's OpenMP.
onednn_cpu() {
  wheel paddlepaddle && keep onednn_cpu paddlepaddle libdnnl.so.3 && version="in paddlepaddle $version"
}

faiss() {
  wheel faiss-cpu && mkdir -p "$work/out/faiss" && cp -Rp "$work/faiss-cpu/faiss_cpu.libs" "$work/out/faiss/" &&
    mkdir -p "$work/out/faiss/faiss" && cp -p "$work/faiss-cpu/faiss/libfaiss.so" "$work/out/faiss/faiss/"
}

# The package is a CUDA build; what runs on the CPU is one library of it, which asks for two of CUDA's runtime.
torch() {
  wheel torch && torch_version=$version && keep torch torch libtorch_cpu.so libc10.so libgomp.so.1 || return 1
  rm -rf "$work/torch"
  for package in cuda-runtime:libcudart cuda-cupti:libcupti; do
    soname=$(cuda_library "$work/out/torch/libtorch_cpu.so" "${package#*:}")
    [ -n "$soname" ] || continue
    wheel "nvidia-${package%:*}" "==${soname##*.}.*" && keep torch "nvidia-${package%:*}" "$soname" || return 1
  done
  version=$torch_version
}

# cuda_library FILE NAME: the file name of the CUDA library NAME that FILE asks for, e.g. libcudart.so.13; nothing when it does not.
cuda_library() {
  LC_ALL=C grep -ao "$2\.so\.[0-9]*" "$1" | head -n 1
}

onnxruntime() {
  wheel onnxruntime || return 1
  file=$(find "$work/onnxruntime" -name 'libonnxruntime.so*' -type f | head -n 1)
  [ -n "$file" ] || { why="onnxruntime has no libonnxruntime.so"; return 1; }
  mkdir -p "$work/out/onnxruntime" && cp -p "$file" "$work/out/onnxruntime/libonnxruntime.so"
}

blis() {
  command -v apt-get >/dev/null 2>&1 && command -v dpkg >/dev/null 2>&1 || { why="no apt-get and dpkg"; return 1; }
  mkdir -p "$work/blis" "$work/out/blis"
  (cd "$work/blis" && apt-get download libblis4-openmp) >"$work/log" 2>&1 ||
    { why="apt-get download libblis4-openmp: $(tail -n 1 "$work/log")"; return 1; }
  package=$(ls "$work"/blis/*.deb)
  version=$(dpkg --field "$package" Version)
  dpkg -x "$package" "$work/blis" && keep blis blis libblis.so.4
}

for peer in ${*:-openblas onednn onednn_cpu mkl blis faiss torch onnxruntime}; do
  case $peer in
  openblas | onednn | onednn_cpu | mkl | blis | faiss | torch | onnxruntime) ;;
  *) echo "no such peer: $peer (there are: openblas onednn onednn_cpu mkl blis faiss torch onnxruntime)" && exit 2 ;;
  esac
  why="?" version="?"
  echo "$peer ..."
  if $peer; then
    echo "$version" >"$work/out/$peer/VERSION"
    rm -rf "${peers:?}/$peer"
    mv "$work/out/$peer" "$peers/$peer"
    echo "  $peer $version"
  else
    echo "  $peer could not be had: $why"
    failed="$failed $peer"
  fi
done
[ -z "$failed" ] || echo "left out:$failed (bench runs without them and says so)"
exit 0
