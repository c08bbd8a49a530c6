"""The pairs of ended comparisons that differ most: in memory, for a while, for later readers."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Final

KEPT_S: Final = 3600.0
"""How long a comparison's pairs are kept after its end."""


@dataclass(slots=True)
class KeptSheet:
    """The sheet of a comparison: `pairs` are JSON, the one that agrees least first.

    `ended_at_s` is the Unix time of its end, None while it goes on; `since_s` is the same moment of a clock that is
    never set.
    """

    model: str
    stable: str
    candidate: str
    compared: int
    pairs: list[bytes]
    ended_at_s: float | None = None
    since_s: float = 0.0

    @property
    def size(self) -> int:
        """Bytes of its pairs."""
        return sum(map(len, self.pairs))

    def to_json(self) -> bytes:
        """Return a `sheet.Sheet` as JSON: its pairs are JSON already."""
        fields = {
            "model": self.model,
            "stable": self.stable,
            "candidate": self.candidate,
            "compared": self.compared,
            "ended_at_s": self.ended_at_s,
        }
        return b"".join((json.dumps(fields)[:-1].encode(), b', "pairs": [', b",".join(self.pairs), b"]}"))


class KeptSheets:
    """The sheets of ended comparisons by model, at most one of each."""

    def __init__(self) -> None:
        self._sheets: dict[str, KeptSheet] = {}

    def __iter__(self) -> Iterator[KeptSheet]:
        return iter(self._sheets.values())

    def add(self, sheet: KeptSheet) -> None:
        """Keep a sheet that has pairs, in the place of the model's former one."""
        self.forget(sheet.model)
        if sheet.pairs:
            self._sheets[sheet.model] = sheet

    def get(self, model: str) -> KeptSheet | None:
        """Return a model's sheet."""
        return self._sheets.get(model)

    def forget(self, model: str) -> None:
        """Forget a model's sheet."""
        self._sheets.pop(model, None)

    def forget_others(self, models: Collection[str]) -> None:
        """Forget the sheets of all models but these."""
        for model in self._sheets.keys() - set(models):
            self.forget(model)

    def forget_old(self, now_s: float) -> None:
        """Forget the sheets that were kept long enough."""
        for sheet in tuple(self):
            if now_s - sheet.since_s >= KEPT_S:
                self.forget(sheet.model)

    def forget_one(self) -> bool:
        """Forget the pair that agrees most, of the comparison that ended first; False if no pair is left."""
        oldest = min(self, key=lambda sheet: sheet.since_s, default=None)
        if oldest is None:
            return False
        oldest.pairs.pop()
        if not oldest.pairs:
            self.forget(oldest.model)
        return True
