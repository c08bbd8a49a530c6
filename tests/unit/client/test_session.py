"""What a client does next, on a clock of the test's own."""

from __future__ import annotations

import numpy as np
import pytest

from fakes.kserve import Asked
from segserve.errors import OverloadedError, RequestTimeoutError, SegserveError, ServerError
from segserve.session import REFETCH_S, ConfigRequest, SegmentOptions, Send, Session, Wait
from segserve.types import ModelInfo
from segserve.wire import InferAnswer, Tensor

from .conftest import SEMANTIC, semantic_answer

IMAGE = Tensor.of_items("IMAGE", [b"x"])
STABLE = ModelInfo("coins", frozenset(SEMANTIC), "coins-stable")


class Clock:
    """Seconds that pass only where the flow waits or a reply takes its time."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def an_answer() -> InferAnswer:
    arrays = semantic_answer(Asked("coins", {}, [], {}))
    tensors = {
        name: Tensor.of_items(name, array.tolist()) if array.dtype == np.object_ else Tensor.of_array(name, array)
        for name, array in arrays.items()
    }
    return InferAnswer("coins", tensors)


def play(
    session: Session, clock: Clock, replies: list[object], *, each_takes_s: float = 0.0
) -> tuple[object, list[Send | Wait]]:
    """Run one segmentation against the replies to its inferences; return its result or error, and its steps."""
    flow = session.segment(IMAGE, SegmentOptions("coins"))
    left = list(replies)
    steps: list[Send | Wait] = []
    try:
        step = next(flow)
        while True:
            steps.append(step)
            if isinstance(step, Wait):
                clock.now += step.seconds
                step = next(flow)
                continue
            reply = STABLE if isinstance(step.request, ConfigRequest) else left.pop(0)
            clock.now += each_takes_s
            step = flow.throw(reply) if isinstance(reply, SegserveError) else flow.send(reply)
    except StopIteration as end:
        return end.value, steps
    except SegserveError as error:
        return error, steps


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def session(clock: Clock) -> Session:
    return Session(30.0, 2, clock, lambda: 0.5)


def waits(steps: list[Send | Wait]) -> list[float]:
    return [step.seconds for step in steps if isinstance(step, Wait)]


def sends(steps: list[Send | Wait]) -> list[Send]:
    return [step for step in steps if isinstance(step, Send)]


def test_waits_double_and_stop_with_the_retries(session: Session, clock: Clock) -> None:
    outcome, steps = play(session, clock, [OverloadedError("full")] * 3)

    assert isinstance(outcome, OverloadedError)
    assert waits(steps) == pytest.approx([0.1, 0.2])


def test_an_error_that_will_not_pass_is_not_tried_again(session: Session, clock: Clock) -> None:
    outcome, steps = play(session, clock, [ServerError("broken")])

    assert isinstance(outcome, ServerError)
    assert waits(steps) == []


def test_the_server_may_ask_for_a_longer_wait(session: Session, clock: Clock) -> None:
    _, steps = play(session, clock, [OverloadedError("full", retry_after_s=4.0), an_answer()])

    assert waits(steps) == [4.0]


def test_each_try_gets_the_time_that_is_left(session: Session, clock: Clock) -> None:
    _, steps = play(session, clock, [OverloadedError("full"), an_answer()], each_takes_s=5.0)

    assert [send.timeout_s for send in sends(steps)] == pytest.approx([30.0, 25.0, 19.9, 14.9])


def test_no_try_begins_after_the_deadline(session: Session, clock: Clock) -> None:
    outcome, steps = play(session, clock, [], each_takes_s=31.0)

    assert isinstance(outcome, RequestTimeoutError)
    assert outcome.model == "coins"
    assert len(steps) == 1


def test_a_revision_that_stays_unknown_is_asked_about_at_most_once_in_a_while(session: Session, clock: Clock) -> None:
    asked = []
    for _ in range(3):
        _, steps = play(session, clock, [an_answer()])
        asked.append(sum(isinstance(send.request, ConfigRequest) for send in sends(steps)))
    clock.now += REFETCH_S
    _, steps = play(session, clock, [an_answer()])

    assert asked == [2, 0, 0]
    assert sum(isinstance(send.request, ConfigRequest) for send in sends(steps)) == 1
