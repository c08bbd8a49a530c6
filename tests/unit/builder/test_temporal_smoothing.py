"""Smoothing over the frames of a stream against its definition, and the streams that a server keeps."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.pipelines import pipeline_of
from segserve_builder.errors import BadImageError, PipelineError
from segserve_builder.families.base import NetworkIO, TensorSpec
from segserve_builder.render.config import postprocess_config
from segserve_builder.stages.base import RequestOptions
from segserve_builder.stages.temporal_smoothing import History, TemporalSmoothing
from segserve_builder.steps.pipeline import Pipeline
from segserve_builder.steps.postprocess import Postprocess, check_postprocess
from segserve_builder.steps.step_options import PostOptions
from segserve_builder.steps.streams import ENDS, STARTS, Frame, Streams, frame_number, smoothing_of
from segserve_builder.values import LabelMap, Logits, ResizeTransform

HEIGHT, WIDTH = 5, 7
NEVER_CUT = 1.0
AVERAGE = TemporalSmoothing(alpha=0.4, scene_cut=NEVER_CUT)
VOTES = TemporalSmoothing(method="votes", frames=4, scene_cut=NEVER_CUT)


def logits(seed: int, height: int = HEIGHT, channels: int = 3) -> Logits:
    values = np.random.default_rng(seed).normal(size=(channels, height, WIDTH)).astype(np.float32)
    values.setflags(write=False)
    return Logits(values, ResizeTransform.of(height, WIDTH))


def label_map(seed: int) -> LabelMap:
    labels = np.random.default_rng(seed).integers(0, 3, (HEIGHT, WIDTH)).astype(np.uint8)
    labels.setflags(write=False)
    return LabelMap(labels, logits(seed))


def play(stage: TemporalSmoothing, values: list[Any], numbers: list[int | None]) -> list[np.ndarray]:
    """Return what the stage answers to a stream's frames, one after the other."""
    history, found = None, []
    for value, number in zip(values, numbers, strict=True):
        answer, history = stage.step(value, history, number)
        found.append(answer.labels if isinstance(answer, LabelMap) else answer.values)
    return found


def averaged(frames: dict[int, np.ndarray], alpha: float) -> np.ndarray:
    """The definition: a frame counts (1 - alpha) to the number of frames since, whether they came or were lost."""
    first, *rest = sorted(frames)
    mean, last = frames[first].astype(np.float64), first
    for number in rest:
        before = (1 - alpha) ** (number - last)
        mean, last = before * mean + (1 - before) * frames[number], number
    return mean


def voted(frames: dict[int, np.ndarray], most: int) -> np.ndarray:
    """The definition, pixel by pixel: the most frequent class of the last frames, the newest's among equals."""
    seen = [frames[number] for number in sorted(frames) if number > max(frames) - most]
    found = np.empty_like(seen[0])
    for place in np.ndindex(found.shape):
        votes = [int(labels[place]) for labels in seen]
        count = Counter(votes)
        found[place] = next(label for label in reversed(votes) if count[label] == max(count.values()))
    return found


