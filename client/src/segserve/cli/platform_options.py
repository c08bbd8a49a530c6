"""The options that select a platform, and the platform that they select."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, get_type_hints

import typer

from segserve.platforms.port import Cluster, Local, Platform
from segserve.platforms.selection import default_platform_ref, open_platform

PLUGIN: Final = "kubectl-"
PANEL: Final = "Platform"
_PARAMETER: Final = "platform_options"

_OPTIONS: Final = {
    "local": (
        Annotated[bool, typer.Option("--local", help="Use the platform of this machine.", rich_help_panel=PANEL)],
        False,
    ),
    "context": (
        Annotated[
            str | None,
            typer.Option(metavar="NAME", help="Use the cluster of this kubeconfig context.", rich_help_panel=PANEL),
        ],
        None,
    ),
    "namespace": (
        Annotated[
            str | None,
            typer.Option(
                "--namespace", "-n", metavar="NAME",
                help="Namespace in the cluster. Default: that of the context.", rich_help_panel=PANEL,
            ),
        ],
        None,
    ),
    "kubeconfig": (
        Annotated[
            Path | None,
            typer.Option(
                metavar="FILE", help="Kubeconfig file. Default: $KUBECONFIG, or ~/.kube/config.",
                rich_help_panel=PANEL,
            ),
        ],
        None,
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class PlatformOptions:
    """The values of the platform options; all defaults if none is given."""

    local: bool = False
    context: str | None = None
    namespace: str | None = None
    kubeconfig: Path | None = None

    def __post_init__(self) -> None:
        if self.local and self.selects_cluster:
            raise typer.BadParameter(
                "--local selects this machine and cannot be combined with --context, --namespace or --kubeconfig"
            )

    @property
    def selects_cluster(self) -> bool:
        """Whether an option is given that applies only to clusters."""
        return any(value is not None for value in (self.context, self.namespace, self.kubeconfig))


def with_platform_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the platform options to a command, which receives them as its parameter `platform_options`."""
    hints = get_type_hints(command, include_extras=True)
    own = [
        parameter.replace(annotation=hints[name])
        for name, parameter in inspect.signature(command).parameters.items()
        if name != _PARAMETER
    ]
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=option)
        for name, (option, default) in _OPTIONS.items()
    ]

    @functools.wraps(command)
    def run(**arguments: Any) -> Any:
        options = PlatformOptions(**{name: arguments.pop(name) for name in _OPTIONS})
        return command(**arguments, **{_PARAMETER: options})

    # typer reads both; those of the wrapper itself are meaningless.
    run.__signature__ = inspect.Signature([*own, *added])  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *added)}
    return run


def selected_platform(options: PlatformOptions) -> Platform:
    """Return the selected platform: the one named, else the local one if it is up, else that of the kube context."""
    return open_platform(
        Local() if is_local(options) else Cluster(options.context, options.namespace, options.kubeconfig)
    )


def is_local(options: PlatformOptions) -> bool:
    """Return whether the platform of this machine is selected."""
    if options.local or options.selects_cluster:
        return options.local
    if Path(sys.argv[0]).name.startswith(PLUGIN):
        return False
    return isinstance(default_platform_ref(), Local)
