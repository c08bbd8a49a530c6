"""The rollouts of a platform as the page shows them: in words, with evidence, decisions and what can be done."""

from __future__ import annotations

import io
import math
from base64 import b64encode
from collections.abc import Iterator
from typing import Final

from segserve.rendering.display import printable
from segserve_common.errors import ControlError, SegserveError
from segserve_operator.core.gates.base import Outcome
from segserve_operator.core.rollout.engine import MAX_QUARANTINES, Wait
from segserve_operator.core.rollout.forecast import Forecast
from segserve_operator.core.rollout.phases import Phase
from segserve_operator.core.rollout.record import Record
from segserve_platform.platforms.port import Json, Platform
from segserve_platform.platforms.rollouts import words
from segserve_platform.platforms.rollouts.actions import SKIP_GATE, possible_actions, skippable_gates
from segserve_platform.platforms.rollouts.documents import forecast_of, stamp
from segserve_platform.platforms.rollouts.rollout_view import RolloutView, Side, is_written, read_rollout, record_of
from segserve_platform.platforms.rollouts.steps import deadline, steps
from segserve_platform.platforms.rollouts.words import span
from segserve_ui.models import StoredModels

VERBS: Final = ("promote", "pause", "resume", "abort", "retry", "rollback", SKIP_GATE)
DECISIONS: Final = 30
EARLIER: Final = 5
TONES: Final = {
    Phase.QUARANTINED: "bad",
    Phase.BAKING: "good",
    Phase.SUCCEEDED: "good",
    Phase.ROLLED_BACK: "bad",
    Phase.CANCELLED: "quiet",
    Phase.JUDGED: "quiet",
}
_OUTCOMES: Final = {Outcome.PASS: "good", Outcome.BREACH: "bad", Outcome.UNDECIDED: "moving", None: "quiet"}


