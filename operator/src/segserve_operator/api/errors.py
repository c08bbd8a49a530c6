"""Problems of resources, with their place in the file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem: `message` says what was found and what is allowed.

    `line` and `column` count from 1; both are None if the resource was not read from text. `path` is the field within
    its document (`spec.postprocess[1].removeSmallRegions.minArea`), the parent of an unknown field or stage, or empty
    for the whole document.
    """

    source: str
    path: str
    message: str
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        place = self.source if self.line is None else f"{self.source}:{self.line}:{self.column}"
        return ": ".join(part for part in (place, self.path, self.message) if part)


class SpecError(Exception):
    """Raised for invalid resources; `problems` lists every problem in the order of the text."""

    reason: ClassVar[str] = "SpecInvalid"

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))
