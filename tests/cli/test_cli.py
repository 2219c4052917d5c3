"""The command line: output and exit codes."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import FOLLOWERS
from PIL import Image

import vosengine.commands.doctor as doctor
from vosengine import build
from vosengine.build import openmp_runtimes
from vosengine.cli.app import main
from vosengine.commands.info import cost
from vosengine.kernels import BACKENDS, OPS
from vosengine.training.synthetic import Clip
from vosengine.video import VideoWriter, write_labels
from vosengine.zoo.registry import entry, list_models
from vosengine.zoo.weights import cards

Weights = Callable[[str], Path]


Done = subprocess.CompletedProcess[str]
Command = Callable[..., Done]


def in_a_process(*arguments: object) -> Done:
    """Run the command as a separate process; takes 3 s if it loads torch."""
    command = [sys.executable, "-m", "vosengine", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def vosengine(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run the command in this process, with the same arguments, output and exit code."""

    def run(*arguments: object) -> Done:
        command = ["vosengine", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", command)
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        code = ended.value.code or 0
        assert isinstance(code, int)
        return Done(command, code, *capsys.readouterr())

    return run


@pytest.mark.slow
def test_help_and_version_answer_at_once() -> None:
    done = in_a_process("--help")
    assert done.returncode == 0
    for command in ("run", "eval", "demo", "models", "info", "doctor"):
        assert command in done.stdout
    assert re.match(
        r"vosengine 0\.\d+\.\d+, commit ([0-9a-f]{12}(\+changes)?|unknown), (no )?compiled kernels",
        in_a_process("--version").stdout,
    )


def test_one_openmp_runtime_is_loaded() -> None:
    """The extension and torch share one OpenMP runtime; two would compete for the cores."""
    runtimes = openmp_runtimes()
    assert runtimes is None or len(runtimes) == 1, runtimes


def test_a_commit_that_was_noted_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "PACKAGE", tmp_path)
    assert build.commit() == "unknown"
    (tmp_path / "commit.txt").write_text("0123456789ab+changes\n")
    assert build.commit() == "0123456789ab+changes"


@pytest.mark.slow
def test_models_lists_every_model_and_says_random(vosengine: Command) -> None:
    done = vosengine("models")
    assert done.returncode == 0
    for name in list_models():
        assert name in done.stdout
    assert "no: RANDOM" in done.stdout
    assert re.search(r"demo +│ yes", done.stdout)
    assert re.search(r"efficientnet_lite0 │ PyPI: .* │ Apache-2\.0", done.stdout)


