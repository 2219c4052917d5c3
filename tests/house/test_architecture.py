"""Import rules: which modules may import which, and side effects of imports."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# module or package -> what it may import of vosengine; a file goes by the longest of these names
# that is its own or its package's. A name that ends in a dot stands for everything beneath it.
KERNELS = {"kernels."}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "allocation": set(),
    "ambient": set(),
    "timing": set(),
    "build": set(),
    "rle": set(),
    "files": {"errors"},
    "naming": {"errors"},
    "device": {"errors"},
    "types": {"errors", "rle"},
    "planes": {"config", "types", "errors"},
    "proposals": {"types", "policies.proposals"},
    "config": {"errors", "config."},
    "policies": {"config", "types", "errors"},
    "memory": {"types", "errors", "config", "memory."} | KERNELS,
    "frames": {"types", "errors", "planes"} | KERNELS,
    "engine.scheduler": set(),
    "engine.ring": {"types"},
    "engine.rules": {"errors"},
    "engine.stream": {"errors", "types", "engine.objects", "engine.ring", "engine.rules"},
    "engine.objects": {"types", "errors"},
    "engine.snapshot": {"types", "errors", "files"},
    "engine.postprocess": {"ambient", "types", "errors", "frames", "engine.objects"} | KERNELS,
    "engine": {
        "timing",
        *("ambient", "config", "detectors", "device", "errors", "files", "frames", "memory"),
        *("models.method", "proposals", "types", "zoo.registry", "zoo.weights"),
        *("engine.", "runtime."),
    }
    | KERNELS,
    "detectors": {
        *("ambient", "config", "device", "errors", "files", "frames", "naming", "proposals"),
        *("rle", "types", "models.target_aware.network", "zoo.", "detectors.", "runtime."),
    },
    "runtime": {
        *("ambient", "errors", "models.backbone", "models.convolve", "models.efficientnet"),
        *("models.mask_encoder", "runtime."),
    },
    "video": {"errors", "files", "video."},
    "models": {"config", "errors", "types", "proposals", "memory", "policies.", "models."}
    | KERNELS,
    "zoo": {"config", "errors", "files", "models.", "zoo."},
    "prompts.hints": {"errors"},
    "prompts.crop": {"prompts.hints"},
    "prompts.grabcut": {"prompts.hints"},
    "prompts": {
        *("ambient", "config", "config.checks", "errors", "models.backbone", "models.blocks"),
        *("models.efficientnet", "runtime.network", "zoo.weights", "prompts."),
    },
    "training.clicks": {
        *("config.checks", "errors", "files", "models.backbone", "prompts.", "runtime.network"),
        *("zoo.checkpoints", "zoo.weights", "training."),
    },
    "training": {
        *("config.", "errors", "files", "memory", "models.", "proposals", "types", "zoo."),
        "training.",
    }
    | KERNELS,
    "evaluation": {"errors", "files", "video.", "evaluation."},
    "batch.stores": {"errors"},
    "batch.clips": {
        *("errors", "naming", "evaluation.layout", "video.", "batch.manifest", "batch.stores"),
    },
    "batch.manifest": {"errors", "config", "batch.clips", "batch.stores"},
    "batch.worker": {"allocation", "errors"},
    "batch.supervisor": {"errors", "batch.worker"},
    "batch.actor": {"allocation", "errors", "batch.supervisor", "batch.worker"},
    "batch.cluster": {"errors", "batch.actor", "batch.supervisor", "batch.worker"},
    "batch.pools": {"errors", "batch.cluster", "batch.supervisor", "batch.worker"},
    "batch": {
        *("commands.engines", "commands.record", "commands.run", "engine.engine", "errors"),
        *("files", "naming", "rle", "video", "zoo.registry", "zoo.weights", "batch."),
    },
    "server": {"errors", "files", "prompts", "rle", "types", "engine.", "server."},
    "client": {"errors", "server.protocol"},
}
TOP = {"__init__", "__main__", "benchmark", "cli", "commands", "onnx"}  # anything beneath them
# What runs an export: no torch, and nothing of ours that knows it.
RUNNER = {
    *("config", "errors", "files", "planes", "types", "policies.", "onnx."),
    *("engine.objects", "engine.ring", "engine.stream"),
}
FAMILIES = {
    *("stm", "munet", "imcnet", "giel.network", "dmn_aoa.network", "target_aware.network"),
}


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[0] == "kernels":
        parts.insert(0, "vosengine")
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def known_modules() -> frozenset[str]:
    return frozenset(module_name(p) for p in (*sources("vosengine"), *sources("kernels")))


@cache
def imports(path: Path) -> set[str]:
    """Absolute names of all imports of a file, including those inside functions."""
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            known = known_modules()
            for alias in node.names:
                whole = f"{stem}.{alias.name}"
                modules.add(whole if whole in known or whole == "vosengine._C" else stem)
    return modules


def ours(path: Path) -> set[str]:
    """vosengine modules that a file imports, without the package's name."""
    return {
        name.removeprefix("vosengine.") for name in imports(path) if name.startswith("vosengine.")
    }


