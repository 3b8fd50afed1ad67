#!/usr/bin/env bash
# install_test.sh BUILD: installs the build into a folder of its own, moves that folder, and builds the examples
# against it as another project would: with find_package, and with pkg-config and a bare compiler.
set -euo pipefail
build=$(realpath "${1:?usage: install_test.sh BUILD}")
source=$(realpath "$(dirname "$0")/..")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() { echo "install_test: $*" >&2; exit 1; }

cmake --install "$build" --prefix "$work/first" >"$work/log" || { cat "$work/log" >&2; fail "cmake --install failed"; }
prefix="$work/moved"
mv "$work/first" "$prefix"
lib=$(dirname "$(find "$prefix" -name libxsr.so | head -n 1)")
[ -n "$lib" ] || fail "no libxsr.so was installed"
for f in include/xsr/xsr.h include/xsr/xsr.hpp bin/xsr-convert bin/xsr-embed bin/xsr-train bin/xsr-bench; do
  [ -e "$prefix/$f" ] || fail "$f was not installed"
done
! grep -rlI "$source" "$prefix" || fail "these installed files name the source tree"

cmake -S "$source/examples" -B "$work/examples" -G Ninja -DCMAKE_PREFIX_PATH="$prefix" -DCMAKE_BUILD_TYPE=Release \
  -DCMAKE_C_FLAGS="-Wall -Wextra -pedantic -Werror" -DCMAKE_CXX_FLAGS="-Wall -Wextra -pedantic -Werror" >"$work/log" &&
  cmake --build "$work/examples" >>"$work/log" || { cat "$work/log" >&2; fail "the examples do not build with find_package"; }
for p in embed-c embed-cpp xsr-demo; do [ -x "$work/examples/$p" ] || fail "find_package built no $p"; done

command -v pkg-config >/dev/null || fail "no pkg-config (scripts/install-deps.sh)"
export PKG_CONFIG_PATH="$lib/pkgconfig"
version=$(pkg-config --modversion xsr)
flags=$(pkg-config --cflags --libs xsr)
${CC:-gcc} -std=c11 -Wall -Wextra -pedantic -Werror "$source/examples/embed.c" $flags -lm -Wl,-rpath,"$lib" -o "$work/embed-c"
${CXX:-g++} -std=c++20 -Wall -Wextra -pedantic -Werror "$source/examples/embed.cpp" $flags -Wl,-rpath,"$lib" -o "$work/embed-cpp"

# Compilers of today begin with C++17: one line that says what to do, before a page about std::span.
! ${CXX:-g++} -std=c++17 -fsyntax-only "$source/examples/embed.cpp" $flags 2>"$work/error" || fail "xsr.hpp compiles as C++17"
grep -m 1 error "$work/error" | grep -q "needs C++20" || fail "the first error in C++17 does not name C++20: $(head -n 3 "$work/error")"

# Without a model file: an error that names it. With the shipped one: vectors.
! "$work/embed-c" "$work/none.xsr" 2>"$work/error" || fail "embed-c took a file that does not exist"
grep -q "none.xsr" "$work/error" || fail "the error does not name the file: $(cat "$work/error")"
if [ -e "$prefix/share/xsr/models/xsr-multi.xsr" ]; then
  model="$prefix/share/xsr/models/xsr-multi.xsr"
  one=$("$work/embed-c" "$model") && two=$("$work/examples/embed-c" "$model") || fail "embed-c failed"
  [ "$one" = "$two" ] || fail "the two builds of embed-c differ: $one / $two"
  mapfile -t sentences < <(head -n 2 <<<"$one")
  [ "$("$work/embed-cpp" "$model" "${sentences[@]}" | awk '{ print $1 }' | xargs)" = "1.0000 ${one##* }" ] ||
    fail "embed-cpp and embed-c find different cosines of: $one"
  demo=("$work/examples/xsr-demo" --model "$model" --pairs "$source/examples/data/tatoeba.en-fr.tsv")
  "${demo[@]}" >"$work/demo" || fail "xsr-demo failed"
  ! "$work/embed-c" "$model" >/dev/full || fail "embed-c does not notice a full disk"
  ! "$work/embed-cpp" "$model" "A cat." >/dev/full || fail "embed-cpp does not notice a full disk"
  ! "${demo[@]}" >/dev/full || fail "xsr-demo does not notice a full disk"
  # What is asked for is what is done, or refused with 2 (usage) or 1.
  fails_with() {
    local wanted=$1 status=0
    shift
    "$@" >/dev/null 2>"$work/error" || status=$?
    [ "$status" = "$wanted" ] || fail "ended with $status, expected $wanted: ${*##*/}: $(cat "$work/error")"
  }
  "${demo[@]}" --threads 1 | grep -q ", ISA [a-z0-9_]*, 1 thread$" || fail "xsr-demo --threads 1 has other threads"
  for usage in "--threads 1x" "--threads" "--pair x" "--model"; do fails_with 2 "${demo[0]}" $usage; done
  fails_with 2 "$work/embed-cpp" "$model"
  : >"$work/pairs.tsv"
  fails_with 1 "${demo[0]}" --model "$model" --pairs "$work/pairs.tsv"
  grep -q "pairs.tsv: holds no pairs" "$work/error" || fail "xsr-demo says of no pairs: $(cat "$work/error")"
  printf 'A cat.\tUn chat.\nA dog.\n' >"$work/pairs.tsv"
  fails_with 1 "${demo[0]}" --model "$model" --pairs "$work/pairs.tsv"
  grep -q "pairs.tsv:2: found no tab" "$work/error" || fail "xsr-demo says of a line without tab: $(cat "$work/error")"
  # What the demo finds is what scoring a model finds.
  found=$(awk '/P@1/ { print $5 }' "$work/demo" | xargs)
  scored=$("$prefix/bin/xsr-train" score "$model" "$source/examples/data/tatoeba.en-fr.tsv" | awk 'END { print $6, $8 }')
  [ "$found" = "$scored" ] || fail "xsr-demo finds $found % of the translations, xsr-train score $scored %"
  one=${one##*$'\n'}
fi
echo "install_test: xsr $version, find_package and pkg-config work; ${one:-no shipped model}"
