"""A pinned folder over HTTP: a list beside it, which its digest is the digest of, and then what the list names."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fakes.artifact_server import ArtifactServer, artifact_server
from segserve_builder.errors import (
    ArtifactMissingError,
    ArtifactTooLargeError,
    BuilderError,
    DigestMismatchError,
    UnsafeArtifactError,
)
from segserve_builder.sources import fetch_folder, folder_digest
from segserve_builder.sources.access import LOCAL, Access

FILES = {"golden.json": b"{}", "images/a photo.png": b"pixels", "images/ä+%.png": b"more pixels"}


def within(max_bytes: int) -> Access:
    return LOCAL.model_copy(update={"max_bytes": max_bytes})


@dataclass(frozen=True)
class Served:
    """The folder `golden` of a server, and a cache."""

    server: ArtifactServer
    cache: Path

    @property
    def folder(self) -> Path:
        return self.server.folder / "golden"

    @property
    def uri(self) -> str:
        return f"{self.server.url}/golden"

    def list_it(self, text: str) -> str:
        """Write the list beside the folder, and return the folder's digest by it."""
        (self.server.folder / "golden.sha256").write_text(text)
        return hashlib.sha256(text.encode()).hexdigest()

    def refuse(self, digest: str, error: type[BuilderError], seen: str, max_bytes: int = 1000) -> None:
        with pytest.raises(error, match=seen):
            fetch_folder(self.uri, digest, self.cache, within(max_bytes))
        assert [path for path in self.cache.rglob("*") if path.is_file()] == []


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    for name, content in FILES.items():
        path = tmp_path / "served/golden" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    with artifact_server("127.0.0.1", tmp_path / "served") as server:
        yield Served(server, tmp_path / "cache")


def listed(files: dict[str, bytes]) -> str:
    lines = (f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in sorted(files.items()))
    return "".join(lines)


@pytest.mark.parametrize("end", ["", "/"])
def test_the_list_of_a_folder_is_what_its_digest_digests(served: Served, end: str) -> None:
    digest = served.list_it(listed(FILES))
    assert digest == folder_digest(served.folder)

    found = fetch_folder(served.uri + end, digest, served.cache, LOCAL)

    assert folder_digest(found) == digest
    assert {name: (found / name).read_bytes() for name in FILES} == FILES


def test_a_folder_that_is_there_is_not_asked_for_again(served: Served) -> None:
    digest = served.list_it(listed(FILES))
    fetch_folder(served.uri, digest, served.cache, LOCAL)
    with served.server.failing():
        assert fetch_folder(served.uri, digest, served.cache, LOCAL).is_dir()


def test_a_list_of_another_digest_is_refused(served: Served) -> None:
    served.list_it(listed(FILES))
    served.refuse("0" * 64, DigestMismatchError, "golden.sha256")


def test_a_file_that_is_not_the_listed_one_is_refused(served: Served) -> None:
    digest = served.list_it(listed(FILES | {"images/a photo.png": b"others"}))
    served.refuse(digest, DigestMismatchError, "a%20photo.png")


def test_a_listed_file_or_a_list_that_is_missing_is_named(served: Served) -> None:
    served.refuse("0" * 64, ArtifactMissingError, "golden.sha256.*404")
    digest = served.list_it(listed(FILES | {"late.png": b"late"}))
    served.refuse(digest, ArtifactMissingError, "late.png.*404")


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "images/../../x", ""])
def test_a_list_that_reaches_out_of_its_folder_is_refused(served: Served, name: str) -> None:
    digest = served.list_it(listed(FILES) + f"{'0' * 64}  {name}\n")
    served.refuse(digest, UnsafeArtifactError, "below itself")


def test_a_folder_larger_than_allowed_is_refused(served: Served) -> None:
    digest = served.list_it(listed(FILES))
    served.refuse(digest, ArtifactTooLargeError, "allowed", max_bytes=10)
