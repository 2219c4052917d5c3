"""Builds the extension `vosengine._C`: C++ where there is a compiler, CUDA too where there is nvcc;
and of the same C++ kernels the operators that exports may use, a library for onnxruntime.

    VOSENGINE_CUDA_ARCHS  unset   CUDA for the default architectures if nvcc is found
                          "80;90a" CUDA for these; no nvcc, or a failing build, is an error
                          "none"  no CUDA
    VOSENGINE_NO_EXTENSION=1      no extension at all (the reference and Triton still work)

Without a C++ compiler or Python's headers the package installs without the extension, and
`vosengine doctor` says so; a compiler that is there and fails is an error.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

EXTENSION, OPERATORS = "vosengine._C", "vosengine.vosengine_ops"
# The kernels that are operators too, and what they share; as vosengine/onnx/library.py names it.
OPERATOR_SOURCES = (
    *("correlate_frames_cpu", "deform_conv_cpu", "finish_masks_cpu", "group_centres_cpu"),
    *("pool_regions_cpu", "prepare_frame_cpu", "read_memory", "read_memory_cpu"),
    *("read_memory_top_k_cpu", "isa"),
)
DEFAULT_ARCHS = ("75", "80", "86", "89", "90", "100", "120")
CPP_FLAGS = ["-std=c++17", "-O3", "-fvisibility=hidden", "-ffp-contract=fast", "-Wno-psabi"]
OPENMP = ["-fopenmp"] if sys.platform.startswith("linux") else []


def missing_compiler() -> str | None:
    """Why no C++ can be compiled here, or None."""
    command = (os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++").split()[0]
    if shutil.which(command) is None and shutil.which("c++") is None:
        return f"no C++ compiler ({command}); install g++ or clang++"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "no Python.h; install Python's development headers (python3-dev)"
    return None


def find_nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME")
    candidate = Path(home, "bin", "nvcc") if home else None
    return str(candidate) if candidate and candidate.exists() else shutil.which("nvcc")


def chosen_archs(nvcc: str | None) -> list[str]:
    """The architectures to compile for: none means no CUDA."""
    asked = os.environ.get("VOSENGINE_CUDA_ARCHS")
    if asked is not None and asked.strip().lower() == "none":
        return []
    if asked:
        if nvcc is None:
            sys.exit(
                f"VOSENGINE_CUDA_ARCHS={asked} asks for CUDA, but nvcc is neither on the PATH nor "
                "in CUDA_HOME/bin. Install the CUDA toolkit, or set VOSENGINE_CUDA_ARCHS=none."
            )
        return asked.replace(",", ";").split(";")
    if nvcc is None:
        return []
    listed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True)
    known = set(listed.stdout.split())
    return [arch for arch in DEFAULT_ARCHS if f"compute_{arch.rstrip('a')}" in known]


def gencode(archs: list[str]) -> list[str]:
    """nvcc's flags: machine code for every architecture, PTX for the last as a way forward."""
    flags = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    newest = archs[-1]
    return [*flags, f"-gencode=arch=compute_{newest},code=compute_{newest}"]


def cudart_folder(nvcc: str) -> str:
    root = Path(nvcc).resolve().parent.parent
    for folder in (root / "lib64", root / "lib", root / "targets" / "x86_64-linux" / "lib"):
        if (folder / "libcudart_static.a").exists():
            return str(folder)
    dry = subprocess.run([nvcc, "--dryrun", "x.cu"], capture_output=True, text=True, check=False)
    for word in dry.stderr.replace('"', " ").split():
        if word.startswith("-L") and Path(word[2:], "libcudart_static.a").exists():
            return word[2:]
    sys.exit(f"{nvcc} is there, but libcudart_static.a is not; set VOSENGINE_CUDA_ARCHS=none")


def commit() -> str | None:
    """The checkout's commit, marked if files differ from it; None outside a checkout."""

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", *words], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    top = git("rev-parse", "--show-toplevel")
    if top is None or Path(top) != Path.cwd():
        return None
    changed = "+changes" if git("status", "--porcelain") else ""
    return f"{git('rev-parse', '--short=12', 'HEAD')}{changed}"


def note_commit(found: str | None, folder: Path) -> None:
    """Write the commit to where `vosengine --version` reads it. An sdist has the file already."""
    if found is not None:
        (folder / "commit.txt").write_text(f"{found}\n", encoding="ascii")


