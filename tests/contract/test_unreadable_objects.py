"""An operator takes over what another one left, and one object that it cannot read stops nothing but itself."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any

import pytest

from fakes.cluster_world import KEY, NAMESPACE, ClusterWorld
from fakes.written_objects import repacked, written_objects
from segserve_builder.agent.protocol import AssignedModel, ModelReport, read_reports
from segserve_common.kube.kinds import CHILDREN, MODELS, POOLS, REVISIONS, ROLLOUTS
from segserve_common.kube.names import REVISION_LABEL
from segserve_operator.api.meta import SpecError
from segserve_operator.store_format import STORE_FORMAT

Json = dict[str, Any]
KINDS = {kind.name: kind for kind in (MODELS, POOLS, ROLLOUTS, *CHILDREN)}
BEGUN_S = 1_800_000_100.0


@cache
def own_objects() -> str:
    """Return the objects that an operator writes, as JSON."""
    return json.dumps(asyncio.run(written_objects()))


@pytest.fixture(scope="module", autouse=True)
def written() -> None:
    """Write them before a test has an event loop of its own."""
    own_objects()


def world_with(objects: list[Json]) -> ClusterWorld:
    """Return a cluster that another operator leaves to this one."""
    world = ClusterWorld(now_s=BEGUN_S)
    for item in objects:
        world.kube.hold(KINDS[item["kind"]], repacked(item))
    world.restart()
    return world


def answered(world: ClusterWorld) -> dict[str, dict[str, tuple[int, int]]]:
    """Return by model and revision the percentage of requests and the number of servers for them."""
    return {
        model: {share["revision"]: (share["weight"], len(share["endpoints"])) for share in route["shares"]}
        for model, route in world.routes().items()
    }


def decisions(world: ClusterWorld) -> Json:
    """Return all that an operator decided: roles, the rollout's state, weights and what servers are told to hold."""
    statuses = {name: world.status(name) for name in ("coins", "discs")}
    return {
        "roles": {
            name: {
                role: {key: holder.get(key) for key in ("revision", "group", "state")}
                for role, holder in status["roles"].items()
                if role in ("stable", "candidate", "previous")
            }
            for name, status in statuses.items()
        },
        "rollout": {
            name: {key: (status.get("rollout") or {}).get(key) for key in ("phase", "weight", "step", "sequence")}
            for name, status in statuses.items()
        },
        "answered": answered(world),
        "held": {group: world.held(group) for group in sorted(world.groups())},
    }


async def passes(world: ClusterWorld, count: int = 3) -> ClusterWorld:
    """Let the operator make passes while agents and gateways are silent: their reports are as they were left."""
    for _ in range(count):
        assert await world.run_pass() >= 0
        world.now_s += 1.0
    return world


async def test_an_operator_takes_over_from_another_one_and_moves_no_request() -> None:
    world = world_with(json.loads(own_objects()))
    before, roles = answered(world), decisions(world)["roles"]
    assert before["discs"] != {}

    for _ in range(8):
        await world.turns(1)
        after = answered(world)
        for model, shares in before.items():
            for revision, (weight, servers) in shares.items():
                assert after[model][revision][0] == weight
                assert after[model][revision][1] >= servers

    assert decisions(world)["roles"] == roles
    assert world.condition("coins", "Ready") == world.condition("discs", "Ready") == ("True", "Serving")
    assert [world.condition(name, "Degraded")[0] for name in roles] == ["False", "False"]


@pytest.mark.parametrize("found", [None, 2], ids=["no number", "another number"])
async def test_a_store_of_another_format_is_refused_with_what_to_do_and_goes_on_serving(found: int | None) -> None:
    objects = json.loads(own_objects())
    before = answered(world_with(copy.deepcopy(objects)))
    pool = only(objects, "TritonPool")
    assert pool["status"].pop("format") == STORE_FORMAT
    pool["status"] |= {"format": found} if found else {}
    world = world_with(objects)
    revision = world.kube.revision

    shown = "it has no format" if found is None else f"its format is {found}"
    with pytest.raises(SpecError, match=rf"{shown}, this one's is {STORE_FORMAT}.*go back to that version"):
        await world.run_pass()

    assert world.kube.revision == revision
    assert answered(world) == before


def only(objects: list[Json], kind: str, start: str = "") -> Json:
    return next(item for item in objects if item["kind"] == kind and item["metadata"]["name"].startswith(start))


def report_maps(objects: list[Json]) -> list[Json]:
    found = [item for item in objects if item["kind"] == "ConfigMap"]
    return [
        reports
        for item in found
        for reports in item.get("binaryData", {}).values()
        if isinstance(reports, dict) and "serverReady" in reports
    ]


