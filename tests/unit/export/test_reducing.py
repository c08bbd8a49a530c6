"""A served ONNX file gets a lower precision that its golden set still proves, or a clear error says why not."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
import yaml
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from pycocotools import mask as coco
from typer.testing import CliRunner

from bench.coins import variant
from bench.platform import MODELS, ROOT
from segserve_builder.errors import ExportError, SignatureError
from segserve_builder.export.reducing import compared, reduce_precision
from segserve_builder.scoring.quality import Regions
from segserve_builder.sources import folder_digest
from segserve_builder.stages.base import RequestOptions
from segserve_builder.steps.in_process import InProcessModel
from segserve_builder.steps.pipeline import Pipeline
from segserve_operator.api.segmentation_model import SegmentationModel
from segserve_platform.cli.app import app
from segserve_platform.platforms.manifests import complete_models, read_files

COINS = cv2.imread(str(MODELS.parent / "coins.png"), cv2.IMREAD_GRAYSCALE)
NETWORKS = {"coins": "coins-unet", "coins-instances": "coins-yolo"}


@pytest.fixture(params=NETWORKS)
def resource(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The file of one of the example's models, with comments and CRLF, and its golden set beside it."""
    (text,) = (each for each in MODELS.read_text().split("\n---\n") if f"  name: {request.param}\n" in each)
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "model.yaml").write_text(f"{text}\n", newline="\r\n")
    shutil.copy(MODELS.parent / f"{NETWORKS[request.param]}.onnx", folder)
    shutil.copytree(MODELS.parent / "golden", folder / "golden")
    return folder / "model.yaml"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Eight parts of the photograph, too small for the tests to take long."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(8):
        y, x = 60 * (index % 2), 45 * (index // 2)
        cv2.imwrite(str(folder / f"{index}.png"), COINS[y : y + 160, x : x + 160])
    return folder


def export(*arguments: object) -> tuple[str, str]:
    """Return what the command prints, and its error."""
    done = CliRunner().invoke(app, ["export", *map(str, arguments)])
    return done.output, str(done.exception or "")


def test_a_reduced_file_is_a_revision_of_the_same_model_with_the_same_golden_set(
    resource: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "elsewhere/out"

    told, error = export(resource, "--precision", "int8", "--images", photos, "-o", out)

    assert error == ""
    (before,), (after,) = (complete_models(read_files([path])).values() for path in (resource, out / "model-int8.yaml"))
    model = yaml.safe_load(resource.read_text())["metadata"]["name"]
    assert Path(after.spec.artifact.uri).name == f"{model}.int8.onnx"
    changed = {"artifact": after.spec.artifact.model_copy(update={"provenance": None})}
    assert after.spec.golden == before.spec.golden
    assert before.spec.model_copy(update=changed).model_dump() == after.spec.model_copy(update=changed).model_dump()
    assert after.metadata == before.metadata
    old, new = (path.read_bytes().splitlines(keepends=True) for path in (resource, out / "model-int8.yaml"))
    assert sum(line != other for line, other in zip(old, new, strict=True)) == 3
    assert "golden set refuses" not in told
    assert f"next: segserve up -f {out / 'model-int8.yaml'}" in told


@pytest.mark.parametrize("resource", ["coins"], indirect=True)
def test_a_copy_is_written_again_until_it_is_edited(resource: Path, photos: Path) -> None:
    copy, arguments = resource.with_name("model-fp16.yaml"), (resource, "--precision", "fp16", "--images", photos)
    assert [export(*arguments)[1] for _ in range(2)] == ["", ""]
    edited = copy.read_bytes() + b"# signed\r\n"
    copy.write_bytes(edited)

    _, error = export(*arguments)

    assert f"{copy} already exists, and it, {resource} or coins.fp16.onnx has changed since" in error
    assert copy.read_bytes() == edited


def test_every_second_image_calibrates_and_the_file_says_which(resource: Path, photos: Path, tmp_path: Path) -> None:
    told, _ = export(resource, "--precision", "int8", "--images", photos)

    for odd in ("1.png", "3.png", "5.png", "7.png"):
        (photos / odd).unlink()
    digest, source = folder_digest(photos), complete_models(read_files([resource])).popitem()[1].spec.artifact
    (file,) = resource.parent.glob("*.int8.onnx")
    assert f"calibrated on 4 images, digest {digest}" in told
    assert {entry.key: entry.value for entry in onnx.load(file).metadata_props} == {
        "segserve.sourceSha256": source.sha256,
        "segserve.precision": "int8",
        "segserve.calibrationSha256": digest,
        "segserve.calibrationImages": "4",
    }


@pytest.mark.parametrize(
    ("kept", "blackened", "says"),
    [
        pytest.param(8, [0, 2, 4, 6], r"int8 costs too much .* coin loses 0\.\d+.*--max-loss", id="black calibration"),
        pytest.param(8, range(8), r"finds (only background|no object) in the 4 held-out images", id="black images"),
        pytest.param(3, [], "3 images are too few for int8", id="three images"),
    ],
)
def test_images_that_are_not_as_those_served_are_refused_and_nothing_is_written(
    resource: Path, photos: Path, kept: int, blackened: list[int], says: str
) -> None:
    for index in range(kept, 8):
        (photos / f"{index}.png").unlink()
    for index in blackened:
        cv2.imwrite(str(photos / f"{index}.png"), np.zeros((160, 160), np.uint8))
    before = sorted(resource.parent.iterdir())

    with pytest.raises(ExportError, match=says):
        CliRunner().invoke(
            app, ["export", str(resource), "--precision", "int8", "--images", str(photos)], catch_exceptions=False
        )

    assert sorted(resource.parent.iterdir()) == before


def test_a_golden_set_that_refuses_the_file_is_named_with_what_to_do(tmp_path: Path, photos: Path) -> None:
    golden = tmp_path / "golden"
    shutil.copytree(MODELS.parent / "golden/instances", golden)
    (golden / "golden.json").write_text((golden / "golden.json").read_text().replace('"iou": 0.98', '"iou": 0.9999'))
    model = variant(model="coins-instances", golden={"uri": str(golden), "sha256": folder_digest(golden)})
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(model))

    told, error = export(tmp_path / "model.yaml", "--precision", "int8", "--images", photos, "-o", tmp_path)

    assert error == ""
    assert "the golden set refuses this file, and so do servers (1 images): coins.png: " in told
    assert f"segserve golden record {photos} -f {tmp_path / 'model-int8.yaml'} -o FOLDER" in told


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["--precision", "int8", "--size", "64x64", "--family", "yolo-seg"],
            "--family, --size: for torch networks only",
        ),
        ([], "--precision must be fp16 or int8 for a resource file"),
        (["--precision", "int8", "--labels", "photos"], r"labels are PNGs .* for semantic models"),
    ],
)
@pytest.mark.parametrize("resource", ["coins-instances"], indirect=True)
def test_an_option_that_a_resource_makes_wrong_is_refused(
    resource: Path, photos: Path, arguments: list[str], says: str
) -> None:
    given = [str(photos) if each == "photos" else each for each in arguments]

    _, error = export(resource, "--images", photos, *given)

    assert re.search(says, error)


