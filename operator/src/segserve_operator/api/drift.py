"""Drift of a model's images and answers (`spec.drift`)."""

from __future__ import annotations

from datetime import timedelta
from typing import Final, Self

from pydantic import Field, model_validator

from segserve_builder.agent.protocol import MAX_HISTOGRAMS, MAX_SLICE_HISTOGRAMS
from segserve_operator.api.checks import located
from segserve_operator.api.meta import ApiValue, Timestamp, format_duration
from segserve_operator.api.rollout_policy import SomeTime

_DAY = timedelta(days=1)
_WINDOW = timedelta(minutes=5)
MIN_REFERENCE_WINDOWS = 12
MOST_WATCHED: Final = MAX_HISTOGRAMS + MAX_SLICE_HISTOGRAMS
"""Most histograms of a model, those of slices included. What a status stores of them stays below 192 KiB."""


class DriftWindow(ApiValue):
    """A stretch of time whose answers are the reference. It is counted anew for each stable revision."""

    start: Timestamp | None = Field(
        default=None,
        description="When the stretch begins. Default, and for a revision that serves later: when it becomes stable.",
    )
    duration: SomeTime = Field(
        default=_DAY, description="Length of the stretch. It should hold all that is normal: a day, or a week."
    )


class DriftReference(ApiValue):
    """The reference of images and answers."""

    window: DriftWindow = Field(default=DriftWindow(), description="A stretch of time of the stable revision.")


class Drift(ApiValue):
    """Whether the images and answers of the stable revision are still as those of a reference."""

    reference: DriftReference = Field(
        default=DriftReference(), description="What images and answers are compared with."
    )
    window: SomeTime = Field(
        default=_WINDOW,
        description="Length of a window, which is compared as one observation; an hour of twelve windows of 5m is "
        "compared as well. Choose it longer than a scene lasts. Default 5m.",
    )
    min_answers: int = Field(
        default=30,
        ge=10,
        le=1_000_000,
        description="Observations that a histogram needs for a comparison; with fewer its window lasts longer.",
    )
    false_alarms_per_month: float = Field(
        default=0.1,
        gt=0,
        le=30,
        description="Maximum number of false alarms in 30 days on average, over all histograms.",
    )

    @model_validator(mode="after")
    def _reference_fits(self) -> Self:
        least = MIN_REFERENCE_WINDOWS * self.window
        if self.reference.window.duration < least:
            raise located(
                f"must be at least {MIN_REFERENCE_WINDOWS} times spec.drift.window, {format_duration(least)}, "
                f"got {format_duration(self.reference.window.duration)}",
                *("reference", "window", "duration"),
            )
        return self
