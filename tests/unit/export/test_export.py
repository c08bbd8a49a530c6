"""A torch network becomes an artifact that answers as it does, or a clear error says why not."""

from __future__ import annotations

import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from segserve_builder.errors import BuilderError, ExportError
from segserve_builder.export.graph import ExportShape, Preparation, answers, folded, largest_difference, write
from segserve_builder.export.image_processor import read_image_processor
from segserve_builder.export.networks import family_of, load, load_weights
from segserve_builder.families import FAMILIES
from segserve_builder.golden.judging import compare
from segserve_builder.golden.judging import load as load_golden
from segserve_builder.stages.base import RequestOptions
from segserve_builder.steps.in_process import InProcessModel
from segserve_builder.steps.onnx_signature import read_signature
from segserve_operator.api.loading import load as load_resources
from segserve_platform.cli.app import app
from segserve_platform.cli.errors import CommandError

PLAIN = Preparation(1 / 255, (0.0,), (1.0,))
CODE = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, 2, 1), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Conv2d(8, 3, 1)
        )

    def forward(self, x):
        return {"out": self.body(x)}

def make():
    return Net()

class Probable(Net):
    def __init__(self, clamped):
        super().__init__()
        self.clamped = clamped

    def forward(self, x):
        logits = self.body(x)
        return logits.clamp(0, 1) if self.clamped else logits.sigmoid()

def sigmoid():
    return Probable(False)

def clamped():
    return Probable(True)