def test_a_file_of_several_models_is_refused(photos: Path) -> None:
    _, error = export(ROOT / "examples/zoo/zoo.yaml", "--images", photos, "--precision", "int8")

    assert "must have one SegmentationModel, got segmentationmodel/zoo-unet" in error


def network(path: Path, dtype: int, shape: list[Any]) -> None:
    """Write a network of two convolutions whose classes are dark and bright."""
    rng = np.random.default_rng(0)
    weights = {
        "first": rng.uniform(0.1, 0.2, (4, 3, 3, 3)).astype(np.float32),
        "second": np.stack([-np.ones((4, 1, 1)), np.ones((4, 1, 1))]).astype(np.float32),
        "limit": np.array([900.0, 0.0], np.float32).reshape(1, 2, 1, 1)
        if dtype == TensorProto.UINT8
        else np.array([900.0 / 255, 0.0], np.float32).reshape(1, 2, 1, 1),
    }
    nodes = [
        helper.make_node("Cast", ["pixels"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["planes"], perm=[0, 3, 1, 2])
        if shape[-1] == 3
        else helper.make_node("Identity", ["float"], ["planes"]),
        helper.make_node("Conv", ["planes", "first"], ["features"], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["features", "second"], ["scores"]),
        helper.make_node("Add", ["scores", "limit"], ["logits"]),
    ]
    inputs = [helper.make_tensor_value_info("pixels", dtype, shape)]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [shape[0], 2, None, None])]
    tensors = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "net", inputs, outputs, tensors),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    onnx.save(model, path)


