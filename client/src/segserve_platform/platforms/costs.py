"""Costs of requests from a platform's metrics, by model, revision, caller and slice, and in OpenCost's formats."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from segserve_common.kube.names import CAPTURE_CONTAINER, COMPARATOR_CONTAINER, ENVOY_CONTAINER
from segserve_operator.core.cost import HOUR_S, Prices, Use, unit_costs
from segserve_platform.platforms.history import LoggedRequest
from segserve_platform.platforms.metrics import CONTAINER_CPU, MetricsSnapshot

NOBODY: Final = "(none)"
"""Name of requests without a caller or slice."""
OTHER: Final = "other"
COMPLETED: Final = "envoy_cluster_upstream_rq_completed"
MOST_NAMES: Final = 50
"""Callers or slices that are listed by name; the others are one."""
BYTES_OF_A_REQUEST: Final = 400_000.0
"""As many bytes cost the gateway as much CPU as a request of none does: 0.27 ms each (measured, Envoy 1.40)."""

CallerKind: TypeAlias = Literal["caller", "slice"]


class CallerUse(NamedTuple):
    """Answered requests of one caller or slice, as the gateway knows them."""

    requests: float = 0.0
    server_s: float = 0.0
    bytes: float = 0.0

    def plus(self, other: CallerUse) -> CallerUse:
        """Return the sum of both."""
        return CallerUse(*(one + more for one, more in zip(self, other, strict=True)))


OwnerKey: TypeAlias = tuple[str, str, str]
"""Pool, model and revision; the pool is empty where what was counted does not say it, as on this machine."""
CallerUses: TypeAlias = Mapping[OwnerKey, Mapping[str, CallerUse]]
"""By revision, and then by the name of a caller or slice."""
MeanPixels: TypeAlias = Mapping[OwnerKey, Mapping[str, float]]
"""By revision, and then by the name of a slice or caller; "" is the mean of all."""


@dataclass(frozen=True, slots=True)
class CostRow:
    """The use of a revision, or of the requests of one caller or slice to it."""

    pool: str
    model: str
    revision: str
    use: Use
    prices: Prices
    name: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return it with the names of the command's JSON."""
        use = self.use
        named = {"pool": self.pool, "model": self.model, "revision": self.revision, "name": self.name}
        used = {
            "requests": use.requests,
            "cpuSeconds": use.cpu_s,
            "gatewayCpuSeconds": use.gateway_cpu_s,
            "gpuSeconds": use.gpu_s,
            "memoryByteSeconds": use.memory_byte_s,
            "megapixels": use.megapixels,
            "bytes": use.bytes,
        }
        currency = {"currency": self.prices.currency} if self.prices.any else {}
        return {key: value for key, value in named.items() if value} | used | dict(self.unit_costs) | currency

    @property
    def unit_costs(self) -> Mapping[str, float]:
        """What can be divided: CPU time and money by request and by megapixel, by their names in JSON."""
        return unit_costs(self.use, self.prices)


