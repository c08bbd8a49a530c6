"""The shipped engine on simulated rollouts: its gates, `watch` and `decide`, thousands of rollouts at once."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np

from bench.rollout.outcomes import Outcomes
from bench.rollout.pairs import PairedWorld
from bench.rollout.series import WEIGHTS
from bench.rollout.world import CANDIDATE, EDGES_MS, STABLE
from segserve_builder.comparator.service import FEW, FIRST_PER_S
from segserve_operator.api.rollout_policy import RolloutPolicy, RolloutStep, Slo
from segserve_operator.core.advance.verdicts.probe import probe_outcome
from segserve_operator.core.evidence import EvidenceWindow
from segserve_operator.core.gates import informed, measured_gates, started
from segserve_operator.core.gates.checks import ProbeCounts
from segserve_operator.core.rollout.engine import Progress, Signals, next_transition, watch, weights
from segserve_operator.core.rollout.phases import ENDED, Phase
from segserve_operator.core.rollout.policy import engine_policy
from segserve_operator.core.statistics.past import SCALES_S, StablePast

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from bench.rollout.world import Counted, Floats, World
    from segserve_operator.api.rollout_policy import Shadow
    from segserve_operator.core.gates.base import MeasuredGate
    from segserve_operator.core.rollout.engine import Policy

ALPHA: Final = 0.01
PROBES_A_SECOND: Final = 4.0
PAST_S: Final = 1800.0
"""For so long before that stable was watched, every 15 s."""
GOLDEN_S: Final = 60.0
"""For so long the golden images are asked before the first request, and stable is watched."""

FINE_S: Final = 60.0
"""For so long from a fault's onset each second is looked at, as the operator does."""

PACES: Final[Mapping[str, RolloutPolicy]] = {
    "evidence": RolloutPolicy(alpha=ALPHA),
    "steps": RolloutPolicy(
        alpha=ALPHA,
        pace="steps",
        steps=tuple(RolloutStep(weight=round(100 * each), min_duration=timedelta(minutes=1)) for each in WEIGHTS),
    ),
}
"""At its own pace; and along the peers' schedule, 5 % more a minute."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Runs:
    """All that goes on of the runs that have not ended; every array [runs, ...].

    `number` is which run of all it is, `held` what was counted while nothing was measured, `asked` and `failed` our own
    requests to (stable, candidate) in this quarantine. `copies` are the pairs asked in Shadow. `past` is stable's.
    """

    number: NDArray[np.int64]
    progress: Progress
    gates: dict[str, Any]
    golden: NDArray[np.int8]
    held: EvidenceWindow
    asked: Floats
    failed: Floats
    copies: Floats
    past: StablePast


def our_outcomes(world: World, pace: str, golden: NDArray[np.int8], horizon_s: float) -> Outcomes:
    """Return what the engine does with a world's runs; `golden` [runs] is what the labelled images say of each."""
    return outcomes_of(world, PACES[pace], golden, horizon_s)[0]


