"""Schemas of resources; writes the CustomResourceDefinitions: `python -m segserve_operator.api.crd OUT_DIR`.

A type's JSON schema becomes the structural OpenAPI v3 schema that Kubernetes requires in a CRD. Kubernetes has no
unions: a tagged union becomes one object with the fields of all its types, and rules. For editors, one JSON Schema of
all resource files follows from the structural schemas.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from segserve_builder.steps.pipeline import PostprocessStep, PreprocessStep
from segserve_operator.api.documents import write_documents
from segserve_operator.api.meta import (
    ANNOTATION_DESCRIPTIONS,
    ANNOTATION_PREFIX,
    API_GROUP,
    API_VERSION,
    GROUP_VERSION,
    UNREAD_METADATA,
    UNSEEN,
    format_duration,
)
from segserve_operator.api.resources import KINDS, Column, ResourceKind

_KEPT: Final = (
    "type", "description", "format", "enum", "pattern", "minimum", "maximum", "minLength", "maxLength",
    "minItems", "maxItems", "maxProperties", "required",
)  # fmt: skip
_READ: Final = frozenset(
    (
        *_KEPT,
        "title",
        "default",
        "const",
        "exclusiveMinimum",
        "exclusiveMaximum",
        "multipleOf",
        "prefixItems",
        "items",
    )
) | {"properties", "additionalProperties", "anyOf", "allOf", "$ref", "$defs", "examples"}
_OPEN: Final = "x-kubernetes-preserve-unknown-fields"
_STEPS: Final = frozenset({PreprocessStep.__name__, PostprocessStep.__name__})
_OWN: Final = ("description", "default")
DRAFT: Final = "http://json-schema.org/draft-07/schema#"
"""The newest draft that yaml-language-server and the schemas of its other files agree on."""

_ONE_OF: Final = re.compile(r"^\[(?P<fields>has\(.*\))\]\.exists_one\(named, named\)$")
_ONLY_WITH: Final = re.compile(r"^self\.(?P<tag>\w+) != '(?P<value>[\w-]+)' \|\| \((?P<fields>!?has\(.*\))\)$")
_HAS: Final = re.compile(r"(?P<absent>!?)has\(self\.(?P<name>\w+)\)")


class NotStructuralError(Exception):
    """Raised if the type of a field has no structural schema."""


class _Generator(GenerateJsonSchema):
    """Writes default durations in the notation of resources."""

    def encode_default(self, dft: Any) -> Any:
        return format_duration(dft) if isinstance(dft, timedelta) else super().encode_default(dft)


@cache
def structural_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return the structural schema of a type; callers must not modify it.

    Raises `NotStructuralError` if a field is an untagged union or a tuple of different types.
    """
    raw = model.model_json_schema(by_alias=True, schema_generator=_Generator)
    return _node(raw, raw.get("$defs", {}))


