"""What all answers share: the model that gave them, its classes, and the way out to COCO's JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from segserve import coco

if TYPE_CHECKING:
    from collections.abc import Iterator

    from PIL import Image

    from segserve.images import ImageLike

Colour: TypeAlias = tuple[int, int, int]
Encoding: TypeAlias = Literal["rle", "polygons", "png", "raw"]
ENCODINGS: Final[tuple[Encoding, ...]] = ("rle", "polygons", "png", "raw")


@dataclass(frozen=True, slots=True)
class SegmentClass:
    """A class of a model; `colour` is None where the model's file names none."""

    id: int
    name: str
    colour: Colour | None = None


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What is served under a model's name: the outputs it declares, its revision and classes.

    A model that segserve did not build has no revision and no classes.
    """

    model: str
    outputs: frozenset[str]
    revision: str | None = None
    classes: tuple[SegmentClass, ...] = ()

    def class_of(self, class_id: int) -> SegmentClass:
        """Return the class with that id; one that the model does not name is called by its number."""
        return next((known for known in self.classes if known.id == class_id), SegmentClass(class_id, str(class_id)))


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What every answer has: the revision that answered, `size` as (height, width), the model's classes."""

    model: str
    revision: str
    size: tuple[int, int]
    classes: tuple[SegmentClass, ...]

    def to_coco(self, *, image_id: int = 1, file_name: str | None = None) -> dict[str, Any]:
        """Return a COCO data set of this one image, ready for `json.dump`."""
        return coco.data_set([coco.Entry(self.size, tuple(self._coco_objects()), file_name, image_id)], self.classes)

    def overlay(self, image: ImageLike, *, alpha: float = 0.45, labels: bool = True) -> Image.Image:
        """Return the image with what was found drawn on it: filled with `alpha` of its colour, outlined, labelled.

        Raises `BadRequestError` for an image of another size than the one that was sent.
        """
        raise NotImplementedError

    def _coco_objects(self) -> Iterator[coco.Object]:
        raise NotImplementedError
