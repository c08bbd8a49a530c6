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
    assert math.isinf(seen(few)["errors +1 pp"])
    assert seen(many)["errors +20 pp"] <= seen(many)["errors +5 pp"] < 120
    assert all(seen(many)[row] <= seconds for row, seconds in seen(few).items())


def test_the_same_question_has_the_same_answer() -> None:
    assert preview(POLICY, Slo(), 10.0, 2.0) == preview(POLICY, Slo(), 10.0, 2.0)


def test_it_is_said_in_words() -> None:
    text = preview(POLICY, Slo(), 10.0, 2.0).text()
    assert text.startswith("2 min at 10 requests/s:")
    assert "cannot be sure to see +1 pp" in text
