"""Two models that come, one that changes and one that goes, on a cluster in memory; and where that ends."""

from __future__ import annotations

from dataclasses import dataclass

from fakes.cluster_world import ClusterWorld, model_manifest
from fakes.kube_faults import Faulty
from segserve_common.kube.kinds import MODELS


@dataclass(frozen=True, slots=True)
class Undisturbed:
    """Where the story ends when nothing goes wrong, and what each of its writes does to what kind of object."""

    state: dict[str, object]
    writes: list[tuple[str, str]]

    @classmethod
    async def of_story(cls) -> Undisturbed:
        """Go through the story once."""
        world = ClusterWorld()
        world.api = counted = Faulty(world.kube)
        world.restart()
        await story(world)
        return cls(final_state(world), counted.sorts_of_writes)


def final_state(world: ClusterWorld) -> dict[str, object]:
    models = {found["metadata"]["name"] for found in world.kube.all(MODELS)}
    return {
        "children": sorted(text for text in world.left() if not text.startswith("Pod ")),
        "weights": {name: world.weights(name) for name in models},
        "held": {group: world.held(group) for group in world.groups()},
        "conditions": {
            (name, kind): world.condition(name, kind)
            for name in models
            for kind in ("Ready", "Degraded", "Progressing")
        },
    }


async def story(world: ClusterWorld, turns: int = 25) -> None:
    """An apply, an edit that settles, and a delete."""
    world.apply_pool()
    world.apply(model_manifest("coins", keepPrevious="20s"))
    world.apply(model_manifest("cells", keepPrevious="20s"))
    await world.turns(turns * 2 // 5, seconds_each=5)
    world.apply(model_manifest("coins", "2", keepPrevious="20s"))
    world.delete(MODELS, "cells")
    await world.turns(turns, seconds_each=5)
