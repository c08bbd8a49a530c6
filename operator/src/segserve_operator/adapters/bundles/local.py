"""Bundles of the local platform: files in its state folder, of which the newest are kept."""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from segserve_builder.render.tritonserver import Ports
from segserve_common.files import replace_file
from segserve_operator.adapters.bundles.contents import LOG_BYTES, ServerDiagnostics, bundle
from segserve_operator.adapters.bundles.statistics import NoStatisticsError, statistics
from segserve_operator.adapters.local.fleet import GroupFolder
from segserve_operator.adapters.local.triton import LOOPBACK
from segserve_operator.core.traffic import Endpoint

if TYPE_CHECKING:
    from pathlib import Path

    from segserve_operator.adapters.local.files import StateFolder
    from segserve_operator.core.rollout.record import Record

MAX_BUNDLES: Final = 20
SUFFIX: Final = ".tar.gz"


def bundle_folder(state: StateFolder) -> Path:
    """Return the folder of all bundles, which need not exist."""
    return state.root / "bundles"


def bundle_file(state: StateFolder, rollout: str) -> Path:
    """Return the path of a rollout's bundle, which need not exist."""
    return bundle_folder(state) / f"{rollout}{SUFFIX}"


@dataclass(frozen=True, slots=True)
class LocalBundles:
    """Implements `BundleWriter`; keeps the newest `MAX_BUNDLES`."""

    state: StateFolder

    async def save(self, record: Record, group: str) -> str:
        """Write the file, and remove the oldest ones; raises `OSError`. The group's logs must still be there."""
        folder = GroupFolder(self.state.groups / group)
        counts, missing = await _statistics(folder, group)
        return str(await asyncio.to_thread(self._write, record, folder, counts, missing))

    def _write(self, record: Record, folder: GroupFolder, counts: dict[str, bytes], missing: list[str]) -> Path:
        logs: dict[str, bytes] = {}
        for process in ("triton", "agent"):
            try:
                logs[f"{folder.root.name}/{process}"] = _end(folder.log(process))
            except OSError as error:
                missing.append(f"{folder.root.name}'s log of {process}: {error.strerror}")
        content = bundle(record, ServerDiagnostics(logs, counts, tuple(missing)))
        path = bundle_file(self.state, record.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, content)
        _remove_old(path.parent)
        return path


async def _statistics(folder: GroupFolder, group: str) -> tuple[dict[str, bytes], list[str]]:
    try:
        ports = Ports(**json.loads(folder.ports.read_text()))
        return {group: await statistics(Endpoint(LOOPBACK, ports.http, ports.grpc))}, []
    except (NoStatisticsError, OSError, ValueError, TypeError) as error:
        return {}, [f"{group}'s statistics: {getattr(error, 'strerror', None) or error}"]


def _end(path: Path) -> bytes:
    """Return the end of a log, one byte more than is kept, so that the bundle can cut it at the end of a line."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - LOG_BYTES - 1, 0))
        return file.read()


def _remove_old(folder: Path) -> None:
    by_age = sorted(folder.glob(f"*{SUFFIX}"), key=lambda path: (path.stat().st_mtime_ns, path.name))
    for path in by_age[:-MAX_BUNDLES]:
        path.unlink(missing_ok=True)
