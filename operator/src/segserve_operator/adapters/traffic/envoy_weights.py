"""Renders the weights that differ from those which the table of routes names: a few numbers, read in no time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Final

from segserve_operator.adapters.traffic.envoy_clusters import PROTOCOLS, Json, Purpose, weighted
from segserve_operator.core.traffic import Route

WEIGHTS_NAME: Final = "weights"
_SPLIT: Final[tuple[Purpose, ...]] = ("infer", "network")


def weights_prefix(written: Route) -> str:
    """Return what the keys of newer weights begin with.

    It depends on the very weights that the table names, so that a key never meets a table that it is not for: tables
    and weights reach Envoy one after the other.
    """
    named = json.dumps([[share.group, share.weight, *(["twin"] if share.twin else [])] for share in written.shares])
    return f"segserve.{hashlib.sha256(named.encode()).hexdigest()[:8]}"


def weights_of(route: Route, written: Route) -> dict[str, int]:
    """Return by key the weights of `route` where they are not those of `written`, a route to the same groups."""
    if [share.weight for share in route.shares] == [share.weight for share in written.shares]:
        return {}
    prefix = weights_prefix(written)
    return {
        f"{prefix}.{name}": weight
        for purpose in (_SPLIT if route.exposed else _SPLIT[:1])
        for protocol in PROTOCOLS
        for _, name, weight in weighted(route, purpose, protocol)
    }


def render_weights(values: Mapping[str, int]) -> Json:
    """Return the layer of Envoy's runtime that holds these weights."""
    return {
        "@type": "type.googleapis.com/envoy.service.runtime.v3.Runtime",
        "name": WEIGHTS_NAME,
        "layer": dict(values),
    }
