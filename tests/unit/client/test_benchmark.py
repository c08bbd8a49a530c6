"""How fast a model answers: loops that send as they say, and figures that are those of what was sent."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fakes.kserve import Arrays, Asked, Fault, Gateway
from fakes.waiting import HANG_S
from segserve import BadRequestError, Client, ModelNotFoundError, benchmark
from segserve_common.errors import SegserveError
from segserve_platform.benchmarking import load as loads
from segserve_platform.benchmarking.load import OfferedLoad, RequestTimes, send
from segserve_platform.benchmarking.report import BenchmarkReport, Figure, LoadResult, load_result

from .conftest import Served, parameters, semantic_answer

CLOSED = OfferedLoad(concurrency=1)


def sent(*latency_ms: float, seconds: float = 1.0, errors: Counter[str] | None = None) -> RequestTimes:
    """Return requests that were due at equal distances."""
    due_s = np.linspace(0, seconds, len(latency_ms), endpoint=False)
    return RequestTimes(seconds, due_s, np.array(latency_ms, np.float64), errors or Counter())


def answers_with(gateway: Gateway, wait: Callable[[], object]) -> None:
    """Have the model answer only after `wait` has returned."""

    def answer(asked: Asked) -> Arrays:
        wait()
        return semantic_answer(asked)

    gateway.models["coins"].answer = answer


def test_so_many_callers_are_in_a_closed_loop_at_once_and_no_more(served: Served, photo: bytes) -> None:
    in_flight, most, lock, together, numbers = 0, 0, threading.Lock(), threading.Barrier(3), itertools.count()

    def note(change: int) -> None:
        nonlocal in_flight, most
        with lock:
            in_flight += change
            most = max(most, in_flight)

    def wait() -> None:
        note(1)
        if next(numbers) in (1, 2, 3):  # the first is asked alone, whether the model is there at all
            together.wait(HANG_S)
        note(-1)

    answers_with(served.gateway, wait)
    with Client(served.url, transport=served.transport, retries=0) as client:
        (only,) = benchmark("coins", [photo], concurrency=[3], duration_s=0.3, warmup_s=0, client=client).loads

    assert most == 3
    assert only.requests > 3


def test_requests_of_an_open_loop_come_though_none_is_answered(served: Served, photo: bytes) -> None:
    enough = threading.Event()

    def wait() -> None:
        if len(served.gateway.asked) > 10:
            enough.set()
        if len(served.gateway.asked) > 1:
            enough.wait(HANG_S)

    answers_with(served.gateway, wait)
    with Client(served.url, transport=served.transport, retries=0) as client:
        (only,) = benchmark("coins", [photo], requests_per_s=[200], duration_s=0.3, warmup_s=0, client=client).loads

    assert enough.is_set()
    assert only.failed == 0


class Clock:
    """Time that passes where somebody sleeps, and threads that do their work when they are given it."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def perf_counter(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds

    def pool(self, _: int) -> Clock:
        return self

    def __enter__(self) -> Clock:
        return self

    def __exit__(self, *_: object) -> None: ...

    def submit(self, work: Callable[[], Any]) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(work())
        return done


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(loads, "time", clock)
    monkeypatch.setattr(loads, "ThreadPoolExecutor", clock.pool)
    return clock


def test_what_is_due_while_a_server_stalls_has_waited_since_then(clock: Clock) -> None:
    def stall_once(number: int) -> None:
        clock.now_s += 0.5 if number == 10 else 0.001

    found = send(stall_once, OfferedLoad(requests_per_s=100), 2.0)

    begun_s = found.due_s[10]
    late = (found.due_s > begun_s) & (found.due_s < begun_s + 0.5)
    assert late.sum() > 20
    # Each waits for the stall's end and for the ones before it, which take a millisecond each.
    wanted_ms = 1e3 * (begun_s + 0.5 - found.due_s[late]) + np.arange(1, late.sum() + 1)
    np.testing.assert_allclose(found.latency_ms[late], wanted_ms)


def test_an_open_loop_sends_at_its_mean_rate_at_random_times(clock: Clock) -> None:
    found = send(lambda _: None, OfferedLoad(requests_per_s=50), 200.0)

    gaps_s = np.diff(found.due_s)
    assert len(found.due_s) == pytest.approx(10_000, rel=0.03)
    assert gaps_s.std() == pytest.approx(gaps_s.mean(), rel=0.05)  # as those of a Poisson process


def test_what_is_sent_before_the_measurement_does_not_count(clock: Clock) -> None:
    def cold(_: int) -> None:
        clock.now_s += 0.001
        if clock.now_s < 1:
            raise SegserveError("not yet")

    found = send(cold, OfferedLoad(requests_per_s=50), 2.0, warmup_s=1.5)

    assert found.errors == Counter()
    assert 0 <= found.due_s.min() <= found.due_s.max() < 2
    assert found.latency_ms == pytest.approx(1, abs=10)


def test_percentiles_are_those_of_all_answers_and_given_where_a_request_lies_beyond_them() -> None:
    numbers = np.random.default_rng(1).gamma(3, 10, 500)
    found = load_result(CLOSED, list(sent(*numbers, seconds=10.0).parts(20)))

    assert set(found.latencies_ms) == {"p50", "p95", "p99"}
    for name, figure in found.latencies_ms.items():
        assert figure.value == pytest.approx(np.percentile(numbers, float(name[1:])))
        assert figure.low <= figure.value <= figure.high
    assert found.per_s.value == pytest.approx(50, rel=0.01)


