"""The base class of stages: immutable values whose fields are options and whose call does the work."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

from segserve_builder.values import ValueType


class Stage(BaseModel):
    """One stage of a pipeline.

    A subclass declares its options as fields, the types of value it takes and returns, and a `version`: raise it
    whenever answers change, since it is part of a revision's digest. Import numpy, OpenCV and kernels inside
    `__call__`, so that options can be read without them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)

    version: ClassVar[int] = 1
    needs_guide: ClassVar[bool] = False
    """Whether it needs the image itself, at the network's resolution (`Logits.guide`)."""
    needs_instances: ClassVar[bool] = False
    """Whether it needs the instances of the pipeline's second network (`LabelMap.instances`)."""
    takes: ClassVar[frozenset[ValueType]]
    gives: ClassVar[ValueType | None] = None
    """The type it returns, None if it is the type that it takes."""

    def __call__(self, value: Any, request: RequestOptions) -> Any:
        """Return the new value; the argument is not modified."""
        raise NotImplementedError


class RequestOptions(BaseModel):
    """The options of one request; None stands for the model's own setting.

    `outputs` are the outputs that the caller will read; the others stay empty. Ensembles request all outputs of their
    steps whatever the caller requests, so only this option saves the work. `overlay` is the format of OVERLAY, which is
    empty without it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    score_threshold: float | None = None
    max_detections: int | None = None
    encoding: str | None = None
    outputs: frozenset[str] | None = None
    overlay: str | None = None

    def least_score(self, own: float) -> float:
        """Return the request's score threshold, or else the stage's own."""
        return own if self.score_threshold is None else self.score_threshold

    def most(self, own: int) -> int:
        """Return the request's number of detections to keep, or else the stage's own."""
        return own if self.max_detections is None else self.max_detections
