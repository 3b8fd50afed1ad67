#!/usr/bin/env bash
# Installs what building, testing and running xsr needs on Debian (bookworm or newer). Idempotent: what is there
# is left alone. Works as root or through sudo. Says what it does.
#   install-deps.sh        everything: tools, tests, benches, checks
#   install-deps.sh demo   what the library and the examples need
#   install-deps.sh peers  everything, and what the virtual environments of bench/peers need
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(build-essential cmake ninja-build ca-certificates libxxhash-dev)
case "${1:-all}" in
  demo) ;;
  all | peers)
    packages+=(
      git pkg-config ccache python3
      clang clang-format libclang-rt-dev llvm # second compiler, fuzzers, format check
      libcli11-dev libfmt-dev nlohmann-json3-dev libtomlplusplus-dev zlib1g-dev libzstd-dev libssl-dev
      libgtest-dev libgmock-dev libbenchmark-dev
      libdnnl-dev ocl-icd-opencl-dev # oneDNN; its CMake files ask for OpenCL
    )
    if [ "${1:-all}" = peers ]; then packages+=(python3-venv python3-dev); fi  # torch.compile includes Python.h
    ;;
  *) echo "usage: $0 [demo | peers]" >&2; exit 2 ;;
esac
say() { echo "install-deps: $*" >&2; }

sudo=""
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null || { say "not root and no sudo: run this as root"; exit 1; }
  sudo="sudo"
fi

missing=()
for p in "${packages[@]}"; do
  dpkg-query -W -f='${db:Status-Status}' "$p" 2>/dev/null | grep -qx installed || missing+=("$p")
done
if [ ${#missing[@]} -gt 0 ]; then
  say "apt-get install ${missing[*]}"
  $sudo apt-get update -qq
  DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
else
  say "all Debian packages are there"
fi

# SentencePiece as a static, position-independent library: Debian ships only the shared one, so build its source
# package. The apt lists for sources live in a folder for the occasion; the system's configuration is not touched.
sp="$PWD/.deps/sentencepiece"
if [ ! -e "$sp/lib/libsentencepiece.a" ] || [ ! -e "$sp/lib/libsentencepiece_train.a" ]; then
  say "building SentencePiece (static) from Debian's source package into .deps/"
  # Not in .deps/: SentencePiece's own build cannot stand in a folder with a space in its name.
  work=$(mktemp -d)
  trap '$sudo rm -rf "$work"' EXIT
  mkdir -p "$work/lists/partial" "$work/src"
  . /etc/os-release
  keyring=/usr/share/keyrings/debian-archive-keyring.gpg
  echo "deb-src [signed-by=$keyring] http://deb.debian.org/debian ${VERSION_CODENAME:-bookworm} main" >"$work/src.list"
  opts=(-o Dir::Etc::sourcelist="$work/src.list" -o Dir::Etc::sourceparts=/dev/null
        -o Dir::State::Lists="$work/lists" -o APT::Sandbox::User="$(id -un)")
  # `apt-get update` locks the system's archive folder, hence root; the download itself does not need it.
  $sudo apt-get "${opts[@]}" update -qq
  (cd "$work/src" && apt-get "${opts[@]}" source --download-only -qq sentencepiece)
  tar -xzf "$work"/src/sentencepiece_*.orig.tar.gz -C "$work/src"
  cmake -S "$work"/src/sentencepiece-*/ -B "$work/build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_POSITION_INDEPENDENT_CODE=ON \
    -DSPM_ENABLE_SHARED=OFF -DSPM_ENABLE_TCMALLOC=OFF -DCMAKE_INSTALL_PREFIX="$sp" -DCMAKE_INSTALL_LIBDIR=lib \
    -DCMAKE_CXX_FLAGS="-fvisibility=hidden -w" >"$work/log" 2>&1 || { tail -40 "$work/log" >&2; exit 1; }
  # Only what xsr links: the two libraries, not the command-line tools.
  cmake --build "$work/build" --target sentencepiece-static sentencepiece_train-static >>"$work/log" 2>&1 ||
    { tail -40 "$work/log" >&2; exit 1; }
  mkdir -p "$sp/include" "$sp/lib"
  cp "$work"/src/sentencepiece-*/src/sentencepiece_{processor,trainer}.h "$sp/include/"
  cp "$work"/build/src/libsentencepiece{,_train}.a "$sp/lib/"  # last: what is tested for above
else
  say "SentencePiece is built"
fi

# Beside nvcc, what shows the machine code that it made (check.cuda_code); NVIDIA's packages of nvcc alone lack it. The
# check is left out where it cannot be had.
tools="$PWD/.deps/cuda-tools"
nvcc=$(command -v nvcc || ls /usr/local/cuda/bin/nvcc 2>/dev/null || true)
if [ "${1:-all}" != demo ] && [ -n "$nvcc" ] && [ ! -x "$tools/cuobjdump" ] &&
  [ ! -x "$(dirname "$nvcc")/cuobjdump" ] && ! command -v cuobjdump >/dev/null; then
  wheels=$(mktemp -d)
  if python3 -m pip download -q --no-deps -d "$wheels" 'nvidia-cuda-cuobjdump>=13' 'nvidia-cuda-nvdisasm>=13' >"$wheels/log" 2>&1 &&
    python3 - "$wheels" "$tools" <<'END'
import pathlib, sys, zipfile
tools = pathlib.Path(sys.argv[2])
tools.mkdir(parents=True, exist_ok=True)
for wheel in pathlib.Path(sys.argv[1]).glob("*.whl"):
    archive = zipfile.ZipFile(wheel)
    for name in archive.namelist():
        if name.endswith(("/bin/cuobjdump", "/bin/nvdisasm")):
            tool = tools / pathlib.Path(name).name
            tool.write_bytes(archive.read(name))
            tool.chmod(0o755)
END
  then
    say "cuobjdump and nvdisasm are in .deps/cuda-tools/"
  else
    say "no cuobjdump from PyPI: check.cuda_code will be skipped"
  fi
  rm -rf "$wheels"
fi
say "done"
