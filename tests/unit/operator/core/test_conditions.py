"""What a model's conditions say: each row is a world, and the condition that people read of it."""

from __future__ import annotations

import ast
import inspect
from dataclasses import replace

import pytest

from fakes.cases import cases
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
from segserve_builder.agent.protocol import ModelReport, ModelState, ProofReport, TrialReport
from segserve_builder.spec.model_spec import Golden
from segserve_operator.api.rollout_policy import Slo
from segserve_operator.core.advance.advance import RolloutUpdate
from segserve_operator.core.advance.explanations import HELD
from segserve_operator.core.failure import FailureReason
from segserve_operator.core.models import conditions
from segserve_operator.core.models.conditions import GOLDEN_REASONS, status_of
from segserve_operator.core.models.planning import desired_state
from segserve_operator.core.models.pool import MAX_CANDIDATE_GROUPS
from segserve_operator.core.rollout.engine import Wait
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


def typed(verb: str) -> str:
    """Return what a person types about the second revision."""
    annotation = f"segserve.dev/{verb}={SECOND.revision}@WORD"
    return f"`segserve rollout {verb} coins` (or the annotation {annotation}, with a new WORD each time)"


ANOTHER = "another spec is needed"
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
    return replace(seen, revisions={FIRST.revision: edited.assigned})


PASSED = TrialReport(golden=NEW_SET, images=4)
UNDER_WAY = TrialReport(golden=NEW_SET)
DIFFERS = TrialReport(golden=NEW_SET, reason="GoldenFailed", message="coins.png: IoU 0.1")
ABSENT = TrialReport(golden=NEW_SET, reason="DigestMismatch", message="sha256 is another")
ONE_OF_TWO = f"1 of 2 servers have proved {FIRST.revision} with golden set {'2' * 12}, while it serves"
GOES_ON = f"{FIRST.revision} keeps serving with the golden set that it passed"
FETCHED = ("True", "DigestMatches", "the artifact has the expected sha256")
NOT_FETCHED = ("Unknown", "Waiting", "no server has fetched the artifact yet")
LOADED = ("True", "Loaded", "Triton has loaded the newest revision")
NOT_LOADED = ("Unknown", "Waiting", "no server has loaded the newest revision yet")
REFUSED_TO_LOAD = ("False", "LoadFailed", "what was seen")
BUILTIN_ONLY = (
    "True",
    "BuiltinOnly",
    "no golden set: a built-in image showed that the pipeline runs and its answer is finite and repeatable",
)
NOT_ANSWERED = ("Unknown", "Waiting", "no server has answered the golden images yet")
NO_SERVER = ("False", "NoServer", f"no server of group main serves {FIRST.revision}")
SERVING = ("True", "Serving", f"{FIRST.revision} in group main gets all requests")
ROUTING = ("False", "Routing", f"the gateway does not yet send requests to {FIRST.revision}")
IDLE = ("False", "Idle", "no change is in progress")
NO_PROBLEM = ("False", "AsWanted", "no problem is known")

_LATER = f"; {SECOND.revision} has failed since, and has no servers"
PASSED_BEFORE = {
    "Artifact": ("True", "DigestMatches", f"the artifact had the expected sha256{_LATER}"),
    "Loaded": ("True", "Loaded", f"Triton had loaded it{_LATER}"),
    "Golden": ("True", "AnswersMatch", f"its servers had proved it{_LATER}"),
}


def rolled_back() -> Observed:
    """Return a candidate that callers' requests have stopped, after its servers had proved it."""
    failed = candidate(SECOND, None, failure=FailureReason("WorseThanStable", "it fails"))
    over = state(SECOND, Phase.ROLLED_BACK, sequence=4)
    return world(model(SECOND, Roles(holder(FIRST, "main"), failed), rollout=over), groups=[MAIN])


