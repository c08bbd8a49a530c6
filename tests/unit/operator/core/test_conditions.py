"""What a model's conditions say: each row is a world, and the condition that people read of it."""

from __future__ import annotations

import ast
import inspect
from dataclasses import replace

import pytest

from fakes.observed_models import (
    CELLS,
    FAILURE,
    FIRST,
    NOW_S,
    SECOND,
    THIRD,
    candidate,
    failed,
    group,
    holder,
    lost,
    model,
    report,
    server,
    state,
    world,
)
from fakes.offenders import offenders
from segserve_builder.agent.protocol import ModelReport, ModelState, ProofReport, TrialReport
from segserve_builder.spec.model_spec import Golden
from segserve_operator.api.rollout_policy import Slo
from segserve_operator.core.advance.advance import RolloutUpdate
from segserve_operator.core.failure import FailureReason
from segserve_operator.core.models import conditions
from segserve_operator.core.models.conditions import GOLDEN_REASONS, status_of
from segserve_operator.core.models.planning import desired_state
from segserve_operator.core.models.pool import MAX_CANDIDATE_GROUPS
from segserve_operator.core.rollout.phases import ENDED, Phase
from segserve_operator.core.rollout.record import RolloutState
from segserve_operator.core.traffic import TrafficState
from segserve_operator.core.world.observed import (
    GroupObserved,
    Minute,
    ModelObserved,
    ModelStatus,
    Observed,
    ObservedCondition,
    Roles,
    SloWatch,
)
from segserve_operator.core.world.quorum import ARTIFACT_REASONS

MAIN = group("main", FIRST)
OWN = group(SECOND.revision, SECOND)
SERVED = Roles(holder(FIRST, "main"))
CHANGING = Roles(holder(FIRST, "main"), candidate(SECOND))
CHANGED = Roles(holder(SECOND), previous=holder(FIRST, "main"))
PROVING_FIRST = Roles(candidate=candidate(FIRST, "main"))
NO_NODE = FailureReason("Unschedulable", "0/3 nodes are available: 3 Insufficient nvidia.com/gpu")
WAS_READY = ObservedCondition("TrafficReady", "True", "Serving")
NO_WAY = TrafficState(None)
ON_ITS_WAY = [phase for phase in Phase if phase not in {*ENDED, Phase.PENDING}]


def status(seen: Observed) -> ModelStatus:
    """Return the status of coins, whose roles and rollout stay as they are."""
    coins = next(each for each in seen.models if each.name == "coins")
    return status_of(coins, coins.roles, RolloutUpdate(coins.status.rollout), seen.watches, seen.drifts, seen)


def with_candidate_said(said: str = "", *, state: ModelState, **changes: object) -> Observed:
    """Return a world in which the candidate's only server says that it is so far, with this message."""
    reason = "LoadFailed" if state is ModelState.FAILED else ""
    told = report(SECOND, state, message=said, reason=reason, **changes)
    return world(model(SECOND, CHANGING), groups=[MAIN, group(SECOND.revision, SECOND, reports=[told])])


def with_candidate_failed(reason: str, *, retryable: bool = True) -> Observed:
    told = failed(SECOND, reason, "what was seen", retryable=retryable)
    return world(model(SECOND, CHANGING), groups=[MAIN, group(SECOND.revision, SECOND, reports=[told])])


def given_up(reason: str) -> Observed:
    """Return a world in which the candidate has failed for good, and holds no group any more."""
    roles = replace(SERVED, candidate=candidate(SECOND, failure=FailureReason(reason, "what was seen")))
    return world(model(SECOND, roles), groups=[MAIN])


ANOTHER = "another spec is needed, or a retry"
RETURNING = world(model(FIRST, CHANGED), groups=[lost("main", FIRST), OWN])
LATE = Roles(holder(FIRST, "main"), candidate(SECOND, since_s=NOW_S - 600))
LATE_TEXT = f"0 of at least 1 servers of group {SECOND.revision} have proved {SECOND.revision} within 10m"
GAVE_UP = FailureReason("ProgressDeadlineExceeded", "0 of at least 1 servers")
STALLED_BEFORE = replace(SERVED, candidate=replace(candidate(SECOND, None), stalled=GAVE_UP))
DIED = failed(SECOND, "LoadFailed", "out of memory", retryable=True)


def with_bad_server(bad: ModelReport, *others: ModelReport, wanted: int = 3) -> Observed:
    """Return a world in which one server of the candidate's group, on node gpu-7, says other things than the rest."""
    servers = [replace(server("bad", bad), node="gpu-7"), *(server(f"{n}", each) for n, each in enumerate(others))]
    proving = GroupObserved(SECOND.revision, tuple(servers), wanted=wanted)
    return world(model(SECOND, CHANGING), groups=[MAIN, proving])


OLD_SET, NEW_SET = (Golden(uri="file:///golden", sha256=digit * 64) for digit in "12")


def on_trial(*trials: TrialReport | None, wanted: Golden | None = NEW_SET, knows_trials: bool = True) -> Observed:
    """Return a world in which the spec's golden set was edited; each server says what came of its trial."""
    told, edited = (FIRST.model_copy(update={"golden": golden}) for golden in (OLD_SET, wanted))
    proved = ProofReport(golden_sha256=OLD_SET.sha256, images=3) if knows_trials else None
    servers = [server(f"{n}", report(told, proved=proved, trial=trial)) for n, trial in enumerate(trials)]
    main = replace(group("main", told), servers=tuple(servers), wanted=len(servers))
    return world(model(edited, SERVED), groups=[main], records=[told])


