"""A segment for every pixel, things one by one and stuff as a whole: what panoptic models answer."""

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

    `id` is its number in `PanopticResult.ids`; `area` is in pixels.
    """

    id: int
    is_thing: bool
    area: int


@dataclass(frozen=True, eq=False, repr=False)
class PanopticResult(Objects[PanopticSegment]):
    """The segments of one image.

    `encoded` is the map of segment ids as PNG or raw bytes, or None where `encoded_masks` has their masks by id.
    """

    segments: tuple[PanopticSegment, ...]
    encoded: bytes | None
    encoded_masks: Mapping[int, EncodedMask]

    @property
    def _found(self) -> tuple[PanopticSegment, ...]:
        return self.segments

    @cached_property
    def ids(self) -> NDArray[Any]:
        """Segment ids, uint8 or uint16 shaped (H, W), read-only, 0 where there is none; approximate out of polygons."""
        if self.encoded is not None:
            ids = read_labels(self.encoded, *self.size)
        else:
            ids = np.zeros(self.size, np.uint16 if max(self.encoded_masks, default=0) > 255 else np.uint8)
            for segment_id, mask in sorted(self.encoded_masks.items(), key=lambda item: -item[1].area):
                ids[mask.bitmap] = segment_id
        ids.flags.writeable = False
        return ids

    def mask(self, segment: PanopticSegment) -> NDArray[np.bool_]:
        """Return a segment's pixels as bool shaped (H, W)."""
        mask: NDArray[np.bool_] = self.ids == segment.id
        return mask

    def annotations(self) -> Iterator[Annotation]:
        """Yield the segments in the form that the exports share; one without pixels has an empty mask."""
        empty = EncodedMask.empty(*self.size)
        for one in self:
            mask = self._masks.get(one.id, empty)
            yield Annotation(one.id, one.class_id, one.class_name, one.score, one.box, mask)

    def to_coco_panoptic(self, *, image_id: int = 1, file_name: str | None = None) -> tuple[dict[str, Any], bytes]:
        """Return a data set of this one image in COCO's panoptic format: its JSON, and the PNG of segment ids.

        The JSON names the PNG as `file_name` with the suffix `.png`, or by the id where there is none.
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
        """Return the image with every segment filled (`alpha` of its colour, 0 for none) and outlined.

        Things have colours of their own and labels; stuff has those of its classes, which the legend names.
        `legend` is as `labels` unless given. Raises `BadRequestError` for an image of another size than the one
        that was sent.
        """
        from segserve.rendering.drawing import Style, draw_segments

        style = Style(alpha, labels, contour, labels if legend is None else legend)
        return draw_segments(self, {segment.id: segment.is_thing for segment in self}, image, style)

    @cached_property
    def _masks(self) -> Mapping[int, EncodedMask]:
        return self.encoded_masks if self.encoded is None else masks_of_labels(self.ids)

    def _row(self, index: int, found: PanopticSegment) -> dict[str, Any]:
        return super()._row(index, found) | {"id": found.id, "is_thing": found.is_thing, "area": found.area}
