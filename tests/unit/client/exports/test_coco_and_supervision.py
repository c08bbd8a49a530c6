"""pycocotools and supervision have every mask, box, point and class name of a result."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from segserve import KeypointResult, MissingExtraError, PanopticResult
from segserve.results.masks import masks_of_labels

from ..conftest import decoded
from .results import MASKED, cases


@pytest.mark.parametrize("case", MASKED)
def test_pycocotools_loads_the_file_and_gives_every_mask_back(case: str, tmp_path: Path) -> None:
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(cases()[case].to_coco(file_name="a.png")))
    with contextlib.redirect_stdout(io.StringIO()):
        index = COCO(str(path))

    found = index.loadAnns(index.getAnnIds())
    for one, annotation in zip(cases()[case].annotations(), found, strict=True):
        assert one.mask is not None
        np.testing.assert_array_equal(decoded(index.annToRLE(annotation)), one.mask.bitmap)
        assert index.cats[annotation["category_id"]]["name"] == one.class_name
        assert annotation["area"] == one.area


@pytest.mark.parametrize("compact", [False, True], ids=["dense", "compact"])
@pytest.mark.parametrize("case", ["coins", "coin_pixels", "hard", "crowd", "panoptic"])
def test_supervision_has_the_masks_boxes_scores_and_names(case: str, compact: bool) -> None:
    found = cases()[case].to_supervision(compact=compact)

    expected = list(cases()[case].annotations())
    assert len(found) == len(expected)
    assert found.data["class_name"].tolist() == [one.class_name for one in expected]
    assert found.confidence is not None
    assert found.confidence.tolist() == pytest.approx([one.score for one in expected])
    np.testing.assert_allclose(found.xyxy, [one.box for one in expected])
    for one, mask in zip(expected, np.asarray(found.mask), strict=True):
        assert one.mask is not None
        np.testing.assert_array_equal(mask, one.mask.bitmap)


def test_supervision_writes_and_reads_the_data_set_with_the_same_masks(tmp_path: Path) -> None:
    import supervision as sv

    coins = cases()["coins"]
    Image.new("RGB", (coins.size[1], coins.size[0])).save(tmp_path / "coins.png")
    (tmp_path / "coco.json").write_text(json.dumps(coins.to_coco(file_name="coins.png")))

    data = sv.DetectionDataset.from_coco(str(tmp_path), str(tmp_path / "coco.json"))

    (_, _, found) = next(iter(data))
    np.testing.assert_array_equal(found.mask, coins.to_supervision().mask)


def test_keypoints_are_supervisions_key_points() -> None:
    people = cases()["people"]
    assert isinstance(people, KeypointResult)
    found = people.to_key_points()

    assert found.xy.tolist() == [[[12, 14], [30, 22]]]
    assert found.keypoint_confidence is not None
    assert found.keypoint_confidence.ravel().tolist() == pytest.approx([0.9, 0.5])
    assert found.data["class_name"].tolist() == ["cell & <wall>"]
    assert people.to_supervision().xyxy.tolist() == [[5, 6, 40, 30]]


def test_nothing_found_is_no_detections() -> None:
    found = cases()["nothing"].to_supervision()
    assert (len(found), found.xyxy.shape) == (0, (0, 4))


def test_without_supervision_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(MissingExtraError, match=r"segserve\[annotations\]"):
        cases()["coins"].to_supervision()


def test_a_panoptic_png_has_the_id_in_its_colours_and_void_for_what_is_not_listed() -> None:
    result = cases()["panoptic"]
    assert isinstance(result, PanopticResult)
    document, png = result.to_coco_panoptic(image_id=7, file_name="folder/a.jpg")

    colours = np.asarray(Image.open(io.BytesIO(png)), np.uint32)
    ids = colours[..., 0] + 256 * colours[..., 1] + 65536 * colours[..., 2]
    np.testing.assert_array_equal(ids, np.where(result.ids == 9, 0, result.ids))
    (annotation,) = document["annotations"]
    assert (annotation["file_name"], annotation["image_id"]) == ("a.png", 7)
    assert {row["id"]: row["area"] for row in annotation["segments_info"]} == {1: 2400, 300: 550, 70: 50}
    assert {one["id"]: one["isthing"] for one in document["categories"]} == {1: 1, 2: 0}


def test_masks_of_a_label_map_are_those_of_its_values() -> None:
    labels = np.random.default_rng(0).integers(0, 5, (30, 40), np.uint8) * 60
    found = masks_of_labels(labels)

    assert sorted(found) == [60, 120, 180, 240]
    for value, mask in found.items():
        np.testing.assert_array_equal(mask.bitmap, labels == value)
