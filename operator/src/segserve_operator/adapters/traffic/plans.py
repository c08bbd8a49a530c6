"""Traffic plans as JSON, in the ConfigMaps that gateways follow and in a gateway's own record.

Each list of servers is written once, and shares refer to it by number. A gateway follows no plan of another format.
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
FORMAT: Final = 1
_TABLE: Final = TypeAdapter(tuple[Endpoint, ...])
_USED: Final = TypeAdapter(tuple[NonNegativeInt, ...])
_LISTS: Final = TypeAdapter(tuple[tuple[NonNegativeInt, ...], ...])


def pack_plan(plan: TrafficPlan) -> str:
    """Return the packed content of a shard; equal plans give equal text."""
    return pack(dump_plan(plan))


def dump_plan(plan: TrafficPlan) -> Json:
    """Return a plan as JSON, without what is None."""
    lists: dict[tuple[Endpoint, ...], int] = {}
    used = [lists.setdefault(share.endpoints, len(lists)) for route in plan.routes for share in route.shares]
    table = sorted({server for listed in lists for server in listed}, key=lambda at: (at.host, at.http_port))
    numbers = {server: number for number, server in enumerate(table)}
    dumped: Json = PLANS.dump_python(_with_servers(plan, [()] * len(used)), mode="json", exclude_none=True)
    for share, number in zip((share for route in dumped["routes"] for share in route["shares"]), used, strict=True):
        share["endpoints"] = number
    return {
        **dumped,
        "format": FORMAT,
        "endpoints": _TABLE.dump_python(tuple(table), mode="json", exclude_none=True),
        "lists": [[numbers[server] for server in listed] for listed in lists],
    }


def load_plan(value: Any) -> TrafficPlan:
    """Return the plan in a JSON value; raises `ValueError` for anything else."""
    try:
        if value["format"] != FORMAT:
            raise ValueError(f"the plan's format is {value['format']!r}; allowed is {FORMAT}")
        table = _TABLE.validate_python(value["endpoints"])
        lists = [tuple(table[number] for number in listed) for listed in _LISTS.validate_python(value["lists"])]
        used = _USED.validate_python([share["endpoints"] for route in value["routes"] for share in route["shares"]])
        servers = [lists[number] for number in used]
    except (LookupError, TypeError) as error:
        raise ValueError(f"the plan refers to servers that it does not list: {error!r}") from error
    routes = [{**each, "shares": [{**share, "endpoints": ()} for share in each["shares"]]} for each in value["routes"]]
    return _with_servers(PLANS.validate_python({**value, "routes": routes}), servers)


def _with_servers(plan: TrafficPlan, servers: Iterable[tuple[Endpoint, ...]]) -> TrafficPlan:
    """Return the plan with these servers of its shares, in their order."""
    left, routes = iter(servers), []
    for route in plan.routes:
        shares = tuple(replace(share, endpoints=next(left)) for share in route.shares)
        routes.append(replace(route, shares=shares))
    return replace(plan, routes=tuple(routes))
