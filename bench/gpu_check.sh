#!/usr/bin/env bash
# Everything there is to check on a machine with an NVIDIA GPU, in one go: build with CUDA, doctor,
# parity of every op on the device, then the timings.
#
#   bash bench/gpu_check.sh [folder for the JSON files]
#
# Uses the Python that is there with its own torch (a CUDA build), so nothing is downloaded but what
# pip finds missing. The first failure ends it: what is not right is not timed.
set -euo pipefail
cd "$(dirname "$0")/.."
results="${1:-bench/results}"
export OMP_WAIT_POLICY=PASSIVE
export PYTHONSAFEPATH=1

nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
python3 -c 'import torch; assert torch.cuda.is_available(), "this torch finds no GPU"'

site="$(mktemp -d)"
trap 'rm -rf "$site"' EXIT
python3 -m pip install -q --no-deps --no-build-isolation --target "$site" .
export PYTHONPATH="$site:$PWD/tests:$PWD/bench"

python3 -m vosengine.cli doctor
python3 -m pytest -q -p no:cacheprovider tests/test_kernels.py

for dtype in float32 float16; do
  python3 bench/kernels.py --device cuda --dtype "$dtype" --folder "$results"
done
for model in stm munet; do
  python3 bench/models.py endless sweep --model "$model" --device cuda --rounds 20 --folder "$results"
done
python3 bench/models.py cache --device cuda --rounds 20 --folder "$results"
python3 bench/objects.py --device cuda --rounds 20 --folder "$results"
