"""A second network in a resource, fused or first to answer: the other model that it names, and what must fit."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import yaml

from segserve_builder.agent.protocol import AssignedModel
from segserve_operator.api.loading import load
from segserve_operator.api.meta import SpecError

SHA256 = "b" * 64
Spec = dict[str, Any]


def fused(spec: Spec) -> Spec:
    """Let a second network find each coin of the spec; return the spec of its model."""
    spec["classes"][1]["thing"] = True
    spec["postprocess"] = [{"argmax": {}}, {"panopticFusion": {}}]
    spec["instances"] = {"model": "second"}
    return {
        "artifact": {"uri": "second.onnx", "sha256": SHA256},
        "family": "yolo-seg",
        "input": spec.get("input", {}),
        "classes": [{"id": 0, "name": "coin"}],
        "preprocess": deepcopy(spec["preprocess"]),
        "postprocess": [{"nms": {}}, {"cropMasks": {}}],
    }


def asked_first(spec: Spec) -> Spec:
    """Let a light network answer first; return the spec of its model."""
    spec["cascade"] = {"light": {"model": "second"}, "when": "class", "threshold": 0.5, "classes": ["coin"]}
    shared = ("family", "input", "classes", "preprocess", "postprocess")
    light = {key: deepcopy(spec[key]) for key in shared if key in spec}
    return light | {"artifact": {"uri": "second.onnx", "sha256": SHA256}}


def text_of(model: Spec, second: Spec) -> str:
    """A file with the model, and the one that it names after it."""
    return yaml.safe_dump_all([model, {**model, "metadata": {"name": "second"}, "spec": second}])


def assigned(model: Spec, second: Spec) -> AssignedModel:
    """What agents load for the model."""
    first, _ = load(text_of(model, second), "file")
    return first.assigned


WAYS = pytest.mark.parametrize(
    ("add", "files"),
    [
        (fused, lambda given: (given.pipeline.instances.artifact_sha256, given.second_artifact)),
        (asked_first, lambda given: (given.pipeline.cascade.light.artifact_sha256, given.light_artifact)),
    ],
    ids=["fused", "asked first"],
)


@WAYS
def test_agents_load_the_file_of_the_named_model_and_the_revision_follows_its_spec(
    coins_value: Spec, add: Callable[[Spec], Spec], files: Callable[[AssignedModel], Any]
) -> None:
    second = add(coins_value["spec"])
    given = assigned(coins_value, second)
    sha256, artifact = files(given)

    assert (sha256, artifact.uri) == (SHA256, "second.onnx")
    second["artifact"]["sha256"] = "c" * 64
    assert assigned(coins_value, second).revision != given.revision


def test_the_classes_of_a_cascade_are_given_by_their_ids(coins_value: Spec) -> None:
    cascade = assigned(coins_value, asked_first(coins_value["spec"])).pipeline.cascade

    assert cascade.classes == (1,)


@pytest.mark.parametrize("add", [fused, asked_first])
def test_a_model_without_the_one_that_it_names_is_read_and_has_no_pipeline(
    coins_value: Spec, add: Callable[[Spec], Spec]
) -> None:
    add(coins_value["spec"])
    (model,) = load(yaml.safe_dump(coins_value), "file")

    with pytest.raises(SpecError, match="the spec of model 'second' is needed, and was not read with this one"):
        _ = model.assigned


@pytest.mark.parametrize(
    ("add", "change", "message"),
    [
        (fused, lambda spec, second: spec.pop("instances"),
         "spec.postprocess: the stage 'panopticFusion' needs a second network"),
        (fused, lambda spec, second: spec.update(postprocess=[{"argmax": {}}]),
         "spec.instances: no postprocess stage uses the second network's instances"),
        (fused, lambda spec, second: spec["classes"][1].pop("thing"),
         "spec.instances: the second network finds the classes that are things; no class has `thing: true`"),
        (fused, lambda spec, second: second["classes"][0].update(name="cell"),
         "spec.instances.model: second has cell; allowed: the classes of this model that are things, coin"),
        (fused, lambda spec, second: second.update(preprocess=[{"decode": {}}]),
         "spec.instances.model: second has another preprocess; both networks get the same tensor"),
        (fused, lambda spec, second: second.update(inference=[{"tta": {"flips": ["horizontal"]}}]),
         "spec.instances.model: second has inference"),
        (fused, lambda spec, second: spec["instances"].update(postprocess=[]),
         "spec.instances: unknown field 'postprocess'; known: "),
        (asked_first, lambda spec, second: spec["cascade"].update(classes=["coin", "cion"]),
         "spec.cascade.classes[1]: unknown class 'cion' (did you mean 'coin'?)"),
        (asked_first, lambda spec, second: second["classes"].append({"id": 2, "name": "cell"}),
         "spec.cascade.light.model: second has 0 background, 1 coin, 2 cell; allowed: the classes of this model, 0"),
        (asked_first, lambda spec, second: second.update(input={"colour": "RGB"}),
         "spec.cascade.light.model: second has input.colour RGB; that of this model is GREY"),
        (asked_first, lambda spec, second: second.update(fused(deepcopy(second)), family="yolo-seg",
         classes=spec["classes"], input=spec["input"]),
         "spec.cascade: cascade.light gives answers of task instance"),
        (asked_first, lambda spec, second: second.update(instances={"model": "coins"},
         postprocess=[{"argmax": {}}, {"panopticFusion": {}}]),
         "spec.cascade.light.model: second has two networks itself; name a model of one network"),
        (asked_first, lambda spec, second: (spec["cascade"].update(maxLoss=0.01), spec.pop("golden")),
         "spec.cascade.maxLoss: maxLoss needs spec.golden, which is not set"),
        (asked_first, lambda spec, second: spec["cascade"]["light"].update(family="yolo-seg"),
         "spec.cascade.light: unknown field 'family'; known: model"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_its_place(
    coins_value: Spec, add: Callable[[Spec], Spec], change: Callable[[Spec, Spec], object], message: str
) -> None:
    second = add(coins_value["spec"])
    change(coins_value["spec"], second)

    with pytest.raises(SpecError) as refused:
        load(text_of(coins_value, second), "file")

    assert message in str(refused.value)
