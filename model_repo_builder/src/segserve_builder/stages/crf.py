"""The stage that aligns class borders with edges of the image by a CRF."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from segserve_builder.stages.base import RequestOptions, Stage
from segserve_builder.values import Logits, UInt8, ValueType

if TYPE_CHECKING:
    from segserve_builder.kernels.crf import Terms

LEAST = 1e-3
"""Labels below this probability everywhere are dropped: messages are weights times probabilities, so none can win."""
FAST_RADIUS = 2
FAST_EPS = 1e-3
"""Radius and epsilon of the guided filter that upsamples the result from half the resolution."""


class Crf(Stage):
    """Refine class probabilities by a fully connected CRF: nearby pixels of similar colour tend to one class.

    Its unary term is the softmax of the logits divided by their temperature (one channel is the logit of the second
    class of two), its pairwise terms are those of Krähenbühl and Koltun, and of pydensecrf's examples. The result
    is log probabilities at the network's resolution, without padding and with temperature 1.
    """

    takes: ClassVar[frozenset[ValueType]] = frozenset({ValueType.LOGITS})
    needs_guide: ClassVar[bool] = True

    mode: Literal["exact", "fast"] = Field(
        "exact", description="fast works at half the resolution and upsamples the result with a guided filter."
    )
    iterations: int = Field(5, ge=1, le=50, description="Number of mean-field iterations.")
    bilateral_sxy: float = Field(
        80.0,
        ge=1,
        le=10_000,
        description="Range in which pixels of similar colour attract each other: a standard deviation in pixels of "
        "the network's input.",
    )
    bilateral_rgb: float = Field(
        13.0, ge=1, le=1000, description="Range of similar colours: a standard deviation in grey levels of 255."
    )
    bilateral_weight: float = Field(
        10.0, ge=0, le=1000, description="Largest amount that pixels of similar colour add to a log probability."
    )
    gaussian_sxy: float = Field(
        3.0,
        ge=0.25,
        le=10_000,
        description="Range in which pixels of any colour attract each other: a standard deviation in pixels of the "
        "network's input.",
    )
    gaussian_weight: float = Field(
        3.0, ge=0, le=1000, description="Largest amount that nearby pixels of any colour add to a log probability."
    )

    def __call__(self, value: Logits, request: RequestOptions) -> Logits:
        """Return the refined logits; raises `BadImageError` if the image is too large."""
        from segserve_builder.errors import BadImageError
        from segserve_builder.imaging.refinement import checked_guide
        from segserve_builder.kernels.crf_lattice import LatticeTooLargeError

        guide = checked_guide(value)
        try:
            return self._exact(value, guide) if self.mode == "exact" else self._fast(value, guide)
        except LatticeTooLargeError as error:
            raise BadImageError(f"the CRF cannot take this image: {error}") from error

    def _exact(self, value: Logits, guide: UInt8) -> Logits:
        from segserve_builder.imaging.refinement import LabelScores
        from segserve_builder.kernels.crf import refine

        height, width = guide.shape[:2]
        labels = LabelScores.of(value, height, width, self._least)
        refine(labels.scores, guide, self._terms(1), self.iterations, logarithms=True)
        return labels.logits(value)

    def _fast(self, value: Logits, guide: UInt8) -> Logits:
        from dataclasses import replace

        import cv2
        import numpy as np

        from segserve_builder.imaging.refinement import LabelScores
        from segserve_builder.kernels.crf import refine
        from segserve_builder.kernels.guided import guided_filter
        from segserve_builder.sampling import Axis

        height, width = guide.shape[:2]
        low_height, low_width = (height + 1) // 2, (width + 1) // 2
        low = cv2.resize(np.ascontiguousarray(guide), (low_width, low_height), interpolation=cv2.INTER_AREA)
        labels = LabelScores.of(value, low_height, low_width, self._least)
        refine(labels.scores, low, self._terms(2), self.iterations, logarithms=False)
        rows = Axis.of(height, low_height, 0, low_height, low_height)
        columns = Axis.of(width, low_width, 0, low_width, low_width)
        scores = guided_filter(labels.scores, low, FAST_RADIUS, FAST_EPS, guide, rows, columns)
        return replace(labels, scores=scores).logits(value)

    @property
    def _least(self) -> float:
        return LEAST / max(1, (self.bilateral_weight + self.gaussian_weight) / 13)

    def _terms(self, shrink: int) -> Terms:
        from segserve_builder.kernels.crf import Terms

        return Terms(
            self.bilateral_sxy / shrink,
            self.bilateral_rgb,
            self.bilateral_weight,
            self.gaussian_sxy / shrink,
            self.gaussian_weight,
        )
