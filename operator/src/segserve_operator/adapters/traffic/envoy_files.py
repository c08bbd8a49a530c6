"""The files that Envoy follows: each is replaced whole, and bears the digest of what it holds as its version."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from segserve_operator.adapters.local.files import write_private
from segserve_operator.adapters.traffic.envoy_admin import EnvoyUnreachableError

_POLL_S: Final = 0.002
_PAUSE_S: Final = 0.02


class EnvoyRefusedError(Exception):
    """Envoy refused what a plan was rendered to; the configuration before it stays in force."""


@dataclass(frozen=True, slots=True)
class DiscoveryResponse:
    """The content of a file: its version and its text."""

    version: str
    text: str


async def put(path: Path, new: DiscoveryResponse, follows: Callable[[], Awaitable[bool]], patience_s: float) -> None:
    """Make the file hold a document and wait until Envoy follows it; what `follows` raises ends the wait.

    Raises `EnvoyUnreachableError` where Envoy does not get there within `patience_s`.
    """
    write_private(path, new.text)
    pause = _POLL_S
    try:
        async with asyncio.timeout(patience_s):
            while not await follows():
                await asyncio.sleep(pause)
                pause = min(2 * pause, _PAUSE_S)
    except TimeoutError:
        message = f"Envoy has not taken over {path} within {patience_s} s"
        raise EnvoyUnreachableError(message) from None


def document(resources: Iterable[dict[str, Any]]) -> DiscoveryResponse:
    """Return the file that holds `resources`; equal resources give equal text."""
    return joined(map(serialized, resources))


def serialized(resource: dict[str, Any]) -> str:
    """Return one resource as a part of a file."""
    return json.dumps(resource, separators=(",", ":"))


def joined(resources: Iterable[str]) -> DiscoveryResponse:
    """Return the file that holds `resources`, given as text."""
    listed = f"[{','.join(resources)}]"
    version = hashlib.sha256(listed.encode()).hexdigest()[:16]
    return DiscoveryResponse(version, f'{{"version_info":"{version}","resources":{listed}}}')


def read_response(path: Path) -> DiscoveryResponse:
    """Return what a file holds; an empty document where there is none, or none that can be read."""
    try:
        text = path.read_text()
        return DiscoveryResponse(str(json.loads(text)["version_info"]), text)
    except (OSError, LookupError, ValueError, TypeError):
        return DiscoveryResponse("", '{"resources":[]}')


def read_resources(held: DiscoveryResponse) -> list[dict[str, Any]]:
    """Return the resources of a document."""
    found: list[dict[str, Any]] = json.loads(held.text)["resources"]
    return found
