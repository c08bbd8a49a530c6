from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np
import onnxruntime
import pytest
import yaml
from in_process import RESOURCES, in_process, resources
from make_golden import PHOTOGRAPH, score_of
from refresh import with_digests

from fakes.docs import ROOT, blocks
from segserve_builder.golden.judging import compare, load
from segserve_builder.stages.base import RequestOptions
from segserve_builder.steps.in_process import InProcessModel
from segserve_operator.api.segmentation_model import SegmentationModelSpec

if TYPE_CHECKING:
    from pathlib import Path

FOLDER = RESOURCES.parent
MODELS = resources()
NAMES = pytest.mark.parametrize("name", sorted(MODELS))


def artifact(name: str) -> Path:
    return FOLDER / MODELS[name].spec.artifact.uri


@NAMES
def test_the_answer_to_the_photograph_is_what_the_example_promises(name: str) -> None:
    answer = in_process(MODELS[name]).answer(PHOTOGRAPH.read_bytes(), RequestOptions(encoding="rle"))

    assert score_of(answer).good, score_of(answer)


@NAMES
def test_the_golden_set_is_answered(name: str) -> None:
    golden = MODELS[name].spec.golden
    assert golden is not None
    model = in_process(MODELS[name])

    for case in load(FOLDER / golden.uri).cases:
        image = (FOLDER / golden.uri / case.image).read_bytes()
        compare(case, model.answer(image, RequestOptions(encoding="rle")))


def counting(min_distance: int | None) -> InProcessModel:
    """The model of the page on counting, with another least distance."""
    (block,) = blocks(ROOT / "docs/how-to/count-objects.md", "yaml")
    spec = yaml.safe_load(block.text)["spec"]
    spec["artifact"]["sha256"] = MODELS["coins"].spec.artifact.sha256
    spec["postprocess"][1]["instances"]["minDistance"] = min_distance
    return InProcessModel(SegmentationModelSpec.model_validate(spec).pipeline("counted"), artifact("coins"))


@pytest.mark.parametrize(("min_distance", "inverted", "found"), [(None, False, 24), (16, False, 24), (16, True, 24)])
def test_the_unet_counts_the_coins(min_distance: int | None, inverted: bool, found: int) -> None:
    grey = cv2.imread(str(PHOTOGRAPH), cv2.IMREAD_GRAYSCALE)
    file = cv2.imencode(".png", 255 - grey if inverted else grey)[1].tobytes()

    score = score_of(counting(min_distance).answer(file, RequestOptions(encoding="rle")))

    assert (score.found, score.false) == (found, 0)


def test_the_digests_of_model_yaml_are_those_of_the_files() -> None:
    text = RESOURCES.read_text()

    assert with_digests(text, FOLDER) == text, "run `python examples/coins/refresh.py`"


def test_new_digests_change_nothing_else_of_model_yaml() -> None:
    text = RESOURCES.read_text()
    digest = MODELS["coins"].spec.artifact.sha256

    assert with_digests(text.replace(digest, "0" * 64), FOLDER) == text


@NAMES
def test_the_weights_are_small_enough_to_commit(name: str) -> None:
    assert artifact(name).stat().st_size <= 2_000_000


@pytest.mark.parametrize("name", sorted(name for name in MODELS if MODELS[name].spec.runtime.max_batch_size > 1))
def test_a_batch_is_answered_as_its_images_are_alone(name: str) -> None:
    session = onnxruntime.InferenceSession(str(artifact(name)), providers=["CPUExecutionProvider"])
    (tensor,) = session.get_inputs()
    images = np.random.default_rng(0).integers(0, 256, (3, 1, 384, 384), np.uint8)

    together = session.run(None, {tensor.name: images})
    alone = [session.run(None, {tensor.name: image[None]}) for image in images]

    assert tensor.type == "tensor(uint8)"
    for outputs, singles in zip(together, zip(*alone, strict=True), strict=True):
        np.testing.assert_allclose(outputs, np.concatenate(singles), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (48, 304), (512, 64)])
def test_the_unet_takes_any_multiple_of_16(height: int, width: int) -> None:
    session = onnxruntime.InferenceSession(str(artifact("coins")), providers=["CPUExecutionProvider"])

    (logits,) = session.run(["logits"], {"image": np.zeros((2, 1, height, width), np.uint8)})

    assert logits.shape == (2, 1, height, width)
    assert logits.dtype == np.float32
