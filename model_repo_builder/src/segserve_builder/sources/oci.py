"""The source `oci`: files of OCI artifacts (ORAS) and of images (KServe's modelcars), from any registry."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final
from urllib.parse import unquote

from segserve_builder.errors import ArtifactMissingError
from segserve_builder.sources import oci_image
from segserve_builder.sources.access import Access
from segserve_builder.sources.base import Stream
from segserve_builder.sources.oci_registry import Layer, Reference, Registry

_NAME: Final = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_FORM: Final = re.compile(
    rf"oci://(?P<registry>[A-Za-z0-9.\-:\[\]]+)/(?P<repository>{_NAME}(?:/{_NAME})*)"
    r"(?::(?P<tag>\w[\w.-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?(?:#(?P<member>.+))?"
)


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
        member = member or oci_image.only_network(registry, layers, uri)
        with oci_image.opened(registry, layers, member, uri) as found:
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
    """Return the reference in a URI, and its member, empty if there is none."""
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
