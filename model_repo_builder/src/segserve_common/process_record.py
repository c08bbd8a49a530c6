"""Records of processes, by which another process finds them again."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class ProcessRecord:
    """A process by its id, and by its start after the machine's boot, because ids are reused.

    Not by the Unix time of its start: that is another one once the machine's clock is set.
    """

    pid: int
    start_ticks: int
    boot_id: str

    @classmethod
    def of(cls, pid: int) -> Self:
        """Return the record of the process that has an id now. Raises `OSError` if no process has it."""
        return cls(pid, int(_stat(pid)[19]), _boot_id())  # starttime; see proc_pid_stat(5)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read a record. Raises `ValueError` if the text is not a record."""
        return cls.from_fields(json.loads(text))

    @classmethod
    def from_fields(cls, fields: Any) -> Self:
        """Read a record from its fields. Raises `ValueError` if they are not a record's."""
        try:
            return cls(int(fields["pid"]), int(fields["start_ticks"]), str(fields["boot_id"]))
        except (LookupError, TypeError, ArithmeticError) as error:
            raise ValueError(f"a process is recorded by pid, start_ticks and boot_id, got {fields!r}") from error

    def to_json(self) -> str:
        """Return the text that `from_json` reads."""
        return json.dumps(asdict(self))

    @property
    def is_present(self) -> bool:
        """Whether the id is still this process's; it may have ended without having been waited for."""
        try:
            return self == ProcessRecord.of(self.pid)
        except OSError:
            return False

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        with suppress(OSError):
            return self.is_present and _stat(self.pid)[0] not in (b"Z", b"X")
        return False

    @property
    def age_s(self) -> float:
        """How long ago it started."""
        return time.clock_gettime(time.CLOCK_BOOTTIME) - self.start_ticks / _TICKS_PER_S

    @property
    def started_at_s(self) -> float:
        """When it started, in Unix time by the clock as it is set now."""
        return time.time() - self.age_s


def _stat(pid: int) -> list[bytes]:
    """Return the fields of a process from its state on; see proc_pid_stat(5)."""
    # As bytes: a name that is cut within a character is not text.
    return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()


def _boot_id() -> str:
    with suppress(OSError):  # a sandbox may have none; it does not outlive a boot
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""
