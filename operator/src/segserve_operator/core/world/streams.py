"""Models that keep the state of streams on their servers, and pools that cannot keep a stream on one of them."""

from __future__ import annotations

from typing import Final

from segserve_builder.stages.temporal_smoothing import TemporalSmoothing
from segserve_builder.steps.pipeline import Pipeline, named_postprocess
from segserve_operator.api.rollout_policy import RolloutPolicy
from segserve_operator.core.failure import FailureReason
from segserve_operator.core.world.observed import PoolObserved

STREAMS_SPLIT: Final = "StreamsNeedAffinity"


def split_streams(pipeline: Pipeline, policy: RolloutPolicy | None, pool: PoolObserved | None) -> FailureReason | None:
    """Return why frames of one stream would reach several servers, each with a part of the stream's state.

    That is so if the pool's gateway has no ids, and there are several servers, or canaries that divide requests.
    """
    if pool is None or pool.gateway.session_affinity:
        return None
    divided = policy is not None and policy.strategy == "canary"
    if (pool.replicas <= 1 and not divided) or not keeps_streams(pipeline):
        return None
    why = f"the pool has {pool.replicas} servers" if pool.replicas > 1 else "a canary divides requests"
    return FailureReason(
        STREAMS_SPLIT,
        f"temporalSmoothing keeps a stream's state on one server, and {why}: set spec.gateway.sessionAffinity of the "
        "pool, which sends the frames of a stream to one server",
    )


def keeps_streams(pipeline: Pipeline) -> bool:
    """Return whether a stage of the pipeline keeps the state of streams."""
    return any(isinstance(stage, TemporalSmoothing) for _, stage in named_postprocess(pipeline))
