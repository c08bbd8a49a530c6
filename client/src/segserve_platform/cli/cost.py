"""`segserve cost`: what requests of each model and revision have used, and what that costs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from segserve_platform.cli.errors import CommandError
from segserve_platform.cli.options import (
    PlatformOptions,
    Prometheus,
    metrics_source,
    model_names,
    selected_platform,
    with_platform_options,
)
from segserve_platform.cli.terminal import print_whole
from segserve_platform.platforms.history import read_requests

if TYPE_CHECKING:
    from segserve_platform.platforms.costs import CallerKind, CallerUses, CostRow
    from segserve_platform.platforms.metrics import MetricsSnapshot


CostOf: TypeAlias = Literal["revision", "caller", "slice"]
"""Whose costs are listed."""


@with_platform_options
def cost(
    platform_options: PlatformOptions,
    model: Annotated[str | None, typer.Argument(help="Only this model.", autocompletion=model_names)] = None,
    by: Annotated[
        CostOf, typer.Option(help="Divide by revision, or by the callers or slices that the gateway counts or logs.")
    ] = "revision",
    pixel_metres: Annotated[
        float | None, typer.Option(min=1e-6, help="Size of a pixel on the ground in metres: adds the cost per km².")
    ] = None,
    prometheus: Prometheus = None,
    output: Annotated[
        Literal["text", "json", "opencost", "opencost-custom"],
        typer.Option(
            "--output", "-o", help="Output format: opencost are allocations, opencost-custom costs as of a plugin."
        ),
    ] = "text",
) -> None:
    """Show what requests have used since their servers started, and what that costs if the pool has prices.

    The shares of all revisions add up to what the processes of the servers, and of this machine's gateway, used. Prices
    are `spec.cost` of the pool.
    """
    from segserve_platform.platforms.costs import (
        allocations,
        caller_pixels,
        cost_rows,
        custom_costs,
        divided,
        slice_pixels,
    )

    snapshot = metrics_source(platform_options, prometheus).snapshot()
    rows = [row for row in cost_rows(snapshot) if model is None or row.model == model]
    if by != "revision":
        uses, pixels = _callers(platform_options, snapshot, by), slice_pixels(snapshot)
        rows = list(divided(rows, uses, pixels if by == "slice" else caller_pixels(pixels, uses)))
    if output in ("opencost", "opencost-custom"):
        formed = allocations if output == "opencost" else custom_costs
        typer.echo(json.dumps(formed(rows, snapshot)))
        return
    if output == "json":
        listed = [row.to_json() | _per_area(row.to_json(), pixel_metres) for row in rows]
        typer.echo(json.dumps(listed))
        return
    if not rows:
        typer.echo("nothing has been counted yet: servers count every ten seconds")
        return
    print_whole(Console(), _table(rows, by, pixel_metres))


def _callers(platform_options: PlatformOptions, snapshot: MetricsSnapshot, by: CallerKind) -> CallerUses:
    """Return what the gateway has counted by caller or slice, or else logged."""
    from segserve_platform.platforms.costs import counted_callers, logged_callers

    counted = counted_callers(snapshot, by)
    lines = None if counted else selected_platform(platform_options).access_log(0.0)
    if lines is not None:
        return logged_callers(read_requests(lines), by)
    if not counted:
        raise CommandError(
            f"the gateway has counted no answered request by {by}, and logs none: spec.gateway.callerMetrics of the "
            "pool turns counting on"
        )
    return counted


def _per_area(found: Mapping[str, Any], pixel_metres: float | None) -> dict[str, float]:
    # A million pixels of a square metre are a square kilometre.
    if pixel_metres is None or "perMegapixel" not in found:
        return {}
    return {"perSquareKilometre": found["perMegapixel"] / pixel_metres**2}


def _table(rows: Iterable[CostRow], by: CostOf, pixel_metres: float | None) -> Table:
    from segserve_platform.platforms.costs import NOBODY

    listed = list(rows)
    priced = any(row.prices.any for row in listed)
    titles = ["MODEL", "REVISION", *([] if by == "revision" else [by.upper()])]
    numbers = ["REQUESTS", "CPU S", "CPU/REQ", "MPIX/REQ", "BYTES/REQ"]
    money = ["COST", "PER 1000", "PER MPIX", *(["PER KM2"] if pixel_metres else [])] if priced else []
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for title in titles:
        table.add_column(title, no_wrap=True)
    for title in (*numbers, *money):
        table.add_column(title, no_wrap=True, justify="right")
    for row in listed:
        found = row.to_json()
        found |= _per_area(found, pixel_metres)
        cells = [row.model or NOBODY, row.revision, *([] if by == "revision" else [row.name])]
        cells += [f"{row.use.requests:.0f}", f"{row.use.cpu_s:.2f}", _shown(found, "cpuSecondsPerRequest", 1000, " ms")]
        cells += [_shown(found, "megapixelsPerRequest"), decimal(int(found.get("bytesPerRequest", 0)))]
        for name in ("money", "per1000Requests", "perMegapixel", "perSquareKilometre")[: len(money)]:
            cells.append(_shown(found, name, 1, f" {row.prices.currency}"))
        table.add_row(*cells)
    return table


def _shown(found: Mapping[str, Any], name: str, factor: float = 1.0, unit: str = "") -> str:
    return f"{factor * found[name]:.3g}{unit}" if name in found else "-"
