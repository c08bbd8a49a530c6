"""Models whose answers are watched for drift: what agents count, what the condition says, and what a restart keeps."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from fakes.cluster_world import KEY, NAMESPACE, ClusterWorld, model_manifest
from segserve_common.kube.kinds import CONFIG_MAPS
from segserve_common.kube.names import SHARDS, assignment_name
from segserve_common.kube.shards import content_of, unpack

DRIFT = {"window": "1m", "reference": {"window": {"duration": "30m"}}}
SERVERS = 2


@pytest.fixture
async def world() -> AsyncIterator[ClusterWorld]:
    world = ClusterWorld()
    world.apply_pool(replicas=SERVERS)
    yield world
    await world.passes.close()


class Camera:
    """Images of some brightness, most of them with coins; the totals are those of each server."""

    def __init__(self, world: ClusterWorld, network: str = "1") -> None:
        self._world, self._network = world, network
        self._random = np.random.default_rng(1)
        self._totals = {"brightness": np.zeros(11), "classShare:coin": np.zeros(2), "emptyAnswers": np.zeros(2)}

    async def film(self, minutes: int, brightness: float = 0.45, coins: float = 0.9) -> None:
        """Let time pass, with 60 images per minute at each server."""
        for _ in range(minutes * 3):
            light = np.clip(self._random.normal(brightness, 0.08, 20), 0.0, 0.999)
            found = int((self._random.random(20) < coins).sum())
            self._totals["brightness"] += np.append(np.histogram(light, 10, (0.0, 1.0))[0], 0)
            self._totals["classShare:coin"] += (20 - found, found)
            self._totals["emptyAnswers"] += (found, 20 - found)
            await self._turn()

    async def restart_servers(self) -> None:
        """Let the servers count from zero."""
        for counts in self._totals.values():
            counts[:] = 0
        await self._turn()

    async def _turn(self) -> None:
        counted = {name: tuple(map(int, counts)) for name, counts in self._totals.items() if counts.any()}
        self._world.answers[self._network] = counted
        await self._world.turns(2, seconds_each=10.0)


async def watched(world: ClusterWorld, **drift: Any) -> Camera:
    """Serve a model whose reference is complete."""
    world.apply(model_manifest("coins", drift={**DRIFT, **drift}))
    await world.turns(12)
    camera = Camera(world)
    await camera.film(3)
    assert is_asked(world)
    assert world.condition("coins", "Drifting") == ("Unknown", "CountingReference")
    await camera.film(40)
    assert world.condition("coins", "Drifting") == ("False", "AsReference")
    return camera


def message(world: ClusterWorld) -> str:
    (found,) = (each for each in world.status("coins")["conditions"] if each["type"] == "Drifting")
    return str(found["message"])


def is_asked(world: ClusterWorld) -> bool:
    """Tell whether any group's assignment orders counts."""
    group = world.status("coins")["roles"]["stable"]["group"]
    maps = [world.kube.peek(CONFIG_MAPS, NAMESPACE, assignment_name(KEY.pool, group, at)) for at in range(SHARDS)]
    contents = [content_of(each) for each in maps if each is not None]
    assert len(contents) == SHARDS
    return any("counting" in model for content in contents if content is not None for model in unpack(content))


async def test_darker_images_are_drift_with_numbers_an_event_and_an_end(world: ClusterWorld) -> None:
    camera = await watched(world)

    await camera.film(20, brightness=0.15)

    assert world.condition("coins", "Drifting") == ("True", "ImagesChanged")
    assert "brightness: PSI" in message(world)
    assert ("coins", "ImagesChanged") in world.told()
    assert world.condition("coins", "Ready")[0] == "True"

    await camera.film(20)

    assert world.condition("coins", "Drifting") == ("False", "AsReference")
    assert ("coins", "DriftOver") in world.told()


async def test_a_class_that_is_gone_is_told_by_its_name(world: ClusterWorld) -> None:
    camera = await watched(world)

    await camera.film(20, coins=0.0)

    assert world.condition("coins", "Drifting") == ("True", "ClassGone")
    assert "classShare of coin" in message(world)
    assert "% of answers" in message(world)


