"""What an agent decides to do, run against a server in memory that refuses what the real one would suffer from."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fakes.pipelines import pipeline_of
from segserve_builder.agent.decide import next_actions, reports
from segserve_builder.agent.loop import CRASHES_ALLOWED, Agent
from segserve_builder.agent.protocol import AssignedModel, GoldenTrial, ModelReport, ModelState
from segserve_builder.agent.runner import LOAD_FAILED, LOST_GPU, ActionFailure, ActionResult, ActionRunner
from segserve_builder.agent.state import (
    LOADS_ALLOWED,
    OPENING_S,
    Action,
    AgentState,
    AssignedRevision,
    Ensemble,
    LoadStep,
    Prepare,
    Prepared,
    Probe,
    Proof,
    Prove,
    Remove,
    RepairStep,
    Serve,
    ServerSnapshot,
    StepDeath,
    Try,
    Unload,
)
from segserve_builder.render.tree import Files, Tree
from segserve_builder.spec.members import OPENING
from segserve_builder.spec.model_spec import Artifact, Golden, ModelMetrics
from segserve_builder.spec.names import STEP_PREFIX, network_alias


def revision_of(
    model: str, network: str = "1", *, expose: bool = False, golden: str | None = None, counted: bool = True
) -> AssignedRevision:
    """Return a model whose network file is told by one hex digit."""
    spec = AssignedModel(
        pipeline=pipeline_of(classes=0, model=model, artifactSha256=network * 64),
        artifact=Artifact(uri="file:///network.onnx", sha256=network * 64),
        golden=Golden(uri="golden", sha256=golden * 64) if golden else None,
        expose=("network",) if expose else (),
        metrics=ModelMetrics(answers=counted),
    )
    return AssignedRevision.of(spec)


def trying(assigned: AssignedRevision, golden: str | None) -> AssignedRevision:
    """Return the same assignment with a trial of a golden set, or of the built-in image."""
    on_trial = Golden(uri="golden", sha256=golden * 64) if golden else None
    return AssignedRevision.of(assigned.spec.model_copy(update={"trial": GoldenTrial(golden=on_trial)}))


NET_SHARED = f"{STEP_PREFIX}net-shared--0"


def steps_of(assigned: AssignedRevision) -> tuple[str, ...]:
    """Return names as the builder's: the first step is shared by all, the network by equal files."""
    network, counted = assigned.spec.artifact.sha256[0], "" if assigned.spec.metrics.answers else "-uncounted"
    if assigned.spec.processes == "shared":
        return (f"{STEP_PREFIX}pre--0{counted}", NET_SHARED, f"{STEP_PREFIX}post-shared--0{counted}")
    post = f"{STEP_PREFIX}post--{assigned.revision}{counted}"
    return (f"{STEP_PREFIX}pre--0{counted}", f"{STEP_PREFIX}net--{network}", post)


def members_of(assigned: AssignedRevision) -> tuple[str, ...]:
    """Return what the shared steps run for a revision."""
    if assigned.spec.processes != "shared":
        return ()
    network = assigned.spec.artifact.sha256[0]
    return (f"{STEP_PREFIX}net-member--{network}", f"{STEP_PREFIX}post-member--{assigned.revision}")


