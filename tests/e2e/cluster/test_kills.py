"""Whatever is killed: requests go on, none fails but those on their way to what died, and then all is as it was.

One pool with two servers and two gateways is asked by eight clients, which do not try again by themselves.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import pytest

from cluster.node import Process
from fakes.cluster import Cluster
from fakes.cluster_load import Load, Strike, strike
from fakes.cluster_pool import ClusterPool, coins_manifest, is_ready, name_of, pool_manifest
from fakes.installed_operator import installed
from fakes.operator_process import OperatorProcess

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

PAUSED_S = 20.0
"""How long the API server hangs: longer than any single call waits for it."""
SERVERS = GATEWAYS = 2
DRAIN_S = 20
"""How long gateways may take to leave a server alone that ends: over 8 s were seen where all cores were taken."""
NOT_BEGUN = "GOAWAY received; Error code: 0"
"""Of a gRPC call on a connection that a leaving gateway closes before the call is on it: a retry sends it."""
Note = Callable[[str, object], None]


@dataclass(frozen=True)
class World:
    """The pool and its operator; each test leaves them whole."""

    pool: ClusterPool
    operator: OperatorProcess

    @property
    def cluster(self) -> Cluster:
        return self.pool.cluster

    def process(self, pod: str, container: str, command: str) -> Process:
        """Return a process of a container, the first where there are several."""
        found = self.cluster.processes(self.pool.namespace, pod, container)
        chosen = [process for process in found if command in process.command]
        assert chosen, f"no process with {command!r} in {[process.command for process in found]}"
        return chosen[0]

    def kill(self, process: Process) -> Strike:
        """Kill a process, and return when that was."""
        with strike() as struck:
            self.cluster.node.kill(process.pid)
        return struck()

    def exhaust_memory(self, processes: Collection[Process]) -> Strike:
        """Have the kernel kill a process of a container that has no memory left, and return when that was."""
        with strike() as struck:
            self.cluster.node.exhaust_memory(next(iter(processes)).pid)
        return struck()

    def is_whole(self) -> bool:
        return self.pool.is_whole(SERVERS, GATEWAYS)

    def comes_back(self, healed: Callable[[], object] = lambda: True) -> float:
        """Return after how many seconds it was healed, and whole."""
        began_s = time.monotonic()
        self.pool.wait("all is as it was", lambda: bool(healed()) and self.is_whole())
        return time.monotonic() - began_s


@pytest.fixture(scope="module")
def world(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    log = tmp_path_factory.mktemp("operator") / "operator.log"
    with cluster.namespace("kills") as namespace:
        operator = OperatorProcess(cluster.kubeconfig, (namespace,), cluster.images, log)
        pool = ClusterPool(cluster, namespace, operator.tail)
        with operator.running():
            pool.apply(pool_manifest(replicas=SERVERS, server={"drainSeconds": DRAIN_S}), coins_manifest())
            pool.wait("the pool is whole", lambda: pool.is_whole(SERVERS, GATEWAYS), 300)
            yield World(pool, operator)


@pytest.fixture
def load(world: World) -> Callable[..., AbstractContextManager[Load]]:
    @contextmanager
    def start(reconnects: bool = False) -> Iterator[Load]:
        with Load(world.pool.url, reconnects=reconnects) as load:
            load.answers_go_on()
            yield load
            load.answers_go_on()

    world.pool.wait("the pool is whole", world.is_whole)
    return start


# Where nobody listens any more, nobody can ask again: callers have to, until the process is back or out of the Service.
NOBODY = ("refused", "reset by peer", "Socket closed", "disconnected", "Broken pipe")
# Each: whose pod, which of them, the container, the process, and what may befall later requests. No container is killed
# twice: the kubelet would wait.
PROCESSES = [
    pytest.param("server", 0, "triton", "tritonserver", (), id="Triton"),
    pytest.param("server", 1, "triton", "triton_python_backend_stub", (), id="a step of Triton"),
    pytest.param("server", 1, "agent", "cluster.agent", (), id="its agent"),
    pytest.param("gateway", 0, "envoy", "envoy --config-path", NOBODY, id="Envoy"),
    pytest.param("gateway", 1, "sync", "gateway_sync", (), id="the gateway's sidecar"),
]


@pytest.mark.parametrize(("component", "index", "container", "command", "excuses"), PROCESSES)
def test_a_process_that_is_killed_comes_back_and_takes_at_most_its_own_requests_with_it(
    world: World, load: Callable[..., AbstractContextManager[Load]], record_property: Note,
    component: str, index: int, container: str, command: str, excuses: tuple[str, ...],
) -> None:  # fmt: skip
    pod = sorted(map(name_of, world.pool.pods(component)))[index]
    former = world.process(pod, container, command)
    with load() as clients:
        struck = world.kill(former)
        back_s = world.comes_back(lambda: world.process(pod, container, command) != former)

    record_property("seen", seen(back_s, clients, struck))
    assert clients.unexcused(struck, excuses=excuses) == []


# Containers that no test has killed before. The kernel takes the largest process: of Triton's, one of its steps.
EXHAUSTED = [
    pytest.param("server", 1, "triton", (), id="Triton"),
    pytest.param("server", 0, "agent", (), id="its agent"),
    pytest.param("gateway", 1, "envoy", NOBODY, id="Envoy"),
    pytest.param("gateway", 0, "sync", (), id="the gateway's sidecar"),
]


@pytest.mark.parametrize(("component", "index", "container", "excuses"), EXHAUSTED)
def test_a_container_whose_memory_is_used_up_comes_back_and_takes_at_most_its_own_requests_with_it(
    world: World, load: Callable[..., AbstractContextManager[Load]], record_property: Note,
    component: str, index: int, container: str, excuses: tuple[str, ...],
) -> None:  # fmt: skip
    pods = sorted(map(name_of, world.pool.pods(component)))
    pod, other = pods[index], pods[1 - index]

    def processes(pod: str) -> set[Process]:
        return set(world.cluster.processes(world.pool.namespace, pod, container))

    def healed() -> bool:
        ended = len(former) > 1 or world.cluster.ended_by(world.pool.namespace, pod, container) == "OOMKilled"
        # `former` may hold what is left of a step that was killed before, until that has been idle for twenty seconds.
        return ended and processes(pod) != former and len(processes(pod)) == len(processes(other))

    former = processes(pod)
    with load() as clients:
        struck = world.exhaust_memory(former)
        back_s = world.comes_back(healed)

    record_property("seen", seen(back_s, clients, struck))
    assert clients.unexcused(struck, excuses=excuses) == []


def test_an_operator_whose_memory_is_used_up_is_not_missed(
    world: World, load: Callable[..., AbstractContextManager[Load]], record_property: Note
) -> None:
    world.operator.stop()
    with installed(world.cluster, [world.pool.namespace]) as operator, load() as clients:
        (pod,) = map(name_of, operator.pods())

        def healed() -> bool:
            ended = world.cluster.ended_by(operator.namespace, pod, "operator")
            return ended == "OOMKilled" and all(map(is_ready, operator.pods()))

        world.exhaust_memory(world.cluster.processes(operator.namespace, pod, "operator"))
        clients.answers_go_on()
        back_s = world.comes_back(healed)
    world.operator.start()

    record_property("seen", seen(back_s, clients))
    assert clients.failures == []


def test_a_killed_operator_is_not_missed(
    world: World, load: Callable[..., AbstractContextManager[Load]], record_property: Note
) -> None:
    with load() as clients:
        world.operator.kill()
        clients.answers_go_on()
        world.operator.start()
        back_s = world.comes_back()

    record_property("seen", seen(back_s, clients))
    assert clients.failures == []


def test_a_server_that_is_deleted_is_replaced_and_no_request_fails(
    world: World, load: Callable[..., AbstractContextManager[Load]], record_property: Note
) -> None:
    gone = world.pool.servers()[0]
    with load() as clients:
        world.pool.delete("pod", name_of(gone))
        back_s = world.comes_back(lambda: name_of(gone) not in map(name_of, world.pool.servers()))
        ended(world, gone)

    record_property("seen", seen(back_s, clients))
    assert clients.failures == []


@pytest.mark.parametrize("reconnects", [True, False], ids=["new connections", "kept connections"])
def test_a_gateway_that_is_deleted_is_replaced_and_no_request_fails(
    world: World, load: Callable[..., AbstractContextManager[Load]], record_property: Note, reconnects: bool
) -> None:
    gone = world.pool.gateways()[0]
    with load(reconnects=reconnects) as clients:
        world.pool.delete("pod", name_of(gone))
        back_s = world.comes_back(lambda: name_of(gone) not in map(name_of, world.pool.gateways()))
        ended(world, gone)

    record_property("seen", seen(back_s, clients))
    assert [failed for failed in clients.failures if NOT_BEGUN not in failed.error] == []


def seen(back_s: float, clients: Load, *strikes: Strike) -> str:
    """Return what is written down of a test as JSON."""
    return json.dumps({"back_s": round(back_s, 1), **clients.summary(*strikes)})


def ended(world: World, pod: dict[str, dict[str, str]]) -> None:
    world.pool.wait("the pod has ended", lambda: world.cluster.get(world.pool.namespace, "pod", name_of(pod)) is None)


def test_a_killed_kubelet_is_not_missed_and_then_does_what_was_to_be_done_meanwhile(
    world: World, load: Callable[..., AbstractContextManager[Load]], record_property: Note
) -> None:
    pod = name_of(world.pool.servers()[0])
    agent = world.process(pod, "agent", "cluster.agent")
    with load() as clients:
        with world.cluster.kubelet_down():
            world.kill(agent)
            clients.answers_go_on()
        back_s = world.comes_back(lambda: world.process(pod, "agent", "cluster.agent") != agent)

    record_property("seen", seen(back_s, clients))
    assert clients.failures == []


def test_an_api_server_that_hangs_is_not_missed_and_an_envoy_that_dies_meanwhile_comes_back_with_the_last_plan(
    world: World, load: Callable[..., AbstractContextManager[Load]], record_property: Note
) -> None:
    pod = name_of(world.pool.gateways()[0])
    former = world.process(pod, "envoy", "envoy --config-path")
    address = next(each["status"]["podIP"] for each in world.pool.gateways() if name_of(each) == pod)
    with load() as clients, Load(f"http://{address}:8080", pause_s=0.2) as direct:
        direct.answers_go_on()
        with world.cluster.api_paused():
            paused_s = time.monotonic()
            clients.answers_go_on()
            struck = world.kill(former)
            direct.answers_go_on()
            clients.answers_go_on()
            time.sleep(max(0.0, paused_s + PAUSED_S - time.monotonic()))
        back_s = world.comes_back(lambda: world.process(pod, "envoy", "envoy --config-path") != former)

    record_property("seen", seen(back_s, clients, struck))
    assert clients.unexcused(struck, excuses=NOBODY) == []
