"""Results of instance models: objects with masks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from segserve.results.annotation import Annotation
from segserve.results.images import ImageLike
from segserve.results.masks import EncodedMask, Polygon, Rle
from segserve.results.objects import Detection, Objects

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image


@dataclass(frozen=True, eq=False)
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
class InstanceResult(Objects[Instance]):
    """The objects of one image in the model's order, best score first."""

    instances: tuple[Instance, ...]

    @property
    def _found(self) -> tuple[Instance, ...]:
        return self.instances

    def annotations(self) -> Iterator[Annotation]:
        """Yield the instances in the form that exports share."""
        for number, one in enumerate(self, 1):
            yield Annotation(number, one.class_id, one.class_name, one.score, one.box, one.encoded)

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
        """Return the image with every mask filled (`alpha` of its colour, 0 to 1), outlined and labelled.

        Labels without room are left out. `legend` names the classes in a corner and colours objects by class unless
        `colour_by` says otherwise. Raises `BadRequestError` if the size of `image` differs from that of the segmented
        image.
        """
        from segserve.rendering.drawing import Style, draw_instances

        style = Style(alpha, labels, contour, bool(legend))
        return draw_instances(self, image, style, colour_by or ("class" if legend else "instance"))

    def _row(self, index: int, found: Instance) -> dict[str, Any]:
        return super()._row(index, found) | {"area": found.area}