@dataclass
class World:
    """A server with its repository, and the agent's memory beside it."""

    state: AgentState = field(default_factory=AgentState)
    published: dict[str, Ensemble] = field(default_factory=dict)
    step_folders: set[str] = field(default_factory=set)
    loaded_steps: set[str] = field(default_factory=set)
    loaded: dict[str, Ensemble] = field(default_factory=dict)
    dead: set[str] = field(default_factory=set)
    deaths: dict[str, StepDeath] = field(default_factory=dict)
    opened: dict[str, dict[str, str]] = field(default_factory=dict)
    ready: bool = True
    done: list[Action] = field(default_factory=list)

    def snapshot(self) -> ServerSnapshot:
        return ServerSnapshot(
            ready=self.ready,
            states=dict.fromkeys({*self.loaded_steps, *self.loaded}, "READY") if self.ready else {},
            loaded=dict(self.loaded) if self.ready else {},
            published=dict(self.published),
            folders=frozenset({*self.published, *self.step_folders}),
            dead=frozenset(self.dead),
            deaths=dict(self.deaths),
            opened=dict(self.opened),
        )

    def restart_server(self) -> None:
        """Lose all that was loaded, as a new process does."""
        self.loaded_steps.clear()
        self.loaded.clear()

    def converge(self, *assigned: AssignedRevision, now_s: float = 0.0) -> None:
        """Let the agent work until it has nothing to do."""
        for _ in range(30):
            self.state.keep_only(assigned)
            self.state.invalidate_proofs(assigned, self.snapshot())
            self.state.follow_openings(self.snapshot(), now_s)
            actions = next_actions(assigned, self.snapshot(), self.state, now_s)
            if not actions:
                return
            for action in actions:
                self.do(action, assigned)
        raise AssertionError(f"the agent never comes to rest: {self.done[-5:]}")

    def do(self, action: Action, assigned: tuple[AssignedRevision, ...]) -> None:
        self.done.append(action)
        by_revision = {model.revision: model for model in assigned}
        match action:
            case Prepare():
                self.prepare(by_revision[action.revision])
            case LoadStep(name) | RepairStep(name):
                assert name in self.step_folders
                self.loaded_steps.add(name)
                self.dead.discard(name)
            case Serve():
                self.serve(by_revision[action.revision])
            case Prove():
                golden = by_revision[action.revision].spec.golden
                proof = Proof("golden", golden.sha256) if golden else Proof("builtin", None)
                self.state.prove(action.revision, proof)
            case Try():
                trial = by_revision[action.revision].trial
                assert trial is not None
                kind = "golden" if trial.spec.golden else "builtin"
                tried = replace(self.state.revisions[action.revision].prepared, assigned=trial)
                self.state.pass_trial(tried, Proof(kind, trial.golden_sha256, 2))
            case Unload(name):
                assert not any(name in ensemble.steps for ensemble in self.loaded.values()), f"{name} is in use"
                self.loaded_steps.discard(name)
                self.loaded.pop(name, None)
            case Remove(name):
                assert name not in self.loaded_steps | self.loaded.keys(), f"{name} is loaded"
                assert not any(name in ensemble.members for ensemble in self.loaded.values()), f"{name} is in use"
                self.step_folders.discard(name)
                self.published.pop(name, None)

    def prepare(self, assigned: AssignedRevision) -> None:
        steps = steps_of(assigned)
        alias = (network_alias(assigned.model), {}) if assigned.spec.expose else None
        members: dict[str, Files] = {name: {} for name in members_of(assigned)}
        ran_by = dict(zip(members, steps[1:], strict=False))
        tree = Tree({step: {} for step in steps}, (assigned.model, {}), alias, members=members, member_steps=ran_by)
        self.step_folders.update(steps, members)
        self.state.prepare(Prepared(assigned, tree, dict.fromkeys(steps, 1), None))

    def serve(self, assigned: AssignedRevision) -> None:
        steps = steps_of(assigned)
        assert self.loaded_steps.issuperset(steps)
        assert self.step_folders.issuperset(members_of(assigned))
        ensembles = {assigned.model: Ensemble(assigned.revision, frozenset(steps), frozenset(members_of(assigned)))}
        if assigned.spec.expose:
            ensembles[network_alias(assigned.model)] = Ensemble(assigned.revision, frozenset(steps[1:2]))
        self.published.update(ensembles)
        self.loaded.update(ensembles)

    def report(self, *assigned: AssignedRevision) -> dict[str, ModelReport]:
        return {report.model: report for report in reports(assigned, self.snapshot(), self.state)}

    def done_to(self, name: str) -> list[type[Action]]:
        return [type(action) for action in self.done if action.subject == name]


def test_nothing_is_reported_ready_before_its_proof() -> None:
    world, coins = World(), revision_of("coins")
    world.converge(coins)
    world.state.revisions[coins.revision].proof = None
    assert world.report(coins)["coins"].state is ModelState.PROVING


def shared(assigned: AssignedRevision) -> AssignedRevision:
    return AssignedRevision.of(assigned.spec.model_copy(update={"processes": "shared"}))


def test_members_of_shared_steps_are_never_loaded_and_stay_while_their_model_does() -> None:
    world, coins, parts = World(), shared(revision_of("coins")), shared(revision_of("parts", "2"))
    world.converge(coins, parts)
    assert world.loaded_steps == set(steps_of(coins)) == set(steps_of(parts))
    assert world.step_folders >= {*members_of(coins), *members_of(parts)}

    world.converge(parts)

    assert world.loaded_steps == set(steps_of(parts))
    assert not world.step_folders.intersection(members_of(coins))
    assert world.step_folders >= set(members_of(parts))
    assert world.report(parts)["parts"].state is ModelState.READY


def test_requests_of_a_former_revision_are_not_counted_to_the_next_one_with_shared_steps(tmp_path: Path) -> None:
    former, coins, parts = shared(revision_of("coins")), shared(revision_of("coins", "2")), revision_of("parts", "3")
    world = World()
    world.converge(former, parts)
    world.prepare(coins)
    observer: Any = SimpleNamespace(last=world.snapshot())
    agent = Agent(tmp_path, cast(ActionRunner, None), observer)
    agent._state = world.state
    before = {each.owner.revision for each in agent.served()}
    world.serve(coins)
    observer.last = world.snapshot()

    after = {each.owner.revision for each in agent.served()}

    assert before == {former.revision, parts.revision}
    assert after == {coins.revision, parts.revision}


