"""`vosengine batch --ray`: the same results from actors of a cluster, whatever dies."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from batch_clips import (
    CLIPS,
    batch_arguments,
    in_another_process,
    make_clips,
    make_frames,
    options,
    results,
    run_alone,
    square,
)
from batch_units import broken, deadly, scripted
from typer.testing import CliRunner

from vosengine.batch.cluster import RayPool
from vosengine.batch.supervisor import Event
from vosengine.cli.app import app
from vosengine.commands.batch import batch
from vosengine.errors import DeviceError, OutputError
from vosengine.video import write_labels

ray: Any = pytest.importorskip("ray", reason='ray is not installed: pip install "vosengine[ray]"')
# Ray Data sets options of its own that it calls deprecated.
pytestmark = pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\.data\.context")

SUPPORT = Path(__file__).resolve().parents[1] / "support"  # of which actors import


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clips(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def alone(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    return run_alone(data, tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Start a local cluster for all tests; returns its address."""
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv("PYTHONPATH", str(SUPPORT), prepend=os.pathsep)
    context = ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield context.address_info["address"]
    ray.shutdown()
    monkeypatch.undo()


def states(out: Path) -> list[str]:
    return [row["state"] for row in json.loads((out / "batch.json").read_text())["table"]]


def test_actors_write_what_run_writes_whichever_of_them_is_killed(
    cluster: str, data: Path, alone: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    notes, out = tmp_path / "notes", tmp_path / "out"
    notes.mkdir()
    worker = deadly("worker", notes)
    summary = batch(options(data, out, ray="auto", workers=2), worker=worker)
    assert (summary["done"], summary["complete"], states(out)) == (3, True, ["done"] * 3)
    assert {name: results(out / name) for name in CLIPS} == alone
    assert [row["tries"] for row in summary["table"]] == [1, 2, 1]
    answered = len((notes / "b").read_text())
    assert CLIPS["b"] <= answered <= CLIPS["b"] + 2  # a checkpoint's interval
    summary = batch(options(data, out, ray="auto"))
    assert (summary["skipped"], summary["frames"]) == (3, 0)


def test_driver_and_raylet_are_killed(
    cluster: str,
    data: Path,
    alone: dict[str, dict[str, bytes]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both die in the middle of the same clip, one after the other; then the clip is finished."""
    monkeypatch.setenv("RAY_health_check_period_ms", "1000")  # and not half a minute
    monkeypatch.setenv("RAY_health_check_timeout_ms", "1000")
    monkeypatch.setenv("RAY_health_check_failure_threshold", "2")
    out = tmp_path / "out"
    for victim, address in (("driver", cluster), ("raylet", "local")):
        notes = tmp_path / victim
        notes.mkdir()
        code = in_another_process(victim, notes, [*batch_arguments(data, out), "--ray", address])
        assert code != 0 and (notes / "dead").exists()
        assert (out / "a").is_dir() and not (out / "b").exists()
    notes = tmp_path / "nobody"
    notes.mkdir()
    summary = batch(options(data, out, ray="auto"), worker=deadly("nobody", notes))
    assert (summary["complete"], states(out)) == (True, ["skipped", "done", "done"])
    assert {name: results(out / name) for name in CLIPS} == alone
    answered = sum(len(path.read_text()) for path in tmp_path.glob("*/b") if path.is_file())
    assert CLIPS["b"] <= answered <= CLIPS["b"] + 2 * 2  # a checkpoint's interval each


def pooled(
    jobs: list[Any], start: Any, stop: Any = lambda: False, **settings: int
) -> tuple[bool, list[Event]]:
    events: list[Event] = []
    settings = {"workers": 2, "retries": 1, **settings}
    pool = RayPool(start, address="auto", gpus=False, listen=events.append, **settings)
    stopped = pool.work(jobs, stop)
    return stopped, [event for event in events if event.kind != "frames"]


def test_what_fails_is_set_aside_and_the_rest_goes_on(cluster: str, tmp_path: Path) -> None:
    script = {
        "poison": ("failed", 2, "died 2 times, at last: killed, or ended by itself"),
        "bad": ("failed", 1, "InputError: mask: bad"),
        "killed once": ("done", 2, ""),
        "raises": ("failed", 2, "RuntimeError: not of ours"),
        "fine": ("done", 1, ""),
    }
    stopped, events = pooled([(name, name, tmp_path) for name in script], scripted)
    assert not stopped and len(events) == len(script)
    for event in events:
        kind, tries, text = script[event.job[0]]
        assert (event.kind, event.tries) == (kind, tries), event
        assert text in str(event.value)


def test_asked_to_stop_and_what_no_clip_can_do_without(cluster: str, tmp_path: Path) -> None:
    (tmp_path / "stop").mkdir()
    jobs = [(name, "long", tmp_path / "stop") for name in "abc"]
    stopped, events = pooled(jobs, scripted, lambda: len([*(tmp_path / "stop").iterdir()]) == 2)
    assert stopped and {event.kind for event in events} == {"stopped"}
    assert not (tmp_path / "stop" / "c").exists()
    jobs = [("1", "long", tmp_path), ("2", "full", tmp_path), ("3", "fine", tmp_path)]
    with pytest.raises(OutputError, match="disk: full"):
        pooled(jobs, scripted)
    assert not (tmp_path / "3").exists()
    with pytest.raises(DeviceError, match="1 died when they started"):
        pooled(jobs[2:], broken, workers=1, retries=0)


def test_scores_are_the_same(cluster: str, tmp_path: Path) -> None:
    make_data(tmp_path / "data")
    arguments = ["eval", "--model", "stm", "--data", str(tmp_path / "data"), "--device", "cpu"]
    arguments += ["--weights", "demo", "--size", "32", "--no-propagation", "--json"]
    scores = []
    for name, more in (("alone", []), ("actors", ["--ray", cluster])):
        outcome = CliRunner().invoke(app, [*arguments, str(tmp_path / name), *more])
        assert outcome.exit_code == 0, outcome.output
        content = json.loads((tmp_path / name).read_text())
        scores.append({n: content[n] for n in ("sequences", "mean", "baselines")})
    assert scores[0] == scores[1]


def make_data(root: Path) -> None:
    """Two clips with a mask for every frame."""
    for seed, name in enumerate(("x", "y"), 1):
        make_frames(root / "JPEGImages" / name, 4, seed)
        (root / "Annotations" / name).mkdir(parents=True)
        for index in range(4):
            write_labels(root / "Annotations" / name / f"{index:05d}.png", square(6 + index, 1))
