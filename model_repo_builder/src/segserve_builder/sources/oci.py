"""The source `oci`: files of OCI artifacts (ORAS) and of images (KServe's modelcars), from any registry.

In an image an upper layer replaces or removes files of lower layers.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import PurePosixPath
from typing import Final
from urllib.parse import unquote

from segserve_builder.errors import ArtifactMissingError, UnsafeArtifactError
from segserve_builder.sources.access import Access
from segserve_builder.sources.archives import readable, tar_entries
from segserve_builder.sources.base import Stream
from segserve_builder.sources.oci_registry import Layer, Reference, Registry

_NAME: Final = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_FORM: Final = re.compile(
    rf"oci://(?P<registry>[A-Za-z0-9.\-:\[\]]+)/(?P<repository>{_NAME}(?:/{_NAME})*)"
    r"(?::(?P<tag>\w[\w.-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?(?:#(?P<member>.+))?"
)

MODELS: Final = "models"
"""Folder of the model in KServe's modelcar images."""

_SUFFIXES: Final = {"+gzip": ".gz", ".gzip": ".gz"}
_WHITEOUT: Final = ".wh."
_OPAQUE: Final = ".wh..wh..opq"


class OciSource:
    """Files by `oci://registry/repository[:tag][@sha256:...][#member]`.

    A member is the title of an artifact's layer, or a path in an image; the default is the only layer, or the only
    `.onnx` file. A credential has `username` and `password`, or `.dockerconfigjson`.
    """

    @contextmanager
    def open(self, uri: str, access: Access, start: int = 0) -> Iterator[Stream]:
        """Open the file; raises as `get` does, and `DigestMismatchError` for a manifest with another digest.

        A layer can be resumed, a file within an image's layer cannot.
        """
        reference, member = _parsed(uri)
        registry = Registry(reference, access)
        layers = registry.layers()
        layer = _chosen(layers, member, uri)
        if layer is not None:
            with registry.blob(layer, start) as stream:
                yield stream
            return
        member = member or _only_network(registry, layers, uri)
        with _opened(registry, layers, member, uri) as found:
            yield found

    def files(self, uri: str, access: Access) -> Iterator[str]:
        """Yield the titles of an artifact's layers, or of those below the folder that the URI names."""
        reference, member = _parsed(uri.rstrip("/"))
        titles = [layer.title for layer in Registry(reference, access).layers() if layer.is_file]
        if not titles:
            raise ArtifactMissingError(f"{uri!r} is an image; expected an artifact of files, or an archive in it")
        folder = f"{member}/" if member else ""
        yield from (title.removeprefix(folder) for title in titles if title.startswith(folder))


def _parsed(uri: str) -> tuple[Reference, str]:
    """Return the reference in a URI, and its member, empty without one."""
    found = _FORM.fullmatch(uri)
    if found is None:
        raise ArtifactMissingError(
            f"{uri!r} is not a reference; allowed: oci://registry/repository[:tag][@sha256:digest][#file]"
        )
    named = Reference(found["registry"], found["repository"], found["tag"] or "latest", found["digest"])
    return named, unquote(found["member"] or "").strip("/")


def _chosen(layers: Sequence[Layer], member: str, uri: str) -> Layer | None:
    """Return the layer that is the file; None if the file is within an image's layers."""
    files = [layer for layer in layers if layer.is_file]
    if member:
        fitting = [layer for layer in files if layer.title == member]
    else:
        networks = [layer for layer in files if layer.title.lower().endswith(".onnx")]
        fitting = networks if len(files) > 1 else files
    if len(fitting) == 1:
        return fitting[0]
    if files and not (member and len(files) < len(layers)):
        titles = ", ".join(layer.title or layer.digest for layer in files)
        raise ArtifactMissingError(f"{uri!r} has {titles}; name one of them: {uri.partition('#')[0]}#file")
    return None


@contextmanager
def _opened(registry: Registry, layers: Sequence[Layer], member: str, uri: str) -> Iterator[Stream]:
    """Open the file at the path `member`, from the topmost layer that has it.

    Raises `ArtifactMissingError` if no layer has it or an upper layer removed it, and `UnsafeArtifactError` for a link.
    """
    for layer in reversed(layers):
        is_removed = False
        with readable(uri), closing(_entries(registry, layer, uri)) as entries:
            for path, found, is_link in entries:
                if path == member and is_link:
                    raise UnsafeArtifactError(f"{uri!r}: {member!r} is a link in its image; name the file itself")
                if path == member and found is not None:
                    yield found
                    return
                is_removed |= _hides(path, member)
        if is_removed:
            break
    raise ArtifactMissingError(f"{uri!r}: the image has no file {member!r}")


def _only_network(registry: Registry, layers: Sequence[Layer], uri: str) -> str:
    """Return the path of the only `.onnx` file of a modelcar; reads all its layers."""
    networks: set[str] = set()
    removed: list[str] = []
    for layer in reversed(layers):
        entries = [(path, found is not None) for path, found, _ in _entries(registry, layer, uri)]
        files = [path for path, is_file in entries if is_file and _is_network(path)]
        networks.update(path for path in files if not any(_hides(each, path) for each in removed))
        removed += [path for path, _ in entries if PurePosixPath(path).name.startswith(_WHITEOUT)]
    if len(networks) != 1:
        names = ", ".join(sorted(networks)) or f"no .onnx file below /{MODELS}"
        raise ArtifactMissingError(f"{uri!r} has {names}; name the file: {uri.partition('#')[0]}#path")
    return networks.pop()


def _entries(registry: Registry, layer: Layer, uri: str) -> Generator[tuple[str, Stream | None, bool], None, None]:
    """Yield each path of a layer, its bytes if it is a file, and whether it is a link.

    The names are only compared, never written to, so unsafe ones do no harm.
    """
    with registry.blob(layer) as blob, readable(uri):
        kind = layer.media_type.rpartition("tar")[2]
        for info, found in tar_entries(blob, f"{layer.digest}.tar{_SUFFIXES.get(kind, kind)}", registry.max_bytes):
            yield str(PurePosixPath("/", info.name).relative_to("/")), found, info.issym() or info.islnk()


def _hides(path: str, member: str) -> bool:
    """Return whether the entry `path` removes the file `member` of the layers below."""
    entry, file = PurePosixPath(path), PurePosixPath(member)
    if entry.name == _OPAQUE:
        return entry.parent in file.parents
    if not entry.name.startswith(_WHITEOUT):
        return False
    removed = entry.with_name(entry.name.removeprefix(_WHITEOUT))
    return removed == file or removed in file.parents


def _is_network(path: str) -> bool:
    is_whiteout = PurePosixPath(path).name.startswith(_WHITEOUT)
    return path.startswith(f"{MODELS}/") and path.lower().endswith(".onnx") and not is_whiteout
