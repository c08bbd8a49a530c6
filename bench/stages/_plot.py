"""The plot of docs/evidence/performance.md: how much faster each case is than its peer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from matplotlib.figure import Figure

from bench.svg import BLUE, GREY, ORANGE, plot_style, save_svg

NAMES: Final = {
    "blend": "tile blending",
    "boxes": "NMS and anchors",
    "crf": "CRF",
    "keypoints": "keypoints",
    "labels": "labels from logits",
    "paste": "Mask R-CNN masks",
    "polygons": "polygons",
    "preprocess": "resize, normalise",
    "queries": "queries",
    "regions": "regions and holes",
    "rle": "RLE",
    "yolo": "YOLO masks",
}


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the ratio of each row, a line per group; cases that are meant to be hard have another colour."""
    groups = list(dict.fromkeys(row["group"] for row in rows))
    with plot_style():
        figure = Figure(figsize=(8.5, 4.2), layout="constrained")
        axes = figure.subplots()
        for worst, colour, label in ((False, BLUE, "usual input"), (True, ORANGE, "worst case")):
            chosen = [row for row in rows if row["worst"] is worst]
            across = [row["ratio"] for row in chosen]
            axes.plot(across, [groups.index(row["group"]) for row in chosen], "o", color=colour, alpha=0.7, label=label)
        axes.axvline(1, color=GREY, linewidth=1.2)
        axes.set(xscale="log", xlabel="times as fast as the peer (ratio of medians, one thread each)")
        axes.set_xticks([0.1, 1, 10, 100, 1000], ["0.1x", "1x", "10x", "100x", "1000x"])
        axes.set_yticks(range(len(groups)), [NAMES.get(group, group) for group in groups])
        axes.invert_yaxis()
        axes.legend(loc="lower right")
        save_svg(figure, path)