@pytest.mark.parametrize(
    ("model", "objects", "wanted"),
    [
        # methods.md's table by hand: R50 54.2 + KV 19.1 + skips 122.3; per object 54.8 + 19.1 to
        # remember, 88.2 + 3.36 a memory frame to segment.
        ("stm", 1, {"encode": 195.6, "remember": 74.6, "segment": 88.2 + 5 * 3.36}),
        ("stm", 3, {"encode": 195.6, "remember": 3 * 74.4, "segment": 3 * (88.2 + 5 * 3.36)}),
        # ResNet-101 at 480 square; APM for three frames, less what only training needs (6.4), two
        # neighbours aligned, TSC and the prediction.
        ("imcnet", 1, {"encode": 71.6, "remember": 0, "segment": 49 - 6.4 + 44.6 + 9}),
        # D-Net's backbone and ASPPs, R101 at 473 square, the refiner's reductions; D-Net's heads,
        # the refiner's first layers and the rest of it a track; D-Net's guidance.
        (
            "target_aware",
            3,
            {"encode": 201.1 + 71.5 + 1.0, "segment": 11.9 + 1.4 + 3 * 11.1, "remember": 151.9},
        ),
        ("munet", 3, {"encode": 177.3, "remember": 3 * 73.9, "segment": 3 * 105 + 19.1 + 1.34}),
        # R50, 1x1 KV, the skips of two decoders; the reading of four sets, a decoder for all and
        # one per object; the support encoder, KV and f_theta of one frame.
        (
            "giel",
            3,
            {"encode": 54.2 + 2.1 + 244.6, "segment": 57.1 + 4 * 88.1, "remember": 56.9 + 3 * 3.1},
        ),
        # R50, bottlenecks, 30 projected proposals; two references, RefineNet's shared first layers
        # and the rest per object, 30 pairs and a template per object; memory writes.
        (
            "dmn_aoa",
            3,
            {
                "encode": 54.2 + 3.6 + 30 * 0.69,
                "segment": 32.5 + 62.9 + 3 * (157.5 + 30 * 0.039 + 1.2),
                "remember": 3 * 1.16,
            },
        ),
    ],
)
@pytest.mark.slow
def test_info_counts_what_the_layers_add_up_to(
    model: str, objects: int, wanted: dict[str, float]
) -> None:
    result = cost(model, (480, 854), objects, memory_frames=5)
    assert result.network_size == ((480, 480) if model == "imcnet" else (480, 864))
    for verb, gflop in wanted.items():
        assert result.gflop[verb] == pytest.approx(gflop, rel=0.03), verb
    if model in ("stm", "munet"):
        assert result.memory_bytes == 10 * 20 * 1620 * (128 + 512) * 4
        assert 38e6 < result.parameters < 40e6
    if model == "giel":  # 64 stored frames with their labels; five read, ten objects and all
        stored = 64 * ((1620 * (128 + 512) + 128) * 4 + 480 * 864)
        assert result.memory_bytes == stored + 5 * (1620 * (128 + 11 * 512) + 128) * 4
    if model == "dmn_aoa":  # regions; the frame before and ten first ones; last masks and boxes
        references = 11 * 1620 * (256 + 256 + 4 * 128 + 16 * 128 + 10 * 21)
        masks = 10 * (120 * 216 + 4)
        assert result.memory_bytes == 4 * (10 * 20 * 196 * (128 + 512) + references + masks)
    if model == "target_aware":  # samples, both layers and the guidance; methods.md has fp16
        track = 80 * (96 + 10) * 900 + 80 + 96 * 1024 + 96 * 9 + 128
        assert result.memory_bytes == 4 * (20 * track + 256 * 30 * 54)


@pytest.mark.slow
def test_info_prints_a_table_and_refuses_a_bad_size(vosengine: Command) -> None:
    done = vosengine("info", "munet", "--size", "64x96", "--objects", 2)
    assert done.returncode == 0
    assert "GFLOP" in done.stdout
    done = vosengine("info", "munet", "--size", "big")
    assert done.returncode == 2
    assert "HEIGHTxWIDTH" in done.stderr


@pytest.fixture(scope="module")
def reports() -> list[doctor.BackendReport]:
    """Run every case of every op once, which is most of the time of `doctor`."""
    return list(doctor.self_test())


