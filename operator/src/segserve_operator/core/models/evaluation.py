"""Continuous evaluation: what is published of the serving revision's quality, and the condition Evaluated."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

from segserve_operator.api.evaluation import (
    EVALUATION_ANNOTATION,
    MAX_EVALUATION_LENGTH,
    Evaluation,
)
from segserve_operator.core.world.observed import ModelObserved, ObservedCondition

EVALUATED: Final = "Evaluated"


def read_evaluation(annotations: Mapping[str, str]) -> Evaluation | None:
    """Return the evaluation among a model's annotations, None if there is none; raises `ValueError`."""
    text = annotations.get(EVALUATION_ANNOTATION)
    if text is None:
        return None
    if len(text) > MAX_EVALUATION_LENGTH:
        raise ValueError(f"it has {len(text)} characters; allowed are {MAX_EVALUATION_LENGTH}")
    try:
        plain = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return Evaluation.model_validate(plain)


def current_evaluation(annotations: Mapping[str, str], stable: str | None) -> Evaluation | None:
    """Return the evaluation of the stable revision; None if that was not evaluated, or it cannot be read."""
    try:
        evaluation = read_evaluation(annotations)
    except ValueError:
        return None
    return evaluation if evaluation is not None and evaluation.revision == stable else None


def evaluation_condition(model: ModelObserved) -> ObservedCondition | None:
    """Return the condition `Evaluated`, None for a model of which no evaluation was ever published."""
    try:
        evaluation = read_evaluation(model.annotations)
    except ValueError as error:
        problem = " ".join(str(error).split())
        text = f"the annotation {EVALUATION_ANNOTATION} is no evaluation: {problem}"
        return ObservedCondition(EVALUATED, "False", "Unreadable", text)
    if evaluation is None:
        return None
    stable = model.roles.stable
    if stable is None or stable.revision != evaluation.revision:
        serves = "no revision serves" if stable is None else f"{stable.revision} serves"
        text = (
            f"{serves}, and the latest evaluation is of {evaluation.revision}: "
            f"`segserve samples evaluate {model.name} --publish` measures what serves"
        )
        return ObservedCondition(EVALUATED, "False", "OtherRevision", text)
    return ObservedCondition(EVALUATED, "True", "Measured", _describe(evaluation, model))


def _describe(evaluation: Evaluation, model: ModelObserved) -> str:
    metrics = "".join(f", {name} {estimate}" for name, estimate in evaluation.metrics.items())
    at = evaluation.evaluated_at.isoformat(timespec="seconds").replace("+00:00", "Z")
    return (
        f"score {evaluation.score}{metrics} on {evaluation.images} images of the set "
        f"{evaluation.golden_sha256[:10]}, at {at}{f' by {evaluation.evaluated_by}' if evaluation.evaluated_by else ''}"
    )
