"""What the servers of a local group use: their processes' memory, their restarts, Triton's own counts."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict

from segserve_builder.agent.processes import resident_bytes
from segserve_operator.adapters.checks.triton_queue import queue_of
from segserve_operator.adapters.local import processes
from segserve_operator.adapters.local.files import StateFolder
from segserve_operator.adapters.local.fleet import GroupFolder
from segserve_operator.adapters.local.processes import ProcessRecord
from segserve_operator.adapters.local.triton import LOOPBACK
from segserve_operator.core.gates.checks import ResourceSample


class LocalResources:
    """Looks at a group's Triton and all processes that it started. A group is one server of its name."""

    def __init__(self, state: StateFolder) -> None:
        self._state = state
        self._seen: defaultdict[str, set[ProcessRecord]] = defaultdict(set)

    async def look(self, group: str) -> ResourceSample:
        """Return what a group uses now; restarts are those since this object first saw its server."""
        folder = GroupFolder(self._state.groups / group)
        process = processes.read_record(folder.record("triton"))
        if process is None:
            return ResourceSample()
        self._seen[group].add(process)
        memory_bytes = await asyncio.to_thread(resident_bytes, folder.record("triton"))
        queue = await queue_of(LOOPBACK, json.loads(folder.ports.read_text())["metrics"])
        return ResourceSample(
            memory_bytes={} if memory_bytes is None else {group: memory_bytes},
            restarts={group: len(self._seen[group]) - 1},
            queued_s=None if queue is None else queue.queued_s,
            requests=None if queue is None else queue.requests,
        )
