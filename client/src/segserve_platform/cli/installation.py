"""How the installation of the local platform goes on: bars on a terminal, else a few lines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from segserve_platform.cli.errors import needs

if TYPE_CHECKING:
    from segserve_operator.adapters.local.runtime import InstallStep, OnStep

LINES_PER_STEP: Final = 4
"""Lines of a step after its first, if the output is not a terminal."""


def install_engines(models: Iterable[Mapping[str, Any]]) -> None:
    """Install what the manifests of models need beside the runtime environment: OpenVINO, and CUDA where a GPU is."""
    runtimes = [model["spec"].get("runtime") or {} for model in models]
    openvino = any(runtime.get("engine") == "openvino" for runtime in runtimes)
    gpu = any(runtime.get("device") == "gpu" for runtime in runtimes)
    if not openvino and not gpu:
        return
    with needs("local"):
        from segserve_builder.gpus import visible_gpus
        from segserve_operator.adapters.local.files import cache_folder
        from segserve_operator.adapters.local.runtime import ensure_cuda, ensure_openvino

    with installation_progress() as progress:
        if openvino:
            ensure_openvino(cache_folder(), progress)
        if gpu and visible_gpus():  # without one, the model's condition says what is missing
            ensure_cuda(cache_folder(), progress)


@contextmanager
def installation_progress() -> Iterator[OnStep]:
    """Show the steps that the function is called with on stderr; it may be called from several threads."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[parts]}"), TimeElapsedColumn())
    with Progress(*columns, console=console) as bars:
        tasks: dict[str, TaskID] = {}

        def show(step: InstallStep) -> None:
            if step.text not in tasks:
                tasks[step.text] = bars.add_task(step.text, parts="")
            parts = f"{step.done}/{step.total}"
            bars.update(tasks[step.text], completed=step.done, total=step.total, parts=parts)

        yield show


class _Lines:
    """Prints a line as a step begins, and a few while its parts are done."""

    def __init__(self) -> None:
        self._printed: dict[str, int] = {}

    def __call__(self, step: InstallStep) -> None:
        quarter = step.done * LINES_PER_STEP // step.total
        if self._printed.get(step.text, -1) < quarter:
            self._printed[step.text] = quarter
            typer.echo(str(step), err=True)
