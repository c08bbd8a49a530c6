"""Whatever an API server does to single calls, or a watch to what it tells: the end is that of the undisturbed run."""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

import pytest

from convergence.story import Undisturbed, final_state, story
from fakes.cluster_world import ClusterWorld, model_manifest
from fakes.kube_faults import Fault, Faulty, crash_at, refusal
from segserve_common.api_errors import (
    ApiError,
    ConflictError,
    GoneError,
    InvalidError,
    NotFoundError,
    ThrottledError,
    UnavailableError,
)
from segserve_common.kube.kinds import MODELS, Json, Kind
from segserve_operator.adapters.kube.view import View, audit

Answer = TypeVar("Answer")
ERRORS = {
    "404": NotFoundError,
    "409": ConflictError,
    "410": GoneError,
    "422": InvalidError,
    "429 with Retry-After": ThrottledError,
    "500": UnavailableError,
}


class EveryWriteFailsOnce(Faulty):
    """Refuses each different write the first time that it comes, before or after it took place."""

    def __init__(self, world: ClusterWorld, error: Callable[[], ApiError], *, landed: bool) -> None:
        super().__init__(world.kube)
        self.refused: set[str] = set()
        self._error, self._landed = error, landed

    async def create(self, kind: Kind, namespace: str, manifest: Json) -> Json:
        """Create an object."""
        return await self._once("create", kind, manifest, super().create(kind, namespace, manifest))

    async def apply(self, kind: Kind, namespace: str, manifest: Json) -> Json:
        """Apply a manifest."""
        return await self._once("apply", kind, manifest, super().apply(kind, namespace, manifest))

    async def patch(self, kind: Kind, namespace: str, name: str, patch: Json, *, status: bool = False) -> Json:
        """Merge a patch."""
        call = super().patch(kind, namespace, name, patch, status=status)
        return await self._once(f"patch {name} {status}", kind, patch, call)

    async def delete(self, kind: Kind, namespace: str, name: str, *, uid: str | None = None) -> bool:
        """Delete an object."""
        return await self._once("delete", kind, {"name": name}, super().delete(kind, namespace, name, uid=uid))

    async def _once(self, verb: str, kind: Kind, content: Json, call: Coroutine[Any, Any, Answer]) -> Answer:
        key = f"{verb} {kind.name} {_without_times(content)}"
        if key in self.refused:
            return await call
        self.refused.add(key)
        if self._landed:
            await call
        call.close()
        raise self._error()


def _without_times(content: Json) -> str:
    metadata = {key: value for key, value in content.get("metadata", {}).items() if key != "resourceVersion"}
    return re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "then", repr({**content, "metadata": metadata}))


@pytest.mark.parametrize("landed", [False, True], ids=["refused", "its answer is lost"])
@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
async def test_every_write_may_fail_once_in_any_way(
    error: type[ApiError], landed: bool, undisturbed: Undisturbed
) -> None:
    world = ClusterWorld()
    world.api = faulty = EveryWriteFailsOnce(world, refusal(error, retry_after_s=1), landed=landed)
    world.restart()

    await story(world, turns=140)

    assert len(faulty.refused) > 40
    assert final_state(world) == undisturbed.state


async def test_a_server_that_answers_nothing_for_a_minute_is_waited_for(undisturbed: Undisturbed) -> None:
    world = ClusterWorld()
    start_s = world.now_s
    silent = Fault(refusal(UnavailableError), times=None, until=start_s + 60)
    world.api = Faulty(world.kube, silent, clock=lambda: world.now_s)
    world.restart()

    await story(world, turns=60)

    assert final_state(world) == undisturbed.state


@pytest.mark.parametrize("delay_s", [1.0, 5.0, 30.0])
async def test_a_view_that_lags_never_brings_an_older_state_back(delay_s: float, undisturbed: Undisturbed) -> None:
    world = ClusterWorld(delay_s=delay_s)

    await story(world, turns=120)

    assert final_state(world) == undisturbed.state


@pytest.mark.parametrize("number", range(5, 100, 9))
async def test_a_process_that_dies_while_its_view_lags_leaves_nothing_wrong(
    number: int, undisturbed: Undisturbed
) -> None:
    world = ClusterWorld(delay_s=5.0)
    world.api = Faulty(world.kube, crash_at(number))
    world.restart()

    await story(world, turns=60)

    assert final_state(world) == undisturbed.state


@pytest.mark.parametrize("change", ["edit", "delete", "foreign delete"])
async def test_what_went_before_the_watch_began_is_not_written_for_ever(change: str) -> None:
    world = ClusterWorld()
    world.apply_pool()
    world.apply(model_manifest("coins", keepPrevious="0s"))
    await world.turns(10)
    for watch in world.kube.watches:
        watch.callback = partial(_all_but_ends, world.view)
    match change:
        case "edit":
            world.apply(model_manifest("coins", "2", keepPrevious="0s"))
        case "delete":
            world.delete(MODELS, "coins")
        case _:
            world.delete(MODELS, "coins")
            world.kube.edit(MODELS, "tests", "coins", {"metadata": {"finalizers": None}})
    await world.turns(12)

    assert [await world.run_pass() for _ in range(3)] == [0, 0, 0]


def _all_but_ends(view: View, event: str, kind: Kind, item: Json) -> None:
    if event != "DELETED":
        view.take(kind, item)


async def test_what_no_event_told_of_is_found_by_the_audit() -> None:
    world = ClusterWorld()
    world.apply_pool()
    world.apply(model_manifest("coins"))
    world.apply(model_manifest("cells"))
    await world.turns(10)
    for watch in world.kube.watches:
        watch.silent = True
    world.apply(model_manifest("coins", "2"))
    world.delete(MODELS, "cells")
    await world.turns(5)
    first = world.weights("coins")

    for _ in range(12):
        await audit(world.view, world.kube, [None])
        await world.turns(1)

    assert world.weights("coins") != first
    assert [found["metadata"]["name"] for found in world.kube.all(MODELS)] == ["coins"]


async def test_a_model_deleted_and_made_anew_while_nobody_looked_is_another_model() -> None:
    world = ClusterWorld()
    world.apply_pool()
    world.apply(model_manifest("coins"))
    await world.turns(10)
    for watch in world.kube.watches:
        watch.silent = True
    world.kube.vanish(MODELS, "tests", "coins")
    world.apply(model_manifest("coins", "2"))
    await audit(world.view, world.kube, [None])
    for watch in world.kube.watches:
        watch.silent = False

    await world.turns(12)

    assert world.condition("coins", "Ready") == ("True", "Serving")
    assert world.status("coins")["observedGeneration"] == 1


async def test_a_model_whose_status_cannot_be_written_does_not_hold_up_the_others() -> None:
    world = ClusterWorld()
    world.apply_pool()
    world.apply(model_manifest("coins"))
    world.apply(model_manifest("poison"))
    world.api = PoisonedStatus(world.kube)
    world.restart()

    await world.turns(12)

    assert world.condition("coins", "Ready") == ("True", "Serving")
    assert world.status("poison") == {}


class PoisonedStatus(Faulty):
    """Refuses whatever is said of one model."""

    async def patch(self, kind: Kind, namespace: str, name: str, patch: Json, *, status: bool = False) -> Json:
        if name == "poison":
            raise InvalidError("this one never")
        return await super().patch(kind, namespace, name, patch, status=status)
