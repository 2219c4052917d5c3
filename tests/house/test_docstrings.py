"""Public docstrings name what a caller needs: shapes, errors, sources, and names that exist."""

from __future__ import annotations

import ast
import inspect
import keyword
import re
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
import torch

import vosengine
from vosengine.kernels import OPS, Op

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(path for top in ("vosengine", "kernels") for path in (ROOT / top).rglob("*.py"))
CLASSES = [
    member for member in map(vosengine.__getattr__, vosengine.__all__) if inspect.isclass(member)
]
ARRAYS = re.compile(r"\b(Tensor|ndarray|Array)\b")
SHAPE = re.compile(r"\[[^\]]*\w[^\]]*\]")
CITED = re.compile(r"^Source\b|\bsection \d|\bequations? \d", re.MULTILINE)


def public() -> Iterator[tuple[str, Any, str]]:
    """Name, callable and docstring (with its class's) of everything exported."""
    for name in sorted(vosengine.__all__):
        thing = getattr(vosengine, name)
        if isinstance(thing, FunctionType):
            yield name, thing, thing.__doc__ or ""
        if not inspect.isclass(thing):
            continue
        of_class = thing.__doc__ or ""
        for verb, member in vars(thing).items():
            member = member.__func__ if isinstance(member, (classmethod, staticmethod)) else member
            written = (
                isinstance(member, FunctionType) and "vosengine" in member.__code__.co_filename
            )
            if written and (verb == "__init__" or verb[0] != "_"):
                yield f"{name}.{verb}", member, f"{of_class}\n{member.__doc__ or ''}"


PUBLIC = list(public())


def raised(function: FunctionType) -> set[str]:
    """Names of the exceptions that the function's own body raises."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))
    exceptions = [node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise)]
    called = [exception.func for exception in exceptions if isinstance(exception, ast.Call)]
    return {callee.id for callee in called if isinstance(callee, ast.Name)}


@pytest.mark.parametrize(("name", "thing", "text"), PUBLIC, ids=[name for name, *_ in PUBLIC])
def test_public_names_say_what_they_take_and_raise(name: str, thing: Any, text: str) -> None:
    if not name.endswith("__init__"):
        assert (inspect.unwrap(thing).__doc__ or "").strip(), f"{name} has no docstring"
    for error in raised(thing) - {"NotImplementedError", "AssertionError"}:
        assert error in text and "aise" in text, f"{name} raises {error} and does not say so"
    for parameter, annotation in inspect.get_annotations(inspect.unwrap(thing)).items():
        if parameter != "return" and ARRAYS.search(str(annotation)):
            described = re.search(rf"^\s*{parameter}\b(.*(?:\n\s{{8,}}.*)*)", text, re.MULTILINE)
            assert described and SHAPE.search(described[1]), f"{name}: the shape of {parameter}?"


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_ops_describe_every_argument_and_their_source(op: Op) -> None:
    text = inspect.getdoc(op) or ""
    for name, parameter in inspect.signature(op.reference).parameters.items():
        assert re.search(rf"\b{name}\b", text), f"{op.name}: {name} is not described"
        if "Tensor" in str(parameter.annotation):
            assert re.search(rf"\b{name}\b[^\n]*\[", text), f"{op.name}: the shape of {name}?"
    assert CITED.search(text), f"{op.name}: which paper, section or equation?"


@cache
def words_of_code() -> frozenset[str]:
    """Every identifier, attribute, one-word string and file name of the project's code."""
    identifiers = {
        part for path in SOURCES for part in path.relative_to(ROOT).with_suffix("").parts
    }
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for field in ("id", "attr", "arg", "name", "module", "asname"):
                value = getattr(node, field, None)
                if isinstance(value, str):
                    identifiers.update(value.split("."))
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                identifiers.update(re.findall(r"\w+", node.value) if " " not in node.value else ())
    for path in (ROOT / "csrc").glob("**/*.cpp"):
        identifiers.update(re.findall(r"\w+", path.read_text(encoding="utf-8")))
    return frozenset(identifiers)


def exists(name: str) -> bool:
    """Whether code has the name, or both halves of it, as f"{which}_keys" has."""
    cuts = [cut.start() for cut in re.finditer("_", name)]
    halves = ((name[:cut], name[cut:]) for cut in cuts if cut > 0)
    known = {*words_of_code(), *dir(torch), *keyword.kwlist, "torch"}
    return name in known or any(a in known and b in known for a, b in halves)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_name_only_what_exists(path: Path) -> None:
    """A name in backticks that does not occur in code was renamed or removed."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    for node in ast.walk(tree):
        text = (ast.get_docstring(node) or "") if isinstance(node, documented) else ""
        for name in re.findall(r"`([A-Za-z_]\w*(?:\.\w+)*)`", text):
            missing = [part for part in name.split(".") if not exists(part)]
            assert not missing, (
                f"line {getattr(node, 'lineno', 1)}: `{name}`: there is no {missing}"
            )
