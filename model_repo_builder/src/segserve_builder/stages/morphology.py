"""The stage that smooths masks with a structuring element."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from segserve_builder.stages.base import RequestOptions, Stage
from segserve_builder.values import Instances, LabelMap, ValueType

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Morphology(Stage):
    """Open, close, dilate or erode masks; the image's border neither erodes nor grows them.

    In a label map every class except class 0 is a mask: pixels that it loses become class 0, and it grows only into
    class 0; if several classes do, the lowest id wins. Instances whose mask becomes empty are removed.
    """

    takes: ClassVar[frozenset[ValueType]] = frozenset({ValueType.LABELS, ValueType.INSTANCES})

    operation: Literal["open", "close", "dilate", "erode"] = Field(
        description="open removes parts thinner than the kernel, close fills gaps; dilate grows, erode shrinks."
    )
    radius: int = Field(1, ge=1, le=100, description="Radius of the kernel, 2 * radius + 1 pixels wide and high.")
    shape: Literal["ellipse", "square", "cross"] = Field("ellipse", description="Shape of the kernel.")

    def __call__(self, value: LabelMap | Instances, request: RequestOptions) -> LabelMap | Instances:
        """Return the value with every mask changed."""
        from segserve_builder.imaging.masks import map_masks

        change = self._on_bitmaps()
        if isinstance(value, LabelMap):
            import numpy as np

            from segserve_builder.kernels.regions import present_labels

            changed = np.zeros_like(value.labels, order="C")
            for label in present_labels(value.labels):
                mask = value.labels == label
                grown = change(mask.view(np.uint8)).view(bool)
                # Pixels that it may take are 0, so adding sets them; that is faster than assigning by a mask.
                taken = grown & (mask | ((value.labels | changed) == 0))
                changed += taken.view(np.uint8) * value.labels.dtype.type(label)
            return replace(value, labels=changed)
        return map_masks(value, change, margin=2 * self.radius)

    def _on_bitmaps(self) -> Callable[[NDArray[Any]], NDArray[Any]]:
        import cv2

        operation = {
            "open": cv2.MORPH_OPEN,
            "close": cv2.MORPH_CLOSE,
            "dilate": cv2.MORPH_DILATE,
            "erode": cv2.MORPH_ERODE,
        }[self.operation]
        shape = {"ellipse": cv2.MORPH_ELLIPSE, "square": cv2.MORPH_RECT, "cross": cv2.MORPH_CROSS}[self.shape]
        kernel = cv2.getStructuringElement(shape, (2 * self.radius + 1, 2 * self.radius + 1))
        return lambda bitmap: cv2.morphologyEx(bitmap, operation, kernel)
