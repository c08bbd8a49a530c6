"""A golden set is replayed to one server, and the answers are scored against the labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from fakes.golden_pictures import CANDIDATE, Pictures, truth
from segserve_builder.scoring.regions import read_golden_images
from segserve_builder.scoring.replay import PAUSES_S, GoldenScores, replay

Answering = Callable[[bytes], Any]


def lost(pixels: np.ndarray) -> np.ndarray:
    """Return a label map whose stamps are called table."""
    return np.where(pixels == 2, 0, pixels).astype(np.uint8)


def shifted(pixels: np.ndarray) -> np.ndarray:
    return np.roll(pixels, 3, axis=0)


def scored(pictures: Pictures, answering: Answering, waited: list[float] | None = None) -> GoldenScores:
    revision = pictures.revision()
    assert revision.golden is not None
    images = read_golden_images(pictures.folder, revision.golden.sha256, revision.pipeline)

    def infer(image: bytes, parameters: Mapping[str, Any]) -> Any:
        return answering(image)

    return replay(images, infer, (waited if waited is not None else []).append)


def pixel_quality(answer: np.ndarray, label: np.ndarray) -> float:
    """Return an image's mean IoU of its classes, pixel by pixel."""
    shares = []
    for number in range(3):
        both, either = ((answer == number) & (label == number)).sum(), ((answer == number) | (label == number)).sum()
        shares += [both / either] if either else []
    return float(np.mean(shares))


@pytest.mark.parametrize("labels", ["labelMap", "labels"])
def test_right_answers_have_perfect_scores(pictures: Pictures, labels: str) -> None:
    pictures.write(labels=labels)
    found = scored(pictures, pictures.answering(CANDIDATE))

    assert found.images == (1.0,) * 6
    assert found.quality.means == {"iou": 1.0, "boundaryIou": 1.0, "recall": 1.0}
    assert found.quality.classes == {0: 1.0, 1: 1.0, 2: 1.0}
    assert found.labelled


def test_without_labels_the_expected_answers_stand_in(pictures: Pictures) -> None:
    pictures.write(labels="none")
    found = scored(pictures, pictures.answering(CANDIDATE, shifted))

    assert not found.labelled
    assert found.quality.means["iou"] < 0.8


def test_scores_equal_those_of_plain_numpy(pictures: Pictures) -> None:
    found = scored(pictures, pictures.answering(CANDIDATE, shifted))

    labels = np.stack([truth(number) for number in range(6)])
    answers = np.stack([shifted(pixels) for pixels in labels])
    expected = {
        number: float(
            ((answers == number) & (labels == number)).sum() / ((answers == number) | (labels == number)).sum()
        )
        for number in range(3)
    }
    assert sorted(found.images) == pytest.approx(sorted(map(pixel_quality, answers, labels)))
    assert found.quality.classes == pytest.approx(expected)
    assert found.quality.means["iou"] == pytest.approx(np.mean(list(expected.values())))


def test_a_lost_rare_class_shows_in_its_own_number(pictures: Pictures) -> None:
    found = scored(pictures, pictures.answering(CANDIDATE, lost))

    assert found.quality.classes[2] == 0.0
    assert found.quality.classes[1] == 1.0


@pytest.mark.parametrize("reply", [None, {"REVISION": np.array([CANDIDATE.encode()], np.object_)}])
def test_an_image_without_a_readable_answer_counts_as_empty_after_three_attempts(
    pictures: Pictures, reply: Any
) -> None:
    asked, first, good = list[bytes](), next(iter(pictures.shown)), pictures.answering(CANDIDATE)

    def answering(image: bytes) -> Any:
        asked.append(image)
        return reply if image == first else good(image)

    waited = list[float]()
    found = scored(pictures, answering, waited)

    assert sorted(found.images, key=np.isnan)[:5] == [1.0] * 5
    assert np.isnan(found.images).sum() == 1
    assert asked.count(first) == len(PAUSES_S)
    assert waited == [0.5, 2.0]
    assert found.lacks_answers
    assert found.quality.means["iou"] < 1.0


def test_an_image_that_is_answered_at_the_second_attempt_counts(pictures: Pictures) -> None:
    asked, first, good = list[bytes](), next(iter(pictures.shown)), pictures.answering(CANDIDATE)

    def answering(image: bytes) -> Any:
        asked.append(image)
        return None if image == first and asked.count(first) == 1 else good(image)

    assert scored(pictures, answering).images == (1.0,) * 6


def test_what_says_nothing_about_an_image_ends_the_replay(pictures: Pictures) -> None:
    def gone(_: bytes) -> Any:
        raise ConnectionError("the server is away")

    with pytest.raises(ConnectionError):
        scored(pictures, gone)
