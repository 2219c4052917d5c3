#!/usr/bin/env bash
# Trains a model on a machine with a GPU, in pieces: one call is one piece of at most MINUTES.
#
#   bash bench/gpu_train.sh MODEL MINUTES [further words for `vosengine train`]
#
# Goes on from $OUT/checkpoint.pt.* where an earlier piece left it there (or from $FROM), and leaves
# the checkpoint in parts below 16 MB, the weights and the log in $OUT. Uses the python3 that is
# there (or $PYTHON) with its own torch; clips are drawn by worker processes as they are needed.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ $# -lt 2 ] || [ "$2" -gt 8 ]; then
  echo "usage: bash bench/gpu_train.sh MODEL MINUTES (at most 8) [options of vosengine train]" >&2
  exit 2
fi
model="$1" minutes="$2"
shift 2
out="${OUT:?name the folder for the checkpoint: OUT=DIR}"
from="${FROM:-$out}"
python="${PYTHON:-python3}"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

export OMP_WAIT_POLICY=PASSIVE OMP_NUM_THREADS=1 PYTHONSAFEPATH=1
mkdir -p "$work/site/vosengine" "$work/run" "$out"
ln -s "$PWD"/vosengine/* "$work/site/vosengine/"
ln -sfn "$PWD/kernels" "$work/site/vosengine/kernels"
ln -sfn "$PWD/weights" "$work/site/vosengine/shipped"
export PYTHONPATH="$work/site"

resume=()
if compgen -G "$from/checkpoint.pt.*" > /dev/null; then
  cat "$from"/checkpoint.pt.* > "$work/run/checkpoint.pt"
  [ -f "$from/log.jsonl" ] && cp "$from/log.jsonl" "$work/run/"
  resume=(--resume)
fi
workers=$(($(nproc) > 4 ? $(nproc) - 2 : $(nproc)))
"$python" -m vosengine train --model "$model" --out "$work/run" --minutes "$minutes" \
  --workers "$workers" --save-every 60 "${resume[@]}" "$@"
rm -f "$out"/checkpoint.pt.*
split -b 15M -d "$work/run/checkpoint.pt" "$out/checkpoint.pt."
cp "$work/run/log.jsonl" "$work/run/weights.safetensors" "$out/"