REPORTS: dict[str, Callable[[Json], object]] = {
    "a state that nobody knows": lambda report: [model.update(state="Warm") for model in report["models"]],
    "a list that became a mapping": lambda report: report.update(models={"coins": {}}),
    "no field that is known": lambda report: [report.pop(name) for name in list(report)],
}


@pytest.mark.parametrize("change", REPORTS.values(), ids=REPORTS)
async def test_servers_whose_reports_cannot_be_read_keep_their_requests(
    change: Callable[[Json], object],
) -> None:
    objects = json.loads(own_objects())
    before = answered(world_with(copy.deepcopy(objects)))
    reports = report_maps(objects)
    assert len(reports) == 4
    for report in reports:
        change(report)

    world = await passes(world_with(objects))

    assert answered(world) == before
    assert world.condition("coins", "Ready") == ("True", "Serving")


async def test_a_server_whose_report_cannot_be_read_gets_no_revision_that_it_did_not_serve() -> None:
    objects = json.loads(own_objects())
    for report in report_maps(objects):
        report.clear()
    world = await passes(world_with(objects), 1)
    spec = only(objects, "SegmentationModel", "coins")["spec"]
    artifact = {**spec["artifact"], "sha256": "33".rjust(64, "0")}
    world.kube.edit(MODELS, NAMESPACE, "coins", {"spec": {"artifact": artifact}})
    before = answered(world)["coins"]
    await passes(world, 5)

    assert before.items() <= answered(world)["coins"].items()
    assert world.status("coins")["roles"]["stable"]["revision"] in before


BROKEN: dict[str, tuple[str, Callable[[Json], object]]] = {
    "a record without its label": ("ControllerRevision", lambda item: item["metadata"]["labels"].pop(REVISION_LABEL)),
    "a record without content": ("ControllerRevision", lambda item: item.update(data={})),
    "a record of another form": ("ControllerRevision", lambda item: item["data"].update(pipeline={"graph": []})),
    "a status of another form": (
        "SegmentationModel",
        lambda item: item["status"]["roles"].update(stable={"name": item["status"]["roles"]["stable"]["revision"]}),
    ),
    "a rollout without content": ("SegmentationRollout", lambda item: item["status"].update(state=[], evidence={})),
}


@pytest.mark.parametrize(("kind", "change"), BROKEN.values(), ids=BROKEN)
async def test_one_object_that_cannot_be_read_stops_nobody_else_and_what_serves_goes_on_serving(
    kind: str, change: Callable[[Json], object]
) -> None:
    objects = json.loads(own_objects())
    before = answered(world_with(copy.deepcopy(objects)))
    roles = decisions(world_with(copy.deepcopy(objects)))["roles"]
    stable = roles["discs"]["stable"]["revision"]
    change(only(objects, kind, stable if kind == "ControllerRevision" else "discs"))
    world = world_with(objects)
    await world.turns(6)

    assert answered(world)["coins"] == before["coins"]
    assert answered(world)["discs"][stable][0] >= before["discs"][stable][0]
    assert answered(world)["discs"][stable][1] == 2
    assert world.status("discs")["roles"]["stable"]["revision"] == stable
    world.kube.remove(MODELS, NAMESPACE, "coins")
    await world.turns(6)
    assert world.kube.peek(MODELS, NAMESPACE, "coins") is None


async def test_a_record_that_cannot_be_read_is_told_by_its_model_and_written_anew() -> None:
    objects = json.loads(own_objects())
    stable = only(objects, "SegmentationModel", "coins")["status"]["roles"]["stable"]["revision"]
    only(objects, "ControllerRevision", stable)["data"] = {}
    world = world_with(objects)
    await world.turns(6)

    assert ("coins", "RecordUnreadable") in world.told()
    (record,) = world.kube.all(REVISIONS, NAMESPACE, {REVISION_LABEL: stable})
    assert AssignedModel.model_validate(record["data"]).revision == stable
    assert world.condition("coins", "Degraded") == ("False", "AsWanted")


async def test_a_status_that_cannot_be_read_is_told_by_its_model_and_built_from_the_records() -> None:
    objects = json.loads(own_objects())
    model = only(objects, "SegmentationModel", "coins")
    stable = model["status"]["roles"]["stable"]["revision"]
    model["status"]["roles"] = {"stable": {"name": stable}}
    world = world_with(objects)
    await world.turns(6)

    assert ("coins", "StatusUnreadable") in world.told()
    assert world.status("coins")["roles"]["stable"]["revision"] == stable
    assert world.condition("coins", "Ready") == ("True", "Serving")


