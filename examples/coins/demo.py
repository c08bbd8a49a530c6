"""Shows the models at work: what each finds in the photograph next to the truth, and how long it takes.

`segserve demo` serves them and runs this program:

    python examples/coins/demo.py [FOLDER]

The models must be served; SEGSERVE_URL says where. Overlays are written to FOLDER, `out` where none is named.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import httpx
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from score import HERE, InstanceScore, SemanticScore, score_instances, score_semantic, truth
from step_times import Counters, StepTimes

from segserve import Client, InstanceResult, SemanticResult
from segserve.calls.endpoint import GatewayEndpoint

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from segserve import Result

PHOTOGRAPH: Final = HERE / "coins.png"
OVERLAYS: Final[Mapping[str, str]] = {
    "coins": "coins-semantic.png",
    "coins-instances": "coins-instances.png",
    "coins-twostage": "coins-twostage.png",
}
TRANSPORTS: Final[tuple[Literal["http", "grpc"], ...]] = ("http", "grpc")
WARM_UP, CALLS = 3, 30


@dataclass(frozen=True, slots=True)
class Shown:
    """One model called over one transport: its answer, and the mean time that a call took."""

    model: str
    transport: str
    result: Result
    score: SemanticScore | InstanceScore
    call_ms: float
    steps: StepTimes

    def split(self) -> dict[str, float]:
        """Return where the milliseconds of a call go, by name, adding up to the whole call."""
        return {
            **self.steps.compute_ms,
            "Triton around them": self.steps.around_ms,
            "gateway and client": self.call_ms - self.steps.ensemble_ms,
        }


def call(model: str, transport: Literal["http", "grpc"], http: httpx.Client) -> Shown:
    """Call `model` with the photograph a few times, one call after the other."""
    image = PHOTOGRAPH.read_bytes()
    with Client(transport=transport) as client:
        for _ in range(WARM_UP):
            client.segment(image, model=model)
        before, start = Counters.read(http, model), time.perf_counter()
        for _ in range(CALLS):
            result = client.segment(image, model=model)
        seconds = time.perf_counter() - start
    steps = before.until(Counters.read(http, model))
    return Shown(model, transport, result, score_of(result), 1000 * seconds / CALLS, steps)


def score_of(result: Result) -> SemanticScore | InstanceScore:
    """Score an answer to the photograph."""
    if isinstance(result, InstanceResult):
        return score_instances([instance.mask for instance in result], truth())
    assert isinstance(result, SemanticResult)
    return score_semantic(result.mask("coin"), truth())


def findings(shown: Sequence[Shown]) -> Table:
    """Return the table of what was found, next to the truth."""
    table = Table(title="Found in the photograph", title_justify="left")
    for heading in ("model", "over"):
        table.add_column(heading)
    for heading in ("coins found", "in truth", "false", "IoU"):
        table.add_column(heading, justify="right")
    for one in shown:
        match one.score:
            case InstanceScore(found, false, mean):
                numbers = (str(found), "24", str(false), f"{mean:.3f} mean")
            case SemanticScore(iou, parts):
                numbers = (str(parts), "24", str(max(parts - 24, 0)), f"{iou:.3f}")
        style = None if one.score.good else "red"
        table.add_row(one.model, one.transport, *numbers, style=style)
    return table


def latencies(shown: Sequence[Shown]) -> Table:
    """Return the table of where the time of a call goes."""
    title = f"Milliseconds a call, mean of {CALLS} one after the other"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 0, 0, 1), show_edge=False)
    for heading in ("model", "over"):
        table.add_column(heading)
    for heading in (*shown[0].split(), "whole call"):
        table.add_column(heading.replace(" ", "\n").replace("\n+", " +"), justify="right")
    for one in shown:
        times = (*one.split().values(), one.call_ms)
        table.add_row(one.model, one.transport, *(f"{time_ms:.1f}" for time_ms in times))
    return table


def main() -> None:
    """Print both tables and write the overlays; an answer that is not good enough ends in an error."""
    console, out = Console(), Path(sys.argv[1] if len(sys.argv) > 1 else "out")
    with httpx.Client(base_url=GatewayEndpoint.parse().url, trust_env=False) as http:
        shown = [call(model, transport, http) for model in OVERLAYS for transport in TRANSPORTS]
    console.print(findings(shown))
    console.print(latencies(shown))
    out.mkdir(exist_ok=True)
    for one in shown[:: len(TRANSPORTS)]:
        path = out / OVERLAYS[one.model]
        one.result.overlay(PHOTOGRAPH).save(path)
        console.print(f"{one.result.revision} drawn over the photograph: {path}", highlight=False, soft_wrap=True)
    if not all(one.score.good for one in shown):
        raise SystemExit("an answer is worse than the example promises")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
