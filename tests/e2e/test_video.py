"""Streams of frames through the gateway: whatever is lost, late or interleaved, answers are those of the definition."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from bench.coins import variant, write
from bench.platform import Running, platform
from examples.coins.in_process import resources
from examples.coins.score import photograph
from segserve import AsyncClient, Client
from segserve_builder.steps.in_process import InProcessModel
from segserve_builder.steps.preprocess import NetworkInput
from segserve_builder.values import ResizeTransform

pytestmark = pytest.mark.platform

SIZE = 96
ALPHA = 0.3
VOTERS = 3
AVERAGE = {"temporalSmoothing": {"method": "exponential", "alpha": ALPHA, "maxStreams": 4}}
VOTES = {"temporalSmoothing": {"method": "votes", "frames": VOTERS}}
ADMITTED = {"temporalSmoothing": {"alpha": ALPHA, "maxStreams": 4, "sequenceBatcher": True}}
GREY = photograph()


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    models = [
        variant(name="average", postprocess=[AVERAGE, {"argmax": {}}], output={"encoding": "raw"}),
        variant(name="votes", postprocess=[{"argmax": {}}, VOTES], output={"encoding": "raw"}),
        variant(name="admitted", postprocess=[ADMITTED, {"argmax": {}}], output={"encoding": "raw"}),
    ]
    for model in models:
        del model["spec"]["golden"]  # its answers have small regions removed
    path = write(Path(tmp_path_factory.mktemp("video")) / "model.yaml", *models)
    with platform(path) as running:
        yield running


@pytest.fixture(scope="module")
def logits_of() -> Callable[[np.ndarray], np.ndarray]:
    """The network's own logits of a frame, computed in this process."""
    network = InProcessModelOf.coins()
    return lambda frame: network.logits(frame)


@dataclass(frozen=True)
class InProcessModelOf:
    """One model's network, asked for raw logits."""

    model: InProcessModel

    @classmethod
    def coins(cls) -> InProcessModelOf:
        from examples.coins.in_process import in_process

        return cls(in_process(resources()["coins"]))

    def logits(self, frame: np.ndarray) -> np.ndarray:
        (logits,) = self.model.raw(NetworkInput(frame[None, None], ResizeTransform.of(SIZE, SIZE))).values()
        return np.asarray(logits[0, 0])


def frame(scene: int, number: int) -> np.ndarray:
    """Frame `number` of a camera that looks at one place of the photograph, with noise of its own."""
    top, left = [(10, 20), (120, 200), (200, 60)][scene]
    noise = np.random.default_rng(1000 * scene + number).normal(0, 12, (SIZE, SIZE))
    return np.clip(GREY[top : top + SIZE, left : left + SIZE] + noise, 0, 255).astype(np.uint8)


class Caller:
    """Sends frames as tritonclient's documentation says, by either protocol."""

    def __init__(self, running: Running, library: Any) -> None:
        self._library = library
        self._client = library.InferenceServerClient(running.url.removeprefix("http://"))

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def ask(self, model: str, pixels: np.ndarray, **options: Any) -> np.ndarray:
        tensor = self._library.InferInput("PIXELS", [*pixels.shape, 1], "UINT8")
        tensor.set_data_from_numpy(pixels[..., None])
        answer = self._client.infer(model, [tensor], **options)
        return np.frombuffer(answer.as_numpy("LABELS")[0], np.uint8).reshape(pixels.shape)


@pytest.fixture(params=[tritonclient.http, tritonclient.grpc], ids=["http", "grpc"])
def caller(video: Running, request: pytest.FixtureRequest) -> Iterator[Caller]:
    with Caller(video, request.param) as made:
        yield made


def averages(logits: dict[int, np.ndarray]) -> np.ndarray:
    """The definition of the moving average's labels after these frames."""
    first, *rest = sorted(logits)
    mean, last = logits[first].astype(np.float64), first
    for number in rest:
        before = (1 - ALPHA) ** (number - last)
        mean, last = before * mean + (1 - before) * logits[number], number
    return mean > 0


def majority(logits: dict[int, np.ndarray]) -> np.ndarray:
    """The definition of the vote after these frames, for two classes."""
    seen = [logits[number] > 0 for number in sorted(logits) if number > max(logits) - VOTERS]
    coins = np.sum(seen, 0)
    return np.where(2 * coins == len(seen), seen[-1], 2 * coins > len(seen))


DEFINITIONS = {"average": averages, "votes": majority}
LOST = [0, 1, 4, 5, 9]
LATE = [0, 2, 1, 3, 3, 6, 5, 7]


def check(found: np.ndarray, expected: np.ndarray) -> None:
    """A sum that is nearly 0 may fall to either side."""
    assert (found != expected).mean() < 1e-3


@pytest.mark.parametrize("model", DEFINITIONS)
@pytest.mark.parametrize("numbers", [LOST, LATE], ids=["lost", "late or repeated"])
def test_lost_and_late_frames_change_nothing_else(
    caller: Caller, model: str, numbers: list[int], logits_of: Callable[[np.ndarray], np.ndarray]
) -> None:
    taken: dict[int, np.ndarray] = {}
    for position, number in enumerate(numbers):
        pixels = frame(0, number)
        found = caller.ask(model, pixels, sequence_id=41, sequence_start=position == 0, parameters={"frame": number})
        if taken and number < max(taken):
            check(found, logits_of(pixels) > 0)
            continue
        taken[number] = logits_of(pixels)
        check(found, DEFINITIONS[model](taken))


