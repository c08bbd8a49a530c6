"""The record of the platform that runs on this machine, by which clients and commands find it."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from segserve_common.files import DamagedFileError, read_file
from segserve_common.process_record import ProcessRecord

STATE_VARIABLE: Final = "SEGSERVE_STATE"
RECORD_FILE: Final = "platform.json"
"""Name of the record in the state folder."""


@dataclass(frozen=True, slots=True)
class PlatformRecord:
    """The supervisor's process, the URL for clients, whether this supervisor has written all statuses once, its
    version of segserve ("" for one from before versions were recorded), and the file of the private authority (""
    without one).
    """

    process: ProcessRecord
    url: str
    observed: bool
    version: str
    ca_file: str = ""


def state_folder() -> Path:
    """Return the state folder of the platform that commands act on."""
    folder = os.environ.get(STATE_VARIABLE)
    return Path(folder).resolve() if folder else Path.home() / ".local/state/segserve"


def read_record(path: Path) -> PlatformRecord | None:
    """Return the record of the running platform in a file, or None if none runs."""
    with contextlib.suppress(OSError, DamagedFileError):
        record = read_file(path, _parse)
        return record if record.process.is_running else None
    return None


def _parse(text: str) -> PlatformRecord:
    record = json.loads(text)
    process = ProcessRecord.from_fields(record.get("process", record))
    texts = (record["url"], record.get("version", ""), record.get("caFile", ""))
    if not all(isinstance(each, str) for each in texts):
        raise TypeError(f"url, version and caFile are texts, got {texts!r}")
    url, version, ca_file = texts
    return PlatformRecord(process, url, record["observed"] is True, version, ca_file)
