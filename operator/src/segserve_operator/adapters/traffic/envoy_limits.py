"""Renders the limits of models: Envoy's `local_ratelimit`, with a bucket of tokens for each model and each caller.

The filter's configuration is a file that Envoy watches (ECDS), apart from the routes: they change far more often, and
with a new configuration all buckets are full again. A route says which model it is of, so that both protocols, all
groups of a rollout and the exposed network share the model's buckets.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from segserve_operator.adapters.traffic.envoy_clusters import TYPES
from segserve_operator.adapters.traffic.envoy_extensions import (
    CALLER,
    encode_extension,
    extension,
    watched_extension,
)
from segserve_operator.adapters.traffic.envoy_messages import Json
from segserve_operator.core.traffic import RequestRate, Route

LIMITS_NAME: Final = "segserve.limits"
"""Name of the filter, and of the metadata of a route that has the model's name."""
RETRY_AFTER_S: Final = 1
"""What refused callers are told to wait: buckets are filled once a second at least."""
MAX_CALLERS: Final = 10_000
"""Callers for each of whom a model has a bucket; a new one gets that of the one who has been away longest."""
DETAILS: Final = "local_rate_limited"
"""Code details of the response to a request beyond a limit."""
_TYPE: Final = "extensions.filters.http.local_ratelimit.v3.LocalRateLimit"
_MODEL: Final = "model"
_LIMIT: Final = "limit"
_REQUESTS: Final = "requests"
_BYTES: Final = "bytes"
_MOST: Final = 2**32 - 1
_MEGABYTE: Final = 10**6
# The request's Content-Length, or what a gRPC message has had. A bucket refuses a request of no tokens at all.
_SIZE: Final = "%CEL(request.size + 1)%"


def limits_filter(path: Path) -> Json:
    """Return the filter, whose configuration is in a file; it comes after the one that finds a request's route."""
    return watched_extension(LIMITS_NAME, _TYPE, path)


def limits_of_route(route: Route) -> Json:
    """Return the part of an inference route's metadata that says whose limits hold; empty without limits."""
    if route.limits is None:
        return {}
    return {LIMITS_NAME: {_MODEL: route.model}}


def encode_limits(routes: Iterable[Route], *, max_request_bytes: int) -> tuple[str, bytes]:
    """Return (version, content) of the file: the limits of these models."""
    descriptors = [each for route in routes for each in _descriptors(route, max_request_bytes)]
    share = {"default_value": {"numerator": 100 if descriptors else 0}}
    config = {
        "@type": f"{TYPES}.{_TYPE}",
        "stat_prefix": "limits",
        "filter_enabled": share,
        "filter_enforced": share,
        # A model without limits has no bucket of its own, and this one is never empty.
        "token_bucket": _bucket(_MOST, _MOST),
        "always_consume_default_token_bucket": False,
        "max_dynamic_descriptors": MAX_CALLERS,
        "rate_limited_as_resource_exhausted": True,
        "response_headers_to_add": [{"header": {"key": "retry-after", "value": str(RETRY_AFTER_S)}}],
        "rate_limits": [
            {"actions": [_metadata(LIMITS_NAME, "model", _MODEL, "ROUTE_ENTRY"), _named(kind), *callers], **cost}
            for kind, cost in ((_REQUESTS, {}), (_BYTES, {"hits_addend": {"format": _SIZE}}))
            for callers in ((), (_metadata(CALLER, "name", "caller", "DYNAMIC"),), (_is_unknown(), _address()))
        ],
        "descriptors": descriptors,
    }
    return encode_extension(LIMITS_NAME, config)


def read_version(content: bytes) -> str:
    """Return the version of what `encode_limits` gave, empty for anything else."""
    try:
        return str(json.loads(content)["version_info"])
    except (ValueError, LookupError, TypeError):
        return ""


def _descriptors(route: Route, max_request_bytes: int) -> Iterator[Json]:
    if route.limits is None:
        return
    # A key without a value stands for each caller.
    own = ([("caller", "")], [("anonymous", "true"), ("address", "")])
    for rate, callers in ((route.limits.total, ([],)), (route.limits.per_caller, own)):
        for kind, bucket in _buckets(rate, max_request_bytes):
            for entries in callers:
                pairs = [(_MODEL, route.model), (_LIMIT, kind), *entries]
                named = [{"key": key, **({"value": value} if value else {})} for key, value in pairs]
                yield {"entries": named, "token_bucket": bucket}


def _buckets(rate: RequestRate, max_request_bytes: int) -> Iterator[tuple[str, Json]]:
    if rate.requests_per_s is not None:
        yield _REQUESTS, _bucket(rate.requests_per_s, rate.requests_per_s)
    if rate.megabytes_per_s is not None:
        per_s = rate.megabytes_per_s * _MEGABYTE
        # One request needs room for all of it.
        yield _BYTES, _bucket(per_s, max(per_s, max_request_bytes + 1))


def _bucket(per_s: int, most: int) -> Json:
    return {"max_tokens": most, "tokens_per_fill": per_s, "fill_interval": "1s"}


def _named(kind: str) -> Json:
    return {"generic_key": {"descriptor_key": _LIMIT, "descriptor_value": kind}}


def _metadata(namespace: str, key: str, name: str, source: str) -> Json:
    path = {"key": namespace, "path": [{"key": key}]}
    return {"metadata": {"metadata_key": path, "descriptor_key": name, "source": source}}


def _is_unknown() -> Json:
    known = f"'{CALLER}' in metadata.filter_metadata && 'name' in metadata.filter_metadata['{CALLER}']"
    expression = extension(
        "envoy.rate_limit_descriptors.expr",
        "extensions.rate_limit_descriptors.expr.v3.Descriptor",
        descriptor_key="anonymous",
        text=f"!({known})",
    )
    return {"extension": expression}


def _address() -> Json:
    # That of the connection: what a caller says of himself in x-forwarded-for does not count.
    return {"extension": extension("address", "extensions.matching.common_inputs.network.v3.DirectSourceIPInput")}
