"""The sheet of a rollout's Shadow in its bundle: figures, and the images where somebody asks for them.

Both are fetched by whoever asks, with his own rights: a bundle that is stored on the platform has neither.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from segserve.cli.errors import CommandError
from segserve.cli.rollout.sheet import fetch_sheet, write_sheet
from segserve.platforms.errors import ControlError
from segserve.platforms.port import Platform
from segserve_builder.comparator.sheet import Sheet
from segserve_operator.adapters.bundles.archive import packed, unpacked

FIGURES: Final = "sheet.json"
FOLDER: Final = "sheet"
_TENSORS: Final = {"pairs": {"__all__": {"image", "stable", "candidate"}}}


def with_sheet(platform: Platform, rollout: str, content: bytes, *, with_images: bool) -> tuple[bytes, str]:
    """Return a bundle with what is known of its sheet, and a line about it.

    `sheet.json` has the figures; with images, the folder `sheet` has what `segserve rollout sheet` writes. Raises
    `CommandError` if there are no images where some were asked for.
    """
    try:
        files, said = _of_sheet(platform, rollout, with_images=with_images)
    except (ControlError, CommandError) as error:
        if with_images:
            raise CommandError(f"no images for the bundle of {rollout}: {error}") from error
        return content, f"without a sheet: {error}"
    return packed({**unpacked(content), **files}), said


def _of_sheet(platform: Platform, rollout: str, *, with_images: bool) -> tuple[Mapping[str, bytes], str]:
    record = platform.rollout(rollout)
    model = str(((record or {}).get("spec") or {}).get("model", ""))
    latest = (((platform.model(model).get("status") or {}).get("rollout")) or {}) if model else {}
    if latest.get("name") != rollout:
        raise CommandError("only the latest rollout of a model has one")
    sheet, classes = fetch_sheet(platform, model)
    files = {FIGURES: _figures(sheet)}
    if with_images:
        with TemporaryDirectory() as name:
            write_sheet(sheet, classes, Path(name))
            files |= {f"{FOLDER}/{path.name}": path.read_bytes() for path in sorted(Path(name).iterdir())}
    with_what = f", with images in {FOLDER}/" if with_images else ", without images: --with-images adds them"
    return files, f"{FIGURES}: figures of {len(sheet.pairs)} of {sheet.compared:,} pairs{with_what}"


def _figures(sheet: Sheet) -> bytes:
    return (json.dumps(sheet.model_dump(mode="json", exclude=_TENSORS), indent=2) + "\n").encode()
