"""Selection of tests for this machine and process; others are deselected and counted.

gpu          needs an NVIDIA GPU
interpreter  a kernel in Triton's interpreter: a process with TRITON_INTERPRET=1 runs these alone,
             and any other process all the rest
slow         not for `make check`: a test that is marked so, one that uses an export, every test of
             SLOW, and where a test runs for every model, those that are none of QUICK_MODELS
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from vosengine.kernels import gpu
from vosengine.zoo.registry import list_models

GPU = "an NVIDIA GPU"
INTERPRETER = "TRITON_INTERPRET=1"
COMPILED = "a process without TRITON_INTERPRET=1"
# One that carries masks on by a memory, and one that finds the foreground by itself.
QUICK_MODELS = ("stm", "imcnet")
OTHER_MODELS = {*list_models()} - {*QUICK_MODELS}
# Files that export models, start processes, browsers and servers, or train: seconds a test.
SLOW = (
    "tests/batch/",
    "tests/bench/",
    "tests/cli/test_bench_command.py",
    "tests/cli/test_fuzz_folders.py",
    "tests/cli/test_onnx_command.py",
    "tests/cli/test_options",
    "tests/cli/test_train_command.py",
    "tests/house/test_setup.py",
    "tests/models/test_identities.py",
    "tests/models/test_new_model.py",
    "tests/onnx/",
    "tests/server/test_page.py",
    "tests/server/test_server_engine.py",
    "tests/server/test_server_fuzz.py",
    "tests/training/test_training.py",
)
KEY = pytest.StashKey[Counter[str]]()
SENT = "left out"  # by a process of xdist to the one that prints


def missing_for(item: pytest.Item) -> str | None:
    """What the test needs and is missing here, or None."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        return GPU
    parameters: dict[str, Any] = getattr(getattr(item, "callspec", None), "params", {})
    interpreted = item.get_closest_marker("interpreter") is not None
    if gpu.INTERPRETED and not item.get_closest_marker("gpu"):
        interpreted = interpreted or parameters.get("backend") == "triton"
    if interpreted != gpu.INTERPRETED:
        return COMPILED if gpu.INTERPRETED else INTERPRETER
    return None


@pytest.hookimpl(trylast=True)  # what -k and -m leave out is not counted
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    kept, counted = [], Counter[str]()
    for item in items:
        missing = missing_for(item)
        if missing is None:
            kept.append(item)
        else:
            counted[missing] += 1
    items[:] = kept
    config.stash[KEY] = counted


@pytest.hookimpl(tryfirst=True)
def pytest_itemcollected(item: pytest.Item) -> None:
    exports = "export" in getattr(item, "fixturenames", ())
    values = getattr(getattr(item, "callspec", None), "params", {}).values()
    other = any(isinstance(value, str) and value in OTHER_MODELS for value in values)
    if exports or other or item.nodeid.startswith(SLOW):
        item.add_marker("slow")


def pytest_sessionfinish(session: pytest.Session) -> None:
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output[SENT] = dict(session.config.stash.get(KEY, Counter[str]()))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """All xdist processes collect the same tests, so each of them has the counts."""
    sent = getattr(node, "workeroutput", {}).get(SENT)
    if sent:
        node.config.stash[KEY] = Counter(sent)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    counted = config.stash.get(KEY, Counter[str]())
    if counted:
        summary = "; ".join(f"{count} need {what}" for what, count in counted.most_common())
        terminalreporter.write_line(f"left out: {summary}")
