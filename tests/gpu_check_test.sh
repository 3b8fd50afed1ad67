#!/usr/bin/env bash
# gpu_check_test.sh: scripts/gpu-check.sh, which only a machine with a GPU can run, on a tree whose driver, tests,
# compute-sanitizer and bench are a few lines of shell: what it refuses, what it calls a failure, what it writes.
set -euo pipefail
source=$(realpath "$(dirname "$0")/..")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() { echo "gpu_check_test: $*" >&2; cat "$work/log" >&2; exit 1; }
tree="$work/tree" fakes="$work/fakes"
mkdir -p "$tree"/{scripts,bench/peers,docs/results,examples/data,build/cuda/{tests,bench}} "$fakes"
cp "$source/scripts/gpu-check.sh" "$tree/scripts/"
printf 'a\tb\nc\td\n' >"$tree/examples/data/tatoeba.en-fr.tsv"
program() { printf '#!/usr/bin/env bash\n%s\n' "$2" >"$1" && chmod +x "$1"; }
# The driver's place is taken even where there is a driver.
run() { (cd "$tree" && PATH="$fakes:$PATH" scripts/gpu-check.sh "${@:---no-build}") >"$work/log" 2>&1; }

program "$fakes/nvidia-smi" 'exit 9'
! run || fail "it went on without a GPU"
grep -q "no GPU here" "$work/log" || fail "it does not say that there is no GPU"

