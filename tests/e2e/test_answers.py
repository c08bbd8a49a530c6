"""What the running system answers: as good as the example promises, and the same by whatever way it is asked."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from bench.platform import MODELS as MODELS_FILE
from bench.platform import Running
from examples.coins.in_process import in_process, resources
from examples.coins.score import photograph, score_instances, truth
from raw_inference import PROTOCOLS, Protocol, RawRequest, image, pixels, send
from segserve import Client, InstanceResult, SemanticResult
from segserve.results.values import ENCODINGS, Encoding
from segserve_builder.stages.base import RequestOptions
from segserve_builder.steps.in_process import InProcessModel

pytestmark = [pytest.mark.platform, pytest.mark.core]

SEMANTIC, INSTANCES = MODELS = ("coins", "coins-instances")
GREY = photograph()
HEIGHT, WIDTH = GREY.shape
OUTPUTS = {
    SEMANTIC: ("REVISION", "SIZE", "LABELS", "MASKS", "CLASSES", "AREAS", "CONFIDENCE"),
    INSTANCES: ("REVISION", "SIZE", "BOXES", "SCORES", "CLASSES", "MASKS"),
}


@pytest.fixture(scope="module")
def offline() -> dict[str, InProcessModel]:
    """The same models by the same stages, in this process."""
    return {name: in_process(resource) for name, resource in resources().items()}


def saved(pixels: np.ndarray, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def png(pixels: np.ndarray) -> bytes:
    return bytes(cv2.imencode(".png", pixels)[1])


def bitmaps(result: Any) -> list[np.ndarray]:
    """Return the masks of a result: of the instances, or of the class coin."""
    return [one.mask for one in result] if isinstance(result, InstanceResult) else [result.mask("coin")]


def plain(result: Any) -> dict[str, Any]:
    """Return what a result says, comparable with ==."""
    told = {"revision": result.revision, "size": result.size, "masks": [mask.tobytes() for mask in bitmaps(result)]}
    if isinstance(result, InstanceResult):
        return told | {
            "boxes": result.boxes.tolist(),
            "scores": result.scores.tolist(),
            "classes": result.class_ids.tolist(),
        }
    return told | {"areas": dict(result.areas)}


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / max((one | other).sum(), 1))


@pytest.fixture(scope="module")
def expected(coins: Running) -> dict[str, Any]:
    """The answers to the photograph, asked in the plainest way."""
    with Client(coins.url) as client:
        return {model: client.segment(png(GREY), model=model) for model in MODELS}


def turned(orientation: int) -> bytes:
    """Return a PNG that is to be turned, by its EXIF orientation 6 or 3, into the photograph."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(np.ascontiguousarray(np.rot90(GREY, {6: 1, 3: 2}[orientation])), "PNG", exif=exif)