@pytest.mark.slow
def test_doctor_passes_here_and_names_every_op_and_backend(
    vosengine: Command, reports: list[doctor.BackendReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "self_test", lambda: iter(reports))
    done = vosengine("doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    for op in OPS:
        assert op.name in done.stdout
    for backend in BACKENDS:
        assert backend in done.stdout
    assert "FAILS" not in done.stdout


@pytest.mark.slow
def test_a_backend_that_fails_is_said_and_is_exit_code_one(
    vosengine: Command, reports: list[doctor.BackendReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = [replace(reports[-1], reason=None, tested=1, fault="error 1")]
    monkeypatch.setattr(doctor, "self_test", lambda: iter([*reports[:-1], *wrong]))
    done = vosengine("doctor")
    assert done.returncode == 1
    assert "FAILS" in done.stdout and "a backend disagrees" in done.stderr


def test_doctor_says_what_is_chosen_and_why_the_others_are_not(
    reports: list[doctor.BackendReport],
) -> None:
    for op in OPS:
        mine = {r.backend: r for r in reports if r.op == op.name and r.device == "cpu"}
        assert tuple(mine) == BACKENDS
        chosen = next(name for name, r in mine.items() if r.tested or name == "reference")
        assert [name for name, r in mine.items() if r.chosen] == [chosen]
        for name, report in mine.items():
            assert report.reason or report.tested or name == "reference", (op.name, name)


def test_doctor_fails_when_a_backend_computes_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    op = next(op for op in OPS if op.name == "read_memory")

    class Wrong:
        """A backend that is off by one."""

        unsupported = staticmethod(lambda *a, **k: None)
        run = staticmethod(lambda *a, **k: op.reference(*a, **k) + 1)

    monkeypatch.setitem(op.backends, "cpu", Wrong)
    monkeypatch.setattr(doctor, "OPS", (op,))
    faults = [r.fault for r in doctor.self_test() if (r.op, r.backend) == ("read_memory", "cpu")]
    assert faults
    assert "error 1" in str(faults[0])


@pytest.mark.slow
def test_errors_are_one_message_and_exit_code_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = [
        (["run", tmp_path / "none.mp4", "--model", "stm", "--out", tmp_path], "no such file"),
        (["run", "x.mp4", "--model", "sam", "--out", tmp_path], "wanted one of stm, munet"),
        (
            ["run", "x.mp4", "--model", "stm", "--out", tmp_path, "--device", "cuda:9"],
            "CUDA devices",
        ),
        (["info", "sam"], "wanted one of stm, munet"),
    ]
    for arguments, message in cases:
        monkeypatch.setattr(sys, "argv", ["vosengine", *map(str, arguments)])
        with pytest.raises(SystemExit, match="1"):
            main()
        assert message in capsys.readouterr().err
    done = in_a_process("info", "sam")
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert in_a_process("run", "x.mp4").returncode == 2


@pytest.mark.slow
def test_a_truncated_video_keeps_its_frames_and_ends_with_an_error(
    vosengine: Command, clip: Clip, tmp_path: Path, tiny_weights: Weights
) -> None:
    whole = tmp_path / "whole.mp4"
    noise = np.random.default_rng(0)
    with VideoWriter(whole, 25) as writer:
        for frame in np.repeat(clip.frames, 4, axis=0):
            grain = noise.integers(0, 60, frame.shape, dtype=np.uint8)
            writer.write((frame // 2 + grain)[:64, :98])
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * 0.6)])
    write_labels(tmp_path / "first.png", clip.masks[0][:64, :98])
    arguments = ["--model", "stm", "--weights", tiny_weights("stm"), "--out", tmp_path / "o"]
    done = vosengine("run", cut, "--mask", tmp_path / "first.png", *arguments)
    assert done.returncode == 1
    assert "cut.mp4" in done.stderr
    assert 5 < len(list((tmp_path / "o").glob("*.png"))) < 40


@pytest.mark.parametrize("model", ["munet", "imcnet"])
@pytest.mark.slow
def test_demo_draws_and_segments_a_clip(vosengine: Command, model: str, tmp_path: Path) -> None:
    size = ("--frames", 2, "--size", "64x96", "--model", model)
    done = vosengine("demo", "--out", tmp_path / "d", *size)
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "d") in done.stdout.replace("\n", "")
    trained = any(card.trained for card in cards().values() if card.model == model)
    assert ("RANDOM" in done.stdout) != trained
    of = "the objects" if model == "munet" else "the foreground"
    printed = re.search(rf"mean J of {of}: (\d\.\d{{3}})", done.stdout)
    assert printed is not None
    assert 0 <= float(printed[1]) <= 1
    assert len(list((tmp_path / "d").glob("0*.png"))) == 2
    with Image.open(tmp_path / "d" / "input" / "first_mask.png") as image:
        assert image.getextrema()[1] >= 1


@pytest.mark.parametrize("model", list_models())
@pytest.mark.slow
def test_a_real_clip(
    vosengine: Command, model: str, davis: Path, tmp_path: Path, tiny_weights: Weights
) -> None:
    mask = ("--mask", davis / "FirstFrameIds/480p/horsejump-high.png")
    needs = entry(model).build.needs_proposals
    source = ("--proposals", f"dnet:{tiny_weights('target_aware')}") if needs else ()
    done = vosengine(
        "run",
        davis / "JPEGImages/480p/horsejump-high",
        *("--model", model, "--weights", tiny_weights(model), "--limit", 3),
        *(mask if model in FOLLOWERS else ()),
        *source,
        *("--out", tmp_path / "o"),
    )
    assert done.returncode == 0, done.stderr
    for name in ("00000", "00001", "00002"):
        with Image.open(tmp_path / "o" / f"{name}.png") as image:
            assert image.size == (854, 480)
            most = {"imcnet": 1, "target_aware": 20}.get(model, 2)
            assert set(np.unique(np.asarray(image)).tolist()) <= set(range(most + 1))
