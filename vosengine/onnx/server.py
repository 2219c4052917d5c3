"""A repository for NVIDIA Triton Inference Server."""

from __future__ import annotations

from pathlib import Path


def write_repository(export: Path, repository: Path) -> None:
    raise NotImplementedError
