"""Request counts from Envoy's statistics of a cluster, in attempts.

Envoy counts responses (its own 503 and 504 included), retries, and connections or streams that it closed itself because
a request timed out or its caller disconnected. So attempts are the sum of responses, retries and disconnected callers.

What a caller can provoke is not evidence. An attempt counts only if a server has had it: neither one that Envoy refused
because too many waited, nor one for which there was no connection in time, which says how busy the machine is. It
counts as failed only if the server is at fault: in HTTP a status from 500 on, in gRPC one of `FAULTS`. What Triton says
of requests that it cannot read is corrected before (`faults.lua`). A caller that leaves, with a deadline or without,
makes no attempt a failed one.

Each retry stands for an attempt that failed. Latencies are of whole requests, including a failed first attempt: from
the last byte of the request to the last byte of the response, in whole milliseconds. An HTTP response that breaks off
after its headers counts as a response without a latency.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

from segserve_common.files import read_file, write_private
from segserve_operator.adapters.traffic.envoy_clusters import Protocol, Upstream
from segserve_operator.core.rollout.counters import Series, SeriesCounts

Stats: TypeAlias = dict[str, int]
"""Values of one cluster by statistic; latency bins have the key `BIN` and their lower edge in milliseconds."""

LEFT: Final[Mapping[str, str]] = {"left.total_ms": "%DURATION%", "left.request_ms": "%REQUEST_DURATION%"}
"""Statistics of requests whose caller left before the answer began, with their values as Envoy formats them: all of
their time, and that until they had arrived."""
LEFT_CLUSTER: Final = "envoy.cluster_name"
"""Tag of these statistics that names the cluster."""
BIN: Final = "upstream_rq_time:"
LATENCIES: Final = "upstream_rq_time"
FAULTS: Final = (2, 4, 13, 14, 15)
"""The gRPC status codes that are a server's fault: unknown, deadline exceeded, internal, unavailable, data loss.
Resources are exhausted by callers, by their rate or by large images."""

_RETRIES, _TIMEOUTS = "upstream_rq_retry", "upstream_rq_timeout"
_REFUSED, _NOT_CONNECTED = "upstream_rq_active_overflow", "upstream_rq_pending_failure_eject"
_CONNECT_TIMEOUTS = "upstream_cx_connect_timeout"
# gRPC calls are counted when they end, by status; HTTP requests as soon as the response headers arrive.
_RESPONSES: Final[Mapping[Protocol, str]] = {"http": "upstream_rq_completed", "grpc": "grpc.total"}
_CANCELLED = "upstream_rq_cancelled"
_DISCONNECTED: Final = "callers gone"  # computed from others, not a statistic of Envoy
_ACTIVE: Final = ("upstream_rq_active", "upstream_rq_pending_active")
# Over HTTP/1.1 a request can only be cancelled by closing its connection. Envoy also does that before a retry, since it
# does not wait for the rest of a response that it will not pass on; failed gRPC responses end with their headers.
_CANCELLED_STATS: Final[Mapping[Protocol, tuple[str, ...]]] = {
    "http": ("upstream_cx_destroy_local_with_active_rq", _CANCELLED),
    "grpc": ("upstream_rq_tx_reset", _CANCELLED),
}
_CANCELLED_BY_ENVOY: Final[Mapping[Protocol, tuple[str, ...]]] = {
    "http": (_TIMEOUTS, "retry.upstream_rq_completed"),
    "grpc": (_TIMEOUTS,),
}
_FAILED: Final[Mapping[Protocol, tuple[str, ...]]] = {
    "http": ("upstream_rq_5xx",),
    "grpc": tuple(f"grpc.{status}" for status in FAULTS),
}
STATISTICS: Final = (
    *(*_RESPONSES.values(), _RETRIES, _REFUSED, _NOT_CONNECTED, _CONNECT_TIMEOUTS, *_ACTIVE, LATENCIES),
    *(name for stats in (_CANCELLED_STATS, _CANCELLED_BY_ENVOY, _FAILED) for names in stats.values() for name in names),
)


def stats_pattern(models: Iterable[str]) -> str:
    """Return a regular expression for the statistics that rollouts of these models use; without models, of all."""
    named = "|".join(re.escape(model) for model in sorted(models)) or "[^/]+"
    cluster = rf"({named})/[^/]+/infer/(http|grpc)"
    left = rf"({'|'.join(map(re.escape, LEFT))})\.{re.escape(LEFT_CLUSTER)}\.{cluster}"
    return rf"(cluster\.{cluster}\.({'|'.join(map(re.escape, STATISTICS))})|{left})"


def parse_stats(response: Mapping[str, Any]) -> dict[str, Stats]:
    """Return the statistics by cluster from a JSON response of Envoy's admin interface with detailed histograms."""
    by_cluster: dict[str, Stats] = {}
    for entry in response["stats"]:
        if "name" in entry:
            cluster, name = _split(entry["name"])
            by_cluster.setdefault(cluster, {})[name] = int(entry["value"])
            continue
        for histogram in entry["histograms"].get("details", ()):
            cluster, _ = _split(histogram["name"])
            bins = {f"{BIN}{float(b['lower_bound']):g}": int(b["count"]) for b in histogram["totals"]}
            by_cluster.setdefault(cluster, {}).update(bins)
    return by_cluster


