"""A few small calls of every compiled backend, to run under compute-sanitizer.

compute-sanitizer --tool memcheck python bench/gpu_sanitize.py [--device auto] [--backend NAME]
"""

from __future__ import annotations

import argparse
import sys

import torch
from candidates import call_on

from vosengine.device import choose_device
from vosengine.kernels import BACKENDS, OPS
from vosengine.kernels.parity import cases_of
from vosengine.timing import synchronise

DTYPES = (torch.float32, torch.float16)
CASES: dict[str, tuple[str, ...]] = {
    "prepare_frame": ("enlarged", "same size, odd"),
    "correlate_frames": ("odd sizes", "outside excluded"),
    "read_memory": ("several blocks", "sets, lengths"),
    "deform_conv": ("v2", "strided views"),
    "pool_regions": ("several images", "with planes"),
    "group_centres": ("several images", "limit beyond the pixels"),
    "fit_target": ("both layers",),
    "align_object": ("odd sizes", "one object"),
    "match_proposals": ("odd sizes", "mean, fewer proposals"),
    "finish_masks": ("odd sizes", "padding cropped"),
}


def run(device: torch.device, backends: tuple[str, ...]) -> int:
    """Run the calls and return their number. Each is printed first, so that a report can be matched
    with its call."""
    count = 0
    for op in OPS:
        for case in cases_of(op):
            if case.name not in CASES.get(op.name, ()):
                continue
            for dtype in DTYPES:
                arguments = case.arguments(device, dtype)
                reasons = op.explain(**arguments)
                for backend in backends:
                    if reasons[backend] is None:
                        print(f"{op.name}, {backend}, {case.name}, {dtype}", flush=True)
                        call_on(backend, op, arguments)
                        synchronise(device)
                        count += 1
    return count


def main() -> None:
    compiled = tuple(name for name in BACKENDS if name != "reference")
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    parser.add_argument("--backend", action="append", choices=compiled, help="all without it")
    options = parser.parse_args()
    with torch.inference_mode():
        count = run(choose_device(options.device), tuple(options.backend or compiled))
    print(f"{count} calls")
    if count == 0:
        sys.exit("no backend supports any call on this device")


if __name__ == "__main__":
    main()
