"""`segserve init`: a resource that serves, made of a file; and all that it could not know is said."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from onnx import TensorProto, helper
from PIL import Image

from networks.extra_inputs import write as write_network
from segserve_builder.families import FAMILIES
from segserve_builder.golden.judging import GOLDEN_FILE, compare, load
from segserve_builder.sources import folder_digest
from segserve_builder.stages.base import RequestOptions
from segserve_builder.steps.in_process import InProcessModel
from segserve_operator.api.loading import load as load_resources
from segserve_operator.api.segmentation_model import SegmentationModel
from segserve_platform.cli.errors import CommandError
from segserve_platform.cli.init.classes import names_of
from segserve_platform.cli.init.guess import candidates, guess, misfit
from segserve_platform.cli.init.measuring import Measurement, TrialRun
from segserve_platform.cli.init.network import Overrides, image_input, read_network

from .conftest import Command

EXAMPLES = Path(__file__).parents[4] / "examples"
PHOTO = EXAMPLES / "coins/coins.png"
COMMITTED = {
    path.parent / document["spec"]["artifact"]["uri"]: document["spec"]
    for path in (EXAMPLES / "coins/model.yaml", EXAMPLES / "zoo/zoo.yaml")
    for document in yaml.safe_load_all(path.read_text())
}


@pytest.fixture(autouse=True)
def known_trial_runs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is known without a process that measures it, which is the matter of test_init_measuring.py."""
    if "small_trial_runs" not in request.fixturenames:
        known = Measurement((TrialRun(10_000, 2_000_000, 0.01), TrialRun(40_000, 5_000_000, 0.03)))
        monkeypatch.setattr("segserve_platform.cli.init.measuring._measured", lambda *_: known)


