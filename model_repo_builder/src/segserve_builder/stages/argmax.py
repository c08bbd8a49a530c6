"""The stage that turns logits into a label map."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from pydantic import Field

from segserve_builder.stages.base import RequestOptions, Stage
from segserve_builder.values import LabelMap, Logits, ValueType


class Argmax(Stage):
    """Assign every pixel of the image its most probable class.

    Logits are sampled bilinearly at the image's own pixels, in one interpolation; padding is ignored. With
    `alignCorners` the grid of logits is laid over the network's input as torch's interpolate lays it with
    align_corners: if the image was not resized, labels equal those of that interpolate and argmax.
    """

    version: ClassVar[int] = 2
    takes: ClassVar[frozenset[ValueType]] = frozenset({ValueType.LOGITS})
    gives: ClassVar[ValueType | None] = ValueType.LABELS

    threshold: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="Probability above which a pixel is of the second class, if the network has a single channel.",
    )

    align_corners: bool = Field(
        False,
        description="Whether the corner logits lie on the centres of the input's corner pixels (align_corners of "
        "torch's interpolate, as for PSPNet and some DeepLab heads). By default they cover areas side by side.",
    )

    def __call__(self, value: Logits, request: RequestOptions) -> LabelMap:
        """Return the labels, uint8 for up to 256 classes and uint16 for more; ties go to the first class."""
        from segserve_builder.imaging.probabilities import logit
        from segserve_builder.kernels.labels import label_map
        from segserve_builder.sampling import axes

        value = replace(value, align_corners=self.align_corners)
        rows, columns = axes(value.transform, *value.values.shape[1:], align_corners=self.align_corners)
        limit = value.temperature * logit(self.threshold)
        return LabelMap(label_map(value.values, rows, columns, limit), value)
