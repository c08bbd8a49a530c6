"""The end of the local platform. What it imports is light: `segserve down` needs nothing of what a platform runs."""

from __future__ import annotations

import contextlib
import os
import shutil

from segserve_builder.render.tritonserver import sweep_shm
from segserve_operator.adapters.local import processes
from segserve_operator.adapters.local.files import StateFolder, read_platform
from segserve_operator.adapters.local.leftovers import shm_prefix, sweep_step_environments


def end(state: StateFolder, *, keep_models: bool = False) -> bool:
    """Stop the platform, remove its shared memory and files, and return whether there was anything to stop.

    With `keep_models` resources and the records of their revisions stay, and the next start serves the models again.
    """
    if not state.root.exists():
        return False
    record = read_platform(state)
    if record is not None and record.process.pid != os.getpid():
        processes.end(record.process, grace_s=processes.STOP_GRACE_S, descendants=False)
    ended = processes.end_marked_processes(state.root, grace_s=processes.STOP_GRACE_S)
    for group in state.groups.glob("*"):
        sweep_shm(shm_prefix(state, group.name))
    sweep_step_environments()
    # Only what the platform created: users may keep other files in the state folder.
    of_models = (state.objects, state.revisions, state.tls, state.secrets)
    folders = [state.groups, state.gateway, *(() if keep_models else of_models)]
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    is_empty = not state.objects.exists()
    for file in (state.platform, state.log, state.lock, *((state.format, state.requests) if is_empty else ())):
        file.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        state.root.rmdir()
    return record is not None or ended > 0
