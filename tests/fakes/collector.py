"""A collector of OpenTelemetry spans for tests: a real OTLP/HTTP receiver, of protobuf and of JSON."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final, TypeAlias

from aiohttp import web
from google.protobuf import descriptor_pb2, json_format, message_factory
from google.protobuf.descriptor_pool import DescriptorPool

from fakes.waiting import HANG_S, until

_Field: Final = descriptor_pb2.FieldDescriptorProto
_TYPES: Final = {
    "string": _Field.TYPE_STRING,
    "bytes": _Field.TYPE_BYTES,
    "uint32": _Field.TYPE_UINT32,
    "int64": _Field.TYPE_INT64,
    "fixed64": _Field.TYPE_FIXED64,
    "bool": _Field.TYPE_BOOL,
    "double": _Field.TYPE_DOUBLE,
}
# By message: the numbers and types of the fields that tests read, as opentelemetry-proto defines them; "[]" is a list.
_MESSAGES: Final = {
    "AnyValue": {
        "stringValue": (1, "string"),
        "boolValue": (2, "bool"),
        "intValue": (3, "int64"),
        "doubleValue": (4, "double"),
    },
    "KeyValue": {"key": (1, "string"), "value": (2, "AnyValue")},
    "Resource": {"attributes": (1, "[]KeyValue")},
    "Event": {"timeUnixNano": (1, "fixed64"), "name": (2, "string"), "attributes": (3, "[]KeyValue")},
    "Span": {
        "traceId": (1, "bytes"),
        "spanId": (2, "bytes"),
        "parentSpanId": (4, "bytes"),
        "name": (5, "string"),
        "kind": (6, "uint32"),
        "startTimeUnixNano": (7, "fixed64"),
        "endTimeUnixNano": (8, "fixed64"),
        "attributes": (9, "[]KeyValue"),
        "events": (11, "[]Event"),
    },
    "ScopeSpans": {"spans": (2, "[]Span")},
    "ResourceSpans": {"resource": (1, "Resource"), "scopeSpans": (2, "[]ScopeSpans")},
    "ExportTraceServiceRequest": {"resourceSpans": (1, "[]ResourceSpans")},
}


Json: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ReceivedSpan:
    """A span; ids are in hexadecimal digits, `parent` is empty for a trace's first."""

    service: str
    name: str
    kind: int
    trace: str
    id: str
    parent: str
    start_ns: int
    end_ns: int
    attributes: Json
    events: dict[str, int]


@dataclass
class Collector:
    """What has come in so far."""

    url: str = ""
    spans: list[ReceivedSpan] = field(default_factory=list)

    def of(self, trace: str) -> list[ReceivedSpan]:
        """Return the spans of a trace, in the order of their starts."""
        return sorted((span for span in self.spans if span.trace == trace), key=lambda span: span.start_ns)

    def inference(self, trace: str, caller: str) -> dict[str, list[ReceivedSpan]]:
        """Return the spans of an inference of one step by their parents, once all below the caller's span have come."""

        def complete() -> dict[str, list[ReceivedSpan]] | None:
            arrived, found = self.of(trace), dict[str, list[ReceivedSpan]]()
            for span in arrived:
                found.setdefault(span.parent, []).append(span)
            computed = [span for span in arrived if span.name == "compute"]
            has_parents = found.keys() - {span.id for span in arrived} == {caller}
            return found if has_parents and len(computed) == 1 else None

        return until(complete, f"the spans of {trace}")

    async def _take(self, request: web.Request) -> web.Response:
        body = await request.read()
        if request.content_type == "application/json":
            self.spans.extend(_spans(json.loads(body), str))
        else:
            message = _export_request()()
            message.ParseFromString(gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body)
            # Ids are in base64 in protobuf's JSON, and in hexadecimal digits in that of OTLP.
            self.spans.extend(_spans(json_format.MessageToDict(message), lambda id_: base64.b64decode(id_).hex()))
        return web.Response()


@contextmanager
def collector(
    host: str = "127.0.0.1", advertised: str | None = None, tls: ssl.SSLContext | None = None
) -> Iterator[Collector]:
    """Receive on a free port of `host` while the block runs, in a thread; others reach it at `advertised`."""
    found, ready, loop = Collector(), threading.Event(), asyncio.new_event_loop()
    ended = asyncio.Event()

    async def serve() -> None:
        app = web.Application()
        app.router.add_post("/v1/traces", found._take)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, host, 0, ssl_context=tls).start()
        found.url = f"http{'s' if tls else ''}://{advertised or host}:{runner.addresses[0][1]}"
        ready.set()
        await ended.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), name="collector", daemon=True)
    thread.start()
    ready.wait(HANG_S)
    try:
        yield found
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join(HANG_S)
        loop.close()


def _spans(exported: Json, hexadecimal: Callable[[str], str]) -> Iterator[ReceivedSpan]:
    for resource in exported["resourceSpans"]:
        service = _attributes(resource.get("resource", {})).get("service.name", "")
        for span in (span for scope in resource["scopeSpans"] for span in scope["spans"]):
            yield ReceivedSpan(
                service,
                span["name"],
                int(span.get("kind", 0)),
                hexadecimal(span["traceId"]),
                hexadecimal(span["spanId"]),
                hexadecimal(span.get("parentSpanId", "")),
                int(span["startTimeUnixNano"]),
                int(span["endTimeUnixNano"]),
                _attributes(span),
                {event["name"]: int(event["timeUnixNano"]) for event in span.get("events", ())},
            )


def _attributes(owner: Json) -> Json:
    # Each value is an object with one entry, which names its type.
    return {each["key"]: next(iter(each.get("value", {}).values()), None) for each in owner.get("attributes", ())}


@cache
def _export_request() -> type[Any]:
    """Return the class of what a sender posts; fields that the table lacks are skipped."""
    file = descriptor_pb2.FileDescriptorProto(name="spans.proto", package="spans", syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field_name, (number, kind) in fields.items():
            label = _Field.LABEL_REPEATED if kind.startswith("[]") else _Field.LABEL_OPTIONAL
            added = message.field.add(name=field_name, number=number, label=label)
            if (plain := kind.removeprefix("[]")) in _TYPES:
                added.type = _TYPES[plain]
            else:
                added.type, added.type_name = _Field.TYPE_MESSAGE, f".spans.{plain}"
    pool = DescriptorPool()
    pool.Add(file)
    found: type[Any] = message_factory.GetMessageClass(pool.FindMessageTypeByName("spans.ExportTraceServiceRequest"))
    return found
