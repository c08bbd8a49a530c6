"""Keeps the artifact cache within a size: the longest unused goes first, and nothing that a process holds.

Who needs an object to stay holds a shared lock on it, which ends with the process whatever happens to it; who evicts
takes only what nobody holds and nobody fetched a moment ago.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from segserve_builder.sources.cache import partial_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

JUST_FETCHED_S: Final = 600.0
"""For so long after a fetch an object stays: whoever fetched it may not have taken hold of it yet."""


@dataclass(slots=True)
class Leases:
    """The objects of a cache that this process holds."""

    _held: dict[Path, int] = field(default_factory=dict)

    def keep(self, objects: Iterable[Path]) -> None:
        """Hold just these from now on; one that is not there (yet, or any more) is held at a later call."""
        wanted = set(objects)
        for path in self._held.keys() - wanted:
            os.close(self._held.pop(path))
        for path in wanted - self._held.keys():
            with suppress(FileNotFoundError):
                self._held[path] = _locked(path, fcntl.LOCK_SH)

    def close(self) -> None:
        """Hold nothing any more."""
        self.keep(())


def evict(cache: Path, max_bytes: int, *, now_s: float | None = None) -> list[Path]:
    """Remove objects of `cache`, the longest unused first, until it has at most `max_bytes`; return what went.

    What is held or was fetched a moment ago stays, so that more than `max_bytes` may stay too.
    """
    now_s = time.time() if now_s is None else now_s
    found = sorted((path.stat().st_mtime, path) for path in _objects(cache))
    sizes = {path: _size(path) for _, path in found}
    total = sum(sizes.values())
    gone = []
    for used_s, path in found:
        if total <= max_bytes or now_s - used_s < JUST_FETCHED_S:
            break
        if _remove(path, partial_path(cache)):
            total -= sizes[path]
            gone.append(path)
    return gone


def _objects(cache: Path) -> Iterator[Path]:
    for kind in ("sha256", "folders"):
        with suppress(FileNotFoundError):
            yield from (cache / kind).iterdir()


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    return sum(file.stat().st_size for file in files)


def _remove(path: Path, graveyard: Path) -> bool:
    """Take the object away, unless somebody holds it."""
    try:
        lock = _locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, FileNotFoundError):
        return False
    try:
        # By one rename, so that no process ever meets half of a folder under its digest.
        dead = graveyard / f"evicted-{path.name}-{os.getpid()}"
        path.rename(dead)
        shutil.rmtree(dead) if dead.is_dir() else dead.unlink()
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