class BuildPython(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            note_commit(commit(), Path(self.build_lib, "vosengine"))


class SourceDistribution(sdist):
    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        found = commit()  # before the tree itself is a file that git does not know
        super().make_release_tree(base_dir, files)
        note_commit(found, Path(base_dir, "vosengine"))


class BuildExtension(build_ext):
    """build_ext that also knows .cu files, compiled by nvcc and linked against a static cudart, and
    a library that is not Python's."""

    started = time.time()

    def get_ext_filename(self, fullname: str) -> str:
        if fullname.endswith(OPERATORS.split(".")[-1]):
            folder, _, name = fullname.rpartition(".")
            return os.path.join(*folder.split("."), f"lib{name}.so")
        return str(super().get_ext_filename(fullname))

    def compiled_now(self, target: str) -> bool:
        """Whether this very run has written an object file, for the other of the two libraries."""
        return os.path.exists(target) and os.path.getmtime(target) >= self.started

    def build_extension(self, ext: Extension) -> None:
        nvcc = find_nvcc() if ext.name == EXTENSION else None
        archs = chosen_archs(nvcc) if ext.name == EXTENSION else []
        if nvcc and archs:
            temporary = Path(self.build_temp, "cuda")
            temporary.mkdir(parents=True, exist_ok=True)
            flags = ["-O3", "-std=c++17", *gencode(archs), "-Icsrc", "-Xcompiler=-fPIC"]
            sources = sorted(Path("csrc").glob("*.cu"))
            targets = [str(temporary / f"{source.stem}.o") for source in sources]
            commands = [
                [nvcc, *flags, "-c", str(source), "-o", target]
                for source, target in zip(sources, targets, strict=True)
            ]
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                list(pool.map(self.spawn, commands))
            ext.extra_objects += targets
            ext.depends += targets  # linked anew where only device code has changed
            ext.define_macros.append(("VOSENGINE_CUDA", f'"{";".join(archs)}"'))
            ext.library_dirs.append(cudart_folder(nvcc))
            ext.libraries += ["cudart_static", "dl", "rt", "pthread"]
        from pybind11.setup_helpers import ParallelCompile

        with ParallelCompile(default=0, needs_recompile=lambda o, _: not self.compiled_now(o)):
            super().build_extension(ext)


def extensions() -> list[Extension]:
    if os.environ.get("VOSENGINE_NO_EXTENSION") == "1":
        return []
    reason = missing_compiler()
    if reason is not None:
        if os.environ.get("VOSENGINE_CUDA_ARCHS", "none").lower() != "none":
            sys.exit(f"VOSENGINE_CUDA_ARCHS asks for CUDA, but there is {reason}.")
        print(f"vosengine: installing without compiled kernels: {reason}.", file=sys.stderr)
        return []
    import pybind11

    shared = {
        "depends": sorted(str(path) for path in Path("csrc").rglob("*.h")),
        "include_dirs": ["csrc", pybind11.get_include()],
        "extra_compile_args": [*CPP_FLAGS, *OPENMP],
        "extra_link_args": OPENMP,
        "language": "c++",
    }
    sources = sorted(str(path) for path in Path("csrc").glob("*.cpp"))
    found = [Extension(EXTENSION, sources=sources, **shared)]
    if sys.platform.startswith("linux"):  # elsewhere it is loaded by another name, and untried
        sources = [f"csrc/{name}.cpp" for name in OPERATOR_SOURCES]
        sources += sorted(str(path) for path in Path("csrc", "onnxruntime").glob("*.cpp"))
        found.append(Extension(OPERATORS, sources=sources, **shared))
    return found


def kernel_packages() -> list[str]:
    """kernels/ is installed as vosengine.kernels: the bare name is taken on PyPI."""
    folders = [path.parent for path in sorted(Path("kernels").rglob("__init__.py"))]
    return [".".join(("vosengine", *folder.parts)) for folder in folders]


def engine_packages() -> list[str]:
    return [".".join(path.parent.parts) for path in sorted(Path("vosengine").rglob("__init__.py"))]


setup(
    packages=[*engine_packages(), *kernel_packages(), "vosengine.shipped"],
    package_dir={"vosengine.kernels": "kernels", "vosengine.shipped": "weights"},
    package_data={
        "vosengine": ["py.typed", "commit.txt", "benchmark/*.toml", "server/page/**/*"],
        "vosengine.shipped": ["*.toml", "*.safetensors", "LICENSE-*", "NOTICE", "demo/*"],
    },
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildExtension, "build_py": BuildPython, "sdist": SourceDistribution},
)
