"""The JSON text of a COCO data set, kept on disk while its images are segmented: it may be larger than the memory."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO, Any, Final, Self

CHUNK: Final = 1 << 20


class CocoText:
    """The text that `json.dumps` makes of all data sets merged, with an indent of 2; see `segserve.exports.coco.merge`.

    Its files have no names, in `folder` or where temporary files are: nothing is left if the process is killed. They
    are made for the first image.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder if folder is not None and folder.is_dir() else None
        self._files: dict[str, IO[str]] = {}
        self._counts = {"images": 0, "annotations": 0}
        self._categories: dict[int, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            with suppress(OSError):  # the disk is full, and what wrote to it has said so
                file.close()

    def add(self, data_set: Mapping[str, Any]) -> None:
        """Append the data set of further images; its annotations are renumbered. Raises `OSError`."""
        self._categories |= {category["id"]: category for category in data_set["categories"]}
        if not self._files:
            unnamed = partial(tempfile.TemporaryFile, "w+", dir=self._folder)
            self._files = {name: unnamed() for name in self._counts}
        for name, file in self._files.items():
            for entry in data_set[name]:
                self._counts[name] += 1
                numbered = entry if name == "images" else entry | {"id": self._counts[name]}
                text = f"{',' if self._counts[name] > 1 else ''}\n{json.dumps(numbered, indent=2)}"
                file.write(text.replace("\n", "\n    "))

    def chunks(self) -> Iterator[str]:
        """Yield the text in parts."""
        yield '{\n  "images": '
        yield from self._list("images")
        categories = [self._categories[key] for key in sorted(self._categories)]
        yield ',\n  "categories": ' + json.dumps(categories, indent=2).replace("\n", "\n  ")
        yield ',\n  "annotations": '
        yield from self._list("annotations")
        yield "\n}\n"

    def _list(self, name: str) -> Iterator[str]:
        yield "["
        if name in self._files:
            self._files[name].seek(0)
            yield from iter(partial(self._files[name].read, CHUNK), "")
        yield "\n  ]" if self._counts[name] else "]"
