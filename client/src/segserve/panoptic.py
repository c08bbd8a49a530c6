"""A segment for every pixel, things one by one and stuff as a whole: what panoptic models answer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from segserve import coco
from segserve.masks import EncodedMask, read_labels
from segserve.objects import Detection, Objects

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray
    from PIL import Image

    from segserve.images import ImageLike


@dataclass(frozen=True, eq=False)
class PanopticSegment(Detection):
    """One segment: a thing, or all of a class of stuff.

    `id` is its number in `PanopticResult.ids`; `area` is in pixels.
    """

    id: int
    is_thing: bool
    area: int


@dataclass(frozen=True, eq=False)
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

    def overlay(self, image: ImageLike, *, alpha: float = 0.45, labels: bool = True) -> Image.Image:
        """Return the image with every segment filled (`alpha` of its colour) and outlined, things labelled.

        Raises `BadRequestError` for an image of another size than the one that was sent.
        """
        from segserve.drawing import draw_segments

        return draw_segments(self, image, alpha=alpha, labels=labels)

    def _coco_objects(self) -> Iterator[coco.Object]:
        for segment in self:
            rle = EncodedMask(self.mask(segment).tobytes(), *self.size).rle
            yield coco.Object(segment.class_id, rle, segment.score, segment.box)
