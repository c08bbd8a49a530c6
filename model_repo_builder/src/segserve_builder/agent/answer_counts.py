"""Counts of answers in reports: what this server's steps have counted of a revision, read from Triton's metrics.

They are histograms by name, whose counts only grow until the server restarts. A report has the histograms of images, of
empty answers, of confidences by answer, and of at most `MAX_CLASSES` classes, so that its size is bounded.
"""

from __future__ import annotations

import http.client
import logging
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Final

from segserve_builder.agent.protocol import (
    MAX_REPORTED_SLICES,
    MAX_SLICE_HISTOGRAMS,
    AnswerCounting,
    AnswersReport,
    AssignedModel,
)
from segserve_builder.steps.answer_metrics import (
    ANSWERS,
    CLASS_ANSWERS,
    CLASS_AREA,
    CLASS_SCORE,
    CONFIDENCE,
    EMPTY,
    IMAGE_HISTOGRAMS,
    MetricFamily,
)

MAX_CLASSES: Final = 16
"""Classes with histograms of their own, 22 numbers each."""
EMPTY_ANSWERS: Final = "emptyAnswers"
CLASS_SHARE: Final = "classShare"
AREA: Final = "area"
SCORE: Final = "score"
ANSWER_CONFIDENCE: Final = "confidence"
_OF_CLASS: Final = 3
"""Histograms of a class."""
_TIMEOUT_S: Final = 3.0
_MAX_BYTES: Final = 16 * 2**20
_SAMPLE: Final = re.compile(rb"^(segserve_\w+)\{(.*)\} (\S+)$", re.MULTILINE)
_LABEL: Final = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_log = logging.getLogger(__name__)

Series = Mapping[tuple[str, str, str], float]
"""Values of counters by name, class and bucket (`le`); the last two are empty if the counter lacks them."""


@dataclass(slots=True)
class AnswerCounts:
    """The requested counts of an agent and what was last read, by revision. Without a `metrics_port` nothing is."""

    metrics_port: int | None = None
    _requested: Mapping[str, tuple[AssignedModel, AnswerCounting]] = field(default_factory=dict)
    _reports: Mapping[str, AnswersReport] = field(default_factory=dict)
    _due_s: float = -math.inf
    _is_too_long: bool = False

    def follow(self, requested: Mapping[str, tuple[AssignedModel, AnswerCounting]]) -> None:
        """Take the requests of an assignment, and forget the counts of other revisions."""
        self._requested = requested

    def start(self, now_s: float) -> bool:
        """Return whether to read the counts now; if so, the next time is an interval later."""
        if not self._requested or self.metrics_port is None or now_s < self._due_s:
            return False
        self._due_s = now_s + min(counting.interval_s for _, counting in self._requested.values())
        return True

    def read(self) -> None:
        """Read the server's metrics; the former ones stay if it does not answer, or with more than `_MAX_BYTES`."""
        assert self.metrics_port is not None
        try:
            # By name: if pods have IPv6 addresses, Triton listens on that family only.
            connection = http.client.HTTPConnection("localhost", self.metrics_port, timeout=_TIMEOUT_S)
            try:
                connection.request("GET", "/metrics")
                response = connection.getresponse()
                if response.status != http.client.OK:
                    raise http.client.HTTPException(f"status {response.status}")
                text = response.read(_MAX_BYTES + 1)
            finally:
                connection.close()
        except (OSError, http.client.HTTPException) as error:
            _log.warning("the server's metrics were not read: %s", error)
            return
        was_too_long, self._is_too_long = self._is_too_long, len(text) > _MAX_BYTES
        if self._is_too_long:
            if not was_too_long:
                limit = _MAX_BYTES // 2**20
                _log.warning("the server's metrics are longer than %d MiB: answers are not counted any more", limit)
            return
        requested = self._requested
        found = read_series(text, frozenset(requested))
        self._reports = {
            revision: report_of(found.get(revision, {}), each) for revision, (each, _) in requested.items()
        }

    def report(self, revision: str) -> AnswersReport | None:
        """Return what was last read of a revision; None if its counts are not requested."""
        return self._reports.get(revision) if revision in self._requested else None


