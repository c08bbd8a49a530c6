"""A second network in a resource, fused or asked first: what becomes of it, where its file lies, what is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from segserve.platforms.manifests import read_file
from segserve_builder.agent.protocol import AssignedModel

from .conftest import loaded, problem

SHA256 = "b" * 64
Spec = dict[str, Any]


def fused(spec: Spec) -> Spec:
    """Let a second network find each coin of the spec; return its part."""
    spec["classes"][1]["thing"] = True
    spec["postprocess"] = [{"argmax": {}}, {"panopticFusion": {}}]
    spec["instances"] = second = {
        "artifact": {"uri": "second.onnx", "sha256": SHA256},
        "family": "yolo-seg",
        "postprocess": [{"nms": {}}, {"cropMasks": {}}],
    }
    return second


def asked_first(spec: Spec) -> Spec:
    """Let a light network answer first; return its part."""
    light = {"artifact": {"uri": "second.onnx", "sha256": SHA256}, "family": spec["family"]}
    light |= {"preprocess": spec["preprocess"], "postprocess": spec["postprocess"]}
    spec["cascade"] = {"light": light, "when": "class", "threshold": 0.5, "classes": ["coin"]}
    return light


WAYS = pytest.mark.parametrize(
    ("add", "files"),
    [
        (fused, lambda told: (told.pipeline.instances.artifact_sha256, told.second_artifact)),
        (asked_first, lambda told: (told.pipeline.cascade.light.artifact_sha256, told.light_artifact)),
    ],
    ids=["fused", "asked first"],
)


@WAYS
def test_an_agent_is_told_of_both_files_and_the_revision_names_both(
    coins_value: Spec, add: Callable[[Spec], Spec], files: Callable[[AssignedModel], Any]
) -> None:
    second = add(coins_value["spec"])
    assigned = loaded(coins_value).assigned
    sha256, artifact = files(assigned)

    assert (sha256, artifact.uri) == (SHA256, "second.onnx")
    second["artifact"]["sha256"] = "c" * 64
    assert loaded(coins_value).assigned.revision != assigned.revision


def test_a_model_of_one_network_has_no_second_file(coins_value: Spec) -> None:
    assigned = loaded(coins_value).assigned

    assert (assigned.second_artifact, assigned.light_artifact) == (None, None)


@pytest.mark.parametrize("add", [fused, asked_first])
def test_the_path_of_the_second_file_is_relative_to_the_resource(
    coins_value: Spec, add: Callable[[Spec], Spec], tmp_path: Path
) -> None:
    add(coins_value["spec"])
    path = tmp_path / "model.yaml"
    path.write_text(yaml.safe_dump(coins_value))

    (written,) = read_file(path)

    spec = written.complete()["spec"]
    second = spec["instances"] if add is fused else spec["cascade"]["light"]
    assert second["artifact"]["uri"] == (tmp_path / "second.onnx").as_uri()


def test_the_classes_of_a_cascade_are_told_by_their_ids(coins_value: Spec) -> None:
    asked_first(coins_value["spec"])

    cascade = loaded(coins_value).assigned.pipeline.cascade
    assert cascade is not None
    assert cascade.classes == (1,)


@pytest.mark.parametrize(
    ("add", "change", "said"),
    [
        (fused, lambda spec: spec.pop("instances"),
         "spec.postprocess: the stage 'panopticFusion' needs a second network"),
        (fused, lambda spec: spec.update(postprocess=[{"argmax": {}}]),
         "spec.instances: no postprocess stage uses the second network's instances"),
        (fused, lambda spec: spec["instances"].update(postprocess=[{"cropMask": {}}]),
         "spec.instances.postprocess[0]: unknown stage 'cropMask' (did you mean 'cropMasks'?)"),
        (asked_first, lambda spec: spec["cascade"].update(classes=["coin", "cion"]),
         "spec.cascade.classes[1]: unknown class 'cion' (did you mean 'coin'?)"),
        (asked_first, lambda spec: spec["cascade"].update(
            light={"artifact": {"uri": "small.onnx", "sha256": SHA256}, "family": "yolo-seg"}),
         "spec.cascade: cascade.light gives answers of task instance"),
        (asked_first, lambda spec: (spec["cascade"].update(maxLoss=0.01), spec.pop("golden")),
         "spec.cascade.maxLoss: maxLoss needs spec.golden, which is not set"),
        (asked_first, lambda spec: spec.update(processes="shared"),
         "spec.processes: the steps of a cascade are not shared; allowed is own, the default"),
        (asked_first, lambda spec: spec["cascade"]["light"].update(postprocess=[{"argmx": {}}]),
         "spec.cascade.light.postprocess[0]: unknown stage 'argmx' (did you mean 'argmax'?)"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told_with_its_place(
    coins_value: Spec, add: Callable[[Spec], Spec], change: Callable[[Spec], object], said: str
) -> None:
    add(coins_value["spec"])
    change(coins_value["spec"])

    assert said in problem(coins_value)
