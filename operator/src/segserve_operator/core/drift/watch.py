"""The watch of one revision's answers: windows of servers' counts, the reference that they make, and the alarms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Self

import numpy as np

from segserve_builder.agent.protocol import AnswersReport
from segserve_common.kube.shards import pack, unpack
from segserve_operator.api.drift import (
    MIN_REFERENCE_WINDOWS,
    MOST_WATCHED,
    Drift,
)
from segserve_operator.core.drift.detector import (
    Detector,
    Histograms,
    ReferenceRange,
    bucket_shares,
    first_window,
    kl_divergence,
    log_bound,
    psi,
)

LONG: Final = 12
"""Windows of a long window: slow and small drifts show where chance averages out."""
MIN_LONG: Final = 4
"""Long windows that their reference needs at least."""
_LEAST: Final = (MIN_REFERENCE_WINDOWS, MIN_LONG)
_EARLY: Final = 12
"""A histogram in the first of so many parts of the reference counts as present from its beginning."""
TOLERANCE: Final = 0.05
"""How far beyond the reference's own windows the share of a bucket may be and still count as equal."""
CHECKPOINTS: Final = 24
"""How often a reference in the making is stored: a restart loses no more than that part of it."""
MONTH_S: Final = 30 * 86400.0
_VERSION: Final = 1
_DIGITS: Final = 4


@dataclass(frozen=True, slots=True)
class Scale:
    """Windows of one length: the counts of the open one, the reference, and the tests. Times are Unix seconds.

    `counting` says since when the reference of each histogram is counted that is not whole yet: what comes later than
    the others has one of its own, as long as theirs.
    """

    opened_s: float
    counts: Histograms = field(default_factory=dict)
    ranges: Mapping[str, ReferenceRange] = field(default_factory=dict)
    counting: Mapping[str, float] = field(default_factory=dict)
    detectors: Mapping[str, Detector] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DriftedHistogram:
    """A histogram that drifts, with its divergences from the reference and the recent shares of its buckets.

    The name of one of a slice begins with the slice and a slash.
    """

    name: str
    psi: float
    kl: float
    reference: tuple[float, ...]
    recent: tuple[float, ...]

    @property
    def slice(self) -> str:
        """The label of its requests, empty if it is of all."""
        return _parted(self.name)[0]

    @property
    def histogram(self) -> str:
        """The name without the slice."""
        return _parted(self.name)[1]

    @property
    def is_gone(self) -> bool:
        """Whether it is a class that few answers still contain."""
        return self.histogram.startswith("classShare:") and self.recent[1] < self.reference[1] / 20