T4 = "Tesla T4, driver 550.54.15, compute capability 7.5"


def proved_on(devices: tuple[str, ...], *gpus: str) -> Observed:
    """Return a world whose server has proved the revision on devices."""
    told = FIRST.model_copy(update={"golden": OLD_SET})
    proof = ProofReport(golden_sha256=OLD_SET.sha256, images=3, devices=devices, gpus=gpus)
    main = replace(group("main", told), servers=(server("1", report(told, proved=proof)),))
    return world(model(told, SERVED), groups=[main], records=[told])


def adopted(seen: Observed) -> Observed:
    """Return the world once the record has the spec's golden set, and its servers were not told so yet."""
    edited = next(iter(seen.models)).wanted
    assert edited is not None
    return replace(seen, revisions={FIRST.revision: edited.assigned})


PASSED = TrialReport(golden=NEW_SET, images=4)
UNDER_WAY = TrialReport(golden=NEW_SET)
DIFFERS = TrialReport(golden=NEW_SET, reason="GoldenFailed", message="coins.png: IoU 0.1")
ABSENT = TrialReport(golden=NEW_SET, reason="DigestMismatch", message="sha256 is another")
ONE_OF_TWO = f"1 of 2 servers have proved {FIRST.revision} with golden set {'2' * 12}, while it serves"
GOES_ON = f"{FIRST.revision} goes on with what it was proved with"
FETCHED = ObservedCondition("ArtifactVerified", "True", "DigestMatches", "the artifact has the expected sha256")
NOT_FETCHED = ObservedCondition("ArtifactVerified", "Unknown", "Waiting", "no server has fetched the artifact yet")
LOADED = ObservedCondition("RevisionLoaded", "True", "Loaded", "Triton has loaded the newest revision")
NOT_LOADED = ObservedCondition("RevisionLoaded", "Unknown", "Waiting", "no server has loaded the newest revision yet")
REFUSED_TO_LOAD = ObservedCondition("RevisionLoaded", "False", "LoadFailed", "what was seen")
BUILTIN_ONLY = ObservedCondition(
    "GoldenPassed",
    "True",
    "BuiltinOnly",
    "no golden set: a built-in image showed that the pipeline runs and its answer is finite and repeatable",
)
NOT_ANSWERED = ObservedCondition("GoldenPassed", "Unknown", "Waiting", "no server has answered the golden images yet")
NO_SERVER = ObservedCondition("TrafficReady", "False", "NoServer", f"no server of group main serves {FIRST.revision}")
SERVING = ObservedCondition("TrafficReady", "True", "Serving", f"{FIRST.revision} in group main gets all requests")
ROUTING = ObservedCondition(
    "TrafficReady", "False", "Routing", f"the gateway does not yet send requests to {FIRST.revision}"
)
IDLE = ObservedCondition("Progressing", "False", "Idle", "no change is in progress")
NO_PROBLEM = ObservedCondition("Degraded", "False", "AsWanted", "no problem is known")

ARTIFACT_VERIFIED = [
    pytest.param(
        world(model(FIRST, SERVED), groups=[MAIN]),
        FETCHED,
        id="the stable revision's artifact is the one that was asked for",
    ),
    pytest.param(
        with_candidate_said(state=ModelState.LOADING),
        FETCHED,
        id="the candidate's artifact is the one that was asked for as soon as it is fetched",
    ),
    pytest.param(
        world(model(FIRST)), NOT_FETCHED, id="nothing is known of an artifact before any server was asked for it"
    ),
    pytest.param(
        with_candidate_said(state=ModelState.FETCHING),
        NOT_FETCHED,
        id="nothing is known of an artifact that is being fetched",
    ),
    pytest.param(
        world(model(SECOND, CHANGING), groups=[MAIN, lost(SECOND.revision, SECOND)]),
        NOT_FETCHED,
        id="nothing is known of an artifact where the candidate's servers are lost",
    ),
    *(
        pytest.param(
            with_candidate_failed(reason),
            ObservedCondition("ArtifactVerified", "False", reason, "what was seen"),
            id=f"an artifact that a server refuses as {reason} is not verified",
        )
        for reason in sorted(ARTIFACT_REASONS)
    ),
    *(
        pytest.param(
            given_up(reason),
            ObservedCondition("ArtifactVerified", "False", reason, "what was seen"),
            id=f"an artifact stays refused as {reason} when the candidate has given its group back",
        )
        for reason in sorted(ARTIFACT_REASONS)
    ),
]

