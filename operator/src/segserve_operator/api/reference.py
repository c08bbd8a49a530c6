"""Writes the reference of every field: `python -m segserve_operator.api.reference FILE`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from segserve_operator.api.resources import KINDS
from segserve_operator.api.schema import structural_schema

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

HEAD: Final = """# Every field

Written by `make crds` from the types that check resources; so are the definitions in `crds/`. `preprocess` and
`postprocess` are lists of stages, in order; each item names one stage: `- resize: {mode: letterbox, size: 384}`.
"""


def reference() -> str:
    """Return the reference of all kinds as Markdown."""
    return "\n".join([HEAD, *(line for kind in KINDS.values() for line in _kind(kind.kind, kind.type))])


def _kind(name: str, resource: Any) -> Iterator[str]:
    schema = structural_schema(resource)
    yield f"## {name}\n"
    yield f"{schema['description']}\n"
    yield "| field of `spec` | type | default | |"
    yield "|---|---|---|---|"
    yield from _rows(schema["properties"]["spec"], "")
    yield ""


def _rows(schema: Mapping[str, Any], path: str) -> Iterator[str]:
    required = schema.get("required", ())
    for name, field in schema.get("properties", {}).items():
        place = f"{path}{name}"
        text = field.get("description", "").replace("|", "\\|")
        yield f"| `{place}` | {_type(field)} | {_default(field, name in required)} | {text} |"
        if field.get("type") == "array":
            yield from _rows(field["items"], f"{place}[].")
        else:
            yield from _rows(field, f"{place}.")


def _type(field: Mapping[str, Any]) -> str:
    if "x-kubernetes-int-or-string" in field:
        return "amount"
    if "enum" in field:
        return " \\| ".join(f"`{value}`" for value in field["enum"])
    if field["type"] == "array":
        return f"list of {_type(field['items'])}"
    if "additionalProperties" in field:
        return f"map to {_type(field['additionalProperties'])}"
    bounds = [str(field[key]) for key in ("minimum", "maximum") if key in field]
    return f"{field['type']}, {' to '.join(bounds)}" if len(bounds) == 2 else str(field["type"])


def _default(field: Mapping[str, Any], required: bool) -> str:
    if required:
        return "required"
    default = field.get("default")
    return f"`{_plain(default)}`" if default not in (None, {}, []) else ""


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_plain(item)}" for key, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the reference into the file that the command line names."""
    parser = argparse.ArgumentParser(description="Write the reference of every field.")
    parser.add_argument("file", type=Path)
    parser.parse_args(arguments).file.write_text(reference())


if __name__ == "__main__":
    main()
