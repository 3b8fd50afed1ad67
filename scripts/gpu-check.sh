#!/usr/bin/env bash
# gpu-check.sh [--no-build] [--quick] [STAGE...]: what only a machine with an NVIDIA GPU can tell. Needs no network.
#   build           builds of the preset cuda what the other stages run
#   tests           runs every CUDA test, none of which may be skipped for want of a device
#   memcheck        runs them again under compute-sanitizer, as does
#   racecheck
#   sessions        times sessions
#   training        times steps of training, also with NCCL in between, on one rank, where NCCL is installed
#   peers           times sessions beside PyTorch, where python3 has it
#   training-peers  times steps of training beside it, which must be the same steps
#   pack            needs no GPU and must be named: builds, and packs what the stages behind build run into
#                   build/gpu-check.tar.xz, for a machine that lacks what scripts/install-deps.sh installs; to be unpacked in a
#                   checkout, of the same path or one that a link makes the same, for the programs look for files there;
#                   the other stages say where it is not
# Without stages all of them but pack, in this order. Those that are named keep what others have found, so that one run may
# be cut into several. Writes gpu-check.json (what passed), gpu-{f32,tf32,bf16,bf16-qkv-table,text}.json (xsr-bench), gpu-bf16-{2048,8192,16384}.json
# (chunks of so many tokens), gpu-train-{f32,tf32,bf16,bf16-tiles,bf16-nccl}.json (xsr-train-bench; tiles: the logits of 8,192 words at a time),
# gpu-peers.json (gpu_peers.py) and gpu-train-peers-{128,1024}.json (train_baseline.py), each with the device's name and as soon as it is known.
# Exit status 1: something failed, or there is no GPU.
#   --no-build  build/cuda is there already
#   --quick     without racecheck, unless it is named, and with fewer sentences
# XSR_GPU_CHECK_SECONDS (1200): the most that one program may take. XSR_GPU_CHECK_RESULTS (docs/results): where results go.
set -uo pipefail
cd "$(dirname "$0")/.."
all=(build tests memcheck racecheck sessions training peers training-peers)
build=yes quick=no stages=()
for argument in "$@"; do
  case "$argument" in
    --no-build) build=no ;;
    --quick) quick=yes ;;
    *)
      [[ " ${all[*]} pack " == *" $argument "* ]] || { echo "usage: $0 [--no-build] [--quick] [${all[*]} pack]" >&2; exit 2; }
      stages+=("$argument")
      ;;
  esac
done
say() { echo "gpu-check: $*" >&2; }
die() { say "$*"; exit 1; }

build_targets() {  # build_targets OPTIONS...
  local source targets=(xsr xsr-bench xsr-train-bench xsr-train-steps)
  for source in tests/cuda_*_test.cpp; do
    [ "$source" = tests/cuda_emulator_test.cpp ] || targets+=("$(basename "$source" .cpp)")
  done
  cmake --preset cuda "$@" && cmake --build --preset cuda --target "${targets[@]}"
}
packed_for=build/cuda/packed  # the path of the checkout that it was packed in, and the commit
commit=$(git rev-parse --short=12 HEAD 2>/dev/null || sed -n 2p $packed_for 2>/dev/null)
commit=${commit:-unknown}
if [ "${stages[*]}" = pack ]; then
  build_targets -DXSR_ONEDNN=OFF || die "the preset cuda does not build"
  packed=(build/cuda/{tests/cuda_*_test,bench/xsr-*,training/xsr-train,runtime/*.so*,training/*.so})
  for library in $(ldd "${packed[@]}" | sed -n 's/^\s*lib\S* => \(\S*\).*/\1/p' | sort -u |
    grep -v -E "^$PWD|/lib(c|m|dl|rt|pthread|gcc_s|stdc\\+\\+|gomp|cublasLt|cuda)\\.so"); do
    cp "$library" build/cuda/runtime/  # where all of them look
    packed+=("build/cuda/runtime/${library##*/}")
  done
  printf '%s\n' "$PWD" "$commit" >$packed_for && packed+=($packed_for)
  tar -cJf build/gpu-check.tar.xz --exclude '*_emulated*' --exclude '*_ptx*' "${packed[@]}" || die "it cannot be packed"
  say "$(du -h build/gpu-check.tar.xz | cut -f 1) in build/gpu-check.tar.xz, for a checkout at $PWD"
  exit 0
fi

command -v nvidia-smi >/dev/null || die "no GPU here: there is no nvidia-smi. Run this where an NVIDIA driver is installed."
device=$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null | head -n 1)
[ -n "$device" ] || die "no GPU here: nvidia-smi lists none. Run this where 'nvidia-smi -L' shows a device."
say "${device%,*}, driver ${device#*, }"
if [ -e $packed_for ]; then
  path=$(head -n 1 $packed_for)
  [ "$path" -ef . ] || die "what is in build/cuda was packed in $path, where it looks for files: ln -s '$PWD' '$path'"
fi

