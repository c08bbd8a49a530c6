"""Drift of a model's images and answers (`spec.drift`)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import timedelta
from functools import cached_property
from itertools import accumulate
from typing import Annotated, Final, Self

from pydantic import Field, model_validator

from segserve_builder.agent.protocol import MAX_BUCKETS, MAX_HISTOGRAMS, MAX_SLICE_HISTOGRAMS
from segserve_builder.spec.model_spec import ReferenceFile
from segserve_operator.api.checks import located
from segserve_operator.api.evaluation import Share
from segserve_operator.api.meta import ApiValue, Timestamp, format_duration
from segserve_operator.api.rollout_policy import SomeTime

_DAY = timedelta(days=1)
_WINDOW = timedelta(minutes=5)
MIN_REFERENCE_WINDOWS = 12
MOST_WATCHED: Final = MAX_HISTOGRAMS + MAX_SLICE_HISTOGRAMS
"""Most histograms of a model, those of slices included. What a status stores of them stays below 192 KiB."""
_ROUNDING: Final = 0.01
_LONGEST_NAME: Final = 170

EdgeShares = Annotated[tuple[Share, ...], Field(min_length=1, max_length=MAX_BUCKETS - 1)]


class DriftWindow(ApiValue):
    """A stretch of time whose answers are the reference. It is counted anew for each stable revision."""

    start: Timestamp | None = Field(
        default=None,
        description="When the stretch begins. Default, and for a revision that serves later: when it becomes stable.",
    )
    duration: SomeTime = Field(
        default=_DAY, description="Length of the stretch. It should hold all that is normal: a day, or a week."
    )


class RecordedHistogram(ApiValue):
    """One histogram of a recorded reference."""

    shares: Annotated[tuple[Share, ...], Field(min_length=2, max_length=MAX_BUCKETS)] = Field(
        description="Share of the observations in each bucket, 1 together."
    )
    low: EdgeShares = Field(
        description="Least share of observations below each edge between two buckets that a window had."
    )
    high: EdgeShares = Field(
        description="Largest share of observations below each edge between two buckets that a window had."
    )
    windows: int = Field(
        ge=1,
        le=1_000_000,
        description="Windows that the range is of. Fewer than 12, or 4 long ones, decide nothing.",
    )

    @model_validator(mode="after")
    def _is_of_windows(self) -> Self:
        edges = len(self.shares) - 1
        for name, ends in (("low", self.low), ("high", self.high)):
            if len(ends) != edges:
                raise located(f"must have {edges} shares, one less than the buckets, got {len(ends)}", name)
        if abs(sum(self.shares) - 1) > _ROUNDING:
            raise located(f"must be 1 together, got {sum(self.shares):.4g}", "shares")
        for index, (least, below, largest) in enumerate(
            zip(self.low, accumulate(self.shares[:-1]), self.high, strict=True)
        ):
            if not least - _ROUNDING <= below <= largest + _ROUNDING:
                raise located(
                    f"{below:.4g} of the observations are below the edge after it; its windows had from {least:.4g} "
                    f"(low) to {largest:.4g} (high)",
                    *("shares", index),
                )
        return self


RecordedHistograms = Annotated[Mapping[str, RecordedHistogram], Field(max_length=MOST_WATCHED)]


class RecordedReference(ApiValue):
    """A reference that was counted before, by this or another model, as `segserve drift export` writes it."""

    window: SomeTime = Field(description="Length of its windows. spec.drift.window must be as long.")
    histograms: RecordedHistograms = Field(
        description="Histograms of single windows by name, such as brightness; those of a slice are slice/brightness."
    )
    long_histograms: RecordedHistograms = Field(
        default={}, description="Histograms of windows twelve times as long. Default: long windows are not compared."
    )

    @cached_property
    def digest(self) -> str:
        """SHA-256 of it, in hexadecimal digits; each pass of the operator asks for it."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    @model_validator(mode="after")
    def _names_and_windows(self) -> Self:
        for field, histograms in (("histograms", self.histograms), ("longHistograms", self.long_histograms)):
            for name in histograms:
                if not 0 < len(name) <= _LONGEST_NAME:
                    raise located(f"a name has 1 to {_LONGEST_NAME} characters, got {len(name)}", field, name)
        most = max((each.windows for each in self.histograms.values()), default=0)
        if most < MIN_REFERENCE_WINDOWS:
            raise located(
                f"at least one histogram must have {MIN_REFERENCE_WINDOWS} windows, the largest has {most}",
                "histograms",
            )
        return self


class GoldenReference(ApiValue):
    """The answers to the golden images of each stable revision. It has no options."""


class DriftReference(ApiValue):
    """The reference of images and answers."""

    window: DriftWindow = Field(default=DriftWindow(), description="A stretch of time of the stable revision.")
    recorded: RecordedReference | None = Field(
        default=None,
        description="A reference that was counted before, for each stable revision. Default: none, window says what "
        "is counted; with it, window has no effect.",
    )
    golden: GoldenReference | None = Field(
        default=None,
        description="The answers to the golden set (spec.golden), at least 30 images, which the servers count for each "
        "stable revision. Default: none; with it, window has no effect.",
    )
    file: ReferenceFile | None = Field(
        default=None,
        description="A file that `segserve drift export -o NAME.json` wrote, which the servers read. Default: none; "
        "with it, window has no effect.",
    )

    @property
    def is_counted(self) -> bool:
        """Whether answers to callers are counted for it: it is a stretch of time."""
        return self.recorded is None and self.golden is None and self.file is None

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        stated = [name for name in ("recorded", "golden", "file") if getattr(self, name) is not None]
        if len(stated) > 1:
            raise located(f"recorded, golden and file exclude each other, got {' and '.join(stated)}", stated[1])
        return self


class Drift(ApiValue):
    """Whether the images and answers of the stable revision are still as those of a reference."""

    reference: DriftReference = Field(
        default=DriftReference(), description="What images and answers are compared with."
    )
    window: SomeTime = Field(
        default=_WINDOW,
        description="Length of a window, which is compared as one observation; an hour of twelve windows of 5m is "
        "compared too. It should be longer than a scene lasts. Default 5m.",
    )
    min_answers: int = Field(
        default=30,
        ge=10,
        le=1_000_000,
        description="Observations that a histogram needs for a comparison; with fewer its window lasts longer.",
    )
    false_alarms_per_month: float = Field(
        default=0.1, gt=0, le=30, description="Most false alarms in 30 days on average, of all histograms together."
    )
    tolerance: float = Field(
        default=0.05,
        ge=0,
        lt=1,
        description="How far beyond the reference's own windows the share of a bucket may be and still count as equal.",
    )

    @model_validator(mode="after")
    def _reference_fits(self) -> Self:
        recorded = self.reference.recorded
        if recorded is not None and recorded.window != self.window:
            raise located(
                f"must be as long as spec.drift.window, {format_duration(self.window)}, "
                f"got {format_duration(recorded.window)}",
                *("reference", "recorded", "window"),
            )
        if not self.reference.is_counted:
            return self
        least = MIN_REFERENCE_WINDOWS * self.window
        if self.reference.window.duration < least:
            raise located(
                f"must be at least {MIN_REFERENCE_WINDOWS} times spec.drift.window, {format_duration(least)}, "
                f"got {format_duration(self.reference.window.duration)}",
                *("reference", "window", "duration"),
            )
        return self
