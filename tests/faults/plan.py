"""What a revision does wrong, and the file that a server reads it from."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final, Literal

from segserve_common.files import write_private

VARIABLE: Final = "FAULTS"
"""The variable of a server's environment that holds a plan, or names its file."""
POOL_VARIABLE: Final = "KMP_AFFINITY"
"""The variable that a pool may set and that no program reads but the faults."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with every request but the first `after`, which its proof needs.

    `errors` is the share of pictures that fail, each as often as it is asked: the gateway asks once more where a server
    failed, so that a failure by chance would be hidden. `labels` moves or inverts what the network found, `lost_class`
    removes one class of it. After `crash_after` requests more the whole server is killed, and again after each restart.
    It takes `load_s` longer to load. A delayed request holds up no other.
    """

    after: int = 0
    delay_ms: float = 0.0
    errors: float = 0.0
    labels: Literal["", "shifted", "inverted"] = ""
    lost_class: int = -1
    leak_mib: float = 0.0
    crash_after: int = 0
    hang: bool = False
    load_s: float = 0.0


@dataclass
class Plan:
    """The faults of all revisions, in a file that servers read again whenever it changes."""

    path: Path
    faults: dict[str, Fault] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._write()

    def set(self, **faults: Fault) -> None:
        """Let faults of revisions begin, or be others than before."""
        self.faults |= faults
        self._write()

    def clear(self, *revisions: str) -> None:
        """Let faults end: those of some revisions, or all."""
        self.faults = {name: fault for name, fault in self.faults.items() if revisions and name not in revisions}
        self._write()

    def _write(self) -> None:
        write_private(self.path, text(self.faults))


def text(faults: dict[str, Fault]) -> str:
    """Return a plan as the variable may hold it."""
    well = asdict(Fault())
    wrong = {revision: asdict(fault).items() for revision, fault in faults.items()}
    told = {revision: {key: value for key, value in items if value != well[key]} for revision, items in wrong.items()}
    return json.dumps(told)
