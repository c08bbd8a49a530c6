"""Writes the report's tables into bench/out/quality.md."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from examples.zoo.training import HERE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

DOCUMENT: Final = HERE.parents[1] / "bench/out/quality.md"
BEGIN: Final = "<!-- zoo: written by make zoo-report -->"
END: Final = "<!-- end of zoo -->"
SEMANTIC: Final = (
    "mIoU",
    "IoU background",
    "IoU disc",
    "IoU box",
    "IoU wire",
    "IoU star",
    "boundary IoU",
    "ECE",
    "islands",
)
INSTANCES: Final = ("AP", "AP50", "AP75", "AP tiny", "AP small", "AP large", "ECE", "parts of a mask")


def write(report: Mapping[str, Any]) -> None:
    """Replace what stands between the two marks of the document."""
    text = DOCUMENT.read_text()
    before, after = text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END) :]
    DOCUMENT.write_text(f"{before}\n{tables(report)}\n{after}")


def tables(report: Mapping[str, Any]) -> str:
    """Return the tables of label maps and of instances as Markdown."""
    ways = [(name, way, one) for name, part in report["networks"].items() for way, one in part.items()]
    semantic = [row for row in ways if "mIoU" in row[2]["served"]]
    instances = [row for row in ways if "AP" in row[2]["served"]]
    parts = [
        "Label maps, served / offline:\n",
        _table(semantic, SEMANTIC, "other pixels"),
        f"\nThe scenes themselves have {report['islands']:.1f} islands an image.",
        "\nInstances, served / offline:\n",
        _table(instances, INSTANCES, None),
    ]
    return "\n".join(parts)


def _table(rows: Sequence[tuple[str, str, Mapping[str, Any]]], figures: Sequence[str], last: str | None) -> str:
    heads = ["network", "with", *figures, *([last] if last else [])]
    lines = [" | ".join(heads), " | ".join(["---", "---", *["---:"] * (len(heads) - 2)])]
    before = ""
    for name, way, one in rows:
        cells = [name if name != before else "", _named(way, one["temperature"])]
        cells += [_pair(one["served"].get(figure), one["offline"].get(figure)) for figure in figures]
        if last:
            cells.append("0" if not one["otherPixels"] else f"{one['otherPixels']:.0e}")
        lines.append(" | ".join(cells))
        before = name
    return "\n".join(f"| {line} |" for line in lines)


def _named(way: str, temperature: float) -> str:
    return way if temperature == 1 else f"{way}, T = {temperature:g}"


def _pair(served: float | None, plain: float | None) -> str:
    if served is None or plain is None:
        return ""
    if served < 0 and plain < 0:
        return "none"
    one, other = (f"{value:.1f}" if value >= 2 else f"{value:.3f}" for value in (served, plain))
    return f"{one} / {other}"