program "$fakes/nvidia-smi" 'echo "A Device, 1.2"'
program "$fakes/compute-sanitizer" 'echo "$*" >>"$0.asked"; while [[ $1 == --* ]]; do shift 2; done; exec "$@"'
# A test program of one test with the result $1, which says $3, and the exit status $2.
test_program() {
  cat <<PROGRAM
echo "${3:-}"
for argument; do
  [[ \$argument != --gtest_output=json:* ]] || echo '{"testsuites": [{"testsuite": [{"result": "$1"}]}]}' >"\${argument#*json:}"
done
exit $2
PROGRAM
}
for name in cuda_kernels_test cuda_session_test; do program "$tree/build/cuda/tests/$name" "$(test_program COMPLETED 0)"; done
for without in emulated ptx; do program "$tree/build/cuda/tests/cuda_kernels_${without}_test" 'exit 1'; done  # not to be run
bench='echo "$*" >>"$0.asked"; while [ "$1" != --json ]; do shift; done; echo "{}" >"$2"'
program "$tree/build/cuda/bench/xsr-bench" "$bench"
program "$tree/build/cuda/bench/xsr-train-bench" "$bench"
# The interpreter for gpu-check.json, and its answers to whether it finds NCCL and PyTorch.
finds() { program "$fakes/python3" "[ \"\$1\" != -c ] || [[ \$2 == *torch* ]] || exit $1
  [ \"\$1\" != -c ] || { [ $2 = 0 ] || printf 'Traceback:\nModuleNotFoundError: no torch\n' >&2; exit $2; }
  exec $(command -v python3) \"\$@\""; }
peers='import sys; open(sys.argv[-1], "w").write("{}")'
train_peers='import sys
if sys.argv[1] == "speed": open(sys.argv[-1], "w").write(" ".join(sys.argv))'
echo "$peers" >"$tree/bench/peers/gpu_peers.py"
echo "$train_peers" >"$tree/bench/peers/train_baseline.py"
finds 1 1
run || fail "it failed where all passed"
grep -q -- '--tool racecheck --kernel-name kns=xsr ' "$fakes/compute-sanitizer.asked" || fail "it looks for races in kernels of NVIDIA's"
! grep -q -- '--tool memcheck --kernel-name' "$fakes/compute-sanitizer.asked" || fail "memcheck does not see what it gives to NVIDIA's"
grep -q '"nccl": "not installed"' "$tree/docs/results/gpu-check.json" || fail "it does not say that NCCL is missing"
[ ! -e "$tree/docs/results/gpu-train-bf16-nccl.json" ] || fail "it timed what is not there"
[ ! -e "$tree/docs/results/gpu-peers.json" ] || fail "it timed a PyTorch that is not there"
grep -q '"pytorch": "not there: ModuleNotFoundError: no torch"' "$tree/docs/results/gpu-check.json" ||
  fail "it does not say why there is no PyTorch"
finds 0 0
run || fail "it failed where all passed, and NCCL and PyTorch are there"
grep -q '"pytorch": "beside xsr"' "$tree/docs/results/gpu-check.json" || fail "it does not say what it did with PyTorch"
grep -q '"nccl": "one rank"' "$tree/docs/results/gpu-check.json" || fail "it does not say what it did with NCCL"
grep -q -- '--device cuda.*--pairs 128,1024.*--exchange' "$tree/build/cuda/bench/xsr-train-bench.asked" ||
  fail "it asked xsr-train-bench for something else"
for what in check f32 tf32 bf16 bf16-qkv-table bf16-{2048,8192,16384} text train-bf16-tiles train-f32 train-tf32 train-bf16 train-bf16-nccl peers train-peers-128 train-peers-1024; do
  [ -s "$tree/docs/results/gpu-$what.json" ] || fail "gpu-$what.json was not written"
done
grep -q -- '--device cuda.*--corpus .*--dtype bf16' "$tree/build/cuda/bench/xsr-bench.asked" ||
  fail "it timed texts in a type whose rate hides theirs"
grep -q -- '--device cuda.*--made-up.*batch_pairs=1024' "$tree/docs/results/gpu-train-peers-1024.json" ||
  fail "it asked train_baseline.py for something else"
grep -q '"device": "A Device"' "$tree/docs/results/gpu-check.json" || fail "gpu-check.json does not name the device"
grep -q "2 tests passed, 0 failed, 0 skipped" "$work/log" || fail "it does not count the tests"

# NCCL that only a Python package brings: the bench of it alone is shown the way.
mkdir -p "$work/package/lib" && touch "$work/package/lib/libnccl.so.2"
program "$fakes/python3" "[ \"\$1\" != -c ] || { [[ \$2 == *nvidia.nccl* ]] && echo $work/package/lib; exit; }
  exec $(command -v python3) \"\$@\""
program "$tree/build/cuda/bench/xsr-train-bench" '[[ "$*" != *--exchange* || $LD_LIBRARY_PATH == */package/lib* ]] || exit 1; '"$bench"
run training || fail "it did not find the NCCL of a Python package"
grep -q '"nccl": "one rank"' "$tree/docs/results/gpu-check.json" || fail "it did not time the NCCL of a Python package"
program "$tree/build/cuda/bench/xsr-train-bench" "$bench"
finds 0 0

# A stage at a time, into another folder: each keeps what was found before, and does no other's work.
export XSR_GPU_CHECK_RESULTS="$work/results"
rm -r "$tree/build/cuda/gpu-check"
says() { grep -q "$1" "$work/results/gpu-check.json" || fail "after $2 gpu-check.json has not $1"; }
run tests || fail "the stage of tests failed"
says '"memcheck": "not run"' tests
run memcheck || fail "the stage of memcheck failed"
says '"memcheck": "passed"' memcheck
says '"passed": 1' memcheck
says '"nccl": "not run"' memcheck
[ ! -e "$work/results/gpu-f32.json" ] || fail "it timed sessions without being asked"
run --quick sessions training || fail "the stages of sessions and training failed"
[ -s "$work/results/gpu-train-bf16-nccl.json" ] && [ ! -e "$work/results/gpu-peers.json" ] || fail "it did other stages"
says '"memcheck": "passed"' training
program "$fakes/compute-sanitizer" 'exit 9'
! run racecheck || fail "a stage that fails was no failure"
says '"racecheck": "failed"' racecheck
says '"memcheck": "passed"' racecheck
program "$fakes/compute-sanitizer" 'while [[ $1 == --* ]]; do shift 2; done; exec "$@"'
! run nonsense || fail "it took a stage that there is not"
unset XSR_GPU_CHECK_RESULTS

# What it runs ends with it, and what was found before is there.
program "$tree/build/cuda/bench/xsr-bench" 'echo $$ >"$0.pid"; while :; do sleep 0.1; done'
(cd "$tree" && PATH="$fakes:$PATH" exec scripts/gpu-check.sh tests sessions) >"$work/log" 2>&1 &
check=$!
for _ in $(seq 300); do [ ! -s "$tree/build/cuda/bench/xsr-bench.pid" ] || break; sleep 0.1; done
bench_pid=$(cat "$tree/build/cuda/bench/xsr-bench.pid")
kill $check
! wait $check || fail "it passed although it was stopped"
for _ in $(seq 100); do kill -0 $bench_pid 2>/dev/null || break; sleep 0.1; done
! kill -0 $bench_pid 2>/dev/null || { kill $bench_pid; fail "the bench it ran went on without it"; }
program "$tree/build/cuda/bench/xsr-bench" "$bench"

# To pack needs no GPU.
mkdir -p "$tree"/build/cuda/{training,runtime}
touch "$tree"/build/cuda/{training/xsr-train,training/libxsr_train_cuda{,_ptx}.so,runtime/libxsr_cuda.so}
program "$fakes/nvidia-smi" 'exit 9'
program "$fakes/cmake" 'exit 0'
run pack || fail "it did not pack"
tar -tJf "$tree/build/gpu-check.tar.xz" >"$work/packed"
for what in tests/cuda_session_test bench/xsr-train-bench runtime/libxsr_cuda.so; do
  grep -qx "build/cuda/$what" "$work/packed" || fail "it did not pack $what"
done
! grep -qE 'emulated|_ptx' "$work/packed" || fail "it packed what needs no GPU"
program "$fakes/cmake" 'exit 1'
! run pack || fail "it packed what does not build"
program "$fakes/nvidia-smi" 'echo "A Device, 1.2"'
# Elsewhere it looks for files where it was packed, until a link leads from there.
grep -qx "build/cuda/packed" "$work/packed" && grep -qx "$tree" "$tree/build/cuda/packed" || fail "it did not pack where it belongs"
printf '%s\n' "$work/elsewhere" 123456789abc >"$tree/build/cuda/packed"
! run tests || fail "it ran what looks for files elsewhere"
grep -q "ln -s '$tree' '$work/elsewhere'" "$work/log" || fail "it does not say what mends another path"
ln -s "$tree" "$work/elsewhere"
run tests || fail "it does not follow a link"
grep -q '"commit": "123456789abc"' "$tree/docs/results/gpu-check.json" || fail "it does not name the commit that was packed"
rm "$tree/build/cuda/packed"
rm -r "$tree"/build/cuda/{training,runtime}

# Each in the stage that it is about; what passes there does again behind it.
expect_failure() { ! run --no-build "$1" || fail "$2 was no failure"; }
expect_success() { run --no-build "$1" || fail "$1 still fails where all pass"; }
program "$tree/build/cuda/tests/cuda_session_test" "$(test_program SKIPPED 0 'no CUDA device can be used: none')"
expect_failure tests "a skipped test"
program "$tree/build/cuda/tests/cuda_session_test" 'exit 1'
expect_failure tests "a failing test"
program "$tree/build/cuda/tests/cuda_session_test" "$(test_program COMPLETED 0)"
expect_success tests
program "$fakes/compute-sanitizer" 'exit 9'
expect_failure memcheck "a finding of compute-sanitizer"
program "$fakes/compute-sanitizer" 'echo x >>"$0.calls"; echo "========= Error: Device not supported"; exit 9'
expect_failure memcheck "a device that compute-sanitizer does not support"
[ "$(cat "$fakes/compute-sanitizer.calls")" = x ] || fail "it tried the other tests too"
program "$fakes/compute-sanitizer" 'while [[ $1 == --* ]]; do shift 2; done; exec "$@"'
expect_success memcheck
for pair in xsr-bench:sessions xsr-train-bench:training; do
  program "$tree/build/cuda/bench/${pair%:*}" 'exit 1'
  expect_failure ${pair#*:} "a failing ${pair%:*}"
  program "$tree/build/cuda/bench/${pair%:*}" "$bench"
  expect_success ${pair#*:}
done
# Of xsr-train-bench: ends well and says nothing; fails with NCCL alone; is not there.
program "$tree/build/cuda/bench/xsr-train-bench" 'exit 0'
expect_failure training "a bench of training without figures"
program "$tree/build/cuda/bench/xsr-train-bench" '[[ "$*" != *--exchange* ]] || exit 1; '"$bench"
expect_failure training "a bench of training that fails with NCCL"
finds 1 1
run --no-build training || fail "it failed without NCCL where all else passed"
finds 1 0
echo 'raise SystemExit(1)' >"$tree/bench/peers/gpu_peers.py"
expect_failure peers "a race with PyTorch that fails"
printf '%s\nraise SystemExit(1)\n' "${peers/\{\}/half}" >"$tree/bench/peers/gpu_peers.py"
expect_failure peers "a race with PyTorch that fails half way"
grep -q half "$tree/docs/results/gpu-peers.json" || fail "it did not keep what a race found before it failed"
echo "$peers" >"$tree/bench/peers/gpu_peers.py"
for command in follow speed; do
  printf 'import sys\nif sys.argv[1] == "%s": raise SystemExit(1)\n%s\n' $command "$train_peers" >"$tree/bench/peers/train_baseline.py"
  expect_failure training-peers "a trainer of PyTorch's that fails to $command"
  expect_success peers
done
echo "$train_peers" >"$tree/bench/peers/train_baseline.py"
expect_success training-peers
rm "$tree/build/cuda/bench/xsr-train-bench"
expect_failure training "a missing bench of training"
echo "gpu_check_test: refuses, fails and writes as it should"
