"""A node of two is lost as in a power failure, or drained: the other serves, and changes go on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster.kind import SECOND_TAINT
from fakes.cluster import Cluster
from fakes.cluster_load import Load, Strike, strike
from fakes.cluster_pool import ClusterPool, coins_manifest, is_ready, name_of, pool_manifest, said
from fakes.operator_process import OperatorProcess
from fakes.pools import pods_with
from segserve_common.kube.names import object_name

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

WHOLE_S = 300.0
ON_BOTH = pods_with(tolerations=[{"key": SECOND_TAINT, "operator": "Exists"}])
POOL = {"gateway": {"replicas": 1, **ON_BOTH}, "server": ON_BOTH}


@pytest.fixture
def pool(cluster: Cluster, tmp_path: Path) -> Iterator[ClusterPool]:
    with cluster.namespace("nodes") as namespace:
        operator = OperatorProcess(cluster.kubeconfig, (namespace,), cluster.images, tmp_path / "operator.log")
        pool = ClusterPool(cluster, namespace, operator.tail)
        with operator.running():
            pool.apply(pool_manifest(replicas=1, **POOL), coins_manifest(keepPrevious="0s"))
            pool.wait("the pool is whole", lambda: pool.is_whole(1, 1), WHOLE_S)
            yield pool


@contextmanager
def only_on_second(cluster: Cluster) -> Iterator[None]:
    """Have new pods started on the second node alone for the time of the block."""
    cluster.kubectl("cordon", cluster.node.name)
    try:
        yield
    finally:
        cluster.kubectl("uncordon", cluster.node.name)


def test_a_node_that_is_lost_takes_its_server_out_and_holds_no_change_up(
    cluster: Cluster, pool: ClusterPool, record_property: Callable[[str, object], None]
) -> None:
    stays = pool.endpoints("coins")
    with cluster.second_node() as second:
        with only_on_second(cluster):
            pool.apply(pool_manifest(replicas=2, **POOL))
            pool.wait("the pool is whole", lambda: pool.is_whole(2, 1), WHOLE_S)
        former = pool.routes()["coins"]["shares"][0]["revision"]
        with Load(pool.url) as load:
            load.answers_go_on(100)
            with strike() as struck:
                second.lose()
                began_s = time.monotonic()
                pool.wait("the lost server has no traffic", lambda: pool.endpoints("coins") == stays, WHOLE_S)
                out_s = time.monotonic() - began_s
            load.answers_go_on()
            pool.apply(coins_manifest(min_area=151, keepPrevious="0s"))
            began_s = time.monotonic()
            pool.wait("the edit serves", lambda: serves(pool, former), WHOLE_S)
            changed_s = time.monotonic() - began_s
            load.answers_go_on()
    figures = {"back_s": round(out_s, 1), "changed_s": round(changed_s, 1), **load.summary(struck())}
    record_property("seen", json.dumps(figures))
    assert load.unexcused(struck()) == []


def test_a_gateway_that_is_lost_with_its_node_holds_no_change_up_and_the_other_answers(
    cluster: Cluster, pool: ClusterPool, record_property: Callable[[str, object], None]
) -> None:
    with cluster.second_node() as second:
        with only_on_second(cluster):
            pool.apply(pool_manifest(replicas=1, server=ON_BOTH, gateway={"replicas": 2, **ON_BOTH}))
            pool.wait("each node has a gateway", lambda: pool.is_whole(1, 2), WHOLE_S)
        (lost,) = [pod for pod in pool.gateways() if pod["spec"]["nodeName"] == second.name]
        former = pool.routes()["coins"]["shares"][0]["revision"]
        with Load(pool.url, reconnects=True) as load:
            load.answers_go_on(100)
            began_s = time.monotonic()
            second.lose()
            address = lost["status"]["podIP"]
            pool.wait("it is no address of the Service", lambda: address not in called(pool), WHOLE_S)
            out_s = time.monotonic() - began_s
            # kube-proxy follows: in a second, or later on a busy machine.
            pool.wait("callers are not sent there", lambda: address not in cluster.node.destinations(), WHOLE_S)
            cluster.node.forget_connections(address)
            struck = Strike(began_s, time.monotonic())
            load.answers_go_on()
            pool.apply(coins_manifest(min_area=151, keepPrevious="0s"))
            began_s = time.monotonic()
            pool.wait("the edit serves", lambda: serves(pool, former), WHOLE_S)
            pool.wait("nothing is under way", lambda: rests(pool), WHOLE_S)
            changed_s = time.monotonic() - began_s
            assert cluster.get(pool.namespace, "pod", name_of(lost)) is not None
            load.answers_go_on()
    figures = {"back_s": round(out_s, 1), "changed_s": round(changed_s, 1), **load.summary(struck)}
    record_property("seen", json.dumps(figures))
    late = [
        f"{failed.began_s - struck.until_s:.1f} s after, for {failed.ended_s - failed.began_s:.1f} s, {failed}"
        for failed in load.unexcused(struck)
    ]
    assert late == [], "\n".join(late)


def test_a_drained_node_gives_its_server_and_its_gateway_to_another_and_no_request_fails(
    cluster: Cluster, pool: ClusterPool
) -> None:
    with cluster.second_node() as second:
        with only_on_second(cluster):
            pool.apply(pool_manifest(replicas=2, server=ON_BOTH, gateway={"replicas": 2, **ON_BOTH}))
            pool.wait("each node has a server and a gateway", lambda: pool.is_whole(2, 2), WHOLE_S)
        with Load(pool.url, reconnects=True) as load:
            load.answers_go_on(100)
            cluster.kubectl("drain", second.name, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=300s")
            left = [name_of(pod) for pod in pool.pods() if pod["spec"]["nodeName"] == second.name]
            pool.wait("the pool is whole", lambda: pool.is_whole(2, 2), WHOLE_S)
            load.answers_go_on(100)
    assert left == []
    assert load.failures == []


def called(pool: ClusterPool) -> list[str]:
    """Return the addresses of the gateways that the Service sends callers to."""
    of_service = f"kubernetes.io/service-name={object_name(pool.pool)}"
    slices = pool.cluster.get(pool.namespace, "endpointslices", labels=of_service)
    endpoints = [endpoint for each in slices for endpoint in each["endpoints"] or ()]
    return [address for each in endpoints if each["conditions"]["ready"] for address in each["addresses"]]


def rests(pool: ClusterPool) -> bool:
    """Tell whether the model has come to rest in the pool's main group."""
    model = said(pool.model() or {})
    assert model["current"], model
    assert model["conditions"]["Progressing"] == ["False", "Idle"], model
    return set(model["roles"]) == {"stable"}


def serves(pool: ClusterPool, former: str) -> bool:
    """Tell whether ready servers get all requests, of another revision than the former one."""
    (share,) = [each for each in pool.routes()["coins"]["shares"] if each["weight"]]
    assert share["revision"] != former
    told = {endpoint["host"] for endpoint in share["endpoints"]}
    return bool(told) and told <= {pod["status"]["podIP"] for pod in pool.servers() if is_ready(pod)}
