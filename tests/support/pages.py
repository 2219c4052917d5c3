"""The pages of the documentation, for tests."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Page:
    """A page of Markdown: README.md, CONTRIBUTING.md, or one of docs/."""

    path: Path

    @property
    def name(self) -> str:
        return str(self.path.relative_to(ROOT))

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def fences(self) -> list[tuple[str, str]]:
        """(language, text) of every fenced block, indented ones too."""
        blocks = re.findall(r"^( *)```(\w*)\n(.*?)^\1```$", self.text, re.DOTALL | re.MULTILINE)
        return [(language, textwrap.dedent(body)) for _, language, body in blocks]

    def blocks(self, *languages: str) -> list[str]:
        """The texts of all fenced blocks in these languages."""
        return [body for language, body in self.fences if language in languages]

    @property
    def commands(self) -> list[str]:
        """The lines of its blocks for a shell, continued lines joined, comments dropped."""
        whole = "\n".join(self.blocks("console", "bash", "text")).replace("\\\n", " ")
        lines = (re.sub(r"\s+#\s.*", "", line).strip() for line in whole.splitlines())
        programs = re.compile(r"([A-Z_]+=\S+ )*(vosengine|python|make|pip|bash|curl) |[A-Z]+=")
        return [line for line in lines if programs.match(line)]

    @cached_property
    def anchors(self) -> set[str]:
        """Anchors of its headings."""
        plain = re.sub(r"```.*?```", "", self.text, flags=re.DOTALL)
        headings = re.findall(r"^#+ (.*)$", plain, re.MULTILINE)
        cleaned = (re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings)
        return {re.sub(r"\s", "-", heading) for heading in cleaned}


def all_pages() -> list[Page]:
    docs = sorted((ROOT / "docs").glob("*.md"))
    return [Page(path) for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *docs)]


def page(name: str) -> Page:
    return Page(ROOT / name)
