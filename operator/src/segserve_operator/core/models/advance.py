"""A model's rollout in one pass: which one it is, what it hears, and what it asks for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from segserve_operator.api.rollout_policy import RolloutPolicy, Slo, gate_name
from segserve_operator.core.models.events import Notice
from segserve_operator.core.models.inputs import checks, groups_of, hear, is_about, verdicts_with
from segserve_operator.core.models.requests import next_request, refusal, with_handled
from segserve_operator.core.models.rollout_texts import SPLIT_STORY, story
from segserve_operator.core.rollout import decisions
from segserve_operator.core.rollout.counters import Hung
from segserve_operator.core.rollout.decisions import News, caught_up, standing_of
from segserve_operator.core.rollout.engine import Progress
from segserve_operator.core.rollout.phases import Signal
from segserve_operator.core.rollout.record import Record, Standing
from segserve_operator.core.rollout.windows import look_between
from segserve_operator.core.statistics.sample_ratio import SampleRatio

if TYPE_CHECKING:
    from segserve_operator.core.evidence import Look
    from segserve_operator.core.gates.checks import Check
    from segserve_operator.core.models.observed import ModelObserved, Observed, Roles
    from segserve_operator.core.models.requests import Request
    from segserve_operator.core.rollout.decisions import Made

WRITE_S: Final = 10.0
"""A record is written so often at most, but for what decisions change."""
SETTLED_S: Final = 10.0
"""After a change of weight the split of requests proves nothing for so long."""
SPLIT: Final = SampleRatio()
SPLIT_ODDS: Final = 1e4
LONGEST_S: Final = 10.0
"""What is under way for so long hangs, whatever the SLO says."""


@dataclass(frozen=True, slots=True)
class Rolled:
    """What a pass makes of a model's rollout.

    `records` are those of rollouts that saw something new. `retried`: a failed candidate is to be tried again; `left`:
    the stable revision is to be left for the previous one, without any rollout under way.
    """

    standing: Standing | None = None
    records: tuple[Record, ...] = ()
    checks: tuple[Check, ...] = ()
    handled: tuple[str, ...] = ()
    told: tuple[Notice, ...] = ()
    retried: bool = False
    left: bool = False


def roll(model: ModelObserved, roles: Roles, world: Observed) -> Rolled:
    """Take a model's rollout one look further; `roles` are those that the spec and the servers ask for."""
    standing, ended = _current(model, roles, world)
    if standing is None or standing.ended:
        rolled, granted = _answered(model, roles, standing, ())
        return replace(
            rolled,
            records=(*ended, *_behind(standing, world)),
            left=granted is not None and granted.verb == "rollback",
        )
    record = _record(standing, roles, model, world)
    rolled, granted = _answered(model, roles, standing, tuple(map(gate_name, record.policy.gates)))
    made = _step(standing, record, roles, model, world, granted)
    after, taken = _told(standing, made, roles), made.record
    if made.changed or is_due(record, world):
        taken = decisions.with_verdicts(taken, after.skipped)
    else:
        after = replace(after, reason=standing.reason or after.reason, message=standing.message or after.message)
    return replace(rolled, standing=after, records=(*ended, taken))


def _current(model: ModelObserved, roles: Roles, world: Observed) -> tuple[Standing | None, tuple[Record, ...]]:
    """Return the rollout that is under way now, and the record of one that another has taken the place of."""
    standing = model.status.rollout
    ended: tuple[Record, ...] = ()
    if standing is not None and not standing.ended and not is_about(standing, roles):
        made = _step(standing, _record(standing, roles, model, world), roles, model, world, None)
        standing, ended = _told(standing, made, roles), (made.record,)
    return (_begun(roles, world) if _begins(standing, model, roles) else standing), ended


def _answered(
    model: ModelObserved, roles: Roles, standing: Standing | None, gates: tuple[str, ...]
) -> tuple[Rolled, Request | None]:
    """Return what becomes of the next request of people, and the request itself where it is granted."""
    handled = model.status.handled
    request = next_request(model.annotations, handled)
    if request is None:
        return Rolled(standing, handled=handled), None
    refused = refusal(request, standing, roles, gates)
    if refused is not None:
        notice = Notice("Warning", "RequestRefused", refused)
    else:
        notice = Notice("Normal", "RequestTaken", request.text)
    retried = refused is None and request.verb == "retry"
    rolled = Rolled(standing, handled=with_handled(handled, request), told=(notice,), retried=retried)
    return rolled, request if refused is None else None


def with_checks(rolled: Rolled, roles: Roles, model: ModelObserved, world: Observed) -> Rolled:
    """Return it with what is to be found out, once it is known which groups the roles are in from now on."""
    standing = rolled.standing
    record = next((record for record in rolled.records if standing and record.name == standing.rollout), None)
    if standing is None or record is None:
        return rolled
    return replace(rolled, checks=checks(standing, record, roles, model, world))


def unchanged(model: ModelObserved, world: Observed) -> Rolled:
    """Return a rollout as it is, of a model that could not be written down; what it has found out goes on meanwhile."""
    standing = model.status.rollout
    rolled = Rolled(standing=standing, handled=model.status.handled)
    record = world.records.get(standing.rollout) if standing is not None else None
    if standing is None or record is None:
        return rolled
    return replace(rolled, checks=checks(standing, record, model.roles, model, world))


