"""Folders of images as the command line reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from segserve.cli.failures import CommandError

if TYPE_CHECKING:
    from pathlib import Path

IMAGES: Final = frozenset({".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff"})


def images_in(folder: Path) -> list[Path]:
    """Return the images of a folder by name; raises `CommandError` where there are none, or no folder."""
    if not folder.is_dir():
        raise CommandError(f"{folder} is not a folder")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGES)
    if not found:
        raise CommandError(f"{folder} has no images; looked for *{', *'.join(sorted(IMAGES))}")
    return found
