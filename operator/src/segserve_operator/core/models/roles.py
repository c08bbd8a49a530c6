"""Rules for a model's roles: which revision becomes candidate, stable or previous, and when it loses the role.

Each rule derives the desired roles only from the world, so a restarted operator repeats the decision.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Final

from segserve_builder.agent.protocol import AssignedModel, GoldenTrial
from segserve_builder.spec.model_spec import ModelClass
from segserve_operator.core.advance.advance import RETURNED, RolloutUpdate, advance, with_checks
from segserve_operator.core.failure import FailureReason
from segserve_operator.core.models.pool import Slots
from segserve_operator.core.models.update import is_outdated, template_of
from segserve_operator.core.rollout.decisions import Deciding
from segserve_operator.core.rollout.phases import Phase
from segserve_operator.core.rollout.record import RolloutState
from segserve_operator.core.world.deadlines import deadline_s, is_overdue, overdue_reason, waited_out_s
from segserve_operator.core.world.golden import golden_of, trial_of
from segserve_operator.core.world.observed import Candidate, ModelObserved, Observed, RoleHolder, Roles
from segserve_operator.core.world.quorum import answers, blame, may_take_over, suffices
from segserve_operator.core.world.slo import INTERVAL_S as SLO_LOOK_S
from segserve_operator.core.world.slo import is_watched
from segserve_operator.core.world.streams import STREAMS_SPLIT, split_streams

CLASSES_CHANGED: Final = "ClassesChanged"
REFUSED_BEFORE_PROOF: Final = frozenset({CLASSES_CHANGED, STREAMS_SPLIT})
"""Reasons of revisions that no server has to prove: without another spec a retry ends the same way."""
INTERVAL_S: Final = 1.0
UNLOAD_S: Final = 30.0
"""How long servers may take to unload a deleted model before it is forgotten; they go on."""


@dataclass(frozen=True, slots=True)
class Scope:
    """Inputs of a rule; `slots` says whose candidate may get a group of its own now, and whose gives it up."""

    model: ModelObserved
    world: Observed
    slots: Slots


def next_roles(model: ModelObserved, world: Observed, slots: Slots) -> Deciding[tuple[Roles, RolloutUpdate]]:
    """Return the desired roles of a model and the update of its rollout; requests decisions before, as `advance` does.

    A model that is being deleted, or has no pool, has no roles. Only candidates with a free slot get a group of their
    own; the others wait.
    """
    if model.deleting or world.pool is None:
        return Roles(), RolloutUpdate(state=model.status.rollout, handled=model.status.handled)
    scope = Scope(model, world, slots)
    roles = model.roles
    for rule in _RULES_BEFORE_ROLLOUT:
        roles = rule(roles, scope)
    update = yield from advance(model, roles, world)
    roles = _follow_rollout(roles, update, scope)
    for rule in _RULES_AFTER_ROLLOUT:
        roles = rule(roles, scope)
    return roles, with_checks(update, roles, model, world)


def settling(roles: Roles, main: str) -> bool:
    """Return whether the stable revision is to move from another group to `main`.

    It waits until the previous revision has left `main`, because a group serves at most one revision of a model.
    """
    away = roles.stable is not None and roles.stable.group != main
    return away and (roles.previous is None or roles.previous.group != main)


def split(roles: Roles, state: RolloutState | None, world: Observed) -> tuple[Candidate | RoleHolder | None, int]:
    """Return which revision gets requests besides stable, and the percentage; None if none of its servers is ready.

    While a promoted revision is watched and none of its servers is ready, its predecessor gets all.
    """
    if state is None or state.ended or roles.stable is None:
        return None, 0
    other: Candidate | RoleHolder | None = None
    weight = 0
    if roles.candidate is not None and roles.candidate.revision == state.revision:
        other, weight = roles.candidate, state.weight
    elif state.phase is Phase.BAKING and roles.stable.revision == state.revision:
        other, weight = roles.previous, 100 - state.weight
    if other is None or not answers(other, world):
        return None, 0
    return other, 100 if other is roles.previous and not answers(roles.stable, world) else weight


def _follow_spec(roles: Roles, scope: Scope) -> Roles:
    wanted = scope.model.wanted.assigned.revision if scope.model.wanted is not None else None
    if wanted is None:
        return _placed(roles, scope) if scope.model.is_left_as_it_was(roles.candidate) else roles
    if roles.stable is not None and roles.stable.revision == wanted:
        return replace(roles, candidate=None)
    if roles.previous is not None and roles.previous.revision == wanted:
        return _return_to_previous(roles, scope)
    candidate = roles.candidate
    if candidate is None or candidate.revision != wanted or _worth_a_retry(candidate, roles, scope):
        return replace(roles, candidate=_new_candidate(roles, scope, wanted))
    return _placed(roles, scope)


def _placed(roles: Roles, scope: Scope) -> Roles:
    """Give a candidate that waits for servers a group, if it is its turn."""
    candidate = roles.candidate
    if candidate is None or candidate.group is not None or candidate.failure is not None:
        return roles
    group = _group_for(roles, scope, candidate.revision)
    if group is None:
        return roles
    return replace(roles, candidate=replace(candidate, group=group, since_s=scope.world.now_s, stalled=None))


def _return_to_previous(roles: Roles, scope: Scope) -> Roles:
    # The previous revision is still loaded and proved, so this is one weight write. It goes back in an incident, when
    # nodes are missing: any servers that answer are better than an unwanted revision.
    assert roles.stable is not None
    assert roles.previous is not None
    if not answers(roles.previous, scope.world):
        return replace(roles, candidate=None)
    now_s = scope.world.now_s
    return Roles(stable=replace(roles.previous, since_s=now_s), previous=replace(roles.stable, since_s=now_s))


def _worth_a_retry(candidate: Candidate, roles: Roles, scope: Scope) -> bool:
    # The artifact's URI and the golden set are not part of a revision's name, yet changing them may cure the failure.
    if candidate.failure is None or scope.model.wanted is None:
        return False
    if candidate.failure.reason == CLASSES_CHANGED:
        return scope.model.wanted.allow_class_changes
    if candidate.failure.reason == STREAMS_SPLIT:
        return _refused_streams(scope) is None
    if candidate.judged:
        # Another strategy is a new question, the same one has its answer.
        policy = scope.model.wanted.policy
        return policy is None or policy.strategy != "shadow"
    # The fault may have been the servers': their image, memory or device.
    group = _group_for(roles, scope, candidate.revision)
    if candidate.template and group is not None and template_of(group) != candidate.template:
        return True
    # After a restore there may be no record of it: that cures nothing.
    return scope.world.revisions.get(candidate.revision) not in (None, scope.model.wanted.assigned)


def _new_candidate(roles: Roles, scope: Scope, revision: str) -> Candidate:
    now_s = scope.world.now_s
    refused = _refused_classes(roles, scope) or _refused_streams(scope)
    if refused is not None:
        return Candidate(revision, None, now_s, refused)
    return Candidate(revision, _group_for(roles, scope, revision), now_s)


def _group_for(roles: Roles, scope: Scope, revision: str) -> str | None:
    """Return the group to prove a candidate in; None if it has to wait for a slot."""
    pool = scope.world.pool
    assert pool is not None
    # A candidate is never proved on servers that serve a stable revision; an empty main group harms no caller.
    # A model whose stable revision is in another group will still move to main, so that main counts as taken.
    if all(model.roles.stable is None for model in scope.world.models):
        return pool.main
    taken = {holder.group for holder in (roles.stable, roles.previous) if holder is not None}
    if pool.shared and pool.canary not in taken:
        return pool.canary
    return pool.own(revision) if scope.model.name in scope.slots.free else None


def _refused_classes(roles: Roles, scope: Scope) -> FailureReason | None:
    wanted = scope.model.wanted
    stable = scope.world.revisions.get(roles.stable.revision) if roles.stable else None
    if wanted is None or stable is None or wanted.allow_class_changes:
        return None
    changes = class_changes(stable.pipeline.classes, wanted.assigned.pipeline.classes)
    if not changes:
        return None
    advice = (
        "callers of the stable revision rely on these classes; set spec.allowClassChanges: true to allow the change"
    )
    return FailureReason(CLASSES_CHANGED, f"{'; '.join(changes)}: {advice}")


def _refused_streams(scope: Scope) -> FailureReason | None:
    wanted = scope.model.wanted
    return None if wanted is None else split_streams(wanted.assigned.pipeline, wanted.policy, scope.world.pool)


def _follow_template(roles: Roles, scope: Scope) -> Roles:
    # A group keeps the template that it was made from: if that is the fault, only another group can cure it.
    candidate, pool = roles.candidate, scope.world.pool
    if candidate is None or candidate.group is None or pool is None or not pool.template:
        return roles
    if not is_outdated(candidate.group, scope.world) or suffices(candidate.group, candidate.revision, scope.world):
        return roles
    group = _group_for(roles, scope, candidate.revision)
    since_s = scope.world.now_s if group is not None else candidate.since_s
    return replace(roles, candidate=replace(candidate, group=group, since_s=since_s))


def _judge_candidate(roles: Roles, scope: Scope) -> Roles:
    candidate = roles.candidate
    if candidate is None or candidate.group is None or candidate.group not in scope.world.groups:
        return roles
    world, overdue = scope.world, is_overdue(scope.model, candidate, scope.world)
    enough = may_take_over(candidate.group, candidate.revision, roles.stable, world, overdue=overdue)
    if enough and (roles.stable is None or _may_take_all(candidate, scope)):
        return _promoted(roles, candidate, world.now_s)
    failure = blame(candidate.group, candidate.revision, world)
    # While servers of two templates are one group, the former template's servers may be at fault.
    is_mixed = candidate.group == world.main and world.pool is not None and len(world.pool.update.counts) > 1
    if failure is not None and not is_mixed:
        template = template_of(candidate.group) if world.pool is not None and world.pool.template else ""
        return replace(roles, candidate=replace(candidate, group=None, failure=failure, template=template))
    return roles


def _give_up_slot(roles: Roles, scope: Scope) -> Roles:
    """Let a stalled candidate wait again where another one needs its servers."""
    candidate = roles.candidate
    if candidate is None or candidate.group is None or scope.model.name not in scope.slots.given_up:
        return roles
    if not is_overdue(scope.model, candidate, scope.world):
        return roles
    reason = overdue_reason(scope.model, candidate.revision, candidate.group, scope.world)
    waiting = replace(candidate, group=None, since_s=scope.world.now_s, stalled=reason)
    return replace(roles, candidate=waiting)


def _promoted(roles: Roles, candidate: Candidate, now_s: float) -> Roles:
    assert candidate.group is not None
    former = replace(roles.stable, since_s=now_s) if roles.stable else None
    return Roles(stable=RoleHolder(candidate.revision, candidate.group, now_s), previous=former)


def _may_take_all(candidate: Candidate, scope: Scope) -> bool:
    """Return whether a proved candidate is promoted at once, i.e. there is no rollout policy.

    Every gateway must have its servers by then, so that the promotion is a mere change of weights.
    """
    wanted = scope.model.wanted
    if (
        candidate.group is None
        or scope.model.rolls_out(candidate)
        or (wanted is not None and wanted.policy is not None)
    ):
        return False
    share = scope.world.traffic.share(scope.model.name, candidate.group)
    return share is not None and share.revision == candidate.revision and bool(share.endpoints)


def _follow_rollout(roles: Roles, update: RolloutUpdate, scope: Scope) -> Roles:
    """Return the roles that correspond to the rollout's state; both are written in one status."""
    candidate, state, now_s = roles.candidate, update.state, scope.world.now_s
    if update.return_to_previous and roles.stable is not None:
        return _returned(roles, RETURNED, now_s)
    if update.retry and candidate is not None:
        return replace(roles, candidate=_new_candidate(roles, scope, candidate.revision))
    if update.promote and candidate is not None:
        return replace(roles, candidate=replace(_new_candidate(roles, scope, candidate.revision), promoted=True))
    if state is None or (state.ended and state == scope.model.status.rollout):
        # The roles of a rollout that ended earlier were written with its end; its revision may be required again since.
        return roles
    if candidate is not None and candidate.revision == state.revision:
        if state.phase in (Phase.BAKING, Phase.SUCCEEDED) and candidate.group is not None:
            return _promoted(roles, candidate, now_s)
        if state.phase in (Phase.ROLLED_BACK, Phase.JUDGED) and candidate.failure is None:
            failed = replace(candidate, group=None, failure=FailureReason(state.reason, state.message))
            return replace(roles, candidate=failed)
        return roles
    was_promoted = roles.stable is not None and roles.stable.revision == state.revision
    if was_promoted and state.phase is Phase.ROLLED_BACK:
        return _returned(roles, FailureReason(state.reason, state.message), now_s)
    if was_promoted and state.phase is Phase.QUARANTINED:
        return _returned(roles, None, now_s)
    return roles


