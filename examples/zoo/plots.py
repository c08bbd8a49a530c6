"""The plot of docs/evidence/quality.md: each network's figure when served, over the same in plain torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from matplotlib.figure import Figure

from bench.svg import BLUE, GREY, ORANGE, plot_style, save_svg
from examples.zoo.training import HERE

PLOT: Final = HERE.parents[1] / "docs/images/zoo-agreement.svg"
FIGURES: Final = {"mIoU": BLUE, "AP": ORANGE}


def draw(report: Mapping[str, Any]) -> None:
    """Draw mIoU and AP of every network and way, both axes from 0.4 to 0.85."""
    with plot_style():
        figure = Figure(figsize=(5.2, 4.4), layout="constrained")
        axes = figure.subplots()
        axes.plot([0.4, 0.85], [0.4, 0.85], color=GREY, linewidth=1, label="equal")
        for name, colour in FIGURES.items():
            ways = [way for part in report["networks"].values() for way in part.values() if name in way["served"]]
            offline, served = [way["offline"][name] for way in ways], [way["served"][name] for way in ways]
            axes.plot(offline, served, "o", color=colour, alpha=0.7, label=name)
        axes.set(xlabel="plain torch", ylabel="served", xlim=(0.4, 0.85), ylim=(0.4, 0.85))
        axes.legend(loc="upper left")
        save_svg(figure, PLOT)