@pytest.mark.parametrize("back", [False, True])
def test_a_model_serves_on_while_its_steps_become_shared_or_its_own(back: bool) -> None:
    world, own = World(), revision_of("coins")
    before, after = (shared(own), own) if back else (own, shared(own))
    world.converge(before)
    world.done.clear()

    world.converge(after)

    assert world.loaded_steps == set(steps_of(after))
    assert world.loaded["coins"].members == set(members_of(after))
    assert world.done_to("coins") == [Serve]
    assert world.report(after)["coins"].state is ModelState.READY


def opened(assigned: AssignedRevision, failure: str = "") -> dict[str, dict[str, str]]:
    """Return what the shared steps say once they have opened a revision's members, its network with a failure."""
    network, last = members_of(assigned)
    return dict(zip(steps_of(assigned)[1:], ({network: failure}, {last: ""}), strict=True))


FORMER = pytest.mark.parametrize(
    "former",
    [
        pytest.param(revision_of("coins"), id="the same revision"),
        pytest.param(revision_of("coins", "2"), id="another revision"),
    ],
)


@FORMER
def test_the_former_steps_serve_until_the_shared_ones_have_opened_their_members(former: AssignedRevision) -> None:
    world, coins = World(), shared(revision_of("coins"))
    world.converge(former)
    world.opened = opened(coins) | {steps_of(coins)[1]: {}}

    world.converge(coins)

    assert world.loaded["coins"].steps == set(steps_of(former))
    assert world.loaded_steps >= set(steps_of(former))
    world.opened = opened(coins)
    world.converge(coins)
    assert world.loaded["coins"].members == set(members_of(coins))
    assert world.report(coins)["coins"].state is ModelState.READY


def agent_of(world: World, folder: Path, *assigned: AssignedRevision) -> tuple[Agent, set[str]]:
    """Return an agent with a world's memory, and what it suspects."""
    suspected: set[str] = set()
    observer: Any = SimpleNamespace(take=lambda _: world.snapshot(), learn=lambda _: None, suspect=suspected.update)
    agent = Agent(folder, cast(ActionRunner, None), observer)
    agent._state, agent._assignment = world.state, assigned
    return agent, suspected


@FORMER
def test_a_member_that_cannot_be_opened_is_a_failed_load_beside_what_serves(
    former: AssignedRevision, tmp_path: Path
) -> None:
    world, coins = World(), shared(revision_of("coins"))
    world.converge(former)
    world.opened = opened(coins) | {steps_of(coins)[1]: {}}
    world.converge(coins)
    world.opened = opened(coins, "no room")
    agent, _ = agent_of(world, tmp_path, coins)
    (serve,) = next_actions((coins,), world.snapshot(), world.state, 0.0)
    assert isinstance(serve, Serve)

    agent._absorb(ActionResult(serve, ActionFailure(LOAD_FAILED, "no room", retryable=True)), 0.0)
    world.converge(coins)

    assert world.loaded["coins"].steps == set(steps_of(former))
    assert world.loaded_steps >= set(steps_of(former))
    report = world.report(coins)["coins"]
    is_same = former.revision == coins.revision
    assert (report.state, report.reason) == (ModelState.READY if is_same else ModelState.FAILED, LOAD_FAILED)


def test_a_server_that_lost_its_gpu_is_ended_and_no_revision_is_given_up_for_it(tmp_path: Path) -> None:
    world, coins, parts = World(), revision_of("coins"), revision_of("parts", "2")
    world.converge(coins, parts)
    for assigned in (coins, parts):
        world.state.revisions[assigned.revision].proof = None
    agent, suspected = agent_of(world, tmp_path, coins, parts)
    ended: list[str] = []
    cast(Any, agent._observer).end_server = lambda: ended.append("server")
    failure = ActionFailure(LOST_GPU, "CUDA failure 700", retryable=True)

    for _ in range(CRASHES_ALLOWED):
        for each in (coins, parts):
            agent._absorb(ActionResult(Prove(each.revision, each.model), failure, server_lost_gpu=True), 0.0)

    assert len(ended) == 2 * CRASHES_ALLOWED
    assert not suspected
    reports = world.report(coins, parts)
    assert [(each.state, each.reason, each.retryable) for each in reports.values()] == [
        (ModelState.FAILED, LOST_GPU, True),
        (ModelState.FAILED, LOST_GPU, True),
    ]


