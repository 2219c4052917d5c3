#!/usr/bin/env bash
# Everything there is to check on a machine with an NVIDIA GPU, in one go and under nine minutes:
# build for that GPU, doctor, the parity suite, fresh inputs and odd shapes, the same bits twice,
# compute-sanitizer, then the timings.
#
#   bash bench/gpu_check.sh [--models] [--rehearse] [folder for the JSON files]
#
# --models: whole models instead of kernels: streams, captured graphs and what a warm step may do,
# then `vosengine bench` of all of them, which writes its figures after every point.
#
# Uses the python3 that is there (or $PYTHON) with its own torch, a CUDA build; nothing is
# downloaded. A build that fails or a result that is wrong ends it with exit code 1: what is not
# right is not timed. A hazard that racecheck reports lets the timings run and then gives exit code
# 1. A tool that is missing, or a stage that needs longer than it may, is said and costs nothing.
#
# --rehearse: without a GPU, the same programs on the CPU with small numbers; what needs the device
# is named at the end.
set -uo pipefail
cd "$(dirname "$0")/.."

rehearse=no models=no
results=bench/results
for word in "$@"; do
  case "$word" in
    --rehearse) rehearse=yes ;;
    --models) models=yes ;;
    -*) sed -n '2,19s/^# \{0,1\}//p' "$0" && exit 2 ;;
    *) results="$word" ;;
  esac
done

python="${PYTHON:-python3}"
device=cuda
deadline=530
jobs=8
[ "$rehearse" = yes ] && device=cpu deadline=1200 jobs=2

work="$(mktemp -d)"
export OMP_WAIT_POLICY=PASSIVE PYTHONSAFEPATH=1
export TRITON_CACHE_DIR="$work/triton" TORCHINDUCTOR_CACHE_DIR="$work/inductor"
export PYTHONPATH="$work/site:$PWD/tests:$PWD/bench"

notes=()
status=0

