"""What answers of separate objects share: each has a box, a score and a class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np

from segserve.types import Segmentation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Detection:
    """One object: `box` is x1, y1, x2, y2 in pixels of the image."""

    box: tuple[float, float, float, float]
    score: float
    class_id: int
    class_name: str


Found = TypeVar("Found", bound=Detection)


@dataclass(frozen=True, eq=False)
class Objects(Segmentation, Generic[Found]):
    """A sequence of the objects of one image."""

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
