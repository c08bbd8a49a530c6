"""The files that Envoy watches, each replaced as a whole, and the record of the plan that they were rendered from."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from google.protobuf.message import DecodeError
from pydantic_core import to_json

from segserve_common.files import DamagedFileError, read_file, write_private
from segserve_operator.adapters.traffic.envoy_admin import EnvoyUnreachableError, Versions
from segserve_operator.adapters.traffic.envoy_messages import (
    DISCOVERY_RESPONSE,
    TYPE_PREFIX,
    encode,
    new_message,
    parse,
)
from segserve_operator.adapters.traffic.plans import dump_plan, load_plan
from segserve_operator.core.traffic import TrafficPlan

_POLL_S: Final = 0.002
_PAUSE_S: Final = 0.02


class ConfigurationRejectedError(Exception):
    """Envoy rejected the configuration rendered from a plan; the previous one stays in force."""


@dataclass(frozen=True, slots=True)
class DiscoveryResponse:
    """The content of a file, as in Envoy's xDS protocol: resources, and the digest of them as their version."""

    version: str
    content: bytes

    def resources(self) -> list[bytes]:
        """Return the encoded resources."""
        return [resource.value for resource in parse(DISCOVERY_RESPONSE, self.content).resources]


async def replace_and_wait(
    path: Path, new: DiscoveryResponse, follows: Callable[[], Awaitable[bool]], timeout_s: float
) -> None:
    """Replace the file, and wait until `follows` says that Envoy uses its new content.

    Raises `EnvoyUnreachableError` after `timeout_s`, and whatever `follows` raises.
    """
    write_watched(path, new)
    # Small changes are loaded within a few milliseconds, and a weight's effect is waited for.
    pause = _POLL_S
    try:
        async with asyncio.timeout(timeout_s):
            while not await follows():
                await asyncio.sleep(pause)
                pause = min(2 * pause, _PAUSE_S)
    except TimeoutError:
        raise EnvoyUnreachableError(f"Envoy has not loaded {path} within {timeout_s} s") from None


def write_watched(path: Path, response: DiscoveryResponse) -> None:
    """Replace a file that Envoy watches, readable by this user only.

    It is not synced to the disk, which would take as long as Envoy's part: after a power cut it is rendered again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".new")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600), "wb") as file:
        file.write(response.content)
    temporary.replace(path)


def discovery_response(name: str, resources: Iterable[bytes]) -> DiscoveryResponse:
    """Return the file content for encoded messages of the full name `name`; equal resources give equal content."""
    encoded = b"".join(part for each in resources for part in (_envelope(name, len(each)), each))
    response = new_message(DISCOVERY_RESPONSE)
    response.version_info = hashlib.sha256(encoded).hexdigest()[:16]
    return DiscoveryResponse(response.version_info, encode(response) + encoded)


@lru_cache(maxsize=4096)
def _envelope(name: str, size: int) -> bytes:
    """Return what comes before a resource of so many bytes in an encoded response: its type, and its length."""
    response = new_message(DISCOVERY_RESPONSE)
    response.resources.add(type_url=TYPE_PREFIX + name, value=bytes(size))
    encoded = encode(response)
    return encoded[: len(encoded) - size]


def read_response(path: Path) -> DiscoveryResponse:
    """Read a file; a missing or unreadable one counts as empty."""
    try:
        content = path.read_bytes()
        return DiscoveryResponse(parse(DISCOVERY_RESPONSE, content).version_info, content)
    except (OSError, DecodeError):
        return DiscoveryResponse("", b"")


def write_plan(path: Path, versions: Versions, plan: TrafficPlan) -> None:
    """Record that the files of these versions were rendered from `plan`."""
    record = {"versions": asdict(versions), "plan": dump_plan(plan)}
    write_private(path, to_json(record).decode())  # three times as fast as the standard library's


def read_plan(path: Path) -> tuple[Versions, TrafficPlan] | None:
    """Read what `write_plan` wrote; None if there is no record, or this version of segserve cannot read it."""

    def parse(text: str) -> tuple[Versions, TrafficPlan]:
        record: dict[str, Any] = json.loads(text)
        return Versions(**record["versions"]), load_plan(record["plan"])

    try:
        return read_file(path, parse)
    except (OSError, DamagedFileError):
        return None