REVISION_LOADED = [
    pytest.param(
        world(model(FIRST, SERVED), groups=[MAIN]), LOADED, id="the stable revision is loaded where it is served"
    ),
    pytest.param(
        with_candidate_said(state=ModelState.PROVING), LOADED, id="the candidate is loaded before it is proved"
    ),
    pytest.param(
        with_candidate_said(state=ModelState.LOADING),
        NOT_LOADED,
        id="nothing is known of a candidate that is being loaded",
    ),
    pytest.param(world(model(FIRST)), NOT_LOADED, id="nothing is known of a revision that no server was told of"),
    pytest.param(
        with_candidate_failed("LoadFailed"), REFUSED_TO_LOAD, id="a revision that Triton refuses is not loaded"
    ),
    pytest.param(given_up("LoadFailed"), REFUSED_TO_LOAD, id="a revision that Triton refused for good is not loaded"),
    pytest.param(
        given_up("ClassesChanged"),
        ObservedCondition("RevisionLoaded", "False", "ClassesChanged", "what was seen"),
        id="a revision that drops classes is not loaded",
    ),
    pytest.param(
        world(model(SECOND, CHANGING), groups=[MAIN, lost(SECOND.revision, SECOND, problem=NO_NODE)]),
        ObservedCondition("RevisionLoaded", "False", "Unschedulable", NO_NODE.message),
        id="a revision whose servers find no node is not loaded, and the scheduler says why",
    ),
    pytest.param(
        world(model(SECOND, CHANGING), groups=[MAIN, replace(OWN, problem=NO_NODE)]),
        LOADED,
        id="a trouble of a group that is complete is none of the revision's",
    ),
    *(
        pytest.param(
            with_candidate_failed(reason),
            NOT_LOADED,
            id=f"what is wrong as {reason} does not count as refused by Triton",
        )
        for reason in sorted(ARTIFACT_REASONS | GOLDEN_REASONS)
    ),
]

ANSWERED = f"golden set {'1' * 12}: every image (3) was answered within its tolerance"
GOLDEN_PASSED = [
    *(
        pytest.param(
            proved_on((device,), T4),
            ObservedCondition("GoldenPassed", "True", "AnswersMatch", f"{ANSWERED}; {where}"),
            id=f"the device of the proof is the {device}",
        )
        for device, where in (
            ("gpu", f"on {T4}"),
            ("cpu", f"on the CPU, although the server has {T4} (runtime.device gpu does not allow that)"),
        )
    ),
    pytest.param(
        world(model(FIRST, SERVED), groups=[MAIN]),
        ObservedCondition(
            "GoldenPassed", "True", "AnswersMatch", "every golden image was answered within its tolerance"
        ),
        id="the golden set was answered",
    ),
    pytest.param(
        on_trial(None, wanted=OLD_SET),
        ObservedCondition(
            "GoldenPassed",
            "True",
            "AnswersMatch",
            f"golden set {'1' * 12}: every image (3) was answered within its tolerance",
        ),
        id="the golden set that was answered is named",
    ),
    pytest.param(
        on_trial(None),
        ObservedCondition(
            "GoldenPassed",
            "Unknown",
            "GoldenPending",
            f"0 of 1 servers have proved {FIRST.revision} with golden set {'2' * 12}, while it serves",
        ),
        id="an edited golden set is pending from the first look at it",
    ),
    pytest.param(
        on_trial(PASSED, UNDER_WAY),
        ObservedCondition("GoldenPassed", "Unknown", "GoldenPending", ONE_OF_TWO),
        id="an edited golden set is pending until all servers have answered it",
    ),
    pytest.param(
        on_trial(None, knows_trials=False),
        ObservedCondition(
            "GoldenPassed",
            "Unknown",
            "GoldenPending",
            f"golden set {'2' * 12} is tried on the next revision: these servers are of another version of segserve",
        ),
        id="servers that know no trials leave an edited golden set pending",
    ),
    pytest.param(
        on_trial(PASSED, PASSED),
        ObservedCondition(
            "GoldenPassed",
            "True",
            "AnswersMatch",
            f"golden set {'2' * 12}: every image (4) was answered within its tolerance",
        ),
        id="an edited golden set has passed once all servers have answered it",
    ),
    pytest.param(
        adopted(on_trial(PASSED, PASSED)),
        ObservedCondition(
            "GoldenPassed",
            "True",
            "AnswersMatch",
            f"golden set {'2' * 12}: every image (4) was answered within its tolerance",
        ),
        id="an edited golden set is named also before its servers were told that it is the revision's",
    ),
    pytest.param(
        on_trial(PASSED, wanted=OLD_SET),
        ObservedCondition(
            "GoldenPassed",
            "True",
            "AnswersMatch",
            f"golden set {'1' * 12}: every image (3) was answered within its tolerance",
        ),
        id="a golden set that was answered and is no longer asked for is not named",
    ),
    pytest.param(
        on_trial(TrialReport(images=1), wanted=None),
        BUILTIN_ONLY,
        id="where the golden set was dropped only the built-in image was answered",
    ),
    *(
        pytest.param(
            on_trial(PASSED, trial),
            ObservedCondition(
                "GoldenPassed", "False", trial.reason, f"golden set {'2' * 12}: {trial.message}; {GOES_ON}"
            ),
            id=f"an edited golden set that one server refuses has not passed: {trial.reason}",
        )
        for trial in (DIFFERS, ABSENT)
    ),
    pytest.param(
        with_candidate_said(state=ModelState.READY, proof="builtin"),
        BUILTIN_ONLY,
        id="a model without a golden set says that only the built-in image was answered",
    ),
    pytest.param(
        with_candidate_said(state=ModelState.PROVING),
        NOT_ANSWERED,
        id="nothing is known of golden answers while they are asked for",
    ),
    pytest.param(
        world(model(FIRST)),
        NOT_ANSWERED,
        id="nothing is known of golden answers before any server was told of the revision",
    ),
    pytest.param(
        with_candidate_failed("LoadFailed"),
        NOT_ANSWERED,
        id="a revision that cannot be loaded was not asked for golden answers",
    ),
    *(
        pytest.param(
            given_up(reason),
            ObservedCondition("GoldenPassed", "False", reason, "what was seen"),
            id=f"a revision with wrong answers has not passed: {reason}",
        )
        for reason in sorted(GOLDEN_REASONS)
    ),
]

