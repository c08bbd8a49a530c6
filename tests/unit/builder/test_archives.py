"""Archives of strangers: what is taken out of them, and what is refused."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from fakes.pipelines import pipeline_of
from segserve_builder.errors import ArtifactMissingError, ArtifactTooLargeError, UnsafeArtifactError
from segserve_builder.render.repository import build_tree, publish_tree
from segserve_builder.sources.archives import SUFFIXES, is_archive, open_member, unpack
from segserve_builder.spec.model_spec import Artifact
from segserve_builder.steps.pipeline import NetworkArtifact

EXAMPLES = Path(__file__).parents[3] / "examples" / "coins"

MOST = 16 * 2**20
CONTENT = os.urandom(300_000)
MODES = {".tar": "w", ".tar.gz": "w:gz", ".tgz": "w:gz", ".tar.xz": "w:xz"}


def tar(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    suffix = next(each for each in MODES if path.name.endswith(each))
    with tarfile.open(path, MODES[suffix]) as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return path


def tar_file(name: str, content: bytes = b"x", kind: bytes = tarfile.REGTYPE, link: str = "") -> tuple:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, len(content) if kind == tarfile.REGTYPE else 0
    info.mode = 0o7777
    return info, content


def zipped(path: Path, *members: tuple[str, bytes], mode: int = stat.S_IFREG | 0o644) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members:
            info = zipfile.ZipInfo(name)
            info.external_attr, info.compress_type = mode << 16, zipfile.ZIP_DEFLATED
            archive.writestr(info, content)
    return path


def archive_of(folder: Path, suffix: str, *members: tuple[str, bytes]) -> Path:
    path = folder / f"bundle{suffix}"
    return zipped(path, *members) if suffix == ".zip" else tar(path, *(tar_file(*member) for member in members))


class Bytes:
    start, size, identity = 0, None, None

    def __init__(self, content: bytes) -> None:
        self.read = io.BytesIO(content).read


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_kind_of_archive_is_unpacked_byte_for_byte(tmp_path: Path, suffix: str) -> None:
    path = archive_of(tmp_path, suffix, ("golden.json", b"{}"), ("images/one.png", CONTENT))
    into = tmp_path / "into"

    unpack(path, path.name, into, MOST)

    found = {each.relative_to(into).as_posix(): each.read_bytes() for each in into.rglob("*") if each.is_file()}
    assert is_archive(path.name.upper())
    assert found == {"golden.json": b"{}", "images/one.png": CONTENT}
    assert all(not each.stat().st_mode & 0o7000 for each in into.rglob("*"))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_one_member_is_read_without_unpacking_the_others(tmp_path: Path, suffix: str) -> None:
    path = archive_of(tmp_path, suffix, ("README", b"hello"), ("net/model.onnx", CONTENT), ("last", b"end"))
    spool = tmp_path / "spool"
    spool.mkdir()

    with open_member(Bytes(path.read_bytes()), path.name, "net/model.onnx", MOST, spool) as stream:
        found = b"".join(iter(lambda: stream.read(100_000), b""))

    assert found == CONTENT
    assert list(spool.iterdir()) == []


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_member_that_is_not_there_is_missed_by_name(tmp_path: Path, suffix: str) -> None:
    path = archive_of(tmp_path, suffix, ("a.onnx", b"1"), ("b.onnx", b"2"))

    with (
        pytest.raises(ArtifactMissingError, match=r"no file 'c.onnx'; it has a.onnx, b.onnx"),
        open_member(Bytes(path.read_bytes()), path.name, "c.onnx", MOST, tmp_path),
    ):
        pass


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".zip"])
@pytest.mark.parametrize(
    "name",
    ["../escape", "/etc/passwd", "a/../../b", "a\\..\\b", "C:/x", "a\nb", "x" * 2000],
    ids=["parent", "absolute", "parent within", "backslash", "drive", "newline", "long"],
)
def test_a_name_that_leaves_the_folder_is_refused_and_nothing_is_written_outside(
    tmp_path: Path, suffix: str, name: str
) -> None:
    path = archive_of(tmp_path, suffix, (name, b"x"))
    into = tmp_path / "deep" / "into"
    before = sorted(tmp_path.rglob("*"))

    with pytest.raises(UnsafeArtifactError, match=r"bundle"):
        unpack(path, path.name, into, MOST)

    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("kind", "seen"),
    [
        (tarfile.SYMTYPE, "symbolic link"),
        (tarfile.LNKTYPE, "hard link"),
        (tarfile.CHRTYPE, "device"),
        (tarfile.BLKTYPE, "device"),
        (tarfile.FIFOTYPE, "pipe"),
    ],
)
def test_links_and_devices_in_a_tar_are_refused(tmp_path: Path, kind: bytes, seen: str) -> None:
    path = tar(tmp_path / "bundle.tar", tar_file("inside", kind=kind, link="/etc/passwd"))

    with pytest.raises(UnsafeArtifactError, match=seen):
        unpack(path, path.name, tmp_path / "into", MOST)


@pytest.mark.parametrize(
    ("place", "damage"),
    [
        pytest.param(46, b"\x97\xff\xff\xff\xff", id="a name that is not UTF-8"),
        pytest.param(46, b"\x00", id="no name"),
        pytest.param(42, b"\xff\xff\xff\xff", id="an offset beyond its end"),
        pytest.param(-10, b"\xff\xff\xff\x7f", id="a directory longer than the file"),
    ],
)
def test_a_zip_whose_directory_is_damaged_is_refused(tmp_path: Path, place: int, damage: bytes) -> None:
    path = zipped(tmp_path / "a.zip", ("é.onnx", b"weights"))  # flagged as UTF-8
    data = bytearray(path.read_bytes())
    start = data.index(b"PK\x01\x02") if place > 0 else len(data)
    data[start + place : start + place + len(damage)] = damage
    path.write_bytes(data)
    into = tmp_path / "into"
    into.mkdir()

    with pytest.raises((ArtifactMissingError, UnsafeArtifactError)):
        unpack(path, "a.zip", into, 1000)

    assert not any(into.iterdir())


def test_a_symbolic_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "bundle.zip", ("link", b"/etc/passwd"), mode=stat.S_IFLNK | 0o777)

    with pytest.raises(UnsafeArtifactError, match="link or device"):
        unpack(path, path.name, tmp_path / "into", MOST)


@pytest.mark.parametrize("suffix", [".tar", ".zip"])
@pytest.mark.parametrize(
    "names",
    [("a", "A"), ("\u00e9", "e\u0301"), ("a", "a/b"), ("a/b", "A")],
    ids=["case", "unicode", "file, folder", "folder, file"],
)
def test_names_that_hide_each_other_are_refused(tmp_path: Path, suffix: str, names: tuple[str, str]) -> None:
    path = archive_of(tmp_path, suffix, *((name, b"x") for name in names))

    with pytest.raises(UnsafeArtifactError, match="twice"):
        unpack(path, path.name, tmp_path / "into", MOST)


@pytest.mark.parametrize("suffix", [".tar.gz", ".tar.xz", ".zip"])
def test_a_bomb_stops_at_the_limit(tmp_path: Path, suffix: str) -> None:
    path = archive_of(tmp_path, suffix, *((f"zeros{number}", bytes(4 * 2**20)) for number in range(8)))
    into = tmp_path / "into"

    with pytest.raises(ArtifactTooLargeError):
        unpack(path, path.name, into, MOST)

    assert sum(each.stat().st_size for each in into.rglob("*")) <= MOST
    assert path.stat().st_size < 64 * 2**10


def test_a_header_that_announces_gigabytes_is_refused(tmp_path: Path) -> None:
    info = tarfile.TarInfo("header")
    info.type, info.size = tarfile.XHDTYPE, 8 * 2**30
    path = tmp_path / "bundle.tar"
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(10240))

    with pytest.raises(UnsafeArtifactError, match="header of 8589934592 bytes"):
        unpack(path, path.name, tmp_path / "into", MOST)


def test_more_entries_than_a_model_needs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segserve_builder.sources.archives.MAX_ENTRIES", 10)
    path = archive_of(tmp_path, ".tar", *((str(number), b"") for number in range(12)))

    with pytest.raises(UnsafeArtifactError, match="more than 10 entries"):
        unpack(path, path.name, tmp_path / "into", MOST)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("share", [0.0, 0.5, 0.9], ids=["nothing", "half", "nearly all"])
def test_a_broken_archive_says_so(tmp_path: Path, suffix: str, share: float) -> None:
    path = archive_of(tmp_path, suffix, ("model.onnx", CONTENT), ("after", CONTENT))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])

    with pytest.raises(ArtifactMissingError, match=r"bundle\S* cannot be unpacked"):
        unpack(path, path.name, tmp_path / "into", MOST)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_no_archive_says_so(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"bundle{suffix}"
    path.write_bytes(b"GIF89a" + os.urandom(4096))

    with pytest.raises(ArtifactMissingError, match="cannot be unpacked"):
        unpack(path, path.name, tmp_path / "into", MOST)


@pytest.mark.parametrize("suffix", [".tar.gz", ".zip"])
def test_a_configuration_or_code_that_comes_with_a_network_never_reaches_triton(tmp_path: Path, suffix: str) -> None:
    network = (EXAMPLES / "coins-unet.onnx").read_bytes()
    evil = b"EVIL = __import__('os').system('id')"
    names = ("1/model.onnx", "config.pbtxt", "1/model.py", "1/libtriton_evil.so", "1/model.onnx.data")
    bundle = archive_of(tmp_path, suffix, *((name, network if name == "1/model.onnx" else evil) for name in names))
    pipeline = pipeline_of(
        artifactSha256=hashlib.sha256(network).hexdigest(),
        input={"colour": "GREY"},
        preprocess=[{"decode": {}}, {"resize": {"mode": "keep", "multipleOf": 16, "padding": "edge"}}],
    )
    artifact = Artifact(uri=f"{bundle}#1/model.onnx", sha256=pipeline.artifact_sha256)

    tree = build_tree({"first": NetworkArtifact(pipeline, artifact)}, tmp_path / "cache")
    publish_tree(tree, tmp_path / "repository")

    published = [each for each in (tmp_path / "repository").rglob("*") if each.is_file()]
    assert any(each.read_bytes() == network for each in published)
    assert not [each for each in published if b"EVIL" in each.read_bytes()]
    assert not [each for each in (tmp_path / "cache").rglob("*") if each.is_file() and b"EVIL" in each.read_bytes()]
