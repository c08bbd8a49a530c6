"""A rollout in plain words: one sentence on where it stands, what it waits for, and what each gate says."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from segserve_operator.api.rollout_policy import Slo, gate_name
from segserve_operator.core.advance.explanations import DEADLINE_PASSED, TOO_OFTEN
from segserve_operator.core.evidence import EDGES_MS
from segserve_operator.core.gates import GATES
from segserve_operator.core.gates.base import CheckedGateType, GateType, Outcome, Verdict
from segserve_operator.core.gates.mask_agreement import CONFIDENCE_SHIFTED
from segserve_operator.core.rollout.engine import MAX_QUARANTINES, Wait
from segserve_operator.core.rollout.forecast import Forecast
from segserve_operator.core.rollout.phases import Phase
from segserve_operator.core.rollout.record import Record
from segserve_operator.core.world.requests import RolloutRequest
from segserve_platform.platforms.rollouts.rollout_view import STALE_S, RolloutView, Side

SEGSERVE: Final = "segserve"
_ENDED: Final = {Phase.SUCCEEDED: "succeeded", Phase.ROLLED_BACK: "was rolled back", Phase.CANCELLED: "was cancelled"}
MAYBE, LIKELY = 0.2, 0.5
"""Shares of the evidence for a rollback: odds of about 3 to 1, barely worth mentioning, and of 20 to 1, suspicious."""
SLO_S: Final = 300.0
SOON_S: Final = 5.0


def headline(view: RolloutView, outlook: Forecast | None) -> str:
    """Return one sentence: how many requests for how long, how it looks so far, and how long it takes at this rate.

    Of a rollout that has ended, it says who has the requests now.
    """
    standing, age = view.standing, span(view.now_s - view.standing.since_s)
    took, serves = span(standing.since_s - standing.started_s), view.present.text
    match standing.phase:
        case _ if not standing.ended and not view.runs:
            text = f"the platform does not run; at its end {serves}"
        case Phase.PENDING if view.cannot_begin:
            text = f"no requests, for {age}: {view.problem}"
        case Phase.PENDING:
            text = f"no requests yet: its servers are loading and proving it, for {age} so far"
        case Phase.GOLDEN:
            text = "no requests yet: it is loaded, and its golden images are being judged"
        case Phase.SHADOW:
            text = f"no requests yet, {compared(view)} for {age}; {looks(view, outlook)}; {_until(view, outlook)}"
        case Phase.PROGRESSING:
            step_age = span(view.now_s - standing.step_since_s)
            text = f"{view.weight} % of requests for {step_age}; {looks(view, outlook)}; {_until(view, outlook)}"
        case Phase.QUARANTINED:
            text = f"no requests for {age}: {_quarantine(view)}"
        case Phase.BAKING:
            left = f"; {_until(view, outlook)}" if outlook is not None else ""
            text = f"{view.weight} % of requests, promoted {age} ago; {looks(view, outlook)}{left}"
        case Phase.JUDGED:
            text = f"{standing.message}; {serves}"
        case phase:
            because = "" if phase is Phase.SUCCEEDED else f": {why(view)}"
            text = f"the rollout of {standing.revision} {_ENDED[phase]} after {took}{because}; {serves}"
    return f"{view.model}: {text}{f' (it ended {age} ago)' if view.is_history else ''}."


def why(view: RolloutView) -> str:
    """Return why a rollout is where it is: the gates that breach, else its message."""
    verdicts = view.record.verdicts if view.record is not None else ()
    breaches = [verdict for verdict in verdicts if verdict.outcome is Outcome.BREACH]
    text = "; ".join(f"{verdict.gate}: {finding(verdict)}" for verdict in breaches)
    return text or view.standing.message or view.standing.reason or "no reason is recorded"


def looks(view: RolloutView, outlook: Forecast | None) -> str:
    """Return how the candidate looks so far, with how many of its requests say so."""
    # Copies are counted only in Shadow: a number that mixes them with callers' requests would fall at the first step.
    counted = view.compared if view.standing.phase is Phase.SHADOW else view.sides()[1].requests
    record = view.record
    if outlook is not None and outlook.wait is Wait.INCIDENT:
        return "both revisions miss the SLO, so nothing can be said about it"
    if record is None or not counted:
        return "not judged yet"
    judged = [verdict for verdict in record.verdicts if verdict.gate not in view.standing.skipped]
    if breaches := [verdict.gate for verdict in judged if verdict.outcome is Outcome.BREACH]:
        return f"worse than allowed ({', '.join(breaches)})"
    for least, phrase in ((LIKELY, "it looks worse"), (MAYBE, "it may be worse")):
        if suspects := [verdict.gate for verdict in judged if suspicion(verdict) >= least]:
            return f"{phrase} ({', '.join(suspects)})"
    return f"healthy so far in {plural(counted, 'request')}"


def compared(view: RolloutView) -> str:
    """Return how many of the copies that Shadow requires have been sent to both revisions."""
    shadow = view.record.policy.shadow if view.record is not None else None
    return f"{view.compared:,} of {shadow.min_requests if shadow is not None else 0:,} copied requests compared"


def suspicion(verdict: Verdict) -> float:
    """Return the evidence against the candidate as a share of what a rollback requires; 0 for rules."""
    gate_type = GATES.get(verdict.gate)
    return 0.0 if gate_type is None or gate_type.is_rule else verdict.progress


def _until(view: RolloutView, outlook: Forecast | None) -> str:
    """Return how long it takes to the next weight and to the end, or what it waits for."""
    if outlook is None or held(view, outlook) or math.isinf(outlook.next_s):
        missing = awaited(view, outlook)
        return f"it waits for {missing}" if missing else "nothing is recorded of it yet"
    if view.standing.phase is Phase.BAKING:
        return f"watched for another {left(view, outlook.end_s)}"
    if view.standing.phase is Phase.SHADOW:
        text = f"at most {left(view, outlook.next_s)} to {next_weight(view)}"
        return f"{text}{_to_the_end(view, outlook)}"
    next_s = left_s(view, outlook.next_s)
    text = f"{about(next_s)} to {next_weight(view)}" if next_s >= SOON_S else f"{next_weight(view)} any moment now"
    return f"{text}{_to_the_end(view, outlook) or ' at this rate'}"


def _to_the_end(view: RolloutView, outlook: Forecast) -> str:
    """Return the time to the end of the rollout; empty where it is not known."""
    end_s = left_s(view, outlook.end_s)
    return "" if math.isinf(end_s) or later_pauses(view) else f" and {about(end_s)} to the end at this rate"


def held(view: RolloutView, outlook: Forecast) -> bool:
    """Return whether a rollout waits for something else than time and requests."""
    late = view.standing.reason in (DEADLINE_PASSED, TOO_OFTEN)
    return late or outlook.wait not in (Wait.NOTHING, Wait.TIME, Wait.DATA, Wait.HARM)


def awaited(view: RolloutView, outlook: Forecast | None) -> str:
    """Return what is still awaited; empty if nothing is, or if it is not known."""
    standing, name = view.standing, view.model
    if standing.paused:
        by = _by(view, "pause")
        return f"you, as it is paused{by}: `segserve rollout resume {name}` continues"
    if standing.reason in (DEADLINE_PASSED, TOO_OFTEN):
        return f"you, as {standing.message}: `segserve rollout promote {name}` or `abort`"
    if standing.phase is Phase.PENDING:
        change = f"you: change the model and apply it, or `segserve rollout abort {name}`"
        return change if view.cannot_begin else "its servers to load and prove it"
    if outlook is None:
        return ""
    match outlook.wait:
        case Wait.PERSON if standing.phase is Phase.SHADOW:
            return _decision_awaited(view)
        case Wait.PERSON:
            return f"you: `segserve rollout resume {name}` goes on to {next_weight(view)}"
        case Wait.INCIDENT:
            return "the end of an incident: stable misses the SLO as well"
        case Wait.GATE:
            return f"a pass of {', '.join(outlook.undecided) or 'a gate'}"
        case _:
            pass
    if standing.phase is Phase.GOLDEN:
        return "its golden images to be judged"
    if standing.phase is Phase.SHADOW:
        less = "proof that it is no worse than tolerated"
        return less if outlook.wait is Wait.HARM else "copies of callers' requests to compare"
    if standing.phase is Phase.PROGRESSING:
        return _requests_awaited(view, outlook)
    return f"the end of the bake, in {left(view, outlook.end_s)}" if standing.phase is Phase.BAKING else ""


def _decision_awaited(view: RolloutView) -> str:
    """Return what a person has to decide in Shadow."""
    reasons = {verdict.reason for verdict in view.record.verdicts} if view.record is not None else set()
    if CONFIDENCE_SHIFTED in reasons:
        return f"you, as its scores have shifted: `segserve rollout resume {view.model}` or `abort`"
    return f"you, as its masks differ: `segserve rollout sheet {view.model}` shows them, then `resume` or `abort`"


def _requests_awaited(view: RolloutView, outlook: Forecast) -> str:
    if not outlook.requests_per_second:
        quiet = span(view.now_s - outlook.last_request_s)
        return f"requests: none in the last {quiet}" if outlook.last_request_s else "requests: none so far"
    if math.isfinite(outlook.next_s):
        parts = []
        if outlook.wait is Wait.TIME or not outlook.measuring:
            parts.append("time" if outlook.wait is Wait.TIME else "the next look")
        if outlook.measuring:
            parts.append(f"{missing_requests(outlook)} to the candidate")
        return " and ".join(parts)
    return "more requests than come at this rate before its deadline"


def missing_requests(outlook: Forecast) -> str:
    """Return how many requests the candidate needs for its next weight: `38 more requests`, rounded."""
    if math.isinf(outlook.next_requests):
        return "more requests"
    return f"about {plural(float(f'{max(outlook.next_requests, 1.0):.2g}'), 'more request')}"


def _quarantine(view: RolloutView) -> str:
    standing = view.standing
    if standing.reason == TOO_OFTEN:
        return f"it was quarantined too often and waits for you: `segserve rollout promote {view.model}` or `abort`"
    test = "segserve's own requests find out whether it recovers"
    return f"it failed while stable answered; {test} (quarantine {max(standing.quarantines, 1)} of {MAX_QUARANTINES})"


def next_weight(view: RolloutView) -> str:
    """Return the weight after the present step: `25 %`, or its promotion."""
    steps = view.record.policy.steps if view.record is not None else ()
    following = view.standing.step + 1
    if view.standing.phase is Phase.SHADOW and view.record is not None:
        follows = {"canary": "its first step", "shadow": "its verdict"}
        return follows.get(view.record.policy.strategy, "its promotion")
    if view.record is None or view.record.policy.strategy != "canary" or following >= len(steps):
        return "its promotion"
    return f"{steps[following].weight} %"


def later_pauses(view: RolloutView) -> bool:
    """Return whether a step from the present one on ends only when a person resumes the rollout."""
    if view.record is None or view.record.policy.strategy != "canary":
        return False
    return any(step.pause for step in view.record.policy.steps[max(view.standing.step, 0) :])


def left_s(view: RolloutView, seconds: float) -> float:
    """Return the rest of `seconds`, which a forecast counts from the last recorded requests on."""
    passed_s = view.now_s - view.record.rows[-1].at_s if view.record is not None and view.record.rows else 0.0
    return max(seconds - max(passed_s, 0.0), 0.0)


def left(view: RolloutView, seconds: float) -> str:
    """Return the rest of an exact time."""
    return span(left_s(view, seconds))


@dataclass(frozen=True, slots=True)
class GateWords:
    """A gate in words: a state of one or two words, and a text. `outcome` is None where it judges nothing (yet)."""

    gate: str
    outcome: Outcome | None
    state: str
    text: str


def gates(view: RolloutView, outlook: Forecast | None) -> Iterator[GateWords]:
    """Yield what each gate says, in the policy's order, also of those without a verdict."""
    if view.record is None:
        return
    verdicts = {verdict.gate: verdict for verdict in view.record.verdicts}
    declared = [gate_name(gate) for gate in view.record.policy.gates]
    for gate in dict.fromkeys((*declared, *verdicts)):
        if gate in view.standing.skipped:
            yield GateWords(gate, None, "skipped", f"ignored in this rollout{_by(view, 'skip-gate', gate)}")
        elif gate in verdicts:
            yield _gate(verdicts[gate], view, outlook)
        else:
            yield GateWords(gate, None, "no result", "it has not judged anything yet")