ARTIFACT_VERIFIED = {
    "the stable revision's artifact is the one that was asked for": (
        world(model(FIRST, SERVED), groups=[MAIN]),
        FETCHED,
    ),
    "the candidate's artifact is the one that was asked for as soon as it is fetched": (
        with_candidate_said(state=ModelState.LOADING),
        FETCHED,
    ),
    "nothing is known of an artifact before any server was asked for it": (world(model(FIRST)), NOT_FETCHED),
    "nothing is known of an artifact that is being fetched": (
        with_candidate_said(state=ModelState.FETCHING),
        NOT_FETCHED,
    ),
    "nothing is known of an artifact where the candidate's servers are lost": (
        world(model(SECOND, CHANGING), groups=[MAIN, lost(SECOND.revision, SECOND)]),
        NOT_FETCHED,
    ),
    **{
        f"an artifact that a server refuses as {reason} is not verified": (
            with_candidate_failed(reason),
            ("False", reason, "what was seen"),
        )
        for reason in sorted(ARTIFACT_REASONS)
    },
    "a revision that failed its golden images had the right artifact": (
        given_up("GoldenFailed"),
        PASSED_BEFORE["Artifact"],
    ),
    "a revision that was rolled back had the right artifact": (rolled_back(), PASSED_BEFORE["Artifact"]),
    **{
        f"an artifact stays refused as {reason} when the candidate has given its group back": (
            given_up(reason),
            ("False", reason, "what was seen"),
        )
        for reason in sorted(ARTIFACT_REASONS)
    },
}

REVISION_LOADED = {
    "a revision that failed its golden images was loaded": (given_up("GoldenFailed"), PASSED_BEFORE["Loaded"]),
    "a revision that was rolled back was loaded": (rolled_back(), PASSED_BEFORE["Loaded"]),
    "the stable revision is loaded where it is served": (world(model(FIRST, SERVED), groups=[MAIN]), LOADED),
    "the candidate is loaded before it is proved": (with_candidate_said(state=ModelState.PROVING), LOADED),
    "nothing is known of a candidate that is being loaded": (with_candidate_said(state=ModelState.LOADING), NOT_LOADED),
    "nothing is known of a revision that no server was told of": (world(model(FIRST)), NOT_LOADED),
    "a revision that Triton refuses is not loaded": (with_candidate_failed("LoadFailed"), REFUSED_TO_LOAD),
    "a revision that Triton refused for good is not loaded": (given_up("LoadFailed"), REFUSED_TO_LOAD),
    "a revision that drops classes is not loaded": (
        given_up("ClassesChanged"),
        ("False", "ClassesChanged", "what was seen"),
    ),
    "a revision whose servers find no node is not loaded, and the scheduler says why": (
        world(model(SECOND, CHANGING), groups=[MAIN, lost(SECOND.revision, SECOND, problem=NO_NODE)]),
        ("False", "Unschedulable", NO_NODE.message),
    ),
    "a trouble of a group that is complete is none of the revision's": (
        world(model(SECOND, CHANGING), groups=[MAIN, replace(OWN, problem=NO_NODE)]),
        LOADED,
    ),
    **{
        f"what is wrong as {reason} does not count as refused by Triton": (with_candidate_failed(reason), NOT_LOADED)
        for reason in sorted(ARTIFACT_REASONS | GOLDEN_REASONS)
    },
}