def _returned(roles: Roles, failure: FailureReason | None, now_s: float) -> Roles:
    """Make the previous revision stable again; the former stable one becomes the candidate, or a failed one."""
    if roles.previous is None or roles.stable is None:
        return roles
    left = Candidate(roles.stable.revision, None if failure else roles.stable.group, now_s, failure)
    return Roles(stable=replace(roles.previous, since_s=now_s), candidate=left)


def _expire_previous(roles: Roles, scope: Scope) -> Roles:
    previous, state = roles.previous, scope.model.status.rollout
    is_watched = state is not None and state.phase is Phase.BAKING and state.revision in roles.revisions()
    if previous is None or scope.model.wanted is None or is_watched:
        return roles
    kept_s = scope.world.now_s - previous.since_s
    if kept_s < scope.model.wanted.keep_previous_s or not scope.world.traffic.idle(scope.model.name, previous.group):
        return roles
    return replace(roles, previous=None)


def _settle(roles: Roles, scope: Scope) -> Roles:
    main = scope.world.main
    if roles.stable is None or not settling(roles, main):
        return roles
    # The servers that answer now are stopped afterwards: they are not given up for fewer that may still become more.
    if may_take_over(main, roles.stable.revision, roles.stable, scope.world, overdue=False):
        return replace(roles, stable=replace(roles.stable, group=main))
    return roles


