"""A family or a stage is added by one file and one line of its registry: everything else goes over the registries."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from segserve_builder.export.networks import family_of
from segserve_builder.families import FAMILIES
from segserve_builder.families.base import (
    Family,
    InspectedNetwork,
    ModelContext,
    NetworkIO,
    NetworkSignature,
    float_output,
)
from segserve_builder.families.network_inputs import image_input
from segserve_builder.render.tree import Network, render
from segserve_builder.stages.argmax import Argmax
from segserve_builder.stages.base import RequestOptions
from segserve_builder.steps.in_process import InProcessModel
from segserve_builder.steps.onnx_signature import read_signature
from segserve_builder.steps.postprocess import TASKS
from segserve_builder.values import Logits, ResizeTransform, ValueType
from segserve_operator.api.segmentation_model import SegmentationModel
from segserve_platform.cli.errors import CommandError
from segserve_platform.cli.init.guess import guess
from segserve_platform.cli.init.network import Overrides


@dataclass(frozen=True, kw_only=True)
class BinaryMask(Family):
    """One output without channels, FP32 [batch, height, width]: the logits of the second of two classes."""

    def tensors(self, signature: NetworkSignature, model: ModelContext) -> NetworkIO:
        image, layout = image_input(signature, model)
        return NetworkIO(image, layout, (float_output(signature.outputs[0], 3, "[batch, height, width]"),))

    def read(self, outputs: Mapping[str, Any], transform: ResizeTransform, model: ModelContext) -> Logits:
        (logits,) = outputs.values()
        return Logits(logits, transform)

    def implied_classes(self, network: InspectedNetwork) -> int | None:
        return 2


BINARY_MASK = BinaryMask(
    name="binary-mask",
    gives=ValueType.LOGITS,
    default_postprocess=(Argmax(),),
    output_names=("mask_logits",),
    architectures=("SomeNetForBinarySegmentation",),
)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cast("dict[str, Family]", FAMILIES), BINARY_MASK.name, BINARY_MASK)


def network(path: Path, *, channels: bool = False) -> Path:
    """Write a network that calls every pixel brighter than 127 an object."""
    axes = ["batch", "height", "width"]
    shape = [axes[0], 1, *axes[1:]] if channels else axes
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["pixels", "threshold"], ["logits" if channels else "four"]),
    ]
    if not channels:
        nodes.append(helper.make_node("Squeeze", ["four", "axis"], ["mask_logits"]))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 1, "height", "width"])],
        [helper.make_tensor_value_info("logits" if channels else "mask_logits", TensorProto.FLOAT, shape)],
        [
            helper.make_tensor("threshold", TensorProto.FLOAT, [], [127.5]),
            helper.make_tensor("axis", TensorProto.INT64, [1], [1]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, path)
    return path


def photo(folder: Path) -> Path:
    """Write a grey image whose left quarter is bright."""
    pixels = np.zeros((64, 64), np.uint8)
    pixels[:, :16] = 255
    Image.fromarray(pixels).save(folder / "photo.png")
    return folder / "photo.png"


def resource(family: str, **changes: Any) -> SegmentationModel:
    spec = {
        "artifact": {"uri": "net.onnx", "sha256": "0" * 64},
        "family": family,
        "input": {"colour": "GREY"},
        "classes": [{"id": 0, "name": "background"}, {"id": 1, "name": "object"}],
        "preprocess": [{"decode": {}}],
    } | changes
    return SegmentationModel.model_validate(
        {"apiVersion": "segserve.dev/v1alpha1", "kind": "SegmentationModel", "metadata": {"name": "m"}, "spec": spec}
    )


@pytest.mark.usefixtures("registered")
def test_a_registered_family_is_parsed_rendered_and_run(tmp_path: Path) -> None:
    file = network(tmp_path / "net.onnx")
    pipeline = resource("binary-mask").spec.pipeline("m")

    tree = render(pipeline, Network(BINARY_MASK.network_io(read_signature(file), pipeline), file))
    answer = InProcessModel(pipeline, file).answer(photo(tmp_path).read_bytes(), RequestOptions(encoding="raw"))

    assert tree.ensemble[0] == "m"
    assert len(tree.steps) == 3
    assert answer["AREAS"].tolist() == [48 * 64, 16 * 64]


@pytest.mark.usefixtures("registered")
def test_init_guesses_a_registered_family(tmp_path: Path) -> None:
    guessed = guess(network(tmp_path / "net.onnx"), "0" * 64, [photo(tmp_path)], Overrides())

    assert guessed.spec["family"] == "binary-mask"
    assert "its outputs are named mask_logits" in guessed.candidate.because
    assert len(guessed.spec["classes"]) == 2


@pytest.mark.usefixtures("registered")
def test_init_says_why_a_registered_family_does_not_fit(tmp_path: Path) -> None:
    file = network(tmp_path / "net.onnx", channels=True)

    with pytest.raises(CommandError, match=r"'logits' FP32 \[\?, 1, \?, \?\]: the shape must be \[batch, height"):
        guess(file, "0" * 64, [photo(tmp_path)], Overrides(family="binary-mask"))


@pytest.mark.usefixtures("registered")
def test_export_finds_a_registered_family_by_its_architecture() -> None:
    assert family_of("SomeNetForBinarySegmentation") is BINARY_MASK


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
def test_a_family_tells_export_and_init_all_that_they_ask_of_it(family: Family) -> None:
    assert family.output_names
    assert set(family.image_sized_outputs) <= set(family.output_names)
    assert family.default_postprocess or family.gives in TASKS
    assert family.stage_notes


STAGE = '''
"""A file of a new stage."""

from dataclasses import replace
from typing import ClassVar

from pydantic import Field

from segserve_builder.stages.base import RequestOptions, Stage
from segserve_builder.values import LabelMap, ValueType


class SwapLabels(Stage):
    """Swap the first label with another."""

    takes: ClassVar[frozenset[ValueType]] = frozenset({ValueType.LABELS})

    other: int = Field(ge=1, description="The label to swap with.")

    def __call__(self, value: LabelMap, request: RequestOptions) -> LabelMap:
        labels = value.labels.copy()
        labels[value.labels == 0], labels[value.labels == self.other] = self.other, 0
        return replace(value, labels=labels)
'''

USE = """
import json, sys
from pathlib import Path

