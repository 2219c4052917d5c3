"""Procedural clips in DAVIS layout equal those of the generator and can be read back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from vosengine.cli.app import app
from vosengine.commands.draw import write_davis
from vosengine.errors import ConfigError, OutputError
from vosengine.evaluation import find_annotated
from vosengine.training.streams import clip_seed
from vosengine.training.synthetic.levels import make_level_clip
from vosengine.video import read_mask

SIZE = (48, 64)


@pytest.mark.slow
def test_the_folder_holds_the_clips_of_its_seed(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    write_davis(tmp_path / "a", 5, 3, SIZE, 7, on_clip=lambda done, all_: seen.append((done, all_)))
    assert seen == [(n, 5) for n in range(1, 6)]
    clips = find_annotated(tmp_path / "a")
    assert [entry.name for entry in clips] == sorted(f"level{n % 4}-{n:04d}" for n in range(5))
    for entry in clips:
        number = int(entry.name[-4:])
        clip = make_level_clip(number % 4, clip_seed(7, number), 3, SIZE)
        masks = [read_mask(path) for path in entry.annotations]
        assert np.array_equal(masks, clip.masks)
        frames = np.stack([np.asarray(Image.open(path)) for path in entry.frames])
        assert np.abs(frames.astype(int) - clip.frames).mean() < 6  # JPEG


def test_one_level_and_labelled_clips(tmp_path: Path) -> None:
    write_davis(tmp_path, 2, 3, SIZE, 7, level=3, labelled=True)
    clips = find_annotated(tmp_path)
    assert [entry.name for entry in clips] == ["level3-0000", "level3-0001"]
    clip = make_level_clip(3, clip_seed(7, 1), 3, SIZE, labelled=True)
    assert np.array_equal([read_mask(p) for p in clips[1].annotations], clip.masks)


def test_bad_requests_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    for clips, level, wanted in ((0, None, "at least 1"), (1, 4, "0..3"), (1, -1, "0..3")):
        with pytest.raises(ConfigError, match=wanted):
            write_davis(tmp_path / "out", clips, 3, SIZE, level=level)
    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="is not empty"):
        write_davis(tmp_path, 1, 3, SIZE)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.slow
def test_the_command_writes_what_eval_reads(tmp_path: Path) -> None:
    out = tmp_path / "held"
    options = ["clips", "--count", "4", "--frames", "3", "--size", "48x64", "--out", str(out)]
    assert CliRunner().invoke(app, [*options, "--davis", "--level", "0"]).exit_code == 0
    assert len(find_annotated(out)) == 4
    refused = CliRunner().invoke(app, [*options, "--level", "0"])
    assert refused.exit_code != 0
