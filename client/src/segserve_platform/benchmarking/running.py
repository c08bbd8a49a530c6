"""`segserve.benchmark`: asks a model images under a load, through its gateway, and says how fast it answers."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from segserve.client import Client
from segserve_common.errors import BadRequestError
from segserve_platform.benchmarking.load import Call, OfferedLoad, RequestTimes, send
from segserve_platform.benchmarking.report import BenchmarkReport, load_result

if TYPE_CHECKING:
    from segserve.results.images import ImageLike

BenchmarkProgress: TypeAlias = Callable[[str, OfferedLoad], object]
"""Is called with the model and the load that it is asked under next."""

CONCURRENCY: Final = (1, 2, 4, 8)
PARTS: Final = 20
"""Stretches of time of which intervals are made."""
TURNS: Final = 10
"""Turns of two models that are compared."""


def benchmark(
    model: str,
    images: Sequence[ImageLike],
    *,
    concurrency: Sequence[int] | None = None,
    requests_per_s: Sequence[float] | None = None,
    duration_s: float = 10.0,
    warmup_s: float = 2.0,
    against: str | None = None,
    client: Client | None = None,
    progress: BenchmarkProgress | None = None,
) -> BenchmarkReport:
    """Ask a model images under one load after the other, and say how fast it answers.

    `images` are asked in turn, as `Client.segment` takes them; files are read before, so that sending and reading the
    answer are measured alone. `concurrency` are numbers of callers in closed loops (default: 1, 2, 4, 8),
    `requests_per_s` rates of open loops, whose latencies begin when a request was due. Each load lasts `warmup_s`,
    which does not count, and `duration_s`. With `against` another model is asked the same in ten turns of both.

    `client` is by default a new one that does not try again. All callers share this process, whose own work counts:
    from some hundreds of small images a second on, it is the client that is measured.

    Raises `BadRequestError` for invalid arguments, `OSError` for a file that cannot be read, and the error of each
    model's first request.
    """
    if concurrency is not None and requests_per_s is not None:
        raise BadRequestError("give concurrency or requests_per_s, not both")
    loads = (
        [OfferedLoad(requests_per_s=each) for each in requests_per_s]
        if requests_per_s is not None
        else [OfferedLoad(concurrency=each) for each in (CONCURRENCY if concurrency is None else concurrency)]
    )
    if not loads or not images:
        raise BadRequestError(f"give one load and one image at least, got {len(loads)} and {len(images)}")
    if not 0 < duration_s <= 86_400 or not 0 <= warmup_s <= 86_400:
        raise BadRequestError(
            f"duration_s must be above 0 and warmup_s at least 0, both at most 86,400; got {duration_s} and {warmup_s}"
        )
    if against == model:
        raise BadRequestError(f"against must be another model, got {against!r} for both")
    read = [Path(image).read_bytes() if isinstance(image, str | os.PathLike) else image for image in images]
    names = (model,) if against is None else (model, against)
    seen = {name: Counter[str]() for name in names}
    results = {name: list[tuple[OfferedLoad, list[RequestTimes]]]() for name in names}
    with nullcontext(client) if client is not None else Client(retries=0) as asked:
        calls = {name: _call(asked, name, read, seen[name]) for name in names}
        for call in calls.values():
            call(0)
        for load in loads:
            for name, parts in _measured(calls, load, duration_s, warmup_s, progress).items():
                results[name].append((load, parts))
    reports = {
        name: BenchmarkReport(
            name,
            len(images),
            dict(seen[name].most_common()),
            tuple(
                load_result(load, parts, results[against][number][1] if against is not None and name == model else ())
                for number, (load, parts) in enumerate(results[name])
            ),
        )
        for name in names
    }
    return reports[model] if against is None else replace(reports[model], against=reports[against])


def _call(client: Client, model: str, images: Sequence[ImageLike], seen: Counter[str]) -> Call:
    lock = threading.Lock()

    def ask(number: int) -> None:
        result = client.segment(images[number % len(images)], model=model)
        with lock:
            seen[result.revision] += 1

    return ask


def _measured(
    calls: Mapping[str, Call], load: OfferedLoad, duration_s: float, warmup_s: float, progress: BenchmarkProgress | None
) -> dict[str, list[RequestTimes]]:
    """Return what each model was sent under a load, by stretches of time: of one model, or of turns of two."""

    def sent(name: str, seconds: float, warmup_s: float, turn: int) -> RequestTimes:
        if progress is not None:
            progress(name, load)
        return send(calls[name], load, seconds, warmup_s=warmup_s, seed=turn)

    if len(calls) == 1:
        (name,) = calls
        return {name: list(sent(name, duration_s, warmup_s, 0).parts(PARTS))}
    found = {name: list[RequestTimes]() for name in calls}
    for turn in range(TURNS):
        for name in list(calls)[:: 1 if turn % 2 else -1]:
            found[name].append(sent(name, duration_s / TURNS, 0.0 if turn else warmup_s, turn))
    return found
