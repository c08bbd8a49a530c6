"""Renders what sends requests of one id to one revision and one server: a filter, and options of routes.

The filter writes a number for the revision and a text for the server, for requests that have an id. Envoy takes the
number modulo the sum of a split's weights, and hashes the text for the server. Two values, since an id's place in the
order of a rollout changes with each rollout, and its server must not.
"""

from __future__ import annotations

from typing import Final

from segserve_operator.adapters.traffic.envoy_clusters import SERVER_KEY
from segserve_operator.adapters.traffic.envoy_extensions import lua_filter
from segserve_operator.adapters.traffic.envoy_messages import Json
from segserve_operator.api.session_affinity import SessionAffinity
from segserve_operator.core.traffic import Route

SERVER_HEADER: Final = "x-segserve-server"
"""Header of responses that names the server, in pools with affinity."""


def affinity_filters(affinity: SessionAffinity | None) -> list[Json]:
    """Return the filter that finds a request's id; it comes after the filters that find the route and the caller."""
    if affinity is None:
        return []
    header, cookie = (affinity.header or "").lower(), affinity.cookie or ""
    return [lua_filter("affinity.lua", HEADER=header, COOKIE=cookie, CALLER=affinity.caller)]


def salt_of_route(route: Route) -> Json:
    """Return the part of an inference route's metadata that the filter reads; empty without affinity."""
    return {} if route.affinity is None else {"envoy.filters.http.lua": {"salt": route.affinity.salt}}


def split_options(route: Route) -> Json:
    """Return what makes a split follow the filter's number; requests without one are split at random."""
    return {} if route.affinity is None else {"header_name": "x-segserve-part"}


def hash_policy(route: Route) -> Json:
    """Return what makes the choice of a server follow the id; requests without one go to any server."""
    return {} if route.affinity is None else {"hash_policy": [{"header": {"header_name": "x-segserve-id"}}]}


def server_headers(route: Route) -> Json:
    """Return the header of responses that names the server, so that callers can tell when it is another one."""
    if route.affinity is None:
        return {}
    value = f"%UPSTREAM_METADATA(envoy.lb:{SERVER_KEY})%"
    header = {"header": {"key": SERVER_HEADER, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
    return {"response_headers_to_add": [header]}