def pipeline(**spec: Any) -> Pipeline:
    manifest = {
        "apiVersion": "segserve.dev/v1alpha1",
        "kind": "SegmentationModel",
        "metadata": {"name": "net"},
        "spec": {
            "artifact": {"uri": "file:///net.onnx", "sha256": "0" * 64},
            "family": "semantic-logits",
            "classes": [{"id": 0, "name": "dark"}, {"id": 1, "name": "bright"}],
            **spec,
        },
    }
    return SegmentationModel.model_validate(manifest).spec.pipeline("net")


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        pytest.param(TensorProto.UINT8, ["n", 3, "h", "w"], id="uint8, any batch and size"),
        pytest.param(TensorProto.FLOAT, [1, 3, 160, 160], id="float32, a batch of one"),
        pytest.param(TensorProto.FLOAT, [1, 160, 160, 3], id="float32, channels last"),
        pytest.param(TensorProto.FLOAT16, [1, 160, 160, 3], id="float16, channels last"),
    ],
)
def test_an_input_of_any_name_type_and_layout_calibrates(
    tmp_path: Path, photos: Path, dtype: int, shape: list[Any]
) -> None:
    network(tmp_path / "net.onnx", dtype, shape)
    stages = [{"decode": {}}, *([] if dtype == TensorProto.UINT8 else [{"normalise": {}}])]

    original = InProcessModel(pipeline(preprocess=stages), tmp_path / "net.onnx")
    made = reduce_precision(original, tmp_path / "out.onnx", "int8", sorted(photos.iterdir()), labels={})

    assert min(each.after or 0 for each in made.accuracy.classes) > 0.95
    operators = [node.op_type for node in onnx.load(tmp_path / "out.onnx").graph.node]
    assert operators.count("QuantizeLinear") >= 1


def test_weights_of_int8_are_too_small_to_saturate_a_processor_without_vnni(
    resource: Path, photos: Path, tmp_path: Path
) -> None:
    """Two products of 255 and a weight are added in 16 bits there: 2 * 255 * 64 fits, 2 * 255 * 65 does not."""
    export(resource, "--precision", "int8", "--images", photos, "-o", tmp_path / "out")

    (file,) = (tmp_path / "out").glob("*.int8.onnx")
    tensors = [numpy_helper.to_array(each) for each in onnx.load(file).graph.initializer]
    weights = [tensor for tensor in tensors if tensor.dtype == np.int8 and tensor.ndim == 4]
    assert weights
    assert max(np.abs(tensor.astype(int)).max() for tensor in weights) == 64


def test_only_a_model_of_tensorrt_gets_a_file_that_its_int8_takes(tmp_path: Path, photos: Path) -> None:
    network(tmp_path / "net.onnx", TensorProto.UINT8, ["n", 3, "h", "w"])
    files, stages = sorted(photos.iterdir()), [{"decode": {}}]
    for engine in ("onnxruntime", "tensorrt"):
        original = InProcessModel(pipeline(preprocess=stages, runtime={"engine": engine}), tmp_path / "net.onnx")
        reduce_precision(original, tmp_path / f"{engine}.onnx", "int8", files, labels={})
    int8 = pipeline(preprocess=stages, runtime={"engine": "tensorrt", "precision": "int8"})

    assert InProcessModel(int8, tmp_path / "tensorrt.onnx").answer(files[0].read_bytes(), RequestOptions())
    for name, got in {"net": "no", "onnxruntime": "other"}.items():
        with pytest.raises(SignatureError, match=f"the file has {got} pairs: `segserve export "):
            InProcessModel(int8, tmp_path / f"{name}.onnx")
    zeros = [numpy_helper.to_array(each) for each in onnx.load(tmp_path / "tensorrt.onnx").graph.initializer]
    assert not any(each.dtype == np.int32 for each in zeros)  # biases stay in FP32