def _gate(verdict: Verdict, view: RolloutView, outlook: Forecast | None) -> GateWords:
    gate, text = verdict.gate, finding(verdict)
    if verdict.outcome is Outcome.BREACH:
        return GateWords(gate, Outcome.BREACH, "breach", text)
    if view.standing.ended and verdict.outcome is Outcome.UNDECIDED:
        return GateWords(gate, None, "not judged", "the rollout ended before it had judged")
    if verdict.reason == "NotPromoted":
        return GateWords(gate, None, "later", "it judges the revision after its promotion")
    if suspicion(verdict) >= MAYBE:
        against = 100 * verdict.progress
        text = f"{text}; {against:.0f} % of the evidence that would roll it back"
        if suspicion(verdict) >= LIKELY:
            return GateWords(gate, Outcome.UNDECIDED, "looks worse", text)
    if verdict.reason == "Incident":
        return GateWords(gate, Outcome.UNDECIDED, "on hold", f"{text}; stable misses the SLO as well")
    progressing = view.standing.phase is Phase.PROGRESSING
    if outlook is not None and gate in outlook.measuring and progressing:
        return GateWords(
            gate, Outcome.UNDECIDED, "measuring", f"needs {missing_requests(outlook)} for {next_weight(view)}; {text}"
        )
    if verdict.outcome is Outcome.PASS:
        return GateWords(gate, Outcome.PASS, "pass", text)
    is_check = isinstance(_gate_type(view, gate), CheckedGateType | None)
    lacks = is_check and verdict.reason in ("NoAnswer", "NotChecked", "GoldenUnavailable")
    state = "no result" if lacks else "undecided"
    return GateWords(gate, Outcome.UNDECIDED, state if is_check else "measuring", text)