@pytest.mark.parametrize("model", DEFINITIONS)
def test_smoothing_changes_what_a_frame_alone_would_be(
    caller: Caller, model: str, logits_of: Callable[[np.ndarray], np.ndarray]
) -> None:
    changed = 0
    for number in range(4):
        pixels = frame(0, number)
        smooth = caller.ask(model, pixels, sequence_id="steady", sequence_start=number == 0)
        alone = caller.ask(model, pixels)
        check(alone, logits_of(pixels) > 0)
        changed += int((smooth != alone).sum())

    assert changed > 20


@pytest.mark.parametrize("library", [tritonclient.http, tritonclient.grpc], ids=["http", "grpc"])
@pytest.mark.parametrize("model", ["average", "votes", "admitted"])
def test_streams_that_run_at_the_same_time_never_mix(
    video: Running, library: Any, model: str, logits_of: Callable[[np.ndarray], np.ndarray]
) -> None:
    definition = DEFINITIONS.get(model, averages)

    def play(scene: int) -> list[np.ndarray]:
        with Caller(video, library) as caller:
            return [
                caller.ask(
                    model,
                    frame(scene, number),
                    sequence_id=f"camera {scene}",
                    sequence_start=number == 0,
                    sequence_end=number == 7,
                    parameters={"frame": number},
                )
                for number in range(8)
            ]

    with ThreadPoolExecutor(3) as threads:
        answers = list(threads.map(play, range(3)))

    for scene, found in enumerate(answers):
        taken: dict[int, np.ndarray] = {}
        for number, labels in enumerate(found):
            taken[number] = logits_of(frame(scene, number))
            check(labels, definition(taken))


@pytest.mark.parametrize("transport", ["http", "grpc"])
@pytest.mark.parametrize("model", ["average", "votes", "admitted"])
def test_our_clients_stream_frames_as_the_definition_says_also_where_some_are_left_out(
    video: Running, model: str, transport: Any, logits_of: Callable[[np.ndarray], np.ndarray]
) -> None:
    with Client(video.url, transport=transport) as client:
        results = list(client.segment_stream(((n, frame(2, n)) for n in LOST), model=model, stream_id=2026))

    taken: dict[int, np.ndarray] = {}
    for number, result in zip(LOST, results, strict=True):
        taken[number] = logits_of(frame(2, number))
        check(result.labels, DEFINITIONS.get(model, averages)(taken))
    assert [result.continued for result in results] == [False, *[True] * (len(LOST) - 1)]


@pytest.mark.parametrize("model", ["average", "admitted"])
async def test_our_streams_run_side_by_side_without_mixing(
    video: Running, model: str, logits_of: Callable[[np.ndarray], np.ndarray]
) -> None:
    async def camera(scene: int) -> AsyncIterator[np.ndarray]:
        for number in range(5):
            yield frame(scene, number)

    async with AsyncClient(video.url) as client:

        async def play(scene: int) -> list[Any]:
            stream = client.segment_stream(camera(scene), model=model, stream_id=f"camera {scene}")
            return [result.labels async for result in stream]

        answers = await asyncio.gather(*map(play, (0, 1, 2)))
        answers += [await play(0)]

    for scene, found in zip((0, 1, 2, 0), answers, strict=True):
        taken: dict[int, np.ndarray] = {}
        for number, labels in enumerate(found):
            taken[number] = logits_of(frame(scene, number))
            check(labels, DEFINITIONS.get(model, averages)(taken))


def test_a_scene_cut_starts_anew(caller: Caller, logits_of: Callable[[np.ndarray], np.ndarray]) -> None:
    bright, dark = frame(0, 0), np.zeros((SIZE, SIZE), np.uint8)
    after_cut = frame(1, 0)
    assert ((logits_of(after_cut) > 0) != (logits_of(bright) > 0)).mean() > 0.25

    caller.ask("average", bright, sequence_id=77, sequence_start=True)
    check(caller.ask("average", after_cut, sequence_id=77), logits_of(after_cut) > 0)
    check(caller.ask("average", dark, sequence_id=77, sequence_end=True), logits_of(dark) > 0)


def test_a_stream_that_makes_room_for_others_begins_anew(
    caller: Caller, logits_of: Callable[[np.ndarray], np.ndarray]
) -> None:
    for name in ("first", "b", "c", "d", "e"):
        caller.ask("average", frame(0, 0), sequence_id=name, sequence_start=True)

    check(caller.ask("average", frame(0, 1), sequence_id="first"), logits_of(frame(0, 1)) > 0)


def test_an_answer_says_that_its_streams_state_began_anew(video: Running) -> None:
    with Client(video.url) as client:
        # They have not ended, and there are as many as the server keeps.
        others = [client.segment_stream(iter([frame(1, 0)]), model="average") for _ in range(4)]

        def frames() -> Iterator[np.ndarray]:
            yield from (frame(0, 0), frame(0, 1))
            assert [next(other).continued for other in others] == [False] * 4
            yield from (frame(0, 2), frame(0, 3))

        found = [result.continued for result in client.segment_stream(frames(), model="average", stream_id="forgotten")]
        alone = client.segment(frame(0, 0), model="average")

    assert found == [False, True, False, True]
    assert alone.continued is None


@pytest.mark.parametrize("number", ["soon", -1])
def test_a_frame_number_that_is_none_is_refused(caller: Caller, number: Any) -> None:
    with pytest.raises(InferenceServerException, match="parameter 'frame'"):
        caller.ask("average", frame(0, 0), sequence_id=5, parameters={"frame": number})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "must specify a non-zero or non-empty correlation ID"),
        ({"sequence_id": 900}, "must specify the START flag"),
    ],
)
def test_the_sequence_batcher_refuses_what_is_in_no_started_stream(
    caller: Caller, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InferenceServerException, match=message):
        caller.ask("admitted", frame(0, 0), **options)
