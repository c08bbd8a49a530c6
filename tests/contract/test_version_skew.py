"""Releases read what the last one wrote, and what a next one with more fields and words will write.

The next release's objects are this one's with unknown fields at any depth: none of them may stop a pass, take requests
from a server that answers, or change a decision.
"""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fakes.cluster_world import KEY, NAMESPACE, ClusterWorld
from fakes.written_objects import repacked, written_objects
from segserve_builder.agent.protocol import AssignedModel, ModelReport, ModelState, read_reports
from segserve_builder.capture.rule import CaptureRule
from segserve_common.kube.kinds import CHILDREN, MODELS, POOLS, REVISIONS, ROLLOUTS
from segserve_common.kube.names import REVISION_LABEL
from segserve_operator.adapters.kube.gateway import ClusterTraffic
from segserve_operator.adapters.traffic.plans import dump_plan, load_plan
from segserve_operator.api.errors import SpecError
from segserve_operator.api.loading import parse
from segserve_operator.api.segmentation_model import SegmentationModel
from segserve_operator.core.rollout.phases import Phase
from segserve_operator.core.traffic import Endpoint, Route, Share, TrafficPlan
from segserve_operator.mapping.reading import read_status
from segserve_operator.mapping.rollouts import record_of
from segserve_operator.mapping.statuses import from_api

Json = dict[str, Any]
RELEASES = Path(__file__).parent.parent / "golden" / "releases"
KINDS = {kind.name: kind for kind in (MODELS, POOLS, ROLLOUTS, *CHILDREN)}
BEGUN_S = 1_800_000_100.0
SKEWED = ("SegmentationModel", "TritonPool", "SegmentationRollout", "ControllerRevision", "ConfigMap")


@cache
def own_objects() -> str:
    """Return the objects that this release writes, as JSON."""
    return json.dumps(asyncio.run(written_objects()))


@pytest.fixture(scope="module", autouse=True)
def written() -> None:
    """Write them before a test has an event loop of its own."""
    own_objects()


def world_with(objects: list[Json]) -> ClusterWorld:
    """Return a cluster that another operator leaves to this one."""
    world = ClusterWorld(now_s=BEGUN_S)
    for item in objects:
        if item["kind"] == "Pod":
            own_by_a_replica_set(item)
        world.kube.hold(KINDS[item["kind"]], repacked(item))
    world.restart()
    return world


def own_by_a_replica_set(pod: Json) -> None:
    """Give a pod the owner that it has in any cluster; the fake one of the earlier release had no ReplicaSets."""
    (owner,) = pod["metadata"]["ownerReferences"]
    if owner["kind"] == "Deployment":
        owner |= {"kind": "ReplicaSet", "name": f"{pod['metadata']['name'].rpartition('-')[0]}-5d8f"}


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


@pytest.mark.parametrize("path", sorted(RELEASES.glob("*.json")), ids=lambda path: path.stem)
async def test_this_operator_takes_over_from_an_earlier_release_and_moves_no_request(path: Path) -> None:
    world = world_with(json.loads(path.read_text()))
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


@pytest.mark.parametrize("path", sorted(RELEASES.glob("*.json")), ids=lambda path: path.stem)
async def test_what_an_earlier_release_recorded_is_read_in_full_and_not_written_anew(path: Path) -> None:
    world = world_with(json.loads(path.read_text()))
    records = {item["metadata"]["name"]: item for item in world.kube.all(REVISIONS, NAMESPACE)}
    (rollout,) = world.kube.all(ROLLOUTS, NAMESPACE)

    await world.turns(6)

    assert {name: item["data"] for name, item in records.items()} == {
        item["metadata"]["name"]: item["data"] for item in world.kube.all(REVISIONS, NAMESPACE)
    }
    read = record_of(rollout, ())
    assert (read.progress.phase, len(read.decisions)) == (Phase.PROGRESSING, 2)
    for item in records.values():
        assigned = AssignedModel.read(item["data"])
        assert assigned.is_understood
        assert assigned.revision == item["metadata"]["labels"][REVISION_LABEL]


