"""Wherever the operator dies, whatever the API does to it: a change ends on the real cluster as it does undisturbed.

Ten moments are sampled here; `make prove` goes through all of them, and `tests/convergence` through all against a fake
API server.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from itertools import chain, zip_longest
from pathlib import Path

import pytest

from fakes.api_proxy import ApiProxy
from fakes.cluster import Cluster
from fakes.crash_story import Point, Story, story
from fakes.operator_process import OperatorProcess

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

POINTS_OF_STAGE = {"apply": 4, "edit": 2, "delete": 4}


@pytest.fixture(scope="module")
def learnt(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    with story(cluster, tmp_path_factory.mktemp("story")) as told:
        told.learn()
        yield told


def sampled(writes: dict[str, int]) -> Iterator[Point]:
    """Return moments spread over each stage's writes, in such an order that each stage follows the one before."""
    chosen = random.Random(4)

    def moments(stage: str, count: int) -> list[Point]:
        width = writes[stage] / count
        numbers = [1 + int(width * (index + chosen.random())) for index in range(count)]
        return [Point(stage, number, chosen.random() < 0.5) for number in numbers]

    rounds = zip_longest(*(moments(stage, count) for stage, count in POINTS_OF_STAGE.items()))
    yield from filter(None, chain.from_iterable(rounds))


def test_dying_at_a_write_alters_nothing_about_the_end(learnt: Story) -> None:
    hits = 0
    for point in sampled(learnt.writes):
        learnt.reach(point.stage)
        hits += learnt.die(point).hits

    assert hits >= 8, f"few moments were reached; undisturbed writes: {learnt.writes}"


SAMPLED_FAULTS = (
    ("409 to the first write of each object", "apply"),
    ("429 with Retry-After to the first write of each object", "delete"),
    ("500 to the first write of each object, which was done", "apply"),
    ("every event 5 s late", "delete"),
)


@pytest.mark.parametrize(("fault", "stage"), SAMPLED_FAULTS)
def test_what_the_api_does_to_calls_alters_nothing_about_the_end(learnt: Story, fault: str, stage: str) -> None:
    learnt.reach(stage)

    learnt.meet(fault, stage)


def test_a_leader_that_sleeps_is_succeeded_and_writes_nothing_when_it_wakes(
    cluster: Cluster, learnt: Story, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learnt.reach("apply")
    namespace, sleeper = learnt.pool.namespace, learnt.operator
    with ApiProxy(cluster.kubeconfig).in_thread() as proxy:
        kubeconfig = proxy.write_kubeconfig(tmp_path / "other.conf", namespace)
        other = OperatorProcess(kubeconfig, (namespace,), cluster.images, tmp_path / "other.log", name="other")
        with other.running():
            learnt.pool.wait("the other one waits", lambda: "leases" in [call.resource for call in proxy.calls])
            assert proxy.writes == []

            sleeper.send(signal.SIGSTOP)
            monkeypatch.setattr(learnt, "leader", other)
            before = len(learnt.proxy.writes)
            learnt.run("apply")
            assert holder(cluster, namespace) == "other"
            assert proxy.writes != []

            calls = len(learnt.proxy.calls)
            sleeper.send(signal.SIGCONT)
            learnt.pool.wait("it is awake", lambda: len(learnt.proxy.calls) > calls + 3)
            learnt.run("delete")
            assert len(learnt.proxy.writes) == before
            assert holder(cluster, namespace) == "other"
        learnt.pool.wait("the first one leads again", lambda: holder(cluster, namespace) == sleeper.name)


def holder(cluster: Cluster, namespace: str) -> str:
    return str(cluster.get(namespace, "lease", "segserve-operator")["spec"]["holderIdentity"])
