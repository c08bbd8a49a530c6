"""A second network in a resource: what becomes of it, where its file lies, and what is told where it is wrong."""

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
def both(coins_value: dict[str, Any]) -> dict[str, Any]:
    """The coins with a second network that finds each of them."""
    spec = coins_value["spec"]
    spec["classes"][1]["thing"] = True
    spec["postprocess"] = [{"argmax": {}}, {"panopticFusion": {}}]
    spec["instances"] = {
        "artifact": {"uri": "parts.onnx", "sha256": SHA256},
        "family": "yolo-seg",
        "postprocess": [{"nms": {}}, {"cropMasks": {}}],
    }
    return coins_value


def loaded(value: dict[str, Any]) -> SegmentationModel:
    (resource,) = load(yaml.safe_dump(value), "model.yaml")
    assert isinstance(resource, SegmentationModel)
    return resource


def test_an_agent_is_told_of_both_files_and_the_revision_names_both(both: dict[str, Any]) -> None:
    assigned = loaded(both).assigned

    assert assigned.pipeline.instances is not None
    assert assigned.pipeline.instances.artifact_sha256 == SHA256
    assert assigned.second_artifact is not None
    assert assigned.second_artifact.uri == "parts.onnx"
    both["spec"]["instances"]["artifact"]["sha256"] = "c" * 64
    assert loaded(both).assigned.revision != assigned.revision


def test_a_model_of_one_network_has_no_second_file(coins_value: dict[str, Any]) -> None:
    assert loaded(coins_value).assigned.second_artifact is None


def test_the_path_of_the_second_file_is_relative_to_the_resource(both: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "model.yaml"
    path.write_text(yaml.safe_dump(both))

    (written,) = read_file(path)

    assert written.complete()["spec"]["instances"]["artifact"]["uri"] == (tmp_path / "parts.onnx").as_uri()


def problem(value: dict[str, Any]) -> str:
    with pytest.raises(SpecError) as refused:
        loaded(value)
    return str(refused.value)


def test_fusion_without_a_second_network_is_refused_at_the_stages(both: dict[str, Any]) -> None:
    del both["spec"]["instances"]

    assert "spec.postprocess: the stage 'panopticFusion' needs a second network" in problem(both)


def test_a_second_network_without_fusion_is_refused_there(both: dict[str, Any]) -> None:
    both["spec"]["postprocess"] = [{"argmax": {}}]

    assert "spec.instances: no postprocess stage uses the second network's instances" in problem(both)


def test_a_misspelt_stage_of_the_second_network_is_told_with_its_place(both: dict[str, Any]) -> None:
    both["spec"]["instances"]["postprocess"] = [{"cropMask": {}}]

    assert "spec.instances.postprocess[0]: unknown stage 'cropMask' (did you mean 'cropMasks'?)" in problem(both)
