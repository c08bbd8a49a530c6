"""What a client does next, on a clock of the test's own."""

from __future__ import annotations

import numpy as np
import pytest

from fakes.kserve import Asked
from segserve.calls.session import REFETCH_S, CallPolicy, Session
from segserve.calls.steps import ConfigRequest, Pause, SegmentOptions, Send, Timeouts
from segserve.errors import (
    ConnectionLostError,
    ConnectTimeoutError,
    DeadlineExceededError,
    GatewayUnreachableError,
    OverloadedError,
    RateLimitError,
    RequestTimeoutError,
    ServerError,
    StepDiedError,
)
from segserve.results.values import ModelInfo
from segserve_common.errors import BadRequestError, SegserveError
from segserve_common.kserve import InferAnswer, InferRequest, Tensor

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
) -> tuple[object, list[Send | Pause]]:
    """Run one segmentation against the replies to its inferences; return its result or error, and its steps."""
    flow = session.segment(IMAGE, SegmentOptions("coins"))
    left = list(replies)
    steps: list[Send | Pause] = []
    try:
        step = next(flow)
        while True:
            steps.append(step)
            if isinstance(step, Pause):
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
    return Session(clock=clock, jitter=lambda: 0.5)


def waits(steps: list[Send | Pause]) -> list[float]:
    return [step.seconds for step in steps if isinstance(step, Pause)]


def sends(steps: list[Send | Pause]) -> list[Send]:
    return [step for step in steps if isinstance(step, Send)]


def test_waits_double_and_stop_with_the_retries(session: Session, clock: Clock) -> None:
    outcome, steps = play(session, clock, [OverloadedError("full")] * 3)

    assert isinstance(outcome, OverloadedError)
    assert waits(steps) == pytest.approx([0.1, 0.2])


def test_an_error_that_will_not_pass_is_not_tried_again(session: Session, clock: Clock) -> None:
    outcome, steps = play(session, clock, [ServerError("broken")])

    assert isinstance(outcome, ServerError)
    assert waits(steps) == []


def test_a_step_that_died_has_a_second_to_come_back(session: Session, clock: Clock) -> None:
    outcome, steps = play(session, clock, [StepDiedError("not healthy"), an_answer()])

    assert outcome.revision == "coins-aaaaaaaaaa"
    assert waits(steps) == pytest.approx([1.1])


def test_the_server_may_ask_for_a_wait_and_those_it_asks_do_not_come_back_together(
    session: Session, clock: Clock
) -> None:
    _, steps = play(session, clock, [OverloadedError("full", retry_after_s=4.0), an_answer()])

    assert waits(steps) == pytest.approx([4.1])


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


FRAME = InferRequest("coins", (), parameters={"sequence_id": "cam"})


def errors_until_the_end(session: Session, request: InferRequest, error: SegserveError) -> list[type]:
    """Answer each try of one request with the error; return what the flow did."""
    with session._call("segment", "coins") as call:
        flow = session._attempts(request, call)
        done: list[type] = []
        step = next(flow)
        while True:
            done.append(type(step))
            try:
                step = next(flow) if isinstance(step, Pause) else flow.throw(error)
            except SegserveError:
                return done


@pytest.mark.parametrize(
    ("error", "tries"),
    [
        pytest.param(OverloadedError("full"), 1, id="a server may have begun"),
        pytest.param(ConnectionLostError("gone"), 1, id="a server may have answered"),
        pytest.param(RateLimitError("slowly"), 3, id="the gateway turned it away"),
        pytest.param(GatewayUnreachableError("nobody"), 3, id="nothing was sent"),
        pytest.param(ConnectTimeoutError("silence"), 3, id="no connection was made"),
    ],
)
def test_a_frame_of_a_stream_is_sent_again_only_where_no_server_can_have_seen_it(
    session: Session, error: SegserveError, tries: int
) -> None:
    assert errors_until_the_end(session, FRAME, error).count(Send) == tries
    assert errors_until_the_end(session, InferRequest("coins", ()), error).count(Send) == 3


def test_a_timeout_of_the_gateways_at_the_deadline_is_the_deadlines(session: Session, clock: Clock) -> None:
    late, _ = play(session, clock, [RequestTimeoutError("upstream request timeout", status=504)], each_takes_s=14.99)
    early, _ = play(session, clock, [RequestTimeoutError("upstream request timeout", status=504)], each_takes_s=1.0)

    assert type(late) is DeadlineExceededError
    assert late.status == 504
    assert type(early) is RequestTimeoutError


def test_a_copy_asks_in_another_way_and_knows_the_same_models(session: Session, clock: Clock) -> None:
    play(session, clock, [an_answer()])
    hasty = session.with_policy(CallPolicy(Timeouts(total_s=2.0), retries=0))
    outcome, steps = play(hasty, clock, [OverloadedError("full")])

    assert isinstance(outcome, OverloadedError)
    assert [(type(send.request), send.timeout_s) for send in sends(steps)] == [(InferRequest, 2.0)]


def test_what_a_caller_knows_of_a_request_is_on_its_result_and_on_its_error(session: Session, clock: Clock) -> None:
    result, steps = play(session, clock, [an_answer()])
    error, _ = play(session, clock, [ServerError("broken")])

    assert {send.headers["x-request-id"] for send in sends(steps)} == {result.request_id}  # type: ignore[attr-defined]
    assert isinstance(error, ServerError)
    assert str(error) == f"broken (request {error.request_id})"
    assert error.request_id != result.request_id  # type: ignore[attr-defined]


@pytest.mark.parametrize("request_id", ["", "a b", "a\r\nb", "é", "x" * 129])
def test_a_request_id_that_no_header_can_carry_is_refused(session: Session, request_id: str) -> None:
    with pytest.raises(BadRequestError, match="printable ASCII"):
        next(session.segment(IMAGE, SegmentOptions("coins", request_id=request_id)))


@pytest.mark.parametrize("wrong", [{"total_s": 0}, {"total_s": float("inf")}, {"read_s": -1.0}, {"connect_s": "5"}])
def test_timeouts_that_cannot_be_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(BadRequestError, match="above 0"):
        Timeouts(**wrong)
