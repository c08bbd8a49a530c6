"""How the documentation's plots look, and how they are written: the same data give the same bytes."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE: Final = "#0072b2"
ORANGE: Final = "#d55e00"
GREY: Final = "#999999"
_STYLE: Final = {
    "svg.hashsalt": "segserve",
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
}


def plot_style() -> AbstractContextManager[None]:
    """Return the context in which figures are made and saved."""
    import matplotlib as mpl

    return mpl.rc_context(_STYLE)


def save_svg(figure: Figure, path: Path) -> None:
    """Write a figure without dates and without blanks at the end of lines."""
    figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
    lines = path.read_text().splitlines()
    path.write_text("\n".join(line.rstrip() for line in lines) + "\n")