@dataclass(frozen=True, slots=True)
class DriftWatch:
    """The watch of one revision. `seen` is when each server last reported, and what. `answers` were counted since it
    began.

    Another `basis`, what a spec says of the reference, needs another watch. `stored` is what a restart begins with, of
    `stored_s`; `since_s` is when the present drift was found (0 without one), `found` its histograms as they were then.
    """

    revision: str
    basis: str
    began_s: float
    scales: tuple[Scale, Scale]
    seen: Mapping[str, tuple[float, Histograms]] = field(default_factory=dict)
    complete: bool = False
    answers: int = 0
    stored: str = ""
    stored_s: float = 0.0
    since_s: float = 0.0
    found: tuple[DriftedHistogram, ...] = ()

    @classmethod
    def start(cls, revision: str, now_s: float, drift: Drift, slices: Sequence[str] = ()) -> Self:
        """Begin with a reference, now or at the time that the spec says; servers report `slices`."""
        stated = drift.reference.window.start
        began_s = max(now_s, stated.timestamp()) if stated is not None else now_s
        return cls(revision, basis_of(drift, slices), began_s, (Scale(began_s), Scale(began_s)), stored_s=began_s)

    @property
    def drifting(self) -> frozenset[str]:
        """The names of the histograms that drift."""
        return frozenset(
            name for scale in self.scales for name, detector in scale.detectors.items() if detector.drifting
        )

    def measured(self, servers: Mapping[str, Histograms], drift: Drift, now_s: float) -> DriftWatch:
        """Return the watch with what servers have counted until now. One that is new counts from now on."""
        reports = {name: (now_s, counts) for name, counts in servers.items()}
        if now_s < self.began_s:
            return replace(self, seen=reports)
        added = [counted_since(self.seen[name][1], counts) for name, counts in servers.items() if name in self.seen]
        # A server that does not report now may do so soon; what it counts meanwhile is not lost.
        oldest_s = now_s - LONG * drift.window.total_seconds()
        lately = {name: report for name, report in self.seen.items() if report[0] >= oldest_s}
        watch = replace(self, seen=lately | reports)
        watch = replace(watch, answers=watch.answers + int(sum(sum(each.get("emptyAnswers", ())) for each in added)))
        for number, length in enumerate((1, LONG)):
            watch = watch._with_scale(number, added, length * drift.window.total_seconds(), drift, now_s)
        over = now_s - watch.began_s >= drift.reference.window.duration.total_seconds()
        watch = replace(watch, complete=watch.complete or (over and watch._is_enough))
        watch = watch._with_whole(drift, now_s)._with_alarms(now_s)
        changed = (watch.complete, watch.found, watch._whole) != (self.complete, self.found, self._whole)
        learnt = any(one.ranges is not other.ranges for one, other in zip(watch.scales, self.scales, strict=True))
        checkpoint_s = max(drift.reference.window.duration.total_seconds() / CHECKPOINTS, 60.0)
        if changed or (learnt and now_s - watch.stored_s >= checkpoint_s):
            return replace(watch, stored=_packed(watch), stored_s=now_s)
        return watch

    def divergences(self) -> Iterator[DriftedHistogram]:
        """Yield how far the recent windows of each histogram are from the reference."""
        short = self.scales[0]
        for name, detector in short.detectors.items():
            if detector.windows:
                yield _drifted(name, short.ranges[name], detector)

    def without_reference(self, slices: Sequence[str]) -> tuple[str, ...]:
        """Return the slices of which nothing is compared yet."""
        short = self.scales[0]
        compared = {_parted(name)[0] for name in short.ranges.keys() - short.counting.keys()}
        return tuple(each for each in slices if each not in compared)

    @property
    def _whole(self) -> int:
        return sum(len(each.ranges) - len(each.counting) for each in self.scales)

    @property
    def _is_enough(self) -> bool:
        windows = max((each.windows for each in self.scales[0].ranges.values()), default=0)
        return windows >= MIN_REFERENCE_WINDOWS

    def _with_scale(
        self, number: int, added: Sequence[Histograms], length_s: float, drift: Drift, now_s: float
    ) -> DriftWatch:
        scale = self.scales[number]
        scale = replace(scale, counts=summed((scale.counts, *added), scale.ranges))
        if now_s - scale.opened_s >= length_s:
            whole = {name: counts for name, counts in scale.counts.items() if sum(counts) >= drift.min_answers}
            if whole:
                # What has too few observations stays open.
                rest = {name: counts for name, counts in scale.counts.items() if name not in whole}
                known = scale.ranges.keys() - scale.counting.keys()
                tested = {name: counts for name, counts in whole.items() if name in known}
                if tested:
                    scale = _tested(scale, tested, length_s, drift, _LEAST[number])
                if len(tested) < len(whole):
                    late = scale.opened_s - self.began_s > drift.reference.window.duration.total_seconds() / _EARLY
                    learnt = {name: counts for name, counts in whole.items() if name not in known}
                    scale = _learnt(scale, learnt, scale.opened_s if late else self.began_s)
                scale = replace(scale, opened_s=now_s, counts=rest)
        return replace(self, scales=(scale, self.scales[1]) if number == 0 else (self.scales[0], scale))

    def _with_whole(self, drift: Drift, now_s: float) -> DriftWatch:
        """Return the watch that compares the histograms whose references are whole now."""
        if not self.complete or not any(scale.counting for scale in self.scales):
            return self
        began_s = now_s - drift.reference.window.duration.total_seconds()
        short, long = self.scales
        # A reference that is too short for long windows does without them.
        short_left = {
            name: since_s
            for name, since_s in short.counting.items()
            if since_s > began_s or short.ranges[name].windows < MIN_REFERENCE_WINDOWS
        }
        long_left = {name: since_s for name, since_s in long.counting.items() if since_s > began_s}
        return replace(self, scales=(replace(short, counting=short_left), replace(long, counting=long_left)))

    def _with_alarms(self, now_s: float) -> DriftWatch:
        names = self.drifting
        if names == {each.name for each in self.found}:
            return self
        known = {each.name: each for each in self.found if each.name in names}
        for scale in self.scales:
            for name, detector in scale.detectors.items():
                if name in names - known.keys() and detector.drifting:
                    known[name] = _drifted(name, scale.ranges[name], detector)
        found = tuple(sorted(known.values(), key=lambda each: -each.psi))
        return replace(self, found=found, since_s=(self.since_s or now_s) if found else 0.0)


def basis_of(drift: Drift, slices: Sequence[str] = ()) -> str:
    """Return what a spec says of its reference, as text."""
    basis = drift.model_dump_json(include={"reference", "window", "min_answers"}, exclude_none=True)
    return f"{basis} {','.join(slices)}" if slices else basis


def with_slices(report: AnswersReport) -> Histograms:
    """Return all histograms that a server reports; keys of slices' histograms are the slice, a slash and the name."""
    of_slices = {f"{label}/{name}": each for label, counts in report.slices.items() for name, each in counts.items()}
    return {**report.histograms, **of_slices}


def _parted(name: str) -> tuple[str, str]:
    """Return the slice of a name, empty for none, and the histogram, whose class after the colon may have slashes."""
    label, slash, histogram = name.partition("/")
    return (label, histogram) if slash and ":" not in label else ("", name)


