"""Options and helpers of commands that call a model."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, Final

import typer

from segserve.cli.completion import known_models, model_names
from segserve.cli.platform_options import PANEL, PlatformOptions, is_local, selected_platform
from segserve.errors import GatewayUnreachableError, MissingExtraError, ModelNotFoundError

ModelName = Annotated[str, typer.Argument(help="Model name.", show_default=False, autocompletion=model_names)]
ScoreThreshold = Annotated[float | None, typer.Option(help="Minimum score of detections.", show_default=False)]
GatewayUrl = Annotated[
    str | None,
    typer.Option(
        envvar="SEGSERVE_URL",
        help="Gateway URL. Default: that of the platform, or http://127.0.0.1:8080 if none is up.",
        rich_help_panel=PANEL,
    ),
]

HOPELESS: Final = (ModelNotFoundError, GatewayUnreachableError)
"""Errors that affect every image alike."""


def gateway(platform_options: PlatformOptions, model: str, url: str | None) -> AbstractContextManager[str | None]:
    """Make the gateway reachable inside the block; an explicit `url` is used as it is."""
    if url is not None:
        return nullcontext(url)
    try:
        return selected_platform(platform_options).gateway(model)
    except MissingExtraError:
        if not is_local(platform_options):
            raise
        return nullcontext(None)  # the default URL needs nothing of the extra `local`


def with_advice(error: ModelNotFoundError, platform_options: PlatformOptions, name: str) -> ModelNotFoundError:
    """Return the error with a suggestion of the model that may have been meant."""
    names = known_models(platform_options)
    if not names:
        return error
    from segserve_operator.api.checks import did_you_mean

    advice = f"{did_you_mean(name, names)}; there are: {', '.join(names)}"
    return ModelNotFoundError(f"{error.message}{advice}", status=error.status, model=error.model)
