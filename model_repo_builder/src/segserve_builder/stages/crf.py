"""The stage that aligns class borders with edges of the image by a CRF."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from segserve_builder.stages.base import RequestOptions, Stage
from segserve_builder.values import Logits, ValueType

LEAST = 1e-3
"""Labels below this probability everywhere are dropped: messages are weights times probabilities, so none can win."""


class Crf(Stage):
    """Refine class probabilities by a fully connected CRF: nearby pixels of similar colour tend to one class.

    Its unary term is the softmax of the logits divided by their temperature (one channel is the logit of the second
    class of two), its pairwise terms are those of Krähenbühl and Koltun, and of pydensecrf's examples. The result
    is log probabilities at the network's resolution, without padding and with temperature 1.
    """

    takes: ClassVar[frozenset[ValueType]] = frozenset({ValueType.LOGITS})
    needs_guide: ClassVar[bool] = True

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
        from segserve_builder.imaging.refinement import LabelScores, checked_guide
        from segserve_builder.kernels.crf import Terms, refine
        from segserve_builder.kernels.crf_lattice import LatticeTooLargeError

        guide = checked_guide(value)
        least = LEAST / max(1, (self.bilateral_weight + self.gaussian_weight) / 13)
        height, width, _ = guide.shape
        labels = LabelScores.of(value, height, width, least)
        terms = Terms(
            self.bilateral_sxy, self.bilateral_rgb, self.bilateral_weight, self.gaussian_sxy, self.gaussian_weight
        )
        try:
            refine(labels.scores, guide, terms, self.iterations)
        except LatticeTooLargeError as error:
            raise BadImageError(f"the CRF cannot take this image: {error}") from error
        return labels.logits(value)
