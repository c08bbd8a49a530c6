"""Describes plain HTTP as a document of OpenAPI 3.1: `openapi.json`, filled in with models."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

if TYPE_CHECKING:
    from segserve_builder.steps.public_outputs import Task

Json: TypeAlias = dict[str, Any]
_FILE: Final = Path(__file__).with_name("openapi.json")
_ANY_MODEL: Final = "/v1/models/{model}:segment"
ANSWERS: Final[Mapping[Task, str]] = {
    "semantic": "ClassesAnswer",
    "instance": "ObjectsAnswer",
    "panoptic": "SegmentsAnswer",
    "detection": "ObjectsAnswer",
    "keypoints": "ObjectsAnswer",
}
"""The schema of an answer by the task of its model."""
_SCORED: Final = frozenset(task for task, schema in ANSWERS.items() if schema == "ObjectsAnswer")
_TASKS: Final[Mapping[str, frozenset[Task]]] = {
    "score_threshold": _SCORED,
    "max_detections": _SCORED,
    "encoding": frozenset({"semantic", "instance", "panoptic"}),
    **dict.fromkeys(("points", "point_labels", "prompt_boxes", "multimask"), frozenset({"instance"})),
}
"""The tasks whose models take an option."""


@dataclass(frozen=True, slots=True)
class DescribedModel:
    """A model of the document: its task, the ids and names of its classes, and the options that callers may set."""

    name: str
    task: Task
    classes: tuple[tuple[int, str], ...] = ()
    options: tuple[str, ...] = ()


def describe_models(models: Sequence[DescribedModel], *, version: str, url: str = "") -> Json:
    """Return the document of a platform of this version, at an address if that is known: a path for each model."""
    document = _document(version, {f"/v1/models/{model.name}:segment": _of_model(model) for model in models})
    return {**document, "servers": [{"url": url}]} if url else document


def describe_gateway(models: Sequence[str] | None, *, version: str) -> Json:
    """Return the document of a gateway with names of models, or with None without any: one path for all models."""
    item = _any_model()
    if models:
        item["post"]["parameters"][0]["schema"]["enum"] = list(models)
    return _document(version, {_ANY_MODEL: item} if models != [] else {})


def _document(version: str, paths: Json) -> Json:
    template = deepcopy(_template())
    probes = {path: item for path, item in template["paths"].items() if path != _ANY_MODEL}
    return {**template, "info": {**template["info"], "version": version}, "paths": {**paths, **probes}}


def _of_model(model: DescribedModel) -> Json:
    item = _any_model()
    post, options = item["post"], [*(each for each in model.options if model.task in _TASKS[each]), "picture"]
    post["operationId"], post["summary"] = f"segment-{model.name}", f"Segment an image with the {model.task} model"
    if model.classes:
        named = ", ".join(f"{number} {name}" for number, name in model.classes)
        post["description"] = f"Classes: {named}."
    post["parameters"] = [each for each in post["parameters"] if each["name"] in options]
    form = post["requestBody"]["content"]["multipart/form-data"]["schema"]
    form["properties"] = {name: each for name, each in form["properties"].items() if name in ("image", *options)}
    answer = {"$ref": f"#/components/schemas/{ANSWERS[model.task]}"}
    post["responses"]["200"]["content"]["application/json"]["schema"] = answer
    return item


def _any_model() -> Json:
    return deepcopy(dict(_template()["paths"][_ANY_MODEL]))


@cache
def _template() -> Json:
    template: Json = json.loads(_FILE.read_text())
    return template