def test_a_member_that_is_opened_after_all_ends_the_failure_of_a_model_that_served_meanwhile(tmp_path: Path) -> None:
    world, coins = World(), shared(revision_of("coins"))
    world.converge(revision_of("coins"))
    world.opened = opened(coins) | {steps_of(coins)[1]: {}}
    world.converge(coins)
    world.state.fail_load(coins, LOAD_FAILED, "no room", 0.0, serves=True)
    world.opened = opened(coins)
    (serve,) = next_actions((coins,), world.snapshot(), world.state, 10.0)
    world.do(serve, (coins,))

    agent_of(world, tmp_path, coins)[0]._absorb(ActionResult(serve), 10.0)

    report = world.report(coins)["coins"]
    assert (report.state, report.reason, report.attempts) == (ModelState.READY, "", 0)


def test_a_member_that_is_opened_for_too_long_is_a_failed_load() -> None:
    world, coins = World(), shared(revision_of("coins"))
    world.opened = opened(coins) | {steps_of(coins)[1]: {}}
    world.converge(coins, now_s=100.0)
    report = world.report(coins)["coins"]
    assert (report.state, report.message) == (ModelState.LOADING, f"{members_of(coins)[0]} {OPENING}")

    soon = next_actions((coins,), world.snapshot(), world.state, 99.0 + OPENING_S)
    late = next_actions((coins,), world.snapshot(), world.state, 100.0 + OPENING_S)

    assert (soon, late) == ((), (Serve(coins.revision, "coins"),))


@pytest.mark.parametrize("outcome", [{}, {f"{STEP_PREFIX}net-member--1": "no room"}], ids=["is opening", "failed"])
@pytest.mark.parametrize("lost", ["by another agent", "with a step that all use"])
def test_what_serves_until_the_members_are_open_is_proved_again_once_its_proof_is_lost(
    lost: str, outcome: dict[str, str], tmp_path: Path
) -> None:
    world, coins = World(), shared(revision_of("coins"))
    world.converge(revision_of("coins"))
    world.opened = opened(coins) | {steps_of(coins)[1]: {}}
    world.converge(coins)
    if lost == "by another agent":
        world.state = AgentState()
    else:
        world.dead.add(steps_of(coins)[0])
    world.opened[steps_of(coins)[1]] = outcome

    for _ in range(4):
        world.state.invalidate_proofs((coins,), world.snapshot())
        for action in next_actions((coins,), world.snapshot(), world.state, 0.0):
            if not isinstance(action, Serve):
                world.do(action, (coins,))

    assert world.loaded["coins"].steps == set(steps_of(revision_of("coins")))
    assert world.report(coins)["coins"].state is ModelState.READY

    # Should the former steps be broken, the shared ones serve as soon as they can.
    agent, _ = agent_of(world, tmp_path, coins)
    prove = Prove(coins.revision, "coins")
    agent._absorb(ActionResult(prove, ActionFailure("ProofFailed", "broken", retryable=False)), 0.0)
    world.opened = opened(coins)
    world.converge(coins, now_s=1e6)
    assert world.loaded["coins"].members == set(members_of(coins))
    assert world.report(coins)["coins"].reason == ""


@pytest.mark.parametrize("between", ["a proof", "another assignment"])
def test_a_shared_step_is_not_suspected_for_a_probe_that_failed_before(between: str, tmp_path: Path) -> None:
    world, coins = World(), shared(revision_of("coins"))
    world.converge(coins)
    agent, suspected = agent_of(world, tmp_path, coins)
    failed = ActionResult(Probe(coins.revision, "coins"), failing=frozenset({NET_SHARED}))
    agent._absorb(failed, 0.0)
    if between == "a proof":
        agent._absorb(ActionResult(Prove(coins.revision, "coins"), proof=Proof("builtin", None)), 1000.0)
    else:
        world.state.keep_only(())
        world.converge(coins)

    agent._absorb(failed, 2000.0)

    assert not suspected


@pytest.mark.parametrize(
    ("later", "suspects"),
    [
        pytest.param((61.0, True), {NET_SHARED}, id="again after it was opened anew"),
        pytest.param((30.0, True), set(), id="before it was opened anew"),
        pytest.param((30.0, False), set(), id="not again"),
    ],
)
def test_a_shared_step_is_suspected_whose_member_fails_probes_although_it_was_opened_anew(
    tmp_path: Path, later: tuple[float, bool], suspects: set[str]
) -> None:
    world, coins = World(), shared(revision_of("coins"))
    world.converge(coins)
    agent, suspected = agent_of(world, tmp_path, coins)
    probe, failing = Probe(coins.revision, "coins"), frozenset({NET_SHARED})
    agent._absorb(ActionResult(probe, failing=failing), 0.0)
    assert not suspected
    at_s, fails = later

    agent._absorb(ActionResult(probe, failing=failing if fails else frozenset()), at_s)
    if not fails:
        agent._absorb(ActionResult(probe, failing=failing), 61.0)

    assert suspected == suspects


