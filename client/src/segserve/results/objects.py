"""The base of results with separate objects, each with a box, a score and a class."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from segserve.rendering.display import Row, object_rows, object_summary
from segserve.results.base import Segmentation
from segserve.results.images import ImageLike

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, eq=False)
class Detection:
    """One object; `box` is x1, y1, x2, y2 in pixels of the image."""

    box: tuple[float, float, float, float]
    score: float
    class_id: int
    class_name: str


Found = TypeVar("Found", bound=Detection)


@dataclass(frozen=True, eq=False, repr=False)
class Objects(Segmentation, Generic[Found]):
    """A sequence of the objects in one image."""

    def __len__(self) -> int:
        return len(self._found)

    def __iter__(self) -> Iterator[Found]:
        return iter(self._found)

    def __getitem__(self, index: int) -> Found:
        return self._found[index]

    @property
    def _found(self) -> tuple[Found, ...]:
        raise NotImplementedError

    @property
    def boxes(self) -> NDArray[np.float32]:
        """All boxes, float32 (N, 4)."""
        return np.array([found.box for found in self], np.float32).reshape(-1, 4)

    @property
    def scores(self) -> NDArray[np.float32]:
        """All scores, float32 (N,)."""
        return np.array([found.score for found in self], np.float32)

    @property
    def class_ids(self) -> NDArray[np.int32]:
        """All class ids, int32 (N,)."""
        return np.array([found.class_id for found in self], np.int32)

    @property
    def areas(self) -> NDArray[Any]:
        """Areas of the masks in pixels, int64 (N,); without masks those of the boxes, float64."""
        areas = [found.area for found in self.annotations()]
        return np.array(areas) if areas else np.zeros(0, np.int64)

    def summary(self) -> list[str]:
        """Return the classes by number of objects, as in `24 coin`."""
        return object_summary(one.class_name for one in self)

    def summary_rows(self) -> list[Row]:
        """Return a row per class, most objects first."""
        return object_rows(self, self.size)

    def to_rows(self) -> list[dict[str, Any]]:
        """Return a flat row per object, for `csv.DictWriter` or a data frame."""
        return [self._row(index, found) for index, found in enumerate(self)]

    def crop(self, index: int, image: ImageLike, *, margin: int = 0, cut_out: bool = False) -> Image.Image:
        """Return the part of the image in one object's box, with up to `margin` pixels around it.

        `cut_out` makes everything outside the object's mask transparent. Raises `IndexError` for an index out of range,
        and `BadRequestError` for an image of another size, an empty box, or `cut_out` without a mask.
        """
        from segserve.rendering.drawing import crop

        return crop(tuple(self.annotations())[index], image, self.size, margin=margin, cut_out=cut_out)

    def _row(self, index: int, found: Found) -> dict[str, Any]:
        x1, y1, x2, y2 = found.box
        row = {"index": index, "class_id": found.class_id, "class": found.class_name, "score": found.score}
        return row | {"x1": x1, "y1": y1, "x2": x2, "y2": y2}
