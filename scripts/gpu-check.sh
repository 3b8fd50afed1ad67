#!/usr/bin/env bash
# gpu-check.sh [--no-build] [--quick]: what only a machine with an NVIDIA GPU can tell. Needs no network.
#   builds the preset cuda; runs every CUDA test, none of which may be skipped for want of a device; runs them again under
#   compute-sanitizer, memcheck and racecheck; times sessions and steps of training on the device, the latter also with
#   NCCL in between, on one rank, where NCCL is installed, and both beside PyTorch where python3 has it.
# Writes docs/results/gpu-check.json (what passed), gpu-{f32,tf32,bf16,bf16-qkv-table,text}.json (xsr-bench) and
# gpu-train-{f32,tf32,bf16,bf16-nccl}.json (xsr-train-bench), gpu-peers.json (gpu_peers.py) and gpu-train-peers-{128,1024}.json
# (train_baseline.py), each with the device's name.
# Exit status 1: something failed, or there is no GPU.
#   --no-build  build/cuda is there already
#   --quick     without racecheck, and with fewer sentences
# XSR_GPU_CHECK_SECONDS (1200): the most that one test program may take under compute-sanitizer.
set -uo pipefail
cd "$(dirname "$0")/.."
build=yes quick=no
for argument in "$@"; do
  case "$argument" in
    --no-build) build=no ;;
    --quick) quick=yes ;;
    *) echo "usage: $0 [--no-build] [--quick]" >&2; exit 2 ;;
  esac
done
say() { echo "gpu-check: $*" >&2; }
die() { say "$*"; exit 1; }

command -v nvidia-smi >/dev/null || die "no GPU here: there is no nvidia-smi. Run this where an NVIDIA driver is installed."
device=$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null | head -n 1)
[ -n "$device" ] || die "no GPU here: nvidia-smi lists none. Run this where 'nvidia-smi -L' shows a device."
say "${device%,*}, driver ${device#*, }"

if [ $build = yes ]; then
  cmake --preset cuda && cmake --build --preset cuda || die "the preset cuda does not build"
fi
results="$PWD/docs/results" work="$PWD/build/cuda/gpu-check"
rm -rf "$work" && mkdir -p "$work"
failed=0
fail() { say "FAILED: $*"; failed=1; }

tests=()
for program in build/cuda/tests/cuda_*_test; do
  [ -x "$program" ] && [[ $program != *_emulated_test ]] && tests+=("$program")