async def test_declared_slices_without_answers_are_named(world: ClusterWorld) -> None:
    slices = ["north", "east", "south", "west", "roof"]
    world.apply(model_manifest("coins", drift=DRIFT, metrics={"slices": slices}))
    await world.turns(12)
    camera = Camera(world)

    for _ in range(40):
        await camera.film(1)
        world.slices["1"] = {"north": world.answers["1"]}

    assert world.condition("coins", "Drifting") == ("False", "AsReference")
    assert message(world).endswith("there is no reference of them yet: slices east, roof, south and 1 more")


async def test_a_restarted_operator_keeps_the_reference_and_the_drift(world: ClusterWorld) -> None:
    camera = await watched(world)
    world.restart()
    await camera.film(20, brightness=0.15)
    since = message(world)
    assert world.condition("coins", "Drifting") == ("True", "ImagesChanged")

    for _ in range(3):
        world.restart()
        await camera.film(3, brightness=0.15)

    assert world.condition("coins", "Drifting") == ("True", "ImagesChanged")
    assert message(world) == since


async def test_a_spec_that_cannot_be_read_ends_neither_reference_nor_drift(world: ClusterWorld) -> None:
    camera = await watched(world)
    await camera.film(20, brightness=0.15)
    since, stored = message(world), world.status("coins")["drift"]

    world.apply(model_manifest("coins", drift=DRIFT, family="unknown"))
    await camera.film(1, brightness=0.15)
    world.restart()
    await camera.film(1, brightness=0.15)

    assert world.condition("coins", "Drifting") == ("True", "ImagesChanged")
    assert (message(world), world.status("coins")["drift"]) == (since, stored)

    world.apply(model_manifest("coins", drift=DRIFT))
    await camera.film(3, brightness=0.15)

    assert world.condition("coins", "Drifting") == ("True", "ImagesChanged")
    assert message(world) == since

    await camera.film(20)

    assert world.condition("coins", "Drifting") == ("False", "AsReference")


async def test_a_reference_is_complete_when_its_time_is_over_though_nobody_calls_any_more(world: ClusterWorld) -> None:
    world.apply(model_manifest("coins", drift=DRIFT))
    await world.turns(12)
    camera = Camera(world)
    await camera.film(28)

    await world.turns(20, seconds_each=60.0)

    assert world.condition("coins", "Drifting") == ("False", "AsReference")
    stored = world.status("coins")["drift"]
    world.restart()
    await world.turns(3)
    assert world.condition("coins", "Drifting") == ("False", "AsReference")
    assert world.status("coins")["drift"] == stored


async def test_a_restart_while_the_reference_is_counted_loses_none_of_it_but_the_last_minutes(
    world: ClusterWorld,
) -> None:
    world.apply(model_manifest("coins", drift=DRIFT))
    await world.turns(12)
    camera = Camera(world)
    await camera.film(20)
    world.restart()

    await camera.film(15)

    assert world.condition("coins", "Drifting") == ("False", "AsReference")


async def test_servers_that_count_from_zero_again_are_no_drift(world: ClusterWorld) -> None:
    camera = await watched(world)

    await camera.restart_servers()
    await camera.film(20)

    assert world.condition("coins", "Drifting") == ("False", "AsReference")


async def test_without_drift_in_the_spec_nothing_is_asked_or_said(world: ClusterWorld) -> None:
    world.apply(model_manifest("coins"))

    await world.turns(20)

    assert not is_asked(world)
    assert "Drifting" not in {each["type"] for each in world.status("coins")["conditions"]}


async def test_the_reference_of_a_new_revision_is_counted_anew(world: ClusterWorld) -> None:
    await watched(world)

    world.apply(model_manifest("coins", "2", drift=DRIFT))
    await world.turns(12)

    assert world.condition("coins", "Drifting") == ("Unknown", "CountingReference")


async def test_statuses_are_written_no_more_often_than_conditions_change(world: ClusterWorld) -> None:
    camera = await watched(world)
    before = world.status("coins")

    await camera.film(30)

    assert world.status("coins") == before
