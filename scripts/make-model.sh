#!/usr/bin/env bash
# Converts a trained XSR checkpoint and its SentencePiece model to models/xsr-en-fr.xsr (bf16), checks the result and
# compares it with the manifest. The same input gives the same bytes on every machine.
#   scripts/make-model.sh CHECKPOINT.pth.tar SENTENCEPIECE.model [OUT.xsr]
# XSR_CONVERT names the converter when it is not under build/.
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
say() { echo "make-model: $*" >&2; }
if [ $# -lt 2 ] || [ $# -gt 3 ]; then
  say "usage: scripts/make-model.sh CHECKPOINT.pth.tar SENTENCEPIECE.model [OUT.xsr]"
  exit 2
fi
out="${3:-$root/models/xsr-en-fr.xsr}"
manifest="$root/models/xsr-en-fr.manifest.json"

convert="${XSR_CONVERT:-}"
if [ -z "$convert" ]; then
  convert="$(find "$root"/build* -type f -name xsr-convert -perm -u+x 2>/dev/null | head -n 1)"
fi
if [ ! -x "$convert" ]; then
  say "xsr-convert is not built: run 'make build' first, or name it in XSR_CONVERT"
  exit 1
fi

"$convert" "$1" -o "$out" --spm "$2" --family xsr --heads 8 --lowercase --dtype bf16 \
  --license "$root/models/xsr-en-fr.LICENSE.txt"
"$convert" --check "$out"
sum="$(sha256sum "$out" | cut -d ' ' -f 1)"
if ! grep -q "\"$sum\"" "$manifest"; then
  say "$out has SHA-256 $sum, which is not the one in $manifest: another checkpoint or converter? Update the manifest."
  exit 1
fi
say "$out matches the manifest"