done
[ ${#tests[@]} -gt 0 ] || die "build/cuda/tests holds no CUDA tests"
for program in "${tests[@]}"; do
  name=$(basename "$program")
  "$program" "--gtest_output=json:$work/$name.json" >"$work/$name.log" 2>&1 ||
    { tail -n 40 "$work/$name.log" >&2; fail "$name"; }
  # A device that libraries and tests do not see would leave everything skipped, and green.
  ! grep -m 1 'no CUDA device' "$work/$name.log" >&2 || fail "$name was skipped: it saw no device"
done

sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
tools=(memcheck racecheck)
[ $quick = no ] || tools=(memcheck)
for tool in "${tools[@]}"; do
  [ -n "$sanitizer" ] || { fail "$tool: there is no compute-sanitizer; install the CUDA toolkit's"; continue; }
  for program in "${tests[@]}"; do
    name=$(basename "$program")
    XSR_TEST_SMALL=1 timeout "${XSR_GPU_CHECK_SECONDS:-1200}" "$sanitizer" --tool "$tool" --error-exitcode 9 "$program" --gtest_brief=1 \
      >"$work/$name.$tool" 2>&1 && touch "$work/$name.$tool.passed" ||
      { tail -n 20 "$work/$name.$tool" >&2; fail "$name under $tool"; }
  done
done

sentences=200000
[ $quick = no ] || sentences=20000
bench() {  # bench WHAT ARGUMENTS...
  local what=$1
  shift
  build/cuda/bench/xsr-bench --device cuda --threads 0 --tokens 1,20,100 "$@" --json "$work/gpu-$what.json" &&
    cp "$work/gpu-$what.json" "$results/gpu-$what.json" || fail "bench $what"
}
random=(--random 2,512,8,1024,50000 --sentences $sentences)
bench f32 "${random[@]}" --dtype f32
bench tf32 "${random[@]}" --dtype tf32
bench bf16 "${random[@]}" --dtype bf16
bench bf16-qkv-table "${random[@]}" --dtype bf16 --qkv-table
# Text to vectors; the lines come again, since the file is small.
cut -f 1 examples/data/tatoeba.en-fr.tsv >"$work/lines" && for _ in $(seq 8); do
  cat "$work/lines" "$work/lines" >"$work/twice" && mv "$work/twice" "$work/lines"
done
bench text --model models/xsr-multi.xsr --corpus "$work/lines" --dtype f32

seconds=5
[ $quick = no ] || seconds=1
train_bench() {  # train_bench WHAT ARGUMENTS...
  local what=train-$1
  shift
  build/cuda/bench/xsr-train-bench --device cuda --random 2,512,8,1024,50000 --pairs 128,1024 --seconds $seconds "$@" \
    --json "$work/gpu-$what.json" && [ -s "$work/gpu-$what.json" ] &&
    cp "$work/gpu-$what.json" "$results/gpu-$what.json" || fail "bench $what"
}
train_bench f32 --precision f32
train_bench tf32 --precision tf32
train_bench bf16 --precision bf16
nccl="not installed"
# As the trainer loads it.
if python3 -c 'import ctypes; ctypes.CDLL("libnccl.so.2")' 2>/dev/null; then
  nccl="one rank"
  train_bench bf16-nccl --precision bf16 --exchange
fi
say "NCCL: $nccl"
pytorch="not installed"
if python3 -c 'import numpy, torch; assert torch.cuda.is_available()' 2>/dev/null; then
  pytorch="beside xsr"
  python3 bench/peers/gpu_peers.py --build build/cuda --sentences $sentences --json "$work/gpu-peers.json" &&
    cp "$work/gpu-peers.json" "$results/gpu-peers.json" || fail "bench peers"
  turns=7
  [ $quick = no ] || turns=2
  train_peers() {  # train_peers COMMAND ARGUMENTS...
    python3 bench/peers/train_baseline.py "$1" --device cuda --build build/cuda --config presets/xsr-2layer.toml --made-up "${@:2}"
  }
  train_peers follow || fail "PyTorch's trainer takes other steps"
  for pairs in 128 1024; do
    what=train-peers-$pairs
    train_peers speed --set data.batch_pairs=$pairs --block 32 --turns $turns --json "$work/gpu-$what.json" &&
      cp "$work/gpu-$what.json" "$results/gpu-$what.json" || fail "bench $what"
  done
fi
say "PyTorch: $pytorch"

commit=$(git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)
python3 - "$work" "$results/gpu-check.json" "$device" "$commit" "$nccl" "$pytorch" "${tests[@]##*/}" -- "${tools[@]}" <<'PYTHON' || fail "gpu-check.json"
import datetime, json, pathlib, sys
work, to, device, commit, nccl, pytorch, *rest = sys.argv[1:]
tests, tools = rest[:rest.index("--")], rest[rest.index("--") + 1:]
name, driver = device.rsplit(", ", 1)
report = {"device": name, "driver": driver, "date": datetime.date.today().isoformat(), "commit": commit, "nccl": nccl,
          "pytorch": pytorch, "tests": {}}
for test in tests:
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    try:
        suites = json.loads((pathlib.Path(work) / f"{test}.json").read_text())["testsuites"]
    except (OSError, ValueError):
        suites, counts["failed"] = [], 1  # it did not come to its end
    for suite in suites:
        for case in suite["testsuite"]:
            result = "failed" if case.get("failures") else "skipped" if case["result"] == "SKIPPED" else "passed"
            counts[result] += 1
    for tool in tools:
        counts[tool] = "passed" if (pathlib.Path(work) / f"{test}.{tool}.passed").exists() else "failed"
    report["tests"][test] = counts
pathlib.Path(to).write_text(json.dumps(report, indent=2) + "\n")
total = {key: sum(t[key] for t in report["tests"].values()) for key in ("passed", "failed", "skipped")}
print(f"gpu-check: {name}: {total['passed']} tests passed, {total['failed']} failed, {total['skipped']} skipped")
PYTHON
[ $failed = 0 ] && say "all passed; $results/gpu-*.json written"
exit $failed