def outcomes_of(
    world: World, policy: RolloutPolicy, golden: NDArray[np.int8], horizon_s: float, past_s: float = PAST_S
) -> tuple[Outcomes, Floats]:
    """Return the same with any policy, and how many copies each run's Shadow asked; it needs a `PairedWorld`.

    Stable was watched for `past_s` before; where that is short, Shadow waits for more of it.
    """
    rate, slo = world.setting.rate, Slo(error_percent=1.0, p95_milliseconds=world.setting.slo_ms)
    engine, gates = engine_policy(policy), measured_gates(policy, slo, EDGES_MS)
    runs = len(golden)
    outcomes, copies = Outcomes(np.full(runs, np.inf), np.full(runs, np.inf), np.zeros(runs)), np.zeros(runs)
    left = _begun(gates, golden, _past(world, runs, past_s))
    shadow_s = 0.0 if engine.shadow is None else engine.shadow.maximum_s
    learns = engine.shadow is not None and past_s < PAST_S
    for now_s, seconds in windows(rate, horizon_s, shadow_s, world.setting.fault.onset_s):
        weight = weights(engine, left.progress.phase, left.progress.step) / 100.0
        if now_s >= 0:
            outcomes.excess[left.number] += world.excess(now_s) * seconds * weight
        before = left.progress.phase
        if policy.shadow is not None and isinstance(world, PairedWorld) and (before == Phase.SHADOW).any():
            left = _shadowed(left, world, gates, policy.shadow, now_s, seconds)
            copies[left.number] = left.copies
        if learns or (before != Phase.SHADOW).any():
            counted = world.count(now_s, seconds, weight)
            left = _informed(left, gates, counted, seconds) if learns else left
            left = _measured(left, world, gates, counted, now_s, seconds)
        left = _decided(left, gates, engine, now_s + seconds)
        _note(outcomes, before, left, now_s + seconds)
        going = ~np.isin(left.progress.phase, [int(phase) for phase in ENDED])
        if not going.all():
            left = _finished(outcomes, left, going, world, now_s + seconds, horizon_s)
        if not len(left.number):
            break
    held = left.number[left.progress.phase == Phase.QUARANTINED]
    # Weight 0 and no verdict: a person's word is waited for.
    outcomes.rolled_back_s[held], outcomes.promoted_s[held] = np.inf, np.inf
    return outcomes, copies


def windows(
    rate: float, horizon_s: float, shadow_s: float = 0.0, onset_s: float = 0.0
) -> Iterator[tuple[float, float]]:
    """Yield the begin and the length of each look: a second while seconds matter, longer for slow or old rollouts.

    Seconds matter from the first request, and from a fault's onset. Before 0 the candidate has no requests, and
    callers' may come `shadow_s` later.
    """
    now_s, length_s = -GOLDEN_S, 5.0
    while now_s < horizon_s:
        if now_s >= 0:
            fine_s = 0.0 if rate < 10 else 30.0 if rate < 100 else 60.0
            slow_s = 15.0 if now_s < 1800 + shadow_s else 30.0
            fine = now_s < fine_s or (rate >= 10 and onset_s <= now_s < onset_s + FINE_S)
            length_s = slow_s if rate < 1 or now_s >= 600 + shadow_s else 1.0 if fine else 5.0
        yield now_s, length_s
        now_s += length_s


def _past(world: World, runs: int, past_s: float) -> StablePast:
    """Return what was counted of stable before the rollout, as the operator keeps it."""
    past, alone = StablePast.none(len(EDGES_MS), (runs,)), np.zeros(runs)
    for now_s in np.arange(-GOLDEN_S - past_s, -GOLDEN_S, SCALES_S[0]):
        counted = world.count(float(now_s), SCALES_S[0], alone)
        past = past.added(
            EvidenceWindow(np.full(runs, SCALES_S[0]), counted.requests, counted.errors, counted.latencies)
        )
    return past


def _begun(gates: Mapping[str, MeasuredGate[Any]], golden: NDArray[np.int8], past: StablePast) -> Runs:
    runs = len(golden)
    shape = (runs,)
    return Runs(
        number=np.arange(runs),
        progress=Progress.begun(-GOLDEN_S, shape),
        gates=started(gates, past, shape),
        golden=golden,
        held=EvidenceWindow.nothing(shape, edges=len(EDGES_MS)),
        asked=np.zeros((runs, 2)),
        failed=np.zeros((runs, 2)),
        copies=np.zeros(runs),
        past=past,
    )


def _informed(left: Runs, gates: Mapping[str, MeasuredGate[Any]], counted: Counted, seconds: float) -> Runs:
    """Add what was counted of stable to its past, and tell the gates of the runs whose candidate is not stable yet."""
    window = EvidenceWindow(np.full(len(left.number), seconds), counted.requests, counted.errors, counted.latencies)
    past = left.past.added(masked(window, counted.measured))
    before = np.isin(left.progress.phase, (Phase.SHADOW, Phase.PROGRESSING))
    told = informed(gates, left.gates, past)
    return replace(left, past=past, gates={name: chosen(before, told[name], left.gates[name]) for name in told})


