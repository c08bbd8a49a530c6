"""Rollouts on the real parts: what is wrong goes before it harms, what is well gets through, and people have a say."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from fakes.watching import segserve
from faults.plan import Fault
from faults.platform import revision_of
from faults.scenarios import PROOF, Change, coins, same_network
from faults.story import ENDED, SHARING, Story

pytestmark = [pytest.mark.platform, pytest.mark.timeout(600)]

# A few milliseconds are no evidence here: they are those of the machine, which may be busy with something else.
GATES = [{"gate": "errorRate"}, {"gate": "goldenQuality", "interval": "1m"}]
HALF = {"steps": [{"weight": 50}], "bakeTime": "5s", "gates": GATES}
FOR_EVER = {"steps": [{"weight": 50, "pause": True}], "bakeTime": "5m", "gates": GATES}
SHARED = ("Quarantined", "RolledBack")
SHADOWED = ["Shadow", "RolledBack"]
Told = tuple[Story, Change]


@contextmanager
def told(folder: Path, policy: dict[str, Any], rate: float) -> Iterator[Told]:
    """Serve the coins to callers, and watch the rollout that the test begins."""
    changed = same_network(policy, folder)
    with Story(changed.first, rate, changed.pictures).begun() as story:
        yield story, changed


@pytest.fixture
def tell(tmp_path: Path) -> Iterator[Callable[..., Told]]:
    """Begin stories of the test's own, which end with it."""
    with ExitStack() as stack:
        yield lambda policy, rate: stack.enter_context(told(tmp_path, policy, rate))


@pytest.mark.core
def test_what_fails_always_is_quarantined_first_and_then_rolled_back(tell: Callable[..., Told]) -> None:
    story, change = tell(HALF, 20)
    story.apply(change.second)
    with story.watching():
        assert story.reaches("Progressing")
        story.load.answered(5)
        story.platform.plan.set(**{story.candidate: Fault(errors=1.0)})
        assert story.reaches("RolledBack"), story.stages
        story.load.settles_on(story.stable)

    assert [stage.phase for stage in story.stages if stage.phase in SHARED] == list(SHARED)
    assert [call for call in story.load.of(story.stable) if call.bad] == []
    assert story.platform.watched.role("coins", "stable") == (story.stable, "main")


def test_what_fails_for_one_picture_in_twenty_is_rolled_back(tell: Callable[..., Told]) -> None:
    story, change = tell({**HALF, "steps": [{"weight": 50, "minDuration": "2m"}]}, 50)
    story.apply(change.second)
    with story.watching():
        assert story.reaches("Progressing")
        story.platform.plan.set(**{story.candidate: Fault(errors=0.05)})
        assert story.reaches("RolledBack"), story.stages

    assert story.platform.watched.role("coins", "stable") == (story.stable, "main")


def test_a_candidate_whose_callers_wait_for_seconds_is_rolled_back_by_its_latency(tell: Callable[..., Told]) -> None:
    story, change = tell({**HALF, "steps": [{"weight": 50, "minDuration": "2m"}], "gates": [{"gate": "latency"}]}, 10)
    change.second["spec"]["slo"]["p95Milliseconds"] = 4000
    story.apply(change.second)
    with story.watching():
        assert story.reaches("Progressing")
        story.platform.plan.set(**{story.candidate: Fault(delay_ms=8000)})
        assert story.reaches("RolledBack"), story.stages

    assert story.platform.watched.role("coins", "stable") == (story.stable, "main")
    assert [call for call in story.load.of(story.stable) if call.bad] == []


def test_wrong_masks_with_status_200_never_reach_a_caller(tell: Callable[..., Told]) -> None:
    story, change = tell(HALF, 5)
    story.platform.plan.set(**{revision_of(change.second): Fault(labels="shifted", after=PROOF)})
    story.apply(change.second)
    with story.watching():
        assert story.reaches("RolledBack"), story.stages
        story.load.answered(10)

    assert story.load.of(story.candidate) == []
    assert [call for call in story.load.calls if call.bad] == []


