"""The client's tables in bench/out/client.md; figures that miss their goal are bold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from bench.client.peers import OURS, OURS_GRPC, TRITON, TRITON_GRPC
from bench.smoke import output

DOCUMENT: Final = output("bench/out/client.md")
BEGIN: Final = "<!-- client: written by make bench-client -->"
END: Final = "<!-- end of client -->"
RATIO_GOAL: Final = 1.1
AT_ONCE_GOALS: Final = {f"{OURS} / {TRITON}": 1.3, f"{OURS_GRPC} / {TRITON_GRPC}": 1.1}
IMPORT_GOAL_MS: Final = 150


def write_tables(results: Mapping[str, Any]) -> None:
    """Write the tables between their marks."""
    text = DOCUMENT.read_text()
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    DOCUMENT.write_text(before + BEGIN + "\n" + "\n".join(lines(results)) + "\n" + END + after)


def lines(results: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of the tables."""
    at_gateway, at_once = results["calls"]["gateway"], results["calls"]["at once"]
    yield from ("| ms per call, sequential | at the gateway | answered at once |", "|---|---|---|")
    for name, ms in at_gateway["ms"].items():
        yield f"| {name} | {ms:.2f} | {at_once['ms'][name]:.2f} |"
    for name, ratio in at_gateway["ratios"].items():
        answered_at_once = _limited(at_once["ratios"][name], AT_ONCE_GOALS.get(name), "x")
        yield f"| {name} | {_limited(ratio, RATIO_GOAL, 'x')} | {answered_at_once} |"
    yield ""
    for title, measured in results["many"].items():
        *_, (compared, ratios) = measured.items()
        counts = next(iter(measured["rates"].values()))
        yield f"| images per second, {title} | {' | '.join(f'{count} in flight' for count in counts)} | {compared} |"
        yield f"|---|{'---|' * (len(counts) + 1)}"
        for name, rate in measured["rates"].items():
            yield f"| {name} | {' | '.join(f'{each:.0f}' for each in rate.values())} | {ratios[name]:.2f} |"
        yield ""
    yield from ("| reading 100 masks of 1080 x 1920 | ms |", "|---|---|")
    yield from (f"| {name} | {ms:.3g} |" for name, ms in results["decoding"]["ms"].items())
    yield ""
    yield from ("| other | measured |", "|---|---|")
    yield from _memory(results["memory"])
    for name, ms in results["importing_ms"].items():
        goal = IMPORT_GOAL_MS if name == "import segserve" else None
        yield f"| `{name}`, on top of Python's start | {_limited(ms, goal, ' ms')} |"


def _memory(memory: Mapping[str, Any]) -> Iterator[str]:
    grown = memory["grown_mib"]
    yield f"| memory after {memory['calls']} more calls | {grown['calls']:+.1f} MiB |"
    images = f"{memory['images']} images of {memory['image_mib']} MiB, {memory['in_flight']} in flight"
    for name in ("threads", "tasks"):
        yield f"| peak memory of `segment_many` over {images}, {name} | {grown[name]:+.1f} MiB |"


def _limited(value: float, most: float | None, unit: str) -> str:
    shown = f"{value:.2f}{unit}" if unit == "x" else f"{value:.0f}{unit}"
    return f"**{shown}** (goal {most:g}{unit})" if most is not None and value > most else shown
