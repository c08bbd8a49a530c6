"""`segment_tiled` over a gateway in memory: the stitched answer is the whole image's, however the tiles came."""

from __future__ import annotations

import hashlib
import io
import json
import re
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from fakes.kserve import Arrays, Asked, Fault
from segserve import AsyncClient, BadRequestError, Client
from segserve.results.images import MAX_DECODED_PIXELS as DECODED_PIXELS
from segserve.tiled import (
    CheckpointError,
    ImageTooLargeError,
    RevisionChangedError,
    TiledObjects,
    TiledSemanticResult,
)
from segserve.tiled.sources import MAX_DECODED_PIXELS
from segserve_builder.errors import ImageMemoryError

from .conftest import World, parts

TILES = {"tile": 128, "overlap": 64, "progress": False}


def drawn(found: TiledObjects, shape: tuple[int, ...]) -> list[np.ndarray]:
    """Return each object's mask at the size of the image."""
    masks = []
    for one in found:
        mask = np.zeros(shape, bool)
        mask[one.window.slices()] = one.mask
        masks.append(mask)
    return masks


def files(folder: Path) -> dict[str, str]:
    """Return the digest of every file in a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_stitched_label_map_is_the_whole_images(client: Client, scene: np.ndarray) -> None:
    result = client.segment_tiled(scene, model="classes", **TILES)

    assert isinstance(result, TiledSemanticResult)
    expected = (scene > 0).astype(np.uint8) + (scene >= 128)
    assert (result.labels == expected).all()
    assert result.areas == {
        "ground": (expected == 0).sum(),
        "coin": (expected == 1).sum(),
        "leaf": (expected == 2).sum(),
    }
    assert result.size == scene.shape


def test_objects_over_seams_and_corners_are_one_with_all_their_pixels(client: Client, scene: np.ndarray) -> None:
    result = client.segment_tiled(scene, model="objects", id_map=True, **TILES)

    assert isinstance(result, TiledObjects)
    expected = {hashlib.sha256(mask.tobytes()).hexdigest() for mask, _ in parts(scene)}
    assert {hashlib.sha256(mask.tobytes()).hexdigest() for mask in drawn(result, scene.shape)} == expected
    assert sorted(one.area for one in result) == sorted(int(mask.sum()) for mask, _ in parts(scene))
    assert {one.class_name for one in result} == {"coin", "leaf"}
    for one, mask in zip(result, drawn(result, scene.shape), strict=True):
        assert set(result.ids[mask].tolist()) == {one.id}


def test_the_segments_of_a_panoptic_model_share_every_pixel_out(client: Client, scene: np.ndarray) -> None:
    result = client.segment_tiled(scene, model="segments", **TILES)

    assert isinstance(result, TiledObjects)
    whole = parts(scene)
    for mask, _ in whole:
        assert len(set(result.ids[mask].tolist())) == 1
    assert len(result) == len(whole) + 1
    assert sorted(one.area for one in result) == sorted([*(int(m.sum()) for m, _ in whole), int((scene == 0).sum())])
    assert sum(result.areas.values()) == scene.size
    ground = next(one for one in result if one.class_name == "ground")
    assert (result.ids[scene == 0] == ground.id).all()


@pytest.mark.parametrize("model", ["boxes", "points"])
def test_boxes_in_the_overlap_are_there_once(client: Client, scene: np.ndarray, model: str) -> None:
    result = client.segment_tiled(scene, model=model, **TILES)

    expected = set()
    for mask, _ in parts(scene):
        ys, xs = np.nonzero(mask)
        expected.add((xs.min(), ys.min(), xs.max() + 1, ys.max() + 1))
    assert {tuple(map(int, one.box)) for one in result} == expected
    assert len(result) == len(expected)
    if model == "points":
        whole = [one for one in result if len(one.tiles) == 1 or max(one.box[2:]) < 300]
        assert any(one.points == ((*one.box[:2], 1.0), (*one.box[2:], 1.0)) for one in whole)


def test_an_image_smaller_than_a_tile_is_one_request(client: Client, world: World, scene: np.ndarray) -> None:
    result = client.segment_tiled(scene[:50, :70], model="objects", progress=False)

    assert result.tiles == world.sent == 1


@pytest.mark.parametrize(("channels", "dtype"), [(1, np.uint8), (4, np.uint8), (1, np.uint16), (3, np.uint16)])
def test_the_same_pixels_give_the_same_labels_from_every_kind_of_source(
    client: Client, scene: np.ndarray, tmp_path: Path, channels: int, dtype: type
) -> None:
    import zarr

    image = np.repeat(scene[:150, :200, None].astype(dtype), channels, axis=2)
    image = image[:, :, 0] if channels == 1 else image
    np.save(tmp_path / "image.npy", image)
    photometric = "rgb" if channels > 1 else "minisblack"
    written = [tmp_path / f"{kind}.tif" for kind in ("tiled", "strips", "plain", "big")]
    tifffile.imwrite(written[0], image, tile=(64, 64), photometric=photometric, compression="zlib")
    tifffile.imwrite(written[1], image, rowsperstrip=16, photometric=photometric, compression="zlib")
    tifffile.imwrite(written[2], image, photometric=photometric)
    tifffile.imwrite(written[3], image, tile=(64, 64), photometric=photometric, bigtiff=True, byteorder=">")
    zarr.create_array(tmp_path / "image.zarr", data=image, chunks=(70, 90, *image.shape[2:]))
    mapped = np.load(tmp_path / "image.npy", mmap_mode="r")
    sources: list[object] = [*written, tmp_path / "image.npy", tmp_path / "image.zarr", mapped]
    sources.append(zarr.open_array(tmp_path / "image.zarr"))
    if dtype is np.uint8 or channels == 1:
        Image.fromarray(image).save(tmp_path / "image.png")
        sources.append(tmp_path / "image.png")

    expected = client.segment_tiled(image, model="classes", **TILES)

    for source in sources:
        found = client.segment_tiled(source, model="classes", **TILES)
        assert (found.labels == expected.labels).all(), source


@pytest.mark.parametrize("model", ["classes", "objects", "segments"])
def test_a_run_that_broke_off_sends_only_what_is_missing_and_ends_the_same(
    client: Client, world: World, scene: np.ndarray, tmp_path: Path, model: str
) -> None:
    options = TILES | {"id_map": model != "classes"}
    client.segment_tiled(scene, model=model, out=tmp_path / "whole", **options)
    whole = world.sent

    def stop(done: int, total: int) -> None:
        if done == total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        client.segment_tiled(scene, model=model, out=tmp_path / "broken", **(options | {"progress": stop}))
    before = world.sent
    resumed = client.segment_tiled(scene, model=model, out=tmp_path / "broken", **options)

    assert resumed.sent == world.sent - before < whole
    assert resumed.tiles == whole
    assert files(tmp_path / "broken") == files(tmp_path / "whole")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tile": 256}, "tile was 128, now 256"),
        ({"overlap": 32}, "overlap was 64, now 32"),
        ({"model": "boxes"}, "model was 'objects', now 'boxes'"),
        ({"score_threshold": 0.7}, "score_threshold was None, now 0.7"),
    ],
)
def test_another_run_does_not_take_up_a_checkpoint(
    client: Client, scene: np.ndarray, tmp_path: Path, change: dict[str, object], said: str
) -> None:
    options = {"model": "objects", "out": tmp_path / "out", **TILES}
    client.segment_tiled(scene, **options)

    with pytest.raises(CheckpointError, match=said):
        client.segment_tiled(scene, **(options | change))

    over = client.segment_tiled(scene, **(options | change), start_over=True)
    assert over.sent == over.tiles


def test_other_pixels_or_another_revision_do_not_take_up_a_checkpoint(
    client: Client, world: World, scene: np.ndarray, tmp_path: Path
) -> None:
    options = {"model": "objects", "out": tmp_path / "out", **TILES}
    client.segment_tiled(scene, **options)
    other = scene.copy()
    other[0, 0] = 1

    with pytest.raises(CheckpointError, match=r"source was '.*', now '.*'"):
        client.segment_tiled(other, **options)
    world.revision = "m-cccccccccc"
    with pytest.raises(CheckpointError, match="revision was 'm-aaaaaaaaaa', now 'm-cccccccccc'"):
        client.segment_tiled(scene, **options)


@pytest.mark.parametrize("model", ["classes", "segments"])
def test_a_result_in_memory_is_taken_up_from_its_checkpoint(
    client: Client, world: World, scene: np.ndarray, tmp_path: Path, model: str
) -> None:
    expected = client.segment_tiled(scene, model=model, **TILES)
    options = {"model": model, "checkpoint": tmp_path / "kept"}

    def stop(done: int, total: int) -> None:
        if done == total - 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        client.segment_tiled(scene, **options, **(TILES | {"progress": stop, "in_flight": 1}))
    resumed = client.segment_tiled(scene, **options, **TILES)

    assert resumed.sent == 3
    if model == "classes":
        assert (resumed.labels == expected.labels).all()
    else:
        assert (resumed.ids == expected.ids).all()


def test_a_damaged_checkpoint_is_said(client: Client, scene: np.ndarray, tmp_path: Path) -> None:
    options = {"model": "classes", "checkpoint": tmp_path / "kept", **TILES}
    client.segment_tiled(scene, **options)
    (tmp_path / "kept" / "manifest.json").write_text("{")

    with pytest.raises(CheckpointError, match=r"manifest\.json' is damaged"):
        client.segment_tiled(scene, **options)


def test_a_folder_with_other_files_is_left_alone(client: Client, scene: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "labels.npy").write_text("mine")

    with pytest.raises(CheckpointError, match=r"not empty.*labels\.npy"):
        client.segment_tiled(scene, model="classes", out=tmp_path, **TILES)

    assert (tmp_path / "labels.npy").read_text() == "mine"


def test_a_change_of_revision_under_way_is_an_error(client: Client, world: World, scene: np.ndarray) -> None:
    world.switch_after = 10

    with pytest.raises(RevisionChangedError, match=r"'m-bbbbbbbbbb' answered tile .* started with 'm-aaaaaaaaaa'"):
        client.segment_tiled(scene, model="classes", **TILES)


@pytest.mark.parametrize(
    ("choice", "revisions"),
    [("restart", {"m-bbbbbbbbbb"}), ("allow", {"m-aaaaaaaaaa", "m-bbbbbbbbbb"})],
)
def test_a_change_of_revision_may_be_followed_or_allowed(
    client: Client, world: World, scene: np.ndarray, tmp_path: Path, choice: str, revisions: set[str]
) -> None:
    world.switch_after = 10

    result = client.segment_tiled(scene, model="classes", out=tmp_path / "o", on_revision_change=choice, **TILES)

    assert set(result.revisions) == revisions
    assert (np.asarray(result.labels) == (scene > 0).astype(np.uint8) + (scene >= 128)).all()


async def test_the_asynchronous_client_gives_the_same_files(
    client: Client, world: World, scene: np.ndarray, tmp_path: Path
) -> None:
    client.segment_tiled(scene, model="objects", out=tmp_path / "one", **TILES)

    async with AsyncClient(world.url) as other:
        await other.segment_tiled(scene, model="objects", out=tmp_path / "other", **TILES)

    assert files(tmp_path / "other") == files(tmp_path / "one")


def test_png_on_the_way_changes_nothing(client: Client, world: World, scene: np.ndarray) -> None:
    seen = []
    for model in world.gateway.models.values():
        inner = model.answer

        def answer(asked, inner=inner):  # type: ignore[no-untyped-def]
            if "IMAGE" in asked.inputs:
                import io

                seen.append(asked)
                asked.inputs["PIXELS"] = np.asarray(Image.open(io.BytesIO(asked.inputs["IMAGE"].item())))[:, :, None]
            return inner(asked)

        model.answer = answer

    result = client.segment_tiled(scene, model="classes", send="png", **TILES)

    assert len(seen) == result.tiles
    assert (result.labels == (scene > 0).astype(np.uint8) + (scene >= 128)).all()


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (np.zeros((10, 10), np.float32), "float32"),
        (np.zeros((10, 10, 5), np.uint8), r"shape \(10, 10, 5\)"),
        (7, "got int"),
    ],
)
def test_what_is_no_image_is_refused(client: Client, image: object, said: str) -> None:
    with pytest.raises(BadRequestError, match=said):
        client.segment_tiled(image, model="classes", **TILES)


def encoded(scene: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(scene).save(buffer, kind)
    return buffer.getvalue()


REFUSED = "image of 420 x 360 = 151200 pixels; allowed are 1 to 20000 (input.maxPixels)"
TOO_MUCH = f"{ImageMemoryError('the network', None)}, allowed are 1 to 20000 (input.maxPixels)"


@pytest.mark.parametrize("refusal", [REFUSED, TOO_MUCH])
@pytest.mark.parametrize(
    "form",
    [
        pytest.param(lambda scene: scene, id="an array"),
        pytest.param(lambda scene: np.stack([scene, scene], axis=2), id="grey with alpha"),
        pytest.param(Image.fromarray, id="PIL's"),
        pytest.param(lambda scene: torch.from_numpy(scene.copy()), id="torch's"),
        pytest.param(lambda scene: encoded(scene, "PNG"), id="a PNG"),
        pytest.param(lambda scene: encoded(scene, "TIFF"), id="a TIFF"),
    ],
)
def test_an_image_above_its_models_limit_is_refused_with_a_call_that_segments_it(
    client: Client, world: World, scene: np.ndarray, form: Any, refusal: str
) -> None:
    image = form(scene)
    world.gateway.faults.append(Fault(http=400, message=refusal))
    with pytest.raises(ImageTooLargeError) as caught:
        client.segment(image, model="classes")

    call = re.search(r"segment it in tiles \((client\.segment_tiled\(.*?\)), `", caught.value.message)
    assert call is not None
    result = eval(call[1], {"client": client, "image": image})

    assert max(asked.inputs["PIXELS"].size for asked in world.gateway.asked) <= 20_000
    assert (result.labels == (scene > 0).astype(np.uint8) + (scene >= 128)).all()


def test_the_limit_of_files_that_are_decoded_as_a_whole_is_that_of_the_sources() -> None:
    assert DECODED_PIXELS == MAX_DECODED_PIXELS


def test_options_that_cannot_be_are_refused(client: Client, scene: np.ndarray) -> None:
    with pytest.raises(BadRequestError, match=r"blend must be one of centre, got 'gaussian'.*probabilities"):
        client.segment_tiled(scene, model="classes", blend="gaussian")  # type: ignore[arg-type]
    with pytest.raises(BadRequestError, match="in_flight"):
        client.segment_tiled(scene, model="classes", in_flight=0)
    with pytest.raises(BadRequestError, match="workers open the image themselves"):
        client.segment_tiled(scene, model="classes", scheduler="local", out="somewhere")


def test_a_map_too_large_for_memory_wants_a_folder(client: Client, tmp_path: Path) -> None:
    import zarr

    huge = zarr.create_array(tmp_path / "huge.zarr", shape=(20_000, 20_000), chunks=(1000, 1000), dtype="uint8")

    with pytest.raises(ImageTooLargeError, match="set a folder with out="):
        client.segment_tiled(huge, model="classes", progress=False)


def test_the_workers_of_a_dask_cluster_write_the_same_files(client: Client, scene: np.ndarray, tmp_path: Path) -> None:
    import distributed

    np.save(tmp_path / "scene.npy", scene)
    client.segment_tiled(tmp_path / "scene.npy", model="segments", out=tmp_path / "alone", **TILES)

    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=2, processes=False, dashboard_address="127.0.0.1:0"
        ) as cluster,
        distributed.Client(cluster) as workers,
    ):
        options = TILES | {"in_flight": 4}
        found = client.segment_tiled(
            tmp_path / "scene.npy", model="segments", out=tmp_path / "shared", scheduler=workers, **options
        )

    assert found.sent == found.tiles
    assert files(tmp_path / "shared") == files(tmp_path / "alone")


def test_a_run_with_a_folder_of_its_own_has_nothing_to_leave_elsewhere_where_it_is_killed(
    client: Client, scene: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    seen: list[Path] = []

    def look(done: int, total: int) -> None:
        seen.extend(temporary.iterdir())

    for name in ("out", "checkpoint"):
        folder = {name: tmp_path / name}
        client.segment_tiled(scene, model="segments", **folder, **(TILES | {"progress": look}))

    assert seen == []


def test_dasks_own_workers_ask_as_the_caller_and_leave_nothing_in_the_temporary_folder(
    world: World, scene: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", None)
    np.save(tmp_path / "scene.npy", scene)

    with Client(world.url, api_key="a-key") as client:
        client.segment_tiled(
            tmp_path / "scene.npy",
            model="segments",
            out=tmp_path / "out",
            scheduler="local",
            **(TILES | {"in_flight": 4}),
        )

    assert {asked.headers.get("x-api-key") for asked in world.gateway.asked} == {"a-key"}
    assert list(temporary.iterdir()) == []


def test_a_scheduler_that_does_not_answer_is_said(client: Client, scene: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "scene.npy", scene)

    with pytest.raises(
        BadRequestError, match=r"must be a dask.distributed Client, a scheduler's address or 'local', got int"
    ):
        client.segment_tiled(tmp_path / "scene.npy", model="classes", out=tmp_path / "out", scheduler=7, **TILES)


def test_a_bar_is_shown_on_a_terminal_and_nowhere_else(
    client: Client, scene: np.ndarray, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = TILES | {"progress": True}
    client.segment_tiled(scene[:200, :200], model="classes", **options)
    assert capsys.readouterr() == ("", "")

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    client.segment_tiled(scene[:200, :200], model="classes", **options)

    shown = capsys.readouterr()
    assert shown.out == ""
    assert "tiles" in shown.err
    assert "9/9" in shown.err


def test_a_function_is_told_how_far_it_is(client: Client, scene: np.ndarray) -> None:
    told: list[tuple[int, int]] = []

    client.segment_tiled(
        scene[:200, :200], model="classes", **(TILES | {"progress": lambda done, total: told.append((done, total))})
    )

    assert told == [(done, 9) for done in range(10)]


def test_no_more_tiles_are_on_their_way_than_asked_for(client: Client, world: World, scene: np.ndarray) -> None:
    inside = threading.Semaphore(3)
    model = world.gateway.models["classes"]
    answer = model.answer

    def slow(asked: Asked) -> Arrays:
        assert inside.acquire(blocking=False), "a fourth tile came while three were being answered"
        time.sleep(0.02)
        inside.release()
        return answer(asked)

    model.answer = slow

    assert client.segment_tiled(scene, model="classes", in_flight=3, **TILES).tiles > 3


@pytest.mark.parametrize("model", ["classes", "objects", "boxes", "points", "segments"])
@pytest.mark.parametrize("out", [None, "out"])
def test_a_result_in_memory_has_the_values_pictures_and_exports_of_one_request(
    client: Client, scene: np.ndarray, tmp_path: Path, model: str, out: str | None
) -> None:
    folder = None if out is None else tmp_path / out
    whole = client.segment(scene, model=model)

    tiled = client.segment_tiled(scene, model=model, tile=256, overlap=128, out=folder).to_result()

    def plain(result: Any) -> list[str]:
        # Scores are of the part of a tile that an object fills, and points of one tile that shows a part of it.
        kept = ("category_id", "area") if model == "points" else ("category_id", "area", "bbox", "segmentation")
        return sorted(repr([each.get(name) for name in kept]) for each in result.to_coco()["annotations"])

    assert type(tiled) is type(whole)
    if model == "segments":  # whose boxes and areas the gateway makes up
        assert (tiled.ids > 0).all()
        assert sorted(each.class_id for each in tiled) == sorted(each.class_id for each in whole)
    else:
        assert plain(tiled) == plain(whole)
    assert tiled.save(tmp_path / "picture.png", scene).is_file()
    assert json.loads(tiled.to_json())["model"] == model
