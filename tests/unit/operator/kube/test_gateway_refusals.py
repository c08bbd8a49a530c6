"""What the operator says of gateways that refuse what they were given."""

from __future__ import annotations

from typing import Any

import pytest

from fakes.pools import MINIMAL, pool_context
from segserve_common.kube.kinds import CONFIG_MAPS, PODS, Kind
from segserve_common.kube.names import GATEWAY, object_name, reports_name
from segserve_common.kube.shards import pack
from segserve_operator.adapters.kube.gateway import ClusterTraffic
from segserve_operator.adapters.kube.view import PoolKey

KEY = PoolKey("vision", "default")
POD = {
    "metadata": {
        "name": "gw-a",
        "uid": "uid-a",
        "labels": {"app.kubernetes.io/component": GATEWAY},
        "ownerReferences": [{"kind": "ReplicaSet", "name": f"{object_name(KEY.pool, GATEWAY)}-5f6d", "uid": "uid-r"}],
    },
    "status": {"phase": "Running"},
}


class OnePod:
    """The part of `View` that is asked: one gateway pod, and its report."""

    def __init__(self, report: dict[str, Any]) -> None:
        self._report = pack(report)

    def of_pool(self, kind: Kind, _: PoolKey) -> list[dict[str, Any]]:
        return [POD] if kind is PODS else []

    def get(self, kind: Kind, _: str, name: str) -> dict[str, Any] | None:
        if (kind, name) != (CONFIG_MAPS, reports_name(KEY.pool, GATEWAY)):
            return None
        return {"metadata": {"name": name}, "binaryData": {"gw-a": self._report}}


class OneContext:
    """The part of `PoolContexts` that is asked."""

    def get(self, _: PoolKey) -> Any:
        return pool_context(MINIMAL)


@pytest.mark.parametrize(
    ("refused", "reason", "message"),
    [
        ({"certificate": "there is no tls.crt"}, "CertificateRefused", "gateway gw-a: there is no tls.crt"),
        ({"credentials": "no 'htpasswd'"}, "CredentialsRefused", "gateway gw-a: no 'htpasswd'"),
        ({"2": "version 7: rubbish"}, "PlanRefused", "gateway gw-a refuses shard 2: version 7: rubbish"),
    ],
)
async def test_the_pool_says_what_a_gateway_cannot_use(refused: dict[str, str], reason: str, message: str) -> None:
    view = OnePod({"uid": "uid-a", "shards": {}, "refused": refused})

    state = await ClusterTraffic(None, view, OneContext(), KEY, {}).observe()  # type: ignore[arg-type]

    assert (state.problem.reason, state.problem.message) == (reason, message)
