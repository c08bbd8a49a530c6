"""`segserve bench`: how fast a model answers under a load, and how much it takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Final, TypeVar

import typer
from rich.console import Console

from segserve.errors import HOPELESS
from segserve_platform.cli.errors import plain
from segserve_platform.cli.image_files import image_files
from segserve_platform.cli.options import (
    GatewayUrl,
    ModelName,
    PlatformOptions,
    gateway,
    model_names,
    platform_ref,
    seconds,
    with_advice,
    with_platform_options,
)
from segserve_platform.cli.terminal import print_whole, spinner

Number = TypeVar("Number", int, float)
_ONE_LOAD: Final = "several with commas, such as 1,4,16"


@with_platform_options
def bench(
    platform_options: PlatformOptions,
    name: ModelName,
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE", help="Image files, quoted globs or folders, sent in turn.", show_default=False),
    ],
    concurrency: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBERS",
            help=f"Callers at once, each of which waits for its answers; {_ONE_LOAD}. Default: 1,2,4,8.",
            show_default=False,
        ),
    ] = None,
    rps: Annotated[
        str | None,
        typer.Option(
            metavar="RATES",
            help=f"Requests per second that come at random, whether or not others are answered; {_ONE_LOAD}.",
            show_default=False,
        ),
    ] = None,
    duration: Annotated[str, typer.Option(help="How long each load lasts, such as 30s or 2m.")] = "10s",
    warmup: Annotated[str, typer.Option(help="How long each load lasts before it counts.")] = "2s",
    against: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Compare with this model, which gets the same requests in turns.",
            show_default=False,
            autocompletion=model_names,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON instead of a table.")] = False,
    url: GatewayUrl = None,
    timeout: Annotated[
        str, typer.Option(help="Timeout of each request, such as 90s or 2m; a plain number is in seconds.")
    ] = "30s",
) -> None:
    """Measure how fast a model answers, and how many requests it takes: latencies with intervals, load by load.

    `--concurrency` keeps that number of requests in flight. `--rps` sends at a fixed rate, and measures latency from
    the scheduled time. Requests are not retried; the exit code is 1 if a request was not answered. `segserve top`
    shows the load of the servers during a run.
    """
    import json

    from segserve.client import Client
    from segserve_platform.benchmarking.running import benchmark

    callers, rates = _numbers(concurrency, int, "--concurrency"), _numbers(rps, float, "--rps")
    files = [image.read().image for image in image_files(images, recursive=False).images]
    try:
        with (
            gateway(platform_options, name, url) as address,
            Client(address, timeout_s=seconds(timeout), platform=platform_ref(platform_options), retries=0) as client,
            spinner("asking once") as say,
        ):
            report = benchmark(
                name,
                files,
                concurrency=callers,
                requests_per_s=rates,
                duration_s=seconds(duration),
                warmup_s=seconds(warmup),
                against=against,
                client=client,
                progress=lambda model, load: say(plain(f"{model}: {load}")),
            )
    except HOPELESS as error:
        raise with_advice(error, platform_options, name) from error
    if as_json:
        typer.echo(json.dumps(report.to_dict()))
    else:
        shown = ", ".join(report.revisions)
        typer.echo(plain(f"{name} ({shown}), images: {len(files)}, {duration} each"))
        print_whole(Console(), report)
        if report.knee is not None:
            typer.echo(f"{report.knee} at once bring at least 90 % of the best throughput; more callers only wait")
    errors = [each for part in (report, report.against) if part is not None for each in part.loads if each.failed]
    for each in errors:
        counted = ", ".join(f"{count} {error}" for error, count in each.errors.items())
        typer.echo(f"{each.load}: {each.failed} of {each.requests} requests were not answered: {counted}", err=True)
    if errors:
        raise typer.Exit(1)


def _numbers(text: str | None, kind: Callable[[str], Number], option: str) -> list[Number] | None:
    if text is None:
        return None
    try:
        return [kind(each) for each in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{option} takes numbers with commas, got {text!r}") from None