def _tested(scale: Scale, window: Histograms, length_s: float, drift: Drift, least: int) -> Scale:
    whole = scale.ranges.keys() - scale.counting.keys()
    usable = {name for name in whole if scale.ranges[name].windows >= least}
    bound = log_bound(drift.false_alarms_per_month, MONTH_S / length_s, 2 * max(len(usable), 1))
    detectors = dict(scale.detectors)
    for name in usable & window.keys():
        detector = detectors.get(name, Detector())
        detectors[name] = detector.updated(scale.ranges[name], window[name], TOLERANCE, bound)
    return replace(scale, detectors=detectors)


def _learnt(scale: Scale, window: Histograms, since_s: float) -> Scale:
    ranges, counting = dict(scale.ranges), dict(scale.counting)
    for name, counts in window.items():
        if name in ranges:
            ranges[name] = ranges[name].with_window(counts)
        elif len(ranges) < MOST_WATCHED:
            ranges[name], counting[name] = first_window(counts), since_s
    return replace(scale, ranges=ranges, counting=counting)


def _drifted(name: str, reference: ReferenceRange, detector: Detector) -> DriftedHistogram:
    p, q = bucket_shares(reference.counts), detector.shares
    return DriftedHistogram(name, psi(p, q), kl_divergence(p, q), tuple(p.tolist()), tuple(q.tolist()))


def counted_since(before: Histograms, now: Histograms) -> Histograms:
    """Return what a server has counted since; one that has restarted counts from zero."""
    added = {}
    for name, counts in now.items():
        former = before.get(name, ())
        grown = len(former) == len(counts) and sum(counts) >= sum(former)
        added[name] = tuple(max(a - b, 0) for a, b in zip(counts, former, strict=True)) if grown else counts
    return added


def summed(parts: Sequence[Histograms], ranges: Mapping[str, ReferenceRange]) -> Histograms:
    """Return the sums of histograms, without those that have another number of buckets than the reference's."""
    total: dict[str, tuple[float, ...]] = {}
    for part in parts:
        for name, counts in part.items():
            former = ranges[name].counts if name in ranges else total.get(name, counts)
            if len(former) != len(counts):
                continue
            if name in total:
                total[name] = tuple(np.add(total[name], counts).tolist())
            elif len(total) < MOST_WATCHED:
                total[name] = tuple(counts)
    return total


def _packed(watch: DriftWatch) -> str:
    return pack(
        {
            "version": _VERSION,
            "revision": watch.revision,
            "basis": watch.basis,
            "began": watch.began_s,
            "complete": watch.complete,
            "answers": watch.answers,
            "ranges": [{name: _plain(each) for name, each in scale.ranges.items()} for scale in watch.scales],
            "counting": [dict(scale.counting) for scale in watch.scales],
            "since": watch.since_s,
            "found": [[each.name, each.psi, each.kl, each.reference, each.recent] for each in watch.found],
        }
    )


def restored(text: str, now_s: float) -> DriftWatch:
    """Return the watch that `stored` is the text of; its windows begin now. Raises ValueError for any other text."""
    try:
        plain = unpack(text)
        if plain["version"] != _VERSION:
            raise ValueError(f"version {plain['version']!r} of a reference; {_VERSION} is known")
        found = tuple(DriftedHistogram(*each[:3], *map(tuple, each[3:5])) for each in plain["found"])
        alarmed = {each.name for each in found}
        scales = []
        for number, ranges in enumerate(plain["ranges"]):
            known = {name: _range(each) for name, each in ranges.items()}
            counting = {name: float(at_s) for name, at_s in plain["counting"][number].items() if name in known}
            scale = Scale(now_s, ranges=known, counting=counting)
            if number == 0:
                # The windows that begin now show whether it still drifts.
                alarms = {name: Detector(drifting=True) for name in alarmed & known.keys()}
                scale = replace(scale, detectors=alarms)
            scales.append(scale)
        short, long = scales
        watch = DriftWatch(
            plain["revision"], plain["basis"], plain["began"], (short, long), stored_s=now_s, stored=text
        )
        watch = replace(watch, answers=plain["answers"], found=found)
        return replace(watch, complete=plain["complete"], since_s=plain["since"])
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"not a stored reference: {error!r}") from error


def _plain(reference: ReferenceRange) -> list[Any]:
    ends = ([round(share, _DIGITS) for share in shares] for shares in (reference.low, reference.high))
    return [list(reference.counts), *ends, reference.windows]


def _range(plain: Sequence[Any]) -> ReferenceRange:
    counts, low, high, windows = plain
    if not len(counts) - 1 == len(low) == len(high) > 0:
        raise ValueError(f"{len(counts)} buckets, with {len(low)} and {len(high)} shares up to their edges")
    return ReferenceRange(tuple(counts), tuple(low), tuple(high), int(windows))
