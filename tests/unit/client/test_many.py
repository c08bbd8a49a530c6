"""Many images of one call: order, back-pressure, failures; by threads and by tasks."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fakes.kserve import Arrays, Asked, Fault, Gateway, Model, items
from segserve import AsyncClient, BadRequestError, Client, Failure, SegserveError, ServerError

from .conftest import parameters

DETECTION = ["REVISION", "SIZE", "BOXES", "SCORES", "CLASSES"]


@dataclass
class Echo:
    """A model that answers the first pixel of its image as a box, and counts who is inside at the same time."""

    inside: int = 0
    most: int = 0
    slow: Callable[[int], float] = lambda _: 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, asked: Asked) -> Arrays:
        value = self._first_pixel(asked)
        with self.lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        time.sleep(self.slow(value))
        with self.lock:
            self.inside -= 1
        return {
            "REVISION": items(b"echo-aaaaaaaaaa"),
            "SIZE": np.array([4, 4], np.int32),
            "BOXES": np.array([[value] * 4], np.float32),
            "SCORES": np.ones(1, np.float32),
            "CLASSES": np.zeros(1, np.int32),
        }

    @staticmethod
    def _first_pixel(asked: Asked) -> int:
        if "PIXELS" in asked.inputs:
            return int(asked.inputs["PIXELS"].flat[0])
        import cv2

        data = np.frombuffer(asked.inputs["IMAGE"][0], np.uint8)
        return int(cv2.imdecode(data, cv2.IMREAD_UNCHANGED).flat[0])


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
def gateway(echo: Echo) -> Gateway:
    return Gateway(models={"echo": Model(DETECTION, parameters("echo-aaaaaaaaaa"), echo)})


@pytest.fixture
def url(gateway: Gateway) -> Iterator[str]:
    with gateway.http() as found:
        yield found


class Threads:
    """`Client`, read by `for`."""

    def __init__(self, url: str) -> None:
        self.client = Client(url, retries=0)

    def run(self, method: str, images: Any, **options: Any) -> Iterator[Any]:
        return getattr(self.client, method)(images, model="echo", **options)

    def close(self) -> None:
        self.client.close()


class Tasks:
    """`AsyncClient` on a loop of its own, read by `for`."""

    def __init__(self, url: str) -> None:
        self.runner = asyncio.Runner()
        self.client = self.runner.run(self._open(url))

    async def _open(self, url: str) -> AsyncClient:
        return AsyncClient(url, retries=0)

    def run(self, method: str, images: Any, **options: Any) -> Iterator[Any]:
        results = getattr(self.client, method)(images, model="echo", **options)
        return self._read(results)

    def _read(self, results: Any) -> Iterator[Any]:
        async def following() -> Any:
            return await anext(results)

        try:
            while True:
                try:
                    found = self.runner.run(following())
                except StopAsyncIteration:
                    return
                yield found
        finally:
            self.runner.run(results.aclose())

    def close(self) -> None:
        self.runner.run(self.client.close())
        self.runner.close()


@pytest.fixture(params=[Threads, Tasks], ids=["sync", "async"])
def caller(request: pytest.FixtureRequest, url: str) -> Iterator[Threads | Tasks]:
    made = request.param(url)
    yield made
    made.close()


def image(value: int) -> np.ndarray:
    return np.full((4, 4), value, np.uint8)


def value(result: Any) -> int:
    return int(result.detections[0].box[0])


def counted(number: int) -> tuple[Iterator[np.ndarray], list[int]]:
    """Return images, and the list that tells which have been pulled."""
    pulled: list[int] = []

    def images() -> Iterator[np.ndarray]:
        for index in range(number):
            pulled.append(index)
            yield image(index)

    return images(), pulled


def test_results_come_in_the_order_of_the_images_whoever_is_done_first(caller: Any, echo: Echo) -> None:
    echo.slow = lambda value: 0.05 if value % 3 == 0 else 0.0

    results = caller.run("segment_many", [image(number) for number in range(20)], in_flight=6)

    assert [value(result) for result in results] == list(range(20))


@pytest.mark.parametrize("in_flight", [1, 4])
def test_no_more_than_in_flight_run_at_once_and_all_of_them_do(caller: Any, echo: Echo, in_flight: int) -> None:
    together = threading.Barrier(in_flight)

    def until_all_are_there(_: int) -> float:
        together.wait(60)
        return 0.0

    echo.slow = until_all_are_there
    list(caller.run("segment_many", [image(number) for number in range(12)], in_flight=in_flight, timeout_s=60))
    assert echo.most == in_flight


def test_images_are_pulled_no_further_ahead_than_in_flight_of_what_was_consumed(caller: Any) -> None:
    images, pulled = counted(30)

    for consumed, _ in enumerate(caller.run("segment_many", images, in_flight=5), start=1):
        assert len(pulled) <= consumed + 5
    assert len(pulled) == 30


def test_a_result_that_is_there_is_given_before_more_images_are_pulled(caller: Any, gateway: Gateway) -> None:
    def camera() -> Iterator[np.ndarray]:
        """Give the next image when the gateway has been asked for the one before."""
        for number in range(1, 64):
            yield image(number)
            while gateway.inferences < number:
                time.sleep(0.001)
        raise AssertionError("the first result was there long before as many images as may be in flight")

    results = caller.run("segment_many", slowly(camera()) if isinstance(caller, Tasks) else camera(), in_flight=64)

    assert value(next(results)) == 1
    results.close()


async def slowly(images: Iterator[np.ndarray]) -> AsyncIterator[np.ndarray]:
    """Yield from a blocking iterator, as asynchronous code does."""
    while (found := await asyncio.to_thread(next, images, None)) is not None:
        yield found


def test_progress_counts_the_images_that_were_answered(caller: Any) -> None:
    ticks: list[tuple[int, int]] = []
    unknown: list[tuple[int, int]] = []

    def note(done: int, total: int) -> None:
        ticks.append((done, total))

    list(caller.run("segment_many", [image(number) for number in range(4)], progress=note))
    list(
        caller.run("segment_many", (image(number) for number in range(2)), progress=lambda *seen: unknown.append(seen))
    )

    assert ticks == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert unknown == [(1, 0), (2, 0)]


def test_a_bar_is_drawn_on_a_terminal_and_nowhere_else(
    caller: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    list(caller.run("segment_many", [image(1), image(2)], progress=True))
    silent = capsys.readouterr().err
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich's word for a terminal
    list(caller.run("segment_many", [image(1), image(2)], progress=True))

    assert silent == ""
    assert "images" in (drawn := capsys.readouterr().err)
    assert "2/2" in drawn


def test_an_asynchronous_iterator_is_pulled_like_any_other(url: str) -> None:
    async def images() -> AsyncIterator[np.ndarray]:
        for number in range(9):
            await asyncio.sleep(0)
            yield image(number)

    async def main() -> list[int]:
        async with AsyncClient(url) as client:
            return [value(result) async for result in client.segment_many(images(), model="echo", in_flight=3)]

    assert asyncio.run(main()) == list(range(9))


def test_memory_that_is_used_again_for_the_next_image_does_not_change_the_last(caller: Any) -> None:
    def camera() -> Iterator[np.ndarray]:
        buffer = image(0)
        for number in range(12):
            buffer[:] = number
            yield buffer

    assert [value(result) for result in caller.run("segment_many", camera(), in_flight=6)] == list(range(12))


def test_leaving_early_pulls_and_sends_no_more(caller: Any, gateway: Gateway) -> None:
    images, pulled = counted(100)
    results = caller.run("segment_many", images, in_flight=4)

    next(results)
    results.close()

    pulled_by_then = len(pulled)
    time.sleep(0.05)
    assert gateway.inferences <= len(pulled) == pulled_by_then <= 5


def test_an_error_comes_in_its_place_and_names_the_image(caller: Any, tmp_path: Path) -> None:
    missing = tmp_path / "none.png"
    results = caller.run("segment_many", [image(0), image(1), missing, image(3)], in_flight=4)

    assert [value(next(results)), value(next(results))] == [0, 1]
    with pytest.raises(FileNotFoundError) as caught:
        next(results)
    assert caught.value.__notes__ == [f"image 2: {missing}"]


def test_an_image_that_cannot_be_sent_is_named_too(caller: Any) -> None:
    with pytest.raises(BadRequestError, match="float64") as caught:
        list(caller.run("segment_many", [image(0), image(0) / 255]))
    assert caught.value.__notes__ == ["image 1"]


def test_failures_stand_in_the_places_of_their_images_where_they_are_returned(
    caller: Any, gateway: Gateway, tmp_path: Path
) -> None:
    gateway.faults.append(Fault(http=500, message="broken"))
    missing = str(tmp_path / "none.png")

    first, second, third = caller.run("segment_many", [image(0), missing, image(2)], in_flight=1, on_error="return")

    assert isinstance(first, Failure)
    assert (first.index, first.source, type(first.error)) == (0, None, ServerError)
    assert isinstance(second, Failure)
    assert (second.index, second.source, type(second.error)) == (1, missing, FileNotFoundError)
    assert value(third) == 2


@pytest.mark.parametrize("method", ["segment_many", "segment_stream"])
@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        pytest.param("photo.png", {}, r"one str: use segment\(\)", id="a path"),
        pytest.param(b"data", {}, "one bytes", id="bytes"),
        pytest.param(Path("photo.png"), {}, "one PosixPath", id="a Path"),
        pytest.param(np.zeros((4, 4, 3), np.uint8), {}, "one ndarray", id="an array"),
        pytest.param(np.zeros((4, 4), np.uint8), {}, "one ndarray", id="a grey array"),
        pytest.param(Image.new("L", (4, 4)), {}, "got Image", id="a PIL image"),
        pytest.param([], {"on_error": "ignore"}, "'ignore'", id="on_error"),
    ],
)
def test_what_is_not_many_images_is_refused_at_the_call(
    caller: Any, method: str, images: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadRequestError, match=message):
        caller.run(method, images, **options)


@pytest.mark.parametrize("in_flight", [0, -1, 1.5, True])
def test_in_flight_is_a_whole_number_from_1_on(caller: Any, in_flight: Any) -> None:
    with pytest.raises(BadRequestError, match="in_flight"):
        caller.run("segment_many", [], in_flight=in_flight)


def test_a_batch_as_one_array_is_its_images(caller: Any) -> None:
    batch = np.stack([image(number)[..., None] for number in range(3)])
    assert [value(result) for result in caller.run("segment_many", batch)] == [0, 1, 2]


def flags(gateway: Gateway) -> list[tuple[Any, ...]]:
    names = ("sequence_id", "frame", "sequence_start", "sequence_end")
    return [tuple(asked.parameters[name] for name in names) for asked in gateway.asked]


def test_frames_say_their_stream_number_start_and_end(caller: Any, gateway: Gateway) -> None:
    results = list(caller.run("segment_stream", [image(number) for number in range(3)], stream_id="door"))

    assert [value(result) for result in results] == [0, 1, 2]
    assert flags(gateway) == [("door", 0, True, False), ("door", 1, False, False), ("door", 2, False, True)]


def test_a_stream_whose_length_nobody_knows_is_ended_by_its_last_frame_again(caller: Any, gateway: Gateway) -> None:
    results = list(caller.run("segment_stream", (image(number) for number in range(2)), stream_id=7))

    assert [value(result) for result in results] == [0, 1]
    assert flags(gateway) == [(7, 0, True, False), (7, 1, False, False), (7, 1, False, True)]


def test_a_stream_that_is_left_early_is_ended(caller: Any, gateway: Gateway) -> None:
    results = caller.run("segment_stream", (image(number) for number in range(9)), stream_id=7)
    next(results)
    results.close()
    assert flags(gateway) == [(7, 0, True, False), (7, 0, False, True)]


def test_a_frame_is_pulled_and_sent_only_when_the_last_was_consumed(caller: Any, gateway: Gateway) -> None:
    frames, pulled = counted(5)
    for consumed, _ in enumerate(caller.run("segment_stream", frames), start=1):
        assert (len(pulled), len(gateway.asked)) == (consumed, consumed)


def test_frames_that_are_left_out_keep_their_numbers(caller: Any, gateway: Gateway) -> None:
    list(caller.run("segment_stream", [(4, image(0)), (9, image(1))], stream_id=1))
    assert flags(gateway) == [(1, 4, True, False), (1, 9, False, True)]


def test_a_stream_goes_on_after_a_frame_that_failed(caller: Any, gateway: Gateway) -> None:
    gateway.faults.extend([Fault(http=500, message="broken"), Fault(), Fault(http=500, message="broken")])

    found = list(caller.run("segment_stream", [image(n) for n in range(4)], stream_id=1, on_error="return"))

    assert [each.index if isinstance(each, Failure) else "answered" for each in found] == [0, "answered", 2, "answered"]
    assert flags(gateway) == [(1, 1, True, False), (1, 3, False, True)]


def test_an_error_of_a_stream_names_the_frame(caller: Any, gateway: Gateway) -> None:
    gateway.faults.extend([Fault(), Fault(http=500, message="broken")])
    with pytest.raises(SegserveError, match="broken") as caught:
        list(caller.run("segment_stream", [image(0), image(1)]))
    assert caught.value.__notes__ == ["frame 1"]


def test_a_stream_that_the_server_has_forgotten_begins_anew(caller: Any, gateway: Gateway) -> None:
    refused = Fault(http=400, message="inference request for sequence 1 must specify the START flag on the first")
    gateway.faults.extend([Fault(), refused])

    found = list(caller.run("segment_stream", [image(0), image(1), image(2)], stream_id=1))

    assert [value(result) for result in found] == [0, 1, 2]
    assert flags(gateway) == [(1, 0, True, False), (1, 1, True, False), (1, 2, False, True)]


def test_a_model_that_keeps_no_streams_takes_each_frame_as_an_image(caller: Any, gateway: Gateway) -> None:
    gateway.faults.append(Fault(http=400, message="parameter 'frame' is not allowed; this model allows: encoding"))

    found = list(caller.run("segment_stream", (image(number) for number in range(3))))

    assert [value(result) for result in found] == [0, 1, 2]
    assert [sorted(asked.parameters) for asked in gateway.asked] == [["outputs"]] * 3


def test_each_stream_without_an_id_gets_one_of_its_own(caller: Any, gateway: Gateway) -> None:
    for _ in range(2):
        list(caller.run("segment_stream", [image(0)]))
    assert len({flag[0] for flag in flags(gateway)}) == 2


@pytest.mark.parametrize("stream_id", ["", "x" * 129, 0, -1, 2**63, True, 1.5])
def test_an_id_that_triton_does_not_take_is_refused(caller: Any, stream_id: Any) -> None:
    with pytest.raises(BadRequestError, match="stream_id"):
        caller.run("segment_stream", [], stream_id=stream_id)


@pytest.mark.parametrize("number", [-1, True, "1"])
def test_a_frame_number_that_is_none_is_refused(caller: Any, number: Any) -> None:
    with pytest.raises(BadRequestError, match="frame's number"):
        list(caller.run("segment_stream", [(number, image(0))]))


def test_a_tuple_that_is_no_pair_is_no_frame(caller: Any) -> None:
    with pytest.raises(BadRequestError, match="got tuple"):
        list(caller.run("segment_stream", [(1, 2, image(0))]))
