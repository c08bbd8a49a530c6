"""`segserve batch`: many large images into folders, taken up where it broke off, and a user's mistakes."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import typer
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from fakes.kserve import Arrays, Asked, Fault, Model, items
from segserve import GatewayUnreachableError, ModelNotFoundError
from segserve.tiled import open_result
from segserve_platform.cli.batch import batch, large_images
from segserve_platform.cli.errors import CommandError
from segserve_platform.cli.predict import predict

from .conftest import World, parts

app = typer.Typer()
app.command()(batch)


def run(world: World, *arguments: object) -> Result:
    words = [str(argument) for argument in (*arguments, "--url", world.url, "--tile", 128, "--overlap", 64)]
    return CliRunner().invoke(app, words, env={"COLUMNS": "100"})


@pytest.fixture
def images(scene: np.ndarray, tmp_path: Path) -> Path:
    import zarr

    folder = tmp_path / "images"
    folder.mkdir()
    Image.fromarray(scene[:200, :200]).save(folder / "a.png")
    np.save(folder / "b.npy", scene[:150, :200])
    zarr.create_array(folder / "c.zarr", data=scene[:140, :140])
    (folder / "notes.txt").write_text("no image")
    return folder


def test_every_image_of_a_folder_gets_a_folder(world: World, images: Path, tmp_path: Path) -> None:
    result = run(world, "classes", images, "--output", tmp_path / "out")

    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a", "b", "c"]
    assert open_result(tmp_path / "out" / "b").size == (150, 200)
    assert result.stdout.count("ground ") == 3


def test_the_same_command_again_sends_nothing_and_with_start_over_all(
    world: World, images: Path, tmp_path: Path
) -> None:
    words = ("objects", images / "a.png", "--output", tmp_path / "out")
    run(world, *words)
    sent = world.sent

    again, over = run(world, *words), run(world, *words, "--start-over")

    assert "(0 sent)" in again.stdout
    assert f"({sent} sent)" in over.stdout


@pytest.mark.parametrize(("form", "name"), [("coco", "a.coco.json"), ("geojson", "a.geojson")])
def test_objects_are_written_for_other_programs(
    world: World, images: Path, tmp_path: Path, scene: np.ndarray, form: str, name: str
) -> None:
    affine = ["--affine", "1", "0", "5", "0", "1", "7"] if form == "geojson" else []

    result = run(world, "objects", images / "a.png", "--output", tmp_path / "out", "--format", form, *affine)

    assert result.exit_code == 0, result.output
    document = json.loads((tmp_path / "out" / name).read_text())
    found = document["features" if form == "geojson" else "annotations"]
    assert len(found) == len(parts(scene[:200, :200]))


@pytest.mark.parametrize("form", ["tiff", "png"])
def test_the_map_of_an_object_model_is_that_of_its_ids(world: World, images: Path, tmp_path: Path, form: str) -> None:
    result = run(world, "objects", images / "a.png", "--output", tmp_path / "out", "--format", form)

    assert result.exit_code == 0, result.output
    with Image.open(tmp_path / "out" / f"a.{'tif' if form == 'tiff' else 'png'}") as picture:
        assert len(np.unique(np.asarray(picture))) == len(open_result(tmp_path / "out" / "a")) + 1


def test_one_tile_is_not_called_tiles(world: World, images: Path, tmp_path: Path) -> None:
    with Image.open(images / "a.png") as image:
        image.crop((0, 0, 100, 90)).save(images / "small.png")

    result = run(world, "classes", images / "small.png", "--output", tmp_path / "out")

    assert ", 1 tile (1 sent), " in result.stdout


@pytest.mark.parametrize("limit", [40, 3])
def test_tiles_whose_answers_reach_the_limit_of_objects_are_counted_also_when_read_again(
    world: World, scene: np.ndarray, tmp_path: Path, limit: int
) -> None:
    known = world.gateway.models["objects"]
    parameters = {**dict(known.parameters.items()), "maxDetections": str(limit)}
    world.gateway.models["objects"] = Model(known.outputs, parameters, known.answer, "TYPE_UINT8")
    np.save(tmp_path / "a.npy", scene)

    said = [run(world, "objects", tmp_path / "a.npy", "--output", tmp_path / "out").stderr for _ in range(2)]

    reached = sum(len(parts(asked.inputs["PIXELS"][:, :, 0])) >= limit for asked in world.gateway.asked)
    note = f"{reached} of {world.sent} tiles reached the limit of objects (maxDetections of output or a stage)"
    assert [note in each for each in said] == [limit == 3] * 2
    assert open_result(tmp_path / "out" / "a").at_limit == reached


@pytest.mark.parametrize("suffix", ["tif", "png", "npy"])
def test_an_image_of_16_bits_that_uses_little_of_them_is_noted_once(world: World, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    pixels = np.full((300, 200), 4000, np.uint16)
    np.save(path, pixels) if suffix == "npy" else Image.fromarray(pixels).save(path)

    dark = run(world, "classes", path, "--output", tmp_path / "out").stderr
    known = world.gateway.models["classes"]
    parameters = {**dict(known.parameters.items()), "window": "[0, 5000]"}
    world.gateway.models["classes"] = Model(known.outputs, parameters, known.answer, "TYPE_UINT8")
    scaled = run(world, "classes", path, "--output", tmp_path / "scaled").stderr

    assert dark.count(f"note: the values of {path} go up to 4000 of 65535, which is nearly black; set `window:") == 1
    assert scaled == ""
    assert (world.gateway.asked[-1].inputs["PIXELS"] == 4000 * 65535 // 5000 >> 8).all()


def test_a_georeference_that_is_not_kept_is_named(world: World, scene: np.ndarray, tmp_path: Path) -> None:
    keys = (34735, "H", 8, (1, 1, 0, 1, 3072, 0, 1, 32633), True)
    tifffile.imwrite(tmp_path / "placed.tif", scene, extratags=[keys])
    tifffile.imwrite(tmp_path / "plain.tif", scene)

    result = run(world, "classes", tmp_path / "placed.tif", tmp_path / "plain.tif", "--output", tmp_path / "out")

    said = [line for line in result.stderr.splitlines() if "georeference is not kept" in line]
    assert (result.exit_code, len(said)) == (0, 1)
    assert "placed.tif" in said[0]


def test_nodata_of_a_geotiff_is_left_out_of_shares(world: World, scene: np.ndarray, tmp_path: Path) -> None:
    image = np.where(np.arange(100) < 25, 255, np.minimum(scene[:90, :100], 1)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", image, extratags=[(42113, "s", 0, "255", True)])

    result = run(world, "classes", tmp_path / "a.tif", "--output", tmp_path / "out")

    shares = [float(each) for each in re.findall(r"(?:ground|coin) ([0-9.]+)%", result.stdout)]
    assert sum(shares) == pytest.approx(100, abs=0.2)
    assert "leaf" not in result.stdout
    assert "25.0% of the image without data" in result.stdout


def test_an_image_that_fails_is_named_and_does_not_hold_up_the_others(
    world: World, images: Path, tmp_path: Path
) -> None:
    (images / "a.png").write_bytes(b"broken")

    result = run(world, "classes", images, "--output", tmp_path / "out")

    assert result.exit_code == 1
    assert "a.png' cannot be read as a large image" in result.stderr
    assert "1 of 3 images failed" in result.stderr
    assert result.stdout.count("tiles (") == 2


@pytest.mark.parametrize(
    ("unit", "area"), [((), ""), (("--affine-unit", "m"), " (4 km²)"), (("--affine-unit", "us-ft"), " (0.372 km²)")]
)
def test_an_affine_whose_unit_is_unknown_gives_no_area(
    world: World, images: Path, tmp_path: Path, unit: tuple[str, ...], area: str
) -> None:
    affine = ("--affine", 10, 0, 500_000, 0, -10, 5_800_000)

    result = run(world, "classes", images / "a.png", "--output", tmp_path / "out", *affine, *unit)

    assert f"a.png: 200 x 200{area}, " in result.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("classes", "IMAGES/a.png", "--format", "coco"), "is a semantic model: use zarr, tiff or png"),
        (("classes", "IMAGES/none.png"), "no such image"),
        (("classes", "IMAGES/*.bmp"), "no file matches"),
        (
            ("classes", "IMAGES/a.png", "--affine", "0", "1", "0", "0", "1", "0"),
            "pixels an area; 0 1 0 0 1 0",
        ),
        (("classes", "IMAGES/a.png", "--affine-unit", "m"), "--affine-unit m needs --affine"),
    ],
)
def test_a_mistake_is_found_before_anything_is_sent(
    world: World, images: Path, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    result = run(world, *(word.replace("IMAGES", str(images)) for word in words), "--output", tmp_path / "out")

    assert isinstance(result.exception, CommandError)
    assert said in str(result.exception)
    assert world.sent == 0


def test_a_model_that_is_not_there_and_a_gateway_that_is_not_end_it(world: World, images: Path, tmp_path: Path) -> None:
    missing = run(world, "nothing", images, "--output", tmp_path / "out")
    silent = CliRunner().invoke(
        app, ["classes", str(images), "--output", str(tmp_path / "out"), "--url", "http://127.0.0.1:1"]
    )

    assert isinstance(missing.exception, ModelNotFoundError)
    assert isinstance(silent.exception, GatewayUnreachableError)


def test_images_that_would_share_a_folder_are_refused(world: World, images: Path, tmp_path: Path) -> None:
    Image.open(images / "a.png").save(images / "a.webp", lossless=True)

    result = run(world, "classes", images, "--output", tmp_path / "out")

    assert "would share a folder" in str(result.exception)


def test_a_folder_without_images_is_said(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="has no images"):
        large_images([str(tmp_path)])


both = typer.Typer()
both.command()(predict)
both.command()(batch)


REFUSAL = "image of 420 x 360 = 151200 pixels; allowed are 1 to 20000 (input.maxPixels)"


@pytest.fixture
def refusing(world: World, scene: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """The models refuse the first image; the scene is `my photo.png`, `.bmp` and `.tif` of the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SEGSERVE_URL", raising=False)
    for suffix in ("png", "bmp", "tif"):
        Image.fromarray(scene).save(f"my photo.{suffix}", **{"tif": {"compression": "tiff_lzw"}}.get(suffix, {}))
    world.gateway.faults.append(Fault(http=400, message=REFUSAL))
    return world


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
def test_predict_segments_an_image_above_its_models_limit_in_tiles(
    refusing: World, scene: np.ndarray, suffix: str
) -> None:
    name = f"my photo.{suffix}"

    done = CliRunner().invoke(
        both, ["predict", "classes", name, "--url", refusing.url, "--masks", "masks", "-o", "overlay.png"]
    )

    assert done.exit_code == 0, done.output
    limit = "is above the limit of a request, and was segmented in 16 tiles of 128 pixels"
    assert done.stderr == f"note: {name} of 420 x 360 pixels {limit}\n"
    with Image.open("masks/my photo.png") as labels:
        assert (np.asarray(labels) == (scene > 0).astype(np.uint8) + (scene >= 128)).all()
    with Image.open("overlay.png") as overlay:
        assert overlay.size == (420, 360)


