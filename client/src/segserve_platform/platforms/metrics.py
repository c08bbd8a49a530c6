"""A platform's metrics as Prometheus has them, read from the platform of this machine or from a Prometheus."""

from __future__ import annotations

import json
import re
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import httpx

from segserve_common.http.urls import is_proxied
from segserve_platform.platforms.errors import ControlError, NoPlatformError

if TYPE_CHECKING:
    from segserve_operator.adapters.local.files import StateFolder

TIMEOUT_S: Final = 35.0
FAULTS: Final = (2, 4, 13, 14, 15)
"""gRPC statuses that are a server's fault."""
MATCHED: Final = (
    r'{__name__=~"segserve_(cost|agent_server)_.+"}',
    r'{__name__=~"nv_(inference_(queue_duration_us|request_success)|gpu_.+)"}',
    r'{__name__=~"envoy_cluster_(upstream_rq_(completed|xx|active|time_bucket)|grpc_.+)",'
    r'envoy_cluster_name=~".+/.+/infer/.+"}',
)
"""The series of a Prometheus that are read."""
_SAMPLE: Final = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)(?: (\d+))?")
_LABEL: Final = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')

Labels: TypeAlias = Mapping[str, str]


class MetricSeries(NamedTuple):
    """A series and its value; `at_s` is the Unix time of a Prometheus' scrape, None for what was just read."""

    name: str
    labels: Labels
    value: float
    at_s: float | None = None

    def has(self, labels: Labels) -> bool:
        """Return whether it has these labels."""
        return all(self.labels.get(key) == value for key, value in labels.items())


@dataclass(frozen=True, slots=True)
class MetricsSnapshot:
    """All series at one time (Unix seconds)."""

    at_s: float
    series: tuple[MetricSeries, ...]

    def sums(self, name: str, *by: str, **having: str) -> dict[tuple[str, ...], float]:
        """Return the sums of a metric's series by the values of labels, of those that have the labels `having`."""
        totals: defaultdict[tuple[str, ...], float] = defaultdict(float)
        for series in self.series:
            if series.name == name and series.has(having):
                totals[tuple(series.labels.get(each, "") for each in by)] += series.value
        return dict(totals)


def read_series(text: str, namespace: str | None = None) -> Iterator[MetricSeries]:
    """Yield the series of a text; Envoy's about models get the labels `model`, `group` and `protocol`.

    With a namespace, only its series, and series without a namespace.
    """
    for line in text.splitlines():
        found = None if line.startswith("#") else _SAMPLE.match(line)
        if found is None:
            continue
        labels = dict(_LABEL.findall(found[2] or ""))
        if namespace is not None and labels.get("namespace", namespace) != namespace:
            continue
        cluster = labels.get("envoy_cluster_name", "").split("/")
        if len(cluster) == 4:
            if cluster[2] != "infer":
                continue
            labels |= {"model": cluster[0], "group": cluster[1], "protocol": cluster[3]}
        yield MetricSeries(found[1], labels, float(found[3]), int(found[4]) / 1000 if found[4] else None)


