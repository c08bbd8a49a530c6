"""Captures of a model by its gateways: its `spec.capture`, with the groups and classes that are true now."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from segserve_builder.capture.rule import CapturedClass, CaptureReason, CaptureRule, RedactionRule
from segserve_builder.stages.decode_anchors import DecodeAnchors
from segserve_builder.stages.detection_queries import DetectionQueries
from segserve_builder.stages.instance_queries import InstanceQueries
from segserve_builder.stages.mask_nms import MaskNms
from segserve_builder.stages.panoptic_queries import PanopticQueries
from segserve_builder.stages.score_threshold import ScoreThreshold
from segserve_builder.stages.soft_nms import SoftNms
from segserve_builder.steps.postprocess import check_postprocess, postprocess_stages
from segserve_builder.steps.public_outputs import has_masks
from segserve_operator.core.models.drift import DRIFTING
from segserve_operator.core.models.roles import record_of

if TYPE_CHECKING:
    from segserve_builder.agent.protocol import AssignedModel
    from segserve_builder.steps.pipeline import Pipeline
    from segserve_operator.api.segmentation_model import Redact
    from segserve_operator.core.traffic import Share
    from segserve_operator.core.world.observed import ModelObserved, Observed


def capture_rule(
    model: ModelObserved, stable: AssignedModel, shares: Sequence[Share], world: Observed
) -> CaptureRule | None:
    """Return what gateways capture of a model whose first share is stable's; nothing if they cannot, or must not.

    While the spec cannot be read, and while the pixels to redact are unknown, there is no rule. Where drift is the
    only reason, the rule of a model that does not drift captures nothing, and former samples are still deleted in time.
    """
    capture = model.wanted.capture if model.wanted is not None else None
    if capture is None or world.pool is None or not world.pool.gateway.capture:
        return None
    drifts = any(each.type == DRIFTING and each.status == "True" for each in model.status.conditions)
    when = tuple(CaptureReason(each) for each in capture.when if drifts or each != "drift")
    waits = bool(capture.when) and not when
    redaction = None
    if capture.redact is not None:
        redaction = redaction_of(capture.redact, stable.pipeline, world)
        if redaction is None:
            return None
    others = [share for share in shares[1:] if share.endpoints]
    pipeline = stable.pipeline
    return CaptureRule(
        group=shares[0].group,
        revision=shares[0].revision,
        other=others[0].group if others else "",
        share=0.0 if waits else capture.share,
        per_minute=0 if waits else capture.per_minute,
        when=when,
        slices=capture.slices,
        redact=redaction,
        sink=capture.sink,
        retention_s=capture.retention.total_seconds(),
        classes=tuple(CapturedClass(id=item.id, name=item.name) for item in pipeline.classes),
        colour="GREY" if pipeline.input.colour == "GREY" else "RGB",
        dtype=pipeline.input.dtype,
        max_pixels=pipeline.input.max_pixels,
        orientation=pipeline.decode.orientation,
        # What stays of 16 bits meets the window when the sample is segmented again.
        window=pipeline.decode.window if pipeline.input.dtype == "UINT8" else None,
        threshold=_threshold(pipeline),
        as_rle=has_masks(check_postprocess(pipeline)) and "encoding" in pipeline.output.overrides,
    )


def redaction_of(redact: Redact, pipeline: Pipeline, world: Observed) -> RedactionRule | None:
    """Return what is redacted; None if a class or the other model is not there, or that answers prompts only."""
    group = ""
    if redact.model is not None:
        other = next((each for each in world.models if each.name == redact.model), None)
        stable = other.roles.stable if other is not None else None
        record = record_of(stable.revision, other, world) if other is not None and stable is not None else None
        if stable is None or record is None or record.pipeline.decoder is not None:
            return None
        pipeline, group = record.pipeline, stable.group
    ids = {item.name: item.id for item in pipeline.classes}
    if not set(redact.classes) <= ids.keys():
        return None
    return RedactionRule(
        ids=tuple(ids[name] for name in redact.classes),
        method=redact.method,
        model=redact.model or "",
        group=group,
    )


def _threshold(pipeline: Pipeline) -> float | None:
    """Return the score that an answer's objects need: the highest that a stage demands.

    A `threshold` of other stages is of something else, such as the probability of a mask's pixels.
    """
    demanded = list[float]()
    for stage in postprocess_stages(pipeline):
        match stage:
            case ScoreThreshold() | DetectionQueries() | InstanceQueries() | PanopticQueries():
                demanded.append(stage.threshold)
            case DecodeAnchors() | SoftNms() | MaskNms(method="matrix"):
                demanded.append(stage.score_threshold)
    return max(demanded, default=None)