def test_predict_in_tiles_leaves_out_what_has_no_data_and_does_not_say_the_contrary(
    refusing: World, scene: np.ndarray
) -> None:
    tifffile.imwrite("geo.tif", scene, extratags=[(42113, "s", 0, "0", True)])

    done = CliRunner().invoke(both, ["predict", "classes", "geo.tif", "--url", refusing.url])

    assert "ground" not in done.stdout
    assert "without data" not in done.stderr


def test_predict_names_the_command_that_lets_a_tiff_be_read_in_tiles(
    refusing: World, scene: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "zarr", None)

    refused = CliRunner().invoke(both, ["predict", "classes", "my photo.tif", "--url", refusing.url])

    before, command = re.search(r"in tiles \((.*)`segserve (.*?)`\)", str(refused.exception)).groups()
    assert before == "after pip install 'segserve[batch]': "
    monkeypatch.delitem(sys.modules, "zarr")
    done = CliRunner().invoke(both, shlex.split(command))
    assert done.exit_code == 0, done.output
    assert (np.asarray(open_result("tiled/my photo").labels) == (scene > 0).astype(np.uint8) + (scene >= 128)).all()


def test_predict_names_the_command_that_makes_an_image_smaller_where_tiles_cannot_be_stitched(refusing: World) -> None:
    known = refusing.gateway.models["classes"]

    def overlapping(asked: Asked) -> Arrays:
        return known.answer(asked) | {"LABELS": items(), "MASKS": items(*[b"0"] * 3)}

    refusing.gateway.models["classes"] = Model(known.outputs, known.parameters, overlapping)

    refused = CliRunner().invoke(both, ["predict", "classes", "my photo.png", "--url", refusing.url])

    command, small = re.search(r"Make it smaller: `(python -c .*)` writes (.*)$", str(refused.exception)).groups()
    assert "is multi-label" in str(refused.exception)
    subprocess.run(command.replace("python", shlex.quote(sys.executable), 1), shell=True, check=True)
    with Image.open(small) as copy:
        assert 0.8 * 20_000 < copy.width * copy.height <= 20_000
