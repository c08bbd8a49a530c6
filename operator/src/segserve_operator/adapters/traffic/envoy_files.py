"""A file of Envoy's resources that is replaced whole, and the wait until Envoy has taken it over."""

from __future__ import annotations

import asyncio
import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from segserve_operator.adapters.local.files import replace_file
from segserve_operator.adapters.traffic.envoy_admin import GatewayUnreachableError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from segserve_operator.adapters.traffic.envoy_admin import Taken
    from segserve_operator.adapters.traffic.envoy_clusters import Json

_POLL_S: Final = 0.005


class GatewayRefusedError(Exception):
    """Envoy refused what a plan was rendered to; the configuration before it stays in force."""


@dataclass(frozen=True, slots=True)
class WatchedFile:
    """One kind of resource. `taken` asks Envoy what it has of it; `patience_s` bounds the wait for it."""

    path: Path
    taken: Callable[[], Awaitable[Taken]]
    patience_s: float

    async def put(self, resources: Sequence[Json]) -> bool:
        """Make the file hold `resources` and wait until Envoy follows it; False where it did already.

        Raises `GatewayUnreachableError` where Envoy does not answer or does not get there, and, with the old
        content back in its place, `GatewayRefusedError`.
        """
        version, text = discovery_response(resources)
        before = await self.taken()
        old = self.path.read_text() if self.path.exists() else None
        if before.version == version and old == text:
            return False
        replace_file(self.path, text)
        try:
            await self._follows(version, before.refused)
        except GatewayRefusedError:
            if old is not None:
                replace_file(self.path, old)
            raise
        return True

    async def _follows(self, version: str, refused: int) -> None:
        try:
            async with asyncio.timeout(self.patience_s):
                while (now := await self.taken()).version != version:
                    if now.refused > refused:
                        raise GatewayRefusedError(f"Envoy refused {self.path}; its log says why")
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            message = f"Envoy has not taken over {self.path} within {self.patience_s} s"
            raise GatewayUnreachableError(message) from None


def discovery_response(resources: Sequence[Json]) -> tuple[str, str]:
    """Return the version and the text of the file that holds `resources`; equal resources give equal text."""
    listed = json.dumps(resources, sort_keys=True, separators=(",", ":"))
    version = hashlib.sha256(listed.encode()).hexdigest()[:16]
    return version, json.dumps({"version_info": version, "resources": resources}, sort_keys=True)


def read_resources(path: Path) -> list[dict[str, Any]]:
    """Return what the file holds; nothing where there is none."""
    if not path.exists():
        return []
    found: list[dict[str, Any]] = json.loads(path.read_text())["resources"]
    return found