TRAFFIC_READY = [
    pytest.param(
        world(model(FIRST, PROVING_FIRST), groups=[group("main", FIRST, state=ModelState.LOADING)]),
        ObservedCondition("TrafficReady", "False", "NoStable", "no revision has passed its golden images yet"),
        id="a model without a stable revision serves nobody",
    ),
    pytest.param(world(model(FIRST, SERVED)), NO_SERVER, id="a stable revision whose group is gone serves nobody"),
    pytest.param(
        world(model(FIRST, SERVED), groups=[lost("main", FIRST)]),
        NO_SERVER,
        id="a stable revision whose servers are lost serves nobody",
    ),
    pytest.param(
        world(model(FIRST, SERVED), groups=[group("main", FIRST, reports=[failed(FIRST, "LoadFailed", "no memory")])]),
        ObservedCondition(
            "TrafficReady", "False", "NoServer", f"no server of group main serves {FIRST.revision}: no memory"
        ),
        id="a stable revision that its server lost serves nobody, and the server says why",
    ),
    pytest.param(
        world(model(FIRST, SERVED), groups=[replace(MAIN, servers=(server("silent", report(FIRST), ready=False),))]),
        NO_SERVER,
        id="what a silent agent once said does not count",
    ),
    pytest.param(
        world(model(FIRST, SERVED), groups=[replace(MAIN, servers=(), leaving=MAIN.servers)]),
        SERVING,
        id="a server that is about to end serves where no other does",
    ),
    pytest.param(
        world(model(FIRST, SERVED), groups=[MAIN], traffic=TrafficState(None, answering=False)),
        ObservedCondition("TrafficReady", "False", "NoGateway", "no gateway accepts requests"),
        id="nobody is served without a gateway",
    ),
    pytest.param(world(model(FIRST, SERVED), groups=[MAIN]), SERVING, id="a stable revision gets all requests"),
    pytest.param(
        world(model(SECOND, CHANGING), groups=[MAIN, OWN], weights={"main": 75, SECOND.revision: 25}),
        ObservedCondition("TrafficReady", "True", "Serving", f"{FIRST.revision} in group main gets 75 % of requests"),
        id="a stable revision shares requests with the candidate",
    ),
    pytest.param(
        world(model(SECOND, CHANGED, said=[WAS_READY]), groups=[MAIN, OWN], weights={"main": 100}),
        ObservedCondition(
            "TrafficReady", "True", "Switching", f"the gateway does not yet send requests to {SECOND.revision}"
        ),
        id="callers are served by the former revision until the gateway follows",
    ),
    pytest.param(
        world(model(FIRST, SERVED, said=[WAS_READY]), groups=[MAIN], traffic=NO_WAY),
        ObservedCondition(
            "TrafficReady", "True", "Switching", f"the gateway does not yet send requests to {FIRST.revision}"
        ),
        id="a gateway that has not told its plan yet ends nothing",
    ),
    pytest.param(
        world(model(FIRST, SERVED), groups=[MAIN], traffic=NO_WAY), ROUTING, id="a first revision waits for the gateway"
    ),
    pytest.param(
        world(
            model(FIRST, SERVED, said=[ObservedCondition("TrafficReady", "False", "NoServer")]),
            groups=[MAIN],
            traffic=world(model(FIRST, SERVED), groups=[lost("main", FIRST)]).traffic,
        ),
        ROUTING,
        id="a server that has come back waits for the gateway",
    ),
]

READY = [
    pytest.param(
        on_trial(DIFFERS),
        ObservedCondition("Ready", "True", "Serving", f"{FIRST.revision} in group main gets all requests"),
        id="a model whose edited golden set failed serves as before",
    ),
    *(
        pytest.param(row.values[0], replace(row.values[1], type="Ready"), id=f"ready as its traffic: {row.id}")
        for row in TRAFFIC_READY
    ),
    pytest.param(
        world(model(FIRST, SERVED, deleting=True), groups=[MAIN]),
        ObservedCondition("Ready", "False", "Deleting", "the model is being deleted"),
        id="a model that is being deleted is not ready, though it still answers",
    ),
]

