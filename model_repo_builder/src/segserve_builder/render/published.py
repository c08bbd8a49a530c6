"""Steps in a repository, held to what was verified when Triton loads them."""

from __future__ import annotations

import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from segserve_builder import sources
from segserve_builder.errors import FilesChangedError
from segserve_builder.render.repository import publish, remove
from segserve_builder.render.tree import Files
from segserve_builder.sources.cache import is_file_of

_Identity: TypeAlias = tuple[int, int, int, int]
"""Mode, inode, size and time of change of a file: no program can set the last."""


@dataclass(slots=True)
class PublishedSteps:
    """The steps that this process published into a repository, or found there.

    Others may write there, Triton's user among them, and a step that was there is taken by the sizes of its files. So
    all bytes of a step are compared at its first load in this process, and later the bytes of changed files.
    """

    root: Path
    _files: dict[str, Files] = field(default_factory=dict)
    _compared: dict[str, Mapping[str, _Identity]] = field(default_factory=dict)

    def publish(self, name: str, files: Files) -> None:
        """Publish a step; raises as `repository.publish` does."""
        publish(files, self.root / name)
        self._files[name] = files

    def remove(self, name: str) -> None:
        """Take a step, or another model, out of the repository; raises `PublishError`."""
        self._files.pop(name, None)
        self._compared.pop(name, None)
        remove(self.root / name)

    @contextmanager
    def verified(self, name: str) -> Iterator[None]:
        """Hold a step to what was published, before and after Triton loads it within the context.

        Raises `FilesChangedError` if it is something else. Then it is taken out of the repository, and its artifact in
        the cache is hashed again at its next use.
        """
        files, folder = self._files.get(name, {}), self.root / name
        before, compared = _identities(folder), self._compared.get(name, {})
        changed = sorted(before.keys() ^ files.keys())
        changed += [
            relative
            for relative, identity in before.items()
            if relative in files and compared.get(relative) != identity and not _is(folder / relative, files[relative])
        ]
        if not changed:
            yield
            after = _identities(folder)
            changed = sorted(relative for relative, _ in before.items() ^ after.items())
        if changed:
            for content in files.values():
                if isinstance(content, Path):
                    sources.distrust(content)
            self.remove(name)
            raise FilesChangedError(name, dict.fromkeys(changed))
        self._compared[name] = before

    def touched(self, name: str) -> None:
        """Count a step as compared although this process has just set the times of its files."""
        if name in self._compared:
            self._compared[name] = _identities(self.root / name)


def _identities(folder: Path) -> dict[str, _Identity]:
    found = {path: path.lstat() for path in folder.rglob("*")}
    return {
        path.relative_to(folder).as_posix(): (each.st_mode, each.st_ino, each.st_size, each.st_ctime_ns)
        for path, each in found.items()
        if not stat.S_ISDIR(each.st_mode)
    }


def _is(path: Path, content: bytes | Path) -> bool:
    """Return whether a regular file has this content; if the content is a path, its name is the digest."""
    if path.is_symlink() or not path.is_file():
        return False
    return path.read_bytes() == content if isinstance(content, bytes) else is_file_of(path, content.name)
