"""YAML text or plain JSON to typed resources and back; every error has its position."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from reprlib import Repr
from typing import Any, Final

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from segserve_operator.api.checks import unknown_name
from segserve_operator.api.documents import Document, Path, read_documents, write_documents
from segserve_operator.api.errors import Problem, SpecError
from segserve_operator.api.meta import GROUP_VERSION, UNREAD_METADATA
from segserve_operator.api.resources import KINDS, Resource
from segserve_operator.api.rollout_policy import GATE_SPECS
from segserve_operator.api.schema import structural_schema, untagged

_COMPLETE: Final = ("spec", "name", "duration", "value_error")  # their messages already contain the value
# Names of earlier versions of v1alpha1: an error about one of them names the present one.
_RENAMED: Final = {
    "bake": "bakeTime",
    "breaches": "breachCondition",
    "every": "interval",
    "long": "longWindow",
    "maximum": "maxDuration",
    "maximumClassDrop": "maxClassDrop",
    "maximumMemoryGrowthPercent": "maxMemoryGrowthPercent",
    "maximumQueueSeconds": "maxQueueSeconds",
    "maximumRestarts": "maxRestarts",
    "minimum": "minDuration",
    "minimumAp": "minAp",
    "minimumClassIou": "minClassIou",
    "minimumIou": "minIou",
    "minimumRecall": "minRecall",
    "passes": "passCondition",
    "share": "alphaShare",
    "handledRequests": "handledAnnotations",
    "saw": "inputs",
}
_BRIEF: Final = Repr()
_BRIEF.maxstring = _BRIEF.maxother = 80


def load(text: str, source: str) -> list[Resource]:
    """Return the resources of a YAML text of one or more documents; `source` is the file's name in errors.

    Raises `SpecError` with all problems; a text without resources is one.
    """
    return [resource for resource, _ in load_with_documents(text, source)]


def load_with_documents(text: str, source: str) -> list[tuple[Resource, Document]]:
    """Return what `load` does, each resource with its document."""
    documents = read_documents(text, source)
    if not documents:
        raise SpecError([Problem(source, "", f"no resource found; a resource starts with apiVersion: {GROUP_VERSION}")])
    loaded: list[tuple[Resource, Document]] = []
    problems: list[Problem] = []
    first_by_key: dict[tuple[str, str, str], int] = {}
    for number, document in enumerate(documents, start=1):
        try:
            resource = _typed(document)
        except SpecError as error:
            problems.extend(error.problems)
            continue
        loaded.append((resource, document))
        key = (resource.kind, resource.metadata.namespace, resource.metadata.name)
        if key in first_by_key:
            message = f"{resource.kind} {resource.metadata.name!r} occurs twice, first in document {first_by_key[key]}"
            problems.append(document.problem(("metadata", "name"), message))
        first_by_key.setdefault(key, number)
    if problems:
        raise SpecError(problems)
    return loaded


def dump(resources: Iterable[Resource]) -> str:
    """Return resources as YAML that `load` reads back."""
    return write_documents(resource.to_dict() for resource in resources)


def parse(value: Mapping[str, Any], source: str) -> Resource:
    """Return the resource of a JSON value, such as an object of the Kubernetes API; `source` names it in errors.

    Raises `SpecError` with all problems.
    """
    return _typed(Document(source, dict(value)))


def _typed(document: Document) -> Resource:
    kind = KINDS[_kind(document)]
    value = dict(document.value)
    if isinstance(value.get("metadata"), dict):
        value["metadata"] = {key: item for key, item in value["metadata"].items() if key not in UNREAD_METADATA}
    try:
        # Strict, because a Kubernetes API server does not accept the string "8" as a number either.
        return kind.type.model_validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        details = error.errors(include_url=False)
        raise SpecError([_problem(document, kind.type, detail) for detail in details]) from None


def _kind(document: Document) -> str:
    """Return the registered kind of the document."""
    value = document.value
    if not isinstance(value, dict):
        raise SpecError([document.problem((), f"a resource must be a mapping, got {_BRIEF.repr(value)}")])
    problems = []
    for field, known in (("apiVersion", (GROUP_VERSION,)), ("kind", tuple(KINDS))):
        if field not in value:
            problems.append(document.problem((), f"field {field!r} is missing; known: {', '.join(sorted(known))}"))
        elif value[field] not in known:
            problems.append(document.problem((field,), unknown_name(field, str(value[field]), known)))
    if problems:
        raise SpecError(problems)
    return str(value["kind"])


def _problem(document: Document, model: type[BaseModel], detail: ErrorDetails) -> Problem:
    location, tag = untagged(structural_schema(model), detail["loc"])
    path: Path = (*location, *detail.get("ctx", {}).get("at", ()))
    match detail["type"]:
        case "union_tag_invalid":
            context = detail["ctx"]
            known = context["expected_tags"].replace("'", "").split(", ")
            name = context["discriminator"].strip("'")
            return document.problem((*path, name), unknown_name(name, context["tag"], known))
        case "union_tag_not_found":
            return document.problem(path, f"field {detail['ctx']['discriminator']} is missing")
        case "missing":
            noun = "item" if isinstance(path[-1], int) else "field"
            return document.problem(path[:-1], f"{noun} {path[-1]!r} is missing")
        case "extra_forbidden":
            known = _fields(structural_schema(GATE_SPECS[tag] if tag else model), () if tag else path[:-1])
            return document.problem(path, _unknown(_noun(path), str(path[-1]), known), key=True)
        case _:
            return document.problem(path, _message(detail))


def _unknown(noun: str, name: str, known: Sequence[str]) -> str:
    if _RENAMED.get(name) in known:
        return f"unknown {noun} {name!r}; it is named {_RENAMED[name]!r} now"
    return unknown_name(noun, name, known)


def _fields(schema: Mapping[str, Any], path: Path) -> list[str]:
    """Return the names of the fields in the schema at `path`."""
    for part in path:
        schema = schema["items"] if isinstance(part, int) else schema["properties"][part]
    return list(schema.get("properties", ()))


def _noun(path: Path) -> str:
    match path:
        case ("spec", "instances", "postprocess", int(), *rest):
            return _noun(("spec", "postprocess", 0, *rest))
        case ("spec", "preprocess" | "postprocess", int(), str()):
            return "stage"
        case ("spec", "preprocess" | "postprocess", int(), str(), str()):
            return "option"
        case _:
            return "field"


def _message(detail: ErrorDetails) -> str:
    """Return what is allowed and what was found, in terms of YAML instead of Python."""
    seen = detail["input"]
    if detail["type"] in _COMPLETE:
        if isinstance(seen, dict) and [*seen.values()] == [None]:
            return f"a stage without options is written {next(iter(seen))}: {{}}"
        return detail["msg"].removeprefix("Value error, ")
    message = re.sub(r"^(Input|String|Tuple|Value) should ", "must ", detail["msg"])
    message = re.sub(r" after validation, not \d+$", "", message).replace("be an object", "be a mapping")
    return f"{message}, got {_BRIEF.repr(seen)}"