def _behind(standing: Standing | None, world: Observed) -> tuple[Record, ...]:
    """Return the record of a rollout that has ended where that is not in it yet: a process ended at that moment."""
    record = world.records.get(standing.rollout) if standing is not None else None
    if standing is None or record is None or record.sequence >= standing.sequence:
        return ()
    return (caught_up(record, standing),)


def _begins(standing: Standing | None, model: ModelObserved, roles: Roles) -> bool:
    """Tell whether a rollout is to begin: somebody's requests are at stake, and the candidate has servers."""
    candidate = roles.candidate
    if model.wanted is None or model.wanted.policy is None or roles.stable is None or candidate is None:
        return False
    if candidate.group is None or candidate.failure is not None:
        return False
    return standing is None or standing.ended or standing.revision != candidate.revision


def _begun(roles: Roles, world: Observed) -> Standing:
    assert roles.candidate is not None
    revision, now_s = roles.candidate.revision, world.now_s
    name = f"{revision}-{int(now_s):08x}"
    return Standing(name, revision, started_s=now_s, since_s=now_s, step_since_s=now_s)


def _record(standing: Standing, roles: Roles, model: ModelObserved, world: Observed) -> Record:
    """Return the rollout's record, in agreement with the status; a new one where there is none (any more)."""
    found = world.records.get(standing.rollout)
    if found is None:
        wanted = model.wanted
        found = Record(
            name=standing.rollout,
            model=model.name,
            stable=roles.stable.revision if roles.stable is not None else "",
            candidate=standing.revision,
            policy=(wanted.policy if wanted is not None else None) or RolloutPolicy(),
            slo=(wanted.slo if wanted is not None else None) or Slo(),
            progress=Progress.begun(standing.started_s),
        )
    return caught_up(found, standing)


def _step(
    standing: Standing, record: Record, roles: Roles, model: ModelObserved, world: Observed, granted: Request | None
) -> Made:
    record = replace(record, verdicts=verdicts_with(record, standing, model, world))
    record, look = _looked(record, standing, roles, model, world)
    record = _with_split(record, standing, look, world.now_s)
    heard = hear(record, standing, roles, model, world)
    verb = granted.verb if granted is not None else ""
    asked = {"abort": Signal.ABORT, "rollback": Signal.ABORT, "promote": Signal.PROMOTE, "resume": Signal.ADVANCE}
    skipped = (*standing.skipped, granted.gate) if granted is not None and verb == "skip-gate" else standing.skipped
    news = News(
        now_s=world.now_s,
        heard=replace(heard, asked=int(asked.get(verb, Signal.NONE))),
        look=look,
        paused=verb == "pause" or (standing.paused and verb != "resume"),
        skipped=skipped,
        actor=granted.text if granted is not None else "segserve",
    )
    made = decisions.make(record, news)
    return made if not made.changed else decisions.told(made, *story(standing, made, roles))


def _looked(
    record: Record, standing: Standing, roles: Roles, model: ModelObserved, world: Observed
) -> tuple[Record, Look | None]:
    """Return what the gateways have counted since the last look; no look where none of them answers."""
    sample = world.samples.get(model.name)
    if not sample or sample == record.seen:
        return record, None
    looked = look_between(
        record.seen,
        sample,
        *groups_of(standing, roles),
        hung=record.hung or Hung(),
        slow_after_s=_hung_after_s(record.slo),
    )
    return replace(record, seen=looked.seen, hung=looked.hung), looked.look if record.seen else None


def _hung_after_s(slo: Slo) -> float:
    """Return after how long a request that is under way counts as one that hangs."""
    promised_ms = slo.p99_milliseconds or slo.p95_milliseconds
    return LONGEST_S if promised_ms is None else min(max(4 * promised_ms / 1000, 1.0), LONGEST_S)


def _with_split(record: Record, standing: Standing, look: Look | None, now_s: float) -> Record:
    """Take a look into the test of the weights, but those at a change: gateways and long requests take their time."""
    if look is None or not 0 < standing.weight < 100 or 0 <= now_s - standing.step_since_s < SETTLED_S:
        return record
    split = record.split or SPLIT.start()
    return replace(record, split=SPLIT.update(split, np.array(float(standing.weight)), look.requests))


def _is_split_as_written(record: Record) -> bool:
    return record.split is None or float(SPLIT.evidence(record.split)) < np.log(SPLIT_ODDS)


def _told(before: Standing, made: Made, roles: Roles) -> Standing:
    reason, message = story(before, made, roles)
    if not made.changed and not _is_split_as_written(made.record):
        reason, message = SPLIT_STORY
    after = standing_of(made.record, before.revision)
    return replace(after, skipped=made.skipped, reason=reason, message=message)


def is_due(record: Record, world: Observed, *, active: bool = True) -> bool:
    """Tell whether a record is to be written: what was decided at once, what only was seen now and then."""
    written = world.written.get(record.name)
    if written is None or written[0] < record.sequence:
        return True
    return active and abs(world.now_s - written[1]) >= WRITE_S
