"""YAML text or plain JSON to typed resources and back; every error has its position."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from reprlib import Repr
from typing import Any, Final, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from pydantic_core.core_schema import ErrorType

from segserve_operator.api.checks import did_you_mean, unknown_name
from segserve_operator.api.crd import structural_schema, untagged
from segserve_operator.api.documents import Document, Path, read_documents, write_documents
from segserve_operator.api.meta import (
    ANNOTATION_DESCRIPTIONS,
    ANNOTATION_PREFIX,
    GROUP_VERSION,
    UNREAD_METADATA,
    Problem,
    SpecError,
)
from segserve_operator.api.pod_template import PodTemplate
from segserve_operator.api.resources import KINDS, Resource
from segserve_operator.api.rollout_policy import GATE_SPECS
from segserve_operator.api.segmentation_model import NETWORKS, SegmentationModel, SegmentationModelSpec

_STAGE_LISTS: Final = ("preprocess", "inference", "postprocess")
_PYDANTIC_TYPES: Final = frozenset(get_args(ErrorType))
_TIME: Final = "must be a time such as 2026-01-31T12:00:00Z"
# What is allowed, for each of pydantic's errors that can occur, in terms of YAML instead of Python.
_ALLOWED: Final[Mapping[str, str]] = {
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "datetime_from_date_parsing": _TIME,
    "datetime_object_invalid": _TIME,
    "datetime_parsing": _TIME,
    "datetime_type": _TIME,
    "dict_type": "must be a mapping",
    "enum": "must be {expected}",
    "finite_number": "must be a finite number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "int_from_float": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a whole number of at most 64 bits",
    "int_type": "must be a whole number",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "list_type": "must be a list",
    "literal_error": "must be {expected}",
    "model_attributes_type": "must be a mapping",
    "model_type": "must be a mapping",
    "multiple_of": "must be a multiple of {multiple_of}",
    "string_pattern_mismatch": "must match the pattern {pattern}",
    "string_too_long": "must have at most {max_length} {items}",
    "string_too_short": "must have at least {min_length} {items}",
    "string_type": "must be a string",
    "timezone_aware": f"{_TIME}, with its time zone",
    "too_long": "must have at most {max_length} {items}",
    "too_short": "must have at least {min_length} {items}",
    "tuple_type": "must be a list",
}
_PATTERNS: Final[Mapping[str, str]] = {
    "^[0-9a-f]{64}$": "must be 64 hexadecimal digits in lower case",
    "^#[0-9a-f]{6}$": "must be a colour such as '#ffcc00'",
    "^[0-9]{2}\\.[0-9]{2}$": "must be a release of Triton such as '26.04'",
    "^https?://": "must start with http:// or https://",
    "^https://": "must start with https://",
}
_NUMBERS: Final = ("float_type", "float_parsing", "int_type", "int_parsing")
Part = TypeVar("Part", bound=BaseModel)

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
        problems.extend(_unknown_annotations(document, resource))
        key = (resource.kind, resource.metadata.namespace, resource.metadata.name)
        if key in first_by_key:
            message = f"{resource.kind} {resource.metadata.name!r} occurs twice, first in document {first_by_key[key]}"
            problems.append(document.problem(("metadata", "name"), message))
        first_by_key.setdefault(key, number)
    if problems:
        raise SpecError(problems)
    return _with_networks(loaded)


def _with_networks(loaded: list[tuple[Resource, Document]]) -> list[tuple[Resource, Document]]:
    """Return the resources, and check the models whose second network is another model of the same text.

    Models that name one from elsewhere stay as they are: a platform may have it.
    """
    networks = {each.metadata.name: each.spec for each, _ in loaded if isinstance(each, SegmentationModel)}
    checked: list[tuple[Resource, Document]] = []
    problems: list[Problem] = []
    for resource, document in loaded:
        named = set(resource.spec.references.values()) if isinstance(resource, SegmentationModel) else set()
        try:
            checked.append((_typed(document, networks) if named and named <= networks.keys() else resource, document))
        except SpecError as error:
            problems.extend(error.problems)
    if problems:
        raise SpecError(problems)
    return checked


def _unknown_annotations(document: Document, resource: Resource) -> Iterator[Problem]:
    """Yield a problem for each annotation with our prefix that nothing reads: a typo in a request would go unnoticed.

    Only files are checked: what is stored goes on.
    """
    known = [f"{ANNOTATION_PREFIX}{name}" for name in ANNOTATION_DESCRIPTIONS]
    for name in resource.metadata.annotations:
        if name.startswith(ANNOTATION_PREFIX) and name not in known:
            path = ("metadata", "annotations", name)
            yield document.problem(path, unknown_name("annotation", name, known), key=True)


def dump(resources: Iterable[Resource]) -> str:
    """Return resources as YAML that `load` reads back."""
    return write_documents(resource.to_dict() for resource in resources)


def parse(
    value: Mapping[str, Any], source: str, networks: Mapping[str, SegmentationModelSpec] | None = None
) -> Resource:
    """Return the resource of a JSON value, such as an object of the Kubernetes API; `source` names it in errors.

    `networks` are the specs of the models that a model may name, by name; without them a model that names one cannot
    give its pipeline. Raises `SpecError` with all problems.
    """
    return _typed(Document(source, dict(value)), networks)


def parse_value(kind: type[Part], value: Mapping[str, Any], source: str) -> Part:
    """Return a part of a resource, such as a `RolloutPolicy`, from its JSON value.

    Raises `SpecError` with all problems.
    """
    return _validated(Document(source, dict(value)), kind, value)


def _typed(document: Document, networks: Mapping[str, SegmentationModelSpec] | None = None) -> Resource:
    kind = KINDS[_kind(document)]
    value = dict(document.value)
    if isinstance(value.get("metadata"), dict):
        value["metadata"] = {key: item for key, item in value["metadata"].items() if key not in UNREAD_METADATA}
    return _validated(document, kind.type, value, networks)


def _validated(
    document: Document,
    kind: type[Part],
    value: Mapping[str, Any],
    networks: Mapping[str, SegmentationModelSpec] | None = None,
) -> Part:
    try:
        # Strict, because a Kubernetes API server does not accept the string "8" as a number either.
        context = None if networks is None else {NETWORKS: networks}
        return kind.model_validate_json(json.dumps(value), strict=True, context=context)
    except ValidationError as error:
        details = error.errors(include_url=False)
        raise SpecError([_problem(document, kind, detail) for detail in details]) from None


def _kind(document: Document) -> str:
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
            return document.problem(path, unknown_name(_noun(path), str(path[-1]), known), key=True)
        case _:
            return document.problem(path, _message(detail, path))


def _fields(schema: Mapping[str, Any], path: Path) -> list[str]:
    for part in path:
        if isinstance(part, int):
            schema = schema["items"]
        elif part == "podTemplate":  # it is open in the schema
            schema = structural_schema(PodTemplate)
        else:
            schema = schema["properties"][part] if "properties" in schema else schema["additionalProperties"]
    return list(schema.get("properties", ()))


def _noun(path: Path) -> str:
    match path:
        case ("spec", "preprocess" | "postprocess", int(), str()):
            return "stage"
        case ("spec", "preprocess" | "postprocess", int(), str(), str()):
            return "option"
        case _:
            return "field"


def _message(detail: ErrorDetails, path: Path) -> str:
    """Return what is allowed and what was found, in terms of YAML instead of Python."""
    kind, seen = detail["type"], detail["input"]
    if kind == "value_error" or kind not in _PYDANTIC_TYPES:  # one of our own, which contains the value
        if isinstance(seen, dict) and [*seen.values()] == [None] and _is_stage(path):
            return f"a stage without options is written {next(iter(seen))}: {{}}"
        return detail["msg"].removeprefix("Value error, ")
    context = {key: _plain(value) for key, value in detail.get("ctx", {}).items()}
    count = context.get("max_length", context.get("min_length", 0))
    items = ("character" if isinstance(seen, str) else "item") + ("" if count == 1 else "s")
    allowed = _ALLOWED.get(kind, detail["msg"]).format_map({**context, "items": items})
    allowed = _PATTERNS.get(context.get("pattern", ""), allowed)
    return f"{allowed}, got {_BRIEF.repr(seen)}{_hint(kind, seen, context)}"


def _plain(value: Any) -> Any:
    """Return a bound without the decimals that a whole number does not need."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _hint(kind: str, seen: Any, context: Mapping[str, Any]) -> str:
    """Return what to write instead, for the mistakes that YAML makes easy; "" for others."""
    if kind in ("literal_error", "enum") and isinstance(seen, str):
        return did_you_mean(seen, re.findall("'([^']*)'", context["expected"]))
    if kind == "string_type" and isinstance(seen, bool | int | float):
        return "; write it in quotes"
    is_quoted = isinstance(seen, str) and re.fullmatch(r"[-+]?[0-9]+(\.[0-9]+)?", seen)
    return "; write it without quotes" if kind in _NUMBERS and is_quoted else ""


def _is_stage(path: Path) -> bool:
    return isinstance(path[-1], int) and path[-2] in _STAGE_LISTS