def series_counts(stats: Mapping[str, int], protocol: Protocol) -> SeriesCounts:
    """Return the request counts that a cluster's statistics add up to."""
    retries, disconnected = stats.get(_RETRIES, 0), stats.get(_DISCONNECTED, _disconnected_callers(stats, protocol))
    # A connection that times out fails the request that it was for; a port that refuses it has no listener.
    never_sent = stats.get(_REFUSED, 0) + min(stats.get(_NOT_CONNECTED, 0), stats.get(_CONNECT_TIMEOUTS, 0))
    total_ms, request_ms = (stats.get(name, 0) for name in LEFT)
    bins = [(float(name.removeprefix(BIN)), count) for name, count in stats.items() if name.startswith(BIN) and count]
    return SeriesCounts(
        attempts=max(stats.get(_RESPONSES[protocol], 0) + retries + disconnected - never_sent, 0),
        failed=max(retries + _total_of(stats, _FAILED[protocol]) - never_sent, 0),
        given_up=disconnected + stats.get(_TIMEOUTS, 0),
        active=_total_of(stats, _ACTIVE),
        latencies=tuple(sorted(bins)),
        left=disconnected,
        waited_ms=max(total_ms - request_ms, 0),
    )


def counts_by_model(clusters: Mapping[str, Stats]) -> dict[str, dict[Series, SeriesCounts]]:
    """Return the request counts of each model, given the statistics of clusters by name."""
    by_model: dict[str, dict[Series, SeriesCounts]] = {}
    for name, stats in clusters.items():
        upstream = Upstream.parse(name)
        series = Series(upstream.group, upstream.protocol)
        by_model.setdefault(upstream.model, {})[series] = series_counts(stats, upstream.protocol)
    return by_model


@dataclass(slots=True)
class CumulativeStats:
    """Statistics that never fall within one epoch of Envoy.

    To Envoy, a cluster whose servers change is a new cluster: some of its statistics continue, others restart at zero.
    The values lost that way are added from then on. They are also kept in a file, because the operator that reads the
    sums outlives a restart of this process. A cluster that is gone is forgotten.
    """

    path: Path
    epoch: str = ""
    latest: dict[str, Stats] = field(default_factory=dict)
    lost: dict[str, Stats] = field(default_factory=dict)
    disconnected: dict[str, int] = field(default_factory=dict)

    def update(self, epoch: str, models: Iterable[str], current: Mapping[str, Stats]) -> dict[str, Stats]:
        """Return the sums of all clusters of these models; `current` is what Envoy reports of them now."""
        if epoch != self.epoch:
            self.latest, self.lost, self.disconnected = {}, self._read(epoch), {}
            self.epoch = epoch
        requested = set(models)
        lost_before = {name: dict(stats) for name, stats in self.lost.items()}
        for name in [n for n in self.latest.keys() | self.lost.keys() if Upstream.parse(n).model in requested]:
            self._compare(name, self.latest.get(name, {}), current.get(name))
        self.latest.update({name: dict(stats) for name, stats in current.items()})
        if self.lost != lost_before:
            write_private(self.path, json.dumps({"epoch": epoch, "lost": self.lost}))
        return {name: self._sum_of(name, stats) for name, stats in current.items()}

    def _compare(self, name: str, latest: Stats, current: Stats | None) -> None:
        if current is None:
            self.latest.pop(name, None)
            self.lost.pop(name, None)
            self.disconnected.pop(name, None)
            return
        fallen = {key: value for key, value in latest.items() if key not in _ACTIVE and current.get(key, 0) < value}
        if fallen:
            self.lost[name] = _added(self.lost.get(name, {}), fallen)

    def _sum_of(self, name: str, current: Stats) -> Stats:
        stats = _added(current, self.lost.get(name, {}))
        # Envoy does not read all its statistics at the same instant, so the difference of two of them may fall.
        stats[_DISCONNECTED] = max(
            _disconnected_callers(stats, Upstream.parse(name).protocol), self.disconnected.get(name, 0)
        )
        self.disconnected[name] = stats[_DISCONNECTED]
        return stats

    def _read(self, epoch: str) -> dict[str, Stats]:
        try:
            content = read_file(self.path, json.loads)
            return dict(content["lost"]) if content["epoch"] == epoch else {}
        except (OSError, LookupError, ValueError, TypeError):
            return {}


def _split(name: str) -> tuple[str, str]:
    """Split a full name into cluster and statistic; names of clusters contain slashes and may contain dots."""
    statistic, tagged, cluster = name.partition(f".{LEFT_CLUSTER}.")
    if tagged:
        return cluster, statistic
    parts = re.fullmatch(r"cluster\.(.*/infer/(?:http|grpc))\.(.*)", name)
    if parts is None:
        raise ValueError(f"{name!r} is not a statistic of a cluster for inference")
    return parts[1], parts[2]


def _disconnected_callers(stats: Mapping[str, int], protocol: Protocol) -> int:
    return max(_total_of(stats, _CANCELLED_STATS[protocol]) - _total_of(stats, _CANCELLED_BY_ENVOY[protocol]), 0)


def _total_of(stats: Mapping[str, int], names: Iterable[str]) -> int:
    return sum(stats.get(name, 0) for name in names)


def _added(stats: Mapping[str, int], more: Mapping[str, int]) -> Stats:
    return {key: stats.get(key, 0) + more.get(key, 0) for key in stats.keys() | more.keys()}
