"""Gates that judge checks: the verdict on each kind of result."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from segserve_operator.api.rollout_policy import GoldenQualityGate, PromqlGate, ResourceGate, RolloutPolicy, WebhookGate
from segserve_operator.core.advance.verdicts.probe import probe_outcome
from segserve_operator.core.gates import GATES
from segserve_operator.core.gates.base import Outcome
from segserve_operator.core.gates.checks import (
    CheckResult,
    FailedCheck,
    ProbeCounts,
    QueryRange,
    ResourceSample,
    ResourceSamples,
    Scores,
    ServiceStatus,
)

POLICY = RolloutPolicy()
LEVEL = 0.0025
WEBHOOK = WebhookGate(name="own", url="http://example.org/")
PROMQL = PromqlGate(name="errors", address="http://prometheus:9090", query="up", min=0.5, max=1.0)


def verdict(spec: Any, found: CheckResult) -> Any:
    return GATES[spec.gate].judge(spec, found, POLICY, LEVEL)


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (200, Outcome.PASS),
        (204, Outcome.PASS),
        (302, Outcome.UNDECIDED),
        (404, Outcome.BREACH),
        (503, Outcome.UNDECIDED),
    ],
)
def test_the_status_of_a_users_service_decides(status: int, outcome: Outcome) -> None:
    seen = verdict(WEBHOOK, ServiceStatus(status))

    assert (seen.outcome, seen.gate) == (outcome, "own")
    assert str(status) in seen.message


@pytest.mark.parametrize(
    ("values", "outcome"),
    [
        ((0.5, 1.0), Outcome.PASS),
        ((0.4, 0.9), Outcome.BREACH),
        ((0.6, 1.1), Outcome.BREACH),
    ],
)
def test_every_number_of_a_query_has_to_be_within_its_bounds(values: tuple[float, float], outcome: Outcome) -> None:
    seen = verdict(PROMQL, QueryRange(*values))

    assert (seen.outcome, seen.gate) == (outcome, "errors")
    assert seen.message == f"result {values[0]:g} to {values[1]:g}, min 0.5, max 1"


def test_a_query_may_have_one_bound() -> None:
    least = PromqlGate(name="errors", address="http://prometheus:9090", query="up", min=0.5)

    assert verdict(least, QueryRange(0.5, 1e9)).outcome is Outcome.PASS
    assert verdict(least, QueryRange(0.4, 0.4)).message == "result 0.4, min 0.5"


@pytest.mark.parametrize("spec", [WEBHOOK, PROMQL])
def test_no_answer_of_a_users_service_is_undecided(spec: Any) -> None:
    assert verdict(spec, Scores()).reason == "NoAnswer"
    assert verdict(spec, FailedCheck("it is away")).message == "it is away"


# Golden images


def scores(candidate: float, stable: float, images: int = 200, **more: Any) -> Scores:
    noise = [0.02 * math.sin(7.0 * number) for number in range(images)]
    paired = tuple((candidate + one, stable + one * 0.9) for one in noise)
    return Scores(paired, **{"means": {"iou": (candidate, stable)}, **more})


def golden(found: Scores, **spec: Any) -> Any:
    return verdict(GoldenQualityGate(**spec), found)


def test_equal_quality_passes() -> None:
    assert golden(scores(0.9, 0.9)).outcome is Outcome.PASS


def test_a_proved_drop_is_a_breach_with_its_numbers() -> None:
    seen = golden(scores(0.85, 0.9, images=100))

    assert (seen.outcome, seen.reason) == (Outcome.BREACH, "WorseThanStable")
    assert seen.numbers["meanChange"] == pytest.approx(-0.05, abs=0.002)
    assert seen.numbers["evidence"] >= seen.numbers["bound"] == pytest.approx(math.log(1 / LEVEL))


def test_a_drop_that_few_images_cannot_prove_is_undecided() -> None:
    seen = golden(scores(0.87, 0.9, images=8))

    assert (seen.outcome, seen.reason) == (Outcome.UNDECIDED, "LooksWorse")
    assert 0 <= seen.progress < 1


def sliced(drop: float, images: int = 30, slices: int = 10) -> Scores:
    """Return scores of as many images of each site, of which the candidate is worse on site-3 alone."""
    found = scores(0.9, 0.9, images=images * slices)
    names = tuple(f"site-{number % slices}" for number in range(images * slices))
    paired = tuple(
        (own - drop if name == "site-3" else own, other) for name, (own, other) in zip(names, found.paired, strict=True)
    )
    return replace(found, paired=paired, slices=names)


def test_a_drop_on_the_images_of_one_site_is_a_breach_and_the_site_is_named() -> None:
    assert golden(replace(sliced(0.09), slices=())).outcome is Outcome.PASS

    seen = golden(sliced(0.09))

    assert (seen.outcome, seen.reason) == (Outcome.BREACH, "WorseInSlice")
    assert seen.message.startswith("mean quality of slice 'site-3' changes by -0.0899 on 30 images")
    assert seen.numbers["slice.site-3.stable"] - seen.numbers["slice.site-3"] == pytest.approx(0.09, abs=0.01)


def test_each_site_is_reported_and_a_small_drop_on_few_of_its_images_is_undecided() -> None:
    seen = golden(sliced(0.05, images=8))

    assert (seen.outcome, seen.reason) == (Outcome.UNDECIDED, "LooksWorse")
    assert "'site-3'" in seen.message
    assert {f"slice.site-{number}" for number in range(10)} <= seen.numbers.keys()


def test_sites_that_are_as_good_pass_and_one_with_two_images_is_not_judged() -> None:
    found = sliced(0.0)
    few = replace(found, slices=("rare", "rare", *found.slices[2:]))

    assert golden(few).outcome is Outcome.PASS
    assert "slice.rare" not in golden(few).numbers


def test_a_drop_within_tolerance_passes() -> None:
    assert golden(scores(0.895, 0.9)).outcome is Outcome.PASS


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ({"min_iou": 0.95}, "iou is 0.900; at least 0.950"),
        ({"min_boundary_iou": 0.8}, "boundaryIou is 0.700; at least 0.800"),
        ({"min_recall": 0.9}, "recall is 0.800"),
        ({"min_ap": 0.6}, "ap is 0.500"),
        ({"min_class_iou": 0.5}, "class 'sign' is 0.400"),
    ],
)
def test_a_floor_is_a_plain_rule_even_on_one_image(spec: dict[str, float], named: str) -> None:
    found = scores(
        0.9,
        0.9,
        images=1,
        means={"iou": (0.9, 0.9), "boundaryIou": (0.7, 0.7), "recall": (0.8, 0.8), "ap": (0.5, 0.5)},
        classes={"road": (0.9, 0.9), "sign": (0.4, 0.4)},
    )

    seen = golden(found, **spec)

    assert (seen.outcome, seen.reason) == (Outcome.BREACH, "BelowFloor")
    assert named in seen.message


def test_scores_that_are_too_far_from_the_truth_are_a_breach() -> None:
    found = scores(0.9, 0.9, means={"iou": (0.9, 0.9), "ece": (0.21, 0.05)})

    seen = golden(found, max_calibration_error=0.2)

    assert (seen.outcome, seen.reason) == (Outcome.BREACH, "Miscalibrated")
    assert "ece is 0.210; at most 0.200 is allowed" in seen.message
    assert golden(found, max_calibration_error=0.25).outcome is Outcome.PASS


def test_a_calibration_that_cannot_be_measured_is_undecided() -> None:
    seen = golden(scores(0.9, 0.9), max_calibration_error=0.2)

    assert (seen.outcome, seen.reason) == (Outcome.UNDECIDED, "NotMeasured")


def test_a_lost_rare_class_is_a_breach_though_the_mean_is_well() -> None:
    seen = golden(scores(0.9, 0.9, classes={"road": (0.95, 0.95), "sign": (0.0, 0.7)}))

    assert (seen.outcome, seen.reason) == (Outcome.BREACH, "ClassLost")
    assert "'sign'" in seen.message
    assert seen.numbers["class.sign.stable"] == 0.7


def test_a_class_that_stable_never_found_cannot_be_lost() -> None:
    assert golden(scores(0.9, 0.9, classes={"sign": (0.0, 0.0), "car": (0.5, math.nan)})).outcome is Outcome.PASS


def test_a_floor_of_what_cannot_be_measured_is_undecided() -> None:
    seen = golden(scores(0.9, 0.9), min_ap=0.5)

    assert (seen.outcome, seen.reason) == (Outcome.UNDECIDED, "NotMeasured")


def test_without_stable_floors_alone_judge() -> None:
    found = Scores(means={"iou": (0.8, math.nan)})

    assert golden(found).outcome is Outcome.PASS
    assert golden(found, min_iou=0.9).outcome is Outcome.BREACH


def test_a_verdict_says_where_expected_answers_stood_in_for_labels() -> None:
    assert "not labels" in golden(scores(0.9, 0.9, labelled=False)).message
    assert "not labels" not in golden(scores(0.9, 0.9)).message


def test_answers_of_the_candidate_itself_are_no_evidence_of_its_quality() -> None:
    own = replace(scores(0.9, 0.9, labelled=False), paired=tuple((1.0, stable) for stable in (0.6, 0.7, 1.0)))
    seen = golden(own)

    assert (seen.outcome, seen.reason) == (Outcome.UNDECIDED, "OwnAnswers")
    assert golden(replace(own, labelled=True)).outcome is Outcome.PASS
    assert golden(replace(own, paired=((1.0, 1.0),) * 3)).outcome is Outcome.PASS
    assert golden(replace(own, paired=((0.99, 0.6),) * 3)).outcome is Outcome.PASS


def test_a_verdict_says_what_is_beyond_the_limits_of_reports() -> None:
    message = golden(scores(0.9, 0.9, images_left_out=44, classes_left_out=3)).message

    assert "3 further classes count in the means and are not judged each" in message
    assert "44 further images count in the means alone" in message
    assert "further" not in golden(scores(0.9, 0.9)).message
    reached = "2 answers reached the limit (maxDetections of output or a stage)"
    assert reached in golden(scores(0.9, 0.9, at_limit=2)).message
    assert "limit" not in golden(scores(0.9, 0.9)).message


# Servers

GIB = 2.0**30


def samples(*memory_gib: float, restarts: int = 0, queued_s: float = 0.0) -> tuple[ResourceSample, ...]:
    last = len(memory_gib) - 1
    return tuple(
        ResourceSample(
            {"a": used * GIB}, {"a": restarts if index == last else 0}, queued_s=queued_s * index, requests=10.0 * index
        )
        for index, used in enumerate(memory_gib)
    )


def resource(found: tuple[ResourceSample, ...], **spec: Any) -> Any:
    return verdict(ResourceGate(**spec), ResourceSamples(found))


def test_steady_servers_pass() -> None:
    seen = resource(samples(1, 1.1, 1.1, 1.2))

    assert seen.outcome is Outcome.PASS
    assert seen.numbers["memoryGrowthPercent"] == pytest.approx(10)


def test_one_look_shows_no_growth() -> None:
    assert resource(samples(1)).outcome is Outcome.UNDECIDED


def test_memory_that_stays_too_large_for_three_looks_is_a_breach() -> None:
    assert resource(samples(1, 1.9, 2.0, 2.1)).reason == "MemoryGrows"
    assert resource(samples(1, 1.9, 2.0, 2.1)).outcome is Outcome.BREACH
    assert resource(samples(1, 2.0)).outcome is Outcome.UNDECIDED
    assert resource(samples(1, 2.0, 1.1, 2.0)).outcome is Outcome.PASS


def test_restarts_are_a_breach_at_once() -> None:
    assert resource(samples(1, 1, restarts=3)).outcome is Outcome.BREACH
    assert resource(samples(1, 1, restarts=2)).outcome is Outcome.PASS


def test_a_long_queue_is_a_breach_where_it_is_bounded() -> None:
    waiting = samples(1, 1, 1, 1, queued_s=5.0)

    assert resource(waiting, max_queue_seconds=0.2).reason == "LongQueue"
    assert resource(waiting).outcome is Outcome.PASS


def test_what_is_not_measured_is_named_and_not_judged() -> None:
    only_restarts = (ResourceSample(restarts={"a": 0}),) * 2

    assert resource(only_restarts).outcome is Outcome.PASS
    assert "not measured: memoryGrowthPercent" in resource(only_restarts).message
    assert resource((ResourceSample(),) * 2).reason == "NotMeasured"


# Quarantine


def test_without_an_answer_nothing_is_known() -> None:
    assert probe_outcome(None, 100.0) == 0
    assert probe_outcome(FailedCheck("the gateway is away"), 100.0) == 0
    assert probe_outcome(ProbeCounts((0, 0), (0, 0)), 100.0) == 0


@pytest.mark.parametrize(
    ("asked", "failed", "seconds", "outcome"),
    [
        ((8, 8), (0, 8), 2.0, 0),
        ((9, 9), (0, 9), 2.0, -1),
        ((240, 240), (0, 9), 59.0, -1),
        ((20, 20), (4, 8), 5.0, 0),
        ((20, 20), (0, 0), 5.0, 1),
        ((19, 19), (0, 0), 5.0, 0),
        ((100, 100), (0, 2), 30.0, 0),
        ((240, 240), (0, 2), 60.0, 1),
        ((40, 40), (40, 40), 30.0, 0),
        ((240, 240), (240, 240), 60.0, 1),
        ((40, 40), (20, 30), 30.0, 0),
        ((40, 40), (25, 40), 30.0, -1),
        ((40, 40), (40, 39), 60.0, 1),
        ((0, 9), (0, 9), 5.0, -1),
        ((1, 1), (0, 0), 90.0, 0),
    ],
)
def test_a_quarantined_candidate_is_judged_beside_stable(
    asked: tuple[int, int], failed: tuple[int, int], seconds: float, outcome: int
) -> None:
    assert probe_outcome(ProbeCounts(asked, failed, done=False), seconds) == outcome