seven = 7
"""


@pytest.fixture
def code(tmp_path: Path) -> str:
    (tmp_path / "net.py").write_text(CODE)
    return str(tmp_path / "net.py")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    import skimage.data

    folder = tmp_path / "images"
    folder.mkdir()
    cv2.imwrite(str(folder / "a.png"), skimage.data.astronaut()[:300:3, ::3, ::-1])
    cv2.imwrite(str(folder / "b.jpg"), skimage.data.chelsea()[::4, ::4, ::-1])
    cv2.imwrite(str(folder / "c.png"), skimage.data.coffee()[::5, ::5, ::-1])
    cv2.imwrite(str(folder / "d.png"), skimage.data.astronaut()[100:400:3, ::3, ::-1])
    return folder


def run(*arguments: object) -> str:
    done = CliRunner().invoke(app, ["export", *map(str, arguments)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_what_is_exported_is_served_as_it_was_made_golden(
    code: str, images: Path, tmp_path: Path, precision: str
) -> None:
    out = tmp_path / "out"

    told = run(f"{code}:make", "-o", out, "--name", "net", "--images", images, "--family", "semantic-logits",
               "--classes", "a,b,c", "--mean", "0.4,0.5,0.6", "--std", "0.2", "--precision", precision)  # fmt: skip

    (resource,) = load_resources((out / "model.yaml").read_text(), "model.yaml")
    model = InProcessModel(resource.spec.pipeline("net"), out / resource.spec.artifact.uri)  # type: ignore[union-attr]
    for case in load_golden(out / "golden").cases:
        compare(case, model.answer((out / "golden" / case.image).read_bytes(), RequestOptions(encoding="rle")))
    assert sorted(path.name for path in out.iterdir()) == ["golden", "model.yaml", "net.onnx"]
    assert ("before and after" in told) == (precision != "fp32")


def test_a_smaller_file_is_measured_against_labels(code: str, images: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels"
    labels.mkdir()
    height, width = cv2.imread(str(images / "b.jpg")).shape[:2]
    cv2.imwrite(str(labels / "b.png"), np.full((height, width), 2, np.uint8))

    told = run(f"{code}:make", "-o", tmp_path / "out", "--name", "net", "--images", images, "--family",
               "semantic-logits", "--classes", "a,b,c", "--precision", "int8", "--labels", labels)  # fmt: skip

    assert "IoU with 1 label maps, before and after" in told


def test_the_file_normalises_in_its_graph_and_takes_any_batch_and_size(code: str, tmp_path: Path) -> None:
    import torch

    network = load(f"{code}:make").module
    preparation = Preparation(1 / 255, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    whole = folded(network, FAMILIES["semantic-logits"], preparation)
    write(whole, FAMILIES["semantic-logits"], ExportShape(64, 64, 3, free_size=True), tmp_path / "a.onnx")
    batch = np.random.default_rng(0).integers(0, 256, (3, 3, 32, 96)).astype(np.uint8)

    signature = read_signature(tmp_path / "a.onnx")

    assert signature.inputs[0].dtype == "UINT8"
    assert signature.inputs[0].shape == (None, 3, None, None)
    assert largest_difference(answers(whole, [batch]), tmp_path / "a.onnx", [batch], batched=True) < 1e-5
    pixels = torch.from_numpy(batch) / 255
    mean, std = (torch.tensor(numbers).reshape(1, 3, 1, 1) for numbers in (preparation.mean, preparation.std))
    with torch.no_grad():
        torch.testing.assert_close(whole(torch.from_numpy(batch))[0], network((pixels - mean) / std)["out"])


def test_weights_of_a_training_script_fill_the_network(code: str, tmp_path: Path) -> None:
    import torch

    trained = load(f"{code}:make").module
    with torch.no_grad():
        trained.body[0].weight.add_(0.25)
    torch.save(
        {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in trained.state_dict().items()}}, tmp_path / "w.pth"
    )
    image = torch.rand(1, 3, 16, 16)

    filled = load(f"{code}:make", tmp_path / "w.pth").module

    with torch.no_grad():
        torch.testing.assert_close(filled(image)["out"], trained(image)["out"])


class Evil:
    def __reduce__(self) -> Any:
        return exec, ("open('/tmp/segserve-pwned', 'w')",)


def test_a_pickle_that_runs_code_is_refused_and_runs_nothing(code: str, tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(pickle.dumps({"weight": Evil()}))

    with pytest.raises(ExportError, match=r"w\.pth is not a file of weights alone: .*safetensors\.torch\.save_file"):
        load(f"{code}:make", tmp_path / "w.pth")

    assert not Path("/tmp/segserve-pwned").exists()


def test_torchscript_is_refused_by_name(code: str, tmp_path: Path) -> None:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.trace(torch.nn.Conv2d(3, 1, 1), torch.zeros(1, 3, 8, 8)).save(str(tmp_path / "s.pt"))

    with pytest.raises(ExportError, match=r"s\.pt is TorchScript or a pickle, .*safetensors\.torch\.save_file"):
        load(str(tmp_path / "s.pt"))
    with pytest.raises(ExportError, match=r"s\.pt is not a file of weights alone: .* \(RuntimeError\); "):
        load(f"{code}:make", tmp_path / "s.pt")


def test_a_checkpoint_without_tensors_is_refused(tmp_path: Path) -> None:
    import torch

    torch.save({"epoch": 3}, tmp_path / "w.pth")

    with pytest.raises(ExportError, match="is a dict without named tensors; a state dict is allowed"):
        load_weights(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("nothing-at-all", r"'nothing-at-all' is not a network; allowed are package\.module:name"),
        ("{code}:missing", "KeyError: 'missing'"),
        ("{code}:seven", r"is a int; expected a torch\.nn\.Module"),
        ("no.such.package:x", "ModuleNotFoundError"),
    ],
)
def test_what_is_no_network_is_refused(code: str, source: str, says: str) -> None:
    with pytest.raises(ExportError, match=says):
        load(source.format(code=code))


def test_weights_of_another_network_are_refused(code: str, tmp_path: Path) -> None:
    import torch

    torch.save(torch.nn.Linear(3, 4).state_dict(), tmp_path / "w.pth")

    with pytest.raises(ExportError, match=r"the weights in w\.pth do not fit the network: Missing key"):
        load(f"{code}:make", tmp_path / "w.pth")


def test_a_transformers_checkpoint_says_its_family_classes_and_preparation(tmp_path: Path) -> None:
    from networks import hugging_face

    made = hugging_face.segformer().model
    made.config.id2label = {0: "sky", 1: "road", 2: "car", 3: "tree", 4: "person"}
    made.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"size": {"height": 96, "width": 64}, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7]})
    )

    loaded = load(str(tmp_path))

    assert loaded.family is FAMILIES["semantic-logits"]
    assert loaded.classes == ("sky", "road", "car", "tree", "person")
    assert loaded.preparation == Preparation(1 / 255, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7), read_image_processor(tmp_path))


@pytest.mark.parametrize(
    "prepared",
    [
        {"do_split_image": True},
        {"do_pad": True, "size": {"shortest_edge": 640, "longest_edge": 640}},
        {"do_center_crop": True, "crop_size": {"height": 64, "width": 64}},
    ],
)
def test_a_preparation_that_is_not_written_is_refused(tmp_path: Path, prepared: dict[str, Any]) -> None:
    from networks import hugging_face

    hugging_face.segformer().model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(prepared))

    with pytest.raises(ExportError, match="sets is not written here"):
        load(str(tmp_path))


@pytest.mark.parametrize(("name", "family"), [("segformer", "semantic-logits"), ("mask2former", "mask2former")])
def test_a_transformers_checkpoint_is_exported_whole(name: str, family: str, images: Path, tmp_path: Path) -> None:
    from networks import hugging_face

    getattr(hugging_face, name)().model.save_pretrained(tmp_path / "checkpoint")
    prepared = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_flip_channel_order": True, "resample": 3}
    (tmp_path / "checkpoint/preprocessor_config.json").write_text(json.dumps(prepared))

    run(tmp_path / "checkpoint", "-o", tmp_path / "out", "--name", "net", "--images", images, "--size", "128x128")

    (resource,) = load_resources((tmp_path / "out/model.yaml").read_text(), "model.yaml")
    assert resource.spec.family == family  # type: ignore[union-attr]
    assert len(resource.spec.classes) == hugging_face.CLASSES  # type: ignore[union-attr]
    assert resource.spec.input.colour == "BGR"  # type: ignore[union-attr]
    resize = resource.spec.preprocess[1].stage.model_dump(by_alias=True, exclude_unset=True)  # type: ignore[union-attr]
    assert resize == {
        "mode": "stretch",
        "height": 128,
        "width": 128,
        "interpolation": "cubic",
        "antialias": True,
        "rounding": "eachPass",
    }


@pytest.mark.parametrize(
    ("architecture", "family"),
    [
        ("SegformerForSemanticSegmentation", "semantic-logits"),
        ("Mask2FormerForUniversalSegmentation", "mask2former"),
        ("DetrForSegmentation", "detr-panoptic"),
        ("ConditionalDetrForSegmentation", None),
        ("BertModel", None),
    ],
)
def test_the_class_of_a_checkpoint_names_its_family(architecture: str, family: str | None) -> None:
    assert family_of(architecture) == (FAMILIES[family] if family else None)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--family", "semantic"], "--family must be one of semantic-logits, "),
        (["--family", "semantic-logits", "--classes", "a,,b"], "--classes must be the names of the network's classes"),
        (
            ["--family", "semantic-logits", "--classes", "a,b,c", "--size", "12"],
            "--size must be height x width in pixels",
        ),
        (["--family", "semantic-logits", "--classes", "a,b,c", "--mean", "1,2"], "--mean must be one number, or three"),
        (["--family", "semantic-logits", "--classes", "a,b"], "for the model's 2 classes the number of channels"),
        (["--family", "mask2former", "--classes", "a,b,c"], "the network returns out; the family's outputs are"),
    ],
)
def test_a_wrong_option_is_told_with_what_is_allowed(
    code: str, images: Path, tmp_path: Path, arguments: list[str], says: str
) -> None:
    done = CliRunner().invoke(
        app, ["export", f"{code}:make", "-o", str(tmp_path / "out"), "--name", "x", "--images", str(images), *arguments]
    )

    assert says in str(done.exception)


@pytest.mark.parametrize(
    ("factory", "says"),
    [
        ("sigmoid", "ends with Sigmoid, so it holds no logits: take the family semantic-probabilities"),
        ("clamped", "are within 0 and 1, so they are probabilities and no logits: use --family semantic-prob"),
    ],
)
def test_probabilities_are_exported_as_such_alone(
    code: str, images: Path, tmp_path: Path, factory: str, says: str
) -> None:
    options = [f"{code}:{factory}", "-o", tmp_path / "out", "--name", "net", "--images", images, "--classes", "a,b,c"]

    with pytest.raises(BuilderError, match=says):
        run(*options, "--family", "semantic-logits")

    assert "verified" in run(*options, "--family", "semantic-probabilities")


def test_the_resource_of_an_earlier_export_is_replaced_by_force_alone(code: str, images: Path, tmp_path: Path) -> None:
    resource = tmp_path / "out/model.yaml"
    resource.parent.mkdir()
    resource.write_text("edited")
    options = [f"{code}:make", "-o", resource.parent, "--name", "net", "--images", images, "--family",
               "semantic-logits", "--classes", "a,b,c"]  # fmt: skip

    with pytest.raises(CommandError, match="already exists; use --force to overwrite it, or -o for another folder"):
        run(*options)
    assert resource.read_text() == "edited"

    run(*options, "--force")
    assert "net.onnx" in resource.read_text()


def test_a_network_whose_batch_is_fixed_in_the_graph_is_refused(tmp_path: Path, images: Path) -> None:
    (tmp_path / "fixed.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def forward(self, x):\n"
        "        return x[:, :2].reshape(1, -1, int(x.shape[2]), int(x.shape[3]))\n"
    )

    done = CliRunner().invoke(
        app, ["export", f"{tmp_path}/fixed.py:Net", "-o", str(tmp_path / "out"), "--name", "x", "--images",
              str(images), "--family", "semantic-logits", "--classes", "a,b", "--size", "32x32"],
    )  # fmt: skip

    assert "the network returns a batch of 1 for 2 images" in str(done.exception)
