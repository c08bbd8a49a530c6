"""Files of results: written complete or not at all, also if the disk is full or the command is killed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from segserve_common.files import replacing

if TYPE_CHECKING:
    from PIL import Image


@contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """Yield a path to write to; at the end of the block its content replaces `target`. Missing folders are created.

    Devices and pipes such as /dev/stdout are written directly. Raises `OSError`, and leaves `target` as it was.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists() and not target.is_file():
        yield target
        return
    with replacing(target.resolve()) as temporary:
        yield temporary


def save_image(image: Image.Image, target: Path) -> None:
    """Write an image in the format of the target's suffix; raises `OSError`, and `ValueError` for an unknown suffix."""
    from PIL import Image

    form = Image.registered_extensions().get(target.suffix.lower())
    if form is None:
        raise ValueError(f"unknown file extension: {target.suffix}")
    # Photographs are hardly smaller at zlib's default level, which takes longer than drawing on them.
    level = {"compress_level": 1} if form == "PNG" and image.mode == "RGB" else {}
    with written_whole(target) as path:
        image.save(path, format=form, **level)
