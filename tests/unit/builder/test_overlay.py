"""The picture that a server draws of an answer is the client's overlay of the same answer, whatever its task."""

from __future__ import annotations

import io
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np
import PIL.Image
import pytest

from fakes.pipelines import pipeline_of
from fakes.waiting import HANG_S
from segserve.calls.answers import read_model_info, read_result
from segserve_builder.errors import BadImageError
from segserve_builder.kernels.rle import encode_bitmap
from segserve_builder.memory import allow_allocations, is_out_of_memory
from segserve_builder.stages.base import RequestOptions
from segserve_builder.steps import overlay as overlays
from segserve_builder.steps.encode import OVERLAYS, encode
from segserve_builder.steps.overlay import overlay
from segserve_builder.steps.pipeline import Pipeline
from segserve_builder.steps.public_outputs import PUBLIC_OUTPUTS
from segserve_builder.values import (
    Candidates,
    ClassMasks,
    Instances,
    KeypointDetections,
    LabelMap,
    Logits,
    NoHeads,
    Panoptic,
    ResizeTransform,
    Segment,
)
from segserve_common.kserve import InferAnswer, Tensor

HEIGHT, WIDTH = 150, 210
CLASSES = [{"id": 0, "name": "background"}, {"id": 1, "name": "coin", "colour": "#ffcc00"}, {"id": 2, "name": "table"}]
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]
LABELS = (1 * (np.hypot(ROWS - 60, COLUMNS - 70) < 40) + 2 * (ROWS > 110)).astype(np.uint8)
MASKS = [(LABELS == 1), (LABELS == 2) | (COLUMNS > 190), np.zeros_like(LABELS, bool)]
RUNS = tuple(encode_bitmap(mask.astype(np.uint8)) for mask in MASKS)
BOXES = np.array([[29, 19, 111, 101], [-4, 111, 230, 150], [5, 5, 9, 9]], np.float32)
SCORES, IDS = np.array([0.91, 0.5, 0.25], np.float32), np.array([1, 2, 1], np.int32)
POINTS = np.stack([np.full((3, 2, 3), 40, np.float32)[index] + 9 * index for index in range(3)])
TRANSFORM = ResizeTransform.of(HEIGHT, WIDTH)
SEGMENTS = (Segment(1, 1, is_thing=True, score=0.9), Segment(2, 2, is_thing=False, score=0.8))
EVERY: dict[str, Any] = {
    "semantic": LabelMap(LABELS, Logits(np.zeros((3, HEIGHT, WIDTH), np.float32), TRANSFORM)),
    "multi-label": ClassMasks(
        RUNS, np.array([mask.sum() for mask in MASKS], np.int64), np.ones(3, np.float32), HEIGHT, WIDTH
    ),
    "panoptic": Panoptic(LABELS.astype(np.uint16), SEGMENTS),
    "instance": Instances(BOXES, SCORES, IDS, RUNS, HEIGHT, WIDTH),
    "no instance": Instances(BOXES[:0], SCORES[:0], IDS[:0], (), HEIGHT, WIDTH),
    "detection": Candidates(BOXES, SCORES, IDS, NoHeads(), TRANSFORM),
    "keypoints": KeypointDetections(BOXES, SCORES, IDS, POINTS, HEIGHT, WIDTH),
}
TASKS = {"multi-label": "semantic", "no instance": "instance"}


def pipeline(**changes: Any) -> Pipeline:
    return pipeline_of(classes=CLASSES, **changes)


def photo(*, size: tuple[int, int] = (WIDTH, HEIGHT), **options: Any) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, **{"format": "PNG", **options})
    return buffer.getvalue()


def client_overlay(name: str, image: bytes) -> np.ndarray:
    """The overlay that the client draws of the answer as it crosses the wire."""
    task = TASKS.get(name, name)
    outputs = frozenset(tensor.name for tensor in PUBLIC_OUTPUTS[task])  # type: ignore[index]
    arrays = encode(EVERY[name], pipeline(), RequestOptions(), outputs)
    tensors = {
        key: Tensor.of_items(key, array.tolist()) if array.dtype == object else Tensor.of_array(key, array)
        for key, array in arrays.items()
    } | {"REVISION": Tensor.of_items("REVISION", [b"coins-1"])}
    info = read_model_info("coins", outputs, {"classes": str(CLASSES).replace("'", '"')})
    return np.asarray(read_result(InferAnswer("coins", tensors), info).overlay(image))


def opened(picture: bytes, file_format: str = "PNG") -> np.ndarray:
    with PIL.Image.open(io.BytesIO(picture)) as image:
        assert image.format == file_format
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("name", EVERY)
def test_the_overlay_is_the_one_that_the_client_draws(name: str) -> None:
    image = photo()

    drawn = opened(overlay(EVERY[name], pipeline(), image, "png"))

    assert np.array_equal(drawn, client_overlay(name, image))
    assert np.array_equal(drawn, opened(image)) == (name == "no instance")


@pytest.mark.parametrize("orientation", [6, 8])
def test_the_overlay_has_the_size_of_the_image_turned_upright(orientation: int) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    turned = Instances(
        BOXES,
        SCORES,
        IDS,
        tuple(encode_bitmap(np.eye(WIDTH, HEIGHT, k=k, dtype=np.uint8)) for k in range(3)),
        WIDTH,
        HEIGHT,
    )

    for file_format in OVERLAYS:
        drawn = overlay(turned, pipeline(), photo(format="JPEG", exif=exif), file_format)
        assert opened(drawn, file_format.upper().replace("WEBP", "WEBP")).shape == (WIDTH, HEIGHT, 3)


def test_an_overlay_beyond_what_its_format_holds_says_which_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlays, "MOST_WEBP_PIXELS", WIDTH - 1)

    with pytest.raises(BadImageError, match=f"at most {WIDTH - 1} pixels a side, the image {HEIGHT} x {WIDTH}: .*png"):
        overlay(EVERY["detection"], pipeline(), photo(), "webp")


def _failures(file_format: str) -> list[str]:
    """The errors of overlays with ever more memory, up to the first that suffices, that are not of memory."""
    image, strange = photo(size=(2400, 1800), compress_level=0), []
    value = Candidates(BOXES, SCORES, IDS, NoHeads(), ResizeTransform.of(1800, 2400))
    overlay(EVERY["detection"], pipeline(), photo(), file_format)
    for mebibytes in range(2, 200, 2):
        allow_allocations(mebibytes * 2**20)
        try:
            overlay(value, pipeline(), image, file_format)
        except Exception as error:
            strange += [] if is_out_of_memory(error) else [repr(error)]
        else:
            return strange
    raise AssertionError("no limit suffices")


@pytest.mark.parametrize("file_format", OVERLAYS)
def test_an_overlay_without_memory_fails_for_lack_of_memory(file_format: str) -> None:
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        assert pool.submit(_failures, file_format).result(HANG_S) == []


@pytest.mark.parametrize("name", EVERY)
def test_a_bound_on_decoding_is_the_overlays_bound(name: str) -> None:
    with pytest.raises(BadImageError, match="maxPixels"):
        overlay(EVERY[name], pipeline(input={"maxPixels": HEIGHT * WIDTH - 1}), photo(), "png")