PROGRESSING = [
    pytest.param(
        on_trial(PASSED, UNDER_WAY),
        ObservedCondition("Progressing", "True", "GoldenPending", ONE_OF_TWO),
        id="an edited golden set is in progress until all servers have answered it",
    ),
    *(
        pytest.param(seen, IDLE, id=f"nothing is in progress {when}")
        for seen, when in (
            (on_trial(PASSED, PASSED), "once an edited golden set has passed"),
            (on_trial(PASSED, DIFFERS), "once an edited golden set has failed"),
            (on_trial(None, knows_trials=False), "where servers know no trials"),
        )
    ),
    pytest.param(
        world(model(FIRST, SERVED), groups=[MAIN]),
        IDLE,
        id="nothing is under way where the spec's revision is stable in main",
    ),
    pytest.param(
        world(model(FIRST, SERVED), groups=[MAIN], traffic=NO_WAY),
        ObservedCondition(
            "Progressing", "True", "Routing", f"the gateway does not yet send requests to {FIRST.revision}"
        ),
        id="a promotion is in progress until the gateway follows",
    ),
    pytest.param(
        world(model(FIRST, SERVED)), IDLE, id="a stable revision without servers makes no progress of its own"
    ),
    pytest.param(
        given_up("LoadFailed"),
        ObservedCondition("Progressing", "False", "Stalled", f"LoadFailed: {ANOTHER}"),
        id="nothing is under way where the candidate has failed for good, and another revision than wanted serves",
    ),
    pytest.param(
        world(model(None, SERVED, problem=FAILURE), groups=[MAIN]),
        ObservedCondition("Progressing", "False", "Stalled", f"{FAILURE.reason}: {ANOTHER}"),
        id="nothing is under way where the spec cannot be read",
    ),
    pytest.param(
        RETURNING,
        ObservedCondition(
            "Progressing",
            "True",
            "Returning",
            f"{FIRST.revision} serves again once a server of group main answers for it",
        ),
        id="a return waits while no server of the former group answers",
    ),
    pytest.param(
        world(model(SECOND, CHANGED), groups=[MAIN, OWN]),
        IDLE,
        id="nothing is under way while the former revision is kept",
    ),
    pytest.param(
        world(model(FIRST, Roles(), deleting=True), groups=[MAIN]),
        ObservedCondition("Progressing", "True", "Deleting", "requests finish first, then servers unload the model"),
        id="a model that is being deleted goes step by step",
    ),
    pytest.param(
        world(model(SECOND, replace(SERVED, candidate=candidate(SECOND, None))), groups=[MAIN]),
        ObservedCondition(
            "Progressing",
            "True",
            "Queued",
            f"{SECOND.revision} is queued: at most {MAX_CANDIDATE_GROUPS} candidates are proved concurrently",
        ),
        id="a candidate waits for its turn",
    ),
    pytest.param(
        world(model(SECOND, CHANGING), groups=[MAIN]),
        ObservedCondition("Progressing", "True", "Starting", f"group {SECOND.revision} starts for {SECOND.revision}"),
        id="a candidate's group is started",
    ),
    pytest.param(
        world(model(SECOND, CHANGING, rollout=state(SECOND, Phase.PENDING)), groups=[MAIN]),
        ObservedCondition("Progressing", "True", "Starting", f"group {SECOND.revision} starts for {SECOND.revision}"),
        id="a rollout that waits for its servers tells how these come on",
    ),
    *(
        pytest.param(
            with_candidate_said("half done", state=state),
            ObservedCondition(
                "Progressing", "True", state.value, f"{SECOND.revision} in group {SECOND.revision}: half done"
            ),
            id=f"a candidate's server tells how far it is: {state.value}",
        )
        for state in ModelState
        if state is not ModelState.READY
    ),
    pytest.param(
        with_candidate_said(state=ModelState.LOADING),
        ObservedCondition("Progressing", "True", "Loading", f"{SECOND.revision} in group {SECOND.revision}"),
        id="a candidate's server has nothing to add",
    ),
    pytest.param(
        world(model(SECOND, CHANGING), groups=[MAIN, replace(OWN, wanted=3)]),
        ObservedCondition(
            "Progressing", "True", "Ready", f"{SECOND.revision} in group {SECOND.revision}: 1 of 3 servers answer"
        ),
        id="servers that answer are counted while others are missing",
    ),
    *(
        pytest.param(
            world(
                model(SECOND, CHANGING, rollout=state(SECOND, phase, weight=25, message="because")), groups=[MAIN, OWN]
            ),
            ObservedCondition("Progressing", "True", phase.label, f"{SECOND.revision} gets 25 % of requests: because"),
            id=f"a rollout tells its phase, the weight and why: {phase.label}",
        )
        for phase in ON_ITS_WAY
    ),
    pytest.param(
        world(model(SECOND, CHANGING, rollout=state(SECOND, Phase.PROGRESSING)), groups=[MAIN, OWN]),
        ObservedCondition(
            "Progressing", "True", "Progressing", f"{SECOND.revision} gets 25 % of requests: no problem is known"
        ),
        id="a rollout that nothing holds up says so",
    ),
    pytest.param(
        world(model(SECOND, Roles(holder(SECOND))), groups=[group("main"), OWN]),
        ObservedCondition("Progressing", "True", "Settling", f"{SECOND.revision} is moving to main"),
        id="a stable revision moves into main",
    ),
]

