"""Options that commands share: those that select a platform, and a model with its gateway; and their completion."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeAlias, get_type_hints

import typer

from segserve.calls.credentials import CA_VARIABLE
from segserve.errors import HOPELESS, MissingExtraError, ModelNotFoundError, SegserveError
from segserve.platform import Cluster, Local, PlatformRef
from segserve_platform.platforms.local import LocalPlatform, local_store
from segserve_platform.platforms.port import Json, Platform
from segserve_platform.platforms.selection import default_platform_ref, open_platform
from segserve_platform.platforms.waiting import name_advice

if TYPE_CHECKING:
    from segserve.client import Client
    from segserve_platform.platforms.metrics import MetricsSource

PLUGIN: Final = "kubectl-"
PANEL: Final = "Platform"
_PARAMETER: Final = "platform_options"
PORTS: Final = range(1, 65536)
PATIENCE_S: Final = 1.0
"""How long completion waits for a cluster."""


ReportFormat: TypeAlias = Literal["text", "json"]
ReportOutput = Annotated[ReportFormat, typer.Option("--output", "-o", help="Output format.")]


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

    # typer reads both; the wrapper's own are meaningless.
    run.__signature__ = inspect.Signature([*own, *added])  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *added)}
    return run


def selected_platform(options: PlatformOptions) -> Platform:
    """Return the selected platform: the one named, else the local one if it is up, else the kube context's."""
    return open_platform(platform_ref(options))


def platform_ref(options: PlatformOptions) -> PlatformRef:
    """Return which platform is selected."""
    return Local() if is_local(options) else Cluster(options.context, options.namespace, options.kubeconfig)


def is_local(options: PlatformOptions) -> bool:
    """Return whether the platform of this machine is selected."""
    if options.local or options.selects_cluster:
        return options.local
    if Path(sys.argv[0]).name.startswith(PLUGIN):
        return False
    return isinstance(default_platform_ref(), Local)


def model_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the models of the platform that the current line selects; none if it does not respond at once."""
    values = {key: ctx.params.get(key) for key in ("context", "namespace", "kubeconfig")}
    try:
        platform_options = PlatformOptions(local=bool(ctx.params.get("local")), **values)
    except typer.BadParameter:
        return []
    return [name for name in known_models(platform_options) if name.startswith(incomplete)]


ModelOfFile: TypeAlias = Annotated[
    str | None,
    typer.Option(help="Model to use if the file has several.", show_default=False, autocompletion=model_names),
]


def known_models(platform_options: PlatformOptions) -> list[str]:
    """Return the names of a platform's models; none on errors, or if a cluster does not respond at once."""
    return [model["metadata"]["name"] for model in _models(platform_options)]


def family_names(incomplete: str) -> list[str]:
    """Return the names of families."""
    from segserve_builder.families import FAMILIES

    return [name for name in FAMILIES if name.startswith(incomplete)]


def _models(platform_options: PlatformOptions) -> list[Json]:
    def read() -> list[Json]:
        return selected_platform(platform_options).models()

    try:
        return read() if is_local(platform_options) else _in_time(read)
    except Exception:  # completion must never print errors
        return []


def _in_time(read: Callable[[], list[Json]]) -> list[Json]:
    """Return the result of `read`, or nothing if it takes longer than `PATIENCE_S`."""
    found: list[Json] = []

    def look() -> None:
        with contextlib.suppress(Exception):
            found.extend(read())

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    return list(found)


ModelName = Annotated[str, typer.Argument(help="Model name.", show_default=False, autocompletion=model_names)]
ScoreThreshold = Annotated[float | None, typer.Option(help="Minimum score of detections.", show_default=False)]
MaxDetections = Annotated[int | None, typer.Option(help="Keep at most this many detections.", show_default=False)]
InFlight = Annotated[int, typer.Option(min=1, max=256, help="Concurrent requests.")]
RequestTimeout = Annotated[
    str, typer.Option("--timeout", help="Timeout of each request, such as 90s or 2m; a plain number is in seconds.")
]
GatewayUrl = Annotated[
    str | None,
    typer.Option(
        envvar="SEGSERVE_URL",
        help="Gateway URL. Default: that of the platform, or http://127.0.0.1:8080 if none is up.",
        rich_help_panel=PANEL,
    ),
]


def seconds(duration: str) -> float:
    """Parse a duration in seconds: `90s`, `2m`, `1h30m` or a plain number; others are errors of the command line."""
    if (plain := re.fullmatch(r"(\d{1,8}(?:\.\d+)?)|(\d{1,8})s", duration)) is not None:
        return float(plain[1] or plain[2])
    from segserve_operator.api.meta import parse_duration

    try:
        return parse_duration(duration).total_seconds()
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def gateway(platform_options: PlatformOptions, model: str, url: str | None) -> AbstractContextManager[str | None]:
    """Make the gateway reachable inside the block; an explicit `url` is used as it is."""
    if url is not None:
        return nullcontext(url)
    try:
        platform = selected_platform(platform_options)
        if isinstance(platform, LocalPlatform) and (ca_file := platform.ca_file()) is not None:
            os.environ.setdefault(CA_VARIABLE, ca_file)
        return platform.gateway(model)
    except MissingExtraError:
        if not is_local(platform_options):
            raise
        return nullcontext(None)  # the default URL needs nothing of the extra `local`


def metrics_source(options: PlatformOptions, prometheus: str | None) -> MetricsSource:
    """Return where the selected platform's metrics are read: on a cluster in the selected namespace."""
    from segserve_platform.platforms.metrics import MetricsSource

    if is_local(options):
        return MetricsSource(local_store().state if prometheus is None else None, prometheus)
    if prometheus is None or options.namespace is not None:
        return MetricsSource(prometheus=prometheus, namespace=options.namespace)
    from segserve_platform.platforms.cluster.config import context_of

    return MetricsSource(
        prometheus=prometheus, namespace=context_of(Cluster(options.context, None, options.kubeconfig)).namespace
    )


@contextmanager
def model_client(platform_options: PlatformOptions, name: str, url: str | None, **settings: Any) -> Iterator[Client]:
    """Connect to the gateway that serves a model; `settings` are the client's.

    An error that concerns all images, raised in the block, also names the model that may have been meant.
    """
    from segserve.client import Client

    try:
        with (
            gateway(platform_options, name, url) as address,
            Client(address, platform=platform_ref(platform_options), **settings) as client,
        ):
            yield client
    except HOPELESS as error:
        raise with_advice(error, platform_options, error.model or name) from error


def with_advice(error: SegserveError, platform_options: PlatformOptions, name: str) -> SegserveError:
    """Return an error with the model that may have been meant, or why this one is not served."""
    if not isinstance(error, ModelNotFoundError) or error.advised:
        return error
    advice = name_advice(name, _models(platform_options))
    if not advice:
        return error
    return type(error)(f"{error.message}{advice}", status=error.status, model=error.model, request_id=error.request_id)