def fits(name: str, allowed: set[str]) -> bool:
    return any(
        name == rule.rstrip(".") or (rule.endswith(".") and name.startswith(rule))
        for rule in allowed
    )


def rule_of(path: Path) -> str | None:
    """The name of a file in ALLOWED."""
    parts = module_name(path).split(".")[1:]
    names = [".".join(parts[:end]) for end in range(len(parts), 0, -1)]
    return next((name for name in names if name in ALLOWED), None)


@pytest.mark.parametrize("part", ALLOWED)
def test_imports_go_downwards(part: str) -> None:
    files = [p for p in sources("vosengine") if rule_of(p) == part]
    assert files, f"no file belongs to {part}"
    for path in files:
        wrong = {name for name in ours(path) if not fits(name, ALLOWED[part])}
        assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)}"


def test_exports_run_without_torch() -> None:
    for path in (ROOT / "vosengine" / "onnx").glob("*.py"):
        wrong = {name for name in ours(path) if not fits(name, RUNNER)}
        assert not wrong, f"{path.name} imports {sorted(wrong)}"
        outside = {name.split(".")[0] for name in imports(path)} - sys.stdlib_module_names
        allowed = {"numpy", "onnxruntime", "vosengine"}
        if path.name.startswith("server"):  # writes graphs
            allowed |= {"onnx", "onnxscript"}
        assert outside <= allowed, f"{path.name}: {sorted(outside)}"


def test_what_exports_knows_no_segmenter() -> None:
    for path in sources("vosengine/onnx/export"):
        wrong = {"engine.segmenter", "onnx.segmenter"} & ours(path)
        assert not wrong and not any(name.startswith("cli") for name in ours(path)), path


def test_kernels_stand_alone() -> None:
    for path in sources("kernels"):
        wrong = {name for name in ours(path) if not name.startswith("kernels") and name != "_C"}
        assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)}"
        outside = {name.split(".")[0] for name in imports(path)} - sys.stdlib_module_names
        assert outside <= {"torch", "triton", "vosengine"}, f"{path}: {sorted(outside)}"


def test_references_know_torch_and_shapes_only() -> None:
    for path in (ROOT / "kernels").glob("*/reference.py"):
        assert ours(path) <= {"kernels.shapes"}, path
        names = {name.split(".")[0] for name in imports(path)} - sys.stdlib_module_names
        assert names <= {"torch", "vosengine"}, path


def test_families_do_not_know_each_other() -> None:
    for path in sources("vosengine/models"):
        family = module_name(path).removeprefix("vosengine.models.").split(".")[0]
        for name in ours(path):
            known = name.removeprefix("models.")
            assert known not in FAMILIES or known.split(".")[0] == family, f"{path}: {name}"


def test_engine_knows_no_family() -> None:
    for path in sources("vosengine/engine"):
        assert {name for name in ours(path) if name.startswith("models")} <= {"models.method"}