ANSWERED = f"golden set {'1' * 12}: every image (3) was answered within its tolerance"
GOLDEN_PASSED = {
    "a revision that was rolled back was proved": (rolled_back(), PASSED_BEFORE["Golden"]),
    **{
        f"the device of the proof is the {device}": (
            proved_on((device,), T4),
            ("True", "AnswersMatch", f"{ANSWERED}; {where}"),
        )
        for device, where in (
            ("gpu", f"on {T4}"),
            ("cpu", f"on the CPU, although the server has {T4} (runtime.device gpu does not allow that)"),
        )
    },
    "the golden set was answered": (
        world(model(FIRST, SERVED), groups=[MAIN]),
        ("True", "AnswersMatch", "every golden image was answered within its tolerance"),
    ),
    "the golden set that was answered is named": (
        on_trial(None, wanted=OLD_SET),
        ("True", "AnswersMatch", f"golden set {'1' * 12}: every image (3) was answered within its tolerance"),
    ),
    "an edited golden set is pending from the first look at it": (
        on_trial(None),
        (
            "Unknown",
            "GoldenPending",
            f"0 of 1 servers have proved {FIRST.revision} with golden set {'2' * 12}, while it serves",
        ),
    ),
    "an edited golden set is pending until all servers have answered it": (
        on_trial(PASSED, UNDER_WAY),
        ("Unknown", "GoldenPending", ONE_OF_TWO),
    ),
    "servers that know no trials leave an edited golden set pending": (
        on_trial(None, knows_trials=False),
        (
            "Unknown",
            "GoldenPending",
            f"golden set {'2' * 12} is tried on the next revision: these servers are of another version of segserve",
        ),
    ),
    "an edited golden set has passed once all servers have answered it": (
        on_trial(PASSED, PASSED),
        ("True", "AnswersMatch", f"golden set {'2' * 12}: every image (4) was answered within its tolerance"),
    ),
    "an edited golden set is named also before its servers were told that it is the revision's": (
        adopted(on_trial(PASSED, PASSED)),
        ("True", "AnswersMatch", f"golden set {'2' * 12}: every image (4) was answered within its tolerance"),
    ),
    "a golden set that was answered and is no longer asked for is not named": (
        on_trial(PASSED, wanted=OLD_SET),
        ("True", "AnswersMatch", f"golden set {'1' * 12}: every image (3) was answered within its tolerance"),
    ),
    "where the golden set was dropped only the built-in image was answered": (
        on_trial(TrialReport(images=1), wanted=None),
        BUILTIN_ONLY,
    ),
    **{
        f"an edited golden set that one server refuses has not passed: {trial.reason}": (
            on_trial(PASSED, trial),
            ("False", trial.reason, f"golden set {'2' * 12}: {trial.message}; {GOES_ON}"),
        )
        for trial in (DIFFERS, ABSENT)
    },
    "a model without a golden set says that only the built-in image was answered": (
        with_candidate_said(state=ModelState.READY, proof="builtin"),
        BUILTIN_ONLY,
    ),
    "nothing is known of golden answers while they are asked for": (
        with_candidate_said(state=ModelState.PROVING),
        NOT_ANSWERED,
    ),
    "nothing is known of golden answers before any server was told of the revision": (
        world(model(FIRST)),
        NOT_ANSWERED,
    ),
    "a revision that cannot be loaded was not asked for golden answers": (
        with_candidate_failed("LoadFailed"),
        NOT_ANSWERED,
    ),
    **{
        f"a revision with wrong answers has not passed: {reason}": (
            given_up(reason),
            ("False", reason, "what was seen"),
        )
        for reason in sorted(GOLDEN_REASONS)
    },
}

TRAFFIC_READY = {
    "a model without a stable revision serves nobody": (
        world(model(FIRST, PROVING_FIRST), groups=[group("main", FIRST, state=ModelState.LOADING)]),
        ("False", "NoStable", "no revision has passed its golden images yet"),
    ),
    "a stable revision whose group is gone serves nobody": (world(model(FIRST, SERVED)), NO_SERVER),
    "a stable revision whose servers are lost serves nobody": (
        world(model(FIRST, SERVED), groups=[lost("main", FIRST)]),
        NO_SERVER,
    ),
    "a stable revision that its server lost serves nobody, and the server says why": (
        world(model(FIRST, SERVED), groups=[group("main", FIRST, reports=[failed(FIRST, "LoadFailed", "no memory")])]),
        ("False", "NoServer", f"no server of group main serves {FIRST.revision}: no memory"),
    ),
    "what a silent agent once said does not count": (
        world(model(FIRST, SERVED), groups=[replace(MAIN, servers=(server("silent", report(FIRST), ready=False),))]),
        NO_SERVER,
    ),
    "a server that is about to end serves where no other does": (
        world(model(FIRST, SERVED), groups=[replace(MAIN, servers=(), leaving=MAIN.servers)]),
        SERVING,
    ),
    "nobody is served without a gateway": (
        world(model(FIRST, SERVED), groups=[MAIN], traffic=TrafficState(None, answering=False)),
        ("False", "NoGateway", "no gateway accepts requests"),
    ),
    "a stable revision gets all requests": (world(model(FIRST, SERVED), groups=[MAIN]), SERVING),
    "a stable revision shares requests with the candidate": (
        world(model(SECOND, CHANGING), groups=[MAIN, OWN], weights={"main": 75, SECOND.revision: 25}),
        ("True", "Serving", f"{FIRST.revision} in group main gets 75 % of requests"),
    ),
    "callers are served by the former revision until the gateway follows": (
        world(model(SECOND, CHANGED, said=[WAS_READY]), groups=[MAIN, OWN], weights={"main": 100}),
        ("True", "Switching", f"the gateway does not yet send requests to {SECOND.revision}"),
    ),
    "a gateway that has not told its plan yet ends nothing": (
        world(model(FIRST, SERVED, said=[WAS_READY]), groups=[MAIN], traffic=NO_WAY),
        ("True", "Switching", f"the gateway does not yet send requests to {FIRST.revision}"),
    ),
    "a first revision waits for the gateway": (world(model(FIRST, SERVED), groups=[MAIN], traffic=NO_WAY), ROUTING),
    "a server that has come back waits for the gateway": (
        world(
            model(FIRST, SERVED, said=[ObservedCondition("TrafficReady", "False", "NoServer")]),
            groups=[MAIN],
            traffic=world(model(FIRST, SERVED), groups=[lost("main", FIRST)]).traffic,
        ),
        ROUTING,
    ),
}

