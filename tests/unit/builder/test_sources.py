"""Fetching artifacts into the cache: verified, whole, by any number of processes."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from segserve_builder.errors import (
    ArtifactMissingError,
    ArtifactTooLargeError,
    DigestMismatchError,
    PublishError,
    RelativeUriError,
    SourceDeniedError,
    UnknownNameError,
    UnsafeArtifactError,
)
from segserve_builder.sources import Access, fetch, fetch_folder, folder_digest, resolved
from segserve_builder.sources import cache as cache_module
from segserve_builder.sources.cache import VerifiedObjects

CONTENT = random.Random(0).randbytes(3 * 1024 * 1024) + b"end"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    path = tmp_path / "with space%.onnx"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("form", [str, Path.as_uri], ids=["path", "file URI"])
def test_a_fetched_file_has_its_digest_as_its_name_and_is_read_only(artifact: Path, cache: Path, form) -> None:
    path = fetch(form(artifact), SHA256, cache)

    assert path == cache / "sha256" / SHA256
    assert path.read_bytes() == CONTENT
    assert path.stat().st_mode & 0o777 == 0o444
    assert files_in(cache) == [f"sha256/{SHA256}"]


def test_a_cached_digest_needs_its_source_no_more(artifact: Path, cache: Path) -> None:
    fetch(str(artifact), SHA256, cache)
    artifact.unlink()

    assert fetch(str(artifact), SHA256, cache).read_bytes() == CONTENT


def test_other_bytes_than_the_digest_names_leave_nothing_behind(artifact: Path, cache: Path) -> None:
    artifact.write_bytes(CONTENT[:-3] + b"END")

    with pytest.raises(DigestMismatchError, match=SHA256):
        fetch(str(artifact), SHA256, cache)

    assert files_in(cache) == []


@pytest.mark.parametrize(
    ("uri", "seen"),
    [
        pytest.param("/nowhere/model.onnx", "nothing", id="missing"),
        pytest.param("/tmp", "folder", id="folder"),
        pytest.param("/dev/null", "special file", id="device"),
        pytest.param("model.onnx", "relative", id="relative"),
        pytest.param("file://elsewhere/model.onnx", "'elsewhere'", id="other host"),
    ],
)
def test_what_is_no_regular_file_of_this_machine_is_missing(cache: Path, uri: str, seen: str) -> None:
    with pytest.raises(ArtifactMissingError, match=seen):
        fetch(uri, SHA256, cache)


def test_an_unknown_scheme_is_named_with_the_known_ones(cache: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"'gopher'; known: .*file, .*http, https"):
        fetch("gopher://x/y", SHA256, cache)


def test_a_file_above_the_limit_is_refused_and_removed(artifact: Path, cache: Path) -> None:
    with pytest.raises(ArtifactTooLargeError, match="1000 bytes"):
        fetch(str(artifact), SHA256, cache, Access(max_bytes=1000))

    assert files_in(cache) == []


def test_a_full_disk_is_a_publish_error_and_leaves_nothing(
    artifact: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache_module.os, "fsync", full)

    with pytest.raises(PublishError, match="No space left on device ENOSPC"):
        fetch(str(artifact), SHA256, cache)

    assert files_in(cache) == []


def test_concurrent_fetches_of_one_artifact_all_get_it(artifact: Path, cache: Path) -> None:
    barrier = threading.Barrier(8)

    def one(_: int) -> bytes:
        barrier.wait()
        return fetch(str(artifact), SHA256, cache).read_bytes()

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(one, range(8))) == [CONTENT] * 8
    assert files_in(cache) == [f"sha256/{SHA256}"]


@pytest.fixture
def threads_change_often() -> Iterator[None]:
    """Python changes threads every 10 us, so that a gap between two system calls is met within some hundred tries."""
    usual_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(usual_s)


def at_once(do: Callable[[], object], times: int) -> None:
    """Call `do` so many times in each of eight threads."""
    barrier = threading.Barrier(8)

    def one(_: int) -> None:
        barrier.wait()
        for _ in range(times):
            do()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(8)))


@pytest.mark.usefixtures("threads_change_often")
def test_a_partial_file_that_another_fetch_removes_meanwhile_is_created_anew(cache: Path) -> None:
    def hold() -> None:
        with cache_module.locked_partial(cache, SHA256):
            pass

    at_once(hold, 100)

    assert files_in(cache) == []


@pytest.mark.usefixtures("threads_change_often")
def test_an_object_that_another_process_evicts_meanwhile_is_no_failure(cache: Path) -> None:
    (cache / "sha256").mkdir(parents=True)
    for number in range(300):
        (cache / "sha256" / str(number)).write_bytes(b"x")

    at_once(lambda: cache_module.evict(cache, 0, now_s=time.time() + 2 * cache_module.JUST_FETCHED_S), 2)

    assert files_in(cache) == []


def test_what_a_killed_process_left_is_swept_but_not_what_another_is_writing(artifact: Path, cache: Path) -> None:
    partial = cache / "partial"
    partial.mkdir(parents=True)
    (partial / "abandoned").write_bytes(b"x")
    (partial / "arriving").write_bytes(b"x")
    (partial / "folder" / "copy").mkdir(parents=True)
    long_ago = time.time() - 2 * cache_module.ABANDONED_S
    for name in ("abandoned", "folder"):
        os.utime(partial / name, (long_ago, long_ago))

    fetch(str(artifact), SHA256, cache)

    assert [path.name for path in partial.iterdir()] == ["arriving"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "golden"
    (folder / "deep").mkdir(parents=True)
    (folder / "golden.json").write_text("{}")
    (folder / "deep" / "Z.png").write_bytes(b"Z")
    (folder / "deep" / "a.png").write_bytes(b"a")
    return folder


def test_a_folders_digest_is_what_the_documented_shell_line_prints(folder: Path) -> None:
    line = "find . -type f -printf '%P\\n' | LC_ALL=C sort | xargs sha256sum | sha256sum"
    printed = subprocess.run(["bash", "-c", line], cwd=folder, capture_output=True, check=True, text=True).stdout

    assert folder_digest(folder) == printed.split()[0]


names = st.text(st.characters(categories=["L", "N"], exclude_characters="/"), min_size=1, max_size=8)


@given(files=st.dictionaries(names, st.binary(max_size=8), min_size=1, max_size=4), extra=names)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_folders_digest_knows_every_name_and_byte(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes], extra: str
) -> None:
    folder = tmp_path_factory.mktemp("folder")
    for name, content in files.items():
        (folder / name).write_bytes(content)
    before = folder_digest(folder)
    target = folder / extra

    target.write_bytes(target.read_bytes() + b"!" if target.exists() else b"")

    assert folder_digest(folder) != before


def test_a_fetched_folder_is_a_verified_copy(folder: Path, cache: Path) -> None:
    copy = fetch_folder(str(folder), folder_digest(folder), cache)

    assert files_in(copy) == ["deep/Z.png", "deep/a.png", "golden.json"]
    assert folder_digest(copy) == copy.name
    assert fetch_folder("/gone", copy.name, cache) == copy


def test_a_changed_folder_is_refused_and_leaves_nothing(folder: Path, cache: Path) -> None:
    digest = folder_digest(folder)
    (folder / "more.png").write_bytes(b"")

    with pytest.raises(DigestMismatchError):
        fetch_folder(str(folder), digest, cache)

    assert files_in(cache) == []


def test_a_symbolic_link_in_a_folder_is_refused(folder: Path, cache: Path) -> None:
    (folder / "passwd").symlink_to("/etc/passwd")

    with pytest.raises(UnsafeArtifactError, match="symbolic link"):
        folder_digest(folder)
    with pytest.raises(UnsafeArtifactError, match="symbolic link"):
        fetch_folder(str(folder), SHA256, cache)
    assert files_in(cache) == []


def test_concurrent_fetches_of_one_folder_all_get_it(folder: Path, cache: Path) -> None:
    digest = folder_digest(folder)
    barrier = threading.Barrier(6)

    def one(_: int) -> Path:
        barrier.wait()
        return fetch_folder(str(folder), digest, cache)

    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(one, range(6))) == {cache / "folders" / digest}
    assert list((cache / "partial").iterdir()) == []


def test_a_fetch_that_looked_before_another_one_ended_leaves_its_folder(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest, looked, read = folder_digest(folder), list[Path](), list[BinaryIO]()
    is_verified = VerifiedObjects.is_verified

    def look(self: VerifiedObjects, path: Path, hashes_to: Callable[[], bool]) -> bool:
        found = is_verified(self, path, hashes_to)
        looked.append(path)
        if looked == [path]:
            read.append((fetch_folder(str(folder), digest, cache) / "deep/a.png").open("rb"))
        return found

    monkeypatch.setattr(VerifiedObjects, "is_verified", look)
    fetch_folder(str(folder), digest, cache)
    with read[0]:
        assert os.fstat(read[0].fileno()).st_nlink == 1


@pytest.mark.parametrize(
    ("uri", "base", "expected"),
    [
        ("nets/a.onnx", "file:///srv/models", "file:///srv/models/nets/a.onnx"),
        ("nets/a.onnx", "file:///srv/models/", "file:///srv/models/nets/a.onnx"),
        ("./a.onnx", "/srv/my models", "file:///srv/my%20models/a.onnx"),
        ("../a b%.onnx", "https://host/x/y", "https://host/x/a%20b%25.onnx"),
        ("/abs/a.onnx", "https://host/x", "/abs/a.onnx"),
        ("https://other/a.onnx", "file:///srv", "https://other/a.onnx"),
        ("file:///a.onnx", None, "file:///a.onnx"),
        ("a b/x.onnx", "s3://bucket", "s3://bucket/a%20b/x.onnx"),
        ("../x.onnx", "s3://bucket/nets/", "s3://bucket/x.onnx"),
        ("nets.tar.gz#deep/x#1.onnx", "https://host/y", "https://host/y/nets.tar.gz#deep/x%231.onnx"),
    ],
)
def test_a_relative_uri_is_below_its_base_and_an_absolute_one_is_itself(
    uri: str, base: str | None, expected: str
) -> None:
    assert resolved(uri, base) == expected


def test_a_relative_uri_without_a_base_says_what_is_allowed() -> None:
    with pytest.raises(RelativeUriError, match=r"an absolute path, .*file:, .*http:, https:"):
        resolved("nets/a.onnx", None)


@pytest.mark.parametrize(("base", "error"), [("gopher://bucket", UnknownNameError), ("models", ArtifactMissingError)])
def test_a_base_that_no_source_reads_is_refused(base: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        resolved("a.onnx", base)


def test_a_file_and_a_folder_are_found_below_their_base(artifact: Path, cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / "golden set"
    folder.mkdir()
    (folder / "golden.json").write_text("{}")
    base = tmp_path.as_uri()
    assert fetch(resolved(artifact.name, base), SHA256, cache).read_bytes() == CONTENT
    copied = fetch_folder(resolved(folder.name, base), folder_digest(folder), cache)
    assert (copied / "golden.json").read_text() == "{}"


def packed(folder: Path, name: str) -> Path:
    kind = {".zip": "zip", ".gz": "gztar", ".tar": "tar"}[Path(name).suffix]
    return Path(shutil.make_archive(str(folder.parent / name.partition(".")[0]), kind, folder))


@pytest.mark.parametrize("name", ["nets.zip", "nets.tar", "nets.tar.gz"])
def test_a_member_of_an_archive_is_pinned_by_its_own_digest(
    name: str, artifact: Path, cache: Path, tmp_path: Path
) -> None:
    (tmp_path / "nets" / "deep").mkdir(parents=True)
    artifact.rename(tmp_path / "nets" / "deep" / "a#b c.onnx")
    archive = packed(tmp_path / "nets", name)

    assert fetch(f"{archive.as_uri()}#deep/a%23b%20c.onnx", SHA256, cache).read_bytes() == CONTENT
    assert fetch(resolved(f"{name}#deep/a#b c.onnx", str(tmp_path)), SHA256, tmp_path / "other").is_file()
    assert files_in(cache) == [f"sha256/{SHA256}"]
    with pytest.raises(ArtifactMissingError, match="has no file 'gone'"):
        fetch(f"{archive}#gone", "0" * 64, cache)


def test_a_member_of_what_is_no_archive_is_refused(artifact: Path, cache: Path) -> None:
    with pytest.raises(ArtifactMissingError, match=r"allowed in \.tar"):
        fetch(f"{artifact.as_uri()}#x", SHA256, cache)


@pytest.mark.parametrize("name", ["set.zip", "set.tar.gz"])
def test_an_archive_is_a_folder_whose_digest_is_the_archives(name: str, folder: Path, cache: Path) -> None:
    archive = packed(folder, name)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()

    found = fetch_folder(str(archive), digest, cache)

    assert folder_digest(found) == folder_digest(folder)
    assert found == cache / "folders" / digest
    with pytest.raises(DigestMismatchError):
        fetch_folder(str(archive), SHA256, cache)
    assert {path.split("/")[1] for path in files_in(cache)} == {digest}


def test_what_is_fetched_again_counts_as_used_now(artifact: Path, folder: Path, cache: Path) -> None:
    file, copy = fetch(str(artifact), SHA256, cache), fetch_folder(str(folder), folder_digest(folder), cache)
    for path in (file, copy):
        os.utime(path, (0, 0))

    fetch(str(artifact), SHA256, cache)
    fetch_folder(str(folder), folder_digest(folder), cache)

    assert min(file.stat().st_mtime, copy.stat().st_mtime) > 0


def test_what_is_cached_is_still_denied_to_whom_it_is_not_allowed(artifact: Path, cache: Path) -> None:
    fetch(str(artifact), SHA256, cache)

    for access in (Access(schemes=("s3",)), Access(folders=(cache,))):
        with pytest.raises(SourceDeniedError):
            fetch(str(artifact), SHA256, cache, access)
