"""Candidates of a case: our backends and the peers that agree with the reference."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from baselines import Baseline, peers_of
from clocks import Call
from compiling import Compiled, CompileTookTooLong
from gpu_cases import GPU_CASES, TARGETS

from vosengine.kernels import BACKENDS, Op, use_backend
from vosengine.kernels.cases import Case
from vosengine.kernels.parity import Parity, cases_of, check_parity

WRONG = "wrong, hence not timed"
FAR = "not within the rule of parity, hence not timed"


@dataclass
class Candidates:
    """Candidates to be timed, by name.

    calls            functions without arguments
    parities         comparison with the reference
    reasons          why other candidates are not timed
    compile_seconds  time that torch.compile took
    """

    calls: dict[str, Call] = field(default_factory=dict)
    parities: dict[str, Parity] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    compile_seconds: dict[str, float] = field(default_factory=dict)


def bench_cases(op: Op, heavy: bool) -> list[Case]:
    """Return the benchmark cases of an op, with `heavy` those of gpu_cases.py; targets first."""
    cases = [case for case in cases_of(op) if case.bench]
    if heavy:
        cases += GPU_CASES.get(op.name, ())
        cases.sort(key=lambda case: not is_target(op, case))
    return cases


def is_target(op: Op, case: Case) -> bool:
    return case.name in TARGETS.get(op.name, ())


def with_fixed_inputs(case: Case, dtype: torch.dtype, seed: int = 0) -> Case:
    """Return the case with its arguments drawn once; an output `dtype` among them becomes the dtype
    of the benchmark."""
    made = case.make(torch.Generator().manual_seed(seed))
    if "dtype" in made:
        made["dtype"] = dtype
    return Case(case.name, lambda _: dict(made), case.bench)


def call_on(backend: str, op: Op, arguments: dict[str, Any]) -> Any:
    with use_backend(backend):
        return op(**arguments)


def candidates_of(
    op: Op, case: Case, device: torch.device, dtype: torch.dtype, limit: float | None = None
) -> Candidates:
    """Return all candidates of a case that pass the parity rule; `limit` as in peers_of."""
    arguments = case.arguments(device, dtype)
    candidates = Candidates()
    reasons = op.explain(**arguments)
    for backend in BACKENDS:
        if reasons[backend] is not None:
            candidates.reasons[backend] = str(reasons[backend])
            continue
        candidates.parities[backend] = check_parity(op, case, backend, device=device, dtype=dtype)
        candidates.calls[backend] = partial(call_on, backend, op, arguments)
    for name, peer in peers_of(op, device, limit).items():
        if isinstance(peer, str):
            candidates.reasons[name] = peer
        else:
            _try_peer(candidates, name, peer, op, case, device, dtype)
    for name, parity in candidates.parities.items():
        if parity.fault is not None:
            candidates.reasons[name] = f"{WRONG if name in BACKENDS else FAR}: {parity.fault}"
            del candidates.calls[name]
    return candidates


def _try_peer(
    candidates: Candidates,
    name: str,
    peer: Baseline,
    op: Op,
    case: Case,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Check a peer against the reference with the same rule as a backend."""
    stand_in = SimpleNamespace(unsupported=lambda **_: None, run=peer)
    posing = Op(op.reference, op.contract, cpu=stand_in)
    try:
        candidates.parities[name] = check_parity(posing, case, "cpu", device=device, dtype=dtype)
    except (RuntimeError, CompileTookTooLong) as error:  # the call is unsupported
        message = " ".join(str(error).split())
        candidates.reasons[name] = f"{type(error).__name__}: {message[:400]}"
        return
    candidates.calls[name] = partial(peer, **case.arguments(device, dtype))
    if isinstance(peer, Compiled) and peer.seconds is not None:
        candidates.compile_seconds[name] = peer.seconds
