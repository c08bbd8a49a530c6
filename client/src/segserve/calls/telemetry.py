"""OpenTelemetry: a span per call, and the headers that carry its trace to the gateway."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from segserve.calls.endpoint import GatewayEndpoint
from segserve.calls.steps import TransportName
from segserve.errors import package_of_extra
from segserve_common.errors import SegserveError

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

_METHODS: Final[Mapping[TransportName, Mapping[str, Any]]] = {
    "http": {"network.protocol.name": "http", "http.request.method": "POST"},
    "grpc": {
        "network.protocol.name": "grpc",
        "rpc.system.name": "grpc",
        "rpc.method": "inference.GRPCInferenceService/ModelInfer",
    },
}
_STATUSES: Final[Mapping[type, str]] = {int: "http.response.status_code", str: "rpc.response.status_code"}


@dataclass(frozen=True, slots=True)
class Telemetry:
    """Creates the spans of one client, from the global tracer provider at the time of the first call."""

    tracer: Tracer
    attributes: Mapping[str, Any]

    def start(self, name: str, model: str, request_id: str) -> CallSpan:
        """Start a span as a child of the caller's current one."""
        from opentelemetry.trace import SpanKind

        about = {**self.attributes, "segserve.model": model, "segserve.request_id": request_id}
        return CallSpan(self.tracer.start_span(f"{name} {model}", kind=SpanKind.CLIENT, attributes=about))


@dataclass(frozen=True, slots=True)
class CallSpan:
    """The span of one call."""

    span: Span

    def headers(self) -> dict[str, str]:
        """Return the headers of the process's propagator: `traceparent` by default."""
        from opentelemetry import propagate, trace

        carrier: dict[str, str] = {}
        propagate.inject(carrier, trace.set_span_in_context(self.span))
        return {name.lower(): value for name, value in carrier.items()}

    def retried(self, attempt: int, error: SegserveError) -> None:
        """Record a failed attempt that is followed by another."""
        self.span.set_attribute("http.request.resend_count", attempt)
        self.span.add_event("retry", {"attempt": attempt, "error.type": type(error).__name__})

    def failed(self, error: SegserveError) -> None:
        """Record the error that the caller receives."""
        from opentelemetry.trace import Status, StatusCode

        self.span.set_status(Status(StatusCode.ERROR, error.message))
        self.span.set_attribute("error.type", type(error).__name__)
        if error.status is not None:
            self.span.set_attribute(_STATUSES[type(error.status)], error.status)

    def end(self, revision: str | None) -> None:
        """End the span; `revision` is the one that answered, if any."""
        if revision is not None:
            self.span.set_attribute("segserve.revision", revision)
        self.span.end()


def telemetry_of(wanted: bool | None, endpoint: GatewayEndpoint, transport: TransportName) -> Telemetry | None:
    """Return a `Telemetry`, or None for no telemetry.

    With `wanted` None there is telemetry if the program itself has imported OpenTelemetry; others pay nothing. True
    raises `MissingExtraError` if the package is not installed.
    """
    if wanted is False or (wanted is None and "opentelemetry.trace" not in sys.modules):
        return None
    trace = package_of_extra("opentelemetry.trace", "telemetry", "telemetry")
    where = {"server.address": endpoint.host, "server.port": endpoint.port}
    return Telemetry(trace.get_tracer("segserve"), {**where, **_METHODS[transport]})
