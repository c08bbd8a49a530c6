"""Files are replaced whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from segserve_common.files import read_tail, replace_file, replacing


@pytest.mark.parametrize("content", ["grün\n", b"\x00\xff"])
def test_text_and_bytes_take_the_place_of_what_was_there(content: str | bytes, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old and longer")

    replace_file(path, content)

    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert list(tmp_path.iterdir()) == [path]


def test_a_block_that_raises_leaves_the_old_content_and_no_other_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    with pytest.raises(UnicodeEncodeError), replacing(path) as temporary:
        temporary.write_text("new\ud800")

    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_two_writers_of_one_file_do_not_share_a_temporary_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with replacing(path) as first, replacing(path) as second:
        first.write_text("first")
        second.write_text("second")

    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_with_a_suffix_what_a_killed_writer_left_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "map.tiff"
    (tmp_path / "map.tiff.part").write_text("long since left behind")

    with replacing(path, suffix=".part") as temporary:
        assert temporary.read_bytes() == b""
        temporary.write_text("map")

    assert path.read_text() == "map"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", [None, ".part"])
@pytest.mark.parametrize("name", ["x" * 255, "ü" * 127, "x" * 244, "x" * 143], ids=len)
def test_a_name_as_long_as_file_systems_allow_is_written(tmp_path: Path, name: str, suffix: str | None) -> None:
    with replacing(tmp_path / name, suffix=suffix) as temporary:
        assert len(os.fsencode(temporary.name)) <= 143
        temporary.write_text("content")

    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [(name, "content")]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_the_umask_applies(umask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        replace_file(tmp_path / "open", "")
        replace_file(tmp_path / "private", "", mode=0o600)
    finally:
        os.umask(before)

    assert (tmp_path / "open").stat().st_mode & 0o777 == mode
    assert (tmp_path / "private").stat().st_mode & 0o777 == 0o600


def test_the_end_of_a_file_is_read_however_large_it_is(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("wb") as file:
        file.truncate(2**42)  # without blocks; more than the machine's memory
        file.seek(0, os.SEEK_END)
        file.write(b"last")

    assert read_tail(path, 6) == b"\0\0last"
    path.write_bytes(b"all")
    assert read_tail(path, 6) == b"all"
