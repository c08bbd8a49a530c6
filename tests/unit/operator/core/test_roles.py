"""How a model's roles move: each row is a world, and the roles that follow from one pass over it."""

from __future__ import annotations

import math
from dataclasses import replace

from fakes.cases import cases
from fakes.observed_models import (
    CELLS,
    FAILURE,
    FIRST,
    NOW_S,
    SECOND,
    THIRD,
    candidate,
    decided,
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
from fakes.platform import assigned
from segserve_builder.agent.protocol import AssignedModel, GoldenTrial, ModelState, ProofReport, TrialReport
from segserve_builder.spec.model_spec import Artifact, Golden
from segserve_operator.api.rollout_policy import RolloutPolicy, Slo
from segserve_operator.core.failure import FailureReason
from segserve_operator.core.models.pool import MAX_CANDIDATE_GROUPS, slots
from segserve_operator.core.models.roles import (
    CLASSES_CHANGED,
    assigned_model,
    next_due_s,
    next_roles,
    record_of,
    settling,
)
from segserve_operator.core.rollout.phases import Phase
from segserve_operator.core.traffic import TrafficState
from segserve_operator.core.world.observed import (
    GroupObserved,
    ModelObserved,
    Observed,
    PoolObserved,
    Roles,
    ServerUpdate,
)

POLICY = RolloutPolicy(gates=())
AT_ONCE = RolloutPolicy(strategy="immediate", gates=())
OTHER_MAIN = holder(CELLS, "main")
CELLS_SERVED = model(CELLS, Roles(OTHER_MAIN))
MAIN = group("main", FIRST)
OWN = group(SECOND.revision, SECOND)
SERVED = Roles(holder(FIRST, "main"))
CHANGING = Roles(holder(FIRST, "main"), candidate(SECOND))
CHANGED = Roles(holder(SECOND), previous=holder(FIRST, "main"))
GIVEN_UP = Roles(holder(FIRST, "main"), candidate(SECOND, failure=FAILURE))
QUEUED = Roles(holder(FIRST, "main"), candidate(SECOND, None))
THIRD_PROMOTED = Roles(holder(THIRD), previous=holder(SECOND))
RENAMED = assigned("coins", "2", classes=("background", "medal"))
RENUMBERED = assigned("coins", "2", classes=("coin", "background"))
FEWER = assigned("coins", "2", classes=("background",))
REFUSED = Roles(holder(FIRST, "main"), candidate(FEWER, failure=FailureReason(CLASSES_CHANGED, "refused before")))
ABORTED = FailureReason("Aborted", "a person aborted it")
LEFT = FailureReason("RolledBack", "a person returned to the former revision")
OTHERS = tuple(assigned(f"other-{number}", "2") for number in range(MAX_CANDIDATE_GROUPS))
MEANT = "callers of the stable revision rely on these classes; set spec.allowClassChanges: true to allow the change"


def moved_artifact(told: AssignedModel, uri: str = "file:///elsewhere.onnx") -> AssignedModel:
    """Return the same revision, whose file lies elsewhere."""
    return told.model_copy(update={"artifact": Artifact(uri=uri, sha256=told.artifact.sha256)})


def with_golden(told: AssignedModel, digit: str) -> AssignedModel:
    """Return the same revision, proved by another golden set."""
    return told.model_copy(update={"golden": Golden(uri="file:///golden", sha256=digit * 64)})


def of_template(name: str, *, shared: bool = False) -> PoolObserved:
    return PoolObserved("default", template=name, shared=shared)


def failed_on(template: str) -> Roles:
    """Return the roles of a model whose second revision failed on servers of a template."""
    given_up = candidate(SECOND, failure=FailureReason("Bad", "it failed"))
    return replace(SERVED, candidate=replace(given_up, template=template))


def roles_after(seen: Observed) -> Roles:
    """Return the roles of coins after one pass."""
    coins = next(each for each in seen.models if each.name == "coins")
    return decided(next_roles(coins, seen, slots(seen)))[0]


def others(count: int) -> list[ModelObserved]:
    """Return so many other models, whose candidates have a group of their own each."""
    names = [f"other-{number}" for number in range(count)]
    return [model(assigned(name, "2"), Roles(candidate=candidate(assigned(name, "2")))) for name in names]


def asks(verb: str) -> dict[str, str]:
    """Return the annotation by which a person asks something of the second revision."""
    return {f"segserve.dev/{verb}": SECOND.revision}


def under_way(seen: Observed, group_name: str) -> TrafficState:
    """Return the traffic of a world, with one request of coins that a group still answers."""
    return replace(seen.traffic, active={("coins", group_name): 1})


def with_roles(seen: Observed, roles: Roles) -> Observed:
    """Return the world after the roles of coins were written down, and nothing else."""
    models = [
        replace(each, status=replace(each.status, roles=roles)) if each.name == "coins" else each
        for each in seen.models
    ]
    return replace(seen, models=tuple(models))


FOLLOWS_THE_SPEC = {
    "the first revision is proved in main where main serves nobody": (
        world(model(FIRST)),
        Roles(candidate=candidate(FIRST, "main", since_s=NOW_S)),
    ),
    "the first revision is proved in a group of its own where main serves another model": (
        world(model(FIRST), CELLS_SERVED),
        Roles(candidate=candidate(FIRST, since_s=NOW_S)),
    ),
    "main is not free while another model's stable revision is still on its way into it": (
        world(model(FIRST), model(CELLS, Roles(holder(CELLS)))),
        Roles(candidate=candidate(FIRST, since_s=NOW_S)),
    ),
    "an edit makes a candidate with a group of its own": (
        world(model(SECOND, SERVED), groups=[MAIN]),
        replace(SERVED, candidate=candidate(SECOND, since_s=NOW_S)),
    ),
    "nothing changes where the stable revision is the one that the spec asks for": (
        world(model(FIRST, SERVED), groups=[MAIN]),
        SERVED,
    ),
    "a candidate is dropped where the spec asks for the stable revision again": (
        world(model(FIRST, CHANGING), groups=[MAIN]),
        SERVED,
    ),
    "another edit replaces a candidate on its way": (
        world(model(THIRD, CHANGING), groups=[MAIN]),
        replace(SERVED, candidate=candidate(THIRD, since_s=NOW_S)),
    ),
    "a spec that cannot be read changes no role": (
        world(model(None, CHANGING, problem=FAILURE), groups=[MAIN]),
        CHANGING,
    ),
    "a spec that cannot be read lets the former revision be kept for longer": (
        world(model(None, CHANGED, problem=FAILURE), groups=[MAIN, OWN], now_s=NOW_S + 7200),
        CHANGED,
    ),
    "a model that is being deleted has no roles": (
        world(model(SECOND, CHANGING, deleting=True), groups=[MAIN]),
        Roles(),
    ),
    "a model without a pool has no roles": (world(model(FIRST, SERVED), groups=[MAIN], pool=None), Roles()),
    "the former revision is stable again at once while all its servers answer": (
        world(model(FIRST, CHANGED), groups=[MAIN, OWN]),
        Roles(holder(FIRST, "main", since_s=NOW_S), previous=holder(SECOND, since_s=NOW_S)),
    ),
    "a return to the former revision drops the candidate": (
        world(model(FIRST, replace(CHANGED, candidate=candidate(THIRD))), groups=[MAIN, OWN]),
        Roles(holder(FIRST, "main", since_s=NOW_S), previous=holder(SECOND, since_s=NOW_S)),
    ),
}

TURNS = {
    "a candidate waits while as many as may be proved at once hold groups of their own": (
        world(model(SECOND, SERVED), *others(MAX_CANDIDATE_GROUPS), groups=[MAIN]),
        replace(SERVED, candidate=candidate(SECOND, None, since_s=NOW_S)),
    ),
    "a candidate that waits keeps its place in the queue": (
        world(model(SECOND, QUEUED), *others(MAX_CANDIDATE_GROUPS)),
        QUEUED,
    ),
    "a candidate that waited gets its group once there is room": (
        world(model(SECOND, QUEUED), *others(MAX_CANDIDATE_GROUPS - 1)),
        replace(SERVED, candidate=candidate(SECOND, since_s=NOW_S)),
    ),
    "a candidate in its rollout gets servers again although the spec cannot be read now": (
        world(model(None, QUEUED, rollout=state(SECOND, Phase.QUARANTINED), problem=FAILURE), groups=[MAIN]),
        replace(SERVED, candidate=candidate(SECOND, since_s=NOW_S)),
    ),
    "a candidate without a rollout begins none while the spec cannot be read": (
        world(model(None, QUEUED, problem=FAILURE), groups=[MAIN]),
        QUEUED,
    ),
    "a candidate whose rollout has ended gets no servers while the spec cannot be read": (
        world(
            model(None, GIVEN_UP, rollout=state(SECOND, Phase.ROLLED_BACK), problem=FAILURE, annotations=asks("pause")),
            groups=[MAIN],
        ),
        GIVEN_UP,
    ),
    "with shared isolation a candidate is proved in the group that all candidates share": (
        world(model(SECOND, SERVED), groups=[MAIN], pool=PoolObserved("default", shared=True)),
        replace(SERVED, candidate=candidate(SECOND, "canary", since_s=NOW_S)),
    ),
    "with shared isolation nobody waits for a turn": (
        world(
            model(SECOND, SERVED),
            *others(MAX_CANDIDATE_GROUPS),
            groups=[MAIN],
            pool=PoolObserved("default", shared=True),
        ),
        replace(SERVED, candidate=candidate(SECOND, "canary", since_s=NOW_S)),
    ),
    "with shared isolation a candidate gets its own group where the shared one holds the model's stable": (
        world(
            model(THIRD, Roles(holder(SECOND, "canary"), previous=holder(FIRST, "main"))),
            groups=[MAIN, group("canary", SECOND)],
            pool=PoolObserved("default", shared=True),
        ),
        Roles(holder(SECOND, "canary"), candidate(THIRD, since_s=NOW_S), holder(FIRST, "main")),
    ),
}

FAILURES = {
    "a candidate that fails for good gives its group back": (
        world(model(SECOND, CHANGING), groups=[MAIN, group(SECOND.revision, SECOND, reports=[failed(SECOND, "Bad")])]),
        replace(SERVED, candidate=candidate(SECOND, None, failure=FailureReason("Bad", "it failed"))),
    ),
    "a candidate whose failure may pass keeps its group": (
        world(
            model(SECOND, CHANGING),
            groups=[MAIN, group(SECOND.revision, SECOND, reports=[failed(SECOND, "ArtifactMissing", retryable=True)])],
        ),
        CHANGING,
    ),
    "a candidate that is still loaded goes on": (
        world(model(SECOND, CHANGING), groups=[MAIN, group(SECOND.revision, SECOND, state=ModelState.LOADING)]),
        CHANGING,
    ),
    "a candidate whose group is not there yet goes on": (world(model(SECOND, CHANGING), groups=[MAIN]), CHANGING),
    "a candidate that has failed is not tried again by itself": (world(model(SECOND, GIVEN_UP)), GIVEN_UP),
    "a candidate that has failed is tried again where its artifact lies elsewhere now": (
        world(model(moved_artifact(SECOND), GIVEN_UP), records=[FIRST, SECOND]),
        replace(SERVED, candidate=candidate(SECOND, since_s=NOW_S)),
    ),
    "a candidate that has failed is tried again where its golden set was corrected": (
        world(model(with_golden(SECOND, "2"), GIVEN_UP), records=[FIRST, with_golden(SECOND, "1")]),
        replace(SERVED, candidate=candidate(SECOND, since_s=NOW_S)),
    ),
    "a candidate that has failed is not tried again while the spec cannot be read": (
        world(model(None, GIVEN_UP, problem=FAILURE)),
        GIVEN_UP,
    ),
    "the template of the servers that cannot serve a candidate is kept": (
        world(
            model(SECOND, replace(SERVED, candidate=candidate(SECOND, f"{SECOND.revision}-old"))),
            groups=[MAIN, group(f"{SECOND.revision}-old", SECOND, reports=[failed(SECOND, "Bad")])],
            pool=of_template("old"),
        ),
        failed_on("old"),
    ),
    "while servers of two templates are one group, what those of the former say is not held against it": (
        world(
            model(FIRST, Roles(candidate=candidate(FIRST, "main-new"))),
            groups=[group("main-new", FIRST, reports=[failed(FIRST, "Bad")])],
            pool=replace(of_template("new"), update=ServerUpdate(counts={"main-old": 0, "main-new": 1})),
        ),
        Roles(candidate=candidate(FIRST, "main-new")),
    ),
    "a candidate that has failed on servers of one template is tried again on those of another": (
        world(model(SECOND, failed_on("old")), groups=[MAIN], pool=of_template("new")),
        replace(SERVED, candidate=candidate(SECOND, f"{SECOND.revision}-new", since_s=NOW_S)),
    ),
    "a candidate that has failed is not tried again on servers of the same template": (
        world(model(SECOND, failed_on("new")), groups=[MAIN], pool=of_template("new")),
        failed_on("new"),
    ),
    "a candidate that has failed is tried again where a person asks for it": (
        world(model(SECOND, GIVEN_UP, annotations={"segserve.dev/retry": SECOND.revision})),
        replace(SERVED, candidate=candidate(SECOND, since_s=NOW_S)),
    ),
}

CLASSES = {
    "a revision that gives a class's number to another class is refused": (
        world(model(RENAMED, SERVED), groups=[MAIN]),
        f"class 'coin' is dropped; its id 1 now means 'medal': {MEANT}",
    ),
    "a revision that gives classes other numbers is refused": (
        world(model(RENUMBERED, SERVED), groups=[MAIN]),
        f"class 'background' is renumbered from 0 to 1; class 'coin' is renumbered from 1 to 0: {MEANT}",
    ),
    "a revision that drops a class is refused": (
        world(model(FEWER, SERVED), groups=[MAIN]),
        f"class 'coin' (id 1) is dropped: {MEANT}",
    ),
    "a revision that drops a class is proved where that is meant": (
        world(model(FEWER, SERVED, allow_class_changes=True), groups=[MAIN]),
        None,
    ),
    "a refused revision stays refused": (world(model(FEWER, REFUSED), records=[FIRST, FEWER]), "refused before"),
    "a refused revision is proved once the change of classes is meant": (
        world(model(FEWER, REFUSED, allow_class_changes=True), records=[FIRST, FEWER]),
        None,
    ),
    "a revision is not refused where nothing is written down of the stable one's classes": (
        world(model(FEWER, SERVED), records=[], groups=[MAIN]),
        None,
    ),
}

PROMOTIONS = {
    "the first revision is stable as soon as it is proved": (
        world(model(FIRST, Roles(candidate=candidate(FIRST, "main"))), groups=[MAIN]),
        Roles(holder(FIRST, "main", since_s=NOW_S)),
    ),
    "the first revision needs no rollout, policy or not": (
        world(model(FIRST, Roles(candidate=candidate(FIRST, "main")), policy=POLICY), groups=[MAIN]),
        Roles(holder(FIRST, "main", since_s=NOW_S)),
    ),
    "a proved candidate that the gateway knows is promoted where there is no policy": (
        world(model(SECOND, CHANGING), groups=[MAIN, OWN]),
        Roles(holder(SECOND, since_s=NOW_S), previous=holder(FIRST, "main", since_s=NOW_S)),
    ),
    "of two former revisions the later one is kept": (
        world(
            model(THIRD, replace(CHANGED, candidate=candidate(THIRD))), groups=[MAIN, OWN, group(THIRD.revision, THIRD)]
        ),
        Roles(holder(THIRD, since_s=NOW_S), previous=holder(SECOND, since_s=NOW_S)),
    ),
    "a proved candidate waits until the gateway knows its group": (
        world(model(SECOND, CHANGING), groups=[MAIN, OWN], traffic=world(model(FIRST, SERVED), groups=[MAIN]).traffic),
        CHANGING,
    ),
    "a proved candidate waits until the gateway knows its servers": (
        world(
            model(SECOND, CHANGING),
            groups=[MAIN, OWN],
            traffic=world(
                model(SECOND, CHANGING), groups=[MAIN, lost(SECOND.revision)], weights={"main": 99, SECOND.revision: 1}
            ).traffic,
        ),
        CHANGING,
    ),
    "a proved candidate waits until every gateway knows it": (
        world(
            model(SECOND, CHANGING),
            groups=[MAIN, OWN],
            traffic=replace(world(model(SECOND, CHANGING), groups=[MAIN, OWN]).traffic, pending=frozenset({"coins"})),
        ),
        CHANGING,
    ),
    "a proved candidate waits while the gateway takes its group for another revision's": (
        world(
            model(SECOND, Roles(holder(FIRST, "main"), candidate(SECOND, "canary"))),
            groups=[MAIN, group("canary", SECOND)],
            traffic=world(
                model(THIRD, Roles(holder(FIRST, "main"), candidate(THIRD, "canary"))),
                groups=[MAIN, group("canary", THIRD)],
            ).traffic,
        ),
        Roles(holder(FIRST, "main"), candidate(SECOND, "canary")),
    ),
    "a candidate that one of two servers has proved is not promoted yet": (
        world(model(SECOND, CHANGING), groups=[MAIN, group(SECOND.revision, SECOND, wanted=2, servers=1)]),
        CHANGING,
    ),
    "a proved candidate with a policy waits for its rollout": (
        world(model(SECOND, CHANGING, policy=POLICY), groups=[MAIN, OWN]),
        CHANGING,
    ),
    "a rollout under way decides also where its policy was removed": (
        world(model(SECOND, CHANGING, rollout=state(SECOND, Phase.PROGRESSING)), groups=[MAIN, OWN]),
        CHANGING,
    ),
    "a rollout of another revision does not hold a candidate up": (
        world(model(SECOND, CHANGING, rollout=state(THIRD, Phase.PROGRESSING)), groups=[MAIN, OWN]),
        Roles(holder(SECOND, since_s=NOW_S), previous=holder(FIRST, "main", since_s=NOW_S)),
    ),
}

ROLLOUTS = {
    "a rollout that has done its last step makes its candidate stable": (
        world(model(SECOND, CHANGING, policy=AT_ONCE, rollout=state(SECOND, Phase.PROGRESSING)), groups=[MAIN, OWN]),
        Roles(holder(SECOND, since_s=NOW_S), previous=holder(FIRST, "main", since_s=NOW_S)),
    ),
    "a candidate that a person promotes is stable": (
        world(
            model(
                SECOND, CHANGING, policy=POLICY, rollout=state(SECOND, Phase.PROGRESSING), annotations=asks("promote")
            ),
            groups=[MAIN, OWN],
        ),
        Roles(holder(SECOND, since_s=NOW_S), previous=holder(FIRST, "main", since_s=NOW_S)),
    ),
    "a rollout that a person aborts fails its candidate and takes its group": (
        world(
            model(SECOND, CHANGING, policy=POLICY, rollout=state(SECOND, Phase.PROGRESSING), annotations=asks("abort")),
            groups=[MAIN, OWN],
        ),
        replace(SERVED, candidate=candidate(SECOND, failure=ABORTED)),
    ),
    "a candidate that cannot be loaded fails with its server's words, rollout or not": (
        world(
            model(SECOND, CHANGING, policy=POLICY, rollout=state(SECOND, Phase.PENDING)),
            groups=[MAIN, group(SECOND.revision, SECOND, reports=[failed(SECOND, "Bad")])],
        ),
        replace(SERVED, candidate=candidate(SECOND, None, failure=FailureReason("Bad", "it failed"))),
    ),
    "a candidate whose server is lost keeps the stable serving": (
        world(
            model(SECOND, CHANGING, policy=POLICY, rollout=state(SECOND, Phase.PROGRESSING)),
            groups=[MAIN, lost(SECOND.revision, SECOND)],
            weights={"main": 75, SECOND.revision: 25},
        ),
        CHANGING,
    ),
    "a bake that a person aborts returns to the former revision": (
        world(
            model(SECOND, CHANGED, policy=POLICY, rollout=state(SECOND, Phase.BAKING), annotations=asks("abort")),
            groups=[MAIN, OWN],
        ),
        Roles(holder(FIRST, "main", since_s=NOW_S), candidate(SECOND, since_s=NOW_S, failure=ABORTED)),
    ),
    "a promoted revision whose servers are away while it is watched keeps its role": (
        world(
            model(SECOND, CHANGED, policy=POLICY, rollout=state(SECOND, Phase.BAKING)),
            groups=[MAIN, lost(SECOND.revision, SECOND)],
        ),
        CHANGED,
    ),
    "a revision stays stable where no former one is left to return to": (
        world(
            model(
                SECOND,
                Roles(holder(SECOND)),
                policy=POLICY,
                rollout=state(SECOND, Phase.BAKING),
                annotations=asks("abort"),
            ),
            groups=[OWN],
        ),
        Roles(holder(SECOND)),
    ),
    "a stable revision that a person leaves has failed and the former one is stable": (
        world(model(SECOND, CHANGED, annotations=asks("rollback")), groups=[MAIN, OWN]),
        Roles(holder(FIRST, "main", since_s=NOW_S), candidate(SECOND, since_s=NOW_S, failure=LEFT)),
    ),
    "a rollout that begins changes no role": (
        world(model(SECOND, replace(SERVED, candidate=candidate(SECOND)), policy=POLICY), groups=[MAIN]),
        CHANGING,
    ),
    "a revision that once succeeded is proved anew before it is stable again": (
        world(model(SECOND, CHANGING, rollout=state(SECOND, Phase.SUCCEEDED)), groups=[MAIN]),
        CHANGING,
    ),
    "a revision that was once rolled back is proved anew where the spec asks for it anew": (
        world(model(SECOND, CHANGING, rollout=state(SECOND, Phase.ROLLED_BACK)), groups=[MAIN]),
        CHANGING,
    ),
    "a revision that is tried again after a rollback may wait for its turn": (
        world(
            model(SECOND, QUEUED, policy=POLICY, rollout=state(SECOND, Phase.ROLLED_BACK)),
            *others(MAX_CANDIDATE_GROUPS),
        ),
        QUEUED,
    ),
    "a revision that was rolled back is not tried again by itself": (
        world(model(SECOND, GIVEN_UP, policy=POLICY, rollout=state(SECOND, Phase.ROLLED_BACK))),
        GIVEN_UP,
    ),
}

IN_TIME = {
    "the former revision is kept for as long as the spec says": (
        world(model(SECOND, CHANGED), groups=[MAIN, OWN], weights={SECOND.revision: 100}),
        CHANGED,
    ),
    "the former revision is let go when its time is over": (
        world(model(SECOND, CHANGED, keep_previous_s=60), groups=[MAIN, OWN], weights={SECOND.revision: 100}),
        Roles(holder(SECOND)),
    ),
    "the former revision is kept while it gets requests": (
        world(model(SECOND, CHANGED, keep_previous_s=60), groups=[MAIN, OWN], weights={SECOND.revision: 95, "main": 5}),
        CHANGED,
    ),
    "the former revision is kept while it still answers requests": (
        world(
            model(SECOND, CHANGED, keep_previous_s=60),
            groups=[MAIN, OWN],
            traffic=under_way(
                world(model(SECOND, CHANGED), groups=[MAIN, OWN], weights={SECOND.revision: 100}), "main"
            ),
        ),
        CHANGED,
    ),
    "the former revision is kept while the new one is watched": (
        world(
            model(SECOND, CHANGED, keep_previous_s=60, policy=POLICY, rollout=state(SECOND, Phase.BAKING, paused=True)),
            groups=[MAIN, OWN],
            weights={SECOND.revision: 100},
        ),
        CHANGED,
    ),
    "the former revision is let go after the rollout": (
        world(
            model(SECOND, CHANGED, keep_previous_s=60, policy=POLICY, rollout=state(SECOND, Phase.SUCCEEDED)),
            groups=[MAIN, OWN],
            weights={SECOND.revision: 100},
        ),
        Roles(holder(SECOND)),
    ),
    "a stable revision is in main once main has proved it": (
        world(model(SECOND, Roles(holder(SECOND))), groups=[group("main", SECOND), OWN]),
        Roles(holder(SECOND, "main")),
    ),
    "a stable revision stays in its group until main has proved it": (
        world(model(SECOND, Roles(holder(SECOND))), groups=[group("main", SECOND, state=ModelState.PROVING), OWN]),
        Roles(holder(SECOND)),
    ),
    "a stable revision stays in its group while the former one is in main": (
        world(model(SECOND, CHANGED), groups=[group("main", SECOND), OWN]),
        CHANGED,
    ),
    "a stable revision moves into the main group of the pool's new template": (
        world(model(FIRST, SERVED), groups=[MAIN, group("main-new", FIRST)], pool=of_template("new")),
        Roles(holder(FIRST, "main-new")),
    ),
}

TEMPLATES = {
    "a candidate whose servers do not come up leaves a group of the former template and waits for its turn": (
        world(
            model(SECOND, Roles(holder(FIRST, "main-old"), candidate(SECOND, "coins-old"))),
            groups=[group("main-old", FIRST), group("coins-old", SECOND, state=ModelState.LOADING)],
            pool=of_template("new"),
        ),
        Roles(holder(FIRST, "main-old"), candidate(SECOND, None)),
    ),
    "a first revision that main has not proved goes into the main group of the new template": (
        world(
            model(FIRST, Roles(candidate=candidate(FIRST, "main-old"))),
            groups=[group("main-old", FIRST, state=ModelState.LOADING)],
            pool=of_template("new"),
        ),
        Roles(candidate=candidate(FIRST, "main-new", since_s=NOW_S)),
    ),
    "with shared isolation a candidate goes into the shared group of the new template": (
        world(
            model(SECOND, Roles(holder(FIRST, "main-old"), candidate(SECOND, "canary-old"))),
            groups=[group("main-old", FIRST), group("canary-old", SECOND, state=ModelState.LOADING)],
            pool=of_template("new", shared=True),
        ),
        Roles(holder(FIRST, "main-old"), candidate(SECOND, "canary-new", since_s=NOW_S)),
    ),
    "a proved candidate stays in its group whatever the template": (
        world(
            model(SECOND, Roles(holder(FIRST, "main-old"), candidate(SECOND, "coins-old")), policy=POLICY),
            groups=[group("main-old", FIRST), group("coins-old", SECOND)],
            pool=of_template("new"),
        ),
        Roles(holder(FIRST, "main-old"), candidate(SECOND, "coins-old")),
    ),
    "a candidate stays in a group of the present template": (
        world(
            model(SECOND, Roles(holder(FIRST, "main-new"), candidate(SECOND, "coins-new"))),
            groups=[group("main-new", FIRST)],
            pool=of_template("new"),
        ),
        Roles(holder(FIRST, "main-new"), candidate(SECOND, "coins-new")),
    ),
    "a new candidate's group bears the name of the template": (
        world(model(SECOND, SERVED), groups=[MAIN], pool=of_template("new")),
        replace(SERVED, candidate=candidate(SECOND, f"{SECOND.revision}-new", since_s=NOW_S)),
    ),
}


@cases(("seen", "expected"), FOLLOWS_THE_SPEC | TURNS | FAILURES | PROMOTIONS | ROLLOUTS | IN_TIME | TEMPLATES)
def test_after_one_pass(seen: Observed, expected: Roles) -> None:
    assert roles_after(seen) == expected


@cases(("seen", "refusal"), CLASSES)
def test_classes_that_callers_know_stay_unless_it_is_meant(seen: Observed, refusal: str | None) -> None:
    found = roles_after(seen).candidate

    assert found.failure == (FailureReason(CLASSES_CHANGED, refusal) if refusal is not None else None)
    assert found.group == (None if refusal is not None else found.revision)


HOLDING = FOLLOWS_THE_SPEC | TURNS | FAILURES | PROMOTIONS | IN_TIME | TEMPLATES


@cases("seen", {sentence: seen for sentence, (seen, _) in HOLDING.items()})
def test_roles_that_were_decided_hold_while_the_world_stays(seen: Observed) -> None:
    """A pass over the same world must not take back what the pass before it wrote down."""
    once = with_roles(seen, roles_after(seen))
    twice = with_roles(once, roles_after(once))

    assert roles_after(twice) == roles_after(once)


@cases(
    ("roles", "expected"),
    {
        "nothing settles where nothing is stable": (Roles(), False),
        "what is in main has settled": (SERVED, False),
        "what is elsewhere has started": (Roles(holder(SECOND)), True),
        "what is elsewhere waits while the former revision is in main": (CHANGED, False),
        "what is elsewhere is on its way where the former revision is elsewhere too": (THIRD_PROMOTED, True),
    },
)
def test_a_stable_revision_settles_into_main(roles: Roles, expected: bool) -> None:
    assert settling(roles, "main") is expected


@cases(
    ("models", "expected"),
    {
        "who asks for a new revision has a turn": ([model(SECOND, SERVED)], {"coins"}),
        "who waits has a turn when there is room": ([model(SECOND, QUEUED)], {"coins"}),
        "who asks for a third revision has a turn": ([model(THIRD, CHANGING)], {"coins"}),
        "who has a group needs no turn": ([model(SECOND, CHANGING)], set()),
        "who asks for the stable revision needs no turn": ([model(FIRST, SERVED)], set()),
        "who asks for the former revision needs no turn": ([model(FIRST, CHANGED)], set()),
        "who is being deleted has no turn": ([model(SECOND, SERVED, deleting=True)], set()),
        "whose spec cannot be read has no turn": ([model(None, SERVED)], set()),
        "whose spec cannot be read begins no rollout": ([model(None, QUEUED)], set()),
        "whose rollout lost its servers has a turn although the spec cannot be read now": (
            [model(None, QUEUED, rollout=state(SECOND, Phase.QUARANTINED))],
            {"coins"},
        ),
        "whose rollout lost its servers has no turn while it is being deleted": (
            [model(None, QUEUED, rollout=state(SECOND, Phase.QUARANTINED), deleting=True)],
            set(),
        ),
        "who has waited longest comes first": (
            [model(CELLS), model(FIRST, Roles(candidate=candidate(FIRST, None))), *others(MAX_CANDIDATE_GROUPS - 1)],
            {"coins"},
        ),
        "of equals the first name comes first": (
            [model(FIRST), model(CELLS), *others(MAX_CANDIDATE_GROUPS - 1)],
            {"cells"},
        ),
        "nobody has a turn while there is no room": ([model(SECOND, SERVED), *others(MAX_CANDIDATE_GROUPS)], set()),
        "nobody has a turn while there are too many": (
            [model(SECOND, SERVED), *others(MAX_CANDIDATE_GROUPS + 1)],
            set(),
        ),
        "a stable revision that is not in main yet takes up room": (
            [model(SECOND, SERVED)] + [model(told, Roles(holder(told))) for told in OTHERS],
            set(),
        ),
        "a stable revision that stays outside main for the sake of the former one takes up no room": (
            [model(SECOND, SERVED)]
            + [model(told, Roles(holder(told), previous=holder(FIRST, "main"))) for told in OTHERS],
            {"coins"},
        ),
        "candidates that have failed keep nobody out": (
            [model(SECOND, SERVED)]
            + [model(told, Roles(candidate=candidate(told, failure=FAILURE))) for told in OTHERS],
            {"coins"} | {told.model for told in OTHERS[:-1]},
        ),
    },
)
def test_so_many_have_a_turn_at_once(models: list[ModelObserved], expected: set[str]) -> None:
    assert slots(world(*models)).free == expected


ELSEWHERE = moved_artifact(SECOND)
PROVED_ANEW = with_golden(SECOND, "2")
EXPOSED = SECOND.model_copy(update={"expose": ("network",)})


@cases(
    ("coins", "record", "expected"),
    {
        "a server is told what is written down": (model(SECOND, CHANGING), SECOND, SECOND),
        "what is not written down yet is told as the spec says": (model(SECOND, CHANGING), None, SECOND),
        "a revision that the spec asks for no more is told as written": (model(FIRST, SERVED), SECOND, SECOND),
        "nothing is known of a revision that is written down nowhere": (model(FIRST, SERVED), None, None),
        "what is written down holds while the spec cannot be read": (model(None, CHANGING), SECOND, SECOND),
        "the artifact is fetched from where the spec says": (model(ELSEWHERE, CHANGING), SECOND, ELSEWHERE),
        "the network is public where the spec says so": (model(EXPOSED, CHANGING), SECOND, EXPOSED),
        "the golden set stays the one of the proof": (
            model(PROVED_ANEW, CHANGING),
            with_golden(SECOND, "1"),
            with_golden(SECOND, "1"),
        ),
        "a candidate that has failed is proved by the golden set of the spec": (
            model(PROVED_ANEW, GIVEN_UP),
            with_golden(SECOND, "1"),
            PROVED_ANEW,
        ),
        "the stable revision keeps its golden set when the spec returns to it from one that has failed": (
            model(PROVED_ANEW, Roles(holder(SECOND, "main"), candidate(THIRD, failure=FAILURE))),
            with_golden(SECOND, "1"),
            with_golden(SECOND, "1"),
        ),
    },
)
def test_a_server_is_told_of_a_revision(
    coins: ModelObserved, record: AssignedModel | None, expected: AssignedModel | None
) -> None:
    seen = world(coins, records=[record] if record is not None else [])

    assert assigned_model(SECOND.revision, coins, seen) == expected


OLD, NEW = with_golden(FIRST, "1"), with_golden(FIRST, "2")
ELSEWHERE_SET = FIRST.model_copy(update={"golden": Golden(uri="file:///other", sha256="1" * 64)})


def on_trial(told: AssignedModel, tried: AssignedModel) -> AssignedModel:
    return told.model_copy(update={"trial": GoldenTrial(golden=tried.golden)})


def proved_by(told: AssignedModel, **trial: object) -> GroupObserved:
    """Return main, whose server has proved a revision and says this of the trial of another set."""
    proof = ProofReport(golden_sha256=told.golden.sha256 if told.golden else None)
    outcome = TrialReport(**trial) if trial else None
    return group("main", told, reports=[report(told, proved=proof, trial=outcome)])


@cases(
    ("wanted", "record", "main", "expected"),
    {
        "servers try an edited golden set in place": (NEW, OLD, proved_by(OLD), on_trial(OLD, NEW)),
        "servers try a first golden set": (NEW, FIRST, proved_by(FIRST), on_trial(FIRST, NEW)),
        "a dropped set is tried as the built-in image": (FIRST, OLD, proved_by(OLD), on_trial(OLD, FIRST)),
        "an edited address is tried as well": (ELSEWHERE_SET, OLD, proved_by(OLD), on_trial(OLD, ELSEWHERE_SET)),
        "the set of the proof is not tried": (OLD, OLD, proved_by(OLD), OLD),
        "servers of a version that knows no trials are not asked for one": (NEW, OLD, group("main", OLD), OLD),
        "a trial goes on while a server that it was asked of restarts": (
            NEW,
            OLD,
            group("main", on_trial(OLD, NEW), state=ModelState.LOADING),
            on_trial(OLD, NEW),
        ),
        "a set that failed is not adopted": (
            NEW,
            OLD,
            proved_by(OLD, golden=NEW.golden, reason="GoldenFailed"),
            on_trial(OLD, NEW),
        ),
        "the outcome of another trial does not count": (
            NEW,
            OLD,
            proved_by(OLD, golden=ELSEWHERE_SET.golden, images=2),
            on_trial(OLD, NEW),
        ),
        "a set that passed is adopted": (NEW, OLD, proved_by(OLD, golden=NEW.golden, images=2), NEW),
    },
)
def test_a_serving_revision_is_tried_with_an_edited_golden_set(
    wanted: AssignedModel, record: AssignedModel, main: GroupObserved, expected: AssignedModel
) -> None:
    coins = model(wanted, SERVED)
    seen = world(coins, groups=[main], records=[record])

    assert assigned_model(FIRST.revision, coins, seen) == expected
    assert record_of(FIRST.revision, coins, seen) == expected.model_copy(update={"trial": None})
    assert roles_after(seen) == SERVED


def test_a_set_is_adopted_once_all_servers_have_passed_its_trial() -> None:
    coins = model(NEW, SERVED)
    passed, behind = (
        report(OLD, proved=ProofReport(golden_sha256="1" * 64), trial=TrialReport(golden=NEW.golden, images=images))
        for images in (2, 0)
    )
    both = [
        replace(proved_by(OLD), servers=(server("one", passed), server("two", other)), wanted=2)
        for other in (behind, passed)
    ]

    adopted = [record_of(FIRST.revision, coins, world(coins, groups=[main], records=[OLD])) for main in both]

    assert adopted == [OLD, NEW]


def test_a_candidate_that_its_servers_do_not_get_proved_takes_the_golden_set_of_the_spec_at_once() -> None:
    wrong, right = with_golden(SECOND, "1"), with_golden(SECOND, "2")
    coins = model(right, CHANGING)
    told = failed(wrong, "DigestMismatch", retryable=True)
    seen = world(coins, groups=[MAIN, group(SECOND.revision, wrong, reports=[told])], records=[FIRST, wrong])

    assert assigned_model(SECOND.revision, coins, seen) == right


@cases(
    ("coins", "expected"),
    {
        "nothing is due where nothing changes": (model(FIRST, SERVED), math.inf),
        "a look is due when the former revision may go": (model(SECOND, CHANGED, keep_previous_s=100), 41.0),
        "what is overdue waits for something else": (model(SECOND, CHANGED, keep_previous_s=60), math.inf),
        "nothing is due while the spec cannot be read": (model(None, CHANGED), math.inf),
        "an SLO is looked after now and then": (model(FIRST, SERVED, slo=Slo()), 15.0),
        "the earlier of two looks is due": (model(SECOND, CHANGED, keep_previous_s=62, slo=Slo()), 3.0),
        "a rollout looks every second": (
            model(SECOND, CHANGING, policy=POLICY, rollout=state(SECOND, Phase.PROGRESSING)),
            1.0,
        ),
        "a rollout that has ended looks no more": (
            model(SECOND, Roles(holder(SECOND)), policy=POLICY, rollout=state(SECOND, Phase.SUCCEEDED)),
            math.inf,
        ),
    },
)
def test_the_next_look_is_due(coins: ModelObserved, expected: float) -> None:
    assert next_due_s([model(CELLS, Roles(OTHER_MAIN)), coins], NOW_S) == expected
