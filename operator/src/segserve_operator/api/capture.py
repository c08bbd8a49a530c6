"""Samples of callers' requests that a model keeps, for labelling and training."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from segserve_builder.capture.rule import SINK_SCHEMES
from segserve_builder.spec.model_spec import SliceLabel
from segserve_operator.api.checks import check_distinct
from segserve_operator.api.meta import ApiValue, Duration, ResourceName


class Redact(ApiValue):
    """Pixels that are made unrecognisable in a sample's image before its first byte is written."""

    classes: Annotated[tuple[str, ...], AfterValidator(check_distinct)] = Field(
        min_length=1, max_length=100, description="Names of the classes whose pixels are redacted."
    )
    model: ResourceName | None = Field(
        default=None,
        description="Model of the same pool whose answer locates them. Without its answer nothing is kept. Default: "
        "the model itself.",
    )
    method: Literal["fill", "blur"] = Field(
        default="fill", description="fill makes the pixels black; blur leaves their rough colours."
    )


class Capture(ApiValue):
    """Samples of requests: image, answer and a manifest row, written to a store beside callers' way."""

    share: float = Field(default=0.01, gt=0, le=1, description="Share of inference requests that are looked at.")
    per_minute: int = Field(
        default=6,
        ge=1,
        le=600,
        description="Maximum number of samples per minute that each gateway keeps of the model.",
    )
    when: Annotated[
        tuple[Literal["uncertain", "disagree", "error", "empty", "drift"], ...], AfterValidator(check_distinct)
    ] = Field(
        default=(),
        max_length=5,
        description="Reasons to keep a request that is looked at; one suffices. uncertain: a score near the "
        "threshold, or a map of low confidence; disagree: another revision that is loaded answers differently; "
        "error: stable fails it; empty: the answer shows nothing; drift: the model's condition Drifting is True. "
        "Default: every one is kept.",
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    slices: Annotated[tuple[SliceLabel, ...], AfterValidator(check_distinct)] = Field(
        default=(),
        max_length=100,
        description="Labels of requests (`X-Segserve-Slice`) that are kept. Default: all, also those without one.",
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    redact: Redact | None = Field(default=None, description="Parts to make unrecognisable. Default: none.")
    sink: Annotated[str, Field(pattern=f"^({'|'.join(SINK_SCHEMES)})://", min_length=1, max_length=1024)] = Field(
        description="URI of the store's folder: s3:, gs: or az:, with the pool's credentials for artifacts, and on "
        "one machine file:."
    )
    retention: Duration = Field(
        default=timedelta(days=30), description="Age at which samples are deleted. Default 720h."
    )
