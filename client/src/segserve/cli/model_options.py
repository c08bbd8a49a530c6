"""What commands that ask a model share: the way to its gateway, and what is said of a model that there is not."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, Final

import typer

from segserve.cli.completion import known_models, model_names
from segserve.cli.platform_options import PlatformOptions, is_local, selected_platform
from segserve.errors import GatewayUnreachableError, MissingExtraError, ModelNotFoundError

ModelName = Annotated[str, typer.Argument(help="The model.", show_default=False, autocompletion=model_names)]
ScoreThreshold = Annotated[float | None, typer.Option(help="Leave out what scores less.", show_default=False)]
GatewayUrl = Annotated[
    str | None,
    typer.Option(
        envvar="SEGSERVE_URL",
        help="The gateway; without it the platform's, or http://127.0.0.1:8080 where none is up.",
        rich_help_panel="Where",
    ),
]

HOPELESS: Final = (ModelNotFoundError, GatewayUnreachableError)
"""What the first image fails of, all do."""


def gateway(platform_options: PlatformOptions, model: str, url: str | None) -> AbstractContextManager[str | None]:
    """Make the gateway reachable for the time of the block; one that is named is not looked for."""
    if url is not None:
        return nullcontext(url)
    try:
        return selected_platform(platform_options).gateway(model)
    except MissingExtraError:
        if not is_local(platform_options):
            raise
        return nullcontext(None)  # to ask the usual address, nothing of the platform need be installed


def with_advice(error: ModelNotFoundError, platform_options: PlatformOptions, name: str) -> ModelNotFoundError:
    """Return the error with the name that may have been meant."""
    known = known_models(platform_options)
    if not known:
        return error
    from segserve_operator.api.checks import did_you_mean

    advice = f"{did_you_mean(name, known)}; there are: {', '.join(known)}"
    return ModelNotFoundError(f"{error.message}{advice}", status=error.status, model=error.model)