def test_the_ensemble_of_a_heavy_network_loads_once_its_steps_are_loaded() -> None:
    assigned = revision_of("tiers")
    world = World()
    world.prepare(assigned)
    prepared = world.state.revisions[assigned.revision].prepared
    heavy = f"{STEP_PREFIX}heavy--0"
    world.step_folders.add(heavy)
    tree = replace(prepared.tree, steps={**prepared.tree.steps, heavy: {}}, heavy=heavy)
    world.state.prepare(replace(prepared, tree=tree, processes={**prepared.processes, heavy: 0}))

    first = next_actions((assigned,), world.snapshot(), world.state, 0.0)
    for action in first:
        world.do(action, (assigned,))

    assert first == tuple(LoadStep(step) for step in steps_of(assigned))
    assert next_actions((assigned,), world.snapshot(), world.state, 0.0) == (LoadStep(heavy),)


def test_a_step_that_two_models_share_is_loaded_once_and_stays_for_the_other() -> None:
    world, coins, parts = World(), revision_of("coins"), revision_of("parts")
    world.converge(coins, parts)
    assert world.done_to(steps_of(coins)[0]) == [LoadStep]
    world.converge(parts)
    assert world.loaded_steps == set(steps_of(parts))
    assert world.report(parts)["parts"].state is ModelState.READY


def test_an_unassigned_model_leaves_nothing_behind() -> None:
    world, coins = World(), revision_of("coins", expose=True)
    world.converge(coins)
    world.converge()
    assert (world.loaded, world.loaded_steps, world.published, world.step_folders) == ({}, set(), {}, set())


def test_a_model_is_reported_as_leaving_until_its_own_steps_are_gone() -> None:
    world, coins = World(), revision_of("coins")
    world.converge(coins)
    world.loaded.clear()
    assert world.report()["coins"].state is ModelState.UNLOADING
    actions = next_actions((), world.snapshot(), world.state, 0.0)
    assert Remove("coins") not in actions


def test_a_new_revision_takes_the_name_before_the_old_steps_go() -> None:
    world, old, new = World(), revision_of("coins", "1"), revision_of("coins", "2")
    world.converge(old)
    world.done.clear()
    world.converge(new)
    assert world.loaded["coins"].revision == new.revision
    assert world.loaded_steps == set(steps_of(new))
    proved = world.done.index(Prove(new.revision, "coins"))
    unloads = [index for index, action in enumerate(world.done) if isinstance(action, Unload)]
    assert unloads
    assert all(index > proved for index in unloads)
    assert Unload("coins") not in world.done


def test_a_revision_that_cannot_be_prepared_leaves_the_one_before_it_as_it_is() -> None:
    world, old, new = World(), revision_of("coins", "1"), revision_of("coins", "2")
    world.converge(old)
    world.state.fail(new, "ArtifactMissing", "gone", retry_from_s=5.0)
    world.converge(new)
    assert world.loaded["coins"].revision == old.revision
    assert world.loaded_steps == set(steps_of(old))
    report = world.report(new)["coins"]
    assert (report.state, report.reason, report.retryable) == (ModelState.FAILED, "ArtifactMissing", True)


def test_a_failure_that_may_pass_is_tried_again_when_it_is_due() -> None:
    world, coins = World(), revision_of("coins")
    world.state.fail(coins, "ArtifactMissing", "gone", retry_from_s=0.0)
    assert next_actions((coins,), world.snapshot(), world.state, 0.5) == ()
    assert next_actions((coins,), world.snapshot(), world.state, 1.0) == (Prepare(coins.revision, "coins"),)


@pytest.mark.parametrize(("attempts", "pause_s", "load_pause_s"), [(1, 1.0, 2.0), (3, 4.0, 8.0), (20, 30.0, 300.0)])
def test_pauses_double_to_a_bound_that_is_longer_between_loads(
    attempts: int, pause_s: float, load_pause_s: float
) -> None:
    fetched, loaded, coins = AgentState(), AgentState(), revision_of("coins")
    for attempt in range(attempts):
        fetched.fail(coins, "ArtifactMissing", "gone", retry_from_s=100.0)
        loaded.fail_load(coins, "LoadFailed", "no memory", attempt * 1000.0)

    assert fetched.revisions[coins.revision].failure.retry_at_s == 100.0 + pause_s
    assert loaded.revisions[coins.revision].failure.retry_at_s == (attempts - 1) * 1000.0 + load_pause_s


