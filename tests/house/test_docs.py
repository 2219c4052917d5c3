"""The documentation is correct: its code, commands, tables, charts, links and terms."""

from __future__ import annotations

import importlib
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import tritonclient.http as triton
import typer
from exported import Export
from imcnet_transcription import random_state
from pages import ROOT, Page, all_pages, page
from serving import TOKEN, running, tiny_engine
from stm_transcription import random_state_dict
from typer.testing import CliRunner

from vosengine.cli.app import app
from vosengine.detectors.file import FileSource, write_proposals
from vosengine.proposals import Proposals, boxes_of
from vosengine.training.synthetic import ClipConfig, make_clip
from vosengine.video import VideoWriter, write_labels

PAGES = all_pages()
SERVED = "docs/serving.md"  # its code wants a server
LANGUAGES = {"python", "console", "bash", "text", "json"}
# Commands that are run, on pages that name only the files of `folder`; all others are parsed.
# (tests/batch runs `batch`, which starts processes.)
RUN = ("run", "models", "info")
RUN_ON = ("README.md", "docs/index.md", "docs/command-line.md", "docs/inputs.md")
MAPS = ("architecture", "kernels", "adding-an-op", "adding-a-model")


def named(pages: list[Page]) -> Any:
    return pytest.mark.parametrize("which", pages, ids=lambda doc: doc.name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, export: Export) -> Path:
    """A working folder with the files that the pages use."""
    path = tmp_path_factory.mktemp("docs")
    clip = make_clip(ClipConfig(frames=3, height=64, width=96), seed=0)
    with VideoWriter(path / "clip.mp4", 24) as video:
        for frame in clip.frames:
            video.write(frame)
    write_labels(path / "first.png", clip.masks[0])
    write_proposals(path / "proposals.json", map(everything_in, clip.masks))
    (path / "exported").mkdir()
    (path / "exported" / "munet").symlink_to(export("munet"))
    torch.save(random_state_dict(0), path / "STM_weights.pth")
    torch.save({"model": random_state("resnet18", 0)}, path / "checkpoint.pth")
    return path


def everything_in(mask: np.ndarray) -> Proposals:
    there = torch.from_numpy(mask > 0)[None]
    return Proposals(boxes_of(there), there, torch.ones(1))


@named(PAGES)
def test_every_block_is_of_a_kind_that_is_tested(which: Page) -> None:
    assert {language for language, _ in which.fences} <= LANGUAGES
    assert which.text.count("```") == 2 * len(which.fences)


