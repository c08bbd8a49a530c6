"""A rehearsed rollout: the resources for a platform of its own, and what it showed.

The clock of its decisions runs `speed` times as fast as servers, gateway and checks, which know only real time.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Final

from segserve.platforms.errors import InvalidResourceError
from segserve.platforms.port import MODEL, POOL, Json, ParsedResource
from segserve.platforms.rollouts.rollout_view import RolloutView
from segserve.platforms.rollouts.words import GateWords, gates, plural, span, why
from segserve_operator.api.loading import parse
from segserve_operator.api.meta import format_duration
from segserve_operator.api.rollout_policy import CheckedGateSpec, RolloutPolicy, Slo
from segserve_operator.api.segmentation_model import SegmentationModel
from segserve_operator.core.models.events import hold_of
from segserve_operator.core.rollout.engine import Wait
from segserve_operator.core.rollout.phases import Phase
from segserve_operator.core.rollout.record import RolloutState

DEFAULT_POOL: Final = "default"
MOST_COPIES: Final = 1000.0
"""Largest rate of copies that a policy may have."""
LATE_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """The resources of a rehearsal, in the order of their application: pools, the stable model, the candidate.

    `policy` and `slo` are those of the candidate's file, unchanged.
    """

    model: str
    pools: tuple[ParsedResource, ...]
    stable: ParsedResource
    candidate: ParsedResource
    policy: RolloutPolicy
    slo: Slo


def rehearsal_of(new: Sequence[ParsedResource], stable: Sequence[ParsedResource], speed: float) -> Rehearsal:
    """Return the resources of a rehearsal: the new model and the stable one, with the new one's SLO and policy.

    Both get the pool of the files, or the default one. Raises `InvalidResourceError` unless each side has exactly one
    model of the same name, with a policy, and another revision.
    """
    candidate, former = only_model(new), only_model(stable)
    after, before = model_of(candidate), model_of(former)
    name = after.metadata.name
    if before.metadata.name != name:
        raise InvalidResourceError(
            f"{former.source} has the model {before.metadata.name!r}, {candidate.source} has {name!r}; a rehearsal "
            "needs two versions of one model"
        )
    policy = after.spec.rollout
    if policy is None:
        raise InvalidResourceError(
            f"{candidate.source}: {name} has no `spec.rollout`, so there is no rollout to rehearse: a new revision is "
            "promoted as soon as it is ready"
        )
    revision = after.assigned.revision
    if before.assigned.revision == revision:
        raise InvalidResourceError(
            f"{candidate.source} and {former.source} describe the same revision {revision}; there is nothing to roll "
            "out"
        )
    if policy.shadow is None:
        policy = policy.shadowed(by_default=after.spec.slo is not None)
    pools = [each for each in new if each.resource.kind == POOL] or [
        each for each in stable if each.resource.kind == POOL
    ]
    spec: Json = {
        "pool": pools[0].resource.metadata.name if pools else DEFAULT_POOL,
        "slo": None if after.spec.slo is None else after.spec.slo.to_dict(),
        "rollout": faster(policy, speed).to_dict(),
        # Servers load no faster.
        "progressDeadline": format_duration(after.spec.progress_deadline * speed),
    }
    return Rehearsal(
        name,
        tuple(pools),
        _changed(former, spec, annotations={}),
        _changed(candidate, spec, annotations=dict(after.metadata.annotations)),
        policy,
        after.spec.slo or Slo(),
    )


def only_model(resources: Sequence[ParsedResource]) -> ParsedResource:
    """Return the only model among resources; raises `InvalidResourceError` for none or several."""
    models = [each for each in resources if each.resource.kind == MODEL]
    if len(models) != 1:
        names = ", ".join(each.resource.metadata.name for each in models) or "none"
        source = resources[0].source if resources else "the file"
        raise InvalidResourceError(f"{source}: a rehearsal needs exactly one {MODEL}, got {names}")
    return models[0]


def model_of(written: ParsedResource) -> SegmentationModel:
    """Return a resource that is known to be a model, as its type."""
    assert isinstance(written.resource, SegmentationModel), written.title
    return written.resource


def stable_of(manifest: Json, place: str) -> ParsedResource:
    """Return the model that a platform serves now, without its status, to be applied elsewhere.

    Raises `InvalidResourceError` if the platform serves another revision than its spec describes, or an address is
    relative to that platform.
    """
    name, status = manifest["metadata"]["name"], manifest.get("status") or {}
    bare = {key: manifest[key] for key in ("apiVersion", "kind", "spec")} | {"metadata": {"name": name}}
    written = ParsedResource(parse(bare, place), bare, place, Path())
    served = ((status.get("roles") or {}).get("stable") or {}).get("revision")
    described = model_of(written).assigned.revision
    if served != described:
        raise InvalidResourceError(
            f"{name}: {place} serves {served or 'no revision'}, but its spec describes {described}; "
            "give the stable version with --stable FILE"
        )
    relative = [file.field for file in written.local_files() if file.is_relative]
    if relative:
        raise InvalidResourceError(
            f"{name}: {', '.join(relative)} of {place} is relative to that platform; give the stable version with "
            "--stable FILE"
        )
    return written


def faster(policy: RolloutPolicy, speed: float) -> RolloutPolicy:
    """Return the policy for a clock that is `speed` times as fast, with what is done in real time changed accordingly.

    These are the intervals of checks (in whole seconds of at least one) and the copies per second in Shadow.
    """
    gates = tuple(
        gate.model_copy(update={"interval": timedelta(seconds=max(round(gate.interval.total_seconds() / speed), 1))})
        if isinstance(gate, CheckedGateSpec)
        else gate
        for gate in policy.gates
    )
    shadow = policy.shadow
    if shadow is not None and shadow.enabled:
        shadow = shadow.model_copy(
            update={"max_requests_per_second": min(shadow.max_requests_per_second * speed, MOST_COPIES)}
        )
    return policy.model_copy(update={"gates": gates, "shadow": shadow})


def _changed(written: ParsedResource, spec: Json, annotations: Mapping[str, str]) -> ParsedResource:
    """Return a model with some fields of its spec replaced (removed for None), and with absolute addresses."""
    manifest = written.complete()
    manifest["spec"] = {key: value for key, value in (manifest["spec"] | spec).items() if value is not None}
    manifest["metadata"] = {"name": manifest["metadata"]["name"]}
    if annotations:
        manifest["metadata"]["annotations"] = dict(annotations)
    return replace(written, resource=parse(manifest, written.source), value=manifest)


class CallOutcome(StrEnum):
    """The outcome of one request: an answer, a failure or no answer in time, or a refusal of the request."""

    ANSWERED = "answered"
    FAILED = "failed"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class CallResult:
    """One request of a caller; `revision` is empty if the gateway named none."""

    revision: str
    answer: CallOutcome
    latency_ms: float


@dataclass(frozen=True, slots=True)
class CallerSide:
    """The requests that one revision had. `slow` are the answers beyond the SLO's longest latency."""

    role: str
    revision: str
    requests: int = 0
    failed: int = 0
    refused: int = 0
    slow: int = 0
    p50_ms: float | None = None
    p95_ms: float | None = None

    @property
    def bad(self) -> int:
        """Requests that failed, were refused or were slow."""
        return self.failed + self.refused + self.slow


