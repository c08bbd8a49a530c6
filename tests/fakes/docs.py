"""The fenced blocks of the documentation, with the comment before each that says how to run it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
_BLOCK = re.compile(
    r"^(?P<comment> *<!--(?:(?!-->).)*--> *\n)?(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)
_NOT_RUN = re.compile(r"<!-- not run: (\S.*) -->")
_WITH = re.compile(r"<!-- run with (\S.*) -->")


@dataclass(frozen=True)
class Block:
    """A fenced block; `reason` says why it is not run, where it is not."""

    page: Path
    line: int
    language: str
    text: str
    reason: str = ""

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path, *languages: str) -> list[Block]:
    """Return the blocks of a page in one of the languages, with the words replaced that a comment names."""
    text = page.read_text()
    return [_block(page, text, found) for found in _BLOCK.finditer(text) if found["language"] in languages]


def _block(page: Path, text: str, found: re.Match[str]) -> Block:
    line = text.count("\n", 0, found.start("text")) + 1
    comment, body = (found["comment"] or "").strip(), found["text"]
    if skipped := _NOT_RUN.fullmatch(comment):
        return Block(page, line, found["language"], body, skipped[1])
    if replaced := _WITH.fullmatch(comment):
        for pair in replaced[1].split():
            old, _, new = pair.partition("=")
            assert old in body, f"{page.name}:{line}: {old!r} is not in the block"
            body = body.replace(old, new)
    return Block(page, line, found["language"], body)


def prose(page: Path) -> str:
    """Return a page without its blocks; lines keep their numbers."""
    return _BLOCK.sub(lambda found: "\n" * found[0].count("\n"), page.read_text())
