#!/usr/bin/env bash
# flags_test.sh BUILD: inside another project that asks for fast-math and for instructions of its own, the library alone is built,
# by BUILD's compilers, and so that it computes the same bits.
set -euo pipefail
build=$(realpath "${1:?usage: flags_test.sh BUILD}")
source=$(realpath "$(dirname "$0")/..")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() { echo "flags_test: $*" >&2; exit 1; }
compiler() { sed -n "s/^CMAKE_$1_COMPILER:[A-Z]*=//p" "$build/CMakeCache.txt"; }

cat >"$work/CMakeLists.txt" <<END
cmake_minimum_required(VERSION 3.25)
project(user LANGUAGES CXX)
set(CMAKE_CXX_STANDARD 17)
add_compile_options(-ffast-math)
add_link_options(-ffast-math)
add_subdirectory("$source" xsr)
add_executable(user user.cpp)
target_link_libraries(user PRIVATE xsr::xsr)
END
echo "#include <xsr/xsr.h>" >"$work/user.cpp"
tools=(-G Ninja -DCMAKE_MAKE_PROGRAM="$(command -v ninja)" -DCMAKE_C_COMPILER="$(compiler C)" -DCMAKE_CXX_COMPILER="$(compiler CXX)")
cmake -S "$work" -B "$work/build" "${tools[@]}" -DCMAKE_BUILD_TYPE=Release -DCMAKE_CXX_FLAGS="-funsafe-math-optimizations -mavx512bf16 -funsigned-char" \
  -DCMAKE_CXX_FLAGS_RELEASE=-Ofast -DXSR_CCACHE=OFF >"$work/log" 2>&1 || { cat "$work/log" >&2; fail "cmake fails in another project"; }
# Where a dependency is missing: what to run.
! cmake -S "$work" -B "$work/bare" "${tools[@]}" -DCMAKE_FIND_USE_CMAKE_SYSTEM_PATH=OFF \
  -DCMAKE_FIND_USE_SYSTEM_ENVIRONMENT_PATH=OFF >"$work/log" 2>&1 || fail "cmake does without the system's headers"
grep -q "xxHash is not found.*scripts/install-deps.sh" <(tr -s "\n " " " <"$work/log") || { cat "$work/log" >&2; fail "no word of what installs xxHash"; }
! cmake -S "$work" -B "$work/arm" "${tools[@]}" -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 >"$work/log" 2>&1 ||
  fail "cmake takes another processor"
grep -q "xsr is for x86-64" "$work/log" || { cat "$work/log" >&2; fail "no word of the processor that xsr is for"; }
# Unpacked among what another project builds: no commit of that project's.
mkdir -p "$work/app/build/xsr/cmake"
cp "$source/CMakeLists.txt" "$work/app/build/xsr"
cp "$source/cmake/XsrCommit.cmake" "$work/app/build/xsr/cmake"
git -C "$work/app" init -q && git -C "$work/app" -c user.name=a -c user.email=a@b commit -q --allow-empty -m app
echo "set(PROJECT_SOURCE_DIR \"$work/app/build/xsr\")
include(\"$work/app/build/xsr/cmake/XsrCommit.cmake\")
message(STATUS \"commit \${xsr_commit}\")" >"$work/commit.cmake"
commit=$(cmake -P "$work/commit.cmake")
[ "$commit" = "-- commit unknown" ] || fail "xsr takes another project's commit for its own: $commit"

cd "$work/build"
commands=$(ninja -t commands all)
! grep -qE "xsr-embed|xsr-train|_test|embed-c" <<<"$commands" || fail "another project builds more than the library"

# What fast-math and contraction, all parts of them, and unsigned char make something else of.
cat >"$work/probe.cpp" <<END
float sum(const float* a) { float s = 0; for (int i = 0; i < 64; ++i) s += a[i]; return s; }
float divide(float x) { return x / 3.0f; }
float product_and_sum(float a, float b, float c) { return a * b + c; }
bool is_nan(float x) { return x != x; }
float with_zero(float x) { return x + 0.0f; }
bool is_negative(char c) { return c < 0; }
END
# flags_of FILE: the compiler and its flags.
flags_of() { grep -m 1 -- "/$1.o -c" <<<"$commands" | sed "s/ -MD .*//"; }
# assembly FLAGS OUT: the probe's.
assembly() { eval "$1 -O3 -S \"\$work/probe.cpp\" -o \"\$work/$2\"" 2>"$work/log" || { cat "$work/log" >&2; fail "the probe does not compile"; }; }
for file in kernels/gemm/gemm_{ref,avx2,avx512}.cpp runtime/c_api.cpp; do
  flags=$(flags_of "${file#*/}")
  assembly "$flags" here.s
  assembly "$(sed -E "s/ -(ffast-math|funsafe-math-optimizations|funsigned-char)\>//g" <<<"$flags") -ffp-contract=off" strict.s
  assembly "${flags//-fno-fast-math/}" loose.s
  cmp -s "$work/here.s" "$work/strict.s" || fail "the project's flags change what $file computes"
  ! cmp -s "$work/loose.s" "$work/strict.s" || fail "the probe does not show fast-math: $flags"
done

link=$(grep -m 1 -- "-shared .*libxsr\.so" <<<"$commands")
eval "${link/ -shared / -shared -### }" >"$work/log" 2>&1 || true
grep -q "crti\.o" "$work/log" || fail "it does not show what libxsr.so is linked from: $(tail -n 1 "$work/log")"
! grep -q "crtfastmath" "$work/log" || fail "libxsr.so sets the denormals of a process to 0"

for pair in avx512: avx512_vnni: avx512_bf16:1; do
  file=kernels/gemm/gemm_${pair%:*}.cpp
  found=$(eval "$(flags_of "${file#*/}") -dM -E \"\$source/\$file\"" | sed -n "s/^#define __AVX512BF16__ //p")
  [ "$found" = "${pair#*:}" ] || fail "__AVX512BF16__ is '$found' in $file, expected '${pair#*:}'"
done
echo "flags_test: fast-math and more instructions change nothing"
