"""An evaluation of a revision on labelled images, as people publish it in an annotation of the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final

from pydantic import Field

from segserve_builder.spec.model_spec import Sha256
from segserve_operator.api.meta import ANNOTATION_PREFIX, ApiValue, Timestamp

EVALUATION: Final = "evaluation"
EVALUATION_ANNOTATION: Final = f"{ANNOTATION_PREFIX}{EVALUATION}"
MAX_EVALUATED_CLASSES: Final = 100
MAX_EVALUATED_SLICES: Final = 32
MAX_EVALUATION_LENGTH: Final = 32_768
"""Longest text of the annotation; an API server takes 256 KiB for all of an object's."""

Share = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(max_length=100)]


class Estimate(ApiValue):
    """A quality from 0 to 1, and the ends of its 95 % interval, both None without one."""

    mean: Share
    low: Share | None = None
    high: Share | None = None

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.mean:.3f}"
        return f"{self.mean:.3f} ({self.low:.3f} to {self.high:.3f})"


class SliceEvaluation(ApiValue):
    """The mean score of the images of one slice."""

    images: int = Field(ge=1)
    score: Estimate


class Evaluation(ApiValue):
    """Quality of a revision's answers to callers, measured on a golden set with labels.

    `score` is the mean over images. `metrics` are means over the set: iou and recall, of objects also ap. Classes and
    slices are by name.
    """

    revision: str = Field(min_length=1, max_length=64)
    golden_sha256: Sha256
    evaluated_at: Timestamp
    evaluated_by: str = Field(default="", max_length=256)
    images: int = Field(ge=1)
    score: Estimate
    metrics: Annotated[Mapping[Name, Estimate], Field(max_length=16)] = {}
    classes: Annotated[Mapping[Name, Estimate], Field(max_length=MAX_EVALUATED_CLASSES)] = {}
    slices: Annotated[Mapping[Name, SliceEvaluation], Field(max_length=MAX_EVALUATED_SLICES)] = {}
