"""Traffic plans as JSON, in the ConfigMaps that gateways follow and in a gateway's own record.

There are three formats, and readers know all. In the first, which every release reads, each share lists its servers. In
the second each list of servers is written once and shares refer to it by number. It is written only where the first
would not fit into a ConfigMap, so that gateways of an earlier release follow every plan that their release could write.
The third is the second with rules of access in it: a gateway that does not know these must not follow such a plan, as
it would open the models to everybody.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Final, TypeAlias

from pydantic import NonNegativeInt, TypeAdapter

from segserve_common.kube.shards import pack
from segserve_operator.core.traffic import Endpoint, TrafficPlan

Json: TypeAlias = dict[str, Any]

PLANS: Final = TypeAdapter(TrafficPlan)
"""The first format."""
SERVER_LISTS: Final = 2
"""The value of the key `format` in the second one; the first has no such key."""
ACCESS_RULES: Final = 3
"""Its value in the third one."""
_FORMATS: Final = (SERVER_LISTS, ACCESS_RULES)
LIMIT_BYTES: Final = 960_000
"""Size of a shard up to which it is written in the first format: a ConfigMap may have 1 MiB, labels included."""
# The first format takes at least 5.8 bytes a server where servers are too many for gzip to remember a list of them.
_LISTED: Final = 170_000
_FEW: Final = 10_000
_TABLE: Final = TypeAdapter(tuple[Endpoint, ...])
_USED: Final = TypeAdapter(tuple[NonNegativeInt, ...])
_LISTS: Final = TypeAdapter(tuple[tuple[NonNegativeInt, ...], ...])


def pack_plan(plan: TrafficPlan) -> str:
    """Return the packed content of a shard; equal plans give equal text."""
    if _servers_in(plan) <= _LISTED and _format(plan) == SERVER_LISTS:
        packed = pack(_dump(plan))
        if len(packed) * 3 // 4 <= LIMIT_BYTES:  # base64
            return packed
    return pack(dump_lists(plan))


def dump_plan(plan: TrafficPlan) -> Json:
    """Return a plan for a gateway's own record, which is written with every change: in the shorter format."""
    return _dump(plan) if _servers_in(plan) <= _FEW and _format(plan) == SERVER_LISTS else dump_lists(plan)


def dump_lists(plan: TrafficPlan) -> Json:
    """Return a plan in the second format, or a later one if it has what that needs."""
    lists: dict[tuple[Endpoint, ...], int] = {}
    used = [lists.setdefault(share.endpoints, len(lists)) for route in plan.routes for share in route.shares]
    table = sorted({server for listed in lists for server in listed}, key=lambda at: (at.host, at.http_port))
    numbers = {server: number for number, server in enumerate(table)}
    dumped = _dump(_with_servers(plan, [()] * len(used)))
    for share, number in zip((share for route in dumped["routes"] for share in route["shares"]), used, strict=True):
        share["endpoints"] = number
    return {
        **dumped,
        "format": _format(plan),
        "endpoints": _TABLE.dump_python(tuple(table), mode="json", exclude_none=True),
        "lists": [[numbers[server] for server in listed] for listed in lists],
    }


def load_plan(value: Any) -> TrafficPlan:
    """Return the plan in a JSON value of any format; raises `ValueError` for anything else."""
    if not isinstance(value, dict) or "format" not in value:
        return PLANS.validate_python(value)
    if value["format"] not in _FORMATS:
        allowed = " or ".join(map(str, _FORMATS))
        raise ValueError(f"the plan's format is {value['format']!r}; allowed is {allowed}, or no format")
    try:
        table = _TABLE.validate_python(value["endpoints"])
        lists = [tuple(table[number] for number in listed) for listed in _LISTS.validate_python(value["lists"])]
        used = _USED.validate_python([share["endpoints"] for route in value["routes"] for share in route["shares"]])
        servers = [lists[number] for number in used]
    except (LookupError, TypeError) as error:
        raise ValueError(f"the plan refers to servers that it does not list: {error!r}") from error
    routes = [{**each, "shares": [{**share, "endpoints": ()} for share in each["shares"]]} for each in value["routes"]]
    return _with_servers(PLANS.validate_python({**value, "routes": routes}), servers)


def _dump(plan: TrafficPlan) -> Json:
    # Without what is None: a plan without rules of access is as it was before there were any.
    dumped: Json = PLANS.dump_python(plan, mode="json", exclude_none=True)
    return dumped


def _format(plan: TrafficPlan) -> int:
    """Return the oldest format with numbered lists that has everything that must not be overlooked."""
    return ACCESS_RULES if plan.is_restricted else SERVER_LISTS


def _servers_in(plan: TrafficPlan) -> int:
    return sum(len(share.endpoints) for route in plan.routes for share in route.shares)


def _with_servers(plan: TrafficPlan, servers: Iterable[tuple[Endpoint, ...]]) -> TrafficPlan:
    """Return the plan with these servers of its shares, in their order."""
    left, routes = iter(servers), []
    for route in plan.routes:
        shares = tuple(replace(share, endpoints=next(left)) for share in route.shares)
        routes.append(replace(route, shares=shares))
    return replace(plan, routes=tuple(routes))
