"""`segserve openapi`: the OpenAPI document of the models of a platform."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from segserve_platform.cli.errors import CommandError
from segserve_platform.cli.options import PlatformOptions, model_names, selected_platform, with_platform_options
from segserve_platform.platforms.manifests import stored_models, stored_pipeline

if TYPE_CHECKING:
    from collections.abc import Mapping

    from segserve_builder.openapi import DescribedModel
    from segserve_platform.platforms.port import Json


@with_platform_options
def openapi(
    platform_options: PlatformOptions,
    names: Annotated[
        list[str] | None, typer.Argument(help="Model names. Default: all models.", autocompletion=model_names)
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Output file. Default: standard output.")
    ] = None,
) -> None:
    """Print the OpenAPI 3.1 document of the models' plain HTTP: their paths, options and answers.

    It follows from the models' resources as the platform has them, up or not. If it is up, its address is in the
    document.
    """
    from segserve_builder.openapi import describe_models

    if output is not None and (not output.name or output.is_dir()):
        raise CommandError(f"-o names a file, got the folder {str(output)!r}")
    platform = selected_platform(platform_options)
    stored = stored_models(platform)
    manifests = [platform.model(name) for name in names] if names else stored.values()
    up = platform.version()
    document = describe_models(
        [_described(manifest, stored) for manifest in manifests],
        version=metadata.version("segserve"),
        url=up.url if up is not None else "",
    )
    text = json.dumps(document, indent=1) + "\n"
    if output is None:
        typer.echo(text, nl=False)
    else:
        output.write_text(text)


def _described(manifest: Json, stored: Mapping[str, Json]) -> DescribedModel:
    from segserve_builder.openapi import DescribedModel
    from segserve_builder.steps.postprocess import check_postprocess
    from segserve_builder.steps.prompts import MULTIMASK_PARAMETER, PROMPT_PARAMETERS

    pipeline = stored_pipeline(manifest, stored)
    options: tuple[str, ...] = pipeline.output.overrides
    if pipeline.decoder is not None:
        options = (*({"encoding"} & {*options}), *PROMPT_PARAMETERS, MULTIMASK_PARAMETER)
    return DescribedModel(
        pipeline.model,
        check_postprocess(pipeline),
        tuple((item.id, item.name) for item in pipeline.classes),
        options,
    )
