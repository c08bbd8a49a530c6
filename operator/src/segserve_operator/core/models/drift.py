"""Drift of models' images and answers: what servers count, the watch of each model, and its condition."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Final

from segserve_builder.agent.protocol import AnswerCounting, AssignedModel
from segserve_builder.steps.answer_metrics import IMAGE_HISTOGRAMS
from segserve_operator.api.drift import Drift
from segserve_operator.core.drift.watch import DriftedHistogram, DriftWatch, basis_of, restored, with_slices
from segserve_operator.core.world.observed import ModelObserved, Observed, ObservedCondition

DRIFTING: Final = "Drifting"
IMAGES_CHANGED: Final = "ImagesChanged"
ANSWERS_CHANGED: Final = "AnswersChanged"
CLASS_GONE: Final = "ClassGone"
REPORTS_PER_WINDOW: Final = 5
SHORTEST_INTERVAL_S: Final = 5.0
LONGEST_INTERVAL_S: Final = 60.0
_MAX_NAMED: Final = 3


def drift_of(model: ModelObserved) -> Drift | None:
    """Return what a model's spec says of drift, if it does."""
    return model.wanted.drift if model.wanted is not None else None


def with_counting(assigned: AssignedModel, group: str, model: ModelObserved, world: Observed) -> AssignedModel:
    """Return the assignment with the order to report counts, if the model is watched for drift."""
    drift = drift_of(model)
    if drift is None or group not in world.groups or not assigned.metrics.answers:
        return assigned
    interval_s = min(max(drift.window.total_seconds() / REPORTS_PER_WINDOW, SHORTEST_INTERVAL_S), LONGEST_INTERVAL_S)
    return assigned.model_copy(update={"counting": AnswerCounting(interval_s=interval_s)})


def drift_watches(models: Iterable[ModelObserved], world: Observed) -> dict[str, DriftWatch]:
    """Return the watches of all models with `spec.drift` by name, with what their servers report now.

    One whose spec cannot be read keeps its watch as it was.
    """
    watches: dict[str, DriftWatch] = {}
    for model in models:
        drift, stable = drift_of(model), model.roles.stable
        watch = world.drifts.get(model.name) or _stored(model, world.now_s)
        if model.wanted is None and watch is not None:
            watches[model.name] = watch
        if drift is None or stable is None:
            continue
        slices = _slices_of(model)
        if watch is None or watch.revision != stable.revision or watch.basis != basis_of(drift, slices):
            watch = DriftWatch.start(stable.revision, world.now_s, drift, slices)
        group = world.groups.get(stable.group)
        said = group.reports(stable.revision).said if group is not None else ()
        servers = {server.name: with_slices(report.answers) for server, report in said if report.answers is not None}
        watches[model.name] = watch.measured(servers, drift, world.now_s) if servers else watch
    return watches


def _slices_of(model: ModelObserved) -> tuple[str, ...]:
    return tuple(model.wanted.assigned.metrics.slices or ()) if model.wanted is not None else ()


def _stored(model: ModelObserved, now_s: float) -> DriftWatch | None:
    """Return the watch that the status has; what cannot be read is begun anew."""
    try:
        return restored(model.status.drift, now_s) if model.status.drift else None
    except ValueError:
        return None


def drift_condition(model: ModelObserved, watch: DriftWatch | None, world: Observed) -> ObservedCondition | None:
    """Return the condition `Drifting`, None for a model that is not watched. Its numbers are of when drift began.

    While the spec cannot be read, the condition stays.
    """
    drift = drift_of(model)
    if model.wanted is None:
        return next((each for each in model.status.conditions if each.type == DRIFTING), None)
    if drift is None:
        return None
    if watch is None:
        return ObservedCondition(DRIFTING, "Unknown", "NoStable", "no revision serves yet")
    if watch.found:
        texts = "; ".join(map(describe, watch.found[:_MAX_NAMED]))
        more = f"; and {len(watch.found) - _MAX_NAMED} more" if len(watch.found) > _MAX_NAMED else ""
        return ObservedCondition(
            DRIFTING, "True", reason_of(watch.found), f"since {_time(watch.since_s)}: {texts}{more}"
        )
    if watch.complete:
        text = f"images and answers are as those of the reference: {watch.revision} from {_time(watch.began_s)} on"
        if left_out := watch.without_reference(_slices_of(model)):
            text += f"; not compared, as there is no reference of them yet: slices {_listed(left_out)}"
        return ObservedCondition(DRIFTING, "False", "AsReference", text)
    until = _time(watch.began_s + drift.reference.window.duration.total_seconds())
    text = f"the reference is counted from {_time(watch.began_s)} to {until}, or until there are enough answers"
    return ObservedCondition(DRIFTING, "Unknown", "CountingReference", text)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return f"{', '.join(sorted(names)[:_MAX_NAMED])}{more}"


def says_drift(model: ModelObserved, watch: DriftWatch | None, world: Observed) -> bool:
    """Return whether a model's status has what is stored of its watch, and the condition."""
    if drift_of(model) is None or watch is None:
        return True
    return model.status.drift == watch.stored and drift_condition(model, watch, world) in model.status.conditions


def reason_of(found: Iterable[DriftedHistogram]) -> str:
    """Return the reason of the condition: a class that is gone, else the images if they changed, else the answers."""
    found = tuple(found)
    if any(each.is_gone for each in found):
        return CLASS_GONE
    return (
        IMAGES_CHANGED
        if any(each.histogram.partition(":")[0] in IMAGE_HISTOGRAMS for each in found)
        else ANSWERS_CHANGED
    )


def describe(histogram: DriftedHistogram) -> str:
    """Return a drifted histogram with its numbers."""
    name, _, of_class = histogram.histogram.partition(":")
    subject = f"{name} of {of_class}" if of_class else name
    subject += f" in slice {histogram.slice}" if histogram.slice else ""
    if name in ("classShare", "emptyAnswers"):
        return f"{subject} {100 * histogram.reference[1]:.3g} % -> {100 * histogram.recent[1]:.3g} % of answers"
    return f"{subject}: PSI {histogram.psi:.2f}, KL {histogram.kl:.2f}"


def _time(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
