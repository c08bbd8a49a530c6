"""The artifact cache is kept within its size, and what somebody needs stays."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from segserve_builder.sources import fetch, folder_digest
from segserve_builder.sources.cache import JUST_FETCHED_S, FileLocks, evict, folder_path, object_path

MIB = 2**20
LATER_S = JUST_FETCHED_S + 100


def filled(cache: Path, number: int, unused_s: float) -> Path:
    content = bytes([number]) * MIB
    path = object_path(cache, hashlib.sha256(content).hexdigest())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(0o444)
    used_s = time.time() - unused_s
    os.utime(path, (used_s, used_s))
    return path


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_the_longest_unused_goes_first_until_the_rest_fits(cache: Path) -> None:
    oldest, older, newest = (filled(cache, number, LATER_S + 1000 - 100 * number) for number in range(3))

    assert evict(cache, 2 * MIB) == [oldest]

    assert not oldest.exists()
    assert older.exists()
    assert newest.exists()


def test_nothing_goes_where_all_fits(cache: Path) -> None:
    paths = [filled(cache, number, LATER_S) for number in range(3)]

    assert evict(cache, 3 * MIB) == []
    assert all(path.exists() for path in paths)


def test_what_a_process_holds_stays_until_it_lets_go_or_ends(cache: Path) -> None:
    held = filled(cache, 0, LATER_S)
    other = filled(cache, 1, LATER_S)
    script = (
        "import sys, pathlib; from segserve_builder.sources.cache import FileLocks; leases = FileLocks();"
        "leases.keep([pathlib.Path(sys.argv[1])]); print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(held)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout.readline() == b"held\n"
        assert evict(cache, 0) == [other]
        holder.kill()
        holder.wait()

        assert evict(cache, 0) == [held]


def test_a_lease_that_is_not_renewed_ends(cache: Path) -> None:
    path = filled(cache, 0, LATER_S)
    leases = FileLocks()
    leases.keep([path, cache / "not there yet"])
    assert evict(cache, 0) == []

    leases.keep([])

    assert evict(cache, 0) == [path]


def test_what_was_fetched_a_moment_ago_stays_also_where_it_was_there_already(cache: Path, tmp_path: Path) -> None:
    path = filled(cache, 0, LATER_S)
    source = tmp_path / "a.onnx"
    source.write_bytes(path.read_bytes())

    assert fetch(str(source), path.name, cache) == path

    assert evict(cache, 0) == []


def test_folders_go_as_a_whole_and_their_size_counts(cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / "golden"
    folder.mkdir()
    (folder / "image").write_bytes(bytes(MIB))
    target = folder_path(cache, folder_digest(folder))
    target.parent.mkdir(parents=True)
    folder.rename(target)
    used_s = time.time() - LATER_S
    os.utime(target, (used_s, used_s))
    path = filled(cache, 1, LATER_S - 50)

    assert evict(cache, MIB) == [target]

    assert not target.exists()
    assert path.exists()
    assert list((cache / "partial").iterdir()) == []
