"""One thing that was found, in the form that all exports share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import numpy as np
    from numpy.typing import NDArray

    from segserve.results.masks import EncodedMask
    from segserve.results.outlines import Part

Rectangle: TypeAlias = tuple[float, float, float, float]

BACKGROUND: Final = "background"


@dataclass(frozen=True, slots=True, eq=False)
class Annotation:
    """An object, a segment, or all pixels of a class: at least one of mask and box.

    `number` counts from 1, and is the id of a panoptic segment. `score` is None where the model gives none.
    `own_box` is x1, y1, x2, y2 in pixels where the model gives one; `points` are (K, 3) as x, y, score.
    """

    number: int
    class_id: int
    class_name: str
    score: float | None
    own_box: Rectangle | None
    mask: EncodedMask | None
    points: NDArray[np.float32] | None = None

    @property
    def box(self) -> Rectangle:
        """The model's box, else that of the mask."""
        if self.own_box is not None:
            return self.own_box
        x1, y1, x2, y2 = (0, 0, 0, 0) if self.mask is None else self.mask.patch().box
        return float(x1), float(y1), float(x2), float(y2)

    @property
    def area(self) -> float:
        """Pixels of the mask, or those of the box where there is none."""
        if self.mask is not None:
            return self.mask.area
        x1, y1, x2, y2 = self.box
        return (x2 - x1) * (y2 - y1)

    @property
    def parts(self) -> tuple[Part, ...]:
        """The mask's outlines, () where there is no mask."""
        return () if self.mask is None else self.mask.parts()


def foreground(annotations: Iterable[Annotation]) -> Iterator[Annotation]:
    """Leave out the class called `background`: pictures and annotation tools show it by showing nothing."""
    return (found for found in annotations if found.class_name.lower() != BACKGROUND)