@pytest.fixture
def small_trial_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is measured, at small sizes."""
    monkeypatch.setattr("segserve_platform.cli.init.measuring.SIZES", (10_000, 40_000))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    shutil.copy(PHOTO, folder)
    return folder


def network(path: Path, inputs: list[Any], outputs: list[Any], **metadata: str) -> Path:
    """Write a file that declares tensors, each (name, shape) of float32, and only declares them."""
    declared = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in tensors]
        for tensors in (inputs, outputs)
    ]
    nodes = [helper.make_node("Identity", [inputs[0][0]], [name]) for name, _ in outputs]
    model = helper.make_model(helper.make_graph(nodes, "g", *declared), opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    helper.set_model_props(model, metadata)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("file", COMMITTED, ids=lambda path: path.stem)
def test_the_family_of_every_example_is_guessed_as_it_is_committed(file: Path) -> None:
    guessed = guess(file, "0" * 64, [PHOTO], Overrides())

    spec, committed = guessed.spec, COMMITTED[file]
    assert spec["family"] == committed["family"]
    assert spec["input"]["colour"] == committed.get("input", {}).get("colour", "RGB")
    assert len(spec["classes"]) == len(committed["classes"])
    assert spec["runtime"] == {"maxBatchSize": 8}


ONE, TWO = "the file takes one image at a time", "a batch of two images works"


@pytest.mark.parametrize(
    ("kind", "batch", "family", "words"),
    [
        ("masked", "n", "detr-panoptic", TWO),
        ("masked", 1, "detr-panoptic", ONE),
        ("sized", "n", "faster-rcnn", ONE),
        ("scaled", 1, "faster-rcnn", ONE),
    ],
)
def test_trial_runs_of_a_network_feed_what_it_takes_beside_the_image(
    command: Command, photos: Path, tmp_path: Path, kind: str, batch: str | int, family: str, words: str
) -> None:
    file = write_network(tmp_path / "net.onnx", kind, batch=batch, image_first=False)

    code, _, complaint = command("init", photos, file, "-o", tmp_path / "out", "--classes", "a")

    assert code == 0, complaint
    text = (tmp_path / "out/model.yaml").read_text()
    (resource,) = load_resources(text, "model.yaml")
    assert isinstance(resource, SegmentationModel)
    assert (resource.spec.family, words in text, "was not measured" in text) == (family, True, False)
    model = InProcessModel(resource.spec.pipeline("net"), file)
    (case,) = load(tmp_path / "out/golden").cases
    request = RequestOptions(encoding="rle" if kind == "masked" else None)
    compare(case, model.answer(PHOTO.read_bytes(), request))


@pytest.mark.parametrize("name", ["coins-unet", "coins-yolo", "coins-twostage"])
def test_what_is_written_loads_and_answers_as_the_committed_one(
    command: Command, photos: Path, tmp_path: Path, name: str
) -> None:
    file, folder = EXAMPLES / f"coins/{name}.onnx", tmp_path / "out"

    code, printed, _ = command("init", photos, file, "-o", folder)

    assert code == 0
    assert "could not be determined" in printed
    (resource,) = load_resources((folder / "model.yaml").read_text(), "model.yaml")
    assert isinstance(resource, SegmentationModel)
    assert resource.spec.artifact.uri == file.name
    assert (folder / file.name).read_bytes() == file.read_bytes()
    committed = COMMITTED[file]
    assert resource.spec.artifact.sha256 == committed["artifact"]["sha256"]
    model = InProcessModel(resource.spec.pipeline(name), file)
    for case in load(EXAMPLES / "coins" / committed["golden"]["uri"]).cases:
        if name != "coins-yolo":
            # No file says that specks are removed (U-Net), or how masks are drawn into boxes (two stages).
            case = case.model_copy(update={"tolerance": case.tolerance.model_copy(update={"iou": 0.92})})
        compare(case, model.answer(PHOTO.read_bytes(), RequestOptions(encoding="rle")))
    with Image.open(folder / "preview/coins.png") as preview:
        assert preview.size == (384, 303)


def test_the_folder_names_the_model_and_a_checkpoint_is_to_be_exported(
    command: Command, photos: Path, tmp_path: Path
) -> None:
    code, _, complaint = command("init", photos, EXAMPLES / "coins/coins-yolo.onnx", "-o", tmp_path / "people")

    assert code == 0, complaint
    assert yaml.safe_load((tmp_path / "people/model.yaml").read_text())["metadata"]["name"] == "people"
    (tmp_path / "best.pt").write_bytes(b"PK\x03\x04" + bytes(100))
    refused = " ".join(command("init", photos, tmp_path / "best.pt", "-o", tmp_path / "other")[2].split())
    assert "it is a checkpoint or an archive; export it first, as by `yolo export format=onnx`" in refused


def test_images_of_12_bits_in_16_are_named_as_nearly_black(command: Command, tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    with Image.open(PHOTO) as photo:
        Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 15).save(tmp_path / "scans/a.png")

    code, printed, complaint = command(
        "init", tmp_path / "scans", EXAMPLES / "coins/coins-yolo.onnx", "-o", tmp_path / "out"
    )

    assert code == 0, complaint
    assert "of 65535, which is nearly black; set `window: [0, " in " ".join(printed.split())
    assert "CHECK: the values of a.png go up to" in " ".join((tmp_path / "out/model.yaml").read_text().split())


def test_a_photograph_whose_name_is_not_utf_8_is_in_the_golden_set(
    command: Command, photos: Path, tmp_path: Path
) -> None:
    for name in (b"f\xfc.png", b"f\xf6.png"):
        shutil.copy(PHOTO, os.path.join(os.fsencode(photos), name))  # noqa: PTH118

    code, _, complaint = command("init", photos, EXAMPLES / "coins/coins-yolo.onnx", "-o", tmp_path / "out")

    assert code == 0, complaint
    assert {case.image for case in load(tmp_path / "out/golden").cases} >= {"f-xfc.png", "f-xf6.png"}
    (resource,) = load_resources((tmp_path / "out/model.yaml").read_text(), "model.yaml")
    assert isinstance(resource, SegmentationModel)
    assert resource.spec.golden is not None
    assert resource.spec.golden.sha256 == folder_digest(tmp_path / "out/golden")


@pytest.fixture
def apart(tmp_path: Path) -> Path:
    """Return a network whose weights lie in another file, as torch.onnx.export writes it by default."""
    (tmp_path / "apart").mkdir()
    path = tmp_path / "apart/net.onnx"
    onnx.save_model(
        onnx.load(EXAMPLES / "coins/coins-unet.onnx"), path, save_as_external_data=True, location="net.onnx.data"
    )
    return path


def test_weights_in_a_file_beside_the_network_are_joined_into_the_one_that_is_served(
    command: Command, photos: Path, apart: Path, tmp_path: Path
) -> None:
    code, _, complaint = command("init", photos, apart, "-o", tmp_path / "out")

    assert code == 0, complaint
    (resource,) = load_resources((tmp_path / "out/model.yaml").read_text(), "model.yaml")
    assert isinstance(resource, SegmentationModel)
    model = InProcessModel(resource.spec.pipeline("any"), tmp_path / "out/net.onnx")
    for case in load(tmp_path / "out/golden").cases:
        compare(case, model.answer(PHOTO.read_bytes(), RequestOptions(encoding="rle")))
    assert sorted(path.name for path in apart.parent.iterdir()) == ["net.onnx", "net.onnx.data"]


def test_weights_that_cannot_be_joined_are_refused_by_name(
    command: Command, photos: Path, apart: Path, tmp_path: Path
) -> None:
    def refusal(*options: str) -> str:
        code, _, complaint = command("init", photos, apart, "-o", tmp_path / "out", *options)
        assert (code, (tmp_path / "out").exists()) == (1, False)
        return " ".join(complaint.split())

    data = apart.with_name("net.onnx.data")
    assert "makes a copy: leave --no-copy out" in refusal("--no-copy")
    with data.open("r+b") as file:
        file.truncate(2**31)
    assert "the one file that is served has at most 2147483647: export the network in half" in refusal()
    data.rename(tmp_path / "elsewhere")
    assert "and net.onnx.data is not beside it: put it there, or export" in refusal()
    model = onnx.load(apart, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            entry.value = "../elsewhere" if entry.key == "location" else entry.value
    onnx.save(model, apart)
    assert "keeps weights in ../elsewhere, and elsewhere is not beside it" in refusal()


def test_everything_that_is_not_known_is_listed_and_marked_in_the_file(
    command: Command, photos: Path, tmp_path: Path
) -> None:
    code, printed, _ = command("init", photos, EXAMPLES / "coins/coins-twostage.onnx", "-o", tmp_path / "out")

    text = " ".join((tmp_path / "out/model.yaml").read_text().replace("#", " ").split())
    assert code == 0
    listed = " ".join(printed.partition("could not be determined")[2].partition("next:")[0].split())
    for unsure in (
        "the names of the classes are not in the file",
        "the file does not list them; observed on your images: 1",
        "the file does not say how training resized them",
        "the thresholds are the family's usual ones",
        "pasteMasks has two conventions",
    ):
        assert unsure in listed
        assert text.count(unsure) == 1
    assert text.count("CHECK: ") == 6  # the sixth is the golden set


OUTPUTS: dict[str, list[tuple[str, list[Any]]]] = {
    "yolo-detect": [("output0", ["b", 84, 8400])],
    "yolov5-detect": [("output0", ["b", 25200, 85])],
    "yolov5-seg": [("output0", ["b", 25200, 117]), ("output1", ["b", 32, 160, 160])],
    "yolo-nms-free-detect": [("output0", ["b", 300, 6])],
    "yolo-nms-free-seg": [("output0", ["b", 300, 38]), ("output1", ["b", 32, 160, 160])],
    "yolox-detect": [("output", ["b", 8400, 85])],
    "retinanet": [
        ("cls_logits", ["b", 120087, 91]),
        ("bbox_regression", ["b", 120087, 4]),
        ("anchors", ["b", 120087, 4]),
    ],
    "ssd": [("cls_logits", ["b", 8732, 91]), ("bbox_regression", ["b", 8732, 4]), ("anchors", ["b", 8732, 4])],
    "maskformer": [("class_queries_logits", ["b", 100, 134]), ("masks_queries_logits", ["b", 100, 160, 160])],
    "detr": [("logits", ["b", 100, 92]), ("pred_boxes", ["b", 100, 4])],
    "detr-sigmoid": [("dets", ["b", 300, 4]), ("labels", ["b", 300, 91])],
    "detr-sigmoid-seg": [("dets", ["b", 300, 4]), ("labels", ["b", 300, 91]), ("masks", ["b", 300, 96, 96])],
    "detr-panoptic": [
        ("logits", ["b", 100, 251]),
        ("pred_boxes", ["b", 100, 4]),
        ("pred_masks", ["b", 100, 160, 160]),
    ],
}
"""What exporters give a network of each family that no example is of."""


@pytest.mark.parametrize("family", OUTPUTS)
def test_the_family_is_known_by_what_exporters_call_its_outputs(tmp_path: Path, family: str) -> None:
    network_file = network(tmp_path / "m.onnx", [("images", ["b", 3, 640, 640])], OUTPUTS[family])

    read = read_network(network_file)

    ranked = candidates(read, image_input(read.image))
    assert ranked[0].family is FAMILIES[family]
    assert len(ranked) == 1 or ranked[0].weight > ranked[1].weight


ULTRALYTICS = {"task": "segment", "names": "{0: 'person', 1: 'dog'}", "imgsz": "[64, 64]", "description": "YOLO11n-seg"}


def test_ultralytics_metadata_names_family_classes_and_preparation(tmp_path: Path) -> None:
    file = network(
        tmp_path / "best.onnx",
        [("images", [1, 3, 64, 64])],
        [("output0", [1, 38, 84]), ("output1", [1, 32, 16, 16])],
        **ULTRALYTICS,
    )

    guessed = guess(file, "0" * 64, [PHOTO], Overrides())

    assert "task 'segment'" in guessed.candidate.because
    assert [entry["name"] for entry in guessed.spec["classes"]] == ["person", "dog"]
    assert guessed.spec["preprocess"] == [
        {"decode": {}},
        {"resize": {"mode": "letterbox", "size": 64}},
        {"normalise": {}},
    ]


def test_free_sizes_are_letterboxed_as_yolo_predict_does_with_the_file(tmp_path: Path) -> None:
    for dynamic, options in ((False, {}), (True, {"multipleOf": 32})):
        metadata = {**ULTRALYTICS, "task": "detect", "stride": "32", "args": f"{{'batch': 1, 'dynamic': {dynamic}}}"}
        file = network(
            tmp_path / "best.onnx", [("images", ["b", 3, "h", "w"])], [("output0", ["b", 6, "n"])], **metadata
        )

        spec = guess(file, "0" * 64, [PHOTO], Overrides()).spec

        assert spec["preprocess"][1] == {"resize": {"mode": "letterbox", "size": 64, **options}}


@pytest.mark.parametrize(("family", "shape"), [("yolo-obb", [1, 7, 84]), ("yolo-nms-free-obb", [1, 30, 7])])
def test_ultralytics_metadata_says_that_boxes_have_an_angle(tmp_path: Path, family: str, shape: list[int]) -> None:
    metadata = {**ULTRALYTICS, "task": "obb", "end2end": str(family == "yolo-nms-free-obb")}
    file = network(tmp_path / "best.onnx", [("images", [1, 3, 64, 64])], [("output0", shape)], **metadata)

    guessed = guess(file, "0" * 64, [PHOTO], Overrides())

    assert [one.family.name for one in guessed.ranked] == [family]
    assert [entry["name"] for entry in guessed.spec["classes"]] == ["person", "dog"]


@pytest.mark.parametrize(("family", "shape"), [("yolo-pose", [1, 6 + 15, 84]), ("yolo-nms-free-pose", [1, 30, 6 + 15])])
def test_ultralytics_metadata_has_the_number_of_keypoints(tmp_path: Path, family: str, shape: list[int]) -> None:
    args = f"{{'nms': {family == 'yolo-nms-free-pose'}}}"
    metadata = {**ULTRALYTICS, "task": "pose", "kpt_shape": "[5, 3]", "args": args}
    file = network(tmp_path / "best.onnx", [("images", [1, 3, 64, 64])], [("output0", shape)], **metadata)

    spec = guess(file, "0" * 64, [PHOTO], Overrides()).spec

    assert spec["family"] == family
    assert [entry["name"] for entry in spec["classes"]] == ["person", "dog"]


def test_a_head_with_a_row_for_each_cell_is_yolox_and_gets_its_preprocessing(tmp_path: Path) -> None:
    for rows, family in ((84, "yolox-detect"), (252, "yolov5-detect")):
        file = network(tmp_path / "m.onnx", [("images", [1, 3, 64, 64])], [("output", [1, rows, 7])])

        guessed = guess(file, "0" * 64, [PHOTO], Overrides(classes="letter,digit"))

        assert [one.family.name for one in guessed.ranked] == [family]
        if family == "yolox-detect":
            padded = {"mode": "shortSide", "size": 64, "maxSize": 64, "multipleOf": 64, "padValue": 114}
            assert guessed.spec["input"]["colour"] == "BGR"
            assert guessed.spec["preprocess"][1:] == [{"resize": padded}, {"normalise": {"scale": 1.0}}]


def test_what_an_image_processor_does_is_done_or_to_be_checked(tmp_path: Path) -> None:
    file = network(tmp_path / "m.onnx", [("pixel_values", [1, 3, 64, 64])], [("logits", [1, 3, 16, 16])])
    prepared = {
        "size": {"shortest_edge": 72},
        "crop_size": {"height": 64, "width": 64},
        "do_center_crop": True,
        "do_flip_channel_order": True,
        "do_rescale": True,
        "do_normalize": False,
        "rescale_factor": 1 / 255,
        "resample": 3,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(prepared))

    guessed = guess(file, "0" * 64, [PHOTO], Overrides())

    resampled = {"interpolation": "cubic", "antialias": True, "rounding": "eachPass"}
    assert guessed.spec["input"]["colour"] == "BGR"
    assert guessed.spec["preprocess"][1:] == [
        {"resize": {"mode": "stretch", "height": 64, "width": 64, **resampled}},
        {"normalise": {}},
    ]
    assert "do_center_crop to 64 x 64" in "".join(remark.text for remark in guessed.remarks if not remark.sure)


def test_the_exports_of_rf_detr_are_normalised_as_they_are_trained(tmp_path: Path) -> None:
    heads = [("dets", [1, 30, 4]), ("labels", [1, 30, 5])]
    guessed = guess(
        network(tmp_path / "m.onnx", [("input", [1, 3, 64, 64])], heads),
        "0" * 64,
        [PHOTO],
        Overrides(classes="a,b,c,d,e"),
    )

    assert guessed.spec["preprocess"][-1] == {
        "normalise": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    }
    assert not any("range" in remark.text for remark in guessed.remarks)


def test_what_a_head_of_chosen_boxes_means_is_in_ultralytics_metadata(tmp_path: Path) -> None:
    for description, family, mode in (
        ("Ultralytics rtdetr-l model", "rtdetr-ultralytics", "stretch"),
        ("Ultralytics YOLO26n model", "yolo-nms-free-detect", "letterbox"),
    ):
        metadata = {**ULTRALYTICS, "task": "detect", "end2end": str(mode == "letterbox"), "description": description}
        file = network(tmp_path / "best.onnx", [("images", [1, 3, 64, 64])], [("output0", [1, 300, 6])], **metadata)

        spec = guess(file, "0" * 64, [PHOTO], Overrides()).spec

        assert (spec["family"], spec["preprocess"][1]["resize"]["mode"]) == (family, mode)


def test_pixels_are_scaled_as_a_preprocessor_that_does_not_normalise_says(tmp_path: Path) -> None:
    file = network(
        tmp_path / "model.onnx",
        [("pixel_values", ["b", 3, 64, 64])],
        [("logits", ["b", 30, 3]), ("pred_boxes", ["b", 30, 4])],
    )
    config = {"architectures": ["RTDetrForObjectDetection"], "id2label": {"0": "a", "1": "b", "2": "c"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for factor, options in ((1 / 255, {}), (1 / 127.5, {"scale": 1 / 127.5})):
        prepared = {"do_normalize": False, "do_rescale": True, "rescale_factor": factor, "image_mean": [0.5] * 3}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(prepared))

        spec = guess(file, "0" * 64, [PHOTO], Overrides()).spec

        assert (spec["family"], spec["preprocess"][-1]) == ("detr-sigmoid", {"normalise": options})


def test_a_checkpoints_config_beside_the_file_names_family_classes_and_preparation(tmp_path: Path) -> None:
    file = network(
        tmp_path / "model.onnx",
        [("pixel_values", ["b", 3, 64, 64])],
        [("class_queries_logits", ["b", 100, 3]), ("masks_queries_logits", ["b", 100, 16, 16])],
    )
    config = {"architectures": ["Mask2FormerForUniversalSegmentation"], "id2label": {"0": "road", "1": "car"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    prepared = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.2], "size": {"height": 64, "width": 64}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(prepared))

    guessed = guess(file, "0" * 64, [PHOTO], Overrides())

    assert guessed.spec["family"] == "mask2former"
    assert [entry["name"] for entry in guessed.spec["classes"]] == ["road", "car"]
    assert guessed.spec["preprocess"][1:] == [
        {"resize": {"mode": "stretch", "height": 64, "width": 64, "antialias": True, "rounding": "eachPass"}},
        {"normalise": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.2]}},
    ]


def without_its_normalisation(file: Path, target: Path) -> Path:
    """Write the network without the arithmetic that it begins with, for float pixels that callers normalise."""
    model = onnx.load(file)
    name, cut = model.graph.input[0].name, model.graph.input[0].name
    while (node := next(n for n in model.graph.node if cut in n.input)).op_type in ("Cast", "Sub", "Mul"):
        model.graph.node.remove(node)
        cut = node.output[0]
    for node in model.graph.node:
        node.input[:] = [name if given == cut else given for given in node.input]
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT
    onnx.save(model, target)
    return target


def test_a_normalisation_that_nothing_says_is_tried_on_the_images(tmp_path: Path) -> None:
    file = without_its_normalisation(EXAMPLES / "coins/coins-unet.onnx", tmp_path / "float.onnx")

    guessed = guess(file, "0" * 64, [PHOTO], Overrides())

    # It was trained with (pixel - 102) / 63.75: from -1.6 to 2.4.
    assert guessed.trials[0].name == "0 to 1 with ImageNet's mean and deviation"
    assert [trial.name for trial in guessed.trials if trial.name == "0 to 255"] == []
    model = InProcessModel(SegmentationModel.model_validate(resource_of(guessed.spec)).spec.pipeline("m"), file)
    found = model.answer(PHOTO.read_bytes(), RequestOptions(encoding="raw"))
    assert 0.2 < found["AREAS"][1] / found["AREAS"].sum() < 0.5
    assert any("tried on your images" in remark.text and not remark.sure for remark in guessed.remarks)


def resource_of(spec: Any) -> Any:
    return {
        "apiVersion": "segserve.dev/v1alpha1",
        "kind": "SegmentationModel",
        "metadata": {"name": "m"},
        "spec": spec,
    }


def test_the_users_word_counts_more_than_a_guess(command: Command, photos: Path, tmp_path: Path) -> None:
    file, folder = EXAMPLES / "coins/coins-unet.onnx", tmp_path / "out"

    code, _, _ = command("init", photos, file, "-o", folder, "--name", "money", "--classes", "table, coin")

    written = yaml.safe_load((folder / "model.yaml").read_text())
    assert (code, written["metadata"]["name"]) == (0, "money")
    assert [entry["name"] for entry in written["spec"]["classes"]] == ["table", "coin"]


def test_without_photographs_one_of_coins_stands_in(command: Command, tmp_path: Path) -> None:
    code, printed, _ = command("init", EXAMPLES / "coins/coins-unet.onnx", "-o", tmp_path / "out")

    assert (code, [path.name for path in (tmp_path / "out/preview").iterdir()]) == (0, ["coins.png"])
    assert "no images were given" in printed
    code, _, complaint = command("init", tmp_path)
    assert (code, "is a folder: name the network as well" in complaint) == (1, True)


def test_the_class_at_the_borders_of_images_is_taken_for_the_background(tmp_path: Path) -> None:
    """Class 2 of 3 has the largest logit wherever the image is dark, as the border of this one is."""
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[16:48, 16:48] = 255
    Image.fromarray(picture).save(tmp_path / "square.png")
    nodes = [
        helper.make_node("ReduceMean", ["image"], ["grey"], axes=[1]),
        helper.make_node("ReduceMean", ["grey"], ["mean"], axes=[2, 3]),
        helper.make_node("Sub", ["grey", "mean"], ["bright"]),
        helper.make_node("Neg", ["bright"], ["dark"]),
        helper.make_node("Concat", ["zero", "bright", "dark"], ["logits"], axis=1),
    ]
    zero = helper.make_tensor("zero", TensorProto.FLOAT, [1, 1, 64, 64], [0.0] * 4096)
    image, logits = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 64, 64]) for name in ("image", "logits")
    )
    graph = helper.make_graph(nodes, "g", [image], [logits], [zero])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "net.onnx")

    guessed = guess(tmp_path / "net.onnx", "0" * 64, [tmp_path / "square.png"], Overrides())

    names = [each["name"] for each in guessed.spec["classes"]]
    assert names.index("background") == 2, names


@pytest.mark.parametrize(
    ("arguments", "uri"),
    [
        pytest.param((), "../own/net.onnx", id="100 MB and more stay where they are"),
        pytest.param(("--copy",), "net.onnx", id="--copy copies all"),
        pytest.param(("--no-copy",), "../own/net.onnx", id="--no-copy copies none"),
    ],
)
def test_a_network_is_copied_as_its_size_or_the_user_says(
    command: Command, monkeypatch: pytest.MonkeyPatch, photos: Path, tmp_path: Path, arguments: tuple[str], uri: str
) -> None:
    monkeypatch.setattr("segserve_platform.cli.init.command.COPIED_BYTES", 1000)
    own, out = tmp_path / "own", tmp_path / "out"
    own.mkdir()
    shutil.copy(EXAMPLES / "coins/coins-yolo.onnx", own / "net.onnx")

    code, _, _ = command("init", photos, own / "net.onnx", "-o", out, *arguments)

    (resource,) = load_resources((out / "model.yaml").read_text(), "model.yaml")
    assert isinstance(resource, SegmentationModel)
    assert (code, resource.spec.artifact.uri) == (0, uri)
    assert folder_digest(out / "golden")
    assert (out / uri).read_bytes() == (own / "net.onnx").read_bytes()
    assert (out / "net.onnx").exists() == (uri == "net.onnx")


def test_another_network_in_the_folder_is_not_replaced_without_force(
    command: Command, photos: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "coins-unet.onnx").write_text("mine")

    code, _, complaint = command("init", photos, EXAMPLES / "coins/coins-unet.onnx", "-o", folder)

    assert (code, "coins-unet.onnx already exists; use --force" in " ".join(complaint.split())) == (1, True)
    assert (folder / "coins-unet.onnx").read_text() == "mine"
    assert not (folder / "model.yaml").exists()


def test_what_is_written_names_the_schema_for_editors(command: Command, photos: Path, tmp_path: Path) -> None:
    command("init", photos, EXAMPLES / "coins/coins-yolo.onnx", "-o", tmp_path / "out")

    first = (tmp_path / "out/model.yaml").read_text().splitlines()[0]
    label, _, schema = first.partition("$schema=")
    assert label == "# yaml-language-server: "
    assert json.loads((tmp_path / "out" / schema).read_text())["$schema"]


@pytest.mark.parametrize(("channels", "usual"), [(3, "ImageNet"), (1, "0 to 1")])
def test_images_that_cannot_tell_the_normalisation_leave_the_most_usual_one(
    tmp_path: Path, channels: int, usual: str
) -> None:
    file = network(tmp_path / "m.onnx", [("image", ["b", channels, 64, 64])], [("logits", ["b", channels, 64, 64])])
    with Image.new("RGB", (64, 64), (90, 90, 90)) as flat:
        flat.save(tmp_path / "flat.png")

    guessed = guess(file, "0" * 64, [tmp_path / "flat.png"], Overrides())

    (remark,) = [remark for remark in guessed.remarks if "normalised" in remark.text]
    assert "the images do not show it" in remark.text
    assert "  0.00  pixels of 0 to 255" in remark.text.splitlines()
    expected = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]} if usual == "ImageNet" else {}
    assert guessed.spec["preprocess"][-1] == {"normalise": expected}


def test_nothing_is_written_over_without_force(command: Command, photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "model.yaml").write_text("mine")
    arguments = ("init", photos, EXAMPLES / "coins/coins-unet.onnx", "-o", folder)

    code, _, complaint = command(*arguments)

    assert (code, (folder / "model.yaml").read_text()) == (1, "mine")
    assert "already exists; use --force to overwrite it" in complaint
    assert not (folder / "golden").exists()
    assert command(*arguments, "--force")[0] == 0
    assert (folder / "golden" / GOLDEN_FILE).exists()


def noise(path: Path) -> Path:
    path.write_bytes(np.random.default_rng(0).bytes(500))
    return path


def test_files_that_cannot_be_served_are_told_with_what_was_seen(
    command: Command, photos: Path, tmp_path: Path
) -> None:
    image = ("image", ["b", 3, 32, 32])
    strange = network(tmp_path / "strange.onnx", [image], [("depth", ["b", 32])])
    two = network(tmp_path / "two.onnx", [image, ("mask", ["b", 32, 32])], [("logits", ["b", 2, 32, 32])])
    flat = network(tmp_path / "flat.onnx", [("x", ["b", 10])], [("y", ["b", 10])])
    empty = tmp_path / "empty"
    empty.mkdir()
    for arguments, said in (
        ((photos, noise(tmp_path / "noise.onnx")), "is not an ONNX model"),
        ((photos, tmp_path / "missing.onnx"), "No such file"),
        ((photos, photos), "Is a directory"),
        ((EXAMPLES / "coins/coins-unet.onnx", EXAMPLES / "coins/coins-unet.onnx"), "is not a folder"),
        ((photos, strange), "no family fits the outputs of strange.onnx: 'depth' FP32 [?, 32]"),
        ((photos, two), "has 2 inputs"),
        ((photos, flat), "is not an image"),
        ((empty, EXAMPLES / "coins/coins-unet.onnx"), "has no images"),
        ((photos, EXAMPLES / "coins/coins-unet.onnx", "--family", "yolo-seg"), "yolo-seg has two outputs"),
        ((photos, EXAMPLES / "coins/coins-unet.onnx", "--classes", "a,b,c"), "the network's outputs have 2"),
        ((photos, EXAMPLES / "coins/coins-unet.onnx", "--name", "No Name"), "is not a valid model name"),
    ):
        code, _, complaint = command("init", *arguments, "-o", tmp_path / "out")
        assert (code, said in " ".join(complaint.split())) == (1, True), complaint
    assert not (tmp_path / "out").exists()


def test_a_broken_image_is_named_before_anything_is_written(tmp_path: Path, photos: Path) -> None:
    noise(photos / "broken.jpg")

    with pytest.raises(CommandError, match=r"broken\.jpg is not an image"):
        guess(EXAMPLES / "coins/coins-unet.onnx", "0" * 64, sorted(photos.iterdir()), Overrides())


def test_a_changed_pipeline_is_recorded_anew_and_the_file_keeps_its_comments(
    command: Command, photos: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    command("init", photos, EXAMPLES / "coins/coins-yolo.onnx", "-o", folder)
    file = folder / "model.yaml"
    written = file.read_text()
    edited = written.replace("threshold: 0.25", "threshold: 0.955")
    file.write_text(edited)

    code, printed, _ = command("golden", "record", photos, "-f", file)

    old, new = (yaml.safe_load(text)["spec"]["golden"]["sha256"] for text in (edited, file.read_text()))
    assert (code, "class-0" in printed) == (0, True)
    assert old != new == folder_digest(folder / "golden")
    assert file.read_text() == edited.replace(old, new)
    (case,) = load(folder / "golden").cases
    assert 0 < len(case.expected.classes) < 24

    file.write_text(file.read_text().replace("spec:\n", "spec:\n  output: {maxDetections: 2}\n", 1))
    limited = command("golden", "record", photos, "-f", file)[1]
    said = "(as many objects as the limit, maxDetections of output or a stage)"
    assert [said in text for text in (printed, limited)] == [False, True]


@pytest.mark.usefixtures("small_trial_runs")
def test_an_operator_that_onnx_runtime_lacks_for_a_type_is_refused_with_what_to_do(tmp_path: Path) -> None:
    grid = [helper.make_node("Cast", ["image"], ["grid"], to=TensorProto.DOUBLE)]
    nodes = [*grid, helper.make_node("GridSample", ["image", "grid"], ["logits"])]
    file = graph(tmp_path / "m.onnx", nodes, [("logits", TensorProto.FLOAT, ["b", 3, "h", "w"])])

    with pytest.raises(CommandError, match=r"GridSample\(16\).*export with torch.onnx.export\(dynamo=True\), or cast"):
        guess(file, "0" * 64, [PHOTO], Overrides())


def test_outputs_in_half_precision_are_refused_with_the_options_that_keep_them_whole(tmp_path: Path) -> None:
    nodes = [helper.make_node("Cast", ["image"], ["logits"], to=TensorProto.FLOAT16)]
    file = graph(tmp_path / "m.onnx", nodes, [("logits", TensorProto.FLOAT16, ["b", 3, "h", "w"])])

    with pytest.raises(CommandError, match="outputs must be FP32: export it with half=False, or convert it with keep_"):
        guess(file, "0" * 64, [PHOTO], Overrides())


def test_without_onnxruntime_less_is_known_and_that_is_said(
    command: Command, monkeypatch: pytest.MonkeyPatch, photos: Path, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)

    code, printed, _ = command("init", photos, EXAMPLES / "coins/coins-unet.onnx", "-o", tmp_path / "out")

    said = " ".join(printed.split())
    assert code == 0
    assert "no golden set: the network was not run, because onnxruntime is not installed" in said
    assert "memory was not measured: onnxruntime is not installed (pip install 'segserve[local]')" in said
    assert "multiples of 32 are a guess" in said
    (resource,) = load_resources((tmp_path / "out/model.yaml").read_text(), "model.yaml")
    assert isinstance(resource, SegmentationModel)
    assert resource.spec.golden is None


def test_a_pipeline_that_does_not_answer_is_refused(command: Command, photos: Path, tmp_path: Path) -> None:
    file = network(tmp_path / "nothing.onnx", [("image", ["b", 3, 32, 32])], [("logits", ["b", 4, 32, 32])])

    code, _, complaint = command("init", photos, file, "-o", tmp_path / "out")

    said = " ".join(complaint.split())
    assert (code, "the pipeline of family semantic-logits fails on your images: the logits have" in said) == (1, True)
    assert not (tmp_path / "out").exists()


OF_TWO_NAMES = {"names": "{0: 'person', 1: 'dog'}"}


@pytest.mark.parametrize(
    ("outputs", "metadata", "said"),
    [
        pytest.param(
            [("output0", [1, 56, 84])],
            {"task": "pose", "names": "{0: 'person'}"},
            "needs the metadata 'kpt_shape'",
            id="pose",
        ),
        pytest.param([("depth", [1, 1, 64, 64])], {"task": "depth"}, "says task 'depth', which", id="depth"),
        pytest.param(
            [("output0", [1, 7, 84])],
            OF_TWO_NAMES,
            "yolo-detect reads 3 classes; the file's metadata ('names') has 2 names",
            id="an angle beside the classes, and a file without a task",
        ),
    ],
)
def test_a_head_that_the_files_own_words_speak_against_is_refused_unless_the_user_names_the_family(
    tmp_path: Path, outputs: list[tuple[str, list[Any]]], metadata: dict[str, str], said: str
) -> None:
    file = network(tmp_path / "best.onnx", [("images", [1, 3, 64, 64])], outputs, **metadata)
    read = read_network(file)

    with pytest.raises(CommandError) as refused:
        candidates(read, image_input(read.image), names_of(read, None))

    assert said in str(refused.value)
    family = "semantic-logits" if len(outputs[0][1]) == 4 else "yolo-detect"
    assert guess(file, "0" * 64, [PHOTO], Overrides(family=family)).spec["family"] == family


def graph(path: Path, nodes: list[Any], outputs: list[Any], **metadata: str) -> Path:
    """Write a network of nodes from `image` to outputs of a name, an element type and a shape."""
    declared = [helper.make_tensor_value_info(*output) for output in outputs]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["b", 3, "h", "w"])
    bounds = [onnx.numpy_helper.from_array(np.float32(value), name) for value, name in ((0, "zero"), (1, "one"))]
    model = helper.make_model(helper.make_graph(nodes, "g", [image], declared, bounds))
    model.opset_import[0].version, model.ir_version = 17, 8
    helper.set_model_props(model, metadata)
    onnx.save(model, path)
    return path


MAP = ["b", 3, "h", "w"]


@pytest.mark.parametrize(
    ("nodes", "outputs", "family", "said"),
    [
        pytest.param(
            [helper.make_node("Softmax", ["image"], ["out"], axis=1)],
            [("out", TensorProto.FLOAT, MAP)],
            "semantic-probabilities",
            "its graph ends with Softmax",
            id="softmax",
        ),
        pytest.param(
            [
                helper.make_node("Constant", [], ["step"], value_float=1 / 255),
                helper.make_node("Softmax", ["image"], ["exact"], axis=1),
                helper.make_node("QuantizeLinear", ["exact", "step"], ["bytes"]),
                helper.make_node("DequantizeLinear", ["bytes", "step"], ["out"]),
            ],
            [("out", TensorProto.FLOAT, MAP)],
            "semantic-probabilities",
            "its graph ends with Softmax",
            id="softmax, quantised",
        ),
        pytest.param(
            [helper.make_node("Clip", ["image", "zero", "one"], ["out"])],
            [("out", TensorProto.FLOAT, MAP)],
            "semantic-probabilities",
            "all its values are within 0 and 1",
            id="values of 0 to 1 alone",
        ),
        pytest.param(
            [helper.make_node("ArgMax", ["image"], ["out"], axis=1, keepdims=0)],
            [("out", TensorProto.INT64, ["b", "h", "w"])],
            "semantic-labels",
            "CONFIDENCE is 1",
            id="argmax",
        ),
        pytest.param(
            [helper.make_node("Identity", ["image"], ["out"]), helper.make_node("Relu", ["image"], ["aux"])],
            [("aux", TensorProto.FLOAT, MAP), ("out", TensorProto.FLOAT, MAP)],
            "semantic-logits",
            "what these outputs hold is left out: 'aux' FP32 [?, 3, ?, ?]. The answer is made of 'out' alone",
            id="an auxiliary output",
        ),
    ],
)
def test_what_a_semantic_network_gives_decides_its_family(
    command: Command, photos: Path, tmp_path: Path, nodes: list[Any], outputs: list[Any], family: str, said: str
) -> None:
    file = graph(tmp_path / "net.onnx", nodes, outputs, names="['red', 'green', 'blue']")

    code, printed, _ = command("init", photos, file, "-o", tmp_path / "out")

    written = yaml.safe_load((tmp_path / "out/model.yaml").read_text())
    assert (code, written["spec"]["family"]) == (0, family)
    assert said in " ".join(printed.split())


def test_a_checkpoint_whose_graph_goes_on_to_labels_is_of_their_family(tmp_path: Path) -> None:
    nodes = [helper.make_node("ArgMax", ["image"], ["out"], axis=1, keepdims=0)]
    file = graph(tmp_path / "net.onnx", nodes, [("out", TensorProto.INT64, ["b", "h", "w"])])
    config = {"architectures": ["SegformerForSemanticSegmentation"], "id2label": {"0": "a", "1": "b", "2": "c"}}
    (tmp_path / "config.json").write_text(json.dumps(config))

    assert guess(file, "0" * 64, [PHOTO], Overrides()).spec["family"] == "semantic-labels"


DETECTED = {
    "boxes and labels": [("dets", TensorProto.FLOAT, [1, 100, 5]), ("labels", TensorProto.INT64, [1, 100])],
    "boxes without a batch": [("out0", TensorProto.FLOAT, [100, 4]), ("out1", TensorProto.FLOAT, [100])],
    "a count": [("num_dets", TensorProto.INT32, [1, 1])],
    "raw candidates": [("out0", TensorProto.FLOAT, [1, 116, 8400])],
    "scores": [("pred_scores", TensorProto.FLOAT, [1, 100])],
    "free sizes": [("boxes", TensorProto.FLOAT, ["n", "m"])],
}


@pytest.mark.parametrize("family", ["semantic-labels", "semantic-logits", "semantic-probabilities"])
@pytest.mark.parametrize("others", DETECTED.values(), ids=DETECTED)
def test_masks_beside_detections_are_never_a_label_map(tmp_path: Path, family: str, others: list[Any]) -> None:
    is_map = family == "semantic-labels"
    masks = ("masks", TensorProto.UINT8 if is_map else TensorProto.FLOAT, [1, 64, 64] if is_map else [1, 100, 64, 64])
    tensors = [masks, *others]
    nodes = [helper.make_node("Cast", ["image"], [name], to=kind) for name, kind, _ in tensors]
    read = read_network(graph(tmp_path / "net.onnx", nodes, tensors))

    why = misfit(FAMILIES[family], read, image_input(read.image), 100)

    assert "as detectors have for each object" in str(why)


def test_masks_that_no_family_reads_are_not_left_out_in_silence(tmp_path: Path) -> None:
    """Masks that were pasted into the image are no heads: what is left would be answers of boxes alone."""
    outputs = [("boxes", [100, 4]), ("scores", [100]), ("masks", [100, 1, 800, 800])]
    file = network(tmp_path / "m.onnx", [("image", [3, 800, 800])], outputs)
    model = onnx.load(file)
    model.graph.output.append(helper.make_tensor_value_info("labels", TensorProto.INT64, [100]))
    model.graph.node.append(helper.make_node("Cast", ["image"], ["labels"], to=TensorProto.INT64))
    onnx.save(model, file)
    read = read_network(file)

    with pytest.raises(CommandError) as refused:
        candidates(read, image_input(read.image))

    assert "faster-rcnn would leave out 'masks' FP32 [100, 1, 800, 800]" in str(refused.value)
    assert "already pasted into the image" in str(refused.value)


def test_a_fixed_batch_of_several_images_is_named_as_the_reason(tmp_path: Path) -> None:
    file = network(tmp_path / "m.onnx", [("image", [4, 3, 64, 64])], [("out", [4, 3, 64, 64])])

    with pytest.raises(CommandError, match=r"has a fixed batch of 4.*export it with a batch of 1"):
        image_input(read_network(file).image)


def test_channels_that_the_graph_does_not_show_are_those_of_the_config_beside_it(tmp_path: Path) -> None:
    file = network(tmp_path / "m.onnx", [("pixel_values", ["b", "c", "h", "w"])], [("out", ["b", 3, "h", "w"])])
    image = read_network(file).image

    assert (image_input(image, 3).colour, image_input(image, 1).colour) == ("RGB", "GREY")
    with pytest.raises(CommandError, match=r"config\.json beside the file has it as num_channels"):
        image_input(image)


def test_what_queries_have_besides_does_not_count_against_them(tmp_path: Path) -> None:
    more = [("encoder_last_hidden_state", ["b", 850, 256])]
    file = network(tmp_path / "m.onnx", [("images", ["b", 3, 64, 64])], [*OUTPUTS["detr"], *more])
    read = read_network(file)

    assert candidates(read, image_input(read.image))[0].family is FAMILIES["detr"]


def test_labels_of_one_named_class_are_also_those_of_the_background(tmp_path: Path) -> None:
    nodes = [helper.make_node("ArgMax", ["image"], ["out"], axis=1, keepdims=0)]
    file = graph(tmp_path / "net.onnx", nodes, [("out", TensorProto.INT64, ["b", "h", "w"])], names="['coin']")

    spec = guess(file, "0" * 64, [PHOTO], Overrides()).spec

    assert [entry["name"] for entry in spec["classes"]] == ["background", "coin"]


@pytest.mark.parametrize(
    ("architecture", "said"),
    [
        pytest.param("ConditionalDetrForSegmentation", "which is not supported", id="no family's"),
        pytest.param("DPTForSemanticSegmentation", "no family fits the outputs", id="a family's that does not fit"),
    ],
)
def test_an_architecture_beside_the_file_is_no_familys_by_its_ending(
    tmp_path: Path, architecture: str, said: str
) -> None:
    outputs = [("logits", ["b", 100, 3]), ("pred_boxes", ["b", 100, 4])]
    file = network(tmp_path / "model.onnx", [("pixel_values", ["b", 3, 64, 64])], outputs)
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    read = read_network(file)

    with pytest.raises(CommandError) as refused:
        candidates(read, image_input(read.image))

    assert said in str(refused.value)
    assert architecture in str(refused.value)


def test_recording_leaves_other_files_alone_and_takes_no_labels_away(
    command: Command, photos: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    command("init", photos, EXAMPLES / "coins/coins-yolo.onnx", "-o", folder)
    for mine in ("golden/notes.txt", "preview/mine.png"):
        (folder / mine).write_text("mine")

    assert command("golden", "record", photos, "-f", folder / "model.yaml")[0] == 0
    assert [(folder / mine).read_text() for mine in ("golden/notes.txt", "preview/mine.png")] == ["mine", "mine"]

    golden = folder / "golden" / GOLDEN_FILE
    document = json.loads(golden.read_text())
    document["cases"][0]["labelMap"] = "notes.txt"
    golden.write_text(json.dumps(document))

    code, _, complaint = command("golden", "record", photos, "-f", folder / "model.yaml")

    assert (code, "has labels, which would be lost" in complaint) == (1, True)
    assert json.loads(golden.read_text()) == document
