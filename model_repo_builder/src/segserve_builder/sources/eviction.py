"""Eviction: keeps the artifact cache below a size by removing the least recently used objects that are not locked.

A process that needs an object holds a shared lock on it, which ends with the process however that ends. Eviction takes
only objects that are not locked and were not fetched a moment ago.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from segserve_builder.sources.cache import partial_path

JUST_FETCHED_S: Final = 600.0
"""How long an object stays after a fetch: the process that fetched it may not have locked it yet."""


@dataclass(slots=True)
class FileLocks:
    """The shared locks of this process on objects of a cache."""

    _held: dict[Path, int] = field(default_factory=dict)

    def keep(self, objects: Iterable[Path]) -> None:
        """Lock exactly these objects; one that does not exist now is locked at a later call."""
        paths = set(objects)
        for path in self._held.keys() - paths:
            os.close(self._held.pop(path))
        for path in paths - self._held.keys():
            with suppress(FileNotFoundError):
                self._held[path] = _locked(path, fcntl.LOCK_SH)

    def close(self) -> None:
        """Release all locks."""
        self.keep(())


def evict(cache: Path, max_bytes: int, *, now_s: float | None = None) -> list[Path]:
    """Remove the least recently used objects of `cache` until it has at most `max_bytes`; return their paths.

    Objects that are locked or were just fetched stay, so the cache can stay larger.
    """
    now_s = time.time() if now_s is None else now_s
    by_age = sorted((path.stat().st_mtime, path) for path in _objects(cache))
    sizes = {path: _size(path) for _, path in by_age}
    total = sum(sizes.values())
    evicted = []
    for used_s, path in by_age:
        if total <= max_bytes or now_s - used_s < JUST_FETCHED_S:
            break
        if _remove(path, partial_path(cache)):
            total -= sizes[path]
            evicted.append(path)
    return evicted


def _objects(cache: Path) -> Iterator[Path]:
    for kind in ("sha256", "folders"):
        with suppress(FileNotFoundError):
            yield from (cache / kind).iterdir()


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    return sum(file.stat().st_size for file in files)


def _remove(path: Path, trash: Path) -> bool:
    """Remove the object unless it is locked."""
    try:
        lock = _locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, FileNotFoundError):
        return False
    try:
        # One rename first, so that no process reads a partly removed folder under its digest.
        removed = trash / f"evicted-{path.name}-{os.getpid()}"
        path.rename(removed)
        shutil.rmtree(removed) if removed.is_dir() else removed.unlink()
    finally:
        os.close(lock)
    return True


def _locked(path: Path, kind: int) -> int:
    number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(number, kind)
    except OSError:
        os.close(number)
        raise
    return number
