"""What is wrong with a resource, and where in the file it is wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: `message` says what was seen and what is allowed.

    `line` and `column` count from 1; they are None where the resource did not come from a text. `path` leads
    to the field within its document (`spec.postprocess[1].removeSmallRegions.minArea`), to the place that has
    an unknown field or stage, or is empty for the whole document.
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
    """Resources that cannot be used; `problems` holds everything found, in the order of the text."""

    reason: ClassVar[str] = "SpecInvalid"

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))
