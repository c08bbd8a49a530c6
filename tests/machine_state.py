"""What test runs have left on the machine: `python -m machine_state` (in `tests/`) lists it, and exits with 1 if any.

Others use the machine at the same time, so only what carries the suite's mark counts, of runs that have ended:
processes (the mark is in the environment of all that tests start), shared memory and folders for temporary files that
bear a run's name, and the tests' cluster. It needs neither root nor any tool.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import psutil

from cluster import kind
from suite_run import FOLDER_PREFIX, SHM, SHM_PREFIX, goes_on, held_regions, marked, recorded

CLUSTER: Final = kind.STATE


def leftovers() -> list[str]:
    """Return what is left, a line each."""
    return [*_processes(), *_shared_memory(), *_folders(), *_cluster()]


def _processes() -> Iterator[str]:
    for process in psutil.process_iter():
        mark = marked(process)
        if mark is not None and not goes_on(mark):
            with contextlib.suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE:
                    yield f"process {process.pid}: {' '.join(process.cmdline())[:200]}"


def _shared_memory() -> Iterator[str]:
    regions = sorted(SHM.glob(f"{SHM_PREFIX}*"))
    # After the listing: a process that made one has it by now, and a run that had begun has its record.
    held = held_regions()
    alive = [f"-{run.name}-" for run in recorded(_temporary()) if run.is_alive]
    for path in regions:
        if path not in held and not any(name in path.name for name in alive) and path.exists():
            yield f"shared memory {path}"


def _folders() -> Iterator[str]:
    folders = sorted(_temporary().glob(f"{FOLDER_PREFIX}*/"))
    alive = {run.folder for run in recorded(_temporary()) if run.is_alive}
    for folder in folders:
        if str(folder) not in alive and folder.is_dir():
            yield f"folder {folder}"


def _temporary() -> Path:
    """Return the folder in which runs have theirs, also from within a run."""
    given = Path(tempfile.gettempdir()).resolve()
    return given.parent if given.name.startswith(FOLDER_PREFIX) else given


def _cluster() -> Iterator[str]:
    mark = CLUSTER / "test-run"
    if mark.exists() and not goes_on(mark.read_text().strip()):
        yield f"cluster in {CLUSTER}"


def main() -> int:
    """Print what is left; return 1 if anything is."""
    found = leftovers()
    print("\n".join(found) or "the tests have left nothing")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