class RehearsalVerdict(StrEnum):
    """How a rehearsal ended."""

    PROMOTED = "promoted"
    ROLLED_BACK = "rolledBack"
    UNDECIDED = "undecided"


EXIT_CODES: Final[Mapping[RehearsalVerdict, int]] = {
    RehearsalVerdict.PROMOTED: 0,
    RehearsalVerdict.ROLLED_BACK: 3,
    RehearsalVerdict.UNDECIDED: 4,
}


@dataclass(frozen=True, slots=True)
class Moment:
    """A decision, `after_s` seconds after the start of a rollout without `speed`."""

    after_s: float
    phase: Phase
    weight: int
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class RehearsalReport:
    """The result of a rehearsal; times are those of a rollout at `speed` 1.

    `harmed` estimates the requests that failed, were refused or were slow because of the candidate: its own beyond
    stable's share. `late_s` is the most that a request was sent too late, `unsent` were not sent at all.
    """

    model: str
    verdict: RehearsalVerdict
    why: str
    ended_s: float
    promoted_s: float | None
    moments: tuple[Moment, ...]
    gates: tuple[GateWords, ...]
    sides: tuple[CallerSide, CallerSide]
    harmed: int
    speed: float
    requests_per_second: float
    late_s: float = 0.0
    unsent: int = 0
    warnings: tuple[str, ...] = field(default=())

    @property
    def exit_code(self) -> int:
        """0 if promoted, 3 if rolled back, 4 if undecided."""
        return EXIT_CODES[self.verdict]

    def headline(self) -> str:
        """Return one sentence: what would have happened, when, why, and how many requests were harmed."""
        harmed = f"{plural(self.harmed, 'request')} harmed" if self.harmed else "no request was harmed"
        match self.verdict:
            case RehearsalVerdict.PROMOTED:
                promoted = f"would be promoted after {span(self.promoted_s or 0.0)}"
                text = f"{promoted}, and its rollout would succeed after {span(self.ended_s)}"
            case RehearsalVerdict.ROLLED_BACK:
                text = f"would be rolled back after {span(self.ended_s)}: {self.why}"
            case RehearsalVerdict.UNDECIDED:
                text = f"undecided after {span(self.ended_s)}: {self.why}"
        return f"{self.model}: {text}; {harmed}."

    def to_dict(self) -> Json:
        """Return the report as JSON: camelCase, times in seconds, null for what did not happen."""
        return {
            "model": self.model,
            "verdict": self.verdict.value,
            "exitCode": self.exit_code,
            "why": self.why,
            "promotedAfterSeconds": None if self.promoted_s is None else round(self.promoted_s, 1),
            "endedAfterSeconds": round(self.ended_s, 1),
            "harmed": self.harmed,
            "speed": self.speed,
            "requestsPerSecond": round(self.requests_per_second, 3),
            "revisions": [_side_document(side) for side in self.sides],
            "gates": [{"gate": each.gate, "state": each.state, "text": each.text} for each in self.gates],
            "decisions": [
                {
                    "afterSeconds": round(moment.after_s, 1),
                    "phase": moment.phase.label,
                    "weight": moment.weight,
                    "reason": moment.reason,
                    "message": moment.message,
                }
                for moment in self.moments
            ],
            "lateSeconds": round(self.late_s, 1),
            "unsent": self.unsent,
            "warnings": list(self.warnings),
        }