work="$PWD/build/cuda/gpu-check"
if [ ${#stages[@]} = 0 ]; then
  rm -rf "$work"
  for stage in "${all[@]}"; do
    [ $stage$build = buildno ] || [ $stage$quick = racecheckyes ] || stages+=($stage)
  done
fi
wanted() { [[ " ${stages[*]} " == *" $1 "* ]]; }
results="${XSR_GPU_CHECK_RESULTS:-$PWD/docs/results}"
mkdir -p "$work" "$results"
failed=0
fail() { say "FAILED: $*"; failed=1; }
limited() {  # in the background, since a trap waits for what is in front
  timeout -k 10 "${XSR_GPU_CHECK_SECONDS:-1200}" "$@" &
  running=$!
  wait $running
}
# timeout has a process group of its own, which would go on using the device that others time.
running=
stop() { [ -z "$running" ] || kill "$running" 2>/dev/null; die "stopped"; }
trap stop HUP INT TERM

! wanted build || build_targets -DXSR_ONEDNN=ON ||
  die "the preset cuda does not build here; '$0 pack' elsewhere, unpack that here, and name the other stages"
tests=()
for program in build/cuda/tests/cuda_*_test; do
  [ -x "$program" ] && [[ $program != *_@(emulated|ptx)_test ]] && tests+=("$program")
done
[ ${#tests[@]} -gt 0 ] || die "build/cuda/tests holds no CUDA tests"

# cuBLASLt and NCCL stand where the loader looks for them, or come with Python packages.
package_folder() {  # package_folder MODULE LIBRARY: the folder of the library; fails where there is none
  local folder
  folder=$(python3 -c "import nvidia.$1; print(nvidia.$1.__path__[0] + '/lib')" 2>/dev/null) && [ -e "$folder/$2" ] && echo "$folder"
}
cublas=$(ldd build/cuda/runtime/libxsr_cuda.so 2>/dev/null | sed -n 's/^\s*\(libcublasLt\S*\) => not found/\1/p')
if [ -n "$cublas" ]; then
  for folder in /usr/local/cuda/{lib64,lib,targets/x86_64-linux/lib} "$(package_folder cu13 "$cublas")"; do
    [ ! -e "$folder/$cublas" ] || break
  done
  [ -e "$folder/$cublas" ] || die "there is no $cublas here; install the CUDA toolkit's cuBLAS"
  export LD_LIBRARY_PATH="$folder${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
fi
with_nccl=() has_nccl=yes
if ! python3 -c 'import ctypes; ctypes.CDLL("libnccl.so.2")' 2>/dev/null; then
  if folder=$(package_folder nccl libnccl.so.2); then
    with_nccl=(env "LD_LIBRARY_PATH=$folder${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}")
  else
    has_nccl=no
  fi
fi

report() {  # what is known so far, and says how many tests passed
  python3 - "$work" "$results/gpu-check.json" "$device" "$commit" "${tests[@]##*/}" <<'PYTHON' || fail "gpu-check.json"
import datetime, json, pathlib, sys
work, to, device, commit, *tests = sys.argv[1:]
work = pathlib.Path(work)
name, driver = device.rsplit(", ", 1)
report = {"device": name, "driver": driver, "date": datetime.date.today().isoformat(), "commit": commit}
for what in ("nccl", "pytorch"):
    said = work / what
    report[what] = said.read_text().strip() if said.exists() else "not run"
report["tests"] = {}
for test in tests:
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    try:
        suites = json.loads((work / f"{test}.json").read_text())["testsuites"]
    except (OSError, ValueError):
        suites = []
        counts["failed"] = int((work / f"{test}.log").exists())  # it did not come to its end
    for suite in suites:
        for case in suite["testsuite"]:
            result = "failed" if case.get("failures") else "skipped" if case["result"] == "SKIPPED" else "passed"
            counts[result] += 1
    for tool in ("memcheck", "racecheck"):
        log = work / f"{test}.{tool}"
        counts[tool] = "not run" if not log.exists() else "passed" if (work / f"{test}.{tool}.passed").exists() else "failed"
    report["tests"][test] = counts
pathlib.Path(to).write_text(json.dumps(report, indent=2) + "\n")
total = {key: sum(t[key] for t in report["tests"].values()) for key in ("passed", "failed", "skipped")}
print(f"gpu-check: {name}: {total['passed']} tests passed, {total['failed']} failed, {total['skipped']} skipped")
PYTHON
}

if wanted tests; then
  for program in "${tests[@]}"; do
    name=$(basename "$program")
    rm -f "$work/$name.json"
    limited "${with_nccl[@]}" "$program" "--gtest_output=json:$work/$name.json" >"$work/$name.log" 2>&1 ||
      { tail -n 40 "$work/$name.log" >&2; fail "$name"; }
    # A device that libraries and tests do not see would leave everything skipped, and green.
    ! grep -m 1 'no CUDA device' "$work/$name.log" >&2 || fail "$name was skipped: it saw no device"
    report >/dev/null
  done
fi

sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
for tool in memcheck racecheck; do
  wanted $tool || continue
  # What racecheck finds within a kernel of cuBLASLt or NCCL no argument of ours can cause, and it finds some.
  of_kernels=()
  [ $tool = memcheck ] || of_kernels=(--kernel-name kns=xsr)
  [ -n "$sanitizer" ] || { fail "$tool: there is no compute-sanitizer; install the CUDA toolkit's"; continue; }
  for program in "${tests[@]}"; do
    name=$(basename "$program")
    rm -f "$work/$name.$tool.passed"
    XSR_TEST_SMALL=1 limited "$sanitizer" --tool "$tool" "${of_kernels[@]}" --error-exitcode 9 "$program" --gtest_brief=1 >"$work/$name.$tool" 2>&1 &&
      touch "$work/$name.$tool.passed" || { tail -n 20 "$work/$name.$tool" >&2; fail "$name under $tool"; }
    report >/dev/null
    # Some virtual machines keep the device from it; every other program would fail as this one did.
    ! grep -q 'Device not supported' "$work/$name.$tool" ||
      { fail "$tool: compute-sanitizer says that this device is not supported; the other tests are not tried"; break; }
  done
done

sentences=200000 seconds=5 turns=7
[ $quick = no ] || sentences=20000 seconds=1 turns=2
bench() {  # bench WHAT COMMAND...: which writes its figures where the --json at its end says
  local what=$1 began=$SECONDS
  shift
  rm -f "$work/gpu-$what.json"
  limited "$@" --json "$work/gpu-$what.json" || fail "bench $what"
  # One that fails or runs out of time may have written a part, and why it has no more.
  if [ -s "$work/gpu-$what.json" ]; then cp "$work/gpu-$what.json" "$results/"; else fail "bench $what wrote nothing"; fi
  say "bench $what: $((SECONDS - began)) s"
  report >/dev/null
}
if wanted sessions; then
  session_bench() { bench "$1" build/cuda/bench/xsr-bench --device cuda --threads 0 --tokens 1,20,100 "${@:2}"; }
  random=(--random 2,512,8,1024,50000 --sentences $sentences)
  session_bench f32 "${random[@]}" --dtype f32
  session_bench tf32 "${random[@]}" --dtype tf32
  session_bench bf16 "${random[@]}" --dtype bf16
  session_bench bf16-qkv-table "${random[@]}" --dtype bf16 --qkv-table
  for tokens in 2048 8192 16384; do  # beside the 4,096 of a session
    session_bench bf16-$tokens "${random[@]}" --dtype bf16 --batch-tokens $tokens
  done
  # Text to vectors; the lines come again, since the file is small.
  cut -f 1 examples/data/tatoeba.en-fr.tsv >"$work/lines" && for _ in $(seq 8); do
    cat "$work/lines" "$work/lines" >"$work/twice" && mv "$work/twice" "$work/lines"
  done
  session_bench text --model models/xsr-multi.xsr --corpus "$work/lines" --dtype bf16
fi
if wanted training; then
  train_bench() {
    bench "train-$1" "${with_nccl[@]}" build/cuda/bench/xsr-train-bench --device cuda --random 2,512,8,1024,50000 \
      --pairs 128,1024 --seconds $seconds "${@:2}"
  }
  train_bench f32 --precision f32
  train_bench tf32 --precision tf32
  train_bench bf16 --precision bf16
  train_bench bf16-tiles --precision bf16 --vocabulary-tile 8192
  echo "not installed" >"$work/nccl"
  if [ $has_nccl = yes ]; then
    echo "one rank" >"$work/nccl"
    train_bench bf16-nccl --precision bf16 --exchange
  fi
  say "NCCL: $(cat "$work/nccl")"
fi
if wanted peers || wanted training-peers; then
  why=$(python3 -c 'import numpy, torch; assert torch.cuda.is_available(), "PyTorch sees no CUDA device"' 2>&1) &&
    echo "beside xsr" >"$work/pytorch" || echo "not there: ${why##*$'\n'}" >"$work/pytorch"
  has_pytorch() { [ "$(cat "$work/pytorch")" = "beside xsr" ]; }
  if wanted peers && has_pytorch; then
    bench peers python3 bench/peers/gpu_peers.py --build build/cuda --sentences $sentences
  fi
  if wanted training-peers && has_pytorch; then
    baseline=(python3 bench/peers/train_baseline.py)
    options=(--device cuda --build build/cuda --config presets/xsr-2layer.toml --made-up)
    limited "${baseline[@]}" follow "${options[@]}" || fail "PyTorch's trainer takes other steps"
    for pairs in 128 1024; do
      bench train-peers-$pairs "${baseline[@]}" speed "${options[@]}" --set data.batch_pairs=$pairs --block 32 --turns $turns
    done
  fi
  say "PyTorch: $(cat "$work/pytorch")"
fi

report
[ $failed = 0 ] && say "all passed; $results/gpu-*.json written"
exit $failed
