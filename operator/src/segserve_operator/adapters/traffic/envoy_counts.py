"""What Envoy's statistics say of the requests to a cluster, in attempts.

Envoy counts answers (its own of 503 and 504 included), retries, and connections or streams that it ended itself, where
a request took too long or its caller went away. So attempts are answers, retries, and those whose callers went away;
each retry stands for an attempt that failed. Latencies are of whole requests, a first attempt that failed included:
from their last byte in to the answer's last byte, in whole milliseconds. An answer over HTTP that is cut off after
its headers counts as one, without a latency.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

from segserve_operator.adapters.local.files import replace_file
from segserve_operator.adapters.traffic.envoy_clusters import Protocol, Upstream
from segserve_operator.core.rollout.counters import Series, Tally

Stats: TypeAlias = dict[str, int]
"""Values of one cluster by statistic; bins of its latencies by `BIN` and their lower edge in milliseconds."""

BIN: Final = "upstream_rq_time:"
LATENCIES: Final = "upstream_rq_time"
FAULTS: Final = (2, 4, 8, 13, 14, 15)
"""The statuses of gRPC that are a server's fault: unknown, deadline exceeded, resource exhausted, internal,
unavailable, data loss."""

_RETRIES, _TIMEOUTS = "upstream_rq_retry", "upstream_rq_timeout"
# gRPC's calls are counted when they end, with their status; the other is counted at the headers of an answer.
_ANSWERS: Final[Mapping[Protocol, str]] = {"http": "upstream_rq_completed", "grpc": "grpc.total"}
_CANCELLED = "upstream_rq_cancelled"
_GONE: Final = "callers gone"  # worked out of others
_ACTIVE: Final = ("upstream_rq_active", "upstream_rq_pending_active")
# HTTP/1.1 knows no other way of taking a request back than to end its connection; Envoy does that also where it asks
# again, for it does not wait for the end of an answer that it will not pass on. Those of gRPC end with their headers.
_TAKEN_BACK: Final[Mapping[Protocol, tuple[str, ...]]] = {
    "http": ("upstream_cx_destroy_local_with_active_rq", _CANCELLED),
    "grpc": ("upstream_rq_tx_reset", _CANCELLED),
}
_TAKEN_BACK_BY_ENVOY: Final[Mapping[Protocol, tuple[str, ...]]] = {
    "http": (_TIMEOUTS, "retry.upstream_rq_completed"),
    "grpc": (_TIMEOUTS,),
}
_FAILED: Final[Mapping[Protocol, tuple[str, ...]]] = {
    "http": ("upstream_rq_5xx",),
    "grpc": tuple(f"grpc.{status}" for status in FAULTS),
}
STATISTICS: Final = (
    *(*_ANSWERS.values(), _RETRIES, *_ACTIVE, LATENCIES),
    *(each for by in (_TAKEN_BACK, _TAKEN_BACK_BY_ENVOY, _FAILED) for names in by.values() for each in names),
)


def pattern(models: Iterable[str]) -> str:
    """Return the regular expression of the statistics that are evidence on these models; of all where none is named."""
    named = "|".join(re.escape(model) for model in sorted(models)) or "[^/]+"
    return rf"cluster\.({named})/[^/]+/infer/(http|grpc)\.({'|'.join(map(re.escape, STATISTICS))})"


def parsed(answer: Mapping[str, Any]) -> dict[str, Stats]:
    """Return by cluster what Envoy's admin interface said in JSON, with detailed histograms."""
    found: dict[str, Stats] = {}
    for entry in answer["stats"]:
        if "name" in entry:
            cluster, name = _split(entry["name"])
            found.setdefault(cluster, {})[name] = int(entry["value"])
            continue
        for histogram in entry["histograms"].get("details", ()):
            cluster, _ = _split(histogram["name"])
            bins = {f"{BIN}{float(b['lower_bound']):g}": int(b["count"]) for b in histogram["totals"]}
            found.setdefault(cluster, {}).update(bins)
    return found