DEGRADED = [
    pytest.param(
        on_trial(DIFFERS),
        ObservedCondition("Degraded", "True", "GoldenFailed", f"golden set {'2' * 12}: coins.png: IoU 0.1; {GOES_ON}"),
        id="an edited golden set that failed is named",
    ),
    pytest.param(on_trial(UNDER_WAY), NO_PROBLEM, id="an edited golden set that is pending is no problem"),
    pytest.param(
        world(model(FIRST, SERVED), groups=[MAIN]),
        NO_PROBLEM,
        id="nothing is wrong where the stable revision is served",
    ),
    pytest.param(
        with_candidate_said(state=ModelState.LOADING), NO_PROBLEM, id="nothing is wrong while a candidate is loaded"
    ),
    pytest.param(
        world(model(FIRST, PROVING_FIRST), groups=[group("main", FIRST, state=ModelState.LOADING)]),
        NO_PROBLEM,
        id="nothing is wrong before the first revision was proved",
    ),
    pytest.param(
        world(model(FIRST, SERVED), groups=[MAIN], traffic=NO_WAY),
        NO_PROBLEM,
        id="nothing is wrong while the gateway is told",
    ),
    pytest.param(
        world(model(None, SERVED, problem=FailureReason("PoolNotFound", "there is no pool 'lab'")), groups=[MAIN]),
        ObservedCondition("Degraded", "True", "PoolNotFound", "there is no pool 'lab'"),
        id="a spec that cannot be followed is named first",
    ),
    pytest.param(
        replace(given_up("LoadFailed"), models=(model(None, SERVED, problem=FAILURE),)),
        ObservedCondition("Degraded", "True", FAILURE.reason, FAILURE.message),
        id="a spec that cannot be read comes before what its last revision lacks",
    ),
    *(
        pytest.param(
            given_up(reason),
            ObservedCondition("Degraded", "True", reason, "what was seen"),
            id=f"a candidate that has failed for good is named: {reason}",
        )
        for reason in ("ClassesChanged", "DigestMismatch", "GoldenFailed", "LoadFailed", "RolledBack")
    ),
    pytest.param(
        with_candidate_failed("ArtifactMissing"),
        ObservedCondition("Degraded", "True", "ArtifactMissing", "what was seen"),
        id="a candidate that is tried again is named",
    ),
    pytest.param(
        world(model(SECOND, CHANGING), groups=[MAIN, lost(SECOND.revision, SECOND, problem=NO_NODE)]),
        ObservedCondition("Degraded", "True", "Unschedulable", NO_NODE.message),
        id="servers of a candidate that find no node are named",
    ),
    pytest.param(
        world(model(FIRST, SERVED), groups=[replace(MAIN, wanted=2, problem=NO_NODE)]),
        ObservedCondition(
            "Degraded", "True", "Unschedulable", "group main has a problem, which the pool's conditions describe"
        ),
        id="a server of main that finds no node is named while the others serve, in the pool's words alone",
    ),
    pytest.param(
        world(model(FIRST, SERVED), groups=[replace(MAIN, problem=NO_NODE)]),
        NO_PROBLEM,
        id="a trouble of a group whose servers all answer is none of the model's",
    ),
    pytest.param(
        world(model(FIRST, SERVED), groups=[lost("main", FIRST)]),
        ObservedCondition("Degraded", "True", "NoServer", f"no server of group main serves {FIRST.revision}"),
        id="a stable revision without servers is named",
    ),
    pytest.param(
        world(model(FIRST, SERVED), groups=[MAIN], traffic=TrafficState(None, answering=False)),
        ObservedCondition("Degraded", "True", "NoGateway", "no gateway accepts requests"),
        id="a missing gateway is named",
    ),
    pytest.param(
        RETURNING,
        ObservedCondition(
            "Degraded", "True", "NoServer", f"no server of group main serves {FIRST.revision}, which the spec requires"
        ),
        id="a return that no server can make is named",
    ),
    pytest.param(
        with_bad_server(DIED, report(SECOND), report(SECOND)),
        ObservedCondition(
            "Degraded",
            "True",
            "ServerFailed",
            f"server bad on node gpu-7: LoadFailed: out of memory; 2 of 3 servers serve {SECOND.revision}",
        ),
        id="a bad server is named with its node while the others serve",
    ),
    pytest.param(
        with_bad_server(DIED, report(SECOND, ModelState.LOADING), report(SECOND, ModelState.LOADING)),
        ObservedCondition(
            "Degraded",
            "True",
            "ServerFailed",
            f"server bad on node gpu-7: LoadFailed: out of memory; 0 of 3 servers serve {SECOND.revision}",
        ),
        id="a bad server is named while the others go on",
    ),
    pytest.param(
        with_bad_server(DIED, DIED, report(SECOND, ModelState.LOADING)),
        ObservedCondition("Degraded", "True", "LoadFailed", "out of memory"),
        id="what too many servers say is the revision's own trouble",
    ),
    pytest.param(
        world(model(SECOND, LATE), groups=[MAIN, group(SECOND.revision, SECOND, state=ModelState.LOADING)]),
        ObservedCondition("Degraded", "True", "ProgressDeadlineExceeded", f"{LATE_TEXT}: Loading"),
        id="a candidate that is late is named",
    ),
]

SETTLED = ObservedCondition("Reconciling", "False", "Idle", "no change is in progress")
NOT_STALLED = ObservedCondition("Stalled", "False", "AsWanted", "nothing is refused or late")
RECONCILING = [
    pytest.param(world(model(FIRST, SERVED), groups=[MAIN]), SETTLED, id="what is at rest is not reconciled"),
    pytest.param(
        world(model(SECOND, CHANGING), groups=[MAIN]),
        ObservedCondition("Reconciling", "True", "Starting", f"group {SECOND.revision} starts for {SECOND.revision}"),
        id="what progresses is reconciled",
    ),
    *(
        pytest.param(
            seen,
            ObservedCondition("Reconciling", "False", "Stalled", f"it is stalled: {reason}"),
            id=f"what is stalled is not reconciled: {reason}",
        )
        for seen, reason in (
            (given_up("GoldenFailed"), "GoldenFailed"),
            (world(model(SECOND, LATE), groups=[MAIN]), "ProgressDeadlineExceeded"),
        )
    ),
]