def test_tiles_calibrate_as_the_network_gets_them(tmp_path: Path, photos: Path) -> None:
    network(tmp_path / "net.onnx", TensorProto.UINT8, ["n", 3, 64, 64])
    tiled = pipeline(preprocess=[{"decode": {}}], inference=[{"tile": {"height": 64, "width": 64, "overlap": 0}}])

    feeds = InProcessModel(tiled, tmp_path / "net.onnx").feeds((photos / "0.png").read_bytes())

    assert [(name, tensor.shape) for feed in feeds for name, tensor in feed.items()] == [("pixels", (1, 3, 64, 64))] * 9


def answer(*masks: NDArray[np.bool_]) -> dict[str, Any]:
    """The answer of a semantic model with a mask for each of its classes from 0 on."""
    shown = [(number, mask) for number, mask in enumerate(masks) if mask.any()]
    counts = [coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"] for _, mask in shown]
    return {
        "SIZE": np.array(masks[0].shape),
        "CLASSES": np.array([number for number, _ in shown]),
        "AREAS": np.array([int(mask.sum()) for _, mask in shown]),
        "MASKS": np.array(counts, np.object_),
    }


def test_false_pixels_of_a_class_without_a_label_do_not_decide() -> None:
    nothing, one = np.zeros((64, 64), bool), np.zeros((64, 64), bool)
    one[0, 0] = True
    labels = {0: Regions((64, 64), (0,), tuple(answer(~nothing)["MASKS"]))}
    old, new = [answer(~nothing, nothing), answer(nothing, ~nothing)], [answer(~one, one), answer(nothing, ~nothing)]

    dark, bright = compared(old, new, {0: "dark", 1: "bright"}, labels).classes

    assert (bright.before, bright.after, bright.is_judged) == (None, 0.0, False)
    assert dark.is_judged
    assert dark.loss < 0.001


def test_labels_of_another_size_than_their_image_are_refused(tmp_path: Path, photos: Path) -> None:
    network(tmp_path / "net.onnx", TensorProto.UINT8, ["n", 3, "h", "w"])
    cv2.imwrite(str(tmp_path / "labels.png"), np.zeros((80, 160), np.uint8))
    labels = {"1": tmp_path / "labels.png"}

    original = InProcessModel(pipeline(preprocess=[{"decode": {}}]), tmp_path / "net.onnx")
    with pytest.raises(ExportError, match="is 80 x 160 pixels, its image 160 x 160; labels must have the image's size"):
        reduce_precision(original, tmp_path / "out.onnx", "int8", sorted(photos.iterdir()), labels=labels)


@pytest.mark.parametrize(("precision", "says"), [("int8", "already: it has QuantizeLinear"), ("fp16", "cannot reduce")])
def test_a_reduced_network_is_not_reduced_again(tmp_path: Path, photos: Path, precision: Any, says: str) -> None:
    files, out, whole = sorted(photos.iterdir()), tmp_path / "out.onnx", pipeline(preprocess=[{"decode": {}}])
    network(tmp_path / "net.onnx", TensorProto.UINT8, ["n", 3, "h", "w"])
    reduce_precision(InProcessModel(whole, tmp_path / "net.onnx"), out, precision, files, labels={})

    with pytest.raises(ExportError, match=says):
        reduce_precision(InProcessModel(whole, out), tmp_path / "twice.onnx", precision, files, labels={})
