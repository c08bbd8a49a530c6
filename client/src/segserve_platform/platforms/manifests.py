"""Readers of resources: files, YAML text, mappings and typed values, validated for a platform to apply."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from segserve_common.errors import BadRequestError
from segserve_platform.platforms.errors import ControlError, InvalidResourceError
from segserve_platform.platforms.port import MODEL, POOL, ROLLOUT, Json, ParsedResource, Platform

if TYPE_CHECKING:
    from segserve_builder.steps.pipeline import Pipeline
    from segserve_operator.api.resources import Resource
    from segserve_operator.api.segmentation_model import SegmentationModel

Source: TypeAlias = "Resource | Mapping[str, Any] | Path | str"
"""A typed resource, its JSON, the path of a file or folder, or YAML (a string with more than one line)."""

STDIN: Final = "-"
SUFFIXES: Final = (".yaml", ".yml")


def read(source: Source) -> list[ParsedResource]:
    """Return the resources of a source.

    Raises `InvalidResourceError` with every problem, `ControlError` for an unreadable file, and `BadRequestError` for
    an unsupported source.
    """
    match source:
        case Path():
            return read_files([source])
        case str() if "\n" in source:
            return _read_text(source, "the text", Path())
        case str():
            return read_files([Path(source)])
        case Mapping():
            return [_read_mapping(source)]
        case _:
            return [_read_typed(source)]


def read_files(paths: Iterable[Path], *, recursive: bool = False, base: Path | None = None) -> list[ParsedResource]:
    """Return the resources of files and folders in order; all files are read before any is returned.

    Of a folder these are its `*.yaml` and `*.yml`, sorted by name; `recursive` includes its subfolders. Addresses from
    standard input are relative to `base`, or else to the current folder. Raises `InvalidResourceError` for a resource
    that occurs twice, and `ControlError` for a folder without such files.
    """
    resources = [
        written for path in paths for file in _files(path, recursive=recursive) for written in read_file(file, base)
    ]
    first_by_key: dict[tuple[str, str, str], str] = {}
    for written in resources:
        metadata = written.resource.metadata
        key = (written.resource.kind, metadata.namespace, metadata.name)
        if key in first_by_key:
            raise InvalidResourceError(f"{written.source}: {written.title} occurs twice, first in {first_by_key[key]}")
        first_by_key[key] = written.source
    return resources


def read_file(path: Path, base: Path | None = None) -> list[ParsedResource]:
    """Return the resources of one file; `-` is standard input, whose addresses are relative to `base`."""
    folder = base if str(path) == STDIN and base is not None else path.parent
    return _read_text(_text(path), str(path), folder)


def complete_models(resources: Iterable[ParsedResource]) -> dict[str, SegmentationModel]:
    """Return the models among resources by name: with absolute addresses, and with the models that they name.

    Raises `InvalidResourceError` for one that names a model that is not among them.
    """
    from segserve_operator.api.loading import parse
    from segserve_operator.api.meta import SpecError
    from segserve_operator.api.segmentation_model import SegmentationModel

    manifests = [(written.source, written.complete()) for written in resources if written.resource.kind == MODEL]
    specs = {each["metadata"]["name"]: SegmentationModel.model_validate(each).spec for _, each in manifests}
    models = {}
    for source, manifest in manifests:
        try:
            model = parse(manifest, source, specs)
        except SpecError as error:
            raise InvalidResourceError(str(error)) from error
        assert isinstance(model, SegmentationModel), "the kind determines the type"
        models[model.metadata.name] = model
    return models


def stored_models(platform: Platform) -> dict[str, Json]:
    """Return all models of a platform by name."""
    return {manifest["metadata"]["name"]: manifest for manifest in platform.models()}


def stored_pipeline(manifest: Json, stored: Mapping[str, Json]) -> Pipeline:
    """Return the pipeline that follows from a stored model and the models that it may name, by name.

    Raises `InvalidResourceError` if this version cannot read it.
    """
    from segserve_operator.core.failure import FailureReason
    from segserve_operator.mapping.specs import wanted_of

    wanted = wanted_of(manifest, stored)
    if isinstance(wanted, FailureReason):
        raise InvalidResourceError(f"model {manifest['metadata']['name']}: {wanted.message}")
    return wanted.assigned.pipeline


def revision_of(manifest: Json | None, stored: Mapping[str, Json]) -> str:
    """Return the revision that follows from a model's manifest and the models that it may name, by name.

    It is empty without a revision, or if this version cannot read it.
    """
    try:
        return "" if manifest is None else stored_pipeline(manifest, stored).revision
    except InvalidResourceError:
        return ""


def check_kinds(resources: Iterable[ParsedResource]) -> None:
    """Raise `InvalidResourceError` for a resource that only the platform writes."""
    for written in resources:
        if written.resource.kind == ROLLOUT:
            raise InvalidResourceError(
                f"{written.source}: {written.title} is a record, which only the platform writes; "
                f"allowed: {MODEL}, {POOL}"
            )


def _files(path: Path, *, recursive: bool) -> list[Path]:
    """Return a file itself, and the resource files of a folder; those that begin with a dot are skipped."""
    if str(path) == STDIN or not path.is_dir():
        return [path]
    found = path.rglob("*") if recursive else path.iterdir()
    files = sorted(
        file
        for file in found
        if file.suffix in SUFFIXES
        and file.is_file()
        and not any(part[0] == "." for part in file.relative_to(path).parts)
    )
    if not files:
        hint = "" if recursive else "; --recursive includes its subfolders"
        raise ControlError(f"{path}: the folder has no *.yaml or *.yml{hint}")
    return files


def _read_text(text: str, source: str, folder: Path) -> list[ParsedResource]:
    from segserve_operator.api.loading import load_with_documents
    from segserve_operator.api.meta import SpecError

    try:
        loaded = load_with_documents(text, source)
    except SpecError as error:
        raise InvalidResourceError(str(error)) from error
    return [ParsedResource(resource, document.value, source, folder) for resource, document in loaded]


def _read_mapping(value: Mapping[str, Any]) -> ParsedResource:
    from segserve_operator.api.loading import parse
    from segserve_operator.api.meta import SpecError

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