class RolloutsOverview:
    """Describes the latest rollout of each model."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._views: dict[str, RolloutView] = {}

    def describe(self, stored: StoredModels) -> Json:
        """Return `rollouts`, in progress first, and the models `without` one; raises as `Platform.rollouts`."""
        found, without = [], []
        earlier = self._earlier()
        for model in stored.manifests:
            name = model["metadata"]["name"]
            view = read_rollout(self._platform, model, self._views.get(name))
            if view is None:
                without.append({"model": name, "declared": bool(model["spec"].get("rollout")),
                                "actions": possible_actions(model)})  # fmt: skip
                continue
            self._views[name] = view
            forecast = forecast_of(view)
            latest = describe_rollout(view, forecast)
            former = [each for each in earlier if each["model"] == name and each["name"] != view.standing.rollout]
            possible = {"actions": _actions(model, view, forecast), "skippable": skippable_gates(model)}
            if not stored.runs:
                possible = {"actions": [], "skippable": []}
            found.append(latest | possible | {"earlier": former[:EARLIER]})
        found.sort(key=lambda each: (each["ended"], each["model"]))
        return {"rollouts": found, "without": without}

    def _earlier(self) -> list[Json]:
        found = [record_of(each) for each in self._platform.rollouts() if is_written(each)]
        found.sort(key=lambda record: -float(record.progress.started_s))
        return [
            {
                "name": record.name,
                "model": record.model,
                "revision": record.candidate,
                "phase": Phase(int(record.progress.phase)).label,
                "startedAt": stamp(float(record.progress.started_s)),
            }
            for record in found
        ]


def draw_pairs(platform: Platform, model: str) -> Json:
    """Return the `pairs` of answers that differ most in Shadow: `figures` as lines, and `picture`, a JPEG in base64.

    Nothing of them is kept: they are of callers' images. `compared` is the number of pairs that they were chosen from.
    Raises `NotFoundError` without pairs, and `ControlError` if the platform cannot show them.
    """
    try:
        from segserve_platform.evaluation.sheets import draw_pair, fetch_sheet, figures_of
    except ImportError as error:
        raise ControlError("drawing answers needs the extra local: pip install 'segserve[local]'") from error
    sheet, classes = fetch_sheet(platform, model)
    names, pairs = {known.id: known.name for known in classes}, list[Json]()
    for pair in sheet.pairs:
        figures, buffer = figures_of(pair, names), io.BytesIO()
        try:
            draw_pair(sheet, pair, classes).save(buffer, "JPEG", quality=90)
        except (SegserveError, ValueError) as error:
            figures.append(f"not drawn: {printable(str(error), 200)}")
        pairs.append({"figures": figures, "picture": b64encode(buffer.getvalue()).decode()})
    return {"compared": sheet.compared, "pairs": pairs}


def _actions(model: Json, view: RolloutView, outlook: Forecast | None) -> list[str]:
    """Return the actions that make sense now: a rollout is resumed only if it waits for a person."""
    awaited = view.standing.paused or (outlook is not None and outlook.wait is Wait.PERSON)
    possible = possible_actions(model)
    return [verb for verb in VERBS if verb in possible and (verb != "resume" or awaited)]


def describe_rollout(view: RolloutView, outlook: Forecast | None) -> Json:
    """Return a rollout in words: tones are good, moving, bad or quiet, shares are 0 to 1."""
    standing, record = view.standing, view.record
    content: Json = {
        "model": view.model,
        "rollout": standing.rollout,
        "revision": standing.revision,
        "phase": standing.phase.label,
        "tone": TONES.get(standing.phase, "moving"),
        "ended": view.over,
        "paused": standing.paused,
        "behind": view.behind,
        "headline": words.headline(view, outlook).removeprefix(f"{view.model}: "),
        "weight": view.weight,
        "history": view.is_history,
        "previous": view.present.revisions.get("previous"),
        "stable": view.present.revisions.get("stable"),
        "live": view.is_live,
        "startedAt": stamp(standing.started_s),
        "sides": [_side(side, view) for side in view.present_sides()],
        "compares": record is not None and record.policy.shadow is not None,
        "steps": [],
        "gates": [],
        "decisions": [],
        "facts": list(_facts(view, outlook)),
    }
    if record is None:
        return content
    found = [{"name": each.name, "state": each.state, "text": each.text} for each in steps(view, record, outlook)]
    return content | {
        "steps": found,
        "gates": list(_gates(view, record, outlook)),
        "decisions": [
            {
                "at": stamp(each.at_s),
                "ago": span(view.now_s - each.at_s),
                "phase": each.phase.label,
                "tone": TONES.get(each.phase, "moving"),
                "weight": each.weight,
                "by": "" if each.actor in ("", words.SEGSERVE) else words.actor(each.actor),
                "text": each.message or each.reason or each.signal,
            }
            for each in record.decisions[::-1][:DECISIONS]
        ],
    }


def _side(side: Side, view: RolloutView) -> Json:
    counts = side.requests_per_second
    quantiles = {f"p{share * 100:.0f}": words.latency(side.quantile_ms(share)) for share in (0.5, 0.95)}
    allowed = view.record.slo.error_percent if view.record is not None else math.inf
    return {
        "role": side.role,
        "revision": side.revision,
        "weight": side.weight,
        "rate": "-" if counts is None else f"{words.number(counts)}/s",
        "errors": "-" if side.error_percent is None else f"{words.number(side.error_percent)} %",
        "broken": (side.error_percent or 0.0) > allowed,
        **quantiles,
    }


def _gates(view: RolloutView, record: Record, outlook: Forecast | None) -> Iterator[Json]:
    verdicts = {verdict.gate: verdict for verdict in record.verdicts}
    for gate in words.gates(view, outlook):
        verdict = verdicts.get(gate.gate)
        evidence = None if verdict is None or not math.isfinite(verdict.progress) else verdict.progress
        yield {
            "gate": gate.gate,
            "state": gate.state,
            "tone": _OUTCOMES[gate.outcome],
            "text": gate.text,
            "evidence": None if evidence is None else min(max(evidence, 0.0), 1.0),
            "statistics": "" if verdict is None else verdict.message,
        }


def _facts(view: RolloutView, outlook: Forecast | None) -> Iterator[Json]:
    """Yield further facts: what it waits for, the deadline, the SLO, and who requested what."""
    standing, record = view.standing, view.record
    if not standing.ended and (missing := words.awaited(view, outlook)):
        yield {"name": "Waits for", "text": missing}
    if record is not None and not standing.ended:
        yield {"name": "Deadline", "text": deadline(view, record)}
    if slo := words.slo_words(view):
        yield {"name": "SLO", "text": f"{view.slo or 'default'}: {slo}"}
    if standing.ended:
        yield {"name": "Took", "text": span(standing.since_s - standing.started_s)}
    if requests := list(words.asked(view)):
        yield {"name": "Requested by", "text": "; ".join(text for text, _ in requests)}
    if missing := words.uncounted(view):
        yield {"name": "Counted", "text": missing}
    if standing.quarantines:
        yield {"name": "Quarantines", "text": f"{standing.quarantines} of {MAX_QUARANTINES}"}
