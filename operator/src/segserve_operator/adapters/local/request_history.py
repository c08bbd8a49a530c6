"""The requests of each model by minute, as the supervisor counts them: a bounded file, which outlives it."""

from __future__ import annotations

import contextlib
import json
import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from segserve_common.files import read_tail, write_private
from segserve_operator.adapters.local.files import bound_log
from segserve_operator.core.rollout.counters import Sample

LIMIT_BYTES: Final = 8 * 2**20
KEPT_BYTES: Final = 5 * 2**20
BINS_PER_OCTAVE: Final = 4
"""Latencies are kept to 19 %, which a curve does not show, so that a day of twenty busy models fits."""

log = logging.getLogger("segserve")


class CountedRequests(NamedTuple):
    """Requests of a model in a while: all, those that failed, and latencies by the number of their bin."""

    requests: int = 0
    failed: int = 0
    latencies: Mapping[int, int] = {}


def bin_edge_ms(number: int) -> float:
    """Return the lower edge of a bin of latencies in milliseconds; the upper one is that of the next."""
    return float(2 ** (number / BINS_PER_OCTAVE))


class RequestHistory:
    """Appends what a gateway's counters have grown by to a file with a line for each minute with requests."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._before: dict[str, tuple[str, CountedRequests]] | None = None

    def check(self) -> None:
        """Drop a line that a crash has cut short, and discard a file that is damaged, with a warning."""
        try:
            bound_log(self._path, limit_bytes=LIMIT_BYTES, kept_bytes=KEPT_BYTES)
            data = self._path.read_bytes()
            for line in data[: data.rfind(b"\n") + 1].splitlines():
                _parse(line)
            if not data.endswith(b"\n"):
                write_private(self._path, data[: data.rfind(b"\n") + 1].decode())
        except FileNotFoundError:
            return
        except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            log.warning("the history of requests, %s, is damaged and was discarded: %s", self._path, error)
            with contextlib.suppress(OSError):
                self._path.unlink()

    def observe(self, samples: Mapping[str, Sample], at_s: float) -> None:
        """Append what was counted since the last call, the first of which only remembers; raises `OSError`."""
        now = {model: _total(sample) for model, sample in samples.items() if sample}
        before, self._before = self._before, (self._before or {}) | now
        if before is None:
            return
        grown = {}
        for model, (epoch, counts) in now.items():
            former_epoch, former = before.get(model, (epoch, CountedRequests()))
            counted = counts if former_epoch != epoch else _difference(counts, former)
            if counted.requests:
                grown[model] = counted
        if grown:
            if not self._path.exists():
                write_private(self._path, "")
            with self._path.open("a") as file:
                file.write(json.dumps([round(at_s), grown], separators=(",", ":")) + "\n")
            bound_log(self._path, limit_bytes=LIMIT_BYTES, kept_bytes=KEPT_BYTES)


def read_history(path: Path, since_s: float) -> Iterator[tuple[float, dict[str, CountedRequests]]]:
    """Yield the minutes after a Unix time and what each model was asked then; unreadable lines are left out."""
    try:
        lines = read_tail(path, LIMIT_BYTES).splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        with contextlib.suppress(ValueError, TypeError, LookupError, AttributeError, RecursionError):
            at_s, counts = _parse(line)
            if at_s > since_s:
                yield at_s, counts


def _parse(line: bytes) -> tuple[float, dict[str, CountedRequests]]:
    at_s, models = json.loads(line)
    return float(at_s), {
        str(model): CountedRequests(int(requests), int(failed), {int(key): int(value) for key, value in bins.items()})
        for model, (requests, failed, bins) in models.items()
    }


def _total(sample: Sample) -> tuple[str, CountedRequests]:
    """Return when the gateways of a sample began to count, and all that they have counted."""
    requests, failed, latencies = 0, 0, Counter[int]()
    for counters in sample.values():
        for series in counters.by_series.values():
            requests += series.attempts
            failed += series.failed + max(series.given_up - series.left, 0)
            for edge_ms, count in series.latencies:
                latencies[math.floor(math.log2(max(edge_ms, 0.1)) * BINS_PER_OCTAVE + 1e-9)] += count
    return " ".join(sorted(each.epoch for each in sample.values())), CountedRequests(requests, failed, latencies)


def _difference(now: CountedRequests, before: CountedRequests) -> CountedRequests:
    """Return what was counted in between; the counts of a group that is gone are no longer there."""
    latencies = {key: count - before.latencies.get(key, 0) for key, count in now.latencies.items()}
    return CountedRequests(
        max(now.requests - before.requests, 0),
        max(now.failed - before.failed, 0),
        {key: count for key, count in latencies.items() if count > 0},
    )