READY = {
    "a model whose edited golden set failed serves as before": (on_trial(DIFFERS), SERVING),
    **{f"ready as its traffic: {name}": row for name, row in TRAFFIC_READY.items()},
    "a model that is being deleted is not ready, though it still answers": (
        world(model(FIRST, SERVED, deleting=True), groups=[MAIN]),
        ("False", "Deleting", "the model is being deleted"),
    ),
}

PROGRESSING = {
    "an edited golden set is in progress until all servers have answered it": (
        on_trial(PASSED, UNDER_WAY),
        ("True", "GoldenPending", ONE_OF_TWO),
    ),
    **{
        f"nothing is in progress {when}": (seen, IDLE)
        for seen, when in (
            (on_trial(PASSED, PASSED), "once an edited golden set has passed"),
            (on_trial(PASSED, DIFFERS), "once an edited golden set has failed"),
            (on_trial(None, knows_trials=False), "where servers know no trials"),
        )
    },
    "nothing is under way where the spec's revision is stable in main": (
        world(model(FIRST, SERVED), groups=[MAIN]),
        IDLE,
    ),
    "a promotion is in progress until the gateway follows": (
        world(model(FIRST, SERVED), groups=[MAIN], traffic=NO_WAY),
        ("True", "Routing", f"the gateway does not yet send requests to {FIRST.revision}"),
    ),
    "a stable revision without servers makes no progress of its own": (world(model(FIRST, SERVED)), IDLE),
    "nothing is under way where the candidate has failed for good, and another revision than wanted serves": (
        given_up("LoadFailed"),
        ("False", "Stalled", f"LoadFailed: {ANOTHER}, or {typed('retry')}"),
    ),
    "nothing is under way where the spec cannot be read": (
        world(model(None, SERVED, problem=FAILURE), groups=[MAIN]),
        ("False", "Stalled", f"{FAILURE.reason}: {ANOTHER}"),
    ),
    "a return waits while no server of the former group answers": (
        RETURNING,
        ("True", "Returning", f"{FIRST.revision} serves again once a server of group main answers for it"),
    ),
    "nothing is under way while the former revision is kept": (world(model(SECOND, CHANGED), groups=[MAIN, OWN]), IDLE),
    "a model that is being deleted goes step by step": (
        world(model(FIRST, Roles(), deleting=True), groups=[MAIN]),
        ("True", "Deleting", "requests finish first, then servers unload the model"),
    ),
    "a candidate waits for its turn": (
        world(model(SECOND, replace(SERVED, candidate=candidate(SECOND, None))), groups=[MAIN]),
        (
            "True",
            "Queued",
            f"{SECOND.revision} is queued: at most {MAX_CANDIDATE_GROUPS} candidates are proved concurrently",
        ),
    ),
    "a candidate's group is started": (
        world(model(SECOND, CHANGING), groups=[MAIN]),
        ("True", "Starting", f"group {SECOND.revision} starts for {SECOND.revision}"),
    ),
    "a rollout that waits for its servers tells how these come on": (
        world(model(SECOND, CHANGING, rollout=state(SECOND, Phase.PENDING)), groups=[MAIN]),
        ("True", "Starting", f"group {SECOND.revision} starts for {SECOND.revision}"),
    ),
    **{
        f"a candidate's server tells how far it is: {state.value}": (
            with_candidate_said("half done", state=state),
            ("True", state.value, f"{SECOND.revision} in group {SECOND.revision}: half done"),
        )
        for state in ModelState
        if state is not ModelState.READY
    },
    "a candidate's server has nothing to add": (
        with_candidate_said(state=ModelState.LOADING),
        ("True", "Loading", f"{SECOND.revision} in group {SECOND.revision}"),
    ),
    "servers that answer are counted while others are missing": (
        world(model(SECOND, CHANGING), groups=[MAIN, replace(OWN, wanted=3)]),
        ("True", "Ready", f"{SECOND.revision} in group {SECOND.revision}: 1 of 3 servers answer"),
    ),
    **{
        f"a rollout tells its phase, the weight and why: {phase.label}": (
            world(
                model(SECOND, CHANGING, rollout=state(SECOND, phase, weight=25, message="because")), groups=[MAIN, OWN]
            ),
            ("True", phase.label, f"{SECOND.revision} gets 25 % of requests: because"),
        )
        for phase in ON_ITS_WAY
    },
    "a rollout that nothing holds up says so": (
        world(model(SECOND, CHANGING, rollout=state(SECOND, Phase.PROGRESSING)), groups=[MAIN, OWN]),
        ("True", "Progressing", f"{SECOND.revision} gets 25 % of requests: no problem is known"),
    ),
    **{
        f"a rollout that a person holds names the commands: {reason}": (
            world(
                model(SECOND, CHANGING, rollout=state(SECOND, Phase.PROGRESSING, reason=reason, message="held")),
                groups=[MAIN, OWN],
            ),
            (
                "True",
                "Progressing",
                f"{SECOND.revision} gets 25 % of requests: held; {typed('resume')} goes on, "
                "`segserve rollout abort coins` ends it",
            ),
        )
        for reason in sorted(HELD - {Wait.INCIDENT})
    },
    "a revision that was only judged names the command that rolls it out": (
        given_up("JudgedWell"),
        ("False", "Judged", f"{SECOND.revision} gets no requests: what was seen; {typed('promote')} rolls it out"),
    ),
    "a stable revision moves into main": (
        world(model(SECOND, Roles(holder(SECOND))), groups=[group("main"), OWN]),
        ("True", "Settling", f"{SECOND.revision} is moving to main"),
    ),
}