_RULES_BEFORE_ROLLOUT: Final[tuple[Callable[[Roles, Scope], Roles], ...]] = (
    _follow_spec,
    _follow_template,
    _judge_candidate,
    _give_up_slot,
)
_RULES_AFTER_ROLLOUT: Final[tuple[Callable[[Roles, Scope], Roles], ...]] = (_expire_previous, _settle)


def assigned_model(revision: str, model: ModelObserved, world: Observed) -> AssignedModel | None:
    """Return the assignment of a revision: its record, with a trial of the golden set in the current spec if that is
    another one.
    """
    record = record_of(revision, model, world)
    trial = trial_of(revision, model, world)
    if record is None or trial is None or not trial.possible or record.golden == trial.golden:
        return record
    return record.model_copy(update={"trial": GoldenTrial(golden=trial.golden)})


def record_of(revision: str, model: ModelObserved, world: Observed) -> AssignedModel | None:
    """Return the record of a revision, with the URI and exposure in the current spec.

    The golden set remains the one that the revision was proved with, until the spec's has passed its trial.
    """
    record = world.revisions.get(revision)
    if model.wanted is None or model.wanted.assigned.revision != revision:
        return record or _loaded(revision, world)
    if record is model.wanted.assigned:
        return record
    candidate = model.roles.candidate
    has_failed = candidate is not None and candidate.revision == revision and candidate.failure is not None
    if record is None or has_failed:
        return model.wanted.assigned
    wanted = model.wanted.assigned
    files = ("artifact", "second_artifact", "light_artifact", "decoder_artifact")
    addresses = {name: getattr(wanted, name) for name in files}
    golden = golden_of(record, model, world)
    how = {"expose": wanted.expose, "metrics": wanted.metrics, "processes": wanted.processes}
    if wanted.pipeline.decoder != record.pipeline.decoder:
        how["pipeline"] = record.pipeline.model_copy(update={"decoder": wanted.pipeline.decoder})
    return record.model_copy(update=addresses | how | {"golden": golden})


