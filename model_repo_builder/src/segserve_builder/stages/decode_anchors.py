"""The stage that turns a dense detector's heads into candidates."""

from __future__ import annotations

from math import log
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Literal

from pydantic import Field

from segserve_builder.stages.base import RequestOptions, Stage
from segserve_builder.values import Anchors, Candidates, Float32, NoHeads, ValueType

if TYPE_CHECKING:
    from numpy.typing import NDArray

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]

LARGEST: Final = log(1000 / 16)
"""Largest growth of a box over its anchor, as a logarithm (`bbox_xform_clip` of torchvision)."""
MARGIN: Final = 1e-3
"""Logits this far below the threshold still count as candidates, so that rounded probabilities decide."""


class DecodeAnchors(Stage):
    """Turn the anchors of a dense detector into boxes.

    An anchor gives a candidate for every class above the threshold; the best topK of each feature level or class are
    kept. Boxes are clipped to the image, as torchvision does before its non-maximum suppression.
    """

    takes: ClassVar[frozenset[ValueType]] = frozenset({ValueType.ANCHORS})
    gives: ClassVar[ValueType | None] = ValueType.BOXES

    activation: Literal["sigmoid", "softmax"] = Field(
        "sigmoid",
        description="sigmoid: independent classes; softmax: exclusive classes, with channel 0 as the background.",
    )
    score_threshold: float = Field(
        0.05,
        ge=0,
        le=1,
        description="Probability above which candidates are kept; a request's score_threshold overrides it.",
    )
    top_k: int = Field(1000, ge=1, le=100_000, description="Number of candidates kept per level or class.")
    top_k_of: Literal["level", "class"] = Field(
        "level", description="Whether topK counts by feature level or by class."
    )
    weights: tuple[Positive, ...] = Field(
        (1.0, 1.0, 1.0, 1.0), min_length=4, max_length=4, description="Divisors of dx, dy, dw and dh."
    )

    def __call__(self, value: Anchors, request: RequestOptions) -> Candidates:
        """Return the candidates, level by level or class by class, each best first."""
        import numpy as np

        from segserve_builder.imaging.probabilities import logit, sigmoid, softmax
        from segserve_builder.kernels.top_scores import top_scores

        least = request.least_score(self.score_threshold)
        exclusive, classes = self.activation == "softmax", value.logits.shape[1]
        scores = softmax(value.logits) if exclusive else value.logits
        channels = set(range(classes) if value.channels is None else value.channels) - ({0} if exclusive else set())
        best = top_scores(
            scores,
            channels,
            value.levels,
            by_class=self.top_k_of == "class",
            least=least if exclusive else logit(least) - MARGIN,
            number=self.top_k,
        )
        chosen = scores.reshape(-1)[best]
        probable = chosen if exclusive else sigmoid(chosen[None])[0]
        best, probable = best[probable > least], probable[probable > least]
        anchor, channel = np.divmod(best, max(classes, 1))
        return Candidates(self._boxes(value, anchor), probable, channel.astype(np.int32), NoHeads(), value.transform)

    def _boxes(self, value: Anchors, which: NDArray[Any]) -> Float32:
        """Return the boxes of some anchors, within the image, in pixels of the original image, float32 (N, 4)."""
        import numpy as np

        anchors, deltas = value.anchors[which], value.deltas[which] / np.array(self.weights, np.float32)
        sizes = anchors[:, 2:] - anchors[:, :2]
        centres = deltas[:, :2] * sizes + (anchors[:, :2] + np.float32(0.5) * sizes)
        halves = np.float32(0.5) * (np.exp(np.minimum(deltas[:, 2:], np.float32(LARGEST))) * sizes)
        boxes = np.concatenate([centres - halves, centres + halves], axis=1)
        p = value.transform
        first, last = [p.left, p.top] * 2, [p.left + p.inner_width, p.top + p.inner_height] * 2
        return p.to_image_coordinates(np.clip(boxes, np.array(first, np.float32), np.array(last, np.float32)))
