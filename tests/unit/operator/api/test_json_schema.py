"""The JSON Schema of resource files: every file that is read is valid by it, and what an editor can know is told."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from segserve_operator.api.crd import json_schema
from segserve_operator.api.meta import ANNOTATION_DESCRIPTIONS, GROUP_VERSION
from segserve_operator.api.resources import KINDS
from segserve_operator.core.world.requests import VERBS

ROOT = Path(__file__).parents[4]
FILES = ("examples/coins/model.yaml", "examples/coins/rollout.yaml", "examples/zoo/zoo.yaml")
SCHEMA = json_schema()
PYTHON_TYPES = {
    "string": (str,), "integer": (int,), "number": (int, float), "boolean": (bool,), "array": (list,), "object": (dict,)
}  # fmt: skip
# A string is not looked at by `minimum`, nor a mapping by `pattern`: each keyword is about one of Python's types.
CHECKS: dict[str, tuple[type | tuple[type, ...], Callable[[Any, Any], bool]]] = {
    "enum": (object, lambda value, known: value in known),
    "const": (object, lambda value, known: value == known),
    "type": (object, lambda value, named: has_type(value, named)),
    "pattern": (str, lambda value, pattern: re.search(pattern, value) is not None),
    "minLength": (str, lambda value, least: len(value) >= least),
    "maxLength": (str, lambda value, most: len(value) <= most),
    "minItems": (list, lambda value, least: len(value) >= least),
    "maxItems": (list, lambda value, most: len(value) <= most),
    "minProperties": (dict, lambda value, least: len(value) >= least),
    "maxProperties": (dict, lambda value, most: len(value) <= most),
    "minimum": ((int, float), lambda value, least: value >= least),
    "maximum": ((int, float), lambda value, most: value <= most),
    "exclusiveMinimum": ((int, float), lambda value, below: value > below),
    "exclusiveMaximum": ((int, float), lambda value, above: value < above),
    "multipleOf": ((int, float), lambda value, factor: value % factor == 0),
}
READ = {
    *CHECKS, "$schema", "title", "description", "default", "format", "definitions", "$ref", "allOf", "oneOf", "if",
    "then", "items", "required", "properties", "patternProperties", "additionalProperties",
}  # fmt: skip


def has_type(value: Any, named: str | list[str]) -> bool:
    names = [named] if isinstance(named, str) else named
    return any(isinstance(value, PYTHON_TYPES[name]) and (name == "boolean") == (value is True or value is False)
               for name in names)  # fmt: skip


def problems(value: Any, schema: Any, path: str = "") -> Iterator[str]:
    """Yield the places where a value differs from a schema, for the keywords that the schema uses."""
    if schema is False:
        yield path
    if isinstance(schema, bool):
        return
    assert set(schema) <= READ, set(schema) - READ
    for keyword, (about, holds) in CHECKS.items():
        if keyword in schema and isinstance(value, about) and not holds(value, schema[keyword]):
            yield path
    parts = list(schema.get("allOf", ()))
    if "$ref" in schema:
        parts.append(SCHEMA["definitions"][schema["$ref"].rpartition("/")[2]])
    if "if" in schema and not any(problems(value, schema["if"])):
        parts.append(schema["then"])
    for part in parts:
        yield from problems(value, part, path)
    if "oneOf" in schema and sum(not any(problems(value, part)) for part in schema["oneOf"]) != 1:
        yield path
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from problems(item, schema.get("items", True), f"{path}[{index}]")
    if isinstance(value, dict):
        yield from problems_of_mapping(value, schema, path)


def problems_of_mapping(value: Mapping[str, Any], schema: Mapping[str, Any], path: str) -> Iterator[str]:
    yield from (f"{path}.{name}" for name in schema.get("required", ()) if name not in value)
    for name, item in value.items():
        parts = [part for pattern, part in schema.get("patternProperties", {}).items() if re.search(pattern, name)]
        parts += [schema["properties"][name]] if name in schema.get("properties", ()) else []
        for part in parts or [schema.get("additionalProperties", True)]:
            yield from problems(item, part, f"{path}.{name}")


def model(**spec: Any) -> dict[str, Any]:
    (coins, *_) = yaml.safe_load_all((ROOT / FILES[0]).read_text())
    return {**coins, "spec": {**coins["spec"], **spec}}


@pytest.mark.parametrize("file", FILES)
def test_every_example_is_valid(file: str) -> None:
    documents = [document for document in yaml.safe_load_all((ROOT / file).read_text()) if document]

    assert documents
    assert [list(problems(document, SCHEMA)) for document in documents] == [[]] * len(documents)


def test_resources_as_a_platform_stores_them_are_valid() -> None:
    stored = model()
    stored["metadata"] |= {"uid": "1", "generation": 3, "managedFields": [{}], "annotations": {"example.org/a": "b"}}
    stored["status"] = {"weight": 100}

    assert list(problems(stored, SCHEMA)) == []
    assert list(problems({**stored, "kind": "TritonPool", "spec": {"server": {"cache": {"size": 1}}}}, SCHEMA)) == []


TYPOS: dict[str, tuple[dict[str, Any], str]] = {
    "a field": (model(familly="x"), ".spec.familly"),
    "a value of a choice": (model(family="semantic-logit"), ".spec.family"),
    "a type": (model(classes="coin"), ".spec.classes"),
    "a stage": (model(postprocess=[{"argmaxx": {}}]), ".spec.postprocess[0].argmaxx"),
    "two stages in one item": (model(postprocess=[{"argmax": {}, "nms": {}}]), ".spec.postprocess[0]"),
    "an option of another gate": (
        model(rollout={"gates": [{"gate": "errorRate", "url": "http://a"}]}),
        ".spec.rollout.gates[0].url",
    ),
    "an option that a gate needs": (
        model(rollout={"gates": [{"gate": "webhook", "name": "w"}]}),
        ".spec.rollout.gates[0].url",
    ),
    "a duration": (model(keepPrevious="1 hour"), ".spec.keepPrevious"),
    "a bound": (model(postprocess=[{"removeSmallRegions": {"minArea": -1}}]), ".removeSmallRegions.minArea"),
    "two caches": ({**model(), "kind": "TritonPool", "spec": {"server": {"cache": {"size": 1, "hostPath": "/a"}}}},
                   ".spec.server.cache"),
    "an annotation": (
        {**model(), "metadata": {"name": "a", "annotations": {"segserve.dev/abrot": "x"}}},
        ".metadata.annotations.segserve.dev/abrot",
    ),
    "a kind": ({**model(), "kind": "SegmentationModell"}, ".kind"),
    "a version": ({**model(), "apiVersion": "segserve.dev/v1"}, ".apiVersion"),
}  # fmt: skip


@pytest.mark.parametrize("typo", TYPOS)
def test_what_apply_would_refuse_is_told_in_the_editor(typo: str) -> None:
    document, place = TYPOS[typo]

    found = list(problems(document, SCHEMA))

    assert [path for path in found if path.endswith(place)]


@pytest.mark.same
def test_every_kind_is_known_and_every_field_has_a_description() -> None:
    def undescribed(schema: Mapping[str, Any], path: str) -> Iterator[str]:
        for name, field in schema.get("properties", {}).items():
            if field and "description" not in field:
                yield f"{path}.{name}"
            if isinstance(field, dict):
                yield from undescribed(field, f"{path}.{name}")
        if "items" in schema:
            yield from undescribed(schema["items"], f"{path}[]")

    assert set(SCHEMA["definitions"]) == set(KINDS) == set(SCHEMA["properties"]["kind"]["enum"])
    assert SCHEMA["properties"]["apiVersion"]["enum"] == [GROUP_VERSION]
    assert list(undescribed(SCHEMA, "")) == []
    for kind, schema in SCHEMA["definitions"].items():
        assert list(undescribed(schema["properties"]["spec"], kind)) == []


def test_the_known_annotations_are_the_verbs_of_rollouts() -> None:
    assert sorted(ANNOTATION_DESCRIPTIONS) == sorted(VERBS)