def _loaded(revision: str, world: Observed) -> AssignedModel | None:
    """Return a revision from some servers' assignment: its record is gone, or cannot be read."""
    assigned = (each for group in world.groups.values() for each in group.assignment.models)
    return next((each for each in assigned if each.revision == revision), None)


def next_due_s(models: Collection[ModelObserved], now_s: float) -> float:
    """Return the seconds until the next pass is due without an event; infinity if none is.

    Rollouts need a pass every second, SLOs one every 15 s.
    """
    if any(model.status.rollout is not None and not model.status.rollout.ended for model in models):
        return INTERVAL_S
    ends = [
        model.roles.previous.since_s + model.wanted.keep_previous_s - now_s
        for model in models
        if model.roles.previous is not None and model.wanted is not None
    ]
    ends += [model.deleted_s + UNLOAD_S - now_s for model in models]
    ends += [waited_out_s(model.roles, deadline_s(model), now_s) for model in models]
    # An overdue one waits for something else, which causes an event.
    role_s = min((left for left in ends if left > 0), default=math.inf) + 1.0
    return min(role_s, SLO_LOOK_S) if any(map(is_watched, models)) else role_s


def class_changes(stable: Sequence[ModelClass], new: Sequence[ModelClass]) -> list[str]:
    """Return a sentence for every class of `stable` that `new` drops or renumbers, in the order of `stable`.

    Classes are identified by name: a renamed class counts as dropped. Additional classes are not reported.
    """
    ids = {item.name: item.id for item in new}
    names = {item.id: item.name for item in new}
    return [_change(item, ids, names) for item in stable if ids.get(item.name) != item.id]


def _change(old: ModelClass, ids: dict[str, int], names: dict[int, str]) -> str:
    if old.name in ids:
        return f"class {old.name!r} is renumbered from {old.id} to {ids[old.name]}"
    if old.id in names:
        return f"class {old.name!r} is dropped; its id {old.id} now means {names[old.id]!r}"
    return f"class {old.name!r} (id {old.id}) is dropped"
