"""`segserve predict` prints what was found and writes overlays where it was told."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import typer
from PIL import Image
from pycocotools import mask as coco
from typer.testing import CliRunner

from segserve import BadRequestError, ModelNotFoundError
from segserve_platform.cli.image_files import image_files, overlay_paths
from segserve_platform.cli.predict import predict

from .conftest import HEIGHT, WIDTH, coin_masks, decoded

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from click.testing import Result

    from fakes.kserve import Gateway

app = typer.Typer()
app.command()(predict)


@pytest.fixture
def url(gateway: Gateway) -> Iterator[str]:
    with gateway.http() as url:
        yield url


@pytest.fixture
def images(tmp_path: Path, photo: bytes) -> list[Path]:
    paths = [tmp_path / "one.png", tmp_path / "two.jpg"]
    for path in paths:
        path.write_bytes(photo)
    return paths


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "100"})


def test_instances_are_counted_by_class(url: str, images: list[Path]) -> None:
    result = run("discs", *images, "--url", url)

    assert result.exit_code == 0
    for text in ("one.png", "two.jpg", "coin", "2", "0.87 to 0.93", "discs-bbbbbbbbbb"):
        assert text in result.output


def test_semantic_classes_are_listed_with_their_areas(url: str, images: list[Path]) -> None:
    result = run("coins", images[0], "--url", url)

    area = int(coin_masks().any(axis=0).sum())
    assert f"{area:,}" in result.output
    assert f"{area / (HEIGHT * WIDTH):.1%}" in result.output


def test_json_is_one_coco_data_set_of_all_images_and_nothing_else(url: str, images: list[Path]) -> None:
    data = json.loads(run("discs", *images, "--json", "--url", url).stdout)

    assert [image["file_name"] for image in data["images"]] == ["one.png", "two.jpg"]
    assert [(a["id"], a["image_id"]) for a in data["annotations"]] == [(1, 1), (2, 1), (3, 2), (4, 2)]
    first = data["annotations"][0]["segmentation"]
    np.testing.assert_array_equal(decoded(first | {"counts": first["counts"].encode()}), coin_masks()[0])
    assert coco.area(first) == data["annotations"][0]["area"]


@pytest.mark.parametrize(
    ("output", "written"),
    [
        pytest.param("out", ["out/one.png", "out/two.png"], id="a folder"),
        pytest.param("out/{stem}-found.jpg", ["out/one-found.jpg", "out/two-found.jpg"], id="a pattern"),
    ],
)
def test_overlays_of_several_images_go_to_files_of_their_own(
    url: str, images: list[Path], tmp_path: Path, output: str, written: list[str]
) -> None:
    result = run("discs", *images, "-o", tmp_path / output, "--url", url)

    assert result.exit_code == 0
    for path in written:
        with Image.open(tmp_path / path) as overlay:
            assert overlay.size == (WIDTH, HEIGHT)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        pytest.param(["dogs", "IMAGE"], ModelNotFoundError, "'dogs'", id="an unknown model"),
        pytest.param(["coins", "none.png"], BadRequestError, "none.png.*No such file", id="a missing image"),
        pytest.param(["coins", "IMAGE", "-o", "x.nope"], BadRequestError, "x.nope", id="an overlay of no format"),
        pytest.param(
            ["coins", "IMAGE", "-o", "IMAGE"], BadRequestError, "would overwrite", id="an overlay over its image"
        ),
    ],
)
def test_a_users_mistake_is_a_typed_error(
    url: str, images: list[Path], arguments: list[Any], kind: type[Exception], message: str
) -> None:
    result = run(*[images[0] if word == "IMAGE" else word for word in arguments], "--url", url)

    assert type(result.exception) is kind
    with pytest.raises(kind, match=message):
        raise result.exception


@pytest.mark.parametrize("length", [244, 250, 255])
def test_an_image_whose_name_is_as_long_as_file_systems_allow_is_segmented(
    url: str, images: list[Path], tmp_path: Path, length: int
) -> None:
    image = images[0].rename(images[0].with_name(f"{'x' * (length - 4)}.png"))

    result = run("discs", image, "-o", tmp_path / "out/", "--coco", tmp_path / "out.json", "--url", url)

    assert result.exit_code == 0, result.output
    assert [each.name for each in (tmp_path / "out").iterdir()] == [image.name]


def test_two_images_cannot_share_an_overlay(tmp_path: Path) -> None:
    twins = [tmp_path / "a/x.png", tmp_path / "b/x.png"]
    with pytest.raises(BadRequestError, match="2 overlays"):
        overlay_paths(image_files(map(str, twins), recursive=False).images, tmp_path / "out.png")


@pytest.mark.parametrize(
    ("named", "overlays"),
    [
        (["plain.tif", "plain.webp", "other.png"], ["plain.tif.png", "plain.webp.png", "other.png"]),
        (["a/x.png", "b/x.png", "y.png"], ["a/x.png", "b/x.png", "y.png"]),
        (["a/x.png", "b/x.png", "b/x.jpg"], ["a/x.png", "b/x.png", "x.png"]),
    ],
)
def test_overlays_of_images_that_share_a_name_are_told_apart(
    tmp_path: Path, named: list[str], overlays: list[str]
) -> None:
    images = image_files([str(tmp_path / name) for name in named], recursive=False).images

    assert list(overlay_paths(images, tmp_path / "out").values()) == [tmp_path / "out" / name for name in overlays]


def test_overlays_that_cannot_be_told_apart_name_their_images(tmp_path: Path) -> None:
    images = image_files(["plain.tif", "plain.webp", "plain.tif.png"], recursive=False).images

    with pytest.raises(BadRequestError, match=r"outputs of 'plain\.tif' and 'plain\.tif\.png' would share a file"):
        overlay_paths(images, tmp_path / "out")
