"""Renders what copies some of callers' requests to the comparator, so that callers notice nothing of it.

A script chooses requests once their route is known, and marks them by a header. Marked ones are held whole before they
go on: otherwise a comparator that does not read would stop a large request on its way to the server. Streams are never
marked. Copies are made by Envoy's mirror policy, which sends one where the header names a cluster; the copy's answer is
dropped. How many copies are under way at once, and for how long, is limited by the cluster: beyond that they are
dropped, so that they hold little memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from segserve_builder.comparator.folder import COMPARISONS, ComparatorFolder, Comparison
from segserve_common.files import write_private
from segserve_operator.adapters.traffic.envoy_clusters import TYPES, protocol_options
from segserve_operator.adapters.traffic.envoy_extensions import (
    extension,
    header_matches,
    lua_script,
    unless,
)
from segserve_operator.adapters.traffic.envoy_messages import Json
from segserve_operator.core.traffic import Route, TrafficPlan

MIRROR_HEADER: Final = "x-segserve-mirror"
"""Header of a request that is copied; its value is the comparator's cluster."""
CLUSTER: Final = "//comparator/http"
"""Name of the comparator's cluster: as all names of clusters are, of no model."""
REPLAYS: Final = "//comparator/replays"
"""Name of the cluster of segserve's own requests, which no caller can reach."""
REPLAY_GROUP: Final = "~comparator"
"""What segserve's own requests name instead of a group, at the internal listener; no group can have this name."""
MAX_COPIES: Final = 4
"""Copies under way at once, and as many that wait; the next ones are dropped."""
MAX_COPY_S: Final = 2.0
_NAME: Final = "segserve.mirror"
_LUA: Final = "extensions.filters.http.lua.v3"


def mirror_filters(max_request_bytes: int) -> list[Json]:
    """Return the filters that choose requests to copy, and hold them whole; the router comes after them."""
    script = lua_script("mirror.lua", CLUSTER=CLUSTER)
    # Without a script of its own the filter does nothing; routes with a mirror name this one.
    chosen = extension(_NAME, f"{_LUA}.Lua", source_codes={_NAME: {"inline_string": script}})
    held = extension(
        "envoy.filters.http.buffer",
        "extensions.filters.http.buffer.v3.Buffer",
        max_request_bytes=max_request_bytes,
    )
    marked = header_matches(MIRROR_HEADER, {"exact": CLUSTER})
    return [chosen, unless({"not_matcher": marked}, held)]


def mirror_clusters(folder: ComparatorFolder) -> list[Json]:
    """Return the comparator's clusters. They are always there, so that a mirror is a change of routes alone."""
    return [_cluster(CLUSTER, folder.copies), _cluster(REPLAYS, folder.replays)]


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


def replay_names() -> dict[str, str]:
    """Return what the internal listener's script has to know of segserve's own requests to the comparator."""
    return {"REPLAY_GROUP": REPLAY_GROUP, "REPLAYS": REPLAYS}


def mirror_policy(route: Route) -> Json:
    """Return the part of an inference route's action that makes the copies; empty without a mirror."""
    if route.mirror is None:
        return {}
    policy = {"cluster_header": MIRROR_HEADER, "disable_shadow_host_suffix_append": True}
    return {"request_mirror_policies": [policy]}


def mirror_script(route: Route) -> Json:
    """Return the part of an inference route's configuration by filter that makes the script run for it."""
    return {} if route.mirror is None else {_NAME: {"@type": f"{TYPES}.{_LUA}.LuaPerRoute", "name": _NAME}}


def mirror_metadata(route: Route) -> Json:
    """Return the part of an inference route's metadata that the script reads."""
    mirror = route.mirror
    if mirror is None:
        return {}
    return {_NAME: {"percent": mirror.percent, "requests_per_s": mirror.requests_per_s}}


def write_comparisons(folder: ComparatorFolder, plan: TrafficPlan) -> None:
    """Tell the comparator what to compare, if that is something else than before."""
    compared: dict[str, Comparison | None] = {route.model: None for route in plan.routes if route.keeps_pairs}
    compared |= {
        route.model: Comparison(
            stable=route.mirror.stable,
            candidate=route.mirror.candidate,
            requests_per_s=route.mirror.requests_per_s,
            has_baseline=route.mirror.has_baseline,
            load_per_s=route.mirror.load_per_s,
        )
        for route in plan.routes
        if route.mirror is not None
    }
    text = COMPARISONS.dump_json(compared).decode()
    try:
        former = folder.comparisons.read_text()
    except FileNotFoundError:
        former = COMPARISONS.dump_json({}).decode()
    if text != former:
        folder.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(folder.comparisons, text)


def keeps_pairs(plan: TrafficPlan | None) -> bool:
    """Tell whether pairs of an ended comparison may be kept."""
    return plan is not None and any(route.keeps_pairs for route in plan.routes)


def has_mirror(plan: TrafficPlan | None) -> bool:
    """Tell whether some requests are to be copied."""
    return plan is not None and any(route.mirror is not None for route in plan.routes)
