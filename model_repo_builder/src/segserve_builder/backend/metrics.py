"""Reports a step's counts of answers to Triton, so that its own /metrics shows them."""

from __future__ import annotations

import threading
import time
from functools import cache
from typing import Any, Final

import triton_python_backend_utils as pb_utils

from segserve_builder.steps.answer_metrics import METRIC_FAMILIES, AnswerMetrics, Increment

PERIOD_S: Final = 5.0
"""Each series that has changed takes a message to the server, of some 60 us."""
_PAUSE_S: Final = 0.0005
"""Between two messages, so that a request never waits for more than one."""


class MetricsReporter:
    """Reports what the models of this process count, in one thread: while there are any, or from `start` to `end`."""

    def __init__(self) -> None:
        self._reports: list[ReportedCounts] = []
        self._lock = threading.Lock()
        self._woken = threading.Event()
        self._thread: threading.Thread | None = None
        self._stays = False

    def start(self) -> None:
        """Start the thread, which stays until the end."""
        with self._lock:
            self._stays = True
            self._start()

    def end(self) -> None:
        """Let the thread end once all models are removed."""
        self._stays = False
        self._woken.set()

    def _start(self) -> None:
        if self._thread is None:
            thread = threading.Thread(target=self._report_all, name="metrics", daemon=True)
            thread.start()  # without memory for it no counts are kept
            self._thread = thread

    def add(self, counts: AnswerMetrics, model: str, revision: str) -> ReportedCounts:
        """Report a model's counts until they are removed; raises the error of a server that keeps no metrics."""
        report = ReportedCounts(counts, model, revision)
        with self._lock:
            self._start()
            self._reports.append(report)
        return report

    def remove(self, report: ReportedCounts) -> None:
        """Report what is left of a model, and end."""
        report.is_last = True
        self._woken.set()
        report.done.wait(PERIOD_S)

    def _report_all(self) -> None:
        while True:
            self._woken.wait(PERIOD_S)
            self._woken.clear()
            # Removal comes first: a caller waits for it.
            for report in sorted(self._reports, key=lambda report: not report.is_last):
                is_last = report.is_last
                report.send(0.0 if is_last else _PAUSE_S)
                if is_last:
                    with self._lock:
                        self._reports.remove(report)
                    report.done.set()
            with self._lock:
                if not self._reports and not self._stays:
                    self._thread = None
                    return


class ReportedCounts:
    """Counts of one model, and the series that the server keeps of them."""

    def __init__(self, counts: AnswerMetrics, model: str, revision: str) -> None:
        self._counts, self._own = counts, {"model": model, "revision": revision}
        self._families = _families()
        self._series: dict[tuple[str, ...], Any] = {}
        self.is_last = False
        self.done = threading.Event()

    def send(self, pause_s: float) -> None:
        """Send what was counted since the last time, with a pause after each message."""
        try:
            increments = self._counts.take()
        except Exception as error:  # only later counts are reported
            pb_utils.Logger.log_error(f"answers were not counted: {error!r}")
            return
        for increment in increments:
            try:
                self._series_of(increment).increment(increment.amount)
            except Exception as error:  # the other metrics are still reported
                pb_utils.Logger.log_error(f"{increment.name} was not told: {error!r}")
            time.sleep(pause_s)

    def _series_of(self, increment: Increment) -> Any:
        key = (increment.name, *increment.labels.values())
        if key not in self._series:
            labels = self._own | dict(increment.labels)
            self._series[key] = self._families[increment.name].Metric(labels=labels)
        return self._series[key]


@cache
def _families() -> dict[str, Any]:
    """Register the families, which all models of this process share."""
    # The class does not exist yet while the module is imported.
    return {
        name: pb_utils.MetricFamily(name, family.help, pb_utils.MetricFamily.COUNTER)
        for family in METRIC_FAMILIES
        for name in family.counters
    }
