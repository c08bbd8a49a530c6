"""The answers that an evaluation has got, kept in a file so that an interrupted one goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from segserve.exports.samples import SampleResult

ANSWERS: Final = "answers.jsonl"


@dataclass(frozen=True, slots=True)
class AnswerFile:
    """Answers to images, one a line: of `model`, asked with these options.

    Lines of other models, options and revisions stay and are skipped, as is one that was cut short.
    """

    path: Path
    model: str
    options: Mapping[str, Any]

    def read(self, revision: str | None) -> dict[str, SampleResult]:
        """Return this revision's answers by the sha256 of their images."""
        if not self.path.is_file():
            return {}
        wanted = {"model": self.model, "options": dict(self.options), "revision": revision}
        return {
            line["sha256"]: SampleResult(line["revision"], line["answer"])
            for line in self._lines()
            if {key: line.get(key) for key in wanted} == wanted
        }

    def append(self, sha256: str, answer: SampleResult) -> None:
        """Add an answer."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = {"model": self.model, "options": dict(self.options), "revision": answer.revision, "sha256": sha256}
        with self.path.open("ab+") as file:
            if file.tell():
                file.seek(-1, 2)
                # A line that was cut short ends here, so that it costs no more than itself.
                if file.read(1) != b"\n":
                    file.write(b"\n")
            file.write(json.dumps(line | {"answer": answer.document}).encode() + b"\n")

    def _lines(self) -> Iterator[dict[str, Any]]:
        with self.path.open("rb") as file:
            for text in file:
                try:
                    line = json.loads(text)
                except ValueError:
                    continue
                if isinstance(line, dict) and {"sha256", "answer"} <= line.keys():
                    yield line
