"""Results with a value for every pixel, semantic and panoptic, and `Result`, the union of all result types."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from segserve.rendering.display import Row, area_rows, area_summary
from segserve.results.annotation import Annotation, drawing_of
from segserve.results.base import Segmentation
from segserve.results.images import ImageLike
from segserve.results.masks import EncodedMask, largest_first, masks_of_labels, text_rle
from segserve.results.objects import Detection, DetectionResult, InstanceResult, KeypointResult, Objects
from segserve_common.drawing.canvas import Patch
from segserve_common.drawing.overlays import DrawnShape, Style, draw_labels, draw_segments
from segserve_common.mask_encodings import read_labels

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, eq=False, repr=False)
class PanopticSegment(Detection):
    """One segment: a thing, or all of a class of stuff.

    `id` is its value in `PanopticResult.ids`; `area` is in pixels.
    """

    id: int
    is_thing: bool
    area: int


@dataclass(frozen=True, eq=False, repr=False)
class PanopticResult(Objects[PanopticSegment]):
    """The segments of one image.

    `encoded` is the map of segment ids as PNG or raw bytes, or None if `encoded_masks` holds the masks by segment id.
    """

    segments: tuple[PanopticSegment, ...]
    encoded: bytes | None
    encoded_masks: Mapping[int, EncodedMask]
    _own_columns: ClassVar[tuple[str, ...]] = ("id", "is_thing", "area")

    @property
    def _found(self) -> tuple[PanopticSegment, ...]:
        return self.segments

    @cached_property
    def ids(self) -> NDArray[Any]:
        """Segment ids, uint8 or uint16 (H, W), read-only; 0 is not a segment. Approximate if the masks are polygons."""
        if self.encoded is not None:
            ids = read_labels(self.encoded, *self.size)
        else:
            ids = np.zeros(self.size, np.uint16 if max(self.encoded_masks, default=0) > 255 else np.uint8)
            for segment_id, mask in largest_first(self.encoded_masks):
                ids[mask.bitmap] = segment_id
        ids.flags.writeable = False
        return ids

    def mask(self, segment: PanopticSegment) -> NDArray[np.bool_]:
        """Return the mask of a segment, bool (H, W)."""
        mask: NDArray[np.bool_] = self.ids == segment.id
        return mask

    def annotations(self) -> Iterator[Annotation]:
        """Yield the segments in the form that exports share; a segment without pixels has an empty mask."""
        empty = EncodedMask.empty(*self.size)
        for one in self:
            mask = self._masks.get(one.id, empty)
            yield Annotation(one.id, one.class_id, one.class_name, one.score, one.box, mask, is_thing=one.is_thing)

    def to_coco_panoptic(self, *, image_id: int = 1, file_name: str | None = None) -> tuple[dict[str, Any], bytes]:
        """Return a COCO panoptic data set of this one image: its JSON, and the PNG of segment ids.

        The JSON refers to the PNG by `file_name` with the suffix `.png`, or else by `image_id`.
        """
        from segserve.exports.coco import panoptic_data_set

        is_thing = {segment.id: segment.is_thing for segment in self}
        return panoptic_data_set(self, self.ids, is_thing, image_id=image_id, file_name=file_name)

    def _drawn(self, image: ImageLike, style: Style) -> Image.Image:
        return draw_segments(drawing_of(image, self, self.annotations()), style)

    @cached_property
    def _masks(self) -> Mapping[int, EncodedMask]:
        return self.encoded_masks if self.encoded is None else masks_of_labels(self.ids)

    def _entries(self) -> dict[str, Any]:
        own = ({"id": segment.id, "is_thing": segment.is_thing, "area": segment.area} for segment in self)
        return {"segments": [first | entry for first, entry in zip(own, super()._entries()["objects"], strict=True)]}

    def _row(self, index: int, found: PanopticSegment) -> dict[str, Any]:
        return super()._row(index, found) | {"id": found.id, "is_thing": found.is_thing, "area": found.area}


@dataclass(frozen=True, eq=False, repr=False)
class SemanticResult(Segmentation):
    """A class for every pixel of one image, or for multi-label models a mask per class.

    `areas` are pixels by class name. `confidence` is the mean probability by class name over that class's pixels (0
    without pixels), or None if not requested. `encoded` is the label map as PNG or raw bytes, or None if
    `encoded_masks` holds each class's mask by id; masks of multi-label models may overlap.
    """

    areas: Mapping[str, int]
    confidence: Mapping[str, float] | None
    encoded: bytes | None
    encoded_masks: Mapping[int, EncodedMask]

    @cached_property
    def labels(self) -> NDArray[Any]:
        """Class ids, uint8 or uint16 (H, W), read-only. Approximate if the masks are polygons, which have no holes.

        If masks overlap, the class with the smaller mask gets the pixel.
        """
        if self.encoded is not None:
            labels = read_labels(self.encoded, *self.size)
        else:
            labels = np.zeros(self.size, np.uint16 if max(self.encoded_masks, default=0) > 255 else np.uint8)
            # Polygons have no holes: masks inside them are smaller, and painted later.
            for class_id, mask in largest_first(self.encoded_masks):
                labels[mask.bitmap] = class_id
        labels.flags.writeable = False
        return labels

    def mask(self, class_: int | str) -> NDArray[np.bool_]:
        """Return the mask of one class, by id or name, bool (H, W).

        Raises `KeyError` for a class that the model does not have.
        """
        class_id = self._class_id(class_)
        if self.encoded is None and class_id in self.encoded_masks:
            return self.encoded_masks[class_id].bitmap
        mask: NDArray[np.bool_] = self.labels == class_id
        return mask

    def annotations(self) -> Iterator[Annotation]:
        """Yield each class with pixels as one mask; `score` is the confidence."""
        for known in self.classes:
            if self.areas.get(known.name):
                score = None if self.confidence is None else self.confidence[known.name]
                if self.encoded is None and known.id in self.encoded_masks:
                    mask = self.encoded_masks[known.id]
                else:
                    mask = EncodedMask.of(self.mask(known.id))
                yield Annotation(known.id, known.id, known.name, score, None, mask)

    def summary(self) -> list[str]:
        """Return the classes by their share of the pixels, as in `coin 36.2%`."""
        return area_summary(self.areas, self.size)

    def summary_rows(self) -> list[Row]:
        """Return a row per class with pixels, largest area first."""
        return area_rows(self.areas, self.size)

    def to_rows(self) -> list[dict[str, Any]]:
        """Return a flat row per class, for `csv.DictWriter` or a data frame; `share` is the fraction of all pixels."""
        pixels = self.size[0] * self.size[1]
        rows = []
        for known in self.classes:
            if known.name in self.areas:
                area = self.areas[known.name]
                row = {"class_id": known.id, "class": known.name, "area": area, "share": area / pixels}
                rows.append(row if self.confidence is None else row | {"score": self.confidence[known.name]})
        return rows

    def _drawn(self, image: ImageLike, style: Style) -> Image.Image:
        areas = {known.id: self.areas.get(known.name, 0) for known in self.classes}
        # Annotations would encode each class, also those that are not drawn.
        found = [
            DrawnShape(one.id, one.name, None, (0, 0, 0, 0), partial(lambda each: Patch.of(self.mask(each)), one.id))
            for one in self.classes
        ]
        return draw_labels(replace(drawing_of(image, self, ()), found=found), areas, style)

    def _entries(self) -> dict[str, Any]:
        masks, empty = {one.class_id: one.mask for one in self.annotations()}, EncodedMask.empty(*self.size)
        classes = []
        for row in self.to_rows():
            values = {"class_id": row["class_id"], "class": row["class"], "area": row["area"]}
            confidence = {"confidence": row["score"]} if "score" in row else {}
            classes.append(values | confidence | {"mask": text_rle(masks.get(row["class_id"]) or empty)})
        return {"classes": classes}

    def _class_id(self, class_: int | str) -> int:
        for known in self.classes:
            if class_ in (known.id, known.name):
                return known.id
        raise KeyError(f"no class {class_!r}; known: {', '.join(f'{c.id} {c.name}' for c in self.classes)}")


Result: TypeAlias = SemanticResult | InstanceResult | PanopticResult | DetectionResult | KeypointResult