SAME_PIXELS: dict[str, Any] = {
    "PNG of colour": saved(np.dstack([GREY] * 3), "PNG"),
    "PNG with alpha": saved(np.dstack([GREY] * 3 + [np.full_like(GREY, 40)]), "PNG"),
    "PNG of 16 bits": png(GREY.astype(np.uint16) * 257),
    "WebP without loss": saved(GREY, "WEBP", lossless=True),
    "TIFF": saved(GREY, "TIFF"),
    "TIFF, compressed": saved(GREY, "TIFF", compression="tiff_lzw"),
    "TIFF of 16 bits": bytes(cv2.imencode(".tiff", GREY.astype(np.uint16) * 257)[1]),
    "turned by a quarter": turned(6),
    "turned by a half": turned(3),
    "PIXELS": GREY[..., None],
    "PIXELS without an axis of channels": GREY,
    "a picture of Pillow's": Image.fromarray(GREY),
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("given", SAME_PIXELS.values(), ids=SAME_PIXELS)
def test_the_same_pixels_get_the_same_answer_in_whatever_file(
    coins: Running, expected: dict[str, Any], given: Any, model: str
) -> None:
    with Client(coins.url) as client:
        assert plain(client.segment(given, model=model)) == plain(expected[model])


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_files_with_loss_get_nearly_the_same_answer(coins: Running, expected: dict[str, Any], kind: str) -> None:
    data = saved(GREY, kind, quality=95)

    with Client(coins.url) as client:
        mask = client.segment(data, model=SEMANTIC).mask("coin")
        instances = client.segment(data, model=INSTANCES)

    assert iou(mask, expected[SEMANTIC].mask("coin")) > 0.99
    assert score_instances(bitmaps(instances), truth()).found == 24


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_encoding_decodes_to_the_same_masks(
    coins: Running, expected: dict[str, Any], encoding: Encoding, model: str
) -> None:
    from scipy import ndimage

    with Client(coins.url) as client:
        result = client.segment(png(GREY), model=model, encoding=encoding)

    if encoding != "polygons":
        assert plain(result) == plain(expected[model])
        return
    pairs = list(zip(bitmaps(result), bitmaps(expected[model]), strict=True))
    for mask, right in pairs:
        # Outlines run through the outermost pixels, and know no holes.
        whole = ndimage.binary_fill_holes(right)
        near = ndimage.binary_dilation(whole, np.ones((3, 3))) & ~ndimage.binary_erosion(whole, np.ones((3, 3)))
        assert not ((mask != whole) & ~near).any()


def test_a_threshold_and_a_number_take_the_best_of_the_same_instances(coins: Running, expected: dict[str, Any]) -> None:
    every = expected[INSTANCES]
    threshold = float(np.sort(every.scores)[10] + np.sort(every.scores)[11]) / 2

    with Client(coins.url) as client:
        above = client.segment(png(GREY), model=INSTANCES, score_threshold=threshold)
        best = client.segment(png(GREY), model=INSTANCES, max_detections=5)
        both = client.segment(png(GREY), model=INSTANCES, score_threshold=threshold, max_detections=2)
        more = client.segment(png(GREY), model=INSTANCES, score_threshold=0.0)
        none = client.segment(png(GREY), model=INSTANCES, score_threshold=1.0)

    told = plain(every)
    for result, count in ((above, len(every) - 11), (best, 5), (both, 2)):
        assert plain(result) == {
            name: values[:count] if isinstance(values, list) else values for name, values in told.items()
        }
    assert isinstance(more, InstanceResult)
    assert len(more) > len(every)
    assert more.scores[: len(every)].tolist() == every.scores.tolist()
    assert list(none) == []


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_tensor_header_resource_and_client_name_one_revision(
    coins: Running, expected: dict[str, Any], protocol: Protocol, model: str
) -> None:
    reply = send(coins.url, protocol, RawRequest([pixels(GREY[..., None])], outputs=["REVISION"], model=model))
    resource = json.loads(coins.segserve("get", model, "-o", "json"))
    with Client(coins.url, transport=protocol) as client:
        info = client.model_info(model)

    revision = expected[model].revision
    assert revision.startswith(f"{model}-")
    assert reply.arrays()["REVISION"] == (revision.encode(),)
    assert reply.revision == info.revision == revision == resource["status"]["roles"]["stable"]["revision"]
    assert [one.name for one in info.classes] == [item["name"] for item in resource["spec"]["classes"]]


SIZES = [(HEIGHT, WIDTH), (1, 1), (1, 40), (40, 1), (16, 16), (97, 201), (200, 133), (500, 333)]


def crops() -> list[np.ndarray]:
    """Return images of 16 sizes, each with coins of its own."""
    odd = [GREY[row : row + 60 + 7 * row, row : row + 200 - 5 * row] for row in range(8)]
    return [np.asarray(cv2.resize(GREY, (width, height))) for height, width in SIZES] + odd


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_sixteen_at_once_each_get_the_answer_to_their_own_image(
    coins: Running, offline: dict[str, InProcessModel], protocol: Protocol, model: str
) -> None:
    """Equal to what the pipeline answers in this process: bit by bit, whatever shared a batch."""
    images = [png(np.ascontiguousarray(crop)) for crop in crops()]

    def ask(data: bytes) -> dict[str, Any]:
        request = RawRequest([image(data)], {"encoding": "rle"}, OUTPUTS[model][1:], model)
        return send(coins.url, protocol, request).arrays()

    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(ask, images))

    for data, answer in zip(images, answers, strict=True):
        right = offline[model].answer(data, RequestOptions(encoding="rle"))
        assert set(answer) == set(right)
        for name in set(right) - {"SCORES", "CONFIDENCE", "BOXES"}:
            np.testing.assert_array_equal(answer[name], right[name], err_msg=name)
        for name in set(right) & {"SCORES", "CONFIDENCE", "BOXES"}:
            np.testing.assert_allclose(answer[name], right[name], atol=1e-3, err_msg=name)


def test_an_image_of_one_pixel_is_answered_in_its_size(coins: Running) -> None:
    with Client(coins.url) as client:
        semantic = client.segment(np.zeros((1, 1), np.uint8), model=SEMANTIC)
        instances = client.segment(np.zeros((1, 1), np.uint8), model=INSTANCES)

    assert isinstance(semantic, SemanticResult)
    assert (semantic.size, semantic.labels.shape, sum(semantic.areas.values())) == ((1, 1), (1, 1), 1)
    assert (instances.size, list(instances)) == ((1, 1), [])


def test_an_image_of_12_megapixels_is_answered_in_its_own_pixels(coins: Running, offline: Any) -> None:
    data = saved(np.asarray(cv2.resize(GREY, (4000, 3000))), "JPEG", quality=95)

    with Client(coins.url) as client:
        result = client.segment(data, model=INSTANCES)

    right = offline[INSTANCES].answer(data, RequestOptions(encoding="rle"))
    assert isinstance(result, InstanceResult)
    assert (result.size, len(result)) == ((3000, 4000), 24)
    assert [one.rle["counts"] for one in result] == right["MASKS"].tolist()
    small = [cv2.resize(one.mask.astype(np.uint8), (WIDTH, HEIGHT)) for one in result]
    assert score_instances(small, truth()).found == 24


def peak_mib(running: Running) -> float:
    """Return the most that one of a platform's processes ever had resident."""
    status = [Path(f"/proc/{process.pid}/status").read_text() for process in running.processes()]
    peaks = [int(found[1]) for text in status if (found := re.search(r"^VmHWM:\s+(\d+) kB$", text, re.MULTILINE))]
    return max(peaks) / 1024


def test_the_memory_of_a_large_image_is_given_back(serve: Callable[..., Running]) -> None:
    running = serve(MODELS_FILE)
    large = np.asarray(cv2.resize(GREY, (2000, 1500)))
    with Client(running.url) as client:
        client.segment(GREY, model=SEMANTIC)
        before = running.memory_mib()

        client.segment(large, model=SEMANTIC)
        client.segment(GREY, model=SEMANTIC)
        kept = running.memory_mib() - before

    # Of the peak, since the agent's probe may be the small image that has the memory given back.
    assert peak_mib(running) > 512
    assert kept < 256
