"""What networks take beside the image: which inputs are known, what they get, and the answers of whole pipelines."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from google.protobuf import text_format
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc.model_config_pb2 import ModelConfig

from fakes.pipelines import pipeline_of
from fakes.triton_python import FakeRequest, triton_python
from networks.extra_inputs import HEIGHT, KINDS, WIDTH, picture, write
from segserve_builder.errors import PipelineError, SignatureError
from segserve_builder.families import FAMILIES
from segserve_builder.families.base import NetworkIO, NetworkSignature, TensorSpec
from segserve_builder.families.network_inputs import EXTRA_INPUTS, extra_array
from segserve_builder.kernels.rle_reader import decode
from segserve_builder.render.target import EMBEDDED, RenderTarget
from segserve_builder.render.tree import CONFIG_FILE, Network, Tree, render, with_network_alias
from segserve_builder.stages.base import RequestOptions
from segserve_builder.steps.in_process import InProcessModel
from segserve_builder.steps.inference import network_io
from segserve_builder.steps.onnx_signature import read_signature
from segserve_builder.steps.pipeline import Pipeline
from segserve_builder.steps.session import NetworkSession
from segserve_builder.steps.step_options import MODEL_FILE, PARAMETER, NetOptions, PipelineOptions
from segserve_builder.values import ResizeTransform

FAMILY_OF = {"masked": "detr", "sized": "faster-rcnn", "scaled": "faster-rcnn"}
RESIZE = {"mode": "letterbox", "height": HEIGHT, "width": WIDTH}
# Padded at the left and right, and halved and padded above and below.
PICTURES = {(4, 8, 20, 40): (48, 32), (16, 8, 100, 40): (64, 128)}
IMAGE = TensorSpec("image", "UINT8", (None, 3, HEIGHT, WIDTH))
PLACE = ResizeTransform(64, 128, 8, 0, 32, 64, HEIGHT, WIDTH)
NATIVE = RenderTarget((26, 4), "onnxruntime", has_gpu=True)


def pipeline(kind: str, **changes: Any) -> Pipeline:
    preprocess = [{"decode": {}}, {"resize": RESIZE}]
    return pipeline_of(**{"family": FAMILY_OF[kind], "classes": 1, "preprocess": preprocess, **changes})


def signature(*extra: TensorSpec) -> NetworkSignature:
    logits = TensorSpec("logits", "FP32", (None, 1, 2))
    return NetworkSignature((IMAGE, *extra), (logits, TensorSpec("pred_boxes", "FP32", (None, 1, 4))))


def png(box: tuple[int, ...]) -> bytes:
    return cv2.imencode(".png", picture(*PICTURES[box], box))[1].tobytes()  # type: ignore[index]


ALLOWED: dict[str, tuple[set[str], tuple[Any, ...]]] = {
    "pixel_mask": ({"INT64", "INT32", "BOOL", "FP16", "FP32"}, (None, None)),
    "orig_target_sizes": ({"INT64", "INT32", "FP32"}, (2,)),
    "im_shape": ({"FP32"}, (2,)),
    "scale_factor": ({"FP32"}, (2,)),
}
DTYPES = {"INT64": np.int64, "INT32": np.int32, "BOOL": np.bool_, "FP16": np.float16, "FP32": np.float32}
NAMES = st.sampled_from([*ALLOWED, "mask", "orig_size"]).flatmap(
    lambda name: st.sampled_from([name, name.upper(), name.title()])
)
BEHIND_BATCH = st.sampled_from([(), (2,), (None,), (4,), (48, 64), (None, 64), (64, 64), (None, None), (1, 48, 64)])


@settings(max_examples=300)
@given(NAMES, st.sampled_from([*DTYPES, "FP64", "UINT8"]), st.sampled_from([None, 1, 2]), BEHIND_BATCH, st.booleans())
def test_another_input_gets_an_array_of_its_type_and_shape_or_is_refused_by_its_name(
    name: str, dtype: str, batch: int | None, shape: tuple[int | None, ...], image_first: bool
) -> None:
    tensor = TensorSpec(name, dtype, (batch, *shape))
    network = replace(signature(), inputs=(IMAGE, tensor) if image_first else (tensor, IMAGE))
    dtypes, sizes = ALLOWED.get(name.lower(), (set(), ()))
    fits = len(shape) == len(sizes) and all(None in (a, b) or a == b for a, b in zip(shape, sizes, strict=True))
    if dtype not in dtypes or not fits or batch == 2:
        with pytest.raises(SignatureError, match=f"'{name}' {dtype}"):
            network_io(pipeline("masked"), network)
        return

    io = network_io(pipeline("masked"), network)

    array = extra_array(tensor, PLACE)
    assert (io.input, io.extra, array.dtype) == (IMAGE, (tensor,), DTYPES[dtype])
    assert io.has_free_batch is (batch is None)
    assert all(declared in (None, side) for side, declared in zip(array.shape, tensor.shape, strict=True))


@pytest.mark.parametrize(
    ("tensor", "says"),
    [
        (
            TensorSpec("orig_size", "INT64", (None, 2)),
            r"has 2 inputs: 'image' UINT8.*expected the image, and beside it 'pixel_mask' BOOL or .*"
            r"make what is none of them a constant of the graph: 'orig_size' INT64 \[\?, 2\]",
        ),
        (TensorSpec("depth", "FP32", (None, 1, 48, 64)), r"a constant of the graph: 'depth' FP32 \[\?, 1, 48, 64\]"),
        (
            TensorSpec("pixel_mask", "UINT8", (None, 8, 8)),
            r"'pixel_mask' UINT8 .* must be BOOL or .* \[batch, \?, \?\]",
        ),
        (
            TensorSpec("pixel_mask", "BOOL", (None, 1, 48, 64)),
            r"'pixel_mask' BOOL \[\?, 1, 48, 64\] beside the image must",
        ),
        (TensorSpec("Scale_Factor", "FP32", (None, 4)), r"'Scale_Factor' FP32 .* must be FP32 \[batch, 2\]"),
        (TensorSpec("im_shape", "FP32", (4, 2)), "input 'im_shape'.*the batch size must be free or 1; it is 4"),
    ],
)
def test_an_input_of_no_use_is_refused_with_what_is_allowed(tensor: TensorSpec, says: str) -> None:
    with pytest.raises(SignatureError, match=says):
        network_io(pipeline("masked"), signature(tensor))


@pytest.mark.parametrize("names", [(), ("im_shape", "scale_factor")])
def test_a_network_without_an_image_is_refused(names: tuple[str, ...]) -> None:
    sizes = tuple(TensorSpec(name, "FP32", (None, 2)) for name in names)

    with pytest.raises(SignatureError, match=rf"the network has {len(names)} inputs: .*expected the image"):
        network_io(pipeline("masked"), replace(signature(), inputs=sizes))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_refuses_an_unknown_input_by_its_name(family: str) -> None:
    with pytest.raises(SignatureError, match="a constant of the graph: 'text'"):
        FAMILIES[family].network_io(signature(TensorSpec("text", "INT64", (None, 77))), pipeline_of(family))


@pytest.mark.parametrize(
    ("tensor", "expected"),
    [
        (TensorSpec("orig_target_sizes", "INT64", (None, 2)), [[WIDTH, HEIGHT]]),
        (TensorSpec("im_shape", "FP32", (1, 2)), [[HEIGHT, WIDTH]]),
        (TensorSpec("scale_factor", "FP32", (None, None)), [[1, 1]]),
    ],
)
def test_sizes_are_those_of_the_networks_input_in_whose_pixels_boxes_are(tensor: TensorSpec, expected: Any) -> None:
    assert extra_array(tensor, PLACE).tolist() == expected


@pytest.mark.parametrize("size", [(HEIGHT, WIDTH), (None, None), (None, 20), (64, 64), (3, 5)])
@pytest.mark.parametrize("dtype", EXTRA_INPUTS["pixel_mask"].dtypes)
def test_a_mask_is_one_where_the_image_is_resampled_as_by_torch(size: tuple[int | None, ...], dtype: str) -> None:
    import torch

    whole = torch.zeros(HEIGHT, WIDTH)
    whole[8:40] = 1
    expected = torch.nn.functional.interpolate(whole[None, None], [size[0] or HEIGHT, size[1] or WIDTH])[0]

    mask = extra_array(TensorSpec("pixel_mask", dtype, (None, *size)), PLACE)

    np.testing.assert_array_equal(mask.astype(np.float32), expected.numpy())


@pytest.mark.parametrize(
    ("kind", "batch", "image_first"), list(product(KINDS, ("n", 1), (True, False))), ids=lambda each: str(each)
)
def test_boxes_are_in_pixels_of_the_image_whatever_its_size(
    tmp_path: Path, kind: str, batch: str | int, image_first: bool
) -> None:
    file = write(tmp_path / "net.onnx", kind, batch=batch, image_first=image_first)
    model = InProcessModel(pipeline(kind), file)

    for box in PICTURES:
        answer = model.answer(png(box), RequestOptions())
        np.testing.assert_allclose(answer["BOXES"], [box], atol=1e-3)


@pytest.mark.parametrize("kind", ["sized", "scaled"])
def test_an_image_without_a_batch_is_beside_inputs_with_one(tmp_path: Path, kind: str) -> None:
    made, file = pipeline(kind), write(tmp_path / "net.onnx", kind, batch=1, single=True)
    io = network_io(made, read_signature(file))
    model = InProcessModel(made, file)

    tree = render(made, Network(io, file, single=True), target=NATIVE)

    for box in PICTURES:
        np.testing.assert_allclose(model.answer(png(box), RequestOptions())["BOXES"], [box], atol=1e-3)
    image, *extra = configs(tree)[1].input
    assert (list(image.dims), list(image.reshape.shape)) == ([1, 3, HEIGHT, WIDTH], [3, HEIGHT, WIDTH])
    assert [(list(each.dims), each.HasField("reshape")) for each in extra] == [([1, 2], False)] * len(extra)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("engine", [None, "openvino"])
def test_images_of_a_batch_get_their_own_inputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, engine: Any
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    made = pipeline(kind)
    file = write(tmp_path / "net.onnx", kind)
    io = network_io(made, read_signature(file))
    session = NetworkSession(file, NetOptions.of(made, io).model_copy(update={"engine": engine}))
    model = InProcessModel(made, file)
    given = [model.network_input(png(box)) for box in PICTURES] * 2
    alone = [session.run(each.tensor, each.extra) for each in given]

    for count in (2, 3, 4):
        together = session.run_each([(each.tensor, *each.extra) for each in given[:count]])
        for one, other in zip(alone, together, strict=False):
            assert all(np.array_equal(one[name], other[name]) for name in one)
    boxes = "pred_boxes" if kind == "masked" else "boxes"
    assert not np.array_equal(alone[0][boxes], alone[1][boxes])


def rendered(kind: str, folder: Path, target: RenderTarget = EMBEDDED, **runtime: Any) -> tuple[Tree, NetworkIO]:
    made = pipeline(kind, runtime=runtime)
    file = write(folder / "net.onnx", kind)
    io = network_io(made, read_signature(file))
    return render(made, Network(io, file), target=target), io


def configs(tree: Tree) -> list[ModelConfig]:
    found = [files[CONFIG_FILE] for files in (*tree.steps.values(), *tree.public.values())]
    return [text_format.Parse(content.decode(), ModelConfig()) for content in found if isinstance(content, bytes)]


def step(kind: str, config: ModelConfig, folder: Path) -> Any:
    model = importlib.import_module(f"segserve_builder.backend.{kind}").TritonPythonModel()
    options = {"parameters": {PARAMETER: {"string_value": config.parameters[PARAMETER].string_value}}}
    model.initialize({"model_config": json.dumps(options), "model_repository": str(folder), "model_version": "1"})
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_two_images_of_different_size_in_one_batch_of_the_steps_get_their_own_boxes(tmp_path: Path, kind: str) -> None:
    tree, _ = rendered(kind, tmp_path)
    *steps, ensemble = configs(tree)
    (tmp_path / "1").mkdir()
    (tmp_path / "net.onnx").rename(tmp_path / "1" / MODEL_FILE)
    wires = [(dict(each.input_map), dict(each.output_map)) for each in ensemble.ensemble_scheduling.step]
    with triton_python():
        pre, net, post = (step(name, each, tmp_path) for name, each in zip(("pre", "net", "post"), steps, strict=True))
        known = [{"IMAGE": np.array([png(box)], np.object_)} for box in PICTURES]
        for running, (taken, made) in zip((pre, net, post), wires, strict=True):
            requests = [
                FakeRequest({name: tensors[wire] for name, wire in taken.items() if wire in tensors}, list(made))
                for tensors in known
            ]
            for tensors, response in zip(known, running.execute(requests), strict=True):
                tensors |= {made[name]: array for name, array in response.arrays().items()}

    np.testing.assert_allclose([tensors["BOXES"][0] for tensors in known], list(PICTURES), atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_that_is_all_of_a_model_answers_each_image_with_its_own_boxes(tmp_path: Path, kind: str) -> None:
    tree, _ = rendered(kind, tmp_path, replace(EMBEDDED, cpus=2))
    options = PipelineOptions.model_validate_json(configs(tree)[0].parameters[PARAMETER].string_value)
    with triton_python():
        joined = importlib.import_module("segserve_builder.backend.joined")
        responses = importlib.import_module("segserve_builder.backend.responses")
        steps = joined.JoinedSteps(options, tmp_path / "net.onnx", 2)
        for box in PICTURES:
            image = {"IMAGE": np.array([png(box)], np.object_)}
            answer = steps.answer(responses.SentRequest("1", ("BOXES",), "{}", image))
            np.testing.assert_allclose(answer["BOXES"], [box], atol=1e-3)


def test_a_request_to_the_network_alone_that_lacks_an_input_is_its_callers_fault(tmp_path: Path) -> None:
    tree, io = rendered("masked", tmp_path)
    (alias, _) = with_network_alias(tree, pipeline("masked"), io).network or ("", {})
    (tmp_path / "1").mkdir()
    (tmp_path / "net.onnx").rename(tmp_path / "1" / MODEL_FILE)
    with triton_python():
        net = step("net", configs(tree)[1], tmp_path)
        image = {"image": np.zeros((1, 3, HEIGHT, WIDTH), np.uint8)}
        good = image | {"pixel_mask": np.ones((1, HEIGHT, WIDTH), np.int64)}
        lacking, whole = net.execute([FakeRequest(image), FakeRequest(good)])

    assert alias == "coins.network"
    assert (lacking.error.code, lacking.error.message) == (
        "INVALID_ARG",
        "an input is missing; the network takes 'image', 'pixel_mask'",
    )
    assert whole.arrays()["logits"].shape == (1, 1, 2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("target", "runtime"),
    [
        pytest.param(EMBEDDED, {}, id="a step of Python"),
        pytest.param(replace(EMBEDDED, cpus=2), {}, id="one step"),
        pytest.param(NATIVE, {}, id="Triton's own backend on a GPU"),
        pytest.param(NATIVE, {"engine": "tensorrt", "device": "gpu"}, id="TensorRT"),
        pytest.param(NATIVE, {"engine": "openvino"}, id="OpenVINO"),
    ],
)
def test_every_input_of_a_step_is_wired_to_a_tensor_of_its_type_and_shape(
    tmp_path: Path, kind: str, target: RenderTarget, runtime: dict[str, Any]
) -> None:
    tree, io = rendered(kind, tmp_path, target, **runtime)
    *steps, ensemble = configs(tree)
    by_name = {each.name: each for each in steps}
    wires = {tensor.name: (tensor.data_type, list(tensor.dims)) for tensor in ensemble.input}
    for each in ensemble.ensemble_scheduling.step:
        config = by_name[each.model_name]
        batch = [-1] if config.max_batch_size else []
        assert {tensor.name for tensor in config.input} == set(each.input_map)
        for tensor in config.input:
            assert wires[each.input_map[tensor.name]] == (tensor.data_type, [*batch, *tensor.dims])
        wires |= {each.output_map[t.name]: (t.data_type, [*batch, *t.dims]) for t in config.output}
    network = by_name[tree.networks[0]]
    if len(steps) > 1:
        assert [tensor.name for tensor in network.input] == [tensor.name for tensor in io.inputs]
    for sample in network.model_warmup:
        assert set(sample.inputs) == {tensor.name for tensor in io.inputs}
    for accelerator in network.optimization.execution_accelerators.gpu_execution_accelerator:
        profile = accelerator.parameters["trt_profile_min_shapes"]
        sizes = dict(one.split(":") for one in profile.split(","))
        assert sizes.keys() == {tensor.name for tensor in io.inputs}
        assert sizes["image"] == f"1x3x{HEIGHT}x{WIDTH}"


def test_a_second_network_gets_the_inputs_of_its_own(tmp_path: Path) -> None:
    things = [{"id": 0, "name": "sky"}, {"id": 1, "name": "coin", "thing": True}]
    second = {"artifactSha256": "b" * 64, "family": "mask-rcnn", "postprocess": [{"pasteMasks": {}}]}
    made = pipeline_of(
        classes=things,
        preprocess=[{"decode": {}}, {"resize": RESIZE}],
        postprocess=[{"argmax": {}}, {"panopticFusion": {"stuffArea": 0}}],
        instances=second,
    )
    shape, mask = TensorSpec("im_shape", "FP32", (None, 2)), TensorSpec("PIXEL_MASK", "BOOL", (None, 48, 64))
    first = NetworkIO(IMAGE, "NCHW", (TensorSpec("y", "FP32", (None, 2, 48, 64)),), extra=(shape,))
    boxes = (TensorSpec("boxes", "FP32", (1, None, 4)),)
    other = NetworkIO(replace(IMAGE, name="x"), "NCHW", boxes, batched=False, extra=(mask,))

    tree = render(made, Network(first, Path("/cache/a")), Network(other, Path("/cache/b")))

    pre, one, two, _ = configs(tree)[-1].ensemble_scheduling.step
    assert set(pre.output_map) == {"NETWORK_INPUT", "NETWORK_INPUT_0", "NETWORK_INPUT_1", "GEOMETRY"}
    assert dict(one.input_map) == {"image": "NETWORK_INPUT", "im_shape": "NETWORK_INPUT_0"}
    assert dict(two.input_map) == {"x": "NETWORK_INPUT", "PIXEL_MASK": "NETWORK_INPUT_1"}


def test_tiles_and_views_of_a_network_with_another_input_are_refused() -> None:
    mask, logits = TensorSpec("pixel_mask", "BOOL", (None, 48, 64)), TensorSpec("y", "FP32", (None, 2, 48, 64))
    network = NetworkSignature((IMAGE, mask), (logits,))
    made = pipeline_of(inference=[{"tta": {"flips": ["horizontal"]}}])

    with pytest.raises(PipelineError, match=r"inference 'tta' cuts or turns the image; .* 'pixel_mask' BOOL"):
        network_io(made, network)


def test_masks_cover_the_networks_whole_input_while_boxes_are_relative_to_the_mask(tmp_path: Path) -> None:
    made = pipeline("masked", family="detr-panoptic", postprocess=[{"instanceQueries": {}}])
    model = InProcessModel(made, write(tmp_path / "net.onnx", "masked"))

    for box, size in PICTURES.items():
        (counts,) = model.answer(png(box), RequestOptions(encoding="rle"))["MASKS"]
        found = decode(counts, *size)
        height, width = found.bitmap.shape
        assert (found.left, found.top, found.left + width, found.top + height) == box
        assert found.bitmap.all()