def cost_rows(snapshot: MetricsSnapshot) -> list[CostRow]:
    """Return what each revision has used, the dearest first; what belongs to no revision is last, without a name."""
    by = ("namespace", "pool", "model", "revision")
    prices = _prices(snapshot)
    cpu_s = snapshot.sums("segserve_cost_cpu_seconds_total", *by)
    gpu_s = snapshot.sums("segserve_cost_gpu_seconds_total", *by)
    memory = snapshot.sums("segserve_cost_memory_byte_seconds_total", *by)
    requests = snapshot.sums("segserve_cost_requests_total", *by)
    tests = snapshot.sums("segserve_cost_tests_total", *by)
    calls = {key: max(count - tests.get(key, 0.0), 0.0) for key, count in requests.items()}
    pixels = snapshot.sums("segserve_image_pixels_sum", *by)
    images = snapshot.sums("segserve_image_pixels_count", *by)
    # Costs outlast a restart of Triton, the counts of pixels do not: only their mean belongs to all calls.
    megapixels = {
        key: calls.get(key, 0.0) * pixels.get(key, 0.0) / count / 1e6 for key, count in images.items() if count
    }
    gateway_bytes = _of_revisions(snapshot, _group_bytes(snapshot))
    gateway_cpu_s = _gateway_cpu_s(snapshot)
    keys = dict.fromkeys([*cpu_s, *gateway_cpu_s])
    rows = [
        CostRow(
            key[1],
            key[2],
            key[3],
            Use(
                cpu_s=cpu_s.get(key, 0.0) + gateway_cpu_s.get(key, 0.0),
                gateway_cpu_s=gateway_cpu_s.get(key, 0.0),
                gpu_s=gpu_s.get(key, 0.0),
                memory_byte_s=memory.get(key, 0.0),
                requests=requests.get(key, 0.0),
                calls=calls.get(key, 0.0),
                megapixels=megapixels.get(key, 0.0),
                bytes=float(round(gateway_bytes.get(key, 0.0))),
            ),
            prices(key[0], key[1]),
        )
        for key in keys
    ]
    return sorted(rows, key=lambda row: (not row.model, -row.prices.money(row.use), -row.use.cpu_s))


_OF_A_RUN: Final = ("id", "name", "image")
"""Labels of cAdvisor that a container has anew after a restart."""
_RevisionKey: TypeAlias = tuple[str, ...]
"""Namespace, pool, model and revision."""
_GROUP: Final = ("namespace", "pool", "model", "group")


def _group_bytes(snapshot: MetricsSnapshot) -> dict[tuple[str, ...], float]:
    """Return the gateway's bytes to and from the servers by namespace, pool, model and group."""
    total: defaultdict[tuple[str, ...], float] = defaultdict(float)
    for direction in ("rx", "tx"):
        name = f"envoy_cluster_upstream_cx_{direction}_bytes_total"
        for group, count in snapshot.sums(name, *_GROUP).items():
            total[group] += count
    return total


def _of_revisions(
    snapshot: MetricsSnapshot, of_groups: Mapping[tuple[str, ...], float]
) -> defaultdict[_RevisionKey, float]:
    """Divide what gateways count by `_GROUP` among a group's revisions, in proportion to their requests."""
    found: defaultdict[_RevisionKey, float] = defaultdict(float)
    answered = snapshot.sums("segserve_cost_requests_total", *_GROUP)
    by = ("namespace", "pool", "model", "revision", "group")
    for (*key, group), count in snapshot.sums("segserve_cost_requests_total", *by).items():
        if count:
            of_group = (*key[:3], group)
            found[tuple(key)] += of_groups.get(of_group, 0.0) * count / answered[of_group]
    return found


def _gateway_cpu_s(snapshot: MetricsSnapshot) -> Mapping[_RevisionKey, float]:
    """Return the CPU time of gateways by revision; that of containers beside Envoy, and what is left, is nobody's."""
    weights = snapshot.sums(COMPLETED, *_GROUP)
    for group, count in _group_bytes(snapshot).items():
        weights[group] = weights.get(group, 0.0) + count / BYTES_OF_A_REQUEST
    found: defaultdict[_RevisionKey, float] = defaultdict(float)
    for pool, used in _gateway_use(snapshot).items():
        own = {group: weight for group, weight in weights.items() if pool is None or group[:2] == pool}
        whole, total_s = sum(own.values()) or 1.0, sum(used.values())
        shares = _of_revisions(
            snapshot, {group: used[ENVOY_CONTAINER] * weight / whole for group, weight in own.items()}
        )
        known = pool or next(iter(snapshot.sums("segserve_cost_requests_total", "namespace", "pool")), ("", ""))
        shares[*known, "", ""] += max(total_s - sum(shares.values()), 0.0)
        for key, cpu_s in shares.items():
            found[key] += cpu_s
    return found


