"""TensorRT engines that outlive a server: the artifact cache has an archive for each network, kind of GPU and driver.

ONNX Runtime writes engines in place, and loads no network whose engine it cannot read. So a server builds in a folder
of its own, and only agents read and write the cache.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from zipfile import ZIP_STORED, ZipFile

from segserve_builder.sources.cache import engines_path, touch
from segserve_builder.steps.engine_cache import built_for
from segserve_common.files import replacing

_SUFFIXES: Final = frozenset({".engine", ".profile", ".timing"})
"""Files that ONNX Runtime writes. Others, which Triton's user may link to anything, are not read."""
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EngineCache:
    """The engines of a server, in `folder`; without `gpus`, as they are listed, none are kept. A failure costs a build.

    By step, `names` has the folder in `folder`, and `archives` the path in the cache, whether it exists or not.
    """

    cache: Path
    folder: Path
    gpus: Callable[[], tuple[str, ...]]
    names: dict[str, str] = field(default_factory=dict)
    archives: dict[str, Path] = field(default_factory=dict)

    def restore(self, step: str) -> None:
        """Make a step's folder what the cache has, before its load: a server that ended may leave half an engine."""
        if step not in self.names:
            return
        folder, fresh = self.folder / self.names[step], self.folder / f".{step}"
        if gpus := self.gpus():
            self.archives[step] = engines_path(self.cache, built_for(self.names[step], gpus))
        archive = self.archives.get(step)
        try:
            _clear(fresh)
            if archive is not None and archive.exists():
                with ZipFile(touch(archive)) as kept:
                    kept.extractall(fresh)
        except Exception as error:  # zipfile's errors have no common base class
            _LOG.warning("%s: its engines are built again, as the kept ones cannot be read: %s", step, error)
            if not isinstance(error, OSError):
                self.discard(step)
            with suppress(OSError):
                _clear(fresh)
        with suppress(OSError):  # the server may load another step of the same engines: it reads whole files
            shutil.rmtree(folder, ignore_errors=True)
            fresh.rename(folder)

    def keep(self, steps: Iterable[str]) -> None:
        """Keep the engines of steps, which have passed a proof, unless the cache has some."""
        for step in self.names.keys() & set(steps):
            self._keep(step)

    def _keep(self, step: str) -> None:
        archive, folder = self.archives.get(step), self.folder / self.names[step]
        try:
            if archive is None or archive.exists() or not any(folder.glob("*.engine")):
                return
            archive.parent.mkdir(parents=True, exist_ok=True)
            with replacing(archive) as partial, ZipFile(partial, "w", ZIP_STORED) as target:
                for path in (each for each in folder.iterdir() if each.suffix in _SUFFIXES):
                    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
                    with os.fdopen(handle, "rb") as source, target.open(path.name, "w", force_zip64=True) as copy:
                        shutil.copyfileobj(source, copy)
        except OSError as error:
            _LOG.warning("%s: its engines are not kept, and the next server builds them again: %s", step, error)

    def discard(self, step: str) -> None:
        """Remove what is kept of a step that did not load: the reason may be in an engine."""
        with suppress(OSError, KeyError):
            self.archives[step].unlink()

    def forget(self, step: str) -> None:
        """Let what is kept of a step that is removed be evicted."""
        self.names.pop(step, None)
        self.archives.pop(step, None)


def _clear(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o775)  # the server is another user of the agent's group
