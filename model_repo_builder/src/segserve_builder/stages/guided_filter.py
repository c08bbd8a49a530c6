"""The stage that smooths class probabilities along the edges in the image."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from segserve_builder.stages.base import RequestOptions, Stage
from segserve_builder.values import Logits, ValueType

LEAST = 1e-4
"""Labels below this probability everywhere are dropped: the filter is linear, so they stay below."""


class GuidedFilter(Stage):
    """Filter class probabilities so that their borders follow edges of the image (He, Sun and Tang 2010).

    The guide is the luma (ITU-R BT.601) of the image at the network's resolution. Probabilities are the softmax of the
    logits divided by their temperature (one channel is the logit of the second class of two). The result is their
    logarithms at that resolution, without padding and with temperature 1.
    """

    takes: ClassVar[frozenset[ValueType]] = frozenset({ValueType.LOGITS})
    needs_guide: ClassVar[bool] = True

    radius: int = Field(
        8, ge=1, le=200, description="Radius of windows, 2 * radius + 1 pixels of the network's input wide and high."
    )
    eps: float = Field(
        1e-3,
        ge=1e-6,
        le=1,
        description="Variance of the luma, from 0 to 1, above which a window counts as showing an edge.",
    )

    def __call__(self, value: Logits, request: RequestOptions) -> Logits:
        """Return the filtered logits; raises `BadImageError` if the image is too large."""
        from dataclasses import replace

        from segserve_builder.imaging.refinement import LabelScores, checked_guide
        from segserve_builder.kernels.crf import softmax
        from segserve_builder.kernels.guided import guided_filter
        from segserve_builder.sampling import Axis

        guide = checked_guide(value)
        height, width = guide.shape[:2]
        labels = LabelScores.of(value, height, width, LEAST)
        softmax(labels.scores)
        rows, columns = Axis.of(height, height, 0, height, height), Axis.of(width, width, 0, width, width)
        scores = guided_filter(labels.scores, guide, self.radius, self.eps, guide, rows, columns)
        return replace(labels, scores=scores).logits(value)
