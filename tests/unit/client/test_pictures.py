"""Overlays can be read on any background, crops are the right pixels, and notebooks show something."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from segserve import (
    BadRequestError,
    Detection,
    DetectionResult,
    Instance,
    InstanceResult,
    KeypointDetection,
    KeypointResult,
    PanopticResult,
    PanopticSegment,
    SegmentClass,
    SemanticResult,
)
from segserve.results.masks import EncodedMask
from segserve_common.drawing.canvas import _eroded
from segserve_common.drawing.palette import OKABE_ITO, palette, readable_on

HEIGHT, WIDTH = 300, 400
CLASSES = (SegmentClass(0, "background"), SegmentClass(1, "dog"), SegmentClass(2, "bicycle"))
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]
DISC = np.hypot(ROWS - 150, COLUMNS - 200) < 60


def instances(*masks: np.ndarray, class_id: int = 1) -> InstanceResult:
    height, width = masks[0].shape
    encoded = [EncodedMask.of(mask) for mask in masks]
    boxes = [tuple(map(float, one.patch().box)) for one in encoded]
    found = (Instance(box, 0.9, class_id, "dog", one) for box, one in zip(boxes, encoded, strict=True))
    return InstanceResult("m", "m-aa", (height, width), CLASSES, tuple(found))


def contrast(one: np.ndarray, other: np.ndarray) -> float:
    """Return WCAG's contrast of two colours, from 1 to 21."""
    high, low = sorted(float((np.asarray(c) / 255) ** 2.2 @ (0.2126, 0.7152, 0.0722)) for c in (one, other))[::-1]
    return (high + 0.05) / (low + 0.05)


def test_an_overlay_of_a_label_map_encodes_no_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    result = SemanticResult("m", "m-aa", (HEIGHT, WIDTH), CLASSES, {"dog": 9}, None, bytes(HEIGHT * WIDTH), {})
    monkeypatch.setattr(EncodedMask, "of", None)

    assert result.overlay(np.zeros((HEIGHT, WIDTH, 3), np.uint8), legend=False).size == (WIDTH, HEIGHT)


@pytest.mark.parametrize("pixels", range(20))
def test_a_mask_is_eroded_as_if_pixel_by_pixel(pixels: int) -> None:
    mask = np.random.default_rng(pixels).random((90, 70)) < 0.999
    expected = mask
    for _ in range(pixels):
        crosses = [expected[1:-1, 1:-1], expected[:-2, 1:-1], expected[2:, 1:-1], expected[1:-1, :-2]]
        expected = np.logical_and.reduce([*crosses, expected[1:-1, 2:]])

    assert np.array_equal(_eroded(mask, pixels), expected)
    assert 0 < expected.sum() < expected.size


@pytest.mark.parametrize("index", range(len(OKABE_ITO)))
@pytest.mark.parametrize("ground", [(0, 0, 0), (255, 255, 255), "itself"])
def test_a_contour_stands_out_from_any_background(ground: object, index: int) -> None:
    disc = EncodedMask.of(DISC)
    found = Instance((140, 90, 261, 211), 0.9, index, "dog", disc)
    result = InstanceResult("m", "m-aa", (HEIGHT, WIDTH), (SegmentClass(index, "dog"),), (found,))
    image = np.full((HEIGHT, WIDTH, 3), palette(index) if ground == "itself" else ground, np.uint8)

    drawn = np.asarray(result.overlay(image, alpha=0, labels=False, colour_by="class"))

    lines = np.unique(drawn[DISC], axis=0)
    assert max(contrast(line, image[0, 0]) for line in lines) > 4.5


def test_text_on_a_colour_has_the_contrast_that_wcag_asks_for() -> None:
    colours = [palette(index) for index in range(60)]

    assert [each for each in colours if contrast(np.array(each), np.array(readable_on(each))) <= 4.5] == []


def test_without_filling_only_the_contour_is_drawn_and_without_contour_only_the_filling() -> None:
    ground = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    contour = np.asarray(instances(DISC).overlay(ground, alpha=0, labels=False))
    filled = np.asarray(instances(DISC).overlay(ground, contour=False, labels=False))

    assert (contour[150, 200] == 90).all()
    assert (contour != 90).any(axis=2).sum() < DISC.sum() / 4
    assert len(np.unique(filled[DISC], axis=0)) == 1


def test_a_mask_that_leaves_the_image_has_no_contour_along_its_edge() -> None:
    ground = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    drawn = np.asarray(instances(COLUMNS < 200).overlay(ground, alpha=0, labels=False))

    assert (drawn[:, :190] == 90).all()
    assert (drawn[:, 198:200] != 90).any()


def test_labels_leave_most_of_a_crowded_or_small_image_to_see() -> None:
    rng = np.random.default_rng(0)
    discs = [np.hypot(ROWS - y, COLUMNS - x) < 9 for y, x in rng.integers(10, 290, (200, 2))]
    for result, size in ((instances(*discs), (WIDTH, HEIGHT)), (instances(DISC[100:164, 150:214]), (64, 64))):
        ground = Image.new("RGB", size, (90, 90, 90))
        plain, labelled = (np.asarray(result.overlay(ground, labels=labels)) for labels in (False, True))
        assert 0 < (plain != labelled).any(axis=2).mean() < 0.3


