"""A cascade in a resource: what becomes of it, where its file lies, and what is told where it is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from segserve.platforms.manifests import read_file
from segserve_operator.api.errors import SpecError
from segserve_operator.api.loading import load
from segserve_operator.api.segmentation_model import SegmentationModel

SHA256 = "b" * 64


@pytest.fixture
def tiers(coins_value: dict[str, Any]) -> dict[str, Any]:
    """The coins with a light network that answers first."""
    spec = coins_value["spec"]
    light = {"artifact": {"uri": "small.onnx", "sha256": SHA256}, "family": spec["family"]}
    light |= {"preprocess": spec["preprocess"], "postprocess": spec["postprocess"]}
    spec["cascade"] = {"light": light, "when": "class", "threshold": 0.5, "classes": ["coin"]}
    return coins_value


def loaded(value: dict[str, Any]) -> SegmentationModel:
    (resource,) = load(yaml.safe_dump(value), "model.yaml")
    assert isinstance(resource, SegmentationModel)
    return resource


def problem(value: dict[str, Any]) -> str:
    with pytest.raises(SpecError) as refused:
        loaded(value)
    return str(refused.value)


def test_an_agent_is_told_of_both_files_and_the_revision_names_both(tiers: dict[str, Any]) -> None:
    assigned = loaded(tiers).assigned

    assert assigned.pipeline.cascade is not None
    assert assigned.pipeline.cascade.light.artifact_sha256 == SHA256
    assert assigned.pipeline.cascade.classes == (1,)
    assert assigned.light_artifact is not None
    assert assigned.light_artifact.uri == "small.onnx"
    tiers["spec"]["cascade"]["light"]["artifact"]["sha256"] = "c" * 64
    assert loaded(tiers).assigned.revision != assigned.revision


def test_a_model_of_one_network_has_no_light_file(coins_value: dict[str, Any]) -> None:
    assert loaded(coins_value).assigned.light_artifact is None


def test_the_path_of_the_light_file_is_relative_to_the_resource(tiers: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "model.yaml"
    path.write_text(yaml.safe_dump(tiers))

    (written,) = read_file(path)

    light = written.complete()["spec"]["cascade"]["light"]
    assert light["artifact"]["uri"] == (tmp_path / "small.onnx").as_uri()


def test_an_unknown_class_is_told_with_its_place(tiers: dict[str, Any]) -> None:
    tiers["spec"]["cascade"]["classes"] = ["coin", "cion"]

    assert "spec.cascade.classes[1]: unknown class 'cion' (did you mean 'coin'?)" in problem(tiers)


def test_a_light_network_of_another_task_is_refused(tiers: dict[str, Any]) -> None:
    light = {"artifact": {"uri": "small.onnx", "sha256": SHA256}, "family": "yolo-seg"}
    tiers["spec"]["cascade"]["light"] = light

    assert "spec.cascade: cascade.light gives answers of task instance" in problem(tiers)


def test_a_declared_loss_needs_golden_images(tiers: dict[str, Any]) -> None:
    tiers["spec"]["cascade"]["maxLoss"] = 0.01
    tiers["spec"].pop("golden", None)

    assert "spec.cascade.maxLoss: maxLoss needs spec.golden, which is not set" in problem(tiers)


def test_processes_are_not_shared(tiers: dict[str, Any]) -> None:
    tiers["spec"]["processes"] = "shared"

    assert "spec.processes: the steps of a cascade are not shared; allowed is own, the default" in problem(tiers)


def test_a_misspelt_stage_of_the_light_network_is_told_with_its_place(tiers: dict[str, Any]) -> None:
    tiers["spec"]["cascade"]["light"]["postprocess"] = [{"argmx": {}}]

    assert "spec.cascade.light.postprocess[0]: unknown stage 'argmx' (did you mean 'argmax'?)" in problem(tiers)
