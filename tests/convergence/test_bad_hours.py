"""A cluster whose machines, clock or API server are bad for a while: callers lose nothing, and the end is the same."""

from __future__ import annotations

import random

import pytest

from convergence.story import Undisturbed, final_state, story
from fakes.cluster_world import KEY, NAMESPACE, ClusterWorld, model_manifest
from fakes.kube_faults import Call, Faulty, refusal
from segserve_common.api_errors import ConflictError, ThrottledError, UnavailableError
from segserve_common.kube.kinds import MODELS, PODS, POOLS
from segserve_common.kube.names import COMPONENT_LABEL, GATEWAY, SERVER

LOST = {"type": "Ready", "status": "False", "reason": "NodeLost", "lastTransitionTime": "2020-01-01T00:00:00Z"}
ERRORS = (ConflictError, ThrottledError, UnavailableError)


async def served(replicas: int = 3) -> ClusterWorld:
    world = ClusterWorld()
    world.apply_pool(replicas=replicas)
    world.apply(model_manifest("coins", keepPrevious="30s"))
    await world.turns()
    assert world.condition("coins", "Ready") == ("True", "Serving")
    return world


def servers(world: ClusterWorld) -> list[str]:
    """Return the names of the servers' pods."""
    return pods_of(world, SERVER)


def pods_of(world: ClusterWorld, component: str) -> list[str]:
    pods = world.kube.all(PODS, NAMESPACE)
    return [pod["metadata"]["name"] for pod in pods if pod["metadata"]["labels"][COMPONENT_LABEL] == component]


def reached(world: ClusterWorld) -> int:
    """Return how many servers get requests of the model."""
    return sum(len(share["endpoints"]) for share in world.routes()["coins"]["shares"] if share["weight"])


def lose(world: ClusterWorld, pod: str) -> None:
    """Lose a pod with its node, as the node controller tells it: nobody drained it, and nobody ends it."""
    containers = world.kube.peek(PODS, NAMESPACE, pod)["status"]["containerStatuses"]
    status = {
        "phase": "Unknown",
        "conditions": [LOST],
        "containerStatuses": [{**container, "ready": False} for container in containers],
    }
    world.kube.edit_status(PODS, NAMESPACE, pod, {"status": status})


async def test_a_node_that_is_lost_takes_its_server_out_and_holds_no_change_up() -> None:
    world = await served()
    first = world.status("coins")["roles"]["stable"]["revision"]
    lose(world, servers(world)[0])
    await world.turns(3, seconds_each=30)

    assert reached(world) == 2
    assert world.condition("coins", "Ready") == ("True", "Serving")

    world.apply(model_manifest("coins", "2", keepPrevious="30s"))
    await world.turns(60, seconds_each=30)

    assert world.status("coins")["roles"]["stable"]["revision"] != first
    assert sum(world.weights("coins").values()) == 100
    assert world.condition("coins", "Ready") == ("True", "Serving")


def cut_off(world: ClusterWorld, name: str) -> str:
    """Lose a node as the node controller leaves its pod, with the kubelet's last words; return the node."""
    pod = world.kube.peek(PODS, NAMESPACE, name)
    kept = [each for each in pod["status"]["conditions"] if each["type"] != "Ready"]
    world.kube.edit_status(PODS, NAMESPACE, name, {"status": {"conditions": [*kept, LOST]}})
    return str(pod["spec"]["nodeName"])


@pytest.mark.parametrize(
    ("component", "serving", "degraded"), [(SERVER, 2, ("True", "NodeLost")), (GATEWAY, 3, ("False", "AsWanted"))]
)
async def test_a_change_settles_while_the_pod_of_a_lost_node_stays(
    component: str, serving: int, degraded: tuple[str, str]
) -> None:
    world = await served()
    lost = pods_of(world, component)[0]
    node = cut_off(world, lost)
    await world.turns(3, seconds_each=30)

    assert reached(world) == serving
    assert world.condition("coins", "Degraded") == degraded
    assert node in world.pool_message("Degraded")

    world.apply(model_manifest("coins", "2", keepPrevious="30s"))
    await world.turns(60, seconds_each=30)

    assert lost in pods_of(world, component)
    assert world.condition("coins", "Progressing") == ("False", "Idle")
    assert (
        world.status("coins")["roles"]["stable"]["group"]
        == world.kube.peek(POOLS, NAMESPACE, KEY.pool)["status"]["mainGroup"]
    )
    assert reached(world) == serving


async def test_the_last_server_is_lost_with_its_node_and_the_model_says_that_nobody_serves_it() -> None:
    world = await served(replicas=1)
    (server,) = servers(world)
    lose(world, server)
    await world.turns(3, seconds_each=30)

    assert world.condition("coins", "Ready") == ("False", "NoServer")
    assert world.condition("coins", "Degraded")[0] == "True"

    world.kube.vanish(PODS, NAMESPACE, server)  # the pods of a node that is gone are removed in the end
    await world.turns(5)

    assert world.condition("coins", "Ready") == ("True", "Serving")


class Unreliable(Faulty):
    """Refuses a share of all calls at random, half of them after they took place, until it is healed."""

    def __init__(self, world: ClusterWorld, share: float, seed: int) -> None:
        super().__init__(world.kube)
        self._share, self._random = share, random.Random(seed)
        self.refused = 0

    async def _do(self, verb, kind, name, make):
        call = Call(len(self.calls) + 1, verb, kind, name)
        self.calls.append(call)
        if self._random.random() >= self._share:
            return await make()
        self.refused += 1
        if self._random.random() < 0.5:
            await make()
        raise refusal(self._random.choice(ERRORS), retry_after_s=1)()

    def heal(self) -> None:
        """Refuse nothing from now on."""
        self._share = 0.0


@pytest.mark.parametrize("seed", range(3))
async def test_ten_minutes_of_an_api_that_is_late_and_fails_three_calls_in_ten_change_nothing(
    seed: int, undisturbed: Undisturbed
) -> None:
    world = ClusterWorld(delay_s=5.0)
    world.api = unreliable = Unreliable(world, 0.3, seed)
    world.restart()

    await story(world, turns=120)
    assert unreliable.refused > 10
    unreliable.heal()
    await world.turns(20, seconds_each=5)

    assert final_state(world) == undisturbed.state


@pytest.mark.parametrize("step_s", [-3600, 86_400])
async def test_a_clock_that_steps_while_a_change_settles_moves_no_request_wrongly(step_s: float) -> None:
    world = await served()
    world.apply(model_manifest("coins", "2", keepPrevious="30s"))
    await world.turns(4)
    world.now_s += step_s
    for _ in range(40):
        await world.turns(1, seconds_each=5)
        assert sum(world.weights("coins").values()) == 100
        assert reached(world) >= 3
        assert world.condition("coins", "Ready")[0] == "True"

    # A clock that was put back keeps what has a time to come, for no longer than until that time.
    await world.turns(40, seconds_each=max(-step_s / 20, 5))

    assert len(world.groups()) == 1
    assert world.status("coins")["roles"].keys() == {"stable"}


async def test_a_model_that_raises_in_every_pass_is_nobody_elses_affair() -> None:
    world = await served()
    for index in range(20):
        world.apply(model_manifest(f"model-{index}", "2"))
    world.kube.edit_status(MODELS, NAMESPACE, "coins", {"status": {"roles": {"stable": {"revision": 7}}}})
    await world.turns(40, seconds_each=5)

    assert all(world.condition(f"model-{index}", "Ready") == ("True", "Serving") for index in range(20))
