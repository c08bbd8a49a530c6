"""JSON values in the ConfigMaps of a cluster: spread over shards by name, compressed, equal where they are equal."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import zlib
from typing import TYPE_CHECKING, Any, Final

from segserve_common.canonical import canonical_json
from segserve_common.kube.names import SHARDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

CONTENT_KEY: Final = "content"
VERSION_KEY: Final = "version"

MAX_UNPACKED_BYTES: Final = 16 * 2**20
"""Largest JSON text that is read from a ConfigMap, which holds 1 MiB: one of zeros unpacks to 1 GiB."""

MAX_DEPTH: Final = 64
MAX_CONTAINERS: Final = 400_000
"""Most lists and objects in one text: three characters of it take up to 64 bytes of memory, seven up to 250."""

_TOO_DEEP: Final = f"more than {MAX_DEPTH} levels of lists and objects"
_GZIP: Final = 31


def shard_of(name: str) -> int:
    """Return the number of the shard that holds what is called `name`."""
    return zlib.crc32(name.encode()) % SHARDS


def pack(value: Any) -> str:
    """Return a JSON value as base64 of gzip, as `binaryData` has it; equal values give equal text."""
    return base64.b64encode(gzip.compress(canonical_json(value).encode(), compresslevel=6, mtime=0)).decode()


def unpack(text: str, max_bytes: int = MAX_UNPACKED_BYTES) -> Any:
    """Return the value that `pack` made the text from.

    The text is untrusted, as any editor of ConfigMaps may have written it: no more than `max_bytes` of JSON are
    unpacked, and only values of at most `MAX_DEPTH` levels and `MAX_CONTAINERS` lists and objects are built. Raises
    ValueError for any other text.
    """
    try:
        decompressor = zlib.decompressobj(wbits=_GZIP)
        content = decompressor.decompress(base64.b64decode(text, validate=True), max_bytes + 1)
    except zlib.error as error:
        raise ValueError(f"not base64 of gzip: {error}") from error
    if len(content) > max_bytes:
        raise ValueError(f"more than {max_bytes} bytes of JSON")
    if not decompressor.eof or decompressor.unused_data:
        raise ValueError("not base64 of gzip: it ends too early or too late")
    return read_json(content)


def read_json(content: bytes) -> Any:
    """Return an untrusted JSON value; raises ValueError for any other text, and for a value of too many parts."""
    if content.count(b"[") + content.count(b"{") > MAX_CONTAINERS:
        raise ValueError(f"more than {MAX_CONTAINERS} lists and objects")
    try:
        value = json.loads(content)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [inner for outer in level for inner in _parts(outer) if isinstance(inner, list | dict)]
        if not level:
            return value
    raise ValueError(_TOO_DEEP)


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, list):
        return value
    return value.values() if isinstance(value, dict) else ()


def version_of(content: str) -> str:
    """Return the short digest by which reports refer to a packed content."""
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def content_of(config_map: Mapping[str, Any]) -> str | None:
    """Return the packed content of a ConfigMap as the API sends it; None if it has no content yet."""
    content: str | None = (config_map.get("binaryData") or {}).get(CONTENT_KEY)
    return content
