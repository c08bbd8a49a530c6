"""Whatever people edit, and in whatever order: the end is that of the last spec alone.

The three oracles of Acto (Gu et al., SOSP 2023): the end of a sequence of edits equals the end of applying its last
spec to an empty cluster, an edit that is taken back leaves nothing, and at rest nothing is written.
"""

from __future__ import annotations

import asyncio
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.cluster_world import NAMESPACE, ClusterWorld, model_manifest
from fakes.mutations import REMOVED, Edit, Json, edited, edits, spec_schema
from segserve_common.kube.kinds import DEPLOYMENTS, MODELS, PODS, POOLS, REVISIONS, SERVICES
from segserve_common.kube.names import REVISION_LABEL
from segserve_operator.adapters.kube.gateway import ClusterTraffic
from segserve_operator.api.loading import parse
from segserve_operator.api.meta import SpecError
from segserve_operator.core.world.requests import VERBS

pytestmark = pytest.mark.timeout(3600)


@pytest.fixture(scope="module", autouse=True)
def no_gateway_is_called() -> Iterator[None]:
    """Gateways have addresses in this world alone: a check that called one left a connection to a stranger's."""

    async def nowhere(_: ClusterTraffic) -> None:
        return None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClusterTraffic, "internal_url", nowhere)
        yield


MODEL_SCHEMA: Final = spec_schema("SegmentationModel")
POOL_SCHEMA: Final = spec_schema("TritonPool", replicas=4)
MODELS_AT_ONCE: Final = 8
EXAMPLES: Final = settings.default.max_examples // 10
"""Each has so many sequences of edits as there are models; `make test-edits` chooses a profile with more."""
EDITS: Final = 6
OF_HISTORY: Final = {"keepPrevious": "0s", "allowClassChanges": True}
"""What a last spec says of earlier ones: nothing of them is kept, and their classes bind nobody."""
BAD_NETWORKS: Final = {"b": "LoadFailed", "d": "DigestMismatch", "g": "GoldenFailed"}
NETWORKS: Final = ("1", "2", "3", *BAD_NETWORKS)
ROLLOUTS: Final = ({}, {"strategy": "blueGreen"}, {"strategy": "immediate"}, {"gates": [], "steps": [{"weight": 50}]})
_IS_OF_HISTORY: Final = re.compile(r"Pod |ControllerRevision |SegmentationRollout |ConfigMap model-")
CONDITIONS: Final = (
    "ArtifactVerified",
    "RevisionLoaded",
    "GoldenPassed",
    "TrafficReady",
    "Ready",
    "Progressing",
    "Degraded",
)


def base_spec(network: str) -> Json:
    """Return a spec that is served."""
    spec: Json = model_manifest("any", network, **OF_HISTORY)["spec"]
    return spec


@dataclass(frozen=True, slots=True)
class Request:
    """An annotation about a rollout; `of` is a role, whose revision it names, or no revision."""

    verb: str
    of: str


class Disturbance(StrEnum):
    """What befalls a cluster between edits."""

    NONE = "nothing"
    RESTART = "the operator is restarted"
    EVICTION = "the first pod of all is evicted"
    RECREATION = "the first model is deleted and made again"


NETWORK_EDITS: Final = st.sampled_from(NETWORKS).map(lambda n: Edit(("artifact",), base_spec(n)["artifact"]))
REQUESTS: Final = st.builds(Request, st.sampled_from(VERBS), st.sampled_from(("stable", "candidate", "nobody")))
ROLLOUT_EDITS: Final = st.sampled_from(ROLLOUTS).map(lambda policy: Edit(("rollout",), policy))
ANY_EDITS: Final = edits(MODEL_SCHEMA, but=("pool",)) | NETWORK_EDITS | ROLLOUT_EDITS
MODEL_EDITS: Final = st.lists(ANY_EDITS, min_size=1, max_size=EDITS)
STEPS: Final = st.lists(ANY_EDITS | NETWORK_EDITS | REQUESTS, min_size=1, max_size=EDITS)
POOL_EDITS: Final = st.lists(edits(POOL_SCHEMA), max_size=EDITS)
BETWEEN: Final = st.lists(st.tuples(st.integers(0, 6), st.sampled_from(Disturbance)), min_size=EDITS, max_size=EDITS)


