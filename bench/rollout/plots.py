"""The plots of docs/evidence/decisions.md."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bench.rollout.cells import RATES, SLO_MS
from bench.rollout.conditions import CONDITIONS, STEADY
from bench.rollout.faults import NONE
from bench.rollout.figures import Results
from bench.rollout.ours import ALPHA
from bench.rollout.peers import PEERS
from bench.smoke import output
from bench.svg import plot_style, save_svg

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from matplotlib.axes import Axes

    from bench.rollout.figures import Row

PERCENT_POINTS: Final = (0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
OURS: Final = {"ours, at its own pace": "evidence", "ours, along the schedule": "steps"}
_COLOURS: Final = ("#0072b2", "#56b4e9", "#d55e00", "#e69f00", "#009e73", "#cc79a7", "#999999", "#8c510a", "#000000")
_SHOWN_RATES: Final = (1.0, 10.0, 100.0)
_LEAST: Final = 1e-4


def draw(found: Mapping[str, Any]) -> None:
    """Draw what there is results for."""
    results = Results.of(found)
    with plot_style():
        save_svg(_false_rollbacks(results), output("docs/images/rollout-false.svg"))
        save_svg(_curves(results, "excess"), output("docs/images/rollout-excess.svg"))
        save_svg(_curves(results, "detection_s"), output("docs/images/rollout-detection.svg"))


def _rules(row: Row) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, pace in OURS.items():
        yield name, row["ours"][pace]
    for peer in PEERS:
        yield peer, row["peers"]["tuned"][peer]


def _false_rollbacks(results: Results) -> Figure:
    """Draw false rollbacks by condition, a panel for each rate."""
    figure = Figure(figsize=(11, 5.2), layout="constrained")
    panels = figure.subplots(1, len(RATES), sharey=True, sharex=True)
    for axes, rate in zip(panels, RATES, strict=True):
        for place, condition in enumerate(CONDITIONS):
            row = results.cells.get((rate, condition, NONE, SLO_MS))
            for index, (_, each) in enumerate(_rules(row) if row else ()):
                share, low, high = (max(value, _LEAST) for value in each["rolled_back"])
                at = place + 0.08 * (index - 4)
                axes.plot([low, high], [at, at], color=_COLOURS[index], linewidth=0.8)
                axes.plot([share], [at], "o" if index < 2 else ".", color=_COLOURS[index], markersize=4)
        axes.axvline(ALPHA, color="black", linestyle="--", linewidth=0.8)
        axes.set(xscale="log", xlim=(_LEAST / 1.5, 1.3), title=f"{rate:g} rps", xlabel="healthy, rolled back")
        axes.set_yticks(range(len(CONDITIONS)), list(CONDITIONS))
    panels[0].invert_yaxis()
    _legend(figure)
    return figure


def _curves(results: Results, what: str) -> Figure:
    """Draw one figure by the size of an error regression, a panel for each rate."""
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    panels = figure.subplots(1, len(_SHOWN_RATES))
    for axes, rate in zip(panels, _SHOWN_RATES, strict=True):
        lines: dict[str, list[tuple[float, float]]] = {}
        for points in PERCENT_POINTS:
            row = results.cells.get((rate, STEADY, f"errors+{points:g}", SLO_MS))
            for name, each in _rules(row) if row else ():
                value = _middle(each, what)
                if value is not None:
                    lines.setdefault(name, []).append((points, value))
        _drawn(axes, lines)
        label = "excess bad requests, mean" if what == "excess" else "median seconds to weight 0"
        axes.set(
            xscale="log", yscale="log", title=f"{rate:g} rps", xlabel="added errors, percentage points", ylabel=label
        )
    _legend(figure)
    return figure


def _middle(figures: Mapping[str, Any], what: str) -> float | None:
    """Return a mean, or a median of those that half of the runs at least have."""
    if what == "excess":
        return float(figures["excess"][0])
    return float(figures["detection_s"][0][0]) if figures["rolled_back"][0] >= 0.5 else None


def _drawn(axes: Axes, lines: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    for index, name in enumerate((*OURS, *PEERS)):
        if name in lines:
            across, up = zip(*lines[name], strict=True)
            width = 2.2 if name in OURS else 1.0
            axes.plot(across, [max(value, 0.05) for value in up], ".-", color=_COLOURS[index], linewidth=width)


def _legend(figure: Figure) -> None:
    names = (*OURS, *PEERS)
    handles = [Line2D([], [], color=colour, marker=".") for colour in _COLOURS]
    figure.legend(handles, names, loc="outside lower center", ncols=5)