def _shadowed(
    left: Runs, world: PairedWorld, gates: Mapping[str, MeasuredGate[Any]], shadow: Shadow, now_s: float, seconds: float
) -> Runs:
    """Take in the pairs of the runs in Shadow; what is not measured is lost."""
    # The comparator begins with few and asks twice as many after each `FEW`, since stable stays as fast here.
    paced = FIRST_PER_S * 2.0 ** np.minimum(left.copies // FEW, 10)
    most = np.minimum(shadow.max_requests_per_second, paced)
    rate = np.minimum(world.rate(now_s) * shadow.percent / 100, most)
    window, measured = world.pairs(now_s, seconds, np.where(left.progress.phase == Phase.SHADOW, rate, 0.0))
    seen = masked(window, measured & (left.progress.phase == Phase.SHADOW))
    return replace(
        left,
        gates={name: gate.update(left.gates[name], seen) for name, gate in gates.items()},
        progress=watch(left.progress, seen, now_s + seconds),
        copies=left.copies + window.requests[:, CANDIDATE],
    )


def _measured(
    left: Runs, world: World, gates: Mapping[str, MeasuredGate[Any]], counted: Counted, now_s: float, seconds: float
) -> Runs:
    """Take in what the gateways have counted. What is not measured comes with the first look that is."""
    window, held = _next_window(counted, left.held, seconds)
    # In Shadow callers' requests are no evidence.
    window = masked(window, left.progress.phase != Phase.SHADOW)
    quarantined = (left.progress.phase == Phase.QUARANTINED)[:, None]
    fresh = np.where(quarantined[:, 0], PROBES_A_SECOND * seconds, 0.0)
    failures = np.stack([world.probes(now_s, fresh, role) for role in (STABLE, CANDIDATE)], -1)
    return replace(
        left,
        gates={name: gate.update(left.gates[name], window) for name, gate in gates.items()},
        progress=watch(left.progress, window, now_s + seconds),
        held=held,
        asked=np.where(quarantined, left.asked + fresh[:, None], 0.0),
        failed=np.where(quarantined, left.failed + failures, 0.0),
    )


def _next_window(counted: Counted, held: EvidenceWindow, seconds: float) -> tuple[EvidenceWindow, EvidenceWindow]:
    """Return what is seen now, and what is still held back."""
    seen, role, bins = counted.measured, counted.measured[:, None], counted.measured[:, None, None]
    together = EvidenceWindow(
        held.seconds + seconds,
        held.requests + counted.requests,
        held.errors + counted.errors,
        held.latencies + counted.latencies,
    )
    masks = (seen, role, role, bins)
    # Nobody is asked twice here: without pairs.
    values = (together.seconds, together.requests, together.errors, together.latencies)
    now = EvidenceWindow(*(np.where(mask, value, 0.0) for mask, value in zip(masks, values, strict=True)))
    kept = EvidenceWindow(*(np.where(mask, 0.0, value) for mask, value in zip(masks, values, strict=True)))
    return now, kept


def _decided(left: Runs, gates: Mapping[str, MeasuredGate[Any]], engine: Policy, now_s: float) -> Runs:
    judged = [gate.judge(left.gates[name]) for name, gate in gates.items()]
    probes = _probes(left, now_s)
    started = np.full(left.golden.shape, now_s >= 0)
    heard = Signals(
        ready=True,
        golden=np.where(started, left.golden, 0).astype(np.int8),
        probes=probes,
        forbidden=started & (left.golden < 0),
        allowed=started & (left.golden > 0),
    )
    progress = next_transition(engine, left.progress, judged, heard, now_s).progress
    goes_on = (left.progress.phase == Phase.SHADOW) & (progress.phase != Phase.SHADOW)
    if not goes_on.any():
        return replace(left, progress=progress)
    after = {
        name: chosen(goes_on, gate.after_shadow(left.gates[name]), left.gates[name]) for name, gate in gates.items()
    }
    return replace(left, progress=progress, gates=after)


def _probes(left: Runs, now_s: float) -> NDArray[np.int8]:
    found = np.zeros(len(left.number), np.int8)
    for run in np.flatnonzero(left.progress.phase == Phase.QUARANTINED):
        stable, candidate = (int(each) for each in left.asked[run])
        failed = int(left.failed[run, STABLE]), int(left.failed[run, CANDIDATE])
        finding = ProbeCounts((stable, candidate), failed, done=False)
        found[run] = probe_outcome(finding, now_s - float(left.progress.since_s[run]))
    return found


def _note(outcomes: Outcomes, before: NDArray[np.int8], left: Runs, now_s: float) -> None:
    """Write down when weights became 0 for good, and when runs were promoted."""
    phase, number = left.progress.phase, left.number
    shut = (phase == Phase.QUARANTINED) | (phase == Phase.ROLLED_BACK)
    was_shut = (before == Phase.QUARANTINED) & shut
    outcomes.rolled_back_s[number[shut & ~was_shut]] = max(now_s, 0.0)
    outcomes.rolled_back_s[number[~shut]] = np.inf
    outcomes.promoted_s[number[(phase == Phase.BAKING) & (before != Phase.BAKING)]] = now_s


def _finished(
    outcomes: Outcomes, left: Runs, going: NDArray[np.bool_], world: World, now_s: float, horizon_s: float
) -> Runs:
    """Let go of the runs that have ended, with what the promoted ones cost until the horizon."""
    succeeded = left.progress.phase == Phase.SUCCEEDED
    if succeeded.any():
        grid_s = 15.0
        later = sum((world.excess(at) * grid_s for at in np.arange(now_s, horizon_s, grid_s)), np.zeros(len(going)))
        outcomes.excess[left.number[succeeded]] += later[succeeded]
    world.keep(going)
    return taken(left, going)


def masked(window: EvidenceWindow, which: NDArray[np.bool_]) -> EvidenceWindow:
    """Return the window with nothing in it of other runs than these."""
    return chosen(which, window, replace(window, **_nothing_like(window)))


def _nothing_like(value: Any) -> dict[str, Any]:
    found = {}
    for field in fields(value):
        each = getattr(value, field.name)
        if is_dataclass(each) and not isinstance(each, type):
            found[field.name] = replace(each, **_nothing_like(each))
        elif isinstance(each, np.ndarray):
            found[field.name] = np.zeros_like(each)
    return found


def chosen(which: NDArray[np.bool_], first: T, second: T) -> T:
    """Return the first value's runs where `which`, else the second's, of all arrays [runs, ...] in a dataclass."""
    changed: dict[str, Any] = {}
    for field in fields(first):  # type: ignore[arg-type]
        one, other = getattr(first, field.name), getattr(second, field.name)
        if is_dataclass(one):
            changed[field.name] = chosen(which, one, other)
        elif isinstance(one, np.ndarray) and one.shape[:1] == which.shape:
            changed[field.name] = np.where(which.reshape(which.shape + (1,) * (one.ndim - 1)), one, other)
    return replace(first, **changed)  # type: ignore[type-var]


def taken(value: T, which: NDArray[np.bool_]) -> T:
    """Return the runs that are to stay, of an array, or of all arrays in a dataclass or a dict."""
    if isinstance(value, np.ndarray):
        return value[which]  # type: ignore[return-value]
    if isinstance(value, dict):
        return {name: taken(each, which) for name, each in value.items()}  # type: ignore[return-value]
    if is_dataclass(value) and not isinstance(value, type):
        changed = {field.name: taken(getattr(value, field.name), which) for field in fields(value)}
        return replace(value, **changed)
    return value