@dataclass
class Story:
    """Edits of several models and of their pool, with passes between them."""

    world: ClusterWorld
    pool: Json
    specs: dict[str, Json]
    served: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """The revisions that have been stable, by model."""

    @classmethod
    async def begun(cls, models: int, isolation: str) -> Story:
        """Return a story in which all models are served."""
        names = [f"model-{number}" for number in range(models)]
        story = cls(new_world(), {"replicas": 2, "isolation": isolation}, {name: base_spec("1") for name in names})
        await story.settle()
        return story

    def take(self, name: str, step: Edit | Request) -> None:
        """Edit a model's spec, or ask for something by annotation."""
        if isinstance(step, Edit):
            self.specs[name] = edited(self.specs[name], step)
            return
        held = (self.world.status(name).get("roles") or {}).get(step.of) or {}
        value = {f"segserve.dev/{step.verb}": f"{held.get('revision', 'nobody')}@tests/{self.world.now_s}"}
        self.world.kube.edit(MODELS, NAMESPACE, name, {"metadata": {"annotations": value}})

    def edit_pool(self, edit: Edit) -> None:
        """Edit the pool's spec, unless an API server would refuse it: all models depend on it."""
        spec = edited(self.pool, edit)
        manifest = {"apiVersion": POOLS.api_version, "kind": POOLS.name, "metadata": {"name": "default"}, "spec": spec}
        with suppress(SpecError):
            parse(manifest, "default")
            self.pool = spec

    async def disturb(self, disturbance: Disturbance) -> None:
        """Let something befall the cluster."""
        match disturbance:
            case Disturbance.RESTART:
                self.world.restart()
            case Disturbance.EVICTION:
                pods = self.world.kube.all(PODS, NAMESPACE)
                self.world.kube.vanish(PODS, NAMESPACE, pods[0]["metadata"]["name"])
            case Disturbance.RECREATION:
                name = next(iter(self.specs))
                self.world.delete(MODELS, name)
                await self.world.turns(8)
                self.apply()

    async def turns(self, count: int) -> None:
        """Let the operator and everything around it take turns."""
        for _ in range(count):
            await self.world.turns(1)
            self._note_stable()

    def apply(self) -> None:
        """Apply what is wanted now."""
        apply(self.world, self.pool, self.specs)

    async def settle(self) -> None:
        """Apply what is wanted now, and let everything come to rest."""
        self.apply()
        self._note_stable()
        await settle(self.world)
        self._note_stable()

    def _note_stable(self) -> None:
        for name in self.specs:
            stable = (self.world.status(name).get("roles") or {}).get("stable")
            if stable:
                self.served[name].add(stable["revision"])


def new_world() -> ClusterWorld:
    """Return an empty cluster, whose agents refuse some networks."""
    return ClusterWorld(verdicts=dict(BAD_NETWORKS))


def apply(world: ClusterWorld, pool: Json, specs: Mapping[str, Json]) -> None:
    """Apply a pool and models."""
    world.apply_pool(**pool)
    for name, spec in specs.items():
        manifest = model_manifest(name)
        world.apply({**manifest, "spec": spec})


async def settle(world: ClusterWorld) -> None:
    """Let everything come to rest; a rollout, for which there are no requests here, is promoted by a person."""
    at_rest, seconds = 0, 60
    for turn in range(400):
        before = world.kube.revision
        await world.turns(1, seconds_each=seconds)
        at_rest = at_rest + 1 if world.kube.revision == before else 0
        phases = promote(world, turn)
        if at_rest >= 8 and not phases:
            return
        # Only time ends a bake, whose longest one takes eleven years.
        seconds = 2 * seconds if turn >= 300 and phases == {"Baking"} else 60
    raise AssertionError(
        f"no rest after {turn} turns: {[world.status(n['metadata']['name']) for n in world.kube.all(MODELS)]}"
    )


