"""The terminal output of `segserve init`: what it observed, what it wrote, and what the user must check."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from segserve.rendering.display import one_line, printable
from segserve.results.objects import Objects
from segserve.results.result import Result
from segserve_builder.spec.model_spec import Output
from segserve_platform.cli.init.guess import Guess
from segserve_platform.cli.init.network import Remark

MOST_NAMES: Final = 8
MAX_DETECTIONS: Final[int] = Output().max_detections


def report(
    guessed: Guess, results: Sequence[Result] | None, remarks: Sequence[Remark], resource: Path
) -> RenderableType:
    """Return the report, as wide as the terminal; `results` are the golden answers, None without any."""
    size = guessed.network.path.stat().st_size / 2**20
    title = Text.assemble((printable(guessed.network.path.name, 200), "bold"), f"  {size:.3g} MiB")
    written = _pairs(_written(guessed, results, resource))
    parts: list[RenderableType] = [title, _pairs(_observed(guessed)), "", written]
    unsure = [remark.text for remark in remarks if not remark.sure]
    if unsure:
        parts += [
            "",
            Text.assemble(("could not be determined", "yellow"), "; check, and edit the file:"),
            _list(unsure),
        ]
    return Group(*parts, "", Text(f"next: segserve up -f {resource}"))


def _observed(guessed: Guess) -> Iterator[tuple[str, str]]:
    from segserve_builder.families.base import described

    yield "input", described(guessed.network.image)
    for tensor in guessed.network.signature.outputs:
        yield "output", described(tensor)
    yield "family", f"{guessed.candidate.family.name}: {guessed.candidate.because}"
    names = [printable(entry["name"]) for entry in guessed.spec["classes"]]
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    yield "classes", f"{len(names)}: {', '.join(names[:MOST_NAMES])}{more}"
    for key in ("preprocess", "postprocess"):
        yield key, " > ".join(_stages(guessed.spec[key], len(names)))
    if guessed.bound is not None:
        yield "maxPixels", f"{guessed.bound.pixels}: {guessed.bound.reason}"


def _written(guessed: Guess, results: Sequence[Result] | None, resource: Path) -> Iterator[tuple[str, str]]:
    yield "written", str(resource)
    copy = resource.with_name(guessed.network.path.name)
    if copy.exists() and not copy.samefile(guessed.network.path):
        yield "", f"{copy}: a copy of the network"
    if results is None:
        return
    yield "", f"{resource.with_name('golden')}: the answers to {len(results)} image{'s' if len(results) > 1 else ''}"
    yield "", f"{resource.with_name('preview')}: the same answers drawn over the images; check them"
    for result in results:
        text = one_line(result).partition(": ")[2].rstrip(">")
        at_limit = isinstance(result, Objects) and len(result) >= MAX_DETECTIONS
        yield "found", f"{text} ({MAX_DETECTIONS} is the limit, output.maxDetections)" if at_limit else text


def _stages(stages: Sequence[Mapping[str, Any]], classes: int) -> Iterator[str]:
    for item in stages:
        for name, options in item.items():
            shown = {} if name == "argmax" and classes > 2 else options  # its threshold is of two classes
            listed = ", ".join(f"{key} {_plain(value)}" for key, value in shown.items())
            yield f"{name} ({listed})" if listed else name


def _plain(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _pairs(rows: Iterator[tuple[str, str]]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for name, text in rows:
        grid.add_row(Text(f"  {name}", style="dim"), Text(text))
    return grid


def _list(texts: Sequence[str]) -> Table:
    grid = Table.grid(padding=(0, 1))
    for text in texts:
        grid.add_row(Text("  -", style="yellow"), Text(text))
    return grid