DEGRADED = {
    "an edited golden set that failed is named": (
        on_trial(DIFFERS),
        ("True", "GoldenFailed", f"golden set {'2' * 12}: coins.png: IoU 0.1; {GOES_ON}"),
    ),
    "an edited golden set that is pending is no problem": (on_trial(UNDER_WAY), NO_PROBLEM),
    "nothing is wrong where the stable revision is served": (world(model(FIRST, SERVED), groups=[MAIN]), NO_PROBLEM),
    "nothing is wrong while a candidate is loaded": (with_candidate_said(state=ModelState.LOADING), NO_PROBLEM),
    "nothing is wrong before the first revision was proved": (
        world(model(FIRST, PROVING_FIRST), groups=[group("main", FIRST, state=ModelState.LOADING)]),
        NO_PROBLEM,
    ),
    "nothing is wrong while the gateway is told": (
        world(model(FIRST, SERVED), groups=[MAIN], traffic=NO_WAY),
        NO_PROBLEM,
    ),
    "a spec that cannot be followed is named first": (
        world(model(None, SERVED, problem=FailureReason("PoolNotFound", "there is no pool 'lab'")), groups=[MAIN]),
        ("True", "PoolNotFound", "there is no pool 'lab'"),
    ),
    "a spec that cannot be read comes before what its last revision lacks": (
        replace(given_up("LoadFailed"), models=(model(None, SERVED, problem=FAILURE),)),
        ("True", FAILURE.reason, FAILURE.message),
    ),
    **{
        f"a candidate that has failed for good is named: {reason}": (
            given_up(reason),
            ("True", reason, "what was seen"),
        )
        for reason in ("ClassesChanged", "DigestMismatch", "GoldenFailed", "LoadFailed", "RolledBack")
    },
    "a candidate that is tried again is named": (
        with_candidate_failed("ArtifactMissing"),
        ("True", "ArtifactMissing", "what was seen"),
    ),
    "servers of a candidate that find no node are named": (
        world(model(SECOND, CHANGING), groups=[MAIN, lost(SECOND.revision, SECOND, problem=NO_NODE)]),
        ("True", "Unschedulable", NO_NODE.message),
    ),
    "a server of main that finds no node is named while the others serve, in the pool's words alone": (
        world(model(FIRST, SERVED), groups=[replace(MAIN, wanted=2, problem=NO_NODE)]),
        ("True", "Unschedulable", "group main has a problem, which the pool's conditions describe"),
    ),
    "a trouble of a group whose servers all answer is none of the model's": (
        world(model(FIRST, SERVED), groups=[replace(MAIN, problem=NO_NODE)]),
        NO_PROBLEM,
    ),
    "a stable revision without servers is named": (
        world(model(FIRST, SERVED), groups=[lost("main", FIRST)]),
        ("True", "NoServer", f"no server of group main serves {FIRST.revision}"),
    ),
    "a missing gateway is named": (
        world(model(FIRST, SERVED), groups=[MAIN], traffic=TrafficState(None, answering=False)),
        ("True", "NoGateway", "no gateway accepts requests"),
    ),
    "a return that no server can make is named": (
        RETURNING,
        ("True", "NoServer", f"no server of group main serves {FIRST.revision}, which the spec requires"),
    ),
    "a bad server is named with its node while the others serve": (
        with_bad_server(DIED, report(SECOND), report(SECOND)),
        (
            "True",
            "ServerFailed",
            f"server bad on node gpu-7: LoadFailed: out of memory; 2 of 3 servers serve {SECOND.revision}",
        ),
    ),
    "a bad server is named while the others go on": (
        with_bad_server(DIED, report(SECOND, ModelState.LOADING), report(SECOND, ModelState.LOADING)),
        (
            "True",
            "ServerFailed",
            f"server bad on node gpu-7: LoadFailed: out of memory; 0 of 3 servers serve {SECOND.revision}",
        ),
    ),
    "what too many servers say is the revision's own trouble": (
        with_bad_server(DIED, DIED, report(SECOND, ModelState.LOADING)),
        ("True", "LoadFailed", "out of memory"),
    ),
    "a candidate that is late is named": (
        world(model(SECOND, LATE), groups=[MAIN, group(SECOND.revision, SECOND, state=ModelState.LOADING)]),
        ("True", "ProgressDeadlineExceeded", f"{LATE_TEXT}: Loading"),
    ),
}