def _gate_type(view: RolloutView, gate: str) -> GateType | None:
    """Return the type of the gate of that name; a user's gate may have the name of another type."""
    declared = view.record.policy.gates if view.record is not None else ()
    return next((GATES.get(spec.gate) for spec in declared if gate_name(spec) == gate), GATES.get(gate))


def finding(verdict: Verdict) -> str:
    """Return what a gate found, without the statistics."""
    words = _FINDINGS.get(verdict.gate)
    if words is None:
        return verdict.message
    try:
        return words(verdict) or verdict.message
    except KeyError:
        return verdict.message  # another version of segserve wrote other numbers


def _errors(verdict: Verdict) -> str:
    numbers = verdict.numbers
    requests, stable_requests = numbers["candidate_requests"], numbers["stable_requests"]
    if not (requests and stable_requests):
        return "its first requests are still being collected"
    failed, stable_failed = (
        100 * numbers["candidate_errors"] / requests,
        100 * numbers["stable_errors"] / stable_requests,
    )
    than = f"{number(stable_failed)} % of stable's {stable_requests:,.0f}"
    return f"{number(failed)} % of its {plural(requests, 'request')} failed, {than}"


def _latency(verdict: Verdict) -> str:
    numbers = verdict.numbers
    if not (numbers["candidate_requests"] and numbers["stable_requests"]):
        return "not counted yet: the first 20 s of a new server are slow"
    mine, stable = (
        [latency(numbers[f"{role}_{name}_ms"]) for name in ("p50", "p95")] for role in ("candidate", "stable")
    )
    return f"p50 {mine[0]} and p95 {mine[1]}, stable's {stable[0]} and {stable[1]}"


