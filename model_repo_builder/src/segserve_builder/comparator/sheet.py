"""The sheet of a model's pairs that differ most, as a comparator shows it and a client draws it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final, Self

from pydantic import Base64Bytes, BaseModel, ConfigDict, Field

from segserve_builder.scoring.agreement import Agreement, SizeCounts
from segserve_common.kserve import Tensor

MOST_PAIRS: Final = 8
"""Pairs of a sheet: the pairs of least agreement."""
MOST_PAIR_BYTES: Final = 8_000_000
"""Bytes of one pair's image and answers together; a larger pair is counted, but is not on the sheet."""


class _Json(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class SheetTensor(_Json):
    """A tensor as it crossed the wire; see `segserve_common.kserve.Tensor`."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    raw: Base64Bytes

    @classmethod
    def of(cls, tensor: Tensor) -> Self:
        """Return a tensor as text that JSON can hold."""
        from base64 import b64encode

        return cls(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape, raw=b64encode(tensor.raw))

    def tensor(self) -> Tensor:
        """Return the tensor; raises `ProtocolError` where its parts contradict each other."""
        return Tensor(self.name, self.datatype, self.shape, self.raw)


class SheetPair(_Json):
    """One image with both answers: `image` is IMAGE or PIXELS of the request, `asked_at_s` Unix time."""

    asked_at_s: float
    image: SheetTensor
    stable: tuple[SheetTensor, ...]
    candidate: tuple[SheetTensor, ...]
    agreement: float
    classes: dict[int, float] = Field(default_factory=dict)
    stable_only: SizeCounts = (0, 0, 0)
    candidate_only: SizeCounts = (0, 0, 0)

    @classmethod
    def of(
        cls, asked_at_s: float, image: Tensor, stable: Iterable[Tensor], candidate: Iterable[Tensor], found: Agreement
    ) -> Self:
        """Return a pair with what the comparison found."""
        return cls(
            asked_at_s=asked_at_s,
            image=SheetTensor.of(image),
            stable=tuple(map(SheetTensor.of, stable)),
            candidate=tuple(map(SheetTensor.of, candidate)),
            agreement=found.value,
            classes=dict(found.classes),
            stable_only=found.stable_only,
            candidate_only=found.candidate_only,
        )


class Sheet(_Json):
    """At most `MOST_PAIRS` pairs of one comparison, the one that agrees least first.

    `stable` and `candidate` are the groups. `compared` is the number of pairs that the worst were chosen from.
    `ended_at_s` is the Unix time at which comparing ended, None while it goes on.
    """

    model: str
    stable: str
    candidate: str
    compared: int = 0
    ended_at_s: float | None = None
    pairs: tuple[SheetPair, ...] = ()

    @classmethod
    def merged(cls, sheets: Sequence[Self]) -> Self:
        """Return the worst pairs of several gateways' sheets, one of each image, of the comparison that ended last."""
        last = max(sheets, key=lambda sheet: math.inf if sheet.ended_at_s is None else sheet.ended_at_s)
        same = [each for each in sheets if (each.stable, each.candidate) == (last.stable, last.candidate)]
        by_image: dict[bytes, SheetPair] = {}
        for pair in sorted((pair for each in same for pair in each.pairs), key=lambda pair: pair.agreement):
            by_image.setdefault(pair.image.raw, pair)
        pairs = tuple(by_image.values())[:MOST_PAIRS]
        return last.model_copy(update={"compared": sum(each.compared for each in same), "pairs": pairs})
