"""Readers of resources: files, YAML text, mappings and typed values, validated for a platform to apply."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from segserve.platforms.errors import ControlError, InvalidResourceError
from segserve.platforms.port import Json, ParsedResource
from segserve_common.errors import BadRequestError

if TYPE_CHECKING:
    from segserve_operator.api.resources import Resource

Source: TypeAlias = "Resource | Mapping[str, Any] | Path | str"
"""A typed resource, its JSON, a path, or YAML (a string with more than one line)."""

STDIN: Final = "-"


def read(source: Source) -> list[ParsedResource]:
    """Return the resources of a source.

    Raises `InvalidResourceError` with every problem, `ControlError` for an unreadable file, and `BadRequestError` for
    an unsupported source.
    """
    match source:
        case Path():
            return read_file(source)
        case str() if "\n" in source:
            return _read_text(source, "the text", Path())
        case str():
            return read_file(Path(source))
        case Mapping():
            return [_read_mapping(source)]
        case _:
            return [_read_typed(source)]


def read_files(paths: Iterable[Path]) -> list[ParsedResource]:
    """Return the resources of files in order; all files are read before any is returned."""
    return [written for path in paths for written in read_file(path)]


def read_file(path: Path) -> list[ParsedResource]:
    """Return the resources of one file; `-` is standard input."""
    return _read_text(_text(path), str(path), path.parent)


def _read_text(text: str, source: str, folder: Path) -> list[ParsedResource]:
    from segserve_operator.api.errors import SpecError
    from segserve_operator.api.loading import load_with_documents

    try:
        loaded = load_with_documents(text, source)
    except SpecError as error:
        raise InvalidResourceError(str(error)) from error
    return [ParsedResource(resource, document.value, source, folder) for resource, document in loaded]


def _read_mapping(value: Mapping[str, Any]) -> ParsedResource:
    from segserve_operator.api.errors import SpecError
    from segserve_operator.api.loading import parse

    try:
        return ParsedResource(parse(value, "the resource"), dict(value), "the resource", Path())
    except SpecError as error:
        raise InvalidResourceError(str(error)) from error
    except TypeError as error:
        raise InvalidResourceError(f"the resource: a resource may contain only JSON types: {error}") from error


def _read_typed(value: object) -> ParsedResource:
    from segserve_operator.api.resources import KINDS

    kind = KINDS.get(type(value).__name__)
    if kind is None or not isinstance(value, kind.type):
        raise BadRequestError(
            f"a resource must be one of {', '.join(KINDS)}, a mapping, a path or YAML text, got {type(value).__name__}"
        )
    # Unset fields stay unset: on a cluster the server fills in defaults, and other tools may own the fields.
    given = value.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude_none=True)
    written: Json = {"apiVersion": value.api_version, "kind": value.kind, **given}
    return ParsedResource(value, written, value.metadata.name, Path())


def _text(path: Path) -> str:
    try:
        return sys.stdin.read() if str(path) == STDIN else path.read_text()
    except OSError as error:
        raise ControlError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ControlError(f"{path}: a resource file must be UTF-8; byte {error.start} is not") from error
