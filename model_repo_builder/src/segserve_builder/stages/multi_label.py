"""The stage that gives every class a mask of its own."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from segserve_builder.imaging.probabilities import logit
from segserve_builder.stages.base import RequestOptions, Stage
from segserve_builder.values import ClassMasks, Logits, ValueType

Probability = Annotated[float, Field(gt=0, lt=1)]


class MultiLabel(Stage):
    """Give every class the pixels where its own probability, a sigmoid, is above the threshold; masks may overlap.

    Logits are sampled bilinearly at the image's own pixels, in one interpolation, as argmax does it; padding has no
    say. The network has a channel for every class.
    """

    takes: ClassVar[frozenset[ValueType]] = frozenset({ValueType.LOGITS})
    gives: ClassVar[ValueType | None] = ValueType.CLASS_MASKS

    threshold: Probability = Field(0.5, description="The probability above which a pixel is of a class.")
    thresholds: tuple[Probability, ...] = Field(
        (), max_length=2000, description="One threshold for each class, in order; instead of threshold."
    )
    align_corners: bool = Field(
        False, description="Whether the logits' corners lie on the centres of the input's corner pixels, as for argmax."
    )

    def __call__(self, value: Logits, request: RequestOptions) -> ClassMasks:
        """Return a mask for every channel; raises `PipelineError` where there are not as many thresholds."""
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
        """Return the logit above which a pixel is of each class; raises `PipelineError` for a wrong number."""
        from segserve_builder.errors import PipelineError

        chosen = self.thresholds or (self.threshold,) * channels
        if len(chosen) != channels:
            raise PipelineError(f"multiLabel has {len(chosen)} thresholds; the network has {channels} channels")
        return [logit(threshold) for threshold in chosen]
