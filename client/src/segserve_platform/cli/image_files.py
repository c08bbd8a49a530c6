"""Image files named on the command line (files, globs, folders, standard input), and the files written for each."""

from __future__ import annotations

import glob
import io
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Final

from segserve_common.errors import BadRequestError
from segserve_common.image_file import (
    IMAGE_SUFFIXES,
    PNG_SIGNATURE,
    TIFF_SIGNATURES,
    ImageFileError,
    describe,
    describe_file,
    frame_count,
    is_named_as,
)
from segserve_platform.cli.errors import CommandError

if TYPE_CHECKING:
    from PIL import Image

    from segserve.results.values import ModelInfo


def images_in(folder: Path) -> list[Path]:
    """Return the images in a folder, sorted by name; raises `CommandError` without images, or without a folder."""
    if not folder.is_dir():
        raise CommandError(f"{folder} is not a folder")
    images = sorted(path for path in folder.iterdir() if is_named_as(path))
    if not images:
        raise CommandError(f"{folder} has no images; looked for *{', *'.join(sorted(IMAGE_SUFFIXES))}")
    return images


STDIN: Final = "-"
STEM: Final = "{stem}"
OF_PILLOW: Final = frozenset(
    {".apng", ".avif", ".bmp", ".dib", ".gif", ".ico", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe", ".jpf", ".jpx"}
    | {".pbm", ".pcx", ".pgm", ".pnm", ".ppm", ".qoi", ".tga"}
)
"""Suffixes of further images in folders, which Pillow decodes here; files that are named may have any suffix."""
SERVER_DECODES: Final = (b"\xff\xd8\xff", PNG_SIGNATURE, b"RIFF", *TIFF_SIGNATURES)
RUN_PROGRAMS: Final = frozenset({"EPS"})
"""Formats that Pillow has Ghostscript decode; an image must not be able to start one."""


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

    def read(self) -> ImageContent:
        """Return the content; raises `BadRequestError` if it cannot be read."""
        if self.path is None:
            return image_content(sys.stdin.buffer.read())
        try:
            return image_content(self.path.read_bytes())
        except OSError as error:
            raise BadRequestError(f"cannot read image {str(self.path)!r}: {error.strerror}") from error


@dataclass(frozen=True, slots=True)
class ImageContent:
    """An image as it is sent: the bytes of a file that servers decode, or pixels that Pillow decodes here.

    Of `frames` (of an animation) or pages (of a TIFF) only the first is sent. `gaps` says what marks pixels of a
    GeoTIFF as without data.
    """

    image: bytes | Image.Image
    frames: int = 1
    gaps: str = ""

    def notes(self, image: ImageFile, info: Callable[[], ModelInfo], *, in_tiles: bool) -> list[str]:
        """Return what of an image is not in the answer of the model with this info, or spoils it."""
        notes = []
        if self.frames > 1:
            notes.append(f"only the first of the {self.frames} frames or pages of {image} was segmented")
        if self.gaps and not in_tiles:
            notes.append(
                f"pixels of {image} without data ({self.gaps}) are segmented and counted as others are; "
                "`segserve batch` leaves them out"
            )
        content = image.path or self.image
        return notes + (dark_notes(content, image, info) if isinstance(content, Path | bytes) else [])


def dark_notes(image: Path | bytes, name: object, info: Callable[[], ModelInfo]) -> list[str]:
    """Return a note if a file of 16 bits uses a small part of them, and the model has no window of values."""
    with suppress(ImageFileError, OSError):  # of an array
        if (describe(image) if isinstance(image, bytes) else describe_file(image)).bits != 16:
            return []
    from segserve.tiled.segmenting import little_used_range

    largest = little_used_range(image)
    if largest is None or ((pixels := info().pixels) is not None and pixels.window is not None):
        return []
    return [
        f"the values of {name} go up to {largest} of 65535, which is nearly black; set `window: [0, {largest}]` of the "
        "model's stage decode, or scale them first (12 bits: times 16)"
    ]


def image_content(data: bytes) -> ImageContent:
    """Return the content of a file; formats unknown to Pillow are left to the server, which says what it takes.

    Raises `BadRequestError` for a damaged file of a format that Pillow decodes here.
    """
    from PIL import Image

    try:
        return ImageContent(data, frame_count(data), describe(data).gaps)
    except ImageFileError:
        if data.startswith(SERVER_DECODES):
            return ImageContent(data)
    try:
        opened = Image.open(io.BytesIO(data))
        if opened.format in RUN_PROGRAMS:
            return ImageContent(data)
        frames = getattr(opened, "n_frames", 1)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return ImageContent(data)
    try:
        opened.load()
    except (OSError, ValueError, SyntaxError) as error:
        raise BadRequestError(f"the {opened.format} image is damaged or cut short: {error}") from error
    return ImageContent(opened, frames)


@dataclass(slots=True)
class Selection:
    """The images that a command line names, each once, and the files in its folders that are left out."""

    images: list[ImageFile] = field(default_factory=list)
    skipped: list[Path] = field(default_factory=list)


def image_files(named: Iterable[str], *, recursive: bool) -> Selection:
    """Return the images: `-` for standard input, files, globs that the shell did not expand, content of folders.

    Images of the same name get more of their paths, `x/a.png` and `y/a.png`. Raises `CommandError` for a glob or folder
    without images. A missing file is reported when it is read, so that the others are processed.
    """
    files: dict[Path | None, ImageFile] = {}
    skipped: dict[Path, None] = {}
    for text in named:
        selection = _named(text, recursive=recursive)
        skipped |= dict.fromkeys(selection.skipped)
        for image in selection.images:
            files.setdefault(None if image.path is None else image.path.resolve(), image)
    return Selection(_distinguished(list(files.values())), [path for path in skipped if path.resolve() not in files])


def _named(text: str, *, recursive: bool) -> Selection:
    path = Path(text)
    if text == STDIN:
        return Selection([ImageFile(None, PurePath("stdin"))])
    if path.is_dir():
        return _within(path, recursive=recursive)
    if glob.has_magic(text) and not path.exists():
        matches = map(Path, glob.glob(text, recursive=True))  # noqa: PTH207  Path.glob takes no absolute pattern
        matching = sorted(match for match in matches if match.is_file())
        if not matching:
            raise CommandError(f"no file matches {text!r}")
        return Selection([ImageFile(match, PurePath(match.name)) for match in matching])
    return Selection([ImageFile(path, PurePath(path.name))])


def _within(folder: Path, *, recursive: bool) -> Selection:
    paths = sorted(path for path in (folder.rglob("*") if recursive else folder.iterdir()) if path.is_file())
    suffixes = IMAGE_SUFFIXES | OF_PILLOW
    images = [path for path in paths if is_named_as(path, suffixes)]
    if not images:
        deeper = "" if recursive else "; use --recursive for subfolders"
        raise CommandError(f"{folder} has no images; looked for *{', *'.join(sorted(suffixes))}{deeper}")
    skipped = [path for path in paths if path.suffix.lower() not in suffixes and not path.name.startswith(".")]
    return Selection([ImageFile(path, path.relative_to(folder)) for path in images], skipped)


def _distinguished(images: list[ImageFile]) -> list[ImageFile]:
    """Return the images with different names."""
    shared = _shared(image.within for image in images)
    changed = images
    for chosen in (shared, {image.within for image in images}):
        if not _shared(image.within for image in changed):
            break
        paths = [image.path.absolute() for image in images if image.path is not None and image.within in chosen]
        above = os.path.commonpath([path.parent for path in paths])
        changed = [
            replace(image, within=PurePath(os.path.relpath(image.path.absolute(), above)))
            if image.path is not None and image.within in chosen
            else image
            for image in images
        ]
    return changed


def _shared(names: Iterable[PurePath]) -> set[PurePath]:
    return {name for name, count in Counter(names).items() if count > 1}


def output_stems(images: Sequence[ImageFile]) -> dict[ImageFile, PurePath]:
    """Return the path of each image's output without its suffix: `plain`, or `plain.tif` beside a `plain.webp`.

    The structure of folders is kept. Raises `BadRequestError` if two outputs would still share a path.
    """
    shared = _shared(image.within.with_suffix("") for image in images)
    stems = {
        image: image.within if image.within.with_suffix("") in shared else image.within.with_suffix("")
        for image in images
    }
    if twice := _shared(stems.values()):
        first, second, *_ = (str(image) for image, stem in stems.items() if stem in twice)
        raise BadRequestError(f"the outputs of {first!r} and {second!r} would share a file; rename one of them")
    return stems


def overlay_paths(images: list[ImageFile], output: Path | None) -> dict[ImageFile, Path]:
    """Return the path of each image's overlay; {} without `output`.

    Raises `BadRequestError` if two overlays would share a file, or one would overwrite an image.
    """
    if output is None:
        return {}
    if STEM in output.name:
        targets = {
            image: output.parent / stem.with_name(output.name.replace(STEM, stem.name))
            for image, stem in output_stems(images).items()
        }
    elif output.is_dir() or not output.suffix:
        targets = {image: output / stem.with_name(f"{stem.name}.png") for image, stem in output_stems(images).items()}
    elif len(images) > 1:
        raise BadRequestError(
            f"{len(images)} overlays need different files, got {str(output)!r}; use a folder, or a path with {STEM}"
        )
    else:
        targets = dict.fromkeys(images, output)
    replaced = {target.resolve() for target in targets.values()} & {
        image.path.resolve() for image in images if image.path is not None
    }
    if replaced:
        raise BadRequestError(f"an overlay would overwrite the image {str(min(replaced))!r}")
    return targets