@dataclass(frozen=True, slots=True)
class MetricsSource:
    """Where metrics are read: at the URL of a Prometheus, or else at the socket of this machine's platform.

    Models of two namespaces may have one name: without a namespace, a Prometheus must have the metrics of only one.
    """

    state: StateFolder | None = None
    prometheus: str | None = None
    namespace: str | None = None

    def snapshot(self) -> MetricsSnapshot:
        """Read all metrics now; raises `ControlError` if they cannot be had."""
        text = self._of_prometheus(self.prometheus) if self.prometheus is not None else self._of_machine()
        series = tuple(read_series(text, self.namespace))
        namespaces = sorted({each.labels["namespace"] for each in series if "namespace" in each.labels})
        if self.prometheus is not None and len(namespaces) > 1:
            raise ControlError(
                f"the Prometheus at {self.prometheus} has metrics of the namespaces {', '.join(namespaces)}: choose "
                "one with --namespace"
            )
        return MetricsSnapshot(time.time(), series)

    def query_range(self, url: str, query: str, start_s: float, end_s: float, step_s: float) -> list[Any]:
        """Return the series of a query at a Prometheus, each with `metric` and `values`; raises `ControlError`."""
        times = {"start": f"{start_s:.0f}", "end": f"{end_s:.0f}", "step": f"{step_s:.0f}"}
        text = self._read(url, "api/v1/query_range", {"query": query, **times})
        try:
            return list(json.loads(text)["data"]["result"])
        except (ValueError, LookupError, TypeError) as error:
            raise ControlError(f"{url} is not a Prometheus: it answers {text[:200]!r}") from error

    def _of_prometheus(self, url: str) -> str:
        return self._read(url, "federate", {"match[]": list(MATCHED)})

    def _read(self, url: str, path: str, given: Mapping[str, str | list[str]]) -> str:
        try:
            address = f"{url.rstrip('/')}/{path}"
            answer = httpx.get(address, params=given, timeout=TIMEOUT_S, trust_env=is_proxied(url))
        except (httpx.HTTPError, httpx.InvalidURL, ImportError, OSError, ValueError) as error:  # of the environment too
            raise ControlError(
                f"the Prometheus at {url} does not answer: {str(error) or type(error).__name__}"
            ) from error
        if not answer.is_success:
            raise ControlError(f"the Prometheus at {url} answers {answer.status_code}: {answer.text[:200]!r}")
        return answer.text

    def _of_machine(self) -> str:
        if self.state is None:
            raise ControlError("metrics of a cluster are read from its Prometheus: --prometheus URL")
        socket, advice = self.state.metrics_socket, "`segserve up` starts one; an earlier version has no metrics"
        if not socket.exists():
            raise NoPlatformError(f"no platform answers at {socket}: {advice}")
        try:
            # No proxy leads to a socket of this machine.
            transport = httpx.HTTPTransport(uds=str(socket))
            with httpx.Client(transport=transport, timeout=TIMEOUT_S, trust_env=False) as client:
                return client.get("http://platform/metrics").raise_for_status().text
        except httpx.HTTPError as error:
            raise NoPlatformError(f"no platform answers at {socket}: {advice}") from error


def _grown(
    before: MetricsSnapshot, now: MetricsSnapshot, name: str, having: Labels
) -> Iterator[tuple[Labels, float, float]]:
    """Yield the labels of each counter, how much it has grown between two snapshots, and in how many seconds.

    One that fell began anew. What one that is gone has counted since is unknown, and left out.
    """
    former = {frozenset(each.labels.items()): each for each in before.series if each.name == name}
    for series in now.series:
        if series.name == name and series.has(having):
            since = former.get(frozenset(series.labels.items()), MetricSeries(name, series.labels, 0.0))
            lasted_s = now.at_s - before.at_s
            if series.at_s is not None and since.at_s is not None and series.at_s > since.at_s:
                lasted_s = series.at_s - since.at_s
            grown = series.value - since.value
            yield series.labels, grown if grown >= 0 else series.value, max(lasted_s, 1e-9)


def increases(
    before: MetricsSnapshot, now: MetricsSnapshot, name: str, *by: str, **having: str
) -> dict[tuple[str, ...], float]:
    """Return the sums by labels of how much counters have grown between two snapshots."""
    totals: defaultdict[tuple[str, ...], float] = defaultdict(float)
    for labels, grown, _ in _grown(before, now, name, having):
        totals[tuple(labels.get(each, "") for each in by)] += grown
    return dict(totals)


def rates(
    before: MetricsSnapshot, now: MetricsSnapshot, name: str, *by: str, **having: str
) -> dict[tuple[str, ...], float]:
    """Return the same by second: between the snapshots, or between the scrapes that they have of a Prometheus."""
    totals: defaultdict[tuple[str, ...], float] = defaultdict(float)
    for labels, grown, lasted_s in _grown(before, now, name, having):
        totals[tuple(labels.get(each, "") for each in by)] += grown / lasted_s
    return dict(totals)


def quantile(buckets: Mapping[float, float], share: float) -> float | None:
    """Return a quantile of cumulative buckets by upper edge, as `histogram_quantile` does; None without requests."""
    edges = sorted(buckets)
    total = buckets[edges[-1]] if edges else 0.0
    if total <= 0:
        return None
    lower, below = 0.0, 0.0
    for edge in edges:
        if buckets[edge] >= share * total:
            if edge == float("inf"):
                return lower
            inside = buckets[edge] - below
            return lower + (edge - lower) * ((share * total - below) / inside if inside else 1.0)
        lower, below = edge, buckets[edge]
    return lower
