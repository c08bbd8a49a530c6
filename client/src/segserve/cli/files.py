"""Files as the command line reads them: images of a folder, resources whose relative addresses become absolute."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from segserve.cli.failures import CommandError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from segserve_operator.api.resources import Resource


STDIN: Final = "-"
IMAGES: Final = frozenset({".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff"})


def images_in(folder: Path) -> list[Path]:
    """Return the images of a folder by name; raises `CommandError` where there are none, or no folder."""
    if not folder.is_dir():
        raise CommandError(f"{folder} is not a folder")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGES)
    if not found:
        raise CommandError(f"{folder} has no images; looked for *{', *'.join(sorted(IMAGES))}")
    return found


def read_resources(paths: Iterable[Path]) -> list[tuple[Resource, dict[str, Any]]]:
    """Return each resource with the manifest to store: defaults filled in, addresses independent of this folder."""
    from segserve_operator.api.loading import load

    found = []
    for path in paths:
        for resource in load(_text(path), str(path)):
            manifest = resource.to_dict()
            manifest.pop("status", None)
            manifest["metadata"] = {key: value for key, value in manifest["metadata"].items() if value}
            second = manifest["spec"].get("instances") or {}
            for named in (manifest["spec"].get("artifact"), manifest["spec"].get("golden"), second.get("artifact")):
                _make_absolute(named, path.parent)
            found.append((resource, manifest))
    return found


def read_written(paths: Iterable[Path]) -> list[tuple[dict[str, Any], Path]]:
    """Return each resource as its file has it, for a platform that fills in defaults and addresses itself.

    All of it is checked here too, where a mistake still has a line.
    """
    from segserve_operator.api.documents import read_documents
    from segserve_operator.api.loading import load

    found = []
    for path in paths:
        text = _text(path)
        load(text, str(path))
        found += [(document.value, path) for document in read_documents(text, str(path))]
    return found


def _text(path: Path) -> str:
    try:
        return sys.stdin.read() if str(path) == STDIN else path.read_text()
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CommandError(f"{path}: a resource file is UTF-8 text; byte {error.start} is not") from error


def _make_absolute(named: dict[str, Any] | None, folder: Path) -> None:
    if named is not None and not urlsplit(named["uri"]).scheme:
        named["uri"] = (folder / named["uri"]).resolve().as_uri()
