#!/usr/bin/env bash
# Every header compiles alone, with every compiler that is there; xsr.h also as strict C11, in under 500 lines.
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
failed=0 checked=0
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

flags=(-std=c++20 -Wall -Wextra -Werror -Wno-unused-function -fsyntax-only -I. -Iinclude -isystem .deps/sentencepiece/include)
# Side by side, each by this script.
headers=$(find include kernels runtime converter corpus retrieval training bench tests -name '*.h' -o -name '*.hpp' 2>/dev/null | sort || true)
checked=$(wc -l <<<"$headers")
for cc in "${cxx[@]}"; do
  xargs -P "$(nproc)" -n 1 scripts/check-headers.sh --one "$cc" "${flags[*]}" <<<"$headers" || failed=1
done
[ "$failed" -eq 0 ] && echo "check-headers: $checked headers compile alone with ${cxx[*]}"
exit "$failed"