finish() {
  local code=$?
  rm -rf "$work"
  echo
  echo "== total: ${SECONDS} s"
  [ ${#notes[@]} -eq 0 ] || printf 'note: %s\n' "${notes[@]}"
  [ $code -ne 0 ] || code=$status
  [ $code -eq 0 ] && echo "== passed" || echo "== FAILED"
  exit $code
}
trap finish EXIT

note() {
  notes+=("$1")
  echo "note: $1"
}

# stage NAME SECONDS COMMAND...: its exit code is the command's, 124 where the time was over.
stage() {
  local name="$1" limit="$2" left=$((deadline - SECONDS)) begun=$SECONDS code=0
  shift 2
  echo
  echo "== $name"
  [ "$limit" -le "$left" ] || limit=$left
  if [ "$limit" -lt 5 ]; then
    code=124
  else
    timeout --kill-after=10 "$limit" "$@" || code=$?
  fi
  [ $code -ne 137 ] || code=124
  [ $code -ne 124 ] || note "$name: not done within its time"
  echo "-- $name: $((SECONDS - begun)) s"
  return $code
}

# must NAME SECONDS COMMAND...: a failure ends everything; running out of time fails it at the end.
must() {
  local code=0
  stage "$@" || code=$?
  [ $code -ne 124 ] || { status=1 && return; }
  [ $code -eq 0 ] || exit 1
}

# may NAME SECONDS COMMAND...: a failure fails the check at the end; running out of time is said.
may() {
  local code=0
  stage "$@" || code=$?
  [ $code -eq 0 ] || [ $code -eq 124 ] || { status=1 && note "$1: failed with exit code $code"; }
}

if [ "$rehearse" = yes ]; then
  archs=none
  note "rehearsal: no device; CUDA code is not built, nothing runs on a GPU, nothing is timed there"
else
  nvidia-smi --query-gpu=name,driver_version,compute_cap --format=csv,noheader || exit 1
  "$python" -c 'import torch; assert torch.cuda.is_available(), "this torch finds no GPU"' || exit 1
  archs="$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d '. ')"
  if ! command -v nvcc > /dev/null && [ ! -x "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" ]; then
    note "nvcc is not there: built without CUDA, only Triton's kernels are checked"
    archs=none
  elif ! command -v nvcc > /dev/null; then
    export CUDA_HOME="${CUDA_HOME:-/usr/local/cuda}"
  fi
fi

export VOSENGINE_CUDA_ARCHS="$archs"
# In a copy: a build folder left by another build would be taken for up to date.
mkdir "$work/source"
tar -c --exclude='*.so' --exclude=__pycache__ csrc kernels vosengine weights setup.py \
  pyproject.toml MANIFEST.in README.md LICENSE | tar -x -C "$work/source" || exit 1
must "build, CUDA for $archs" 240 "$python" -m pip install -q --disable-pip-version-check \
  --no-index --no-deps --no-build-isolation --target "$work/site" "$work/source"
[ -d "$work/site/vosengine" ] || exit 1
must "doctor" 90 "$python" -m vosengine doctor

# Without plugins, which may warn.
suite=("$python" -m pytest -q -rfE -p no:cacheprovider -o filterwarnings=)
export PYTEST_DISABLE_PLUGIN_AUTOLOAD=1
if "$python" -c 'import xdist' 2> /dev/null; then
  suite+=(-p xdist.plugin -n "$jobs")
fi
must "streams and captured graphs" 90 "${suite[@]}" tests/engine/test_on_gpu.py tests/engine/test_graphs.py tests/engine/test_engine.py

if [ "$models" = yes ]; then
  base="$results/$(date +%F)-models-$device"
  bench=("$python" -m vosengine bench --device "$device" --sizes 480x854)
  order=munet,giel,dmn_aoa,target_aware,imcnet,stm
  sweep=(--objects 1,3 --frames 1000)
  [ "$rehearse" = no ] || sweep=(--weights demo --quick)
  mkdir -p "$results"
  may "whole models" $((deadline - SECONDS - 120)) "${bench[@]}" --model "$order" "${sweep[@]}" \
    --no-compiled --output-json "$base.json" --output-md "$base.md"
  # The goal: 32 live streams of 480x854 at 24 frames a second, p99 of a frame below 42 ms.
  streams=(--streams 1,2,4,8,16,32 --rounds 20)
  [ "$rehearse" = no ] || streams=(--streams 1,2 --rounds 1)
  may "many streams" 180 "$python" bench/streams.py --device "$device" "${streams[@]}" \
    --folder "$results"
  # Compiling takes minutes: as many models as there is time for.
  [ "$rehearse" = yes ] || may "against torch.compile" $((deadline - SECONDS - 5)) "${bench[@]}" \
    --model "$order" --objects 3 --frames 0 --output-json "$base-compiled.json"
  exit
fi

must "parity suite" 150 "${suite[@]}" tests/kernels/test_kernels.py -k "not on_the_cpu"

seeds=2 shapes=12
[ "$rehearse" = yes ] && seeds=1 shapes=2
must "fresh inputs, odd shapes, same bits twice" 90 "$python" bench/gpu_parity.py \
  --device "$device" --seeds $seeds --shapes $shapes --budget 60 --folder "$results"

# sanitize TOOL BACKEND: exit code 86 is the tool's finding; any other failure is the tool's own.
sanitize() {
  local tool="$1" backend="$2" code=0
  stage "$tool, $backend" 45 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
    bash -c 'exec "$@" > "$0" 2>&1' "$work/sanitizer.log" \
    "$sanitizer" --tool "$tool" --error-exitcode 86 --target-processes application-only \
    "$python" bench/gpu_sanitize.py --device cuda --backend "$backend" || code=$?
  tail -n 2 "$work/sanitizer.log"
  case "$code" in
    0 | 124) ;;
    86)
      grep -E -B 2 -A 6 '^=+ (Error|Invalid|Warning|ERROR)|hazard' "$work/sanitizer.log" | head -n 80
      status=1
      note "$tool, $backend: errors found"
      [ "$tool" = racecheck ] || exit 1
      ;;
    *) note "$tool, $backend: did not work here (exit code $code): $(tail -n 1 "$work/sanitizer.log")" ;;
  esac
}

sanitizer="$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2> /dev/null)"
if [ "$rehearse" = yes ]; then
  must "the calls for compute-sanitizer" 90 "$python" bench/gpu_sanitize.py --device cpu
  note "rehearsal: compute-sanitizer has no device to look at"
elif [ -z "$sanitizer" ]; then
  note "compute-sanitizer: not installed, skipped"
else
  for tool in memcheck racecheck; do
    for backend in cuda triton; do
      sanitize "$tool" "$backend"
    done
  done
fi

# Each writes its JSON after every case, so that one cut off leaves what it has.
if [ "$rehearse" = yes ]; then
  may "timings, float32" 300 "$python" bench/kernels.py prepare_frame match_proposals \
    finish_masks --device cpu --repeat 2 --budget 60 --folder "$results"
else
  left=$((deadline - SECONDS - 75))
  may "timings, bfloat16" $((left + 30)) "$python" bench/kernels.py --device cuda \
    --dtype bfloat16 --repeat 30 --budget "$left" --folder "$results"
  for dtype in float16 float32; do
    may "timings, $dtype" 40 "$python" bench/kernels.py --device cuda --targets --compile 0 \
      --dtype "$dtype" --repeat 15 --budget 20 --folder "$results"
  done
fi
echo
newest="$(ls -t "$results"/*-kernels-*-"$device".json 2> /dev/null | head -n 3)"
[ -z "$newest" ] || "$python" bench/summary.py $newest
