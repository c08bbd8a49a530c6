from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from examples.zoo.world import Scene, draw_scenes
from segserve.results.masks import EncodedMask
from segserve_builder.stages.base import RequestOptions
from segserve_builder.steps.in_process import InProcessModel
from segserve_operator.api.segmentation_model import SegmentationModel

LABELLED = ("unet", "attention-unet", "unet-plus-plus", "deeplab", "pspnet", "segformer")
COUNTED = ("yolo-seg", "mask-rcnn", "maskformer")
NAMES = pytest.mark.parametrize("name", LABELLED + COUNTED)


@cache
def scenes() -> list[Scene]:
    from examples.zoo.report import SIZES

    return draw_scenes(4, 1000, SIZES)


def artifact(name: str) -> Path:
    from examples.zoo.training import WEIGHTS

    return WEIGHTS / f"{name}.onnx"


def in_process(name: str) -> InProcessModel:
    from examples.zoo.variants import documents

    resource = SegmentationModel.model_validate(documents()[f"zoo-{name}"])
    return InProcessModel(resource.spec.pipeline(resource.metadata.name), artifact(name))


def png(image: np.ndarray) -> bytes:
    import cv2

    return bytes(cv2.imencode(".png", image[..., ::-1])[1])


def test_every_network_is_tested_here() -> None:
    from examples.zoo.networks import NETWORKS
    from examples.zoo.variants import SEMANTIC

    assert set(NETWORKS) == {*LABELLED, *COUNTED}
    assert set(SEMANTIC) == set(LABELLED)


@NAMES
def test_torch_reads_its_weights_out_of_the_file_that_is_served(name: str) -> None:
    from examples.zoo.offline import Network

    session = onnxruntime.InferenceSession(str(artifact(name)), providers=["CPUExecutionProvider"])
    network = Network(name)
    view = network.view(scenes()[0].image)
    batch = view.pixels[None] if name == "segformer" else view.pixels.transpose(2, 0, 1)[None]

    served = session.run(None, {session.get_inputs()[0].name: np.ascontiguousarray(batch)})

    outputs = [output.numpy() for output in network.run(view.pixels)]
    # Regions of no worth come in any order: their scores are equal but for rounding.
    some = outputs[2] > 0.01 if name == "mask-rcnn" else slice(None)
    for one, own in zip(served, outputs, strict=True):
        whole = one if name == "mask-rcnn" else one[0]
        np.testing.assert_allclose(whole[some], own[some], rtol=1e-3, atol=2e-3)


@NAMES
def test_the_file_is_small_enough_to_commit(name: str) -> None:
    assert artifact(name).stat().st_size < 1_500_000


def test_the_digests_of_zoo_yaml_are_those_of_the_files() -> None:
    from examples.zoo.refresh import RESOURCES, with_digests
    from examples.zoo.training import HERE

    text = RESOURCES.read_text()

    assert with_digests(text, HERE) == text, "run `python -m examples.zoo.refresh`"


@pytest.mark.parametrize("name", LABELLED)
def test_label_maps_are_those_of_plain_torch(name: str) -> None:
    from examples.zoo import offline
    from examples.zoo.offline import Network

    model, network = in_process(name), Network(name)
    for scene in scenes():
        answer = model.answer(png(scene.image), RequestOptions(encoding="raw"))
        labels = np.frombuffer(answer["LABELS"][0], np.uint8).reshape(scene.labels.shape)
        view = network.view(scene.image)

        plain = offline.labels_of(network.run(view.pixels)[0], view)

        assert np.count_nonzero(labels != plain) <= 2


@pytest.mark.parametrize("name", COUNTED)
def test_instances_are_those_of_plain_torch(name: str) -> None:
    from examples.zoo import offline
    from examples.zoo.offline import Network
    from examples.zoo.variants import LEAST_SCORE, NMS_IOU

    model, network = in_process(name), Network(name)
    for scene in scenes():
        answer = model.answer(png(scene.image), RequestOptions(encoding="rle"))
        view = network.view(scene.image)
        plain = {
            "yolo-seg": lambda v: offline.yolo_instances(network, v, LEAST_SCORE, NMS_IOU),
            "mask-rcnn": lambda v: offline.mask_rcnn_instances(network, v, LEAST_SCORE),
            "maskformer": lambda v: offline.query_instances(network, v, LEAST_SCORE),
        }[name](view)

        assert answer["SCORES"].tolist() == pytest.approx([score for _, score, _ in plain], abs=1e-4)
        assert answer["CLASSES"].tolist() == [class_id for class_id, _, _ in plain]
        for counts, (_, _, mask) in zip(answer["MASKS"], plain, strict=True):
            served = EncodedMask(bytes(counts), *mask.shape).bitmap
            assert np.count_nonzero(served != mask) <= 2


def test_masks_are_pasted_as_torchvision_pastes_them() -> None:
    """The box of whole pixels is as torchvision has it; a mask of ones fills it but for its soft edge."""
    import torch

    from examples.zoo import offline

    mask = offline.pasted(torch.ones(28, 28), torch.tensor([10.0, 20.0, 38.0, 48.0]), 64, 64)

    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (20, 48, 10, 38)


@pytest.mark.parametrize("name", ["unet", "pspnet", "segformer", "yolo-seg", "mask-rcnn", "maskformer"])
@pytest.mark.filterwarnings("ignore:You are using the legacy TorchScript:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:The feature will be removed:DeprecationWarning")
def test_a_network_can_be_trained_again(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from examples.zoo.train import RECIPES
    from examples.zoo.training import Run

    scenes = draw_scenes(8, 3)
    monkeypatch.setattr("examples.zoo.train.pool", lambda seed: scenes)
    train, _ = RECIPES[name]
    torch.manual_seed(0)

    network = train(Run(name, 0, 2, tmp_path / f"{name}.onnx"))

    assert (tmp_path / f"{name}.onnx").exists()
    assert all(torch.isfinite(weights).all() for weights in network.parameters())