STALLED = [
    pytest.param(world(model(FIRST, SERVED), groups=[MAIN]), NOT_STALLED, id="nothing is stalled at rest"),
    pytest.param(world(model(SECOND, CHANGING), groups=[MAIN]), NOT_STALLED, id="what is in time is not stalled"),
    pytest.param(with_bad_server(DIED, report(SECOND), report(SECOND)), NOT_STALLED, id="a bad server stalls nothing"),
    pytest.param(
        given_up("GoldenFailed"),
        ObservedCondition("Stalled", "True", "GoldenFailed", "what was seen"),
        id="a model whose candidate failed is stalled, though it is ready",
    ),
    pytest.param(
        world(model(None, SERVED, problem=FAILURE), groups=[MAIN]),
        ObservedCondition("Stalled", "True", FAILURE.reason, FAILURE.message),
        id="a spec that cannot be read is stalled",
    ),
    pytest.param(
        on_trial(DIFFERS),
        ObservedCondition("Stalled", "True", "GoldenFailed", f"golden set {'2' * 12}: coins.png: IoU 0.1; {GOES_ON}"),
        id="an edited golden set that failed is stalled",
    ),
    pytest.param(
        world(model(SECOND, LATE), groups=[MAIN, group(SECOND.revision, SECOND, state=ModelState.LOADING)]),
        ObservedCondition("Stalled", "True", "ProgressDeadlineExceeded", f"{LATE_TEXT}: Loading"),
        id="a candidate whose servers take longer than the deadline is stalled",
    ),
    pytest.param(
        world(model(SECOND, LATE), groups=[MAIN, lost(SECOND.revision, problem=NO_NODE)]),
        ObservedCondition("Stalled", "True", "ProgressDeadlineExceeded", f"{LATE_TEXT}: Unschedulable"),
        id="why a candidate is late is told in one word",
    ),
    pytest.param(
        world(model(SECOND, LATE, rollout=state(SECOND, Phase.PENDING)), groups=[MAIN]),
        ObservedCondition(
            "Stalled",
            "True",
            "ProgressDeadlineExceeded",
            f"{SECOND.revision}: group {SECOND.revision} has not started within 10m",
        ),
        id="a rollout whose servers do not come is stalled like any candidate",
    ),
    *(
        pytest.param(
            world(model(SECOND, LATE, rollout=state(SECOND, phase)), groups=[MAIN, OWN]),
            NOT_STALLED,
            id=f"a rollout that goes on has its own deadline: {phase.label}",
        )
        for phase in ON_ITS_WAY
        if phase is not Phase.BAKING
    ),
    pytest.param(
        world(model(SECOND, STALLED_BEFORE), groups=[MAIN]),
        ObservedCondition("Stalled", "True", GAVE_UP.reason, GAVE_UP.message),
        id="a candidate that gave its servers up stays stalled while it waits",
    ),
    *(
        pytest.param(
            world(model(SECOND, CHANGING, rollout=state(SECOND, Phase.GOLDEN, reason=reason, message="because"))),
            ObservedCondition("Stalled", "True", reason, "because"),
            id=f"a rollout that waits for a person after {reason} is stalled",
        )
        for reason in ("DeadlinePassed", "QuarantinedTooOften")
    ),
]

TABLES = (
    *(ARTIFACT_VERIFIED, REVISION_LOADED, GOLDEN_PASSED, TRAFFIC_READY, READY, PROGRESSING, DEGRADED),
    *(RECONCILING, STALLED),
)


@pytest.mark.parametrize(("seen", "expected"), [row for table in TABLES for row in table])
def test_a_condition_says_what_is(seen: Observed, expected: ObservedCondition) -> None:
    said = {each.type: each for each in status(seen).conditions}

    assert said[expected.type] == expected


def test_every_status_has_each_condition_once_and_each_reason_is_one_word() -> None:
    def check(seen: Observed) -> None:
        conditions = status(seen).conditions
        assert [each.type for each in conditions] == [
            "ArtifactVerified",
            "RevisionLoaded",
            "GoldenPassed",
            "TrafficReady",
            "Ready",
            "Progressing",
            "Degraded",
            "Reconciling",
            "Stalled",
        ]
        assert all(each.reason.isalnum() and each.reason[0].isupper() for each in conditions)

    assert offenders(check, {row.id: row.values[:1] for table in TABLES for row in table}) == {}


def test_every_reason_that_conditions_name_has_a_row() -> None:
    calls = [node for node in ast.walk(ast.parse(inspect.getsource(conditions))) if isinstance(node, ast.Call)]
    named = {
        (kind.value, reason.value)
        for kind, _, reason, *_ in (
            call.args for call in calls if ast.unparse(call.func) == "ObservedCondition" and len(call.args) > 2
        )
        if isinstance(kind, ast.Constant) and isinstance(reason, ast.Constant)
    }
    rows = {(row.values[1].type, row.values[1].reason) for table in TABLES for row in table}

    assert ("Degraded", "AsWanted") in named
    assert named <= rows


