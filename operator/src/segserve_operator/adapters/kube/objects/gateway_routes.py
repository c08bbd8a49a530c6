"""Routes of the Gateway API, by which a cluster's own gateways send requests to a pool's gateway."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from kubernetes.aio.client import V1ObjectMeta
from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

from segserve_common.kube.kinds import GRPC_ROUTES, HTTP_ROUTES, Json
from segserve_common.kube.names import object_name
from segserve_operator.adapters.kube.objects.context import gateway_selector, meta, rendered, stamped

if TYPE_CHECKING:
    from segserve_operator.adapters.kube.objects.context import PoolContext

_GRPC_SERVICE: Final = "inference.GRPCInferenceService"
_REPLY_S: Final = 5
"""Time beyond the pool's own limit of a request, so that callers get its 504 and not that of the cluster's gateway."""


class _Part(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True)


class _Parent(_Part):
    group: str = "gateway.networking.k8s.io"
    kind: str = "Gateway"
    name: str
    namespace: str | None
    section_name: str | None
    port: int | None


class _Backend(_Part):
    group: str = ""
    kind: str = "Service"
    name: str
    port: int
    weight: int = 1


class _PathMatch(_Part):
    type: Literal["PathPrefix"] = "PathPrefix"
    value: str


class _HttpMatch(_Part):
    path: _PathMatch


class _Timeouts(_Part):
    request: str


class _HttpRule(_Part):
    matches: tuple[_HttpMatch, ...]
    backend_refs: tuple[_Backend, ...]
    timeouts: _Timeouts


class _MethodMatch(_Part):
    type: Literal["Exact"] = "Exact"
    service: str


class _GrpcMatch(_Part):
    method: _MethodMatch


class _GrpcRule(_Part):
    matches: tuple[_GrpcMatch, ...]
    backend_refs: tuple[_Backend, ...]


class _RouteSpec(_Part):
    parent_refs: tuple[_Parent, ...]
    hostnames: tuple[str, ...]
    rules: tuple[_HttpRule | _GrpcRule, ...]


class _Route(_Part):
    metadata: V1ObjectMeta
    spec: _RouteSpec


def route_objects(context: PoolContext) -> tuple[Json, ...]:
    """Return the HTTPRoute and the GRPCRoute of a pool that asks for them; each only if it has host names."""
    return context.once("routes", lambda: _route_objects(context))


def _route_objects(context: PoolContext) -> tuple[Json, ...]:
    gateway = context.spec.gateway
    if gateway.provider != "gatewayApi":
        return ()
    backends = (_Backend(name=object_name(context.pool), port=gateway.port),)
    prefixes = ("/v2", "/v1/models") if gateway.plain_http else ("/v2",)
    http = _HttpRule(
        matches=tuple(_HttpMatch(path=_PathMatch(value=prefix)) for prefix in prefixes),
        backend_refs=backends,
        timeouts=_Timeouts(request=f"{gateway.request_timeout_seconds + _REPLY_S}s"),
    )
    grpc = _GrpcRule(matches=(_GrpcMatch(method=_MethodMatch(service=_GRPC_SERVICE)),), backend_refs=backends)
    routes = ((HTTP_ROUTES, gateway.hostnames, http), (GRPC_ROUTES, gateway.grpc_hostnames, grpc))
    return tuple(
        stamped(rendered(kind, _route(context, hostnames, rule))) for kind, hostnames, rule in routes if hostnames
    )


def _route(context: PoolContext, hostnames: tuple[str, ...], rule: _HttpRule | _GrpcRule) -> _Route:
    parents = tuple(
        _Parent(name=parent.name, namespace=parent.namespace, section_name=parent.section_name, port=parent.port)
        for parent in context.spec.gateway.parent_refs
    )
    return _Route(
        metadata=meta(context, object_name(context.pool), gateway_selector(context)),
        spec=_RouteSpec(parent_refs=parents, hostnames=hostnames, rules=(rule,)),
    )
