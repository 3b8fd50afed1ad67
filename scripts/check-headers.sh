#!/usr/bin/env bash
# Every header compiles alone; the public ones with every compiler that is there, xsr.h also as strict C11, in under
# 500 lines. A header that a source file includes before anything else is left to the build, which shows it.
set -euo pipefail
if [ "${1:-}" = --one ]; then
  flags=$3
  # Helper headers of an ISA need its flags; a contract compiles without.
  [[ $4 == *avx* ]] && flags+=" -mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512dq -mavx512vl -Wno-uninitialized"
  printf '#include "%s"\n' "$4" | $2 $flags -x c++ - && exit
  echo "check-headers: $4 does not compile alone with $2" >&2
  exit 1
fi

cd "$(dirname "$(realpath "$0")")/.."
failed=0
complain() { echo "check-headers: $*" >&2; failed=1; }

lines=$(wc -l <include/xsr/xsr.h)
[ "$lines" -lt 500 ] || complain "include/xsr/xsr.h has $lines lines, expected fewer than 500"

c=() cxx=()
for p in gcc clang; do command -v $p >/dev/null && c+=($p); done
for p in g++ clang++; do command -v $p >/dev/null && cxx+=($p); done
[ ${#c[@]} -gt 0 ] && [ ${#cxx[@]} -gt 0 ] || { echo "check-headers: no compiler" >&2; exit 1; }

for cc in "${c[@]}"; do
  printf '#include "xsr/xsr.h"\nint main(void) { return xsr_version_string() == 0; }\n' |
    $cc -std=c11 -pedantic -Wall -Wextra -Wstrict-prototypes -Werror -fsyntax-only -Iinclude -x c - ||
    complain "include/xsr/xsr.h does not compile as C11 with $cc"
done

flags="-std=c++20 -Wall -Wextra -Werror -Wno-unused-function -fsyntax-only -I. -Iinclude
  -isystem .deps/sentencepiece/include -DXSR_SOURCE_DIR=\"\" -DXSR_BINARY_DIR=\"\""
# Side by side, each by this script. Whether a header is whole does not hang on the compiler, so inside one will do; the
# last of them is clang, where it is there, and the quicker one.
check() { xargs -P "$(nproc)" -n 1 scripts/check-headers.sh --one "$1" "$flags"; }
for cc in "${cxx[@]}"; do
  printf '%s\n' include/xsr/xsr.h include/xsr/xsr.hpp | check "$cc" || failed=1
done
folders=(kernels runtime input converter corpus training bench)
headers=$(comm -23 <(find "${folders[@]}" -name '*.h' | sort) \
  <(find "${folders[@]}" -name '*.cpp' -not -path '*/fuzz/*' -exec grep -hm1 '^#include' {} + | cut -d'"' -f2 | sort -u))
check "${cxx[-1]}" <<<"$headers" || failed=1
[ "$failed" -eq 0 ] && echo "check-headers: xsr.h, xsr.hpp (${cxx[*]}) and the $(wc -l <<<"$headers") headers that no source includes first (${cxx[-1]}) compile alone"
exit "$failed"
