"""A store keeps specs, statuses and revision records, in memory as in files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fakes.platform import assigned
from fakes.stores import ClusterHarness, FileHarness, MemoryHarness
from segserve_operator.core.failure import FailureReason
from segserve_operator.core.world.observed import (
    Candidate,
    ModelObserved,
    ModelStatus,
    ObservedCondition,
    RoleHolder,
    Roles,
)
from segserve_operator.service import Store


@pytest.fixture(params=["memory", "files"])
def harness(request: pytest.FixtureRequest, tmp_path: Path) -> MemoryHarness | FileHarness:
    return MemoryHarness() if request.param == "memory" else FileHarness(tmp_path)


STATUS = ModelStatus(
    observed_generation=3,
    read_generation=4,
    roles=Roles(
        stable=RoleHolder("coins-1", "main", 1_700_000_000),
        candidate=Candidate("coins-2", None, 1_700_000_100, FailureReason("GoldenFailed", "IoU 0.2, allowed 0.9")),
        previous=RoleHolder("coins-0", "coins-0", 1_700_000_001),
    ),
    conditions=(
        ObservedCondition("Ready", "True", "Serving", "all is well"),
        ObservedCondition("Degraded", "False", "AsWanted"),
    ),
    weight=0,
    url="http://127.0.0.1:8080/v2/models/coins",
)
LATE = FailureReason("ProgressDeadlineExceeded", "0 of at least 1 servers")
STALLED = replace(STATUS, roles=replace(STATUS.roles, candidate=Candidate("coins-2", None, 1_700_000_100, None, LATE)))


async def test_an_applied_model_is_observed_with_its_spec(harness) -> None:
    harness.apply("coins", "one")

    (model,) = await harness.store.models()

    assert (model.name, model.generation, model.deleting) == ("coins", 1, False)
    assert model.wanted.assigned.model == "coins"


async def test_another_network_is_another_revision_and_generation(harness) -> None:
    harness.apply("coins", "one")
    (before,) = await harness.store.models()
    harness.apply("coins", "two")
    (after,) = await harness.store.models()

    assert after.generation == before.generation + 1
    assert after.wanted.assigned.revision != before.wanted.assigned.revision


@pytest.mark.parametrize("status", [STATUS, STALLED], ids=["failed", "stalled"])
async def test_a_status_comes_back_as_it_was_written(harness, status: ModelStatus) -> None:
    harness.apply("coins", "one")
    await harness.store.save_status("coins", status)

    (model,) = await harness.store.models()

    assert model.status == status


async def test_a_status_of_a_model_that_is_gone_is_dropped(harness) -> None:
    await harness.store.save_status("coins", STATUS)

    assert await harness.store.models() == ()


async def test_a_new_spec_keeps_the_status(harness) -> None:
    harness.apply("coins", "one")
    await harness.store.save_status("coins", STATUS)
    harness.apply("coins", "two")

    (model,) = await harness.store.models()

    assert model.status == STATUS


async def test_a_deleted_model_stays_until_it_is_forgotten(harness) -> None:
    harness.apply("coins", "one")
    harness.delete("coins")

    (model,) = await harness.store.models()
    assert model.deleting

    await harness.store.forget("coins")
    await harness.store.forget("coins")
    assert await harness.store.models() == ()


async def test_records_of_revisions_come_back_and_can_be_dropped_twice(harness) -> None:
    store: Store = harness.store
    told = assigned("coins")
    await store.save_revision(told.revision, told)

    assert await store.revisions() == {told.revision: told}

    await store.drop_revision(told.revision)
    await store.drop_revision(told.revision)
    assert await store.revisions() == {}


@pytest.mark.parametrize("kind", ["files", "cluster"])
async def test_a_model_follows_the_spec_of_the_one_that_it_names_and_needs_it(kind: str, tmp_path: Path) -> None:
    harness = FileHarness(tmp_path) if kind == "files" else ClusterHarness()
    cascade = {"light": {"model": "small"}, "when": "confidence", "threshold": 0.5}
    harness.apply("coins", "one", spec={"cascade": cascade})

    async def coins() -> ModelObserved:
        return next(model for model in await harness.store.models() if model.name == "coins")

    problem = (await coins()).problem
    assert "spec.cascade.light.model: there is no model 'small'" in problem.message

    wanted = []
    for network in ("one", "two"):
        harness.apply("small", network)
        wanted.append((await coins()).wanted)
    first, second = (each.assigned for each in wanted if each is not None)
    assert first.revision != second.revision
    assert second.light_artifact.sha256 == second.pipeline.cascade.light.artifact_sha256

    harness.apply("small", "one", spec={"input": {"colour": "GREY"}})
    problem = (await coins()).problem
    assert "small has input.colour GREY; that of this model is RGB" in problem.message