def test_what_triton_refuses_to_load_is_tried_again_after_the_final_word_too() -> None:
    """Memory may be short for an hour: the server gets the model later, though nobody waits for it any more."""
    world, coins = World(), revision_of("coins")
    world.converge(coins)
    world.restart_server()
    said = []
    for _ in range(LOADS_ALLOWED + 2):
        failure = world.state.revisions[coins.revision].failure
        now_s = failure.retry_at_s if failure is not None and failure.retry_at_s is not None else 0.0
        for step in steps_of(coins):  # all steps of an attempt that fail are one failure
            world.state.fail_load(coins, "LoadFailed", f"no memory for {step}", now_s)
        report = world.report(coins)["coins"]
        said.append((report.state, report.reason, report.attempts, report.retryable))
        due_s = world.state.revisions[coins.revision].failure.retry_at_s
        assert due_s is not None
        assert next_actions((coins,), world.snapshot(), world.state, due_s - 0.1) == ()
        assert next_actions((coins,), world.snapshot(), world.state, due_s)[0] == LoadStep(steps_of(coins)[0])

    assert said == [(ModelState.FAILED, "LoadFailed", n, n < LOADS_ALLOWED) for n in range(1, LOADS_ALLOWED + 3)]


def test_a_model_that_lacked_memory_is_served_once_there_is_some() -> None:
    world, coins = World(), revision_of("coins")
    for now_s in (0.0, 10.0, 100.0, 1000.0):
        world.state.fail_load(coins, "LoadFailed", "no memory", now_s)
    world.converge(coins, now_s=10_000.0)
    report = world.report(coins)["coins"]

    assert (report.state, report.attempts, report.reason) == (ModelState.READY, 0, "")


def test_a_final_failure_is_not_tried_again_until_the_assignment_changes() -> None:
    world, coins, other = World(), revision_of("coins"), revision_of("coins", golden="a")
    world.state.fail(coins, "GoldenFailed", "IoU 0.1", retry_from_s=None)
    assert next_actions((coins,), world.snapshot(), world.state, 1e9) == ()
    assert other.revision == coins.revision
    world.converge(other)
    assert world.report(other)["coins"].proof == "golden"


def test_a_failed_model_does_not_hold_up_the_others() -> None:
    world, bad, good, gone = World(), revision_of("bad", "1"), revision_of("good", "2"), revision_of("gone", "3")
    world.converge(gone)
    world.state.fail(bad, "SignatureMismatch", "no", retry_from_s=None)
    world.converge(bad, good)
    assert world.report(bad, good)["good"].state is ModelState.READY
    assert world.loaded_steps == set(steps_of(good))


def test_a_server_that_restarted_empty_is_filled_and_everything_is_proved_again() -> None:
    world, coins, parts = World(), revision_of("coins"), revision_of("parts", "2")
    world.converge(coins, parts)
    world.restart_server()
    world.state.invalidate_proofs((coins, parts), world.snapshot())
    assert world.report(coins)["coins"].state is ModelState.LOADING
    world.done.clear()
    world.converge(coins, parts)
    assert {type(action) for action in world.done} == {LoadStep, Serve, Prove}
    assert world.report(coins, parts)["parts"].state is ModelState.READY


def test_a_new_agent_adopts_what_is_loaded_and_proves_it_anew() -> None:
    world, coins = World(), revision_of("coins")
    world.converge(coins)
    world.state, world.done = AgentState(), []
    world.converge(coins)
    assert [type(action) for action in world.done] == [Prepare, Prove]
    assert world.report(coins)["coins"].state is ModelState.READY


def test_a_new_agent_that_cannot_fetch_keeps_what_is_loaded() -> None:
    world, coins = World(), revision_of("coins")
    world.converge(coins)
    world.state = AgentState()
    world.state.fail(coins, "ArtifactMissing", "gone", retry_from_s=5.0)
    world.converge(coins)
    assert world.loaded_steps == set(steps_of(coins))


def test_a_dead_step_takes_ready_back_and_is_loaded_again_alone() -> None:
    world, coins = World(), revision_of("coins")
    world.converge(coins)
    world.dead.add(steps_of(coins)[1])
    world.state.invalidate_proofs((coins,), world.snapshot())
    report = world.report(coins)["coins"]
    assert (report.state, report.reason) == (ModelState.LOADING, "StepDied")
    world.done.clear()
    world.converge(coins)
    assert world.done == [RepairStep(steps_of(coins)[1]), Prove(coins.revision, "coins")]


