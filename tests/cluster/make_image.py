"""Container images without Docker or a registry: layers are tar files, an archive is an OCI layout in a tar.

`ctr -n k8s.io images import` reads the archives.
"""

from __future__ import annotations

import hashlib
import io
import json
import stat
import tarfile
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final, TypeAlias

INDEX_TYPE: Final = "application/vnd.oci.image.index.v1+json"
MANIFEST_TYPE: Final = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE: Final = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE: Final = "application/vnd.oci.image.layer.v1.tar"  # not compressed: quick to make and to import
NAME_ANNOTATION: Final = "io.containerd.image.name"
DEFAULT_PATH: Final = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"


@dataclass(frozen=True)
class Tree:
    """A file or folder `source` that becomes `target` in a layer; `skip` is told the path within the source."""

    source: Path
    target: str
    skip: Callable[[str], bool] = lambda _: False


@dataclass(frozen=True)
class Link:
    """A symbolic link `name` to `target` in a layer."""

    name: str
    target: str


@dataclass(frozen=True)
class Text:
    """A file `name` in a layer with this content."""

    name: str
    content: str


Part: TypeAlias = Tree | Link | Text


@dataclass(frozen=True)
class Layer:
    """A layer's tar file with its digest (`sha256:...`) and size in bytes."""

    path: Path
    digest: str
    size: int


@dataclass(frozen=True)
class Image:
    """An image: its layers from the bottom, and the `config` that a container starts with (as OCI names it)."""

    tag: str
    layers: tuple[Layer, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)


def digest_of(data: bytes) -> str:
    """Return the digest of bytes as OCI writes it."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def write_layer(path: Path, parts: Iterable[Part]) -> Layer:
    """Write a layer; what an earlier part gave, a later one does not replace.

    Owners are root; modes and times (whole seconds: compiled Python knows its source by them) stay.
    """
    staging = path.with_name(path.name + ".new")
    with tarfile.open(staging, "w", format=tarfile.GNU_FORMAT) as tar:
        writer = _LayerWriter(tar)
        for part in parts:
            writer.add(part)
    staging.replace(path)
    return read_layer(path)


def read_layer(path: Path) -> Layer:
    """Return the layer in a tar file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Layer(path, f"sha256:{digest}", path.stat().st_size)


def write_archive(file: IO[bytes], images: Sequence[Image], known: Container[str] = ()) -> None:
    """Write one archive of some images; layers that they share are in it once, those with `known` digests not."""
    blobs: dict[str, bytes] = {}

    def put(value: object) -> dict[str, object]:
        data = json.dumps(value, sort_keys=True).encode()
        blobs[digest_of(data)] = data
        return {"digest": digest_of(data), "size": len(data)}

    index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [_manifest(image, put) for image in images]}
    with tarfile.open(fileobj=file, mode="w|") as tar:
        _add_bytes(tar, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        _add_bytes(tar, "index.json", json.dumps(index).encode())
        for digest, data in sorted(blobs.items()):
            _add_bytes(tar, _blob_name(digest), data)
        for layer in {layer.digest: layer for image in images for layer in image.layers}.values():
            if layer.digest in known:
                continue
            info = tarfile.TarInfo(_blob_name(layer.digest))
            info.size, info.mode = layer.size, 0o644
            with layer.path.open("rb") as content:
                tar.addfile(info, content)


class _LayerWriter:
    def __init__(self, tar: tarfile.TarFile) -> None:
        self._tar = tar
        self._seen: set[str] = set()

    def add(self, part: Part) -> None:
        match part:
            case Tree():
                self._add_tree(part.source, part.target.strip("/"), part.skip, "")
            case Link():
                info = tarfile.TarInfo(part.name.strip("/"))
                info.type, info.linkname, info.mode = tarfile.SYMTYPE, part.target, 0o777
                self._put(info)
            case Text():
                data = part.content.encode()
                info = tarfile.TarInfo(part.name.strip("/"))
                info.size, info.mode = len(data), 0o644
                self._put(info, io.BytesIO(data))

    def _add_tree(self, source: Path, target: str, skip: Callable[[str], bool], within: str) -> None:
        kind = source.lstat().st_mode
        if stat.S_ISSOCK(kind) or (within and skip(within)):
            return
        if target:
            self._add_path(source, target)
        if stat.S_ISDIR(kind):
            for child in sorted(source.iterdir()):
                inner = f"{within}/{child.name}" if within else child.name
                self._add_tree(child, f"{target}/{child.name}".strip("/"), skip, inner)

    def _add_path(self, source: Path, target: str) -> None:
        info = self._tar.gettarinfo(source, arcname=target)
        if info.islnk():  # the other name may be left out
            info.type, info.linkname, info.size = tarfile.REGTYPE, "", source.stat().st_size
        info.uid = info.gid = 0
        info.uname = info.gname = ""
        info.mtime = int(info.mtime)
        if info.isreg():
            with source.open("rb") as file:
                self._put(info, file)
        else:
            self._put(info)

    def _put(self, info: tarfile.TarInfo, content: IO[bytes] | None = None) -> None:
        if info.name in self._seen:
            return
        for parent in reversed(Path(info.name).parents[:-1]):
            if str(parent) not in self._seen:
                self._seen.add(str(parent))
                folder = tarfile.TarInfo(str(parent))
                folder.type, folder.mode = tarfile.DIRTYPE, 0o755
                self._tar.addfile(folder)
        self._seen.add(info.name)
        self._tar.addfile(info, content)


def _manifest(image: Image, put: Callable[[object], dict[str, object]]) -> dict[str, object]:
    environment = {"PATH": DEFAULT_PATH, **image.environment}
    config = put(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {**image.config, "Env": [f"{name}={value}" for name, value in environment.items()]},
            "rootfs": {"type": "layers", "diff_ids": [layer.digest for layer in image.layers]},
        }
    )
    manifest = put(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": {"mediaType": CONFIG_TYPE, **config},
            "layers": [{"mediaType": LAYER_TYPE, "digest": at.digest, "size": at.size} for at in image.layers],
        }
    )
    platform = {"architecture": "amd64", "os": "linux"}
    return {"mediaType": MANIFEST_TYPE, **manifest, "platform": platform, "annotations": {NAME_ANNOTATION: image.tag}}


def _blob_name(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def _add_bytes(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), 0o644
    tar.addfile(info, io.BytesIO(data))
