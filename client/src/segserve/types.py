"""What a model answers: typed results whose masks are decoded when they are looked at."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import numpy as np

from segserve import coco
from segserve.errors import ProtocolError
from segserve.masks import PNG_MAGIC, EncodedMask, Polygon, Rle, read_png

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray
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

    def _coco_objects(self) -> Iterator[coco.Object]:
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Instance:
    """One object: `box` is x1, y1, x2, y2 in pixels of the image."""

    box: tuple[float, float, float, float]
    score: float
    class_id: int
    class_name: str
    encoded: EncodedMask

    @property
    def mask(self) -> NDArray[np.bool_]:
        """The mask as bool, shaped (H, W) of the whole image, read-only."""
        return self.encoded.bitmap

    @property
    def rle(self) -> Rle:
        """The mask as COCO compressed RLE; `counts` is bytes."""
        return self.encoded.rle

    @property
    def polygons(self) -> list[Polygon]:
        """The outlines of the mask's parts as [x, y, x, y, ...] in pixels, without holes."""
        return self.encoded.polygons

    @property
    def area(self) -> int:
        """The mask's pixels."""
        return self.encoded.area


@dataclass(frozen=True, eq=False)
class InstanceResult(Segmentation):
    """The objects of one image, best score first as the model gives them."""

    instances: tuple[Instance, ...]

    def __len__(self) -> int:
        return len(self.instances)

    def __iter__(self) -> Iterator[Instance]:
        return iter(self.instances)

    def __getitem__(self, index: int) -> Instance:
        return self.instances[index]

    @property
    def boxes(self) -> NDArray[np.float32]:
        """All boxes, float32 (N, 4)."""
        return np.array([instance.box for instance in self.instances], np.float32).reshape(-1, 4)

    @property
    def scores(self) -> NDArray[np.float32]:
        """All scores, float32 (N,)."""
        return np.array([instance.score for instance in self.instances], np.float32)

    @property
    def class_ids(self) -> NDArray[np.int32]:
        """All class ids, int32 (N,)."""
        return np.array([instance.class_id for instance in self.instances], np.int32)

    def overlay(
        self,
        image: ImageLike,
        *,
        alpha: float = 0.45,
        labels: bool = True,
        colour_by: Literal["instance", "class"] = "instance",
    ) -> Image.Image:
        """Return the image with every mask filled (`alpha` of its colour), outlined and labelled.

        Raises `BadRequestError` for an image of another size than the one that was segmented.
        """
        from segserve.drawing import draw_instances

        return draw_instances(self, image, alpha=alpha, labels=labels, colour_by=colour_by)

    def _coco_objects(self) -> Iterator[coco.Object]:
        for instance in self.instances:
            yield coco.Object(instance.class_id, instance.rle, instance.score, instance.box)


@dataclass(frozen=True, eq=False)
class SemanticResult(Segmentation):
    """A class for every pixel of one image.

    `areas` is pixels by class name. `confidence` is the mean probability by class name over the pixels of
    that class (0 where there are none), or None where it was not asked for. `encoded` is the label map as PNG
    or raw bytes, or None where `encoded_masks` has each class's mask by id.
    """

    areas: Mapping[str, int]
    confidence: Mapping[str, float] | None
    encoded: bytes | None
    encoded_masks: Mapping[int, EncodedMask]

    @cached_property
    def labels(self) -> NDArray[Any]:
        """Class ids, uint8 or uint16 shaped (H, W), read-only; approximate out of polygons, which have no holes."""
        if self.encoded is not None:
            labels = _read_labels(self.encoded, *self.size)
        else:
            labels = np.zeros(self.size, np.uint16 if max(self.encoded_masks, default=0) > 255 else np.uint8)
            # Polygons have no holes: what lies in them is smaller, and painted later.
            for class_id, mask in sorted(self.encoded_masks.items(), key=lambda item: -item[1].area):
                labels[mask.bitmap] = class_id
        labels.flags.writeable = False
        return labels

    def mask(self, class_: int | str) -> NDArray[np.bool_]:
        """Return one class's pixels, by id or by name, as bool shaped (H, W).

        Raises `KeyError` for a class that the model does not have.
        """
        mask: NDArray[np.bool_] = self.labels == self._class_id(class_)
        return mask

    def overlay(self, image: ImageLike, *, alpha: float = 0.45, labels: bool = True) -> Image.Image:
        """Return the image with every class but `background` filled (`alpha` of its colour) and outlined.

        `labels` adds a legend of the classes that are there, with their share of the image. Raises
        `BadRequestError` for an image of another size than the one that was segmented.
        """
        from segserve.drawing import draw_labels

        return draw_labels(self, image, alpha=alpha, labels=labels)

    def _class_id(self, class_: int | str) -> int:
        for known in self.classes:
            if class_ in (known.id, known.name):
                return known.id
        raise KeyError(f"no class {class_!r}; known: {', '.join(f'{c.id} {c.name}' for c in self.classes)}")

    def _coco_objects(self) -> Iterator[coco.Object]:
        for known in self.classes:
            if self.areas.get(known.name):
                mask = EncodedMask(self.mask(known.id).tobytes(), *self.size)
                score = None if self.confidence is None else self.confidence[known.name]
                yield coco.Object(known.id, mask.rle, score, None)


Result: TypeAlias = SemanticResult | InstanceResult


def _read_labels(data: bytes, height: int, width: int) -> NDArray[Any]:
    """Return the label map, PNG or raw little-endian, as uint8 or uint16 shaped (H, W)."""
    if data.startswith(PNG_MAGIC):
        return read_png(data, height, width)
    for dtype in (np.dtype("u1"), np.dtype("<u2")):
        if len(data) == height * width * dtype.itemsize:
            return np.frombuffer(data, dtype).reshape(height, width).copy()
    raise ProtocolError(f"a label map of {len(data)} bytes came for an image of {height} x {width}")
