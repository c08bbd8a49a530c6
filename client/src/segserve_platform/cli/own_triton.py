"""`segserve build --check`: a Triton of the user's own loads what was built, and answers the golden images."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from segserve_builder.agent import secret
from segserve_builder.agent.protocol import AssignedModel
from segserve_builder.agent.runner import ActionResult, ActionRunner
from segserve_builder.agent.server import Repository, TritonServer, TritonUnreachableError
from segserve_builder.agent.state import (
    Action,
    AssignedRevision,
    LoadStep,
    Prepare,
    Prepared,
    Prove,
    Serve,
)
from segserve_builder.cluster.triton import environment
from segserve_builder.render.target import RenderTarget
from segserve_builder.render.tritonserver import Ports, server_arguments, sweep_shm
from segserve_builder.sources.access import Access
from segserve_common.process_record import ProcessRecord
from segserve_operator.adapters.local import processes
from segserve_operator.adapters.local.files import cache_folder
from segserve_operator.adapters.local.triton import LOOPBACK, free_port
from segserve_platform.cli.errors import CommandError

_START_S: Final = 120.0
_LOOK_S: Final = 0.2
_ATTEMPTS: Final = 10
_END_S: Final = 30
_SHOWN_LINES: Final = 20
_LOG: Final = "triton.log"


def check(
    program: Path, repository: Path, models: Iterable[AssignedModel], target: RenderTarget, access: Access
) -> Iterator[str]:
    """Yield a line for each model that the `tritonserver` at `program` loads and that answers as its golden set says.

    Triton serves a copy of `repository` on loopback, and only this process can manage it; backends are looked for in
    `backends` beside the folder of `program`. Raises `CommandError` with what failed and the end of Triton's log.
    """
    with tempfile.TemporaryDirectory(prefix="segserve-check-") as name:
        folder = Path(name)
        copy = shutil.copytree(repository, folder / "repository")
        with _running(program, copy, folder, target) as server:
            runner = ActionRunner(
                server,
                Repository(copy),
                cache_folder(),
                folder / _LOG,
                target,
                access=access,
                gpu_count=lambda: int(target.has_gpu),
            )
            for assigned in map(AssignedRevision.of, models):
                yield f"{assigned.revision} {_proved(runner, assigned)} by {program}"


def _proved(runner: ActionRunner, assigned: AssignedRevision) -> str:
    def done(action: Action, prepared: Prepared | None = None) -> ActionResult:
        result = runner.carry_out(action, assigned, prepared)
        if result.failure is not None:
            raise CommandError(f"{assigned.revision}: {result.failure.message}\n{_end_of(runner.log)}")
        return result

    names = (assigned.revision, assigned.model)
    prepared = done(Prepare(*names)).prepared
    assert prepared is not None
    for step in prepared.steps:
        done(LoadStep(step))
    done(Serve(*names), prepared)
    for _ in range(_ATTEMPTS):
        # Of a server that does not answer in time an action says nothing: it may only be busy.
        if (proof := done(Prove(*names), prepared).proof) is not None:
            break
        time.sleep(_LOOK_S)
    else:
        raise CommandError(f"{assigned.revision}: Triton has stopped answering:\n{_end_of(runner.log)}")
    return f"answers its {proof.images} golden images" if proof.kind == "golden" else "answers the built-in image"


@contextmanager
def _running(program: Path, repository: Path, folder: Path, target: RenderTarget) -> Iterator[TritonServer]:
    ports, prefix = Ports(free_port(), free_port(), free_port()), f"segserve-check-{os.getpid()}-"
    folders = [path.parent.parent / "backends" for path in (program.absolute(), program.resolve())]
    backends = next(filter(Path.is_dir, folders), None)
    if backends is None or not program.is_file():
        raise CommandError(f"{program} is not an installed tritonserver: a file, with its backends in {folders[0]}")
    argv = server_arguments(
        program.absolute(),
        repository,
        backends,
        target,
        address=LOOPBACK,
        ports=ports,
        exit_timeout_s=_END_S,
        shm_prefix=prefix,
    )
    hidden = dict(option.split("=", 1) for option in secret.server_arguments(secret.obtain(folder / "secret")))
    process = processes.start(
        argv,
        record=folder / "triton.json",
        log=folder / _LOG,
        environment=environment(os.environ) | hidden,
        state=folder,
    )
    server = TritonServer(ports.grpc, folder / "secret")
    try:
        _wait(server, process, folder / _LOG)
        yield server
    finally:
        server.close()
        processes.end(process, grace_s=_END_S)
        sweep_shm(prefix)


def _wait(server: TritonServer, process: ProcessRecord, log: Path) -> None:
    until_s = time.monotonic() + _START_S
    while processes.is_alive(process) and time.monotonic() < until_s:
        try:
            server.states()
            return
        except TritonUnreachableError:
            time.sleep(_LOOK_S)
    raise CommandError(f"Triton does not answer:\n{_end_of(log)}")


def _end_of(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-_SHOWN_LINES:])