def test_what_ended_a_step_is_reported_while_it_is_reloaded_and_after() -> None:
    world, coins = World(), revision_of("coins")
    world.converge(coins)
    step = steps_of(coins)[1]
    world.dead.add(step)
    world.deaths[step] = StepDeath(12 * 3600 + 61.5, "ended by SIGSEGV")
    world.state.invalidate_proofs((coins,), world.snapshot())
    death = f"a process of {step} died at 12:01:01 UTC (ended by SIGSEGV)"

    during = world.report(coins)["coins"]
    world.converge(coins)
    after = world.report(coins)["coins"]

    assert (during.state, during.message) == (ModelState.LOADING, f"{death}; reloading it")
    assert (after.state, after.message) == (ModelState.READY, f"{death}; it was reloaded")


def test_nothing_is_asked_of_a_server_that_does_not_answer() -> None:
    world, coins, gone = World(), revision_of("coins"), revision_of("gone", "2")
    world.converge(gone)
    world.ready = False
    world.converge(coins)
    assert [type(action) for action in world.done[-1:]] == [Prepare]
    assert world.report(coins)["coins"].reason == "ServerNotReady"
    assert world.report(coins)["gone"].state is ModelState.UNLOADING


def test_an_exposed_network_comes_and_goes_without_taking_ready_back() -> None:
    world, plain, exposed = World(), revision_of("coins"), revision_of("coins", expose=True)
    world.converge(plain)
    world.state.keep_only((exposed,))
    world.state.invalidate_proofs((exposed,), world.snapshot())
    assert world.report(exposed)["coins"].state is ModelState.READY
    world.converge(exposed)
    assert network_alias("coins") in world.loaded
    world.converge(plain)
    assert network_alias("coins") not in world.loaded
    assert world.report(plain)["coins"].state is ModelState.READY


def test_metrics_are_switched_off_and_on_by_other_steps_without_taking_ready_back() -> None:
    world, counted, uncounted = World(), revision_of("coins"), revision_of("coins", counted=False)
    assert counted.revision == uncounted.revision
    world.converge(counted)
    for assigned in (uncounted, counted):
        world.state.keep_only((assigned,))
        while actions := next_actions((assigned,), world.snapshot(), world.state, 0.0):
            for action in actions:
                world.do(action, (assigned,))
                assert world.report(assigned)["coins"].state is ModelState.READY
        assert world.loaded["coins"].steps == world.loaded_steps == set(steps_of(assigned))
        assert world.done_to(assigned.revision).count(Prove) == 0


def test_a_switch_of_metrics_that_fails_leaves_the_model_ready_with_its_former_steps() -> None:
    world, counted, uncounted = World(), revision_of("coins"), revision_of("coins", counted=False)
    world.converge(counted)
    world.state.keep_only((uncounted,))
    world.do(Prepare(uncounted.revision, "coins"), (uncounted,))
    world.state.fail_load(uncounted, "LoadFailed", "no memory", 0.0, serves=True)
    report = world.report(uncounted)["coins"]
    assert (report.state, report.reason, report.loaded) == (ModelState.READY, "LoadFailed", True)
    assert world.loaded["coins"].steps == set(steps_of(counted))


def test_steps_that_are_being_published_for_a_switch_of_metrics_are_not_removed() -> None:
    world, counted, uncounted = World(), revision_of("coins"), revision_of("coins", counted=False)
    world.converge(counted)
    world.state.keep_only((uncounted,))
    preparing = Prepare(uncounted.revision, "coins")
    world.state.start(preparing, 0.0)
    world.step_folders |= set(steps_of(uncounted))
    assert next_actions((uncounted,), world.snapshot(), world.state, 0.0) == ()


def test_another_golden_set_is_proved_while_the_model_stays_ready() -> None:
    world, first, second = World(), revision_of("coins", golden="a"), revision_of("coins", golden="b")
    world.converge(first)
    world.prepare(second)
    world.state.keep_only((second,))
    assert next_actions((second,), world.snapshot(), world.state, 0.0) == (Prove(second.revision, "coins"),)
    assert world.report(second)["coins"].state is ModelState.READY


def test_a_golden_set_on_trial_is_tried_once_the_revision_is_proved_and_the_outcome_is_reported() -> None:
    world, coins = World(), revision_of("coins", golden="a")
    world.converge(coins)
    world.done.clear()
    tried = trying(coins, "b")
    world.converge(tried)
    report = world.report(tried)["coins"]
    assert world.done == [Try(coins.revision, "coins", tried.trial and tried.trial.spec.golden)]
    assert report.state is ModelState.READY
    assert report.trial is not None
    assert (report.trial.golden, report.trial.passed) == (tried.trial and tried.trial.spec.golden, True)
    assert report.proved is not None
    assert report.proved.golden_sha256 == "a" * 64


