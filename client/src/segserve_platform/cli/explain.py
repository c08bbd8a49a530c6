"""`segserve explain`: the fields of resources, as `kubectl explain` shows them, without a cluster."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from segserve_platform.cli.errors import CommandError

if TYPE_CHECKING:
    from segserve_operator.api.resources import ResourceKind

MAX_WIDTH: Final = 100
"""Longer lines are hard to read, however wide the terminal is."""
DEFAULT_KIND: Final = "SegmentationModel"

Field = Mapping[str, Any]


def field_paths(incomplete: str) -> list[str]:
    """Return the fields that complete a path; none if its beginning is unknown."""
    start, dot, last = incomplete.rpartition(".")
    try:
        _, path, field = find(start) if start else (DEFAULT_KIND, [], _schema(DEFAULT_KIND))
    except CommandError:
        return []
    names = [*_properties(field)] if path or start else [*(kind.kind.lower() for kind in _kinds()), *_properties(field)]
    return [f"{start}{dot}{name}" for name in names if name.startswith(last)]


def explain(
    field: Annotated[
        str | None,
        typer.Argument(
            metavar="FIELD",
            help="Path of a field, such as `spec.slo` or `tritonpool.spec.server`. Default: the kinds of resources.",
            show_default=False,
            autocompletion=field_paths,
        ),
    ] = None,
    recursive: Annotated[
        bool, typer.Option("--recursive", "-R", help="Print the names and types of all fields below.")
    ] = False,
) -> None:
    """Explain a field of a resource: its type, default and meaning, and its fields.

    A path that does not begin with a kind is one of SegmentationModel. Positions in lists can be left out.
    """
    for line in _kinds_text() if field is None else _text(field, recursive=recursive):
        typer.echo(line.rstrip())


def find(place: str) -> tuple[str, list[str], Field]:
    """Return the kind, the path and the schema of a field; raises `CommandError` with the closest names."""
    first, *rest = [part for part in re.sub(r"\[[^\]]*\]", "", place).split(".") if part] or [""]
    kinds = {name.lower(): kind for kind in _kinds() for name in (kind.kind, kind.plural, *kind.short_names)}
    if first.lower() in kinds:
        kind = kinds[first.lower()].kind
    elif first in _properties(_schema(DEFAULT_KIND)):
        kind, rest = DEFAULT_KIND, [first, *rest]
    else:
        known = [each.kind.lower() for each in _kinds()] + list(_properties(_schema(DEFAULT_KIND)))
        raise CommandError(_unknown("kind or field", first, known))
    schema = _schema(kind)
    for depth, name in enumerate(rest):
        inner = _properties(schema)
        if name not in inner:
            path = ".".join([kind, *rest[:depth]])
            raise CommandError(_unknown(f"field of {path}", name, inner) if inner else f"{path} has no fields")
        schema = inner[name]
    return kind, rest, schema


def _unknown(what: str, name: str, known: Mapping[str, Any] | list[str]) -> str:
    from segserve_operator.api.checks import unknown_name

    return unknown_name(what, name, known)


def _kinds() -> list[ResourceKind]:
    from segserve_operator.api.resources import KINDS

    return list(KINDS.values())


def _schema(kind: str) -> Field:
    from segserve_operator.api.resources import KINDS
    from segserve_operator.api.schema import structural_schema

    return structural_schema(KINDS[kind].type)


def _properties(field: Field) -> Mapping[str, Field]:
    """Return the fields of an object, or of the objects in a list or map."""
    while "properties" not in field:
        inner = field.get("items") or field.get("additionalProperties")
        if inner is None:
            return {}
        field = inner
    properties: Mapping[str, Field] = field["properties"]
    return properties


def _required(field: Field) -> tuple[str, ...]:
    while "properties" not in field:
        field = field.get("items") or field["additionalProperties"]
    return tuple(field.get("required", ()))


def _kinds_text() -> Iterator[str]:
    for kind in _kinds():
        yield f"{kind.kind}  (short: {', '.join(kind.short_names)})"
        yield from _wrapped(_schema(kind.kind)["description"], 4)
    yield ""
    yield "`segserve explain spec` explains the fields of a SegmentationModel, `--recursive` lists them all."


def _text(place: str, *, recursive: bool) -> Iterator[str]:
    from segserve_operator.api.meta import GROUP_VERSION

    kind, path, field = find(place)
    inner = _properties(field)
    yield f"{'.'.join([kind, *path])}  <{_type(field)}>  ({GROUP_VERSION})"
    yield ""
    yield from _wrapped(field.get("description", ""), 2)
    for name, text in _limits(field):
        yield from _wrapped(f"{name}: {text}", 2)
    if recursive and inner:
        yield from ("", "fields:", *_tree(field, 2))
    elif inner:
        yield from ("", "fields:")
        for name, each in inner.items():
            yield f"  {name}  <{_type(each)}>{'  required' if name in _required(field) else ''}"
            yield from _wrapped(each.get("description", ""), 6)
            for limit, text in _limits(each):
                yield from _wrapped(f"{limit}: {text}", 6)


def _tree(field: Field, indent: int) -> Iterator[str]:
    for name, each in _properties(field).items():
        yield f"{' ' * indent}{name}  <{_type(each)}>{'  required' if name in _required(field) else ''}"
        yield from _tree(each, indent + 2)


def _wrapped(text: str, indent: int) -> list[str]:
    width = min(shutil.get_terminal_size().columns, MAX_WIDTH)
    lead = " " * indent
    return textwrap.wrap(text, max(width, 40), initial_indent=lead, subsequent_indent=lead, break_long_words=False,
                         break_on_hyphens=False)  # fmt: skip


def _type(field: Field) -> str:
    from segserve_operator.api.meta import DURATION_PATTERN

    if "x-kubernetes-int-or-string" in field:
        return "quantity"
    if "items" in field:
        return f"list of {_type(field['items'])}"
    if "additionalProperties" in field:
        return f"map to {_type(field['additionalProperties'])}"
    return "duration" if field.get("pattern") == DURATION_PATTERN else str(field["type"])


def _limits(field: Field) -> Iterator[tuple[str, str]]:
    """Yield what is allowed, by name: values, range, pattern, and the default."""
    values: Field = field.get("items", field)
    if "enum" in values:
        yield "allowed", ", ".join(map(str, values["enum"]))
    elif "pattern" in values and _type(values) != "duration":
        yield "pattern", values["pattern"]
    if "minimum" in field or "maximum" in field:
        yield "range", _range(field)
    if field.get("default") not in (None, {}, []):
        yield "default", _plain(field["default"])


def _range(field: Field) -> str:
    parts = []
    if "minimum" in field:
        parts.append(f"{'more than' if field.get('exclusiveMinimum') else 'at least'} {field['minimum']}")
    if "maximum" in field:
        parts.append(f"{'less than' if field.get('exclusiveMaximum') else 'at most'} {field['maximum']}")
    return ", ".join(parts)


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_plain(item)}" for key, item in value.items()) + "}"
    return f"[{', '.join(map(_plain, value))}]" if isinstance(value, list) else str(value)
