"""The power preview."""

from __future__ import annotations

import math

from segserve_operator.api.rollout_policy import RolloutPolicy, RolloutStep, Slo
from segserve_operator.core.rollout.power import Preview, preview

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