def _burn(verdict: Verdict) -> str:
    numbers = verdict.numbers
    rate, limit = min(numbers["long"], numbers["short"]), numbers["factor"]
    return f"burn rate {number(rate)}, at most {number(limit)}"


def _golden(verdict: Verdict) -> str:
    if "meanChange" not in verdict.numbers:
        return ""
    change, images = 100 * verdict.numbers["meanChange"], verdict.numbers["images"]
    compared = (
        "as good as" if abs(change) < 0.05 else f"{abs(change):.1f} points {'better' if change > 0 else 'worse'} than"
    )
    expected = "" if verdict.numbers.get("labelled", 1.0) else ", by their expected answers, not by labels"
    return f"{compared} stable on {plural(images, 'golden image')}{expected}"


_FINDINGS: Final[Mapping[str, Callable[[Verdict], str]]] = {
    "errorRate": _errors,
    "latency": _latency,
    "burnRate": _burn,
    "goldenQuality": _golden,
}


def slo_words(view: RolloutView) -> str:
    """Return what the SLO allows, and how much of that both revisions use; empty without a record."""
    if view.record is None:
        return ""
    slo = view.record.slo
    limits = [f"errors at most {number(slo.error_percent)} %"]
    limits += [f"p{100 * quantile:g} at most {latency(limit_ms)}" for quantile, limit_ms in slo.latencies]
    sides = () if view.standing.ended else view.latest_sides(SLO_S)
    burns = ((side.role, burn_rate(side, slo)) for side in sides)
    used = " and ".join(f"{role} {percent(burn)}" for role, burn in burns if burn is not None)
    return ", ".join(limits) + (f"; used in the last 5 min: {used} of what it allows" if used else "")


