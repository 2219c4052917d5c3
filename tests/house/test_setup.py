"""The build if a compiler or nvcc is missing or fails."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the files that the build reads, so that the source tree is not changed."""
    copy = tmp_path / "tree"
    ignored = shutil.ignore_patterns("__pycache__", "*.so")
    for folder in ("csrc", "kernels", "vosengine", "weights"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    return copy


def setup(
    tree: Path, *command: str, only: tuple[str, ...] = (), **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run setup.py with only the named programs on the PATH."""
    programs = tree / "programs"
    programs.mkdir(exist_ok=True)
    for name in only:
        path = shutil.which(name)
        if path is None:
            pytest.skip(f"no {name} on this machine")
        (programs / name).symlink_to(path)
    cleared = ("CXX", "CUDA_HOME", "VOSENGINE_CUDA_ARCHS")
    kept = {k: v for k, v in os.environ.items() if k not in cleared}
    return subprocess.run(
        [sys.executable, "setup.py", "-q", *command],
        cwd=tree,
        env={**kept, "PATH": str(programs), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def built(tree: Path) -> list[Path]:
    return list((tree / "out").rglob("_C*"))


BUILD = ("build", "--build-base", "work", "--build-lib", "out")


def test_without_a_compiler_the_package_is_built_without_kernels(tree: Path) -> None:
    done = setup(tree, *BUILD)
    assert done.returncode == 0, done.stderr
    assert "installing without compiled kernels: no C++ compiler" in done.stderr
    assert not built(tree)
    assert (tree / "out" / "vosengine" / "kernels" / "read_memory" / "reference.py").exists()
    shipped = tree / "out" / "vosengine" / "shipped"
    for name in ("manifest.toml", "efficientnet_lite0.safetensors", "NOTICE", "LICENSE-APACHE-2.0"):
        assert (shipped / name).exists(), name


def test_a_package_without_the_extension_works_and_says_so(tree: Path) -> None:
    setup(tree, *BUILD, VOSENGINE_NO_EXTENSION="1")
    # The finder of an editable install would lead back to the tree under test.
    code = (
        "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'Editable' not in repr(f)];"
        "from vosengine.cli.app import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "doctor"],
        env={
            **os.environ,
            "PYTHONPATH": str(tree / "out"),
            "PYTHONSAFEPATH": "1",
            "COLUMNS": "300",
        },
        cwd=tree / "out",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "apt-get install g++ python3-dev" in done.stdout
    assert "not used: vosengine._C is not built" in done.stdout


def test_cuda_asked_for_without_nvcc_is_an_error(tree: Path) -> None:
    done = setup(tree, *BUILD, only=("c++", "g++"), VOSENGINE_CUDA_ARCHS="90")
    assert done.returncode != 0
    assert "asks for CUDA, but nvcc is neither on the PATH" in done.stderr
    done = setup(tree, *BUILD, VOSENGINE_CUDA_ARCHS="90")
    assert done.returncode != 0


def test_a_cuda_build_that_fails_is_an_error(tree: Path) -> None:
    """An architecture that nvcc does not know."""
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc on this machine")
    done = setup(tree, *BUILD, PATH=os.environ["PATH"], VOSENGINE_CUDA_ARCHS="11")
    assert done.returncode != 0
    assert not built(tree)


def test_broken_cpp_is_an_error(tree: Path) -> None:
    # The first to be compiled: the others would only take their time.
    (tree / "csrc" / "bindings.cpp").write_text("this is no C++\n", encoding="utf-8")
    done = setup(tree, *BUILD, PATH=os.environ["PATH"], VOSENGINE_CUDA_ARCHS="none")
    assert done.returncode != 0
    assert not built(tree)
