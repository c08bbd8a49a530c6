"""Converts a type's JSON schema to the structural OpenAPI v3 schema that Kubernetes requires in a CRD."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from functools import cache
from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from segserve_builder.steps.pipeline import PostprocessStep, PreprocessStep
from segserve_operator.api.meta import format_duration
from segserve_operator.api.tagged_unions import merged

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
_INT_OR_STRING: Final = "x-kubernetes-int-or-string"
_OPEN: Final = "x-kubernetes-preserve-unknown-fields"
_STEPS: Final = frozenset({PreprocessStep.__name__, PostprocessStep.__name__})


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
    if _INT_OR_STRING in node:  # the only union that Kubernetes supports
        return node | {"default": raw["default"]} if raw.get("default") is not None else node
    if "type" not in node:
        raise NotStructuralError(f"{raw.get('title', 'a field')} has no single type: {sorted(raw)}")
    if node["type"] == "object" and "maxLength" in node:  # pydantic's keyword for mappings
        node["maxProperties"] = node.pop("maxLength")
    node |= _bounds(raw)
    node |= _children(raw, definitions)
    # Readers treat an empty string as absent anyway, and older API servers turn it into null.
    if raw.get("default") not in (None, ""):
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
        key: _default(value[key], field) for key, field in node["properties"].items() if value.get(key) is not None
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
