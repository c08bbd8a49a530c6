"""A cascade's rule: the score of a light answer, and what of a pipeline with two tiers must fit.

Scores reach from 0 to 1, and the heavy network is called if a score is at least the threshold. confidence is one less
the mean probability of what was answered; area is one less the side of the smallest region, were it a square, as a
share of the image's; class is the score of the surest region of the cascade's classes, 1 where that is unknown. An
answer that shows nothing has no confidence or areas: its score is 1. In a map of classes each class is one region.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from segserve_builder.errors import PipelineError
from segserve_builder.steps.answer_metrics import TIERS, AnswerContents
from segserve_builder.steps.out_of_distribution import score_of
from segserve_builder.steps.postprocess import check_postprocess
from segserve_builder.steps.preprocess_rules import check_preprocess
from segserve_builder.steps.streams import smoothing_of
from segserve_builder.values import Candidates, KeypointDetections

if TYPE_CHECKING:
    from segserve_builder.steps.answer_metrics import Answer
    from segserve_builder.steps.pipeline import Cascade, Pipeline
    from segserve_builder.values import ResizeTransform

LIGHT, HEAVY = TIERS
TIER: Final = "cascade"
"""Parameter by which an agent calls one network alone."""


def light_score(cascade: Cascade, answer: Answer, pipeline: Pipeline, image: ResizeTransform) -> float:
    """Return the score of an answer that the light network's `pipeline` gave to an image."""
    if cascade.when == "confidence":
        doubt = score_of("maxSoftmax", answer, None)
        return 1.0 if doubt is None else min(max(doubt, 0.0), 1.0)
    contents = AnswerContents.of(answer, {}, pipeline)
    if cascade.when == "class":
        scores = contents.scores[[int(number) in cascade.classes for number in contents.classes]]
        surest = float(scores.max(initial=0.0))
        return 1.0 if math.isnan(surest) else min(surest, 1.0)
    areas: Any = contents.areas
    if isinstance(answer, Candidates | KeypointDetections):
        areas = (answer.boxes[:, 2:] - answer.boxes[:, :2]).clip(0).prod(axis=1)
    if not len(areas):
        return 1.0
    return 1.0 - min(math.sqrt(float(areas.min()) / (image.height * image.width)), 1.0)


def check_cascade(pipeline: Pipeline) -> None:
    """Check that the light network's answers are of the heavy one's kind, and that the rule can judge them.

    Raises `PipelineError`, and `UnknownNameError` for the family.
    """
    cascade, light = pipeline.cascade, pipeline.light
    if cascade is None or light is None:
        return
    try:
        check_preprocess(light.preprocess, light.input)
        task = check_postprocess(light)
    except PipelineError as error:
        raise PipelineError(f"cascade.light: {error}") from error
    if task != (expected := check_postprocess(pipeline)):
        raise PipelineError(f"cascade.light gives answers of task {task}; those of the model are of task {expected}")
    if (own := light.decode.window) != (window := pipeline.decode.window):
        raise PipelineError(f"cascade.light has the window {own} of decode; that of the model is {window}")
    if smoothing_of(pipeline) is not None or smoothing_of(light) is not None:
        raise PipelineError("cascade: a model with temporalSmoothing has one network; its frames depend on each other")
    if pipeline.out_of_distribution is not None:
        raise PipelineError("cascade: outOfDistribution judges the answers of one network; use one of the two")
    known = sorted(item.id for item in pipeline.classes)
    if unknown := sorted(set(cascade.classes) - set(known)):
        raise PipelineError(f"cascade.classes has {unknown}; the model's classes have the ids {known}")
    if (cascade.when == "class") is not bool(cascade.classes):
        expects = "needs classes" if cascade.when == "class" else "takes no classes"
        raise PipelineError(f"cascade: when: {cascade.when} {expects}")
