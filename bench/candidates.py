"""What can be timed of a case: our backends and the peers, each held against the reference."""

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
    """calls     what is to be timed, by name
    parities  how near each is to the reference
    reasons   why the others are not timed
    compile_seconds  of those that torch.compile made
    """

    calls: dict[str, Call] = field(default_factory=dict)
    parities: dict[str, Parity] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    compile_seconds: dict[str, float] = field(default_factory=dict)


def bench_cases(op: Op, heavy: bool) -> list[Case]:
    """Cases of real use; with `heavy` those of gpu_cases.py as well, the targets first."""
    cases = [case for case in cases_of(op) if case.bench]
    if heavy:
        cases += GPU_CASES.get(op.name, ())
        cases.sort(key=lambda case: not is_target(op, case))
    return cases


def is_target(op: Op, case: Case) -> bool:
    return case.name in TARGETS.get(op.name, ())


def drawn(case: Case, dtype: torch.dtype, seed: int = 0) -> Case:
    """The same case with its arguments drawn once for all; an output `dtype` among them is the
    benchmark's."""
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
    """Everything that is right for this case, ready to be called; `limit` as peers_of takes it."""
    arguments = case.arguments(device, dtype)
    found = Candidates()
    reasons = op.explain(**arguments)
    for backend in BACKENDS:
        if reasons[backend] is not None:
            found.reasons[backend] = str(reasons[backend])
            continue
        found.parities[backend] = check_parity(op, case, backend, device=device, dtype=dtype)
        found.calls[backend] = partial(call_on, backend, op, arguments)
    for name, peer in peers_of(op, device, limit).items():
        if isinstance(peer, str):
            found.reasons[name] = peer
        else:
            _try_peer(found, name, peer, op, case, device, dtype)
    for name, parity in found.parities.items():
        if parity.fault is not None:
            found.reasons[name] = f"{WRONG if name in BACKENDS else FAR}: {parity.fault}"
            del found.calls[name]
    return found


def _try_peer(
    found: Candidates,
    name: str,
    peer: Baseline,
    op: Op,
    case: Case,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Held against the reference like any backend, by standing in for one."""
    stand_in = SimpleNamespace(unsupported=lambda **_: None, run=peer)
    posing = Op(op.reference, op.contract, cpu=stand_in)
    try:
        found.parities[name] = check_parity(posing, case, "cpu", device=device, dtype=dtype)
    except (RuntimeError, CompileTookTooLong) as error:  # it cannot take this call
        words = " ".join(str(error).split())
        found.reasons[name] = f"{type(error).__name__}: {words[:400]}"
        return
    found.calls[name] = partial(peer, **case.arguments(device, dtype))
    if isinstance(peer, Compiled) and peer.seconds is not None:
        found.compile_seconds[name] = peer.seconds
