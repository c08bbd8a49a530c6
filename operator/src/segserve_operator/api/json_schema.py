"""One JSON Schema of all resource files, for editors: from the structural schemas that the CRDs contain."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from segserve_operator.api.meta import (
    ANNOTATION_DESCRIPTIONS,
    ANNOTATION_PREFIX,
    GROUP_VERSION,
    UNREAD_METADATA,
)
from segserve_operator.api.resources import KINDS
from segserve_operator.api.schema import structural_schema

DRAFT: Final = "http://json-schema.org/draft-07/schema#"
"""The newest draft that yaml-language-server and the schemas of its other files agree on."""

_ONE_OF: Final = re.compile(r"^\[(?P<fields>has\(.*\))\]\.exists_one\(named, named\)$")
_ONLY_WITH: Final = re.compile(r"^self\.(?P<tag>\w+) != '(?P<value>[\w-]+)' \|\| \((?P<fields>!?has\(.*\))\)$")
_HAS: Final = re.compile(r"(?P<absent>!?)has\(self\.(?P<name>\w+)\)")


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 7) of one document of a resource file; `kind` selects what it contains.

    Unknown fields are errors, as they are for `segserve apply`. Rules between fields that need arithmetic are left
    to `segserve apply`.
    """
    kinds = list(KINDS)
    return {
        "$schema": DRAFT,
        "title": GROUP_VERSION,  # editors show it in messages and above each description
        "type": "object",
        "required": ["apiVersion", "kind"],
        "properties": {
            "apiVersion": {"type": "string", "enum": [GROUP_VERSION], "description": "Version of the API."},
            "kind": {"type": "string", "enum": kinds, "description": "Kind of resource."},
        },
        "allOf": [
            {
                "if": {"required": ["kind"], "properties": {"kind": {"const": kind}}},
                "then": {"$ref": f"#/definitions/{kind}"},
            }
            for kind in kinds
        ],
        "definitions": {name: _resource(structural_schema(kind.type)) for name, kind in KINDS.items()},
    }


def _resource(structural: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of a kind; its status is open, since the platform writes it and files are read without it."""
    schema = _node(structural)
    status = {"type": "object", "description": structural["properties"]["status"]["description"]}
    properties = {**schema["properties"], "metadata": _metadata(schema["properties"]["metadata"]), "status": status}
    return {**schema, "properties": properties}


def _metadata(schema: dict[str, Any]) -> dict[str, Any]:
    annotations = {
        **schema["properties"]["annotations"],
        "properties": {
            f"{ANNOTATION_PREFIX}{name}": {"type": "string", "description": description}
            for name, description in ANNOTATION_DESCRIPTIONS.items()
        },
        "patternProperties": {
            f"^{re.escape(ANNOTATION_PREFIX)}(?!({'|'.join(ANNOTATION_DESCRIPTIONS)})$)": False,
        },
    }
    unread: dict[str, Any] = {name: {} for name in UNREAD_METADATA}
    return {**schema, "properties": {**schema["properties"], "annotations": annotations, **unread}}


def _node(structural: Mapping[str, Any]) -> dict[str, Any]:
    node = {key: value for key, value in structural.items() if not key.startswith("x-kubernetes-")}
    for side in ("Minimum", "Maximum"):  # OpenAPI v3 has a flag beside the bound, JSON Schema the bound itself
        if node.pop(f"exclusive{side}", False):
            node[f"exclusive{side}"] = node.pop(side.lower())
    if structural.get("format") == "int64":
        del node["format"]
    if "x-kubernetes-int-or-string" in structural:
        node["type"] = ["integer", "string"]
    if "items" in node:
        node["items"] = _node(node["items"])
    if "properties" in node:
        node["properties"] = {name: _node(field) for name, field in node["properties"].items()}
        node["additionalProperties"] = False
    elif "additionalProperties" in node:
        node["additionalProperties"] = _node(node["additionalProperties"])
    conditions = []
    for rule in structural.get("x-kubernetes-validations", ()):
        if (match := _ONE_OF.match(rule["rule"])) is not None:
            node |= _exactly_one([name for _, name in _fields(match)], node["properties"])
        elif (match := _ONLY_WITH.match(rule["rule"])) is not None:
            conditions.append(_condition(match))
    return {**node, "allOf": conditions} if conditions else node


def _exactly_one(names: list[str], properties: Mapping[str, Any]) -> dict[str, Any]:
    if set(names) == set(properties):
        return {"minProperties": 1, "maxProperties": 1}  # editors explain these better than `oneOf`
    return {"oneOf": [{"required": [name]} for name in names]}


def _condition(match: re.Match[str]) -> dict[str, Any]:
    """Return the fields that one type of a tagged union does not allow, or needs."""
    tag, value = match["tag"], match["value"]
    then: dict[str, Any] = {}
    for absent, name in _fields(match):
        if absent:
            then.setdefault("properties", {})[name] = False
        else:
            then.setdefault("required", []).append(name)
    return {"if": {"required": [tag], "properties": {tag: {"const": value}}}, "then": then}


def _fields(match: re.Match[str]) -> Iterator[tuple[bool, str]]:
    for field in _HAS.finditer(match["fields"]):
        yield bool(field["absent"]), field["name"]
