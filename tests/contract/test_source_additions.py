"""A source of artifacts is added by one file and its line in the registry: cache, digests and archives follow."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from segserve_builder.errors import ArtifactMissingError, DigestMismatchError, UnknownNameError
from segserve_builder.sources import SOURCES, Access, fetch, fetch_folder, folder_digest
from segserve_builder.sources.base import Stream


@dataclass(frozen=True)
class MemoryStream:
    """The rest of a value from an offset on."""

    size: int
    start: int
    rest: io.BytesIO
    identity: str | None = None

    def read(self, size: int, /) -> bytes:
        return self.rest.read(size)


@dataclass(frozen=True)
class MemorySource:
    """Artifacts in a dictionary, by the path of their URI."""

    contents: dict[str, bytes] = field(default_factory=dict)

    @contextmanager
    def open(self, uri: str, access: Access, start: int = 0) -> Iterator[Stream]:
        content = self.contents.get(uri)
        if content is None:
            raise ArtifactMissingError(f"{uri} is not in memory")
        yield MemoryStream(len(content), start, io.BytesIO(content[start:]))

    def files(self, uri: str, access: Access) -> Iterator[str]:
        folder = uri.rstrip("/") + "/"
        yield from (name.removeprefix(folder) for name in self.contents if name.startswith(folder))


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    source = MemorySource()
    monkeypatch.setitem(SOURCES, "memory", source)
    return source.contents


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_a_file_of_an_added_source_is_fetched_verified_and_cached(memory: dict[str, bytes], tmp_path: Path) -> None:
    memory["memory:net.onnx"] = b"network"

    first = fetch("memory:net.onnx", digest(b"network"), tmp_path)
    memory.clear()

    assert first.read_bytes() == b"network"
    assert fetch("memory:net.onnx", digest(b"network"), tmp_path) == first


def test_an_added_source_is_held_to_digests_and_to_what_exists(memory: dict[str, bytes], tmp_path: Path) -> None:
    memory["memory:net.onnx"] = b"another network"

    with pytest.raises(DigestMismatchError):
        fetch("memory:net.onnx", digest(b"network"), tmp_path)
    with pytest.raises(ArtifactMissingError):
        fetch("memory:none.onnx", digest(b"network"), tmp_path)


def test_archives_and_folders_of_an_added_source_are_read(memory: dict[str, bytes], tmp_path: Path) -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        member = tarfile.TarInfo("net.onnx")
        member.size = len(b"network")
        tar.addfile(member, io.BytesIO(b"network"))
    memory["memory:nets.tar"] = archive.getvalue()
    memory["memory:set/golden.json"] = b"{}"
    expected = tmp_path / "expected"
    expected.mkdir()
    (expected / "golden.json").write_bytes(b"{}")

    packed = fetch("memory:nets.tar#net.onnx", digest(b"network"), tmp_path / "cache")
    folder = fetch_folder("memory:set", folder_digest(expected), tmp_path / "cache")

    assert packed.read_bytes() == b"network"
    assert [path.name for path in folder.iterdir()] == ["golden.json"]


def test_without_its_line_in_the_registry_a_scheme_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="'memory'"):
        fetch("memory:net.onnx", digest(b"network"), tmp_path)
