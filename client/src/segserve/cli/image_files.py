"""Image files named on the command line: files, globs, folders, standard input."""

from __future__ import annotations

import glob
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Final

from segserve.cli.errors import CommandError
from segserve_common.errors import BadRequestError

IMAGES: Final = frozenset({".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff"})


def images_in(folder: Path) -> list[Path]:
    """Return the images in a folder, sorted by name; raises `CommandError` if there are none, or no folder."""
    if not folder.is_dir():
        raise CommandError(f"{folder} is not a folder")
    images = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGES)
    if not images:
        raise CommandError(f"{folder} has no images; looked for *{', *'.join(sorted(IMAGES))}")
    return images


STDIN: Final = "-"
STEM: Final = "{stem}"


@dataclass(frozen=True, slots=True)
class ImageFile:
    """One image, standard input if `path` is None. `within` is its path relative to the folder named on the command
    line.
    """

    path: Path | None
    within: PurePath

    @property
    def name(self) -> str:
        """Its name in tables and in COCO."""
        return self.within.as_posix()

    def __str__(self) -> str:
        return self.name if self.path is None else str(self.path)

    def read(self) -> bytes:
        """Return the content; raises `BadRequestError` if it cannot be read."""
        if self.path is None:
            return sys.stdin.buffer.read()
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise BadRequestError(f"cannot read image {str(self.path)!r}: {error.strerror}") from error


def image_files(named: Iterable[str], *, recursive: bool) -> list[ImageFile]:
    """Return each image once: `-` for standard input, files, globs that the shell did not expand, content of folders.

    Raises `CommandError` for a glob or folder without images. A missing file is reported when it is read, so that the
    others are processed.
    """
    files: dict[Path | None, ImageFile] = {}
    for text in named:
        for image in _named(text, recursive=recursive):
            files.setdefault(None if image.path is None else image.path.resolve(), image)
    return list(files.values())


def _named(text: str, *, recursive: bool) -> Iterator[ImageFile]:
    path = Path(text)
    if text == STDIN:
        yield ImageFile(None, PurePath("stdin"))
    elif path.is_dir():
        yield from _within(path, recursive=recursive)
    elif glob.has_magic(text) and not path.exists():
        matches = map(Path, glob.glob(text, recursive=True))  # noqa: PTH207  Path.glob takes no absolute pattern
        matching = sorted(match for match in matches if match.is_file())
        if not matching:
            raise CommandError(f"no file matches {text!r}")
        yield from (ImageFile(match, PurePath(match.name)) for match in matching)
    else:
        yield ImageFile(path, PurePath(path.name))


def _within(folder: Path, *, recursive: bool) -> Iterator[ImageFile]:
    paths = sorted(folder.rglob("*") if recursive else folder.iterdir())
    images = [path for path in paths if path.suffix.lower() in IMAGES and path.is_file()]
    if not images:
        deeper = "" if recursive else "; use --recursive for subfolders"
        raise CommandError(f"{folder} has no images; looked for *{', *'.join(sorted(IMAGES))}{deeper}")
    yield from (ImageFile(path, path.relative_to(folder)) for path in images)


def overlay_paths(images: list[ImageFile], output: Path | None) -> dict[ImageFile, Path]:
    """Return the path of each image's overlay; {} without `output`. The structure of folders is kept.

    Raises `BadRequestError` if two overlays would share a file, or one would overwrite an image.
    """
    if output is None:
        return {}
    if STEM in output.name:
        targets = {
            image: output.parent / image.within.with_name(output.name.replace(STEM, image.within.stem))
            for image in images
        }
    elif output.is_dir() or not output.suffix:
        targets = {image: output / image.within.with_suffix(".png") for image in images}
    else:
        targets = dict.fromkeys(images, output)
    if len(set(targets.values())) < len(targets):
        raise BadRequestError(
            f"{len(images)} overlays need different files, got {str(output)!r}; "
            f"use a folder, or a path with {STEM}, and images with different names"
        )
    replaced = {target.resolve() for target in targets.values()} & {
        image.path.resolve() for image in images if image.path is not None
    }
    if replaced:
        raise BadRequestError(f"an overlay would overwrite the image {str(min(replaced))!r}")
    return targets