SETTLED = ("False", "Idle", "no change is in progress")
NOT_STALLED = ("False", "AsWanted", "nothing is refused or late")
RECONCILING = {
    "what is at rest is not reconciled": (world(model(FIRST, SERVED), groups=[MAIN]), SETTLED),
    "what progresses is reconciled": (
        world(model(SECOND, CHANGING), groups=[MAIN]),
        ("True", "Starting", f"group {SECOND.revision} starts for {SECOND.revision}"),
    ),
    **{
        f"what is stalled is not reconciled: {reason}": (seen, ("False", "Stalled", f"it is stalled: {reason}"))
        for seen, reason in (
            (given_up("GoldenFailed"), "GoldenFailed"),
            (world(model(SECOND, LATE), groups=[MAIN]), "ProgressDeadlineExceeded"),
        )
    },
}

STALLED = {
    "nothing is stalled at rest": (world(model(FIRST, SERVED), groups=[MAIN]), NOT_STALLED),
    "what is in time is not stalled": (world(model(SECOND, CHANGING), groups=[MAIN]), NOT_STALLED),
    "a bad server stalls nothing": (with_bad_server(DIED, report(SECOND), report(SECOND)), NOT_STALLED),
    "a model whose candidate failed is stalled, though it is ready": (
        given_up("GoldenFailed"),
        ("True", "GoldenFailed", "what was seen"),
    ),
    "a spec that cannot be read is stalled": (
        world(model(None, SERVED, problem=FAILURE), groups=[MAIN]),
        ("True", FAILURE.reason, FAILURE.message),
    ),
    "an edited golden set that failed is stalled": (
        on_trial(DIFFERS),
        ("True", "GoldenFailed", f"golden set {'2' * 12}: coins.png: IoU 0.1; {GOES_ON}"),
    ),
    "a candidate whose servers take longer than the deadline is stalled": (
        world(model(SECOND, LATE), groups=[MAIN, group(SECOND.revision, SECOND, state=ModelState.LOADING)]),
        ("True", "ProgressDeadlineExceeded", f"{LATE_TEXT}: Loading"),
    ),
    "why a candidate is late is told in one word": (
        world(model(SECOND, LATE), groups=[MAIN, lost(SECOND.revision, problem=NO_NODE)]),
        ("True", "ProgressDeadlineExceeded", f"{LATE_TEXT}: Unschedulable"),
    ),
    "a rollout whose servers do not come is stalled like any candidate": (
        world(model(SECOND, LATE, rollout=state(SECOND, Phase.PENDING)), groups=[MAIN]),
        ("True", "ProgressDeadlineExceeded", f"{SECOND.revision}: group {SECOND.revision} has not started within 10m"),
    ),
    **{
        f"a rollout that goes on has its own deadline: {phase.label}": (
            world(model(SECOND, LATE, rollout=state(SECOND, phase)), groups=[MAIN, OWN]),
            NOT_STALLED,
        )
        for phase in ON_ITS_WAY
        if phase is not Phase.BAKING
    },
    "a candidate that gave its servers up stays stalled while it waits": (
        world(model(SECOND, STALLED_BEFORE), groups=[MAIN]),
        ("True", GAVE_UP.reason, GAVE_UP.message),
    ),
    **{
        f"a rollout that waits for a person after {reason} is stalled": (
            world(model(SECOND, CHANGING, rollout=state(SECOND, Phase.GOLDEN, reason=reason, message="because"))),
            ("True", reason, "because"),
        )
        for reason in ("DeadlinePassed", "QuarantinedTooOften")
    },
}