def tally(stats: Mapping[str, int], protocol: Protocol) -> Tally:
    """Return what a cluster's statistics amount to."""
    retries, gone = stats.get(_RETRIES, 0), stats.get(_GONE, _callers_gone(stats, protocol))
    bins = [(float(name.removeprefix(BIN)), count) for name, count in stats.items() if name.startswith(BIN) and count]
    return Tally(
        attempts=stats.get(_ANSWERS[protocol], 0) + retries + gone,
        failed=retries + _added(stats, _FAILED[protocol]),
        given_up=gone + stats.get(_TIMEOUTS, 0),
        active=_added(stats, _ACTIVE),
        latencies=tuple(sorted(bins)),
    )


def _callers_gone(stats: Mapping[str, int], protocol: Protocol) -> int:
    return max(_added(stats, _TAKEN_BACK[protocol]) - _added(stats, _TAKEN_BACK_BY_ENVOY[protocol]), 0)


def tallies(clusters: Mapping[str, Stats]) -> dict[str, dict[Series, Tally]]:
    """Return by model what its clusters' statistics amount to."""
    found: dict[str, dict[Series, Tally]] = {}
    for name, stats in clusters.items():
        upstream = Upstream.parse(name)
        series = Series(upstream.group, upstream.protocol)
        found.setdefault(upstream.model, {})[series] = tally(stats, upstream.protocol)
    return found


@dataclass(slots=True)
class Totals:
    """Keeps statistics from falling within one epoch of Envoy.

    A cluster whose servers change is another one to Envoy: some of its statistics go on and the others begin at zero.
    What they had come to is added from then on, and kept in a file, for who reads it goes on after its own end. A
    cluster that is gone is forgotten.
    """

    path: Path
    epoch: str = ""
    last: dict[str, Stats] = field(default_factory=dict)
    lost: dict[str, Stats] = field(default_factory=dict)
    gone: dict[str, int] = field(default_factory=dict)

    def take(self, epoch: str, models: Iterable[str], found: Mapping[str, Stats]) -> dict[str, Stats]:
        """Return the totals of all clusters of these models; `found` are their statistics now."""
        if epoch != self.epoch:
            self.last, self.lost, self.gone = {}, self._read(epoch), {}
            self.epoch = epoch
        asked, before = set(models), {name: dict(stats) for name, stats in self.lost.items()}
        for name in [n for n in self.last.keys() | self.lost.keys() if Upstream.parse(n).model in asked]:
            self._compare(name, self.last.get(name, {}), found.get(name))
        self.last.update({name: dict(stats) for name, stats in found.items()})
        if self.lost != before:
            replace_file(self.path, json.dumps({"epoch": epoch, "lost": self.lost}))
        return {name: self._total(name, stats) for name, stats in found.items()}

    def _total(self, name: str, stats: Stats) -> Stats:
        """Return the totals of a cluster. Envoy does not read its statistics all at one moment: differences waver."""
        total = _sum(stats, self.lost.get(name, {}))
        total[_GONE] = max(_callers_gone(total, Upstream.parse(name).protocol), self.gone.get(name, 0))
        self.gone[name] = total[_GONE]
        return total

    def _compare(self, name: str, last: Stats, now: Stats | None) -> None:
        if now is None:
            self.last.pop(name, None)
            self.lost.pop(name, None)
            self.gone.pop(name, None)
            return
        fallen = {key: value for key, value in last.items() if key not in _ACTIVE and now.get(key, 0) < value}
        if fallen:
            self.lost[name] = _sum(self.lost.get(name, {}), fallen)

    def _read(self, epoch: str) -> dict[str, Stats]:
        try:
            found = json.loads(self.path.read_text())
            return dict(found["lost"]) if found["epoch"] == epoch else {}
        except (OSError, LookupError, ValueError, TypeError):
            return {}


def _split(name: str) -> tuple[str, str]:
    """Return the cluster and the statistic of a full name; the names of clusters have slashes and may have dots."""
    purposes = re.fullmatch(r"cluster\.(.*/infer/(?:http|grpc))\.(.*)", name)
    if purposes is None:
        raise ValueError(f"{name!r} is no statistic of a cluster for inference")
    return purposes[1], purposes[2]


def _added(stats: Mapping[str, int], names: Iterable[str]) -> int:
    return sum(stats.get(name, 0) for name in names)


def _sum(stats: Mapping[str, int], more: Mapping[str, int]) -> Stats:
    return {key: stats.get(key, 0) + more.get(key, 0) for key in stats.keys() | more.keys()}
