#!/usr/bin/env bash
# check-symbols.sh BUILD: what the binaries show and need.
# - libxsr.so defines only xsr_ symbols, and every function of xsr.h; it needs libc, libm, libstdc++, libgcc only.
# - No object of one ISA defines a weak symbol: the linker could choose it for code that runs on any CPU.
set -euo pipefail
build=$(realpath "${1:?usage: check-symbols.sh BUILD}")
cd "$(dirname "$0")/.."
failed=0
complain() { echo "check-symbols: $*" >&2; failed=1; }

so=$(find "$build/runtime" -name 'libxsr.so*' -type f | head -n 1)
[ -n "$so" ] || { echo "check-symbols: no libxsr.so in $build/runtime" >&2; exit 1; }
shown=$(nm -D --defined-only "$so" | awk '{print $NF}' | sed 's/@.*//' | sort)
foreign=$(grep -v '^xsr_' <<<"$shown" || true)
[ -z "$foreign" ] || complain "libxsr.so shows" $foreign

# The declarations of xsr.h, comments and newlines gone.
declared=$(sed -e 's@/\*.*\*/@@' include/xsr/xsr.h | tr '\n' ' ' | grep -oP 'XSR_API [^();]*?\K\bxsr_\w+(?=\()' | sort)
[ -n "$declared" ] || complain "found no function in xsr.h"
missing=$(comm -23 <(echo "$declared") <(echo "$shown"))
[ -z "$missing" ] || complain "xsr.h declares, but libxsr.so does not define:" $missing
undeclared=$(comm -13 <(echo "$declared") <(echo "$shown"))
[ -z "$undeclared" ] || complain "libxsr.so defines, but xsr.h does not declare:" $undeclared

major=$(sed -n 's/^#define XSR_VERSION_MAJOR //p' include/xsr/xsr.h)
soname=$(objdump -p "$so" | awk '$1 == "SONAME" {print $2}')
[ "$soname" = "libxsr.so.$major" ] || complain "SONAME is $soname, expected libxsr.so.$major"
needed=$(objdump -p "$so" | awk '$1 == "NEEDED" {print $2}')
unknown=$(grep -vE '^(libc|libm|libstdc\+\+|libgcc_s|ld-linux-x86-64)\.so' <<<"$needed" || true)
[ -z "$unknown" ] || complain "libxsr.so needs" $unknown

objects=0
while IFS= read -r o; do
  objects=$((objects + 1))
  weak=$(nm -C --defined-only "$o" | awk '$2 ~ /^[WVu]$/' || true)
  [ -z "$weak" ] || complain "$(basename "$o") defines weak symbols (make them static inline):"$'\n'"$weak"
done < <(find "$build/kernels" -name '*_avx*.cpp.o' -o -name '*_amx.cpp.o')
[ "$objects" -gt 0 ] || complain "found no objects of an ISA in $build/kernels"

[ "$failed" -eq 0 ] && echo "check-symbols: $(wc -l <<<"$shown") functions, $(stat -c %s "$so") bytes, needs" $needed "; $objects ISA objects"
exit "$failed"