import swap_labels
from segserve_builder import stages

stages.POSTPROCESS["swapLabels"] = swap_labels.SwapLabels  # the one line of the registry

from segserve_builder.families import FAMILIES
from segserve_builder.render.tree import Network, render
from segserve_builder.stages.base import RequestOptions
from segserve_builder.steps.in_process import InProcessModel
from segserve_builder.steps.onnx_signature import read_signature
from segserve_operator.api.segmentation_model import SegmentationModel

manifest, network, image = json.loads(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
model = SegmentationModel.model_validate(manifest)
pipeline = model.spec.pipeline("m")
tree = render(pipeline, Network(FAMILIES[pipeline.family].network_io(read_signature(network), pipeline), network))
answer = InProcessModel(pipeline, network).answer(image.read_bytes(), RequestOptions(encoding="raw"))
print(json.dumps({
    "identity": pipeline.identity()["postprocess"][1],
    "schema": "swapLabels" in json.dumps(SegmentationModel.model_json_schema(by_alias=True)),
    "rendered": [name for name, files in tree.steps.items() if "swapLabels" in files["config.pbtxt"].decode()],
    "areas": answer["AREAS"].tolist(),
}))
"""


def test_a_registered_stage_is_parsed_rendered_and_run(tmp_path: Path) -> None:
    (tmp_path / "swap_labels.py").write_text(STAGE)
    (tmp_path / "use.py").write_text(USE)
    file = network(tmp_path / "net.onnx", channels=True)
    manifest = resource("semantic-logits", postprocess=[{"argmax": {}}]).model_dump(mode="json", by_alias=True)
    manifest["spec"] = {key: value for key, value in manifest["spec"].items() if value is not None}
    manifest["spec"]["preprocess"] = [{"decode": {}}]
    manifest["spec"]["postprocess"] = [{"argmax": {}}, {"swapLabels": {"other": 1}}]

    done = subprocess.run(
        [sys.executable, tmp_path / "use.py", json.dumps(manifest), file, photo(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["identity"] == {"stage": "swapLabels", "version": 1, "options": {"other": 1}}
    assert report["schema"]
    assert [name.split("--")[1] for name in report["rendered"]] == ["post"]
    assert report["areas"] == [16 * 64, 48 * 64]
