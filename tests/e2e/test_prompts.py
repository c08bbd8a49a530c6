"""Clicks and boxes: promptable networks equal their own libraries, and serve sessions on the real Triton and Envoy."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from bench.coins import variant, write
from bench.platform import ROOT, Running, platform
from fakes.cluster_models import pool
from fakes.pipelines import pipeline_of
from networks.prompts import write as write_networks
from raw_inference import RawRequest, image, send
from segserve import AsyncClient, BadRequestError, Box, Click, Client, EmbeddingLostError
from segserve.errors import http_error
from segserve.results.masks import EncodedMask
from segserve_builder.kernels.rle_reader import decode_bitmap
from segserve_builder.stages.base import RequestOptions
from segserve_builder.steps.in_process import InProcessModel
from segserve_builder.steps.inference import decoder_io, network_io
from segserve_builder.steps.onnx_signature import read_signature
from segserve_builder.steps.prompts import PromptDecoder, PromptInputs
from tools import EXPORTERS

LONGEST = {"mode": "shortSide", "size": 1024, "maxSize": 1024, "multipleOf": 1024, "padding": "zeros"}
WHOLE = {"mode": "stretch", "height": 1024, "width": 1024}
NORMALISE = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
ORIGINAL = {"scale": 1.0, "mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}


@pytest.mark.needs("exporters")
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("case", "family", "resize", "normalise"),
    [
        ("mobile-sam", "promptable", LONGEST, ORIGINAL),
        ("sam", "promptable", LONGEST, NORMALISE),
        ("sam2", "promptable-sam2", WHOLE, NORMALISE),
    ],
)
def test_masks_are_those_of_the_networks_own_library(
    case: str, family: str, resize: dict[str, Any], normalise: dict[str, Any], tmp_path: Path
) -> None:
    command = [EXPORTERS, "-W", "ignore", ROOT / "tests/oracles/prompt_networks.py", case, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    before = [{"resize": {**resize, "antialias": True, "rounding": "eachPass"}}, {"normalise": normalise}]
    pipeline = pipeline_of(family, [0], preprocess=before)
    encoder, decoder = tmp_path / "encoder.onnx", tmp_path / "decoder.onnx"
    served = InProcessModel(pipeline, encoder, decoder=decoder)
    tensors = decoder_io(pipeline, read_signature(decoder), network_io(pipeline, read_signature(encoder)))
    logits = PromptDecoder(decoder, tensors)
    answers = np.load(tmp_path / "answers.npz")

    wrong = {
        (number, place): found
        for number, prompts in enumerate(json.loads((tmp_path / "prompts.json").read_text()))
        for place, found in enumerate(
            differences(served, logits, tmp_path / f"{number:02}.png", number, prompts, answers)
        )
        if found
    }

    assert wrong == {}


def differences(
    served: InProcessModel,
    decoder: PromptDecoder,
    photograph: Path,
    number: int,
    prompts: list[dict[str, Any]],
    answers: Any,
) -> Iterator[str]:
    """Yield what is wrong with the answer to each prompt about a photograph; nothing for a right one."""
    file = photograph.read_bytes()
    shown = served.network_input(file)
    raw, former = served.raw(shown), None
    for place, prompt in enumerate(prompts):
        tensors = {"POINTS": np.array(prompt["points"], np.float32).reshape(-1, 2)}
        tensors["POINT_LABELS"] = np.array(prompt["labels"], np.int32)
        if "box" in prompt:
            tensors["PROMPT_BOXES"] = np.array([prompt["box"]], np.float32)
        if prompt.get("refined") and former is not None:
            tensors["MASK_INPUT"] = former
        given = PromptInputs.of(tensors)
        former = next(iter(decoder(raw, given, shown.transform).values()))[0, 0]
        answer = served.answer(file, RequestOptions(), raw, given)
        height, width = answer["SIZE"].tolist()
        mask = decode_bitmap(answer["MASKS"][0], height, width).astype(bool).ravel()
        above, near = (np.unpackbits(answers[f"{name} {number} {place}"])[: mask.size] for name in ("above", "near"))
        pixels = int(np.count_nonzero((mask != above.astype(bool)) & ~near.astype(bool)))
        distance = abs(float(answer["SCORES"][0]) - float(answers[f"score {number} {place}"]))
        yield f"{pixels} pixels, score {distance:.4f} off" if pixels or distance > 1e-3 else ""


def scene() -> Image.Image:
    """Return an image of 200 x 120 pixels with a red disc and a green square."""
    image = Image.new("RGB", (200, 120), (10, 20, 30))
    draw = ImageDraw.Draw(image)
    draw.ellipse((20, 20, 80, 80), fill=(200, 30, 30))
    draw.rectangle((110, 40, 180, 100), fill=(30, 200, 60))
    return image


DISC, SQUARE = (50, 50), (150, 60)


@pytest.fixture(scope="module")
def photo_of_both() -> bytes:
    file = io.BytesIO()
    scene().save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def served(photo_of_both: bytes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """What `segserve init` writes for two files, with a cache of 31 embeddings."""
    folder = tmp_path_factory.mktemp("prompts")
    encoder, decoder = write_networks(folder)
    (folder / "photos").mkdir()
    (folder / "photos/both.png").write_bytes(photo_of_both)
    init = [sys.executable, "-m", "segserve_platform.cli", "init", "photos", encoder, "--decoder", decoder]
    subprocess.run([*init, "--name", "sam", "-o", "sam"], cwd=folder, check=True, capture_output=True)
    sam = yaml.safe_load((folder / "sam/model.yaml").read_text())
    sam["spec"]["decoder"]["embeddingsMebibytes"] = 1
    resources = write(folder / "sam/models.yaml", pool(gateway={"sessionAffinity": {}}), sam, variant())
    with platform(resources) as running:
        yield running


def shows(mask: NDArray[Any], *places: tuple[int, int]) -> list[bool]:
    return [bool(mask[y, x]) for x, y in places]


@pytest.mark.platform
@pytest.mark.parametrize("transport", ["http", "grpc"])
def test_a_session_selects_objects_and_takes_clicks_back(served: Running, photo_of_both: bytes, transport: Any) -> None:
    with Client(served.url, transport=transport) as client, client.prompt(photo_of_both, model="sam") as shown:
        assert shown.result is not None
        assert shown.result.instances == ()
        one = shown.click(*DISC)
        both = shown.click(*SQUARE)
        again = shown.undo()
        shown.clear()
        boxed = shown.box(100, 30, 90, 80)

    assert [shows(each.instances[0].mask, DISC, SQUARE) for each in (one, both, again, boxed)] == [
        [True, False],
        [True, True],
        [True, False],
        [False, True],
    ]


@pytest.mark.platform
async def test_an_asynchronous_session_answers_alike(served: Running, photo_of_both: bytes) -> None:
    async with AsyncClient(served.url) as client, client.prompt(photo_of_both, model="sam") as shown:
        masks = (await shown.click(*DISC, multimask=True)).instances
        one = await shown.ask(Click(*SQUARE, foreground=False), Box(0, 0, 200, 120))

    assert len(masks) == 3
    assert shows(one.instances[0].mask, DISC, SQUARE) == [True, False]


@pytest.mark.platform
def test_an_image_whose_embedding_is_gone_is_sent_once_more(served: Running, photo_of_both: bytes) -> None:
    with Client(served.url) as client, client.prompt(photo_of_both, model="sam") as shown:
        for shade in range(40):
            file = io.BytesIO()
            Image.new("RGB", (64, 64), (shade, 0, 0)).save(file, "PNG")
            client.prompt(file.getvalue(), model="sam").click(5, 5)

        found = shown.click(*DISC)

    assert shows(found.instances[0].mask, DISC, SQUARE) == [True, False]


@pytest.mark.platform
def test_an_unknown_id_is_an_error_of_its_own(served: Running) -> None:
    request = RawRequest([image(b"sam-0000000000." + b"0" * 32, name="EMBEDDING")], model="sam")

    reply = send(served.url, "http", request)

    assert reply.status == 400
    assert isinstance(http_error(400, reply.message), EmbeddingLostError)


@pytest.mark.platform
def test_curl_clicks_by_the_query(served: Running, photo_of_both: bytes) -> None:
    url = f"{served.url}/v1/models/sam:segment?points={DISC[0]},{DISC[1]};{SQUARE[0]},{SQUARE[1]}&point_labels=1;0"

    answer = httpx.post(url, content=photo_of_both, timeout=60).json()
    refused = httpx.post(url.replace("sam", "coins"), content=photo_of_both, timeout=60)

    (found,) = answer["objects"]
    assert shows(EncodedMask(found["mask"]["counts"].encode(), 120, 200).bitmap, DISC, SQUARE) == [True, False]
    assert (refused.status_code, "parameter 'point" in refused.text) == (400, True)


@pytest.mark.platform
def test_an_image_is_not_sent_to_a_model_that_takes_no_click_or_needs_one(served: Running, photo: bytes) -> None:
    with Client(served.url) as client:
        with pytest.raises(BadRequestError, match="takes no clicks and boxes"):
            client.prompt(photo, model="coins").click(5, 5)
        with pytest.raises(BadRequestError, match=r"use `Client\.prompt`"):
            client.segment(photo, model="sam")
