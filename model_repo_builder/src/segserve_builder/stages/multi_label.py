"""The stage that gives every class a mask of its own."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from segserve_builder.imaging.probabilities import logit
from segserve_builder.stages.base import RequestOptions, Stage
from segserve_builder.values import ClassMasks, Logits, ValueType

Probability = Annotated[float, Field(gt=0, lt=1)]


class MultiLabel(Stage):
    """Compute one mask per class from independent probabilities (sigmoid); masks may overlap.

    Logits are sampled bilinearly at the image's own pixels, in one interpolation, as for argmax; padding is ignored.
    The network has a channel for every class.
    """

    takes: ClassVar[frozenset[ValueType]] = frozenset({ValueType.LOGITS})
    gives: ClassVar[ValueType | None] = ValueType.CLASS_MASKS

    threshold: Probability = Field(0.5, description="Probability above which a pixel belongs to a class.")
    thresholds: tuple[Probability, ...] = Field(
        (), max_length=2000, description="One threshold per class, in order, instead of threshold."
    )
    align_corners: bool = Field(
        False, description="Whether the logits' corners lie on the centres of the input's corner pixels, as for argmax."
    )

    def __call__(self, value: Logits, request: RequestOptions) -> ClassMasks:
        """Return a mask for every channel; raises `PipelineError` for another number of thresholds."""
        import numpy as np

        from segserve_builder.kernels.class_masks import class_masks
        from segserve_builder.sampling import axes

        channels = len(value.values)
        limits = np.array(self.limits(channels), np.float32) * np.float32(value.temperature)
        rows, columns = axes(value.transform, *value.values.shape[1:], align_corners=self.align_corners)
        masks, areas, sums = class_masks(value.values, rows, columns, limits, value.temperature)
        confidence = (sums / np.maximum(areas, 1)).astype(np.float32)
        return ClassMasks(masks, areas, confidence, rows.size, columns.size)

    def limits(self, channels: int) -> list[float]:
        """Return each class's logit threshold, (channels,); raises `PipelineError` for another number of them."""
        from segserve_builder.errors import PipelineError

        chosen = self.thresholds or (self.threshold,) * channels
        if len(chosen) != channels:
            raise PipelineError(f"multiLabel has {len(chosen)} thresholds; the network has {channels} channels")
        return [logit(threshold) for threshold in chosen]
