from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from fakes.cases import cases
from segserve_builder.stages import POSTPROCESS, PREPROCESS
from segserve_builder.stages.base import Stage
from segserve_operator.api.crd import structural_schema
from segserve_operator.api.loading import load, parse
from segserve_operator.api.meta import SpecError
from segserve_operator.api.segmentation_model import SegmentationModel

STAGES = {**PREPROCESS, **POSTPROCESS}
OPTIONS = {
    f"{name}.{option}": (stage, option, field.alias or option)
    for name, stage in STAGES.items()
    for option, field in stage.model_fields.items()
}
OTHER = "22" + "0" * 62


def model(value: dict[str, Any]) -> SegmentationModel:
    return parse(value, "model.yaml")


def revision_of_text(text: str) -> str:
    (resource,) = load(text, "model.yaml")
    return resource.pipeline.revision


def edited(value: dict[str, Any], path: str, new: Any) -> dict[str, Any]:
    """Return a copy with one value replaced; `path` is written with dots, list items as numbers."""
    changed = copy.deepcopy(value)
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    node: Any = changed
    for part in parents:
        node = node.setdefault(part, {}) if isinstance(part, str) else node[part]
    node[last] = new
    return changed


def reversed_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: reversed_keys(value[key]) for key in reversed(value)}
    return [reversed_keys(item) for item in value] if isinstance(value, list) else value


def test_a_revision_is_named_after_its_model_and_ten_digits(coins_value: dict[str, Any]) -> None:
    name, _, digits = model(coins_value).pipeline.revision.rpartition("-")

    assert name == "coins"
    assert len(digits) == 10
    assert set(digits) <= set("0123456789abcdef")


@cases(
    "edit",
    {
        "comments": lambda text: f"# more\n{text}\n# less\n",
        "quotes": lambda text: text.replace("pool: default", 'pool: "default"'),
        "order": lambda text: text.replace("{mode: keep, multipleOf: 16,", "{multipleOf: 16, mode: keep,"),
    },
)
def test_the_way_a_file_is_written_does_not_change_the_revision(coins_text: str, edit: Callable[[str], str]) -> None:
    assert edit(coins_text) != coins_text
    assert revision_of_text(edit(coins_text)) == revision_of_text(coins_text)


def test_the_order_of_keys_does_not_change_the_revision(coins_value: dict[str, Any]) -> None:
    assert model(reversed_keys(coins_value)).pipeline.revision == model(coins_value).pipeline.revision


def test_the_order_of_classes_does_not_change_the_revision(coins_value: dict[str, Any]) -> None:
    turned = edited(coins_value, "spec.classes", coins_value["spec"]["classes"][::-1])

    assert model(turned).spec.classes == model(coins_value).spec.classes
    assert model(turned).pipeline.revision == model(coins_value).pipeline.revision


def test_defaults_that_are_written_out_do_not_change_the_revision(coins_value: dict[str, Any]) -> None:
    assert model(model(coins_value).to_dict()).pipeline.revision == model(coins_value).pipeline.revision


@pytest.mark.parametrize(
    ("path", "new"),
    [
        ("spec.artifact.uri", "https://example.org/coins.onnx"),
        ("spec.artifact.provenance", {"exporter": "torch 2.13", "datasetSha256": OTHER}),
        ("spec.golden", None),
        ("spec.golden.sha256", OTHER),
        ("spec.expose", []),
        ("spec.keepPrevious", "10m"),
        ("spec.allowClassChanges", True),
        ("spec.pool", "gpu"),
        ("metadata.labels", {"team": "mint"}),
        ("metadata.annotations", {"segserve.dev/pause": "coins-1"}),
        ("metadata.namespace", "mint"),
    ],
)
def test_what_cannot_change_an_answer_does_not_change_the_revision(
    coins_value: dict[str, Any], path: str, new: Any
) -> None:
    assert model(edited(coins_value, path, new)).pipeline.revision == model(coins_value).pipeline.revision


