"""Slices of a data set: groups of images, such as those taken at night, by a file that names them or by folder."""

from __future__ import annotations

import csv
import io
import json
import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any, Final

from segserve.errors import DatasetError
from segserve_platform.evaluation.datasets import Dataset, few

BY_FOLDER: Final = "folder"
MAX_SLICES: Final = 100


def slices_of(dataset: Dataset, by: str | os.PathLike[str] | Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    """Return the places of the images of each slice, by its name.

    `by` is `folder`, a CSV file with the columns image and slice, a JSON file with the slice of each image, or the same
    as a mapping. Images are named as in the data set, or by their files. An image without a slice is in none. Raises
    `DatasetError` for a file that is neither, for names of no image, and for one slice or more than `MAX_SLICES`.
    """
    if by == BY_FOLDER:
        what = "the folders of images"
        named = _folders(dataset)
    else:
        what = "the mapping of slices" if isinstance(by, Mapping) else repr(os.fspath(by))
        own = by if isinstance(by, Mapping) else _read(Path(by))
        named = [own.get(image.name) or own.get(image.path.name) or "" for image in dataset.images]
        if not any(named):
            raise DatasetError(
                f"{what} has no image of the data set: it has {few(map(repr, own)) or 'none'}; the data set "
                f"{few(repr(image.name) for image in dataset.images)}"
            )
    places = defaultdict[str, list[int]](list)
    for place, name in enumerate(named):
        if name:
            places[name].append(place)
    if not 2 <= len(places) <= MAX_SLICES:
        raise DatasetError(f"{what} must make 2 to {MAX_SLICES} slices, got {len(places)}: {few(places)}")
    return {name: tuple(own) for name, own in sorted(places.items())}


def _folders(dataset: Dataset) -> list[str]:
    parents = [image.path.resolve().parent for image in dataset.images]
    root = os.path.commonpath(parents)
    return [PurePath(root).name if str(parent) == root else parent.relative_to(root).as_posix() for parent in parents]


def _read(path: Path) -> dict[str, str]:
    form = path.suffix.lower()
    if form not in (".csv", ".json"):
        raise DatasetError(f"slices must be {BY_FOLDER!r}, or a CSV or JSON file that names them, got {str(path)!r}")
    try:
        text = path.read_text(encoding="utf-8-sig")
        if form == ".json":
            document = json.loads(text)
            if not isinstance(document, dict):
                raise DatasetError(
                    f"{str(path)!r} must have the slice of each image in an object, got {document!r:.80}"
                )
            return _checked(path, list(document.items()))
        reader = csv.DictReader(io.StringIO(text, newline=""))
        columns = reader.fieldnames or ()
        if not {"image", "slice"} <= {*columns}:
            raise DatasetError(f"{str(path)!r} must have the columns image and slice, got {few(columns, 20)}")
        return _checked(path, [(row["image"], row["slice"]) for row in reader])
    except OSError as error:
        raise DatasetError(f"slices {str(path)!r} cannot be read: {error.strerror}") from error
    except (ValueError, csv.Error, RecursionError) as error:
        raise DatasetError(f"slices {str(path)!r} cannot be read: {error}") from error


def _checked(path: Path, rows: list[tuple[Any, Any]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for image, name in rows:
        if not isinstance(name, str | int | float | None):
            raise DatasetError(f"{str(path)!r}: the slice of {image!r} must be a text, got {name!r:.80}")
        text = "" if name is None else str(name).strip()
        if found.setdefault(str(image).strip(), text) != text:
            raise DatasetError(f"{str(path)!r} has the slices {found[str(image).strip()]!r} and {text!r} of {image!r}")
    return found