def test_an_overload_is_answered_at_the_rate_of_the_answers() -> None:
    late = sent(*np.linspace(0, 10_000, 100), seconds=10.0)

    assert load_result(OfferedLoad(requests_per_s=10), list(late.parts(20))).per_s.value == pytest.approx(100 / 19.9)


def test_what_slows_both_models_in_a_turn_is_in_neithers_favour() -> None:
    random = np.random.default_rng(2)
    turns = [slowness * random.uniform(9, 11, 50) for slowness in (1, 1, 5, 1, 2, 1, 1, 9, 1, 1)]
    own = [sent(*turn) for turn in turns]
    others = [sent(*(2 * turn)) for turn in turns]

    ratio = load_result(CLOSED, own, others).ratios["p50"]

    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((0.5, 0.5, 0.5))


def test_errors_are_counted_by_kind_and_are_no_latencies() -> None:
    found = load_result(CLOSED, [sent(1, 2, errors=Counter({"OverloadedError": 3})), sent(3, 4)])

    assert (found.requests, found.failed, dict(found.errors)) == (7, 3, {"OverloadedError": 3})
    assert found.per_s.value == pytest.approx(2)


def test_a_load_that_nobody_answered_has_no_latencies() -> None:
    found = load_result(CLOSED, list(sent(errors=Counter({"ServerError": 2})).parts(20)))

    assert (found.requests, found.latencies_ms, found.per_s.value) == (2, {}, 0)


def closed(callers: int, per_s: float) -> LoadResult:
    return LoadResult(OfferedLoad(concurrency=callers), 100, Figure(per_s, per_s, per_s), {}, {}, {})


@pytest.mark.parametrize(
    ("throughputs", "knee"),
    [
        pytest.param({1: 10, 2: 19, 4: 20, 8: 20.5}, 2, id="the fewest callers that nearly bring the best"),
        pytest.param({8: 20.5, 4: 20, 2: 19, 1: 10}, 2, id="in whatever order they were asked"),
        pytest.param({1: 10, 2: 20, 4: 40}, 4, id="the last where all bring more"),
        pytest.param({1: 10, 2: 19}, None, id="none of two"),
    ],
)
def test_the_knee_is_where_more_callers_only_wait(throughputs: dict[int, float], knee: int | None) -> None:
    loads = tuple(closed(callers, per_s) for callers, per_s in throughputs.items())

    assert BenchmarkReport("coins", 1, {}, loads).knee == knee


def test_a_model_is_asked_the_images_in_turn_and_its_revisions_are_counted(
    served: Served, photo: bytes, tmp_path: Path
) -> None:
    (tmp_path / "one.png").write_bytes(photo)
    with Client(served.url, transport=served.transport) as client:
        report = benchmark(
            "coins", [tmp_path / "one.png", b"another file"], concurrency=[1], duration_s=0.2, warmup_s=0, client=client
        )

    files = [asked.inputs["IMAGE"].tolist()[0] for asked in served.gateway.asked]
    assert report.revisions == {"coins-aaaaaaaaaa": len(files)}
    assert report.loads[0].requests == len(files) - 1  # the first one asked whether the model is there
    assert files[1:5] == [photo, b"another file"] * 2


def test_two_models_are_asked_the_same_in_turns(served: Served, photo: bytes) -> None:
    served.gateway.models["coins-next"] = served.gateway.models["coins"]
    with Client(served.url, transport=served.transport) as client:
        report = benchmark(
            "coins", [photo], concurrency=[1], duration_s=0.5, warmup_s=0, against="coins-next", client=client
        )

    assert report.against is not None
    assert report.against.model == "coins-next"
    assert report.loads[0].ratios["p50"].low <= report.loads[0].ratios["p50"].value
    assert report.against.loads[0].ratios == {}
    names = [asked.model for asked in served.gateway.asked]
    turns = 1 + sum(before != after for before, after in itertools.pairwise(names[2:]))
    assert turns == 11  # ten of each, of which neighbours of the same model are one


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"concurrency": [1], "requests_per_s": [1]}, "give concurrency or requests_per_s, not both"),
        ({"concurrency": [0]}, "concurrency must be from 1 to 256, got 0"),
        ({"requests_per_s": [0]}, "requests_per_s must be above 0 and at most 100,000, got 0"),
        ({"against": "coins"}, "against must be another model, got 'coins' for both"),
        ({"concurrency": []}, "give one load and one image at least, got 0 and 1"),
        ({"requests_per_s": []}, "give one load and one image at least, got 0 and 1"),
        ({"duration_s": 0}, "duration_s must be above 0 and warmup_s at least 0, both at most 86,400; got 0 and 2.0"),
    ],
)
def test_arguments_that_cannot_be_meant_are_told(photo: bytes, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequestError) as told:
        benchmark("coins", [photo], **arguments)

    assert message in str(told.value)


def test_an_unknown_model_is_an_error_before_any_load(served: Served, photo: bytes) -> None:
    with Client(served.url, transport=served.transport) as client, pytest.raises(ModelNotFoundError):
        benchmark("penny", [photo], client=client)


def test_requests_that_fail_are_counted_and_not_tried_again(
    gateway: Gateway, photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway.models["coins"].parameters = parameters("coins-aaaaaaaaaa")
    gateway.faults.extend([Fault(), *(Fault(http=503, message="busy") for _ in range(3))])
    with gateway.http() as url:
        monkeypatch.setenv("SEGSERVE_URL", url)
        (only,) = benchmark("coins", [photo], concurrency=[1], duration_s=0.3, warmup_s=0).loads

    assert only.failed == 3
    assert only.requests == gateway.inferences - 1
