"""What other programs read back of a large image: COCO by pycocotools, GeoJSON by shapely, maps by tifffile, Pillow."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import shapely
import tifffile
from PIL import Image
from pycocotools.coco import COCO

from segserve import Client
from segserve.tiled import ImageTooLargeError, results

from .conftest import parts
from .test_segment_tiled import TILES


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_coco_has_every_mask_at_its_place(client: Client, scene: np.ndarray, tmp_path: Path) -> None:
    result = client.segment_tiled(scene, model="objects", **TILES)

    results.write_coco(result, tmp_path / "found.json", "scene.png")

    coco = COCO(tmp_path / "found.json")
    expected = {mask.tobytes() for mask, _ in parts(scene)}
    assert {coco.annToMask(one).astype(bool).tobytes() for one in coco.anns.values()} == expected
    assert [one["area"] for one in coco.anns.values()] == [one.area for one in result]


def test_geojson_has_every_outline_on_the_map(client: Client, scene: np.ndarray, tmp_path: Path) -> None:
    result = client.segment_tiled(scene, model="objects", **TILES)

    results.write_geojson(result, tmp_path / "found.geojson", (0.5, 0, 1000, 0, -0.5, 2000))

    features = json.loads((tmp_path / "found.geojson").read_text())["features"]
    for feature, one in zip(features, result, strict=True):
        shape = shapely.geometry.shape(feature["geometry"])
        x1, y1, x2, y2 = one.box
        assert shape.is_valid
        assert shape.area == one.area / 4
        assert shape.bounds == (1000 + x1 / 2, 2000 - y2 / 2, 1000 + x2 / 2, 2000 - y1 / 2)


def test_maps_are_read_back_as_they_are(client: Client, scene: np.ndarray, tmp_path: Path) -> None:
    labels = client.segment_tiled(scene, model="classes", out=tmp_path / "labels", **TILES)
    found = client.segment_tiled(scene, model="objects", id_map=True, **TILES)

    results.write_tiff(labels, tmp_path / "labels.tif")
    results.write_png(labels, tmp_path / "labels.png")
    results.write_tiff(found, tmp_path / "ids.tif")
    results.write_png(found, tmp_path / "ids.png")

    assert (tifffile.imread(tmp_path / "labels.tif") == labels.labels[:]).all()
    assert (tifffile.imread(tmp_path / "ids.tif") == found.ids).all()
    with Image.open(tmp_path / "labels.png") as picture:
        assert (np.asarray(picture) == labels.labels[:]).all()
        assert picture.getpalette()[3:6] == [0xFF, 0xCC, 0x00]
    with Image.open(tmp_path / "ids.png") as picture:
        assert (np.asarray(picture) == found.ids).all()


def test_boxes_and_points_have_no_masks_in_coco(client: Client, scene: np.ndarray, tmp_path: Path) -> None:
    result = client.segment_tiled(scene, model="points", **TILES)

    results.write_coco(result, tmp_path / "found.json", "scene.png")
    results.write_geojson(result, tmp_path / "found.geojson")

    rows = json.loads((tmp_path / "found.json").read_text())["annotations"]
    assert all("segmentation" not in row and row["num_keypoints"] == 2 for row in rows)
    kinds = {one["geometry"]["type"] for one in json.loads((tmp_path / "found.geojson").read_text())["features"]}
    assert kinds == {"Polygon", "MultiPoint"}


def test_a_map_too_large_for_a_png_is_refused(
    client: Client, scene: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = client.segment_tiled(scene, model="classes", **TILES)
    monkeypatch.setattr(results, "MAX_DECODED_PIXELS", 1000)

    with pytest.raises(ImageTooLargeError, match="Write a TIFF"):
        results.write_png(result, tmp_path / "labels.png")