TABLES: dict[str, dict[str, tuple[Observed, tuple[str, str, str]]]] = {
    "ArtifactVerified": ARTIFACT_VERIFIED,
    "RevisionLoaded": REVISION_LOADED,
    "GoldenPassed": GOLDEN_PASSED,
    "TrafficReady": TRAFFIC_READY,
    "Ready": READY,
    "Progressing": PROGRESSING,
    "Degraded": DEGRADED,
    "Reconciling": RECONCILING,
    "Stalled": STALLED,
}


@cases(
    ("kind", "seen", "expected"),
    {f"{kind}: {name}": (kind, *row) for kind, table in TABLES.items() for name, row in table.items()},
)
def test_a_condition_says_what_is(kind: str, seen: Observed, expected: tuple[str, str, str]) -> None:
    conditions = status(seen).conditions
    said = {each.type: (each.status, each.reason, each.message) for each in conditions}

    assert said[kind] == expected
    assert [each.type for each in conditions] == list(TABLES)
    assert all(each.reason.isalnum() and each.reason[0].isupper() for each in conditions)


def test_every_reason_that_conditions_name_has_a_row() -> None:
    calls = [node for node in ast.walk(ast.parse(inspect.getsource(conditions))) if isinstance(node, ast.Call)]
    named = {
        (kind.value, reason.value)
        for kind, _, reason, *_ in (
            call.args for call in calls if ast.unparse(call.func) == "ObservedCondition" and len(call.args) > 2
        )
        if isinstance(kind, ast.Constant) and isinstance(reason, ast.Constant)
    }
    told = {(kind, reason) for kind, table in TABLES.items() for _, (_, reason, _) in table.values()}

    assert ("Degraded", "AsWanted") in named
    assert named <= told