@named([doc for doc in PAGES if doc.blocks("python") and doc.name != SERVED])
def test_the_python_runs_as_printed(
    which: Page, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    code = "\n".join(which.blocks("python"))
    exec(compile(code, which.name, "exec"), {"__name__": "__main__"})
    if which.name in ("README.md", "docs/index.md"):
        indices = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
        assert indices == ["0", "1", "2"]


def test_the_code_of_a_client_runs_as_printed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    served = page(SERVED)
    frame = np.zeros((64, 96, 3), np.uint8)
    mask = np.zeros((64, 96), np.uint8)
    mask[8:40, 8:40] = 1
    prompt = triton.InferInput("prompt", [64, 96], "UINT8")
    prompt.set_data_from_numpy(mask)
    with running(tiny_engine("munet")) as server:
        address = server.url.removeprefix("http://")
        namespace: dict[str, Any] = {"frame": frame, "prompt": prompt, "token": TOKEN}
        for code in served.blocks("python"):
            here = code.replace("#token=...", f"#token={TOKEN}")
            exec(here.replace("127.0.0.1:8000", address), namespace)
        namespace["client"].close()
        assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["0", "1", "2"]
        assert namespace["labels"].shape == (64, 96)
        assert {*np.unique(namespace["labels"])} <= {0, 1}
        requests = [line for line in served.commands if line.startswith("curl ")]
        assert requests
        if shutil.which("curl") is None:
            pytest.skip("no curl on this machine")
        for line in requests:
            here = line.replace("127.0.0.1:8000", address).replace("$TOKEN", TOKEN)
            done = subprocess.run(shlex.split(here), capture_output=True, text=True, check=True)
            assert "error" not in json.loads(done.stdout), f"{line}\n{done.stdout}"


def commands_of(pages: list[Page]) -> list[str]:
    """Every command of these pages, without duplicates."""
    return list(dict.fromkeys(line for doc in pages for line in doc.commands))


def to_run() -> list[str]:
    lines = commands_of([doc for doc in PAGES if doc.name in RUN_ON])
    commands = tuple(f"vosengine {name}" for name in RUN)
    return [line for line in lines if line.startswith(("python weights/", *commands))]


def test_the_commands_run_as_printed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    lines = to_run()
    assert len(lines) >= 14
    for line in lines:
        program, *arguments = shlex.split(line)
        if program == "vosengine":
            done = CliRunner().invoke(app, arguments)
            assert done.exit_code == 0, f"{line}\n{done.output}\n{done.exception}"
        else:
            monkeypatch.setattr(sys, "argv", arguments)
            with pytest.raises(SystemExit) as ended:
                runpy.run_path(str(ROOT / arguments[0]), run_name="__main__")
            assert ended.value.code == 0, line
    assert len(list((folder / "out" / "clip").glob("*.png"))) == 3


@cache
def parsers() -> dict[str, Any]:
    """The commands of `vosengine` by name, as typer parses them."""
    group: Any = typer.main.get_command(app)
    return dict(group.commands)


def extras() -> list[str]:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return re.findall(r"^([\w-]+) = \[", text.split("[project.optional-dependencies]")[1], re.M)


@pytest.mark.parametrize("line", commands_of(PAGES))
def test_every_command_is_one_that_there_is(line: str) -> None:
    parts = [word for word in shlex.split(line) if not re.fullmatch(r"[A-Z_]+=.*", word)]
    if not parts:  # a variable of the shell
        return
    program, *arguments = parts
    if program == "vosengine":
        name, *rest = arguments
        parsers()[name].make_context(name, rest).close()
    elif program == "make":
        assert re.search(rf"^{arguments[0]}:", (ROOT / "Makefile").read_text("utf-8"), re.M)
    elif program == "pip":
        for extra in re.findall(r"\[([\w,-]+)\]", line):
            assert {*extra.split(",")} <= {*extras()}
    elif program in ("python", "bash"):
        files = [word for word in arguments if "/" in word and word.endswith((".py", ".sh"))]
        assert files
        source = "".join((ROOT / name).read_text(encoding="utf-8") for name in files)
        for option in (word for word in arguments if word.startswith("--")):
            assert f'"{option}"' in source, option
    else:
        assert program == "curl"  # run beside the code of a client


def test_the_proposals_are_read_as_printed(tmp_path: Path) -> None:
    (example,) = page("docs/inputs.md").blocks("json")
    (tmp_path / "proposals.json").write_text(example)
    source = FileSource(tmp_path / "proposals.json")
    frame = np.zeros((4, 6, 3), np.uint8)
    first, second = source(frame, 0), source(frame, 1)
    assert torch.equal(first.boxes, boxes_of(first.masks))
    assert torch.equal(first.masks, second.masks)
    assert (first.scores.item(), second.scores.item()) == (pytest.approx(0.93), 1)
    source.match(["00000", "00001"], 2)


@pytest.fixture
def bench(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Run a script of bench/ with these arguments; returns its output."""
    monkeypatch.syspath_prepend(str(ROOT / "bench"))

    def run(name: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(ROOT / "bench" / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_the_tables_are_those_of_the_results(bench: Callable[..., str]) -> None:
    text = page("docs/benchmarks.md").text
    for name, arguments in (("tables", ()), ("accuracy", ("accuracy",))):
        marked = rf"<!-- {name}: [^\n]* -->\n(.*?)<!-- end of {name} -->"
        (printed,) = re.findall(marked, text, re.DOTALL)
        assert printed.strip() == bench("tables.py", *arguments).strip()
        assert "|" in printed


def test_the_charts_are_those_of_the_results(bench: Callable[..., str], tmp_path: Path) -> None:
    bench("charts.py", "--out", str(tmp_path))
    drawn = sorted(path.name for path in tmp_path.iterdir())
    assert drawn == ["accuracy.svg", "speed.svg"]
    for name in drawn:
        committed = (ROOT / "docs" / "pictures" / name).read_text(encoding="utf-8")
        assert committed == (tmp_path / name).read_text(encoding="utf-8"), name
        assert "prefers-color-scheme:dark" in committed
        assert 'class="ground"' in committed  # a background of its own, for either scheme


@named(PAGES)
def test_links_lead_somewhere(which: Page) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", which.text, flags=re.DOTALL))
    for link in links:
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        file = which.path.parent / target if target else which.path
        assert file.exists(), link
        if which.path.parent.name == "docs":  # the site has nothing outside docs/
            assert file.resolve().is_relative_to(ROOT / "docs"), link
        if anchor:
            assert anchor in Page(file).anchors, link


def test_every_page_is_in_the_menu() -> None:
    menu = re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.M)
    assert sorted(menu) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))


def test_the_reference_names_what_exists_and_all_that_is_public() -> None:
    import vosengine

    names = re.findall(r"^::: (\S+)$", page("docs/api.md").text, re.M)
    for name in names:
        home, _, last = name.removeprefix("kernels.").rpartition(".")
        home = f"vosengine.kernels.{home}" if name.startswith("kernels.") else home
        assert getattr(importlib.import_module(home), last).__doc__, name
    listed = {name.rpartition(".")[2] for name in names}
    assert {*vosengine.__all__} - {"VosError"} <= listed  # that is in vosengine.errors
    ops = {path.parent.name for path in (ROOT / "kernels").glob("*/cases.py")}
    assert ops <= listed


def test_docstrings_become_markdown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names in columns become lists, indentation is kept, prose is unchanged."""
    griffe: Any = ModuleType("griffe")  # which builds the site, and is not needed for this
    griffe.Extension = griffe.Object = object
    monkeypatch.setitem(sys.modules, "griffe", griffe)
    as_markdown = runpy.run_path(str(ROOT / "docs" / "docstrings.py"))["as_markdown"]
    docstring = (
        "Reads.\n\n    out = a * b\n\nkey    [N, C]\n       floats\nvalue  [N]\n\nRaises  Error."
    )
    code = "```text\nout = a * b\n```"
    wanted = f"Reads.\n\n{code}\n\n- `key`: [N, C] floats\n- `value`: [N]\n\n- `Raises`: Error."
    assert as_markdown(docstring) == wanted


@pytest.mark.parametrize("name", MAPS)
def test_the_maps_name_what_exists(name: str) -> None:
    """Every path in backticks that contains a slash exists."""
    for path in re.findall(r"`([\w./]+/[\w./]*)`", page(f"docs/{name}.md").text):
        assert (ROOT / path).exists(), path


def terms() -> list[str]:
    rows = re.findall(r"^\| ([^|]+) \|", page("docs/glossary.md").text, re.M)
    entries = [row for row in rows if row != "term" and not set(row) <= {"-", " "}]
    return [term.strip() for row in entries for term in row.split(",")]


@cache
def everything_written() -> str:
    """All code and pages but the glossary, in lower case, words of identifiers apart."""
    files = [path for part in ("vosengine", "kernels") for path in (ROOT / part).rglob("*.py")]
    files += [doc.path for doc in PAGES if doc.path.name != "glossary.md"]
    text = "\n".join(path.read_text(encoding="utf-8") for path in files)
    text += re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text)
    return text.lower() + text.lower().replace("_", " ")


@pytest.mark.parametrize("term", terms())
def test_a_term_is_used(term: str) -> None:
    assert re.search(rf"\b{re.escape(term.lower())}s?\b", everything_written()), term


def test_a_term_has_one_meaning() -> None:
    entries = terms()
    assert len(entries) == len({*entries})
    assert len(entries) > 60
