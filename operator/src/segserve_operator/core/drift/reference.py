"""References of drift that callers' answers are not counted for: recorded ones, those of files and golden images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from pydantic import ValidationError

from segserve_builder.agent.protocol import ReferenceReport
from segserve_builder.steps.answer_metrics import EMBEDDING_HISTOGRAMS
from segserve_common.kube.shards import unpack
from segserve_operator.api.drift import Drift, RecordedHistogram, RecordedReference
from segserve_operator.api.meta import format_duration
from segserve_operator.core.drift.detector import ReferenceRange, cumulated

MIN_GOLDEN_IMAGES: Final = 30
"""With so few, each share of 20 histograms is uncertain by 0.33."""
MISSED: Final = 0.05
"""Probability that the range of any histogram of golden images misses the share that it is of."""

Ranges = Mapping[str, ReferenceRange]


@dataclass(frozen=True, slots=True)
class ReferenceRanges:
    """A reference of both lengths of windows, and of how many golden images it is."""

    short: Ranges
    long: Ranges
    images: int = 0


class ReferenceRefusedError(ValueError):
    """A report of an agent is no reference; `reason` is a CamelCase word."""

    def __init__(self, reason: str, message: str) -> None:
        self.reason = reason
        super().__init__(message)


def reference_of(report: ReferenceReport, drift: Drift) -> ReferenceRanges:
    """Return the reference that an agent reports; raises `ReferenceRefusedError`."""
    if report.reason:
        raise ReferenceRefusedError("ReferenceFailed", f"{report.reason}: {report.message}")
    if drift.reference.file is None:
        return golden_ranges(report)
    recorded = _read(report.content)
    if isinstance(recorded, str):
        raise ReferenceRefusedError("ReferenceFailed", f"{drift.reference.file.uri}: {recorded}")
    if recorded.window != drift.window:
        raise ReferenceRefusedError(
            "ReferenceFailed",
            f"{drift.reference.file.uri}: window must be as long as spec.drift.window, "
            f"{format_duration(drift.window)}, got {format_duration(recorded.window)}",
        )
    return recorded_ranges(recorded)


def recorded_ranges(recorded: RecordedReference) -> ReferenceRanges:
    """Return a recorded reference, whose ranges are those of its windows."""
    short, long = _ranges(recorded.histograms), _ranges(recorded.long_histograms)
    return ReferenceRanges(without_embeddings(short), without_embeddings(long))


def without_embeddings(ranges: Ranges) -> Ranges:
    """Return the ranges that hold for other revisions, too: embeddings of two networks have other coordinates."""
    return {name: each for name, each in ranges.items() if name.partition(":")[0] not in EMBEDDING_HISTOGRAMS}


def golden_ranges(report: ReferenceReport) -> ReferenceRanges:
    """Return the reference of images that were drawn independently, with what is uncertain about their shares.

    The range of a histogram's shares is the confidence band of Dvoretzky, Kiefer and Wolfowitz with Massart's constant
    (1990), for all histograms together. Windows of any length have the same expected shares, unless images have several
    observations each: a window of one image then has the mean of the images' shares, and one of many images has the
    share of all observations. The range covers both. Histograms of fewer than `MIN_GOLDEN_IMAGES` images are left out.
    """
    if report.images < MIN_GOLDEN_IMAGES:
        raise ReferenceRefusedError(
            "TooFewGoldenImages",
            f"the golden set has {report.images} images; a reference needs at least {MIN_GOLDEN_IMAGES}",
        )
    log_odds = math.log(2 * len(report.histograms) / MISSED)
    ranges = {}
    for name, observed in report.histograms.items():
        counts = tuple(map(float, observed))
        images = min(report.observations.get(name, 0.0), report.images)
        if images >= MIN_GOLDEN_IMAGES and any(counts):
            margin, edges = math.sqrt(log_odds / (2 * images)), [cumulated(counts)]
            by_image = report.image_shares.get(name, ())
            if len(by_image) == len(counts) and any(by_image):
                edges.append(cumulated(by_image))
            low, high = np.clip((np.min(edges, 0) - margin, np.max(edges, 0) + margin), 0.0, 1.0)
            ranges[name] = ReferenceRange(counts, tuple(low.tolist()), tuple(high.tolist()), int(images))
    return ReferenceRanges(ranges, ranges, report.images)


def _ranges(histograms: Mapping[str, RecordedHistogram]) -> Ranges:
    return {name: ReferenceRange(each.shares, each.low, each.high, each.windows) for name, each in histograms.items()}


@lru_cache(maxsize=64)
def _read(content: str) -> RecordedReference | str:
    """Return what a file holds, or why that is no reference; each pass asks as long as it is none."""
    try:
        return RecordedReference.model_validate(unpack(content))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in (*first["loc"], *first.get("ctx", {}).get("at", ())))
        return f"{place}: {first['msg']}" if place else str(first["msg"])
    except ValueError as error:
        return str(error)
