"""Values that results, sessions and drawings share: classes, colours, encodings, and a served model's description."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from segserve_common.drawing.palette import Colour, palette

Shapes: TypeAlias = Literal["mask", "polygon"]
Encoding: TypeAlias = Literal["rle", "polygons", "png", "raw"]
ENCODINGS: Final[tuple[Encoding, ...]] = ("rle", "polygons", "png", "raw")


@dataclass(frozen=True, slots=True)
class SegmentClass:
    """A class of a model; `colour` is None if the model's resource names no colour."""

    id: int
    name: str
    colour: Colour | None = None


def class_colour(known: SegmentClass) -> Colour:
    """Return the colour of a class from the model's resource, or else by its id."""
    return known.colour or palette(known.id)


@dataclass(frozen=True, slots=True)
class OutOfDistribution:
    """How unlike the images that its model was made for an image is: higher scores are stranger."""

    score: float
    threshold: float

    @property
    def flagged(self) -> bool:
        """Whether the image is stranger than the model's resource allows."""
        return self.score > self.threshold


@dataclass(frozen=True, slots=True)
class PixelFormat:
    """The arrays that a model accepts: 1 channel (grey) or 3 (RGB), dtype UINT8 or UINT16.

    For 16 bits, only the values of `window` count, if the model has one.
    """

    channels: int
    dtype: str
    window: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The model served under a name: its outputs, revision, classes, pixel format and limit of objects in an answer.

    A model that segserve did not build has no revision, no classes and no limit.
    """

    model: str
    outputs: frozenset[str]
    revision: str | None = None
    classes: tuple[SegmentClass, ...] = ()
    pixels: PixelFormat | None = None
    max_detections: int | None = None

    def class_of(self, class_id: int) -> SegmentClass:
        """Return the class with this id; a class the model does not name gets its id as name."""
        for known in self.classes:
            if known.id == class_id:
                return known
        return SegmentClass(class_id, str(class_id))
