"""Scores of golden sets in reports: which replays are due, what the last ones measured, and how that is packed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from segserve_builder.agent.protocol import GoldenScoring, ScoreReport, pack_classes, pack_qualities, pack_slices
from segserve_common.backoff import Backoff

if TYPE_CHECKING:
    from segserve_builder.scoring.replay import GoldenScores

SHARE: Final = 0.05
"""Largest part of a server's time for replays: images of a large set must not crowd out the callers."""
RETRIES: Final = Backoff(first_s=1.0, longest_s=60.0)
DEATHS_ALLOWED: Final = 3
"""Replays that may end with the death of the server or a step; perhaps the images did it."""
MAX_MESSAGE: Final = 300
MAX_IMAGES: Final = 256
MAX_CLASSES: Final = 256
"""A report holds the qualities of so many images and classes: 700 and 1,400 bytes."""


@dataclass(slots=True)
class Replays:
    """The requested replays of an agent and the latest outcomes, by revision."""

    _requested: dict[str, GoldenScoring] = field(default_factory=dict)
    _reports: dict[str, ScoreReport] = field(default_factory=dict)
    _due_s: dict[str, float] = field(default_factory=dict)
    _failures: Counter[str] = field(default_factory=Counter)
    _deaths: Counter[str] = field(default_factory=Counter)

    def follow(self, requested: Mapping[str, GoldenScoring]) -> None:
        """Take the requests of an assignment; forget the outcomes of others, and of other golden sets.

        Another request for the same set is due at once, and the former scores stay until it is done.
        """
        for revision in [revision for revision in self._requested if revision not in requested]:
            self._forget(revision)
            del self._requested[revision]
        for revision, scoring in requested.items():
            former = self._requested.get(revision)
            if former is None or former.golden != scoring.golden:
                self._forget(revision)
            elif former.round != scoring.round:
                self._restart(revision)
            self._requested[revision] = scoring

    def lose(self, revision: str) -> None:
        """Forget the scores of a revision that the server no longer holds, unless it was given up for its deaths."""
        if self._deaths[revision] < DEATHS_ALLOWED:
            for table in (self._reports, self._due_s, self._failures):
                table.pop(revision, None)

    def _forget(self, revision: str) -> None:
        self._reports.pop(revision, None)
        self._restart(revision)

    def _restart(self, revision: str) -> None:
        self._due_s.pop(revision, None)
        self._failures.pop(revision, None)
        self._deaths.pop(revision, None)

    def due_s(self, revision: str) -> float:
        """Return from when on to replay the requested set to a revision; never one without a request."""
        return self._due_s.get(revision, -math.inf) if revision in self._requested else math.inf

    def report(self, revision: str) -> ScoreReport | None:
        """Return the latest outcome, without scores before the first; None if none is requested."""
        scoring = self._requested.get(revision)
        if scoring is None:
            return None
        return self._reports.get(revision) or ScoreReport(golden_sha256=scoring.golden.sha256)

    def keep(self, revision: str, scores: GoldenScores, now_s: float, duration_s: float) -> None:
        """Record the scores of a replay that took `duration_s`."""
        scoring = self._requested.get(revision)
        if scoring is None:
            return
        self._restart(revision)
        self._reports[revision] = report_of(scoring.golden.sha256, scores)
        self._due_s[revision] = now_s + max(scoring.interval_s, duration_s / SHARE)

    def fail(
        self, revision: str, reason: str, message: str, now_s: float, *, retryable: bool, died: bool = False
    ) -> None:
        """Record why a replay has no scores; the scores of an earlier replay stay."""
        former = self.report(revision)
        if former is None:
            return
        self._failures[revision] += 1
        self._deaths[revision] += died
        retry = (retryable or died) and self._deaths[revision] < DEATHS_ALLOWED
        self._due_s[revision] = now_s + RETRIES.delay_s(self._failures[revision]) if retry else math.inf
        self._reports[revision] = former.model_copy(update={"reason": reason, "message": shortened(message)})


def shortened(message: str) -> str:
    """Return a message as it is reported: its first `MAX_MESSAGE` characters."""
    return message if len(message) <= MAX_MESSAGE else f"{message[: MAX_MESSAGE - 1]}…"


def report_of(golden_sha256: str, scores: GoldenScores) -> ScoreReport:
    """Return scores as they are reported: the first `MAX_IMAGES` images and `MAX_CLASSES` classes, all in the means."""
    classes = sorted(scores.quality.classes.items())
    known = {name: round(mean, 6) for name, mean in scores.quality.means.items() if not math.isnan(mean)}
    slices, sliced = pack_slices(scores.slices[:MAX_IMAGES])
    return ScoreReport(
        golden_sha256=golden_sha256,
        images=len(scores.images),
        labelled=scores.labelled,
        qualities=pack_qualities(scores.images[:MAX_IMAGES]),
        classes=pack_classes(classes[:MAX_CLASSES]),
        classes_left_out=max(len(classes) - MAX_CLASSES, 0),
        slices=slices,
        sliced=sliced,
        at_limit=scores.at_limit,
        iou=known.get("iou"),
        boundary_iou=known.get("boundaryIou"),
        recall=known.get("recall"),
        ap=known.get("ap"),
        ece=known.get("ece"),
    )
