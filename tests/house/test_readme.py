"""What the README promises, done: its Python, its commands, its make targets, its tables."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from exported import Export
from imcnet_transcription import random_state
from stm_transcription import random_state_dict

from vosengine.detectors.file import FileSource, write_proposals
from vosengine.proposals import Proposals, boxes_of
from vosengine.training.synthetic import ClipConfig, make_clip
from vosengine.video import VideoWriter, write_labels

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, export: Export) -> Path:
    """A working folder with the files that the README speaks of."""
    path = tmp_path_factory.mktemp("readme")
    clip = make_clip(ClipConfig(frames=3, height=64, width=96), seed=0)
    with VideoWriter(path / "clip.mp4", 24) as video:
        for frame in clip.frames:
            video.write(frame)
    write_labels(path / "first.png", clip.masks[0])
    (path / "clips").mkdir()
    for name in ("one", "two"):
        shutil.copy(path / "clip.mp4", path / "clips" / f"{name}.mp4")
        shutil.copy(path / "first.png", path / "clips" / f"{name}.png")
    write_proposals(path / "proposals.json", map(everything_in, clip.masks))
    (path / "exported").mkdir()
    (path / "exported" / "munet").symlink_to(export("munet"))
    torch.save(random_state_dict(0), path / "STM_weights.pth")
    torch.save({"model": random_state("resnet18", 0)}, path / "checkpoint.pth")
    return path


def everything_in(mask: np.ndarray) -> Proposals:
    there = torch.from_numpy(mask > 0)[None]
    return Proposals(boxes_of(there), there, torch.ones(1))


def test_the_proposals_are_read_as_printed(tmp_path: Path) -> None:
    (example,) = blocks("json")
    (tmp_path / "proposals.json").write_text(example)
    source = FileSource(tmp_path / "proposals.json")
    frame = np.zeros((4, 6, 3), np.uint8)
    first, second = source(frame, 0), source(frame, 1)
    assert torch.equal(first.boxes, boxes_of(first.masks))
    assert torch.equal(first.masks, second.masks)
    assert (first.scores.item(), second.scores.item()) == (pytest.approx(0.93), 1)
    source.match(["00000", "00001"], 2)


def test_the_python_runs_as_printed(folder: Path) -> None:
    code = "\n".join(blocks("python"))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    indices = [line.split()[0] for line in done.stdout.splitlines()]
    assert indices == ["0", "1", "2", "0", "1", "2"]


def test_the_commands_run_as_printed(folder: Path) -> None:
    lines = [line for block in blocks("console") for line in block.splitlines()]
    lines = [line for line in lines if line.startswith(("vosengine ", "python "))]
    lines.remove("vosengine doctor")  # test_cli runs it
    lines.remove("vosengine serve --model munet")  # which does not end; test_server_engine does
    assert len(lines) >= 7
    for line in lines:
        program, *arguments = shlex.split(line)
        if program == "vosengine":
            command = [sys.executable, "-m", "vosengine", *arguments]
        else:
            command = [sys.executable, str(ROOT / arguments[0]), *arguments[1:]]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    assert len(list((folder / "out" / "clip").glob("*.png"))) == 3


def test_the_make_targets_exist() -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    for target in re.findall(r"`?make ([a-z]+)`?", README):
        assert target in targets


def test_the_tables_are_those_of_the_results() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "bench" / "tables.py")],
        capture_output=True,
        text=True,
        check=True,
    )
    printed = README.split("checked by the tests -->\n")[1].split("<!-- end of tables")[0]
    assert printed.strip() == done.stdout.strip()
    assert "|" in printed


def test_links_and_paths_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert (ROOT / target).exists(), target
