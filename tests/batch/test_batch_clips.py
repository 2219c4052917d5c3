"""The clips of `vosengine batch`: folders, patterns, data sets, manifests."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from batch_clips import CLIPS, RUN, in_this_process, make_clips, make_frames, options, square

from vosengine.batch.clips import Clip, find_clips
from vosengine.batch.plan import BatchOptions, plan
from vosengine.commands.batch import batch
from vosengine.errors import InputError
from vosengine.video import read_labels, write_labels


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clips(tmp_path_factory.mktemp("data"))


def test_folders_patterns_and_masks_beside(data: Path, tmp_path: Path) -> None:
    clips = find_clips([str(data)])
    assert [(c.name, c.mask) for c in clips] == [(n, data / f"{n}.png") for n in CLIPS]
    assert find_clips([str(data / "*")]) == clips
    assert find_clips([str(data / "b"), str(data / "[a]")]) == [clips[1], clips[0]]
    for name in ("one.mp4", "two.MOV", "one_mask.png", ".hidden.mp4"):
        (tmp_path / name).write_bytes(b"x")
    make_frames(tmp_path / "two_mask", 1, 1)
    pairs = [(clip.name, clip.mask) for clip in find_clips([str(tmp_path)], "_mask")]
    assert pairs == [("one", tmp_path / "one_mask.png"), ("two", tmp_path / "two_mask")]
    assert [c.name for c in find_clips([str(tmp_path / "*.m*")])] == ["one"]
    (tmp_path / "-odd näme*.mp4").write_bytes(b"x")
    assert find_clips([str(tmp_path / "-odd näme*.mp4")])[0].name == "odd_näme_"


@pytest.mark.parametrize("kind", ["davis", "youtube"])
def test_data_sets_are_read_as_they_are(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Later masks of an object are not used as prompts: they are the ground truth."""
    in_this_process(monkeypatch)
    inner = "480p" if kind == "davis" else ""
    for name in ("x", "y"):
        make_frames(tmp_path / "JPEGImages" / inner / name, 4, 1)
        masks = tmp_path / "Annotations" / inner / name
        masks.mkdir(parents=True)
        write_labels(masks / "00000.png", square(6, 2))
        write_labels(masks / "00001.png", square(30, 2))  # wrong on purpose
        write_labels(masks / "00002.png", square(6, 2, 5))
    settings = options(tmp_path, tmp_path / "out")
    jobs = plan(settings)
    assert [job.name for job in jobs] == ["x", "y"]
    batch(settings)
    first, second, third = (read_labels(tmp_path / f"out/x/0000{i}.png") for i in range(3))
    assert np.unique(first).tolist() == [0, 2]
    assert (second == 2).sum() == 0 or (second[:, 30:37] == 2).sum() < 7 * 14
    np.testing.assert_array_equal(third == 5, square(6, 2, 5) == 5)


def write_manifest(path: Path, text: str) -> list[Clip]:
    path.write_text(text)
    return find_clips([str(path)])


def test_manifests(data: Path, tmp_path: Path) -> None:
    os.symlink(data, tmp_path / "in")
    clips = write_manifest(
        tmp_path / "m.csv",
        "clip,mask,name,model,size,max_objects\nin/a,in/a.png,first one,,32x48,\nin/b,,,munet,,3\n",
    )
    first = Clip("first_one", f"{tmp_path}/in/a", tmp_path / "in/a.png", True, {"size": (32, 48)})
    options_of_b = {"model": "munet", "max_objects": 3}
    assert clips[0] == first
    assert clips[1] == Clip("b", f"{tmp_path}/in/b", tmp_path / "in/b.png", False, options_of_b)
    line = {"clip": "in/a", "name": "z", "online": False, "size": "native", "mask": None}
    (clip,) = write_manifest(tmp_path / "m.jsonl", "\n" + json.dumps(line) + "\n")
    assert (clip.name, clip.options) == ("z", {"online": False, "size": "native"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"clip": "in/a", "colour": 1, "x": 2}', r"line 1: unknown: colour, x; wanted among clip"),
        ('{"mask": "in/a.png"}', "line 1: has no clip"),
        ("[1]", "line 1: wanted an object"),
        ('{"clip": ', "line 1: not valid JSON"),
        ('{"clip": "in/a", "size": "big"}', "line 1: size: wanted 480"),
        ('{"clip": "in/a", "size": -3}', "line 1: size: "),
        ('{"clip": "in/a", "max_objects": 256}', "line 1: max_objects: wanted 1 to 255"),
        ('{"clip": "in/a", "online": "maybe"}', "line 1: online: wanted true or false"),
        ('{"clip": "in/a", "mask": 3}', "line 1: mask: wanted text"),
        (
            '{"clip": "in/no"}\n{"clip": "in/a", "mask": "in/z.png"}',
            r"2 missing: \S*in/no .*z\.png",
        ),
        ('{"clip": "in/a"}\n{"clip": "in/b", "name": "A"}', "would be named 'A' as"),
        ('{"clip": "in/a", "name": "a.part"}', "cannot be named 'a.part'"),
        ('{"clip": "in/a", "name": "Batch.json"}', "cannot be named"),
        ('{"clip": "in/a", "name": "/"}', None),
        ("", "there are none"),
    ],
)
def test_manifests_that_are_refused(
    data: Path, tmp_path: Path, text: str, message: str | None
) -> None:
    os.symlink(data, tmp_path / "in")
    if message is None:
        assert write_manifest(tmp_path / "m.jsonl", text)[0].name == "_"
        return
    with pytest.raises(InputError, match=message):
        write_manifest(tmp_path / "m.jsonl", text)


def test_nothing_begins_before_all_inputs_are_there(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    make_frames(tmp_path / "bare", 1, 1)
    clips = (str(data / "a"), str(tmp_path / "bare"))
    with pytest.raises(InputError, match="1 without a mask: bare"):
        batch(BatchOptions(clips, out, RUN))
    with pytest.raises(InputError, match=r"no set named stm\.none"):
        batch(options(data, out, run={"weights": "none"}))
    with pytest.raises(InputError, match=r"no\.safetensors: no such file"):
        batch(options(data, out, run={"weights": "no.safetensors"}))
    with pytest.raises(InputError, match="is one image"):
        batch(BatchOptions((str(data / "a.png"),), out, RUN))
    with pytest.raises(InputError, match="no such file or folder"):
        batch(BatchOptions((str(data / "no"),), out, RUN))
    masked = tmp_path / "m.jsonl"
    masked.write_text(json.dumps({"clip": str(data / "a"), "mask": str(data / "a.png")}))
    with pytest.raises(InputError, match="imcnet finds the foreground by itself"):
        batch(BatchOptions((str(masked),), out, {**RUN, "model": "imcnet"}))
    assert plan(BatchOptions((str(data),), out, {**RUN, "model": "imcnet"}))[0].options.mask is None
    assert not out.exists()