def counted_classes(assigned: AssignedModel) -> tuple[str, ...]:
    """Return the classes of a model that reports have: the first ones with series of their own."""
    stated, classes = assigned.metrics.classes, assigned.pipeline.classes
    names = (item.name for item in classes if not stated or item.name in stated)
    return tuple(dict.fromkeys(names))[: min(MAX_CLASSES, assigned.metrics.most_classes)]


def report_of(by_slice: Mapping[str, Series], assigned: AssignedModel) -> AnswersReport:
    """Return the report on a revision with these counters by slice (empty for none)."""
    classes = counted_classes(assigned)
    # Series outlive a change of `slices`: the sum is of all that there ever were.
    total: Counter[tuple[str, str, str]] = Counter()
    for series in by_slice.values():
        total.update(series)
    slices = (assigned.metrics.slices or ())[:MAX_REPORTED_SLICES]
    most = (MAX_SLICE_HISTOGRAMS // max(len(slices), 1) - len(IMAGE_HISTOGRAMS) - 1) // _OF_CLASS
    found = {name: histograms(by_slice.get(name, {}), classes[:most]) for name in slices}
    whole = histograms(total, classes)
    if whole:
        confidences = _buckets(total, CONFIDENCE)
        whole |= {ANSWER_CONFIDENCE: confidences} if any(confidences) else {}
    return AnswersReport(histograms=whole, slices={name: each for name, each in found.items() if each})


def read_series(text: bytes, revisions: frozenset[str]) -> dict[str, dict[str, Series]]:
    """Return the counters of answers in Prometheus' text format, by revision and slice (empty for none)."""
    found: dict[str, dict[str, dict[tuple[str, str, str], float]]] = {}
    for name, labels, value in _SAMPLE.findall(text):
        own = {key: re.sub(r"\\(.)", r"\1", label) for key, label in _LABEL.findall(labels.decode(errors="replace"))}
        revision = own.get("revision", "")
        if revision in revisions and "step" not in own:
            of_slice = found.setdefault(revision, {}).setdefault(own.get("slice", ""), {})
            of_slice[name.decode(), own.get("class", ""), own.get("le", "")] = float(value)
    return {revision: dict(by_slice) for revision, by_slice in found.items()}


def histograms(series: Series, classes: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Return the histograms of counters of a revision or slice; those without an observation are left out."""
    answers = round(series.get((ANSWERS.name, "", ""), 0.0))
    if not answers:
        return {}
    found = {
        **{name: _buckets(series, family) for name, family in IMAGE_HISTOGRAMS.items()},
        EMPTY_ANSWERS: _parts(answers, series.get((EMPTY.name, "", ""), 0.0)),
    }
    for name in classes:
        found[f"{CLASS_SHARE}:{name}"] = _parts(answers, series.get((CLASS_ANSWERS.name, name, ""), 0.0))
        found[f"{AREA}:{name}"] = _buckets(series, CLASS_AREA, name)
        found[f"{SCORE}:{name}"] = _buckets(series, CLASS_SCORE, name)
    return {name: counts for name, counts in found.items() if any(counts)}


def _parts(answers: int, those: float) -> tuple[int, int]:
    """Return the number of the other answers, and of those."""
    part = min(round(those), answers)
    return answers - part, part


def _buckets(series: Series, family: MetricFamily, name: str = "") -> tuple[int, ...]:
    """Return the observations in each bucket; steps report counters one by one, so some may be ahead of others."""
    edges = [*(f"{edge:.10g}" for edge in family.edges), "+Inf"]
    told = (round(series.get((f"{family.name}_bucket", name, edge), 0.0)) for edge in edges)
    return tuple((after - before for before, after in pairwise((0, *accumulate(told, max)))))
