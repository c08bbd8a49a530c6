"""`Annotation`: one object, segment or class in the form that exports and drawings share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from segserve.results.masks import EncodedMask, text_rle
from segserve.results.outlines import Part
from segserve.results.values import Rectangle, SegmentClass

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BACKGROUND: Final = "background"


@dataclass(frozen=True, slots=True, eq=False)
class Annotation:
    """An object, a segment, or all pixels of a class; has a mask, a box or both.

    `number` counts from 1; for a panoptic segment it is the segment's id. `score` is None if the model gives no scores.
    `own_box` is the model's box, x1, y1, x2, y2 in pixels, or None. `points` is float32 (K, 3): x, y, score.
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
        """The model's box, or else the mask's bounding box."""
        if self.own_box is not None:
            return self.own_box
        x1, y1, x2, y2 = (0, 0, 0, 0) if self.mask is None else self.mask.box
        return float(x1), float(y1), float(x2), float(y2)

    @property
    def area(self) -> float:
        """The mask's area in pixels, or the box's if there is no mask."""
        if self.mask is not None:
            return self.mask.area
        x1, y1, x2, y2 = self.box
        return (x2 - x1) * (y2 - y1)

    @property
    def parts(self) -> tuple[Part, ...]:
        """The mask's outlines; () if there is no mask."""
        return () if self.mask is None else self.mask.parts()


class AnnotatedResult(Protocol):
    """The parts of a result that exports and drawings read."""

    @property
    def revision(self) -> str:
        """The revision that answered."""
        ...

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        ...

    @property
    def classes(self) -> tuple[SegmentClass, ...]:
        """The model's classes."""
        ...

    def annotations(self) -> Iterator[Annotation]:
        """Yield the objects, segments or classes."""
        ...


def object_entry(found: Annotation) -> dict[str, Any]:
    """Return an object as plain values; see `Segmentation.to_dict`."""
    entry: dict[str, Any] = {"class_id": found.class_id, "class": found.class_name, "score": found.score}
    entry["box"] = list(found.box)
    if found.mask is not None:
        entry["mask"] = text_rle(found.mask)
    if found.points is not None:
        entry["keypoints"] = found.points.tolist()
    return entry


def is_background(class_name: str) -> bool:
    """Return whether a class is called `background`, in any case."""
    return class_name.lower() == BACKGROUND


def foreground(annotations: Iterable[Annotation]) -> Iterator[Annotation]:
    """Leave out the class called `background`, which annotation tools represent by the absence of a shape."""
    return (found for found in annotations if not is_background(found.class_name))