async def test_a_status_that_cannot_be_read_and_has_no_notes_is_left_alone_with_what_serves() -> None:
    objects = json.loads(own_objects())
    for record in (item for item in objects if item["kind"] == "ControllerRevision"):
        record["metadata"].pop("annotations", None)
    before = answered(world_with(copy.deepcopy(objects)))
    only(objects, "SegmentationModel", "coins")["status"]["roles"] = {"primary": {"name": "coins-1"}, "stable": 7}
    world = world_with(objects)
    await world.turns(6)

    assert answered(world) == before
    assert world.condition("coins", "Degraded") == ("True", "StatusUnreadable")
    assert world.condition("discs", "Degraded")[0] == "False"
    assert world.status("coins")["roles"] == {"primary": {"name": "coins-1"}, "stable": 7}


async def test_a_model_with_a_field_that_nobody_knows_is_not_rolled_out_and_serves_on() -> None:
    world = world_with(json.loads(own_objects()))
    before = answered(world)["coins"]
    world.kube.edit(
        MODELS, NAMESPACE, "coins", {"spec": {"runtime": {"accuracy": "fp16"}, "output": {"maxDetections": 7}}}
    )
    await world.turns(6)

    assert world.condition("coins", "Degraded") == ("True", "SpecInvalid")
    assert answered(world)["coins"] == before
    assert "candidate" not in world.status("coins")["roles"]
    message = next(each["message"] for each in world.status("coins")["conditions"] if each["type"] == "Degraded")
    assert "unknown field 'accuracy'" in message

    world.kube.edit(MODELS, NAMESPACE, "coins", {"spec": {"runtime": {"accuracy": None}}})
    await world.turns(12)

    assert world.condition("coins", "Degraded") == ("False", "AsWanted")
    assert world.status("coins")["roles"]["stable"]["revision"] not in before


def stable_servers(world: ClusterWorld) -> set[int]:
    return {max(count for _, count in shares.values()) for shares in answered(world).values()}


async def test_a_pool_that_cannot_be_read_ends_no_server_and_says_why() -> None:
    world = world_with(json.loads(own_objects()))
    world.kube.edit(POOLS, NAMESPACE, KEY.pool, {"spec": {"replicas": 4}})
    await world.turns(12)
    assert stable_servers(world) == {4}
    world.kube.edit(POOLS, NAMESPACE, KEY.pool, {"spec": {"replicas": None, "gpuUtilization": 70}})
    world.restart()
    for _ in range(8):
        with suppress(SpecError):
            await world.turns(1)
    written = world.kube.revision
    with suppress(SpecError):
        await world.run_pass()

    assert stable_servers(world) == {4}
    assert world.kube.revision == written
    assert [world.pool_condition(kind) for kind in ("Degraded", "Ready")] == [
        ("True", "SpecInvalid"),
        ("True", "Serving"),
    ]
    assert "unknown field 'gpuUtilization'" in world.pool_message("Degraded")
    assert world.condition("coins", "Degraded")[0] == "False"

    world.kube.edit(POOLS, NAMESPACE, KEY.pool, {"spec": {"gpuUtilization": None}})
    await world.turns(3)
    assert world.pool_condition("Degraded")[0] == "False"


async def test_a_new_pool_that_cannot_be_read_and_its_models_say_why_until_it_can() -> None:
    objects = [item for item in json.loads(own_objects()) if item["kind"] in ("TritonPool", "SegmentationModel")]
    for item in objects:
        item.pop("status", None)
    only(objects, "TritonPool")["spec"]["gpuUtilization"] = 70
    world = world_with(objects)
    for _ in range(2):
        with pytest.raises(SpecError):
            await world.run_pass()

    why = "default: spec: unknown field 'gpuUtilization'"
    assert why in world.pool_message("Ready")
    assert world.pool_condition("Ready") == world.condition("coins", "Ready") == ("False", "SpecInvalid")
    assert f"the pool {why}" in {each["message"] for each in world.status("coins")["conditions"]}.pop()

    world.kube.edit(POOLS, NAMESPACE, KEY.pool, {"spec": {"gpuUtilization": None}})
    await world.turns(3)
    assert world.condition("coins", "Ready")[1] != "SpecInvalid"
    assert world.pool_condition("Degraded")[0] == "False"


def test_one_report_that_cannot_be_read_does_not_hide_the_others() -> None:
    good = {"model": "coins", "revision": "coins-1", "state": "Ready"}

    assert read_reports([{"what": 1}, 7, good]) == (ModelReport.model_validate(good),)


def test_writers_write_no_defaults_and_readers_fill_them_in() -> None:
    for item in json.loads(own_objects()):
        if item["kind"] == "ControllerRevision":
            assert item["data"]["pipeline"]["input"] == {}
            assert AssignedModel.model_validate(item["data"]).to_json() == item["data"]
            assert AssignedModel.model_validate(item["data"]).pipeline.input.max_pixels == 50_000_000
        if item["kind"] == "ConfigMap" and "assignment" in item["metadata"]["name"]:
            for told in item["binaryData"]["content"]:
                assert "expose" not in told
