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
    from collections.abc import Mapping

CONTENT_KEY: Final = "content"
VERSION_KEY: Final = "version"


def shard_of(name: str) -> int:
    """Return the number of the shard that holds what is called `name`."""
    return zlib.crc32(name.encode()) % SHARDS


def pack(value: Any) -> str:
    """Return a JSON value as base64 of gzip, as `binaryData` has it; equal values give equal text."""
    return base64.b64encode(gzip.compress(canonical_json(value).encode(), compresslevel=6, mtime=0)).decode()


def unpack(text: str) -> Any:
    """Return the value that `pack` made the text of; ValueError where it is none."""
    try:
        return json.loads(gzip.decompress(base64.b64decode(text, validate=True)))
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"not base64 of gzip: {error}") from error


def version_of(content: str) -> str:
    """Return the short digest by which reports refer to a packed content."""
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def content_of(config_map: Mapping[str, Any]) -> str | None:
    """Return the packed content of a ConfigMap as the API sends it; None where it has none yet."""
    content: str | None = (config_map.get("binaryData") or {}).get(CONTENT_KEY)
    return content