def _side_document(side: CallerSide) -> Json:
    return {
        "role": side.role,
        "revision": side.revision,
        "requests": side.requests,
        "failed": side.failed,
        "refused": side.refused,
        "slow": side.slow,
        "p50Milliseconds": None if side.p50_ms is None else round(side.p50_ms, 1),
        "p95Milliseconds": None if side.p95_ms is None else round(side.p95_ms, 1),
    }


def is_held(standing: RolloutState) -> bool:
    """Tell whether a rollout goes on only if a person acts; nobody does in a rehearsal."""
    return hold_of(standing) not in ("", Wait.INCIDENT)  # an incident may end by itself


@dataclass(frozen=True, slots=True)
class CallerTraffic:
    """The requests of a rehearsal: their outcomes, the rate as recorded, and how well it was kept."""

    calls: Sequence[CallResult]
    requests_per_second: float
    late_s: float = 0.0
    unsent: int = 0


def report(view: RolloutView, traffic: CallerTraffic, slo: Slo, speed: float) -> RehearsalReport:
    """Return what a rehearsal showed, from its rollout at the end and its callers."""
    standing = view.standing
    moments = tuple(_moments(view, speed))
    verdict = {Phase.SUCCEEDED: RehearsalVerdict.PROMOTED, Phase.ROLLED_BACK: RehearsalVerdict.ROLLED_BACK}.get(
        standing.phase, RehearsalVerdict.UNDECIDED
    )
    sides = (
        caller_side("stable", view.stable, traffic.calls, slo),
        caller_side("candidate", standing.revision, traffic.calls, slo),
    )
    # The rows' clock is the one of the decisions.
    rows = view.record.rows if view.record is not None else ()
    ended_at_s = standing.since_s if standing.ended or not rows else max(rows[-1].at_s, standing.step_since_s)
    promotions = [moment.after_s for moment in moments if moment.phase is Phase.BAKING]
    return RehearsalReport(
        view.model,
        verdict,
        _why(view, verdict),
        _after_s(view, ended_at_s, speed),
        promotions[-1] if promotions and verdict is RehearsalVerdict.PROMOTED else None,
        moments,
        tuple(gates(view, None)),
        sides,
        harmed(*sides),
        speed,
        traffic.requests_per_second,
        traffic.late_s,
        traffic.unsent,
        tuple(_warnings(sides[0], slo, traffic)),
    )


