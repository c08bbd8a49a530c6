"""What every stage is: an immutable value whose fields are its options and whose call does the work."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

from segserve_builder.values import ValueType


class Stage(BaseModel):
    """One pre- or post-processing step.

    A subclass declares its options as fields, the kinds of value it takes and gives, and a `version` that is raised
    whenever its answers change: it is part of a revision's digest. Numpy, OpenCV and kernels are imported inside
    `__call__`, so that options can be read where none of them is installed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)

    version: ClassVar[int] = 1
    needs_guide: ClassVar[bool] = False
    """Whether it looks at the image itself, as the network saw it (`Logits.guide`)."""
    needs_instances: ClassVar[bool] = False
    """Whether it takes what the pipeline's second network found (`LabelMap.instances`)."""
    takes: ClassVar[frozenset[ValueType]]
    gives: ClassVar[ValueType | None] = None
    """The kind it gives, or None where it gives the kind that it took."""

    def __call__(self, value: Any, request: RequestOptions) -> Any:
        """Return the new value; the given one is left untouched."""
        raise NotImplementedError


class RequestOptions(BaseModel):
    """What one request asks for beside its image; None where it leaves that to its model.

    `outputs` names the outputs that it will read; the others stay empty. An ensemble asks its steps for every output,
    whatever its caller asked for, so that only this can spare the work.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    score_threshold: float | None = None
    max_detections: int | None = None
    encoding: str | None = None
    outputs: frozenset[str] | None = None

    def least_score(self, own: float) -> float:
        """Return the threshold that counts: the request's, or else the stage's own."""
        return own if self.score_threshold is None else self.score_threshold

    def most(self, own: int) -> int:
        """Return how many detections are kept: what the request says, or else the stage."""
        return own if self.max_detections is None else self.max_detections
