"""`segserve demo`: the coins' networks served, and what they find in a photograph."""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Annotated, Final

import typer

from segserve_common.interpreter import python
from segserve_platform.cli import lifecycle
from segserve_platform.cli.errors import CommandError, needs
from segserve_platform.cli.signals import ends_on_signals
from segserve_platform.platforms.local import LocalPlatform
from segserve_platform.platforms.waiting import wait_serving

START_S: Final = 180


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="Folder that the overlays are written to.")
    ] = Path("segserve-demo"),
    port: Annotated[int | None, typer.Option(help="Gateway port. Default: a free one.", show_default=False)] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Continue to serve until Ctrl-C.")] = False,
) -> None:
    """Serve three small networks that find the coins in a photograph, and show what they find.

    Prints the masks' quality next to the truth and where the time of a call goes. The platform has its own folder and
    ends with the command; the one of `segserve up` is not touched. The first run installs the runtime environment.
    """
    with needs("local"):
        from segserve_operator.adapters.local.files import StateFolder, read_platform
        from segserve_operator.adapters.local.runtime import compiling_the_rest
        from segserve_operator.adapters.local.triton import free_port
        from segserve_operator.local_platform.shutdown import end

    folder = coins_folder()
    # In the usual place of temporary files: the path of Envoy's admin socket must be short.
    with tempfile.TemporaryDirectory(prefix="segserve-demo-") as root, ends_on_signals():
        os.environ["SEGSERVE_STATE"] = root
        state = StateFolder(Path(root))
        try:
            names = lifecycle.apply_files([folder / "model.yaml"], port or free_port())
            runtime = lifecycle.install_runtime()
            lifecycle.launch(state, compile_all=False)
            with compiling_the_rest(runtime):
                deadline_s = time.monotonic() + START_S
                for name in names:
                    typer.echo(f"{name}: {wait_serving(LocalPlatform(), name, deadline_s, f'{START_S} s')}")
            # Nothing else runs while the calls are timed.
            platform = read_platform(state)
            if platform is None:
                raise CommandError("the platform ended before it was called")
            output.mkdir(parents=True, exist_ok=True)
            packages = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
            environment = {**os.environ, "SEGSERVE_URL": platform.url, "PYTHONPATH": packages}
            done = subprocess.run(python("-m", "demo", str(output)), env=environment, check=False)
            if done.returncode:
                raise typer.Exit(done.returncode)
            if keep:
                with compiling_the_rest(runtime):
                    lifecycle.show_until_interrupted(state)
        finally:
            end(state)
            typer.echo("the demo's platform was stopped")
    typer.echo(f"next: segserve up -f {shlex.quote(os.path.relpath(folder / 'model.yaml'))}")


def coins_folder() -> Path:
    """Return the folder of the coins: in an installed package, or in the checkout from which it is imported."""
    packages = Path(__file__).parents[2]
    packaged = packages / "segserve_platform/examples/coins"
    return packaged if packaged.exists() else packages.parents[1] / "examples/coins"
