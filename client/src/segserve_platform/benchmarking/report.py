"""The report of a benchmark: percentiles, throughput and the ratio of two models, each with an interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from segserve_platform.benchmarking.load import OfferedLoad, RequestTimes

if TYPE_CHECKING:
    from rich.table import Table

PERCENTILES: Final = {"p50": 50.0, "p95": 95.0, "p99": 99.0, "p99.9": 99.9}
RESAMPLES: Final = 400
KNEE: Final = 0.9
"""Share of the best throughput from which on more callers only wait."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured value with its interval of 95 %, which is nan where there is too little to tell."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        shown = _digits(self.value)
        return shown if np.isnan(self.low) else f"{shown} ({_digits(self.low)}-{_digits(self.high)})"

    def to_dict(self) -> dict[str, float]:
        """Return it for JSON, without an interval where there is none."""
        found = {"value": self.value} | ({} if np.isnan(self.low) else {"low": self.low, "high": self.high})
        return {name: float(f"{value:.5g}") for name, value in found.items()}


@dataclass(frozen=True, slots=True)
class LoadResult:
    """The outcome of one load.

    `latencies_ms` has the percentiles beyond which at least one request lies, by name, and `per_s` how many requests
    were answered a second. `errors` counts those that were not, by the name of the error. `ratios` are those of this
    model's figures to the other's, where two were compared.
    """

    load: OfferedLoad
    requests: int
    per_s: Figure
    latencies_ms: Mapping[str, Figure]
    errors: Mapping[str, int]
    ratios: Mapping[str, Figure]

    @property
    def failed(self) -> int:
        """How many requests were not answered."""
        return sum(self.errors.values())


@dataclass(frozen=True, slots=True)
class BenchmarkReport:
    """How fast a model answers, by load. `revisions` counts the answers of each revision of it.

    `against` is the report of the model that it was compared with, asked in turns.
    """

    model: str
    images: int
    revisions: Mapping[str, int]
    loads: tuple[LoadResult, ...]
    against: BenchmarkReport | None = None

    @property
    def knee(self) -> int | None:
        """The fewest callers at once that bring nine tenths of the best throughput; None of fewer than three loads."""
        closed = [each for each in self.loads if each.load.concurrency is not None]
        if len(closed) < 3:
            return None
        enough = KNEE * max(each.per_s.value for each in closed)
        return min(each.load.concurrency or 0 for each in closed if each.per_s.value >= enough)

    @property
    def failed(self) -> int:
        """How many requests of all loads were not answered, those of the other model included."""
        return sum(each.failed for each in self.loads) + (self.against.failed if self.against is not None else 0)

    def to_dict(self) -> dict[str, Any]:
        """Return the report for JSON."""
        return {
            "model": self.model,
            "images": self.images,
            "revisions": dict(self.revisions),
            **({"knee": self.knee} if self.knee is not None else {}),
            "loads": [
                {
                    "concurrency": each.load.concurrency,
                    "requestsPerSecond": each.load.requests_per_s,
                    "requests": each.requests,
                    "answeredPerSecond": each.per_s.to_dict(),
                    "latenciesMs": {name: figure.to_dict() for name, figure in each.latencies_ms.items()},
                    "errors": dict(each.errors),
                    "ratios": {name: ratio.to_dict() for name, ratio in each.ratios.items()},
                }
                for each in self.loads
            ],
            **({"against": self.against.to_dict()} if self.against is not None else {}),
        }

    def __rich__(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        table.add_column("load", no_wrap=True)
        if self.against is not None:
            table.add_column("model", no_wrap=True)
        for name in ("answered per s", *(f"{name} ms" for name in PERCENTILES), "failed"):
            table.add_column(name, no_wrap=True, justify="right")
        for number, own in enumerate(self.loads):
            compared = () if self.against is None else ((self.against.model, self.against.loads[number]),)
            for name, each in ((self.model, own), *compared):
                figures = (each.per_s, *(each.latencies_ms.get(percentile) for percentile in PERCENTILES))
                cells = [str(figure) if figure is not None else "-" for figure in figures]
                names = [Text(name)] if self.against is not None else []
                table.add_row(str(own.load), *names, *cells, str(each.failed))
            if compared:
                ratios = (own.ratios.get(name) for name in ("per s", *PERCENTILES))
                table.add_row("", "ratio", *(str(ratio) if ratio is not None else "-" for ratio in ratios), "")
        return table


def load_result(load: OfferedLoad, parts: Sequence[RequestTimes], others: Sequence[RequestTimes] = ()) -> LoadResult:
    """Return the figures of a load from stretches of time, and their ratios to those of `others`.

    Intervals are those of a bootstrap of the stretches, since requests near each other are alike; of two models both
    stretches of a turn are drawn together, so that what slowed both is in neither's favour.
    """
    whole = RequestTimes.joined(parts)
    measured = _figures(parts, ())
    return LoadResult(
        load,
        len(whole.due_s) + whole.errors.total(),
        measured.pop("per s"),
        measured,
        dict(whole.errors.most_common()),
        _figures(parts, others) if others else {},
    )


def _figures(parts: Sequence[RequestTimes], others: Sequence[RequestTimes]) -> dict[str, Figure]:
    """Return throughput and percentiles, or their ratios to those of `others`."""
    random = np.random.default_rng(0)
    draws = [random.integers(0, len(parts), len(parts)).tolist() for _ in range(RESAMPLES if len(parts) > 1 else 0)]
    fewest = min(sum(len(part.due_s) for part in side) for side in (parts, others or parts))
    percents = {name: percent for name, percent in PERCENTILES.items() if fewest * (100 - percent) >= 100}

    def measure(chosen: Sequence[int]) -> dict[str, float]:
        own = _statistics(RequestTimes.joined([parts[number] for number in chosen]), percents)
        if not others:
            return own
        other = _statistics(RequestTimes.joined([others[number] for number in chosen]), percents)
        return {name: value / other[name] if other[name] else np.nan for name, value in own.items()}

    drawn, found = [measure(draw) for draw in draws], {}
    for name, value in measure(range(len(parts))).items():
        known = [each[name] for each in drawn if np.isfinite(each[name])]
        low, high = np.quantile(known, [0.025, 0.975]) if known else (np.nan, np.nan)
        found[name] = Figure(value, float(low), float(high))
    return found


def _statistics(sent: RequestTimes, percents: Mapping[str, float]) -> dict[str, float]:
    """Return the throughput of requests, and percentiles of their latencies, nan where none was answered."""
    if not len(sent.latency_ms):
        return {"per s": sent.per_s, **dict.fromkeys(percents, np.nan)}
    latencies_ms = np.percentile(sent.latency_ms, list(percents.values()))
    return {"per s": sent.per_s, **dict(zip(percents, latencies_ms.tolist(), strict=True))}


def _digits(value: float) -> str:
    """Return a number with three digits that count."""
    if np.isnan(value):
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}"