def test_a_revision_that_is_not_proved_is_not_tried_with_another_golden_set() -> None:
    world, coins = World(), trying(revision_of("coins", golden="a"), "b")
    world.prepare(coins)
    assert not any(isinstance(action, Try) for action in next_actions((coins,), world.snapshot(), world.state, 0.0))
    world.converge(coins)
    assert [type(action) for action in world.done[-2:]] == [Prove, Try]


@pytest.mark.parametrize(
    ("retry_from_s", "again"),
    [
        pytest.param(None, False, id="answers that differ are not asked for again"),
        pytest.param(0.0, True, id="a set that cannot be fetched is tried again when it is due"),
    ],
)
def test_a_trial_that_fails_is_reported_and_the_revision_stays_ready(retry_from_s: float | None, again: bool) -> None:
    world, coins = World(), revision_of("coins", golden="a")
    world.converge(coins)
    tried = trying(coins, "b")
    assert tried.trial is not None
    world.state.fail_trial(tried.trial, "GoldenFailed", "IoU 0.1", retry_from_s=retry_from_s)
    world.state.keep_only((tried,))
    report = world.report(tried)["coins"]
    assert (report.state, report.proof, report.reason) == (ModelState.READY, "golden", "")
    assert report.trial is not None
    assert (report.trial.passed, report.trial.reason, report.trial.message) == (False, "GoldenFailed", "IoU 0.1")
    assert bool(next_actions((tried,), world.snapshot(), world.state, 30.0)) is again


def test_a_trial_that_servers_die_of_is_given_up_after_three_attempts() -> None:
    world, coins = World(), revision_of("coins", golden="a")
    world.converge(coins)
    tried = trying(coins, "b")
    assert tried.trial is not None
    for attempt in range(1, 4):
        assert any(isinstance(action, Try) for action in next_actions((tried,), world.snapshot(), world.state, 99.0))
        world.state.fail_trial(tried.trial, "ServerNotReady", "gone", retry_from_s=0.0, died=True)
        assert world.state.revisions[coins.revision].trial_failure.attempts == attempt
        world.state.keep_only((tried,))
    assert next_actions((tried,), world.snapshot(), world.state, 1e9) == ()
    assert world.report(tried)["coins"].state is ModelState.READY


def test_a_set_that_passed_its_trial_and_is_adopted_is_the_proof_and_nothing_is_fetched_again() -> None:
    world, coins, adopted = World(), revision_of("coins", golden="a"), revision_of("coins", golden="b")
    world.converge(trying(coins, "b"))
    world.done.clear()
    world.converge(adopted)
    assert world.done == []
    report = world.report(adopted)["coins"]
    assert (report.state, report.trial) == (ModelState.READY, None)
    assert report.proved is not None
    assert (report.proved.golden_sha256, report.proved.images) == ("b" * 64, 2)


def test_the_outcome_of_a_trial_does_not_outlive_it() -> None:
    world, coins = World(), revision_of("coins", golden="a")
    world.converge(trying(coins, "b"))
    world.converge(coins)
    report = world.report(coins)["coins"]
    assert report.trial is None
    assert report.proved is not None
    assert report.proved.golden_sha256 == "a" * 64
    own = world.state.revisions[coins.revision]
    assert (own.trial_proof, own.trial_failure) == (None, None)


def test_a_restarted_server_is_tried_again_after_its_proof() -> None:
    world, tried = World(), trying(revision_of("coins", golden="a"), None)
    world.converge(tried)
    world.restart_server()
    world.state.invalidate_proofs((tried,), world.snapshot())
    report = world.report(tried)["coins"]
    assert report.trial is not None
    assert not report.trial.passed
    world.done.clear()
    world.converge(tried)
    assert [type(action) for action in world.done[-2:]] == [Prove, Try]


def test_a_step_folder_that_was_deleted_is_published_again() -> None:
    world, coins = World(), revision_of("coins")
    world.converge(coins)
    world.step_folders.clear()
    world.converge(coins)
    assert world.step_folders == set(steps_of(coins))


def test_a_step_that_is_being_removed_is_not_loaded_at_the_same_time() -> None:
    world, coins = World(), revision_of("coins")
    world.prepare(coins)
    world.state.start(Remove(steps_of(coins)[0]), 0.0)
    assert next_actions((coins,), world.snapshot(), world.state, 0.0) == ()


def test_what_is_under_way_is_not_started_again() -> None:
    world, coins = World(), revision_of("coins")
    world.state.start(Prepare(coins.revision, "coins"), 0.0)
    assert next_actions((coins,), world.snapshot(), world.state, 0.0) == ()