def promote(world: ClusterWorld, turn: int) -> set[str]:
    """Promote the rollouts in progress; return their phases."""
    found = set()
    for model in world.kube.all(MODELS):
        rollout = (model.get("status") or {}).get("rollout") or {}
        if rollout.get("phase") in ("Pending", "Golden", "Progressing", "Quarantined", "Baking"):
            found.add(rollout["phase"])
            value = {"segserve.dev/promote": f"{rollout['revision']}@tests/{turn // 4}"}
            world.kube.edit(MODELS, NAMESPACE, model["metadata"]["name"], {"metadata": {"annotations": value}})
    return found


def model_state(world: ClusterWorld, name: str) -> Json:
    """Return what is to be seen of a model, without times and addresses."""
    status, route = world.status(name), world.routes().get(name)
    roles = status.get("roles") or {}
    return {
        "conditions": {kind: world.condition(name, kind) for kind in CONDITIONS},
        "roles": {role: {k: v for k, v in held.items() if k != "since"} for role, held in roles.items() if held},
        "shares": [{k: v for k, v in share.items() if k != "endpoints"} for share in route["shares"]] if route else [],
        "servers": [len(share["endpoints"]) for share in route["shares"]] if route else [],
    }


def pool_state(world: ClusterWorld) -> Json:
    """Return what is to be seen of the pool, without times and addresses."""
    return {
        "conditions": {kind: world.pool_condition(kind) for kind in ("Ready", "Progressing", "Degraded")},
        "held": {group: world.held(group) for group in sorted(world.groups())},
        "children": sorted(each for each in world.left() if not _IS_OF_HISTORY.match(each)),
        "records": sorted(record["metadata"]["labels"][REVISION_LABEL] for record in world.kube.all(REVISIONS)),
        "workloads": {
            found["metadata"]["name"]: found["spec"]
            for kind in (DEPLOYMENTS, SERVICES)
            for found in world.kube.all(kind)
        },
    }


def differences(seen: Any, expected: Any, at: str = "") -> list[str]:
    """Return what differs, one line each."""
    if isinstance(seen, dict) and isinstance(expected, dict):
        return [
            line
            for key in sorted(seen.keys() | expected.keys(), key=str)
            for line in differences(seen.get(key, "absent"), expected.get(key, "absent"), f"{at}.{key}")
        ]
    return [] if seen == expected else [f"{at}: {seen}, not {expected}"]


async def assert_rests(world: ClusterWorld) -> None:
    """Nothing is written any more."""
    before = world.kube.revision
    assert [await world.run_pass() for _ in range(5)] == [0] * 5
    assert world.kube.revision == before


def assert_last_spec_alone(seen: ClusterWorld, alone: ClusterWorld, name: str, served: set[str]) -> None:
    """A spec that is served alone is served just so; one that is refused is refused so, and what served goes on."""
    state, expected = model_state(seen, name), model_state(alone, name)
    if expected["conditions"]["Ready"] == ("True", "Serving") and "candidate" not in expected["roles"]:
        assert differences(state, expected) == []
        return
    assert state["conditions"]["Degraded"] == expected["conditions"]["Degraded"]
    if state["roles"].get("stable") is not None:
        assert state["roles"]["stable"]["revision"] in served
        assert state["conditions"]["Ready"] == ("True", "Serving")
        assert sum(share["weight"] for share in state["shares"]) == 100


@pytest.mark.parametrize("isolation", ["own", "shared"])
@settings(max_examples=EXAMPLES)
@given(models=st.lists(STEPS, min_size=MODELS_AT_ONCE, max_size=MODELS_AT_ONCE), pool=POOL_EDITS, between=BETWEEN)
def test_the_end_of_any_edits_is_the_end_of_the_last_spec_alone(
    isolation: str, models: list[list[Edit | Request]], pool: list[Edit], between: list[tuple[int, Disturbance]]
) -> None:
    asyncio.run(_edits_end_as_the_last_spec(isolation, models, pool, between))