def _node(raw: Mapping[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    raw = _resolved(raw, definitions)
    if "discriminator" in raw:
        return _tagged(raw, definitions)
    node = {key: raw[key] for key in _KEPT if key in raw}
    node |= {key: value for key, value in raw.items() if key.startswith("x-kubernetes-")}
    if "const" in raw:
        node["enum"] = [raw["const"]]
    if "description" in node:
        node["description"] = " ".join(node["description"].split())
    if "x-kubernetes-int-or-string" in node:  # the only union that Kubernetes supports
        return node | {"default": raw["default"]} if raw.get("default") is not None else node
    if "type" not in node:
        raise NotStructuralError(f"{raw.get('title', 'a field')} has no single type: {sorted(raw)}")
    if node["type"] == "object" and "maxLength" in node:  # pydantic's keyword for mappings
        node["maxProperties"] = node.pop("maxLength")
    node |= _bounds(raw)
    node |= _children(raw, definitions)
    # Readers treat an empty string as absent anyway, and older API servers turn it into null.
    if raw.get("default") not in (None, "") and _OPEN not in node:
        node["default"] = _default(raw["default"], node)
    if raw.get("title") in _STEPS:
        node["x-kubernetes-validations"] = [_exactly_one(node["properties"])]
    return node


def _tagged(raw: Mapping[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    options = {
        tag: _node({"$ref": reference}, definitions) for tag, reference in raw["discriminator"]["mapping"].items()
    }
    try:
        return merged(raw["discriminator"]["propertyName"], options)
    except ValueError as error:
        raise NotStructuralError(str(error)) from error


def _default(value: Any, node: Mapping[str, Any]) -> Any:
    """Return a default without the fields that the API server fills in itself."""
    if isinstance(value, list):
        return [_default(item, node["items"]) for item in value]
    if "properties" not in node:
        return value
    fields = {
        key: _default(value[key], field)
        for key, field in node["properties"].items()
        if value.get(key) is not None and _OPEN not in field
    }
    return {key: field for key, field in fields.items() if field != node["properties"][key].get("default")}


def _resolved(raw: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any]:
    """Replace references and optional types; keys beside them, above all the description, take precedence."""
    if "discriminator" in raw:
        return raw
    own = {key: value for key, value in raw.items() if key not in ("$ref", "anyOf", "allOf")}
    inner: list[Mapping[str, Any]] = []
    if "$ref" in raw:
        inner = [definitions[raw["$ref"].rpartition("/")[2]]]
    elif "anyOf" in raw or "allOf" in raw:
        inner = [item for item in raw.get("anyOf", raw.get("allOf")) if item.get("type") != "null"]
    if len(inner) > 1:
        raise NotStructuralError(f"{raw.get('title', 'a field')} is a union of {len(inner)} types")
    if not inner:
        unread = {key for key in own if key not in _READ and not key.startswith("x-kubernetes-")}
        if unread:
            raise NotStructuralError(f"{raw.get('title', 'a field')} uses {sorted(unread)}")
        return own
    base = _resolved(inner[0], definitions)
    kept_title = {"title": base["title"]} if "title" in base else {}
    return {**base, **own, **kept_title}


def _bounds(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return numeric bounds in OpenAPI v3 form, where an exclusive bound is a flag beside the bound."""
    bounds: dict[str, Any] = {}
    for side in ("Minimum", "Maximum"):
        if f"exclusive{side}" in raw:
            bounds[side.lower()] = raw[f"exclusive{side}"]
            bounds[f"exclusive{side}"] = True
    if "multipleOf" in raw:
        bounds["multipleOf"] = raw["multipleOf"]
    if raw.get("type") == "integer":
        bounds["format"] = "int64"
    return bounds


def _children(raw: Mapping[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    if raw["type"] == "array":
        return {"items": _items(raw, definitions)}
    if raw["type"] != "object" or _OPEN in raw:
        return {}
    if "properties" in raw:
        return {"properties": {name: _node(item, definitions) for name, item in raw["properties"].items()}}
    if isinstance(raw.get("additionalProperties"), dict):
        return {"additionalProperties": _node(raw["additionalProperties"], definitions)}
    return {"properties": {}}


def _items(raw: Mapping[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    if "prefixItems" not in raw:
        return _node(raw["items"], definitions)
    items = [_node(item, definitions) for item in raw["prefixItems"]]
    if any(item != items[0] for item in items):
        raise NotStructuralError(f"{raw.get('title', 'a field')} is a tuple of different types")
    return items[0]


def _exactly_one(properties: Mapping[str, Any]) -> dict[str, str]:
    named = ", ".join(f"has(self.{name})" for name in properties)
    return {
        "rule": f"[{named}].exists_one(named, named)",
        "message": f"exactly one stage must be set: {', '.join(sorted(properties))}",
    }


def merged(tag: str, options: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return a schema of all fields of all types, with rules for the fields that each type allows.

    tag: the field that names the type; options: the structural schema of each type by that name. Defaults appear only
    in the descriptions: filled into every value, they would be unknown fields of the other types. Raises ValueError if
    two types define a field of the same name differently.
    """
    names = list(dict.fromkeys(name for option in options.values() for name in option["properties"] if name != tag))
    return {
        "type": "object",
        "required": [tag],
        "properties": {
            tag: {"type": "string", "enum": sorted(options), "description": "Type of this item."},
            **{name: _field(name, options) for name in names},
        },
        "x-kubernetes-validations": list(_rules(tag, options, names)),
    }


def untagged(schema: Mapping[str, Any], location: tuple[str | int, ...]) -> tuple[tuple[str | int, ...], str]:
    """Return a path without the tags of unions, and the last tag in it ("" if there is none).

    schema: the structural schema; location: the path as pydantic reports it, with the tag of each union.
    """
    place: list[str | int] = []
    tag = ""
    node: Mapping[str, Any] | None = schema
    for part in location:
        if isinstance(part, str) and node is not None and not tag and part in _tags(node):
            tag = part
            continue
        place.append(part)
        if node is not None:
            node = node.get("items") if isinstance(part, int) else node.get("properties", {}).get(part)
    return tuple(place), tag


def _tags(node: Mapping[str, Any]) -> frozenset[str]:
    """Return the tags of a schema that `merged` made, and nothing for any other schema."""
    rules = [rule["rule"] for rule in node.get("x-kubernetes-validations", ())]
    tag = next((name for name in node.get("required", ()) if any(r.startswith(f"self.{name} != ") for r in rules)), "")
    return frozenset(node["properties"][tag]["enum"]) if tag else frozenset()


def _field(name: str, options: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    fields = {kind: option["properties"][name] for kind, option in options.items() if name in option["properties"]}
    plain = [{key: value for key, value in field.items() if key not in _OWN} for field in fields.values()]
    if any(each != plain[0] for each in plain):
        raise ValueError(f"{name!r} is defined differently by {', '.join(sorted(fields))}")
    kinds_by_text: dict[str, list[str]] = {}
    for kind, field in fields.items():
        default = f" Default {field['default']}." if "default" in field else ""
        kinds_by_text.setdefault(field["description"] + default, []).append(kind)
    return {**plain[0], "description": " ".join(f"{', '.join(kinds)}: {text}" for text, kinds in kinds_by_text.items())}


def _rules(tag: str, options: Mapping[str, Mapping[str, Any]], names: list[str]) -> Iterator[dict[str, str]]:
    for kind, option in sorted(options.items()):
        own = [name for name in names if name in option["properties"]]
        foreign = " && ".join(f"!has(self.{name})" for name in names if name not in own)
        needed = [name for name in option.get("required", ()) if name != tag]
        if foreign:
            message = f"{kind} allows only: {', '.join(own) or 'no further field'}"
            yield {"rule": f"self.{tag} != '{kind}' || ({foreign})", "message": message}
        if needed:
            present = " && ".join(f"has(self.{name})" for name in needed)
            yield {"rule": f"self.{tag} != '{kind}' || ({present})", "message": f"{kind} needs {', '.join(needed)}"}


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
        "definitions": {name: _json_resource(structural_schema(kind.type)) for name, kind in KINDS.items()},
    }


def _json_resource(structural: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of a kind; its status is open, since the platform writes it and files are read without it."""
    schema = _json_node(structural)
    status = {"type": "object", "description": structural["properties"]["status"]["description"]}
    properties = {
        **schema["properties"],
        "metadata": _json_metadata(schema["properties"]["metadata"]),
        "status": status,
    }
    return {**schema, "properties": properties}


def _json_metadata(schema: dict[str, Any]) -> dict[str, Any]:
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


def _json_node(structural: Mapping[str, Any]) -> dict[str, Any]:
    node = {key: value for key, value in structural.items() if not key.startswith("x-kubernetes-")}
    for side in ("Minimum", "Maximum"):  # OpenAPI v3 has a flag beside the bound, JSON Schema the bound itself
        if node.pop(f"exclusive{side}", False):
            node[f"exclusive{side}"] = node.pop(side.lower())
    if structural.get("format") == "int64":
        del node["format"]
    if "x-kubernetes-int-or-string" in structural:
        node["type"] = ["integer", "string"]
    if "items" in node:
        node["items"] = _json_node(node["items"])
    if "properties" in node:
        node["properties"] = {name: _json_node(field) for name, field in node["properties"].items()}
        node["additionalProperties"] = False
    elif "additionalProperties" in node:
        node["additionalProperties"] = _json_node(node["additionalProperties"])
    conditions = []
    for rule in structural.get("x-kubernetes-validations", ()):
        if (match := _ONE_OF.match(rule["rule"])) is not None:
            node |= _json_exactly_one([name for _, name in _json_fields(match)], node["properties"])
        elif (match := _ONLY_WITH.match(rule["rule"])) is not None:
            conditions.append(_json_condition(match))
    return {**node, "allOf": conditions} if conditions else node


def _json_exactly_one(names: list[str], properties: Mapping[str, Any]) -> dict[str, Any]:
    if set(names) == set(properties):
        return {"minProperties": 1, "maxProperties": 1}  # editors explain these better than `oneOf`
    return {"oneOf": [{"required": [name]} for name in names]}


def _json_condition(match: re.Match[str]) -> dict[str, Any]:
    """Return the fields that one type of a tagged union does not allow, or needs."""
    tag, value = match["tag"], match["value"]
    then: dict[str, Any] = {}
    for absent, name in _json_fields(match):
        if absent:
            then.setdefault("properties", {})[name] = False
        else:
            then.setdefault("required", []).append(name)
    return {"if": {"required": [tag], "properties": {tag: {"const": value}}}, "then": then}


def _json_fields(match: re.Match[str]) -> Iterator[tuple[bool, str]]:
    for field in _HAS.finditer(match["fields"]):
        yield bool(field["absent"]), field["name"]


def crd(kind: ResourceKind) -> dict[str, Any]:
    """Return the CustomResourceDefinition of a kind."""
    schema = structural_schema(kind.type)
    # Kubernetes owns metadata and its own two fields; a CRD may restrict only the name within metadata.
    named = schema["properties"]["metadata"]["properties"]["name"]
    name = {key: named[key] for key in ("type", "maxLength", "pattern")}
    own = {
        "apiVersion": {"type": "string"},
        "kind": {"type": "string"},
        "metadata": {"type": "object", "properties": {"name": name}},
    }
    status = {key: value for key, value in schema["properties"]["status"].items() if key != "default"}
    # kstatus takes an object without a status for one that has arrived, also where no operator has seen it.
    if "observedGeneration" in status["properties"]:
        status["default"] = {"observedGeneration": UNSEEN}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": kind.crd_name},
        "spec": {
            "group": API_GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind.kind,
                "listKind": f"{kind.kind}List",
                "plural": kind.plural,
                "singular": kind.kind.lower(),
                "shortNames": list(kind.short_names),
                "categories": list(kind.categories),
            },
            "versions": [
                {
                    "name": API_VERSION,
                    "served": True,
                    "storage": True,
                    "schema": {
                        "openAPIV3Schema": {**schema, "properties": {**schema["properties"], **own, "status": status}}
                    },
                    "subresources": {"status": {}} | ({"scale": dict(kind.scale)} if kind.scale else {}),
                    "additionalPrinterColumns": [_column(column) for column in kind.columns],
                }
            ],
        },
    }


def _column(column: Column) -> dict[str, Any]:
    wide = {"priority": 1} if column.wide else {}
    return {"name": column.name, "type": column.type, "jsonPath": column.path, **wide}


def crd_files() -> dict[str, str]:
    """Return the YAML text of every CustomResourceDefinition by file name."""
    return {f"{API_GROUP}_{kind.plural}.yaml": write_documents([crd(kind)]) for kind in KINDS.values()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Write every CustomResourceDefinition to the folder on the command line."""
    parser = argparse.ArgumentParser(description="Write the CustomResourceDefinitions of segserve.")
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args(arguments).folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in crd_files().items():
        (folder / name).write_text(text)


if __name__ == "__main__":
    main()
