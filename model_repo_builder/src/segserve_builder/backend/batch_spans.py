"""Spans of what a step runs, which Triton does not report, sent to where Triton sends its own."""

from __future__ import annotations

import json
import os
import queue
import secrets
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any, Final
from urllib.parse import urlsplit

from segserve_builder.spec.names import TRACES_VARIABLE

PERIOD_S: Final = 1.0
"""The spans of so long are one message."""
MOST_WAITING: Final = 2048
TIMEOUT_S: Final = 10.0
_RESOURCE: Final = {"attributes": [{"key": "service.name", "value": {"stringValue": "segserve-triton"}}]}


@contextmanager
def batch_spans(requests: Sequence[Any], images: int) -> Iterator[None]:
    """Make a span `batch` for each traced one of the requests that the context answers together.

    `images` are the rows of the network's input, which may be tiles of images.
    """
    sizes = {"segserve.batch_size": images, "segserve.batch_requests": len(requests)}
    with spans("batch", trace_parents(requests), sizes):
        yield


@contextmanager
def spans(name: str, parents: Sequence[Mapping[str, str]], sizes: Mapping[str, int] | None = None) -> Iterator[None]:
    """Make a span of the context for each of the `parents`, with numbers as its attributes."""
    url, started_ns = os.environ.get(TRACES_VARIABLE), time.time_ns()
    try:
        yield
    finally:
        if url and parents:
            attributes = [{"key": key, "value": {"intValue": str(number)}} for key, number in (sizes or {}).items()]
            times = {"startTimeUnixNano": str(started_ns), "endTimeUnixNano": str(time.time_ns())}
            # An answer matters more than its spans: there may be no memory for a thread.
            with suppress(RuntimeError):
                for parent in parents:
                    ids = {**parent, "spanId": secrets.token_hex(8)}
                    # Kind 1 is internal.
                    _exporter(url).add({"name": name, "kind": 1, **ids, **times, "attributes": attributes})


def trace_parents(requests: Sequence[Any]) -> list[dict[str, str]]:
    """Return the ids of Triton's span of the step, for each request that Triton traces, if spans are collected."""
    found: list[dict[str, str]] = []
    if TRACES_VARIABLE not in os.environ:
        return found
    for request in requests:
        # A Triton whose Python steps have no contexts makes only its own spans.
        with suppress(AttributeError, ValueError, KeyError, TypeError):
            if context := request.trace().get_context():
                _, trace, parent, _ = json.loads(context)["traceparent"].split("-")
                found.append({"traceId": trace, "parentSpanId": parent})
    return found


class SpanExporter:
    """Sends spans by OTLP/HTTP as JSON, in one thread; drops spans that the collector does not accept in time."""

    def __init__(self, url: str) -> None:
        self._url = urlsplit(url)
        self._waiting: queue.Queue[dict[str, Any]] = queue.Queue(MOST_WAITING)
        threading.Thread(target=self._send_all, name="spans", daemon=True).start()

    def add(self, span: dict[str, Any]) -> None:
        """Send a span soon."""
        with suppress(queue.Full):
            self._waiting.put_nowait(span)

    def _send_all(self) -> None:
        from http.client import HTTPException  # 2 MiB that a process without spans does not need

        while True:
            spans = [self._waiting.get()]
            time.sleep(PERIOD_S)
            with suppress(queue.Empty):
                while len(spans) < MOST_WAITING:
                    spans.append(self._waiting.get_nowait())
            with suppress(OSError, HTTPException):
                self._send(spans)

    def _send(self, spans: list[dict[str, Any]]) -> None:
        scope = {"scope": {"name": "segserve"}, "spans": spans}
        body = json.dumps({"resourceSpans": [{"resource": _RESOURCE, "scopeSpans": [scope]}]})
        from http.client import HTTPConnection

        connection = HTTPConnection(self._url.hostname or "", self._url.port, timeout=TIMEOUT_S)
        try:
            connection.request("POST", self._url.path, body, {"content-type": "application/json"})
            connection.getresponse().read()
        finally:
            connection.close()


_exporter: Final = cache(SpanExporter)
"""Models of one process send together."""