@pytest.mark.parametrize(
    ("path", "new"),
    [
        ("metadata.name", "pennies"),
        ("spec.artifact.sha256", OTHER),
        ("spec.input.colour", "RGB"),
        ("spec.input.dtype", "UINT16"),
        ("spec.input.maxPixels", 1000),
        ("spec.classes.1.name", "penny"),
        ("spec.classes.1.colour", "#ffcc01"),
        ("spec.classes", [{"id": 0, "name": "background"}]),
        ("spec.preprocess.1.resize.multipleOf", 32),
        ("spec.postprocess.1.removeSmallRegions.minArea", 151),
        ("spec.postprocess", [{"argmax": {}}]),
        ("spec.output.encoding", "raw"),
        ("spec.output.maxDetections", 10),
        ("spec.output.overrides", ["encoding"]),
        ("spec.runtime.maxBatchSize", 4),
        ("spec.runtime.instances", 2),
    ],
)
def test_what_can_change_an_answer_changes_the_revision(coins_value: dict[str, Any], path: str, new: Any) -> None:
    assert model(edited(coins_value, path, new)).pipeline.revision != model(coins_value).pipeline.revision


@pytest.mark.parametrize("name", ["decode", "resize", "argmax", "removeSmallRegions"])
def test_a_stage_whose_answers_change_changes_the_revision(
    coins_value: dict[str, Any], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    before = model(coins_value).pipeline.revision
    stage = STAGES[name]

    monkeypatch.setattr(stage, "version", stage.version + 1)

    assert model(coins_value).pipeline.revision != before


@pytest.mark.same
def test_every_option_of_every_stage_is_part_of_the_revision() -> None:
    """What `Step.identity` digests is the stage's dump: no option may be left out of it."""

    def dumped(stage: type[Stage], option: str) -> dict[str, Any]:
        return stage.model_construct(**{option: None}).model_dump(mode="json", by_alias=True, warnings=False)

    assert OPTIONS
    assert [name for name, (stage, option, alias) in OPTIONS.items() if alias not in dumped(stage, option)] == []


@pytest.mark.same
def test_every_option_of_every_stage_is_one_of_the_resource() -> None:
    schemas = {stage: structural_schema(stage).get("properties", {}) for stage in STAGES.values()}

    assert [name for name, (stage, _, alias) in OPTIONS.items() if alias not in schemas[stage]] == []


def test_an_agent_is_told_all_that_it_needs(coins_value: dict[str, Any]) -> None:
    coins = model(coins_value)

    assigned = coins.assigned

    assert assigned.model == "coins"
    assert assigned.revision == coins.pipeline.revision
    assert assigned.artifact == coins.spec.artifact
    assert assigned.golden == coins.spec.golden
    assert assigned.expose == ("network",)


def test_metrics_of_answers_make_no_revision_and_reach_the_servers(coins_value: dict[str, Any]) -> None:
    counted = model(coins_value)
    uncounted = model(edited(coins_value, "spec.metrics", {"answers": False}))

    assert uncounted.assigned.revision == counted.assigned.revision
    assert [each.assigned.metrics.answers for each in (counted, uncounted)] == [True, False]


def test_a_class_that_is_counted_must_be_one_of_the_models(coins_value: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match="no class is named coyn; the model has background, coin"):
        model(edited(coins_value, "spec.metrics", {"classes": ["coin", "coyn"]}))


@pytest.mark.parametrize("on_flag", ["Count", "Flag", "Refuse"])
def test_strange_images_are_only_counted_where_answers_are(coins_value: dict[str, Any], on_flag: str) -> None:
    policy = {"score": "detail", "threshold": 0.1, "onFlag": on_flag}
    judging = edited(coins_value, "spec.outOfDistribution", policy)
    uncounted = edited(judging, "spec.metrics", {"answers": False})

    assert model(judging).spec.out_of_distribution is not None
    if on_flag != "Count":
        assert model(uncounted).spec.out_of_distribution is not None
        return
    with pytest.raises(SpecError, match=r"Count needs counts of answers.*allowed without them are Flag and Refuse"):
        model(uncounted)
