"""Results of panoptic models: a segment for every pixel, things one by one and stuff per class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segserve.results.annotation import Annotation
from segserve.results.images import ImageLike
from segserve.results.masks import EncodedMask, masks_of_labels, read_labels
from segserve.results.objects import Detection, Objects

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, eq=False)
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

    @property
    def _found(self) -> tuple[PanopticSegment, ...]:
        return self.segments

    @cached_property
    def ids(self) -> NDArray[Any]:
        """Segment ids, uint8 or uint16 (H, W), read-only; 0 is no segment. Approximate if the masks are polygons."""
        if self.encoded is not None:
            ids = read_labels(self.encoded, *self.size)
        else:
            ids = np.zeros(self.size, np.uint16 if max(self.encoded_masks, default=0) > 255 else np.uint8)
            for segment_id, mask in sorted(self.encoded_masks.items(), key=lambda item: -item[1].area):
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
            yield Annotation(one.id, one.class_id, one.class_name, one.score, one.box, mask)

    def to_coco_panoptic(self, *, image_id: int = 1, file_name: str | None = None) -> tuple[dict[str, Any], bytes]:
        """Return a COCO panoptic data set of this one image: its JSON, and the PNG of segment ids.

        The JSON refers to the PNG by `file_name` with the suffix `.png`, or else by `image_id`.
        """
        from segserve.exports.coco_panoptic import data_set

        is_thing = {segment.id: segment.is_thing for segment in self}
        return data_set(self, self.ids, is_thing, image_id=image_id, file_name=file_name)

    def overlay(
        self,
        image: ImageLike,
        *,
        alpha: float = 0.45,
        labels: bool = True,
        contour: bool = True,
        legend: bool | None = None,
    ) -> Image.Image:
        """Return the image with every segment filled (`alpha` of its colour, 0 to 1) and outlined.

        Things have individual colours and labels; stuff has the colours of its classes, which the legend names.
        `legend` defaults to `labels`. Raises `BadRequestError` if the size of `image` differs from that of the
        segmented image.
        """
        from segserve.rendering.drawing import Style, draw_segments

        style = Style(alpha, labels, contour, labels if legend is None else legend)
        return draw_segments(self, {segment.id: segment.is_thing for segment in self}, image, style)

    @cached_property
    def _masks(self) -> Mapping[int, EncodedMask]:
        return self.encoded_masks if self.encoded is None else masks_of_labels(self.ids)

    def _row(self, index: int, found: PanopticSegment) -> dict[str, Any]:
        return super()._row(index, found) | {"id": found.id, "is_thing": found.is_thing, "area": found.area}
