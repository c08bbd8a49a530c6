"""The gate `slices` in memory: a candidate that is worse for one camera is rolled back in Shadow, and named."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta

from fakes.rollout_world import FIRST, POLICY, Rollout
from segserve_operator.api.rollout_policy import ErrorRateGate, LatencyGate, RolloutPolicy, Shadow, SlicesGate
from segserve_operator.core.rollout.counters import SliceCounts
from segserve_operator.core.rollout.phases import Phase
from segserve_operator.core.rollout.replay import replay, what_if

CAMERAS = 5
SHADOW = Shadow(percent=20, max_requests_per_second=20, min_requests=100, max_duration=timedelta(minutes=2))


@dataclass
class LabelledRollout(Rollout):
    """Requests of some cameras, each of which has a pair a second; the candidate fails for one that is `broken`."""

    labelled: bool = True
    broken: int | None = None
    seconds: int = 0

    def _copies(self) -> None:
        super()._copies()
        pairs = self.world.traffic.pairs.get("coins")
        if self.labelled and pairs is not None and self.world.traffic.mirror("coins") is not None:
            self.seconds += 1
            good, bad = (self.seconds, 0, 0, 0), (0, self.seconds, 0, 0)
            names = {number: f"camera-{number}" for number in range(CAMERAS)}
            slices = tuple(SliceCounts(name, bad if at == self.broken else good) for at, name in names.items())
            self.world.traffic.pairs["coins"] = replace(pairs, slices=slices)


def policy() -> RolloutPolicy:
    return POLICY.model_copy(update={"shadow": SHADOW, "gates": (ErrorRateGate(), LatencyGate(), SlicesGate())})


async def test_a_candidate_that_fails_for_one_camera_is_rolled_back_in_shadow_and_the_camera_is_named() -> None:
    rollout = LabelledRollout(broken=3)
    await rollout.begin(policy())
    ended = await rollout.end()

    assert (ended.phase, ended.reason) == (Phase.ROLLED_BACK, "SliceWorse")
    assert ended.message.startswith("worse for camera-3: the candidate alone failed on ")
    assert rollout.served == {FIRST.revision}
    assert [each.sequence for each in replay(rollout.record) if not each.same] == []


async def test_a_record_without_the_gate_shows_what_the_gate_would_have_decided() -> None:
    rollout = LabelledRollout(broken=3)
    long = SHADOW.model_copy(update={"min_requests": 10_000, "max_duration": timedelta(minutes=10)})
    await rollout.begin(policy().model_copy(update={"shadow": long, "gates": (ErrorRateGate(), LatencyGate())}))
    ended = await rollout.end()

    assert ended.phase is Phase.SUCCEEDED
    assert [each.phase for each in what_if(rollout.record, policy())] == [Phase.SHADOW, Phase.ROLLED_BACK]
