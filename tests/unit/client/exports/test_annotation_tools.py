"""LabelMe, Label Studio, CVAT and datumaro read what was exported, and have the masks, labels and scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segserve.results.annotation import Annotation, foreground

from .results import MASKED, cases

EXPORTS = ("labelme", "label-studio", "cvat")
pytestmark = pytest.mark.needs("peers")


def read(folder: Path, case: str, export: str) -> dict[str, Any]:
    with np.load(folder / case / f"{export}.npz", allow_pickle=False) as found:
        return dict(found)


def exported(case: str) -> dict[int, Annotation]:
    found = foreground(cases()[case].annotations())
    return {one.number: one for one in found if one.mask is not None and one.mask.area}


def by_number(found: dict[str, Any]) -> dict[int, np.ndarray]:
    """Return each object's mask: the union of its parts."""
    masks: dict[int, np.ndarray] = {}
    for number, mask in zip(found["numbers"].tolist(), found["masks"], strict=True):
        masks[number] = masks.get(number, False) | mask
    return masks


@pytest.mark.parametrize("export", EXPORTS)
@pytest.mark.parametrize("case", MASKED)
def test_masks_come_back_pixel_by_pixel(read_back: Path, case: str, export: str) -> None:
    found = by_number(read(read_back, case, f"{export}-mask"))

    expected = exported(case)
    assert found.keys() == expected.keys()
    for number, one in expected.items():
        assert one.mask is not None
        np.testing.assert_array_equal(found[number], one.mask.bitmap)


@pytest.mark.parametrize("export", EXPORTS)
@pytest.mark.parametrize("case", MASKED)
def test_polygons_come_back_as_the_masks_without_their_holes(read_back: Path, case: str, export: str) -> None:
    from scipy import ndimage

    found = by_number(read(read_back, case, f"{export}-polygon"))

    for number, one in exported(case).items():
        assert one.mask is not None
        np.testing.assert_array_equal(found[number], ndimage.binary_fill_holes(one.mask.bitmap, np.ones((3, 3))))


@pytest.mark.parametrize("export", [f"{name}-{shapes}" for name in EXPORTS for shapes in ("mask", "polygon")])
@pytest.mark.parametrize("case", ["coins", "hard", "panoptic", "boxes"])
def test_labels_and_scores_come_back(read_back: Path, case: str, export: str) -> None:
    found = read(read_back, case, export)

    expected = {one.number: one for one in cases()[case].annotations()}
    for number, label, score in zip(found["numbers"].tolist(), found["labels"], found["scores"], strict=True):
        assert label == expected[number].class_name
        assert score == pytest.approx(expected[number].score, abs=1e-5)


@pytest.mark.parametrize("shapes", ["mask", "polygon"])
def test_label_studio_finds_nothing_wrong_with_a_prediction(read_back: Path, shapes: str) -> None:
    errors = {case: read(read_back, case, f"label-studio-{shapes}")["errors"].tolist() for case in cases()}

    assert not any(errors.values()), errors


def test_cvats_own_sdk_decodes_the_same_masks_as_datumaro(read_back: Path) -> None:
    for case in MASKED:
        found = read(read_back, case, "cvat-mask")
        np.testing.assert_array_equal(found["sdk_masks"], found["masks"])


@pytest.mark.parametrize("export", ["cvat-mask", "label-studio-mask"])
def test_boxes_and_points_come_back(read_back: Path, export: str) -> None:
    height, width = cases()["boxes"].size
    boxes = np.clip([(5.5, 6, 40, 30.25), (60, 40, 90, 70)], 0, (width, height, width, height))

    found = np.clip(read(read_back, "boxes", export)["boxes"], 0, (width, height, width, height))
    np.testing.assert_allclose(found, boxes)
    np.testing.assert_allclose(read(read_back, "people", export)["points"], [(12, 14), (30, 22)])


def test_cvats_documents_of_two_images_are_read_as_one(read_back: Path) -> None:
    found = read(read_back, "boxes", "cvat-merged")

    assert found["images"].tolist() == ["again", "photo"]
    assert found["labels"].tolist() == ["cell & <wall>", "naïve"] * 2


def test_an_embedded_image_is_the_one_that_was_given(read_back: Path) -> None:
    found = read(read_back, "boxes", "labelme-mask")

    assert found["image"].shape == (60, 80, 3)
    np.testing.assert_array_equal(found["image"][3, :, 0], np.arange(80))


def test_datumaro_reads_the_panoptic_segments_that_have_pixels(read_back: Path) -> None:
    found = read(read_back, "panoptic", "panoptic")

    assert sorted(found["numbers"].tolist()) == [1, 70, 300]
    expected = exported("panoptic")
    for number, mask, label, area in zip(
        found["numbers"].tolist(), found["masks"], found["labels"], found["areas"], strict=True
    ):
        one = expected[number]
        assert one.mask is not None
        np.testing.assert_array_equal(mask, one.mask.bitmap)
        assert (label, area) == (one.class_name, one.mask.area)
