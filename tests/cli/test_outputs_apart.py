"""No output may be an input, in every command; and paths are printed unchanged."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_run_files import everything, make_frames

from vosengine.cli import app as cli
from vosengine.commands.bench import BenchOptions, bench
from vosengine.commands.demo import Demo, make_demo_clip
from vosengine.commands.draw import write_davis
from vosengine.commands.evaluate import EvaluateOptions, evaluate
from vosengine.commands.train import TrainOptions, train
from vosengine.errors import OutputError, VosError
from vosengine.files import Given, Ledger, keep_apart, whole, write_whole
from vosengine.training.plot import plot_log
from vosengine.training.synthetic.cache import write_cache
from vosengine.video import write_labels


def data_set(folder: Path) -> Path:
    """One sequence in DAVIS layout."""
    for name in ("JPEGImages", "Annotations"):
        (folder / name / "a").mkdir(parents=True)
    for index in range(4):
        Image.new("RGB", (32, 24), (index, 0, 0)).save(folder / f"JPEGImages/a/{index:05d}.jpg")
        write_labels(folder / f"Annotations/a/{index:05d}.png", np.ones((24, 32), np.uint8))
    return folder


def refused(work: object, *paths: Path, below: Path, kind: type[VosError] = OutputError) -> None:
    before = everything(below)
    with pytest.raises(kind) as caught:
        work()  # type: ignore[operator]
    assert everything(below) == before
    for path in paths:
        assert str(path) in str(caught.value)


def test_the_rule(tmp_path: Path) -> None:
    (tmp_path / "in" / "below").mkdir(parents=True)
    file, other = tmp_path / "in" / "a", tmp_path / "other"
    file.write_text("a")
    folder = file.parent
    os.link(file, tmp_path / "hard")
    (tmp_path / "soft").symlink_to(file)
    (tmp_path / "way").symlink_to(folder)
    shallow, deep = Given("the source", folder), Given("the data", folder, tree=True)
    for clash in (
        ([Given("x", file)], file),
        ([Given("x", file)], folder / "below" / ".." / "a"),
        ([Given("x", file)], tmp_path / "way" / "a"),
        ([Given("x", file)], tmp_path / "soft"),
        ([Given("x", file)], tmp_path / "hard"),
        ([Given("x", tmp_path / "soft")], file),
        ([Given("x", tmp_path / "soft")], tmp_path / "soft"),
        ([shallow], folder / "new"),
        ([shallow], tmp_path / "way" / "new"),
        ([shallow], tmp_path / "hard"),
        ([shallow], folder),
        ([deep], folder / "below" / "further" / "new"),
    ):
        with pytest.raises(OutputError, match="choose another place"):
            keep_apart(clash[0], [clash[1]])
    with pytest.raises(OutputError, match="are one file"):
        keep_apart([], [other, tmp_path / "in" / ".." / "other"])
    keep_apart(
        [shallow, Given("x", file)], [other, folder / "below" / "new", tmp_path / "in2" / "a"]
    )
    assert Given.named("weights", "demo") == ()


def test_files_are_whole_or_not_there(tmp_path: Path) -> None:
    path, target = tmp_path / "a", tmp_path / "target"
    target.write_text("mine")
    path.symlink_to(target)
    write_whole(path, "new")
    assert (path.read_text(), target.read_text(), path.is_symlink()) == ("new", "mine", False)
    with pytest.raises(OutputError, match="a: cannot be written"), whole(path) as scratch:
        scratch.write_text("half")
        raise OSError("no room")
    assert path.read_text() == "new" and sorted(os.listdir(tmp_path)) == ["a", "target"]
    ledger = Ledger(tmp_path / "list.json")
    ledger.add(["a"])
    Ledger(tmp_path / "list.json").check(["a", "b"])
    path.write_text("changed")
    for name in ("a", "target"):
        with pytest.raises(OutputError, match=f"{name}: is in the way"):
            Ledger(tmp_path / "list.json").check([name])
    for text in ("[]", "{", '{"files": 1}', '{"files": {"a": 1}}'):
        path.write_text(text)
        with pytest.raises(OutputError, match="is no list of files"):
            Ledger(path)


def test_eval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = data_set(tmp_path / "data")
    masks = data / "Annotations"
    wanted = EvaluateOptions(model="stm", data=data, weights="demo", device="cpu")

    def changed(**fields: object) -> EvaluateOptions:
        return EvaluateOptions(**{**vars(wanted), **fields})  # type: ignore[arg-type]

    refused(lambda: evaluate(changed(out=masks)), masks, below=tmp_path)
    refused(lambda: evaluate(changed(out=data / "JPEGImages")), below=tmp_path)
    picture = masks / "a" / "00002.png"
    refused(lambda: evaluate(changed(json=picture)), picture, below=tmp_path)
    mine = tmp_path / "mine" / "a"
    mine.mkdir(parents=True)
    write_labels(mine / "00001.png", np.ones((24, 32), np.uint8))
    refused(lambda: evaluate(changed(out=mine.parent)), mine / "00001.png", below=tmp_path)
    arguments = ["eval", "--predictions", str(masks), "--annotations", str(masks)]
    monkeypatch.setattr(sys, "argv", ["vosengine", *arguments, "--json", str(picture)])
    refused(cli.main, below=tmp_path, kind=SystemExit)  # type: ignore[arg-type]


def test_train(tmp_path: Path) -> None:
    out = tmp_path / "o"
    out.mkdir()
    (out / "weights.safetensors").write_text("mine")
    wanted = TrainOptions(model="stm", out=out, init=out / "weights.safetensors", device="cpu")
    refused(lambda: train(wanted), out / "weights.safetensors", below=tmp_path)
    refused(lambda: train(TrainOptions("stm", out)), out / "weights.safetensors", below=tmp_path)
    data = data_set(tmp_path / "data")
    here = TrainOptions("stm", data / "Annotations" / "b", data=f"davis:{data}=2,synthetic")
    refused(lambda: train(here), data, below=tmp_path)


@pytest.mark.slow
def test_plot_and_bench(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 1, "losses": {"a": 1.0}}\n')
    refused(lambda: plot_log(log, log), log, below=tmp_path)
    (tmp_path / "log.png").symlink_to(log)
    refused(lambda: plot_log(log, tmp_path / "log.png"), log, below=tmp_path)
    frames = make_frames(tmp_path / "frames")
    for name in ("json", "markdown", "chart"):
        wanted = BenchOptions(("stm",), "cpu", data=frames, **{name: frames / "shot-0.png"})
        refused(lambda wanted=wanted: bench(wanted), frames, below=tmp_path)
    same = BenchOptions(("stm",), "cpu", json=tmp_path / "x", markdown=tmp_path / "x")
    refused(lambda: bench(same), tmp_path / "x", below=tmp_path)


def test_clips_and_demo(tmp_path: Path) -> None:
    out = tmp_path / "o"
    out.mkdir()
    (out / "frames-0000.npy").write_text("mine")
    refused(lambda: write_davis(out, 4, 2, (48, 48)), out, below=tmp_path)
    refused(lambda: write_cache(out, 4, 2, (48, 48)), out / "frames-0000.npy", below=tmp_path)
    demo = Demo(tmp_path / "d", "stm", 2, 48, 64, 0)
    (tmp_path / "d" / "input").mkdir(parents=True)
    (tmp_path / "d" / "input" / "clip.mp4").write_text("mine")
    refused(lambda: make_demo_clip(demo), tmp_path / "d/input/clip.mp4", below=tmp_path)
    (tmp_path / "d" / "input" / "clip.mp4").unlink()
    for _ in range(2):
        make_demo_clip(demo)


def test_paths_are_printed_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from stub_stream import stub_stream

    from vosengine.commands import run as command

    monkeypatch.setattr(command, "make_stream", stub_stream)
    frames, out = make_frames(tmp_path / "[red]in[bold]"), tmp_path / "[x] :x: [bold]"
    for source in (frames, tmp_path / "[z]"):
        arguments = ["run", str(source), "--model", "stm", "--out", str(out)]
        monkeypatch.setattr(sys, "argv", ["vosengine", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        if source == frames:
            assert ended.value.code == 0 and f"wrote {out}\n" in printed.out
        else:
            assert (
                ended.value.code == 1
                and f"error: SourceError: pattern {source} holds" in printed.err
            )
