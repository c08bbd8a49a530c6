"""Results as plain values, data frames and files, for each type of result."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image, ImageShow
from pycocotools import mask as coco

from fakes.plain_answers import answer_schema
from segserve import BadRequestError, InstanceResult, MissingExtraError, SegserveError
from segserve.results.values import OutOfDistribution
from segserve_builder.openapi import ANSWERS

from ..conftest import decoded
from .results import CLASSES, cases

if TYPE_CHECKING:
    from pathlib import Path

    from segserve.results.result import Result

TASKS = {
    "coins": "instance",
    "coin_pixels": "semantic",
    "panoptic": "panoptic",
    "boxes": "detection",
    "people": "keypoints",
}


@pytest.fixture(params=TASKS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def result(name: str) -> Result:
    return cases()[name]


def test_a_result_as_json_is_an_answer_of_plain_http(name: str, result: Result) -> None:
    known = replace(result, request_id="r1", continued=True, out_of_distribution=OutOfDistribution(0.5, 0.7))
    document = json.loads(known.to_json())

    assert document == known.to_dict()
    assert document.pop("request_id") == "r1"
    answer_schema(ANSWERS[TASKS[name]]).validate(json.loads(json.dumps(document)))


def test_the_masks_of_plain_values_are_those_of_the_result(result: Result) -> None:
    (entries,) = (value for value in result.to_dict().values() if isinstance(value, list))
    masks = [one.mask for one in result.annotations() if one.mask is not None]
    plain = [entry["mask"] for entry in entries if "mask" in entry and coco.area(entry["mask"])]

    assert [decoded(mask).sum() for mask in plain] == [mask.area for mask in masks if mask.area]
    for ours, mask in zip(plain, (mask for mask in masks if mask.area), strict=True):
        np.testing.assert_array_equal(decoded(ours), mask.bitmap)


def test_a_data_frame_has_the_rows_of_the_result(result: Result) -> None:
    frame = result.to_pandas()

    assert frame.to_dict("records") == result.to_rows()


def test_a_data_frame_of_no_objects_has_the_columns_of_others() -> None:
    assert [*InstanceResult("m", "m-a", (4, 5), CLASSES, ()).to_pandas()] == [*cases()["coins"].to_pandas()]


def test_without_pandas_the_error_has_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'segserve\[pandas\]'"):
        cases()["boxes"].to_pandas()


def test_a_result_is_saved_and_shown_as_its_overlay(
    result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    height, width = result.size
    image = np.full((height, width, 3), 90, np.uint8)
    shown: list[Image.Image] = []
    monkeypatch.setattr(ImageShow, "show", lambda picture: shown.append(picture) or True)

    result.save(tmp_path / "new/on-image.png", image)
    result.with_image(image).save(tmp_path / "with-image.png")
    result.save(str(tmp_path / "on-grey.jpg"))
    result.show(image)
    result.with_image(image).show()
    result.show()

    overlay = result.overlay(image)
    for name in ("new/on-image.png", "with-image.png"):
        with Image.open(tmp_path / name) as picture:
            np.testing.assert_array_equal(picture, overlay)
    np.testing.assert_array_equal(shown[0], overlay)
    np.testing.assert_array_equal(shown[1], overlay)
    with Image.open(tmp_path / "on-grey.jpg") as picture:
        assert [picture.size, shown[2].size] == [(width, height)] * 2
    assert json.loads(result.save(tmp_path / "result.json").read_text()) == result.to_dict()


def test_an_unknown_suffix_and_a_machine_without_a_viewer_are_errors_that_name_another_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageShow, "_viewers", [])
    boxes = cases()["boxes"]
    with pytest.raises(BadRequestError, match=r"'\.xyz'.*\.json.*\.png"):
        boxes.save(tmp_path / "a.xyz")
    with pytest.raises(SegserveError, match=r"save\('result\.png'\)"):
        boxes.show()


def test_a_notebook_shows_the_picture_below_the_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Image.Image] = []
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    monkeypatch.setattr(ImageShow.IPythonViewer, "show", lambda _, picture: shown.append(picture) or 1)

    cases()["boxes"].show()

    assert [picture.size for picture in shown] == [(80, 60)]
