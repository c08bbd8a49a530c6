"""What semantic networks give instead of logits with channels first: probabilities, labels, other layouts."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from fakes.pipelines import pipeline_of
from segserve_builder.errors import PipelineError, ScoreError, SignatureError
from segserve_builder.families import FAMILIES
from segserve_builder.families.base import NetworkIO, NetworkSignature, TensorSpec
from segserve_builder.imaging.probabilities import class_statistics, part_statistics
from segserve_builder.stages.base import RequestOptions
from segserve_builder.stages.multi_label import MultiLabel
from segserve_builder.steps.onnx_signature import read_signature
from segserve_builder.steps.postprocess import check_postprocess
from segserve_builder.values import LabelMap, Logits, ResizeTransform

IMAGE = TensorSpec("image", "FP32", (None, 3, 64, 64))
LAST = TensorSpec("image", "FP32", (None, 64, 64, 3))
LETTERBOX = ResizeTransform(50, 100, 16, 0, 32, 64, 64, 64)
RNG = np.random.default_rng(0)


def read(family: str, values: np.ndarray, classes: int, transform: ResizeTransform = LETTERBOX, **changes: Any) -> Any:
    return FAMILIES[family].read({"out": values}, transform, pipeline_of(family, classes, **changes))


def labelled(family: str, values: np.ndarray, classes: int, **changes: Any) -> LabelMap:
    value = read(family, values, classes)
    for stage in FAMILIES[family].default_postprocess:
        value = stage.model_copy(update=changes)(value, RequestOptions())
    assert isinstance(value, LabelMap)
    return value


@pytest.mark.parametrize("channels", [1, 5])
def test_probabilities_are_answered_as_their_logits_are(channels: int) -> None:
    import torch

    logits = torch.from_numpy(RNG.normal(size=(1, channels, 16, 16)).astype(np.float32) * 4)
    probabilities = torch.sigmoid(logits) if channels == 1 else torch.softmax(logits, 1)
    classes = max(channels, 2)

    found, expected = (
        labelled(family, values.numpy(), classes)
        for family, values in (("semantic-probabilities", probabilities), ("semantic-logits", logits))
    )

    assert (found.labels != expected.labels).mean() < 1e-3
    for one, other in zip(class_statistics(found, classes), class_statistics(expected, classes), strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=2)


def test_one_probability_is_of_the_second_class_above_the_threshold() -> None:
    values = RNG.random((1, 1, 64, 64)).astype(np.float32)
    values[0, 0, :2] = [[0], [1]]
    whole = ResizeTransform.of(64, 64)

    value = read("semantic-probabilities", values, 2, whole)

    for threshold in (0.5, 0.3):
        (argmax,) = FAMILIES["semantic-probabilities"].default_postprocess
        labels = argmax.model_copy(update={"threshold": threshold})(value, RequestOptions()).labels
        assert np.array_equal(labels, values[0, 0] > threshold)


def test_every_class_has_its_own_probability_with_multi_label() -> None:
    values = RNG.random((1, 3, 64, 64)).astype(np.float32)
    stages = [{"multiLabel": {"thresholds": [0.2, 0.5, 0.9]}}]

    value = read("semantic-probabilities", values, 3, ResizeTransform.of(64, 64), postprocess=stages)

    found = MultiLabel(thresholds=(0.2, 0.5, 0.9))(value, RequestOptions())
    assert found.areas.tolist() == [(values[0, k] > limit).sum() for k, limit in enumerate((0.2, 0.5, 0.9))]


def test_values_beyond_0_and_1_are_no_probabilities() -> None:
    with pytest.raises(SignatureError, match=r"must be probabilities, 0 to 1; these are -3 to 0"):
        read("semantic-probabilities", np.array([[[[0, -3], [0, 0]]]], np.float32), 2)


@pytest.mark.parametrize(
    ("nodes", "last"),
    [
        (["Conv", "Sigmoid"], "Sigmoid"),
        (["Conv", "Softmax", "Resize", "Identity"], "Softmax"),
        (["Softmax", "Conv"], "Conv"),
        (["Conv", "ArgMax", "Cast"], "ArgMax"),
    ],
)
def test_the_last_operator_says_what_an_output_holds(tmp_path: Any, nodes: list[str], last: str) -> None:
    names = ["image", *(f"n{number}" for number in range(len(nodes) - 1)), "out"]
    attributes: dict[str, dict[str, Any]] = {"Cast": {"to": TensorProto.FLOAT}}
    made = [
        helper.make_node(kind, [given], [name], **attributes.get(kind, {}))
        for kind, given, name in zip(nodes, names, names[1:], strict=False)
    ]
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", 3, 64, 64]) for name in ("image", "out")]
    model = helper.make_model(helper.make_graph(made, "g", tensors[:1], tensors[1:]))
    onnx.save(model, tmp_path / "net.onnx")

    signature = read_signature(tmp_path / "net.onnx")

    assert signature.last_operators == {"out": last}
    if last == "Conv":
        assert FAMILIES["semantic-logits"].network_io(signature, pipeline_of(classes=3)).outputs
        return
    with pytest.raises(SignatureError, match=rf"ends with {last}, so it holds no logits: .*semantic-"):
        FAMILIES["semantic-logits"].network_io(signature, pipeline_of(classes=3))


@pytest.mark.parametrize(
    ("shape", "transform", "fits"),
    [
        ((16, 16), LETTERBOX, True),
        ((60, 80), ResizeTransform.of(480, 640), True),
        ((80, 60), ResizeTransform.of(480, 640), False),
        ((15, 20), ResizeTransform.of(475, 633), True),  # sides divided by 32, and rounded
        ((16, 21), ResizeTransform.of(475, 633), True),
        ((475, 475), ResizeTransform.of(475, 633), False),
        ((1, 1), ResizeTransform.of(40, 50), True),
    ],
)
@pytest.mark.parametrize("family", ["semantic-logits", "semantic-labels", "yolo-seg", "maskformer"])
def test_a_grid_of_another_aspect_than_the_input_is_refused(
    family: str, shape: tuple[int, int], transform: ResizeTransform, fits: bool
) -> None:
    arrays = {
        "semantic-logits": [np.zeros((1, 2, *shape), np.float32)],
        "semantic-labels": [np.zeros((1, *shape), np.uint8)],
        "yolo-seg": [np.zeros((1, 4 + 2 + 3, 9), np.float32), np.zeros((1, 3, *shape), np.float32)],
        "maskformer": [np.zeros((1, 9, 3), np.float32), np.zeros((1, 9, *shape), np.float32)],
    }[family]
    outputs = {str(number): array for number, array in enumerate(arrays)}

    if fits:
        assert FAMILIES[family].read(outputs, transform, pipeline_of(family))
        return
    with pytest.raises(SignatureError, match="they must have its aspect"):
        FAMILIES[family].read(outputs, transform, pipeline_of(family))


@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64"])
@pytest.mark.parametrize("shape", [(1, 64, 64), (1, 1, 64, 64), (1, 64, 64, 1)])
def test_labels_are_those_of_the_nearest_cell_without_padding(dtype: str, shape: tuple[int, ...]) -> None:
    """As Ultralytics and torch: `interpolate(mode="nearest")` of what remains without the letterbox."""
    import torch

    grid = RNG.integers(0, 5, (64, 64))

    found = labelled("semantic-labels", grid.reshape(shape).astype(dtype), 5)

    inner = torch.from_numpy(grid[16:48].astype(np.float32))[None, None]
    expected = torch.nn.functional.interpolate(inner, (50, 100), mode="nearest")[0, 0].numpy()
    assert found.labels.dtype == np.uint8
    assert np.array_equal(found.labels, expected)
    areas, confidence = class_statistics(found, 6)
    assert areas.tolist() == np.bincount(expected.astype(int).ravel(), minlength=6).tolist()
    assert confidence.tolist() == [1, 1, 1, 1, 1, 0]
    assert part_statistics(found, found.labels.astype(np.int32), 6)[1].tolist() == confidence.tolist()


@pytest.mark.parametrize("label", [-1, 5, 255])
def test_a_label_that_is_not_a_class_is_refused(label: int) -> None:
    grid = np.zeros((1, 64, 64), np.int64)
    grid[0, 3, 4] = label

    with pytest.raises(SignatureError, match=f"label {label} is not a class of the model; its classes are 0 to 4"):
        read("semantic-labels", grid, 5)


def test_labels_have_no_score_that_an_unusual_image_could_be_told_by() -> None:
    policy = {"score": "maxSoftmax", "threshold": 0.5}

    with pytest.raises(ScoreError, match="the network gives labels: use detail"):
        check_postprocess(pipeline_of("semantic-labels", outOfDistribution=policy))


def io(*outputs: TensorSpec, image: TensorSpec = IMAGE, **changes: Any) -> NetworkIO:
    return FAMILIES["semantic-logits"].network_io(
        NetworkSignature((image,), outputs), pipeline_of(classes=5, **changes)
    )


def tensor(name: str, *shape: int | None, dtype: str = "FP32") -> TensorSpec:
    return TensorSpec(name, dtype, (None, *shape))


MAIN = tensor("out", 5, 64, 64)


@pytest.mark.parametrize(
    "outputs",
    [
        pytest.param((MAIN, tensor("label", 3)), id="a classification beside it (aux_params of smp)"),
        pytest.param((tensor("aux", 5, 64, 64), MAIN), id="a head for training alone (aux_loss of torchvision)"),
        pytest.param((tensor("aux_head", 5, 8, 8), tensor("1020", 5, 64, 64)), id="no usual name but for the other"),
        pytest.param((tensor("out1", 64, 16, 16), tensor("out2", 5, 64, 64)), id="features"),
    ],
)
def test_the_output_that_fits_is_read_beside_others(outputs: tuple[TensorSpec, ...]) -> None:
    (chosen,) = io(*outputs).outputs

    assert chosen.shape == MAIN.shape
    assert not chosen.name.startswith("aux")


@pytest.mark.parametrize("shape", [(64, 64, 5), (None, None, 5)])
def test_classes_may_be_last_as_in_keras(shape: tuple[int | None, ...]) -> None:
    planes = RNG.normal(size=(5, 64, 64)).astype(np.float32)

    found = io(tensor("logits", *shape), image=LAST)
    value = read("semantic-logits", planes.transpose(1, 2, 0)[None], 5)

    assert found.outputs[0].shape == (None, *shape)
    assert isinstance(value, Logits)
    assert np.array_equal(value.values, planes)
    with pytest.raises(PipelineError, match="and here the classes are last"):
        io(tensor("logits", *shape), image=LAST, inference=[{"tile": {"height": 64, "width": 64}}])
