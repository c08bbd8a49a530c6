"""Results with separate objects: detections, keypoints and instances, each with a box, a score and a class."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from segserve.rendering.display import Row, object_rows, object_summary
from segserve.results.annotation import Annotation, crop, drawing_of
from segserve.results.base import Segmentation
from segserve.results.images import ImageLike
from segserve.results.masks import EncodedMask, Rle, runs_of
from segserve_common.drawing.overlays import Style, draw_objects
from segserve_common.mask_encodings import Polygon

if TYPE_CHECKING:
    from PIL import Image
    from supervision import KeyPoints


@dataclass(frozen=True, eq=False, repr=False)
class Detection:
    """One object; `box` is x1, y1, x2, y2 in pixels of the image."""

    box: tuple[float, float, float, float]
    score: float
    class_id: int
    class_name: str

    def __repr__(self) -> str:
        # Numbers of 32 bits have up to 17 digits as Python's floats, of which 7 say something.
        rounded = {"box": f"({', '.join(f'{side:.1f}' for side in self.box)})", "score": f"{self.score:.3f}"}
        names = (each.name for each in fields(self) if each.repr)
        parts = (f"{name}={rounded.get(name) or repr(getattr(self, name))}" for name in names)
        return f"{type(self).__name__}({', '.join(parts)})"


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
        """Areas of the masks in pixels, int64 (N,); without masks the boxes' areas, float64."""
        found = list(self.annotations())
        masks = [one.mask for one in found if one.mask is not None]
        return runs_of(masks).areas() if len(masks) == len(found) else np.array([one.area for one in found])

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
        return crop(tuple(self.annotations())[index], image, self.size, margin=margin, cut_out=cut_out)

    def _row(self, index: int, found: Found) -> dict[str, Any]:
        x1, y1, x2, y2 = found.box
        row = {"index": index, "class_id": found.class_id, "class": found.class_name, "score": found.score}
        return row | {"x1": x1, "y1": y1, "x2": x2, "y2": y2}


class _SeparateObjects(Objects[Found]):
    def overlay(
        self,
        image: ImageLike,
        *,
        alpha: float = 0.45,
        labels: bool = True,
        contour: bool = True,
        legend: bool | None = None,
        colour_by: Literal["instance", "class"] | None = None,
    ) -> Image.Image:
        """Return the image with every object labelled: its mask filled (`alpha` of its colour, 0 to 1) and outlined.

        Objects without masks get their box and keypoints. Labels without room are left out. `legend` names the classes
        and colours by class unless `colour_by` differs. Raises `BadRequestError` for an image of another size.
        """
        drawing, style = drawing_of(image, self, self.annotations()), Style(alpha, labels, contour, bool(legend))
        return draw_objects(drawing, style, colour_by or ("class" if legend else "instance"))


@dataclass(frozen=True, eq=False, repr=False)
class Instance(Detection):
    """One object with its mask."""

    encoded: EncodedMask = field(repr=False)

    @property
    def mask(self) -> NDArray[np.bool_]:
        """The mask, bool (H, W) of the whole image, read-only. Raises `ProtocolError` for a malformed mask."""
        return self.encoded.bitmap

    @property
    def rle(self) -> Rle:
        """The mask as COCO compressed RLE; `counts` is bytes."""
        return self.encoded.rle

    @property
    def polygons(self) -> list[Polygon]:
        """The outlines of the mask's parts as [x, y, x, y, ...] in pixels, without holes; `to_polygons` has them."""
        return self.encoded.polygons

    @property
    def area(self) -> int:
        """The area of the mask in pixels."""
        return self.encoded.area


@dataclass(frozen=True, eq=False, repr=False)
class InstanceResult(_SeparateObjects[Instance]):
    """The objects of one image in the model's order, best score first."""

    instances: tuple[Instance, ...]
    _own_columns: ClassVar[tuple[str, ...]] = ("area",)

    @property
    def _found(self) -> tuple[Instance, ...]:
        return self.instances

    @property
    def masks(self) -> NDArray[np.bool_]:
        """All masks, bool (N, H, W): a new array of N * H * W bytes. Raises `ProtocolError` for a malformed mask."""
        masks = np.zeros((len(self), *self.size), np.bool_)
        for mask, one in zip(masks, self, strict=True):
            # A mask is decoded within its own rectangle: most of an image is outside of an object.
            patch = one.encoded.patch()
            height, width = patch.pixels.shape
            mask[patch.y : patch.y + height, patch.x : patch.x + width] = patch.pixels
        return masks

    @property
    def areas(self) -> NDArray[Any]:
        """Areas of the masks in pixels, int64 (N,). No mask is decoded. Raises `ProtocolError` for a malformed mask."""
        return runs_of([one.encoded for one in self]).areas()

    @property
    def mask_boxes(self) -> NDArray[np.int64]:
        """Bounding boxes of the masks' pixels as x1, y1, x2, y2, int64 (N, 4); x2 and y2 are exclusive.

        `boxes` are the model's own. No mask is decoded. Raises `ProtocolError` for a malformed mask.
        """
        return runs_of([one.encoded for one in self]).boxes()

    def annotations(self) -> Iterator[Annotation]:
        """Yield the instances in the form that exports share."""
        for number, one in enumerate(self, 1):
            yield Annotation(number, one.class_id, one.class_name, one.score, one.box, one.encoded)

    def to_rows(self) -> list[dict[str, Any]]:
        """Return a flat row per object, for `csv.DictWriter` or a data frame; `area` is the mask's, in pixels."""
        return [row | {"area": area} for row, area in zip(super().to_rows(), self.areas.tolist(), strict=True)]


@dataclass(frozen=True, eq=False, repr=False)
class KeypointDetection(Detection):
    """One object with its keypoints, float32 (K, 3): x, y and score; x and y in pixels of the image."""

    points: NDArray[np.float32] = field(repr=False)


@dataclass(frozen=True, eq=False, repr=False)
class _Boxes(_SeparateObjects[Found]):
    detections: tuple[Found, ...]

    @property
    def _found(self) -> tuple[Found, ...]:
        return self.detections

    def annotations(self) -> Iterator[Annotation]:
        """Yield the objects in the form that exports share."""
        for number, one in enumerate(self, 1):
            points = one.points if isinstance(one, KeypointDetection) else None
            yield Annotation(number, one.class_id, one.class_name, one.score, one.box, None, points)


@dataclass(frozen=True, eq=False, repr=False)
class DetectionResult(_Boxes[Detection]):
    """The boxes of one image in the model's order, best score first."""


@dataclass(frozen=True, eq=False, repr=False)
class KeypointResult(_Boxes[KeypointDetection]):
    """The objects of one image with their keypoints, in the model's order, best score first."""

    @property
    def points(self) -> NDArray[np.float32]:
        """All keypoints, float32 (N, K, 3)."""
        found = [one.points for one in self]
        return np.stack(found) if found else np.zeros((0, 0, 3), np.float32)

    def to_key_points(self) -> KeyPoints:
        """Return the `supervision.KeyPoints`; raises `MissingExtraError` without the extra `annotations`."""
        from segserve.exports.supervision import key_points

        return key_points(self)

    def _row(self, index: int, found: KeypointDetection) -> dict[str, Any]:
        names = (f"point{number}_{part}" for number in range(len(found.points)) for part in ("x", "y", "score"))
        return super()._row(index, found) | dict(zip(names, found.points.ravel().tolist(), strict=True))