def test_what_serves_all_models_names_none() -> None:
    """Differences between models are stated in the registry or by the model's class only."""
    from vosengine.zoo.registry import list_models

    blind = (
        "engine/segmenter",
        "zoo/weights",
        "onnx/export/__init__",
        "commands/train",
        "commands/info",
    )
    blind += "benchmark/stages", "benchmark/variants", "benchmark/measure", "training/recipe"
    blind += "training/initialise", "training/objectives/__init__"
    for name in blind:
        path = ROOT / "vosengine" / f"{name}.py"
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        strings = {str(node.value) for node in nodes if isinstance(node, ast.Constant)}
        assert not strings & {*list_models()}, path
        families = {f"models.{family}" for family in FAMILIES}
        assert not families & ours(path), path


@pytest.mark.slow
def test_the_registry_loads_no_training_and_no_export() -> None:
    code = (
        "import sys, vosengine.engine.segmenter, vosengine.zoo.registry;"
        "parts = 'vosengine.training', 'vosengine.onnx', 'onnx';"
        "print([name for name in sys.modules if name.startswith(parts)])"
    )
    assert python(code) == "[]"


def test_of_the_detectors_only_dnet_knows_a_family() -> None:
    for path in (ROOT / "vosengine" / "detectors").glob("*.py"):
        families = {name for name in ours(path) if name.startswith("models")}
        assert families == ({"models.target_aware.network"} if path.stem == "dnet" else set()), path


def test_every_part_has_a_rule_or_stands_at_the_top() -> None:
    for path in sources("vosengine"):
        name = module_name(path).split(".")[1:] or ["__init__"]
        assert (rule_of(path) is None) == (name[0] in TOP), path


def test_nobody_imports_bench_tests_or_convert() -> None:
    for path in (*sources("vosengine"), *sources("kernels")):
        names = {name.split(".")[0] for name in imports(path)}
        assert not names & {"bench", "tests", "weights"}, path


def test_device_code_never_sees_torch_or_python() -> None:
    for path in (ROOT / "csrc").rglob("*.*"):
        text = path.read_text(encoding="utf-8")
        assert "torch/" not in text, path
        if not path.name.startswith("bindings"):
            assert "pybind11" not in text, path


def python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT / "docs"
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_command_line_parses_without_torch() -> None:
    code = "import sys, vosengine, vosengine.cli.app; print('torch' in sys.modules)"
    assert python(code) == "False"


@pytest.mark.slow
def test_imports_have_no_effects() -> None:
    code = (
        "import os, av, cv2, torch; e = dict(os.environ); s = torch.random.get_rng_state();"
        "f = torch.backends.cudnn.benchmark, torch.get_num_threads(), torch.is_grad_enabled();"
        "import vosengine.engine.segmenter, vosengine.kernels, vosengine.commands.run;"
        "import vosengine.video;"
        "assert e == dict(os.environ); assert torch.equal(s, torch.random.get_rng_state());"
        "assert f == (torch.backends.cudnn.benchmark, torch.get_num_threads(),"
        " torch.is_grad_enabled())"
    )
    assert python(code) == ""


def reads_of_the_environment(nodes: list[ast.AST]) -> list[str]:
    """`os.environ` and `os.getenv` in these nodes, but not in the bodies of functions."""
    reads = []
    for node in nodes:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            inner: list[ast.AST] = [*node.decorator_list, node.args]
        elif isinstance(node, ast.Lambda):
            inner = [node.args]
        else:
            inner = list(ast.iter_child_nodes(node))
        name = getattr(node, "attr", getattr(node, "id", ""))
        reads += [ast.unparse(node)] if name in ("environ", "environb", "getenv") else []
        reads += reads_of_the_environment(inner)
    return reads


@pytest.mark.slow
def test_imports_do_not_read_the_environment() -> None:
    for path in (*sources("vosengine"), *sources("kernels")):
        reads = reads_of_the_environment([ast.parse(path.read_text(encoding="utf-8"))])
        assert not reads, f"{path}: {reads}"
    code = "class A:\n a = lambda b=os.getenv('C'): os.environ\ndef f(a=environ): os.getenv('D')"
    assert reads_of_the_environment([ast.parse(code)]) == ["os.getenv", "environ"]


@pytest.mark.slow
def test_every_file_says_what_it_is() -> None:
    for path in (*sources("vosengine"), *sources("kernels"), *sources("tests"), *sources("bench")):
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path