@pytest.mark.parametrize(
    ("roles", "rollout", "expected"),
    [
        pytest.param(Roles(), None, 0, id="a model without a revision gives it no requests"),
        pytest.param(PROVING_FIRST, None, 0, id="a first revision gets no requests before it is proved"),
        pytest.param(SERVED, None, 100, id="a stable revision is the newest one and gets all requests"),
        pytest.param(CHANGING, None, 0, id="a candidate without a rollout gets no requests"),
        pytest.param(CHANGING, state(SECOND, Phase.PROGRESSING), 25, id="a candidate gets what its rollout says"),
        pytest.param(CHANGING, state(SECOND, Phase.QUARANTINED), 0, id="a candidate in quarantine gets no requests"),
        pytest.param(CHANGING, state(THIRD, Phase.PROGRESSING), 0, id="another revision's rollout gives it nothing"),
        pytest.param(CHANGED, state(SECOND, Phase.BAKING), 95, id="a promoted revision gets what its bake leaves it"),
        pytest.param(CHANGED, state(SECOND, Phase.SUCCEEDED), 100, id="a revision that succeeded gets all requests"),
        pytest.param(
            replace(SERVED, candidate=candidate(SECOND, failure=FAILURE)),
            state(SECOND, Phase.SUCCEEDED),
            0,
            id="a revision that succeeded and was left later gets no requests",
        ),
        pytest.param(
            CHANGING,
            state(SECOND, Phase.SUCCEEDED),
            0,
            id="a revision that once succeeded and is proved anew gets no requests",
        ),
        pytest.param(
            replace(SERVED, candidate=candidate(SECOND, failure=FAILURE)),
            state(SECOND, Phase.ROLLED_BACK),
            0,
            id="a revision that was rolled back gets no requests",
        ),
    ],
)
def test_the_weight_is_the_newest_revisions(roles: Roles, rollout: RolloutState | None, expected: int) -> None:
    assert status(world(model(SECOND, roles, rollout=rollout), groups=[MAIN, OWN])).weight == expected


@pytest.mark.parametrize(
    ("coins", "url"),
    [
        pytest.param(model(FIRST, SERVED), "http://gateway/v2/models/coins", id="a stable revision has an address"),
        pytest.param(model(FIRST, PROVING_FIRST), "", id="a model that was never proved has no address"),
    ],
)
def test_a_model_has_an_address_once_it_has_a_stable_revision(coins: ModelObserved, url: str) -> None:
    assert status(world(coins, groups=[MAIN])).url == url


GOOD_MINUTE = SloWatch("main", minutes=(Minute(int(NOW_S // 60), 100, {}),))


@pytest.mark.parametrize(
    ("slo", "watch", "expected"),
    [
        pytest.param(Slo(), GOOD_MINUTE, "Met", id="a model that keeps its SLO says so"),
        pytest.param(Slo(), SloWatch(), "Unknown", id="a model that nobody asked anything keeps its SLO unknown"),
        pytest.param(Slo(), None, "", id="a model whose requests are not counted says nothing"),
        pytest.param(None, GOOD_MINUTE, "", id="a model without an SLO says nothing"),
    ],
)
def test_a_status_says_whether_the_slo_is_kept(slo: Slo | None, watch: SloWatch | None, expected: str) -> None:
    watches = {"coins": watch} if watch is not None else {}

    assert status(world(model(FIRST, SERVED, slo=slo), groups=[MAIN], watches=watches)).slo == expected


def test_a_status_keeps_what_was_decided_and_the_generation_that_was_read() -> None:
    coins = replace(model(SECOND, CHANGING), generation=7)
    rolled = RolloutUpdate(state(SECOND, Phase.PROGRESSING), handled=("pause=coins@1",))
    found = status_of(coins, CHANGED, rolled, {}, {}, world(coins, model(CELLS), groups=[MAIN, OWN]))

    assert (found.observed_generation, found.read_generation) == (7, 7)
    assert found.roles == CHANGED
    assert found.rollout == rolled.state
    assert found.handled == rolled.handled


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        pytest.param(world(model(FIRST, SERVED), groups=[MAIN]), 7, id="a spec that serves is observed"),
        pytest.param(world(model(SECOND, CHANGING), groups=[MAIN]), 4, id="a spec that does not serve yet lags"),
        pytest.param(RETURNING, 4, id="a return that no server can make yet lags"),
        pytest.param(given_up("GoldenFailed"), 7, id="a spec that was refused is observed"),
        pytest.param(world(model(SECOND, LATE), groups=[MAIN]), 7, id="a spec that is late is observed"),
        pytest.param(world(model(None, SERVED, problem=FAILURE)), 7, id="a spec that cannot be read is observed"),
        pytest.param(on_trial(UNDER_WAY), 7, id="a revision whose golden set is tried serves as before"),
    ],
)
def test_the_observed_generation_lags_until_the_spec_serves_or_is_refused(seen: Observed, expected: int) -> None:
    (coins,) = seen.models
    edited = replace(coins, generation=7, status=replace(coins.status, observed_generation=4))
    found = status(replace(seen, models=(edited,)))

    assert (found.observed_generation, found.read_generation) == (expected, 7)


@pytest.mark.parametrize("devices", [(), ("cpu",), ("cpu", "gpu")])
def test_the_status_and_the_gateway_have_the_device_of_stable(devices: tuple[str, ...]) -> None:
    seen = proved_on(devices)

    desired = desired_state(seen)

    (status,) = desired.statuses.values()
    assert status.device == ",".join(devices)
    assert desired.traffic is not None
    (route,) = desired.traffic.routes
    assert [share.device for share in route.shares] == [",".join(devices) or None]
