"""Which platform a command talks to: the options that say so, and what holds where none is given."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, get_type_hints

import typer

from segserve.platforms.platform_ref import Cluster, Local, Place, default_place, open_platform

if TYPE_CHECKING:
    from segserve.platforms.port import Platform

PLUGIN: Final = "kubectl-"
_PANEL: Final = "Where"

_OPTIONS: Final = {
    "local": (
        Annotated[bool, typer.Option("--local", help="The platform of this machine.", rich_help_panel=_PANEL)],
        False,
    ),
    "context": (
        Annotated[
            str | None, typer.Option(metavar="NAME", help="The cluster of this kube context.", rich_help_panel=_PANEL)
        ],
        None,
    ),
    "namespace": (
        Annotated[
            str | None,
            typer.Option(
                "--namespace", "-n", metavar="NAME", help="The cluster's namespace; else the context's.",
                rich_help_panel=_PANEL,
            ),
        ],
        None,
    ),
    "kubeconfig": (
        Annotated[
            Path | None,
            typer.Option(metavar="FILE", help="Else $KUBECONFIG, then ~/.kube/config.", rich_help_panel=_PANEL),
        ],
        None,
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Where:
    """What the options say; nothing is said where all are at their defaults."""

    local: bool = False
    context: str | None = None
    namespace: str | None = None
    kubeconfig: Path | None = None

    def __post_init__(self) -> None:
        if self.local and self.names_a_cluster:
            raise typer.BadParameter(
                "--local is this machine; it goes with none of --context, --namespace, --kubeconfig"
            )

    @property
    def names_a_cluster(self) -> bool:
        """Whether only a cluster can be meant."""
        return any(given is not None for given in (self.context, self.namespace, self.kubeconfig))


def somewhere(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that say where; they come as its parameter `where`."""
    hints = get_type_hints(command, include_extras=True)
    own = [
        parameter.replace(annotation=hints[name])
        for name, parameter in inspect.signature(command).parameters.items()
        if name != "where"
    ]
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=option)
        for name, (option, default) in _OPTIONS.items()
    ]

    @functools.wraps(command)
    def run(**given: Any) -> Any:
        where = Where(**{name: given.pop(name) for name in _OPTIONS})
        return command(where=where, **given)

    # typer asks for both, and a wrapper's own say nothing.
    run.__signature__ = inspect.Signature([*own, *added])  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *added)}
    return run


def platform(where: Where) -> Platform:
    """Return the platform that is meant: the one named, else the local one where it is up, else the context's."""
    return open_platform(place(where))


def place(where: Where) -> Place:
    """Return the place that is meant."""
    if is_local(where):
        return Local()
    return Cluster(where.context, where.namespace, where.kubeconfig)


def is_local(where: Where) -> bool:
    """Return whether this machine's platform is meant."""
    if where.local or where.names_a_cluster:
        return where.local
    if Path(sys.argv[0]).name.startswith(PLUGIN):
        return False
    return isinstance(default_place(), Local)
