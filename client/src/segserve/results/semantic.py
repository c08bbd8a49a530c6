"""Results of semantic models: a class for every pixel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segserve.rendering.display import Row, area_rows, area_summary
from segserve.results.annotation import Annotation
from segserve.results.base import Segmentation
from segserve.results.images import ImageLike
from segserve.results.masks import EncodedMask, read_labels

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, eq=False, repr=False)
class SemanticResult(Segmentation):
    """A class for every pixel of one image, or for multi-label models a mask per class.

    `areas` are pixels by class name. `confidence` is the mean probability by class name over that class's pixels (0 if
    there are none), or None if not requested. `encoded` is the label map as PNG or raw bytes, or None if
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
            for class_id, mask in sorted(self.encoded_masks.items(), key=lambda item: -item[1].area):
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
                mask = self._encoded_mask(known.id)
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

    def overlay(
        self,
        image: ImageLike,
        *,
        alpha: float = 0.45,
        labels: bool = True,
        contour: bool = True,
        legend: bool | None = None,
    ) -> Image.Image:
        """Return the image with every class except `background` filled (`alpha` of its colour, 0 to 1) and outlined.

        The legend names the classes with their share of the image and defaults to `labels`. Raises `BadRequestError` if
        the size of `image` differs from that of the segmented image.
        """
        from segserve.rendering.drawing import Style, draw_labels

        style = Style(alpha, labels, contour, labels if legend is None else legend)
        areas = {known: self.areas.get(known.name, 0) for known in self.classes}
        return draw_labels(areas, self.mask, image, style, self.size)

    def _encoded_mask(self, class_id: int) -> EncodedMask:
        if self.encoded is None and class_id in self.encoded_masks:
            return self.encoded_masks[class_id]
        return EncodedMask.of(self.mask(class_id))

    def _class_id(self, class_: int | str) -> int:
        for known in self.classes:
            if class_ in (known.id, known.name):
                return known.id
        raise KeyError(f"no class {class_!r}; known: {', '.join(f'{c.id} {c.name}' for c in self.classes)}")