def test_a_healthy_candidate_is_promoted_though_the_supervisor_is_killed_on_the_way(tell: Callable[..., Told]) -> None:
    story, change = tell({**HALF, "maxBadRequests": 500}, 20)
    story.apply(change.second)
    with story.watching():
        for phase in ("Progressing", "Baking"):
            assert story.reaches(phase, *ENDED), story.stages
            story.platform.kill_supervisor()
            story.load.answered(20)
            story.platform.start_supervisor()
        assert story.reaches(*ENDED), story.stages

    assert story.stages[-1].phase == "Succeeded", story.stages
    assert [call for call in story.load.calls if call.bad] == []


def test_a_person_promotes_a_candidate_whatever_it_waits_for(tell: Callable[..., Told]) -> None:
    story, change = tell(FOR_EVER, 5)
    story.apply(change.second)
    with story.watching():
        assert story.reaches("Progressing")
        done = segserve(story.platform.running.state, "rollout", "promote", "coins")
        assert done.returncode == 0, done.stderr
        assert story.reaches("Baking"), story.stages

    role = story.platform.watched.role("coins", "stable")
    assert role is not None
    assert role[0] == story.candidate


def test_a_person_aborts_a_rollout_and_the_candidate_gets_no_further_request(tell: Callable[..., Told]) -> None:
    story, change = tell(FOR_EVER, 20)
    story.apply(change.second)
    with story.watching():
        assert story.reaches("Progressing")
        story.load.answered(20)
        done = segserve(story.platform.running.state, "rollout", "abort", "coins")
        assert done.returncode == 0, done.stderr
        assert story.reaches("RolledBack"), story.stages
        story.load.settles_on(story.stable)
        of_candidate = len(story.load.of(story.candidate))
        story.load.answered(20)

    assert of_candidate
    assert len(story.load.of(story.candidate)) == of_candidate
    assert [call for call in story.load.calls if call.bad] == []


def test_who_fails_copies_of_requests_is_rolled_back_before_any_caller_and_who_does_not_is_promoted(
    tmp_path: Path,
) -> None:
    """By a fast clock: bets on a candidate allow for stable's past, which has to be ten minutes long.

    What is only to be judged by copies has a verdict then, and no caller.
    """
    shadow = {"percent": 100, "maxRequestsPerSecond": 50, "minRequests": 40, "maxDuration": "20h"}
    policy = {**HALF, "gates": [{"gate": "errorRate"}], "bakeTime": "5m", "deadline": "30h", "shadow": shadow}
    change = same_network(policy, tmp_path)
    third = coins({**policy, "tolerance": {"errorPercent": 20}}, area=152)
    judged = coins({**policy, "tolerance": {"errorPercent": 20}, "strategy": "shadow"}, area=153)
    for manifest in (change.first, change.second, third, judged):
        manifest["spec"]["progressDeadline"] = "10h"
    with Story(change.first, 20, change.pictures, speed=60).begun() as story:
        story.load.answered(250)
        story.apply(change.second)
        with story.watching():
            assert story.reaches("Shadow", *ENDED)
            story.platform.plan.set(**{story.candidate: Fault(errors=0.5)})
            assert story.reaches(*ENDED), story.stages

        assert [stage.phase for stage in story.stages if stage.phase in (*SHADOWED, *SHARING, *ENDED)] == SHADOWED
        assert {stage.weight for stage in story.stages} == {0}
        assert story.load.of(story.candidate) == []

        refused, story.stages = story.candidate, []
        story.apply(third)
        with story.watching():
            assert story.reaches(*ENDED), story.stages

        assert story.stages[-1].phase == "Succeeded", story.stages
        assert story.first_of("Shadow")

        story.stages.clear()
        story.apply(judged)
        with story.watching():
            assert story.reaches(*ENDED), story.stages
        status = segserve(story.platform.running.state, "rollout", "status", "coins")

    assert story.stages[-1].phase == "Judged", story.stages
    assert {stage.weight for stage in story.stages} == {0}
    assert story.load.of(story.candidate) == []
    assert "judged well" in status.stdout
    assert status.returncode == 0
    assert story.load.of(refused) == []
    assert [call for call in story.load.calls if call.bad] == []
