"""Boxes, keypoints and segments: their pictures, their COCO JSON, their tables."""

from __future__ import annotations

import io

import numpy as np
import pytest
from rich.console import Console

from segserve import (
    BadRequestError,
    DetectionResult,
    Instance,
    InstanceResult,
    KeypointDetection,
    KeypointResult,
    PanopticResult,
    PanopticSegment,
    SegmentClass,
)
from segserve.rendering.display import table
from segserve.results.masks import EncodedMask
from segserve.results.objects import Detection
from segserve.results.result import Result

SIZE = (60, 80)
CLASSES = (SegmentClass(0, "sky", (0, 0, 255)), SegmentClass(1, "dog"))
POINTS = np.array([[12, 14, 0.9], [30, 22, 0.8]], np.float32)
IDS = np.zeros(SIZE, np.uint8)
IDS[:30], IDS[35:50, 20:60] = 1, 2


def about(kind: type[Result], **fields: object) -> Result:
    return kind(model="m", revision="m-aa", size=SIZE, classes=CLASSES, **fields)  # type: ignore[arg-type]


DETECTIONS = about(DetectionResult, detections=(Detection((5, 6, 40, 30), 0.75, 1, "dog"),))
KEYPOINTS = about(KeypointResult, detections=(KeypointDetection((5, 6, 40, 30), 0.75, 1, "dog", POINTS),))
SEGMENTS = about(
    PanopticResult,
    segments=(
        PanopticSegment((0, 0, 80, 30), 0.9, 0, "sky", id=1, is_thing=False, area=2400),
        PanopticSegment((20, 35, 60, 50), 0.8, 1, "dog", id=2, is_thing=True, area=600),
    ),
    encoded=IDS.tobytes(),
    encoded_masks={},
)
NOTHING = about(InstanceResult, instances=())


def drawn(result: Result, **options: bool) -> np.ndarray:
    return np.array(result.overlay(np.full((*SIZE, 3), 90, np.uint8), **options))


def changed(pixels: np.ndarray) -> np.ndarray:
    return np.asarray((pixels != 90).any(axis=2))


def test_a_box_is_drawn_as_its_outline_and_not_filled() -> None:
    touched = changed(drawn(DETECTIONS, labels=False))

    assert touched[6, 5:41].all()
    assert touched[6:31, 5].all()
    assert not touched[10:26, 10:36].any()


def test_points_are_drawn_where_they_are() -> None:
    touched = changed(drawn(KEYPOINTS, labels=False))

    assert touched[14, 12]
    assert touched[22, 30]
    assert not touched[18, 20]


def test_segments_are_filled_stuff_in_its_classes_colour() -> None:
    pixels = drawn(SEGMENTS, labels=False)

    assert changed(pixels).tolist() == (IDS > 0).tolist()
    assert pixels[15, 40, 2] > pixels[15, 40, 0]
    assert changed(drawn(SEGMENTS)).sum() > changed(pixels).sum()


@pytest.mark.parametrize("result", [DETECTIONS, KEYPOINTS, SEGMENTS, NOTHING])
def test_an_image_of_another_size_is_refused(result: Result) -> None:
    with pytest.raises(BadRequestError, match="60 x 80"):
        result.overlay(np.zeros((10, 10, 3), np.uint8))


def test_keypoints_are_written_as_coco_has_them() -> None:
    (found,) = KEYPOINTS.to_coco()["annotations"]

    assert found["keypoints"] == [12, 14, 2, 30, 22, 2]
    assert found["num_keypoints"] == 2


def test_a_segments_mask_is_that_of_its_id_in_every_encoding() -> None:
    assert isinstance(SEGMENTS, PanopticResult)
    masks = {one.id: EncodedMask((one.id == IDS).tobytes(), *SIZE) for one in SEGMENTS}
    by_mask = about(PanopticResult, segments=SEGMENTS.segments, encoded=None, encoded_masks=masks)

    assert isinstance(by_mask, PanopticResult)
    for result in (SEGMENTS, by_mask):
        np.testing.assert_array_equal(result.ids, IDS)
        np.testing.assert_array_equal(result.mask(result[1]), IDS == 2)


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (DETECTIONS, ["class  count  score", "dog        1   0.75"]),
        (SEGMENTS, ["class  count  score  area px  share", "sky        1   0.90    2,400  50.0%"]),
        (NOTHING, ["class    count", "nothing      0"]),
    ],
)
def test_the_table_counts_objects_and_shows_areas_only_where_there_are_masks(result: Result, said: list[str]) -> None:
    console = Console(file=io.StringIO(), width=100)
    drawn = table(result, "photo.jpg")
    drawn.box = None

    console.print(drawn)

    lines = [line.strip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]
    assert all(any(part == line for line in lines) for part in said), lines


def test_areas_and_boxes_of_masks_come_in_the_order_of_the_instances_whatever_their_encodings() -> None:
    bitmaps = np.zeros((3, *SIZE), np.bool_)
    bitmaps[0, 5:9, 70:80] = bitmaps[2, 59, :3] = True
    encoded = [EncodedMask.of(bitmaps[0]), EncodedMask(bitmaps[1].tobytes(), *SIZE), EncodedMask.of(bitmaps[2])]
    result = about(InstanceResult, instances=tuple(Instance((0, 0, 1, 1), 0.5, 1, "dog", each) for each in encoded))
    assert isinstance(result, InstanceResult)

    assert result.areas.tolist() == [40, 0, 3]
    assert result.mask_boxes.tolist() == [[70, 5, 80, 9], [0, 0, 0, 0], [0, 59, 3, 60]]
