"""The files that Envoy watches, each replaced as a whole, and the record of the plan that they were rendered from."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter

from segserve_common.files import write_private
from segserve_operator.adapters.traffic.envoy_admin import EnvoyUnreachableError, Versions
from segserve_operator.core.traffic import TrafficPlan

PLANS: Final = TypeAdapter(TrafficPlan)
_POLL_S: Final = 0.002
_PAUSE_S: Final = 0.02


class ConfigurationRejectedError(Exception):
    """Envoy rejected the configuration rendered from a plan; the previous one stays in force."""


@dataclass(frozen=True, slots=True)
class DiscoveryResponse:
    """The content of a file, as in Envoy's xDS protocol: resources, and the digest of them as their version."""

    version: str
    text: str

    def resources(self) -> list[dict[str, Any]]:
        """Parse the resources."""
        resources: list[dict[str, Any]] = json.loads(self.text)["resources"]
        return resources


async def replace_and_wait(
    path: Path, new: DiscoveryResponse, follows: Callable[[], Awaitable[bool]], timeout_s: float
) -> None:
    """Replace the file, and wait until `follows` tells that Envoy uses its new content.

    Raises `EnvoyUnreachableError` after `timeout_s`, and whatever `follows` raises.
    """
    write_private(path, new.text)
    # Small changes are loaded within a few milliseconds, and a weight's effect is waited for.
    pause = _POLL_S
    try:
        async with asyncio.timeout(timeout_s):
            while not await follows():
                await asyncio.sleep(pause)
                pause = min(2 * pause, _PAUSE_S)
    except TimeoutError:
        raise EnvoyUnreachableError(f"Envoy has not loaded {path} within {timeout_s} s") from None


def discovery_response(resources: Iterable[dict[str, Any]]) -> DiscoveryResponse:
    """Return the file content for `resources`; equal resources give equal text."""
    return join_resources(map(serialize, resources))


def serialize(resource: dict[str, Any]) -> str:
    """Return the JSON text of one resource."""
    return json.dumps(resource, separators=(",", ":"))


def join_resources(resources: Iterable[str]) -> DiscoveryResponse:
    """Return the file content for resources that `serialize` returned."""
    array = f"[{','.join(resources)}]"
    version = hashlib.sha256(array.encode()).hexdigest()[:16]
    return DiscoveryResponse(version, f'{{"version_info":"{version}","resources":{array}}}')


def read_response(path: Path) -> DiscoveryResponse:
    """Read a file; a missing or unreadable one counts as empty."""
    try:
        text = path.read_text()
        return DiscoveryResponse(str(json.loads(text)["version_info"]), text)
    except (OSError, LookupError, ValueError, TypeError):
        return DiscoveryResponse("", '{"resources":[]}')


def write_plan(path: Path, versions: Versions, plan: TrafficPlan) -> None:
    """Record that the files of these versions were rendered from `plan`."""
    write_private(path, json.dumps({"versions": asdict(versions), "plan": PLANS.dump_python(plan, mode="json")}))


def read_plan(path: Path) -> tuple[Versions, TrafficPlan] | None:
    """Read what `write_plan` wrote; None if there is no record, or this version of segserve cannot read it."""
    try:
        record: dict[str, Any] = json.loads(path.read_text())
        return Versions(**record["versions"]), PLANS.validate_python(record["plan"])
    except (OSError, LookupError, ValueError, TypeError):
        return None
