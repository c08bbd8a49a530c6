"""Routes of the Gateway API on a real API server, with the upstream definitions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.cluster import Cluster
from fakes.crd_api import CrdApi, RefusedError, load
from fakes.pools import MINIMAL, pool_context
from segserve_common.kube.kinds import GRPC_ROUTES, HTTP_ROUTES
from segserve_operator.adapters.kube.objects.gateway import route_objects

pytestmark = pytest.mark.cluster

UPSTREAM = Path(__file__).parents[2] / "golden/gateway-api"
TOLD = {
    "provider": "gatewayApi",
    "parentRefs": [{"name": "public", "namespace": "infra", "sectionName": "https"}, {"name": "private", "port": 443}],
    "hostnames": ["masks.example.com", "*.masks.example.com"],
    "grpcHostnames": ["grpc.masks.example.org"],
    "requestTimeoutSeconds": 3600,
}


@pytest.fixture(scope="module")
def upstream(cluster: Cluster) -> Iterator[CrdApi]:
    """The server with the definitions of HTTPRoute and GRPCRoute."""
    api = CrdApi(cluster.kubeconfig, HTTP_ROUTES.api_version)
    definitions = [found for kind in (HTTP_ROUTES, GRPC_ROUTES) for found in load(UPSTREAM / f"{kind.plural}.yaml")]
    for definition in definitions:
        api.install(definition)
    yield api
    for definition in definitions:
        api.uninstall(definition["metadata"]["name"])
    api.close()


def test_the_routes_of_a_pool_are_what_the_gateway_api_takes(upstream: CrdApi) -> None:
    http, grpc = route_objects(pool_context(MINIMAL, gateway=TOLD))

    for kind, route in ((HTTP_ROUTES, http), (GRPC_ROUTES, grpc)):
        metadata = {**route["metadata"], "namespace": "default"}
        stored = upstream.create(kind.plural, {**route, "metadata": metadata})

        assert _is_part(route["spec"], stored["spec"]), stored["spec"]


def test_a_route_that_is_not_of_the_gateway_api_is_refused(upstream: CrdApi) -> None:
    """So that the test above does not pass for a server that takes everything."""
    http, _ = route_objects(pool_context(MINIMAL, gateway=TOLD))
    metadata = {"name": "other"}

    with pytest.raises(RefusedError, match="unknown field"):
        upstream.create("httproutes", {**http, "metadata": metadata, "spec": {**http["spec"], "hosts": []}})
    twice = {**http["spec"], "parentRefs": [{"name": "a"}, {"name": "a"}]}
    with pytest.raises(RefusedError, match="sectionName"):
        upstream.create("httproutes", {**http, "metadata": metadata, "spec": twice})


def _is_part(wanted: object, stored: object) -> bool:
    """Tell whether a server has all that it was told, beside its defaults."""
    if isinstance(wanted, dict) and isinstance(stored, dict):
        return all(name in stored and _is_part(value, stored[name]) for name, value in wanted.items())
    if isinstance(wanted, list) and isinstance(stored, list):
        return len(wanted) == len(stored) and all(map(_is_part, wanted, stored))
    return wanted == stored