async def _edits_end_as_the_last_spec(
    isolation: str, models: list[list[Edit | Request]], pool: list[Edit], between: list[tuple[int, Disturbance]]
) -> None:
    story = await Story.begun(len(models), isolation)
    for number, (turns, disturbance) in enumerate(between):
        for name, of_model in zip(story.specs, models, strict=True):
            if number < len(of_model):
                story.take(name, of_model[number])
        if number < len(pool):
            story.edit_pool(pool[number])
        story.apply()
        await story.turns(turns)
        await story.disturb(disturbance)
    for name, of_model in zip(story.specs, models, strict=True):
        if any(isinstance(step, Request) for step in of_model):
            # What a person has refused is not tried again; another network is.
            story.specs[name] = edited(story.specs[name], Edit(("artifact",), base_spec("9")["artifact"]))
    story.specs = {name: spec | OF_HISTORY for name, spec in story.specs.items()}
    # A paused update keeps servers of an earlier spec.
    story.edit_pool(Edit(("update", "paused"), REMOVED))
    await story.settle()

    alone = new_world()
    apply(alone, story.pool, story.specs)
    await settle(alone)

    for name in story.specs:
        assert_last_spec_alone(story.world, alone, name, story.served[name])
    if alone.pool_condition("Ready")[0] == "True" and all(
        alone.condition(name, "Ready")[0] == "True" for name in story.specs
    ):
        assert differences(pool_state(story.world), pool_state(alone)) == []
    await assert_rests(story.world)


def test_a_rollout_whose_servers_are_replaced_ends_although_its_spec_is_refused_by_then() -> None:
    removed = Edit(("classes",), REMOVED)
    edits_of_model = [
        Edit(("artifact",), base_spec("3")["artifact"]),
        Edit(("rollout",), {}),
        Edit(("rollout",), {"strategy": "immediate"}),
        removed,
    ]
    unchanged, more = Edit(("notifications",), REMOVED), Edit(("update", "maxSurge"), "72%")
    edits_of_pool = [unchanged, more, *[unchanged] * 3, Edit(("server", "sharedMemory"), "2Gi")]
    between = [(turns, Disturbance.NONE) for turns in (0, 5, 6, 3, 6, 5)]

    asyncio.run(_edits_end_as_the_last_spec("own", [[unchanged], edits_of_model], edits_of_pool, between))


def test_a_bake_of_eleven_years_ends() -> None:
    bake = Edit(("rollout", "bakeTime"), "99999h99999m99999s")
    edits_of_model = [bake, Edit(("artifact",), base_spec("3")["artifact"])]

    asyncio.run(_edits_end_as_the_last_spec("own", [edits_of_model], [], [(2, Disturbance.NONE)] * 2))


@settings(max_examples=EXAMPLES)
@given(changes=st.lists(MODEL_EDITS, min_size=MODELS_AT_ONCE, max_size=MODELS_AT_ONCE), passes=st.integers(0, 12))
def test_edits_that_are_taken_back_leave_nothing(changes: list[list[Edit]], passes: int) -> None:
    asyncio.run(_edits_taken_back(changes, passes))


async def _edits_taken_back(changes: list[list[Edit]], passes: int) -> None:
    story = await Story.begun(len(changes), "own")
    before = {name: model_state(story.world, name) for name in story.specs}
    pool, specs = pool_state(story.world), dict(story.specs)
    for name, of_model in zip(specs, changes, strict=True):
        for edit in of_model:
            story.specs[name] = edited(story.specs[name], edit)
    story.apply()
    await story.world.turns(passes)
    story.specs = specs
    await story.settle()

    after = {name: model_state(story.world, name) for name in specs}
    assert differences(after, before) + differences(pool_state(story.world), pool) == []
    await assert_rests(story.world)
