"""One structural schema for a tagged union, because Kubernetes has no unions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

_OWN: Final = ("description", "default")


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