def _gateway_use(snapshot: MetricsSnapshot) -> Mapping[tuple[str, ...] | None, Mapping[str, float]]:
    """Return the CPU time of gateways by process or container, by namespace and pool; None is this machine's only one.

    On a cluster kubelets count it, by pods, whose pool the series of their Envoys have.
    """
    used: defaultdict[tuple[str, ...] | None, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
    for (process,), cpu_s in snapshot.sums("segserve_process_cpu_seconds_total", "process").items():
        if process in (ENVOY_CONTAINER, COMPARATOR_CONTAINER, CAPTURE_CONTAINER):
            used[None][process] += cpu_s
    pools = {key[:2]: (key[0], key[2]) for key in snapshot.sums(COMPLETED, "namespace", "pod", "pool")}
    endpoints: defaultdict[frozenset[tuple[str, str]], float] = defaultdict(float)
    for series in snapshot.series:
        if series.name == CONTAINER_CPU:
            # A restarted container is two series for a while, which start at 0 each.
            endpoints[frozenset(item for item in series.labels.items() if item[0] not in _OF_A_RUN)] += series.value
    containers: dict[tuple[str, ...], float] = {}
    for items, cpu_s in endpoints.items():
        labels = dict(items)
        key = tuple(labels.get(each, "") for each in ("namespace", "pod", "container"))
        # Who scrapes both of a kubelet's endpoints has each container twice.
        containers[key] = max(cpu_s, containers.get(key, 0.0))
    for key, cpu_s in containers.items():
        if key[:2] in pools:
            used[pools[key[:2]]][key[2]] += cpu_s
    return used


def _prices(snapshot: MetricsSnapshot) -> Callable[[str, str], Prices]:
    names = {"cpuHour": "cpu_hour", "gpuHour": "gpu_hour", "memoryGiBHour": "memory_gib_hour"}
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for series in snapshot.series:
        resource = names.get(series.labels.get("resource", ""))
        if series.name == "segserve_cost_price" and resource is not None:
            of_pool = found.setdefault((series.labels.get("namespace", ""), series.labels.get("pool", "")), {})
            of_pool |= {resource: series.value, "currency": series.labels.get("currency", "USD")}
    return lambda namespace, pool: Prices(**found.get((namespace, pool), {}))


def counted_callers(snapshot: MetricsSnapshot, by: CallerKind) -> CallerUses:
    """Return what the gateway has counted (`spec.gateway.callerMetrics`); empty if it does not count."""
    labels, prefix = ("pool", "model", "revision", by), f"envoy_segserve_{by}"
    requests = snapshot.sums(f"{prefix}_requests", *labels)
    server_us = snapshot.sums(f"{prefix}_server_microseconds", *labels)
    received = snapshot.sums(f"{prefix}_received_bytes", *labels)
    sent = snapshot.sums(f"{prefix}_sent_bytes", *labels)
    found: defaultdict[OwnerKey, dict[str, CallerUse]] = defaultdict(dict)
    for key, count in requests.items():
        total = received.get(key, 0.0) + sent.get(key, 0.0)
        pool, model, revision, name = key
        found[pool, model, revision][name or NOBODY] = CallerUse(count, server_us.get(key, 0.0) / 1e6, total)
    return found


def logged_callers(requests: Iterable[LoggedRequest], by: CallerKind) -> CallerUses:
    """Return the same of the answered requests in an access log."""
    found: defaultdict[OwnerKey, dict[str, CallerUse]] = defaultdict(dict)
    for request in requests:
        fields = request.fields
        if not fields.get("revision") or request.ended_as is not None:
            continue
        amounts = (fields.get(name) or 0 for name in ("server_duration_ms", "bytes_received", "bytes_sent"))
        server_ms, received, sent = map(float, amounts)
        uses = found["", str(request.model), str(fields["revision"])]
        name = str(fields.get(by) or NOBODY)
        uses[name] = uses.get(name, CallerUse()).plus(CallerUse(1.0, server_ms / 1000, received + sent))
    return found


def slice_pixels(snapshot: MetricsSnapshot) -> MeanPixels:
    """Return the mean pixels of an image by slice, of revisions whose steps count by slice."""
    by = ("pool", "model", "revision", "slice")
    pixels = snapshot.sums("segserve_image_pixels_sum", *by)
    sums: defaultdict[OwnerKey, dict[str, tuple[float, float]]] = defaultdict(dict)
    for key, images in snapshot.sums("segserve_image_pixels_count", *by).items():
        pool, model, revision, label = key
        if label and images:
            sums[pool, model, revision][label] = (pixels.get(key, 0.0), images)
    return {
        key: {label: total / images for label, (total, images) in own.items()}
        | {"": sum(total for total, _ in own.values()) / sum(images for _, images in own.values())}
        for key, own in sums.items()
    }


def caller_pixels(pixels: MeanPixels, uses: CallerUses) -> MeanPixels:
    """Return the same by caller, of revisions some of whose slices are callers (`callerMetrics.sliceByCaller`)."""
    found = {}
    for key, own in pixels.items():
        # Of callers without a slice of their own is what steps count as one.
        others = {label: mean for label, mean in own.items() if label in ("", OTHER)}
        labels = {name: name.partition(":")[2] for name in _uses_of(uses, key)}
        named = {name: own[label] for name, label in labels.items() if label in own.keys() - others.keys()}
        if named:
            found[key] = others | named
    return found


def divided(rows: Iterable[CostRow], uses: CallerUses, pixels: MeanPixels | None = None) -> Iterator[CostRow]:
    """Yield each row by caller or slice, the dearest first: in proportion to the servers' time for their requests.

    The sums are those of the row. The names of the dearest stay, and the others are one; agents' tests, and what the
    gateway does not know, are nobody's. Megapixels are unknown without the mean `pixels` of their images.
    """
    known = pixels or {}
    keys = [(row, (row.pool, row.model, row.revision)) for row in rows]
    listed = [(row, list(_shares(row.use, _uses_of(uses, key), known.get(key, {})))) for row, key in keys]
    weights: defaultdict[str, float] = defaultdict(float)
    for _, shares in listed:
        for name, use in shares:
            weights[name] += use.cpu_s
    named = set(heapq.nlargest(MOST_NAMES, weights, key=lambda name: weights[name])) | {NOBODY}
    for row, shares in listed:
        parts: defaultdict[str, Use] = defaultdict(Use)
        for name, use in shares:
            key = name if name in named else OTHER
            parts[key] = parts[key].plus(use)
        for name, use in sorted(parts.items(), key=lambda item: -item[1].cpu_s):
            yield replace(row, use=use, name=name)


def _uses_of(uses: CallerUses, key: OwnerKey) -> Mapping[str, CallerUse]:
    return uses.get(key) or uses.get(("", *key[1:]), {})


def _shares(use: Use, uses: Mapping[str, CallerUse], pixels: Mapping[str, float]) -> Iterator[tuple[str, Use]]:
    """Yield the parts of a revision's use by name; one name may have two."""
    use = use if pixels else replace(use, megapixels=0.0)
    requests, server_s, size = (sum(amounts) for amounts in zip(*uses.values(), strict=True)) if uses else (0, 0, 0)
    if not requests:
        yield NOBODY, use
        return
    # Steps count slices that the model does not declare, and requests of none, as one.
    areas = {
        name: own.requests * pixels.get(name, pixels.get(OTHER, pixels.get("", 0.0))) for name, own in uses.items()
    }
    area = sum(areas.values())
    # Tests by agents do not pass the gateway, and cost a server as much as a call does.
    of_calls = use.calls / use.requests if use.requests else 1.0
    at_servers = replace(use, cpu_s=use.cpu_s - use.gateway_cpu_s, gateway_cpu_s=0.0, calls=0.0, bytes=0.0)
    if of_calls < 1:
        yield NOBODY, replace(at_servers.scaled(1 - of_calls), megapixels=0.0)
    for name, own in uses.items():
        of_requests = own.requests / requests
        of_time = own.server_s / server_s if server_s else of_requests
        called, gateway_cpu_s = at_servers.scaled(of_calls * of_time), use.gateway_cpu_s * of_time
        yield (
            name,
            replace(
                called,
                cpu_s=called.cpu_s + gateway_cpu_s,
                gateway_cpu_s=gateway_cpu_s,
                requests=use.requests * of_calls * of_requests,
                calls=use.calls * of_requests,
                bytes=use.bytes * (own.bytes / size if size else of_requests),
                megapixels=use.megapixels * (areas[name] / area if area else of_requests),
            ),
        )


def allocations(rows: Iterable[CostRow], snapshot: MetricsSnapshot) -> dict[str, Any]:
    """Return the rows as OpenCost's allocation API gives them: one window, with allocations by name."""
    start, end, seconds = _window(snapshot)
    found = {}
    for row in rows:
        use, price = row.use, row.prices.money
        found[_unique_name(row)] = {
            "name": _unique_name(row),
            "properties": {"labels": _labels(row)},
            "window": {"start": start, "end": end},
            "start": start,
            "end": end,
            "minutes": seconds / 60,
            "cpuCores": use.cpu_s / seconds if seconds else 0.0,
            "cpuCoreHours": use.cpu_s / HOUR_S,
            "cpuCost": price(Use(cpu_s=use.cpu_s)),
            "gpuHours": use.gpu_s / HOUR_S,
            "gpuCost": price(Use(gpu_s=use.gpu_s)),
            "ramBytes": use.memory_byte_s / seconds if seconds else 0.0,
            "ramByteHours": use.memory_byte_s / HOUR_S,
            "ramCost": price(Use(memory_byte_s=use.memory_byte_s)),
            "totalCost": price(use),
        }
    return {"code": 200, "status": "success", "data": [found]}


def custom_costs(rows: Iterable[CostRow], snapshot: MetricsSnapshot) -> list[dict[str, Any]]:
    """Return the rows as responses of an OpenCost plugin (`CustomCostResponse`, JSON of protobuf), one by currency."""
    start, end, _ = _window(snapshot)
    by_currency: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        money = row.prices.money(row.use)
        cost = {
            "id": _unique_name(row),
            "resourceName": row.model or NOBODY,
            "resourceType": "model",
            "description": "requests of a revision" + (f" by {row.name}" if row.name else ""),
            "chargeCategory": "usage",
            "billedCost": money,
            "listCost": money,
            "listUnitPrice": money / row.use.requests if row.use.requests else 0.0,
            "usageQuantity": row.use.requests,
            "usageUnit": "requests",
            "labels": _labels(row),
        }
        by_currency[row.prices.currency].append(cost)
    shared = {"costSource": "model serving", "domain": "segserve", "version": "v1", "start": start, "end": end}
    return [shared | {"currency": currency, "costs": costs} for currency, costs in by_currency.items()]


def _unique_name(row: CostRow) -> str:
    return "/".join(filter(None, (row.pool, row.model or "__unallocated__", row.revision, row.name)))


def _labels(row: CostRow) -> dict[str, str]:
    labels = {"pool": row.pool, "model": row.model, "revision": row.revision, "name": row.name}
    return {key: value for key, value in labels.items() if value}


def _window(snapshot: MetricsSnapshot) -> tuple[str, str, float]:
    """Return when the servers' costs began to be counted and until when, and the seconds between them."""
    # Of each server by itself: those of a group count at the same time.
    counted = (each.value for each in snapshot.series if each.name == "segserve_cost_counted_seconds_total")
    seconds = max(counted, default=0.0)
    start, end = (
        datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        for at_s in (snapshot.at_s - seconds, snapshot.at_s)
    )
    return start, end, seconds
