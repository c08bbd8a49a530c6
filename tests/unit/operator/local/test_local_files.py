"""Files of the local platform are complete at any moment, and logs stay bounded."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from segserve_common.files import write_private
from segserve_operator.adapters.local.certificates import ensure_certificate
from segserve_operator.adapters.local.files import StateFolder, bound_log, cache_folder


def test_a_replaced_file_leaves_no_temporary_file(tmp_path: Path) -> None:
    write_private(tmp_path / "deep/file.json", "one")
    write_private(tmp_path / "deep/file.json", "two")

    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["file.json"]
    assert (tmp_path / "deep/file.json").read_text() == "two"


def test_a_write_that_fails_leaves_the_old_content(tmp_path: Path) -> None:
    write_private(tmp_path / "file.json", "one")

    with pytest.raises(UnicodeEncodeError):
        write_private(tmp_path / "file.json", "\ud800")

    assert [path.read_text() for path in tmp_path.iterdir()] == ["one"]


def test_a_truncated_log_keeps_its_last_complete_lines_and_its_writers(tmp_path: Path) -> None:
    path = tmp_path / "it.log"
    with path.open("a") as writer:
        writer.writelines(f"line {number}\n" for number in range(1000))
        writer.flush()
        bound_log(path, limit_bytes=1000, kept_bytes=100)
        writer.write("after\n")

    lines = path.read_text().splitlines()
    assert lines[0].startswith("line 9")
    assert lines[-2:] == ["line 999", "after"]
    assert path.stat().st_size < 200


def test_a_short_log_stays_and_a_missing_one_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "it.log"
    path.write_text("short\n")

    bound_log(path, limit_bytes=1000, kept_bytes=2)
    bound_log(tmp_path / "none.log", limit_bytes=1000, kept_bytes=2)

    assert path.read_text() == "short\n"


@pytest.mark.parametrize("place", ["cache", "state", "certificate"])
@pytest.mark.parametrize("mode", [None, 0o755])
def test_a_folder_of_images_or_secrets_is_its_users_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, mode: int | None
) -> None:
    folder = tmp_path / "deep/folder"
    monkeypatch.setenv("SEGSERVE_CACHE", str(folder))
    if mode is not None:
        folder.mkdir(mode=mode, parents=True)
        folder.chmod(mode)

    {"cache": cache_folder, "state": StateFolder(folder).create, "certificate": lambda: ensure_certificate(folder)}[
        place
    ]()

    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
