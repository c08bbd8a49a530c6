"""A pool on a real cluster has more servers in a burst of requests and fewer after it, and no request fails."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes.cluster import Cluster
from fakes.cluster_load import Load
from fakes.cluster_models import LITTLE_GATEWAY, LITTLE_SERVER
from fakes.cluster_pool import ClusterPool, coins_manifest, pool_manifest
from fakes.operator_process import OperatorProcess
from segserve_common.kube.kinds import POOLS

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

WHOLE_S = 300.0
SCALING = {"minimum": 1, "maximum": 4, "target": {"concurrency": 1}, "scaleDownDelay": "10s"}
SMALL = {"server": LITTLE_SERVER, "gateway": LITTLE_GATEWAY}
MEASURED = {"status": {"scaling": {"desired": 1, "startupSeconds": 5}}}
"""What an operator before has measured: servers are kept for as long after a burst, and for a part of what the burst
takes to start them."""


@pytest.fixture
def pool(cluster: Cluster, tmp_path: Path) -> Iterator[ClusterPool]:
    """A pool whose number of servers follows requests, with two gateways."""
    with cluster.namespace("scaling") as namespace:
        operator = OperatorProcess(cluster.kubeconfig, (namespace,), cluster.images, tmp_path / "operator.log")
        pool = ClusterPool(cluster, namespace, operator.tail)
        pool.apply(pool_manifest(scaling=SCALING, **SMALL), coins_manifest(keepPrevious="0s"))
        manifest = {**cluster.get(namespace, "tritonpool", "default"), **MEASURED}
        path = cluster.client.path(POOLS, "default", namespace, "status")
        cluster.kubectl("replace", "--raw", path, "-f", "-", stdin=json.dumps(manifest))
        with operator.running():
            pool.wait("the pool is whole", lambda: pool.is_whole(1, 2), WHOLE_S)
            yield pool


def status(pool: ClusterPool) -> dict[str, Any]:
    found = pool.cluster.get(pool.namespace, "tritonpool", "default")
    return dict(found["status"])


def test_a_burst_has_four_servers_and_then_one_again_and_no_request_fails(
    pool: ClusterPool, record_property: Callable[[str, object], None]
) -> None:
    with Load(pool.url, pause_s=0.0) as burst:
        pool.wait("four servers answer", lambda: pool.is_whole(4, 2), WHOLE_S)
        burst.answers_go_on()
        assert status(pool)["scaling"]["desired"] == 4
    # One caller has one request in flight, however slow the machine is.
    with Load(pool.url, pause_s=2.0, clients=1) as calm:
        pool.wait("one server answers", lambda: pool.is_whole(1, 2), WHOLE_S)
        calm.answers_go_on(2)

    record_property("seen", json.dumps({"burst": burst.summary(), "calm": calm.summary()}))
    assert burst.failures == []
    assert calm.failures == []
    assert status(pool)["scaling"]["reason"] == "FewerRequests"