def burn_rate(side: Side, slo: Slo) -> float | None:
    """Return how many bad requests a revision has, as a multiple of those that the SLO allows; None without requests.

    Among several objectives, the one that is used most counts.
    """
    if not side.requests:
        return None
    rates = [side.errors / side.requests / (slo.error_percent / 100)] if slo.error_percent else []
    answered = sum((side.latencies or {}).values())
    for quantile, limit_ms in slo.latencies:
        first = int(np.searchsorted(EDGES_MS, limit_ms)) + 1
        slow = sum(count for index, count in (side.latencies or {}).items() if index >= first)
        rates.append(slow / answered / (1.0 - quantile) if answered else 0.0)
    return max(rates, default=0.0)


def asked(view: RolloutView) -> Iterator[tuple[str, float | None]]:
    """Yield what users requested in this rollout, newest first: words, and when (Unix time) if that is recorded."""
    record = view.record
    dated: dict[str, float] = {}
    for decision in record.decisions if record is not None else ():
        if decision.actor != SEGSERVE:
            dated[decision.actor] = decision.at_s
    about_this = [text for text in view.handled if RolloutRequest.of(text).revision == view.standing.revision]
    undated = [text for text in about_this if RolloutRequest.of(text).verb == "skip-gate"]
    for text in dict.fromkeys((*reversed(dated), *reversed(undated))):
        yield actor(text), dated.get(text)


def actor(text: str) -> str:
    """Return who decided, in words: `ada: promote`, or for an annotation without a user its token."""
    request = RolloutRequest.of(text)
    if not request.value:
        return text
    what = f"{request.verb} {request.gate}" if request.verb == "skip-gate" else request.verb
    return f"{request.user}: {what}" if request.user else f"annotation {request.value}: {what}"


def _by(view: RolloutView, verb: str, gate: str = "") -> str:
    """Return who requested the latest of these actions, as ` by ada`; empty if unknown."""
    requests = [RolloutRequest.of(text) for text in reversed(view.handled)]
    for request in requests:
        if request.verb == verb and request.revision == view.standing.revision and (not gate or request.gate == gate):
            return f" by {request.user}" if request.user else ""
    return ""


def uncounted(view: RolloutView) -> str:
    """Return why there are no counts of the present; empty if there are, or if the rollout has ended."""
    if view.standing.ended or not view.runs:
        return ""
    if not view.is_written:
        return f"the operator has written nothing for {span(view.now_s - view.written_s)}: `segserve doctor` checks it"
    return f"no requests for {span(view.quiet_s)}" if view.quiet_s >= STALE_S else ""


def steps(record: Record) -> tuple[int, ...]:
    """Return the weights of a rollout's steps; none if it goes over all at once."""
    return tuple(step.weight for step in record.policy.steps) if record.policy.strategy == "canary" else ()


def about(seconds: float) -> str:
    """Return an estimated time in one unit: `about 20 s`, `about 4 min`, `about 3 h`, `about 2 days`."""
    if seconds < 90:
        return f"about {max(5 * round(seconds / 5), 5)} s"
    for size, unit, most in ((60.0, "min", 90), (3600.0, "h", 36)):
        if seconds / size < most:
            return f"about {round(seconds / size)} {unit}"
    return f"about {round(seconds / 86400.0)} days"


def span(seconds: float) -> str:
    """Return a duration with its two largest units: `45s`, `12m30s`, `5h2m`, `3d4h`."""
    rest = round(max(seconds, 0.0))
    parts: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        amount, rest = divmod(rest, size)
        if amount or parts:
            parts.append(f"{amount}{unit}" if amount else "")
    return "".join(parts[:2]) or "0s"


def latency(milliseconds: float | None) -> str:
    """Return a latency with two digits: `23 ms`, `1.2 s`; `hung` if infinite."""
    if milliseconds is None:
        return "-"
    if math.isinf(milliseconds):
        return "hung"
    rounded = float(f"{milliseconds:.2g}")
    return f"{rounded:g} ms" if rounded < 1000 else f"{rounded / 1000:g} s"


def percent(share: float) -> str:
    """Return a share without needless digits: `6 %`, `240 %`."""
    return f"{float(f'{100 * share:.2g}'):g} %"


def number(value: float | None) -> str:
    """Return a number with two or three digits; `-` for None."""
    return "-" if value is None else f"{value:.2g}" if value < 1 else f"{value:.3g}"


def plural(count: float, noun: str) -> str:
    """Return a number with its noun: `1 request`, `1,680 requests`."""
    return f"{count:,.0f} {noun}{'' if count == 1 else 's'}"
