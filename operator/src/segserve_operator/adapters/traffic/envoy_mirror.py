"""Renders what copies some of callers' requests to the comparator and the capture service; callers notice nothing.

A script chooses requests once their route is known, and marks them by a header. They are whole by then: otherwise a
comparator that does not read would stop a large request on its way to the server. Copies
are made by Envoy's mirror policy, which sends one where the header names a cluster; the copy's answer is dropped. How
many copies are under way at once, and for how long, is limited by the cluster: beyond that they are dropped, so that
they hold little memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from segserve_builder.capture.rule import MAX_COPIES_PER_S, RULES, CaptureFolder
from segserve_builder.comparator.folder import COMPARISONS, ComparatorFolder, Comparison
from segserve_common.files import DamagedFileError, private_folder, read_file, write_private
from segserve_operator.adapters.traffic.envoy_clusters import TYPES, protocol_options
from segserve_operator.adapters.traffic.envoy_extensions import extension, lua_script
from segserve_operator.adapters.traffic.envoy_messages import Json
from segserve_operator.core.traffic import Route, TrafficPlan

MIRROR_HEADER: Final = "x-segserve-mirror"
"""Header of a request that is copied; its value is the comparator's cluster."""
CLUSTER: Final = "//comparator/http"
"""Name of the comparator's cluster: as all names of clusters are, of no model."""
MAX_COPIES: Final = 4
"""Copies under way at once, and the same number that wait; further ones are dropped."""
MAX_COPY_S: Final = 2.0
_LUA: Final = "extensions.filters.http.lua.v3"


@dataclass(frozen=True, slots=True)
class _Target:
    """A target of copies: a cluster, the header of requests that are copied there, and the filter that writes it."""

    filter: str
    header: str
    cluster: str


_COMPARATOR: Final = _Target("segserve.mirror", MIRROR_HEADER, CLUSTER)
_CAPTURE: Final = _Target("segserve.capture", "x-segserve-capture", "//capture/http")


def mirror_filters(*, capture: bool) -> list[Json]:
    """Return the filters that choose requests to copy; they come after those that hold a request until it is whole."""
    return [_chosen(target) for target in ((_COMPARATOR, _CAPTURE) if capture else (_COMPARATOR,))]


def _chosen(target: _Target) -> Json:
    script = lua_script("mirror.lua", CLUSTER=target.cluster, HEADER=target.header)
    # Without a script of its own the filter does nothing; routes with a mirror name this one.
    return extension(target.filter, f"{_LUA}.Lua", source_codes={target.filter: {"inline_string": script}})


def mirror_clusters(folder: ComparatorFolder, capture: CaptureFolder | None) -> list[Json]:
    """Return the clusters for copies. They are always there, so that a mirror changes only routes."""
    captured = [] if capture is None else [_cluster(_CAPTURE.cluster, capture.copies)]
    return [_cluster(CLUSTER, folder.copies), *captured]


def _cluster(name: str, socket: Path) -> Json:
    limits = {"max_connections": MAX_COPIES, "max_pending_requests": MAX_COPIES, "max_requests": MAX_COPIES}
    server = {"endpoint": {"address": {"pipe": {"path": str(socket)}}}}
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "0.250s",
        "typed_extension_protocol_options": protocol_options(
            "http", common_http_protocol_options={"max_stream_duration": f"{MAX_COPY_S:.3f}s"}
        ),
        "circuit_breakers": {"thresholds": [limits]},
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [server]}]},
    }


def mirror_policy(route: Route) -> Json:
    """Return the part of an inference route's action that makes the copies; empty without a mirror."""
    # A trace has only the spans of the caller's own request.
    policies = [
        {
            "cluster_header": target.header,
            "disable_shadow_host_suffix_append": True,
            "trace_sampled": False,
        }
        for target in _shares(route)
    ]
    return {"request_mirror_policies": policies} if policies else {}


def mirror_scripts(route: Route) -> Json:
    """Return the part of an inference route's configuration by filter that makes the scripts run for it."""
    return {target.filter: {"@type": f"{TYPES}.{_LUA}.LuaPerRoute", "name": target.filter} for target in _shares(route)}


def mirror_metadata(route: Route) -> Json:
    """Return the part of an inference route's metadata that the scripts read."""
    shares = _shares(route).items()
    return {target.filter: {"percent": percent, "requests_per_s": rate} for target, (percent, rate) in shares}


def _shares(route: Route) -> dict[_Target, tuple[float, float]]:
    """Return the targets of copies of a model's requests: which percentage of them, and how many per second at most."""
    shares: dict[_Target, tuple[float, float]] = {}
    if route.mirror is not None:
        shares[_COMPARATOR] = (route.mirror.percent, route.mirror.requests_per_s)
    if route.capture is not None and route.capture.share > 0:
        shares[_CAPTURE] = (100 * route.capture.share, MAX_COPIES_PER_S)
    return shares


def write_comparisons(folder: ComparatorFolder, plan: TrafficPlan) -> None:
    """Write what the comparator is to compare, if that is something else than before."""
    compared: dict[str, Comparison | None] = {route.model: None for route in plan.routes if route.keeps_pairs}
    compared |= {
        route.model: Comparison(
            stable=route.mirror.stable,
            candidate=route.mirror.candidate,
            requests_per_s=route.mirror.requests_per_s,
            has_baseline=route.mirror.has_baseline,
        )
        for route in plan.routes
        if route.mirror is not None
    }
    text, default = (COMPARISONS.dump_json(each).decode() for each in (compared, {}))
    _replace(folder.path, folder.comparisons, text, default)


def keeps_pairs(plan: TrafficPlan | None) -> bool:
    """Return whether pairs of an ended comparison may be kept."""
    return plan is not None and any(route.keeps_pairs for route in plan.routes)


def has_mirror(plan: TrafficPlan | None) -> bool:
    """Return whether some requests are to be copied."""
    return plan is not None and any(route.mirror is not None for route in plan.routes)


def write_rules(folder: CaptureFolder, plan: TrafficPlan) -> None:
    """Write what the capture service is to capture, if that is something else than before."""
    rules = {route.model: route.capture for route in plan.routes if route.capture is not None}
    _replace(folder.path, folder.rules, RULES.dump_json(rules).decode(), RULES.dump_json({}).decode())


def has_capture(plan: TrafficPlan | None) -> bool:
    """Return whether some requests are to be captured."""
    return plan is not None and any(route.capture is not None for route in plan.routes)


def _replace(folder: Path, file: Path, text: str, default: str) -> None:
    try:
        former: str | None = read_file(file, str)
    except FileNotFoundError:
        former = default
    except (OSError, DamagedFileError):
        former = None
    if text != former:
        private_folder(folder)
        write_private(file, text)
