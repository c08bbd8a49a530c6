"""The record of the platform that runs on this machine, by which commands find it; reading it imports nothing else."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass

from segserve_common.process_record import ProcessRecord
from segserve_operator.adapters.local.files import StateFolder


class PlatformError(Exception):
    """The local platform cannot do what was requested; the message has the cause and a remedy."""


@dataclass(frozen=True, slots=True)
class PlatformRecord:
    """The supervisor's process, the URL for clients, whether this supervisor has written all statuses once, its
    version of segserve ("" for one from before versions were recorded), and the file of the private authority ("" if
    there is none).
    """

    process: ProcessRecord
    url: str
    observed: bool
    version: str
    ca_file: str = ""


def read_platform(state: StateFolder) -> PlatformRecord | None:
    """Return the record of the running platform, or None if none runs."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        record = json.loads(state.platform.read_text())
        process = ProcessRecord.from_fields(record.get("process", record))
        if process.is_running:
            later = (record.get("version", ""), record.get("caFile", ""))
            return PlatformRecord(process, record["url"], record["observed"], *later)
    return None
