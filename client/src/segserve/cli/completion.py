"""Shell completion: the scripts, and the names of the platform's models."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Annotated, Final, Literal

import typer

from segserve.cli.platform_options import PlatformOptions

PATIENCE_S: Final = 1.0
"""How long completion waits for a cluster."""


def completion(
    shell: Annotated[Literal["bash", "zsh", "fish"], typer.Argument(help="Shell to complete in.", show_default=False)],
) -> None:
    """Print the shell script that completes commands, options and model names.

    To install it permanently: `segserve completion bash > ~/.local/share/bash-completion/completions/segserve`,
    `segserve completion zsh > "${fpath[1]}/_segserve"`, `segserve completion fish >
    ~/.config/fish/completions/segserve.fish`.
    """
    from typer.completion import get_completion_script  # type: ignore[attr-defined]

    typer.echo(get_completion_script(prog_name="segserve", complete_var="_SEGSERVE_COMPLETE", shell=shell))


def model_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the models of the platform that the current line selects; none if it does not respond at once."""
    from segserve.cli.platform_options import PlatformOptions

    values = {key: ctx.params.get(key) for key in ("context", "namespace", "kubeconfig")}
    try:
        platform_options = PlatformOptions(local=bool(ctx.params.get("local")), **values)
    except typer.BadParameter:
        return []
    return [name for name in known_models(platform_options) if name.startswith(incomplete)]


def known_models(platform_options: PlatformOptions) -> list[str]:
    """Return the names of a platform's models; none on errors, or if a cluster does not respond at once."""
    from segserve.cli.platform_options import is_local

    try:
        return _names(platform_options) if is_local(platform_options) else _in_time(lambda: _names(platform_options))
    except Exception:  # completion must never print errors
        return []


def family_names(incomplete: str) -> list[str]:
    """Return the names of families."""
    from segserve_builder.families import FAMILIES

    return [name for name in FAMILIES if name.startswith(incomplete)]


def _names(platform_options: PlatformOptions) -> list[str]:
    from segserve.cli.platform_options import selected_platform

    return [model["metadata"]["name"] for model in selected_platform(platform_options).models()]


def _in_time(find: Callable[[], list[str]]) -> list[str]:
    """Return the result of `find`, or nothing if it takes longer than `PATIENCE_S`."""
    names: list[str] = []

    def look() -> None:
        with contextlib.suppress(Exception):
            names.extend(find())

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    return list(names)