NUMBERS = st.lists(st.integers(0, 12), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(NUMBERS, st.floats(0.05, 1))
def test_logits_are_averaged_whatever_is_lost_late_or_repeated(numbers: list[int], alpha: float) -> None:
    stage = TemporalSmoothing(alpha=alpha, scene_cut=NEVER_CUT)
    values = [logits(number) for number in numbers]

    taken: dict[int, np.ndarray] = {}
    for number, value, answer in zip(numbers, values, play(stage, values, list(numbers)), strict=True):
        if taken and number < max(taken):
            np.testing.assert_array_equal(answer, value.values)
            continue
        taken[number] = value.values
        np.testing.assert_allclose(answer, averaged(taken, alpha), rtol=1e-4, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(NUMBERS, st.integers(1, 6))
def test_labels_are_voted_on_whatever_is_lost_late_or_repeated(numbers: list[int], most: int) -> None:
    stage = TemporalSmoothing(method="votes", frames=most, scene_cut=NEVER_CUT)
    values = [label_map(number) for number in numbers]

    taken: dict[int, np.ndarray] = {}
    for number, value, answer in zip(numbers, values, play(stage, values, list(numbers)), strict=True):
        if taken and number < max(taken):
            np.testing.assert_array_equal(answer, value.labels)
            continue
        taken[number] = value.labels
        np.testing.assert_array_equal(answer, voted(taken, most))


@pytest.mark.parametrize(("stage", "value"), [(AVERAGE, logits), (VOTES, label_map)])
def test_frames_without_a_number_follow_each_other(stage: TemporalSmoothing, value: Any) -> None:
    values = [value(seed) for seed in range(5)]

    for counted, uncounted in zip(play(stage, values, [0, 1, 2, 3, 4]), play(stage, values, [None] * 5), strict=True):
        np.testing.assert_array_equal(counted, uncounted)


@pytest.mark.parametrize(("stage", "value"), [(AVERAGE, logits), (VOTES, label_map)])
def test_a_step_changes_neither_the_frame_nor_the_history(stage: TemporalSmoothing, value: Any) -> None:
    _, history = stage.step(value(0), None)
    _, history = stage.step(value(1), history)
    assert history is not None
    before = [array.copy() for array in history.arrays]

    once = stage.step(value(2), history)
    again = stage.step(value(2), history)

    assert [array.tolist() for array in history.arrays] == [array.tolist() for array in before]
    assert [a.tolist() for a in once[1].arrays] == [a.tolist() for a in again[1].arrays]


@pytest.mark.parametrize(("stage", "value"), [(AVERAGE, logits), (VOTES, label_map)])
def test_the_history_keeps_nothing_of_the_request_itself(stage: TemporalSmoothing, value: Any) -> None:
    history = None
    for seed in range(3):
        frame = value(seed)
        array = (frame.labels if isinstance(frame, LabelMap) else frame.values).copy()
        field = "labels" if isinstance(frame, LabelMap) else "values"
        _, history = stage.step(
            type(frame)(**{name: getattr(frame, name) for name in frame.__slots__} | {field: array}), history
        )
        assert not any(np.shares_memory(array, kept) for kept in history.arrays)


def striped(shift: int, channels: int = 2) -> Logits:
    """Logits of which one column in ten becomes another class with every shift."""
    values = np.zeros((channels, 4, 10), np.float32)
    values[-1] = np.where((np.arange(10) + shift) % 10 < 5, 3, -3)
    return Logits(values, ResizeTransform.of(4, 10))


@pytest.mark.parametrize("channels", [1, 2])
def test_a_frame_in_which_too_much_changes_starts_anew(channels: int) -> None:
    stage = TemporalSmoothing(alpha=0.5, scene_cut=0.25)
    still, moved, cut = striped(0, channels), striped(1, channels), striped(5, channels)

    found = play(stage, [still, moved, cut, cut], [None] * 4)

    np.testing.assert_array_equal(found[1], (still.values + moved.values) / 2)
    np.testing.assert_array_equal(found[2], cut.values)
    np.testing.assert_array_equal(found[3], cut.values)


def test_votes_start_anew_at_a_scene_cut_too() -> None:
    stage = TemporalSmoothing(method="votes", frames=3, scene_cut=0.25)
    before, after = (np.full((4, 4), value, np.uint8) for value in (0, 1))
    maps = [LabelMap(labels, logits(0)) for labels in (before, before, after, after)]

    assert [int(labels[0, 0]) for labels in play(stage, maps, [None] * 4)] == [0, 0, 1, 1]


def test_a_frame_of_another_size_starts_anew() -> None:
    found = play(AVERAGE, [logits(0), logits(1, height=6), logits(2, height=6)], [None] * 3)

    np.testing.assert_array_equal(found[1], logits(1, height=6).values)
    assert found[2].shape == (3, 6, WIDTH)


def test_a_frame_that_was_placed_otherwise_starts_anew() -> None:
    there = Logits(logits(1).values, ResizeTransform(HEIGHT, WIDTH, 1, 0, HEIGHT - 1, WIDTH, HEIGHT, WIDTH))

    np.testing.assert_array_equal(play(AVERAGE, [logits(0), there], [None] * 2)[1], there.values)


def test_a_frame_by_itself_is_left_as_it_is() -> None:
    assert AVERAGE(logits(0), RequestOptions()).values is not None
    np.testing.assert_array_equal(AVERAGE(logits(0), RequestOptions()).values, logits(0).values)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


HISTORY = History(ResizeTransform.of(1, 1), (0,), (np.zeros((1, 1)),))


def streams(most: int = 2, max_idle_s: float = 10) -> tuple[Streams, Clock]:
    clock = Clock()
    return Streams(most, max_idle_s, clock), clock


def put(kept: Streams, stream: int | str, flags: int = 0) -> bool:
    """Send a frame; return whether its stream had a history."""
    frame = kept.frame(stream, flags, None)
    assert frame is not None
    known = frame.history is not None
    frame.history = HISTORY
    kept.keep(stream, flags, frame)
    return known


@pytest.mark.parametrize("nobody", [0, ""])
def test_a_request_without_a_sequence_id_is_no_stream(nobody: int | str) -> None:
    assert streams()[0].frame(nobody, 0, 7) is None


def test_streams_are_kept_by_number_or_by_text() -> None:
    kept, _ = streams()

    assert [put(kept, "camera"), put(kept, 7), put(kept, "camera"), put(kept, 7)] == [False, False, True, True]


def test_the_stream_that_is_idle_longest_makes_room() -> None:
    kept, _ = streams(most=2)

    assert [put(kept, name) for name in "abac"] == [False, False, True, False]
    assert len(kept) == 2
    assert [put(kept, name) for name in "ab"] == [True, False]


def test_idle_streams_are_forgotten() -> None:
    kept, clock = streams(max_idle_s=10)
    put(kept, "a")
    clock.now = 9
    assert put(kept, "a")
    clock.now = 19.5

    assert not put(kept, "a")


def test_streams_start_and_end_as_their_callers_say() -> None:
    kept, _ = streams()

    assert [put(kept, 1), put(kept, 1, STARTS), put(kept, 1, ENDS), put(kept, 1)] == [False, False, True, False]
    assert not put(kept, 2, STARTS | ENDS)
    assert len(kept) == 1


@pytest.mark.parametrize(("given", "number"), [(0, 0), ("17", 17), (2**40, 2**40)])
def test_frame_numbers_are_whole(given: Any, number: int) -> None:
    assert frame_number(given) == number


@pytest.mark.parametrize("given", [-1, 1.5, "x", True, "", None, "9" * 30, "٣"])
def test_other_frame_numbers_are_refused(given: Any) -> None:
    with pytest.raises(BadImageError, match="'frame'"):
        frame_number(given)


def pipeline(*postprocess: dict[str, Any]) -> Pipeline:
    return pipeline_of(classes=3, postprocess=postprocess, output={"encoding": "raw"})


IO = NetworkIO(
    TensorSpec("x", "UINT8", (None, 3, None, None)), "NCHW", (TensorSpec("y", "FP32", (None, 3, None, None)),)
)
ARGMAX: dict[str, Any] = {"argmax": {}}
EXPONENTIAL = {"temporalSmoothing": {"method": "exponential", "alpha": 0.4, "sceneCut": 1}}
VOTING = {"temporalSmoothing": {"method": "votes", "frames": 3, "sceneCut": 1}}


@pytest.mark.parametrize("steps", [(EXPONENTIAL, ARGMAX), (ARGMAX, VOTING)])
def test_a_pipeline_steadies_the_frames_of_a_stream_and_no_others(steps: tuple[dict[str, Any], ...]) -> None:
    made = pipeline(*steps)
    postprocess, stage = Postprocess(made, IO), smoothing_of(made)
    assert stage is not None
    history, expected = None, None
    for seed in range(4):
        value = logits(seed)
        frame = Frame(None, history)
        wanted = frozenset({"LABELS"})
        answer = postprocess({"y": value.values[None]}, value.transform, RequestOptions(), wanted, frame=frame)
        alone = postprocess({"y": value.values[None]}, value.transform, RequestOptions(), wanted)
        history = frame.history
        if stage.method == "exponential":
            smooth, expected = stage.step(value, expected)
            labels = smooth.values.argmax(0)
        else:
            found, expected = stage.step(LabelMap(value.values.argmax(0).astype(np.uint8), value), expected)
            labels = found.labels

        assert np.frombuffer(answer["LABELS"][0], np.uint8).tolist() == labels.ravel().tolist()
        assert np.frombuffer(alone["LABELS"][0], np.uint8).tolist() == value.values.argmax(0).ravel().tolist()


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ((ARGMAX, EXPONENTIAL), "exponential takes logits, got labels"),
        ((VOTING, ARGMAX), "votes takes labels, got logits"),
        ((EXPONENTIAL, ARGMAX, VOTING), "once is allowed"),
    ],
)
def test_smoothing_in_the_wrong_place_is_refused(steps: tuple[dict[str, Any], ...], message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        check_postprocess(pipeline(*steps))


@pytest.mark.parametrize("batcher", [False, True])
def test_the_sequence_batcher_is_asked_for_by_an_option(batcher: bool) -> None:
    options = {"sequenceBatcher": batcher, "maxStreams": 5}
    made = pipeline({"temporalSmoothing": options}, ARGMAX)

    config = postprocess_config(PostOptions.of(made, IO), "semantic", 1)

    assert config.HasField("sequence_batching") == batcher
    if batcher:
        assert config.sequence_batching.oldest.max_candidate_sequences == 5
        assert config.sequence_batching.max_sequence_idle_microseconds == 60_000_000
