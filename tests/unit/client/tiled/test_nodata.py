"""Pixels of a GeoTIFF without data are in no map, no area and no object."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from segserve import Client
from segserve.tiled import TiledObjects, TiledSemanticResult, results
from segserve.tiled.grid import Window
from segserve.tiled.sources import open_source

GEO = [(34735, "H", 4, (1, 1, 0, 0), True)]
HEIGHT, WIDTH = 250, 300


@pytest.fixture
def valid() -> np.ndarray:
    """Data but in a corner and in a stripe that crosses tiles."""
    valid = np.ones((HEIGHT, WIDTH), np.bool_)
    valid[:40, :60] = False
    valid[70:80] = False
    return valid


def nodata_tag(value: int) -> tuple[Any, ...]:
    return (42113, "s", 0, str(value), True)


def grey(path: Path, scene: np.ndarray, valid: np.ndarray, **kind: Any) -> None:
    tifffile.imwrite(path, np.where(valid, scene, 7), extratags=[*GEO, nodata_tag(7)], **kind)


def planar(path: Path, scene: np.ndarray, valid: np.ndarray) -> None:
    bands = np.stack([np.where(valid, scene, 7)] * 3)
    bands[0, 0, 70] = 7  # a value of nodata in one band alone is data
    tifffile.imwrite(path, bands, photometric="rgb", planarconfig="separate", extratags=[*GEO, nodata_tag(7)])


def alpha(path: Path, scene: np.ndarray, valid: np.ndarray) -> None:
    bands = np.dstack([scene, scene, scene, valid.astype(np.uint8) * 200])
    tifffile.imwrite(path, bands, photometric="rgb", extrasamples=["unassalpha"], extratags=GEO, tile=(64, 64))


def masked(path: Path, scene: np.ndarray, valid: np.ndarray) -> None:
    with tifffile.TiffWriter(path) as writer:
        writer.write(scene, extratags=GEO, compression="zlib", rowsperstrip=9)
        writer.write(scene[::2, ::2], subfiletype=1, compression="zlib")
        writer.write(valid[::2, ::2], subfiletype=5, photometric="mask", compression="zlib")
        writer.write(valid, subfiletype=4, photometric="mask", compression="zlib")


def turned(path: Path, scene: np.ndarray, valid: np.ndarray) -> None:
    stored = np.ascontiguousarray(np.where(valid, scene, 7)[:, ::-1].swapaxes(0, 1))
    tifffile.imwrite(path, stored, extratags=[*GEO, nodata_tag(7), (274, "H", 1, 6, True)])


@pytest.mark.parametrize("write", [grey, planar, alpha, masked, turned])
@pytest.mark.parametrize("out", [None, "folder"])
def test_a_map_has_a_value_of_its_own_where_the_image_has_no_data(
    client: Client, scene: np.ndarray, valid: np.ndarray, tmp_path: Path, write: Any, out: str | None
) -> None:
    scene = scene[100 : 100 + HEIGHT, :WIDTH]
    write(tmp_path / "a.tif", scene, valid)

    result = client.segment_tiled(
        tmp_path / "a.tif", model="classes", tile=128, overlap=64, out=None if out is None else tmp_path / out,
        expect=TiledSemanticResult,
    )  # fmt: skip

    expected = np.where(valid, (scene > 0).astype(np.uint8) + (scene >= 128), 255)
    assert result.nodata == 255
    assert (np.asarray(result.labels[:]) == expected).mean() > 0.9999  # but for one pixel of `planar`
    assert sum(result.areas.values()) == valid.sum()
    results.write_tiff(result, tmp_path / "labels.tif")
    results.write_png(result, tmp_path / "labels.png")
    with tifffile.TiffFile(tmp_path / "labels.tif") as tiff:
        assert tiff.pages.first.tags["GDAL_NODATA"].value == "255"
    with Image.open(tmp_path / "labels.png") as picture:
        assert picture.convert("RGB").getpixel((0, 0)) == (0, 0, 0)


@pytest.mark.parametrize("model", ["objects", "segments", "boxes"])
def test_objects_end_where_the_data_do(
    client: Client, scene: np.ndarray, valid: np.ndarray, tmp_path: Path, model: str
) -> None:
    scene = scene[100 : 100 + HEIGHT, :WIDTH].copy()
    scene[5:15, 5:15] = 200  # without data as a whole
    alpha(tmp_path / "a.tif", scene, valid)

    result = client.segment_tiled(
        tmp_path / "a.tif", model=model, tile=128, overlap=64, id_map=True, expect=TiledObjects
    )

    assert len(result) > 3
    assert not any(box[2] <= 16 and box[3] <= 16 for box in (one.box for one in result))
    if model != "boxes":
        drawn = np.zeros(valid.shape, np.bool_)
        for one in result:
            if one.rle is not None:
                drawn[one.window.slices()] |= one.mask
        assert not drawn[~valid].any()
        assert (drawn == (scene > 0) & valid).all()
        assert not result.ids[~valid].any()
        assert sum(result.areas.values()) == (valid.sum() if model == "segments" else drawn.sum())


def test_alpha_and_pages_of_an_image_that_is_no_geotiff_are_no_masks(tmp_path: Path, scene: np.ndarray) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.dstack([scene] * 4), photometric="rgb", extrasamples=["unassalpha"])

    assert open_source(tmp_path / "a.tif").mask is None


def test_a_value_that_no_pixel_can_have_marks_none(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((9, 9), np.uint8), extratags=[nodata_tag(-9999)])
    source = open_source(tmp_path / "a.tif")

    assert source.mask is not None
    assert source.mask.read(Window(0, 0, 9, 9)).all()
    source.close()