@cases(
    ("roles", "rollout", "expected"),
    {
        "a model without a revision gives it no requests": (Roles(), None, 0),
        "a first revision gets no requests before it is proved": (PROVING_FIRST, None, 0),
        "a stable revision is the newest one and gets all requests": (SERVED, None, 100),
        "a candidate without a rollout gets no requests": (CHANGING, None, 0),
        "a candidate gets what its rollout says": (CHANGING, state(SECOND, Phase.PROGRESSING), 25),
        "a candidate in quarantine gets no requests": (CHANGING, state(SECOND, Phase.QUARANTINED), 0),
        "another revision's rollout gives it nothing": (CHANGING, state(THIRD, Phase.PROGRESSING), 0),
        "a promoted revision gets what its bake leaves it": (CHANGED, state(SECOND, Phase.BAKING), 95),
        "a revision that succeeded gets all requests": (CHANGED, state(SECOND, Phase.SUCCEEDED), 100),
        "a revision that succeeded and was left later gets no requests": (
            replace(SERVED, candidate=candidate(SECOND, failure=FAILURE)),
            state(SECOND, Phase.SUCCEEDED),
            0,
        ),
        "a revision that once succeeded and is proved anew gets no requests": (
            CHANGING,
            state(SECOND, Phase.SUCCEEDED),
            0,
        ),
        "a revision that was rolled back gets no requests": (
            replace(SERVED, candidate=candidate(SECOND, failure=FAILURE)),
            state(SECOND, Phase.ROLLED_BACK),
            0,
        ),
    },
)
def test_the_weight_is_the_newest_revisions(roles: Roles, rollout: RolloutState | None, expected: int) -> None:
    assert status(world(model(SECOND, roles, rollout=rollout), groups=[MAIN, OWN])).weight == expected


@cases(
    ("coins", "url"),
    {
        "a stable revision has an address": (model(FIRST, SERVED), "http://gateway/v2/models/coins"),
        "a model that was never proved has no address": (model(FIRST, PROVING_FIRST), ""),
    },
)
def test_a_model_has_an_address_once_it_has_a_stable_revision(coins: ModelObserved, url: str) -> None:
    assert status(world(coins, groups=[MAIN])).url == url


GOOD_MINUTE = SloWatch("main", minutes=(Minute(int(NOW_S // 60), 100, {}),))


@cases(
    ("slo", "watch", "expected"),
    {
        "a model that keeps its SLO says so": (Slo(), GOOD_MINUTE, "Met"),
        "a model that nobody asked anything keeps its SLO unknown": (Slo(), SloWatch(), "Unknown"),
        "a model whose requests are not counted says nothing": (Slo(), None, ""),
        "a model without an SLO says nothing": (None, GOOD_MINUTE, ""),
    },
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


@cases(
    ("seen", "expected"),
    {
        "a spec that serves is observed": (world(model(FIRST, SERVED), groups=[MAIN]), 7),
        "a spec that does not serve yet lags": (world(model(SECOND, CHANGING), groups=[MAIN]), 4),
        "a return that no server can make yet lags": (RETURNING, 4),
        "a spec that was refused is observed": (given_up("GoldenFailed"), 7),
        "a spec that is late is observed": (world(model(SECOND, LATE), groups=[MAIN]), 7),
        "a spec that cannot be read is observed": (world(model(None, SERVED, problem=FAILURE)), 7),
        "a revision whose golden set is tried serves as before": (on_trial(UNDER_WAY), 7),
    },
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
    (route,) = desired.traffic.routes
    assert [share.device for share in route.shares] == [",".join(devices) or None]


def test_the_gateway_has_the_time_in_which_the_slowest_server_of_stable_starts() -> None:
    reports = [report(FIRST, load_s=load_s) for load_s in (3.2, 7.1)]
    main = replace(group("main", FIRST), servers=tuple(server(f"{n}", told) for n, told in enumerate(reports)))

    (route,) = desired_state(world(model(FIRST, SERVED), groups=[main], records=[FIRST])).traffic.routes

    assert [share.restart_s for share in route.shares] == [2 + 8]


def test_the_gateway_keeps_that_time_once_the_servers_have_ended() -> None:
    main = replace(group("main", FIRST), servers=(server("1", report(FIRST, load_s=7.1)),))
    serving = world(model(FIRST, SERVED), groups=[main], records=[FIRST])
    plan = desired_state(serving).traffic
    ended = replace(main, servers=(server("1", ready=False),))

    (route,) = desired_state(replace(serving, groups={"main": ended}, traffic=TrafficState(plan))).traffic.routes

    assert [share.endpoints for share in route.shares] == [()]
    assert [share.restart_s for share in route.shares] == [10]
