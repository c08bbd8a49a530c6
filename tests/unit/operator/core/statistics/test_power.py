"""The power preview."""

from __future__ import annotations

import math
import re

from segserve_operator.api.rollout_policy import (
    ErrorRateGate,
    LatencyGate,
    RolloutPolicy,
    RolloutStep,
    Shadow,
    SlicesGate,
    Slo,
)
from segserve_operator.core.rollout.power import Preview, judged_slices, preview

POLICY = RolloutPolicy(pace="steps", steps=(RolloutStep(weight=25), RolloutStep(weight=50)))


def seen(found: Preview) -> dict[str, float]:
    return {f"{row.what} {row.size}": row.seconds for row in found.rows}


def test_more_requests_see_more_and_large_regressions_are_seen_sooner() -> None:
    few, many = preview(POLICY, Slo(), 1.0, 4.0), preview(POLICY, Slo(), 100.0, 4.0)
    assert math.isinf(seen(few)["error rate 1 point higher"])
    assert seen(many)["error rate 20 points higher"] <= seen(many)["error rate 5 points higher"] < 120
    assert all(seen(many)[row] <= seconds for row, seconds in seen(few).items())


def test_the_same_question_has_the_same_answer() -> None:
    assert preview(POLICY, Slo(), 10.0, 2.0) == preview(POLICY, Slo(), 10.0, 2.0)


def test_it_is_said_in_words() -> None:
    text = preview(POLICY, Slo(), 10.0, 2.0).text()
    assert text.startswith("2 min at 10 requests/s:")
    assert re.search(r"\n  error rate 1 point higher: may be missed: about \d+ % of rollouts detect it\n", text)
    assert re.search(r"\n  error rate 20 points higher: detected in about \d+ s\n", text)
    assert "latency 1.5 times as high: " in text
    assert " pp" not in text


def test_the_smallest_slice_that_shadow_can_judge_is_smaller_with_more_pairs_and_larger_faults() -> None:
    gates = (ErrorRateGate(), LatencyGate(), SlicesGate())
    policy = RolloutPolicy(shadow=Shadow(percent=50, max_requests_per_second=5.0), gates=gates)

    slow, fast = (judged_slices(policy, Slo(), rate, 0.002) for rate in (1.0, 10.0))

    assert [each.more for each in fast] == [0.1, 0.5, 1.0]
    half, whole = fast[1], fast[2]
    assert half.share is not None
    assert whole.share is not None
    assert whole.share < half.share
    assert slow[2].share is not None
    assert slow[2].share > whole.share
    assert (
        whole.text() == f"slice of which all its requests fail: found if it has {100 * whole.share:g} % of all requests"
    )
    assert judged_slices(policy.model_copy(update={"gates": gates[:2]}), Slo(), 10.0, 0.002) == ()
    assert judged_slices(policy.model_copy(update={"shadow": None}), Slo(), 10.0, 0.002) == ()