def _why(view: RolloutView, verdict: RehearsalVerdict) -> str:
    standing = view.standing
    if verdict is RehearsalVerdict.PROMOTED:
        return "the evidence allowed all requests, and the bake found nothing"
    if verdict is RehearsalVerdict.ROLLED_BACK or standing.ended:
        return why(view)
    if is_held(standing):
        return f"it waits for a person: {standing.message or standing.reason}"
    return f"it is {standing.phase.label} at {standing.weight} %: {standing.message or 'no decision yet'}"


def _moments(view: RolloutView, speed: float) -> Iterator[Moment]:
    for each in view.record.decisions if view.record is not None else ():
        yield Moment(_after_s(view, each.at_s, speed), each.phase, each.weight, each.reason, each.message)


def _after_s(view: RolloutView, at_s: float, speed: float) -> float:
    """Return when something would have happened, in seconds since the start: its servers load in real time."""
    started_s = view.standing.started_s
    decisions = view.record.decisions if view.record is not None else ()
    loaded_s = min((each.at_s for each in decisions if each.phase is not Phase.PENDING), default=at_s)
    return max(min(at_s, loaded_s) - started_s, 0.0) / speed + max(at_s - loaded_s, 0.0)


def caller_side(role: str, revision: str, calls: Iterable[CallResult], slo: Slo) -> CallerSide:
    """Return what callers had of one revision."""
    mine = [call for call in calls if call.revision == revision]
    answered_ms = sorted(call.latency_ms for call in mine if call.answer is CallOutcome.ANSWERED)
    limit_ms = max((limit_ms for _, limit_ms in slo.latencies), default=float("inf"))
    # The method needs two values.
    twentieths = statistics.quantiles([*answered_ms, answered_ms[-1]], n=20) if answered_ms else None
    return CallerSide(
        role,
        revision,
        len(mine),
        sum(call.answer is CallOutcome.FAILED for call in mine),
        sum(call.answer is CallOutcome.REFUSED for call in mine),
        sum(latency_ms > limit_ms for latency_ms in answered_ms),
        None if twentieths is None else twentieths[9],
        None if twentieths is None else min(twentieths[18], answered_ms[-1]),
    )


def harmed(stable: CallerSide, candidate: CallerSide) -> int:
    """Return how many of the candidate's requests went wrong beyond stable's share, as a whole number."""
    usual = candidate.requests * stable.bad / stable.requests if stable.requests else 0.0
    return max(round(candidate.bad - usual), 0)


def _warnings(stable: CallerSide, slo: Slo, traffic: CallerTraffic) -> Iterator[str]:
    if traffic.late_s > LATE_S or traffic.unsent:
        yield (
            f"requests were sent up to {traffic.late_s:.1f} s too late and {traffic.unsent} not at all: this machine "
            "cannot ask that often; lower --speed or --rate"
        )
    slowest = max(slo.latencies, default=None)
    slow = 0.0 if slowest is None else stable.slow / max(stable.requests, 1) - (1.0 - slowest[0])
    failing = 100 * stable.failed / max(stable.requests, 1) - slo.error_percent
    if slow > 0 or failing > 0:
        yield (
            "stable itself misses its SLO here, so little can be said about the candidate: this machine is too slow "
            "for that many requests; lower --speed or --rate"
        )
    unnamed = sum(call.revision == "" and call.answer is CallOutcome.FAILED for call in traffic.calls)
    if unnamed:
        yield f"{plural(unnamed, 'request')} failed before any revision was asked, and are counted for none"