NAMES = st.sampled_from(["addedIn", "zone", "spread", "$ref", "x", "models2", "ratio"])
VALUES = st.sampled_from([None, True, 7, -1.5, "word", [], [1, "a"], {}, {"deeper": {"and": ["deeper"]}}])


def places(item: Json) -> list[Json]:
    """Return the mappings of an object in which a next release may have more fields."""
    roots: list[Any]
    match item["kind"]:
        case "ConfigMap":
            roots = list(item.get("binaryData", {}).values())
        case "ControllerRevision":
            roots = [item["data"]]
        case "SegmentationRollout":
            roots = [item["spec"], item["status"]]
        case _:
            roots = [item.get("status", {})]
    return [place for root in roots for place in mappings(root)]


def mappings(value: Any) -> Iterator[Json]:
    if isinstance(value, dict):
        yield value
        for key, inner in value.items():
            if key not in ("numbers", "seen", "gates", "shards", "refused"):
                yield from mappings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from mappings(inner)


@settings(
    max_examples=20,
    deadline=None,
    # A pass takes long; what fails is told by the fields that were added.
    phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate),
    suppress_health_check=[HealthCheck.too_slow],
)
@given(st.data())
async def test_unknown_fields_at_any_depth_stop_nothing_and_change_no_decision(data: st.DataObject) -> None:
    objects = json.loads(own_objects())
    expected = decisions(world_with(copy.deepcopy(objects)))
    found = [place for item in objects if item["kind"] in SKEWED for place in places(item)]
    for place in data.draw(st.lists(st.sampled_from(range(len(found))), min_size=1, max_size=12)):
        found[place].setdefault(data.draw(NAMES), data.draw(VALUES))

    assert decisions(await passes(world_with(objects), 2)) == expected


async def test_unknown_fields_in_every_place_at_once_are_read_past_and_kept_where_they_are_passed_on() -> None:
    objects = json.loads(own_objects())
    expected = decisions(await passes(world_with(copy.deepcopy(objects))))
    for item in objects:
        if item["kind"] in SKEWED:
            for place in places(item):
                place.setdefault("addedIn", {"release": 2})
    world = await passes(world_with(objects))

    assert decisions(world) == expected
    for record in world.kube.all(REVISIONS, NAMESPACE):
        assert record["data"]["pipeline"]["runtime"]["addedIn"] == {"release": 2}


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
    "one more field": lambda report: [model.update(gpu={"memory": 1}) for model in report["models"]],
    "a state of a newer release": lambda report: [model.update(state="Warm") for model in report["models"]],
    "a proof of a newer release": lambda report: [model.update(proof="sampled") for model in report["models"]],
    "a list that became a mapping": lambda report: report.update(models={"coins": {}}),
    "no field that is known": lambda report: [report.pop(name) for name in list(report)],
}