def test_a_legend_names_what_does_not_fit_by_its_number() -> None:
    many = tuple(SegmentClass(number, f"class {number}") for number in range(1, 151))
    labels = (np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) % 150 + 1).astype(np.uint8)
    areas = {known.name: int((labels == known.id).sum()) for known in many}
    result = SemanticResult("m", "m-aa", (HEIGHT, WIDTH), many, areas, None, labels.tobytes(), {})

    ground = Image.new("RGB", (WIDTH, HEIGHT))
    with_legend, without = (np.asarray(result.overlay(ground, legend=legend)) for legend in (True, False))
    covered = (with_legend != without).any(axis=2)
    assert 0 < covered.mean() < 0.4


def test_no_thing_has_the_colour_of_stuff() -> None:
    ids = (ROWS // 30 + 1).astype(np.uint8)
    segments = tuple(
        PanopticSegment((0, 0, 9, 9), 0.9, 1, "dog", id=number, is_thing=number > 1, area=12_000)
        for number in range(1, 11)
    )
    result = PanopticResult("m", "m", (HEIGHT, WIDTH), CLASSES, segments, ids.tobytes(), {})

    drawn = np.asarray(result.overlay(Image.new("RGB", (WIDTH, HEIGHT)), alpha=1, labels=False))
    assert len({tuple(drawn[row, 200]) for row in range(15, 300, 30)}) == 10


@pytest.mark.parametrize("alpha", [-0.1, 1.5, float("nan")])
def test_an_alpha_that_is_no_share_is_refused(alpha: float) -> None:
    with pytest.raises(BadRequestError, match="alpha"):
        instances(DISC).overlay(Image.new("RGB", (WIDTH, HEIGHT)), alpha=alpha)


def test_a_crop_is_the_objects_box_with_a_margin_as_far_as_the_image_goes() -> None:
    image = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
    result = instances(DISC, COLUMNS < 5)

    np.testing.assert_array_equal(np.asarray(result.crop(0, image)), image[91:210, 141:260])
    np.testing.assert_array_equal(np.asarray(result.crop(1, image, margin=7)), image[:, :12])
    np.testing.assert_array_equal(np.asarray(result.with_image(image).crop(-1)), image[:, :5])


def test_a_cut_out_is_transparent_outside_the_mask() -> None:
    image = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    cut = np.asarray(instances(DISC).crop(0, image, margin=3, cut_out=True))

    np.testing.assert_array_equal(cut[..., 3] == 255, DISC[88:213, 138:263])


def test_what_cannot_be_cropped_says_why() -> None:
    boxes = DetectionResult("m", "m", (HEIGHT, WIDTH), CLASSES, (Detection((500, 5, 600, 9), 0.5, 1, "dog"),))
    image = Image.new("RGB", (WIDTH, HEIGHT))

    with pytest.raises(BadRequestError, match="outside the image"):
        boxes.crop(0, image)
    with pytest.raises(BadRequestError, match="only a box"):
        boxes.crop(0, image, margin=500, cut_out=True)
    with pytest.raises(IndexError):
        boxes.crop(1, image)


def test_areas_are_pixels_of_masks_or_of_boxes() -> None:
    assert instances(DISC, ~DISC).areas.tolist() == [DISC.sum(), (~DISC).sum()]
    boxes = DetectionResult("m", "m", (HEIGHT, WIDTH), CLASSES, (Detection((5, 5, 15, 9.5), 0.5, 1, "dog"),))
    assert boxes.areas.tolist() == [45]
    assert boxes.to_rows() == [
        {"index": 0, "class_id": 1, "class": "dog", "score": 0.5, "x1": 5, "y1": 5, "x2": 15, "y2": 9.5}
    ]


def test_rows_of_every_kind_are_flat_and_have_the_same_columns() -> None:
    labels = DISC.astype(np.uint8)
    areas = {"background": int((~DISC).sum()), "dog": int(DISC.sum())}
    semantic = SemanticResult(
        "m", "m", DISC.shape, CLASSES[:2], areas, {"background": 0.9, "dog": 0.8}, labels.tobytes(), {}
    )
    points = KeypointDetection((1, 2, 3, 4), 0.5, 1, "dog", np.array([[1, 2, 0.5], [3, 4, 0.25]], np.float32))
    keypoints = KeypointResult("m", "m", DISC.shape, CLASSES, (points, points))

    assert semantic.to_rows()[1] == {
        "class_id": 1,
        "class": "dog",
        "area": DISC.sum(),
        "share": DISC.mean(),
        "score": 0.8,
    }
    assert list(keypoints.to_rows()[0])[-3:] == ["point1_x", "point1_y", "point1_score"]
    for result in (semantic, keypoints, instances(DISC, ~DISC)):
        first, second = result.to_rows()
        assert first.keys() == second.keys()
        assert all(isinstance(value, int | float | str) for value in first.values())


def test_a_notebook_shows_a_table_and_a_small_picture() -> None:
    result = instances(DISC)
    for html in (result._repr_html_(), result.with_image(np.zeros((HEIGHT, WIDTH, 3), np.uint8))._repr_html_()):
        assert "<td>dog</td><td>1</td>" in html
        (data,) = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
        assert Image.open(io.BytesIO(base64.b64decode(data))).size == (400, 300)


def test_a_large_result_is_shown_without_a_picture_of_its_own() -> None:
    result = DetectionResult("m", "m", (20_000, 20_000), CLASSES, ())
    assert "<img" not in result._repr_html_()