@pytest.mark.parametrize("change", REPORTS.values(), ids=REPORTS)
async def test_an_operator_that_was_rolled_back_keeps_the_endpoints_of_agents_that_report_otherwise(
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


CAPTURES: dict[str, Json] = {
    "a reason": {"when": ["error", "surprise"]},
    "a way to redact": {"redact": {"ids": [1], "method": "pixelate"}},
    "a kind of pixels": {"dtype": "FLOAT32"},
    "no field that is known": {"group": None},
}


@pytest.mark.parametrize("change", CAPTURES.values(), ids=CAPTURES)
def test_a_gateway_routes_by_a_plan_whose_capture_is_of_a_newer_release_and_captures_nothing(change: Json) -> None:
    shares = (Share("main", "coins-1", 100, (Endpoint("10.0.0.1", 8000, 8001),)),)
    rule = CaptureRule(group="main", revision="coins-1", share=0.1, per_minute=6, sink="", retention_s=1, max_pixels=1)
    plan = TrafficPlan((Route("cells", shares, capture=rule), Route("coins", shares, capture=rule)))
    written = dump_plan(plan)
    assert load_plan(written) == plan
    written["routes"][1]["capture"] |= change

    cells, coins = load_plan(written).routes
    assert (cells, coins) == (plan.routes[0], replace(plan.routes[1], capture=None))


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
    assert AssignedModel.read(record["data"]).revision == stable
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
    objects = json.loads((RELEASES / "429d72f.json").read_text())
    before = answered(world_with(copy.deepcopy(objects)))
    only(objects, "SegmentationModel", "coins")["status"]["roles"] = {"primary": {"name": "coins-1"}, "stable": 7}
    world = world_with(objects)
    await world.turns(6)

    assert answered(world) == before
    assert world.condition("coins", "Degraded") == ("True", "StatusUnreadable")
    assert world.condition("discs", "Degraded")[0] == "False"
    assert world.status("coins")["roles"] == {"primary": {"name": "coins-1"}, "stable": 7}


async def test_a_model_with_a_field_that_only_a_newer_release_knows_is_not_rolled_out_and_serves_on() -> None:
    world = world_with(json.loads(own_objects()))
    before = answered(world)["coins"]
    world.kube.edit(
        MODELS, NAMESPACE, "coins", {"spec": {"runtime": {"precision": "fp16"}, "output": {"maxDetections": 7}}}
    )
    await world.turns(6)

    assert world.condition("coins", "Degraded") == ("True", "UnknownField")
    assert answered(world)["coins"] == before
    assert "candidate" not in world.status("coins")["roles"]
    message = next(each["message"] for each in world.status("coins")["conditions"] if each["type"] == "Degraded")
    assert "spec.runtime.precision" in message

    world.kube.edit(MODELS, NAMESPACE, "coins", {"spec": {"runtime": {"precision": None}}})
    await world.turns(12)

    assert world.condition("coins", "Degraded") == ("False", "AsWanted")
    assert world.status("coins")["roles"]["stable"]["revision"] not in before


async def test_a_rollout_waits_while_its_model_has_a_field_that_only_a_newer_release_knows() -> None:
    world = world_with(json.loads(own_objects()))
    before = decisions(world)["rollout"]["discs"]
    world.kube.edit(MODELS, NAMESPACE, "discs", {"spec": {"rollout": {"guard": "strict"}}})
    candidate = world.status("discs")["rollout"]["revision"]
    annotation = {"segserve.dev/resume": candidate}
    world.kube.edit(MODELS, NAMESPACE, "discs", {"metadata": {"annotations": annotation}})
    await world.turns(8)

    assert decisions(world)["rollout"]["discs"]["weight"] == before["weight"]
    assert world.status("discs")["roles"]["candidate"]["revision"] == candidate


async def test_a_pool_with_a_field_that_only_a_newer_release_knows_goes_on_and_says_what_it_ignores() -> None:
    world = world_with(json.loads(own_objects()))
    before = answered(world)
    change = {"spec": {"burst": {"servers": 3}, "isolation": "zonal", "replicas": 3}}
    world.kube.edit(POOLS, NAMESPACE, KEY.pool, change)
    await world.turns(8)

    assert world.pool_condition("Degraded") == ("True", "UnknownField")
    assert {model: {r: (w, 3) for r, (w, _) in shares.items()} for model, shares in before.items()} == answered(world)


SCALED: dict[str, Json] = {
    "one more field": {"burst": {"servers": 3}},
    "a reason that became a list": {"reason": ["MoreRequests"]},
    "a number that became a mapping": {"desired": {"main": 4}},
}


async def scaled(monkeypatch: pytest.MonkeyPatch) -> ClusterWorld:
    """Return a pool of two servers by its replicas that requests have brought to four."""

    async def loads(_: ClusterTraffic) -> Mapping[str, None]:
        return {"gateway-0": None}

    monkeypatch.setattr(ClusterTraffic, "loads", loads)
    world = world_with(json.loads(own_objects()))
    scaling = {"minimum": 4, "maximum": 6, "target": {"concurrency": 4}}
    world.kube.edit(POOLS, NAMESPACE, KEY.pool, {"spec": {"scaling": scaling}})
    await world.turns(8)
    world.kube.edit(POOLS, NAMESPACE, KEY.pool, {"spec": {"scaling": {"minimum": 1}}})
    await world.turns(4)
    return world


def stable_servers(world: ClusterWorld) -> set[int]:
    return {max(count for _, count in shares.values()) for shares in answered(world).values()}


@pytest.mark.parametrize("change", SCALED.values(), ids=SCALED)
async def test_a_new_operator_gives_up_no_server_whatever_it_can_read_of_how_many_are_wanted(
    change: Json, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = await scaled(monkeypatch)
    assert stable_servers(world) == {4}
    world.kube.edit_status(POOLS, NAMESPACE, KEY.pool, {"status": {"scaling": change}})
    world.restart()
    await world.turns(8)

    assert stable_servers(world) == {4}


async def test_a_target_that_only_a_newer_release_knows_ends_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    world = await scaled(monkeypatch)
    target = {"concurrency": None, "gpuUtilization": 70}
    world.kube.edit(POOLS, NAMESPACE, KEY.pool, {"spec": {"scaling": {"target": target}}})
    world.restart()
    for _ in range(8):
        with suppress(SpecError):
            await world.turns(1)

    assert stable_servers(world) == {4}


PHASES = [
    ({"candidate": {"state": "Pending", "group": "g"}}, 25, Phase.PROGRESSING),
    ({"candidate": {"state": "Pending", "group": "g"}}, 0, Phase.GOLDEN),
    ({"candidate": {"state": "Parked"}}, 0, Phase.ROLLED_BACK),
    ({"stable": {"group": "g"}, "previous": {"revision": "old", "group": "g"}}, 100, Phase.BAKING),
    ({"stable": {"group": "g"}}, 100, Phase.SUCCEEDED),
    ({}, 0, Phase.CANCELLED),
]


@pytest.mark.parametrize(("roles", "weight", "phase"), PHASES, ids=[phase.label for _, _, phase in PHASES])
def test_a_phase_of_a_newer_release_is_read_as_the_one_that_leaves_the_weights_alone(
    roles: Json, weight: int, phase: Phase
) -> None:
    at = "2026-01-01T00:00:00Z"
    held = {role: {"revision": "new", "since": at, **holder} for role, holder in roles.items()}
    rollout = {"name": "new-1", "revision": "new", "phase": "Warming", "weight": weight}
    rollout |= dict.fromkeys(("startedAt", "since", "stepSince"), at)

    status, problem = read_status({"roles": held, "rollout": rollout})
    read = from_api(status)

    assert problem is None
    assert (read.rollout.phase, read.rollout.weight) == (phase, weight)
    assert set(status.roles.model_fields_set) == set(roles)


@pytest.mark.parametrize(
    ("report", "state"),
    [
        ({"state": "Ready"}, ModelState.READY),
        ({"state": "Warm", "loaded": True, "proof": "golden"}, ModelState.READY),
        ({"state": "Warm", "loaded": True}, ModelState.PROVING),
        ({"state": "Compiling"}, ModelState.PROVING),
    ],
)
def test_a_state_of_a_newer_agent_counts_as_ready_only_with_a_proof(report: Json, state: ModelState) -> None:
    assert ModelReport.read({"model": "coins", "revision": "coins-1", **report}).state is state


def test_one_report_that_cannot_be_read_does_not_hide_the_others() -> None:
    good = {"model": "coins", "revision": "coins-1", "state": "Ready"}

    assert read_reports([{"what": 1}, 7, good]) == (ModelReport.model_validate(good),)


def test_writers_write_no_defaults_and_readers_fill_them_in() -> None:
    for item in json.loads(own_objects()):
        if item["kind"] == "ControllerRevision":
            assert item["data"]["pipeline"]["input"] == {}
            assert AssignedModel.read(item["data"]).to_json() == item["data"]
            assert AssignedModel.read(item["data"]).pipeline.input.max_pixels == 50_000_000
        if item["kind"] == "ConfigMap" and "assignment" in item["metadata"]["name"]:
            for told in item["binaryData"]["content"]:
                assert "expose" not in told


def test_what_people_write_is_still_read_strictly() -> None:
    model = only(json.loads(own_objects()), "SegmentationModel")
    manifest = {key: value for key, value in model.items() if key != "status"}
    assert isinstance(parse(manifest, "file"), SegmentationModel)
    manifest["spec"]["runtime"] = {"precision": "fp16"}

    with pytest.raises(SpecError, match="unknown field 'precision'"):
        parse(manifest, "file")
